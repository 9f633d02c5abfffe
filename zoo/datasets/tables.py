"""One way from a table, or images, to a data set: split, check, encode, standardise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from zoo.datasets.encoding import (
    MAX_CATEGORIES,
    MISSING_LEVEL,
    Levels,
    collinear,
    encode_features,
    raw_features,
    standardise,
)
from zoo.datasets.files import Raw, open_table
from zoo.datasets.kinds import Cells, classify, read_as
from zoo.datasets.splits import TEST, TRAIN, VALIDATION, hold_out, partition
from zoo.errors import DataError, UnknownNameError, suggest
from zoo.types import Batch, Column, Dataset

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.datasets.files import Table

__all__ = ["MAX_CATEGORIES", "Encoded", "Refused", "encode", "encode_rows", "read"]

_MAX_INFERRED_CLASSES = 20
_MAX_SENSITIVE_GROUPS = 20
_WHOLE = 1e-3  # how far a number may be from a whole one for a count
_FAIR = "fair_representation"
_TASKS = ("classification", "density", _FAIR, "regression")
_MISSING = ("refuse", "keep", "drop", "level")
_REFERENCES = ("frequent", "first")


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
    categorical: Sequence[str] = (),
    na: Sequence[str] = (),
    day_first: bool | None = None,
    rare: int = 5,
    reference: str = "frequent",
) -> Dataset:
    r"""Read the user's own data into a data set.

    Every batch holds ``x`` (float32, ``(rows, features)``), ``y`` and ``index``. Features are standardised with the
    mean and the standard deviation of the training rows; so is the target of a regression (float32; float64 for counts
    of so wide a range that float32 would not hold them). A classification target becomes codes (int64, ``0 ..
    num_classes - 1``) of its sorted labels. A column of text becomes 0/1 indicators, one per category but the
    reference, named ``column=category`` and standardised like every feature; the :class:`~zoo.types.Column` records
    mean and scale, so that coefficients can be told in the user's units, and with which category they compare. A date
    becomes the number of days since the first of the training rows. A column with one value in all training rows is
    dropped with a warning, features that are exact combinations of others are named in one, and all such warnings are
    kept as ``extra["notes"]``. Images (``x`` of three or four dimensions) are flattened; 8-bit ones are divided by 255
    and nothing is standardised. Their shape, ``(channels, height, width)`` with the channels red, green, blue, is
    ``extra["image_shape"]``.

    Every cell of a text file is read as text. What a column holds (numbers, true and false, dates or names) is decided
    by all of its training rows and stored, and new rows are read by it (see :mod:`zoo.datasets.kinds`). Rows without a
    target are left out with a warning.

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
        missing: What to do with missing entries of features. ``refuse`` them; ``drop`` their rows; make a missing
            category a ``level`` of its own, ``(missing)``, and keep the missing numbers; or ``keep`` all, for methods
            that impute: a missing entry is encoded as 0, which is the mean of the observed ones, and where any is
            missing every batch has ``x_missing`` (bool, ``(rows, features)``). The target is never imputed.
        group: Column that says to which group (a clinic, a county) a row belongs, for methods that know groups. It is
            no feature: every batch has ``group`` (int64, ``(rows,)``), codes of the sorted labels of the training rows,
            which are ``coords["group"]``; ``extra["group"]`` is the column's name. Where rows are of other groups, the
            batch also has ``new_group`` (int64, ``(rows,)``), which counts those from 0 and is -1 for the other rows.
        sensitive: Column of which a representation shall tell nothing (sex, the hospital of a scan). It is no feature:
            every batch has ``s`` (int64, ``(rows,)``), codes of its sorted labels, which are ``coords["sensitive"]``;
            ``extra["num_groups"]`` counts them and ``extra["sensitive"]`` is the column's name. The target, a class,
            may be missing in some rows: ``y`` is 0 there, and every batch has ``y_missing`` (bool, ``(rows,)``). The
            split is stratified by target and group together.
        categorical: Columns that are names, whatever they look like: codes of digits, or where ``NA`` is a category.
        na: Words that mean a missing entry in every column, such as ``?``, beside the usual ones.
        day_first: Whether 03/04/2020 is in April, where the rows do not say.
        rare: Categories with fewer training rows than this (and at most 5% of them) are pooled as ``(other)``; 0 pools
            none.
        reference: Which category has no indicator: the ``frequent`` one, or the ``first`` of the alphabet.

    Returns:
        The data set.

    Raises:
        DataError: If the file cannot be read as its name says, a value is missing or not finite, the target does not
            suit the task, or too little is left to learn from.
        UnknownNameError: If the target, another column that is named, the task or the way with missing entries is
            unknown.
    """
    raw = open_table(source)
    _refuse_options(task=task, sensitive=sensitive, missing=missing, reference=reference)
    for unwanted in drop:
        _refuse_unknown(raw, unwanted, f"column '{unwanted}' to drop")
    raw = replace(raw, frame=raw.frame.drop(columns=list(drop)))
    for named in categorical:
        _refuse_unknown(raw, named, f"categorical column '{named}'")
    notes = _Notes()
    if task == "density":
        if target is not None or group is not None:
            given = f"target '{target}'" if target is not None else f"group '{group}'"
            raise DataError(f"the task density has features alone, but a {given} was given; leave it out")
        raw = raw if raw.images is None else replace(raw, frame=raw.frame.iloc[:, :0])
    else:
        target = _target_name(raw, target)
        _refuse_role(raw, group, "group", target)
        _refuse_role(raw, sensitive, "sensitive", target)
        task = _FAIR if sensitive is not None else task or raw.task or None
    how: dict[str, Any] = {
        "separator": raw.separator,
        "categorical": categorical,
        "na": na,
        "day_first": day_first,
        "note": notes.add,
    }
    labels = [name for name in (group, sensitive) if name is not None]
    labels += [target] if target is not None and task in ("classification", _FAIR) else []
    cells = classify(raw.frame, labels=labels, **how)
    if target is not None and task is None:
        task = _infer_task(cells[target])
        if task == "classification":
            cells |= classify(raw.frame[[target]], labels=[target], **how)
    raw, cells = _without_gaps(raw, cells, target, notes, missing=missing, group=group, sensitive=sensitive)
    roles = [name for name in (target, group, sensitive) if name is not None]
    features = {name: column for name, column in cells.items() if name not in roles}
    if raw.images is not None and features:
        raise DataError(f"images come with a target alone; remove the entries {', '.join(features)}")

    rows = len(raw.frame) if raw.images is None else len(raw.images)
    y = column = strata = None
    if target is not None:
        y, column = _encode_target(cells[target], str(task))
        strata = y if task == "classification" else None
    if sensitive is not None and y is not None:
        kinds, s = _sensitive_codes(cells[sensitive])
        strata = np.where(cells[str(target)].missing, -1, y) * len(kinds) + s
    if raw.parts is None:
        parts = partition(rows, validation=validation, test=test, seed=seed, labels=strata)
    else:
        parts = hold_out(raw.parts, validation=validation, seed=seed, labels=strata)
    train = parts == TRAIN
    if task == "regression" and y is not None and column is not None:
        y, column = _standardise_target(y, column, parts)

    dims: dict[str, tuple[str, ...]] = {"x": ("datum", "feature")} | ({} if y is None else {"y": ("datum",)})
    extra: dict[str, Any] = {}
    if raw.images is None:
        levels = Levels(rare=rare, reference=reference, missing=missing == "level")
        x, columns = encode_features(features, train, levels, notes.add)
        _note_collinear(x[train], columns, notes)
    else:
        x, columns = _encode_images(raw.images)
        extra["image_shape"] = tuple(int(n) for n in raw.images.shape[1:])
    gone = np.isnan(x)
    x[gone] = 0.0
    coords: dict[str, Any] = {"feature": tuple(f.name for f in columns)}
    if column is not None and column.categories is not None:
        extra["num_classes"] = len(column.categories)
        coords["class"] = column.categories
    exact = column is not None and y is not None and _needs_double(y, column)
    batches = {part: _batch(x, y, parts == part, exact=exact) for part in (TRAIN, VALIDATION, TEST)}
    if group is not None:
        members = cells[group].labels()
        coords["group"] = _group_names(group, members[train])
        extra["group"] = group
        dims["group"] = ("datum",)
        for part, batch in batches.items():
            batch |= _encode_groups(members[parts == part], coords["group"])[0]
    if sensitive is not None and y is not None and column is not None:
        unlabelled = cells[str(target)].missing
        coords["sensitive"] = kinds
        extra |= {"sensitive": sensitive, "num_groups": len(kinds)}
        dims["s"] = ("datum",)
        _refuse_unseen(sensitive, kinds, s[train], y[train & ~unlabelled], column)
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
    kinds_of = {name: [cells[name].kind, cells[name].format] for name in (group, sensitive) if name is not None}
    facts = {"kinds": kinds_of, "na": list(na), "notes": notes.said}
    return Dataset(
        name=name or raw.name,
        task=str(task),
        train=batches[TRAIN],
        validation=batches[VALIDATION] if len(batches[VALIDATION]["index"]) else None,
        test=batches[TEST] if len(batches[TEST]["index"]) else None,
        columns=columns,
        target=column,
        dims=dims,
        coords=coords,
        source=raw.source,
        extra=extra | {key: fact for key, fact in facts.items() if fact},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row of a new table that cannot be encoded.

    Args:
        row: Counted from 0.
        line: Of the text file, counted from 1; ``None`` for other tables.
        column: Whose value is at fault.
        reason: What is wrong with it.
    """

    row: int
    line: int | None
    column: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """New rows, as far as they can be encoded.

    Args:
        batch: The good rows; ``y`` is 0 where a row has no target that can be scored.
        rows: Which rows of the table these are, counted from 0.
        scorable: Which of them have a target.
        refused: The other rows.
    """

    batch: Batch
    rows: NDArray[np.int64]
    scorable: NDArray[np.bool_]
    refused: tuple[Refused, ...]


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
    rows = _NewRows.of(dataset, table if isinstance(table, Raw) else open_table(table))
    _raise_faults(rows.faults + rows.target_faults)
    return _new_batch(dataset, rows, np.ones(rows.size, dtype=bool))


