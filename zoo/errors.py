"""Every exception that the zoo raises on purpose, so that callers can catch by kind."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

__all__ = [
    "ArtifactError",
    "DataError",
    "EngineError",
    "HubError",
    "MissingExtraError",
    "NonFiniteError",
    "PairError",
    "RankError",
    "UnknownMethodError",
    "UnknownNameError",
    "ZooError",
    "suggest",
]


class ZooError(Exception):
    """Base of every error raised on purpose; its text says what arrived, what is allowed and what to do."""


class UnknownNameError(ZooError, LookupError):
    """A name is not among the known ones (data set, column, engine, option)."""


class UnknownMethodError(UnknownNameError):
    """No method of this name is registered."""


class DataError(ZooError, ValueError):
    """Data of a wrong shape, dtype, range or format, or with missing values."""


class PairError(ZooError, ValueError):
    """A model and guide do not fit each other, their batch or their engine."""


class EngineError(ZooError, RuntimeError):
    """An inference engine cannot run this pair, or stopped."""


class NonFiniteError(EngineError, ArithmeticError):
    """A loss, gradient or log density became NaN or infinite.

    Attributes:
        params: Parameters before the step that failed, as ``zoo.fit(..., init=)`` takes them; empty if unknown.
    """

    params: Mapping[str, Any] = MappingProxyType({})


class RankError(EngineError):
    """Another rank of a distributed fit failed, or was lost.

    Attributes:
        lost: Whether it does not answer any more, so that it cannot say itself what happened.
    """

    def __init__(self, text: str, *, lost: bool = False) -> None:
        super().__init__(text)
        self.lost = lost


class ArtifactError(ZooError, ValueError):
    """A saved posterior is corrupt, of another kind, or not an artifact at all."""


class HubError(ZooError, RuntimeError):
    """A model hub cannot be reached, refuses, or does not have what is asked for."""


class MissingExtraError(ZooError, ImportError):
    """An optional dependency is absent; the text names the extra to install."""

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(f"{what} needs the package '{package}': pip install 'pyro-zoo[{extra}]'")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or the list of names when nothing is near.

    Args:
        name: What the user wrote.
        known: What exists.

    Returns:
        A clause that completes an error message.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; known: {shown}" if names else ""
