"""``zoo doctor``: what a bug report needs to say of the machine, and whether it can do what the zoo asks of it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Examination", "examine"]

NEEDED = (
    "arviz", "jinja2", "matplotlib", "numpy", "nutpie", "pandas", "pyro-ppl", "rich", "safetensors", "scikit-learn",
    "scipy", "torch", "typer", "xarray",
)  # fmt: skip
EXTRAS = (
    "graphviz", "huggingface_hub", "laplace-torch", "onnx", "onnxruntime", "onnxscript", "pillow",
    "pyarrow",
)  # fmt: skip
VARIABLES = (
    "CC", "CXX", "CUDA_VISIBLE_DEVICES", "KMP_AFFINITY", "LD_PRELOAD", "MKL_NUM_THREADS", "OMP_NUM_THREADS",
    "OMP_PROC_BIND", "OMP_WAIT_POLICY", "PYTHONHASHSEED", "PYTORCH_CUDA_ALLOC_CONF", "TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR", "TORCH_COMPILE_DISABLE",
)  # fmt: skip
_COMPILE_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found.

    Args:
        versions: Package -> version, or an empty string where it is not installed; those that are needed.
        extras: Likewise, those that only some features need.
        python: Version, implementation and executable.
        platform: System, its release, and the processor.
        cores: Of the machine, and those that this process may use.
        memory: Bytes of memory of the machine; 0 where it does not say.
        threads: Threads of one torch operation, and of operations side by side.
        devices: ``cpu``, and the GPUs that torch sees.
        compiler: Path and version of the C++ compiler; empty texts without one.
        compiles: Whether a function was compiled and ran; ``None`` if that was not tried. ``seconds`` it took, and
            ``reason`` if it failed.
        cache: Folder of compiled libraries, whether it can be written, and the libraries' number and bytes.
        git: Commit of the checkout that runs, and whether files were changed since; ``None`` if it is no checkout.
        variables: Environment variables that matter, as far as they are set.
        problems: What is wrong, in sentences; empty if nothing is.
    """

    versions: Mapping[str, str]
    extras: Mapping[str, str]
    python: Mapping[str, str]
    platform: Mapping[str, str]
    cores: Mapping[str, int]
    memory: int
    threads: Mapping[str, int]
    devices: tuple[str, ...]
    compiler: Mapping[str, str]
    compiles: Mapping[str, Any]
    cache: Mapping[str, Any]
    git: Mapping[str, Any] | None
    variables: Mapping[str, str]
    problems: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able dict.

        Returns:
            Field -> value.
        """
        return asdict(self)


def examine(*, compile: bool = True) -> Examination:
    """Look at the machine.

    Args:
        compile: Whether to compile a function, in a process and a cache of its own; takes some 20 seconds.

    Returns:
        What was found.
    """
    from zoo.artifacts import machine_memory
    from zoo.claims import machine
    from zoo.inference.runner import git_state

    versions, extras = _versions(("pyro-zoo", *NEEDED)), _versions(EXTRAS)
    problems = [f"the package '{name}' is not installed" for name in NEEDED if not versions[name]]
    compiler = _compiler()
    compiles = _compiles(str(compiler["reason"])) if compile else {"works": None, "seconds": None, "reason": ""}
    if compiles["works"] is False:
        problems.append(f"nothing can be compiled, so that fits run several times slower: {compiles['reason']}")
    cache = _cache()
    if not cache["writable"]:
        problems.append(f"the cache folder '{cache['folder']}' cannot be written, so that every fit compiles anew")
    threads, devices = _torch()
    return Examination(
        versions=versions,
        extras=extras,
        python={
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        platform={
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "processor": str(machine()["processor"]),
        },
        cores={"machine": os.cpu_count() or 1, "usable": _usable_cores()},
        memory=machine_memory(),
        threads=threads,
        devices=devices,
        compiler={"path": compiler["path"], "version": compiler["version"]},
        compiles=compiles,
        cache=cache,
        git=git_state(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        problems=tuple(problems),
    )


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    if not found.get("pyro-zoo", "0"):
        from zoo import __version__

        found["pyro-zoo"] = __version__
    return found


def _compiler() -> dict[str, str]:
    from zoo.inference.program import no_compiler

    named = os.environ.get("CXX", "").split()
    path = next(filter(None, map(shutil.which, named[:1] or ["g++", "clang++", "cl"])), "")
    version = ""
    if path:
        try:
            told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
            version = next(iter(told.stdout.splitlines()), "")
        except (OSError, subprocess.SubprocessError):
            version = "does not say"
    return {"path": path, "version": version, "reason": no_compiler()}


def _compiles(reason: str) -> dict[str, Any]:
    """Compile a function in a child process whose cache is empty, and compare it with the eager one."""
    if reason:
        return {"works": False, "seconds": None, "reason": reason}
    from zoo.inference.library import child_environment

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="zoo-doctor-") as folder:
        command = [sys.executable, "-m", "zoo.doctor"]
        environment = child_environment() | {"TORCHINDUCTOR_CACHE_DIR": folder}
        try:
            child = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
            )
            told = json.loads(child.stdout.splitlines()[-1])["reason"] if child.returncode == 0 else _last(child.stderr)
        except subprocess.TimeoutExpired:
            told = f"it took more than {_COMPILE_SECONDS} seconds"
        except (OSError, ValueError, LookupError) as error:
            told = f"{type(error).__name__}: {error}"
    return {"works": not told, "seconds": round(time.perf_counter() - started, 1), "reason": told}


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "the compiler's process ended")


def _cache() -> dict[str, Any]:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()) / "pyro_zoo"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest):
            writable = True
    except OSError:
        writable = False
    return {"folder": str(folder), "writable": writable, "files": len(sizes), "bytes": sum(sizes)}


def _torch() -> tuple[dict[str, int], tuple[str, ...]]:
    import torch

    threads = {"within": torch.get_num_threads(), "between": torch.get_num_interop_threads()}
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return threads, ("cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in gpus))


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _probe() -> str:
    """Compile a function of the kind that a fit is, run it, and return what is wrong with that; empty if nothing is."""
    import torch

    from zoo.inference.program import compile_function

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ((x.exp() * x.softmax(0)).sum(),)

    x = torch.linspace(-1.0, 1.0, 7)
    program = compile_function(function, [x])
    if not program.compiled:
        return program.reason
    found, (expected,) = program.run([x], back=[-1], out=[None]), function(x)
    return (
        "" if torch.allclose(found, expected) else f"the compiled function gave {found.item()}, not {expected.item()}"
    )


if __name__ == "__main__":
    print(json.dumps({"reason": _probe()}))
