from __future__ import annotations

import dataclasses
import importlib
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known_fits import dataset, normal_loo, normal_mean, variational

import zoo
from zoo.diagnostics.compare import (
    Estimate,
    Fit,
    _conclude,
    _deciding,
    _gaps,
    comparison,
    jackknife,
    standard_error,
)
from zoo.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_function_and_its_module_have_names_of_their_own():
    module = importlib.import_module("zoo.diagnostics.compare")
    assert callable(zoo.compare)
    assert zoo.compare is module.compare
    assert isinstance(zoo.diagnostics.compare, types.ModuleType)


def wide(data, rows=30):
    """The model of ``normal_mean`` with twice the noise, and its exact posterior."""
    y = data.train["y"]
    precision = 1 + rows / 4
    mean, scale = y.sum() / 4 / precision, precision**-0.5

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=batch.get("y"))

    return variational(model, lambda batch: pyro.sample("mu", dist.Normal(mean, scale)), data)


def test_the_better_model_comes_first_with_a_paired_error():
    test = {"index": torch.arange(50), "y": 0.5 + torch.randn(50, dtype=torch.float64)}
    test["x"] = torch.zeros(50, 1, dtype=torch.float64)
    model, guide, data = normal_mean(task="regression", test=test)
    data.train["x"] = torch.zeros(30, 1, dtype=torch.float64)
    good, bad = variational(model, guide, data), wide(data)
    table = zoo.compare({"bad": bad, "good": good}, num_draws=500)
    assert list(table.index) == ["good", "bad"]
    exact = normal_loo(data.train["y"])
    assert table.loc["good", "elpd"] == pytest.approx(float(exact.sum()), abs=0.3)
    assert table.loc["good", "difference"] == 0
    assert table.loc["bad", "difference"] == pytest.approx(table.loc["bad", "elpd"] - table.loc["good", "elpd"])
    assert 0 < table.loc["bad", "difference_se"] < table.loc["bad", "se"] + table.loc["good", "se"]
    assert table["bad_k"].max() == 0
    assert table.loc["good", "test_nlpd"] < table.loc["bad", "test_nlpd"]


def test_fits_are_named():
    model, guide, data = normal_mean()
    posterior = variational(model, guide, data)
    assert list(zoo.compare([posterior, posterior], num_draws=50).index) == ["made-up (svi) 0", "made-up (svi) 1"]


def test_what_has_no_leave_one_out_is_missing():
    data = dataset({"y": torch.zeros(3, dtype=torch.float64)})

    def silent(batch):
        pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))

    table = zoo.compare({"silent": variational(silent, silent, data)}, num_draws=20)
    assert np.isnan(table.loc["silent", "elpd"])


def test_other_data_are_refused():
    small, large = variational(*normal_mean(rows=10)), variational(*normal_mean(rows=20))
    with pytest.raises(DataError, match="same data"):
        zoo.compare({"a": small, "b": large})
    with pytest.raises(DataError, match="nothing to compare"):
        zoo.compare([])


def test_jackknife_of_a_mean_is_the_usual_standard_error():
    values = torch.randn(15, dtype=torch.float64)
    found = jackknife(lambda keep: {"mean": float(values[keep].mean())}, 15)["mean"]
    assert len(found) == 15
    assert standard_error(found) == pytest.approx(float(values.std() / 15**0.5))
    few = jackknife(lambda keep: {"mean": float(values[keep].mean())}, 15, groups=3)["mean"]
    assert len(few) == 3


def test_standard_errors_of_scores_are_those_of_the_rows():
    test = {"index": torch.arange(400), "y": 0.5 + torch.randn(400, dtype=torch.float64)}
    test["x"] = torch.zeros(400, 1, dtype=torch.float64)
    model, guide, data = normal_mean(task="regression", test=test)
    data.train["x"] = torch.zeros(30, 1, dtype=torch.float64)
    good, bad = variational(model, guide, data), wide(data)
    found = comparison({"good": good, "bad": bad}, num_draws=200)
    first, second = found.fits
    assert (first.label, found.split, found.held_out) == ("good", "test", 400)
    residual = np.abs(test["y"].numpy() - float(data.train["y"].sum() / 31))
    error = residual.std(ddof=1) / 20
    assert 0.5 * error < first.scores["mae"].se < 1.7 * error
    # Both fits err on the same rows, so that their difference is known much better than either score.
    assert second.gaps["mae"].se < 0.2 * second.scores["mae"].se
    assert first.gaps["mae"].value == 0
    assert found.better == "clear"
    assert "good predicts the test rows better than bad: the difference of nlpd is" in found.finding
    table = found.table()
    assert table.loc["good", "test_mae_se"] == first.scores["mae"].se
    assert found.to_json()["fits"][1]["gaps"]["mae"]["se"] == second.gaps["mae"].se


