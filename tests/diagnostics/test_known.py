"""The checks on fits whose right verdict is known: a fast subset of ``zoo diagnostics``."""

from __future__ import annotations

import json
from types import SimpleNamespace

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from typer.testing import CliRunner

from zoo import cli
from zoo.diagnostics import CHECKS, diagnose, inference, known, measure, predictive, sensitivity, to_datatree
from zoo.diagnostics.check import NotApplicable
from zoo.errors import UnknownNameError
from zoo.reports import illustrate
from zoo.tasks._scores import crps
from zoo.tasks.classification import brier

pytestmark = pytest.mark.filterwarnings("ignore")
CORRECT, FAULTY = 12, 5


@pytest.mark.parametrize("case", known.CASES, ids=lambda c: "-".join(c.checks) + " " + c.fault[:20])
def test_the_known_cases(case):
    """At a level of 5%, four alarms in twelve come by chance once in 400 times; a power of 0.9 catches four of five."""
    slow = case.checks[0] in ("vi_against_nuts", "r_hat", "ess", "simulation_calibration")
    correct = [case.run(False, 1_000 + seed) for seed in range(CORRECT // (4 if slow else 1))]
    faulty = [case.run(True, 1_000 + seed) for seed in range(2 if slow else FAULTY)]
    for i, name in enumerate(case.checks):
        assert {run[i].name for run in correct + faulty} == {name}
        assert sum(run[i].verdict != "pass" for run in correct) <= (2 if slow else 3)
        assert sum(run[i].verdict != "pass" for run in faulty) >= len(faulty) - 1
        for check in (run[i] for run in correct + faulty):
            assert check.explanation.endswith(".")
            assert check.source
            assert check.threshold
            json.dumps(check.to_json(), allow_nan=False)
        worst = faulty[0][i]
        if worst.figure and worst.figure not in ("loss", "bars"):
            drawing = illustrate._drawing(known.gaussian(1), worst)
            assert drawing is None or drawing.svg.startswith("<svg")
            assert drawing is not None or not worst.data


def test_every_check_has_a_case():
    assert {name for case in known.CASES for name in case.checks} == set(CHECKS)


def test_the_measurement_sees_a_check_that_cries_wolf(monkeypatch):
    """A threshold that is too strict loses its level, one that is too lax its power."""
    strict = measure.measure(repetitions=12, faults=3, checks=["funnel"])[0]
    assert strict.level_kept
    assert strict.power_reached
    monkeypatch.setattr(inference, "_judge", lambda value, warn, fail: "fail")
    assert not measure.measure(repetitions=12, faults=3, checks=["funnel"])[0].level_kept
    monkeypatch.setattr(inference, "_judge", lambda value, warn, fail: "pass")
    assert not measure.measure(repetitions=12, faults=3, checks=["funnel"])[0].power_reached
    with pytest.raises(UnknownNameError, match="did you mean 'funnel'"):
        measure.measure(checks=["funel"])


def test_a_check_beyond_its_level_is_measured_again_on_other_fits(monkeypatch):
    seen = []

    def run(faulty, seed):
        seen.append((faulty, seed))
        unlucky = "warn" if faulty or seed < 6 or seed in (40, 50) else "pass"
        return tuple(SimpleNamespace(verdict=v, level=0.05) for v in (unlucky, "warn", "fail" if faulty else "pass"))

    case = known.Case(checks=("unlucky", "wolf", "calm"), correct="right", fault="wrong", run=run)
    monkeypatch.setattr(measure, "CASES", (case,))
    events = []
    unlucky, wolf, calm = measure.measure(repetitions=20, faults=2, progress=events.append)
    assert sorted(seen) == [*((False, s) for s in range(120)), (True, 0), (True, 1)]
    assert events[-1].done == events[-1].total == 122
    assert (unlucky.alarms, unlucky.correct, unlucky.before, unlucky.level_kept) == (2, 100, (6, 20), True)
    assert (wolf.alarms, wolf.correct, wolf.before, wolf.level_kept) == (100, 100, (20, 20), False)
    assert (calm.alarms, calm.correct, calm.before, calm.level_kept) == (0, 20, None, True)
    page = measure.markdown([unlucky, wolf], [], seconds=1.0, command="this")
    assert "| 6 of 20, again: 2 of 100 (0.002 to 0.070) | 0.05 |" in page
    assert "20 of 20, again: 100 of 100 (0.964 to 1.000) | 0.05 | wrong | 2 of 2 (0) | level not kept |" in page


def test_the_three_answers_are_counted_kind_by_kind(monkeypatch):
    """A right fit whose predictions are doubted and a fault that is missed show in the page as they are."""
    from zoo.diagnostics import endtoend

    def at(use):
        return lambda seed: known.normal(seed, noise=3.0 if use else 1.0, test=100)

    right = endtoend.Kind(name="a right one", make=at(False))
    wrong = endtoend.Kind(name="noise three times as large", make=at(True), answers=("predictions",))
    missed = endtoend.Kind(name="nothing wrong", make=at(False), answers=("fit",))
    monkeypatch.setattr(measure, "RIGHT", (right,))
    monkeypatch.setattr(measure, "FAULTS", (wrong, missed))
    found = measure.end_to_end(fits=3, faults=2)
    assert found.fits == 3
    assert found.good("fit") == 3
    assert [t.caught for t in found.faults] == [2, 0]
    assert not found.kept
    page = measure.markdown([], [], found, seconds=1.0, command="this")
    assert "| noise three times as large | 2 | predictions | 2 | 0 | as wanted |" in page
    assert "| nothing wrong | 2 | fit at its end | 0 |" in page
    assert "**below**" in page


def test_data_of_the_measurement_are_of_one_truth():
    """Training and test rows share parameters, and a fault changes the data alone."""
    from zoo.diagnostics import endtoend

    one, again = endtoend._data(endtoend._linear, 3), endtoend._data(endtoend._linear, 3)
    assert torch.equal(one.train["y"], again.train["y"])
    x = torch.cat([one.train["x"], one.test["x"]])
    y = torch.cat([one.train["y"], one.test["y"]])
    design = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)
    parts = [torch.linalg.lstsq(design[s], y[s]).solution for s in (slice(120), slice(120, None))]
    noise = float((y - design @ torch.linalg.lstsq(design, y).solution).std())
    assert float((parts[0] - parts[1]).abs().max()) < 6 * noise / 120**0.5
    assert not torch.equal(endtoend._data(endtoend._linear, 3, change=endtoend._heavy).train["y"], one.train["y"])


def test_the_interval_is_exact():
    assert measure._interval(0, 100) == pytest.approx((0.0, 0.0362), abs=1e-4)
    assert measure._interval(5, 100) == pytest.approx((0.0164, 0.1128), abs=1e-4)


def test_known_numbers_are_told_from_wrong_ones():
    assert all(measure.NUMBERS[i]().right for i in (0, 1, 2, 4))
    assert not measure._near("pi", 3.14, 3.2, 0.05).right


def test_the_command_writes_the_page(tmp_path):
    out = tmp_path / "page.md"
    out.write_text("# What the checks are worth\n\nOld.\n\n## The three answers, end to end\n\nKept.\n")
    options = ["--repetitions", "4", "--faults", "2", "--check", "funnel", "--check", "moment_bounds"]
    found = CliRunner().invoke(cli.app, ["--json", "diagnostics", "--out", str(out), *options])
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)
    assert [c["check"] for c in values["checks"]] == ["moment_bounds", "funnel"]
    text = out.read_text()
    assert "| `funnel` |" in text
    assert "`zoo diagnostics --repetitions 4 --faults 2 --check funnel --check moment_bounds`" in text
    assert text.count("as stated |") == 2
    assert "Kept." in text, "what was not measured stays"
    assert "Old." not in text


