"""``zoo reproduce``: measure what a paper claims, over seeds, and write the table."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.errors import DataError
from zoo.types import Acceptance, Claim, Verdict

__all__ = ["ClaimResult", "Reproduction", "SeedRun", "fingerprint", "machine", "reproduce", "versions"]

_MARKER = "<!-- claims -->"
_END = "<!-- end of claims -->"
_FORMAT = "pyro-zoo reproduction 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRun:
    """What one seed measured.

    Args:
        seed: The seed.
        values: Measured values by name.
        seconds: Wall-clock time.
    """

    seed: int
    values: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimResult:
    """One claim with its runs and its verdict.

    Args:
        statement: The claim in one line.
        published: The published values, as printed.
        source: Paper and table.
        acceptance: Each condition in words.
        met: Whether each condition is met.
        verdict: ``reproduced``, ``partly`` or ``not reproduced``.
        runs: One entry per seed.
    """

    statement: str
    published: str
    source: str
    acceptance: tuple[str, ...]
    met: tuple[bool, ...]
    verdict: Verdict
    runs: tuple[SeedRun, ...]

    def mean(self, key: str) -> float:
        """Return the mean of a value over the seeds.

        Args:
            key: Name of the value.

        Returns:
            The mean; NaN where a seed lacks the value.
        """
        return statistics.fmean(run.values.get(key, math.nan) for run in self.runs)

    def sd(self, key: str) -> float:
        """Return the standard deviation of a value over the seeds.

        Args:
            key: Name of the value.

        Returns:
            The sample standard deviation; NaN for a single seed.
        """
        values = [run.values.get(key, math.nan) for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """The measured claims of one method.

    Args:
        name: Method.
        title: Its title.
        paper: BibTeX key.
        fast: Whether this is the fast subset.
        claims: One result per claim.
        settings: What the values depend on: seeds are only reused when these are equal.
        machine: Where it ran.
        versions: Versions of the packages.
        command: The command that repeats it.
        path: The JSON file, or ``None`` when nothing was written.
    """

    name: str
    title: str
    paper: str
    fast: bool
    claims: tuple[ClaimResult, ...]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    path: Path | None = None

    @property
    def verdict(self) -> Verdict:
        """``reproduced`` if every claim is, ``not reproduced`` if none is even partly, else ``partly``."""
        found = {claim.verdict for claim in self.claims}
        if found == {"reproduced"}:
            return "reproduced"
        return "not reproduced" if found == {"not reproduced"} else "partly"

    @property
    def seconds(self) -> float:
        """Seconds of all runs together, also of those measured earlier; a run shared by claims counts once."""
        shared = {(run.seed, tuple(sorted(run.values.items())), run.seconds) for c in self.claims for run in c.runs}
        return sum(run[2] for run in shared)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-able dict.

        Returns:
            The reproduction with its claims, verdicts, settings and provenance.
        """
        claims = []
        for claim in self.claims:
            keys = _keys(claim)
            summary = {k: {"mean": claim.mean(k), "sd": claim.sd(k)} for k in keys}
            claims.append({**asdict(claim), "summary": summary})
        return {
            "format": _FORMAT,
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "fast": self.fast,
            "verdict": self.verdict,
            "seconds": self.seconds,
            "claims": claims,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "command": self.command,
        }

    def to_markdown(self) -> str:
        """Return the claims as Markdown tables.

        Returns:
            The text that stands in the method's page.
        """
        lines: list[str] = []
        shown: list[tuple[tuple[SeedRun, ...], int]] = []
        for number, claim in enumerate(self.claims, 1):
            lines += [f"### Claim {number}: {claim.statement}", ""]
            lines += [f"Published: {claim.published} ({claim.source}). Here: **{claim.verdict}**.", ""]
            first = next((n for runs, n in shown if runs == claim.runs), None) if claim.runs else None
            if first is None:
                shown.append((claim.runs, number))
                lines += _table(claim)
            else:
                lines.append(f"Measured in the runs of claim {first}.")
            lines.append("")
            for text, met in zip(claim.acceptance, claim.met, strict=True):
                lines.append(f"- {'met' if met else 'not met'}: {text}")
            lines.append("")
        where = f"{self.machine['processor']}, {self.machine['cores']} cores"
        used = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        kind = "Fast subset, measured" if self.fast else "Measured"
        lines.append(f"{kind} by `{self.command}` in {self.seconds:.0f} s on {where}; {used}.")
        return "\n".join(lines) + "\n"


