"""Run the long versions of the reliability tests and write RELIABILITY.md: ``make soak``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.killing import CASES, Case, Killed, kill_and_resume, launcher
from zoo.claims import machine, versions

PAGE = Path(__file__).parents[2] / "RELIABILITY.md"


def kill(count: int, seed: int) -> list[tuple[Case, Killed]]:
    """Kill fits of every kind; what does not end as the fit that was left alone raises.

    Args:
        count: Kills per case.
        seed: Of the moments.

    Returns:
        Case, and what happened.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="zoo-soak-") as folder, launcher(Path(folder) / "runs") as run:
        for case in CASES:
            found.append((case, kill_and_resume(run, case, kills=count, seed=seed)))
            print(f"killed: {case.name}: {found[-1][1]}", flush=True)
    return found


def page(killed: list[tuple[Case, Killed]], command: str, seconds: float) -> str:
    """Write the page.

    Args:
        killed: From :func:`kill`.
        command: What was run.
        seconds: How long it took.

    Returns:
        Markdown.
    """
    where, used = machine(), ", ".join(f"{k} {v}" for k, v in versions().items())
    lines = [
        "# What faults a fit outlives",
        "",
        f"Made by `{command}` in {seconds / 60:.0f} minutes; it stops at the first fit that ends otherwise than it "
        "should.",
        "",
        "## Killed",
        "",
        "A fit by `zoo fit --checkpoint` gets SIGKILL at a random moment of its run, from its start to its last file, "
        "is resumed with `zoo fit --resume`, and killed again. Every run that came to its end has the file "
        "`posterior.safetensors` of the run that was left alone, byte for byte. *Lost* is the largest number of steps "
        "between the newest checkpoint and the step at which the fit was killed; no checkpoint was ever lost. Of NUTS, "
        "finished chains are kept, and the others are drawn again.",
        "",
        "| fit | kills | of them before the first checkpoint | runs ended, all equal | lost | interval |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case, found in killed:
        lost, every = (f"{found.lost:,}", f"{case.every:,}") if case.every else ("–", "a chain")
        lines.append(f"| {case.name} | {found.kills} | {found.early} | {found.finished} | {lost} | {every} |")
    total = sum(found.kills for _, found in killed)
    place = f"{where['processor']}, {where['cores']} cores, {where['system']}"
    return "\n".join([*lines, "", f"{total} kills in all. {place}; {used}.", ""])


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="per kind of fit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    killed = kill(options.kills, options.seed)
    command = " ".join(["python -m tests.reliability", *sys.argv[1:]])
    PAGE.write_text(page(killed, command, time.monotonic() - started), encoding="utf-8")


if __name__ == "__main__":
    main()
