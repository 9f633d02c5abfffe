r"""A Pyro program as one pure function, traced whole and compiled.

Pyro keeps parameters in a process-wide store, and modules keep theirs in attributes. :class:`Layout` lists what a pair
reads and writes, and :meth:`Layout.bind` runs it with *given* values in their place, so that the program becomes a
function of its inputs. :func:`compile_function` records that function once with
:func:`torch.fx.experimental.proxy_tensor.make_fx` and compiles the flat graph: for the CPU to a library that runs
without Python (:mod:`zoo.inference.library`), for a GPU by :func:`torch.compile` under CUDA graphs.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import _DIM_ALLOCATOR
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from zoo.errors import DataError, PairError, suggest
from zoo.inference.library import Library, build, lift_constants
from zoo.inference.promotion import OneType
from zoo.inference.reads import MOST_NODES, Frozen, Guard, Reads, first_difference, line_of, too_long
from zoo.inference.watch import Own, Watch

__all__ = [
    "LOCK",
    "NUMBERS",
    "Layout",
    "Program",
    "answer_pyro",
    "compile_function",
    "discover",
    "no_compiler",
    "pyro_world",
    "stream",
]

_PYRO = str(Path(str(pyro.__file__)).parent)
_TORCH = str(Path(str(torch.__file__)).parent)
_MOST_STEPS = 30  # of a recurrent layer that is unrolled
_WORK = 5e8  # floating-point operations of a call for which another thread pays

# What makes a compiled program draw the eager run's random numbers: torch's own generators, in the order of the graph
# (scheduling for memory would move draws past each other), each filling memory in the order of its indices (a
# convolution whose layout is changed hands it on to randn_like). On the CPU the changed layout is slower, too.
_SAME_DRAWS = {"fallback_random": True, "reorder_for_peak_memory": False, "layout_optimization": False}


@dataclass(frozen=True)
class _Surroundings:
    """What is process-wide in Pyro and torch, and another while a pair runs."""

    dtype: torch.dtype
    rng: Tensor
    plates: list[Any]
    handlers: list[Any]
    store: tuple[dict[str, Any], ...]
    validation: tuple[bool, bool, bool]

    @classmethod
    def now(cls) -> _Surroundings:
        store = pyro.get_param_store()
        return cls(
            torch.get_default_dtype(),
            torch.get_rng_state(),
            _DIM_ALLOCATOR._stack,
            list(_PYRO_STACK),
            tuple(dict(getattr(store, name)) for name in _STORE),
            (
                pyro.infer.util.is_validation_enabled(),
                dist.is_validation_enabled(),
                poutine.util.is_validation_enabled(),
            ),
        )

    def restore(self) -> None:
        torch.set_default_dtype(self.dtype)
        torch.set_rng_state(self.rng)
        _DIM_ALLOCATOR._stack = self.plates
        _PYRO_STACK[:] = self.handlers
        for name, value in zip(_STORE, self.store, strict=True):
            setattr(pyro.get_param_store(), name, value)
        infer, distributions, handlers = self.validation
        pyro.infer.util.enable_validation(infer)
        dist.enable_validation(distributions)
        poutine.util.enable_validation(handlers)


_STORE = ("_params", "_constraints", "_param_to_name")


class _Lock:
    """A reentrant lock on what is process-wide, free in a process that is forked while another thread holds it."""

    def __init__(self) -> None:
        self._lock, self._depth, self._owner = threading.RLock(), 0, 0
        self._outside: _Surroundings | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        if not self._depth:
            self._owner, self._outside = threading.get_ident(), _Surroundings.now()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._lock.release()

    def renew(self) -> None:
        """Begin anew in a child: the thread that held the lock is not there to put anything back."""
        if self._depth and self._owner == threading.get_ident():
            return
        self._lock = threading.RLock()
        if self._depth and self._outside is not None:
            self._outside.restore()
        self._depth = 0


# Pyro's handler stack, parameter store and validation switches are process-wide: whoever touches them holds this lock.
LOCK = _Lock()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=LOCK.renew)


# ------------------------------------------------------------------------------------------- the outside world
@contextmanager
def pyro_world(
    *, dtype: torch.dtype | None = None, device: str | torch.device | None = None, validate: bool = False
) -> Iterator[None]:
    """Hold the lock, hide the caller's handlers and plates, and set Pyro's validation and torch's defaults until exit.

    Args:
        dtype: Default floating-point type inside.
        device: Default device inside.
        validate: Whether Pyro checks shapes, supports and plates inside.

    Yields:
        Nothing.
    """
    with LOCK:
        before, plates = torch.get_default_dtype(), _DIM_ALLOCATOR._stack
        if dtype is not None:
            torch.set_default_dtype(dtype)
        _DIM_ALLOCATOR._stack = []  # or the caller's plates would move those of the pair to other dimensions
        try:
            on_device = torch.device(device) if device is not None else torch.device("cpu")
            # Parameters that modules keep to themselves are read by name here, as all others are.
            local = pyro.settings.context(module_local_params=False)
            with pyro.validation_enabled(validate), poutine.block(), local:
                if on_device.type == "cpu":
                    yield
                else:
                    with on_device:
                        yield
        finally:
            torch.set_default_dtype(before)
            _DIM_ALLOCATOR._stack = plates


@contextmanager
def stream(state: dict[str, Tensor]) -> Iterator[None]:
    """Swap in one fit's random numbers; on exit ``state`` holds where they stopped, and the caller's go on as before.

    Args:
        state: ``{"cpu": ...}`` and, with a GPU, ``{"cuda": ...}``, as of :func:`torch.get_rng_state`. Updated.

    Yields:
        Nothing.
    """
    cuda = "cuda" in state
    before = torch.get_rng_state()
    before_cuda = torch.cuda.get_rng_state() if cuda else None
    torch.set_rng_state(state["cpu"])
    if cuda:
        torch.cuda.set_rng_state(state["cuda"])
    try:
        yield
    finally:
        state["cpu"] = torch.get_rng_state()
        torch.set_rng_state(before)
        if cuda:
            state["cuda"] = torch.cuda.get_rng_state()
            torch.cuda.set_rng_state(before_cuda)  # type: ignore[arg-type]


def seeded(seed: int, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Return the random state of a fresh stream.

    Args:
        seed: Any integer from 0 to 2**63 - 1.
        device: With a CUDA device, its stream is made too.

    Returns:
        A state for :func:`stream`.
    """
    state = {"cpu": torch.Generator().manual_seed(seed).get_state()}
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.Generator(device).manual_seed(seed).get_state()
    return state


