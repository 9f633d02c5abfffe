"""Tables and arrays as users have them, read into one raw form; nothing here is ever unpickled."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zoo.datasets.compressed import refuse_bomb, refuse_zip_bomb
from zoo.datasets.delimited import read_delimited, refuse_duplicates
from zoo.datasets.folders import read_folder
from zoo.datasets.splits import TEST, TRAIN, VALIDATION
from zoo.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    Table: TypeAlias = str | Path | pd.DataFrame | Mapping[str, Any]

__all__ = ["Raw", "open_table"]

_ALLOWED = ".csv, .csv.gz, .tsv, .tsv.gz, .npz, .parquet"
_PARTS = {"train": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION, "test": TEST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """What was read, before any value is changed.

    Args:
        name: Stem of the file, or ``data``.
        frame: Named columns, one line per row.
        images: ``(rows, channels, height, width)``, when the entry ``x`` held images; else ``None``.
        parts: Split of each row where the source says it (``x_train``, ``x_test``); else ``None``.
        source: Name of the file; empty for an object.
        task: Task of the source, where its format says it; else empty.
        lines: Line of the file on which each row begins, of a text file; else ``None``.
        separator: What stands between the cells of a text file, all of whose columns are text; else empty.
    """

    name: str
    frame: pd.DataFrame
    images: NDArray[Any] | None = None
    parts: NDArray[np.int8] | None = None
    source: str = ""
    task: str = ""
    lines: NDArray[np.int64] | None = None
    separator: str = ""


def open_table(source: Table) -> Raw:
    """Read a file, a data frame or a mapping of arrays.

    Args:
        source: Path to a ``.csv``, ``.tsv`` (both also ``.gz``), ``.npz`` or ``.parquet`` file, or to a folder of
            MNIST's idx files or of CIFAR's binary ones; a :class:`pandas.DataFrame`; or a mapping from names to
            tensors, arrays or lists. An array of shape ``(rows, d)`` becomes the columns ``name0``, ``name1``, ...; an
            array ``x`` of shape ``(rows, height, width)`` or ``(rows, channels, height, width)`` holds images. Entries
            named ``*_train``, ``*_validation`` and ``*_test`` carry their own split.

    Returns:
        The raw table.

    Raises:
        DataError: If there is no such file, its format is unknown or broken, it has no rows, a column name occurs
            twice, or the arrays do not fit each other.
    """
    if isinstance(source, str | Path):
        raw = replace(_from_path(Path(source)), source=Path(source).name)
    elif isinstance(source, pd.DataFrame):
        raw = Raw(name="data", frame=source.reset_index(drop=True))
    elif isinstance(source, Mapping):
        raw = _from_arrays("data", source)
    else:
        raise DataError(f"data of type {type(source).__name__}; give a path, a pandas DataFrame or a mapping of arrays")
    # A name may have a line break in its file; messages and reports have one line for it.
    names = [re.sub(r"\s*[\r\n]+\s*", " ", str(column)) for column in raw.frame.columns]
    refuse_duplicates(raw.name, names)
    raw = replace(raw, frame=raw.frame.set_axis(names, axis=1))
    raw = raw if raw.separator else replace(raw, frame=raw.frame.infer_objects())
    if len(raw.frame) == 0 and raw.images is None:
        raise DataError(f"'{raw.name}' has column names but no rows")
    return raw


def _from_path(path: Path) -> Raw:
    if not path.exists():
        raise DataError(f"file '{path}' does not exist")
    if path.is_dir():
        return replace(_from_arrays(path.resolve().name, read_folder(path)), task="classification")
    name = path.name.lower()
    stem = path.name.split(".")[0] or "data"
    if path.stat().st_size == 0:
        raise DataError(f"file '{path}' is empty")
    if name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        found = read_delimited(path)
        return Raw(name=stem, frame=found.frame, lines=found.lines, separator=found.separator)
    if name.endswith(".npz"):
        return _from_arrays(stem, _read_npz(path))
    if name.endswith(".parquet"):
        return Raw(name=stem, frame=_read_parquet(path))
    with path.open("rb") as file:
        pickled = file.read(2)[:1] == b"\x80" or name.endswith((".pkl", ".pickle"))
    if pickled:
        raise DataError(
            f"file '{path}' is a pickle, which is never read: reading a pickle runs the code in it; save arrays with "
            f"numpy.savez, or a table ({_ALLOWED})"
        )
    raise DataError(f"file '{path}' is of an unknown kind; allowed: {_ALLOWED}")


# ------------------------------------------------------------------------------------------------------ tables
def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "tables", "reading Parquet") from error
    try:
        about = parquet.read_metadata(path)
        cells = 8 * about.num_rows * about.num_columns
        refuse_bomb(path, path.stat().st_size, cells, "write it as CSV if that is right")
        table = parquet.read_table(path)
        refuse_duplicates(path.name, table.column_names)
        return table.to_pandas().reset_index(drop=True).rename(columns=str)
    except DataError:
        raise
    # What pandas notes about its columns in the file's schema is believed by pyarrow, and fails in many ways.
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"file '{path}' is not a Parquet file that can be read: {_line(error)}") from error


# ------------------------------------------------------------------------------------------------------ arrays
def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"file '{path}' is not an NPZ archive, whatever its name says; write it with numpy.savez")
    arrays = {}
    name = ""
    try:
        refuse_zip_bomb(path)
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise DataError(f"file '{path}': member '{name}' is not an array; write it with numpy.savez")
    except DataError:
        raise
    except (
        ValueError, OSError, EOFError, LookupError, TypeError, RuntimeError, MemoryError, SyntaxError, struct.error,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        if "pickle" in str(error).lower():
            raise DataError(
                f"file '{path}': entry '{name}' is a pickled object, which is never read; "
                "save numbers or fixed-width text"
            ) from error
        raise DataError(f"file '{path}' is a damaged NPZ archive: {_line(error)}") from error
    if not arrays:
        raise DataError(f"file '{path}' holds no arrays")
    return arrays


def _from_arrays(name: str, entries: Mapping[str, Any]) -> Raw:
    if not entries:
        raise DataError("the mapping is empty; give at least a feature and a target, e.g. {'x': ..., 'y': ...}")
    arrays = {str(key): _as_array(str(key), value) for key, value in entries.items()}
    arrays, parts = _join_parts(arrays)
    lengths = {key: len(array) for key, array in arrays.items()}
    longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    if lengths[longest] != lengths[shortest]:
        raise DataError(
            f"entries '{longest}' ({lengths[longest]} rows) and '{shortest}' ({lengths[shortest]} rows) "
            "differ in length"
        )
    images = None
    columns: dict[str, NDArray[Any]] = {}
    names: list[str] = []
    for key, array in arrays.items():
        if array.ndim > 2:
            if key != "x" or array.ndim > 4:
                raise DataError(
                    f"entry '{key}' has shape {array.shape}; allowed: (rows,), (rows, d), and for images in 'x' "
                    "(rows, height, width) or (rows, channels, height, width)"
                )
            if array.ndim == 4 and array.shape[1] == array.shape[2] > 4 >= array.shape[3]:
                raise DataError(
                    f"entry '{key}' has shape {array.shape}, with the channels last; (rows, channels, height, width) "
                    "was expected: transpose it by (0, 3, 1, 2)"
                )
            images = array[:, None] if array.ndim == 3 else array
            continue
        flat = array.reshape(len(array), -1)
        wide = array.ndim == 2 and array.shape[1] > 1
        for j in range(flat.shape[1]):
            names.append(f"{key}{j}" if wide else key)
            columns[names[-1]] = flat[:, j]
    refuse_duplicates(name, names)
    return Raw(name=name, frame=pd.DataFrame(columns), images=images, parts=parts)


def _as_array(name: str, value: Any) -> NDArray[Any]:
    detach = getattr(value, "detach", None)
    if detach is not None:
        value = detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        value = np.ma.filled(value.astype(object if value.dtype.kind in "OUS" else float), np.nan)
    try:
        array: NDArray[Any] = np.asarray(value)
    except ValueError as error:
        raise DataError(f"entry '{name}' is not a regular array: {_line(error)}") from error
    if array.ndim == 0:
        raise DataError(f"entry '{name}' is a single value; an array with one entry per row was expected")
    if array.dtype.kind == "c":
        raise DataError(f"entry '{name}' holds complex numbers; give real and imaginary parts as two columns")
    if array.dtype.kind == "V":
        raise DataError(f"entry '{name}' holds records or raw bytes ({array.dtype}); give each field as a column")
    return array


def _join_parts(arrays: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int8] | None]:
    found: dict[int, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        match = re.fullmatch(r"(.+)_(train|validation|valid|val|test)", key)
        if match is None:
            return arrays, None
        found.setdefault(_PARTS[match[2]], {})[match[1]] = array
    if TRAIN not in found:
        return arrays, None
    bases = list(found[TRAIN])
    for group in found.values():
        if set(group) != set(bases):
            raise DataError(
                f"the splits differ in their entries: {sorted(bases)} for training, {sorted(group)} in another"
            )
        for base in bases:
            if group[base].shape[1:] != found[TRAIN][base].shape[1:]:
                raise DataError(
                    f"entry '{base}' has rows of shape {found[TRAIN][base].shape[1:]} for training "
                    f"and {group[base].shape[1:]} in another split"
                )
            if len(group[base]) != len(group[bases[0]]):
                raise DataError(
                    f"entries '{bases[0]}' ({len(group[bases[0]])} rows) and '{base}' ({len(group[base])} rows) "
                    "of one split differ in length"
                )
    order = sorted(found)
    joined = {base: np.concatenate([found[part][base] for part in order]) for base in bases}
    parts = np.concatenate([np.full(len(found[part][bases[0]]), part, dtype=np.int8) for part in order])
    return joined, parts


# ------------------------------------------------------------------------------------------------------- small
def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
