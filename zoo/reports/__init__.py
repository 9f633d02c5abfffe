"""The posterior report: one HTML file that loads nothing, and the same numbers as JSON beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import DataError

if TYPE_CHECKING:
    from zoo.diagnostics import Diagnosis
    from zoo.inference.posterior import Posterior

__all__ = ["write"]


def write(
    posterior: Posterior,
    path: str | Path,
    *,
    diagnosis: Diagnosis | None = None,
    seed: int = 0,
    num_draws: int = 1_000,
) -> Path:
    """Write the report of a fit: ``x.html``, self-contained, and ``x.json`` with every number in it.

    Both files appear whole or not at all.

    Args:
        posterior: A fit.
        path: Where the page goes, ending in ``.html``.
        diagnosis: Checks already made; ``None`` makes them.
        seed: Of every draw behind the page.
        num_draws: Posterior draws behind the tables.

    Returns:
        The path of the page.

    Raises:
        DataError: If the path does not end in ``.html`` or cannot be written.
    """
    from zoo.reports.files import dumps, write_texts
    from zoo.reports.page import content, render

    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"report '{path}' must end in .html; the numbers go to the same name with .json")
    if diagnosis is None:
        from zoo.diagnostics import diagnose

        diagnosis = diagnose(posterior, seed=seed)
    page, document = content(posterior, diagnosis, seed=seed, num_draws=num_draws)
    numbers = path.with_suffix(".json")
    write_texts({path: render({**page, "json_name": numbers.name}), numbers: dumps(document)})
    return path
