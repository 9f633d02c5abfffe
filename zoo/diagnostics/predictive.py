"""Checks of what a fit says about data: replicated data, held-out rows, leave-one-out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoo.diagnostics.adapter import Site, _log_prob, _trace, evaluate, sites, take_rows
from zoo.diagnostics.check import Check, NotApplicable, Verdict
from zoo.diagnostics.inference import _array, affordable, khat_threshold
from zoo.diagnostics.psis import psis
from zoo.inference.marginal import amortised, marginal_log_likelihood
from zoo.inference.predictive import given_draws
from zoo.inference.sites import innermost, observed_value, traces
from zoo.tasks import Task, of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = [
    "HeldOut",
    "Loo",
    "calibration",
    "expected_calibration_error",
    "held_out",
    "leave_one_out",
    "loo",
    "out_of_distribution",
    "predictive_check",
    "prior_predictive_check",
    "risk_coverage",
    "scores",
    "selective_prediction",
]

_MOST_ROWS = 2_000
_FEW_ROWS = 500  # of a large model, where all its latents are drawn anew for every replicate
_MOST_CELLS = 20_000_000  # of all replicated data sets together
_EXTREMES = ("smallest", "largest")
_SMALL_GAP = 0.02  # share of rows by which intervals may be off, and of a score, whatever the number of rows tells
_MOST_VALUES = 5_000  # values of one replicated data set kept for its figure


# --------------------------------------------------------------------------------------------------------- shared
def _subset(posterior: Posterior, batch: Batch, most: int, seed: int) -> Batch:
    """Return at most ``most`` random rows of a batch; a batch of a single datum as it is."""
    index = batch.get("index")
    if index is None or len(index) <= most:
        return batch
    rows = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return take_rows(posterior.data, batch, rows)


def _observed(posterior: Posterior, batch: Batch) -> tuple[dict[str, Site], dict[str, Any]]:
    """Return the observed sites of a batch and their trace nodes."""
    from zoo.inference.program import seeded, stream

    draw = {k: v[0] for k, v in posterior.draws(1, batch=batch).items()}
    known = {n: s for n, s in sites(posterior, batch, draw).items() if s.kind == "observed"}
    with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)):
        nodes = _trace(posterior.pair.model, batch, draw).nodes
        return known, {n: {**nodes[n], "value": observed_value(nodes[n])} for n in known}


def _codes(node: Any) -> tuple[NDArray[np.int64], int] | None:
    """Return class codes and the number of classes of a Bernoulli or categorical site, else ``None``."""
    fn = innermost(node["fn"])
    value = node["value"].detach().cpu()
    if isinstance(fn, torch.distributions.OneHotCategorical):
        return value.argmax(-1).numpy(), value.shape[-1]
    if isinstance(fn, torch.distributions.Categorical):
        return value.long().numpy(), int(fn.param_shape[-1])
    if isinstance(fn, torch.distributions.Bernoulli):
        return value.long().numpy(), 2
    return None


# ----------------------------------------------------------------------------------------------- replicated data
def predictive_check(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    r"""Compare statistics of the observed data with those of data replicated from the fitted model.

    For numbers: mean, standard deviation, smallest and largest value, with two-sided p-values
    :math:`2 \min(\Pr[T(y^*) \ge T(y)], \Pr[T(y^*) \le T(y)])`, ties halved. For classes: Pearson's distance between the
    class counts and their mean over replicates, with the p-value :math:`\Pr[T(y^*) \ge T(y)]`. One p-value
    decides: that of the statistic that deviates most, among the most deviating ones of the replicates.

    Args:
        posterior: A fit.
        num_draws: Replicated data sets; a large model makes fewer.
        seed: Of the replicates.

    Returns:
        The check.

    Raises:
        NotApplicable: If nothing is observed.

    References:
        Gelman, Meng, Stern (1996), Statistica Sinica 6; Bayarri, Berger (2000), JASA 95, on why such p-values are
        conservative.
    """
    batch = _subset(posterior, posterior._prepare(None), _MOST_ROWS, seed)
    known, nodes = _observed(posterior, batch)
    if not known:
        raise NotApplicable("the model observes no data")
    rows = len(batch["index"]) if "index" in batch else 1
    count = affordable(posterior, num_draws, least=100, rows=rows)
    cells = count * sum(site.size for site in known.values())
    if cells > _MOST_CELLS and rows > 1:  # images, say
        batch = _subset(posterior, batch, max(1, rows * _MOST_CELLS // cells), seed)
        known, nodes = _observed(posterior, batch)
    draws = posterior.draws(count, batch=batch, seed=seed)
    replicated = evaluate(posterior, batch, draws, seed=seed).predictive
    found = _compared(known, nodes, replicated)
    worst, least = found.worst, found.joint
    # A model that has centre, spread and frequencies right may still miss the extremes, which most uses never meet.
    deep = found.central < 0.01
    verdict: Verdict = "fail" if least < 0.01 and deep else "warn" if least < 0.05 else "pass"
    few = len(found.p_values) <= 8
    words = (
        f"Data replicated from the fit differ from the observed data in the {worst}: the model does not describe it."
        if deep or not worst.endswith(_EXTREMES)
        else f"Data replicated from the fit do not have such a {worst} value as the observed data: the model describes "
        f"centre and spread, but {'the data go' if found.beyond < 0.05 else 'goes'} further out"
        f"{'' if found.beyond < 0.05 else ' than the data'}; do not use it for extremes."
    )
    return Check(
        name="predictive_check",
        title="Does the fitted model reproduce the data?",
        about="predictions",
        verdict=verdict,
        value={
            "joint p-value": least,
            "without extremes": found.central,
            "beyond the largest or smallest": found.beyond,
        }
        | ({"p-values": found.p_values} if few else {"smallest p-value": found.p_values[worst], "of": worst}),
        p_value=least,
        threshold="p-value of the most deviating statistic among as many: warn below 0.05, fail below 0.01 where "
        "that of mean, standard deviation and class frequencies alone is, too",
        source="Gelman, Meng, Stern (1996), Statistica Sinica 6; Bonferroni; p-values are conservative because the "
        "same "
        "data were fitted (Bayarri, Berger 2000)",
        explanation="Data replicated from the fit look like the observed data in every statistic tried."
        if verdict == "pass"
        else words,
        figure="ppc" if found.data else "",
        data=found.data,
    )


def prior_predictive_check(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    r"""Compare statistics of the observed data with those of data simulated from the prior.

    The statistics are those of :func:`predictive_check`. Data that are more extreme than the prior expects (a mean too
    far to either side, a spread or largest value too large, a smallest value too small) contradict it; a prior that
    expects far more varied data than there are is vague, which is said, but no conflict.

    Args:
        posterior: A fit.
        num_draws: Simulated data sets; a large model makes fewer.
        seed: Of the simulation.

    Returns:
        The check. It never fails: a prior may be overruled by the data, but one should know.

    Raises:
        NotApplicable: If nothing is observed, or the model has no fixed prior that can be sampled.

    References:
        Box (1980), JRSS A 143; Gabry, Simpson, Vehtari, Betancourt, Gelman (2019), JRSS A 182, sec. 3.
    """
    large = affordable(posterior, num_draws) < num_draws
    batch = _subset(posterior, posterior._prepare(None), _FEW_ROWS if large else _MOST_ROWS, seed)
    known, nodes = _observed(posterior, batch)
    if not known:
        raise NotApplicable("the model observes no data")
    model = posterior.pair.model
    first = {k: v[0] for k, v in posterior.draws(1, batch=batch).items()}
    with posterior.runs.bound():
        trace = _trace(model, batch, first)
    if trace.param_nodes:
        raise NotApplicable(f"the model itself has trained parameters ('{trace.param_nodes[0]}'), so no fixed prior")
    if any(s.kind == "factor" for s in sites(posterior, batch, first).values()):
        raise NotApplicable("a factor changes the prior's density, but not what the model simulates")
    rows = len(batch["index"]) if "index" in batch else 1
    count = affordable(posterior, num_draws, least=100, rows=rows)

    def simulate(_: dict[str, Tensor]) -> dict[str, Tensor]:
        simulated = _trace(model, batch, {}, observed=False).nodes
        return {n: simulated[n]["value"] for n in known}

    try:
        replicated = posterior.runs.map(simulate, count, seed=seed)
    except NotImplementedError as error:
        raise NotApplicable(f"the prior cannot be sampled ({error})") from error
    found = _compared(known, nodes, replicated, outward=True)
    worst, least = found.worst, found.joint
    vague = [name for name, p in found.inward.items() if p * len(found.p_values) < 0.05]
    verdict: Verdict = "warn" if least < 0.05 else "pass"
    if verdict == "warn":
        words = (
            f"The prior hardly expects data with such a {worst}: prior and data disagree, or the model is wrong; widen "
            "the prior, or check the data's units."
        )
    elif vague:
        words = (
            f"The data lie within what the prior expects; it expects far more varied data ({', '.join(vague)}), so it "
            "is "
            "vague."
        )
    else:
        words = "The data look like data that the prior expects."
    return Check(
        name="prior_predictive_check",
        title="Does the prior expect such data?",
        about="parameters",
        verdict=verdict,
        value={
            "joint p-value": least,
            "of": worst,
            "p-value": found.p_values[worst],
            "statistics": len(found.p_values),
        },
        p_value=least,
        threshold="smallest p-value of data more extreme than the prior's, times the number of statistics: warn below "
        "0.05",
        source="Box (1980), JRSS A 143; Gabry et al. (2019), JRSS A 182",
        explanation=words,
        figure="prior_ppc" if found.data else "",
        data=found.data,
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """Statistics of observed against replicated data: their p-values, one of all together, one without the extremes."""

    p_values: dict[str, float]
    inward: dict[str, float]
    joint: float
    central: float
    beyond: float
    worst: str
    data: dict[str, NDArray[Any]]


def _deviations(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return how far each value lies from the median, in lengths of the 90% interval's half on its side.

    Args:
        values: Of one statistic, the observed one first.
        side: Count only values above (1), below (-1) or both (0).

    Returns:
        Deviations, the same rule for every value, so that they are exchangeable where the data are.
    """
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    spread = max(float(values.std()), 1e-300)
    above = (values - middle) / (high - middle if high > middle else spread)
    below = (middle - values) / (middle - low if middle > low else spread)
    return np.asarray(above if side > 0 else below if side < 0 else np.maximum(above, below))


