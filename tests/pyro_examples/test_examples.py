"""A part of the examples, compiled, steps as Pyro steps it; all of them make what Pyro's own step takes."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pytest
from pyro.infer import SVI

import zoo
from tests.pyro_examples import EXAMPLES, Example, load

STEPS = 5

BY_SVI = [name for name in EXAMPLES if not name.endswith("_nuts") and name != "neutra"]
COMPILED = ["coin_by_svi", "eight_schools", "own_objective", "rugged_terrain"]  # compiling takes some seconds each


def steps(example: Example, step) -> list[float]:
    pyro.set_rng_seed(1)
    found = [step(*example.args, **example.kwargs) for _ in range(STEPS)]
    return [float(sum(v) if isinstance(v, tuple) else v) for v in found]


@pytest.mark.parametrize("name", COMPILED)
def test_steps_equal_those_of_pyro(name):
    example = load(name)
    wanted = steps(example, SVI(example.model, example.guide, example.optim(), example.loss()).step)
    example = load(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = zoo.compile_svi(example.model, example.guide, loss=example.loss(), optim=example.optim())
        found = steps(example, compiled)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert not compiled.reason


@pytest.mark.parametrize("name", BY_SVI)
def test_pyro_itself_takes_them(name):
    example = load(name)
    assert np.isfinite(steps(example, SVI(example.model, example.guide, example.optim(), example.loss()).step)).all()
