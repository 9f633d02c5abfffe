"""Checkpoints of an SVI fit: the state as safetensors with its identity as JSON, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from zoo.errors import ArtifactError, DataError
from zoo.inference.state import State

__all__ = ["Checkpoint"]

_NAME = "checkpoint.safetensors"


class Checkpoint:
    """One folder's checkpoint, replaced as the fit goes on.

    Args:
        folder: Made if absent.
        identity: What the fit is: method, hyper-parameters, data, seed, recipe, versions. A checkpoint of another
            identity is refused.
        every: Steps between checkpoints.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, every: int) -> None:
        self.folder, self.identity, self.every = folder, json.loads(json.dumps(identity)), every

    def save(self, state: State) -> None:
        """Write the state: a temporary file, fsync, rename.

        Args:
            state: Of the fit.

        Raises:
            DataError: If the folder cannot be written; an earlier checkpoint is intact.
        """
        tensors = {k: v.clone() for k, v in state.tensors().items()}
        digest = hashlib.sha256(b"".join(v.numpy().tobytes() for _, v in sorted(tensors.items()))).hexdigest()
        payload = save(tensors, {"identity": json.dumps(self.identity), "sha256": digest, "format": "pyro-zoo state"})
        temporary = self.folder / f".{_NAME}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / _NAME)
        except OSError as error:
            raise DataError(f"cannot write a checkpoint to '{self.folder}': {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self, state: State) -> None:
        """Load the checkpoint into a fresh state of the same fit.

        Args:
            state: Changed in place.

        Raises:
            DataError: If there is no checkpoint.
            ArtifactError: If it is damaged, or of another fit; the difference is named.
        """
        path = self.folder / _NAME
        if not path.is_file():
            raise DataError(f"there is no checkpoint in '{self.folder}'")
        header, tensors = read(path)
        for key, mine in self.identity.items():
            theirs = header.get(key)
            if theirs != mine:
                raise ArtifactError(
                    f"the checkpoint in '{self.folder}' has {key} {_short(theirs)}; this fit has {_short(mine)}"
                )
        state.load(tensors)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint's identity and tensors.

    Args:
        path: The file.

    Returns:
        Identity and tensors.

    Raises:
        ArtifactError: If the file is not a whole checkpoint.
    """
    raw = path.read_bytes()
    try:
        tensors = load(raw)
        size = int.from_bytes(raw[:8], "little")
        about = json.loads(raw[8 : 8 + size])["__metadata__"]
        identity = json.loads(about["identity"])
        digest = hashlib.sha256(b"".join(v.numpy().tobytes() for _, v in sorted(tensors.items()))).hexdigest()
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"'{path}' is truncated or not a checkpoint: {error}") from error
    if about.get("sha256") != digest or not isinstance(identity, dict):
        raise ArtifactError(f"'{path}' was changed: its checksum is not the one it carries")
    return identity, tensors


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:117] + "..."
