"""Measure every check on fits whose right verdict is known: false alarms, power, and known numbers."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zoo.diagnostics import inference, predictive, refits
from zoo.diagnostics.known import CASES, Case, by_nuts, correlated, normal
from zoo.diagnostics.uniformity import ecdf_p_value
from zoo.errors import UnknownNameError, suggest
from zoo.inference.progress import Progress, ProgressEvent

__all__ = ["Answer", "Measured", "answers", "markdown", "measure"]

POWER = 0.9
AGAIN = 5  # times as many fits, where the first went beyond the level


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How often one check speaks, on one case.

    Args:
        check: Its name.
        case: The case.
        level: What the check states: at most so often it does not pass a correct fit.
        correct: Correct fits.
        alarms: How many of them did not pass.
        failed: How many of them failed.
        faulty: Faulty fits.
        caught: How many of them did not pass.
        caught_failed: How many of them failed.
        before: Alarms and number of earlier, other correct fits, where those went beyond the level, so that the check
            was measured again; ``None`` where they did not.
    """

    check: str
    case: Case
    level: float
    correct: int
    alarms: int
    failed: int
    faulty: int
    caught: int
    caught_failed: int
    before: tuple[int, int] | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95% interval of the rate of false alarms (Clopper and Pearson)."""
        return _interval(self.alarms, self.correct)

    @property
    def level_kept(self) -> bool:
        """Whether the interval includes the stated level or lies below it."""
        return self.interval[0] <= self.level

    @property
    def power_reached(self) -> bool:
        """Whether at least nine of ten faults were caught."""
        return self.caught >= POWER * self.faulty


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A number that is known, and what was measured.

    Args:
        what: What it is.
        known: Its known value, as text.
        measured: The measured value, as text.
        right: Whether they agree.
    """

    what: str
    known: str
    measured: str
    right: bool


