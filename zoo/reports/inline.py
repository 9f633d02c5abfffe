"""What a notebook shows of a fit, its diagnosis or its report: verdict and checks; nothing is computed."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from zoo.reports.page import show

if TYPE_CHECKING:
    from zoo.diagnostics import Check, Diagnosis
    from zoo.inference.posterior import Posterior
    from zoo.reports import Report

__all__ = ["diagnosis_html", "posterior_html", "report_html"]

# White on these is readable, whether the notebook around them is light or dark.
_COLOURS = {"pass": "#22683f", "warn": "#845200", "fail": "#a3211a", "not run": "#5b646f"}
_COLOURS |= {"usable": "#22683f", "usable with care": "#845200", "do not use": "#a3211a"}
_COLOURS |= {"not examined": "#5b646f", "not meant to be read": "#5b646f"}
_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"


def diagnosis_html(diagnosis: Diagnosis, heading: str = "") -> str:
    """Return the verdict and the checks as a fragment of HTML.

    Args:
        diagnosis: What :func:`zoo.diagnostics.diagnose` returned.
        heading: Text above.

    Returns:
        HTML without scripts, style sheets or links, in the colours of the page around it.
    """
    ran = [c for c in diagnosis.checks if c.verdict != "not run"]
    left = len(diagnosis.checks) - len(ran)
    reason = diagnosis.reasons[0] if diagnosis.reasons else ""
    parts = [_paragraph(heading)] if heading else []
    parts.append(f"<p style='margin:4px 0'>{_badge(diagnosis.verdict)} {html.escape(reason)}</p>")
    for answer in diagnosis.answers:
        text = f"{html.escape(answer.question)} {_badge(answer.use)} {html.escape(answer.reason)}"
        if answer.python:
            text += f" Try: <code>{html.escape(answer.python)}</code>"
        parts.append(f"<p style='margin:4px 0'>{text}</p>")
    if ran:
        head = "".join(f"<th scope='col' style='{_CELL}'>{name}</th>" for name in ("verdict", "check", "measured"))
        body = "".join(f"<tr>{_row(c)}</tr>" for c in ran)
        parts.append(
            f"<table style='border-collapse:collapse'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )
    if left:
        parts.append(_paragraph(f"{left} check{'s' if left > 1 else ''} did not run."))
    return f"<div>{''.join(parts)}</div>"


def posterior_html(posterior: Posterior) -> str:
    """Return what a fit is, and its verdict if it was checked.

    Args:
        posterior: A fit.

    Returns:
        HTML as of :func:`diagnosis_html`.
    """
    seconds = posterior.seconds
    facts = [posterior.method.title if posterior.method else posterior.name]
    facts.append(f"{posterior.data.name}, {posterior.data.num_data:,} rows")
    if posterior.engine == "nuts":
        chains = next(iter((posterior.chains or {}).values()), None)
        facts.append("NUTS" if chains is None else f"NUTS, {chains.shape[0]} chains of {chains.shape[1]:,} draws")
    else:
        facts.append(f"stochastic variational inference, {len(posterior.losses):,} steps")
    if seconds is not None:
        facts.append(f"{show(seconds, 3)} s")
    heading = " · ".join(facts)
    if posterior.diagnosis is not None:
        return diagnosis_html(posterior.diagnosis, heading)
    hint = "Not checked yet: zoo.diagnostics.diagnose(posterior), or posterior.report('report.html')."
    return f"<div>{_paragraph(heading)}{_paragraph(hint)}</div>"


def report_html(report: Report) -> str:
    """Return the verdict of a report, and where its files are.

    Args:
        report: A report.

    Returns:
        HTML as of :func:`diagnosis_html`.
    """
    files = ", ".join(str(path) for path in (report.page, report.numbers, report.card))
    return f"<div>{diagnosis_html(report.diagnosis)}{_paragraph(f'Written: {files}')}</div>"


def _row(check: Check) -> str:
    value = check.value
    if isinstance(value, Mapping):
        value = next((f"{k}: {show(v, 3)}" for k, v in value.items()), "")
    title = f"<span title='{html.escape(check.explanation, quote=True)}'>{html.escape(check.title)}</span>"
    return _cells((_badge(check.verdict), title, html.escape("" if value is None else show(value, 3))))


def _cells(cells: Iterable[str]) -> str:
    return "".join(f"<td style='{_CELL}'>{cell}</td>" for cell in cells)


def _badge(word: str) -> str:
    style = (
        f"background:{_COLOURS[word]};color:#fff;padding:1px 8px;border-radius:3px;font-weight:600;white-space:nowrap"
    )
    return f"<span style='{style}'>{word}</span>"


def _paragraph(text: str) -> str:
    return f"<p style='margin:4px 0'>{html.escape(text)}</p>"
