"""Hierarchical regression: with known variances the posterior is Gaussian and known; both forms are one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import zoo
from zoo.errors import DataError, UnknownNameError
from zoo.models.hierarchical_regression import METHOD, Hyper, StandardisedPoisson, build, group_table, sites, summary
from zoo.types import Claim, Dataset

NUM_GROUPS = 6
KNOWN = Hyper(tau=0.7, noise=0.5, slopes=("dose",))


def table(kind: str = "number", rows: int = 120, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    group = rng.integers(NUM_GROUPS, size=rows)
    group[:NUM_GROUPS] = np.arange(NUM_GROUPS)
    dose, age = rng.normal(5, 2, rows), rng.normal(50, 10, rows)
    eta = 0.3 * (dose - 5) - 0.02 * (age - 50) + rng.normal(0, 0.8, NUM_GROUPS)[group]
    y: Any = {
        "number": 20 + 3 * (eta + rng.normal(0, 0.5, rows)),
        "classes": np.where(rng.random(rows) < 1 / (1 + np.exp(-eta)), "yes", "no"),
        "counts": rng.poisson(np.exp(1 + 0.5 * eta)),
    }[kind]
    return pd.DataFrame({"dose": dose, "age": age, "clinic": [f"c{g}" for g in group], "y": y})


def read(kind: str = "number", **options: Any) -> Dataset:
    task = "classification" if kind == "classes" else "regression"
    frame = table(kind, **options)
    return zoo.datasets.read(frame, "y", group="clinic", task=task, validation=0, test=0)


def log_joint(data: Dataset, hyper: Hyper, values: dict[str, Tensor]) -> Tensor:
    batch = {k: v.double() if v.is_floating_point() else v for k, v in data.train.items()}
    model = poutine.condition(build(data, hyper).model, data=values)
    total: Tensor = poutine.trace(model).get_trace(batch).log_prob_sum()
    return total


def exact(data: Dataset, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (mu, beta, alpha, gamma) given the data, from their joint normal with y.

    All are linear in independent normals, so every covariance is a product; conditioning on y does the rest.
    """
    assert hyper.tau is not None
    assert hyper.noise is not None
    x, y, group = data.train["x"].double(), data.train["y"].double(), data.train["group"]
    features, groups = x.shape[1], int(group.max()) + 1
    eye = torch.eye(1 + features + 2 * groups, dtype=torch.float64)
    mu, beta, deviation, gamma = eye.split([1, features, groups, groups])  # rows of unit-variance sources
    sd = torch.cat([torch.tensor([hyper.mu_scale]), torch.full((features,), hyper.beta_scale),
                    torch.full((2 * groups,), hyper.tau)]).double()  # fmt: skip
    latents = torch.cat([mu, beta, mu + deviation, gamma]) * sd
    dose = [c.name for c in data.columns].index("dose")
    rows = (mu + deviation)[group] + x @ beta + x[:, dose, None] * gamma[group]
    rows = rows * sd
    cross = latents @ rows.mT
    gain = torch.linalg.solve(rows @ rows.mT + hyper.noise**2 * torch.eye(len(y), dtype=torch.float64), cross.mT).mT
    return gain @ y, latents @ latents.mT - gain @ cross.mT


def unpack(vector: Tensor, groups: int = NUM_GROUPS) -> dict[str, Tensor]:
    mu, beta, alpha, gamma = vector.split([1, 2, groups, groups])
    return {"mu": mu[0], "beta": beta, "alpha": alpha, "gamma": gamma[:, None]}


def off_exact(data: Dataset, hyper: Hyper, truth: Hyper) -> float:
    """Largest deviation of gradient and curvature of the log joint density from those of the exact posterior."""
    mean, covariance = exact(data, truth)
    at = mean.clone().requires_grad_()
    (found,) = torch.autograd.grad(log_joint(data, hyper, unpack(at)), at)
    curvature = torch.autograd.functional.hessian(lambda v: log_joint(data, hyper, unpack(v)), mean)
    precision = torch.linalg.inv(covariance)
    return max(float(found.abs().max()), float((curvature + precision).abs().max() / precision.abs().max()))


