"""Semi-implicit distributions: bounds against exact divergences, unbiased weights, and the regression's guide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import zoo
from zoo.errors import DataError, PairError
from zoo.inference.predictive import _FreshNoise
from zoo.models import doubly_semi_implicit
from zoo.models.doubly_semi_implicit import (
    METHOD,
    Hyper,
    SemiImplicit,
    _Normals,
    build,
    elbo_bounds,
    fenchel_bound,
    figures,
    log_likelihood,
    lower_bound,
    summary,
    upper_bound,
)
from zoo.types import Dataset, Elbo

# N(1, 1.25) from N(0, 2), by variance.
EXACT = -0.5 * (1.25 / 2 + 1 / 2 - 1 + math.log(2 / 1.25))
PRIOR = dist.Normal(torch.zeros((), dtype=torch.float64), 2**0.5)


def normals(k: int) -> tuple[SemiImplicit, SemiImplicit]:
    q, p, exact = doubly_semi_implicit._normals(k)
    assert exact == pytest.approx(EXACT)
    return q, p


def estimate(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def repeat(one: Callable[[], Tensor], num: int) -> Tensor:
    """Call a function that many times, each with noise of its own."""

    def fresh(_: Tensor) -> Tensor:
        with pyro.validation_enabled(False), _FreshNoise():
            return one()

    return torch.vmap(fresh, randomness="different")(torch.arange(num))


def drawn(rows: int = 40, *, task: str = "regression", features: int = 2) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    score = 0.8 * x[:, 0] + 0.5 * torch.randn(rows, generator=generator, dtype=torch.float64)
    y = (score > 0).long() if task == "classification" else score
    extra = {"num_classes": 2} if task == "classification" else {}
    return Dataset(name="drawn", task=task, train={"x": x, "y": y, "index": torch.arange(rows)}, extra=extra)


# ------------------------------------------------------------------------------------------------------------ bounds
# Expectations of the bounds, by NumPy from 10, 4 and 1 million draws; their standard errors are below 0.002.
@pytest.mark.parametrize(("k", "lower", "upper"), [(1, -1.489, 2.898), (10, -0.459, -0.111), (100, -0.317, -0.282)])
def test_bounds_have_their_known_values_and_enclose_the_divergence(k: int, lower: float, upper: float) -> None:
    torch.manual_seed(k)
    q, p = normals(k)
    below, error = estimate(lower_bound(q, p, 10_000))
    assert abs(below - lower) < 4 * error + 0.002
    above, error_above = estimate(upper_bound(q, PRIOR, 10_000))
    assert abs(above - upper) < 4 * error_above + 0.002
    assert below + 2 * error < EXACT < above - 2 * error_above


def test_fenchel_bounds_from_above_where_both_are_implicit() -> None:
    torch.manual_seed(0)
    q, p = normals(100)
    value, error = estimate(fenchel_bound(q, p, 10_000))
    assert EXACT - 3 * error < value < EXACT + 0.2
    with pytest.raises(TypeError, match="fenchel_bound"):
        upper_bound(q, p)


def test_the_component_behind_a_draw_decides_the_side() -> None:
    torch.manual_seed(0)
    q, _ = normals(3)
    z = q.rsample((40_000,))
    exact = dist.Normal(torch.ones((), dtype=torch.float64), 1.25**0.5).log_prob(z)
    with_own, error = estimate(q.log_prob(z) - exact)
    assert with_own > 5 * error
    without, error = estimate(q.log_prob(z.clone()) - exact)  # the same numbers, not the same draw
    assert without < -5 * error


def test_shared_components_have_the_same_expectation() -> None:
    q, _ = normals(10)
    value = torch.tensor([0.2, 1.5, -1.0]).double()
    shared = SemiImplicit(q.conditional, q.mixing, event_shape=(), num_components=10)
    torch.manual_seed(0)
    found = repeat(lambda: shared.log_prob(value), 4_000).exp()
    exact = dist.Normal(torch.ones((), dtype=torch.float64), 1.25**0.5).log_prob(value).exp()
    torch.testing.assert_close(found.mean(0), exact, rtol=0.05, atol=0.0)
    one = shared.expand((2, 3))
    assert one.rsample((5,)).shape == (5, 2, 3)
    assert one.log_prob(value.expand(5, 2, 3)).shape == (5, 2, 3)


def test_a_student_prior_is_a_mixture_of_normals() -> None:
    torch.manual_seed(0)
    student = SemiImplicit(
        lambda scale: dist.Normal(torch.zeros_like(scale[..., 0]), scale[..., 0], validate_args=False),
        lambda shape: dist.InverseGamma(torch.tensor(2.5).double(), 2.5).sample(shape)[..., None].sqrt(),
        event_shape=(),
        num_components=200_000,
    )
    value = torch.tensor([0.0, 1.0, -3.0]).double()
    torch.testing.assert_close(student.log_prob(value), dist.StudentT(5.0).log_prob(value), rtol=0.0, atol=0.02)


# ------------------------------------------------------------------------------------------------------------ guide
def params(size: int, hyper: Hyper, sigma: float | None) -> dict[str, Tensor]:
    """Random parameters of the guide."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    found = {"beta_loc": 0.1 * randn(size)}
    if hyper.conditional == "full":
        found["beta_scale"] = 0.1 * randn(size, size).tril(-1) + 0.6 * torch.eye(size).double()
    else:
        found["beta_scale"] = torch.full((size,), 0.6).double()
    sizes = (hyper.num_noise, *hyper.mixing, size) if hyper.mixing else ()
    for l in range(len(sizes) - 1):
        found |= {f"mixing_{l}_weight": randn(*sizes[l : l + 2]) / sizes[l] ** 0.5}
        found |= {f"mixing_{l}_bias": 0.2 * randn(sizes[l + 1])}
    if sigma is not None:
        found |= {"sigma_loc": torch.tensor(math.log(sigma)).double(), "sigma_scale": torch.tensor(1e-9).double()}
    return found


