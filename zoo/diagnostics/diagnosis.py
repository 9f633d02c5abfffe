"""All checks of a fit together, and what follows from them."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zoo.diagnostics import inference, predictive, refits, sensitivity
from zoo.diagnostics.check import About, Check, NotApplicable
from zoo.errors import UnknownNameError, suggest

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior
    from zoo.inference.progress import Progress
    from zoo.types import Batch

__all__ = ["CHECKS", "FULL", "Diagnosis", "Use", "diagnose"]

Use: TypeAlias = Literal["usable", "usable with care", "do not use"]

_DRAWS = ("num_draws", "seed")
_HELD = ("held", "num_draws", "seed")

# Name -> function, what it concerns, title while it has not run, and which settings it takes.
CHECKS: dict[str, tuple[Callable[..., Check], About, str, tuple[str, ...]]] = {
    "optimiser_stationarity": (inference.optimiser_stationarity, "parameters", "Has the optimiser settled?", ()),
    "pareto_k": (inference.pareto_k, "parameters", "Is the guide close to the posterior?", _DRAWS),
    "pareto_k_rows": (
        inference.pareto_k_rows,
        "parameters",
        "Is the guide close to the posterior of every row?",
        _DRAWS,
    ),
    "moment_bounds": (
        inference.moment_bounds,
        "parameters",
        "What is guaranteed about means and spreads?",
        _DRAWS,
    ),
    "funnel": (inference.funnel, "parameters", "Is there a funnel that the fit misses?", _DRAWS),
    "restart_agreement": (inference.restart_agreement, "parameters", "Do other starting points agree?", _DRAWS),
    "vi_against_nuts": (
        refits.vi_against_nuts,
        "parameters",
        "Does NUTS find the same posterior?",
        ("seed", "progress"),
    ),
    "simulation_calibration": (
        refits.simulation_calibration,
        "parameters",
        "Does the same fit recover simulated truths?",
        ("refits",),
    ),
    "interval_coverage": (
        refits.interval_coverage,
        "parameters",
        "Do intervals of the parameters hold what they say?",
        ("refits",),
    ),
    "r_hat": (inference.r_hat, "parameters", "Do the chains agree?", ()),
    "ess": (inference.ess, "parameters", "Are there enough independent draws?", ()),
    "divergences": (inference.divergences, "parameters", "Did the sampler get everywhere?", ()),
    "e_bfmi": (inference.e_bfmi, "parameters", "Did the sampler explore the tails?", ()),
    "prior_predictive_check": (
        predictive.prior_predictive_check,
        "parameters",
        "Does the prior expect such data?",
        _DRAWS,
    ),
    "power_scaling": (sensitivity.power_scaling, "parameters", "Does the prior decide the result?", _DRAWS),
    "predictive_check": (
        predictive.predictive_check,
        "predictions",
        "Does the fitted model reproduce the data?",
        _DRAWS,
    ),
    "calibration": (predictive.calibration, "predictions", "Do predictions hold what they say?", _HELD),
    "scores": (predictive.scores, "predictions", "Are predictions as good as they claim?", _HELD),
    "selective_prediction": (predictive.selective_prediction, "predictions", "Does it know where it errs?", _HELD),
    "out_of_distribution": (
        predictive.out_of_distribution,
        "predictions",
        "Is it unsure about rows from elsewhere?",
        ("ood", *_HELD),
    ),
    "loo": (predictive.loo, "comparison", "Can leave-one-out be trusted?", _DRAWS),
    "k_fold": (
        refits.k_fold,
        "comparison",
        "What does cross-validation by refitting say?",
        ("num_draws", "seed", "progress"),
    ),
}

FULL = ("vi_against_nuts", "simulation_calibration", "interval_coverage", "k_fold")
"""Checks that fit again, which :func:`diagnose` makes if ``full``, or where they are named."""

# Checks whose warning says that nothing is guaranteed, which is no evidence against the fit.
_NO_EVIDENCE = frozenset({"moment_bounds"})
_OF_THE_PRIOR = frozenset({"simulation_calibration", "interval_coverage"})


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

    def _repr_html_(self) -> str:
        from zoo.reports.inline import diagnosis_html

        return diagnosis_html(self)

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
    posterior: Posterior,
    *,
    checks: Sequence[str] | None = None,
    full: bool = False,
    seed: int = 0,
    num_draws: int = 1_000,
    num_refits: int = 100,
    ood: Batch | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Run every check that applies to a fit, and say what may be done with it.

    A check that does not apply, or that an exception ended, is reported as ``not run`` with the reason; the exception's
    text and place stand in :attr:`Check.error`.

    The verdict: a failed check of the parameters (optimiser, guide, funnel, restarts, chains, refits) means that their
    posterior must not be read. Predictions average over the parameters and can be good all the same, as those of a
    large network whose joint posterior no guide matches; under SVI they are judged by what was measured on held-out
    rows, and without such rows a failed check of the parameters counts against them too. Data that the model does not
    reproduce count against predictions likewise, unless held-out rows speak for them: then care is asked for. Chains
    that failed are not draws from the posterior, so nothing computed from them is used. Bounds that guarantee nothing
    are no evidence against a fit, and change no verdict. Refits to simulated data judge a fit over all data that the
    prior expects: where k-hat or NUTS speak for it at the data at hand, a failure there asks for care only.

    Args:
        posterior: A fit.
        checks: Names of the checks to run; ``None`` runs all, without those that fit again unless ``full``.
        full: Also fit again: to data simulated from the prior, by NUTS, and in folds. That takes as long as the
            refits do.
        seed: Of every draw.
        num_draws: Draws per check; large models take fewer.
        num_refits: Refits to simulated data.
        ood: Rows from another distribution, for the check that asks for them.
        progress: Told of every refit.

    Returns:
        The diagnosis; one of all checks is kept as ``posterior.diagnosis`` too.

    Raises:
        UnknownNameError: If there is no check of such a name.
    """
    names = [n for n in CHECKS if full or n not in FULL] if checks is None else list(checks)
    for name in names:
        if name not in CHECKS:
            raise UnknownNameError(f"check '{name}' is unknown{suggest(name, CHECKS)}")
    settings: dict[str, Any] = {"seed": seed, "num_draws": num_draws, "ood": ood, "progress": progress}
    settings["refits"] = refits.Refits(posterior, num=num_refits, seed=seed, progress=progress)
    done = []
    for name in names:
        if "held" in CHECKS[name][3] and "held" not in settings:
            settings["held"] = _held(posterior, num_draws, seed)
        done.append(_run(posterior, name, settings))
    found = conclude(done, sampled=posterior.engine == "nuts")
    if checks is None:
        posterior.diagnosis = found
    return found


