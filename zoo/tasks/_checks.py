"""What several tasks ask of the batches of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from zoo.errors import DataError
from zoo.types import Batch, Dataset

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["entry", "rows", "splits"]


def splits(dataset: Dataset) -> Iterator[tuple[str, Batch]]:
    """Walk over the splits that a data set has.

    Args:
        dataset: Any data set.

    Yields:
        Name and batch of each split.
    """
    for name in ("train", "validation", "test"):
        batch: Batch | None = getattr(dataset, name)
        if batch is not None:
            yield name, batch


def entry(dataset: Dataset, split: str, name: str, *, dims: int | None = None, codes: bool = False) -> Tensor:
    """Return an entry of a split after checking its type, number of dimensions and values.

    Args:
        dataset: The data set.
        split: ``train``, ``validation`` or ``test``.
        name: Entry of the batch.
        dims: Number of dimensions; ``None`` allows two and more.
        codes: Whether integer codes are expected rather than floating-point numbers.

    Returns:
        The entry.

    Raises:
        DataError: If it is absent or something else.
    """
    where = f"data set '{dataset.name}', {split} split: entry '{name}'"
    batch = dataset.split(split)
    if name not in batch:
        raise DataError(f"{where} is missing; the batch has {', '.join(sorted(batch)) or 'nothing'}")
    value = batch[name]
    if codes and value.dtype != torch.int64:
        raise DataError(f"{where} is {value.dtype}; int64 codes were expected")
    if not codes and not value.is_floating_point():
        raise DataError(f"{where} is {value.dtype}; floating-point numbers were expected")
    if value.ndim != dims if dims is not None else value.ndim < 2:
        expected = "two or more dimensions" if dims is None else f"{dims} dimension{'s' if dims > 1 else ''}"
        raise DataError(f"{where} has shape {tuple(value.shape)}; {expected} were expected")
    if not codes:
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise DataError(f"{where} has {bad} values that are missing (NaN) or infinite")
    return value


def rows(dataset: Dataset, split: str, names: tuple[str, ...]) -> None:
    """Check that the entries of a split, and its ``index``, have the same number of rows.

    Args:
        dataset: The data set.
        split: ``train``, ``validation`` or ``test``.
        names: Entries to compare with ``index``.

    Raises:
        DataError: If the split has no rows, lengths differ, or ``index`` is no set of positions in the training set.
    """
    batch = dataset.split(split)
    index = entry(dataset, split, "index", dims=1, codes=True)
    where = f"data set '{dataset.name}', {split} split"
    if len(index) == 0:
        raise DataError(f"{where} has no rows")
    for name in names:
        if len(batch[name]) != len(index):
            raise DataError(f"{where}: '{name}' has {len(batch[name])} rows and 'index' has {len(index)}")
    if split == "train" and not torch.equal(index.sort().values, torch.arange(len(index), device=index.device)):
        raise DataError(f"{where}: 'index' must hold every position 0 .. {len(index) - 1} once")
