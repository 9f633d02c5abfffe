r"""Scaffold: Bayesian linear regression with known noise, to be replaced by your method.

A regression with :math:`D` standardised features, a standardised target and known noise. The coefficients are
independent a priori:

.. math::

    w_j &\sim \mathrm{N}(0, s^2), \qquad j = 1, \dots, D, \\
    y_i &\sim \mathrm{N}(x_i^\top w, \sigma^2).

The posterior is normal, with precision :math:`\Lambda = X^\top X / \sigma^2 + I / s^2` and mean
:math:`m = \Lambda^{-1} X^\top y / \sigma^2`. The guide is a product of normals,
:math:`q(w) = \prod_j \mathrm{N}(w_j; \mu_j, \sigma_j^2)`.

==================  ===========  ===========  =======================================
symbol              site         plate        meaning
==================  ===========  ===========  =======================================
:math:`w_j`         ``w``        ``feature``  coefficient of feature j
:math:`y_i`         ``y``        ``datum``    target, observed
:math:`x_i`         batch entry  ``datum``    features, ``(features,)``
==================  ===========  ===========  =======================================

Deviations. The book writes the prior and the noise as precisions, :math:`\alpha = s^{-2}` and
:math:`\beta = \sigma^{-2}`; here both are standard deviations.

.. code-block:: bibtex

    @book{bishop2006pattern,
      title     = {Pattern Recognition and Machine Learning},
      author    = {Bishop, Christopher M.},
      publisher = {Springer},
      year      = {2006}
    }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

import zoo
from zoo.errors import DataError
from zoo.types import Acceptance, Batch, Claim, Dataset, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["METHOD", "Hyper", "build", "coefficients", "exact_posterior", "summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters, in units of the standardised features and target.

    Args:
        w_scale: Prior standard deviation ``s`` of each coefficient.
        noise: Noise standard deviation ``sigma``.
    """

    w_scale: float = 1.0
    noise: float = 0.7


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with standardised ``x``, ``(rows, features)``, ``y``, ``(rows,)``, and ``index``.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch of rows.

    Raises:
        DataError: If the features are no table, or a hyper-parameter is not positive.
    """
    shape = tuple(data.train["x"].shape)
    if len(shape) != 2:
        raise DataError(f"data set '{data.name}' has x of shape {shape}; expected a table (rows, features)")
    for name in ("w_scale", "noise"):
        if not getattr(hyper, name) > 0:
            raise DataError(f"{name} is {getattr(hyper, name):g}; it must be positive")
    num_data, num_features = shape

    def model(batch: Batch) -> None:
        with pyro.plate("feature", num_features):
            w = pyro.sample("w", dist.Normal(0.0, hyper.w_scale))
        mean = w @ batch["x"].mT  # broadcasts over draws in front of w
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mean, hyper.noise), obs=batch.get("y"))

    def guide(batch: Batch) -> None:
        w_loc = pyro.param("w_loc", lambda: torch.zeros(num_features))
        w_scale = pyro.param("w_scale", lambda: torch.full((num_features,), 0.1), constraint=constraints.positive)
        with pyro.plate("feature", num_features):
            pyro.sample("w", dist.Normal(w_loc, w_scale))

    return Pair(model, guide)


# ---------------------------------------------------------------------------------------- quantities of interest
def coefficients(posterior: Posterior, num_draws: int = 4_000) -> pd.DataFrame:
    """Return what is known about each coefficient, in standardised units.

    Args:
        posterior: A fit of this method.
        num_draws: Posterior draws to summarise.

    Returns:
        One row per feature: ``mean``, ``sd`` and the 90% interval ``5%``, ``95%``.
    """
    w = posterior.draws(num_draws)["w"].double().cpu()
    low, high = torch.quantile(w, torch.tensor([0.05, 0.95], dtype=w.dtype), dim=0)
    columns = {"mean": w.mean(0), "sd": w.std(0), "5%": low, "95%": high}
    features = [column.name for column in posterior.data.columns] or range(w.shape[1])
    return pd.DataFrame({k: v.numpy() for k, v in columns.items()}, index=pd.Index(features, name="feature"))


def exact_posterior(data: Dataset, hyper: Hyper) -> tuple[Tensor, Tensor]:
    r"""Return the mean :math:`m` and the precision :math:`\Lambda` of the coefficients in closed form.

    Args:
        data: As for :func:`build`.
        hyper: Hyper-parameters.

    Returns:
        Mean, ``(features,)``, and precision, ``(features, features)``, both float64.

    References:
        Bishop (2006), eq. 3.53 and 3.54.
    """
    x, y = data.train["x"].double(), data.train["y"].double()
    precision = x.mT @ x / hyper.noise**2 + torch.eye(x.shape[1], dtype=x.dtype) / hyper.w_scale**2
    return torch.linalg.solve(precision, x.mT @ y / hyper.noise**2), precision


def summary(posterior: Posterior) -> dict[str, float | str]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        The largest coefficient and how sure its sign is.
    """
    table = coefficients(posterior)
    largest = str(table["mean"].abs().idxmax())
    sure = table.index[(table["5%"] > 0) | (table["95%"] < 0)]
    return {
        "largest coefficient": largest,
        "its mean": float(table.loc[largest, "mean"]),
        "coefficients whose 90% interval leaves out zero": f"{len(sure)} of {len(table)}",
    }


# -------------------------------------------------------------------------------------------------------- claims
def _measure_factorised(seed: int, fast: bool) -> dict[str, float]:
    """Compare the fitted guide with the exact posterior on diabetes data; ``fast`` changes nothing.

    Returns:
        Largest distance of a mean in exact standard deviations; largest deviation of a standard deviation from that of
        the exact conditional, relatively; mean ratio of a standard deviation to that of the exact marginal.
    """
    data = zoo.datasets.load("diabetes")
    posterior = zoo.fit(METHOD, data, engine="svi", seed=seed)
    mean, precision = exact_posterior(data, Hyper())
    marginal, conditional = torch.linalg.inv(precision).diagonal().sqrt(), precision.diagonal().rsqrt()
    loc, scale = posterior.params["w_loc"].double(), posterior.params["w_scale"].double()
    return {
        "distance of means": float(((loc - mean) / marginal).abs().max()),
        "sd / conditional sd - 1": float((scale / conditional - 1).abs().max()),
        "sd / marginal sd": float((scale / marginal).mean()),
    }


CLAIMS = (
    Claim(
        statement="A factorised normal has the exact means, but the standard deviations of the conditionals, which are "
        "smaller than those of the marginals.",
        published="means exact, precisions the diagonal of the exact precision (no number)",
        source="Bishop (2006), sec. 10.1.2, eq. 10.12 to 10.15",
        measure=_measure_factorised,
        acceptance=(
            Acceptance(key="distance of means", high=0.1),
            Acceptance(key="sd / conditional sd - 1", high=0.05),
            Acceptance(key="sd / marginal sd", high=0.9),
        ),
        budget=20,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    return {"w": ("feature",)}


METHOD = Method(
    name="_template",
    title="Scaffold: Bayesian linear regression with known noise",
    paper="bishop2006pattern",
    task="regression",
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(),
    default_data="diabetes",
    build=build,
    engines=("svi", "nuts"),
    claims=CLAIMS,
    recipe=Recipe(steps=10_000, learning_rate=1e-2, schedule="cosine"),
    summary=summary,
    use_when="Scaffold: for which data and questions your method is a good choice, in full sentences.",
    avoid_when="Scaffold: for which data and questions it is not, and what is better there.",
    needs="Scaffold: what the data must hold: here a table with a number as target, and known noise.",
)
