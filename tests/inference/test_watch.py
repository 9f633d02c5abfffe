"""Modules are found by watching a program run; the owner's objects stay as they were, and each fit begins anew."""

from __future__ import annotations

import sys
import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer import autoguide as ag
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import zoo
from zoo.diagnostics.check import NotApplicable
from zoo.diagnostics.inference import restart_agreement
from zoo.diagnostics.refits import _Refitter
from zoo.types import Pair

Y = 2.0 + 0.3 * torch.randn(24, generator=torch.Generator().manual_seed(1))
X = 5 + 3 * torch.randn(32, 2, generator=torch.Generator().manual_seed(2))
BATCH = {"x": X, "y": X[:, 0] - X[:, 1], "index": torch.arange(32)}
HERE = sys.modules[__name__]


def model(batch):
    w = pyro.sample("w", dist.Normal(0.0, 3.0))
    v = pyro.sample("v", dist.LogNormal(0.0, 1.0))
    with pyro.plate("datum", len(batch["y"])):
        pyro.sample("y", dist.Normal(w.abs() + v, 0.3), obs=batch["y"])


def fitted(guide, *, seed=0, steps=20, **options):
    return zoo.fit(Pair(model, guide), {"y": Y}, seed=seed, steps=steps, learning_rate=0.05, compile=False, **options)


