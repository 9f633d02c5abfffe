"""What ``zoo references`` measured, whether it is as it should be, and the page that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from zoo.references.stored import names

__all__ = ["FORMAT", "GUIDES", "Chains", "Measured", "Result", "Settings", "Variational"]

FORMAT = "pyro-zoo references 1"

GUIDES = ("AutoNormal", "AutoMultivariateNormal")
"""Pyro's automatic guides that are measured: independent normals, and one normal with a whole covariance."""

# A guide is off if for some parameter its mean lies further away than this, in reference standard deviations, or the
# ratio of its standard deviation to the reference lies outside of the range.
MEAN_OFF = 0.3
RATIO_OFF = (0.8, 1.25)
# What is asked of NUTS: of all means and standard deviations together so many at most beyond FEW combined errors,
# none beyond NONE. Chains that do not mix have large errors and so would always pass; a hundred effective draws a chain
# are the least that Vehtari et al. (2021) ask for.
MOST, FEW, NONE = 2, 3.0, 4.5
LEAST_ESS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How every posterior is run.

    Args:
        chains: Chains of NUTS.
        tune: Tuning iterations of a chain.
        draws: Kept iterations of a chain.
        seed: Seed of NUTS; the guides take the seeds 0, 1, ....
        guide_seeds: Fits of every guide.
        steps: Optimiser steps of a guide.
        learning_rate: Highest learning rate; it falls to zero along a cosine.
        guide_draws: Draws from which a guide's moments are computed.
    """

    chains: int = 4
    tune: int = 1_000
    draws: int = 10_000
    seed: int = 0
    guide_seeds: int = 3
    steps: int = 20_000
    learning_rate: float = 0.02
    guide_draws: int = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """NUTS against the reference.

    Args:
        z_mean: Element -> difference of the means in combined Monte Carlo errors.
        z_sd: Element -> difference of the standard deviations, likewise.
        tune: Tuning iterations of a chain.
        draws: Draws of a chain.
        seconds: Of sampling, without compilation.
        cpu_seconds: Time that this process computed, all its threads together; another process compiles.
        compile_seconds: Of tracing and compiling; little for a library that was compiled before.
        min_ess: Least effective number of draws of a mean.
        divergences: Divergent draws.
    """

    z_mean: Mapping[str, float]
    z_sd: Mapping[str, float]
    tune: int
    draws: int
    seconds: float
    cpu_seconds: float
    compile_seconds: float
    min_ess: float
    divergences: int

    @property
    def z(self) -> list[float]:
        """All absolute differences; one that is not a number counts as infinite."""
        return [abs(z) if z == z else math.inf for z in (*self.z_mean.values(), *self.z_sd.values())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variational:
    """One guide against the reference.

    Args:
        guide: Which.
        seed: Of the fit.
        mean_error: Element -> difference of the means in reference standard deviations.
        sd_ratio: Element -> standard deviation over that of the reference.
        seconds: Of the fit and its diagnosis.
        verdict: What the diagnosis concluded; ``failed`` if the fit itself stopped, which no user takes for a result.
        reasons: The checks that warned (``?``) or failed (``!``), or the error.
        answers: The three answers by name; empty for a measurement from before there were any.
    """

    guide: str
    seed: int
    mean_error: Mapping[str, float]
    sd_ratio: Mapping[str, float]
    seconds: float
    verdict: str
    reasons: Sequence[str]
    answers: Mapping[str, str] = field(default_factory=dict)

    @property
    def worst_mean(self) -> float:
        """Largest error of a mean, in reference standard deviations."""
        return max((abs(e) if e == e else math.inf for e in self.mean_error.values()), default=math.inf)

    @property
    def worst_ratio(self) -> float:
        """The ratio of standard deviations that is furthest from 1, as a factor."""
        ratios = [r if 0 < r < math.inf else math.inf for r in self.sd_ratio.values()]
        return max(ratios, key=lambda r: abs(math.log(r)) if r < math.inf else math.inf, default=math.inf)

    @property
    def off(self) -> bool:
        """Whether a mean or a standard deviation is further from the reference than is allowed."""
        return not (self.worst_mean <= MEAN_OFF and RATIO_OFF[0] <= self.worst_ratio <= RATIO_OFF[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One posterior.

    Args:
        name: Its name.
        chains: NUTS.
        guides: Every guide and seed.
    """

    name: str
    chains: Chains
    guides: tuple[Variational, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All posteriors.

    Args:
        measured: One entry each.
        settings: How they were run.
        machine: Where.
        versions: Versions of the packages.
    """

    measured: tuple[Measured, ...]
    settings: Settings
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def z(self) -> list[float]:
        """All differences between NUTS and the reference, in combined Monte Carlo errors."""
        return [z for m in self.measured for z in m.chains.z]

    @property
    def agrees(self) -> bool:
        """Whether NUTS found the reference moments."""
        mixed = all(m.chains.min_ess >= LEAST_ESS * self.settings.chains for m in self.measured)
        return mixed and sum(z > FEW for z in self.z) <= MOST and not any(z > NONE for z in self.z)

    @property
    def fits(self) -> list[Variational]:
        """All fits of guides."""
        return [g for m in self.measured for g in m.guides]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-able dict.

        Returns:
            Measurements, settings and provenance.
        """
        return {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "agrees": self.agrees,
            "measured": [asdict(m) for m in self.measured],
        }

    def to_markdown(self, command: str) -> str:
        """Return the page.

        Args:
            command: What was run.

        Returns:
            Tables with what they mean.
        """
        return _page(self, command)


# --------------------------------------------------------------------------------------------------------------- page
def _page(result: Result, command: str) -> str:
    z, s = result.z, result.settings
    least = min(m.chains.min_ess for m in result.measured)
    lines = [
        "# Reference posteriors",
        "",
        f"Made by `{command}`; finished runs are kept, so that it can be interrupted. The models are those of "
        "[posteriordb](https://github.com/stan-dev/posteriordb), written in Pyro (`zoo/references/models.py`); each "
        "density is tested against its Stan program, written out independently.",
        "",
        "## NUTS",
        "",
        f"{s.chains} chains of {s.tune:,} tuning and {s.draws:,} kept iterations, seed {s.seed}, default settings; the "
        "table shows where they are others, for a density that is slow or hard to tune for. A difference between our "
        "mean or standard deviation and "
        "that of the reference draws is divided by the two Monte Carlo errors together (root of the sum of squares; "
        "ours by ArviZ). Seconds of sampling and compiling are the clock's, also while other programs have the cores; "
        "those of computing are the processor's.",
        "",
        f"Of {len(z)} means and standard deviations, **{sum(x > FEW for x in z)} differ by more than {FEW:g} errors** "
        f"(at most {MOST} are allowed when there are 168) and **{sum(x > NONE for x in z)} by more than {NONE:g}** "
        f"(none is), and the least effective number of draws is {least:,.0f} (at least {LEAST_ESS} a "
        f"chain): {'as it should be' if result.agrees else 'not as it should be'}.",
        "",
        f"| posterior | numbers | largest difference | of | beyond {FEW:g} | beyond {NONE:g} | tuning | kept "
        "| least ESS "
        "| divergent | sampling (s) | compiling (s) | computing (s) |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for m in result.measured:
        c = m.chains
        all_z = {f"mean of {k}": v for k, v in c.z_mean.items()} | {f"sd of {k}": v for k, v in c.z_sd.items()}
        worst = max(all_z, key=lambda k: abs(all_z[k]))
        lines.append(
            f"| {m.name} | {len(c.z)} | {max(c.z):.2f} | {worst} | {sum(x > FEW for x in c.z)} | "
            f"{sum(x > NONE for x in c.z)} | {s.chains} x {c.tune:,} | {s.chains} x {c.draws:,} | "
            f"{c.min_ess:,.0f} | {c.divergences} | "
            f"{c.seconds:.1f} | {c.compile_seconds:.0f} | {c.cpu_seconds:.1f} |"
        )
    missing = sorted({*names()} - {m.name for m in result.measured})
    if missing:
        lines += ["", f"Not run by this command: {', '.join(missing)}."]
    lines += _guides(result) if result.fits else ["", "Guides were not run (`--seeds 0`)."]
    used = ", ".join(f"{k} {v}" for k, v in result.versions.items())
    where = result.machine
    lines += ["", f"Measured on {where['processor']}, {where['cores']} cores, {where['system']}; {used}."]
    return "\n".join(lines) + "\n"


def _guides(result: Result) -> list[str]:
    s = result.settings
    seeds = "seed 0" if s.guide_seeds == 1 else f"seeds 0 to {s.guide_seeds - 1}"
    lines = [
        "",
        "## Guides, and what their diagnosis said",
        "",
        f"Pyro's automatic guides, all with the same settings: {s.steps:,} steps of Adam, learning rate "
        f"{s.learning_rate:g} falling to zero along a cosine, one draw of the guide a step, in float64, on the data as "
        f"the Stan programs take them (not standardised), {seeds}. Moments are those of "
        f"{s.guide_draws:,} draws. A fit is *off* if for some parameter the mean is further than {MEAN_OFF:g} "
        f"reference standard deviations away, or the standard deviation less than {RATIO_OFF[0]:g} or more than "
        f"{RATIO_OFF[1]:g} times the reference. The verdict is that of `zoo.diagnostics.diagnose` with default "
        "settings, which sees neither the reference nor NUTS.",
        "",
        *_confidence(result),
        "",
        "Worst over the parameters, one entry for every seed; checks that failed (!) or warned (?) are those of the "
        "first seed.",
        "",
        "| posterior | guide | error of a mean (sd) | ratio of sd | off | verdict | checks |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in result.measured:
        for guide in dict.fromkeys(g.guide for g in m.guides):
            fits = [g for g in m.guides if g.guide == guide]
            counts = {v: sum(g.verdict == v for g in fits) for v in dict.fromkeys(g.verdict for g in fits)}
            said = ", ".join(v if n == len(fits) else f"{v} ({n})" for v, n in counts.items())
            lines.append(
                f"| {m.name} | {guide} | {' / '.join(_short(g.worst_mean) for g in fits)} | "
                f"{' / '.join(_short(g.worst_ratio) for g in fits)} | {sum(g.off for g in fits)} of {len(fits)} | "
                f"{said} | {', '.join(r.replace('|', '/') for r in fits[0].reasons) or '–'} |"
            )
    return lines


def _confidence(result: Result) -> list[str]:
    """Return the table of verdicts against truth, and the rates that follow."""
    fits = result.fits
    verdicts = ["usable", "usable with care", "do not use", "failed"]
    lines = ["| verdict | fits | of them off |", "|---|---:|---:|"]
    for v in verdicts:
        of = [g for g in fits if g.verdict == v]
        if of or v != "failed":
            lines.append(f"| {v} | {len(of)} | {sum(g.off for g in of)} |")
    off, right = [g for g in fits if g.off], [g for g in fits if not g.off]
    falsely = sum(g.verdict == "usable" for g in off)
    careful = sum(g.verdict == "usable with care" for g in off)
    rejected = sum(g.verdict == "do not use" for g in right)
    lines += _answered(off, right)
    lines += [
        "",
        f"**False confidence: {_rate(falsely, len(fits))} of all fits are off and yet called 'usable'**, "
        f"{_rate(falsely, len(off))} of those that are off; {_rate(careful, len(off))} of those that are off are "
        f"called 'usable with care'. The other way round, {_rate(rejected, len(right))} of the fits that are not off "
        "are called 'do not use'. In brackets exact 95% intervals (Clopper and Pearson); fits of one posterior are "
        "not independent, so the true uncertainty is larger.",
    ]
    return lines


def _answered(off: Sequence[Variational], right: Sequence[Variational]) -> list[str]:
    """Return what the answer about the parameters was, of the fits that have one."""
    near, far = ([g for g in fits if g.answers] for fits in (right, off))
    if not near and not far:
        return []
    said = sum(g.answers["parameters"] == "usable" for g in near)
    caught = sum(g.answers["parameters"] != "usable" for g in far)
    return [
        "",
        f"To *can the parameters be read* the answer is 'usable' for {_rate(said, len(near))} of the fits that are not "
        f"off, and another one for {_rate(caught, len(far))} of those that are.",
    ]


def _rate(count: int, total: int) -> str:
    from scipy.stats import binomtest

    if not total:
        return "0 of 0"
    low, high = binomtest(count, total).proportion_ci(0.95, method="exact")
    return f"{count} of {total} ({low:.0%} to {high:.0%})"


def _short(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.2g}" if value < 1e3 else f"{value:.1e}"
