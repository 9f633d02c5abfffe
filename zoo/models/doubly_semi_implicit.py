r"""Doubly semi-implicit inference: guides and priors that are mixtures over noise from a network.

A distribution is semi-implicit if it is a mixture of densities with a mixing distribution that can only be drawn from,

.. math::

    q(z) = \int q(z \mid \psi)\, q(\psi)\, d\psi, \qquad p(z) = \int p(z \mid \zeta)\, p(\zeta)\, d\zeta .

Its density is unknown, but with :math:`\psi^0` behind :math:`z` and :math:`K` fresh draws beside it the evidence lower
bound has bounds of its own, which meet as :math:`K` grows:

.. math::

    \mathcal{L}_K &= \mathbb{E} \log p(y \mid z) - \log \tfrac{1}{K + 1} \textstyle\sum_{k=0}^{K} q(z \mid \psi^k)
    + \log \tfrac1K \sum_{k=1}^{K} p(z \mid \zeta^k), \\
    \mathcal{U}_K &= \mathbb{E} \log p(y \mid z) - \log \tfrac1K \textstyle\sum_{k=1}^{K} q(z \mid \psi^k)
    + \log p(z) .

The upper bound is one where the prior has a density. If it is semi-implicit too, any function :math:`g` gives one,
:math:`-\mathrm{KL}(q \,\|\, p) \le -1 - \mathbb{E}_q\, g + \mathbb{E}_p\, e^g`, best at
:math:`g = \log q - \log p` (Fenchel).

:class:`SemiImplicit` is a Pyro distribution whose log density is this estimate, so that Pyro's plain ``Trace_ELBO``
is :math:`\mathcal{L}_K`: ``log_prob`` of its own last draw counts :math:`\psi^0`, that of any other value does not.
The first is also the denominator of exact importance weights, for every :math:`K`. The pair built here is a regression
with :math:`x_{i0} = 1`, whose posterior NUTS knows (:func:`reference`):

.. math::

    \beta_j \sim \mathrm{N}(0, s^2), \qquad
    y_i \sim \mathrm{Bernoulli}(\mathrm{logit}^{-1}(x_i^\top \beta)) \quad \text{or} \quad
    \mathrm{N}(x_i^\top \beta, \sigma^2), \; \log \sigma \sim \mathrm{N}(-1, 1),

with the guide, :math:`L` lower triangular or diagonal,

.. math::

    \psi = m + L f(\epsilon), \quad \epsilon \sim \mathrm{N}(0, I), \qquad
    \beta \mid \psi \sim \mathrm{N}(\psi, L L^\top).

Of images, and of data of the task ``density``, the pair is an autoencoder with a semi-implicit prior,

.. math::

    \zeta = g(\epsilon), \quad \epsilon \sim \mathrm{N}(0, I), \qquad
    z_n \mid \zeta \sim q(z \mid \zeta), \qquad x_n \sim p(x \mid z_n), \qquad
    q(z \mid x) = \mathrm{N}(\mu(x), \mathrm{diag}\, \sigma(x)^2),

a VampPrior whose pseudo-inputs come from a network, and are as many as one draws.

=================  ===========  ============  =============================================================
symbol             site         plate         meaning
=================  ===========  ============  =============================================================
:math:`\beta`      ``beta``                   intercept and coefficients of the features, in this order
:math:`\sigma`     ``sigma``                  noise, only with a number as target
:math:`y_i`        ``y``        ``datum``     target, observed
:math:`\psi`                                  mean of the conditional; drawn inside the guide's distribution
:math:`z_n`        ``z``        ``datum``     latents of a row, of the autoencoder
:math:`x_n`        ``x``        ``datum``     row, observed, of the autoencoder
:math:`\zeta`                                 pseudo-input; drawn inside the prior's distribution
=================  ===========  ============  =============================================================

Deviations.

- The mean :math:`\psi` is written in units of :math:`L`, so that the network starts at the scale of the conditional;
  the family is that of Yin and Zhou (2018), whose network gives :math:`\psi` itself.
- All draws of a step share the :math:`K` fresh :math:`\psi`, as in the code of Yin and Zhou, and all rows of a batch
  the :math:`\zeta`.
- The encoder's normals are explicit: the autoencoder is semi-implicit in its prior, the regression in its guide.
- The autoencoder has one layer of latents; the published likelihoods are those of a hierarchical one.

.. code-block:: bibtex

    @inproceedings{molchanov2019doubly,
      title     = {Doubly Semi-Implicit Variational Inference},
      author    = {Molchanov, Dmitry and Kharitonov, Valery and Sobolev, Artem and Vetrov, Dmitry},
      booktitle = {International Conference on Artificial Intelligence and Statistics},
      pages     = {2593--2602},
      year      = {2019},
      note      = {arXiv:1810.02789}
    }

    @inproceedings{yin2018semi,
      title     = {Semi-Implicit Variational Inference},
      author    = {Yin, Mingzhang and Zhou, Mingyuan},
      booktitle = {International Conference on Machine Learning},
      pages     = {5660--5669},
      year      = {2018}
    }
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from scipy import stats
from torch import Tensor, nn

import zoo
from zoo.errors import DataError, PairError
from zoo.inference.marginal import marginal_log_likelihood
from zoo.inference.program import seeded, stream
from zoo.models._parts.autoencoders import (
    Likelihood,
    as_observed,
    binarised,
    decoded,
    encoded,
    likelihood_of,
)
from zoo.types import Acceptance, Batch, Claim, Column, Dataset, Elbo, Figure, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = [
    "METHOD",
    "Hyper",
    "SemiImplicit",
    "build",
    "elbo_bounds",
    "fenchel_bound",
    "figures",
    "log_likelihood",
    "lower_bound",
    "reference",
    "sites",
    "summary",
    "upper_bound",
]

_NOISE = (-1.0, 1.0)  # mean and standard deviation of log sigma
_START_SCALE = 1.0  # of the conditional, in standardised units
_MOST_COEFFICIENTS, _MOST_ROWS = 100, 10_000  # of a figure that needs NUTS
_LEAST_SCALE = 1e-4  # of a latent given zeta, as of the encoder
_EDGE = 0.02  # pseudo-inputs begin at most so close to 0 or 1
_STEPS = 3_000  # of an autoencoder's fit
_SMOOTHED = 2_000  # draws of its contours


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters; where it says so, of the regression or of the autoencoder alone.

    Args:
        prior_scale: (regression) Prior standard deviation ``s`` of intercept and coefficients.
        conditional: (regression) Covariance of the conditional, ``full`` or ``diagonal``; with a diagonal one all
            dependence between coefficients comes from the mixing.
        num_noise: Dimensions of the noise behind ``psi``, or ``zeta``.
        mixing: Hidden units of each layer from the noise to ``psi`` or ``zeta``. ``()`` in a regression: no network,
            ``psi`` is the mean ``m``, and the guide is normal.
        num_components: (regression) Fresh draws ``K`` of ``psi`` for every estimate of the guide's density.
        num_particles: (regression) Draws of the guide per step.
        num_latent: (autoencoder) Latents of a row.
        autoencoder: (autoencoder) Hidden units of each layer of the encoder; the decoder has them in opposite order.
        prior: (autoencoder) What ``zeta`` is: ``pseudo_input``, a network's output that the encoder takes for a row;
            ``latent``, a network's output that is location and scale; or ``rows``, a training row, which makes the
            prior the average of the encoder's normals over the data.
        likelihood: (autoencoder) ``bernoulli``, ``normal``, or ``auto``: Bernoulli for pixels in ``[0, 1]``.
        num_prior_components: (autoencoder) Draws ``K`` of ``zeta`` for every estimate of the prior's density.
    """

    prior_scale: float = 2.5
    conditional: Literal["full", "diagonal"] = "full"
    num_noise: int = 20
    mixing: tuple[int, ...] = (64, 64)
    num_components: int = 200
    num_particles: int = 10
    num_latent: int = 20
    autoencoder: tuple[int, ...] = (300, 300)
    likelihood: Literal["auto", "bernoulli", "normal"] = "auto"
    prior: Literal["pseudo_input", "latent", "rows"] = "pseudo_input"
    num_prior_components: int = 200


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair: an autoencoder of images and of data of the task ``density``, else a regression.

    Args:
        data: For the autoencoder, batches with rows ``x``, ``(rows, ...)``, and ``index``. For the regression, with
            standardised ``x``, ``(rows, features)``, two classes or standardised numbers ``y``, ``(rows,)``, and
            ``index``.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch.

    Raises:
        DataError: If the features of a regression are no table, there are more than two classes, pixels lie outside
            ``[0, 1]``, or a hyper-parameter is out of range.
    """
    _check(hyper)
    return _autoencoder(data, hyper) if _is_density(data) else _regression(data, hyper)


def _is_density(data: Dataset) -> bool:
    return data.task == "density" or "image_shape" in data.extra


def _regression(data: Dataset, hyper: Hyper) -> Pair:
    shape = tuple(data.train["x"].shape)
    if len(shape) != 2:
        raise DataError(f"data set '{data.name}' has x of shape {shape}; expected a table (rows, features)")
    classes = int(data.extra.get("num_classes", 0))
    if classes > 2:
        raise DataError(
            f"target of '{data.name}' has {classes} classes; doubly_semi_implicit takes two, or a number "
            "(--task regression), or no target at all (--task density)"
        )
    num_data, num_coefficients = shape[0], shape[1] + 1

    def model(batch: Batch) -> None:
        x = batch["x"]
        prior = dist.Normal(x.new_zeros(num_coefficients), hyper.prior_scale).to_event(1)
        beta = pyro.sample("beta", prior)
        sigma = None if classes else pyro.sample("sigma", dist.LogNormal(*_NOISE))
        # Not a matrix product: plates of draws in front of beta stand before that of the rows.
        score = beta[..., 0] + (x * beta[..., 1:]).sum(-1)
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            target = dist.Bernoulli(logits=score) if classes else dist.Normal(score, sigma)
            y = batch.get("y")
            pyro.sample("y", target, obs=y if y is None else y.to(x.dtype))

    def guide(batch: Batch) -> None:
        pyro.sample("beta", _guide(num_coefficients, hyper))
        if not classes:
            loc = pyro.param("sigma_loc", lambda: torch.tensor(_NOISE[0]))
            scale = pyro.param("sigma_scale", lambda: torch.tensor(0.1), constraint=constraints.positive)
            pyro.sample("sigma", dist.LogNormal(loc, scale))

    many = hyper.num_particles > 1
    return Pair(model, guide, Elbo(num_particles=hyper.num_particles, vectorize_particles=many, max_plate_nesting=1))


def _autoencoder(data: Dataset, hyper: Hyper) -> Pair:
    kind, num_data = likelihood_of(data, hyper.likelihood), data.num_data
    rows = as_observed(data.train, kind).flatten(1)

    def model(batch: Batch) -> None:
        x = as_observed(batch, kind)
        prior = _prior(rows.to(x), kind, hyper)
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            z = pyro.sample("z", prior)
            row = decoded("decoder", z, x, kind, hidden=hyper.autoencoder[::-1])
            pyro.sample("x", row, obs=x)

    def guide(batch: Batch) -> None:
        x = as_observed(batch, kind).flatten(1)
        code = encoded("encoder", x, hyper.num_latent, hidden=hyper.autoencoder)
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            pyro.sample("z", code, infer={"amortised": True})

    return Pair(model, guide)


def _check(hyper: Hyper) -> None:
    if not hyper.prior_scale > 0:
        raise DataError(f"prior_scale is {hyper.prior_scale:g}; it must be positive")
    for name in ("num_noise", "num_components", "num_particles", "num_latent", "num_prior_components"):
        if getattr(hyper, name) < 1:
            raise DataError(f"{name} is {getattr(hyper, name)}; it must be 1 or more")
    for name in ("mixing", "autoencoder"):
        if any(size < 1 for size in getattr(hyper, name)):
            raise DataError(f"{name} is {getattr(hyper, name)}; every layer needs at least one unit")


def _guide(size: int, hyper: Hyper) -> SemiImplicit:
    """Return the guide's distribution of the coefficients."""
    loc = pyro.param("beta_loc", lambda: torch.zeros(size))
    if hyper.conditional == "full":
        start, support = _START_SCALE * torch.eye(size), constraints.lower_cholesky
        tril = pyro.param("beta_scale", lambda: start, constraint=support)
    else:
        scale = pyro.param("beta_scale", lambda: torch.full((size,), _START_SCALE), constraint=constraints.positive)
        tril = scale.diag()
    layers = _network("mixing", (hyper.num_noise, *hyper.mixing, size)) if hyper.mixing else []

    def mixing(shape: torch.Size) -> Tensor:
        if not layers:
            return torch.zeros(shape + loc.shape, dtype=loc.dtype, device=loc.device)
        h = torch.randn((*shape, hyper.num_noise), dtype=loc.dtype, device=loc.device)
        return _forward(h, layers)

    def conditional(psi: Tensor) -> TorchDistribution:
        mean = loc + psi @ tril.mT
        if hyper.conditional == "full":
            return dist.MultivariateNormal(mean, scale_tril=tril, validate_args=False)
        return dist.Normal(mean, tril.diagonal(), validate_args=False).to_event(1)

    return SemiImplicit(conditional, mixing, event_shape=(size,), num_components=hyper.num_components)


