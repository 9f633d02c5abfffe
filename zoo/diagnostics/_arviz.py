"""Both majors of ArviZ: what differs between 0.x and 1.x, in one place.

Everything else that the zoo takes from ArviZ (``rhat``, ``ess`` but of the tail, ``mcse``, ``bfmi``,
``convert_to_dataset``) is called alike in both and gives the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import arviz as az
    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["inference_data", "tail_ess", "tree"]


def _current() -> bool:
    """Return whether ArviZ 1 or newer is installed, which has no container of its own."""
    import arviz as az

    return int(az.__version__.split(".")[0]) >= 1


def inference_data(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> az.InferenceData | xr.DataTree:
    """Return groups in the container that the installed ArviZ takes.

    Args:
        groups: Name -> group.
        attrs: Attributes of the whole.

    Returns:
        ``InferenceData`` for ArviZ 0.x, ``DataTree`` from ArviZ 1 on.
    """
    import arviz as az

    return tree(groups, attrs) if _current() else az.InferenceData(attrs=dict(attrs), **groups)


def tree(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> xr.DataTree:
    """Return groups as a tree, whichever ArviZ is installed.

    Args:
        groups: Name -> group.
        attrs: Attributes of its root.

    Returns:
        The tree, with one node per group.
    """
    import xarray as xr

    found = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
    found.attrs.update(attrs)
    return found


def tail_ess(values: NDArray[np.float64]) -> float:
    """Return the effective sample size of the tails: the smaller of those of the 5% and the 95% quantile.

    Args:
        values: ``(chain, draw)``.

    Returns:
        The effective sample size. The two majors have other quantiles by default, so they are named.
    """
    import arviz as az

    return float(az.ess(values, method="tail", prob=(0.05, 0.95)))
