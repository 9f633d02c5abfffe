"""Plates that draw their own mini-batches: random rows while a pair is trained, all rows in order ever after.

``pyro.plate("data", 200, subsample_size=20)`` draws other rows in each run. Training needs no more, but a column of a
log likelihood has to be one datum. Outside of training such a plate takes all its rows, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor

from zoo.inference.program import seeded, stream
from zoo.inference.sites import is_plate, observed

__all__ = ["all_rows", "drawn_plates", "unsteady_site"]


@contextmanager
def all_rows(names: frozenset[str] | None = None) -> Iterator[None]:
    """Let plates that would draw a mini-batch take all their rows, in order; call it with the lock held.

    Args:
        names: Plates for which that is done; ``None``: all.

    Yields:
        Nothing.
    """
    if names is not None and not names:
        yield
        return
    kept = SubsampleMessenger.__dict__["_subsample"]
    original: Callable[..., Any] = kept.__func__

    def whole(
        name: str, size: Any = None, subsample_size: Any = None, subsample: Any = None, *rest: Any, **more: Any
    ) -> Any:
        if size is not None and subsample is None and (names is None or name in names):
            subsample_size = None
        return original(name, size, subsample_size, subsample, *rest, **more)

    SubsampleMessenger._subsample = staticmethod(whole)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = kept


class _DrawnPlates(Messenger):  # type: ignore[misc]
    """Find the plates that draw a mini-batch, and their sizes.

    Args:
        names: Plates whose sizes are kept although they take all rows.
        rows: Lengths of what is in the batch. A plate of as many rows takes the batch as its mini-batch.
    """

    def __init__(self, names: frozenset[str], rows: set[int]) -> None:
        super().__init__()
        self.names, self.rows = names, rows
        self.sizes: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not is_plate(msg) or msg["value"] is not None:
            return
        few = fn.subsample_size is not None and fn.subsample_size < fn.size and fn.subsample_size not in self.rows
        if few or msg["name"] in self.names:
            self.sizes[msg["name"]] = int(fn.size)


def drawn_plates(
    programs: tuple[Callable[..., Any], ...], batch: Mapping[str, Tensor], names: frozenset[str] = frozenset()
) -> dict[str, int]:
    """Run programs and return the plates in them that draw mini-batches; a program that fails is read that far.

    Args:
        programs: Model and guide, bound.
        batch: The batch.
        names: Plates whose sizes are returned although they take all rows.

    Returns:
        Plate -> size.
    """
    found = _DrawnPlates(names, {len(v) for v in batch.values() if v.ndim})
    for program in programs:
        with suppress(Exception), stream(seeded(0)), found, poutine.trace():
            program(batch)
    return found.sizes


def unsteady_site(model: Callable[..., Any], batch: Mapping[str, Tensor]) -> str:
    """Return an observed site whose data are others in another run, of the same batch; empty if there is none.

    Args:
        model: The model, bound.
        batch: The batch.

    Returns:
        Name of the site.
    """
    with stream(seeded(0)):
        first = poutine.trace(model).get_trace(batch)
    latents = {n: first.nodes[n]["value"] for n in first.stochastic_nodes}
    given = poutine.condition(model, data=latents)
    seen: list[dict[str, Tensor]] = []
    for seed in range(2):
        state = seeded(seed)
        start = state["cpu"]
        with stream(state):
            nodes = poutine.trace(given).get_trace(batch).nodes
        if torch.equal(start, state["cpu"]):
            return ""  # nothing else is drawn
        seen.append({n: nodes[n]["value"] for n in observed(nodes)})
    for name, value in seen[0].items():
        other = seen[1].get(name)
        if isinstance(value, Tensor) and isinstance(other, Tensor) and not torch.equal(value, other):
            return name
    return ""
