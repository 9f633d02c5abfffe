"""Data sets as named tensors and JSON, for saved posteriors, and their fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zoo.errors import ArtifactError, DataError
from zoo.types import Column, Dataset

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fingerprint", "pack", "unpack"]

_SPLITS = ("train", "validation", "test")
_FIELDS = ("name", "task", "source", "licence", "description", "origin")


def pack(dataset: Dataset) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take a data set apart into what safetensors and JSON can hold.

    Args:
        dataset: Any data set.

    Returns:
        Tensors, named ``data.<split>.<entry>``, on the CPU, contiguous, sharing no memory; and everything else as
        JSON.

    Raises:
        DataError: If ``extra`` or ``coords`` hold something that JSON cannot.
    """
    tensors = {
        f"data.{split}.{entry}": value.detach().cpu().clone().contiguous()
        for split, batch in _batches(dataset)
        for entry, value in batch.items()
    }
    meta = {
        **{field: getattr(dataset, field) for field in _FIELDS},
        "splits": [split for split, _ in _batches(dataset)],
        "whole": sorted(dataset.whole),
        "columns": [dataclasses.asdict(column) for column in dataset.columns],
        "target": None if dataset.target is None else dataclasses.asdict(dataset.target),
        "dims": {name: list(dims) for name, dims in dataset.dims.items()},
        "coords": {name: [_plain(label) for label in labels] for name, labels in dataset.coords.items()},
        "extra": dict(dataset.extra),
    }
    try:
        return tensors, json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"data set '{dataset.name}' cannot be stored: {error}; keep numbers and text in `extra` and `coords`"
        ) from error


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Dataset:
    """Put a data set together again; the inverse of :func:`pack`.

    Args:
        tensors: Tensors by the names that :func:`pack` gave them; names outside ``data.`` are ignored.
        meta: The JSON part. Lists in ``extra`` come back as tuples.

    Returns:
        The data set.

    Raises:
        ArtifactError: If a part is missing or of another kind.
    """
    try:
        return _rebuild(tensors, meta)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"the stored data set is damaged ({detail}); save the posterior again") from error


def fingerprint(dataset: Dataset) -> str:
    """Return a hash of the values of a data set: equal data, equal fingerprint, on any machine.

    Args:
        dataset: Any data set.

    Returns:
        SHA-256 in hexadecimal over names, types, shapes and bytes of every entry of every split.
    """
    digest = hashlib.sha256()
    for split, batch in _batches(dataset):
        for entry in sorted(batch):
            value = batch[entry].detach().cpu().contiguous()
            digest.update(json.dumps([split, entry, str(value.dtype), list(value.shape)]).encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _rebuild(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Dataset:
    batches: dict[str, dict[str, Tensor]] = {split: {} for split in meta["splits"]}
    for name, value in tensors.items():
        if name.startswith("data."):
            _, split, entry = name.split(".", 2)
            batches[split][entry] = value
    if not all(batches.values()) or not set(batches) <= set(_SPLITS):
        raise ValueError(f"splits {sorted(batches)}, of which some are unknown or have no entries")
    texts: dict[str, Any] = {field: _text(meta[field]) for field in _FIELDS}
    columns = tuple(_column(column) for column in meta["columns"])
    if columns and "x" in batches["train"] and len(columns) != batches["train"]["x"][0].numel():
        raise ValueError(f"{len(columns)} columns for {batches['train']['x'][0].numel()} features")
    for dim, labels in meta["coords"].items():
        if not all(isinstance(label, str | int | float) for label in labels):
            raise TypeError(f"labels of '{dim}' are neither text nor numbers")
    return Dataset(
        **texts,
        train=batches["train"],
        validation=batches.get("validation"),
        test=batches.get("test"),
        whole=frozenset(_text(name) for name in meta["whole"]),
        columns=columns,
        target=None if meta["target"] is None else _column(meta["target"]),
        dims={name: tuple(_text(dim) for dim in dims) for name, dims in meta["dims"].items()},
        coords={name: tuple(labels) for name, labels in meta["coords"].items()},
        extra={name: _tuples(value) for name, value in meta["extra"].items()},
    )


def _batches(dataset: Dataset) -> list[tuple[str, Mapping[str, Tensor]]]:
    found = ((split, getattr(dataset, split)) for split in _SPLITS)
    return [(split, batch) for split, batch in found if batch is not None]


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _column(values: Mapping[str, Any]) -> Column:
    categories = values["categories"]
    for field in ("mean", "scale"):
        if isinstance(values[field], bool) or not isinstance(values[field], int | float):
            raise TypeError(f"the {field} of a column is {values[field]!r}")
    return Column(
        name=_text(values["name"]),
        mean=values["mean"],
        scale=values["scale"],
        categories=None if categories is None else tuple(_text(category) for category in categories),
        source=_text(values["source"]),
        # Data sets that were stored before these fields came have them empty.
        kind=_text(values.get("kind", "")),
        format=_text(values.get("format", "")),
        unit=_text(values.get("unit", "")),
        pooled=tuple(_text(category) for category in values.get("pooled", ())),
    )


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value
