"""What a traced program reads out of tensors as Python numbers, and what of it cannot change.

A graph that is recorded once knows such numbers only as they were then. Those that depend on nothing that differs
between calls stay as they are. Those that depend on what the program is given alone, not on what it computes, stay with
a :class:`Guard`, which reads them again before a call. Others are refused, with the line that reads them, so that the
program runs eagerly.
"""

from __future__ import annotations

import linecache
import sys
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode

__all__ = ["MOST_NODES", "Frozen", "Guard", "Reads", "first_difference", "line_of"]

MOST_NODES = 10_000  # of a graph; a compiler takes minutes for more

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

# What reads the lengths of sequences, its second argument, in C++; recurrent layers do where these are packed.
_LENGTHS = {
    torch._pad_packed_sequence: "pad_packed_sequence",
    torch.lstm: "a recurrent layer of packed sequences",
    torch.gru: "a recurrent layer of packed sequences",
    torch.rnn_tanh: "a recurrent layer of packed sequences",
    torch.rnn_relu: "a recurrent layer of packed sequences",
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


class Guard:
    """What a recorded graph read from its inputs, and how to read it again.

    Args:
        graph: Computes what was read from the inputs.
        values: What it was.
        text: The line that reads first, and what to do instead.
    """

    def __init__(self, graph: fx.GraphModule, values: Sequence[Tensor], text: str) -> None:
        self.graph, self.values, self.text = graph, list(values), text
        self.count = len(graph.graph.find_nodes(op="placeholder"))

    def read(self, inputs: Sequence[Tensor | None]) -> list[Tensor]:
        """Read from other inputs.

        Args:
            inputs: Those of the graph, or their end, in whose place before it nothing is read.

        Returns:
            One tensor per reading.
        """
        with torch.no_grad():
            found: Sequence[Tensor] = self.graph(*[None] * (self.count - len(inputs)), *inputs)
        return list(found)

    def holds(self, inputs: Sequence[Tensor | None]) -> bool:
        """Return whether other inputs would be read the same.

        Args:
            inputs: As of :meth:`read`.

        Returns:
            Whether the graph is right for them.
        """
        return all(map(_equal, self.read(inputs), self.values))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a.eq(b) | (a.ne(a) & b.ne(b))).all())


