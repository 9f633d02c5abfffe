"""Effects of features: right in the user's units, for every likelihood and for pairs of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from typer.testing import CliRunner

import zoo
from zoo.cli import app
from zoo.diagnostics.effects import effects, linear_predictor
from zoo.errors import DataError, PairError
from zoo.models.horseshoe_regression import coefficients
from zoo.reports.effects import figure, show_effects, table

ROWS = 400
TRUE = {"age": 0.5, "weight": -0.002, "arm=low": 3.0, "arm=mid": -1.0}


def frame(seed: int = 0) -> pd.DataFrame:
    """Return features in awkward units, and the predictor that they make."""
    rng = np.random.default_rng(seed)
    found = pd.DataFrame({
        "age": rng.normal(50, 10, ROWS),
        "weight": rng.normal(7e3, 1e3, ROWS),
        "arm": rng.choice(["control", "low", "mid"], ROWS, p=[0.5, 0.3, 0.2]),
    })
    eta = 0.5 * found["age"] - 0.002 * found["weight"] + found["arm"].map({"control": 0.0, "low": 3.0, "mid": -1.0})
    return found.assign(eta=eta)


def read(target: pd.Series, **more: Any) -> Any:
    """Return the data set of a target."""
    return zoo.datasets.read(
        frame().drop(columns="eta").assign(y=target, **more.pop("columns", {})), "y", validation=0, test=0, **more
    )


@pytest.fixture(scope="module")
def linear() -> Any:
    """Return a fit of a linear regression with little noise."""
    noise = np.random.default_rng(1).normal(0, 3, ROWS)
    data = read(frame()["eta"] + noise)
    hyper = {"prior": "gaussian", "guide": "mean_field", "parametrisation": "centred"}
    return zoo.fit(
        "horseshoe_regression", data, engine="svi", hyper=hyper, steps=800, learning_rate=0.03, compile=False
    )


def test_effects_are_those_of_the_table(linear: Any) -> None:
    found = effects(linear, num_draws=1000)
    for name, value in TRUE.items():
        assert found.loc[name, "mean"] == pytest.approx(value, abs=5 * found.loc[name, "sd"])
        assert found.loc[name, "sd"] < 0.4 * abs(value)
    assert found.attrs == {"target": "y", "link": "identity", "unit": "y", "order": "size"}
    assert found.index[-1] == "intercept"
    same = coefficients(linear, 1000)
    for column in ("mean", "sd", "5%", "95%", "sign"):
        assert found[column].to_numpy() == pytest.approx(same.loc[found.index, column].to_numpy(), rel=1e-4, abs=1e-4)


def test_per_sd_is_the_effect_times_the_deviation_of_the_feature(linear: Any) -> None:
    found = effects(linear, num_draws=500)
    for column in linear.data.columns:
        assert found.loc[column.name, "per sd"] == pytest.approx(
            found.loc[column.name, "mean"] * column.scale, rel=1e-5
        )


def test_order_keeps_the_categories_of_a_column_together(linear: Any) -> None:
    found = effects(linear, num_draws=500)
    assert list(found.index[:-1]) == ["age", "weight", "arm=low", "arm=mid"]
    assert list(found["base"][2:4]) == ["control", "control"]
    assert list(found["level"][2:4]) == ["low", "mid"]
    assert list(effects(linear, num_draws=500, order="table").index[:-1]) == [c.name for c in linear.data.columns]
    by_sign = effects(linear, num_draws=500, order="sign")["sign"][:-1]
    assert by_sign.iloc[0] == by_sign.max()
    with pytest.raises(DataError, match="order is 'best'"):
        effects(linear, order="best")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="num_draws is 1"):
        effects(linear, num_draws=1)


def test_log_odds_and_their_ratios() -> None:
    odds = 1 / (1 + np.exp(-(frame()["eta"] - frame()["eta"].mean()) / 10))
    label = np.where(np.random.default_rng(2).random(ROWS) < odds, "yes", "no")
    posterior = zoo.fit("horseshoe_regression", read(label), engine="svi", steps=300, compile=False)
    found = effects(posterior, num_draws=500)
    assert found.attrs["target"] == "log odds of y=yes"
    assert found["odds ratio 5%"].to_numpy() == pytest.approx(np.exp(found["5%"].to_numpy()), rel=1e-6)
    assert (found["odds ratio 5%"] <= found["odds ratio"]).all()
    shown = table(found)
    assert "odds ratio" in shown.header
    assert ("arm (against control)",) in shown.rows


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("slopes", [(), ("age",)])
def test_effects_of_a_hierarchical_regression(counts: bool, slopes: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    site = rng.integers(0, 6, ROWS)
    rate = np.exp((frame()["eta"] - frame()["eta"].mean()) / 20 + 0.3 * rng.normal(size=6)[site] + 1)
    target = rng.poisson(rate) if counts else rate
    data = read(target, columns={"clinic": [f"c{i}" for i in site]}, group="clinic", task="regression")
    hyper = {"counts": counts, "slopes": slopes}
    posterior = zoo.fit("hierarchical_regression", data, engine="svi", hyper=hyper, steps=200, compile=False)
    parts = linear_predictor(posterior)
    assert (parts.slope, parts.intercept) == ("beta", "mu")
    assert parts.link == ("log rate" if counts else "identity")
    found = effects(posterior, num_draws=200)
    assert ("rate ratio" in found) == counts
    assert set(found.index) == {*TRUE, "intercept"}


def own(link: str = "identity") -> Any:
    """Return a fit of a linear pair of one's own, without plates of features."""
    torch.manual_seed(0)

    def model(batch: Any) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        eta = level + batch["x"] @ weights
        if link == "square":
            eta = eta**2
        with pyro.plate("datum", ROWS, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(eta, 0.3), obs=batch.get("y"))

    return zoo.fit(zoo.Pair(model, AutoNormal(model)), read(frame()["eta"]), steps=50, compile=False)


