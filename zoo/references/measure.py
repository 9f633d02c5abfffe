"""``zoo references``: NUTS against the reference moments, and the guides' errors beside what their diagnosis said."""

from __future__ import annotations

import inspect
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from zoo.claims import fingerprint, machine, versions
from zoo.errors import DataError, UnknownNameError, ZooError, suggest
from zoo.references.models import MODELS
from zoo.references.posteriors import Reference, load
from zoo.references.results import FORMAT, GUIDES, Chains, Measured, Result, Settings, Variational
from zoo.references.stored import names as stored_names
from zoo.reports.files import dumps, write_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.inference.posterior import Posterior

__all__ = ["OTHERWISE", "measure"]

_HERE = Path(__file__).parent
_CODE = ("built.py", "priors.py", "posteriors.py", "measure.py")  # beside the file of the model

Part: TypeAlias = Chains | Variational

# What is not run as the settings say. The density of predators and prey is slow. Starting points far from where the
# data lead take long to leave: with 1,000 iterations of tuning and seed 0, one chain of four still has a wrong metric
# after them, diverges in every second draw, and leaves ten effective draws. Those who made the reference took 10,000.
OTHERWISE: Mapping[str, Mapping[str, int]] = {"hudson_lynx_hare-lotka_volterra": {"draws": 2_500, "tune": 3_000}}
"""Posterior -> most draws and least tuning iterations of a chain."""


