"""A fit that is killed, stopped or out of space loses at most one checkpoint interval and ends as it would have."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoo
from tests.reliability.killing import CASES, Launcher, kill_and_resume, launcher
from zoo import outputs

pytestmark = pytest.mark.xdist_group("killing")
FIT = ("fit", *CASES[0].args, "--out")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with launcher(tmp_path_factory.mktemp("killing") / "runs") as found:
        yield found


@pytest.fixture(scope="module")
def alone(run: Launcher) -> bytes:
    """What the fit gives when it is left alone."""
    status, _, text = run.run((*FIT, "alone"))
    assert status == 0, text
    return (run.folder / "alone/posterior.safetensors").read_bytes()


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=lambda c: c.name)
def test_killed_anywhere_and_resumed(run: Launcher, case) -> None:
    found = kill_and_resume(run, case, kills=3, seed=0)
    assert found.kills == 3
    assert found.finished >= 1
    assert found.lost <= case.every


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(run: Launcher, alone: bytes) -> None:
    status, _, text = run.run((*FIT, "stopped"), when=lambda _: run.reached()[1] > 25, kind=signal.SIGINT)
    assert status == 130, text
    assert text.splitlines()[-1] == "error: interrupted; go on with: zoo fit --resume stopped"
    assert "Traceback" not in text
    newest = max((run.folder / "stopped").glob("checkpoint-*"))
    assert run.reached() == (0, int(newest.name[11:20]))  # nothing is lost, not even a part of an interval
    assert run.run(("fit", "--resume", "stopped"))[0] == 0
    assert (run.folder / "stopped/posterior.safetensors").read_bytes() == alone


def test_a_full_disk_is_one_line_and_leaves_the_checkpoints(run: Launcher, alone: bytes, tmp_path: Path) -> None:
    # Checkpoints grow with the history of losses: the limit lies between the first and the last.
    options = {"engine": "svi", "steps": 200, "compile": False, "checkpoint_every": 100}
    zoo.fit("eight_schools", checkpoint=tmp_path, **options)
    limit = (tmp_path / "checkpoint-000000100.safetensors").stat().st_size + 40
    status, _, text = run.run((*FIT, "full"), file_limit=limit)
    assert status == 2, text
    last = text.splitlines()[-1]
    assert last == "error: cannot write a checkpoint to 'full': File too large; earlier ones are intact"
    assert "Traceback" not in text
    left = sorted(path.name for path in (run.folder / "full").iterdir())
    assert len([name for name in left if name.startswith("checkpoint-")]) == 2
    assert not [name for name in left if name.endswith(".part")]
    assert run.run(("fit", "--resume", "full"))[0] == 0
    assert (run.folder / "full/posterior.safetensors").read_bytes() == alone


def test_a_folder_has_one_fit_at_a_time(run: Launcher) -> None:
    shared = run.folder / "shared"
    with pytest.raises(RuntimeError), outputs.whole(shared, keep=True, resume=False) as stage:  # noqa: PT012
        (shared / outputs.SETTINGS).write_text("{}")
        status, _, text = run.run(("fit", "--resume", "shared"))
        assert status == 2
        assert "another process is writing to 'shared'" in text.splitlines()[-1]
        assert stage.exists()
        raise RuntimeError
