r"""Perceptrons that encode rows into latents and decode latents into rows, with their weights as parameters.

A layer maps :math:`h` to :math:`\mathrm{relu}(h W + b)`, without the relu in the last one. ``W`` and ``b`` of layer
:math:`l` of a perceptron ``NAME`` are ``pyro.param("NAME_l_weight")``, ``(inputs, outputs)``, and
``pyro.param("NAME_l_bias")``; calling a perceptron twice under one name shares its weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import DataError
from zoo.types import Batch, Dataset

__all__ = [
    "Likelihood",
    "as_observed",
    "binarised",
    "decoded",
    "encoded",
    "likelihood_of",
    "perceptron",
    "pseudo_inputs",
    "vamp_prior",
]

Likelihood: TypeAlias = Literal["bernoulli", "normal"]

_LEAST_SCALE = 1e-4  # of a latent given its row
_EDGE = 0.02  # pseudo-inputs begin at most so close to 0 or 1, where the sigmoid that keeps them inside is flat


def perceptron(
    name: str,
    x: Tensor,
    outputs: int,
    *,
    hidden: Sequence[int] = (),
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> Tensor:
    """Apply a multilayer perceptron whose weights stand in the parameter store.

    Args:
        name: In front of the names of its parameters.
        x: Inputs, ``(*sample, inputs)``.
        outputs: Units of the last layer.
        hidden: Units of each hidden layer; none for a linear map.
        activation: Between layers.

    Returns:
        ``(*sample, outputs)``.
    """
    sizes = (x.shape[-1], *hidden, outputs)
    for l, (before, after) in enumerate(itertools.pairwise(sizes)):
        last = l == len(hidden)
        spread = ((1 if last else 2) / before) ** 0.5

        def start(spread: float = spread, shape: tuple[int, int] = (before, after)) -> Tensor:
            return spread * torch.randn(shape)

        weight = pyro.param(f"{name}_{l}_weight", start)
        bias = pyro.param(f"{name}_{l}_bias", lambda after=after: torch.zeros(after))
        x = x @ weight + bias
        x = x if last else activation(x)
    return x


def encoded(name: str, x: Tensor, num_latent: int, *, hidden: Sequence[int] = ()) -> TorchDistribution:
    """Return independent normals over the latents of rows, with location and scale from a perceptron.

    Args:
        name: Of the perceptron, which has ``2 * num_latent`` outputs: locations, then scales before their softplus.
        x: Rows, ``(*sample, features)``.
        num_latent: Latents of a row.
        hidden: Units of each hidden layer.

    Returns:
        A distribution of batch shape ``sample`` and event shape ``(num_latent,)``.
    """
    loc, raw = perceptron(name, x, 2 * num_latent, hidden=hidden).split(num_latent, -1)
    return dist.Normal(loc, F.softplus(raw) + _LEAST_SCALE).to_event(1)


def decoded(
    name: str,
    z: Tensor,
    like: Tensor,
    kind: Likelihood,
    *,
    hidden: Sequence[int] = (),
    least_scale: float = 0.05,
) -> TorchDistribution:
    """Return the distribution of rows given their latents.

    Args:
        name: Of the perceptron. For ``normal`` the parameter ``NAME_scale``, one per feature, holds the noise.
        z: Latents, ``(*sample, rows, latents)``.
        like: Rows of the batch, ``(rows, ...)``, for their shape.
        kind: ``bernoulli`` takes the outputs as logits, ``normal`` as means.
        hidden: Units of each hidden layer.
        least_scale: Smallest noise; without a bound the density of a feature that the latents can copy has none.

    Returns:
        A distribution of batch shape ``(*sample, rows)`` and the event shape of one row.
    """
    shape = tuple(like.shape[1:])
    out = perceptron(name, z, like[0].numel(), hidden=hidden).unflatten(-1, shape)
    if kind == "bernoulli":
        return dist.Bernoulli(logits=out).to_event(len(shape))
    scale = pyro.param(
        f"{name}_scale", lambda: torch.ones(shape), constraint=constraints.greater_than(torch.tensor(least_scale))
    )
    return dist.Normal(out, scale).to_event(len(shape))


def likelihood_of(data: Dataset, kind: Literal["auto", "bernoulli", "normal"]) -> Likelihood:
    """Return the likelihood for rows of a data set.

    Args:
        data: Batches with ``x``.
        kind: What was asked for; ``auto`` is Bernoulli for images with pixels in ``[0, 1]`` and for zeros and ones.

    Returns:
        ``bernoulli`` or ``normal``.

    Raises:
        DataError: If Bernoulli was asked for, and ``x`` goes beyond ``[0, 1]``.
    """
    x = data.train["x"]
    low, high = float(x.min()), float(x.max())
    inside = low >= 0 and high <= 1
    if kind == "bernoulli" and not inside:
        raise DataError(
            f"data set '{data.name}': 'x' reaches from {low:g} to {high:g}; for likelihood='bernoulli' it must lie in "
            "[0, 1]; use likelihood='normal'"
        )
    if kind != "auto":
        return kind
    pixels = "image_shape" in data.extra or bool(((x == 0) | (x == 1)).all())
    return "bernoulli" if inside and pixels else "normal"


def as_observed(batch: Batch, kind: Likelihood) -> Tensor:
    """Return the rows as the model observes them.

    Args:
        batch: Batch with ``x``.
        kind: For ``bernoulli`` a pixel is on where it is above one half; rows of zeros and ones stay as they are.

    Returns:
        Of the shape of ``x``.
    """
    x = batch["x"]
    return (x > 0.5).to(x.dtype) if kind == "bernoulli" else x


def binarised(data: Dataset, *, seed: int = 0) -> Dataset:
    """Draw every pixel once, on with the probability of its grey value, and keep the result: static binarisation.

    Args:
        data: Images with pixels in ``[0, 1]``.
        seed: Of the draw.

    Returns:
        A data set of zeros and ones.

    Raises:
        DataError: If a value of ``x`` lies outside ``[0, 1]``.

    References:
        Larochelle, Murray (2011), The neural autoregressive distribution estimator; Salakhutdinov, Murray (2008), On
        the quantitative analysis of deep belief networks.
    """
    likelihood_of(data, "bernoulli")
    generator = torch.Generator().manual_seed(seed)

    def drawn(batch: Batch | None) -> dict[str, Tensor] | None:
        if batch is None:
            return None
        x = batch["x"].clamp(0, 1)
        return {**batch, "x": torch.bernoulli(x, generator=generator)}

    train = drawn(data.train)
    assert train is not None
    return replace(
        data,
        name=f"{data.name} (binarised)",
        train=train,
        validation=drawn(data.validation),
        test=drawn(data.test),
        origin="user",
    )


def pseudo_inputs(data: Dataset, num: int, kind: Likelihood) -> Tensor:
    """Return the learned pseudo-inputs of a VampPrior, which begin at random training rows.

    Args:
        data: Training rows.
        num: How many.
        kind: For ``bernoulli`` they stay in ``(0, 1)``.

    Returns:
        The parameter ``pseudo_inputs``, ``(num, features)``.
    """
    x = as_observed(data.train, kind).flatten(1)

    def start() -> Tensor:
        rows = x[torch.randint(len(x), (num,)).to(x.device)].to(torch.get_default_dtype())
        return rows.clamp(_EDGE, 1 - _EDGE) if kind == "bernoulli" else rows

    inside: Any = constraints.unit_interval if kind == "bernoulli" else constraints.real
    found: Tensor = pyro.param("pseudo_inputs", start, constraint=inside)
    return found


def vamp_prior(components: TorchDistribution) -> TorchDistribution:
    r"""Return the even mixture of what an encoder makes of pseudo-inputs :math:`u_k`.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    Args:
        components: The encoder's distributions, of batch shape ``(num,)``.

    Returns:
        A distribution of the components' event shape.

    References:
        Tomczak, Welling (2018), VAE with a VampPrior. https://arxiv.org/abs/1705.07120
    """
    loc = components.base_dist.loc
    return dist.MixtureSameFamily(dist.Categorical(logits=loc.new_zeros(len(loc))), components)
