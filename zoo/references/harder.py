r"""Ten more models of posteriordb, on which NUTS is measured: hidden chains, Gaussian processes, collinear regressors.

What is said at :mod:`zoo.references.models` holds here as well.

References:
    Magnusson, Torgander, Bürkner, Zhang, Carpenter, Vehtari (2025), "posteriordb: Testing, benchmarking and developing
    Bayesian inference algorithms", AISTATS. https://github.com/stan-dev/posteriordb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from zoo.references.built import Built, Data, recurrence, regression, vector
from zoo.references.priors import Flat, Within
from zoo.types import Batch

__all__ = ["HARDER"]


def _half(base: dist.Distribution) -> Within:
    return Within(base, constraints.positive)


# ----------------------------------------------------------------------------------------------------- regressions
def earn_height(data: Data) -> Built:
    r"""``earn_height``: earnings :math:`e` in dollars by height :math:`h` in inches.

    .. math:: p(\beta, \sigma) \propto 1, \quad e_i \sim \mathrm{N}(\beta_1 + \beta_2 h_i, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    return regression(vector(data["earn"]), [vector(data["height"])], Flat, lambda: Flat(constraints.positive))


def kidscore_interaction_c(data: Data) -> Built:
    r"""``kidscore_interaction_c``: score by high school :math:`h` and intelligence :math:`q` of the mother, centred.

    .. math:: p(\beta, \sigma) \propto 1, \quad y_i \sim \mathrm{N}(\beta_1 + \beta_2 (h_i - \bar h)
        + \beta_3 (q_i - \bar q) + \beta_4 (h_i - \bar h)(q_i - \bar q), \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    h, q = (vector(data[name]) for name in ("mom_hs", "mom_iq"))
    h, q = h - h.mean(), q - q.mean()
    return regression(vector(data["kid_score"]), [h, q, h * q], Flat, lambda: Flat(constraints.positive))


def diamonds(data: Data) -> Built:
    r"""``diamonds``: logarithm of a diamond's price by 24 columns, powers and products, that are nearly collinear.

    .. math:: b_k \sim \mathrm{N}(0, 1), \quad \alpha \sim t_3(8, 10), \quad \sigma \sim t_3^+(0, 10), \quad
        y_i \sim \mathrm{N}(\alpha + (x_i - \bar x)^\top b, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    x, y = vector(data["X"])[:, 1:], vector(data["Y"])
    x = x - x.mean(0)

    def model(batch: Batch) -> None:
        with pyro.plate("coefficient", x.shape[1]):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
        sigma = pyro.sample("sigma", _half(dist.StudentT(3.0, 0.0, 10.0)))
        with pyro.plate("datum", len(x), subsample=batch["index"]):
            pyro.sample("y", dist.Normal(intercept + batch["x"] @ b, sigma), obs=batch.get("y"))

    return Built(model, {"x": x, "y": y, "index": torch.arange(len(x))})


# ----------------------------------------------------------------------------------------------------- time series
def arma11(data: Data) -> Built:
    r"""``arma11``: a time series of order (1, 1), whose first value comes after one at the mean.

    .. math:: \mu \sim \mathrm{N}(0, 10), \quad \phi, \theta \sim \mathrm{N}(0, 2), \quad
        \sigma \sim \mathrm{Cauchy}^+(0, 2.5), \quad
        y_t \sim \mathrm{N}(\mu + \phi y_{t-1} + \theta \epsilon_{t-1}, \sigma), \quad y_0 = \mu, \ \epsilon_0 = 0

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    y = vector(data["y"])

    def model(batch: Batch) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        phi, theta = (pyro.sample(name, dist.Normal(0.0, 2.0)) for name in ("phi", "theta"))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        past = batch["y"]  # which the mean depends on, also when the last value is to be predicted
        before = torch.cat([mu[None], past[:-1]])
        error = recurrence(past - mu - phi * before, -theta)
        with pyro.plate("time", len(past)):
            pyro.sample("y", dist.Normal(past - error, sigma), obs=batch.get("y"))

    return Built(model, {"y": y})


def _hidden(data: Data, support: constraints.Constraint, emission: Callable[[Tensor], dist.Distribution]) -> Built:
    """Return a hidden Markov chain of two states that emits pairs of numbers.

    Args:
        data: What the program declares.
        support: Of the two parameters of either number.
        emission: Parameters ``(state, number)`` -> distribution of the numbers.

    Returns:
        The model on these data.
    """
    y, alpha = torch.stack([vector(data["u"]), vector(data["v"])], -1), vector(data["alpha"])
    states, time = int(data["K"]), len(y)

    def model(batch: Batch) -> None:
        theta = [pyro.sample(f"theta{k + 1}", dist.Dirichlet(alpha[k])) for k in range(states)]
        base = dist.Normal(torch.tensor([0.0, 3.0]), 1.0).to_event(1)
        phi, scale = (pyro.sample(name, Within(base, support)) for name in ("phi", "lambda"))
        # Pyro's chain moves before its first emission: a first move that forgets makes the first state uniform.
        move = torch.stack(theta).log().expand(time - 1, states, states)
        forget = torch.full((1, states, states), -math.log(states))
        emitted = emission(torch.stack([phi, scale], -1)).expand([time, states, 2]).to_event(1)
        chain = dist.DiscreteHMM(torch.zeros(states), torch.cat([forget, move]), emitted, duration=time)
        pyro.sample("y", chain, obs=batch.get("y"))

    return Built(model, {"y": y})


def hmm_drive_0(data: Data) -> Built:
    r"""``hmm_drive_0``: a player drives to the hoop or does not; inverse speed :math:`u`, distance :math:`v`.

    .. math:: \theta_k \sim \mathrm{Dirichlet}(a_k), \quad
        \phi_1, \lambda_1 \sim \mathrm{N}(0, 1), \ \phi_2, \lambda_2 \sim \mathrm{N}(3, 1), \
        0 < \phi_1 < \phi_2, \ 0 < \lambda_1 < \lambda_2, \quad z_t \sim \mathrm{Categorical}(\theta_{z_{t-1}}), \quad
        u_t \sim \mathrm{Exp}(\phi_{z_t}), \ v_t \sim \mathrm{Exp}(\lambda_{z_t})

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    return _hidden(data, constraints.positive_ordered_vector, lambda rate: dist.Exponential(rate))


def hmm_drive_1(data: Data) -> Built:
    r"""``hmm_drive_1``: the same with normal emissions of known scales :math:`\tau` and :math:`\rho`.

    .. math:: \theta_k \sim \mathrm{Dirichlet}(a_k), \quad
        \phi_1, \lambda_1 \sim \mathrm{N}(0, 1), \ \phi_2, \lambda_2 \sim \mathrm{N}(3, 1), \
        \phi_1 < \phi_2, \ \lambda_1 < \lambda_2, \quad z_t \sim \mathrm{Categorical}(\theta_{z_{t-1}}), \quad
        u_t \sim \mathrm{N}(\phi_{z_t}, \tau), \ v_t \sim \mathrm{N}(\lambda_{z_t}, \rho)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    scale = vector([data["tau"], data["rho"]])
    return _hidden(data, constraints.ordered_vector, lambda loc: dist.Normal(loc, scale))


# ------------------------------------------------------------------------------------------------------- functions
def gp_pois_regr(data: Data) -> Built:
    r"""``gp_pois_regr``: counts whose logarithmic rate is a Gaussian process, not centred.

    .. math:: \rho \sim \mathrm{Gamma}(25, 4), \quad \alpha \sim \mathrm{N}^+(0, 2), \quad
        \tilde f_i \sim \mathrm{N}(0, 1), \quad f = L \tilde f, \quad
        (L L^\top)_{ij} = \alpha^2 e^{-(x_i - x_j)^2 / 2 \rho^2} + 10^{-10} 1[i = j], \quad
        k_i \sim \mathrm{Poisson}(e^{f_i})

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    x, k = vector(data["x"]), vector(data["k"])
    square, eye = (x[:, None] - x) ** 2, torch.eye(len(x), dtype=x.dtype)

    def rate(alpha: Tensor, rho: Tensor, f_tilde: Tensor) -> Tensor:
        alpha, rho = alpha[..., None, None], rho[..., None, None]
        cov = alpha**2 * (-0.5 * square / rho**2).exp() + 1e-10 * eye
        f: Tensor = torch.linalg.cholesky(cov) @ f_tilde[..., None]
        return f[..., 0]

    def model(batch: Batch) -> None:
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        with pyro.plate("datum", len(x), subsample=batch["index"]):
            f_tilde = pyro.sample("f_tilde", dist.Normal(0.0, 1.0))
            pyro.sample("k", dist.Poisson(rate(alpha, rho, f_tilde).exp()), obs=batch.get("k"))

    def parameters(draws: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        rho, alpha = draws["rho"].double(), draws["alpha"].double()
        return {"rho": rho, "alpha": alpha, "f": rate(alpha, rho, draws["f_tilde"].double())}

    return Built(model, {"k": k, "index": torch.arange(len(x))}, parameters)


def accel_gp(data: Data) -> Built:
    r"""``accel_gp``: a motorcycle's acceleration; mean and logarithmic scale are Gaussian processes in few functions.

    .. math:: \alpha \sim t_3(-13, 36), \ \alpha_\sigma \sim t_3(0, 10), \quad s, s_\sigma \sim t_3^+(0, 36), \quad
        \ell, \ell_\sigma \sim \mathrm{InvGamma}(1.124909, 0.0177), \quad z_j, z_{\sigma j} \sim \mathrm{N}(0, 1), \quad
        y_i \sim \mathrm{N}(\alpha + g(x_i; s, \ell, z), e^{\alpha_\sigma + g(x_i; s_\sigma, \ell_\sigma, z_\sigma)})

    with :math:`g(x_i; s, \ell, z) = \sum_j h_{ij} \, s \, (2 \pi)^{1/4} \ell^{1/2} e^{-\ell^2 \lambda_j / 4} z_j` for
    eigenfunctions :math:`h` and eigenvalues :math:`\lambda`.

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    y = vector(data["Y"])
    basis = {end: vector(data[f"Xgp{end}"]) for end in ("_1", "_sigma_1")}
    root = {end: vector(data[f"slambda{end}"])[:, 0] for end in basis}
    prior = {"": dist.StudentT(3.0, -13.0, 36.0), "_sigma": dist.StudentT(3.0, 0.0, 10.0)}

    def process(end: str) -> Tensor:
        sd = pyro.sample(f"sdgp{end}", _half(dist.StudentT(3.0, 0.0, 36.0)))
        length = pyro.sample(f"lscale{end}", dist.InverseGamma(1.124909, 0.0177))
        with pyro.plate(f"function{end}", len(root[end])):
            z = pyro.sample(f"zgp{end}", dist.Normal(0.0, 1.0))
        weight = (2 * math.pi) ** 0.25 * length.sqrt() * (-0.25 * (length * root[end]) ** 2).exp()
        found: Tensor = basis[end] @ (sd * weight * z)
        return found

    def model(batch: Batch) -> None:
        loc = pyro.sample("Intercept", prior[""]) + process("_1")
        scale = (pyro.sample("Intercept_sigma", prior["_sigma"]) + process("_sigma_1")).exp()
        with pyro.plate("datum", len(y)):
            pyro.sample("y", dist.Normal(loc, scale), obs=batch.get("y"))

    return Built(model, {"y": y})


HARDER: Mapping[str, Callable[[Data], Built]] = {
    function.__name__: function
    for function in (
        accel_gp,
        arma11,
        diamonds,
        earn_height,
        gp_pois_regr,
        hmm_drive_0,
        hmm_drive_1,
        kidscore_interaction_c,
    )
}
"""Name of the Stan program -> its model."""
