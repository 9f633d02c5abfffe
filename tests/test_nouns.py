"""The nouns carry unlike methods: each fixture is fitted by the runner and, where that is possible, by plain Pyro."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import zoo
from zoo.errors import DataError
from zoo.inference.objectives import to_pyro
from zoo.types import Alternating, Dataset, Diagnostic, Elbo, Loss, Pair

POSITIVE = constraints.softplus_positive


def plain_pyro(pair: Pair, batch: dict[str, torch.Tensor], steps: int, lr: float = 0.03) -> list[float]:
    """What a user of Pyro would write."""
    pyro.clear_param_store()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": lr}), to_pyro(pair.objective))
    return [svi.step(batch) for _ in range(steps)]


# --------------------------------------------------------------------------- an enumerated discrete latent
def mixture() -> tuple[Pair, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([torch.randn(60, generator=generator) - 2, torch.randn(90, generator=generator) + 2])

    def model(batch):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("component", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("datum", len(x), subsample=batch["index"]):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=batch["x"])

    def guide(batch):
        pyro.sample("weights", dist.Dirichlet(pyro.param("c", lambda: torch.full((2,), 5.0), constraint=POSITIVE)))
        m = pyro.param("loc_loc", lambda: torch.tensor([-1.0, 1.0]))
        s = pyro.param("loc_scale", lambda: torch.full((2,), 0.3), constraint=POSITIVE)
        with pyro.plate("component", 2):
            pyro.sample("loc", dist.Normal(m, s))

    batch = {"x": x, "index": torch.arange(len(x))}
    return Pair(model, guide, Elbo(estimator="enum", max_plate_nesting=1)), batch


def test_enumerated_latent() -> None:
    pair, batch = mixture()
    posterior = zoo.fit(pair, batch, steps=600, learning_rate=0.03, seed=0)
    assert posterior.info["compiled"], posterior.info["reason"]
    loc = posterior.draws(200)["loc"].mean(0)
    assert loc == pytest.approx([-2, 2], abs=0.4)
    plain_pyro(pair, batch, 600)
    assert pyro.param("loc_loc").tolist() == pytest.approx(posterior.params["loc_loc"].tolist(), abs=0.1)


# ------------------------------------------------------------------ two alternating losses (adversarial)
def adversarial() -> tuple[Pair, dict[str, torch.Tensor]]:
    """A density-ratio fit of q(z) to an implicit prior: the discriminator's logit stands in for log q - log p."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
    y = torch.full((20,), 1.0)

    def model(batch):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", 20, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(z, 1.0), obs=batch["y"])

    def guide(batch):
        loc = pyro.param("z_loc", lambda: torch.tensor(0.0))
        scale = pyro.param("z_scale", lambda: torch.tensor(0.5), constraint=POSITIVE)
        pyro.sample("z", dist.Normal(loc, scale))

    def q(num):
        loc, scale = pyro.param("z_loc"), pyro.param("z_scale")
        return loc + scale * torch.randn(num, 1)

    def discriminator(model, guide, batch):
        net = pyro.module("critic", critic)
        real, fake = net(torch.randn(128, 1)), net(q(128).detach())
        return nn.functional.softplus(-fake).mean() + nn.functional.softplus(real).mean()

    def generator(model, guide, batch):
        net = pyro.module("critic", critic)
        z = q(128)
        fit = dist.Normal(z, 1.0).log_prob(batch["y"]).sum(-1).mean()
        return net(z).mean() - fit

    losses = (
        Loss(name="discriminator", function=discriminator, trains="critic", steps=2),
        Loss(name="guide", function=generator, trains="z_"),
    )
    return Pair(model, guide, Alternating(losses)), {"y": y, "index": torch.arange(20)}


def test_alternating_losses() -> None:
    pair, batch = adversarial()
    before = {n: p.clone() for n, p in next(iter(_modules(pair))).named_parameters()}
    posterior = zoo.fit(pair, batch, steps=800, learning_rate=0.01, seed=0)
    assert posterior.info["compiled"], posterior.info["reason"]
    assert set(posterior.history) == {"discriminator", "guide"}
    # Exact: precision 1 + 20, mean 20 / 21. The density ratio is learned, hence the width of the tolerance.
    assert float(posterior.params["z_loc"]) == pytest.approx(20 / 21, abs=0.15)
    after = dict(next(iter(_modules(pair))).named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before), "the closed-over module was changed"


