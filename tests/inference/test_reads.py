"""What a graph would hold still: numbers read out of tensors, Python's own state, floats among the arguments."""

from __future__ import annotations

import copy
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

import zoo
from zoo.diagnostics.refits import _Refitter
from zoo.errors import PairError
from zoo.inference import compiled, program
from zoo.inference.program import compile_function
from zoo.types import Pair

A, B = torch.zeros(4), torch.full((4,), 5.0)


def reason_of(function, *example, fixed=()) -> str:
    return compile_function(lambda *v: (function(*v),), list(example), fixed=fixed).reason


def asserted(x):
    assert x.max() < 10
    return x.sum()


READS = {
    ".numpy()": lambda x: x * float(np.mean(x.numpy())),
    "numpy": lambda x: x * float(np.asarray(x).mean()),
    ".tolist()": lambda x: x * sum(x.tolist()),
    ".item()": lambda x: x * x.mean().item(),
    "int()": lambda x: x * int(x.sum()),
    "float()": lambda x: x * float(x.sum()),
    "a decision": lambda x: x if x.sum() > 0 else -x,
    "range": lambda x: sum(x for _ in range(x.sum().long())),
    "torch.equal()": lambda x: x * torch.equal(x, x + 1),
    "torch.allclose()": lambda x: x * torch.allclose(x, x + 1),
    "copy.deepcopy()": lambda x: x + copy.deepcopy(x),
}


@pytest.mark.parametrize("kind", READS)
def test_numbers_read_out_of_inputs_are_refused_with_file_and_line(kind) -> None:
    line = READS[kind].__code__.co_firstlineno
    reason = reason_of(READS[kind], A)
    assert f"test_reads.py:{line} reads numbers out of a tensor, by {kind}" in reason.replace("an index or ", "")


@pytest.fixture
def uncompiled(monkeypatch):
    """Take every graph for compiled."""
    monkeypatch.setattr(program, "_ahead_of_time", lambda graph, *_: program.Program(graph))


def test_numbers_that_cannot_change_are_kept(uncompiled) -> None:
    inner = torch.tensor([1.0, 2.0])
    assert reason_of(lambda x: x * float(inner.numpy().sum()) + sum(torch.arange(3).tolist()), A) == ""
    assert reason_of(asserted, A) == ""  # a check computes nothing
    found = compile_function(lambda x, y: (x * y.sum().item() * int(y.max()),), [A, B], fixed={1})
    assert found.compiled
    assert found.kept
    assert torch.equal(found.call(torch.ones(4), B)[0], torch.full((4,), 100.0))
    mixed = reason_of(lambda x, y: x * (x * y).sum().item(), A, B, fixed={1})
    assert ".item()" in mixed
    noise = reason_of(lambda x: x * torch.randn(()).item(), A, fixed={0})
    assert ".item()" in noise


def masked(x, y):
    return (x[y > 2] * y[y.nonzero()[:, 0]][:2].sum(),)


def test_shapes_that_follow_numbers_are_those_of_fixed_inputs_or_refused(uncompiled) -> None:
    y = torch.tensor([1.0, 3.0, 0.0, 5.0])
    found = compile_function(masked, [A, y], fixed={1})
    assert (found.reason, found.kept) == ("", True)
    assert torch.equal(found.call(B, y)[0], masked(B, y)[0])
    reason = compile_function(masked, [A, y], fixed={0}).reason
    line = masked.__code__.co_firstlineno + 1
    assert f"test_reads.py:{line} takes as many elements as numbers say, by a mask" in reason
    assert "poutine.mask" in reason_of(lambda x: x * len(torch.unique(x)), A)


def test_other_data_are_read_again(monkeypatch) -> None:
    monkeypatch.setattr(program, "_ahead_of_time", lambda graph, *_: program.Program(graph))

    def model(batch):
        level = float(batch["y"].max())
        with pyro.plate("datum", 4):
            pyro.sample("y", dist.Normal(pyro.param("m", torch.tensor(0.0)) + level, 1.0), obs=batch["y"])

    fits = []
    for data in (B, A + 1):
        fits.append(zoo.fit(Pair(model, lambda batch: None), {"y": data}, steps=5).losses)
    posterior = zoo.fit(Pair(model, lambda batch: None), {"y": B}, steps=5)
    assert posterior.info["compiled"], posterior.info["reason"]
    refitter = _Refitter(posterior)
    refits = []
    for data in (B, A + 1):
        refitter.fit({"y": data}, seed=0)
        refits.append(torch.cat(refitter.trainer.state.history)[:, 0])
    assert all(torch.equal(a, b) for a, b in zip(fits, refits, strict=True))


