"""Networks of the zoo as contenders, with the parameters that a case asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def placed(build: Callable[..., Any], hyper: Any, sizes: tuple[int, ...], num: int, start: Any) -> Any:
    """Return a network of the zoo as a pair, its parameters starting as asked.

    Args:
        build: Of the method.
        hyper: Its hyper-parameters.
        sizes: Features, hidden units and classes.
        num: Rows of the training data.
        start: Parameter -> initial value.

    Returns:
        Model and guide.
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

    return pair.model, guide
