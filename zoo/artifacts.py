"""Files that a stranger may have sent, read so that they can neither run code nor fill the memory.

Sizes are checked before anything is allocated, checksums before anything is believed, and whatever is wrong is an
:class:`~zoo.errors.ArtifactError`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import ArtifactError

__all__ = [
    "MAX_TEXT",
    "Allowance",
    "check_text",
    "digest",
    "machine_memory",
    "read_bytes",
    "read_json",
    "read_tensors",
    "rebuild",
    "rebuilding",
    "tensors_of",
    "to_text",
]

MAX_TEXT = 24 * 2**20
# Commas and opening brackets, of which every value but the first of its list has one. Python takes up to about a
# hundred bytes for each, and a text of brackets alone would take fifty times its size.
_MAX_MARKS = 2**20
_OTHER = "other bytes"
_REBUILDING = ContextVar("_REBUILDING", default=False)
_USUAL_MEMORY = 16 * 2**30


class Allowance(TorchDispatchMode):
    """Refuse, within the block, operations that make more numbers than an artifact of some size can be about.

    A pair is built from the hyper-parameters in the artifact, which may name a network of any size. It is of the size
    of the stored parameters if the artifact is what it says, so nothing much larger need ever be made to find out.

    Args:
        stored: Numbers that the artifact holds.
        data: Numbers in the training batch.
        tensors: Tensors that the artifact holds.

    Attributes:
        refused: Why an operation was refused; empty if none was.
    """

    def __init__(self, *, stored: int, data: int, tensors: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 2**22 + 4 * (stored + data)
        # Initial values are made several times over: drawn, copied, and drawn again in every trace.
        self.left = 2**24 + 32 * stored + 8 * data
        self.operations, self.makings = 300_000 + 1_000 * tensors, 30_000 + 200 * tensors
        self.refused = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.operations -= 1
        if self.operations < 0:
            self.refuse("more operations than it takes to set up what the artifact holds")
        inputs = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(value, Tensor) for value in inputs):
            count = _made(func, args, kwargs)
            self._check(count)
            self.left -= count
            self.makings -= 1
            if self.makings < 0:
                self.refuse("more tensors than the artifact holds")
            if self.left < 0:
                self.refuse("many times the numbers that the artifact holds")
            return func(*args, **kwargs)
        for given, value in zip(getattr(getattr(func, "_schema", None), "arguments", ()), args, strict=False):
            if given.name in ("size", "repeats") and isinstance(value, list | tuple):
                self._check(math.prod(n for n in value if isinstance(n, int) and n > 0))
        result = func(*args, **kwargs)
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor):
                self._check(value.numel())
        return result

    def _check(self, count: int) -> None:
        if count > self.most:
            self.refuse(f"{count:,} numbers at once, many more than the artifact holds")

    def refuse(self, what: str) -> NoReturn:
        """Refuse.

        Args:
            what: For which the hyper-parameters ask.

        Raises:
            ArtifactError: Always.
        """
        self.refused = f"its hyper-parameters ask for {what}"
        raise ArtifactError(self.refused)


@contextmanager
def rebuild() -> Iterator[None]:
    """Say that a pair is built for the parameters of an artifact, until exit.

    Yields:
        Nothing.
    """
    token = _REBUILDING.set(True)
    try:
        yield
    finally:
        _REBUILDING.reset(token)


def rebuilding() -> bool:
    """Tell whether a pair is being built for the parameters of an artifact.

    Initial values do not matter then, only their names, shapes and types: what is costly to find need not be found.

    Returns:
        Whether it is.
    """
    return _REBUILDING.get()


def _made(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Count what an operation without tensors among its inputs would make, without making it."""
    try:
        found = func(*args, **{k: v for k, v in kwargs.items() if k != "generator"} | {"device": "meta"})
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return 0  # it makes no tensor, or fails again by itself
    return found.numel() if isinstance(found, Tensor) else 0


