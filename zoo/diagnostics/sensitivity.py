"""How much the posterior owes to the prior and to the likelihood: power scaling with importance weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine

from zoo.diagnostics.adapter import _log_prob, sites
from zoo.diagnostics.check import Check, NotApplicable, Verdict
from zoo.diagnostics.inference import (
    _array,
    _elements,
    _judge,
    _needs_guide,
    affordable,
    khat,
    khat_threshold,
    network_weights,
    point_sites,
    refuse_rows_alone,
)
from zoo.diagnostics.psis import psis
from zoo.inference.sites import traces

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = ["cumulative_jensen_shannon", "parts_of_the_prior", "power_scaling", "reweighted_moments"]

_STEP = 0.01
_LIMIT = 0.05
_MOST_PARAMETERS = 50
_TINY = 1e-30
_MEANS = (0.3, 1.0)  # from where on a mean that moves, in standard deviations, is a warning, and a failure
_RATIOS = (1.25, 2.0)  # the same of a ratio of standard deviations, or its inverse


def cumulative_jensen_shannon(values: NDArray[np.float64], p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    r"""Return the cumulative Jensen-Shannon distance of two weighted samples at the same values.

    .. math:: \mathrm{CJS}(P \| Q) = \int P \log_2 \frac{2P}{P + Q}\,dx + \frac{1}{2 \ln 2} \int (Q - P)\,dx

    with distribution functions :math:`P, Q`, made symmetric, divided by :math:`\int P + \int Q`, square root taken; the
    larger of the values for :math:`x` and :math:`-x`, since it is not invariant to the sign.

    Args:
        values: ``(n,)``.
        p: Weights, ``(n,)``, which sum to one.
        q: Other weights.

    Returns:
        Distance between 0 and 1.

    References:
        Nguyen, Vreeken (2015), Non-parametric Jensen-Shannon divergence; Kallioinen et al. (2023), eq. 8.
    """
    order = np.argsort(values, kind="stable")
    width = np.diff(values[order])

    def one_way(p: NDArray[np.float64], q: NDArray[np.float64], width: NDArray[np.float64]) -> float:
        first, second = np.cumsum(p)[:-1], np.cumsum(q)[:-1]
        middle = 0.5 * (first + second)
        with np.errstate(all="ignore"):
            forth = np.where(first > 0, first * np.log2(first / middle), 0.0) @ width
            back = np.where(second > 0, second * np.log2(second / middle), 0.0) @ width
        bound = float((first + second) @ width)
        return max(float(forth + back), 0.0) / bound if bound > 0 else 0.0

    p, q = p[order], q[order]
    return math.sqrt(max(one_way(p, q, width), one_way(p[::-1], q[::-1], width[::-1])))


def _densities(
    posterior: Posterior, batch: Batch, num_draws: int, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Return draws, and at each the log density of the top-level priors, of all data, and the log weight."""
    first = {k: v[0] for k, v in posterior.draws(1, seed=seed).items()}
    known = sites(posterior, batch, first)
    if any(s.kind in ("enumerated", "factor") for s in known.values()):
        raise NotApplicable("enumerated latents or factors belong to neither the prior nor the likelihood alone")
    seen = [s.name for s in known.values() if s.kind == "observed"]
    if not seen:
        raise NotApplicable("the model observes no data")
    latents = [n for n in first if n in known and known[n].kind == "latent"]
    model, guide = posterior.pair.model, posterior.pair.drawing

    def at(nodes: Any) -> dict[str, Tensor]:
        out = {f"draw/{n}": nodes[n]["value"] for n in latents}
        out |= {f"here/{n}": _log_prob(nodes[n]).sum() for n in latents}
        out |= {f"fixed/{n}": nodes[n]["fn"].log_prob(first[n]).sum() for n in latents}
        return out | {f"data/{n}": _log_prob(nodes[n]).sum() for n in seen}

    if posterior.chains is not None:
        draws = {k: v.flatten(0, 1) for k, v in posterior.chains.items()}

        def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
            return at(poutine.trace(poutine.condition(model, data=draw)).get_trace(batch).nodes)

        found = posterior.runs.map(one, len(next(iter(draws.values()))), draws, seed=seed)
        weight = np.zeros(len(found[f"here/{latents[0]}"]))
    else:
        assert guide is not None

        def weighted(_: dict[str, Tensor]) -> dict[str, Tensor]:
            trace, drawn = traces(model, guide, batch)
            return at(trace.nodes) | {"w": torch.as_tensor(trace.log_prob_sum() - drawn.log_prob_sum())}

        found = posterior.runs.map(weighted, num_draws, seed=seed)
        weight = _array(found["w"])
    # A prior that depends on other latents belongs to the model's structure; only those at the top are scaled.
    top = [n for n in latents if float(np.ptp(_array(found[f"fixed/{n}"]))) < 1e-4]
    if not top:
        raise NotApplicable("every prior depends on other latents")
    density = {
        "prior": np.sum([_array(found[f"here/{n}"]) for n in top], axis=0),
        "likelihood": np.sum([_array(found[f"data/{n}"]) for n in seen], axis=0),
        "weight": weight,
    }
    return {n: _array(found[f"draw/{n}"]) for n in latents}, density


