"""Fits side by side: leave-one-out densities, held-out scores with their errors, cost, verdicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from zoo.diagnostics.adapter import take_rows
from zoo.diagnostics.check import NotApplicable, jsonable
from zoo.diagnostics.inference import affordable, khat_threshold
from zoo.diagnostics.predictive import Loo, leave_one_out, target_unit
from zoo.errors import DataError
from zoo.inference.predictive import Prediction

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = ["Comparison", "Estimate", "Fit", "compare", "comparison", "jackknife", "standard_error"]

_GROUPS = 20
_SMALL = 4.0  # nats of leave-one-out density below which a difference is small and its error not to be trusted
_MOST_BAD = 0.05  # share of rows with a large Pareto k up to which leave-one-out is looked at
# Which way a score is better; what has no direction of its own (coverage) ranks nothing.
_LOWER = ("nlpd", "nll", "crps", "rmse", "mae", "brier")
_HIGHER = ("accuracy", "auroc")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its standard error.

    Args:
        value: The estimate.
        se: Its standard error; NaN where it is not known.
    """

    value: float
    se: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One fit of a comparison.

    Args:
        label: What it is called.
        method: Name of its method.
        title: Title of its method.
        engine: ``svi`` or ``nuts``.
        elpd: Leave-one-out log predictive density over all rows, in nats; ``None`` where it does not apply or cannot be
            trusted.
        difference: Of ``elpd`` to the first fit's, paired over the rows.
        bad_k: Share of rows whose leave-one-out density is unreliable.
        why: Why there is no ``elpd``.
        scores: Scores of the task on held-out rows.
        gaps: Of these scores to the first fit's, paired over the rows.
        verdict: Of its report; ``None`` if it was not checked.
        seconds: Time of the fit with compilation.
        peak_memory: Most memory of the process that fitted, in bytes.
        parameters: Trained numbers; 0 for chains.
        latents: Numbers in one draw.
        hyper: Hyper-parameters.
    """

    label: str
    method: str
    title: str
    engine: str
    elpd: Estimate | None = None
    difference: Estimate | None = None
    bad_k: float = math.nan
    why: str = ""
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    gaps: Mapping[str, Estimate] = field(default_factory=dict)
    verdict: str | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    parameters: int = 0
    latents: int = 0
    hyper: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Fits to the same data, the best first.

    Args:
        data: Name of the data set.
        rows: Training rows.
        split: Held-out split of the scores; empty if there is none.
        held_out: Its rows.
        fits: The fits.
        better: ``clear``, ``unclear`` or ``unknown``: whether the first fit predicts better than the second.
        finding: What follows, in a sentence.
        cautions: What speaks against reading it so.
    """

    data: str
    rows: int
    split: str
    held_out: int
    fits: tuple[Fit, ...]
    better: Literal["clear", "unclear", "unknown"]
    finding: str
    cautions: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """Return the numbers as a table.

        Returns:
            One row per fit; see :func:`compare`.
        """
        import pandas as pd

        rows: dict[str, dict[str, float]] = {}
        for fit in self.fits:
            row: dict[str, float] = {"bad_k": fit.bad_k}
            for name, found in (("elpd", fit.elpd), ("difference", fit.difference)):
                if found is not None:
                    row |= {name: found.value, "se" if name == "elpd" else f"{name}_se": found.se}
            for name, found in fit.scores.items():
                row |= {f"{self.split}_{name}": found.value, f"{self.split}_{name}_se": found.se}
            row["seconds"] = math.nan if fit.seconds is None else fit.seconds
            row["peak_memory"] = math.nan if fit.peak_memory is None else fit.peak_memory
            rows[fit.label] = row | {"parameters": fit.parameters, "latents": fit.latents}
        columns = ["elpd", "se", "difference", "difference_se", "bad_k"]
        columns += [c for c in dict.fromkeys(k for row in rows.values() for k in row) if c not in columns]
        table: pd.DataFrame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
        table.index.name = "fit"
        return table

    def to_json(self) -> dict[str, Any]:
        """Return everything.

        Returns:
            A dict that ``json.dumps`` takes.
        """
        found: dict[str, Any] = jsonable(dataclasses.asdict(self))
        return found

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format=lambda v: f"{v:,.4g}"))


