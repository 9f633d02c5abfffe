r"""Regularised horseshoe regression, linear and logistic.

A regression with :math:`D` standardised features of which few matter. Each coefficient has its own scale
:math:`\lambda_j`, heavy-tailed, under a global scale :math:`\tau` that shrinks all of them; a slab of width :math:`c`
keeps the largest ones finite:

.. math::

    c^2 &\sim \mathrm{InvGamma}(\nu / 2, \nu s^2 / 2), \qquad
    \tau \sim \mathrm{C}^{+}(0, \tau_0), \qquad \lambda_j \sim \mathrm{C}^{+}(0, 1), \\
    \beta_j &\sim \mathrm{N}(0, \tau^2 \tilde\lambda_j^2), \qquad
    \tilde\lambda_j^2 = \frac{c^2 \lambda_j^2}{c^2 + \tau^2 \lambda_j^2}, \\
    y_i &\sim \mathrm{N}(\beta_0 + x_i^\top \beta, \sigma^2) \quad \text{or} \quad
    \mathrm{Bernoulli}(\mathrm{logit}^{-1}(\beta_0 + x_i^\top \beta)).

The guess that :math:`p_0` of the features matter fixes the global scale,
:math:`\tau_0 = \frac{p_0}{D - p_0} \frac{\sigma}{\sqrt n}`; in the logistic model the pseudo standard deviation
:math:`\sigma = 2` takes the place of the noise. The data decide between the two likelihoods: a number as target, or two
classes.

==========================  ==============  ===========  ======================================================
symbol                      site            plate        meaning
==========================  ==============  ===========  ======================================================
:math:`\beta_0`             ``beta0``                    intercept
:math:`\sigma`              ``sigma``                    noise standard deviation; linear, unless it is known
:math:`\tau`                ``tau``                      global scale
:math:`c^2`                 ``c2``                       variance of the slab
:math:`\lambda_j`           ``lambda``      ``feature``  local scale
:math:`\beta_j`             ``beta``        ``feature``  coefficient; deterministic unless centred
:math:`\tilde\beta_j`       ``beta_trans``  ``feature``  transformed coefficient; not when centred
:math:`x_m`                 ``x_mis``       ``missing``  missing entry of a feature, where there are any
:math:`y_i`                 ``y``           ``datum``    target, observed
==========================  ==============  ===========  ======================================================

All sites are in standardised units; :func:`coefficients` translates them.

``Hyper.parametrisation`` chooses what is sampled. With :math:`v_j` the least-squares variance of coefficient j per unit
of :math:`\sigma^2`, the diagonal of :math:`(X^\top X + I)^{-1}`,

.. math::

    \beta_j = \frac{\tau \tilde\lambda_j}{w_j} \tilde\beta_j, \qquad \tilde\beta_j \sim \mathrm{N}(0, w_j^2), \qquad
    w_j^2 = 1 + \frac{\tau^2 \tilde\lambda_j^2}{\sigma^2 v_j},

which is centred where the data say more than the prior and non-centred where they say less (:math:`w_j = 1` everywhere
is the non-centred form); with orthogonal features :math:`w_j^2 = 1 / \kappa_j`, the inverse of the shrinkage factor.

Entries of the features that are missing at random are latents, :math:`x_m \sim \mathrm{N}(0, 1)` each: the mean and
variance of a standardised feature, without regard to the other features. NUTS draws those of the training rows jointly
with everything else; those of new rows are drawn afresh from this prior, so that predictions are as uncertain as they
must be. Only numbers are imputed, not categories, and only by NUTS.

Deviations. The paper's priors on the noise, :math:`p(\sigma^2) \propto \sigma^{-2}`, and on the intercept, flat, are
improper; here :math:`\sigma \sim \mathrm{N}^{+}(0, 1)` on the standardised target and
:math:`\beta_0 \sim \mathrm{N}(0, 5^2)`. The paper samples the non-centred form with NUTS; the partly centred form,
which NUTS samples in fewer steps and almost without divergences, and the variational guides are ours. Without a guess,
:math:`p_0 = \min(5, D / 2)`. ``prior="gaussian"`` is the limit :math:`\tau \lambda_j \to \infty` at a fixed slab
:math:`c = s`, that is ridge regression.

.. code-block:: bibtex

    @article{piironen2017sparsity,
      title   = {Sparsity Information and Regularization in the Horseshoe and Other Shrinkage Priors},
      author  = {Piironen, Juho and Vehtari, Aki},
      journal = {Electronic Journal of Statistics},
      volume  = {11},
      number  = {2},
      pages   = {5018--5051},
      year    = {2017},
      note    = {arXiv:1707.01694}
    }
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

import zoo
from zoo.errors import DataError
from zoo.types import Acceptance, Batch, Claim, Column, Dataset, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["METHOD", "Hyper", "build", "coefficients", "global_scale", "summary", "unshrunk"]

_PER_FEATURE = ("lambda", "beta", "beta_trans")
_PSEUDO_SIGMA = 2.0  # of the logistic likelihood: 1 / sqrt(mu (1 - mu)) at mu = 1/2


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters; scales are in units of the standardised features and target.

    Args:
        prior: ``regularised_horseshoe``, or ``gaussian``: ``beta ~ N(0, slab_scale^2)``.
        num_relevant: Guess ``p0`` of how many features matter; ``None`` takes 5, or half the features if fewer.
        slab_scale: Width ``s`` of the slab: about the largest coefficient that is expected.
        slab_df: Degrees of freedom ``nu`` of the slab.
        noise: Known noise standard deviation; ``None`` infers it. Linear only.
        noise_scale: Prior scale of ``sigma``.
        intercept_scale: Prior standard deviation of ``beta0``.
        parametrisation: What is sampled; the density of ``beta`` is the same. ``centred``: ``beta`` itself;
            ``non_centred``: ``beta`` over its prior scale; ``partly_centred``: in between, by how much the data say.
        guide: ``mean_field``, or ``low_rank``: one normal over all unconstrained latents, of covariance diagonal plus
            rank ``rank``.
        rank: Rank of the low-rank part.
    """

    prior: Literal["regularised_horseshoe", "gaussian"] = "regularised_horseshoe"
    num_relevant: float | None = None
    slab_scale: float = 2.0
    slab_df: float = 4.0
    noise: float | None = None
    noise_scale: float = 1.0
    intercept_scale: float = 5.0
    parametrisation: Literal["partly_centred", "non_centred", "centred"] = "partly_centred"
    guide: Literal["mean_field", "low_rank"] = "low_rank"
    rank: int = 8


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with standardised ``x``, ``(rows, features)``, ``y``, ``(rows,)``, and ``index``; ``y`` is a
            standardised number, or 0 and 1 where the task is ``classification``; ``x_missing`` marks entries to impute.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch of rows; no guide where entries of the training rows are missing.
    """
    logistic = _is_logistic(data)
    num_data, num_features = data.num_data, data.train["x"].shape[1]
    horseshoe = hyper.prior == "regularised_horseshoe"
    tau0 = global_scale(data, hyper)
    variance = _least_squares_variance(data.train["x"])

    def model(batch: Batch) -> None:
        beta0 = pyro.sample("beta0", dist.Normal(0.0, hyper.intercept_scale))
        sigma: Any = _PSEUDO_SIGMA if logistic else hyper.noise
        if sigma is None:
            sigma = pyro.sample("sigma", dist.HalfNormal(hyper.noise_scale))
        if horseshoe:
            tau = pyro.sample("tau", dist.HalfCauchy(tau0 * sigma))
            c2 = pyro.sample("c2", dist.InverseGamma(hyper.slab_df / 2, hyper.slab_df * hyper.slab_scale**2 / 2))
        with pyro.plate("feature", num_features):
            scale: Any = hyper.slab_scale
            if horseshoe:
                lambda_ = pyro.sample("lambda", dist.HalfCauchy(1.0))
                scale = _regularised(tau * lambda_, c2)
            if hyper.parametrisation == "centred":
                beta = pyro.sample("beta", dist.Normal(0.0, scale))
            else:
                width: Any = 1.0
                if hyper.parametrisation == "partly_centred":
                    width = (1 + (scale / sigma) ** 2 / variance.to(batch["x"])).sqrt()
                beta_trans = pyro.sample("beta_trans", dist.Normal(0.0, width))
                beta = pyro.deterministic("beta", scale / width * beta_trans, event_dim=0)
        mean = beta0 + beta @ batch["x"].mT
        if "x_missing" in batch:
            row, column = batch["x_missing"].nonzero(as_tuple=True)
            if len(row):  # the entries are 0 in x, so that what they add to the mean is all that is left to do
                with pyro.plate("missing", len(row)):
                    x_mis = pyro.sample("x_mis", dist.Normal(0.0, 1.0), infer={"imputes": True})
                mean = mean.index_add(-1, row, x_mis * beta[..., column])
        y = batch.get("y")
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            if logistic:
                pyro.sample("y", dist.Bernoulli(logits=mean), obs=None if y is None else y.to(mean.dtype))
            else:
                pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    # Where the guide starts: near the medians of the priors for the positive sites, at zero for the others.
    start = {"sigma": hyper.noise_scale, "tau": tau0, "c2": hyper.slab_scale**2, "lambda": 1.0}
    latents = {site: num_features if plates else 1 for site, plates in _sites(hyper, logistic).items()}

    def mean_field(batch: Batch) -> None:
        feature = pyro.plate("feature", num_features)
        for site, size in latents.items():
            shape = (size,) if site in _PER_FEATURE else ()
            loc = pyro.param(f"{site}_loc", torch.full(shape, math.log(start.get(site, 1.0))))
            scale = pyro.param(f"{site}_scale", torch.full(shape, 0.1), constraint=constraints.positive)
            family = dist.LogNormal if site in start else dist.Normal
            with feature if shape else nullcontext():
                pyro.sample(site, family(loc, scale))

    def low_rank(batch: Batch) -> None:
        first = [torch.full((size,), math.log(start.get(site, 1.0))) for site, size in latents.items()]
        dim = sum(latents.values())
        loc = pyro.param("loc", torch.cat(first))
        scale = pyro.param("scale", torch.full((dim,), 0.1), constraint=constraints.positive)
        factor = pyro.param("factor", lambda: torch.randn(dim, hyper.rank) / hyper.rank)
        joint = dist.LowRankMultivariateNormal(loc, scale[:, None] * factor, scale**2)
        unconstrained = pyro.sample("unconstrained", joint, infer={"is_auxiliary": True})
        parts = unconstrained.split(list(latents.values()), dim=-1)
        feature = pyro.plate("feature", num_features)
        for site, part in zip(latents, parts, strict=True):
            plated = site in _PER_FEATURE
            value = part.reshape(*part.shape[:-2], num_features) if plated else part[..., 0]
            # What is left of a density of exp(value) once the joint normal has been counted: the Jacobian.
            density = dist.Delta(value.exp(), -value) if site in start else dist.Delta(value)
            with feature if plated else nullcontext():
                pyro.sample(site, density)

    guide = mean_field if hyper.guide == "mean_field" else low_rank
    return Pair(model, None if _imputes(data) else guide)


def _sites(hyper: Hyper, logistic: bool) -> dict[str, tuple[str, ...]]:
    """Return each latent and its plates, in the order of the model."""
    names = ["beta0"]
    if not logistic and hyper.noise is None:
        names.append("sigma")
    if hyper.prior == "regularised_horseshoe":
        names += ["tau", "c2", "lambda"]
    names.append("beta" if hyper.parametrisation == "centred" else "beta_trans")
    return {name: ("feature",) if name in _PER_FEATURE else () for name in names}


def _regularised(scale: Any, c2: Any) -> Any:
    """Return tau lambda~ for ``scale`` = tau lambda; ``hypot`` does not overflow where the squares do."""
    return scale * c2.sqrt() / torch.hypot(c2.sqrt(), scale)


def _least_squares_variance(x: Tensor) -> Tensor:
    r"""Return the diagonal of :math:`(X^\top X + I)^{-1}`; the identity keeps it finite where D exceeds n."""
    x = x.detach().double()
    if x.shape[1] > len(x):  # by Woodbury's identity over the rows: ten thousand columns would take a minute
        rows: Tensor = torch.linalg.solve(x @ x.mT + torch.eye(len(x)).to(x), x)
        return 1 - (x * rows).sum(0)
    inverse: Tensor = torch.linalg.inv(x.mT @ x + torch.eye(x.shape[1]).to(x))
    return inverse.diagonal().clone()


def _is_logistic(data: Dataset) -> bool:
    """Say which likelihood the data ask for.

    Returns:
        Whether it is the logistic one.

    Raises:
        DataError: If the data are no table with a number or two classes as target.
    """
    x, y = data.train.get("x"), data.train.get("y")
    if x is None or y is None or x.ndim != 2 or y.ndim != 1:
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in data.train.items())
        raise DataError(
            f"data set '{data.name}' holds {found}; horseshoe_regression needs a table 'x' (rows, features) and a "
            "target 'y' (rows,)"
        )
    if data.task == "regression":
        return False
    if data.task != "classification":
        raise DataError(
            f"data set '{data.name}' is for {data.task}; horseshoe_regression does regression and classification"
        )
    num_classes = int(data.extra.get("num_classes", int(y.max()) + 1))
    if num_classes != 2:
        raise DataError(
            f"target of '{data.name}' has {num_classes} classes; horseshoe_regression takes two: keep two of them, or "
            "compare one with the rest"
        )
    return True


def _imputes(data: Dataset) -> bool:
    """Say whether training rows have missing entries.

    Returns:
        Whether any is missing.

    Raises:
        DataError: If one is missing in a column of categories, in any split.
    """
    for batch in (data.train, data.validation, data.test):
        if batch is None or "x_missing" not in batch:
            continue
        for column, some in zip(data.columns, batch["x_missing"].any(0), strict=False):
            if some and column.categories is not None:
                raise DataError(
                    f"column '{column.source or column.name}' of '{data.name}' holds categories and has missing "
                    "entries; horseshoe_regression imputes numbers only: fill them, say with a category of their own"
                )
    return "x_missing" in data.train and bool(data.train["x_missing"].any())


# ---------------------------------------------------------------------------------------- quantities of interest
def global_scale(data: Dataset, hyper: Hyper) -> float:
    r"""Return the prior scale of ``tau`` per unit of noise, :math:`\tau_0 / \sigma = \frac{p_0}{(D - p_0) \sqrt n}`.

    Args:
        data: As for :func:`build`.
        hyper: Hyper-parameters.

    Returns:
        The scale.

    Raises:
        DataError: If ``num_relevant`` is not between 0 and the number of features.

    References:
        Piironen and Vehtari (2017), eq. 3.12.
    """
    num_features = data.train["x"].shape[1]
    p0 = min(5.0, num_features / 2) if hyper.num_relevant is None else hyper.num_relevant
    if not 0 < p0 < num_features:
        raise DataError(
            f"num_relevant is {p0:g}, but data set '{data.name}' has {num_features} features; it must lie between "
            f"0 and {num_features}, both excluded"
        )
    return p0 / (num_features - p0) / math.sqrt(data.num_data)


def unshrunk(posterior: Posterior, draws: Mapping[str, Tensor]) -> Tensor:
    r"""Return how much of each coefficient the prior leaves; the sum is the effective number of nonzeros.

    .. math:: m_\mathrm{eff} = \sum_j (1 - \kappa_j), \qquad
        \kappa_j = \frac{1}{1 + n \sigma^{-2} \tau^2 \tilde\lambda_j^2 s_j^2}

    Here :math:`s_j^2` is the variance of feature j, and :math:`\sigma = 2` in the logistic model.

    Args:
        posterior: A fit of this method.
        draws: What ``posterior.draws(n)`` returned.

    Returns:
        :math:`1 - \kappa_j`, ``(n, features)``, between 0 (shrunk to nothing) and 1.

    References:
        Piironen and Vehtari (2017), sec. 2.1 and 3.2, with the regularised local scales of sec. 2.3.
    """
    hyper: Hyper = posterior.hyper
    fixed = _PSEUDO_SIGMA if _is_logistic(posterior.data) else hyper.noise
    sigma = draws["sigma"] if fixed is None else torch.full_like(draws["beta0"], fixed)
    if hyper.prior == "gaussian":
        scale = torch.full_like(sigma, hyper.slab_scale)[:, None]
    else:
        scale = _regularised(draws["tau"][:, None] * draws["lambda"], draws["c2"][:, None])
    x = posterior.data.train["x"]
    signal = len(x) * (scale / sigma[:, None]) ** 2 * x.var(0, correction=0).to(scale)
    return signal / (1 + signal)


def coefficients(posterior: Posterior, num_draws: int = 4_000) -> pd.DataFrame:
    """Return the coefficients in the user's units and under the user's column names.

    A linear coefficient is the change of the target, in its own unit, per unit of the feature; a logistic one is the
    change of the log odds of the second class.

    Args:
        posterior: A fit of this method.
        num_draws: Posterior draws to summarise.

    Returns:
        One row per feature, after the ``intercept`` at zero of all features: ``mean``, ``sd``, the 90% interval ``5%``
        and ``95%``, ``sign``: the probability that the coefficient has the sign of its mean, and ``unshrunk``: how
        much of it the prior leaves (see :func:`unshrunk`).
    """
    draws = posterior.draws(num_draws)
    beta = {**draws, **posterior.deterministics(draws)}["beta"].double()
    columns, target = posterior.data.columns, posterior.data.target
    columns = columns or tuple(Column(name=f"x{j}") for j in range(beta.shape[-1]))
    unit = target.scale if target is not None and target.categories is None else 1.0
    origin = target.mean if target is not None and target.categories is None else 0.0
    mean, scale = (torch.tensor([getattr(c, k) for c in columns]).to(beta) for k in ("mean", "scale"))
    slope = unit * beta / scale
    intercept = origin + unit * draws["beta0"].double() - slope @ mean
    values = torch.cat([intercept[:, None], slope], dim=-1)
    low, high = torch.quantile(values, torch.tensor([0.05, 0.95]).to(values), dim=0)
    table = {
        "mean": values.mean(0),
        "sd": values.std(0),
        "5%": low,
        "95%": high,
        "sign": ((values > 0) == (values.mean(0) > 0)).double().mean(0),
    }
    names = pd.Index(["intercept", *(column.name for column in columns)], name="feature")
    frame = pd.DataFrame({name: column.cpu().numpy() for name, column in table.items()}, index=names)
    return frame.assign(unshrunk=[math.nan, *unshrunk(posterior, draws).mean(0).tolist()])


def summary(posterior: Posterior) -> dict[str, float | str]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        Effective number of nonzero coefficients, features whose sign is known, and the noise in the target's unit.
    """
    draws = posterior.draws(4_000)
    table = coefficients(posterior).drop(index="intercept")
    known = table[table["sign"] > 0.95].sort_values("sign", ascending=False)
    found: dict[str, float | str] = {
        "features": float(len(table)),
        "effective nonzero coefficients (m_eff)": float(unshrunk(posterior, draws).sum(-1).mean()),
        "features of known sign (95%)": ", ".join(map(str, known.index)) or "none",
    }
    if "sigma" in draws:
        unit = 1.0 if posterior.data.target is None else posterior.data.target.scale
        found["noise standard deviation"] = float(draws["sigma"].mean()) * unit
    return found