def weights(data: Dataset, hyper: Hyper, sigma: float, num: int, **changed: Any) -> Tensor:
    """Log importance weights of the coefficients, with the noise known."""
    pair = build(data, hyper)
    known = {"sigma": torch.tensor(sigma).double()}
    model = poutine.block(poutine.condition(build(data, replace(hyper, **changed)).model, data=known), hide=["sigma"])

    def one() -> Tensor:
        guide = poutine.trace(poutine.block(pair.guide, hide=["sigma"])).get_trace(data.train)
        trace = poutine.trace(poutine.replay(model, trace=guide)).get_trace(data.train)
        return torch.as_tensor(trace.log_prob_sum() - guide.log_prob_sum())

    with pyro.get_param_store().scope(), torch.no_grad():
        for name, value in params(data.train["x"].shape[1] + 1, hyper, sigma).items():
            pyro.param(name, value)
        return repeat(one, num)


def evidence(data: Dataset, hyper: Hyper, sigma: float) -> float:
    """The log evidence of a linear regression with known noise."""
    x = torch.cat([torch.ones(len(data.train["x"]), 1).double(), data.train["x"]], 1)
    covariance = sigma**2 * torch.eye(len(x)).double() + hyper.prior_scale**2 * x @ x.mT
    return float(dist.MultivariateNormal(torch.zeros(len(x)).double(), covariance).log_prob(data.train["y"]))


@pytest.mark.parametrize("conditional", ["full", "diagonal"])
def test_weights_of_the_guide_average_to_the_evidence_for_any_number_of_components(conditional: Any) -> None:
    torch.manual_seed(0)
    data, sigma = drawn(3), 2.0
    hyper = Hyper(prior_scale=0.5, conditional=conditional, num_noise=2, mixing=(4,), num_components=2)
    found = weights(data, hyper, sigma, 20_000)
    exact = evidence(data, hyper, sigma)
    ratio, error = estimate((found - exact).exp())
    assert ratio == pytest.approx(1, abs=4 * error)
    assert error < 0.05
    assert float(found.mean()) < exact
    wrong = weights(data, hyper, sigma, 20_000, prior_scale=1.0)  # another prior is caught
    ratio, error = estimate((wrong - exact).exp())
    assert abs(ratio - 1) > 5 * error


def test_without_mixing_the_guide_is_normal() -> None:
    hyper = Hyper(mixing=(), num_components=3)
    values = params(3, hyper, None)
    with pyro.get_param_store().scope():
        for name, value in values.items():
            pyro.param(name, value)
        guide = poutine.trace(build(drawn(task="classification"), hyper).guide).get_trace({})
    site = guide.nodes["beta"]
    exact = dist.MultivariateNormal(values["beta_loc"], scale_tril=values["beta_scale"]).log_prob(site["value"])
    torch.testing.assert_close(site["fn"].log_prob(site["value"]), exact)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_particles_in_one_pass_have_the_loss_of_single_ones(task: str) -> None:
    from zoo.inference.objectives import to_pyro

    data = drawn(task=task)
    hyper = Hyper(num_noise=2, mixing=(4,), num_components=5, num_particles=50)
    pair = build(data, hyper)
    assert isinstance(pair.objective, Elbo)
    losses = {}
    for name, objective in (("one", replace(pair.objective, num_particles=1)), ("many", pair.objective)):
        torch.manual_seed(0)
        elbo = to_pyro(objective)
        with pyro.get_param_store().scope(), torch.no_grad():
            sigma = None if task == "classification" else 0.7
            for key, value in params(3, hyper, sigma).items():
                pyro.param(key, value)
            repeats = 300 if name == "one" else 6
            losses[name] = torch.tensor([elbo.loss(pair.model, pair.guide, data.train) for _ in range(repeats)])
    one, many = estimate(losses["one"]), estimate(losses["many"])
    assert one[0] == pytest.approx(many[0], abs=4 * math.hypot(one[1], many[1]))


