"""MC dropout: the loss is the exact expectation over all masks plus weight decay; a draw is one network."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import zoo
from zoo.errors import DataError
from zoo.models.dropout_network import METHOD, Hyper, build, summary
from zoo.types import Claim, Dataset

SIGMA, RATE, SCALE = 0.5, 0.3, 0.8


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(12, generator=generator, dtype=torch.float64)
    return Dataset(name="drawn", task="regression", train={"x": x, "y": y, "index": torch.arange(12)})


def exact_loss(data: Dataset, rate: float) -> float:
    """Of a linear network with weights one: all sixteen masks, and the decay of the prior."""
    x, y = data.train["x"], data.train["y"]
    total = 0.0
    for mask in torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4):
        chance = float((rate ** (1 - mask) * (1 - rate) ** mask).prod())
        total -= chance * float(torch.distributions.Normal(x @ mask, SIGMA).log_prob(y).sum())
    variance = SCALE**2 / 4
    total += 4 * ((1 - rate) / (2 * variance) + 0.5 * math.log(2 * math.pi * variance))
    return total + 0.5 * math.log(2 * math.pi)  # of the bias, which is zero


def losses(data: Dataset, elbo: Trace_ELBO, num: int = 3_000) -> torch.Tensor:
    pair = build(data, Hyper(hidden=(), input_rate=RATE, prior_scale=SCALE))
    known = {"sigma": torch.tensor(SIGMA, dtype=torch.float64)}
    model, guide = poutine.condition(pair.model, data=known), poutine.block(pair.guide, hide=["sigma"])
    with pyro.get_param_store().scope():
        pyro.param("W_0_loc", torch.ones(4, 1, dtype=torch.float64))
        pyro.param("b_0_loc", torch.zeros(1, dtype=torch.float64))
        return torch.tensor([elbo.loss_and_grads(model, guide, data.train) for _ in range(num)])


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["sampled", "analytic"])
def test_loss_is_the_exact_expectation_over_all_masks(data: Dataset, elbo: Trace_ELBO) -> None:
    torch.manual_seed(0)
    found = losses(data, elbo)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - exact_loss(data, RATE)) < 4 * error
    assert abs(float(found.mean()) - exact_loss(data, 1.2 * RATE)) > 6 * error  # and no other rate's


def test_a_draw_is_one_network_with_whole_units_dropped() -> None:
    posterior = zoo.fit(METHOD, "digits", hyper=Hyper(hidden=(20,), rate=0.5), steps=2, compile=False)
    draws = posterior.draws(200)
    gone = draws["W_1"] == 0
    assert bool((gone.all(-1) | ~gone.any(-1)).all())
    assert float(gone[..., 0].float().mean()) == pytest.approx(0.5, abs=0.05)
    assert not bool((draws["W_0"] == 0).any())
    kept = draws["W_1"][0][~gone[0, :, 0]]
    torch.testing.assert_close(kept, posterior.params["W_1_loc"][~gone[0, :, 0]])


def test_without_dropout_every_draw_is_the_same() -> None:
    posterior = zoo.fit(METHOD, "digits", hyper=Hyper(hidden=(8,), rate=0.0), steps=2, compile=False)
    assert float(posterior.predict(n=5).probs["y"].std(0).max()) < 1e-6
    assert summary(posterior)["distance of single masks from their mean"] < 1e-6
    assert summary(posterior)["weights"] == 64 * 8 + 8 + 8 * 10 + 10


def test_filters_are_dropped_whole() -> None:
    hyper = Hyper(channels=(6,), hidden=(8,), rate=0.5)
    posterior = zoo.fit(METHOD, "digits", hyper=hyper, steps=2, compile=False)
    gone = (posterior.draws(50)["W_0"] == 0).flatten(2)
    assert bool((gone.all(-1) | ~gone.any(-1)).all())
    assert 0.3 < float(gone[..., 0].float().mean()) < 0.7


def test_bad_input_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match="rate is 1; it must be a probability below 1"):
        build(data, Hyper(rate=1.0))


@pytest.mark.parametrize("claim", METHOD.claims, ids=lambda claim: claim.statement[:40])
def test_claims_are_measured(claim: Claim) -> None:
    values = claim.measure(0, True)
    assert all({a.key, a.below or a.key, a.above or a.key} <= set(values) for a in claim.acceptance)
    assert all(v == v for v in values.values())