def encode_rows(dataset: Dataset, table: Table | Raw) -> Encoded:
    """Encode the new rows that can be encoded, and say what is wrong with the others.

    Args:
        dataset: Data set made by :func:`read` or :func:`load` from a table or images.
        table: As for :func:`encode`.

    Returns:
        The rows. A target that is missing, or a class that training did not have, only keeps a row from being scored.

    Raises:
        DataError: If the data set is no table, no row can be encoded, or images have another shape or range;
            :class:`~zoo.errors.UnknownNameError` if a column is missing.
    """
    raw = table if isinstance(table, Raw) else open_table(table)
    rows = _NewRows.of(dataset, raw)
    reasons: dict[int, tuple[str, str]] = {}
    for fault in rows.faults:
        for row in np.flatnonzero(fault.rows):
            reasons.setdefault(int(row), (fault.column, fault.reason(int(row))))
    good = np.ones(rows.size, dtype=bool)
    good[list(reasons)] = False
    if not good.any():
        _raise_faults(rows.faults)
    unscored = np.zeros(rows.size, dtype=bool)
    for fault in rows.target_faults:
        unscored |= fault.rows
    batch = _new_batch(dataset, rows, good)
    scorable = ~unscored[good] if "y" in batch else np.zeros(int(good.sum()), dtype=bool)
    if "y" in batch and not scorable.any():
        batch = {key: value for key, value in batch.items() if key != "y"}
    return Encoded(
        batch=batch,
        rows=np.flatnonzero(good),
        scorable=scorable,
        refused=tuple(
            Refused(row=row, line=None if raw.lines is None else int(raw.lines[row]), column=column, reason=reason)
            for row, (column, reason) in sorted(reasons.items())
        ),
    )