def test_a_state_of_pythons_is_seen(uncompiled) -> None:
    count = [0]

    def counter(x):
        count[0] += 1
        return x * count[0]

    line = counter.__code__.co_firstlineno + 2
    numbers = np.random.default_rng(0)
    assert reason_of(counter, A + 1).startswith("computes something else each time that it is called, from ")
    assert f"test_reads.py:{line} on" in reason_of(counter, A + 1)
    assert "computes something else" in reason_of(lambda x: x + torch.from_numpy(numbers.random(4)), A)
    assert "computes something else" in reason_of(lambda x: x + random.random(), A)
    assert reason_of(lambda x: x + torch.randn(4), A) == ""
    assert reason_of(lambda x: x * float("nan"), A) == ""


INDICES = {
    "k": lambda x, k: x[k],
    "-k": lambda x, k: x[-k],
    "k, 1": lambda x, k: x[k, 1],
    "1, k": lambda x, k: x[1, k],
    "k, k": lambda x, k: x[k, k],
    ":, k": lambda x, k: x[:, k],
    "..., k": lambda x, k: x[..., k],
    "None, k, 1:": lambda x, k: x[None, k, 1:],
    "k, None, ..., k": lambda x, k: x[k, None, ..., k],
    "write": lambda x, k: _written(x, k),
}


def _written(x, k):
    x = x.clone()
    x[k] = x.sum(0)
    return x


@pytest.mark.parametrize("kind", INDICES)
def test_a_scalar_tensor_as_index_is_an_input(kind, uncompiled) -> None:
    def indexed(x, k):
        with program._Bound({}, tracing=True):
            return (INDICES[kind](x, k),)

    x = torch.arange(60.0).reshape(3, 4, 5)
    found = compile_function(indexed, [x, torch.tensor(1)])
    assert found.reason == ""
    for k in (1, 2):
        assert torch.equal(found.call(x, torch.tensor(k))[0], INDICES[kind](x, k))


def test_a_plate_may_be_a_loop() -> None:
    y = torch.tensor([1.0, 2.0, 6.0])

    def model(batch):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        for i in pyro.plate("datum", 3):
            pyro.sample(f"y_{i}", dist.Normal(m, 5.0), obs=batch["y"][i])

    pair = Pair(model, lambda batch: pyro.sample("m", dist.Normal(pyro.param("a", torch.tensor(0.0)), 1.0)))
    eager, found = (zoo.fit(pair, {"y": y}, steps=20, compile=c) for c in (False, True))
    assert found.info["compiled"], found.info["reason"]
    assert torch.allclose(eager.losses, found.losses, rtol=1e-5)


def test_mini_batches_read_by_numpy_are_each_read(recwarn) -> None:
    x = torch.cat([torch.zeros(10), torch.full((10,), 5.0)])

    def model(batch):
        level = float(np.mean(batch["x"].numpy()))
        with pyro.plate("datum", 20, subsample=batch["index"]):
            pyro.sample("o", dist.Normal(pyro.param("m", torch.tensor(0.0)) + level, 1.0), obs=batch["x"])

    pair, batch = Pair(model, lambda batch: None), {"x": x, "index": torch.arange(20)}
    options = {"batch_size": 4, "steps": 30, "learning_rate": 0.05}
    eager, found = (zoo.fit(pair, batch, compile=c, **options) for c in (False, True))
    assert torch.equal(eager.losses, found.losses)
    assert ".numpy()" in found.info["reason"]


# -------------------------------------------------------------------------------------------------- compile_svi
def annealed(x, factor=1.0):
    with poutine.scale(scale=factor):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(z, 1.0), obs=x)


