"""From a posterior to ArviZ: every group, with dimensions and labels taken from the model's plates.

``az.from_pyro`` reads MCMC runs only, so the groups are built here from traces of the model at given draws. A trace
knows what a table of draws does not: which plate stands on which axis, what is deterministic, what was observed, and
which latents are enumerated and must be summed out of the likelihood.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import infer_discrete
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from zoo.diagnostics import _arviz
from zoo.diagnostics.labels import dimension
from zoo.errors import DataError, ZooError
from zoo.inference.predictive import Replicate, given_draws
from zoo.inference.sites import innermost, is_plate, kind, observed_value

if TYPE_CHECKING:
    import arviz as az
    import xarray as xr
    from numpy.typing import NDArray

    from zoo.inference.posterior import Posterior
    from zoo.types import Batch, Dataset

__all__ = ["Evaluated", "Site", "evaluate", "log_likelihood", "sites", "take_rows", "to_arviz", "to_datatree"]

Kind = Literal["latent", "deterministic", "observed", "enumerated", "factor"]

STATISTICS = ("mean", "sd", "norm", "max_abs")
"""What is kept, draw by draw, of a site with too many elements: over its elements."""

# Dimensions of ArviZ and of summaries, which a plate or site of such a name must not take.
_RESERVED = frozenset({"chain", "draw", "sample", "statistic"})
# Numbers that one draw of all latents may hold before fewer draws are taken; 20 million doubles are 160 MB.
_MOST_NUMBERS = 20_000_000
_FEWEST_DRAWS = 100
_MOST_WORK = 2e10  # latent elements x rows x draws of the evaluated groups


# ------------------------------------------------------------------------------------------------------ structure
@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a trace of the model says about one of its sites.

    Args:
        name: Name of the site.
        kind: ``latent``, ``deterministic``, ``observed``, ``enumerated`` (a discrete latent that is summed out) or
            ``factor``.
        shape: Shape of its value in one draw.
        dims: Name of every axis: the plate on it, else what the data set calls it, else ``<site>_dim_<i>``.
        batch_ndim: How many of the leading axes are independent given the latents; the rest is one event.
        row_axis: The axis of the data's rows, if it has one.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    batch_ndim: int
    row_axis: int | None = None

    @property
    def size(self) -> int:
        """Elements in one draw."""
        return int(np.prod(self.shape, dtype=np.int64))


def sites(posterior: Posterior, batch: Batch, draw: Mapping[str, Tensor]) -> dict[str, Site]:
    """Trace the model at one draw and list its sites.

    Args:
        posterior: A fit.
        batch: Batch with targets.
        draw: Latent site -> value.

    Returns:
        Site name -> what is known of it, in the order of the model.
    """
    from zoo.inference.program import seeded, stream

    posterior.runs.check_columns(batch)
    with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)):
        trace = _trace(posterior.runs.pair.model, batch, draw)
    rows = batch.get("index")
    row_plates = {
        name
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and is_plate(node) and rows is not None and _same(node["value"], rows)
    }
    found: dict[str, Site] = {}
    taken = set(trace.nodes) | {"chain", "draw"}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or is_plate(node):
            continue
        what = _kind(name, node, draw)
        shape = tuple((observed_value(node) if what == "observed" else node["value"]).shape)
        event_ndim = len(node["fn"].event_shape)
        frames = [f for f in node["cond_indep_stack"] if f.vectorized]
        batch_ndim = len(shape) - event_ndim
        # pyro.deterministic without event_dim calls every axis an event; the plates around it still name their axes.
        whole = not batch_ndim and all(-f.dim <= len(shape) and f.size in (-1, shape[f.dim]) for f in frames)
        base = len(shape) if what == "deterministic" and whole else batch_ndim
        names: list[str | None] = [None] * len(shape)
        row_axis = None
        for frame in frames:
            axis = base + frame.dim
            if axis < 0 or frame.size not in (-1, shape[axis]):  # a plate without a size takes that of the data
                continue
            names[axis] = frame.name
            if frame.name in row_plates:
                row_axis = axis
        given = posterior.data.dims.get(name, ())
        if len(given) == len(shape):
            names = [a or b for a, b in zip(names, given, strict=True)]
        elif given and len(given) == event_ndim:
            names[batch_ndim:] = given
        # A plate is a node of the trace too, so only names of other sites are taken.
        plates = {f.name for f in frames}
        unique: list[str] = []
        for i, label in enumerate(names):
            clash = label is None or label in unique or (label in taken and label not in plates)
            unique.append(f"{name}_dim_{i}" if clash else str(label))
        found[name] = Site(
            name=name,
            kind=what,
            shape=shape,
            dims=tuple(unique),
            batch_ndim=batch_ndim,
            row_axis=row_axis,
        )
    return found


def _kind(name: str, node: Any, draw: Mapping[str, Tensor]) -> Kind:
    if name in draw:
        return "latent"
    found = kind(node)
    if found in ("deterministic", "factor", "observed"):
        return found
    return "enumerated" if node["infer"].get("enumerate") == "parallel" else "latent"


def _same(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and bool((a.cpu() == b.cpu()).all())


def _trace(model: Callable[..., Any], batch: Batch, draw: Mapping[str, Tensor], *, observed: bool = True) -> Any:
    """Trace the model with its latents at ``draw``; unless ``observed``, data are sampled anew."""
    free = model if observed else Replicate()(model)
    trace = poutine.trace(poutine.condition(free, data=dict(draw))).get_trace(batch)
    if not observed:
        for name, node in trace.nodes.items():
            # Such a density draws stand-ins, so that a model runs at all; data simulated from them mean nothing.
            if node["type"] == "sample" and name not in draw and getattr(innermost(node["fn"]), "improper", False):
                raise NotImplementedError(f"that of '{name}' is improper")
    return trace


def _nesting(model: Callable[..., Any], batch: Batch, draw: Mapping[str, Tensor]) -> int:
    trace = _trace(model, batch, draw)
    stacks = (n["cond_indep_stack"] for n in trace.nodes.values() if n["type"] == "sample")
    return max((-f.dim for stack in stacks for f in stack if f.vectorized), default=0)


# ----------------------------------------------------------------------------------------------------- evaluation
@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What the model says at each of ``n`` draws.

    Args:
        deterministics: Site -> ``(n, *site shape)``.
        enumerated: Enumerated discrete latents, drawn from their exact conditional posterior, ``(n, *site shape)``.
        predictive: Observed site -> replicated data, ``(n, *site shape)``.
        log_likelihood: Observed site -> log density of each datum, ``(n, *batch shape)``, neither scaled by a plate nor
            by annealing; enumerated latents are summed out. What shares an enumerated latent forms one entry. So does
            all that is observed in the rows of an amortised latent: the importance weight of the row, whose
            exponential averages to the marginal likelihood (:mod:`zoo.inference.marginal`).
        plates: Entry of ``log_likelihood`` -> names of its axes after the first.
    """

    deterministics: dict[str, Tensor]
    enumerated: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    plates: dict[str, tuple[str, ...]]


