r"""Models of posteriordb in Pyro, each the density of its Stan program up to a constant.

A function takes the data that the Stan program declares, prepares them as its block ``transformed data`` does, and
returns the model, the batch, and the map from latents to the parameters that the reference draws are of. Names of
sites are those of the Stan program. :math:`\mathrm{N}(\mu, \sigma)` has the standard deviation :math:`\sigma`, a
superscript :math:`+` restricts a density to positive numbers, and what has no prior has the improper density
:math:`p \propto 1` on its space.

References:
    Magnusson, Torgander, Bürkner, Zhang, Carpenter, Vehtari (2025), "posteriordb: Testing, benchmarking and developing
    Bayesian inference algorithms", AISTATS. https://github.com/stan-dev/posteriordb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from zoo.references.built import Built, Data, recurrence, regression, vector
from zoo.references.harder import HARDER
from zoo.references.predators import lotka_volterra
from zoo.references.priors import Flat, Within
from zoo.types import Batch

__all__ = ["MODELS"]


def _positive() -> Any:
    return Flat(constraints.positive)


# ----------------------------------------------------------------------------------------------------- regressions
def blr(data: Data) -> Built:
    r"""``blr``: linear regression without an intercept.

    .. math:: \beta_d \sim \mathrm{N}(0, 10), \quad \sigma \sim \mathrm{N}^+(0, 10), \quad
        y_i \sim \mathrm{N}(x_i^\top \beta, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    columns = list(vector(data["X"]).unbind(-1))
    return regression(
        vector(data["y"]), columns, lambda: dist.Normal(0.0, 10.0), lambda: dist.HalfNormal(10.0), intercept=False
    )


def kidscore_interaction(data: Data) -> Built:
    r"""``kidscore_interaction``: test scores of children by their mothers' school :math:`h` and intelligence :math:`q`.

    .. math:: p(\beta) \propto 1, \quad \sigma \sim \mathrm{Cauchy}^+(0, 2.5), \quad
        y_i \sim \mathrm{N}(\beta_1 + \beta_2 h_i + \beta_3 q_i + \beta_4 h_i q_i, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    school, score = vector(data["mom_hs"]), vector(data["mom_iq"])
    columns = [school, score, school * score]
    return regression(vector(data["kid_score"]), columns, Flat, lambda: dist.HalfCauchy(2.5))


def kidscore_momhsiq(data: Data) -> Built:
    r"""``kidscore_momhsiq``: the same without the interaction.

    .. math:: p(\beta) \propto 1, \quad \sigma \sim \mathrm{Cauchy}^+(0, 2.5), \quad
        y_i \sim \mathrm{N}(\beta_1 + \beta_2 h_i + \beta_3 q_i, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    columns = [vector(data["mom_hs"]), vector(data["mom_iq"])]
    return regression(vector(data["kid_score"]), columns, Flat, lambda: dist.HalfCauchy(2.5))


def logearn_interaction(data: Data) -> Built:
    r"""``logearn_interaction``: logarithm of earnings :math:`e` by height :math:`h` in inches and sex :math:`m`.

    .. math:: p(\beta, \sigma) \propto 1, \quad
        \log e_i \sim \mathrm{N}(\beta_1 + \beta_2 h_i + \beta_3 m_i + \beta_4 h_i m_i, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    height, male = vector(data["height"]), vector(data["male"])
    return regression(vector(data["earn"]).log(), [height, male, height * male], Flat, _positive)


def logmesquite_logvas(data: Data) -> Built:
    r"""``logmesquite_logvas``: logarithm of the weight of mesquite leaves by sizes of the bush.

    With diameters :math:`a, b`, height of the canopy :math:`c`, total height :math:`t`, density :math:`d` and group
    :math:`g`,

    .. math:: p(\beta, \sigma) \propto 1, \quad \log w_i \sim \mathrm{N}(\beta_1 + \beta_2 \log a_i b_i c_i
        + \beta_3 \log a_i b_i + \beta_4 \log a_i / b_i + \beta_5 \log t_i + \beta_6 \log d_i + \beta_7 g_i, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    a, b, c = (vector(data[name]) for name in ("diam1", "diam2", "canopy_height"))
    columns = [
        (a * b * c).log(),
        (a * b).log(),
        (a / b).log(),
        vector(data["total_height"]).log(),
        vector(data["density"]).log(),
        vector(data["group"]),
    ]
    return regression(vector(data["weight"]).log(), columns, Flat, _positive)


def nes(data: Data) -> Built:
    r"""``nes``: identification with a party, by ideology, ethnicity, age in four groups, education, gender and income.

    .. math:: p(\beta, \sigma) \propto 1, \quad y_i \sim \mathrm{N}(\beta_1 + \beta_2 \mathrm{ideology}_i
        + \beta_3 \mathrm{race}_i + \sum_{k=2}^{4} \beta_{k+2} 1[\mathrm{age}_i = k] + \beta_7 \mathrm{education}_i
        + \beta_8 \mathrm{gender}_i + \beta_9 \mathrm{income}_i, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    age = vector(data["age_discrete"])
    columns = [vector(data[name]) for name in ("real_ideo", "race_adj")]
    columns += [(age == k).to(age.dtype) for k in (2, 3, 4)]
    columns += [vector(data[name]) for name in ("educ1", "gender", "income")]
    return regression(vector(data["partyid7"]), columns, Flat, _positive)


def kilpisjarvi(data: Data) -> Built:
    r"""``kilpisjarvi``: temperature of the summer by year :math:`x`, not centred; prior moments are data.

    .. math:: \alpha \sim \mathrm{N}(m_\alpha, s_\alpha), \quad \beta \sim \mathrm{N}(m_\beta, s_\beta), \quad
        p(\sigma) \propto 1, \quad y_i \sim \mathrm{N}(\alpha + \beta x_i, \sigma)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    x, y = vector(data["x"]), vector(data["y"])
    location, slope = (data["pmualpha"], data["psalpha"]), (data["pmubeta"], data["psbeta"])

    def model(batch: Batch) -> None:
        alpha = pyro.sample("alpha", dist.Normal(*map(float, location)))
        beta = pyro.sample("beta", dist.Normal(*map(float, slope)))
        sigma = pyro.sample("sigma", _positive())
        with pyro.plate("datum", len(x), subsample=batch["index"]):
            pyro.sample("y", dist.Normal(alpha + beta * batch["x"], sigma), obs=batch.get("y"))

    return Built(model, {"x": x, "y": y, "index": torch.arange(len(x))})


# ---------------------------------------------------------------------------------------------------- hierarchical
def eight_schools_noncentered(data: Data) -> Built:
    r"""``eight_schools_noncentered``: effects of coaching in eight schools, with known standard errors.

    .. math:: \mu \sim \mathrm{N}(0, 5), \quad \tau \sim \mathrm{Cauchy}^+(0, 5), \quad
        \tilde\theta_j \sim \mathrm{N}(0, 1), \quad \theta_j = \mu + \tau \tilde\theta_j, \quad
        y_j \sim \mathrm{N}(\theta_j, \sigma_j)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    y, sigma = vector(data["y"]), vector(data["sigma"])

    def model(batch: Batch) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", len(y), subsample=batch["index"]):
            theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * theta_trans, batch["sigma"]), obs=batch.get("y"))

    def parameters(draws: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        mu, tau = draws["mu"], draws["tau"]
        return {"theta": mu[..., None] + tau[..., None] * draws["theta_trans"], "mu": mu, "tau": tau}

    return Built(model, {"y": y, "sigma": sigma, "index": torch.arange(len(y))}, parameters)


# -------------------------------------------------------------------------------------------------------- mixtures
def low_dim_gauss_mix(data: Data) -> Built:
    r"""``low_dim_gauss_mix``: a mixture of two normals, their means in order.

    .. math:: \mu_k \sim \mathrm{N}(0, 2), \ \mu_1 < \mu_2, \quad \sigma_k \sim \mathrm{N}^+(0, 2), \quad
        \theta \sim \mathrm{Beta}(5, 5), \quad
        y_i \sim \theta \, \mathrm{N}(\mu_1, \sigma_1) + (1 - \theta) \, \mathrm{N}(\mu_2, \sigma_2)

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    y = vector(data["y"])

    def model(batch: Batch) -> None:
        normal = dist.Normal(0.0, 2.0).expand([2]).to_event(1)
        mu = pyro.sample("mu", Within(normal, constraints.ordered_vector))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
        theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
        weights = dist.Categorical(probs=torch.stack([theta, 1 - theta], -1))
        with pyro.plate("datum", len(y), subsample=batch["index"]):
            pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=batch.get("y"))

    return Built(model, {"y": y, "index": torch.arange(len(y))})


# ----------------------------------------------------------------------------------------------------- time series
def arK(data: Data) -> Built:
    r"""``arK``: autoregression of order :math:`K`, conditional on the first :math:`K` observations.

    .. math:: \alpha, \beta_k \sim \mathrm{N}(0, 10), \quad \sigma \sim \mathrm{Cauchy}^+(0, 2.5), \quad
        y_t \sim \mathrm{N}(\alpha + \textstyle\sum_k \beta_k y_{t-k}, \sigma), \ t > K

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    order, y = int(data["K"]), vector(data["y"])
    # Row t of the design holds y[t - 1], ..., y[t - K].
    x = y.unfold(0, order, 1)[:-1].flip(-1).contiguous()
    num_data = len(x)

    def model(batch: Batch) -> None:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
        with pyro.plate("lag", order):
            beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(alpha + batch["x"] @ beta, sigma), obs=batch.get("y"))

    return Built(model, {"x": x, "y": y[order:].clone(), "index": torch.arange(num_data)})


def garch11(data: Data) -> Built:
    r"""``garch11``: a time series whose variance depends on the last deviation and the last variance.

    .. math:: p(\mu, \alpha_0, \alpha_1, \beta_1) \propto 1, \ \alpha_0, \alpha_1, \beta_1 > 0, \
        \alpha_1 + \beta_1 < 1, \quad y_t \sim \mathrm{N}(\mu, \sigma_t), \quad
        \sigma_t^2 = \alpha_0 + \alpha_1 (y_{t-1} - \mu)^2 + \beta_1 \sigma_{t-1}^2

    with :math:`\sigma_1` known. The flat density on the triangle is written as
    :math:`\alpha_1 \sim \mathrm{Beta}(1, 2)`, :math:`\beta_1 = (1 - \alpha_1) s`, :math:`s \sim \mathrm{U}(0, 1)`.

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    y = vector(data["y"])
    first = float(data["sigma1"]) ** 2

    def model(batch: Batch) -> None:
        mu = pyro.sample("mu", Flat())
        alpha0 = pyro.sample("alpha0", _positive())
        alpha1 = pyro.sample("alpha1", dist.Beta(1.0, 2.0))
        share = pyro.sample("share", dist.Uniform(0.0, 1.0))
        beta1 = pyro.deterministic("beta1", (1 - alpha1) * share)
        past = batch["y"]  # which the variance depends on, also when the last value is to be predicted
        added = alpha0 + alpha1 * (past[:-1] - mu) ** 2
        variance = recurrence(torch.cat([torch.full_like(added[:1], first), added]), beta1)
        with pyro.plate("time", len(past)):
            pyro.sample("y", dist.Normal(mu, variance.sqrt()), obs=batch.get("y"))

    def parameters(draws: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        kept = {name: draws[name] for name in ("mu", "alpha0", "alpha1")}
        return kept | {"beta1": (1 - draws["alpha1"]) * draws["share"]}

    return Built(model, {"y": y}, parameters)


def hmm_example(data: Data) -> Built:
    r"""``hmm_example``: a hidden Markov chain of two states that emits normal values.

    .. math:: p(\theta_1, \theta_2) \propto 1, \quad \mu_1 \sim \mathrm{N}(3, 1), \ \mu_2 \sim \mathrm{N}(10, 1), \
        0 < \mu_1 < \mu_2, \quad z_t \sim \mathrm{Categorical}(\theta_{z_{t-1}}), \quad
        y_t \sim \mathrm{N}(\mu_{z_t}, 1)

    where :math:`\theta_k` are simplices. The first state has no distribution in the Stan program, which sums over it;
    that is a uniform one, up to a constant.

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    y = vector(data["y"])
    states, time = int(data["K"]), len(y)

    def model(batch: Batch) -> None:
        flat = dist.Dirichlet(torch.ones(states))
        theta1, theta2 = pyro.sample("theta1", flat), pyro.sample("theta2", flat)
        means = dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1)
        mu = pyro.sample("mu", Within(means, constraints.positive_ordered_vector))
        # Pyro's chain moves before its first emission: a first move that forgets makes the first state uniform.
        move = torch.stack([theta1, theta2]).log().expand(time - 1, states, states)
        forget = torch.full((1, states, states), -math.log(states))
        chain = dist.DiscreteHMM(
            torch.zeros(states), torch.cat([forget, move]), dist.Normal(mu, 1.0).expand([time, states]), duration=time
        )
        pyro.sample("y", chain, obs=batch.get("y"))

    return Built(model, {"y": y})


# ------------------------------------------------------------------------------------------------------- functions
def gp_regr(data: Data) -> Built:
    r"""``gp_regr``: regression by a Gaussian process; :math:`\sigma` is the variance of the noise.

    .. math:: \rho \sim \mathrm{Gamma}(25, 4), \quad \alpha \sim \mathrm{N}^+(0, 2), \quad
        \sigma \sim \mathrm{N}^+(0, 1), \quad y \sim \mathrm{N}(0, K), \quad
        K_{ij} = \alpha^2 e^{-(x_i - x_j)^2 / 2 \rho^2} + \sigma 1[i = j]

    Args:
        data: What the program declares.

    Returns:
        The model on these data.
    """
    x, y = vector(data["x"]), vector(data["y"])

    def model(batch: Batch) -> None:
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        distance = (batch["x"][:, None] - batch["x"]) / rho
        eye = torch.eye(len(batch["x"]), dtype=distance.dtype)
        covariance = alpha**2 * (-0.5 * distance**2).exp() + sigma * eye
        root = torch.linalg.cholesky(covariance)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(batch["x"]), scale_tril=root), obs=batch.get("y"))

    return Built(model, {"x": x, "y": y})


MODELS: Mapping[str, Callable[[Data], Built]] = {
    function.__name__: function
    for function in (
        arK,
        blr,
        eight_schools_noncentered,
        garch11,
        gp_regr,
        hmm_example,
        kidscore_interaction,
        kidscore_momhsiq,
        kilpisjarvi,
        logearn_interaction,
        logmesquite_logvas,
        lotka_volterra,
        low_dim_gauss_mix,
        nes,
    )
} | dict(HARDER)
"""Name of the Stan program -> its model."""