class Reads(TorchFunctionMode):
    """While a graph is recorded, answer what is read from what cannot change, and refuse the rest.

    Args:
        fixed: Positions of the inputs that are the same at every call.
        given: Positions of inputs from which numbers may be read if a :class:`Guard` reads them again.
        checked: Whether what the program asserts of them was found to hold for all that it will be given.

    Attributes:
        kept: Whether something was read from fixed inputs, so that the graph holds for them alone.
        lines: Set to a list, it takes the program's own line of every call, with the nodes that there are after it.
    """

    def __init__(self, fixed: Collection[int] = (), given: Collection[int] = (), *, checked: bool = False) -> None:
        super().__init__()
        self.fixed, self.given, self.checked = frozenset(fixed), frozenset(given), checked
        self.kept = False
        self.lines: list[tuple[int, str]] | None = None
        self._nodes = 0  # of the graph, that were looked through
        self._writers: dict[fx.Node, list[fx.Node]] = {}
        self._begin()

    def _begin(self) -> None:
        self._nodes, self._writers = 0, {}
        self._again, self._copies = fx.Graph(), dict[fx.Node, fx.Node]()
        self._root: Any = None
        self._read: list[tuple[fx.Node, Tensor]] = []
        self._text = ""

    def __enter__(self) -> Reads:
        self._begin()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def guard(self) -> Guard | None:
        """Return what reads the numbers of this recording again.

        Returns:
            The guard; ``None`` if nothing was read that differs between calls.
        """
        if not self._read:
            return None
        self._again.output([node for node, _ in self._read])
        return Guard(fx.GraphModule(self._root, self._again), [value for _, value in self._read], self._text)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **kwargs)
        tracer = mode.tracer
        if len(tracer.graph.nodes) > MOST_NODES:
            raise Frozen(too_long(line_of(sys._getframe(1))))
        if func in _SHAPED or (func is torch.where and len(args) == 1):
            return self._shaped(func, args, kwargs, tracer)
        if func is torch._pack_padded_sequence:
            return self._packed(*args, tracer=tracer)
        if func in _LENGTHS and isinstance(args[1], Tensor) and args[1].dim() == 1 and not args[1].is_floating_point():
            self._take((args[1],), tracer, _reading(sys._getframe(1), _LENGTHS[func]))
        if (
            func is torch.Tensor.__getitem__
            and type(args[1]) is int
            and args[0].dtype == torch.int64
            and _in_recurrent()
        ):
            self._take((args[0],), tracer, _reading(sys._getframe(1), "a recurrent layer of packed sequences"))
            with disable_proxy_modes_tracing():
                return func(*args)
        if func is torch.Tensor.__getitem__:
            args = (args[0], self._selected(args[1], tracer))
        if func not in _READS:
            found = func(*args, **kwargs)
            if self.lines is not None:
                self.lines.append((len(tracer.graph.nodes), line_of(sys._getframe(1))))
            return found
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        asserted = func is torch.Tensor.__bool__ and _asserted()
        self._take(tensors, tracer, _reading(sys._getframe(1), _READS[func]), asserted=asserted)
        with disable_proxy_modes_tracing():
            return func(*args, **kwargs)

    def _shaped(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tracer: Any) -> Any:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        self._take(
            tensors, tracer,
            f"{line_of(sys._getframe(1))} takes as many elements as numbers say, by a mask or {func.__name__}, "
            "while a graph has one shape; keep all of them, and leave some out by torch.where or pyro.poutine.mask",
        )  # fmt: skip
        with disable_proxy_modes_tracing():
            return func(*args, **kwargs)

    def _packed(self, rows: Tensor, lengths: Tensor, batch_first: bool, *, tracer: Any) -> tuple[Tensor, Tensor]:
        """Pack sequences by operations that a graph can hold."""
        self._take((lengths,), tracer, _reading(sys._getframe(1), "pack_padded_sequence"))
        with disable_proxy_modes_tracing():
            sizes: Tensor = torch._pack_padded_sequence(rows.detach(), lengths, batch_first)[1]  # which checks them
        rows = rows if batch_first else rows.transpose(0, 1)
        return torch.cat([rows[:size, t] for t, size in enumerate(sizes.tolist())]), sizes

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

    # ------------------------------------------------------------------------------------- what depends on what
    def _take(self, tensors: Sequence[Tensor], tracer: Any, text: str, *, asserted: bool = False) -> None:
        """Note that numbers are read out of tensors, or raise."""
        for tensor in tensors:
            found: Any = get_proxy_slot(tensor, tracer, None)
            if found is None or found.constant is not None:
                continue
            node = found.proxy.node
            sources = self._sources(node)
            kinds = {self._kind(source) for source in sources}
            if "varies" in kinds:
                if asserted:
                    continue  # it changes no number, and cannot be asked for before the call
                raise Frozen(text)
            if "given" in kinds:
                if asserted and self.checked:
                    continue
                self._ask_again(node, sources, tensor, tracer, text)
            else:
                self.kept |= "fixed" in kinds

    def _sources(self, node: fx.Node) -> set[fx.Node]:
        """Return all nodes on which one depends, itself included: its inputs, and what was written into them."""
        for new in list(node.graph.nodes)[self._nodes :]:
            for target in _written(new):
                self._writers.setdefault(_base(target), []).append(new)
        self._nodes = len(node.graph.nodes)
        seen: set[fx.Node] = set()
        todo = [node]
        while todo:
            item = todo.pop()
            if item not in seen:
                seen.add(item)
                todo += [*item.all_input_nodes, *self._writers.get(_base(item), ())]
        return seen

    def _kind(self, node: fx.Node) -> str:
        """Return whether a node by itself is a ``constant``, a ``fixed`` or ``given`` input, or ``varies``."""
        if node.op == "placeholder":
            at = next(i for i, n in enumerate(node.graph.find_nodes(op="placeholder")) if n is node)
            if node in self._writers:
                return "varies"
            return "fixed" if at in self.fixed else "given" if at in self.given else "varies"
        tags = getattr(node.target, "tags", ())
        return "varies" if torch.Tag.nondeterministic_seeded in tags else "constant"

    def _ask_again(self, node: fx.Node, sources: set[fx.Node], tensor: Tensor, tracer: Any, text: str) -> None:
        """Copy to another graph what computes a tensor."""
        self._root, self._text = tracer.root, self._text or text
        for own in tracer.graph.nodes:
            if own not in self._copies and (own in sources or own.op == "placeholder"):
                self._copies[own] = self._again.node_copy(own, self._copies.__getitem__)
                self._copies[own].meta = {}
        copy = self._again.call_function(torch.ops.aten.clone.default, (self._copies[node],))
        with disable_proxy_modes_tracing():
            self._read.append((copy, tensor.detach().clone()))


def _written(node: fx.Node) -> list[fx.Node]:
    """Return the inputs that an operation writes."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = {**dict(zip((a.name for a in schema.arguments), node.args, strict=False)), **node.kwargs}
    found = [given.get(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [v for v in found if isinstance(v, fx.Node)]


def _base(node: fx.Node) -> fx.Node:
    """Return the node whose memory another one shares."""
    while True:
        schema = getattr(node.target, "_schema", None)
        shared = schema is not None and bool(schema.arguments) and schema.arguments[0].alias_info is not None
        if not shared or not node.args or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]


def _in_recurrent() -> bool:
    """Whether a recurrent layer asks, for the rows of its first step."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and _internal(frame.f_code.co_filename):
        if frame.f_code.co_filename == torch.nn.modules.rnn.__file__:
            return True
        frame = frame.f_back
    return False


def _reading(frame: FrameType, way: str) -> str:
    return (
        f"{line_of(frame)} reads numbers out of a tensor, by {way}, which would stay those of the first call; compute "
        "with tensors (torch.where for a decision), or hand the numbers in with the batch"
    )


def too_long(line: str) -> str:
    """Return what is said of a program that is too long for one graph.

    Args:
        line: Where it becomes too long; empty if that is not known.

    Returns:
        The reason.
    """
    return (
        f"{line or 'the program'} makes a graph of more than {MOST_NODES:,} operations, for which a compiler takes "
        "minutes: a loop stands in a graph step by step; write a long one as one distribution (dist.DiscreteHMM, "
        "dist.GaussianHMM, dist.LinearHMM), over a shorter part of the series, or with fewer steps"
    )


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
