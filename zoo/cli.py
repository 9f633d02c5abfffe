"""The command ``zoo``. Nothing heavy is imported before a command needs it: ``zoo list`` must stay instant."""

from __future__ import annotations

import ast
import dataclasses
import errno
import json as jsonlib
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from zoo import __version__, outputs, registry
from zoo.errors import ArtifactError, DataError, PairError, RankError, UnknownNameError, ZooError, suggest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from zoo.inference.distributed import Ranks
    from zoo.inference.posterior import Posterior
    from zoo.types import Dataset, Diagnostic, Method

__all__ = ["app", "main"]

_FLAGS = ("--quiet", "-q", "--json", "--debug")
_EPILOG = (
    "Exit codes: 0 fine, 1 checks failed, 2 usage or bad input. "
    "--quiet, --json and --debug work before or after a command."
)


# ---------------------------------------------------------------------------------------------- errors and output
@dataclass(frozen=True, slots=True)
class Say:
    """Where a command's words go: results on stdout (or one JSON object), everything else on stderr.

    Args:
        quiet: Results only, as bare as possible.
        json: One JSON object on stdout and nothing else there.
        debug: Tracebacks.
    """

    quiet: bool = False
    json: bool = False
    debug: bool = False

    def note(self, text: str) -> None:
        """Print a line for the person who waits, on stderr.

        Args:
            text: The line.
        """
        if not self.quiet:
            typer.echo(text, err=True)

    def result(self, values: Any, *shown: Any, bare: str | None = None) -> None:
        """Print a result: JSON of ``values``, or what is ``shown`` for people.

        Args:
            values: JSON-able result.
            *shown: What rich prints instead; strings are printed as they are.
            bare: Text under ``--quiet``.
        """
        if self.json:
            from zoo.reports.files import plain

            typer.echo(jsonlib.dumps(plain(values), ensure_ascii=False, allow_nan=False))
        elif self.quiet and bare is not None:
            if bare:
                typer.echo(bare)
        else:
            console = _console()
            for item in shown:
                console.print(item, markup=False, highlight=False) if isinstance(item, str) else console.print(item)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal or "COLUMNS" in os.environ else 120)


def _table(*header: str, title: str | None = None, right: Sequence[int] = ()) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    wide = max(len(title or "") - sum(map(len, header)) - 3 * len(header), 0)
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(
            name, justify="right" if i in right else "left", overflow="fold", min_width=len(name) + (0 if i else wide)
        )
    return table


def _add(table: Table, *cells: str) -> None:
    from rich.markup import escape

    table.add_row(*map(escape, cells))


def _number(value: Any) -> str:
    from zoo.reports.page import show

    return show(value)


