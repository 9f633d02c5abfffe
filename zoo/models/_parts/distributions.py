r"""Sparsity-inducing priors and the divergences to them that Pyro's mean-field ELBO looks up.

Importing this module registers, with :func:`torch.distributions.kl.register_kl`,

- :math:`\mathrm{KL}[\mathrm{N} \,\|\, \text{normal-Jeffreys}]`, see :func:`log_uniform_kl`;
- :math:`\mathrm{KL}[\mathrm{LogNormal} \,\|\, \mathrm{Gamma}]` and
  :math:`\mathrm{KL}[\mathrm{LogNormal} \,\|\, \mathrm{InverseGamma}]`, which are exact;
- the divergence of :class:`UnitDropout` from independent normals, up to a constant, see there.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions.kl import register_kl

__all__ = ["NormalJeffreys", "UnitDropout", "log_uniform_kl"]


class NormalJeffreys(TorchDistribution):  # type: ignore[misc]
    r"""The improper prior :math:`p(z) \propto 1 / |z|` on the real line: :math:`\log |z|` is uniform.

    It is what :math:`w \mid z \sim \mathrm{N}(0, z^2)` takes to :math:`p(w) \propto 1 / |w|`, and invariant to the
    scale of :math:`z`. Its log density is finite but not normalised, so it serves inference and not simulation.
    :meth:`sample` draws from its restriction to :math:`e^{-1} \le |z| \le e`, a stand-in that lets the model run
    without a guide (to find its sites, to draw its graph); such runs are no prior predictive.

    Args:
        batch_shape: Shape of independent copies.
        like: A tensor whose dtype and device draws take; the defaults if ``None``.

    References:
        Louizos, Ullrich, Welling (2017), sec. 3.1. https://arxiv.org/abs/1705.08665
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real
    has_rsample = False
    improper = True  # draws of the model on its own are no prior predictive

    def __init__(
        self,
        batch_shape: torch.Size | tuple[int, ...] = (),
        *,
        like: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._like = torch.zeros(()) if like is None else like.new_zeros(())
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> NormalJeffreys:
        """Return independent copies.

        Args:
            batch_shape: New batch shape.
            _instance: Unused; part of the interface.

        Returns:
            The expanded distribution.
        """
        return NormalJeffreys(batch_shape, like=self._like, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Return :math:`-\log |z|`, without a normaliser.

        Args:
            value: Real numbers other than zero, ``(*sample, *batch)``.

        Returns:
            Of the same shape.
        """
        return -value.abs().clamp(min=torch.finfo(value.dtype).tiny).log()

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw from the restriction to one e-fold on either side of 1, with either sign.

        Args:
            sample_shape: Leading shape.

        Returns:
            ``(*sample_shape, *batch_shape)``.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self._like.dtype, device=self._like.device) * 4 - 2
        # The sign of u is the sign of z, and |u|, uniform on (0, 2), shifted by one is the logarithm.
        return torch.where(u < 0, -1.0, 1.0).to(u.dtype) * (u.abs() - 1).exp()


class UnitDropout(TorchDistribution):  # type: ignore[misc]
    r"""Weights of units dropped at random: :math:`W_i = z_i M_i` with :math:`z_i \sim \mathrm{Bernoulli}(1 - p)`.

    Row :math:`i` of the matrix, all weights of unit :math:`i`, is zero with probability :math:`p`, and else
    :math:`M_i`. The distribution has no density. As that of Pyro's ``Delta``, its ``log_prob`` is zero: densities are
    taken with respect to its own two points, and a bound computed with it lacks the entropy of the masks, a constant.
    Its divergence from independent normals :math:`\mathrm{N}(0, s^2)` is, up to that constant,

    .. math:: \sum_{ij} \frac{(1 - p) M_{ij}^2}{2 s^2} + \tfrac12 \log 2 \pi s^2,

    which is registered for :class:`pyro.infer.TraceMeanField_ELBO`.

    Args:
        loc: Weights :math:`M`, ``(*batch, *event)``, a unit for each index of the batch.
        rate: Probability :math:`p` of dropping a unit, in [0, 1), that broadcasts to the batch.
        event_dim: Dimensions of one unit's weights.

    References:
        Gal, Ghahramani (2016), sec. 3 and appendix, sec. 3.1 and 4.1. https://arxiv.org/abs/1506.02142
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(
        self, loc: Tensor, rate: float | Tensor, event_dim: int = 1, *, validate_args: bool | None = None
    ) -> None:
        batch, event = loc.shape[: loc.dim() - event_dim], loc.shape[loc.dim() - event_dim :]
        self.loc = loc
        self.rate = torch.as_tensor(rate, dtype=loc.dtype, device=loc.device).expand(batch)
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Real numbers, of the dimensions of an event."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """Mean of the weights, ``(*batch, *event)``."""
        return (1 - self._per_weight(self.rate)) * self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of the weights, ``(*batch, *event)``."""
        rate = self._per_weight(self.rate)
        return rate * (1 - rate) * self.loc.square()

    def _per_weight(self, unit: Tensor) -> Tensor:
        return unit.reshape(*unit.shape, *(1,) * len(self.event_shape))

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> UnitDropout:
        """Return independent copies.

        Args:
            batch_shape: New batch shape.
            _instance: Unused; part of the interface.

        Returns:
            The expanded distribution.
        """
        shape = torch.Size(batch_shape)
        return UnitDropout(
            self.loc.expand(shape + self.event_shape),
            self.rate.expand(shape),
            len(self.event_shape),
            validate_args=False,
        )

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw weights, differentiable in ``loc``.

        Args:
            sample_shape: Leading shape.

        Returns:
            ``(*sample_shape, *batch, *event)``.
        """
        units = torch.Size(sample_shape) + self.batch_shape
        kept = torch.rand(units, dtype=self.loc.dtype, device=self.loc.device) >= self.rate
        return self._per_weight(kept.to(self.loc.dtype)) * self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zeros; see the class.

        Args:
            value: Weights, ``(*sample, *batch, *event)``.

        Returns:
            ``(*sample, *batch)``.
        """
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])


