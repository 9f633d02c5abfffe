"""Tasks: what a batch of a task holds, and how a prediction is scored. Every public file here is one task.

Listing (:func:`names`) imports no task, hence no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.errors import UnknownNameError, suggest

if TYPE_CHECKING:
    from zoo.inference.predictive import Prediction
    from zoo.types import Batch, Dataset, Method

__all__ = ["Task", "get", "names", "of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked of the data.

    Args:
        name: Name in data sets and methods; the stem of the task's file.
        title: One line.
        check: ``check(dataset)`` raises :class:`~zoo.errors.DataError` unless every split holds what the task needs.
        score: ``score(prediction, batch, dataset)`` -> scores by name. The prediction is of this batch.
        primary: The score by which fits are ranked.
        direction: Whether the smallest (``min``) or the largest (``max``) value of ``primary`` is best.
        target: Entry of the batch that holds what is predicted.
        site: Observed site that predicts it.
        reads: What the score reads of a prediction; the rest need not be computed.
    """

    name: str
    title: str
    check: Callable[[Dataset], None]
    score: Callable[[Prediction, Batch, Dataset], dict[str, float]]
    primary: str
    direction: Literal["min", "max"] = "min"
    target: str = "y"
    site: str = "y"
    reads: tuple[str, ...] = ("samples", "means", "probs", "log_prob")


@cache
def names() -> tuple[str, ...]:
    """Return the names of all tasks.

    Returns:
        Sorted names.
    """
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")))


def get(name: str) -> Task:
    """Return a task by name.

    Args:
        name: Name of a task, as in ``Dataset.task`` and ``Method.task``.

    Returns:
        The ``TASK`` of its file.

    Raises:
        UnknownNameError: If there is no such task.
    """
    if name not in names():
        raise UnknownNameError(f"task '{name}' is unknown{suggest(name, names())}")
    task: Task = importlib.import_module(f"zoo.tasks.{name}").TASK
    return task


def of(method: Method[Any] | None, data: Dataset) -> Task | None:
    """Return the task by which a fit is scored.

    Args:
        method: The method; ``None`` for a bare pair.
        data: What it was fitted on.

    Returns:
        The task of the data, or that of the method where the two predict different entries, as a density of images
        that have labels does; ``None`` if the data have no known task.
    """
    if data.task not in names():
        return None
    task = get(data.task)
    if method is not None and get(method.task).target != task.target:
        return get(method.task)
    return task
