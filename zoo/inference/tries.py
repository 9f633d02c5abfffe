r"""When a chain of NUTS is drawn again, and how: smaller steps, another start, a metric with correlations.

Three things go wrong at settings that are right for most posteriors. A chain diverges: its steps are too large for
some region, and it is drawn again with smaller ones. A chain ends in a place that holds next to nothing of the
posterior, or hardly moves: it is drawn again from another start. All chains move slowly along a narrow ridge: they are
drawn again with a metric that knows correlations. Each is decided from numbers that depend on the seed alone, each has
a limit, and each is written down.

None of them may make a posterior look easier than it is. Chains in different modes stay where they are unless one mode
holds less than :math:`e^{-10}` of the other's mass, by a normal approximation of each, at a lower density; chains that
still diverge at the smallest steps keep their divergences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["ACCEPT", "RESTARTS", "History", "Why", "away", "ridge", "sentences", "stubborn"]

ACCEPT = (0.8, 0.9, 0.99)
"""Acceptance rates, one after the other, for chains that diverge.

nutpie counts a step's acceptance in both directions, which at the same rate allows larger steps than Stan's rule does.
They begin where a chain that does not diverge is cheapest: at 0.9 a radon regression has 0.6 of the effective draws of
0.8 for as many gradients.
"""
RESTARTS = 3
"""A chain is begun anywhere else this often at most."""
_LEAST_DRAWS = 100  # fewer say nothing about where a chain is
_MASS = 10.0  # nats
_HARDLY = 0.02  # of the other chains' spread
_R_HAT = (1.01, 1.1)  # above: something else than slow mixing
_CONDITION = 100.0  # of the correlation matrix
_MOST = 500  # coordinates; for more, a metric with correlations takes more draws than a warm-up has

_ELSEWHERE = ("apart", "still")

Why = dict[str, Any]
Arrays = Mapping[str, Any]


@dataclass
class History:
    """What was drawn and not kept.

    Args:
        past: Records from before all chains were drawn again.
        own: Records by chain.
    """

    past: list[Why] = field(default_factory=list)
    own: dict[int, list[Why]] = field(default_factory=dict)

    def add(self, chain: int, why: Why) -> None:
        """Write down a chain that is drawn again.

        Args:
            chain: Its number.
            why: The record.
        """
        self.own.setdefault(chain, []).append({"chain": chain, **why})

    def turn(self, why: Why) -> None:
        """Write down that all chains are drawn again.

        Args:
            why: The record.
        """
        self.past = [*self.all(), why]
        self.own = {}

    def restarts(self, chain: int) -> int:
        """Return how often a chain was begun elsewhere.

        Args:
            chain: Its number.

        Returns:
            The count.
        """
        return sum(why["cause"] in _ELSEWHERE for why in self.own.get(chain, []))

    def rung(self, chain: int) -> int:
        """Return how often a chain diverged since it was begun.

        Args:
            chain: Its number.

        Returns:
            The count.
        """
        count = 0
        for why in self.own.get(chain, []):
            count = 0 if why["cause"] in _ELSEWHERE else count + 1
        return count

    def all(self) -> list[Why]:
        """Return every record, in an order that does not depend on which chain was faster.

        Returns:
            The records.
        """
        return [*self.past, *(why for chain in sorted(self.own) for why in self.own[chain])]


def away(found: Sequence[Arrays]) -> tuple[int, Why] | None:
    """Find the chain that is furthest from where the posterior's mass is.

    Args:
        found: Chains, each with ``flat`` ``(draw, size)`` and ``lp`` ``(draw,)``.

    Returns:
        Its number and what was found, or ``None`` if every chain is where it should be, or none can say.
    """
    if len(found) < 2 or len(found[0]["lp"]) < _LEAST_DRAWS:
        return None
    size = found[0]["flat"].shape[1]
    margin = _MASS + 0.1 * size  # a normal approximation errs by more in more dimensions
    density = np.array([float(np.mean(a["lp"])) for a in found])
    mass = density + np.array([_entropy(a["flat"]) for a in found])
    if not np.isfinite(mass.max()):
        return None
    inside = [k for k in range(len(found)) if mass[k] >= mass.max() - margin]
    if len(inside) == len(found):
        return None
    rest = np.concatenate([found[k]["flat"] for k in inside])
    levels = np.concatenate([found[k]["lp"] for k in inside])
    worst: tuple[float, int, Why] | None = None
    for k in sorted(set(range(len(found))) - set(inside)):
        still = bool(np.median(_spread(found[k]["flat"]) / np.maximum(_spread(rest), 1e-300)) < _HARDLY)
        lower = float(np.mean(levels) - density[k])
        if not (still or (lower > margin and _separate(found[k], rest, levels))):
            continue
        gap = float(mass.max() - mass[k])
        why = {
            "cause": "still" if still else "apart",
            "lower_by_nats": lower if math.isfinite(lower) else None,
            "less_mass_by_nats": gap if math.isfinite(gap) else None,
        }
        if worst is None or gap > worst[0]:
            worst = (gap, k, why)
    return None if worst is None else worst[1:]


def ridge(found: Sequence[Arrays]) -> Why | None:
    """Tell whether chains that agree by and large move slowly along a direction that mixes coordinates.

    Args:
        found: Chains, as for :func:`away`.

    Returns:
        What was found, or ``None``.
    """
    count, (draws, size) = len(found), found[0]["flat"].shape
    if count < 2 or draws < _LEAST_DRAWS or not 2 <= size <= min(_MOST, count * draws // 10):
        return None
    worst = max(_r_hat(np.stack([a["flat"][:, i] for a in found])) for i in range(size))
    if not _R_HAT[0] < worst < _R_HAT[1]:
        return None
    rows = np.concatenate([a["flat"] for a in found])
    if not (rows.std(0) > 0).all():
        return None
    values = np.linalg.eigvalsh(np.corrcoef(rows, rowvar=False))
    condition = float(values[-1] / max(values[0], 1e-12))
    return {"cause": "ridge", "r_hat": worst, "condition": condition} if condition > _CONDITION else None


def _spread(flat: Any) -> Any:
    return flat.std(0)


def _entropy(flat: Any) -> float:
    """Return the entropy of the normal distribution with the draws' moments, in nats."""
    draws, size = flat.shape
    spread = _spread(flat)
    if not (spread > 0).all():
        return -math.inf
    total: float = 0.5 * size * math.log(2 * math.pi * math.e) + float(np.log(spread).sum())
    if size > 1 and draws >= 10 * size:
        total += 0.5 * float(np.linalg.slogdet(np.corrcoef(flat, rowvar=False))[1])
    return total


