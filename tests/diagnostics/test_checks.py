from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known_fits import dataset, normal_chains, normal_loo, normal_mean, sampled, variational

import zoo
from zoo.diagnostics import CHECKS, Check, diagnose, predictive
from zoo.diagnostics import inference as checks
from zoo.diagnostics.adapter import log_likelihood
from zoo.diagnostics.answers import Facts, answers, headline, holm
from zoo.diagnostics.check import NotApplicable, jsonable
from zoo.diagnostics.diagnosis import FULL, conclude
from zoo.errors import UnknownNameError
from zoo.types import Alternating, Loss, Pair

pytestmark = pytest.mark.filterwarnings("ignore")
DOUBLE = torch.float64


# ---------------------------------------------------------------------------------------------------- the guide
@pytest.mark.parametrize("scale", [0.5, 0.8])
def test_log_weights_enter_psis_with_the_right_sign(scale):
    """p = N(0, 1) over q = N(0, s^2): the weights' tail index is k = 1 - s^2; the inverse ratio is bounded."""
    x = scale * np.random.default_rng(0).standard_normal(200_000)
    log_ratio = -0.5 * x**2 + 0.5 * (x / scale) ** 2
    assert checks.khat(log_ratio) == pytest.approx(1 - scale**2, abs=0.1)
    assert checks.khat(-log_ratio) < 0.1


def test_khat_of_degenerate_weights():
    assert checks.khat(np.zeros(100)) == 0.0
    assert checks.khat(np.full(100, 1e3) + 1e-4 * np.arange(100)) == 0.0
    for bad in (np.nan, np.inf):
        assert checks.khat(np.array([bad, *np.zeros(99)])) == math.inf
    assert checks.khat(np.full(100, -np.inf)) == math.inf


@pytest.mark.parametrize(("draws", "limit"), [(100, 0.5), (1_000, 2 / 3), (2_000, 0.697), (100_000, 0.7)])
def test_khat_threshold(draws, limit):
    assert checks.khat_threshold(draws) == pytest.approx(limit, abs=1e-3)


def test_the_exact_guide_passes():
    posterior = variational(*normal_mean())
    check = checks.pareto_k(posterior, num_draws=200)
    assert check.verdict == "pass"
    assert check.value["k-hat"] < 0.5


def test_a_shifted_guide_fails():
    assert checks.pareto_k(variational(*normal_mean(shift=4.0)), num_draws=600).verdict == "fail"


@pytest.mark.parametrize(("elements", "verdicts"), [(1, ("warn", "fail")), (10, ("fail",))])
def test_halved_scales_are_caught(elements, verdicts):
    """In one dimension k = 1 - 1/4 lies just above the limit of 0.7; in ten there is no doubt."""

    def model(batch):
        pyro.sample("z", dist.Normal(torch.zeros(elements), 1.0).to_event(1))

    def guide(batch):
        pyro.sample("z", dist.Normal(torch.zeros(elements), 0.5).to_event(1))

    posterior = variational(model, guide, dataset({"y": torch.zeros(1, dtype=DOUBLE)}))
    for seed in (0, 100):
        assert checks.pareto_k(posterior, num_draws=600, repeats=3, seed=seed).verdict in verdicts


def correlated(rho):
    """Two standard normals with correlation rho, and the mean-field guide that minimises the divergence."""
    data = dataset({"y": torch.zeros(2, dtype=DOUBLE)})
    scale = torch.tensor(math.sqrt(1 - rho**2))

    def model(batch):
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("b", dist.Normal(rho * a, scale))

    def guide(batch):
        pyro.sample("a", dist.Normal(torch.zeros(()), scale))
        pyro.sample("b", dist.Normal(torch.zeros(()), scale))

    return model, guide, data


@pytest.mark.parametrize(("rho", "verdict"), [(0.97, "fail"), (0.2, "pass")])
def test_mean_field_on_correlated_latents(rho, verdict):
    assert checks.pareto_k(variational(*correlated(rho)), num_draws=300, repeats=3).verdict == verdict


