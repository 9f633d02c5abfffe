"""Regularised horseshoe: its Gaussian limit is exact Bayesian linear regression; its prior holds the guess p0."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import MultivariateNormal

import zoo
from zoo.errors import DataError, PairError
from zoo.models.horseshoe_regression import (
    Hyper,
    _least_squares_variance,
    build,
    coefficients,
    global_scale,
    sites,
    unshrunk,
)
from zoo.types import Column, Dataset, Pair

FORMS = ("partly_centred", "non_centred", "centred")
RIDGE = Hyper(prior="gaussian", noise=0.7, slab_scale=0.5, parametrisation="centred", rank=11)


@pytest.fixture(autouse=True)
def _own_world() -> Iterator[None]:
    """Double precision, one thread (the tensors are tiny) and an own parameter store, all restored."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def as_double(data: Dataset) -> Dataset:
    train = {name: value.double() if value.is_floating_point() else value for name, value in data.train.items()}
    return Dataset(
        name=data.name, task=data.task, train=train, columns=data.columns, target=data.target, extra=data.extra
    )


@pytest.fixture(scope="module")
def linear() -> Dataset:
    return as_double(zoo.datasets.load("diabetes"))


@pytest.fixture(scope="module")
def logistic() -> Dataset:
    return as_double(zoo.datasets.load("breast_cancer"))


def log_joint(data: Dataset, hyper: Hyper, values: dict[str, Tensor]) -> Tensor:
    trace = poutine.trace(poutine.condition(build(data, hyper).model, data=values)).get_trace(data.train)
    return trace.log_prob_sum()


def exact_ridge(data: Dataset, hyper: Hyper) -> tuple[MultivariateNormal, Tensor]:
    """Posterior of (beta0, beta) under a Gaussian prior and known noise, and log p(y)."""
    assert hyper.noise is not None
    design = torch.cat([torch.ones(data.num_data, 1), data.train["x"]], dim=1)
    prior = torch.cat([torch.tensor([hyper.intercept_scale]), torch.full((design.shape[1] - 1,), hyper.slab_scale)])
    precision = design.T @ design / hyper.noise**2 + torch.diag(prior**-2)
    mean = torch.linalg.solve(precision, design.T @ data.train["y"] / hyper.noise**2)
    covariance = (design * prior) @ (design * prior).T + hyper.noise**2 * torch.eye(data.num_data)
    evidence = MultivariateNormal(torch.zeros(data.num_data), covariance).log_prob(data.train["y"])
    return MultivariateNormal(mean, precision_matrix=precision), evidence


