"""All checks of a fit together, and what follows from them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zoo.diagnostics import inference, predictive
from zoo.diagnostics.check import About, Check, NotApplicable
from zoo.errors import UnknownNameError, suggest

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["CHECKS", "Diagnosis", "Use", "diagnose"]

Use: TypeAlias = Literal["usable", "usable with care", "do not use"]

# Name -> function, what it concerns, title while it has not run, and which settings it takes.
CHECKS: dict[str, tuple[Callable[..., Check], About, str, tuple[str, ...]]] = {
    "optimiser_stationarity": (inference.optimiser_stationarity, "parameters", "Has the optimiser settled?", ()),
    "pareto_k": (inference.pareto_k, "parameters", "Is the guide close to the posterior?", ("num_draws", "seed")),
    "funnel": (inference.funnel, "parameters", "Is there a funnel that the fit misses?", ("num_draws", "seed")),
    "restart_agreement": (
        inference.restart_agreement,
        "parameters",
        "Do other starting points agree?",
        ("num_draws", "seed"),
    ),
    "r_hat": (inference.r_hat, "parameters", "Do the chains agree?", ()),
    "ess": (inference.ess, "parameters", "Are there enough independent draws?", ()),
    "divergences": (inference.divergences, "parameters", "Did the sampler get everywhere?", ()),
    "e_bfmi": (inference.e_bfmi, "parameters", "Did the sampler explore the tails?", ()),
    "predictive_check": (
        predictive.predictive_check,
        "predictions",
        "Does the fitted model reproduce the data?",
        ("num_draws", "seed"),
    ),
    "calibration": (predictive.calibration, "predictions", "Do predictions hold what they say?", ("num_draws", "seed")),
    "loo": (predictive.loo, "comparison", "Can leave-one-out be trusted?", ("num_draws", "seed")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the checks say together.

    Args:
        checks: Every check, also those that did not run.
        parameters: Whether the posterior of the parameters may be read: their means, spreads and intervals.
        predictions: Whether predictions may be used.
        verdict: The two together.
        reasons: Why, most serious first.
    """

    checks: tuple[Check, ...]
    parameters: Use
    predictions: Use
    verdict: Use
    reasons: tuple[str, ...]

    def __getitem__(self, name: str) -> Check:
        """Return a check by name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise UnknownNameError(f"check '{name}' was not asked for{suggest(name, [c.name for c in self.checks])}")

    def to_json(self) -> dict[str, Any]:
        """Return everything but the figures' arrays.

        Returns:
            A dict that ``json.dumps`` takes.
        """
        return {
            "verdict": self.verdict,
            "parameters": self.parameters,
            "predictions": self.predictions,
            "reasons": list(self.reasons),
            "checks": [check.to_json() for check in self.checks],
        }


def diagnose(
    posterior: Posterior, *, checks: Sequence[str] | None = None, seed: int = 0, num_draws: int = 1_000
) -> Diagnosis:
    """Run every check that applies to a fit, and say what may be done with it.

    A check that does not apply, or that an exception ended, is reported as ``not run`` with the reason; the exception's
    text and place stand in :attr:`Check.error`.

    The verdict: a failed check of the parameters (optimiser, guide, funnel, restarts, chains) means that their
    posterior must not be read. Predictions average over the parameters and can be good all the same, as those of a
    large network whose joint posterior no guide matches; under SVI they are judged by what was measured on held-out
    rows, and without such rows a failed check of the parameters counts against them too. Data that the model does not
    reproduce count against predictions likewise, unless held-out rows speak for them: then care is asked for. Chains
    that failed are not draws from the posterior, so nothing computed from them is used.

    Args:
        posterior: A fit.
        checks: Names of the checks to run; ``None`` runs all.
        seed: Of every draw.
        num_draws: Draws per check; large models take fewer.

    Returns:
        The diagnosis.

    Raises:
        UnknownNameError: If there is no check of such a name.
    """
    names = list(CHECKS) if checks is None else list(checks)
    for name in names:
        if name not in CHECKS:
            raise UnknownNameError(f"check '{name}' is unknown{suggest(name, CHECKS)}")
    done = tuple(_run(posterior, name, {"seed": seed, "num_draws": num_draws}) for name in names)
    return conclude(done, sampled=posterior.engine == "nuts")


def _run(posterior: Posterior, name: str, settings: dict[str, Any]) -> Check:
    function, about, title, takes = CHECKS[name]
    try:
        return function(posterior, **{k: settings[k] for k in takes})
    except NotApplicable as reason:
        return Check(name=name, title=title, about=about, verdict="not run", explanation=_sentence(str(reason)))
    except Exception as error:
        # One broken check must not hide the others; what broke is kept, with its place, and shown.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({frame.filename.rsplit('/', 1)[-1]}:{frame.lineno})"
        return Check(
            name=name,
            title=title,
            about=about,
            verdict="not run",
            explanation=f"The check ended in an error: {text}.",
            error=text,
        )


def conclude(checks: Sequence[Check], *, sampled: bool) -> Diagnosis:
    """Draw the conclusion from checks already made.

    Args:
        checks: The checks.
        sampled: Whether the posterior was sampled by chains.

    Returns:
        The diagnosis; see :func:`diagnose` for the rule.
    """
    about = {
        kind: [c for c in checks if c.about == kind and c.verdict != "not run"]
        for kind in ("parameters", "predictions", "comparison")
    }
    broken = [c for c in checks if c.error]
    reasons: list[str] = []
    parameters = _use(about["parameters"])
    predictions = _use(about["predictions"])
    held_out = [c for c in about["predictions"] if c.name == "calibration"]
    if predictions == "do not use" and held_out and held_out[0].verdict != "fail":
        predictions = "usable with care"
    # Without a look at the approximation itself nothing vouches for the parameters.
    vouched = any(c.name in ("pareto_k", "r_hat") for c in about["parameters"])
    if not vouched and parameters == "usable":
        parameters = "usable with care"
        reasons.append(
            "No check compared this fit with the posterior: "
            + next(
                (c.explanation for c in checks if c.name == ("r_hat" if sampled else "pareto_k")),
                "it was not asked for.",
            )
        )
    if parameters == "do not use" and predictions != "do not use":
        if sampled or not held_out:
            predictions = "do not use"
        else:
            predictions = "usable with care"
            reasons.insert(
                0,
                "Do not read the posterior of the parameters; the predictions held up on rows that were not fitted "
                "and can be used with care.",
            )
    if not about["predictions"] and predictions == "usable":
        predictions = "usable with care"
        reasons.append("No check compared predictions with data.")
    order: list[Use] = ["usable", "usable with care", "do not use"]
    verdict: Use = predictions if predictions == "do not use" else max(parameters, predictions, key=order.index)
    if parameters == "do not use" and predictions != "do not use":
        verdict = "usable with care"
    if verdict == "usable" and (broken or any(c.verdict != "pass" for c in about["comparison"])):
        verdict = "usable with care"
    for wanted in ("fail", "warn"):
        reasons += [c.explanation for c in checks if c.verdict == wanted]
    reasons += [f"{c.title} {c.explanation}" for c in broken]
    if not reasons:
        reasons = ["Every check that applies passed."]
    return Diagnosis(
        checks=tuple(checks), parameters=parameters, predictions=predictions, verdict=verdict, reasons=tuple(reasons)
    )


def _use(checks: Sequence[Check]) -> Use:
    verdicts = {c.verdict for c in checks}
    return "do not use" if "fail" in verdicts else "usable with care" if "warn" in verdicts else "usable"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