def measure(
    *,
    names: Sequence[str] | None = None,
    settings: Settings | None = None,
    out: Path | None = None,
    compile: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Run NUTS and the guides on posteriors whose moments are known.

    With ``out``, ``NAME.json`` is written after every run, and runs found there, made by the same code with the same
    settings and versions, are not made again; in the end ``references.json`` is written beside them.

    Args:
        names: Posteriors; ``None``: all.
        settings: How they are run; ``None``: the defaults.
        out: Folder.
        compile: Whether to compile.
        progress: Told a line about every run.

    Returns:
        What was measured.

    Raises:
        UnknownNameError: If a posterior is not bundled.
        DataError: If a setting is out of range, or a file in the folder is none of ours.
    """
    settings = settings or Settings()
    chosen = list(dict.fromkeys(names or stored_names()))
    for name in chosen:
        if name not in stored_names():
            raise UnknownNameError(f"posterior '{name}' is not bundled{suggest(name, stored_names())}")
    for key, value in asdict(settings).items():
        least = {"seed": 0, "tune": 0, "guide_seeds": 0, "draws": 4, "guide_draws": 4}.get(key, 1)
        if key != "learning_rate" and value < least:
            raise DataError(f"{key} is {value}; it must be at least {least}")
    say = progress or (lambda _: None)
    files = {name: None if out is None else out / f"{name}.json" for name in chosen}
    kept = {name: _kept(name, files[name], settings) for name in chosen}  # a file of others shows before hours of work
    found = []
    for name in chosen:
        parts = kept[name]
        path = files[name]
        wanted = ["nuts", *(f"{guide} {seed}" for guide in GUIDES for seed in range(settings.guide_seeds))]
        if path is not None:
            write_texts({path: _text(name, settings, parts)})
        reference: Reference | None = None
        for key in wanted:
            if key in parts:
                say(f"{name}, {key}: measured before")
                continue
            reference = reference or load(name)
            if key == "nuts":
                parts[key] = _sampled(reference, settings, compile)
            else:
                guide, seed = key.split()
                parts[key] = _fitted(reference, guide, int(seed), settings, compile)
            say(f"{name}, {key}: {_line(parts[key])}")
            if path is not None:
                write_texts({path: _text(name, settings, parts)})
        chains = parts["nuts"]
        assert isinstance(chains, Chains)
        guides = tuple(g for g in (parts[key] for key in wanted) if isinstance(g, Variational))
        found.append(Measured(name=name, chains=chains, guides=guides))
    result = Result(measured=tuple(found), settings=settings, machine=machine(), versions=versions())
    if out is not None:
        write_texts({out / "references.json": dumps(result.to_json())})
    return result


# ------------------------------------------------------------------------------------------------------------- runs
def _arrays(reference: Reference, posterior: Posterior) -> dict[str, NDArray[np.float64]]:
    assert posterior.chains is not None
    return {k: np.asarray(v.double()) for k, v in reference.elements(posterior.chains).items()}


def _sampled(reference: Reference, settings: Settings, compile: bool) -> Chains:
    """Run NUTS and compare."""
    import arviz as az

    import zoo

    began = time.process_time()
    other = OTHERWISE.get(reference.name, {})
    draws, tune = min(settings.draws, other.get("draws", settings.draws)), max(settings.tune, other.get("tune", 0))
    posterior = zoo.fit(
        zoo.Pair(reference.model),
        reference.data,
        engine="nuts",
        seed=settings.seed,
        chains=settings.chains,
        tune=tune,
        draws=draws,
        compile=compile,
        name=reference.name,
    )
    cpu_seconds = time.process_time() - began
    z_mean, z_sd, ess = {}, {}, []
    for key, x in _arrays(reference, posterior).items():
        known = reference.moments[key]
        error = math.hypot(float(az.mcse(x, method="mean")), known.mcse_mean)
        z_mean[key] = (float(x.mean()) - known.mean) / error
        error = math.hypot(float(az.mcse(x, method="sd")), known.mcse_sd)
        z_sd[key] = (float(x.std(ddof=1)) - known.sd) / error
        ess.append(float(az.ess(x, method="mean")))
    seconds = posterior.info["seconds"]
    return Chains(
        z_mean=z_mean,
        z_sd=z_sd,
        tune=tune,
        draws=draws,
        seconds=seconds["sample"],
        cpu_seconds=cpu_seconds,
        compile_seconds=seconds["trace"] + seconds["compile"],
        min_ess=min(ess),
        divergences=posterior.info["divergences"],
    )


def _fitted(reference: Reference, guide: str, seed: int, settings: Settings, compile: bool) -> Variational:
    """Fit a guide, compare, and ask the diagnosis."""
    from pyro.infer import autoguide

    import zoo
    from zoo.diagnostics import diagnose

    started = time.perf_counter()
    pair = zoo.Pair(reference.model, getattr(autoguide, guide)(reference.model))
    mean_error, sd_ratio = {}, {}
    try:
        posterior = zoo.fit(
            pair,
            reference.data,
            engine="svi",
            seed=seed,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            schedule="cosine",
            dtype="float64",
            compile=compile,
            name=reference.name,
        )
        for key, x in reference.elements(posterior.draws(settings.guide_draws, seed=seed)).items():
            known = reference.moments[key]
            mean_error[key] = (float(x.mean()) - known.mean) / known.sd
            sd_ratio[key] = float(x.std()) / known.sd
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            diagnosis = diagnose(posterior, seed=seed)
        verdict: str = diagnosis.verdict
        answers: dict[str, str] = {a.name: a.use for a in diagnosis.answers}
        marks = {"fail": "!", "warn": "?"}
        reasons = [marks[c.verdict] + c.name for c in diagnosis.checks if c.verdict in marks]
        reasons += [f"error in {c.name}: {c.error}" for c in diagnosis.checks if c.error]
    except ZooError as error:
        verdict, reasons, answers = "failed", [" ".join(str(error).split())], {}
    return Variational(
        guide=guide,
        seed=seed,
        mean_error=mean_error,
        sd_ratio=sd_ratio,
        seconds=time.perf_counter() - started,
        verdict=verdict,
        reasons=reasons,
        answers=answers,
    )


def _line(part: Part) -> str:
    if isinstance(part, Chains):
        return f"largest difference {max(part.z):.2f} errors, {part.min_ess:.0f} effective draws, {part.seconds:.1f} s"
    return f"mean off by {part.worst_mean:.2f} sd, sd ratio {part.worst_ratio:.2f}, verdict '{part.verdict}'"


# ------------------------------------------------------------------------------------------------------------ storage
def _provenance(name: str, settings: Settings) -> dict[str, Any]:
    model = Path(inspect.getfile(MODELS[name.partition("-")[2]])).name
    code = {file: fingerprint(_HERE / file) for file in (model, *_CODE)}
    kept = {k: v for k, v in asdict(settings).items() if k != "guide_seeds"}  # more seeds are added to those measured
    return {"format": FORMAT, "settings": kept, "versions": versions(), "code": code}


def _text(name: str, settings: Settings, parts: Mapping[str, Part]) -> str:
    stored = {key: asdict(part) for key, part in parts.items()}
    return dumps({**_provenance(name, settings), "machine": machine(), "name": name, "parts": stored})


def _kept(name: str, path: Path | None, settings: Settings) -> dict[str, Part]:
    """Return the runs of an earlier call that still hold."""
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise KeyError("format")
        if any(found[key] != value for key, value in json.loads(json.dumps(_provenance(name, settings))).items()):
            return {}
        return {k: (Chains if k == "nuts" else Variational)(**_numbers(part)) for k, part in found["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{path}' is no measurement written by zoo ({type(error).__name__}); move it or choose another folder"
        ) from error


def _numbers(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part with what JSON could not hold, the numbers that are none, as such again."""
    return {
        k: {n: math.nan if x is None else x for n, x in v.items()} if isinstance(v, dict) else v
        for k, v in part.items()
    }
