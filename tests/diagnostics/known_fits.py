"""Posteriors with known answers, made without fitting anything; see also :mod:`zoo.diagnostics.known`."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from zoo.diagnostics.known import dataset, sampled, variational

__all__ = ["dataset", "normal_chains", "normal_loo", "normal_mean", "sampled", "variational"]


def normal_mean(*, scale_factor=1.0, shift=0.0, rows=30, noise=1.0, seed=0, **options):
    """mu ~ N(0, 1), y_n ~ N(mu, 1) with its exact posterior as guide, made wrong by a factor or a shift."""
    y = 0.5 + noise * torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    data = dataset({"y": y}, **options)
    mean, scale = y.sum() / (rows + 1), (rows + 1) ** -0.5

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    def guide(batch):
        pyro.sample("mu", dist.Normal(mean + shift * scale, scale * scale_factor))

    return model, guide, data


def normal_chains(data, *, chains=4, draws=500, seed=0):
    y = data.train["y"]
    mean, scale = y.sum() / (len(y) + 1), (len(y) + 1) ** -0.5
    noise = torch.randn(chains, draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"mu": mean + scale * noise}


def normal_loo(y):
    """Exact leave-one-out log densities of the model of ``normal_mean``."""
    rows = len(y)
    mean = (y.sum() - y) / rows  # rows - 1 data and the prior
    return dist.Normal(mean, (1 + 1 / rows) ** 0.5).log_prob(y)
