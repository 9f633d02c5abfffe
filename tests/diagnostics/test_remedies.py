"""What a report proposes to try: commands that the command line takes, and calls that say the same."""

from __future__ import annotations

import dataclasses
import shlex
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import typer
from known_fits import normal_chains, normal_mean, sampled, variational

import zoo
from zoo import cli
from zoo.diagnostics import diagnose, remedies
from zoo.diagnostics.answers import Answer
from zoo.diagnostics.check import Check
from zoo.diagnostics.inference import network_weights
from zoo.diagnostics.sensitivity import parts_of_the_prior

pytestmark = pytest.mark.filterwarnings("ignore")
DOUBLE = torch.float64


def fake(**changes: Any) -> Any:
    """Return what the remedies read of a fit of a method."""
    from zoo.registry import get

    method = get("horseshoe_regression")
    settings: dict[str, Any] = {
        "name": method.name,
        "method": method,
        "hyper": method.hyper(),
        "engine": "nuts",
        "chains": {"beta0": torch.zeros(4, 10)},
        "losses": torch.empty(0),
        "data": SimpleNamespace(name="diabetes", origin="bundled", target=None, task="regression"),
        "info": {"seed": 3, "chains": 4, "tune": 1_000, "draws": 1_000, "target_accept": 0.8},
        "num_latents": 24,
    }
    return SimpleNamespace(**{**settings, **changes})


def check(name: str, verdict: Any = "fail", **value: float) -> Check:
    """Return a check that speaks against a fit."""
    return Check(name=name, title=f"{name}?", about="parameters", verdict=verdict, value=value, explanation="Bad.")


def tried(posterior: Any, *checks: Check, name: str = "fit") -> Answer:
    """Return an answer with what to try."""
    answer = Answer(name=name, question="?", use="do not use", reason="Bad.", checks=tuple(c.name for c in checks))
    return remedies.advised(posterior, answer, checks)


def parses(command: str) -> dict[str, Any]:
    """Return the options of a command as ``zoo fit`` reads them; fails where it knows one not."""
    words = shlex.split(command)
    assert words[:2] == ["zoo", "fit"]
    fit: Any = typer.main.get_command(cli.app)
    sub = fit.get_command(None, "fit")
    return dict(sub.make_context("fit", words[2:], resilient_parsing=False).params)


def test_every_option_without_a_value_is_known() -> None:
    """Or the word after it would be taken for its value, and a command would lose its method."""
    group: Any = typer.main.get_command(cli.app)
    options = [p for p in group.get_command(None, "fit").params if p.param_type_name == "option"]
    flags = {name for p in options if p.is_flag for name in (*p.opts, *p.secondary_opts)}
    assert flags - {"--help"} <= remedies._FLAGS


def test_another_engine_drops_the_flags_of_the_first() -> None:
    told = "zoo fit horseshoe_regression --data diabetes --no-retry --diagonal-mass-matrix --draws 50"
    nuts = fake(info={"command": told, "draws": 50})
    assert remedies.fit_command(nuts, {"engine": "svi"}) == (
        "zoo fit horseshoe_regression --data diabetes --engine svi"
    )


def test_divergences_ask_for_smaller_steps() -> None:
    found = tried(fake(), check("divergences"))
    assert found.command == ("zoo fit horseshoe_regression --data diabetes --engine nuts --seed 3 --target-accept 0.95")
    assert found.python == ("zoo.fit('horseshoe_regression', 'diabetes', engine='nuts', seed=3, target_accept=0.95)")
    assert parses(found.command)["target_accept"] == 0.95
    again = tried(fake(info={"target_accept": 0.95}), check("divergences"))
    assert parses(again.command)["target_accept"] == 0.99


def test_short_chains_ask_for_longer_ones() -> None:
    draws = tried(fake(), check("ess", "warn", **{"smallest bulk ESS": 210.0}))
    assert parses(draws.command)["draws"] == 3_000
    mixed = parses(tried(fake(), check("r_hat", "warn")).command)
    assert (mixed["tune"], mixed["draws"]) == (2_000, 2_000)


def test_an_optimiser_that_has_not_arrived_asks_for_more_steps_or_smaller_ones() -> None:
    svi = fake(
        engine="svi", chains=None, losses=torch.zeros(500), info={"steps": 500, "recipe": {"learning_rate": 0.03}}
    )
    falling = {"expected gain in nats": 9.0, "99% low": 8.0, "99% high": 10.0}
    assert parses(tried(svi, check("optimiser_stationarity", **falling)).command)["steps"] == 1_000
    rising = {k: -v for k, v in falling.items()}
    assert parses(tried(svi, check("optimiser_stationarity", **rising)).command)["learning_rate"] == 0.01


def test_a_poor_guide_asks_for_the_other_engine_and_drops_what_only_the_first_takes() -> None:
    told = (
        "zoo fit horseshoe_regression --data 'my file.csv' --target y --engine svi --steps 500 --out runs/a --overwrite"
    )
    svi = fake(engine="svi", chains=None, losses=torch.zeros(500), info={"command": told, "steps": 500})
    svi.data = SimpleNamespace(name="my file", origin="user", target=None, task="regression")
    found = tried(svi, check("pareto_k"), name="parameters")
    assert shlex.split(found.command) == [
        "zoo", "fit", "horseshoe_regression", "--data", "my file.csv", "--target", "y", "--engine", "nuts",
    ]  # fmt: skip
    parses(found.command)
    assert found.python == "zoo.fit('horseshoe_regression', posterior.data, engine='nuts')"


