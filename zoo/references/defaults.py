"""``zoo references --defaults N``: how often NUTS at its default settings is right, on every posterior and N seeds."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.claims import fingerprint, machine, versions
from zoo.errors import DataError, UnknownNameError, suggest
from zoo.references.models import MODELS
from zoo.references.posteriors import load
from zoo.references.stored import names as stored_names
from zoo.reports.files import dumps, write_texts

__all__ = ["HEADING", "Run", "measure", "section"]

HEADING = "## NUTS at its defaults"
FORMAT = 1
# Acceptance, set before anything was measured.
R_HAT, FEW, NONE, RATE = 1.01, 3.0, 4.5, 0.95
_CHANCE = 0.0027  # of a normal error beyond three


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One posterior and seed, 4 chains of 1,000 tuning and 1,000 kept iterations.

    Args:
        name: Of the posterior.
        seed: Of the fit.
        r_hat: Largest over the reference's parameters, rank-normalised and split.
        divergences: Divergent draws among those kept.
        numbers: Means and standard deviations that were compared.
        beyond: How many of them differ by more than three combined Monte Carlo errors.
        worst: The largest difference, in such errors.
        min_ess: Least effective number of draws, bulk.
        seconds: Of sampling.
        tries: What was drawn again, in words.
    """

    name: str
    seed: int
    r_hat: float
    divergences: int
    numbers: int
    beyond: int
    worst: float
    min_ess: float
    seconds: float
    tries: Sequence[str]

    @property
    def moments(self) -> bool:
        """Whether no more moments are off than chance explains."""
        from scipy.stats import binom

        return self.worst <= NONE and self.beyond <= int(binom.ppf(0.999, self.numbers, _CHANCE))

    @property
    def right(self) -> bool:
        """Whether everything is as it should be; Stan's reference draws have no divergence on any posterior."""
        return self.r_hat < R_HAT and self.divergences == 0 and self.moments


