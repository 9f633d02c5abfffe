"""MAP network, 64-100-100-10: the zoo's own pair, and the same written by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cases import SviCase
from benchmarks.cases._placed import decay, placed, rows, weights

SIZES = (64, 100, 100, 10)
NUM, ROWS = 5_000, 128


def batch() -> dict[str, np.ndarray]:
    """Return 128 rows of simulated data."""
    return rows(SIZES, ROWS)


def initial() -> dict[str, np.ndarray]:
    """Return weights and biases."""
    return weights(SIZES)


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    from zoo.models.map_network import Hyper, build

    return placed(build, Hyper(hidden=SIZES[1:-1]), SIZES, NUM, start)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative log joint density."""
    from torch.nn import functional as F

    h = batch["x"]
    for l, _ in enumerate(pairwise(SIZES)):
        h = h @ p[f"W_{l}_loc"] + p[f"b_{l}_loc"]
        h = h.relu() if l < 2 else h
    return decay(p, SIZES) + F.cross_entropy(h, batch["y"], reduction="sum") * (NUM / ROWS)


CASE = SviCase(
    title="MAP network 64-100-100-10, batch of 128",
    batch=batch,
    initial=initial,
    positive=frozenset(),
    pyro=pyro_pair,
    torch=torch_loss,
    contenders=("zoo", "torch", "torch_compile"),
)
