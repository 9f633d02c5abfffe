"""All checks of a fit together, and what follows from them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.diagnostics import inference, predictive, refits, remedies, sensitivity
from zoo.diagnostics.answers import Answer, Facts, Use, answers, headline
from zoo.diagnostics.check import About, Check, NotApplicable
from zoo.errors import UnknownNameError, suggest

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior
    from zoo.inference.progress import Progress
    from zoo.types import Batch

__all__ = ["CHECKS", "FULL", "Diagnosis", "Use", "diagnose"]

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
    "reweighted_moments": (
        sensitivity.reweighted_moments,
        "parameters",
        "Do means and spreads stay when draws are weighted?",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the checks say together.

    Args:
        checks: Every check, also those that did not run.
        parameters: Whether the posterior of the parameters may be read: their means, spreads and intervals.
        predictions: Whether predictions may be used.
        verdict: The two together: ``usable``, ``usable with care`` or ``do not use``.
        reasons: Why, most serious first.
        answers: Whether the fit came to its end, the parameters can be read and the predictions used, each with its
            reason and what to try; ``parameters`` and ``predictions`` are the words of the last two.
    """

    checks: tuple[Check, ...]
    parameters: Use
    predictions: Use
    verdict: Use
    reasons: tuple[str, ...]
    answers: tuple[Answer, ...] = ()

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
            "answers": [answer.to_json() for answer in self.answers],
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

    Three answers follow, see :mod:`zoo.diagnostics.answers`. *Did the fit come to its end* is asked of chains (they
    agree, are long enough, did not diverge) or of the loss (it has settled, or the guide is so close to the posterior
    that nothing is left to gain). *Can the parameters be read* rests on the comparison with the posterior: chains that
    came to their end, or a guide whose importance weights, restarts and refits speak for it; weights of a network are
    not meant to be read, and a point estimate has no spread that could be. Refits to simulated data judge a fit over
    all data that the prior expects: where k-hat or NUTS speak for it at the data at hand, a failure there asks for care
    only. *Can the predictions be used* is judged on rows that were not fitted, where there are some, and then does not
    ask whether the parameters can be read; without such rows a failed fit, or parameters that cannot be read, count
    against predictions too. Checks with p-values count as Holm's method leaves them, over the checks of one answer.

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
    latent = posterior.num_latents > 0
    done = []
    for name in names:
        if "held" in CHECKS[name][3] and "held" not in settings:
            settings["held"] = _held(posterior, num_draws, seed)
        done.append(_run(posterior, name, settings, latent=latent))
    found = conclude(done, _facts(posterior), advise=lambda answer: remedies.advised(posterior, answer, done))
    if checks is None:
        posterior.diagnosis = found
    return found


def _held(posterior: Posterior, num_draws: int, seed: int) -> predictive.HeldOut | None:
    """Predict the held-out rows once for all checks; where that fails, each check says why."""
    try:
        return predictive.held_out(posterior, num_draws=num_draws, seed=seed)
    except Exception:
        return None


def _run(posterior: Posterior, name: str, settings: dict[str, Any], *, latent: bool) -> Check:
    function, about, title, takes = CHECKS[name]
    try:
        if not latent and about != "predictions" and name != "optimiser_stationarity":
            raise NotApplicable("the model has no latents that are drawn, so there is no posterior to examine")
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


def conclude(checks: Sequence[Check], facts: Facts, *, advise: Callable[[Answer], Answer] | None = None) -> Diagnosis:
    """Draw the conclusion from checks already made.

    Args:
        checks: The checks.
        facts: What else the answers need to know of the fit.
        advise: Adds to an answer what to try; ``None`` leaves them as they are.

    Returns:
        The diagnosis; see :func:`diagnose` for the rule.
    """
    given = answers(checks, facts)
    if advise is not None:
        fit, parameters, predictions = (advise(a) for a in given)
        given = (fit, parameters, predictions)
    broken = [c for c in checks if c.error]
    verdict = headline(given)
    if verdict == "usable" and broken:
        verdict = "usable with care"
    by_name = {a.name: a for a in given}
    order: tuple[Use, ...] = ("do not use", "usable with care")
    reasons = [a.reason for use in order for a in reversed(given) if a.use == use]
    reasons += [a.reason for a in given if a.use in ("not examined", "not meant to be read")]
    counted = {name for a in given if a.use in order for name in a.checks}
    for wanted in ("fail", "warn"):
        reasons += [
            c.explanation
            for c in checks
            if c.verdict == wanted
            and (c.name in counted or c.about == "comparison")
            and not any(c.explanation in reason for reason in reasons)
        ]
    reasons += [f"{c.title} {c.explanation}" for c in broken]
    return Diagnosis(
        checks=tuple(checks),
        parameters=by_name["parameters"].use,
        predictions=by_name["predictions"].use,
        verdict=verdict,
        reasons=tuple(dict.fromkeys(reasons)) or ("Nothing speaks against this fit.",),
        answers=given,
    )


def _facts(posterior: Posterior) -> Facts:
    """Return what the answers need to know of a fit beside its checks."""
    sampled = posterior.chains is not None
    return Facts(
        sampled=sampled,
        weights=tuple(inference.network_weights(posterior)),
        point=not sampled and not inference.point_sites(posterior)[1],
        latent=posterior.num_latents > 0,
        again=tuple(str(why["cause"]) for why in posterior.info.get("tries") or ()),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
