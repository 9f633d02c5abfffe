"""Latents of rows under an amortised guide: probabilistic PCA and a mixture, whose marginal likelihoods are exact."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import zoo
from zoo import tasks
from zoo.diagnostics import diagnose
from zoo.diagnostics.inference import pareto_k_rows
from zoo.diagnostics.predictive import scores
from zoo.errors import DataError, PairError
from zoo.inference.marginal import amortised, marginal_log_likelihood
from zoo.types import Dataset, Elbo, Pair

FEATURES, LATENT, NOISE = 3, 2, 0.5
LOADINGS = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]], dtype=torch.float64)
CENTRE = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)


def rows(num: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num, LATENT, generator=generator, dtype=torch.float64)
    noise = torch.randn(num, FEATURES, generator=generator, dtype=torch.float64)
    return {"x": z @ LOADINGS + CENTRE + NOISE * noise, "index": torch.arange(num)}


DATA = Dataset(name="made-up", task="density", train=rows(60, 0), test=rows(25, 1))


def exact(batch: dict[str, Tensor]) -> Tensor:
    """Log density of every row: N(b, W W' + s^2 I)."""
    covariance = LOADINGS.T @ LOADINGS + NOISE**2 * torch.eye(FEATURES, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(CENTRE, covariance).log_prob(batch["x"])


def pca(*, widen: float = 1.0, mark: bool = True, num: int = 60) -> Pair:
    """Probabilistic PCA with its exact posterior as guide, its standard deviations times ``widen``."""
    precision = torch.eye(LATENT, dtype=torch.float64) + LOADINGS @ LOADINGS.T / NOISE**2
    scale = torch.linalg.cholesky(torch.linalg.inv(precision))

    def model(batch: Any) -> None:
        loadings = pyro.param("loadings", lambda: LOADINGS.clone())
        with pyro.plate("datum", num, subsample=batch["index"]):
            z = pyro.sample("z", dist.Normal(batch["x"].new_zeros(LATENT), 1.0).to_event(1))
            x = dist.Normal(z @ loadings + CENTRE, NOISE).to_event(1)
            pyro.sample("x", x, obs=batch["x"])

    def guide(batch: Any) -> None:
        loc = (batch["x"] - CENTRE) @ LOADINGS.T @ torch.linalg.inv(precision) / NOISE**2
        with pyro.plate("datum", num, subsample=batch["index"]):
            factor = pyro.param("widen", lambda: torch.tensor(widen, dtype=torch.float64)) * scale
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor), infer={"amortised": True} if mark else {})

    return Pair(model, guide)


def fitted(pair: Pair, data: Dataset = DATA) -> zoo.Posterior:
    with pyro.get_param_store().scope():
        pair.model(data.train)
        pair.guide(data.train)  # type: ignore[misc]
        return zoo.Posterior.from_store(pair, data)


@pytest.fixture(scope="module")
def right() -> zoo.Posterior:
    return fitted(pca())


@pytest.fixture(scope="module")
def wide() -> zoo.Posterior:
    return fitted(pca(widen=1.3))


def test_an_exact_guide_has_the_marginal_likelihood_as_its_weight(right: zoo.Posterior) -> None:
    assert amortised(right) == ("z",)
    for batch in (DATA.train, DATA.test):
        found = right.predict(batch, 7)
        assert found.samples["x"].shape == (7, len(batch["x"]), FEATURES)
        assert torch.allclose(found.log_prob["x"], exact(batch).expand(7, -1))
        one = marginal_log_likelihood(right, batch, num_samples=1)
        assert torch.allclose(one, exact(batch))


def test_latents_are_drawn_for_the_rows_of_the_batch(right: zoo.Posterior) -> None:
    assert right.draws(4)["z"].shape == (4, 60, LATENT)
    z = right.draws(4_000, batch=DATA.test)["z"]
    precision = torch.eye(LATENT, dtype=torch.float64) + LOADINGS @ LOADINGS.T / NOISE**2
    mean = (DATA.test["x"] - CENTRE) @ LOADINGS.T @ torch.linalg.inv(precision) / NOISE**2
    assert z.shape == (4_000, 25, LATENT)
    assert float((z.mean(0) - mean).abs().max()) < 5 * float(torch.linalg.inv(precision).diag().max() / 4_000) ** 0.5


def test_the_bound_rises_with_the_number_of_draws_and_stays_below(wide: zoo.Posterior) -> None:
    truth = float(exact(DATA.test).mean())
    bounds = {}
    for num in (1, 5, 50):
        runs = [float(marginal_log_likelihood(wide, DATA.test, num_samples=num, seed=s).mean()) for s in range(40)]
        bounds[num] = torch.tensor(runs)
    means = [float(b.mean()) for b in bounds.values()]
    assert means == sorted(means)
    assert means[-1] < truth + 3 * float(bounds[50].std()) / 40**0.5
    # KL of a guide whose standard deviations are 1.3 times the posterior's, in two dimensions
    gap = LATENT * (0.5 * (1.3**2 - 1) - math.log(1.3))
    assert truth - means[0] == pytest.approx(gap, abs=4 * float(bounds[1].std()) / 40**0.5)
    many = marginal_log_likelihood(wide, DATA.test, num_samples=4_000)
    assert float((many - exact(DATA.test)).abs().max()) < 0.1


