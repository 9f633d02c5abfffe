"""LSTM with Bayesian weights: sequences of 10 steps, 32 units, a number to predict, batch of 64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

ROWS, NUM, STEPS, INPUTS, UNITS = 64, 1_000, 10, 8, 32
SITES = {"w_in": (4 * UNITS, INPUTS), "w_state": (4 * UNITS, UNITS), "bias": (4 * UNITS,), "w_out": (UNITS,)}


def batch() -> dict[str, np.ndarray]:
    """Return simulated sequences, time first."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, ROWS, INPUTS)).astype(np.float32)
    return {"x": x, "y": x[..., 0].mean(0)}


def initial() -> dict[str, np.ndarray]:
    """Return means and standard deviations of all weights."""
    rng = np.random.default_rng(1)
    found = {}
    for site, shape in SITES.items():
        found[f"{site}_loc"] = (rng.normal(size=shape) / UNITS**0.5).astype(np.float32)
        found[f"{site}_scale"] = np.full(shape, 0.02, np.float32)
    return found


def _cell(h: Any, c: Any, x: Any, w: Any, sigmoid: Any, tanh: Any) -> tuple[Any, Any]:
    """Return the next state; ``x`` has been through its weights already."""
    gates = x + h @ w["w_state"].T
    i, f, g, o = (gates[:, k * UNITS : (k + 1) * UNITS] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def _torch_network(w: Any, x: Any) -> Any:
    import torch

    start = torch.zeros(1, x.shape[1], UNITS)
    weights = [w["w_in"], w["w_state"], w["bias"], torch.zeros_like(w["bias"])]
    _, h, _ = torch.lstm(x, (start, start), weights, True, 1, 0.0, True, False, False)
    return h[0] @ w["w_out"]


def _pair(start: Any, ppl: Any, dist: Any, constraints: Any, scale_of: Any, zeros: Any, network: Any) -> Any:
    def model(batch: Any) -> None:
        w = {s: ppl.sample(s, dist.Normal(zeros(shape), 1.0).to_event(len(shape))) for s, shape in SITES.items()}
        mean = network(w, batch["x"])
        with scale_of(scale=NUM / ROWS), ppl.plate("datum", ROWS):
            ppl.sample("y", dist.Normal(mean, 0.5), obs=batch["y"])

    def guide(batch: Any) -> None:
        for site, shape in SITES.items():
            loc = ppl.param(f"{site}_loc", start[f"{site}_loc"])
            scale = ppl.param(f"{site}_scale", start[f"{site}_scale"], constraint=constraints.softplus_positive)
            ppl.sample(site, dist.Normal(loc, scale).to_event(len(shape)))

    return model, guide


def pyro_pair(start: Any) -> Any:
    """Return the pair for Pyro and zoo."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.distributions import constraints

    return _pair(start, pyro, dist, constraints, pyro.poutine.scale, torch.zeros, _torch_network)


def numpyro_pair(start: Any) -> Any:
    """Return the pair for NumPyro; time is a scan."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def network(w: Any, x: Any) -> Any:
        zero = jnp.zeros((x.shape[1], UNITS))
        inputs = x @ w["w_in"].T + w["bias"]

        def step(state: Any, x: Any) -> Any:
            return _cell(state[0], state[1], x, w, jax.nn.sigmoid, jnp.tanh), None

        (h, _), _ = jax.lax.scan(step, (zero, zero), inputs)
        return h @ w["w_out"]

    return _pair(start, numpyro, dist, constraints, numpyro.handlers.scale, jnp.zeros, network)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch

    kl, w = 0.0, {}
    for site in SITES:
        loc, scale = p[f"{site}_loc"], p[f"{site}_scale"]
        noise = torch.randn_like(loc)
        w[site] = loc + scale * noise
        kl = kl + (0.5 * (w[site] * w[site] - noise * noise) - scale.log()).sum()
    error = (batch["y"] - _torch_network(w, batch["x"])) / 0.5
    constant = math.log(0.5) + 0.5 * math.log(2 * math.pi)
    return kl + (0.5 * (error * error).sum() + ROWS * constant) * (NUM / ROWS)


CASE = SviCase(
    title="LSTM with a normal mean field over its weights, 10 time steps, 32 units, batch of 64",
    batch=batch,
    initial=initial,
    positive=frozenset(n for n in initial() if n.endswith("_scale")),
    pyro=pyro_pair,
    numpyro=numpyro_pair,
    torch=torch_loss,
)
