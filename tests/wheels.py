"""Other versions of a library that the zoo supports, beside the installed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def environment(folder: Path, *wanted: str) -> dict[str, str]:
    """Return an environment in which some wheels go before what is installed; skip where pip finds none."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    if wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--retries=0", "--timeout=10", "--target", str(folder), *wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            pytest.skip(f"no wheel of {', '.join(wanted)} for this Python, or no network: {reason}")
        path.insert(0, str(folder))
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
