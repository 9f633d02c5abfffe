"""Multiplicative flows, 64-100-100-10: the zoo's own pair, and the same written by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cases import SviCase
from benchmarks.cases._placed import placed, rows

SIZES = (64, 100, 100, 10)
NUM, ROWS = 5_000, 128
LAYERS = tuple(enumerate(pairwise(SIZES)))
STEPS, WIDTH = 2, 50
PARTS = ("inner", "inner_bias", "shift", "shift_bias", "gate", "gate_bias")


def batch() -> dict[str, np.ndarray]:
    """Return 128 rows of simulated data."""
    return rows(SIZES, ROWS)


def initial() -> dict[str, np.ndarray]:
    """Return the parameters of weights, noise, flows and auxiliary distributions."""
    rng = np.random.default_rng(1)

    def normal(*shape: int, spread: float = 0.1, centre: float = 0.0) -> np.ndarray:
        return (centre + spread * rng.normal(size=shape)).astype(np.float32)

    found: dict[str, np.ndarray] = {}
    for l, (a, b) in LAYERS:
        for site, shape in ((f"W_{l}", (a, b)), (f"b_{l}", (b,))):
            found |= {f"{site}_loc": normal(*shape), f"{site}_scale": np.full(shape, 0.05, np.float32)}
        for name in (f"z_{l}", f"z_{l}_reverse"):
            found |= {f"{name}_loc": normal(a, centre=1.0), f"{name}_scale": np.full(a, 0.2, np.float32)}
            for k in range(STEPS):
                found |= {
                    f"{name}_flow_{k}_inner": normal(a, WIDTH),
                    f"{name}_flow_{k}_inner_bias": normal(WIDTH),
                    f"{name}_flow_{k}_shift": normal(WIDTH, a),
                    f"{name}_flow_{k}_shift_bias": normal(a, centre=1.0),
                    f"{name}_flow_{k}_gate": normal(WIDTH, a),
                    f"{name}_flow_{k}_gate_bias": normal(a, centre=2.0),
                }
        found |= {f"z_{l}_reverse_{part}": normal(a) for part in ("weights", "moved", "stretched")}
    return found


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    from zoo.models.multiplicative_flows import Hyper, build

    hyper = Hyper(
        hidden=SIZES[1:-1], num_steps=STEPS, num_reverse_steps=STEPS, flow_width=WIDTH, prior_scale=8.0, temperature=1.0
    )
    return placed(build, hyper, SIZES, NUM, start)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative ELBO of one draw."""
    import torch
    from torch.nn import functional as F

    def chain(name: str, z: Any) -> tuple[Any, Any]:
        total: Any = 0.0
        for k in range(STEPS):
            inner, inner_bias, shift, shift_bias, gate, gate_bias = (p[f"{name}_flow_{k}_{part}"] for part in PARTS)
            mask = torch.arange(len(z)) % 2 == k
            hidden = (torch.where(mask, z, 0.0) @ inner + inner_bias).tanh()
            logit = hidden @ gate + gate_bias
            open_ = logit.sigmoid()
            z = torch.where(mask, z, open_ * z + (1 - open_) * (hidden @ shift + shift_bias))
            total = total + torch.where(mask, 0.0, F.logsigmoid(logit)).sum()
        return z, total

    h, cost = batch["x"], 0.0
    for l, (a, _) in LAYERS:
        mu, s, c, t = (p[f"{site}_{l}_{part}"] for site in ("W", "b") for part in ("loc", "scale"))
        noise = torch.randn_like(p[f"z_{l}_loc"])
        z, moved = chain(f"z_{l}", p[f"z_{l}_loc"] + p[f"z_{l}_scale"] * noise)
        cost = cost - (0.5 * noise * noise + p[f"z_{l}_scale"].log()).sum() - moved
        mean, variance, wide = z[:, None] * mu, s * s, 8.0 * a**-0.5
        reverse = {part: p[f"z_{l}_reverse_{part}"] for part in ("loc", "scale", "weights", "moved", "stretched")}
        weights = reverse["weights"]
        center, width = weights @ mean, ((weights * weights) @ variance).sqrt()
        active = (center + width * torch.randn_like(center)).tanh().mean()
        u, back = chain(f"z_{l}_reverse", z)
        scale = reverse["scale"] * (active * reverse["stretched"]).exp()
        u = (u - reverse["loc"] - active * reverse["moved"]) / scale
        cost = cost + (0.5 * u * u + scale.log()).sum() - back
        cost = cost + (0.5 * ((variance + mean * mean) / wide**2 - 1) - (s / wide).log()).sum()
        cost = cost + (0.5 * (c * c + t * t - 1) - t.log()).sum()
        center, width = h @ mean + c, ((h * h) @ variance + t * t).sqrt()
        h = center + width * torch.randn_like(center)
        h = h.relu() if l < 2 else h
    return cost + F.cross_entropy(h, batch["y"], reduction="sum") * (NUM / ROWS)


CASE = SviCase(
    title="Multiplicative flows 64-100-100-10, two masked steps a layer, batch of 128",
    batch=batch,
    initial=initial,
    positive=frozenset(n for n in initial() if n.endswith("_scale")),
    pyro=pyro_pair,
    torch=torch_loss,
    estimator="mean_field",
    contenders=("zoo", "torch", "torch_compile"),
)
