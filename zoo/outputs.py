"""The folder that a fit writes: its files come into place together, and whatever else is in it is never touched."""

from __future__ import annotations

import glob
import os
import secrets
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.errors import DataError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["BEST", "CHAIN_MARK", "SETTINGS", "STATE_MARK", "checkpoints", "foreign", "ours", "recover", "whole"]

SETTINGS = "fit.json"  # beside checkpoints: what `--resume` goes on with
BEST = "best-checkpoint.safetensors"
STATE_MARK, CHAIN_MARK = "pyro-zoo state", "pyro-zoo chain"
_CHECKPOINTS = ("checkpoint-*.safetensors", BEST, "chain-*.safetensors")
_HEAD = 2**20
_PART = f"{8 * '[0-9a-f]'}.part"  # of a scratch folder's name
# What each file of the zoo says of itself near its beginning.
_MARKS = {
    "posterior.json": b'"pyro-zoo posterior"',
    "report.html": b'content="pyro-zoo ',
    "report.json": b'"pyro-zoo report ',
    "MODEL_CARD.md": b"<!-- pyro-zoo model card -->",
    SETTINGS: b'"checkpoint_every"',
}
_TENSORS = "posterior.safetensors"  # says nothing of itself; the JSON beside it does


def ours(folder: Path) -> list[Path]:
    """Return the files in a folder that a fit wrote, told by their names and by what they say of themselves.

    Args:
        folder: Any folder; one that does not exist holds none.

    Returns:
        Paths, ``posterior.json`` first.
    """
    found = [path for path in (folder / name for name in _MARKS) if _says(path, _MARKS[path.name])]
    found += checkpoints(folder)
    tensors = folder / _TENSORS
    if tensors.is_file() and any(path.name in ("posterior.json", SETTINGS) for path in found):
        found.append(tensors)
    return found


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder: states of SVI, those of restarts included, and chains of NUTS.

    Args:
        folder: Any folder; one that does not exist holds none.

    Returns:
        Paths.
    """
    return [path for path in _named(folder) if _says(path, STATE_MARK.encode()) or _says(path, CHAIN_MARK.encode())]


def _named(folder: Path) -> list[Path]:
    return sorted(path for name in _CHECKPOINTS for at in (name, f"restart-*/{name}") for path in folder.glob(at))


def foreign(folder: Path) -> list[Path]:
    """Return what stands in a folder under a name that a fit writes, but is not of the zoo.

    Args:
        folder: Any folder.

    Returns:
        Paths.
    """
    mine = set(ours(folder))
    return [p for p in (folder / name for name in (*_MARKS, _TENSORS)) if os.path.lexists(p) and p not in mine]


def recover(folder: Path) -> None:
    """Undo what a killed process left half done: what it had set aside comes back, and its scratch folders go.

    Args:
        folder: Where it wrote; need not exist.

    Raises:
        DataError: If the process is alive, or a file cannot be moved.
    """
    named, folder = folder, folder.resolve()
    unfinished = not any((folder / name).exists() for name in ("posterior.json", SETTINGS))
    try:
        for scratch in [*folder.glob(f".{_PART}"), *folder.parent.glob(f".{glob.escape(folder.name)}.{_PART}")]:
            try:
                lock = _lock(scratch)
            except BlockingIOError as error:
                raise DataError(f"another process is writing to '{named}'; wait for it, or end it") from error
            if unfinished and scratch.parent == folder:
                for aside in (scratch / "old", scratch / "spent"):
                    _move(_files(aside), aside, folder)
            os.close(lock)
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DataError(_unwritable(named, error)) from error


@contextmanager
def whole(folder: Path, *, keep: bool, resume: bool) -> Iterator[Path]:
    """Yield a folder aside whose files come into place together when the block ends well, and vanish otherwise.

    In an existing folder only files of the zoo are replaced or removed. A symbolic link is followed.

    Args:
        folder: Where the files go.
        keep: Whether ``folder`` itself holds checkpoints while the fit runs, which an interruption leaves there.
        resume: Whether it held some before.

    Yields:
        The folder aside.

    Raises:
        DataError: If files cannot be made or moved, or a file that is not of the zoo is in the way.
        KeyboardInterrupt: As it came, with the command to go on where there is a checkpoint.
    """
    named, folder = folder, folder.resolve()
    _refuse_foreign(folder, named, checkpointed=keep and not resume)
    made: list[Path] = []
    scratch, lock = folder, -1
    done = resumable = False
    try:
        try:
            needed = [folder, *folder.parents] if keep else folder.parents
            for path in reversed([p for p in needed if not p.exists()]):
                path.mkdir()
                made.append(path)
            mark = f"{secrets.token_hex(4)}.part"
            scratch = folder / f".{mark}" if folder.exists() else folder.with_name(f".{folder.name}.{mark}")
            new, old, spent = (scratch / name for name in ("new", "old", "spent"))
            new.mkdir(parents=True)
            lock = _lock(scratch)
            if keep and not resume:
                _move(ours(folder), folder, old)
        except OSError as error:
            raise DataError(_unwritable(named, error)) from error
        yield new
        try:
            if folder.exists():
                _refuse_foreign(folder, named)
                _swap(folder, new, spent, keep)
            else:
                new.rename(folder)
            done = True
        except OSError as error:
            raise DataError(_unwritable(named, error)) from error
        _clear(folder, [path.name for path in spent.glob("restart-*")])
    except BaseException as stop:
        resumable = keep and (resume or bool(checkpoints(folder)))
        if not done and keep and not resume and not resumable and (scratch / "old").exists():
            for path in ours(folder):
                path.unlink()
            _move(_files(scratch / "old"), scratch / "old", folder)
        if resumable and isinstance(stop, KeyboardInterrupt):
            raise KeyboardInterrupt(f"; go on with: zoo fit --resume {shlex.quote(str(named))}") from stop
        raise
    finally:
        # What could not be moved back stays aside rather than being lost.
        if lock >= 0:
            os.close(lock)
        stranded = [] if done or resumable else [*_files(scratch / "old"), *_files(scratch / "spent")]
        if scratch != folder and not stranded:
            shutil.rmtree(scratch, ignore_errors=True)
        for path in reversed(made):
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


def _clear(folder: Path, restarts: Iterable[str]) -> None:
    """Remove what only an unfinished fit needs; what cannot be removed stays."""
    done = checkpoints(folder)
    for path in done:
        with suppress(OSError):
            path.unlink()
    for name in {*restarts, *(path.parent.name for path in done if path.parent != folder)}:
        with suppress(OSError):  # not empty
            (folder / name).rmdir()


def _lock(scratch: Path) -> int:
    """Return a handle that tells other processes that this one is alive, until it is closed or the process ends."""
    handle = os.open(scratch / "lock", os.O_CREAT | os.O_RDWR)
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise
    return handle


def _swap(folder: Path, new: Path, spent: Path, keep: bool) -> None:
    """Put the files of ``new`` in place of the zoo's own in ``folder``, which go to ``spent``, or change nothing."""
    # Until the new description is in place, a process that is killed leaves all that it takes to go on.
    last = [*checkpoints(folder), folder / SETTINGS] if keep else []
    files = sorted(_files(new), key=lambda path: path.name == "posterior.json")
    # Exported networks say nothing of themselves: they are replaced by new ones of their name, but never only removed.
    taken = [path for path in (folder / file.relative_to(new) for file in files) if os.path.lexists(path)]
    for path in taken:
        if path.is_dir():
            raise DataError(f"'{path}' is a folder, in the place of a file to be written; move it away")
    _move([path for path in dict.fromkeys([*ours(folder), *taken]) if path not in last], folder, spent)
    try:
        # The description comes last, so that a posterior which can be seen is whole.
        _move(files, new, folder)
    except BaseException:
        _move(_files(spent), spent, folder)
        raise


def _move(paths: Iterable[Path], source: Path, target: Path) -> None:
    """Move files from one folder to another, all or none."""
    moved: list[tuple[Path, Path]] = []
    try:
        target.mkdir(exist_ok=True)
        for path in paths:
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            moved.append((path, to))
            path.rename(to)
    except BaseException:
        for path, to in reversed(moved):
            if os.path.lexists(to) and not os.path.lexists(path):
                to.rename(path)
        raise


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if not path.is_dir()]


def _says(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return mark in file.read(_HEAD)
    except OSError:
        return False


def _refuse_foreign(folder: Path, named: Path, *, checkpointed: bool = False) -> None:
    in_the_way = foreign(folder)
    if checkpointed:
        in_the_way += sorted(set(_named(folder)) - set(checkpoints(folder)))
    if in_the_way:
        names = ", ".join(path.name for path in in_the_way)
        raise DataError(
            f"'{named}' holds {names}, which the zoo did not write and would have to replace; move it away or "
            "choose another folder"
        )


def _unwritable(folder: Path, error: OSError) -> str:
    return f"cannot write to '{folder}': {error.strerror or error}; choose another folder"