def test_density_with_known_variances_is_that_of_the_exact_posterior() -> None:
    data = read()
    centred = Hyper(tau=0.7, noise=0.5, slopes=("dose",), centred=True)
    assert off_exact(data, centred, KNOWN) < 1e-6


@pytest.mark.parametrize("wrong", [{"mu_scale": 4.0}, {"beta_scale": 1.5}, {"tau": 0.6}, {"noise": 0.6}], ids=str)
def test_a_wrong_prior_is_caught(wrong: dict[str, float]) -> None:
    values: dict[str, Any] = {"tau": 0.7, "noise": 0.5, "slopes": ("dose",), "centred": True, **wrong}
    assert off_exact(read(), Hyper(**values), KNOWN) > 1e-4


@pytest.mark.parametrize("kind", ["number", "classes", "counts"])
def test_both_forms_are_one_distribution(kind: str) -> None:
    data, count = read(kind), {"counts": kind == "counts"}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        mu, tau, omega, sigma, *rest = torch.randn(4 + 2 + 2 * NUM_GROUPS, generator=generator, dtype=torch.float64)
        beta, alpha, gamma = torch.stack(rest).split([2, NUM_GROUPS, NUM_GROUPS])
        common = {"mu": mu, "tau": tau.exp(), "omega": omega.exp()[None], "beta": beta, "sigma": sigma.exp()}
        alpha_trans, gamma_trans = (alpha - mu) / tau.exp(), (gamma / omega.exp())[:, None]
        one = log_joint(
            data, Hyper(slopes=("dose",), centred=True, **count), {**common, "alpha": alpha, "gamma": gamma[:, None]}
        )
        other = log_joint(
            data, Hyper(slopes=("dose",), **count), {**common, "alpha_trans": alpha_trans, "gamma_trans": gamma_trans}
        )
        jacobian = NUM_GROUPS * (tau + omega)  # of alpha and gamma with respect to their standardised values
        assert float(other - one) == pytest.approx(float(jacobian), rel=1e-9)


def test_nuts_finds_the_exact_moments() -> None:
    data = read()
    mean, covariance = exact(data, KNOWN)
    posterior = zoo.fit(METHOD, data, hyper=KNOWN, engine="nuts", chains=2, tune=300, draws=600, seed=0)
    draws = posterior.draws(1_200)
    draws = {**draws, **posterior.deterministics(draws)}
    found = torch.cat([draws["mu"][:, None], draws["beta"], draws["alpha"], draws["gamma"][..., 0]], -1).double()
    sd = covariance.diagonal().sqrt()
    assert float(((found.mean(0) - mean) / sd).abs().max()) < 0.2
    assert float((found.std(0) / sd).log().abs().max()) < 0.15


def test_pooling_has_both_limits() -> None:
    data = read()
    values = {"beta": torch.tensor([0.2, -0.1]).double(), "sigma": torch.tensor(0.6).double()}
    alpha = torch.randn(NUM_GROUPS, generator=torch.Generator().manual_seed(0)).double()
    x, y, group = data.train["x"].double(), data.train["y"].double(), data.train["group"]
    prior = dist.Normal(0.0, 2.0).log_prob(values["beta"]).sum() + dist.HalfNormal(1.0).log_prob(values["sigma"])
    none = dist.Normal(alpha[group] + x @ values["beta"], 0.6).log_prob(y).sum() + prior
    none = none + dist.Normal(0.0, 5.0).log_prob(alpha).sum()
    assert float(log_joint(data, Hyper(pooling="none"), {**values, "alpha": alpha})) == pytest.approx(float(none))
    mu = torch.tensor(0.3).double()
    complete = dist.Normal(mu + x @ values["beta"], 0.6).log_prob(y).sum() + prior + dist.Normal(0.0, 5.0).log_prob(mu)
    assert float(log_joint(data, Hyper(pooling="complete"), {**values, "mu": mu})) == pytest.approx(float(complete))


