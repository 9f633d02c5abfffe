r"""Traced graphs compiled ahead of time to shared libraries, which run without Python.

A graph of tensors becomes one library, kept in the compiler's cache folder under the hash of what it computes, so that
the next process that traces the same graph opens it in a moment. A :class:`Library` takes many steps in one call: what
the graph returns as its next state goes back into its inputs in a loop of C++. NUTS calls the same libraries from its
own threads. No interpreter lock is held meanwhile, so that chains and fits of one process run side by side.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import operator
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["LARGE", "Library", "build", "cache_folder", "child_environment", "lift_constants", "path_of"]

LARGE = 1_000  # nodes from which a graph is compiled in a child process, where a compiler that aborts harms nothing
_CHILD_SECONDS = 600

# Return codes of `potential_evaluate` are nutpie's: 0 fine, above 0 a point outside the support (counted as a
# divergence), below 0 a failure that ends the chain.
_BRIDGE = r"""
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner_cpu.h>
#include <torch/version.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

extern "C" void omp_set_num_threads(int) __attribute__((weak));

static thread_local std::string failure;

struct Graph {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR > 6
  Graph(const char* path) : runner(std::string(path), 1, true) {}  // one caller: no locks
#else
  Graph(const char* path) : runner(std::string(path), 1) {}
#endif
  torch::inductor::AOTIModelContainerRunnerCpu runner;
  std::vector<std::vector<int64_t>> sizes, strides;
  std::vector<at::TensorOptions> options;
  std::vector<at::Tensor> inputs;
  std::vector<float> narrow;

  void point(int64_t i, void* data) { inputs[i] = at::from_blob(data, sizes[i], strides[i], options[i]); }
};

extern "C" const char* graph_failure() { return failure.c_str(); }

extern "C" void graph_delete(Graph* g) { delete g; }

extern "C" Graph* graph_new(const char* path, int64_t count, void** data, const int64_t* dims, const int64_t* sizes,
                            const int64_t* strides, const int32_t* dtypes) {
  try {
    Graph* g = new Graph(path);
    g->inputs.resize(count);
    for (int64_t i = 0; i < count; i++) {
      g->sizes.emplace_back(sizes, sizes + dims[i]);
      g->strides.emplace_back(strides, strides + dims[i]);
      g->options.push_back(at::TensorOptions().dtype((at::ScalarType)dtypes[i]));
      g->point(i, data[i]);
      sizes += dims[i];
      strides += dims[i];
    }
    return g;
  } catch (const std::exception& error) {
    failure = error.what();
    return nullptr;
  }
}

/* Take steps. `data` are the inputs. Input `each` (none if negative) moves on by `stride` bytes at every step. Output
   `o` goes back into input `back[o]` (nowhere if negative) and after the last step to the memory at `out[o]` (nowhere
   if null); output 0 is also written to `first`, step after step. */
extern "C" int64_t graph_run(Graph* g, int64_t steps, void** data, int64_t each, int64_t stride, int64_t outputs,
                             const int64_t* back, void** out, void* first) {
  try {
    c10::InferenceMode guard;
    std::vector<at::Tensor> found;
    for (int64_t i = 0; i < (int64_t)g->inputs.size(); i++) g->point(i, data[i]);
    char* row = each < 0 ? nullptr : (char*)data[each];
    char* kept = (char*)first;
    for (int64_t s = 0; s < steps; s++) {
      if (each >= 0) g->point(each, row + s * stride);
      found = g->runner.run(g->inputs);
      if (kept) {
        at::Tensor value = found[0].contiguous();
        std::memcpy(kept, value.const_data_ptr(), value.nbytes());
        kept += value.nbytes();
      }
      if (s + 1 < steps)
        for (int64_t o = 0; o < outputs; o++)
          if (back[o] >= 0) g->inputs[back[o]] = found[o].contiguous();
    }
    for (int64_t o = 0; o < outputs; o++)
      if (out[o]) {
        at::Tensor value = found[o].contiguous();
        std::memmove(out[o], value.const_data_ptr(), value.nbytes());
      }
    return 0;
  } catch (const std::exception& error) {
    failure = error.what();
    return -1;
  }
}

