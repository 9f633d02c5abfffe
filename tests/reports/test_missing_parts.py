"""What fails never loses the page: it is left out, and the page, its JSON, the card and a warning say so."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_comparison import example
from test_report import FakePosterior, check, diagnosis, read

import zoo
from zoo import leaderboard, registry, reports
from zoo.leaderboard import DATA, Cell, Leaderboard
from zoo.reports import comparison, figures, illustrate
from zoo.reports.parts import Parts
from zoo.types import Figure

WITH_FIGURES = [name for name in registry.names() if getattr(registry.get(name), "figures", None) is not None]


def written(posterior: Any, folder: Path, *checks: Any) -> tuple[Any, dict[str, Any], str]:
    """Write a report, and return its page, numbers and card."""
    report = reports.write(posterior, folder / "report.html", diagnosis=diagnosis(*checks))
    return read(report.page), json.loads(report.numbers.read_text(encoding="utf-8")), report.card.read_text()


def test_a_whole_page_misses_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        page, numbers, card = written(FakePosterior(), tmp_path, check("r_hat"))
    assert numbers["missing"] == []
    assert "Not everything" not in page.text
    assert "Missing here" not in card


def test_the_figure_of_a_check_fails(tmp_path: Path) -> None:
    broken = check("risk", figure="risk_coverage", data={"coverage": np.ones(3), "limit": np.array(0.7)})
    infinite = check("loo", figure="loo", data={"values": np.array([np.inf, 0.1]), "limit": np.array(0.7)})
    with pytest.warns(RuntimeWarning, match="figure of the check 'risk' is left out: KeyError"):
        page, numbers, card = written(FakePosterior(), tmp_path, broken, infinite)
    assert [entry["part"] for entry in numbers["missing"]] == ["figure of the check 'risk'"]
    assert "Figure of the check 'risk' (KeyError: 'risk')." in page.text
    assert "figure-loo" in page.ids, "the others are drawn"
    assert "Missing here: figure of the check 'risk'" in card
    assert "risk?" in page.text, "the check itself stays"


@pytest.mark.parametrize("method", ["to_arviz", "summary"])
def test_a_part_of_the_posterior_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("of\nmany lines.")

    posterior = FakePosterior("nuts")
    monkeypatch.setattr(posterior, method, fail, raising=False)
    with pytest.warns(RuntimeWarning, match="ValueError: of many lines$"):
        page, numbers, _ = written(posterior, tmp_path, check("r_hat"))
    assert [e["reason"] for e in numbers["missing"]] == ["ValueError: of many lines"]
    assert "ValueError: of many lines" in page.text


def test_a_figure_of_the_page_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ranks", "forest"):
        monkeypatch.setattr(figures, name, lambda *_, **__: 1 / 0)
    with pytest.warns(RuntimeWarning, match="figure 'ranks' is left out: ZeroDivisionError"):
        page, numbers, _ = written(FakePosterior("nuts"), tmp_path, check("r_hat"))
    assert [e["part"] for e in numbers["missing"]] == ["figure 'ranks'", "figure 'forest-0'"]
    assert {"figure-traces", "figure-pairs"} <= set(page.ids)


def test_a_figure_of_a_comparison_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "differences", lambda *_, **__: 1 / 0)
    with pytest.warns(RuntimeWarning, match="figure of the difference of rmse is left out"):
        page, document = comparison.content(example())
    assert page["missing"]
    assert len(document["missing"]) == len(page["missing"])
    assert page["figures"] == []


def test_a_method_s_own_figure_fails() -> None:
    def bad(axes: Any) -> None:
        axes[0, 0].set_ylim(0, math.nan)

    def good(axes: Any) -> None:
        axes[0, 0].plot([1, 2])

    class Posterior:
        class method:
            @staticmethod
            def figures(_: Any) -> list[Figure]:
                return [Figure(name=p.__name__, paint=p, caption="A.", alt="A figure.") for p in (bad, good)]

    parts = Parts()
    with pytest.warns(RuntimeWarning, match="figure 'bad' is left out"):
        drawn = illustrate.interest(Posterior(), parts)  # type: ignore[arg-type]
    assert [d.name for d in drawn] == ["good"]
    assert list(parts.missing) == ["figure 'bad'"]


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_figures_of_every_method_from_awkward_parameters(name: str) -> None:
    method = registry.get(name)
    posterior = zoo.fit(name, steps=1, hyper=method.smoke, compile=False, engine="svi")
    for value in (math.nan, 1e30):
        for tensor in posterior._values.values():
            with torch.no_grad():
                tensor.fill_(value)
        parts = Parts()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = illustrate.interest(posterior, parts)
        assert drawn or parts.missing, "drawn, or said to be missing"
        assert all(drawing.svg.startswith("<svg") for drawing in drawn)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_figures_of_the_leaderboard(tmp_path: Path, value: float) -> None:
    curves = {
        "rotation": {"angles": [0, 90], "error": [value, value], "entropy": [value, value]},
        "reliability": {"confidence": [value, None], "accuracy": [value, None], "share": [value, 0.0]},
    }
    scores = {"error": value, "pruning": value, "precision": value}
    kinds = list(DATA)[:1]
    cells = [Cell(method="map_network", data=kinds[0], seed=s, scores=scores, curves=curves) for s in range(2)]
    board = Leaderboard(cells=tuple(cells), settings={}, machine={}, versions={})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        leaderboard._draw(board, tmp_path)
    lost = [str(w.message) for w in said if "is left out" in str(w.message)]
    assert len(lost) == 3
    assert not list(tmp_path.iterdir()), "no empty picture"
