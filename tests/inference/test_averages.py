"""What a loss keeps in the parameter store is carried from step to step, as under Pyro's SVI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, TraceGraph_ELBO
from torch import Tensor, nn

import zoo
from zoo.errors import PairError
from zoo.inference.svi import Trainer
from zoo.types import Alternating, Elbo, Loss, Pair, Recipe

DATA = {"y": torch.tensor([1.0] * 9 + [0.0] * 3)}
AVERAGE = "__baseline_avg_downstream_cost_z"


def model(batch: Any) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("datum", 12):
        pyro.sample("y", dist.Bernoulli(0.2 + 0.6 * z), obs=batch["y"])


def with_baseline(**options: Any) -> Any:
    def guide(batch: Any) -> None:
        q = pyro.param("q", torch.tensor(0.5), constraint=constraints.unit_interval)
        pyro.sample("z", dist.Bernoulli(q), infer={"baseline": options})

    return guide


class Net(nn.Module):
    """A baseline with a parameter that only the gradient reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x * pyro.param("slope", torch.tensor(0.1))


def network(batch: Any) -> None:
    q = pyro.param("q", torch.tensor(0.5), constraint=constraints.unit_interval)
    options = {"nn_baseline": Net(), "nn_baseline_input": batch["y"].sum(), "use_decaying_avg_baseline": True}
    pyro.sample("z", dist.Bernoulli(q), infer={"baseline": options})


GUIDES = {"average": with_baseline(use_decaying_avg_baseline=True, baseline_beta=0.8), "network": network}


def steps(kind: str, guide: Any, particles: int, count: int = 12) -> tuple[list[float], dict[str, Tensor]]:
    pyro.clear_param_store()
    torch.manual_seed(1)
    optim, loss = pyro.optim.Adam({"lr": 0.05}), TraceGraph_ELBO(num_particles=particles)
    own = kind == "pyro"
    step: Any = SVI(model, guide, optim, loss).step if own else zoo.compile_svi(model, guide, loss=loss, optim=optim)
    losses = [float(step(DATA)) for _ in range(count)]
    return losses, {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}


@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize("kind", GUIDES)
def test_compiled_steps_are_pyros(kind: str, particles: int) -> None:
    due, params = steps("pyro", GUIDES[kind], particles)
    found, own = steps("zoo", GUIDES[kind], particles)
    assert set(own) == set(params)
    assert AVERAGE in own
    torch.testing.assert_close(torch.tensor(found), torch.tensor(due), rtol=1e-5, atol=1e-5)
    for name, value in params.items():
        torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-5)
    plain, _ = steps("pyro", with_baseline(), particles)
    assert plain != due  # the baseline matters


def test_a_fit_is_as_narrow_as_pyros() -> None:
    def ends(use: bool) -> Tensor:
        pair = Pair(model, with_baseline(use_decaying_avg_baseline=use), Elbo(estimator="graph"))
        fits = [zoo.fit(pair, DATA, steps=100, learning_rate=0.02, seed=s, compile=False).params["q"] for s in range(8)]
        return torch.stack(fits)

    def theirs() -> Tensor:
        found = []
        for seed in range(8):
            pyro.clear_param_store()
            torch.manual_seed(seed)
            guide = with_baseline(use_decaying_avg_baseline=True)
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceGraph_ELBO())
            for _ in range(100):
                svi.step(DATA)
            found.append(pyro.param("q").detach())
        return torch.stack(found)

    own, due, without = ends(True), theirs(), ends(False)
    assert abs(float(own.mean() - due.mean())) < 0.02
    assert float(own.std()) < 2 * float(due.std()) < float(without.std())


def trainer(seed: int = 0, **options: Any) -> Trainer:
    pair = Pair(model, GUIDES["average"], Elbo(estimator="graph"))
    return Trainer(pair, DATA, recipe=Recipe(steps=40, learning_rate=0.05), seed=seed, **options)


def test_the_average_is_state_and_no_parameter(tmp_path: Path) -> None:
    first = trainer(compile=False)
    assert first.layout.names == ("q",)
    first.run(10)
    kept = first.state.tensors()
    assert kept["buffers.0"].item() < -1
    again = trainer(compile=False, seed=5)
    again.state.load(kept)
    assert torch.equal(first.run(10), again.run(10))
    found = zoo.fit(Pair(model, GUIDES["average"], Elbo(estimator="graph")), DATA, steps=5, compile=False)
    assert set(found.params) == {"q"}


def test_compiled_equals_eager() -> None:
    fast, slow = trainer(), trainer(compile=False)
    assert fast.program.compiled, fast.program.reason
    torch.testing.assert_close(fast.run(20), slow.run(20), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.state.buffers, slow.state.buffers, rtol=1e-5, atol=1e-5)


def test_a_trained_parameter_that_is_set_is_refused_by_name() -> None:
    def halved(model: Any, guide: Any, batch: Any) -> Tensor:
        q = pyro.param("q", torch.tensor(0.5))
        loss = (q - 3) ** 2
        pyro.get_param_store()["q"] = q.detach() / 2
        return loss

    def guide(batch: Any) -> None:
        pyro.sample("z", dist.Delta(torch.ones(()) * pyro.param("q", torch.tensor(0.5)).clamp(0, 1).round()))

    with pytest.raises(PairError, match="sets its parameter 'q' in the parameter store") as error:
        zoo.fit(Pair(model, guide, Alternating((Loss(name="own", function=halved),))), DATA, steps=2, compile=False)
    assert "\n" not in str(error.value)
