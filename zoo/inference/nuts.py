r"""NUTS on nutpie over a compiled Pyro potential, with Pyro's own NUTS as a second choice.

Three ways to run the chains, the first that works:

- ``library``: the log density and its gradient, compiled ahead of time, called by nutpie through a C function. No
  Python runs while sampling, so chains run in parallel as threads of this process.
- ``processes``: an uncompiled graph (no C++ compiler, or one that fails on it) runs in worker processes, since threads
  would wait for the interpreter lock.
- ``python``: in this process, one chain after the other, for one worker and for models that cannot be traced.

References:
    Hoffman, Gelman (2014), "The No-U-Turn Sampler", JMLR 15. https://jmlr.org/papers/v15/hoffman14a.html
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from zoo.artifacts import machine_memory
from zoo.errors import EngineError, UnknownNameError, suggest
from zoo.inference import _nuts_worker as worker
from zoo.inference._nutpie import import_nutpie
from zoo.inference._nuts_worker import Chain, Compiled, Options, Python
from zoo.inference.checkpoint import Chains
from zoo.inference.library import build, child_environment
from zoo.inference.potential import Potential
from zoo.inference.program import no_compiler, pyro_world, seeded, stream
from zoo.inference.tries import ACCEPT, RESTARTS, History, Why, away, ridge
from zoo.types import Batch

__all__ = ["Chain", "Progress", "Samples", "rich_progress", "sample"]

Progress = Callable[[Sequence[Chain]], None]
Arrays = dict[str, Any]
_ABOUT = "about"  # of a stored chain: what was drawn before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Draws of all chains.

    Args:
        chains: Latent site -> constrained values, ``(chain, draw, *shape)``.
        stats: ``(chain, draw)`` each: ``diverging`` (bool), ``energy``, ``lp`` (log density on the unconstrained
            space), ``tree_depth``, ``acceptance_rate``, ``step_size``, ``n_steps``.
        info: How it ran, JSON-able: seconds, evaluations, compiled or why not.
    """

    chains: dict[str, Tensor]
    stats: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)


