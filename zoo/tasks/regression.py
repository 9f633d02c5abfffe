"""Regression: a number ``y`` from features ``x``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.tasks import Task
from zoo.tasks._checks import entry, rows, splits
from zoo.tasks._scores import continuous_scores

if TYPE_CHECKING:
    from zoo.inference.predictive import Prediction
    from zoo.types import Batch, Dataset

__all__ = ["TASK", "check", "score"]


def check(dataset: Dataset) -> None:
    """Check that every split has features ``x`` ``(rows, ...)``, numbers ``y`` ``(rows,)`` and ``index``.

    Args:
        dataset: The data set; raises :class:`~zoo.errors.DataError` if it holds something else.
    """
    for split, _ in splits(dataset):
        entry(dataset, split, "x")
        entry(dataset, split, "y", dims=1)
        rows(dataset, split, ("x", "y"))


def score(prediction: Prediction, batch: Batch, dataset: Dataset) -> dict[str, float]:
    """Score a prediction in the units of the user's target column.

    Args:
        prediction: Prediction of ``batch``.
        batch: Batch with ``y``.
        dataset: Data set, whose target column knows the units.

    Returns:
        ``rmse``, ``mae``, ``r2``, ``nlpd`` (nats per row), ``crps``, ``coverage_50``, ``coverage_90``; see
        :func:`zoo.tasks._scores.continuous_scores`.
    """
    return continuous_scores(prediction, batch["y"], scale=dataset.target.scale if dataset.target else 1.0)


TASK = Task(name="regression", title="Predict a number from features", check=check, score=score, primary="nlpd")