# -------------------------------------------------------------------------------------------------------- the guide
@pytest.mark.parametrize(("factor", "tail"), [(0.5, 0.75), (0.8, 0.36)])
def test_the_rows_k_is_that_of_the_theory(factor, tail):
    check = inference.pareto_k_rows(known.local(0, factor=factor), num_draws=4_000)
    assert check.value["median k-hat"] == pytest.approx(tail, abs=0.15)
    with pytest.raises(NotApplicable, match="no row"):
        inference.pareto_k_rows(known.normal(0))


def test_rows_are_judged_where_their_sum_is_hopeless():
    """Two hundred rows a tenth too narrow: every one is fine, all together are not."""
    fit = known.local(0, rows=200, factor=0.85)
    assert inference.pareto_k_rows(fit).verdict == "pass"
    assert inference.pareto_k(fit, num_draws=500).verdict == "fail"


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.4])
def test_moment_bounds_hold_and_match_the_known_divergence(factor):
    """N(0, 1) over N(0, s^2): E w^2 = s^2 / sqrt(2 s^2 - 1), and the ELBO's distance is the divergence KL(q|p)."""
    check = inference.moment_bounds(known.gaussian(1, factor=factor), num_draws=20_000)
    renyi = np.log(factor**2 / np.sqrt(2 * factor**2 - 1))
    kl = 0.5 * (factor**2 - 1) - np.log(factor)
    assert check.value["Renyi divergence of order 2, at most"] == pytest.approx(renyi + 2 * kl, rel=0.15)
    assert check.value["error of sd, at most, in sd"] >= abs(1 - factor) / factor
    shifted = inference.moment_bounds(known.normal(0, shift=0.3))
    assert shifted.value["error of means, at most, in sd"] >= 0.3


