"""The 64-50-50-10 Bayesian network: dense layers, a normal mean field, ten classes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

SIZES = (64, 50, 50, 10)
NUM, ROWS = 10_000, 128
LAYERS = tuple(enumerate(pairwise(SIZES)))


def batch() -> dict[str, np.ndarray]:
    """Return 128 rows of simulated data."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(ROWS, SIZES[0])).astype(np.float32),
        "y": rng.integers(0, SIZES[-1], ROWS),
        "index": np.arange(ROWS),
    }


def initial() -> dict[str, np.ndarray]:
    """Return means and standard deviations of all weights and biases."""
    rng = np.random.default_rng(1)
    found = {}
    for i, (a, b) in LAYERS:
        for site, shape in ((f"w{i}", (a, b)), (f"b{i}", (b,))):
            found[f"{site}_loc"] = (0.1 * rng.normal(size=shape)).astype(np.float32)
            found[f"{site}_scale"] = np.full(shape, 0.05, np.float32)
    return found


def pyro_pair(start: Any) -> Any:
    """Return the pair for Pyro and zoo."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.distributions import constraints

    def model(batch: Any) -> None:
        h = batch["x"]
        for i, (a, b) in LAYERS:
            w = pyro.sample(f"w{i}", dist.Normal(torch.zeros(a, b), 1.0).to_event(2))
            c = pyro.sample(f"b{i}", dist.Normal(torch.zeros(b), 1.0).to_event(1))
            h = h @ w + c
            h = h.relu() if i < 2 else h
        with pyro.plate("datum", NUM, subsample=batch["index"]):
            pyro.sample("y", dist.Categorical(logits=h), obs=batch["y"])

    def guide(batch: Any) -> None:
        for i, _ in LAYERS:
            for site in (f"w{i}", f"b{i}"):
                loc = pyro.param(f"{site}_loc", start[f"{site}_loc"])
                scale = pyro.param(f"{site}_scale", start[f"{site}_scale"], constraint=constraints.softplus_positive)
                pyro.sample(site, dist.Normal(loc, scale).to_event(loc.ndim))

    return model, guide


def numpyro_pair(start: Any) -> Any:
    """Return the pair for NumPyro."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def model(batch: Any) -> None:
        h = batch["x"]
        for i, (a, b) in LAYERS:
            w = numpyro.sample(f"w{i}", dist.Normal(jnp.zeros((a, b)), 1.0).to_event(2))
            c = numpyro.sample(f"b{i}", dist.Normal(jnp.zeros(b), 1.0).to_event(1))
            h = h @ w + c
            h = jax.nn.relu(h) if i < 2 else h
        with numpyro.handlers.scale(scale=NUM / ROWS), numpyro.plate("datum", ROWS):
            numpyro.sample("y", dist.Categorical(logits=h), obs=batch["y"])

    def guide(batch: Any) -> None:
        for i, _ in LAYERS:
            for site in (f"w{i}", f"b{i}"):
                loc = numpyro.param(f"{site}_loc", start[f"{site}_loc"])
                scale = numpyro.param(f"{site}_scale", start[f"{site}_scale"], constraint=constraints.softplus_positive)
                numpyro.sample(site, dist.Normal(loc, scale).to_event(loc.ndim))

    return model, guide


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch
    from torch.nn import functional as F

    h, kl = batch["x"], 0.0
    for i, _ in LAYERS:
        draws = []
        for site in (f"w{i}", f"b{i}"):
            loc, scale = p[f"{site}_loc"], p[f"{site}_scale"]
            noise = torch.randn_like(loc)
            value = loc + scale * noise
            kl = kl + (0.5 * (value * value - noise * noise) - scale.log()).sum()
            draws.append(value)
        h = h @ draws[0] + draws[1]
        h = h.relu() if i < 2 else h
    return kl + F.cross_entropy(h, batch["y"], reduction="sum") * (NUM / ROWS)


CASE = SviCase(
    title="Bayesian network 64-50-50-10, normal mean field, batch of 128",
    batch=batch,
    initial=initial,
    positive=frozenset(n for n in initial() if n.endswith("_scale")),
    pyro=pyro_pair,
    numpyro=numpyro_pair,
    torch=torch_loss,
)
