from __future__ import annotations

import json
import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known_fits import dataset, normal_chains, normal_mean, sampled, variational
from pyro import poutine
from pyro.infer import Predictive

import zoo
from zoo.diagnostics import to_arviz, to_datatree
from zoo.diagnostics.adapter import evaluate, log_likelihood, take_rows
from zoo.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore")
DOUBLE = torch.float64


@pytest.fixture(scope="module")
def schools():
    return zoo.fit("eight_schools", engine="svi", steps=150, compile=False, seed=0)


@pytest.fixture(scope="module")
def schools_data(schools):
    return to_arviz(schools, num_draws=300)


def hierarchy(rows=6, columns=3):
    """Two nested plates, a scalar, a deterministic site inside a plate and one outside."""
    y = torch.arange(rows * columns, dtype=DOUBLE).reshape(rows, columns) / 5
    data = dataset(
        {"y": y}, dims={"beta": ("feature",)}, coords={"feature": ("age", "income"), "item": ("a", "b", "c")}
    )

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("twice", 2 * mu)
        with pyro.plate("datum", rows, dim=-2, subsample=batch["index"]):
            shift = pyro.sample("shift", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("item", columns, dim=-1):
                centre = pyro.deterministic("centre", mu + shift + torch.zeros(columns))
                pyro.sample("y", dist.Normal(centre, 1.0), obs=batch.get("y"))

    def guide(batch):
        pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("datum", rows, dim=-2, subsample=batch["index"]):
            pyro.sample("shift", dist.Normal(torch.zeros(()), 1.0))

    return model, guide, data


# ------------------------------------------------------------------------------------------------ groups and dims
def test_every_group_of_a_variational_fit(schools):
    data = {"posterior", "posterior_predictive", "log_likelihood", "observed_data", "constant_data"}
    assert set(to_datatree(schools, num_draws=5).children) == data | {"prior", "prior_predictive"}


def test_dims_and_labels_come_from_the_plate(schools, schools_data):
    theta = schools_data.posterior["theta"]
    assert theta.dims == ("chain", "draw", "school")
    assert list(theta.coords["school"].values) == list(schools.data.coords["school"])
    assert schools_data.posterior["mu"].shape == (1, 300)
    for group in ("posterior_predictive", "log_likelihood", "prior_predictive"):
        assert schools_data[group]["y"].dims == ("chain", "draw", "school")
    assert schools_data.observed_data["y"].dims == ("school",)
    assert schools_data.constant_data["sigma"].dims == ("school",)


def test_deterministic_sites_stand_in_the_posterior_only(schools_data):
    posterior = schools_data.posterior
    expected = posterior["mu"] + posterior["tau"] * posterior["theta_trans"]
    np.testing.assert_allclose(posterior["theta"], expected, rtol=1e-5)
    assert "theta" in schools_data.prior
    for group in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        assert list(schools_data[group].data_vars) == ["y"]


def test_draws_agree_across_groups_and_with_the_posterior(schools, schools_data):
    draws = schools.draws(300, seed=0)
    np.testing.assert_array_equal(schools_data.posterior["mu"].values[0], draws["mu"].numpy())
    theta = torch.tensor(schools_data.posterior["theta"].values[0])
    train = schools.data.train
    expected = dist.Normal(theta, train["sigma"]).log_prob(train["y"])
    np.testing.assert_allclose(schools_data.log_likelihood["y"].values[0], expected.numpy(), rtol=1e-5)


def test_arviz_runs_on_the_result(schools_data):
    names = az.summary(schools_data).index
    assert "theta[Choate]" in names
    assert "tau" in names
    assert az.loo(schools_data).n_data_points == 8
    assert not [d for d in schools_data.posterior.dims if "dim_" in str(d)]


def test_nested_plates_do_not_pad_what_stands_outside_them():
    model, guide, data = hierarchy()
    found = to_arviz(variational(model, guide, data), num_draws=20)
    shapes = {name: found.posterior[name].shape for name in ("mu", "beta", "shift", "centre", "twice")}
    assert shapes == {
        "mu": (1, 20),
        "beta": (1, 20, 2),
        "shift": (1, 20, 6, 1),
        "centre": (1, 20, 6, 3),
        "twice": (1, 20),
    }
    padded = Predictive(model, guide=guide, num_samples=20, parallel=True, return_sites=("mu",))(data.train)
    assert padded["mu"].shape != (20,), "Predictive no longer pads; the trap is gone"
    assert found.posterior["centre"].dims == ("chain", "draw", "datum", "item")
    assert found.posterior["beta"].dims == ("chain", "draw", "feature")
    assert list(found.posterior["feature"].values) == ["age", "income"]
    assert list(found.posterior["item"].values) == ["a", "b", "c"]
    assert found.observed_data["y"].dims == ("datum", "item")


def test_unnamed_event_axes_fall_back_to_the_site():
    data = dataset({"y": torch.zeros(3, dtype=DOUBLE)})

    def model(batch):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(4, 2), 1.0).to_event(2))
        with pyro.plate("datum", 3, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(weight.sum(), 1.0), obs=batch.get("y"))

    def guide(batch):
        pyro.sample("weight", dist.Normal(torch.zeros(4, 2), 1.0).to_event(2))

    found = to_arviz(variational(model, guide, data), num_draws=5)
    assert found.posterior["weight"].dims == ("chain", "draw", "weight_dim_0", "weight_dim_1")


