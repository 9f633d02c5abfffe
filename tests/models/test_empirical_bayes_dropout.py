"""Empirical Bayes dropout: the best precision, what a weight costs, and the network without its useless weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from scipy import integrate, optimize, special, stats
from torch import Tensor, nn

import zoo
from zoo.errors import DataError
from zoo.inference.objectives import to_pyro
from zoo.models._parts.distributions import log_uniform_kl
from zoo.models.empirical_bayes_dropout import (
    METHOD,
    Hyper,
    Precision,
    best_precision,
    build,
    compress,
    log_dropout_rates,
    summary,
)
from zoo.types import Claim, Dataset, Elbo

C, D = 1.4, 0.03
LOC = torch.tensor([[0.7], [-0.02], [0.0], [1.5]], dtype=torch.float64)
SCALE = torch.tensor([[0.1], [0.3], [0.2], [0.5]], dtype=torch.float64)


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(6, generator=generator, dtype=torch.float64)
    return Dataset(name="drawn", task="regression", train={"x": x, "y": y, "index": torch.arange(6)})


def divergence(data: Dataset, hyper: Hyper, loc: Tensor, scale: Tensor, *, num: int = 0) -> Tensor:
    """What the weights cost in the objective: analytically, or ``num`` draws of it."""
    pair = build(data, hyper)
    hidden = ["b_0", "sigma", "y"]
    known = {"b_0": torch.zeros(1).double(), "sigma": torch.tensor(1.0).double()}
    model = poutine.block(poutine.condition(pair.model, data=known), hide=hidden)
    guide = poutine.block(pair.guide, hide=hidden)
    with pyro.get_param_store().scope():
        pyro.param("W_0_loc", loc.clone())
        pyro.param("W_0_scale", scale.clone(), constraint=constraints.positive)
        elbo = Trace_ELBO() if num else to_pyro(Elbo(estimator="mean_field"))
        with torch.no_grad():
            return torch.tensor([elbo.loss(model, guide, data.train) for _ in range(num or 1)], dtype=torch.float64)


def penalty(loc: Tensor, scale: Tensor, c: float, d: float) -> Tensor:
    """The cost of weights as the paper writes it, with every constant."""
    squares = loc.square() + scale.square()
    cost = (c - 0.5) * (2 * d + squares).log() - scale.log() + (c - 0.5) * (1 - math.log(2 * c - 1)) - 0.5
    total: Tensor = cost.sum()
    if d:
        total = total - loc.numel() * (c * math.log(d) - math.lgamma(c))
    return total


# ------------------------------------------------------------------------------------------------ what a weight costs
def test_the_precision_in_closed_form_is_the_numeric_optimum() -> None:
    found = best_precision(LOC, SCALE, concentration=C, rate=D)
    for mu, s, tau in zip(LOC.flatten(), SCALE.flatten(), found.flatten(), strict=True):

        def cost(log_tau: float, mu: float = float(mu), s: float = float(s)) -> float:
            t = math.exp(log_tau)
            kl = 0.5 * (t * (mu**2 + s**2) - 1 - log_tau) - math.log(s)
            return kl - float(stats.gamma.logpdf(t, C, scale=1 / D))

        best = optimize.minimize_scalar(cost, bounds=(-10, 10), method="bounded", options={"xatol": 1e-9})
        assert math.log(float(tau)) == pytest.approx(best.x, abs=1e-5)


@pytest.mark.parametrize(("prior", "c", "d"), [("gamma", C, D), ("ard", 1.0, 0.0)])
def test_weights_cost_what_the_paper_says(data: Dataset, prior: Any, c: float, d: float) -> None:
    hyper = Hyper(hidden=(), prior=prior, concentration=C, rate=D)
    found = divergence(data, hyper, LOC, SCALE)
    torch.testing.assert_close(found[0], penalty(LOC, SCALE, c, d))
    assert abs(float(found[0] - penalty(LOC, SCALE, 1.1 * c, d))) > 0.01  # and no other hyperprior's


@pytest.mark.parametrize("prior", ["gamma", "ard", "log_uniform"])
def test_analytic_divergences_are_the_means_of_sampled_ones(data: Dataset, prior: Any) -> None:
    torch.manual_seed(0)
    hyper = Hyper(hidden=(), prior=prior, concentration=C, rate=D)
    loc, scale = LOC + 0.05, SCALE
    draws = divergence(data, hyper, loc, scale, num=1_500)
    exact, room = float(divergence(data, hyper, loc, scale)), 0.0
    if prior == "log_uniform":
        # The improper density has no constant; the analytic one vanishes for wide posteriors. It is off by 0.0094 nats.
        constant = 0.5 * (math.log(2) + special.digamma(0.5) - math.log(2 * math.pi * math.e))
        exact, room = exact + 4 * constant, 4 * 0.0095
    assert abs(float(draws.mean()) - exact) < 4 * float(draws.std()) / len(draws) ** 0.5 + room


@pytest.mark.parametrize("log_alpha", [-6.0, -2.0, 0.0, 1.0, 3.0, 7.0])
def test_the_cost_under_the_log_uniform_prior_is_that_of_a_numeric_integral(log_alpha: float) -> None:
    def mean_log(centre: float, width: float) -> float:
        """E log |w| of N(centre, width^2)."""
        points = sorted({0.0, centre - 8 * width, centre + 8 * width})
        pieces = itertools.pairwise(points)
        density = stats.norm(centre, width).pdf
        return sum(integrate.quad(lambda w: math.log(abs(w)) * density(w), a, b, limit=400)[0] for a, b in pieces)

    s = math.exp(0.5 * log_alpha)  # of a mean of one
    entropy = math.log(s)  # up to the constant that the next line shares
    exact = (mean_log(1.0, s) - entropy) - mean_log(0.0, 1.0)
    assert float(log_uniform_kl(torch.tensor(log_alpha).double())) == pytest.approx(exact, abs=0.0095)


def test_at_fixed_dropout_rates_the_priors_agree_up_to_a_constant(data: Dataset) -> None:
    # The paper's theorem: the objectives differ by a function of the rates alone, between 0 and 0.6352 nats a weight.
    gaps = []
    for factor in (0.1, 1.0, 7.0):
        loc, scale = factor * (LOC + 0.05), factor * SCALE
        ard, log_uniform = (divergence(data, Hyper(hidden=(), prior=p), loc, scale) for p in ("ard", "log_uniform"))  # type: ignore[arg-type]
        gaps.append(float(log_uniform - ard))
    assert gaps == pytest.approx([gaps[0]] * 3, abs=1e-9)
    alpha = torch.linspace(-8, 8, 65).double()
    gap = log_uniform_kl(alpha) - 0.5 * nn.functional.softplus(-alpha)
    assert float(gap.min()) > -0.0095
    assert float(gap.max()) < 0.6352 + 0.0095
    assert float(gap.max() - gap.min()) > 0.6


def test_no_gradient_is_lost_at_the_best_precision(data: Dataset) -> None:
    hyper = Hyper(hidden=(), concentration=C, rate=D, temperature=1.0)
    pair = build(data, hyper)
    known = {"b_0": torch.zeros(1).double(), "sigma": torch.tensor(1.0).double()}
    hidden = ["b_0", "sigma", "y"]
    model = poutine.block(poutine.condition(pair.model, data=known), hide=hidden)
    with pyro.get_param_store().scope():
        pyro.param("W_0_loc", LOC.clone())
        pyro.param("W_0_scale", SCALE.clone(), constraint=constraints.positive)
        to_pyro(Elbo(estimator="mean_field")).loss_and_grads(model, poutine.block(pair.guide, hide=hidden), data.train)
        leaves = dict(pyro.get_param_store().named_parameters())
        found = leaves["W_0_loc"].grad, leaves["W_0_scale"].grad
    loc, log_scale = LOC.clone().requires_grad_(), SCALE.log().requires_grad_()
    exact = torch.autograd.grad(penalty(loc, log_scale.exp(), C, D), (loc, log_scale))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


# ---------------------------------------------------------------------------------------------------- the hyperprior
def test_the_hyperprior_is_a_gamma_density_where_it_is_proper() -> None:
    tau = torch.tensor([0.1, 2.0, 50.0], dtype=torch.float64)
    np.testing.assert_allclose(Precision(C, D).log_prob(tau), stats.gamma.logpdf(tau.numpy(), C, scale=1 / D))
    np.testing.assert_allclose(Precision(C, 0.0).log_prob(tau), (C - 1) * np.log(tau.numpy()))
    assert not Precision(C, D).improper
    assert Precision(C, 0.0).improper
    torch.manual_seed(0)
    draws = Precision(C, D, (3,), like=tau).to_event(1).sample((4_000,))
    assert draws.shape == (4_000, 3)
    assert draws.dtype == torch.float64
    assert float(draws.mean()) == pytest.approx(C / D, rel=0.05)


def test_bad_input_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"concentration is 0\.5 and rate is 1e-05; allowed: above 0\.5"):
        build(data, Hyper(concentration=0.5))


# ------------------------------------------------------------------------------------------------------- relevance
@pytest.mark.parametrize("prior", ["gamma", "ard", "log_uniform"])
def test_features_without_use_are_found(prior: Any) -> None:
    # What scikit-learn's automatic relevance determination keeps of the same rows is what must be kept here.
    from sklearn.linear_model import ARDRegression

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 8, generator=generator)
    y = 1.5 * x[:, 0] - x[:, 3] + 0.7 * x[:, 6] + 0.3 * torch.randn(200, generator=generator)
    rows = Dataset(name="drawn", task="regression", train={"x": x, "y": y, "index": torch.arange(200)})
    hyper = Hyper(hidden=(), prior=prior, concentration=1.1, rate=1e-3, temperature=1.0)
    posterior = zoo.fit(METHOD, rows, hyper=hyper, steps=500, batch_size=0, learning_rate=0.05, compile=False)
    rates = log_dropout_rates(posterior.params)["W_0"].flatten()
    theirs = ARDRegression().fit(x.numpy(), y.numpy())
    useful = np.abs(theirs.coef_) > 0.1
    assert set(rates.argsort()[:3].tolist()) == set(np.flatnonzero(useful)) == {0, 3, 6}
    assert float(rates[useful].max()) < -2 < 0 < float(rates[~useful].max())
    np.testing.assert_allclose(posterior.params["W_0_loc"].flatten(), theirs.coef_, atol=0.06)
    assert summary(posterior)["W_0: inputs with use"] == int((rates <= 3).sum())


@pytest.mark.parametrize("hyper", [Hyper(hidden=(12,)), Hyper(hidden=(12,), channels=(4,))], ids=["dense", "conv"])
def test_the_compressed_network_is_the_model_at_its_means_with_zeros(hyper: Hyper) -> None:
    digits = zoo.datasets.load("digits")
    posterior = zoo.fit(METHOD, digits, hyper=hyper, steps=20, compile=False)
    rates = log_dropout_rates(posterior.params)
    threshold = float(torch.cat([r.flatten() for r in rates.values()]).median())
    network = compress(posterior, threshold=threshold)
    zeros = sum(int((p == 0).sum()) for m in network for p in m.parameters() if p.dim() > 1)
    total = sum(r.numel() for r in rates.values())
    assert zeros == pytest.approx(total / 2, abs=1)
    means = {k.removesuffix("_loc"): v for k, v in posterior.params.items() if k.endswith("_loc")}
    cut = {k: v * (rates[k] <= threshold) if k in rates else v for k, v in means.items()}
    model = build(digits, hyper).model
    trace = poutine.trace(poutine.condition(model, data=cut)).get_trace(digits.train)
    torch.testing.assert_close(network(digits.train["x"]).softmax(-1), trace.nodes["y"]["fn"].probs)


def test_summary_counts_weights() -> None:
    posterior = zoo.fit(METHOD, "digits", hyper=METHOD.smoke, steps=5, compile=False)
    found = summary(posterior)
    assert found["weights"] == 64 * 20 + 20 * 10 + 10 * 10
    assert found["weights with use"] == sum(found[f"W_{l}: weights with use"] for l in range(3))
    assert found["compression by pruning"] == found["weights"] / found["weights with use"]


@pytest.mark.parametrize("claim", METHOD.claims[:1], ids=lambda claim: claim.statement[:40])
def test_claims_are_measured(claim: Claim) -> None:
    values = claim.measure(0, True)
    for one in METHOD.claims:  # all are measured in the same runs
        assert one.measure is claim.measure
        assert all({a.key, a.below or a.above or a.key} <= set(values) for a in one.acceptance)
    assert all(v == v for v in values.values())


@pytest.mark.parametrize(("name", "count"), [("digits", 1 / 0.2), ("diabetes", 1.0)])
def test_rows_of_numbers_count_once_by_default(name: str, count: float) -> None:
    data = zoo.datasets.load(name)
    model = build(data, Hyper(hidden=())).model
    node = poutine.trace(model).get_trace({k: v[:10] for k, v in data.train.items()}).nodes["y"]
    assert node["scale"] == pytest.approx(data.num_data / 10 * count)
