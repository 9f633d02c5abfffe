"""From results to ``RESULTS.md``."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import cases, nuts, svi

__all__ = ["render", "write"]

_HERE = Path(__file__).parent
_INTRODUCTION = """# Results

Written by `make bench`; never by hand. Every contender runs in a process of its own, and all of them exist at the
same time: one runs a block of steps while the others wait at a pipe, in another order at every repeat. Compiler
caches are empty at the start. *First step* is the time from imported libraries to the end of the first step (for
`lax.scan`: the first block), compilation included. *CPU* is the processor time of a step, all threads together,
which other programs on the machine hardly change. *Memory* is the peak of the process's resident set, libraries
included. Before anything is timed, each contender takes steps at the same initial parameters with fresh noise, and
its mean loss must agree with that of the first within five standard errors plus a relative 1e-4, else the case is
refused; the column *loss* shows these means with their standard errors. Ratios are formed within a repeat; given
are their median and quartiles.

For NUTS, all contenders draw from the same posterior with four chains, a diagonal metric, double precision and
equal numbers of warm-up iterations and draws. *ESS/s* is the smallest bulk effective sample size of any scalar over
the seconds of sampling, warm-up included and compilation not; positive sites are taken on the log scale. Posterior
means must agree within five Monte Carlo errors. *Cold* is the first run from imported libraries, compilation
included. Pyro's row is extrapolated: the cost of one of its leapfrog steps (trees of depth 5), times the number of
leapfrog steps that NumPyro's chains took, shared by as many processes as there are cores, two at most, with
NumPyro's effective draws.
"""


def _number(value: float) -> str:
    """Return three digits, without an exponent where that is readable."""
    if not math.isfinite(value):
        return ""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Return the median and the quartiles."""
    if len(values) < 2:
        return _number(values[0] * scale) if values else ""
    low, middle, high = (scale * v for v in statistics.quantiles(values, n=4, method="inclusive"))
    return f"{_number(middle)} [{_number(low)}, {_number(high)}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose first column is text."""
    return [
        "| " + " | ".join(head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _svi(result: dict[str, Any]) -> list[str]:
    lines, absent = [], []
    for name, row in result["rows"].items():
        label = svi.CONTENDERS[name][0]
        if "error" in row:
            absent.append(f"- {label}: {row['error']}")
            continue
        loss = row["loss"]
        lines.append([
            label,
            _spread(row["seconds"], 1e6),
            _spread(row["ratios"]),
            _spread(row.get("cpu", []), 1e6),
            _number(row["setup"]),
            _number(row["mib"]),
            f"{loss['mean']:,.1f} ± {_number(loss['error'])}",
        ])
        if row["note"]:
            absent.append(f"- {label}: {row['note']}")
    head = (
        "contender",
        "µs a step",
        "time over that of zoo's step",
        "CPU µs a step",
        "first step, s",
        "memory, MiB",
        "loss",
    )
    return [*_table(head, lines), *(["", *absent] if absent else [])]


def _nuts(result: dict[str, Any]) -> list[str]:
    lines, absent = [], []
    for name, row in result["rows"].items():
        label = nuts.CONTENDERS[name][0]
        if "error" in row:
            absent.append(f"- {label}: {row['error']}")
            continue
        lines.append([
            label,
            _spread(row["per_second"]),
            _spread(row.get("ratios", [])),
            _spread(row["seconds"]),
            _number(statistics.median(row["least"])),
            f"{statistics.median(row['leapfrogs']):,.0f}",
            _number(statistics.median(row["divergences"])) if row["divergences"] else "",
            _number(row["setup"] or math.nan),
            _number(row["mib"]),
        ])
    head = ("contender", "ESS/s", "zoo's ESS/s over its", "seconds", "ESS", "leapfrog steps", "divergences", "cold, s",
            "memory, MiB")  # fmt: skip
    agreed = (
        f"{result['draws']:,} draws a chain after {result['draws']:,} of warm-up. Largest distance of posterior means: "
        f"{result['distance']:.1f} Monte Carlo errors."
    )
    return [*_table(head, lines), "", agreed, *absent]


def _scaling(result: dict[str, Any]) -> list[str]:
    points = result["points"]
    head = ("contender", *(f"{int(size):,}" for size in points), "slope")
    lines = []
    for name, slope in result["slopes"].items():
        found = [p.get(name) for p in points.values()]
        lines.append([
            svi.CONTENDERS[name][0],
            *("" if p is None else _number(1e6 * p["median"]) for p in found),
            _number(slope),
        ])
    return [*_table(head, lines), "", "Median µs a step; the slope is that of log time over log size."]


def render(results: Sequence[dict[str, Any]]) -> str:
    """Return the whole page.

    Args:
        results: One per case.

    Returns:
        Markdown.
    """
    parts = [_INTRODUCTION]
    for result in results:
        body = {"svi": _svi, "nuts": _nuts, "scaling": _scaling}[result["kind"]](result)
        about = result["about"]
        parts += [
            f"## {result['title']}",
            "",
            *body,
            "",
            f"`{about['command']}`; {result['repeats']} repeats, {result['threads']} threads; {about['date']}; "
            f"{about['machine']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}; commit "
            f"{about['commit']}; load of the machine before the start: "
            f"{'unknown' if about.get('load') is None else format(about['load'], '.1f')}.",
            "",
        ]
    return "\n".join(parts)


def write(result: dict[str, Any] | None = None, folder: Path = _HERE) -> Path:
    """Keep one case's results, and write the page anew from those of all cases.

    Args:
        result: Of a case; ``None`` only writes the page.
        folder: Where to.

    Returns:
        The page.
    """
    kept = folder / "results"
    kept.mkdir(parents=True, exist_ok=True)
    if result is not None:
        (kept / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    found = [
        json.loads((kept / f"{name}.json").read_text(encoding="utf-8"))
        for name in cases.NAMES
        if (kept / f"{name}.json").exists()
    ]
    page = folder / "RESULTS.md"
    page.write_text(render(found).rstrip() + "\n", encoding="utf-8")
    return page
