r"""Hierarchical regression: rows in groups, whose intercepts and slopes are pooled as far as the data ask for it.

Row :math:`i` belongs to group :math:`g(i)`; :math:`z_i` are those of its features :math:`x_i` whose slopes vary:

.. math::

    \alpha_g &\sim \mathrm{N}(\mu, \tau^2), \qquad \gamma_{gk} \sim \mathrm{N}(0, \omega_k^2), \\
    \eta_i &= \alpha_{g(i)} + x_i^\top \beta + z_i^\top \gamma_{g(i)}, \\
    y_i &\sim \mathrm{N}(\eta_i, \sigma^2) \quad \text{or} \quad \mathrm{Bernoulli}(\mathrm{logit}^{-1}(\eta_i))
    \quad \text{or} \quad \mathrm{Poisson}(e^{\eta_i}),

with :math:`\mu \sim \mathrm{N}(0, m^2)`, :math:`\beta_j \sim \mathrm{N}(0, s^2)`, and half-normal
:math:`\tau, \omega_k \sim \mathrm{N}^{+}(0, t^2)` and :math:`\sigma \sim \mathrm{N}^{+}(0, 1)`. The data decide between
the first two likelihoods: a number as target, or two classes; ``Hyper.counts`` says that the number is a count.
The non-centred form draws :math:`\tilde\alpha_g, \tilde\gamma_{gk} \sim \mathrm{N}(0, 1)` and puts
:math:`\alpha_g = \mu + \tau \tilde\alpha_g` and :math:`\gamma_{gk} = \omega_k \tilde\gamma_{gk}`. Both are the same
distribution of everything else. For rows of a group that training did not have,
:math:`\alpha_g` and :math:`\gamma_g` are drawn from their population, the same for all rows of that group.

===========================  ===============  ===========  ========================================================
symbol                       site             plate        meaning
===========================  ===============  ===========  ========================================================
:math:`\mu`                  ``mu``                        mean of the groups' intercepts; only of the population
:math:`\tau`                 ``tau``                       their standard deviation; only where pooling is partial
:math:`\beta_j`              ``beta``         ``feature``  slope of a feature, of the average group
:math:`\omega_k`             ``omega``        ``slope``    spread of a slope between groups, where it varies
:math:`\alpha_g`             ``alpha``        ``group``    intercept of a group; deterministic when non-centred
:math:`\tilde\alpha_g`       ``alpha_trans``  ``group``    standardised intercept; non-centred only
:math:`\gamma_g`             ``gamma``        ``group``    deviations of its slopes, one for each that varies
:math:`\tilde\gamma_g`       ``gamma_trans``  ``group``    standardised deviations; non-centred only
:math:`\sigma`               ``sigma``                     noise, only with a number as target that is no count
:math:`y_i`                  ``y``            ``datum``    target, observed
===========================  ===============  ===========  ========================================================

All sites are in standardised units, of a count in units of its log rate; :func:`group_table` translates them.
``Hyper.pooling`` has both limits too: ``none`` takes :math:`\alpha_g \sim \mathrm{N}(0, m^2)` and
:math:`\gamma_{gk} \sim \mathrm{N}(0, s^2)`, a regression with an indicator for each group, and ``complete`` one
intercept :math:`\mu` for all rows.

Deviations. The paper fits by maximum marginal likelihood or with flat priors; here all priors are proper. Predictors of
groups (the beds of a clinic) are features like others, equal in the rows of a group. Intercepts and
slopes of a group are independent a priori, where the paper's second example lets them correlate; that depends little on
where zero lies, as features are standardised. The guide is ours: independent normals, log-normal for
:math:`\tau, \omega_k, \sigma`.

.. code-block:: bibtex

    @article{gelman2006multilevel,
      title   = {Multilevel (Hierarchical) Modeling: What It Can and Cannot Do},
      author  = {Gelman, Andrew},
      journal = {Technometrics},
      volume  = {48},
      number  = {3},
      pages   = {432--435},
      year    = {2006}
    }
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

import zoo
from zoo.errors import DataError, suggest
from zoo.types import Acceptance, Batch, Claim, Dataset, Figure, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["METHOD", "Hyper", "StandardisedPoisson", "build", "figures", "group_table", "sites", "summary"]

_POSITIVE = ("tau", "omega", "sigma")
_MOST_SHOWN = 60  # groups in the figure
_SMALL = 10  # training rows of a group that the claim calls small


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters; scales are in units of the standardised features and target, of a count in log rates.

    Args:
        pooling: ``partial``: groups are draws from a population whose spread is inferred; ``none``: nothing is learnt
            about one group from the others; ``complete``: there are no groups.
        slopes: Features whose slopes vary between groups, by name.
        counts: The target is a count, 0, 1, 2, ...: Poisson in place of normal.
        centred: Sample ``alpha`` and ``gamma`` rather than ``alpha_trans`` and ``gamma_trans``; mixes better where
            every group has many rows.
        mu_scale: Prior standard deviation ``m`` of ``mu``.
        beta_scale: Prior standard deviation ``s`` of each slope.
        tau_scale: Prior scale ``t`` of ``tau`` and ``omega``.
        tau: Known value of ``tau`` and ``omega``; ``None`` infers them.
        noise: Known noise standard deviation; ``None`` infers it. Normal likelihood only.
    """

    pooling: Literal["partial", "none", "complete"] = "partial"
    slopes: tuple[str, ...] = ()
    counts: bool = False
    centred: bool = False
    mu_scale: float = 5.0
    beta_scale: float = 2.0
    tau_scale: float = 1.0
    tau: float | None = None
    noise: float | None = None


