"""What is not finite stops a fit, with step, site and parameter named and the state before it kept; or is skipped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import zoo
from zoo.errors import NonFiniteError
from zoo.inference.svi import Trainer
from zoo.types import Pair, Recipe

pytestmark = pytest.mark.xdist_group("nonfinite")
BATCH = {"y": torch.full((2,), 5.0), "index": torch.arange(2)}


def guide(batch):
    nu_loc = pyro.param("nu_loc", lambda: torch.tensor(0.0))
    pyro.sample("nu", dist.Normal(nu_loc, 0.1))
    pyro.sample("mu", dist.Normal(pyro.param("mu_loc", lambda: torch.tensor(0.0)), 0.3))


def pair(edge: float) -> Pair:
    """A model whose likelihood is undefined from ``mu = edge`` on, in a parameter that is not the first."""

    def model(batch):
        pyro.sample("nu", dist.Normal(0.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", 2, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu + 0 * (edge - mu).sqrt(), 1.0), obs=batch["y"])

    return Pair(model, guide)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_fit_stops_with_the_last_good_state(tmp_path: Path, compiled: bool, dtype: str) -> None:
    options: dict[str, Any] = {"learning_rate": 0.02, "optimizer": "sgd", "compile": compiled, "dtype": dtype}
    text = (
        r"step (\d+): loss \[nan\]: the log density of model site 'y' is not finite, nor is the gradient of parameter "
    )
    with pytest.raises(NonFiniteError, match=text + "'mu_loc'; try a smaller") as stopped:
        zoo.fit(pair(1.0), BATCH, steps=500, checkpoint=tmp_path, **options)
    step = int(re.match(r"step (\d+)", str(stopped.value))[1])
    assert str(stopped.value).endswith(f"the last good state, of step {step}, is in '{tmp_path}'")
    assert (tmp_path / f"checkpoint-{step:09d}.safetensors").exists()
    # The same steps by hand: the last of them is fine, the next is not, and its parameters are those of the error.
    recipe = Recipe(steps=500, learning_rate=0.02, optimizer="sgd")
    trainer = Trainer(pair(1.0), BATCH, recipe=recipe, dtype=getattr(torch, dtype), compile=compiled)
    assert bool(torch.isfinite(trainer.run(step)).all())
    params = trainer.layout.constrained(trainer.values)
    assert stopped.value.params.keys() == params.keys()
    assert all(torch.equal(stopped.value.params[n], params[n]) for n in params)
    before = trainer.state.copy()
    with pytest.raises(NonFiniteError, match=f"step {step}: "):
        trainer.run(1)
    assert torch.equal(trainer.state.theta, before.theta)
    assert int(trainer.state.step) == step
    # From there a fit can go on otherwise.
    again = zoo.fit(
        pair(1.0), BATCH, steps=1, init=stopped.value.params, learning_rate=1e-9, dtype=dtype, compile=False
    )
    assert float(again.params["nu_loc"]) == pytest.approx(float(params["nu_loc"]), abs=1e-6)


def test_a_gradient_that_overflows_is_named() -> None:
    def model(batch):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("f", (mu - mu).abs().sqrt())  # zero, with an infinite slope

    def own(batch):
        pyro.sample("mu", dist.Delta(pyro.param("mu_loc", lambda: torch.tensor(0.0))))

    with pytest.raises(NonFiniteError, match=r"step 0: loss \[0\..*gradient overflowed, nor .* parameter 'mu_loc'"):
        zoo.fit(Pair(model, own), {"index": torch.arange(1)}, steps=5, compile=False)


def test_steps_are_skipped_on_request() -> None:
    options: dict[str, Any] = {"steps": 300, "learning_rate": 0.01, "skip_nonfinite": True, "early_stopping": True}
    batch = BATCH | {"y": torch.zeros(2)}
    fast, slow = (zoo.fit(pair(0.5), batch, compile=c, **options) for c in (True, False))
    assert fast.info["compiled"], fast.info["reason"]
    assert fast.info["skipped_steps"] == slow.info["skipped_steps"] > 0
    assert len(fast.losses) == 300 - fast.info["skipped_steps"]
    assert bool(torch.isfinite(fast.losses).all())
    assert torch.allclose(fast.losses, slow.losses, rtol=1e-4)
    # An update that was left out leaves optimiser and parameters as they were, and costs its random numbers only.
    trainer = Trainer(pair(0.5), batch, recipe=Recipe(steps=300, learning_rate=0.01), compile=False, skip=True)
    while True:
        before = trainer.state.copy()
        if not bool(torch.isfinite(trainer.run(1)).all()):
            break
    for name in ("theta", "counts"):
        assert torch.equal(getattr(before, name), getattr(trainer.state, name))
    assert torch.equal(before.moments[0], trainer.state.moments[0])
    assert int(trainer.state.step) == int(before.step) + 1
    assert not torch.equal(before.rng["cpu"], trainer.state.rng["cpu"])


def test_a_hundred_skipped_steps_in_a_row_stop_a_fit() -> None:
    with pytest.raises(NonFiniteError, match="model site 'y'"):
        zoo.fit(pair(1.0), BATCH, steps=300, learning_rate=0.3, optimizer="sgd", skip_nonfinite=True, compile=False)
