"""The page of a comparison: true to its numbers, self-contained, accessible."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from read_pages import Page, accessible, self_contained

from zoo.diagnostics.compare import Comparison, Estimate, Fit
from zoo.errors import DataError
from zoo.reports import write_comparison
from zoo.reports.comparison import tables


def fit(label: str, elpd: float | None, **more: object) -> Fit:
    """Return a fit with numbers of its own."""
    known = None if elpd is None else Estimate(elpd, 3.0)
    gap = None if elpd is None else Estimate(elpd + 100, 0.0 if elpd == -100 else 2.5)
    scores = {"rmse": Estimate(1.25, 0.031), "r2": Estimate(0.5)}
    settings: dict[str, object] = {
        "method": "toy",
        "title": "A toy & more",
        "engine": "svi",
        "elpd": known,
        "difference": gap,
        "scores": scores,
        "gaps": {"rmse": Estimate(-0.123456, 0.0348), "r2": Estimate(math.nan)},
        "hyper": {"width": 3, "seed": 1},
        "parameters": 1234,
        "latents": 56,
    }
    return Fit(label=label, **{**settings, **more})  # type: ignore[arg-type]


def example() -> Comparison:
    """Return a comparison of three fits."""
    first = fit("a<b>", -100.0, verdict="usable", seconds=12.0, peak_memory=40_000_000, bad_k=0.25)
    second = fit("good", -110.0, verdict="do not use", bad_k=0.0, hyper={"width": 4, "seed": 1})
    return Comparison(
        data="mine<i>",
        rows=30,
        split="test",
        held_out=20,
        fits=(first, second, fit("none", None, why="no rows")),
        better="clear",
        finding="a<b> predicts better.",
        cautions=("Mind this.",),
    )


def test_page_of_a_comparison(tmp_path: Path) -> None:
    page = write_comparison(example(), tmp_path / "c.html")
    text = page.read_text(encoding="utf-8")
    shown = Page(text)
    self_contained(text, shown)
    accessible(text, shown)
    for words in (
        "a<b> predicts better.",
        "Mind this.",
        "mine<i>",
        "not checked",
        "do not use",
        "A toy & more",
        "40 MB",
    ):
        assert words in shown.text
    assert {"figure-difference-leave-one-out-density", "figure-difference-rmse"} <= set(shown.ids)
    assert len(shown.ids) == len(set(shown.ids))
    assert set(shown.links) <= set(shown.ids)
    assert "nan" not in shown.text
    numbers = json.loads(page.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    assert [f["label"] for f in numbers["fits"]] == ["a<b>", "good", "none"]
    assert numbers["fits"][2]["elpd"] is None
    with pytest.raises(DataError, match=r"\.html"):
        write_comparison(example(), tmp_path / "c.txt")


def test_tables_show_as_many_digits_as_the_errors_allow() -> None:
    found = tables(example())
    assert found["loo"] is not None
    assert found["loo"].rows[0] == ("a<b>", "−100.0 ± 3.0", "–", "25.0%")
    assert found["loo"].rows[1] == ("good", "−110.0 ± 3.0", "−10.0 ± 2.5", "0.0%")
    assert found["loo"].rows[2] == ("none", "–", "–", "–")
    assert found["scores"] is not None
    assert found["scores"].rows == (("rmse", *["1.250 ± 0.031"] * 3), ("r2", *["0.5000"] * 3))
    assert found["gaps"] is not None
    assert found["gaps"].rows == (("rmse", *["−0.123 ± 0.035"] * 2), ("r2", "–", "–"))
    assert found["settings"] is not None
    assert found["settings"].rows == (("width", "3", "4", "3"),)
