"""What samples chains: nutpie over a potential, in threads of this process or in processes of their own.

A potential is a graph ``graph(flat, *constants) -> (log density, gradient)``. Compiled ahead of time to a library, it
is called by nutpie through a C function, without Python and its interpreter lock, so that chains run as threads. A
graph that has to be called through Python runs as ``python -m zoo.inference._nuts_worker FOLDER``: one process per
core, which reads the numbers of chains from its standard input and answers in JSON lines; it needs no model code.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import logging
import math
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

__all__ = [
    "Chain",
    "Compiled",
    "Options",
    "Python",
    "Running",
    "build_library",
    "chain_seed",
    "finished",
    "import_nutpie",
    "library_path",
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
    """Settings of one run, the same for every chain.

    Args:
        warmup: Iterations of adaptation, not kept.
        draws: Kept iterations.
        seed: Seed of the run; chain ``k`` uses the stream of ``(seed, k)``.
        target_accept: Acceptance rate that the step size is adapted to.
        max_treedepth: A trajectory has at most ``2 ** max_treedepth - 1`` leapfrog steps.
        low_rank: Adapt a low-rank plus diagonal metric in place of a diagonal one.
    """

    warmup: int
    draws: int
    seed: int
    target_accept: float
    max_treedepth: int
    low_rank: bool


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


def chain_seed(seed: int, chain: int) -> int:
    """Return the seed of one chain, which depends on nothing else.

    Args:
        seed: Seed of the run.
        chain: Number of the chain.

    Returns:
        An integer of 63 bits.
    """
    return int(np.random.SeedSequence([seed, chain]).generate_state(1, np.uint64)[0] >> np.uint64(1))


# ------------------------------------------------------------------------------------------------- a library
# Called by nutpie from a thread of its own: x -> log density and gradient. Return codes are nutpie's: 0 fine, above 0 a
# point outside the support (counted as a divergence), below 0 a failure that ends the chain.
_BRIDGE = r"""
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner_cpu.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

extern "C" void omp_set_num_threads(int) __attribute__((weak));

struct Potential {
  Potential(const char* path, bool single) : runner(std::string(path), 1), single(single) {}
  torch::inductor::AOTIModelContainerRunnerCpu runner;
  bool single;
  std::vector<float> narrow;
  std::vector<at::Tensor> inputs;
};

extern "C" void potential_delete(Potential* p) { delete p; }

extern "C" Potential* potential_new(const char* path, int64_t size, int32_t single, int64_t count, void** data,
                                    const int64_t* dims, const int64_t* sizes, const int64_t* strides,
                                    const int32_t* dtypes) {
  try {
    Potential* p = new Potential(path, single != 0);
    if (p->single) p->narrow.resize(size);
    p->inputs.resize(1 + count);
    for (int64_t i = 0; i < count; i++) {
      p->inputs[i + 1] = at::from_blob(data[i], at::IntArrayRef(sizes, dims[i]), at::IntArrayRef(strides, dims[i]),
                                       at::TensorOptions().dtype((at::ScalarType)dtypes[i]));
      sizes += dims[i];
      strides += dims[i];
    }
    return p;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return nullptr;
  }
}

