"""The leaderboard: every network on the same rows, scored alike, resumed where it stopped."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import zoo
from zoo import leaderboard
from zoo.errors import DataError, MissingExtraError, UnknownNameError
from zoo.leaderboard import DATA, Cell, Leaderboard, methods, networks

ROOT = Path(__file__).parent.parent
TWO = ["map_network", "dropout_network"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Leaderboard, Path]:
    out = tmp_path_factory.mktemp("board")
    data = ["digits_0_4", "diabetes"]
    return networks(names=TWO, data=data, seeds=2, steps=30, draws=5, out=out, compile=False), out


def test_every_classifier_with_hidden_layers_takes_part() -> None:
    assert {"map_network", "mean_field_network", "dropout_network", "bayesian_compression"} <= set(methods())
    assert {"horseshoe_regression", "deep_weight_prior"}.isdisjoint(methods())


def test_halves_of_the_digits_share_no_class() -> None:
    whole, low = zoo.datasets.load("digits", seed=1), DATA["digits_0_4"].load(1)
    assert low.num_data == int((whole.train["y"] < 5).sum())
    assert set(low.train["y"].tolist()) == set(range(5))
    unlike = DATA["digits_0_4"].unlike
    assert unlike is not None
    assert len(unlike(1)) == int((whole.split("test")["y"] >= 5).sum())
    zoo.tasks.get("classification").check(low)


def test_images_are_turned_around_their_centre() -> None:
    x = torch.rand(3, 8, 8)
    torch.testing.assert_close(leaderboard._rotate(x, 90, (8, 8)), torch.rot90(x, 1, (-2, -1)), atol=1e-6, rtol=0)
    assert torch.equal(leaderboard._rotate(x, 0, (8, 8)), x)


def test_scores_are_those_of_the_task(first: tuple[Leaderboard, Path]) -> None:
    board, _ = first
    assert len(board.cells) == 2 * 2 * 2
    cell = next(c for c in board.cells if (c.method, c.data, c.seed) == ("map_network", "digits_0_4", 1))
    data = DATA["digits_0_4"].load(1)
    posterior = zoo.fit("map_network", data, hyper={"hidden": (100, 100)}, seed=1, steps=30, compile=False)
    scores = zoo.tasks.get("classification").score(posterior.predict(data.test, n=5, seed=1), data.split("test"), data)
    for key in ("error", "nll", "brier", "ece"):
        assert cell.scores[key] == pytest.approx(scores[key], rel=1e-5)
    assert 0.5 < cell.scores["ood"] <= 1
    shares = cell.curves["reliability"]["share"]
    assert sum(shares) == pytest.approx(1)
    assert {"rmse", "nlpd", "milliseconds", "parameters"} <= set(board.cells[-1].scores)


def test_a_method_without_its_package_is_left_out_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "laplace", None)
    monkeypatch.setattr(leaderboard, "methods", lambda: ("laplace_network", "map_network"))
    options = {"data": ["diabetes"], "seeds": 1, "steps": 2, "draws": 2, "compile": False}
    said: list[str] = []
    board = networks(**options, progress=said.append)  # type: ignore[arg-type]
    assert [c.method for c in board.cells] == ["map_network"]
    assert said[0] == (
        "laplace_network on diabetes, seed 0: left out: laplace_network needs the package 'laplace-torch': "
        "pip install 'pyro-zoo[laplace]'"
    )
    with pytest.raises(MissingExtraError):
        networks(names=["laplace_network"], **options)  # type: ignore[arg-type]


def test_a_call_goes_on_where_one_stopped(first: tuple[Leaderboard, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    board, out = first
    text = json.loads((out / "networks.json").read_text())
    assert [Cell(**c) for c in text["cells"]] == [
        Cell(**json.loads(json.dumps(dataclasses.asdict(c)))) for c in board.cells
    ]

    def refuse(name: str, key: str, seed: int, **_: object) -> Cell:
        asked.append((name, key, seed))
        return dataclasses.replace(board.cells[0], method=name, data=key, seed=seed, curves={})

    asked: list[tuple[str, str, int]] = []
    monkeypatch.setattr(leaderboard, "_measure", refuse)
    again = networks(names=TWO, data=["diabetes"], seeds=3, steps=30, draws=5, out=out, compile=False)
    assert asked == [("map_network", "diabetes", 2), ("dropout_network", "diabetes", 2)]
    assert len(again.cells) == 6
    kept = json.loads((out / "networks.json").read_text())["cells"]
    assert len(kept) == 10  # what other calls measured stays
    assert "## Digits 0 to 4" in (out / "networks.md").read_text()  # and is shown
    networks(names=TWO, data=["diabetes"], seeds=1, steps=31, draws=5, out=out, compile=False)
    assert len(asked) == 4  # other settings are measured anew


def test_tables_show_spread_and_order(first: tuple[Leaderboard, Path]) -> None:
    board, out = first
    text = board.to_markdown()
    assert (out / "networks_reliability_digits_0_4.png").stat().st_size > 5_000
    assert "unlike rows (AUROC)" in text
    part = text[text.index("## Digits 0 to 4") : text.index("## Progression")]
    rows = [line.split("|")[1].strip(" `") for line in part.splitlines() if line.startswith("| `")]
    assert rows == sorted(rows, key=lambda m: board.spread(m, "digits_0_4", "nll")[0])
    mean, sd = board.spread("map_network", "digits_0_4", "nll")
    assert f"{mean:.4g} ± {sd:.2g}" in part
    assert math.isnan(board.spread("map_network", "diabetes", "nll")[0])


def test_front_shows_error_against_compression(tmp_path: Path) -> None:
    def cell(method: str, seed: int, **scores: float) -> Cell:
        return Cell(method=method, data="digits", seed=seed, scores=scores, curves={})

    cells = [
        cell("bayesian_compression", 0, error=0.02, pruning=4.0, precision=20.0),
        cell("bayesian_compression", 1, error=0.04, pruning=16.0, precision=20.0),
        cell("map_network", 0, error=0.01),
    ]
    axes = Figure().subplots()
    leaderboard._front(axes, cells, ["bayesian_compression", "map_network"])
    drawn = [tuple(map(float, bar.lines[0].get_xydata()[0])) for bar in axes.containers]
    assert drawn == [pytest.approx(p) for p in ((8, 3), (20, 3), (1, 1))]
    assert axes.get_xscale() == "log"
    numbers = Cell(method="bayesian_compression", data="diabetes", seed=0, scores={"pruning": 2.0}, curves={})
    board = Leaderboard(cells=(*cells, numbers), settings={}, machine={}, versions={})
    leaderboard._draw(board, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["networks_front.png"]
    leaderboard._draw(dataclasses.replace(board, cells=board.cells[2:]), tmp_path / "none")  # no front without one


def test_page_shows_what_was_measured() -> None:
    board = Leaderboard.from_json(json.loads((ROOT / "leaderboard" / "networks.json").read_text(encoding="utf-8")))
    page = (ROOT / "LEADERBOARD.md").read_text(encoding="utf-8")
    assert board.to_markdown().split("\n", 2)[2] in page
    for figure in (ROOT / "leaderboard").glob("*.png"):
        assert f"(leaderboard/{figure.name})" in page
    assert {c.method for c in board.cells} == set(methods())
    assert {c.data for c in board.cells} == set(DATA)
    seeds = {(c.method, c.data): 0 for c in board.cells}
    for cell in board.cells:
        seeds[cell.method, cell.data] += 1
    assert min(seeds.values()) >= 3


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="method 'map_netwrk' is not in the leaderboard"):
        networks(names=["map_netwrk"])
    with pytest.raises(UnknownNameError, match="data 'iris' is not in the leaderboard"):
        networks(data=["iris"])
    with pytest.raises(DataError, match="must be at least 1"):
        networks(seeds=0)
    (tmp_path / "networks.json").write_text("{}")
    with pytest.raises(DataError, match="no leaderboard written by zoo"):
        networks(out=tmp_path)
