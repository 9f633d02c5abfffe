"""Fits side by side: leave-one-out densities, held-out scores, verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from zoo.diagnostics.check import NotApplicable
from zoo.diagnostics.inference import affordable, khat_threshold
from zoo.diagnostics.predictive import Loo, leave_one_out
from zoo.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

    from zoo.inference.posterior import Posterior

__all__ = ["compare"]


def compare(
    posteriors: Sequence[Posterior] | Mapping[str, Posterior], *, num_draws: int = 1_000, seed: int = 0
) -> pd.DataFrame:
    r"""Compare fits to the same data.

    The difference of leave-one-out densities is paired over the rows,
    :math:`\Delta_n = \mathrm{elpd}_n - \mathrm{elpd}^\text{best}_n`, with standard error
    :math:`\sqrt{N\,\mathrm{var}(\Delta_n)}`.

    Args:
        posteriors: Fits to one data set, named if a mapping.
        num_draws: Draws from guides; large models take fewer.
        seed: Of the draws and, for large data, of the rows compared.

    Returns:
        One row per fit, the best ``elpd`` first: ``elpd``, ``se``, ``difference``, ``difference_se``, ``bad_k`` (share
        of rows whose leave-one-out density is unreliable), and one column per score of the task on the test split
        (``test_<score>``). What cannot be computed for a fit is missing there.

    Raises:
        DataError: If there are no fits, or they were made on different data.

    References:
        Vehtari, Gelman, Gabry (2017), Statistics and Computing 27, eq. 24, for the standard error of a difference.
    """
    import pandas as pd

    named = dict(posteriors) if isinstance(posteriors, Mapping) else _named(posteriors)
    if not named:
        raise DataError("there is nothing to compare; pass at least one posterior")
    first = next(iter(named.values())).data
    for label, posterior in named.items():
        if posterior.data.name != first.name or posterior.data.num_data != first.num_data:
            raise DataError(
                f"'{label}' was fitted to '{posterior.data.name}' ({posterior.data.num_data} rows), others to "
                f"'{first.name}' ({first.num_data} rows); only fits to the same data can be compared"
            )
    rows: dict[str, dict[str, float]] = {}
    found: dict[str, Loo] = {}
    for label, posterior in named.items():
        row: dict[str, float] = {}
        try:
            loo = leave_one_out(posterior, num_draws=num_draws, seed=seed)
        except NotApplicable:
            pass
        else:
            found[label] = loo
            bad = float((loo.pareto_k > khat_threshold(loo.draws)).mean())
            row = {"elpd": loo.total, "se": loo.se, "bad_k": bad}
        rows[label] = row | {f"test_{k}": v for k, v in _scores(posterior, num_draws, seed).items()}
    if found:
        best = max(found, key=lambda label: found[label].total)
        for label, loo in found.items():
            gap = loo.elpd - found[best].elpd
            share = loo.num_data / len(loo.elpd)
            rows[label]["difference"] = float(gap.sum() * share)
            rows[label]["difference_se"] = math.sqrt(loo.num_data * float(np.var(gap, ddof=1)) * share)
    columns = ["elpd", "se", "difference", "difference_se", "bad_k"]
    columns += [c for c in dict.fromkeys(k for row in rows.values() for k in row) if c not in columns]
    table: pd.DataFrame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
    table.index.name = "fit"
    return table.sort_values("elpd", ascending=False, kind="stable")


def _named(posteriors: Sequence[Posterior]) -> dict[str, Posterior]:
    """Name fits after their methods, with engine and number where that is not enough."""
    labels = [p.name for p in posteriors]
    if len(set(labels)) < len(labels):
        labels = [f"{p.name} ({p.engine})" for p in posteriors]
    if len(set(labels)) < len(labels):
        labels = [f"{label} {i}" for i, label in enumerate(labels)]
    return dict(zip(labels, posteriors, strict=True))


def _scores(posterior: Posterior, num_draws: int, seed: int) -> dict[str, float]:
    """Score the test split as the task does; empty where there is none."""
    from zoo.tasks import get

    test = posterior.data.test
    if test is None:
        return {}
    try:
        task = get(posterior.data.task)
    except UnknownNameError:
        return {}
    prediction = posterior.predict(test, min(num_draws, max(100, affordable(posterior, num_draws))), seed=seed)
    return task.score(prediction, test, posterior.data)