# -------------------------------------------------------------------------------------------------------- claims
def _simulated(seed: int, *, num_data: int = 100, num_features: int = 80) -> tuple[Dataset, np.ndarray]:
    """Return a sparse linear problem with correlated features, 1,000 test rows, and its coefficients."""
    rng = np.random.default_rng(seed)
    beta = np.zeros(num_features)
    relevant = rng.choice(num_features, size=5, replace=False)
    beta[relevant] = np.linspace(0.5, 1.5, 5) * rng.choice([-1.0, 1.0], size=5)
    x = rng.standard_normal((num_data + 1_000, num_features))
    for j in range(1, num_features):
        x[:, j] = 0.5 * x[:, j - 1] + math.sqrt(0.75) * x[:, j]
    table = pd.DataFrame(x, columns=[f"x{j}" for j in range(num_features)])
    table["y"] = x @ beta + rng.standard_normal(len(x))
    return zoo.datasets.read(table, "y", name="sparse", validation=0, test=1_000, seed=seed, task="regression"), beta


def _separated(seed: int, num_data: int = 30) -> Dataset:
    """Return two classes that the first of two features separates."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_data, 2))
    x[:, 0] += np.where(x[:, 0] > 0, 0.3, -0.3)
    table = pd.DataFrame(x, columns=["separates", "noise"]).assign(y=np.where(x[:, 0] > 0, "yes", "no"))
    return zoo.datasets.read(table, "y", name="separated", validation=0, test=0, seed=seed)


def _sampled(data: Dataset, seed: int, fast: bool) -> Posterior:
    """Return four chains of NUTS."""
    return zoo.fit(METHOD, data, engine="nuts", seed=seed, tune=500 if fast else 1_000, draws=250 if fast else 1_000)


def _score(posterior: Posterior) -> dict[str, float]:
    """Return the mean log predictive density of the test rows, in nats, and the error of the predictive mean."""
    test = posterior.data.split("test")
    prediction = posterior.predict(test, 1_000)
    density = prediction.log_prob["y"].double()
    error = prediction.means["y"].double().mean(0) - test["y"].double()
    return {
        "log density": float((density.logsumexp(0) - math.log(len(density))).mean()),
        "rmse": float(error.square().mean().sqrt()),
    }


def _baseline(data: Dataset, penalty: Literal["lasso", "ridge"], seed: int) -> tuple[dict[str, float], np.ndarray]:
    """Fit scikit-learn's lasso or ridge, the penalty chosen by cross-validation.

    Returns:
        Scores as of :func:`_score`, and the coefficients of the standardised features.
    """
    from sklearn.linear_model import Lasso, LassoCV, LogisticRegressionCV, Ridge, RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    test = data.split("test")
    (x, y), (x_test, y_test) = ((b["x"].double().numpy(), b["y"].double().numpy()) for b in (data.train, test))
    folds = KFold(10, shuffle=True, random_state=seed)
    if _is_logistic(data):
        fitted = LogisticRegressionCV(
            Cs=np.logspace(-4, 4, 40),
            cv=10,
            l1_ratios=(1.0 if penalty == "lasso" else 0.0,),
            scoring="neg_log_loss",
            solver="liblinear" if penalty == "lasso" else "newton-cholesky",
            intercept_scaling=100.0,  # liblinear penalises the intercept
            max_iter=1_000,
            random_state=seed,
            use_legacy_attributes=False,
        ).fit(x, y)
        mean = fitted.predict_proba(x_test)[:, 1]
        density = np.log(np.where(y_test == 1, mean, 1 - mean))
    else:
        if penalty == "lasso":
            fitted = Lasso(LassoCV(alphas=200, cv=folds, max_iter=20_000).fit(x, y).alpha_, max_iter=20_000).fit(x, y)
        else:
            fitted = Ridge(RidgeCV(np.logspace(-4, 4, 200)).fit(x, y).alpha_).fit(x, y)
        mean = fitted.predict(x_test)
        sigma = float(np.sqrt(np.mean((cross_val_predict(fitted, x, y, cv=folds) - y) ** 2)))
        density = -0.5 * ((y_test - mean) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    scores = {"log density": float(density.mean()), "rmse": float(np.sqrt(np.mean((mean - y_test) ** 2)))}
    return scores, np.ravel(fitted.coef_)


def _measure_sparse(seed: int, fast: bool) -> dict[str, float]:
    """Recover a sparse truth (5 of 80 features, 100 rows) by NUTS, against lasso and ridge.

    Returns:
        Squared error of the coefficients and test scores of each; m_eff; features whose sign is known, right and wrong.
    """
    data, beta = _simulated(seed)
    posterior = _sampled(data, seed, fast)
    table = coefficients(posterior).drop(index="intercept")
    known = table["sign"] > 0.975
    measured = {
        "coefficient error horseshoe": float(((table["mean"] - beta) ** 2).sum()),
        "m_eff": float(unshrunk(posterior, posterior.draws(1_000)).sum(-1).mean()),
        "relevant found": float((known & (beta != 0)).sum()),
        "irrelevant found": float((known & (beta == 0)).sum()),
    }
    measured |= {f"{key} horseshoe": value for key, value in _score(posterior).items()}
    target = data.target or Column(name="y")
    for penalty in ("lasso", "ridge"):
        scores, slope = _baseline(data, penalty, seed)
        slope = slope * target.scale / np.array([column.scale for column in data.columns])
        measured[f"coefficient error {penalty}"] = float(((slope - beta) ** 2).sum())
        measured |= {f"{key} {penalty}": value for key, value in scores.items()}
    return measured


def _measure_real(seed: int, fast: bool) -> dict[str, float]:
    """Score the held-out rows of three real data sets by NUTS, against lasso and ridge; ``fast``: one data set.

    Returns:
        Mean log predictive density of each on each data set; the seed is the sampler's and the folds', not the split's.
    """
    measured = {}
    for name in ("diabetes",) if fast else ("concrete", "diabetes", "breast_cancer"):
        data = zoo.datasets.load(name)
        measured[f"{name} horseshoe"] = _score(_sampled(data, seed, fast))["log density"]
        for penalty in ("lasso", "ridge"):
            measured[f"{name} {penalty}"] = _baseline(data, penalty, seed)[0]["log density"]
    return measured


def _measure_separation(seed: int, fast: bool) -> dict[str, float]:
    """Fit two separated classes with the slab and, practically, without it (``s = 10^4``); ``fast`` changes nothing.

    Returns:
        95% quantile of the separating coefficient, standardised, and divergences in 4,000 draws, of both.
    """
    data = _separated(seed)
    measured = {}
    for name, slab_scale in (("regularised", 2.0), ("plain", 1e4)):
        hyper = Hyper(slab_scale=slab_scale, num_relevant=1.0)
        posterior = zoo.fit(METHOD, data, hyper=hyper, engine="nuts", seed=seed, dtype="float64", target_accept=0.8)
        found = posterior.to_arviz()
        measured[f"coefficient {name}"] = float(found.posterior["beta"][..., 0].quantile(0.95))
        measured[f"divergences {name}"] = float(found.sample_stats["diverging"].sum())
    return measured


def _measure_variational(seed: int, fast: bool) -> dict[str, float]:
    """Compare both guides with NUTS; ``fast``: one data set and a short run.

    Returns:
        For each guide and data set, the geometric mean over coefficients of the ratio of standard deviations to those
        of NUTS, the mean absolute logarithm of that ratio, and the largest shift of a mean in standard deviations.
    """
    measured = {}
    for name in ("diabetes",) if fast else ("diabetes", "breast_cancer"):
        data = zoo.datasets.load(name)
        exact = coefficients(_sampled(data, seed, fast))
        for guide in ("mean_field", "low_rank"):
            hyper = Hyper(guide=guide)
            steps = 2_000 if fast else 20_000
            found = coefficients(zoo.fit(METHOD, data, hyper=hyper, engine="svi", seed=seed, steps=steps))
            ratio = np.log((found["sd"] / exact["sd"]).drop("intercept"))
            shift = ((found["mean"] - exact["mean"]) / exact["sd"]).drop("intercept")
            measured[f"{name} sd ratio {guide}"] = float(np.exp(ratio.mean()))
            measured[f"{name} sd error {guide}"] = float(ratio.abs().mean())
            measured[f"{name} shift {guide}"] = float(shift.abs().max())
    return measured


CLAIMS = (
    Claim(
        statement="On a sparse linear problem (5 of 80 features, 100 rows) the horseshoe estimates the coefficients "
        "better than lasso and ridge tuned by cross-validation, and predicts better.",
        published="experiments on synthetic and real data illustrate the benefit (no number for this comparison)",
        source="Piironen and Vehtari (2017), abstract",
        measure=_measure_sparse,
        acceptance=(
            Acceptance(key="coefficient error horseshoe", below="coefficient error lasso"),
            Acceptance(key="coefficient error horseshoe", below="coefficient error ridge"),
            Acceptance(key="log density horseshoe", above="log density lasso"),
            Acceptance(key="log density horseshoe", above="log density ridge"),
        ),
        budget=120,
        seeds=5,
    ),
    Claim(
        statement="On the same problem the posterior mean of the effective number of nonzeros is near the true 5 "
        "(2.5 to 10), and no irrelevant feature gets a sure sign.",
        published="m_eff measures how many coefficients are far from zero (no number for this comparison)",
        source="Piironen and Vehtari (2017), sec. 3.2",
        measure=_measure_sparse,
        acceptance=(
            Acceptance(key="m_eff", low=2.5, high=10.0),
            Acceptance(key="irrelevant found", high=0.5),
        ),
        budget=120,
        seeds=5,
    ),
    Claim(
        statement="On real tables the horseshoe predicts at least as well as lasso and ridge tuned by cross-validation "
        "(mean log density of held-out rows, within 0.01 nats).",
        published="experiments on synthetic and real data illustrate the benefit (no number for this comparison)",
        source="Piironen and Vehtari (2017), abstract",
        measure=_measure_real,
        acceptance=tuple(
            Acceptance(key=f"{name} horseshoe", above=f"{name} {penalty}", slack=0.01)
            for name in ("concrete", "diabetes", "breast_cancer")
            for penalty in ("lasso", "ridge")
        ),
        budget=180,
    ),
    Claim(
        statement="With separated classes the slab keeps the coefficient finite, where the plain horseshoe lets it "
        "run off (at least ten times larger) and diverges more.",
        published="the plain horseshoe does not regularise large coefficients, a problem for weakly identified ones, "
        "such as logistic coefficients under separation (no number)",
        source="Piironen and Vehtari (2017), abstract and sec. 2.3",
        measure=_measure_separation,
        acceptance=(
            Acceptance(key="coefficient regularised", high=20.0),
            Acceptance(key="coefficient plain", low=200.0),
            Acceptance(key="divergences regularised", below="divergences plain"),
        ),
        budget=60,
    ),
    Claim(
        statement="A mean-field guide is less faithful to NUTS than a low-rank one: its standard deviations of the "
        "coefficients are further off.",
        published="not in the paper, which samples with NUTS",
        source="measured here",
        measure=_measure_variational,
        acceptance=tuple(
            Acceptance(key=f"{name} sd error low_rank", below=f"{name} sd error mean_field")
            for name in ("diabetes", "breast_cancer")
        ),
        budget=180,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it, for a linear regression; a logistic one has no ``sigma``.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    return _sites(hyper, logistic=False)


METHOD = Method(
    name="horseshoe_regression",
    title="Regularised horseshoe regression, linear and logistic",
    paper="piironen2017sparsity",
    task="regression",
    other_tasks=("classification",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(rank=2),
    default_data="diabetes",
    build=build,
    engines=("nuts", "svi"),
    claims=CLAIMS,
    recipe=Recipe(steps=10_000, learning_rate=1e-2, schedule="cosine"),
    summary=summary,
    imputes=True,
    use_when="Few of tens to a few thousand columns are expected to matter, correlated ones too, and you want each "
    "effect in your own units with its uncertainty and the probability of its sign.",
    avoid_when="Most columns matter a little (set prior=gaussian, ridge regression). Effects are not linear in the "
    "columns that you give. There are more than two classes. A list of selected features is wanted rather than a "
    "posterior.",
    needs="A table with a number or two classes as target; text columns become indicators, missing numbers can be "
    "imputed (--missing keep). NUTS takes all rows in every step: beyond some ten thousand rows choose --engine svi, "
    "whose intervals are too narrow.",
)
