"""Checks of the inference: did the optimiser settle, is the guide close to the posterior, did the chains mix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from zoo.diagnostics._arviz import tail_ess
from zoo.diagnostics.adapter import _trace, sites, take_rows
from zoo.diagnostics.check import Check, NotApplicable, Verdict
from zoo.diagnostics.labels import names
from zoo.diagnostics.psis import psis
from zoo.inference.sites import innermost, is_plate, observed
from zoo.inference.tries import sentences, stubborn
from zoo.types import Alternating

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = [
    "divergences",
    "e_bfmi",
    "ess",
    "funnel",
    "khat",
    "khat_threshold",
    "moment_bounds",
    "network_weights",
    "optimiser_stationarity",
    "pareto_k",
    "pareto_k_rows",
    "r_hat",
    "restart_agreement",
]

_MOST_ELEMENTS = 2_000  # elements of all sites for which chains are compared
_ROWS_OF_SCALES = 200
_MOST_WORK = 1e10  # latent elements x rows x draws that a check may spend

_VEHTARI_2021 = "Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Bayesian Analysis 16(2)"
_VEHTARI_2024 = "Vehtari, Simpson, Gelman, Yao, Gabry (2024), JMLR 25(72)"
_YAO_2018 = "Yao, Vehtari, Simpson, Gelman (2018), ICML, arXiv:1802.02538"


# --------------------------------------------------------------------------------------------------------- shared
def _array(value: Tensor) -> NDArray[np.float64]:
    return np.asarray(value.detach().cpu().to(torch.float64))


def affordable(posterior: Posterior, wanted: int, *, least: int = 50, rows: int | None = None) -> int:
    """Return how many draws a check may evaluate: fewer for a large model.

    Args:
        posterior: A fit.
        wanted: Draws for a small model.
        least: Draws for the largest.
        rows: Rows evaluated at each; all of the training data if ``None``.

    Returns:
        At most ``wanted``.
    """
    elements = sum(v[0].numel() for v in posterior.draws(1).values())
    return int(min(wanted, max(least, _MOST_WORK // max(elements * (rows or posterior.data.num_data), 1))))


def _needs_guide(posterior: Posterior) -> None:
    if posterior.engine != "svi":
        raise NotApplicable("the posterior was sampled, so there is no guide to check")
    if isinstance(posterior.pair.objective, Alternating) and len(posterior.pair.objective.losses) > 1:
        raise NotApplicable("the method minimises several losses in turn, not the divergence of one guide")


def _chains(posterior: Posterior) -> dict[str, NDArray[np.float64]]:
    """Return ``label -> (chain, draw)`` of at most ``_MOST_ELEMENTS`` elements, of weights their log density."""
    # Weights of a network have as many modes as its units have orders; in the log density all of them are alike.
    if posterior.chains is None:
        raise NotApplicable("the posterior was approximated by a guide, so there are no chains")
    hidden = set(network_weights(posterior))
    found = {k: _array(v) for k, v in posterior.chains.items() if k not in hidden}
    stats = posterior.sample_stats or {}
    if hidden:
        if "lp" in stats:
            found["log density"] = _array(stats["lp"])
        elif not found:
            raise NotApplicable("all latents are weights of a network, and the sampler recorded no log density")
    return _elements(posterior, found)


def axes(posterior: Posterior) -> dict[str, tuple[str, ...]]:
    """Return the name of every axis of every site.

    Args:
        posterior: A fit.

    Returns:
        Site -> names; empty where the model cannot be traced, as names are no reason to lose a check.
    """
    try:
        first = {k: v[0] for k, v in posterior.draws(1).items()}
        return {name: site.dims for name, site in sites(posterior, posterior._prepare(None), first).items()}
    except Exception:
        return {}


def _elements(posterior: Posterior, values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Split ``(chain, draw, ...)`` arrays into named elements, evenly thinned where there are too many."""
    dims = axes(posterior) if any(v.ndim > 2 for v in values.values()) else {}
    total = sum(int(np.prod(v.shape[2:])) for v in values.values())
    step = max(1, math.ceil(total / _MOST_ELEMENTS))
    found: dict[str, NDArray[np.float64]] = {}
    for name, value in values.items():
        shape = value.shape[2:]
        labels = names(posterior, name, dims.get(name), shape)
        for count, (label, index) in enumerate(zip(labels, np.ndindex(shape), strict=True)):
            if count % step == 0:
                found[label] = value[(slice(None), slice(None), *index)]
    return found


def _judge(value: float, warn: float, fail: float) -> Verdict:
    """Return the verdict of a value that is better when smaller; NaN fails."""
    return "fail" if not value <= fail else "warn" if not value <= warn else "pass"


def network_weights(posterior: Posterior) -> list[str]:
    """Return the latents that are weights of a network: what they mean changes with the order of its hidden units.

    A method says so by its plates (``unit_0``, ``channel_0``); parameters of a lifted module are known by their names
    (``fc.weight``). Of any other model the density is asked: latents of which two or more, one a matrix at least, have
    a common axis along which all of them can be permuted together, but none alone, without changing it.

    Args:
        posterior: A fit.

    Returns:
        Names in the order of the draws; none where a fit cannot be looked at.
    """
    drawn = posterior.draws(1)
    if posterior.method is not None:
        plates = posterior.method.sites(posterior.hyper)
        if any(p.startswith(("unit_", "channel_")) for around in plates.values() for p in around):
            return [n for n in drawn if n in plates]
        return []
    lifted = [n for n in drawn if "." in n and n.endswith((".weight", ".bias"))]
    if lifted:
        return lifted
    try:
        return _exchangeable(posterior, {k: v[0] for k, v in drawn.items()})
    except Exception:
        # A model that cannot be traced so is judged as if it had no network: the checks say what is wrong with it.
        return []


