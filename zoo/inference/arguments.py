"""Pairs whose model and guide take arguments as Pyro's do, ``model(x, y)``: their tensors become entries of a batch.

The runner knows one kind of pair, callables of one batch. Here the arguments of any other are taken apart: tensors are
named after the parameter that they are passed for (``x``, ``config.mask``), all else (sizes, switches, ``None``) stays
where it is. :class:`Called` puts arguments together again from a batch and calls the model as its author does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from zoo.errors import DataError, PairError
from zoo.types import Batch, Dataset, Pair

__all__ = ["Arguments", "Called", "Signature", "like", "plain", "prepared", "rebound", "signature_of"]


class Arguments:
    """What a model and its guide are called with, for those that take more than a batch.

    Args:
        *args: By position.
        **kwargs: By name.

    Example:
        >>> zoo.fit(zoo.Pair(model, guide), zoo.Arguments(x, y, size=100))  # doctest: +SKIP
    """

    __slots__ = ("args", "kwargs")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def __repr__(self) -> str:
        shown = [_shown(v) for v in self.args] + [f"{k}={_shown(v)}" for k, v in self.kwargs.items()]
        return f"Arguments({', '.join(shown)})"


def _shown(value: Any) -> str:
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


@dataclass(frozen=True, slots=True)
class _Entry:
    """The place of a tensor: the entry of the batch that holds it."""

    name: str


@dataclass(frozen=True, slots=True)
class Signature:
    """How a pair is called: which entry of a batch goes where, and what is no tensor.

    Args:
        args: Positional arguments, with :class:`_Entry` in the places of tensors, nested containers included.
        kwargs: Keyword arguments, likewise.
        names: Parameter of the model that each positional argument is passed for.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any] | None:
        """Return the signature as JSON holds it.

        Returns:
            A dict for :meth:`from_json`; ``None`` if an argument that is no tensor is no number, text or switch either.
        """
        try:
            return {
                "args": [_spelt(v) for v in self.args],
                "kwargs": {k: _spelt(v) for k, v in self.kwargs.items()},
                "names": list(self.names),
            }
        except TypeError:
            return None

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Signature:
        """Return the signature that :meth:`to_json` wrote.

        Args:
            found: What was written.

        Returns:
            The signature.
        """
        return cls(
            tuple(_read(v) for v in found["args"]),
            {k: _read(v) for k, v in found["kwargs"].items()},
            tuple(str(n) for n in found["names"]),
        )

    def fill(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put arguments together.

        Args:
            batch: Entries by name; the argument of one that is absent is ``None``.

        Returns:
            Positional and keyword arguments.
        """
        return tuple(_filled(v, batch) for v in self.args), {k: _filled(v, batch) for k, v in self.kwargs.items()}

    def batch(self, given: Any) -> dict[str, Tensor]:
        """Take other arguments apart in the same way.

        Args:
            given: :class:`Arguments`, a tuple or list of positional ones, a mapping of entries, or one tensor.

        Returns:
            Entry -> tensor.

        Raises:
            DataError: If there are more of them, or one that is no tensor differs from that of the fit.
        """
        if isinstance(given, Mapping):
            return _named(given)
        given = as_arguments(given)
        if len(given.args) > len(self.args):
            raise DataError(
                f"{len(given.args)} arguments were passed; the fit had {len(self.args)}: {', '.join(self.names)}"
            )
        found: dict[str, Tensor] = {}
        for name, own, value in zip(self.names, self.args, given.args, strict=False):
            _match(name, own, value, found)
        for name, value in given.kwargs.items():
            if name in self.kwargs:
                _match(name, self.kwargs[name], value, found)
            elif name in self.names:
                _match(name, self.args[self.names.index(name)], value, found)
            else:
                raise DataError(f"argument '{name}' is unknown; the fit had {', '.join((*self.names, *self.kwargs))}")
        return found


class Called:
    """A model or guide of any arguments as a callable of one batch.

    Args:
        function: The model or guide.
        signature: How it is called.
    """

    def __init__(self, function: Callable[..., Any], signature: Signature) -> None:
        self.function, self.signature = function, signature
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, batch: Batch) -> Any:
        """Call it with the arguments that the batch holds.

        Args:
            batch: Entries by name.

        Returns:
            What the function returns.
        """
        args, kwargs = self.signature.fill(batch)
        return self.function(*args, **kwargs)


# ------------------------------------------------------------------------------------------------------- arguments
def as_arguments(given: Any) -> Arguments:
    """Return positional arguments as :class:`Arguments`.

    Args:
        given: Arguments, a tuple or list, or one value.

    Returns:
        The arguments.
    """
    if isinstance(given, Arguments):
        return given
    return Arguments(*given) if isinstance(given, tuple | list) else Arguments(given)


def signature(function: Callable[..., Any], given: Any) -> tuple[Signature, dict[str, Tensor]] | None:
    """Take arguments apart, unless they are one batch that the function takes as it is.

    Args:
        function: The model.
        given: What was passed as data: :class:`Arguments`, a tuple or list, a tensor, or a mapping. A mapping whose
            entries are the model's parameters by name is passed by name, any other is one batch.

    Returns:
        How the function is called, and the batch; ``None`` for a mapping that is one batch.

    Raises:
        PairError: If the function does not take such arguments.
    """
    if isinstance(given, Mapping):
        if not _by_name(function, given):
            return None
        given = Arguments(**given)
    given = as_arguments(given)
    names = _parameters(function, given)
    found: dict[str, Tensor] = {}
    args = tuple(_apart(name, value, found) for name, value in zip(names, given.args, strict=True))
    kwargs = {name: _apart(name, value, found) for name, value in given.kwargs.items()}
    return Signature(args, kwargs, names), found


def bound(pair: Pair, given: Any) -> tuple[Pair, dict[str, Tensor], Signature] | None:
    """Return a pair of any arguments as one of a batch.

    Args:
        pair: Model and guide.
        given: What was passed as data.

    Returns:
        The pair, the batch and how the pair is called; ``None`` where model and guide take one batch.

    Raises:
        PairError: If model or guide do not take such arguments.
    """
    found = signature(pair.model, given)
    if found is None:
        return None
    own, batch = found
    return rebound(pair, own), batch, own


def prepared(pair: Pair, data: Any) -> tuple[Pair, Any, int | None]:
    """Return a pair of one batch for whatever a user passes as data.

    Args:
        pair: Model and guide.
        data: A data set, its name or ``None``, which are returned as they are; a batch, :class:`Arguments`, a tuple or
            list of positional arguments, a tensor, a mapping of the model's parameters, or a loader of any of them.

    Returns:
        The pair, the data, and the rows of a batch where a loader says so.

    Raises:
        PairError: If model or guide do not take such arguments.
        DataError: If a loader's batches cannot be joined.
    """
    if data is None or isinstance(data, str | Dataset):
        return pair, data, None
    size = None
    array = isinstance(data, Tensor) or hasattr(data, "__array__")
    loaded = not (array or isinstance(data, Mapping | Arguments | tuple | list))
    if loaded and not hasattr(data, "__iter__"):
        raise DataError(
            f"data is a {type(data).__name__}; allowed: a data set's name, a Dataset, a batch of tensors, a tuple of "
            "the model's arguments, zoo.Arguments or a loader of batches"
        )
    if loaded:
        data, size = rows_of(data)
        if set(data.kwargs) and not _by_name(pair.model, data.kwargs):
            data = dict(data.kwargs)
    found = bound(pair, data)
    if found is not None:
        pair, data, _ = found
    if loaded:
        rows = len(next(iter(data.values())))
        data = {**data, "index": data.get("index", torch.arange(rows))}
    return pair, data, size


def signature_of(pair: Pair) -> Signature | None:
    """Return how a pair of :func:`bound` is called.

    Args:
        pair: Any pair.

    Returns:
        Its signature; ``None`` for a pair that takes one batch.
    """
    return pair.model.signature if isinstance(pair.model, Called) else None


def plain(function: Any) -> Any:
    """Return the model or guide as its author wrote it.

    Args:
        function: It, or what calls it with a batch.

    Returns:
        The function.
    """
    if isinstance(function, functools.partial) and function.func is _call:
        return function.args[1]
    return function.function if isinstance(function, Called) else function


def like(called: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return another function, to be called as a model or guide is.

    Args:
        called: The model or guide.
        function: Takes the same arguments as its author's.

    Returns:
        A callable of what ``called`` takes.
    """
    return Called(function, called.signature) if isinstance(called, Called) else function


def rebound(pair: Pair, own: Signature) -> Pair:
    """Return a pair of any arguments as one of a batch, called as a signature says.

    Args:
        pair: Model and guide, or a pair that is one of a batch already.
        own: The signature.

    Returns:
        The pair.
    """
    if isinstance(pair.model, Called):
        return pair
    guide = None if pair.guide is None else _called(pair.guide, own)
    return pair._replace(model=Called(pair.model, own), guide=guide)


def _called(guide: Callable[..., Any], own: Signature) -> Callable[..., Any]:
    if isinstance(poutine.unwrap(guide), Messenger):
        return functools.partial(_call, own, guide)  # in which Pyro finds a guide that is a handler of the model
    return Called(guide, own)


def _call(own: Signature, function: Callable[..., Any], batch: Batch) -> Any:
    args, kwargs = own.fill(batch)
    return function(*args, **kwargs)


def rows_of(loader: Any) -> tuple[Arguments, int]:
    """Read a loader once, as the rows that a fit cuts into mini-batches itself.

    Args:
        loader: An iterable of batches, e.g. a :class:`torch.utils.data.DataLoader`: tensors, tuples or lists of them,
            or mappings. What it draws anew with every pass (augmentation, noise) is drawn once.

    Returns:
        The arguments with all rows, and the rows of its first batch.

    Raises:
        DataError: If there is no batch, or batches differ in more than their number of rows.
    """
    parts = [item if isinstance(item, Mapping | tuple | list) else (item,) for item in loader]
    if not parts:
        raise DataError(f"the {type(loader).__name__} has no batch")
    first = parts[0]
    keys: Sequence[Any] = list(first) if isinstance(first, Mapping) else range(len(first))
    joined: dict[Any, Tensor] = {}
    for key in keys:
        try:
            joined[key] = torch.cat([torch.as_tensor(part[key]) for part in parts])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())
            raise DataError(
                f"the batches of the {type(loader).__name__} cannot be joined to rows at entry {key!r}: {line}"
            ) from error
    sizes = {len(v) for v in joined.values()}
    if len(sizes) > 1:
        raise DataError(
            f"the {type(loader).__name__} has entries of {sorted(sizes)} rows; they need one number of rows"
        )
    size = len(first[keys[0]])
    return (Arguments(**joined) if isinstance(first, Mapping) else Arguments(*joined.values())), size


