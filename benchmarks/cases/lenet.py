"""LeNet-5 whose weights have a normal mean field, on MNIST, batch of 128."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

ROWS, NUM = 128, 60_000
SHAPES = {
    "conv0": (6, 1, 5, 5),
    "conv1": (16, 6, 5, 5),
    "dense0": (400, 120),
    "dense1": (120, 84),
    "dense2": (84, 10),
}
_BIAS = {name: shape[0] if len(shape) == 4 else shape[1] for name, shape in SHAPES.items()}
SITES: dict[str, tuple[int, ...]] = {
    **{f"{n}_w": s for n, s in SHAPES.items()},
    **{f"{n}_b": (b,) for n, b in _BIAS.items()},
}


def batch() -> dict[str, np.ndarray]:
    """Return the first 128 bundled images, padded to 32 by 32."""
    path = Path(__file__).resolve().parents[2] / "zoo/datasets/bundled/mnist.npz"
    with np.load(path) as stored:
        images, labels = stored["x_train"][:ROWS], stored["y_train"][:ROWS]
    x = np.pad(images[:, None].astype(np.float32) / 255, ((0, 0), (0, 0), (2, 2), (2, 2)))
    return {"x": x, "y": labels.astype(np.int64)}


def initial() -> dict[str, np.ndarray]:
    """Return means and standard deviations of all weights and biases."""
    rng = np.random.default_rng(0)
    found = {}
    for site, shape in SITES.items():
        fan = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        found[f"{site}_loc"] = (rng.normal(size=shape) / fan**0.5 * site.endswith("_w")).astype(np.float32)
        found[f"{site}_scale"] = np.full(shape, 0.02, np.float32)
    return found


def _network(w: Any, x: Any, relu: Any, conv: Any, pool: Any) -> Any:
    """Return logits; the framework's own operations are given."""
    for name in ("conv0", "conv1"):
        x = pool(relu(conv(x, w[f"{name}_w"]) + w[f"{name}_b"][:, None, None]))
    x = x.reshape(x.shape[0], -1)
    for name in ("dense0", "dense1", "dense2"):
        x = x @ w[f"{name}_w"] + w[f"{name}_b"]
        x = relu(x) if name != "dense2" else x
    return x


def _pair(start: Any, ppl: Any, dist: Any, constraints: Any, scale_of: Any, zeros: Any, operations: Any) -> Any:
    def model(batch: Any) -> None:
        w = {s: ppl.sample(s, dist.Normal(zeros(shape), 1.0).to_event(len(shape))) for s, shape in SITES.items()}
        logits = _network(w, batch["x"], *operations)
        with scale_of(scale=NUM / ROWS), ppl.plate("datum", ROWS):
            ppl.sample("y", dist.Categorical(logits=logits), obs=batch["y"])

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
    from torch.nn import functional as F

    operations = (torch.relu, F.conv2d, lambda x: F.max_pool2d(x, 2))
    return _pair(start, pyro, dist, constraints, pyro.poutine.scale, torch.zeros, operations)


def numpyro_pair(start: Any) -> Any:
    """Return the pair for NumPyro."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    def conv(x: Any, w: Any) -> Any:
        return jax.lax.conv(x, w, (1, 1), "VALID")

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    return _pair(start, numpyro, dist, constraints, numpyro.handlers.scale, jnp.zeros, (jax.nn.relu, conv, pool))


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch
    from torch.nn import functional as F

    kl, w = 0.0, {}
    for site in SITES:
        loc, scale = p[f"{site}_loc"], p[f"{site}_scale"]
        noise = torch.randn_like(loc)
        w[site] = loc + scale * noise
        kl = kl + (0.5 * (w[site] * w[site] - noise * noise) - scale.log()).sum()
    logits = _network(w, batch["x"], torch.relu, F.conv2d, lambda x: F.max_pool2d(x, 2))
    return kl + F.cross_entropy(logits, batch["y"], reduction="sum") * (NUM / ROWS)


CASE = SviCase(
    title="LeNet-5 with a normal mean field over its weights, batch of 128",
    batch=batch,
    initial=initial,
    positive=frozenset(n for n in initial() if n.endswith("_scale")),
    pyro=pyro_pair,
    numpyro=numpyro_pair,
    torch=torch_loss,
)