def test_vacuous_bounds_say_so_and_change_no_verdict():
    check = inference.moment_bounds(known.gaussian(1, factor=0.5))
    assert check.verdict == "warn"
    assert "vacuous" in check.explanation
    diagnosis = diagnose(known.normal(0, factor=1.4), checks=["pareto_k", "moment_bounds", "predictive_check"])
    assert diagnosis["moment_bounds"].verdict == "warn"
    assert diagnosis.verdict == "usable"


# ------------------------------------------------------------------------------------------------------- sensitivity
def test_the_cumulative_distance_is_zero_for_equal_and_grows_with_a_shift():
    x = np.sort(np.random.default_rng(0).normal(size=4_000))
    flat = np.full(4_000, 1 / 4_000)
    assert sensitivity.cumulative_jensen_shannon(x, flat, flat) == 0

    def tilted(shift):
        weights = np.exp(shift * x)
        return weights / weights.sum()

    distances = [sensitivity.cumulative_jensen_shannon(x, flat, tilted(s)) for s in (0.1, 0.2, 0.4)]
    assert distances == sorted(distances)
    assert distances[1] == pytest.approx(2 * distances[0], rel=0.1)
    mirrored = sensitivity.cumulative_jensen_shannon(-x, flat, tilted(0.2))
    assert mirrored == pytest.approx(distances[1], rel=1e-6)


def test_power_scaling_agrees_with_refits_under_a_scaled_prior():
    """The conjugate posterior under prior power 1.01 has a known mean: importance weights must move there."""
    fit = known.normal(0, mean=3.0, rows=5)
    draws, density = sensitivity._densities(fit, fit._prepare(None), 20_000, 0)
    weights = np.exp(0.5 * (density["prior"] - density["prior"].max()))
    mean = float((weights * draws["mu"]).sum() / weights.sum())
    assert mean == pytest.approx(float(fit.data.train["y"].sum() / (5 + 1.5)), abs=0.02)