def around(model):
    inner = AutoNormal(model)

    def guide(x, factor=1.0):
        with poutine.scale(scale=factor):
            return inner(x, factor)

    return guide


def losses_of(step, factors, guide):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide(torch.ones(5))  # initialises itself
    return [float(step(torch.ones(5), f)) for f in factors]


def counting(monkeypatch):
    made = []

    def compile(function, example, *, eager=None, fixed=(), **_):
        rng = torch.get_rng_state()
        graph, _, reason = program._traced(function, example, fixed)
        torch.set_rng_state(rng)
        made.append(reason)
        return program.Program(eager if graph is None else graph, reason)

    monkeypatch.setattr(compiled, "compile_function", compile)
    return made


def test_a_float_that_changes_is_an_input(monkeypatch) -> None:
    made, factors = counting(monkeypatch), [0.1 * i for i in range(1, 8)]
    guide, other = around(annealed), around(annealed)
    step = zoo.compile_svi(annealed, guide, optim=pyro.optim.Adam({"lr": 0.1}))
    svi = pyro.infer.SVI(annealed, other, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    assert losses_of(step, factors, guide) == pytest.approx(losses_of(svi.step, factors, other), rel=1e-4)
    assert made == ["", ""]


def test_a_float_that_decides_is_frozen_and_said_to_be_so_at_its_third_value(monkeypatch) -> None:
    made, factors = counting(monkeypatch), [0.1 * i for i in range(1, 8)]

    def deciding(x, factor=1.0):
        annealed(x, factor if factor < 0.5 else 1.0)

    guide, other = around(deciding), around(deciding)
    step = zoo.compile_svi(deciding, guide, optim=pyro.optim.Adam({"lr": 0.1}))
    svi = pyro.infer.SVI(deciding, other, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.warns(RuntimeWarning, match=r"value number 3.*test_reads.py:\d+ reads numbers"):
        ours = losses_of(step, factors, guide)
    assert ours == pytest.approx(losses_of(svi.step, factors, other), rel=1e-4)
    assert [bool(reason) for reason in made] == [False, True, False]
    assert "other values" in step.reason


def test_modules_are_trained_in_the_mode_that_they_are_in(monkeypatch) -> None:
    made, net = counting(monkeypatch), torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.5))

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(net(x[:, None])[:, 0], 1.0), obs=x)

    pyro.clear_param_store()
    step = zoo.compile_svi(model, lambda x: None, optim=pyro.optim.Adam({"lr": 1e-9}))
    step(B)
    net.eval()
    assert len({round(float(step(B)), 4) for _ in range(4)}) == 1
    net.train()
    assert len({round(float(step(B)), 4) for _ in range(4)}) > 1
    assert made == ["", "", ""]


# ------------------------------------------------------------------------------------------ parameters of modules
class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.shift = PyroParam(torch.tensor(0.0))

    def forward(self, batch):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", len(batch["x"])):
            pyro.sample("y", dist.Normal(slope * batch["x"] + self.shift, 0.5), obs=batch.get("y"))


def test_parameters_that_modules_keep_to_themselves_are_trained() -> None:
    x = torch.linspace(-1, 1, 30)
    batch = {"x": x, "y": 2 * x + 1, "index": torch.arange(30)}

    def fit():
        model = Regression()
        guide = AutoNormal(model)
        return zoo.fit(Pair(model, guide), batch, steps=300, learning_rate=0.05, compile=False), model, guide

    usual = fit()[0]
    with pyro.settings.context(module_local_params=True):
        local, model, guide = fit()
        assert float(model.shift.detach()) == 0.0  # the owner's
        assert all(s.ok for s in zoo.check(model, guide, batch, compile=False))
        with pytest.raises(PairError, match="module_local_params=True"):
            zoo.compile_svi(model, guide)(batch)
    assert torch.equal(local.losses, usual.losses)
    assert float(local.params["shift"]) == pytest.approx(1.0, abs=0.2)


# ------------------------------------------------------------------------------------- numbers read from the data
def counted(x):
    """Reads how many there are of something, as bags of words do."""
    total = int(x.sum())
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(pyro.param("m", torch.tensor(0.5)) * total, 1.0), obs=x)


