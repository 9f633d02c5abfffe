"""A guide that is a point until its covariance is computed: the posterior is the Laplace approximation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoLaplaceApproximation, AutoNormal
from torch import Tensor

import zoo
from zoo.diagnostics import refits
from zoo.errors import NonFiniteError, PairError
from zoo.inference import laplace
from zoo.types import Batch, Elbo, Pair

NUM = 30
OPTIONS: dict[str, Any] = {"steps": 400, "learning_rate": 0.05, "compile": False, "schedule": "cosine"}


def batch() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(NUM, 2, generator=rng)
    x[:, 1] += 0.8 * x[:, 0]  # so that the posterior has a correlation
    y = x @ torch.tensor([1.0, -2.0]) + 0.7 * torch.randn(NUM, generator=rng)
    return {"x": x, "y": y, "index": torch.arange(NUM)}


def linear(batch: Batch) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("datum", NUM, subsample=batch["index"]):
        pyro.sample("y", dist.Normal((w * batch["x"]).sum(-1), 0.7), obs=batch.get("y"))


def exact() -> tuple[Tensor, Tensor]:
    x, y = batch()["x"].double(), batch()["y"].double()
    covariance = torch.linalg.inv(x.mT @ x / 0.49 + torch.eye(2, dtype=torch.float64) / 9)
    return covariance @ x.mT @ y / 0.49, covariance


def covariance_of(posterior: zoo.Posterior) -> Tensor:
    scale, tril = (posterior.params[f"AutoLaplaceApproximation.{part}"].double() for part in ("scale", "scale_tril"))
    factor = scale[:, None] * tril
    return factor @ factor.mT


def test_the_posterior_of_a_linear_model_is_exact(tmp_path: Path) -> None:
    mean, covariance = exact()
    posterior = zoo.fit(Pair(linear, AutoLaplaceApproximation(linear)), batch(), **OPTIONS)
    torch.testing.assert_close(covariance_of(posterior), covariance, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(posterior.params["AutoLaplaceApproximation.loc"].double(), mean, rtol=0.0, atol=1e-3)
    draws = posterior.draws(20_000)["w"].double()
    torch.testing.assert_close(torch.cov(draws.mT), covariance, rtol=0.05, atol=0.0)
    assert float(posterior.log_weights(100).std()) < 1e-3  # the guide is the posterior
    assert posterior.predict(n=3).samples["y"].shape == (3, NUM)
    posterior.save(tmp_path / "p")
    loaded = zoo.load(tmp_path / "p", pair=Pair(linear, AutoLaplaceApproximation(linear)))
    assert torch.equal(loaded.draws(5)["w"], posterior.draws(5)["w"])


def test_mini_batches_and_a_loop_of_ones_own_end_with_it_too() -> None:
    _, covariance = exact()
    few = zoo.fit(Pair(linear, AutoLaplaceApproximation(linear)), batch(), batch_size=10, **OPTIONS)
    torch.testing.assert_close(covariance_of(few), covariance, rtol=1e-4, atol=1e-7)
    guide = AutoLaplaceApproximation(linear)
    with pyro.get_param_store().scope():
        loop = SVI(linear, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(200):
            loop.step(batch())
        own = zoo.Posterior.from_store(Pair(linear, guide), batch())
    torch.testing.assert_close(covariance_of(own), covariance, rtol=1e-4, atol=1e-7)


def test_plates_of_a_fixed_size_with_latents_of_their_own_and_a_support(tmp_path: Path) -> None:
    """A scale enters on the log scale, with its Jacobian: the mode and curvature of log tau are in closed form."""
    y = torch.tensor([0.5, -1.5, 2.0, 0.3, -0.7])

    def model(batch: Batch) -> None:
        with pyro.plate("unit", 5):
            tau = pyro.sample("tau", dist.Gamma(3.0, 2.0))
            pyro.sample("y", dist.Normal(batch["y"] * 0, tau.rsqrt()), obs=batch.get("y"))

    def pair() -> Pair:
        return Pair(model, AutoLaplaceApproximation(model))

    posterior = zoo.fit(pair(), {"y": y, "index": torch.arange(5)}, **OPTIONS)
    # p(tau | y) is Gamma(3.5, 2 + y^2 / 2); in t = log tau its mode is log(3.5 / rate), its curvature 3.5.
    rate = 2 + y.square() / 2
    params = posterior.params
    torch.testing.assert_close(params["AutoLaplaceApproximation.loc"], (3.5 / rate).log(), rtol=0.0, atol=2e-3)
    torch.testing.assert_close(params["AutoLaplaceApproximation.scale"], torch.full((5,), 3.5**-0.5), rtol=5e-3, atol=0)
    posterior.save(tmp_path / "p")
    loaded = zoo.load(tmp_path / "p", pair=pair())
    assert torch.equal(loaded.draws(4)["tau"], posterior.draws(4)["tau"])


def test_enumerated_latents_are_summed_out_of_the_curvature() -> None:
    """Labels that say nothing: the curvature is that of the marginal, not of one assignment."""

    @config_enumerate
    def model(batch: Batch) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", NUM, subsample=batch["index"]):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(loc + 0.0 * z, 0.7), obs=batch.get("y"))

    guide = AutoLaplaceApproximation(poutine.block(model, expose=["loc"]))
    posterior = zoo.fit(Pair(model, guide, Elbo(estimator="enum", max_plate_nesting=1)), batch(), **OPTIONS)
    expected = (NUM / 0.49 + 1) ** -0.5
    assert float(posterior.params["AutoLaplaceApproximation.scale"]) == pytest.approx(expected, rel=1e-4)


def test_refits_without_rows_have_the_curvature_of_the_rows_that_are_left() -> None:
    posterior = zoo.fit(Pair(linear, AutoLaplaceApproximation(linear)), batch(), **OPTIONS | {"steps": 600})
    found = refits.cross_validate(posterior, folds=3, num_draws=4_000, seed=0)
    # By normal theory, fold by fold.
    import numpy as np

    fold = np.random.default_rng(0).permutation(np.arange(NUM) % 3)
    x, y = batch()["x"].double(), batch()["y"].double()
    for i in range(3):
        kept, left = torch.as_tensor(fold != i), torch.as_tensor(fold == i)
        cov = torch.linalg.inv(x[kept].mT @ x[kept] / 0.49 + torch.eye(2, dtype=torch.float64) / 9)
        mean = cov @ x[kept].mT @ y[kept] / 0.49
        variance = 0.49 + (x[left] @ cov * x[left]).sum(-1)
        due = dist.Normal(x[left] @ mean, variance.sqrt()).log_prob(y[left])
        torch.testing.assert_close(torch.as_tensor(found)[left], due, rtol=0.0, atol=0.1)


def test_what_has_no_laplace_approximation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = AutoGuideList(linear)
    parts.append(AutoLaplaceApproximation(poutine.block(linear, expose=["w"])))
    with pytest.raises(PairError, match="AutoGuideList, holds an AutoLaplaceApproximation"):
        zoo.fit(Pair(linear, parts), batch(), **OPTIONS)
    inner = AutoLaplaceApproximation(linear)
    with pytest.raises(PairError, match="the guide, a function, holds an AutoLaplaceApproximation"):
        zoo.fit(Pair(linear, lambda batch: inner(batch)), batch(), **OPTIONS)

    def flat(batch: Batch) -> None:
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        pyro.sample("y", dist.Normal(w[0], 1.0), obs=batch["y"][0])

    start = pyro.infer.autoguide.init_to_value(values={"w": torch.zeros(2)})
    with pytest.raises(NonFiniteError, match="not positive definite"):
        zoo.fit(Pair(flat, AutoLaplaceApproximation(flat, init_loc_fn=start)), batch(), **OPTIONS | {"steps": 5})
    monkeypatch.setattr(laplace, "_MOST", 1)
    with pytest.raises(PairError, match="Hessian of 2 latent numbers"):
        zoo.fit(Pair(linear, AutoLaplaceApproximation(linear)), batch(), **OPTIONS | {"steps": 10**8})


def test_a_guide_that_stays_a_point_says_so_and_others_are_left_alone(recwarn: pytest.WarningsRecorder) -> None:
    spread, point = Pair(linear, AutoNormal(linear)), Pair(linear, AutoDelta(linear))
    assert laplace.with_laplace(spread) is spread
    assert laplace.with_laplace(point) is point
    few = OPTIONS | {"steps": 2}
    assert "point_estimates" not in zoo.fit(spread, batch(), **few).info
    assert not [w for w in recwarn if "point" in str(w.message)]
    with pytest.warns(RuntimeWarning, match="holds w at one point: its draws are a point estimate"):
        assert zoo.fit(point, batch(), **few).info["point_estimates"] == ["w"]
