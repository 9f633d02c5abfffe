"""What a site is: data, latent, deterministic; guides that handle the model, guides that observe, hidden parameters."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)
from pyro.infer.reparam import (
    AutoReparam,
    HaarReparam,
    LinearHMMReparam,
    LocScaleReparam,
    NeuTraReparam,
    SplitReparam,
    StableReparam,
    StudentTReparam,
    TransformReparam,
)
from torch.distributions import constraints

import zoo
from zoo.errors import PairError
from zoo.inference.sites import kind, traces

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SD = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def kinds(model: Any, *args: Any) -> dict[str, str]:
    nodes = poutine.trace(model).get_trace(*args).nodes
    found = {n: kind(s) for n, s in nodes.items() if s["type"] == "sample"}
    return {n: k for n, k in found.items() if k != "plate"}


def schools(batch: Any) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.LogNormal(1.0, 1.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, batch["sd"]), obs=batch.get("y"))


BATCH = {"y": Y, "sd": SD}


# ------------------------------------------------------------------------------------------------ reparametrised
@pytest.mark.parametrize("config", [{"theta": LocScaleReparam(0.0)}, AutoReparam(centered=0.0)])
def test_a_reparametrised_latent_is_a_deterministic(config: Any) -> None:
    model = poutine.reparam(schools, config)
    found = kinds(model, BATCH)
    assert found["theta"] == "deterministic"
    assert found["theta_decentered"] == "latent"
    assert [n for n, k in found.items() if k == "observed"] == ["y"]
    assert zoo.check(model, AutoNormal(model), BATCH, compile=False)[0].detail.endswith("observed: y")
    fit = zoo.fit(zoo.Pair(model, AutoNormal(model)), BATCH, steps=20, compile=False)
    assert "theta" not in fit.draws(2)
    draws = fit.draws(7)
    values = {**draws, **fit.deterministics(draws)}
    assert values["theta"].shape == (7, 8)
    expected = values["mu"][:, None] + values["tau"][:, None] * draws["theta_decentered"]
    torch.testing.assert_close(values["theta"], expected)
    for batch in (None, {"sd": SD}):
        assert {n: tuple(v.shape) for n, v in fit.predict(batch, n=3).samples.items()} == {"y": (3, 8)}
    assert set(fit.log_likelihood(draws=draws)) == {"y"}


def test_reparametrisations_leave_data_where_their_density_is() -> None:
    series = torch.randn(8, 1, generator=torch.Generator().manual_seed(0))

    def model(fn: Any, data: Any = None) -> None:
        pyro.sample("x", fn, obs=data)

    student = dist.StudentT(4.0, torch.zeros(8), 1.0).to_event(1)
    walk = dist.LinearHMM(
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        torch.eye(1),
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        torch.eye(1),
        dist.Stable(torch.tensor([1.7]), torch.tensor([0.1])).to_event(1),
        duration=8,
    )
    stable = dist.Stable(torch.full((8,), 1.7), 0.1, 1.0, 0.0).to_event(1)
    normal = dist.Normal(torch.zeros(8), 1.0).to_event(1)
    log_normal = dist.LogNormal(torch.zeros(8), 1.0).to_event(1)
    for fn, reparam, data, seen in (
        (stable, StableReparam(), series[:, 0], {"x"}),
        (walk, LinearHMMReparam(obs=StableReparam()), series, {"x"}),
        (student, StudentTReparam(), series[:, 0], {"x"}),
        (log_normal, TransformReparam(), series[:, 0].exp(), {"x_base"}),
        (normal, HaarReparam(dim=-1), series[:, 0], {"x_haar"}),
    ):
        changed = poutine.reparam(model, {"x": reparam})
        found = kinds(changed, fn, data)
        assert {n for n, k in found.items() if k == "observed"} == seen, reparam
        assert found["x"] == ("observed" if "x" in seen else "deterministic")
        # As a latent, nothing of it is data.
        latent = kinds(poutine.reparam(model, {"x": reparam}), fn)
        assert "observed" not in latent.values()
        assert "latent" in latent.values()
    split = kinds(
        poutine.mask(poutine.reparam(model, {"x": SplitReparam([3, 5], -1)}), mask=False), normal, series[:, 0]
    )
    assert split["x"] == "deterministic"


def test_neutra_keeps_its_latents_out_of_the_data() -> None:
    guide = AutoIAFNormal(schools, hidden_dim=[12])
    guide(BATCH)
    found = kinds(NeuTraReparam(guide).reparam(schools), BATCH)
    assert [n for n, k in found.items() if k == "observed"] == ["y"]
    assert all(found[n] == "deterministic" for n in ("mu", "tau", "theta"))


def test_data_that_are_compared_with_a_point_mass_are_data() -> None:
    values = torch.tensor([1.0, 2.0])

    def model() -> None:
        pyro.sample("data", dist.Delta(values.clone()), obs=values)
        pyro.sample("own", dist.Delta(values, log_density=torch.ones(2)), obs=values)
        pyro.deterministic("fixed", values)
        pyro.factor("factor", torch.zeros(()))
        with pyro.plate("more", 3, dim=-2):
            pyro.sample("expanded", dist.Delta(values), obs=values)

    assert kinds(model) == {
        "data": "observed",
        "own": "deterministic",
        "fixed": "deterministic",
        "factor": "factor",
        "expanded": "deterministic",
    }


# ------------------------------------------------------------------------------------------------------- messengers
def mean_of(scale: Any, y: Any = None) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(scale)):
        pyro.sample("y", dist.Normal(m, scale), obs=y)


@pytest.mark.parametrize("kind", [AutoNormalMessenger, AutoHierarchicalNormalMessenger, AutoRegressiveMessenger])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_guide_that_handles_the_model_finds_the_posterior(kind: Any, warmup: float) -> None:
    y, scale = torch.tensor([2.0, 3.0, 2.5, 2.5]), torch.ones(4)
    pair = zoo.Pair(mean_of, kind(mean_of))
    fit = zoo.fit(pair, (scale, y), steps=600, learning_rate=0.05, kl_warmup=warmup, compile=False)
    draws = fit.draws(4_000)
    assert set(draws) == {"m"}
    assert float(draws["m"].mean()) == pytest.approx(2.0, abs=0.15)  # the prior has 0
    assert float(draws["m"].std()) == pytest.approx(0.2**0.5, rel=0.25)
    evidence = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1.0).log_prob(y)
    weights = fit.log_weights(2_000)
    assert float(weights.logsumexp(0) - torch.tensor(2_000.0).log()) == pytest.approx(float(evidence), abs=0.1)
    new: Any = (torch.ones(4),)
    # Rows without targets: what is data in the fit is no latent of the guide.
    assert set(fit.draws(3, batch=fit._prepare(new))) == {"m"}
    found = fit.predict(new, n=400).samples["y"]
    assert found.shape == (400, 4)
    assert float(found.mean()) == pytest.approx(2.0, abs=0.25)


# ------------------------------------------------------------------------------------------------------------ guides
def observing(scale: Any, y: Any = None, **infer: Any) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    m = pyro.sample("m", dist.Normal(loc, 0.3))
    with pyro.plate("row", len(scale)):
        pyro.sample("y", dist.Normal(m, scale), obs=y, infer=infer)


def test_a_guide_that_observes_is_refused() -> None:
    data = (torch.ones(3), torch.tensor([2.0, 3.0, 2.5]))
    with pytest.raises(PairError, match="the guide observes 'y'"):
        zoo.fit(zoo.Pair(mean_of, observing), data, steps=2, compile=False)
    assert "the guide observes 'y'" in zoo.check(mean_of, observing, data, compile=False)[-1].detail


def test_a_guide_may_observe_for_a_loss_of_the_users_own() -> None:
    data = (torch.ones(3), torch.tensor([2.0, 3.0, 2.5]))

    class Own(Trace_ELBO):  # type: ignore[misc]
        pass

    def own(model: Any, guide: Any, *args: Any) -> Any:
        found, drawn = traces(model, guide, *args)
        assert set(found.observation_nodes) >= {"y"}
        assert "y" not in drawn.nodes
        return drawn.log_prob_sum() - found.log_prob_sum()

    losses: list[Any] = [own, Own()]
    for objective in losses:
        zoo.fit(zoo.Pair(mean_of, observing, objective), data, steps=2, compile=False)

    def auxiliary(scale: Any, y: Any = None) -> None:
        observing(scale, y, is_auxiliary=True)

    zoo.fit(zoo.Pair(mean_of, auxiliary), data, steps=2, compile=False)


# ------------------------------------------------------------------------------------------------------------- hidden
def test_hidden_parameters_are_not_trained() -> None:
    def level(batch: Any) -> Any:
        return pyro.param("level", torch.tensor(0.5), constraint=constraints.positive)

    def model(batch: Any) -> None:
        known = poutine.block(level, hide_types=["param"])(batch)
        m = pyro.sample("m", dist.Normal(pyro.param("centre", torch.zeros(())), known))
        with pyro.plate("row", 8):
            pyro.sample("y", dist.Normal(m, 1.0), obs=batch["y"])

    fit = zoo.fit(
        zoo.Pair(model, AutoDelta(model)), BATCH, steps=20, learning_rate=0.1, weight_decay=0.1, compile=False
    )
    assert float(fit.params["level"]) == pytest.approx(0.5, abs=1e-6)
    assert float(fit.params["centre"]) > 0.5
    ok = zoo.check(model, AutoDelta(model), BATCH, compile=False)
    assert all(step.ok for step in ok), ok
