"""Logistic regression with a semi-implicit guide: the zoo's own pair, and the same written by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

ROWS, FEATURES = 400, 30
SIZE = FEATURES + 1
NOISE, HIDDEN = 20, (64, 64)
COMPONENTS, PRIOR = 200, 2.5
LAYERS = tuple(enumerate(pairwise((NOISE, *HIDDEN, SIZE))))


def batch() -> dict[str, np.ndarray]:
    """Return simulated rows; five features matter."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES))
    score = x[:, :5] @ np.array([1.5, -1.0, 1.0, 0.5, -0.5])
    y = (rng.random(ROWS) < 1 / (1 + np.exp(-score))).astype(np.int64)
    return {"x": x.astype(np.float32), "y": y, "index": np.arange(ROWS)}


def initial() -> dict[str, np.ndarray]:
    """Return the parameters of the guide: its centre, the scales of the conditional and the mixing network."""
    rng = np.random.default_rng(1)
    found = {
        "beta_loc": np.full(SIZE, 0.1, np.float32),
        "beta_scale": np.full(SIZE, 0.2, np.float32),
    }
    for l, (a, b) in LAYERS:
        found[f"mixing_{l}_weight"] = (rng.normal(size=(a, b)) * a**-0.5).astype(np.float32)
        found[f"mixing_{l}_bias"] = np.zeros(b, np.float32)
    return found


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    import pyro
    import torch
    from pyro.distributions import constraints

    from zoo.models.doubly_semi_implicit import Hyper, build
    from zoo.types import Dataset

    hyper = Hyper(
        prior_scale=PRIOR, conditional="diagonal", num_noise=NOISE, mixing=HIDDEN, num_components=COMPONENTS,
    )  # fmt: skip
    rows = {k: torch.from_numpy(v) for k, v in batch().items()}
    data = Dataset(name="simulated", task="classification", train=rows, extra={"num_classes": 2})
    pair = build(data, hyper)

    def guide(batch: Any) -> Any:
        for name, value in start.items():
            support = constraints.softplus_positive if name.endswith("_scale") else constraints.real
            pyro.param(name, value, constraint=support)
        return pair.guide(batch)  # type: ignore[misc]

    return pair.model, guide


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative lower bound of one draw."""
    import torch
    from torch.nn import functional as F

    loc, scale = p["beta_loc"], p["beta_scale"]
    h = torch.randn(1 + COMPONENTS, NOISE)
    for l, _ in LAYERS:
        h = h @ p[f"mixing_{l}_weight"] + p[f"mixing_{l}_bias"]
        h = h.relu() if l + 1 < len(LAYERS) else h
    u = h[:1] + torch.randn_like(h[:1])  # in units of the conditional
    density = (-0.5 * (u - h).square().sum(1)).logsumexp(0) - math.log(1 + COMPONENTS) - scale.log().sum()
    beta = loc + scale * u[0]
    prior = -0.5 * (beta / PRIOR).square().sum() - SIZE * math.log(PRIOR)
    score = beta[0] + batch["x"] @ beta[1:]
    fit = F.binary_cross_entropy_with_logits(score, batch["y"].to(score.dtype), reduction="sum")
    return fit - prior + density


CASE = SviCase(
    title=f"Semi-implicit guide of a logistic regression, {ROWS} rows, {SIZE} coefficients, {COMPONENTS} components",
    batch=batch,
    initial=initial,
    positive=frozenset({"beta_scale"}),
    pyro=pyro_pair,
    torch=torch_loss,
    contenders=("zoo", "torch", "torch_compile"),
)