def _rank() -> int | None:
    """Return which of several processes of ``torchrun`` this one is; ``None``: it is alone."""
    env = os.environ
    launched = all(name in env for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(env["RANK"]) if launched and env["WORLD_SIZE"] != "1" else None


def _fail(error: BaseException | str) -> NoReturn:
    typer.echo(f"error: {_in_flags(' '.join(str(error).split()))}", err=True)
    raise typer.Exit(2)


def _in_flags(text: str) -> str:
    """Return a message in the command line's own words: ``--drop key`` for the argument ``drop=['key']``.

    Args:
        text: What the library says.

    Returns:
        The message.
    """
    if "=" not in text:
        return text
    command = typer.main.get_command(app).commands["fit"]  # type: ignore[attr-defined]
    options = {param.name: param for param in command.params if param.param_type_name == "option"}

    def flags(found: re.Match[str]) -> str:
        option, value = options[found[1]], ast.literal_eval(found[2])
        if isinstance(value, bool):
            names = option.opts if value else option.secondary_opts
            return names[0] if names else found[0]
        values = value if isinstance(value, list) else [value]
        return " ".join(f"{option.opts[0]} {shlex.quote(str(v))}" for v in values)

    quoted = r"'[^'\\]*'|\"[^\"\\]*\""
    return re.sub(rf"(?<![\w.-])({'|'.join(options)})=(\[(?:{quoted})\]|{quoted}|[0-9.]*[0-9]|True|False)", flags, text)


def _fail_usage(error: Exception) -> None:
    """Fail in one line if this is wrong usage, which has a format of its own, of many lines."""
    where = getattr(error, "ctx", None)
    if getattr(error, "exit_code", 0) != 2 or where is None or type(error).__name__ == "NoArgsIsHelpError":
        return
    text = error.format_message().strip().rstrip(".")  # type: ignore[attr-defined]
    _fail(f"{text[:1].lower()}{text[1:]}; see {where.command_path} --help")


class _Group(TyperGroup):
    """The root command: global flags anywhere on the line, and one line for every error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        flags = [a for a in args[:end] if a in _FLAGS]
        try:
            return super().parse_args(ctx, flags + [a for a in args[:end] if a not in _FLAGS] + args[end:])
        except Exception as error:
            _fail_usage(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            if not _rank():
                typer.echo(f"error: interrupted{stop.args[0] if stop.args else ''}", err=True)
            raise typer.Exit(128 + signal.SIGINT) from None
        except Exception as error:
            debug = bool(ctx.params.get("debug"))
            if not debug:
                _fail_usage(error)
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort) or debug:
                raise
            if _rank() and isinstance(error, ZooError) and not (isinstance(error, RankError) and error.lost):
                raise typer.Exit(2) from None  # rank 0 says it
            if isinstance(error, ZooError):
                _fail(error)
            if isinstance(error, OSError):
                if error.errno == errno.EPIPE:
                    raise
                where = f" '{error.filename}'" if error.filename else ""
                _fail(f"{error.strerror or error}{where}")
            _fail(f"{type(error).__name__}: {error} (not expected; --debug shows where)")


app = typer.Typer(
    name="zoo",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
    help="Published probabilistic deep-learning methods: fit one to data, and see whether to trust the posterior.",
)
_data = typer.Typer(no_args_is_help=True, help="Bundled data sets.")
app.add_typer(_data, name="data")
_bench = typer.Typer(no_args_is_help=True, help="Methods side by side on the same data.")
app.add_typer(_bench, name="bench")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pyro-zoo {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else there.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = Say(quiet=quiet or json, json=json, debug=debug)
    if _rank() is not None and ctx.invoked_subcommand != "fit":
        raise DataError(f"only `zoo fit` runs on several ranks; start `zoo {ctx.invoked_subcommand}` without torchrun")


_MethodFile = Annotated[
    Path | None, typer.Option("--method", help="File of the method, .py, for a fit of a method of your own.")
]


# ------------------------------------------------------------------------------------------------------ catalogue
@app.command("list", epilog=_EPILOG)
def list_(
    ctx: typer.Context,
    task: Annotated[str | None, typer.Option(help="Only methods of this task.", autocompletion=_complete_tasks)] = None,
) -> None:
    """List the methods and diagnostics."""
    found = (*registry.entries(), *registry.installed())
    if task is not None:
        tasks = {e.task for e in found}
        if task not in tasks:
            raise UnknownNameError(f"no method has the task '{task}'{suggest(task, tasks)}")
        found = tuple(e for e in found if e.task == task)
    table = _table("name", "task", "title")
    table.columns[0].no_wrap = True  # a name is what is typed next
    for e in found:
        _add(table, e.name, e.task, e.title if e.kind == "method" else f"{e.title} ({e.kind})")
    values = [{"name": e.name, "title": e.title, "task": e.task, "kind": e.kind, "paper": e.paper} for e in found]
    ctx.obj.result(values, table, bare="\n".join(e.name for e in found))


class _Engine(StrEnum):
    svi = "svi"
    nuts = "nuts"


class _MissingEntries(StrEnum):
    refuse = "refuse"
    drop = "drop"
    level = "level"
    keep = "keep"


_Missing = Annotated[
    _MissingEntries,
    typer.Option(
        help="What to do with missing entries of features: refuse them, drop their rows, make a missing category a "
        "level of its own (and keep missing numbers), or keep all, for methods that impute."
    ),
]
_Categorical = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN", help="Column of your own file that holds names, whatever they look like; may be repeated."
    ),
]
_Na = Annotated[
    list[str] | None,
    typer.Option(metavar="WORD", help="Word of your own file that means a missing entry, such as ?; may be repeated."),
]
_DayFirst = Annotated[
    bool | None,
    typer.Option(
        "--day-first/--month-first", help="Whether 03/04/2020 is in April or March, where the rows do not say."
    ),
]
_Rare = Annotated[
    int,
    typer.Option(min=0, help="Pool categories of your own file with fewer training rows than this; 0 pools none."),
]


class _Task(StrEnum):
    classification = "classification"
    density = "density"
    regression = "regression"


_TaskOf = Annotated[
    _Task | None,
    typer.Option(help="What your own file is for. Default: few distinct integers and text are classes."),
]
_GroupOf = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Column of your own file that says the group of a row, for methods that know groups."
    ),
]
_SensitiveOf = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Column of your own file of which a representation shall tell nothing, such as sex."
    ),
]
_Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Column of your own file to leave out; the option may be repeated."),
]


def _complete_methods(incomplete: str) -> list[tuple[str, str]]:
    return [(e.name, e.title) for e in registry.entries() if e.name.startswith(incomplete)]


def _complete_data(incomplete: str) -> list[tuple[str, str]]:
    from zoo.datasets import catalogue

    return [(e.name, e.description) for e in catalogue() if e.name.startswith(incomplete)]


def _complete_references(incomplete: str) -> list[str]:
    from zoo.references import names

    return [name for name in names() if name.startswith(incomplete)]


def _complete_tasks(incomplete: str) -> list[str]:
    from zoo import tasks

    return [name for name in tasks.names() if name.startswith(incomplete)]


_Name = Annotated[
    str,
    typer.Argument(
        help="Method, as `zoo list` names it.",
        metavar="NAME",
        show_default=False,
        autocompletion=_complete_methods,
    ),
]


@app.command(epilog=_EPILOG)
def show(
    ctx: typer.Context,
    name: _Name,
    data: Annotated[
        str | None,
        typer.Option(
            help="Measure on these data, for some 15 seconds, what a fit would cost.", autocompletion=_complete_data
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict, for your own file.")] = None,
    drop: _Drop = None,
    missing: _Missing = _MissingEntries.refuse,
    group: _GroupOf = None,
    sensitive: _SensitiveOf = None,
    task: _TaskOf = None,
    categorical: _Categorical = None,
    na: _Na = None,
    day_first: _DayFirst = None,
    rare: _Rare = 5,
    engine: Annotated[_Engine | None, typer.Option(help="Engine to measure. Default: the method's first.")] = None,
    hyper: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A hyper-parameter; the option may be repeated.")
    ] = None,
) -> None:
    """Show a method: when to use it and what it needs, its process, hyper-parameters, engines and claims.

    With --data, --engine or --hyper also what a fit would cost in time and memory, measured on the data or on the
    method's own.
    """
    import ast

    from zoo.reports import rst
    from zoo.types import Method, hyper_to_json

    method = registry.get(name)
    entry = _entry(name)
    docstring = ast.get_docstring(ast.parse(entry.path.read_text(encoding="utf-8"))) or ""
    process = rst.without_bibtex(docstring)
    engines = method.engines if isinstance(method, Method) else ()
    claims = [{"statement": c.statement, "published": c.published, "source": c.source} for c in method.claims]
    values: dict[str, Any] = {
        "name": name,
        "title": method.title,
        "paper": method.paper,
        "task": method.task,
        "kind": entry.kind,
        "engines": list(engines),
        "hyper": hyper_to_json(method.hyper()),
        "claims": claims,
        "process": process,
    }
    facts = _table("", "")
    facts.show_header = False
    rows = [("name", name), ("paper", f"{method.paper} (zoo cite {name})"), ("task", method.task)]
    if isinstance(method, Method):
        values |= {"default_data": method.default_data, "recipe": dataclasses.asdict(method.recipe)}
        for key in ("use_when", "avoid_when", "needs"):
            values[key] = getattr(method, key)
            rows.append((key.replace("_", " "), values[key]))
        rows += [("engines", ", ".join(engines)), ("default data", method.default_data)]
        rows.append((
            "recipe",
            ", ".join(f"{k} {_text(v)}" for k, v in values["recipe"].items() if v not in (None, 0.0)),
        ))
    else:
        values["reads"] = list(method.reads)
        rows.append(("reads fits of", ", ".join(method.reads)))
    for row in rows:
        _add(facts, *row)
    settings = _table("hyper-parameter", "type", "default", title="Hyper-parameters (--hyper NAME=VALUE)")
    default = method.hyper()
    for field in dataclasses.fields(default):
        _add(settings, field.name, str(field.type), _text(getattr(default, field.name)))
    shown: list[Any] = [method.title, facts, rst.to_text(process), "", settings]
    if claims:
        table = _table("claim", "published", "source", title=f"Claims (zoo reproduce {name})")
        for claim in claims:
            _add(table, claim["statement"], claim["published"], claim["source"])
        shown.append(table)
    own = _Own(
        target=target, drop=drop or (), missing=missing.value, group=group, sensitive=sensitive, task=_value(task),
        categorical=categorical or (), na=na or (), day_first=day_first, rare=rare,
    )  # fmt: skip
    if data or own != _Own() or engine or hyper:
        dataset = _own_data(ctx.obj, method, data, own)
        values["cost"], table = _cost(ctx.obj, method, dataset, _pairs(hyper or []), engine)
        shown.append(table)
    ctx.obj.result(values, *shown)


def _own_data(say: Say, method: Method[Any] | Diagnostic[Any], data: str | None, own: _Own) -> Dataset:
    from zoo.types import Diagnostic

    if isinstance(method, Diagnostic):
        raise PairError(f"'{method.name}' is a diagnostic of fitted posteriors; leave out --data")
    own.check(method)
    with _warnings(say):
        name = data or method.default_data
        return _dataset(name, own.of(method, name))


def _cost(
    say: Say, method: Any, dataset: Dataset, hyper: Mapping[str, str], engine: _Engine | None
) -> tuple[dict[str, Any], Table]:
    from zoo.types import hyper_from_json

    chosen = hyper_from_json(method.hyper, hyper)
    say.note("measuring a few seconds of the fit")
    with _warnings(say):
        from zoo.inference.cost import cost

        found = cost(method.name, dataset, chosen, engine=None if engine is None else engine.value)
    total = sum(found.memory.values())
    table = _table("", "", title=f"Cost of a fit to {dataset.name}")
    table.show_header = False
    _add(table, "engine", found.engine)
    _add(table, "training rows", f"{found.rows:,}")
    if found.parameters:
        _add(table, "parameters", f"{found.parameters:,}")
    _add(table, "numbers in a draw", f"{found.latents:,}")
    _add(table, "steps" if found.engine == "svi" else "iterations", f"{found.steps:,}")
    setup = f", {_duration(found.setup)} of it to compile" if found.setup else ""
    _add(table, "time", f"{_duration(found.seconds)}{setup}")
    _add(table, "memory", f"{_size(total)}: " + ", ".join(f"{what} {_size(n)}" for what, n in found.memory.items()))
    _add(table, "1,000 draws", _size(found.thousand_draws))
    _add(table, "how", found.how)
    return dataclasses.asdict(found) | {"total_memory": total}, table


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1_000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1_000
    raise AssertionError


@app.command(epilog=_EPILOG)
def cite(ctx: typer.Context, name: _Name) -> None:
    """Print the BibTeX entry of a method's paper."""
    text = registry.bibtex(name)
    ctx.obj.result({"name": name, "bibtex": text}, text, bare=text)


@_data.command("list", epilog=_EPILOG)
def data_list(
    ctx: typer.Context,
    task: Annotated[
        str | None, typer.Option(help="Only data sets of this task.", autocompletion=_complete_tasks)
    ] = None,
) -> None:
    """List the bundled data sets."""
    from zoo import datasets

    found = datasets.catalogue()
    if task is not None:
        tasks = {e.task for e in found}
        if task not in tasks:
            raise UnknownNameError(f"no data set has the task '{task}'{suggest(task, tasks)}")
        found = tuple(e for e in found if e.task == task)
    table = _table("name", "task", "rows", "columns", "description", right=(2, 3))
    for e in found:
        _add(table, e.name, e.task, f"{e.rows:,}", f"{e.columns:,}", e.description)
    ctx.obj.result([dataclasses.asdict(e) for e in found], table, bare="\n".join(e.name for e in found))


@_data.command("show", epilog=_EPILOG)
def data_show(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="Data set, or the path of your own file or folder.",
            metavar="NAME",
            show_default=False,
            autocompletion=_complete_data,
        ),
    ],
    target: Annotated[str | None, typer.Option(help="Column to predict, for your own file.")] = None,
    drop: _Drop = None,
    missing: _Missing = _MissingEntries.refuse,
    group: _GroupOf = None,
    sensitive: _SensitiveOf = None,
    task: _TaskOf = None,
    categorical: _Categorical = None,
    na: _Na = None,
    day_first: _DayFirst = None,
    rare: _Rare = 5,
) -> None:
    """Show a data set as a method would see it: splits, columns, units, source and licence."""
    from zoo.reports.page import split_sizes

    with _warnings(ctx.obj):
        own = _Own(
            target=target, drop=drop or (), missing=missing.value, group=group, sensitive=sensitive, task=_value(task),
            categorical=categorical or (), na=na or (), day_first=day_first, rare=rare,
        )  # fmt: skip
        data = _dataset(name, own)
    sizes = split_sizes(data)
    values: dict[str, Any] = {
        "name": data.name,
        "task": data.task,
        "description": data.description,
        "source": data.source,
        "licence": data.licence,
        "rows": sizes,
        "columns": [dataclasses.asdict(c) for c in data.columns],
        "target": None if data.target is None else dataclasses.asdict(data.target),
    }
    facts = _table("", "")
    facts.show_header = False
    for key, label in (
        ("name", "name"),
        ("task", "task"),
        ("description", "about"),
        ("source", "source"),
        ("licence", "licence"),
    ):
        if values[key]:
            _add(facts, label, str(values[key]))
    _add(facts, "rows", ", ".join(f"{n:,} {split}" for split, n in sizes.items()) or "none (one datum)")
    if data.target is not None:
        kinds = f" ({len(data.target.categories)} classes)" if data.target.categories else ""
        _add(facts, "target", f"{data.target.name}{kinds}")
    shown: list[Any] = [facts]
    if "notes" in data.extra:
        values["notes"] = list(data.extra["notes"])
    gone = data.train.get("x_missing")
    if gone is not None:
        values["missing"] = {c.name: n for c, n in zip(data.columns, gone.sum(0).tolist(), strict=True) if n}
        lacking = ", ".join(f"{name} ({n:,})" for name, n in values["missing"].items())
        _add(facts, "missing", f"{int(gone.sum()):,} entries of the training rows: {lacking}")
    if "group" in data.extra:
        values["groups"] = list(data.coords["group"])
        batches = [b for b in (data.validation, data.test) if b is not None and "new_group" in b]
        others = sum(int((b["new_group"] >= 0).sum()) for b in batches)
        rest = f"; {others:,} rows of validation and test belong to others" if others else ""
        _add(facts, "groups", f"{len(values['groups']):,} values of {data.extra['group']} in training{rest}")
    if "sensitive" in data.extra:
        labels = data.coords["sensitive"]
        counts = data.train["s"].bincount(minlength=len(labels)).tolist()
        values["sensitive"] = {"column": data.extra["sensitive"], "groups": dict(zip(labels, counts, strict=True))}
        told = ", ".join(f"{label} ({n:,} training rows)" for label, n in zip(labels, counts, strict=True))
        _add(facts, "sensitive", f"{data.extra['sensitive']}: {told}")
    if "y_missing" in data.train:
        values["unlabelled"] = int(data.train["y_missing"].sum())
        _add(facts, "unlabelled", f"{values['unlabelled']:,} training rows have no target")
    if 0 < len(data.columns) <= 100:
        columns = _table("column", "mean", "scale", "", title="Features: (value - mean) / scale", right=(1, 2))
        for c in data.columns:
            _add(
                columns, c.name, _number(c.mean), _number(c.scale), f"against {c.reference}" if c.reference else c.unit
            )
        shown.append(columns)
    elif data.columns:
        _add(facts, "features", f"{len(data.columns):,}")
    ctx.obj.result(values, *shown)


