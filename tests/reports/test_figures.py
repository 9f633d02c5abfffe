"""Figures: inline SVG with a description, in the page's colours, from awkward data too."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest

from zoo.reports import figures
from zoo.reports.figures import Drawing

RNG = np.random.default_rng(0)
N = RNG.standard_normal

CASES: dict[str, Callable[[], Drawing]] = {
    "loss": lambda: figures.loss_curve(np.exp(-np.arange(3000) / 300) * 1e5 + 40 + N(3000)),
    "loss-short": lambda: figures.loss_curve([3.0, 2.0]),
    "loss-constant": lambda: figures.loss_curve(np.zeros(50)),
    "loss-nan": lambda: figures.loss_curve([1.0, np.nan, 2.0, np.inf, 1.0]),
    "loss-negative": lambda: figures.loss_curve(-1e6 - np.arange(500.0)),
    "khat": lambda: figures.khat_repeats([0.4, 0.8, np.inf, 0.3]),
    "khat-one": lambda: figures.khat_repeats([-0.2]),
    "traces": lambda: figures.traces({"a": N((4, 500)), "b[x, y]": N((4, 500))}),
    "ranks": lambda: figures.ranks({"a": N((1, 500))}),
    "pairs": lambda: figures.pairs(N(3000), N(3000), RNG.random(3000) < 0.1, xlabel="log tau", ylabel="theta[0]"),
    "pairs-none": lambda: figures.pairs(N(30), N(30), np.zeros(30), xlabel="x", ylabel="y"),
    "forest": lambda: figures.forest(["a", "b<c"], [0.0, 1.0], [-1.0, 0.5], [1.0, 2.0], name="f", title="theta"),
    "overlay": lambda: figures.overlay(N(200), N((50, 200)), label="y & z"),
    "overlay-constant": lambda: figures.overlay(np.ones(40), np.ones((5, 40)), label="y"),
    "overlay-counts": lambda: figures.overlay(np.arange(9) % 3, RNG.integers(0, 3, (5, 9)), label="y", discrete=True),
    "overlay-classes": lambda: figures.overlay(
        np.arange(9) % 3, RNG.integers(0, 4, (5, 9)), label="y", classes=["a", "b", "c", "d"]
    ),
    "intervals": lambda: figures.intervals(["a", "b"], [0, 1], [-1, -1], [0, 0], [1, 2], label="y"),
    "reliability": lambda: figures.reliability([0.1, 0.5, np.nan], [0.2, 0.4, np.nan], counts=[10, 20, 0]),
    "coverage": lambda: figures.reliability([0.5, 0.9], [0.4, 0.9], kind="coverage"),
    "loo": lambda: figures.pareto_k([0.1, 0.9, np.nan]),
    "funnel": lambda: figures.funnel(N(100), N(100), site="theta"),
    "rows": lambda: figures.pareto_k([0.1, 0.9, np.nan], of="rows"),
    "overlay-prior": lambda: figures.overlay(N(200), 100 * N((50, 200)), label="y", source="prior"),
    "intervals-prior": lambda: figures.intervals(
        ["a", "b"], [0, 1], [-1, -1], [0, 0], [1, 2], label="y", source="prior"
    ),
    "interval-coverage": lambda: figures.reliability([0.5, 0.9], [0.4, 0.9], kind="interval", name="interval-coverage"),
    "rank-ecdf": lambda: figures.rank_ecdf(
        RNG.integers(0, 80, (3, 100)),
        largest=79,
        low=np.linspace(0, 0.9, 79),
        high=np.linspace(0.1, 1, 79),
        labels=["a", "b<c", "d"],
        worst=1,
    ),
    "spreads": lambda: figures.spreads([f"theta[{i}]" for i in range(40)], np.exp(N(40))),
    "spreads-one": lambda: figures.spreads(["mu"], [1.0]),
    "sensitivity": lambda: figures.sensitivity(["a", "b"], [0.2, 0.01], [0.01, 0.3], limit=0.05),
    "risk-coverage": lambda: figures.risk_coverage(
        np.linspace(0.01, 1, 50), np.zeros(50), np.zeros(50), np.zeros(50), random=0.0
    ),
    "ood": lambda: figures.two_histograms(N(50), np.full(20, 3.0)),
    "ood-constant": lambda: figures.two_histograms(np.zeros(5), np.zeros(5)),
    "ranked": lambda: figures.ranked([1.0, 1.2, np.nan], name="r", label="R-hat", limit=1.01),
}


@pytest.mark.parametrize("case", CASES)
def test_figure_is_well_formed_described_and_themed(case: str) -> None:
    drawing = CASES[case]()
    root = ET.fromstring(drawing.svg.replace("xlink:href", "href"))
    assert root.attrib["role"] == "img"
    assert len(root.attrib["aria-label"]) > 10
    assert "viewBox" in root.attrib
    assert drawing.caption.endswith(".")
    ids = re.findall(r'\bid="([^"]+)"', drawing.svg)
    assert len(ids) == len(set(ids))
    assert all(i.startswith(f"{drawing.name}-") for i in ids)
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', drawing.svg):
        assert target in ids
    assert "nan" not in re.sub(r'aria-label="[^"]*"', "", drawing.svg).lower().replace("nance", "")
    colours = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", drawing.svg)))
    assert colours <= {"#000000", "#ffffff"}, "every colour of ours is a CSS variable"
    assert "http" not in re.sub(r'xmlns[^ >]*="[^"]*"', "", drawing.svg)


def test_figures_leave_matplotlib_as_it_was() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    CASES["loss"]()
    assert dict(mpl.rcParams) == before


def test_same_data_same_figure() -> None:
    values = np.linspace(5, 1, 100)
    assert figures.loss_curve(values).svg == figures.loss_curve(values).svg


def test_an_early_spike_does_not_flatten_the_loss() -> None:
    losses = np.r_[1e9, 100 * np.exp(-np.arange(999) / 200) + 10]
    tail = re.findall(r'<g id="loss-line2d[^>]*>.*?</g>', figures.loss_curve(losses).svg, flags=re.DOTALL)
    longest = max(tail, key=len)
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", longest)]
    left = min(x for x, _ in points)
    heights = [y for x, y in points if x > left + 15]
    assert max(heights) - min(heights) > 100, "the descent after the spike takes up the figure"


def test_a_long_history_stays_small() -> None:
    assert len(figures.loss_curve(N(200_000)).svg) < 100_000
    assert len(figures.traces({f"s{i}": N((4, 20_000)) for i in range(4)}).svg) < 400_000
    assert len(figures.pareto_k(np.abs(N(100_000)) / 10).svg) < 400_000
