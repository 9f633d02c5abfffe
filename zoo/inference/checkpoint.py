"""Checkpoints: the state of an SVI fit, or finished chains of NUTS, as safetensors that say what fit they are of."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from zoo import artifacts
from zoo.errors import ArtifactError, DataError
from zoo.inference.state import State
from zoo.outputs import BEST, CHAIN_MARK, STATE_MARK

__all__ = ["Chains", "Checkpoint", "difference", "read"]

_PART = ".checkpoint.part"  # one name, so that what a killed process leaves is overwritten


class _Store:
    """Files of one fit in one folder, each written whole or not at all.

    Args:
        folder: Made if absent.
        identity: What the fit is. Files of another fit are refused.
        surroundings: What else decides its last bits: versions, machine, threads, device, mode, number of ranks. Where
            these differ, the fit goes on with a warning.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], surroundings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity, self.surroundings = _plain(identity), _plain(surroundings)

    def _write(self, name: str, mark: str, tensors: Mapping[str, Tensor], more: Mapping[str, Any]) -> None:
        """Write a temporary file, flush it to the disk, and rename it."""
        about = {"identity": self.identity, "surroundings": self.surroundings, **more}
        header = {"format": mark, "about": json.dumps(about), "sha256": _digest(about, tensors)}
        temporary = self.folder / _PART
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(save(dict(tensors), header))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
            _flush(self.folder)
        except OSError as error:
            raise DataError(
                f"cannot write a checkpoint to '{self.folder}': {error.strerror or error}; earlier ones are intact"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _compare(self, about: Mapping[str, Any]) -> None:
        found = difference(about["identity"], self.identity)
        if found:
            raise ArtifactError(f"the checkpoint in '{self.folder}' has {found}")
        found = difference(about["surroundings"], self.surroundings)
        if found:
            warnings.warn(
                f"the checkpoint in '{self.folder}' has {found}; the fit goes on, but not bit for bit as it would "
                f"have without the interruption",
                RuntimeWarning,
                stacklevel=4,
            )


class Checkpoint(_Store):
    """Checkpoints of an SVI fit: its newest states, and that of the lowest loss.

    Args:
        folder: Made if absent.
        identity: What the fit is: method, hyper-parameters, data, seed, recipe. Checkpoints of another are refused.
        surroundings: Versions, machine, threads, device, mode, number of ranks. Where these differ, the fit goes on
            with a warning.
        every: Steps between checkpoints.
        keep: How many of the newest are kept.
        best_from: Step from which on losses are compared with each other.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        surroundings: Mapping[str, Any],
        *,
        every: int,
        keep: int = 2,
        best_from: float = 0,
    ) -> None:
        super().__init__(folder, identity, surroundings)
        self.every, self.keep, self.best_from = every, keep, best_from

    def files(self) -> list[Path]:
        """Return the newest states, the newest first.

        Returns:
            Paths.
        """
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def save(self, state: State) -> None:
        """Write the state, and remove those that are older than the newest.

        Args:
            state: Of the fit.

        Raises:
            DataError: If the folder cannot be written; earlier checkpoints are intact.
        """
        tensors, step = state.tensors(), int(state.step)
        loss = None
        if step % self.every == 0 and step >= self.best_from:
            loss = float(tensors["history"][-self.every :, 0].double().mean())
        name = f"checkpoint-{step:09d}.safetensors"
        self._write(name, STATE_MARK, tensors, {"step": step, "loss": loss})
        if loss is not None and not self._best() <= loss:
            self._write(BEST, STATE_MARK, tensors, {"step": step, "loss": loss})
        past = [path for path in self.files() if path.name <= name]
        for path in past[self.keep :]:
            path.unlink(missing_ok=True)

    def restore(self, state: State) -> None:
        """Load the newest checkpoint that is whole into a fresh state of the same fit.

        Args:
            state: Changed in place.

        Raises:
            DataError: If there is no checkpoint.
            ArtifactError: If all are damaged, or one is of another fit; the difference is named.
        """
        (self.folder / _PART).unlink(missing_ok=True)
        damage: ArtifactError | None = None
        for path in self.files():
            try:
                about, tensors = read(path, STATE_MARK)
            except ArtifactError as error:
                damage = damage or error
                continue
            if damage is not None:
                warnings.warn(f"{damage}; '{path.name}' is used in its place", RuntimeWarning, stacklevel=3)
            self._compare(about)
            state.load(tensors)
            return
        raise damage or DataError(f"there is no checkpoint in '{self.folder}'")

    def _best(self) -> float:
        try:
            return float(read(self.folder / BEST, STATE_MARK)[0]["loss"])
        except (OSError, ArtifactError, TypeError):
            return float("nan")


class Chains(_Store):
    """The finished chains of a NUTS run.

    A chain depends on the run's seed and its own number alone, so a chain that was cut is drawn again from its start.
    """

    def save(self, chain: int, arrays: Mapping[str, Any]) -> None:
        """Write a chain.

        Args:
            chain: Its number.
            arrays: Draws and statistics by name, as NumPy arrays.

        Raises:
            DataError: If the folder cannot be written; earlier chains are intact.
        """
        tensors = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}
        self._write(f"chain-{chain:04d}.safetensors", CHAIN_MARK, tensors, {"chain": chain})

    def load(self) -> dict[int, dict[str, Any]]:
        """Read the chains that are whole; one that is damaged is drawn again.

        Returns:
            Number -> arrays by name.

        Raises:
            ArtifactError: If a chain is of another fit; the difference is named.
        """
        (self.folder / _PART).unlink(missing_ok=True)
        found = {}
        for path in sorted(self.folder.glob("chain-*.safetensors")):
            try:
                about, tensors = read(path, CHAIN_MARK)
            except ArtifactError as error:
                warnings.warn(f"{error}; the chain is drawn again", RuntimeWarning, stacklevel=3)
                continue
            self._compare(about)
            found[int(about["chain"])] = {n: t.numpy() for n, t in tensors.items()}
        return found


def read(path: Path, mark: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file of a store; nothing in it is executed.

    Args:
        path: The file.
        mark: The format that it has to name.

    Returns:
        What it says of itself, and its tensors.

    Raises:
        ArtifactError: If the file is truncated, changed or of another format.
    """
    tensors, header = artifacts.tensors_of(artifacts.read_bytes(path), path)
    try:
        about = json.loads(header["about"])
        whole = header["format"] == mark and header["sha256"] == _digest(about, tensors)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"'{path}' is truncated or not a checkpoint: {error}") from error
    if not all(isinstance(about.get(key), dict) for key in ("identity", "surroundings")):
        raise ArtifactError(f"'{path}' does not say of which fit it is")
    if not whole:
        raise ArtifactError(f"'{path}' was changed: its checksum is not the one it carries")
    return about, tensors


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def _flush(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename outlives a power cut."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found


def difference(theirs: Mapping[str, Any], mine: Mapping[str, Any], within: str = "") -> str:
    """Return the first difference between what two fits say of themselves.

    Args:
        theirs: Of the other fit.
        mine: Of this one.
        within: Where in it they stand.

    Returns:
        ``KEY VALUE; this fit has VALUE``, or an empty string.
    """
    for key in dict.fromkeys([*mine, *theirs]):
        a, b = theirs.get(key), mine.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            return difference(a, b, f"{within}{key}.")
        return f"{within}{key} {_short(a)}; this fit has {_short(b)}"
    return ""


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) < 120 else text[:117] + "..."