# --------------------------------------------------------------------------------------------------- new rows
@dataclass(frozen=True, slots=True, kw_only=True)
class _Fault:
    """What is wrong with some rows of a column: missing, infinite, unreadable, unseen or far."""

    what: str
    column: str
    rows: NDArray[np.bool_]
    values: NDArray[Any]
    kind: str = "number"
    known: tuple[str, ...] = ()

    def reason(self, row: int) -> str:
        shown = f"'{self.values[row]}'"
        return {
            "missing": "the value is missing",
            "infinite": f"{shown} is infinite",
            "unreadable": f"{shown} is no {self.kind or 'number'}",
            "unseen": f"training did not have {shown}",
            "far": f"{shown} is too far from the values of training",
        }[self.what]


def _raise_faults(faults: Sequence[_Fault]) -> None:
    """Refuse a table for all faults of the first kind that it has."""
    for what in ("missing", "infinite"):
        counts = [(fault.column, int(fault.rows.sum())) for fault in faults if fault.what == what]
        if counts:
            shown = ", ".join(f"{name} ({count})" for name, count in counts[:20])
            total, adjective = sum(count for _, count in counts), "missing (NaN)" if what == "missing" else what
            more = ", ..." if len(counts) > 20 else ""
            raise DataError(
                f"values that are no numbers: {total} {adjective} in {shown}{more}; fill them or drop their rows"
            )
    for fault in faults:
        values = list(dict.fromkeys(str(v) for v in fault.values[fault.rows]))
        shown = ", ".join(map(repr, values[:5]))
        if fault.what == "unreadable":
            kind = {"date": "dates", "boolean": "true or false"}.get(fault.kind, "numbers")
            raise DataError(f"column '{fault.column}' holds text such as '{values[0]}'; {kind} were expected")
        if fault.what == "unseen":
            known = ", ".join(sorted(fault.known)[:20]) + (", ..." if len(fault.known) > 20 else "")
            raise DataError(f"column '{fault.column}' has values that training did not have: {shown}; known: {known}")
        raise DataError(f"column '{fault.column}' spans too wide a range for single precision: {shown}; rescale it")


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewRows:
    """Every row of a new table, as arrays, and what is wrong with which."""

    x: NDArray[np.float64]
    gone: NDArray[np.bool_]
    faults: list[_Fault]
    target_faults: list[_Fault]
    members: NDArray[Any] | None = None
    s: NDArray[np.int64] | None = None
    y: NDArray[Any] | None = None
    unlabelled: NDArray[np.bool_] | None = None

    @property
    def size(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, dataset: Dataset, raw: Raw) -> _NewRows:
        if not dataset.columns:
            raise DataError(f"data set '{dataset.name}' is not a table of features; give the batch itself")
        faults: list[_Fault] = []
        if dataset.extra.get("image_shape") is not None:
            x = _new_images(dataset, raw)
        else:
            x = _new_features(dataset, raw.frame, faults)
        gone = np.isnan(x)
        x[gone] = 0.0
        members = s = None
        if "group" in dataset.extra:
            cells = _new_labels(dataset, raw, str(dataset.extra["group"]), "which says the group of a row")
            _add_fault(faults, "missing", cells, cells.missing)
            members = cells.labels(tuple(map(str, dataset.coords["group"])))
        if "sensitive" in dataset.extra:
            cells = _new_labels(dataset, raw, str(dataset.extra["sensitive"]), "which the encoder takes")
            _add_fault(faults, "missing", cells, cells.missing)
            s = _codes(cells, tuple(map(str, dataset.coords["sensitive"])), faults)
        target_faults: list[_Fault] = []
        y, unlabelled = _new_target(dataset, raw, target_faults)
        return cls(
            x=x, gone=gone, faults=faults, target_faults=target_faults, members=members, s=s, y=y, unlabelled=unlabelled
        )


