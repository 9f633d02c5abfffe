"""Fit any pair: one entry point, one posterior type, two engines."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pyro.optim import PyroOptim
from safetensors.torch import load, save
from torch import Tensor

from zoo.errors import DataError, NonFiniteError, PairError, RankError, UnknownNameError, suggest
from zoo.inference.arguments import Arguments, prepared, signature_of
from zoo.inference.checkpoint import Chains, Checkpoint, difference
from zoo.inference.distributed import Ranks, join, together
from zoo.inference.laplace import with_laplace
from zoo.inference.objectives import identity_of
from zoo.inference.posterior import Posterior
from zoo.inference.predictive import Runs
from zoo.inference.program import Layout, pyro_world, seeded, stream
from zoo.inference.progress import Progress, ProgressEvent, bar
from zoo.inference.steering import Callback, Parameters, optimiser_of
from zoo.inference.svi import Trainer
from zoo.types import Batch, Dataset, Diagnostic, Elbo, Method, Pair, Recipe, hyper_from_json, hyper_to_json

__all__ = ["fit", "git_state", "versions"]

_ENGINES = ("nuts", "svi")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_CHUNK_SECONDS = 0.2
_MOST = 10**8
_FEW = 8  # rows that are enough to learn what a method's pair reads


@torch.inference_mode(False)
def fit(
    method: str | Method[Any] | Pair,
    data: str | Dataset | Batch | Arguments | Sequence[Any] | Iterable[Any] | None = None,
    *,
    hyper: Any = None,
    engine: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    optimizer: str | PyroOptim | type[torch.optim.Optimizer] | None = None,
    schedule: str | None = None,
    warmup: float | None = None,
    kl_warmup: float | None = None,
    clip_norm: float | None = None,
    weight_decay: float | None = None,
    num_particles: int | None = None,
    restarts: int = 1,
    early_stopping: bool = False,
    skip_nonfinite: bool = False,
    chains: int = 4,
    draws: int = 1_000,
    tune: int = 1_000,
    target_accept: float | None = None,
    max_treedepth: int = 10,
    sampler: str = "nutpie",
    low_rank_mass_matrix: bool | None = None,
    workers: int | None = None,
    retry: bool = True,
    device: str = "cpu",
    dtype: str | None = None,
    compile: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    checkpoint_keep: int = 2,
    resume: bool = False,
    init: Mapping[str, Tensor] | None = None,
    distributed: bool | Ranks = False,
    progress: bool | Progress | None = None,
    callback: Callable[[int, Tensor, Parameters], Any] | None = None,
    callback_every: int = 1,
    name: str | None = None,
) -> Posterior:
    """Fit a method or a pair to data.

    Args:
        method: Name of a method, the method, or a pair.
        data: Data set, its bundled name, or for a pair what its model and guide are called with: a training batch, a
            tuple of positional arguments, a mapping of the model's parameters by name, :class:`Arguments` for both, or
            a loader of batches, whose rows are read once and cut into mini-batches here; ``None`` takes the method's
            default data.
        hyper: Hyper-parameters, or a mapping of those that differ from the defaults.
        engine: ``svi`` or ``nuts``; ``None`` takes the method's first (for a pair: ``svi`` if it has a guide).
        seed: Decides every random number of the fit.
        steps: (svi) Optimiser steps. This and the following default to the method's recipe.
        learning_rate: (svi) Highest learning rate.
        batch_size: (svi) Rows per step; 0 takes all rows.
        optimizer: (svi) ``adam``, ``adamw`` or ``sgd``; or an optimiser of your own, whose update runs after the
            compiled gradient and which starts anew in every fit: one of :mod:`pyro.optim` (a function as its argument
            gives every parameter its own rate) or a class of :mod:`torch.optim`. One of Pyro's schedulers takes a step
            after every pass over the data.
        schedule: (svi) ``constant``, ``cosine``, ``linear`` or ``exponential``.
        warmup: (svi) Fraction of the steps over which the learning rate rises.
        kl_warmup: (svi) Fraction of the steps over which the latent terms' weight rises.
        clip_norm: (svi) Largest norm of the gradient.
        weight_decay: (svi) Of the optimiser.
        num_particles: (svi) Guide samples per step.
        restarts: (svi) Independent fits with seeds ``seed, seed + 1, ...``; the best is returned, the others are
            its ``restarts``. Automatic guides begin anew in each. Layers that a pair was built with start at their own
            weights in the first, and in the others at those that their ``reset_parameters`` draws.
        early_stopping: (svi) Stop when the loss surely falls by less than half a nat, or a thousandth, per quarter of
            the run.
        skip_nonfinite: (svi) Leave out an update whose loss or gradient is not finite, in place of stopping; a hundred
            in a row stop the fit all the same.
        chains: (nuts) Number of chains.
        draws: (nuts) Draws per chain after tuning.
        tune: (nuts) Tuning draws per chain.
        target_accept: (nuts) Target acceptance rate. ``None``: 0.8, and a chain that diverges is drawn again at 0.9
            and then at 0.99.
        max_treedepth: (nuts) A draw takes at most ``2 ** max_treedepth - 1`` steps.
        sampler: (nuts) ``nutpie`` or ``pyro``.
        low_rank_mass_matrix: (nuts) Adapt a low-rank mass matrix instead of a diagonal one (nutpie). ``None``: if the
            chains move slowly along a ridge, all are drawn again with it.
        workers: (nuts) Chains at a time; ``None``: as many as there are cores.
        retry: (nuts) Whether chains may be drawn again; what was drawn again and why stands in
            ``posterior.info["tries"]`` (see :mod:`zoo.inference.tries`).
        device: ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``float64``; ``None`` is ``float32`` for svi, ``float64`` for nuts and for counts that
            ``float32`` cannot hold.
        compile: Whether to compile; what cannot be compiled runs eagerly, and says so once.
        checkpoint: Folder for checkpoints: states of an SVI fit, finished chains of NUTS.
        checkpoint_every: (svi) Steps between checkpoints; a tenth of all if ``None``.
        checkpoint_keep: (svi) How many of the newest checkpoints are kept, beside the one of the lowest loss.
        resume: Go on from the folder's newest checkpoint, bit for bit as if the fit had not been interrupted; a
            restart or chain that has none begins anew.
        init: (svi) Initial values of the guide's parameters by name, as ``posterior.params`` holds them; those that
            are not named start as the guide says.
        distributed: (svi) Share every batch among the ranks that ``torchrun`` started, or those of the process group
            that exists. Each of them calls this function with the same arguments and gets the same posterior; rank 0
            alone writes and shows progress. ``batch_size`` counts the rows of all ranks.
        progress: ``True`` for a progress bar, or a function of progress events.
        callback: (svi) ``callback(step, losses, params)`` is called between steps with the steps taken so far, the
            losses since the last call and the parameters, which it may change (``params["scale"].clamp_(min=0.01)``).
            It stops the fit by returning ``True``. What it remembers is in no checkpoint, so that it goes with none.
        callback_every: (svi) Steps between its calls.
        name: Name of a bare pair's posterior.

    Returns:
        The posterior.

    Raises:
        UnknownNameError: If method, data, engine, dtype or schedule is unknown.
        ArtifactError: If a checkpoint is damaged or of another fit; the difference is named.
        NonFiniteError: If a loss or gradient is not finite: it names step, site and parameter, and holds the last good
            parameters, which are also in the folder for checkpoints.
        DataError: If the data do not hold what the method's task needs, an option is out of range, or there is no
            checkpoint to resume.
        PairError: If the engine cannot run this pair, or several ranks cannot.
        RankError: If another rank of a distributed fit fails or is lost, or was given other data or options.
    """
    found: Method[Any] | None = None
    if isinstance(method, str):
        from zoo.registry import get

        looked_up = get(method)
        if isinstance(looked_up, Diagnostic):
            raise PairError(f"'{method}' is a diagnostic: it measures fitted posteriors and is not fitted itself")
        found = looked_up
    elif isinstance(method, Method):
        found = method
    elif not isinstance(method, Pair):
        raise PairError(f"method is a {type(method).__name__}; allowed: a name, a Method or a Pair")
    if isinstance(method, Pair):
        method, data, rows = prepared(method, data)
        batch_size = rows if batch_size is None else batch_size
    dataset = _dataset(data, found)
    hyper = _hyper(found, hyper)
    engine = _engine(engine, found, method)
    if distributed and engine != "svi":
        raise PairError(
            f"engine '{engine}' does not share its work among ranks, only svi does; start it in one process, where its "
            "chains run side by side"
        )
    wide = _has_wide_counts(dataset, hyper)
    dtype = dtype or ("float64" if engine == "nuts" or wide else "float32")
    if wide and dtype == "float32":
        raise DataError(f"the counts of '{dataset.name}' have so wide a range that they need dtype='float64'")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UnknownNameError(f"dtype '{dtype}' is unknown; allowed: {', '.join(_DTYPES)}")
    _check_numbers(
        steps=steps, restarts=restarts, chains=chains, draws=draws, tune=tune or 1, checkpoint_every=checkpoint_every,
        checkpoint_keep=checkpoint_keep, num_particles=num_particles, workers=workers, callback_every=callback_every,
    )  # fmt: skip
    # Restarts have the seeds that follow.
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= 2**63 - restarts:
        raise DataError(f"seed is {seed!r}; allowed: a whole number from 0 to 2**63 - {restarts}")
    if target_accept is not None:
        _check_real("target_accept", target_accept)
        if not 0 < target_accept < 1:
            raise DataError(f"target_accept is {target_accept}; allowed: a rate between 0 and 1")
    for option, value in (("low_rank_mass_matrix", low_rank_mass_matrix), ("retry", retry)):
        if not isinstance(value, bool) and (value is not None or option == "retry"):
            raise DataError(f"{option} is {value!r}; allowed: True or False")
    if isinstance(max_treedepth, bool) or not isinstance(max_treedepth, int) or not 1 <= max_treedepth <= 20:
        raise DataError(f"max_treedepth is {max_treedepth!r}; allowed: a whole number from 1 to 20")
    _check_device(device)
    _check_init(init)
    if found is not None:
        _check_task(found, dataset)
    title = name or (found.name if found is not None else "pair")
    base = found.recipe if found is not None else Recipe()
    options = {
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "optimizer": optimizer if isinstance(optimizer, str) else None,
        "schedule": schedule,
        "warmup": warmup,
        "kl_warmup": kl_warmup,
        "clip_norm": clip_norm,
        "weight_decay": weight_decay,
    }
    recipe = _recipe(base, options)
    optim = None
    if optimizer is not None and not isinstance(optimizer, str):
        optim, optim_name = optimiser_of(optimizer, recipe, options)
    if callback is not None and not callable(callback):
        raise DataError(f"callback is a {type(callback).__name__}; allowed: a function of step, losses and params")
    for option, steering in (("optimizer", optim), ("callback", callback)):
        if steering is not None:
            _check_steering(option, engine, checkpoint, distributed, skip_nonfinite)
    if engine == "svi" and recipe.batch_size is not None and "index" not in dataset.train:
        if batch_size:
            _refuse_batches(batch_size, dataset)
        recipe = dataclasses.replace(recipe, batch_size=None)  # of a method, for data without rows

    def build(at: int) -> Pair:
        if found is None:
            pair: Pair = method  # type: ignore[assignment]
        else:
            with pyro_world(dtype=_DTYPES[dtype], device=device), stream(seeded(at, device)):
                pair = found.build(dataset, hyper)
        return with_laplace(_particles(pair, num_particles))

    about: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git": git_state(),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if init is not None:
        about["init"] = _digest(init)
    if optim is not None:
        about["optimizer"] = optim_name
    if callback is not None:
        called = getattr(callback, "__qualname__", type(callback).__name__)
        about["callback"] = {"function": called, "every": callback_every}
    own_call = signature_of(method) if isinstance(method, Pair) else None
    if own_call is not None:
        about["arguments"] = own_call.to_json()
    common = {"data": dataset, "engine": engine, "name": title, "method": found, "hyper": hyper}
    identity = {
        "name": title,
        "engine": engine,
        "hyper": hyper_to_json(hyper),
        "data": _fingerprint(dataset),
        "seed": seed,
        "dtype": dtype,
    }
    surroundings = {key: about[key] for key in ("versions", "machine", "threads", "device")}
    folder = None if checkpoint is None else Path(checkpoint)
    with _ranks(distributed, device) as ranks, bar(progress if ranks is None or ranks.first else None) as tell:
        with together(ranks):
            if folder is not None and (ranks is None or ranks.first):
                _check_folder(folder, resume)
        if ranks is not None:
            about["ranks"] = ranks.size
        if engine == "nuts":
            chosen = {"draws": draws, "tune": tune, "target_accept": target_accept, "sampler": sampler}
            chosen |= {"low_rank_mass_matrix": low_rank_mass_matrix, "max_treedepth": max_treedepth, "retry": retry}
            # Each chain can depend on the others where chains are drawn again.
            chosen |= {"chains": chains} if retry else {}
            return _sample(
                build(seed), common, about, tell, seed=seed, chains=chains, draws=draws, tune=tune, compile=compile,
                target_accept=target_accept, sampler=sampler, low_rank=low_rank_mass_matrix, dtype=dtype,
                max_treedepth=max_treedepth, workers=workers, retry=retry,
                store=None if folder is None else Chains(folder, identity | chosen, surroundings), resume=resume,
            )  # fmt: skip
        fits = []
        for at in range(seed, seed + restarts):
            pair, keep = build(at), None
            if pair.finish is not None:
                pair.finish.check()
                # A finished posterior's parameters hold what was computed from them, too.
                init = init and {n: v for n, v in init.items() if n not in pair.finish.names}
            own = (
                identity
                | {"seed": at, "recipe": dataclasses.asdict(recipe), "objective": identity_of(pair.objective)}
                | {"early_stopping": early_stopping, "skip_nonfinite": skip_nonfinite, "init": _digest(init)}
            )
            if ranks is not None:
                shared = {"compile": compile, "restarts": restarts, "checkpoint": folder is not None}
                _agree(ranks, own | shared | {"checkpoint_every": checkpoint_every})
            if folder is not None:
                keep = Checkpoint(
                    folder if restarts == 1 else folder / f"restart-{at - seed}",
                    own,
                    surroundings | {"ranks": 1 if ranks is None else ranks.size},
                    every=checkpoint_every or max(recipe.steps // 10, 1),
                    keep=checkpoint_keep,
                    best_from=recipe.kl_warmup * recipe.steps,
                )
            fits.append(
                _descend(
                    pair, common, about, tell, recipe=recipe, seed=at, dtype=dtype, device=device,
                    compile=compile, early_stopping=early_stopping, skip=skip_nonfinite, checkpoint=keep,
                    resume=resume, init=init, ranks=ranks, validate=at == seed, renew=found is None and at > seed,
                    optim=optim, callback=None if callback is None else Callback(callback, callback_every),
                    label=f"restart {at - seed + 1}/{restarts}  " if restarts > 1 else "",
                )
            )  # fmt: skip
    fits.sort(key=lambda p: p.info["final_loss"])
    best = fits[0]
    best.restarts = tuple(fits[1:])
    if found is None:
        _say_if_point(best)
    return best


def _descend(
    pair: Pair,
    common: Mapping[str, Any],
    about: Mapping[str, Any],
    tell: Progress,
    *,
    recipe: Recipe,
    seed: int,
    dtype: str,
    device: str,
    compile: bool,
    early_stopping: bool,
    skip: bool,
    checkpoint: Checkpoint | None,
    resume: bool,
    init: Mapping[str, Tensor] | None,
    ranks: Ranks | None,
    validate: bool,
    renew: bool,
    optim: PyroOptim | None,
    callback: Callback | None,
    label: str,
) -> Posterior:
    """Run SVI to the end and wrap the result."""
    data: Dataset = common["data"]
    first = ranks is None or ranks.first
    tell(ProgressEvent("compiling", 0, recipe.steps, label))
    with together(ranks):
        trainer = Trainer(
            pair,
            data.train,
            whole=data.whole,
            recipe=recipe,
            seed=seed,
            dtype=_DTYPES[dtype],
            device=device,
            compile=compile,
            init=init,
            skip=skip,
            ranks=ranks,
            validate=validate,
            renew=renew,
            optim=optim,
        )
        if pair.finish is not None:
            with trainer.layout.states():
                pair.finish.check()
    start = trainer.start
    if ranks is not None:
        _agree(ranks, {"parameters": {n: list(v.shape) for n, v in trainer.layout.values.items()}})
        trainer.agree()
    _say_once(common["name"], trainer.program.reason if compile else "")
    with together(ranks):
        if checkpoint is not None:
            checkpoint.identity["parameters"] = {n: list(v.shape) for n, v in trainer.layout.values.items()}
            checkpoint.surroundings["mode"] = "compiled" if trainer.program.compiled else "eager"
            if resume and first and checkpoint.files():
                checkpoint.restore(trainer.state)
    if ranks is not None:
        payload = ranks.bytes(save(trainer.state.tensors()) if first else b"")
        if not first:
            trainer.state.load(load(payload))

    def keep() -> None:
        with together(ranks):
            if ranks is not None:
                ranks.check_equal(trainer.state.theta, "parameters")
            if checkpoint is not None and first:
                checkpoint.save(trainer.state)

    started, worked, reason = time.perf_counter(), time.process_time(), "all steps taken"
    window, size = max(100, recipe.steps // 20), 1
    try:
        while (at := int(trainer.state.step)) < recipe.steps:
            # Asked before every block, not after it, so that a resumed fit stops where it would have stopped.
            if early_stopping and at and at % window == 0 and _settled(torch.cat(trainer.state.history)[:, 0]):
                reason = f"the loss stopped falling after {at} steps"
                break
            stops = [recipe.steps - at, window - at % window]
            if checkpoint is not None:
                stops.append(checkpoint.every - at % checkpoint.every)
            if callback is not None:
                stops.append(callback.every - at % callback.every)
            count = min(size, *stops)
            if ranks is not None:  # how far a block goes is a matter of speed, and the ranks differ in it
                count = ranks.pace(count)
            tick = time.perf_counter()
            losses = trainer.run(count)
            passed = time.perf_counter() - tick
            size = max(
                1, min(int(size * _CHUNK_SECONDS / max(passed, 1e-9)) if count == size else size, 4 * size, 1_000)
            )
            at += count
            tell(ProgressEvent("fitting", at, recipe.steps, f"{label}loss {float(losses[:, 0].mean()):,.5g}"))
            if checkpoint is not None and (at % checkpoint.every == 0 or at == recipe.steps):
                keep()
            if callback is not None and at % callback.every == 0 and trainer.call(callback):
                reason = f"the callback stopped it after {at} steps"
                break
        if ranks is not None:
            ranks.check_equal(trainer.state.theta, "parameters")
    except KeyboardInterrupt:
        if checkpoint is not None and first:  # so that nothing is lost, not only what came before the latest multiple
            checkpoint.save(trainer.state)
        raise
    except RankError as error:
        if checkpoint is None or not first or not error.lost:
            raise
        checkpoint.save(trainer.state)
        raise RankError(f"{error}; step {int(trainer.state.step)} is in '{checkpoint.folder}'", lost=True) from error
    except NonFiniteError as error:
        if checkpoint is None:
            raise
        keep()
        told = NonFiniteError(
            f"{error}; the last good state, of step {int(trainer.state.step)}, is in '{checkpoint.folder}'"
        )
        told.params = error.params
        raise told from error
    history = torch.cat(trainer.state.history) if trainer.state.history else torch.empty(0, len(trainer.losses))
    if skip:
        fine = torch.isfinite(history).all(1)
        about = dict(about) | {"skipped_steps": int((~fine).sum())}
        history = history[fine]
    layout, values = trainer.layout, trainer.values
    if pair.finish is not None:
        tell(ProgressEvent("finishing", recipe.steps, recipe.steps, label))
        with together(ranks):
            layout, values = finished(pair, data, layout, values, buffers=trainer.buffers, batch_size=recipe.batch_size)
    info = dict(about) | {
        "seed": seed,
        "start": start,
        "steps": int(trainer.state.step),
        "recipe": dataclasses.asdict(recipe),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - worked,
        "peak_memory": _peak_memory(),
        "compile_seconds": trainer.compile_seconds,
        "compiled": trainer.program.compiled,
        "reason": trainer.program.reason,
        "graph_nodes": trainer.program.nodes,
        "stopped": reason,
        "final_loss": float(history[-window:, 0].mean()) if len(history) else float("nan"),
    }
    return Posterior(
        pair=pair,
        layout=layout,
        values=values,
        buffers=trainer.buffers,
        history={s.name: history[:, i] for i, s in enumerate(trainer.losses)},
        info=info,
        **common,
    )


@contextmanager
def _ranks(distributed: bool | Ranks, device: str) -> Iterator[Ranks | None]:
    """Yield the ranks of the fit, or ``None`` for a process alone."""
    if not distributed:
        yield None
        return
    with nullcontext(distributed) if isinstance(distributed, Ranks) else join() as ranks, ranks.on(device):
        yield ranks


def _agree(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Raise on all ranks unless they were called for the same fit."""
    text = json.dumps(facts)
    with together(ranks):
        found = difference(json.loads(ranks.bytes(text.encode())), json.loads(text))
        if found:
            raise DataError(f"rank 0 has {found.replace('; this fit', f'; rank {ranks.rank}')}; all need the same")