def test_a_point_estimate_is_not_mistaken_for_a_perfect_guide():
    model, _, data = normal_mean()

    def guide(batch):
        pyro.sample("mu", dist.Delta(torch.tensor(0.3)))

    diagnosis = diagnose(variational(model, guide, data), num_draws=50)
    assert diagnosis["pareto_k"].verdict == "not run"
    assert "point estimate" in diagnosis["pareto_k"].explanation
    assert diagnosis.parameters != "usable"
    assert any("point estimate" in reason for reason in diagnosis.reasons)


def test_adversarial_losses_are_not_judged_as_one_divergence():
    model, guide, data = normal_mean()
    posterior = variational(model, guide, data)
    two = Alternating((Loss(name="a", function=None), Loss(name="b", function=None)))
    posterior.pair = Pair(model, guide, two)
    for check in (checks.pareto_k, checks.optimiser_stationarity):
        with pytest.raises(NotApplicable):
            check(posterior)


# ------------------------------------------------------------------------------------------------- the optimiser
def losses(*, slope=0.0, noise=1.0, steps=2_000, seed=0, rho=0.0):
    """Noise, in the last fifth with a trend of ``slope`` nats per window of that length."""
    rng = np.random.default_rng(seed)
    shocks = rng.standard_normal(steps)
    values = shocks.copy()
    for t in range(1, steps):
        values[t] = rho * values[t - 1] + math.sqrt(1 - rho**2) * shocks[t]
    trend = slope * (np.arange(steps) - steps) / (steps / 5)
    return torch.tensor(100 + noise * values + trend)


def stationarity(values):
    return checks.optimiser_stationarity(variational(*normal_mean(), losses=values))


def test_a_settled_loss_passes_and_a_falling_one_fails():
    assert stationarity(losses()).verdict == "pass"
    falling = stationarity(losses(slope=-3.0))
    assert falling.verdict == "fail"
    assert falling.value["expected gain in nats"] == pytest.approx(3.0, abs=0.5)
    assert "still falling" in falling.explanation
    assert stationarity(losses(slope=-0.5, noise=0.3)).verdict == "warn"
    rising = stationarity(losses(slope=3.0))
    assert rising.verdict == "fail"
    assert "rising" in rising.explanation


@pytest.mark.parametrize(("rho", "noise"), [(0.0, 3.0), (0.9, 0.5)])
def test_noise_alone_is_no_trend(rho, noise):
    verdicts = [stationarity(losses(seed=s, noise=noise, rho=rho)).verdict for s in range(40)]
    assert sum(v == "fail" for v in verdicts) <= 1
    assert sum(v != "pass" for v in verdicts) <= 4


def test_a_noise_that_hides_any_trend_is_not_called_settled():
    assert stationarity(losses(noise=300.0)).verdict == "warn"


def test_a_broken_or_short_loss():
    values = losses()
    values[-3] = float("nan")
    assert stationarity(values).verdict == "fail"
    with pytest.raises(NotApplicable, match="steps"):
        stationarity(losses(steps=50))


def test_the_tolerance_grows_with_the_posterior():
    def model(batch):
        pyro.sample("z", dist.Normal(torch.zeros(1_000), 1.0).to_event(1))

    data = dataset({"y": torch.zeros(1, dtype=DOUBLE)})
    big = checks.optimiser_stationarity(variational(model, model, data, losses=losses(slope=-3.0)))
    assert big.verdict == "pass"


# ------------------------------------------------------------------------------------------------------- restarts
def test_restarts_that_found_other_modes_are_caught():
    model, guide, data = normal_mean()
    agreeing = variational(model, guide, data, restarts=[variational(model, guide, data)])
    assert checks.restart_agreement(agreeing, num_draws=400).verdict == "pass"
    other = variational(*normal_mean(shift=3.0))
    apart = checks.restart_agreement(variational(model, guide, data, restarts=[other]), num_draws=400)
    assert apart.verdict == "fail"
    assert apart.value["at"] == "mu"
    with pytest.raises(NotApplicable, match="restarts=3"):
        checks.restart_agreement(variational(model, guide, data))


