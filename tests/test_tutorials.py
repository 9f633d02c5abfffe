"""The notebooks run from an empty folder, and what is committed was executed, small and free of noise."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "tutorials"
NOTEBOOKS = sorted(p.name for p in FOLDER.glob("*.ipynb"))
MOST_BYTES = 300_000


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in code(notebook) for output in cell.outputs]


def shapes(notebook: Any) -> list[list[tuple[str, str]]]:
    """Kinds of the outputs of each cell."""
    return [[(o.output_type, o.get("name", "")) for o in cell.outputs] for cell in code(notebook)]


def test_there_are_tutorials_and_each_is_listed() -> None:
    assert len(NOTEBOOKS) >= 2
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_notebook_is_executed_small_and_quiet(name: str) -> None:
    path = FOLDER / name
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST_BYTES
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text[:300]
    shown = path.read_text(encoding="utf-8")
    places = [
        str(FOLDER.parent),
        sys.prefix,
        tempfile.gettempdir(),
        str(Path.home()),
        "site-packages",
        "/home/",
        "/Users/",
    ]
    assert not [place for place in places if place in shown]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name: str) -> None:
    spec = importlib.util.spec_from_file_location("execute_tutorials", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fresh = module.execute(FOLDER / name)  # raises at the first cell that fails
    assert shapes(fresh) == shapes(nbformat.read(FOLDER / name, as_version=4)), "run `make tutorials`"
