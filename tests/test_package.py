"""The wheel, installed and run from another folder, lists and fits; listing imports no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # aside, so that no build folder is left in the checkout
    shutil.copytree(ROOT / "zoo", source / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("pyro_zoo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, *args: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "zoo", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", env=environment).stdout


@pytest.mark.xdist_group("wheel")
def test_wheel_holds_only_the_package_and_its_data(site: Path) -> None:
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert top == {"zoo"}
    for name in (
        "py.typed",
        "datasets/bundled/NOTICE",
        "datasets/bundled/mnist.npz",
        "datasets/bundled/posteriordb/arK-arK.json.gz",
        "models/_template_test.py",
        "reports/templates/report.html.j2",
        "reports/templates/comparison.html.j2",
    ):
        assert (site / "zoo" / name).is_file(), name


@pytest.mark.xdist_group("wheel")
def test_wheel_lists_and_fits_from_the_root_folder(site: Path, tmp_path: Path) -> None:
    where = run(site, "--json", "list")
    assert {entry["name"] for entry in json.loads(where)} >= {"eight_schools", "bayesian_compression"}
    out = tmp_path / "p"
    run(
        site,
        "fit",
        "eight_schools",
        "--engine",
        "svi",
        "--steps",
        "20",
        "--no-compile",
        "--no-report",
        "--out",
        str(out),
    )
    assert (out / "posterior.safetensors").is_file()
    run(site, "new", "mine", "--out", str(tmp_path))
    assert {"mine.py", "test_mine.py"} <= {path.name for path in tmp_path.iterdir()}


def test_every_tested_version_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    names = {d.split(">")[0].split("<")[0].split("=")[0].strip().lower() for d in wanted}
    assert names <= pins, sorted(names - pins)


def test_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert zoo.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
