"""Regularised horseshoe regression with a mean-field guide whose positive sites are log-normal or Gamma."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

ROWS, SIZE = 442, 30
TAU0 = 5 / (SIZE - 5) / ROWS**0.5
# Site -> its shape and the value that the guide starts around; all are positive but the coefficients.
SCALES: dict[str, tuple[tuple[int, ...], float]] = {
    "sigma": ((), 0.7),
    "tau": ((), 0.1),
    "c2": ((), 4.0),
    "lambda": ((SIZE,), 1.0),
}
_CONCENTRATION = 1_000.0


def batch() -> dict[str, np.ndarray]:
    """Return simulated rows; five features matter."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, SIZE))
    y = x[:, :5] @ np.array([0.5, -0.5, 0.3, 0.3, -0.2]) + 0.5 * rng.normal(size=ROWS)
    return {"x": x.astype(np.float32), "y": y.astype(np.float32)}


def initial(family: str) -> dict[str, np.ndarray]:
    """Return the guide's parameters."""
    found = {"z_loc": np.full(SIZE, 0.1, np.float32), "z_scale": np.full(SIZE, 0.02, np.float32)}
    for site, (shape, value) in SCALES.items():
        if family == "normal":
            found[f"{site}_loc"] = np.full(shape, math.log(value), np.float32)
            found[f"{site}_scale"] = np.full(shape, 0.03, np.float32)
        else:
            found[f"{site}_concentration"] = np.full(shape, _CONCENTRATION, np.float32)
            found[f"{site}_rate"] = np.full(shape, _CONCENTRATION / value, np.float32)
    return found


def case(family: str, title: str) -> SviCase:
    """Return the case of one family of guides.

    Args:
        family: ``normal`` or ``gamma``.
        title: One line.

    Returns:
        The case.
    """
    positive = frozenset(n for n in initial(family) if not n.endswith("_loc"))

    def pair(start: Any, ppl: Any, dist: Any, constraints: Any) -> Any:
        """Return model and guide; of these, Pyro and NumPyro have the same interface."""

        def param(name: str) -> Any:
            if name in positive:
                return ppl.param(name, start[name], constraint=constraints.softplus_positive)
            return ppl.param(name, start[name])

        def model(batch: Any) -> None:
            sigma = ppl.sample("sigma", dist.HalfNormal(1.0))
            tau = ppl.sample("tau", dist.HalfCauchy(TAU0))
            c2 = ppl.sample("c2", dist.InverseGamma(2.0, 8.0))
            with ppl.plate("feature", SIZE):
                lambda_ = ppl.sample("lambda", dist.HalfCauchy(1.0))
                z = ppl.sample("z", dist.Normal(0.0, 1.0))
            scale = tau * lambda_
            beta = z * scale * (c2 / (c2 + scale**2)) ** 0.5
            with ppl.plate("datum", ROWS):
                ppl.sample("y", dist.Normal(batch["x"] @ beta, sigma), obs=batch["y"])

        def positive_site(site: str) -> None:
            if family == "normal":
                ppl.sample(site, dist.LogNormal(param(f"{site}_loc"), param(f"{site}_scale")))
            else:
                ppl.sample(site, dist.Gamma(param(f"{site}_concentration"), param(f"{site}_rate")))

        def guide(batch: Any) -> None:
            for site in ("sigma", "tau", "c2"):
                positive_site(site)
            with ppl.plate("feature", SIZE):
                positive_site("lambda")
                ppl.sample("z", dist.Normal(param("z_loc"), param("z_scale")))

        return model, guide

    def pyro_pair(start: Any) -> Any:
        import pyro
        import pyro.distributions as dist
        from pyro.distributions import constraints

        return pair(start, pyro, dist, constraints)

    def numpyro_pair(start: Any) -> Any:
        import numpyro
        import numpyro.distributions as dist
        from numpyro.distributions import constraints

        return pair(start, numpyro, dist, constraints)

    def torch_loss(p: Any, batch: Any) -> Any:
        import torch

        noise = torch.randn_like(p["z_loc"])
        z = p["z_loc"] + p["z_scale"] * noise
        loss = (0.5 * (z * z - noise * noise) - p["z_scale"].log()).sum()
        values = {}
        for site, (shape, _) in SCALES.items():
            if family == "normal":
                loc, scale = p[f"{site}_loc"], p[f"{site}_scale"]
                noise = torch.randn_like(loc)
                log = loc + scale * noise
                values[site] = log.exp()
                constant = math.prod(shape) * 0.5 * math.log(2 * math.pi)
                loss = loss - (0.5 * noise * noise + scale.log() + log).sum() - constant
            else:
                a, b = p[f"{site}_concentration"], p[f"{site}_rate"]
                value = torch._standard_gamma(a) / b
                values[site] = value
                loss = loss + (a * b.log() + (a - 1) * value.log() - b * value - torch.lgamma(a)).sum()
        sigma, tau, c2, lambda_ = (values[site] for site in SCALES)
        loss = loss - (0.5 * math.log(2 / math.pi) - 0.5 * sigma**2)
        loss = loss - (math.log(2 / math.pi) + math.log(TAU0) - torch.log(TAU0**2 + tau**2))
        loss = loss - (math.log(2 / math.pi) - torch.log1p(lambda_**2)).sum()
        loss = loss - (2 * math.log(8.0) - math.lgamma(2.0) - 3 * c2.log() - 8.0 / c2)
        scale = tau * lambda_
        beta = z * scale * (c2 / (c2 + scale**2)) ** 0.5
        error = (batch["y"] - batch["x"] @ beta) / sigma
        return loss + 0.5 * (error * error).sum() + ROWS * (sigma.log() + 0.5 * math.log(2 * math.pi))

    return SviCase(
        title=title,
        batch=batch,
        initial=lambda: initial(family),
        positive=positive,
        pyro=pyro_pair,
        numpyro=numpyro_pair,
        torch=torch_loss,
    )