extern "C" int64_t potential_evaluate(uint64_t size, double* x, double* gradient, double* value, void* user) {
  static thread_local bool first = true;
  if (first && omp_set_num_threads) omp_set_num_threads(1);
  first = false;
  Potential* p = (Potential*)user;
  int64_t length = (int64_t)size;
  try {
    c10::InferenceMode guard;
    for (int64_t i = 0; p->single && i < length; i++) p->narrow[i] = (float)x[i];
    p->inputs[0] = p->single ? at::from_blob(p->narrow.data(), {length}, at::kFloat)
                             : at::from_blob(x, {length}, at::kDouble);
    std::vector<at::Tensor> out = p->runner.run(p->inputs);
    at::Tensor slope = out[1].contiguous();
    if (p->single) {
      *value = *out[0].const_data_ptr<float>();
      for (int64_t i = 0; i < length; i++) gradient[i] = slope.const_data_ptr<float>()[i];
    } else {
      *value = *out[0].const_data_ptr<double>();
      std::memcpy(gradient, slope.const_data_ptr<double>(), size * sizeof(double));
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return -1;
  }
  for (int64_t i = 0; i < length; i++)
    if (!std::isfinite(gradient[i])) return 3;
  return std::isfinite(*value) ? 0 : 4;
}

extern "C" int64_t potential_expand(uint64_t size, uint64_t expanded, double* x, double* out, void*) {
  if (size != expanded) return -1;
  std::memcpy(out, x, size * sizeof(double));
  return 0;
}
"""

# c10::ScalarType
_SCALAR_TYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
}


def _cache() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "pyro_zoo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(*parts: Any) -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler

    world = (torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), get_cpp_compiler())
    return hashlib.sha256(repr((world, parts)).encode()).hexdigest()[:40]


def _compiler_output(error: subprocess.CalledProcessError) -> str:
    text = error.stderr if isinstance(error.stderr, str) else ""
    return (text.strip().splitlines() or [f"exit status {error.returncode}"])[0][:300]


def _bridge() -> Path:
    """Build, or find in inductor's cache folder, the C functions that nutpie calls.

    Returns:
        The library.

    Raises:
        RuntimeError: If the C++ compiler fails.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    path = _cache() / f"bridge-{_key(_BRIDGE)}.so"
    if path.exists():
        return path
    root = Path(torch.__file__).parent
    headers = (root / "include", root / "include" / "torch" / "csrc" / "api" / "include")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, built = Path(folder) / "bridge.cpp", Path(folder) / "bridge.so"
        source.write_text(_BRIDGE, encoding="utf-8")
        command = [get_cpp_compiler(), "-std=c++20", "-O2", "-shared", "-fPIC", str(source), "-o", str(built)]
        command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}", *(f"-I{h}" for h in headers)]
        command += [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"the C++ compiler failed: {_compiler_output(error)}") from error
        os.replace(built, path)
    return path


def library_path(graph: fx.GraphModule, size: int, dtype: torch.dtype, constants: Sequence[Tensor]) -> Path:
    """Return where the library of this graph lies or will lie.

    Args:
        graph: The potential.
        size: Length of its first input.
        dtype: Type of its first input.
        constants: Its other inputs; only their shapes and types enter the library.

    Returns:
        A path in inductor's cache folder.
    """
    shapes = [(tuple(c.shape), c.stride(), str(c.dtype)) for c in constants]
    return _cache() / f"potential-{_key(graph.code, size, str(dtype), shapes)}.so"


def build_library(
    graph: fx.GraphModule, size: int, dtype: torch.dtype, constants: Sequence[Tensor], path: Path | None = None
) -> Path:
    """Compile a potential ahead of time, once; the next time it is found in inductor's cache folder.

    Args:
        graph: The potential.
        size: Length of its first input.
        dtype: Type of its first input.
        constants: Its other inputs.
        path: Where to; the graph's own place if ``None`` (its text changes on the way to another process).

    Returns:
        The library.
    """
    path = path or library_path(graph, size, dtype, constants)
    if not path.exists():
        example = (torch.zeros(size, dtype=dtype), *constants)
        options = {"cpp.threads": 1, "aot_inductor.compile_wrapper_opt_level": "O0"}
        log = logging.getLogger("torch._inductor.ir")
        level = log.level
        log.setLevel(logging.ERROR)  # it names every operation that goes through torch's dispatcher
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                built = Path(str(torch._inductor.aot_compile(graph, example, options=options)))
        finally:
            log.setLevel(level)
        for suffix in (".json", ".so"):  # the first says which operations go through torch's dispatcher, if any
            if built.with_suffix(suffix).exists():
                fresh = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
                shutil.copyfile(built.with_suffix(suffix), fresh)
                os.replace(fresh, path.with_suffix(suffix))
    return path


