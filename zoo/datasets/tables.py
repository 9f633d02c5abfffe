"""One way from a table, or images, to a data set: split, check, encode, standardise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from zoo.datasets.files import Raw, open_table
from zoo.datasets.splits import TEST, TRAIN, VALIDATION, hold_out, partition
from zoo.errors import DataError, UnknownNameError, suggest
from zoo.types import Batch, Column, Dataset

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.datasets.files import Table

__all__ = ["MAX_CATEGORIES", "encode", "read"]

MAX_CATEGORIES = 1_000
_MAX_INFERRED_CLASSES = 20
_MAX_SENSITIVE_GROUPS = 20
_FAIR = "fair_representation"
_TASKS = ("classification", "density", _FAIR, "regression")
_MISSING = ("refuse", "keep")


def read(
    source: Table,
    target: str | None = None,
    *,
    name: str | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    task: str | None = None,
    drop: Sequence[str] = (),
    missing: str = "refuse",
    group: str | None = None,
    sensitive: str | None = None,
) -> Dataset:
    r"""Read the user's own data into a data set.

    Every batch holds ``x`` (float32, ``(rows, features)``), ``y`` and ``index``. Features are standardised with the
    mean and the standard deviation of the training rows; so is the target of a regression (float32). A classification
    target becomes codes (int64, ``0 .. num_classes - 1``) of its sorted labels. A column of text becomes 0/1
    indicators, one per category but the first (the reference), named ``column=category`` and standardised like every
    feature; the :class:`~zoo.types.Column` records mean and scale, so that coefficients can be told in the user's
    units. A column with one value in all training rows is dropped with a warning. Images (``x`` of three or four
    dimensions) are flattened; 8-bit ones are divided by 255 and nothing is standardised. Their shape, ``(channels,
    height, width)`` with the channels red, green, blue, is ``extra["image_shape"]``.

    The split is seeded, stratified by class for a classification, and keeps the order of the rows within each split.
    Entries named ``x_train``, ``y_train``, ``x_test``, ``y_test`` (and ``*_validation``) keep the split they came with.

    Args:
        source: Path to a CSV, NPZ or Parquet file, or to a folder in MNIST's idx format or in the binary one of
            CIFAR-10 or CIFAR-100; a data frame; or a mapping of tensors or arrays.
        target: Column to predict; may be left out where there is a column ``y``. For the task ``density`` it is left
            out: every column is a feature (of images, the images alone), and batches have no ``y``.
        name: Name of the data set; by default the stem of the file.
        validation: Fraction of the rows, or number of rows, for validation; 0 for none.
        test: Likewise for testing.
        seed: Of the split.
        task: ``classification``, ``regression``, ``density`` or, which ``sensitive`` implies, ``fair_representation``.
            By default text, booleans and at most :math:`\min(20, \max(2, \sqrt{rows}))` distinct integers mean
            classification.
        drop: Columns to leave out, such as an identifier.
        missing: ``refuse``, or ``keep`` for methods that impute: a missing entry of a feature is encoded as 0, which is
            the mean of the observed ones, and where any is missing every batch has ``x_missing`` (bool, ``(rows,
            features)``). The target is never imputed.
        group: Column that says to which group (a clinic, a county) a row belongs, for methods that know groups. It is
            no feature: every batch has ``group`` (int64, ``(rows,)``), codes of the sorted labels of the training rows,
            which are ``coords["group"]``; ``extra["group"]`` is the column's name. Where rows are of other groups, the
            batch also has ``new_group`` (int64, ``(rows,)``), which counts those from 0 and is -1 for the other rows.
        sensitive: Column of which a representation shall tell nothing (sex, the hospital of a scan). It is no feature:
            every batch has ``s`` (int64, ``(rows,)``), codes of its sorted labels, which are ``coords["sensitive"]``;
            ``extra["num_groups"]`` counts them and ``extra["sensitive"]`` is the column's name. The target, a class,
            may be missing in some rows: ``y`` is 0 there, and every batch has ``y_missing`` (bool, ``(rows,)``). The
            split is stratified by target and group together.

    Returns:
        The data set.

    Raises:
        DataError: If the file cannot be read as its name says, a value is missing or not finite, the target does not
            suit the task, or too little is left to learn from.
        UnknownNameError: If the target, a dropped column, the group's or the sensitive column or the task is unknown.
    """
    raw = open_table(source)
    if task is not None and task not in _TASKS:
        raise UnknownNameError(f"task '{task}' cannot be read from a table{suggest(task, _TASKS)}")
    if task not in (None, _FAIR) and sensitive is not None:
        raise DataError(f"a sensitive column is for the task '{_FAIR}'; leave out the task '{task}' or the column")
    if task == _FAIR and sensitive is None:
        raise DataError(f"the task '{_FAIR}' needs a sensitive column; name it (sensitive='sex')")
    columns = list(raw.frame.columns)
    for unwanted in drop:
        if unwanted not in columns:
            raise UnknownNameError(f"column '{unwanted}' to drop is unknown{_choices(unwanted, columns)}")
    if missing not in _MISSING:
        raise UnknownNameError(f"missing is '{missing}'{suggest(missing, _MISSING)}")
    raw = replace(raw, frame=raw.frame.drop(columns=list(drop)))
    if task == "density":
        return _read_features(raw, target, name=name, validation=validation, test=test, seed=seed, group=group)
    target = _target_name(raw, target)
    members = None if group is None else _group_labels(raw, group, target)
    raw = raw if group is None else replace(raw, frame=raw.frame.drop(columns=group))
    kinds = None if sensitive is None else _sensitive_labels(raw, sensitive, target)
    raw = raw if sensitive is None else replace(raw, frame=raw.frame.drop(columns=sensitive))
    unlabelled = raw.frame[target].isna().to_numpy() & (kinds is not None)
    if missing == "keep":
        _refuse_missing(raw.frame.loc[~unlabelled, [target]])
    hint = ", or keep them (missing='keep') for a method that imputes"
    entries = raw.frame if kinds is None else raw.frame.drop(columns=target)
    _refuse_missing(entries, keep=missing == "keep", hint=hint)
    if kinds is None:
        task = task or raw.task or _infer_task(raw.frame[target])
        y, column = _encode_target(raw.frame[target], task)
    else:
        task = _FAIR
        y, column = _encode_some(raw.frame[target], unlabelled)
    strata = y if task == "classification" else None
    if kinds is not None:
        names, s = _sensitive_codes(str(sensitive), kinds)
        strata = np.where(unlabelled, -1, y) * len(names) + s
    if raw.parts is None:
        parts = partition(len(y), validation=validation, test=test, seed=seed, labels=strata)
    else:
        parts = hold_out(raw.parts, validation=validation, seed=seed, labels=strata)
    if task == "regression":
        y, column = _standardise_target(y, column, parts)
    if raw.images is None:
        x, features = _encode_features(raw.frame.drop(columns=target), parts)
        gone = np.isnan(x)
        x[gone] = 0.0
        extra: dict[str, Any] = {}
    else:
        if len(raw.frame.columns) > 1:
            others = ", ".join(c for c in raw.frame.columns if c != target)
            raise DataError(f"images come with a target alone; remove the entries {others}")
        x, features = _encode_images(raw.images)
        gone = np.zeros((1, 1), dtype=bool)
        extra = {"image_shape": tuple(int(n) for n in raw.images.shape[1:])}
    coords: dict[str, Any] = {"feature": tuple(f.name for f in features)}
    if column.categories is not None:
        extra["num_classes"] = len(column.categories)
        coords["class"] = column.categories
    batches = {part: _batch(x, y, parts == part) for part in (TRAIN, VALIDATION, TEST)}
    dims: dict[str, tuple[str, ...]] = {"x": ("datum", "feature"), "y": ("datum",)}
    if members is not None:
        coords["group"] = _group_names(str(group), members[parts == TRAIN])
        extra["group"] = str(group)
        dims["group"] = ("datum",)
        for part, batch in batches.items():
            batch |= _encode_groups(members[parts == part], coords["group"])[0]
    if kinds is not None:
        coords["sensitive"] = names
        extra |= {"sensitive": str(sensitive), "num_groups": len(names)}
        dims["s"] = ("datum",)
        _refuse_unseen(str(sensitive), names, s[parts == TRAIN], y[(parts == TRAIN) & ~unlabelled], column)
        for part, batch in batches.items():
            batch["s"] = torch.as_tensor(s[parts == part])
            if unlabelled.any():
                batch["y_missing"] = torch.as_tensor(unlabelled[parts == part])
        if unlabelled.any():
            dims["y_missing"] = ("datum",)
    if gone.any():
        dims["x_missing"] = dims["x"]
        for part, batch in batches.items():
            batch["x_missing"] = torch.as_tensor(gone[parts == part])
    return Dataset(
        name=name or raw.name,
        task=task,
        train=batches[TRAIN],
        validation=batches[VALIDATION] if len(batches[VALIDATION]["index"]) else None,
        test=batches[TEST] if len(batches[TEST]["index"]) else None,
        columns=features,
        target=column,
        dims=dims,
        coords=coords,
        source=raw.source,
        extra=extra,
    )


def _read_features(
    raw: Raw, target: str | None, *, name: str | None, validation: float, test: float, seed: int, group: str | None
) -> Dataset:
    """Read a table of features alone."""
    if target is not None or group is not None:
        given = f"target '{target}'" if target is not None else f"group '{group}'"
        raise DataError(f"the task density has features alone, but a {given} was given; leave it out")
    if raw.images is None:
        _refuse_missing(raw.frame)
    if raw.parts is None:
        rows = len(raw.frame) if raw.images is None else len(raw.images)
        parts = partition(rows, validation=validation, test=test, seed=seed)
    else:
        parts = hold_out(raw.parts, validation=validation, seed=seed)
    if raw.images is None:
        x, features = _encode_features(raw.frame, parts)
        extra: dict[str, Any] = {}
    else:
        x, features = _encode_images(raw.images)
        extra = {"image_shape": tuple(int(n) for n in raw.images.shape[1:])}
    batches = {
        part: {"x": _tensor(x[parts == part]), "index": torch.arange(int((parts == part).sum()))}
        for part in (TRAIN, VALIDATION, TEST)
    }
    return Dataset(
        name=name or raw.name,
        task="density",
        train=batches[TRAIN],
        validation=batches[VALIDATION] if len(batches[VALIDATION]["index"]) else None,
        test=batches[TEST] if len(batches[TEST]["index"]) else None,
        columns=features,
        dims={"x": ("datum", "feature")},
        coords={"feature": tuple(f.name for f in features)},
        source=raw.source,
        extra=extra,
    )


def encode(dataset: Dataset, table: Table | Raw) -> Batch:
    """Encode new rows as the training rows of a data set were, for prediction.

    Rows of groups that training did not have are welcome: they get ``new_group`` as in :func:`read`, and a warning.

    Args:
        dataset: Data set made by :func:`read` or :func:`load` from a table or images.
        table: New rows in any form that :func:`read` takes, or opened already. Columns that the data set does not know
            are ignored.

    Returns:
        Batch with ``x`` and ``index``, and ``y`` where the table has the target (a target without any value is left
        out); of data with a sensitive column also ``s``, and ``y_missing`` where the target of some rows is missing.

    Raises:
        DataError: If the data set is no table, a value is missing or not finite, a category was not seen in training,
            or images have another shape or range; :class:`~zoo.errors.UnknownNameError` if a column is missing.
    """
    if not dataset.columns:
        raise DataError(f"data set '{dataset.name}' is not a table of features; give the batch itself")
    raw = table if isinstance(table, Raw) else open_table(table)
    shape = dataset.extra.get("image_shape")
    if shape is not None:
        if raw.images is None or tuple(raw.images.shape[1:]) != tuple(shape):
            found = "no images" if raw.images is None else f"images of shape {tuple(raw.images.shape[1:])}"
            raise DataError(f"entry 'x' holds {found}; data set '{dataset.name}' has images of shape {tuple(shape)}")
        x, _ = _encode_images(raw.images)
        most, usual = float(np.abs(x).max(initial=0.0)), float(dataset.train["x"].abs().max())
        if most > 10 * usual:
            raise DataError(
                f"entry 'x' holds pixels up to {most:g}, and those of data set '{dataset.name}' reach {usual:g}; give "
                "them in the same units (8-bit images are divided by 255)"
            )
    else:
        x = _apply_columns(dataset, raw.frame)
    gone = np.isnan(x)
    x[gone] = 0.0
    batch = {"x": _tensor(x), "index": torch.arange(len(x))}
    if "x_missing" in dataset.train:
        batch["x_missing"] = torch.as_tensor(gone)
    if "group" in dataset.extra:
        batch |= _new_groups(dataset, raw)
    if "sensitive" in dataset.extra:
        batch["s"] = _new_sensitive(dataset, raw)
    if dataset.target is not None and dataset.target.name in raw.frame and raw.frame[dataset.target.name].notna().any():
        series = raw.frame[dataset.target.name]
        unlabelled = series.isna().to_numpy(copy=True)
        if "sensitive" in dataset.extra and dataset.target.categories is not None and unlabelled.any():
            y = np.zeros(len(series), dtype=np.int64)
            y[~unlabelled] = _codes(series[~unlabelled].infer_objects(), dataset.target.categories)
            return batch | {"y": torch.as_tensor(y), "y_missing": torch.as_tensor(unlabelled)}
        _refuse_missing(raw.frame[[dataset.target.name]])
        if dataset.target.categories is None:
            batch["y"] = _tensor((_numbers(series, "target") - dataset.target.mean) / dataset.target.scale)
        else:
            batch["y"] = torch.as_tensor(_codes(series, dataset.target.categories))
    return batch


# ----------------------------------------------------------------------------------------------------- target
def _choices(name: str, columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
    near = suggest(name, columns)
    return near if near.startswith("; known") else f"{near} (columns: {shown})"


def _target_name(raw: Raw, target: str | None) -> str:
    columns = list(raw.frame.columns)
    if target is None:
        if "y" in columns:
            return "y"
        raise UnknownNameError(f"no target was given and there is no column 'y'; name one of {', '.join(columns[:20])}")
    if target in columns:
        return target
    if f"{target}0" in columns and f"{target}1" in columns:
        raise DataError(f"target '{target}' has several columns; one value per row was expected")
    raise UnknownNameError(f"target column '{target}' is unknown{_choices(target, columns)}")


def _infer_task(series: pd.Series) -> str:
    if _is_text(series) or pd.api.types.is_bool_dtype(series):
        return "classification"
    values = _numbers(series, "target")
    distinct = len(np.unique(values))
    few = distinct <= min(_MAX_INFERRED_CLASSES, max(2.0, math.sqrt(len(values))))
    return "classification" if few and (values == np.round(values)).all() else "regression"


def _encode_target(series: pd.Series, task: str) -> tuple[NDArray[Any], Column]:
    if task == "regression":
        return _numbers(series, "target"), Column(name=str(series.name))
    text = _label_text(series)
    if _is_text(series) or pd.api.types.is_bool_dtype(series):
        labels = sorted(set(text))
    else:
        labels = sorted(set(text), key=float)
    if len(labels) < 2:
        raise DataError(
            f"target '{series.name}' has one class only ('{labels[0]}'); a classification needs two or more"
        )
    if len(labels) > MAX_CATEGORIES or len(labels) > max(2, len(text) / 2):
        raise DataError(
            f"target '{series.name}' has {len(labels)} distinct values in {len(text)} rows, too many for classes; "
            "use task='regression' for a number"
        )
    return _codes(series, tuple(labels)), Column(name=str(series.name), categories=tuple(labels))


def _standardise_target(y: NDArray[Any], column: Column, parts: NDArray[np.int8]) -> tuple[NDArray[Any], Column]:
    train = y[parts == TRAIN]
    if train.max() == train.min():
        raise DataError(
            f"target '{column.name}' has the one value {train[0]:g} in all training rows; there is nothing to learn"
        )
    standard, mean, scale = _standardise(y, train, f"target '{column.name}'")
    return standard, replace(column, mean=mean, scale=scale)


# ----------------------------------------------------------------------------------------------------- groups
def _group_labels(raw: Raw, group: str, target: str) -> NDArray[Any]:
    if group not in raw.frame:
        raise UnknownNameError(f"group column '{group}' is unknown{_choices(group, list(raw.frame.columns))}")
    if group == target:
        raise DataError(f"column '{group}' is the target; name another one as the group")
    _refuse_missing(raw.frame[[group]])
    return _label_text(raw.frame[group])


def _group_names(group: str, members: NDArray[Any]) -> tuple[str, ...]:
    labels = sorted(set(members))
    if len(labels) < 2 or len(labels) == len(members):
        found = "one value only" if len(labels) < 2 else f"a different value in each of its {len(members)} rows"
        raise DataError(f"column '{group}' has {found} in training; groups need two values or more, and rows in common")
    return tuple(sorted(labels, key=float) if all(map(_is_number, labels)) else labels)


def _encode_groups(members: NDArray[Any], names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the entries of a batch, and the labels that training did not have."""
    known = {label: code for code, label in enumerate(names)}
    others = list(dict.fromkeys(label for label in members if label not in known))
    number = {label: code for code, label in enumerate(others)}
    found = {"group": torch.tensor([known.get(label, 0) for label in members], dtype=torch.int64)}
    if others:
        found["new_group"] = torch.tensor([number.get(label, -1) for label in members], dtype=torch.int64)
    return found, others


