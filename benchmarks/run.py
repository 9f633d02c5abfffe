"""Set the contenders of a case up, refuse it if they differ, and let them take turns."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import cases, nuts, svi

__all__ = ["Refused", "measure"]

_ROOT = Path(__file__).resolve().parents[1]
# The losses of two contenders may differ by five standard errors of their means, and by what float32 rounds off.
_ERRORS, _ROUNDING = 5.0, 1e-4
Say = Callable[[str], None]


class Refused(Exception):
    """The contenders of a case do not compute the same thing."""


class _Process:
    """One contender in its process.

    Args:
        case: Name of the case.
        contender: Name of the contender.
        threads: Cores that it may use.
        cache: Folder of what it compiles, empty at first.
    """

    def __init__(self, case: str, contender: str, threads: int, cache: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if p),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "JAX_PLATFORMS": "cpu",
        }
        if threads == 1:
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        self.name = contender
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", case, contender, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Args:
            do: What to do.
            **order: How.

        Returns:
            The answer; one with ``error`` if it failed.
        """
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            return {"error": f"its process ended with status {self.child.wait()}"}
        line = self.child.stdout.readline()
        if not line:
            return {"error": f"its process ended with status {self.child.wait()}"}
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """End the process."""
        self.child.kill()
        self.child.communicate()


@contextmanager
def _processes(case: str, contenders: Sequence[str], threads: int) -> Iterator[list[_Process]]:
    with ExitStack() as stack:
        found = []
        for name in contenders:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True))
            process = _Process(case, name, threads, folder)
            stack.callback(process.end)
            found.append(process)
        for process in found:  # all have imported what they need before the first one's clock starts
            process.ask("ready")
        yield found


def _set_up(processes: Sequence[_Process], say: Say, **options: Any) -> tuple[list[_Process], dict[str, Any]]:
    """Set all contenders up, one after the other.

    Args:
        processes: All contenders.
        say: Told about progress.
        **options: Of the order.

    Returns:
        Those that can run, and what is known about all.
    """
    able, about = [], {}
    for process in processes:
        answer = process.ask("setup", **options)
        about[process.name] = answer
        if "error" in answer:
            say(f"  {process.name}: {answer['error']}")
        else:
            say(f"  {process.name}: set up in {answer['seconds']:.1f} s")
            able.append(process)
    return able, about


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"low": low, "median": middle, "high": high}