def _table(claim: ClaimResult) -> list[str]:
    """Return a Markdown table of what was measured, a column for each seed."""
    seeds = [f"seed {run.seed}" for run in claim.runs]
    lines = [f"| measured | {' | '.join(seeds)} | mean ± sd |", "|---|" + "---:|" * (len(seeds) + 1)]
    for key in _keys(claim):
        cells = [_show(run.values.get(key, math.nan)) for run in claim.runs]
        sd = claim.sd(key)
        spread = f" ± {_show(sd)}" if math.isfinite(sd) else ""
        label = key.replace("|", "\\|")
        lines.append(f"| {label} | {' | '.join(cells)} | {_show(claim.mean(key))}{spread} |")
    cells = [f"{run.seconds:.1f}" for run in claim.runs]
    return [*lines, f"| seconds | {' | '.join(cells)} | {_show(statistics.fmean(r.seconds for r in claim.runs))} |"]


def reproduce(
    name: str,
    *,
    seeds: int | Sequence[int] | None = None,
    fast: bool = False,
    out: str | Path | None = None,
    docs: str | Path | None = None,
    progress: Callable[[str], None] | bool = False,
) -> Reproduction:
    """Measure every claim of a method over seeds.

    A seed that the JSON file in ``out`` already holds, measured under equal settings (method's code, package versions,
    ``fast``), is not run again; the file is written after every seed, so that an interrupted run goes on where it was.

    Args:
        name: Registry name.
        seeds: How many seeds (0, 1, ...), or the seeds themselves; ``None`` takes each claim's own number, or one if
            ``fast``.
        fast: Measure the small subset that the tests run.
        out: Folder for ``NAME.json`` and ``NAME.md``; ``None`` writes nothing.
        docs: A Markdown page whose block after ``<!-- claims -->`` is replaced by the table.
        progress: ``True`` prints a line per seed; a function receives the line.

    Returns:
        Runs, verdicts and provenance.

    Raises:
        DataError: If the method makes no claims, ``seeds`` is empty, or a file cannot be read or written.
    """
    from zoo import registry

    method = registry.get(name)
    entry = next(e for e in registry.entries() if e.name == name)
    if not method.claims:
        raise DataError(f"'{name}' states no claims; `zoo show {name}` lists what it has")
    chosen = _seeds(seeds)
    page = None if docs is None else Path(docs)
    if page is not None:
        _split_page(page)
    say: Callable[[str], None] = progress if callable(progress) else print if progress else lambda _: None
    path = None if out is None else Path(out) / f"{name}.json"
    settings = {"fast": fast, "code": fingerprint(entry.path), "versions": versions()}
    kept = _kept(path, settings)
    runs: dict[tuple[str, int], SeedRun] = {}

    def result() -> Reproduction:
        found = []
        for i, claim in enumerate(method.claims):
            mine = tuple(runs[_key(claim, i), s] for s in _of(claim, chosen, fast) if (_key(claim, i), s) in runs)
            values = [run.values for run in mine]
            found.append(
                ClaimResult(
                    statement=claim.statement,
                    published=claim.published,
                    source=claim.source,
                    acceptance=tuple(_words(a) for a in claim.acceptance),
                    met=tuple(a.met(values) for a in claim.acceptance),
                    verdict=claim.verdict(values),
                    runs=mine,
                )
            )
        return Reproduction(
            name=name,
            title=method.title,
            paper=method.paper,
            fast=fast,
            claims=tuple(found),
            settings=settings,
            machine=machine(),
            versions=versions(),
            command=_command(name, chosen, fast),
            path=path,
        )

    def write(*, whole: bool) -> Reproduction:
        from zoo.reports.files import dumps, write_texts

        now = result()
        if path is not None:
            stored = [
                {"key": k, "seed": s, "values": dict(r.values), "seconds": r.seconds}
                for (k, s), r in {**kept, **runs}.items()
            ]
            texts = {path: dumps({**now.to_json(), "complete": whole, "stored": stored})}
            if whole:
                texts[path.with_suffix(".md")] = f"# {method.title}: claims\n\n{now.to_markdown()}"
            write_texts(texts)
        return now

    write(whole=False)  # an unwritable folder shows before hours of work, not after
    for i, claim in enumerate(method.claims):
        key = _key(claim, i)
        for seed in _of(claim, chosen, fast):
            label = f"claim {i + 1} of {len(method.claims)}, seed {seed}"
            if (key, seed) in runs:
                continue
            if (key, seed) in kept:
                runs[key, seed] = kept[key, seed]
                say(f"{label}: measured before")
                continue
            start = time.perf_counter()
            values = {str(k): float(v) for k, v in claim.measure(seed, fast).items()}
            runs[key, seed] = SeedRun(seed=seed, values=values, seconds=time.perf_counter() - start)
            shown = ", ".join(f"{k} {_show(v)}" for k, v in values.items())
            say(f"{label}: {shown} ({runs[key, seed].seconds:.1f} s)")
            write(whole=False)
    final = write(whole=True)
    if page is not None:
        _update_page(page, final.to_markdown())
    return final


