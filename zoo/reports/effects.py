"""The effects of a regression's features on the page: a table in the user's units, and a forest plot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.diagnostics.effects import LINKS, effects
from zoo.errors import PairError
from zoo.reports import figures
from zoo.reports.figures import Drawing
from zoo.reports.page import Table, decimals, fixed

if TYPE_CHECKING:
    import pandas as pd

    from zoo.inference.posterior import Posterior

__all__ = ["Shown", "figure", "show_effects", "table"]

_FIRST = 25  # rows of the table that stand open on the page
_PANEL = 45  # rows of one forest plot; more stand in panels beside each other

_INDENT = "\N{EM SPACE}"  # of a category below its column

_ORDER = {
    "size": "sorted by the size of the effect of one standard deviation of the feature",
    "sign": "sorted by how probable the sign is",
    "table": "in the order of the data's columns",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the page shows of the effects.

    Args:
        first: The first rows.
        rest: All others; ``None`` if there are none.
        drawing: The forest plot.
        beside: Whether the figure has room beside the table.
        note: Sentences on how to read the table.
        frame: What :func:`zoo.diagnostics.effects.effects` returned.
    """

    first: Table
    rest: Table | None
    drawing: Drawing
    beside: bool
    note: str
    frame: pd.DataFrame

    def to_json(self) -> dict[str, Any]:
        """Return every number.

        Returns:
            What the effects are on, their order, and one entry per row.
        """
        rows = self.frame.rename_axis("effect").reset_index().to_dict("records")
        return {**self.frame.attrs, "rows": rows}


def show_effects(posterior: Posterior, *, num_draws: int = 4_000, seed: int = 0) -> Shown | None:
    """Return the effects of a fit as the page shows them.

    Args:
        posterior: A fit.
        num_draws: Posterior draws behind the numbers.
        seed: Of the draws.

    Returns:
        Table and figure; ``None`` for a model that is not linear in its features.
    """
    try:
        frame = effects(posterior, num_draws=num_draws, seed=seed)
    except PairError:
        return None
    whole = table(frame)
    cut = len(whole.rows) > _FIRST + 5
    rest = Table(whole.header, whole.rows[_FIRST:], f"The other {len(whole.rows) - _FIRST} rows") if cut else None
    first = Table(whole.header, whole.rows[:_FIRST] if cut else whole.rows, whole.caption)
    drawing = figure(frame)
    beside = not drawing.wide and frame.attrs["link"] == "identity"
    return Shown(first=first, rest=rest, drawing=drawing, beside=beside, note=_note(frame), frame=frame)


def table(frame: pd.DataFrame) -> Table:
    """Turn effects into a table of text.

    Args:
        frame: What :func:`zoo.diagnostics.effects.effects` returned.

    Returns:
        The table; the categories of a column stand under the column's name with its base category.
    """
    ratio = LINKS[frame.attrs["link"]]
    header = ("feature", "effect", "sd", "5%", "95%", *((ratio, "5%", "95%") if ratio else ("effect of 1 sd",)), "sign")
    rows: list[tuple[str, ...]] = []
    before = ""
    for _, row in frame.iterrows():
        if row["level"] and row["feature"] != before:
            rows.append((f"{row['feature']} (against {row['base']})",))
        before = row["feature"] if row["level"] else ""
        places = decimals(row["sd"])
        numbers = [fixed(row[k], places) for k in ("mean", "sd", "5%", "95%")]
        if ratio:
            numbers += [_ratio(row[k]) for k in (ratio, f"{ratio} 5%", f"{ratio} 95%")]
        else:
            spread = (row["per sd 95%"] - row["per sd 5%"]) / 3.3
            numbers.append(fixed(row["per sd"], decimals(spread)))
        rows.append((
            f"{_INDENT}{row['level']}" if row["level"] else row["feature"],
            *numbers,
            _probability(row["sign"]),
        ))
    caption = (
        f"Effect on {frame.attrs['target']}, {_ORDER[frame.attrs['order']]}: posterior mean, standard deviation (sd)"
    )
    return Table(header, tuple(rows), caption + " and 90% interval.")


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.3g}" if math.isfinite(value) else "∞"


def _probability(value: float) -> str:
    # Of 4,000 draws all may agree; the probability is still below one.
    return "> 99.9%" if value > 0.999 else f"{100 * value:.1f}%"


def _note(frame: pd.DataFrame) -> str:
    link, target = frame.attrs["link"], frame.attrs["target"]
    words = f"A number's effect is the change of {target} per unit of the feature, all others held"
    words += "; that of a category is the difference to the base category of its column" if frame["level"].any() else ""
    words += "; 'sign' is the probability that the effect has the sign of its mean."
    if link != "identity":
        words += f" The {LINKS[link]} is the exponential of the effect, here its posterior median and 90% interval."
    if "intercept" in frame.index:
        words += " The intercept stands for a row whose features are all zero or at their base."
    return words


def figure(frame: pd.DataFrame) -> Drawing:
    """Draw the effect of one standard deviation of each feature, whose units are the same for all.

    Args:
        frame: What :func:`zoo.diagnostics.effects.effects` returned.

    Returns:
        The drawing.
    """
    shown = frame[frame["feature"] != "intercept"] if "intercept" in frame.index else frame
    labels = [
        _short(f"{row['feature']}: {row['level']}" if row["level"] else str(name)) for name, row in shown.iterrows()
    ]
    columns = np.asarray(shown[["per sd", "per sd 5%", "per sd 95%"]], dtype=np.float64)
    return figures.forest(
        labels,
        *columns.T,
        name="effects",
        title=f"Effect of one standard deviation of each feature on {frame.attrs['target']}",
        units="effect of one standard deviation",
        panel=_PANEL,
    )


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"
