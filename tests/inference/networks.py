"""The 64-50-50-10 Bayesian network of the speed and equality tests."""

from __future__ import annotations

from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

SIZES = (64, 50, 50, 10)
NUM, ROWS = 10_000, 128


def batch(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM, SIZES[0], generator=generator, dtype=dtype)
    y = torch.randint(0, SIZES[-1], (NUM,), generator=generator)
    return {"x": x, "y": y, "index": torch.arange(NUM)}


def model(batch):
    h = batch["x"]
    for i, (a, b) in enumerate(pairwise(SIZES)):
        w = pyro.sample(f"w{i}", dist.Normal(torch.zeros(a, b), 1.0).to_event(2))
        c = pyro.sample(f"b{i}", dist.Normal(torch.zeros(b), 1.0).to_event(1))
        h = h @ w + c
        h = h.relu() if i < 2 else h
    with pyro.plate("datum", NUM, subsample=batch["index"]):
        pyro.sample("y", dist.Categorical(logits=h), obs=batch["y"])


def guide(batch):
    for i, (a, b) in enumerate(pairwise(SIZES)):
        for site, shape in ((f"w{i}", (a, b)), (f"b{i}", (b,))):
            loc = pyro.param(f"{site}_loc", lambda shape=shape: 0.1 * torch.randn(shape))
            scale = pyro.param(
                f"{site}_scale", lambda shape=shape: torch.full(shape, 0.05), constraint=constraints.softplus_positive
            )
            pyro.sample(site, dist.Normal(loc, scale).to_event(len(shape)))
