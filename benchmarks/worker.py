"""The process of one contender: it waits for a line of JSON, does what it says, and answers with one.

``python -m benchmarks.worker CASE CONTENDER THREADS``; started by :mod:`benchmarks.run`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from typing import Any

_CHECK_SECONDS, _CHECK_LEAST, _CHECK_MOST = 1.0, 20, 300


def _memory() -> float:
    """Return the largest memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class SviWorker:
    """Answers for a contender of SVI.

    Args:
        case: Its name.
        contender: Its name.
    """

    def __init__(self, case: str, contender: str) -> None:
        from benchmarks import cases, svi

        self.case: Any = cases.get(case)
        self.build = svi.make(contender)

    def ready(self) -> dict[str, Any]:
        """Answer, once everything is imported."""
        return {}

    def setup(self) -> dict[str, Any]:
        """Build and take the first step."""
        began = time.perf_counter()
        self.contender = self.build(self.case)
        return {"seconds": time.perf_counter() - began, "note": self.contender.note}

    def check(self) -> dict[str, Any]:
        """Return losses at the initial parameters, each with fresh noise."""
        began, found = time.perf_counter(), list[float]()
        while len(found) < _CHECK_MOST:
            found.append(self.contender.first_loss())
            if len(found) >= _CHECK_LEAST and time.perf_counter() - began > _CHECK_SECONDS:
                break
        return {"losses": found}

    def steps(self, seconds: float) -> dict[str, Any]:
        """Return how many steps take about so long."""
        count, chunk = self.contender.chunk, self.contender.chunk
        while True:
            began = time.perf_counter()
            self.contender.run(count)
            passed = time.perf_counter() - began
            if passed > 0.1 * seconds:
                return {"steps": max(chunk, round(count * seconds / passed / chunk) * chunk)}
            count *= 4

    def time(self, steps: int) -> dict[str, Any]:
        """Return the seconds of a step, by the clock and of the processor, starting at the initial parameters."""
        chunk = self.contender.chunk
        self.contender.first_loss()
        self.contender.run(max(chunk, steps // 10 // chunk * chunk))
        began, cpu = time.perf_counter(), time.process_time()
        self.contender.run(steps)
        return {
            "seconds": (time.perf_counter() - began) / steps,
            "cpu": (time.process_time() - cpu) / steps,
        }

    def memory(self) -> dict[str, Any]:
        """Return the peak of this process, in MiB."""
        return {"mib": _memory()}


def main() -> None:
    """Answer until the input ends."""
    case, contender, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # What libraries print must not reach the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    worker: Any
    if contender.startswith("nuts_"):
        from benchmarks.nuts import NutsWorker

        worker = NutsWorker(case, contender)
    else:
        worker = SviWorker(case, contender)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except Exception as error:  # what a framework cannot do is a result, and is reported
            text = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
            answer = {"error": f"{type(error).__name__}: {text}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