def _prior(rows: Tensor, kind: Likelihood, hyper: Hyper) -> SemiImplicit:
    """Return the prior of a row's latents; ``rows``, ``(rows, features)``, are those of training as observed."""
    # Layers are looked up here, not inside: densities are asked for after the program has run.
    codes, features = 2 * hyper.num_latent, rows.shape[1]
    latent = hyper.prior == "latent"
    encoder = [] if latent else _network("encoder", (features, *hyper.autoencoder, codes))
    layers = []
    if hyper.prior != "rows":
        mean = rows.mean(0)
        centre = mean.clamp(_EDGE, 1 - _EDGE).logit() if kind == "bernoulli" else mean
        sizes = (hyper.num_noise, *hyper.mixing, codes if latent else features)
        layers = _network("prior", sizes, None if latent else centre)

    def mixing(shape: torch.Size) -> Tensor:
        if hyper.prior == "rows":
            return _forward(rows[torch.randint(len(rows), shape, device=rows.device)], encoder)
        noise = torch.randn((*shape, hyper.num_noise), dtype=rows.dtype, device=rows.device)
        zeta = _forward(noise, layers)
        return zeta if latent else _forward(zeta.sigmoid() if kind == "bernoulli" else zeta, encoder)

    def conditional(zeta: Tensor) -> _Normals:
        loc, raw = zeta.split(hyper.num_latent, -1)
        return _Normals(loc, nn.functional.softplus(raw) + _LEAST_SCALE)

    return SemiImplicit(conditional, mixing, event_shape=(hyper.num_latent,), num_components=hyper.num_prior_components)