# --------------------------------------------------------------------------------------------------------- funnel
def neal(*, exact):
    data = dataset({"y": torch.zeros(1, dtype=DOUBLE)})

    def model(batch):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 1.0))
        with pyro.plate("unit", 5):
            pyro.sample("x", dist.Normal(torch.zeros(()), scale))

    def guide(batch):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 1.0 if exact else 0.5))
        with pyro.plate("unit", 5):
            pyro.sample("x", dist.Normal(torch.zeros(()), scale if exact else 1.0))

    return model, guide, data


def test_a_guide_that_ignores_a_funnel_is_caught():
    good = checks.funnel(variational(*neal(exact=True)), num_draws=600)
    assert good.verdict == "pass"
    assert good.value["variance in the neck"] == pytest.approx(1.0, abs=0.3)
    bad = checks.funnel(variational(*neal(exact=False)), num_draws=600)
    assert bad.verdict == "fail"
    assert bad.value["site"] == "x"
    with pytest.raises(NotApplicable):
        checks.funnel(variational(*normal_mean()))


def test_chains_in_a_funnel_are_warned_about():
    model, _, data = neal(exact=True)
    scale = torch.randn(2, 500, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).exp()
    noise = torch.randn(2, 500, 5, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    check = checks.funnel(sampled(model, data, {"scale": scale, "x": scale[..., None] * noise}))
    assert check.verdict == "warn"
    assert "non-centred" in check.explanation


# --------------------------------------------------------------------------------------------------------- chains
def test_mixed_chains_pass():
    model, _, data = normal_mean()
    diagnosis = diagnose(sampled(model, data, normal_chains(data)), num_draws=100)
    assert {c.name for c in diagnosis.checks if c.verdict == "pass"} >= {"r_hat", "ess", "divergences", "e_bfmi", "loo"}
    assert diagnosis.verdict == "usable"
    assert diagnosis.reasons == ("Nothing speaks against this fit.",)
    assert [a.use for a in diagnosis.answers] == ["usable"] * 3
    assert not any(a.command or a.python for a in diagnosis.answers)


def test_chains_in_two_modes_fail():
    model, _, data = normal_mean()
    chains = normal_chains(data)
    chains["mu"][2:] += 5
    posterior = sampled(model, data, chains)
    check = checks.r_hat(posterior)
    assert check.verdict == "fail"
    assert check.value["at"] == "mu"
    assert diagnose(posterior, num_draws=50).verdict == "do not use"


def test_a_large_r_hat_among_short_chains_may_be_chance():
    """Half chains of one distribution differ as the F distribution says; chains around other means differ by more."""
    generator = np.random.default_rng(0)
    p_values = []
    for _ in range(100):
        x = generator.normal(size=(4, 300))
        for t in range(1, 300):
            x[:, t] = 0.6 * x[:, t - 1] + 0.8 * x[:, t]
        p_values.append(checks._chance(x, checks._split_free(x)))
    assert np.mean(np.array(p_values) < 0.025) <= 0.1  # of two, ranks and folded ranks, the larger counts
    apart = generator.normal(size=(4, 1_000)) + np.array([0.5, 0, 0, 0])[:, None]
    assert checks._chance(apart, checks._split_free(apart)) < 1e-10
    assert checks._chance(np.zeros((4, 100)), 1.03) == 0.0


def test_chains_that_stand_still_fail():
    model, _, data = normal_mean()
    chains = {"mu": torch.zeros(4, 100, dtype=DOUBLE) + torch.arange(4)[:, None]}
    posterior = sampled(model, data, chains)
    assert checks.r_hat(posterior).verdict == "fail"
    assert checks.ess(posterior).verdict == "fail"


def test_slow_chains_have_a_small_sample():
    model, _, data = normal_mean()
    noise = normal_chains(data)["mu"] - 0.5
    slow = torch.zeros_like(noise)
    for t in range(1, noise.shape[1]):
        slow[:, t] = 0.98 * slow[:, t - 1] + noise[:, t]
    check = checks.ess(sampled(model, data, {"mu": slow}))
    assert check.verdict == "fail"
    assert check.value["smallest bulk ESS"] < 400


def test_a_single_chain_cannot_vouch_for_itself():
    model, _, data = normal_mean()
    diagnosis = diagnose(sampled(model, data, normal_chains(data, chains=1, draws=2_000)), num_draws=100)
    assert diagnosis["r_hat"].verdict == "not run"
    assert diagnosis.verdict == "usable with care"


@pytest.mark.parametrize(("count", "verdict"), [(0, "pass"), (1, "warn"), (9, "warn"), (10, "fail")])
def test_divergences_in_four_thousand_draws(count, verdict):
    model, _, data = normal_mean()
    flags = torch.zeros(4, 1_000, dtype=torch.bool)
    flags.view(-1)[:count] = True
    posterior = sampled(model, data, normal_chains(data, draws=1_000), stats={"diverging": flags})
    assert checks.divergences(posterior).verdict == verdict


def test_slow_energies():
    model, _, data = normal_mean()
    energy = torch.randn(4, 500, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).cumsum(1)
    check = checks.e_bfmi(sampled(model, data, normal_chains(data), stats={"energy": energy}))
    assert check.verdict == "fail"


# ------------------------------------------------------------------------------------------------ replicated data
def test_a_model_that_fits_reproduces_its_data():
    assert predictive.predictive_check(variational(*normal_mean(rows=100)), num_draws=300).verdict == "pass"


def test_a_model_with_the_wrong_noise_does_not():
    check = predictive.predictive_check(variational(*normal_mean(rows=100, noise=3.0)), num_draws=300)
    assert check.verdict == "fail"
    assert check.value["p-values"]["sd"] < 0.01
    assert check.value["p-values"]["mean"] > 0.05


def test_outliers_are_told_from_a_bound_that_the_data_do_not_reach():
    """One value far out is beyond every replicate; data without tails are inside of all of them."""
    from zoo.diagnostics.known import normal

    fit = normal(0, rows=100)
    fit.data.train["y"][0] = 9.0
    assert predictive.predictive_check(fit, num_draws=400).value["beyond the largest or smallest"] < 0.02
    fit = normal(0, rows=100)
    fit.data.train["y"].clamp_(-1.2, 1.2)
    assert predictive.predictive_check(fit, num_draws=400).value["beyond the largest or smallest"] > 0.5


def test_a_run_that_ends_early_does_not_hide_its_fall_in_noise():
    """Over its last fifth the fall is within the noise; from the fifth before it is not."""
    from zoo.diagnostics import known

    fit = known.gaussian(1)
    noise = known.losses(0, steps=300)
    fit.history = {"elbo": noise + 400 * torch.exp(-torch.arange(300) / 50.0)}
    found = checks.optimiser_stationarity(fit)
    assert found.verdict != "pass"
    assert "still falling" in found.explanation


def test_predictive_p_values_are_conservative_but_not_blind():
    """Over data sets from the model itself few p-values are small."""
    least = []
    for seed in range(30):
        check = predictive.predictive_check(variational(*normal_mean(rows=40, seed=seed)), num_draws=200)
        least.append(min(check.value["p-values"].values()))
    assert np.mean(np.array(least) < 0.01) <= 0.1
    assert np.mean(np.array(least) < 0.5) > 0.3


def test_ties_count_half():
    assert predictive._two_sided(1.0, np.ones(99)) == 1.0
    assert predictive._two_sided(5.0, np.arange(100.0)) == pytest.approx(2 * 6 / 101)
    assert predictive._two_sided(1e9, np.arange(100.0)) == pytest.approx(1 / 101)


def classifier(*, sharpen=1.0, rows=600, classes=3, seed=0, bernoulli=False):
    """Labels drawn from known probabilities; the model states them sharpened by a factor."""
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(2 * rows, classes, generator=generator, dtype=DOUBLE)
    if bernoulli:
        y = torch.bernoulli(x[:, 0].sigmoid(), generator=generator)
    else:
        y = torch.multinomial(x.softmax(-1), 1, generator=generator)[:, 0]
    split = {
        name: {"index": torch.arange(rows), "x": x[part], "y": y[part]}
        for name, part in (("train", slice(rows)), ("test", slice(rows, None)))
    }
    data = dataset({"x": split["train"]["x"], "y": split["train"]["y"]}, test=split["test"], task="classification")

    def model(batch):
        bias = pyro.sample("bias", dist.Normal(torch.zeros(()), 1e-3))
        logits = sharpen * batch["x"] + bias
        with pyro.plate("datum", rows, subsample=batch["index"]):
            fn = dist.Bernoulli(logits=logits[:, 0]) if bernoulli else dist.Categorical(logits=logits)
            pyro.sample("y", fn, obs=batch.get("y"))

    def guide(batch):
        pyro.sample("bias", dist.Normal(torch.zeros(()), 1e-3))

    return model, guide, data


@pytest.mark.parametrize("bernoulli", [False, True])
def test_calibrated_and_overconfident_probabilities(bernoulli):
    good = predictive.calibration(variational(*classifier(bernoulli=bernoulli)), num_draws=20)
    assert good.verdict == "pass"
    assert good.data["counts"].sum() == 600
    bad = predictive.calibration(variational(*classifier(sharpen=4.0, bernoulli=bernoulli)), num_draws=20)
    assert bad.verdict == "fail"
    assert "too confident" in bad.explanation
    timid = predictive.calibration(variational(*classifier(sharpen=0.25, bernoulli=bernoulli)), num_draws=20)
    assert timid.verdict == "fail"
    assert "not confident enough" in timid.explanation


def test_the_calibration_threshold_allows_for_the_noise_of_few_rows():
    """Under perfect calibration the error is far from zero, and warnings come at their nominal rate."""
    rng = np.random.default_rng(0)
    verdicts = []
    for seed in range(60):
        probs = rng.dirichlet(np.ones(3), size=100)
        labels = np.array([rng.choice(3, p=p) for p in probs])
        sets = predictive._label_sets(probs[None], seed)
        held = predictive.HeldOut(
            split="test", site="y", truth=labels, probs=probs[None], samples=None, log_prob=None, labels=sets
        )
        verdicts.append(predictive.calibration(None, held=held))
    assert np.mean([c.value["calibration error"] for c in verdicts]) > 0.05
    assert sum(c.verdict == "fail" for c in verdicts) <= 3
    assert sum(c.verdict != "pass" for c in verdicts) <= 8


def test_calibration_error_agrees_with_the_score():
    from zoo.tasks.classification import expected_calibration_error

    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(4), size=300)
    labels = rng.integers(4, size=300)
    ours = predictive.expected_calibration_error(probs.max(-1), probs.argmax(-1) == labels)
    assert float(ours) == pytest.approx(expected_calibration_error(torch.tensor(probs), torch.tensor(labels)))


