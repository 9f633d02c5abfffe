"""A model may hold tensors of another floating-point type than the fit's."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

import zoo
from zoo.inference.potential import Potential
from zoo.inference.program import no_compiler
from zoo.inference.promotion import OneType
from zoo.types import Pair

X = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -1.0])
QUICK: dict[str, Any] = {"engine": "nuts", "chains": 1, "draws": 6, "tune": 4, "compile": False}


class Regression(PyroModule):  # type: ignore[misc]
    """The usual Bayesian module, whose priors are built in the default type of that moment, float32."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        self.register_buffer("shift", torch.ones(2))

    def forward(self, batch: Any) -> None:
        mean = self.linear(batch["x"] - self.shift).squeeze(-1)
        with pyro.plate("datum", len(mean)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=batch["y"])


def closed(batch: Any) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    mean = torch.zeros(30)
    mean[torch.arange(15)] = X[:15] @ w
    mean[15:] = torch.einsum("nd,d->n", X[15:], w)
    with pyro.plate("datum", 30):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=Y)


def test_priors_and_constants_in_single_precision_are_evaluated_in_double() -> None:
    w = torch.tensor([0.3, -0.2], dtype=torch.float64)
    normal = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    residual = Y.double() - X.double() @ w
    due = normal.log_prob(w).sum() + (normal.log_prob(residual / 0.5) - torch.tensor(0.5).double().log()).sum()
    value, gradient = Potential(closed, {}).value_and_gradient(w)
    assert value.dtype == gradient.dtype == torch.float64
    assert abs(float(value - due)) < 1e-12 * abs(float(due))

    value, _ = Potential(Regression(), {"x": X, "y": Y}).value_and_gradient(torch.tensor([0.3, -0.2, 0.1]).double())
    bias = torch.tensor(0.1).double()
    residual = Y.double() - (X.double() - 1.0) @ torch.tensor([0.3, -0.2]).double() - bias
    inner = torch.cat([torch.tensor([0.3, -0.2]).double(), bias[None]])
    due = normal.log_prob(inner).sum() + (normal.log_prob(residual / 0.5) - torch.tensor(0.5).double().log()).sum()
    assert abs(float(value - due)) < 1e-12 * abs(float(due))


@pytest.mark.parametrize("model", [Regression(), closed], ids=["module", "closed-over"])
def test_a_posterior_in_double_precision_is_used_as_any_other(model: Any) -> None:
    found = zoo.fit(Pair(model), {"x": X, "y": Y}, **QUICK)
    assert found.info["dtype"] == "float64"
    draws = found.draws(6)
    assert found.log_likelihood(draws=draws)["y"].shape == (6, 30)
    assert found.predict(n=5).samples["y"].shape == (5, 30)
    assert "posterior_predictive" in found.to_arviz(num_draws=6)


def test_a_fit_in_single_precision_takes_constants_in_double() -> None:
    wide = X.double()

    def model(batch: Any) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("datum", 30):
            pyro.sample("y", dist.Normal(wide @ w, 0.5), obs=batch["y"])

    def guide(batch: Any) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(2)), 0.01).to_event(1))

    found = zoo.fit(Pair(model, guide), {"y": Y}, steps=300, learning_rate=0.05, compile=False)
    assert found.params["loc"].dtype == torch.float32
    torch.testing.assert_close(found.params["loc"], torch.tensor([1.0, -1.0]), atol=0.03, rtol=0)


def test_other_failures_and_results_are_torchs_own() -> None:
    single, double = torch.ones(2), torch.ones(2, dtype=torch.float64)
    with OneType(torch.float64):
        assert (single + single).dtype == torch.float32
        assert (single @ double).dtype == torch.float64
        with pytest.raises(RuntimeError, match="size"):
            single @ torch.ones(3, dtype=torch.float64)
        with pytest.raises(RuntimeError, match="dtype"):
            single @ torch.ones(2, dtype=torch.int64)
        single[torch.tensor([0])] = 2 * double[:1]
    assert single.tolist() == [2.0, 1.0]
    assert single.dtype == torch.float32


@pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())
def test_a_model_that_computes_in_single_precision_is_compiled() -> None:
    seen, y = X[:, 0] > 0, (Y > 0).float()

    def model(batch: Any) -> None:
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        with pyro.plate("datum", 30):
            pyro.sample("y", dist.Bernoulli(seen.float() * phi * 0.9 + 0.05), obs=y)

    assert Potential(model, {}).epsilon == torch.finfo(torch.float32).eps
    assert Potential(closed, {}).epsilon == torch.finfo(torch.float64).eps
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = zoo.fit(Pair(model), {"y": y}, engine="nuts", chains=1, draws=20, tune=20)
    assert found.info["compiled"], found.info["reason"]
