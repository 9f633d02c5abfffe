"""Linear decoders are probabilistic PCA, whose posterior and marginal likelihood are exact; the rest is bookkeeping."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor
from typer.testing import CliRunner

import zoo
from zoo.cli import app
from zoo.errors import DataError
from zoo.inference.program import pyro_world
from zoo.inference.svi import Trainer
from zoo.leaderboard import _takes
from zoo.models import vae
from zoo.types import Dataset, Recipe

FEATURES, LATENT, NOISE, ROWS = 4, 2, 0.5, 40
AXES = torch.linalg.qr(torch.randn(FEATURES, LATENT, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[
    0
]
LOADINGS = AXES.T * torch.tensor([[1.5], [0.7]], dtype=torch.float64)  # orthogonal, so the posterior is independent
CENTRE = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
PRECISION = 1 + (LOADINGS**2).sum(1) / NOISE**2


def rows(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64) + CENTRE
    return {"x": x, "index": torch.arange(ROWS)}


DATA = Dataset(name="made-up", task="density", train=rows(0), test=rows(1))


def exact(x: Tensor) -> Tensor:
    covariance = LOADINGS.T @ LOADINGS + NOISE**2 * torch.eye(FEATURES, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(CENTRE, covariance).log_prob(x)


def pca(*, widen: float = 1.0, loadings: float = 1.0) -> zoo.Posterior:
    """The method's own pair at the parameters of probabilistic PCA, its encoder at the exact posterior."""
    hyper = vae.Hyper(num_latent=LATENT, hidden=(), likelihood="normal", least_scale=0.01)
    with pyro_world(dtype=torch.float64), pyro.get_param_store().scope():
        pair = vae.build(DATA, hyper)
        pair.model(DATA.train)
        pair.guide(DATA.train)  # type: ignore[misc]
        store = pyro.get_param_store()
        to_mean = LOADINGS.T / NOISE**2 / PRECISION
        raw = torch.expm1(widen * PRECISION**-0.5 - 1e-4).log()  # inverse of the softplus
        store["decoder_0_weight"], store["decoder_0_bias"] = loadings * LOADINGS, CENTRE.clone()
        store["decoder_scale"] = torch.full((FEATURES,), NOISE, dtype=torch.float64)
        store["encoder_0_weight"] = torch.cat([to_mean, torch.zeros(FEATURES, LATENT, dtype=torch.float64)], 1)
        store["encoder_0_bias"] = torch.cat([-CENTRE @ to_mean, raw])
        found = zoo.Posterior.from_store(pair, DATA)
    found.method, found.hyper = vae.METHOD, hyper
    return found


# ------------------------------------------------------------------------------------------------- exact checks
def test_a_linear_decoder_is_probabilistic_pca() -> None:
    posterior = pca()
    for batch in (DATA.train, DATA.test):
        weights = posterior.predict(batch, 6).log_prob["x"]
        assert torch.allclose(weights, exact(batch["x"]).expand(6, -1), atol=1e-6)
    assert torch.allclose(posterior.log_weights(5), exact(DATA.train["x"]).sum().expand(5), atol=1e-4)


def test_a_wrong_model_is_noticed() -> None:
    weights = pca(loadings=1.2).predict(DATA.test, 6).log_prob["x"]
    assert float((weights - exact(DATA.test["x"])).abs().max()) > 0.1


def test_the_bound_is_below_rises_and_misses_by_the_divergence() -> None:
    posterior, truth = pca(widen=1.4), float(exact(DATA.test["x"]).mean())
    bounds = [
        torch.stack([
            vae.marginal_log_likelihood(posterior, DATA.test, num_samples=num, seed=s).mean() for s in range(20)
        ])
        for num in (1, 10, 100)
    ]
    means, errors = [float(b.mean()) for b in bounds], [float(b.std()) / 20**0.5 for b in bounds]
    assert means[0] < means[1] < means[2] < truth + 3 * errors[2]
    gap = LATENT * (0.5 * (1.4**2 - 1) - math.log(1.4))
    assert truth - means[0] == pytest.approx(gap, abs=4 * errors[0])


