"""Scaffold: the pair against the exact posterior, to be replaced by the checks of your method."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal

from zoo.errors import DataError
from zoo.models._template import METHOD, Hyper, build, exact_posterior
from zoo.types import Claim, Dataset


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(40, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64) + 0.7 * noise
    return Dataset(name="drawn", task="regression", train={"x": x, "y": y, "index": torch.arange(40)})


def log_joint(data: Dataset, hyper: Hyper, w: Tensor) -> Tensor:
    model = poutine.condition(build(data, hyper).model, data={"w": w})
    total: Tensor = poutine.trace(model).get_trace(data.train).log_prob_sum()
    return total


def log_evidence(data: Dataset, hyper: Hyper) -> Tensor:
    """Of the target with the coefficients summed out: a normal of covariance s^2 X X' + sigma^2 I."""
    x, y = data.train["x"], data.train["y"]
    covariance = hyper.w_scale**2 * x @ x.mT + hyper.noise**2 * torch.eye(len(y), dtype=x.dtype)
    total: Tensor = MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    return total


def gap(data: Dataset, hyper: Hyper, believed: Hyper) -> float:
    """Largest difference at ten points between the log joint and what the closed form makes of ``believed``."""
    mean, precision = exact_posterior(data, believed)
    exact = MultivariateNormal(mean, precision_matrix=precision)
    points = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return max(abs(float(log_joint(data, hyper, w) - exact.log_prob(w) - log_evidence(data, believed))) for w in points)


def test_log_joint_is_the_exact_posterior_plus_the_exact_evidence(data: Dataset) -> None:
    assert gap(data, Hyper(), Hyper()) < 1e-9


@pytest.mark.parametrize("wrong", [Hyper(w_scale=1.1), Hyper(noise=0.8)], ids=["prior", "noise"])
def test_a_wrong_model_is_caught(data: Dataset, wrong: Hyper) -> None:
    assert gap(data, Hyper(), wrong) > 0.1


def test_a_plain_pyro_loop_finds_the_exact_means_and_the_conditional_scales(data: Dataset) -> None:
    pyro.set_rng_seed(0)
    model, guide = build(data, Hyper())[:2]
    optimiser = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.01 ** (1 / 2_000)})
    batch = {name: v.float() if v.is_floating_point() else v for name, v in data.train.items()}
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, optimiser, Trace_ELBO())
        for _ in range(2_000):
            svi.step(batch)
        loc, scale = pyro.param("w_loc").detach(), pyro.param("w_scale").detach()
    mean, precision = exact_posterior(data, Hyper())
    sd = precision.diagonal().rsqrt()
    assert float(((loc - mean) / sd).abs().max()) < 0.2
    assert float((scale / sd).log().abs().max()) < 0.1


@pytest.mark.parametrize("claim", METHOD.claims, ids=lambda claim: claim.statement[:40])
def test_claims_hold_on_one_seed(claim: Claim) -> None:
    assert claim.verdict([claim.measure(0, True)]) == "reproduced"


def test_bad_input_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match="noise is 0; it must be positive"):
        build(data, Hyper(noise=0.0))
    with pytest.raises(DataError, match=r"shape \(40, 3, 1\)"):
        build(replace(data, train={**data.train, "x": data.train["x"][..., None]}), Hyper())
