"""Bad inputs of every kind, to the command line and to :func:`zoo.fit`, and what must become of them.

A bad input ends in one line, exit status 2 and nothing written; through Python, in a typed error of one line. What it
has to name (the column, the shapes, the nearest known name) is part of each case.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from typer.testing import CliRunner

import zoo
from zoo import cli, registry
from zoo.datasets import names as data_names
from zoo.errors import ZooError

__all__ = ["Call", "Command", "calls", "commands", "examine_call", "examine_command", "tried"]

Draw = Callable[[Any], Any]
QUICK = ("--engine", "svi", "--steps", "2", "--no-compile", "--no-report")


# -------------------------------------------------------------------------------------------------- command line
@dataclass(frozen=True)
class Command:
    """A command line with the files that it finds.

    Args:
        kind: What is wrong.
        args: Of ``zoo``.
        files: Name -> content of what is there before; ``None`` for a folder.
        says: Words of the error, each somewhere in its line.
        fine: Whether it may also be no error at all; then the fit is whole.
    """

    kind: str
    args: tuple[str, ...]
    files: dict[str, bytes | None] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    fine: bool = False


def table(draw: Draw, rows: int | None = None) -> pd.DataFrame:
    """Draw a sound table of two numbers, a text, and a target of one kind or the other."""
    count = draw(st.integers(24, 40)) if rows is None else rows
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    frame = pd.DataFrame({"size": rng.standard_normal(count), "age": rng.integers(20, 90, count)})
    frame["town"] = np.array(["Łódź", "Bern", "Oslo"])[np.arange(count) % 3]
    frame["price"] = frame["size"] + rng.standard_normal(count)
    frame["kind"] = np.array(["a", "b"])[rng.permutation(count) % 2]
    return frame


def _fit(kind: str, frame: pd.DataFrame | bytes, *more: str, target: str = "price", **options: Any) -> Command:
    content = frame if isinstance(frame, bytes) else frame.to_csv(index=False).encode()
    network = target == "kind" or kind == "10,000 columns"  # the summary of a horseshoe with so many takes seconds
    method, hyper = ("map_network", ("--hyper", "hidden=3")) if network else ("horseshoe_regression", ())
    args = ("fit", method, "--data", "mine.csv", "--target", target, *hyper, *QUICK, "--out", "out", *more)
    return Command(kind, args, {"mine.csv": content}, **options)


def _target(draw: Draw) -> str:
    return str(draw(st.sampled_from(["price", "kind"])))


def _missing(draw: Draw, kind: str) -> Command:
    frame, column = table(draw), draw(st.sampled_from(["size", "age", "town", "price", "kind"]))
    value = draw(
        # Among texts NA is a category, and said to be one.
        st.sampled_from(["", "NaN", "NA", "inf", "-inf"] if column in ("size", "age", "price") else [""])
    )
    frame[column] = frame[column].astype(object)
    frame.loc[draw(st.integers(0, len(frame) - 1)), column] = value
    target, infinite = _target(draw), "inf" in value
    says = (column, "infinite" if infinite else "missing (NaN)")
    # Rows without a target are dropped, with a note.
    return _fit(kind, frame, target=target, says=says, fine=column == target and not infinite)


def _constant(draw: Draw, kind: str) -> Command:
    frame = table(draw)
    gone = draw(st.lists(st.sampled_from(["size", "age", "town"]), min_size=1, unique=True))
    frame[gone] = draw(st.sampled_from([0, 7.5, "same"]))
    says = ("no feature is left",) if len(gone) == 3 else ()
    return _fit(kind, frame.drop(columns="kind"), says=says, fine=len(gone) < 3)


def _one_class(draw: Draw, kind: str) -> Command:
    frame, target = table(draw), _target(draw)
    frame[target] = draw(st.sampled_from([1, 2.5, -3] if target == "price" else ["yes", "1", "é"]))
    more = (
        "--task",
        draw(st.sampled_from(["classification", "regression"])) if target == "price" else "classification",
    )
    return _fit(kind, frame, *more, target=target, says=(target, "one"))


def _few_rows(draw: Draw, kind: str) -> Command:
    rows = draw(st.integers(0, 2))
    return _fit(kind, table(draw, 24)[:rows], target=_target(draw), says=("rows",) if rows == 0 else (), fine=rows == 2)


def _empty(draw: Draw, kind: str) -> Command:
    content = draw(st.sampled_from([b"", b"\n", b" \n\r\n ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n\n"]))
    return _fit(kind, content, says=("empty",))


def _unicode(draw: Draw, kind: str) -> Command:
    frame = table(draw)
    text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
    frame = frame.rename(columns={"size": draw(text), "town": draw(text)})
    frame["label"] = np.array([draw(text), draw(text)])[np.arange(len(frame)) % 2]
    return _fit(kind, frame, fine=True)


def _encoding(draw: Draw, kind: str) -> Command:
    frame, codec = table(draw), draw(st.sampled_from(["utf-16", "utf-32", "iso8859_2"]))
    marked = codec != "iso8859_2"  # a mark says how the file is to be read
    return _fit(kind, frame.to_csv(index=False).encode(codec), says=("UTF-8",), fine=marked)


def _wide(draw: Draw, kind: str) -> Command:
    rows, columns = 12, 10_000
    x = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 90, (rows, columns))
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(columns)]).assign(price=x[:, :3].sum(1) + 0.5)
    if draw(st.booleans()):
        return _fit(kind, frame, fine=True)
    return _fit(kind, frame, target="x10001", says=("'x10001' is unknown", "did you mean 'x"))


def _ragged(draw: Draw, kind: str) -> Command:
    lines = table(draw).to_csv(index=False).splitlines()
    at = draw(st.integers(1, len(lines) - 1))
    more = draw(st.sampled_from([",1", ",,", ",1,2,3", ',"x']))
    lines[at] += more
    return _fit(kind, "\n".join(lines).encode(), fine=more == ",,")  # trailing separators hold nothing


def _twins(draw: Draw, kind: str) -> Command:
    frame = table(draw)
    frame.columns = pd.Index(["size", draw(st.sampled_from(["size", " size", "size "])), "town", "price", "kind"])
    return _fit(kind, frame, says=("size",))


def _text_numbers(draw: Draw, kind: str) -> Command:
    frame, column = table(draw), draw(st.sampled_from(["size", "price"]))
    frame[column] = frame[column].map(lambda v: f"{v:.3f}".replace(".", ","))
    return _fit(kind, frame, "--task", "regression", fine=True)  # a decimal comma is read


def _huge_numbers(draw: Draw, kind: str) -> Command:
    frame, column = table(draw), draw(st.sampled_from(["size", "price"]))
    value = draw(st.sampled_from(["1e308", "-1e308", "9" * 400, str(2**64), "1e-320", str(-(2**63) - 1)]))
    frame[column] = frame[column].astype(object)
    frame.loc[3, column] = value
    return _fit(kind, frame, "--task", "regression", fine=value in (str(2**64), "1e-320", str(-(2**63) - 1)))


def _misspelt(draw: Draw, name: str) -> str:
    at = draw(st.integers(1, len(name) - 2))
    way = draw(st.integers(0, 2))
    return (name[:at] + name[at + 1 :], name[:at] + "q" + name[at:], name[:at] + "q" + name[at + 1 :])[way]


def _unknown(draw: Draw, kind: str) -> Command:
    frame = table(draw)
    way = draw(st.sampled_from(["method", "data", "target", "drop", "group", "hyper", "task", "command"]))
    methods = [e.name for e in registry.entries() if e.kind == "method"]
    if way == "method":
        name = draw(st.sampled_from(methods))
        command = draw(st.sampled_from(["fit", "show", "cite", "check", "reproduce"]))
        return Command(kind, (command, _misspelt(draw, name)), {}, ("unknown", "did you mean '"))
    if way == "data":
        name = draw(st.sampled_from(data_names()))
        return Command(kind, ("data", "show", _misspelt(draw, name)), {}, ("unknown", "did you mean '"))
    if way == "target":
        return _fit(kind, frame, target=_misspelt(draw, "price"), says=("did you mean 'price'",))
    if way in ("drop", "group"):
        method = "hierarchical_regression" if way == "group" else "horseshoe_regression"
        args = ("fit", method, "--data", "mine.csv", "--target", "price", f"--{way}", _misspelt(draw, "town"))
        return Command(kind, args, {"mine.csv": frame.to_csv().encode()}, (way, "did you mean 'town'"))
    if way == "hyper":
        name = draw(st.sampled_from(methods))
        known = dataclasses.fields(registry.get(name).hyper)[0].name
        wrong = _misspelt(draw, known)
        return Command(kind, ("fit", name, "--hyper", f"{wrong}=1"), {}, (f"hyper-parameter '{wrong}' is unknown",))
    if way == "task":
        return Command(kind, ("list", "--task", _misspelt(draw, "regression")), {}, ("did you mean 'regression'",))
    return Command(kind, (_misspelt(draw, "report"), "x"), {}, ("No such command".lower(), "see zoo --help"))


_NUMBERS: dict[str, list[str]] = {
    "--steps": ["-5", "0", "1.5", "nan", "x", "", str(10**9), str(10**30), "99999999999999999999"],
    "--seed": ["-1", "1.5", "x", str(2**63), str(10**30)],
    "--learning-rate": ["-1", "0", "nan", "inf", "x", "1e999"],
    "--batch-size": ["-1", "2.5", "x"],
    "--restarts": ["0", "-3", "x", str(10**30)],
    "--checkpoint-every": ["0", "-1", "x", str(10**30)],
    "--checkpoint-keep": ["0", "-1", "x"],
    "--chains": ["0", "-1", "x", str(10**30)],
    "--tune": ["0", "-1", str(10**30)],
    "--draws": ["0", "-1", "x", str(10**30)],
    "--engine": ["sv", "", "mcmc"],
    "--dtype": ["float16", "int", ""],
    "--device": ["abacus", "", "cuda:99", "meta", "cpu:3"],
}


def _number(draw: Draw, kind: str) -> Command:
    option = draw(st.sampled_from(sorted(_NUMBERS)))
    value = draw(st.sampled_from(_NUMBERS[option]))
    engine = "nuts" if option in ("--chains", "--tune", "--draws") else "svi"
    own = ("--no-compile",) if option == "--engine" else ("--engine", engine, "--no-compile")
    named = option.strip("-").replace("-", "")
    return Command(kind, ("fit", "eight_schools", *own, f"{option}={value}", "--out", "out"), {}, (named,))


_HYPERS = [
    ("map_network", "hidden", ["-1", "0", "x", "1.5", str(10**30), str(10**15), "3,-1"]),
    ("map_network", "prior_scale", ["-1", "0", "x", "nan", "inf"]),
    ("map_network", "channels", ["2", "-1"]),
    ("deep_ensemble", "num_members", ["0", "-1", "x", str(10**15)]),
    ("horseshoe_regression", "num_relevant", ["x", "nan", "-1"]),
    ("horseshoe_regression", "guide", ["x", "", "1"]),
    ("eight_schools", "mu_scale", ["-1", "x", "nan", "0"]),
    ("dropout_network", "rate", ["-1", "1", "2", "nan"]),
]


def _hyper(draw: Draw, kind: str) -> Command:
    name, key, values = draw(st.sampled_from(_HYPERS))
    data = ("--data", "iris") if "network" in name or "ensemble" in name else ()
    args = ("fit", name, *data, "--hyper", f"{key}={draw(st.sampled_from(values))}", *QUICK, "--out", "out")
    return Command(kind, args, {}, ())


def _unwritable(draw: Draw, kind: str) -> Command:
    files: dict[str, bytes | None] = {"file": b"mine", "full": None, "full/notes.txt": b"mine"}
    out = draw(st.sampled_from(["file", "file/x", "file/x/y", "/dev/null/x", "/proc/x/y", "x" * 300, "full"]))
    command = draw(st.sampled_from(["fit", "checkpoint", "overwrite"]))
    more = {"checkpoint": ("--checkpoint",), "overwrite": ("--overwrite",)}.get(command, ())
    return Command(kind, ("fit", "eight_schools", *QUICK, "--out", out, *more), files, (Path(out).name[:20],))


def _unwritable_file(draw: Draw, kind: str) -> Command:
    out = draw(st.sampled_from(["file/x.html", "/dev/null/x.html", "x.pdf", "/proc/x.html", "x" * 300 + ".html"]))
    return Command(kind, ("report", "fitted", "--out", out), {"file": b"mine", **_fitted()}, ())


@cache
def _fitted() -> dict[str, bytes | None]:
    """Return the files of a fit to a table with a text column."""
    with tempfile.TemporaryDirectory() as place:
        frame = table(lambda strategy: 5, 30)
        data = zoo.datasets.read(frame.drop(columns="kind"), target="price", name="mine")
        folder = zoo.fit("horseshoe_regression", data, engine="svi", steps=2, compile=False).save(place)
        return {"fitted": None, **{f"fitted/{path.name}": path.read_bytes() for path in folder.iterdir()}}


def _prediction(draw: Draw, kind: str) -> Command:
    frame = table(draw)
    way = draw(st.integers(0, 4))
    says: tuple[str, ...] = ()
    if way == 0:
        frame.loc[2, "town"], says = "Atlantis", ("town", "'Atlantis'", "Bern")
    elif way == 1:
        frame, says = frame.drop(columns="age"), ("missing: age",)
    elif way == 2:
        frame.loc[2, "size"], says = np.nan, ("size", "missing")
    elif way == 3:
        frame["age"], says = "old", ("age", "text")
    else:
        frame, says = frame[:0], ("no rows",)
    files = {"new.csv": frame.to_csv(index=False).encode(), **_fitted()}
    return Command(
        kind, ("predict", "fitted", "--data", "new.csv", "--out", "predictions.csv", "--strict"), files, says
    )


def _arrays(draw: Draw, kind: str) -> Command:
    rows = 24
    x, y = np.random.default_rng(0).standard_normal((rows, 2)), np.arange(rows) % 2
    entries: dict[str, Any] = {"x": x, "y": y}
    way = draw(st.integers(0, 7))
    says: tuple[str, ...] = ("'x'",)
    if way == 0:
        entries["y"], says = y[:-3], ("'x' (24 rows)", "'y' (21 rows)")
    elif way == 1:
        entries["x"], says = x.reshape(rows, 1, 1, 1, 2), ("'x'", "(24, 1, 1, 1, 2)")
    elif way == 2:
        entries["x"] = x.astype(complex)
    elif way == 3:
        entries["x"], says = np.zeros((rows, 3, 4)), ()
        entries["z"] = y
    elif way == 4:
        entries["y"], says = np.stack([y, y], 1), ("'y'", "several columns")
    elif way == 5:
        entries["x"], says = np.where(x > x.max() / 2, np.inf, x), ("x", "infinite")
    elif way == 6:
        entries["x"], says = np.float64(3.0), ("'x'", "single value")
    else:
        entries["x"], says = np.full((rows, 2), np.datetime64("2020-01-01")), ("no feature",)
    with tempfile.TemporaryDirectory() as place:
        np.savez(f"{place}/a.npz", **entries)
        content = Path(f"{place}/a.npz").read_bytes()
    args = ("fit", "map_network", "--data", "a.npz", "--target", "y", *QUICK, "--out", "out", "--hyper", "hidden=2")
    return Command(kind, args, {"a.npz": content}, says)


_COMMANDS: dict[str, Callable[[Draw, str], Command]] = {
    "missing or infinite values": _missing,
    "constant columns": _constant,
    "one class, one value": _one_class,
    "no, one or two rows": _few_rows,
    "empty files": _empty,
    "names and labels in any script": _unicode,
    "other encodings": _encoding,
    "10,000 columns": _wide,
    "rows with too many fields": _ragged,
    "columns named twice": _twins,
    "numbers as text": _text_numbers,
    "numbers out of range": _huge_numbers,
    "unknown names": _unknown,
    "options out of range": _number,
    "hyper-parameters out of range": _hyper,
    "folders that cannot be written": _unwritable,
    "pages that cannot be written": _unwritable_file,
    "new rows unlike the training's": _prediction,
    "arrays of wrong shapes and types": _arrays,
}


@st.composite
def commands(draw: Draw) -> Command:
    """Draw a command of a kind that is drawn first."""
    kind = draw(st.sampled_from(sorted(_COMMANDS)))
    return _COMMANDS[kind](draw, kind)


@contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def examine_command(command: Command, folder: Path) -> str:
    """Run a command among its files.

    Args:
        command: The command.
        folder: A place for it, emptied before.

    Returns:
        ``refused`` or ``fine``; whatever is not allowed raises.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in command.files.items():
        if content is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)
    before = _listing(folder)
    with _within(folder):
        result = CliRunner().invoke(cli.app, list(command.args))
    text = f"{command.kind}: zoo {' '.join(command.args)[:300]}: {result.stderr[-1500:]}"
    if result.exit_code == 0:
        assert command.fine, f"no error: {text}"
        made = sorted(set(_listing(folder)) - set(before))
        assert made == ["out", "out/posterior.json", "out/posterior.safetensors"], text
        return "fine"
    assert result.exit_code == 2, f"exit status {result.exit_code}: {text}: {result.exception!r}"
    assert result.stdout == "", text
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert lines[-1] == errors[0], text
    assert "(not expected" not in errors[0], text
    assert "Traceback" not in result.stderr, text
    said = re.sub("[-_]", "", errors[0]).lower() if command.kind == "options out of range" else errors[0]
    for words in command.says:
        assert words in said, f"'{words}' is not said: {text}"
    assert _listing(folder) == before, f"something was written: {text}"
    return "refused"


