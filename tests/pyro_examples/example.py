"""What an example is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.optim
import torch
from pyro.infer import Trace_ELBO


@dataclass(frozen=True, kw_only=True)
class Example:
    """A pair as its author would write it, and how its author would train it.

    Args:
        model: Pyro model.
        guide: Its guide; ``None`` for one that is sampled by NUTS.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        loss: Makes one of Pyro's losses.
        optim: Makes one of Pyro's optimisers.
        new: Positional arguments for new rows, without what is observed; ``None`` where the example has none.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    loss: Callable[[], Any] = Trace_ELBO
    optim: Callable[[], Any] = lambda: pyro.optim.Adam({"lr": 0.01})
    new: tuple[Any, ...] | None = None


EXAMPLES: dict[str, tuple[str, Callable[[], Example]]] = {}
"""Name -> what it resembles in Pyro's repository, and the function that makes it."""


def example(like: str) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    """Register a function that makes an example under its own name."""

    def register(make: Callable[[], Example]) -> Callable[[], Example]:
        EXAMPLES[make.__name__] = (like, make)
        return make

    return register


def load(name: str, seed: int = 0) -> Example:
    """Make an example, with an empty parameter store and a seed of its own."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return EXAMPLES[name][1]()


def generator(seed: int = 0) -> torch.Generator:
    """Return the source of an example's data."""
    return torch.Generator().manual_seed(seed)