@pytest.mark.parametrize(("noise", "verdict", "word"), [(1.0, "pass", "as often"), (2.0, "fail", "too narrow")])
def test_coverage_of_intervals(noise, verdict, word):
    generator = torch.Generator().manual_seed(5)
    test = {"index": torch.arange(300), "y": 0.5 + noise * torch.randn(300, generator=generator, dtype=DOUBLE)}
    model, guide, data = normal_mean(rows=300, test=test)
    check = predictive.calibration(variational(model, guide, data), num_draws=500)
    assert check.verdict == verdict
    assert word in check.explanation


def test_calibration_is_not_read_off_fitted_rows():
    with pytest.raises(NotApplicable, match="held-out"):
        predictive.calibration(variational(*normal_mean()))


def test_replicated_classes():
    assert predictive.predictive_check(variational(*classifier()), num_draws=100).verdict == "pass"
    model, guide, data = classifier()
    data.train["y"][:150] = 2
    check = predictive.predictive_check(variational(model, guide, data), num_draws=200)
    assert check.verdict == "fail"
    assert check.value["p-values"].keys() == {"class frequencies"}


# -------------------------------------------------------------------------------------------------- leave-one-out
def test_leave_one_out_is_exact_on_a_conjugate_model():
    model, guide, data = normal_mean()
    exact = normal_loo(data.train["y"])
    found = predictive.leave_one_out(variational(model, guide, data), num_draws=2_000)
    np.testing.assert_allclose(found.elpd, exact, atol=0.03)
    assert found.total == pytest.approx(float(exact.sum()), abs=0.2)
    assert found.effective == pytest.approx(30 / 31, abs=0.2)
    assert predictive.loo(variational(model, guide, data), num_draws=1_000).verdict == "pass"