def compare(
    posteriors: Sequence[Posterior] | Mapping[str, Posterior], *, num_draws: int = 1_000, seed: int = 0
) -> pd.DataFrame:
    r"""Compare fits to the same data, as a table; :func:`comparison` says the same with words.

    The difference of leave-one-out densities is paired over the rows,
    :math:`\Delta_n = \mathrm{elpd}_n - \mathrm{elpd}^\text{best}_n`, with standard error
    :math:`\sqrt{N\,\mathrm{var}(\Delta_n)}`.

    Args:
        posteriors: Fits to one data set, named if a mapping.
        num_draws: Draws from guides; large models take fewer.
        seed: Of the draws and, for large data, of the rows compared.

    Returns:
        One row per fit, the best first, by the task's score on held-out rows or, without such rows, by ``elpd``:
        ``elpd``, ``se``, ``difference``, ``difference_se``, ``bad_k`` (share
        of rows whose leave-one-out density is unreliable), two columns per score of the task on the test split
        (``test_<score>`` and ``test_<score>_se``; the validation split's where there is no test split), and the cost:
        ``seconds``, ``peak_memory`` (bytes), ``parameters``, ``latents``. What cannot be computed for a fit is missing
        there.

    Raises:
        DataError: If there are no fits, or they were made on different data.

    References:
        Vehtari, Gelman, Gabry (2017), Statistics and Computing 27, eq. 24, for the standard error of a difference.
    """
    return comparison(posteriors, num_draws=num_draws, seed=seed).table()


def comparison(
    posteriors: Sequence[Posterior] | Mapping[str, Posterior],
    *,
    verdicts: Mapping[str, str | None] | None = None,
    num_draws: int = 1_000,
    seed: int = 0,
) -> Comparison:
    """Compare fits to the same data, and say what follows.

    Args:
        posteriors: Fits to one data set, named if a mapping.
        verdicts: Verdict of each fit's report, by name; those of ``posterior.diagnosis`` where it is not given.
        num_draws: Draws from guides; large models take fewer.
        seed: Of the draws, of the groups of the jackknife and, for large data, of the rows compared.

    Returns:
        The comparison. Where rows were held out, it rests on the paired differences of their scores: that of the task's
        primary score where it is beyond its error, else that of another score that is so beyond a correction for their
        number; scores that contradict each other decide nothing. Without held-out rows a difference of leave-one-out
        densities counts as clear if it is at least 4 nats and more than two standard errors. A leave-one-out density
        that cannot be trusted ranks nothing.

    Raises:
        DataError: If there are no fits, or they were made on different data, or for
            different tasks.

    References:
        Sivula, Magnusson, Matamoros, Vehtari (2020), arXiv:2008.10296: below 4 nats, for misspecified models and with
        few rows the standard error is too small.
    """
    named = dict(posteriors) if isinstance(posteriors, Mapping) else _named(posteriors)
    if not named:
        raise DataError("there is nothing to compare; pass at least one posterior")
    first = next(iter(named.values())).data
    _refuse_other_data(named)
    split, held = _held(next(iter(named.values())))
    densities: dict[str, Loo] = {}
    replicates: dict[str, dict[str, NDArray[np.float64]]] = {}
    fits: dict[str, Fit] = {}
    for label, posterior in named.items():
        why, bad, elpd = "", math.nan, None
        try:
            loo = leave_one_out(posterior, num_draws=num_draws, seed=seed)
        except NotApplicable as reason:
            why = str(reason)
        else:
            bad = float((loo.pareto_k > khat_threshold(loo.draws)).mean())
            if bad <= max(_MOST_BAD, 1 / len(loo.pareto_k)):
                unit = loo.num_data * math.log(target_unit(posterior))  # in the unit of the scores
                densities[label], elpd = loo, Estimate(loo.total - unit, loo.se)
            else:
                why = f"it is unreliable in {bad:.1%} of the rows (Pareto k too large)"
        scores, replicates[label] = _scores(posterior, held, num_draws, seed)
        own = posterior.diagnosis.verdict if posterior.diagnosis is not None else None
        fits[label] = Fit(
            label=label,
            method=posterior.name,
            title=posterior.method.title if posterior.method else posterior.name,
            engine=posterior.engine,
            elpd=elpd,
            bad_k=bad,
            why=why,
            scores=scores,
            verdict=own if verdicts is None else verdicts.get(label, own),
            seconds=posterior.seconds,
            peak_memory=posterior.info.get("peak_memory"),
            parameters=posterior.num_parameters,
            latents=posterior.num_latents,
            hyper={} if posterior.hyper is None else dataclasses.asdict(posterior.hyper),
        )
    primary, sign = _primary(next(iter(named.values())))
    by, signs = _deciding(fits, replicates, primary, sign)
    ordered = sorted(fits.values(), key=lambda fit: _rank(fit, by, signs.get(by, 1.0)))
    best = ordered[0].label
    done = []
    for fit in ordered:
        if fit.label in densities and best in densities:
            fit = dataclasses.replace(fit, difference=_difference(densities[fit.label], densities[best]))
        done.append(dataclasses.replace(fit, gaps=_gaps(fits[best], fit, replicates)))
    kept = {label: _reliable(densities, label, best) for label in densities if best in densities}
    better, finding, cautions = _conclude(done, by, primary, signs, split, replicates, kept)
    return Comparison(
        data=first.name,
        rows=first.num_data,
        split=split,
        held_out=0 if held is None else len(held["index"]) if "index" in held else 1,
        fits=tuple(done),
        better=better,
        finding=finding,
        cautions=cautions,
    )