def reweighted_moments(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    """Check that weighting the guide's draws towards the posterior leaves means and standard deviations as they are.

    k-hat says whether weights can be trusted; where they can, they say how wrong the guide is. Changes are judged
    beyond their Monte Carlo error (Bonferroni, 99%).

    Args:
        posterior: A fit by SVI.
        num_draws: Draws; four times as many are taken.
        seed: Of the draws.

    Returns:
        The check.

    Raises:
        NotApplicable: If there is no guide, it is a point, or its weights cannot be trusted.

    References:
        Yao, Vehtari, Simpson, Gelman (2018), arXiv:1802.02538, sec. 2, for means from smoothed weights; Owen (2013),
        Monte Carlo theory, methods and examples, eq. 9.8, for their error; limits: ours.
    """
    from scipy.stats import norm

    _needs_guide(posterior)
    refuse_rows_alone(posterior)
    if not point_sites(posterior)[1]:
        raise NotApplicable("the guide is a point estimate, which has no spread")
    if affordable(posterior, num_draws) < num_draws:
        raise NotApplicable("the model is too large for the draws that reweighting needs")
    model, guide = posterior.pair.model, posterior.pair.drawing
    assert guide is not None
    batch = posterior._prepare(None)
    names = list(posterior.draws(1))

    def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
        trace, drawn = traces(model, guide, batch)
        out = {f"draw/{n}": drawn.nodes[n]["value"] for n in names if n in drawn.nodes}
        return out | {"w": torch.as_tensor(trace.log_prob_sum() - drawn.log_prob_sum())}

    count = affordable(posterior, 4 * num_draws)
    found = posterior.runs.map(one, count, seed=seed)
    log = _array(found.pop("w"))
    k = khat(log)
    if not k <= khat_threshold(count):
        raise NotApplicable("the guide is too far from the posterior for its draws to be reweighted")
    weights = _smoothed(log)
    values = {n.removeprefix("draw/"): _array(v)[None] for n, v in found.items()}
    elements = {n: v[0] for n, v in _elements(posterior, values).items() if v.std() > 0}
    quantile = float(norm.ppf(1 - 0.005 / max(len(elements), 1)))
    shifts, ratios, sure_shift, sure_ratio = {}, {}, {}, {}
    for name, x in elements.items():
        mean, sd = float(x.mean()), float(x.std())
        centre = float(weights @ x)
        square = (x - centre) ** 2
        variance = float(weights @ square)
        shift = (centre - mean) / math.sqrt(variance)
        noise = math.sqrt(float((weights**2) @ square) / variance + sd**2 / variance / count)
        log_ratio = math.log(sd) - 0.5 * math.log(variance)
        # Of half the log of a variance, by the delta method, weighted and plain.
        error = math.sqrt(
            0.25 * float((weights**2) @ (square / variance - 1) ** 2)
            + 0.25 * float(((((x - mean) / sd) ** 2 - 1) ** 2).mean()) / count
        )
        shifts[name], ratios[name] = shift, math.exp(log_ratio)
        sure_shift[name] = max(abs(shift) - quantile * noise, 0.0)
        sure_ratio[name] = math.exp(max(abs(log_ratio) - quantile * error, 0.0))
    at_shift = max(shifts, key=lambda n: (sure_shift[n], abs(shifts[n])))
    at_ratio = max(ratios, key=lambda n: (sure_ratio[n], abs(math.log(ratios[n]))))
    verdicts = (_judge(sure_shift[at_shift], *_MEANS), _judge(sure_ratio[at_ratio], *_RATIOS))
    verdict: Verdict = "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "pass"
    if verdict == "pass":
        words = (
            "Weighting the guide's draws towards the posterior leaves its means and standard deviations as they are."
        )
    elif verdicts[1] != "pass":
        words = (
            f"The guide's standard deviation of '{at_ratio}' is {ratios[at_ratio]:.2f} times that of its draws "
            f"weighted towards the posterior: its intervals are too {'narrow' if ratios[at_ratio] < 1 else 'wide'}."
        )
    else:
        words = (
            f"Weighted towards the posterior, the mean of '{at_shift}' moves by {shifts[at_shift]:.2f} posterior "
            "standard deviations."
        )
    return Check(
        name="reweighted_moments",
        title="Do means and spreads stay when draws are weighted?",
        about="parameters",
        verdict=verdict,
        value={
            "ratio of standard deviations": ratios[at_ratio],
            "of": at_ratio,
            "shift of a mean in sd": shifts[at_shift],
            "at": at_shift,
            "k-hat": k,
            "draws": count,
        },
        threshold="beyond Monte Carlo error: shift of a mean, warn above 0.3, fail above 1 standard deviation; ratio "
        "of standard deviations, or its inverse, warn above 1.25, fail above 2",
        source="Yao, Vehtari, Simpson, Gelman (2018), arXiv:1802.02538; limits: ours",
        explanation=words,
    )


def _smoothed(log: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pareto-smoothed weights that sum to one."""
    if np.ptp(log) < 1e-12:
        return np.full(len(log), 1 / len(log))
    smooth = np.exp(psis(log)[0])
    return np.asarray(smooth / smooth.sum())


def parts_of_the_prior(posterior: Posterior, batch: Batch) -> set[str]:
    """Return the latents that only shape the prior of others: scales of shrinkage, and what these scales multiply.

    A scale is one of them if the likelihood does not depend on it where all real latents are zero: centred, it never
    does; non-centred, it multiplies them. What it multiplies is a latent that the likelihood does not depend on where
    these scales vanish. That such a latent rests on its prior is what the method is for.

    Args:
        posterior: A fit.
        batch: Its training batch.

    Returns:
        Their names.
    """
    drawn = posterior.draws(2)
    one, other = ({k: v[i] for k, v in drawn.items()} for i in range(2))
    known = sites(posterior, batch, one)
    seen = [s.name for s in known.values() if s.kind == "observed"]
    latents = [n for n in one if n in known and known[n].kind == "latent" and one[n].is_floating_point()]
    model = posterior.pair.model
    with posterior.runs.bound():
        nodes = poutine.trace(poutine.condition(model, data=one)).get_trace(batch).nodes
    support = {n: nodes[n]["fn"].support for n in latents}
    real = [n for n in latents if torch.distributions.constraints.real in (support[n], _inner(support[n]))]
    scales = [n for n in latents if bool((one[n] > 0).all()) and n not in real]

    def likelihood(values: dict[str, Tensor]) -> float:
        with posterior.runs.bound(), torch.no_grad():
            found = poutine.trace(poutine.condition(model, data=values)).get_trace(batch).nodes
            return sum(float(_log_prob(found[n]).sum()) for n in seen)

    def same(a: float, b: float) -> bool:
        return abs(a - b) <= 1e-6 * max(abs(a), 1.0)

    flat = {**one, **{n: torch.zeros_like(one[n]) for n in real}}
    base = likelihood(flat)
    # Not the other draw alone: a scale that is nearly certain would hardly differ there.
    shaping = {n for n in scales if same(likelihood({**flat, n: 2 * other[n]}), base)}
    if not shaping:
        return set()
    closed = {**one, **{n: torch.full_like(one[n], _TINY) for n in shaping}}
    base = likelihood(closed)
    return shaping | {n for n in real if same(likelihood({**closed, n: one[n] + 1.0}), base)}


def _inner(support: Any) -> Any:
    return getattr(support, "base_constraint", support)


def power_scaling(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    r"""Check how much the posterior changes when the prior, or the likelihood, is raised to a power near one.

    Draws get the weights :math:`p(\theta)^{\alpha - 1}` (or those of the likelihood), smoothed by PSIS, for
    :math:`\alpha = 0.99` and :math:`1.01`; draws of a guide are first weighted towards the posterior. The sensitivity
    of a parameter is the change of its distribution per doubling of :math:`\alpha`,
    :math:`\mathrm{CJS} / |\log_2 \alpha|`, averaged over both. Only priors that depend on no other latent are scaled,
    and latents that only shape the prior of others are not judged: they rest on their priors by design.

    Args:
        posterior: A fit.
        num_draws: Draws from a guide.
        seed: Of the draws.

    Returns:
        The check. It never fails: a sensitive posterior is not wrong, but its prior needs a reason.

    Raises:
        NotApplicable: If the draws cannot be reweighted, or prior and likelihood cannot be told apart.

    References:
        Kallioinen, Paananen, Bürkner, Vehtari (2023), Statistics and Computing 34, sec. 2 and table 1.
    """
    if posterior.chains is None:
        _needs_guide(posterior)
        refuse_rows_alone(posterior)
        if affordable(posterior, num_draws) < num_draws:
            raise NotApplicable("the model is too large for the draws that reweighting needs")
    batch = posterior._prepare(None)
    draws, density = _densities(posterior, batch, num_draws, seed)
    base = density["weight"]
    if np.ptp(base) > 0 and khat(base) > khat_threshold(len(base)):
        raise NotApplicable("the guide is too far from the posterior for its draws to be reweighted")
    hidden = parts_of_the_prior(posterior, batch) | set(network_weights(posterior))
    judged = {k: v[None] for k, v in draws.items() if k not in hidden}
    if not judged:
        raise NotApplicable("every latent shapes the prior of others, or is a weight of a network")
    values = {k: v[0] for k, v in _elements(posterior, judged).items() if v.std() > 0}
    if not values:
        raise NotApplicable("no latent varies")
    step = max(1, math.ceil(len(values) / _MOST_PARAMETERS))
    values = dict(list(values.items())[::step])

    start = _smoothed(base)
    prior, data = density["prior"], density["likelihood"]
    sensitivity: dict[str, dict[str, float]] = {}
    for part, log in (("prior", prior), ("likelihood", data)):
        scaled = {a: _smoothed(base + (a - 1) * log) for a in (1 - _STEP, 1 + _STEP)}
        sensitivity[part] = {
            name: float(
                np.mean([cumulative_jensen_shannon(v, start, w) / abs(math.log2(a)) for a, w in scaled.items()])
            )
            for name, v in values.items()
        }
    prior_worst = max(sensitivity["prior"], key=lambda k: sensitivity["prior"][k])
    least_data = min(sensitivity["likelihood"], key=lambda k: sensitivity["likelihood"][k])
    large = sensitivity["prior"][prior_worst]
    verdict: Verdict = "warn" if large > _LIMIT else "pass"
    of_data = sensitivity["likelihood"][prior_worst]
    if verdict == "pass":
        words = "A somewhat wider or narrower prior would hardly change the posterior."
        if sensitivity["likelihood"][least_data] <= _LIMIT:
            words += f" The data say little about '{least_data}'."
    elif of_data > _LIMIT:
        words = (
            f"Prior and data pull '{prior_worst}' in different directions: if the prior is not a deliberate choice, "
            "widen it and see what changes."
        )
    else:
        words = (
            f"The data say little about '{prior_worst}', so its posterior is mostly its prior: give a reason for that "
            "prior, or do not interpret this parameter."
        )
    return Check(
        name="power_scaling",
        title="Does the prior decide the result?",
        about="parameters",
        verdict=verdict,
        value={
            "largest sensitivity to the prior": large,
            "of": prior_worst,
            "its sensitivity to the likelihood": of_data,
            "parameters": len(values),
        },
        threshold=f"sensitivity to the prior (CJS distance per doubling of its power): warn above {_LIMIT}",
        source="Kallioinen, Paananen, Bürkner, Vehtari (2023), Statistics and Computing 34",
        explanation=words,
        figure="sensitivity",
        data={
            "labels": np.array(list(values)),
            "prior": np.array(list(sensitivity["prior"].values())),
            "likelihood": np.array(list(sensitivity["likelihood"].values())),
            "limit": np.array(_LIMIT),
        },
    )
