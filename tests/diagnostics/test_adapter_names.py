"""Plates and sites may have any name, also those that ArviZ and NetCDF keep for themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import zoo
from zoo.types import Batch, Pair

Y = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5, -0.5])


def fitted(plate: str, site: str) -> zoo.Posterior:
    def model(batch: Batch) -> None:
        mu: Tensor = pyro.sample("mu", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate(plate, 6):
            theta = pyro.sample(site, dist.Normal(mu.sum(), 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=batch["y"])

    return zoo.fit(Pair(model, AutoNormal(model)), {"y": Y}, steps=2, compile=False)


@pytest.mark.parametrize(
    ("plate", "site", "dim", "variable"),
    [
        ("store", "theta", "store", "theta"),
        ("chain", "th/eta", "chain_plate", "th.eta"),
        ("draw", "sample", "draw_plate", "sample_site"),
        ("statistic", "chain", "statistic_plate", "chain_site"),
        ("sample", "draw", "sample_plate", "draw_site"),
        ("a/b", "a.b", "a.b_", "a.b"),
        ("mu_dim_0", "theta", "theta_dim_0", "theta"),
        ("theta_dim_0", "theta", "theta_dim_0", "theta"),
        ("unit", "theta ", "unit", "theta"),
    ],
)
def test_any_name_is_exported_and_written(plate: str, site: str, dim: str, variable: str, tmp_path: Path) -> None:
    posterior = fitted(plate, site)
    found = posterior.to_arviz(num_draws=20)
    assert found.posterior[variable].dims == ("chain", "draw", dim)
    assert found.posterior["mu"].dims == ("chain", "draw", "mu_dim_0")
    assert found.observed_data["y"].dims == found.log_likelihood["y"].dims[2:]
    draws = posterior.draws(20)[site]
    np.testing.assert_allclose(found.posterior[variable].values[0], draws.numpy(), rtol=1e-6)
    said = json.loads(found.attrs["left_out"])
    assert any(f"called '{variable}'" in text for text in said) == (site != variable)
    found.to_netcdf(tmp_path / "posterior.nc")
    posterior.save(tmp_path / "saved")
    loaded = zoo.load(tmp_path / "saved", pair=posterior.pair)
    assert torch.equal(loaded.draws(20)[site], draws)


def test_a_summary_keeps_its_dimension_beside_a_plate_of_that_name() -> None:
    found = fitted("statistic", "theta").to_arviz(num_draws=5, max_elements=4)
    assert found.posterior["theta_summary"].dims == ("chain", "draw", "statistic")
    assert list(found.posterior["statistic"].values) == ["mean", "sd", "norm", "max_abs"]


def test_a_report_is_written(tmp_path: Path) -> None:
    fitted("chain", "th/eta").report(tmp_path / "report.html", num_draws=50)
    assert "chain_plate" in (tmp_path / "report.html").read_text()
