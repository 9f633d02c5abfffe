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
from zoo.diagnostics.endtoend import ACCEPTED, FAULTS, RIGHT, Tally, one_more, tallies
from zoo.diagnostics.known import CASES, Case, by_nuts, correlated, normal
from zoo.diagnostics.uniformity import ecdf_p_value
from zoo.errors import UnknownNameError, suggest
from zoo.inference.progress import Progress, ProgressEvent

__all__ = ["EndToEnd", "Known", "Measured", "end_to_end", "known_numbers", "markdown", "measure"]

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
class Known:
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
def _near(what: str, known: float, measured: float, tolerance: float) -> Known:
    return Known(
        what=what,
        known=f"{known:.3f} ± {tolerance:g}",
        measured=f"{measured:.3f}",
        right=abs(measured - known) <= tolerance,
    )


def _tail_index(scale: float) -> Known:
    x = scale * np.random.default_rng(0).standard_normal(100_000)
    return _near(
        f"k-hat of N(0, 1) over N(0, {scale:g}²): 1 - {scale:g}²",
        1 - scale**2,
        inference.khat(-0.5 * x**2 + 0.5 * (x / scale) ** 2),
        0.1,
    )


def _slip() -> Known:
    x = 0.5 * np.random.default_rng(0).standard_normal(100_000)
    value = inference.khat(0.5 * x**2 - 0.5 * (x / 0.5) ** 2)
    return Known(
        what="the same weights with a slip of the sign (they are bounded, so k is not positive)",
        known="at most 0.1",
        measured=f"{value:.3f}",
        right=value <= 0.1,
    )


def _ratio() -> Known:
    found = refits.vi_against_nuts(correlated(0.9))
    return _near(
        "ratio of standard deviations, mean field on correlation 0.9: √(1 - 0.9²)",
        math.sqrt(1 - 0.81),
        found.value["ratio of standard deviations"],
        0.04,
    )


def _leave_one_out() -> Known:
    import torch

    fit = normal(0, mean=0.5)
    y = fit.data.train["y"]
    at = (y.sum() - y) / len(y)
    exact = float(torch.distributions.Normal(at, (1 + 1 / len(y)) ** 0.5).log_prob(y).sum())
    found = predictive.leave_one_out(normal(0, mean=0.5, factor=1.5), num_draws=4_000)
    return _near("leave-one-out of a guide that is 1.5 times too wide, in nats", exact, found.total, 0.2)


def _misspecified() -> Known:
    fit = normal(3, noise=3.0)
    inner = refits.simulation_calibration(fit).verdict
    outer = predictive.predictive_check(fit).verdict
    return Known(
        what="a likelihood with a third of the noise: refits to its own data, replicated data",
        known="pass, fail",
        measured=f"{inner}, {outer}",
        right=(inner, outer) == ("pass", "fail"),
    )


def _sampler() -> Known:
    fit = by_nuts(0, "normal")
    found = refits.Refits(fit, num=100).ranks
    least = min(ecdf_p_value(r, found.largest) for r in found.ranks.values()) * len(found.ranks)
    return Known(
        what="p-value of 100 refits by NUTS to data simulated from the prior",
        known="above 0.01",
        measured=f"{min(least, 1.0):.3f}",
        right=least > 0.01,
    )


NUMBERS: tuple[Callable[[], Known], ...] = (
    lambda: _tail_index(0.8),
    lambda: _tail_index(0.5),
    _slip,
    _ratio,
    _leave_one_out,
    _misspecified,
    _sampler,
)