def sample(
    model: Callable[[Batch], Any],
    batch: Batch,
    *,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    seed: int = 0,
    target_accept: float | None = None,
    max_treedepth: int = 10,
    low_rank_mass_matrix: bool | None = None,
    dtype: Literal["float32", "float64"] = "float64",
    workers: int | None = None,
    compile: bool = True,
    progress: Progress | bool | None = None,
    sampler: Literal["nutpie", "pyro"] = "nutpie",
    store: Chains | None = None,
    resume: bool = False,
    retry: bool = True,
) -> Samples:
    """Draw from a model's posterior with the No-U-Turn sampler; discrete latents of finite support are summed out.

    The draws of chain ``k`` depend on ``seed`` and ``k`` alone, not on the number of chains or workers; unless it is
    drawn again because it lies away from the others, or all are because they move slowly (see
    :mod:`zoo.inference.tries`). What was drawn again and why stands in ``info["tries"]``.

    Args:
        model: Pyro model of one batch.
        batch: The whole data.
        chains: Number of chains.
        warmup: Iterations of adaptation per chain, not kept.
        draws: Kept iterations per chain.
        seed: Seed, 0 or above.
        target_accept: Acceptance rate that the step size is adapted to; raise it against divergences. ``None``: 0.8,
            and a chain that diverges is drawn again at 0.9 and then at 0.99.
        max_treedepth: A trajectory has at most ``2 ** max_treedepth - 1`` leapfrog steps.
        low_rank_mass_matrix: Adapt a low-rank plus diagonal metric, for correlated posteriors; nutpie only. ``None``:
            a diagonal one, and if the chains move slowly along a ridge, all are drawn again with the other.
        dtype: Type of the evaluation and of the draws.
        workers: Chains at a time; ``None``: as many as there are cores, at most ``chains``.
        compile: Whether to compile the log density.
        progress: Called a few times a second with every chain's state; ``True`` for a display on the terminal.
        sampler: ``nutpie``, or ``pyro`` for :class:`pyro.infer.NUTS` (slow, in this process).
        store: Where finished chains are kept.
        resume: Whether to take chains that are kept there as they are.
        retry: Whether a chain may be drawn again at all.

    Returns:
        The draws.

    Raises:
        EngineError: If a setting is out of range, or a chain or its worker failed.
        UnknownNameError: If the sampler or dtype is unknown.

    References:
        Hoffman, Gelman (2014), algorithm 3. https://jmlr.org/papers/v15/hoffman14a.html
    """
    for name, value, least in (("chains", chains, 1), ("draws", draws, 1), ("warmup", warmup, 0), ("seed", seed, 0)):
        if value < least:
            raise EngineError(f"{name} is {value}; it must be at least {least}")
    if target_accept is not None and not 0.0 < target_accept < 1.0:
        raise EngineError(f"target_accept is {target_accept}; it must lie between 0 and 1 (0.8 is usual)")
    if not 1 <= max_treedepth <= 20:
        raise EngineError(f"max_treedepth is {max_treedepth}; it must lie between 1 and 20 (10 is usual)")
    if sampler not in ("nutpie", "pyro"):
        raise UnknownNameError(f"sampler '{sampler}' is unknown{suggest(sampler, ['nutpie', 'pyro'])}")
    if dtype not in ("float32", "float64"):
        raise UnknownNameError(f"dtype '{dtype}' is unknown{suggest(dtype, ['float32', 'float64'])}")
    if sampler == "pyro" and low_rank_mass_matrix:
        raise EngineError("low_rank_mass_matrix is for sampler='nutpie'; Pyro's NUTS has a diagonal or dense metric")

    started = time.perf_counter()
    if sampler == "nutpie":
        import_nutpie()
    begin = time.perf_counter()
    potential = Potential(model, batch, seed=seed, dtype=getattr(torch, dtype))
    _refuse_too_many(chains, draws, potential.size)
    first = potential.initial(seed, 0)
    traced = time.perf_counter()
    at_once = min(chains, _cores() if workers is None else max(1, workers))
    plan = _Plan(
        options=Options(
            warmup=warmup,
            draws=draws,
            seed=seed,
            target_accept=ACCEPT[0] if target_accept is None else target_accept,
            max_treedepth=max_treedepth,
            low_rank=bool(low_rank_mass_matrix),
        ),
        accept=ACCEPT if target_accept is None and retry else (target_accept or ACCEPT[0],),
        retry=retry,
        turn=retry and low_rank_mass_matrix is None and sampler == "nutpie",
    )
    with _display(progress) as report:
        library = None
        if sampler == "pyro":
            engine, reason, compiled, at_once = "python", "Pyro's NUTS runs eagerly", traced, 1
        else:
            library, reason = _library(potential, first, compile)
            compiled = time.perf_counter()
            engine = "library" if library is not None else "processes"
            if library is None and (at_once == 1 or potential.graph is None):
                engine, at_once = "python", 1
        if store is not None:
            store.surroundings["mode"] = "compiled" if library is not None else "eager"
        board = _Board(chains, plan, report, store, potential.initial)
        if store is not None and resume:
            board.take(store.load())
        kept = sum(int(a["evaluations"]) for a in board.found.values())
        while True:
            if sampler == "pyro":
                _with_pyro(potential, board)
            elif engine == "processes":
                _in_processes(potential, at_once, board)
            else:
                _in_threads(library or _eager(potential), at_once, board)
            if not board.again():
                break
    found = [board.found[k] for k in range(chains)]
    sampled = time.perf_counter()
    flat = torch.from_numpy(np.stack([a["flat"] for a in found])).to(potential.dtype)
    stats = {n: torch.from_numpy(np.stack([a[n] for a in found])) for n in worker.STATS.values()}
    for name in ("tree_depth", "n_steps"):
        stats[name] = stats[name].to(torch.int64)
    evaluations = sum(int(a["evaluations"]) for a in found)
    info = {
        "sampler": sampler,
        "engine": engine,
        "compiled": not reason,
        "reason": reason,
        "seed": seed,
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "target_accept": max(board.options(k).target_accept for k in range(chains)),
        "max_treedepth": max_treedepth,
        "metric": "low rank" if plan.options.low_rank else "diagonal",
        "tries": board.history.all(),
        "dtype": dtype,
        "workers": at_once,
        "dimensions": potential.size,
        "graph_nodes": potential.nodes,
        "evaluations": evaluations,
        "divergences": int(stats["diverging"].sum()),
        "seconds": {
            "import": begin - started,
            "trace": traced - begin,
            "compile": compiled - traced,
            "sample": sampled - compiled,
        },
        "microseconds_per_evaluation": 1e6 * (sampled - compiled) * at_once / max(1, evaluations - kept),
        "versions": {p: importlib.metadata.version(p) for p in ("nutpie", "pyro-ppl", "torch")},
    }
    return Samples(chains=potential.constrain(flat), stats=stats, info=info)


