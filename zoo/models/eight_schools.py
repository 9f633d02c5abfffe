r"""Eight schools: a hierarchical normal model, centred and non-centred.

Eight schools each ran a coaching programme; school :math:`j` reports an estimated effect :math:`y_j` with a known
standard error :math:`\sigma_j`. The effects are exchangeable draws from one population:

.. math::

    \mu &\sim \mathrm{N}(0, 5^2), \qquad \tau \sim \mathrm{C}^{+}(0, 5), \\
    \theta_j &\sim \mathrm{N}(\mu, \tau^2), \qquad y_j \sim \mathrm{N}(\theta_j, \sigma_j^2), \qquad j = 1, \dots, 8.

``Hyper.centred`` chooses what is sampled. Centred: :math:`\theta_j` as written, whose scale is :math:`\tau` itself, so
that the posterior is a funnel with its neck at :math:`\tau = 0`. Non-centred (default):
:math:`\tilde\theta_j \sim \mathrm{N}(0, 1)` and :math:`\theta_j = \mu + \tau \tilde\theta_j`. Both are the same
distribution over :math:`(\mu, \tau, \theta)`.

==========================  ===============  ==========  =====================================================
symbol                      site             plate       meaning
==========================  ===============  ==========  =====================================================
:math:`\mu`                 ``mu``                       mean effect of the population of schools
:math:`\tau`                ``tau``                      standard deviation of the population
:math:`\theta_j`            ``theta``        ``school``  effect in school j; deterministic when non-centred
:math:`\tilde\theta_j`      ``theta_trans``  ``school``  standardised effect; non-centred only
:math:`y_j`                 ``y``            ``school``  estimated effect, observed
:math:`\sigma_j`            batch entry      ``school``  its standard error, known
==========================  ===============  ==========  =====================================================

Deviations. Rubin (1981) and Gelman et al. (2013, sec. 5.5) take flat priors on :math:`\mu` and :math:`\tau`; here they
are proper, with the scales of posteriordb, whose reference draws are the check. The guide is ours: a mean-field normal,
log-normal for :math:`\tau`. The neck of the centred funnel is the point of the example, so nothing works around it.

.. code-block:: bibtex

    @article{rubin1981estimation,
      title   = {Estimation in Parallel Randomized Experiments},
      author  = {Rubin, Donald B.},
      journal = {Journal of Educational Statistics},
      volume  = {6},
      number  = {4},
      pages   = {377--401},
      year    = {1981}
    }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

import zoo
from zoo.errors import DataError
from zoo.types import Acceptance, Batch, Claim, Dataset, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["METHOD", "Hyper", "build", "effects", "exact_moments", "summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        centred: Sample ``theta`` itself rather than ``theta_trans``.
        mu_scale: Prior standard deviation of ``mu``, in the units of ``y``.
        tau_scale: Prior scale (median) of ``tau``, in the units of ``y``.
    """

    centred: bool = False
    mu_scale: float = 5.0
    tau_scale: float = 5.0


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with ``y`` and ``sigma``, ``(schools,)``, and ``index``.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch of schools.

    Raises:
        DataError: If the data hold no ``y`` or no ``sigma``.
    """
    for entry in ("y", "sigma"):
        if entry not in data.train:
            raise DataError(
                f"data set '{data.name}' has no '{entry}'; eight_schools needs an estimate 'y' and its standard error "
                "'sigma' per school"
            )
    num_schools = data.num_data

    def model(batch: Batch) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, hyper.mu_scale))
        tau = pyro.sample("tau", dist.HalfCauchy(hyper.tau_scale))
        with pyro.plate("school", num_schools, subsample=batch["index"]):
            if hyper.centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
                theta = pyro.deterministic("theta", mu + tau * theta_trans, event_dim=0)
            pyro.sample("y", dist.Normal(theta, batch["sigma"]), obs=batch.get("y"))

    def guide(batch: Batch) -> None:
        mu_loc = pyro.param("mu_loc", lambda: torch.zeros(()))
        mu_scale = pyro.param("mu_scale", lambda: torch.ones(()), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(mu_loc, mu_scale))

        tau_loc = pyro.param("tau_loc", lambda: torch.zeros(()))
        tau_scale = pyro.param("tau_scale", lambda: torch.ones(()), constraint=constraints.positive)
        pyro.sample("tau", dist.LogNormal(tau_loc, tau_scale))

        site = "theta" if hyper.centred else "theta_trans"
        theta_loc = pyro.param(f"{site}_loc", lambda: torch.zeros(num_schools))
        theta_scale = pyro.param(f"{site}_scale", lambda: torch.ones(num_schools), constraint=constraints.positive)
        with pyro.plate("school", num_schools, subsample=batch["index"]) as index:
            pyro.sample(site, dist.Normal(theta_loc[index], theta_scale[index]))

    return Pair(model, guide)


# ---------------------------------------------------------------------------------------- quantities of interest
def effects(posterior: Posterior, num_draws: int = 4_000) -> pd.DataFrame:
    r"""Return what is known about the effect in each school.

    Args:
        posterior: A fit of this method.
        num_draws: Posterior draws to summarise.

    Returns:
        One row per school: its own ``estimate`` :math:`y_j` and ``standard_error`` :math:`\sigma_j`; ``mean``, ``sd``
        and the 90% interval ``5%``, ``95%`` of :math:`\theta_j`; and ``best``, the probability that its effect is the
        largest.

    References:
        Gelman et al. (2013), Bayesian Data Analysis, table 5.3 and sec. 5.5.
    """
    draws = posterior.draws(num_draws)
    theta = {**draws, **posterior.deterministics(draws)}["theta"].double()
    low, high = torch.quantile(theta, torch.tensor([0.05, 0.95], dtype=theta.dtype), dim=0)
    best = torch.nn.functional.one_hot(theta.argmax(-1), theta.shape[-1]).double().mean(0)
    train = posterior.data.train
    columns = {
        "estimate": train["y"],
        "standard_error": train["sigma"],
        "mean": theta.mean(0),
        "sd": theta.std(0),
        "5%": low,
        "95%": high,
        "best": best,
    }
    schools = posterior.data.coords.get("school", range(theta.shape[-1]))
    return pd.DataFrame(
        {name: column.cpu().numpy() for name, column in columns.items()}, index=pd.Index(list(schools), name="school")
    )


def exact_moments(data: Dataset, hyper: Hyper, num_nodes: int = 2_000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    r"""Return the posterior means and standard deviations without sampling.

    Given :math:`\tau` everything is Gaussian, so only one integral is left, over :math:`\tau`. The substitution
    :math:`\tau = s \tan(\pi u / 2)` makes its half-Cauchy prior uniform on (0, 1), where the midpoint rule applies.

    Args:
        data: As for :func:`build`.
        hyper: Prior scales; ``centred`` does not matter.
        num_nodes: Nodes of the midpoint rule.

    Returns:
        ``mu``, ``tau`` and ``theta`` -> (mean, standard deviation).

    References:
        Gelman et al. (2013), eq. 5.17, 5.20 and 5.21, with a normal prior on mu in place of the flat one.
    """
    y, sigma = (data.train[name].detach().cpu().double().numpy() for name in ("y", "sigma"))
    tau = hyper.tau_scale * np.tan(np.pi / 2 * (np.arange(num_nodes) + 0.5) / num_nodes)
    variance = sigma**2 + tau[:, None] ** 2  # of y_j given mu and tau
    mu_variance = 1 / (hyper.mu_scale**-2 + (1 / variance).sum(-1))
    mu_mean = mu_variance * (y / variance).sum(-1)
    # p(y | tau) = p(mu) p(y | mu, tau) / p(mu | y, tau) at any mu: here at the mean of the denominator.
    log_weight = 0.5 * np.log(mu_variance) - 0.5 * (mu_mean / hyper.mu_scale) ** 2
    log_weight -= 0.5 * (np.log(variance) + (y - mu_mean[:, None]) ** 2 / variance).sum(-1)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()

    pooling = sigma**2 / variance
    theta_mean = (1 - pooling) * y + pooling * mu_mean[:, None]
    theta_variance = pooling * tau[:, None] ** 2 + pooling**2 * mu_variance[:, None]

    def moments(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total = weight @ mean
        return total, np.sqrt(weight @ (variance + (mean - total) ** 2))

    return {
        "mu": moments(mu_mean, mu_variance),
        "tau": moments(tau, np.zeros_like(tau)),
        "theta": moments(theta_mean, theta_variance),
    }


def summary(posterior: Posterior) -> dict[str, float | str]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        Population mean and standard deviation, and the school most likely to have the largest effect.
    """
    draws = posterior.draws(4_000)
    table = effects(posterior)
    return {
        "mean effect (mu)": float(draws["mu"].mean()),
        "spread between schools (tau)": float(draws["tau"].mean()),
        "most likely the best school": str(table["best"].idxmax()),
        "its probability to be the best": float(table["best"].max()),
    }


