"""What a loss keeps in the parameter store beside the parameters that it trains: decaying averages of baselines.

:class:`pyro.infer.TraceGraph_ELBO` with ``infer={"baseline": {"use_decaying_avg_baseline": True}}`` writes the average
cost of a site into the store at every step and reads it at the next. Such values are found here, by running the loss,
and carried from step to step like the buffers of a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyro
import torch
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from zoo.errors import PairError

__all__ = ["FirstValues", "find_averages", "put", "take"]

_PYROS = "__baseline_avg_downstream_cost_"


class FirstValues(Messenger):  # type: ignore[misc]
    """Remember the value of every parameter when it is first read."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["name"] not in self.values:
            self.values[msg["name"]] = msg["value"].detach().clone()


def find_averages(run: Callable[[], Any], first: FirstValues) -> dict[str, Tensor]:
    """Run a loss with its gradient, and return what it writes into the current store, with the first values.

    Args:
        run: Evaluates the loss and its gradient; called twice at most.
        first: Was active while the parameters of the store were made, if they were made just now.

    Returns:
        Name -> value before the first step.

    Raises:
        PairError: If what it writes is a parameter that it trains, or has a constraint.
    """
    store = pyro.get_param_store()
    gradients = {n: p.grad for n, p in store._params.items()}
    written: dict[str, Tensor] = {}
    known: dict[str, Tensor] = {}
    try:
        for _ in range(2):
            before = {n: (p, p.detach().clone()) for n, p in store._params.items()}
            with first:
                run()
            for name, (tensor, value) in before.items():
                now = store._params.get(name)
                # A module may put a tensor of its own in the place of another, with the same value.
                if now is None or torch.equal(now, value):
                    continue
                trained = tensor.grad is not None and bool(tensor.grad.any())
                if trained and not name.startswith(_PYROS):  # Pyro itself throws the gradient of an average away
                    raise PairError(
                        f"the pair sets its parameter '{name}' in the parameter store while it is trained, which a "
                        "step would lose; give it a constraint, or let the model compute what it sets from another one"
                    )
                if not isinstance(store._constraints[name], type(constraints.real)):
                    raise PairError(f"the pair sets '{name}' in the parameter store, where it has a constraint")
                written[name] = first.values.get(name, value)
            known |= {n: t for n, (t, _) in before.items()}
            if set(store._params) == set(before):
                break
    finally:
        for name, tensor in [*known.items(), *store._params.items()]:
            tensor.grad = gradients.get(name)
    return written


def put(names: Iterable[str], values: Sequence[Tensor]) -> None:
    """Put values into the current store.

    Args:
        names: Their names.
        values: One for each.
    """
    store = pyro.get_param_store()
    for name, value in zip(names, values, strict=True):
        store[name] = value.detach()


def take(names: Iterable[str]) -> list[Tensor]:
    """Return values of the current store.

    Args:
        names: Their names.

    Returns:
        One for each.
    """
    # Pyro marks what depends on a draw with a subclass of tensors, which no graph records.
    return [detach_provenance(pyro.get_param_store()._params[name]).detach() for name in names]