def evaluate(
    posterior: Posterior,
    batch: Batch,
    draws: Mapping[str, Tensor],
    *,
    count: int = 1,
    seed: int = 0,
    predictive: bool = True,
    max_bytes: int = 2**28,
) -> Evaluated:
    """Run the model at every draw: deterministic sites, replicated data and log densities.

    Args:
        posterior: A fit.
        batch: Batch with targets.
        draws: Latent site -> ``(n, *site shape)``.
        count: Draws :math:`n` of a model without latents.
        seed: Of the replicated data.
        predictive: Whether data are replicated.
        max_bytes: Memory of one vectorised block of draws, about.

    Returns:
        The values, draw by draw in the order of ``draws``.
    """
    from zoo.inference.marginal import amortised
    from zoo.inference.program import seeded, stream

    first = {k: v[0] for k, v in draws.items()}
    known = sites(posterior, batch, first)
    model, guide = posterior.runs.pair.model, posterior.pair.drawing
    discrete = [s.name for s in known.values() if s.kind == "enumerated"]
    fixed = [s.name for s in known.values() if s.kind == "deterministic"]
    seen = [s.name for s in known.values() if s.kind == "observed"]
    local = [n for n in amortised(posterior) if n in known and known[n].row_axis is not None] if seen else []
    plates = {name: known[name].dims[: known[name].batch_ndim] for name in [*seen, *local]}
    nesting = 0
    if discrete:
        with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)):
            nesting = _nesting(model, batch, first)
            marginal = _marginal(model, batch, first, nesting, local)
        plates = {name: entry.plates for name, entry in marginal.items()}
    rows = _Rows.of(known, local, plates) if local else None

    def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if discrete:
            conditioned = poutine.condition(model, data=draw)
            posterior_model = infer_discrete(conditioned, first_available_dim=-1 - nesting, temperature=1)
            nodes = poutine.trace(posterior_model).get_trace(batch).nodes
            out |= {f"enumerated/{n}": nodes[n]["value"] for n in discrete}
            densities = {n: e.value for n, e in _marginal(model, batch, draw, nesting, local).items()}
        else:
            nodes = _trace(model, batch, draw).nodes
            densities = {n: _log_prob(nodes[n]) for n in [*seen, *local]}
        if rows is not None and guide is not None:
            drawn = poutine.trace(poutine.condition(guide, data=draw)).get_trace(batch).nodes
            densities = rows.weighted(densities, [drawn[n] for n in local])
        out |= {f"log/{n}": value for n, value in densities.items()}
        out |= {f"fixed/{n}": nodes[n]["value"] for n in fixed}
        if predictive:
            replicated = _trace(model, batch, draw, observed=False).nodes
            out |= {f"new/{n}": replicated[n]["value"] for n in seen}
        return out

    count = len(next(iter(draws.values()))) if draws else count
    values = posterior.runs.map(one, count, draws, seed=given_draws(seed), max_bytes=max_bytes)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.split("/", 1)[1]: v for k, v in values.items() if k.startswith(prefix + "/")}

    return Evaluated(
        deterministics=part("fixed"),
        enumerated=part("enumerated"),
        predictive=part("new"),
        log_likelihood=part("log"),
        plates=plates if rows is None else rows.plates,
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """How the log densities of a row with amortised latents become its importance weight.

    Args:
        plate: Plate of the rows.
        axes: Entry in the rows -> its axis of rows.
        name: Entry of the weight.
        plates: Entry, the weight among them -> names of its axes.
    """

    plate: str
    axes: dict[str, int]
    name: str
    plates: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, known: Mapping[str, Site], local: Sequence[str], plates: Mapping[str, tuple[str, ...]]) -> _Rows:
        """Find the entries in the plate of the amortised latents.

        Args:
            known: Sites of the model.
            local: The amortised latents.
            plates: Entry -> names of its axes.

        Returns:
            The rule.
        """
        site = known[local[0]]
        plate = site.dims[site.row_axis or 0]
        axes = {n: dims.index(plate) for n, dims in plates.items() if plate in dims}
        name = _common_name([n for n in axes if n not in local] or list(axes))
        rest = {n: dims for n, dims in plates.items() if n not in axes}
        return cls(plate, axes, name, rest | {name: (plate,)})

    def weighted(self, densities: Mapping[str, Tensor], guide: Sequence[Any]) -> dict[str, Tensor]:
        """Put the importance weight in the place of the densities of the rows.

        Args:
            densities: Log density of every entry of the model, of the amortised latents too.
            guide: Nodes of the amortised latents in the guide.

        Returns:
            Log density of every entry outside the rows, and the weights, ``(rows,)``.
        """
        total = sum(_summed(densities[n], axis) for n, axis in self.axes.items())
        for node in guide:
            value = _log_prob(node)
            frame = next(f for f in node["cond_indep_stack"] if f.name == self.plate)
            total = total - _summed(value, value.ndim + frame.dim)
        return {n: v for n, v in densities.items() if n not in self.axes} | {self.name: torch.as_tensor(total)}