def known_numbers() -> list[Known]:
    """Compare measured numbers with those that are known exactly.

    Returns:
        One entry per number.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [answer() for answer in NUMBERS]


# ------------------------------------------------------------------------------------------------------- answers
_ANSWERS = {"fit": "fit at its end", "parameters": "parameters", "predictions": "predictions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEnd:
    """How the three answers came out.

    Args:
        right: Kinds of right fits.
        faults: Kinds of faulty fits.
    """

    right: tuple[Tally, ...]
    faults: tuple[Tally, ...]

    @property
    def fits(self) -> int:
        """How many right fits."""
        return sum(t.fits for t in self.right)

    def good(self, answer: str) -> int:
        """Return how many right fits had the good word as this answer.

        Args:
            answer: Its name.

        Returns:
            The number.
        """
        return sum(t.good[answer] for t in self.right)

    @property
    def kept(self) -> bool:
        """Whether every answer is good for nine of ten right fits, and nine of ten of each fault are caught."""
        good = all(self.good(a) >= ACCEPTED * self.fits for a in _ANSWERS)
        return good and all(t.caught >= ACCEPTED * t.fits for t in self.faults)

    def to_json(self) -> dict[str, Any]:
        """Return every count.

        Returns:
            A dict that ``json.dumps`` takes.
        """

        def one(t: Tally) -> dict[str, Any]:
            return {
                "kind": t.kind.name,
                "fits": t.fits,
                "good": dict(t.good),
                "usable": t.headline,
                "wanted": list(t.kind.answers),
                "blamed": dict(t.blamed),
            }

        return {"right": [one(t) for t in self.right], "faults": [one(t) for t in self.faults], "kept": self.kept}


def end_to_end(*, fits: int, faults: int, progress: Progress | None = None) -> EndToEnd:
    """Make right and faulty fits, and ask for the three answers of each.

    Kinds take turns, so that an interrupt (ctrl-C) ends the measurement with about as many fits of each.

    Args:
        fits: Right fits in all, at least; as many of each kind.
        faults: Faulty fits of each kind.
        progress: Told of every fit.

    Returns:
        The counts.

    Raises:
        KeyboardInterrupt: If it is interrupted before there is one fit of each kind.
    """
    each = math.ceil(fits / len(RIGHT))
    found = [*tallies(RIGHT), *tallies(FAULTS)]
    turns = [
        (k, seed)
        for seed in range(max(each, faults))
        for k in range(len(found))
        if seed < (each if k < len(RIGHT) else faults)
    ]
    # Faults are spread over the whole of it.
    turns.sort(key=lambda turn: (turn[1] + 0.5) / (each if turn[0] < len(RIGHT) else faults))
    try:
        for done, (k, seed) in enumerate(turns, start=1):
            found[k] = one_more(found[k], seed)
            if progress is not None:
                progress(ProgressEvent("measuring", done, len(turns), found[k].kind.name))
    except KeyboardInterrupt:
        if not all(t.fits for t in found):
            raise
    return EndToEnd(right=tuple(found[: len(RIGHT)]), faults=tuple(found[len(RIGHT) :]))


def _answers_page(found: EndToEnd) -> list[str]:
    """Return the section about the three answers."""
    lines = [
        f"{found.fits} right fits: data simulated from the model itself, with parameters drawn from its prior, other "
        "data for every fit, the whole diagnosis with default settings (`zoo/diagnostics/endtoend.py`). *Good* is "
        "'usable', and for the parameters of a network 'not meant to be read'. P-values behind an answer are adjusted "
        f"by Holm's method. Wanted, and fixed before it was measured: each answer good for at least {ACCEPTED:.0%} of "
        f"the right fits, and at least {ACCEPTED:.0%} of every fault caught: the answer that it concerns is "
        "not 'usable'. In brackets the exact 95% interval (Clopper and Pearson).",
        "",
        f"| right fits | fits | {' | '.join(f'{a} good' for a in _ANSWERS.values())} | verdict 'usable' | "
        "checks that spoke against some |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for t in found.right:
        blamed = ", ".join(f"`{n}` {c}" for n, c in sorted(t.blamed.items(), key=lambda e: -e[1]) if c) or "–"
        lines.append(
            f"| {t.kind.name} | {t.fits} | {' | '.join(str(t.good[a]) for a in _ANSWERS)} | {t.headline} | {blamed} |"
        )
    total = []
    for name in _ANSWERS:
        low, high = _interval(found.good(name), found.fits)
        word = "as wanted" if found.good(name) >= ACCEPTED * found.fits else "**below**"
        total.append(f"{found.good(name) / found.fits:.1%} ({low:.1%} to {high:.1%}), {word}")
    lines.append(f"| **all** | {found.fits} | {' | '.join(total)} | {sum(t.headline for t in found.right)} | |")
    lines += ["", "| fault | fits | must show in | caught | verdict 'usable' | |", "|---|---:|---|---:|---:|---|"]
    for t in found.faults:
        word = "as wanted" if t.caught >= ACCEPTED * t.fits else "**below**"
        names = ", ".join(_ANSWERS[a] for a in t.kind.answers)
        lines.append(f"| {t.kind.name} | {t.fits} | {names} | {t.caught} | {t.headline} | {word} |")
    return [*lines, ""]


# ------------------------------------------------------------------------------------------------------------- page
_TITLES = ("The three answers, end to end", "Check by check", "Known numbers")


def markdown(
    measured: Sequence[Measured],
    known: Sequence[Known],
    whole: EndToEnd | None = None,
    *,
    seconds: float,
    command: str,
    before: str = "",
) -> str:
    """Write the page of what was measured.

    Args:
        measured: From :func:`measure`.
        known: From :func:`known_numbers`.
        whole: From :func:`end_to_end`.
        seconds: How long it took.
        command: What was run.
        before: The page as it stands, whose sections stay where nothing of theirs was measured.

    Returns:
        Markdown.
    """
    made = f"Made by `{command}` in {max(round(seconds / 60), 1)} minutes; run it to measure again."
    sections = dict(_sections(before))
    for title, body in zip(
        _TITLES,
        ([] if whole is None else _answers_page(whole), _checks_page(measured), _numbers_page(known)),
        strict=True,
    ):
        if body:
            sections[title] = "\n".join([made, "", *body])
    lines = [
        "# What the checks are worth",
        "",
        "The checks of `zoo.diagnostics`, and the three answers that follow from them, are tried on fits whose right "
        "verdict is known: right fits, and fits with one fault.",
    ]
    for title in _TITLES:
        if title in sections:
            lines += ["", f"## {title}", "", sections[title].strip()]
    return "\n".join([*lines, ""])


def _sections(page: str) -> list[tuple[str, str]]:
    """Return title and text of the sections of a page."""
    parts = page.split("\n## ")[1:]
    return [(title.strip(), text.strip()) for title, _, text in (part.partition("\n") for part in parts)]


def _checks_page(measured: Sequence[Measured]) -> list[str]:
    if not measured:
        return []
    lines = [
        "Every check is run on fits of `zoo/diagnostics/known.py`: on a correct fit, with other data and draws each "
        "time, and on the fault that the check is there for. *False alarms*: correct fits that did not pass, with the "
        "exact 95% interval of the rate (Clopper and Pearson). The check keeps its *level* if the interval includes it "
        f"or lies below. Where it lies above, the check is measured again on {AGAIN} times as many other fits, and "
        "those decide, since of many checks that keep their level exactly some go beyond it by chance. *Caught*: "
        f"faulty fits that did not pass; in brackets those that failed outright. Wanted: {POWER:.0%}.",
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
    return lines


def _numbers_page(known: Sequence[Known]) -> list[str]:
    if not known:
        return []
    rows = [f"| {a.what} | {a.known} | {a.measured} | {'right' if a.right else 'wrong'} |" for a in known]
    return ["| what | known | measured | |", "|---|---|---|---|", *rows]


def run(
    *,
    repetitions: int,
    faults: int,
    checks: Sequence[str],
    command: str,
    fits: int = 0,
    faulty: int = 0,
    before: str = "",
    progress: Progress | None = None,
) -> tuple[list[Measured], list[Known], EndToEnd | None, str]:
    """Measure, and write the page.

    Args:
        repetitions: Correct fits per case; 0 leaves the checks and the known numbers out.
        faults: Faulty fits per case.
        checks: Only the cases of these checks; all, and the known numbers, if empty.
        command: What was run, for the page.
        fits: Right fits of which the three answers are asked; 0 leaves them out, and so does naming ``checks``.
        faulty: Faulty fits of each kind of which they are.
        before: The page as it stands, of which the rest stays.
        progress: Told of every fit.

    Returns:
        What was measured, the known numbers, the three answers and the page.
    """
    started = time.perf_counter()
    measured = measure(repetitions=repetitions, faults=faults, checks=checks, progress=progress) if repetitions else []
    known = known_numbers() if repetitions and not checks else []
    whole = end_to_end(fits=fits, faults=faulty, progress=progress) if fits and not checks else None
    page = markdown(measured, known, whole, seconds=time.perf_counter() - started, command=command, before=before)
    return measured, known, whole, page
