"""Compile a traced graph in a process of its own, where a compiler that aborts or hangs harms nobody.

Run as ``python -m zoo.inference._compile_worker FOLDER``. What is compiled lands in the compiler's cache on disk, so
that the process that asked compiles the same graph in a moment.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

__all__: list[str] = []


def main(folder: Path) -> None:
    """Compile the graph in a folder and run it once.

    Args:
        folder: Holds ``graph.pt``, which the calling process has just written.
    """
    importlib.import_module("torch._inductor.compile_fx")  # the graph names modules that torch loads on demand
    stored: dict[str, Any] = torch.load(folder / "graph.pt", weights_only=False)
    torch.set_num_threads(stored["threads"])
    compiled: Any = torch.compile(stored["graph"], fullgraph=True, dynamic=False, options=stored["options"])
    compiled(*stored["example"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