def test_counts_in_standardised_units_are_poisson() -> None:
    rate = torch.tensor([0.5, 3.0, 40.0]).double()
    standard = StandardisedPoisson(rate, 7.0, 2.5)
    count = torch.arange(200).double()[:, None]
    mass = (standard.log_prob((count - 7) / 2.5) - math.log(2.5)).exp()
    torch.testing.assert_close(mass, dist.Poisson(rate).log_prob(count).exp())
    torch.testing.assert_close(mass.sum(0), torch.ones(3).double())
    values = (count - 7) / 2.5
    torch.testing.assert_close((mass * values).sum(0), standard.mean)
    torch.testing.assert_close((mass * (values - standard.mean) ** 2).sum(0), standard.variance)
    torch.manual_seed(0)
    drawn = standard.expand((2, 3)).sample((5_000,)) * 2.5 + 7
    assert drawn.shape == (5_000, 2, 3)
    assert bool(((drawn - drawn.round()).abs() < 1e-6).all())
    torch.testing.assert_close(drawn.mean((0, 1)), rate, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", ["classes", "counts"])
def test_other_likelihoods_fit_and_score_in_the_user_s_units(kind: str) -> None:
    data, frame = read(kind), table(kind)
    hyper = Hyper(counts=kind == "counts")
    posterior = zoo.fit(METHOD, data, hyper=hyper, engine="svi", steps=500, learning_rate=0.05, seed=0, compile=False)
    assert "sigma" not in posterior.draws(2)
    found = posterior.predict_table(frame, draws=200)
    if kind == "counts":
        assert float(found["mean"].mean()) == pytest.approx(frame["y"].mean(), rel=0.1)
        assert bool((found["lower"] > -1e-5).all())
    else:
        assert float(found["p_yes"].mean()) == pytest.approx((frame["y"] == "yes").mean(), abs=0.05)
    assert "spread between groups (tau) (log rate)" in summary(posterior) or kind == "classes"
    assert group_table(posterior)["alone"].isna().all()


# ------------------------------------------------------------------------------------------------------ new groups
def test_new_groups_are_drawn_from_the_population() -> None:
    data = read(rows=400)
    posterior = zoo.fit(
        METHOD, data, hyper=Hyper(tau=0.7, noise=0.05), engine="svi", steps=600, learning_rate=0.05, compile=False
    )
    rows = pd.concat([table().iloc[:1]] * 4, ignore_index=True).assign(clinic=["c1", "new", "new", "other"])
    with pytest.warns(UserWarning, match="3 of 4 rows belong to groups that training did not have: 'new', 'other'; "):
        batch = zoo.datasets.encode(data, rows)
    assert batch["new_group"].tolist() == [-1, 0, 0, 1]
    means = posterior.predict({k: v for k, v in batch.items() if k != "y"}, n=4_000, seed=1).means["y"].double()
    sd = means.std(0)
    assert sd[0] < 0.1
    assert torch.allclose(sd[1:], torch.tensor(0.7).double(), rtol=0.1)
    correlation = torch.corrcoef(means.mT)
    assert correlation[1, 2] > 0.99  # one group
    assert abs(float(correlation[1, 3])) < 0.1  # another
    centre = posterior.draws(4_000)["mu"].double().mean() + float(
        posterior.draws(1_000)["beta"].mean(0) @ batch["x"][1]
    )
    assert float(means[:, 1].mean()) == pytest.approx(float(centre), abs=0.05)


def test_groups_of_a_table() -> None:
    data = read()
    assert data.coords["group"] == tuple(f"c{g}" for g in range(NUM_GROUPS))
    assert data.coords["feature"] == ("dose", "age")
    assert [data.coords["group"][g] for g in data.train["group"]] == table()["clinic"].tolist()
    numbered = table().assign(clinic=table()["clinic"].str[1:].astype(int) + 8)
    assert zoo.datasets.read(numbered, "y", group="clinic").coords["group"] == ("8", "9", "10", "11", "12", "13")
    held_out = zoo.datasets.read(
        {"x_train": np.arange(4.0)[:, None], "y_train": [0.0, 1.0, 3.0, 2.0], "clinic_train": ["a", "a", "b", "b"],
         "x_test": np.arange(2.0)[:, None], "y_test": [1.0, 2.0], "clinic_test": ["b", "z"]},
        "y", group="clinic", task="regression", validation=0,
    )  # fmt: skip
    assert "new_group" not in held_out.train
    assert held_out.split("test")["group"].tolist() == [1, 0]
    assert held_out.split("test")["new_group"].tolist() == [-1, 0]


def test_bad_input_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="group column 'clinc' is unknown; did you mean 'clinic'"):
        zoo.datasets.read(table(), "y", group="clinc")
    with pytest.raises(DataError, match="column 'y' is the target; name another one as the group"):
        zoo.datasets.read(table(), "y", group="y")
    with pytest.raises(DataError, match=r"1 missing \(NaN\) in clinic"):
        zoo.datasets.read(table().assign(clinic=[None, *table()["clinic"][1:]]), "y", group="clinic")
    with pytest.raises(DataError, match="a different value in each of its 84 rows"):
        zoo.datasets.read(table().assign(clinic=range(120)), "y", group="clinic")
    with pytest.raises(UnknownNameError, match="the column 'clinic' is missing, which says the group of a row"):
        zoo.datasets.encode(read(), table().drop(columns="clinic"))
    with pytest.raises(DataError, match=r"data set 'diabetes' has no groups; .* --group COLUMN"):
        build(zoo.datasets.load("diabetes"), Hyper())
    with pytest.raises(DataError, match="slopes has 'dosis', which is no feature of 'data'; did you mean 'dose'"):
        build(read(), Hyper(slopes=("dosis",)))
    below = table("counts").assign(y=lambda frame: frame["y"] - 3)
    with pytest.raises(DataError, match="counts is true, but the target of 'data' has negative numbers"):
        build(zoo.datasets.read(below, "y", group="clinic", task="regression"), Hyper(counts=True))
    with pytest.raises(DataError, match="counts is true, but the target of 'data' has numbers that are not whole"):
        build(read(), Hyper(counts=True))
    with pytest.raises(DataError, match="counts is true, but 'data' has classes as target"):
        build(read("classes"), Hyper(counts=True))
    with pytest.raises(DataError, match="tau_scale is 0; it must be positive"):
        build(read(), Hyper(tau_scale=0.0))


