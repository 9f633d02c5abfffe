"""What a fit will cost in time and memory, from a few seconds of it.

The seconds are spent by a child process, since a compiler cannot be stopped in the middle without harm to its process.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from zoo.errors import PairError
from zoo.inference import nuts
from zoo.inference.library import child_environment
from zoo.inference.program import pyro_world, seeded, stream
from zoo.inference.runner import _check_task, _engine, fit
from zoo.inference.sites import is_plate
from zoo.inference.svi import Trainer
from zoo.registry import get
from zoo.types import Batch, Dataset, Diagnostic, Pair, hyper_from_json, hyper_to_json

__all__ = ["Cost", "cost"]

_DTYPES = {"svi": torch.float32, "nuts": torch.float64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """An estimate of a fit, and how it was made.

    Args:
        engine: ``svi`` or ``nuts``.
        rows: Rows of the training set.
        parameters: Numbers that the optimiser trains; 0 for ``nuts``.
        latents: Numbers in one draw of the posterior.
        steps: Optimiser steps of the recipe, or iterations of all chains.
        setup: Seconds of tracing and compiling, where that was measured.
        seconds: Of the whole fit; ``nan`` if not one step ended in time.
        how: What was timed, and what the estimate leaves out.
        memory: Bytes of the fit by what takes them.
        thousand_draws: Bytes of 1,000 draws from the posterior.
    """

    engine: str
    rows: int
    parameters: int
    latents: int
    steps: int
    setup: float
    seconds: float
    how: str
    memory: dict[str, int]
    thousand_draws: int


def cost(name: str, data: Dataset, hyper: Any = None, *, engine: str | None = None, limit: float = 15.0) -> Cost:
    """Build a method's pair on data, time a few seconds of its fit, and extrapolate to the whole of it.

    Args:
        name: Name of the method.
        data: Data for it.
        hyper: Hyper-parameters; ``None`` takes the defaults.
        engine: ``svi`` or ``nuts``; ``None`` takes the method's first.
        limit: Seconds after which timing ends with what there is.

    Returns:
        The estimate, for the settings that :func:`zoo.fit` has by default.

    Raises:
        PairError: If the method is a diagnostic, or the engine cannot fit it.
    """
    method = get(name)
    if isinstance(method, Diagnostic):
        raise PairError(f"'{name}' is a diagnostic of fitted posteriors; it has no fit of its own")
    engine = _engine(engine, method, None)
    _check_task(method, data)
    hyper = method.hyper() if hyper is None else hyper
    pair, latents = _built(name, data, hyper, engine)
    dtype = _DTYPES[engine]
    size = 1_000 * latents * torch.finfo(dtype).bits // 8
    known: dict[str, Any] = {"engine": engine, "rows": data.num_data, "latents": latents, "thousand_draws": size}
    if engine == "nuts":
        return _of_chains(_timed(name, data, hyper, engine, limit), data, known)
    recipe = method.recipe
    state = Trainer(pair, data.train, whole=data.whole, recipe=recipe, compile=False).state
    rows = min(recipe.batch_size or known["rows"], known["rows"])
    memory = {
        "parameters and gradient": 2 * _bytes({"": state.theta}),
        "optimiser": sum(_bytes({"": m}) for m in state.moments),
        "training data": _bytes(data.train),
        "mini-batch": _bytes(data.train) * rows // known["rows"],
    }
    events = _timed(name, data, hyper, engine, limit)
    setup, per_step, how = 0.0, math.nan, f"not one step ended within {limit:.0f} seconds"
    if "eager" in events:
        count, per_step = events["eager"][-1]
        how = f"{count:,} steps were timed without compiling, which took too long here: compiled ones are faster"
    if "reason" in events:
        how = f"{count:,} steps were timed; they run without compiling: {events['reason'][-1]}"
    if "compiled" in events:
        count, per_step, setup = events["compiled"][-1]
        how = f"{count:,} compiled steps were timed"
    how += "; memory is without the intermediate values of a step"
    seconds = setup + recipe.steps * per_step
    return Cost(
        **known, parameters=len(state.theta), steps=recipe.steps, setup=setup, seconds=seconds, how=how, memory=memory
    )


def _built(name: str, data: Dataset, hyper: Any, engine: str) -> tuple[Pair, int]:
    """Build the pair, and count the numbers in one draw of its latents."""
    method: Any = get(name)
    with pyro_world(dtype=_DTYPES[engine]), stream(seeded(0)), pyro.get_param_store().scope():
        pair = method.build(data, hyper)
        trace = poutine.trace(pair.model).get_trace(_cast(data.train, _DTYPES[engine]))
    latents = (trace.nodes[site] for site in trace.stochastic_nodes)
    return pair, sum(site["value"].numel() for site in latents if not is_plate(site))


def _of_chains(events: dict[str, list[Any]], data: Dataset, known: dict[str, Any]) -> Cost:
    chains, draws, tune = _chains()
    total = tune + draws
    setup, per_iteration = 0.0, math.nan
    how = "not one iteration ended in time"
    moving = [point for point in events.get("draws", []) if point[1] > 0]
    if "whole" in events:
        *before, sampling = events["whole"][-1]
        setup, per_iteration, how = sum(before), sampling / total, "one whole chain was timed"
    elif len(moving) > 1:
        # The second half of what was seen: the first iterations look for a step size and are unlike the others.
        (begin, first), (end, last) = moving[len(moving) // 2 - 1], moving[-1]
        setup, per_iteration = events["draws"][0][0], (end - begin) / max(last - first, 1)
        how = f"{last:,} of {total:,} iterations of one chain were timed; later ones can be shorter or longer"
    rounds = math.ceil(chains / min(chains, nuts._cores()))
    memory = {"training data": 2 * _bytes(data.train), "chains": chains * total * known["latents"] * 8}
    seconds = setup + rounds * total * per_iteration
    return Cost(**known, parameters=0, steps=chains * total, setup=setup, seconds=seconds, how=how, memory=memory)


def _chains() -> tuple[int, int, int]:
    defaults = inspect.signature(fit).parameters
    chains, draws, tune = (int(defaults[name].default) for name in ("chains", "draws", "tune"))
    return chains, draws, tune


# ------------------------------------------------------------------------------------------------------ the child
def _timed(name: str, data: Dataset, hyper: Any, engine: str, limit: float) -> dict[str, list[Any]]:
    """Let a child process time the fit, and return what it said before the time was over, by kind."""
    events: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory(prefix="pyro-zoo-") as where:
        _hand_over(Path(where), name, data, hyper, engine)
        command = [sys.executable, "-m", "zoo.inference.cost", where]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, env=child_environment(), text=True, start_new_session=True, **pipes)

        def listen() -> None:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith('{"said": '):
                    kind, value = json.loads(line)["said"]
                    events.setdefault(kind, []).append(value)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            listener.join(limit)
        finally:
            with suppress(ProcessLookupError):  # it may have ended
                os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()  # its compilers too
            child.wait()
            listener.join()
            assert child.stdout is not None
            child.stdout.close()
    return events


def _hand_over(folder: Path, name: str, data: Dataset, hyper: Any, engine: str) -> None:
    from safetensors.torch import save_file

    from zoo.datasets import pack

    tensors, described = pack(data)
    save_file(tensors, folder / "data.safetensors")
    job = {"name": name, "hyper": hyper_to_json(hyper), "engine": engine, "data": described}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _say(kind: str, value: Any) -> None:
    print(json.dumps({"said": [kind, value]}), flush=True)


def _child(folder: Path) -> None:
    from safetensors.torch import load_file

    from zoo.datasets import unpack

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    data = unpack(load_file(folder / "data.safetensors"), job["data"])
    method: Any = get(job["name"])
    hyper = hyper_from_json(method.hyper, job["hyper"])
    pair, _ = _built(job["name"], data, hyper, job["engine"])
    if job["engine"] == "nuts":
        _, draws, tune = _chains()
        started = time.perf_counter()

        def watch(states: Sequence[nuts.Chain]) -> None:
            _say("draws", [time.perf_counter() - started, states[0].draws])

        found = nuts.sample(pair.model, data.train, chains=1, warmup=tune, draws=draws, retry=False, progress=watch)
        _say("whole", list(found.info["seconds"].values()))
        return
    options: dict[str, Any] = {"whole": data.whole, "recipe": method.recipe}
    _say("eager", _time(Trainer(pair, data.train, compile=False, **options), 16))
    compiled = Trainer(pair, data.train, **options)
    if compiled.program.compiled:
        _say("compiled", [*_time(compiled, 1_024), compiled.compile_seconds])
    else:
        _say("reason", compiled.program.reason)


def _time(trainer: Trainer, most: int, seconds: float = 2.0) -> tuple[int, float]:
    """Take more and more steps at a time, and return the number of the last ones and the seconds of each."""
    count, started = 1, time.perf_counter()
    while True:
        tick = time.perf_counter()
        trainer.run(count)
        now = time.perf_counter()
        left = trainer.recipe.steps - int(trainer.state.step)
        if now - started + 2 * (now - tick) > seconds or 2 * count > min(most, left):
            return count, (now - tick) / count
        count *= 2


def _cast(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def _bytes(batch: Batch) -> int:
    return sum(v.numel() * v.element_size() for v in batch.values())


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