class Experiment:
    """Model and guide as methods of a plain object that holds networks."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(2, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.calls = 0

    def model(self, batch):
        self.calls += 1
        pyro.module("net", self.net)
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("datum", len(batch["x"])):
            pyro.sample("y", dist.Normal(self.net(batch["x"])[:, 0], s), obs=batch.get("y"))

    def guide(self, batch):
        pyro.sample("s", dist.LogNormal(pyro.param("a", torch.tensor(0.0)), 0.05))


def in_a_class():
    found = Experiment()
    return found.net, Pair(found.model, found.guide)


def in_another_file():
    """The network is a global of a module that a function of a third module reads."""
    found, library, user = Experiment(), types.ModuleType("library"), types.ModuleType("user")
    library.net = found.net
    code = "def run(x):\n    return library.net(x)[:, 0]\n"
    user.library = library
    exec(code, user.__dict__)

    def noisy(batch):
        pyro.module("net", library.net)
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("datum", len(batch["x"])):
            pyro.sample("y", dist.Normal(user.run(batch["x"]), s), obs=batch.get("y"))

    return found.net, Pair(noisy, found.guide)


class Lazy:
    """A network that is built in the first call, unregistered containers, read through a method."""

    def __init__(self):
        self.parts = {}

    def network(self, x):
        if "net" not in self.parts:
            self.parts["net"] = Experiment().net
        return self.parts["net"]

    def model(self, batch):
        net = self.network(batch["x"])
        pyro.module("net", net)
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("datum", len(batch["x"])):
            pyro.sample("y", dist.Normal(net(batch["x"])[:, 0], s), obs=batch.get("y"))


def built_in_the_first_call():
    return None, Pair(Lazy().model, Experiment().guide)


def state_of(net):
    return {k: v.clone() for k, v in net.state_dict().items()} | {"training": torch.tensor(net[3].training)}


@pytest.mark.parametrize(
    ("make", "compile"),
    [(in_a_class, False), (in_another_file, False), (in_another_file, True), (built_in_the_first_call, False)],
)
def test_statistics_are_state_dropout_is_off_and_the_owner_keeps_his(make, compile, tmp_path) -> None:
    net, pair = make()
    before = None if net is None else state_of(net)
    posterior = zoo.fit(pair, BATCH, steps=60, learning_rate=0.02, compile=compile)
    assert posterior.info["compiled"] is compile, posterior.info["reason"]
    assert len(posterior._buffers) == 3
    if net is not None:
        assert all(torch.equal(before[k], v) for k, v in state_of(net).items())
        assert all(p.grad is None for p in net.parameters())
    mean = posterior.predict({"x": X[:4]}, n=30).means["y"]
    assert float(mean.std(0).max()) == 0.0  # the network is the same in every draw
    again = zoo.fit(pair, BATCH, steps=60, learning_rate=0.02, compile=compile)
    assert torch.equal(again.losses, posterior.losses)
    posterior.save(tmp_path / "fit")
    loaded = zoo.load(tmp_path / "fit", pair=make()[1])
    assert torch.equal(loaded.predict({"x": X[:4]}, n=30).means["y"], mean)


def test_statistics_equal_those_of_pyro() -> None:
    def ends(train):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        found = Experiment()
        torch.manual_seed(5)
        train(found)
        return found.net[1].running_mean.clone(), found.net[1].num_batches_tracked.clone()

    def pyros(found):
        svi = SVI(found.model, found.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        for _ in range(10):
            svi.step(BATCH)

    def ours(found):
        step = zoo.compile_svi(found.model, found.guide, optim=pyro.optim.Adam({"lr": 0.01}))
        for _ in range(10):
            step(BATCH)
        assert step.reason == ""

    for a, b in zip(ends(ours), ends(pyros), strict=True):
        assert torch.allclose(a, b, rtol=1e-4)


def test_a_check_leaves_modules_as_they_were() -> None:
    net, pair = in_another_file()
    before = state_of(net)
    assert all(step.ok for step in zoo.check(*pair[:2], BATCH, compile=False))
    assert all(torch.equal(before[k], v) for k, v in state_of(net).items())
    guide = ag.AutoNormal(model)
    zoo.check(model, guide, {"y": Y}, compile=False)
    assert guide.prototype_trace is None


def test_a_buffer_that_is_assigned_is_state_as_one_that_is_written() -> None:
    class Tracking(nn.Module):
        def __init__(self, assign):
            super().__init__()
            self.assign = assign
            self.register_buffer("level", torch.zeros(()))

        def forward(self, y):
            new = 0.5 * self.level + 0.5 * y.mean()
            if self.assign:
                self.level = new
            else:
                self.level.copy_(new)
            return self.level

    def posterior(assign, compile):
        tracking = Tracking(assign)

        def follows(batch):
            level = tracking(batch["y"])
            with pyro.plate("datum", len(batch["y"])):
                pyro.sample("y", dist.Normal(pyro.param("m", torch.tensor(0.0)) + level, 1.0), obs=batch["y"])

        found = zoo.fit(Pair(follows, lambda batch: None), {"y": Y}, steps=5, compile=compile)
        assert float(tracking.level) == 0.0
        return found

    for assign, compile in ((False, False), (True, False), (True, True)):
        found = posterior(assign, compile)
        assert float(found._buffers[0]) == pytest.approx(float(Y.mean()) * (1 - 0.5**5), rel=1e-5)


# --------------------------------------------------------------------------------------------------- guides
def listed():
    guide = ag.AutoGuideList(model)
    guide.append(ag.AutoNormal(poutine.block(model, expose=["w"]), init_loc_fn=ag.init_to_sample))
    guide.append(ag.AutoDiagonalNormal(poutine.block(model, expose=["v"]), init_loc_fn=ag.init_to_sample))
    return guide


def easy():
    @easy_guide(model)
    def guide(self, batch):
        self.map_estimate("w")
        self.map_estimate("v")

    return guide


class Written(PyroModule):
    @PyroParam
    def loc(self):
        return torch.randn(())

    def forward(self, batch):
        pyro.sample("w", dist.Normal(self.loc, 0.1))
        pyro.sample("v", dist.LogNormal(pyro.param("l", lambda: torch.randn(())), 0.1))


class Encoder(PyroModule):
    """Builds its network when it first sees data."""

    def __init__(self):
        super().__init__()
        self.net = None

    def forward(self, batch):
        if self.net is None:
            del self.net
            self.net = PyroModule[nn.Linear](len(batch["y"]), 2)
        loc, scale = self.net(batch["y"])
        pyro.sample("w", dist.Normal(loc, 0.1))
        pyro.sample("v", dist.LogNormal(scale, 0.1))


def around():
    """A function in whose closure a guide stands."""
    inner = ag.AutoNormal(model, init_loc_fn=ag.init_to_sample)
    return lambda batch: inner(batch)


def imported():
    """A guide that is found by no walk: an attribute of a module that a function of another file reads."""
    library = types.ModuleType("library")
    library.guide = ag.AutoNormal(model, init_loc_fn=ag.init_to_sample)
    other = types.ModuleType("other")
    other.library = library
    exec("def guide(batch):\n    return library.guide(batch)\n", other.__dict__)
    return other.guide


GUIDES = {
    "normal": lambda: ag.AutoNormal(model, init_loc_fn=ag.init_to_sample),
    "delta": lambda: ag.AutoDelta(model, init_loc_fn=ag.init_to_sample),
    "diagonal": lambda: ag.AutoDiagonalNormal(model, init_loc_fn=ag.init_to_sample),
    "multivariate": lambda: ag.AutoMultivariateNormal(model, init_loc_fn=ag.init_to_sample),
    "low rank": lambda: ag.AutoLowRankMultivariateNormal(model, init_loc_fn=ag.init_to_sample),
    "flow": lambda: ag.AutoIAFNormal(model, hidden_dim=[4], num_transforms=1),
    "structured": lambda: ag.AutoStructured(model, dependencies="linear", init_loc_fn=ag.init_to_sample),
    "gaussian": lambda: ag.AutoGaussian(model, init_loc_fn=ag.init_to_sample),
    "messenger": lambda: ag.AutoNormalMessenger(model, init_loc_fn=ag.init_to_sample),
    "hierarchical": lambda: ag.AutoHierarchicalNormalMessenger(model, init_loc_fn=ag.init_to_sample),
    "list": listed,
    "easy": easy,
    "written": Written,
    "encoder": Encoder,
    "closure": around,
    "imported": imported,
}


@pytest.mark.parametrize("kind", GUIDES)
def test_a_used_guide_begins_anew_and_stays_as_its_owner_left_it(kind) -> None:
    fresh = [fitted(GUIDES[kind](), seed=s).losses for s in (0, 1)]
    guide = GUIDES[kind]()
    assert torch.equal(fitted(guide, seed=0).losses, fresh[0])
    assert torch.equal(fitted(guide, seed=1).losses, fresh[1])  # as if the first had not been
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(5):
        svi.step({"y": Y})
    at = {n: p.detach().clone() for n, p in pyro.get_param_store().items()}
    trained = fitted(guide, seed=0)
    owned = kind == "encoder"  # its network is one that the owner built by then
    assert owned or torch.equal(trained.losses, fresh[0])
    assert all(torch.equal(p, pyro.param(n)) for n, p in at.items())
    pyro.set_rng_seed(0)
    here = float(svi.evaluate_loss({"y": Y}))
    other = fitted(guide, seed=1)
    pyro.set_rng_seed(0)
    assert float(svi.evaluate_loss({"y": Y})) == here
    assert owned or trained.info["start"] != other.info["start"]
    pyro.clear_param_store()


def test_restarts_find_both_modes_and_equal_starts_are_not_examined() -> None:
    guide = ag.AutoNormal(model, init_loc_fn=ag.init_to_sample)
    apart = fitted(guide, restarts=6, steps=300)
    ends = {round(float(p.params["AutoNormal.locs.w"].sign())) for p in (apart, *apart.restarts)}
    assert ends == {-1, 1}
    assert restart_agreement(apart, num_draws=200).verdict == "fail"
    with pytest.raises(NotApplicable, match="all began at one point"):
        restart_agreement(fitted(ag.AutoNormal(model), restarts=3, steps=5), num_draws=200)


def test_layers_of_a_pair_begin_anew_in_restarts_and_refits() -> None:
    net = nn.Linear(1, 1)
    frozen = nn.Linear(1, 1).requires_grad_(False)

    def regression(batch):
        pyro.module("net", net)
        mean = net(batch["y"][:, None])[:, 0] + frozen(batch["y"][:, None])[:, 0]
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("datum", len(batch["y"])):
            pyro.sample("y", dist.Normal(mean, s), obs=batch["y"])

    def guide(batch):
        pyro.sample("s", dist.LogNormal(pyro.param("a", torch.tensor(0.0)), 0.1))

    before = net.weight.clone()
    posterior = zoo.fit(Pair(regression, guide), {"y": Y}, restarts=3, steps=1, learning_rate=1e-9, compile=False)
    fits = sorted((posterior, *posterior.restarts), key=lambda p: p.info["seed"])
    weights = [p.params["net$$$weight"] for p in fits]
    assert torch.allclose(weights[0], before, atol=1e-6)
    assert float((weights[1] - before).abs()) > 1e-3
    assert len({float(w) for w in weights}) == 3
    assert torch.equal(net.weight, before)
    refitter = _Refitter(posterior)
    refits = [refitter.fit({"y": Y}, seed=s).params["net$$$weight"] for s in (0, 1, 2)]
    assert len({float(w) for w in refits}) == 3


def test_a_network_that_is_not_registered_gets_no_gradient() -> None:
    net = nn.Linear(1, 1)

    def regression(batch):
        loc = pyro.param("m", torch.tensor(0.0)) + net(batch["y"][:, None])[:, 0]
        with pyro.plate("datum", len(batch["y"])):
            pyro.sample("y", dist.Normal(loc, 1.0, validate_args=True).expand([len(Y)]), obs=batch["y"])

    zoo.fit(Pair(regression, lambda batch: None), {"y": Y}, steps=3, compile=False)
    assert net.weight.grad is None


def test_constrained_values_of_a_module_stay_the_owners() -> None:
    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.tensor(0.5))
            self.scale = PyroParam(torch.tensor(0.2), constraint=constraints.positive)

        def forward(self, batch):
            pyro.sample("w", dist.Normal(self.loc, self.scale))
            pyro.sample("v", dist.LogNormal(self.loc, self.scale))

    guide = Guide()
    kept = dict(guide.named_parameters())
    values = {n: p.clone() for n, p in kept.items()}
    fitted(guide)
    assert all(p is kept[n] and torch.equal(p, values[n]) for n, p in guide.named_parameters())
