"""What a model of posteriordb is here: a Pyro model, its batch, and the way to the Stan program's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from zoo.types import Batch

__all__ = ["Built", "Data", "vector"]

Data: TypeAlias = Mapping[str, Any]


class Built(NamedTuple):
    """A model on its data.

    Args:
        model: Pyro model of one batch.
        batch: The data, in float64.
        parameters: Latents by site, ``(*sample, ...)`` -> the Stan program's parameters, ``(*sample, ...)``.
    """

    model: Callable[[Batch], Any]
    batch: dict[str, Tensor]
    parameters: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict


def vector(values: Any) -> Tensor:
    """Return data as a tensor in float64.

    Args:
        values: Numbers, nested as the tensor's dimensions.

    Returns:
        The tensor.
    """
    return torch.tensor(values, dtype=torch.float64)