def _new_batch(dataset: Dataset, rows: _NewRows, good: NDArray[np.bool_]) -> dict[str, Tensor]:
    batch = {"x": _tensor(rows.x[good]), "index": torch.arange(int(good.sum()))}
    if "x_missing" in dataset.train:
        batch["x_missing"] = torch.as_tensor(rows.gone[good])
    if rows.members is not None:
        found, others = _encode_groups(rows.members[good], dataset.coords["group"])
        batch |= found
        if others:
            count = int((found["new_group"] >= 0).sum())
            shown = ", ".join(map(repr, others[:5])) + (", ..." if len(others) > 5 else "")
            warnings.warn(
                f"{count} of {len(found['group'])} rows belong to groups that training did not have: {shown}; what is "
                "special about these is drawn from the population of groups",
                stacklevel=3,
            )
    if rows.s is not None:
        batch["s"] = torch.as_tensor(rows.s[good])
    if rows.y is not None:
        y = rows.y[good]
        exact = y.dtype.kind == "i" or dataset.train["y"].dtype == torch.float64
        batch["y"] = torch.as_tensor(y) if exact else _tensor(y)
        if rows.unlabelled is not None:
            batch["y_missing"] = torch.as_tensor(rows.unlabelled[good])
    return batch


def _new_images(dataset: Dataset, raw: Raw) -> NDArray[Any]:
    shape = dataset.extra["image_shape"]
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
    return x


