"""No figure is lost, and none is blank without saying so, whatever its numbers are."""

from __future__ import annotations

import inspect
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zoo.reports import figures
from zoo.reports.figures import Drawing
from zoo.types import Figure

N = 12
LINE = np.linspace(0.1, 0.9, N)
LABELS = [f"quantity {i}" for i in range(N)]

# Figure -> arguments with which it is drawn as usual. Every function that returns a drawing must stand here.
USUAL: dict[str, dict[str, Any]] = {
    "differences": {
        "labels": LABELS, "values": LINE - 0.5, "errors": LINE / 4, "name": "d", "what": "log loss", "first": "a",
    },
    "forest": {"labels": LABELS, "mid": LINE, "low": LINE - 1, "high": LINE + 1, "name": "f", "title": "theta"},
    "funnel": {"log_scale": LINE, "value": LINE**2, "site": "theta"},
    "intervals": {"labels": LABELS, "observed": LINE, "low": LINE - 1, "mid": LINE, "high": LINE + 1, "label": "y"},
    "khat_repeats": {"values": LINE},
    "loss_curve": {"losses": 100 * np.exp(-LINE)},
    "overlay": {"observed": LINE, "replicated": np.stack([LINE, LINE**2, LINE**3]), "label": "y"},
    "pairs": {"x": LINE, "y": LINE**2, "diverging": LINE > 0.8, "xlabel": "log tau", "ylabel": "theta"},
    "pareto_k": {"values": LINE},
    "rank_ecdf": {
        "ranks": np.arange(2 * N).reshape(2, N) % 10, "largest": 9, "low": np.linspace(0, 0.8, 9),
        "high": np.linspace(0.2, 1, 9), "labels": LABELS[:2], "worst": 1,
    },
    "ranked": {"values": 1 + LINE / 50, "name": "r_hat", "label": "R-hat", "limit": 1.01},
    "ranks": {"chains": {"a": np.stack([LINE, LINE**2]), "b[x, y]": np.stack([LINE, LINE**2])}},
    "reliability": {"predicted": LINE, "observed": LINE**2, "counts": np.full(N, 5.0)},
    "risk_coverage": {"coverage": LINE, "risk": LINE, "low": LINE - 0.1, "high": LINE + 0.1, "random": 0.5},
    "sensitivity": {"labels": LABELS, "prior": LINE, "likelihood": LINE, "limit": 0.05},
    "spreads": {"labels": LABELS, "ratios": LINE},
    "traces": {"chains": {"a": np.stack([LINE, LINE**2]), "b[x, y]": np.stack([LINE, LINE**2])}},
    "two_histograms": {"inside": LINE, "outside": LINE + 1},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "overlay": {"observed": np.arange(N) % 2, "replicated": np.ones((3, N)), "classes": ["a", "b"]},
    "reliability": {"kind": "coverage", "counts": None},
    "pareto_k": {"of": "rows"},
    "khat_repeats": {"pooled": np.inf, "limit": 0.41},
    "risk_coverage": {"random": np.nan},
}