# ------------------------------------------------------------------------------------------------------- Python
@dataclass(frozen=True)
class Call:
    """A call of :func:`zoo.fit`.

    Args:
        kind: What is wrong.
        args: Method, and data where they are not the default.
        options: Keywords.
        says: Words of the error.
    """

    kind: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    says: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Call({self.kind!r}, {self.options!r}, {self.says!r})"


_BAD: dict[str, list[Any]] = {
    "steps": [-5, 0, 1.5, True, "9", 10**30, float("nan"), [3]],
    "seed": [-1, 2**63, 1.5, True, "1", [0]],
    "restarts": [0, -1, 2.5, 10**30],
    "learning_rate": [0, -1.0, float("nan"), float("inf"), "0.1", True, 1j],
    "batch_size": [-1, 1.5, "8", True],
    "optimizer": ["adm", "", 3, object],
    "schedule": ["cosin", "x", 1.0],
    "warmup": [-0.1, 1.5, float("nan"), "x"],
    "kl_warmup": [-0.1, 2, float("nan")],
    "clip_norm": [0, -1.0, float("nan"), "x"],
    "weight_decay": [-1.0, float("nan"), "x"],
    "num_particles": [0, -1, 1.5, "x"],
    "target_accept": [0, 1, -1, 2, float("nan"), "x"],
    "max_treedepth": [0, 21, 1.5, True, "x"],
    "workers": [0, -1, 1.5, "x"],
    "retry": [None, 1, "no"],
    "low_rank_mass_matrix": [1, "no"],
    "chains": [0, -1, 1.5, True],
    "draws": [0, -1, 10**30, "x"],
    "tune": [-5, 10**30, 1.5],
    "device": ["abacus", 3.5, "meta", object],
    "dtype": ["float16", "x", 32, torch.float32],
    "engine": ["sv", "mcmc", 3],
    "checkpoint_every": [0, -1, 2.5],
    "checkpoint_keep": [0, -1, 2.5],
    "init": [3, {"mu_loc": 1.0}, {"nothing": torch.zeros(1)}, {"mu_loc": torch.zeros(3)}],
    "hyper": [3, {"centred": "maybe"}, {"centered": True}, {"mu_scale": [1]}, {"mu_scale": None}, {"tau_scale": {}}],
}