def test_the_stated_divergence_is_that_of_draws() -> None:
    posterior = pca(widen=1.4)
    loc, scale = vae.codes(posterior)
    z = posterior.draws(20_000)["z"]
    q, p = torch.distributions.Normal(loc, scale), torch.distributions.Normal(0.0, 1.0)
    sampled = (q.log_prob(z) - p.log_prob(z)).sum(-1).mean()
    assert vae.summary(posterior)["KL of a row, nats"] == pytest.approx(float(sampled), rel=0.01)


def test_the_analytic_objective_is_the_mean_of_the_sampled_one() -> None:
    posterior = pca(widen=1.4)
    elbo = zoo.inference.objectives.to_pyro(posterior.pair.objective)
    with posterior.runs.bound():
        torch.manual_seed(0)
        losses = torch.tensor([elbo.loss(posterior.pair.model, posterior.pair.guide, DATA.train) for _ in range(400)])
    weights = posterior.log_weights(4_000)
    error = math.hypot(float(losses.std()) / 20, float(weights.std()) / 4_000**0.5)
    assert float(losses.mean()) == pytest.approx(-float(weights.mean()), abs=4 * error)


def test_the_vamp_prior_is_the_encoders_average_over_pseudo_inputs() -> None:
    hyper = vae.Hyper(num_latent=LATENT, hidden=(5,), prior="vamp", num_pseudo=3, likelihood="normal")
    with pyro_world(dtype=torch.float64), pyro.get_param_store().scope():
        torch.manual_seed(0)
        pair = vae.build(DATA, hyper)
        guide = poutine.trace(pair.guide).get_trace(DATA.train)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(DATA.train)
        inputs = pyro.param("pseudo_inputs").detach()
        codes = poutine.trace(pair.guide).get_trace({"x": inputs, "index": torch.arange(3)}).nodes["z"]["fn"].base_dist
        z = guide.nodes["z"]["value"]
        parts = torch.distributions.Normal(codes.loc, codes.scale).log_prob(z[:, None]).sum(-1)
        assert torch.allclose(model.nodes["z"]["fn"].log_prob(z), parts.logsumexp(1) - math.log(3))
        assert all(any(torch.equal(u, x) for x in DATA.train["x"]) for u in inputs)  # they begin at rows


def test_the_vamp_prior_compiles() -> None:
    hyper = replace(vae.METHOD.smoke, prior="vamp", num_pseudo=3, likelihood="normal")
    batch = {k: v.float() if v.is_floating_point() else v for k, v in DATA.train.items()}
    data = replace(DATA, train=batch)
    recipe = Recipe(steps=20, batch_size=8)
    compiled, eager = (
        Trainer(vae.build(data, hyper), batch, whole=frozenset(), recipe=recipe, compile=c) for c in (True, False)
    )
    assert compiled.program.compiled, compiled.program.reason
    assert torch.allclose(compiled.run(20), eager.run(20), rtol=1e-4)


# --------------------------------------------------------------------------------------------------- bookkeeping
def test_hyper_parameters_out_of_range_are_refused() -> None:
    for wrong in ({"num_latent": 0}, {"hidden": (3, 0)}, {"least_scale": 0.0}, {"num_pseudo": 0}):
        with pytest.raises(DataError, match="allowed: 1 or more each, and a positive number"):
            vae.build(DATA, vae.Hyper(**wrong))
    with pytest.raises(DataError, match="use likelihood='normal'"):
        vae.build(DATA, vae.Hyper(likelihood="bernoulli"))


def few_images(rows: int = 60) -> Dataset:
    whole = zoo.datasets.load("mnist")
    cut = {k: v[:rows] for k, v in whole.train.items()}
    return replace(whole, train=cut, test={k: v[:rows] for k, v in whole.test.items()}, validation=None, origin="user")