# ------------------------------------------------------------------------------------------- models of nutpie
class _Handle:
    """A potential opened in a library; it keeps its constants alive as long as nutpie may call it."""

    def __init__(self, library: Path, size: int, dtype: torch.dtype, constants: Sequence[Tensor]) -> None:
        self.functions = ctypes.CDLL(str(_bridge()))
        self.functions.potential_new.restype = ctypes.c_void_p
        self.constants = list(constants)
        count = len(self.constants)
        sizes = [s for c in self.constants for s in c.shape]
        strides = [s for c in self.constants for s in c.stride()]
        self.pointer = self.functions.potential_new(
            str(library).encode(),
            ctypes.c_int64(size),
            ctypes.c_int32(dtype == torch.float32),
            ctypes.c_int64(count),
            (ctypes.c_void_p * max(1, count))(*[c.data_ptr() for c in self.constants]),
            (ctypes.c_int64 * max(1, count))(*[c.dim() for c in self.constants]),
            (ctypes.c_int64 * max(1, len(sizes)))(*sizes),
            (ctypes.c_int64 * max(1, len(sizes)))(*strides),
            (ctypes.c_int32 * max(1, count))(*[_SCALAR_TYPES[c.dtype] for c in self.constants]),
        )
        if not self.pointer:
            raise RuntimeError("the compiled log density could not be loaded")

    def address(self, name: str) -> int:
        return ctypes.cast(getattr(self.functions, name), ctypes.c_void_p).value or 0

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.functions.potential_delete(ctypes.c_void_p(self.pointer))
            self.pointer = None


