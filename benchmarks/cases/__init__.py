"""What is measured. One file per case; each imports a framework only where it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["NAMES", "NutsCase", "SviCase", "get"]

Arrays = Mapping[str, np.ndarray]

NAMES = (
    "small_network",
    "horseshoe_normal",
    "horseshoe_gamma",
    "vae",
    "lenet",
    "mixture",
    "lstm",
    "point",
    "dropout",
    "ensemble",
    "hierarchical",
    "relevance",
    "flows",
    "fair",
    "semi_implicit",
    "kernel_prior",
    "nuts_horseshoe_logistic",
    "nuts_eight_schools",
    "nuts_radon",
    "nuts_gaussian",
    "scaling_rows",
    "scaling_latents",
    "scaling_batch",
    "scaling_particles",
)


@dataclass(frozen=True, kw_only=True)
class SviCase:
    """One model with its guide, written three times.

    Args:
        title: One line.
        batch: The batch of every step.
        initial: Constrained values of the guide's parameters.
        positive: Those of them that are positive, through a softplus.
        pyro: ``pyro(initial)`` -> model and guide of the batch, for Pyro and zoo; with a third entry, losses that
            alternate, zoo takes them in the place of the ELBO.
        numpyro: The same for NumPyro, where there is one.
        torch: ``torch(parameters, batch)`` -> negative ELBO of one draw, written by hand.
        estimator: Of the ELBO: ``trace``, ``mean_field`` or ``enum``.
        particles: Draws of the guide per step.
        contenders: Those that take part; empty: all.
    """

    title: str
    batch: Callable[[], Arrays]
    initial: Callable[[], Arrays]
    positive: frozenset[str]
    pyro: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    numpyro: Callable[[Mapping[str, Any]], tuple[Callable[..., Any], Callable[..., Any]]] | None = None
    torch: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None
    estimator: str = "trace"
    particles: int = 1
    contenders: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NutsCase:
    """One posterior, written twice.

    Args:
        title: One line.
        batch: The data.
        pyro: Model of the batch, for Pyro and zoo.
        numpyro: The same for NumPyro.
        sites: The latents that are compared, all of the model's.
        positive: Those of them that are compared on the log scale.
    """

    title: str
    batch: Callable[[], Arrays]
    pyro: Callable[[Mapping[str, Any]], Any]
    numpyro: Callable[[Mapping[str, Any]], Any]
    sites: tuple[str, ...]
    positive: frozenset[str] = frozenset()


def get(name: str) -> SviCase | NutsCase:
    """Return a case.

    Args:
        name: One of ``NAMES``; of a scaling sweep, ``NAME:SIZE``; any other name is a module that holds ``CASE``.

    Returns:
        The case.
    """
    stem, _, size = name.partition(":")
    if stem.startswith("scaling_"):
        from benchmarks.cases import scaling

        return scaling.case(stem.removeprefix("scaling_"), int(size))
    module = importlib.import_module(f"benchmarks.cases.{stem}" if stem in NAMES else stem)
    found: SviCase | NutsCase = module.CASE
    return found
