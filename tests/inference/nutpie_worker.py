"""Samples a normal distribution with the nutpie that is first on the path, and prints what came out as JSON."""

from __future__ import annotations

import ctypes
import json
import time

import numpy as np
import torch

from zoo.inference import _nutpie
from zoo.inference import _nuts_worker as worker

SIZE = 3
LOC, SCALE = np.array([1.0, -2.0, 30.0]), np.array([0.1, 1.0, 10.0])


class Pointers:
    """The density behind C functions, without a compiler: Python functions that C can call."""

    def model(self, initial):
        numbers = ctypes.POINTER(ctypes.c_double * SIZE)

        @ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_uint64, numbers, numbers, numbers, ctypes.c_void_p)
        def evaluate(_size, point, gradient, value, _data):
            z = (np.array(point.contents) - LOC) / SCALE
            gradient.contents[:] = list(-z / SCALE)
            value.contents[0] = -0.5 * float(z @ z)
            return 0

        @ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_uint64, ctypes.c_uint64, numbers, numbers, ctypes.c_void_p)
        def expand(_size, _expanded, point, out, _data):
            out.contents[:] = list(point.contents)
            return 0

        address = [ctypes.cast(f, ctypes.c_void_p).value for f in (evaluate, expand)]
        return _nutpie.c_model(SIZE, *address, 0, (evaluate, expand), initial)


def density(flat):
    z = (flat - torch.from_numpy(LOC)) / torch.from_numpy(SCALE)
    return -0.5 * z @ z, -z / torch.from_numpy(SCALE)


def sampled(potential, low_rank):
    options = worker.Options(warmup=200, draws=400, seed=3, target_accept=0.8, max_treedepth=8, low_rank=low_rank)
    chain = worker.start(potential, 1, np.zeros(SIZE), options)
    while not worker.finished(chain):
        time.sleep(0.01)
    arrays = worker.result(chain)
    return {
        "shapes": {name: list(np.shape(a)) for name, a in arrays.items()},
        "z": ((arrays["flat"].mean(0) - LOC) / SCALE).tolist(),
        "sd": (arrays["flat"].std(0) / SCALE).tolist(),
        "flat": arrays["flat"][-1].tolist(),
        "report": list(worker.asdict(chain.report()).values()),
    }


if __name__ == "__main__":
    python = worker.Python(function=density, size=SIZE, dtype=torch.float64)
    print(
        json.dumps({
            "version": _nutpie.import_nutpie().__version__,
            "pointers": sampled(Pointers(), False),
            "python": sampled(python, False),
            "low rank": sampled(python, True),
        })
    )