# ------------------------------------------------------------------------------------------------------------ parts
def _parameters(function: Callable[..., Any], given: Arguments) -> tuple[str, ...]:
    """Return the names of the parameters for which positional arguments are passed."""
    try:
        spec = inspect.signature(getattr(function, "forward", function) if _is_module(function) else function)
        spec.bind(*given.args, **given.kwargs)
    except TypeError as error:
        what = getattr(function, "__name__", type(function).__name__)
        raise PairError(
            f"{what} does not take these arguments: {error}; it has the signature {_signature_text(function)}, and "
            f"{given!r} was passed"
        ) from error
    except ValueError:  # no signature is known, of a function of C
        return tuple(f"arg{i}" for i in range(len(given.args)))
    names: list[str] = []
    for parameter in spec.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}{i}" for i in range(len(given.args) - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return tuple(names[: len(given.args)])


def _is_module(function: Any) -> bool:
    return isinstance(function, torch.nn.Module) and type(function).__call__ in (
        torch.nn.Module.__call__,
        _pyro_module_call(),
    )


def _pyro_module_call() -> Any:
    from pyro.nn import PyroModule

    return PyroModule.__call__


def _signature_text(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(getattr(function, "forward", function) if _is_module(function) else function))
    except (TypeError, ValueError):
        return "(...)"


