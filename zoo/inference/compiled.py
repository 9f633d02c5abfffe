"""``zoo.compile_svi``: a compiled ``SVI.step`` for any Pyro pair, also one that is not of the zoo."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils import _pytree as pytree

from zoo.errors import PairError
from zoo.inference.averages import FirstValues, find_averages, put, take
from zoo.inference.objectives import Estimate, to_pyro
from zoo.inference.optimisers import Rule, Slots, as_pyro, bind, update
from zoo.inference.program import (
    LOCK,
    Layout,
    Program,
    _stateless,
    compile_function,
    pyro_world,
)
from zoo.inference.promotion import OneType
from zoo.inference.reads import Guard
from zoo.inference.sites import traces
from zoo.inference.validation import check_trace
from zoo.inference.watch import Watch
from zoo.types import Elbo

__all__ = ["CompiledSVI", "compile_svi"]

_MOST_VALUES = 3  # of a float that cannot be an input, and of numbers that a pair reads out of its arguments
_MANY_VALUES = "a float among the arguments takes other values"


class _Traced:
    """A program, what it reads and writes, the state of the optimiser within it, and parameters without a gradient."""

    def __init__(
        self,
        layout: Layout,
        program: Program,
        rules: tuple[Rule, ...] | None,
        slots: Slots | None,
        averages: tuple[str, ...],
        without: tuple[int, ...] = (),
        idle: tuple[int, ...] = (),
    ) -> None:
        self.layout, self.program, self.rules, self.slots = layout, program, rules, slots
        self.modes = [m.training for m in layout.modules]
        self.averages = averages
        self.without, self.idle = without, idle


def _idle(params: Sequence[Tensor | None], without: Iterable[int]) -> tuple[int, ...]:
    """Return which parameters no step has touched and this one does not either: torch's optimisers pass them by."""
    return tuple(i for i in without if getattr(params[i], "grad", None) is None)


