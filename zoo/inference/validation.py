"""One eager pass over all rows before the first step: shapes, supports and arguments, whichever engine follows.

A compiled step checks nothing. What Pyro would have said of the data, and what Pyro itself lets pass (an observation
and a distribution that are broadcast against each other outside of any plate), is said here, in one line.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from zoo.errors import PairError, ZooError
from zoo.inference.sites import innermost, observed

__all__ = ["check_rows", "check_trace", "one_line", "pair_error"]

_TRIES = 10  # draws of the latents; of a wide prior, some do not give a density at all
_NUMBERS = 2**20  # of the batch in one pass
_MOST_ROWS = 2**14
_LONGEST = 300


# ------------------------------------------------------------------------------------------------------ what is said
def one_line(error: BaseException) -> str:
    """Return what an exception says in one line, without Pyro's table of shapes.

    Args:
        error: The exception.

    Returns:
        Its text; the name of its type where there is none.
    """
    lines = []
    for line in str(error).splitlines():
        if line.strip() in ("Trace Shapes:", "Exception raised from"):
            break
        lines.append(line.strip())
    text = " ".join(" ".join(lines).split())
    return text[:_LONGEST] + ("..." if len(text) > _LONGEST else "") if text else type(error).__name__


def pair_error(error: Exception, batch: Mapping[str, Tensor]) -> PairError:
    """Turn what a model or guide raised into an error of one line that names the line of the user's code.

    Args:
        error: The exception; one of the zoo's own is kept, if it is a :class:`~zoo.errors.PairError`.
        batch: What the pair was called with.

    Returns:
        The error to raise from it.
    """
    if isinstance(error, PairError):
        return error
    text = one_line(error)
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str) and error.args[0] not in batch:
        text = f"the batch may lack {error.args[0]!r}; it has {', '.join(sorted(batch))}"
    where = _place(error)
    return PairError(f"the pair does not run on this batch: {type(error).__name__}: {text}{where}")


def _place(error: BaseException) -> str:
    """Return the innermost line that belongs neither to a library nor to the runner."""
    libraries = [str(Path(m.__file__ or "").parent) for m in (torch, pyro)]
    libraries += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "diagnostics")]
    standard = sysconfig.get_paths()["stdlib"]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        in_standard = name.startswith(standard) and "site-packages" not in name
        if name.startswith("<frozen") or in_standard or any(name.startswith(folder + "/") for folder in libraries):
            continue
        return f" ({Path(name).name}, line {frame.lineno}, in {frame.name})"
    return ""


# --------------------------------------------------------------------------------------------------------- one trace
def check_trace(trace: Any, *, first_row: int = 0) -> None:
    """Raise unless every observation of a trace has the shape of its distribution and lies in its support.

    Args:
        trace: A trace of the model.
        first_row: Position of its first row in the data.

    Raises:
        PairError: If one does not; the site, shapes and value are named.
    """
    for name, site in _observations(trace):
        _check_shape(name, site)
        fault = _outside(name, site, first_row)
        if fault:
            raise PairError(fault)


def _observations(trace: Any) -> Iterator[tuple[str, Any]]:
    for name in observed(trace.nodes):
        if isinstance(trace.nodes[name]["value"], Tensor):
            yield name, trace.nodes[name]


def _check_shape(name: str, site: Any) -> None:
    fn, shape = site["fn"], tuple(site["value"].shape)
    events = len(fn.event_shape)
    mine, own = shape[: len(shape) - events], tuple(fn.batch_shape)
    text = (
        f"site '{name}' observes a tensor of shape {shape} with a distribution of batch shape {own}"
        f"{f' and event shape {tuple(fn.event_shape)}' if events else ''}"
    )
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    inside = "".join(f", in the plate '{f.name}' of size {f.size}" for f in frames if f.size >= 0)
    try:
        joint = tuple(torch.broadcast_shapes(own, mine))
    except RuntimeError:
        raise PairError(f"{text}{inside}: the shapes do not fit; give both one entry for each row") from None
    if len(shape) < events:
        raise PairError(f"{text}: the observation lacks axes of the event")
    if isinstance(_unmasked(fn), torch.distributions.Independent):
        ends = zip(shape[len(shape) - events :], fn.event_shape, strict=True)
        if any(there == 1 < due for there, due in ends):
            raise PairError(f"{text}: one value would stand for all of an event; give both the same shape")
    plated = {f.dim for f in frames}
    axes = range(-len(joint), 0)
    value = {i: mine[i] if -i <= len(mine) else 1 for i in axes}
    law = {i: own[i] if -i <= len(own) else 1 for i in axes}
    # Where a plate stands, the model itself says how many terms there are.
    free = [i for i in axes if joint[i] > 1 and i not in plated]
    stretched = any(value[i] < joint[i] for i in axes)
    if any(value[i] < joint[i] for i in free) or (stretched and any(law[i] < joint[i] for i in free)):
        raise PairError(
            f"{text}{inside}: broadcast against each other, they give a log density of shape {joint}, one term for "
            f"each pair of entries; give both the same shape, for example by squeeze(-1)"
        )


def _unmasked(fn: Any) -> Any:
    while type(fn).__name__ in ("MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return fn


def _outside(name: str, site: Any, first_row: int) -> str:
    """Say which observed value lies outside of its support; empty if none does or it is masked."""
    value, fn = site["value"], site["fn"]
    try:
        fine = fn.support.check(value)
    except (NotImplementedError, AttributeError, RuntimeError, ValueError):
        return ""  # no support is known
    mask = site["mask"]
    if mask is not None:
        fine = fine | ~torch.as_tensor(mask, device=value.device)
    bad = (~fine).nonzero()
    if not len(bad):
        return ""
    at = tuple(bad[0].tolist())
    entry = value.expand(fine.shape + value.shape[value.ndim - len(fn.event_shape) :])[at]
    entry = entry if not len(fn.event_shape) else entry.flatten()
    shown = f"{float(entry):g}" if entry.numel() == 1 else "[" + ", ".join(f"{float(v):g}" for v in entry[:4]) + "]"
    place = ", ".join(str(i + (first_row if axis == 0 else 0)) for axis, i in enumerate(at))
    return (
        f"site '{name}' observes {shown}{f' at [{place}]' if at else ''}, which lies outside of the support of "
        f"{type(innermost(fn)).__name__}, {_named(fn.support)}; correct the data, or take another distribution"
    )


def _named(support: Any) -> str:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return " ".join(repr(support).split())[:100]


def _bounds(trace: Any) -> list[Tensor]:
    """Return the limits of the supports of what is observed."""
    found = []
    for _, site in _observations(trace):
        try:
            support = site["fn"].support
        except (NotImplementedError, AttributeError):
            continue
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        found += [torch.as_tensor(v) for v in vars(support).values() if isinstance(v, Tensor | int | float)]
    return found


# ---------------------------------------------------------------------------------------------------------- all rows
def check_rows(
    trace: Callable[[Mapping[str, Tensor]], Any],
    batch: Mapping[str, Tensor],
    *,
    whole: frozenset[str] = frozenset(),
    batch_size: int | None = None,
) -> None:
    """Trace the model on all rows, part by part, and check every part.

    Call it with Pyro's validation on.

    Args:
        trace: Traces the model on a batch, at another draw of its latents with every call.
        batch: The whole data.
        whole: Entries without rows.
        batch_size: Rows that the pair takes at a time; ``None``: all of them.

    Raises:
        PairError: If the model fails on a part, or observes what it cannot have produced.
    """
    if "index" not in batch or batch_size is None:
        _check_part(trace, batch, 0)
        return
    rows = len(batch["index"])
    cut = [k for k, v in batch.items() if k not in whole and v.ndim and len(v) == rows]
    width = sum(batch[k].numel() for k in cut) // max(rows, 1)
    size = max(batch_size, min(_MOST_ROWS, _NUMBERS // max(width, 1)))
    for start in range(0, rows, size):
        try:
            _check_part(trace, _part(batch, cut, start, min(start + size, rows)), start)
        except PairError:
            # A model may be written for parts of one size; the fault is there if it is in one of them.
            for first in range(start, min(start + size, rows), batch_size):
                first = min(first, max(rows - batch_size, 0))
                _check_part(trace, _part(batch, cut, first, first + batch_size), first)


def _part(batch: Mapping[str, Tensor], cut: list[str], start: int, stop: int) -> dict[str, Tensor]:
    return {k: v[start:stop] if k in cut else v for k, v in batch.items()}


def _check_part(trace: Callable[[Mapping[str, Tensor]], Any], batch: Mapping[str, Tensor], start: int) -> None:
    problem: PairError | None = None
    limits: list[list[Tensor]] = []
    for _ in range(_TRIES):
        try:
            found = trace(batch)
            limits.append(_bounds(found))
            check_trace(found, first_row=start)
        except ZooError as error:
            problem = error if isinstance(error, PairError) else PairError(str(error))
            continue
        except Exception as error:
            problem = pair_error(error, batch)
            problem.__cause__ = error
            continue
        return
    first = limits[0] if limits else []
    moved = any(
        len(other) != len(first) or any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
        for other in limits[1:]
    )
    # A support that depends on latents may leave out the data at any number of draws; the sampler looks for others.
    if problem is not None and not moved:
        raise problem
