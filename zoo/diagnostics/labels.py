"""What the elements of a site are called: by the labels of the data set, not by their positions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["dimension", "element", "names"]


def element(site: str, parts: Sequence[Any]) -> str:
    """Return the name of one element.

    Args:
        site: Name of the site.
        parts: Its label along every axis; empty for a scalar.

    Returns:
        ``beta[Hits]``, ``gamma[3, age]``, or the site's own name.
    """
    return f"{site}[{', '.join(map(str, parts))}]" if parts else site


def dimension(posterior: Posterior, dim: str, size: int) -> list[Any] | None:
    """Return the labels along a dimension.

    They are those of the data set (``coords``), also where the plate's name is their plural. A dimension of which the
    data know nothing may be listed by the method's hyper-parameters: the plate ``slope`` by ``slopes``.

    Args:
        posterior: A fit.
        dim: Name of the dimension: that of a plate, or what the data set calls it.
        size: Its length.

    Returns:
        The labels, each once; ``None`` where nothing of this length is known.
    """
    data, hyper = posterior.data, posterior.hyper
    candidates = [data.coords.get(dim), data.coords.get(dim.removesuffix("s"))]
    listed = getattr(hyper, f"{dim}s", None)
    if isinstance(listed, tuple | list) and all(isinstance(name, str) for name in listed):
        candidates.append(tuple(dict.fromkeys(listed)))
    for labels in candidates:
        if labels is not None and len(labels) == size:
            return _distinct(list(labels))
    return None


def names(posterior: Posterior, site: str, dims: Sequence[str] | None, shape: Sequence[int]) -> list[str]:
    """Return the names of all elements of a site.

    Args:
        posterior: A fit.
        site: Name of the site.
        dims: Name of every axis; ``None`` where they are not known.
        shape: Shape of one draw.

    Returns:
        One name per element, the last axis first to change; positions stand where there are no labels.
    """
    known = dims if dims is not None and len(dims) == len(shape) else [""] * len(shape)
    axes = [dimension(posterior, dim, size) or range(size) for dim, size in zip(known, shape, strict=True)]
    return [element(site, parts) for parts in itertools.product(*axes)]


def _distinct(labels: list[Any]) -> list[Any]:
    """Return the labels; those that stand there twice get their position."""
    counts: Mapping[str, int] = Counter(map(str, labels))
    if max(counts.values(), default=1) == 1:
        return labels
    return [label if counts[str(label)] == 1 else f"{label} #{i}" for i, label in enumerate(labels)]