# ------------------------------------------------------------------------------------------------------------- fit
class _Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"


class _Sampler(StrEnum):
    nutpie = "nutpie"
    pyro = "pyro"


_SVI_ONLY = ("steps", "learning_rate", "batch_size", "checkpoint_every", "checkpoint_keep", "skip_nonfinite")
_NUTS_ONLY = (
    "chains", "tune", "draws", "target_accept", "max_treedepth", "low_rank_mass_matrix", "sampler", "workers", "retry",
)  # fmt: skip


@app.command(epilog=_EPILOG)
def fit(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Method, as `zoo list` names it.",
            metavar="NAME",
            show_default=False,
            autocompletion=_complete_methods,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Bundled data set, CSV, NPZ or Parquet file, or folder of MNIST (idx) or CIFAR (binary).",
            autocompletion=_complete_data,
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict, for your own file.")] = None,
    drop: _Drop = None,
    missing: _Missing = _MissingEntries.refuse,
    group: _GroupOf = None,
    sensitive: _SensitiveOf = None,
    task: _TaskOf = None,
    categorical: _Categorical = None,
    na: _Na = None,
    day_first: _DayFirst = None,
    rare: _Rare = 5,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the posterior and its report. Default: a new one, runs/NAME.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier fit in --out; other files there stay.")
    ] = False,
    engine: Annotated[_Engine | None, typer.Option(help="Default: the method's first.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps (svi).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides every random number of the fit.")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate (svi).")] = None,
    batch_size: Annotated[int | None, typer.Option(min=0, help="Rows per step; 0 takes all (svi).")] = None,
    restarts: Annotated[int, typer.Option(min=1, help="Independent fits; the best is kept (svi).")] = 1,
    skip_nonfinite: Annotated[
        bool, typer.Option("--skip-nonfinite", help="Leave out steps that are not finite instead of stopping (svi).")
    ] = False,
    chains: Annotated[int | None, typer.Option(min=1, help="Number of chains (nuts).")] = None,
    tune: Annotated[int | None, typer.Option(min=1, help="Tuning draws per chain (nuts).")] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="Draws per chain after tuning (nuts).")] = None,
    target_accept: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Acceptance rate, between 0 and 1: higher means smaller steps (nuts). Default: 0.8, then 0.9 and "
            "0.99 for chains that diverge.",
        ),
    ] = None,
    max_treedepth: Annotated[
        int | None, typer.Option(min=1, max=20, help="At most 2**N - 1 steps a draw, 10 by default (nuts).")
    ] = None,
    low_rank_mass_matrix: Annotated[
        bool | None,
        typer.Option(
            "--low-rank-mass-matrix/--diagonal-mass-matrix",
            help="Metric with correlations, or without (nuts). Default: without; with, if chains move slowly along a "
            "ridge.",
        ),
    ] = None,
    sampler: Annotated[_Sampler | None, typer.Option(help="Default: nutpie; pyro is slow (nuts).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Chains at a time; default: as many as cores (nuts).")
    ] = None,
    no_retry: Annotated[
        bool, typer.Option("--no-retry", help="Keep chains that diverge or lie away from the others (nuts).")
    ] = False,
    hyper: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A hyper-parameter; the option may be repeated.")
    ] = None,
    checkpoint: Annotated[
        bool,
        typer.Option(
            "--checkpoint", help="Keep in --out what --resume needs: ten checkpoints (svi), finished chains (nuts)."
        ),
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Keep a checkpoint after every K steps (svi).")
    ] = None,
    checkpoint_keep: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many of the newest are kept, 2 by default (svi).")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the interrupted fit in this folder; no other option.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[_Dtype | None, typer.Option(help="Default: float32 for svi, float64 for nuts.")] = None,
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Run eagerly.")] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html, report.json and MODEL_CARD.md.")
    ] = True,
) -> None:
    """Fit a method to data; write the posterior and its report.

    Started by `torchrun --nproc-per-node N -m zoo fit ...`, N ranks share every batch (svi).
    """
    with ExitStack() as stack:
        ranks: Ranks | None = None
        if _rank() is not None:
            ranks = stack.enter_context(_joined())
        say: Say = ctx.obj if ranks is None or ranks.first else Say(quiet=True)
        folder, settings = Path(), {}
        with _together(ranks):
            if resume is not None:
                given = _given(ctx) - {"resume"}
                if given:
                    listed = ", ".join(sorted(given))
                    raise DataError(f"--resume takes the settings of the interrupted fit; leave out {listed}")
                folder = resume
                if ranks is None or ranks.first:
                    settings = _read_settings(resume)
            else:
                if name is None:
                    raise DataError("name a method (`zoo list` shows them), or go on with one: zoo fit --resume DIR")
                settings = {
                    "name": str(Path(name).resolve()) if name.endswith(".py") else name,
                    "data": data,
                    "target": target,
                    "drop": drop or [],
                    "missing": missing.value,
                    "group": group,
                    "sensitive": sensitive,
                    "task": _value(task),
                    "categorical": categorical or [],
                    "na": na or [],
                    "day_first": day_first,
                    "rare": rare,
                    "hyper": _pairs(hyper or []),
                    "engine": _value(engine),
                    "steps": steps,
                    "seed": seed,
                    "learning_rate": learning_rate,
                    "batch_size": batch_size,
                    "restarts": restarts,
                    "skip_nonfinite": skip_nonfinite or None,
                    "chains": chains,
                    "tune": tune,
                    "draws": draws,
                    "target_accept": target_accept,
                    "max_treedepth": max_treedepth,
                    "low_rank_mass_matrix": low_rank_mass_matrix,
                    "sampler": _value(sampler),
                    "workers": workers,
                    "retry": False if no_retry else None,
                    "checkpoint": checkpoint or checkpoint_every is not None or checkpoint_keep is not None,
                    "checkpoint_every": checkpoint_every,
                    "checkpoint_keep": checkpoint_keep,
                    "device": device,
                    "dtype": _value(dtype),
                    "compile": not no_compile,
                    "report": report,
                    "command": _command(ctx),
                }
                if data is not None and Path(data).exists():
                    settings["data"] = str(Path(data).resolve())
                folder = out if out is not None else _free(Path("runs") / name)
                if ranks is None or ranks.first:
                    _refuse_existing(folder, overwrite)
        if ranks is not None and resume is not None:  # the other ranks may be on other machines
            settings = jsonlib.loads(ranks.bytes(jsonlib.dumps(settings).encode()))
        result, shown = _fit(say, settings, folder, resume=resume is not None, ranks=ranks)
    if ranks is None or ranks.first:
        say.result(result, *shown, bare=str(folder))


@contextmanager
def _joined() -> Iterator[Ranks]:
    """Join the ranks; a request to end, as `torchrun` makes when another rank has failed, becomes an error."""
    from zoo.inference.distributed import join

    with join() as ranks:

        def end(*_: Any) -> None:
            if not ranks.ended:  # or it interrupts what is done about a rank that was lost
                ranks.ended = True
                text = f"rank {ranks.rank}: told to end (SIGTERM), as torchrun does when another rank has failed"
                raise RankError(text, lost=True)

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield ranks
        finally:
            if not ranks.ended:  # or this process could be ended before it has said why
                signal.signal(signal.SIGTERM, before)


def _together(ranks: Ranks | None) -> AbstractContextManager[None]:
    if ranks is None:
        return nullcontext()
    from zoo.inference.distributed import together

    return together(ranks)


