"""Classification: one of ``num_classes`` codes ``y`` from features ``x``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zoo.errors import DataError, PairError
from zoo.tasks import Task
from zoo.tasks._checks import entry, rows, splits
from zoo.tasks._scores import mean_log_score, pick

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.inference.predictive import Prediction
    from zoo.types import Batch, Dataset

__all__ = [
    "TASK",
    "auroc",
    "brier",
    "check",
    "class_scores",
    "expected_calibration_error",
    "probabilities",
    "score",
]


def check(dataset: Dataset) -> None:
    """Check that every split has features ``x`` ``(rows, ...)``, codes ``y`` ``(rows,)`` in range, and ``index``.

    Args:
        dataset: The data set, with ``extra["num_classes"]``.

    Raises:
        DataError: If it holds something else.
    """
    classes = dataset.extra.get("num_classes")
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 2:
        raise DataError(f"data set '{dataset.name}': extra['num_classes'] is {classes!r}; 2 or more is needed")
    for split, batch in splits(dataset):
        entry(dataset, split, "x")
        entry(dataset, split, "y", dims=1, codes=True)
        rows(dataset, split, ("x", "y"))
        low, high = int(batch["y"].min()), int(batch["y"].max())
        if low < 0 or high >= classes:
            raise DataError(
                f"data set '{dataset.name}', {split} split: labels from {low} to {high}; "
                f"with {classes} classes they must lie in 0 .. {classes - 1}"
            )


def probabilities(prediction: Prediction, rows: int, *, site: str = "y") -> Tensor:
    """Return the class probabilities of the averaged predictive.

    Args:
        prediction: Prediction with ``probs`` ``(draws, rows, classes)`` of a categorical site, or ``means``
            ``(draws, rows)`` of a Bernoulli site.
        rows: Rows of the batch.
        site: Observed site.

    Returns:
        Probabilities, ``(rows, classes)``, float64; two classes for a Bernoulli site.

    Raises:
        PairError: If the prediction has neither, or another shape.
    """
    probs = prediction.probs.get(site)
    if probs is not None:
        if probs.ndim != 3 or probs.shape[1] != rows:
            raise PairError(
                f"site '{site}': probs of shape {tuple(probs.shape)}; (draws, {rows}, classes) was expected"
            )
        mean: Tensor = probs.detach().to("cpu", torch.float64).mean(0)
        return mean
    _, means, _ = pick(prediction, site, rows)
    if means is None:
        raise PairError(f"the prediction has neither class probabilities nor means at site '{site}'")
    if ((means < 0) | (means > 1)).any():
        raise PairError(f"the means at site '{site}' are no probabilities; a classification needs a discrete site")
    positive = means.mean(0)
    return torch.stack([1 - positive, positive], -1)


def brier(probs: Tensor, y: Tensor) -> float:
    r"""Return the Brier score, :math:`\frac1N \sum_i \sum_c (p_{ic} - [y_i = c])^2`, halved for two classes.

    Args:
        probs: Class probabilities, ``(rows, classes)``.
        y: Codes, ``(rows,)``.

    Returns:
        The score: in ``[0, 1]`` for two classes, where it is the usual :math:`(p - y)^2`; in ``[0, 2]`` for more.

    References:
        Brier (1950), Verification of forecasts expressed in terms of probability.
    """
    target = torch.nn.functional.one_hot(y, probs.shape[1]).to(probs.dtype)
    return float((probs - target).square().sum(-1).mean() / (2 if probs.shape[1] == 2 else 1))


def expected_calibration_error(probs: Tensor, y: Tensor, *, bins: int = 15) -> float:
    """Return the expected calibration error of the predicted class, over bins of equal width.

    The estimate is biased: the absolute gap of a bin with few rows is positive even for a calibrated prediction, so
    it falls with the number of rows and rises with the number of bins. Compare it only between predictions of the
    same rows, and judge calibration by the reliability diagram and the proper scores.

    Args:
        probs: Class probabilities, ``(rows, classes)``.
        y: Codes, ``(rows,)``.
        bins: Number of bins over ``[0, 1]``.

    Returns:
        Mean absolute gap of confidence and accuracy, weighted by the rows in each bin.

    References:
        Guo, Pleiss, Sun, Weinberger (2017), eq. 3. https://arxiv.org/abs/1706.04599
    """
    confidence, predicted = probs.max(-1)
    gap = (predicted == y).to(probs.dtype) - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return float(torch.zeros(bins, dtype=probs.dtype).index_add(0, bin_of, gap).abs().sum() / len(y))


def auroc(positive: Tensor, y: Tensor) -> float:
    """Return the area under the ROC curve: the chance that a positive row gets a higher score than a negative one.

    Args:
        positive: Score of class 1, ``(rows,)``.
        y: Codes 0 and 1, ``(rows,)``, both present.

    Returns:
        The area; ties count one half.
    """
    _, inverse, counts = torch.unique(positive, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0).double() - (counts.double() - 1) / 2)[inverse]
    num_positive = int((y == 1).sum())
    above = float(ranks[y == 1].sum()) - num_positive * (num_positive + 1) / 2
    return above / (num_positive * (len(y) - num_positive))


def class_scores(probs: Tensor, y: Tensor) -> dict[str, float]:
    """Score class probabilities.

    Args:
        probs: Class probabilities, ``(rows, classes)``.
        y: Codes, ``(rows,)``.

    Returns:
        ``error``, ``accuracy``, ``nll`` (nats per row; a probability of zero counts as the smallest float64), ``brier``
        and ``ece``; for two classes, both present, also ``auroc``.
    """
    chosen = probs[torch.arange(len(y)), y].clamp_min(torch.finfo(torch.float64).tiny)
    accuracy = float((probs.argmax(-1) == y).double().mean())
    scores = {
        "error": 1.0 - accuracy,
        "accuracy": accuracy,
        "nll": float(-chosen.log().mean()),
        "brier": brier(probs, y),
        "ece": expected_calibration_error(probs, y),
    }
    if probs.shape[1] == 2 and 0 < int(y.sum()) < len(y):
        scores["auroc"] = auroc(probs[:, 1], y)
    return scores


def score(prediction: Prediction, batch: Batch, dataset: Dataset) -> dict[str, float]:
    """Score the averaged predictive.

    Args:
        prediction: Prediction of ``batch``.
        batch: Batch with ``y``.
        dataset: Data set with ``extra["num_classes"]``.

    Returns:
        The scores of :func:`class_scores`; ``nll`` is taken from the log densities of the prediction where it has them.

    Raises:
        PairError: If the prediction is no prediction of these classes.
    """
    y = batch["y"].detach().cpu().long()
    probs = probabilities(prediction, len(y))
    classes = int(dataset.extra["num_classes"])
    if probs.shape[1] != classes:
        raise PairError(f"the prediction has {probs.shape[1]} classes and data set '{dataset.name}' has {classes}")
    _, _, log_prob = pick(prediction, "y", len(y))
    scores = class_scores(probs, y)
    return scores if log_prob is None else {**scores, "nll": mean_log_score(log_prob)}


TASK = Task(name="classification", title="Predict a class from features", check=check, score=score, primary="nll")
