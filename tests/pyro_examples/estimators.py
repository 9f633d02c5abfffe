"""Guides and estimators beyond the usual: easy guides, flows as guides, NeuTra, gamma factors, wake and sleep."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide, easy_guide
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoNormal,
    AutoNormalizingFlow,
    init_to_feasible,
)
from pyro.infer.reparam import NeuTraReparam
from pyro.optim import AdagradRMSProp, Adam, ExponentialLR
from torch import nn
from torch.nn.functional import softplus

from tests.pyro_examples.example import Example, example, generator


# --------------------------------------------------------------------------------- deep exponential family
class GammaFactors:
    """A plain class with the sizes in it; Poisson counts of products of gamma factors."""

    def __init__(self) -> None:
        self.top, self.bottom, self.size = 4, 3, 10
        self.alpha = torch.tensor(0.5)
        self.beta = torch.tensor(0.5)

    def model(self, x):
        with pyro.plate("w_top_plate", self.top * self.bottom):
            w_top = pyro.sample("w_top", dist.Gamma(self.alpha, self.beta))
        with pyro.plate("w_bottom_plate", self.bottom * self.size):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(self.alpha, self.beta))
        with pyro.plate("data", x.size(0)):
            z_top = pyro.sample("z_top", dist.Gamma(self.alpha, self.beta).expand([self.top]).to_event(1))
            mean = torch.matmul(z_top, w_top.reshape((*w_top.shape[:-1], self.top, self.bottom)))
            z_bottom = pyro.sample("z_bottom", dist.Gamma(self.alpha, self.beta / mean).to_event(1))
            mean = torch.matmul(z_bottom, w_bottom.reshape((*w_bottom.shape[:-1], self.bottom, self.size)))
            pyro.sample("obs", dist.Poisson(mean).to_event(1), obs=x)

    def guide(self, x):
        def gamma(name, shape):
            alpha = softplus(pyro.param(f"alpha_{name}", lambda: 0.5 + 0.1 * torch.randn(shape)))
            mean = softplus(pyro.param(f"mean_{name}", lambda: 0.1 * torch.randn(shape)))
            return dist.Gamma(alpha, alpha / mean)

        with pyro.plate("w_top_plate", self.top * self.bottom):
            pyro.sample("w_top", gamma("w_top", (self.top * self.bottom,)))
        with pyro.plate("w_bottom_plate", self.bottom * self.size):
            pyro.sample("w_bottom", gamma("w_bottom", (self.bottom * self.size,)))
        with pyro.plate("data", x.size(0)):
            pyro.sample("z_top", gamma("z_top", (x.size(0), self.top)).to_event(1))
            pyro.sample("z_bottom", gamma("z_bottom", (x.size(0), self.bottom)).to_event(1))


def faces() -> torch.Tensor:
    return torch.poisson(2 * torch.rand(8, 10, generator=generator()), generator=generator(1))


@example("examples/sparse_gamma_def.py, custom guide")
def sparse_gamma() -> Example:
    factors = GammaFactors()
    return Example(
        model=factors.model,
        guide=factors.guide,
        args=(faces(),),
        loss=TraceMeanField_ELBO,
        optim=lambda: AdagradRMSProp({"eta": 0.2, "t": 0.1}),
    )


class FactorGuide(EasyGuide):
    def guide(self, x):
        shared = self.group(match="w_.*")
        mean = pyro.param("w_mean", lambda: 0.5 + 0.1 * torch.randn(shared.event_shape))
        scale = softplus(pyro.param("w_scale", lambda: 0.1 * torch.randn(shared.event_shape)))
        shared.sample("ws", dist.Normal(mean, scale).to_event(1))
        own = self.group(match="z_.*")
        with self.plate("data", x.size(0)):
            mean = pyro.param("z_mean", lambda: 0.5 + 0.1 * torch.randn(x.shape[:1] + own.event_shape))
            scale = softplus(pyro.param("z_scale", lambda: 0.1 * torch.randn(x.shape[:1] + own.event_shape)))
            own.sample("zs", dist.Normal(mean, scale).to_event(1))


@example("examples/sparse_gamma_def.py, easy guide")
def sparse_gamma_easy_guide() -> Example:
    factors = GammaFactors()
    return Example(
        model=factors.model,
        guide=FactorGuide(factors.model),
        args=(faces(),),
        optim=lambda: AdagradRMSProp({"eta": 0.2, "t": 0.05}),
    )


@example("examples/sparse_gamma_def.py, auto guide")
def sparse_gamma_auto() -> Example:
    factors = GammaFactors()
    return Example(
        model=factors.model,
        guide=AutoNormal(factors.model, init_loc_fn=init_to_feasible),
        args=(faces(),),
        optim=lambda: AdagradRMSProp({"eta": 0.2, "t": 0.05}),
    )


# -------------------------------------------------------------------------------------- subsampling, easy guide
def shrunken(batch, subsample, full_size):
    """Rows that enter as a mini-batch of a size that the caller knows."""
    _num_rows, width = batch.shape
    drift = pyro.sample("drift", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("data", full_size, subsample=subsample):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        for t in range(width):
            level = pyro.sample(f"x_{t}", dist.Normal(level, drift))
            pyro.sample(f"y_{t}", dist.Normal(level, 0.5), obs=batch[:, t])


@example("tutorial easyguide")
def easyguide_minibatch() -> Example:
    @easy_guide(shrunken)
    def guide(self, batch, subsample, full_size):
        self.map_estimate("drift")
        group = self.group(match="level|x_[0-9]*")
        cov = pyro.param("cov", torch.eye(group.event_shape[0]), constraint=dist.constraints.positive_definite)
        with self.plate("data", full_size, subsample=subsample):
            loc = pyro.param("loc", torch.zeros((full_size, *group.event_shape)), event_dim=1)
            group.sample("states", dist.MultivariateNormal(loc, cov))

    batch = torch.randn(6, 3, generator=generator())
    return Example(model=shrunken, guide=guide, args=(batch, torch.arange(6), 12))


# -------------------------------------------------------------------------------------------------------- NeuTra
def banana(data):
    a = pyro.sample("x", dist.Normal(0.0, 3.0))
    b = pyro.sample("y", dist.Normal(a**2, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(b, 1.0), obs=data)


@example("examples/neutra.py, its guide")
def neutra_guide() -> Example:
    data = 1.0 + torch.randn(8, generator=generator())
    return Example(model=banana, guide=AutoIAFNormal(banana, hidden_dim=[4]), args=(data,))


@example("examples/neutra.py, NUTS through the guide")
def neutra() -> Example:
    data = 1.0 + torch.randn(8, generator=generator())
    guide = AutoIAFNormal(banana, hidden_dim=[4])
    guide(data)
    return Example(model=NeuTraReparam(guide.requires_grad_(False)).reparam(banana), args=(data,))


@example("tutorial svi_flow_guide, block autoregressive")
def block_flow_guide() -> Example:
    from functools import partial

    from pyro.distributions.transforms import block_autoregressive, iterated

    data = 1.0 + torch.randn(8, generator=generator())
    guide = AutoNormalizingFlow(banana, partial(iterated, 1, block_autoregressive))
    return Example(model=banana, guide=guide, args=(data,))


@example("AutoLaplaceApproximation")
def laplace() -> Example:
    data = 1.0 + torch.randn(8, generator=generator())
    return Example(model=banana, guide=AutoLaplaceApproximation(banana), args=(data,))


# --------------------------------------------------------------------------------------- several particles, wake
def normal_model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(z, 1.0), obs=x)


def normal_guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale))


NUMBERS = 2.0 + torch.randn(12, generator=generator())


@example("vectorised particles")
def particles() -> Example:
    loss = lambda: Trace_ELBO(num_particles=5, vectorize_particles=True)  # noqa: E731
    return Example(model=normal_model, guide=normal_guide, args=(NUMBERS,), loss=loss)


@example("RenyiELBO")
def renyi() -> Example:
    return Example(
        model=normal_model, guide=normal_guide, args=(NUMBERS,), loss=lambda: RenyiELBO(alpha=0.0, num_particles=4)
    )


@example("ReweightedWakeSleep")
def wake_sleep() -> Example:
    return Example(
        model=normal_model,
        guide=normal_guide,
        args=(NUMBERS,),
        loss=lambda: ReweightedWakeSleep(num_particles=4, insomnia=1.0, model_has_params=False),
    )


@example("a learning rate that decays: pyro.optim.ExponentialLR")
def scheduled() -> Example:
    optim = lambda: ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.99})  # noqa: E731
    return Example(model=normal_model, guide=normal_guide, args=(NUMBERS,), optim=optim)


@example("tutorial boosting_bbvi: a mixture of guides, one component trained")
def boosting() -> Example:
    def mixture(x):
        old = dist.Normal(torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 0.7]))
        new = dist.Normal(pyro.param("new_loc", torch.tensor(1.5)), 0.5)
        loc = torch.cat([old.loc, new.loc[None]])
        scale = torch.cat([old.scale, new.scale[None]])
        weights = dist.Categorical(torch.tensor([0.4, 0.3, 0.3]))
        pyro.sample("z", dist.MixtureSameFamily(weights, dist.Normal(loc, scale)))

    return Example(model=normal_model, guide=mixture, args=(NUMBERS,))


# ------------------------------------------------------------------------------- working memory, a design's gain
class Quiz(nn.Module):
    """A posterior network over designs, as in tutorial working_memory."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 2)

    def model(self, lengths, correct=None):
        with pyro.plate("designs", len(lengths)):
            theta = pyro.sample("theta", dist.Normal(7.0, 2.0))
            pyro.sample("y", dist.Bernoulli(logits=theta - lengths), obs=correct)

    def guide(self, lengths, correct=None):
        pyro.module("quiz", self.net)
        with pyro.plate("designs", len(lengths)), poutine.mask(mask=torch.ones(len(lengths), dtype=torch.bool)):
            loc, log_scale = self.net(lengths[:, None] / 10).unbind(-1)
            pyro.sample("theta", dist.Normal(7 + loc, log_scale.exp()))


@example("tutorial working_memory")
def working_memory() -> Example:
    quiz = Quiz()
    lengths = torch.arange(1.0, 13.0)
    return Example(
        model=quiz.model,
        guide=quiz.guide,
        args=(lengths, (lengths < 7).float()),
        optim=lambda: Adam({"lr": 0.02}),
        new=(lengths[:4],),
    )
