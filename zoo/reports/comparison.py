"""What stands on the page of a comparison."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from zoo.reports import figures
from zoo.reports.page import Table, show
from zoo.reports.parts import Parts
from zoo.reports.words import definitions

if TYPE_CHECKING:
    from zoo.diagnostics.compare import Comparison, Estimate, Fit

__all__ = ["content", "tables"]

_WORD = {"clear": "A clear difference", "unclear": "No clear difference", "unknown": "Nothing to compare"}
_LEVEL = {"usable": "pass", "usable with care": "warn", "do not use": "fail", None: "skipped"}
_ENGINE = {"svi": "variational inference", "nuts": "NUTS"}
_SOURCES = (
    (
        "Leave-one-out density",
        "How well each row is predicted by a fit to all others, in nats, summed over the rows; larger is better. "
        "Vehtari, Gelman, Gabry (2017), Statistics and Computing 27, eq. 10 and, for the standard error of a paired "
        "difference, eq. 24; corrected for the guide as in Magnusson et al. (2019), arXiv:1904.10679.",
    ),
    (
        "When a difference is clear",
        "Rows that were held out decide, by the paired difference of a score: that of the task, or another one if that "
        "of the task cannot tell; beyond its standard error at 95%, and no other score says the contrary. Without such "
        "rows a difference of leave-one-out densities decides that is at least 4 nats and more than two standard "
        "errors: Sivula, Magnusson, Matamoros, Vehtari (2020), arXiv:2008.10296. A leave-one-out density that is "
        "unreliable in more than 5% of the rows is not shown and ranks nothing.",
    ),
    (
        "Standard errors of scores",
        "From leaving out each of up to 20 groups of held-out rows, the same groups for every fit, so that what the "
        "fits have in common cancels in a difference. Efron, Stein (1981), Annals of Statistics 9(3). They hold the "
        "chance in which rows were held out, not that of training again with another seed.",
    ),
    (
        "Cost",
        "Time is that of the fit with compilation; memory the most that the process held which fitted, with Python and "
        "torch themselves, so that it is an upper bound where a process made several fits.",
    ),
)


def content(comparison: Comparison) -> tuple[dict[str, Any], dict[str, Any]]:
    """Collect everything that the page and its JSON hold.

    Args:
        comparison: The comparison.

    Returns:
        Values for the template, and the JSON document.
    """
    from zoo import __version__

    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    found = tables(comparison)
    parts = Parts()
    drawings = _figures(comparison, parts)
    names = [fit.label for fit in comparison.fits]
    held = f", {comparison.held_out:,} {comparison.split} rows" if comparison.split else ""
    level = "pass" if comparison.better == "clear" and not comparison.cautions else "warn"
    page = {
        "title": " · ".join(names) if len(names) <= 3 else f"{len(names)} fits to {comparison.data}",
        "kind": "Comparison of posteriors",
        "skip": ("scores", "the comparison"),
        "lede": f"{len(names)} fits to {comparison.data} ({comparison.rows:,} training rows{held}), the best first.",
        "verdict": {
            "level": "skipped" if comparison.better == "unknown" else level,
            "word": _WORD[comparison.better],
            "reasons": [comparison.finding, *comparison.cautions],
        },
        "contents": [("fits", "Fits"), ("scores", "Predictions"), ("cost", "Cost"), ("read", "How to read this")],
        "fits": [
            {"label": fit.label, "title": fit.title, "engine": _ENGINE.get(fit.engine, fit.engine),
             "verdict": fit.verdict or "not checked", "level": _LEVEL[fit.verdict]}
            for fit in comparison.fits
        ],
        "settings": found["settings"],
        "loo": found["loo"],
        "scores": found["scores"],
        "gaps": found["gaps"],
        "cost": found["cost"],
        "figures": drawings,
        "numbers": {d.name: i for i, d in enumerate(drawings, 1)},
        "sources": _SOURCES,
        "version": __version__,
        "date": date,
        "missing": list(parts.missing.items()),
    }  # fmt: skip
    document = {
        "format": "pyro-zoo comparison 1",
        **comparison.to_json(),
        "missing": parts.to_json(),
        "versions": {"pyro-zoo": __version__},
        "date": date,
    }
    return page, document


def tables(comparison: Comparison) -> dict[str, Table | None]:
    """Turn a comparison into tables of text.

    Args:
        comparison: The comparison.

    Returns:
        ``loo``, ``scores``, ``gaps``, ``cost`` and ``settings``; ``None`` where there is nothing to show.
    """
    fits = comparison.fits
    loo = scores = gaps = settings = None
    if any(fit.elpd is not None for fit in fits):
        rows = tuple(
            (
                fit.label,
                _with_error(fit.elpd),
                "–" if fit.difference is None or fit is fits[0] else _with_error(fit.difference),
                "–" if math.isnan(fit.bad_k) else f"{fit.bad_k:.1%}",
            )
            for fit in fits
        )
        loo = Table(
            ("fit", "density ± se", "difference to the first ± se", "rows with a large Pareto k"),
            rows,
            "Leave-one-out log predictive density of the training rows, in nats; larger is better.",
        )
    names = list(dict.fromkeys(k for fit in fits for k in fit.scores))
    if names:
        header = ("score", *(fit.label for fit in fits))
        scores = Table(
            header,
            tuple((name.replace("_", " "), *(_with_error(fit.scores.get(name)) for fit in fits)) for name in names),
            f"Scores on {comparison.held_out:,} {comparison.split} rows, with standard errors.",
            note=definitions(name.replace("_", " ") for name in names),
        )
        if len(fits) > 1:
            gaps = Table(
                ("score", *(fit.label for fit in fits[1:])),
                tuple((n.replace("_", " "), *(_with_error(fit.gaps.get(n)) for fit in fits[1:])) for n in names),
                f"Difference of each score to that of {fits[0].label}, paired over the rows, with standard errors.",
            )
    cost = Table(
        ("fit", "time", "peak memory", "trained parameters", "numbers in a draw"),
        tuple(
            (
                fit.label,
                "–" if fit.seconds is None else f"{show(fit.seconds, 3)} s",
                "–" if fit.peak_memory is None else f"{fit.peak_memory / 1e6:,.0f} MB",
                f"{fit.parameters:,}",
                f"{fit.latents:,}",
            )
            for fit in fits
        ),
        "What each fit took.",
    )
    differing = _differing(fits)
    if differing:
        settings = Table(
            ("hyper-parameter", *(fit.label for fit in fits)),
            tuple((name, *(_short(fit.hyper.get(name)) for fit in fits)) for name in differing),
            "Hyper-parameters in which the fits differ.",
        )
    return {"loo": loo, "scores": scores, "gaps": gaps, "cost": cost, "settings": settings}


def _differing(fits: Sequence[Fit]) -> list[str]:
    names = dict.fromkeys(k for fit in fits for k in fit.hyper)
    return [n for n in names if len({repr(fit.hyper.get(n)) for fit in fits}) > 1]


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else "–" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _with_error(found: Estimate | None) -> str:
    """Show a number with as many decimals as its standard error has two digits of."""
    if found is None or math.isnan(found.value):
        return "–"
    if not math.isfinite(found.se) or found.se <= 0:
        return show(found.value)
    places = min(max(1 - math.floor(math.log10(found.se)), 0), 8)
    return f"{found.value:,.{places}f} ± {found.se:,.{places}f}".replace("-", "\N{MINUS SIGN}")


def _figures(comparison: Comparison, parts: Parts) -> list[figures.Drawing]:
    """Draw the differences to the first fit, with two standard errors."""
    rest = comparison.fits[1:]
    found: list[figures.Drawing | None] = []
    shown: dict[str, Mapping[str, Estimate]] = {
        fit.label: {"leave-one-out density": fit.difference} if fit.difference is not None else {} for fit in rest
    }
    for fit in rest:
        shown[fit.label] = {**shown[fit.label], **fit.gaps}
    for name in dict.fromkeys(k for gaps in shown.values() for k in gaps):
        mine = {
            label: gaps[name]
            for label, gaps in shown.items()
            if name in gaps and math.isfinite(gaps[name].value) and gaps[name].se > 0
        }
        if mine:
            words = name.replace("_", " ")
            draw = partial(
                figures.differences,
                list(mine),
                [e.value for e in mine.values()],
                [e.se for e in mine.values()],
                name=f"difference-{words.replace(' ', '-')}",
                what=words,
                first=comparison.fits[0].label,
            )
            found.append(parts.make(f"figure of the difference of {words}", draw, None))
    return [drawing for drawing in found if drawing is not None]