def _turns(names: Sequence[str], repeats: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the order of every repeat, each another, so that none always runs after the same one."""
    generator = random.Random(0)
    for repeat in range(repeats):
        yield repeat, generator.sample(list(names), len(names))


def _check_losses(found: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Compare the mean losses at the initial parameters.

    Args:
        found: Contender -> losses, each with fresh noise.

    Returns:
        Contender -> mean and its standard error.

    Raises:
        Refused: If one differs from the first, or is not finite.
    """
    for name, losses in found.items():
        if not all(math.isfinite(v) for v in losses):
            raise Refused(f"at the initial parameters a loss of {name} is not finite")
    means = {
        name: {"mean": statistics.fmean(v), "error": statistics.stdev(v) / math.sqrt(len(v)), "draws": len(v)}
        for name, v in found.items()
    }
    first, base = next(iter(means.items()))
    for name, one in means.items():
        room = _ERRORS * math.hypot(one["error"], base["error"]) + _ROUNDING * abs(base["mean"])
        if not abs(one["mean"] - base["mean"]) <= room:
            raise Refused(
                f"at the initial parameters {name} has the loss {one['mean']:,.5g} +- {one['error']:.2g}, {first} "
                f"{base['mean']:,.5g} +- {base['error']:.2g}; they may differ by {room:.2g}"
            )
    return means


def _svi(name: str, threads: int, repeats: int, seconds: float, say: Say, only: Sequence[str]) -> dict[str, Any]:
    case = cases.get(name)
    assert isinstance(case, cases.SviCase)
    contenders = [c for c in svi.CONTENDERS if c in (only or case.contenders or svi.CONTENDERS)]
    with _processes(name, contenders, threads) as processes:
        able, about = _set_up(processes, say)
        answers = {p.name: p.ask("check") for p in able}
        for process in list(able):
            if "error" in answers[process.name]:
                about[process.name] |= answers.pop(process.name)
                able.remove(process)
        means = _check_losses({n: a["losses"] for n, a in answers.items()})
        say("  all compute the same loss")
        by_name = {p.name: p for p in able}
        steps = {p.name: int(p.ask("steps", seconds=seconds)["steps"]) for p in able}
        times: dict[str, list[float]] = {n: [] for n in by_name}
        cpu: dict[str, list[float]] = {n: [] for n in by_name}
        for repeat, order in _turns(list(by_name), repeats):
            for one in order:
                answer = by_name[one].ask("time", steps=steps[one])
                times[one].append(float(answer["seconds"]))
                cpu[one].append(float(answer["cpu"]))
            say(f"  repeat {repeat + 1} of {repeats}")
        memory = {n: float(p.ask("memory")["mib"]) for n, p in by_name.items()}
    rows = {}
    for one in about:
        if one not in times:
            rows[one] = {"error": about[one]["error"]}
            continue
        rows[one] = {
            "seconds": times[one],
            "cpu": cpu[one],
            "ratios": [t / b for t, b in zip(times[one], times[svi.BASE], strict=True)] if svi.BASE in times else [],
            "setup": about[one]["seconds"],
            "note": about[one]["note"],
            "mib": memory[one],
            "loss": means[one],
            "steps": steps[one],
        }
    return {"kind": "svi", "title": case.title, "rows": rows}


def _check_means(found: Mapping[str, Mapping[str, Any]]) -> float:
    """Compare the posterior means of the last repeat.

    Args:
        found: Contender -> mean and Monte Carlo error of every scalar.

    Returns:
        The largest distance in combined Monte Carlo errors.

    Raises:
        Refused: If one is larger than five.
    """
    worst = 0.0
    first, base = next(iter(found.items()))
    for name, one in found.items():
        if name == first:
            continue
        distance = max(
            abs(a - b) / math.hypot(x, y)
            for a, b, x, y in zip(one["mean"], base["mean"], one["mcse"], base["mcse"], strict=True)
        )
        if not distance <= _ERRORS:
            raise Refused(f"a posterior mean of {name} is {distance:.1f} Monte Carlo errors from that of {first}")
        worst = max(worst, distance)
    return worst


def _nuts(name: str, threads: int, repeats: int, draws: int, say: Say, only: Sequence[str]) -> dict[str, Any]:
    case = cases.get(name)
    assert isinstance(case, cases.NutsCase)
    contenders = [c for c in nuts.CONTENDERS if not only or c in only]
    with _processes(name, contenders, threads) as processes:
        able, about = _set_up(processes, say, draws=draws)
        by_name = {p.name: p for p in able if p.name != "nuts_pyro"}
        runs: dict[str, list[dict[str, Any]]] = {n: [] for n in by_name}
        for repeat, order in _turns(list(by_name), repeats):
            for one in order:
                answer = by_name[one].ask("sample", seed=repeat + 1, draws=draws)
                if "error" in answer:
                    raise RuntimeError(f"{one}: {answer['error']}")
                runs[one].append(answer)
            say(f"  repeat {repeat + 1} of {repeats}")
        distance = _check_means({n: v[-1] for n, v in runs.items()})
        pyro = next((p for p in able if p.name == "nuts_pyro"), None)
        leapfrog = [pyro.ask("leapfrog", seed=k) for k in range(3)] if pyro is not None else []
        memory = {p.name: float(p.ask("memory")["mib"]) for p in able}
    rows: dict[str, Any] = {}
    for one, answer in about.items():
        if "error" in answer:
            rows[one] = {"error": answer["error"]}
        elif one in runs:
            rows[one] = {
                "per_second": [r["least"] / r["seconds"] for r in runs[one]],
                "setup": answer["seconds"],
                "mib": memory[one],
                **{k: [r[k] for r in runs[one]] for k in ("seconds", "least", "median", "leapfrogs", "divergences")},
            }
    rivals = [n for n in rows if n.startswith("nuts_numpyro") and "error" not in rows[n]]
    if leapfrog and rivals and not any("error" in a for a in leapfrog):
        # What Pyro would need for the trees that NumPyro built, two chains at a time.
        like = rows["nuts_numpyro_sequential" if "nuts_numpyro_sequential" in rivals else rivals[0]]
        each = statistics.median(a["seconds"] for a in leapfrog)
        seconds = [each * n / min(threads, 2) for n in like["leapfrogs"]]
        rows["nuts_pyro"] = {
            "per_second": [e / s for e, s in zip(like["least"], seconds, strict=True)],
            "seconds": seconds,
            "least": like["least"],
            "median": like["median"],
            "leapfrogs": like["leapfrogs"],
            "divergences": [],
            "setup": math.nan,
            "mib": memory["nuts_pyro"],
        }
    if nuts.BASE in rows:
        mine = rows[nuts.BASE]["per_second"]
        for row in rows.values():
            if "per_second" in row:
                row["ratios"] = [m / v for m, v in zip(mine, row["per_second"], strict=True)]
    return {"kind": "nuts", "title": case.title, "rows": rows, "distance": distance, "draws": draws}


def _slope(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the least-squares slope of log time over log size."""
    xs, ys = [math.log(s) for s in sizes], [math.log(t) for t in times]
    return statistics.linear_regression(xs, ys).slope


def _scaling(name: str, threads: int, repeats: int, seconds: float, say: Say) -> dict[str, Any]:
    from benchmarks.cases import scaling

    axis = name.removeprefix("scaling_")
    sizes = scaling.SIZES[axis]
    points = {}
    for size in sizes:
        say(f" {axis} {size:,}")
        rows = _svi(f"{name}:{size}", threads, repeats, seconds, say, ())["rows"]
        points[size] = {n: _quartiles(r["seconds"]) if "seconds" in r else None for n, r in rows.items()}
    slopes = {}
    for one in scaling.CONTENDERS:
        times = [found["median"] for p in points.values() if (found := p.get(one)) is not None]
        slopes[one] = _slope(sizes, times) if len(times) == len(sizes) else math.nan
    return {
        "kind": "scaling",
        "title": f"Scaling of a linear regression: {scaling.ABOUT[axis]}",
        "axis": axis,
        "points": points,
        "slopes": slopes,
    }


def measure(
    name: str,
    *,
    threads: int = 2,
    repeats: int = 9,
    seconds: float = 0.2,
    draws: int = 1_000,
    only: Sequence[str] = (),
    say: Say = print,
) -> dict[str, Any]:
    """Measure one case.

    Args:
        name: Of the case.
        threads: Cores that a contender may use.
        repeats: Turns of every contender.
        seconds: About how long a turn of SVI lasts.
        draws: Of NUTS, of every chain, after as many of warm-up.
        only: Contenders that take part; empty: all.
        say: Told about progress.

    Returns:
        JSON-able results.

    Raises:
        Refused: If the contenders do not compute the same thing.
    """
    began = time.perf_counter()
    if name.startswith("scaling_") and ":" not in name:
        found = _scaling(name, threads, repeats, seconds, say)
    elif isinstance(cases.get(name), cases.NutsCase):
        found = _nuts(name, threads, repeats, draws, say, only)
    else:
        found = _svi(name, threads, repeats, seconds, say, only)
    return {**found, "name": name, "threads": threads, "repeats": repeats, "took": time.perf_counter() - began}