def read_bytes(path: Path, *, limit: int | None = None, expected: int | None = None) -> bytes:
    """Read a regular file after a look at its size.

    Args:
        path: The file.
        limit: Most bytes; by default half of this machine's memory.
        expected: Bytes that it must have.

    Returns:
        Its content.

    Raises:
        ArtifactError: If it is no regular file, cannot be read, or has another size.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device has no end
            raise ArtifactError(f"cannot read '{path}': it is no regular file")
        size = found.st_size
        most = (machine_memory() or _USUAL_MEMORY) // 2 if limit is None else limit
        if size > most:
            raise ArtifactError(f"'{path}' has {size:,} bytes; at most {most:,} are read")
        with path.open("rb") as file:
            if expected is not None and size != expected:
                kind = _kind(file.read(2))
                what = "" if kind == _OTHER else f"; it is {kind}"
                raise ArtifactError(f"'{path}' was changed: it has {size:,} bytes and not {expected:,}{what}")
            return file.read(size)
    except (OSError, MemoryError) as error:
        raise ArtifactError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        ArtifactError: If it cannot be read, is too large, or is something else.
    """
    raw = read_bytes(path, limit=MAX_TEXT)
    found = _parse(raw, path)
    if not isinstance(found, dict):
        raise ArtifactError(f"'{path}' is JSON, but no object")
    return found


def check_text(text: bytes) -> str:
    """Say why a JSON text is too large to be read again, as an empty string if it is not.

    Args:
        text: The text.

    Returns:
        The reason.
    """
    if len(text) > MAX_TEXT:
        return f"{len(text):,} bytes of JSON; at most {MAX_TEXT:,} are read"
    marks = text.count(b",") + text.count(b"[") + text.count(b"{")
    return f"some {marks:,} values in JSON; at most {_MAX_MARKS:,} are read" if marks > _MAX_MARKS else ""


def digest(meta: Mapping[str, Any]) -> str:
    """Return a checksum of what JSON holds, whatever its spaces and the order of its keys.

    Args:
        meta: JSON-able.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        ArtifactError: If it is nested too deeply.
    """
    try:
        text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise ArtifactError("lists within lists, deeper than any artifact has") from error
    return hashlib.sha256(text.encode()).hexdigest()


def to_text(meta: Mapping[str, Any]) -> bytes:
    """Write JSON that :func:`read_json` reads.

    Args:
        meta: JSON-able; without NaN and infinities.

    Returns:
        UTF-8.
    """
    return json.dumps(meta, indent=1, allow_nan=False).encode()


def read_tensors(path: Path, *, sha256: Any, size: int | None = None) -> dict[str, Tensor]:
    """Read a safetensors file whose checksum is known.

    Args:
        path: The file.
        sha256: Its checksum in hexadecimal.
        size: Its size in bytes, where that is known too.

    Returns:
        Name -> tensor.

    Raises:
        ArtifactError: If it is something else, or its size or checksum are not these.
    """
    raw = read_bytes(path, expected=size)
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise ArtifactError(f"'{path}' was changed or truncated: its checksum is not the one in the JSON beside it")
    return tensors_of(raw, path)[0]


def tensors_of(raw: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read safetensors.

    Args:
        raw: Content of the file.
        path: Its path, for messages.

    Returns:
        Name -> tensor, and the metadata in the file's header.

    Raises:
        ArtifactError: If this is something else, or does not fit its own header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    size = struct.unpack("<Q", raw[:8])[0] if len(raw) >= 8 else 0
    if not 2 <= size <= len(raw) - 8:
        raise ArtifactError(f"'{path}' is truncated or not a safetensors file ({len(raw):,} bytes)")
    header = _parse(raw[8 : 8 + size], path)
    try:
        about = header.pop("__metadata__", {})
        found: dict[str, Tensor] = load(raw)
    except (
        SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError
    ) as error:  # fmt: skip
        raise ArtifactError(f"'{path}' is truncated or not a safetensors file: {_line(error)}") from error
    return found, about


def _parse(raw: bytes, path: Path) -> Any:
    reason = check_text(raw)
    if reason:
        raise ArtifactError(f"'{path}' holds {reason}")
    try:
        return json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ArtifactError(f"'{path}' is not JSON ({_kind(raw)}): {_line(error)}; nothing was loaded") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _kind(raw: bytes) -> str:
    if raw[:1] == b"\x80":
        return "a pickle"
    if raw[:2] == b"PK":
        return "a zip archive, perhaps one of torch.save"
    return _OTHER if raw else "empty"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def machine_memory() -> int:
    """Return the bytes of memory of this machine.

    Returns:
        Bytes; 0 where the system does not say.
    """
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 0