def stepping(model, batches, **options):
    """Return Pyro's losses, ours, and why each call of ours was eager."""
    found = []
    for ours in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        built, guide = model() if options.get("build") else model, lambda *_: None
        optim = options.get("optim", pyro.optim.Adam)({"lr": 0.05})
        step = (
            zoo.compile_svi(built, guide, optim=optim)
            if ours
            else pyro.infer.SVI(built, guide, optim, Trace_ELBO()).step
        )
        found.append([(float(step(*batch)), getattr(step, "reason", "")) for batch in batches])
    return [loss for loss, _ in found[0]], *map(list, zip(*found[1], strict=True))


def bags(*totals):
    return [(torch.tensor([float(total), 1.0, 2.0]),) for total in totals]


@pytest.mark.parametrize("optim", [pyro.optim.Adam, pyro.optim.ClippedAdam, pyro.optim.SGD])
def test_numbers_read_from_arguments_are_read_again_before_every_call(optim, uncompiled) -> None:
    wanted, found, reasons = stepping(counted, bags(1, 1, 2, 1, 2, 2, 1), optim=optim)
    assert found == pytest.approx(wanted, rel=1e-5)
    # The first is Pyro's own, the others wait until they come again.
    assert [bool(r) for r in reasons] == [True, False, True, False, False, False, False]
    line = counted.__code__.co_firstlineno + 2
    assert reasons[0].startswith("is compiled when the same numbers come again: ")
    assert f"test_reads.py:{line} reads numbers out of a tensor, by int()" in reasons[0]
    wanted, found, reasons = stepping(counted, bags(1, 2, 3, 4, 4, 1, 1), optim=optim)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert reasons[4].startswith("cannot be traced: ")
    assert reasons[-2:] == ["", ""]


def test_an_assertion_that_a_later_batch_breaks_is_raised(uncompiled) -> None:
    def model(x):
        assert x.max() <= 3, "too large"
        counted(x * 0)

    step = zoo.compile_svi(model, lambda x: None)
    for batch in bags(1, 2, 3):
        step(*batch)
    assert not step.reason
    with pytest.raises(AssertionError, match="too large"):
        step(*bags(4)[0])


def test_what_is_written_into_a_tensor_is_what_is_read(uncompiled) -> None:
    def written(x):
        kept = torch.zeros(2)
        kept[0] = x.max()
        return x * float(kept.sum())

    assert "by float()" in reason_of(written, B)
    found = compile_function(lambda x: (written(x),), [B], given={0})
    assert found.guard is not None
    assert found.guard.holds([B])
    assert not found.guard.holds([A])


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("kind", [torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN])
def test_packed_sequences(kind, sort, uncompiled) -> None:
    from torch.nn.utils import rnn

    def build():
        net = kind(2, 3, batch_first=True)

        def model(x, lengths=None):
            pyro.module("net", net)
            if lengths is not None:
                x = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=not sort)
            states, _ = rnn.pad_packed_sequence(net(x)[0], batch_first=True)
            with pyro.plate("data", 3):
                pyro.sample("obs", dist.Normal(states.sum((-1, -2)), 1.0), obs=torch.ones(3))

        return model

    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    calls = [(x, torch.tensor(n)) for n in ([4, 3, 1], [4, 3, 1], [4, 2, 2], [4, 2, 2], [4, 3, 1])]
    packed = [(rnn.pack_padded_sequence(*call, batch_first=True),) for call in calls]
    for batches in (calls, packed):
        wanted, found, reasons = stepping(build, batches, build=True)
        assert found == pytest.approx(wanted, rel=1e-5)
        assert [bool(r) for r in reasons] == [True, False, True, False, False]
        assert "pack" in reasons[0]  # the call that read the lengths


def test_a_loop_that_is_too_long_for_a_graph_is_named(monkeypatch) -> None:
    from zoo.inference import reads

    monkeypatch.setattr(reads, "MOST_NODES", 50)

    def long(x):
        for _ in range(40):
            x = x.sin() + 1
        return x

    reason = reason_of(long, A)
    assert "makes a graph of more than 50 operations" in reason
    assert "test_reads.py:" in reason
    assert "DiscreteHMM" in reason
