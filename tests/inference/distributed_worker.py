"""What every rank of tests/inference/test_distributed.py runs; rank 0 writes what it found as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints

import zoo
from zoo.errors import ZooError
from zoo.inference.distributed import Ranks, join, together
from zoo.inference.svi import Trainer
from zoo.types import Alternating, Dataset, Elbo, Loss, Pair, Recipe

N = 11


class Given(dist.Normal):
    """A normal distribution whose noise is given, in place of drawn."""

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, noise: torch.Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        return self.loc + self.scale * self.noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> Given:
        return Given(*(v.expand(batch_shape) for v in (self.loc, self.scale, self.noise)))


def data() -> Dataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    batch = {
        "x": x,
        "y": x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + 0.5,
        "local_noise": torch.randn(N, generator=generator, dtype=torch.float64),
        "noise": torch.randn(2, generator=generator, dtype=torch.float64),
        "index": torch.arange(N),
    }
    return Dataset(name="rows", task="", train=batch, whole=frozenset({"noise"}))


def model(batch: Any) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("datum", N, subsample=batch["index"]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(batch["x"] @ w + 0.1 * z, 0.5), obs=batch["y"])


def tempered(batch: Any) -> None:
    with poutine.scale(scale=0.7):
        model(batch)


def by_hand(batch: Any) -> None:
    """The same model without a plate that scales."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    rows = len(batch["y"])
    with poutine.scale(scale=N / rows), pyro.plate("datum", rows):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(batch["x"] @ w + 0.1 * z, 0.5), obs=batch["y"])


def guide(batch: Any) -> None:
    """One shared latent, and one of each row."""
    loc = pyro.param("w_loc", lambda: torch.zeros(2))
    scale = pyro.param("w_scale", lambda: 0.3 * torch.ones(2), constraint=constraints.positive)
    slope = pyro.param("slope", lambda: torch.tensor(0.2))
    pyro.sample("w", Given(loc, scale, batch["noise"]).to_event(1))
    with pyro.plate("datum", N, subsample=batch["index"]):
        pyro.sample("z", Given(slope * batch["y"], torch.tensor(0.4), batch["local_noise"]))


def drawn(batch: Any) -> None:
    """The same guide with noise of the fit's stream."""
    loc = pyro.param("w_loc", lambda: torch.randn(2))
    scale = pyro.param("w_scale", lambda: 0.3 * torch.ones(2), constraint=constraints.positive)
    slope = pyro.param("slope", lambda: torch.tensor(0.2))
    pyro.sample("w", dist.Normal(loc, scale).to_event(1))
    with pyro.plate("datum", N, subsample=batch["index"]):
        pyro.sample("z", dist.Normal(slope * batch["y"], 0.4))


def normalised() -> Pair:
    net = torch.nn.BatchNorm1d(2).double()

    def own(batch: Any) -> None:
        pyro.module("net", net)
        mean = net(batch["x"]).sum(-1)
        with pyro.plate("datum", N, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=batch["y"])

    return Pair(own, lambda batch: None)


def unscaled(batch: Any) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("datum", len(batch["y"])):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(batch["x"] @ w + 0.1 * z, 0.5), obs=batch["y"])


def gradients(ranks: Ranks) -> dict[str, list[float]]:
    """The gradient of the first step, by several ranks and by one process with the same noise."""
    found = {}
    kinds: dict[str, dict[str, Any]] = {
        "all rows": {},
        "mini-batch": {"batch_size": 7},
        "annealed": {"batch_size": 6, "kl_warmup": 0.5},
        "mean_field": {"estimator": "mean_field"},
        "graph": {"estimator": "graph", "batch_size": 5},
        "tempered": {"model": tempered, "batch_size": 7},
        "scaled by hand": {"model": by_hand, "batch_size": 7},
    }
    for label, options in kinds.items():
        estimator = options.pop("estimator", "trace")
        program = options.pop("model", model)
        # Of gradient descent with momentum, the first moment after one step is the gradient.
        recipe = Recipe(steps=4, optimizer="sgd", learning_rate=1e-3, **options)
        pair = Pair(program, guide, Elbo(estimator=estimator))
        for who in (ranks, None):
            trainer = Trainer(
                pair, data().train, whole=data().whole, recipe=recipe, seed=3, dtype=torch.float64, compile=False,
                ranks=who,
            )  # fmt: skip
            loss = trainer.run(1)
            both = [*trainer.state.moments[0][0], loss[0, 0]]
            found[f"{label}, {'one' if who is None else 'ranks'}"] = [float(value) for value in both]
    return found


