"""`zoo fit --sensitive` and `zoo transform`: the purged representation of a user's own rows, as a table."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import zoo
from zoo import cli
from zoo.errors import DataError, PairError, UnknownNameError
from zoo.inference.tables import transform_table

NAME = "variational_fair_autoencoder"
SMALL = ("--hyper", "num_z1=3", "--hyper", "num_z2=2", "--hyper", "hidden=8", "--hyper", "num_features=20")
QUICK = ("--steps", "20", "--no-compile", "--no-report")


def run(*args: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli.app, list(args))


def line(*args: str) -> str:
    """Run a command that must end in one line and exit 2, and return the line."""
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()[-1]


def table(rows: int = 90) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "id": [f"p{k:03d}" for k in range(rows)],
        "age": rng.normal(40, 10, rows),
        "job": rng.choice(["a", "b", "c"], rows),
        "sex": np.tile(["f", "m", "f"], rows // 3),
        "income": np.where(rng.random(rows) < 0.4, "low", "high"),
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit a table in which the income of every fifth row is unknown."""
    where = tmp_path_factory.mktemp("fair")
    frame = table()
    frame.loc[::5, "income"] = None
    frame.to_csv(where / "mine.csv", index=False)
    columns = ("--sensitive", "sex", "--target", "income", "--drop", "id")
    out = ("--out", str(where / "run"))
    result = run("fit", NAME, "--data", str(where / "mine.csv"), *columns, *SMALL, *QUICK, *out)
    assert result.exit_code == 0, result.output
    return where


def test_new_rows_are_represented_in_their_order(folder: Path) -> None:
    new = table().drop(columns="income").iloc[::-1]
    new.to_csv(folder / "new.csv", index=False)
    out = folder / "purged.csv"
    kept = ("--keep", "id", "--keep", "sex")
    result = run("transform", str(folder / "run"), "--data", str(folder / "new.csv"), *kept, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "purged.csv (90 rows)" in result.stdout.replace("\n", "")
    found = pd.read_csv(out)
    assert list(found) == ["row", "id", "sex", "z0", "z1", "z2"]
    assert found["id"].tolist() == new["id"].tolist()
    posterior = zoo.load(folder / "run")
    direct = posterior.transform(zoo.datasets.encode(posterior.data, new))
    assert np.allclose(found[["z0", "z1", "z2"]], direct, rtol=1e-6)
    # The same, whether the target is there or not.
    whole = transform_table(posterior, table().iloc[::-1])
    assert np.allclose(whole[["z0", "z1", "z2"]], direct)


def test_the_rows_of_the_fit_are_told_by_split(folder: Path) -> None:
    result = run("transform", str(folder / "run"), "--keep", "income", "--keep", "sex")
    assert result.exit_code == 0, result.output
    found = pd.read_csv(io.StringIO(result.stdout))
    assert list(found) == ["split", "row", "income", "sex", "z0", "z1", "z2"]
    assert found["split"].value_counts().to_dict() == {"train": 63, "test": 18, "validation": 9}
    assert found["income"].isna().sum() == 18
    assert set(found["income"].dropna()) == {"low", "high"}
    assert (found["sex"] == "f").sum() == 60
    told = json.loads(run("transform", str(folder / "run"), "--json").stdout)
    assert (told["rows"], len(told["representation"])) == (90, 90)


def test_parquet_holds_the_same(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    out = folder / "purged.parquet"
    assert run("transform", str(folder / "run"), "--keep", "income", "--out", str(out), "-q").stdout.strip() == str(out)
    found = pd.read_parquet(out)
    assert np.allclose(found["z1"], transform_table(zoo.load(folder / "run"))["z1"])


def test_classes_of_new_rows_are_predicted(folder: Path) -> None:
    found = zoo.load(folder / "run").predict_table(table().drop(columns="income"), draws=20)
    assert list(found) == ["row", "class", "p_high", "p_low"]
    assert np.allclose(found["p_high"] + found["p_low"], 1.0)


def test_data_show_tells_groups_and_rows_without_target(folder: Path) -> None:
    args = ("data", "show", str(folder / "mine.csv"), "--target", "income", "--sensitive", "sex", "--drop", "id")
    found = json.loads(run(*args, "--json").stdout)
    assert found["sensitive"] == {"column": "sex", "groups": {"f": 42, "m": 21}}
    assert found["unlabelled"] == 12
    assert "sex: f (42 training rows), m (21 training rows)" in run(*args).stdout


def test_what_cannot_be_done_is_said_in_one_line(folder: Path) -> None:
    mine, fit = str(folder / "mine.csv"), str(folder / "run")
    assert "name it: --sensitive COLUMN" in line("fit", NAME, "--data", mine, "--target", "income")
    text = line("fit", "map_network", "--data", mine, "--target", "income", "--sensitive", "sex")
    assert f"map_network knows no sensitive column; leave out --sensitive, or choose one of: {NAME}" in text
    assert "--sensitive is for your own files" in line("fit", NAME, "--data", "adult", "--sensitive", "sex")
    assert "column 'z0' to keep has the name of a result" in line("transform", fit, "--keep", "z0")
    assert "column 'incme' to keep is unknown; did you mean 'income'" in line("transform", fit, "--keep", "incme")
    assert "is of an unknown kind; allowed: .csv, .npz, .parquet" in line("transform", fit, "--out", "a.txt")
    assert "add --overwrite" in line("transform", fit, "--out", mine)
    assert "is the file of --data itself" in line("transform", fit, "--data", mine, "--out", mine, "--overwrite")
    with pytest.raises(UnknownNameError, match="sensitive column 'sex' is missing"):
        transform_table(zoo.load(fit), table().drop(columns="sex"))
    with pytest.raises(DataError, match="values that training did not have: 'z'"):
        transform_table(zoo.load(fit), table().assign(job="z"))


def test_other_methods_represent_no_rows() -> None:
    options: dict[str, Any] = {"steps": 3, "compile": False}
    posterior = zoo.fit("map_network", "iris", **options)
    with pytest.raises(PairError, match="'map_network' has no representation of rows"):
        posterior.transform()
