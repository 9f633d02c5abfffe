"""Deep weight prior, convolutions of 8 and 16 filters: the zoo's own pair, and the same written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

ROWS, NUM = 128, 5_000
LATENT, WIDTH, PIXELS = 8, 32, 25
WEIGHTS = {"W_0": (8, 1, 5, 5), "W_1": (16, 8, 5, 5), "W_2": (256, 10)}
BIASES = {"b_0": (8,), "b_1": (16,), "b_2": (10,)}
FAN_IN = {"W_0": 25, "W_1": 200, "W_2": 256}
DECODER_FLOOR, ENCODER_FLOOR, PRIOR_SCALE = 0.3, 1e-2, 8.0


def batch() -> dict[str, np.ndarray]:
    """Return the first 128 bundled images and, for the version by hand, the frozen priors."""
    path = Path(__file__).resolve().parents[2] / "zoo/datasets/bundled/mnist.npz"
    with np.load(path) as stored:
        images, labels = stored["x_train"][:ROWS], stored["y_train"][:ROWS]
    x = images.reshape(ROWS, 1, 28, 28).astype(np.float32) / 255
    frozen = {f"{l}_{n}": v for l in (0, 1) for n, v in prior(l).items()}
    return {"x": x, "y": labels.astype(np.int64), "index": np.arange(ROWS)} | frozen


def prior(layer: int) -> dict[str, np.ndarray]:
    """Return a prior of kernels whose encoder and decoder are drawn at random."""
    rng = np.random.default_rng(layer)
    shapes = {
        "encoder_in": (PIXELS, WIDTH), "encoder_bias": (WIDTH,), "encoder_out": (WIDTH, 2 * LATENT),
        "encoder_out_bias": (2 * LATENT,), "decoder_in": (LATENT, WIDTH), "decoder_bias": (WIDTH,),
        "decoder_out": (WIDTH, PIXELS + 1), "decoder_out_bias": (PIXELS + 1,),
    }  # fmt: skip
    found = {n: (rng.normal(size=s) / s[0] ** 0.5).astype(np.float32) for n, s in shapes.items()}
    return found | {"size": np.asarray((2 / FAN_IN[f"W_{layer}"]) ** 0.5, np.float32)}


def initial() -> dict[str, np.ndarray]:
    """Return means and standard deviations of all weights and biases."""
    rng = np.random.default_rng(0)
    found = {}
    for site, shape in (WEIGHTS | BIASES).items():
        fan_in = FAN_IN.get(site, 100)
        found[f"{site}_loc"] = (rng.normal(size=shape) * (2 / fan_in) ** 0.5).astype(np.float32)
        found[f"{site}_scale"] = np.full(shape, 0.02 / fan_in**0.5, np.float32)
    return found


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    import pyro
    import torch
    from pyro.distributions import constraints

    from zoo.models.deep_weight_prior import Hyper, KernelPrior, build
    from zoo.types import Dataset

    own = [KernelPrior(**{n: torch.from_numpy(v) for n, v in prior(l).items()}) for l in (0, 1)]
    rows = {"x": torch.zeros(NUM, 1, 28, 28), "y": torch.zeros(NUM, dtype=torch.int64), "index": torch.arange(NUM)}
    extra = {"num_classes": 10, "image_shape": (1, 28, 28)}
    data = Dataset(name="simulated", task="classification", train=rows, extra=extra)
    pair = build(data, Hyper(temperature=1.0), prior=own)

    def guide(batch: Any) -> Any:
        for name, value in start.items():
            support = constraints.softplus_positive if name.endswith("_scale") else constraints.real
            pyro.param(name, value, constraint=support)
        assert pair.guide is not None
        return pair.guide(batch)

    return pair.model, guide


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch
    from torch.nn import functional as F

    cost, h = 0.0, batch["x"]
    for l, (site, shape) in enumerate(WEIGHTS.items()):
        mu, s, c, t = (p[f"{name}_{part}"] for name in (site, f"b_{l}") for part in ("loc", "scale"))
        cost = cost + (0.5 * (c * c + t * t - 1) - t.log()).sum()
        if len(shape) == 2:
            width = PRIOR_SCALE / FAN_IN[site] ** 0.5
            cost = cost + (0.5 * ((mu * mu + s * s) / width**2 - 1) - (s / width).log()).sum()
            mean, spread = h @ mu + c, ((h * h) @ (s * s) + t * t).sqrt()
            h = mean + spread * torch.randn_like(mean)
            continue
        own = {n.removeprefix(f"{l}_"): v for n, v in batch.items() if n.startswith(f"{l}_")}
        noise = torch.randn_like(mu)
        w = (mu + s * noise).reshape(-1, PIXELS) / own["size"]
        code = (w @ own["encoder_in"] + own["encoder_bias"]).relu() @ own["encoder_out"] + own["encoder_out_bias"]
        m, r = code[:, :LATENT], F.softplus(code[:, LATENT:]) + ENCODER_FLOOR
        z = m + r * torch.randn_like(r)
        out = (z @ own["decoder_in"] + own["decoder_bias"]).relu() @ own["decoder_out"] + own["decoder_out_bias"]
        mean, spread = out[:, :-1], F.softplus(out[:, -1:]) + DECODER_FLOOR
        cost = cost - (0.5 * noise.square() + s.log()).sum() + (0.5 * (m * m + r * r - 1) - r.log()).sum()
        cost = cost + (0.5 * ((w - mean) / spread) ** 2 + spread.log()).sum() + w.numel() * own["size"].log()
        mean = F.conv2d(h, mu, c)
        variance = F.conv2d(h * h, s * s, t * t)
        h = F.max_pool2d((mean + variance.sqrt() * torch.randn_like(mean)).relu(), 2)
        h = h.flatten(1) if l == 1 else h
    return cost + F.cross_entropy(h, batch["y"], reduction="sum") * (NUM / ROWS)


CASE = SviCase(
    title="Deep weight prior over convolutions of 8 and 16 filters, batch of 128",
    batch=batch,
    initial=initial,
    positive=frozenset(n for n in initial() if n.endswith("_scale")),
    pyro=pyro_pair,
    torch=torch_loss,
    estimator="mean_field",
    contenders=("zoo", "torch", "torch_compile"),
)
