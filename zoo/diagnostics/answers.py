"""Three answers out of many checks: did the fit come to its end, can parameters be read, can predictions be used.

A check has a level, a sentence that rests on ten checks has not: one in three right fits would be called into question.
Here the checks behind an answer are taken together. Those that report a p-value are adjusted by Holm's method, so that
one of them speaks against a right fit in at most one of twenty; those with a threshold (R-hat, divergences, k-hat) were
placed where a right fit hardly ever is, which ``zoo diagnostics`` measures, answer by answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from zoo.diagnostics.check import Check

__all__ = ["LEVEL", "Answer", "Facts", "Use", "answers", "headline", "holm"]

Use: TypeAlias = Literal["usable", "usable with care", "do not use", "not examined", "not meant to be read"]

LEVEL = 0.05
"""Of all p-values behind one answer together."""

QUESTIONS = {
    "fit": "Did the fit come to its end?",
    "parameters": "Can the parameters be read?",
    "predictions": "Can the predictions be used?",
}

# What an answer rests on, most telling first.
_END = {
    False: ("optimiser_stationarity",),
    True: ("r_hat", "divergences", "ess", "e_bfmi"),
}
_POSTERIOR = (
    "vi_against_nuts",
    "pareto_k",
    "reweighted_moments",
    "pareto_k_rows",
    "restart_agreement",
    "funnel",
    "simulation_calibration",
    "interval_coverage",
    "prior_predictive_check",
)
_HELD_OUT = ("calibration", "scores", "selective_prediction", "out_of_distribution")
_PREDICTIONS = (*_HELD_OUT, "predictive_check")
# One of these must have run: the others would not notice that a guide is far from the posterior.
_VOUCHING = frozenset({"pareto_k", "pareto_k_rows", "r_hat", "vi_against_nuts", "simulation_calibration"})
_OF_THE_PRIOR = frozenset({"simulation_calibration", "interval_coverage"})
_ORDER: tuple[Use, ...] = ("usable", "usable with care", "do not use")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the checks say together about one question.

    Args:
        name: ``fit``, ``parameters`` or ``predictions``.
        question: The question.
        use: The answer; ``not examined`` where no check could tell, ``not meant to be read`` for weights of a network.
        reason: Why, in a sentence or two.
        command: Command line to try, where one would help; empty where none would, or the fit cannot be repeated by
            the command line.
        python: The same in Python.
        checks: Names of the checks that it rests on, the decisive ones first.
    """

    name: str
    question: str
    use: Use
    reason: str
    command: str = ""
    python: str = ""
    checks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything.

        Returns:
            A dict that ``json.dumps`` takes.
        """
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return found | {"checks": list(self.checks)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the answers need to know of a fit beside its checks.

    Args:
        sampled: Whether chains were sampled.
        weights: Latents that are weights of a network, which can be permuted without changing what it computes.
        point: Whether the guide holds every latent at one point.
        latent: Whether the model has latents at all.
        again: Why chains were drawn again, once for each time.
    """

    sampled: bool
    weights: tuple[str, ...] = ()
    point: bool = False
    latent: bool = True
    again: tuple[str, ...] = ()


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    r"""Adjust p-values so that the smallest is below a level by chance no more often than the level says.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\bigl(1, (m - j + 1)\, p_{(j)}\bigr)

    Args:
        p_values: Name -> p-value.

    Returns:
        Name -> adjusted p-value.

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    found: dict[str, float] = {}
    largest = 0.0
    for i, name in enumerate(sorted(p_values, key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
        found[name] = largest
    return found


def answers(checks: Sequence[Check], facts: Facts) -> tuple[Answer, Answer, Answer]:
    """Draw the three answers from checks already made.

    Args:
        checks: The checks.
        facts: What else must be known of the fit.

    Returns:
        The answers about the fit, the parameters and the predictions, without commands.
    """
    ran = {c.name: c for c in checks if c.verdict != "not run"}
    fit = _fit(ran, facts)
    parameters = _parameters(ran, facts, fit, checks)
    return fit, parameters, _predictions(ran, facts, fit, parameters)


def headline(given: Sequence[Answer]) -> Use:
    """Return the one word for a fit: what may be done with it, whichever of its uses is meant.

    Args:
        given: The three answers.

    Returns:
        ``usable``, ``usable with care`` or ``do not use``.
    """
    use = {a.name: a.use for a in given}
    parameters, predictions = use["parameters"], use["predictions"]
    if predictions == "do not use":
        return "do not use"
    if predictions not in _ORDER:
        return "do not use" if "do not use" in (parameters, use["fit"]) else "usable with care"
    if parameters == "not meant to be read":
        return predictions
    return predictions if parameters == "usable" else "usable with care"


# ---------------------------------------------------------------------------------------------------- the answers
def _fit(ran: Mapping[str, Check], facts: Facts) -> Answer:
    used = _counted(ran, _END[facts.sampled])
    stationary = used.get("optimiser_stationarity")
    left = _left_to_gain(ran)
    settled = ""
    if stationary is not None and stationary.verdict != "pass" and left is not None and left <= _enough(stationary):
        # No number of steps gains more than the divergence that is left.
        used["optimiser_stationarity"] = dataclasses.replace(stationary, verdict="pass")
        settled = (
            f"The loss is not quite steady, but the draws of the guide show that no number of steps could gain more "
            f"than {max(left, 0.0):.2g} nats."
        )
    use = _use(used.values())
    causes = ", ".join(f"{cause} {facts.again.count(cause)}" for cause in dict.fromkeys(facts.again))
    again = f" The sampler drew chains again before that ({causes})." if causes else ""
    if not used:
        what = "chains" if facts.sampled else "the loss"
        return _answer("fit", "not examined", f"No check of {what} could be made.{again}", ())
    if use == "usable":
        words = settled or _positive(used, _END[facts.sampled])
        return _answer("fit", use, words + again, used)
    return _answer("fit", use, _against(used) + again, used)


def _parameters(ran: Mapping[str, Check], facts: Facts, fit: Answer, checks: Sequence[Check]) -> Answer:
    if facts.weights:
        names = ", ".join(facts.weights[:6]) + (", ..." if len(facts.weights) > 6 else "")
        return _answer(
            "parameters",
            "not meant to be read",
            f"The latents are weights of a network ({names}): its units can be exchanged without changing what it "
            "computes, so single weights mean nothing; judge the predictions.",
            (),
        )
    used = _counted(ran, _POSTERIOR)
    near = used.get("pareto_k")
    moments = used.get("reweighted_moments")
    if near is not None and near.verdict == "warn" and moments is not None and moments.verdict == "pass":
        # Weights that can still be trusted leave means and spreads where they are.
        used["pareto_k"] = dataclasses.replace(near, verdict="pass")
    local = used.get("vi_against_nuts") or used.get("pareto_k")
    if local is not None and (local.verdict == "pass" or (local.name == "vi_against_nuts" and local.verdict == "warn")):
        # Refits speak of all data that the prior expects; what was measured at the data at hand outweighs them.
        for name in _OF_THE_PRIOR & set(used):
            if used[name].verdict == "fail":
                used[name] = dataclasses.replace(used[name], verdict="warn")
    use = _use(used.values())
    chains = _END[True] if facts.sampled else ()
    if not facts.latent:
        return _answer(
            "parameters",
            "not examined",
            "The model has no latents that are drawn: its parameters are trained numbers, of unknown uncertainty.",
            used,
        )
    if facts.point:
        return _answer(
            "parameters",
            "not examined",
            "The guide is a point estimate: it says nothing about how uncertain the parameters are.",
            used,
        )
    if not _VOUCHING & ({*used} | {c for c in chains if c in ran}):
        wanted = "r_hat" if facts.sampled else "pareto_k"
        why = next((c.explanation for c in checks if c.name == wanted), "it was not asked for.")
        if use == "usable":
            return _answer("parameters", "not examined", f"No check compared this fit with the posterior: {why}", used)
    # Draws of unfinished chains are no draws from the posterior; a guide that is not at its best may be close to it.
    carried: Use = fit.use if fit.use in _ORDER and (facts.sampled or fit.use == "do not use") else "usable"
    worst = max(use, carried, key=_ORDER.index)
    # A posterior that owes something to its prior is the right one all the same; whether prior and data contradict each
    # other is a question of its own. What it owes is said.
    prior = ran.get("power_scaling")
    owed = f" {prior.explanation}" if prior is not None and prior.verdict != "pass" else ""
    if worst == "usable":
        shown = {**{n: ran[n] for n in chains if n in ran}, **used}
        return _answer("parameters", worst, _positive(shown, (*chains, *_POSTERIOR)) + owed, shown)
    if _ORDER.index(carried) > _ORDER.index(use):
        end = "sampler" if facts.sampled else "optimiser"
        return _answer("parameters", carried, f"The {end} did not come to its end: {_lower(fit.reason)}", fit.checks)
    return _answer("parameters", worst, _against(used) + owed, used)


def _predictions(ran: Mapping[str, Check], facts: Facts, fit: Answer, parameters: Answer) -> Answer:
    used = _counted(ran, _PREDICTIONS)
    for name in ("selective_prediction", "out_of_distribution"):
        # These judge what else predictions can be used for, not the predictions themselves.
        if name in used and used[name].verdict == "fail":
            used[name] = dataclasses.replace(used[name], verdict="warn")
    new_rows = [n for n in ("calibration", "scores") if n in used]
    replicated = used.get("predictive_check")
    note = ""
    if new_rows and replicated is not None and replicated.verdict != "pass":
        held = all(used[n].verdict == "pass" for n in new_rows) and len(new_rows) > 1
        if held and _of_the_extremes(replicated):
            # What new rows confirm is usable, except for what they are too few to show.
            note = f" {replicated.explanation}"
            used["predictive_check"] = dataclasses.replace(replicated, verdict="pass")
        else:
            used["predictive_check"] = dataclasses.replace(replicated, verdict="warn")
    if not used:
        return _answer("predictions", "not examined", "No check compared predictions with data.", ())
    use = _use(used.values())
    carried, why = _doubted(facts, fit, parameters, bool(new_rows))
    if _ORDER.index(carried) > _ORDER.index(use):
        return _answer("predictions", carried, why, used)
    if use != "usable":
        return _answer("predictions", use, _against(used), used)
    if facts.weights and not new_rows:
        return _answer(
            "predictions",
            "not examined",
            "There are no held-out rows, and a network can reproduce the rows that it was fitted to without predicting "
            "others.",
            used,
        )
    return _answer("predictions", use, _positive(used, new_rows or _PREDICTIONS) + note, used)


def _of_the_extremes(replicated: Check) -> bool:
    """Return whether all that is wrong with replicated data is that they go beyond the observed extremes.

    So does every normal distribution of data that have a bound. Data further out than all replicates are outliers, of
    which new rows show too few to clear the model of them.
    """
    value = replicated.value if isinstance(replicated.value, Mapping) else {}
    inside = float(value.get("beyond the largest or smallest", 0.0)) > LEVEL
    return inside and float(value.get("without extremes", 0.0)) > LEVEL


def _doubted(facts: Facts, fit: Answer, parameters: Answer, new_rows: bool) -> tuple[Use, str]:
    """Return what the fit itself leaves of its predictions, before they are compared with data."""
    if fit.use == "do not use":
        if new_rows:
            return "usable with care", (
                "On rows that were not fitted the predictions hold what they say, but the fit did not come to its end: "
                f"{_lower(fit.reason)}"
            )
        return "do not use", f"The fit did not come to its end: {_lower(fit.reason)}"
    if not new_rows and not facts.weights and parameters.use == "do not use":
        return "do not use", (
            "Predictions average over the parameters, no rows were held out to judge them by, and of the parameters: "
            f"{_lower(parameters.reason)}"
        )
    return "usable", ""


# --------------------------------------------------------------------------------------------------------- shared
def _counted(ran: Mapping[str, Check], names: Sequence[str]) -> dict[str, Check]:
    """Return the checks behind an answer, with the verdicts that are left after Holm's adjustment."""
    mine = {n: ran[n] for n in names if n in ran}
    adjusted = holm({n: c.p_value for n, c in mine.items() if c.p_value is not None})
    for name, p_value in adjusted.items():
        verdict = mine[name].verdict
        if verdict == "pass":
            continue
        left = "pass" if p_value > LEVEL else "warn" if p_value > LEVEL / 5 else verdict
        mine[name] = dataclasses.replace(mine[name], verdict=left)
    return mine


