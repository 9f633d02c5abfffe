"""Predictions of new tables: the user's units and labels, chunks that change nothing, one line for what is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import zoo
from zoo import tasks
from zoo.errors import DataError, UnknownNameError
from zoo.inference import tables
from zoo.inference.tables import predict_table, table_bytes


def make(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"dose": rng.normal(10, 3, rows), "sex": rng.choice(["f", "m"], rows)})
    frame["price"] = 1_000 + 50 * frame["dose"] + 200 * (frame["sex"] == "m") + rng.normal(0, 30, rows)
    return frame.assign(bought=np.where(frame["price"] > 1_600, "yes", "no"), key=[f"k{i}" for i in range(rows)])


def fitted(target: str, drop: list[str]) -> zoo.Posterior:
    data = zoo.datasets.read(make(200, 0), target, drop=drop)
    hyper = {"prior": "gaussian", "guide": "mean_field", "parametrisation": "centred"}
    return zoo.fit(
        "horseshoe_regression", data, hyper=hyper, engine="svi", steps=800, learning_rate=0.05, compile=False
    )


@pytest.fixture(scope="module")
def regression() -> zoo.Posterior:
    return fitted("price", ["bought", "key"])


@pytest.fixture(scope="module")
def classes() -> zoo.Posterior:
    return fitted("bought", ["price", "key"])


def test_numbers_are_in_the_targets_unit(regression: zoo.Posterior) -> None:
    new = make(50, 1)
    found = predict_table(regression, new, keep=["key", "sex"], draws=400, seed=3)
    assert list(found.frame) == ["row", "key", "sex", "mean", "sd", "lower", "upper"]
    assert found.frame["row"].tolist() == list(range(50))
    assert found.frame["key"].tolist() == new["key"].tolist()
    data, batch = regression.data, zoo.datasets.encode(regression.data, new)
    plain = regression.predict(batch, 400, seed=3)
    assert data.target is not None
    expected = data.target.mean + data.target.scale * plain.means["y"].double().mean(0)
    assert found.frame["mean"].to_numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    assert found.scored == 50
    assert dict(found.scores) == pytest.approx(tasks.get("regression").score(plain, batch, data), rel=1e-4)
    assert np.abs(found.frame["mean"] - new["price"]).mean() < 60


def test_the_interval_has_its_probability(regression: zoo.Posterior) -> None:
    new = make(2_000, 2).drop(columns="price")
    wide, narrow = (regression.predict_table(new, interval=level, draws=2_000) for level in (0.9, 0.5))
    ratio = (wide["upper"] - wide["lower"]) / wide["sd"]
    assert float(ratio.mean()) == pytest.approx(2 * 1.645, rel=0.02)
    assert float(((narrow["upper"] - narrow["lower"]) / narrow["sd"]).mean()) == pytest.approx(2 * 0.6745, rel=0.02)
    truth = make(2_000, 2)["price"]
    inside = ((wide["lower"] <= truth) & (truth <= wide["upper"])).mean()
    assert 0.85 < inside < 0.95


def test_chunks_and_blocks_change_nothing_but_the_noise(
    regression: zoo.Posterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = make(103, 4)
    whole = predict_table(regression, new, keep=["key"])
    monkeypatch.setattr(tables, "_CHUNK_CELLS", 10_000)
    monkeypatch.setattr(tables, "_SCORED_CELLS", 40_000)
    parts = predict_table(regression, new, keep=["key"])
    assert parts.frame["key"].tolist() == whole.frame["key"].tolist()
    error = whole.frame["sd"].max() / 1_000**0.5
    assert np.abs(parts.frame["mean"] - whole.frame["mean"]).max() < 5 * error
    assert parts.frame["sd"].to_numpy() == pytest.approx(whole.frame["sd"].to_numpy(), rel=0.15)
    # Every third row is scored, across the chunks of ten; other draws of the same posterior.
    assert parts.scored == 35
    residual = (parts.frame["mean"] - new["price"]).to_numpy()[::3]
    assert parts.scores["rmse"] == pytest.approx(float(np.sqrt((residual**2).mean())), rel=1e-4)
    # The noise of one chunk is not repeated in the next.
    spread = parts.frame["upper"] - parts.frame["mean"]
    assert len(set(np.round(spread[:10].to_numpy(), 3)) & set(np.round(spread[10:20].to_numpy(), 3))) < 3


def test_classes_are_told_by_their_labels(classes: zoo.Posterior) -> None:
    new = make(60, 5)
    found = predict_table(classes, new)
    frame = found.frame
    assert list(frame) == ["row", "class", "p_no", "p_yes"]
    assert (frame["p_no"] + frame["p_yes"]).to_numpy() == pytest.approx(np.ones(60))
    assert (frame["class"] == np.where(frame["p_yes"] > 0.5, "yes", "no")).all()
    accuracy = float((frame["class"] == new["bought"]).mean())
    assert found.scores["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.85
    assert predict_table(classes, new.drop(columns="bought")).scores == {}


def test_the_seed_decides(classes: zoo.Posterior) -> None:
    new = make(10, 6)
    first, again, other = (predict_table(classes, new, seed=seed).frame for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["p_no"].equals(other["p_no"])


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_files_read_back(regression: zoo.Posterior, suffix: str) -> None:
    new = make(5, 7).assign(price=lambda f: f["price"] / 3)
    keep = ["key", "dose"]
    frame = predict_table(regression, new, keep=keep).frame
    content = io.BytesIO(table_bytes(frame, suffix, keep=keep))
    if suffix == ".csv":
        back = pd.read_csv(content)
    elif suffix == ".npz":
        with np.load(content, allow_pickle=False) as archive:
            back = pd.DataFrame({name: archive[name] for name in archive.files})
    else:
        pytest.importorskip("pyarrow")
        back = pd.read_parquet(content)
    assert list(back) == list(frame)
    assert back["key"].astype(str).tolist() == frame["key"].tolist()
    assert back["dose"].tolist() == new["dose"].tolist()
    for column in ("mean", "sd", "lower", "upper"):
        assert back[column].to_numpy() == pytest.approx(frame[column].to_numpy(), rel=1e-7)


BAD = [
    (lambda f: f.drop(columns="dose"), {}, UnknownNameError, "missing: dose"),
    (lambda f: f.assign(sex="x"), {}, DataError, "'sex' has values that training did not have: 'x'; known: f, m"),
    (lambda f: f.assign(dose=f["dose"].where(f.index > 1)), {}, DataError, r"2 missing \(NaN\) in dose \(2\)"),
    (lambda f: f.iloc[:0], {}, DataError, "no rows"),
    (lambda f: f, {"interval": 1.0}, DataError, "interval is 1.0"),
    (lambda f: f, {"draws": 1}, DataError, "draws is 1"),
    (lambda f: f, {"keep": ["keyy"]}, UnknownNameError, "'keyy' to keep is unknown; did you mean 'key'"),
    (lambda f: f.assign(mean=1), {"keep": ["mean"]}, DataError, "'mean' to keep has the name of a result"),
]


@pytest.mark.parametrize(("change", "options", "kind", "text"), BAD, ids=[b[3][:20] for b in BAD])
def test_what_does_not_fit_is_one_line(regression: zoo.Posterior, change, options, kind, text) -> None:
    with pytest.raises(kind, match=text) as info:
        predict_table(regression, change(make(20, 8)), strict=True, **options)
    assert "\n" not in str(info.value)


def test_good_rows_are_predicted_and_the_others_refused(regression: zoo.Posterior, tmp_path: Path) -> None:
    whole = make(20, 8)
    new = whole.assign(dose=whole["dose"].where(whole.index != 3), sex=whole["sex"].where(whole.index != 7, "x"))
    new.to_csv(tmp_path / "new.csv", index=False)
    with pytest.warns(UserWarning, match=r"2 of 20 rows are refused: line 5, 'dose': the value is missing; line 9, "
                                         "'sex': training did not have 'x'"):  # fmt: skip
        found = predict_table(regression, tmp_path / "new.csv")
    assert [(r.row, r.line, r.column) for r in found.refused] == [(3, 5, "dose"), (7, 9, "sex")]
    frame = found.frame
    assert frame["row"].tolist() == list(range(20))
    assert frame["mean"].isna().to_numpy().nonzero()[0].tolist() == [3, 7]
    assert frame["refused"][7] == "sex: training did not have 'x'"
    assert (frame["refused"].drop([3, 7]) == "").all()
    alone = predict_table(regression, whole.drop([3, 7])).frame
    assert frame["mean"].dropna().to_numpy() == pytest.approx(alone["mean"].to_numpy())
    for suffix in tables.SUFFIXES[:2]:
        assert table_bytes(frame, suffix)
    with pytest.raises(DataError, match="20 missing"):
        predict_table(regression, whole.assign(dose=np.nan))


def test_rows_without_a_target_are_predicted_and_not_scored(regression: zoo.Posterior) -> None:
    new = make(20, 8)
    name = regression.data.target.name
    some = predict_table(regression, new.assign(**{name: new[name].where(new.index >= 5)}))
    assert not some.refused
    assert some.scored == 15
    assert some.frame["mean"].notna().all()
    assert some.scores == pytest.approx(predict_table(regression, new).scores, rel=0.5)


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    schools = zoo.fit("eight_schools", engine="svi", steps=5, compile=False)
    with pytest.raises(DataError, match="is for meta_analysis; a table is predicted for regression"):
        schools.predict_table(make(5, 9))


def test_classes_are_predicted_after_nuts() -> None:
    data = zoo.datasets.read(make(40, 3), "bought", drop=["key", "price"])
    fitted = zoo.fit("horseshoe_regression", data, chains=1, tune=5, draws=5, compile=False)
    frame = fitted.predict_table(make(6, 4).drop(columns="bought"))
    assert list(frame) == ["row", "class", "p_no", "p_yes"]
    assert frame["p_yes"].between(0, 1).all()
