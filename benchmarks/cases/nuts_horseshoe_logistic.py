"""Logistic regression under the regularised horseshoe, non-centred, on the Wisconsin breast cancer data."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import NutsCase

ROWS, SIZE = 569, 30
TAU0 = 5 / (SIZE - 5) * 2 / ROWS**0.5


def batch() -> dict[str, np.ndarray]:
    """Return standardised features and the class."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return {"x": (x - x.mean(0)) / x.std(0), "y": y.astype(float)}


def pyro_model(batch: Any) -> None:
    """Write the model in Pyro."""
    import pyro
    import pyro.distributions as dist

    beta0 = pyro.sample("beta0", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(TAU0))
    c2 = pyro.sample("c2", dist.InverseGamma(2.0, 8.0))
    with pyro.plate("feature", SIZE):
        lambda_ = pyro.sample("lambda", dist.HalfCauchy(1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    scale = tau * lambda_
    beta = z * scale * (c2 / (c2 + scale**2)).sqrt()
    with pyro.plate("datum", ROWS):
        pyro.sample("y", dist.Bernoulli(logits=beta0 + batch["x"] @ beta), obs=batch["y"])


def numpyro_model(batch: Any) -> None:
    """Write the model in NumPyro."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    beta0 = numpyro.sample("beta0", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(TAU0))
    c2 = numpyro.sample("c2", dist.InverseGamma(2.0, 8.0))
    with numpyro.plate("feature", SIZE):
        lambda_ = numpyro.sample("lambda", dist.HalfCauchy(1.0))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    scale = tau * lambda_
    beta = z * scale * jnp.sqrt(c2 / (c2 + scale**2))
    with numpyro.plate("datum", ROWS):
        numpyro.sample("y", dist.Bernoulli(logits=beta0 + batch["x"] @ beta), obs=batch["y"])


CASE = NutsCase(
    title="Regularised horseshoe logistic regression, breast cancer data, 569 rows, 30 features, non-centred",
    batch=batch,
    pyro=pyro_model,
    numpyro=numpyro_model,
    sites=("beta0", "tau", "c2", "lambda", "z"),
    positive=frozenset({"tau", "c2", "lambda"}),
)