class CompiledSVI:
    """What :func:`compile_svi` returns: ``step(*args, **kwargs)`` takes one optimiser step and returns the loss.

    Each new combination of shapes, dtypes, devices and values of arguments that are not tensors is traced once, after a
    first step that is Pyro's own, and so are all steps of a pair that cannot be compiled (``reason`` says why). A float
    that takes another value becomes an input of the graph like a tensor, where the pair allows (it does not decide on
    it). Numbers that the pair reads out of its arguments (``int(x.max())``, the lengths of packed sequences) are read
    again before every call; a program is compiled when the same ones come again, for three of them at most. Modules are
    trained in the mode that they are in. Numbers that model or guide read from elsewhere (a global, an attribute) are
    frozen at the first call, unless they change with every call, which is seen: hand what changes
    between steps in as an argument. The update of Adam, AdamW and ClippedAdam is part of the compiled graph, its
    state and learning rates stay in ``optim``; other optimisers, schedulers and clipping run after the graph.

    Args:
        model: Any Pyro model.
        guide: Its guide.
        loss: What it minimises.
        optim: One of :mod:`pyro.optim`'s optimisers.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], loss: Estimate, optim: PyroOptim) -> None:
        self.model, self.guide, self.loss, self.optim = model, guide, loss, optim
        self._programs: dict[Any, _Traced] = {}
        self._rehearsed: set[Any] = set()
        self._guards: dict[Any, list[Guard | None]] = {}
        self._floats: dict[Any, _Floats] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take one step.

        Args:
            *args: Arguments of model and guide.
            **kwargs: Likewise.

        Returns:
            The loss before the step, a scalar tensor.
        """
        return self._run(1, args, kwargs)[0]

    def run(self, steps: int, *args: Any, **kwargs: Any) -> Tensor:
        """Take several steps on the same arguments, without Python between them where the optimiser allows.

        Args:
            steps: How many.
            *args: Arguments of model and guide.
            **kwargs: Likewise.

        Returns:
            The loss before every step, ``(steps,)``.

        Raises:
            PairError: If ``steps`` is less than 1.
        """
        if steps < 1:
            raise PairError(f"steps is {steps}; allowed: 1 or more")
        found = [self._run(1, args, kwargs)]  # registers the optimiser's state
        if steps > 1 and next(reversed(self._programs.values())).slots is not None:
            found.append(self._run(steps - 1, args, kwargs))
        else:
            found += [self._run(1, args, kwargs) for _ in range(steps - 1)]
        return torch.cat(found)

    def _run(self, steps: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if pyro.settings.get("module_local_params"):
            raise PairError(
                "compile_svi trains the parameters of Pyro's store, but pyro.settings has module_local_params=True; "
                "set it to False, or use zoo.fit"
            )
        given = args, kwargs
        taken, wanted = self._with_inputs(given)
        leaves: list[Any] = []
        key = (torch.get_default_dtype(), _flatten(taken, leaves))
        with LOCK:
            self._programs.pop("eager", None)
            tensors = [v for v in leaves if isinstance(v, Tensor)]
            guards = self._guards.get(key, [])
            at = next((i for i, guard in enumerate(guards) if guard is None or guard.holds(tensors)), len(guards))
            found = self._programs.pop((key, at), None)
            waiting = found is not None and bool(found.program.reason) and found.program.guard is not None
            if waiting:
                found = None  # the same numbers come a second time
            if at == _MOST_VALUES and guards[0] is not None:
                found, wanted, read = None, False, f"cannot be traced: {guards[0].text}"
            else:
                read = ""
            params = None if found is None else self._current(found)
            if found is not None and params is not None:
                self._programs[key, at] = found  # the latest comes last
                if found.program.compiled:
                    return self._take(found, steps, params, tensors)
                return torch.cat([self._step(given) for _ in range(steps)])
            # What happens once (parameters and guides are made, depths of plates guessed) happens here, as under Pyro.
            loss = self._step(given, check=wanted)
            rng = torch.get_rng_state()
            if wanted:
                found = self._trace(taken, leaves, again=waiting)
                if found.program.reason and self._refuse_inputs(given, taken, found.program.reason):
                    leaves = []
                    key = (torch.get_default_dtype(), _flatten(given, leaves))
                    found, at = self._trace(given, leaves, again=waiting), 0
            else:
                nothing = Layout(names=(), values={}, constraints={}, aliases={})
                found = _Traced(nothing, Program(tuple, read or _MANY_VALUES), None, None, ())
            torch.set_rng_state(rng)
            if wanted:
                guards = self._guards.get(key, [])
                self._guards[key] = [*guards[:at], found.program.guard, *guards[at + 1 :]]
            self._programs[(key, at) if wanted else "eager"] = found
        return loss if steps == 1 else torch.cat([loss, self._run(steps - 1, args, kwargs)])

    def _current(self, found: _Traced) -> list[Tensor] | None:
        """Return the parameters of a program; ``None`` if it has to be traced anew."""
        if found.modes != [m.training for m in found.layout.modules]:
            return None
        if not found.program.compiled:
            return []
        store = pyro.get_param_store()
        params = [store._params.get(n) for n in found.layout.names]
        if any(p is None for p in params) or any(n not in store for n in found.averages):
            return None
        if found.idle != _idle(params, found.without):
            return None
        if found.slots is None or not found.slots.current(self.optim, params):
            slots = bind(self.optim, params)
            if (None if slots is None else slots.rules) != found.rules:
                return None
            found.slots = slots
        return params

    def _step(self, given: tuple[tuple[Any, ...], dict[str, Any]], *, check: bool = False) -> Tensor:
        """Take a step as ``SVI.step`` does."""
        args, kwargs = given
        world = pyro_world(validate=is_validation_enabled())
        try:
            with world, torch.enable_grad(), OneType(torch.get_default_dtype()):
                self._rehearse(args, kwargs)
                with poutine.trace(param_only=True) as capture:
                    loss = self.loss(self.model, self.guide, *args, **kwargs)
                params = {site["value"].unconstrained() for site in capture.trace.nodes.values()}
                if not params:
                    raise PairError(
                        "neither guide nor model has a parameter (pyro.param), so there is nothing to train"
                    )
                self.optim(params)
                pyro.infer.util.zero_grads(params)
        except Exception:
            if check:
                self._check(args, kwargs)
            raise
        if check:
            self._check(args, kwargs)
        return torch.as_tensor(loss, dtype=next(iter(params)).dtype).detach().reshape(1)

    def _with_inputs(self, given: tuple[Any, ...]) -> tuple[tuple[Any, ...], bool]:
        """Return the arguments, floats as tensors from their second value on, and whether to compile for them."""
        leaves: list[Any] = []
        _flatten(given, leaves)
        floats = tuple(v for v in leaves if type(v) is float)
        if not floats:
            return given, True
        use = self._floats.setdefault(_form(given), _Floats())
        use.values.add(floats)
        if use.inputs and len(use.values) > 1:
            double = any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in leaves)
            kind = torch.float64 if double else torch.get_default_dtype()
            return tuple(_floats_as(given, lambda v: torch.tensor(v, dtype=kind))), True
        if len(use.values) == _MOST_VALUES:
            warnings.warn(
                f"compile_svi runs eagerly from here on: a float among the arguments has its value number "
                f"{_MOST_VALUES}, here {floats[0]!r}, and cannot be an input of the graph ({use.reason}); hand in what "
                "changes as a tensor",
                RuntimeWarning,
                stacklevel=4,
            )
        return given, len(use.values) < _MOST_VALUES

    def _refuse_inputs(self, given: tuple[Any, ...], taken: tuple[Any, ...], reason: str) -> bool:
        """After a failure, go back to floats that are frozen if they were inputs."""
        use = self._floats.get(_form(given))
        if taken is given or use is None:
            return False
        use.inputs, use.reason = False, reason
        return True

    def _take(self, found: _Traced, steps: int, params: list[Tensor], tensors: list[Tensor]) -> Tensor:
        count, slots = len(params), found.slots
        buffers: list[Any] = [module._buffers[k] for module, k in found.layout.buffers.values()]
        buffers += take(found.averages)
        values = [p.detach() for p in params]
        if slots is None:
            state: list[Tensor] = []
            written = [torch.empty_like(v, memory_format=torch.contiguous_format) for v in values]
        else:
            state = [*slots.first, *slots.second, slots.rates]
            written = values
        inputs = [*values, *buffers, *state, *tensors]
        with pyro_world():
            losses = found.program.run(
                inputs, back=[-1, *range(count + len(buffers) + len(state))], out=[None, *written, *buffers, *state],
                steps=steps,
            )  # fmt: skip
        if slots is None:
            for i, (parameter, gradient) in enumerate(zip(params, written, strict=True)):
                parameter.grad = None if i in found.idle else gradient
            self.optim(set(params))
            pyro.infer.util.zero_grads(set(params))
        else:
            slots.advance(steps, found.idle)
        return losses

    @property
    def reason(self) -> str:
        """Why the latest program runs eagerly; empty if it is compiled."""
        return next(reversed(self._programs.values())).program.reason if self._programs else ""

    def _rehearse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Let an estimator draw what it draws once under Pyro."""
        if not self.loss.rehearsals or self.loss.rehearses_always:
            return
        key = len(args), _flatten(kwargs, [])
        if key not in self._rehearsed:
            self._rehearsed.add(key)
            self.loss.rehearse(self.model, self.guide, *args, **kwargs)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise if the model observes what it cannot have produced; what else is wrong, the loss will say itself."""
        if not is_validation_enabled():
            return
        rng, store = torch.get_rng_state(), pyro.get_param_store()
        try:
            with torch.no_grad(), store.scope(store.get_state()), Watch(own=False).open((self.model, self.guide)):
                found, _ = traces(self.model, self.guide, *args, **kwargs)
        except Exception:
            return
        finally:
            torch.set_rng_state(rng)
        check_trace(found)

    def _trace(self, given: tuple[tuple[Any, ...], dict[str, Any]], leaves: list[Any], *, again: bool) -> _Traced:
        args, kwargs = given
        tensors = [v for v in leaves if isinstance(v, Tensor)]
        rng = torch.get_rng_state()
        store = pyro.get_param_store()
        watch = Watch(own=False)
        without: set[str] = set()

        def gradient() -> None:
            for p in store._params.values():
                p.grad = None
            self.loss(self.model, self.guide, *args, **kwargs)
            without.clear()
            without.update(n for n, p in store._params.items() if p.grad is None)

        with (
            watch.open((self.model, self.guide)),
            store.scope(store.get_state()),
            torch.enable_grad(),
            OneType(torch.get_default_dtype()),
            poutine.trace(param_only=True) as capture,
        ):
            averages = tuple(find_averages(gradient, FirstValues()))
        torch.set_rng_state(rng)
        names = tuple(n for n in capture.trace.nodes if n not in averages)
        buffers = watch.written
        params = [store._params[n] for n in names]
        absent = tuple(i for i, n in enumerate(names) if n in without)
        idle = _idle(params, absent)
        layout = Layout(
            names=names,
            values={},
            constraints={n: _stateless(store._constraints[n]) for n in names},
            aliases=dict(zip(names, params, strict=True)),
            modules=tuple(watch.modules),
            buffers=buffers,
        )
        slots = bind(self.optim, params)
        rules = None if slots is None else slots.rules
        skeleton = _filled((args, kwargs), itertools.repeat(torch.empty(0)))  # does not keep the first batch alive

        def run(*inputs: Tensor, tracing: bool = False) -> tuple[Tensor, ...]:
            count, middle = len(names), len(names) + len(buffers) + len(averages)
            end = middle + (0 if rules is None else 2 * count + 1)
            own = [v.detach().requires_grad_(True) for v in inputs[:count]]
            kept, inner = [b.clone() for b in inputs[count:middle]], len(buffers)
            inner_args, inner_kwargs = _filled(skeleton, iter(inputs[end:]))
            with layout.bind(own, kept[:inner], tracing=tracing):
                put(averages, kept[inner:])
                loss = self.loss(self.model, self.guide, *inner_args, **inner_kwargs)
                held = [pyro.get_param_store()._params[n] for n in names]
                kept = kept[:inner] + take(averages)
            loss = torch.as_tensor(loss, dtype=own[0].dtype).detach()
            grads = [torch.zeros_like(v) if v.grad is None else v.grad for v in held]
            if rules is None:
                return (loss, *grads, *kept)
            first, second = inputs[middle : middle + count], inputs[middle + count : end - 1]
            new, firsts, seconds, rates = update(
                rules, inputs[:count], grads, first, second, inputs[end - 1], idle=idle
            )
            return (loss, *new, *kept, *firsts, *seconds, rates)

        example = [p.detach() for p in params] + [module._buffers[key] for module, key in buffers.values()]
        example += take(averages)
        if slots is not None:
            example += [*slots.first, *slots.second, slots.rates]
        with pyro_world():
            program = compile_function(
                lambda *v: run(*v, tracing=True), [*example, *tensors], eager=run,
                given=range(len(example), len(example) + len(tensors)), steady=None if again else _first_time,
            )  # fmt: skip
        return _Traced(layout, program, rules, slots, averages, absent, idle)


