"""Variational autoencoder 784-400-50 on binarised MNIST, batch of 128."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

PIXELS, HIDDEN, LATENT, ROWS = 784, 400, 50, 128
_SHAPES = {
    "enc": (PIXELS, HIDDEN),
    "loc": (HIDDEN, LATENT),
    "log_scale": (HIDDEN, LATENT),
    "dec": (LATENT, HIDDEN),
    "out": (HIDDEN, PIXELS),
}


def batch() -> dict[str, np.ndarray]:
    """Return the first 128 bundled images."""
    path = Path(__file__).resolve().parents[2] / "zoo/datasets/bundled/mnist.npz"
    with np.load(path) as stored:
        images = stored["x_train"][:ROWS].reshape(ROWS, PIXELS)
    return {"x": (images > 127).astype(np.float32)}


def initial() -> dict[str, np.ndarray]:
    """Return weights and biases."""
    rng = np.random.default_rng(0)
    found = {}
    for name, (a, b) in _SHAPES.items():
        found[f"{name}_w"] = (rng.normal(size=(a, b)) / a**0.5).astype(np.float32)
        found[f"{name}_b"] = np.zeros(b, np.float32)
    return found


def _layer(p: Any, name: str, x: Any) -> Any:
    return x @ p[f"{name}_w"] + p[f"{name}_b"]


def _pair(start: Any, ppl: Any, dist: Any, relu: Any, exp: Any, zeros: Any) -> Any:
    def params(*names: str) -> dict[str, Any]:
        return {f"{n}_{k}": ppl.param(f"{n}_{k}", start[f"{n}_{k}"]) for n in names for k in "wb"}

    def model(batch: Any) -> None:
        p = params("dec", "out")
        with ppl.plate("datum", ROWS):
            z = ppl.sample("z", dist.Normal(zeros((ROWS, LATENT)), 1.0).to_event(1))
            logits = _layer(p, "out", relu(_layer(p, "dec", z)))
            ppl.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch["x"])

    def guide(batch: Any) -> None:
        p = params("enc", "loc", "log_scale")
        h = relu(_layer(p, "enc", batch["x"]))
        with ppl.plate("datum", ROWS):
            ppl.sample("z", dist.Normal(_layer(p, "loc", h), exp(_layer(p, "log_scale", h))).to_event(1))

    return model, guide


def pyro_pair(start: Any) -> Any:
    """Return the pair for Pyro and zoo."""
    import pyro
    import pyro.distributions as dist
    import torch

    return _pair(start, pyro, dist, torch.relu, torch.exp, torch.zeros)


def numpyro_pair(start: Any) -> Any:
    """Return the pair for NumPyro."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    return _pair(start, numpyro, dist, jax.nn.relu, jnp.exp, jnp.zeros)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch
    from torch.nn import functional as F

    h = _layer(p, "enc", batch["x"]).relu()
    loc, log_scale = _layer(p, "loc", h), _layer(p, "log_scale", h)
    noise = torch.randn_like(loc)
    z = loc + log_scale.exp() * noise
    logits = _layer(p, "out", _layer(p, "dec", z).relu())
    kl = (0.5 * (z * z - noise * noise) - log_scale).sum()
    return kl + F.binary_cross_entropy_with_logits(logits, batch["x"], reduction="sum")


CASE = SviCase(
    title="Variational autoencoder 784-400-50, batch of 128",
    batch=batch,
    initial=initial,
    positive=frozenset(),
    pyro=pyro_pair,
    numpyro=numpyro_pair,
    torch=torch_loss,
)