# ------------------------------------------------------------------------------------------------------ settings
def _seeds(seeds: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if seeds is None:
        return None
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(dict.fromkeys(seeds))
    if not chosen or min(chosen) < 0:
        raise DataError(f"seeds is {seeds!r}; expected a number of at least 1, or different seeds of at least 0")
    return chosen


def _of(claim: Claim, chosen: tuple[int, ...] | None, fast: bool) -> tuple[int, ...]:
    return chosen if chosen is not None else tuple(range(1 if fast else claim.seeds))


def _key(claim: Claim, index: int) -> str:
    # Claims that share a function of the module share its runs.
    name = getattr(claim.measure, "__qualname__", "")
    return name if name.isidentifier() else f"claim {index + 1}"


def _kept(path: Path | None, settings: Mapping[str, Any]) -> dict[tuple[str, int], SeedRun]:
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise KeyError("format")
        if found["settings"] != settings:
            return {}
        return {
            (r["key"], r["seed"]): SeedRun(
                seed=r["seed"],
                values={k: math.nan if v is None else float(v) for k, v in r["values"].items()},
                seconds=r["seconds"],
            )
            for r in found["stored"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{path}' is no reproduction written by zoo ({type(error).__name__}); move it or choose another folder"
        ) from error


class _Essence(ast.NodeTransformer):
    """Drop what cannot change a measured value: docstrings and the wording and acceptance of claims."""

    def _undocumented(self, node: Any) -> Any:
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        return node

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _undocumented

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "Claim":
            node.keywords = [k for k in node.keywords if k.arg == "measure"]
        return node


def fingerprint(path: Path) -> str:
    """Return a digest of a method's code, without docstrings and the wording of claims.

    Args:
        path: The method's file.

    Returns:
        Sixteen hexadecimal digits.
    """
    tree = _Essence().visit(ast.parse(path.read_text(encoding="utf-8")))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions that a measurement depends on.

    Returns:
        Package -> version.
    """
    from zoo import __version__

    found = {"pyro-zoo": __version__, "python": platform.python_version()}
    for package in ("torch", "pyro-ppl", "nutpie", "arviz"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return where a measurement runs.

    Returns:
        Processor, cores and system.
    """
    processor = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        named = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
        processor = named[1].strip() if named else processor
    except OSError:
        pass
    return {"processor": processor, "cores": os.cpu_count() or 1, "system": f"{platform.system()} {platform.machine()}"}


def _command(name: str, chosen: tuple[int, ...] | None, fast: bool) -> str:
    parts = [f"zoo reproduce {name}"]
    if chosen is not None:
        parts.append(f"--seeds {len(chosen)}")
    return " ".join([*parts, *(["--fast"] if fast else [])])


# ---------------------------------------------------------------------------------------------------------- text
def _keys(claim: ClaimResult) -> list[str]:
    return list(dict.fromkeys(key for run in claim.runs for key in run.values))


def _show(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _words(acceptance: Acceptance) -> str:
    parts, errors = [], acceptance.errors
    near = f" by more than {errors:g} standard error{'s' if errors != 1 else ''}" if errors else ""
    if math.isfinite(acceptance.low):
        parts.append(f"at least {acceptance.low:g}" + (f", or not below{near}" if near else ""))
    if math.isfinite(acceptance.high):
        parts.append(f"at most {acceptance.high:g}" + (f", or not above{near}" if near else ""))
    below, above = ("not above", "not below") if acceptance.errors else ("below", "above")
    slack = near + (f" (within {acceptance.slack:g})" if acceptance.slack else "")
    if acceptance.below is not None:
        parts.append(f"{below} {acceptance.below}{slack}")
    if acceptance.above is not None:
        parts.append(f"{above} {acceptance.above}{slack}")
    what = "mean and median" if acceptance.median else "mean"
    return f"{what} of {acceptance.key} {' and '.join(parts) or 'finite'}"


def _split_page(page: Path) -> tuple[str, str]:
    # What stands before and after the block of claims of a Markdown page.
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot read '{page}': {error.strerror}; the page must exist and hold the line {_MARKER}"
        ) from error
    before, marker, rest = text.partition(_MARKER)
    if not marker:
        raise DataError(f"'{page}' has no line {_MARKER}; add it where the table of claims belongs")
    if _END in rest:
        return before + marker, rest.partition(_END)[2]
    following = re.search(r"^##? ", rest, flags=re.MULTILINE)
    return before + marker, "\n\n" + rest[following.start() :] if following else "\n"


def _update_page(page: Path, table: str) -> None:
    from zoo.reports.files import write_texts

    before, after = _split_page(page)
    write_texts({page: f"{before}\n{table}{_END}{after}"})