def _compared(
    known: dict[str, Site], nodes: dict[str, Any], replicated: Mapping[str, Tensor], *, outward: bool = False
) -> _Compared:
    """Compare statistics; ``outward`` counts only data more extreme than the replicates against them."""
    p_values: dict[str, float] = {}
    inward: dict[str, float] = {}
    far: dict[str, NDArray[np.float64]] = {}
    beyond = 1.0
    data: dict[str, NDArray[Any]] = {}
    for name, site in known.items():
        node, new = nodes[name], replicated[name].detach().cpu()
        prefix = f"{name}: " if len(known) > 1 else ""
        classes = _codes(node)
        seen = _array(node["value"])
        fresh = np.asarray(new.to(torch.float64))
        mask = node["mask"]
        keep = np.isfinite(seen)
        if isinstance(mask, Tensor):
            event = site.shape[site.batch_ndim :]
            wide = mask.detach().cpu().reshape(*mask.shape, *[1] * len(event)).expand(site.shape)
            keep &= wide.numpy()
        if classes is not None and site.size == classes[0].size * (seen.size // max(classes[0].size, 1)):
            codes, num = classes
            fresh_codes = fresh.argmax(-1) if codes.ndim < seen.ndim else fresh
            valid = keep.any(-1) if codes.ndim < seen.ndim else keep
            seen, fresh = codes[valid].astype(float), fresh_codes[:, valid].astype(float)
            distances = _class_frequencies(seen, fresh, num)
            p_values[prefix + "class frequencies"] = _upper(float(distances[0]), distances[1:])
            far[prefix + "class frequencies"] = _deviations(distances, 1)
        else:
            seen, fresh = seen[keep], fresh[:, keep]
            if not seen.size:
                continue
            statistics = {"mean": np.mean, "sd": np.std, "smallest": np.min, "largest": np.max}
            for label, function in statistics.items():
                if label != "mean" and seen.size < 2:
                    continue
                values = np.concatenate([[float(function(seen))], function(fresh, axis=1)])  # type: ignore[operator]
                low, high = _tails(float(values[0]), values[1:])
                side = {"sd": 1, "smallest": -1, "largest": 1}.get(label, 0) if outward else 0
                far[prefix + label] = _deviations(values, side)
                both = min(1.0, 2 * min(low, high))
                if label in _EXTREMES:  # further out than replicates, on either side
                    beyond = min(beyond, 2 * (low if label == "smallest" else high))
                if not outward or label == "mean":
                    p_values[prefix + label] = both
                else:
                    outer, inner = (low, high) if label == "smallest" else (high, low)
                    p_values[prefix + label], inward[prefix + label] = outer, inner
        if "observed" not in data:
            step = max(1, seen.size // _MOST_VALUES)
            data = {
                "observed": seen[::step],
                "replicated": fresh[:100, ::step],
                "discrete": np.array(classes is not None),
            }
    if not p_values:
        raise NotApplicable("every observed value is masked")
    together = np.stack(list(far.values())).max(0)
    central = np.stack([v for k, v in far.items() if not k.endswith(_EXTREMES)]).max(0)
    worst = max(far, key=lambda k: far[k][0])
    joint, inner = (_upper(float(v[0]), v[1:]) for v in (together, central))
    return _Compared(p_values, inward, joint, inner, beyond, worst, data)


def _class_frequencies(observed: NDArray[np.float64], replicated: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """Return Pearson's distance of class counts from their mean, of the observed data and of every replicate."""
    classes = np.arange(num)
    counts = (np.concatenate([observed[None], replicated])[:, :, None] == classes).sum(1)
    expected = counts.mean(0)
    distance: NDArray[np.float64] = ((counts - expected) ** 2 / (expected + 0.5)).sum(-1)
    return distance


def _tails(observed: float, replicated: NDArray[np.float64]) -> tuple[float, float]:
    """Return the shares of replicates at or below and at or above, ties halved, neither zero."""
    count = len(replicated)
    close = np.isclose(replicated, observed, rtol=1e-9, atol=0)
    above = float(((replicated > observed) & ~close).sum() + 0.5 * close.sum())
    return (count - above + 0.5) / (count + 1), (above + 0.5) / (count + 1)


def _two_sided(observed: float, replicated: NDArray[np.float64]) -> float:
    """Return the two-sided p-value, ties halved, never below one over the number of replicates."""
    return min(1.0, 2 * min(_tails(observed, replicated)))


def _upper(observed: float, replicated: NDArray[np.float64]) -> float:
    """Return the share of replicates at or above, the observed one counted among them."""
    return float(((replicated >= observed - 1e-12 * abs(observed)).sum() + 1) / (len(replicated) + 1))


# ----------------------------------------------------------------------------------------------------- calibration
def expected_calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[Any], *, bins: int = 15
) -> NDArray[np.float64]:
    r"""Return the expected calibration error of top-label confidences, for one or many vectors of outcomes.

    .. math:: \sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|

    Args:
        confidence: Probability of the most probable class, ``(rows,)``.
        correct: Whether it was right, ``(..., rows)``.
        bins: Bins of equal width.

    Returns:
        ``(...)``.

    References:
        Guo et al. (2017), On calibration of modern neural networks, arXiv:1706.04599, eq. 3.
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    one_hot = (which[:, None] == np.arange(bins)).astype(float)
    gaps = (np.asarray(correct, dtype=float) - confidence) @ one_hot
    error: NDArray[np.float64] = np.abs(gaps).sum(-1) / len(confidence)
    return error


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What a fit predicts for held-out rows, and what was observed there.

    Args:
        split: Which rows.
        site: Observed site that is predicted.
        truth: Class codes or numbers, ``(rows,)``.
        probs: Class probabilities in each draw, ``(draw, row, class)``; ``None`` for numbers.
        samples: Predictive samples of numbers, ``(draw, row)``; ``None`` for classes.
        log_prob: Log density of the truth in each draw, ``(draw, row)``, where it is known.
        labels: Data replicated from the draws, classes or numbers, ``(replicate, row)``. All rows of a replicate share
            one draw, as the rows that were observed share one truth.
    """

    split: str
    site: str
    truth: NDArray[Any]
    probs: NDArray[np.float64] | None
    samples: NDArray[np.float64] | None
    log_prob: NDArray[np.float64] | None
    labels: NDArray[Any]


def held_out(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> HeldOut:
    """Predict the test rows, or the validation rows where there are none.

    Args:
        posterior: A fit on a data set with a test or validation split.
        num_draws: Posterior draws; a large model takes fewer.
        seed: Of draws and replicated data.

    Returns:
        The prediction with the truth.

    Raises:
        NotApplicable: If there are no held-out targets, or no probabilities or numbers.
    """
    split = "test" if posterior.data.test is not None else "validation"
    held: Batch | None = getattr(posterior.data, split)
    if held is None:
        raise NotApplicable("the data set has no held-out rows; calibration on the fitted rows would flatter the fit")
    held = _subset(posterior, posterior._prepare(held), _MOST_ROWS, seed)
    known, nodes = _observed(posterior, held)
    name = _target_site(posterior, known)
    node = nodes[name]
    classes = _codes(node)
    shape = tuple(node["value"].shape)
    if classes is not None and classes[0].ndim != 1:
        raise NotApplicable(f"site '{name}' states no class probabilities per row")
    if classes is None and len(shape) != 1:
        raise NotApplicable(f"site '{name}' has shape {shape}; intervals are checked for one number per row")
    count = affordable(posterior, num_draws, least=100, rows=_MOST_ROWS)
    prediction = posterior.predict(held, count, seed=seed)
    density = prediction.log_prob.get(name)
    log_prob = None if density is None else _array(density)
    if classes is not None:
        probs = _class_probs(prediction, name, classes[1])
        if probs is None or probs.ndim != 3:
            raise NotApplicable(f"site '{name}' states no class probabilities per row")
        labels = _label_sets(probs, seed)
        return HeldOut(
            split=split, site=name, truth=classes[0], probs=probs, samples=None, log_prob=log_prob, labels=labels
        )
    samples, truth = _array(prediction.samples[name]), _array(node["value"])
    return HeldOut(split=split, site=name, truth=truth, probs=None, samples=samples, log_prob=log_prob, labels=samples)


def _class_probs(prediction: Any, name: str, classes: int) -> NDArray[np.float64] | None:
    if prediction.probs.get(name) is not None:
        return _array(prediction.probs[name])
    if name in prediction.means and classes == 2:
        one = _array(prediction.means[name])
        return np.stack([1 - one, one], -1)
    return None


def _label_sets(probs: NDArray[np.float64], seed: int, most: int = 1_000) -> NDArray[np.int64]:
    """Draw labels of all rows jointly, each set from the probabilities of one posterior draw."""
    rng = np.random.default_rng(seed)
    upper = np.cumsum(probs, -1)[..., :-1]
    return np.stack([(rng.random((probs.shape[1], 1)) > upper[i % len(upper)]).sum(-1) for i in range(most)])


def calibration(posterior: Posterior, *, held: HeldOut | None = None, num_draws: int = 1_000, seed: int = 0) -> Check:
    """Check on held-out rows that stated probabilities and intervals come true as often as they say.

    Classes: the expected calibration error; its estimate is biased upwards, by more for fewer rows, so it is compared
    with that of labels drawn from the prediction. Numbers: the share of rows within central intervals, likewise. All
    rows of a replicate share one posterior draw, so that what rows have in common does not look like an error.

    Args:
        posterior: A fit on a data set with a test or validation split.
        held: Prediction to share with other checks; made if ``None``.
        num_draws: Posterior draws of the prediction; a large model takes fewer.
        seed: Of draws and of labels under perfect calibration.

    Returns:
        The check.

    Raises:
        NotApplicable: If there are no held-out targets, or no probabilities or numbers to calibrate.

    References:
        Guo et al. (2017), arXiv:1706.04599, eq. 3; Bröcker, Smith (2007), Weather and Forecasting 22, for consistency
        resampling; Gneiting, Balabdaoui, Raftery (2007), JRSS B 69, for coverage.
    """
    held = held or held_out(posterior, num_draws=num_draws, seed=seed)
    if held.probs is not None:
        return _classes(held)
    return _coverage(held)


def _target_site(posterior: Posterior, known: dict[str, Site]) -> str:
    task = of(posterior.method, posterior.data)
    if task is not None and task.site in known:
        return task.site
    if len(known) == 1:
        return next(iter(known))
    raise NotApplicable(
        "nothing is observed on the held-out rows" if not known else f"several sites are observed: {', '.join(known)}"
    )


def _classes(held: HeldOut) -> Check:
    assert held.probs is not None
    probs, labels = np.asarray(held.probs.mean(0)), held.truth
    confidence, guess = probs.max(-1), probs.argmax(-1)
    correct = guess == labels
    error = float(expected_calibration_error(confidence, correct))
    noise = expected_calibration_error(confidence, held.labels == guess)
    typical, some, much = float(noise.mean()), float(np.quantile(noise, 0.95)), float(np.quantile(noise, 0.99))
    p_value = _upper(error, noise)
    verdict: Verdict = "fail" if p_value < 0.01 and error - typical > 0.05 else "warn" if p_value < 0.05 else "pass"
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    used = np.unique(bins)
    over = float(confidence.mean() - correct.mean())
    return Check(
        name="calibration",
        title="Do stated probabilities come true?",
        about="predictions",
        verdict=verdict,
        value={
            "calibration error": error,
            "under perfect calibration": typical,
            "its 95% quantile": some,
            "accuracy": float(correct.mean()),
            "p-value": p_value,
            "rows": len(labels),
        },
        threshold=f"expected calibration error: warn above {some:.4f} (95% quantile under perfect calibration), fail "
        f"above {much:.4f} (99%) if it exceeds the mean under perfect calibration by more than 0.05",
        p_value=p_value,
        source="Guo et al. (2017), arXiv:1706.04599, eq. 3; noise level: Bröcker, Smith (2007), Weather and "
        "Forecasting 22; 0.05: ours",
        explanation=f"On the {held.split} rows, classes occur as often as the predictions say."
        if verdict == "pass"
        else f"On the {held.split} rows, predictions are {'too confident' if over > 0 else 'not confident enough'}: "
        "the "
        f"stated confidence is {confidence.mean():.3f} on average, the accuracy {correct.mean():.3f}.",
        figure="reliability",
        data={
            "predicted": np.array([confidence[bins == b].mean() for b in used]),
            "observed": np.array([correct[bins == b].mean() for b in used]),
            "counts": np.array([(bins == b).sum() for b in used]),
            "noise": noise,
        },
    )


def _coverage(held: HeldOut) -> Check:
    assert held.samples is not None
    samples, truth = held.samples, held.truth
    levels = np.array([0.5, 0.8, 0.95])
    rows, draws = len(truth), len(samples)
    # Where the truth stands among the samples, and where each sample stands among all of them.
    low, equal = (samples < truth).sum(0), (samples == truth).sum(0)
    own = np.abs((low + 0.5 * (equal + 1)) / (draws + 1) - 0.5)
    order = samples.argsort(0, kind="stable").argsort(0, kind="stable")
    theirs = np.abs((order + 0.5) / draws - 0.5)
    shares = (own[None, :] <= levels[:, None] / 2).mean(1)
    replicated = np.stack([(theirs <= level / 2).mean(1) for level in levels])
    spread = np.maximum(replicated.std(1), 1e-12)
    gaps = (shares - levels) / spread
    # One p-value for all levels: the largest standardised gap.
    p_value = _upper(float(np.abs(gaps).max()), np.abs((replicated - levels[:, None]) / spread[:, None]).max(0))
    worst = int(np.abs(gaps).argmax())
    off = float(np.abs(shares - levels).max())
    # Too narrow misleads; too wide is cautious, until half of the probability holds nearly everything.
    far = bool((levels - shares > (0.1, 0.1, 0.05)).any()) or float(shares[0]) > 0.8
    verdict: Verdict = "fail" if p_value < 0.01 and far else "warn" if p_value < 0.05 and off > _SMALL_GAP else "pass"
    grid = np.linspace(0.05, 0.95, 19)
    return Check(
        name="calibration",
        title="Do predicted intervals hold what they say?",
        about="predictions",
        verdict=verdict,
        value={f"{round(100 * level)}% interval": float(share) for level, share in zip(levels, shares, strict=True)}
        | {"rows": rows, "p-value": p_value},
        threshold="share of rows inside, all levels together, against data replicated from the prediction: warn if the "
        f"p-value is below 0.05 and a share off by more than {_SMALL_GAP}, fail below 0.01 if one is too small by "
        "more than 0.1 (0.05 for the 95% interval), or the 50% interval holds more than 0.8",
        p_value=p_value,
        source="Gneiting, Balabdaoui, Raftery (2007), JRSS B 69(2); p-value: replicates from the joint predictive; "
        "sizes: ours",
        explanation=f"On the {held.split} rows, predicted intervals hold the observed values as often as they say."
        if verdict == "pass"
        else f"On the {held.split} rows, {100 * shares[worst]:.0f}% of the values lie in the "
        f"{100 * levels[worst]:.0f}% "
        f"intervals: predictions are {'too wide' if shares[worst] > levels[worst] else 'too narrow'}.",
        figure="coverage",
        data={
            "predicted": grid,
            "observed": (own[None, :] <= grid[:, None] / 2).mean(1),
            "counts": np.full(len(grid), rows),
        },
    )


# ---------------------------------------------------------------------------------------------------------- scores
def _losses(held: HeldOut, labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return the score of each row for one or many sets of outcomes: Brier for classes, CRPS for numbers."""
    if held.probs is not None:
        mean = np.asarray(held.probs.mean(0))
        halves = 2 if mean.shape[-1] == 2 else 1
        chosen = np.take_along_axis(np.broadcast_to(mean, (*labels.shape, mean.shape[-1])), labels[..., None], -1)[
            ..., 0
        ]
        return np.asarray(((mean**2).sum(-1) - 2 * chosen + 1) / halves)
    assert held.samples is not None
    ordered = np.sort(held.samples, 0)
    draws, rows = ordered.shape
    weights = 2.0 * np.arange(1, draws + 1) - draws - 1
    spread = (weights[:, None] * ordered).sum(0) / (draws * (draws - 1))
    sums = np.concatenate([np.zeros((1, rows)), np.cumsum(ordered, 0)])
    flat = labels.reshape(-1, rows)
    below = np.stack([np.searchsorted(ordered[:, i], flat[:, i]) for i in range(rows)], -1)
    low = np.take_along_axis(sums, below, 0)
    distance = (2 * below - draws) * flat + sums[-1] - 2 * low
    # A replicate is one of the samples itself: its zero distance to itself does not count.
    count = draws - 1 if labels is held.labels else draws
    return np.asarray((distance / count - spread).reshape(labels.shape))


def target_unit(posterior: Posterior) -> float:
    """Return how many of the user's units one unit of the target is: what it was divided by when it was read.

    Args:
        posterior: A fit.

    Returns:
        The scale; 1 for classes, and where it is not known.
    """
    target = posterior.data.target
    return 1.0 if target is None or target.categories is not None else float(target.scale)


def scores(posterior: Posterior, *, held: HeldOut | None = None, num_draws: int = 1_000, seed: int = 0) -> Check:
    """Check that the scores of held-out rows are those that the prediction itself expects.

    Brier score for classes, CRPS (the fair estimator) for numbers; the log score is reported beside it. The expected
    score is that of data replicated from the prediction, all rows of a replicate under one posterior draw. For the task
    ``density``: the mean log density of held-out rows against that of rows simulated from the model.

    Args:
        posterior: A fit on a data set with a test or validation split.
        held: Prediction to share with other checks; made if ``None``.
        num_draws: Posterior draws.
        seed: Of the draws.

    Returns:
        The check.

    References:
        Gneiting, Raftery (2007), JASA 102, for proper scores; Brier (1950); Ferro (2014), QJRMS 140, for the fair CRPS;
        Seillier-Moiseiwitsch, Dawid (1993), JASA 88, for testing a score against its expectation.
    """
    task = of(posterior.method, posterior.data)
    if task is not None and task.name == "density":
        return _density_scores(posterior, task, num_draws, seed)
    held = held or held_out(posterior, num_draws=num_draws, seed=seed)
    kind = "Brier score" if held.probs is not None else "CRPS"
    unit = 1.0 if held.probs is not None else target_unit(posterior)
    own = unit * float(_losses(held, held.truth).mean())
    expected = unit * _losses(held, held.labels).mean(-1)
    typical = float(expected.mean())
    p_value = _two_sided(own, expected)
    if held.probs is not None:
        chosen = held.probs.mean(0)[np.arange(len(held.truth)), held.truth]
        log_score = -float(np.log(np.maximum(chosen, np.finfo(float).tiny)).mean())
    else:
        log_score = math.nan
        if held.log_prob is not None:
            from scipy.special import logsumexp

            log_score = -float((logsumexp(held.log_prob, axis=0) - math.log(len(held.log_prob))).mean())
            log_score += math.log(unit)
    off = abs(own - typical) / max(typical, 1e-12)
    much = off > (0.25 if own > typical else 0.5)
    verdict: Verdict = "fail" if p_value < 0.01 and much else "warn" if p_value < 0.05 and off > _SMALL_GAP else "pass"
    return Check(
        name="scores",
        title="Are predictions as good as they claim?",
        about="predictions",
        verdict=verdict,
        value={kind: own, "expected": typical, "p-value": p_value, "log score": log_score, "rows": len(held.truth)},
        threshold=f"{kind} against that of data replicated from the prediction: warn if the two-sided p-value is below "
        f"0.05 and it is off by more than {_SMALL_GAP:.0%}, fail below 0.01 if it is worse by more than a "
        "quarter or better by more than a half",
        p_value=p_value,
        source="Gneiting, Raftery (2007), JASA 102; Seillier-Moiseiwitsch, Dawid (1993), JASA 88; sizes: ours",
        explanation=f"The {kind} on the {held.split} rows is what the predictions themselves expect."
        if verdict == "pass"
        else f"The {kind} on the {held.split} rows is {own:.3g}, while the predictions expect {typical:.3g}: they are "
        f"{'worse than they claim' if own > typical else 'better than they claim, hence too cautious'}.",
    )


def _density_scores(posterior: Posterior, task: Task, num_draws: int, seed: int) -> Check:
    r"""Compare the log densities of held-out rows with those of simulated rows, as :func:`scores` says.

    Importance weights bound both from below, the more loosely the further the guide is from the posterior. For
    simulated rows the latents are known, and with their weight among the others the mean weight bounds the log density
    from above in expectation; only a gap beyond both bounds speaks.

    Args:
        posterior: A fit.
        task: Its task.
        num_draws: Draws of the guide for each row, at most 100.
        seed: Of the draws.

    Returns:
        The check.

    Raises:
        NotApplicable: If there are no held-out rows, or none can be simulated.

    References:
        Grosse, Ghahramani, Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
    """
    from scipy.stats import norm

    split, given = "test", posterior.data.test
    if given is None:
        split, given = "validation", posterior.data.validation
    if given is None or "index" not in given:
        raise NotApplicable("the data set has no held-out rows; the density of fitted rows would flatter the fit")
    batch = _subset(posterior, posterior._prepare(given), _FEW_ROWS, seed)
    model, local = posterior.pair.model, amortised(posterior)
    drawn = posterior.draws(1, batch=batch, seed=seed)
    shared = {n: v[0] for n, v in drawn.items() if n not in local}

    def simulate(_: dict[str, Tensor]) -> dict[str, Tensor]:
        nodes = _trace(model, batch, shared, observed=False).nodes
        return {n: nodes[n]["value"] for n in (*drawn, task.site)}

    try:
        made = posterior.runs.map(simulate, 1, seed=given_draws(seed))
    except NotImplementedError as error:
        raise NotApplicable(f"the model cannot be sampled ({error})") from error
    simulated = {**batch, task.target: made.pop(task.site)[0]}
    if simulated[task.target].shape != batch[task.target].shape:
        raise NotApplicable(f"site '{task.site}' has another shape than the rows")
    count = min(num_draws, 100)
    own, least = (
        np.asarray(marginal_log_likelihood(posterior, rows, num_samples=count, seed=seed))
        for rows in (batch, simulated)
    )
    truth = posterior.log_likelihood(simulated, draws=made)
    known = np.sum([_array(v).reshape(len(own), -1).sum(1) for v in truth.values()], axis=0)
    most = np.logaddexp(least + math.log(count), known) - math.log(count + 1) if local else least
    theirs = most if own.mean() > most.mean() else least
    gap = float(own.mean() - min(max(own.mean(), least.mean()), most.mean()))  # to the nearer bound, 0 between them
    spread = float(theirs.std(ddof=1))
    noise = math.hypot(own.std(ddof=1), spread) / math.sqrt(len(own))
    p_value = 2 * float(norm.sf(abs(gap) / max(noise, 1e-12)))
    off = abs(gap) / max(spread, 1e-12)
    verdict: Verdict = "fail" if p_value < 0.01 and off > 0.5 else "warn" if p_value < 0.05 else "pass"
    return Check(
        name="scores",
        title="Are held-out rows as probable as the model says?",
        about="predictions",
        verdict=verdict,
        value={
            "log density": float(own.mean()),
            "of simulated rows, at least": float(least.mean()),
            "at most": float(most.mean()),
            "their sd": spread,
            "p-value": p_value,
            "rows": len(own),
            "draws": count,
        },
        p_value=p_value,
        threshold="mean log density against that of rows simulated from the model: warn if the two-sided p-value is "
        "below 0.05, fail below 0.01 if they are also more than half a standard deviation of single rows apart",
        source="Seillier-Moiseiwitsch, Dawid (1993), JASA 88; upper bound: Grosse, Ghahramani, Adams (2015), "
        "arXiv:1511.02543; half: ours",
        explanation=f"The {split} rows are as probable under the model as rows that it makes itself, as far as the "
        "bounds on both tell."
        if verdict == "pass"
        else f"The {split} rows have a log density of {own.mean():.4g} on average, and rows that the model makes "
        f"itself one of {theirs.mean():.4g}: "
        + (
            "the model is surer of what rows look like than it should be, or the guide serves new rows badly; train "
            "for fewer steps, or on more rows."
            if gap < 0
            else "the model spreads its mass wider than the rows are; give it more latents, or another prior."
        ),
    )


def risk_coverage(confidence: NDArray[np.float64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Return the risk among the most confident rows, for every number of them.

    Args:
        confidence: ``(rows,)``.
        losses: Loss of each row, ``(..., rows)``.

    Returns:
        Mean loss of the :math:`k` most confident rows, :math:`k = 1, \dots, n`, ``(..., rows)``; its mean over
        :math:`k` is the area under the risk-coverage curve (AURC).

    References:
        Geifman, El-Yaniv (2017), arXiv:1705.08500; Geifman, Uziel, El-Yaniv (2019), arXiv:1805.08206, eq. 1.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = np.asarray(losses, dtype=float)[..., order]
    curve: NDArray[np.float64] = np.cumsum(ordered, -1) / np.arange(1, len(order) + 1)
    return curve


def selective_prediction(
    posterior: Posterior, *, held: HeldOut | None = None, num_draws: int = 1_000, seed: int = 0
) -> Check:
    """Check that the rows of which the fit is least sure are those where it errs: the risk-coverage curve.

    The loss is an error for classes and the squared error for numbers; rows are ordered by the probability of the
    predicted class, or by the predictive standard deviation. The area under the curve (AURC) is compared with that of
    data replicated from the prediction, for which the order is right by construction.

    Args:
        posterior: A fit on a data set with a test or validation split.
        held: Prediction to share with other checks; made if ``None``.
        num_draws: Posterior draws.
        seed: Of the draws.

    Returns:
        The check.

    Raises:
        NotApplicable: If all rows are predicted with the same uncertainty.

    References:
        Geifman, El-Yaniv (2017), arXiv:1705.08500; Geifman, Uziel, El-Yaniv (2019), arXiv:1805.08206, for AURC.
    """
    held = held or held_out(posterior, num_draws=num_draws, seed=seed)
    if held.probs is not None:
        mean = held.probs.mean(0)
        confidence, guess = mean.max(-1), mean.argmax(-1)
        own, theirs = (held.truth != guess).astype(float), (held.labels != guess).astype(float)
    else:
        assert held.samples is not None
        confidence, centre = -held.samples.std(0), held.samples.mean(0)
        own, theirs = (held.truth - centre) ** 2, (held.labels - centre) ** 2
    low, middle, high = np.abs(np.quantile(confidence, (0.05, 0.5, 0.95)))
    # The spread of rows' standard deviations that comes from finitely many samples alone.
    noise = 0.0 if held.samples is None else 5 / math.sqrt(2 * len(held.samples))
    if abs(high - low) < max(0.1, noise) * middle:
        raise NotApplicable("all rows are predicted with about the same uncertainty, so there is no order to judge")
    curve, others = risk_coverage(confidence, own), risk_coverage(confidence, theirs)
    area, areas, random = float(curve.mean()), others.mean(-1), float(own.mean())
    best = float(risk_coverage(-own, own).mean())
    p_value = _upper(area, areas)
    useless = area >= 0.9 * random
    verdict: Verdict = "fail" if p_value < 0.01 and useless else "warn" if p_value < 0.05 else "pass"
    at = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), 200)).astype(int))
    return Check(
        name="selective_prediction",
        title="Does it know where it errs?",
        about="predictions",
        verdict=verdict,
        value={"AURC": area, "expected": float(areas.mean()), "in random order": random, "in the best order": best},
        p_value=p_value,
        threshold="AURC against that of data replicated from the prediction: warn if the p-value is below 0.05, fail "
        "below 0.01 if it is also above 0.9 of that in random order",
        source="Geifman, El-Yaniv (2017), arXiv:1705.08500; Geifman, Uziel, El-Yaniv (2019), arXiv:1805.08206; "
        "replicates and 0.9: ours",
        explanation="The fit errs where it says that it is unsure, so the least certain rows can be left to a person."
        if verdict == "pass"
        else "The fit errs more among the rows of which it is sure than it claims: do not choose by its certainty "
        "which "
        "predictions to trust.",
        figure="risk_coverage",
        data={
            "coverage": (at + 1) / len(curve),
            "risk": curve[at],
            "low": np.quantile(others[:, at], 0.05, axis=0),
            "high": np.quantile(others[:, at], 0.95, axis=0),
            "random": np.array(random),
        },
    )


def out_of_distribution(
    posterior: Posterior,
    *,
    ood: Batch | None = None,
    held: HeldOut | None = None,
    num_draws: int = 1_000,
    seed: int = 0,
) -> Check:
    """Check that rows from elsewhere are predicted with more uncertainty than held-out rows.

    The score is the entropy of the predicted class probabilities, or the predictive standard deviation.

    Args:
        posterior: A fit on a data set with a test or validation split.
        ood: Rows from another distribution.
        held: Prediction to share with other checks; made if ``None``.
        num_draws: Posterior draws.
        seed: Of the draws.

    Returns:
        The check: the area under the ROC curve, with the p-value of Mann and Whitney against one half.

    Raises:
        NotApplicable: If no such rows are given.

    References:
        Hendrycks, Gimpel (2017), arXiv:1610.02136; Mann, Whitney (1947), Annals of Mathematical Statistics 18.
    """
    from scipy.stats import mannwhitneyu

    if ood is None:
        raise NotApplicable("no rows from another distribution were given; pass ood= with a batch of them")
    held = held or held_out(posterior, num_draws=num_draws, seed=seed)
    batch = _subset(posterior, posterior._prepare(ood), _MOST_ROWS, seed)
    count = len(held.probs if held.probs is not None else held.labels)
    prediction = posterior.predict(batch, count, seed=seed)
    if held.probs is not None:
        theirs = _class_probs(prediction, held.site, held.probs.shape[-1])
        assert theirs is not None
        inside, outside = _entropy(held.probs.mean(0)), _entropy(theirs.mean(0))
    else:
        assert held.samples is not None
        inside, outside = held.samples.std(0), _array(prediction.samples[held.site]).std(0)
    test = mannwhitneyu(outside, inside, alternative="greater")
    area, p_value = float(test.statistic) / (len(inside) * len(outside)), float(test.pvalue)
    verdict: Verdict = "pass" if p_value < 0.05 and area > 0.6 else "fail" if area < 0.5 else "warn"
    return Check(
        name="out_of_distribution",
        title="Is it unsure about rows from elsewhere?",
        about="predictions",
        verdict=verdict,
        value={"AUROC": area, "p-value": p_value, "rows": len(inside), "rows from elsewhere": len(outside)},
        threshold="area under the ROC curve: warn unless it is above 0.6, and above one half with a p-value below "
        "0.05; "
        "fail below one half",
        source="Hendrycks, Gimpel (2017), arXiv:1610.02136; Mann, Whitney (1947); 0.6: ours",
        explanation="Rows from elsewhere are predicted with more uncertainty than held-out rows."
        if verdict == "pass"
        else "Rows from elsewhere are predicted about as surely as held-out rows: the fit does not notice that they "
        "are "
        "foreign, so check where rows come from before you predict them.",
        figure="histograms",
        data={"inside": inside, "outside": outside},
    )


def _entropy(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        result: NDArray[np.float64] = -np.where(probs > 0, probs * np.log(probs), 0.0).sum(-1)
    return result


# --------------------------------------------------------------------------------------------------- leave-one-out
@dataclass(frozen=True, slots=True, kw_only=True)
class Loo:
    """Leave-one-out predictive density by importance sampling.

    Args:
        elpd: Log predictive density of each row given the others, ``(rows,)``, in nats.
        pareto_k: Reliability of each, ``(rows,)``.
        effective: Effective number of parameters, over all rows of the data.
        total: Sum over all rows of the data, extrapolated where a subset was evaluated.
        se: Standard error of the total.
        draws: Number of draws.
        num_data: Rows of the data.
        rows: Positions of the evaluated rows, ``(rows,)``.
    """

    elpd: NDArray[np.float64]
    pareto_k: NDArray[np.float64]
    effective: float
    total: float
    se: float
    draws: int
    num_data: int
    rows: NDArray[np.int64]


def leave_one_out(posterior: Posterior, *, num_draws: int = 1_000, max_rows: int = _MOST_ROWS, seed: int = 0) -> Loo:
    r"""Estimate leave-one-out predictive densities by Pareto-smoothed importance sampling, corrected for the guide.

    The ratios are :math:`1 / p(y_n|\theta)` for draws from the posterior. Draws from a guide are not, so theirs are

    .. math:: r_n(\theta) \propto \frac{p(\theta, y)}{q(\theta)} \frac{1}{p(y_n \mid \theta)}.

    Args:
        posterior: A fit.
        num_draws: Draws from a guide; all draws of chains are taken.
        max_rows: Rows evaluated at most, a random subset.
        seed: Of draws and subset.

    Returns:
        Pointwise values and their sum.

    Raises:
        NotApplicable: If the data have one row, or share an enumerated latent, or the guide draws latents of a row from
            that row.

    References:
        Vehtari, Gelman, Gabry (2017), Statistics and Computing 27, eq. 10; Magnusson, Andersen, Jonasson, Vehtari
        (2019), arXiv:1904.10679, for the correction.
    """
    import arviz as az
    from scipy.special import logsumexp

    batch = posterior._prepare(None)
    reff = 1.0
    if posterior.chains is not None:
        draws = {k: v.flatten(0, 1) for k, v in posterior.chains.items()}
        likelihood = evaluate(posterior, batch, draws, seed=seed, predictive=False).log_likelihood
        base = np.zeros(len(next(iter(draws.values()))))
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            dataset = az.convert_to_dataset({k: _array(v) for k, v in posterior.chains.items()})
            if dataset.sizes["chain"] > 1:
                sizes = az.ess(dataset, method="mean")
                flat = np.hstack([sizes[v].values.ravel() for v in sizes.data_vars])
                reff = float(min(np.nanmean(flat) / len(base), 1.0))
    else:
        if amortised(posterior):
            raise NotApplicable(
                "the guide draws latents of a row from the row itself, so its draws say nothing about a row left out; "
                "compare the log densities of held-out rows instead"
            )
        count = affordable(posterior, num_draws)
        base, likelihood = _weighted(posterior, batch, count, seed)
    per_row = _per_row(posterior, likelihood)
    if per_row.shape[1] < 2:
        raise NotApplicable("the data form one datum, which cannot be left out")
    num_data = per_row.shape[1]
    rows = np.arange(num_data)
    if num_data > max_rows:
        rows = np.sort(np.random.default_rng(seed).choice(num_data, max_rows, replace=False))
    chosen = per_row[:, rows]
    weights, k = psis((base[:, None] - chosen).T, reff)
    whole = psis(base, reff)[0] if np.ptp(base) > 0 else np.full(len(base), -math.log(len(base)))
    elpd = logsumexp(weights + chosen.T, axis=1)
    lppd = logsumexp(whole[:, None] + chosen, axis=0)
    share = num_data / len(rows)
    spread = float(np.var(elpd, ddof=1))
    # Of all rows: their own scatter, and the error of extrapolating from a subset.
    se = math.sqrt(num_data * spread + num_data**2 * (1 - 1 / share) * spread / len(rows))
    return Loo(
        elpd=elpd,
        pareto_k=np.where(np.isnan(k), np.inf, k),
        effective=float((lppd - elpd).sum() * share),
        total=float(elpd.sum() * share),
        se=se,
        draws=len(base),
        num_data=num_data,
        rows=rows,
    )


def _weighted(
    posterior: Posterior, batch: Batch, count: int, seed: int
) -> tuple[NDArray[np.float64], dict[str, Tensor]]:
    """Return log weights of the guide's draws, and the log likelihood at the very same draws."""
    model, guide = posterior.pair.model, posterior.pair.drawing
    assert guide is not None
    draw = {k: v[0] for k, v in posterior.draws(1).items()}
    known = sites(posterior, batch, draw)
    if any(s.kind == "enumerated" for s in known.values()):
        raise NotApplicable("the model sums out discrete latents, for which the guide's correction is not implemented")
    seen = {n: s for n, s in known.items() if s.kind == "observed"}

    def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
        trace, drawn = traces(model, guide, batch)
        out = {f"log/{n}": _log_prob(trace.nodes[n]) for n in seen}
        return out | {"w": torch.as_tensor(trace.log_prob_sum() - drawn.log_prob_sum())}

    values = posterior.runs.map(one, count, seed=seed)
    return _array(values["w"]), {n: values[f"log/{n}"] for n in seen}


def _per_row(posterior: Posterior, likelihood: dict[str, Tensor]) -> NDArray[np.float64]:
    """Sum log densities over everything but the data's rows: leaving out a row leaves out all that it holds."""
    rows = posterior.data.num_data if "index" in posterior.data.train else None
    parts = []
    for value in likelihood.values():
        array = _array(value)
        axes = [i for i in range(1, array.ndim) if array.shape[i] == rows]
        if rows is None or not axes:
            parts.append(array.reshape(len(array), -1))
            continue
        moved = np.moveaxis(array, axes[-1], 1)
        parts.append(moved.reshape(len(array), rows, -1).sum(-1))
    if not parts:
        raise NotApplicable("the model observes no data")
    if len({p.shape[1] for p in parts}) > 1:
        raise NotApplicable("observed sites have different numbers of rows, so no common datum can be left out")
    total: NDArray[np.float64] = np.sum(parts, axis=0)
    return total


def loo(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    """Check whether leave-one-out densities of this fit can be trusted, by the Pareto k of each row.

    Args:
        posterior: A fit.
        num_draws: Draws from a guide.
        seed: Of the draws.

    Returns:
        The check; its value holds the estimate.

    References:
        Vehtari, Gelman, Gabry (2017), arXiv:1507.04544; Vehtari et al. (2024), JMLR 25(72).
    """
    found = leave_one_out(posterior, num_draws=num_draws, seed=seed)
    limit = khat_threshold(found.draws)
    bad = float((found.pareto_k > limit).mean())
    verdict: Verdict = "pass" if bad == 0 else "warn" if bad <= max(0.05, 1 / len(found.pareto_k)) else "fail"
    value = {"share of rows with large k": bad, "largest k": float(found.pareto_k.max())}
    if verdict != "fail":  # an estimate that cannot be trusted is no number to be read
        total = found.total - found.num_data * math.log(target_unit(posterior))
        value |= {"elpd": total, "standard error": found.se, "effective parameters": found.effective}
    return Check(
        name="loo",
        title="Can leave-one-out be trusted?",
        about="comparison",
        verdict=verdict,
        value=value,
        threshold=f"share of rows with Pareto k above {limit:.2f}: warn above 0, fail above 5% and more than one row",
        source="Vehtari, Gelman, Gabry (2017), Statistics and Computing 27; limit of k: Vehtari et al. (2024), JMLR "
        "25(72); "
        + ("correction for the guide: Magnusson et al. (2019), arXiv:1904.10679; " if posterior.engine == "svi" else "")
        + "5%: ours",
        explanation="The estimated predictive density of left-out rows is reliable for every row."
        if verdict == "pass"
        else f"For {100 * bad:.1f}% of the rows the left-out density cannot be estimated from this fit: these rows "
        "pull the posterior, or the guide is too far from it; do not compare models by it.",
        figure="loo",
        data={"values": found.pareto_k, "limit": np.array(limit)},
    )