def test_one_name_for_two_sizes_is_not_one_dimension():
    data = dataset({"y": torch.zeros(3, dtype=DOUBLE)}, dims={"a": ("unit",), "b": ("unit",), "c": ("unit", "unit")})

    def prior():
        for name, shape in (("a", (2,)), ("b", (5,)), ("c", (2, 2))):
            pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))

    def model(batch):
        prior()
        with pyro.plate("datum", 3, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(torch.zeros(()), 1.0), obs=batch.get("y"))

    found = to_arviz(variational(model, lambda batch: prior(), data), num_draws=5).posterior
    assert (found["a"].dims[2:], found["b"].dims[2:], found["c"].dims[2:]) == (
        ("unit",), ("b_dim_0",), ("unit", "c_dim_1"),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------- likelihood per datum
def test_a_subsampled_plate_does_not_scale_the_log_likelihood():
    model, guide, data = normal_mean(rows=40)
    posterior = variational(model, guide, data)
    part = take_rows(data, data.train, torch.tensor([3, 7, 11]))
    draws = posterior.draws(10, seed=1)
    with poutine.trace() as trace:
        model(part)
    assert trace.trace.nodes["y"]["scale"] == pytest.approx(40 / 3), "the plate does scale: there is something to undo"
    expected = dist.Normal(draws["mu"][:, None], 1.0).log_prob(part["y"])
    torch.testing.assert_close(log_likelihood(posterior, part, draws)["y"], expected)


def test_masked_data_count_nothing():
    keep = torch.tensor([True, False, True, True])
    data = dataset({"y": torch.tensor([0.0, 50.0, 1.0, 2.0], dtype=DOUBLE)})

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("datum", 4, subsample=batch["index"]), poutine.mask(mask=keep[batch["index"]]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    posterior = variational(model, lambda batch: pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0)), data)
    value = log_likelihood(posterior, data.train, posterior.draws(5))["y"]
    assert (value[:, 1] == 0).all()
    assert (value[:, keep] < 0).all()


def mixture(rows=7):
    y = torch.linspace(-3, 3, rows, dtype=DOUBLE)
    data = dataset({"y": y})

    def model(batch):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("component", 3):
            centre = pyro.sample("centre", dist.Normal(torch.zeros(()), 3.0))
        with pyro.plate("datum", rows, subsample=batch["index"]):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.deterministic("mine", centre[z])
            pyro.sample("y", dist.Normal(centre[z], 0.5), obs=batch.get("y"))

    def guide(batch):
        pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
        with pyro.plate("component", 3):
            pyro.sample("centre", dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), 0.5))

    return model, guide, data


def test_enumerated_latents_are_summed_out_per_datum():
    model, guide, data = mixture()
    posterior = variational(model, guide, data)
    draws = posterior.draws(20, seed=3)
    y = data.train["y"]
    terms = draws["weights"].log()[:, None] + dist.Normal(draws["centre"][:, None], 0.5).log_prob(y[None, :, None])
    torch.testing.assert_close(
        log_likelihood(posterior, data.train, draws)["y"], terms.logsumexp(-1), rtol=1e-5, atol=0
    )
    part = take_rows(data, data.train, torch.tensor([1, 4]))
    torch.testing.assert_close(
        log_likelihood(posterior, part, draws)["y"], terms.logsumexp(-1)[:, [1, 4]], rtol=1e-5, atol=0
    )
    found = to_arviz(posterior, num_draws=60)
    assert found.log_likelihood["y"].dims == ("chain", "draw", "datum")
    assert found.posterior["z"].dims == ("chain", "draw", "datum")
    centre = found.posterior["centre"].values[0]
    z = found.posterior["z"].values[0]
    np.testing.assert_array_equal(found.posterior["mine"].values[0], np.take_along_axis(centre, z, 1))
    # The assignments come from their conditional given the data: the outermost data go to the outermost components.
    assert (z[:, 0] == 0).mean() > 0.8
    assert (z[:, -1] == 2).mean() > 0.8
    az.loo(found)