def log_uniform_kl(log_alpha: Tensor) -> Tensor:
    r"""Return the divergence of :math:`\mathrm{N}(\mu, \alpha \mu^2)` from the log-uniform prior.

    .. math:: k(\alpha) = k_1 - k_1 \sigma(k_2 + k_3 \log\alpha) + \tfrac12 \log(1 + \alpha^{-1})

    The prior is improper, so the divergence is defined up to a constant, chosen such that it vanishes as
    :math:`\alpha \to \infty`: a unit that carries no information costs nothing. The approximation is off by at most
    0.0094 nats.

    Args:
        log_alpha: Log dropout rates :math:`\log (\sigma^2 / \mu^2)`, any shape.

    Returns:
        Of the same shape, positive and decreasing.

    References:
        Molchanov, Ashukha, Vetrov (2017), eq. 14. https://arxiv.org/abs/1701.05369
    """
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    softplus: Tensor = torch.nn.functional.softplus(-log_alpha)
    return k1 * torch.sigmoid(-k2 - k3 * log_alpha) + 0.5 * softplus


def _kl_normal_normal_jeffreys(q: dist.Normal, p: NormalJeffreys) -> Tensor:
    # The smallest number keeps the gradient finite at loc = 0, where the divergence is zero.
    squared: Tensor = q.loc.square() + torch.finfo(q.loc.dtype).tiny
    return log_uniform_kl(2 * q.scale.log() - squared.log())


def _kl_log_normal_gamma(q: dist.LogNormal, p: dist.Gamma) -> Tensor:
    entropy = q.loc + q.scale.log() + 0.5 * (1 + math.log(2 * math.pi))
    expected: Tensor = (
        p.concentration * p.rate.log()
        - torch.lgamma(p.concentration)
        + (p.concentration - 1) * q.loc
        - p.rate * (q.loc + 0.5 * q.scale.square()).exp()
    )
    kl: Tensor = -entropy - expected
    return kl


def _kl_log_normal_inverse_gamma(q: dist.LogNormal, p: dist.InverseGamma) -> Tensor:
    # x -> 1/x turns one pair into the other, and a divergence does not depend on the coordinate.
    reciprocal = dist.LogNormal(-q.loc, q.scale, validate_args=False)
    return _kl_log_normal_gamma(reciprocal, dist.Gamma(p.concentration, p.rate, validate_args=False))


def _kl_unit_dropout_normal(q: UnitDropout, p: Any) -> Tensor:
    base = p
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if not isinstance(base, torch.distributions.Normal):
        raise NotImplementedError
    kept = 1 - q._per_weight(q.rate)
    distance = kept * (q.loc - base.loc).square() + (1 - kept) * base.loc.square()
    cost = distance / (2 * base.scale.square()) + base.scale.log() + 0.5 * math.log(2 * math.pi)
    total: Tensor = cost.reshape(*q.batch_shape, -1).sum(-1)
    return total


register_kl(UnitDropout, torch.distributions.Normal)(_kl_unit_dropout_normal)
register_kl(UnitDropout, torch.distributions.Independent)(_kl_unit_dropout_normal)
register_kl(torch.distributions.Normal, NormalJeffreys)(_kl_normal_normal_jeffreys)
register_kl(torch.distributions.LogNormal, torch.distributions.Gamma)(_kl_log_normal_gamma)
register_kl(torch.distributions.LogNormal, torch.distributions.InverseGamma)(_kl_log_normal_inverse_gamma)
