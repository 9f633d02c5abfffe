"""Regressions: PyroModule networks, Gaussian processes, sparse priors."""

from __future__ import annotations

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal, init_to_feasible
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from tests.pyro_examples.example import Example, example, generator


def rows(n: int = 30, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, d, generator=generator())
    return x, x @ torch.tensor([1.0, -2.0, 0.5])[:d] + 0.3 * torch.randn(n, generator=generator(1))


# ------------------------------------------------------------------------------------------- Bayesian regression
class BayesianRegression(PyroModule):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](inputs, outputs)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([outputs, inputs]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([outputs]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


@example("tutorial bayesian_regression")
def bayesian_regression() -> Example:
    model = BayesianRegression(3, 1)
    x, y = rows()
    return Example(model=model, guide=AutoDiagonalNormal(model), args=(x, y), new=(x[:4],))


@example("tutorial bayesian_regression_ii, by NUTS")
def bayesian_regression_nuts() -> Example:
    x, y = rows()
    return Example(model=BayesianRegression(3, 1), args=(x, y), new=(x[:4],))


class Network(PyroModule):
    """Weights latent, a noise parameter that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PyroModule[nn.Linear](3, 6)
        self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([6, 3]).to_event(2))
        self.second = PyroModule[nn.Linear](6, 1)
        self.second.weight = PyroSample(lambda _: dist.Normal(0.0, 0.5).expand([1, 6]).to_event(2))
        self.noise = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(self, x, y=None):
        mean = self.second(torch.tanh(self.first(x))).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("obs", dist.Normal(mean, self.noise), obs=y)


@example("tutorial modules")
def pyro_module_network() -> Example:
    model = Network()
    x, y = rows()
    return Example(model=model, guide=AutoLowRankMultivariateNormal(model, rank=2), args=(x, y), new=(x[:4],))


# ----------------------------------------------------------------------------------- statistical rethinking, plain
def terrain(is_africa, ruggedness, log_gdp=None):
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b_a = pyro.sample("bA", dist.Normal(0.0, 1.0))
    b_r = pyro.sample("bR", dist.Normal(0.0, 1.0))
    b_ar = pyro.sample("bAR", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    mean = a + b_a * is_africa + b_r * ruggedness + b_ar * is_africa * ruggedness
    with pyro.plate("data", len(ruggedness)):
        return pyro.sample("obs", dist.Normal(mean, sigma), obs=log_gdp)


@example("tutorial intro_long")
def rugged_terrain() -> Example:
    x, y = rows(d=2)
    africa = (x[:, 0] > 0).float()
    return Example(model=terrain, guide=AutoNormal(terrain), args=(africa, x[:, 1], y), new=(africa[:5], x[:5, 1]))


# ------------------------------------------------------------------------------------ subsample_size, buffers
class Subsampled(PyroModule):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("zero", torch.tensor(0.0))

    def forward(self, covariates, data=None):
        coeff = pyro.sample("coeff", dist.Normal(self.zero, 1))
        bias = pyro.sample("bias", dist.Normal(self.zero, 1))
        scale = pyro.sample("scale", dist.LogNormal(self.zero, 1))
        with pyro.plate("data", self.size, len(covariates)):
            return pyro.sample("obs", dist.Normal(bias + coeff * covariates, scale), obs=data)


@example("examples/svi_torch.py")
def buffers_and_batches() -> Example:
    x, y = rows()
    model = Subsampled(len(x))
    return Example(model=model, guide=AutoNormal(model), args=(x[:, 0], y))


# --------------------------------------------------------------------------------------- horseshoe over pairs
def sparse(x, y=None):
    tau = pyro.sample("tau", dist.HalfCauchy(0.1))
    with pyro.plate("dimension", x.shape[1]):
        lam = pyro.sample("lambda", dist.HalfCauchy(1.0))
        w = pyro.sample("w", dist.Normal(0.0, tau * lam))
    noise = pyro.sample("var_obs", dist.InverseGamma(3.0, 1.0))
    mean = (x * w).sum(-1)
    with pyro.plate("data", x.shape[0]):
        pyro.sample("obs", dist.Normal(mean, noise.sqrt()), obs=y)


@example("examples/sparse_regression.py, by SVI")
def sparse_regression() -> Example:
    x, y = rows()
    return Example(
        model=sparse,
        guide=AutoNormal(sparse, init_loc_fn=init_to_feasible, init_scale=0.01),
        args=(x, y),
        loss=TraceMeanField_ELBO,
    )


# ------------------------------------------------------------------------------------------- Gaussian processes
@example("tutorial gp, exact")
def gaussian_process() -> Example:
    x = torch.linspace(0, 5, 20)
    y = torch.sin(3 * x) + 0.2 * torch.randn(20, generator=generator())
    kernel = gp.kernels.RBF(input_dim=1, variance=torch.tensor(5.0), lengthscale=torch.tensor(10.0))
    process = gp.models.GPRegression(x, y, kernel, noise=torch.tensor(1.0))
    process.kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
    process.kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))
    process.kernel.autoguide("lengthscale", dist.Normal)
    process.kernel.autoguide("variance", dist.Normal)
    return Example(model=process.model, guide=process.guide)


@example("tutorial gp, sparse and variational; examples/contrib/gp/sv-dkl.py")
def variational_process() -> Example:
    x = torch.linspace(-1, 1, 30)[:, None]
    y = (x[:, 0] > 0).float()
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2))
    kernel = gp.kernels.Warping(gp.kernels.RBF(input_dim=2, lengthscale=torch.ones(2)), iwarping_fn=net)
    process = gp.models.VariationalSparseGP(
        x, y, kernel, Xu=x[::6].clone(), likelihood=gp.likelihoods.Binary(), whiten=True, jitter=1e-4
    )
    return Example(model=process.model, guide=process.guide, loss=TraceMeanField_ELBO)


# ---------------------------------------------------------------------------------------- one hot, growth curves
def logistic_growth(years, counts=None):
    rate = pyro.sample("rate", dist.LogNormal(-2.0, 0.5))
    top = pyro.sample("capacity", dist.LogNormal(5.0, 0.5))
    start = pyro.sample("start", dist.LogNormal(2.0, 0.5))
    mean = pyro.deterministic("mean", top / (1 + (top / start - 1) * (-rate * years).exp()))
    concentration = pyro.sample("concentration", dist.Exponential(0.1))
    with pyro.plate("year", len(years)):
        pyro.sample("obs", dist.GammaPoisson(concentration, concentration / mean), obs=counts)


@example("tutorial logistic-growth, predictive_deterministic")
def growth() -> Example:
    years = torch.arange(20.0)
    counts = torch.poisson(150 / (1 + 14 * (-0.3 * years).exp()), generator=generator())
    return Example(
        model=logistic_growth,
        guide=AutoNormal(logistic_growth),
        args=(years, counts),
        loss=Trace_ELBO,
        new=(years[:3],),
    )
