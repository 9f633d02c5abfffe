"""What a fit will cost: counted where it can be counted, timed where it must be timed, stopped in time."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch

import zoo
from zoo.cli import _duration, _size
from zoo.errors import DataError, PairError
from zoo.inference import cost as module
from zoo.inference.cost import cost


def test_numbers_of_a_network_are_those_of_its_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_timed", lambda *_: {"eager": [[3, 0.5]], "compiled": [[8, 0.25, 4.0]]})
    data = zoo.datasets.load("digits")
    hyper = zoo.get("bayesian_compression").hyper(hidden=(8,))
    found = cost("bayesian_compression", data, hyper)
    posterior = zoo.fit("bayesian_compression", data, hyper=hyper, steps=1, compile=False)
    assert found.parameters == sum(value.numel() for value in posterior.params.values())
    assert found.latents == sum(value[0].numel() for value in posterior.draws(1).values())
    assert found.thousand_draws == 4_000 * found.latents
    assert found.memory["parameters and gradient"] == 8 * found.parameters
    assert found.memory["optimiser"] == 8 * found.parameters
    assert found.memory["training data"] == sum(v.numel() * v.element_size() for v in data.train.values())
    steps = zoo.get("bayesian_compression").recipe.steps
    assert (found.engine, found.rows, found.steps) == ("svi", data.num_data, steps)
    assert (found.setup, found.seconds) == (4.0, 4.0 + 0.25 * steps)
    assert "8 compiled steps" in found.how
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    ("events", "seconds", "how"),
    [
        ({}, math.nan, "not one step ended within 15 seconds"),
        ({"eager": [[3, 0.5]]}, 10_000.0, "without compiling, which took too long here: compiled ones are faster"),
        ({"eager": [[3, 0.5]], "reason": ["no compiler"]}, 10_000.0, "they run without compiling: no compiler"),
    ],
)
def test_what_could_not_be_timed_is_said(
    monkeypatch: pytest.MonkeyPatch, events: dict[str, Any], seconds: float, how: str
) -> None:
    monkeypatch.setattr(module, "_timed", lambda *_: events)
    found = cost("eight_schools", zoo.datasets.load("eight_schools"), engine="svi")
    assert found.seconds == pytest.approx(seconds, nan_ok=True)
    assert how in found.how


def test_a_chain_that_is_cut_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    # Slow iterations at first, then one in a hundredth of a second; four chains on two cores.
    points = [[3.0, 0], [5.0, 1], *([5.0 + 0.01 * i, 1 + i] for i in range(1, 100))]
    monkeypatch.setattr(module, "_timed", lambda *_: {"draws": points})
    monkeypatch.setattr(module.nuts, "_cores", lambda: 2)
    found = cost("eight_schools", zoo.datasets.load("eight_schools"))
    assert found.seconds == pytest.approx(3.0 + 2 * 2_000 * 0.01)
    assert "100 of 2,000 iterations of one chain were timed" in found.how
    assert (found.engine, found.steps, found.latents, found.parameters) == ("nuts", 8_000, 10, 0)
    assert found.memory["chains"] == 8_000 * 10 * 8
    monkeypatch.setattr(module, "_timed", lambda *_: {"draws": points, "whole": [[1.0, 2.0, 3.0, 8.0]]})
    found = cost("eight_schools", zoo.datasets.load("eight_schools"))
    assert (found.setup, found.seconds) == (6.0, 6.0 + 2 * 8.0)


def test_a_child_measures_and_is_stopped_in_time() -> None:
    data, hyper = zoo.datasets.load("eight_schools"), zoo.get("eight_schools").hyper(centred=True)
    events = module._timed("eight_schools", data, hyper, "nuts", 120)
    assert set(events) == {"draws", "whole"}
    assert events["draws"][-1][1] == 2_000
    started = time.perf_counter()
    assert module._timed("eight_schools", data, hyper, "svi", 0.2) == {}
    assert time.perf_counter() - started < 3


def test_the_child_times_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = module.Trainer
    monkeypatch.setattr(module, "Trainer", lambda *args, **options: trainer(*args, **options | {"compile": False}))
    method = zoo.get("eight_schools")
    module._hand_over(tmp_path, "eight_schools", zoo.datasets.load("eight_schools"), method.hyper(centred=True), "svi")
    module._child(tmp_path)
    (_, (count, seconds)), reason = (json.loads(line)["said"] for line in capsys.readouterr().out.splitlines())
    assert count == 16
    assert 1e-4 < seconds < 1
    assert reason == ["reason", "compile=False"]


def test_steps_are_timed_by_more_and_more() -> None:
    taken = []

    def run(count: int) -> None:
        taken.append(count)
        time.sleep(0.1 if len(taken) == 1 else 0.003 * count)

    recipe, step = SimpleNamespace(steps=1_000), torch.tensor(0)
    trainer: Any = SimpleNamespace(run=run, recipe=recipe, state=SimpleNamespace(step=step))
    count, seconds = module._time(trainer, 16)
    assert (count, taken) == (16, [1, 2, 4, 8, 16])
    assert seconds == pytest.approx(0.003, rel=0.3)


def test_data_of_another_task_are_refused() -> None:
    with pytest.raises(DataError, match="eight_schools is for meta_analysis"):
        cost("eight_schools", zoo.datasets.load("diabetes"))
    with pytest.raises(PairError, match="cannot be fitted by 'nuts'"):
        cost("bayesian_compression", zoo.datasets.load("mnist"), engine="nuts")


def test_units_for_people() -> None:
    assert [_duration(s) for s in (0.123, 42, 600, 9_000, math.nan)] == ["0.12 s", "42 s", "10 min", "2.5 h", "unknown"]
    assert [_size(n) for n in (12, 3_456, 7.2e9, 4e12)] == ["12 bytes", "3.46 kB", "7.2 GB", "4e+03 GB"]