def _refuse_too_many(chains: int, draws: int, size: int) -> None:
    needed, there = 8 * chains * draws * size, machine_memory()
    if there and needed > there:
        raise EngineError(
            f"{chains:,} chains of {draws:,} draws, each of {size:,} numbers, take "
            f"{needed / 1e9:,.0f} GB; this machine has {there / 1e9:,.0f} GB of memory: ask for fewer draws"
        )


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


# ------------------------------------------------------------------------------------------------- progress
@contextmanager
def rich_progress() -> Iterator[Progress]:
    """Show one line per chain on the terminal: iterations, divergences, step size, time left.

    Yields:
        What :func:`sample` calls with the chains' states.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    columns = (
        TextColumn("chain {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[divergences]} divergences  step size {task.fields[step_size]:.2g}"),
        TimeRemainingColumn(),
    )
    with Display(*columns) as display:
        tasks: dict[int, Any] = {}

        def show(chains: Sequence[Chain]) -> None:
            for c in chains:
                if c.chain not in tasks:
                    tasks[c.chain] = display.add_task(str(c.chain), total=c.total, divergences=0, step_size=0.0)
                display.update(tasks[c.chain], completed=c.draws, divergences=c.divergences, step_size=c.step_size)

        yield show


@contextmanager
def _display(progress: Progress | bool | None) -> Iterator[Progress]:
    """Yield a function that passes the chains' states on, ten times a second at most."""
    if progress is True:
        with rich_progress() as show:
            yield show
    elif callable(progress):
        yield progress
    else:
        yield lambda _chains: None


@dataclass(kw_only=True)
class _Plan:
    """How chains are drawn, and what may be changed when they are drawn again.

    Args:
        options: Settings of a chain that is drawn for the first time.
        accept: Acceptance rates to go through.
        retry: Whether a chain may be begun elsewhere.
        turn: Whether all may be drawn again with another metric.
    """

    options: Options
    accept: Sequence[float]
    retry: bool
    turn: bool


