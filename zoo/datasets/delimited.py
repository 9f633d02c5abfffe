"""Text files of separated values: encoding, separator, header and records, every cell kept as it is written."""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zoo.datasets.compressed import gunzip
from zoo.errors import DataError

__all__ = ["Delimited", "read_delimited", "refuse_duplicates"]

_SEPARATORS = ",;\t|"
_SAMPLE = 200  # records by which the separator is found
_TYPED = re.compile(
    r"\s*(?:[-+]?[0-9][0-9 .,'\u00a0\u202f]*(?:[eE][-+]?[0-9]+)?%?|[-+]?\.[0-9]+|true|false|[0-9]{1,4}[-/.][0-9]{1,2}"
    r"[-/.][0-9]{1,4}.*|)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delimited:
    """What a text file holds.

    Args:
        frame: Columns of text, as it is written between the separators.
        lines: Line of the file on which each row begins, counted from 1.
        separator: What stands between two cells.
    """

    frame: pd.DataFrame
    lines: NDArray[np.int64]
    separator: str


def read_delimited(path: Path) -> Delimited:
    """Read a file of separated values as text.

    Commas, semicolons, tabs, bars and blanks are told apart by which of them gives all records the same number of
    cells, with quotes (which may hold separators and line breaks) respected. UTF-8 and UTF-16 with a mark are read.
    Left out are blank lines, lines of comments (``#``) before the header, separators at the end of every line, a first
    line ``sep=;`` as Excel writes it, and a first column without a name that counts the rows.

    Args:
        path: The file; ``.gz`` is unpacked.

    Returns:
        The cells.

    Raises:
        DataError: If it is no text, empty, without names of columns, or its records differ in length.
    """
    text = _decode(path)
    if not text.strip():
        raise DataError(f"file '{path}' is empty")
    # Not `str.splitlines`, which also ends lines at characters that may stand within a cell.
    lines, skipped, separator = _skip_comments(list(io.StringIO(text, newline="")))
    separator = separator or _sniff(lines)
    records, numbers = _records(path, lines, separator)
    header = [name.strip() for name in records[0]]
    if all(_is_number(name) for name in header):
        raise DataError(f"file '{path}' begins with numbers; its first line must name the columns")
    width = len(header)
    rows = []
    for record, number in zip(records[1:], numbers[1:], strict=True):
        if len(record) < width or any(cell.strip() for cell in record[width:]):
            if all(len(r) > width for r in records[1:]):
                raise DataError(f"file '{path}' has rows with more fields than its {width} column names")
            raise DataError(
                f"file '{path}' is not a table: line {number + skipped} has {len(record)} fields, and the columns are "
                f"{width}; add what is missing, or put cells that hold '{_shown(separator)}' in quotes"
            )
        rows.append(record[:width])
    refuse_duplicates(path.name, [name for name in header if name])
    names = [name or f"Unnamed: {j}" for j, name in enumerate(header)]
    columns = dict(zip(names, zip(*rows, strict=True) if rows else [()] * width, strict=True))
    # A separator at the end of every line begins a column without name and cells.
    used = [
        name for name, given in zip(names, header, strict=True) if given or any(cell.strip() for cell in columns[name])
    ]
    frame = pd.DataFrame({name: pd.Series(columns[name], dtype=object) for name in used}, columns=used)
    places = np.asarray(numbers[1:], dtype=np.int64) + skipped
    return Delimited(frame=_drop_row_numbers(frame, header[0]), lines=places, separator=separator)


def refuse_duplicates(name: str, columns: list[str]) -> None:
    """Refuse names that occur twice.

    Args:
        name: Of the table.
        columns: Names of its columns.

    Raises:
        DataError: If two are equal.
    """
    twice = (
        sorted({column for column in columns if columns.count(column) > 1}) if len(set(columns)) < len(columns) else []
    )
    if twice:
        raise DataError(f"'{name}' names these columns more than once: {', '.join(twice)}; rename or remove them")


def _decode(path: Path) -> str:
    content = gunzip(path) if path.name.lower().endswith(".gz") else path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"file '{path}' is not text in UTF-8 (byte {error.start}); save it as a UTF-8 CSV") from error
    if "\0" in text:
        raise DataError(f"file '{path}' is not text in UTF-8 (it holds zero bytes); save it as a UTF-8 CSV")
    return text


