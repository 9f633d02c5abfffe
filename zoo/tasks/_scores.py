"""Scores of a continuous prediction, shared by the tasks whose target is a number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from zoo.errors import PairError

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.inference.predictive import Prediction

__all__ = ["continuous_scores", "crps", "mean_log_score", "pick"]


def pick(prediction: Prediction, site: str, rows: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return samples, means and log densities of a site in float64 on the CPU, after checking their rows.

    Args:
        prediction: Prediction of one batch.
        site: Observed site.
        rows: Rows of the batch.

    Returns:
        Samples, means and log densities, each ``(draws, rows)``, or ``None`` where the prediction lacks them.

    Raises:
        PairError: If one of them has another shape.
    """
    found = []
    for kind in ("samples", "means", "log_prob"):
        value = getattr(prediction, kind).get(site)
        if value is not None and (value.ndim != 2 or value.shape[1] != rows):
            raise PairError(
                f"site '{site}': {kind} of shape {tuple(value.shape)} for {rows} rows; (draws, {rows}) was expected"
            )
        found.append(None if value is None else value.detach().to("cpu", torch.float64))
    return found[0], found[1], found[2]


def mean_log_score(log_prob: Tensor) -> float:
    r"""Return the negative log score of the averaged predictive.

    .. math:: -\frac1N \sum_i \log \frac1S \sum_s p(y_i \mid \theta_s)

    Args:
        log_prob: Log densities, ``(draws, rows)``.

    Returns:
        Mean over rows, in nats.
    """
    return float(-(torch.logsumexp(log_prob, 0) - math.log(log_prob.shape[0])).mean())


def crps(samples: Tensor, y: Tensor) -> float:
    r"""Return the continuous ranked probability score by the fair estimator.

    .. math:: \frac1S \sum_s |x_s - y| - \frac{1}{2 S (S - 1)} \sum_{s,t} |x_s - x_t|

    Args:
        samples: Predictive samples, ``(draws, rows)``, at least two draws.
        y: Observed values, ``(rows,)``.

    Returns:
        Mean over rows, in the units of ``y``; unbiased for any number of draws.

    References:
        Ferro (2014), Fair scores for ensemble forecasts, eq. 6. https://doi.org/10.1002/qj.2270
    """
    draws = samples.shape[0]
    weights = 2.0 * torch.arange(1, draws + 1, dtype=samples.dtype) - draws - 1.0
    spread = (weights[:, None] * samples.sort(0).values).sum(0) / (draws * (draws - 1))
    return float(((samples - y).abs().mean(0) - spread).mean())


def continuous_scores(prediction: Prediction, y: Tensor, *, site: str = "y", scale: float = 1.0) -> dict[str, float]:
    """Score a prediction of numbers in the user's units, of which one unit of ``y`` is ``scale``.

    The point prediction is the predictive mean. ``nlpd`` is the negative log of the averaged predictive density.
    ``coverage_50`` and ``coverage_90`` are the shares of rows within the central intervals of the samples; with few
    draws an interval between sample quantiles covers a little less than its name says.

    Args:
        prediction: Prediction of one batch.
        y: Observed values, ``(rows,)``.
        site: Observed site.
        scale: Units of the user per unit of ``y``.

    Returns:
        ``rmse``, ``mae``, ``r2`` (of two or more differing values), ``nlpd`` (where there are log densities), ``crps``
        (of two or more draws), ``coverage_50`` and ``coverage_90``.

    Raises:
        PairError: If the prediction has neither means nor samples at the site.
    """
    y = y.detach().to("cpu", torch.float64)
    samples, means, log_prob = pick(prediction, site, len(y))
    centres = means if means is not None else samples
    if centres is None:
        raise PairError(f"the prediction has neither means nor samples at site '{site}'")
    residual = (y - centres.mean(0)) * scale
    scores = {"rmse": float(residual.square().mean().sqrt()), "mae": float(residual.abs().mean())}
    total = float(((y - y.mean()) * scale).square().sum())
    if total > 0:
        scores["r2"] = 1.0 - float(residual.square().sum()) / total
    if log_prob is not None:
        scores["nlpd"] = mean_log_score(log_prob) + math.log(scale)
    if samples is not None and samples.shape[0] > 1:
        scores["crps"] = crps(samples, y) * scale
        for level in (0.5, 0.9):
            low, high = np.quantile(samples.numpy(), [(1 - level) / 2, (1 + level) / 2], axis=0)
            inside = (low <= y.numpy()) & (y.numpy() <= high)
            scores[f"coverage_{round(100 * level)}"] = float(inside.mean())
    return scores
