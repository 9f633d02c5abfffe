"""MAP: without hidden layers it is ridge regression, and the bound is the log joint density."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from zoo.errors import DataError
from zoo.models._parts.networks import Network
from zoo.models.map_network import METHOD, Hyper, build, summary
from zoo.types import Claim, Dataset

SIGMA, SCALE = 0.5, 0.8


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64) + 0.5
    y = y + SIGMA * torch.randn(40, generator=generator, dtype=torch.float64)
    return Dataset(name="drawn", task="regression", train={"x": x, "y": y, "index": torch.arange(40)})


def images(size: int = 12) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, size, size, generator=generator)
    return Dataset(
        name="images",
        task="classification",
        train={"x": x, "y": torch.arange(20) % 3, "index": torch.arange(20)},
        extra={"num_classes": 3, "image_shape": (1, size, size)},
    )


def ridge(data: Dataset, scale: float) -> tuple[Tensor, Tensor]:
    """Weights and bias at the maximum: the prior of a weight has variance scale^2 / inputs, that of the bias 1."""
    x, y = data.train["x"], data.train["y"]
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    decay = torch.tensor([x.shape[1] / scale**2] * x.shape[1] + [1.0], dtype=x.dtype)
    found = torch.linalg.solve(design.mT @ design / SIGMA**2 + torch.diag(decay), design.mT @ y / SIGMA**2)
    return found[:-1, None], found[-1:]


def gradients(data: Dataset, hyper: Hyper, W: Tensor, b: Tensor) -> list[Tensor]:
    """Of the loss of a plain Pyro loop at given parameters."""
    pair = build(data, hyper)
    model = poutine.condition(pair.model, data={"sigma": torch.tensor(SIGMA, dtype=torch.float64)})
    guide = poutine.block(pair.guide, hide=["sigma"])
    with pyro.get_param_store().scope():
        leaves = [pyro.param("W_0_loc", W.clone()), pyro.param("b_0_loc", b.clone())]
        Trace_ELBO().loss_and_grads(model, guide, data.train)
        return [leaf.grad for leaf in leaves]


def test_without_hidden_layers_it_is_ridge_regression(data: Dataset) -> None:
    hyper = Hyper(hidden=(), prior_scale=SCALE)
    for gradient in gradients(data, hyper, *ridge(data, SCALE)):
        assert float(gradient.abs().max()) < 1e-9


def test_a_wrong_prior_is_caught(data: Dataset) -> None:
    hyper = Hyper(hidden=(), prior_scale=SCALE)
    assert max(float(g.abs().max()) for g in gradients(data, hyper, *ridge(data, 1.1 * SCALE))) > 0.1


def test_the_forward_pass_is_that_of_torch() -> None:
    data = images()
    net = Network.of(data, hidden=(7,), channels=(4,))
    weights = {site.name: torch.randn(site.shape) for site in net.sites}
    conv, first, last = nn.Conv2d(1, 4, 5), nn.Linear(64, 7), nn.Linear(7, 3)
    for layer, l in ((conv, 0), (first, 1), (last, 2)):
        w = weights[f"W_{l}"]
        layer.weight.data, layer.bias.data = (w.mT if w.dim() == 2 else w), weights[f"b_{l}"]
    torch_net = nn.Sequential(
        nn.Unflatten(1, (1, 12)), conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), first, nn.ReLU(), last
    )
    x = data.train["x"]
    torch.testing.assert_close(net(x, weights), torch_net(x))


def test_convolutions_have_their_own_plates() -> None:
    hyper = Hyper(channels=(4,), hidden=(7,))
    trace = poutine.trace(build(images(), hyper).model).get_trace(images().train)
    plates = {n: tuple(f.name for f in trace.nodes[n]["cond_indep_stack"]) for n in METHOD.sites(hyper)}
    assert plates == METHOD.sites(hyper)
    assert plates["W_0"] == ("channel_0",)
    assert plates["b_2"] == ("output",)


def test_bad_input_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match="every layer needs at least one unit"):
        build(data, Hyper(hidden=(0,)))
    with pytest.raises(DataError, match="prior_scale is 0; it must be positive"):
        build(data, Hyper(prior_scale=0.0))
    with pytest.raises(DataError, match="holds no images"):
        build(data, Hyper(channels=(3,)))
    with pytest.raises(DataError, match="too small"):
        build(images(8), Hyper(channels=(3, 3)))


def test_summary_says_how_large_the_weights_are() -> None:
    import zoo

    posterior = zoo.fit(METHOD, images(), hyper=METHOD.smoke, steps=2, compile=False)
    found = summary(posterior)
    assert found["weights"] == 144 * 20 + 20 + 20 * 10 + 10 + 10 * 3 + 3
    size = posterior.params["W_1_loc"].square().mean().sqrt() / (8 * 20**-0.5)
    assert found["root mean square of W_1 / prior"] == pytest.approx(float(size))


@pytest.mark.parametrize("claim", METHOD.claims, ids=lambda claim: claim.statement[:40])
def test_claims_are_measured(claim: Claim) -> None:
    values = claim.measure(0, True)
    assert all({a.key, a.below or a.key} <= set(values) for a in claim.acceptance)
    assert all(v == v for v in values.values())
