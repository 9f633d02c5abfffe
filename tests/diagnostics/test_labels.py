"""Elements are called by the labels of the data set wherever a person reads them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import zoo
from zoo.diagnostics import diagnose, labels
from zoo.diagnostics.inference import _elements
from zoo.types import Dataset


def fit(coords: dict[str, Any], hyper: Any = None) -> Any:
    """Return what the labels of a posterior are made of."""
    data = Dataset(name="toy", task="", train={"y": torch.zeros(2), "index": torch.arange(2)}, coords=coords)
    return SimpleNamespace(data=data, hyper=hyper)


def test_names_of_elements() -> None:
    posterior = fit({"feature": ("AtBat", "Hits"), "group": (3, 7, 11)})
    assert labels.names(posterior, "beta", ("feature",), (2,)) == ["beta[AtBat]", "beta[Hits]"]
    assert labels.names(posterior, "gamma", ("group", "gamma_dim_1"), (3, 2))[:3] == [
        "gamma[3, 0]",
        "gamma[3, 1]",
        "gamma[7, 0]",
    ]
    assert labels.names(posterior, "beta", ("features",), (2,)) == ["beta[AtBat]", "beta[Hits]"]
    assert labels.names(posterior, "tau", (), ()) == ["tau"]
    assert labels.names(posterior, "w", None, (2,)) == ["w[0]", "w[1]"]
    assert labels.names(posterior, "w", ("feature",), (3,)) == ["w[0]", "w[1]", "w[2]"], "another length"


def test_labels_that_stand_twice_are_told_apart() -> None:
    posterior = fit({"feature": ("a", "b", "a")})
    found = labels.names(posterior, "beta", ("feature",), (3,))
    assert found == ["beta[a #0]", "beta[b]", "beta[a #2]"]


def test_a_plate_is_labelled_by_the_hyper_parameter_that_lists_it() -> None:
    posterior = fit({}, SimpleNamespace(slopes=("age", "bmi", "age")))
    assert labels.names(posterior, "omega", ("slope",), (2,)) == ["omega[age]", "omega[bmi]"]
    assert labels.names(posterior, "omega", ("slope",), (3,)) == ["omega[0]", "omega[1]", "omega[2]"]


def table(rows: int = 60) -> pd.DataFrame:
    """Return a table with a number, a factor and a target."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"Hits": rng.normal(size=rows), "Walks": rng.normal(size=rows)})
    return frame.assign(y=2 * frame["Hits"] + rng.normal(size=rows))


@pytest.fixture(scope="module")
def posterior() -> Any:
    """Return a linear regression of one's own, poorly fitted."""

    def model(batch: Any) -> None:
        with pyro.plate("feature", 2):
            beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", 60, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(batch["x"] @ beta, 1.0), obs=batch.get("y"))

    data = zoo.datasets.read(table(), "y", validation=0, test=0)
    return zoo.fit(zoo.Pair(model, AutoNormal(model)), data, steps=20, compile=False)


def test_checks_name_the_worst_parameter(posterior: Any) -> None:
    drawn = {"beta": np.random.default_rng(0).normal(size=(2, 30, 2))}
    assert set(_elements(posterior, drawn)) == {"beta[Hits]", "beta[Walks]"}
    chains = torch.randn(4, 100, 2, generator=torch.Generator().manual_seed(0))
    chains[0, :, 1] += 5
    pair = zoo.Pair(posterior.pair.model)
    sampled = zoo.Posterior(pair=pair, data=posterior.data, engine="nuts", name="own", chains={"beta": chains})
    found = diagnose(sampled, checks=["r_hat"])["r_hat"]
    assert found.value["at"] == "beta[Walks]"
    assert "beta[Walks]" in found.explanation


def test_arviz_holds_the_same_labels(posterior: Any) -> None:
    exported = posterior.to_arviz(num_draws=5)
    assert list(exported.posterior["beta"].coords["feature"].values) == ["Hits", "Walks"]
