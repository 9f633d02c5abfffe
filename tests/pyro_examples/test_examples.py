"""Every example steps as Pyro steps it, and goes the whole way: check, fit, draws, predictions, ArviZ, report."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pytest
from pyro.infer import SVI

import zoo
from tests.pyro_examples import EXAMPLES, Example, load

STEPS = 5

# Why an example runs eagerly, at Pyro's own speed: a part of the reason that is given. All others are compiled.
EAGER: dict[str, str] = {}

BY_SVI = [name for name in EXAMPLES if not name.endswith("_nuts") and name != "neutra"]


def steps(example: Example, step) -> list[float]:
    pyro.set_rng_seed(1)
    found = [step(*example.args, **example.kwargs) for _ in range(STEPS)]
    return [float(sum(v) if isinstance(v, tuple) else v) for v in found]


@pytest.mark.parametrize("name", BY_SVI)
def test_steps_equal_those_of_pyro(name):
    example = load(name)
    wanted = steps(example, SVI(example.model, example.guide, example.optim(), example.loss()).step)
    example = load(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = zoo.compile_svi(example.model, example.guide, loss=example.loss(), optim=example.optim())
        found = steps(example, compiled)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (EAGER[name] in compiled.reason) if name in EAGER else not compiled.reason, compiled.reason
