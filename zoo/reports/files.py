"""Files that appear whole or not at all, and JSON that holds no NaN."""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import DataError

__all__ = ["dumps", "plain", "refuse_unwritable", "write_bytes", "write_texts"]


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it.

    Args:
        value: Numbers, strings, mappings, sequences, arrays or tensors.

    Returns:
        The same of built-in types; a non-finite number becomes ``None``, anything else its text.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def dumps(value: Any) -> str:
    """Return a value as indented JSON.

    Args:
        value: See :func:`plain`.

    Returns:
        The text, ending in a newline.
    """
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: all are written aside first, then moved into place.

    Args:
        texts: Path -> content; missing folders are made.
    """
    write_bytes({path: text.encode() for path, text in texts.items()})


def refuse_unwritable(path: Path) -> None:
    """Refuse a path at which no file can be made, before much work goes into what it would hold.

    Args:
        path: Of a file; its folders need not exist.

    Raises:
        DataError: If a folder on the way is none, or cannot be written.
    """
    try:
        path.exists()  # raises for a name that is too long
        with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            return
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}; choose another place") from error


def write_bytes(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together, as :func:`write_texts` does.

    Args:
        contents: Path -> content; missing folders are made.

    Raises:
        DataError: If a folder or file cannot be written; nothing half-written is left.
    """
    staged: list[tuple[Path, Path]] = []
    made: list[Path] = []
    at = next(iter(contents), Path())
    try:
        for path, content in contents.items():
            at = path
            if path.is_dir():
                raise DataError(f"cannot write '{path}': it is a folder; name a file")
            missing = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
            for folder in reversed(missing):
                folder.mkdir()
                made.append(folder)
            aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            with aside.open("xb") as file:
                staged.append((aside, path))
                file.write(content)
        for aside, path in staged:
            at = path
            aside.replace(path)
    except BaseException as error:
        for aside, _ in staged:
            aside.unlink(missing_ok=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise DataError(f"cannot write '{at}': {reason}; choose a folder that can be written to") from error
        raise
