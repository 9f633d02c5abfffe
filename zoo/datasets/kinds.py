"""What the columns of a table hold: numbers, booleans, dates or text; decided once, and read alike in new rows.

A column of the training table is classified by all of its cells (:func:`classify`). What was decided, a kind and a
format, is stored with the data set, and cells of new rows are read by it (:func:`read_as`), whatever the other new rows
hold: ``007`` is the same category alone and among a thousand others.
"""

from __future__ import annotations

import datetime
import decimal
import math
import numbers
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zoo.datasets.formats import (
    AmbiguousDateError,
    NumberFormat,
    Spelling,
    date_format,
    parse_dates,
)
from zoo.errors import DataError

__all__ = ["MISSING_WORDS", "Cells", "classify", "read_as"]

# Words for a missing entry that many programs write. The first ones are never the name of a category; a category may
# be called like one of the second, which mean a missing entry where a column of numbers or dates has them too.
_NEVER_A_CATEGORY = (
    "NaN nan -NaN -nan <NA> NaT #N/A #NA #VALUE! #DIV/0! #REF! #NAME? #NUM! #NULL! 1.#IND -1.#IND 1.#QNAN -1.#QNAN"
)
_MAYBE_A_CATEGORY = "NA N/A n/a None NULL null"
MISSING_WORDS = frozenset([*_NEVER_A_CATEGORY.split(), *_MAYBE_A_CATEGORY.split(), "#N/A N/A"])
_MAYBE = frozenset(_MAYBE_A_CATEGORY.split())
_TRUTH = {"true": 1.0, "false": 0.0}
_DAY = datetime.timedelta(days=1) / datetime.timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A column that has been read.

    Args:
        name: Of the column.
        kind: ``number``, ``boolean``, ``date`` or ``text``; empty in data sets that were stored without kinds.
        format: How text spells a number (the example ``1.234,5``) or a date (``%d/%m/%Y``); empty: the usual way.
        values: As they arrived, without blanks around text.
        numbers: Of a number, boolean (0, 1) or date (days since 1970); NaN where missing or unreadable.
        missing: Cells without a value.
        unreadable: Cells with a value that is not of the kind.
    """

    name: str
    kind: str
    format: str
    values: NDArray[Any]
    numbers: NDArray[np.float64]
    missing: NDArray[np.bool_]
    unreadable: NDArray[np.bool_]

    def labels(self, known: Collection[str] = ()) -> NDArray[Any]:
        """Return the cells as names of categories.

        Args:
            known: Categories of the training rows: a number or date of another type than text is named as it is there.

        Returns:
            Texts; a missing cell has none (``""``).
        """
        return _labels(self, known)

    def take(self, rows: NDArray[np.bool_]) -> Cells:
        """Return some rows of the column.

        Args:
            rows: Which ones.

        Returns:
            The column.
        """
        return replace(
            self,
            values=self.values[rows],
            numbers=self.numbers[rows],
            missing=self.missing[rows],
            unreadable=self.unreadable[rows],
        )


def classify(
    frame: pd.DataFrame,
    *,
    separator: str = "",
    labels: Collection[str] = (),
    categorical: Collection[str] = (),
    na: Collection[str] = (),
    day_first: bool | None = None,
    note: Callable[[str], None],
) -> dict[str, Cells]:
    """Decide what each column of a training table holds.

    Args:
        frame: The columns, of text if they come from a text file.
        separator: What stands between the cells of a text file; empty for typed columns.
        labels: Columns whose values are names (of a group, a class): numbers with leading zeros stay as they are.
        categorical: Columns that are text whatever they look like, with every word a category.
        na: Words that mean a missing entry in every column.
        day_first: Whether 03/04/2020 is in April; ``None`` decides by the other rows, or refuses.
        note: Takes what the user should know.

    Returns:
        The columns in order.

    Raises:
        DataError: If a column holds what no table can use, or dates that can be read in two ways.
    """
    strings = {name: _Strings.of(frame[name], na) for name in frame.columns if _is_textual(frame[name])}
    free = {name: column for name, column in strings.items() if name not in categorical}
    marks = [column.spelling.marks for column in free.values() if column.spelling]
    decisive = {next(iter(m)) for m in marks if len(m) == 1}
    mark = decisive.pop() if len(decisive) == 1 else ""
    order = {
        f.startswith("%d")
        for column in free.values()
        if column.spelling is None and (f := _date_or_none(column.known, day_first)) and f[:2] in ("%d", "%m")
    }
    day_first = next(iter(order)) if day_first is None and len(order) == 1 else day_first
    found: dict[str, Cells] = {}
    odd: list[str] = []
    for name in frame.columns:
        if name not in strings:
            found[name] = _classify_typed(frame[name], as_text=name in categorical, is_label=name in labels)
        elif name not in categorical:
            cells = _classify_strings(
                strings[name], separator=separator, mark=mark, is_label=name in labels, day_first=day_first
            )
            if cells is not None:
                found[name] = cells
                spelling = strings[name].spelling
                if cells.format and spelling is not None and spelling.values is None:
                    odd.append(f"'{name}' ({cells.format})")
    if odd:
        note(f"numbers are read by the way they are written: {', '.join(odd[:10])}{', ...' if len(odd) > 10 else ''}")
    _note_dates([cells for name, cells in found.items() if name in strings and cells.kind == "date"], note)
    used = {w for name, cells in found.items() if name in strings for w in strings[name].among(MISSING_WORDS)}
    for name, column in strings.items():
        if name in found:
            continue
        gone = set() if name in categorical or not separator else (MISSING_WORDS - _MAYBE) | used
        kept = [] if name in categorical or not separator else column.among(_MAYBE - used)
        if kept:
            shown = " and ".join(f"'{word}' ({column.count(word)} rows)" for word in kept)
            note(f"column '{name}': {shown} is a category; if it means a missing entry, say so: na={[kept[0]]!r}")
        found[name] = column.as_text(gone)
        if name not in categorical and name not in labels and separator and column.are_codes(gone):
            note(
                f"column '{name}' is written with leading zeros, such as '{column.words(gone)[0]}', and read as "
                "categories"
            )
    return {name: found[name] for name in frame.columns}


def read_as(
    series: pd.Series, kind: str, format: str = "", *, na: Collection[str] = (), known: Collection[str] = ()
) -> Cells:
    """Read a column of new rows as the training rows were.

    Args:
        series: The column, typed or as text.
        kind: Of the training column; empty: a number, boolean or text, by what the cell is.
        format: Likewise.
        na: Words that mean a missing entry.
        known: Categories of the training rows, which are never words for a missing entry.

    Returns:
        The column; what cannot be read is marked.

    Raises:
        DataError: If the cells are of a type that no table can use.
    """
    values = _plain_values(series)
    words = (MISSING_WORDS | set(na)) - set(known)
    missing = np.asarray(pd.isna(values), dtype=bool)
    textual = _is_textual(series)
    if textual:
        values = np.array([v.strip() if isinstance(v, str) else v for v in values], dtype=object)
        missing |= np.array([isinstance(v, str) and (not v or v in words) for v in values], dtype=bool)
    numeric = np.full(len(values), np.nan)
    there = np.flatnonzero(~missing)
    if kind != "text" and len(there):
        numeric[there] = _read_numbers(values[there], kind, format)
    unreadable = ~missing & np.isnan(numeric) & (kind in ("number", "boolean", "date"))
    return Cells(
        name=str(series.name), kind=kind, format=format, values=values, numbers=numeric, missing=missing,
        unreadable=unreadable,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- typed columns
def _is_textual(series: pd.Series) -> bool:
    if isinstance(series.dtype, pd.CategoricalDtype):
        return False
    if pd.api.types.is_object_dtype(series) or pd.api.types.is_string_dtype(series):
        values = series.to_numpy(dtype=object)
        kinds = set(map(type, values))
        if any(not issubclass(kind, str) for kind in kinds):
            kinds = set(map(type, values[~series.isna().to_numpy()]))
        return bool(kinds) and all(issubclass(kind, str) for kind in kinds)
    return False


def _plain_values(series: pd.Series) -> NDArray[Any]:
    """Return the values as Python's and NumPy's own; refuse what no column of a table may hold."""
    if pd.api.types.is_complex_dtype(series):
        raise DataError(f"column '{series.name}' holds complex numbers; give real and imaginary parts as two columns")
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biufM":
        return np.asarray(series.to_numpy())
    values = series.to_numpy(dtype=object)
    missing = np.asarray(pd.isna(values), dtype=bool) if values.ndim == 1 else np.zeros(len(values), dtype=bool)
    for kind in {type(v) for v in values[~missing]}:
        if issubclass(kind, complex | np.complexfloating):
            raise DataError(
                f"column '{series.name}' holds complex numbers; give real and imaginary parts as two columns"
            )
        if issubclass(kind, bytes | Mapping | Sequence | set | frozenset | np.ndarray) and not issubclass(kind, str):
            raise DataError(
                f"column '{series.name}' holds values of the type {kind.__name__}; one number, text, date or boolean "
                "per row was expected: take it apart, or drop it"
            )
    return np.asarray(values)


def _classify_typed(series: pd.Series, *, as_text: bool, is_label: bool) -> Cells:
    values = _plain_values(series)
    missing = np.asarray(pd.isna(values), dtype=bool)
    if pd.api.types.is_string_dtype(series) or pd.api.types.is_object_dtype(series):
        values = np.array([v.strip() if isinstance(v, str) else v for v in values], dtype=object)
        missing |= np.array([isinstance(v, str) and not v for v in values], dtype=bool)
    there = values[~missing]
    kinds = {type(v) for v in there} if values.dtype.kind == "O" else {values.dtype.type}

    def all_of(*wanted: type) -> bool:
        return all(issubclass(kind, wanted) for kind in kinds)

    kind = "text"
    if as_text or isinstance(series.dtype, pd.CategoricalDtype | pd.IntervalDtype):
        pass
    elif all_of(bool, np.bool_):
        kind = "boolean" if kinds else "number"
    elif all_of(numbers.Real, decimal.Decimal, np.number, np.timedelta64, datetime.timedelta) and not any(
        issubclass(k, bool | np.bool_) for k in kinds
    ):
        kind = "number"
    elif all_of(datetime.date, np.datetime64) or (all_of(pd.Period) and not is_label):
        kind = "date"
    numeric = np.full(len(values), np.nan)
    if kind != "text" and len(there):
        numeric[~missing] = _read_numbers(there, kind, "")
    return Cells(
        name=str(series.name), kind=kind, format="", values=values, numbers=numeric, missing=missing,
        unreadable=np.zeros(len(values), dtype=bool),
    )  # fmt: skip


def _read_numbers(values: NDArray[Any], kind: str, format: str) -> NDArray[np.float64]:
    """Return numbers, 0 and 1, or days since 1970; NaN for what is none."""
    if values.dtype.kind in "biuf":
        found = values.astype(np.float64)
        if kind == "boolean":
            found[(found != 0) & (found != 1)] = np.nan
        return np.full(len(values), np.nan) if kind == "date" else found
    if values.dtype.kind == "M":
        return _days(values) if kind == "date" else np.full(len(values), np.nan)
    found = np.full(len(values), np.nan)
    are_text = np.array([isinstance(v, str) for v in values], dtype=bool)
    if are_text.any():
        codes, words = pd.factorize(values[are_text])
        found[are_text] = _read_words([str(w) for w in words], kind, format)[codes]
    for k in np.flatnonzero(~are_text):
        found[k] = _read_typed(values[k], kind)
    return found


def _read_words(words: list[str], kind: str, format: str) -> NDArray[np.float64]:
    if kind == "date":
        found = parse_dates(words, format or "ISO8601")
        again = np.isnan(found)
        if again.any() and format not in ("", "ISO8601"):  # the international way is never ambiguous
            found[again] = parse_dates([w for w, a in zip(words, again, strict=True) if a], "ISO8601")
        return found
    truth = np.array([_TRUTH.get(word.lower(), np.nan) for word in words])
    if kind == "boolean":
        number = NumberFormat.from_text("").parse(words)
        return np.where((number == 0) | (number == 1), number, truth)
    number = NumberFormat.from_text(format).parse(words)
    return number if kind == "number" else np.where(np.isnan(number), truth, number)


def _read_typed(value: Any, kind: str) -> float:
    if isinstance(value, datetime.date | np.datetime64 | pd.Period):
        stamp = value.to_timestamp() if isinstance(value, pd.Period) else pd.Timestamp(value)
        return float(_days(np.array([stamp], dtype=object))[0]) if kind == "date" else math.nan
    if isinstance(value, datetime.timedelta | np.timedelta64):
        return pd.Timedelta(value) / pd.Timedelta(days=1) if kind in ("number", "") else math.nan
    if kind == "date" or not isinstance(value, numbers.Real | decimal.Decimal | np.number | np.bool_):
        return math.nan
    number = float(value)
    return number if kind != "boolean" or number in (0.0, 1.0) else math.nan


def _days(values: Any) -> NDArray[np.float64]:
    stamps = pd.to_datetime(pd.Series(values), utc=True, errors="coerce").dt.tz_localize(None)
    return np.asarray(stamps.to_numpy("datetime64[us]").astype(np.int64) / _DAY, dtype=np.float64)


# ------------------------------------------------------------------------------------------------------- text
@dataclass(frozen=True, slots=True, kw_only=True)
class _Strings:
    """A column of text: the distinct words, and which of them each row has (-1: none)."""

    name: str
    codes: NDArray[np.int64]
    distinct: list[str]
    known: list[str]  # without words for a missing entry
    spelling: Spelling | None

    @classmethod
    def of(cls, series: pd.Series, na: Collection[str]) -> _Strings:
        cells = [None if not isinstance(v, str) else v.strip() or None for v in series.to_numpy(dtype=object)]
        if na:
            cells = [None if cell in na else cell for cell in cells]
        codes, distinct = pd.factorize(np.array(cells, dtype=object))
        words = [str(word) for word in distinct]
        known = [word for word in words if word not in MISSING_WORDS]
        return cls(name=str(series.name), codes=codes, distinct=words, known=known, spelling=Spelling.of(known))

    def words(self, without: Collection[str]) -> list[str]:
        return [word for word in self.distinct if word not in without]

    def among(self, some: Collection[str]) -> list[str]:
        return [word for word in self.distinct if word in some]

    def count(self, word: str) -> int:
        return int((self.codes == self.distinct.index(word)).sum())

    def are_codes(self, without: Collection[str]) -> bool:
        """Say whether all words are whole numbers of one width, some with leading zeros, and occur again and again."""
        words = self.words(without)
        whole = bool(words) and all(re.fullmatch(r"[0-9]+", word) for word in words)
        padded = any(word[0] == "0" and len(word) > 1 for word in words)
        return whole and padded and len({len(w) for w in words}) == 1 and 2 * len(words) <= len(self.codes)

    def cells(self, kind: str, format: str = "", numbers_: NDArray[np.float64] | None = None) -> Cells:
        """Return the column as numbers of its known words; none where all cells are missing."""
        return self._cells(kind, format, np.array([w in MISSING_WORDS for w in self.distinct], dtype=bool), numbers_)

    def as_text(self, gone: Collection[str]) -> Cells:
        return self._cells("text", "", np.array([word in gone for word in self.distinct], dtype=bool), None)

    def _cells(self, kind: str, format: str, lost: NDArray[np.bool_], numbers_: NDArray[np.float64] | None) -> Cells:
        numeric = np.full(len(self.distinct) + 1, np.nan)
        if numbers_ is not None:
            numeric[:-1][~lost] = numbers_
        values = np.array([*self.distinct, ""], dtype=object)[self.codes]
        return Cells(
            name=self.name, kind=kind, format=format, values=values, numbers=numeric[self.codes],
            missing=np.append(lost, True)[self.codes], unreadable=np.zeros(len(values), dtype=bool),
        )  # fmt: skip


def _classify_strings(
    column: _Strings, *, separator: str, mark: str, is_label: bool, day_first: bool | None
) -> Cells | None:
    """Return a column of text as numbers, booleans or dates, or ``None`` where it is text indeed."""
    words, spelling = column.known, column.spelling
    if not words:
        return column.cells("number")
    if all(word.lower() in _TRUTH for word in words):
        # Strings of a data frame are names; in a file everything is a string.
        truth = np.array([_TRUTH[word.lower()] for word in words])
        return column.cells("boolean", "", truth) if separator else None
    if spelling is not None:
        plain = spelling.values is not None
        if plain and (not separator or column.are_codes(MISSING_WORDS)):
            return None
        if is_label and (not plain or any(re.fullmatch(r"[-+]?0[0-9]+", word) for word in words)):
            return None
        chosen = spelling.format(words, name=column.name, mark=mark, separator=separator)
        usual = spelling.values if chosen == NumberFormat() else None
        return column.cells("number", chosen.to_text(), chosen.parse(words) if usual is None else usual)
    if is_label:
        return None
    try:
        format = date_format(words, day_first)
    except AmbiguousDateError as error:
        raise DataError(
            f"column '{column.name}' holds dates such as '{error.word}' whose day and month cannot be told apart in "
            f"any row; say day_first=True or day_first=False, write 2020-04-03, or drop={[column.name]!r}"
        ) from error
    return None if format is None else column.cells("date", format, parse_dates(words, format))


def _date_or_none(words: list[str], day_first: bool | None) -> str | None:
    try:
        return date_format(words, day_first)
    except AmbiguousDateError:
        return None


def _note_dates(dates: list[Cells], note: Callable[[str], None]) -> None:
    if dates:
        shown = ", ".join(f"'{cells.name}' ({cells.format})" for cells in dates[:10])
        note(f"dates are read as numbers of days: {shown}")


# ------------------------------------------------------------------------------------------------------ labels
def _labels(cells: Cells, known: Collection[str]) -> NDArray[Any]:
    result = np.full(len(cells.values), "", dtype=object)
    there = np.flatnonzero(~cells.missing)
    if not len(there):
        return result
    values = cells.values[there]
    if values.dtype.kind in "biufM":
        distinct, codes = np.unique(values, return_inverse=True)
    else:
        # By type too: 1, 1.0 and True are equal, and their names need not be.
        codes, keys = pd.factorize(np.array([f"{type(v).__name__} {v!r}" for v in values], dtype=object))
        first = np.unique(codes, return_index=True)[1]
        distinct = values[first]
        del keys
    by_value = _by_value(known) if known else {}
    names = np.array([_label(v, cells.kind, cells.format, known, by_value) for v in distinct], dtype=object)
    result[there] = names[codes]
    return result


def _by_value(known: Collection[str]) -> dict[float, str]:
    """Return the category of a number, where one category alone has its value: ``007`` for 7."""
    found: dict[float, list[str]] = {}
    for name in known:
        try:
            found.setdefault(float(name), []).append(name)
        except ValueError:
            continue
    return {value: names[0] for value, names in found.items() if len(names) == 1}


def _label(value: Any, kind: str, format: str, known: Collection[str], by_value: Mapping[float, str]) -> str:
    if isinstance(value, str):
        if value in known or kind == "text":
            return value
        if value.lower() in _TRUTH and kind != "number":
            return str(bool(_TRUTH[value.lower()]))
        number = NumberFormat.from_text(format).exact(value)
        if number is None:
            return value
        return str(bool(number)) if kind == "boolean" and number in (0, 1) else _number_label(number)
    if isinstance(value, bool | np.bool_):
        name = str(bool(value))
        return next((k for k in known if k.lower() == name.lower()), name) if name not in known else name
    if isinstance(value, datetime.date | np.datetime64):
        stamp = pd.Timestamp(value)
        return str(stamp.date()) if stamp == stamp.normalize() else stamp.isoformat(" ")
    if isinstance(value, numbers.Real | decimal.Decimal | np.number):
        if kind == "boolean" and value in (0, 1):
            return str(bool(value))
        name = _number_label(value)
        return name if name in known or kind == "number" else by_value.get(float(value), name)
    return " ".join(str(value).split())


def _number_label(value: Any) -> str:
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, decimal.Decimal):
        return str(int(value)) if value.is_finite() and value == value.to_integral_value() else str(float(value))
    number = float(value)
    return str(int(number)) if number.is_integer() else str(number)
