r"""Laplace approximation of a pair whose guide is Pyro's :class:`~pyro.infer.autoguide.AutoLaplaceApproximation`.

That guide trains a point, the mode :math:`\hat z` of the latents on the unconstrained scale, and draws nothing but that
point. Its ``laplace_approximation`` is meant to follow. Here it does: the posterior draws from

.. math:: q(z) = \mathcal N\bigl(\hat z, H^{-1}\bigr), \qquad
          H = -\nabla^2 \log p(x, z) \big|_{z = \hat z},

whose Cholesky factor is kept as :class:`~pyro.infer.autoguide.AutoMultivariateNormal` keeps its own: ``scale``, its
diagonal, times ``scale_tril``, whose diagonal is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoContinuous, AutoLaplaceApproximation
from pyro.ops.hessian import hessian
from torch import Tensor, nn

from zoo.errors import NonFiniteError, PairError
from zoo.inference.arguments import like, plain
from zoo.inference.objectives import losses_of, to_pyro
from zoo.inference.watch import closed_over
from zoo.types import Batch, Elbo, Finish, Pair

__all__ = ["is_laplace", "with_laplace"]

_MOST = 10_000  # latent numbers, whose Hessian in float64 takes 800 MB


def is_laplace(pair: Pair) -> bool:
    """Tell whether what follows training is the Laplace approximation of this module.

    Args:
        pair: Model and guide.

    Returns:
        Whether it is.
    """
    return pair.finish is not None and isinstance(plain(pair.finish.guide), _Normal)


def with_laplace(pair: Pair) -> Pair:
    """Let the Laplace approximation follow the training of a guide that is made for it.

    Args:
        pair: Model and guide.

    Returns:
        The pair with a ``finish`` for its own model if its guide is an ``AutoLaplaceApproximation`` and no other finish
        is given, else as it is.

    Raises:
        PairError: If such a guide is a part of another one, whose draws would stay at its point.
    """
    if pair.guide is None or (pair.finish is not None and not is_laplace(pair)):
        return pair
    own = plain(pair.guide)
    if isinstance(own, AutoLaplaceApproximation):
        return pair._replace(finish=_finish(pair, own))
    if any(isinstance(module, AutoLaplaceApproximation) for module in closed_over([pair.guide])):
        kind = type(pair.guide).__name__ if isinstance(pair.guide, nn.Module) else "function"
        raise PairError(
            f"the guide, a {kind}, holds an AutoLaplaceApproximation, whose draws are one point until its covariance "
            "is computed; pass that guide by itself, which computes it, or take AutoMultivariateNormal as part"
        )
    return pair


def _finish(pair: Pair, trained: AutoLaplaceApproximation) -> Finish:
    name = str(trained._pyro_name)
    loc, scale, scale_tril = (f"{name}.{part}" for part in ("loc", "scale", "scale_tril"))

    def compute(params: Mapping[str, Tensor], batch: Batch) -> Mapping[str, Tensor]:
        mode = params[loc].clone().requires_grad_()
        batch = {k: v.to(mode) if v.is_floating_point() else v.to(mode.device) for k, v in batch.items()}
        loss = _bound(pair).differentiable_loss(pair.model, like(pair.guide, _Around(trained, mode)), batch)
        return dict(zip((scale, scale_tril), _covariance(hessian(loss, mode)), strict=True))

    def check() -> None:
        size = getattr(trained, "latent_dim", 0)  # once it has run
        if size > _MOST:
            raise PairError(
                f"AutoLaplaceApproximation needs the Hessian of {size:,} latent numbers; it is computed for up to "
                f"{_MOST:,}: take AutoNormal or AutoLowRankMultivariateNormal"
            )

    guide = like(pair.guide, _Normal(trained, loc, scale, scale_tril))
    return Finish(guide=guide, names=(scale, scale_tril), compute=compute, check=check)


def _bound(pair: Pair) -> Any:
    """Return the estimator of the joint density: at a point the evidence lower bound is just that."""
    losses = losses_of(pair.objective)
    own = next((s.function for s in losses if isinstance(s.function, Elbo)), Elbo())
    if own.estimator != "enum":
        own = Elbo()
    return to_pyro(dataclasses.replace(own, num_particles=1, vectorize_particles=False))


def _covariance(precision: Tensor) -> tuple[Tensor, Tensor]:
    """Return the diagonal of the covariance's Cholesky factor, and what that multiplies, row by row."""
    wide = precision.double()
    wide = (wide + wide.mT) / 2
    factor, failed = torch.linalg.cholesky_ex(wide)
    if bool(failed) or not bool(torch.isfinite(factor).all()):
        raise NonFiniteError(
            "there is no Laplace approximation: the Hessian of the negative log density is not positive definite "
            "where the optimiser stopped; take more steps or dtype='float64', or AutoMultivariateNormal as guide"
        )
    covariance = torch.cholesky_inverse(factor)
    deviations = covariance.diagonal().sqrt()  # taken out, as latents of very different sizes lose digits otherwise
    factor = deviations[:, None] * torch.linalg.cholesky(covariance / deviations[:, None] / deviations)
    scale = factor.diagonal()
    return scale.to(precision), (factor / scale[:, None]).to(precision)


class _Around(AutoContinuous):  # type: ignore[misc]
    """The trained guide with its packed latents at a given value."""

    def __init__(self, trained: AutoLaplaceApproximation, mode: Tensor | None = None) -> None:
        super().__init__(trained.model)
        self._model = trained._model  # without a second rule for initial values around it
        self.create_plates = trained.create_plates
        self.mode = mode

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        return dist.Delta(self.mode).to_event(1)


class _Normal(_Around):
    """The Laplace approximation, of parameters that are computed after training."""

    def __init__(self, trained: AutoLaplaceApproximation, loc: str, scale: str, scale_tril: str) -> None:
        super().__init__(trained)
        self.names = (loc, scale, scale_tril)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        at, scale, scale_tril = self.names
        start = self._init_loc()
        size = len(start)
        loc = pyro.param(at, start)
        spread = pyro.param(scale, torch.ones(size), constraint=constraints.positive)
        tril = pyro.param(scale_tril, torch.eye(size), constraint=constraints.unit_lower_cholesky)
        return dist.MultivariateNormal(loc, scale_tril=spread[:, None] * tril)
