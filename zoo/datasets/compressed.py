"""Compressed files of the user, expanded no further than a real table would be."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

from zoo.errors import DataError

__all__ = ["gunzip", "refuse_bomb", "refuse_zip_bomb"]

# Tables of text shrink to a third or a tenth, images of few grey values to a hundredth at most; what is made to fill
# the memory shrinks to a thousandth.
_RATIO = 100
_ALWAYS = 16 * 2**20  # bytes that may come out of a file of any size
_BLOCK = 2**20


def gunzip(path: Path) -> bytes:
    """Decompress a gzip file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DataError: If it is damaged, or expands to many times what a table would.
    """
    parts, total, packed = [], 0, path.stat().st_size
    try:
        with gzip.open(path) as file:
            while block := file.read(_BLOCK):
                parts.append(block)
                total += len(block)
                refuse_bomb(path, packed, total, "decompress it yourself if that is right")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"file '{path}' is not a whole gzip file: {' '.join(str(error).split()) or 'it is truncated'}"
        ) from error
    return b"".join(parts)


def refuse_zip_bomb(path: Path) -> None:
    """Refuse an archive that NumPy does not write, or that expands to many times what arrays would.

    Args:
        path: A zip archive.

    Raises:
        DataError: If it is one.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"file '{path}': '{member.filename}' is compressed otherwise than numpy.savez does it")
    unpacked = sum(member.file_size for member in members)
    refuse_bomb(path, path.stat().st_size, unpacked, "write it with numpy.savez, without compression, if that is right")


def refuse_bomb(path: Path, packed: int, unpacked: int, otherwise: str) -> None:
    """Refuse a file that expands to more than a real table would.

    Args:
        path: The file.
        packed: Its size in bytes.
        unpacked: Bytes that come out of it.
        otherwise: What to do if that is right.

    Raises:
        DataError: If they are too many.
    """
    if unpacked > max(_ALWAYS, _RATIO * packed):
        raise DataError(
            f"file '{path}' has {packed:,} bytes and expands to {unpacked:,} or more, over {_RATIO} times as many; "
            f"{otherwise}"
        )