def test_a_conflict_with_the_prior_asks_for_a_wider_one() -> None:
    found = tried(
        fake(), check("prior_predictive_check", "warn"),
        dataclasses.replace(check("power_scaling", "warn"), value={"of": "beta0"}), name="parameters",
    )  # fmt: skip
    assert parses(found.command)["hyper"] == ["intercept_scale=10.0"]
    assert "hyper={'intercept_scale': 10.0}" in found.python


def test_no_command_for_what_the_command_line_cannot_repeat() -> None:
    """Data that were handed over in Python have no name that another process knows; a pair has none either."""
    handed = fake()
    handed.data = SimpleNamespace(name="mine", origin="user", target=None, task="regression")
    found = tried(handed, check("divergences"))
    assert found.command == ""
    assert "target_accept=0.95" in found.python
    model, _, data = normal_mean()
    chains = normal_chains(data)
    chains["mu"][2:] += 5
    first = diagnose(sampled(model, data, chains), num_draws=50).answers[0]
    assert first.use == "do not use"
    assert first.command == ""
    assert first.python.startswith("zoo.fit(pair, posterior.data, engine='nuts'")


def test_a_pair_with_a_poor_guide_is_sampled() -> None:
    posterior = variational(*normal_mean(shift=4.0))
    found = diagnose(posterior, checks=["pareto_k"], num_draws=300).answers[1]
    assert (found.use, found.command) == ("do not use", "")
    assert found.python == "zoo.fit(zoo.Pair(model), posterior.data, engine='nuts')"


# ---------------------------------------------------------------------------------------- what is not to be read
def hidden(width: int = 5) -> Any:
    """Return an untrained fit of a network with latent weights and a latent noise."""

    def model(batch: Any) -> None:
        first = pyro.sample("a", dist.Normal(torch.zeros(3, width), 1.0).to_event(2))
        shift = pyro.sample("b", dist.Normal(torch.zeros(width), 1.0).to_event(1))
        second = pyro.sample("c", dist.Normal(torch.zeros(width), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(()), 1.0))
        with pyro.plate("datum", 20, subsample=batch["index"]):
            pyro.sample("y", dist.Normal((batch["x"] @ first + shift).tanh() @ second, sigma), obs=batch.get("y"))

    def guide(batch: Any) -> None:
        pyro.sample("a", dist.Normal(torch.zeros(3, width), 1.0).to_event(2))
        pyro.sample("b", dist.Normal(torch.zeros(width), 1.0).to_event(1))
        pyro.sample("c", dist.Normal(torch.zeros(width), 1.0).to_event(1))
        pyro.sample("sigma", dist.LogNormal(torch.zeros(()), 1.0))

    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    return model, guide, x


def test_weights_of_a_network_are_known_by_what_they_compute() -> None:
    from zoo.diagnostics.known import dataset

    model, guide, x = hidden()
    posterior = variational(model, guide, dataset({"x": x, "y": x[:, 0]}))
    assert network_weights(posterior) == ["a", "b", "c"]
    answers = diagnose(posterior, checks=["pareto_k", "predictive_check"], num_draws=50).answers
    assert answers[1].use == "not meant to be read"


def test_coefficients_and_components_are_no_weights_of_a_network() -> None:
    from zoo.diagnostics.known import dataset

    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)

    def regression(batch: Any) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        scale = pyro.sample("scale", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("datum", 20, subsample=batch["index"]):
            pyro.sample("y", dist.Normal((batch["x"] * scale) @ beta.sum(-1), 1.0), obs=batch.get("y"))

    def mixture(batch: Any) -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(4)))
        at = pyro.sample("at", dist.Normal(torch.zeros(4, 3), 1.0).to_event(2))
        shift = pyro.sample("shift", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        means = batch["x"] @ at.mT + shift
        with pyro.plate("datum", 20, subsample=batch["index"]):
            parts = dist.Normal(means, 1.0)
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(share.expand(20, 4)), parts), obs=batch.get("y"))

    for model in (regression, mixture):
        posterior = variational(model, pyro.poutine.block(model, hide=["y"]), dataset({"x": x, "y": x[:, 0]}))
        assert network_weights(posterior) == []


@pytest.mark.parametrize("centred", [True, False])
def test_scales_of_shrinkage_are_parts_of_the_prior(centred: bool) -> None:
    from zoo.diagnostics.known import dataset

    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)

    def model(batch: Any) -> None:
        tau = pyro.sample("tau", dist.HalfCauchy(torch.ones(())))
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.ones(())))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        raw = pyro.sample("raw", dist.Normal(torch.zeros(3), tau if centred else 1.0).to_event(1))
        beta = raw if centred else tau * raw
        with pyro.plate("datum", 20, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu + batch["x"] @ beta, sigma), obs=batch.get("y"))

    posterior = variational(model, pyro.poutine.block(model, hide=["y"]), dataset({"x": x, "y": x[:, 0]}))
    found = parts_of_the_prior(posterior, posterior._prepare(None))
    assert found == ({"tau"} if centred else {"tau", "raw"})


def test_a_call_is_python() -> None:
    compile(tried(fake(), check("r_hat")).python, "<call>", "eval")
    assert callable(zoo.fit)
