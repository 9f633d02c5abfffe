"""What a model of posteriordb is here: a Pyro model, its batch, and the way to the Stan program's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.types import Batch

__all__ = ["Built", "Data", "recurrence", "regression", "vector"]

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


def regression(
    y: Tensor, columns: list[Tensor], prior: Callable[[], Any], noise: Callable[[], Any], *, intercept: bool = True
) -> Built:
    r"""Return linear regression, :math:`y_i \sim \mathrm{N}(x_i^\top \beta, \sigma)`.

    Args:
        y: Responses, ``(row,)``.
        columns: Columns of the design, ``(row,)`` each.
        prior: Prior of every coefficient.
        noise: Prior of :math:`\sigma`.
        intercept: Whether the first column is one.

    Returns:
        The model on these data.
    """
    x = torch.stack([torch.ones_like(y), *columns] if intercept else columns, -1)
    num_data, width = x.shape

    def model(batch: Batch) -> None:
        with pyro.plate("coefficient", width):
            beta = pyro.sample("beta", prior())
        sigma = pyro.sample("sigma", noise())
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(batch["x"] @ beta, sigma), obs=batch.get("y"))

    return Built(model, {"x": x, "y": y, "index": torch.arange(num_data)})


def recurrence(added: Tensor, factor: Tensor) -> Tensor:
    r"""Return :math:`x_t = a_t + b x_{t-1}`, in as many steps as the length has binary digits.

    Args:
        added: :math:`a`, ``(time,)``, the first of them being :math:`x_1`.
        factor: :math:`b`.

    Returns:
        :math:`x`, ``(time,)``.
    """
    x, lag, power = added, 1, factor
    while lag < len(x):
        x = x + power * torch.cat([torch.zeros_like(x[:lag]), x[:-lag]])
        lag, power = 2 * lag, power * power
    return x
