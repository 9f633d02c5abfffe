"""Compile a traced graph in a process of its own, where a compiler that aborts or hangs harms nobody.

Run as ``python -m zoo.inference._compile_worker``, with the job as JSON on standard input. The library lands where the
process that asked looks for it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from zoo.inference.library import compile_to

__all__: list[str] = []

_DEPTH = 20_000  # the compiler descends along chains of operations, a frame or more for each


def main(job: dict[str, Any]) -> None:
    """Compile a graph.

    Args:
        job: The graph's code, its inputs, options and threads, and where the library goes.
    """
    torch.set_num_threads(job["threads"])
    sys.setrecursionlimit(_DEPTH)
    names: dict[str, Any] = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan}
    exec(job["code"], names)
    example = [
        torch.empty_strided(shape, stride, dtype=getattr(torch, dtype)).zero_()
        for shape, stride, dtype in job["inputs"]
    ]
    graph = make_fx(lambda *inputs: names["forward"](None, *inputs), tracing_mode="fake")(*example)
    for node in graph.graph.nodes:
        node.meta = {}
    compile_to(graph, example, job["options"], Path(job["path"]))


if __name__ == "__main__":
    main(json.load(sys.stdin))