@dataclass(kw_only=True)
class Compiled:
    """A potential in a library, which threads call at the same time.

    Args:
        library: As of :func:`build_library`.
        size: Length of the flat vector.
        dtype: Type in which the library computes.
        constants: Inputs of the library.
    """

    library: Path
    size: int
    dtype: torch.dtype
    constants: Sequence[Tensor]

    def sampler(self, initial: Any, settings: Any, progress: Any, store: Any) -> Any:
        """Start nutpie on a fresh copy of the potential.

        Args:
            initial: Starting point.
            settings: nutpie's.
            progress: nutpie's.
            store: nutpie's.

        Returns:
            nutpie's sampler.
        """
        from nutpie import _lib

        handle = _Handle(self.library, self.size, self.dtype, self.constants)
        axes = {"coordinate": self.size}
        model = _lib.PyMcModel(
            _lib.LogpFunc(handle.address("potential_evaluate"), handle.pointer, handle),
            _lib.ExpandFunc(self.size, self.size, handle.address("potential_expand"), handle.pointer, handle),
            _lib.PyVariable.new_variables(["flat"], ["float64"], [(self.size,)], axes, {"flat": ("coordinate",)}),
            self.size,
            axes,
            {},
            lambda _seed: initial,
            None,
        )
        return _lib.PySampler.from_pymc(settings, 1, model, progress, store)

    def evaluate(self, flat: Any) -> tuple[float, Any]:
        """Call the library once, e.g. to compare it with the graph.

        Args:
            flat: Unconstrained values, ``(size,)``, float64.

        Returns:
            Log density and gradient.

        Raises:
            RuntimeError: If the library fails.
        """
        handle = _Handle(self.library, self.size, self.dtype, self.constants)
        point, gradient, value = np.array(flat, dtype=np.float64), np.zeros(self.size), ctypes.c_double()
        function = handle.functions.potential_evaluate
        function.restype = ctypes.c_int64
        code = function(
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

    def sampler(self, initial: Any, settings: Any, progress: Any, store: Any) -> Any:
        """Start nutpie on the function.

        Args:
            initial: Starting point.
            settings: nutpie's.
            progress: nutpie's.
            store: nutpie's.

        Returns:
            nutpie's sampler.
        """
        from nutpie.compiled_pyfunc import from_pyfunc

        def evaluate(x: Any) -> tuple[float, Any]:
            try:
                value, gradient = self.evaluate(x)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise _OutsideSupportError from error
            if not (math.isfinite(value) and np.isfinite(gradient).all()):
                raise _OutsideSupportError
            return value, gradient

        model = from_pyfunc(
            self.size,
            lambda: evaluate,
            lambda *_: lambda x: {"flat": np.array(x)},
            [np.dtype("float64")],
            [(self.size,)],
            ["flat"],
            make_initial_point_fn=lambda _seed: initial,
        )
        return model._make_sampler(settings, np.zeros(self.size), 1, progress, store)


class _OutsideSupportError(Exception):
    """Tells nutpie that a trajectory left the support; it counts as a divergence."""

    is_recoverable = True


# ----------------------------------------------------------------------------------------------------- a chain
_TEMPLATE = (
    "{% for c in chains %}{{ c.finished_draws }} {{ c.total_draws }} {{ c.divergences }} {{ c.step_size }} "
    "{{ c.latest_num_steps }}{% endfor %}"
)


@dataclass
class Running:
    """One chain under way: nutpie's sampler, its number, and the latest that it reported.

    Args:
        chain: Number of the chain.
        total: Iterations in all.
        sampler: nutpie's, in the background.
        latest: Its last line of progress.
    """

    chain: int
    total: int
    sampler: Any = None
    latest: list[str] = field(default_factory=list)

    def report(self) -> Chain:
        """Return how far the chain is.

        Returns:
            The latest state that nutpie reported.
        """
        words = (self.latest[-1] if self.latest else "").split()
        draws, total, divergences, step, leapfrogs = words if len(words) == 5 else ["0", str(self.total), "0", "0", "0"]
        return Chain(
            chain=self.chain,
            draws=int(draws),
            total=int(total),
            divergences=int(divergences),
            step_size=float(step),
            leapfrogs=int(leapfrogs),
        )


def import_nutpie() -> None:
    """Import nutpie, which imports ArviZ and takes a second or more, without the warnings of the two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("nutpie")


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
    import_nutpie()
    from nutpie import _lib
    from nutpie import sample as nutpie_sample
    from nutpie.sample import CompiledModel

    running = Running(chain, options.warmup + options.draws)

    def keep(line: str) -> None:
        running.latest[:] = [line]

    class Reporting(CompiledModel):  # type: ignore[misc]
        n_dim = potential.size
        shapes = {"flat": (potential.size,)}  # noqa: RUF012
        coords: dict[str, Any] = {}  # noqa: RUF012

        def _make_sampler(self, settings: Any, _mean: Any, _cores: Any, _progress: Any, store: Any) -> Any:
            progress = _lib.ProgressType.template_callback(100, _TEMPLATE, 1, keep)
            return potential.sampler(np.ascontiguousarray(initial, dtype=np.float64), settings, progress, store)

    running.sampler = nutpie_sample(
        Reporting(dims={}),
        draws=options.draws,
        tune=options.warmup,
        chains=1,
        cores=1,
        seed=chain_seed(options.seed, chain),
        low_rank_modified_mass_matrix=options.low_rank,
        target_accept=options.target_accept,
        maxdepth=options.max_treedepth,
        blocking=False,
        progress_bar=False,
        return_raw_trace=True,
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

    Args:
        folder: Holds ``graph.pt`` and ``options.json``, written by the parent, and ``initial-K.npy`` for chain ``K``.

    Returns:
        Exit status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    job = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    # Written a moment ago by the parent, into a folder that only this user can write to.
    stored = torch.load(folder / "graph.pt", weights_only=False)
    graph, constants, dtype = stored["graph"], stored["constants"], stored["dtype"]
    if job["task"] == "build":
        build_library(graph, job["size"], dtype, constants, Path(job["library"]))
        return 0
    potential = Python(function=lambda flat: graph(flat, *constants), size=job["size"], dtype=dtype)
    options = Options(**job["options"])
    chains: queue.Queue[int | None] = queue.Queue()
    busy = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            chains.put(int(line))
        chains.put(None)
        if busy.is_set():  # the parent is gone
            os._exit(3)

    threading.Thread(target=listen, daemon=True).start()
    while (chain := chains.get()) is not None:
        busy.set()
        running = start(potential, chain, np.load(folder / f"initial-{chain}.npy"), options)
        said = None
        while not finished(running):
            if (report := running.report()) != said:
                said = report
                print(json.dumps({"progress": asdict(report)}), flush=True)
            time.sleep(0.005)
        arrays = result(running)
        np.savez(folder / f"chain-{chain}.npz", **arrays)
        busy.clear()
        print(json.dumps({"done": chain}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