def measure(
    *,
    seeds: int,
    names: Sequence[str] | None = None,
    out: Path | None = None,
    compile: bool = True,
    progress: Callable[[str], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Run, ...]:
    """Fit every posterior with ``zoo.fit(engine="nuts")`` and nothing else said.

    With ``out``, ``defaults.json`` is written after every run, and runs found there, of the same code and versions, are
    not made again.

    Args:
        seeds: Fits of each posterior, with the seeds 0, 1, ....
        names: Posteriors; ``None``: all that are bundled.
        out: Folder.
        compile: Whether to compile.
        progress: Told a line about every run.
        options: Of the fit, where they are not the defaults.

    Returns:
        The runs.

    Raises:
        UnknownNameError: If a posterior is not bundled.
        DataError: If the file in the folder is none of ours.
    """
    known = stored_names(guides=False)
    chosen = list(dict.fromkeys(names or known))
    for name in chosen:
        if name not in known:
            raise UnknownNameError(f"posterior '{name}' is not bundled{suggest(name, known)}")
    say = progress or (lambda _: None)
    path = None if out is None else out / "defaults.json"
    kept = _kept(path, options or {})
    for seed in range(seeds):
        for name in chosen:
            key = (name, seed)
            if key not in kept:
                kept[key] = _run(name, seed, compile, options or {})
                if path is not None:
                    stored = [asdict(kept[k]) | {"code": _code(k[0])} for k in sorted(kept)]
                    write_texts({path: dumps({**_provenance(options or {}), "machine": machine(), "runs": stored})})
            run = kept[key]
            say(f"{name}, seed {seed}: R-hat {run.r_hat:.3f}, {run.divergences} divergences, {run.worst:.1f} errors")
    return tuple(kept[name, seed] for name in chosen for seed in range(seeds))


def _run(name: str, seed: int, compile: bool, options: Mapping[str, Any]) -> Run:
    import arviz as az

    import zoo
    from zoo.inference.tries import sentences

    reference = load(name)
    fit = zoo.fit(
        zoo.Pair(reference.model), reference.data, engine="nuts", seed=seed, compile=compile, name=name, **options
    )
    assert fit.chains is not None
    r_hat, ess, errors = [], [], []
    for key, value in reference.elements(fit.chains).items():
        x, known = np.asarray(value.double()), reference.moments[key]
        r_hat.append(float(az.rhat(x)))
        ess.append(float(az.ess(x)))
        for ours, right, error in (
            (x.mean(), known.mean, math.hypot(float(az.mcse(x, method="mean")), known.mcse_mean)),
            (x.std(ddof=1), known.sd, math.hypot(float(az.mcse(x, method="sd")), known.mcse_sd)),
        ):
            z = abs(float(ours) - right) / error
            errors.append(z if z == z else math.inf)
    return Run(
        name=name,
        seed=seed,
        r_hat=max(r if r == r else math.inf for r in r_hat),
        divergences=int(fit.info["divergences"]),
        numbers=len(errors),
        beyond=sum(z > FEW for z in errors),
        worst=max(errors),
        min_ess=min(ess),
        seconds=float(fit.info["seconds"]["sample"]),
        tries=sentences(fit.info["tries"]),
    )


def _provenance(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "versions": versions(), "options": dict(options)}


def _code(name: str) -> str:
    return fingerprint(Path(inspect.getfile(MODELS[name.partition("-")[2]])))


def _kept(path: Path | None, options: Mapping[str, Any]) -> dict[tuple[str, int], Run]:
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if any(found[key] != value for key, value in _provenance(options).items()):
            return {}
        runs = [r for r in found["runs"] if r.pop("code") == _code(r["name"])]
        return {(r["name"], r["seed"]): Run(**r) for r in runs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{path}' is no measurement written by zoo ({type(error).__name__}); move it or choose another folder"
        ) from error


def section(runs: Sequence[Run], command: str) -> str:
    """Return the part of the page that says how often NUTS was right.

    Args:
        runs: As measured.
        command: What was run.

    Returns:
        A heading, what is asked, the rate and a table.
    """
    right = sum(r.right for r in runs)
    where = machine()
    posteriors, seeds, bundled = {r.name for r in runs}, {r.seed for r in runs}, stored_names(guides=False)
    verdict = "as it should be" if right >= RATE * len(runs) else "not as it should be"
    if right >= RATE * len(runs) and not posteriors >= {*bundled}:  # the cheap ones are the easy ones
        verdict = "which says nothing of the posteriors that were not run"
    asked = (
        f'Made by `{command}`: `zoo.fit(engine="nuts")` with nothing else said, that is 4 chains of 1,000 tuning',
        f"and 1,000 kept iterations. A run is right if R-hat is below {R_HAT} for every parameter, no draw diverges,",
        "and the means and standard deviations are those of the reference: none is off by more than",
        f"{NONE} combined Monte Carlo errors, and no more by more than {FEW:g} than chance explains (99.9% quantile).",
        f"{RATE:.0%} of the runs should be right. Chains that diverge, lie where there is nothing of the posterior, or",
        "move slowly along a ridge are drawn again; the last column counts the runs where that happened.",
        f"Run were {len(posteriors)} of the {len(bundled)} bundled posteriors with",
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} each.",
    )
    found = (
        f"**{right} of {len(runs)} runs ({right / len(runs):.0%}) are right**:",
        f"{verdict}.",
        f"R-hat is below {R_HAT} in {sum(r.r_hat < R_HAT for r in runs)},",
        f"no draw diverges in {sum(r.divergences == 0 for r in runs)},",
        f"the moments are right in {sum(r.moments for r in runs)}.",
    )
    lines = [
        HEADING,
        "",
        " ".join(asked),
        "",
        " ".join(found),
        "",
        "| posterior | runs | right | R-hat, largest | divergences | beyond 3 errors | largest | least ESS | median s "
        "| drawn again |",
        "|---|---:|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(r.name for r in runs):
        of = [r for r in runs if r.name == name]
        lines.append(
            f"| {name} | {len(of)} | {sum(r.right for r in of)} | {max(r.r_hat for r in of):.3f} | "
            f"{' / '.join(str(r.divergences) for r in of)} | "
            f"{' / '.join(str(r.beyond) for r in of)} of {of[0].numbers} | {max(r.worst for r in of):.1f} | "
            f"{min(r.min_ess for r in of):,.0f} | {float(np.median([r.seconds for r in of])):.1f} | "
            f"{sum(bool(r.tries) for r in of)} |"
        )
    used = ", ".join(f"{k} {v}" for k, v in versions().items())
    lines += ["", f"Measured on {where['processor']}, {where['cores']} cores, {where['system']}; {used}."]
    return "\n".join(lines) + "\n"