# ------------------------------------------------------------------------------------------------------ autoencoder
def test_densities_by_matrix_products_are_those_of_normals() -> None:
    torch.manual_seed(0)
    loc, scale = torch.randn(7, 3).double(), torch.rand(7, 3).double() + 0.1
    plain = dist.Normal(loc, scale).to_event(1)
    for shape in ((1, 3), (5, 1, 3), (2, 5, 1, 3), (7, 3)):
        value = torch.randn(shape).double()
        torch.testing.assert_close(_Normals(loc, scale).log_prob(value), plain.log_prob(value))


NOISE = 0.7
LINEAR = Hyper(
    num_noise=3, mixing=(), num_latent=2, autoencoder=(), num_prior_components=2, likelihood="normal", prior="latent"
)


def linear() -> tuple[Dataset, dict[str, Tensor], Tensor]:
    """Rows, the parameters of a linear autoencoder with a normal prior, and the exact log densities of the rows."""
    generator = torch.Generator().manual_seed(2)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = randn(4, 3)
    data = Dataset(name="drawn", task="density", train={"x": x, "index": torch.arange(4)})
    spread, decoder = 0.5 * randn(3, 2), randn(2, 3)
    raw = math.log(math.expm1(0.8))
    scale = 0.8 + doubly_semi_implicit._LEAST_SCALE
    values = {
        "prior_0_weight": torch.cat([spread, torch.zeros(3, 2).double()], 1),
        "prior_0_bias": torch.tensor([0.3, -0.2, raw, raw]).double(),
        "decoder_0_weight": decoder, "decoder_0_bias": torch.zeros(3).double(),
        "decoder_scale": torch.full((3,), NOISE).double(),
        "encoder_0_weight": torch.zeros(3, 4).double(), "encoder_0_bias": torch.tensor([0.3, -0.2, 0.8, 0.8]).double(),
    }  # fmt: skip
    latent = spread.mT @ spread + scale**2 * torch.eye(2).double()
    mean = values["prior_0_bias"][:2] @ decoder
    covariance = decoder.mT @ latent @ decoder + NOISE**2 * torch.eye(3).double()
    return data, values, dist.MultivariateNormal(mean, covariance).log_prob(x)


@pytest.mark.parametrize("wrong", [False, True], ids=["exact", "another prior"])
def test_weights_of_rows_average_to_their_exact_density(wrong: bool) -> None:
    torch.manual_seed(0)
    data, values, exact = linear()
    if wrong:
        values["prior_0_weight"] = 2 * values["prior_0_weight"]
    pair = build(data, LINEAR)

    def one() -> Tensor:
        guide = poutine.trace(pair.guide).get_trace(data.train)
        trace = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(data.train)
        trace.compute_log_prob()
        guide.compute_log_prob()
        nodes = trace.nodes
        found: Tensor = nodes["x"]["log_prob"] + nodes["z"]["log_prob"] - guide.nodes["z"]["log_prob"]
        return found

    with pyro.get_param_store().scope(), torch.no_grad():
        for name, value in values.items():
            pyro.param(name, value)
        ratio = (repeat(one, 40_000) - exact).exp()
    error = ratio.std(0) / len(ratio) ** 0.5
    assert float(error.max()) < 0.05
    off = (ratio.mean(0) - 1).abs() / error
    assert bool((off < 4).all()) != wrong


def test_more_components_raise_the_bound_on_the_likelihood_of_rows() -> None:
    data, values, exact = linear()
    data = replace(data, train={**data.train, "x": data.train["x"].float()})
    pair = build(data, LINEAR)
    with pyro.get_param_store().scope():
        pair.model(data.train)
        pair.guide(data.train)  # type: ignore[misc]
        for name, value in values.items():
            pyro.get_param_store()[name] = value.float()
        posterior = zoo.Posterior.from_store(pair, data)
    posterior.hyper = LINEAR
    found = log_likelihood(posterior, num_samples=4_000, num_components=500)
    torch.testing.assert_close(found, exact, rtol=0.0, atol=0.1)

    def single(components: int) -> Tensor:
        parts = [log_likelihood(posterior, num_samples=1, num_components=components, seed=i) for i in range(40)]
        return torch.stack(parts).mean(1)

    gain, error = estimate(single(500) - single(1))  # the same draws of the guide
    assert gain > 3 * error


