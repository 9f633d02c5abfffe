"""A bad input is one line and exit status 2, or a typed error, and nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import zoo
from tests.reliability.inputs import Call, Command, _fitted, calls, commands, examine_call, examine_command
from zoo.errors import EngineError, UnknownNameError

OPTIONS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made() -> None:
    """Make what is predicted with before commands are drawn: a fit draws random numbers, which a strategy must not."""
    _fitted()


@pytest.mark.usefixtures("made")
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, **OPTIONS)
@given(command=commands())
def test_bad_input_on_the_command_line(command: Command, tmp_path_factory: pytest.TempPathFactory) -> None:
    examine_command(command, tmp_path_factory.getbasetemp() / "inputs" / "here")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, **OPTIONS)
@given(call=calls())
def test_bad_input_from_python(call: Call, tmp_path_factory: pytest.TempPathFactory) -> None:
    examine_call(call, tmp_path_factory.getbasetemp() / "inputs" / "none")


def test_draws_that_no_memory_holds_are_refused_before_they_are_drawn() -> None:
    with pytest.raises(EngineError, match="4 chains of 100,000,000 draws, each of 10 numbers"):
        zoo.fit("eight_schools", engine="nuts", draws=10**8, tune=10)


def test_the_nearest_column_of_ten_thousand_is_suggested_and_the_others_are_not_listed() -> None:
    table = {f"x{i}": [0.5, i, 3.25, 4.5] for i in range(10_000)}
    with pytest.raises(UnknownNameError, match=r"'x99999' is unknown; did you mean 'x9999'\?") as caught:
        zoo.datasets.read(table, target="x99999")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("fit", "eight_schools", "--steps", "-5"), "invalid value for '--steps': "),
        (("fit", "eight_schools", "--out", "file/x"), "cannot write to 'file/x'"),
        (("fit", "eigth_schools"), "did you mean 'eight_schools'"),
    ],
)
def test_a_process_of_its_own_says_one_line_and_with_debug_where(
    args: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "zoo", *args]
    more = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    plain = subprocess.run(command, check=False, **more)
    assert plain.returncode == 2
    assert plain.stdout == ""
    last = plain.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert text in last
    assert "Traceback" not in plain.stderr
    told = subprocess.run([*command, "--debug"], check=False, **more)
    assert told.returncode != 0
    assert ("Traceback" in told.stderr) == ("--steps" not in args)  # wrong usage shows the usage instead
    assert ("Usage" in told.stderr) == ("--steps" in args)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
