"""The command line: what it prints, its exit codes, and that a failure leaves nothing behind."""

from __future__ import annotations

import html
import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

import zoo
from zoo import cli, registry
from zoo.errors import EngineError

ROOT = {**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parent.parent)}
QUICK = ("--engine", "svi", "--steps", "30", "--no-compile", "--no-report")


def run(*args: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli.app, list(args))


def fails(*args: str) -> str:
    """Run a command that must end in one line and exit 2, and return the line."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in result.stderr
    return lines[-1]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 2))
    y = 3 * x[:, 0] + 0.1 * rng.standard_normal(60)
    path = tmp_path / "mine.csv"
    np.savetxt(path, np.c_[x, y], delimiter=",", header="dose,age,response", comments="")
    return path


# ------------------------------------------------------------------------------------------------------- catalogue
def test_list() -> None:
    result = run("list")
    assert result.exit_code == 0
    for entry in registry.entries():
        assert entry.name in result.stdout


@pytest.mark.parametrize("args", [("--json", "list"), ("list", "--json")])
def test_json_stands_alone_on_stdout_wherever_the_flag_is(args: tuple[str, ...]) -> None:
    found = json.loads(run(*args).stdout)
    assert [e["name"] for e in found] == list(registry.names())


def test_quiet_list_is_bare_names() -> None:
    assert run("list", "-q").stdout.split() == list(registry.names())


def test_list_of_one_task() -> None:
    task = registry.entries()[0].task
    assert {e["task"] for e in json.loads(run("list", "--task", task, "--json").stdout)} == {task}
    assert "no method has the task 'x'" in fails("list", "--task", "x")


def test_list_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, typer\n"
        "from typer.testing import CliRunner\n"
        "from zoo.cli import app\n"
        "assert CliRunner().invoke(app, ['list']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['data', 'list']).exit_code == 0\n"
        "heavy = {'torch', 'pyro', 'pandas', 'matplotlib', 'arviz', 'numpy', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ROOT)
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "zoo", "list"], check=True, capture_output=True, env=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.4


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("zoo show ", list(registry.names())),
        ("zoo fit eigh", ["eight_schools"]),
        ("zoo --quiet fit horse", ["horseshoe_regression"]),
        ("zoo fit eight_schools --data ", list(zoo.datasets.names())),
        ("zoo data show dia", ["diabetes"]),
        ("zoo list --task regr", ["regression"]),
        ("zoo predi", ["predict"]),
        ("zoo fit nothing_like_it", []),
    ],
)
def test_shells_complete_names(line: str, found: list[str]) -> None:
    code = (
        "import sys\n"
        "from zoo.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'torch', 'pandas', 'numpy'} & set(sys.modules), 'heavy'\n"
    )
    env = {**ROOT, "_ZOO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split() == found
    assert done.stderr == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_completion_scripts_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash")  # tests may run under no shell at all
    shown = run("--show-completion")
    assert shown.exit_code == 0
    assert "_ZOO_COMPLETE=complete_bash" in shown.stdout


@pytest.mark.parametrize("name", registry.names())
def test_show_and_cite(name: str) -> None:
    shown = run("show", name)
    assert shown.exit_code == 0
    found = json.loads(run("show", name, "--json").stdout)
    method = registry.get(name)
    assert found["title"] == method.title
    assert set(found["hyper"]) == set(method.hyper.__dataclass_fields__)
    assert len(found["claims"]) == len(method.claims)
    for word in (method.title, method.task, *found["hyper"]):
        assert word in shown.stdout
    if found["kind"] == "method":
        assert (found["use_when"], found["avoid_when"], found["needs"]) == (
            method.use_when,
            method.avoid_when,
            method.needs,
        )
        assert method.use_when.split()[-1] in shown.stdout
    assert run("cite", name).stdout.startswith("@")
    assert method.paper in json.loads(run("cite", name, "--json").stdout)["bibtex"]


def test_show_measures_what_a_fit_costs(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.inference import cost

    seen: dict[str, Any] = {}

    def fake(name: str, data: Any, hyper: Any, *, engine: str | None) -> cost.Cost:
        seen.update(method=name, rows=data.num_data, features=len(data.columns), hyper=hyper, engine=engine)
        return cost.Cost(
            engine="svi", rows=42, parameters=7, latents=5, steps=100, setup=3.0, seconds=200.0, how="Guessed.",
            memory={"parameters": 3_000_000, "data": 1_000_000}, thousand_draws=20_000,
        )  # fmt: skip

    monkeypatch.setattr(cost, "cost", fake)
    args = ("show", "horseshoe_regression", "--data", "mine.csv", "--target", "response", "--drop", "age")
    shown = run(*args, "--hyper", "rank=3", "--engine", "svi")
    assert shown.exit_code == 0, shown.stderr
    for word in ("3 min, 3 s of it to compile", "4 MB: parameters 3 MB, data 1 MB", "20 kB", "Guessed."):
        assert word in shown.stdout
    assert (seen["method"], seen["rows"], seen["features"], seen["engine"]) == ("horseshoe_regression", 42, 1, "svi")
    assert seen["hyper"].rank == 3
    found = json.loads(run(*args, "--json").stdout)["cost"]
    assert (found["seconds"], found["total_memory"]) == (200.0, 4_000_000)
    assert "did you mean 'rank'" in fails(*args, "--hyper", "rnk=3")
    assert "file 'none.csv' does not exist" in fails("show", "horseshoe_regression", "--data", "none.csv")


def test_data_list_and_show(table: Path) -> None:
    found = json.loads(run("data", "list", "--json").stdout)
    assert [e["name"] for e in found] == list(zoo.datasets.names())
    assert {e["task"] for e in json.loads(run("data", "list", "--task", "regression", "--json").stdout)} == {
        "regression"
    }
    shown = json.loads(run("data", "show", "diabetes", "--json").stdout)
    assert sum(shown["rows"].values()) == 442
    assert shown["licence"]
    own = json.loads(run("data", "show", str(table), "--target", "response", "--json").stdout)
    assert [c["name"] for c in own["columns"]] == ["dose", "age"]
    assert "diabetes" in run("data", "show", "diabetes").stdout


def test_a_folder_of_images_is_data() -> None:
    Path("images").mkdir()
    pixels, labels = bytes(range(240)), bytes([0, 1, 2] * 20)
    Path("images/train-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 60, 2, 2) + pixels)
    Path("images/train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 60) + labels)
    shown = json.loads(run("data", "show", "images", "--json").stdout)
    assert (shown["task"], len(shown["columns"]), sum(shown["rows"].values())) == ("classification", 4, 60)


def test_help_and_version() -> None:
    assert run("--version").stdout.strip() == f"pyro-zoo {zoo.__version__}"
    commands = (
        "list",
        "show",
        "cite",
        "fit",
        "predict",
        "report",
        "check",
        "reproduce",
        "diagnostics",
        "doctor",
        "data",
    )
    text = run("--help").stdout
    assert all(c in text for c in commands)
    for command in commands:
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    command = [sys.executable, "-m", "zoo", "--version"]
    module = subprocess.run(command, capture_output=True, text=True, check=True, env=ROOT)
    assert module.stdout.strip() == f"pyro-zoo {zoo.__version__}"


# ---------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "args", [("lst",), ("--bogus",), ("list", "--bogus"), ("fit", "eight_schools", "--steps", "0"), ("show",)]
)
def test_usage_errors_are_one_line_and_name_the_help(args: tuple[str, ...]) -> None:
    command = "zoo" if args[0] in ("lst", "--bogus") else f"zoo {args[0]}"
    assert fails(*args).endswith(f"; see {command} --help")


BAD = [
    (("fit", "eigth_schools"), "did you mean 'eight_schools'"),
    (("fit",), "name a method"),
    (("fit", "eight_schools", "--data", "diabetis"), "did you mean 'diabetes'"),
    (("fit", "eight_schools", "--data", "no.csv"), "file 'no.csv' does not exist"),
    (("fit", "eight_schools", "--target", "x"), "--target is for your own files"),
    (("fit", "eight_schools", "--data", "diabetes"), ""),
    (("fit", "horseshoe_regression", "--data", "mine.csv", "--target", "respons"), "did you mean 'response'"),
    (("fit", "eight_schools", "--hyper", "centered=true"), "did you mean 'centred'"),
    (("fit", "eight_schools", "--hyper", "centred"), "is no KEY=VALUE"),
    (("fit", "eight_schools", "--hyper", "centred=maybe"), "expected bool"),
    (("fit", "eight_schools", "--engine", "nuts", "--steps", "9"), "--steps does not apply"),
    (("fit", "eight_schools", "--engine", "svi", "--chains", "2"), "--chains does not apply"),
    (("fit", "eight_schools", "--engine", "svi", "--no-retry"), "--no-retry does not apply"),
    (("fit", "eight_schools", "--engine", "svi", "--low-rank-mass-matrix"), "--low-rank-mass-matrix does not apply"),
    (("fit", "eight_schools", "--engine", "nuts", "--target-accept", "1.5"), "target_accept is 1.5"),
    (("fit", "eight_schools", "--engine", "nuts", "--skip-nonfinite"), "--skip-nonfinite does not apply"),
    (("fit", "eight_schools", "--engine", "svi", "--learning-rate", "-1"), "learning_rate is -1"),
    (("fit", "eight_schools", "--engine", "svi", "--device", "abacus"), "abacus"),
    (("fit", "eight_schools", "--drop", "x"), "--drop is for your own files"),
    (("fit", "eight_schools", "--group", "x"), "knows no groups; leave out --group, or choose a method that does"),
    (("fit", "hierarchical_regression", "--data", "adult_hours", "--group", "x"), "--group is for your own files"),
    (("data", "show", "mine.csv", "--target", "response", "--group", "grup"), "group column 'grup' is unknown"),
    (("fit", "--resume", "nowhere"), "no interrupted fit"),
    (("fit", "eight_schools", "--resume", "nowhere"), "leave out name"),
    (("report", "nowhere"), "nowhere"),
    (("show", "eight_school"), "did you mean 'eight_schools'"),
    (("cite", "eight_school"), "did you mean 'eight_schools'"),
    (("check", "eight_school"), "did you mean 'eight_schools'"),
    (("check", "no.py"), "file 'no.py' does not exist"),
    (("reproduce", "eight_school"), "did you mean 'eight_schools'"),
    (("data", "show", "diabetis"), "did you mean 'diabetes'"),
]


@pytest.mark.parametrize(("args", "text"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_bad_input_is_one_line_and_writes_nothing(args: tuple[str, ...], text: str, table: Path) -> None:
    assert text in fails(*args)
    assert [p.name for p in Path().rglob("*")] == ["mine.csv"]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("nan.csv", b"x,y\n1,2\n,3\n4,5\n", "1 missing (NaN) in x"),
        ("empty.csv", b"", "empty.csv' is empty"),
        ("text.npz", b"x,y\n1,2\n", "not an NPZ archive"),
        ("header.csv", b"x,y\n", "no rows"),
    ],
)
def test_bad_files_are_one_line_and_write_nothing(name: str, content: bytes, text: str) -> None:
    Path(name).write_bytes(content)
    assert text in fails("fit", "horseshoe_regression", "--data", name, "--target", "y", *QUICK)
    assert [p.name for p in Path().rglob("*")] == [name]


def test_debug_keeps_the_exception() -> None:
    result = run("show", "eight_school", "--debug")
    assert isinstance(result.exception, zoo.errors.UnknownMethodError)


def test_an_unexpected_error_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(registry, "get", broken)
    assert fails("show", "eight_schools") == "error: RuntimeError: two lines (not expected; --debug shows where)"


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str) -> None:
        raise OSError(28, "No space left on device", "/x/y")

    monkeypatch.setattr(registry, "get", full)
    assert fails("show", "eight_schools") == "error: No space left on device '/x/y'"


# ------------------------------------------------------------------------------------------------------------- fit
def test_fit_own_table(table: Path) -> None:
    result = run("fit", "horseshoe_regression", "--data", "mine.csv", "--target", "response", "--out", "o/p", *QUICK)
    assert result.exit_code == 0, result.stderr
    for word in ("rmse", "Quantities of interest", "o/p/posterior.safetensors"):
        assert word in result.stdout
    assert sorted(p.name for p in Path("o/p").iterdir()) == ["posterior.json", "posterior.safetensors"]
    assert sorted(p.name for p in Path("o").iterdir()) == ["p"]
    posterior = zoo.load("o/p")
    assert len(posterior.losses) == 30
    assert posterior.info["command"].startswith("zoo fit horseshoe_regression --data mine.csv --target response")


def test_options_reach_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.inference import runner

    seen: dict[str, Any] = {}

    def fake(method: Any, data: Any, **options: Any) -> None:
        seen.update(options, method=method.name, data=data.name)
        raise EngineError("enough")

    monkeypatch.setattr(runner, "fit", fake)
    args = "fit eight_schools --engine svi --steps 7 --seed 3 --learning-rate 0.5 --batch-size 4 --restarts 2"
    args += " --dtype float64"
    assert fails(*args.split(), "--hyper", "centred=yes", "--hyper", "mu_scale=2", "--device", "cpu") == "error: enough"
    expected = {"engine": "svi", "steps": 7, "seed": 3, "learning_rate": 0.5, "batch_size": 4, "restarts": 2}
    expected |= {"dtype": "float64", "compile": True, "checkpoint": None, "resume": False, "data": "eight_schools"}
    assert {k: seen[k] for k in expected} == expected
    assert (seen["hyper"].centred, seen["hyper"].mu_scale) == (True, 2.0)
    fails("fit", "eight_schools", "--engine", "nuts", "--chains", "2", "--tune", "5", "--draws", "6", "--no-compile")
    assert (seen["chains"], seen["tune"], seen["draws"], seen["compile"]) == (2, 5, 6, False)
    assert not {"target_accept", "low_rank_mass_matrix", "retry"} & set(seen)  # the defaults are those of the fit
    args = "fit eight_schools --engine nuts --target-accept 0.95 --max-treedepth 8 --low-rank-mass-matrix --workers 1"
    fails(*args.split(), "--sampler", "pyro", "--no-retry")
    expected = {"target_accept": 0.95, "max_treedepth": 8, "low_rank_mass_matrix": True, "workers": 1, "retry": False}
    assert {k: seen[k] for k in expected} == expected
    assert seen["sampler"] == "pyro"
    fails("fit", "eight_schools", "--engine", "nuts", "--diagonal-mass-matrix")
    assert seen["low_rank_mass_matrix"] is False
    assert not Path("runs").exists()


def test_every_option_of_the_sampler_is_on_the_command_line() -> None:
    from zoo.inference import runner

    told = re.findall(r"^ +(\w+): \(nuts\)", runner.fit.__doc__ or "", re.MULTILINE)
    assert len(told) == 9
    assert set(told) == set(cli._NUTS_ONLY)


def test_fit_with_report_and_json() -> None:
    result = run("fit", "eight_schools", "--engine", "svi", "--steps", "60", "--no-compile", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["folder"] == "runs/eight_schools"
    assert found["verdict"] in ("usable", "usable with care", "do not use")
    assert found["quantities"]
    assert found["fit"]["command"] == "zoo fit eight_schools --engine svi --steps 60 --no-compile"
    for path in found["files"].values():
        assert Path(path).stat().st_size > 0
    numbers = json.loads(Path("runs/eight_schools/report.json").read_text())
    assert numbers["verdict"] == found["verdict"]
    # The saved posterior reports again, elsewhere, and `--strict` tells a bad answer by its exit code.
    again = run("report", "runs/eight_schools", "--out", "x.html", "--strict", "--json")
    assert [a["name"] for a in found["answers"]] == ["fit", "parameters", "predictions"]
    failed = any(a["use"] == "do not use" for a in numbers["answers"])
    assert again.exit_code == int(failed)
    assert json.loads(again.stdout)["verdict"] == found["verdict"]
    assert all(Path(f"x.{suffix}").exists() for suffix in ("html", "json", "md"))
    assert "pyro-zoo model card" in Path(found["files"]["card"]).read_text()


def test_strict_exits_1_on_a_bad_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.inference import posterior

    use = "do not use"

    def report(path: Path, **_: Any) -> Path:
        check = {"title": "Sound?", "verdict": "fail", "value": 1.0, "threshold": "0"}
        answer = {"question": "Done?", "use": use, "reason": "Because.", "command": "zoo fit x", "python": ""}
        keys = {"scores": {}, "quantities": {}, "fit": {}, "hyper": {}, "checks": [check], "answers": [answer]}
        path.with_suffix(".json").write_text(json.dumps({"verdict": "do not use", "reasons": ["Because."], **keys}))
        return path

    fake = SimpleNamespace(name="x", report=report)
    monkeypatch.setattr(posterior, "load", lambda folder, **_: fake)
    result = run("report", ".", "--strict")
    assert result.exit_code == 1
    for word in ("Sound?", "fail", "do not use", "Because.", "Done?", "try: zoo fit x"):
        assert word in result.stdout
    assert run("report", ".").exit_code == 0
    use = "not meant to be read"
    assert run("report", ".", "--strict").exit_code == 0


def test_compare_prints_writes_and_refuses(table: Path) -> None:
    for seed in ("0", "1"):
        args = ("--data", str(table), "--target", "response", "--hyper", "guide=mean_field", "--out", f"f{seed}")
        assert run("fit", "horseshoe_regression", *QUICK, "--seed", seed, *args).exit_code == 0
    result = run("compare", "f0", "f1", "--out", "page.html", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {fit["label"] for fit in found["fits"]} == {"f0", "f1"}
    for fit in found["fits"]:  # of two steps: a leave-one-out density that cannot be trusted ranks nothing
        assert fit["difference"] is None
    for fit in found["fits"]:
        assert fit["verdict"] is None
        assert fit["seconds"] > 0
        assert fit["peak_memory"] > 1e7
        assert fit["parameters"] > 0
        assert fit["scores"]["rmse"]["se"] > 0
    numbers = json.loads(Path("page.json").read_text())
    assert numbers["finding"] == found["finding"]
    assert found["finding"] in html.unescape(Path("page.html").read_text())
    shown = run("compare", "f0", "f1")
    for word in ("f0", "rmse", "±", "MB", "not checked", found["finding"][:20]):
        assert word in shown.stdout
    assert run("compare", "f0", "f1", "-q").stdout.split() == [fit["label"] for fit in found["fits"]]
    # The verdict of a report counts for the fit that it was written for only.
    report = {"fit": json.loads(Path("f0/posterior.json").read_text())["info"], "verdict": "do not use"}
    Path("f0/report.json").write_text(json.dumps(report))
    Path("f1/report.json").write_text(json.dumps(report))
    again = json.loads(run("compare", "f0", "f1", "--json").stdout)
    assert {fit["label"]: fit["verdict"] for fit in again["fits"]} == {"f0": "do not use", "f1": None}
    assert any("do not use" in caution for caution in again["cautions"])
    assert "two or more" in fails("compare", "f0")
    assert "given twice" in fails("compare", "f0", "./f0")
    assert "must end in .html" in fails("compare", "f0", "f1", "--out", "page.txt")
    assert run("fit", "eight_schools", *QUICK, "--out", "other").exit_code == 0
    assert "same data" in fails("compare", "f0", "other", "--out", "new.html")
    assert not Path("new.html").exists()


def test_full_report_fits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.diagnostics import FULL, diagnosis, refits
    from zoo.diagnostics.check import NotApplicable

    # The machinery of the command with few refits; that the refits judge rightly is measured on the known cases.
    few = refits.Refits
    monkeypatch.setattr(refits, "Refits", lambda posterior, *, num, **more: few(posterior, num=4, **more))

    def sampling(posterior: Any, **_: Any) -> None:
        raise NotApplicable("sampling without a compiled graph takes too long here")

    monkeypatch.setitem(diagnosis.CHECKS, "vi_against_nuts", (sampling, *diagnosis.CHECKS["vi_against_nuts"][1:]))
    assert run("fit", "eight_schools", *QUICK, "--out", "o").exit_code == 0
    result = run("report", "o", "--full", "--json")
    assert result.exit_code == 0, result.stderr
    found = {c["name"]: c for c in json.loads(result.stdout)["checks"]}
    assert set(FULL) <= set(found)
    assert found["simulation_calibration"]["verdict"] != "not run", found["simulation_calibration"]["explanation"]
    assert found["interval_coverage"]["value"]
    assert not any(c["error"] for c in found.values())
    assert not set(FULL) & {c["name"] for c in json.loads(run("report", "o", "--json").stdout)["checks"]}


def test_existing_folders_are_not_overwritten_by_accident() -> None:
    assert run("fit", "eight_schools", *QUICK, "--quiet").stdout.strip() == "runs/eight_schools"
    assert run("fit", "eight_schools", *QUICK, "--quiet").stdout.strip() == "runs/eight_schools-2"
    before = Path("runs/eight_schools/posterior.safetensors").read_bytes()
    assert "--overwrite" in fails("fit", "eight_schools", *QUICK, "--out", "runs/eight_schools")
    assert Path("runs/eight_schools/posterior.safetensors").read_bytes() == before
    args = ("--seed", "1", "--out", "runs/eight_schools", "--overwrite")
    assert run("fit", "eight_schools", *QUICK, *args).exit_code == 0
    assert Path("runs/eight_schools/posterior.safetensors").read_bytes() != before
    assert sorted(p.name for p in Path("runs").iterdir()) == ["eight_schools", "eight_schools-2"]
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years")
    assert "holds no posterior" in fails("fit", "eight_schools", *QUICK, "--out", "mine", "--overwrite")
    assert "is a file" in fails("fit", "eight_schools", *QUICK, "--out", "mine/thesis.txt")
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]


def test_overwrite_replaces_the_fit_and_leaves_what_is_not_of_the_zoo() -> None:
    assert run("fit", "eight_schools", *QUICK, "--out", "o").exit_code == 0
    Path("o/notes").mkdir()
    theirs = {Path("o/thesis.txt"): "years", Path("o/notes/a.txt"): "more"}
    for path, text in theirs.items():
        path.write_text(text)
    before = Path("o/posterior.safetensors").read_bytes()
    for more in ((), ("--checkpoint-every", "5")):
        again = run("fit", "eight_schools", *QUICK, "--out", "o", "--overwrite", "--seed", "1", *more)
        assert again.exit_code == 0, again.stderr
        assert {path: path.read_text() for path in theirs} == theirs
        assert Path("o/posterior.safetensors").read_bytes() != before
    Path("o/report.html").write_text("mine")
    assert "holds report.html, which the zoo did not write" in fails(
        "fit", "eight_schools", *QUICK, "--out", "o", "--overwrite"
    )


def test_a_failing_fit_keeps_the_folder_that_it_would_have_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("fit", "eight_schools", *QUICK, "--out", "o").exit_code == 0
    before = sorted((p.name, p.read_bytes()) for p in Path("o").iterdir())
    from zoo.inference import runner

    def fake(*_: Any, **__: Any) -> None:
        raise EngineError("it broke")

    monkeypatch.setattr(runner, "fit", fake)
    for more in ((), ("--checkpoint-every", "5")):
        assert "it broke" in fails("fit", "eight_schools", *QUICK, "--out", "o", "--overwrite", *more)
        assert sorted((p.name, p.read_bytes()) for p in Path("o").iterdir()) == before
        assert [p.name for p in Path().iterdir()] == ["o"]


def test_interrupted_fit_resumes_to_the_same_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("fit", "eight_schools", *QUICK, "--checkpoint-every", "10")
    assert run(*args, "--out", "whole").exit_code == 0
    from zoo.inference.checkpoint import Checkpoint

    save, saved = Checkpoint.save, []

    def interrupt(self: Checkpoint, state: Any) -> None:
        save(self, state)
        saved.append(int(state.step))
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupt)
    result = run(*args, "--out", "cut")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "error: interrupted; go on with: zoo fit --resume cut"
    assert saved == [10, 20, 20]  # the last one at the interrupt
    assert sorted(p.name for p in Path().iterdir()) == ["cut", "whole"]
    assert "go on with it" in fails(*args, "--out", "cut")
    resumed = run("fit", "--resume", "cut")
    assert resumed.exit_code == 0, resumed.stderr
    assert saved == [10, 20, 20, 30]
    first, second = zoo.load("whole"), zoo.load("cut")
    assert torch.equal(first.losses, second.losses)
    for name, value in first.params.items():
        assert torch.equal(value, second.params[name])
    assert second.info["command"].endswith(
        "--out cut --engine svi --steps 30 --checkpoint-every 10 --no-compile --no-report"
    )
    assert {p.name for p in Path("cut").iterdir()} == {"fit.json", "posterior.json", "posterior.safetensors"}
    assert "finished" in fails("fit", "--resume", "cut")


def test_interruption_before_a_checkpoint_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.inference import runner

    def fake(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "fit", fake)
    for more in ((), ("--checkpoint-every", "5")):
        result = run("fit", "eight_schools", *QUICK, "--out", "a/b", *more)
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == "error: interrupted"
        assert list(Path().iterdir()) == []


def test_a_fit_killed_before_its_first_checkpoint_begins_anew() -> None:
    args = ("fit", "eight_schools", *QUICK, "--checkpoint")
    assert run(*args, "--out", "whole").exit_code == 0
    Path("cut/.0123abcd.part/new").mkdir(parents=True)
    Path("cut/fit.json").write_text(Path("whole/fit.json").read_text())
    result = run("fit", "--resume", "cut")
    assert result.exit_code == 0, result.stderr
    assert "before its first checkpoint; it begins anew" in result.stderr
    assert torch.equal(zoo.load("whole").losses, zoo.load("cut").losses)
    assert {p.name for p in Path("cut").iterdir()} == {"fit.json", "posterior.json", "posterior.safetensors"}


def test_finished_chains_are_kept_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.inference import nuts
    from zoo.inference.checkpoint import Chains

    monkeypatch.setattr(nuts, "_cores", lambda: 1)  # no processes, which would have to import everything
    args = ("fit", "eight_schools", "--tune", "20", "--draws", "20", "--chains", "2", "--no-report", "--no-compile")
    assert run(*args, "--out", "whole").exit_code == 0
    save, saved = Chains.save, []

    def interrupt(self: Chains, chain: int, arrays: Any) -> None:
        save(self, chain, arrays)
        saved.append(chain)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Chains, "save", interrupt)
    result = run(*args, "--checkpoint", "--out", "cut")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "error: interrupted; go on with: zoo fit --resume cut"
    assert run("fit", "--resume", "cut").exit_code == 0
    assert len(saved) == len(set(saved)) == 2
    first, second = zoo.load("whole"), zoo.load("cut")
    assert first.chains is not None
    assert second.chains is not None
    assert all(torch.equal(value, second.chains[name]) for name, value in first.chains.items())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 3}'])
def test_damaged_settings(text: str) -> None:
    Path("d").mkdir()
    Path("d/fit.json").write_text(text)
    assert "damaged" in fails("fit", "--resume", "d")


def test_damaged_artifacts_are_one_line() -> None:
    assert run("fit", "eight_schools", *QUICK, "--out", "o").exit_code == 0
    path = Path("o/posterior.safetensors")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], pickle.dumps({"a": 1}), b""):
        path.write_bytes(content)
        fails("report", "o", "--out", "r.html")
        assert sorted(p.name for p in Path().iterdir()) == ["o"]


# --------------------------------------------------------------------------------------------------------- predict
def test_predict_own_table(table: Path) -> None:
    pd.read_csv(table).assign(key=[f"k{i}" for i in range(60)]).to_csv(table, index=False)
    args = ("--data", "mine.csv", "--target", "response", "--drop", "key", "--out", "p")
    assert run("fit", "horseshoe_regression", *args, *QUICK).exit_code == 0
    shown = run("predict", "p", "--data", "mine.csv", "--keep", "key", "--interval", "0.5")
    assert shown.exit_code == 0, shown.stderr
    frame = pd.read_csv(io.StringIO(shown.stdout))
    assert list(frame) == ["row", "key", "mean", "sd", "lower", "upper"]
    assert frame["key"].tolist() == [f"k{i}" for i in range(60)]
    assert "rmse" in shown.stderr
    for name in ("new.csv", "deep/new.npz"):
        done = run("predict", "p", "--data", "mine.csv", "--keep", "key", "--interval", "0.5", "--out", name)
        assert done.exit_code == 0, done.stderr
        assert "rmse" in done.stdout
        assert f"{name} (60 rows)" in done.stdout
    assert Path("new.csv").read_text() == shown.stdout
    assert "exists; add --overwrite" in fails("predict", "p", "--data", "mine.csv", "--out", "new.csv")
    assert Path("new.csv").read_text() == shown.stdout
    again = run("predict", "p", "--data", "mine.csv", "--out", "new.csv", "--overwrite", "-q")
    assert again.stdout == "new.csv\n"
    assert Path("new.csv").read_text() != shown.stdout
    found = json.loads(run("predict", "p", "--data", "mine.csv", "--json").stdout)
    assert (found["rows"], found["scored"], len(found["predictions"])) == (60, 60, 60)
    before = sorted(p.name for p in Path().rglob("*"))
    for args, text in (
        (("--data", "mine.csv", "--out", "new.txt"), "allowed: .csv, .npz, .parquet"),
        (("--data", "mine.csv", "--out", "deep"), "allowed: .csv, .npz, .parquet"),
        (("--data", "mine.csv", "--out", "mine.csv", "--overwrite"), "is the file of --data itself"),
        (("--data", "none.csv"), "file 'none.csv' does not exist"),
        (("--data", "mine.csv", "--keep", "kex"), "did you mean 'key'"),
        (("--data", "mine.csv", "--interval", "2"), "interval is 2.0"),
    ):
        assert text in fails("predict", "p", *args)
    assert "not a folder" in fails("predict", "q", "--data", "mine.csv")
    assert sorted(p.name for p in Path().rglob("*")) == before


def test_rows_that_cannot_be_predicted_are_listed(table: Path) -> None:
    frame = pd.read_csv(table).assign(city=["Bonn", "Ulm", "Aachen"] * 20, key=[f"{i:03d}" for i in range(60)])
    frame.to_csv("a.csv", index=False)
    args = ("--data", "a.csv", "--target", "response", "--drop", "key", "--out", "p")
    assert run("fit", "map_network", *args, *QUICK).exit_code == 0
    new = frame.head(6).assign(city=["Bonn", "Essen", "Ulm", "Ulm", "", "Ulm"], dose=["1", "2", "3", "x", "5", "6"])
    new.to_csv("new.csv", index=False)
    done = run("predict", "p", "--data", "new.csv", "--keep", "key", "--out", "out.csv")
    assert done.exit_code == 0, done.stderr
    assert (
        "note: 3 of 6 rows are refused: line 3, 'city': training did not have 'Essen'; line 5, 'dose': 'x' is no "
        "number; line 6, 'city': the value is missing\n"
    ) in done.stderr
    found = pd.read_csv("out.csv", dtype={"key": str})
    assert found["key"].tolist() == [f"{i:03d}" for i in range(6)]
    assert found["mean"].isna().tolist() == [False, True, False, True, True, False]
    assert found["refused"][3] == "dose: 'x' is no number"
    listed = json.loads(run("predict", "p", "--data", "new.csv", "--json").stdout)
    assert [(r["row"], r["line"], r["column"]) for r in listed["refused"]] == [
        (1, 3, "city"),
        (3, 5, "dose"),
        (4, 6, "city"),
    ]
    assert listed["predictions"][1]["mean"] is None
    assert "1 missing (NaN) in city" in fails("predict", "p", "--data", "new.csv", "--strict", "--out", "no.csv")
    assert not Path("no.csv").exists()


def test_hints_are_in_the_words_of_the_command_line(table: Path) -> None:
    frame = pd.read_csv(table).assign(city=["Bonn", "", "NA"] * 20, day=["01/02/2020", "03/04/2020"] * 30)
    frame.to_csv("a.csv", index=False)
    args = ("data", "show", "a.csv", "--target", "response")
    text = fails(*args)
    assert "say --day-first or --month-first, write 2020-04-03, or --drop day" in text
    text = fails(*args, "--day-first")
    assert "columns (--missing drop), make missing categories one of their own (--missing level), or keep" in text
    shown = run(*args, "--day-first", "--missing", "level")
    assert "if it means a missing entry, say so: --na NA" in shown.stderr
    assert "city=(missing)" in shown.stdout
    assert "days since 2020-02-01" in shown.stdout
    found = json.loads(run(*args, "--month-first", "--na", "NA", "--missing", "level", "--json").stdout)
    assert [c["name"] for c in found["columns"]] == ["dose", "age", "city=(missing)", "day"]
    assert found["notes"] == ["dates are read as numbers of days: 'day' (%m/%d/%Y)"]
    frame.assign(dose=frame["dose"].where(frame.index > 3)).to_csv("b.csv", index=False)
    args = ("--data", "b.csv", "--target", "response", "--drop", "city", "--drop", "day", "--missing", "keep")
    assert "use --engine nuts" in fails("fit", "horseshoe_regression", *args, *QUICK, "--out", "o")
    assert "drop their rows (--missing drop)" in fails("fit", "map_network", *args, *QUICK, "--out", "o")


def test_missing_entries_are_imputed_on_request(table: Path) -> None:
    frame = pd.read_csv(table)
    frame.loc[frame.index % 6 == 1, "dose"] = None
    frame.to_csv("holes.csv", index=False)
    args = ("--data", "holes.csv", "--target", "response")
    assert "10 missing (NaN) in dose (10)" in fails("fit", "horseshoe_regression", *args)
    shown = run("data", "show", "holes.csv", "--target", "response", "--missing", "keep")
    assert "entries of the training rows: dose (" in shown.stdout
    quick = ("--chains", "1", "--tune", "20", "--draws", "20", "--no-compile", "--no-report", "--out", "p")
    done = run("fit", "horseshoe_regression", *args, "--missing", "keep", *quick)
    assert done.exit_code == 0, done.stderr
    assert "--missing keep" in zoo.load("p").info["command"]
    predicted = run("predict", "p", "--data", "holes.csv", "--out", "new.csv")
    assert predicted.exit_code == 0, predicted.stderr
    spread = pd.read_csv("new.csv")["sd"]
    assert spread[frame["dose"].isna()].mean() > 2 * spread[frame["dose"].notna()].mean()


def test_groups_from_the_table_to_predictions(table: Path) -> None:
    frame = pd.read_csv(table).assign(clinic=["a", "b", "c", "d"] * 15)
    frame.to_csv("groups.csv", index=False)
    args = ("--data", "groups.csv", "--target", "response", "--group", "clinic")
    shown = run("data", "show", "groups.csv", *args[2:])
    assert "4 values of clinic in training" in shown.stdout
    quick = ("--engine", "svi", "--steps", "50", "--no-compile", "--no-report", "--out", "p")
    done = run("fit", "hierarchical_regression", *args, *quick)
    assert done.exit_code == 0, done.stderr
    assert "--group clinic" in zoo.load("p").info["command"]
    frame.assign(clinic=["a", "z"] * 30).to_csv("new.csv", index=False)
    predicted = run("predict", "p", "--data", "new.csv", "--out", "predictions.csv")
    assert predicted.exit_code == 0, predicted.stderr
    assert "note: 30 of 60 rows belong to groups that training did not have: 'z'" in predicted.stderr
    assert len(pd.read_csv("predictions.csv")) == 60
    frame.drop(columns="clinic").to_csv("none.csv", index=False)
    assert "the column 'clinic' is missing" in fails("predict", "p", "--data", "none.csv")


def test_predict_bundled_images() -> None:
    hyper = ("--hyper", "hidden=8", "--steps", "20", "--no-compile", "--no-report")
    assert run("fit", "bayesian_compression", "--data", "mnist", "--out", "p", *hyper).exit_code == 0
    batch = zoo.datasets.load("mnist").test
    assert batch is not None
    images = (batch["x"][:40] * 255).round().to(torch.uint8).reshape(40, 28, 28)
    np.savez("new.npz", x=images.numpy(), y=batch["y"][:40].numpy())
    done = run("predict", "p", "--data", "new.npz", "--out", "new.csv", "--draws", "5", "--json")
    assert done.exit_code == 0, done.stderr
    frame = pd.read_csv("new.csv")
    assert list(frame) == ["row", "class", *(f"p_{i}" for i in range(10))]
    accuracy = (frame["class"] == batch["y"][:40].numpy()).mean()
    assert json.loads(done.stdout)["scores"]["accuracy"] == pytest.approx(float(accuracy))


# ----------------------------------------------------------------------------------------------- check, reproduce
def test_check_names_its_steps() -> None:
    result = run("check", "eight_schools", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0, found
    assert [s["name"] for s in found["steps"]][:3] == ["default data", "task", "build"]
    assert len(found["steps"]) > 5
    assert all(s["ok"] for s in found["steps"])


def test_check_of_a_broken_file_exits_1(tmp_path: Path) -> None:
    source = next(e.path for e in registry.entries() if e.name == "eight_schools").read_text()
    Path("broken.py").write_text(
        source.replace('pyro.sample("mu", dist.Normal(mu_loc', 'pyro.sample("nu", dist.Normal(mu_loc')
    )
    result = run("check", "broken.py")
    assert result.exit_code == 1
    assert "✗" in result.stdout
    assert "✓" in result.stdout
    Path("syntax.py").write_text("def f(:\n")
    assert "line 1" in fails("check", "syntax.py")
    Path("none.py").write_text("x = 1\n")
    assert "no METHOD" in fails("check", "none.py")


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (9.0, 1)])
def test_reproduce(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: float, code: int) -> None:
    from zoo.types import Acceptance, Claim

    claim = Claim(
        statement="Small error",
        published="1.0",
        source="table 1",
        measure=lambda seed, fast: {"error": value},
        acceptance=(Acceptance(key="error", high=2.0),),
        budget=1,
    )
    Path("tiny.py").write_text("")
    monkeypatch.setattr(registry, "get", lambda name: SimpleNamespace(title="Tiny", paper="t", claims=(claim,)))
    monkeypatch.setattr(registry, "entries", lambda: (SimpleNamespace(name="tiny", path=Path("tiny.py")),))
    result = run("reproduce", "tiny", "--seeds", "2", "--out", "r", "--json")
    assert result.exit_code == code
    found = json.loads(result.stdout)
    assert found["verdict"] == ("reproduced" if code == 0 else "not reproduced")
    assert found["command"] == "zoo reproduce tiny --seeds 2"
    assert sorted(p.name for p in Path("r").iterdir()) == ["tiny.json", "tiny.md"]
    shown = run("reproduce", "tiny", "--seeds", "2", "--out", "r")
    assert "measured before" in shown.stderr
    assert "Small error" in shown.stdout


# -------------------------------------------------------------------------------------------------------- compress
def test_compress_writes_a_smaller_posterior_and_its_networks(tmp_path: Path) -> None:
    data = ("--data", "digits", "--hyper", "hidden=20,10")
    quick = ("--steps", "300", "--no-compile", "--no-report")
    assert run("fit", "bayesian_compression", *data, *quick, "--out", "whole").exit_code == 0
    result = run("compress", "whole", "--out", "small", "--turns", "2", "--steps", "50", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["quantities"]["compression by pruning"] > 1
    torch_export = found["networks"][0]
    assert torch_export["format"] == "torch.export"
    assert torch_export["difference"] < 1e-4
    for network in found["networks"]:
        assert Path(network["file"]).stat().st_size == network["bytes"]
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"posterior.safetensors", "posterior.json", "report.html", "report.json", "network.pt2"} <= names
    assert not any(name.startswith("whole") for name in names)
    small = zoo.load("small")
    x = small.data.split("test")["x"]
    module = torch.export.load(torch_export["file"]).module()
    torch.testing.assert_close(module(x), small.compress()(x), rtol=1e-4, atol=1e-4)
    assert "exists and is not empty" in fails("compress", "whole", "--out", "small")
    assert "no validation split" in fails("compress", "small", "--out", "smaller")
    assert not Path("smaller").exists()


def test_compress_of_what_has_nothing_to_prune(table: Path) -> None:
    data = ("--data", str(table), "--target", "response")
    assert run("fit", "horseshoe_regression", *data, *QUICK, "--out", "a").exit_code == 0
    assert "has nothing to prune" in fails("compress", "a", "--out", "b")
    assert not Path("b").exists()
