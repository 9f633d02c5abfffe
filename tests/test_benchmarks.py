"""The benchmark's machinery: a tiny case from end to end, and a contender with another loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import cases, run, tables
from benchmarks.cases import scaling

CONTENDERS = ("pyro_fast", "numpyro")
ABOUT = {"command": "c", "date": "d", "machine": "m", "versions": {}, "commit": "0"}

# A small regression, and the same with the weight of other data for NumPyro alone: what the tests below measure.
RIGHT = scaling.case("batch", 32)
WRONG = dataclasses.replace(RIGHT, numpyro=scaling.case("rows", 32).numpyro)
MODULE = "from tests.test_benchmarks import {name} as CASE\n"


def place(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a case where the workers find it by name."""
    module = f"benchmark_{name.lower()}"
    (folder / f"{module}.py").write_text(MODULE.format(name=name), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    return module


def test_tiny_case_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpyro", reason="the extra 'bench' is not installed")
    name = place(tmp_path, "RIGHT", monkeypatch)
    found = run.measure(name, threads=1, repeats=2, seconds=0.01, only=CONTENDERS, say=lambda _: None)
    assert set(found["rows"]) == set(CONTENDERS)
    for row in found["rows"].values():
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0
        assert row["mib"] > 10
    text = tables.render([{**json.loads(json.dumps(found)), "about": ABOUT}])
    assert "| NumPyro, `jit` |" in text


def test_contender_with_another_loss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpyro", reason="the extra 'bench' is not installed")
    name = place(tmp_path, "WRONG", monkeypatch)
    with pytest.raises(run.Refused, match="numpyro has the loss"):
        run.measure(name, threads=1, repeats=1, seconds=0.01, only=CONTENDERS, say=lambda _: None)


def test_losses_are_compared_within_their_errors() -> None:
    same = {"a": [10.0, 10.2, 9.8, 10.1], "b": [10.1, 9.9, 10.0, 10.2]}
    assert run._check_losses(same)["a"]["mean"] == pytest.approx(10.025)
    with pytest.raises(run.Refused):
        run._check_losses({**same, "b": [11.1, 10.9, 11.0, 11.2]})
    with pytest.raises(run.Refused):
        run._check_losses({**same, "b": [float("nan")] * 4})


def test_posterior_means_are_compared_within_their_errors() -> None:
    one = {"mean": [0.0, 1.0], "mcse": [0.1, 0.1]}
    assert run._check_means({"a": one, "b": {"mean": [0.1, 1.1], "mcse": [0.1, 0.1]}}) == pytest.approx(0.5**0.5)
    with pytest.raises(run.Refused):
        run._check_means({"a": one, "b": {"mean": [0.1, 2.0], "mcse": [0.1, 0.1]}})


def test_slope_of_a_power_law() -> None:
    assert run._slope([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1.0)


@pytest.mark.parametrize("name", [n for n in cases.NAMES if not n.startswith("scaling_")])
def test_every_case_is_found_without_a_framework(name: str) -> None:
    assert cases.get(name).title