def test_blocks_and_rows_do_not_change_the_estimate(wide: zoo.Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = marginal_log_likelihood(wide, DATA.test, num_samples=2_000)
    monkeypatch.setattr("zoo.inference.marginal._ROWS", 10)
    pieces = marginal_log_likelihood(wide, DATA.test, num_samples=2_000, max_bytes=200_000)
    assert pieces.shape == (25,)
    assert not torch.equal(pieces, whole)
    assert float((pieces - whole).abs().max()) < 0.1
    with pytest.raises(DataError, match="num_samples is 0"):
        marginal_log_likelihood(wide, num_samples=0)


def test_without_the_mark_the_density_has_seen_the_row() -> None:
    blind = fitted(pca(mark=False))
    assert amortised(blind) == ()
    log_prob = blind.predict(DATA.test, 200).log_prob["x"]
    average = log_prob.logsumexp(0) - math.log(200)
    assert bool((average.mean() > exact(DATA.test).mean() + 0.5).all())


def test_the_score_is_the_importance_weighted_bound(right: zoo.Posterior) -> None:
    task = tasks.of(None, DATA)
    assert task is not None
    prediction = right.predict(DATA.test, 20, kinds=task.reads)
    assert not prediction.samples
    assert task.score(prediction, DATA.test, DATA)["nll"] == pytest.approx(-float(exact(DATA.test).mean()))
    with pytest.raises(PairError, match="no log densities at site 'x'"):
        task.score(right.predict(DATA.test, 2, kinds=["means"]), DATA.test, DATA)
    with pytest.raises(DataError, match="kinds is"):
        right.predict(DATA.test, 2, kinds=["mean"])


def test_checks_judge_rows_and_refuse_what_mixes_them(right: zoo.Posterior, wide: zoo.Posterior) -> None:
    found = diagnose(right, num_draws=200)
    assert not [c.name for c in found.checks if c.error]
    for name in ("pareto_k", "moment_bounds", "power_scaling"):
        assert "judged one by one" in found[name].explanation
    assert "row left out" in found["loo"].explanation
    assert pareto_k_rows(wide, num_draws=500).verdict == "pass"
    assert pareto_k_rows(fitted(pca(widen=0.3)), num_draws=500).verdict == "fail"


def test_held_out_rows_are_as_probable_as_the_models_own() -> None:
    verdicts = []
    for seed in range(20):
        data = replace(DATA, test=rows(200, 100 + seed))
        verdicts.append(scores(fitted(pca(), data), num_draws=20, seed=seed).verdict)
    assert "fail" not in verdicts
    assert verdicts.count("pass") >= 16
    narrow = {**DATA.test, "x": CENTRE + 0.3 * (DATA.test["x"] - CENTRE)}
    wide = {**DATA.test, "x": CENTRE + 2 * (DATA.test["x"] - CENTRE)}
    for batch, words in ((narrow, "wider than the rows are"), (wide, "surer of what rows look like")):
        found = scores(fitted(pca(), replace(DATA, test=batch)), num_draws=20)
        assert found.verdict == "fail"
        assert words in found.explanation


def test_arviz_names_the_rows_and_holds_the_weights(right: zoo.Posterior) -> None:
    found = right.to_arviz(num_draws=30)
    assert found.posterior["z"].dims == ("chain", "draw", "datum", "z_dim_1")
    assert found.log_likelihood["x"].dims == ("chain", "draw", "datum")
    assert torch.allclose(torch.tensor(found.log_likelihood["x"].values[0]), exact(DATA.train).expand(30, -1))
    few = right.to_arviz(num_draws=30, max_elements=30)
    assert few.posterior["z"].shape == (1, 30, 10, LATENT)
    kept = few.posterior["datum"].values
    assert torch.allclose(torch.tensor(few.log_likelihood["x"].values[0, 0]), exact(DATA.train)[torch.tensor(kept)])


def test_many_rows_leave_the_number_of_draws_alone() -> None:
    data = Dataset(name="many", task="density", train=rows(4_000, 2))
    found = fitted(pca(num=4_000), data).to_arviz(num_draws=3_000, max_elements=300)
    assert found.posterior.sizes["draw"] == 3_000
    assert found.posterior.sizes["datum"] == 100


def test_enumerated_latents_are_summed_out_of_the_weight() -> None:
    locs, share = torch.tensor([-2.0, 1.0], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
    x = torch.linspace(-4, 3, 20, dtype=torch.float64)[:, None]
    data = Dataset(name="mixture", task="density", train={"x": x, "index": torch.arange(20)})

    def model(batch: Any) -> None:
        with pyro.plate("datum", 20, subsample=batch["index"]):
            k = pyro.sample("k", dist.Categorical(share), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(locs[k], 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 0.5).to_event(1), obs=batch["x"])

    def guide(batch: Any) -> None:
        scale = pyro.param("scale", lambda: torch.tensor(0.7, dtype=torch.float64))
        with pyro.plate("datum", 20, subsample=batch["index"]):
            pyro.sample("z", dist.Normal(0.8 * batch["x"][:, 0], scale), infer={"amortised": True})

    fit = fitted(Pair(model, guide, Elbo(estimator="enum", max_plate_nesting=1)), data)
    parts = torch.distributions.Normal(locs, (1 + 0.5**2) ** 0.5)
    truth = (parts.log_prob(x) + share.log()).logsumexp(-1)
    assert float((marginal_log_likelihood(fit, num_samples=600) - truth).abs().max()) < 0.15