_OF_NUTS = (
    "chains", "draws", "tune", "target_accept", "max_treedepth", "workers", "retry", "low_rank_mass_matrix",
)  # fmt: skip


def _bad_option(draw: Draw, kind: str) -> Call:
    name = draw(st.sampled_from(sorted(_BAD)))
    value = draw(st.sampled_from(_BAD[name]))
    engine = "nuts" if name in _OF_NUTS else "svi"
    says = () if name in ("hyper", "init") else (name,)
    options = {"engine": engine, "steps": 2, "compile": False} | {name: value}
    return Call(kind, ("eight_schools",), options, says)


def _batch() -> dict[str, torch.Tensor]:
    x = torch.linspace(-1, 1, 24).reshape(12, 2)
    return {"x": x, "y": torch.arange(12) % 3, "index": torch.arange(12)}


def _bad_batch(draw: Draw, kind: str) -> Call:
    batch = _batch()
    x, y = batch["x"], batch["y"]
    way = draw(st.integers(0, 10))
    says: tuple[str, ...] = ("'x'",)
    if way == 0:
        batch["x"], says = x.to(torch.int64), ("'x'", "torch.int64", "floating-point")
    elif way == 1:
        batch["y"], says = y.float(), ("'y'", "torch.float32", "int64")
    elif way == 2:
        batch["y"], says = y[:-2], ("'y' has 10 rows", "'index' has 12")
    elif way == 3:
        batch["x"], says = x[:, 0], ("'x'", "(12,)")
    elif way == 4:
        batch["y"], says = y[:, None], ("'y'", "(12, 1)")
    elif way == 5:
        batch["x"] = x.clone().index_fill_(0, torch.tensor(3), draw(st.sampled_from([float("nan"), float("inf")])))
    elif way == 6:
        batch["y"], says = y + draw(st.sampled_from([-1, 1, 2**40])), ("labels from", "3 classes")
    elif way == 7:
        gone = draw(st.sampled_from(["x", "y", "index"]))
        batch.pop(gone)
        says = (f"'{gone}'",)
    elif way == 8:
        batch["index"], says = draw(st.sampled_from([torch.arange(12) + 1, torch.zeros(12).long()])), ("'index'",)
    elif way == 9:
        batch, says = {k: v[:0] for k, v in batch.items()}, ("no rows",)
    else:
        batch["x"] = x.to(torch.complex64)
    classes = 3
    if way == 6 and draw(st.booleans()):
        batch["y"], classes = y, draw(st.sampled_from([2, 0, -1, "3", None]))
        says = ()
    data = zoo.types.Dataset(name="mine", task="classification", train=batch, extra={"num_classes": classes})
    return Call(kind, ("map_network", data), {"steps": 2, "compile": False, "hyper": {"hidden": (2,)}}, says)


