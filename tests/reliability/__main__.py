"""Run the long versions of the reliability tests and write RELIABILITY.md: ``make soak``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.fuzzing import SECONDS, Fuzzed
from tests.reliability.inputs import tried
from tests.reliability.killing import CASES, Case, Killed, kill_and_resume, launcher
from zoo.claims import machine, versions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "RELIABILITY.md"


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


def fuzz(count: int, seed: int) -> Fuzzed:
    """Examine mutated files in a process of their own, whose memory is theirs; what must not happen raises.

    Args:
        count: How many.
        seed: Of the mutants.

    Returns:
        What became of them.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.reliability.fuzzing", str(count), str(seed)]
    child = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = Fuzzed(**json.loads(child.stdout))
    if found.peak >= 2**30:
        raise AssertionError(f"reading took up to {found.peak:,} bytes of memory; a gigabyte is allowed")
    print(f"fuzzed: {found}", flush=True)
    return found


def _killed(killed: list[tuple[Case, Killed]]) -> list[str]:
    lines = [
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
    return [*lines, "", f"{sum(found.kills for _, found in killed)} kills in all.", ""]


def _fuzzed(found: Fuzzed) -> list[str]:
    lines = [
        "## Mutated files",
        "",
        "Artifacts, checkpoints and files of data are mutated and read. Checksums find accidents. Where it says "
        "*sealed*, the checksums were made right again, as an adversary would: what no fit could have made is refused, "
        "other changes make another artifact. *Refused* is one line of a typed error, *same* is the posterior that "
        "predicts bit for bit what the original does, *other* is another posterior or other data, whole in itself. The "
        "first schema had no checksum of its JSON: of an accident only such a file may become another artifact. "
        f"Nothing crashed, and nothing took {SECONDS} seconds.",
        "",
        "| mutation | files | refused | same | other |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, became in found.became.items():
        counts = [became.get(what, 0) for what in ("refused", "same", "other")]
        lines.append(f"| {kind} | {sum(counts)} | {counts[0]} | {counts[1]} | {counts[2]} |")
    total = sum(sum(became.values()) for became in found.became.values())
    return [
        *lines,
        "",
        f"{total:,} files in all. The process that made and read them held at most {found.peak / 1e6:,.0f} MB of "
        f"memory, of which {found.before / 1e6:,.0f} MB before the first of them.",
        "",
    ]


def _inputs(found: dict[str, dict[str, int]]) -> list[str]:
    lines = [
        "## Bad inputs",
        "",
        "Inputs to the command line and to `zoo.fit`. *Refused* is one line that names what is wrong, exit status 2 "
        "(in Python a typed error), no traceback, and nothing written; *fitted* is a whole fit, where an input is "
        "strange but sound. Nothing else happened, and neither random state nor default type changed.",
        "",
        "| input | tried | refused | fitted |",
        "|---|---:|---:|---:|",
    ]
    for kind, became in found.items():
        refused, fine = became.get("refused", 0), became.get("fine", 0)
        lines.append(f"| {kind} | {refused + fine} | {refused} | {fine} |")
    return [*lines, "", f"{sum(sum(became.values()) for became in found.values()):,} inputs in all.", ""]


def page(
    killed: list[tuple[Case, Killed]],
    fuzzed: Fuzzed,
    inputs: dict[str, dict[str, int]],
    command: str,
    seconds: float,
) -> str:
    """Write the page.

    Args:
        killed: From :func:`kill`.
        fuzzed: From :func:`fuzz`.
        inputs: From :func:`~tests.reliability.inputs.tried`.
        command: What was run.
        seconds: How long it took.

    Returns:
        Markdown.
    """
    where, used = machine(), ", ".join(f"{k} {v}" for k, v in versions().items())
    lines = [
        "# What faults a fit, an artifact and an input survive",
        "",
        f"Made by `{command}` in {seconds / 60:.0f} minutes; it stops at the first that ends otherwise than it should.",
        "",
        *_killed(killed),
        *_fuzzed(fuzzed),
        *_inputs(inputs),
        f"Measured on {where['processor']}, {where['cores']} cores, {where['system']}; {used}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="per kind of fit")
    parser.add_argument("--files", type=int, default=2_500, help="mutated files")
    parser.add_argument("--inputs", type=int, default=2_000, help="bad inputs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    fuzzed = fuzz(options.files, options.seed)
    inputs = tried(options.inputs, options.seed)
    print(f"inputs: {inputs}", flush=True)
    killed = kill(options.kills, options.seed)
    command = " ".join(["python -m tests.reliability", *sys.argv[1:]])
    PAGE.write_text(page(killed, fuzzed, inputs, command, time.monotonic() - started), encoding="utf-8")


if __name__ == "__main__":
    main()
