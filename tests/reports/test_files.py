"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.errors import DataError
from zoo.reports.files import dumps, plain, write_texts


def test_json_of_numbers_arrays_and_what_json_cannot_hold() -> None:
    value = {
        1: (np.float32(0.5), torch.tensor([1.0, float("nan")])),
        "b": float("inf"),
        "c": Path("x"),
        "d": np.int64(3),
    }
    assert plain(value) == {"1": [0.5, [1.0, None]], "b": None, "c": "x", "d": 3}
    assert json.loads(dumps(value), parse_constant=pytest.fail)["d"] == 3


def test_all_files_or_none(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="folder"):
        write_texts({tmp_path / "new" / "a.txt": "a", tmp_path / "taken": "b"})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["taken"]


def test_the_old_file_stays_when_the_new_one_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_texts({tmp_path / "a.txt": "new"})
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_folders_are_made_and_files_readable(tmp_path: Path) -> None:
    write_texts({tmp_path / "x" / "y" / "a.txt": "ü"})
    path = tmp_path / "x" / "y" / "a.txt"
    assert path.read_text(encoding="utf-8") == "ü"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(DataError, match="cannot write"):
        write_texts({tmp_path / "f" / "a.txt": "a"})
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
