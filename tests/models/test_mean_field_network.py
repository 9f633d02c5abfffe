"""Mean field: on a linear network with known noise the optimum is known, whatever the estimator."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

import zoo
from zoo.errors import DataError
from zoo.inference.objectives import to_pyro
from zoo.models.mean_field_network import METHOD, Hyper, build, gradient_variance, summary
from zoo.types import Claim, Dataset, Elbo

SIGMA, SCALE = 0.5, 0.8
ESTIMATORS = ("local", "flipout", "weights")


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64) + 0.5
    y = y + SIGMA * torch.randn(40, generator=generator, dtype=torch.float64)
    return Dataset(name="drawn", task="regression", train={"x": x, "y": y, "index": torch.arange(40)})


def optimum(data: Dataset, scale: float) -> dict[str, Tensor]:
    """The best factorised normal: exact means, and the standard deviations of the conditionals (Bishop, 10.1.2)."""
    x, y = data.train["x"], data.train["y"]
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    prior = torch.tensor([x.shape[1] / scale**2] * x.shape[1] + [1.0], dtype=x.dtype)
    precision = design.mT @ design / SIGMA**2 + torch.diag(prior)
    mean = torch.linalg.solve(precision, design.mT @ y / SIGMA**2)
    sd = precision.diagonal().rsqrt()
    return {"W_0_loc": mean[:-1, None], "W_0_scale": sd[:-1, None], "b_0_loc": mean[-1:], "b_0_scale": sd[-1:]}


def worst(data: Dataset, hyper: Hyper, params: dict[str, Tensor], num: int = 600) -> float:
    """Largest mean gradient, in its standard errors."""
    pair = build(data, hyper)
    known = {"sigma": torch.tensor(SIGMA, dtype=torch.float64)}
    model = poutine.condition(pair.model, data=known)
    guide = poutine.block(pair.guide, hide=["sigma"])
    elbo, runs = to_pyro(Elbo(estimator="mean_field")), []
    with pyro.get_param_store().scope():
        for name, value in params.items():
            positive = name.endswith("scale")
            pyro.param(name, value.clone(), constraint=constraints.positive if positive else constraints.real)
        leaves = list(dict(pyro.get_param_store().named_parameters()).values())
        for _ in range(num):
            for leaf in leaves:
                leaf.grad = None
            elbo.loss_and_grads(model, guide, data.train)
            runs.append(torch.cat([leaf.grad.flatten() for leaf in leaves]))
    gradients = torch.stack(runs)
    return float((gradients.mean(0) / (gradients.std(0) / num**0.5)).abs().max())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_vanishes_at_the_exact_optimum(data: Dataset, estimator: str) -> None:
    torch.manual_seed(0)
    hyper = Hyper(hidden=(), prior_scale=SCALE, estimator=estimator)  # type: ignore[arg-type]
    assert worst(data, hyper, optimum(data, SCALE)) < 4.0


def test_a_wrong_prior_is_caught(data: Dataset) -> None:
    torch.manual_seed(0)
    assert worst(data, Hyper(hidden=(), prior_scale=SCALE), optimum(data, 0.5 * SCALE)) > 6.0


def test_rows_count_more_at_a_low_temperature(data: Dataset) -> None:
    def likelihood(temperature: float) -> Tensor:
        model = build(data, Hyper(hidden=(), temperature=temperature)).model
        known = {"W_0": torch.ones(3, 1).double(), "b_0": torch.zeros(1).double(), "sigma": torch.tensor(1.0).double()}
        trace = poutine.trace(poutine.condition(model, data=known)).get_trace(data.train)
        trace.compute_log_prob()
        total: Tensor = trace.nodes["y"]["log_prob_sum"]
        return total

    torch.testing.assert_close(likelihood(0.25), 4 * likelihood(1.0))


@pytest.mark.parametrize("hyper", [Hyper(hidden=(8,)), Hyper(hidden=(8,), channels=(4,))], ids=["dense", "conv"])
def test_rows_with_their_own_noise_leave_less_gradient_variance(hyper: Hyper) -> None:
    digits = zoo.datasets.load("digits")
    posterior = zoo.fit(METHOD, digits, hyper=hyper, steps=40, compile=False)
    found = gradient_variance(posterior, num_draws=60)
    for layer in ("W_0_scale", f"W_{1 + len(hyper.channels)}_scale"):
        assert found["local"][layer] < found["weights"][layer]
        assert found["flipout"][layer] < found["weights"][layer]


def test_summary_tells_weights_from_the_prior() -> None:
    posterior = zoo.fit(METHOD, "digits", hyper=METHOD.smoke, steps=5, compile=False)
    found = summary(posterior)
    assert found["W_0: sd / prior sd"] == pytest.approx(0.02 / 8, rel=0.2)
    assert 0.5 < found["W_0: |mean| > 2 sd"] <= 1


def test_bad_input_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match="temperature is 0; it must be positive"):
        build(data, Hyper(temperature=0.0))


@pytest.mark.parametrize("claim", METHOD.claims, ids=lambda claim: claim.statement[:40])
def test_claims_are_measured(claim: Claim) -> None:
    values = claim.measure(0, True)
    assert all({a.key, a.below or a.key} <= set(values) for a in claim.acceptance)
    assert all(v == v for v in values.values())