def _fit(
    say: Say, settings: dict[str, Any], folder: Path, *, resume: bool, ranks: Ranks | None = None
) -> tuple[dict[str, Any], list[Any]]:
    """Run a fit with its checkpoints, and put its folder in place whole.

    Args:
        say: Where words go.
        settings: Options of the command line.
        folder: Where the posterior goes.
        resume: Whether ``folder`` holds a checkpoint to go on from.
        ranks: The processes that share the fit, of which the first writes; ``None`` is one alone.

    Returns:
        The result as JSON-able dict, and what is shown of it; nothing on ranks other than the first.

    Raises:
        DataError: If the data, the options or the folder are no good.
        PairError: If the method is a diagnostic, or options do not fit the engine.
        RankError: If another rank fails or is lost.
    """
    from zoo.reports import CARD

    first = ranks is None or ranks.first
    checkpoint = settings["checkpoint"]
    with ExitStack() as stack:
        begun = False
        with _together(ranks):
            method, dataset, engine, options = _chosen(say, settings)
            if first:
                begun = resume and bool(outputs.checkpoints(folder))
                if resume and not begun:
                    say.note("the fit was interrupted before its first checkpoint; it begins anew")
                stage = stack.enter_context(outputs.whole(folder, keep=checkpoint, resume=resume))
                if checkpoint and not resume:
                    from zoo.reports.files import dumps, write_texts

                    write_texts({folder / outputs.SETTINGS: dumps(settings)})
        shared = "" if ranks is None else f", {ranks.size} ranks"
        say.note(f"{method.title}: {dataset.name}, {engine}{shared}")
        with _warnings(say):
            from zoo.inference.runner import fit as run

            try:
                posterior = run(
                    method,
                    dataset,
                    engine=settings["engine"],
                    seed=settings["seed"],
                    restarts=settings["restarts"],
                    device=settings["device"],
                    dtype=settings["dtype"],
                    compile=settings["compile"],
                    checkpoint=folder if checkpoint else None,
                    resume=begun,
                    distributed=ranks or False,
                    progress=not say.quiet,
                    **options,
                )
            except RankError as error:
                if not error.lost or not outputs.checkpoints(folder):
                    raise
                more = f"torchrun --nproc-per-node N -m zoo fit --resume {shlex.quote(str(folder))}"
                raise RankError(f"{error}; go on, with any number of ranks: {more}", lost=True) from error
            if not first:
                return {}, []
            posterior.info["command"] = settings["command"]
            posterior.save(stage)
            if settings["report"]:
                say.note("checking the posterior and writing the report")
                posterior.report(stage / "report.html")
            result = _outcome(posterior, stage / "report.json" if settings["report"] else None)
    result |= {"name": method.name, "data": dataset.name, "engine": engine, "folder": str(folder)}
    files = {"posterior": folder / "posterior.safetensors"}
    if settings["report"]:
        files |= {"report": folder / "report.html", "numbers": folder / "report.json", "card": folder / CARD}
    result["files"] = {k: str(v) for k, v in files.items()}
    shown: list[Any] = _outcome_tables(result)
    shown += [f"{label + ':':<11}{path}" for label, path in files.items()]
    shown += _verdict_lines(result)
    return result, shown


def _chosen(say: Say, settings: Mapping[str, Any]) -> tuple[Method[Any], Dataset, str, dict[str, Any]]:
    """Return the method, data and engine that settings name, and the further arguments of the runner."""
    from zoo.types import Diagnostic, hyper_from_json

    method = registry.resolve(settings["name"])
    if isinstance(method, Diagnostic):
        raise PairError(
            f"'{method.name}' is a diagnostic of fitted posteriors; `zoo show {method.name}` says how to use it"
        )
    engine = settings["engine"] or method.engines[0]
    for option in _NUTS_ONLY if engine == "svi" else _SVI_ONLY:
        if settings.get(option) is not None:
            flag = {"retry": "no-retry"}.get(option, option.replace("_", "-"))
            raise DataError(f"--{flag} does not apply to the engine '{engine}'; leave it out or choose --engine")
    hyper = hyper_from_json(method.hyper, settings["hyper"])
    own = _Own(**{field.name: settings[field.name] for field in dataclasses.fields(_Own) if field.name in settings})
    own.check(method)
    with _warnings(say):
        name = settings["data"] or method.default_data
        dataset = _dataset(name, own.of(method, name))
    options = {k: settings[k] for k in (*_SVI_ONLY, *_NUTS_ONLY) if settings.get(k) is not None}
    return method, dataset, engine, options | {"hyper": hyper}


def _outcome(posterior: Posterior, report: Path | None) -> dict[str, Any]:
    """Collect scores, quantities of interest and the verdict of a fit.

    Args:
        posterior: The fit.
        report: The report's JSON, which holds them already, or ``None``.

    Returns:
        JSON-able dict.
    """
    if report is not None:
        found = jsonlib.loads(report.read_text(encoding="utf-8"))
        keys = ("verdict", "reasons", "answers", "checks", "scores", "quantities", "fit", "hyper")
        return {k: found[k] for k in keys}
    from zoo.reports.files import plain
    from zoo.reports.illustrate import scores
    from zoo.types import hyper_to_json

    fitted = {"engine": posterior.engine, **posterior.info}
    outcome = {
        "scores": scores(posterior),
        "quantities": posterior.summary(),
        "fit": fitted,
        "hyper": hyper_to_json(posterior.hyper),
    }
    return {"verdict": None, "reasons": [], "answers": [], "checks": [], **plain(outcome)}


def _outcome_tables(result: Mapping[str, Any]) -> list[Any]:
    from zoo.reports.page import interest_tables

    shown: list[Any] = []
    scores = result["scores"]
    if scores:
        table = _table("score", *scores, title="Scores", right=range(1, len(scores) + 1))
        for key in dict.fromkeys(k for split in scores.values() for k in split):
            _add(table, key.replace("_", " "), *(_number(split.get(key)) for split in scores.values()))
        shown.append(table)
    for i, found in enumerate(interest_tables(result["quantities"])):
        table = _table(
            *found.header, title="Quantities of interest" if i == 0 else None, right=range(1, len(found.header))
        )
        for row in found.rows:
            _add(table, *row)
        shown.append(table)
    return shown


def _verdict_lines(result: Mapping[str, Any]) -> list[Any]:
    if result["verdict"] is None:
        return []
    from rich.text import Text

    style = {"usable": "bold green", "usable with care": "bold yellow", "do not use": "bold red"}
    lines: list[Any] = [Text.assemble("verdict:   ", (result["verdict"], style[result["verdict"]]))]
    for answer in result["answers"]:
        lines.append(Text.assemble(f"  {answer['question']} ", (answer["use"], style.get(answer["use"], "bold"))))
        lines.append(Text(f"    {answer['reason']}"))
        if answer["command"] or answer["python"]:
            lines.append(Text(f"    try: {answer['command'] or answer['python']}"))
    told = [answer["reason"] for answer in result["answers"]]
    return [*lines, *(Text(f"  - {r}") for r in result["reasons"] if not any(r in t for t in told))]


@app.command(epilog=_EPILOG)
def report(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder that `zoo fit` wrote.", metavar="DIR", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Page to write, .html. Default: DIR/report.html.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw behind the page.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if an answer is 'do not use'.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Also fit again: simulated data, NUTS, folds. Takes as long as 100 fits.")
    ] = False,
    effects: Annotated[
        Path | None, typer.Option(help="File for the effects of a regression's features: .csv, .npz or .parquet.")
    ] = None,
    method: _MethodFile = None,
) -> None:
    """Write the report of a saved posterior, and print its verdict."""
    say: Say = ctx.obj
    if effects is not None:
        _refuse_output(effects, None, overwrite=True)
    from zoo.inference.posterior import load
    from zoo.inference.progress import bar
    from zoo.reports import card_path

    with _warnings(say):
        posterior = load(folder, method=method)
        say.note("checking the posterior and writing the report")
        page = out if out is not None else folder / "report.html"
        features = None if effects is None else posterior.effects(seed=seed)
        with bar(full and not say.quiet) as tell:
            path = Path(posterior.report(page, seed=seed, full=full, progress=tell))
    files = {"report": path, "numbers": path.with_suffix(".json"), "card": card_path(path)}
    if effects is not None and features is not None:
        _write_table(features.reset_index(), effects)
        files["effects"] = effects
    result = _outcome(posterior, files["numbers"]) | {
        "name": posterior.name,
        "files": {label: str(where) for label, where in files.items()},
    }
    table = _table("verdict", "check", "value", "threshold")
    for check in result["checks"]:
        if check["verdict"] == "not run":
            continue
        _add(table, str(check["verdict"]), str(check["title"]), _number(check["value"]), str(check["threshold"] or ""))
    paths = [f"{label + ':':<11}{where}" for label, where in result["files"].items()]
    say.result(result, table, *paths, *_verdict_lines(result), bare=str(path))
    if strict and any(answer["use"] == "do not use" for answer in result["answers"]):
        raise typer.Exit(1)


