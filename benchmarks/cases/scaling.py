"""Linear regression with a normal mean field, whose size grows along one axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import SviCase

SIZES = {
    "rows": (1_000, 10_000, 100_000),
    "latents": (100, 1_000, 10_000),
    "batch": (32, 256, 2_048),
    "particles": (1, 4, 16),
}
ABOUT = {
    "rows": "rows, all of them in every step, 100 coefficients",
    "latents": "coefficients, batches of 128",
    "batch": "rows of a batch of 10,000 rows, 100 coefficients",
    "particles": "draws of the guide per step, 100 coefficients, batches of 128",
}
CONTENDERS = ("zoo", "pyro_fast", "numpyro")


def case(axis: str, size: int) -> SviCase:
    """Return one point of a sweep.

    Args:
        axis: What grows.
        size: How large it is.

    Returns:
        The case.
    """
    dim = size if axis == "latents" else 100
    rows = size if axis in ("rows", "batch") else 128
    num = size if axis == "rows" else 10_000

    def batch() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(rows, dim)).astype(np.float32)
        return {"x": x, "y": (x[:, 0] + rng.normal(size=rows)).astype(np.float32)}

    def initial() -> dict[str, np.ndarray]:
        return {"loc": np.full(dim, 0.01, np.float32), "scale": np.full(dim, 0.01, np.float32)}

    def pair(start: Any, ppl: Any, dist: Any, constraints: Any, zeros: Any, scale_of: Any) -> Any:
        def model(batch: Any) -> None:
            w = ppl.sample("w", dist.Normal(zeros(dim), 1.0).to_event(1))
            with scale_of(scale=num / rows), ppl.plate("datum", rows):
                ppl.sample("y", dist.Normal(batch["x"] @ w, 1.0), obs=batch["y"])

        def guide(batch: Any) -> None:
            loc = ppl.param("loc", start["loc"])
            scale = ppl.param("scale", start["scale"], constraint=constraints.softplus_positive)
            ppl.sample("w", dist.Normal(loc, scale).to_event(1))

        return model, guide

    def pyro_pair(start: Any) -> Any:
        import pyro
        import pyro.distributions as dist
        import torch
        from pyro.distributions import constraints

        return pair(start, pyro, dist, constraints, torch.zeros, pyro.poutine.scale)

    def numpyro_pair(start: Any) -> Any:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro.distributions import constraints

        return pair(start, numpyro, dist, constraints, jnp.zeros, numpyro.handlers.scale)

    return SviCase(
        title=f"Linear regression, {size:,} {ABOUT[axis]}",
        batch=batch,
        initial=initial,
        positive=frozenset({"scale"}),
        pyro=pyro_pair,
        numpyro=numpyro_pair,
        particles=size if axis == "particles" else 1,
        contenders=CONTENDERS,
    )