# --------------------------------------------------------------------------------------- what tracing asks for
class _Bound(TorchFunctionMode):
    """Put given values in the place of closed-over tensors; while tracing, keep Pyro's own checks from reading numbers.

    Pyro reads numbers out of tensors in few places, none of which decides what is computed: the reported loss
    (``torch_item``), NaN warnings, a guard in ``Dice.compute_expectation`` and a scale check for enumeration. They are
    recognised by the calling frame, so a model's own ``.item()`` still raises, and is reported.
    """

    def __init__(self, values: Mapping[int, Tensor], *, tracing: bool) -> None:
        super().__init__()
        self.values = values
        self.tracing = tracing

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.values:
            args = tuple(self._swap(a) for a in args)
            if kwargs:
                kwargs = {k: self._swap(v) for k, v in kwargs.items()}
        if self.tracing and func in NUMBERS:
            code = sys._getframe(1).f_code
            if code.co_filename.startswith(_PYRO):
                answer = answer_pyro(func, code.co_name, args)
                if answer is not NotImplemented:
                    return answer
        if self.tracing and func is torch._is_all_true and "distribution" in sys._getframe(1).f_code.co_filename:
            return True  # asked by a distribution that was built, with validation, outside the pair
        if self.tracing and func in _ASIDE:
            answer = _aside(func, args)
            if answer is not NotImplemented:
                return answer
        if self.tracing and func in _RECURRENT:
            return _unroll(func, args, kwargs)
        if self.tracing and func in _INDEXED:
            return _index(func, *args)
        return func(*args, **kwargs)

    def _swap(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.values.get(id(value), value)
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            swapped = [self.values.get(id(v), v) if isinstance(v, Tensor) else v for v in value]
            return type(value)(swapped) if type(value) in (list, tuple) else value
        return value


_INDEXED = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


def _index(func: Any, tensor: Tensor, index: Any, *value: Any) -> Any:
    """Index a tensor, by a scalar tensor without reading its number."""
    parts = list(index) if isinstance(index, tuple) else [index]
    plain = all(p is None or p is Ellipsis or type(p) in (int, slice) or _scalar(p) for p in parts)
    if not plain or not any(_scalar(p) for p in parts) or (value and len(parts) > 1):
        return func(tensor, index, *value)
    if value:
        return func(tensor, parts[0].reshape(1), *value)
    at, left = 0, sum(p is not None and p is not Ellipsis for p in parts)
    for part in parts:
        if part is None:
            tensor, at = tensor.unsqueeze(at), at + 1
        elif part is Ellipsis:
            at = tensor.dim() - left
        else:
            left -= 1
            own = part.reshape(1) if _scalar(part) else part
            tensor = func(tensor, (*[slice(None)] * at, own))
            if own is not part:
                tensor = tensor.squeeze(at)
            elif isinstance(part, slice):
                at += 1
    return tensor


def _scalar(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dim() == 0 and part.dtype in (torch.int64, torch.int32, torch.int16)


NUMBERS = {torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.masked_select}


def answer_pyro(func: Any, caller: str, args: tuple[Any, ...]) -> Any:
    """Answer what a function of Pyro asks of a tensor that has no numbers, as it is traced or stands for many draws.

    Args:
        func: What is asked, one of ``NUMBERS``.
        caller: Name of Pyro's function.
        args: Arguments of ``func``.

    Returns:
        The answer, or ``NotImplemented``.
    """
    if func is torch.Tensor.item:
        return NotImplemented if caller == "__iter__" else args[0].detach()  # a plate as a loop counts by numbers
    if func is torch.Tensor.__bool__ and caller in ("_standard_stable", "_safe_shift"):
        return True  # whether the general case is among the elements, which is computed for all of them
    if func is torch.Tensor.__bool__ and caller in ("warn_if_nan", "compute_expectation"):
        return False
    if func is torch.Tensor.masked_select and caller == "compute_expectation":
        # Terms of probability zero may be infinite; Pyro leaves them out of the sum, here they become zero.
        return torch.where(args[1], args[0], torch.zeros((), dtype=args[0].dtype, device=args[0].device))
    if func is torch.Tensor.__float__ and caller == "_get_common_scale":
        return float(id(args[0]))  # Pyro's comment: a cheap comparison by identity
    return NotImplemented


_ASIDE = {torch.Tensor.register_hook, torch.Tensor.nonzero}


def _aside(func: Any, args: tuple[Any, ...]) -> Any:
    """Answer what Pyro does with tensors beside computing, while a graph is recorded."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(_PYRO):
        return NotImplemented
    caller = frame.f_code.co_name
    if func is torch.Tensor.register_hook and caller == "warn_if_nan":  # it would look at every gradient
        return None
    if func is torch.Tensor.nonzero and caller == "__call__" and args[0].dim() == 2:
        # EnergyDistance asks for all pairs of its particles, by the ones below the diagonal.
        size = args[0].shape[0]
        return torch.tensor([[i, j] for i in range(size) for j in range(i)], device=args[0].device)
    return NotImplemented


_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


def _unroll(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a recurrent layer so that a short sequence becomes plain operations, and refuse a long one."""
    packed = isinstance(args[1], Tensor) and args[1].dim() == 1
    if packed:
        _, sizes, _, _, _, layers, _, _, bidirectional = args
        length = len(sizes)
    else:
        x, _, _, _, layers, _, _, bidirectional, batch_first = args
        length = x.shape[1 if batch_first else 0]
    steps = length * layers * (2 if bidirectional else 1)
    if steps > _MOST_STEPS:
        raise NotImplementedError(
            f"torch's {func.__name__} takes {steps} steps, which would all stand in the graph; up to {_MOST_STEPS} "
            "are compiled, and so long a recurrence is as fast without"
        )
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # with it, the layer is an operation that no library can call
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._set_mkldnn_enabled(before)


class LastSite(Messenger):  # type: ignore[misc]
    """Remember the name of the last site seen, to name it when something goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""

    def _pyro_sample(self, msg: Any) -> None:
        self.name = str(msg["name"])

    def _pyro_param(self, msg: Any) -> None:
        self.name = str(msg["name"])


# ----------------------------------------------------------------------------------------------------- layout
@dataclass
class Layout:
    """What a Pyro program reads and writes besides its batch.

    Args:
        names: Parameters of the store, in order of first use.
        values: Their initial unconstrained values.
        constraints: Their constraints.
        aliases: The tensors that stood in the store at discovery. A module's parameters are among them, so that a
            closed-over module reads the bound values too.
        modules: Modules that the program runs.
        buffers: Name -> (module, key) of every buffer that a run writes (batch statistics).
        buffer_values: Their initial values.
        kept: The modules' states in this fit; without one they run as they are.
        loose: Parameters of the modules that are not in the store, so that they are not trained.
        hidden: Parameters of the store that the program hides (``poutine.block``), so that they are not trained.
    """

    names: tuple[str, ...]
    values: dict[str, Tensor]
    constraints: dict[str, Any]
    aliases: dict[str, Tensor]
    modules: tuple[nn.Module, ...] = ()
    buffers: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    buffer_values: dict[str, Tensor] = field(default_factory=dict)
    kept: tuple[Own, ...] = ()
    loose: tuple[Tensor, ...] = ()
    hidden: frozenset[str] = frozenset()

    @contextmanager
    def bind(
        self,
        values: Sequence[Tensor],
        buffers: Sequence[Tensor] = (),
        *,
        tracing: bool = False,
        evaluate: bool = False,
    ) -> Iterator[None]:
        """Run a block with these unconstrained values and buffers in the place of the program's own.

        Args:
            values: One leaf per name; gradients accumulate on them.
            buffers: One tensor per buffer, changed in place by the program.
            tracing: Whether :func:`make_fx` is recording.
            evaluate: Whether modules are in evaluation mode.

        Yields:
            Nothing.
        """
        for value in values:
            value._is_param = True  # PyroModule keeps what it takes for a Parameter
        state = {"params": dict(zip(self.names, values, strict=True)), "constraints": dict(self.constraints)}
        with self.states(evaluate=evaluate):
            swap = {id(self.aliases[n]): v for n, v in zip(self.names, values, strict=True)}
            places = list(zip(self.buffers.values(), buffers, strict=True))
            for (module, key), value in places:
                swap[id(module._buffers[key])] = value
                module._buffers[key] = value
            # Bound values are put in first: they may be of another type than what they meet.
            types = OneType(torch.get_default_dtype())
            with pyro.get_param_store().scope(state), types, _Bound(swap, tracing=tracing):
                yield
            for (module, key), value in places:
                new = module._buffers[key]
                if new is not value and new is not None:  # assigned, in place of written
                    with torch.no_grad():
                        value.copy_(new)

    @contextmanager
    def states(self, *, evaluate: bool = False) -> Iterator[None]:
        """Run a block with the modules in their states of this fit.

        Args:
            evaluate: Whether they are in evaluation mode.

        Yields:
            Nothing.
        """
        owners = [own.enter() for own in self.kept]
        saved = [(m, dict(m._parameters), dict(m._buffers), m.training) for m in self.modules]
        slopes = [(p, p.grad) for p in self.loose]
        try:
            if evaluate:
                for module in self.modules:
                    module.training = False
            yield
        finally:
            for module, params, buffers, training in saved:
                module._parameters.update(params)
                module._buffers.update(buffers)
                if evaluate:
                    module.training = training
            for parameter, slope in slopes:
                parameter.grad = slope
            for own, before in zip(reversed(self.kept), reversed(owners), strict=True):
                own.leave(before)

    def constrained(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map unconstrained values to the constrained ones that ``pyro.param`` returns.

        Args:
            values: Name -> unconstrained value.

        Returns:
            Name -> constrained value, detached.
        """
        from torch.distributions import transform_to

        return {n: transform_to(self.constraints[n])(v.detach()) for n, v in values.items()}

    def unconstrained(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map constrained values to unconstrained ones, the inverse of :meth:`constrained`.

        Args:
            values: Name -> constrained value.

        Returns:
            Name -> unconstrained value, of the type and on the device of the layout's own.

        Raises:
            DataError: If a name is unknown, or a value has another shape or lies outside of its constraint.
        """
        from torch.distributions import transform_to

        found = {}
        for name, value in values.items():
            if name not in self.values:
                raise DataError(f"initial value '{name}' is no parameter of the pair{suggest(name, self.names)}")
            own, constraint = self.values[name], self.constraints[name]
            value = value.detach().to(own)
            result = transform_to(constraint).inv(value)
            if result.shape != own.shape:
                raise DataError(
                    f"initial value '{name}' has shape {tuple(value.shape)}; the parameter has "
                    f"{tuple(transform_to(constraint)(own).shape)}"
                )
            if not bool(torch.isfinite(result).all()):
                raise DataError(f"initial value '{name}' is not finite or lies outside of its constraint, {constraint}")
            found[name] = result
        return found


def discover(
    run: Callable[[], Any], closures: Iterable[Any], *, dtype: torch.dtype, device: Any, renew: bool = False
) -> Layout:
    """Run a program once in an empty store and list what it reads and writes.

    Args:
        run: Runs the program; called once, with the caller's random stream.
        closures: Callables in whose closures modules are looked for; others are found as they run.
        dtype: Type that every floating-point parameter is turned into.
        device: Where the values shall live.
        renew: Whether layers that were built outside of the program begin at new random values, not at their own.

    Returns:
        The layout, with initial values; modules are left as they were.

    Raises:
        PairError: If a parameter is not of a floating-point type.
    """
    watch, store = Watch(), pyro.get_param_store()
    with watch.open(closures), store.scope({"params": {}, "constraints": {}}):
        with OneType(torch.get_default_dtype()), poutine.trace(param_only=True) as seen:
            run()
        state = store.get_state()
        aliases = dict(state["params"])
        kept = {n: _stateless(c) for n, c in state["constraints"].items()}
        drawn = watch.renewed() if renew else {}
    wrong = [n for n, p in aliases.items() if not p.is_floating_point()]
    if wrong:
        raise PairError(f"parameter '{wrong[0]}' is {aliases[wrong[0]].dtype}; parameters must be floating point")
    trained = {id(p) for p in aliases.values()}
    return Layout(
        names=tuple(aliases),
        values={n: drawn.get(id(p), p.detach()).to(device=device, dtype=dtype, copy=True) for n, p in aliases.items()},
        constraints=kept,
        aliases=aliases,
        modules=tuple(watch.modules),
        buffers=watch.written,
        buffer_values={n: b.to(device) for n, b in watch.first.items()},
        kept=tuple(watch.kept),
        loose=tuple(p for p in watch.parameters if p.requires_grad and id(p) not in trained),
        hidden=frozenset(aliases) - frozenset(seen.trace.nodes),
    )


def _stateless(constraint: Any) -> Any:
    return constraints.real if isinstance(constraint, type(constraints.real)) else constraint


# ---------------------------------------------------------------------------------------------------- compile
@dataclass
class Program:
    """A function of tensors, compiled where that is possible.

    Args:
        call: ``call(*tensors)`` -> tuple of tensors; what runs where there is no library.
        reason: Why it runs eagerly; empty if it is compiled.
        nodes: Size of the traced graph.
        library: The compiled graph, called without Python.
        threads: Threads that it runs on.
        first: Shape and type of its first output.
        surplus: Outputs at the end that are nobody's.
        kept: Whether numbers were read from fixed inputs, so that it holds for these alone.
        guard: What tells for which inputs it holds; ``None``: for all of their shapes.
    """

    call: Callable[..., Any]
    reason: str = ""
    nodes: int = 0
    library: Library | None = None
    threads: int = 0
    first: tuple[tuple[int, ...], torch.dtype] | None = None
    surplus: int = 0
    kept: bool = False
    guard: Guard | None = None

    @property
    def compiled(self) -> bool:
        """Whether the compiled graph runs."""
        return not self.reason

    def run(
        self, inputs: Sequence[Tensor], *, back: Sequence[int], out: Sequence[Tensor | None], steps: int = 1,
        each: int = -1,
    ) -> Tensor:  # fmt: skip
        """Call the function several times, its outputs becoming inputs of the next call.

        Args:
            inputs: Tensors as in the example; input ``each`` has a further, first dimension of the steps.
            back: For every output the input that it becomes at the next step, or -1.
            out: For every output a tensor that takes it after the last step, or ``None``; it may be the input.
            steps: How many.
            each: The input that is another at every step; -1: none.

        Returns:
            The first output of every step, ``(steps, ...)``.
        """
        if self.library is not None and self.first is not None:
            shape, dtype = self.first
            first = torch.empty((steps, *shape), dtype=dtype)
            places = [t if t is None or t.is_contiguous() else torch.empty_like(t).contiguous() for t in out]
            extra = self.surplus
            with _threads(self.threads):
                self.library.run(
                    [t.contiguous() for t in inputs], steps=steps, first=first, each=each,
                    back=[*back, *[-1] * extra], out=[*places, *[None] * extra],
                )  # fmt: skip
            for mine, theirs in zip(places, out, strict=True):
                if theirs is not None and mine is not None and theirs is not mine:
                    theirs.copy_(mine)
            return first
        current, kept = list(inputs), []
        found: Sequence[Tensor] = ()
        for step in range(steps):
            if each >= 0:
                current[each] = inputs[each][step]
            found = self.call(*current)
            kept.append(found[0])
            for value, to in zip(found, back, strict=False):
                if to >= 0:
                    current[to] = value
        with torch.no_grad():
            for value, place in zip(found, out, strict=False):
                if place is not None:
                    place.copy_(value)
        return torch.stack(kept)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def no_compiler() -> str:
    """Return why nothing can be compiled on this machine, or an empty string.

    Returns:
        The reason in one clause.
    """
    named = os.environ.get("CXX", "").split()
    candidates = named[:1] or ["g++", "clang++", "cl"]
    if not any(shutil.which(c) for c in candidates):
        return f"no C++ compiler is installed (looked for {', '.join(candidates)})"
    if sys.platform != "win32" and not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "the Python headers (Python.h) are not installed"
    return ""


def compile_function(
    function: Callable[..., Any],
    example: Sequence[Tensor],
    *,
    eager: Callable[..., Any] | None = None,
    fixed: Collection[int] = (),
    given: Collection[int] = (),
    checked: bool = False,
    steady: Callable[[Guard], str] | None = None,
) -> Program:
    """Trace a function of tensors to one flat graph and compile it; on any failure return it eager, with the reason.

    The function's random numbers, when compiled, are those of the eager run. Where two eager runs on the same inputs
    differ, they depend on a state of Python's (a counter, another random stream, the clock), which a graph would hold
    still; it stays eager, too.

    Args:
        function: ``function(*tensors)`` -> tuple of tensors, safe to trace.
        example: Inputs of the shapes, strides, dtypes and devices that will be used.
        eager: What runs when the graph cannot; ``function`` if ``None``.
        fixed: Positions of the inputs that are the same tensors at every call, from which numbers may be read.
        given: Positions of inputs from which numbers may be read under a guard: the program is then right for inputs
            for which it holds, which the caller asks before every call.
        checked: Whether what is asserted of ``given`` inputs was found to hold for all of them.
        steady: Says why a graph under a guard is not worth compiling; empty if it is.

    Returns:
        The program.
    """
    eager = eager or function
    reason = no_compiler()
    if reason:
        return Program(eager, reason)
    rng = torch.get_rng_state()
    try:
        graph, reads, reason = _traced(function, example, fixed, given, checked=checked)
        if graph is None:
            return Program(eager, reason)
        guard = reads.guard()
        reason = "" if guard is None or steady is None else steady(guard)
        if reason:
            return Program(eager, reason, guard=guard)
        _draw_directly(graph)
        surplus = _keep_draws(graph)
        graph.graph.eliminate_dead_code()
        nodes = len(graph.graph.nodes)
        if nodes > MOST_NODES:
            return Program(eager, too_long(""), nodes)
        torch.set_rng_state(rng)
        try:
            if all(t.device.type == "cpu" for t in example) and sys.platform != "win32":
                program = _ahead_of_time(graph, example, eager, surplus)
            else:
                program = _just_in_time(graph, example, surplus)
        except Exception as error:
            return Program(eager, f"cannot be compiled: {_first_line(error)}", nodes)
        program.kept, program.guard = reads.kept, guard
        return program
    finally:
        torch.set_rng_state(rng)


def _traced(
    function: Callable[..., Any],
    example: Sequence[Tensor],
    fixed: Collection[int],
    given: Collection[int] = (),
    *,
    checked: bool = False,
) -> tuple[torch.fx.GraphModule | None, Reads, str]:
    """Record a graph, or say why there is none."""
    site, reads, rng = LastSite(), Reads(fixed, given, checked=checked), torch.get_rng_state()

    def record() -> torch.fx.GraphModule:
        torch.set_rng_state(rng)
        with reads:
            return make_fx(function)(*example)

    try:
        with site:
            graph = record()
        if not _repeats(function, example):
            reads.lines = []
            at = first_difference(graph, record())
            if at is not None:  # else it is only the order of sums, on a GPU
                line = next((line for count, line in reads.lines if count > at), "")
                return None, reads, (
                    f"computes something else each time that it is called{f', from {line} on' if line else ''}: it "
                    "depends on a counter, a random stream other than torch's, or the clock; hand what changes in with "
                    "the batch"
                )  # fmt: skip
    except Exception as error:
        where = f" at site '{site.name}'" if site.name else ""
        line = line_of(error)
        if isinstance(error, Frozen):
            text = str(error).splitlines()[0]  # Pyro adds the shapes of its trace
        elif "trying to get value out of a tracing tensor" in str(error):
            text = "a number is read out of a tensor, which would stay that of the first call; compute with tensors"
        elif "tracing_mode" in str(error) or "DataDependent" in type(error).__name__:
            text = "an operation needs numbers out of a tensor, which a graph does not know; compute with tensors"
        else:
            text = _first_line(error)
        said = "" if not line or text.startswith(line) else f" ({line})"
        return None, reads, f"cannot be traced{where}{said}: {text}"
    return graph, reads, ""


def _repeats(function: Callable[..., Any], example: Sequence[Tensor]) -> bool:
    """Whether two runs on the same inputs, with the same random numbers of torch, give the same outputs."""
    rng, runs = torch.get_rng_state(), []
    for _ in range(2):
        torch.set_rng_state(rng)
        runs.append(function(*example))
    return all(bool((a.eq(b) | (a.ne(a) & b.ne(b))).all()) for a, b in zip(*runs, strict=True))


def _ahead_of_time(
    graph: torch.fx.GraphModule, example: Sequence[Tensor], eager: Callable[..., Any], surplus: int
) -> Program:
    """Compile a graph for the CPU to a library."""
    (end,) = graph.graph.find_nodes(op="output")
    value = end.args[0][0].meta["val"]
    threads = min(torch.get_num_threads(), max(1, round(_work(graph) / _WORK)))
    flat, constants = lift_constants(graph)
    example = [t.contiguous() for t in example]
    with _threads(threads):
        path = build(flat, [*example, *constants], {**_SAME_DRAWS, "cpp.threads": threads})
    library = Library(path, example, constants)
    count = len(end.args[0])
    trial = torch.empty(value.shape, dtype=value.dtype)  # some operations fail only when they are called
    library.run(example, steps=1, first=trial, back=[-1] * count, out=[None] * count)
    first = (tuple(value.shape), value.dtype)
    return Program(eager, "", len(flat.graph.nodes), library, threads, first, surplus)


def _just_in_time(graph: torch.fx.GraphModule, example: Sequence[Tensor], surplus: int) -> Program:
    """Compile a graph for a GPU, whose kernels are recorded to a CUDA graph."""
    # Tracing wrote Python frames into every node; thousands of them only slow the compiler down.
    for node in graph.graph.nodes:
        node.meta.pop("stack_trace", None)
    graph.recompile()
    on_gpu = any(t.device.type == "cuda" for t in example)
    options: dict[str, Any] = {**_SAME_DRAWS, **({"triton.cudagraphs": True} if on_gpu else {})}
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    compiled(*[t.clone() for t in example])

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = compiled(*inputs)
        if on_gpu:  # the next replay writes to the same memory
            found = tuple(t.clone() for t in found)
        return found[:-surplus] if surplus else found

    return Program(call, "", len(graph.graph.nodes))


def _work(graph: torch.fx.GraphModule) -> float:
    """Return the floating-point operations of a graph's matrix products and convolutions."""
    total = 0.0
    for node in graph.graph.nodes:
        count = flop_registry.get(getattr(node.target, "overloadpacket", None))
        if node.op != "call_function" or count is None:
            continue
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        total += float(count(*args, **kwargs, out_val=node.meta["val"]))
    return total


def _draw_directly(graph: torch.fx.GraphModule) -> None:
    """Draw standard normal numbers into new memory; filling empty memory in place would be compiled with a copy."""
    aten = torch.ops.aten
    for node in graph.graph.find_nodes(op="call_function", target=aten.normal_.default):
        empty, *moments = node.args
        standard = moments in ([], [0], [0, 1]) and not node.kwargs
        plain = empty.target is aten.empty.memory_format and "memory_format" not in empty.kwargs
        if standard and plain and len(empty.users) == 1:
            node.target, node.args, node.kwargs = aten.randn.default, empty.args, empty.kwargs


def _keep_draws(graph: torch.fx.GraphModule) -> int:
    """Make draws whose values nobody uses outputs, an element of each, and return how many these are."""
    # A compiler would leave them out, and every later draw would then differ from the eager run's.
    (end,) = graph.graph.find_nodes(op="output")
    alive, todo = set(), [end]
    while todo:
        node = todo.pop()
        if node not in alive:
            alive.add(node)
            todo += node.all_input_nodes
    lost = [
        node
        for node in graph.graph.nodes
        if node not in alive
        and isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    ]
    with graph.graph.inserting_before(end):
        for node in lost:
            flat = graph.graph.call_function(torch.ops.aten.reshape.default, (node, [-1]))
            one = graph.graph.call_function(torch.ops.aten.slice.Tensor, (flat, 0, 0, 1))
            end.args = ((*end.args[0], one),)
    return len(lost)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0].strip() if lines else ""
    return f"{type(error).__name__}: {text[:300]}"
