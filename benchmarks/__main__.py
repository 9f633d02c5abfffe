"""``python -m benchmarks``: measure cases and write ``RESULTS.md``."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks import cases, run, tables


def _about(arguments: list[str]) -> dict[str, object]:
    """Return machine, versions, date and command of a run."""
    versions = {"Python": platform.python_version()}
    for package in ("torch", "pyro-ppl", "jax", "numpyro", "nutpie"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "command": " ".join(["python -m benchmarks", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions,
        "commit": commit or "unknown",
    }


def main(arguments: list[str]) -> int:
    """Measure.

    Args:
        arguments: Of the command line.

    Returns:
        0, or 1 if a case was refused.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--cases", default=",".join(cases.NAMES), help="names, separated by commas")
    parser.add_argument("--only", default="", help="contenders, separated by commas; all unless given")
    parser.add_argument("--repeats", type=int, default=9, help="turns of every contender")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="cores of a contender")
    parser.add_argument("--draws", type=int, default=1_000, help="of NUTS, a chain, after as many of warm-up")
    parser.add_argument("--quick", action="store_true", help="short turns and few draws, to see whether it runs")
    parser.add_argument("--out", type=Path, default=Path(tables.__file__).parent, help="folder of RESULTS.md")
    options = parser.parse_args(arguments)
    names = [n for n in options.cases.split(",") if n]
    unknown = sorted(set(names) - set(cases.NAMES))
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; there are {', '.join(cases.NAMES)}")
    refused, about = 0, _about(arguments)
    for name in names:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        print(name, flush=True)
        try:
            result = run.measure(
                name,
                threads=options.threads,
                repeats=options.repeats,
                seconds=0.02 if options.quick else 0.2,
                draws=100 if options.quick else options.draws,
                only=[n for n in options.only.split(",") if n],
                say=lambda text: print(text, flush=True),
            )
        except run.Refused as error:
            refused += 1
            print(f"refused: {error}", file=sys.stderr, flush=True)
            continue
        print(tables.write({**result, "about": {**about, "load": load}}, options.out), flush=True)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
