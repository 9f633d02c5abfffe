"""Fits whose right verdict is known: the cases against which every check is measured.

Posteriors are exact by conjugacy, or made wrong in one known way, so most need no optimiser. :data:`CASES` pairs, for
each check, a correct fit with the fault that the check is there for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.diagnostics import inference, predictive, refits, sensitivity
from zoo.diagnostics.check import Check
from zoo.inference.posterior import Posterior
from zoo.types import Batch, Dataset, Pair

__all__ = ["CASES", "Case", "dataset", "sampled", "variational"]

_DOUBLE = torch.float64
_DRAWS = 400
_APART = 1_000_003  # between the seeds of data and of draws: one stream for both would make them depend on each other


# -------------------------------------------------------------------------------------------------------- making fits
def dataset(batch: Mapping[str, Tensor], *, name: str = "made-up", task: str = "none", **options: Any) -> Dataset:
    """Return a data set of one batch.

    Args:
        batch: Entries with rows.
        name: Its name.
        task: Its task.
        **options: Further fields of the data set.

    Returns:
        The data set, with the entry ``index``.
    """
    rows = len(next(iter(batch.values())))
    return Dataset(name=name, task=task, train={"index": torch.arange(rows), **batch}, **options)


def variational(
    model: Callable[[Batch], Any],
    guide: Callable[[Batch], Any],
    data: Dataset,
    *,
    losses: Tensor | None = None,
    **options: Any,
) -> Posterior:
    """Return the posterior of a guide that has no parameters, hence needs no optimiser.

    Args:
        model: The model.
        guide: The guide.
        data: The data.
        losses: Its history; noise if ``None``.
        **options: Further arguments of :class:`~zoo.inference.posterior.Posterior`.

    Returns:
        The posterior, in double precision.
    """
    history = torch.randn(1_000, generator=torch.Generator().manual_seed(0)) if losses is None else losses
    return Posterior(
        pair=Pair(model, guide),
        data=data,
        engine="svi",
        name="made-up",
        history={"elbo": history},
        info={"dtype": "float64"},
        **options,
    )


def sampled(
    model: Callable[[Batch], Any],
    data: Dataset,
    chains: Mapping[str, Tensor],
    *,
    stats: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Posterior:
    """Return the posterior of given chains.

    Args:
        model: The model.
        data: The data.
        chains: Site -> ``(chain, draw, ...)``.
        stats: Sampler statistics; no divergences and white energies if ``None``.
        **options: Further arguments of :class:`~zoo.inference.posterior.Posterior`.

    Returns:
        The posterior, in double precision.
    """
    shape = next(iter(chains.values())).shape[:2]
    if stats is None:
        generator = torch.Generator().manual_seed(1)
        stats = {
            "diverging": torch.zeros(shape, dtype=torch.bool),
            "energy": torch.randn(shape, generator=generator, dtype=_DOUBLE),
        }
    return Posterior(
        pair=Pair(model),
        data=data,
        engine="nuts",
        name="made-up",
        chains=chains,
        sample_stats=stats,
        info={"dtype": "float64"},
        **options,
    )


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, at: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=at, dtype=_DOUBLE)


# ---------------------------------------------------------------------------------------------------- conjugate models
def normal(
    seed: int,
    *,
    rows: int = 30,
    mean: float | None = None,
    noise: float = 1.0,
    factor: float = 1.0,
    shift: float = 0.0,
    test: int = 0,
) -> Posterior:
    r"""Return a fit of :math:`\mu \sim N(0, 1), y_n \sim N(\mu, 1)`; the guide works out its exact posterior.

    Args:
        seed: Of the data.
        rows: Rows.
        mean: The true mean; drawn from the prior if ``None``.
        noise: True standard deviation of the data; the model states 1.
        factor: Factor on the guide's standard deviation.
        shift: Shift of the guide's mean, in posterior standard deviations.
        test: Test rows.

    Returns:
        The posterior.
    """
    at = _random(seed)
    centre = _normal(at=at) if mean is None else torch.tensor(mean, dtype=_DOUBLE)
    y = centre + noise * _normal(rows + test, at=at)
    held = {"index": torch.arange(test), "y": y[rows:]} if test else None

    def model(batch: Batch) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    def guide(batch: Batch) -> None:
        train = y[:rows] if batch.get("y") is None or len(batch["y"]) != rows else batch["y"]
        kept = batch.get("kept", torch.ones(rows, dtype=torch.bool))
        precision = 1 + kept.sum()
        scale = precision.to(train.dtype) ** -0.5
        pyro.sample("mu", dist.Normal(train[kept].sum() / precision + shift * scale, factor * scale))

    return variational(model, guide, dataset({"y": y[:rows]}, test=held))


def linear(seed: int, *, rows: int = 12, test: int = 100) -> tuple[Posterior, Batch, Batch]:
    """Return an exact fit of a Bayesian linear regression, and rows from its own and from a wider distribution.

    Args:
        seed: Of the data.
        rows: Training rows.
        test: Test rows, and rows of either kind.

    Returns:
        The posterior, rows from the same distribution, rows five times as far out.
    """
    at = _random(seed)
    x, w = _normal(rows + 3 * test, 2, at=at), _normal(2, at=at)
    y = x @ w + 0.5 * _normal(rows + 3 * test, at=at)
    train_x, train_y = x[:rows], y[:rows]
    covariance = torch.linalg.inv(torch.eye(2, dtype=_DOUBLE) + train_x.mT @ train_x / 0.25)
    centre = covariance @ train_x.mT @ train_y / 0.25

    def model(batch: Batch) -> None:
        weight = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            pyro.sample("y", dist.Normal((weight * batch["x"]).sum(-1), 0.5), obs=batch.get("y"))

    def guide(batch: Batch) -> None:
        pyro.sample("w", dist.MultivariateNormal(centre, covariance))

    parts = [
        {"index": torch.arange(test), "x": x[a : a + test], "y": y[a : a + test]} for a in range(rows, len(x), test)
    ]
    data = dataset({"x": train_x, "y": train_y}, test=parts[0])
    return variational(model, guide, data), parts[1], {**parts[2], "x": 5 * parts[2]["x"]}


def scaled_noise(seed: int, *, test: int = 300, wrong: bool = False) -> Posterior:
    """Return a fit of numbers whose known noise differs from row to row; if ``wrong``, it is stated of other rows.

    Args:
        seed: Of the data.
        test: Test rows, and training rows.
        wrong: Whether the stated noise is permuted.

    Returns:
        The posterior.
    """
    at = _random(seed)
    noise = (0.8 * _normal(2 * test, at=at)).exp()
    mean = _normal(at=at)
    y = mean + noise * _normal(2 * test, at=at)
    stated = noise[torch.randperm(2 * test, generator=at)] if wrong else noise
    parts = [{"index": torch.arange(test), "y": y[s], "noise": stated[s]} for s in (slice(test), slice(test, None))]
    precision = 1 + (parts[0]["noise"] ** -2).sum()
    centre = (parts[0]["y"] / parts[0]["noise"] ** 2).sum() / precision

    def model(batch: Batch) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", test, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, batch["noise"]), obs=batch.get("y"))

    def guide(batch: Batch) -> None:
        pyro.sample("mu", dist.Normal(centre, precision**-0.5))

    return variational(model, guide, dataset({k: v for k, v in parts[0].items() if k != "index"}, test=parts[1]))


def classes(seed: int, *, rows: int = 400, sharpen: float = 1.0, wrong: bool = False) -> Posterior:
    """Return a fit of three classes, whose probabilities are known but for a bias with its prior.

    Args:
        seed: Of the data.
        rows: Training and test rows.
        sharpen: Factor on the stated logits.
        wrong: Whether rows state logits as sharp as those of other rows.

    Returns:
        The posterior.
    """
    at = _random(seed)
    logits = 1.5 * _normal(2 * rows, 3, at=at)
    y = torch.multinomial(logits.softmax(-1), 1, generator=at)[:, 0]
    stated = sharpen * logits
    if wrong:
        size = logits.std(-1, keepdim=True)
        stated = logits / size * size.max() * torch.rand(2 * rows, 1, generator=at, dtype=_DOUBLE)
    parts = [{"index": torch.arange(rows), "x": stated[s], "y": y[s]} for s in (slice(rows), slice(rows, None))]

    def model(batch: Batch) -> None:
        bias = pyro.sample("bias", dist.Normal(torch.zeros(()), 1e-3))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            pyro.sample("y", dist.Categorical(logits=batch["x"] + bias), obs=batch.get("y"))

    def guide(batch: Batch) -> None:
        pyro.sample("bias", dist.Normal(torch.zeros(()), 1e-3))

    data = dataset({k: v for k, v in parts[0].items() if k != "index"}, test=parts[1], extra={"num_classes": 3})
    return variational(model, guide, data)


def own_parameters(seed: int, *, rows: int = 30) -> Posterior:
    """Return an exact fit in which every row has a parameter, so that leaving a row out changes its posterior wholly.

    Args:
        seed: Of the data.
        rows: Rows.

    Returns:
        The posterior.
    """
    y = 3.0 * _normal(rows, at=_random(seed))
    weight = 9.0 / (9.0 + 0.01)

    def model(batch: Batch) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(rows), 3.0).to_event(1))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu[..., batch["index"]], 0.1), obs=batch.get("y"))

    def guide(batch: Batch) -> None:
        kept = batch.get("kept", torch.ones(rows, dtype=torch.bool))
        loc = torch.where(kept, weight * y, torch.zeros(()))
        scale = torch.where(kept, torch.tensor(0.01 * weight).sqrt(), torch.tensor(3.0))
        pyro.sample("mu", dist.Normal(loc, scale).to_event(1))

    return variational(model, guide, dataset({"y": y}))


def local(seed: int, *, rows: int = 40, factor: float = 1.0) -> Posterior:
    """Return an amortised fit in which every row has a latent: ``z_n ~ N(mu, 1), y_n ~ N(z_n, 1)``.

    Args:
        seed: Of the data.
        rows: Rows.
        factor: Factor on the standard deviation that the guide gives the rows' latents.

    Returns:
        The posterior; that of ``mu`` is exact.
    """
    at = _random(seed)
    y = _normal(at=at) + math.sqrt(2) * _normal(rows, at=at)
    precision = 1 + rows / 2
    centre = y.sum() / 2 / precision

    def model(batch: Batch) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=batch.get("y"))

    def guide(batch: Batch) -> None:
        mu = pyro.sample("mu", dist.Normal(centre, precision**-0.5))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            pyro.sample("z", dist.Normal((mu + batch["y"]) / 2, factor * 0.5**0.5))

    return variational(model, guide, dataset({"y": y}))


# ------------------------------------------------------------------------------------------------- targets without data
def gaussian(elements: int, *, factor: float = 1.0) -> Posterior:
    """Return a guide whose standard deviations are those of a standard normal target, times a factor.

    Args:
        elements: Dimension.
        factor: The factor; the weights' tail index is one minus its square below one.

    Returns:
        The posterior.
    """

    def at(scale: float) -> Callable[[Batch], None]:
        def program(batch: Batch) -> None:
            pyro.sample("z", dist.Normal(torch.zeros(elements), scale).to_event(1))

        return program

    return variational(at(1.0), at(factor), dataset({"y": torch.zeros(1, dtype=_DOUBLE)}))


def heavy(elements: int = 10) -> Posterior:
    """Return a normal guide of Student targets with three degrees of freedom, whose weights have no finite moment.

    Args:
        elements: Dimension.

    Returns:
        The posterior.
    """

    def model(batch: Batch) -> None:
        pyro.sample("z", dist.StudentT(3.0, torch.zeros(elements), 1.0).to_event(1))

    def guide(batch: Batch) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(elements), 1.0).to_event(1))

    return variational(model, guide, dataset({"y": torch.zeros(1, dtype=_DOUBLE)}))


def correlated(rho: float, *, exact: bool = False) -> Posterior:
    r"""Return the best mean-field guide of two correlated normals; its ratio of sds is :math:`\sqrt{1 - \rho^2}`.

    Args:
        rho: Their correlation.
        exact: Whether the guide knows it.

    Returns:
        The posterior.
    """
    scale = torch.tensor(math.sqrt(1 - rho**2))

    def model(batch: Batch) -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("b", dist.Normal(rho * a, scale))

    def guide(batch: Batch) -> None:
        pyro.sample("a", dist.Normal(torch.zeros(()), scale))
        pyro.sample("b", dist.Normal(torch.zeros(()), scale))

    return variational(model, model if exact else guide, dataset({"y": torch.zeros(2, dtype=_DOUBLE)}))


def neal(*, exact: bool) -> Posterior:
    """Return a guide of Neal's funnel, centred: exact, or one that gives its units one width.

    Args:
        exact: Whether the widths follow the scale.

    Returns:
        The posterior.
    """

    def model(batch: Batch) -> None:
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 1.0))
        with pyro.plate("unit", 5):
            pyro.sample("x", dist.Normal(torch.zeros(()), scale))

    def guide(batch: Batch) -> None:
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 0.5))
        with pyro.plate("unit", 5):
            pyro.sample("x", dist.Normal(torch.zeros(()), 0 * scale + 1.0))

    return variational(model, model if exact else guide, dataset({"y": torch.zeros(1, dtype=_DOUBLE)}))


def bimodal(seed: int, *, apart: bool) -> Posterior:
    """Return four fits to a target with two modes, each at one of them; or of a target with one mode.

    Args:
        seed: Which mode each fit finds.
        apart: Whether there are two modes, and the fits found both.

    Returns:
        The posterior with its restarts.
    """
    sides = torch.randint(0, 2, (4,), generator=_random(seed))
    sides[:2] = torch.tensor([0, 1])

    def model(batch: Batch) -> None:
        weights = dist.Categorical(torch.tensor([0.5, 0.5]))
        parts = dist.Normal(torch.tensor([-3.0, 3.0]) if apart else torch.zeros(2), torch.ones(2))
        pyro.sample("z", dist.MixtureSameFamily(weights, parts))

    def at(side: int) -> Posterior:
        centre = 3.0 * (2 * side - 1) if apart else 0.0

        def guide(batch: Batch) -> None:
            pyro.sample("z", dist.Normal(torch.tensor(centre), 1.0))

        return variational(model, guide, dataset({"y": torch.zeros(1, dtype=_DOUBLE)}))

    first, *others = [at(int(s)) for s in sides]
    first.restarts = tuple(others)
    return first


def losses(seed: int, *, trend: float = 0.0, rho: float = 0.5, steps: int = 2_000) -> Tensor:
    """Return a loss with autocorrelated noise, and a trend over its last fifth.

    Args:
        seed: Of the noise.
        trend: Nats by which it changes over the last fifth.
        rho: Autocorrelation.
        steps: Length.

    Returns:
        ``(steps,)``.
    """
    shocks = _normal(steps, at=_random(seed))
    values = [float(shocks[0])]
    for shock in shocks[1:].tolist():
        values.append(rho * values[-1] + math.sqrt(1 - rho**2) * shock)
    line = trend * (torch.arange(steps, dtype=_DOUBLE) - steps) / (steps / 5)
    return 100 + torch.tensor(values, dtype=_DOUBLE) + line


def by_nuts(seed: int, kind: str) -> Posterior:
    """Sample a target by NUTS: an easy one, a centred funnel, or one with two modes.

    Args:
        seed: Of the chains.
        kind: ``normal``, ``funnel`` or ``bimodal``.

    Returns:
        The posterior of four chains, of eight where there are two modes.
    """
    from zoo.inference.runner import fit

    if kind == "normal":
        model = normal(0).pair.model
        batch: Mapping[str, Tensor] = normal(0).data.train
    elif kind == "bimodal":
        model, batch = _two_modes, {"y": torch.zeros(1)}
    else:
        model, batch = _wide_funnel, {"y": torch.zeros(1)}
    # Of four chains all start in one of two modes once in eight times, and then no comparison of chains can tell.
    chains = 8 if kind == "bimodal" else 4
    return fit(Pair(model), batch, engine="nuts", chains=chains, draws=500, tune=500, seed=seed)


def _two_modes(batch: Batch) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 8.0))
    modes = torch.logaddexp(-0.5 * (z - 8) ** 2, -0.5 * (z + 8) ** 2)
    pyro.factor("modes", modes + 0.5 * (z / 8) ** 2)


def _wide_funnel(batch: Batch) -> None:
    v = pyro.sample("v", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("unit", 9):
        pyro.sample("x", dist.Normal(torch.zeros(()), (v / 2).exp()))


# ---------------------------------------------------------------------------------------------------------- the cases
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A correct fit, and the fault that some checks are there for.

    Args:
        checks: The checks that are measured on it.
        correct: What the correct fit is.
        fault: What is wrong in the other one.
        run: ``run(faulty, seed)`` -> the checks' outcomes, in the order of ``checks``.
    """

    checks: tuple[str, ...]
    correct: str
    fault: str
    run: Callable[[bool, int], tuple[Check, ...]]


