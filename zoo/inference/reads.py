"""What a traced program reads out of tensors as Python numbers, and what of it cannot change.

A graph that is recorded once knows such numbers only as they were then. Those that depend on nothing that differs
between calls stay as they are; others are refused, with the line that reads them, so that the program runs eagerly.
"""

from __future__ import annotations

import linecache
import sys
import sysconfig
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode

__all__ = ["Frozen", "Reads", "first_difference", "line_of"]

_INTERNAL = tuple(str(Path(str(f)).parent) for f in (torch.__file__, pyro.__file__, np.__file__, __file__))
_STDLIB = sysconfig.get_paths()["stdlib"]

_READS = {
    torch.Tensor.numpy: ".numpy()",
    torch.Tensor.tolist: ".tolist()",
    torch.Tensor.item: ".item()",
    torch.Tensor.__array__: "numpy",
    torch.Tensor.__bool__: "a decision (if, while, and, assert)",
    torch.Tensor.__int__: "int()",
    torch.Tensor.__float__: "float()",
    torch.Tensor.__index__: "an index or range()",
    torch.Tensor.__complex__: "complex()",
    torch.Tensor.__dlpack__: "another library",
    torch.Tensor.__deepcopy__: "copy.deepcopy()",
    torch.equal: "torch.equal()",
    torch.Tensor.equal: "torch.equal()",
    torch.allclose: "torch.allclose()",
    torch.Tensor.allclose: "torch.allclose()",
}


# What returns as many elements as some number says.
_SHAPED = {
    torch.nonzero,
    torch.Tensor.nonzero,
    torch.argwhere,
    torch.Tensor.argwhere,
    torch.masked_select,
    torch.Tensor.masked_select,
    torch.bincount,
    torch.Tensor.bincount,
    torch.unique,
    torch.Tensor.unique,
    torch.unique_consecutive,
    torch.Tensor.unique_consecutive,
}


class Frozen(NotImplementedError):
    """A program uses numbers that a recorded graph would keep for ever."""


class Reads(TorchFunctionMode):
    """While a graph is recorded, answer what is read from what cannot change, and refuse the rest.

    Args:
        fixed: Positions of the inputs that are the same at every call.

    Attributes:
        kept: Whether something was read from those inputs, so that the graph holds for them alone.
        lines: Set to a list, it takes the program's own line of every call, with the nodes that there are after it.
    """

    def __init__(self, fixed: Collection[int] = ()) -> None:
        super().__init__()
        self.fixed = frozenset(fixed)
        self.kept = False
        self.lines: list[tuple[int, str]] | None = None
        self._known: dict[fx.Node, str] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **kwargs)
        if func in _SHAPED or (func is torch.where and len(args) == 1):
            return self._shaped(func, args, kwargs, mode.tracer)
        if func is torch.Tensor.__getitem__:
            args = (args[0], self._selected(args[1], mode.tracer))
        if func not in _READS:
            found = func(*args, **kwargs)
            if self.lines is not None:
                self.lines.append((len(mode.tracer.graph.nodes), line_of(sys._getframe(1))))
            return found
        kinds = {self._kind(a, mode.tracer) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)}
        if "varies" in kinds and not (func is torch.Tensor.__bool__ and _asserted()):
            raise Frozen(
                f"{line_of(sys._getframe(1))} reads numbers out of a tensor, by {_READS[func]}, which would stay those "
                "of the first call; compute with tensors (torch.where for a decision), or hand the numbers in with the "
                "batch"
            )
        self.kept |= "fixed" in kinds
        with disable_proxy_modes_tracing():
            return func(*args, **kwargs)

    def _shaped(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tracer: Any) -> Any:
        kinds = {self._kind(a, tracer) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)}
        if "varies" in kinds:
            raise Frozen(
                f"{line_of(sys._getframe(1))} takes as many elements as numbers say, by a mask or {func.__name__}, "
                "while a graph has one shape; keep all of them, and leave some out by torch.where or pyro.poutine.mask"
            )
        self.kept |= "fixed" in kinds
        with disable_proxy_modes_tracing():
            return func(*args, **kwargs)

    def _selected(self, index: Any, tracer: Any) -> Any:
        """Return an index with the positions of true elements in the place of masks."""
        parts = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(p, Tensor) and p.dtype in (torch.bool, torch.uint8) and p.dim() for p in parts):
            return index
        found: list[Any] = []
        for part in parts:
            if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) and part.dim():
                found += self._shaped(torch.where, (part,), {}, tracer)
            else:
                found.append(part)
        return tuple(found)

    def _kind(self, tensor: Tensor, tracer: Any) -> str:
        """Return whether a tensor is a ``constant``, depends on ``fixed`` inputs alone, or ``varies``."""
        found: Any = get_proxy_slot(tensor, tracer, None)
        if found is None or found.constant is not None:
            return "constant"
        todo = [found.proxy.node]
        while todo:
            node = todo[-1]
            waiting = [n for n in node.all_input_nodes if n not in self._known]
            if node in self._known or not waiting:
                todo.pop()
                self._known.setdefault(node, self._kind_of(node))
            else:
                todo += waiting
        return self._known[found.proxy.node]

    def _kind_of(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            at = next(i for i, n in enumerate(node.graph.find_nodes(op="placeholder")) if n is node)
            return "fixed" if at in self.fixed else "varies"
        tags = getattr(node.target, "tags", ())
        kinds = {self._known[n] for n in node.all_input_nodes}
        if torch.Tag.nondeterministic_seeded in tags or "varies" in kinds:
            return "varies"
        return "fixed" if "fixed" in kinds else "constant"


def _asserted() -> bool:
    """Whether the program's own line asserts something, which changes no number; data are checked before a fit."""
    frame = _own_frame(sys._getframe(1))
    return frame is not None and linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
        "assert "
    )


