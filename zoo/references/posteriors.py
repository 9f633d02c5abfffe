"""A posterior with its model, its data, and the moments that a sampler has to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.errors import PairError
from zoo.references.models import MODELS
from zoo.references.stored import Moments, elements, read
from zoo.types import Batch, Dataset

__all__ = ["Reference", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A posterior whose moments are known.

    Args:
        name: Name in posteriordb, ``DATA-MODEL``.
        about: One line: the Stan program, and what it is.
        model: Pyro model of one batch.
        data: The data, in float64; ``data.train`` is the batch.
        dimensions: Parameter -> number of its elements.
        moments: Element of a parameter (``beta[1]``, ``sigma``) -> its moments.
        parameters: Latents by site -> the Stan program's parameters, see :meth:`elements`.
    """

    name: str
    about: str
    model: Callable[[Batch], Any]
    data: Dataset
    dimensions: Mapping[str, int]
    moments: Mapping[str, Moments]
    parameters: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

    def elements(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the elements of the Stan program's parameters, on their constrained scale, at draws of the latents.

        Args:
            draws: Latent site -> ``(*sample, *shape)``.

        Returns:
            Each key of ``moments`` -> ``(*sample,)``.

        Raises:
            PairError: If the draws lack a site or have other shapes.
        """
        try:
            found = self.parameters(draws)
            values = [found[name] for name in self.dimensions]
        except KeyError as error:
            raise PairError(f"the draws lack the site {error}; '{self.name}' needs it") from error
        parts: list[Tensor] = []
        for (name, size), value in zip(self.dimensions.items(), values, strict=True):
            if size > 1 and (value.dim() == 0 or value.shape[-1] != size):
                raise PairError(f"'{name}' has the shape {tuple(value.shape)}; its last dimension must be {size}")
            parts += value.unbind(-1) if size > 1 else [value]
        return dict(zip(elements(self.dimensions), parts, strict=True))


def load(name: str) -> Reference:
    """Load a posterior of posteriordb.

    Args:
        name: One of :func:`zoo.references.names`.

    Returns:
        Model, data and reference moments; see :func:`zoo.references.read` for what is raised.
    """
    stored = read(name)
    build = MODELS[name.partition("-")[2]]
    built = build(stored.data)
    data = Dataset(
        name=name,
        task="",
        train=built.batch,
        source=f"posteriordb, {name}, https://github.com/stan-dev/posteriordb",
        licence="BSD-3-Clause",
        description=(build.__doc__ or "").splitlines()[0],
        origin="user",
    )
    return Reference(
        name=name,
        about=data.description,
        model=built.model,
        data=data,
        dimensions=stored.dimensions,
        moments=stored.moments,
        parameters=built.parameters,
    )
