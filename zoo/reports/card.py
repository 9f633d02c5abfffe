"""The model card: what stands on the page, in Markdown, for a repository or a model hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.reports.page import Table, show

__all__ = ["MARK", "card"]

MARK = "<!-- pyro-zoo model card -->"


def card(page: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Write the model card of a fit.

    Args:
        page: Values from :func:`zoo.reports.page.content`.
        document: The JSON document from the same function.

    Returns:
        Markdown, ending in a newline.

    References:
        Mitchell et al. (2019), Model cards for model reporting, arXiv:1810.03993, for the sections.
    """
    verdict = page["verdict"]
    parts = [
        f"# {escape(page['title'])}: model card",
        MARK,
        f"**Verdict: {verdict['word'].lower()}.** {escape(next(iter(verdict['reasons']), ''))}".strip(),
        *(f"- {_answer(a)}" for a in verdict["answers"]),
        escape(verdict["note"]),
        "## Model",
        _facts(page["fit"]),
    ]
    about = page["about"]
    if about["use_when"]:
        parts += ["### When to use it", escape(about["use_when"])]
    parts += ["## Data", _facts(page["data"]), "## Recipe"]
    if page["command"]:
        parts.append(_code(page["command"], "console"))
    recipe = document["fit"].get("recipe")
    if isinstance(recipe, Mapping):
        parts.append(_table(("setting", "value"), ((k.replace("_", " "), _short(v)) for k, v in recipe.items())))
    if page["hyper"] is not None:
        parts.append(_of(page["hyper"]))
    rows = [
        (c["verdict"], c["title"], *(c[key] or "–" for key in ("headline", "threshold", "source")))
        for c in page["overview"]
    ]
    parts += ["## Checks", _table(("verdict", "check", "measured", "threshold", "source"), rows)] if rows else []
    parts += ["## Metrics", _of(page["scores"]) if page["scores"] else "No held-out scores."]
    if page["interest"]:
        parts += ["## Quantities of interest", *(_of(table) for table in page["interest"])]
    limits = [reason for reason in verdict["reasons"] if verdict["level"] != "pass"]
    limits += [about["avoid_when"]] if about["avoid_when"] else []
    limits += [f"Not checked: {c['title']} {c['explanation']}" for c in page["skipped"]]
    limits += page["posterior"]["notes"]
    limits += [f"Missing here: {part} ({reason})." for part, reason in page["missing"]]
    limits.append("The checks speak of these data only; for data from elsewhere nothing was measured.")
    parts += ["## Limits", "\n".join(f"- {escape(text)}" for text in limits)]
    parts.append("## Citation")
    parts.append(escape(page["cite_text"]))
    if page["bibtex"]:
        parts.append(_code(page["bibtex"], "bibtex"))
    parts += ["## Versions", _table(("package", "version"), page["versions"])]
    parts.append(f"Written on {page['date']}. Figures and all numbers are in the report beside this file.")
    return "\n\n".join(parts) + "\n"


def _answer(answer: Mapping[str, Any]) -> str:
    """Return one answer as an item of a list."""
    text = f"{escape(answer['question'])} **{answer['use']}**. {escape(answer['reason'])}"
    command = answer["command"] or answer["python"]
    return f"{text} Try: `{command.replace('`', '')}`" if command else text


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, in one line.

    Args:
        text: Any text.

    Returns:
        The text with everything escaped that Markdown or HTML would interpret.
    """
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _short(value: Any) -> str:
    return show(list(value)) if isinstance(value, list | tuple) else show(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(escape(cell) or ' ' for cell in header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = [escape(cell) for cell in row] + [""] * (len(header) - len(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(table: Table) -> str:
    caption = f"{escape(table.caption)}\n\n" if table.caption else ""
    return caption + _table(table.header, table.rows) + (f"\n\n{escape(table.note)}" if table.note else "")


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- **{escape(key)}:** {escape(value)}" for key, value in rows)


def _code(text: str, language: str) -> str:
    # A fence longer than any run of backticks inside it.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"
