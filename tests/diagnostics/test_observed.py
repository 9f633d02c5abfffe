"""What of a model becomes which group: models without latents, plates without a size, reparametrised latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from torch.distributions import constraints

import zoo

COINS = torch.tensor([1.0] * 6 + [0.0] * 4)


def test_a_model_without_latents(tmp_path: Path) -> None:
    def model(batch: Any) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("coin", len(batch["size"])):
            pyro.sample("y", dist.Bernoulli(p), obs=batch.get("y"))

    def guide(batch: Any) -> None:
        pass

    batch = {"y": COINS, "size": torch.ones(10)}
    fit = zoo.fit(zoo.Pair(model, guide), batch, steps=400, learning_rate=0.05, compile=False)
    assert float(fit.params["p"]) == pytest.approx(0.6, abs=0.01)
    assert fit.num_latents == 0
    assert fit.draws(3) == {}
    found = fit.predict(n=500)
    assert found.samples["y"].shape == found.log_prob["y"].shape == (500, 10)
    assert float(found.samples["y"].mean()) == pytest.approx(0.6, abs=0.05)
    assert found.samples["y"].std(0).min() > 0  # each draw is another
    assert fit.predict({"size": torch.ones(3)}, n=4).samples["y"].shape == (4, 3)
    groups: Any = fit.to_arviz(num_draws=20)
    assert groups["log_likelihood"]["y"].shape == groups["posterior_predictive"]["y"].shape == (1, 20, 10)
    np.testing.assert_allclose(groups["log_likelihood"]["y"][0, 0, 0], np.log(0.6), atol=0.02)
    report = fit.report(tmp_path / "page.html", num_draws=50)
    assert "nothing is latent" in Path(report.page).read_text(encoding="utf-8")
    assert fit.diagnosis is not None
    checks = {c.name: c for c in fit.diagnosis.checks}
    assert not any(c.error for c in checks.values())
    assert checks["loo"].verdict == "not run"
    assert "no latents" in checks["loo"].explanation
    assert fit.diagnosis.parameters == "not examined"


def test_a_plate_without_a_size_takes_that_of_the_data(tmp_path: Path) -> None:
    def model(batch: Any) -> None:
        p = pyro.sample("p", dist.Beta(10.0, 10.0))
        with pyro.plate("coin"):
            pyro.sample("y", dist.Bernoulli(p), obs=batch["y"])

    fit = zoo.fit(zoo.Pair(model, AutoNormal(model)), {"y": COINS}, steps=20, compile=False)
    draws = fit.draws(4)
    expected = dist.Bernoulli(draws["p"][:, None]).log_prob(COINS)
    torch.testing.assert_close(fit.log_likelihood(draws=draws)["y"], expected)
    found = fit.predict(n=5)
    assert found.samples["y"].shape == found.means["y"].shape == found.log_prob["y"].shape == (5, 10)
    assert not torch.equal(found.samples["y"], found.samples["y"][:, :1].expand(5, 10))
    groups: Any = fit.to_arviz(num_draws=50)
    assert groups["posterior_predictive"]["y"].shape == groups["log_likelihood"]["y"].shape == (1, 50, 10)
    assert np.isfinite(az.loo(groups).elpd_loo)
    assert fit.report(tmp_path / "page.html", num_draws=50).page


def test_one_value_that_stands_for_several() -> None:
    def model(batch: Any) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 3):
            pyro.sample("y", dist.Normal(m, batch["sd"]), obs=batch["y"])

    batch = {"y": torch.tensor(0.5), "sd": torch.ones(3)}
    fit = zoo.fit(zoo.Pair(model, AutoNormal(model)), batch, steps=5, compile=False)
    groups: Any = fit.to_arviz(num_draws=20)
    assert groups["observed_data"]["y"].dims == ("row",)
    assert groups["observed_data"]["y"].values.tolist() == [0.5] * 3
    for name in ("log_likelihood", "posterior_predictive"):
        assert groups[name]["y"].shape == (1, 20, 3)


def test_replicates_of_another_shape_than_the_data(tmp_path: Path) -> None:
    def model(batch: Any) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        first = pyro.sample("first", dist.Normal(m, 1.0), obs=batch["first"])
        rows = 3 if bool((first == batch["first"]).all()) else 5
        with pyro.plate("row", rows):
            pyro.sample("y", dist.Normal(m, 1.0), obs=batch["y"] if rows == 3 else None)

    batch = {"first": torch.tensor(0.1), "y": torch.tensor([0.3, 0.1, -0.2])}
    fit = zoo.fit(zoo.Pair(model, AutoNormal(model)), batch, steps=5, compile=False)
    groups: Any = fit.to_arviz(num_draws=20)
    assert groups["observed_data"]["y"].shape == (3,)
    assert groups["log_likelihood"]["y"].shape == (1, 20, 3)
    assert groups["posterior_predictive"]["y"].shape == (1, 20, 5)
    assert fit.report(tmp_path / "page.html", num_draws=50).page


def test_groups_of_a_reparametrised_model() -> None:
    def model(batch: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("school", 4):
            theta = pyro.sample("theta", dist.Normal(mu, 2.0))
            pyro.sample("y", dist.Normal(theta, batch["sd"]), obs=batch["y"])

    changed = poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
    batch = {"y": torch.tensor([28.0, 8.0, -3.0, 7.0]), "sd": torch.tensor([15.0, 10.0, 16.0, 11.0])}
    fit = zoo.fit(zoo.Pair(changed, AutoNormal(changed)), batch, steps=50, compile=False)
    groups: Any = fit.to_arviz(num_draws=50)
    posterior = groups["posterior"]
    assert set(posterior.data_vars) == {"mu", "theta", "theta_decentered"}
    np.testing.assert_allclose(
        posterior["theta"], posterior["mu"].values[..., None] + 2 * posterior["theta_decentered"], rtol=1e-4, atol=1e-4
    )
    assert set(groups["prior"].data_vars) == {"mu", "theta", "theta_decentered"}
    for name in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        assert set(groups[name].data_vars) == {"y"}
    assert np.isfinite(az.loo(groups).elpd_loo)