# -------------------------------------------------------------------------------------------------------- claims
# posteriordb, posterior eight_schools-eight_schools_noncentered (BSD-3): means of 10,000 reference draws and the Monte
# Carlo errors of these means.
_REFERENCE: dict[str, tuple[Any, Any]] = {
    "mu": (4.4105, 0.0330),
    "tau": (3.6021, 0.0319),
    "theta": (
        np.array([6.1505, 4.9396, 3.9059, 4.7960, 3.6144, 4.0511, 6.3172, 4.8840]),
        np.array([0.0557, 0.0462, 0.0542, 0.0475, 0.0461, 0.0485, 0.0499, 0.0543]),
    ),
}


def _measure_reference(seed: int, fast: bool) -> dict[str, float]:
    """Compare the means of a NUTS run with the reference means.

    Returns:
        Means of ``mu`` and ``tau``, and the largest distance of any mean in combined Monte Carlo errors.
    """
    import arviz

    data = zoo.datasets.load("eight_schools")
    posterior = zoo.fit(METHOD, data, engine="nuts", seed=seed, draws=1_000 if fast else 2_500)
    draws = posterior.to_datatree()["posterior"].to_dataset()[list(_REFERENCE)]
    means, errors = draws.mean(("chain", "draw")), arviz.mcse(draws, method="mean")
    distances = [
        np.abs(means[name].values - mean) / np.hypot(errors[name].values, error)
        for name, (mean, error) in _REFERENCE.items()
    ]
    return {"mu": float(means["mu"]), "tau": float(means["tau"]), "largest distance": float(np.hstack(distances).max())}


