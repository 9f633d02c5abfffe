"""What a fit will cost in time and memory, from a few seconds of it."""

from __future__ import annotations

import inspect
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from zoo.inference import nuts
from zoo.inference.program import pyro_world, seeded, stream
from zoo.inference.runner import _check_task, _engine, fit
from zoo.inference.svi import Trainer
from zoo.types import Batch, Dataset, Method, Pair

__all__ = ["Cost", "cost"]


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


def cost(
    method: Method[Any], data: Dataset, hyper: Any = None, *, engine: str | None = None, limit: float = 12
) -> Cost:
    """Build a method's pair on data, time a few seconds of its fit, and extrapolate to the whole of it.

    Args:
        method: The method.
        data: Data for it.
        hyper: Hyper-parameters; ``None`` takes the defaults.
        engine: ``svi`` or ``nuts``; ``None`` takes the method's first.
        limit: Seconds after which compiling or sampling is stopped.

    Returns:
        The estimate, for the settings that :func:`zoo.fit` has by default.
    """
    engine = _engine(engine, method, None)
    _check_task(method, data)
    hyper = method.hyper() if hyper is None else hyper
    dtype = torch.float64 if engine == "nuts" else torch.float32
    with pyro_world(dtype=dtype), stream(seeded(0)), pyro.get_param_store().scope():
        pair = method.build(data, hyper)
        trace = poutine.trace(pair.model).get_trace(_cast(data.train, dtype))
    latents = sum(
        trace.nodes[name]["value"].numel()
        for name in trace.stochastic_nodes
        if type(trace.nodes[name]["fn"]).__name__ != "_Subsample"
    )
    size = 1_000 * latents * torch.finfo(dtype).bits // 8
    known: dict[str, Any] = {"engine": engine, "rows": data.num_data, "latents": latents, "thousand_draws": size}
    timed = _svi if engine == "svi" else _nuts
    return timed(method, pair, data, known, limit)


def _svi(method: Method[Any], pair: Pair, data: Dataset, known: dict[str, Any], limit: float) -> Cost:
    recipe = method.recipe
    options: dict[str, Any] = {"whole": data.whole, "recipe": recipe}
    end = time.perf_counter() + limit
    eager = Trainer(pair, data.train, compile=False, **options)
    size, per_step = len(eager.state.theta), math.nan
    setup, how = 0.0, f"not one step ended within {limit:.0f} seconds"
    with _alarm(end):
        count, per_step = _time(eager, 16)
        how = f"{count} steps were timed without compiling, which took too long here: compiled ones are faster"
        compiled = Trainer(pair, data.train, **options)
        if compiled.program.compiled:
            count, per_step = _time(compiled, 1_024)
            setup, how = compiled.compile_seconds, f"{count} compiled steps were timed"
        else:
            how = f"{count} steps were timed; they run without compiling: {compiled.program.reason}"
    item, rows = 4, min(recipe.batch_size or known["rows"], known["rows"])
    memory = {
        "parameters and gradient": 2 * size * item,
        "optimiser": sum(m.numel() for m in eager.state.moments) * item,
        "training data": _bytes(data.train),
        "mini-batch": _bytes(data.train) * rows // known["rows"],
    }
    how += "; memory is without the intermediate values of a step"
    seconds = setup + recipe.steps * per_step
    return Cost(**known, parameters=size, steps=recipe.steps, setup=setup, seconds=seconds, how=how, memory=memory)


def _nuts(method: Method[Any], pair: Pair, data: Dataset, known: dict[str, Any], limit: float) -> Cost:
    defaults = {name: p.default for name, p in inspect.signature(fit).parameters.items()}
    chains, draws, tune = (int(defaults[name]) for name in ("chains", "draws", "tune"))
    started = time.perf_counter()
    seen: list[tuple[float, int]] = []

    def watch(states: Sequence[nuts.Chain]) -> None:
        seen.append((time.perf_counter(), states[0].draws))

    whole = None
    with _alarm(started + limit):
        whole = nuts.sample(pair.model, data.train, chains=1, warmup=tune, draws=draws, progress=watch)
    total = tune + draws
    setup, per_iteration = 0.0, math.nan
    how = f"not one iteration ended within {limit:.0f} seconds"
    moving = [point for point in seen if point[1] > 0]
    if whole is not None:
        *before, sampling = whole.info["seconds"].values()
        setup, per_iteration, how = sum(before), sampling / total, "one whole chain was timed"
    elif len(moving) > 1:
        # The second half of what was seen: the first iterations look for a step size and are unlike the others.
        (begin, first), (end, last) = moving[len(moving) // 2 - 1], moving[-1]
        setup, per_iteration = seen[0][0] - started, (end - begin) / max(last - first, 1)
        how = f"{last:,} of {total:,} iterations of one chain were timed; later ones can be shorter or longer"
    rounds = math.ceil(chains / min(chains, nuts._cores()))
    item = 8
    memory = {
        "training data": _bytes(data.train) * item // 4,
        "chains": chains * total * known["latents"] * item,
    }
    seconds = setup + rounds * total * per_iteration
    steps = chains * total
    return Cost(**known, parameters=0, steps=steps, setup=setup, seconds=seconds, how=how, memory=memory)


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


class _Late(BaseException):
    """Raised in the middle of whatever runs; no ``except Exception`` on the way may take it for a failure."""


@contextmanager
def _alarm(end: float) -> Iterator[None]:
    """Leave a block when the time is over; without a limit where signals cannot be had."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, max(end - time.perf_counter(), 1e-3))
    try:
        yield
    except _Late:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _cast(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def _bytes(batch: Batch) -> int:
    return sum(v.numel() * v.element_size() for v in batch.values())
