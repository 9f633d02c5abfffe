"""What a change of each feature does to the target, in the user's units, where the fitted model is linear in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from zoo.diagnostics.adapter import Site, _trace, sites, take_rows
from zoo.errors import DataError, PairError
from zoo.inference.sites import innermost
from zoo.types import Column

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = ["LINKS", "Linear", "Order", "effects", "linear_predictor"]

Link: TypeAlias = Literal["identity", "log odds", "log rate"]
Order: TypeAlias = Literal["size", "sign", "table"]

LINKS: dict[str, str] = {"identity": "", "log odds": "odds ratio", "log rate": "rate ratio"}
"""Link -> what the exponential of an effect is called; empty where it is none."""

_ROWS = 20  # rows at which the slope of the predictor is looked at
_ALIKE = 1e-3  # relative error of a slope in single precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Where a model keeps its linear predictor.

    Args:
        link: On which scale the predictor is linear.
        slope: Site of the coefficients, one per feature.
        intercept: Site of the predictor where all features are zero, that is at their means; empty if there is none.
    """

    link: Link
    slope: str
    intercept: str = ""


def linear_predictor(posterior: Posterior) -> Linear:
    """Find the coefficients of a model that is linear in its features.

    The gradient of the predictor (a location, log odds or log rate) with respect to the features is compared with the
    sites of the model at one draw: where it is the same in all rows and equals a site, that site holds the
    coefficients. Effects of groups are set to zero for this, so that the coefficients are those of an average group.

    Args:
        posterior: A fit of any pair.

    Returns:
        Its parts.

    Raises:
        PairError: If the model is not linear in its features, or keeps the coefficients in no site.
    """
    reason = "the model reads no table of features 'x'"
    x = posterior.data.train.get("x")
    if isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point():
        batch = posterior._prepare(None)
        draw = {k: v[0] for k, v in posterior.draws(1).items()}
        known = sites(posterior, batch, draw)
        few = _few_rows(posterior, batch)
        average = _without_groups(draw, known)
        for values in [average, draw] if average is not draw else [draw]:
            found, reason = _look(posterior, few, values, known)
            if found is not None:
                return found
    raise PairError(
        f"'{posterior.name}' has no effects of single features: {reason}; effects are of models that are linear "
        "in 'x', with the coefficients as a site (pyro.sample or pyro.deterministic)"
    )


def _few_rows(posterior: Posterior, batch: Batch) -> Batch:
    """Return some rows without missing entries; the batch itself where it is not cut into rows."""
    if "index" not in batch:
        return batch
    missing = batch.get("x_missing")
    whole = torch.arange(len(batch["index"])) if missing is None else (~missing.any(1)).nonzero()[:, 0].cpu()
    few = dict(take_rows(posterior.data, batch, whole[:_ROWS]))
    few.pop("x_missing", None)
    return few


def _without_groups(draw: Mapping[str, Tensor], known: Mapping[str, Site]) -> Mapping[str, Tensor]:
    """Return the draw with what groups of rows have of their own set to zero."""
    own = {n for n in draw if n in known and any("group" in dim for dim in known[n].dims)}
    return {n: torch.zeros_like(v) if n in own else v for n, v in draw.items()} if own else draw


