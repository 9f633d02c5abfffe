"""Checks that fit again: what they find is known, and one compiled graph serves every refit."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

import zoo
from zoo.diagnostics import diagnose, known, refits
from zoo.diagnostics.check import NotApplicable
from zoo.diagnostics.uniformity import ecdf_band, ecdf_p_value
from zoo.errors import DataError, PairError
from zoo.inference import program
from zoo.types import Pair, Recipe

pytestmark = pytest.mark.filterwarnings("ignore")


def model(batch):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("datum", 20, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))


def guide(batch):
    loc = pyro.param("loc", lambda: torch.zeros(()))
    scale = pyro.param("scale", lambda: torch.ones(()), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


@pytest.fixture(scope="module")
def batch():
    y = 0.5 + torch.randn(20, generator=torch.Generator().manual_seed(0))
    return {"index": torch.arange(20), "y": y}


@pytest.fixture(scope="module")
def fitted(batch):
    return zoo.fit(Pair(model, guide), batch, steps=500, learning_rate=0.05, schedule="cosine")


# ------------------------------------------------------------------------------------------------------ uniform ranks
def test_the_test_of_ranks_keeps_its_level_and_its_band():
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 80, (1_000, 100))
    p_values = np.array([ecdf_p_value(r, 79) for r in ranks])
    for level in (0.01, 0.05, 0.5):
        assert (p_values < level).mean() <= level + 3 * math.sqrt(level * (1 - level) / 1_000)
    assert (p_values < 0.5).mean() > 0.4
    low, high = ecdf_band(100, 79)
    shares = (ranks[:, :, None] < np.arange(1, 80)).mean(1)
    outside = ((shares < low - 1e-9) | (shares > high + 1e-9)).any(1)
    assert 0.02 < outside.mean() < 0.075


@pytest.mark.parametrize("wrong", [lambda u: u**1.5, lambda u: 0.5 + 0.6 * (u - 0.5), lambda u: np.round(u)])
def test_ranks_that_are_not_uniform_are_found(wrong):
    u = np.random.default_rng(1).random(100)
    assert ecdf_p_value(np.minimum((80 * wrong(u)).astype(int), 79), 79) < 0.01


# --------------------------------------------------------------------------------------------------- simulated data
def test_refits_recover_simulated_truths_and_share_one_graph(fitted, monkeypatch):
    compiled = []
    real = program.compile_function

    def counting(*args, **kwargs):
        compiled.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr("zoo.inference.svi.compile_function", counting)
    events = []
    shared = refits.Refits(fitted, num=60, progress=events.append)
    calibration = refits.simulation_calibration(fitted, refits=shared)
    coverage = refits.interval_coverage(fitted, refits=shared)
    assert (calibration.verdict, coverage.verdict) == ("pass", "pass")
    assert len(compiled) == 1
    assert [e.done for e in events] == list(range(61))
    assert set(shared.ranks.ranks) == {"mu", "log likelihood"}


def test_a_refit_is_the_fit_that_the_runner_makes(fitted, batch):
    refitter = refits._Refitter(fitted)
    other = {**batch, "y": batch["y"] + 1}
    refitter.fit(batch, seed=5)
    again = refitter.fit(other, seed=7)
    direct = zoo.fit(Pair(model, guide), other, steps=500, learning_rate=0.05, schedule="cosine", seed=7)
    for name, value in direct.params.items():
        torch.testing.assert_close(again.params[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="as before"):
        refitter.fit({**batch, "y": torch.zeros(3)}, seed=0)


@pytest.mark.parametrize(
    ("options", "word"), [({"factor": 0.5}, "narrow"), ({"factor": 2.0}, "wide"), ({"shift": 1.0}, "too high")]
)
def test_wrong_guides_are_caught_and_described(options, word):
    fit = known.normal(0, rows=5, **options)
    shared = refits.Refits(fit, num=100)
    check = refits.simulation_calibration(fit, refits=shared)
    assert check.verdict == "fail"
    assert word in check.explanation or "mu" not in check.value["of"]
    if "factor" in options:
        coverage = refits.interval_coverage(fit, refits=shared)
        assert coverage.verdict == "fail"
        assert f"too {word}" in coverage.explanation


def test_a_guide_that_ignores_the_data_is_caught_by_the_likelihood():
    """The prior itself ranks uniformly in every parameter; only the log likelihood sees it."""
    fit = known.normal(0, rows=5)

    def prior(batch):
        pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))

    ignorant = known.variational(fit.pair.model, prior, fit.data)
    check = refits.simulation_calibration(ignorant)
    assert check.verdict == "fail"
    assert check.value["of"] == "log likelihood"


def test_a_wrong_likelihood_fails_on_the_data_and_not_on_simulated_ones():
    diagnosis = diagnose(known.normal(3, noise=3.0), checks=["simulation_calibration", "predictive_check"])
    assert diagnosis["simulation_calibration"].verdict == "pass"
    assert diagnosis["predictive_check"].verdict == "fail"


def test_chains_are_refitted_by_the_sampler(batch):
    fit = zoo.fit(Pair(model), batch, engine="nuts", chains=2, draws=200, tune=200)
    check = refits.simulation_calibration(fit, refits=refits.Refits(fit, num=10))
    assert check.verdict == "pass"

    def wrong(batch):  # the density is that of twice as many data as are simulated
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", 20, subsample=batch["index"]), pyro.poutine.scale(scale=6.0):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    fit = zoo.fit(Pair(wrong), batch, engine="nuts", chains=2, draws=200, tune=200)
    check = refits.simulation_calibration(fit, refits=refits.Refits(fit, num=25))
    assert check.verdict == "fail"
    assert "sampler" in check.explanation


def test_what_cannot_be_simulated_says_why(batch):
    def transformed(batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", 20, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=2 * batch["y"])

    def trained(batch):
        scale = pyro.param("noise", lambda: torch.ones(()), constraint=constraints.positive)
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", 20, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, scale), obs=batch.get("y"))

    def pushed(batch):
        model(batch)
        pyro.factor("push", torch.zeros(()))

    for bad, reason in ((transformed, "computed from the batch"), (trained, "trained parameters"), (pushed, "factor")):
        fit = zoo.fit(Pair(bad, guide), batch, steps=5, compile=False)
        with pytest.raises(NotApplicable, match=reason):
            refits.simulation_calibration(fit)


# ------------------------------------------------------------------------------------------------------------- NUTS
def test_mean_field_has_the_known_ratio_against_nuts():
    check = refits.vi_against_nuts(known.correlated(0.9))
    assert check.verdict == "fail"
    assert check.value["ratio of standard deviations"] == pytest.approx(math.sqrt(1 - 0.81), abs=0.04)
    assert "too narrow" in check.explanation
    assert refits.vi_against_nuts(known.correlated(0.9, exact=True)).verdict == "pass"
    with pytest.raises(NotApplicable, match="too long"):
        refits.vi_against_nuts(known.gaussian(300))


def test_a_shifted_guide_is_far_in_wasserstein_distance():
    check = refits.vi_against_nuts(known.normal(0, shift=1.0))
    assert check.verdict == "fail"
    assert check.value["largest Wasserstein distance in sd"] == pytest.approx(1.0, abs=0.12)


# ----------------------------------------------------------------------------------------------------------- k-fold
def test_k_fold_is_exact_on_a_conjugate_model():
    fit = known.normal(0)
    y = fit.data.train["y"]
    found = refits.cross_validate(fit, folds=30, num_draws=4_000)
    exact = dist.Normal((y.sum() - y) / len(y), (1 + 1 / len(y)) ** 0.5).log_prob(y)
    np.testing.assert_allclose(found, exact.numpy(), atol=0.05)


def test_k_fold_overrules_leave_one_out():
    check = refits.k_fold(known.own_parameters(0))
    assert check.verdict == "warn"
    assert check.value["leave-one-out minus this"] > 10
    exact = float(dist.Normal(0.0, math.sqrt(9.01)).log_prob(known.own_parameters(0).data.train["y"]).sum())
    assert check.value["elpd"] == pytest.approx(exact, abs=2.0)
    with pytest.raises(NotApplicable, match="no refit is needed"):
        refits.k_fold(known.normal(0))
    with pytest.raises(NotApplicable, match="latents of its own"):
        refits.k_fold(known.local(0), always=True)


def test_rows_left_out_do_not_enter_a_refit(fitted, batch):
    """The mask and fewer rows give the same posterior."""
    found = refits.cross_validate(fitted, folds=2, num_draws=2_000)
    fold = np.random.default_rng(0).permutation(np.arange(20) % 2)
    for i in (0, 1):
        y = batch["y"][torch.as_tensor(fold != i)]
        predictive = dist.Normal(y.sum() / 11, (1 + 1 / 11) ** 0.5).log_prob(batch["y"])
        np.testing.assert_allclose(found[fold == i], predictive.numpy()[fold == i], atol=0.08)


# ------------------------------------------------------------------------------------------------- trained elsewhere
def test_a_pair_trained_in_a_plain_loop_is_diagnosed(batch):
    pyro.clear_param_store()
    auto = AutoNormal(model)
    svi = SVI(model, auto, Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(600)]
    recipe = Recipe(steps=400, learning_rate=0.05, schedule="cosine")
    fit = zoo.Posterior.from_store(Pair(model, auto), batch, losses=losses, recipe=recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = auto.quantiles([0.5])["mu"][0]
    assert float(fit.draws(4_000)["mu"].mean()) == pytest.approx(float(expected), abs=0.02)
    pyro.clear_param_store()
    assert float(fit.draws(4_000)["mu"].mean()) == pytest.approx(float(expected), abs=0.02), "it holds its own copy"
    diagnosis = diagnose(fit, num_draws=300)
    assert not [c.error for c in diagnosis.checks if c.error]
    assert diagnosis["pareto_k"].verdict != "fail"
    assert diagnosis["optimiser_stationarity"].verdict != "not run"
    check = refits.simulation_calibration(fit, refits=refits.Refits(fit, num=30))
    assert check.verdict == "pass"
    assert set(fit.to_datatree(num_draws=20).children) >= {"posterior", "log_likelihood", "prior"}


def test_a_store_without_the_pairs_parameters_is_refused(batch):
    pyro.clear_param_store()
    with pytest.raises(PairError, match="'loc'"):
        zoo.Posterior.from_store(Pair(model, guide), batch)
    pyro.param("loc", torch.zeros(2))
    pyro.param("scale", torch.ones(()))
    with pytest.raises(PairError, match="shape"):
        zoo.Posterior.from_store(Pair(model, guide), batch)
    pyro.clear_param_store()
    pyro.param("loc", torch.zeros(()))
    pyro.param("scale", torch.ones(()), constraint=constraints.positive)
    fit = zoo.Posterior.from_store(Pair(model, guide), batch)
    with pytest.raises(NotApplicable, match="recipe="):
        refits.simulation_calibration(fit)
    with pytest.raises(PairError, match="no guide"):
        zoo.Posterior.from_store(Pair(model), batch)
