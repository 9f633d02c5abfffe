"""Whether ranks are uniform: an exact test of their empirical distribution function, and the band that shows it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ecdf_band", "ecdf_p_value"]


@functools.lru_cache(maxsize=8)
def _steps(total: int, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the chances of the cumulative counts: lower tails, upper tails and transitions, at the inner edges."""
    from scipy.stats import binom

    edges = np.arange(bins) / bins
    counts = np.arange(total + 1)
    lower = binom.cdf(counts, total, edges[1:, None])
    upper = binom.sf(counts - 1, total, edges[1:, None])
    # Given how many ranks lie below one edge, how many lie below the next.
    share = (edges[1:] - edges[:-1]) / (1 - edges[:-1])
    moves = binom.pmf(
        counts[None, None, :] - counts[None, :, None], total - counts[None, :, None], share[:, None, None]
    )
    return lower, upper, np.nan_to_num(moves)


def _inside(total: int, bins: int, tail: float, *, open_: bool) -> float:
    """Return the chance that every cumulative count has both tails above ``tail`` (or at it, unless ``open_``)."""
    lower, upper, moves = _steps(total, bins)
    small = np.minimum(lower, upper)
    allowed = small > tail * (1 + 1e-12) if open_ else small >= tail * (1 - 1e-12)
    state = np.zeros(total + 1)
    state[0] = 1.0
    for move, keep in zip(moves, allowed, strict=True):
        state = (state @ move) * keep
    return float(state.sum())


def ecdf_p_value(ranks: NDArray[np.int64], largest: int) -> float:
    r"""Test ranks for uniformity on :math:`0, \dots, L` by their empirical distribution function.

    At every inner edge :math:`z_i = i / (L + 1)` the count of smaller ranks is :math:`\mathrm{Bin}(N, z_i)`. The
    statistic is the smallest binomial tail over the edges; its distribution is computed exactly, as the counts form a
    Markov chain.

    Args:
        ranks: One rank per simulation, ``(N,)``.
        largest: The largest possible rank :math:`L`.

    Returns:
        The p-value, exact for independent uniform ranks.

    References:
        Säilynoja, Bürkner, Vehtari (2022), Statistics and Computing 32, sec. 2 (optimisation method).
    """
    total, bins = len(ranks), largest + 1
    counts = (ranks[:, None] < np.arange(1, bins)).sum(0)
    lower, upper, _ = _steps(total, bins)
    at = np.arange(bins - 1)
    tail = float(np.minimum(lower[at, counts], upper[at, counts]).min())
    return min(1.0, max(0.0, 1 - _inside(total, bins, tail, open_=True)))


@functools.lru_cache(maxsize=8)
def ecdf_band(total: int, largest: int, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the band that holds the whole empirical distribution function of uniform ranks.

    Args:
        total: Number of ranks.
        largest: The largest possible rank.
        level: Chance that all of it lies inside, at least.

    Returns:
        Lower and upper share of ranks below each inner edge, ``(largest,)`` each.

    References:
        Säilynoja, Bürkner, Vehtari (2022), Statistics and Computing 32, sec. 2.
    """
    bins = largest + 1
    lower, upper, _ = _steps(total, bins)
    low, high = 1e-12, (1 - level) / 2
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _inside(total, bins, middle, open_=False) >= level else (low, middle)
    allowed = np.minimum(lower, upper) >= low * (1 - 1e-12)
    return allowed.argmax(1) / total, (total - allowed[:, ::-1].argmax(1)) / total
