"""Variational fair autoencoder 40-64-6 with 500 random features, batch of 256: the zoo's own pair, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.cases import SviCase

COLUMNS, HIDDEN, LATENT, CLASSES, GROUPS, FEATURES = 40, 64, 6, 2, 2, 500
NUM, ROWS = 27_000, 256
ALPHA, BETA = 30.0, 10_000.0
_SHAPES = {
    "q_z1_0": (COLUMNS + GROUPS, HIDDEN),
    "q_z1_1": (HIDDEN, 2 * LATENT),
    "q_z2_0": (LATENT + CLASSES, HIDDEN),
    "q_z2_1": (HIDDEN, 2 * LATENT),
    "p_z1_0": (LATENT + CLASSES, HIDDEN),
    "p_z1_1": (HIDDEN, 2 * LATENT),
    "p_x_0": (LATENT + GROUPS, HIDDEN),
    "p_x_1": (HIDDEN, COLUMNS),
    "q_y_0": (LATENT, CLASSES),
}


def batch() -> dict[str, np.ndarray]:
    """Return 256 rows of simulated data."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(ROWS, COLUMNS)).astype(np.float32),
        "y": rng.integers(0, CLASSES, ROWS),
        "s": rng.integers(0, GROUPS, ROWS),
        "index": np.arange(ROWS),
    }


def initial() -> dict[str, np.ndarray]:
    """Return weights, biases and the widths of the columns."""
    rng = np.random.default_rng(1)
    found = {"x_scale": np.ones(COLUMNS, np.float32)}
    for name, (a, b) in _SHAPES.items():
        found[f"{name}_weight"] = (rng.normal(size=(a, b)) / a**0.5).astype(np.float32)
        found[f"{name}_bias"] = np.zeros(b, np.float32)
    return found


def pyro_pair(start: Any) -> Any:
    """Return the pair, its parameters starting as asked."""
    import pyro
    import torch
    from pyro.distributions import constraints

    from zoo.models.variational_fair_autoencoder import Hyper, build
    from zoo.types import Dataset

    codes = torch.arange(NUM) % 2
    rows = {"x": torch.zeros(NUM, COLUMNS), "y": codes, "s": codes, "index": torch.arange(NUM)}
    extra = {"num_classes": CLASSES, "num_groups": GROUPS}
    data = Dataset(name="simulated", task="fair_representation", train=rows, extra=extra)
    hyper = Hyper(
        num_z1=LATENT, num_z2=LATENT, hidden=(HIDDEN,), alpha=ALPHA, beta=BETA, gamma=3.0, num_features=FEATURES
    )
    pair = build(data, hyper)

    def guide(batch: Any) -> Any:
        for name, value in start.items():
            support = constraints.softplus_positive if name.endswith("_scale") else constraints.real
            pyro.param(name, value, constraint=support)
        return pair.guide(batch)  # type: ignore[misc]

    return pair._replace(guide=guide)


def torch_loss(p: Any, batch: Any) -> Any:
    """Return the negative objective of one draw."""
    import torch
    from torch.nn import functional as F

    def net(name: str, *inputs: Any) -> Any:
        h = (torch.cat(inputs, -1) @ p[f"{name}_0_weight"] + p[f"{name}_0_bias"]).relu()
        return h @ p[f"{name}_1_weight"] + p[f"{name}_1_bias"]

    def normal(name: str, *inputs: Any, least: float) -> Any:
        loc, raw = net(name, *inputs).chunk(2, -1)
        return loc, F.softplus(raw) + least

    def drawn(loc: Any, scale: Any) -> tuple[Any, Any]:
        noise = torch.randn_like(loc)
        return loc + scale * noise, -(0.5 * noise * noise + scale.log()).sum()

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(LATENT, FEATURES, generator=generator)
    phases = 2 * math.pi * torch.rand(FEATURES, generator=generator)
    x, y, s = batch["x"], batch["y"], batch["s"]
    kind, group = (torch.stack([code == 0, code == 1], -1).to(x) for code in (y, s))
    z1, log_q1 = drawn(*normal("q_z1", x, group, least=1e-4))
    z2, log_q2 = drawn(*normal("q_z2", z1, kind, least=1e-4))
    loc, scale = normal("p_z1", z2, kind, least=0.1 + 1e-4)
    log_p = -(0.5 * ((z1 - loc) / scale) ** 2 + scale.log()).sum() - 0.5 * (z2 * z2).sum()
    width = p["x_scale"]
    log_x = -(0.5 * ((x - net("p_x", z1, group)) / width) ** 2 + width.log()).sum()
    log_x = log_x - 0.5 * math.log(2 * math.pi) * x.numel()
    log_y = -F.cross_entropy(z1 @ p["q_y_0_weight"] + p["q_y_0_bias"], y, reduction="sum")
    psi = math.sqrt(2 / FEATURES) * (math.sqrt(2 / 3.0) * z1 @ directions + phases).cos()
    share = group[:, 0]
    gap = share @ psi / share.sum() - (1 - share) @ psi / (1 - share).sum()
    bound = log_p + log_x - log_q1 - log_q2 + ALPHA * log_y
    return -bound * (NUM / ROWS) + BETA * NUM * gap.square().sum()


CASE = SviCase(
    title="Variational fair autoencoder 40-64-6, 500 random features, batch of 256",
    batch=batch,
    initial=initial,
    positive=frozenset({"x_scale"}),
    pyro=pyro_pair,
    torch=torch_loss,
    contenders=("zoo", "torch", "torch_compile"),
)