class StandardisedPoisson(TorchDistribution):  # type: ignore[misc]
    r"""Poisson counts :math:`k` in standardised units, :math:`y = (k - m) / s`.

    Tables standardise their targets, and predictions and scores are in these units. The density is that of
    :math:`k`, per unit of :math:`y`: :math:`\log p(y) = \log \mathrm{Poisson}(k) + \log s`, so that scores, which
    divide by :math:`s`, are of the counts.

    Args:
        rate: Rate of the counts.
        mean: Count :math:`m` at which ``y`` is zero.
        scale: Counts :math:`s > 0` in one unit of ``y``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"rate": constraints.nonnegative}
    support = constraints.real
    has_rsample = False

    def __init__(self, rate: Tensor, mean: float, scale: float, *, validate_args: bool | None = None) -> None:
        self.rate, self._mean, self._scale = rate, mean, scale
        super().__init__(rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean, of the shape of the rate."""
        return (self.rate - self._mean) / self._scale

    @property
    def variance(self) -> Tensor:
        """Variance, of the shape of the rate."""
        return self.rate / self._scale**2

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> StandardisedPoisson:
        """Return independent copies.

        Args:
            batch_shape: New batch shape.
            _instance: Unused; part of the interface.

        Returns:
            The expanded distribution.
        """
        return StandardisedPoisson(self.rate.expand(batch_shape), self._mean, self._scale, validate_args=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts, standardised.

        Args:
            sample_shape: Leading shape.

        Returns:
            ``(*sample_shape, *batch_shape)``.
        """
        with torch.no_grad():
            rate = self.rate.expand(self._extended_shape(torch.Size(sample_shape)))
            return (torch.poisson(rate) - self._mean) / self._scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density.

        Args:
            value: Standardised counts, ``(*sample, *batch)``.

        Returns:
            Of the same shape.
        """
        count = (value * self._scale + self._mean).round()
        log_mass: Tensor = dist.Poisson(self.rate, validate_args=False).log_prob(count)
        return log_mass + math.log(self._scale)


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with standardised ``x``, ``(rows, features)``, ``y``, ``(rows,)``, ``index``, and ``group``, codes
            ``(rows,)`` of which ``coords["group"]`` are the labels; ``y`` is a standardised number, or 0 and 1 where
            the task is ``classification``. ``new_group`` numbers groups without training rows, -1 for other rows.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch of rows.
    """
    likelihood = _likelihood(data, hyper)
    num_data, num_features = data.num_data, data.train["x"].shape[1]
    num_groups, varying = _num_groups(data), _varying(data, hyper)
    mean, scale = (data.target.mean, data.target.scale) if data.target else (0.0, 1.0)
    group = [_Effect("alpha", ())] if hyper.pooling != "complete" else []
    group += [_Effect("gamma", (len(varying),))] if varying and hyper.pooling != "complete" else []

    def model(batch: Batch) -> None:
        x, y = batch["x"], batch.get("y")
        centre: dict[str, Any] = {"alpha": 0.0, "gamma": 0.0}
        spread: dict[str, Any] = {"alpha": hyper.mu_scale, "gamma": hyper.beta_scale}
        if hyper.pooling != "none":
            centre["alpha"] = pyro.sample("mu", dist.Normal(0.0, hyper.mu_scale))
        if hyper.pooling == "partial":
            spread |= {"alpha": hyper.tau, "gamma": hyper.tau}
            if hyper.tau is None:
                spread["alpha"] = pyro.sample("tau", dist.HalfNormal(hyper.tau_scale))
                if varying:
                    with pyro.plate("slope", len(varying)):
                        spread["gamma"] = pyro.sample("omega", dist.HalfNormal(hyper.tau_scale))
        with pyro.plate("feature", num_features):
            beta = pyro.sample("beta", dist.Normal(0.0, hyper.beta_scale))
        sigma: Any = hyper.noise
        if likelihood == "normal" and sigma is None:
            sigma = pyro.sample("sigma", dist.HalfNormal(1.0))

        plate = pyro.plate("group", num_groups)
        found = {effect.name: effect.draw(plate, centre, spread, hyper, like=x) for effect in group}
        eta = beta @ x.mT
        if not group:
            eta = eta + centre["alpha"]
        else:
            of_row = {name: value[..., batch["group"], :] for name, value in found.items()}
            new = batch.get("new_group")
            if new is not None and int(new.max()) >= 0:
                others = pyro.plate("new_group", int(new.max()) + 1)
                for effect in group:
                    fresh = effect.drawn_anew(others, centre, spread, like=x)[..., new.clamp(min=0), :]
                    of_row[effect.name] = torch.where((new >= 0)[:, None], fresh, of_row[effect.name])
            eta = eta + of_row["alpha"][..., 0]
            if varying:
                eta = eta + (of_row["gamma"] * x[:, varying]).sum(-1)
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            if likelihood == "bernoulli":
                pyro.sample("y", dist.Bernoulli(logits=eta), obs=None if y is None else y.to(eta.dtype))
            elif likelihood == "poisson":
                pyro.sample("y", StandardisedPoisson(eta.exp(), mean, scale), obs=y)
            else:
                pyro.sample("y", dist.Normal(eta, sigma), obs=y)

    sizes = {"group": num_groups, "feature": num_features, "slope": len(varying)}
    latents = _sites(hyper, likelihood)

    def guide(batch: Batch) -> None:
        plates = {name: pyro.plate(name, size) for name, size in sizes.items() if size}
        for site, around in latents.items():
            size = tuple(sizes[plate] for plate in around)
            event = (len(varying),) if site.startswith("gamma") else ()
            start = math.log(hyper.tau_scale / 2) if site in _POSITIVE else 0.0
            loc = pyro.param(f"{site}_loc", torch.full((*size, *event), start))
            sd = pyro.param(f"{site}_scale", torch.full((*size, *event), 0.1), constraint=constraints.positive)
            family = dist.LogNormal if site in _POSITIVE else dist.Normal
            with plates[around[0]] if around else nullcontext():
                pyro.sample(site, family(loc, sd).to_event(len(event)))

    return Pair(model, guide)


@dataclass(frozen=True, slots=True)
class _Effect:
    """What a group has of its own: an intercept, or deviations of slopes.

    Args:
        name: ``alpha`` or ``gamma``.
        shape: Of one group.
    """

    name: str
    shape: tuple[int, ...]

    def _normal(self, loc: Any, scale: Any, like: Tensor) -> Any:
        loc = torch.as_tensor(loc).to(like)
        scale = torch.as_tensor(scale).to(like)
        return dist.Normal(loc.expand(self.shape) if self.shape else loc, scale).to_event(len(self.shape))

    def _as_vector(self, value: Tensor) -> Tensor:
        return value if self.shape else value[..., None]

    def draw(self, plate: Any, centre: Any, spread: Any, hyper: Hyper, *, like: Tensor) -> Tensor:
        """Sample the effects of the groups of training, ``(groups, 1)`` or ``(groups, slopes)``."""
        loc, scale = centre[self.name], spread[self.name]
        with plate:
            if hyper.centred or hyper.pooling == "none":
                return self._as_vector(pyro.sample(self.name, self._normal(loc, scale, like)))
            standard = pyro.sample(f"{self.name}_trans", self._normal(0.0, 1.0, like))
            return self._as_vector(
                pyro.deterministic(self.name, loc + scale * standard, event_dim=len(self.shape)),
            )

    def drawn_anew(self, plate: Any, centre: Any, spread: Any, *, like: Tensor) -> Tensor:
        """Sample those of other groups from the population, which belongs to no training row."""
        with plate:
            fn = self._normal(centre[self.name], spread[self.name], like)
            return self._as_vector(pyro.sample(f"{self.name}_new", fn, infer={"imputes": True}))


def _sites(hyper: Hyper, likelihood: str) -> dict[str, tuple[str, ...]]:
    """Return each latent and its plates, in the order of the model."""
    inferred = hyper.pooling == "partial" and hyper.tau is None
    found: dict[str, tuple[str, ...]] = {} if hyper.pooling == "none" else {"mu": ()}
    if inferred:
        found["tau"] = ()
        if hyper.slopes:
            found["omega"] = ("slope",)
    found["beta"] = ("feature",)
    if likelihood == "normal" and hyper.noise is None:
        found["sigma"] = ()
    if hyper.pooling != "complete":
        suffix = "" if hyper.centred or hyper.pooling == "none" else "_trans"
        found |= {f"{name}{suffix}": ("group",) for name in ("alpha", *(["gamma"] if hyper.slopes else []))}
    return found


def _num_groups(data: Dataset) -> int:
    """Return the number of groups.

    Raises:
        DataError: If the data have none.
    """
    if "group" not in data.train:
        raise DataError(
            f"data set '{data.name}' has no groups; hierarchical_regression needs a column that says the group of a "
            "row: --group COLUMN, in Python zoo.datasets.read(..., group='COLUMN')"
        )
    return len(data.coords.get("group", ())) or int(data.train["group"].max()) + 1


def _varying(data: Dataset, hyper: Hyper) -> list[int]:
    """Return the positions of the features whose slopes vary.

    Raises:
        DataError: If a feature is unknown.
    """
    names = [column.name for column in data.columns] or [f"x{j}" for j in range(data.train["x"].shape[1])]
    for name in hyper.slopes:
        if name not in names:
            raise DataError(f"slopes has '{name}', which is no feature of '{data.name}'{suggest(name, names)}")
    return [names.index(name) for name in dict.fromkeys(hyper.slopes)]


def _likelihood(data: Dataset, hyper: Hyper) -> Literal["normal", "bernoulli", "poisson"]:
    """Say which likelihood the data ask for.

    Returns:
        Its name.

    Raises:
        DataError: If they suit none, or a hyper-parameter is out of range.
    """
    for name in ("mu_scale", "beta_scale", "tau_scale", "tau", "noise"):
        value = getattr(hyper, name)
        if value is not None and not value > 0:
            raise DataError(f"{name} is {value:g}; it must be positive")
    y = data.train["y"]
    if data.task == "classification":
        num_classes = int(data.extra.get("num_classes", int(y.max()) + 1))
        if num_classes != 2:
            raise DataError(
                f"target of '{data.name}' has {num_classes} classes; hierarchical_regression takes two, or a number "
                "(--task regression)"
            )
        if hyper.counts:
            raise DataError(f"counts is true, but '{data.name}' has classes as target; read it with task='regression'")
        return "bernoulli"
    if not hyper.counts:
        return "normal"
    mean, scale = (data.target.mean, data.target.scale) if data.target else (0.0, 1.0)
    count = y.double() * scale + mean
    off = float((count - count.round()).abs().max())
    if float(count.min()) < -0.01 or off > 0.01:
        found = "negative numbers" if float(count.min()) < -0.01 else "numbers that are not whole"
        raise DataError(f"counts is true, but the target of '{data.name}' has {found}; counts are 0, 1, 2, ...")
    return "poisson"


# ---------------------------------------------------------------------------------------- quantities of interest
def group_table(posterior: Posterior, num_draws: int = 4_000) -> pd.DataFrame:
    """Return what is known about each group, for a row with average features.

    Numbers are in the target's unit; for classes they are log odds of the second class, for counts log rates.

    Args:
        posterior: A fit of this method.
        num_draws: Posterior draws to summarise.

    Returns:
        One row per group: its training ``rows``; ``mean``, ``sd`` and the 90% interval ``5%``, ``95%`` of its
        intercept; and ``alone``, what its own rows say without the other groups (the mean residual of their targets
        from the slopes, in the target's unit; NaN for classes, counts and groups without rows).
    """
    data, hyper = posterior.data, posterior.hyper
    draws = posterior.draws(num_draws)
    draws = {**draws, **posterior.deterministics(draws)}
    labels = list(data.coords.get("group", range(_num_groups(data))))
    alpha = draws["alpha"] if "alpha" in draws else draws["mu"][:, None].expand(-1, len(labels))
    normal = _likelihood(data, hyper) == "normal"
    origin, scale = (data.target.mean, data.target.scale) if normal and data.target else (0.0, 1.0)
    values = origin + scale * alpha.double().cpu()
    low, high = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=values.dtype), dim=0)
    group, x, y = (data.train[name].cpu() for name in ("group", "x", "y"))
    rows = torch.bincount(group, minlength=len(labels))
    alone = torch.full((len(labels),), math.nan, dtype=torch.float64)
    if normal:
        slope = draws["beta"].double().cpu().mean(0).expand(len(labels), -1).clone()
        if "gamma" in draws:
            slope[:, _varying(data, hyper)] += draws["gamma"].double().cpu().mean(0)
        residual = y.double() - (x.double() * slope[group]).sum(-1)
        total = torch.zeros(len(labels), dtype=torch.float64).index_add(0, group, residual)
        alone = origin + scale * total / rows  # no rows: NaN
    columns = {"rows": rows, "mean": values.mean(0), "sd": values.std(0), "5%": low, "95%": high, "alone": alone}
    return pd.DataFrame(
        {name: column.numpy() for name, column in columns.items()},
        index=pd.Index(labels, name=str(data.extra.get("group", "group"))),
    )


def summary(posterior: Posterior) -> dict[str, float | str]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        Number of groups, their spread and its share of the variance that the features leave, the groups at the ends,
        and the noise in the target's unit.
    """
    data, hyper = posterior.data, posterior.hyper
    draws, likelihood = posterior.draws(4_000), _likelihood(data, hyper)
    unit = data.target.scale if likelihood == "normal" and data.target else 1.0
    what = {"normal": "", "bernoulli": " (log odds)", "poisson": " (log rate)"}[likelihood]
    found: dict[str, float | str] = {"groups": float(_num_groups(data))}
    if hyper.pooling == "partial":
        tau = draws["tau"] if hyper.tau is None else torch.full_like(draws["mu"], hyper.tau)
        found[f"spread between groups (tau){what}"] = float(tau.mean()) * unit
        within = math.pi**2 / 3 if likelihood == "bernoulli" else draws.get("sigma", hyper.noise)
        if within is not None:
            within = within if likelihood == "bernoulli" else torch.as_tensor(within).square()
            found["share of the variance that lies between groups"] = float((tau**2 / (tau**2 + within)).mean())
    if hyper.pooling != "complete":
        table = group_table(posterior)
        found["lowest and highest group"] = f"{table['mean'].idxmin()}, {table['mean'].idxmax()}"
    if "sigma" in draws:
        found["noise standard deviation"] = float(draws["sigma"].mean()) * unit
    return found


def figures(posterior: Posterior) -> list[Figure]:
    """Return the figure of a fit: the intercept of every group, beside what the group says alone.

    Args:
        posterior: A fit of this method.

    Returns:
        Descriptions, for the report.
    """
    from zoo.reports.figures import BLUE, MUTED, ORANGE

    if posterior.hyper.pooling == "complete":
        return []
    table = group_table(posterior).sort_values("mean")
    left_out = max(len(table) - _MOST_SHOWN, 0)
    shown = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(len(table), _MOST_SHOWN)).round().astype(int))]
    labels = [f"{name} ({rows})" for name, rows in zip(shown.index, shown["rows"], strict=True)]

    def paint(axes: Any) -> None:
        axis, at = axes[0, 0], np.arange(len(shown))
        axis.axvline(float(table["mean"].mean()), color=MUTED, linewidth=0.8)
        axis.hlines(at, shown["5%"], shown["95%"], color=BLUE, linewidth=1.5)
        axis.scatter(shown["mean"], at, s=16, color=BLUE, zorder=3, label="pooled: mean and 90% interval")
        if shown["alone"].notna().any():
            axis.scatter(
                shown["alone"], at, s=16, facecolors="none", edgecolors=ORANGE, zorder=2, label="its own rows alone"
            )
        axis.set(xlabel="intercept, at average features", ylim=(-1, len(shown)))
        axis.set_yticks(at, labels, fontsize=7)
        axis.legend(frameon=False, fontsize=8, loc="upper left")

    rest = f" {left_out} groups, evenly spaced, are not shown." if left_out else ""
    return [
        Figure(
            name="groups", paint=paint, wide=True, height=1.2 + 0.15 * len(shown),
            alt=f"Intercepts of {len(shown)} groups with intervals, beside the means of their own rows.",
            caption="The intercept of every group, with the number of its rows in brackets. Groups with few rows are "
            f"drawn towards the mean of all groups (line); those with many keep what their own rows say.{rest}",
        )
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- claims
def _measure_pooling(seed: int, fast: bool) -> dict[str, float]:
    """Predict held-out rows by NUTS, with groups pooled partly, completely and not at all; ``fast``: short chains.

    A third of the rows is for training, so that many groups are small, and the others for testing. Rows of groups
    without a training row are left out: without pooling nothing is said about them.

    Returns:
        Root mean squared error, in hours, and negative log density of the test rows of each, of all groups and of those
        with at most ten training rows; and the numbers of groups and test rows.
    """
    data = zoo.datasets.load("adult_hours", test=2 / 3, validation=0, seed=seed)
    test = data.split("test")
    training_rows = torch.bincount(data.train["group"], minlength=_num_groups(data))[test["group"]]
    known = test["new_group"] < 0 if "new_group" in test else torch.ones_like(test["group"], dtype=torch.bool)
    small = known & (training_rows <= _SMALL)
    parts = {"": _rows(test, known), ", small groups": _rows(test, small)}
    options: dict[str, Any] = (
        {"chains": 2, "tune": 200, "draws": 100} if fast else {"chains": 4, "tune": 1_000, "draws": 2_000}
    )
    found: dict[str, float] = {}
    pooling: Literal["partial", "complete", "none"]
    for pooling in ("partial", "complete", "none"):
        # The same distribution in either form; with most rows in large groups the centred one mixes better.
        hyper = Hyper(pooling=pooling, centred=True)
        posterior = zoo.fit(METHOD, data, hyper=hyper, engine="nuts", seed=seed, **options)
        for part, batch in parts.items():
            prediction = posterior.predict(batch, n=200 if fast else 2_000)
            scores = zoo.tasks.get("regression").score(prediction, batch, data)
            found |= {f"{score} {pooling}{part}": scores[score] for score in ("rmse", "nlpd")}
    for part, batch in parts.items():
        found[f"groups{part}"] = float(len(batch["group"].unique()))
        found[f"test rows{part}"] = float(len(batch["group"]))
    return found


def _rows(batch: Batch, chosen: Tensor) -> dict[str, Tensor]:
    """Return some rows of a batch, none of which is of a new group."""
    some = {name: value[chosen] for name, value in batch.items() if name != "new_group"}
    return some | {"index": torch.arange(len(some["index"]))}


CLAIMS = (
    Claim(
        statement="Partial pooling predicts the weekly hours of people in 74 jobs better than complete pooling and "
        "than none: lower error, higher log density; also in the jobs with at most ten training rows.",
        published="more accurate predictions than the no-pooling and complete-pooling regressions, by cross-validation "
        "(of radon in homes of 85 counties of Minnesota)",
        source="Gelman (2006), sec. 3",
        measure=_measure_pooling,
        acceptance=tuple(
            Acceptance(key=f"{score} partial{part}", below=f"{score} {other}{part}")
            for part in ("", ", small groups")
            for score in ("rmse", "nlpd")
            for other in ("complete", "none")
        ),
        budget=90,
        seeds=5,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it, for a number as target; classes and counts have no ``sigma``.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    return _sites(hyper, "poisson" if hyper.counts else "normal")


METHOD = Method(
    name="hierarchical_regression",
    title="Hierarchical regression: groups pooled partly",
    paper="gelman2006multilevel",
    task="regression",
    other_tasks=("classification",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(slopes=("age",)),
    default_data="german_credit_amount",
    build=build,
    engines=("nuts", "svi"),
    groups=True,
    claims=CLAIMS,
    recipe=Recipe(steps=10_000, learning_rate=1e-2, schedule="cosine"),
    summary=summary,
    figures=figures,
    use_when="Your rows come in groups (clinics, counties, schools, subjects), some with few rows, and you want "
    "predictions for the groups at hand and for groups not yet seen, or how much groups differ.",
    avoid_when="There are fewer than about five groups: their spread is then mostly the prior's; give the column as a "
    "feature instead. The group is related to a feature and you read its slope as an effect. Counts vary more than "
    "their mean, given features and group: Poisson intervals are too narrow for them.",
    needs="A table with a column that says the group (--group COLUMN) and at least one feature; as target a number, "
    "two classes, or a count (--hyper counts=true, with --task regression where the counts are few). For rates, give "
    "the log exposure as a feature.",
)