def test_leave_one_out_corrects_for_the_guide():
    model, guide, data = normal_mean(scale_factor=1.7)
    posterior = variational(model, guide, data)
    exact = float(normal_loo(data.train["y"]).sum())
    corrected = predictive.leave_one_out(posterior, num_draws=2_000).total
    pointwise = log_likelihood(posterior, data.train, posterior.draws(2_000))["y"]
    naive = float((math.log(2_000) - (-pointwise).logsumexp(0)).sum())
    assert abs(corrected - exact) < 0.2
    assert abs(naive - exact) > 0.5


def test_rows_that_pull_the_posterior_are_counted():
    model, _, data = normal_mean(rows=4)
    data.train["y"][:2] = torch.tensor([25.0, -25.0])
    scale = 5**-0.5
    mean = data.train["y"].sum() / 5

    def exact(batch):
        pyro.sample("mu", dist.Normal(mean, scale))

    check = predictive.loo(variational(model, exact, data), num_draws=1_000)
    assert check.verdict == "fail"
    assert check.value["share of rows with large k"] == 0.5


def test_a_subset_of_rows_estimates_the_whole():
    posterior = variational(*normal_mean(rows=400))
    whole = predictive.leave_one_out(posterior, num_draws=300)
    part = predictive.leave_one_out(posterior, num_draws=300, max_rows=100)
    assert len(part.elpd) == 100
    assert abs(part.total - whole.total) < 3 * part.se
    assert part.se > whole.se


