"""SVI on the compiled step: equal to eager, fast, one state, nothing frozen."""

from __future__ import annotations

import re
import statistics
import time
import warnings
from dataclasses import replace
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import zoo
from tests.inference import networks
from zoo.errors import PairError
from zoo.inference import library, program, runner
from zoo.inference.state import Order
from zoo.inference.svi import Trainer, schedule_table
from zoo.types import Batch, Elbo, Pair, Recipe

pytestmark = pytest.mark.xdist_group("svi")
RECIPE = Recipe(steps=4_000, batch_size=networks.ROWS, learning_rate=1e-3, kl_warmup=0.5, clip_norm=1e5)


def network(dtype: torch.dtype, *, compiled: bool, estimator: str = "trace", seed: int = 0) -> Trainer:
    pair = Pair(networks.model, networks.guide, Elbo(estimator=estimator))
    return Trainer(pair, networks.batch(dtype), recipe=RECIPE, dtype=dtype, compile=compiled, seed=seed)


@cache
def compiled_network(dtype: torch.dtype) -> Trainer:
    return network(dtype, compiled=True)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str)
def test_compiled_equals_eager_loss_by_loss(dtype: torch.dtype, limit: float) -> None:
    fast, slow = compiled_network(dtype), network(dtype, compiled=False)
    assert fast.program.compiled, fast.program.reason
    a, b = fast.run(20), slow.run(20)
    assert float(((a - b) / b).abs().max()) <= limit
    # Not a constant graph: losses differ from step to step, and another seed gives others.
    assert len(set(a[:, 0].tolist())) == 20
    assert not torch.equal(network(dtype, compiled=False, seed=1).run(3), b[:3])


def test_compiled_step_is_seven_times_faster_than_pyros() -> None:
    fast = compiled_network(torch.float32)
    rows = networks.batch()
    small = {k: v[: networks.ROWS] for k, v in rows.items()}
    loop = SVI(networks.model, networks.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(5):
        loop.step(small)
    fast.run(20)
    ratios = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(20):
            loop.step(small)
        theirs = (time.perf_counter() - start) / 20
        start = time.perf_counter()
        fast.run(100)
        ratios.append(theirs / ((time.perf_counter() - start) / 100))
    assert statistics.median(ratios) >= 7, ratios


def test_changing_the_schedule_changes_a_compiled_run() -> None:
    # Learning rate and KL weight are inputs of the graph: the same program under other tables takes other steps.
    trainer = compiled_network(torch.float32)
    saved, rate = trainer.state.copy(), trainer.rate
    first = trainer.run(5)
    trainer.state, trainer.rate = saved, torch.zeros_like(rate)
    second = trainer.run(5)
    trainer.rate = rate
    assert float(first[0, 0]) == float(second[0, 0])
    assert float(first[4, 0]) != float(second[4, 0])
    assert torch.equal(trainer.state.theta, saved.theta)


@pytest.mark.parametrize("before", [False, True])
def test_numbers_below_the_normal_range_are_zero_within_a_step_only(before: bool) -> None:
    if not torch.set_flush_denormal(before):
        pytest.skip("this processor cannot flush them")
    smallest, seen = torch.tensor(1e-38), []

    def model(batch: Batch) -> None:
        seen.append(float(smallest / 16) == 0.0)
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=batch["y"])

    def guide(batch: Batch) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    try:
        trainer = Trainer(Pair(model, guide), {"y": torch.ones(())}, recipe=Recipe(steps=3), compile=False)
        seen.clear()
        trainer.run(3)
        assert seen == [True] * 3
        assert (float(smallest / 16) == 0.0) is before
    finally:
        torch.set_flush_denormal(False)


def test_schedules() -> None:
    recipe = Recipe(steps=100, learning_rate=2.0, warmup=0.1, kl_warmup=0.5)
    for kind, last in (("constant", 2.0), ("cosine", 0.0), ("linear", 0.02), ("exponential", 0.0209)):
        rate, weight = schedule_table(replace(recipe, schedule=kind))
        assert float(rate[0]) == pytest.approx(0.2)
        assert float(rate[-1]) == pytest.approx(last, abs=2e-3)
        assert float(weight[24]) == pytest.approx(0.5)
        assert float(weight[-1]) == 1.0