extern "C" int64_t potential_evaluate(uint64_t size, double* x, double* gradient, double* value, void* user) {
  static thread_local bool fresh = true;
  if (fresh && omp_set_num_threads) omp_set_num_threads(1);
  fresh = false;
  Graph* g = (Graph*)user;
  int64_t length = (int64_t)size;
  bool single = g->options[0].dtype() == at::kFloat;
  try {
    c10::InferenceMode guard;
    if (single) {
      g->narrow.assign(x, x + length);
      g->point(0, g->narrow.data());
    } else {
      g->point(0, x);
    }
    std::vector<at::Tensor> found = g->runner.run(g->inputs);
    at::Tensor slope = found[1].contiguous();
    if (single) {
      *value = *found[0].const_data_ptr<float>();
      for (int64_t i = 0; i < length; i++) gradient[i] = slope.const_data_ptr<float>()[i];
    } else {
      *value = *found[0].const_data_ptr<double>();
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

_SETTINGS = {
    "aot_inductor.compile_wrapper_opt_level": "O1",  # O0 compiles no faster, and small steps take a quarter longer
    "memory_planning": True,  # a step of few microseconds would spend a fifth of them on allocations
    "aot_inductor.enable_line_tables": False,
    "cpp.vec_isa_ok": True,  # else inductor tries every vector instruction set out, for nine seconds
}

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


# -------------------------------------------------------------------------------------------------------- cache
def cache_folder() -> Path:
    """Return the folder where compiled programs, and whatever else is learned once, are kept.

    Returns:
        The folder, which exists.
    """
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
    """Build, or find in the cache folder, the C functions through which libraries are called.

    Returns:
        Where they are.

    Raises:
        RuntimeError: If the C++ compiler fails.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    path = cache_folder() / f"bridge-{_key(_BRIDGE)}.so"
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


@cache
def _functions(path: Path) -> ctypes.CDLL:
    functions = ctypes.CDLL(str(path))
    functions.graph_new.restype = ctypes.c_void_p
    functions.graph_run.restype = ctypes.c_int64
    functions.graph_failure.restype = ctypes.c_char_p
    functions.potential_evaluate.restype = ctypes.c_int64
    return functions


# -------------------------------------------------------------------------------------------------------- build
def lift_constants(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return a copy of a graph whose constant tensors are further inputs, after its own.

    Args:
        graph: Traced function of tensors.

    Returns:
        The graph as a function ``(*inputs, *constants)``, without what tracing wrote into its nodes, and the constants.
    """
    new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    constants: dict[str, tuple[fx.Node, Tensor]] = {}
    nodes = list(graph.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = new.placeholder(str(node.target))
    for node in nodes:
        if node.op == "get_attr":
            name = str(node.target)
            if name not in constants:
                value = operator.attrgetter(name)(graph).detach()
                constants[name] = (new.placeholder(f"constant_{len(constants)}"), value)
            copies[node] = constants[name][0]
    for node in nodes:
        if node not in copies:
            copies[node] = new.node_copy(node, lambda n: copies[n])
            copies[node].meta = {}
    return fx.GraphModule(torch.nn.Module(), new), [value.contiguous() for _, value in constants.values()]


def path_of(graph: fx.GraphModule, example: Sequence[Tensor], options: Mapping[str, Any]) -> Path:
    """Return where the library of a graph lies or will lie.

    Args:
        graph: A graph without constants of its own.
        example: Its inputs; their shapes, strides and types enter the library, their values do not.
        options: Of the compiler.

    Returns:
        A path in the compiler's cache folder.
    """
    shapes = [(tuple(t.shape), t.stride(), str(t.dtype)) for t in example]
    return cache_folder() / f"graph-{_key(graph.code, shapes, sorted({**_SETTINGS, **options}.items()))}.so"


def build(graph: fx.GraphModule, example: Sequence[Tensor], options: Mapping[str, Any] | None = None) -> Path:
    """Compile a graph ahead of time, once; the next time it is found in the cache folder.

    Args:
        graph: A graph without constants of its own, see :func:`lift_constants`.
        example: Its inputs.
        options: Of the compiler.

    Returns:
        The library.

    Raises:
        RuntimeError: If the compiler fails, in whatever way.
    """
    options = dict(options or {})
    path = path_of(graph, example, options)
    if path.exists():
        return path
    whole = all(node.op in ("placeholder", "call_function", "output") for node in graph.graph.nodes)
    if whole and len(graph.graph.nodes) > LARGE:
        _build_in_child(graph, example, options, path)
    else:
        compile_to(graph, example, options, path)
    return path


def compile_to(graph: fx.GraphModule, example: Sequence[Tensor], options: Mapping[str, Any], path: Path) -> None:
    """Compile a graph in this process.

    Args:
        graph: The graph.
        example: Its inputs.
        options: Of the compiler.
        path: Where to; it is complete as soon as it is there.
    """
    settings = {k: v for k, v in {**_SETTINGS, **options}.items() if k in _known_options()}
    # One names every operation that goes through torch's dispatcher; the other, that a build for CUDA finds no GPU.
    levels = {log: log.level for log in map(logging.getLogger, ("torch._inductor.ir", "torch.utils.cpp_extension"))}
    for log in levels:
        log.setLevel(logging.ERROR)
    bridge = threading.Thread(target=_quietly, args=(_bridge,))  # meanwhile, on another core
    bridge.start()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            built = Path(str(torch._inductor.aot_compile(graph, tuple(example), options=settings)))
    finally:
        for log, level in levels.items():
            log.setLevel(level)
        bridge.join()
    for suffix in (".json", ".so"):  # the first says which operations go through torch's dispatcher, if any
        if built.with_suffix(suffix).exists():
            fresh = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            shutil.copyfile(built.with_suffix(suffix), fresh)
            os.replace(fresh, path.with_suffix(suffix))


def _quietly(function: Callable[[], Any]) -> None:
    with suppress(Exception):  # what fails here fails again where it is needed
        function()


@cache
def _known_options() -> frozenset[str]:
    """Return the names of the compiler's options, which differ between versions of torch."""
    return frozenset(torch._inductor.list_options())


def child_environment() -> dict[str, str]:
    """Return the environment in which a child process finds this package, installed or not.

    Returns:
        A copy of this process's, with the package's folder first on the path.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def _build_in_child(graph: fx.GraphModule, example: Sequence[Tensor], options: Mapping[str, Any], path: Path) -> None:
    """Compile a graph in a process of its own, where a compiler that aborts or hangs harms nobody."""
    # As text: unpickling a graph would run its random operations and keep their values as constants.
    job = {
        "code": graph.code,
        "inputs": [[list(t.shape), list(t.stride()), str(t.dtype).removeprefix("torch.")] for t in example],
        "options": dict(options),
        "path": str(path),
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "zoo.inference._compile_worker"]
    try:
        child = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, input=json.dumps(job),
            timeout=_CHILD_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        text = f"a graph of {len(graph.graph.nodes)} nodes was not compiled within {_CHILD_SECONDS} s"
        raise RuntimeError(text) from None
    if child.returncode:
        last = next((line.strip() for line in reversed(child.stderr.splitlines()) if line.strip()), "it said nothing")
        raise RuntimeError(f"the compiler ended with status {child.returncode}: {last[:300]}")


# ---------------------------------------------------------------------------------------------------------- use
@dataclass(frozen=True)
class _Shape:
    """What the library relies on of one tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Shape:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)


class Library:
    """An open library with memory for one caller; open it once for each thread that calls it.

    Args:
        path: As of :func:`build`.
        inputs: Tensors of the shapes, strides and types that it was built for.
        constants: Its last inputs, the same at every call; they are kept alive.

    Raises:
        RuntimeError: If it cannot be loaded.
    """

    def __init__(self, path: Path, inputs: Sequence[Tensor], constants: Sequence[Tensor] = ()) -> None:
        self.functions = _functions(_bridge())
        self.pointer: int | None = None
        self.constants = list(constants)
        everything = [*inputs, *self.constants]
        self.shapes = [_Shape.of(t) for t in everything]
        sizes = [s for t in everything for s in t.shape]
        strides = [s for t in everything for s in t.stride()]
        self.pointer = self.functions.graph_new(
            str(path).encode(),
            ctypes.c_int64(len(everything)),
            _pointers([t.data_ptr() for t in everything]),
            _numbers([t.dim() for t in everything]),
            _numbers(sizes),
            _numbers(strides),
            (ctypes.c_int32 * max(1, len(everything)))(*[_SCALAR_TYPES[t.dtype] for t in everything]),
        )
        if not self.pointer:
            raise RuntimeError(f"the compiled graph could not be loaded: {self.failure()}")
        self._tail = [t.data_ptr() for t in self.constants]

    def failure(self) -> str:
        """Return what the last failed call of this thread said."""
        text: bytes = self.functions.graph_failure()
        return text.decode(errors="replace").strip().split("\n")[0][:300]

    def address(self, name: str) -> int:
        """Return the address of a C function, to be called with :attr:`pointer`.

        Args:
            name: Of the function.

        Returns:
            The address.
        """
        return ctypes.cast(getattr(self.functions, name), ctypes.c_void_p).value or 0

    def run(
        self,
        inputs: Sequence[Tensor],
        *,
        steps: int,
        first: Tensor,
        back: Sequence[int],
        out: Sequence[Tensor | None],
        each: int = -1,
    ) -> None:
        """Take steps; what they read and write lies in the caller's tensors.

        Args:
            inputs: Contiguous, as at opening; input ``each`` has a further, first dimension of the steps.
            steps: How many.
            first: Where output 0 goes, step after step, ``(steps, ...)``.
            back: For every output the input that it becomes at the next step, or -1.
            out: For every output a tensor that takes it after the last step, or ``None``.
            each: The input that is another at every step; -1: none.

        Raises:
            RuntimeError: If an operation fails.
        """
        pointers = [t.data_ptr() for t in inputs]
        stride = 0 if each < 0 else inputs[each].stride(0) * inputs[each].element_size()
        code = self.functions.graph_run(
            ctypes.c_void_p(self.pointer),
            ctypes.c_int64(steps),
            _pointers([*pointers, *self._tail]),
            ctypes.c_int64(each),
            ctypes.c_int64(stride),
            ctypes.c_int64(len(back)),
            _numbers(back),
            _pointers([0 if t is None else t.data_ptr() for t in out]),
            ctypes.c_void_p(first.data_ptr()),
        )
        if code:
            raise RuntimeError(self.failure())

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.functions.graph_delete(ctypes.c_void_p(self.pointer))
            self.pointer = None


def _numbers(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * max(1, len(values)))(*values)


def _pointers(values: Sequence[int]) -> Any:
    return (ctypes.c_void_p * max(1, len(values)))(*values)