def _new_features(dataset: Dataset, frame: pd.DataFrame, faults: list[_Fault]) -> NDArray[np.float64]:
    plans: dict[str, list[Column]] = {}
    for column in dataset.columns:
        plans.setdefault(column.source or column.name, []).append(column)
    absent = [source for source in plans if source not in frame.columns]
    if absent:
        has = ", ".join(frame.columns[:20])
        raise UnknownNameError(f"these columns are missing: {', '.join(absent)}; the table has {has}")
    # Numbers may be missing where some were in training; categories only in columns that lacked some there too.
    lost = dataset.train.get("x_missing")
    lacking = dict(zip((c.name for c in dataset.columns), [] if lost is None else lost.any(0).tolist(), strict=False))
    values: dict[str, NDArray[np.float64]] = {}
    for source, columns in plans.items():
        plan = columns[0]
        known = (*(plan.categories or ()), *plan.pooled)
        kind = plan.kind or ("text" if plan.categories else "")
        cells = read_as(frame[source], kind, plan.format, na=dataset.extra.get("na", ()), known=known)
        may_lack = lost is not None and (plan.categories is None or lacking[plan.name])
        if not may_lack and MISSING_LEVEL not in known:
            _add_fault(faults, "missing", cells, cells.missing)
        _add_fault(faults, "unreadable", cells, cells.unreadable)
        if plan.categories is not None:
            unseen = ~cells.missing & ~np.isin(cells.labels(known).astype(str), known)
            _add_fault(faults, "unseen", cells, unseen, known)
        else:
            _add_fault(faults, "infinite", cells, np.isinf(cells.numbers))
        raw = raw_features(cells, plan)
        for column in columns:
            value = (raw[column.name] - column.mean) / column.scale
            with np.errstate(over="ignore"):
                far = np.isfinite(value) & ~np.isfinite(value.astype(np.float32))
            _add_fault(faults, "far", cells, far)
            values[column.name] = np.where(far | np.isinf(value), np.nan, value)
    return np.stack([values[column.name] for column in dataset.columns], axis=1)


def _add_fault(
    faults: list[_Fault], what: str, cells: Cells, rows: NDArray[np.bool_], known: tuple[str, ...] = ()
) -> None:
    if rows.any():
        faults.append(
            _Fault(what=what, column=cells.name, rows=rows, values=cells.values, kind=cells.kind, known=known)
        )


def _new_labels(dataset: Dataset, raw: Raw, column: str, why: str) -> Cells:
    if column not in raw.frame:
        role = "sensitive column" if column == dataset.extra.get("sensitive") else "column"
        near = _choices(column, list(raw.frame.columns))
        raise UnknownNameError(f"the {role} '{column}' is missing, {why}{near}")
    kind, format = dataset.extra.get("kinds", {}).get(column, ("", ""))
    known = dataset.coords["sensitive" if column == dataset.extra.get("sensitive") else "group"]
    return read_as(raw.frame[column], kind, format, na=dataset.extra.get("na", ()), known=tuple(map(str, known)))


def _new_target(
    dataset: Dataset, raw: Raw, faults: list[_Fault]
) -> tuple[NDArray[Any] | None, NDArray[np.bool_] | None]:
    """Return the target, if the table has it, and where it is missing if the data set allows that."""
    target = dataset.target
    if target is None or target.name not in raw.frame:
        return None, None
    known = target.categories or ()
    series = raw.frame[target.name]
    cells = read_as(series, target.kind, target.format, na=dataset.extra.get("na", ()), known=known)
    if cells.missing.all():
        return None, None
    unlabelled = cells.missing if "sensitive" in dataset.extra and known and cells.missing.any() else None
    if unlabelled is None:
        _add_fault(faults, "missing", cells, cells.missing)
    if known:
        return _codes(cells, known, faults), unlabelled
    numbers = cells.numbers
    unreadable = ~cells.missing & np.isnan(numbers)
    _add_fault(faults, "unreadable", replace(cells, kind="number"), unreadable)
    _add_fault(faults, "infinite", cells, np.isinf(numbers))
    return np.where(np.isfinite(numbers), (numbers - target.mean) / target.scale, 0.0), unlabelled


