"""Perceptrons on the parameter store, likelihoods, binarisation and the VampPrior."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch.nn import functional as F

from zoo.errors import DataError
from zoo.models._parts.autoencoders import (
    as_observed,
    binarised,
    decoded,
    encoded,
    likelihood_of,
    perceptron,
    pseudo_inputs,
    vamp_prior,
)
from zoo.types import Dataset


@pytest.fixture(autouse=True)
def store():
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield


def data(x: torch.Tensor, **extra: object) -> Dataset:
    return Dataset(name="d", task="density", train={"x": x, "index": torch.arange(len(x))}, extra=extra)


def test_a_perceptron_reads_its_weights_from_the_store() -> None:
    x = torch.randn(5, 3)
    first = perceptron("net", x, 2, hidden=(4,))
    params = pyro.get_param_store()
    assert set(params) == {"net_0_weight", "net_0_bias", "net_1_weight", "net_1_bias"}
    by_hand = torch.relu(x @ params["net_0_weight"] + params["net_0_bias"]) @ params["net_1_weight"]
    assert torch.allclose(first, by_hand)
    params["net_1_bias"] = torch.tensor([1.0, -2.0])
    assert torch.allclose(perceptron("net", x, 2, hidden=(4,)), by_hand + torch.tensor([1.0, -2.0]))
    assert perceptron("net", x.expand(6, 5, 3), 2, hidden=(4,)).shape == (6, 5, 2)


def test_initial_weights_keep_the_size_of_activations() -> None:
    out = perceptron("net", torch.randn(200, 400), 100, hidden=(400, 400))
    assert 0.5 < float(out.detach().std()) < 1.5


def test_encoder_and_decoder_have_the_shapes_of_rows_and_latents() -> None:
    x = torch.rand(5, 2, 3)
    code = encoded("encoder", x.flatten(1), 4, hidden=(7,))
    assert (code.batch_shape, code.event_shape) == ((5,), (4,))
    assert bool((code.base_dist.scale > 0).all())
    for kind in ("bernoulli", "normal"):
        row = decoded(f"decoder_{kind}", torch.randn(6, 5, 4), x, kind, hidden=(7,))
        assert (row.batch_shape, row.event_shape) == ((6, 5), (2, 3))
        assert row.log_prob(as_observed({"x": x}, kind)).shape == (6, 5)
    assert float(pyro.get_param_store()["decoder_normal_scale"].min()) > 0.05


def test_the_likelihood_follows_the_data() -> None:
    grey, numbers = torch.rand(10, 4), torch.randn(10, 4)
    assert likelihood_of(data(grey), "auto") == "normal"
    assert likelihood_of(data(grey, image_shape=(1, 2, 2)), "auto") == "bernoulli"
    assert likelihood_of(data((grey > 0.5).float()), "auto") == "bernoulli"
    assert likelihood_of(data(numbers, image_shape=(1, 2, 2)), "auto") == "normal"
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]; use likelihood='normal'"):
        likelihood_of(data(numbers), "bernoulli")


def test_binarisation_is_drawn_once_by_the_grey_values() -> None:
    x = torch.linspace(0, 1, 11).expand(4_000, 11).contiguous()
    first, again, other = (binarised(data(x), seed=s).train["x"] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert float((first.mean(0) - x[0]).abs().max()) < 4 * 0.5 / math.sqrt(4_000)
    assert torch.equal(as_observed({"x": first}, "bernoulli"), first)
    with pytest.raises(DataError, match="must lie in"):
        binarised(data(x - 0.5))


def test_the_vamp_prior_is_an_even_mixture_of_codes() -> None:
    rows = data((torch.rand(30, 6) > 0.5).float())
    u = pseudo_inputs(rows, 5, "bernoulli")
    assert bool(((u > 0) & (u < 1)).all())
    prior = vamp_prior(encoded("encoder", u, 2, hidden=(4,)))
    out = perceptron("encoder", u, 4, hidden=(4,))
    z = torch.randn(7, 2)
    parts = torch.distributions.Normal(out[:, :2], F.softplus(out[:, 2:]) + 1e-4).log_prob(z[:, None]).sum(-1)
    assert torch.allclose(prior.log_prob(z), parts.logsumexp(-1) - math.log(5), atol=1e-5)
