"""Multiplicative flows: densities and determinants, mean field as the limit, and a bound that is one."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import zoo
from zoo.errors import DataError
from zoo.inference.objectives import to_pyro
from zoo.models import mean_field_network, multiplicative_flows
from zoo.models.multiplicative_flows import METHOD, Flow, Hyper, MaskedStep, build, summary
from zoo.types import Claim, Dataset, Elbo


def step(num: int, *, mask: list[int], seed: int = 0, width: int = 4) -> MaskedStep:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return MaskedStep(
        torch.tensor(mask, dtype=torch.bool), randn(num, width), randn(width), 0.6 * randn(width, num), randn(num),
        0.4 * randn(width, num), 0.3 * randn(num) + 1,
    )  # fmt: skip


def flow(*, inverse: bool = False) -> Flow:
    steps = [step(2, mask=[1, 0]), step(2, mask=[0, 1], seed=1)]
    loc, scale = torch.tensor([1.0, 0.5]).double(), torch.tensor([0.6, 0.4]).double()
    return Flow(loc, scale, steps, inverse=inverse)


def made(inputs: int = 2, dtype: torch.dtype = torch.float64, rows: int = 5) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator, dtype=dtype)
    y = torch.randn(rows, generator=generator, dtype=dtype)
    return Dataset(name="drawn", task="regression", train={"x": x, "y": y, "index": torch.arange(rows)})


def divergences(pair: Any, data: Dataset, params: dict[str, Tensor], num: int, hide: tuple[str, ...]) -> Tensor:
    """The divergence part of the objective, ``num`` times, at these parameters."""
    known = {"sigma": torch.tensor(1.0).double()}
    hidden = ["sigma", "y", *hide]
    model = poutine.block(poutine.condition(pair.model, data=known), hide=hidden)
    guide = poutine.block(pair.guide, hide=hidden)
    elbo = to_pyro(Elbo(estimator="mean_field"))
    with pyro.get_param_store().scope(), torch.no_grad():
        for name, value in params.items():
            pyro.param(name, value.clone())
        return torch.tensor([elbo.loss(model, guide, data.train) for _ in range(num)], dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------- flows
@pytest.mark.parametrize("mask", [[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], ids=str)
def test_a_step_has_the_determinant_of_its_jacobian_and_an_inverse(mask: list[int]) -> None:
    one, z = step(4, mask=mask), torch.tensor([0.3, -1.2, 0.8, 2.0]).double()
    after, log_det = one.forward(z)
    jacobian = torch.autograd.functional.jacobian(lambda v: one.forward(v)[0], z)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1])
    before, back = one.inverse(after)
    torch.testing.assert_close(before, z)
    torch.testing.assert_close(back, -log_det)
    torch.testing.assert_close(after[one.mask], z[one.mask])


@pytest.mark.parametrize("inverse", [False, True], ids=["guide", "reverse"])
def test_a_flow_has_a_density(inverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    one = flow(inverse=inverse)
    draw = one.rsample((7,))
    known = one.log_prob(draw)
    torch.testing.assert_close(known, flow(inverse=inverse).log_prob(draw))  # by the way back
    side = torch.linspace(-20, 20, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)

    def mass() -> float:
        return float(one.log_prob(grid).exp().sum()) * 0.05**2

    assert mass() == pytest.approx(1, abs=1e-3)
    draws = flow(inverse=inverse).rsample((100_000,))
    inside = float((draws.norm(dim=-1) < 1.5).double().mean())
    disc = float((one.log_prob(grid).exp() * (grid.norm(dim=-1) < 1.5)).sum()) * 0.05**2
    assert inside == pytest.approx(disc, abs=0.02)
    monkeypatch.setattr(MaskedStep, "_log_det", lambda self, logit: logit.new_zeros(()))
    assert abs(mass() - 1) > 0.05  # a wrong determinant is caught


# ------------------------------------------------------------------------------------------------------------- bound
def test_noise_without_spread_is_mean_field() -> None:
    data = made(3)
    scale = torch.tensor([[0.1], [0.3], [0.2]]).double()
    params = {
        "W_0_loc": torch.tensor([[0.7], [-0.2], [1.1]]).double(), "W_0_scale": scale,
        "b_0_loc": torch.tensor([0.4]).double(), "b_0_scale": torch.tensor([0.2]).double(),
    }  # fmt: skip
    plain = divergences(mean_field_network.build(data, mean_field_network.Hyper(hidden=())), data, params, 1, ())
    point = torch.ones(3).double(), torch.full((3,), 1e-9).double()
    for name in ("z_0", "z_0_reverse"):
        params |= {f"{name}_loc": point[0], f"{name}_scale": point[1]}
    params |= {f"z_0_reverse_{part}": torch.zeros(3).double() for part in ("weights", "moved", "stretched")}
    pair = build(data, Hyper(hidden=(), num_steps=0, num_reverse_steps=0))
    torch.testing.assert_close(divergences(pair, data, params, 1, ())[0], plain[0])
    params["z_0_loc"] = 2 * point[0]
    assert abs(float(divergences(pair, data, params, 1, ())[0] - plain[0])) > 1  # another noise is another posterior


def one_weight(slope: float, offset: float, spread: float) -> dict[str, Tensor]:
    """A single weight under normal noise, and a reverse distribution whose mean is linear in the weight."""
    small = 1e-4  # tanh is linear there

    def number(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64)

    return {
        "W_0_loc": number(0.8)[:, None], "W_0_scale": number(0.3)[:, None], "z_0_loc": number(1.1),
        "z_0_scale": number(0.5), "z_0_reverse_weights": number(small), "z_0_reverse_moved": number(slope / small),
        "z_0_reverse_loc": number(offset), "z_0_reverse_scale": number(spread), "z_0_reverse_stretched": number(0.0),
    }  # fmt: skip


def test_the_bound_is_exact_at_the_reverse_of_the_guide_and_else_below() -> None:
    # q(W) of one weight under normal noise is normal, and so is q(z | W): both divergences are known.
    torch.manual_seed(0)
    data, mu, rho, m, v = made(1), 0.8, 0.3, 1.1, 0.5
    pair = build(data, Hyper(hidden=(), num_steps=0, num_reverse_steps=0, prior_scale=1.0))
    variance = mu**2 * v**2 + rho**2
    exact = 0.5 * (variance + (m * mu) ** 2 - 1 - math.log(variance))
    slope = v**2 * mu / variance
    offset, spread = m - slope * m * mu, v * rho / variance**0.5

    def bound(params: dict[str, Tensor], num: int) -> tuple[float, float]:
        draws = divergences(pair, data, params, num, ("b_0",))
        return float(draws.mean()), float(draws.std()) / num**0.5

    mean, error = bound(one_weight(slope, offset, spread), 1_500)
    assert abs(mean - exact) < 4 * error + 1e-4
    for wrong in (one_weight(0.0, m, v), one_weight(slope, offset, 2 * spread), one_weight(slope, 0.0, spread)):
        mean, error = bound(wrong, 400)
        assert mean > exact + 4 * error


def test_the_bound_holds_with_flows() -> None:
    # Two weights: log q(W), an integral over the noise, by quadrature; the bound's surplus is KL[q(z | W) || r(z | W)].
    torch.manual_seed(0)
    data, hyper = made(2), Hyper(hidden=(), num_steps=2, num_reverse_steps=2, flow_width=4, prior_scale=2**0.5)
    pair, double = build(data, hyper), torch.float64
    loc, rho = torch.tensor([[0.9], [-0.6]], dtype=double), torch.full((2, 1), 0.3, dtype=double)
    given = flow()
    params = {
        "W_0_loc": loc, "W_0_scale": rho, "z_0_loc": given.loc, "z_0_scale": given.scale,
        "z_0_reverse_loc": torch.ones(2, dtype=double), "z_0_reverse_scale": torch.full((2,), 0.5, dtype=double),
        "z_0_reverse_weights": torch.ones(2, dtype=double),
        "z_0_reverse_moved": torch.full((2,), 0.3, dtype=double),
        "z_0_reverse_stretched": torch.full((2,), 0.2, dtype=double),
    }  # fmt: skip
    masks = [[False, True], [True, False]]  # of units 0 and 1 in steps 0 and 1 of every chain
    steps = [one._replace(mask=torch.tensor(mask)) for one, mask in zip(given.steps, masks[::-1], strict=True)]
    for name in ("z_0_flow", "z_0_reverse_flow"):
        for k, one in enumerate(steps):
            params |= {f"{name}_{k}_{part}": getattr(one, part) for part in MaskedStep._fields if part != "mask"}
    found = divergences(pair, data, params, 1_500, ("b_0",))
    nodes, weights = torch.tensor(_hermite(40), dtype=double)
    noise = given.loc + given.scale * torch.cartesian_prod(nodes, nodes)
    for one in steps:
        noise, _ = one.forward(noise)
    mixture = (weights[:, None] * weights).flatten().log()
    z = Flow(given.loc, given.scale, steps).rsample((1_500,))
    draws = z * loc[:, 0] + 0.3 * torch.randn(1_500, 2, dtype=double)
    inside = dist.Normal(noise * loc[:, 0], 0.3).log_prob(draws[:, None]).sum(-1)
    exact = (inside + mixture).logsumexp(-1) - dist.Normal(0.0, 1.0).log_prob(draws).sum(-1)
    error = math.hypot(float(found.std()), float(exact.std())) / 1_500**0.5
    assert float(found.mean() - exact.mean()) > 4 * error


def _hermite(num: int) -> Any:
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    return np.stack([nodes, weights / weights.sum()])


@pytest.mark.parametrize("hyper", [Hyper(hidden=(6,)), Hyper(hidden=(6,), channels=(3,))], ids=["dense", "conv"])
def test_rows_with_their_own_noise_have_the_expected_loss_of_shared_weights(
    hyper: Hyper, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The handler around the pair, and the second use of the weights in the auxiliary distribution, change no mean.
    # In a convolution, noise of positions is taken to be independent: its scale is kept small there.
    torch.manual_seed(0)
    digits = zoo.datasets.load("digits")
    rows = {k: v[:8] for k, v in digits.train.items()}
    wrapped, elbo = build(digits, hyper), to_pyro(Elbo(estimator="mean_field"))
    monkeypatch.setattr(multiplicative_flows, "local_reparametrisation", lambda program: program)
    pairs = wrapped, build(digits, hyper)
    with pyro.get_param_store().scope():
        elbo.loss_and_grads(wrapped.model, wrapped.guide, rows)
        store = pyro.get_param_store()
        for name in list(store.keys()):
            if name.startswith("W_") and name.endswith("scale"):
                store[name] = store[name].detach() * (2 if hyper.channels else 10)
            if name.endswith(("moved", "stretched")):
                store[name] = 0.5 * torch.randn_like(store[name])
        means, errors = [], []
        for pair in pairs:
            losses = torch.tensor([elbo.loss_and_grads(pair.model, pair.guide, rows) for _ in range(600)]).double()
            means.append(float(losses.mean()))
            errors.append(float(losses.std()) / 600**0.5)
    assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)


# -------------------------------------------------------------------------------------------------------------- rest
def test_summary_tells_independent_noise_from_that_of_a_flow() -> None:
    digits = zoo.datasets.load("digits")
    posterior = zoo.fit(METHOD, digits, hyper=Hyper(hidden=(8,), num_steps=0), steps=5, compile=False)
    found = summary(posterior)
    assert found["z_0: sd / |mean|"] == pytest.approx(Hyper().start_noise, rel=0.2)
    assert found["z_1: largest correlation"] < 0.15
    one = step(2, mask=[1, 0], width=1)._replace(
        inner=torch.ones(2, 1).double(), shift=torch.full((1, 2), 5.0).double(), gate=torch.zeros(1, 2).double()
    )
    torch.manual_seed(0)
    assert float(torch.corrcoef(Flow(one.gate_bias, 1 + 0 * one.gate_bias, [one]).rsample((1_000,)).mT)[0, 1]) > 0.5


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="num_steps is -1, num_reverse_steps 2"):
        build(made(), Hyper(num_steps=-1))
    with pytest.raises(NotImplementedError, match=r"a Flow has no batch; got batch shape \(3,\)"):
        flow().expand((3,))


@pytest.mark.parametrize("claim", METHOD.claims[:1], ids=lambda claim: claim.statement[:40])
def test_claims_are_measured(claim: Claim) -> None:
    values = claim.measure(0, True)
    for one in METHOD.claims:  # all are measured in the same runs
        assert one.measure is claim.measure
        assert all({a.key, a.below or a.above or a.key} <= set(values) for a in one.acceptance)
    assert all(v == v for v in values.values())


@pytest.mark.parametrize(("name", "count"), [("digits", 1 / 0.05), ("diabetes", 1.0)])
def test_rows_of_numbers_count_once_by_default(name: str, count: float) -> None:
    data = zoo.datasets.load(name)
    model = build(data, Hyper(hidden=())).model
    node = poutine.trace(model).get_trace({k: v[:10] for k, v in data.train.items()}).nodes["y"]
    assert node["scale"] == pytest.approx(data.num_data / 10 * count)