def _exchangeable(posterior: Posterior, draw: Mapping[str, Tensor]) -> list[str]:
    batch = posterior._prepare(None)
    known = sites(posterior, batch, draw)
    real = [
        n
        for n, v in draw.items()
        if n in known and known[n].kind == "latent" and known[n].row_axis is None and v.is_floating_point()
    ]
    sizes = {s for n in real for s in draw[n].shape if s > 1}

    def permuted(names: Sequence[str], size: int) -> dict[str, Tensor]:
        order = torch.arange(size).roll(1)
        values = dict(draw)
        for name in names:
            for axis, length in enumerate(draw[name].shape):
                if length == size:
                    values[name] = values[name].index_select(axis, order.to(draw[name].device))
        return values

    def density(values: Mapping[str, Tensor]) -> float:
        from zoo.inference.program import seeded, stream

        with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)), torch.no_grad():
            return float(_trace(posterior.pair.model, batch, values).log_prob_sum())

    base = density(draw)
    close = 1e-5 * max(abs(base), 1.0)
    found: list[str] = []
    for size in sorted(sizes):
        common = [n for n in real if size in draw[n].shape]
        # Components of a mixture can be permuted too; their weights give them away, and they can be told apart.
        simplex = any(
            v.ndim and v.shape[-1] == size and bool((v >= 0).all()) and bool(((v.sum(-1) - 1).abs() < 1e-4).all())
            for v in draw.values()
        )
        if len(common) < 2 or not any(draw[n].ndim > 1 for n in common) or simplex:
            continue
        if abs(density(permuted(common, size)) - base) > close:
            continue
        alone = [n for n in common if abs(density(permuted([n], size)) - base) > close]
        if len(alone) > 1:
            found += [n for n in common if n not in found]
    return [n for n in draw if n in found]


# ------------------------------------------------------------------------------------------------------ optimiser
def optimiser_stationarity(posterior: Posterior, *, blocks: int = 20) -> Check:
    r"""Check that the loss has stopped falling, judged by what another stretch of training would still gain.

    The last fifth of the losses is cut into blocks; Theil and Sen's slope through the block means, times the length of
    that stretch, is the expected gain of as many steps again. What the ELBO gains, :math:`\mathrm{KL}(q\|p)` loses, so
    the gain is measured in nats and judged against the size of the posterior: a normal shifted by :math:`\delta`
    standard deviations lies :math:`\delta^2 / 2` nats away, hence 0.005 nats per latent element for a tenth of a
    standard deviation, 0.05 for a third. The interval of the slope is widened by the first autocorrelation of the
    residuals.

    Args:
        posterior: A fit by SVI.
        blocks: Blocks of the last fifth.

    Returns:
        The check.

    Raises:
        NotApplicable: If there is no single loss, or too short a history.

    References:
        Dhaka et al. (2020), arXiv:2009.00666, and Welandawe et al. (2022), arXiv:2203.15945: judge stationarity over a
        window rather than the change of one loss; Sen (1968), JASA 63, for the slope and its interval.
    """
    from scipy.stats import theilslopes

    if posterior.engine != "svi":
        raise NotApplicable("the posterior was sampled; no loss was minimised")
    objective = posterior.pair.objective
    if isinstance(objective, Alternating) and len(objective.losses) > 1:
        raise NotApplicable("losses minimised in turn against each other need not fall")
    losses = _array(posterior.losses)
    if losses.size < 5 * blocks:
        raise NotApplicable(f"the history holds {losses.size} steps; {5 * blocks} are needed to see a trend")
    size = losses.size // 5 // blocks
    window = losses[-size * blocks :]
    title = "Has the optimiser settled?"
    elements = sum(v[0].numel() for v in posterior.draws(1).values())
    some, much = max(0.1, 0.005 * elements), max(1.0, 0.05 * elements)
    threshold = (
        "expected gain of another fifth of the steps, where noise does not explain it: warn above "
        f"{some:.3g}, fail above {much:.3g} nats; warn if noise could hide three times that, or "
        "the loss fell by as much from the fifth before to the last"
    )
    source = (
        "0.005 and 0.05 nats per latent element (normals a tenth and a third of a standard deviation apart), at "
        "least 0.1 and 1; window in place of single losses: Dhaka et al. (2020), arXiv:2009.00666; Welandawe et al. "
        "(2022), arXiv:2203.15945"
    )
    common: dict[str, Any] = {
        "name": "optimiser_stationarity",
        "title": title,
        "about": "parameters",
        "threshold": threshold,
        "source": source,
        "figure": "loss",
        "data": {"losses": losses},
    }
    if not np.isfinite(window).all():
        return Check(
            **common,
            verdict="fail",
            value={"finite": False},
            explanation="The loss became infinite or undefined, so the optimiser did not arrive anywhere.",
        )
    means = window.reshape(blocks, size).mean(1)
    at = np.arange(blocks) / blocks  # in lengths of the window
    slope, intercept, low, high = theilslopes(means, at, alpha=0.99)
    residual = means - intercept - slope * at
    power = float((residual**2).sum())
    rho = float((residual[1:] * residual[:-1]).sum() / power) if power > 0 else 0.0
    # Around a fitted line in few points the autocorrelation comes out too small, by about (2 + 4 rho) / points.
    rho = min(max(rho + (2 + 4 * rho) / blocks, 0.0), 0.9)
    widen = math.sqrt((1 + rho) / (1 - rho))
    gain = -float(slope)
    least, most = gain - widen * (gain + float(high)), gain - widen * (gain + float(low))
    seen = least > 0 or most < 0
    # A short run can hide in the noise of its end how far it still falls; not so from one stretch to the next.
    earlier = losses[-2 * size * blocks : -size * blocks].reshape(blocks, size).mean(1)
    fell = float(earlier.mean() - means.mean())
    fell -= 3 * widen * math.hypot(float(earlier.std(ddof=1)), float(means.std(ddof=1))) / math.sqrt(blocks)
    verdict: Verdict = "pass"
    if seen and abs(gain) > much:
        verdict = "fail"
    elif (seen and abs(gain) > some) or most > 3 * much or fell > much:
        verdict = "warn"
    if verdict == "pass":
        bound = f"{max(most, 0):.3g} nats"
        words = f"The loss shows no trend that matters: another fifth of the steps would gain at most {bound}."
    elif seen and gain < 0:
        words = (
            "The loss is rising at the end, so the optimiser moves away from the best guide; lower the learning rate."
        )
    elif seen or fell > much:
        words = "The loss is still falling, so the guide is not yet the best of its family; train for more steps."
    else:
        words = (
            "The loss is too noisy to tell whether it still falls; use more particles, a larger batch or more steps."
        )
    words += " A learning rate that decays to zero makes any loss level off, so compare restarts too."
    return Check(
        **common,
        verdict=verdict,
        value={"expected gain in nats": gain, "99% low": least, "99% high": most, "gain that matters": much},
        explanation=words,
    )