def _modules(pair: Pair):
    from zoo.inference.watch import closed_over

    return closed_over(s.function for s in pair.objective.losses)


# -------------------------------------------------------------------------------------- no guide: MCMC only
def test_no_guide() -> None:
    y = torch.tensor([1.0, 2.0, 3.0, 2.0])

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("datum", 4, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    pair = Pair(model)
    posterior = zoo.fit(pair, {"y": y, "index": torch.arange(4)}, chains=2, draws=500, tune=500, seed=1)
    assert posterior.engine == "nuts"
    assert posterior.chains["mu"].shape == (2, 500)
    assert float(posterior.chains["mu"].mean()) == pytest.approx(8 / 4.01, abs=0.12)
    with pytest.raises(zoo.ZooError, match="no guide"):
        zoo.fit(pair, {"y": y, "index": torch.arange(4)}, engine="svi")


# --------------------------------------------------------------------- a guide that takes inner gradient steps
def inner_steps() -> tuple[Pair, dict[str, torch.Tensor]]:
    y = torch.tensor([0.5, 1.0, 1.5])

    def model(batch):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", 3, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(z, 1.0), obs=batch["y"])

    def guide(batch):
        rate = pyro.param("rate", lambda: torch.tensor(0.05), constraint=POSITIVE)
        scale = pyro.param("z_scale", lambda: torch.tensor(1.0), constraint=POSITIVE)
        loc = torch.zeros((), requires_grad=True)
        for _ in range(3):
            joint = dist.Normal(0.0, 1.0).log_prob(loc) + dist.Normal(loc, 1.0).log_prob(batch["y"]).sum()
            (gradient,) = torch.autograd.grad(joint, loc, create_graph=True)
            loc = loc + rate * gradient
        pyro.sample("z", dist.Normal(loc, scale))

    return Pair(model, guide), {"y": y, "index": torch.arange(3)}


def test_guide_with_inner_gradient_steps() -> None:
    pair, batch = inner_steps()
    posterior = zoo.fit(pair, batch, steps=400, learning_rate=0.02)
    assert posterior.info["compiled"], posterior.info["reason"]
    assert float(posterior.params["z_scale"]) == pytest.approx(0.5, abs=0.08)
    losses = plain_pyro(pair, batch, 400, 0.02)
    assert sum(losses[-100:]) == pytest.approx(float(posterior.losses[-100:].sum()), rel=0.05)


# ---------------------------------------------------------------------- a latent per datapoint in mini-batches
def local_latents() -> tuple[Pair, dict[str, torch.Tensor]]:
    num = 64
    y = torch.randn(num, generator=torch.Generator().manual_seed(3)) * 2**0.5

    def model(batch):
        with pyro.plate("datum", num, subsample=batch["index"]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=batch["y"])

    def guide(batch):
        loc = pyro.param("z_loc", lambda: torch.zeros(num))
        scale = pyro.param("z_scale", lambda: torch.ones(num), constraint=POSITIVE)
        with pyro.plate("datum", num, subsample=batch["index"]):
            pyro.sample("z", dist.Normal(loc[batch["index"]], scale[batch["index"]]))

    return Pair(model, guide), {"y": y, "index": torch.arange(num)}


def test_latent_per_datapoint_in_mini_batches() -> None:
    pair, batch = local_latents()
    posterior = zoo.fit(pair, batch, steps=1500, batch_size=16, learning_rate=0.03)
    assert posterior.info["compiled"], posterior.info["reason"]
    # Exact: N(y / 2, 1 / 2) for each datum.
    error = (posterior.params["z_loc"] - batch["y"] / 2).abs().mean()
    assert float(error) < 0.15
    assert float(posterior.params["z_scale"].mean()) == pytest.approx(0.5**0.5, abs=0.08)
    assert posterior.draws(5)["z"].shape == (5, 64)
    plain_pyro(pair, batch, 500)
    assert float((pyro.param("z_loc") - batch["y"] / 2).abs().mean()) < 0.15


# --------------------------------------------------------------------------- a graph as the datum: no row batches
def graph() -> tuple[Pair, Dataset]:
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 0, 4, 5, 3, 3]])
    adjacency = torch.zeros(6, 6)
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1.0
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    data = Dataset(
        name="two triangles", task="", train={"adjacency": adjacency, "y": labels}, whole=frozenset({"adjacency", "y"})
    )

    def model(batch):
        num = batch["adjacency"].shape[0]
        with pyro.plate("node", num):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        logits = (z @ z.T) - 1
        off = 1 - torch.eye(num)
        pyro.sample("edge", dist.Bernoulli(logits=logits).mask(off > 0).to_event(2), obs=batch["adjacency"])

    def guide(batch):
        loc = pyro.param("z_loc", lambda: 0.1 * torch.randn(6, 2))
        scale = pyro.param("z_scale", lambda: torch.full((6, 2), 0.3), constraint=POSITIVE)
        with pyro.plate("node", 6):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Pair(model, guide), data