def compile_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    loss: ELBO | Elbo | Callable[..., Any] | None = None,
    optim: PyroOptim | type[torch.optim.Optimizer] | None = None,
) -> CompiledSVI:
    """Compile a pair's SVI step; use it as ``SVI(model, guide, optim, loss).step``.

    Parameters live in Pyro's current store, before and after, as with ``SVI.step``; several steps may share them, as
    wake and sleep phases do::

        step = zoo.compile_svi(model, guide, loss=Trace_ELBO(), optim=pyro.optim.Adam({"lr": 1e-2}))
        for x, y in batches:
            loss = step(x, y)

    Args:
        model: Any Pyro model.
        guide: Its guide.
        loss: One of Pyro's estimators, one of your own, or a function ``loss(model, guide, *args, **kwargs)`` that
            returns a scalar tensor; ``Trace_ELBO()`` if ``None``. The estimators whose names begin with ``Jit`` are
            taken as those without. Where an estimator returns several losses, as ``ReweightedWakeSleep`` does, the step
            returns their sum.
        optim: One of :mod:`pyro.optim`'s optimisers or schedulers, or a class of :mod:`torch.optim` at its own default
            rate; ``Adam({"lr": 1e-3})`` if ``None``.

    Returns:
        The step.

    Raises:
        PairError: If ``loss`` is no such loss, or ``optim`` no such optimiser.
    """
    loss = to_pyro(loss) if isinstance(loss, Elbo) else Trace_ELBO() if loss is None else loss
    optim = pyro.optim.Adam({"lr": 1e-3}) if optim is None else as_pyro(optim, {})
    return CompiledSVI(model, guide, Estimate(loss), optim)


