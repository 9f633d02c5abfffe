"""The oldest nutpie that is supported, the newest that there is, and the one that is installed, each as a wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.inference import nutpie_worker as theirs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


@pytest.mark.parametrize("wanted", ["", "nutpie==0.16.8", "nutpie"], ids=["installed", "oldest", "newest"])
def test_versions(wanted, tmp_path):
    path = [ROOT, *filter(None, [os.environ.get("PYTHONPATH", "")])]
    if wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--retries=0", "--timeout=10", "--target", str(tmp_path), wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            pytest.skip(f"no wheel of {wanted} for this Python, or no network: {reason}")
        path.insert(0, str(tmp_path))
    done = subprocess.run(
        [sys.executable, theirs.__file__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if "==" in wanted:
        assert found["version"] == wanted.partition("==")[2]
    for name in ("pointers", "python", "low rank"):
        one = found[name]
        assert one["shapes"]["flat"] == [400, theirs.SIZE]
        assert {tuple(s) for n, s in one["shapes"].items() if n not in ("flat", "evaluations")} == {(400,)}
        assert np.abs(one["z"]).max() < 0.3
        assert np.abs(np.log(one["sd"])).max() < 0.3
        chain, draws, total, *_ = one["report"]
        assert (chain, total) == (1, 600)
        assert 0 < draws <= 600  # told while the chain was under way
    assert np.allclose(found["pointers"]["flat"], found["python"]["flat"], rtol=1e-4)