def _interval(count: int, total: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(count, total).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def measure(
    *,
    repetitions: int = 100,
    faults: int = 50,
    checks: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[Measured]:
    """Run every case many times, with other data and other draws each time.

    A check whose false alarms go beyond its level is measured again on :data:`AGAIN` times as many other fits, which
    decide: of many checks that keep their level exactly, some go beyond it by chance.

    Args:
        repetitions: Correct fits per case.
        faults: Faulty fits per case.
        checks: Only the cases of these checks; all if empty.
        progress: Told of every fit.

    Returns:
        One entry per check and case.

    Raises:
        UnknownNameError: If a check has no case.
    """
    named = {name for case in CASES for name in case.checks}
    for name in checks:
        if name not in named:
            raise UnknownNameError(f"check '{name}' has no known case{suggest(name, named)}")
    chosen = [c for c in CASES if not checks or set(checks) & set(c.checks)]
    found: list[Measured] = []
    total = len(chosen) * (repetitions + faults)
    done = 0

    def fits(case: Case, faulty: bool, seeds: range) -> list[tuple[Any, ...]]:
        nonlocal done
        runs = []
        for seed in seeds:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runs.append(case.run(faulty, seed))
            done += 1
            if progress is not None:
                progress(ProgressEvent("measuring", done, total, case.checks[0]))
        return runs

    for case in chosen:
        right, wrong = fits(case, False, range(repetitions)), fits(case, True, range(faults))
        once = [_counted(case, i, right, wrong) for i in range(len(case.checks))]
        if not all(m.level_kept for m in once):
            total += AGAIN * repetitions
            right = fits(case, False, range(repetitions, (1 + AGAIN) * repetitions))
        for i, first in enumerate(once):
            again = _counted(case, i, right, wrong)
            found.append(first if first.level_kept else replace(again, before=(first.alarms, first.correct)))
    return found


def _counted(case: Case, i: int, right: Sequence[tuple[Any, ...]], wrong: Sequence[tuple[Any, ...]]) -> Measured:
    """Count the verdicts of a case's check on correct and faulty fits."""
    correct, faulty = ([run[i].verdict for run in runs] for runs in (right, wrong))
    return Measured(
        check=case.checks[i],
        case=case,
        level=right[0][i].level,
        correct=len(correct),
        alarms=sum(v != "pass" for v in correct),
        failed=sum(v == "fail" for v in correct),
        faulty=len(faulty),
        caught=sum(v != "pass" for v in faulty),
        caught_failed=sum(v == "fail" for v in faulty),
    )


# ------------------------------------------------------------------------------------------------------ known numbers
def _near(what: str, known: float, measured: float, tolerance: float) -> Answer:
    return Answer(
        what=what,
        known=f"{known:.3f} ± {tolerance:g}",
        measured=f"{measured:.3f}",
        right=abs(measured - known) <= tolerance,
    )


def _tail_index(scale: float) -> Answer:
    x = scale * np.random.default_rng(0).standard_normal(100_000)
    return _near(
        f"k-hat of N(0, 1) over N(0, {scale:g}²): 1 - {scale:g}²",
        1 - scale**2,
        inference.khat(-0.5 * x**2 + 0.5 * (x / scale) ** 2),
        0.1,
    )


def _slip() -> Answer:
    x = 0.5 * np.random.default_rng(0).standard_normal(100_000)
    value = inference.khat(0.5 * x**2 - 0.5 * (x / 0.5) ** 2)
    return Answer(
        what="the same weights with a slip of the sign (they are bounded, so k is not positive)",
        known="at most 0.1",
        measured=f"{value:.3f}",
        right=value <= 0.1,
    )


def _ratio() -> Answer:
    found = refits.vi_against_nuts(correlated(0.9))
    return _near(
        "ratio of standard deviations, mean field on correlation 0.9: √(1 - 0.9²)",
        math.sqrt(1 - 0.81),
        found.value["ratio of standard deviations"],
        0.04,
    )


def _leave_one_out() -> Answer:
    import torch

    fit = normal(0, mean=0.5)
    y = fit.data.train["y"]
    at = (y.sum() - y) / len(y)
    exact = float(torch.distributions.Normal(at, (1 + 1 / len(y)) ** 0.5).log_prob(y).sum())
    found = predictive.leave_one_out(normal(0, mean=0.5, factor=1.5), num_draws=4_000)
    return _near("leave-one-out of a guide that is 1.5 times too wide, in nats", exact, found.total, 0.2)


def _misspecified() -> Answer:
    fit = normal(3, noise=3.0)
    inner = refits.simulation_calibration(fit).verdict
    outer = predictive.predictive_check(fit).verdict
    return Answer(
        what="a likelihood with a third of the noise: refits to its own data, replicated data",
        known="pass, fail",
        measured=f"{inner}, {outer}",
        right=(inner, outer) == ("pass", "fail"),
    )


def _sampler() -> Answer:
    fit = by_nuts(0, "normal")
    found = refits.Refits(fit, num=100).ranks
    least = min(ecdf_p_value(r, found.largest) for r in found.ranks.values()) * len(found.ranks)
    return Answer(
        what="p-value of 100 refits by NUTS to data simulated from the prior",
        known="above 0.01",
        measured=f"{min(least, 1.0):.3f}",
        right=least > 0.01,
    )


ANSWERS: tuple[Callable[[], Answer], ...] = (
    lambda: _tail_index(0.8),
    lambda: _tail_index(0.5),
    _slip,
    _ratio,
    _leave_one_out,
    _misspecified,
    _sampler,
)


def answers() -> list[Answer]:
    """Compare measured numbers with those that are known exactly.

    Returns:
        One entry per number.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [answer() for answer in ANSWERS]


# ------------------------------------------------------------------------------------------------------------- page
def markdown(measured: Sequence[Measured], known: Sequence[Answer], *, seconds: float, command: str) -> str:
    """Write the page of what was measured.

    Args:
        measured: From :func:`measure`.
        known: From :func:`answers`.
        seconds: How long it took.
        command: What was run.

    Returns:
        Markdown.
    """
    lines = [
        "# What the checks are worth",
        "",
        "Every check of `zoo.diagnostics` is run on fits whose right verdict is known (`zoo/diagnostics/known.py`): on "
        "a "
        "correct fit, with other data and draws each time, and on the fault that the check is there for.",
        "",
        f"Made by `{command}` in {seconds / 60:.0f} minutes; run it to measure again.",
        "",
        "*False alarms*: correct fits that did not pass, with the exact 95% interval of the rate (Clopper and "
        "Pearson). The "
        "check keeps its *level* if the interval includes it or lies below. Where it lies above, the check is measured "
        f"again on {AGAIN} times as many other fits, and those decide, since of many checks that keep their level "
        "exactly some go beyond it by chance. *Caught*: faulty fits that did not pass; in brackets those that failed "
        f"outright. Wanted: {POWER:.0%}.",
        "",
        "| check | correct fit | false alarms (95%) | level | fault | caught (failed) | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in measured:
        low, high = m.interval
        words = [] if m.level_kept else ["level not kept"]
        words += [] if m.power_reached else ["power below 0.9"]
        before = f"{m.before[0]} of {m.before[1]}, again: " if m.before else ""
        lines.append(
            f"| `{m.check}` | {m.case.correct} | {before}{m.alarms} of {m.correct} ({low:.3f} to {high:.3f}) | "
            f"{m.level:g} | "
            f"{m.case.fault} | {m.caught} of {m.faulty} ({m.caught_failed}) | {'; '.join(words) or 'as stated'} |"
        )
    lines += ["", "## Known numbers", "", "| what | known | measured | |", "|---|---|---|---|"]
    lines += [f"| {a.what} | {a.known} | {a.measured} | {'right' if a.right else 'wrong'} |" for a in known]
    return "\n".join([*lines, ""])


def run(
    *, repetitions: int, faults: int, checks: Sequence[str], command: str, progress: Progress | None = None
) -> tuple[list[Measured], list[Answer], str]:
    """Measure, and write the page.

    Args:
        repetitions: Correct fits per case.
        faults: Faulty fits per case.
        checks: Only the cases of these checks; all, and the known numbers, if empty.
        command: What was run, for the page.
        progress: Told of every fit.

    Returns:
        What was measured, the known numbers, and the page.
    """
    started = time.perf_counter()
    measured = measure(repetitions=repetitions, faults=faults, checks=checks, progress=progress)
    known = [] if checks else answers()
    page = markdown(measured, known, seconds=time.perf_counter() - started, command=command)
    return measured, known, page