def _first_time(guard: Guard) -> str:
    return f"is compiled when the same numbers come again: {guard.text}"


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """Append the leaves of nested containers in order, and return all that decides which program fits them."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return value.shape, value.dtype, value.device
    if type(value) is dict:
        return dict, *value, *[_flatten(v, leaves) for v in value.values()]
    if type(value) in (list, tuple):
        return type(value), *[_flatten(v, leaves) for v in value]
    if _named(value):
        return type(value), *[_flatten(v, leaves) for v in value]
    if not pytree.tree_is_leaf(value):  # a container that is registered with torch
        inner, spec = pytree.tree_flatten(value)
        return str(spec), *[_flatten(v, leaves) for v in inner]
    leaves.append(value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return type(value).__name__, value


@dataclass
class _Floats:
    """What became of the floats of one form of arguments."""

    values: set[tuple[float, ...]] = field(default_factory=set)
    inputs: bool = True  # of the graph, once there is a second value
    reason: str = ""


def _form(given: Any) -> Any:
    """Return what decides which program fits arguments, whatever their floats are."""
    return _flatten(_floats_as(given, lambda _: float), [])


def _floats_as(value: Any, new: Callable[[float], Any]) -> Any:
    """Return nested containers with something else in the place of every float."""
    if type(value) is float:
        return new(value)
    if type(value) is dict:
        return {k: _floats_as(v, new) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_floats_as(v, new) for v in value)
    return value


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return nested containers with other tensors in the places of theirs."""
    if isinstance(value, Tensor):
        return next(tensors)
    if type(value) is dict:
        return {k: _filled(v, tensors) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_filled(v, tensors) for v in value)
    if _named(value):
        return type(value)(*[_filled(v, tensors) for v in value])
    if not pytree.tree_is_leaf(value):
        inner, spec = pytree.tree_flatten(value)
        return pytree.tree_unflatten([_filled(v, tensors) for v in inner], spec)
    return value


def _named(value: Any) -> bool:
    """Whether a value is a tuple whose entries have names, such as packed sequences."""
    return isinstance(value, tuple) and hasattr(value, "_fields")
