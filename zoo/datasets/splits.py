"""Seeded splits into training, validation and test rows that stay the same across library versions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError

__all__ = ["TEST", "TRAIN", "VALIDATION", "hold_out", "partition"]

TRAIN, VALIDATION, TEST = 0, 1, 2


def partition(
    rows: int,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    labels: NDArray[Any] | None = None,
) -> NDArray[np.int8]:
    """Assign every row to a split.

    The random keys are raw PCG64 output, whose stream NumPy guarantees. With labels, the rows of each class are spread
    evenly over the order that is cut, so that every split has the classes in proportion (to within one row) and no
    class is missing from a training set of at least half of the rows.

    Args:
        rows: Number of rows.
        validation: Fraction of the rows in ``[0, 1)``, or a number of rows as an integer.
        test: Likewise.
        seed: Of the random keys, ``>= 0``.
        labels: Class of each row; ``None`` does not stratify.

    Returns:
        ``TRAIN``, ``VALIDATION`` or ``TEST`` per row.

    Raises:
        DataError: If a size or the seed is out of range, or fewer than two rows are left for training.
    """
    sizes = [_size(name, value, rows) for name, value in (("validation", validation), ("test", test))]
    num_train = rows - sum(sizes)
    if num_train < 2:
        raise DataError(
            f"{rows} {'row' if rows == 1 else 'rows'}, of which {sizes[0]} for validation and {sizes[1]} for testing: "
            "at least 2 must be left for training; add rows or lower `validation` and `test`"
        )
    order = _order(rows, seed, labels)
    parts = np.full(rows, TRAIN, dtype=np.int8)
    parts[order[num_train : num_train + sizes[0]]] = VALIDATION
    parts[order[num_train + sizes[0] :]] = TEST
    return parts


def hold_out(
    parts: NDArray[np.int8], *, validation: float, seed: int = 0, labels: NDArray[Any] | None = None
) -> NDArray[np.int8]:
    """Take a validation set out of the training rows of a split that came with the data.

    Args:
        parts: ``TRAIN``, ``VALIDATION`` or ``TEST`` per row.
        validation: Fraction of the training rows, or a number of rows; ignored when there are validation rows already.
        seed: Of the random keys.
        labels: Class of each row; ``None`` does not stratify.

    Returns:
        The new assignment.

    Raises:
        DataError: If there are fewer than two training rows.
    """
    train = np.flatnonzero(parts == TRAIN)
    if len(train) < 2:
        raise DataError(f"the training set has {len(train)} rows; at least 2 are needed")
    if (parts == VALIDATION).any():
        return parts
    result = parts.copy()
    result[train] = partition(
        len(train), validation=validation, test=0, seed=seed, labels=None if labels is None else labels[train]
    )
    return result


def _size(name: str, value: float, rows: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, float) and 0.0 <= value < 1.0:
        return int(value * rows + 1e-9)
    raise DataError(f"`{name}` is {value!r}; give a fraction of the rows in [0, 1) or a number of rows")


def _order(rows: int, seed: int, labels: NDArray[Any] | None) -> NDArray[np.int64]:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"`seed` is {seed!r}; give an integer that is not negative")
    keys = np.random.PCG64(seed).random_raw(rows)
    if labels is None:
        return np.argsort(keys, kind="stable")
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    place = np.empty(rows)
    for code, count in enumerate(counts):
        members = np.flatnonzero(codes == code)
        place[members[np.argsort(keys[members], kind="stable")]] = (np.arange(count) + 0.5) / count
    return np.lexsort((keys, place))
