"""Meta-analysis: effects ``y`` of several studies, each with a known standard error ``sigma``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.errors import DataError
from zoo.tasks import Task
from zoo.tasks._checks import entry, rows, splits
from zoo.tasks._scores import continuous_scores

if TYPE_CHECKING:
    from zoo.inference.predictive import Prediction
    from zoo.types import Batch, Dataset

__all__ = ["TASK", "check", "score"]


def check(dataset: Dataset) -> None:
    """Check that every split has effects ``y`` and standard errors ``sigma > 0``, both ``(studies,)``, and ``index``.

    Args:
        dataset: The data set.

    Raises:
        DataError: If it holds something else.
    """
    for split, batch in splits(dataset):
        entry(dataset, split, "y", dims=1)
        entry(dataset, split, "sigma", dims=1)
        rows(dataset, split, ("y", "sigma"))
        bad = int((batch["sigma"] <= 0).sum())
        if bad:
            where = f"data set '{dataset.name}', {split} split"
            raise DataError(f"{where}: entry 'sigma' has {bad} standard errors that are not positive")


def score(prediction: Prediction, batch: Batch, dataset: Dataset) -> dict[str, float]:
    """Score the predicted effects; on the studies that were fitted this measures fit, not prediction.

    Args:
        prediction: Prediction of ``batch``.
        batch: Batch with ``y``.
        dataset: Data set, whose target column knows the units.

    Returns:
        ``rmse``, ``mae``, ``r2``, ``nlpd`` (nats per study), ``crps``, ``coverage_50``, ``coverage_90``; see
        :func:`zoo.tasks._scores.continuous_scores`.
    """
    return continuous_scores(prediction, batch["y"], scale=dataset.target.scale if dataset.target else 1.0)


TASK = Task(
    name="meta_analysis",
    title="Pool the effects of several studies with known standard errors",
    check=check,
    score=score,
    primary="nlpd",
)
