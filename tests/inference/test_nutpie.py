"""The oldest nutpie that is supported, the newest that there is, and the one that is installed, each as a wheel."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.inference import nutpie_worker as theirs
from tests.wheels import environment


@pytest.mark.parametrize("wanted", ["", "nutpie==0.16.8", "nutpie"], ids=["installed", "oldest", "newest"])
def test_versions(wanted, tmp_path):
    done = subprocess.run(
        [sys.executable, theirs.__file__],
        env=environment(tmp_path, *filter(None, [wanted])),
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