def test_enumerated_latents_with_a_latent_below_them():
    """x_n ~ N(m_z, 1) is conditioned, so p(y_n | x_n) = sum_z p(z) p(x|z) p(y|x, z) / sum_z p(z) p(x|z)."""
    y = torch.tensor([0.3, -1.2, 2.0], dtype=DOUBLE)
    data = dataset({"y": y})
    centres, gains = torch.tensor([-1.0, 1.5], dtype=DOUBLE), torch.tensor([0.5, 2.0], dtype=DOUBLE)

    def model(batch):
        with pyro.plate("datum", 3, subsample=batch["index"]):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"}).long()
            x = pyro.sample("x", dist.Normal(centres[z], 1.0))
            pyro.sample("y", dist.Normal(gains[z] * x, 1.0), obs=batch.get("y"))

    def guide(batch):
        with pyro.plate("datum", 3, subsample=batch["index"]):
            pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))

    posterior = variational(model, guide, data)
    draws = posterior.draws(10)
    x = draws["x"][..., None]
    prior = torch.tensor([0.7, 0.3], dtype=DOUBLE).log() + dist.Normal(centres, 1.0).log_prob(x)
    joint = prior + dist.Normal(gains * x, 1.0).log_prob(y[None, :, None])
    expected = joint.logsumexp(-1) - prior.logsumexp(-1)
    torch.testing.assert_close(log_likelihood(posterior, data.train, draws)["y"], expected, rtol=1e-5, atol=1e-9)


def test_a_chain_of_enumerated_states_gives_one_value_per_sequence():
    y = torch.tensor([[0.1, 1.2, 0.9], [-0.5, 0.0, 2.0]], dtype=DOUBLE)
    data = dataset({"y": y})
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=DOUBLE)

    def model(batch):
        centre = pyro.sample("centre", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("sequence", 2, subsample=batch["index"], dim=-1):
            z = torch.zeros((), dtype=torch.long)
            for t in pyro.markov(range(3)):
                z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Normal(centre[..., z], 1.0), obs=batch["y"][:, t])

    def guide(batch):
        pyro.sample("centre", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    posterior = variational(model, guide, data)
    draws = posterior.draws(5)
    found = evaluate(posterior, data.train, draws)
    expected = torch.zeros(5, 2, dtype=DOUBLE)
    for i, centre in enumerate(draws["centre"]):
        for n in range(2):
            forward = torch.zeros(2, dtype=DOUBLE)
            for t in range(3):
                step = transition[0] if t == 0 else forward @ transition
                forward = step * dist.Normal(centre, 1.0).log_prob(y[n, t]).exp()
            expected[i, n] = forward.sum().log()
    assert found.plates == {"y": ("sequence",)}
    torch.testing.assert_close(found.log_likelihood["y"], expected, rtol=1e-5, atol=0)


def test_a_factor_is_no_datum():
    data = dataset({"y": torch.zeros(3, dtype=DOUBLE)})

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("push", -(mu**2))
        with pyro.plate("datum", 3, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    found = to_arviz(
        variational(model, lambda batch: pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0)), data), num_draws=5
    )
    assert list(found.log_likelihood.data_vars) == ["y"]
    assert "push" in json.loads(found.attrs["left_out"])[0]


# ----------------------------------------------------------------------------------------------------------- size
def test_large_sites_are_summarised_and_said_to_be():
    data = dataset({"y": torch.zeros(3, dtype=DOUBLE)})

    def model(batch):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(40, 30), 1.0).to_event(2))
        with pyro.plate("datum", 3, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(weight.mean(), 1.0), obs=batch.get("y"))

    def guide(batch):
        pyro.sample("weight", dist.Normal(torch.zeros(40, 30), 1.0).to_event(2))

    posterior = variational(model, guide, data)
    found = to_arviz(posterior, num_draws=50, max_elements=1_000)
    assert "weight" not in found.posterior
    summary = found.posterior["weight_summary"]
    weight = posterior.draws(50, seed=0)["weight"].flatten(1)
    np.testing.assert_allclose(summary.sel(statistic="norm").values[0], weight.norm(dim=1), rtol=1e-6)
    np.testing.assert_allclose(summary.sel(statistic="mean").values[0], weight.mean(1), rtol=1e-6)
    np.testing.assert_allclose(summary.sel(statistic="sd").values[0], weight.std(1), rtol=1e-6)
    np.testing.assert_allclose(summary.sel(statistic="max_abs").values[0], weight.abs().amax(1), rtol=1e-6)
    (left_out,) = json.loads(found.attrs["left_out"])
    assert "1,200 elements of 'weight'" in left_out
    assert "weight_summary[norm]" in az.summary(found).index
    whole = to_arviz(posterior, num_draws=5, max_elements=1_200)
    assert whole.posterior["weight"].shape == (1, 5, 40, 30)
    assert json.loads(whole.attrs["left_out"]) == []