def some(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that puts a value into one place of an array."""

    def put(array: np.ndarray) -> np.ndarray:
        found = array.astype(float)
        found[..., 1] = value
        return found

    return put


SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as usual": lambda a: a,
    "one inf": some(np.inf),
    "one -inf": some(-np.inf),
    "one nan": some(np.nan),
    "one too large": some(1e308),
    "all inf": lambda a: np.full(a.shape, np.inf),
    "all nan": lambda a: np.full(a.shape, np.nan),
    "inf and nan": lambda a: np.where(np.arange(a.shape[-1]) % 2, np.inf, np.nan) * np.ones(a.shape),
    "zero": np.zeros_like,
    "constant": lambda a: np.full(a.shape, 3.5),
    "large and constant": lambda a: np.full(a.shape, 1e12),
    "negative": lambda a: -1e6 * (1 + np.abs(a)),
}
ALONE = ("one inf", "all nan")
CUT: dict[str, Callable[[np.ndarray], np.ndarray]] = {"empty": lambda a: a[..., :0], "one value": lambda a: a[..., :1]}


def drawers() -> list[str]:
    """Return every public function that draws a figure from numbers."""
    found = []
    for name, function in vars(figures).items():
        if inspect.isfunction(function) and not name.startswith("_") and function.__module__ == figures.__name__:
            signature = inspect.signature(function)
            if signature.return_annotation in ("Drawing", Drawing) and name != "own":
                found.append(name)
    return found


def spoil(value: Any, how: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Spoil an array, or every array of a mapping."""
    return {k: how(v) for k, v in value.items()} if isinstance(value, dict) else how(np.asarray(value))


def is_numbers(value: Any) -> bool:
    """Say whether an argument holds numbers to be drawn."""
    return isinstance(value, np.ndarray) or (isinstance(value, dict) and bool(value))


def words(drawing: Drawing) -> str:
    """Return the words within a picture."""
    root = ET.fromstring(drawing.svg.replace("xlink:href", "href"))
    return " ".join(e.text or "" for e in root.iter() if e.tag.endswith("text"))


def true(drawing: Drawing) -> None:
    """Check what holds of every figure."""
    ET.fromstring(drawing.svg.replace("xlink:href", "href"))
    picture = re.sub(r'aria-label="[^"]*"', "", drawing.svg).lower().replace("nance", "")
    assert "nan" not in re.findall(r"[a-z]+", picture.replace("nothing", ""))
    assert "inf" not in re.findall(r"[a-z]+", picture)
    assert drawing.caption.endswith(".")
    assert "nan" not in drawing.caption.split()
    assert ("no finite value" in drawing.caption) == ("no finite value" in words(drawing))


def test_every_figure_is_examined() -> None:
    assert set(drawers()) == set(USUAL)
    assert set(drawers()) <= set(figures.__all__)


@pytest.mark.parametrize("how", [*SPOILT, *CUT])
@pytest.mark.parametrize(("name", "other"), [*((n, False) for n in drawers()), *((n, True) for n in OTHERS)])
def test_figure_of_spoilt_numbers(name: str, how: str, other: bool) -> None:
    usual = USUAL[name] | (OTHERS[name] if other else {})
    numbers = [k for k, v in usual.items() if is_numbers(v)]
    draw = getattr(figures, name)
    change = SPOILT.get(how) or CUT[how]
    # All arguments together; and one after the other, where their lengths stay.
    for spoilt in [numbers, *([[k] for k in numbers] if how in ALONE else [])]:
        arguments = {k: spoil(v, change) if k in spoilt else v for k, v in usual.items()}
        if how in CUT and "labels" in usual and name != "rank_ecdf":
            arguments["labels"] = LABELS[: 0 if how == "empty" else 1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawing = draw(**arguments)
        true(drawing)
        lost = not any(np.isfinite(v).any() for k in spoilt for v in _arrays(arguments[k]))
        if spoilt == numbers and lost and how != "all inf":
            assert "no finite value" in drawing.caption or "infinite" in drawing.caption, "blank, and says so"
        if how == "one nan" and spoilt == numbers and name != "reliability":
            assert "Not shown: " in drawing.caption, "what is left out is counted"
        if how == "as usual":
            assert "Not shown" not in drawing.caption
            assert "no finite value" not in drawing.caption


def _arrays(value: Any) -> list[np.ndarray]:
    return list(value.values()) if isinstance(value, dict) else [value]


def test_infinite_pareto_k_is_shown_at_the_edge() -> None:
    drawing = figures.pareto_k([0.1, np.inf, 0.9, np.nan, -4.0])
    assert "2 of 5 lie above 0.7" in drawing.caption
    assert "1 infinite, at the upper edge" in drawing.caption
    assert "1 below -1, at the lower edge" in drawing.caption
    assert "Not shown: 1 k that is not finite." in drawing.caption


def test_infinite_r_hat_counts_as_above_the_limit() -> None:
    drawing = figures.ranked([1.0, np.inf, 1.005], name="r", label="R-hat", limit=1.01)
    assert "1 lie above 1.01" in drawing.caption
    assert "1 infinite" in drawing.caption


def test_ticks_of_r_hat_differ() -> None:
    drawing = figures.ranked(1 + np.linspace(0, 0.004, 40), name="r", label="R-hat", limit=1.01)
    ticks = re.findall(r">(1\.\d+)</text>", drawing.svg)
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks), "no number stands at two places of an axis"


def test_thresholds_of_few_draws_do_not_cross() -> None:
    caption = figures.khat_repeats([0.2, 0.6], limit=0.41).caption
    assert "0.41" in caption
    assert "0.5:" not in caption


def test_equal_draws_favour_no_chain() -> None:
    discrete = np.random.default_rng(0).integers(0, 2, (4, 4000))
    heights = [
        [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
        for path in re.findall(r'<path d="([^"]+)"', figures.ranks({"z": discrete}).svg)
    ]
    assert any(len(h) > 30 for h in heights), "ranks within ties are spread, not gathered"
    assert "all draws are equal" in words(figures.ranks({"z": np.ones((4, 50))}))


def test_labels_of_sensitive_parameters_do_not_overlap() -> None:
    drawing = figures.sensitivity(["a", "b", "c", "d"], [0.3, 0.3, 0.31, 0.29], [0.2, 0.2, 0.21, 0.2], limit=0.05)
    places = [
        float(y)
        for y, text in re.findall(
            r'<g id="sensitivity-text_\d+">.*?transform="translate\([\d.]+ ([\d.]+)\)[^>]*>([a-d])<',
            drawing.svg,
            flags=re.DOTALL,
        )
    ]
    if not places:
        places = [float(y) for y in re.findall(r'<text[^>]*? y="([\d.]+)"[^>]*>[a-d]</text>', drawing.svg)]
    assert len(places) == 4
    assert min(np.diff(sorted(places))) > 8, "in points; the letters are eight high"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_method_s_own_blank_figure_says_so(value: float) -> None:
    def paint(axes: Any) -> None:
        axes[0, 0].plot([0, 1], [value, value], label="a")
        axes[0, 0].legend()
        axes[0, 1].imshow(np.full((3, 3), value))

    drawing = figures.own(Figure(name="mine", paint=paint, caption="A caption.", alt="Nothing at all.", columns=2))
    true(drawing)
    assert drawing.caption == "A caption. Nothing could be shown: no finite value to show."
