"""Which figures a fit has something to show for, and what they are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.diagnostics.labels import element
from zoo.reports import figures
from zoo.reports.figures import Drawing
from zoo.reports.parts import Parts

if TYPE_CHECKING:
    from zoo.diagnostics import Check, Diagnosis
    from zoo.inference.posterior import Posterior
    from zoo.types import Batch, Dataset

__all__ = ["checks", "coordinates", "first_rows", "inference", "interest", "posterior_figures", "scores"]

Array = NDArray[np.float64]


def array(value: Any) -> Array:
    """Return a tensor or array-like as float64 array.

    Args:
        value: Tensor, array or sequence.

    Returns:
        The array, on the CPU.
    """
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)


def coordinates(variable: Any, index: tuple[int, ...]) -> str:
    """Return the labels of one element of an ArviZ variable.

    Args:
        variable: ``xarray.DataArray`` with ``chain``, ``draw`` and the plates.
        index: Position along the plates.

    Returns:
        Labels joined by commas; empty for a scalar.
    """
    parts = []
    for dim, i in zip([d for d in variable.dims if d not in ("chain", "draw")], index, strict=True):
        parts.append(str(variable.coords[dim].values[i]) if dim in variable.coords else str(i))
    return ", ".join(parts)


def _all_of(parts: Parts, drawers: Mapping[str, Callable[[], Drawing | None]]) -> list[Drawing]:
    """Draw one figure after the other, those that can be drawn."""
    drawn = [parts.make(f"figure '{name}'", drawer, None) for name, drawer in drawers.items()]
    return [drawing for drawing in drawn if drawing is not None]


def interest(posterior: Posterior, parts: Parts) -> list[Drawing]:
    """Draw the method's own figures.

    Args:
        posterior: A fit.
        parts: Told of what cannot be drawn.

    Returns:
        Drawings; none for a bare pair.
    """
    if posterior.method is None or posterior.method.figures is None:
        return []
    describe = posterior.method.figures
    described = parts.make("the method's own figures", lambda: list(describe(posterior)), [])
    return _all_of(parts, {figure.name: partial(figures.own, figure) for figure in described})


# ----------------------------------------------------------------------------------------------------- inference
def inference(posterior: Posterior, dataset: Any, rows: Sequence[Mapping[str, Any]], parts: Parts) -> list[Drawing]:
    """Draw how the optimiser or the chains went.

    Args:
        posterior: A fit.
        dataset: Posterior group of its ArviZ export; ``None`` if there is none.
        rows: Entries of the posterior table, with R-hat where there are chains.
        parts: Told of what cannot be drawn.

    Returns:
        Loss curves, or traces, ranks and divergences.
    """
    drawers: dict[str, Callable[[], Drawing | None]] = {}
    if posterior.engine != "nuts":
        for key, losses in posterior.history.items():
            if losses.numel() > 1:
                alone = len(posterior.history) == 1
                name, label = ("loss", "negative ELBO") if alone else (f"loss-{key}", f"loss of {key}")
                drawers[name] = partial(figures.loss_curve, array(losses), name=name, label=label)
        return _all_of(parts, drawers)
    chosen = _worst(dataset, rows)
    if chosen:
        drawers = {"ranks": lambda: figures.ranks(chosen), "traces": lambda: figures.traces(chosen)}
    diverging = (posterior.sample_stats or {}).get("diverging")
    if dataset is not None and diverging is not None and bool(diverging.any()):
        drawers["pairs"] = lambda: _divergent_pair(dataset, array(diverging) > 0)
    return _all_of(parts, drawers)


def _divergent_pair(dataset: Any, diverging: NDArray[np.bool_]) -> Drawing | None:
    found = _funnel(dataset)
    if found is None:
        return None
    (xlabel, x), (ylabel, y) = found
    return figures.pairs(x, y, diverging, xlabel=xlabel, ylabel=ylabel)


def _worst(dataset: Any, rows: Sequence[Mapping[str, Any]], most: int = 4) -> dict[str, Array]:
    # Chains of the quantities with the largest R-hat, one per site first.
    ranked = sorted((r for r in rows if r.get("r_hat") == r.get("r_hat")), key=lambda r: -r.get("r_hat", 0.0))
    first = {r["site"]: r for r in reversed(ranked)}
    chosen = [r for r in ranked if first[r["site"]] is r][:most]
    chosen += [r for r in ranked if r not in chosen][: most - len(chosen)]
    return {_label(r): _chain(dataset[r["site"]], r["index"]) for r in chosen}


def _label(row: Mapping[str, Any]) -> str:
    return element(str(row["site"]), [row["element"]] if row["element"] else [])


def _chain(variable: Any, index: tuple[int, ...]) -> Array:
    dims = [d for d in variable.dims if d not in ("chain", "draw")]
    one = variable.isel(dict(zip(dims, index, strict=True)))
    return np.asarray(one.transpose("chain", "draw").values, dtype=np.float64)


def _funnel(dataset: Any) -> tuple[tuple[str, Array], tuple[str, Array]] | None:
    # Choose the log of a positive scalar and the quantity whose spread follows it most closely.
    scalars, others = {}, {}
    for name, variable in dataset.data_vars.items():
        values = np.asarray(variable.transpose("chain", "draw", ...).values)
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            continue
        shape = values.shape[2:]
        if not shape and (values > 0).all():
            scalars[f"log {name}"] = np.log(values)
            continue
        for index in list(np.ndindex(shape))[:12]:
            chain = values[:, :, *index]
            if chain.std() > 0:
                others[_label({"site": name, "element": coordinates(variable, index)})] = chain
    best, pair = 0.0, None
    for xlabel, x in scalars.items():
        for ylabel, y in others.items():
            size = np.log(np.abs(y - np.median(y)) + 1e-12)
            strength = abs(float(np.corrcoef(x.ravel(), size.ravel())[0, 1]))
            if strength > best:
                best, pair = strength, ((xlabel, x), (ylabel, y))
    return pair


# ----------------------------------------------------------------------------------------------------- posterior
def posterior_figures(rows: Sequence[Mapping[str, Any]], parts: Parts) -> list[Drawing]:
    """Draw intervals of every site with a few labelled elements.

    Args:
        rows: Entries of the posterior table.
        parts: Told of what cannot be drawn.

    Returns:
        At most four forest plots.
    """
    sites: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["element"] and not row["site"].endswith("_summary"):  # statistics of different units
            sites.setdefault(row["site"], []).append(row)
    drawers: dict[str, Callable[[], Drawing | None]] = {}
    for i, (site, mine) in enumerate(sites.items()):
        if 2 <= len(mine) <= 40 and len(drawers) < 4:
            names = [r["element"] if len(r["element"]) <= 28 else r["element"][:27] + "…" for r in mine]
            mid, low, high = ([r[k] for r in mine] for k in ("mean", "5%", "95%"))
            name = f"forest-{i}"
            drawers[name] = partial(figures.forest, names, mid, low, high, name=name, title=site)
    return _all_of(parts, drawers)


# --------------------------------------------------------------------------------------------------- predictions
def first_rows(batch: Batch, whole: frozenset[str], most: int) -> Batch:
    """Return the first rows of a batch.

    Args:
        batch: Any batch.
        whole: Entries without rows.
        most: Rows kept at most.

    Returns:
        The batch itself where it has no more rows.
    """
    if "index" not in batch or len(batch["index"]) <= most:
        return batch
    return {k: v if k in whole else v[:most] for k, v in batch.items()}


def scores(posterior: Posterior, *, seed: int = 0, num_draws: int = 100) -> dict[str, dict[str, float]]:
    """Score the predictions of every held-out split by the task of the data, or of the method if that is another one.

    Args:
        posterior: A fit.
        seed: Of the predictive draws.
        num_draws: Predictive draws.

    Returns:
        Split -> scores; empty where the data have no held-out rows or no known task.
    """
    from zoo import tasks

    data = posterior.data
    found: dict[str, dict[str, float]] = {}
    task = tasks.of(posterior.method, data)
    if task is None:
        return found
    for split in ("validation", "test"):
        batch = getattr(data, split)
        if batch is not None and task.target in batch:
            prediction = posterior.predict(batch, num_draws, seed=seed, kinds=task.reads)
            found[split] = dict(task.score(prediction, batch, data))
    return found


def _predictive_check(data: Dataset, y: Array, samples: Array, *, discrete: bool, prior: bool = False) -> Drawing:
    target = data.target
    label = target.name if target else "y"
    source = "prior" if prior else "fit"
    if target is not None and target.categories:
        return figures.overlay(y, samples, label=label, classes=target.categories, source=source)
    if target is not None and not discrete:
        samples, y = samples * target.scale + target.mean, y * target.scale + target.mean
    if y.size <= 30 and not discrete:
        dim = (data.dims.get("y") or ("datum",))[0]
        labels = [str(v) for v in data.coords.get(dim, range(y.size))]
        labels = labels if len(labels) == y.size else [str(i) for i in range(y.size)]
        low, mid, high = np.quantile(samples, (0.05, 0.5, 0.95), axis=0)
        return figures.intervals(labels, y, low, mid, high, label=label, source=source)
    return figures.overlay(y, samples, label=label, discrete=discrete, source=source)


# -------------------------------------------------------------------------------------------------------- checks
def checks(posterior: Posterior, diagnosis: Diagnosis, parts: Parts) -> dict[str, Drawing]:
    """Draw what single checks measured.

    Args:
        posterior: The fit.
        diagnosis: Its checks.
        parts: Told of what cannot be drawn.

    Returns:
        Check -> drawing, for the checks that have one beyond the loss and the chains.
    """
    found: dict[str, Drawing] = {}
    for check in diagnosis.checks:
        drawing = parts.make(f"figure of the check '{check.name}'", partial(_drawing, posterior, check), None)
        if drawing is not None:
            found[check.name] = drawing
    return found


def _drawing(posterior: Posterior, check: Check) -> Drawing | None:
    labels = [str(v) for v in check.data["labels"]] if "labels" in check.data else []
    data = {k: array(v) for k, v in check.data.items() if k != "labels"}
    match check.figure:
        case "khat":
            return figures.khat_repeats(data["values"], limit=float(data["limit"]))
        case "loo":
            return figures.pareto_k(data["values"], limit=float(data["limit"]))
        case "rows":
            return figures.pareto_k(data["values"], limit=float(data["limit"]), of="rows")
        case "sbc":
            return figures.rank_ecdf(
                data["ranks"],
                largest=int(data["largest"]),
                low=data["low"],
                high=data["high"],
                labels=labels,
                worst=int(data["worst"]),
            )
        case "interval_coverage":
            return figures.reliability(
                data["predicted"],
                data["observed"],
                counts=data["counts"],
                kind="interval",
                name="interval-coverage",
            )
        case "spreads":
            return figures.spreads(labels, data["ratios"])
        case "sensitivity":
            return figures.sensitivity(labels, data["prior"], data["likelihood"], limit=float(data["limit"]))
        case "risk_coverage":
            return figures.risk_coverage(
                data["coverage"], data["risk"], data["low"], data["high"], random=float(data["random"])
            )
        case "histograms":
            return figures.two_histograms(data["inside"], data["outside"])
        case "reliability" | "coverage":
            kind = "probability" if check.figure == "reliability" else "coverage"
            return figures.reliability(data["predicted"], data["observed"], counts=data.get("counts"), kind=kind)
        case "ppc" | "prior_ppc":
            return _predictive_check(
                posterior.data,
                data["observed"],
                data["replicated"],
                discrete=bool(data["discrete"]),
                prior=check.figure == "prior_ppc",
            )
        case "funnel":
            site = check.value.get("site", "value") if isinstance(check.value, Mapping) else "value"
            return figures.funnel(data["log_scale"], data["value"], site=str(site))
        case "bars" if data["values"].size > 1:
            what = "R-hat between restarts" if check.name == "restart_agreement" else "R-hat"
            return figures.ranked(data["values"], name=check.name, label=what, limit=1.01)
    return None