def test_many_rows_enter_as_one_random_subset():
    model, guide, data = normal_mean(rows=300)
    found = to_arviz(variational(model, guide, data), num_draws=10, max_elements=50)
    rows = found.log_likelihood["datum"].values
    assert len(rows) == 50
    assert not np.array_equal(rows, np.arange(50))
    assert found.posterior_predictive["y"].shape == (1, 10, 50)
    np.testing.assert_array_equal(found.observed_data["y"].values, data.train["y"].numpy()[rows])
    assert "250 of 300 rows" in json.loads(found.attrs["left_out"])[0]


def test_a_prior_that_cannot_be_sampled_is_left_out_with_the_reason():
    class Improper(dist.Normal):
        def rsample(self, sample_shape=()):
            raise NotImplementedError("improper")

    model, guide, data = normal_mean()

    def flat(batch):
        mu = pyro.sample("mu", Improper(torch.zeros(()), 1.0))
        with pyro.plate("datum", 30, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))

    found = to_datatree(variational(flat, guide, data), num_draws=10)
    assert "prior" not in found.children
    assert any("improper" in line for line in json.loads(found.attrs["left_out"]))
    assert "prior" in to_datatree(variational(model, guide, data), num_draws=10).children


# --------------------------------------------------------------------------------------------------------- chains
def test_chains_enter_whole_with_their_statistics():
    model, _, data = normal_mean()
    posterior = sampled(model, data, normal_chains(data, chains=3, draws=100))
    found = to_arviz(posterior, num_draws=7)
    np.testing.assert_array_equal(found.posterior["mu"].values, posterior.chains["mu"].numpy())
    assert found.log_likelihood["y"].shape == (3, 100, 30)
    expected = dist.Normal(posterior.chains["mu"][..., None], 1.0).log_prob(data.train["y"])
    np.testing.assert_allclose(found.log_likelihood["y"].values, expected.numpy())
    assert found.posterior_predictive["y"].shape == (3, 100, 30)
    assert found.sample_stats["energy"].shape == (3, 100)
    az.loo(found)
    assert az.rhat(found)["mu"] < 1.05


# ------------------------------------------------------------------------------------------------------ behaviour
def test_nothing_outside_is_touched(schools):
    pyro.clear_param_store()
    pyro.param("mine", torch.ones(()))
    before = torch.get_rng_state()
    dtype = torch.get_default_dtype()
    to_arviz(schools, num_draws=5)
    assert torch.equal(before, torch.get_rng_state())
    assert set(pyro.get_param_store()) == {"mine"}
    assert torch.get_default_dtype() == dtype
    pyro.clear_param_store()


def test_the_seed_decides(schools):
    one, same, other = (to_arviz(schools, num_draws=5, seed=s) for s in (1, 1, 2))
    for group in ("posterior", "posterior_predictive", "prior"):
        assert one[group].equals(same[group])
        assert not one[group].equals(other[group])


def test_replicates_and_prior_have_the_right_moments():
    model, guide, data = normal_mean(rows=200)
    found = to_arviz(variational(model, guide, data), num_draws=2_000)
    mean = float(data.train["y"].sum() / 201)
    assert float(found.posterior_predictive["y"].mean()) == pytest.approx(mean, abs=0.02)
    assert float(found.prior["mu"].std()) == pytest.approx(1.0, abs=0.08)
    assert float(found.prior_predictive["y"].std()) == pytest.approx(math.sqrt(2), abs=0.08)


@pytest.mark.parametrize("options", [{"num_draws": 0}, {"max_elements": 0}])
def test_no_draws_are_refused(schools, options):
    with pytest.raises(DataError, match="allowed: 1 or more"):
        to_arviz(schools, **options)