def _bad_pair(draw: Draw, kind: str) -> Call:
    def model(batch: zoo.types.Batch) -> None:
        pyro.sample("y", pyro.distributions.Normal(pyro.param("a", torch.zeros(())), 1.0), obs=batch["y"])

    data: list[tuple[Any, tuple[str, ...]]] = [
        ({}, ("empty",)),
        ({"y": "text"}, ("'y'", "str")),
        ({"y": [[1.0], [1.0, 2.0]]}, ("'y'", "list")),
        ({"y": torch.tensor(float("nan"))}, ("'y'", "NaN")),
        ({"y": [2**80]}, ("'y'",)),
        ({"x": torch.zeros(3)}, ()),
        (None, ("needs data",)),
        (3, ("int",)),
        ("eight_scools", ("did you mean 'eight_schools'",)),
    ]
    given_, says = draw(st.sampled_from(data))
    pair = draw(st.sampled_from([zoo.Pair(model, lambda batch: None), zoo.Pair(model)]))
    return Call(kind, (pair, given_), {"engine": "svi", "steps": 2, "compile": False}, says if pair.guide else ())


def _bad_method(draw: Draw, kind: str) -> Call:
    method = draw(st.sampled_from(["eight_scools", "horsehoe_regression", 3, None, [], lambda batch: None]))
    says = ("did you mean",) if isinstance(method, str) else ("method is a",)
    return Call(kind, (method,), {"steps": 2, "compile": False}, says)