def _look(
    posterior: Posterior, batch: Batch, draw: Mapping[str, Tensor], known: Mapping[str, Site]
) -> tuple[Linear | None, str]:
    """Compare the slope of the predictor with the sites of the model at one draw; say why nothing was found."""
    from zoo.inference.program import seeded, stream

    x = batch["x"].detach().clone().requires_grad_()
    with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)), torch.enable_grad():
        nodes = _trace(posterior.pair.model, {**batch, "x": x}, draw).nodes
        zero = _trace(posterior.pair.model, {**batch, "x": torch.zeros_like(x)}, draw).nodes
        seen = [s.name for s in known.values() if s.kind == "observed" and s.name in nodes]
        if len(seen) != 1:
            return None, f"the model observes {len(seen)} sites, not one"
        eta, link = _predictor(nodes[seen[0]]["fn"])
        start, _ = _predictor(zero[seen[0]]["fn"])
        if eta is None or start is None:
            return (
                None,
                f"'{seen[0]}' is {type(innermost(nodes[seen[0]]['fn'])).__name__}, whose predictor is not known",
            )
        if eta.shape != (len(x),) or not eta.requires_grad:
            return None, f"the location of '{seen[0]}' is not one number per row that depends on 'x'"
        slopes = torch.autograd.grad(eta.sum(), x)[0].detach()
        values = {n: nodes[n]["value"].detach() for n, s in known.items() if n in nodes and s.kind != "observed"}
    size = float(slopes.abs().max())
    if not bool((slopes - slopes[:1]).abs().max() <= _ALIKE * size):
        return None, "its predictor is not linear in 'x'"
    fitting = [n for n, v in values.items() if v.numel() == x.shape[1] and _close(v.reshape(-1), slopes[0], size)]
    if not fitting or size == 0:
        return None, "its slopes stand in no site"
    base = start.detach()
    scalar = [n for n, v in values.items() if v.numel() == 1 and n != fitting[0]]
    level = [
        n for n in scalar if bool(base.any()) and _close(values[n].expand(len(base)), base, float(base.abs().max()))
    ]
    return Linear(link=link, slope=fitting[0], intercept=level[0] if level else ""), ""


def _close(a: Tensor, b: Tensor, size: float) -> bool:
    return bool((a.double() - b.double()).abs().max() <= _ALIKE * size)


def _predictor(fn: Any) -> tuple[Tensor | None, Link]:
    """Return what a likelihood's predictor is, one number per row, and on which scale."""
    fn = innermost(fn)
    kind = type(fn).__name__
    if kind in ("Bernoulli", "BernoulliLogits", "BernoulliProbs", "Binomial"):
        return fn.logits, "log odds"
    if kind.endswith("Poisson") or kind == "NegativeBinomial":
        rate = fn.rate if hasattr(fn, "rate") and not hasattr(fn, "concentration") else fn.mean
        return rate.log(), "log rate"
    if isinstance(getattr(fn, "loc", None), Tensor) and fn.support is torch.distributions.constraints.real:
        return fn.loc, "identity"
    return None, "identity"


