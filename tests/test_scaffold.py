"""``zoo new``: what it writes works as it is, says that it is a scaffold, and replaces nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from zoo import cli, registry
from zoo.errors import DataError, PairError
from zoo.scaffold import checkout, new

ROOT = Path(__file__).parent.parent
ALONE = ["mine.py", "test_mine.py"]


def zoo(*args: str) -> Result:
    return CliRunner().invoke(cli.app, list(args))


def python(*args: str, cwd: Path, path: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def scaffolds(root: Path) -> set[str]:
    """Methods of a checkout of which some part is still the template's."""
    found = set()
    for entry in registry.scan(root / "zoo" / "models"):
        name = entry.name
        parts = [entry.path, root / "tests" / "models" / f"test_{name}.py", root / "docs" / f"{name}.md"]
        row = [line for line in (root / "README.md").read_text().splitlines() if line.startswith(f"| `{name}`")]
        if any("Scaffold" in text for text in [*(p.read_text() for p in parts if p.exists()), *row]):
            found.add(name)
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of this package with a fresh method in it."""
    root = tmp_path_factory.mktemp("checkout") / "pyro-zoo"
    for name in ("zoo", "tests", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    python("-m", "zoo", "--quiet", "new", "my_method", cwd=root / "tests", path=root)
    return root


# ------------------------------------------------------------------------------------------------- in a checkout
@pytest.mark.xdist_group("scaffold")
def test_a_fresh_scaffold_is_listed_documented_and_marked(copy: Path) -> None:
    assert "my_method" in python("-m", "zoo", "--quiet", "list", cwd=copy, path=copy).split()
    assert "Scaffold" in python("-m", "zoo", "show", "my_method", cwd=copy, path=copy)
    assert "[my_method](my_method.md)" in (copy / "docs" / "README.md").read_text()
    assert "$$" in (copy / "docs" / "my_method.md").read_text()
    assert scaffolds(copy) == {"my_method"}


def test_no_registered_method_is_a_scaffold() -> None:
    left = scaffolds(ROOT)
    assert not left, (
        f"{left}: replace what the word Scaffold still marks in the file, its test, its page and the README"
    )


@pytest.mark.xdist_group("scaffold")
def test_a_fresh_scaffold_passes_the_conformance_tests_and_its_own(copy: Path) -> None:
    files = ("tests/test_conformance.py", "tests/test_pages.py", "tests/models/test_my_method.py")
    shown = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "my_method", *files, cwd=copy, path=copy)
    own = shown.split(" passed")[0].split()[-1]
    assert int(own) > 20, shown


@pytest.mark.xdist_group("scaffold")
def test_what_is_there_is_not_overwritten(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    before = {p: p.read_bytes() for p in copy.rglob("*.*") if p.is_file() and p.suffix in (".py", ".md")}
    for name, problem in (
        ("my_method", "my_method.py' exists"),
        ("eight_schools", "method 'eight_schools' exists"),
        ("parts_handlers", "test_parts_handlers.py' exists"),
    ):
        with pytest.raises(DataError, match=problem):
            new(name)
    readme = (copy / "README.md").read_text()
    (copy / "README.md").write_text("no table")
    with pytest.raises(DataError, match="no table under the heading"):
        new("another")
    (copy / "README.md").write_text(readme)
    assert {p: p.read_bytes() for p in before} == before
    broken = copy / "zoo" / "models" / "broken.py"
    broken.write_text("METHOD = 1\n")
    with pytest.raises(PairError, match=r"broken\.py"):
        new("another")
    broken.unlink()
    assert not list(copy.rglob("*another*"))


def test_checkout_is_found_from_its_folders_only(tmp_path: Path) -> None:
    assert checkout(ROOT / "tests" / "models") == ROOT
    assert checkout(tmp_path) is None
    (tmp_path / "zoo" / "models").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert checkout(tmp_path) is None


# ----------------------------------------------------------------------------------------------- files that stand alone
def test_files_alone_work_in_python_and_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = zoo("new", "mine")
    assert result.exit_code == 0, result.output
    assert "wrote: mine.py" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ALONE
    assert zoo("check", "mine.py").exit_code == 0
    script = "import mine, zoo; print(sorted(zoo.fit(mine.METHOD, steps=20, compile=False).summary()))"
    assert "largest coefficient" in python("-c", script, cwd=tmp_path, path=ROOT)
    assert "6 passed" in python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path, path=ROOT)
    for name in ALONE:
        (tmp_path / name).write_text("mine")
    assert "exists and is not overwritten" in zoo("new", "mine").stderr
    assert all((tmp_path / name).read_text() == "mine" for name in ALONE)


def test_out_names_the_folder_also_inside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert zoo("--quiet", "new", "mine", "--out", str(tmp_path / "a")).stdout.split() == [
        str(tmp_path / "a" / name) for name in ALONE
    ]
    assert not (ROOT / "zoo" / "models" / "mine.py").exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("class", "cannot name a method"),
        ("My", "cannot name a method"),
        ("my-method", "cannot name a method"),
        ("_mine", "cannot name a method"),
        ("../mine", "cannot name a method"),
        ("eight_schools", "exists; choose another name"),
        ("torch", "installed module"),
    ],
)
def test_bad_names_are_one_line_and_write_nothing(
    name: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = zoo("new", name)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
