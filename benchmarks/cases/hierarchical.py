"""Hierarchical regression, 5,000 rows in 74 groups: the zoo's own pair, and the same written by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

ROWS, FEATURES, GROUPS = 5_000, 3, 74
MU, BETA, TAU = 5.0, 2.0, 1.0  # prior scales
_SHAPES: dict[str, tuple[int, ...]] = {"mu": (), "tau": (), "beta": (FEATURES,), "sigma": (), "alpha_trans": (GROUPS,)}
_POSITIVE = ("tau", "sigma")
_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def batch() -> dict[str, np.ndarray]:
    """Return simulated rows."""
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(ROWS, FEATURES)), rng.integers(0, GROUPS, ROWS)
    y = x @ np.array([0.5, -0.3, 0.0]) + rng.normal(size=GROUPS)[group] + rng.normal(size=ROWS)
    return {"x": x.astype(np.float32), "y": y.astype(np.float32), "group": group, "index": np.arange(ROWS)}


def initial() -> dict[str, np.ndarray]:
    """Return means and standard deviations of the guide."""
    found = {}
    for site, shape in _SHAPES.items():
        found[f"{site}_loc"] = np.full(shape, -0.5 if site in _POSITIVE else 0.1, np.float32)
        found[f"{site}_scale"] = np.full(shape, 0.1, np.float32)
    return found


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    import pyro
    import torch
    from pyro.distributions import constraints

    from zoo.models.hierarchical_regression import Hyper, build
    from zoo.types import Dataset

    rows = {k: torch.from_numpy(v) for k, v in batch().items()}
    coords = {"group": [str(g) for g in range(GROUPS)]}
    data = Dataset(name="simulated", task="regression", train=rows, coords=coords)
    pair: Any = build(data, Hyper(mu_scale=MU, beta_scale=BETA, tau_scale=TAU))

    def guide(batch: Any) -> Any:
        for name, value in start.items():
            support = constraints.softplus_positive if name.endswith("_scale") else constraints.real
            pyro.param(name, value, constraint=support)
        return pair.guide(batch)

    return pair.model, guide


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch

    z, cost = {}, 0.0
    for site in _SHAPES:
        loc, scale = p[f"{site}_loc"], p[f"{site}_scale"]
        noise = torch.randn_like(loc)
        z[site] = loc + scale * noise
        cost = cost - (scale.log() + 0.5 * noise * noise + _HALF_LOG_TAU).sum()
        if site in _POSITIVE:
            cost = cost - z[site]  # the Jacobian of a log-normal
            z[site] = z[site].exp()
    for value, scale in ((z["mu"], MU), (z["beta"], BETA), (z["alpha_trans"], 1.0)):
        cost = cost + (0.5 * (value / scale) ** 2 + math.log(scale) + _HALF_LOG_TAU).sum()
    for value, scale in ((z["tau"], TAU), (z["sigma"], 1.0)):
        cost = cost + 0.5 * (value / scale) ** 2 + math.log(scale) + _HALF_LOG_TAU - math.log(2)
    alpha = z["mu"] + z["tau"] * z["alpha_trans"]
    eta = alpha[batch["group"]] + batch["x"] @ z["beta"]
    error = (batch["y"] - eta) / z["sigma"]
    return cost + (0.5 * error * error).sum() + len(eta) * (z["sigma"].log() + _HALF_LOG_TAU)


CASE = SviCase(
    title="Hierarchical regression, 5,000 rows in 74 groups, all rows a step",
    batch=batch,
    initial=initial,
    positive=frozenset(n for n in initial() if n.endswith("_scale")),
    pyro=pyro_pair,
    torch=torch_loss,
    contenders=("zoo", "torch", "torch_compile"),
)