def _use(checks: Any) -> Use:
    verdicts = {c.verdict for c in checks}
    return "do not use" if "fail" in verdicts else "usable with care" if "warn" in verdicts else "usable"


def _answer(name: str, use: Use, reason: str, checks: Any) -> Answer:
    if isinstance(checks, Mapping):
        order = {"fail": 0, "warn": 1}
        checks = sorted(checks, key=lambda n: order.get(checks[n].verdict, 2))
    return Answer(name=name, question=QUESTIONS[name], use=use, reason=reason, checks=tuple(checks))


def _positive(used: Mapping[str, Check], order: Sequence[str]) -> str:
    """Say what speaks for the fit: the first two checks, and how many agree."""
    passed = [used[n] for n in order if n in used and used[n].verdict == "pass"]
    return " ".join(c.explanation for c in passed[:2])


def _against(used: Mapping[str, Check]) -> str:
    """Say what speaks against the fit, the two most serious checks at most."""
    wanted = [c for c in used.values() if c.verdict == "fail"] + [c for c in used.values() if c.verdict == "warn"]
    return " ".join(c.explanation for c in wanted[:2])


def _left_to_gain(ran: Mapping[str, Check]) -> float | None:
    """Return the divergence of the guide in nats, where its weights tell it."""
    found = ran.get("pareto_k")
    if found is None or found.verdict == "fail" or not isinstance(found.value, Mapping):
        return None
    value = found.value.get("nats to the posterior")
    return None if value is None else float(value)


def _enough(stationary: Check) -> float:
    """Return the nats from which on a further gain counts as a failure of the optimiser."""
    value = stationary.value if isinstance(stationary.value, Mapping) else {}
    return float(value.get("gain that matters", 1.0))


def _lower(text: str) -> str:
    """Return a sentence as it stands after a colon."""
    return text if text[:2].isupper() or text[:2] == "E-" else text[:1].lower() + text[1:]
