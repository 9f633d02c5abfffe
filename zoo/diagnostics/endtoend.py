"""What the three answers are worth, from the data to the word: fits that are right, and fits with one known fault.

Every right fit is of data simulated from its own model, with parameters drawn from its prior, and goes through the
whole of :func:`zoo.diagnostics.diagnose` with default settings. One compiled program serves all data sets of a kind.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.diagnostics.answers import Answer
from zoo.diagnostics.diagnosis import diagnose
from zoo.inference.posterior import Posterior
from zoo.inference.sites import is_plate
from zoo.types import Batch, Dataset, Pair, Recipe

__all__ = ["ACCEPTED", "FAULTS", "RIGHT", "Kind", "Tally", "one_more", "tallies"]

ACCEPTED = 0.9
"""Share of right fits of which each answer must be a good one, and of faulty fits that must be caught."""

_ROWS = 120
_TEST = 120
_GROUPS = 10
_DOUBLE = torch.float64
Model = Callable[[Batch], Any]


# --------------------------------------------------------------------------------------------------------- models
def _linear(batch: Batch) -> None:
    intercept = pyro.sample("intercept", dist.Normal(torch.zeros(()), 1.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(()), 0.5))
    with pyro.plate("datum", _ROWS, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(intercept + batch["x"] @ beta, sigma), obs=batch.get("y"))


def _logistic(batch: Batch) -> None:
    intercept = pyro.sample("intercept", dist.Normal(torch.zeros(()), 1.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("datum", _ROWS, subsample=batch["index"]):
        pyro.sample("y", dist.Bernoulli(logits=intercept + batch["x"] @ beta), obs=batch.get("y"))


def _counts(batch: Batch) -> None:
    intercept = pyro.sample("intercept", dist.Normal(torch.ones(()), 0.5))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 0.3).to_event(1))
    with pyro.plate("datum", _ROWS, subsample=batch["index"]):
        pyro.sample("y", dist.Poisson((intercept + batch["x"] @ beta).exp()), obs=batch.get("y"))


def _hierarchical(batch: Batch) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    tau = pyro.sample("tau", dist.LogNormal(torch.zeros(()), 0.5))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(()), 1.0))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(()), 0.5))
    with pyro.plate("group", _GROUPS):
        raw = pyro.sample("raw", dist.Normal(torch.zeros(()), 1.0))
    alpha = mu + tau * raw
    with pyro.plate("datum", _ROWS, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(alpha[batch["group"]] + beta * batch["x"][:, 0], sigma), obs=batch.get("y"))


def _centred(batch: Batch) -> None:
    """Groups whose spread the data hardly tell, centred: a funnel."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 5.0))
    log_tau = pyro.sample("log_tau", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("group", _GROUPS):
        alpha = pyro.sample("alpha", dist.Normal(mu, log_tau.exp()))
    with pyro.plate("datum", _ROWS, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(alpha[batch["group"]], 20.0), obs=batch.get("y"))


def _network(batch: Batch) -> None:
    _of_a_network(batch, pyro.sample("sigma", dist.LogNormal(torch.tensor(-1.0), 0.5)))


def _sure_network(batch: Batch) -> None:
    """The same, sure of a noise that is a third of the right one."""
    _of_a_network(batch, batch["stated"])


def _of_a_network(batch: Batch, sigma: Tensor) -> None:
    first = pyro.sample("W_0", dist.Normal(torch.zeros(4, 10), 1.0).to_event(2))
    shift = pyro.sample("b_0", dist.Normal(torch.zeros(10), 1.0).to_event(1))
    second = pyro.sample("W_1", dist.Normal(torch.zeros(10), 10**-0.5).to_event(1))
    hidden = (batch["x"] @ first + shift).tanh()
    with pyro.plate("datum", _ROWS, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(hidden @ second, sigma), obs=batch.get("y"))


# ----------------------------------------------------------------------------------------------------------- data
def _data(
    model: Model,
    seed: int,
    *,
    correlation: float = 0.0,
    change: Callable[..., Tensor] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Dataset:
    """Simulate training and test rows of one truth, drawn from the model's prior.

    Args:
        model: What they are simulated from.
        seed: Of features, truth and data.
        correlation: Of the first two features.
        fixed: Latents whose true value is given.
        change: ``change(batch, y, mean, generator)`` -> data of another kind than the model's.

    Returns:
        The data set, in double precision.
    """
    from zoo.inference.program import pyro_world, seeded, stream

    known = {n: torch.tensor(v, dtype=_DOUBLE) for n, v in (fixed or {}).items()}
    at = torch.Generator().manual_seed(seed)
    x = torch.randn(_ROWS + _TEST, 4, generator=at, dtype=_DOUBLE)
    x[:, 1] = correlation * x[:, 0] + math.sqrt(1 - correlation**2) * x[:, 1]
    group = torch.arange(_ROWS + _TEST) % _GROUPS
    parts = []
    with pyro_world(dtype=_DOUBLE), stream(seeded(seed + 1_000_003)):
        truth: Mapping[str, Tensor] | None = None
        for rows in (slice(_ROWS), slice(_ROWS, None)):
            batch = {"index": torch.arange(_ROWS), "x": x[rows], "group": group[rows]}
            batch["stated"] = torch.full((), math.exp(-1.0) / 3, dtype=_DOUBLE)
            given = pyro.condition(model, data=dict(truth) if truth is not None else known)
            nodes = pyro.poutine.trace(given).get_trace(batch).nodes
            if truth is None:
                truth = {
                    n: node["value"]
                    for n, node in nodes.items()
                    if node["type"] == "sample" and n != "y" and not is_plate(node)
                }
            y = nodes["y"]["value"]
            if change is not None:
                y = change(batch, y, nodes["y"]["fn"], at)
            parts.append({**batch, "y": y})
    return Dataset(name="simulated", task="none", train=parts[0], test=parts[1], whole=frozenset({"stated"}))


def _heavy(batch: Batch, y: Tensor, fn: Any, at: torch.Generator) -> Tensor:
    """Noise of a Student distribution with two degrees of freedom, of the stated scale, by its quantile function."""
    u = torch.rand(y.shape, generator=at, dtype=y.dtype)
    return torch.as_tensor(fn.mean + fn.stddev * (2 * u - 1) / (2 * u * (1 - u)).sqrt())


def _unequal(batch: Batch, y: Tensor, fn: Any, at: torch.Generator) -> Tensor:
    """Noise that grows exponentially with a feature."""
    scale = fn.stddev * batch["x"][:, 0].exp()
    return torch.as_tensor(fn.mean + scale * torch.randn(y.shape, generator=at, dtype=y.dtype))


def _dispersed(batch: Batch, y: Tensor, fn: Any, at: torch.Generator) -> Tensor:
    """Counts whose rate has a Gamma factor of coefficient of variation one."""
    factor = -torch.rand(y.shape, generator=at, dtype=y.dtype).log()
    return torch.poisson(fn.mean * factor, generator=at)


# ----------------------------------------------------------------------------------------------------------- fits
@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Fits of one kind.

    Args:
        name: What they are.
        make: ``make(seed)`` -> a fit of other data.
        answers: Answers in which a fault must show; empty for right fits.
        words: The good word of an answer, where it is another than ``usable``.
    """

    name: str
    make: Callable[[int], Posterior]
    answers: tuple[str, ...] = ()
    words: tuple[tuple[str, str], ...] = ()

    def good(self, answer: Answer) -> bool:
        """Return whether an answer is the good one.

        Args:
            answer: Of a fit of this kind.

        Returns:
            Whether it is.
        """
        return answer.use == dict(self.words).get(answer.name, "usable")


def _nuts(model: Model, data: Dataset, seed: int) -> Posterior:
    from zoo.inference.runner import fit

    return fit(Pair(model), data, engine="nuts", seed=seed)


@cache
def _trainer(model: Model, guide: str, steps: int, rate: float) -> Any:
    """Return a compiled trainer of a guide; one serves all data sets."""
    from pyro.infer import autoguide

    from zoo.inference.svi import Trainer

    pair = Pair(model, getattr(autoguide, guide)(model))
    recipe = Recipe(steps=steps, learning_rate=rate, schedule="cosine", batch_size=None)
    data = _data(model if model is not _sure_network else _network, 0)
    return Trainer(pair, data.train, whole=data.whole, recipe=recipe, seed=0, dtype=_DOUBLE, compile=True)


def _svi(
    model: Model, data: Dataset, seed: int, *, guide: str = "AutoMultivariateNormal", steps: int = 6_000,
    rate: float = 0.02, stop: int | None = None,
) -> Posterior:  # fmt: skip
    trainer = _trainer(model, guide, steps, rate)
    trainer.restart(data.train, seed=seed)
    taken = stop or steps
    losses = torch.cat([trainer.run(n) for n in [1_000] * (taken // 1_000) + [taken % 1_000] if n])
    return Posterior(
        pair=trainer.pair,
        data=data,
        engine="svi",
        name="simulated",
        layout=trainer.layout,
        values=trainer.values,
        buffers=[b.clone() for b in trainer.state.buffers],
        history={"elbo": losses[:, 0]},
        info={"dtype": "float64", "steps": taken, "recipe": {"steps": taken, "learning_rate": rate, "batch_size": 0}},
    )


def _stuck(seed: int) -> Posterior:
    """Four chains of which one never left its start."""
    fit = _nuts(_linear, _data(_linear, seed), seed)
    assert fit.chains is not None
    chains = {n: v.clone() for n, v in fit.chains.items()}
    for value in chains.values():
        value[0] = value[0, :1]
    fit.chains = chains
    return fit


_NETWORK = (("parameters", "not meant to be read"),)

RIGHT = (
    Kind(name="linear regression, NUTS", make=lambda s: _nuts(_linear, _data(_linear, s), s)),
    Kind(name="linear regression, full-rank guide", make=lambda s: _svi(_linear, _data(_linear, s), s)),
    Kind(name="logistic regression, NUTS", make=lambda s: _nuts(_logistic, _data(_logistic, s), s)),
    Kind(name="logistic regression, full-rank guide", make=lambda s: _svi(_logistic, _data(_logistic, s), s)),
    Kind(name="regression of counts, NUTS", make=lambda s: _nuts(_counts, _data(_counts, s), s)),
    Kind(name="regression of counts, full-rank guide", make=lambda s: _svi(_counts, _data(_counts, s), s)),
    Kind(name="hierarchical regression, NUTS", make=lambda s: _nuts(_hierarchical, _data(_hierarchical, s), s)),
    Kind(
        name="hierarchical regression, full-rank guide", make=lambda s: _svi(_hierarchical, _data(_hierarchical, s), s)
    ),
    Kind(
        name="network of ten hidden units, mean-field guide",
        make=lambda s: _svi(_network, _data(_network, s), s, guide="AutoNormal"),
        words=_NETWORK,
    ),
)
"""Fits that are right."""

FAULTS = (
    Kind(
        name="optimiser stopped after 300 of 6,000 steps",
        make=lambda s: _svi(_linear, _data(_linear, s), s, stop=300),
        answers=("fit",),
    ),
    Kind(name="one of four chains stuck at its start", make=_stuck, answers=("fit", "parameters")),
    Kind(
        name="NUTS in a centred funnel", make=lambda s: _nuts(_centred, _data(_centred, s, fixed={"log_tau": 0.0}), s),
        answers=("fit", "parameters"),
    ),
    Kind(
        name="mean-field guide of a centred funnel",
        make=lambda s: _svi(_centred, _data(_centred, s, fixed={"log_tau": 0.0}), s, guide="AutoNormal"),
        answers=("parameters",),
    ),
    Kind(
        name="mean-field guide of features that correlate by 0.97 (standard deviations a quarter of the right ones)",
        make=lambda s: _svi(_linear, _data(_linear, s, correlation=0.97), s, guide="AutoNormal"),
        answers=("parameters",),
    ),
    Kind(
        name="normal noise stated of Student noise with two degrees of freedom",
        make=lambda s: _nuts(_linear, _data(_linear, s, change=_heavy), s),
        answers=("predictions",),
    ),
    Kind(
        name="equal noise stated of noise that grows with a feature",
        make=lambda s: _svi(_linear, _data(_linear, s, change=_unequal), s),
        answers=("predictions",),
    ),
    Kind(
        name="Poisson counts stated of counts with a random rate",
        make=lambda s: _svi(_counts, _data(_counts, s, change=_dispersed), s),
        answers=("predictions",),
    ),
    Kind(
        name="network that states a third of the noise",
        make=lambda s: _svi(_sure_network, _data(_network, s), s, guide="AutoNormal"),
        answers=("predictions",),
    ),
)  # fmt: skip
"""Fits with one fault each."""


# ------------------------------------------------------------------------------------------------------- counting
@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How the answers came out for fits of one kind.

    Args:
        kind: The kind.
        fits: How many fits.
        good: Answer -> fits of which it was the good one.
        headline: Fits whose verdict was ``usable``.
        blamed: Check -> fits in whose answers it spoke against them.
    """

    kind: Kind
    fits: int = 0
    good: Mapping[str, int]
    headline: int = 0
    blamed: Mapping[str, int]

    @property
    def caught(self) -> int:
        """Fits of which none of the answers that a fault must show in was missed, at the least."""
        return min((self.fits - self.good[name] for name in self.kind.answers), default=0)


def tallies(kinds: Sequence[Kind]) -> list[Tally]:
    """Return the counts before the first fit.

    Args:
        kinds: Kinds of fits.

    Returns:
        One entry per kind.
    """
    return [Tally(kind=k, good=dict.fromkeys(("fit", "parameters", "predictions"), 0), blamed={}) for k in kinds]


def one_more(tally: Tally, seed: int) -> Tally:
    """Make a fit, ask for its answers and count them.

    Args:
        tally: The counts of its kind so far.
        seed: Of its data and of every draw.

    Returns:
        The counts with this fit.
    """
    kind = tally.kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = diagnose(kind.make(seed), seed=seed)
    verdicts = {c.name: c.verdict for c in diagnosis.checks}
    against = {n for a in diagnosis.answers if not kind.good(a) for n in a.checks if verdicts[n] in ("warn", "fail")}
    return replace(
        tally,
        fits=tally.fits + 1,
        good={a.name: tally.good[a.name] + kind.good(a) for a in diagnosis.answers},
        headline=tally.headline + (diagnosis.verdict == "usable"),
        blamed={n: tally.blamed.get(n, 0) + (n in against) for n in {*tally.blamed, *against}},
    )
