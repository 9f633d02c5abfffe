"""Pairs whose objective sums discrete latents out: predictions under any plates, and weights of many draws at once."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor

import zoo
from zoo.types import Batch, Elbo, Pair

J, N = 3, 4
OPTIONS: dict[str, Any] = {"steps": 2, "compile": False}


def grid(seed: int = 0) -> dict[str, Tensor]:
    return {"y": torch.randn(J, N, generator=torch.Generator().manual_seed(seed))}


@config_enumerate
def mixture(batch: Batch) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.tensor([0.0, 5.0]), 1.0).to_event(1))
    with pyro.plate("unit", N, dim=-1), pyro.plate("group", J, dim=-2):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        mean = pyro.deterministic("mean", torch.where(z > 0, loc[..., 1], loc[..., 0]))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=batch["y"])


@config_enumerate
def chain(batch: Batch) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.tensor([0.0, 3.0]), 1.0).to_event(1))
    change = pyro.sample("change", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2)).softmax(-1)
    with pyro.plate("sequence", J):
        z = torch.tensor(0)
        for t in pyro.markov(range(N)):
            z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(change)[..., z, :]))
            pyro.sample(f"y_{t}", dist.Normal(Vindex(loc)[..., z], 1.0), obs=batch["y"][:, t])


def chain_guide(batch: Batch) -> None:
    pyro.sample("loc", dist.Normal(pyro.param("loc_loc", torch.tensor([0.5, 2.0])), 0.3).to_event(1))
    scale = pyro.param("change_scale", torch.full((2, 2), 0.5), constraint=constraints.positive)
    pyro.sample("change", dist.Normal(torch.zeros(2, 2), scale).to_event(2))


@config_enumerate
def labelled(batch: Batch) -> None:
    """The guide enumerates a label that the model has, too."""
    share = pyro.sample("share", dist.Normal(0.0, 1.0)).sigmoid()
    with pyro.plate("unit", N):
        z = pyro.sample("z", dist.Bernoulli(share))
        pyro.sample("y", dist.Normal(3 * z, 1.0), obs=batch["y"][0])


@config_enumerate
def label_guide(batch: Batch) -> None:
    pyro.sample("share", dist.Normal(pyro.param("a", torch.tensor(0.5)), 0.7))
    with pyro.plate("unit", N):
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.full((N,), 0.3))))


def fixed(guide: Any, draw: dict[str, Tensor]) -> Any:
    """The guide at a draw: every value a point that carries the guide's log density there."""

    def run(batch: Batch) -> None:
        with poutine.block():
            nodes = poutine.trace(poutine.condition(guide, data=draw)).get_trace(batch).nodes
        for name, value in draw.items():
            fn = nodes[name]["fn"]
            density = fn.log_prob(value)
            pyro.sample(name, dist.Delta(value, log_density=density, event_dim=fn.event_dim))

    return run


@pytest.mark.parametrize("nesting", [None, 1, 2])
def test_weights_of_many_draws_at_once_are_those_of_one_by_one(nesting: int | None) -> None:
    calls: list[int] = []

    def counted(batch: Batch) -> None:
        calls.append(1)
        chain(batch)

    posterior = zoo.fit(
        Pair(counted, chain_guide, Elbo(estimator="enum", max_plate_nesting=nesting)), grid(), **OPTIONS
    )
    calls.clear()
    found, draws = posterior.log_weights(20, seed=3), posterior.draws(20, seed=3)
    assert len(calls) < 5
    single = TraceEnum_ELBO(max_plate_nesting=1)
    with posterior.runs.bound():
        due = [-single.loss(chain, fixed(chain_guide, {k: v[i] for k, v in draws.items()}), grid()) for i in range(20)]
    torch.testing.assert_close(found, torch.tensor(due), rtol=1e-5, atol=1e-5)
    assert float(found.std()) > 0.1


def test_a_label_that_the_guide_enumerates_is_weighed_too() -> None:
    pair = Pair(labelled, label_guide, Elbo(estimator="enum", max_plate_nesting=1))
    posterior = zoo.fit(pair, grid(), **OPTIONS)
    share, found = posterior.draws(5, seed=1)["share"], posterior.log_weights(5, seed=1)
    q, y, a = posterior.params["q"], grid()["y"][0], posterior.params["a"]
    for value, weight in zip(share, found, strict=True):
        parts = [
            chance * (dist.Bernoulli(value.sigmoid()).log_prob(z) + dist.Normal(3 * z, 1.0).log_prob(y) - chance.log())
            for z, chance in ((torch.tensor(0.0), 1 - q), (torch.tensor(1.0), q))
        ]
        due = torch.stack(parts).sum() + dist.Normal(0.0, 1.0).log_prob(value) - dist.Normal(a, 0.7).log_prob(value)
        assert float(weight) == pytest.approx(float(due), rel=1e-5)


@pytest.mark.parametrize("nesting", [None, 2, 3])
def test_two_plates_are_found_in_the_model(nesting: int | None) -> None:
    guide = AutoNormal(poutine.block(mixture, expose=["loc"]))
    posterior = zoo.fit(Pair(mixture, guide, Elbo(estimator="enum", max_plate_nesting=nesting)), grid(), **OPTIONS)
    assert posterior.predict(n=4).samples["y"].shape == (4, J, N)
    draws = posterior.draws(3)
    fixed_sites = posterior.deterministics(draws)
    assert fixed_sites["mean"].shape == (3, J, N)
    own = draws["loc"][:, None, None]
    assert bool((fixed_sites["mean"][..., None] == own).any(-1).all())  # one of the two locations, everywhere
    assert posterior.log_likelihood(draws=draws)["y"].shape == (3, J, N)
    # One draw by hand: the labels summed out of the joint density.
    (weight,) = posterior.log_weights(1, seed=7)
    loc = posterior.draws(1, seed=7)["loc"][0]
    params = posterior.params
    spread = dist.Normal(params["AutoNormal.locs.loc"], params["AutoNormal.scales.loc"])
    two = torch.stack([dist.Normal(at, 1.0).log_prob(grid()["y"]) for at in loc]).logsumexp(0) - torch.tensor(2.0).log()
    due = two.sum() + (dist.Normal(torch.tensor([0.0, 5.0]), 1.0).log_prob(loc) - spread.log_prob(loc)).sum()
    assert float(weight) == pytest.approx(float(due), rel=1e-5)


def test_nuts_draws_labels_from_their_posterior_though_nothing_marks_them() -> None:
    """NUTS sums every finite latent out, marked or not; what follows has to treat it as summed out too."""

    def model(batch: Batch) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("unit", N):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.deterministic("label", z)
            pyro.sample("y", dist.Normal(loc + 100 * z, 1.0), obs=batch["y"])

    y = torch.tensor([0.0, 100.0, 0.2, 100.3])
    posterior = zoo.fit(Pair(model), {"y": y}, engine="nuts", chains=1, draws=20, tune=50, compile=False)
    draws = posterior.draws(10)
    assert torch.equal(posterior.deterministics(draws)["label"], (y > 50).double().expand(10, N))
    found = posterior.log_likelihood(draws=draws)["y"]
    near = dist.Normal(draws["loc"][:, None], 1.0).log_prob(y.double() - 100 * (y > 50))
    torch.testing.assert_close(found, near - torch.tensor(2.0).double().log(), rtol=1e-6, atol=1e-6)
    assert set(posterior.predict(n=3).samples) == {"y"}
