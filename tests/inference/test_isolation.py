"""Fits do not see each other, whatever runs beside or within them, and nothing global changes, also after an error."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import rich.style  # noqa: F401  # draws from Python's own stream, once, when it is imported
import torch
from pyro.distributions import constraints

import zoo
from zoo.errors import NonFiniteError, PairError
from zoo.types import Pair

pytestmark = pytest.mark.xdist_group("isolation")
BATCH = {"y": torch.tensor([1.0, 2.0, 3.0, 2.5, 0.5]), "index": torch.arange(5)}


def pair(width: float) -> Pair:
    """Pairs of different priors, whose sites and parameters have the same names."""

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(0.0, width))
        with pyro.plate("datum", 5, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    def guide(batch):
        loc = pyro.param("mu_loc", lambda: torch.randn(()))
        scale = pyro.param("mu_scale", lambda: torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    return Pair(model, guide)


def svi(width: float, *, compiled: bool = False, **options: Any) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        fitted = zoo.fit(pair(width), BATCH, steps=60, batch_size=2, seed=3, compile=compiled, **options)
        return torch.cat([fitted.losses, fitted.draws(5)["mu"], fitted.predict(BATCH, 3).samples["y"].flatten()])

    return run


def nuts(width: float) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        fitted = zoo.fit(Pair(pair(width).model), BATCH, chains=1, draws=30, tune=30, seed=3, compile=False)
        return torch.cat([fitted.chains["mu"].flatten(), fitted.predict(BATCH, 3).samples["y"].flatten()])

    return run


JOBS = [svi(1.0), svi(3.0), svi(9.0, compiled=True), svi(5.0, dtype="float64"), nuts(1.0), nuts(3.0)]


def test_fits_in_threads_equal_their_solo_runs() -> None:
    alone = [job() for job in JOBS]
    assert len({float(found[0]) for found in alone}) == len(JOBS)
    gate = threading.Barrier(len(JOBS))

    def together(job: Callable[[], torch.Tensor]) -> torch.Tensor:
        gate.wait()
        return job()

    with ThreadPoolExecutor(len(JOBS)) as pool:
        for found, expected in zip(pool.map(together, JOBS), alone, strict=True):
            assert torch.equal(found, expected)


def test_fits_within_fits_equal_their_solo_runs() -> None:
    alone = [job() for job in JOBS[:2]]
    inner: list[torch.Tensor] = []

    def nest(event: Any) -> None:
        if event.stage == "fitting" and not inner:
            inner.append(JOBS[1]())

    assert torch.equal(svi(1.0, progress=nest)(), alone[0])
    assert torch.equal(inner[0], alone[1])


def test_a_fit_within_a_users_handlers_is_the_same() -> None:
    alone = JOBS[0]()
    with pyro.poutine.trace() as seen, pyro.poutine.scale(scale=3.0), pyro.plate("particles", 4):
        found = JOBS[0]()
    assert torch.equal(found, alone)
    assert "mu" not in seen.trace.nodes


# ----------------------------------------------------------------------------------------------- nothing global
def world() -> dict[str, Any]:
    store = pyro.get_param_store()
    return {
        "parameters": {n: (id(p), p.tolist()) for n, p in store._params.items()},
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
        "threads": torch.get_num_threads(),
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "validation": (pyro.infer.util.is_validation_enabled(), torch.distributions.Distribution._validate_args),
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@contextmanager
def unchanged() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.param("mu_loc", torch.tensor(7.0))  # a name that the pairs use too
    torch.manual_seed(11)
    before = world()
    yield
    after = world()
    assert [key for key in before if before[key] != after[key]] == []
    pyro.clear_param_store()


def broken(where: str, at: int) -> Pair:
    """A pair that raises in its ``at``-th call."""
    good, calls = pair(1.0), []

    def run(side: str, batch: Any) -> None:
        calls.append(side)
        (good.model if side == "model" else good.guide)(batch)
        if side == where and calls.count(side) >= at:
            raise RuntimeError("no such thing")

    return Pair(lambda batch: run("model", batch), lambda batch: run("guide", batch))


def interrupt(event: Any) -> None:
    if event.done:
        raise KeyboardInterrupt


def diverging() -> Pair:
    """A pair whose density is not a number from its ninth call on."""
    calls = []

    def model(batch):
        calls.append(1)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("f", mu * (1.0 if len(calls) < 9 else float("nan")))

    return Pair(model, pair(1.0).guide)


def use(fitted: zoo.Posterior, folder: Path) -> None:
    fitted.predict(n=3)
    fitted.log_likelihood()
    fitted.log_weights(5)
    fitted.to_arviz(num_draws=5)
    fitted.summary()
    zoo.load(fitted.save(folder / "p")).draws(3)
    fitted.report(folder / "report.html")


CALLS: dict[str, tuple[Callable[[], Any], type[BaseException] | None]] = {
    "svi": (JOBS[0], None),
    "svi, compiled": (JOBS[2], None),
    "svi, double": (JOBS[3], None),
    "nuts": (JOBS[4], None),
    "pyro's nuts": (lambda: zoo.fit("eight_schools", chains=1, draws=5, tune=5, sampler="pyro"), None),
    "check": (lambda: zoo.check(pair(1.0).model, pair(1.0).guide, BATCH, compile=False), None),
    "data": (lambda: zoo.datasets.load("diabetes"), None),
    "error while finding parameters": (lambda: zoo.fit(broken("model", 1), BATCH, compile=False), PairError),
    "error in a step of the model": (lambda: zoo.fit(broken("model", 9), BATCH, compile=False), RuntimeError),
    "error in a step of the guide": (lambda: zoo.fit(broken("guide", 9), BATCH, compile=False), RuntimeError),
    "error while tracing": (lambda: zoo.fit(broken("model", 4), BATCH), RuntimeError),
    "interrupt": (lambda: zoo.fit(pair(1.0), BATCH, compile=False, progress=interrupt), KeyboardInterrupt),
    "not finite": (lambda: zoo.fit(diverging(), BATCH, steps=20, compile=False), NonFiniteError),
    "no gradients": (lambda: torch.no_grad()(JOBS[0])(), None),
    "inference mode": (lambda: torch.inference_mode()(JOBS[0])(), None),
}


@pytest.mark.parametrize("what", CALLS)
def test_nothing_global_changes(what: str) -> None:
    call, error = CALLS[what]
    with unchanged():
        if error is None:
            call()
        else:
            with pytest.raises(error):
                call()


def test_modes_of_gradients_do_not_change_a_fit() -> None:
    alone = JOBS[0]()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(JOBS[0](), alone)


def test_using_a_posterior_changes_nothing_global(tmp_path: Path) -> None:
    fitted = zoo.fit("eight_schools", engine="svi", steps=30, compile=False)
    with unchanged():
        use(fitted, tmp_path)
