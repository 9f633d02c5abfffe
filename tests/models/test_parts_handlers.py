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
from zoo.models._parts.distributions import UnitDropout
from zoo.models._parts.handlers import Gaussian, apart, flipout, local_reparametrisation

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

    def mistaken(weight: Gaussian, f: Callable[[Tensor, Tensor], Tensor], x: Tensor, spatial: int | None) -> Gaussian:
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


def test_a_weight_set_apart_serves_another_term_with_a_draw_of_its_own() -> None:
    torch.manual_seed(0)
    tensor = torch.ones(3, 2)
    assert apart(tensor) is tensor
    weight = Gaussian(torch.ones(6, 2, dtype=torch.float64), torch.full((6, 2), 0.5, dtype=torch.float64))
    c, d = torch.randn(2, 6, dtype=torch.float64)
    uses = [((c @ apart(weight).reshape(6, 2)).draw(), (d @ apart(weight)).draw()) for _ in range(4_000)]
    pairs = torch.stack([torch.stack(use) for use in uses])
    torch.testing.assert_close(pairs.var(0), 0.5 * torch.stack([c @ c, d @ d])[:, None].expand(2, 2), rtol=0.1, atol=0)
    assert abs(float(torch.corrcoef(pairs[:, :, 0].mT)[0, 1])) < 0.06
    _ = weight @ tensor.double().mT  # it is drawn, and from then on a tensor
    torch.testing.assert_close(weight.reshape(2, 6), weight.draw().reshape(2, 6))


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


# ----------------------------------------------------------------------------------------------- flipout, dropout
ESTIMATORS = {"weights": lambda f: f, "local": local_reparametrisation, "flipout": flipout}


def exact_loss(batch: tuple[Tensor, Tensor], loc: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Of a linear layer with normal noise: minus the ELBO, and its gradient with respect to the means."""
    x, y = (t.double() for t in batch)
    loc = loc.double().requires_grad_()
    squares = (y - x @ loc).square() + x.square() @ torch.full_like(loc, scale**2)
    misfit = 0.5 * (squares / 0.25 + math.log(2 * math.pi * 0.25)).sum()
    kl = 0.5 * (scale**2 + loc.square() - 1 - math.log(scale**2)).sum()
    (gradient,) = torch.autograd.grad(misfit + kl, loc)
    return (misfit + kl).detach(), gradient


def linear_pair(wrap: Callable[[Any], Any], loc: Tensor, scale: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(INPUTS, OUTPUTS), 1.0).to_event(2))
        h = x @ w
        with pyro.plate("datum", len(x)):
            pyro.sample("y", dist.Normal(h.draw() if isinstance(h, Gaussian) else h, 0.5).to_event(1), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        w_loc = pyro.param("w_loc", loc.clone())
        pyro.sample("w", dist.Normal(w_loc, torch.full_like(loc, scale)).to_event(2), infer={"local": True})

    return wrap(model), wrap(guide)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_has_the_exact_expectation_on_a_linear_model(
    estimator: str, batch: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    loc, scale, num = torch.linspace(-1, 1, INPUTS * OUTPUTS).view(INPUTS, OUTPUTS), 0.3, 1_500
    with pyro.get_param_store().scope():
        losses, mean, variance = moments(linear_pair(ESTIMATORS[estimator], loc, scale), batch, num)
    loss, gradient = exact_loss(batch, loc, scale)
    assert abs(float(losses.mean() - loss)) < 4 * float(losses.std()) / num**0.5
    assert float(((mean - gradient.flatten()) / (variance / num).sqrt()).abs().max()) < 4.5


def test_flipout_and_local_draws_leave_less_gradient_variance_than_shared_weights(
    batch: tuple[Tensor, Tensor],
) -> None:
    torch.manual_seed(0)
    loc, left = torch.linspace(-1, 1, INPUTS * OUTPUTS).view(INPUTS, OUTPUTS), {}
    for name, wrap in ESTIMATORS.items():
        with pyro.get_param_store().scope():
            left[name] = float(moments(linear_pair(wrap, loc, 0.3), batch, 400)[2].sum())
    assert left["flipout"] < 0.6 * left["weights"]
    assert left["local"] < 0.6 * left["weights"]


def stand_in(wrap: Callable[[Any], Any], fn: Any) -> Any:
    """What the model gets for a weight of a guide's distribution."""

    def guide() -> None:
        pyro.sample("w", fn, infer={"local": True})

    def model() -> Any:
        return pyro.sample("w", dist.Normal(torch.zeros(fn.shape()), 1.0).to_event(len(fn.shape()) - fn.event_dim))

    trace = poutine.trace(wrap(guide)).get_trace()
    return poutine.replay(wrap(model), trace=trace)()


def test_flipout_gives_each_row_one_kernel_at_all_positions() -> None:
    # Exact in a convolution: every row's output is that of a kernel whose deviations are the draw's up to signs.
    torch.manual_seed(0)
    fn = dist.Normal(torch.randn(3, 2, 2, 2), 0.5).to_event(4)
    weight = stand_in(flipout, fn)
    draw, loc = weight._draw, weight.loc
    images = torch.randn(16, 2, 5, 5)
    out = nn.functional.conv2d(images, weight)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 2)
    kernels = [(loc + (draw - loc) * s[:, None, None] * r) for s in signs for r in (-1.0, 1.0)]
    candidates = torch.stack([nn.functional.conv2d(images, k) for k in kernels])
    distance = (candidates - out).abs().amax((-2, -1))  # (kernel, row, filter)
    assert float(distance.amin(0).max()) < 1e-5
    chosen = distance.argmin(0)
    assert bool((chosen != chosen[:1]).any())  # rows differ in the signs of their inputs,
    assert bool((chosen != chosen[:, :1]).any())  # and in those of their filters