def _separate(one: Arrays, rest: Any, levels: Any) -> bool:
    """Tell whether the middle 95% of a chain and of the others do not overlap, in a coordinate or the log density."""
    tails = (0.025, 0.975)
    a_low, a_high = np.quantile(np.column_stack([one["flat"], one["lp"]]), tails, axis=0)
    b_low, b_high = np.quantile(np.column_stack([rest, levels]), tails, axis=0)
    return bool(((a_high < b_low) | (b_high < a_low)).any())


def _r_hat(chains: Any) -> float:
    """Return the rank-normalised split R-hat of one quantity, ``(chain, draw)``, the larger of bulk and tails."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    half = chains.shape[1] // 2
    split = np.concatenate([chains[:, :half], chains[:, -half:]])
    found = 1.0
    for x in (split, np.abs(split - np.median(split))):
        z = ndtri((rankdata(x).reshape(x.shape) - 0.375) / (x.size + 0.25))
        within, between = z.var(1, ddof=1).mean(), z.mean(1).var(ddof=1)
        if within > 0:
            found = max(found, math.sqrt((half - 1) / half + between / within))
    return found


# ------------------------------------------------------------------------------------------------- what is told
def sentences(tries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what was drawn again, and why.

    Args:
        tries: ``info["tries"]`` of a fit.

    Returns:
        A clause for each cause.
    """
    found = []
    slow = next((why for why in tries if why["cause"] == "ridge"), None)
    for cause, text in (
        ("divergences", "drawn again with smaller steps, since it diverged"),
        ("apart", "begun elsewhere, since it lay where there is next to nothing of the posterior"),
        ("still", "begun elsewhere, since it hardly moved"),
    ):
        chains = [why["chain"] for why in tries if why["cause"] == cause]
        if chains:
            each = [
                f"chain {k}" + (f" ({chains.count(k)} times)" if chains.count(k) > 1 else "") for k in sorted({*chains})
            ]
            found.append(f"{text}: {', '.join(each)}")
    if slow is not None:
        found.append(
            f"all chains were drawn again with a metric that knows correlations, since R-hat was {slow['r_hat']:.3f} "
            "along a ridge"
        )
    return found


def stubborn(tries: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the chains that came down to the smallest steps that are tried.

    Args:
        tries: ``info["tries"]`` of a fit.

    Returns:
        Their numbers.
    """
    history = History()
    for why in tries:
        if why["cause"] == "ridge":
            history = History()
        else:
            history.own.setdefault(int(why["chain"]), []).append(dict(why))
    return {k for k in history.own if history.rung(k) >= len(ACCEPT) - 1}