def _network(name: str, sizes: tuple[int, ...], centre: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """Return weights, ``(inputs, outputs)``, and biases of every layer; the outputs begin around ``centre``."""
    found = []
    for l, (a, b) in enumerate(itertools.pairwise(sizes)):
        last = None if l + 2 < len(sizes) else centre
        weight = pyro.param(f"{name}_{l}_weight", lambda a=a, b=b: math.sqrt(2 / a) * torch.randn(a, b))
        bias = pyro.param(
            f"{name}_{l}_bias", lambda b=b, last=last: torch.zeros(b) if last is None else last.detach().clone()
        )
        found.append((weight, bias))
    return found


def _forward(h: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the outputs of a network, ``(*shape, outputs)``."""
    for l, (weight, bias) in enumerate(layers):
        h = h @ weight + bias
        h = h.relu() if l + 1 < len(layers) else h
    return h


class SemiImplicit(TorchDistribution):  # type: ignore[misc]
    r"""A mixture of densities over a mixing distribution that can only be drawn from.

    Draws are exact and reparameterised. The log density is an estimate with :math:`K` fresh components; that of the
    distribution's own last draw counts the component behind it too, which turns the estimate from one that is too small
    in expectation into one that is too large: either errs on the side that keeps an evidence lower bound one, as guide
    and as prior.

    Args:
        conditional: ``(*shape, mixing)`` -> the distribution of a value given each, of batch shape ``(*shape,)``.
        mixing: Shape -> that many draws of the mixing variable, ``(*shape, mixing)``, differentiable where gradients
            are wanted.
        event_shape: Of one value.
        num_components: Fresh components :math:`K` of an estimate.
        shared: Whether all values of one call of ``log_prob`` share the fresh components, or have their own.
        batch_shape: Shape of independent copies.

    References:
        Molchanov, Kharitonov, Sobolev, Vetrov (2019), sec. 3. https://arxiv.org/abs/1810.02789
        Yin, Zhou (2018), sec. 2 and 3. https://arxiv.org/abs/1805.11183
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(
        self,
        conditional: Callable[[Tensor], TorchDistribution],
        mixing: Callable[[torch.Size], Tensor],
        *,
        event_shape: torch.Size | tuple[int, ...],
        num_components: int = 100,
        shared: bool = True,
        batch_shape: torch.Size | tuple[int, ...] = (),
    ) -> None:
        self.conditional, self.mixing = conditional, mixing
        self.num_components, self.shared = num_components, shared
        self._last: tuple[Tensor, TorchDistribution] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Real numbers, of the dimensions of an event."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> SemiImplicit:
        """Return independent copies.

        Args:
            batch_shape: New batch shape.
            _instance: Unused; part of the interface.

        Returns:
            The expanded distribution, without a last draw.
        """
        return SemiImplicit(
            self.conditional,
            self.mixing,
            event_shape=self.event_shape,
            num_components=self.num_components,
            shared=self.shared,
            batch_shape=batch_shape,
        )

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw: the mixing variable, then a value.

        Args:
            sample_shape: Leading shape.

        Returns:
            ``(*sample_shape, *batch, *event)``.
        """
        given = self.conditional(self.mixing(torch.Size(sample_shape) + self.batch_shape))
        value: Tensor = given.rsample()
        self._last = value, given
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Return the estimate of the log density.

        Args:
            value: ``(*sample, *batch, *event)``.

        Returns:
            ``(*sample, *batch)``. If ``value`` is the very tensor that :meth:`rsample` returned last, the log of the
            mean over :math:`K + 1` components, the one behind it among them; else :meth:`fresh_log_prob`.
        """
        if self._last is None or value is not self._last[0]:
            return self.fresh_log_prob(value)
        own = self._last[1].log_prob(value)[..., None]
        return _log_mean(torch.cat([own, self._components(value)], -1))

    def fresh_log_prob(self, value: Tensor) -> Tensor:
        r"""Return the log of the mean density over :math:`K` components that are independent of the value.

        Args:
            value: ``(*sample, *batch, *event)``.

        Returns:
            ``(*sample, *batch)``.
        """
        return _log_mean(self._components(value))

    def _components(self, value: Tensor) -> Tensor:
        """Return the log densities under fresh components, ``(*sample, *batch, components)``."""
        shape = value.shape[: value.dim() - len(self.event_shape)]
        psi = self.mixing(torch.Size((*(() if self.shared else shape), self.num_components)))
        return self.conditional(psi).log_prob(value.unsqueeze(len(shape)))  # type: ignore[no-any-return]


def _log_mean(log_values: Tensor) -> Tensor:
    return log_values.logsumexp(-1) - math.log(log_values.shape[-1])


class _Normals(TorchDistribution):  # type: ignore[misc]
    """Vectors of independent normals; densities of many values under many of them cost two matrix products.

    Args:
        loc: Means, ``(*batch, size)``.
        scale: Standard deviations, likewise.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.loc.shape
        return self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def log_prob(self, value: Tensor) -> Tensor:
        constant = self.scale.log().sum(-1) + 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)
        if self.loc.dim() != 2 or value.dim() < 2 or value.shape[-2] != 1:
            return -0.5 * ((value - self.loc) / self.scale).square().sum(-1) - constant
        precision, value = self.scale.pow(-2), value.squeeze(-2)
        moved = self.loc * precision
        square = value.square() @ precision.mT - 2 * value @ moved.mT + (self.loc * moved).sum(-1)
        return -0.5 * square - constant


def lower_bound(q: SemiImplicit, p: TorchDistribution, num_draws: int = 1_000) -> Tensor:
    r"""Draw from the lower bound of :math:`-\mathrm{KL}(q \,\|\, p)`; it holds in expectation.

    Args:
        q: A semi-implicit distribution; ``shared=False`` makes the draws independent.
        p: A semi-implicit one too, or one with a density.
        num_draws: Number of draws.

    Returns:
        ``(num_draws, *batch)``, whose mean estimates the bound.
    """
    z = q.rsample((num_draws,))
    return p.log_prob(z) - q.log_prob(z)  # type: ignore[no-any-return]


def upper_bound(q: SemiImplicit, p: TorchDistribution, num_draws: int = 1_000) -> Tensor:
    r"""Draw from the upper bound of :math:`-\mathrm{KL}(q \,\|\, p)`; it holds in expectation.

    Args:
        q: A semi-implicit distribution; ``shared=False`` makes the draws independent.
        p: A distribution with a density. With an estimate in its place the result bounds neither way.
        num_draws: Number of draws.

    Returns:
        ``(num_draws, *batch)``, whose mean estimates the bound.

    Raises:
        TypeError: If ``p`` is semi-implicit.
    """
    if isinstance(p, SemiImplicit):
        raise TypeError("the prior is semi-implicit, so that this would bound neither way; use fenchel_bound")
    z = q.rsample((num_draws,))
    return p.log_prob(z) - q.fresh_log_prob(z)  # type: ignore[no-any-return]


def fenchel_bound(q: SemiImplicit, p: SemiImplicit, num_draws: int = 1_000) -> Tensor:
    r"""Draw from Fenchel's upper bound of :math:`-\mathrm{KL}(q \,\|\, p)`; it holds in expectation.

    .. math:: -1 - \mathbb{E}_q\, g + \mathbb{E}_p\, e^g, \qquad g = \log q_K - \log p_K,

    with components of :math:`q_K` and :math:`p_K` that are independent of the value. The second term has a heavy tail
    for few components, and may be infinite for a single one.

    Args:
        q: A semi-implicit distribution; ``shared=False`` makes the draws independent.
        p: Another, likewise.
        num_draws: Number of draws.

    Returns:
        ``(num_draws, *batch)``, whose mean estimates the bound.
    """

    def g(z: Tensor) -> Tensor:
        return q.fresh_log_prob(z) - p.fresh_log_prob(z)

    return g(p.rsample((num_draws,))).exp() - 1 - g(q.rsample((num_draws,)))


# ---------------------------------------------------------------------------------------- quantities of interest
def elbo_bounds(posterior: Posterior, num_draws: int = 1_000, *, seed: int = 0) -> tuple[float, float]:
    """Return the bounds between which the evidence lower bound of a regression's guide lies.

    Args:
        posterior: A fit of this method to a table with a target.
        num_draws: Draws of the guide.
        seed: Of the draws.

    Returns:
        Lower and upper bound in nats, on the training rows; their distance is the price of few components.

    Raises:
        PairError: If the posterior is that of an autoencoder, or was sampled by NUTS.
    """
    pair, batch = posterior.pair, posterior._prepare(None)
    if pair.guide is None or _is_density(posterior.data):
        raise PairError("these bounds are those of a regression fitted by its semi-implicit guide")

    def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
        drawn = poutine.trace(pair.guide).get_trace(batch)
        trace = poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(batch)
        q, value = drawn.nodes["beta"]["fn"], drawn.nodes["beta"]["value"]
        lower = trace.log_prob_sum() - drawn.log_prob_sum()
        return {"lower": lower, "upper": lower + (q.log_prob(value) - q.fresh_log_prob(value)).sum()}

    found = posterior.runs.map(one, num_draws, seed=seed)
    return float(found["lower"].double().mean()), float(found["upper"].double().mean())


def log_likelihood(
    posterior: Posterior,
    batch: Batch | None = None,
    *,
    num_samples: int = 1_000,
    num_components: int = 1_000,
    seed: int = 0,
) -> Tensor:
    """Return the importance-weighted bound on the log likelihood of every row, with more components than in training.

    The estimate of the prior's density, with draws of its own for every draw of the guide, keeps the result a lower
    bound in expectation, which is the tighter the more there are.

    Args:
        posterior: A fit of this method to images or to data of the task ``density``.
        batch: Rows; those of training if ``None``.
        num_samples: Draws of the guide for each row.
        num_components: Components of the prior.
        seed: Of all draws.

    Returns:
        Nats, ``(rows,)``.
    """
    hyper = dataclasses.replace(posterior.hyper, num_prior_components=num_components)
    finer = copy.copy(posterior)
    finer.pair = build(posterior.data, hyper)
    finer._runs = dataclasses.replace(posterior.runs, pair=finer.pair)
    return marginal_log_likelihood(finer, batch, num_samples=num_samples, seed=seed)


def reference(posterior: Posterior, *, tune: int = 1_000, draws: int = 1_000, seed: int = 0) -> Posterior:
    """Sample the same model with NUTS.

    Args:
        posterior: A fit of this method.
        tune: Tuning draws of each of four chains.
        draws: Draws of each after that.
        seed: Of the sampler.

    Returns:
        The posterior.
    """
    return zoo.fit(Pair(posterior.pair.model), posterior.data, engine="nuts", tune=tune, draws=draws, seed=seed)


def summary(posterior: Posterior) -> dict[str, float | str]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        Of a regression the bounds of the evidence lower bound; the largest correlation of two coefficients and the
        largest skewness of one, which say how far the posterior is from independent and from normal. Of an autoencoder
        the largest correlation and the largest excess kurtosis of the prior's latents, both 0 for a standard normal
        prior.
    """
    if _is_density(posterior.data):
        z = _prior_draws(posterior, 4_000)
        kurtosis = ((z - z.mean(0)) / z.std(0)).pow(4).mean(0) - 3
        correlation = torch.corrcoef(z.mT).reshape(z.shape[1], -1).fill_diagonal_(0.0)
        return {
            "largest correlation in the prior": float(correlation.abs().max()),
            "largest excess kurtosis in the prior": float(kurtosis.max()),
        }
    lower, upper = elbo_bounds(posterior)
    beta = posterior.draws(4_000)["beta"].double().cpu()
    return {
        "ELBO, lower bound": lower,
        "ELBO, upper bound": upper,
        "largest correlation": float(torch.corrcoef(beta.mT).fill_diagonal_(0.0).abs().max()),
        "largest skewness": float(_skewness(beta).abs().max()),
    }


def _prior_draws(posterior: Posterior, num: int) -> Tensor:
    """Return draws of an autoencoder's prior, ``(num, latents)``, float64."""
    kind = likelihood_of(posterior.data, posterior.hyper.likelihood)
    rows = as_observed(posterior._prepare(None), kind).flatten(1)
    with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)):
        z: Tensor = _prior(rows, kind, posterior.hyper).rsample((num,))
    return z.double().cpu()