def test_flipout_positions_of_a_sequence_share_their_weights() -> None:
    torch.manual_seed(0)
    weight = stand_in(flipout, dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    x = torch.randn(5, 1, 3).expand(5, 7, 3)
    out = x @ weight + stand_in(flipout, dist.Normal(torch.zeros(2), 1.0).to_event(1))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    assert not torch.allclose(x[:1] @ torch.zeros(3, 2), out[:1])


def test_flipout_needs_symmetric_deviations() -> None:
    with pytest.raises(PairError, match="flipout needs independent normals"):
        stand_in(flipout, UnitDropout(torch.ones(3, 2), 0.5))


def test_dropped_units_have_the_exact_expected_loss_over_all_masks() -> None:
    torch.manual_seed(0)
    num, rate = 4_000, 0.3
    loc, x, y = torch.randn(4, 2), torch.randn(5, 4), torch.randn(5, 2)
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    weight = (rate ** (1 - masks) * (1 - rate) ** masks).prod(-1)
    losses = torch.stack([(y - x @ (m[:, None] * loc)).square().sum() for m in masks])
    exact = float((weight * losses).sum())
    for wrap in (local_reparametrisation, lambda f: f):
        fn = UnitDropout(loc, rate)
        drawn = torch.stack([(y - x @ stand_in(wrap, fn)).square().sum() for _ in range(num)])
        assert abs(float(drawn.mean()) - exact) < 4 * float(drawn.std()) / num**0.5


def test_dropped_filters_are_zero_row_by_row() -> None:
    torch.manual_seed(0)
    weight = stand_in(local_reparametrisation, UnitDropout(torch.ones(3, 1, 2, 2), 0.5, 3))
    out = nn.functional.conv2d(torch.ones(40, 1, 4, 4), weight)
    whole = out.flatten(2)
    assert bool(((whole == 0).all(-1) | (whole == 4).all(-1)).all())
    kept = (whole[..., 0] != 0).float().mean(0)
    assert bool(((kept > 0.2) & (kept < 0.8)).all())
