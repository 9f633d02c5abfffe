"""Laplace: exact for linear regression, the true Hessian for classes, and one density in guide and covariance."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import zoo
from zoo.errors import DataError, MissingExtraError
from zoo.models.laplace_network import METHOD, Hyper, build, deviations, figures, laplace, summary
from zoo.types import Dataset

SIGMA, SCALE = 0.5, 0.8
STRUCTURES = ("full", "kron", "diag")


def numbers() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64) + 0.5
    y = y + SIGMA * torch.randn(40, generator=generator, dtype=torch.float64)
    return Dataset(name="drawn", task="regression", train={"x": x, "y": y, "index": torch.arange(40)})


def classes(rows: int = 30, dtype: torch.dtype = torch.float64) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator, dtype=dtype)
    y = torch.randint(3, (rows,), generator=generator)
    train = {"x": x, "y": y, "index": torch.arange(rows)}
    return Dataset(name="drawn", task="classification", train=train, extra={"num_classes": 3})


def design(data: Dataset) -> Tensor:
    x = data.train["x"]
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def decay(scale: float) -> Tensor:
    """Prior precision of three weights and a bias."""
    return torch.tensor([3 / scale**2] * 3 + [1.0], dtype=torch.float64).diag()


def ridge(data: Dataset) -> dict[str, Tensor]:
    """The maximum of the joint density of linear regression with known noise."""
    z = design(data)
    found = torch.linalg.solve(z.mT @ z / SIGMA**2 + decay(SCALE), z.mT @ data.train["y"] / SIGMA**2)
    sigma = torch.tensor(SIGMA, dtype=torch.float64)
    return {"W_0_loc": found[:-1, None], "b_0_loc": found[-1:], "sigma_loc": sigma}


def point(data: Dataset, hyper: Hyper) -> dict[str, Tensor]:
    """Some parameters of the trained guide; they need not be a maximum for the Hessian to be compared."""
    torch.manual_seed(2)
    with pyro.get_param_store().scope():
        build(data, hyper).guide(data.train)
        return {name: value.detach().double() for name, value in pyro.get_param_store().items()}


def covariance(found: dict[str, Tensor], l: int) -> Tensor:
    """Of weights, ``(outputs, inputs)`` row by row, and biases."""
    if "last_scale_tril" in found:
        return found["last_scale_tril"] @ found["last_scale_tril"].mT
    W, b = (found[f"{site}_{l}_scale"].square() for site in ("W", "b"))
    parts = [W.mT.flatten().diag(), b.diag()]
    if f"W_{l}_inputs" in found:
        axes = [torch.kron(found[f"W_{l}_outputs"], found[f"W_{l}_inputs"]), found[f"b_{l}_outputs"]]
        parts = [u @ variance @ u.mT for u, variance in zip(axes, parts, strict=True)]
    return torch.block_diag(*parts)


def hessian(data: Dataset, hyper: Hyper, params: dict[str, Tensor], l: int) -> Tensor:
    """Of the negative log joint density of the model in the last layer, by automatic differentiation."""
    pair = build(data, hyper)
    outputs = len(params[f"b_{l}_loc"])

    def energy(theta: Tensor) -> Tensor:
        values = {name.removesuffix("_loc"): value for name, value in params.items()}
        values[f"W_{l}"] = theta[:-outputs].reshape(outputs, -1).mT
        values[f"b_{l}"] = theta[-outputs:]
        conditioned = poutine.condition(pair.model, data=values)
        return -poutine.trace(conditioned).get_trace(data.train).log_prob_sum()

    theta = torch.cat([params[f"W_{l}_loc"].mT.flatten(), params[f"b_{l}_loc"]])
    return torch.autograd.functional.hessian(energy, theta)


# ------------------------------------------------------------------------------------------------------------- exact
def test_it_is_the_posterior_of_linear_regression() -> None:
    data, hyper = numbers(), Hyper(hidden=(), prior_scale=SCALE, structure="full", retune=False)
    params = ridge(data)
    found = laplace(params, data, hyper)
    z = design(data)
    exact = torch.linalg.inv(z.mT @ z / SIGMA**2 + decay(SCALE))
    torch.testing.assert_close(covariance(found, 0), exact)
    # The importance weights of the guide are then all the same: the evidence.
    variance = z @ torch.linalg.inv(decay(SCALE)) @ z.mT + SIGMA**2 * torch.eye(40).double()
    evidence = dist.MultivariateNormal(torch.zeros(40).double(), variance).log_prob(data.train["y"])
    evidence = evidence + dist.LogNormal(-1.0, 1.0).log_prob(torch.tensor(SIGMA).double())
    for value in log_weights(data, hyper, params | found):
        torch.testing.assert_close(value, evidence)


def test_a_wrong_prior_is_caught() -> None:
    data, z = numbers(), design(numbers())
    params = ridge(data)
    right = Hyper(hidden=(), prior_scale=SCALE, structure="full", retune=False)
    wrong = replace(right, prior_scale=1.1 * SCALE)
    found = laplace(params, data, wrong)
    exact = torch.linalg.inv(z.mT @ z / SIGMA**2 + decay(SCALE))
    assert float(((covariance(found, 0) - exact) / exact).abs().max()) > 1e-3
    assert float(log_weights(data, right, params | found, num=50).std()) > 1e-3


def log_weights(data: Dataset, hyper: Hyper, params: dict[str, Tensor], num: int = 5) -> Tensor:
    pair, found = build(data, hyper), []
    assert pair.finish is not None
    torch.manual_seed(3)
    with pyro.get_param_store().scope(), torch.no_grad():
        for name, value in params.items():
            pyro.param(name, value)
        for _ in range(num):
            guide = poutine.trace(pair.finish.guide).get_trace(data.train)
            model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(data.train)
            found.append(model.log_prob_sum() - guide.log_prob_sum())
    return torch.stack(found)


@pytest.mark.parametrize("hidden", [(), (6, 5)], ids=str)
def test_for_classes_it_has_the_hessian_of_the_joint_density(hidden: tuple[int, ...]) -> None:
    data, hyper = classes(), Hyper(hidden=hidden, prior_scale=2.0, structure="full", retune=False)
    params = point(data, hyper)
    exact = hessian(data, hyper, params, len(hidden))
    full = covariance(laplace(params, data, hyper), len(hidden))
    torch.testing.assert_close(torch.linalg.inv(full), exact)
    diag = covariance(laplace(params, data, replace(hyper, structure="diag")), len(hidden))
    torch.testing.assert_close(torch.linalg.inv(diag), exact.diag().diag())


def test_the_kronecker_factors_are_exact_for_one_row() -> None:
    data, hyper = classes(1), Hyper(hidden=(5,), prior_scale=2.0, retune=False)
    params = point(data, hyper)
    exact = hessian(data, hyper, params, 1)
    exact[:15, 15:] = exact[15:, :15] = 0  # weights and biases are independent there
    torch.testing.assert_close(torch.linalg.inv(covariance(laplace(params, data, hyper), 1)), exact)


@pytest.mark.parametrize("hidden", [(), (1,)], ids=str)
def test_the_kronecker_factors_are_exact_for_a_number(hidden: tuple[int, ...]) -> None:
    data, hyper = numbers(), Hyper(hidden=hidden, prior_scale=2.0, retune=False)
    params, l = point(data, hyper), len(hidden)
    exact = hessian(data, hyper, params, l)
    exact[:-1, -1] = exact[-1, :-1] = 0
    torch.testing.assert_close(torch.linalg.inv(covariance(laplace(params, data, hyper), l)), exact)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_guide_has_the_density_of_that_normal(structure: Any) -> None:
    data, hyper = classes(), Hyper(hidden=(5,), structure=structure)
    params = point(data, hyper)
    found = laplace(params, data, hyper)
    mean = torch.cat([params["W_1_loc"].mT.flatten(), params["b_1_loc"]])
    normal = dist.MultivariateNormal(mean, covariance(found, 1))
    guide = build(data, hyper).finish.guide
    with pyro.get_param_store().scope():
        for name, value in (params | found).items():
            pyro.param(name, value)
        for _ in range(3):
            trace = poutine.trace(guide).get_trace(data.train)
            W, b = trace.nodes["W_1"]["value"], trace.nodes["b_1"]["value"]
            torch.testing.assert_close(trace.log_prob_sum(), normal.log_prob(torch.cat([W.mT.flatten(), b])))
            torch.testing.assert_close(trace.nodes["W_0"]["value"], params["W_0_loc"])


def test_a_retuned_prior_is_where_the_marginal_likelihood_is_flat() -> None:
    # MacKay's condition: the precision is the number of well-determined parameters over their squared size.
    data = numbers()
    params = ridge(data)
    leaves = {name: value.clone().requires_grad_() * 1.0 for name, value in params.items()}  # as a store may hold them
    found = laplace(leaves, data, Hyper(hidden=(), structure="full"))
    z = design(data)
    precision = torch.linalg.inv(covariance(found, 0)) - z.mT @ z / SIGMA**2
    delta = float(precision.diag().mean())
    torch.testing.assert_close(precision, delta * torch.eye(4).double(), atol=1e-4, rtol=0)
    size = float(params["W_0_loc"].square().sum() + params["b_0_loc"].square().sum())
    assert 4 - delta * float(covariance(found, 0).trace()) == pytest.approx(delta * size, rel=0.02)


# ---------------------------------------------------------------------------------------------------------- use of it
def test_a_plain_loop_and_the_runner_give_the_same_kind_of_posterior() -> None:
    data = classes(40, torch.float32)
    hyper = Hyper(hidden=(6,), structure="full")
    pair = build(data, hyper)
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        loop = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        losses = [loop.step(data.train) for _ in range(100)]
        trained = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
        mine = zoo.Posterior.from_store(pair, data, losses=losses)
    computed = laplace(trained, data, hyper)
    torch.testing.assert_close(mine.params["last_scale_tril"], computed["last_scale_tril"], atol=1e-5, rtol=1e-4)
    assert set(trained) == set(zoo.fit(METHOD, data, hyper=hyper, steps=1, compile=False).params) - set(computed)
    draws = mine.draws(500)
    assert torch.equal(draws["W_0"][0], draws["W_0"][1])
    sd = computed["last_scale_tril"].square().sum(1).sqrt()[-3:]
    assert draws["b_1"].std(0).tolist() == pytest.approx(sd.tolist(), rel=0.2)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="every layer needs at least one unit"):
        build(classes(), Hyper(hidden=(0,)))
    with pytest.raises(DataError, match=r"has 6,003 weights and biases.*use structure='kron'"):
        build(classes(), Hyper(hidden=(2_000,), structure="full"))
    build(classes(), Hyper(hidden=(2_000,)))


def test_a_missing_library_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "laplace", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pyro-zoo\[laplace\]'"):
        zoo.fit(METHOD, classes(dtype=torch.float32), steps=10**8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_summary_and_figures_tell_of_the_covariance(structure: Any) -> None:
    hyper = Hyper(hidden=(5,), structure=structure)
    posterior = zoo.fit(METHOD, classes(dtype=torch.float32), hyper=hyper, steps=2, compile=False)
    variance = covariance({name: value.double() for name, value in posterior.params.items()}, 1).diag()
    W, b = deviations(posterior)
    torch.testing.assert_close(torch.cat([W.mT.flatten(), b]).square(), variance)
    found = summary(posterior)
    assert found["elements of the last layer"] == 18
    prior = torch.tensor([8 / math.sqrt(5)] * 15 + [1.0]).square()[[*range(15), 15, 15, 15]]
    assert found["effective number of elements"] == pytest.approx(18 - float((variance / prior).sum()), rel=1e-5)
    for figure in figures(posterior):
        page = Figure()
        FigureCanvasAgg(page)
        figure.paint(page.subplots(1, 1, squeeze=False))
        page.canvas.draw()


def test_claims_are_measured() -> None:
    (measure,) = {claim.measure for claim in METHOD.claims}
    values = measure(0, True)
    for claim in METHOD.claims:
        assert all({a.key, a.below or a.above} <= set(values) for a in claim.acceptance)
    assert all(v == v for v in values.values())