# ---------------------------------------------------------------------------------------------- files and lines
def _internal(name: str) -> bool:
    return name.startswith(_INTERNAL) or "<frozen" in name or (name.startswith(_STDLIB) and "site-packages" not in name)


def _own_frame(frame: FrameType | None) -> FrameType | None:
    while frame is not None and _internal(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _named(name: str, line: int) -> str:
    path = Path(name)
    here = Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path.name}:{line}"


def line_of(found: FrameType | BaseException) -> str:
    """Return file and line of the program's own code, not that of a library, where something happens or was raised.

    Args:
        found: The innermost frame, or what was raised.

    Returns:
        ``file.py:12``; empty if none is the program's own.
    """
    if isinstance(found, BaseException):
        where, trace = "", found.__traceback__
        while trace is not None:
            if not _internal(trace.tb_frame.f_code.co_filename):
                where = _named(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
            trace = trace.tb_next
        return where
    frame = _own_frame(found)
    return "" if frame is None else _named(frame.f_code.co_filename, frame.f_lineno)


def first_difference(first: fx.GraphModule, second: fx.GraphModule) -> int | None:
    """Compare two recordings of one program on the same inputs.

    Args:
        first: A recording.
        second: One made later.

    Returns:
        Position of the first node that differs; ``None`` if they compute the same.
    """
    before, after = list(first.graph.nodes), list(second.graph.nodes)
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if not _same(a, b, first, second)), None)
    return min(len(before), len(after)) if at is None and len(before) != len(after) else at


def _same(a: fx.Node, b: fx.Node, first: fx.GraphModule, second: fx.GraphModule) -> bool:
    if (a.op, a.target, repr(a.args), repr(a.kwargs)) != (b.op, b.target, repr(b.args), repr(b.kwargs)):
        return False
    if a.op != "get_attr":
        return True
    x, y = getattr(first, str(a.target)), getattr(second, str(b.target))
    return bool(x.shape == y.shape and x.dtype == y.dtype and x.eq(y).logical_or(x.ne(x) & y.ne(y)).all())