def _measure_divergences(seed: int, fast: bool) -> dict[str, float]:
    """Count divergent transitions in four chains of 1,000 draws; ``fast`` changes nothing.

    Returns:
        Divergences of each form.
    """
    data = zoo.datasets.load("eight_schools")
    counts = {}
    for name, hyper in (("centred", Hyper(centred=True)), ("non-centred", Hyper())):
        posterior = zoo.fit(
            METHOD, data, hyper=hyper, engine="nuts", seed=seed, chains=4, draws=1_000, target_accept=0.8
        )
        counts[name] = float(posterior.to_arviz().sample_stats["diverging"].sum())
    return counts


def _measure_variational(seed: int, fast: bool) -> dict[str, float]:
    """Fit both forms by mean-field VI.

    Returns:
        Pareto k-hat of each form, and its mean and standard deviation of ``tau`` over the exact ones.
    """
    from zoo.diagnostics.inference import khat

    data = zoo.datasets.load("eight_schools")
    measured = {}
    for name, hyper in (("centred", Hyper(centred=True)), ("non-centred", Hyper())):
        posterior = zoo.fit(METHOD, data, hyper=hyper, engine="svi", seed=seed)
        log_weights = posterior.log_weights(2_000 if fast else 10_000, seed=seed)
        measured[f"k-hat {name}"] = khat(log_weights.double().cpu().numpy())
        mean, sd = exact_moments(data, hyper)["tau"]
        tau = posterior.draws(4_000, seed=seed)["tau"].double()
        measured[f"tau mean / exact, {name}"] = float(tau.mean()) / float(mean)
        measured[f"tau sd / exact, {name}"] = float(tau.std()) / float(sd)
    return measured


CLAIMS = (
    Claim(
        statement="NUTS on the non-centred form gives the reference posterior means of mu, tau and all eight effects, "
        "the worst of them within 3 combined Monte Carlo errors.",
        published="mu 4.41 +- 0.03, tau 3.60 +- 0.03",
        source="posteriordb, eight_schools-eight_schools_noncentered, reference draws",
        measure=_measure_reference,
        acceptance=(Acceptance(key="largest distance", high=3.0),),
        budget=60,
    ),
    Claim(
        statement="NUTS on the centred form diverges (10 or more divergences in 4,000 draws); "
        "the non-centred form has fewer.",
        published="divergences mark the neck of the centred funnel; the non-centred form has no such neck (no number)",
        source="Betancourt and Girolami (2015), arXiv:1312.0906",
        measure=_measure_divergences,
        acceptance=(
            Acceptance(key="centred", low=10.0),
            Acceptance(key="non-centred", below="centred"),
        ),
        budget=60,
    ),
    Claim(
        statement="Mean-field VI on the centred form is flagged by its Pareto k-hat (above 0.7); "
        "the non-centred form has a smaller one, below 0.7.",
        published="k-hat 1.00 centred, 0.64 non-centred",
        source="Yao et al. (2018), arXiv:1802.02538, sec. 4.3",
        measure=_measure_variational,
        acceptance=(
            Acceptance(key="k-hat centred", low=0.7),
            Acceptance(key="k-hat non-centred", high=0.7, below="k-hat centred"),
        ),
        budget=60,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    return {"mu": (), "tau": (), "theta" if hyper.centred else "theta_trans": ("school",)}


METHOD = Method(
    name="eight_schools",
    title="Eight schools: hierarchical normal model, centred and non-centred",
    paper="rubin1981estimation",
    task="meta_analysis",
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(),
    default_data="eight_schools",
    build=build,
    engines=("nuts", "svi"),
    claims=CLAIMS,
    recipe=Recipe(steps=20_000, learning_rate=1e-2, schedule="cosine"),
    summary=summary,
    use_when="You have one estimate and one known standard error per group (schools, studies, sites) and want to "
    "pool them; or you want a small model whose right answer is known, to try an engine or a diagnostic.",
    avoid_when="The standard errors are themselves estimated from few data (model the raw data), groups differ for "
    "known reasons (add covariates), or an effect may be an outlier, which the normal population pulls in.",
    needs="A batch with the estimates y and their standard errors sigma, built in Python as a zoo.Dataset (a file "
    "read by --data has no such entries). Prior scales are in the units of y: set mu_scale and tau_scale to those of "
    "your data.",
)
