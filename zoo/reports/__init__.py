"""The posterior report: one HTML file that loads nothing, the same numbers as JSON, and a model card in Markdown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import DataError

if TYPE_CHECKING:
    from zoo.diagnostics import Diagnosis
    from zoo.diagnostics.compare import Comparison
    from zoo.inference.posterior import Posterior
    from zoo.inference.progress import Progress

__all__ = ["CARD", "Report", "card_path", "write", "write_comparison"]

CARD = "MODEL_CARD.md"


@dataclass(frozen=True, slots=True)
class Report(os.PathLike[str]):
    """A report that was written; as a path it is its page.

    Args:
        page: The HTML file.
        numbers: The JSON file beside it.
        card: The model card beside it.
        diagnosis: The checks that it shows.
    """

    page: Path
    numbers: Path
    card: Path
    diagnosis: Diagnosis

    def __fspath__(self) -> str:
        """Return the path of the page."""
        return os.fspath(self.page)

    def _repr_html_(self) -> str:
        from zoo.reports.inline import report_html

        return report_html(self)


def card_path(page: Path) -> Path:
    """Return where the model card of a report goes.

    Args:
        page: Path of the page.

    Returns:
        ``MODEL_CARD.md`` beside ``report.html``; ``x.md`` beside a page ``x.html`` of another name.
    """
    return page.with_name(CARD) if page.stem == "report" else page.with_suffix(".md")


def write(
    posterior: Posterior,
    path: str | os.PathLike[str],
    *,
    diagnosis: Diagnosis | None = None,
    full: bool = False,
    seed: int = 0,
    num_draws: int = 1_000,
    progress: Progress | None = None,
) -> Report:
    """Write the report of a fit: ``x.html``, self-contained, ``x.json`` with every number in it, and a model card.

    The card is ``MODEL_CARD.md`` beside ``report.html`` and ``x.md`` beside a page of another name. The files appear
    whole or not at all.

    Args:
        posterior: A fit.
        path: Where the page goes, ending in ``.html``.
        diagnosis: Checks already made; ``None`` makes them.
        full: Also make the checks that fit again, which takes as long as some hundred fits.
        seed: Of every draw behind the page.
        num_draws: Posterior draws behind the tables.
        progress: Told of every refit.

    Returns:
        The report; ``open`` and :class:`pathlib.Path` take it as the path of its page.

    Raises:
        DataError: If the path does not end in ``.html`` or cannot be written, or a Markdown file that is no model card
            of the zoo stands where the card goes.
    """
    from zoo.reports.card import MARK, card
    from zoo.reports.files import dumps, refuse_unwritable, write_texts
    from zoo.reports.page import content, render

    page = _html(path)
    refuse_unwritable(page)
    aside = card_path(page)
    if aside.is_file() and MARK not in aside.read_text(encoding="utf-8", errors="replace"):
        raise DataError(f"the model card goes to '{aside}', which the zoo did not write; move it, or name another page")
    if diagnosis is None:
        from zoo.diagnostics import diagnose

        diagnosis = diagnose(posterior, full=full, seed=seed, progress=progress)
    values, document = content(posterior, diagnosis, seed=seed, num_draws=num_draws)
    numbers = page.with_suffix(".json")
    write_texts({
        page: render({**values, "json_name": numbers.name}),
        numbers: dumps(document),
        aside: card(values, document),
    })
    return Report(page, numbers, aside, diagnosis)


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the page of a comparison, ``x.html``, and ``x.json`` with every number in it.

    Args:
        comparison: What :func:`zoo.diagnostics.compare.comparison` returned.
        path: Where the page goes, ending in ``.html``.

    Returns:
        The path of the page.

    Raises:
        DataError: If the path does not end in ``.html`` or cannot be written.
    """
    from zoo.reports.comparison import content
    from zoo.reports.files import dumps, refuse_unwritable, write_texts
    from zoo.reports.page import render

    page = _html(path)
    refuse_unwritable(page)
    numbers = page.with_suffix(".json")
    values, document = content(comparison)
    text = render({**values, "json_name": numbers.name}, "comparison.html.j2")
    write_texts({page: text, numbers: dumps(document)})
    return page


def _html(path: str | os.PathLike[str]) -> Path:
    page = Path(path)
    if page.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"report '{page}' must end in .html; the numbers go to the same name with .json")
    return page