def _skewness(draws: Tensor) -> Tensor:
    return ((draws - draws.mean(0)) / draws.std(0)).pow(3).mean(0)


def figures(posterior: Posterior) -> list[Figure]:
    """Return the figure of a fit: pairs of coefficients over those of NUTS, or of latents over those of the rows.

    Args:
        posterior: A fit of this method.

    Returns:
        Descriptions, for the report; of a regression none beyond 100 coefficients or 10,000 rows, where NUTS takes
        long, and of an autoencoder none with a single latent.
    """
    if _is_density(posterior.data):
        codes = next(iter(posterior.draws(1).values()))[0].double().cpu()
        order = codes.var(0).argsort(descending=True).tolist()
        pairs = list(itertools.pairwise(order[:4]))
        caption = (
            "Latents of the training rows (filled), as the encoder draws them, and of the prior (lines): the four "
            "latents that vary most between rows. Where the lines leave the filled region, the prior makes rows unlike "
            "any of the data."
        )
        if not pairs:
            return []
        names = [f"z[{j}]" for j in range(codes.shape[1])]
        some = codes[:: max(1, len(codes) // _SMOOTHED)]
        prior = _prior_draws(posterior, _SMOOTHED)
        return [_over(some, prior, pairs, names, ("training rows", "semi-implicit prior"), caption)]
    rows, features = posterior.data.train["x"].shape
    if features >= _MOST_COEFFICIENTS or rows > _MOST_ROWS:
        return []
    exact = reference(posterior).draws(_SMOOTHED)["beta"].double().cpu()
    found = posterior.draws(_SMOOTHED)["beta"].double().cpu()
    names = ["intercept", *(c.name for c in posterior.data.columns)]
    names = names if len(names) > features else ["intercept", *(f"x{j}" for j in range(features))]
    caption = (
        "The most dependent pairs of coefficients by NUTS (filled) and by the semi-implicit guide (lines). Where the "
        "lines follow the filled regions, intervals and probabilities can be read from the guide."
    )
    return [_over(exact, found, _dependent(exact, 3), names, ("NUTS", "semi-implicit guide"), caption)]


def _over(
    filled: Tensor,
    lines: Tensor,
    pairs: list[tuple[int, int]],
    names: list[str],
    labels: tuple[str, str],
    caption: str,
) -> Figure:
    """Describe contours of draws over those of others, for pairs of their entries."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from zoo.reports.figures import BLUE, FILL, MUTED

    def paint(axes: Any) -> None:
        for axis, (i, j) in zip(axes[0], pairs, strict=False):
            both = torch.cat([filled, lines])[:, [i, j]]
            low, high = (torch.quantile(both, q, dim=0) for q in (0.001, 0.999))
            grid = [torch.linspace(float(a), float(b), 60).numpy() for a, b in zip(low, high, strict=True)]
            levels, density = _contours(filled[:, [i, j]], grid)
            axis.contourf(*grid, density, levels=[levels[0], density.max() * 1.001], colors=[FILL])
            axis.contourf(*grid, density, levels=[levels[1], density.max() * 1.001], colors=[MUTED], alpha=0.5)
            levels, density = _contours(lines[:, [i, j]], grid)
            axis.contour(*grid, density, levels=levels, colors=BLUE, linewidths=1.4)
            axis.set(xlabel=names[i], ylabel=names[j])
        handles = [Patch(color=FILL, label=labels[0]), Line2D([], [], color=BLUE, label=labels[1])]
        axes[0, 0].legend(handles=handles, frameon=False, fontsize=8, loc="best")

    return Figure(
        name="contours",
        paint=paint,
        columns=len(pairs),
        wide=True,
        height=3.2,
        alt=f"{len(pairs)} pairs: contours of {labels[1]} over those of {labels[0]}.",
        caption=f"{caption} Regions of 50% and 90%, smoothed over some {_SMOOTHED:,} draws.",
    )


def _dependent(draws: Tensor, num: int) -> list[tuple[int, int]]:
    """Return the pairs of the largest correlations, no coefficient in two of them while others are left."""
    table = torch.corrcoef(draws.mT).abs()
    i, j = torch.triu_indices(len(table), len(table), 1)
    ranked = [(int(i[k]), int(j[k])) for k in table[i, j].argsort(descending=True)]
    chosen: list[tuple[int, int]] = []
    for pair in ranked:
        if not {*pair} & {n for other in chosen for n in other}:
            chosen.append(pair)
    return (chosen + [pair for pair in ranked if pair not in chosen])[:num]


def _contours(draws: Tensor, grid: list[Any]) -> tuple[list[float], Any]:
    """Return the densities that 90% and 50% of the draws lie above, and the density on a grid, ``(y, x)``."""
    kernel = stats.gaussian_kde(draws.mT.numpy())
    x, y = np.meshgrid(*grid)
    at = np.quantile(kernel(draws[::4].mT.numpy()), [0.1, 0.5])
    return [float(v) for v in at], kernel(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)


# -------------------------------------------------------------------------------------------------------- claims
def _normals(num_components: int) -> tuple[SemiImplicit, SemiImplicit, float]:
    """Return two normals written as semi-implicit ones, N(1, 1.25) and N(0, 2) by variance, and minus their divergence.

    Each draw has components of its own.
    """

    def one(mean: float, mixing_scale: float, scale: float) -> SemiImplicit:
        return SemiImplicit(
            lambda psi: dist.Normal(psi[..., 0], scale, validate_args=False),
            lambda shape: mean + mixing_scale * torch.randn((*shape, 1), dtype=torch.float64),
            event_shape=(),
            num_components=num_components,
            shared=False,
        )

    exact = -0.5 * (1.25 / 2 + 1 / 2 - 1 + math.log(2 / 1.25))
    return one(1.0, 1.0, 0.5), one(0.0, 1.0, 1.0), exact


def _measure_bounds(seed: int, fast: bool) -> dict[str, float]:
    """Estimate all bounds of the divergence of two normals that is known.

    Returns:
        Lower bound, upper bound (with the exact density of the second) and Fenchel's, for 1, 10 and 100 components.
    """
    num_draws = 5_000 if fast else 50_000
    prior = dist.Normal(torch.zeros((), dtype=torch.float64), 2**0.5)
    found: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for k in (1, 10, 100):
            q, p, exact = _normals(k)
            found["exact"] = exact
            found[f"lower, K = {k}"] = float(lower_bound(q, p, num_draws).mean())
            found[f"upper, K = {k}"] = float(upper_bound(q, prior, num_draws).mean())
            if k > 1:
                found[f"Fenchel, K = {k}"] = float(fenchel_bound(q, p, num_draws).mean())
    return found


def _few_rows(seed: int) -> Dataset:
    """Return 53 rows and five features of the breast cancer data, as many as the paper's smallest table has."""
    whole = zoo.datasets.load("breast_cancer", test=0.4, seed=seed)
    names = ("mean radius", "mean texture", "mean smoothness", "mean concave points", "mean symmetry")
    chosen = [[column.name for column in whole.columns].index(name) for name in names]
    x = whole.train["x"][:53, chosen]
    train = {"x": (x - x.mean(0)) / x.std(0), "y": whole.train["y"][:53], "index": torch.arange(53)}
    return dataclasses.replace(
        whole,
        name="breast_cancer, 53 rows",
        train=train,
        validation=None,
        test=None,
        columns=tuple(Column(name=name) for name in names),
        coords={},
        origin="user",
    )


def _measure_regression(seed: int, fast: bool) -> dict[str, float]:
    """Compare the guide, a normal one and a mean-field one with NUTS on a logistic regression with few rows.

    Returns:
        For each, the mean absolute error of log standard deviations, of correlations and of skewness, and the mean
        distance (Wasserstein) of a marginal in standard deviations of NUTS.
    """
    data, found = _few_rows(seed), dict[str, float]()
    guides: dict[str, Hyper] = {
        "semi-implicit": Hyper(),
        "normal": Hyper(mixing=(), num_components=1),
        "mean field": Hyper(mixing=(), num_components=1, conditional="diagonal"),
    }
    exact = None
    for name, hyper in guides.items():
        options: dict[str, Any] = {"steps": 100} if fast else {}
        posterior = zoo.fit(METHOD, data, hyper=hyper, seed=seed, compile=not fast, **options)
        if exact is None:
            size = 250 if fast else 2_000
            exact = reference(posterior, tune=size, draws=size, seed=seed).draws(4 * size)["beta"].double()
        beta = posterior.draws(1_000 if fast else 8_000, seed=seed)["beta"].double()
        found |= {f"{key}, {name}": value for key, value in _distance(beta, exact).items()}
    return found


def _measure_autoencoder(seed: int, fast: bool) -> dict[str, float]:
    """Fit binarised MNIST with a standard normal prior, a VampPrior and a semi-implicit one, all else equal.

    The learning rate of each is that of the largest likelihood on validation rows.

    Returns:
        Importance-weighted log likelihood from 1,000 draws, in nats per test row, of each; of the semi-implicit prior
        with 1,000 components.
    """
    from zoo.models import vae

    data = binarised(zoo.datasets.load("mnist"))
    rows = 20 if fast else 500
    test = {name: value[:rows] for name, value in data.split("test").items()}
    options: dict[str, Any] = {"steps": 20 if fast else _STEPS, "batch_size": 128, "compile": not fast, "seed": seed}
    samples = 20 if fast else 1_000
    found: dict[str, float] = {}
    for name, prior in (("normal", "normal"), ("VampPrior", "vamp")):
        posterior = zoo.fit(vae.METHOD, data, hyper={"prior": prior}, learning_rate=1e-3, **options)
        found[f"log likelihood, {name}"] = float(marginal_log_likelihood(posterior, test, num_samples=samples).mean())
    posterior = zoo.fit(METHOD, data, learning_rate=1e-3, **options)
    found["log likelihood, semi-implicit"] = float(log_likelihood(posterior, test, num_samples=samples).mean())
    return found


def _distance(draws: Tensor, exact: Tensor) -> dict[str, float]:
    scale = exact.std(0)
    apart = [
        stats.wasserstein_distance(draws[:, j].numpy(), exact[:, j].numpy()) / float(scale[j])
        for j in range(exact.shape[1])
    ]
    i, j = torch.triu_indices(exact.shape[1], exact.shape[1], 1)
    correlation = (torch.corrcoef(draws.mT) - torch.corrcoef(exact.mT))[i, j]
    return {
        "sd error": float((draws.std(0) / scale).log().abs().mean()),
        "correlation error": float(correlation.abs().mean()),
        "skewness error": float((_skewness(draws) - _skewness(exact)).abs().mean()),
        "distance": float(np.mean(apart)),
    }


CLAIMS = (
    Claim(
        statement="On two normals the bounds enclose the exact divergence and close in on it as K grows.",
        published="a sandwich on the evidence lower bound that can be made arbitrarily tight (no number for this case)",
        source="Molchanov et al. (2019), sec. 3",
        measure=_measure_bounds,
        acceptance=(
            Acceptance(key="lower, K = 10", above="lower, K = 1"),
            Acceptance(key="lower, K = 100", above="lower, K = 10"),
            Acceptance(key="lower, K = 100", below="exact"),
            Acceptance(key="upper, K = 10", below="upper, K = 1"),
            Acceptance(key="upper, K = 100", below="upper, K = 10"),
            Acceptance(key="upper, K = 100", above="exact"),
            Acceptance(key="Fenchel, K = 100", above="exact", errors=1.0),
        ),
        budget=10,
        seeds=5,
    ),
    Claim(
        statement="On a logistic regression with few rows the semi-implicit guide is closer to NUTS than a mean-field "
        "guide (standard deviations, correlations) and than a normal one (marginals, skewness).",
        published="standard deviations and correlations agree with those of MCMC; mean field underestimates both "
        "(figures, no numbers)",
        source="Yin, Zhou (2018), sec. 4.3",
        measure=_measure_regression,
        acceptance=(
            Acceptance(key="sd error, semi-implicit", below="sd error, mean field"),
            Acceptance(key="correlation error, semi-implicit", below="correlation error, mean field"),
            Acceptance(key="distance, semi-implicit", below="distance, normal"),
            Acceptance(key="skewness error, semi-implicit", below="skewness error, normal"),
        ),
        budget=120,
    ),
    Claim(
        statement="As the prior of an autoencoder of binarised MNIST, a semi-implicit distribution gives test rows at "
        "least the likelihood of a VampPrior, and that more than a standard normal prior.",
        published="log likelihood of test rows: VampPrior -82.38, semi-implicit prior -82.27 (hierarchical "
        "autoencoder, 50,000 training rows)",
        source="Molchanov et al. (2019), table of the VAE experiment",
        measure=_measure_autoencoder,
        acceptance=(
            Acceptance(key="log likelihood, semi-implicit", above="log likelihood, VampPrior", errors=1.0),
            Acceptance(key="log likelihood, VampPrior", above="log likelihood, normal"),
        ),
        budget=360,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site of a regression on classes and the plates around it.

    With a number as target there is ``sigma`` too; an autoencoder has ``z`` in the plate ``datum`` alone.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    return {"beta": ()}


METHOD = Method(
    name="doubly_semi_implicit",
    title="Semi-implicit guides and priors, with bounds from both sides",
    paper="molchanov2019doubly",
    task="classification",
    other_tasks=("regression", "density"),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(
        num_noise=4,
        mixing=(10,),
        num_components=5,
        num_particles=2,
        num_latent=2,
        autoencoder=(10,),
        num_prior_components=5,
    ),
    default_data="breast_cancer",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=8_000, learning_rate=1e-2, schedule="cosine"),
    summary=summary,
    figures=figures,
    use_when="A regression on a table whose posterior is correlated or skewed, and you want all coefficients jointly "
    "without sampling; a density of images or rows under a prior that follows the data; or you need a guide or a prior "
    "that is a mixture over noise in a model of your own (SemiImplicit).",
    avoid_when="NUTS takes seconds for the same table, as it does up to some thousand rows (horseshoe_regression): it "
    "is exact. The number of latents is large: the more there are, the more components the bounds need.",
    needs="A standardised table with two classes or a number as target, without missing entries; or images, or a table "
    "with --task density, which want --batch-size 128, --learning-rate 1e-3 and some thousand steps.",
)
