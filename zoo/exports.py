"""Write a plain network to one file that other programs run, and measure that file: size, speed, predictions."""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import DataError, MissingExtraError

__all__ = ["FORMATS", "Exported", "export", "measure"]

FORMATS = {".pt2": "torch.export", ".onnx": "ONNX"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was measured of an exported network.

    Args:
        path: The file.
        num_bytes: Its size.
        milliseconds: Median time of one batch of ``rows`` rows on one thread.
        rows: Rows of the batch.
        difference: Largest absolute difference of its outputs from the network's.
    """

    path: Path
    num_bytes: int
    milliseconds: float
    rows: int
    difference: float


def export(network: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write a network as a file that needs no code of the zoo; any number of rows may be passed to it later.

    Args:
        network: From features, ``(rows, ...)``, to a tensor.
        example: A batch of features, at least two rows.
        path: ``.pt2`` for :func:`torch.export.export`, ``.onnx`` for ONNX (extra ``export``).

    Returns:
        The path.

    Raises:
        DataError: If the suffix is another, the example has fewer than two rows, or the file cannot be written.
        MissingExtraError: If ONNX is asked for and not installed.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise DataError(f"'{path.name}' has the suffix '{path.suffix}'; allowed: {', '.join(FORMATS)}")
    if len(example) < 2:
        raise DataError(f"the example has {len(example)} rows; give two or more, so that their number stays free")
    network, example = network.eval(), example[:2].clone()  # a view would carry the whole batch into the file
    if path.suffix == ".onnx":
        _need("onnx", "onnxscript")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as aside:
            written = Path(aside) / path.name
            with _quiet():
                program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("rows")},))
                if path.suffix == ".pt2":
                    torch.export.save(program, written)
                else:
                    made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["x"])
                    assert made is not None
                    made.save(str(written), external_data=False)
            written.replace(path)
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}") from error
    return path


def measure(path: str | os.PathLike[str], network: nn.Module, x: Tensor, *, repeats: int = 20) -> Exported:
    """Load an exported network, compare its outputs with the network's, and time it.

    Args:
        path: What :func:`export` wrote.
        network: The network that was exported.
        x: Features of the batch to time, ``(rows, ...)``.
        repeats: Timed calls.

    Returns:
        Size, time and difference.

    Raises:
        MissingExtraError: If ONNX Runtime is needed and not installed.
    """
    path = Path(path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), _quiet():
            run = _loaded(path)
            difference = float((run(x) - network(x)).abs().max())
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                run(x)
                times.append(1e3 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    return Exported(
        path=path,
        num_bytes=path.stat().st_size,
        milliseconds=statistics.median(times),
        rows=len(x),
        difference=difference,
    )


def _loaded(path: Path) -> Callable[[Tensor], Tensor]:
    if path.suffix == ".pt2":
        loaded: Callable[[Tensor], Tensor] = torch.export.load(path).module()
        return loaded
    runtime = _need("onnxruntime")[0]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _need(*modules: str) -> list[Any]:
    import importlib

    try:
        return [importlib.import_module(module) for module in modules]
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export", "ONNX") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes to developers from the user."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)