@app.command(name="effects", epilog=_EPILOG)
def effects_(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder that `zoo fit` wrote.", metavar="DIR", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="File to write: .csv, .npz or .parquet. Default: print them.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    order: Annotated[
        str, typer.Option(help="size (of the effect of one standard deviation), sign (how probable it is) or table.")
    ] = "size",
    draws: Annotated[int, typer.Option(min=2, help="Posterior draws behind the numbers.")] = 4_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    method: _MethodFile = None,
) -> None:
    """Print or write the effect of each feature of a regression, in the units of the user's table."""
    say: Say = ctx.obj
    if out is not None:
        _refuse_output(out, None, overwrite)
    from zoo.inference.posterior import load
    from zoo.reports.effects import table
    from zoo.reports.files import plain

    with _warnings(say):
        posterior = load(folder, method=method)
        found = posterior.effects(num_draws=draws, seed=seed, order=order)
    shown = table(found)
    printed = _table(*shown.header, title=shown.caption, right=range(1, len(shown.header)))
    for row in shown.rows:
        _add(printed, *row, *[""] * (len(shown.header) - len(row)))
    values = {"name": posterior.name, **found.attrs, "effects": plain(found.reset_index().to_dict("records"))}
    if out is None:
        say.result(values, printed)
        return
    _write_table(found.reset_index(), out)
    say.result(values | {"file": str(out)}, printed, f"effects: {out}", bare=str(out))


def _write_table(frame: Any, out: Path) -> None:
    from zoo.inference.tables import table_bytes
    from zoo.reports.files import write_bytes

    write_bytes({out: table_bytes(frame, out.suffix.lower())})


@app.command(epilog=_EPILOG)
def compare(
    ctx: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `zoo fit` wrote, of fits to the same data.", metavar="DIR DIR...", show_default=False
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Page to write, .html; its numbers go to .json beside it.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw behind the numbers.")] = 0,
) -> None:
    """Compare saved posteriors: leave-one-out densities and scores with standard errors, cost, verdicts."""
    say: Say = ctx.obj
    if len(folders) < 2:
        raise DataError("one folder was given; a comparison needs two or more: zoo compare runs/a runs/b")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError("the same folder was given twice; name different fits")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--out '{out}' must end in .html; the numbers go to the same name with .json")
    names = [folder.resolve().name for folder in folders]
    labels = [str(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names, strict=True)]
    from zoo.diagnostics.compare import comparison
    from zoo.inference.posterior import load
    from zoo.reports import write_comparison
    from zoo.reports.comparison import tables

    with _warnings(say):
        posteriors = {label: load(folder) for label, folder in zip(labels, folders, strict=True)}
        verdicts = {
            label: _verdict_of(folder, posteriors[label]) for label, folder in zip(labels, folders, strict=True)
        }
        say.note("evaluating the fits on their data")
        found = comparison(posteriors, verdicts=verdicts, seed=seed)
    values = found.to_json()
    shown: list[Any] = []
    for kind, table in tables(found).items():
        if table is None:
            continue
        drawn = _table(
            *table.header, title=table.caption, right=() if kind == "settings" else range(1, len(table.header))
        )
        for row in table.rows:
            _add(drawn, *row)
        shown.append(drawn)
    verdict = _table("fit", "verdict of its report")
    for fit in found.fits:
        _add(verdict, fit.label, fit.verdict or "not checked")
    shown.append(verdict)
    if out is not None:
        path = write_comparison(found, out)
        values["files"] = {"page": str(path), "numbers": str(path.with_suffix(".json"))}
        shown += [f"{label + ':':<11}{where}" for label, where in values["files"].items()]
    shown += [f"finding:   {found.finding}", *(f"  - {caution}" for caution in found.cautions)]
    say.result(values, *shown, bare="\n".join(fit.label for fit in found.fits))


def _verdict_of(folder: Path, posterior: Posterior) -> str | None:
    """Return the verdict of the report in a folder; ``None`` if there is none, or it is of another fit."""
    from zoo.reports.files import plain

    try:
        found = jsonlib.loads((folder / "report.json").read_text(encoding="utf-8"))
        fitted = {k: v for k, v in found["fit"].items() if k in posterior.info}
        return str(found["verdict"]) if fitted == plain(posterior.info) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@app.command(epilog=_EPILOG)
def compress(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder that `zoo fit` wrote.", metavar="DIR", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the smaller posterior, its report and the networks.")],
    tolerance: Annotated[
        float, typer.Option(min=0, help="Standard errors of the validation error that may be given up.")
    ] = 2.0,
    turns: Annotated[int | None, typer.Option(min=1, help="Turns of pruning and fitting further.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of each turn.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds of the zoo.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of every random number.")] = 0,
    method: _MethodFile = None,
) -> None:
    """Prune a saved posterior, fit what is left further, and export the small network.

    Writes the smaller posterior with its report, network.pt2 (torch.export) and, with the extra `export`,
    network.onnx; weights are stored as the small integers that their bits allow.
    """
    say: Say = ctx.obj
    _refuse_existing(out, overwrite)
    from zoo import exports
    from zoo.errors import MissingExtraError
    from zoo.inference.posterior import load

    with _warnings(say), outputs.whole(out, keep=False, resume=False) as stage:
        posterior = load(folder, method=method)
        say.note("pruning and fitting what is left, in turns")
        options = {name: value for name, value in (("turns", turns), ("steps", steps)) if value is not None}
        small = posterior.prune(tolerance=tolerance, seed=seed, **options)
        if "pruned" not in small.info:
            say.note(
                "note: no turn stayed within the tolerance; units were taken out once and nothing was fitted further"
            )
        small.info["command"] = _command(ctx)
        network = small.compress(packed=True)
        whole = posterior.compress(keep="all", rounded=False)
        small.save(stage)
        small.report(stage / "report.html", seed=seed)
        split = posterior.data.test or posterior.data.validation or posterior.data.train
        x = split["x"][:1000]
        rows = []
        for suffix in exports.FORMATS:
            try:
                path = exports.export(network, x, stage / f"network{suffix}")
                before = exports.measure(exports.export(whole, x, stage / f"whole{suffix}"), whole, x)
            except MissingExtraError as error:
                say.note(f"note: {error}")
                continue
            after = exports.measure(path, network, x)
            before.path.unlink()
            rows.append((exports.FORMATS[suffix], before, after))
    quantities = small.summary()
    values = {
        "name": small.name,
        "out": str(out),
        "quantities": quantities,
        "networks": [
            {
                "format": label, "file": str(out / after.path.name), "bytes": after.num_bytes,
                "bytes_whole": before.num_bytes,
                "milliseconds": after.milliseconds, "milliseconds_whole": before.milliseconds, "rows": after.rows,
                "difference": after.difference,
            }
            for label, before, after in rows
        ],
    }  # fmt: skip
    facts = _table("quantity", "value")
    for name, value in quantities.items():
        _add(facts, name, _number(value))
    table = _table(
        "network", "bytes before", "after", "ms before", "after", title=f"On disk, and {len(x):,} rows on one thread"
    )
    for label, before, after in rows:
        _add(
            table, label, f"{before.num_bytes:,}", f"{after.num_bytes:,}", _number(before.milliseconds),
            _number(after.milliseconds),
        )  # fmt: skip
    say.result(values, facts, table, f"{'files:':<11}{out}", bare=str(out))


@app.command(epilog=_EPILOG)
def push(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder that `zoo fit` wrote.", metavar="DIR", show_default=False)],
    target: Annotated[
        str,
        typer.Argument(
            help="OWNER/NAME on the Hugging Face Hub (also hf:OWNER/NAME), or a folder (a new one: file:PATH).",
            metavar="REPO",
            show_default=False,
        ),
    ],
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    with_data: Annotated[
        bool, typer.Option("--with-data", help="Let rows of your own file, which the posterior stores, go to the Hub.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a posterior in a folder.")] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
) -> None:
    """Publish a saved posterior with its report and model card, on the Hub or in a shared folder."""
    say: Say = ctx.obj
    from zoo import hub

    with _warnings(say), _hub_progress(say):
        say.note("checking the posterior")
        where = hub.push(folder, target, private=private, with_data=with_data, overwrite=overwrite, message=message)
    say.result({"folder": str(folder), "pushed": where}, f"pushed: {where}", bare=where)


@app.command(epilog=_EPILOG)
def pull(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="OWNER/NAME on the Hugging Face Hub (also hf:OWNER/NAME), or a folder.",
            metavar="REPO",
            show_default=False,
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Folder for the posterior.", metavar="DIR", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a posterior in DIR.")] = False,
) -> None:
    """Fetch a published posterior, which is checked before it is put in place; `zoo report` then writes its report."""
    say: Say = ctx.obj
    from zoo import hub

    with _warnings(say), _hub_progress(say):
        posterior = hub.pull(source, folder, revision=revision, overwrite=overwrite)
    values = {"name": posterior.name, "data": posterior.data.name, "engine": posterior.engine, "folder": str(folder)}
    shown = f"{posterior.name}, fitted to {posterior.data.name} by {posterior.engine}"
    say.result(values, shown, f"posterior: {folder}", f"check it:  zoo report {folder}", bare=str(folder))


@contextmanager
def _hub_progress(say: Say) -> Iterator[None]:
    """Keep the bars of the Hub's library from a quiet command."""
    if not say.quiet:
        yield
        return
    before = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read at its import
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_DISABLE_PROGRESS_BARS"]
        else:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = before


