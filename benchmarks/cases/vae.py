"""Variational autoencoder 784-400-50 on binarised MNIST, batch of 128: the zoo's own pair, and the same by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

PIXELS, HIDDEN, LATENT, ROWS = 784, 400, 50, 128
_SHAPES = {
    "encoder_0": (PIXELS, HIDDEN),
    "encoder_1": (HIDDEN, 2 * LATENT),
    "decoder_0": (LATENT, HIDDEN),
    "decoder_1": (HIDDEN, PIXELS),
}
_LEAST = 1e-4  # smallest standard deviation of a latent


def batch() -> dict[str, np.ndarray]:
    """Return the first 128 bundled images."""
    path = Path(__file__).resolve().parents[2] / "zoo/datasets/bundled/mnist.npz"
    with np.load(path) as stored:
        images = stored["x_train"][:ROWS].reshape(ROWS, PIXELS)
    return {"x": (images > 127).astype(np.float32), "index": np.arange(ROWS)}


def initial() -> dict[str, np.ndarray]:
    """Return weights and biases."""
    rng = np.random.default_rng(0)
    found = {}
    for name, (a, b) in _SHAPES.items():
        found[f"{name}_weight"] = (rng.normal(size=(a, b)) / a**0.5).astype(np.float32)
        found[f"{name}_bias"] = np.zeros(b, np.float32)
    return found


def _perceptron(p: Any, name: str, x: Any, relu: Any) -> Any:
    h = relu(x @ p[f"{name}_0_weight"] + p[f"{name}_0_bias"])
    return h @ p[f"{name}_1_weight"] + p[f"{name}_1_bias"]


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    import pyro
    import torch

    from zoo.models.vae import Hyper, build
    from zoo.types import Dataset

    rows = {"x": torch.zeros(ROWS, PIXELS), "index": torch.arange(ROWS)}
    data = Dataset(name="mnist", task="density", train=rows)
    pair = build(data, Hyper(num_latent=LATENT, hidden=(HIDDEN,), likelihood="bernoulli"))

    def guide(batch: Any) -> Any:
        for name, value in start.items():
            pyro.param(name, value)
        return pair.guide(batch)  # type: ignore[misc]

    return pair._replace(guide=guide)


def numpyro_pair(start: Any) -> Any:
    """Return the pair for NumPyro."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def params(name: str) -> dict[str, Any]:
        return {n: numpyro.param(n, v) for n, v in start.items() if n.startswith(name)}

    def model(batch: Any) -> None:
        p = params("decoder")
        with numpyro.plate("datum", ROWS):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((ROWS, LATENT)), 1.0).to_event(1))
            logits = _perceptron(p, "decoder", z, jax.nn.relu)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch["x"])

    def guide(batch: Any) -> None:
        loc, raw = jnp.split(_perceptron(params("encoder"), "encoder", batch["x"], jax.nn.relu), 2, -1)
        with numpyro.plate("datum", ROWS):
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + _LEAST).to_event(1))

    return model, guide


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch
    from torch.nn import functional as F

    loc, raw = _perceptron(p, "encoder", batch["x"], torch.relu).split(LATENT, -1)
    scale = F.softplus(raw) + _LEAST
    noise = torch.randn_like(loc)
    z = loc + scale * noise
    logits = _perceptron(p, "decoder", z, torch.relu)
    kl = (0.5 * (z * z - noise * noise) - scale.log()).sum()
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
