"""Gaussian mixture whose assignments are summed out: by enumeration in Pyro, in closed form elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

ROWS, COMPONENTS = 500, 3
WEIGHTS = (0.4, 0.2, 0.4)


def batch() -> dict[str, np.ndarray]:
    """Return two clusters."""
    rng = np.random.default_rng(0)
    return {"x": np.concatenate([rng.normal(-2, 1, 200), rng.normal(2, 1, 300)]).astype(np.float32)}


def initial() -> dict[str, np.ndarray]:
    """Return the guide's parameters."""
    return {
        "mean_loc": np.array([-2.0, 0.1, 2.0], np.float32),
        "mean_scale": np.full(COMPONENTS, 0.05, np.float32),
        "width_loc": np.zeros(COMPONENTS, np.float32),
        "width_scale": np.full(COMPONENTS, 0.05, np.float32),
    }


def _guide(start: Any, ppl: Any, dist: Any, constraints: Any) -> Any:
    def guide(batch: Any) -> None:
        with ppl.plate("component", COMPONENTS):
            for site, family in (("mean", dist.Normal), ("width", dist.LogNormal)):
                loc = ppl.param(f"{site}_loc", start[f"{site}_loc"])
                name = f"{site}_scale"
                ppl.sample(site, family(loc, ppl.param(name, start[name], constraint=constraints.softplus_positive)))

    return guide


def pyro_pair(start: Any) -> Any:
    """Return the pair for Pyro and zoo; the assignments are enumerated."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.distributions import constraints
    from pyro.infer import config_enumerate

    def model(batch: Any) -> None:
        with pyro.plate("component", COMPONENTS):
            mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
            width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        with pyro.plate("datum", ROWS):
            z = pyro.sample("z", dist.Categorical(torch.tensor(WEIGHTS)))
            pyro.sample("x", dist.Normal(mean[z], width[z]), obs=batch["x"])

    return config_enumerate(model), _guide(start, pyro, dist, constraints)


def numpyro_pair(start: Any) -> Any:
    """Return the pair for NumPyro, as its users write it."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def model(batch: Any) -> None:
        with numpyro.plate("component", COMPONENTS):
            mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
            width = numpyro.sample("width", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("datum", ROWS):
            mixture = dist.MixtureSameFamily(dist.Categorical(jnp.array(WEIGHTS)), dist.Normal(mean, width))
            numpyro.sample("x", mixture, obs=batch["x"])

    return model, _guide(start, numpyro, dist, constraints)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch

    kl, values = 0.0, {}
    for site in ("mean", "width"):
        loc, scale = p[f"{site}_loc"], p[f"{site}_scale"]
        noise = torch.randn_like(loc)
        values[site] = loc + scale * noise
        kl = kl - (0.5 * noise * noise + scale.log()).sum()
    mean, log_width = values["mean"], values["width"]
    kl = kl + (0.5 * (mean / 5.0) ** 2 + math.log(5.0) + 0.5 * log_width * log_width).sum()
    error = (batch["x"][:, None] - mean) / log_width.exp()
    joint = torch.tensor(WEIGHTS).log() - 0.5 * error * error - log_width - 0.5 * math.log(2 * math.pi)
    return kl - joint.logsumexp(-1).sum()


CASE = SviCase(
    title="Gaussian mixture, 500 rows, 3 components, assignments summed out",
    batch=batch,
    initial=initial,
    positive=frozenset({"mean_scale", "width_scale"}),
    pyro=pyro_pair,
    numpyro=numpyro_pair,
    torch=torch_loss,
    estimator="enum",
)
