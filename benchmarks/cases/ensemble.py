"""Deep ensemble of five, 64-100-100-10: the zoo's own pair, and the same by hand, one batched product a layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cases import SviCase
from benchmarks.cases._placed import decay, placed, rows, weights

SIZES = (64, 100, 100, 10)
NUM, ROWS, MEMBERS = 5_000, 128, 5


def batch() -> dict[str, np.ndarray]:
    """Return 128 rows of simulated data."""
    return rows(SIZES, ROWS)


def initial() -> dict[str, np.ndarray]:
    """Return weights and biases of all members."""
    return weights(SIZES, MEMBERS)


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    from zoo.models.deep_ensemble import Hyper, build

    return placed(build, Hyper(hidden=SIZES[1:-1], num_members=MEMBERS), SIZES, NUM, start)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the sum of the members' negative log joint densities."""
    from torch.nn import functional as F

    h = batch["x"].expand(MEMBERS, -1, -1)
    for l, _ in enumerate(pairwise(SIZES)):
        h = h @ p[f"W_{l}_loc"] + p[f"b_{l}_loc"][:, None]
        h = h.relu() if l < 2 else h
    fit = F.cross_entropy(h.flatten(0, 1), batch["y"].repeat(MEMBERS), reduction="sum")
    return decay(p, SIZES) + fit * (NUM / ROWS)


CASE = SviCase(
    title="Deep ensemble of five networks 64-100-100-10, batch of 128",
    batch=batch,
    initial=initial,
    positive=frozenset(),
    pyro=pyro_pair,
    torch=torch_loss,
    contenders=("zoo", "torch", "torch_compile"),
)