def _new_groups(dataset: Dataset, raw: Raw) -> dict[str, Tensor]:
    group = str(dataset.extra["group"])
    if group not in raw.frame:
        raise UnknownNameError(f"the column '{group}' is missing, which says the group of a row"
                               f"{suggest(group, list(raw.frame.columns))}")  # fmt: skip
    _refuse_missing(raw.frame[[group]])
    found, others = _encode_groups(_label_text(raw.frame[group]), dataset.coords["group"])
    if others:
        rows = int((found["new_group"] >= 0).sum())
        shown = ", ".join(map(repr, others[:5])) + (", ..." if len(others) > 5 else "")
        warnings.warn(
            f"{rows} of {len(found['group'])} rows belong to groups that training did not have: {shown}; what is "
            "special about these is drawn from the population of groups",
            stacklevel=3,
        )
    return found


# -------------------------------------------------------------------------------------------------- sensitive
def _sensitive_labels(raw: Raw, sensitive: str, target: str) -> NDArray[Any]:
    if sensitive not in raw.frame:
        raise UnknownNameError(f"sensitive column '{sensitive}' is unknown{_choices(sensitive, list(raw.frame))}")
    if sensitive == target:
        raise DataError(f"column '{sensitive}' is the target; name another one as sensitive")
    _refuse_missing(raw.frame[[sensitive]])
    return _label_text(raw.frame[sensitive])


