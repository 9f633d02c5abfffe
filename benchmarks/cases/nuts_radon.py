"""A hierarchical regression like that of the radon data: houses in counties, simulated."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import NutsCase

COUNTIES, HOUSES = 85, 919


def batch() -> dict[str, np.ndarray]:
    """Return houses with their county, floor and log radon."""
    rng = np.random.default_rng(0)
    county = np.sort(rng.choice(COUNTIES, HOUSES, p=rng.dirichlet(np.full(COUNTIES, 0.8))))
    floor = (rng.random(HOUSES) < 0.17).astype(float)
    intercept, slope = rng.normal(1.5, 0.35, COUNTIES), rng.normal(-0.7, 0.35, COUNTIES)
    y = intercept[county] + slope[county] * floor + rng.normal(0.0, 0.75, HOUSES)
    return {"county": county, "floor": floor, "y": y}


def pyro_model(batch: Any) -> None:
    """Write the model in Pyro."""
    import pyro
    import pyro.distributions as dist

    mu_a = pyro.sample("mu_a", dist.Normal(0.0, 2.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 2.0))
    sd_a = pyro.sample("sd_a", dist.HalfNormal(1.0))
    sd_b = pyro.sample("sd_b", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("county", COUNTIES):
        a = mu_a + sd_a * pyro.sample("a", dist.Normal(0.0, 1.0))
        b = mu_b + sd_b * pyro.sample("b", dist.Normal(0.0, 1.0))
    at = batch["county"]
    with pyro.plate("house", HOUSES):
        pyro.sample("y", dist.Normal(a[at] + b[at] * batch["floor"], sigma), obs=batch["y"])


def numpyro_model(batch: Any) -> None:
    """Write the model in NumPyro."""
    import numpyro
    import numpyro.distributions as dist

    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 2.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 2.0))
    sd_a = numpyro.sample("sd_a", dist.HalfNormal(1.0))
    sd_b = numpyro.sample("sd_b", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("county", COUNTIES):
        a = mu_a + sd_a * numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = mu_b + sd_b * numpyro.sample("b", dist.Normal(0.0, 1.0))
    at = batch["county"]
    with numpyro.plate("house", HOUSES):
        numpyro.sample("y", dist.Normal(a[at] + b[at] * batch["floor"], sigma), obs=batch["y"])


CASE = NutsCase(
    title="Radon-like hierarchical regression, 919 houses in 85 counties, non-centred",
    batch=batch,
    pyro=pyro_model,
    numpyro=numpyro_model,
    sites=("mu_a", "mu_b", "sd_a", "sd_b", "sigma", "a", "b"),
    positive=frozenset({"sd_a", "sd_b", "sigma"}),
)