def _stationarity(faulty: bool, seed: int) -> tuple[Check, ...]:
    fit = gaussian(1)
    fit.history = {"elbo": losses(seed, trend=-3.0 if faulty else 0.0)}
    return (inference.optimiser_stationarity(fit),)


def _refits(faulty: bool, seed: int) -> tuple[Check, ...]:
    fit = normal(seed, rows=5, factor=0.5 if faulty else 1.0)
    shared = refits.Refits(fit, num=100, seed=1_000 * seed)
    return refits.simulation_calibration(fit, refits=shared), refits.interval_coverage(fit, refits=shared)


def _held(fit: Posterior, seed: int) -> tuple[Check, ...]:
    held = predictive.held_out(fit, num_draws=_DRAWS, seed=seed + _APART)
    return predictive.calibration(fit, held=held), predictive.scores(fit, held=held)


def _ood(faulty: bool, seed: int) -> tuple[Check, ...]:
    fit, same, far = linear(seed)
    return (predictive.out_of_distribution(fit, ood=same if faulty else far, num_draws=_DRAWS, seed=seed + _APART),)


def _chains(kind: str, seed: int) -> tuple[Check, ...]:
    fit = by_nuts(seed, kind)
    return inference.ess(fit), inference.divergences(fit), inference.e_bfmi(fit)


