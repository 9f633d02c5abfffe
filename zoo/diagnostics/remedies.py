"""What to try: a command line and a Python call that repeat a fit with what its checks ask for changed."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.diagnostics.answers import Answer
from zoo.diagnostics.check import Check

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["advised", "fit_command"]

_SVI_ONLY = ("steps", "learning_rate", "batch_size", "restarts", "checkpoint_every", "checkpoint_keep", "num_particles")
_NUTS_ONLY = (
    "chains",
    "tune",
    "draws",
    "target_accept",
    "max_treedepth",
    "sampler",
    "low_rank_mass_matrix",
    "workers",
    "retry",
)
# Options of the command line that take no value: of the sampler, and all others.
_NUTS_FLAGS = ("--low-rank-mass-matrix", "--diagonal-mass-matrix", "--no-retry")
_FLAGS = frozenset({
    *_NUTS_FLAGS, "--overwrite", "--skip-nonfinite", "--checkpoint", "--no-compile", "--report", "--no-report",
    "--day-first", "--month-first",
})  # fmt: skip
_ACCEPT = (0.95, 0.99)
_MOST_FOR_NUTS = 2_000  # latent elements up to which chains are worth proposing
_OF_THE_GUIDE = frozenset({
    "vi_against_nuts", "pareto_k", "reweighted_moments", "pareto_k_rows", "funnel", "simulation_calibration",
    "interval_coverage",
})  # fmt: skip
_OF_THE_PRIOR = frozenset({"prior_predictive_check"})
# Methods that state their own uncertainty, to be tried where another one's predictions do not hold.
_INSTEAD = ("deep_ensemble", "laplace_network", "horseshoe_regression")


def advised(posterior: Posterior, answer: Answer, checks: Sequence[Check]) -> Answer:
    """Add to an answer what could be tried, if it is not already a good one.

    Args:
        posterior: The fit.
        answer: What the checks say together.
        checks: The checks.

    Returns:
        The answer with a command and a call, each empty where there is none to give.
    """
    if answer.use in ("usable", "not meant to be read"):
        return answer
    changes = _changes(posterior, answer, {c.name: c for c in checks})
    if not changes:
        return answer
    return dataclasses.replace(answer, command=fit_command(posterior, changes), python=_call(posterior, changes))


# -------------------------------------------------------------------------------------------------- what to change
def _changes(posterior: Posterior, answer: Answer, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Return options to change; ``method`` and ``hyper`` among them where those are."""
    blamed = [n for n in answer.checks if n in checks and checks[n].verdict in ("warn", "fail")]
    if answer.use == "not examined":
        return _instead_of_a_guide(posterior) if answer.name == "parameters" else {}
    for name in blamed:
        check = checks[name]
        if name == "optimiser_stationarity":
            return _optimiser(posterior, check)
        if name in ("r_hat", "ess", "divergences", "e_bfmi"):
            return _sampler(posterior, checks)
        if name == "restart_agreement":
            return _instead_of_a_guide(posterior) or {"steps": 2 * _steps(posterior)}
        if name in _OF_THE_PRIOR:
            found = _wider_prior(posterior, checks.get("power_scaling", check))
        elif name in _OF_THE_GUIDE:
            found = _guide(posterior, name)
        else:
            found = _another_method(posterior)
        if found:
            return found
    if answer.name == "predictions" and not blamed:  # what speaks against it is the fit, or its parameters
        return _sampler(posterior, checks) if posterior.chains is not None else _instead_of_a_guide(posterior)
    return {}


def _optimiser(posterior: Posterior, check: Check) -> dict[str, Any]:
    value = check.value if isinstance(check.value, Mapping) else {}
    rate = float((posterior.info.get("recipe") or {}).get("learning_rate", 0.01))
    if value.get("finite") is False:
        return {"learning_rate": float(f"{rate / 10:.3g}")}
    if value.get("99% high", 0.0) < 0:  # it rises
        return {"learning_rate": float(f"{rate / 3:.3g}"), "steps": 2 * _steps(posterior)}
    return {"steps": 2 * _steps(posterior)}


def _sampler(posterior: Posterior, checks: Mapping[str, Check]) -> dict[str, Any]:
    info = posterior.info
    verdict = {n: c.verdict for n, c in checks.items()}
    changes: dict[str, Any] = {}
    accept = next((a for a in _ACCEPT if a > float(info.get("target_accept", 0.8)) + 1e-9), None)
    strays = (
        any(verdict.get(n) in ("warn", "fail") for n in ("divergences", "e_bfmi")) or verdict.get("r_hat") == "fail"
    )
    if strays and accept is not None:
        changes["target_accept"] = accept
    elif strays:
        changes |= _uncentred(posterior)
    if verdict.get("r_hat") in ("warn", "fail"):
        changes |= {"tune": 2 * int(info.get("tune", 1_000)), "draws": 2 * int(info.get("draws", 1_000))}
    elif verdict.get("ess") in ("warn", "fail"):
        value = checks["ess"].value
        least = min(v for k, v in value.items() if k.startswith("smallest"))
        times = min(max(math.ceil(500 / max(least, 1.0)), 2), 10)
        changes["draws"] = times * int(info.get("draws", 1_000))
    return changes or ({"target_accept": accept} if accept is not None else {})


