"""What a pair may hold and still run whole: every kind of program, compiled, gives the losses of the eager run."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoLowRankMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import zoo
from zoo.types import Alternating, Elbo, Loss, Pair

NUM = 48


def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM, 3, generator=generator)
    return {
        "x": x,
        "y": x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * torch.randn(NUM, generator=generator),
        "seen": torch.rand(NUM, generator=generator) > 0.2,
        "index": torch.arange(NUM),
    }


def linear(batch):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("datum", NUM, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(batch["x"] @ w, scale), obs=batch["y"])


def normal_guide(batch):
    loc = pyro.param("w_loc", lambda: 0.1 * torch.randn(3))
    width = pyro.param("w_scale", lambda: torch.full((3,), 0.2), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(loc, width).to_event(1))
    pyro.sample("scale", dist.LogNormal(pyro.param("s_loc", torch.tensor(0.0)), 0.2))


def gamma_guide(batch):
    loc = pyro.param("w_loc", lambda: 0.1 * torch.randn(3))
    pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))
    rate = pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)
    pyro.sample("scale", dist.Gamma(torch.tensor(2.0), rate))


def masked(batch):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("datum", NUM, subsample=batch["index"]), poutine.mask(mask=batch["seen"]):
        pyro.sample("y", dist.Normal(batch["x"] @ w, scale), obs=batch["y"])


def mixture(batch):
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("datum", NUM, subsample=batch["index"]):
        k = pyro.sample("k", dist.Categorical(torch.full((2,), 0.5)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc[k], 1.0), obs=batch["y"])


def mixture_guide(batch):
    loc = pyro.param("loc_loc", lambda: torch.randn(2))
    with pyro.plate("component", 2):
        pyro.sample("loc", dist.Normal(loc, 0.3))


def switch(batch):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    with pyro.plate("datum", NUM, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(2 * k, 1.0), obs=batch["y"])


def switch_guide(batch):
    pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)))


def chain(batch):
    stay = pyro.sample("stay", dist.Beta(9.0, 1.0))
    rows = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    emission = dist.Normal(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0]))
    hmm = dist.DiscreteHMM(torch.zeros(2), rows.log(), emission, duration=NUM)
    pyro.sample("y", hmm, obs=batch["y"])


def chain_guide(batch):
    a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("stay", dist.Beta(a, 1.0))


class Regression(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch):
        mean = self.linear(self.norm(batch["x"]))[:, 0]
        with pyro.plate("datum", NUM, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=batch["y"])


def module_pair() -> Pair:
    torch.manual_seed(0)
    model = Regression()
    return Pair(model, AutoNormal(model))


def amortised() -> Pair:
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(3, 4), nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))

    def model(batch):
        pyro.module("decoder", decoder)
        with pyro.plate("datum", NUM, subsample=batch["index"]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=batch["x"])

    def guide(batch):
        pyro.module("encoder", encoder)
        with pyro.plate("datum", NUM, subsample=batch["index"]):
            loc, log_scale = encoder(batch["x"]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide)


def adversaries() -> Pair:
    def wake(model, guide, batch):
        return (pyro.param("w_loc") - 1.0).square().sum() + 0.1 * torch.randn(())

    def sleep(model, guide, batch):
        return (pyro.param("s_loc") - pyro.param("w_loc").sum().detach()).square()

    losses = (Loss(name="wake", function=wake, trains="w_", steps=2), Loss(name="sleep", function=sleep, trains="s_"))
    return Pair(linear, normal_guide, Alternating(losses))


PAIRS: dict[str, Callable[[], Pair]] = {
    "trace": lambda: Pair(linear, normal_guide),
    "analytic divergence": lambda: Pair(linear, normal_guide, Elbo(estimator="mean_field")),
    "importance weighted": lambda: Pair(linear, normal_guide, Elbo(estimator="renyi", num_particles=4)),
    "vectorised particles": lambda: Pair(
        switch, switch_guide, Elbo(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    ),
    "implicit gradients": lambda: Pair(linear, gamma_guide),
    "mask": lambda: Pair(masked, normal_guide),
    "enumeration": lambda: Pair(mixture, mixture_guide, Elbo(estimator="enum", max_plate_nesting=1)),
    "score function": lambda: Pair(switch, switch_guide, Elbo(estimator="graph")),
    "summed-out chain": lambda: Pair(chain, chain_guide),
    "batch normalisation in a PyroModule": module_pair,
    "amortised, subsampled": amortised,
    "autoguide, point": lambda: Pair(linear, AutoDelta(linear)),
    "autoguide, low rank": lambda: Pair(linear, AutoLowRankMultivariateNormal(linear, rank=1)),
    "autoguide, flow": lambda: Pair(linear, AutoIAFNormal(linear, hidden_dim=[8])),
    "alternating losses": adversaries,
}
OPTIONS = {
    "amortised, subsampled": {"batch_size": 10, "clip_norm": 1.0, "kl_warmup": 0.5},
    "batch normalisation in a PyroModule": {"batch_size": 16, "optimizer": "adamw", "weight_decay": 0.1},
    "trace": {"schedule": "cosine", "warmup": 0.3, "optimizer": "sgd", "learning_rate": 1e-4},
}
DOUBLE = ("trace", "enumeration", "amortised, subsampled")


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [*((n, "float32", 1e-4) for n in PAIRS), *((n, "float64", 1e-9) for n in DOUBLE)],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_equals_eager(name: str, dtype: str, limit: float) -> None:
    options = {"steps": 20, "seed": 3, "dtype": dtype, **OPTIONS.get(name, {})}

    def pair() -> Pair:
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))  # for modules, which keep the type that they were made with
        try:
            return PAIRS[name]()
        finally:
            torch.set_default_dtype(before)

    fast = zoo.fit(pair(), data(), **options)
    assert fast.info["compiled"], fast.info["reason"]
    slow = zoo.fit(pair(), data(), compile=False, **options)
    for loss, values in slow.history.items():
        assert torch.isfinite(values).all()
        torch.testing.assert_close(fast.history[loss], values, rtol=limit, atol=limit * float(values.abs().max()))
    for parameter, value in slow.params.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(fast.params[parameter], value, rtol=0, atol=20 * limit * scale)