# ------------------------------------------------------------------------------------------- the Gaussian limit
def test_the_gaussian_limit_is_exact_bayesian_linear_regression(linear: Dataset) -> None:
    posterior, evidence = exact_ridge(linear, RIDGE)
    for scale in (0.1, 1.0, 3.0):
        z = posterior.mean + scale * torch.randn(11, generator=torch.Generator().manual_seed(3))
        joint = log_joint(linear, RIDGE, {"beta0": z[0], "beta": z[1:]})
        torch.testing.assert_close(joint - posterior.log_prob(z), evidence, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("wrong", [{"slab_scale": 0.6}, {"noise": 0.75}, {"intercept_scale": 4.0}])
def test_a_wrong_prior_is_caught_by_the_exact_posterior(linear: Dataset, wrong: dict[str, float]) -> None:
    posterior, evidence = exact_ridge(linear, RIDGE)
    other = Hyper(**{"prior": "gaussian", "noise": 0.7, "slab_scale": 0.5, "parametrisation": "centred", **wrong})  # type: ignore[arg-type]
    z = posterior.mean
    joint = log_joint(linear, other, {"beta0": z[0], "beta": z[1:]})
    assert abs(float(joint - posterior.log_prob(z) - evidence)) > 0.1


def test_the_horseshoe_tends_to_the_gaussian_prior_as_the_local_scales_grow(linear: Dataset) -> None:
    z = exact_ridge(linear, RIDGE)[0].mean
    wide = Hyper(noise=0.7, slab_scale=0.5, parametrisation="centred")
    scales = {"tau": torch.tensor(0.3), "c2": torch.tensor(0.25), "lambda": torch.full((10,), 1e9)}
    trace = poutine.trace(
        poutine.condition(build(linear, wide).model, data={"beta0": z[0], "beta": z[1:], **scales})
    ).get_trace(linear.train)
    trace.compute_log_prob()
    found = (
        trace.nodes["beta"]["log_prob_sum"] + trace.nodes["beta0"]["log_prob_sum"] + trace.nodes["y"]["log_prob_sum"]
    )
    torch.testing.assert_close(found, log_joint(linear, RIDGE, {"beta0": z[0], "beta": z[1:]}), rtol=1e-10, atol=1e-8)


def exact_guide(data: Dataset, *, widen: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log weights of the low-rank guide when its parameters are set to the exact posterior; and the evidence."""
    posterior, evidence = exact_ridge(data, RIDGE)
    covariance = posterior.covariance_matrix
    floor = 0.5 * torch.linalg.eigvalsh(covariance)[0]
    factor = torch.linalg.cholesky(covariance - floor * torch.eye(11)) / floor.sqrt()
    pyro.param("loc", posterior.mean)
    pyro.param("scale", widen * floor.sqrt() * torch.ones(11), constraint=dist.constraints.positive)
    pyro.param("factor", factor)
    pair = build(data, RIDGE)
    with pyro.plate("particle", 50, dim=-2):
        guide = poutine.trace(pair.guide).get_trace(data.train)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(data.train)
    weights = torch.zeros(50)
    for trace, sign in ((model, 1.0), (guide, -1.0)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
                weights = weights + sign * site["log_prob"].detach().reshape(50, -1).sum(-1)
    return weights, evidence


def test_the_low_rank_guide_can_be_the_exact_posterior(linear: Dataset) -> None:
    weights, evidence = exact_guide(linear)
    torch.testing.assert_close(weights, evidence.expand(50), rtol=1e-9, atol=1e-6)


def test_a_wrong_guide_is_caught_by_its_log_weights(linear: Dataset) -> None:
    weights, evidence = exact_guide(linear, widen=1.1)
    assert float((weights - evidence).abs().mean()) > 0.05


# ---------------------------------------------------------------------------------------------------- the prior
def some_values(num_features: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positive = (0.5 * torch.randn(num_features + 3, generator=generator)).exp()
    values = {"sigma": positive[0], "tau": 0.1 * positive[1], "c2": 3 * positive[2], "lambda": positive[3:]}
    normal = torch.randn(num_features + 1, generator=generator)
    return {**values, "beta0": normal[0], "beta": 0.3 * normal[1:]}


@pytest.mark.parametrize("form", ["partly_centred", "non_centred"])
@pytest.mark.parametrize("data_name", ["linear", "logistic"])
def test_every_parametrisation_is_the_same_prior(form: Any, data_name: str, request: pytest.FixtureRequest) -> None:
    data: Dataset = request.getfixturevalue(data_name)
    x = data.train["x"]
    values = some_values(x.shape[1])
    sigma = values["sigma"] if data.task == "regression" else torch.tensor(2.0)
    scale = values["tau"] * values["lambda"]
    scale = (values["c2"] * scale**2 / (values["c2"] + scale**2)).sqrt()
    width = torch.ones(())
    if form == "partly_centred":
        width = (1 + scale**2 / sigma**2 / torch.linalg.inv(x.T @ x + torch.eye(x.shape[1])).diagonal()).sqrt()
    other = {**values, "beta_trans": values["beta"] * width / scale}
    del other["beta"]
    centred = log_joint(data, Hyper(parametrisation="centred"), values)
    jacobian = (scale / width).log().sum()
    assert abs(float(jacobian)) > 1.0
    torch.testing.assert_close(
        log_joint(data, Hyper(parametrisation=form), other), centred + jacobian, rtol=1e-9, atol=1e-7
    )


def test_the_prior_of_the_linear_model_is_the_papers(linear: Dataset) -> None:
    values = some_values(10)
    trace = poutine.trace(
        poutine.condition(build(linear, Hyper(parametrisation="centred", num_relevant=3.0)).model, data=values)
    ).get_trace(linear.train)
    trace.compute_log_prob()
    tau0 = 3 / 7 * values["sigma"] / math.sqrt(linear.num_data)
    expected = {
        "tau": math.log(2 / math.pi) - tau0.log() - torch.log1p((values["tau"] / tau0) ** 2),
        # c2 ~ InvGamma(2, 8) at nu = 4 and s = 2
        "c2": 2 * math.log(8.0) - 3 * values["c2"].log() - 8 / values["c2"],
        "lambda": (math.log(2 / math.pi) - torch.log1p(values["lambda"] ** 2)).sum(),
        "y": dist
        .Normal(values["beta0"] + linear.train["x"] @ values["beta"], values["sigma"])
        .log_prob(linear.train["y"])
        .sum(),
    }
    for site, value in expected.items():
        torch.testing.assert_close(trace.nodes[site]["log_prob_sum"], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p0", [1.0, 3.0, 6.0])
def test_the_prior_effective_number_of_nonzeros_at_tau0_is_the_guess(linear: Dataset, p0: float) -> None:
    """Piironen and Vehtari (2017), sec. 3.2: E[m_eff | tau0, sigma] = p0, for the horseshoe without a slab."""
    hyper = Hyper(num_relevant=p0, noise=0.8)
    draws = {
        "beta0": torch.zeros(20_000),
        "tau": torch.full((20_000,), global_scale(linear, hyper) * 0.8),
        "c2": torch.full((20_000,), 1e20),
        "lambda": torch
        .randn(20_000, 10, generator=torch.Generator().manual_seed(0))
        .div(torch.randn(20_000, 10, generator=torch.Generator().manual_seed(1)))
        .abs(),
    }
    sizes = unshrunk(SimpleNamespace(hyper=hyper, data=linear), draws).sum(-1)  # type: ignore[arg-type]
    assert float(sizes.mean()) == pytest.approx(p0, abs=4 * float(sizes.std()) / math.sqrt(20_000))
    # The default choice of tau = 1 believes that nearly everything matters.
    draws["tau"] = torch.ones(20_000)
    assert float(unshrunk(SimpleNamespace(hyper=hyper, data=linear), draws).sum(-1).mean()) > 9.0  # type: ignore[arg-type]


def test_huge_scales_do_not_overflow_in_single_precision() -> None:
    torch.set_default_dtype(torch.float32)
    data = zoo.datasets.load("diabetes")
    values = {name: value.float() for name, value in some_values(10).items()}
    values |= {"tau": torch.tensor(1e3), "lambda": torch.full((10,), 1e18, requires_grad=True)}  # (tau lambda)^2 = 1e42
    joint = log_joint(data, Hyper(parametrisation="centred"), values)
    assert torch.isfinite(joint)
    assert torch.isfinite(torch.autograd.grad(joint, values["lambda"])[0]).all()


# ------------------------------------------------------------------------------------------------ sites, guides
def latents(program: Any, batch: dict[str, Tensor]) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(frame.name for frame in site["cond_indep_stack"])
        for name, site in poutine.trace(program).get_trace(batch).nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site["infer"].get("is_auxiliary")
        and not isinstance(site["fn"], _Subsample)
    }


@pytest.mark.parametrize("guide", ["mean_field", "low_rank"])
@pytest.mark.parametrize("data_name", ["linear", "logistic"])
def test_sites_and_plates_are_as_declared(data_name: str, guide: Any, request: pytest.FixtureRequest) -> None:
    data: Dataset = request.getfixturevalue(data_name)
    for form, prior, noise in itertools.product(FORMS, ("regularised_horseshoe", "gaussian"), (None, 0.5)):
        hyper = Hyper(parametrisation=form, prior=prior, noise=noise, guide=guide)  # type: ignore[arg-type]
        expected = sites(hyper)
        if data_name == "logistic":
            expected.pop("sigma", None)
        pair = build(data, hyper)
        pyro.clear_param_store()
        assert latents(pair.model, data.train) == expected  # type: ignore[arg-type]
        assert latents(pair.guide, data.train) == expected  # type: ignore[arg-type]


def test_the_low_rank_guide_without_its_factor_is_the_mean_field_guide(linear: Dataset) -> None:
    names = list(sites(Hyper()))
    generator = torch.Generator().manual_seed(0)
    loc, scale = torch.randn(24, generator=generator), torch.rand(24, generator=generator) + 0.1
    pyro.param("loc", loc)
    pyro.param("scale", scale, constraint=dist.constraints.positive)
    pyro.param("factor", torch.zeros(24, 2))
    sizes = [10 if plates else 1 for plates in sites(Hyper()).values()]
    for name, size, at, spread in zip(names, sizes, loc.split(sizes), scale.split(sizes), strict=True):
        shape = (10,) if size == 10 else ()
        pyro.param(f"{name}_loc", at.reshape(shape))
        pyro.param(f"{name}_scale", spread.reshape(shape), constraint=dist.constraints.positive)
    low_rank = poutine.trace(build(linear, Hyper(guide="low_rank", rank=2)).guide).get_trace(linear.train)
    values = {name: low_rank.nodes[name]["value"].detach() for name in names}
    conditioned = poutine.condition(build(linear, Hyper(guide="mean_field")).guide, data=values)
    density = poutine.trace(conditioned).get_trace(linear.train).log_prob_sum()
    torch.testing.assert_close(low_rank.log_prob_sum(), density, rtol=1e-9, atol=1e-9)
    pyro.get_param_store()["lambda_scale"] = 1.01 * pyro.param("lambda_scale").detach()
    other = poutine.trace(conditioned).get_trace(linear.train).log_prob_sum()
    assert abs(float((other - density).detach())) > 1e-4


def test_a_minibatch_is_scaled_to_the_whole_data(logistic: Dataset) -> None:
    batch = {name: value[:40] for name, value in logistic.train.items()}
    trace = poutine.trace(build(logistic, Hyper()).model).get_trace(batch)
    assert trace.nodes["y"]["scale"] == pytest.approx(10.0)
    assert trace.nodes["lambda"]["scale"] == 1.0


# ---------------------------------------------------------------------------------------------- missing entries
def with_holes(data: Dataset, share: float = 0.1) -> Dataset:
    """Take entries away at random; what is missing is zero and marked, as the reader does it."""
    gone = torch.rand(data.train["x"].shape, generator=torch.Generator().manual_seed(5)) < share
    train = {**data.train, "x": data.train["x"].masked_fill(gone, 0.0), "x_missing": gone}
    return dataclasses.replace(data, train=train)


def exact_missing(data: Dataset, beta0: Tensor, beta: Tensor, x_mis: Tensor, noise: float) -> Tensor:
    """log p(y | beta) + log p(x_mis | y, beta), row by row: both are Gaussian, by Gaussian conditioning."""
    total = torch.zeros(())
    start = 0
    for x, y, gone in zip(data.train["x"], data.train["y"], data.train["x_missing"], strict=True):
        b = beta[gone]
        mean, variance = beta0 + x @ beta, noise**2 + b @ b
        total = total + dist.Normal(mean, variance.sqrt()).log_prob(y)
        if len(b):
            centre = b * (y - mean) / variance
            covariance = torch.eye(len(b)) - torch.outer(b, b) / variance
            part = MultivariateNormal(centre, covariance).log_prob(x_mis[start : start + len(b)])
            total, start = total + part, start + len(b)
    assert start == len(x_mis)
    return total


@pytest.mark.parametrize("seed", [0, 1])
def test_missing_entries_have_their_exact_posterior(linear: Dataset, seed: int) -> None:
    data = with_holes(linear)
    count = int(data.train["x_missing"].sum())
    assert count > 200
    generator = torch.Generator().manual_seed(seed)
    beta0, beta = torch.randn((), generator=generator), 0.4 * torch.randn(10, generator=generator)
    x_mis = torch.randn(count, generator=generator)
    joint = log_joint(data, RIDGE, {"beta0": beta0, "beta": beta, "x_mis": x_mis})
    prior = (
        dist.Normal(0.0, RIDGE.intercept_scale).log_prob(beta0)
        + dist.Normal(0.0, RIDGE.slab_scale).log_prob(beta).sum()
    )
    exact = exact_missing(data, beta0, beta, x_mis, 0.7)
    torch.testing.assert_close(joint - prior, exact, rtol=1e-10, atol=1e-8)
    # The wrong entry in the wrong place is noticed.
    swapped = log_joint(data, RIDGE, {"beta0": beta0, "beta": beta, "x_mis": x_mis.flip(0)})
    assert abs(float(swapped - joint)) > 0.1


def test_nothing_missing_leaves_the_density_as_it_was(linear: Dataset) -> None:
    values = some_values(10)
    none = dataclasses.replace(
        linear, train={**linear.train, "x_missing": torch.zeros_like(linear.train["x"], dtype=torch.bool)}
    )
    hyper = Hyper(parametrisation="centred")
    assert torch.equal(log_joint(none, hyper, values), log_joint(linear, hyper, values))
    pair = build(none, hyper)
    assert pair.guide is not None
    assert "x_mis" not in poutine.trace(pair.model).get_trace(none.train).nodes


@pytest.fixture(scope="module")
def sampled() -> tuple[Dataset, zoo.Posterior]:
    """One feature, of which a quarter is missing, sampled by NUTS."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal(24)
    y = 0.9 * x + 0.5 * rng.standard_normal(24)
    gone = np.arange(24) % 4 == 1
    train = {
        "x": torch.tensor(np.where(gone, 0.0, x))[:, None],
        "y": torch.tensor(y),
        "index": torch.arange(24),
        "x_missing": torch.tensor(gone)[:, None],
    }
    data = Dataset(
        name="holes", task="regression", train=train, columns=(Column(name="x"),), target=Column(name="y", scale=2.0)
    )
    hyper = Hyper(prior="gaussian", noise=0.5, slab_scale=1.0, parametrisation="centred")
    return data, zoo.fit("horseshoe_regression", data, hyper=hyper, chains=2, tune=500, draws=2_000)


def test_nuts_finds_the_posterior_that_quadrature_gives(sampled: tuple[Dataset, zoo.Posterior]) -> None:
    data, posterior = sampled
    beta0 = torch.linspace(-1.5, 1.5, 201)[:, None, None]
    beta = torch.linspace(-0.6, 2.4, 301)[None, :, None]
    x, y, gone = data.train["x"][:, 0], data.train["y"], data.train["x_missing"][:, 0]
    variance = 0.25 + gone * beta**2
    residual = y - beta0 - beta * x
    log = dist.Normal(0.0, variance.sqrt()).log_prob(residual).sum(-1)
    log = log + dist.Normal(0.0, 5.0).log_prob(beta0[..., 0]) + dist.Normal(0.0, 1.0).log_prob(beta[..., 0])
    weight = (log - log.max()).exp()
    weight = weight / weight.sum()
    centre = ((beta / variance) * residual)[..., gone]
    exact = {
        "beta": (weight * beta[..., 0]).sum(),
        "beta0": (weight * beta0[..., 0]).sum(),
        "x_mis": (weight[..., None] * centre).sum((0, 1)),
    }
    draws = posterior.draws(4_000)
    for site, value in exact.items():
        found = draws[site].reshape(len(draws["beta"]), -1)
        error = found.std(0) / 1_000**0.5  # at least a quarter of the draws are worth one each
        assert bool(((found.mean(0) - value).abs() < 4 * error).all()), site
    spread = ((weight * beta[..., 0] ** 2).sum() - exact["beta"] ** 2).sqrt()
    assert float(draws["beta"].std()) == pytest.approx(float(spread), rel=0.1)
    # To take what is missing for its mean, zero, would give another answer.
    zero = dist.Normal(0.0, 0.5).log_prob(residual).sum(-1) + dist.Normal(0.0, 1.0).log_prob(beta[..., 0])
    naive = (zero - zero.max()).exp()
    naive = (naive / naive.sum() * beta[..., 0]).sum()
    assert abs(float(naive - exact["beta"])) > 4 * float(draws["beta"].std()) / 1_000**0.5


def test_new_rows_are_imputed_afresh(sampled: tuple[Dataset, zoo.Posterior]) -> None:
    _, posterior = sampled
    x = torch.tensor([[1.5], [0.0], [0.0]])
    new = {"x": x, "index": torch.arange(3), "x_missing": torch.tensor([[False], [True], [True]])}
    prediction = posterior.predict(new, 4_000)
    assert set(prediction.samples) == {"y"}
    draws = posterior.draws(4_000)
    samples = prediction.samples["y"]
    known = 0.25 + (draws["beta0"] + 1.5 * draws["beta"][:, 0]).var()
    unknown = 0.25 + draws["beta0"].var() + (draws["beta"] ** 2).mean()
    assert float(samples[:, 0].var()) == pytest.approx(float(known), rel=0.1)
    assert float(samples[:, 1].var()) == pytest.approx(float(unknown), rel=0.1)
    assert abs(float(torch.corrcoef(samples.T)[1, 2])) < 0.1  # each row has its own missing entry
    frame = posterior.predict_table({"x": np.array([1.5, np.nan])})
    assert frame["sd"][1] == pytest.approx(2.0 * float(unknown.sqrt()), rel=0.1)
    # A batch that says nothing about missing entries has none.
    full = posterior.predict({"x": x}, 4_000).samples["y"]
    assert float(full[:, 1].var()) == pytest.approx(float(0.25 + draws["beta0"].var()), rel=0.1)


def test_imputed_fits_are_saved_and_exported(sampled: tuple[Dataset, zoo.Posterior], tmp_path: Any) -> None:
    _, posterior = sampled
    posterior.save(tmp_path)
    loaded = zoo.load(tmp_path)
    new = {"x": np.array([0.3, np.nan])}
    assert loaded.predict_table(new, seed=1).equals(posterior.predict_table(new, seed=1))
    idata = loaded.to_arviz(num_draws=50)
    assert idata.posterior["x_mis"].dims == ("chain", "draw", "missing")
    assert set(idata.observed_data.data_vars) == {"y"}


def test_what_cannot_be_imputed_is_refused(linear: Dataset) -> None:
    data = with_holes(linear)
    with pytest.raises(PairError, match="no guide, so SVI cannot fit it; use engine='nuts'"):
        zoo.fit("horseshoe_regression", data, engine="svi")
    columns = (dataclasses.replace(data.columns[0], categories=("a", "b"), source="sex"), *data.columns[1:])
    with pytest.raises(
        DataError, match=r"'sex' of 'diabetes' holds categories and has missing .* imputes numbers only"
    ):
        build(dataclasses.replace(data, columns=columns), Hyper())
    digits = zoo.datasets.load("digits")
    train = {**digits.train, "x_missing": digits.train["x"] < 0.1}
    with pytest.raises(
        DataError, match=r"missing entries, which bayesian_compression cannot impute; .*: horseshoe_reg"
    ):
        zoo.fit("bayesian_compression", dataclasses.replace(digits, train=train))


# --------------------------------------------------------------------------------------------- the user's units
def test_coefficients_predict_in_the_users_units() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal([3.0, -200.0], [0.5, 40.0], size=(50, 2))
    columns = tuple(Column(name=n, mean=m, scale=s) for n, m, s in (("age", 3.0, 0.5), ("income", -200.0, 40.0)))
    x = torch.tensor((raw - [3.0, -200.0]) / [0.5, 40.0])
    data = Dataset(
        name="mine",
        task="regression",
        train={"x": x, "y": torch.zeros(50), "index": torch.arange(50)},
        columns=columns,
        target=Column(name="price", mean=1_000.0, scale=70.0),
    )
    draws = {name: value.expand(5, *value.shape) for name, value in some_values(2).items()}
    posterior: Any = SimpleNamespace(
        hyper=Hyper(parametrisation="centred"), data=data, draws=lambda n: draws, deterministics=lambda d: {}
    )
    table = coefficients(posterior)
    assert list(table.index) == ["intercept", "age", "income"]
    price = table["mean"]["intercept"] + raw @ table["mean"].to_numpy()[1:]
    expected = 1_000 + 70 * (draws["beta0"][0] + x @ draws["beta"][0])
    np.testing.assert_allclose(price, expected.numpy(), rtol=1e-9)
    assert (table["sign"] == 1.0).all()
    assert math.isnan(table["unshrunk"]["intercept"])


# ------------------------------------------------------------------------------------------- errors, plain Pyro
def test_data_that_do_not_fit_are_refused(linear: Dataset) -> None:
    rows = {"x": torch.randn(9, 3), "index": torch.arange(9)}
    three = Dataset(name="three", task="classification", train={**rows, "y": torch.arange(9) % 3})
    with pytest.raises(DataError, match="'three' has 3 classes"):
        build(three, Hyper())
    with pytest.raises(DataError, match="needs a table"):
        build(Dataset(name="none", task="regression", train=rows), Hyper())
    with pytest.raises(DataError, match="does regression and classification"):
        build(Dataset(name="other", task="density", train={**rows, "y": torch.zeros(9)}), Hyper())
    with pytest.raises(DataError, match=r"num_relevant is 10, .* between 0 and 10"):
        build(linear, Hyper(num_relevant=10.0))


def train(pair: Pair, batch: Any, steps: int) -> list[float]:
    pyro.set_rng_seed(0)
    optimiser = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.03 ** (1 / steps)})
    svi = SVI(pair.model, pair.guide, optimiser, Trace_ELBO())
    return [svi.step(batch) for _ in range(steps)]