def _one(function: Callable[..., Check], make: Callable[[bool, int], Posterior], **options: Any) -> Any:
    def run(faulty: bool, seed: int) -> tuple[Check, ...]:
        return (function(make(faulty, seed), seed=seed + _APART, **options),)

    return run


CASES: tuple[Case, ...] = (
    Case(
        checks=("optimiser_stationarity",),
        correct="a loss that has settled, with noise of autocorrelation 0.5",
        fault="the same with a trend of 3 nats over its last fifth",
        run=_stationarity,
    ),
    Case(
        checks=("pareto_k",),
        correct="a guide of five normals, a tenth too wide (bounded weights)",
        fault="its scales halved (k = 0.75 in each dimension)",
        run=_one(inference.pareto_k, lambda bad, _: gaussian(5, factor=0.5 if bad else 1.1), num_draws=_DRAWS),
    ),
    Case(
        checks=("pareto_k",),
        correct="a guide of ten normals, a tenth too wide (bounded weights)",
        fault="a normal guide of ten Student targets (no finite moment of the weights)",
        run=_one(inference.pareto_k, lambda bad, _: heavy() if bad else gaussian(10, factor=1.1), num_draws=1_000),
    ),
    Case(
        checks=("pareto_k_rows",),
        correct="an amortised guide of rows' latents, a tenth too wide",
        fault="its scales halved (k = 0.75)",
        run=_one(inference.pareto_k_rows, lambda bad, s: local(s, factor=0.5 if bad else 1.1), num_draws=1_000),
    ),
    Case(
        checks=("moment_bounds",),
        correct="a guide of one normal, a tenth too wide",
        fault="its mean shifted by one standard deviation",
        run=_one(inference.moment_bounds, lambda bad, s: normal(s, factor=1.1, shift=float(bad)), num_draws=_DRAWS),
    ),
    Case(
        checks=("reweighted_moments",),
        correct="a guide of one normal, a tenth too wide",
        fault="its mean shifted by one standard deviation",
        run=_one(
            sensitivity.reweighted_moments,
            lambda bad, s: normal(s, factor=1.0 if bad else 1.1, shift=float(bad)),
            num_draws=1_000,
        ),
    ),
    Case(
        checks=("funnel",),
        correct="the exact guide of a funnel of five units",
        fault="a guide that gives the units one width",
        run=_one(inference.funnel, lambda bad, _: neal(exact=not bad), num_draws=_DRAWS),
    ),
    Case(
        checks=("restart_agreement",),
        correct="four restarts that found the one mode",
        fault="four restarts of a target with two modes, some at either",
        run=_one(inference.restart_agreement, lambda bad, s: bimodal(s, apart=bad), num_draws=_DRAWS),
    ),
    Case(
        checks=("vi_against_nuts",),
        correct="the exact guide of two normals with correlation 0.9",
        fault="the best mean-field guide (ratio of standard deviations 0.44)",
        run=_one(refits.vi_against_nuts, lambda bad, _: correlated(0.9, exact=not bad)),
    ),
    Case(
        checks=("simulation_calibration", "interval_coverage"),
        correct="the exact guide of a normal mean, five rows, 100 refits",
        fault="its scale halved",
        run=_refits,
    ),
    Case(
        checks=("r_hat",),
        correct="NUTS on the posterior of a normal mean",
        fault="eight chains of NUTS on a target with two modes",
        run=lambda bad, seed: (inference.r_hat(by_nuts(seed, "bimodal" if bad else "normal")),),
    ),
    Case(
        checks=("ess", "divergences", "e_bfmi"),
        correct="NUTS on the posterior of a normal mean",
        fault="NUTS on Neal's funnel of nine units, centred",
        run=lambda bad, seed: _chains("funnel" if bad else "normal", seed),
    ),
    Case(
        checks=("prior_predictive_check",),
        correct="data drawn from the prior",
        fault="data around a mean of six prior standard deviations",
        run=_one(
            predictive.prior_predictive_check, lambda bad, s: normal(s, mean=6.0 if bad else None), num_draws=_DRAWS
        ),
    ),
    Case(
        checks=("power_scaling",),
        correct="thirty rows drawn from the prior",
        fault="thirty rows around a mean of six prior standard deviations",
        run=_one(sensitivity.power_scaling, lambda bad, s: normal(s, mean=6.0 if bad else None), num_draws=_DRAWS),
    ),
    Case(
        checks=("predictive_check",),
        correct="the exact posterior of a normal mean, thirty rows",
        fault="data with twice the stated noise",
        run=_one(predictive.predictive_check, lambda bad, s: normal(s, noise=1.0 + bad), num_draws=_DRAWS),
    ),
    Case(
        checks=("calibration", "scores"),
        correct="numbers: the exact posterior of a normal mean, 100 test rows",
        fault="data with twice the stated noise",
        run=lambda bad, seed: _held(normal(seed, noise=1.0 + bad, test=100), seed),
    ),
    Case(
        checks=("calibration", "scores"),
        correct="classes: the true probabilities, 400 test rows",
        fault="logits stated three times as large",
        run=lambda bad, seed: _held(classes(seed, sharpen=3.0 if bad else 1.0), seed),
    ),
    Case(
        checks=("selective_prediction",),
        correct="numbers: the noise of every row as stated, 300 test rows",
        fault="the noise stated of other rows",
        run=_one(predictive.selective_prediction, lambda bad, s: scaled_noise(s, wrong=bad), num_draws=_DRAWS),
    ),
    Case(
        checks=("selective_prediction",),
        correct="classes: the true probabilities, 400 test rows",
        fault="logits as sharp as those of other rows",
        run=_one(predictive.selective_prediction, lambda bad, s: classes(s, wrong=bad), num_draws=_DRAWS),
    ),
    Case(
        checks=("out_of_distribution",),
        correct="linear regression on twelve rows; rows from elsewhere five times as far out",
        fault="rows from the same distribution in their place",
        run=_ood,
    ),
    Case(
        checks=("loo",),
        correct="the exact posterior of a normal mean, thirty rows",
        fault="a posterior in which every row has its own parameter",
        run=_one(predictive.loo, lambda bad, s: own_parameters(s) if bad else normal(s), num_draws=1_000),
    ),
    Case(
        checks=("k_fold",),
        correct="the exact posterior of a normal mean, thirty rows",
        fault="a posterior in which every row has its own parameter, so that leave-one-out fails",
        run=_one(refits.k_fold, lambda bad, s: own_parameters(s) if bad else normal(s), num_draws=1_000, always=True),
    ),
)