def test_a_difference_below_four_nats_is_not_clear():
    model, guide, data = normal_mean()
    same, other = variational(model, guide, data), variational(*normal_mean(scale_factor=1.2))
    found = comparison({"same": same, "other": other}, num_draws=400)
    assert found.better == "unclear"
    assert "small difference" in found.finding
    assert any("not checked" in caution for caution in found.cautions)


def test_data_of_the_same_name_and_size_but_other_content_are_refused():
    one, other = variational(*normal_mean(seed=0)), variational(*normal_mean(seed=1))
    with pytest.raises(DataError, match="different content"):
        zoo.compare({"a": one, "b": other})


def far_off(data, wrong=2.0):
    """A guide so narrow that leave-one-out densities from it mean nothing, around the right mean plus ``wrong``."""
    model, _, _ = normal_mean()
    centre = data.train["y"].sum() / 31 + wrong
    return variational(model, lambda batch: pyro.sample("mu", dist.Normal(centre, 1e-3)), data)


def with_test(rows=200, seed=0, centre=0.5):
    noise = torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    test = {"index": torch.arange(rows), "y": centre + noise, "x": torch.zeros(rows, 1, dtype=torch.float64)}
    model, guide, data = normal_mean(task="regression", test=test)
    data.train["x"] = torch.zeros(30, 1, dtype=torch.float64)
    return model, guide, data


def test_held_out_rows_decide_not_a_density_that_cannot_be_trusted():
    """Importance weights of a narrow guide are useless; on new rows it predicts as the exact one does."""
    model, guide, data = with_test()
    found = comparison({"exact": variational(model, guide, data), "narrow": far_off(data, wrong=0.0)}, num_draws=400)
    narrow = next(f for f in found.fits if f.label == "narrow")
    assert narrow.bad_k == 1
    assert narrow.elpd is None
    assert narrow.difference is None
    assert found.better == "unclear", found.finding
    assert "nats" not in found.finding
    assert any("not examined" in caution and "100.0% of the rows" in caution for caution in found.cautions)
    assert np.isnan(found.table().loc["narrow", "elpd"])


def test_held_out_rows_decide_where_leave_one_out_is_not_looked_at():
    model, guide, data = with_test()
    found = comparison({"off": far_off(data), "exact": variational(model, guide, data)}, num_draws=400)
    assert found.better == "clear"
    assert found.fits[0].label == "exact"


def test_without_held_out_rows_an_untrusted_density_ranks_nothing():
    model, guide, data = normal_mean()
    found = comparison({"exact": variational(model, guide, data), "narrow": far_off(data)}, num_draws=400)
    assert found.better == "unknown"
    assert found.finding.startswith("Not examined")
    assert "held out" in found.finding


def gaps_of(**gaps):
    """Two fits whose scores differ by the given values, each with a standard error of one."""
    generator = np.random.default_rng(0)
    spread = generator.normal(size=20)
    spread = (spread - spread.mean()) / np.sqrt((19 / 20) * ((spread - spread.mean()) ** 2).sum())
    fits = {
        label: Fit(
            label=label, method="m", title="M", engine="svi", verdict="usable",
            scores={n: Estimate(5.0 + (v if label == "b" else 0.0), 3.0) for n, v in gaps.items()},
        )
        for label in ("a", "b")
    }  # fmt: skip
    replicates = {
        label: {n: f.scores[n].value + (spread if label == "b" else np.zeros(20)) for n in gaps}
        for label, f in fits.items()
    }
    by, signs = _deciding(fits, replicates, "nlpd", 1.0)
    ordered = sorted(fits.values(), key=lambda f: signs[by] * f.scores[by].value)
    reps = {f.label: replicates[f.label] for f in ordered}
    done = [dataclasses.replace(f, gaps=_gaps(ordered[0], f, reps)) for f in ordered]
    return _conclude(done, by, "nlpd", signs, "test", reps, {})


def test_another_score_decides_where_that_of_the_task_cannot():
    better, finding, _ = gaps_of(nlpd=0.5, rmse=6.0, mae=1.0)
    assert (better, "a predicts the test rows better than b: the difference of rmse" in finding) == ("clear", True)
    better, finding, _ = gaps_of(nlpd=0.5, rmse=-6.0)
    assert (better, finding.startswith("b predicts")) == ("clear", True)
    better, finding, _ = gaps_of(nlpd=0.5, rmse=1.0)
    assert (better, "cannot be told apart" in finding) == ("unclear", True)


def test_scores_that_disagree_are_named():
    better, finding, _ = gaps_of(nlpd=5.0, rmse=-6.0, mae=0.5)
    assert better == "unclear"
    assert "by nlpd a is better" in finding
    assert "by rmse b is better" in finding
    assert "mae" not in finding