def _codes(cells: Cells, categories: tuple[str, ...], faults: list[_Fault]) -> NDArray[np.int64]:
    """Return codes of categories; 0 where there is none, and a fault where it is unknown."""
    known = {category: code for code, category in enumerate(categories)}
    codes = np.array([known.get(label, -1) for label in cells.labels(categories)], dtype=np.int64)
    _add_fault(faults, "unseen", cells, ~cells.missing & (codes < 0), categories)
    codes[codes < 0] = 0
    return codes


# ------------------------------------------------------------------------------------------------- the options
class _Notes:
    """What the user should know of how a table was read: a warning each, and all of them kept."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def add(self, text: str) -> None:
        self.said.append(text)
        warnings.warn(text, stacklevel=4)


def _refuse_options(*, task: str | None, sensitive: str | None, missing: str, reference: str) -> None:
    if task is not None and task not in _TASKS:
        raise UnknownNameError(f"task '{task}' cannot be read from a table{suggest(task, _TASKS)}")
    if task not in (None, _FAIR) and sensitive is not None:
        raise DataError(f"a sensitive column is for the task '{_FAIR}'; leave out the task '{task}' or the column")
    if task == _FAIR and sensitive is None:
        raise DataError(f"the task '{_FAIR}' needs a sensitive column; name it (sensitive='sex')")
    if missing not in _MISSING:
        raise UnknownNameError(f"missing is '{missing}'{suggest(missing, _MISSING)}")
    if reference not in _REFERENCES:
        raise UnknownNameError(f"reference is '{reference}'{suggest(reference, _REFERENCES)}")


def _refuse_unknown(raw: Raw, name: str, what: str) -> None:
    columns = list(raw.frame.columns)
    if name not in columns:
        raise UnknownNameError(f"{what} is unknown{_choices(name, columns)}")


def _refuse_role(raw: Raw, name: str | None, role: str, target: str) -> None:
    if name is None:
        return
    _refuse_unknown(raw, name, f"{role} column '{name}'")
    if name == target:
        as_role = "as the group" if role == "group" else "as sensitive"
        raise DataError(f"column '{name}' is the target; name another one {as_role}")


def _without_gaps(
    raw: Raw,
    cells: dict[str, Cells],
    target: str | None,
    notes: _Notes,
    *,
    missing: str,
    group: str | None,
    sensitive: str | None,
) -> tuple[Raw, dict[str, Cells]]:
    """Leave out rows without a target and, if so wanted, with missing entries; refuse what is missing otherwise."""
    rows = len(raw.frame) if raw.images is None else len(raw.images)
    stay = np.ones(rows, dtype=bool)
    if target is not None and cells[target].missing.any():
        if cells[target].missing.all():
            raise DataError(f"target '{target}' has no value in any row; label some")
        if sensitive is None:
            stay = ~cells[target].missing
            notes.add(f"{int((~stay).sum()):,} of {rows:,} rows have no target '{target}' and are left out")
    features = [name for name in cells if name not in (target, group, sensitive)]
    if missing != "refuse":
        empty = [name for name in features if cells[name].missing[stay].all()]
        if empty:
            notes.add(f"dropped, as they have no value in any row: {', '.join(empty)}")
            cells = {name: column for name, column in cells.items() if name not in empty}
            features = [name for name in features if name not in empty]
    labels = [name for name in (group, sensitive) if name is not None]
    gaps = {name: int(cells[name].missing[stay].sum()) for name in (*features, *labels)}
    if missing in ("keep", "level"):
        names = {name: count for name, count in gaps.items() if count and cells[name].kind == "text"}
        if missing == "keep" and any(name in features for name in names):
            notes.add(
                f"missing categories are kept in {_listed(names)}; for a method that imputes numbers only, make them a "
                "category of their own: missing='level'"
            )
        gaps |= dict.fromkeys(features, 0)
    gaps = {name: count for name, count in gaps.items() if count}
    if missing == "drop" and gaps:
        whole = ~np.any([cells[name].missing for name in gaps], axis=0)
        lost, before = int((stay & ~whole).sum()), int(stay.sum())
        stay &= whole
        if stay.sum() < 2:
            shown = ", ".join(f"{name} ({count})" for name, count in gaps.items())
            raise DataError(
                f"{int(stay.sum())} of {before} rows have no missing entry ({shown}); drop the columns that lack most"
            )
        notes.add(f"{lost:,} of {before:,} rows have missing entries in {_listed(gaps)} and are left out")
        gaps = {}
    infinite = {
        name: int(np.isinf(column.numbers[stay]).sum())
        for name, column in cells.items()
        if name not in labels and np.isinf(column.numbers[stay]).any()
    }
    parts = [
        f"{sum(counts.values())} {what} in {_listed(counts)}"
        for counts, what in ((gaps, "missing (NaN)"), (infinite, "infinite"))
        if counts
    ]
    if parts:
        hint = (
            " (missing='drop'), make missing categories one of their own (missing='level'), or keep them "
            "(missing='keep') for a method that imputes"
        )
        more = hint if any(name in features for name in gaps) else " (missing='drop')" if gaps else ""
        raise DataError(
            f"values that are no numbers: {'; '.join(parts)}; fill them or drop their rows or columns{more}"
        )
    if stay.all():
        return raw, cells
    raw = replace(
        raw,
        frame=raw.frame[stay].reset_index(drop=True),
        images=None if raw.images is None else raw.images[stay],
        parts=None if raw.parts is None else raw.parts[stay],
        lines=None if raw.lines is None else raw.lines[stay],
    )
    return raw, {name: column.take(stay) for name, column in cells.items()}


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in counts.items()]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")


def _note_collinear(x: NDArray[np.float64], columns: Sequence[Column], notes: _Notes) -> None:
    found = collinear(x, columns)
    if not found:
        return
    shown = "; ".join(f"{one} by {' and '.join(others)}" for one, *others in found[:5])
    shown += f"; and {len(found) - 5} more" if len(found) > 5 else ""
    names = [column.source or column.name for column in columns if column.name == found[0][0]]
    notes.add(
        f"exactly collinear features, each of which others determine: {shown}; their coefficients cannot be told apart "
        f"by the data, only by the prior: leave one out, such as drop={[names[0]]!r}"
    )


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


def _infer_task(cells: Cells) -> str:
    if cells.kind in ("text", "boolean"):
        return "classification"
    if cells.kind == "date":
        raise _no_number(cells)
    values = cells.numbers[~cells.missing]
    distinct = len(np.unique(values))
    few = distinct <= min(_MAX_INFERRED_CLASSES, max(2.0, math.sqrt(len(values))))
    return "classification" if few and (values == np.round(values)).all() else "regression"


def _no_number(cells: Cells) -> DataError:
    if cells.kind == "date":
        return DataError(
            f"target '{cells.name}' holds dates; turn them into numbers of days first, or take them as names: "
            "task='classification'"
        )
    shown = next(str(v) for v, gone in zip(cells.values, cells.missing, strict=True) if not gone)
    return DataError(f"target '{cells.name}' holds text such as '{shown}'; numbers were expected")


def _encode_target(cells: Cells, task: str) -> tuple[NDArray[Any], Column]:
    """Return numbers, or codes of classes (0 where the class is missing), and what they are."""
    if task == "regression":
        if cells.kind not in ("number", "boolean"):
            raise _no_number(cells)
        return cells.numbers, Column(name=cells.name, kind=cells.kind, format=cells.format)
    text = cells.labels()
    named = text[~cells.missing]
    labels = _sorted_labels(named)
    if len(labels) < 2:
        raise DataError(f"target '{cells.name}' has one class only ('{labels[0]}'); a classification needs two or more")
    if len(labels) > MAX_CATEGORIES or len(labels) > max(2, len(named) / 2):
        raise DataError(
            f"target '{cells.name}' has {len(labels)} distinct values in {len(named)} rows, too many for classes; "
            "use task='regression' for a number"
        )
    known = {label: code for code, label in enumerate(labels)}
    codes = np.array([known.get(label, 0) for label in text], dtype=np.int64)
    return codes, Column(name=cells.name, categories=labels, kind=cells.kind, format=cells.format)


def _sorted_labels(labels: NDArray[Any]) -> tuple[str, ...]:
    """Return the distinct labels, numbers by their value."""
    distinct = sorted(set(labels))
    return tuple(sorted(distinct, key=float) if all(map(_is_number, distinct)) else distinct)


def _standardise_target(y: NDArray[Any], column: Column, parts: NDArray[np.int8]) -> tuple[NDArray[Any], Column]:
    train = y[parts == TRAIN]
    if train.max() == train.min():
        raise DataError(
            f"target '{column.name}' has the one value {train[0]:g} in all training rows; there is nothing to learn"
        )
    standard, mean, scale = standardise(y, train, f"target '{column.name}'")
    return standard, replace(column, mean=mean, scale=scale)


# -------------------------------------------------------------------------------------- groups and sensitive columns
def _group_names(group: str, members: NDArray[Any]) -> tuple[str, ...]:
    labels = _sorted_labels(members)
    if len(labels) < 2 or len(labels) == len(members):
        found = "one value only" if len(labels) < 2 else f"a different value in each of its {len(members)} rows"
        raise DataError(f"column '{group}' has {found} in training; groups need two values or more, and rows in common")
    return labels


def _encode_groups(members: NDArray[Any], names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the entries of a batch, and the labels that training did not have."""
    known = {label: code for code, label in enumerate(names)}
    others = list(dict.fromkeys(label for label in members if label not in known))
    number = {label: code for code, label in enumerate(others)}
    found = {"group": torch.tensor([known.get(label, 0) for label in members], dtype=torch.int64)}
    if others:
        found["new_group"] = torch.tensor([number.get(label, -1) for label in members], dtype=torch.int64)
    return found, others


