"""Posteriors whose moments are known: two dozen of posteriordb, written as Pyro models, and the command that runs them.

Listing (:func:`names`) imports neither torch nor Pyro.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.references.stored import Moments, Stored, names, read

if TYPE_CHECKING:
    from zoo.references.posteriors import Reference as Reference
    from zoo.references.posteriors import load as load

_WHERE = {"Reference": "zoo.references.posteriors", "load": "zoo.references.posteriors"}

__all__ = ["Moments", "Reference", "Stored", "load", "names", "read"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'zoo.references' has no attribute '{name}'")
