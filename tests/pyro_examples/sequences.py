"""Time: hidden Markov models written as loops and as one distribution, state spaces, epidemics, forecasts."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.forecast import ForecastingModel
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.infer.reparam import LinearHMMReparam, StableReparam
from pyro.ops.indexing import Vindex

from tests.pyro_examples.example import Example, example, generator


def chorales(rows: int = 4, steps: int = 6, tones: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    notes = torch.bernoulli(torch.full((rows, steps, tones), 0.4), generator=generator())
    return notes, torch.tensor([6, 4, 5, 3])[:rows]


# ------------------------------------------------------------------------------------------------ hidden Markov
def hidden_markov(sequences, lengths, hidden=3):
    num, longest, tones = sequences.shape
    with poutine.mask(mask=True):
        probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(hidden) + 0.1).to_event(1))
        probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([hidden, tones]).to_event(2))
    plate = pyro.plate("tones", tones, dim=-1)
    with pyro.plate("sequences", num, dim=-2):
        x = 0
        for t in pyro.markov(range(longest)):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                with plate:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequences[:, t])


@example("examples/hmm.py, model 1")
def hmm() -> Example:
    notes, lengths = chorales()
    guide = AutoDelta(poutine.block(hidden_markov, expose=["probs_x", "probs_y"]))
    return Example(
        model=hidden_markov, guide=guide, args=(notes, lengths), loss=lambda: TraceEnum_ELBO(max_plate_nesting=2)
    )


def factorial(sequences, lengths, hidden=2):
    num, longest, tones = sequences.shape
    probs_w = pyro.sample("probs_w", dist.Dirichlet(0.9 * torch.eye(hidden) + 0.1).to_event(1))
    probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(hidden) + 0.1).to_event(1))
    probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([hidden, hidden, tones]).to_event(3))
    plate = pyro.plate("tones", tones, dim=-1)
    with pyro.plate("sequences", num, dim=-2):
        w, x = torch.tensor(0), torch.tensor(0)
        for t in pyro.markov(range(longest)):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer={"enumerate": "parallel"})
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                with plate as tone:
                    pyro.sample(f"y_{t}", dist.Bernoulli(Vindex(probs_y)[w, x, tone]), obs=sequences[:, t])


@example("examples/hmm.py, model 3")
def factorial_hmm() -> Example:
    notes, lengths = chorales()
    guide = AutoDelta(poutine.block(factorial, expose=["probs_w", "probs_x", "probs_y"]))
    return Example(
        model=factorial, guide=guide, args=(notes, lengths), loss=lambda: TraceEnum_ELBO(max_plate_nesting=2)
    )


def vectorised(sequences, lengths, hidden=3):
    tones = sequences.shape[-1]
    probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(hidden) + 0.1).to_event(1))
    probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([hidden, tones]).to_event(2))
    start = probs_x[0].log()
    with pyro.plate("sequences", len(sequences)):
        emission = dist.Bernoulli(probs_y).to_event(1)
        pyro.sample("y", dist.DiscreteHMM(start, probs_x.log(), emission), obs=sequences)


@example("examples/hmm.py, model 7")
def vectorised_hmm() -> Example:
    notes, lengths = chorales()
    return Example(model=vectorised, guide=AutoDelta(vectorised), args=(notes, lengths))


# ----------------------------------------------------------------------------------- animals in groups, two levels
@config_enumerate
def mixed(config):
    states, groups, individuals, steps = 2, 2, 3, 4
    probs = pyro.param("probs_e", lambda: torch.ones(2) / 2, constraint=dist.constraints.simplex)
    theta = pyro.param("theta", lambda: torch.randn(2, states**2))
    rate = pyro.param("rate", lambda: torch.randn(states).exp(), constraint=dist.constraints.positive)
    with pyro.plate("group", groups, dim=-1):
        effect = Vindex(theta)[..., pyro.sample("e_g", dist.Categorical(probs)), :]
        with pyro.plate("individual", individuals, dim=-2), poutine.mask(mask=config["mask"]):
            noise = pyro.sample("eps_i", dist.Normal(torch.zeros(states**2), 1.0).to_event(1))
            gamma = effect + noise
            gamma = gamma.reshape((*gamma.shape[:-1], states, states))
            y = torch.tensor(0)
            for t in pyro.markov(range(steps)):
                y = pyro.sample(f"y_{t}", dist.Categorical(logits=Vindex(gamma)[..., y, :]))
                empty = config["step"][..., t] == 0
                length = dist.MaskedMixture(empty, dist.Gamma(2.0, Vindex(rate)[..., y]), dist.Delta(torch.tensor(0.0)))
                pyro.sample(f"step_{t}", length, obs=config["step"][..., t])


def mixed_guide(config):
    loc = pyro.param("loc_individual", lambda: torch.zeros(2, 4))
    scale = pyro.param("scale_individual", lambda: torch.ones(2, 4), constraint=dist.constraints.positive)
    with pyro.plate("group", 2, dim=-1), pyro.plate("individual", 3, dim=-2), poutine.mask(mask=config["mask"]):
        pyro.sample("eps_i", dist.Normal(loc, scale).to_event(1))


@example("examples/mixed_hmm")
def mixed_hmm() -> Example:
    step = torch.rand(3, 2, 4, generator=generator()) + 0.1
    step[0, 0, 1] = 0.0
    config = {"step": step, "mask": torch.tensor([[True, True], [True, True], [True, False]])}
    return Example(model=mixed, guide=mixed_guide, args=(config,), loss=lambda: TraceEnum_ELBO(max_plate_nesting=2))


# --------------------------------------------------------------------------------------- a random walk, tracked
def tracking(measured):
    drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
    z = torch.zeros(())
    for t in pyro.markov(range(len(measured))):
        z = pyro.sample(f"z_{t}", dist.Normal(z + drift, sigma))
        pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=measured[t])


@example("tutorial tracking_1d, ekf: a state space as a loop")
def random_walk() -> Example:
    measured = torch.arange(8.0) + 0.5 * torch.randn(8, generator=generator())
    return Example(model=tracking, guide=AutoNormal(tracking), args=(measured,))


def linear_state_space(data):
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    one = torch.ones(1, 1)
    process = dist.GaussianHMM(
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        one,
        dist.Normal(torch.zeros(1), scale[..., None]).to_event(1),
        one,
        dist.Normal(torch.zeros(1), noise[..., None]).to_event(1),
        duration=len(data),
    )
    pyro.sample("obs", process, obs=data[:, None])


@example("tutorial forecasting_dlm, GaussianHMM")
def gaussian_hmm() -> Example:
    data = torch.randn(20, generator=generator()).cumsum(0)
    return Example(model=linear_state_space, guide=AutoNormal(linear_state_space), args=(data,))


# --------------------------------------------------------------------------------------------------- forecasting
class LocalLevel(ForecastingModel):
    def model(self, zero_data, covariates):
        duration = zero_data.size(-2)
        drift_scale = pyro.sample("drift_scale", dist.LogNormal(-10.0, 10.0))
        bias = pyro.sample("bias", dist.Normal(0.0, 10.0))
        weight = pyro.sample("weight", dist.Normal(0.0, 5.0))
        with self.time_plate:
            drift = pyro.sample("drift", dist.Normal(0.0, drift_scale))
        level = drift.unsqueeze(-1).cumsum(-2) + bias + weight * covariates[:duration]
        scale = pyro.sample("scale", dist.LogNormal(-5.0, 5.0))
        self.predict(dist.Normal(0.0, scale), level)


@example("tutorial forecasting_i")
def forecasting() -> Example:
    model = LocalLevel()
    data = torch.randn(16, 1, generator=generator()).cumsum(0)
    covariates = torch.randn(16, 1, generator=generator(1))
    return Example(model=model, guide=AutoNormal(model), args=(data, covariates))


# ---------------------------------------------------------------------------------------------- stable and SIR
def stable_returns(data):
    stability = pyro.sample("stability", dist.Uniform(1.0, 2.0))
    skew = pyro.sample("skew", dist.Uniform(-1.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(-4.0, 1.0))
    with pyro.plate("time", len(data)):
        pyro.sample("r", dist.Stable(stability, skew, scale, 0.0), obs=data)


@example("tutorial stable")
def stable() -> Example:
    model = poutine.reparam(stable_returns, {"r": StableReparam()})
    data = 0.01 * torch.randn(24, generator=generator())
    return Example(model=model, guide=AutoNormal(model), args=(data,))


def epidemic(new_cases):
    r0 = pyro.sample("R0", dist.LogNormal(0.5, 0.5))
    rho = pyro.sample("rho", dist.Beta(4.0, 4.0))
    susceptible, infected = torch.tensor(990.0), torch.tensor(10.0)
    for t, seen in enumerate(new_cases):
        rate = r0 / 7 * infected * susceptible / 1000
        caught = pyro.sample(f"caught_{t}", dist.Gamma(rate + 1e-3, 1.0))
        susceptible = (susceptible - caught).clamp(min=1.0)
        infected = infected * (1 - 1 / 7) + caught
        pyro.sample(f"obs_{t}", dist.Poisson(rho * caught + 1e-3), obs=seen)


@example("examples/sir_hmc.py, examples/contrib/epidemiology, relaxed")
def epidemics() -> Example:
    cases = torch.tensor([1.0, 2.0, 2.0, 4.0, 5.0, 9.0])
    return Example(model=epidemic, guide=AutoNormal(epidemic), args=(cases,), loss=Trace_ELBO)


def latent_walk(data):
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    one = torch.ones(1, 1)
    process = dist.LinearHMM(
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        one,
        dist.StudentT(torch.tensor(4.0), torch.zeros(1), scale[..., None]).to_event(1),
        one,
        dist.StudentT(torch.tensor(4.0), torch.zeros(1), 0.5 * torch.ones(1)).to_event(1),
        duration=len(data),
    )
    pyro.sample("obs", process, obs=data[:, None])


@example("tutorial forecasting_ii: LinearHMM made Gaussian")
def heavy_tailed_walk() -> Example:
    from pyro.infer.reparam import StudentTReparam

    rep = LinearHMMReparam(trans=StudentTReparam(), obs=StudentTReparam())
    model = poutine.reparam(latent_walk, {"obs": rep})
    data = torch.randn(10, generator=generator()).cumsum(0)
    return Example(model=model, guide=AutoNormal(model), args=(data,))