def _sensitive_codes(sensitive: str, kinds: NDArray[Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    labels = sorted(set(kinds))
    if not 2 <= len(labels) <= _MAX_SENSITIVE_GROUPS:
        found = f"the one value '{labels[0]}'" if len(labels) == 1 else f"{len(labels)} different values"
        raise DataError(
            f"sensitive column '{sensitive}' has {found}; 2 to {_MAX_SENSITIVE_GROUPS} groups are allowed: cut a "
            "number into ranges first"
        )
    names = tuple(sorted(labels, key=float) if all(map(_is_number, labels)) else labels)
    known = {label: code for code, label in enumerate(names)}
    return names, np.array([known[label] for label in kinds], dtype=np.int64)


def _encode_some(series: pd.Series, unlabelled: NDArray[np.bool_]) -> tuple[NDArray[Any], Column]:
    """Encode a target of which some values are missing; their code is 0."""
    if unlabelled.all():
        raise DataError(f"target '{series.name}' has no value in any row; label some")
    codes, column = _encode_target(series[~unlabelled].infer_objects(), "classification")
    y = np.zeros(len(series), dtype=np.int64)
    y[~unlabelled] = codes
    return y, column


def _refuse_unseen(
    sensitive: str, names: Sequence[str], s: NDArray[np.int64], y: NDArray[np.int64], target: Column
) -> None:
    for what, labels, codes in ((f"column '{sensitive}'", names, s), (f"target '{target.name}'", target.categories, y)):
        absent = sorted(set(range(len(labels or ()))) - set(codes.tolist()))
        if absent:
            shown = ", ".join(repr((labels or ())[code]) for code in absent[:5])
            raise DataError(f"{what}: no training row has {shown}; give more such rows, or join or drop them")


def _new_sensitive(dataset: Dataset, raw: Raw) -> Tensor:
    sensitive = str(dataset.extra["sensitive"])
    if sensitive not in raw.frame:
        near = _choices(sensitive, list(raw.frame))
        raise UnknownNameError(f"the sensitive column '{sensitive}' is missing, which the encoder takes{near}")
    _refuse_missing(raw.frame[[sensitive]])
    return torch.as_tensor(_codes(raw.frame[sensitive], tuple(map(str, dataset.coords["sensitive"]))))


# --------------------------------------------------------------------------------------------------- features
def _encode_features(frame: pd.DataFrame, parts: NDArray[np.int8]) -> tuple[NDArray[Any], tuple[Column, ...]]:
    train = parts == TRAIN
    values: list[NDArray[Any]] = []
    columns: list[Column] = []
    constant: list[str] = []
    for name in frame.columns:
        categories = _categories(frame[name].dropna()) if _is_text(frame[name]) else None
        raw = _raw_features(frame[name], categories)
        if not raw:
            constant.append(name)
        for feature, value in raw.items():
            there = ~np.isnan(value)
            seen = value[train & there]
            if not seen.size or seen.max() == seen.min():
                constant.append(feature)
                continue
            standard = np.full(len(value), np.nan)
            standard[there], mean, scale = _standardise(value[there], seen, f"column '{name}'")
            values.append(standard)
            columns.append(Column(name=feature, mean=mean, scale=scale, categories=categories, source=name))
    if constant:
        warnings.warn(f"dropped, as they have one value in all training rows: {', '.join(constant)}", stacklevel=3)
    if not columns:
        raise DataError("no feature is left besides the target; give at least one column that varies")
    _refuse_twins(columns)
    return np.stack(values, axis=1), tuple(columns)


def _apply_columns(dataset: Dataset, frame: pd.DataFrame) -> NDArray[Any]:
    sources = list(dict.fromkeys(column.source or column.name for column in dataset.columns))
    missing = [source for source in sources if source not in frame.columns]
    if missing:
        known = ", ".join(frame.columns[:20])
        raise UnknownNameError(f"these columns are missing: {', '.join(missing)}; the table has {known}")
    # Numbers may be missing where they were in training; categories only in columns that lacked some there too.
    gone = dataset.train.get("x_missing")
    lacking = [] if gone is None else gone.any(0).tolist()
    allowed = (c for c, some in zip(dataset.columns, lacking, strict=False) if c.categories is None or some)
    keep = list(dict.fromkeys(column.source or column.name for column in allowed))
    _refuse_missing(frame[[source for source in sources if source not in keep]])
    _refuse_missing(frame[keep], keep=True)
    raw: dict[str, NDArray[Any]] = {}
    for column in dataset.columns:
        if column.name not in raw:
            series = frame[column.source or column.name]
            if column.categories is not None:
                _codes(series.dropna(), column.categories)
            raw.update(_raw_features(series, column.categories))
    return np.stack([(raw[column.name] - column.mean) / column.scale for column in dataset.columns], axis=1)


# A missing entry is NaN in every feature of its column.
def _raw_features(series: pd.Series, categories: tuple[str, ...] | None) -> dict[str, NDArray[Any]]:
    if categories is None:
        return {str(series.name): _numbers(series, "column")}
    text, gone = _label_text(series), series.isna().to_numpy()
    return {
        f"{series.name}={category}": np.where(gone, np.nan, (text == category).astype(np.float64))
        for category in categories[1:]
    }


def _categories(series: pd.Series) -> tuple[str, ...]:
    labels = sorted(set(_label_text(series)))
    numeric = np.array([_is_number(label.replace(",", ".")) for label in labels])
    if numeric.sum() > _MAX_INFERRED_CLASSES and numeric.mean() >= 0.9:
        odd = [label for label in labels if not _is_number(label)]
        raise DataError(
            f"column '{series.name}' holds numbers as text"
            + (f", some of which cannot be read: {', '.join(map(repr, odd[:5]))}" if odd else "")
            + "; correct those values or drop the column"
        )
    if len(labels) == len(series) > _MAX_INFERRED_CLASSES:
        raise DataError(
            f"column '{series.name}' has a different text in each of its {len(series)} rows, from which nothing can be "
            f"learnt; leave it out: drop=['{series.name}'], on the command line --drop {series.name}"
        )
    if len(labels) > MAX_CATEGORIES:
        raise DataError(
            f"column '{series.name}' has {len(labels)} distinct texts; at most {MAX_CATEGORIES} are allowed; drop it"
        )
    return tuple(labels)


def _encode_images(images: NDArray[Any]) -> tuple[NDArray[Any], tuple[Column, ...]]:
    if images.dtype.kind not in "biuf":
        raise DataError(f"entry 'x' holds images of type {images.dtype}; numbers were expected")
    x = images.reshape(len(images), -1).astype(np.float32)
    if not np.isfinite(x).all():
        raise DataError(f"entry 'x' has {int((~np.isfinite(x)).sum())} values that are missing (NaN) or infinite")
    if images.dtype == np.uint8:
        x /= 255.0
    channels, height, width = images.shape[1:]
    prefix = [""] if channels == 1 else [f"{c}," for c in range(channels)]
    columns = [Column(name=f"{c}{i},{j}") for c in prefix for i in range(height) for j in range(width)]
    return x, tuple(columns)


# ------------------------------------------------------------------------------------------------------ values
def _standardise(values: NDArray[Any], train: NDArray[Any], what: str) -> tuple[NDArray[Any], float, float]:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean, scale = _moments(train)
        standard = (values - mean) / scale
        representable = math.isfinite(scale) and scale > 0 and np.isfinite(standard.astype(np.float32)).all()
    if not representable:
        raise DataError(f"{what} spans too wide or too narrow a range, up to {np.abs(values).max():g}; rescale it")
    return standard, mean, scale


# Exactly rounded sums, so that the same table has the same fingerprint on every processor.
def _moments(values: NDArray[Any]) -> tuple[float, float]:
    try:
        mean = math.fsum(values.tolist()) / len(values)
        return mean, math.sqrt(math.fsum(((values - mean) ** 2).tolist()) / len(values))
    except OverflowError:
        return math.nan, math.inf


def _is_text(series: pd.Series) -> bool:
    kinds = pd.api.types
    return bool(
        kinds.is_object_dtype(series) or kinds.is_string_dtype(series) or isinstance(series.dtype, pd.CategoricalDtype)
    )


def _label_text(series: pd.Series) -> NDArray[Any]:
    values = series.to_numpy(dtype=object)
    if not _is_text(series) and not pd.api.types.is_bool_dtype(series):
        values = np.array([int(v) if float(v).is_integer() else float(v) for v in values], dtype=object)
    return np.array([str(v) for v in values], dtype=object)


def _numbers(series: pd.Series, what: str) -> NDArray[Any]:
    if pd.api.types.is_bool_dtype(series) or (pd.api.types.is_numeric_dtype(series) and not _is_text(series)):
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_datetime64_any_dtype(series) or pd.api.types.is_timedelta64_dtype(series):
        raise DataError(f"{what} '{series.name}' holds dates; turn them into numbers first")
    shown = next((str(v) for v in series if not _is_number(v)), str(series.dtype))
    raise DataError(f"{what} '{series.name}' holds text such as '{shown}'; numbers were expected")


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _codes(series: pd.Series, categories: tuple[str, ...]) -> NDArray[Any]:
    known = {category: code for code, category in enumerate(categories)}
    text = _label_text(series)
    unseen = sorted({value for value in text if value not in known})
    if unseen:
        raise DataError(
            f"column '{series.name}' has values that training did not have: {', '.join(map(repr, unseen[:5]))}; "
            f"known: {', '.join(categories[:20])}"
        )
    return np.array([known[value] for value in text], dtype=np.int64)


def _refuse_missing(frame: pd.DataFrame, *, keep: bool = False, hint: str = "") -> None:
    missing = frame.isna().sum() * (0 if keep else 1)
    numeric = [c for c in frame if pd.api.types.is_numeric_dtype(frame[c])]
    infinite = pd.Series(
        {c: int(np.isinf(frame[c].dropna().to_numpy(dtype=np.float64)).sum()) for c in numeric}, dtype=np.int64
    )
    parts = []
    for count, what in ((missing, "missing (NaN)"), (infinite, "infinite")):
        if count.sum():
            named = [f"{name} ({number})" for name, number in count[count > 0].items()]
            shown = ", ".join(named[:20]) + (", ..." if len(named) > 20 else "")
            parts.append(f"{count.sum()} {what} in {shown}")
    if parts:
        more = hint if missing.sum() else ""
        raise DataError(
            f"values that are no numbers: {'; '.join(parts)}; fill them or drop their rows or columns{more}"
        )


def _refuse_twins(columns: Sequence[Column]) -> None:
    seen: set[str] = set()
    for column in columns:
        if column.name in seen:
            raise DataError(f"two features are named '{column.name}'; rename the column '{column.source}'")
        seen.add(column.name)


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32))


def _batch(x: NDArray[Any], y: NDArray[Any], rows: NDArray[np.bool_]) -> dict[str, Tensor]:
    codes = y.dtype.kind == "i"
    return {
        "x": _tensor(x[rows]),
        "y": torch.as_tensor(y[rows]) if codes else _tensor(y[rows]),
        "index": torch.arange(int(rows.sum())),
    }