def jackknife(
    function: Callable[[torch.Tensor], Mapping[str, float]], rows: int, *, groups: int = _GROUPS, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    r"""Evaluate a statistic of rows with each of some groups of rows left out.

    From the values :math:`t_g` without group :math:`g` of :math:`G` follows the standard error
    :math:`\sqrt{\frac{G - 1}{G} \sum_g (t_g - \bar t)^2}`; with as many groups as rows, that of a mean is the usual
    one. The same groups for two statistics give that of their difference.

    Args:
        function: Positions of the rows kept, ``(k,)`` -> statistics by name.
        rows: Number of rows.
        groups: Groups; at most ``rows``.
        seed: Of the random groups.

    Returns:
        Name -> ``(groups,)``, NaN where a statistic does not exist without a group.

    References:
        Efron, Stein (1981), Annals of Statistics 9(3), eq. 1.3.
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    found: list[Mapping[str, float]] = []
    for out in torch.tensor_split(order, min(groups, rows)):
        keep = torch.ones(rows, dtype=torch.bool)
        keep[out] = False
        found.append(function(keep.nonzero().squeeze(1)))
    names = dict.fromkeys(name for one in found for name in one)
    return {name: np.array([one.get(name, math.nan) for one in found]) for name in names}


def standard_error(replicates: NDArray[np.float64]) -> float:
    """Return the standard error that follows from values without a group of rows each.

    Args:
        replicates: What :func:`jackknife` returned for a statistic, or the difference of two of them, ``(groups,)``.

    Returns:
        The standard error; NaN for fewer than two groups, or where a value is missing.
    """
    count = len(replicates)
    if count < 2 or not np.isfinite(replicates).all():
        return math.nan
    return math.sqrt((count - 1) / count * float(((replicates - replicates.mean()) ** 2).sum()))


def _difference(loo: Loo, best: Loo) -> Estimate:
    gap = loo.elpd - best.elpd
    share = loo.num_data / len(loo.elpd)
    error = math.sqrt(loo.num_data * float(np.var(gap, ddof=1)) * share)
    return Estimate(float(gap.sum() * share), error)


def _reliable(densities: Mapping[str, Loo], label: str, best: str) -> Estimate | None:
    """Return the difference over the rows in which both densities are reliable; ``None`` if those are all rows."""
    loo, first = densities[label], densities[best]
    good = np.maximum(loo.pareto_k, first.pareto_k) <= khat_threshold(min(loo.draws, first.draws))
    if good.all() or good.sum() < 2:
        return None
    few = [dataclasses.replace(one, elpd=one.elpd[good]) for one in (loo, first)]
    return _difference(*few)


def _gaps(best: Fit, fit: Fit, replicates: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> dict[str, Estimate]:
    """Return the differences of the scores that two fits share, paired over the rows."""
    return {
        k: Estimate(
            fit.scores[k].value - best.scores[k].value,
            standard_error(replicates[fit.label][k] - replicates[best.label][k]),
        )
        for k in fit.scores
        if k in best.scores
    }


def _deciding(
    fits: Mapping[str, Fit], replicates: Mapping[str, Mapping[str, NDArray[np.float64]]], primary: str, sign: float
) -> tuple[str, dict[str, float]]:
    """Return the score that ranks the fits, empty if none can, and which way each score is better.

    That is the task's own score, unless it cannot tell the best two apart and another one can.
    """
    signs = dict.fromkeys(_LOWER, 1.0) | dict.fromkeys(_HIGHER, -1.0) | {primary: sign}
    shared = [n for n in signs if all(n in f.scores and math.isfinite(f.scores[n].value) for f in fits.values())]
    if primary not in shared:
        return "", signs
    if len(fits) > 1:
        one, other = sorted(fits.values(), key=lambda f: sign * f.scores[primary].value)[:2]
        gaps = _gaps(one, other, replicates)
        if not _beyond(gaps[primary], replicates[one.label][primary]):
            sizes = {
                n: abs(gaps[n].value) / gaps[n].se
                for n in shared
                if _beyond(gaps[n], replicates[one.label][n], tests=len(shared))
            }
            if sizes:
                return max(sizes, key=lambda n: sizes[n]), signs
    return primary, signs


def _beyond(gap: Estimate, replicates: NDArray[np.float64], *, tests: int = 1) -> bool:
    """Return whether a paired difference is beyond its error at 95%, of as many tests together."""
    from scipy.stats import t

    if not (math.isfinite(gap.value) and math.isfinite(gap.se)) or len(replicates) < 2:
        return False
    limit = float(t.ppf(1 - 0.025 / tests, len(replicates) - 1))
    return abs(gap.value) > limit * gap.se and gap.value != 0


def _rank(fit: Fit, by: str, sign: float) -> tuple[bool, float]:
    """Order by a score of held-out rows or, where there is none, by leave-one-out density; what is missing is last."""
    found = fit.scores.get(by) if by else fit.elpd
    if found is None or math.isnan(found.value):
        return True, 0.0
    return False, sign * found.value if by else -found.value


def _conclude(
    fits: Sequence[Fit],
    by: str,
    primary: str,
    signs: Mapping[str, float],
    split: str,
    replicates: Mapping[str, Mapping[str, NDArray[np.float64]]],
    kept: Mapping[str, Estimate | None],
) -> tuple[Literal["clear", "unclear", "unknown"], str, tuple[str, ...]]:
    """Say whether the first fit predicts better than the second."""
    cautions = [f"The report of {fit.label} says '{fit.verdict}'." for fit in fits if fit.verdict == "do not use"]
    cautions += [f"{fit.label} was not checked: write its report." for fit in fits if fit.verdict is None]
    cautions += [f"Leave-one-out of {fit.label} is not examined: {fit.why}." for fit in fits if fit.why]
    if len(fits) < 2:
        return "unknown", f"{fits[0].label} stands alone: there is nothing to compare it with.", tuple(cautions)
    best, second = fits[:2]
    if by:
        better, finding, more = _by_scores(best, second, by, primary, signs, split, replicates)
        return better, finding, (*cautions, *more)
    gap = second.difference
    if gap is None or best.elpd is None:
        return (
            "unknown",
            "Not examined: no rows were held out that all fits predict, and leave-one-out cannot be trusted for "
            f"{' and '.join(f.label for f in (best, second) if f.elpd is None) or 'them'}. Fit to data with a test "
            "split (a table of your own gets one), or compare the densities of refits that `zoo report DIR --full` "
            "makes.",
            tuple(cautions),
        )
    cautions += [
        f"Of {fit.label}, the leave-one-out density of {fit.bad_k:.1%} of the rows is unreliable (Pareto k too large)."
        for fit in (best, second)
        if fit.bad_k > 0
    ]
    better, finding = _by_densities(best, second, gap, kept.get(second.label))
    return better, finding, tuple(cautions)


def _by_scores(
    best: Fit,
    second: Fit,
    by: str,
    primary: str,
    signs: Mapping[str, float],
    split: str,
    replicates: Mapping[str, Mapping[str, NDArray[np.float64]]],
) -> tuple[Literal["clear", "unclear", "unknown"], str, list[str]]:
    """Conclude from the paired differences of scores on held-out rows."""
    reps = replicates[best.label]
    ranked = {n: g for n, g in second.gaps.items() if n in signs and math.isfinite(g.value)}
    gap = ranked[by]
    size = f"{abs(gap.value):.4g}, standard error {gap.se:.2g}"
    clear = _beyond(gap, reps[by], tests=1 if by == primary else len(ranked))
    others = [n for n in ranked if n != by]
    # Several scores are looked at for a contradiction, so each has to be surer.
    against = [
        n for n in others if signs[n] * ranked[n].value < 0 and _beyond(ranked[n], reps[n], tests=max(len(others), 1))
    ]
    cautions = []
    gap_loo = second.difference
    if gap_loo is not None and gap_loo.value > max(_SMALL, 2 * gap_loo.se):
        cautions.append(
            f"Leave-one-out of the fitted rows says the contrary, by {gap_loo.value:.1f} nats (standard error "
            f"{gap_loo.se:.1f}); the {split} rows are the ones that were not fitted."
        )
    if not clear:
        return (
            "unclear",
            f"{best.label} and {second.label} cannot be told apart on the {split} rows: their {_named_score(by)} "
            f"differs by {size}, and no other score decides.",
            cautions,
        )
    if against:
        listed = "; ".join(
            f"by {_named_score(n)} {second.label} is better ({abs(ranked[n].value):.4g}, standard error "
            f"{ranked[n].se:.2g})"
            for n in against
        )
        return (
            "unclear",
            f"The scores of the {split} rows disagree: by {_named_score(by)} {best.label} is better ({size}); "
            f"{listed}.",
            cautions,
        )
    return (
        "clear",
        f"{best.label} predicts the {split} rows better than {second.label}: the difference of {_named_score(by)} is "
        f"{size}.",
        cautions,
    )


def _named_score(name: str) -> str:
    return name.replace("_", " ")


def _by_densities(
    best: Fit, second: Fit, gap: Estimate, kept: Estimate | None
) -> tuple[Literal["clear", "unclear"], str]:
    """Conclude from leave-one-out densities; where some rows are unreliable, the others must say the same."""
    size = f"{-gap.value:.1f} nats, standard error {gap.se:.1f}"
    if -gap.value < _SMALL:
        return (
            "unclear",
            f"{best.label} and {second.label} predict about equally well: their leave-one-out densities differ by "
            f"{size}, and less than {_SMALL:g} nats is a small difference.",
        )
    if not -gap.value > 2 * gap.se:
        return (
            "unclear",
            f"{best.label} and {second.label} cannot be told apart by these data: their leave-one-out densities "
            f"differ by {size}, which is within two standard errors.",
        )
    if kept is not None and not -kept.value > max(_SMALL, 2 * kept.se):
        return (
            "unclear",
            f"{best.label} and {second.label} cannot be told apart: their leave-one-out densities differ by {size}, "
            f"but by {-kept.value:.1f} (standard error {kept.se:.1f}) in the rows where they are reliable.",
        )
    return "clear", f"{best.label} predicts better than {second.label}: its leave-one-out density is larger by {size}."


def _refuse_other_data(named: Mapping[str, Posterior]) -> None:
    from zoo.datasets import fingerprint
    from zoo.tasks import of

    label, first = next((label, posterior.data) for label, posterior in named.items())
    mark = fingerprint(first)
    asked = of(named[label].method, first)
    for other, posterior in named.items():
        data = posterior.data
        task = of(posterior.method, data)
        if asked is not None and task is not None and asked.target != task.target:
            raise DataError(
                f"'{other}' predicts '{task.target}' ({task.name}) and '{label}' predicts '{asked.target}' "
                f"({asked.name}); only fits that predict the same can be compared"
            )
        if data is first:
            continue
        if data.name != first.name or data.num_data != first.num_data:
            raise DataError(
                f"'{other}' was fitted to '{data.name}' ({data.num_data} rows), others to '{first.name}' "
                f"({first.num_data} rows); only fits to the same data can be compared"
            )
        if fingerprint(data) != mark:
            raise DataError(
                f"'{other}' and '{label}' were fitted to data sets '{first.name}' of different content; only fits to "
                "the same data can be compared"
            )


def _named(posteriors: Sequence[Posterior]) -> dict[str, Posterior]:
    """Name fits after their methods, with engine and number where that is not enough."""
    labels = [p.name for p in posteriors]
    if len(set(labels)) < len(labels):
        labels = [f"{p.name} ({p.engine})" for p in posteriors]
    if len(set(labels)) < len(labels):
        labels = [f"{label} {i}" for i, label in enumerate(labels)]
    return dict(zip(labels, posteriors, strict=True))


def _held(posterior: Posterior) -> tuple[str, Batch | None]:
    data = posterior.data
    for split in ("test", "validation"):
        batch: Batch | None = getattr(data, split)
        if batch is not None:
            return split, batch
    return "", None


def _primary(posterior: Posterior) -> tuple[str, float]:
    from zoo.tasks import of

    found = of(posterior.method, posterior.data)
    if found is None:
        return "", 1.0
    return found.primary, 1.0 if found.direction == "min" else -1.0


def _scores(
    posterior: Posterior, held: Batch | None, num_draws: int, seed: int
) -> tuple[dict[str, Estimate], dict[str, NDArray[np.float64]]]:
    """Score the held-out rows as the task does; empty where there are none."""
    from zoo.tasks import of

    task = of(posterior.method, posterior.data)
    if held is None or task is None:
        return {}, {}
    count = min(num_draws, max(100, affordable(posterior, num_draws)))
    prediction = posterior.predict(held, count, seed=seed, kinds=task.reads)
    values = task.score(prediction, held, posterior.data)
    rows = len(held["index"]) if "index" in held else 1
    if rows < 2:
        return {k: Estimate(v) for k, v in values.items()}, {k: np.full(1, math.nan) for k in values}

    def some(keep: torch.Tensor) -> Mapping[str, float]:
        return task.score(_kept(prediction, keep, rows), take_rows(posterior.data, held, keep), posterior.data)

    replicates = jackknife(some, rows, seed=seed)
    nothing = np.full(1, math.nan)
    replicates = {k: replicates.get(k, nothing) for k in values}
    return {k: Estimate(v, standard_error(replicates[k])) for k, v in values.items()}, replicates


def _kept(prediction: Prediction, keep: torch.Tensor, rows: int) -> Prediction:
    """Return the prediction of some rows."""
    return Prediction(
        *(
            {
                site: value[:, keep.to(value.device)] if value.ndim > 1 and value.shape[1] == rows else value
                for site, value in getattr(prediction, kind.name).items()
            }
            for kind in dataclasses.fields(Prediction)
        )
    )
