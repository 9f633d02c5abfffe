r"""Pareto-smoothed importance sampling.

The largest importance weights are replaced by quantiles of a generalised Pareto distribution fitted to them; its shape
:math:`\hat k` says how heavy their tail is. This is the algorithm of the R package loo and of ``arviz.psislw`` before
ArviZ 1, which now takes one draw fewer into the tail, raises for weights with ties and is no longer in the namespace of
ArviZ. A verdict must not depend on the ArviZ that happens to be installed, so the numbers are made here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["psis"]

_FEWEST = 5  # weights in a tail to which a distribution is fitted
_SMALLEST = math.log(np.finfo(np.float64).tiny)


def psis(log_weights: NDArray[np.float64], efficiency: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Smooth importance weights.

    Args:
        log_weights: Logarithms of the weights up to a constant, ``(..., draws)``; for leave-one-out the negative log
            likelihood of each datum.
        efficiency: Effective draws per draw, one for independent draws.

    Returns:
        Logarithms of the smoothed weights, which sum to one over the draws, and :math:`\hat k`, ``(...)``: infinite
        where fewer than five weights are in the tail or no distribution fits them.

    References:
        Vehtari et al. (2024), JMLR 25(72), sec. 3 and 4; Zhang and Stephens (2009), Technometrics 51(3), for the fit.
    """
    values = np.array(log_weights, dtype=np.float64)
    draws = values.shape[-1]
    tail = math.ceil(min(draws / 5, 3 * math.sqrt(draws / efficiency)))
    shapes = np.empty(values.shape[:-1])
    with np.errstate(all="ignore"):
        for index in np.ndindex(shapes.shape):
            shapes[index] = _smooth(values[index], tail)
    return values, shapes


def _smooth(values: NDArray[np.float64], tail: int) -> float:
    """Smooth the largest of ``(draws,)`` in place, normalise them, and return the shape of their tail."""
    values -= values.max()
    order = np.argsort(values, kind="stable")
    threshold = max(values[order[-tail - 1]], _SMALLEST) if tail < len(values) else _SMALLEST
    largest = order[values[order] > threshold]
    shape = math.inf
    if len(largest) >= _FEWEST:
        start = math.exp(threshold)
        shape, scale = _fit(np.exp(values[largest]) - start)
        if math.isfinite(shape):
            chances = np.arange(0.5, len(largest)) / len(largest)
            values[largest] = np.log(_quantiles(chances, shape, scale) + start)
            np.minimum(values, 0.0, out=values)  # no smoothed weight above the largest raw one
    values -= values.max()
    values -= math.log(np.exp(values).sum())
    return shape


def _fit(excess: NDArray[np.float64]) -> tuple[float, float]:
    """Fit a generalised Pareto distribution to ascending positive numbers; return its shape and scale."""
    count = len(excess)
    quartile = excess[int(count / 4 + 0.5) - 1]
    if not quartile > 0:
        return math.inf, math.nan
    grid = 30 + int(math.sqrt(count))
    theta = 1 / excess[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    shapes = np.log1p(-theta[:, None] * excess).mean(1)
    profile = count * (np.log(-theta / shapes) - shapes - 1)
    weights = np.exp(profile - profile.max())
    weights /= weights.sum()
    weights[weights < 10 * np.finfo(np.float64).eps] = 0.0
    mean = float((theta * weights).sum() / weights.sum())
    shape = float(np.log1p(-mean * excess).mean())
    scale = -shape / mean
    # A weakly informative prior: ten observations of shape one half.
    shape = (count * shape + 10 * 0.5) / (count + 10)
    return (shape, scale) if math.isfinite(shape) and scale > 0 else (math.inf, math.nan)


def _quantiles(chances: NDArray[np.float64], shape: float, scale: float) -> NDArray[np.float64]:
    """Return quantiles of a generalised Pareto distribution that starts at zero."""
    if abs(shape) < np.finfo(np.float64).eps:
        return np.asarray(-scale * np.log1p(-chances))
    return np.asarray(scale * np.expm1(-shape * np.log1p(-chances)) / shape)
