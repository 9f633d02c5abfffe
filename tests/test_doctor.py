"""``zoo doctor`` tells what is there, and exits as what it found."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import zoo
from zoo import cli, doctor
from zoo.inference.runner import git_state


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["doctor", *args])
    assert result.exit_code == code, result.output
    return result.stdout


def test_it_compiles_in_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    found = json.loads(run("--json"))
    assert found["compiles"]["works"] is True
    assert found["compiles"]["seconds"] > 0.5  # not found in a cache
    assert found["problems"] == []
    assert found["cache"] == {"folder": str(tmp_path / "cache/pyro_zoo"), "writable": True, "files": 0, "bytes": 0}
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert found["variables"]["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache")


def test_the_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.match(r"[\w-]+", line)[0] for line in lines}  # type: ignore[index]

    assert set(doctor.NEEDED) == names(project["dependencies"])
    extras = {
        extra: lines for extra, lines in project["optional-dependencies"].items() if extra not in ("test", "bench")
    }
    assert set(doctor.EXTRAS) == set().union(*map(names, extras.values()))


def test_versions_and_threads_are_those_that_run() -> None:
    found = json.loads(run("--json", "--no-compile"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["python"]["version"] == sys.version.split()[0]
    assert found["threads"]["within"] == torch.get_num_threads()
    assert found["compiles"] == {"works": None, "seconds": None, "reason": ""}
    assert found["git"] == git_state()
    assert found["cores"]["machine"] >= found["cores"]["usable"] >= 1
    assert all(found["versions"].values())


def test_what_is_wrong_is_said_and_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(doctor, "NEEDED", (*doctor.NEEDED, "no-such-package"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
    text = run(code=1)
    problems = " ".join(text.split()).split("problem: ")[1:]  # long lines are wrapped
    assert len(problems) == 3
    assert "no-such-package" in problems[0]
    assert "no C++ compiler is installed (looked for no-such-compiler)" in problems[1]
    assert "cannot be written" in problems[2]
    assert len(run("--quiet", code=1).splitlines()) == 3


def test_a_compiler_that_fails_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    found = json.loads(run("--json", code=1))
    assert found["compiles"]["works"] is False
    assert "cannot be compiled" in found["compiles"]["reason"]


def test_the_table_names_everything() -> None:
    text = run("--no-compile")
    for word in ("pyro-zoo", "python", "system", "threads", "devices", "compiler", "cache", "variables", "not tried"):
        assert word in text
    assert zoo.__version__ in text


def test_artifact_and_report_say_where_the_numbers_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["fit", "eight_schools", "--out", "p", "--engine", "svi", "--steps", "40", "--seed", "3", "--no-compile"]
    assert CliRunner().invoke(cli.app, args).exit_code == 0
    saved = json.loads(Path("p/posterior.json").read_text())["info"]
    reported = json.loads(Path("p/report.json").read_text())
    page = Path("p/report.html").read_text()
    for facts in (saved, reported["fit"]):
        assert facts["seed"] == 3
        assert facts["device"] == "cpu"
        assert facts["threads"] == torch.get_num_threads()
        assert facts["git"] == git_state()
        assert facts["versions"]["torch"] == torch.__version__
        assert facts["command"] == f"zoo {' '.join(args)}"
    assert reported["command"] == f"zoo {' '.join(args)}"
    assert f"zoo {' '.join(args)}" in page
    for label in ("Seed", "Device", "Threads", "Machine", torch.__version__):
        assert label in page
    state = git_state()
    assert state is None or f"commit {state['commit'][:12]}" in page


def test_a_checkout_says_its_commit() -> None:
    state = git_state()
    if not (Path(zoo.__file__).parents[1] / ".git").exists():
        assert state is None
    elif state is not None:  # git may be absent
        assert len(state["commit"]) == 40
        assert isinstance(state["changed"], bool)
