"""What a fit will cost: counted where it can be counted, timed where it must be timed, stopped in time."""

from __future__ import annotations

import math
import signal
import time
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


def test_numbers_of_a_network_are_those_of_its_fit() -> None:
    data = zoo.datasets.load("digits")
    method = zoo.get("bayesian_compression")
    hyper = method.hyper(hidden=(8,))
    found = cost(method, data, hyper, limit=0.7)
    posterior = zoo.fit(method, data, hyper=hyper, steps=1, compile=False)
    assert found.parameters == sum(value.numel() for value in posterior.params.values())
    assert found.latents == sum(value[0].numel() for value in posterior.draws(1).values())
    assert found.thousand_draws == 4_000 * found.latents
    assert found.memory["parameters and gradient"] == 8 * found.parameters
    assert found.memory["optimiser"] == 8 * found.parameters
    assert found.memory["training data"] == sum(v.numel() * v.element_size() for v in data.train.values())
    assert (found.engine, found.rows, found.steps) == ("svi", data.num_data, method.recipe.steps)
    assert len(pyro.get_param_store()) == 0


def test_what_takes_too_long_is_stopped_and_said() -> None:
    method, data = zoo.get("eight_schools"), zoo.datasets.load("eight_schools")
    before = signal.getsignal(signal.SIGALRM)
    started = time.perf_counter()
    found = cost(method, data, engine="svi", limit=0.4)
    assert time.perf_counter() - started < 5
    assert "without compiling, which took too long here: compiled ones are faster" in found.how
    assert 0 < found.seconds < 20_000
    for engine in ("svi", "nuts"):
        found = cost(method, data, engine=engine, limit=0.001)
        assert math.isnan(found.seconds)
        assert found.how.startswith("not one")
    assert signal.getsignal(signal.SIGALRM) is before
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert left == 0 or left > 10  # of a timer that ran before


def test_chains_are_timed_and_counted() -> None:
    found = cost(zoo.get("eight_schools"), zoo.datasets.load("eight_schools"), limit=60)
    assert (found.engine, found.steps, found.latents, found.parameters) == ("nuts", 8_000, 10, 0)
    assert found.memory["chains"] == 8_000 * 10 * 8
    assert found.how == "one whole chain was timed"
    assert found.setup < found.seconds < found.setup + 60


def test_a_chain_that_is_cut_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, progress: Any, **__: Any) -> None:
        for draws in range(1, 2_000):
            time.sleep(0.01)
            progress([SimpleNamespace(draws=draws)])

    monkeypatch.setattr(module.nuts, "sample", slow)
    monkeypatch.setattr(module.nuts, "_cores", lambda: 2)
    found = cost(zoo.get("eight_schools"), zoo.datasets.load("eight_schools"), limit=1)
    # Four chains on two cores, 2,000 iterations of a hundredth of a second each.
    assert found.seconds == pytest.approx(2 * 2_000 * 0.01, rel=0.3)
    assert "of 2,000 iterations of one chain were timed" in found.how


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
        cost(zoo.get("eight_schools"), zoo.datasets.load("diabetes"))
    with pytest.raises(PairError, match="cannot be fitted by 'nuts'"):
        cost(zoo.get("bayesian_compression"), zoo.datasets.load("mnist"), engine="nuts")


def test_units_for_people() -> None:
    assert [_duration(s) for s in (0.123, 42, 600, 9_000, math.nan)] == ["0.12 s", "42 s", "10 min", "2.5 h", "unknown"]
    assert [_size(n) for n in (12, 3_456, 7.2e9, 4e12)] == ["12 bytes", "3.46 kB", "7.2 GB", "4e+03 GB"]
