from __future__ import annotations

import importlib
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known_fits import dataset, normal_loo, normal_mean, variational

import zoo
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
