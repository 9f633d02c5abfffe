"""Checks of what a fit says about data: replicated data, calibration on held-out rows, leave-one-out."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from zoo.diagnostics.adapter import Site, _base, _log_prob, _trace, evaluate, sites, take_rows
from zoo.diagnostics.check import Check, NotApplicable, Verdict
from zoo.diagnostics.inference import _array, affordable, khat_threshold
from zoo.errors import UnknownNameError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = ["Loo", "calibration", "expected_calibration_error", "leave_one_out", "loo", "predictive_check"]

_MOST_ROWS = 2_000
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
        return known, {n: dict(nodes[n]) for n in known}


def _codes(node: Any) -> tuple[NDArray[np.int64], int] | None:
    """Return class codes and the number of classes of a Bernoulli or categorical site, else ``None``."""
    fn = _base(node["fn"])
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
    class counts and their mean over replicates, with the p-value :math:`\Pr[T(y^*) \ge T(y)]`.

    Args:
        posterior: A fit.
        num_draws: Replicated data sets; a large model makes fewer.
        seed: Of the replicates.

    Returns:
        The check: the smallest p-value decides.

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
    draws = posterior.draws(count, batch=batch, seed=seed)
    replicated = evaluate(posterior, batch, draws, seed=seed).predictive
    p_values: dict[str, float] = {}
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
            p_values[prefix + "class frequencies"] = _class_frequencies(seen, fresh, num)
        else:
            seen, fresh = seen[keep], fresh[:, keep]
            if not seen.size:
                continue
            statistics = {"mean": np.mean, "sd": np.std, "smallest": np.min, "largest": np.max}
            for label, function in statistics.items():
                if label == "sd" and seen.size < 2:
                    continue
                p_values[prefix + label] = _two_sided(float(function(seen)), function(fresh, axis=1))  # type: ignore[operator]
        if "observed" not in data:
            step = max(1, seen.size // _MOST_VALUES)
            data = {
                "observed": seen[::step],
                "replicated": fresh[:100, ::step],
                "discrete": np.array(classes is not None),
            }
    if not p_values:
        raise NotApplicable("every observed value is masked")
    worst = min(p_values, key=lambda k: p_values[k])
    least = p_values[worst]
    verdict: Verdict = "fail" if least < 0.01 else "warn" if least < 0.05 else "pass"
    few = len(p_values) <= 8
    return Check(
        name="predictive_check",
        title="Does the fitted model reproduce the data?",
        about="predictions",
        verdict=verdict,
        value={"p-values": p_values} if few else {"smallest p-value": least, "of": worst},
        threshold="p-value of any statistic: warn below 0.05, fail below 0.01",
        source="Gelman, Meng, Stern (1996), Statistica Sinica 6; limits: ours, on p-values that are conservative "
        "because the same data were fitted (Bayarri, Berger 2000)",
        explanation="Data replicated from the fit look like the observed data in every statistic tried."
        if verdict == "pass"
        else f"Data replicated from the fit differ from the observed data in the {worst}: the model does not "
        "describe it.",
        figure="ppc" if data else "",
        data=data,
    )


def _class_frequencies(observed: NDArray[np.float64], replicated: NDArray[np.float64], num: int) -> float:
    """Return the p-value of Pearson's distance between class counts and their mean over replicates."""
    classes = np.arange(num)
    counts = (replicated[:, :, None] == classes).sum(1)
    expected = counts.mean(0)

    def distance(own: NDArray[Any]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = ((own - expected) ** 2 / (expected + 0.5)).sum(-1)
        return result

    seen, fresh = distance((observed[:, None] == classes).sum(0)), distance(counts)
    return float(((fresh >= seen * (1 - 1e-9)).sum() + 1) / (len(fresh) + 1))


def _two_sided(observed: float, replicated: NDArray[np.float64]) -> float:
    """Return the two-sided p-value, ties halved, never below one over the number of replicates."""
    count = len(replicated)
    close = np.isclose(replicated, observed, rtol=1e-9, atol=0)
    above = float(((replicated > observed) & ~close).sum() + 0.5 * close.sum())
    tail = min(above, count - above)
    return min(1.0, 2 * (tail + 0.5) / (count + 1))


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


def calibration(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    """Check on held-out rows that stated probabilities and intervals come true as often as they say.

    Classes: the expected calibration error, compared with what finitely many rows give under perfect calibration
    (labels drawn from the stated probabilities). Numbers: the share of rows within central intervals, compared with its
    binomial band.

    Args:
        posterior: A fit on a data set with a test or validation split.
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
    split = "test" if posterior.data.test is not None else "validation"
    held: Batch | None = getattr(posterior.data, split)
    if held is None:
        raise NotApplicable("the data set has no held-out rows; calibration on the fitted rows would flatter the fit")
    held = _subset(posterior, posterior._prepare(held), _MOST_ROWS, seed)
    known, nodes = _observed(posterior, held)
    name = _target_site(posterior, known)
    node = nodes[name]
    count = affordable(posterior, num_draws, least=100, rows=_MOST_ROWS)
    prediction = posterior.predict(held, count, seed=seed)
    classes = _codes(node)
    if classes is not None:
        probs = prediction.probs.get(name)
        mean = _array(probs).mean(0) if probs is not None else None
        if mean is None and name in prediction.means and classes[1] == 2:
            one = _array(prediction.means[name]).mean(0)
            mean = np.stack([1 - one, one], -1)
        if mean is None or mean.ndim != 2 or classes[0].ndim != 1:
            raise NotApplicable(f"site '{name}' states no class probabilities per row")
        return _classes(mean, classes[0], split, seed)
    samples = _array(prediction.samples[name])
    truth = _array(node["value"])
    if truth.ndim != 1:
        raise NotApplicable(f"site '{name}' has shape {truth.shape}; intervals are checked for one number per row")
    return _coverage(samples, truth, split)


def _target_site(posterior: Posterior, known: dict[str, Site]) -> str:
    from zoo.tasks import get

    try:
        name = get(posterior.data.task).site
    except UnknownNameError:
        name = ""
    if name in known:
        return name
    if len(known) == 1:
        return next(iter(known))
    raise NotApplicable(
        "nothing is observed on the held-out rows" if not known else f"several sites are observed: {', '.join(known)}"
    )


def _classes(probs: NDArray[np.float64], labels: NDArray[np.int64], split: str, seed: int) -> Check:
    confidence, guess = probs.max(-1), probs.argmax(-1)
    correct = guess == labels
    error = float(expected_calibration_error(confidence, correct))
    generator = np.random.default_rng(seed)
    perfect = generator.random((2_000, len(labels))) < confidence
    noise = expected_calibration_error(confidence, perfect)
    typical, some, much = float(noise.mean()), float(np.quantile(noise, 0.95)), float(np.quantile(noise, 0.99))
    excess = error - typical
    verdict: Verdict = "fail" if error > much and excess > 0.02 else "warn" if error > some else "pass"
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
            "rows": len(labels),
        },
        threshold=f"expected calibration error: warn above {some:.4f} (95% quantile under perfect calibration), fail "
        f"above {much:.4f} (99%) if it exceeds the mean under perfect calibration by more than 0.02",
        source="Guo et al. (2017), arXiv:1706.04599, eq. 3; noise level: Bröcker, Smith (2007), Weather and "
        "Forecasting 22; 0.02: ours",
        explanation=f"On the {split} rows, classes occur as often as the predictions say."
        if verdict == "pass"
        else f"On the {split} rows, predictions are {'too confident' if over > 0 else 'not confident enough'}: the "
        f"stated confidence is {confidence.mean():.3f} on average, the accuracy {correct.mean():.3f}.",
        figure="reliability",
        data={
            "predicted": np.array([confidence[bins == b].mean() for b in used]),
            "observed": np.array([correct[bins == b].mean() for b in used]),
            "counts": np.array([(bins == b).sum() for b in used]),
            "noise": noise,
        },
    )


def _coverage(samples: NDArray[np.float64], truth: NDArray[np.float64], split: str) -> Check:
    from scipy.stats import binomtest

    levels = np.array([0.5, 0.8, 0.95])
    rows = len(truth)
    shares, p_values = [], []
    for level in levels:
        low, high = np.quantile(samples, ((1 - level) / 2, (1 + level) / 2), axis=0)
        inside = int(((truth >= low) & (truth <= high)).sum())
        shares.append(inside / rows)
        p_values.append(float(binomtest(inside, rows, float(level)).pvalue))
    gaps = np.abs(np.array(shares) - levels)
    p_array = np.array(p_values) * len(levels)
    bad = (p_array < 0.01) & (gaps > 0.05)
    verdict: Verdict = "fail" if bad.any() else "warn" if (p_array < 0.05).any() else "pass"
    grid = np.linspace(0.05, 0.95, 19)
    edges = np.quantile(samples, np.concatenate([(1 - grid) / 2, (1 + grid) / 2]), axis=0)
    low_edges, high_edges = edges[: len(grid)], edges[len(grid) :]
    worst = int(np.argmin(p_array))
    return Check(
        name="calibration",
        title="Do predicted intervals hold what they say?",
        about="predictions",
        verdict=verdict,
        value={f"{round(100 * level)}% interval": share for level, share in zip(levels, shares, strict=True)}
        | {"rows": rows},
        threshold="share of rows inside: warn if its binomial p-value, times 3 levels, is below 0.05, fail below "
        "0.01 if the share is also off by more than 0.05",
        source="Gneiting, Balabdaoui, Raftery (2007), JRSS B 69(2); binomial band, Bonferroni; 0.05: ours",
        explanation=f"On the {split} rows, predicted intervals hold the observed values as often as they say."
        if verdict == "pass"
        else f"On the {split} rows, {100 * shares[worst]:.0f}% of the values lie in the {100 * levels[worst]:.0f}% "
        f"intervals: predictions are {'too wide' if shares[worst] > levels[worst] else 'too narrow'}.",
        figure="coverage",
        data={
            "predicted": grid,
            "observed": ((truth >= low_edges) & (truth <= high_edges)).mean(1),
            "counts": np.full(len(grid), rows),
        },
    )


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
        NotApplicable: If the data have one row, or share an enumerated latent.

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
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        weights, k = az.psislw((base[:, None] - chosen).T.copy(), reff)
        whole = az.psislw(base.copy(), reff)[0] if np.ptp(base) > 0 else np.full(len(base), -math.log(len(base)))
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
    model, guide = posterior.pair.model, posterior.pair.guide
    assert guide is not None
    draw = {k: v[0] for k, v in posterior.draws(1).items()}
    known = sites(posterior, batch, draw)
    if any(s.kind == "enumerated" for s in known.values()):
        raise NotApplicable("the model sums out discrete latents, for which the guide's correction is not implemented")
    seen = {n: s for n, s in known.items() if s.kind == "observed"}

    def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
        drawn = poutine.trace(guide).get_trace(batch)
        trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(batch)
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
    return Check(
        name="loo",
        title="Can leave-one-out be trusted?",
        about="comparison",
        verdict=verdict,
        value={
            "elpd": found.total,
            "standard error": found.se,
            "effective parameters": found.effective,
            "share of rows with large k": bad,
            "largest k": float(found.pareto_k.max()),
        },
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