@app.command(epilog=_EPILOG)
def predict(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder that `zoo fit` wrote.", metavar="DIR", show_default=False)],
    data: Annotated[
        Path, typer.Option(help="New rows: a file or folder as for `zoo fit`, with the columns of the training.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write: .csv, .npz or .parquet. Default: CSV on stdout.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    interval: Annotated[float, typer.Option(help="Probability of the central interval of a number.")] = 0.9,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column to copy; the option may be repeated.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=2, help="Posterior draws. Default: 1000 for a number, else 200.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides every random number of the prediction.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, and write nothing, if a row cannot be predicted.")
    ] = False,
    method: _MethodFile = None,
) -> None:
    """Predict new rows by a saved posterior; with the target among the columns, print the scores too.

    A number gets mean, sd and a central interval in its own unit, a class its most probable label and the probability
    of each; a method of the task density says how probable the row itself is. The column `row` counts rows from 0.
    Rows that cannot be predicted, as a value is missing or a category is new, are listed on stderr with line, column
    and reason; their results are empty, and the column `refused` repeats the reason.
    """
    say: Say = ctx.obj
    if out is not None:
        _refuse_output(out, data, overwrite)
    from zoo.inference.posterior import load
    from zoo.inference.tables import predict_table, table_bytes

    columns = keep or []
    with _warnings(say):
        posterior = load(folder, method=method)
        found = predict_table(posterior, data, interval=interval, keep=columns, draws=draws, seed=seed, strict=strict)
    rows = len(found.frame)
    values: dict[str, Any] = {"name": posterior.name, "rows": rows, "scores": found.scores, "scored": found.scored}
    if found.refused:
        values["refused"] = [dataclasses.asdict(one) for one in found.refused]
    shown: list[Any] = []
    if found.scores:
        some = "" if found.scored == rows else f" of {found.scored:,} rows"
        scores = _table("score", "", title=f"Scores{some}", right=(1,))
        for key, value in found.scores.items():
            _add(scores, key.replace("_", " "), _number(value))
        shown.append(scores)
    if out is None:
        values["predictions"] = found.frame.astype(object).where(found.frame.notna(), None).to_dict("records")
        if not say.json:
            typer.echo(table_bytes(found.frame, ".csv", keep=columns), nl=False)
            if not say.quiet:
                for item in shown:
                    _console(stderr=True).print(item)
            return
        say.result(values)
        return
    from zoo.reports.files import write_bytes

    write_bytes({out: table_bytes(found.frame, out.suffix.lower(), keep=columns)})
    values["file"] = str(out)
    say.result(values, *shown, f"predictions: {out} ({rows:,} rows)", bare=str(out))


@app.command(epilog=_EPILOG)
def transform(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder that `zoo fit` wrote.", metavar="DIR", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(help="Rows to represent, with the columns of the training. Default: the rows of the fit's data."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .csv, .npz or .parquet. Default: CSV on stdout.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column to copy; the option may be repeated.")
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="The mean of each row instead of one draw: sharper, and it tells more.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    method: _MethodFile = None,
) -> None:
    """Write the representation that a saved posterior gives each row, as a table: one line per row, z0, z1, ...

    Of methods that represent rows, such as variational_fair_autoencoder. The column `row` counts the rows from 0;
    without --data the column `split` says which rows were trained on.
    """
    say: Say = ctx.obj
    if out is not None:
        _refuse_output(out, data, overwrite)
    from zoo.inference.posterior import load
    from zoo.inference.tables import table_bytes, transform_table

    columns = keep or []
    with _warnings(say):
        posterior = load(folder, method=method)
        frame = transform_table(posterior, data, keep=columns, mean=mean, seed=seed)
    values: dict[str, Any] = {"name": posterior.name, "rows": len(frame)}
    if out is None:
        values["representation"] = frame.astype(object).where(frame.notna(), None).to_dict("records")
        if say.json:
            say.result(values)
        else:
            typer.echo(table_bytes(frame, ".csv", keep=columns), nl=False)
        return
    from zoo.reports.files import write_bytes

    write_bytes({out: table_bytes(frame, out.suffix.lower(), keep=columns)})
    values["file"] = str(out)
    say.result(values, f"representation: {out} ({len(frame):,} rows)", bare=str(out))


def _refuse_output(out: Path, data: Path | None, overwrite: bool) -> None:
    from zoo.inference.tables import SUFFIXES

    if out.suffix.lower() not in SUFFIXES:
        raise DataError(f"--out '{out}' is of an unknown kind; allowed: {', '.join(SUFFIXES)}")
    if out.is_dir():
        raise DataError(f"--out '{out}' is a folder; name a file")
    if data is not None and out.exists() and data.exists() and out.samefile(data):
        raise DataError(f"--out '{out}' is the file of --data itself; choose another")
    if out.exists() and not overwrite:
        raise DataError(f"--out '{out}' exists; add --overwrite or choose another file")


@app.command(epilog=_EPILOG)
def check(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="Method, or the path of a method file.",
            metavar="NAME",
            show_default=False,
            autocompletion=_complete_methods,
        ),
    ],
) -> None:
    """Check step by step whether a method's model and guide work."""
    from zoo.inference.check import Step
    from zoo.inference.check import check as run
    from zoo.types import Diagnostic

    say: Say = ctx.obj
    steps: list[Step] = []
    with _warnings(say):
        method = registry.from_file(Path(name)) if name.endswith(".py") else registry.resolve(name)
        if isinstance(method, Diagnostic):
            raise PairError(f"'{method.name}' is a diagnostic: it has no model and guide to check")
        try:
            stage = "default data"
            dataset = _dataset(method.default_data)
            steps.append(Step(stage, True, f"{method.default_data}, {dataset.num_data:,} training rows"))
            stage = "task"
            from zoo import tasks

            tasks.get(method.task).check(dataset)
            steps.append(Step(stage, True, method.task))
            stage = "build"
            pair = method.build(dataset, method.smoke)
            steps.append(Step(stage, True, "with its small hyper-parameters"))
        except Exception as error:  # whatever a method's own code raises is this step's finding
            steps.append(Step(stage, False, f"{type(error).__name__}: {error}"))
        else:
            from zoo.reports.illustrate import first_rows

            steps += run(pair.model, pair.guide, first_rows(dataset.train, dataset.whole, 64))
    table = _table("", "step", "")
    for step in steps:
        table.add_row(
            "[green]✓[/]" if step.ok else "[red]✗[/]", *_escaped(step.name, " ".join(str(step.detail).split()))
        )
    fine = all(step.ok for step in steps)
    values = {"name": name, "ok": fine, "steps": [{"name": s.name, "ok": s.ok, "detail": s.detail} for s in steps]}
    say.result(values, table, bare="" if fine else "\n".join(f"{s.name}: {s.detail}" for s in steps if not s.ok))
    if not fine:
        raise typer.Exit(1)


@app.command(epilog=_EPILOG)
def reproduce(
    ctx: typer.Context,
    name: _Name,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds. Default: each claim's own.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Only the small subset that the tests run.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json and NAME.md.")] = Path("reproductions"),
    docs: Annotated[
        bool, typer.Option("--docs", help="Also put the table into docs/NAME.md of a source checkout.")
    ] = False,
) -> None:
    """Measure what the paper claims, over seeds. Finished seeds are kept, so that it can be interrupted."""
    from zoo import claims

    say: Say = ctx.obj
    page = Path(__file__).parent.parent / "docs" / f"{name}.md" if docs else None
    with _warnings(say):
        found = claims.reproduce(name, seeds=seeds, fast=fast, out=out, docs=page, progress=say.note)
    table = _table("claim", "published", "measured (mean ± sd)", "verdict", title=found.title)
    style = {"reproduced": "green", "partly": "yellow", "not reproduced": "red"}
    for claim in found.claims:
        keys = dict.fromkeys(k for run in claim.runs for k in run.values)
        spread = {k: claim.sd(k) for k in keys}
        lines = [
            f"{k}: {_number(claim.mean(k))}" + (f" ± {_number(v)}" if math.isfinite(v) else "")
            for k, v in spread.items()
        ]
        cells = _escaped(claim.statement, claim.published, "\n".join(lines))
        table.add_row(*cells, f"[{style[claim.verdict]}]{claim.verdict}[/]")
    paths = [f"table: {out / f'{name}.md'}", f"numbers: {out / f'{name}.json'}"]
    say.result(found.to_json(), table, *paths, bare=found.verdict)
    if any(claim.verdict == "not reproduced" for claim in found.claims):
        raise typer.Exit(1)


@_bench.command("networks", epilog=_EPILOG)
def bench_networks(
    ctx: typer.Context,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this method; the option may be repeated.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these data; the option may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps. Default: each method's recipe.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Posterior draws of a prediction.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder for networks.json, networks.md and figures.")] = Path("leaderboard"),
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Run eagerly.")] = False,
) -> None:
    """Fit all networks to the same data over seeds, and write the leaderboard. Finished fits are kept."""
    from zoo import leaderboard

    say: Say = ctx.obj
    with _warnings(say):
        found = leaderboard.networks(
            names=method, data=data, seeds=seeds, steps=steps, draws=draws, out=out, compile=not no_compile,
            progress=say.note,
        )  # fmt: skip
    text = found.to_markdown()
    say.result(found.to_json(), text, f"numbers: {out / 'networks.json'}", bare=text)