def test_graph_as_datum() -> None:
    pair, data = graph()
    with pytest.raises(DataError, match="index"):
        zoo.fit(pair, data, steps=500, learning_rate=0.03, batch_size=2)  # a graph is never cut
    posterior = zoo.fit(pair, data, steps=500, learning_rate=0.03)
    assert posterior.info["compiled"], posterior.info["reason"]
    z = posterior.params["z_loc"]
    similarity = z @ z.T
    assert float(similarity[0, 1]) > float(similarity[1, 4])
    assert posterior.draws(3)["z"].shape == (3, 6, 2)
    losses = plain_pyro(pair, dict(data.train), 200)
    assert sum(losses[-20:]) < sum(losses[:20])


# -------------------------------------------------------------------------------------------- ragged sequences
def ragged() -> tuple[Pair, dict[str, torch.Tensor]]:
    """AR(1) series of unequal lengths, padded; the mask keeps the padding out of the likelihood."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 9, 12, 7, 12, 4])
    x = torch.zeros(6, 12)
    for t in range(1, 12):
        x[:, t] = 0.8 * x[:, t - 1] + 0.3 * torch.randn(6, generator=generator)
    x = torch.where(torch.arange(12) < lengths[:, None], x, torch.full_like(x, 1e3))

    def model(batch):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        inside = torch.arange(1, 12) < batch["length"][:, None]
        with pyro.plate("series", 6, subsample=batch["index"]):
            step = dist.Normal(a * batch["x"][:, :-1], 0.3).mask(inside).to_event(1)
            pyro.sample("x", step, obs=batch["x"][:, 1:])

    def guide(batch):
        loc = pyro.param("a_loc", lambda: torch.tensor(0.0))
        scale = pyro.param("a_scale", lambda: torch.tensor(0.1), constraint=POSITIVE)
        pyro.sample("a", dist.Normal(loc, scale))

    return Pair(model, guide), {"x": x, "length": lengths, "index": torch.arange(6)}


def test_ragged_sequences() -> None:
    pair, batch = ragged()
    posterior = zoo.fit(pair, batch, steps=500, learning_rate=0.02, batch_size=3)
    assert posterior.info["compiled"], posterior.info["reason"]
    x, inside = batch["x"], torch.arange(1, 12) < batch["length"][:, None]
    past, now = x[:, :-1][inside], x[:, 1:][inside]
    exact = float((past * now).sum() / 0.09 / (1 + (past * past).sum() / 0.09))
    assert float(posterior.params["a_loc"]) == pytest.approx(exact, abs=0.06)
    plain_pyro(pair, batch, 500, 0.02)
    assert float(pyro.param("a_loc")) == pytest.approx(exact, abs=0.06)


# --------------------------------------------------- a diagnostic that reads other fits, with no latents of its own
@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkageHyper:
    num_draws: int = 500


def shrinkage(posteriors, hyper):
    """How much of the prior's variance the data took away, per posterior."""
    return {p.name: 1 - float(p.draws(hyper.num_draws)["mu"].var()) / 25.0 for p in posteriors}


def test_diagnostic_without_latents() -> None:
    entry = Diagnostic(
        name="shrinkage",
        title="Posterior shrinkage",
        paper="betancourt2018",
        task="meta_analysis",
        hyper=ShrinkageHyper,
        smoke=ShrinkageHyper(num_draws=100),
        measure=shrinkage,
        reads=("eight_schools",),
    )
    posterior = zoo.fit("eight_schools", engine="svi", steps=1500, seed=0)
    values = entry.measure([posterior], entry.hyper())
    assert 0.2 < values["eight_schools"] < 0.8


def test_plain_elbo_objectives_map_to_pyro() -> None:
    assert type(to_pyro(Elbo())) is Trace_ELBO
    assert to_pyro(Elbo(estimator="renyi", alpha=0.5, num_particles=3)).alpha == 0.5
