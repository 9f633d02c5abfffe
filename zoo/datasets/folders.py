"""Folders of image files: MNIST's idx format and the binary versions of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.datasets.compressed import gunzip
from zoo.errors import DataError

__all__ = ["read_folder"]

# Third byte of an idx file: the type of its numbers, in big-endian order.
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PIXELS = (3, 32, 32)  # of CIFAR: planes of red, green and blue, each row by row
_ALLOWED = (
    "MNIST's idx files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-*, also .gz) or CIFAR's binary ones "
    "(data_batch_1.bin, test_batch.bin; train.bin, test.bin)"
)


def read_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """Read a folder of image files.

    Args:
        folder: With MNIST's idx files, or the binary version of CIFAR-10 or CIFAR-100.

    Returns:
        ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or without test files ``x`` and ``y``. Images are ``(rows,
        height, width)``, or ``(rows, 3, height, width)`` with the channels red, green, blue. Labels of CIFAR are names
        where the folder has them, of CIFAR-100 the fine ones.

    Raises:
        DataError: If the folder holds none of these, or a file is damaged.
    """
    names = {path.name for path in folder.iterdir()}
    if any(re.match(r"train-images[-.]idx", name) for name in names):
        return _idx_folder(folder)
    if any(re.fullmatch(r"data_batch_\d+\.bin", name) for name in names):
        train = sorted(folder.glob("data_batch_*.bin"), key=lambda path: (len(path.name), path.name))
        return _cifar(train, folder / "test_batch.bin", folder / "batches.meta.txt", classes=10, labels=1)
    if "train.bin" in names:
        return _cifar(
            [folder / "train.bin"], folder / "test.bin", folder / "fine_label_names.txt", classes=100, labels=2
        )
    if {"data_batch_1", "batches.meta"} & names or {"train", "test", "meta"} <= names:
        raise DataError(
            f"folder '{folder}' holds the Python version of CIFAR, which is never read: it is a pickle, and reading a "
            "pickle runs the code in it; get the binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz)"
        )
    raise DataError(f"folder '{folder}' holds no data that can be read; allowed: {_ALLOWED}; or give a file")


def _idx_folder(folder: Path) -> dict[str, NDArray[Any]]:
    found = {}
    for prefix, part in (("train", "train"), ("t10k", "test")):
        images, labels = (_find(folder, rf"{prefix}-{kind}[-.]idx\d-\w+") for kind in ("images", "labels"))
        if images is None and labels is None and part == "test":
            continue
        for path, kind in ((images, "images"), (labels, "labels")):
            if path is None:
                raise DataError(f"folder '{folder}' lacks the file {prefix}-{kind}-idx*-ubyte")
        assert images is not None
        assert labels is not None
        found[f"x_{part}"], found[f"y_{part}"] = _idx(images, 3), _idx(labels, 1)
        rows = [len(found[f"{entry}_{part}"]) for entry in "xy"]
        if rows[0] != rows[1]:
            raise DataError(f"'{images}' holds {rows[0]} images and '{labels}' {rows[1]} labels; one each was expected")
    return _named(found)


def _find(folder: Path, pattern: str) -> Path | None:
    paths = sorted(path for path in folder.iterdir() if re.fullmatch(rf"{pattern}(\.gz)?", path.name))
    return paths[0] if paths else None


def _idx(path: Path, ndim: int) -> NDArray[Any]:
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise DataError(f"file '{path}' is not in idx format: it begins with {content[:4].hex(' ') or 'nothing'}")
    if content[3] != ndim:
        raise DataError(f"file '{path}' has {content[3]} dimensions; {ndim} were expected")
    start = 4 + 4 * ndim
    if len(content) < start:
        raise DataError(f"file '{path}' is truncated within its header, {len(content)} bytes long")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    kind = np.dtype(_IDX_TYPES[content[2]])
    expected = start + int(np.prod(shape, dtype=object)) * kind.itemsize
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "longer than it says"
        raise DataError(f"file '{path}' is {what}: {len(content)} bytes, but its header means {expected}")
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def _cifar(train: list[Path], test: Path, names: Path, *, classes: int, labels: int) -> dict[str, NDArray[Any]]:
    """Read records of ``labels`` label bytes, of which the last counts, and one image."""
    known = (
        [line.strip() for line in names.read_text(encoding="utf-8", errors="replace").splitlines()]
        if names.is_file()
        else []
    )
    known = [line for line in known if line]
    if known and len(known) != classes:
        raise DataError(f"file '{names}' names {len(known)} classes; {classes} were expected")
    found = {}
    for part, paths in (("train", train), ("test", [test] if test.is_file() else [])):
        blocks = [_records(path, classes, labels) for path in paths]
        if not blocks:
            continue
        codes = np.concatenate([block[:, labels - 1] for block in blocks])
        found[f"x_{part}"] = np.concatenate([block[:, labels:] for block in blocks]).reshape(-1, *_PIXELS)
        found[f"y_{part}"] = np.array(known)[codes] if known else codes
    return _named(found)


def _named(found: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return found if "x_test" in found else {key.removesuffix("_train"): array for key, array in found.items()}


def _records(path: Path, classes: int, labels: int) -> NDArray[Any]:
    content = _content(path)
    size = labels + int(np.prod(_PIXELS))
    if not content or len(content) % size:
        raise DataError(
            f"file '{path}' is {len(content)} bytes long, no multiple of a record's {size}; it is truncated or not of "
            f"CIFAR-{classes}'s binary version"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    label = records[:, labels - 1]
    if label.max() >= classes:
        row = int(np.argmax(label >= classes))
        raise DataError(
            f"file '{path}' is damaged: record {row} has the label {label[row]}; with {classes} classes it must lie in "
            f"0 .. {classes - 1}"
        )
    return records


def _content(path: Path) -> bytes:
    return gunzip(path) if path.name.endswith(".gz") else path.read_bytes()
