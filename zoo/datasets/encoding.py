"""Columns of a table as features: indicators of categories, standardisation, exact collinearity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zoo.datasets.kinds import Cells
from zoo.errors import DataError
from zoo.types import Column

__all__ = ["MAX_CATEGORIES", "MISSING_LEVEL", "Levels", "collinear", "encode_features", "moments", "raw_features",
           "standardise"]  # fmt: skip

MAX_CATEGORIES = 1_000
MISSING_LEVEL = "(missing)"
_POOL = "(other)"
_FEW_NUMBERS = 20
_RARE_SHARE = 0.05
_MAX_RANK = 1_000
_MAX_WORK = 2e10
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """How the categories of a column become indicators.

    Args:
        rare: Categories with fewer training rows (and at most 5% of them) are pooled; 0 pools none.
        reference: Which category has no indicator: the ``frequent`` one, or the ``first`` of the alphabet.
        missing: Whether a missing entry is a category of its own.
    """

    rare: int = 5
    reference: str = "frequent"
    missing: bool = False


def encode_features(
    cells: Mapping[str, Cells], train: NDArray[np.bool_], levels: Levels, note: Callable[[str], None]
) -> tuple[NDArray[np.float64], tuple[Column, ...]]:
    """Turn the columns of a training table into standardised features.

    Args:
        cells: The columns.
        train: Rows whose statistics count.
        levels: How categories are encoded.
        note: Takes what the user should know.

    Returns:
        Features, ``(rows, features)``, NaN where missing, and what they are.

    Raises:
        DataError: If nothing varies, or a column has too many categories or too wide a range.
    """
    values: list[NDArray[np.float64]] = []
    columns: list[Column] = []
    constant: list[str] = []
    rounded: list[str] = []
    for name, column in cells.items():
        if levels.missing and column.kind == "boolean" and column.missing.any():
            column = replace(column, kind="text")  # three categories: true, false, missing
        plan = _plan(column, train, levels, note)
        raw = raw_features(column, plan)
        if not raw:
            constant.append(name)
        for feature, value in raw.items():
            there = ~np.isnan(value)
            seen = value[train & there]
            if not seen.size or seen.max() == seen.min():
                constant.append(feature)
                continue
            standard = np.full(len(value), np.nan)
            standard[there], mean, scale = standardise(value[there], seen, f"column '{name}'")
            values.append(standard)
            columns.append(Column(
                name=feature, mean=mean, scale=scale, categories=plan.categories, source=name, kind=plan.kind,
                format=plan.format, unit=plan.unit, pooled=plan.pooled,
            ))  # fmt: skip
        if plan.kind == "number" and np.nanmax(np.abs(column.numbers), initial=0.0) > 2**53:
            rounded.append(name)
    if rounded:
        note(
            f"whole numbers beyond 2^53 are rounded, as numbers have 16 digits: {', '.join(rounded)}; drop identifiers"
        )
    if constant:
        note(f"dropped, as they have one value in all training rows: {', '.join(constant)}")
    if not columns:
        raise DataError("no feature is left besides the target; give at least one column that varies")
    seen_names: set[str] = set()
    for described in columns:
        if described.name in seen_names:
            raise DataError(f"two features are named '{described.name}'; rename the column '{described.source}'")
        seen_names.add(described.name)
    return np.stack(values, axis=1), tuple(columns)


def raw_features(cells: Cells, plan: Column) -> dict[str, NDArray[np.float64]]:
    """Return the features of a column before they are standardised.

    Args:
        cells: The column.
        plan: Any feature that the training table made of it: kind, categories and origin of days.

    Returns:
        Values by the features' names; a missing entry is NaN in every feature of its column, unless it is a category.
        An unknown category is 0 in all of them.
    """
    if plan.categories is None:
        return {cells.name: cells.numbers - _origin(plan.unit)}
    text = cells.labels(_known(plan))
    if MISSING_LEVEL in plan.categories:
        text[cells.missing] = MISSING_LEVEL
        gone = np.zeros(len(text), dtype=bool)
    else:
        gone = cells.missing
    if plan.pooled:
        text[np.isin(text, plan.pooled)] = plan.categories[-1]
    return {
        f"{cells.name}={category}": np.where(gone, np.nan, (text == category).astype(np.float64))
        for category in plan.categories[1:]
    }


def _known(plan: Column) -> tuple[str, ...]:
    return (*(plan.categories or ()), *plan.pooled)


def _origin(unit: str) -> float:
    if not unit.startswith("days since "):
        return 0.0
    return float(np.datetime64(unit.removeprefix("days since ")).astype("datetime64[D]").astype(np.int64))


def _plan(cells: Cells, train: NDArray[np.bool_], levels: Levels, note: Callable[[str], None]) -> Column:
    """Return what one column becomes: how it is read, and its categories with the reference first."""
    if cells.kind == "date":
        days = cells.numbers[train & ~cells.missing]
        first = int(days.min() // 1) if days.size else 0
        return Column(name=cells.name, kind="date", format=cells.format, unit=f"days since {np.datetime64(first, 'D')}")
    if cells.kind != "text":
        return Column(name=cells.name, kind=cells.kind, format=cells.format)
    text = cells.labels()
    names = _categories(cells, text)
    inside = text[train & ~cells.missing]
    counts = dict.fromkeys(names, 0)
    for name, count in zip(*np.unique(inside.astype(str), return_counts=True), strict=True):
        counts[str(name)] = int(count)
    pooled: tuple[str, ...] = ()
    few = min(levels.rare - 1, int(_RARE_SHARE * len(inside)))
    if levels.rare > 0 and len(names) > 2:
        rare = tuple(name for name in names if counts[name] <= few)
        pooled = rare if len(rare) < len(names) - 1 else ()
    kept = [name for name in names if name not in set(pooled)]
    base = (
        max(kept, key=lambda name: (counts[name], -kept.index(name)))
        if kept and levels.reference == "frequent"
        else None
    )
    if base is not None:
        kept = [base, *(name for name in kept if name != base)]
    if levels.missing and cells.missing.any():
        kept.append(MISSING_LEVEL)
    if pooled:
        shown = ", ".join(f"'{name}' ({counts[name]})" for name in pooled[:10]) + (", ..." if len(pooled) > 10 else "")
        pool = _POOL
        while pool in counts:
            pool = f"({pool})"
        kept.append(pool)
        note(f"column '{cells.name}': categories of few training rows are pooled as '{pool}': {shown}")
    return Column(name=cells.name, kind="text", format=cells.format, categories=tuple(kept), pooled=pooled)


def _categories(cells: Cells, text: NDArray[np.object_]) -> list[str]:
    name, text = cells.name, text[~cells.missing]
    labels = sorted(set(text))
    numeric = np.array([_is_number(label.replace(",", ".")) for label in labels])
    if numeric.sum() > _FEW_NUMBERS and numeric.mean() >= 0.9 and not _padded(labels):
        odd = [label for label in labels if not _is_number(label)]
        raise DataError(
            f"column '{name}' holds numbers as text"
            + (f", some of which cannot be read: {', '.join(map(repr, odd[:5]))}" if odd else "")
            + (f"; if that means a missing entry, say so: na={[odd[0]]!r}" if odd else "")
            + f"; correct those values, take them as names (categorical={[name]!r}), or drop the column"
        )
    if len(labels) == len(text) > _FEW_NUMBERS:
        raise DataError(
            f"column '{name}' has a different text in each of its {len(text)} rows, from which nothing can be learnt; "
            f"leave it out: drop={[name]!r}"
        )
    if len(labels) > MAX_CATEGORIES:
        raise DataError(
            f"column '{name}' has {len(labels)} distinct texts; at most {MAX_CATEGORIES} are allowed; drop it: "
            f"drop={[name]!r}"
        )
    return labels


def _padded(labels: Sequence[str]) -> bool:
    return all(label.isdigit() for label in labels) and len({len(label) for label in labels}) == 1


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------------ values
def standardise(
    values: NDArray[np.float64], train: NDArray[np.float64], what: str
) -> tuple[NDArray[np.float64], float, float]:
    """Subtract the mean of the training rows, and divide by their standard deviation.

    Args:
        values: All rows.
        train: Training rows.
        what: Name of the values in an error.

    Returns:
        Standardised values, mean and standard deviation.

    Raises:
        DataError: If the range is too wide or too narrow for single precision.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean, scale = moments(train)
        standard = (values - mean) / scale
        representable = math.isfinite(scale) and scale > 0 and np.isfinite(standard.astype(np.float32)).all()
    if not representable:
        raise DataError(f"{what} spans too wide or too narrow a range, up to {np.abs(values).max():g}; rescale it")
    return standard, mean, scale