@app.command(epilog=_EPILOG)
def diagnostics(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="The page that is written.")] = Path("DIAGNOSTICS.md"),
    repetitions: Annotated[int, typer.Option(min=0, help="Correct fits per case; 0 leaves the checks out.")] = 100,
    faults: Annotated[int, typer.Option(min=1, help="Faulty fits per case.")] = 50,
    fits: Annotated[
        int, typer.Option(min=0, help="Right fits of which the three answers are asked; 0 for none.")
    ] = 200,
    faulty: Annotated[int, typer.Option(min=1, help="Faulty fits of each kind of which they are asked.")] = 10,
    check: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only the cases of this check; the option may be repeated."),
    ] = None,
) -> None:
    """Measure the checks and the three answers on fits whose right verdict is known: false alarms and power.

    What is left out (`--repetitions 0`, `--fits 0`, `--check`) stays on the page as it was.
    """
    from zoo.diagnostics import measure
    from zoo.inference.progress import bar
    from zoo.reports.files import write_texts

    say: Say = ctx.obj
    chosen = tuple(check or ())
    if not repetitions and not fits:
        raise DataError("--repetitions 0 and --fits 0 leave nothing to measure; give one of them")
    command = "zoo diagnostics" + (
        f" --repetitions {repetitions} --faults {faults}" if repetitions else " --repetitions 0"
    )
    if not chosen:
        command += f" --fits {fits} --faulty {faulty}" if fits else " --fits 0"
    command += "".join(f" --check {name}" for name in chosen)
    with _warnings(say), bar(not say.quiet) as tell:
        found, known, whole, page = measure.run(
            repetitions=repetitions,
            faults=faults,
            checks=chosen,
            command=command,
            fits=fits,
            faulty=faulty,
            before=out.read_text(encoding="utf-8") if out.is_file() else "",
            progress=tell,
        )
    write_texts({out: page})
    table = _table("check", "false alarms", "level", "caught", "as stated", right=(1, 2, 3))
    for m in found:
        good = m.level_kept and m.power_reached
        _add(
            table,
            m.check,
            f"{m.alarms} of {m.correct}",
            f"{m.level:g}",
            f"{m.caught} of {m.faulty}",
            "yes" if good else "no",
        )
    values = [
        {
            "check": m.check,
            "correct": m.case.correct,
            "fault": m.case.fault,
            "false_alarms": m.alarms,
            "of_correct": m.correct,
            "before": None if m.before is None else {"false_alarms": m.before[0], "of_correct": m.before[1]},
            "interval": list(m.interval),
            "level": m.level,
            "caught": m.caught,
            "of_faulty": m.faulty,
            "as_stated": m.level_kept and m.power_reached,
        }
        for m in found
    ]
    right = all(m.level_kept and m.power_reached for m in found) and all(a.right for a in known)
    shown: list[Any] = [table]
    if whole is not None:
        right = right and whole.kept
        kinds = _table("fits", "number", "fit", "parameters", "predictions", title="Good answers", right=(1, 2, 3, 4))
        for t in (*whole.right, *whole.faults):
            _add(kinds, t.kind.name, str(t.fits), *(str(t.good[a]) for a in ("fit", "parameters", "predictions")))
        shown.append(kinds)
    numbers = [dataclasses.asdict(a) for a in known]
    answered = None if whole is None else whole.to_json()
    result = {"checks": values, "known": numbers, "answers": answered, "page": str(out)}
    say.result(result, *shown, f"page: {out}", bare="as stated" if right else "not as stated")
    if not right:
        raise typer.Exit(1)


def _before(path: Path, heading: str) -> str:
    """Return a page up to a heading, with a blank line; nothing if there is no page."""
    text = path.read_text(encoding="utf-8").partition(f"{heading}\n")[0].rstrip() if path.exists() else ""
    return text + "\n\n" if text else ""


def _after(path: Path, heading: str) -> str:
    """Return a page from a heading on, with a blank line before it; nothing if there is none."""
    found = path.read_text(encoding="utf-8").partition(f"{heading}\n") if path.exists() else ("", "", "")
    return "\n" + found[1] + found[2] if found[1] else ""


@app.command(epilog=_EPILOG)
def references(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Posteriors of posteriordb. Default: all that are bundled.",
            metavar="[NAME]...",
            show_default=False,
            autocompletion=_complete_references,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json, references.json and references.md.")] = Path(
        "references"
    ),
    draws: Annotated[int, typer.Option(min=4, help="Kept draws of each of four chains of NUTS.")] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a guide.")] = 20_000,
    seeds: Annotated[int, typer.Option(min=0, help="Fits of each guide; 0 for NUTS alone.")] = 3,
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Run eagerly.")] = False,
    docs: Annotated[bool, typer.Option("--docs", help="Also write docs/references.md of a source checkout.")] = False,
    defaults: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Only how often NUTS at its default settings is right, with N seeds each."
        ),
    ] = None,
) -> None:
    """Run NUTS and guides on posteriors whose moments are known. Finished runs are kept, so it can be interrupted."""
    from zoo.references import defaults as usual
    from zoo.references import measure
    from zoo.references.results import Settings
    from zoo.reports.files import write_texts

    say: Say = ctx.obj
    pages = {out / "references.md"}
    if docs:
        folder = Path(__file__).parent.parent / "docs"
        if not folder.is_dir():
            raise DataError(f"--docs needs a source checkout; there is no folder '{folder}'")
        pages.add(folder / "references.md")
    if defaults is not None:
        with _warnings(say):
            runs = usual.measure(seeds=defaults, names=names, out=out, compile=not no_compile, progress=say.note)
        part = usual.section(runs, _command(ctx))
        texts = {path: _before(path, usual.HEADING) + part for path in pages}
        write_texts(texts)
        table = _table("posterior", "right", "largest R-hat", "divergences", "drawn again", right=(1, 2, 3, 4))
        for name in dict.fromkeys(r.name for r in runs):
            of = [r for r in runs if r.name == name]
            again = sum(bool(r.tries) for r in of)
            strays = sum(r.divergences for r in of)
            largest = max(r.r_hat for r in of)
            _add(table, name, f"{sum(r.right for r in of)} of {len(of)}", f"{largest:.3f}", str(strays), str(again))
        right = sum(r.right for r in runs)
        rate = right / len(runs)
        result = {"right": right, "runs": [dataclasses.asdict(r) for r in runs]}
        say.result(result, table, *(f"page: {p}" for p in sorted(pages)), bare=f"{right} of {len(runs)}")
        if rate < usual.RATE:
            raise typer.Exit(1)
        return
    settings = Settings(draws=draws, steps=steps, guide_seeds=seeds)
    with _warnings(say):
        found = measure.measure(names=names, settings=settings, out=out, compile=not no_compile, progress=say.note)
    text = found.to_markdown(_command(ctx))
    write_texts({path: text + _after(path, usual.HEADING) for path in pages})
    table = _table("posterior", "largest difference", "least ESS", "guides off", "of them 'usable'", right=(1, 2, 3, 4))
    for m in found.measured:
        off = [g for g in m.guides if g.off]
        _add(
            table,
            m.name,
            f"{max(m.chains.z):.2f} errors",
            f"{m.chains.min_ess:,.0f}",
            f"{len(off)} of {len(m.guides)}",
            str(sum(g.verdict == "usable" for g in off)),
        )
    shown = [table, *(f"page: {path}" for path in sorted(pages)), f"numbers: {out / 'references.json'}"]
    say.result(found.to_json(), *shown, bare="as it should be" if found.agrees else "not as it should be")
    if not found.agrees:
        raise typer.Exit(1)


@app.command(epilog=_EPILOG)
def doctor(
    ctx: typer.Context,
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Do not try to compile; saves some 20 s.")] = False,
) -> None:
    """Say what a bug report needs: versions, machine, compiler, cache, device. Exits with 1 if something is wrong."""
    from zoo.doctor import examine

    say: Say = ctx.obj
    if not no_compile:
        say.note("compiling a function, which takes some 20 seconds")
    with _warnings(say):
        found = examine(compile=not no_compile)
    cache, works = found.cache, found.compiles["works"]
    tried = "not tried" if works is None else f"works, {found.compiles['seconds']:.0f} s" if works else "fails"
    git = "no checkout"
    if found.git is not None:
        git = f"commit {found.git['commit'][:12]}{', with changes' if found.git['changed'] else ''}"
    rows = {
        "pyro-zoo": f"{found.versions['pyro-zoo']} ({git})",
        "python": f"{found.python['version']}, {found.python['implementation']}, {found.python['executable']}",
        "system": f"{found.platform['system']} {found.platform['release']}, {found.platform['architecture']}",
        "processor": f"{found.platform['processor']}; {found.cores['usable']} of {found.cores['machine']} cores",
        "memory": _size(found.memory) if found.memory else "unknown",
        "threads": f"{found.threads['within']} within an operation, {found.threads['between']} between",
        "devices": ", ".join(found.devices),
        "compiler": f"{found.compiler['path']}: {found.compiler['version']}" if found.compiler["path"] else "none",
        "compiling": tried,
        "cache": f"{cache['folder']}: {cache['files']:,} files, {_size(cache['bytes'])}",
        "packages": ", ".join(f"{k} {v or 'missing'}" for k, v in found.versions.items() if k != "pyro-zoo"),
        "extras": ", ".join(f"{k} {v or 'absent'}" for k, v in found.extras.items()),
        "variables": ", ".join(f"{k}={v}" for k, v in found.variables.items()) or "none",
    }
    table = _table("", "")
    table.show_header = False
    for key, value in rows.items():
        _add(table, key, value)
    problems = [f"problem: {problem}" for problem in found.problems]
    say.result(found.to_json(), table, *(problems or ["nothing is wrong"]), bare="\n".join(found.problems))
    if found.problems:
        raise typer.Exit(1)