def _skip_comments(lines: list[str]) -> tuple[list[str], int, str]:
    """Return the lines from the header on, how many stand before it, and the separator if Excel's first line says it.

    A comment right before the values is their header, as many programs of science write it.
    """
    start, separator = 0, ""
    while not lines[start].strip():
        start += 1
    found = re.fullmatch(r"sep=(.)\s*", lines[start], re.IGNORECASE)
    if found:
        separator, start = found[1], start + 1
    first = start
    while start < len(lines) and (not lines[start].strip() or lines[start].lstrip().startswith("#")):
        start += 1
    if start == first or start == len(lines):
        return lines[first:], first, separator
    header = next(k for k in range(start - 1, first - 1, -1) if lines[k].strip())
    name = lines[header].lstrip()[1:]
    following = [line for line in lines[start : start + 10] if line.strip()][:2]
    try:
        records = list(csv.reader([name.strip(), *following], delimiter=separator or _sniff(lines[start:])))
    except csv.Error:
        return lines[start:], start, separator
    names, *values = ([_is_number(cell) for cell in record] for record in records)
    is_header = len(names) == len(values[0]) > 1 and not any(names)
    if is_header and (any(values[0]) or not (any(values[-1]) or name[:1].isspace())):
        return [name, *lines[header + 1 :]], header, separator
    return lines[start:], start, separator


def _sniff(lines: list[str]) -> str:
    """Return the separator that cuts the first records into the same number of cells, best into numbers."""
    best, found = (0.0, 0.0, 0), ","
    for separator in (*_SEPARATORS, " "):
        records = _first_records(lines, separator)
        width, body = len(records[0]) if records else 0, records[1:]
        same = sum(len(r) == width for r in body) / len(body) if body else 1.0
        cells = [cell for r in body for cell in r]
        typed = sum(_TYPED.fullmatch(cell) is not None for cell in cells) / len(cells) if cells else 1.0
        if width == 1 and best[2] == 0 and same == typed == 1:
            best, found = (0.0, 0.0, 1), separator  # one column, perhaps with decimal commas
        if width < 2 or (separator == " " and (best[0] > 0 or same < 1 or typed == 0)):
            continue  # blanks stand between cells only where nothing else does
        best, found = max(
            (best, found), ((round(same, 2), round(typed, 2), width), separator), key=lambda pair: pair[0]
        )
    return found


def _first_records(lines: list[str], separator: str) -> list[list[str]]:
    records: list[list[str]] = []
    try:
        for record in csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True):
            if any(cell.strip() for cell in record):
                records.append(record)
            if len(records) > _SAMPLE:
                break
    except csv.Error:
        # A quote that is closed in the middle of a cell, or never, says that this is not what stands between cells.
        pass
    return records


def _records(path: Path, lines: list[str], separator: str) -> tuple[list[list[str]], list[int]]:
    """Return the records that are not blank, and on which of the lines each begins."""
    try:
        records, numbers = _parse(lines, separator, strict=True)
    except csv.Error as error:
        if "expected after" not in str(error):
            raise DataError(f"file '{path}' is not a table: {' '.join(str(error).split())}") from error
        try:  # with blanks or text after a closing quote
            records, numbers = _parse(lines, separator, strict=False)
        except csv.Error as again:
            raise DataError(f"file '{path}' is not a table: {' '.join(str(again).split())}") from again
    while len(records) > 1 and not any(cell.strip() for cell in records[-1]):
        del records[-1], numbers[-1]
    return records, numbers


def _parse(lines: list[str], separator: str, *, strict: bool) -> tuple[list[list[str]], list[int]]:
    records, numbers, before = [], [], 0
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t", strict=strict)
    for record in reader:
        if len(record) > 1 or (record and record[0].strip()):
            records.append(record)
            numbers.append(before + 1)
        before = reader.line_num
    return records, numbers


# A first column without a name that counts the rows is what `DataFrame.to_csv` adds; it is no feature.
def _drop_row_numbers(frame: pd.DataFrame, first: str) -> pd.DataFrame:
    if first or len(frame.columns) < 2 or len(frame) == 0 or frame.columns[0] != "Unnamed: 0":
        return frame
    cells = frame.iloc[:, 0].tolist()
    if not all(re.fullmatch(r"\s*[0-9]{1,15}\s*", cell) for cell in cells):
        return frame
    if not (np.diff(np.array([int(cell) for cell in cells], dtype=np.int64)) == 1).all():
        return frame
    warnings.warn("the first column has no name and counts the rows; it is dropped", stacklevel=2)
    return frame.iloc[:, 1:]


def _shown(separator: str) -> str:
    return "a tab" if separator == "\t" else separator


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