def refusals(ranks: Ranks) -> dict[str, str]:
    """What each kind of pair that ranks cannot share is told."""
    own = Alternating((Loss(name="a", function=Elbo(), trains="w_"), Loss(name="b", function=Elbo(), trains="s")))
    ruled_out: dict[str, tuple[Pair, dict[str, Any]]] = {
        "alternating": (Pair(model, drawn, own), {}),
        "renyi": (Pair(model, drawn, Elbo(estimator="renyi", num_particles=2)), {}),
        "batch statistics": (normalised(), {}),
        "no scale": (Pair(unscaled, drawn), {}),
        "too few rows": (Pair(model, drawn), {"batch_size": 1}),
        "nuts": (Pair(model), {"engine": "nuts"}),
        "other options": (Pair(model, drawn), {"learning_rate": 0.1 if ranks.first else 0.2}),
        "one rank's folder": (Pair(model, drawn), {"checkpoint": "/dev/null/x", "steps": 3}),
    }
    found = {}
    for label, (pair, options) in ruled_out.items():
        options = {"steps": 2, "compile": False, "dtype": "float64", "distributed": ranks} | options
        try:
            zoo.fit(pair, data(), **options)
            found[label] = "nothing"
        except ZooError as error:
            found[label] = f"{type(error).__name__}: {error}"
    try:
        with together(ranks):
            if not ranks.first:
                raise ValueError("only here")
    except (ZooError, ValueError) as error:
        found["together"] = f"{type(error).__name__}: {error}"
    return found


def failing(batch: Any) -> None:
    """Not finite from the step on at which a parameter is negative, where the last row is: on the last rank."""
    falling = pyro.param("falling", lambda: torch.tensor(0.05))
    mean = falling.sqrt() if 10 in batch["index"] else falling
    with pyro.plate("datum", N, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(-9.0 + mean, 1.0), obs=-20 + 0 * batch["y"])


def options(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"steps": 40, "batch_size": 5, "seed": 2, "compile": False, "dtype": "float64"}
    return found | {"checkpoint": folder, "checkpoint_every": 10, "checkpoint_keep": 9}


def fits(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Whole fits: equal on all ranks, resumed bit for bit, stopped where a number is not finite."""
    pair, chosen = Pair(model, drawn), options(folder / "fit") | {"distributed": ranks}
    whole = zoo.fit(pair, data(), **chosen)
    with together(ranks):
        if ranks.first:
            for path in (*folder.glob("fit/checkpoint-*30.*"), *folder.glob("fit/checkpoint-*40.*")):
                path.unlink()
    told: list[int] = []
    resumed = zoo.fit(pair, data(), resume=True, progress=lambda e: told.append(e.done), **chosen)
    found: dict[str, Any] = {"ranks": whole.info["ranks"], "steps": len(whole.losses), "told": told}
    found["equal"] = torch.equal(whole.losses, resumed.losses)
    found["equal"] &= all(torch.equal(whole.params[k], resumed.params[k]) for k in whole.params)
    found["params"] = {k: v.tolist() for k, v in whole.params.items()}
    chosen |= {"checkpoint": folder / "alone"}  # which one process began
    more: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        last = zoo.fit(pair, data(), resume=True, progress=lambda e: more.append(e.done), **chosen)
    found["from one"] = {"warning": " ".join(str(w.message) for w in caught), "told": more, "steps": len(last.losses)}
    try:
        zoo.fit(
            Pair(failing, lambda batch: None), data(), steps=90, compile=False, dtype="float64", distributed=ranks,
            learning_rate=0.01, checkpoint=folder / "failing",
        )  # fmt: skip
    except ZooError as error:
        found["not finite"] = f"{type(error).__name__}: {error}"
    return found


def main() -> None:
    with join() as ranks:
        found = {"gradients": gradients(ranks), "refusals": refusals(ranks), "rank": ranks.rank}
        found["fits"] = fits(ranks, Path(sys.argv[1]).parent)
        texts = ranks.texts(json.dumps(found))
    if ranks.first:
        Path(sys.argv[1]).write_text(f"[{','.join(texts)}]", encoding="utf-8")


if __name__ == "__main__":
    main()
