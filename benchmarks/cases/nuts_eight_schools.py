"""Eight schools, non-centred."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import NutsCase


def batch() -> dict[str, np.ndarray]:
    """Return the estimates and their standard errors."""
    return {
        "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    }


def pyro_model(batch: Any) -> None:
    """Write the model in Pyro."""
    import pyro
    import pyro.distributions as dist

    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = mu + tau * pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(theta, batch["sigma"]), obs=batch["y"])


def numpyro_model(batch: Any) -> None:
    """Write the model in NumPyro."""
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        theta = mu + tau * numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(theta, batch["sigma"]), obs=batch["y"])


CASE = NutsCase(
    title="Eight schools, non-centred",
    batch=batch,
    pyro=pyro_model,
    numpyro=numpyro_model,
    sites=("mu", "tau", "theta_trans"),
    positive=frozenset({"tau"}),
)
