"""Latents that belong to the rows of a fit, and what other rows may do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from zoo.errors import DataError
from zoo.inference.program import seeded, stream
from zoo.inference.sites import guide_trace, observed
from zoo.inference.validation import pair_error

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = ["check_new_rows"]


def check_new_rows(posterior: Posterior, batch: Batch) -> None:
    """Raise if rows other than those of the fit would get the latents of these, in a batch without ``index``.

    Args:
        posterior: A fit on a batch without ``index``.
        batch: Another batch.

    Raises:
        DataError: If they would; the latent is named.
        PairError: If the guide does not run on the batch.
    """
    train, given = posterior._prepare(None), posterior._prepare(batch)
    with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)):
        trace = poutine.trace(posterior.pair.model).get_trace(train)
    seen = [trace.nodes[n] for n in observed(trace.nodes) if _plates(trace.nodes[n])]
    plates = set().union(*(_plates(s) for s in seen))
    local = [n for n in trace.stochastic_nodes if _plates(trace.nodes[n]) & plates and n not in plates]
    values = [s["value"] for s in seen]
    targets = {k for k, v in train.items() if any(_equal(v, value) for value in values)}
    if not local or all(_equal(v, train[k]) for k, v in given.items() if k in train and k not in targets):
        return
    if posterior.chains is None:
        local = [n for n in local if n in _copied(posterior, train, given)]
    if local:
        rows = max(frame.size for s in seen for frame in s["cond_indep_stack"] if frame.name in plates)
        raise DataError(
            f"latent '{local[0]}' has a value for each row of the fit, and other rows have none: fit with the entry "
            f"'index': torch.arange({rows}) in the batch and pyro.plate(NAME, {rows}, subsample=batch['index'])"
        )


def _plates(site: Any) -> set[str]:
    return {f.name for f in site["cond_indep_stack"] if f.vectorized}


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)


def _copied(posterior: Posterior, train: Batch, given: Batch) -> set[str]:
    """Return the sites that the guide draws as before for other rows, although it draws each row another way."""
    guide: Any = posterior.pair.drawing
    nodes: list[Any] = []
    for batch in (train, given):
        try:
            with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)):
                nodes.append(guide_trace(guide, batch).nodes)
        except Exception as error:
            raise pair_error(error, batch) from error
    found = set()
    for name, site in nodes[0].items():
        other = nodes[1].get(name)
        if site["type"] != "sample" or other is None or site["infer"].get("amortised"):
            continue
        try:
            mean = site["fn"].mean
        except (NotImplementedError, AttributeError):
            mean = site["value"]
        varied = isinstance(mean, Tensor) and mean.numel() > 1 and bool((mean != mean.flatten()[0]).any())
        if varied and _equal(site["value"], other["value"]):
            found.add(name)
    return found
