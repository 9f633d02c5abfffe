"""The bundled files of posteriordb: data of a posterior, and the moments of its reference draws."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import ArtifactError, UnknownNameError, suggest

__all__ = ["Moments", "Stored", "names", "read"]

_FOLDER = Path(__file__).parent.parent / "datasets" / "bundled" / "posteriordb"
_SUFFIX = ".json.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean and standard deviation of one parameter under the posterior, in the parameter's units.

    Args:
        mean: Mean.
        sd: Standard deviation.
        mcse_mean: Monte Carlo standard error of the mean.
        mcse_sd: Monte Carlo standard error of the standard deviation.
        ess_bulk: Effective number of draws.
    """

    mean: float
    sd: float
    mcse_mean: float
    mcse_sd: float
    ess_bulk: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One posterior as posteriordb has it.

    Args:
        name: ``DATA-MODEL``.
        dimensions: Parameter -> number of its elements.
        data: What the Stan program declares as data, by name.
        moments: Element of a parameter, in Stan's notation (``beta[1]``, ``sigma``) -> its moments.
    """

    name: str
    dimensions: Mapping[str, int]
    data: Mapping[str, Any]
    moments: Mapping[str, Moments]


# Measured with NUTS alone: their programs are slow, or the guides' errors on them would say nothing new.
_NUTS_ONLY = frozenset({
    "arma-arma11",
    "bball_drive_event_0-hmm_drive_0",
    "bball_drive_event_1-hmm_drive_1",
    "diamonds-diamonds",
    "earnings-earn_height",
    "gp_pois_regr-gp_pois_regr",
    "kidiq_with_mom_work-kidscore_interaction_c",
    "mcycle_gp-accel_gp",
    "nes2000-nes",
    "sblri-blr",
})


def names(*, guides: bool = True) -> tuple[str, ...]:
    """Return the names of the bundled posteriors.

    Args:
        guides: Only those on which guides are measured as well.

    Returns:
        Names as in posteriordb, sorted.
    """
    found = {path.name.removesuffix(_SUFFIX) for path in _FOLDER.glob(f"*{_SUFFIX}")}
    return tuple(sorted(found - _NUTS_ONLY if guides else found))


def read(name: str) -> Stored:
    """Read one posterior's file.

    Args:
        name: One of :func:`names`.

    Returns:
        Data and reference moments.

    Raises:
        UnknownNameError: If there is no such posterior.
        ArtifactError: If its file is damaged.
    """
    if name not in names(guides=False):
        raise UnknownNameError(f"posterior '{name}' is not bundled{suggest(name, names(guides=False))}")
    path = _FOLDER / f"{name}{_SUFFIX}"
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        moments = {str(k): Moments(**{n: float(x) for n, x in v.items()}) for k, v in found["reference"].items()}
        stored = Stored(
            name=found["name"],
            dimensions={str(k): int(v) for k, v in found["dimensions"].items()},
            data=dict(found["data"]),
            moments=moments,
        )
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"'{path}' is damaged ({type(error).__name__}); install pyro-zoo again") from error
    finite = all(math.isfinite(x) for m in moments.values() for x in (m.mean, m.sd, m.mcse_mean, m.mcse_sd))
    if stored.name != name or not finite or set(moments) != set(elements(stored.dimensions)):
        raise ArtifactError(f"'{path}' does not hold the posterior '{name}'; install pyro-zoo again")
    return stored


def elements(dimensions: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names of all elements of parameters in Stan's notation, which counts from 1.

    Args:
        dimensions: Parameter -> number of its elements.

    Returns:
        ``beta[1]``, ``beta[2]``, ... of a parameter with several elements, ``sigma`` of one with a single element.
    """
    return tuple(name if size == 1 else f"{name}[{i + 1}]" for name, size in dimensions.items() for i in range(size))
