"""How much the posterior owes to the prior and to the likelihood: power scaling with importance weights."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine

from zoo.diagnostics.adapter import _log_prob, sites
from zoo.diagnostics.check import Check, NotApplicable, Verdict
from zoo.diagnostics.inference import (
    _array,
    _elements,
    _needs_guide,
    affordable,
    khat,
    khat_threshold,
    refuse_rows_alone,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = ["cumulative_jensen_shannon", "power_scaling"]

_STEP = 0.01
_LIMIT = 0.05
_MOST_PARAMETERS = 50


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
            drawn = poutine.trace(guide).get_trace(batch)
            trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(batch)
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


def power_scaling(posterior: Posterior, *, num_draws: int = 1_000, seed: int = 0) -> Check:
    r"""Check how much the posterior changes when the prior, or the likelihood, is raised to a power near one.

    Draws get the weights :math:`p(\theta)^{\alpha - 1}` (or those of the likelihood), smoothed by PSIS, for
    :math:`\alpha = 0.99` and :math:`1.01`; draws of a guide are first weighted towards the posterior. The sensitivity
    of a parameter is the change of its distribution per doubling of :math:`\alpha`,
    :math:`\mathrm{CJS} / |\log_2 \alpha|`, averaged over both. Only priors that depend on no other latent are scaled.

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
    import arviz as az

    if posterior.chains is None:
        _needs_guide(posterior)
        refuse_rows_alone(posterior)
        if affordable(posterior, num_draws) < num_draws:
            raise NotApplicable("the model is too large for the draws that reweighting needs")
    draws, density = _densities(posterior, posterior._prepare(None), num_draws, seed)
    base = density["weight"]
    if np.ptp(base) > 0 and khat(base) > khat_threshold(len(base)):
        raise NotApplicable("the guide is too far from the posterior for its draws to be reweighted")
    values = {k: v[0] for k, v in _elements({k: v[None] for k, v in draws.items()}).items() if v.std() > 0}
    if not values:
        raise NotApplicable("no latent varies")
    step = max(1, math.ceil(len(values) / _MOST_PARAMETERS))
    values = dict(list(values.items())[::step])

    def weights(log: NDArray[np.float64]) -> NDArray[np.float64]:
        if np.ptp(log) < 1e-12:
            return np.full(len(log), 1 / len(log))
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            smooth = np.exp(az.psislw(log.copy())[0])
        return np.asarray(smooth / smooth.sum())

    start = weights(base)
    prior, data = density["prior"], density["likelihood"]
    sensitivity: dict[str, dict[str, float]] = {}
    for part, log in (("prior", prior), ("likelihood", data)):
        scaled = {a: weights(base + (a - 1) * log) for a in (1 - _STEP, 1 + _STEP)}
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
