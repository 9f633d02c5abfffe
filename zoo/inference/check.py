"""``zoo.check``: does my pair work? Named steps, each with what was found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine

from zoo.errors import PairError
from zoo.inference.arguments import prepared
from zoo.inference.objectives import losses_of, subtracts_guide
from zoo.inference.program import pyro_world, seeded, stream
from zoo.inference.sites import check_guide, is_plate, observed
from zoo.inference.sites import traces as model_and_guide
from zoo.inference.svi import Trainer, _check_sites
from zoo.inference.validation import check_trace, one_line
from zoo.inference.watch import Watch
from zoo.types import Elbo, Objective, Pair, Recipe

__all__ = ["Step", "check"]


@dataclass(frozen=True, slots=True)
class Step:
    """One named step of a check.

    Args:
        name: What was tried.
        ok: Whether it held.
        detail: What was found, or what went wrong and what to do.
    """

    name: str
    ok: bool
    detail: str = ""


def check(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    batch: Any,
    *,
    objective: Objective | None = None,
    steps: int = 20,
    compile: bool = True,
) -> list[Step]:
    """Try a pair step by step; later steps that need an earlier one are left out when it fails.

    Args:
        model: The model, a callable of the batch.
        guide: The guide, or ``None`` for a model that is sampled by NUTS.
        batch: A batch, or what model and guide are called with, as for :func:`zoo.fit`.
        objective: What SVI minimises; an :class:`~zoo.types.Elbo` if ``None``.
        steps: Optimiser steps compared between compiled and eager.
        compile: Whether to try the compiled graph.

    Returns:
        The steps, in order.
    """
    found: list[Step] = []
    (model, guide, *_), given, _ = prepared(Pair(model, guide), batch)
    batch = {k: torch.as_tensor(v) for k, v in given.items()}
    objective = Elbo() if objective is None else objective
    before = set(pyro.get_param_store().keys())
    dtype = next((v.dtype for v in batch.values() if v.is_floating_point()), torch.get_default_dtype())

    def attempt(name: str, action: Callable[[], str]) -> bool:
        try:
            found.append(Step(name, True, action()))
        except Exception as error:
            found.append(Step(name, False, f"{type(error).__name__}: {one_line(error)}"))
        return found[-1].ok

    traces: dict[str, Any] = {}

    @contextmanager
    def aside(programs: Sequence[Any]) -> Iterator[None]:
        world = pyro_world(dtype=dtype, validate=True)
        with world, stream(seeded(0)), Watch().open(programs), pyro.get_param_store().scope():
            yield

    def run_model() -> str:
        with aside((model,)):
            traces["model"] = poutine.trace(model).get_trace(batch)
            check_trace(traces["model"])
            traces["model"].compute_log_prob()
        seen = observed(traces["model"].nodes)
        if not seen:
            raise PairError("no site is observed: pass the data as obs=batch['...']")
        return f"{_latents(traces['model'])} latent sites, observed: {', '.join(seen)}"

    def finite_model() -> str:
        total = traces["model"].log_prob_sum()
        if not bool(torch.isfinite(torch.as_tensor(total))):
            bad = [
                n
                for n, s in traces["model"].nodes.items()
                if s["type"] == "sample" and not bool(torch.isfinite(torch.as_tensor(s["log_prob_sum"])))
            ]
            raise PairError(f"the log density of site '{bad[0]}' is not finite")
        return f"log joint {float(total):.5g} at a draw of the prior"

    if not attempt("the model runs", run_model) or not attempt("its log density is finite", finite_model):
        return found
    if guide is None:
        return found

    def run_guide() -> str:
        with aside((model, guide)):
            if any(subtracts_guide(loss.function) for loss in losses_of(objective)):
                check_guide(guide, batch)
            traces["replayed"], traces["guide"] = model_and_guide(model, guide, batch)
        return f"{_latents(traces['guide'])} sites"

    def covers() -> str:
        _check_sites(traces["replayed"], traces["guide"])
        return "every latent of the model has its site"

    if not attempt("the guide runs", run_guide) or not attempt("the guide covers the latents", covers):
        return found
    recipe = Recipe(steps=steps, learning_rate=1e-3)
    trainers: dict[str, Trainer] = {}
    losses: dict[str, torch.Tensor] = {}

    def train(kind: str) -> str:
        trainer = Trainer(
            Pair(model, guide, objective), batch, recipe=recipe, seed=0, dtype=dtype, compile=kind == "compiled"
        )
        if kind == "compiled" and not trainer.program.compiled:
            raise PairError(f"runs eagerly: {trainer.program.reason}")
        start = trainer.state.theta.clone()
        losses[kind] = trainer.run(steps)
        trainers[kind] = trainer
        still = [
            n
            for n, a, b in zip(
                trainer.layout.names, start.split(trainer.sizes), trainer.state.theta.split(trainer.sizes), strict=True
            )
            if torch.equal(a, b)
            and n not in trainer.layout.hidden
            and any(re.match(loss.trains, n) for loss in losses_of(objective))
        ]
        if still:
            raise PairError(f"parameter '{still[0]}' got no gradient in {steps} steps; is it used?")
        return f"loss {float(losses[kind][0, 0]):.5g} -> {float(losses[kind][-1, 0]):.5g} in {steps} steps"

    def same_seed() -> str:
        again = Trainer(Pair(model, guide, objective), batch, recipe=recipe, seed=0, dtype=dtype, compile=False)
        if not torch.equal(again.run(steps), losses["eager"]):
            raise PairError("the same seed gave other losses: something draws from outside torch's random stream")
        return "same seed, same losses"

    def equal() -> str:
        worst = ((losses["compiled"] - losses["eager"]) / losses["eager"].abs().clamp(min=1e-30)).abs().max()
        limit = 1e-9 if dtype == torch.float64 else 1e-4
        if not float(worst) <= limit:
            raise PairError(f"compiled and eager losses differ by {float(worst):.2g} (allowed: {limit:g})")
        return f"largest relative difference {float(worst):.2g}"

    def untouched() -> str:
        if set(pyro.get_param_store().keys()) != before:
            raise PairError("the global parameter store was changed")
        return "as before"

    if attempt("every parameter trains", lambda: train("eager")):
        attempt("a seed decides everything", same_seed)
        if compile and attempt("it compiles whole", lambda: train("compiled")):
            attempt("compiled equals eager", equal)
    attempt("the global parameter store is untouched", untouched)
    return found


def _latents(trace: Any) -> int:
    return sum(not is_plate(trace.nodes[n]) for n in trace.stochastic_nodes)