class _Board:
    """The latest state of every chain, told to the caller when it changed, and the chains that have ended.

    Args:
        chains: How many.
        plan: How they are drawn.
        tell: Told their states.
        store: Where chains are kept that are not drawn again.
        initial: Seed, chain and restart -> starting point.
    """

    def __init__(
        self, chains: int, plan: _Plan, tell: Progress, store: Chains | None, initial: Callable[[int, int, int], Any]
    ) -> None:
        self.plan, self.tell, self.store, self._initial = plan, tell, store, initial
        self.history = History()
        self.states = [self._new(k, plan.options.total) for k in range(chains)]
        self.told: list[Chain] = []
        self.when = 0.0
        self.found: dict[int, Arrays] = {}

    @property
    def waiting(self) -> list[int]:
        return [k for k in range(len(self.states)) if k not in self.found]

    def options(self, chain: int) -> Options:
        """Return a chain's settings, which follow from what was written down about it."""
        rung, plan = self.history.rung(chain), self.plan
        last = len(plan.accept) - 1
        warmup = plan.options.warmup * (2 if rung and rung == last else 1)  # so small steps take long to tune
        restart = self.history.restarts(chain)
        return replace(
            plan.options, target_accept=plan.accept[rung], warmup=warmup, restart=restart, fragile=rung < last
        )

    def initial(self, chain: int) -> Any:
        """Return a chain's starting point."""
        options = self.options(chain)
        return self._initial(options.seed, chain, options.restart)

    def put(self, state: Chain) -> None:
        self.states[state.chain] = state

    def broken(self, chain: int) -> None:
        """Have a chain that diverged drawn again with smaller steps."""
        accept = self.plan.accept[self.history.rung(chain) + 1]
        self.history.add(chain, {"cause": "divergences", "target_accept": accept})
        self.put(self._new(chain, self.options(chain).total))

    def end(self, chain: int, arrays: Arrays) -> None:
        """Take a chain's draws, or have it drawn again."""
        if self.options(chain).fragile and arrays["diverging"].any():
            self.broken(chain)
            return
        self.found[chain] = arrays
        if self.store is not None:
            about = {"past": self.history.past, "own": self.history.own.get(chain, [])}
            self.store.save(chain, {**arrays, _ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)})
        self._ended(chain, arrays)

    def take(self, stored: dict[int, Arrays]) -> None:
        """Go on from stored chains; those from before all were drawn again are of no use."""
        none = np.frombuffer(b'{"past": [], "own": []}', np.uint8)
        about = {k: json.loads(bytes(a.pop(_ABOUT, none))) for k, a in stored.items()}
        past: list[Why] = max((a["past"] for a in about.values()), key=len, default=[])
        self.history.past = past
        if any(why["cause"] == "ridge" for why in past):
            self._turn()
        for chain, arrays in stored.items():
            if chain < len(self.states) and about[chain]["past"] == past:
                self.history.own[chain] = about[chain]["own"]
                self.found[chain] = arrays
                self._ended(chain, arrays)

    def again(self) -> bool:
        """Have chains drawn again that the chains together show to be wrong; say whether any is."""
        plan, found = self.plan, [self.found[k] for k in range(len(self.states))]
        if plan.retry and (far := away(found)) is not None:
            # One at a time, so that an interrupted run comes to the same decisions.
            chain, why = far
            if self.options(chain).restart < RESTARTS:
                self.history.add(chain, why)
                self._drop(chain)
                return True
        if plan.turn and (why_all := ridge(found)) is not None:
            self.history.turn(why_all)
            self._turn()
            for chain in range(len(self.states)):
                self._drop(chain)
            return True
        return False

    def _turn(self) -> None:
        self.plan.options, self.plan.turn = replace(self.plan.options, low_rank=True), False

    def _drop(self, chain: int) -> None:
        del self.found[chain]
        self.put(self._new(chain, self.options(chain).total))

    @staticmethod
    def _new(chain: int, total: int) -> Chain:
        return Chain(chain=chain, draws=0, total=total, divergences=0, step_size=0.0, leapfrogs=0)

    def _ended(self, chain: int, arrays: Arrays) -> None:
        total = self.options(chain).total
        self.put(
            Chain(
                chain=chain,
                draws=total,
                total=total,
                divergences=int(arrays["diverging"].sum()),
                step_size=float(arrays["step_size"][-1]),
                leapfrogs=int(arrays["n_steps"][-1]),
            )
        )

    def show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self.states != self.told and (last or now - self.when > 0.1):
            self.told, self.when = list(self.states), now
            self.tell(self.told)


# -------------------------------------------------------------------------------------------------- compiling
def _library(potential: Potential, point: Any, compile: bool) -> tuple[Compiled | None, str]:
    """Compile the potential ahead of time and compare it with the graph.

    Args:
        potential: What is compiled.
        point: Where the two are compared.
        compile: Whether the caller wants it.

    Returns:
        What threads can call, or ``None`` and the reason in one clause.
    """
    if potential.graph is None:
        return None, potential.reason
    if not compile:
        return None, "compile=False"
    if sys.platform == "win32":
        return None, "ahead-of-time libraries are loaded on Linux and macOS only"
    reason = no_compiler()
    if reason:
        return None, reason
    example = (torch.zeros(potential.size, dtype=potential.dtype), *potential.constants)
    try:
        options: dict[str, Any] = {"cpp.threads": 1}
        if any(node.target is torch.ops.aten.mv.default for node in potential.graph.graph.nodes):
            # A product must not compute the entries of its vector anew for every block of rows (a quarter of the time
            # of a horseshoe's log density).
            options["realize_opcount_threshold"] = 8
        path = build(potential.graph, example, options)
        result = Compiled(library=path, size=potential.size, dtype=potential.dtype, constants=potential.constants)
        value, gradient = result.evaluate(point)
    except Exception as error:
        return None, f"cannot be compiled: {type(error).__name__}: {_first(error)}"
    right, slope = _eager(potential).evaluate(point)
    tolerance = 1e-8 if potential.epsilon < 1e-12 else max(1e-3, 30 * potential.epsilon)
    apart = max(abs(value - right) / (1.0 + abs(right)), np.abs(gradient - slope).max() / (1.0 + np.abs(slope).max()))
    if not apart <= tolerance:
        return None, f"the compiled log density differs from the eager one by {apart:.1g}, relatively"
    return result, ""