def _summed(value: Tensor, axis: int) -> Tensor:
    """Sum over all axes but one."""
    others = [i for i in range(value.ndim) if i != axis]
    return value.sum(others) if others else value


def log_likelihood(
    posterior: Posterior, batch: Batch, draws: Mapping[str, Tensor], *, count: int = 1, max_bytes: int = 2**28
) -> dict[str, Tensor]:
    r"""Evaluate the log density of every datum at every draw, enumerated latents summed out.

    .. math:: \log p(y_n \mid \theta) = \log \sum_{z_n} p(z_n \mid \theta)\, p(y_n \mid z_n, \theta)

    Args:
        posterior: A fit.
        batch: Batch with targets.
        draws: Latent site -> ``(n, *site shape)``.
        count: Draws :math:`n` of a model without latents.
        max_bytes: Memory of one vectorised block of draws, about.

    Returns:
        Observed site -> ``(n, *batch shape)``; masked data count zero, and no plate scales anything.
    """
    return evaluate(posterior, batch, draws, count=count, predictive=False, max_bytes=max_bytes).log_likelihood


def _log_prob(node: Any) -> Tensor:
    """Return the log density of one site, masked but not scaled, one entry per element of its batch shape."""
    value: Tensor = scale_and_mask(node["fn"].log_prob(node["value"]), mask=node["mask"])
    return value