def _guide(posterior: Posterior, name: str) -> dict[str, Any]:
    if posterior.chains is None:
        return _instead_of_a_guide(posterior)
    if name == "funnel":
        found = _uncentred(posterior)
        accept = next((a for a in _ACCEPT if a > float(posterior.info.get("target_accept", 0.8)) + 1e-9), None)
        return found or ({"target_accept": accept} if accept else {})
    return {"tune": 2 * int(posterior.info.get("tune", 1_000)), "draws": 2 * int(posterior.info.get("draws", 1_000))}


def _instead_of_a_guide(posterior: Posterior) -> dict[str, Any]:
    """Return the engine that needs no guide, where it can run."""
    if posterior.chains is not None:
        return {"chains": 4} if next(iter(posterior.chains.values())).shape[0] < 2 else {}
    method = posterior.method
    if method is not None:
        if "nuts" in method.engines:
            return {"engine": "nuts"}
        return {"steps": 2 * _steps(posterior)} if _steps(posterior) else {}
    if posterior.num_latents <= _MOST_FOR_NUTS and not _trained_model(posterior):
        return {"engine": "nuts"}
    return {"steps": 2 * _steps(posterior)} if _steps(posterior) else {}


def _trained_model(posterior: Posterior) -> bool:
    """Return whether the model itself has trained parameters, which NUTS would leave at their start."""
    from zoo.diagnostics.adapter import _trace

    with posterior.runs.bound():
        trace = _trace(posterior.pair.model, posterior._prepare(None), {k: v[0] for k, v in posterior.draws(1).items()})
    return bool(trace.param_nodes)


def _uncentred(posterior: Posterior) -> dict[str, Any]:
    if getattr(posterior.hyper, "centred", False) is True:
        return {"hyper": {"centred": False}}
    return {}


def _wider_prior(posterior: Posterior, check: Check) -> dict[str, Any]:
    """Return a hyper-parameter that widens the prior of the site in question, doubled."""
    if posterior.method is None:
        return {}
    numbers = {
        f.name: getattr(posterior.hyper, f.name)
        for f in dataclasses.fields(posterior.hyper)
        if f.name.endswith("scale") and isinstance(getattr(posterior.hyper, f.name), float)
    }
    value = check.value if isinstance(check.value, Mapping) else {}
    site = str(value.get("of", "")).partition("[")[0].removesuffix("_trans")
    own = {"beta0": "intercept_scale", "sigma": "noise_scale"}.get(site, f"{site}_scale")
    return {"hyper": {own: 2 * numbers[own]}} if own in numbers else {}


def _another_method(posterior: Posterior) -> dict[str, Any]:
    from zoo import registry
    from zoo.tasks import of

    if posterior.method is None:
        return {}
    task = of(posterior.method, posterior.data)
    known = {e.name for e in registry.entries()}
    for name in _INSTEAD:
        if name == posterior.method.name or name not in known or task is None:
            continue
        other = registry.get(name)
        if task.name in (other.task, *getattr(other, "other_tasks", ())):
            return {"method": name}
    return {}


def _steps(posterior: Posterior) -> int:
    return int(posterior.info.get("steps") or len(posterior.losses))