# ------------------------------------------------------------------------------------------------------ diagnosis
def test_every_check_reports_and_turns_into_json():
    diagnosis = diagnose(variational(*normal_mean()), num_draws=200)
    assert [c.name for c in diagnosis.checks] == [n for n in CHECKS if n not in FULL]
    text = json.dumps(diagnosis.to_json(), allow_nan=False)
    assert set(json.loads(text)) == {"verdict", "parameters", "predictions", "reasons", "answers", "checks"}
    for check in diagnosis.checks:
        assert check.explanation.endswith(".")
        assert not check.error
        if check.verdict != "not run":
            assert check.threshold
            assert check.source
            assert check.value is not None
    assert diagnosis.verdict == "usable"


def test_an_error_in_a_check_is_kept_and_shown(monkeypatch):
    def broken(posterior):
        return {}["missing"]

    monkeypatch.setitem(CHECKS, "r_hat", (broken, "parameters", "Do the chains agree?", ()))
    diagnosis = diagnose(variational(*normal_mean()), checks=["r_hat", "predictive_check", "pareto_k"], num_draws=100)
    check = diagnosis["r_hat"]
    assert check.verdict == "not run"
    assert "KeyError: 'missing'" in check.error
    assert "test_checks.py" in check.error
    assert diagnosis.verdict == "usable with care"
    assert any("KeyError" in reason for reason in diagnosis.reasons)


def test_unknown_checks_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'pareto_k'"):
        diagnose(variational(*normal_mean()), checks=["paretok"])
    with pytest.raises(UnknownNameError, match="was not asked for"):
        diagnose(variational(*normal_mean()), checks=["predictive_check"], num_draws=20)["loo"]