def _held(posterior: Posterior, num_draws: int, seed: int) -> predictive.HeldOut | None:
    """Predict the held-out rows once for all checks; where that fails, each check says why."""
    try:
        return predictive.held_out(posterior, num_draws=num_draws, seed=seed)
    except Exception:
        return None


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
        kind: [c for c in checks if c.about == kind and c.verdict != "not run" and c.name not in _NO_EVIDENCE]
        for kind in ("parameters", "predictions", "comparison")
    }
    broken = [c for c in checks if c.error]
    # Refits speak of the data that the prior expects; what was measured at the data at hand outweighs them.
    local = {c.name: c.verdict for c in about["parameters"]}
    if local.get("vi_against_nuts") in ("pass", "warn") or local.get("pareto_k") == "pass":
        about["parameters"] = [
            dataclasses.replace(c, verdict="warn") if c.name in _OF_THE_PRIOR and c.verdict == "fail" else c
            for c in about["parameters"]
        ]
    reasons: list[str] = []
    parameters = _use(about["parameters"])
    predictions = _use(about["predictions"])
    held_out = [c for c in about["predictions"] if c.name in ("calibration", "scores")]
    measured = {"calibration", "scores", "selective_prediction", "out_of_distribution"}
    bad = any(c.verdict == "fail" and c.name in measured for c in about["predictions"])
    if predictions == "do not use" and held_out and not bad:
        predictions = "usable with care"
    # Without a look at the approximation itself nothing vouches for the parameters.
    vouched = any(
        c.name in ("pareto_k", "pareto_k_rows", "r_hat", "vi_against_nuts", "simulation_calibration")
        for c in about["parameters"]
    )
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
        reasons += [c.explanation for c in checks if c.verdict == wanted and c.name not in _NO_EVIDENCE]
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
