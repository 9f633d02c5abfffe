"""The modules of a program, found by watching it run, and kept apart from those of its owner.

Where a program comes from another file or reads its networks from an object, no walk over closures finds them. What
runs is seen: every module that is called, read or listed while a :class:`Watch` is open. From the moment when one is
seen it works on a state of its own (its ``__dict__``), so that fits leave the owner's modules as they were, and a guide
that was used before begins as a new one.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide, AutoNormalizingFlow
from pyro.infer.autoguide.effect import AutoMessenger
from pyro.infer.autoguide.gaussian import AutoGaussian
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import UninitializedParameter, is_lazy

__all__ = ["Own", "Watch", "closed_over"]


@dataclass
class Own:
    """An object and the state in which one fit runs it.

    Args:
        item: A module, or a plain object whose methods the program calls.
        kind: Its class in the fit; a lazy module takes another when it first runs.
        state: Its ``__dict__`` in the fit.
    """

    item: Any
    kind: type
    state: dict[str, Any]

    def enter(self) -> tuple[type, dict[str, Any]]:
        """Put the object in its state of the fit.

        Returns:
            Class and state that it had.
        """
        before = type(self.item), self.item.__dict__
        _set(self.item, self.kind, self.state)
        return before

    def leave(self, before: tuple[type, dict[str, Any]]) -> None:
        """Put the object back, and remember how the fit left it.

        Args:
            before: As of :meth:`enter`.
        """
        self.kind, self.state = type(self.item), self.item.__dict__
        _set(self.item, *before)


def _set(item: Any, kind: type, state: dict[str, Any]) -> None:
    if type(item) is not kind:
        object.__setattr__(item, "__class__", kind)
    object.__setattr__(item, "__dict__", state)


class Watch:
    """Collect the modules that a block runs and the buffers that it writes, and leave both as they were.

    Args:
        own: Whether the modules run on states of their own, which begin anew where they are those of a guide that
            initialises itself. Otherwise the owner's own modules are to be trained, and only their buffers are put
            back.

    Attributes:
        modules: What ran, in the order in which it was seen; those in closures come first.
        kept: The states, of modules and of plain objects that hold them.
        written: Name -> (module, key) of every buffer that the block wrote.
        first: Name -> value of that buffer before.
        parameters: Parameters of the modules, each once.
    """

    def __init__(self, *, own: bool = True) -> None:
        self.own = own
        self.modules: list[nn.Module] = []
        self.kept: list[Own] = []
        self.written: dict[str, tuple[nn.Module, str]] = {}
        self.first: dict[str, Tensor] = {}
        self.parameters: list[Tensor] = []
        self._owners: list[tuple[type, dict[str, Any]]] = []
        self._before: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._seen: set[int] = set()
        self._slopes: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._born: dict[int, nn.Module] = {}
        self._thread = threading.get_ident()
        self._busy = False

    @contextmanager
    def open(self, roots: Iterable[Any]) -> Iterator[None]:
        """Watch a block; whatever it did, the owner's objects are as before when it ends.

        Args:
            roots: Callables in whose closures modules are looked for, too; these come first, in a fixed order.

        Yields:
            Nothing.
        """
        roots = tuple(roots)
        try:
            with self._patched():
                self._walk(roots)
                yield
                self._walk(roots)
            for module in [m for seen in self.modules for m in seen.modules()]:
                self._see(module)  # what was made within
            found = {id(p): p for m in self.modules for p in m._parameters.values() if p is not None}
            self.parameters = list(found.values())
        finally:
            for parameter, slope in self._slopes.values():
                parameter.grad = slope
            self._put_back()
            for own, before in zip(reversed(self.kept), reversed(self._owners), strict=True):
                own.leave(before)

    def _walk(self, roots: Iterable[Any]) -> None:
        for item in closed_over(roots):
            if isinstance(item, nn.Module):
                self._see(item)
            elif self.own and id(item) not in self._seen:
                self._seen.add(id(item))
                self._keep(item)

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Hear of every module that is called, built, read from or listed."""
        before = {n: nn.Module.__dict__[n] for n in ("__init__", "__getattr__", "named_modules")}

        def listen(name: str, tell: Callable[[nn.Module], None]) -> None:
            original = before[name]

            @functools.wraps(original)
            def method(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                tell(module)
                return original(module, *args, **kwargs)

            setattr(nn.Module, name, method)

        hook = register_module_forward_pre_hook(lambda module, _: self._hear(module, called=True))
        try:
            listen("__init__", self._bear)
            listen("__getattr__", self._hear)
            listen("named_modules", self._hear)
            yield
        finally:
            hook.remove()
            for name, original in before.items():
                setattr(nn.Module, name, original)

    def _bear(self, module: nn.Module) -> None:
        if threading.get_ident() == self._thread:
            self._born[id(module)] = module

    def _hear(self, module: nn.Module, *, called: bool = False) -> None:
        # A module that is being built is read, too; it is complete when it is called.
        known = self._busy or id(module) in self._seen or "_modules" not in module.__dict__
        if not known and (called or id(module) not in self._born) and threading.get_ident() == self._thread:
            self._see(module)

    def _see(self, module: nn.Module) -> None:
        """Take a module and those within it."""
        if id(module) in self._seen or isinstance(module, torch.jit.ScriptModule):
            return
        self._busy = True
        try:
            for item in list(module.modules()):
                if id(item) in self._seen:
                    continue
                self._seen.add(id(item))
                self.modules.append(item)
                for parameter in item._parameters.values():
                    if parameter is not None and parameter.is_leaf:
                        self._slopes[id(parameter)] = (parameter, parameter.grad)
                if self.own:
                    self._keep(item)
                    if id(item) not in self._born:
                        _begin_anew(item)
                for key, buffer in item._buffers.items():
                    if buffer is not None and not is_lazy(buffer):
                        self._before[id(item), key] = (buffer, buffer.clone())
        finally:
            self._busy = False

    def _put_back(self) -> None:
        """Find the buffers that the block wrote, and put their former values back."""
        # Values are compared, since batch normalisation writes its statistics without counting a new version.
        for i, module in enumerate(self.modules):
            for key, buffer in module._buffers.items():
                old = self._before.get((id(module), key))
                if buffer is None or old is None or (buffer is old[0] and torch.equal(buffer, old[1])):
                    continue
                with torch.no_grad():
                    old[0].copy_(old[1])
                module._buffers[key] = old[0]
                self.written[f"{i}.{key}"], self.first[f"{i}.{key}"] = (module, key), old[1]

    def renewed(self) -> dict[int, Tensor]:
        """Let the owner's layers draw new initial values, as they did when they were built; they stay as they are.

        To be called while the watch is open.

        Returns:
            The new value of every parameter, under its ``id``, of the layers that can (``reset_parameters``).
        """
        found: dict[int, Tensor] = {}
        for module in self.modules:
            reset = getattr(module, "reset_parameters", None)
            managed = isinstance(module, PyroModule) and (module._pyro_params or module._pyro_samples)
            if (
                reset is None
                or managed
                or id(module) in self._born
                or all(p is None for p in module._parameters.values())
            ):
                continue
            state = module.__dict__
            own, buffers = state["_parameters"], state["_buffers"]
            new = {k: nn.Parameter(p.detach().clone()) for k, p in own.items() if p is not None}
            state["_parameters"] = {**own, **new}
            state["_buffers"] = {k: None if b is None else b.clone() for k, b in buffers.items()}
            try:
                reset()
            finally:
                state["_parameters"], state["_buffers"] = own, buffers
            found |= {id(p): new[k].detach() for k, p in own.items() if p is not None}
        return found

    def _keep(self, item: Any) -> None:
        own = Own(item, type(item), {k: _copied(v) for k, v in item.__dict__.items()})
        self._owners.append(own.enter())
        self.kept.append(own)


def _copied(value: Any) -> Any:
    """Return a container that changes on its own; what it holds is shared."""
    if type(value).__name__ == "OrderedDict" or type(value) in (dict, list, set):
        return value.copy()
    return value


def _begin_anew(module: nn.Module) -> None:
    """Undo what a guide or lazy module did when it first ran; it does so again, with the random numbers of this fit."""
    state = module.__dict__
    for key, value in module._parameters.items():
        if value is not None and is_lazy(value):
            module._parameters[key] = UninitializedParameter(device=value.device, dtype=value.dtype)
    if isinstance(module, PyroModule):
        declared = [n for n in module._pyro_params if isinstance(inspect.getattr_static(type(module), n, 0), PyroParam)]
        _drop(module, declared)
    if isinstance(module, AutoGuide) and state.get("prototype_trace") is not None:
        state["prototype_trace"] = None
        if isinstance(module, AutoNormalizingFlow):
            module._modules.pop("transform", None)
            state["transform"] = None
        if isinstance(module, AutoGaussian):
            state["_original_model"] = module._model  # it lets go of it once it knows the structure
    elif isinstance(module, EasyGuide) and state.get("prototype_trace") is not None:
        _drop(module, [n for n in module._pyro_params if n in state["prototype_trace"].nodes])
        state |= {"prototype_trace": None, "frames": {}, "groups": {}}
    elif isinstance(module, AutoMessenger):
        for name in [n for n, child in module._modules.items() if type(child) is PyroModule]:
            del module._modules[name]  # where it puts what it makes as it goes


def _drop(module: PyroModule, names: Iterable[str]) -> None:
    for name in names:
        module._pyro_params.pop(name, None)
        module._parameters.pop(f"{name}_unconstrained", None)


# ------------------------------------------------------------------------------------------------ closures
def closed_over(roots: Iterable[Any]) -> Iterator[Any]:
    """Yield every module that callables close over, and every plain object whose methods they are, each once.

    Args:
        roots: The callables.

    Yields:
        Modules, and objects with a ``__dict__``.
    """
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        item = todo.pop()
        if item is None or id(item) in seen or isinstance(item, type | types.ModuleType | str | int | float | Tensor):
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            for module in item.modules():
                if id(module) not in seen or module is item:
                    seen.add(id(module))
                    yield module
        elif isinstance(item, functools.partial):
            todo += [item.func, *item.args, *item.keywords.values()]
        elif isinstance(item, Mapping):
            todo += list(item.values())
        elif isinstance(item, list | tuple):
            todo += list(item)
        elif inspect.ismethod(item):
            todo += [item.__self__, item.__func__]
            if _plain(item.__self__):
                yield item.__self__
                todo += list(vars(item.__self__).values())
        elif inspect.isfunction(item):
            todo += [c.cell_contents for c in item.__closure__ or () if _filled(c)]
            todo += [
                v for v in _globals(item) if isinstance(v, nn.Module) or getattr(v, "__module__", "") == item.__module__
            ]
            if hasattr(item, "__wrapped__"):
                todo.append(item.__wrapped__)
        elif isinstance(item, Messenger) or (callable(item) and hasattr(item, "__dict__")):
            todo += list(vars(item).values())


def _plain(item: Any) -> bool:
    return (
        hasattr(item, "__dict__")
        and not isinstance(item, nn.Module | Messenger | type | types.ModuleType)
        and not inspect.isroutine(item)
        and type(item).__module__.partition(".")[0] not in ("builtins", "torch", "pyro", "functools")
    )


def _globals(function: types.FunctionType) -> Iterator[Any]:
    """Yield the global values that a function's code, nested functions included, reads by name."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield from (function.__globals__[n] for n in code.co_names if n in function.__globals__)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