@pytest.fixture(scope="module")
def images() -> zoo.Posterior:
    hyper = replace(vae.METHOD.smoke, prior="vamp", num_pseudo=30)
    return zoo.fit("vae", few_images(), hyper=hyper, steps=30, batch_size=20, compile=False)


def test_labelled_images_are_taken_and_scored_as_a_density(images: zoo.Posterior) -> None:
    data = images.data
    task = zoo.tasks.of(images.method, data)
    assert task.name == "density"
    scores = task.score(images.predict(data.test, 10, kinds=task.reads), data.test, data)
    assert 0 < scores["nll"] < 784 * math.log(2) + 50
    found = images.predict_table({"x": np.zeros((2, 28, 28), dtype=np.uint8), "y": [3, 4]}, keep=["y"])
    assert list(found) == ["row", "y", "log_density"]
    assert not _takes("vae", "classification")
    other = zoo.fit("map_network", data, steps=3, compile=False)
    with pytest.raises(DataError, match="only fits that predict the same can be compared"):
        zoo.compare([images, other])


def painted(posterior: zoo.Posterior) -> set[str]:
    for figure in vae.figures(posterior):
        shown, axes = plt.subplots(figure.rows, figure.columns, squeeze=False)
        figure.paint(axes)
        shown.canvas.draw()
        plt.close(shown)
        assert figure.alt.endswith(".")
    return {f.name for f in vae.figures(posterior)}


def test_figures_of_images_and_tables(images: zoo.Posterior) -> None:
    common = {"active_latents", "latent_map"}
    assert painted(images) == {"reconstructions", "prior_draws", "pseudo_inputs", *common}
    assert painted(pca()) == {"explained", *common}


def test_active_latents_are_those_whose_mean_moves() -> None:
    posterior = pca()
    loc, _ = vae.codes(posterior)
    assert torch.allclose(loc, (DATA.train["x"] - CENTRE) @ LOADINGS.T / NOISE**2 / PRECISION)
    assert torch.allclose(vae.active_units(posterior), loc.var(0))
    assert vae.summary(posterior)["active latents"] == "2 of 2"


def test_a_table_without_a_target_is_fitted_from_the_command_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=50), "b": rng.normal(size=50), "kind": ["u", "v", "u", "u", "v"] * 10})
    frame.to_csv(tmp_path / "mine.csv", index=False)
    options = ["--hyper", "hidden=8", "--hyper", "num_latent=2", "--steps", "20", "--no-compile", "--no-report"]
    arguments = ["--json", "fit", "vae", "--data", str(tmp_path / "mine.csv"), "--out", str(tmp_path / "fit"), *options]
    result: Any = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["data"] == "mine"
    loaded = zoo.load(tmp_path / "fit")
    assert loaded.data.task == "density"
    assert loaded.data.coords["feature"] == ("a", "b", "kind=v")
    frame.iloc[0, 0] = 100.0
    frame.to_csv(tmp_path / "new.csv", index=False)
    result = CliRunner().invoke(app, ["--json", "predict", str(tmp_path / "fit"), "--data", str(tmp_path / "new.csv")])
    assert result.exit_code == 0, result.output
    table = pd.DataFrame(json.loads(result.stdout)["predictions"])
    assert table["log_density"].idxmin() == 0  # the row from elsewhere
    assert json.loads(result.stdout)["scores"]["nll"] == pytest.approx(-table["log_density"].mean())


# --------------------------------------------------------------------------------------------------------- claims
@pytest.mark.parametrize("number", range(len(vae.CLAIMS)))
def test_claims_measure_what_they_accept(number: int) -> None:
    claim = vae.CLAIMS[number]
    found = claim.measure(0, True)
    assert {a.key for a in claim.acceptance} | {a.above for a in claim.acceptance if a.above} <= set(found)
    assert all(math.isfinite(v) for v in found.values())
