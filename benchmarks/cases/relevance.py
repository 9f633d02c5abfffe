"""Empirical Bayes dropout, 64-100-100-10: the zoo's own pair, and the same written by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cases import SviCase
from benchmarks.cases._placed import placed, rows

SIZES = (64, 100, 100, 10)
NUM, ROWS = 5_000, 128
LAYERS = tuple(enumerate(pairwise(SIZES)))
SHAPE, RATE = 1.2, 1e-5


def batch() -> dict[str, np.ndarray]:
    """Return 128 rows of simulated data."""
    return rows(SIZES, ROWS)


def initial() -> dict[str, np.ndarray]:
    """Return means and standard deviations of all weights and biases."""
    rng = np.random.default_rng(1)
    found = {}
    for l, (a, b) in LAYERS:
        for site, shape in ((f"W_{l}", (a, b)), (f"b_{l}", (b,))):
            found[f"{site}_loc"] = (0.1 * rng.normal(size=shape)).astype(np.float32)
            found[f"{site}_scale"] = np.full(shape, 0.05, np.float32)
    return found


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    from zoo.models.empirical_bayes_dropout import Hyper, build

    hyper = Hyper(hidden=SIZES[1:-1], concentration=SHAPE, rate=RATE, temperature=1.0)
    return placed(build, hyper, SIZES, NUM, start)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch
    from torch.nn import functional as F

    constant = (SHAPE - 0.5) * (1 - math.log(2 * SHAPE - 1)) - 0.5 - SHAPE * math.log(RATE) + math.lgamma(SHAPE)
    h, cost = batch["x"], 0.0
    for l, (a, b) in LAYERS:
        mu, s, c, t = (p[f"{site}_{l}_{part}"] for site in ("W", "b") for part in ("loc", "scale"))
        variance = s * s
        cost = cost + ((SHAPE - 0.5) * (2 * RATE + mu * mu + variance).log() - s.log()).sum() + a * b * constant
        cost = cost + (0.5 * (c * c + t * t - 1) - t.log()).sum()
        mean, spread = h @ mu + c, ((h * h) @ variance + t * t).sqrt()
        h = mean + spread * torch.randn_like(mean)
        h = h.relu() if l < 2 else h
    return cost + F.cross_entropy(h, batch["y"], reduction="sum") * (NUM / ROWS)


CASE = SviCase(
    title="Empirical Bayes dropout 64-100-100-10, local reparametrisation, batch of 128",
    batch=batch,
    initial=initial,
    positive=frozenset(n for n in initial() if n.endswith("_scale")),
    pyro=pyro_pair,
    torch=torch_loss,
    estimator="mean_field",
    contenders=("zoo", "torch", "torch_compile"),
)
