"""Tasks: what a batch of a task holds, and how a prediction is scored. Every public file here is one task.

Listing (:func:`names`) imports no task, hence no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zoo.errors import UnknownNameError, suggest

if TYPE_CHECKING:
    from zoo.inference.predictive import Prediction
    from zoo.types import Batch, Dataset

__all__ = ["Task", "get", "names"]


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
    """

    name: str
    title: str
    check: Callable[[Dataset], None]
    score: Callable[[Prediction, Batch, Dataset], dict[str, float]]
    primary: str
    direction: Literal["min", "max"] = "min"
    target: str = "y"
    site: str = "y"


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
