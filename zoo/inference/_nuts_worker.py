"""What samples chains: nutpie over a potential, in threads of this process or in processes of their own.

A potential is a graph ``graph(flat, *constants) -> (log density, gradient)``. Compiled ahead of time to a library, it
is called by nutpie through a C function, without Python and its interpreter lock, so that chains run as threads. A
graph that has to be called through Python runs as ``python -m zoo.inference._nuts_worker FOLDER``: one process per
core, which reads the numbers of chains from its standard input and answers in JSON lines; it needs no model code.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.inference import _nutpie
from zoo.inference.library import Library

__all__ = [
    "Chain",
    "Compiled",
    "Options",
    "Python",
    "Running",
    "chain_seed",
    "finished",
    "result",
    "start",
]

STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "logp": "lp",
    "depth": "tree_depth",
    "mean_tree_accept": "acceptance_rate",
    "step_size": "step_size",
    "n_steps": "n_steps",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of one chain.

    Args:
        warmup: Iterations of adaptation, not kept.
        draws: Kept iterations.
        seed: Seed of the run; chain ``k`` uses the stream of ``(seed, k)``.
        target_accept: Acceptance rate that the step size is adapted to.
        max_treedepth: A trajectory has at most ``2 ** max_treedepth - 1`` leapfrog steps.
        low_rank: Adapt a low-rank plus diagonal metric in place of a diagonal one.
        restart: How often the chain was begun elsewhere; each start has its own point and random numbers.
        fragile: Whether a divergence after the warm-up ends the chain.
    """

    warmup: int
    draws: int
    seed: int
    target_accept: float
    max_treedepth: int
    low_rank: bool
    restart: int = 0
    fragile: bool = False

    @property
    def total(self) -> int:
        """Iterations in all."""
        return self.warmup + self.draws


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How far a chain is.

    Args:
        chain: Its number, from 0.
        draws: Iterations done, warm-up included.
        total: Iterations in all.
        divergences: Divergent trajectories so far.
        step_size: Current step size.
        leapfrogs: Gradient evaluations of the latest draw.
    """

    chain: int
    draws: int
    total: int
    divergences: int
    step_size: float
    leapfrogs: int


def chain_seed(seed: int, chain: int, restart: int = 0) -> int:
    """Return the seed of one chain, which depends on nothing else.

    Args:
        seed: Seed of the run.
        chain: Number of the chain.
        restart: How often it was begun elsewhere.

    Returns:
        An integer of 63 bits.
    """
    words = [seed, chain, 2, restart] if restart else [seed, chain]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


# ------------------------------------------------------------------------------------------- models of nutpie
@dataclass(kw_only=True)
class Compiled:
    """A potential in a library, which threads call at the same time.

    Args:
        library: As of :func:`zoo.inference.library.build`.
        size: Length of the flat vector.
        dtype: Type in which the library computes.
        constants: Inputs of the library.
    """

    library: Path
    size: int
    dtype: torch.dtype
    constants: Sequence[Tensor]

    def _open(self) -> Library:
        return Library(self.library, [torch.zeros(self.size, dtype=self.dtype)], self.constants)

    def model(self, initial: Any) -> Any:
        """Return nutpie's model of a fresh copy of the potential.

        Args:
            initial: Starting point.

        Returns:
            The model.
        """
        handle = self._open()
        return _nutpie.c_model(
            self.size,
            handle.address("potential_evaluate"),
            handle.address("potential_expand"),
            handle.pointer,
            handle,
            initial,
        )

    def evaluate(self, flat: Any) -> tuple[float, Any]:
        """Call the library once, e.g. to compare it with the graph.

        Args:
            flat: Unconstrained values, ``(size,)``, float64.

        Returns:
            Log density and gradient.

        Raises:
            RuntimeError: If the library fails.
        """
        handle = self._open()
        point, gradient, value = np.array(flat, dtype=np.float64), np.zeros(self.size), ctypes.c_double()
        code = handle.functions.potential_evaluate(
            ctypes.c_uint64(self.size),
            ctypes.c_void_p(point.ctypes.data),
            ctypes.c_void_p(gradient.ctypes.data),
            ctypes.byref(value),
            ctypes.c_void_p(handle.pointer),
        )
        if code < 0:
            raise RuntimeError(f"the compiled log density failed with code {code}")
        return value.value, gradient


@dataclass(kw_only=True)
class Python:
    """A potential that is a Python function.

    Args:
        function: ``function(flat) -> (log density, gradient)`` of tensors.
        size: Length of the flat vector.
        dtype: Type of its input.
    """

    function: Callable[[Tensor], tuple[Tensor, Tensor]]
    size: int
    dtype: torch.dtype

    def evaluate(self, flat: Any) -> tuple[float, Any]:
        """Call the function once.

        Args:
            flat: Unconstrained values, ``(size,)``, float64.

        Returns:
            Log density and gradient.
        """
        with torch.no_grad():
            value, gradient = self.function(torch.from_numpy(flat).to(self.dtype))
        return value.item(), gradient.to(torch.float64).numpy()

    def model(self, initial: Any) -> Any:
        """Return nutpie's model of the function.

        Args:
            initial: Starting point.

        Returns:
            The model.
        """

        def evaluate(x: Any) -> tuple[float, Any]:
            try:
                value, gradient = self.evaluate(x)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise _OutsideSupportError from error
            if not (math.isfinite(value) and np.isfinite(gradient).all()):
                raise _OutsideSupportError
            return value, gradient

        return _nutpie.python_model(self.size, evaluate, initial)


class _OutsideSupportError(Exception):
    """Tells nutpie that a trajectory left the support; it counts as a divergence."""

    is_recoverable = True


# ----------------------------------------------------------------------------------------------------- a chain
@dataclass
class Running:
    """One chain under way: nutpie's sampler, its number, and the latest that it reported.

    Args:
        chain: Number of the chain.
        options: Its settings.
        sampler: nutpie's, in the background.
        latest: How far it is.
    """

    chain: int
    options: Options
    sampler: Any = None
    latest: _nutpie.Progress | None = None

    def keep(self, state: _nutpie.Progress) -> None:
        """Take note of how far the chain is.

        Args:
            state: The latest.
        """
        self.latest = state

    def report(self) -> Chain:
        """Return how far the chain is.

        Returns:
            The latest state that nutpie reported.
        """
        state = self.latest or _nutpie.Progress(0, self.options.total, 0, 0.0, 0)
        return Chain(chain=self.chain, **state._asdict())

    def broken(self) -> bool:
        """End a fragile chain that diverged.

        Returns:
            Whether it did.
        """
        # nutpie counts from the end of the warm-up on.
        if not (self.options.fragile and self.latest is not None and self.latest.divergences):
            return False
        with suppress(RuntimeError):  # it failed as well
            self.sampler.cancel()
        return True


def start(potential: Compiled | Python, chain: int, initial: Any, options: Options) -> Running:
    """Start one chain in a thread of nutpie.

    Args:
        potential: What is sampled.
        chain: Number of the chain.
        initial: Starting point.
        options: Settings of the run.

    Returns:
        The chain under way.
    """
    running = Running(chain, options)
    running.sampler = _nutpie.sample(
        potential.model(np.ascontiguousarray(initial, dtype=np.float64)),
        running.keep,
        draws=options.draws,
        tune=options.warmup,
        seed=chain_seed(options.seed, chain, options.restart),
        low_rank=options.low_rank,
        target_accept=options.target_accept,
        maxdepth=options.max_treedepth,
    )
    return running


def finished(running: Running) -> bool:
    """Return whether a chain has ended, well or not.

    Args:
        running: As of :func:`start`.

    Returns:
        True if it has.
    """
    try:
        return bool(running.sampler.is_finished)
    except TimeoutError:  # nutpie's way of saying no
        return False


def result(running: Running) -> dict[str, Any]:
    """Return the draws and statistics of a chain that has ended.

    Args:
        running: As of :func:`start`.

    Returns:
        ``flat`` of shape ``(draw, size)``, the statistics of shape ``(draw,)``, and ``evaluations``, ``()``.
    """
    import pyarrow

    draws, stats = running.sampler.wait().get_arrow_trace()
    drawn, measured = pyarrow.record_batch(draws[0]), pyarrow.record_batch(stats[0])
    kept = ~measured.column("tuning").to_numpy(zero_copy_only=False)
    flat = np.asarray(drawn.column("flat").flatten(), dtype=np.float64).reshape(drawn.num_rows, -1)
    arrays: dict[str, Any] = {
        ours: measured.column(theirs).to_numpy(zero_copy_only=False)[kept] for theirs, ours in STATS.items()
    }
    arrays["evaluations"] = measured.column("n_steps").to_numpy(zero_copy_only=False).sum()
    return {"flat": flat[kept], **arrays}


# ------------------------------------------------------------------------------------------------- the process
def main(folder: Path) -> int:
    """Sample the chains named on standard input; the work lies in ``folder``, and the draws are left there.

    A line names a chain, its settings and the file of its starting point, as JSON.

    Args:
        folder: Holds ``graph.pt`` and ``job.json``, written by the parent.

    Returns:
        Exit status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    # Written a moment ago by the parent, into a folder that only this user can write to.
    stored = torch.load(folder / "graph.pt", weights_only=False)
    graph, constants, dtype = stored["graph"], stored["constants"], stored["dtype"]
    potential = Python(function=lambda flat: graph(flat, *constants), size=job["size"], dtype=dtype)
    orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
    busy = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(json.loads(line))
        orders.put(None)
        if busy.is_set():  # the parent is gone
            os._exit(3)

    threading.Thread(target=listen, daemon=True).start()
    while (order := orders.get()) is not None:
        busy.set()
        chain, options = int(order["chain"]), Options(**order["options"])
        running = start(potential, chain, np.load(folder / order["initial"]), options)
        said, broken = None, False
        while not (broken or finished(running)):
            if (report := running.report()) != said:
                said = report
                print(json.dumps({"progress": asdict(report)}), flush=True)
            broken = running.broken()
            time.sleep(0.005)
        if not broken:
            np.savez(folder / f"chain-{chain}.npz", **result(running))
        busy.clear()
        print(json.dumps({"broken" if broken else "done": chain}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