def test_a_linear_pair_of_one_s_own() -> None:
    parts = linear_predictor(own())
    assert (parts.slope, parts.intercept, parts.link) == ("weights", "level", "identity")


def test_models_that_are_not_linear_have_no_effects(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="its predictor is not linear in 'x'"):
        effects(own("square"))
    with pytest.raises(PairError, match="reads no table of features"):
        zoo.fit("eight_schools", engine="svi", steps=2, compile=False).effects()
    network = zoo.fit("map_network", "diabetes", steps=2, compile=False)
    with pytest.raises(PairError, match="not linear"):
        network.effects()
    assert show_effects(network) is None
    folder = network.save(tmp_path / "net")
    result = CliRunner().invoke(app, ["effects", str(folder)])
    assert result.exit_code == 2
    assert len((result.stderr or result.output).strip().splitlines()) >= 1


def test_page_and_files(linear: Any, tmp_path: Path) -> None:
    folder = linear.save(tmp_path / "fit")
    out = tmp_path / "effects.csv"
    result = CliRunner().invoke(app, ["effects", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    written = pd.read_csv(out)
    found = effects(linear)
    assert list(written["effect"]) == list(found.index)
    assert written["mean"].to_numpy() == pytest.approx(found["mean"].to_numpy(), rel=1e-6)
    assert CliRunner().invoke(app, ["effects", str(folder), "--out", str(out)]).exit_code == 2, "kept, not overwritten"
    said = json.loads(CliRunner().invoke(app, ["--json", "effects", str(folder)]).stdout)
    assert [row["effect"] for row in said["effects"]] == list(found.index)


def test_many_columns_stay_readable() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(130, 3))
    wide = pd.DataFrame({
        "feature": [f"a feature of some length {i}" for i in range(130)], "level": "", "base": "",
        "mean": values[:, 0], "sd": 1.0, "5%": values[:, 0] - 1, "95%": values[:, 0] + 1,
        "per sd": values[:, 0], "per sd 5%": values[:, 0] - 1, "per sd 95%": values[:, 0] + 1, "sign": 0.9,
    }, index=pd.Index([f"f{i}" for i in range(130)], name="effect"))  # fmt: skip
    wide.attrs = {"target": "y", "link": "identity", "unit": "y", "order": "size"}
    drawing = figure(wide)
    assert drawing.wide
    assert all(f"f{i}<" in drawing.svg for i in range(130)), "every feature has its label"
    assert "130 rows" in drawing.svg
