"""Kill running fits at random moments, resume them, and compare the end with that of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reliability.zygote import STEP

__all__ = ["CASES", "Case", "Killed", "Launcher", "kill_and_resume", "launcher"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """A fit that is killed.

    Args:
        name: What it is called in a table.
        args: Of ``zoo fit``, without the folder.
        every: Steps between its checkpoints; 0: finished chains are kept.
        total: Steps of all restarts, or chains.
    """

    name: str
    args: tuple[str, ...]
    every: int
    total: int


_SVI = ("--engine", "svi", "--no-report")
_ROWS = ("horseshoe_regression", "--data", "diabetes", *_SVI, "--batch-size", "32")
CASES = (
    Case(
        "full batch, eager",
        ("eight_schools", *_SVI, "--steps", "200", "--checkpoint-every", "10", "--no-compile"),
        10,
        200,
    ),
    Case(
        "mini-batches, eager",
        (*_ROWS, "--steps", "200", "--checkpoint-every", "10", "--no-compile"),
        10,
        200,
    ),
    Case(
        "mini-batches, compiled",
        (*_ROWS, "--steps", "20000", "--checkpoint-every", "500"),
        500,
        20_000,
    ),
    Case(
        "three restarts, eager",
        ("eight_schools", *_SVI, "--steps", "50", "--checkpoint-every", "5", "--restarts", "3", "--no-compile"),
        5,
        150,
    ),
    Case(
        "NUTS, compiled",
        ("eight_schools", "--no-report", "--checkpoint", "--chains", "6", "--tune", "1000", "--draws", "2000"),
        0,
        6,
    ),
)


@dataclass
class Killed:
    """What happened.

    Args:
        kills: Fits that were killed while they ran.
        finished: Runs that came to their end and equal the run that was left alone.
        lost: Largest number of steps between the latest checkpoint and the step at which a fit was killed.
        early: Kills before the first checkpoint.
    """

    kills: int = 0
    finished: int = 0
    lost: int = 0
    early: int = 0


class Launcher:
    """Runs commands as children of a :mod:`~tests.reliability.zygote`.

    Args:
        process: The zygote.
        folder: Working folder of the children, and of their logs.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self.folder = process, folder
        self.log = folder.parent / f"{folder.name}.log"
        self.selector = selectors.DefaultSelector()
        assert process.stdout is not None
        self.selector.register(process.stdout, selectors.EVENT_READ)

    def run(
        self,
        args: Sequence[str],
        *,
        when: Callable[[float], bool] = lambda _: False,
        kind: int = signal.SIGKILL,
        file_limit: int = 0,
    ) -> tuple[int, float, str]:
        """Run a command to its end, or send it a signal at some moment.

        Args:
            args: Of ``zoo``.
            when: Whether it is time for the signal, asked again and again with the seconds that have passed.
            kind: The signal.
            file_limit: Largest size of a file that it may write, in bytes; 0: any.

        Returns:
            Exit status (negative: the signal that ended it), seconds, and what it printed.
        """
        task = {"args": list(args), "folder": str(self.folder), "log": str(self.log), "file_limit": file_limit}
        assert self.process.stdin is not None
        Path(f"{self.log}.{STEP}").unlink(missing_ok=True)
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        pid, begun = self._read()["pid"], time.monotonic()
        while not self.selector.select(0.002):
            if when(time.monotonic() - begun):
                os.kill(pid, kind)
                break
        status = int(self._read()["status"])
        return status, time.monotonic() - begun, self.log.read_text(encoding="utf-8", errors="replace")

    def reached(self) -> tuple[int, int]:
        """Return the restart and the step that the latest command had reached."""
        path = Path(f"{self.log}.{STEP}")
        fit, step = (path.read_text() if path.exists() else "").split() or (0, 0)
        return int(fit), int(step)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the zygote is gone"
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def launcher(folder: Path) -> Iterator[Launcher]:
    """Start a zygote whose children work in a folder.

    Args:
        folder: Made if absent.

    Yields:
        What runs commands.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.reliability.zygote"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            found = Launcher(process, folder)
            found._read()
            yield found
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def kill_and_resume(run: Launcher, case: Case, *, kills: int, seed: int) -> Killed:
    """Kill a fit until that has happened so often, each time at a random moment of the whole run, and resume it.

    Args:
        run: What runs commands.
        case: The fit.
        kills: How often.
        seed: Of the moments.

    Returns:
        What happened.
    """
    random_ = random.Random(seed)
    mark = f"{case.name}-{seed}".replace(" ", "_").replace(",", "")
    alone = run.folder / f"{mark}-alone"
    begin = ("fit", *case.args, "--out")
    status, seconds, text = run.run((*begin, str(alone)))
    assert status == 0, text
    if "--no-compile" not in case.args:  # the first run compiled what later ones find
        status, seconds, text = run.run((*begin, str(run.folder / f"{mark}-compiled")))
    expected, found, number = (alone / "posterior.safetensors").read_bytes(), Killed(), 0
    while found.kills < kills:
        number += 1
        folder, more = run.folder / f"{mark}-{number}", True
        while more:
            resumable = (folder / "fit.json").exists()
            args = ("fit", "--resume", str(folder)) if resumable else (*begin, str(folder))
            before = _newest(folder)
            when = _moment(run, case, folder, seconds, random_) if found.kills < kills else _never
            status, _, text = run.run(args, when=when)
            more = not (folder / "posterior.json").exists()
            if status == -signal.SIGKILL:
                found.kills += 1
                found.early += not _any(folder)
                if case.every and more:
                    assert _newest(folder) >= before, f"{mark}: a checkpoint was lost"
                    found.lost = max(found.lost, _lost(folder, *run.reached()))
            else:
                assert status == 0, f"{mark}: {' '.join(args)}: exit status {status}: {text}"
                assert not more, f"{mark}: no posterior: {text}"
        assert (folder / "posterior.safetensors").read_bytes() == expected, f"{mark}-{number} ended otherwise"
        found.finished += 1
    return found


def _never(_: float) -> bool:
    return False


def _moment(run: Launcher, case: Case, folder: Path, seconds: float, random_: random.Random) -> Callable[[float], bool]:
    """Choose a moment: at some time of the run, from its start to its last file, or soon after some step or chain."""
    if random_.random() < 0.5:
        after = random_.uniform(0.0, seconds)
        return lambda passed: passed > after

    def progress() -> int:
        if not case.every:
            return len(list(folder.glob("chain-*")))
        fit, step = run.reached()
        return fit * case.total // (3 if "--restarts" in case.args else 1) + step

    target, pause = random_.randint(1, case.total), random_.uniform(0.0, 0.03)

    def reached(_: float) -> bool:
        if progress() < target:
            return False
        time.sleep(pause)
        return True

    return reached


def _any(folder: Path) -> bool:
    return any(True for name in ("checkpoint-*", "restart-*/checkpoint-*", "chain-*") for _ in folder.glob(name))


def _newest(folder: Path) -> tuple[int, int]:
    """Return the restart and the step of the newest checkpoint."""
    places = enumerate([folder, *sorted(folder.glob("restart-*"))])
    return max(((i, int(p.name[11:20])) for i, at in places for p in at.glob("checkpoint-*")), default=(0, 0))


def _lost(folder: Path, restart: int, step: int) -> int:
    at = folder / f"restart-{restart}" if (folder / "restart-0").exists() else folder
    return step - max((int(path.name[11:20]) for path in at.glob("checkpoint-*")), default=0)
