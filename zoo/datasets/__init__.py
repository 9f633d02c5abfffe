"""Real data: bundled sets, the user's own tables and images, and their storage.

Listing (:func:`names`, :func:`catalogue`) imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.datasets.sources import Entry, catalogue, load, names

if TYPE_CHECKING:
    from zoo.datasets.storage import fingerprint as fingerprint
    from zoo.datasets.storage import pack as pack
    from zoo.datasets.storage import unpack as unpack
    from zoo.datasets.tables import encode as encode
    from zoo.datasets.tables import read as read

_WHERE = {
    "encode": "zoo.datasets.tables",
    "fingerprint": "zoo.datasets.storage",
    "pack": "zoo.datasets.storage",
    "read": "zoo.datasets.tables",
    "unpack": "zoo.datasets.storage",
}

__all__ = ["Entry", "catalogue", "encode", "fingerprint", "load", "names", "pack", "read", "unpack"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'zoo.datasets' has no attribute '{name}'")