@pytest.fixture
def small() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    y = x @ torch.tensor([0.8, -0.4, 0.0]) + 0.7 * torch.randn(60, generator=generator)
    return Dataset(name="small", task="regression", train={"x": x, "y": y, "index": torch.arange(60)})


def distance_from_exact(data: Dataset) -> float:
    """Largest distance of the fitted means from the exact ones, in exact standard deviations."""
    exact, _ = exact_ridge(data, RIDGE)
    return float(((pyro.param("loc").detach() - exact.mean) / exact.variance.sqrt()).abs().max())


def test_the_pair_trains_in_a_plain_pyro_loop_to_the_exact_posterior(small: Dataset) -> None:
    losses = train(build(small, RIDGE), small.train, steps=600)
    evidence = float(exact_ridge(small, RIDGE)[1])
    assert np.mean(losses[:10]) > -evidence + 5.0
    assert np.mean(losses[-100:]) == pytest.approx(-evidence, abs=0.3)
    assert distance_from_exact(small) < 0.3


def test_a_wrong_prior_trains_to_another_posterior(small: Dataset) -> None:
    wrong = Hyper(prior="gaussian", noise=0.7, slab_scale=0.05, parametrisation="centred", rank=11)
    train(build(small, wrong), small.train, steps=600)
    assert distance_from_exact(small) > 3.0


def test_the_logistic_pair_trains_in_a_plain_pyro_loop(logistic: Dataset) -> None:
    pair = build(logistic, Hyper(guide="mean_field"))
    losses = train(pair, logistic.train, steps=300)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    batch = {name: value for name, value in logistic.train.items() if name != "y"}
    guide = poutine.trace(pair.guide).get_trace(batch)
    predicted = poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch).nodes["y"]
    assert not predicted["is_observed"]
    assert float((predicted["fn"].mean.round() == logistic.train["y"]).double().mean()) > 0.9


@pytest.mark.parametrize("shape", [(30, 4), (4, 30)])
def test_least_squares_variance_is_its_definition_with_more_columns_than_rows_too(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.inv(x.double().mT @ x.double() + torch.eye(shape[1], dtype=torch.float64)).diagonal()
    torch.testing.assert_close(_least_squares_variance(x), expected)
