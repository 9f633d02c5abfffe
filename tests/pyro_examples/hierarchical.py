"""Hierarchical models of tutorials: few rows, many plates, reparametrised latents, correlations."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.infer.reparam import AutoReparam, LocScaleReparam

from tests.pyro_examples.example import Example, example, generator

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


# ------------------------------------------------------------------------------------------------ eight schools
def schools(sigma, y=None):
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)).to_event(1))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)).to_event(1))
    tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)).to_event(1))
    theta = mu + tau * eta
    return pyro.sample("obs", dist.Normal(theta, sigma).to_event(1), obs=y)


def schools_guide(sigma, y=None):
    loc = pyro.param("loc_eta", torch.randn(8))
    scale = pyro.param("scale_eta", 0.1 * torch.rand(8), constraint=dist.constraints.positive)
    pyro.sample("eta", dist.Normal(loc, scale).to_event(1))
    m, s = pyro.param("m_mu", torch.randn(1)), pyro.param("logs_mu", torch.zeros(1))
    pyro.sample("mu", dist.Normal(m, s.exp()).to_event(1))
    lt, ls = pyro.param("m_logtau", torch.zeros(1)), pyro.param("logs_logtau", torch.zeros(1) - 1)
    exp = dist.transforms.ExpTransform()
    pyro.sample("tau", dist.TransformedDistribution(dist.Normal(lt, ls.exp()), [exp]).to_event(1))


@example("examples/eight_schools/svi.py")
def eight_schools() -> Example:
    return Example(model=schools, guide=schools_guide, args=(ERRORS, EFFECTS), new=(ERRORS,))


@example("examples/eight_schools/mcmc.py")
def eight_schools_nuts() -> Example:
    return Example(model=schools, args=(ERRORS, EFFECTS), new=(ERRORS,))


def centred(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, sigma), obs=y)


@example("LocScaleReparam, as in tutorial forecasting_iii")
def eight_schools_reparam() -> Example:
    model = poutine.reparam(centred, {"theta": LocScaleReparam()})
    return Example(model=model, guide=AutoNormal(model), args=(ERRORS, EFFECTS), new=(ERRORS,))


@example("AutoReparam, as in the release notes of Pyro 1.7")
def eight_schools_autoreparam() -> Example:
    model = AutoReparam(centered=0.0)(centred)
    return Example(model=model, guide=AutoNormal(model), args=(ERRORS, EFFECTS), new=(ERRORS,))


def messaged(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.LogNormal(1.0, 1.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, sigma), obs=y)


@example("AutoNormalMessenger")
def eight_schools_messenger() -> Example:
    return Example(model=messaged, guide=AutoNormalMessenger(messaged), args=(ERRORS, EFFECTS), new=(ERRORS,))


# ----------------------------------------------------------------------------------------------------- baseball
def partially_pooled(at_bats, hits=None):
    m = pyro.sample("m", dist.Uniform(0, 1))
    kappa = pyro.sample("kappa", dist.Pareto(1, 1.5))
    with pyro.plate("num_players", at_bats.shape[0]):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


@example("examples/baseball.py")
def baseball() -> Example:
    at_bats = torch.full((12,), 45.0)
    hits = torch.tensor([18.0, 17.0, 16.0, 15.0, 14.0, 14.0, 13.0, 12.0, 11.0, 11.0, 10.0, 7.0])
    return Example(
        model=partially_pooled, guide=AutoMultivariateNormal(partially_pooled), args=(at_bats, hits), new=(at_bats,)
    )


# ------------------------------------------------------------------------------------- correlated random effects
def correlations(y):
    d = y.shape[1]
    scale = pyro.sample("theta", dist.HalfCauchy(torch.ones(d)).to_event(1))
    lower = pyro.sample("L_omega", dist.LKJCholesky(d, torch.ones(())))
    factor = torch.mm(torch.diag(scale.sqrt()), lower)
    with pyro.plate("observations", y.shape[0]):
        pyro.sample("obs", dist.MultivariateNormal(torch.zeros(d), scale_tril=factor), obs=y)


@example("examples/lkj.py")
def lkj() -> Example:
    y = torch.randn(30, 3, generator=generator())
    return Example(
        model=correlations, guide=AutoNormal(correlations), args=(y,), optim=lambda: pyro.optim.Adam({"lr": 0.005})
    )


@example("examples/lkj.py by NUTS")
def lkj_nuts() -> Example:
    return Example(model=correlations, args=(torch.randn(30, 3, generator=generator()),))


# ---------------------------------------------------------------------------------- elections: two crossed factors
def crossed(state, age, asked, yes=None):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("states", 5, dim=-2):
        scale = pyro.sample("state_scale", dist.HalfNormal(1.0))
        by_state = pyro.sample("by_state", dist.Normal(0.0, scale))
    with pyro.plate("ages", 4, dim=-1):
        by_age = pyro.sample("by_age", dist.Normal(0.0, 0.5))
    logits = intercept + by_state + by_age
    with pyro.plate("cells", len(asked)):
        pyro.sample("obs", dist.Binomial(asked, logits=logits[..., state, age]), obs=yes)


@example("tutorial elections, pooled by state and age")
def elections() -> Example:
    state, age = torch.arange(20) // 4, torch.arange(20) % 4
    asked = torch.full((20,), 30.0)
    yes = torch.poisson(torch.full((20,), 12.0), generator=generator())
    return Example(
        model=crossed,
        guide=AutoNormal(crossed),
        args=(state, age, asked, yes),
        loss=TraceMeanField_ELBO,
        new=(state[:3], age[:3], asked[:3]),
    )


# ------------------------------------------------------------------------------------------ friction of a plane
def descent(times):
    mu = pyro.sample("mu", dist.Uniform(0.0, 0.5))
    slope = torch.tensor(torch.pi / 6)
    acceleration = 9.8 * (slope.sin() - mu * slope.cos())
    position, speed, moment = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for _ in range(40):  # a fixed number of steps, with the last one cut where the end is reached
        left = ((2.0 - position) / (speed + 1e-3)).clamp(min=0.0)
        dt = torch.minimum(left, torch.tensor(0.05))
        position, speed, moment = position + speed * dt + 1e-6, speed + acceleration * dt, moment + dt
    for i, seen in enumerate(times):
        pyro.sample(f"obs_{i}", dist.Normal(moment, 0.02), obs=seen)


@example("examples/inclined_plane.py, with SVI")
def inclined_plane() -> Example:
    times = 0.99 + 0.02 * torch.randn(6, generator=generator())
    return Example(model=descent, guide=AutoNormal(descent), args=(times,))


# ----------------------------------------------------------------------------------------------- maximum likelihood
def coin(data):
    f = pyro.param("latent_fairness", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
    with pyro.plate("data", data.size(0)):
        pyro.sample("obs", dist.Bernoulli(f), obs=data)


FLIPS = torch.tensor([1.0] * 6 + [0.0] * 4)


@example("tutorial mle_map, maximum likelihood")
def maximum_likelihood() -> Example:
    return Example(model=coin, guide=lambda data: None, args=(FLIPS,), optim=lambda: pyro.optim.SGD({"lr": 0.01}))


def fair_coin(data):
    f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
    with pyro.plate("data", data.size(0)):
        pyro.sample("obs", dist.Bernoulli(f), obs=data)


@example("tutorial mle_map, maximum a posteriori")
def maximum_a_posteriori() -> Example:
    return Example(model=fair_coin, guide=AutoDelta(fair_coin), args=(FLIPS,))


def coin_guide(data):
    a = pyro.param("alpha_q", torch.tensor(15.0), constraint=dist.constraints.positive)
    b = pyro.param("beta_q", torch.tensor(15.0), constraint=dist.constraints.positive)
    pyro.sample("latent_fairness", dist.Beta(a, b))


@example("tutorial svi_part_i")
def coin_by_svi() -> Example:
    def model(data):
        f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        for i in range(len(data)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(f), obs=data[i])

    return Example(
        model=model, guide=coin_guide, args=(FLIPS,), optim=lambda: pyro.optim.Adam({"lr": 5e-4, "betas": (0.9, 0.999)})
    )


@example("tutorial svi_part_ii, subsampling inside the plate")
def coin_by_minibatches() -> Example:
    def model(data):
        f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("observe_data", size=10, subsample_size=5) as rows:
            pyro.sample("obs", dist.Bernoulli(f), obs=data.index_select(0, rows))

    return Example(model=model, guide=coin_guide, args=(FLIPS,))


@example("tutorial svi_part_iii, a baseline that decays")
def coin_with_baseline() -> Example:
    from pyro.infer import TraceGraph_ELBO

    def guide(data):
        a = pyro.param("alpha_q", torch.tensor(15.0), constraint=dist.constraints.positive)
        b = pyro.param("beta_q", torch.tensor(15.0), constraint=dist.constraints.positive)
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}
        pyro.sample("latent_fairness", dist.testing.fakes.NonreparameterizedBeta(a, b), infer={"baseline": baseline})

    return Example(model=fair_coin, guide=guide, args=(FLIPS,), loss=TraceGraph_ELBO)


@example("tutorial custom_objectives: a function of the two traces")
def own_objective() -> Example:
    def simple_elbo(model, guide, *args, **kwargs):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return -(model_trace.log_prob_sum() - guide_trace.log_prob_sum())

    return Example(model=fair_coin, guide=coin_guide, args=(FLIPS,), loss=lambda: simple_elbo)


@example("tutorial svi_part_iv: a learning rate of its own for some parameters, decay, clipping")
def two_learning_rates() -> Example:
    def rates(name):
        return {"lr": 0.05, "clip_norm": 5.0, "lrd": 0.999} if "loc" in name else {"lr": 0.005}

    return Example(
        model=centred,
        guide=AutoNormal(centred),
        args=(ERRORS, EFFECTS),
        loss=Trace_ELBO,
        optim=lambda: pyro.optim.ClippedAdam(rates),
    )
