"""Discrete latents, summed out or sampled; topics, Dirichlet processes, names made by hand."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiscreteParallel, AutoGuideList, AutoNormal
from pyro.optim import ClippedAdam
from torch import nn

from tests.pyro_examples.example import Example, example, generator

POINTS = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])


# -------------------------------------------------------------------------------------------- Gaussian mixture
@config_enumerate
def gaussian_mixture(data):
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


@example("tutorial gmm")
def mixture() -> Example:
    guide = AutoDelta(poutine.block(gaussian_mixture, expose=["weights", "locs", "scale"]))
    return Example(
        model=gaussian_mixture, guide=guide, args=(POINTS,), loss=lambda: TraceEnum_ELBO(max_plate_nesting=1)
    )


@example("tutorial gmm, by NUTS")
def mixture_nuts() -> Example:
    return Example(model=gaussian_mixture, args=(POINTS,))


@example("guides in a list, the discrete ones too")
def mixture_of_guides() -> Example:
    guide = AutoGuideList(gaussian_mixture)
    guide.append(AutoNormal(poutine.block(gaussian_mixture, expose=["weights", "locs", "scale"])))
    guide.append(AutoDiscreteParallel(poutine.block(gaussian_mixture, expose=["assignment"])))
    return Example(
        model=gaussian_mixture, guide=guide, args=(POINTS,), loss=lambda: TraceEnum_ELBO(max_plate_nesting=1)
    )


# --------------------------------------------------------------------------------- scopes and a count as argument
def scoped_model(k, data):
    weights = pyro.param("weights", torch.ones(k) / k, constraint=constraints.simplex)
    locs = pyro.param("locs", 10 * torch.randn(k))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("data"):
        return _local(weights, locs, scale, data)


@scope(prefix="local")
def _local(weights, locs, scale, data):
    assignment = pyro.sample("assignment", dist.Categorical(weights).expand_by([len(data)]))
    return pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def scoped_guide(k, data):
    probs = pyro.param("assignment_probs", torch.ones(len(data), k) / k, constraint=constraints.unit_interval)
    with pyro.plate("data"):
        return _local_guide(probs)


@scope(prefix="local")
def _local_guide(probs):
    return pyro.sample("assignment", dist.Categorical(probs))


@example("examples/contrib/autoname/scoping_mixture.py")
def scoped_mixture() -> Example:
    data = torch.tensor([0.0, 1.0, 2.0, 20.0, 30.0, 40.0])
    return Example(
        model=scoped_model,
        guide=config_enumerate(scoped_guide),
        args=(2, data),
        loss=lambda: TraceEnum_ELBO(max_plate_nesting=1),
        optim=lambda: pyro.optim.Adam({"lr": 0.1}),
    )


# --------------------------------------------------------------------------------------------- Dirichlet process
def stick_breaking(beta):
    left = (1 - beta).cumprod(-1)
    return torch.nn.functional.pad(beta, (0, 1), value=1) * torch.nn.functional.pad(left, (1, 0), value=1)


def process_model(data, size):
    alpha = 0.5
    with pyro.plate("beta_plate", size - 1):
        beta = pyro.sample("beta", dist.Beta(1, alpha))
    with pyro.plate("mu_plate", size):
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), 5 * torch.eye(2)))
    with pyro.plate("data", data.shape[0]):
        z = pyro.sample("z", dist.Categorical(stick_breaking(beta)))
        pyro.sample("obs", dist.MultivariateNormal(mu[z], torch.eye(2)), obs=data)


def process_guide(data, size):
    kappa = pyro.param("kappa", lambda: dist.Uniform(0.0, 2.0).sample([size - 1]), constraint=constraints.positive)
    tau = pyro.param("tau", lambda: dist.MultivariateNormal(torch.zeros(2), 3 * torch.eye(2)).sample([size]))
    phi = pyro.param(
        "phi",
        lambda: dist.Dirichlet(torch.ones(size) / size).sample([data.shape[0]]),
        constraint=constraints.simplex,
    )
    with pyro.plate("beta_plate", size - 1):
        pyro.sample("beta", dist.Beta(torch.ones(size - 1), kappa))
    with pyro.plate("mu_plate", size):
        pyro.sample("mu", dist.MultivariateNormal(tau, torch.eye(2)))
    with pyro.plate("data", data.shape[0]):
        pyro.sample("z", dist.Categorical(phi))


@example("tutorial dirichlet_process_mixture")
def dirichlet_process() -> Example:
    centres = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    data = centres[torch.arange(24) % 3] + torch.randn(24, 2, generator=generator())
    return Example(model=process_model, guide=process_guide, args=(data, 5), loss=Trace_ELBO)


@example("tutorial dirichlet_process_mixture, with the assignments summed out")
def dirichlet_process_enumerated() -> Example:
    data = dirichlet_process().args[0]
    return Example(
        model=process_model,
        guide=config_enumerate(process_guide),
        args=(data, 5),
        loss=lambda: TraceEnum_ELBO(max_plate_nesting=1),
    )


# -------------------------------------------------------------------------------------------------------- topics
class Sizes:
    num_topics, num_words, num_docs, num_words_per_doc = 3, 12, 20, 8


def topic_model(data=None, sizes=None, batch_size=None):
    with pyro.plate("topics", sizes.num_topics):
        topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / sizes.num_topics, 1.0))
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(sizes.num_words) / sizes.num_words))
    with pyro.plate("documents", sizes.num_docs) as rows:
        if data is not None:
            data = data[:, rows]
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
        with pyro.plate("words", sizes.num_words_per_doc):
            word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics), infer={"enumerate": "parallel"})
            pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data)


def topic_guide(predictor, data, sizes, batch_size=None):
    weights = pyro.param(
        "topic_weights_posterior", lambda: torch.ones(sizes.num_topics), constraint=constraints.positive
    )
    words = pyro.param(
        "topic_words_posterior",
        lambda: torch.ones(sizes.num_topics, sizes.num_words),
        constraint=constraints.greater_than(0.5),
    )
    with pyro.plate("topics", sizes.num_topics):
        pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
        pyro.sample("topic_words", dist.Dirichlet(words))
    pyro.module("predictor", predictor)
    with pyro.plate("documents", sizes.num_docs, batch_size) as rows:
        data = data[:, rows]
        counts = torch.zeros(sizes.num_words, rows.size(0)).scatter_add(0, data, torch.ones(data.shape))
        pyro.sample("doc_topics", dist.Delta(predictor(counts.t()), event_dim=1))


@example("examples/lda.py")
def latent_dirichlet_allocation() -> Example:
    words = torch.randint(0, 12, (8, 20), generator=generator())
    predictor = nn.Sequential(nn.Linear(12, 6), nn.Sigmoid(), nn.Linear(6, 3), nn.Softmax(-1))
    return Example(
        model=topic_model,
        guide=functools.partial(topic_guide, predictor),
        args=(words, Sizes),
        kwargs={"batch_size": 10},
        loss=lambda: TraceEnum_ELBO(max_plate_nesting=2),
        optim=lambda: ClippedAdam({"lr": 0.01}),
    )


# ------------------------------------------------------------------------------------- capture and recapture
def recapture(history):
    n, steps = history.shape
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", n, dim=-1):
        z = torch.ones(n)
        seen = torch.zeros(n).bool()
        for t in pyro.markov(range(steps)):
            with poutine.mask(mask=seen):
                alive = seen.float() * phi * z + (1 - seen.float())
                z = pyro.sample(f"z_{t}", dist.Bernoulli(alive), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
            seen = seen | history[:, t].bool()


@example("examples/capture_recapture/cjs.py")
def capture_recapture() -> Example:
    history = torch.bernoulli(torch.full((12, 5), 0.4), generator=generator())
    guide = AutoNormal(poutine.block(recapture, expose=["phi", "rho"]))
    return Example(model=recapture, guide=guide, args=(history,), loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))


@example("examples/capture_recapture/cjs.py by NUTS")
def capture_recapture_nuts() -> Example:
    return Example(model=recapture, args=(torch.bernoulli(torch.full((12, 5), 0.4), generator=generator()),))


# ------------------------------------------------------------------------------------- discrete choices, sampled
def alarm(calls):
    burglary = pyro.sample("burglary", dist.Bernoulli(0.1))
    quake = pyro.sample("quake", dist.Bernoulli(0.1))
    rings = 0.02 + 0.9 * torch.maximum(burglary, 0.6 * quake)
    with pyro.plate("neighbours", len(calls)):
        pyro.sample("calls", dist.Bernoulli(rings), obs=calls)


def alarm_guide(calls):
    for name in ("burglary", "quake"):
        p = pyro.param(f"{name}_p", torch.tensor(0.4), constraint=constraints.unit_interval)
        pyro.sample(name, dist.Bernoulli(p))


@example("examples/toy_mixture_model_discrete_enumeration.py, sampled")
def sampled_choices() -> Example:
    return Example(model=alarm, guide=alarm_guide, args=(torch.tensor([1.0, 1.0, 0.0]),), loss=TraceGraph_ELBO)


@example("examples/toy_mixture_model_discrete_enumeration.py")
def enumerated_choices() -> Example:
    return Example(
        model=alarm,
        guide=config_enumerate(alarm_guide),
        args=(torch.tensor([1.0, 1.0, 0.0]),),
        loss=lambda: TraceEnum_ELBO(max_plate_nesting=1),
    )