def _eager(potential: Potential) -> Python:
    return Python(function=potential.value_and_gradient, size=potential.size, dtype=potential.dtype)


def _hand_over(potential: Potential, folder: Path) -> list[str]:
    """Write what a worker needs into a folder.

    Args:
        potential: What it evaluates.
        folder: Where to.

    Returns:
        Its command line.
    """
    stored = {"graph": potential.graph, "constants": potential.constants, "dtype": potential.dtype}
    torch.save(stored, folder / "graph.pt")
    (folder / "job.json").write_text(json.dumps({"size": potential.size}), encoding="utf-8")
    return [sys.executable, "-m", "zoo.inference._nuts_worker", str(folder)]


def _first(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]


def _tail(text: str, lines: int = 5) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:]) or "nothing on its standard error"


# --------------------------------------------------------------------------------------------- threads of nutpie
def _in_threads(potential: Compiled | Python, at_once: int, board: _Board) -> None:
    running: dict[int, worker.Running] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while board.waiting:
            for chain in [k for k in board.waiting if k not in running][: at_once - len(running)]:
                running[chain] = worker.start(potential, chain, board.initial(chain), board.options(chain))
            for chain, one in list(running.items()):
                try:
                    arrays = worker.result(one) if worker.finished(one) else None
                except RuntimeError as error:
                    raise EngineError(f"chain {chain} failed: {_first(error)}") from error
                if arrays is not None:
                    del running[chain]
                    board.end(chain, arrays)
                elif one.broken():
                    del running[chain]
                    board.broken(chain)
                else:
                    board.put(one.report())
            board.show()
    finally:
        for one in running.values():
            with suppress(RuntimeError):  # the chain that failed fails again
                one.sampler.cancel()
        torch.set_num_threads(threads)
    board.show(last=True)