_CALLS: dict[str, Callable[[Draw, str], Call]] = {
    "options of wrong type or range": _bad_option,
    "batches of wrong types, shapes and labels": _bad_batch,
    "data of a pair": _bad_pair,
    "methods that are none": _bad_method,
}


@st.composite
def calls(draw: Draw) -> Call:
    """Draw a call of a kind that is drawn first."""
    kind = draw(st.sampled_from(sorted(_CALLS)))
    return _CALLS[kind](draw, kind)


def examine_call(call: Call, folder: Path) -> str:
    """Call :func:`zoo.fit`, which must raise a typed error in one line, write nothing and leave everything as it was.

    Args:
        call: The call.
        folder: Where it would keep checkpoints; need not exist.

    Returns:
        ``refused``.
    """
    random, dtype = torch.get_rng_state(), torch.get_default_dtype()
    try:
        zoo.fit(*call.args, **call.options, checkpoint=folder)
    except ZooError as error:
        text = str(error)
    else:
        raise AssertionError(f"no error: {call}")
    assert text, call
    assert "\n" not in text, f"{call}: {text}"
    for words in call.says:
        assert words in text, f"'{words}' is not said: {call}: {text}"
    assert not folder.exists(), call
    assert torch.equal(torch.get_rng_state(), random), call
    assert torch.get_default_dtype() == dtype, call
    return "refused"


# ---------------------------------------------------------------------------------------------------- at length
def tried(count: int, seed: int) -> dict[str, dict[str, int]]:
    """Try inputs; the first of which something forbidden becomes raises.

    Args:
        count: How many, half of them on the command line.
        seed: Of the inputs.

    Returns:
        Kind -> what became of them -> how many.
    """
    became: dict[str, Counter[str]] = {}
    _fitted()
    options = settings(
        max_examples=count // 2, phases=[Phase.generate, Phase.shrink], deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="zoo-inputs-") as place:

        @seeded(seed)
        @options
        @given(commands())
        def on_the_command_line(command: Command) -> None:
            became.setdefault(command.kind, Counter())[examine_command(command, Path(place) / "here")] += 1

        @seeded(seed)
        @options
        @given(calls())
        def from_python(call: Call) -> None:
            became.setdefault(call.kind, Counter())[examine_call(call, Path(place) / "none")] += 1

        on_the_command_line()
        from_python()
    return {kind: dict(found) for kind, found in became.items()}
