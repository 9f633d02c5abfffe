"""``zoo references --defaults``: what counts as a right run, runs that are kept, and the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from zoo import cli, references
from zoo.errors import DataError, UnknownNameError
from zoo.references import defaults
from zoo.references.defaults import HEADING, Run, measure, section
from zoo.references.stored import names as stored_names

SCHOOLS = "eight_schools-eight_schools_noncentered"
FEW = {"chains": 2, "tune": 60, "draws": 60, "retry": False}


def run(**changes: Any) -> Run:
    made = Run(
        name="a", seed=0, r_hat=1.002, divergences=0, numbers=20, beyond=0, worst=2.0, min_ess=900.0, seconds=1.0,
        tries=[],
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, True),
        ({"beyond": 1, "worst": 3.2}, True),  # one of twenty by chance
        ({"beyond": 3, "worst": 3.2}, False),
        ({"beyond": 1, "worst": 4.6}, False),
        ({"r_hat": 1.01}, False),
        ({"divergences": 1}, False),
        ({"worst": float("inf")}, False),
    ],
)
def test_a_right_run(changes: dict[str, Any], right: bool) -> None:
    assert run(**changes).right is right


def test_the_page_counts_runs() -> None:
    page = section([run(), run(seed=1, divergences=2, tries=["drawn again"]), run(name="b")], "zoo references")
    assert "**2 of 3 runs (67%) are right**: not as it should be." in page
    assert "| a | 2 | 1 | 1.002 | 0 / 2 | 0 / 0 of 20 | 2.0 | 900 | 1.0 | 1 |" in page
    assert f"Run were 2 of the {len(stored_names(guides=False))} bundled posteriors with 2 seeds each." in page
    assert "which says nothing of the posteriors that were not run. R-hat" in section([run()] * 20, "zoo")
    every = [run(name=name) for name in stored_names(guides=False)]
    assert "(100%) are right**: as it should be. R-hat" in section(every, "zoo")


def test_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measure(seeds=1, names=[SCHOOLS], out=tmp_path, compile=False, options=FEW)
    assert first[0].numbers == 2 * len(references.read(SCHOOLS).moments)
    assert first[0].worst < 6
    asked = []

    def made(name: str, seed: int, *_: Any) -> Run:
        asked.append((name, seed))
        return run(name=name, seed=seed)

    monkeypatch.setattr(defaults, "_run", made)
    again = measure(seeds=2, names=[SCHOOLS], out=tmp_path, compile=False, options=FEW)
    assert again[0] == dataclasses.replace(first[0], tries=list(first[0].tries))
    assert asked == [(SCHOOLS, 1)]
    measure(seeds=1, names=[SCHOOLS], out=tmp_path, compile=False)  # other options
    assert asked[1:] == [(SCHOOLS, 0)]
    (tmp_path / "defaults.json").write_text("{}")
    with pytest.raises(DataError, match="is no measurement written by zoo"):
        measure(seeds=1, names=[SCHOOLS], out=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean"):
        measure(seeds=1, names=["arK-ark"])


def test_the_command_keeps_the_rest_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "_run", lambda name, seed, *_: run(name=name, seed=seed))
    page = tmp_path / "references.md"
    page.write_text(f"# Reference posteriors\n\nText.\n\n{HEADING}\n\nOld.\n")
    done = CliRunner().invoke(cli.app, ["references", "arma-arma11", "--defaults", "2", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert text.startswith(f"# Reference posteriors\n\nText.\n\n{HEADING}\n\nMade by `zoo references arma-arma11")
    assert "Old" not in text
    monkeypatch.setattr(defaults, "_run", lambda name, seed, *_: run(name=name, seed=seed, divergences=1))
    other = CliRunner().invoke(cli.app, ["references", "nes1980-nes", "--defaults", "1", "--out", str(tmp_path)])
    assert other.exit_code == 1