# ---------------------------------------------------------------------------------------------- the command line
def fit_command(posterior: Posterior, changes: Mapping[str, Any]) -> str:
    """Return the command line of a fit with some options changed.

    Args:
        posterior: The fit.
        changes: Option -> value; ``method`` and ``hyper``, a mapping, among them.

    Returns:
        The command, which writes to a new folder; empty for a fit that the command line cannot repeat.
    """
    words = _words(posterior)
    if not words or any(k in changes for k in ("num_particles",)):
        return ""
    engine = changes.get("engine", posterior.engine)
    given = _parsed(words[2:])
    name = str(changes.get("method", given[0]))
    options = [(k, v) for k, v in given[1] if k not in ("--out", "--overwrite")]
    if name != given[0]:
        # Another method has its own engine, recipe and hyper-parameters.
        ours = {_flag(k) for k in (*_SVI_ONLY, *_NUTS_ONLY, "engine", "hyper", "dtype", "skip_nonfinite")}
        ours |= set(_NUTS_FLAGS)
        options = [(k, v) for k, v in options if k not in ours]
    elif engine != posterior.engine:
        other = _SVI_ONLY if engine == "nuts" else _NUTS_ONLY
        ours = {*(_flag(k) for k in (*other, "dtype", "skip_nonfinite")), *_NUTS_FLAGS}
        options = [(k, v) for k, v in options if k not in ours]
    for key, value in changes.items():
        if key == "hyper":
            for field, new in value.items():
                options = [(k, v) for k, v in options if not (k == "--hyper" and str(v).startswith(f"{field}="))]
                options.append(("--hyper", f"{field}={new}"))
        elif key != "method":
            options = [(k, v) for k, v in options if k != _flag(key)]
            options.append((_flag(key), str(value)))
    parts = ["zoo", "fit", name]
    for flag, text in options:
        parts += [flag] if text is None else [flag, text]
    return shlex.join(parts)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _words(posterior: Posterior) -> list[str]:
    """Return the words of the command that made the fit, or would make it."""
    told = posterior.info.get("command")
    if told:
        words = shlex.split(str(told))
        at = next((i for i in range(len(words) - 1) if words[i] == "zoo" and words[i + 1] == "fit"), None)
        if at is None or "--resume" in words:
            return []
        return words[at:]
    if posterior.method is None or posterior.info.get("init") or posterior.data.origin != "bundled":
        return []
    words = ["zoo", "fit", posterior.name, "--data", posterior.data.name, "--engine", posterior.engine]
    for key, value in _options(posterior).items():
        if key == "hyper":
            for field, one in value.items():
                text = ",".join(map(str, one)) if isinstance(one, tuple | list) else str(one)
                words += ["--hyper", f"{field}={text}"]
        else:
            words += [_flag(key), str(value)]
    return words


def _parsed(words: Sequence[str]) -> tuple[str, list[tuple[str, str | None]]]:
    """Return the method and the options of a command, each with its value."""
    name = ""
    found: list[tuple[str, str | None]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            name = word
        elif "=" in word:
            flag, _, value = word.partition("=")
            found.append((flag, value))
        elif word in _FLAGS or not rest:
            found.append((word, None))
        else:
            found.append((word, rest.pop(0)))
    return name, found


# --------------------------------------------------------------------------------------------------- in Python
def _options(posterior: Posterior) -> dict[str, Any]:
    """Return what a fit was made with, where that is not the default."""
    info, found = posterior.info, {}
    if posterior.engine == "svi":
        base = dataclasses.asdict(posterior.method.recipe) if posterior.method is not None else {}
        recipe = info.get("recipe") or {}
        found = {
            k: recipe[k] for k in ("steps", "learning_rate", "batch_size") if k in recipe and recipe[k] != base.get(k)
        }
    else:
        usual = {"chains": 4, "draws": 1_000, "tune": 1_000, "max_treedepth": 10}
        found = {k: info[k] for k, v in usual.items() if k in info and info[k] != v}
        if info.get("asked_accept") is not None:
            found["target_accept"] = info["asked_accept"]
    if info.get("seed"):
        found["seed"] = info["seed"]
    if posterior.method is not None and posterior.hyper is not None:
        default = posterior.method.hyper()
        own = {f.name: getattr(posterior.hyper, f.name) for f in dataclasses.fields(posterior.hyper)}
        hyper = {k: v for k, v in own.items() if v != getattr(default, k)}
        if hyper:
            found["hyper"] = hyper
    return found


def _call(posterior: Posterior, changes: Mapping[str, Any]) -> str:
    """Return the call of ``zoo.fit`` with some options changed."""
    engine = str(changes.get("engine", posterior.engine))
    bundled = posterior.data.origin == "bundled"
    data = repr(posterior.data.name) if bundled else "posterior.data"
    if "method" in changes:
        seed = {"seed": posterior.info["seed"]} if posterior.info.get("seed") else {}
        return _written([repr(changes["method"]), data], seed)
    options = {k: v for k, v in _options(posterior).items() if k not in (_SVI_ONLY if engine == "nuts" else _NUTS_ONLY)}
    hyper = {**options.pop("hyper", {}), **changes.get("hyper", {})}
    options |= {k: v for k, v in changes.items() if k not in ("engine", "hyper")}
    if hyper:
        options["hyper"] = hyper
    if posterior.method is not None:
        first = repr(posterior.name)
    else:
        first = "zoo.Pair(model)" if engine == "nuts" and posterior.engine != "nuts" else "pair"
    return _written([first, data], {"engine": engine, **options})


def _written(first: Sequence[str], options: Mapping[str, Any]) -> str:
    return f"zoo.fit({', '.join([*first, *(f'{k}={v!r}' for k, v in options.items())])})"