def made(**verdicts):
    about = {name: entry[1] for name, entry in CHECKS.items()}
    return [Check(name=n, title=n, about=about[n], verdict=v, explanation=f"{n} {v}.") for n, v in verdicts.items()]


@pytest.mark.parametrize(
    ("verdicts", "sampled_", "expected"),
    [
        ({"pareto_k": "pass", "predictive_check": "pass"}, False, ("usable", "usable", "usable")),
        ({"pareto_k": "warn", "predictive_check": "pass"}, False, ("usable with care", "usable", "usable with care")),
        # A network's weights: no guide matches them, but predictions held up on new rows.
        (
            {"pareto_k": "fail", "predictive_check": "pass", "calibration": "pass"},
            False,
            ("do not use", "usable", "usable with care"),
        ),
        # The same without a look at new rows, and with a bad one.
        ({"pareto_k": "fail", "predictive_check": "pass"}, False, ("do not use", "do not use", "do not use")),
        ({"pareto_k": "fail", "calibration": "fail"}, False, ("do not use", "do not use", "do not use")),
        # A feature of the data is missed, but new rows are predicted as stated.
        (
            {"r_hat": "pass", "predictive_check": "fail", "calibration": "pass"},
            True,
            ("usable", "usable with care", "usable with care"),
        ),
        # Chains that did not converge are draws from nothing.
        ({"r_hat": "fail", "predictive_check": "pass"}, True, ("do not use", "do not use", "do not use")),
        ({"r_hat": "fail", "calibration": "pass"}, True, ("do not use", "usable with care", "usable with care")),
        ({"r_hat": "warn", "calibration": "pass"}, True, ("usable with care", "usable", "usable with care")),
        ({"r_hat": "pass", "predictive_check": "fail"}, True, ("usable", "do not use", "do not use")),
        ({"r_hat": "pass", "predictive_check": "pass", "loo": "fail"}, True, ("usable", "usable", "usable")),
        ({"predictive_check": "pass"}, False, ("not examined", "usable", "usable with care")),
        ({"pareto_k": "pass"}, False, ("usable", "not examined", "usable with care")),
        # Refits fail over the prior; at the data at hand the guide was found good, or not.
        (
            {"pareto_k": "pass", "simulation_calibration": "fail", "predictive_check": "pass"},
            False,
            ("usable with care", "usable", "usable with care"),
        ),
        (
            {"pareto_k": "warn", "simulation_calibration": "fail", "predictive_check": "pass"},
            False,
            ("do not use", "do not use", "do not use"),
        ),
        (
            {"pareto_k": "warn", "vi_against_nuts": "pass", "interval_coverage": "fail", "predictive_check": "pass"},
            False,
            ("usable with care", "usable", "usable with care"),
        ),
        (
            {"pareto_k": "pass", "vi_against_nuts": "fail", "predictive_check": "pass"},
            False,
            ("do not use", "do not use", "do not use"),
        ),
    ],
)
def test_the_rule(verdicts, sampled_, expected):
    diagnosis = conclude(made(**verdicts), Facts(sampled=sampled_))
    assert (diagnosis.parameters, diagnosis.predictions, diagnosis.verdict) == expected
    for name, verdict in verdicts.items():
        if verdict != "pass":
            assert any(f"{name} {verdict}." in reason for reason in diagnosis.reasons)


def test_holm_is_its_formula():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


@pytest.mark.parametrize(("others", "use"), [(0, "usable with care"), (3, "usable")])
def test_one_warning_among_many_checks_is_chance(others, use):
    """A p-value of 0.03 stands alone; beside three large ones it is what four right checks show now and then."""
    rest = [
        dataclasses.replace(c, p_value=0.5)
        for c in made(calibration="pass", scores="pass", selective_prediction="pass")[:others]
    ]
    found = answers([*made(r_hat="pass"), *rest, low("predictive_check", "warn", 0.03)], Facts(sampled=True))
    assert found[2].use == use
    assert found[1].use == "usable"


def low(name, verdict, p_value):
    return dataclasses.replace(made(**{name: verdict})[0], p_value=p_value)