def effects(posterior: Posterior, *, num_draws: int = 4_000, seed: int = 0, order: Order = "size") -> pd.DataFrame:
    """Return the effect of each feature on the target in the user's units.

    For a number it is the change of the target per unit of the feature; for a category the difference to its column's
    base category. Where the target is a class, effects are on the log odds of the second class; where it is a count, on
    the log rate.

    Args:
        posterior: A fit of a model that is linear in its features.
        num_draws: Posterior draws to summarise; chains enter with at most so many.
        seed: Of the draws.
        order: ``size``: by the size of the effect of one standard deviation of the feature, the categories of a column
            together; ``sign``: by how probable the sign is; ``table``: as the columns stand in the data.

    Returns:
        One row per feature, and last the ``intercept`` at zero of all features, where the model has one. ``feature``
        and, of categories, ``level`` and ``base``; ``mean``, ``sd`` and the 90% interval ``5%``, ``95%``; ``sign``: the
        probability that the effect has the sign of its mean; ``per sd``, ``per sd 5%``, ``per sd 95%``: the effect of
        one standard deviation of the feature; and for log odds and log rates the ``odds ratio`` or ``rate ratio`` with
        its interval. ``attrs`` hold ``target``, ``link``, ``unit`` and ``order``.

    Raises:
        PairError: If the model is not linear in its features.
        DataError: If ``num_draws`` or ``order`` is not allowed.
    """
    if num_draws < 2:
        raise DataError(f"num_draws is {num_draws}; it must be at least 2")
    if order not in ("size", "sign", "table"):
        raise DataError(f"order is '{order}'; allowed: size, sign, table")
    parts = linear_predictor(posterior)
    draws = posterior.draws(num_draws, seed=seed)
    if parts.slope not in draws or (parts.intercept and parts.intercept not in draws):
        draws = {**draws, **posterior.deterministics(draws)}
    beta = np.asarray(draws[parts.slope].detach().cpu().double()).reshape(len(draws[parts.slope]), -1)
    data, target = posterior.data, posterior.data.target
    columns: Sequence[Column] = data.columns or tuple(Column(name=f"x{j}") for j in range(beta.shape[1]))
    linear = parts.link == "identity" and target is not None and target.categories is None
    unit, origin = (target.scale, target.mean) if linear and target is not None else (1.0, 0.0)
    mean, scale = (np.array([getattr(c, k) for c in columns]) for k in ("mean", "scale"))
    per_sd = unit * beta
    slope = per_sd / scale
    rows = [_named(column) | _summary(slope[:, j], parts.link) for j, column in enumerate(columns)]
    frame = pd.DataFrame(rows, index=pd.Index([c.name for c in columns], name="effect"))
    frame.insert(7, "per sd", per_sd.mean(0))
    for place, q in ((8, 0.05), (9, 0.95)):
        frame.insert(place, f"per sd {100 * q:.0f}%", np.quantile(per_sd, q, axis=0))
    frame = frame.iloc[_arranged(frame, order)]
    if parts.intercept:
        level = np.asarray(draws[parts.intercept].detach().cpu().double()).reshape(-1)
        last: dict[str, Any] = {"feature": "intercept", "level": "", "base": ""}
        last |= _summary(origin + unit * level - slope @ mean, parts.link)
        missing = {name: math.nan for name in frame.columns if name not in last}
        frame = pd.concat([frame, pd.DataFrame([last | missing], index=pd.Index(["intercept"], name="effect"))])
        frame = frame.rename_axis("effect")
    frame.attrs = {
        "target": _target(target, parts.link),
        "link": parts.link,
        "unit": target.name if linear and target is not None else parts.link,
        "order": order,
    }
    return frame


def _target(target: Column | None, link: Link) -> str:
    """Return what the effects are on, in words."""
    name = target.name if target is not None else "y"
    if link == "log odds":
        of = f"{name}={target.categories[1]}" if target and target.categories and len(target.categories) > 1 else name
        return f"log odds of {of}"
    return f"log rate of {name}" if link == "log rate" else name


def _named(column: Column) -> dict[str, Any]:
    """Return which column a feature comes from, and which categories it sets apart."""
    source = column.source or column.name
    if column.categories is None or not column.name.startswith(f"{source}="):
        return {"feature": source, "level": "", "base": ""}
    return {"feature": source, "level": column.name[len(source) + 1 :], "base": column.categories[0]}


def _summary(values: np.ndarray[Any, Any], link: Link) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    centre = float(values.mean())
    found = {"mean": centre, "sd": float(values.std(ddof=1)), "5%": float(low), "95%": float(high)}
    found["sign"] = float(((values > 0) == (centre > 0)).mean())
    ratio = LINKS[link]
    if ratio:
        with np.errstate(over="ignore"):
            found |= {
                ratio: float(np.exp(middle)),
                f"{ratio} 5%": float(np.exp(low)),
                f"{ratio} 95%": float(np.exp(high)),
            }
    return found


def _arranged(frame: pd.DataFrame, order: Order) -> list[int]:
    """Return the positions of the rows in their order; the categories of a column stay together."""
    if order == "table":
        return list(range(len(frame)))
    size = frame["per sd"].abs().to_numpy() if order == "size" else frame["sign"].to_numpy()
    key = np.nan_to_num(np.asarray(size, dtype=np.float64), nan=-1.0)
    features = frame["feature"].to_numpy()
    first = {feature: max(key[features == feature]) for feature in dict.fromkeys(features)}
    place = {feature: i for i, feature in enumerate(first)}
    return sorted(range(len(frame)), key=lambda i: (-first[features[i]], place[features[i]], -key[i], i))