# ---------------------------------------------------------------------------------------------------------- guide
def khat_threshold(draws: int) -> float:
    r"""Return the largest k-hat at which importance weights can be trusted.

    .. math:: \min(1 - 1 / \log_{10} S,\ 0.7)

    Args:
        draws: Number of draws :math:`S`.

    Returns:
        The threshold.

    References:
        Vehtari et al. (2024), JMLR 25(72).
    """
    return min(1 - 1 / math.log10(max(draws, 11)), 0.7)


def khat(log_weights: NDArray[np.float64]) -> float:
    r"""Return the Pareto shape of the largest importance weights.

    Args:
        log_weights: :math:`\log p - \log q` of each draw, ``(draws,)``; for leave-one-out the negative log likelihood.

    Returns:
        k-hat; 0 for weights that are equal to within one in a hundred, infinity if no draw has a finite weight.
    """
    values = np.asarray(log_weights, dtype=np.float64)
    if np.isnan(values).any() or np.isposinf(values).any() or not np.isfinite(values).any():
        return math.inf
    if np.isfinite(values).all() and np.ptp(values) < 0.01:
        return 0.0  # the tail of equal weights has no shape, and its fit reports infinity
    return float(psis(values)[1])


def refuse_rows_alone(posterior: Posterior) -> None:
    """Refuse a fit whose only latents are those that the guide draws for each row from that row.

    Args:
        posterior: A fit.

    Raises:
        NotApplicable: If it is one: joint weights of all rows then add up what nothing connects.
    """
    from zoo.inference.marginal import amortised

    local = set(amortised(posterior))
    if local and local >= set(posterior.draws(1)):
        raise NotApplicable(
            "rows share no latent: the guide draws those of each row from the row itself, so rows are judged one by one"
        )


def point_sites(posterior: Posterior) -> tuple[list[str], list[str]]:
    """Return the latents that the guide holds at one point, and those that it spreads.

    Args:
        posterior: A fit.

    Returns:
        Names of both kinds.
    """
    draws = posterior.draws(20)
    fixed = [n for n, v in draws.items() if v.numel() and bool((v == v[:1]).all())]
    return fixed, [n for n in draws if n not in fixed]


def pareto_k(posterior: Posterior, *, num_draws: int = 1_000, repeats: int = 5, seed: int = 0) -> Check:
    """Check the guide by the tail of its importance weights, several times over, since one k-hat is a noisy number.

    Args:
        posterior: A fit by SVI.
        num_draws: Draws per repeat; a large model gets fewer.
        repeats: How often fresh draws are taken.
        seed: Of the draws.

    Returns:
        The check. It fails if both k-hat of all draws together and the median over repeats exceed their limits: either
        alone is moved by a few extreme draws.

    Raises:
        NotApplicable: If there is no guide, or it is a point.

    References:
        Yao et al. (2018), Yes, but did it work? arXiv:1802.02538, algorithm 1; Vehtari et al. (2024), JMLR 25(72).
    """
    from scipy.special import logsumexp

    _needs_guide(posterior)
    refuse_rows_alone(posterior)
    fixed, spread = point_sites(posterior)
    if not spread:
        raise NotApplicable(
            "the guide is a point estimate: it has no spread that could be compared with the posterior's"
        )
    draws = affordable(posterior, num_draws)
    if draws < num_draws:
        repeats = min(repeats, 2 if draws <= 50 else 3)
    weights = [_array(posterior.log_weights(draws, seed=seed + i)) for i in range(repeats)]
    values = np.array([khat(w) for w in weights])
    limit, pooled_limit = khat_threshold(draws), khat_threshold(draws * repeats)
    every = np.concatenate(weights)
    pooled = khat(every)
    median = float(np.median(values))
    verdict: Verdict = "fail" if not pooled <= pooled_limit and not median <= limit else "pass"
    if verdict == "pass" and not (pooled <= 0.5 and values.max() <= limit):
        verdict = "warn"
    words = {
        "pass": "The guide covers the posterior: its importance weights have a light tail.",
        "warn": "The guide is a rough approximation: means are usable, tails and spreads less so, and repeats may "
        "disagree.",
        "fail": "The guide misses part of the posterior: a few draws carry all the importance weight, so its "
        "spreads and tails cannot be trusted.",
    }[verdict]
    elements = sum(v[0].numel() for n, v in posterior.draws(1).items() if n in spread)
    if verdict == "fail" and elements > 1_000:
        words += (
            f" With {elements:,} latent elements a joint check like this fails for any practical guide (small errors "
            "add up over elements), so do not interpret the parameters; held-out checks decide whether predictions "
            "can be used."
        )
    if fixed:
        words += f" The guide holds {', '.join(fixed[:5])} at one point, which this check does not judge."
    finite = values[np.isfinite(values)]
    return Check(
        name="pareto_k",
        title="Is the guide close to the posterior?",
        about="parameters",
        verdict=verdict,
        value={
            "k-hat": pooled,
            "median of repeats": median,
            "smallest": float(values.min()),
            "largest": float(values.max()),
            "repeats": repeats,
            "draws": draws,
            # log of the mean weight minus mean of the log weights: the divergence of the guide, where both exist
            "nats to the posterior": float(logsumexp(every) - math.log(len(every)) - every.mean())
            if verdict != "fail" and np.isfinite(every).all()
            else math.nan,
        },
        threshold="fail if k-hat of all draws and the median of repeats exceed min(1 - 1/log10(S), 0.7), that is "
        f"{pooled_limit:.2f} and {limit:.2f}; warn if all draws exceed 0.5 or any repeat {limit:.2f}",
        source=f"{_VEHTARI_2024}; {_YAO_2018}",
        explanation=words,
        figure="khat" if finite.size else "",
        data={"values": values, "pooled": np.array(pooled), "limit": np.array(limit)},
    )


