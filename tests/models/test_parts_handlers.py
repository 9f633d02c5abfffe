"""Local reparametrisation: the same expectation as sampled weights, less noise, and nothing else changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from zoo.errors import PairError
from zoo.models._parts.handlers import Gaussian, local_reparametrisation

ROWS, INPUTS, OUTPUTS = 16, 6, 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Operations this small lose by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal_pair(*, wrap: Callable[[Any], Any], uses: int = 1) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def model(x: Tensor, y: Tensor) -> Tensor:
        w = pyro.sample("w", dist.Normal(x.new_zeros(INPUTS, OUTPUTS), 1.0).to_event(2))
        b = pyro.sample("b", dist.Normal(x.new_zeros(OUTPUTS), 1.0).to_event(1))
        h = x @ w + b
        for _ in range(uses - 1):
            h = h + x @ w
        h = h.tanh()
        with pyro.plate("datum", len(x)):
            pyro.sample("y", dist.Normal(h, 0.5).to_event(1), obs=y)
        return h

    def guide(x: Tensor, y: Tensor) -> None:
        for name, shape in (("w", (INPUTS, OUTPUTS)), ("b", (OUTPUTS,))):
            loc = pyro.param(f"{name}_loc", lambda shape=shape: torch.linspace(-1, 1, math.prod(shape)).view(shape))
            scale = pyro.param(f"{name}_scale", lambda shape=shape: torch.full(shape, 0.4))
            pyro.sample(name, dist.Normal(loc, scale).to_event(len(shape)), infer={"local": True})

    return wrap(model), wrap(guide)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(ROWS, INPUTS, generator=generator), torch.randn(ROWS, OUTPUTS, generator=generator)


def loss_and_gradient(
    pair: tuple[Callable[..., Any], Callable[..., Any]], batch: tuple[Tensor, Tensor]
) -> tuple[float, Tensor]:
    elbo = TraceMeanField_ELBO()
    store = pyro.get_param_store()
    for name in list(store.keys()):
        store._params[name].grad = None
    loss = elbo.loss_and_grads(*pair, *batch)
    return float(loss), store._params["w_loc"].grad.clone().flatten()


def moments(pair: Any, batch: Any, num: int) -> tuple[Tensor, Tensor, Tensor]:
    runs = [loss_and_gradient(pair, batch) for _ in range(num)]
    losses = torch.tensor([r[0] for r in runs]).double()
    gradients = torch.stack([r[1] for r in runs]).double()
    return losses, gradients.mean(0), gradients.var(0)


def test_pre_activations_have_the_moments_of_sampled_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, INPUTS, generator=generator, dtype=torch.float64)
    loc = torch.randn(INPUTS, OUTPUTS, generator=generator, dtype=torch.float64)
    scale = torch.rand(INPUTS, OUTPUTS, generator=generator, dtype=torch.float64)
    bias = torch.randn(OUTPUTS, dtype=torch.float64)
    h = x @ Gaussian(loc, scale**2) + Gaussian(bias, torch.full_like(bias, 0.04))
    n = 100_000
    weights = loc + scale * torch.randn(n, INPUTS, OUTPUTS, dtype=torch.float64)
    sampled = x @ weights + (bias + 0.2 * torch.randn(n, 1, OUTPUTS, dtype=torch.float64))
    torch.testing.assert_close(h.loc, sampled.mean(0), atol=5 * float(sampled.std(0).max()) / n**0.5, rtol=0)
    torch.testing.assert_close(h.variance, sampled.var(0), rtol=0.03, atol=0)
    drawn = torch.stack([Gaussian(h.loc, h.variance).draw() for _ in range(20_000)])
    torch.testing.assert_close(drawn.var(0), h.variance, rtol=0.06, atol=0)


def test_same_expected_loss_and_gradient_with_less_variance(batch: tuple[Tensor, Tensor]) -> None:
    num = 1_500
    plain = moments(normal_pair(wrap=lambda f: f), batch, num)
    local = moments(normal_pair(wrap=local_reparametrisation), batch, num)
    error = (plain[0].var() / num + local[0].var() / num).sqrt()
    assert abs(float(plain[0].mean() - local[0].mean())) < 4 * float(error)
    z = (plain[1] - local[1]) / ((plain[2] + local[2]) / num).sqrt()
    assert float(z.abs().max()) < 4.5
    assert float(local[2].sum()) < 0.8 * float(plain[2].sum())


def test_a_wrong_variance_is_caught(batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    # Negative control: standard deviations in place of variances shift the expected loss visibly.
    torch.manual_seed(0)
    right = moments(normal_pair(wrap=local_reparametrisation), batch, 500)[0]
    contract = Gaussian._map

    def mistaken(weight: Gaussian, f: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Gaussian:
        return Gaussian(contract(weight, f, x).loc, f(x.square(), weight.variance.sqrt()))

    monkeypatch.setattr(Gaussian, "_map", mistaken)
    torch.manual_seed(0)  # the same noise, so that the difference is that of the variances
    gap = moments(normal_pair(wrap=local_reparametrisation), batch, 500)[0] - right
    assert abs(float(gap.mean())) > 5 * float(gap.std()) / 500**0.5


def test_traces_hold_the_weights(batch: tuple[Tensor, Tensor]) -> None:
    model, guide = normal_pair(wrap=local_reparametrisation)
    guide_trace = poutine.trace(guide).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
    w = model_trace.nodes["w"]["value"]
    assert isinstance(w, Tensor)
    assert w is guide_trace.nodes["w"]["value"]
    plain = poutine.trace(poutine.condition(model, data={"w": w, "b": guide_trace.nodes["b"]["value"]})).get_trace(
        *batch
    )
    for trace in (model_trace, plain):
        trace.compute_log_prob()
    torch.testing.assert_close(model_trace.nodes["w"]["log_prob"], plain.nodes["w"]["log_prob"])


def test_nothing_changes_without_gradients_or_on_given_weights(batch: tuple[Tensor, Tensor]) -> None:
    model, guide = normal_pair(wrap=local_reparametrisation)
    guide_trace = poutine.trace(guide).get_trace(*batch)
    w, b = (guide_trace.nodes[n]["value"] for n in ("w", "b"))
    expected = (batch[0] @ w + b).tanh()
    replayed = poutine.replay(model, trace=guide_trace)
    with torch.no_grad():
        torch.testing.assert_close(replayed(*batch), expected)
    torch.testing.assert_close(poutine.condition(model, data={"w": w, "b": b})(*batch), expected)
    assert not torch.allclose(replayed(*batch), expected)
    assert model(*batch).shape == (ROWS, OUTPUTS)  # from the prior


def test_a_weight_used_twice_is_refused(batch: tuple[Tensor, Tensor]) -> None:
    model, guide = normal_pair(wrap=local_reparametrisation, uses=2)
    with pytest.raises(PairError, match="'w' is used twice"):
        TraceMeanField_ELBO().loss_and_grads(model, guide, *batch)


def test_only_normal_sites_can_be_local() -> None:
    @local_reparametrisation
    def guide() -> None:
        pyro.sample("g", dist.Gamma(torch.ones(()), torch.ones(())), infer={"local": True})

    with pytest.raises(PairError, match="'g' is marked local but has a Gamma"):
        guide()


def test_operations_that_are_not_linear_use_the_draw() -> None:
    loc, draw = torch.ones(3, 2), torch.randn(3, 2)
    weight = Gaussian(loc, torch.ones(3, 2), draw=draw)
    assert weight.shape == (3, 2)
    torch.testing.assert_close(torch.exp(weight), draw.exp())
    torch.testing.assert_close(weight * 2.0, 2 * draw)
    torch.testing.assert_close(torch.ones(1, 3) @ weight, torch.ones(1, 3) @ draw)  # drawn once, a tensor from then on
    pre = torch.ones(1, 3) @ Gaussian(loc, torch.ones(3, 2))
    first = pre.relu()
    torch.testing.assert_close(pre.relu(), first)
    torch.testing.assert_close((pre + 1.0).relu(), (pre.draw() + 1.0).relu())


@pytest.mark.parametrize("layer", [nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d])
def test_layers_match_their_own_moments(layer: Callable[..., Any]) -> None:
    spatial = {"linear": 0, "conv1d": 1, "conv2d": 2}[layer.__name__]
    x = torch.randn(2, 4, *(5,) * spatial, dtype=torch.float64)
    loc = torch.randn(3, 4, *(2,) * spatial, dtype=torch.float64)
    variance = torch.rand_like(loc)
    bias = torch.randn(3, dtype=torch.float64)
    out = layer(x, Gaussian(loc, variance), Gaussian(bias, torch.ones_like(bias)))
    torch.testing.assert_close(out.loc, layer(x, loc, bias))
    torch.testing.assert_close(out.variance, layer(x**2, variance, torch.ones_like(bias)))
    plain = layer(x, Gaussian(loc, variance), bias=bias)
    torch.testing.assert_close(plain.loc, out.loc)


def test_a_row_of_zeros_has_a_finite_gradient() -> None:
    loc, variance = torch.zeros(3, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    (torch.zeros(1, 3) @ Gaussian(loc, variance)).relu().sum().backward()
    assert torch.isfinite(loc.grad).all()
    assert torch.isfinite(variance.grad).all()


def test_it_is_traceable() -> None:
    def step(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return (x @ Gaussian(loc, scale.square())).relu()

    arguments = torch.randn(4, 3), torch.randn(3, 2), torch.rand(3, 2)
    graph = make_fx(step)(*arguments)
    torch.manual_seed(3)
    expected = step(*arguments)
    torch.manual_seed(3)
    torch.testing.assert_close(graph(*arguments), expected)