def _sensitive_codes(cells: Cells) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    text = cells.labels()
    labels = _sorted_labels(text)
    if not 2 <= len(labels) <= _MAX_SENSITIVE_GROUPS:
        found = f"the one value '{labels[0]}'" if len(labels) == 1 else f"{len(labels)} different values"
        raise DataError(
            f"sensitive column '{cells.name}' has {found}; 2 to {_MAX_SENSITIVE_GROUPS} groups are allowed: cut a "
            "number into ranges first"
        )
    known = {label: code for code, label in enumerate(labels)}
    return labels, np.array([known[label] for label in text], dtype=np.int64)


def _refuse_unseen(
    sensitive: str, names: Sequence[str], s: NDArray[np.int64], y: NDArray[np.int64], target: Column
) -> None:
    for what, labels, codes in ((f"column '{sensitive}'", names, s), (f"target '{target.name}'", target.categories, y)):
        absent = sorted(set(range(len(labels or ()))) - set(codes.tolist()))
        if absent:
            shown = ", ".join(repr((labels or ())[code]) for code in absent[:5])
            raise DataError(f"{what}: no training row has {shown}; give more such rows, or join or drop them")


# ------------------------------------------------------------------------------------------------------ values
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


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32))


def _needs_double(y: NDArray[Any], column: Column) -> bool:
    """Say whether a target is of counts that single precision would not give back, so wide is their range."""
    if column.categories is not None:
        return False
    counts = np.round(y * column.scale + column.mean)
    whole = np.abs(y * column.scale + column.mean - counts).max() < 1e-9 * max(1.0, np.abs(counts).max())
    back = y.astype(np.float32).astype(np.float64) * column.scale + column.mean
    return bool(whole and counts.min() >= 0 and np.abs(back - counts).max() > _WHOLE)


def _batch(x: NDArray[Any], y: NDArray[Any] | None, rows: NDArray[np.bool_], *, exact: bool) -> dict[str, Tensor]:
    batch = {"x": _tensor(x[rows])}
    if y is not None:
        batch["y"] = torch.as_tensor(y[rows]) if exact or y.dtype.kind == "i" else _tensor(y[rows])
    return batch | {"index": torch.arange(int(rows.sum()))}