def pareto_k_rows(posterior: Posterior, *, num_draws: int = 1_000, max_rows: int = 500, seed: int = 0) -> Check:
    r"""Check a guide of latents that every row has for itself, row by row, by the tail of its importance weights.

    At one draw :math:`\theta` of the shared latents the weights of row :math:`n` are
    :math:`p(y_n, z_n \mid \theta) / q(z_n \mid \theta)`, over draws of :math:`z_n`; rows do not add up, as they do
    in the joint weights, so the check works for any number of rows.

    Args:
        posterior: A fit by SVI whose rows have latents.
        num_draws: Draws per row.
        max_rows: Rows at most, a random subset.
        seed: Of the draws.

    Returns:
        The check.

    Raises:
        NotApplicable: If no row has latents of its own, or they are points.

    References:
        Yao et al. (2018), arXiv:1802.02538, sec. 3; Vehtari et al. (2024), JMLR 25(72).
    """
    _needs_guide(posterior)
    batch = posterior._prepare(None)
    index = batch.get("index")
    if index is not None and len(index) > max_rows:
        rows = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:max_rows].sort().values
        batch = take_rows(posterior.data, batch, rows)
    first = {k: v[0] for k, v in posterior.draws(1, batch=batch, seed=seed).items()}
    known = sites(posterior, batch, first)
    if any(s.kind == "enumerated" for s in known.values()):
        raise NotApplicable("the model sums out discrete latents, whose rows cannot be weighted one by one")
    plates = {s.dims[s.row_axis] for s in known.values() if s.row_axis is not None}
    local = [s.name for s in known.values() if s.kind == "latent" and s.row_axis is not None and s.name in first]
    if not local:
        raise NotApplicable("no row has latents of its own")
    shared = {n: v for n, v in first.items() if n not in local}
    model, guide = posterior.pair.model, posterior.pair.drawing
    assert guide is not None

    def per_row(trace: Any, sign: float) -> Tensor:
        total: Any = 0.0
        for node in trace.nodes.values():
            frame = next((f for f in node.get("cond_indep_stack", ()) if f.name in plates), None)
            if node["type"] != "sample" or frame is None or is_plate(node):
                continue
            value = scale_and_mask(node["fn"].log_prob(node["value"]), mask=node["mask"])
            axis = value.ndim + frame.dim
            total = total + sign * value.movedim(axis, 0).flatten(1).sum(1) if value.ndim > 1 else total + sign * value
        return torch.as_tensor(total)

    def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
        drawn = poutine.trace(poutine.condition(guide, data=shared)).get_trace(batch)
        if any(node["infer"].get("is_auxiliary") for node in drawn.nodes.values() if node["type"] == "sample"):
            raise NotApplicable(
                "the guide draws all latents from one auxiliary variable, so rows cannot be taken apart"
            )
        for name in shared:
            drawn.nodes[name]["is_observed"] = False
        for name in observed(drawn.nodes):
            drawn.remove_node(name)
        trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(batch)
        return {"w": per_row(trace, 1.0) + per_row(drawn, -1.0)}

    draws = affordable(posterior, num_draws, least=200, rows=max_rows)
    weights = _array(posterior.runs.map(one, draws, seed=seed)["w"])
    if weights.ndim != 2 or not np.ptp(weights, axis=0).any():
        raise NotApplicable("the guide holds the rows' latents at points, or is exact up to rounding")
    values = np.array([khat(w) for w in weights.T])
    limit = khat_threshold(draws)
    share = float((values > limit).mean())
    verdict = _judge(share, 0.05, 0.2)
    return Check(
        name="pareto_k_rows",
        title="Is the guide close to the posterior of every row?",
        about="parameters",
        verdict=verdict,
        value={
            "share of rows with large k-hat": share,
            "median k-hat": float(np.median(values)),
            "largest k-hat": float(values.max()),
            "rows": len(values),
            "draws": draws,
        },
        threshold=f"share of rows with k-hat above {limit:.2f}: warn above 5%, fail above 20%",
        source=f"{_VEHTARI_2024}; {_YAO_2018}; shares: ours",
        explanation="The guide covers the posterior of the rows' own latents."
        if verdict == "pass"
        else f"For {100 * share:.0f}% of the rows the guide misses part of the posterior of their own latents: do not "
        "interpret single rows; use a richer guide, or optimise those rows further.",
        figure="rows",
        data={"values": values, "limit": np.array(limit)},
    )