def _by_name(function: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    """Tell whether a mapping names the parameters of a function, rather than being the one batch that it takes."""
    if not given or not all(isinstance(k, str) for k in given):
        return False
    try:
        spec = inspect.signature(getattr(function, "forward", function) if _is_module(function) else function)
        spec.bind(**given)
    except (TypeError, ValueError):
        return False
    free = [p for p in spec.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return bool(free) and set(given) <= {p.name for p in free}


def _apart(name: str, value: Any, found: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        found[name] = value
        return _Entry(name)
    if isinstance(value, Mapping) and type(value) is dict:
        return {k: _apart(f"{name}.{k}", v, found) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_apart(f"{name}.{i}", v, found) for i, v in enumerate(value))
    if hasattr(value, "__array__") and not isinstance(value, torch.nn.Module):
        found[name] = _tensor(name, value)
        return _Entry(name)
    return value


def _filled(value: Any, batch: Batch) -> Any:
    if isinstance(value, _Entry):
        return batch.get(value.name)
    if type(value) is dict:
        return {k: _filled(v, batch) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_filled(v, batch) for v in value)
    return value


def _spelt(value: Any) -> dict[str, Any]:
    if isinstance(value, _Entry):
        return {"entry": value.name}
    if type(value) is dict and all(isinstance(k, str) for k in value):
        return {"dict": {k: _spelt(v) for k, v in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_spelt(v) for v in value]}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise TypeError(f"a {type(value).__name__} is not kept in JSON")


def _read(spelt: Mapping[str, Any]) -> Any:
    ((kind, value),) = spelt.items()
    if kind == "entry":
        return _Entry(str(value))
    if kind == "dict":
        return {k: _read(v) for k, v in value.items()}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_read(v) for v in value)
    if kind == "value":
        return value
    raise ValueError(f"an argument of kind {kind!r} is unknown")


def _match(name: str, own: Any, value: Any, found: dict[str, Tensor]) -> None:
    """Take one argument apart as that of the fit was; what is no tensor has to be the same."""
    if isinstance(own, _Entry):
        if value is not None:
            found[own.name] = _tensor(name, value)
    elif type(own) is dict and isinstance(value, Mapping):
        for key, part in own.items():
            if key in value:
                _match(f"{name}.{key}", part, value[key], found)
    elif type(own) in (list, tuple) and isinstance(value, Sequence):
        for i, (part, inner) in enumerate(zip(own, value, strict=False)):
            _match(f"{name}.{i}", part, inner, found)
    elif isinstance(value, Tensor) or not (own is value or own == value):
        raise DataError(f"argument '{name}' is {_shown(value)}; the fit had {own!r}, which cannot change afterwards")


def _named(given: Mapping[str, Any]) -> dict[str, Tensor]:
    return {str(k): _tensor(str(k), v) for k, v in given.items() if v is not None}


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"argument '{name}', a {type(value).__name__}, is no tensor: {line}") from error
