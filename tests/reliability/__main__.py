"""Run the long versions of the reliability tests and write RELIABILITY.md: ``make soak``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.reliability.killing import CASES, Killed, kill_and_resume, launcher

ROOT = Path(__file__).parents[2]


def kills(count: int, seed: int) -> list[tuple[str, int, Killed]]:
    """Kill fits of every kind.

    Args:
        count: Kills per case.
        seed: Of the moments.

    Returns:
        Case, steps between its checkpoints, and what happened.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="zoo-soak-") as folder, launcher(Path(folder) / "runs") as run:
        for case in CASES:
            found.append((case.name, case.every, kill_and_resume(run, case, kills=count, seed=seed)))
            print(f"killed: {case.name}: {found[-1][2]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="per kind of fit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills(options.kills, options.seed)


if __name__ == "__main__":
    main()
