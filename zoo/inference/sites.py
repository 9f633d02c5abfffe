"""What the sites of a trace are, and the traces of a model and its guide: read here, and nowhere else.

A trace marks as observed whatever has a value: data, but also :func:`pyro.deterministic`, factors, the rows of a plate,
and latents that :func:`pyro.poutine.reparam` has turned into functions of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from zoo.errors import PairError
from zoo.inference.arguments import plain

__all__ = [
    "Kind",
    "check_guide",
    "guide_trace",
    "innermost",
    "is_plate",
    "kind",
    "messenger",
    "observed",
    "observed_value",
    "traces",
]

Kind = Literal["plate", "deterministic", "factor", "observed", "latent"]


def innermost(fn: Any) -> Any:
    """Return the distribution inside of masks, expansions and independent axes.

    Args:
        fn: A distribution.

    Returns:
        The innermost one that is not transformed.
    """
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return fn


def is_plate(site: Any) -> bool:
    """Tell whether a site is the rows of a plate.

    Args:
        site: Node of a trace.

    Returns:
        Whether it is.
    """
    return type(site["fn"]).__name__ == "_Subsample"


def kind(site: Any) -> Kind:
    r"""Tell what a sample site is.

    An observed point mass at its own value, :math:`\delta_v` at :math:`v`, is a deterministic: so does
    ``pyro.deterministic`` write one, and so do reparametrisations leave the site that they replace. A density that such
    a site carries (``NeuTraReparam``, ``ConjugateReparam``) belongs to the prior. Where the site was data, the data
    stand at the auxiliary site that has their density.

    Args:
        site: Node of a trace, of type ``sample``.

    Returns:
        ``plate``, ``deterministic``, ``factor``, ``observed`` or ``latent``; data that a handler sampled anew are
        observed.
    """
    if is_plate(site):
        return "plate"
    if site["infer"].get("_deterministic"):
        return "deterministic"
    fn = innermost(site["fn"])
    if type(fn).__name__ == "Unit":
        return "factor"
    if not (site["is_observed"] or site["infer"].get("was_observed")):
        return "latent"
    return "deterministic" if isinstance(fn, dist.Delta) and _at_its_point(site, fn) else "observed"


def _at_its_point(site: Any, fn: Any) -> bool:
    """Tell whether an observed point mass stands at its value, rather than being compared with data."""
    value, point = site["value"], fn.v
    if value is point or _masked(site["fn"]) or site["mask"] is False:
        return True
    # A plate expands the point, which is another tensor of the same numbers.
    return isinstance(value, Tensor) and _owner(value) is _owner(point) and _offset(value) == _offset(point)


def _owner(value: Tensor) -> Tensor:
    return value if value._base is None else value._base


def _offset(value: Tensor) -> int:
    return int(value.storage_offset())


def _masked(fn: Any) -> bool:
    while fn is not None:
        if getattr(fn, "_mask", None) is False:
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def observed(nodes: Mapping[str, Any]) -> list[str]:
    """Return the sites that hold data.

    Args:
        nodes: Of a trace.

    Returns:
        Their names, in the order of the trace.
    """
    return [n for n, s in nodes.items() if s["type"] == "sample" and kind(s) == "observed"]


def observed_value(site: Any) -> Tensor:
    """Return data with one entry for each term of their log density, where one value stands for several.

    Args:
        site: An observed node.

    Returns:
        The value, in the shape of the broadcast batch shapes of data and distribution.
    """
    value, fn = site["value"], site["fn"]
    events = len(fn.event_shape)
    batch = torch.broadcast_shapes(value.shape[: value.ndim - events], fn.batch_shape)
    expanded: Tensor = value.expand((*batch, *value.shape[value.ndim - events :]))
    return expanded


# ----------------------------------------------------------------------------------------------- model and guide
def messenger(guide: Any) -> Any:
    """Return the handler that a guide is, as Pyro's ``AutoNormalMessenger``.

    Args:
        guide: A guide, in whatever calls it.

    Returns:
        The handler; ``None`` for a guide that is a program of its own.
    """
    own = poutine.unwrap(plain(guide))
    return own if isinstance(own, Messenger) and hasattr(own, "get_traces") else None


def traces(model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Draw from a guide and run the model at the draw.

    Args:
        model: The model.
        guide: The guide: a program, or a handler of the model.
        *args: Arguments of both.
        **kwargs: By name.

    Returns:
        Trace of the model and of the guide. What the guide observes is no part of its density, and not in its trace.
    """
    own = messenger(guide)
    if own is not None:
        guide(*args, **kwargs)
        found, drawn = own.get_traces()
        return found, drawn
    drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    found = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    for name in observed(drawn.nodes):
        drawn.remove_node(name)
    return found, drawn


class _Given(Messenger):  # type: ignore[misc]
    """Sample sites from the model, as if they were observed, before a guide that handles it takes them for latents."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            msg["value"], msg["is_observed"] = msg["fn"](), True


def guide_trace(guide: Any, *args: Any, data: frozenset[str] = frozenset(), **kwargs: Any) -> Any:
    """Trace a guide.

    Args:
        guide: The guide: a program, or a handler of the model.
        *args: Its arguments.
        data: Sites that are data and may be absent, which a handler of the model does not draw.
        **kwargs: By name.

    Returns:
        The trace; that of a handler has the sites of the guide alone.
    """
    own = messenger(guide)
    if own is None:
        return poutine.trace(guide).get_trace(*args, **kwargs)
    before = own._model
    own._model = (_Given(data)(own.model),)
    try:
        guide(*args, **kwargs)
    finally:
        own._model = before
    return own.get_traces()[1]


def check_guide(guide: Any, *args: Any, **kwargs: Any) -> None:
    """Raise if a guide observes data: their density would be subtracted from that of the model.

    Args:
        guide: The guide.
        *args: Its arguments.
        **kwargs: By name.

    Raises:
        PairError: If it does, at a site that is not marked as auxiliary.
    """
    if messenger(guide) is not None:  # what it passes on is the model's
        return
    nodes = poutine.trace(guide).get_trace(*args, **kwargs).nodes
    for name in observed(nodes):
        if not nodes[name]["infer"].get("is_auxiliary"):
            raise PairError(
                f"the guide observes '{name}', whose density would be taken off that of the model; a guide samples "
                "latents only: leave the site out, mark it infer={'is_auxiliary': True}, or write a loss of your own"
            )
