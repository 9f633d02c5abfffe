r"""Sparsity-inducing priors and the divergences to them that Pyro's mean-field ELBO looks up.

Importing this module registers, with :func:`torch.distributions.kl.register_kl`,

- :math:`\mathrm{KL}[\mathrm{N} \,\|\, \text{normal-Jeffreys}]`, see :func:`log_uniform_kl`;
- :math:`\mathrm{KL}[\mathrm{LogNormal} \,\|\, \mathrm{Gamma}]` and
  :math:`\mathrm{KL}[\mathrm{LogNormal} \,\|\, \mathrm{InverseGamma}]`, which are exact.
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

__all__ = ["NormalJeffreys", "log_uniform_kl"]


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


register_kl(torch.distributions.Normal, NormalJeffreys)(_kl_normal_normal_jeffreys)
register_kl(torch.distributions.LogNormal, torch.distributions.Gamma)(_kl_log_normal_gamma)
register_kl(torch.distributions.LogNormal, torch.distributions.InverseGamma)(_kl_log_normal_inverse_gamma)
