"""A child that is forked while a thread of its parent fits: it can fit, and finds nothing of the other fit."""

from __future__ import annotations

import multiprocessing
import sys
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch

import zoo
from zoo.inference.program import LOCK, pyro_world
from zoo.types import Batch, Pair

Y = torch.arange(5.0)


def model(batch: Batch) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("datum", 5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=batch["y"])


def guide(batch: Batch) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))


def child(first: float, results: object) -> None:
    assert torch.get_default_dtype() == torch.float32
    assert not pyro.poutine.runtime._PYRO_STACK
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert float(torch.rand(())) == first  # the stream of the parent's own thread, not that of its fit
    posterior = zoo.fit(Pair(model, guide), {"y": Y}, steps=3, compile=False)
    results.put(float(posterior.params["loc"]))  # type: ignore[attr-defined]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_child_of_a_process_that_fits_can_fit() -> None:
    inside, done = threading.Event(), threading.Event()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        pyro.param("mine", torch.tensor(1.0))
        torch.manual_seed(3)
        state = torch.get_rng_state()
        first = float(torch.rand(()))
        torch.set_rng_state(state)

        def holding() -> None:
            with pyro_world(dtype=torch.float64), pyro.get_param_store().scope({"params": {}, "constraints": {}}):
                torch.manual_seed(4)
                inside.set()
                done.wait(120)
                torch.set_rng_state(state)

        thread = threading.Thread(target=holding)
        thread.start()
        assert inside.wait(60)
        process = context.Process(target=child, args=(first, results))
        process.start()
        process.join(100)
        alive = process.is_alive()
        process.kill()
        done.set()
        thread.join()
        assert not alive
        assert process.exitcode == 0
    here = zoo.fit(Pair(model, guide), {"y": Y}, steps=3, compile=False)
    assert results.get() == float(here.params["loc"])


def test_a_fork_within_the_lock_of_its_own_thread_keeps_it() -> None:
    with LOCK:
        LOCK.renew()
        with LOCK:
            pass
    with LOCK:
        pass
