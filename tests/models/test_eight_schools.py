"""Eight schools: both forms are one posterior, known in closed form given tau, and published by posteriordb."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import MultivariateNormal

from zoo.errors import DataError
from zoo.models.eight_schools import Hyper, build, exact_moments, sites
from zoo.types import Dataset, Pair

# posteriordb, eight_schools-eight_schools_noncentered, BSD-3: mean, standard deviation and Monte Carlo errors of both,
# from 10,000 reference draws.
POSTERIORDB = {
    "theta[1]": (6.1505, 5.6159, 0.0557, 0.0622),
    "theta[2]": (4.9396, 4.6456, 0.0462, 0.0412),
    "theta[3]": (3.9059, 5.2807, 0.0542, 0.0562),
    "theta[4]": (4.7960, 4.7709, 0.0475, 0.0436),
    "theta[5]": (3.6144, 4.6147, 0.0461, 0.0413),
    "theta[6]": (4.0511, 4.7962, 0.0485, 0.0452),
    "theta[7]": (6.3172, 5.0029, 0.0499, 0.0464),
    "theta[8]": (4.8840, 5.3177, 0.0543, 0.0636),
    "mu": (4.4105, 3.3093, 0.0330, 0.0238),
    "tau": (3.6021, 3.1985, 0.0319, 0.0455),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data() -> Dataset:
    train = {
        "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64),
        "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64),
        "index": torch.arange(8),
    }
    return Dataset(name="eight_schools", task="meta_analysis", train=train)


def log_joint(data: Dataset, hyper: Hyper, **values: Tensor) -> Tensor:
    model = poutine.condition(build(data, hyper).model, data=values)
    return poutine.trace(model).get_trace(data.train).log_prob_sum()


def draw(num: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(num, 10, generator=generator, dtype=torch.float64)
    return [(4 * row[0], (1 + row[1]).exp(), 6 * row[2:]) for row in normal]


def mu_given_tau(data: Dataset, tau: Tensor, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """Mean and variance of mu given tau: a precision-weighted mean of the schools and the prior."""
    precision = 1 / (data.train["sigma"] ** 2 + tau**2)
    variance = 1 / (precision.sum() + hyper.mu_scale**-2)
    return variance * (precision * data.train["y"]).sum(), variance


def worst_distance(moments: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """Largest distance from posteriordb, in its Monte Carlo errors, over the means and standard deviations."""
    worst = 0.0
    for name, (mean, sd, mean_error, sd_error) in POSTERIORDB.items():
        site, _, position = name.rstrip("]").partition("[")
        at = int(position) - 1 if position else ...
        worst = max(worst, abs(float(moments[site][0][at]) - mean) / mean_error)
        worst = max(worst, abs(float(moments[site][1][at]) - sd) / sd_error)
    return worst


def test_the_two_forms_are_one_density_up_to_the_jacobian(data: Dataset) -> None:
    for mu, tau, theta in draw(5, seed=0):
        centred = log_joint(data, Hyper(centred=True), mu=mu, tau=tau, theta=theta)
        other = log_joint(data, Hyper(), mu=mu, tau=tau, theta_trans=(theta - mu) / tau)
        torch.testing.assert_close(other, centred + 8 * tau.log(), rtol=1e-12, atol=1e-10)
        assert abs(other - centred) > 0.1


@pytest.mark.parametrize("hyper", [Hyper(centred=True), Hyper(centred=True, mu_scale=2.0, tau_scale=9.0)])
def test_given_tau_the_posterior_is_the_exact_gaussian(data: Dataset, hyper: Hyper) -> None:
    y, sigma = data.train["y"], data.train["sigma"]
    tau = torch.tensor(3.0, dtype=torch.float64)
    constants = []
    for mu, _, theta in draw(6, seed=1):
        mean, variance = mu_given_tau(data, tau, hyper)
        exact = dist.Normal(mean, variance.sqrt()).log_prob(mu)
        precision = sigma**-2 + tau**-2
        exact = exact + dist.Normal((y / sigma**2 + mu / tau**2) / precision, precision**-0.5).log_prob(theta).sum()
        constants.append(log_joint(data, hyper, mu=mu, tau=tau, theta=theta) - exact)
    # What is left is log p(tau) + log p(y | tau), the same at every point and known: y is jointly normal.
    covariance = torch.diag(sigma**2 + tau**2) + hyper.mu_scale**2
    evidence = MultivariateNormal(torch.zeros(8, dtype=torch.float64), covariance).log_prob(y)
    evidence = evidence + dist.HalfCauchy(torch.tensor(hyper.tau_scale, dtype=torch.float64)).log_prob(tau)
    # Python-float prior scales are float32 constants unless the default type is raised.
    torch.testing.assert_close(torch.stack(constants), evidence.expand(6), rtol=1e-6, atol=1e-5)


def test_exact_moments_are_those_of_posteriordb(data: Dataset) -> None:
    assert worst_distance(exact_moments(data, Hyper())) < 3.5  # twenty numbers


@pytest.mark.parametrize("wrong", [Hyper(mu_scale=20.0), Hyper(tau_scale=1.0), Hyper(tau_scale=25.0)])
def test_a_wrong_prior_is_caught_by_posteriordb(data: Dataset, wrong: Hyper) -> None:
    assert worst_distance(exact_moments(data, wrong)) > 10.0


@pytest.mark.parametrize("centred", [True, False])
def test_sites_and_plates_are_as_declared(data: Dataset, centred: bool) -> None:
    hyper = Hyper(centred=centred)
    pair = build(data, hyper)
    assert pair.guide is not None
    for program in (pair.model, pair.guide):
        pyro.clear_param_store()
        trace = poutine.trace(program).get_trace(data.train)
        latent = {
            name: tuple(f.name for f in site["cond_indep_stack"])
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"] and not isinstance(site["fn"], _Subsample)
        }
        assert latent == sites(hyper)
    pyro.clear_param_store()


def test_a_batch_without_estimates_predicts_them(data: Dataset) -> None:
    batch = {name: value for name, value in data.train.items() if name != "y"}
    trace = poutine.trace(build(data, Hyper()).model).get_trace(batch)
    assert not trace.nodes["y"]["is_observed"]
    assert trace.nodes["y"]["value"].shape == (8,)


def test_a_minibatch_of_schools_is_scaled_and_keeps_its_own_parameters(data: Dataset) -> None:
    pair = build(data, Hyper(centred=True))
    assert pair.guide is not None
    batch = {name: value[[5, 2]] for name, value in data.train.items()}
    with pyro.get_param_store().scope():
        pyro.param("theta_loc", 100.0 * torch.arange(8.0))
        guide = poutine.trace(pair.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch)
    assert model.nodes["y"]["scale"] == guide.nodes["theta"]["scale"] == 4.0
    torch.testing.assert_close(guide.nodes["theta"]["fn"].loc, torch.tensor([500.0, 200.0]))


def train(pair: Pair, batch: dict[str, Tensor], steps: int, seed: int = 0) -> list[float]:
    pyro.set_rng_seed(seed)
    svi = SVI(pair.model, pair.guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.1 ** (1 / steps)}), Trace_ELBO())
    return [svi.step(batch) for _ in range(steps)]


def test_the_pair_trains_in_a_plain_pyro_loop_and_finds_mu(data: Dataset) -> None:
    batch = {name: v.float() if v.is_floating_point() else v for name, v in data.train.items()}
    with pyro.get_param_store().scope():
        losses = train(build(data, Hyper()), batch, steps=1_000)
        found = {name: value.detach() for name, value in pyro.get_param_store().items()}
    assert np.mean(losses[-200:]) < np.mean(losses[:100]) - 1.0
    exact = exact_moments(data, Hyper())["mu"]
    assert float(found["mu_loc"]) == pytest.approx(exact[0], abs=0.6)
    assert float(found["mu_scale"]) == pytest.approx(exact[1], rel=0.25)
    assert set(found) == {f"{site}_{kind}" for site in sites(Hyper()) for kind in ("loc", "scale")}


def log_evidence(data: Dataset, hyper: Hyper, num_nodes: int = 2_000) -> Tensor:
    """log p(y), by quadrature over tau; y given tau is jointly normal."""
    y, sigma = data.train["y"], data.train["sigma"]
    tau = hyper.tau_scale * torch.tan(torch.pi / 2 * (torch.arange(num_nodes, dtype=torch.float64) + 0.5) / num_nodes)
    covariance = torch.diag_embed(sigma**2 + tau[:, None] ** 2) + hyper.mu_scale**2
    return MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y).logsumexp(0) - np.log(num_nodes)


def estimated_log_evidence(data: Dataset, pair: Pair, num: int = 20_000) -> Tensor:
    """log of the mean importance weight, from a guide that is a little wider than the posterior, in one pass."""
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope(), pyro.plate("particle", num, dim=-2):
        pyro.param("mu_loc", torch.tensor(4.4))
        pyro.param("mu_scale", torch.tensor(4.0), constraint=dist.constraints.positive)
        pyro.param("tau_loc", torch.tensor(0.8))
        pyro.param("tau_scale", torch.tensor(1.4), constraint=dist.constraints.positive)
        pyro.param("theta_trans_scale", 1.1 * torch.ones(8), constraint=dist.constraints.positive)
        guide = poutine.trace(pair.guide).get_trace(data.train)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(data.train)
    weights = torch.zeros((num, 1), dtype=torch.float64)
    for trace, sign in ((model, 1.0), (guide, -1.0)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and not site["infer"].get("_deterministic"):
                weights = weights + sign * site["log_prob"].detach().sum(-1, keepdim=True)
    return weights.logsumexp(0).squeeze() - np.log(num)


def test_importance_weights_of_the_guide_average_to_the_exact_evidence(data: Dataset) -> None:
    estimate = estimated_log_evidence(data, build(data, Hyper()))
    assert float(estimate) == pytest.approx(float(log_evidence(data, Hyper())), abs=0.05)


def test_a_wrong_guide_is_caught_by_the_exact_evidence(data: Dataset) -> None:
    """A guide that samples one density of tau and reports another."""
    pair = build(data, Hyper())

    def wrong(batch: dict[str, Tensor]) -> None:
        with poutine.block(hide=["tau"]):
            pair.guide(batch)
        loc, scale = pyro.param("tau_loc"), pyro.param("tau_scale", constraint=dist.constraints.positive)
        log_tau = dist.Normal(loc, scale).sample((20_000, 1))
        log_density = dist.Normal(loc, scale).log_prob(log_tau)  # of log tau: the Jacobian is missing
        pyro.sample("tau", dist.Delta(log_tau.exp(), log_density))

    estimate = estimated_log_evidence(data, Pair(pair.model, wrong))
    assert float(estimate) != pytest.approx(float(log_evidence(data, Hyper())), abs=0.05)


def test_data_without_standard_errors_are_refused(data: Dataset) -> None:
    bare = Dataset(name="bare", task="meta_analysis", train={k: v for k, v in data.train.items() if k != "sigma"})
    with pytest.raises(DataError, match="no 'sigma'"):
        build(bare, Hyper())
