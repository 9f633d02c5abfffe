"""What a Stan program may say of a parameter and no distribution of Pyro does: nothing, or a restricted density."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import transform_to

__all__ = ["Flat", "Within"]

_TRIES = 1_000


class Flat(TorchDistribution):  # type: ignore[misc]
    r"""The improper density :math:`p(x) \propto 1` of independent numbers: what Stan gives a parameter without a prior.

    :meth:`sample` returns the image of a standard normal draw under the map from the real line to the support, a
    stand-in that lets the model run without a guide; such runs are no prior predictive.

    Args:
        support: Constraint of one number.
        batch_shape: Shape of independent copies.

    References:
        Stan Development Team, Stan Reference Manual, section "Program Block: parameters".
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False
    improper = True  # draws of the model on its own are no prior predictive

    def __init__(self, support: Any = constraints.real, batch_shape: torch.Size | tuple[int, ...] = ()) -> None:
        self._support = support
        super().__init__(torch.Size(batch_shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Constraint of one number."""
        return self._support

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> Flat:
        """Return independent copies.

        Args:
            batch_shape: New batch shape.
            _instance: Unused; part of the interface.

        Returns:
            The expanded distribution.
        """
        return Flat(self._support, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zero.

        Args:
            value: ``(*sample, *batch)``.

        Returns:
            Of the same shape.
        """
        return torch.zeros_like(value)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Return stand-ins from the support.

        Args:
            sample_shape: Leading shape.

        Returns:
            ``(*sample_shape, *batch_shape)``.
        """
        drawn: Tensor = transform_to(self._support)(torch.randn(self._extended_shape(torch.Size(sample_shape))))
        return drawn


class Within(TorchDistribution):  # type: ignore[misc]
    r"""A density restricted to a part of its space, :math:`p(x) \propto b(x) \, 1[x \in S]`, without a normaliser.

    That is what a Stan program means by ``vector<lower=0>[2] x; x ~ normal(0, 1);``, since the normaliser is a constant
    there. So it must be here: the parameters of ``base`` may not depend on latents.

    Args:
        base: Density :math:`b` before the restriction.
        support: Constraint :math:`S`, of the event dimension of ``base``.

    References:
        Stan Development Team, Stan Reference Manual, section "Statements: distribution statements".
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, base: Any, support: Any) -> None:
        self._base, self._support = base, support
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The restriction."""
        return self._support

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> Within:
        """Return independent copies.

        Args:
            batch_shape: New batch shape.
            _instance: Unused; part of the interface.

        Returns:
            The expanded distribution.
        """
        return Within(self._base.expand(torch.Size(batch_shape)), self._support)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of ``base``.

        Args:
            value: Within the support, ``(*sample, *batch, *event)``.

        Returns:
            ``(*sample, *batch)``.
        """
        density: Tensor = self._base.log_prob(value)
        return density

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw from ``base`` until the draw lies within the support.

        Args:
            sample_shape: Leading shape.

        Returns:
            ``(*sample_shape, *batch_shape, *event_shape)``.

        Raises:
            ValueError: If a thousand draws lie outside.
        """
        drawn: Tensor = self._base.sample(torch.Size(sample_shape))
        for _ in range(_TRIES):
            inside = self._support.check(drawn)
            if bool(inside.all()):
                return drawn
            inside = inside.reshape(inside.shape + (1,) * len(self.event_shape))
            drawn = torch.where(inside, drawn, self._base.sample(torch.Size(sample_shape)))
        raise ValueError(f"{_TRIES} draws of the base density all lie outside {self._support}")