@pytest.mark.parametrize("prior", ["pseudo_input", "rows"])
def test_components_are_what_the_encoder_makes_of_rows(prior: Any) -> None:
    # A single row, or a network without weights: every component is the encoder's normal at that row.
    x = torch.tensor([[0.3, -0.4, 0.9]]).double()
    data = Dataset(name="drawn", task="density", train={"x": x, "index": torch.arange(1)})
    hyper = replace(LINEAR, prior=prior, num_prior_components=5)
    weight = torch.arange(12).reshape(3, 4).double() / 10
    values = {"encoder_0_weight": weight, "encoder_0_bias": torch.tensor([0.1, 0.2, -0.3, 0.4]).double()}
    values |= {"prior_0_weight": torch.zeros(3, 3).double(), "prior_0_bias": x[0]} if prior == "pseudo_input" else {}
    pair = build(data, hyper)
    with pyro.get_param_store().scope(), torch.no_grad():
        for name, value in values.items():
            pyro.param(name, value)
        guide = poutine.trace(pair.guide).get_trace(data.train).nodes["z"]
        torch.set_default_dtype(torch.float64)
        try:
            model = poutine.trace(pair.model).get_trace(data.train).nodes["z"]
        finally:
            torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(model["fn"].log_prob(guide["value"]), guide["fn"].log_prob(guide["value"]))


def test_autoencoder_of_images_and_its_figure() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(60, 4, 4, generator=generator) > 0.5).float()
    train = {"x": x, "y": torch.zeros(60).long(), "index": torch.arange(60)}
    data = Dataset(name="drawn", task="classification", train=train, extra={"num_classes": 2, "image_shape": (1, 4, 4)})
    posterior = zoo.fit(METHOD, data, hyper=METHOD.smoke, steps=30, compile=False)
    assert set(posterior.draws(1)) == {"z"}
    assert posterior.predict(n=3).samples["x"].shape == (3, 60, 4, 4)
    assert set(summary(posterior)) == {"largest correlation in the prior", "largest excess kurtosis in the prior"}
    (figure,) = figures(posterior)
    from zoo.reports.figures import own

    assert "semi-implicit prior" in own(figure).svg
    with pytest.raises(PairError, match="regression"):
        elbo_bounds(posterior)


# ------------------------------------------------------------------------------------------------------- paperwork
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prior_scale": 0.0}, "prior_scale is 0"),
        ({"num_components": 0}, "num_components is 0"),
        ({"mixing": (0,)}, "mixing is"),
        ({"num_prior_components": 0}, "num_prior_components is 0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(drawn(), Hyper(**changed))


def test_data_that_do_not_suit_are_refused() -> None:
    data = drawn(task="classification")
    with pytest.raises(DataError, match="has 3 classes"):
        build(replace(data, extra={"num_classes": 3}), Hyper())
    with pytest.raises(DataError, match="expected a table"):
        build(replace(data, train={**data.train, "x": torch.zeros(40, 2, 2)}), Hyper())


def test_summary_and_figure_of_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn(task="classification")
    posterior = zoo.fit(METHOD, data, hyper=METHOD.smoke, steps=50, compile=False)
    lower, upper = elbo_bounds(posterior, 400)
    assert lower < upper
    found = summary(posterior)
    assert float(found["ELBO, lower bound"]) < float(found["ELBO, upper bound"])
    assert 0 <= float(found["largest correlation"]) <= 1
    monkeypatch.setattr(doubly_semi_implicit, "reference", lambda posterior: posterior)  # no chains for a picture
    (figure,) = figures(posterior)
    from zoo.reports.figures import own

    assert "semi-implicit guide" in own(figure).svg
    assert figures(zoo.fit(METHOD, drawn(10_001, task="classification"), steps=1, compile=False)) == []


def test_bounds_claim_holds_on_a_small_run() -> None:
    claim = METHOD.claims[0]
    found = claim.measure(0, True)
    for key in ("lower, K = 1", "lower, K = 10"):
        assert found[key] < found["exact"]
    assert found["lower, K = 1"] < found["lower, K = 10"] < found["lower, K = 100"]
    assert found["upper, K = 1"] > found["upper, K = 10"] > found["exact"]