def _sample(
    pair: Pair,
    common: Mapping[str, Any],
    about: Mapping[str, Any],
    tell: Progress,
    *,
    seed: int,
    chains: int,
    draws: int,
    tune: int,
    target_accept: float | None,
    max_treedepth: int,
    sampler: str,
    low_rank: bool | None,
    workers: int | None,
    retry: bool,
    compile: bool,
    dtype: str,
    store: Chains | None,
    resume: bool,
) -> Posterior:
    """Run NUTS and wrap the result."""
    from zoo.inference import nuts

    def show(states: Sequence[nuts.Chain]) -> None:
        done, total = sum(c.draws for c in states), sum(c.total for c in states)
        tell(ProgressEvent("sampling", done, total, f"{sum(c.divergences for c in states)} divergences"))

    tell(ProgressEvent("compiling", 0, chains * (tune + draws)))
    found = nuts.sample(
        pair.model,
        common["data"].train,
        chains=chains,
        warmup=tune,
        draws=draws,
        seed=seed,
        target_accept=target_accept,
        max_treedepth=max_treedepth,
        low_rank_mass_matrix=low_rank,
        workers=workers,
        retry=retry,
        dtype=dtype,  # type: ignore[arg-type]  # checked by fit
        compile=compile,
        sampler=sampler,  # type: ignore[arg-type]  # checked by sample
        progress=show,
        store=store,
        resume=resume,
    )
    _say_once(common["name"], str(found.info.get("reason", "")) if compile else "")
    info = (
        dict(about)
        | dict(found.info)
        | {"seed": seed, "chains": chains, "draws": draws, "tune": tune, "sampler": sampler}
        | {"asked_accept": target_accept}
        | {"peak_memory": _peak_memory()}
    )
    return Posterior(pair=pair, chains=found.chains, sample_stats=found.stats, info=info, **common)