def moments(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation by exactly rounded sums, so that they are equal on every processor.

    Args:
        values: Numbers.

    Returns:
        Both; infinite where they overflow.
    """
    try:
        mean = math.fsum(values.tolist()) / len(values)
        return mean, math.sqrt(math.fsum(((values - mean) ** 2).tolist()) / len(values))
    except OverflowError:
        return math.nan, math.inf


# ------------------------------------------------------------------------------------------------ collinearity
def collinear(x: NDArray[np.float64], columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """Find features that are exact linear combinations of others, up to a constant.

    Pairs are found among any number of features, by the hash of their values; combinations of three and more among up
    to 1,000 features with more rows than features, by a QR decomposition whose finds are checked on all rows.

    Args:
        x: Standardised features, ``(rows, features)``; NaN where missing.
        columns: What they are.

    Returns:
        For each feature that the ones before it determine, its name followed by theirs.
    """
    complete = x[~np.isnan(x).any(1)]
    rows, num = complete.shape
    if rows < 3:
        return []
    found: list[tuple[int, list[int]]] = []
    twins: set[int] = set()
    first: dict[bytes, int] = {}
    for j in range(num):
        sign = np.sign(complete[np.argmax(np.abs(complete[:, j]) > _TOLERANCE), j])
        key = (np.round(sign * complete[:, j], 8) + 0.0).tobytes()
        other = first.setdefault(key, j)
        if other != j:
            twins.add(j)
            found.append((j, [other]))
    rest = [j for j in range(num) if j not in twins]
    if 1 < len(rest) <= min(_MAX_RANK, rows - 2):
        found += _combinations(complete, rest)
    return [tuple(columns[k].name for k in (j, *others)) for j, others in sorted(found)]


def _combinations(x: NDArray[np.float64], rest: list[int]) -> list[tuple[int, list[int]]]:
    some = x if len(x) * len(rest) ** 2 < _MAX_WORK else x[np.linspace(0, len(x) - 1, 2 * len(rest) + 50).astype(int)]
    some = some[:, rest] - some[:, rest].mean(0)
    size = np.linalg.norm(some, axis=0)
    some = some / np.where(size > 0, size, 1.0)
    corner = np.abs(np.diag(np.linalg.qr(some, mode="r")))
    basis, suspects = np.flatnonzero(corner >= 1e-6), np.flatnonzero(corner < 1e-6)
    if not len(suspects) or not len(basis):
        return []
    q, r = np.linalg.qr(some[:, basis])
    weights = np.linalg.solve(r, q.T @ some[:, suspects])
    # Weights are of columns of length one; what was found in some rows must hold in all.
    weights *= np.where(size[suspects] > 0, size[suspects], 1.0) / size[basis][:, None]
    before, after = np.array(rest)[basis], np.array(rest)[suspects]
    left = np.abs(x[:, after] - x[:, after].mean(0) - (x[:, before] - x[:, before].mean(0)) @ weights).max(0)
    return [
        (int(j), [int(k) for k in before[np.abs(weights[:, i]) > 1e-6]]) for i, j in enumerate(after) if left[i] < 1e-7
    ]
