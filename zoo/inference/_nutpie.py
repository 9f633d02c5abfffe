"""What the zoo asks of nutpie, in one place: which of its versions offers what is decided here.

Public are ``nutpie.sample``, its callback of progress (from 0.16.9 on), and ``compiled_pyfunc.from_pyfunc``. A log
density behind a C function has no public constructor, so that model is put together as nutpie's own compilers do it,
and whatever ``nutpie.sample`` hands to a model's sampler is passed through as it comes.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Progress", "c_model", "import_nutpie", "python_model", "sample"]

_TEMPLATE = (
    "{% for c in chains %}{{ c.finished_draws }} {{ c.total_draws }} {{ c.divergences }} {{ c.step_size }} "
    "{{ c.latest_num_steps }}{% endfor %}"
)
_EVERY_MS = 20  # what a chain costs that is given up at its first divergence


class Progress(NamedTuple):
    """How far a chain is.

    Args:
        draws: Iterations done, warm-up included.
        total: Iterations in all.
        divergences: Divergent trajectories so far.
        step_size: Current step size.
        leapfrogs: Gradient evaluations of the latest draw.
    """

    draws: int
    total: int
    divergences: int
    step_size: float
    leapfrogs: int


def import_nutpie() -> Any:
    """Import nutpie, which imports ArviZ and takes a second or more, without the warnings of the two.

    Returns:
        The package.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("nutpie")


def c_model(size: int, evaluate: int, expand: int, data: int | None, alive: Any, initial: Any) -> Any:
    """Return nutpie's model of a log density behind C functions.

    Args:
        size: Length of the flat vector.
        evaluate: Address of ``(size, point, gradient, value, data) -> code``.
        expand: Address of ``(size, size, point, expanded, data) -> code``.
        data: Address that the functions are given.
        alive: What has to live as long as the model.
        initial: Starting point.

    Returns:
        A model for :func:`sample`.
    """
    import_nutpie()
    from nutpie import _lib
    from nutpie.sample import CompiledModel

    axes = {"coordinate": size}

    class Model(CompiledModel):  # type: ignore[misc]
        n_dim = size

        def _make_model(self, _mean: Any) -> Any:
            return _lib.PyMcModel(
                _lib.LogpFunc(evaluate, data, alive),
                _lib.ExpandFunc(size, size, expand, data, alive),
                _lib.PyVariable.new_variables(["flat"], ["float64"], [(size,)], axes, {"flat": ("coordinate",)}),
                size,
                axes,
                {},
                lambda _seed: initial,
                None,
            )

        def _make_sampler(self, settings: Any, mean: Any, cores: Any, *rest: Any, **named: Any) -> Any:
            return _lib.PySampler.from_pymc(settings, cores, self._make_model(mean), *rest, **named)

    return Model(dims={})


def python_model(size: int, evaluate: Callable[[Any], tuple[float, Any]], initial: Any) -> Any:
    """Return nutpie's model of a log density in Python.

    Args:
        size: Length of the flat vector.
        evaluate: Point -> log density and gradient.
        initial: Starting point.

    Returns:
        A model for :func:`sample`.
    """
    import_nutpie()
    from nutpie.compiled_pyfunc import from_pyfunc

    return from_pyfunc(
        size,
        lambda: evaluate,
        lambda *_: lambda x: {"flat": np.array(x)},
        [np.dtype("float64")],
        [(size,)],
        ["flat"],
        make_initial_point_fn=lambda _seed: initial,
    )


def sample(model: Any, report: Callable[[Progress], None], *, low_rank: bool, **settings: Any) -> Any:
    """Start a single chain in a thread of nutpie.

    Args:
        model: As of :func:`c_model` or :func:`python_model`.
        report: Told fifty times a second how far the chain is, from another thread.
        low_rank: Whether to adapt a low-rank plus diagonal metric.
        settings: Others of ``nutpie.sample``.

    Returns:
        nutpie's sampler, in the background.
    """
    nutpie = import_nutpie()
    knows = inspect.signature(nutpie.sample).parameters
    if "adaptation" in knows:
        settings["adaptation"] = "low_rank" if low_rank else "diag"
    else:
        settings["low_rank_modified_mass_matrix"] = low_rank
    if "progress_callback" in knows:
        settings |= {"progress_callback": lambda chains: report(_state(chains[0])), "progress_rate": _EVERY_MS}
    else:
        model = _reporting(model, report)
    return nutpie.sample(
        model, chains=1, cores=1, blocking=False, progress_bar=False, return_raw_trace=True, **settings
    )


def _state(chain: Any) -> Progress:
    return Progress(chain.finished_draws, chain.total_draws, chain.divergences, chain.step_size, chain.latest_num_steps)


def _reporting(model: Any, report: Callable[[Progress], None]) -> Any:
    """Return the model with a progress display that is a function, for versions of nutpie without a callback."""
    from nutpie import _lib
    from nutpie.sample import CompiledModel

    def read(line: str) -> None:
        words = line.split()
        if len(words) == len(Progress._fields):  # empty before the chain has begun
            draws, total, divergences, step_size, leapfrogs = words
            report(Progress(int(draws), int(total), int(divergences), float(step_size), int(leapfrogs)))

    class Reporting(CompiledModel):  # type: ignore[misc]
        n_dim = model.n_dim

        def _make_sampler(self, settings: Any, mean: Any, cores: Any, _progress: Any, *rest: Any, **named: Any) -> Any:
            display = _lib.ProgressType.template_callback(_EVERY_MS, _TEMPLATE, 1, read)
            return model._make_sampler(settings, mean, cores, display, *rest, **named)

    return Reporting(dims=model.dims)