def _peak_memory() -> int | None:
    """Return the most memory that this process ever held, in bytes; ``None`` where the system does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)


# ------------------------------------------------------------------------------------------------- arguments
def _dataset(data: Any, method: Method[Any] | None) -> Dataset:
    from zoo import datasets

    if data is None:
        if method is None:
            raise DataError("a pair needs data: pass a Dataset or a batch")
        return datasets.load(method.default_data)
    if isinstance(data, str):
        return datasets.load(data)
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Mapping):
        batch = {str(k): _as_tensor(str(k), v) for k, v in data.items()}
        if not batch:
            raise DataError("the batch is empty; it needs at least one tensor")
        bad = [k for k, v in batch.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
        if bad:
            raise DataError(f"batch entry '{bad[0]}' holds NaN or infinite values")
        return Dataset(name="batch", task="", train=batch)
    raise DataError(f"data is a {type(data).__name__}; allowed: a data set's name, a Dataset, or a batch of tensors")


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"batch entry '{name}', a {type(value).__name__}, is no tensor: {line}") from error


def _check_task(method: Method[Any], data: Dataset) -> None:
    from zoo import tasks

    allowed = (method.task, *method.other_tasks)
    if data.task and data.task not in allowed:
        raise DataError(f"{method.name} is for {' and '.join(allowed)}; data set '{data.name}' is for {data.task}")
    tasks.get(data.task or method.task).check(data)
    if "x_missing" in data.train and not method.imputes:
        from zoo import registry

        able = [name for name in registry.names() if getattr(registry.get(name), "imputes", False)]
        splits = [b for b in (data.train, data.validation, data.test) if b is not None and "x_missing" in b]
        count = sum(int(b["x_missing"].sum()) for b in splits)
        raise DataError(
            f"data set '{data.name}' has {count} missing entries, which {method.name} cannot impute; fill them or drop "
            f"their rows (missing='drop') or columns, or use a method that imputes: {', '.join(able)}"
        )


def _has_wide_counts(data: Dataset, hyper: Any) -> bool:
    """Say whether the target is of counts that single precision cannot hold; a table keeps these in double."""
    y = data.train.get("y")
    return bool(getattr(hyper, "counts", False) and data.columns and y is not None and y.dtype == torch.float64)


def _hyper(method: Method[Any] | None, hyper: Any) -> Any:
    if method is None:
        if hyper is not None:
            raise PairError("a pair has no hyper-parameters; build it with those that you want")
        return None
    if hyper is None:
        return method.hyper()
    if isinstance(hyper, Mapping):
        return hyper_from_json(method.hyper, hyper)
    if not isinstance(hyper, method.hyper):
        raise DataError(f"hyper is a {type(hyper).__name__}; {method.name} takes its own {method.hyper.__name__}")
    try:
        values = hyper_to_json(hyper)
    except (TypeError, ValueError) as error:
        raise DataError(f"hyper-parameters of {method.name} hold a value that is none: {error}") from error
    return hyper_from_json(method.hyper, values)


def _engine(engine: str | None, method: Method[Any] | None, pair: Any) -> str:
    if engine is None:
        return method.engines[0] if method is not None else "svi" if pair.guide is not None else "nuts"
    if engine not in _ENGINES:
        raise UnknownNameError(f"engine '{engine}' is unknown{suggest(str(engine), _ENGINES)}")
    if method is not None and engine not in method.engines:
        raise PairError(f"{method.name} cannot be fitted by '{engine}'; allowed: {', '.join(method.engines)}")
    return engine


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is None:
            continue
        # Every step has its place in tables of rates and losses, every draw in those of chains.
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
            raise DataError(f"{name} is {value!r}; allowed: a whole number from 1 to {_MOST:,}")


def _check_steering(option: str, engine: str, checkpoint: Any, distributed: Any, skip: bool) -> None:
    """Refuse an optimiser or a callback of the user's where the fit could not keep what it promises."""
    if engine != "svi":
        raise DataError(f"{option} is for engine 'svi'; this fit has '{engine}'")
    if checkpoint is not None:
        raise DataError(
            f"checkpoint does not go with {option}={'...' if option == 'callback' else 'an object'}: what it remembers "
            "is in no checkpoint, so that the fit could not go on exactly; leave out one of them"
        )
    if distributed:
        raise DataError(f"several ranks do not go with {option} of your own; fit in one process")
    if skip and option == "optimizer":
        raise DataError("skip_nonfinite goes with the optimizers adam, adamw and sgd only")


