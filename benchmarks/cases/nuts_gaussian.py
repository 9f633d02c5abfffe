"""A Gaussian in 200 dimensions with independent coordinates, whose standard deviations run from 0.1 to 10."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import NutsCase

SIZE = 200


def batch() -> dict[str, np.ndarray]:
    """Return the standard deviations."""
    return {"scale": np.logspace(-1, 1, SIZE)}


def pyro_model(batch: Any) -> None:
    """Write the model in Pyro."""
    import pyro
    import pyro.distributions as dist

    pyro.sample("z", dist.Normal(0.0, batch["scale"]).to_event(1))


def numpyro_model(batch: Any) -> None:
    """Write the model in NumPyro."""
    import numpyro
    import numpyro.distributions as dist

    numpyro.sample("z", dist.Normal(0.0, batch["scale"]).to_event(1))


CASE = NutsCase(
    title="Gaussian in 200 dimensions, scales from 0.1 to 10",
    batch=batch,
    pyro=pyro_model,
    numpyro=numpyro_model,
    sites=("z",),
)
