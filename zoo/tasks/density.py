"""Density: how probable the features ``x`` of a row are; there is no target beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zoo.errors import PairError
from zoo.tasks import Task
from zoo.tasks._checks import entry, splits
from zoo.tasks._checks import rows as check_rows
from zoo.tasks._scores import mean_log_score

if TYPE_CHECKING:
    from zoo.inference.predictive import Prediction
    from zoo.types import Batch, Dataset

__all__ = ["TASK", "check", "score"]


def check(dataset: Dataset) -> None:
    """Check that every split has features ``x`` ``(rows, ...)`` and ``index``; other entries are not looked at.

    Args:
        dataset: The data set; raises :class:`~zoo.errors.DataError` if it holds something else.
    """
    for split, _ in splits(dataset):
        entry(dataset, split, "x")
        check_rows(dataset, split, ("x",))


def score(prediction: Prediction, batch: Batch, dataset: Dataset) -> dict[str, float]:
    r"""Score the log density of whole rows.

    Where the guide draws latents of a row from that row, the prediction's log densities are importance weights
    :math:`\log p(x, z_s) - \log q(z_s \mid x)`, and the score is the importance-weighted bound
    :math:`-\log \frac1S \sum_s e^{w_s}` on the negative log marginal likelihood. It falls towards it as draws are
    added, so compare scores of equally many.

    Args:
        prediction: Prediction of ``batch``, of one log density per draw and row.
        batch: Batch with ``x``.
        dataset: Its data set.

    Returns:
        ``nll``, in nats per row, of the features as the model takes them.

    Raises:
        PairError: If the prediction has no log densities of rows at the site ``x``.

    References:
        Burda, Grosse, Salakhutdinov (2016), sec. 3. https://arxiv.org/abs/1509.00519
    """
    log_prob, rows = prediction.log_prob.get("x"), len(batch["x"])
    if log_prob is None:
        sites = ", ".join(prediction.log_prob) or "none"
        raise PairError(f"the prediction has no log densities at site 'x'; it has those of: {sites}")
    if log_prob.ndim != 2 or log_prob.shape[1] != rows:
        raise PairError(
            f"site 'x': log_prob of shape {tuple(log_prob.shape)} for {rows} rows; (draws, {rows}) was expected: all "
            "features of a row are one event"
        )
    return {"nll": mean_log_score(log_prob.detach().to("cpu", torch.float64))}


TASK = Task(
    name="density",
    title="Say how probable a row is",
    check=check,
    score=score,
    primary="nll",
    target="x",
    site="x",
    reads=("log_prob",),
)