def moment_bounds(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    r"""Bound how wrong the guide's means and standard deviations can be, from its importance weights alone.

    With :math:`\mathrm{D}_2 = 2(\mathrm{CUBO}_2 - \mathrm{ELBO})`, an upper bound on the Renyi divergence
    :math:`\mathrm{D}_2(p \| q)` since the ELBO lies below the log evidence, and
    :math:`\chi^2 = e^{\mathrm{D}_2} - 1`, Cauchy and Schwarz give for every element, in the guide's own standard
    deviations :math:`s`,

    .. math:: |m_p - m_q| \le W_1 \le s \sqrt{\chi^2}, \qquad
        |s_p - s_q| \le W_2 \le \sqrt{2}\, (\mathrm{E}_q (x - m_q)^4)^{1/4} (\chi^2)^{1/4}.

    A marginal's divergence is at most the joint one, so the bounds hold element by element; the constant
    :math:`2^{1 - 1/p}` is Villani's, in the place of the paper's 2. Both moments of the weights must be finite: where
    k-hat exceeds one half the bounds are vacuous, as they are where they allow an error of one standard deviation.

    Args:
        posterior: A fit by SVI.
        num_draws: Draws; five times as many are taken where they are cheap.
        seed: Of the draws.

    Returns:
        The check. A vacuous bound is a warning that nothing is guaranteed, and no evidence of an error.

    Raises:
        NotApplicable: If there is no guide, or it is a point.

    References:
        Huggins, Kasprzak, Campbell, Broderick (2020), Validated variational inference via practical posterior error
        bounds, AISTATS, arXiv:1910.04102, theorems 3.2 to 3.4 and algorithm 1; Villani (2009), theorem 6.15.
    """
    from scipy.special import logsumexp

    _needs_guide(posterior)
    refuse_rows_alone(posterior)
    if not point_sites(posterior)[1]:
        raise NotApplicable("the guide is a point estimate, whose weights say nothing about spreads")
    if affordable(posterior, num_draws) < num_draws:
        raise NotApplicable("the model is too large for the draws that a second moment of the weights needs")
    draws = affordable(posterior, 5 * num_draws)
    weights = _array(posterior.log_weights(draws, seed=seed))
    k = khat(weights)
    count = min(draws, num_draws)
    elements = _elements(posterior, {n: _array(v)[None] for n, v in posterior.draws(count, seed=seed).items()})
    elements = {n: v for n, v in elements.items() if v.std() > 0}
    # fourth moment in standard deviations, three for a normal
    fourth = max(float(((v - v.mean()) ** 4).mean() / v.var() ** 2) for v in elements.values())
    finite = k <= 0.5 and bool(np.isfinite(weights).all())
    divergence = math.inf
    if finite:
        divergence = max(float(logsumexp(2 * weights) - math.log(draws) - 2 * weights.mean()), 0.0)
    chi = math.expm1(divergence) if divergence < 50 else math.inf
    mean, sd = math.sqrt(chi), math.sqrt(2) * (fourth * chi) ** 0.25
    verdict: Verdict = "pass" if mean <= 0.5 else "warn"
    if verdict == "pass":
        words = f"Whatever the posterior is, its means lie within {mean:.2f} of the guide's standard deviations" + (
            f", its standard deviations within {sd:.2f}." if sd < 1 else "; its spreads are not bounded usefully."
        )
    elif not finite:
        words = (
            "The bounds are vacuous: the importance weights seem to have no finite second moment, so nothing is "
            "guaranteed about the guide's means and spreads; that alone does not say that they are wrong."
        )
    else:
        vacuous = "vacuous" if mean >= 1 else "wide"
        words = (
            f"The bounds are {vacuous}: they allow means to be wrong by {mean:.2g} of the guide's standard deviations; "
            "that alone does not say that they are."
        )
    return Check(
        name="moment_bounds",
        title="What is guaranteed about means and spreads?",
        about="parameters",
        verdict=verdict,
        value={
            "error of means, at most, in sd": mean,
            "error of sd, at most, in sd": sd,
            "Renyi divergence of order 2, at most": divergence,
            "k-hat": k,
            "draws": draws,
        },
        threshold="bound on the error of means: warn above 0.5 standard deviations of the guide, or where k-hat "
        "exceeds "
        "0.5 so that there is none",
        source="Huggins, Kasprzak, Campbell, Broderick (2020), AISTATS, arXiv:1910.04102; 0.5: ours",
        explanation=words,
    )


def restart_agreement(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    """Check that fits from other starting points found the same posterior, by R-hat over restarts as chains.

    Args:
        posterior: A fit with restarts.
        num_draws: Draws of every restart.
        seed: Of the draws.

    Returns:
        The check.

    Raises:
        NotApplicable: If there was a single start, all began at one point, or all latents are points.

    References:
        Gelman, Rubin (1992), Statistical Science 7(4): 1.1; here between independent draws of several guides.
    """
    if posterior.engine != "svi":
        raise NotApplicable("the posterior was sampled; its chains are the different starts")
    if not posterior.restarts:
        raise NotApplicable("the fit was started once; use restarts=3 to see whether other starts agree")
    count = affordable(posterior, num_draws, least=100)
    fits = (posterior, *posterior.restarts)
    if len({p.info.get("start", i) for i, p in enumerate(fits)}) == 1:
        raise NotApplicable(
            "the restarts all began at one point, so that they had to agree; let the guide's initial values be random "
            "(pyro.param(NAME, lambda: torch.randn(...)), or init_to_sample for an automatic guide)"
        )
    drawn = [p.draws(count, seed=seed + i) for i, p in enumerate(fits)]
    stacked = {n: np.stack([_array(d[n]) for d in drawn]) for n in drawn[0]}
    hidden = set(network_weights(posterior))
    if hidden >= set(stacked):
        raise NotApplicable("all latents are weights of a network, which restarts find in other orders; compare scores")
    stacked = {n: v for n, v in stacked.items() if n not in hidden}
    elements = {k: v for k, v in _elements(posterior, stacked).items() if v.std() > 0}
    if not elements:
        raise NotApplicable("the guide is a point estimate, whose restarts have no spread to be compared in")
    values = {k: _split_free(v) for k, v in elements.items()}
    worst = max(values, key=lambda k: values[k])
    largest = values[worst]
    final = [float(np.mean(_array(p.losses)[-max(len(p.losses) // 5, 1) :])) for p in fits]
    verdict = _judge(largest, 1.05, 1.1)
    words = {
        "pass": "Fits from different starting points found the same posterior.",
        "warn": "Fits from different starting points differ a little.",
        "fail": "Fits from different starting points disagree: the posterior has several modes or the optimiser "
        "stopped early, so one fit shows only part of the answer.",
    }[verdict]
    return Check(
        name="restart_agreement",
        title="Do other starting points agree?",
        about="parameters",
        verdict=verdict,
        value={
            "largest R-hat": largest,
            "at": worst,
            "restarts": len(fits),
            "spread of final losses": max(final) - min(final),
        },
        threshold="R-hat between restarts: warn above 1.05, fail above 1.1",
        source="Gelman, Rubin (1992), Statistical Science 7(4); 1.05 is half of it",
        explanation=words,
        figure="bars",
        data={
            "values": np.array(sorted(values.values(), reverse=True)),
            "limit": np.array(1.1),
            "final_losses": np.array(final),
        },
    )


def _split_free(value: NDArray[np.float64]) -> float:
    """Return the rank-normalised R-hat of ``(chain, draw)``; infinity where chains stand still at different places."""
    import arviz as az

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = float(az.rhat(value, method="rank"))
    return result if math.isfinite(result) else math.inf


def _chance(value: NDArray[np.float64], found: float) -> float:
    r"""Return how often half chains of one distribution differ so much that R-hat is as large.

    With :math:`m` half chains of length :math:`N`, worth :math:`n` independent draws each,
    :math:`(n - 1) (\hat R^2 - 1 + 1 / N)` has nearly the F distribution with :math:`m - 1` and :math:`m (n - 1)`
    degrees of freedom.

    Args:
        value: ``(chain, draw)``.
        found: R-hat.

    Returns:
        The p-value; zero where a half chain stands still.

    References:
        Gelman, Rubin (1992), Statistical Science 7(4), sec. 3, with effective numbers of draws.
    """
    import arviz as az
    from scipy.stats import f

    half = value.shape[1] // 2
    parts = np.concatenate([value[:, :half], value[:, -half:]])
    if not parts.std(1).all():
        return 0.0
    # Centred, so that what the halves disagree in does not pass for a slow chain.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        worth = min(float(az.ess(parts - parts.mean(1, keepdims=True), method="mean")) / len(parts), half)
    if not worth > 2:
        return 0.0
    # The variance within a half is that of its draws about their own mean: too small by one draw's worth.
    ratio = (worth - 1) * (found**2 - 1 + 1 / half)
    return float(f.sf(ratio, len(parts) - 1, len(parts) * (worth - 1)))


def funnel(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    r"""Check latents whose prior scale is itself latent for the funnel that centred hierarchical models have.

    For every latent with prior :math:`x \sim (m(\phi), s(\phi))` the variance of :math:`r = (x - m)/s` is taken over
    the tenth of the draws with the smallest :math:`s`. Data can only narrow :math:`x` given :math:`\phi` when the
    likelihood is log-concave, so near the neck this variance is one or less in the posterior. A guide that ignores the
    dependence keeps one width for :math:`x` however small :math:`s` becomes, and the variance is larger than any
    posterior's.

    Args:
        posterior: A fit.
        num_draws: Draws.
        seed: Of the draws.

    Returns:
        The check.

    Raises:
        NotApplicable: If no latent has a latent prior scale.

    References:
        Betancourt, Girolami (2015), Hamiltonian Monte Carlo for hierarchical models, arXiv:1312.0906;
        Brascamp, Lieb (1976), J. Funct. Anal. 22, theorem 4.1, for the bound on the conditional variance.
    """
    batch = posterior._prepare(None)
    if posterior.chains is None and "index" in batch and len(batch["index"]) > _ROWS_OF_SCALES:
        # Scales of priors do not depend on the data, so a part of the rows shows them as well.
        batch = take_rows(posterior.data, batch, torch.arange(_ROWS_OF_SCALES))
    own = batch if posterior.chains is None else None
    few = posterior.draws(3, batch=own, seed=seed)
    moving = [n for n, (_, scale) in _prior_scales(posterior, batch, few).items() if scale.log().std(0).amax() > 1e-6]
    if not moving:
        unread = _unread_priors(posterior, batch, few)
        if unread:
            raise NotApplicable(
                f"not examined: the prior of {', '.join(unread[:5])} depends on other latents, and has no location and "
                "scale that this check could read; whether there is a funnel is not known"
            )
        raise NotApplicable("no latent has a prior whose scale is itself latent, so there can be no such funnel")
    draws = posterior.draws(affordable(posterior, num_draws, least=100), batch=own, seed=seed)
    found = _prior_scales(posterior, batch, draws)
    worst: tuple[float, str, NDArray[Any], NDArray[Any]] | None = None
    widest = 1.0
    for name in moving:
        loc, scales = found[name]
        scale = _array(scales).reshape(len(scales), -1)
        x = (_array(draws[name]).reshape(scale.shape) - _array(loc).reshape(scale.shape)) / scale
        free = (np.log(scale).std(0) > 0.05) & (_array(draws[name]).reshape(scale.shape).std(0) > 0)
        if not free.any():
            continue
        scale, x = scale[:, free], x[:, free]
        neck = scale <= np.quantile(scale, 0.1, axis=0)
        inside = np.where(neck, x, np.nan)
        variances = np.nanvar(inside, axis=0, ddof=1)
        excess = float(variances.mean())
        low, high = np.quantile(scale, (0.05, 0.95), axis=0)
        widest = max(widest, float(np.median(high / low)))
        if worst is None or excess > worst[0]:
            pick = int(np.argmax(variances))
            worst = (excess, name, np.log(scale[:, pick]), _array(draws[name]).reshape(len(x), -1)[:, free][:, pick])
    if worst is None:
        raise NotApplicable("the latent scales of priors hardly vary in this fit, so there can be no such funnel")
    excess, name, log_scale, value = worst
    verdict = _judge(excess, 1.5, 2.0)
    if verdict == "pass" and widest > 10 and posterior.engine == "nuts":
        verdict = "warn"
    words = {
        "pass": "Latents narrow together with the latent scale of their prior, as they must.",
        "warn": f"The scale of the prior of '{name}' ranges over more than a factor of {widest:.0f}, so the "
        "posterior is a funnel that is hard to sample near its neck; look at the divergences, or use the "
        "non-centred form."
        if excess <= 1.5
        else f"'{name}' does not quite narrow together with the latent scale of its prior; consider the non-centred "
        "form.",
        "fail": f"The posterior is a funnel: where the prior scale of '{name}' is small, '{name}' must be narrow "
        "too, and this fit keeps it wide, so both are wrong; use the non-centred form.",
    }[verdict]
    return Check(
        name="funnel",
        title="Is there a funnel that the fit misses?",
        about="parameters",
        verdict=verdict,
        value={"variance in the neck": excess, "site": name, "prior scale, 95% over 5%": widest},
        threshold="variance of (x - prior mean) / prior scale in the tenth of draws with the smallest prior scale, "
        "at most 1 in the posterior: warn above 1.5, fail above 2",
        source="Betancourt, Girolami (2015), arXiv:1312.0906; bound: Brascamp, Lieb (1976), theorem 4.1; limits: ours",
        explanation=words,
        figure="funnel",
        data={"log_scale": log_scale, "value": value},
    )


_MULTIVARIATE = (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)


def _unread_priors(posterior: Posterior, batch: Batch, draws: Mapping[str, Tensor]) -> list[str]:
    """Return the latents whose prior changes with other latents, but is none of location and scale."""
    read = set(_prior_scales(posterior, batch, draws))
    model = posterior.runs.pair.model
    fixed = {n: v[0] for n, v in draws.items() if n not in read and v.is_floating_point()}

    def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        nodes = poutine.trace(poutine.condition(model, data=draw)).get_trace(batch).nodes
        return {n: nodes[n]["fn"].log_prob(v).sum() for n, v in fixed.items() if n in nodes}

    found = posterior.runs.map(one, len(next(iter(draws.values()))), draws, seed=0) if fixed else {}
    return [n for n, v in found.items() if not torch.allclose(v, v[:1], equal_nan=True)]


def _prior_scales(posterior: Posterior, batch: Batch, draws: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return location and scale of the prior of every real latent with a location-scale prior, at every draw."""
    model = posterior.pair.model
    known = sites(posterior, batch, {k: v[0] for k, v in draws.items()})
    latents = [n for n in draws if n in known and known[n].kind == "latent" and draws[n].is_floating_point()]

    def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        nodes = poutine.trace(poutine.condition(model, data=draw)).get_trace(batch).nodes
        out = {}
        for name in latents:
            fn = innermost(nodes[name]["fn"])
            loc, scale = getattr(fn, "loc", None), getattr(fn, "scale", None)
            support = getattr(fn, "support", None)
            if isinstance(fn, _MULTIVARIATE):  # the bound holds for each element, as the conditional covariance is less
                scale, support = fn.variance.sqrt(), torch.distributions.constraints.real
            if (
                isinstance(loc, Tensor)
                and isinstance(scale, Tensor)
                and support is torch.distributions.constraints.real
            ):
                shape = nodes[name]["value"].shape
                out[f"loc/{name}"], out[f"scale/{name}"] = loc.expand(shape), scale.expand(shape)
        return out

    if not latents:
        return {}
    found = posterior.runs.map(one, len(draws[latents[0]]), draws, seed=0)
    return {n: (found[f"loc/{n}"], found[f"scale/{n}"]) for n in latents if f"scale/{n}" in found}


# --------------------------------------------------------------------------------------------------------- chains
def r_hat(posterior: Posterior) -> Check:
    """Check that chains agree: rank-normalised split R-hat, the worst over all latents.

    Args:
        posterior: A fit by NUTS.

    Returns:
        The check.

    Raises:
        NotApplicable: If there are not two chains.

    References:
        Vehtari et al. (2021), Rank-normalization, folding, and localization, Bayesian Analysis 16(2).
    """
    elements = _chains(posterior)
    count = len(next(iter(elements.values())))
    if count < 2:
        raise NotApplicable("there is one chain; agreement needs at least two")
    values = {k: _split_free(v) for k, v in elements.items()}
    worst = max(values, key=lambda k: values[k])
    verdict = _judge(values[worst], 1.01, 1.05)
    p_value = None
    if verdict == "warn":
        # The largest of many is above 1.01 by chance where chains are worth a few hundred draws.
        above = [v for k, v in elements.items() if values[k] > 1.01]
        p_value = min(1.0, 2 * len(elements) * min(_chance(v, _split_free(v)) for v in above))
    return Check(
        name="r_hat",
        title="Do the chains agree?",
        about="parameters",
        verdict=verdict,
        value={"largest R-hat": values[worst], "at": worst, "chains": count},
        p_value=p_value,
        threshold="warn above 1.01, fail above 1.05; between them a p-value says how often chains that agree differ as "
        "much, given what each is worth",
        source=f"{_VEHTARI_2021}: 1.01; 1.05 as in Stan's `diagnose`",
        explanation="Chains that started apart now give the same distribution."
        if verdict == "pass"
        else f"Chains do not quite agree about '{worst}' (R-hat {values[worst]:.3f}): longer ones would."
        if verdict == "warn"
        else f"Chains disagree about '{worst}' (R-hat {values[worst]:.2f}): they have not mixed, so their draws are "
        "not draws from the posterior.",
        figure="bars",
        data={"values": np.array(sorted(values.values(), reverse=True)), "limit": np.array(1.01)},
    )


def ess(posterior: Posterior) -> Check:
    """Check that the chains hold enough independent information: the smallest bulk and tail effective sample size.

    Args:
        posterior: A fit by NUTS.

    Returns:
        The check.

    Raises:
        NotApplicable: If there are no chains.

    References:
        Vehtari et al. (2021), Rank-normalization, folding, and localization, Bayesian Analysis 16(2).
    """
    import arviz as az

    elements = _chains(posterior)
    smallest: dict[str, tuple[float, str]] = {}
    for method, of in (("bulk", az.ess), ("tail", tail_ess)):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            values = {k: float(of(v)) if np.ptp(v) > 0 else 0.0 for k, v in elements.items()}
        values = {k: v if math.isfinite(v) else 0.0 for k, v in values.items()}
        worst = min(values, key=lambda k: values[k])
        smallest[method] = (values[worst], worst)
    least = min(v for v, _ in smallest.values())
    verdict: Verdict = "fail" if least < 100 else "warn" if least < 400 else "pass"
    return Check(
        name="ess",
        title="Are there enough independent draws?",
        about="parameters",
        verdict=verdict,
        value={f"smallest {m} ESS": v for m, (v, _) in smallest.items()} | {"at": min(smallest.values())[1]},
        threshold="warn below 400, fail below 100 (means are then off by a tenth of a standard deviation)",
        source=f"{_VEHTARI_2021}: 400; 100: ours",
        explanation="The draws are worth enough independent ones for stable means and quantiles."
        if verdict == "pass"
        else f"The draws of '{min(smallest.values())[1]}' are worth only {least:.0f} independent ones: means and "
        "quantiles are still noisy; draw more, or reparametrise.",
    )


def divergences(posterior: Posterior) -> Check:
    """Check that the sampler could follow the posterior everywhere.

    Args:
        posterior: A fit by NUTS.

    Returns:
        The check.

    Raises:
        NotApplicable: If the sampler recorded no divergences.

    References:
        Betancourt (2017), A conceptual introduction to Hamiltonian Monte Carlo, arXiv:1701.02434.
    """
    if posterior.sample_stats is None or "diverging" not in posterior.sample_stats:
        raise NotApplicable("no sampler recorded divergences")
    flags = _array(posterior.sample_stats["diverging"]) > 0
    count, total = int(flags.sum()), flags.size
    tries = posterior.info.get("tries") or []
    # Smaller steps make divergences of a funnel rare without curing it: a few that are left at the smallest are enough,
    # and so is an energy that hardly moves where larger steps did diverge.
    left = int(sum(flags[k].sum() for k in stubborn(tries) if k < len(flags)))
    hidden = any(why["cause"] == "divergences" for why in tries) and _slowest_energy(posterior) < 0.3
    verdict: Verdict = "pass"
    if left or hidden or count >= max(1, 0.0025 * total):
        verdict = "fail"
    elif count:
        verdict = "warn"
    value: dict[str, Any] = {"divergences": count, "draws": total}
    if tries:
        value["drawn again"] = "; ".join(sentences(tries))
    went = f"{count} of {total:,} steps of the sampler went astray"
    if verdict == "pass":
        text = "No step of the sampler went astray."
    elif left or hidden:
        seen = (
            f"{went} even with the smallest steps that are tried"
            if left
            else "Steps went astray until they were made smaller, and now the sampler hardly changes its energy"
        )
        text = (
            f"{seen}: the geometry is at fault, as in the neck of a funnel, and every mean may be biased by that. "
            "Write what a scale multiplies as independent standard variables (non-centred; "
            "pyro.infer.reparam.LocScaleReparam), or keep the scale away from zero by its prior."
        )
    else:
        text = (
            f"{went}: there is a region, often the neck of a funnel, that it cannot enter, and every mean may be biased"
            " by that."
        )
    return Check(
        name="divergences",
        title="Did the sampler get everywhere?",
        about="parameters",
        verdict=verdict,
        value=value,
        threshold="warn from 1, fail from 10 in 4,000 draws (0.25%), from 1 at the smallest steps that are tried, or "
        "where smaller steps leave an E-BFMI below 0.3",
        source="Betancourt (2017), arXiv:1701.02434: any divergence is a warning; the rate is ours",
        explanation=text,
    )


def _slowest_energy(posterior: Posterior) -> float:
    """Return the smallest E-BFMI of a chain; infinity where no energies are known."""
    stats = posterior.sample_stats
    if stats is None or "energy" not in stats:
        return math.inf
    energy = _array(stats["energy"])
    spread = energy.var(1)
    return float((np.square(np.diff(energy, axis=1)).mean(1) / np.where(spread > 0, spread, 1.0)).min())


def e_bfmi(posterior: Posterior) -> Check:
    """Check that the sampler moved between energy levels fast enough.

    Args:
        posterior: A fit by NUTS.

    Returns:
        The check.

    Raises:
        NotApplicable: If the sampler recorded no energies.

    References:
        Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in HMC, arXiv:1604.00695.
    """
    import arviz as az

    if posterior.sample_stats is None or "energy" not in posterior.sample_stats:
        raise NotApplicable("no sampler recorded energies")
    values = np.atleast_1d(az.bfmi(_array(posterior.sample_stats["energy"])))
    least = float(values.min())
    verdict: Verdict = "fail" if not least >= 0.2 else "warn" if least < 0.3 else "pass"
    return Check(
        name="e_bfmi",
        title="Did the sampler explore the tails?",
        about="parameters",
        verdict=verdict,
        value={"smallest E-BFMI": least},
        threshold="warn below 0.3, fail below 0.2",
        source="Betancourt (2016), arXiv:1604.00695; 0.2 and 0.3 as in Stan's warnings",
        explanation="The sampler changed energy levels fast enough to see the tails."
        if verdict == "pass"
        else "The sampler changed energy levels slowly, so heavy tails may be under-explored.",
    )
