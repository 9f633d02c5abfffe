"""Gaussian mixture whose assignments are summed out: by enumeration in Pyro, in closed form elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

ROWS, COMPONENTS = 500, 3


def batch() -> dict[str, np.ndarray]:
    """Return two clusters."""
    rng = np.random.default_rng(0)
    return {"x": np.concatenate([rng.normal(-2, 1, 200), rng.normal(2, 1, 300)]).astype(np.float32)}


def initial() -> dict[str, np.ndarray]:
    """Return the guide's parameters."""
    return {
        "concentration": np.full(COMPONENTS, 20.0, np.float32),
        "loc": np.array([-2.0, 0.1, 2.0], np.float32),
        "scale": np.full(COMPONENTS, 0.1, np.float32),
    }


def _guide(start: Any, ppl: Any, dist: Any, constraints: Any) -> Any:
    def guide(batch: Any) -> None:
        positive = constraints.softplus_positive
        ppl.sample("weights", dist.Dirichlet(ppl.param("concentration", start["concentration"], constraint=positive)))
        loc = ppl.param("loc", start["loc"])
        scale = ppl.param("scale", start["scale"], constraint=positive)
        with ppl.plate("component", COMPONENTS):
            ppl.sample("mean", dist.Normal(loc, scale))

    return guide


def pyro_pair(start: Any) -> Any:
    """Return the pair for Pyro and zoo; the assignments are enumerated."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.distributions import constraints
    from pyro.infer import config_enumerate

    def model(batch: Any) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(COMPONENTS)))
        with pyro.plate("component", COMPONENTS):
            mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("datum", ROWS):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(mean[z], 1.0), obs=batch["x"])

    return config_enumerate(model), _guide(start, pyro, dist, constraints)


def numpyro_pair(start: Any) -> Any:
    """Return the pair for NumPyro, as its users write it."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def model(batch: Any) -> None:
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(COMPONENTS)))
        with numpyro.plate("component", COMPONENTS):
            mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
        with numpyro.plate("datum", ROWS):
            mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mean, 1.0))
            numpyro.sample("x", mixture, obs=batch["x"])

    return model, _guide(start, numpyro, dist, constraints)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch

    guide = torch.distributions.Dirichlet(p["concentration"], validate_args=False)
    weights = guide.rsample()
    noise = torch.randn_like(p["loc"])
    mean = p["loc"] + p["scale"] * noise
    kl = guide.log_prob(weights) - math.lgamma(COMPONENTS)
    kl = kl + (0.5 * (mean / 5.0) ** 2 - 0.5 * noise * noise - p["scale"].log() + math.log(5.0)).sum()
    joint = weights.log() - 0.5 * (batch["x"][:, None] - mean) ** 2 - 0.5 * math.log(2 * math.pi)
    return kl - joint.logsumexp(-1).sum()


CASE = SviCase(
    title="Gaussian mixture, 500 rows, 3 components, assignments summed out",
    batch=batch,
    initial=initial,
    positive=frozenset({"concentration", "scale"}),
    pyro=pyro_pair,
    numpyro=numpyro_pair,
    torch=torch_loss,
    estimator="enum",
)