# ----------------------------------------------------------------------------------------------------- processes
class _Worker:
    """One process, the chain that it works on, and where its complaints go."""

    def __init__(self, number: int, command: list[str], folder: Path, inbox: queue.Queue[tuple[int, Any]]) -> None:
        self.number, self.chain = number, -1
        self.log = folder / f"worker-{number}.log"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def _listen(self, inbox: queue.Queue[tuple[int, Any]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                inbox.put((self.number, json.loads(line)))
        inbox.put((self.number, None))

    def give(self, chain: int, options: Options, initial: Any) -> None:
        assert self.process.stdin is not None
        self.chain = chain
        name = f"initial-{chain}.npy"
        np.save(self.log.parent / name, initial)
        order = {"chain": chain, "options": asdict(options), "initial": name}
        with suppress(BrokenPipeError):  # its end is reported through the inbox
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _in_processes(potential: Potential, at_once: int, board: _Board) -> None:
    inbox: queue.Queue[tuple[int, Any]] = queue.Queue()
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="pyro-zoo-") as name:
        folder = Path(name)
        command = _hand_over(potential, folder)

        def give(one: _Worker) -> None:
            busy = {w.chain for w in workers}
            free = [k for k in board.waiting if k not in busy]
            one.chain = -1
            if free:
                one.give(free[0], board.options(free[0]), board.initial(free[0]))

        try:
            for number in range(min(at_once, len(board.waiting))):
                workers.append(_Worker(number, command, folder, inbox))
                give(workers[number])
            while board.waiting:
                try:
                    number, message = inbox.get(timeout=0.1)
                except queue.Empty:
                    board.show()
                    continue
                one = workers[number]
                if message is None:
                    if one.chain < 0:
                        continue
                    status = one.process.wait()
                    complaint = _tail(one.log.read_text(encoding="utf-8", errors="replace"))
                    raise EngineError(f"chain {one.chain}: its process ended with status {status}: {complaint}")
                if "progress" in message:
                    board.put(Chain(**message["progress"]))
                else:
                    if "broken" in message:
                        board.broken(one.chain)
                    else:
                        with np.load(folder / f"chain-{one.chain}.npz") as stored:
                            board.end(one.chain, dict(stored))
                    one.chain = -1
                    give(one)
                board.show()
        finally:
            for one in workers:
                one.end()
    board.show(last=True)


# -------------------------------------------------------------------------------------------------- Pyro's NUTS
class _Density(torch.autograd.Function):
    """The potential energy whose gradient is computed along with its value."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, potential: Potential) -> Tensor:
        value, gradient = potential.value_and_gradient(flat)
        ctx.save_for_backward(gradient)
        return -value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return -grads[0] * gradient, None


class _Recorded(NUTS):  # type: ignore[misc]
    """Pyro's NUTS, which also keeps the statistics of every draw."""

    def __init__(self, potential: Potential, **settings: Any) -> None:
        self.records: list[dict[str, Any]] = []
        self.evaluations = 0
        self._energy: float | None = None

        def energy(values: dict[str, Tensor]) -> Tensor:
            self.evaluations += 1
            result: Tensor = _Density.apply(values["flat"], potential)  # type: ignore[no-untyped-call, unused-ignore]
            return result

        super().__init__(potential_fn=energy, **settings)

    def _kinetic_energy(self, r_unscaled: Any) -> Any:
        energy = super()._kinetic_energy(r_unscaled)
        if self._energy is None:
            self._energy = float(energy)
        return energy

    def sample(self, params: Any) -> Any:
        calls, mean, divergences = self.evaluations, self._mean_accept_prob, len(self._divergences)
        step_size, before = float(self.step_size), self._potential_energy_last
        self._energy = None
        values = super().sample(params)
        steps = max(1, self.evaluations - calls - (before is None))
        count = self._t - self._warmup_steps if self._t > self._warmup_steps else self._t
        level = float(self._potential_energy_last if before is None else before)
        if self._t > self._warmup_steps:
            self.records.append({
                "diverging": len(self._divergences) > divergences,
                "energy": level + (self._energy or 0.0),
                "lp": -float(self._potential_energy_last),
                "tree_depth": steps.bit_length(),
                "acceptance_rate": mean + count * (self._mean_accept_prob - mean),
                "step_size": step_size,
                "n_steps": steps,
            })
        return values


def _with_pyro(potential: Potential, board: _Board) -> None:
    while board.waiting:
        chain = board.waiting[0]
        options, point = board.options(chain), board.initial(chain)
        state = seeded(worker.chain_seed(options.seed, chain, options.restart))
        with pyro_world(dtype=potential.dtype), stream(state), torch.enable_grad(), pyro.get_param_store().scope():
            kernel = _Recorded(
                potential,
                target_accept_prob=options.target_accept,
                max_tree_depth=options.max_treedepth,
            )

            def tick(
                kernel: _Recorded, _values: Any, _stage: str, _i: int, chain: int = chain, total: int = options.total
            ) -> None:
                last = kernel.records[-1]["n_steps"] if kernel.records else 0
                board.put(
                    Chain(
                        chain=chain,
                        draws=int(kernel._t),
                        total=total,
                        divergences=len(kernel._divergences),
                        step_size=float(kernel.step_size),
                        leapfrogs=last,
                    )
                )
                board.show()

            run = MCMC(
                kernel,
                num_samples=options.draws,
                warmup_steps=options.warmup,
                initial_params={"flat": torch.from_numpy(point).to(potential.dtype)},
                hook_fn=tick,
                disable_progbar=True,
            )
            run.run()
            flat = run.get_samples()["flat"].to(torch.float64).numpy()
        arrays = {n: np.array([r[n] for r in kernel.records]) for n in worker.STATS.values()}
        board.end(chain, {"flat": flat, "evaluations": np.array(kernel.evaluations), **arrays})
    board.show(last=True)
