"""Networks of the zoo as contenders, with the parameters that a case asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np


def rows(sizes: tuple[int, ...], num: int) -> dict[str, np.ndarray]:
    """Return simulated rows.

    Args:
        sizes: Features, hidden units and classes.
        num: Rows.

    Returns:
        Features, classes and positions.
    """
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(num, sizes[0])).astype(np.float32),
        "y": rng.integers(0, sizes[-1], num),
        "index": np.arange(num),
    }


def weights(sizes: tuple[int, ...], *copies: int) -> dict[str, np.ndarray]:
    """Return initial values of point estimates.

    Args:
        sizes: Features, hidden units and classes.
        *copies: Shape in front of that of each.

    Returns:
        ``W_l_loc`` and ``b_l_loc``.
    """
    rng = np.random.default_rng(1)
    found = {}
    for l, (a, b) in enumerate(pairwise(sizes)):
        for site, shape in ((f"W_{l}", (a, b)), (f"b_{l}", (b,))):
            found[f"{site}_loc"] = (0.1 * rng.normal(size=(*copies, *shape))).astype(np.float32)
    return found


def decay(p: Any, sizes: tuple[int, ...], *, width: float = 8.0, kept: Any = lambda l: 1.0) -> Any:
    """Return the negative log density of point estimates under the prior of the networks of the zoo.

    Args:
        p: Parameters.
        sizes: Features, hidden units and classes.
        width: Of the prior.
        kept: Layer -> share of its units that is kept, which scales the squares.

    Returns:
        In nats.
    """
    total, constant = 0.0, 0.5 * math.log(2 * math.pi)
    for l, (a, b) in enumerate(pairwise(sizes)):
        w, c = p[f"W_{l}_loc"], p[f"b_{l}_loc"]
        scale = width / a**0.5
        copies = w.numel() // (a * b)
        total = total + 0.5 * kept(l) * (w * w).sum() / scale**2 + 0.5 * (c * c).sum()
        total = total + copies * (a * b * (math.log(scale) + constant) + b * constant)
    return total


def placed(build: Callable[..., Any], hyper: Any, sizes: tuple[int, ...], num: int, start: Any) -> Any:
    """Return a network of the zoo as a pair, its parameters starting as asked.

    Args:
        build: Of the method.
        hyper: Its hyper-parameters.
        sizes: Features, hidden units and classes.
        num: Rows of the training data.
        start: Parameter -> initial value.

    Returns:
        The pair.
    """
    import pyro
    import torch
    from pyro.distributions import constraints

    from zoo.types import Dataset

    rows = {"x": torch.zeros(num, sizes[0]), "y": torch.zeros(num, dtype=torch.int64), "index": torch.arange(num)}
    data = Dataset(name="simulated", task="classification", train=rows, extra={"num_classes": sizes[-1]})
    pair = build(data, hyper)

    def guide(batch: Any) -> Any:
        for name, value in start.items():
            support = constraints.softplus_positive if name.endswith("_scale") else constraints.real
            pyro.param(name, value, constraint=support)
        return pair.guide(batch)

    return pair._replace(guide=guide)