def test_order_visits_every_row_equally_and_restarts_where_it_stopped() -> None:
    order = Order.fresh(10, 4, seed=0)
    seen = torch.cat([order.take(2).reshape(-1), order.take(3).reshape(-1)])
    assert torch.equal(seen.bincount(minlength=10), torch.full((10,), 2))
    first, second = Order.fresh(10, 4, seed=5), Order.fresh(10, 4, seed=5)
    assert torch.equal(first.take(7), torch.cat([second.take(3), second.take(4)]))


def conjugate() -> tuple[Pair, dict[str, torch.Tensor]]:
    y = torch.tensor([1.0, 2.0, 3.0, 2.5])

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("datum", 4, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    def guide(batch):
        loc = pyro.param("mu_loc", lambda: torch.tensor(0.0))
        scale = pyro.param("mu_scale", lambda: torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    return Pair(model, guide), {"y": y, "index": torch.arange(4)}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimisers_reach_the_exact_posterior(optimizer: str) -> None:
    pair, batch = conjugate()
    rate = 0.01 if optimizer == "sgd" else 0.05
    posterior = zoo.fit(
        pair,
        batch,
        steps=1500,
        optimizer=optimizer,
        learning_rate=rate,
        schedule="cosine",
        num_particles=4,
        compile=False,
    )
    assert float(posterior.params["mu_loc"]) == pytest.approx(8.5 / 4.25, abs=0.05)
    assert float(posterior.params["mu_scale"]) == pytest.approx(4.25**-0.5, abs=0.05)


def test_adam_is_torchs_adam() -> None:
    theta, gradient = torch.randn(5), torch.randn(3, 5)
    pair, batch = conjugate()
    trainer = Trainer(pair, batch, recipe=Recipe(steps=5, learning_rate=0.1), compile=False)
    mine, moments = theta.clone(), torch.zeros(2, 5)
    leaf = theta.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([leaf], lr=0.1)
    for i in range(3):
        mine, moments = trainer._update(mine, gradient[i], moments, torch.tensor(i + 1.0), torch.tensor(0.1), None)
        leaf.grad = gradient[i].clone()
        optimiser.step()
    assert torch.allclose(mine, leaf.detach(), atol=1e-6)


def test_kl_weight_scales_the_latent_terms() -> None:
    # At weight zero the loss is the expected negative log likelihood alone; the prior and the guide leave it.
    pair, batch = conjugate()
    trainer = Trainer(pair, batch, recipe=Recipe(steps=10, learning_rate=1e-9, kl_warmup=1.0), compile=False)
    trainer.weight = torch.zeros(10)
    torch.manual_seed(0)
    loss = trainer.run(1)[0, 0]
    with program.stream(program.seeded(0)):
        other = Trainer(pair, batch, recipe=Recipe(steps=10, learning_rate=1e-9), compile=False)
    full = other.run(1)[0, 0]
    assert float(loss) != pytest.approx(float(full), abs=1e-3)
    mu = (batch["y"] - batch["y"].mean()).square().sum()  # the least that any mu can reach
    assert float(loss) >= 2 * float(torch.tensor(2 * torch.pi).log()) + 0.5 * float(mu) - 1e-4


def test_restarts_are_sorted_and_distinct() -> None:
    posterior = zoo.fit("eight_schools", engine="svi", steps=60, restarts=3, compile=False)
    finals = [p.info["final_loss"] for p in (posterior, *posterior.restarts)]
    assert finals == sorted(finals)
    assert len(set(finals)) == 3


def test_early_stopping_stops_a_settled_fit_and_not_a_falling_one() -> None:
    pair, batch = conjugate()
    settled = zoo.fit(pair, batch, steps=20_000, learning_rate=0.05, early_stopping=True, compile=False)
    assert settled.info["steps"] < 20_000
    assert float(settled.params["mu_loc"]) == pytest.approx(2.0, abs=0.3)
    falling = zoo.fit(pair, batch, steps=2_000, learning_rate=1e-3, early_stopping=True, compile=False)
    assert falling.info["steps"] == 2_000


@pytest.mark.parametrize("within", [False, True])
def test_an_interrupt_leaves_a_checkpoint_of_that_moment(tmp_path, monkeypatch, within) -> None:
    options = {"seed": 4, "compile": False, "checkpoint_every": 1_000, "steps": 400, "batch_size": 2}
    pair, batch = conjugate()
    whole = zoo.fit(pair, batch, **options)
    calls = 0

    def interrupt(event):
        if not within and event.stage == "fitting" and event.done >= 50:
            raise KeyboardInterrupt

    step = Trainer._step

    def interrupted(self, *inputs, **options):
        nonlocal calls
        calls += 1
        if within and calls == 50:  # in the middle of a block of steps, after the rows of the block were drawn
            raise KeyboardInterrupt
        return step(self, *inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            zoo.fit(pair, batch, checkpoint=tmp_path / "cut", progress=interrupt, **options)
    done = []
    resumed = zoo.fit(
        pair, batch, checkpoint=tmp_path / "cut", resume=True, progress=lambda e: done.append(e.done), **options
    )
    assert min(n for n in done if n) > 1
    assert torch.equal(whole.losses, resumed.losses)
    assert all(torch.equal(whole.params[k], resumed.params[k]) for k in whole.params)


def test_wrong_guides_are_refused() -> None:
    pair, batch = conjugate()

    def short(batch):
        pyro.param("a", torch.tensor(0.0))

    def surplus(batch):
        pair.guide(batch)
        pyro.sample("nu", dist.Normal(pyro.param("nu_loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(PairError, match="no site for the model's latent 'mu'"):
        zoo.fit(Pair(pair.model, short), batch, steps=2)
    with pytest.raises(PairError, match="samples 'nu', which is not in the model"):
        zoo.fit(Pair(pair.model, surplus), batch, steps=2)
    found = zoo.check(pair.model, short, batch, compile=False)
    assert [s.name for s in found if not s.ok] == ["the guide covers the latents"]


def test_check_passes_a_good_pair_and_leaves_the_store_alone() -> None:
    pair, batch = conjugate()
    pyro.param("mine", torch.tensor(1.0))
    found = zoo.check(pair.model, pair.guide, batch, compile=False)
    assert all(s.ok for s in found), found
    assert set(pyro.get_param_store().keys()) == {"mine"}


def test_parameters_that_an_elbo_does_not_train_stay_as_they_start() -> None:
    pair, batch = conjugate()
    kept = pair._replace(objective=Elbo(trains="(?!mu_scale)"))
    fit = zoo.fit(kept, batch, steps=20, weight_decay=0.1, optimizer="adamw", compile=False)
    other = zoo.fit(pair, batch, steps=20, weight_decay=0.1, optimizer="adamw", compile=False)
    start = zoo.fit(pair, batch, steps=1, learning_rate=1e-12, compile=False)
    torch.testing.assert_close(fit.params["mu_scale"], start.params["mu_scale"])
    assert not torch.allclose(other.params["mu_scale"], start.params["mu_scale"])
    assert not torch.allclose(fit.params["mu_loc"], start.params["mu_loc"])

    def idle(batch):
        pyro.param("idle", torch.tensor(1.0))
        pair.guide(batch)

    def failed(objective: Elbo) -> list[str]:
        found = zoo.check(pair.model, idle, batch, objective=objective, compile=False)
        return [s.name for s in found if not s.ok]

    assert failed(Elbo()) == ["every parameter trains"]
    assert failed(Elbo(trains="(?!idle)")) == []


def test_two_fits_in_one_process_equal_the_same_two_alone() -> None:
    pair, batch = conjugate()
    alone = [zoo.fit(pair, batch, steps=50, seed=s, compile=False).losses for s in (1, 2)]

    class Nest:
        """A second fit inside the first one's progress events."""

        inner = None

        def __call__(self, event):
            if event.stage == "fitting" and self.inner is None:
                self.inner = zoo.fit(pair, batch, steps=50, seed=2, compile=False)

    nest = Nest()
    outer = zoo.fit(pair, batch, steps=50, seed=1, compile=False, progress=nest)
    assert torch.equal(outer.losses, alone[0])
    assert torch.equal(nest.inner.losses, alone[1])


def test_without_a_compiler_everything_runs_and_says_so_once(monkeypatch) -> None:
    program.no_compiler.cache_clear()
    runner._say_once.cache_clear()
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    pair, batch = conjugate()
    try:
        with pytest.warns(RuntimeWarning, match=r"runs eagerly.*no C\+\+ compiler") as caught:
            first, _ = (zoo.fit(pair, batch, steps=10) for _ in range(2))
        assert sum("eagerly" in str(w.message) for w in caught) == 1
        assert not first.info["compiled"]
    finally:
        monkeypatch.undo()
        program.no_compiler.cache_clear()


def test_what_cannot_be_traced_runs_eagerly_with_the_reason() -> None:
    def model(batch):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        flat = 1.0 if float(mu.detach()) > 0 else 2.0  # reads a number: no graph can hold this
        with pyro.plate("datum", 4, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, flat), obs=batch["y"])

    runner._say_once.cache_clear()
    pair, batch = conjugate()
    with pytest.warns(RuntimeWarning, match="cannot be traced at site 'mu'"):
        posterior = zoo.fit(Pair(model, pair.guide), batch, steps=10)
    assert not posterior.info["compiled"]
    assert len(posterior.losses) == 10


def test_module_weights_are_read_from_the_store_and_buffers_are_state() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 2, generator=generator)
    y = x[:, 0] - x[:, 1]

    def model(batch):
        pyro.module("net", net)
        mean = net(batch["x"])[:, 0]
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("datum", 32, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mean, scale), obs=batch.get("y"))

    def guide(batch):
        pyro.sample("scale", dist.Delta(pyro.param("s", lambda: torch.tensor(1.0), constraint=constraints.positive)))

    before = {k: v.clone() for k, v in net.state_dict().items()}
    batch = {"x": x, "y": y, "index": torch.arange(32)}
    posterior = zoo.fit(Pair(model, guide), batch, steps=300, learning_rate=0.02)
    assert posterior.info["compiled"], posterior.info["reason"]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()), "the user's module was changed"
    mean = posterior.predict({"x": x}, n=2).means["y"][0]
    assert float((mean - y).square().mean()) < 0.1
    # Evaluation mode uses the running statistics: one row alone is predicted as within its batch.
    one = posterior.predict({"x": x[:1]}, n=2).means["y"][0, 0]
    assert float(one) == pytest.approx(float(mean[0]), abs=1e-5)


@pytest.mark.parametrize(("kind", "steps"), [(nn.LSTM, 6), (nn.GRU, 6), (nn.LSTM, 40)])
def test_short_recurrences_are_compiled_and_long_ones_say_why_not(kind: type[nn.RNNBase], steps: int) -> None:
    net = kind(2, 4, batch_first=True)
    x = torch.randn(16, steps, 2, generator=torch.Generator().manual_seed(0))

    def model(batch):
        pyro.module("net", net)
        mean = net(batch["x"])[0][:, -1].sum(-1)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("datum", 16, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mean, scale), obs=batch["y"])

    def guide(batch):
        pyro.sample("scale", dist.LogNormal(pyro.param("s", torch.tensor(0.0)), 0.1))

    batch = {"x": x, "y": x[..., 0].mean(-1), "index": torch.arange(16)}
    runner._say_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = zoo.fit(Pair(model, guide), batch, steps=20)
    eager = zoo.fit(Pair(model, guide), batch, steps=20, compile=False)
    assert torch.allclose(found.losses, eager.losses, rtol=1e-4)
    assert found.info["compiled"] is (steps <= 30)
    assert any("lstm takes 40 steps" in str(w.message) for w in caught) is (steps > 30)


# -------------------------------------------------------------------------------------------------- large graphs
def test_a_large_graph_is_compiled_in_a_child(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where no run before has compiled it
    monkeypatch.setattr(library, "LARGE", 5)
    asked = []
    real = library.subprocess.run

    def watched(command, **options):
        asked.append(command)
        return real(command, **options)

    monkeypatch.setattr(library.subprocess, "run", watched)
    pair, batch = conjugate()
    fitted = zoo.fit(pair, batch, steps=3)
    assert fitted.info["compiled"]
    assert any("zoo.inference._compile_worker" in command for command in asked)
    eager = zoo.fit(pair, batch, steps=3, compile=False)
    assert torch.allclose(fitted.losses, eager.losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("code", "seconds", "reason"),
    [
        ("import os; os.abort()", 600, "the compiler ended with status -6"),
        ("raise SystemExit('no room')", 600, "status 1: no room"),
        ("import time; time.sleep(60)", 0.2, r"nodes was not compiled within 0.2 s"),
    ],
)
@pytest.mark.filterwarnings("ignore:pair runs eagerly")
def test_a_compiler_that_aborts_or_hangs_leaves_the_fit_eager(monkeypatch, tmp_path, code, seconds, reason) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(library, "LARGE", 5)
    monkeypatch.setattr(library, "_CHILD_SECONDS", seconds)
    real = library.subprocess.run

    def run(command, **options):  # torch asks for its C++ compiler by the same function
        ours = isinstance(command, list) and "zoo.inference._compile_worker" in command
        return real([command[0], "-c", code] if ours else command, **options)

    monkeypatch.setattr(library.subprocess, "run", run)
    pair, batch = conjugate()
    fitted = zoo.fit(pair, batch, steps=3)
    assert not fitted.info["compiled"]
    assert re.search(reason, fitted.info["reason"])
