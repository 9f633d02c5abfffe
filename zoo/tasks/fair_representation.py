r"""Fair representation: classes ``y`` from features ``x``, through a representation that tells nothing of ``s``.

``s`` is the code of a row's sensitive group and is no feature. Where the target of a row is unknown, ``y`` is 0 and
``y_missing`` (bool) says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zoo.errors import DataError, PairError
from zoo.tasks import Task
from zoo.tasks._checks import entry, rows, splits
from zoo.tasks.classification import class_scores, probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.inference.predictive import Prediction
    from zoo.types import Batch, Dataset

__all__ = ["TASK", "check", "labelled", "odds_gap", "parity_gap", "score"]


def check(dataset: Dataset) -> None:
    """Check that every split has features ``x``, codes ``y`` and ``s`` ``(rows,)`` in range, and ``index``.

    Args:
        dataset: The data set, with ``extra["num_classes"]`` and ``extra["num_groups"]``.

    Raises:
        DataError: If it holds something else, or no training row has a target.
    """
    for what, name in (("num_classes", "y"), ("num_groups", "s")):
        count = dataset.extra.get(what)
        if not isinstance(count, int) or isinstance(count, bool) or count < 2:
            raise DataError(f"data set '{dataset.name}': extra['{what}'] is {count!r}; 2 or more is needed")
        for split, batch in splits(dataset):
            entry(dataset, split, name, dims=1, codes=True)
            low, high = int(batch[name].min()), int(batch[name].max())
            if low < 0 or high >= count:
                raise DataError(
                    f"data set '{dataset.name}', {split} split: codes '{name}' from {low} to {high}; with "
                    f"extra['{what}'] = {count} they must lie in 0 .. {count - 1}"
                )
    for split, batch in splits(dataset):
        entry(dataset, split, "x")
        gone = batch.get("y_missing")
        if gone is not None and (gone.dtype != torch.bool or gone.shape != batch["y"].shape):
            raise DataError(
                f"data set '{dataset.name}', {split} split: entry 'y_missing' is {gone.dtype} of shape "
                f"{tuple(gone.shape)}; booleans of shape {tuple(batch['y'].shape)} were expected"
            )
        rows(dataset, split, ("x", "y", "s"))
    if not bool(labelled(dataset.train).any()):
        raise DataError(f"data set '{dataset.name}': no training row has a target; label some")


def labelled(batch: Batch) -> Tensor:
    """Say which rows have a target.

    Args:
        batch: Batch with ``y``, and ``y_missing`` where some lack it.

    Returns:
        Boolean, ``(rows,)``.
    """
    gone = batch.get("y_missing")
    return torch.ones_like(batch["y"], dtype=torch.bool) if gone is None else ~gone


def parity_gap(predicted: Tensor, s: Tensor) -> float:
    r"""Return the gap from demographic parity.

    .. math:: \max_{c, a, b} |P(\hat y = c \mid s = a) - P(\hat y = c \mid s = b)|

    Args:
        predicted: Predicted classes, ``(rows,)``.
        s: Groups, ``(rows,)``.

    Returns:
        The gap in [0, 1], over the groups that occur; 0 for one group.
    """
    shares = [
        torch.stack([(predicted[s == group] == value).double().mean() for value in predicted.unique()])
        for group in s.unique()
    ]
    found = torch.stack(shares)
    return float((found.max(0).values - found.min(0).values).max())


def odds_gap(predicted: Tensor, y: Tensor, s: Tensor) -> float:
    r"""Return the gap from equalised odds: the gap from demographic parity within each true class, the largest of them.

    .. math:: \max_{k, c, a, b} |P(\hat y = c \mid y = k, s = a) - P(\hat y = c \mid y = k, s = b)|

    Args:
        predicted: Predicted classes, ``(rows,)``.
        y: True classes, ``(rows,)``.
        s: Groups, ``(rows,)``.

    Returns:
        The gap in [0, 1]; for two classes the larger of the gaps of true and of false positive rates.

    References:
        Hardt, Price, Srebro (2016), def. 2.1. https://arxiv.org/abs/1610.02413
    """
    return max(parity_gap(predicted[y == value], s[y == value]) for value in y.unique())


def score(prediction: Prediction, batch: Batch, dataset: Dataset) -> dict[str, float]:
    """Score the averaged predictive on the rows that have a target.

    Args:
        prediction: Prediction of ``batch``.
        batch: Batch with ``y`` and ``s``.
        dataset: Data set with ``extra["num_classes"]``.

    Returns:
        The scores of :func:`zoo.tasks.classification.class_scores`, ``parity_gap`` and ``odds_gap``.

    Raises:
        PairError: If the prediction is no prediction of these classes.
        DataError: If no row has a target.
    """
    y = batch["y"].detach().cpu().long()
    probs = probabilities(prediction, len(y))
    classes = int(dataset.extra["num_classes"])
    if probs.shape[1] != classes:
        raise PairError(f"the prediction has {probs.shape[1]} classes and data set '{dataset.name}' has {classes}")
    known = labelled(batch).cpu()
    if not bool(known.any()):
        raise DataError("no row of the batch has a target, so there is nothing to score")
    probs, y, s = probs[known], y[known], batch["s"].detach().cpu()[known]
    gaps = {"parity_gap": parity_gap(probs.argmax(-1), s), "odds_gap": odds_gap(probs.argmax(-1), y, s)}
    return class_scores(probs, y) | gaps


TASK = Task(
    name="fair_representation",
    title="Represent rows so that a class can be told from them, and a sensitive group cannot",
    check=check,
    score=score,
    primary="nll",
    reads=("means", "probs"),
)