# --------------------------------------------------------------------------------------------------------- authors
@app.command(epilog=_EPILOG)
def new(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Lower-case letters, digits and underscores.", metavar="NAME", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for files that stand alone. Default: the checkout, or this folder.")
    ] = None,
) -> None:
    """Write a method file and its test from a working template, for you to rewrite."""
    from zoo import scaffold

    files = [
        path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        for path in scaffold.new(name, out=out)
    ]
    alone = len(files) == 2
    steps = [f"zoo check {files[0] if alone else name}", f"python -m pytest {files[1]}"]
    if not alone:
        steps.append(f"python -m pytest tests/test_conformance.py -k {name}")
    values = {"name": name, "files": [str(path) for path in files], "next": steps}
    shown = [
        *(f"wrote: {path}" for path in files),
        "",
        "They work as they are. Replace the example, part by part; then:",
    ]
    ctx.obj.result(values, *shown, *(f"  {step}" for step in steps), bare="\n".join(map(str, files)))


@app.command(hidden=True, epilog=_EPILOG)
def docs(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Methods. Default: all.", metavar="[NAME]...", show_default=False, autocompletion=_complete_methods
        ),
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures", help="Draw the model and photograph the report of a fit (Graphviz, Chromium).")
    ] = False,
) -> None:
    """Write docs/NAME.md of a source checkout from the method's file; what is written by hand stays."""
    from zoo import pages

    folder = Path(__file__).parent.parent / "docs"
    with _warnings(ctx.obj):
        files = [str(path) for path in pages.write(names or registry.names(), folder, figures=figures)]
    ctx.obj.result({"files": files}, *(f"wrote: {path}" for path in files), bare="\n".join(files))


# --------------------------------------------------------------------------------------------------------- helpers
def _entry(name: str) -> registry.Entry:
    return next(e for e in registry.entries() if e.name == name)


def _escaped(*cells: str) -> list[str]:
    from rich.markup import escape

    return [escape(cell) for cell in cells]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _value(choice: StrEnum | None) -> str | None:
    return None if choice is None else choice.value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    """How the user's own file is read; see :func:`zoo.datasets.read`.

    Args:
        target: Column to predict.
        drop: Columns to leave out.
        missing: ``refuse``, ``drop``, ``level`` or ``keep``.
        group: Column that says the group of a row.
        sensitive: Column of which a representation shall tell nothing.
        task: ``classification``, ``regression`` or ``density``; ``None`` infers it.
        categorical: Columns that hold names.
        na: Words that mean a missing entry.
        day_first: Whether 03/04/2020 is in April.
        rare: Categories with fewer training rows are pooled.
    """

    target: str | None = None
    drop: Sequence[str] = ()
    missing: str = "refuse"
    group: str | None = None
    sensitive: str | None = None
    task: str | None = None
    categorical: Sequence[str] = ()
    na: Sequence[str] = ()
    day_first: bool | None = None
    rare: int = 5

    def check(self, method: Method[Any]) -> None:
        """Refuse a group or a sensitive column that the method would not look at.

        Args:
            method: What is to be fitted.

        Raises:
            DataError: If the method knows no groups, or no sensitive column.
        """
        if self.sensitive is not None and method.task != "fair_representation":
            able = ", ".join(e.name for e in registry.entries() if e.task == "fair_representation")
            raise DataError(f"{method.name} knows no sensitive column; leave out --sensitive, or choose one of: {able}")
        if self.group is not None and not method.groups:
            able = ", ".join(n for n in registry.names() if getattr(registry.get(n), "groups", False))
            raise DataError(f"{method.name} knows no groups; leave out --group, or choose a method that does: {able}")

    def of(self, method: Method[Any], data: str) -> _Own:
        """Return how a file is read for a method: as features alone, where it models these and no target is named.

        A method for fair representations needs the sensitive column of a file.

        Args:
            method: What is to be fitted.
            data: Name of the data.

        Returns:
            These options, or the task ``density`` among them.

        Raises:
            DataError: If a sensitive column is needed and none is named.
        """
        if method.task == "fair_representation" and self.sensitive is None and _is_file(data):
            raise DataError(f"{method.name} needs the sensitive column of '{data}'; name it: --sensitive COLUMN")
        if method.task == "density" and self.target is None and self.task is None and _is_file(data):
            return dataclasses.replace(self, task="density")
        return self


def _is_file(name: str) -> bool:
    from zoo import datasets

    return name not in datasets.names() and (Path(name).exists() or bool(Path(name).suffix) or os.sep in name)


def _dataset(name: str, own: _Own | None = None) -> Dataset:
    """Load a bundled data set by name, or read the user's own file.

    Args:
        name: Name or path; what exists as a file or looks like a path is one.
        own: How to read a file.

    Returns:
        The data set.

    Raises:
        DataError: If an option for files is given for a bundled data set, or the file does not exist.
    """
    from zoo import datasets

    own = own or _Own()

    if _is_file(name):
        if not Path(name).exists():
            raise DataError(f"file '{name}' does not exist; give the path of a file, or a name from `zoo data list`")
        return datasets.read(name, **dataclasses.asdict(own))
    data = datasets.load(name)
    target = "none" if data.target is None else data.target.name
    if own.target is not None and own.target != target:
        raise DataError(f"data set '{name}' has the target '{target}'; --target is for your own files")
    for option in ("drop", "group", "sensitive", "task", "categorical", "na", "day_first", "rare"):
        if getattr(own, option) not in (getattr(_Own(), option), []):
            flag = option.replace("_", "-")
            raise DataError(f"data set '{name}' is taken as it is; --{flag} is for your own files")
    return data


def _pairs(items: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise DataError(f"--hyper '{item}' is no KEY=VALUE; write for example --hyper hidden=300,100")
        found[key.strip()] = value.strip()
    return found


def _given(ctx: typer.Context) -> set[str]:
    """Return the names of the parameters that stand on the command line.

    Args:
        ctx: Context of the command.

    Returns:
        Names as written, without dashes in front.
    """
    found = set()
    for key in ctx.params:
        source = ctx.get_parameter_source(key)
        if source is not None and source.name == "COMMANDLINE":
            found.add(key)
    return found


def _command(ctx: typer.Context) -> str:
    """Return the command line that repeats a fit.

    Args:
        ctx: Context of the command.

    Returns:
        The command with every option that was given.
    """
    given = _given(ctx)
    words = ["zoo", str(ctx.command.name)]
    if _rank() is not None:
        env = os.environ
        each, nodes = env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"]), env.get("GROUP_WORLD_SIZE", "1")
        more = [] if nodes == "1" else ["--nnodes", nodes]
        words = ["torchrun", *more, "--nproc-per-node", each, "-m", *words]
    for param in ctx.command.params:
        key = str(param.name)
        if key not in given:
            continue
        value = ctx.params[key]
        if param.param_type_name == "argument":
            words += map(str, value if isinstance(value, list) else [value])
            continue
        flag = max([*param.opts, *param.secondary_opts], key=len)
        if isinstance(value, bool):
            words.append(param.opts[0] if value else param.secondary_opts[0] if param.secondary_opts else flag)
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            words += [param.opts[0], str(item.value if isinstance(item, StrEnum) else item)]
    return shlex.join(words)


def _free(path: Path) -> Path:
    """Return a path that does not exist yet.

    Args:
        path: The wish.

    Returns:
        It, or with the first number behind it that is free.
    """
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _refuse_existing(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out '{folder}' is a file; name a folder")
    outputs.recover(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    mine = {path.name for path in outputs.ours(folder)}
    if not overwrite:
        unfinished = outputs.SETTINGS in mine and "posterior.json" not in mine
        more = f"go on with it by `zoo fit --resume {folder}`, or " if unfinished else ""
        raise DataError(f"--out '{folder}' exists and is not empty; {more}add --overwrite or choose another folder")
    if not mine & {"posterior.json", outputs.SETTINGS}:
        raise DataError(
            f"--out '{folder}' holds no posterior of the zoo, so nothing is replaced; choose another folder"
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / outputs.SETTINGS
    outputs.recover(folder)
    if (folder / "posterior.json").exists():
        raise DataError(f"the fit in '{folder}' is finished; `zoo report {folder}` writes its report")
    if not path.is_file():
        raise DataError(f"'{folder}' holds no interrupted fit (no {path.name}); start one with --checkpoint --out DIR")
    try:
        found = jsonlib.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("name"), str) or "checkpoint" not in found:
            raise ValueError("it lacks settings")
    except ValueError as error:
        raise ArtifactError(f"'{path}' is damaged: {error}") from error
    return found


@contextmanager
def _warnings(say: Say) -> Iterator[None]:
    """Show each warning as one line on stderr.

    Args:
        say: Where words go.

    Yields:
        Nothing.
    """
    import warnings

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning | RuntimeWarning):
            say.note(f"note: {_in_flags(' '.join(str(message).split()))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.filterwarnings("ignore", message="There is a performance drop")  # torch.vmap, of its own operators
        yield


def main() -> None:
    """Run the command line; the entry point of ``zoo`` and ``python -m zoo``."""
    # Torch's threads spin at barriers by default: with another program on the cores, a step then takes 20 times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="zoo")
    except KeyboardInterrupt:
        typer.echo("error: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