def test_saved_groups_are_loaded(tmp_path: Path) -> None:
    posterior = zoo.fit(METHOD, read(), engine="svi", steps=20, compile=False)
    posterior.save(tmp_path / "p")
    with pytest.warns(UserWarning, match="'c9'"):
        found = zoo.load(tmp_path / "p").predict_table(table().assign(clinic="c9"), draws=10)
    assert len(found) == 120


def test_quantities_of_interest() -> None:
    posterior = zoo.fit(METHOD, read(), engine="svi", steps=600, learning_rate=0.05, compile=False)
    frame = group_table(posterior)
    assert frame.index.name == "clinic"
    assert int(frame["rows"].sum()) == 120
    pooled, alone = frame["mean"] - frame["mean"].mean(), frame["alone"] - frame["mean"].mean()
    assert float((pooled / alone).median()) < 1.0  # drawn towards the mean
    assert pooled.corr(alone) > 0.98
    found = summary(posterior)
    assert found["groups"] == NUM_GROUPS
    assert 0 < float(found["share of the variance that lies between groups"]) < 1
    assert set(sites(Hyper(pooling="none"))) == {"beta", "sigma", "alpha"}
    assert set(sites(Hyper(counts=True))) == {"mu", "tau", "beta", "alpha_trans"}


@pytest.mark.parametrize("claim", METHOD.claims, ids=lambda claim: claim.statement[:40])
def test_claims_are_measured(claim: Claim) -> None:
    values = claim.measure(0, True)
    assert all({a.key, a.below or a.key} <= set(values) for a in claim.acceptance)
    assert all(v == v for v in values.values())