def test_what_says_nothing_about_a_parameter_is_named():
    data = known.dataset({"y": torch.randn(30, dtype=torch.float64)})

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("nothing", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", 30, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    def guide(batch):
        pyro.sample("mu", dist.Normal(data.train["y"].sum() / 31, 31**-0.5))
        pyro.sample("nothing", dist.Normal(torch.zeros(()), 1.0))

    check = sensitivity.power_scaling(known.variational(model, guide, data))
    assert check.verdict == "warn"
    assert check.value["of"] == "nothing"
    assert "say little" in check.explanation


# ------------------------------------------------------------------------------------------------------- predictions
def test_scores_agree_with_the_tasks():
    held = predictive.held_out(known.normal(0, test=50), num_draws=300)
    ours = float(predictive._losses(held, held.truth).mean())
    theirs = crps(torch.as_tensor(held.samples), torch.as_tensor(held.truth))
    assert ours == pytest.approx(theirs, rel=1e-9)
    held = predictive.held_out(known.classes(0), num_draws=50)
    ours = float(predictive._losses(held, held.truth).mean())
    assert ours == pytest.approx(brier(torch.as_tensor(held.probs.mean(0)), torch.as_tensor(held.truth)), rel=1e-9)


def test_the_crps_is_that_of_the_library():
    library = pytest.importorskip("scoringrules", reason="scoringrules is not installed")
    held = predictive.held_out(known.normal(0, test=50), num_draws=300)
    theirs = library.crps_ensemble(held.truth, held.samples.T, estimator="fair")
    np.testing.assert_allclose(predictive._losses(held, held.truth), theirs, rtol=1e-6)


def test_the_risk_coverage_curve_by_hand():
    curve = predictive.risk_coverage(np.array([0.9, 0.1, 0.5]), np.array([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(curve, [0.0, 0.5, 2 / 3])


def test_rows_that_share_what_is_unknown_are_no_error():
    """One training row: all test rows are off together, which the prediction itself expects."""
    verdicts = [
        predictive.calibration(known.normal(seed, rows=1, test=200), num_draws=400, seed=seed).verdict
        for seed in range(20)
    ]
    assert sum(v != "pass" for v in verdicts) <= 4


@pytest.mark.parametrize("how", ["predict", "arviz"])
def test_predictions_do_not_repeat_the_noise_of_the_draws(how):
    """One row: noise on the stream of the draws would be the draws' own, and the spreads would add up."""
    fit = known.normal(0, rows=1)
    if how == "predict":
        draws, new = fit.draws(2_000, seed=3)["mu"].numpy(), fit.predict(n=2_000, seed=3).samples["y"].numpy()[:, 0]
    else:
        data = fit.to_arviz(num_draws=2_000, seed=3)
        draws, new = data.posterior["mu"].values[0], data.posterior_predictive["y"].values[0, :, 0]
    assert abs(np.corrcoef(draws, new - draws)[0, 1]) < 0.1
    assert new.std() == pytest.approx(1.5**0.5, rel=0.06)


def test_equal_uncertainty_has_no_order():
    with pytest.raises(NotApplicable, match="same uncertainty"):
        predictive.selective_prediction(known.normal(0, test=50))
    with pytest.raises(NotApplicable, match="pass ood="):
        predictive.out_of_distribution(known.normal(0, test=50))


def test_a_vague_prior_is_no_conflict():
    check = predictive.prior_predictive_check(known.own_parameters(0))
    assert check.verdict == "pass"
    fit = known.normal(0, rows=30)

    def vague(batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(6.0), 0.5))
        with pyro.plate("datum", 30, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, scale), obs=batch.get("y"))

    def guide(batch):
        fit.pair.guide(batch)
        pyro.sample("scale", dist.LogNormal(torch.zeros(()), 0.1))

    check = predictive.prior_predictive_check(known.variational(vague, guide, fit.data))
    assert check.verdict == "pass"
    assert "vague" in check.explanation


# ------------------------------------------------------------------------------------------------------------ ArviZ
def test_the_tree_holds_what_the_export_holds():
    fit = known.normal(0)
    data, tree = fit.to_arviz(num_draws=50), to_datatree(fit, num_draws=50)
    for group, node in tree.children.items():
        dataset = node.to_dataset()
        assert dataset.data_vars
        assert all(dataset[name].equals(data[group][name]) for name in dataset.data_vars)
    assert tree.attrs["left_out"] == data.attrs["left_out"]
    assert fit.to_datatree(num_draws=50)["posterior"].to_dataset().equals(tree["posterior"].to_dataset())
    assert az.summary(data).index.tolist() == ["mu"]


def test_arviz_base_takes_the_tree():
    base = pytest.importorskip("arviz_base", reason="part of ArviZ 1; of its own before")
    tree = known.normal(0).to_datatree(num_draws=50)
    assert base.convert_to_datatree(tree) is tree
    assert base.extract(tree).size == 50
