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

=================  ===========  ============  =============================================================
symbol             site         plate         meaning
=================  ===========  ============  =============================================================
:math:`\beta`      ``beta``                   intercept and coefficients of the features, in this order
:math:`\sigma`     ``sigma``                  noise, only with a number as target
:math:`y_i`        ``y``        ``datum``     target, observed
:math:`\psi`                                  mean of the conditional; drawn inside the guide's distribution
=================  ===========  ============  =============================================================

Deviations.

- The mean :math:`\psi` is written in units of :math:`L`, so that the network starts at the scale of the conditional;
  the family is that of Yin and Zhou (2018), whose network gives :math:`\psi` itself.
- All draws of a step share the :math:`K` fresh :math:`\psi`, as in the code of Yin and Zhou.

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
from torch import Tensor

import zoo
from zoo.errors import DataError
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
    "lower_bound",
    "reference",
    "sites",
    "summary",
    "upper_bound",
]

_NOISE = (-1.0, 1.0)  # mean and standard deviation of log sigma
_START_SCALE = 1.0  # of the conditional, in standardised units
_MOST_COEFFICIENTS, _MOST_ROWS = 100, 10_000  # of a figure that needs NUTS
_SMOOTHED = 2_000  # draws of its contours


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        prior_scale: Prior standard deviation ``s`` of intercept and coefficients.
        conditional: Covariance of the conditional, ``full`` or ``diagonal``; with a diagonal one all dependence between
            coefficients comes from the mixing.
        num_noise: Dimensions of the noise behind ``psi``.
        mixing: Hidden units of each layer from the noise to ``psi``; ``()``: no network, ``psi`` is the mean ``m``, and
            the guide is normal.
        num_components: Fresh draws ``K`` of ``psi`` for every estimate of the guide's density.
        num_particles: Draws of the guide per step.
    """

    prior_scale: float = 2.5
    conditional: Literal["full", "diagonal"] = "full"
    num_noise: int = 20
    mixing: tuple[int, ...] = (64, 64)
    num_components: int = 50
    num_particles: int = 10


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with standardised ``x``, ``(rows, features)``, two classes or standardised numbers ``y``,
            ``(rows,)``, and ``index``.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch.

    Raises:
        DataError: If the features are no table, there are more than two classes, or a hyper-parameter is out of range.
    """
    _check(hyper)
    shape = tuple(data.train["x"].shape)
    if len(shape) != 2:
        raise DataError(f"data set '{data.name}' has x of shape {shape}; expected a table (rows, features)")
    classes = int(data.extra.get("num_classes", 0))
    if classes > 2:
        raise DataError(
            f"target of '{data.name}' has {classes} classes; doubly_semi_implicit takes two, or a number "
            "(--task regression)"
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


def _check(hyper: Hyper) -> None:
    if not hyper.prior_scale > 0:
        raise DataError(f"prior_scale is {hyper.prior_scale:g}; it must be positive")
    for name in ("num_noise", "num_components", "num_particles"):
        if getattr(hyper, name) < 1:
            raise DataError(f"{name} is {getattr(hyper, name)}; it must be 1 or more")
    if any(size < 1 for size in hyper.mixing):
        raise DataError(f"mixing is {hyper.mixing}; every layer needs at least one unit")


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


def _network(name: str, sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return weights, ``(inputs, outputs)``, and biases of every layer of a network."""
    found = []
    for l, (a, b) in enumerate(itertools.pairwise(sizes)):
        weight = pyro.param(f"{name}_{l}_weight", lambda a=a, b=b: math.sqrt(2 / a) * torch.randn(a, b))
        found.append((weight, pyro.param(f"{name}_{l}_bias", lambda b=b: torch.zeros(b))))
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
        own = self._last[1].log_prob(value)[None]
        return _log_mean(torch.cat([own, self._components(value)]))

    def fresh_log_prob(self, value: Tensor) -> Tensor:
        r"""Return the log of the mean density over :math:`K` components that are independent of the value.

        Args:
            value: ``(*sample, *batch, *event)``.

        Returns:
            ``(*sample, *batch)``.
        """
        return _log_mean(self._components(value))

    def _components(self, value: Tensor) -> Tensor:
        """Return the log densities under fresh components, ``(components, *sample, *batch)``."""
        shape = value.shape[: value.dim() - len(self.event_shape)]
        psi = self.mixing(torch.Size((self.num_components, *(() if self.shared else shape))))
        if self.shared:
            psi = psi.reshape(self.num_components, *(1,) * len(shape), *psi.shape[1:])
        return self.conditional(psi).log_prob(value)  # type: ignore[no-any-return]


def _log_mean(log_values: Tensor) -> Tensor:
    return log_values.logsumexp(0) - math.log(len(log_values))


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
    """Return the bounds between which the evidence lower bound of a fit lies.

    Args:
        posterior: A fit of this method.
        num_draws: Draws of the guide.
        seed: Of the draws.

    Returns:
        Lower and upper bound in nats, on the training rows; their distance is the price of few components.
    """
    pair, batch = posterior.pair, posterior._prepare(None)
    assert pair.guide is not None
    site = "beta"

    def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
        drawn = poutine.trace(pair.guide).get_trace(batch)
        trace = poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(batch)
        q, value = drawn.nodes[site]["fn"], drawn.nodes[site]["value"]
        lower = trace.log_prob_sum() - drawn.log_prob_sum()
        return {"lower": lower, "upper": lower + (q.log_prob(value) - q.fresh_log_prob(value)).sum()}

    found = posterior.runs.map(one, num_draws, seed=seed)
    return float(found["lower"].double().mean()), float(found["upper"].double().mean())


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
        The bounds of the evidence lower bound; the largest correlation of two coefficients and the largest skewness of
        one, which say how far the posterior is from independent and from normal.
    """
    lower, upper = elbo_bounds(posterior)
    beta = posterior.draws(4_000)["beta"].double().cpu()
    return {
        "ELBO, lower bound": lower,
        "ELBO, upper bound": upper,
        "largest correlation": float(torch.corrcoef(beta.mT).fill_diagonal_(0.0).abs().max()),
        "largest skewness": float(_skewness(beta).abs().max()),
    }


def _skewness(draws: Tensor) -> Tensor:
    return ((draws - draws.mean(0)) / draws.std(0)).pow(3).mean(0)


def figures(posterior: Posterior) -> list[Figure]:
    """Return the figure of a fit: pairs of coefficients as contours, over those of NUTS.

    Args:
        posterior: A fit of this method.

    Returns:
        Descriptions, for the report; none beyond 100 coefficients or 10,000 rows, where NUTS takes long.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from zoo.reports.figures import BLUE, FILL

    rows, features = posterior.data.train["x"].shape
    if features >= _MOST_COEFFICIENTS or rows > _MOST_ROWS:
        return []
    exact = reference(posterior).draws(_SMOOTHED)["beta"].double().cpu()
    found = posterior.draws(_SMOOTHED)["beta"].double().cpu()
    names = ["intercept", *(c.name for c in posterior.data.columns)]
    names = names if len(names) > features else ["intercept", *(f"x{j}" for j in range(features))]
    pairs = _dependent(exact, 3)

    def paint(axes: Any) -> None:
        for axis, (i, j) in zip(axes[0], pairs, strict=False):
            both = torch.cat([exact, found])[:, [i, j]]
            low, high = (torch.quantile(both, q, dim=0) for q in (0.001, 0.999))
            grid = [torch.linspace(float(a), float(b), 60).numpy() for a, b in zip(low, high, strict=True)]
            levels, density = _contours(exact[:, [i, j]], grid)
            axis.contourf(*grid, density, levels=[*levels, density.max() * 1.001], colors=[FILL, "#93aed2"])
            levels, density = _contours(found[:, [i, j]], grid)
            axis.contour(*grid, density, levels=levels, colors=BLUE, linewidths=1.4)
            axis.set(xlabel=names[i], ylabel=names[j])
        handles = [Patch(color=FILL, label="NUTS"), Line2D([], [], color=BLUE, label="semi-implicit guide")]
        axes[0, 0].legend(handles=handles, frameon=False, fontsize=8, loc="best")

    return [
        Figure(
            name="contours",
            paint=paint,
            columns=len(pairs),
            wide=True,
            height=3.2,
            alt=f"{len(pairs)} pairs of coefficients: contours of the guide over those of NUTS.",
            caption="The most dependent pairs of coefficients: regions of 50% and 90% of the posterior by NUTS "
            f"(filled) and by the semi-implicit guide (lines), both smoothed over {_SMOOTHED:,} draws.",
        )
    ]


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
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it; with a number as target there is ``sigma`` too.

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
    other_tasks=("regression",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(num_noise=4, mixing=(10,), num_components=5, num_particles=2),
    default_data="breast_cancer",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=8_000, learning_rate=1e-2, schedule="cosine"),
    summary=summary,
    figures=figures,
    use_when="A regression on a table whose posterior is correlated or skewed, and you want all coefficients jointly "
    "without sampling; or you need a guide or a prior that is a mixture over noise in a model of your own "
    "(SemiImplicit).",
    avoid_when="NUTS takes seconds for the same table, as it does up to some thousand rows (horseshoe_regression): it "
    "is exact. The number of latents is large: the more there are, the more components the bounds need.",
    needs="A standardised table with two classes or a number as target, without missing entries.",
)