def test_chains_that_were_drawn_again_are_told():
    found = answers(made(r_hat="pass"), Facts(sampled=True, again=("divergences", "apart", "divergences")))
    assert found[0].use == "usable"
    assert found[0].reason == "r_hat pass. The sampler drew chains again before that (divergences 2, apart 1)."


@pytest.mark.parametrize(
    ("central", "beyond", "checked", "use"),
    [
        (0.4, 0.9, {"calibration": "pass", "scores": "pass"}, "usable"),
        (0.4, 0.002, {"calibration": "pass", "scores": "pass"}, "usable with care"),
        (0.001, 0.9, {"calibration": "pass", "scores": "pass"}, "usable with care"),
        (0.4, 0.9, {"calibration": "warn", "scores": "pass"}, "usable with care"),
        (0.4, 0.9, {"calibration": "pass"}, "usable with care"),
        (0.4, 0.9, {}, "usable with care"),
    ],
)
def test_extremes_that_are_missed_are_told_where_new_rows_confirm_the_rest(central, beyond, checked, use):
    value = {"without extremes": central, "beyond the largest or smallest": beyond}
    missed = dataclasses.replace(made(predictive_check="warn")[0], value=value)
    found = answers([*made(r_hat="pass", **checked), missed], Facts(sampled=True))[2]
    assert found.use == use
    assert "predictive_check warn." in found.reason or "calibration" in found.reason


def test_many_checks_do_not_hide_a_fault():
    rest = [dataclasses.replace(c, p_value=0.5) for c in made(scores="pass", predictive_check="pass")]
    fit, parameters, predictions = answers(
        [*made(r_hat="pass"), *rest, low("calibration", "fail", 0.001)], Facts(sampled=True)
    )
    assert (fit.use, parameters.use, predictions.use) == ("usable", "usable", "do not use")
    assert predictions.checks[0] == "calibration"
    assert headline((fit, parameters, predictions)) == "do not use"


def test_weights_of_a_network_are_no_failure():
    """What a check says about weights is not held against the fit; without new rows a network is not examined."""
    facts = Facts(sampled=False, weights=("W_0", "b_0"))
    checked = made(optimiser_stationarity="pass", pareto_k="fail", predictive_check="pass")
    assert [a.use for a in answers(checked, facts)] == ["usable", "not meant to be read", "not examined"]
    found = conclude([*checked, *made(calibration="pass")], facts)
    assert [a.use for a in found.answers] == ["usable", "not meant to be read", "usable"]
    assert found.verdict == "usable"


def test_a_loss_that_moves_is_no_warning_where_nothing_is_left_to_gain():
    def at(nats):
        near = dataclasses.replace(made(pareto_k="pass")[0], value={"nats to the posterior": nats})
        moving = dataclasses.replace(made(optimiser_stationarity="warn")[0], value={"gain that matters": 1.0})
        return answers([near, moving], Facts(sampled=False))[0].use

    assert (at(0.2), at(3.0)) == ("usable", "usable with care")


def test_the_centred_eight_schools_are_flagged_and_the_others_are_not():
    from zoo.models.eight_schools import Hyper

    found = {}
    for centred in (True, False):
        fit = zoo.fit("eight_schools", hyper=Hyper(centred=centred), engine="svi", steps=2_500, seed=0)
        found[centred] = diagnose(fit, checks=["pareto_k", "funnel", "predictive_check"], num_draws=400)
    assert found[True]["pareto_k"].verdict == "fail"
    assert found[True]["funnel"].verdict in ("warn", "fail")
    assert found[True].verdict == "do not use"
    assert found[False]["pareto_k"].verdict != "fail"
    assert found[False]["funnel"].verdict == "not run"
    assert found[False].verdict != "do not use"


def test_jsonable():
    value = {"a": np.float32(0.5), "b": [np.int64(2), math.inf, math.nan], "c": np.array([1.0, -math.inf]), 3: True}
    assert jsonable(value) == {"a": 0.5, "b": [2, None, None], "c": [1.0, None], "3": True}