@dataclass(frozen=True, slots=True)
class _Marginal:
    value: Tensor
    plates: tuple[str, ...]


def _marginal(
    model: Callable[..., Any], batch: Batch, draw: Mapping[str, Tensor], nesting: int, local: Sequence[str] = ()
) -> dict[str, _Marginal]:
    r"""Sum every enumerated latent out of the log density of the data.

    Sites that share an enumerated latent :math:`z` form a component. Its likelihood given the conditioned latents
    :math:`x` is :math:`\sum_z p(z) p(x|z) p(y|z,x) / \sum_z p(z) p(x|z)`, one value per element of the plates that all
    its factors share. Latents among ``local`` count as data: their density is part of the entry.

    Returns:
        Entry -> log likelihood and its plates.
    """
    enumerated = poutine.enum(poutine.condition(model, data=dict(draw)), first_available_dim=-1 - nesting)
    trace = poutine.trace(enumerated).get_trace(batch)
    trace.compute_log_prob()
    trace.pack_tensors()
    sum_dims = {
        n["infer"]["_enumerate_symbol"]
        for n in trace.nodes.values()
        if n["type"] == "sample" and n["infer"].get("_enumerate_dim") is not None
    }
    frames = {
        trace.plate_to_symbol[f.name]: f
        for n in trace.nodes.values()
        if n["type"] == "sample"
        for f in n["cond_indep_stack"]
        if f.vectorized
    }
    found: dict[str, _Marginal] = {}
    groups: list[tuple[set[str], list[str]]] = []  # enumeration symbols, sites
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or is_plate(node) or kind(node) == "deterministic":
            continue
        symbols = sum_dims & set(node["packed"]["unscaled_log_prob"]._pyro_dims)
        data = name in local or (name not in draw and node["is_observed"] and _kind(name, node, draw) == "observed")
        if not symbols:
            if data:
                named = sorted((f for f in node["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
                value = _log_prob(node)
                labels = {value.ndim + f.dim: f.name for f in named}
                axes = tuple(labels.get(i, f"{name}_dim_{i}") for i in range(value.ndim))
                found[name] = _Marginal(value, axes)
            continue
        joined = [g for g in groups if g[0] & symbols]
        groups = [g for g in groups if not g[0] & symbols]
        groups.append((symbols.union(*(g[0] for g in joined)), [*(n for g in joined for n in g[1]), name]))
    for symbols, names in groups:
        data_names = [
            n for n in names if n in local or (n not in draw and _kind(n, trace.nodes[n], draw) == "observed")
        ]
        if not data_names:
            continue
        joint = _contract(trace, names, symbols)
        rest = [n for n in names if n not in data_names]
        (ordinal, (total,)) = next(iter(joint.items()))
        shared = sorted((frames[s] for s in ordinal), key=lambda f: f.dim)
        value = _unpack(total, trace, shared)
        for own, terms in _contract(trace, rest, symbols).items():
            for term in terms:
                for extra in own - ordinal:
                    # A plate of the denominator alone: its elements are independent, so their logs add up.
                    axis = term._pyro_dims.find(extra)
                    dims = term._pyro_dims
                    term = term.sum(axis) if axis >= 0 else term * frames[extra].size
                    term._pyro_dims = dims.replace(extra, "")
                value = value - _unpack(term, trace, shared)
        own = [n for n in data_names if n not in local] or data_names
        found[_common_name(own)] = _Marginal(value, tuple(f.name for f in shared))
    return found


def _contract(trace: Any, names: Iterable[str], sum_dims: set[str]) -> Any:
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for name in names:
        node = trace.nodes[name]
        ordinal = frozenset(trace.plate_to_symbol[f.name] for f in node["cond_indep_stack"] if f.vectorized)
        term = packed.scale_and_mask(node["packed"]["unscaled_log_prob"], mask=node["packed"]["mask"])
        tree.setdefault(ordinal, []).append(term)
    return contract_tensor_tree(tree, set(sum_dims)) if tree else {}


def _unpack(term: Tensor, trace: Any, frames: Sequence[Any]) -> Tensor:
    """Return a packed tensor with one axis per plate, outermost first."""
    value = packed.unpack(term, trace.symbol_to_dim)
    depth = max((-f.dim for f in frames), default=0)
    sizes = [1] * depth
    for frame in frames:
        sizes[frame.dim] = frame.size
    result: Tensor = value.expand(sizes).reshape([f.size for f in frames])
    return result


def _common_name(names: Sequence[str]) -> str:
    """Name an entry of several observed sites: their common stem (``y`` of ``y_0``, ``y_1``), else all names."""
    if len(names) == 1:
        return names[0]
    stem = names[0]
    for name in names[1:]:
        while not name.startswith(stem):
            stem = stem[:-1]
    return stem.rstrip("_0123456789") or "+".join(names)


def take_rows(data: Dataset, batch: Batch, rows: Tensor) -> dict[str, Tensor]:
    """Return some rows of a batch; entries without rows stay whole.

    Args:
        data: The data set, which knows the entries without rows.
        batch: The batch.
        rows: Positions, ``(k,)``.

    Returns:
        The smaller batch.
    """
    return {k: v if k in data.whole else v[rows.to(v.device)] for k, v in batch.items()}


# ---------------------------------------------------------------------------------------------------------- ArviZ
def to_arviz(
    posterior: Posterior, *, num_draws: int = 1_000, max_elements: int = 10_000, seed: int = 0
) -> az.InferenceData | xr.DataTree:
    """Convert a posterior to ArviZ.

    Groups: ``posterior`` (latents, deterministic sites and, where discrete latents are summed out, draws of them from
    their exact conditional), ``prior``, ``prior_predictive``, ``posterior_predictive``, ``log_likelihood``,
    ``sample_stats`` (NUTS), ``observed_data``, ``constant_data``. Axes carry the names of the plates around a site, and
    the data set's labels; plates and sites of names that ArviZ or NetCDF keep for themselves (``chain``, a slash) get
    others. A site with more than ``max_elements`` elements in one draw enters as ``<site>_summary`` with
    the dimension ``statistic`` (mean, sd, norm and largest absolute value over its elements, draw by draw); of too many
    rows a random subset enters the groups that have rows. ``attrs["left_out"]`` says so, as a JSON list of sentences.

    Args:
        posterior: A fit.
        num_draws: Draws from a guide (one chain) and from the prior. Chains of NUTS enter whole.
        max_elements: Elements of one draw of a site above which it is summarised.
        seed: Of all draws.

    Returns:
        The container of the installed ArviZ, on which ``az.summary``, ``az.loo`` and the plots run as they are:
        ``InferenceData`` for ArviZ 0.x, xarray's ``DataTree`` from ArviZ 1 on.

    Raises:
        DataError: If ``num_draws`` or ``max_elements`` is not positive.
    """
    return _arviz.inference_data(*_groups(posterior, num_draws, max_elements, seed))


def to_datatree(
    posterior: Posterior, *, num_draws: int = 1_000, max_elements: int = 10_000, seed: int = 0
) -> xr.DataTree:
    """Convert a posterior to xarray's tree, the container of ArviZ 1, whichever ArviZ is installed.

    Args:
        posterior: A fit.
        num_draws: As of :func:`to_arviz`.
        max_elements: As of :func:`to_arviz`.
        seed: As of :func:`to_arviz`.

    Returns:
        The tree, with one node per group; ``attrs["left_out"]`` at its root.

    Raises:
        DataError: If ``num_draws`` or ``max_elements`` is not positive.
    """
    return _arviz.tree(*_groups(posterior, num_draws, max_elements, seed))


def _groups(
    posterior: Posterior, num_draws: int, max_elements: int, seed: int
) -> tuple[dict[str, xr.Dataset], dict[str, str]]:
    """Return the groups of a posterior, and what stands at their root."""
    if num_draws < 1 or max_elements < 1:
        raise DataError(f"num_draws={num_draws}, max_elements={max_elements}; allowed: 1 or more of each")
    left_out: list[str] = []
    data = posterior.data
    prepare = posterior._prepare
    batch = prepare(None)
    chains = posterior.chains
    first = {k: v[0] for k, v in posterior.draws(1, seed=seed).items()}
    known = sites(posterior, batch, first)
    local = any(s.row_axis is not None and s.kind == "latent" for s in known.values())

    def affordable(known: Mapping[str, Site], *, shared: bool = False) -> tuple[int, int]:
        own = (s.size for s in known.values() if s.kind == "latent" and not (shared and s.row_axis is not None))
        size = sum(own)
        return size, num_draws if chains is not None else max(_FEWEST_DRAWS, _MOST_NUMBERS // max(size, 1))

    # Latents of rows that are left out are not drawn, so the rows are chosen first.
    rows = _choose_rows(posterior, known, min(num_draws, affordable(known, shared=True)[1]), max_elements, seed)
    if rows is not None and not (local and chains is not None):
        left_out.append(
            f"{data.num_data - len(rows):,} of {data.num_data:,} rows in the groups that have rows: a random subset "
            f"of {len(rows):,} is kept"
        )
        batch = take_rows(data, batch, rows)
        first = {k: v[0] for k, v in posterior.draws(1, batch=batch, seed=seed).items()}
        known = sites(posterior, batch, first)
    latent_size, most = affordable(known)
    if most < num_draws:
        left_out.insert(0, f"{num_draws - most:,} of {num_draws:,} draws: one draw has {latent_size:,} elements")
        num_draws = most
    factors = [s.name for s in known.values() if s.kind == "factor"]
    if factors:
        left_out.append(f"factor sites {', '.join(factors)}: part of the log density, but the log density of no datum")

    groups = _Groups(posterior, batch, known, first, max_elements, left_out)
    if chains is None:
        shape = (1, num_draws)
        # Draws of a large model are made and summarised in blocks, so that they are never in memory together.
        block = max(1, min(num_draws, _MOST_NUMBERS // (4 * max(latent_size, 1))))
        for start in range(0, num_draws, block):
            size = min(block, num_draws - start)
            groups.add_posterior(posterior.draws(size, batch=batch, seed=seed + start), size, seed + start)
    else:
        shape = tuple(next(iter(chains.values())).shape[:2])  # type: ignore[assignment]
        groups.add_posterior({k: v.flatten(0, 1) for k, v in chains.items()}, num_draws, seed)
    groups.add_prior(num_draws, seed)

    built = {
        "posterior": groups.dataset("posterior", shape),
        "prior": groups.dataset("prior", (1, num_draws)),
        "prior_predictive": groups.dataset("prior_predictive", (1, num_draws)),
        "posterior_predictive": groups.dataset("posterior_predictive", shape),
        "log_likelihood": groups.dataset("log_likelihood", shape),
        "observed_data": groups.observed(),
        "constant_data": groups.constant(),
    }
    if posterior.sample_stats:
        built["sample_stats"] = groups.stats(posterior.sample_stats)
    attrs = {
        "inference_library": "pyro",
        "creation_library": "pyro-zoo",
        "name": posterior.name,
        "engine": posterior.engine,
        "data": data.name,
        "left_out": json.dumps(left_out),
    }
    return {k: v for k, v in built.items() if v is not None and v.data_vars}, attrs


def _choose_rows(
    posterior: Posterior, known: Mapping[str, Site], num_draws: int, max_elements: int, seed: int
) -> Tensor | None:
    """Return the rows to keep, or ``None`` for all of them."""
    per_row = [s.size // s.shape[s.row_axis] for s in known.values() if s.row_axis is not None and s.shape[s.row_axis]]
    total = posterior.data.num_data
    if not per_row or "index" not in posterior.data.train:
        return None
    shared = sum(s.size for s in known.values() if s.kind == "latent" and s.row_axis is None)
    most = min(max_elements // max(*per_row, 1), int(_MOST_WORK / max(shared * num_draws, 1)))
    most = max(most, 1)
    if most >= total:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:most].sort().values


class _Groups:
    """Collects values by group and turns them into xarray datasets."""

    def __init__(
        self,
        posterior: Posterior,
        batch: Batch,
        known: Mapping[str, Site],
        draw: Mapping[str, Tensor],
        max_elements: int,
        left_out: list[str],
    ) -> None:
        self.posterior, self.batch, self.known, self.draw = posterior, batch, known, draw
        self.max_elements, self.left_out = max_elements, left_out
        self.values: dict[str, dict[str, list[NDArray[Any]]]] = {}
        self.dims: dict[str, tuple[str, ...]] = {s.name: s.dims for s in known.values()}
        self.log_dims: dict[str, tuple[str, ...]] = {}
        self.sizes: dict[str, int] = {}
        self.summaries: set[str] = set()
        self.names: dict[tuple[str, str], str] = {}
        self.row_plates = {s.dims[s.row_axis] for s in known.values() if s.row_axis is not None}

    def add(self, group: str, name: str, value: Tensor) -> None:
        """Append draws of one site, or their summaries when the site is large."""
        store = self.values.setdefault(group, {})
        array = value.detach().cpu()
        if int(np.prod(array.shape[1:], dtype=np.int64)) > self.max_elements:
            flat = array.reshape(len(array), -1).double()
            columns = (flat.mean(1), flat.std(1), flat.norm(dim=1), flat.abs().amax(1))
            summary = f"{name}_summary"
            if summary not in self.dims:
                self.dims[summary] = ("statistic",)
                self.summaries.add(summary)
                self.left_out.append(
                    f"the {flat.shape[1]:,} elements of '{name}', shape {tuple(array.shape[1:])}: '{summary}' holds "
                    f"their {', '.join(STATISTICS)} in each draw"
                )
            store.setdefault(summary, []).append(torch.stack(columns, 1).numpy())
            return
        store.setdefault(name, []).append(array.numpy())

    def add_posterior(self, draws: Mapping[str, Tensor], num: int, seed: int) -> None:
        """Add one block of draws, ``num`` where nothing is latent, and everything that the model says at them."""
        found = evaluate(self.posterior, self.batch, draws, count=num, seed=seed)
        for name in (n for n in draws if n in self.known):
            self.add("posterior", name, draws[name])
        for part in (found.deterministics, found.enumerated):
            for name, value in part.items():
                self.add("posterior", name, value)
        for name, value in found.predictive.items():
            self.add("posterior_predictive", name, value)
        for name, value in found.log_likelihood.items():
            self.log_dims[name] = found.plates[name]
            self.add("log_likelihood", name, value.double())

    def add_prior(self, num: int, seed: int) -> None:
        """Add draws from the model before any data, where it can be sampled."""
        model, batch = self.posterior.runs.pair.model, self.batch
        inside = [s.name for s in self.known.values() if s.kind in ("latent", "deterministic", "enumerated")]
        seen = [s.name for s in self.known.values() if s.kind == "observed"]

        def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
            nodes = _trace(model, batch, {}, observed=False).nodes
            return {
                f"{'prior' if n in inside else 'prior_predictive'}/{n}": nodes[n]["value"] for n in [*inside, *seen]
            }

        elements = sum(s.size for s in self.known.values())
        block = max(1, min(num, _MOST_NUMBERS // (4 * max(elements, 1))))
        for start in range(0, num, block):
            try:
                drawn = self.posterior.runs.map(one, min(block, num - start), seed=seed + start)
            except (NotImplementedError, ZooError) as error:
                self.left_out.append(f"the prior: it cannot be sampled ({type(error).__name__}: {error})")
                return
            for key, value in drawn.items():
                group, name = key.split("/", 1)
                self.add(group, name, value)

    def dataset(self, group: str, shape: tuple[int, int]) -> xr.Dataset | None:
        """Return one group whose variables have chains and draws."""
        stored = self.values.get(group)
        if not stored:
            return None
        dims = self.log_dims | {k: v for k, v in self.dims.items() if k.endswith("_summary") and k not in self.log_dims}
        arrays = {}
        for name, blocks in stored.items():
            value = np.concatenate(blocks)
            own = (dims if group == "log_likelihood" else self.dims)[name]
            if len(own) != value.ndim - 1:  # replicates of another shape than the data
                own = tuple(f"{name}_{group}_dim_{i}" for i in range(value.ndim - 1))
            arrays[name] = (("chain", "draw", *own), value.reshape(*shape, *value.shape[1:]))
        return self._build(arrays, drawn=True)

    def observed(self) -> xr.Dataset | None:
        """Return the observed values."""
        from zoo.inference.program import seeded, stream

        names = [s.name for s in self.known.values() if s.kind == "observed"]
        if not names:
            return None
        with self.posterior.runs.bound(), stream(seeded(0, self.posterior.runs.device)):
            nodes = _trace(self.posterior.runs.pair.model, self.batch, self.draw).nodes
            values = {n: observed_value(nodes[n]).detach().cpu().numpy() for n in names}
        kept = {n: (self.dims[n], v) for n, v in values.items() if v.size <= self.max_elements}
        return self._build(kept)

    def constant(self) -> xr.Dataset | None:
        """Return the rest of the batch: features, standard errors, and so on."""
        arrays = {}
        data = self.posterior.data
        seen = {s.name for s in self.known.values() if s.kind == "observed"}
        rows = len(self.batch["index"]) if "index" in self.batch else None
        for name, value in self.batch.items():
            if name == "index" or name in seen:
                continue
            if value.numel() > 1_000 * self.max_elements:
                self.left_out.append(f"'{name}' of the constant data: {value.numel():,} elements")
                continue
            given = data.dims.get(name, ())
            dims = list(given) if len(given) == value.ndim else [f"{name}_dim_{i}" for i in range(value.ndim)]
            if value.ndim and name not in data.whole and len(value) == rows and len(self.row_plates) == 1:
                dims[0] = next(iter(self.row_plates))
            arrays[name] = (tuple(dims), value.detach().cpu().numpy())
        return self._build(arrays)

    def stats(self, stats: Mapping[str, Tensor]) -> xr.Dataset:
        """Return the sampler's statistics."""
        arrays = {k: (("chain", "draw"), v.detach().cpu().numpy()) for k, v in stats.items()}
        return self._build(arrays, drawn=True)

    def _build(self, arrays: Mapping[str, tuple[tuple[str, ...], NDArray[Any]]], *, drawn: bool = False) -> xr.Dataset:
        """Build a dataset; ``drawn`` says that the first two axes of every variable are chains and draws."""
        # An axis name that stands for another size elsewhere, or for a variable, falls back to <variable>_dim_<i>.
        import xarray as xr

        coords: dict[str, Any] = {}
        variables = {}
        lead = 2 if drawn else 0
        called = {name: self._called(name, "site") for name in arrays}
        for name, (dims, value) in arrays.items():
            own: list[str] = []
            for i, (dim, size) in enumerate(zip(dims, value.shape, strict=True)):
                ours = i < lead or (dim == "statistic" and name in self.summaries)
                kept = dim if ours else self._called(dim, "plate")
                fallback, labels = f"{called[name]}_dim_{i - lead}", dim
                while i >= lead and (
                    self.sizes.setdefault(kept, size) != size or kept in called.values() or kept in own
                ):
                    kept, fallback, labels = fallback, f"{fallback}_", fallback
                own.append(kept)
                coords[kept] = np.arange(size) if i < lead else self._labels(labels, size, summary=ours)
            variables[called[name]] = (tuple(own), value)
        dataset: xr.Dataset = xr.Dataset(variables, coords=coords)
        dataset.attrs = {"inference_library": "pyro", "creation_library": "pyro-zoo"}
        return dataset

    def _called(self, name: str, kind: Literal["site", "plate"]) -> str:
        """Return the name under which a site or plate is stored: its own wherever ArviZ and NetCDF take it."""
        if (name, kind) not in self.names:
            found = re.sub(r"[\x00-\x1f\x7f]", "_", name.replace("/", ".")).rstrip()
            if not re.match(r"\w", found):
                found = f"_{found}"
            if found in _RESERVED:
                found = f"{found}_{kind}"
            if found != name:
                others = {*self.names.values(), *self.dims, *(d for dims in self.dims.values() for d in dims)}
                while found in others:
                    found += "_"
                if name in self.dims or any(name in dims for dims in self.dims.values()):
                    self.left_out.append(f"nothing of the {kind} {name!r}: it is called '{found}' here")
            self.names[name, kind] = found
        return self.names[name, kind]

    def _labels(self, dim: str, size: int, *, summary: bool = False) -> Any:
        if summary:
            return list(STATISTICS)
        given = self.posterior.data.coords.get(dim)
        rows = self.batch["index"].tolist() if dim in self.row_plates and "index" in self.batch else None
        if given is not None and rows is not None and len(rows) == size and max(rows, default=-1) < len(given):
            return [given[i] for i in rows]
        named = dimension(self.posterior, dim, size)
        if named is not None:
            return named
        return rows if rows is not None and len(rows) == size else np.arange(size)