def _refuse_batches(batch_size: int, data: Dataset) -> None:
    rows = max((len(v) for v in data.train.values() if v.ndim), default=0)
    raise DataError(
        f"batch_size is {batch_size}, but the batch has no entry 'index', which says what its rows are: add 'index': "
        f"torch.arange({rows}) and write pyro.plate(NAME, {rows}, subsample=batch['index']), or leave batch_size out"
    )


def _check_real(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise DataError(f"{name} is {value!r}; a finite number was expected")


def _check_device(device: Any) -> None:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UnknownNameError(f"device {device!r} is unknown; allowed: cpu, cuda") from error
    if found.type not in ("cpu", "cuda"):
        raise UnknownNameError(f"device '{device}' is not supported; allowed: cpu, cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DataError("device 'cuda' was asked for, but torch sees no GPU; use device='cpu'")
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if (found.index or 0) >= count:
        raise DataError(f"device '{device}' does not exist; there {'is' if count == 1 else 'are'} {count} of its kind")


def _check_init(init: Any) -> None:
    if init is None:
        return
    if not isinstance(init, Mapping):
        raise DataError(f"init is a {type(init).__name__}; a mapping from names of parameters to tensors was expected")
    for name, value in init.items():
        if not isinstance(value, Tensor):
            raise DataError(f"initial value '{name}' is a {type(value).__name__}; a tensor was expected")


def _recipe(base: Recipe, options: Mapping[str, Any]) -> Recipe:
    """Put the user's options over the method's recipe and check their ranges."""
    given = {k: v for k, v in options.items() if v is not None}
    if given.get("batch_size") == 0:
        given["batch_size"] = None
    for field in ("learning_rate", "warmup", "kl_warmup", "clip_norm", "weight_decay"):
        if field in given:
            _check_real(field, given[field])
    size = given.get("batch_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
        raise DataError(f"batch_size is {size!r}; allowed: 1 or more rows, or 0 for all")
    recipe = dataclasses.replace(base, **given)
    for field, allowed in (
        ("optimizer", ("adam", "adamw", "sgd")),
        ("schedule", ("constant", "cosine", "linear", "exponential")),
    ):
        if getattr(recipe, field) not in allowed:
            raise UnknownNameError(
                f"{field} '{getattr(recipe, field)}' is unknown{suggest(str(getattr(recipe, field)), allowed)}"
            )
    if not 0 < recipe.learning_rate < float("inf"):
        raise DataError(f"learning_rate is {recipe.learning_rate}; allowed: a positive number")
    for field in ("warmup", "kl_warmup"):
        if not 0 <= getattr(recipe, field) <= 1:
            raise DataError(f"{field} is {getattr(recipe, field)}; allowed: a fraction of the steps, 0 to 1")
    if recipe.clip_norm is not None and not recipe.clip_norm > 0:
        raise DataError(f"clip_norm is {recipe.clip_norm}; allowed: a positive number")
    if recipe.weight_decay < 0:
        raise DataError(f"weight_decay is {recipe.weight_decay}; allowed: 0 or more")
    if recipe.batch_size is not None and recipe.batch_size < 1:
        raise DataError(f"batch_size is {recipe.batch_size}; allowed: 1 or more rows, or 0 for all")
    return recipe


def _particles(pair: Pair, num: int | None) -> Pair:
    if num is None:
        return pair
    if not isinstance(pair.objective, Elbo):
        raise PairError(
            "num_particles applies to a pair whose objective is one zoo.types.Elbo; set it where this pair's losses "
            "are made"
        )
    return pair._replace(objective=dataclasses.replace(pair.objective, num_particles=num))


def _settled(losses: Tensor) -> bool:
    """Decide whether the loss has stopped falling, from the last quarter of the run and the quarter before."""
    losses = losses[torch.isfinite(losses)]  # the others were skipped
    # Noise must not look like rest, so it is the upper bound of the improvement, two standard errors above its
    # estimate, that has to be small: below half a nat, or a thousandth of the loss. The quarters grow with the run.
    size = len(losses) // 40  # ten blocks a quarter: neighbouring losses are correlated, block means hardly
    if size < 10:
        return False
    blocks = losses[-20 * size :].double().view(2, 10, size).mean(-1)
    improvement = blocks[0].mean() - blocks[1].mean()
    error = (blocks.var(-1).sum() / 10).sqrt()
    return bool(improvement + 2 * error < max(0.5, 1e-3 * float(blocks[1].mean().abs())))


def _check_folder(folder: Path, resume: bool) -> None:
    """Raise unless there is something to resume, or nothing that a new fit would replace."""
    from zoo.outputs import checkpoints

    found = checkpoints(folder)
    if resume and not found:
        raise DataError(f"there is no checkpoint in '{folder}'")
    if found and not resume:
        raise DataError(f"'{folder}' holds checkpoints of a fit; go on with resume=True, or choose another folder")


def _digest(init: Mapping[str, Tensor] | None) -> str:
    """Return a digest of initial values, for the identity of a checkpoint."""
    digest = hashlib.sha256()
    for name, value in sorted((init or {}).items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return "" if init is None else digest.hexdigest()


def _fingerprint(data: Dataset) -> str:
    from zoo.datasets import fingerprint

    return fingerprint(data)


# -------------------------------------------------------------------------------------------------- surroundings
@functools.cache
def _say_once(name: str, reason: str) -> None:
    """Warn, once per method and reason in a process, that a pair runs eagerly."""
    if reason:
        warnings.warn(f"{name} runs eagerly, several times slower: {reason}", RuntimeWarning, stacklevel=4)


def _say_if_point(posterior: Posterior) -> None:
    """Warn if the guide of one's own holds latents at one point; a method says itself what it estimates."""
    try:
        draws = posterior.draws(8)
    except Exception:  # the fit is not lost for it: whoever asks for draws is told why there are none
        return
    fixed = [n for n, v in draws.items() if v.is_floating_point() and v.numel() and bool((v == v[:1]).all())]
    if fixed:
        some = ", ".join(fixed[:5]) + (", ..." if len(fixed) > 5 else "")
        posterior.info["point_estimates"] = fixed
        warnings.warn(
            f"the guide holds {some} at one point: its draws are a point estimate, no posterior; for one, take a guide "
            "with a dispersion, such as AutoNormal",
            RuntimeWarning,
            stacklevel=3,
        )


def versions() -> dict[str, str]:
    """Return the versions that a result depends on.

    Returns:
        Package -> version.
    """
    found = {"python": sys.version.split()[0]}
    for package in ("pyro-zoo", "torch", "pyro-ppl", "numpy", "arviz", "nutpie"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "source"
    return found


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Return which commit of the zoo runs, where that is a checkout.

    Returns:
        ``commit``, and whether files that git knows were ``changed`` since; ``None`` if it is installed otherwise, or
        git does not answer.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def finished(
    pair: Pair,
    data: Dataset,
    layout: Layout,
    values: Mapping[str, Tensor],
    *,
    buffers: Sequence[Tensor] = (),
    batch_size: int | None = _FEW,
) -> tuple[Layout, dict[str, Tensor]]:
    """Compute what follows training, where a pair has a ``finish``.

    Args:
        pair: The pair.
        data: With the rows that it was trained on.
        layout: Of the trained guide.
        values: Its unconstrained parameters.
        buffers: Its module buffers.
        batch_size: Rows on which the guide that draws is first run, as it is trained; ``None`` takes all.

    Returns:
        Layout and unconstrained parameters of the guide that draws; those of the trained one without ``finish``.

    Raises:
        PairError: If other parameters were computed than ``finish`` says, or its guide has others still.
        DataError: If a computed parameter has another shape than in that guide, or lies outside of its constraint.
        NonFiniteError: If one of them is not finite.
    """
    if pair.finish is None:
        return layout, dict(values)
    like = next(iter(values.values()))
    # Model and guide read the trained values, so that the computation may run them.
    trained = Runs(pair, layout, [values[n] for n in layout.names], list(buffers), like.dtype, like.device, data.train)
    with trained.bound(), torch.enable_grad():
        computed = pair.finish.compute(layout.constrained(values), data.train)
    if set(computed) != set(pair.finish.names):
        raise PairError(
            f"finish computed {', '.join(sorted(computed)) or 'nothing'}; it says {', '.join(pair.finish.names)}"
        )
    for name, value in computed.items():
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(f"'{name}', computed after the last step, is not finite; try dtype='float64'")
    drawing = trainer_layout(
        pair._replace(guide=pair.drawing), data, dtype=like.dtype, device=like.device, batch_size=batch_size
    )
    known = {**values, **drawing.unconstrained(computed)}
    for name in drawing.names:
        if name not in known:
            raise PairError(f"the guide of finish has the parameter '{name}', which is neither trained nor computed")
    return drawing, {n: known[n] for n in drawing.names}


def trainer_layout(
    pair: Pair, data: Dataset, *, dtype: torch.dtype, device: torch.device, batch_size: int | None = _FEW
) -> Layout:
    """Return the layout of a pair on its data, for a posterior that is loaded.

    Args:
        pair: The pair.
        data: Its data.
        dtype: Of the parameters.
        device: Where.
        batch_size: Rows on which the pair is run; ``None`` takes all. A guide that learns its shapes from the first
            batch needs as many as it is trained with.

    Returns:
        The layout that a fit would have.
    """
    recipe = Recipe(steps=1, batch_size=batch_size and min(batch_size, data.num_data))
    with _quiet():
        return Trainer(
            pair, data.train, whole=data.whole, recipe=recipe, dtype=dtype, device=device, compile=False
        ).layout
