"""A sensitive column: no feature, codes of its own, targets that may be missing; bad ones are refused."""

import numpy as np
import pandas as pd
import pytest
import torch

import zoo.datasets
from zoo.errors import DataError, UnknownNameError


def table(rows=60):
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "income": np.where(rng.random(rows) < 0.5, "low", "high"),
        "sex": np.tile(["f", "m", "f"], rows // 3),
        "age": rng.normal(40, 10, rows),
        "job": np.tile(["a", "b"], rows // 2),
    })  # fmt: skip


def every(data):
    return [data.train, data.validation, data.test]


def test_the_sensitive_column_is_no_feature():
    frame = table()
    data = zoo.datasets.read(frame, "income", sensitive="sex")
    assert data.task == "fair_representation"
    assert data.coords["feature"] == ("age", "job=b")
    assert (data.coords["sensitive"], data.coords["class"]) == (("f", "m"), ("high", "low"))
    assert (data.extra["sensitive"], data.extra["num_groups"], data.extra["num_classes"]) == ("sex", 2, 2)
    assert sum(int((b["s"] == 0).sum()) for b in every(data)) == (frame.sex == "f").sum()
    assert "y_missing" not in data.train
    # A row's group, target and features belong together.
    age = data.train["x"][:, 0].double() * data.columns[0].scale + data.columns[0].mean
    for k in (0, 7):
        row = frame.iloc[int((frame.age - float(age[k])).abs().argmin())]
        assert row.sex == data.coords["sensitive"][int(data.train["s"][k])]
        assert row.income == data.coords["class"][int(data.train["y"][k])]


def test_the_split_keeps_groups_and_classes_in_proportion():
    data = zoo.datasets.load("german_credit_sex")
    kinds = [batch["y"] * 2 + batch["s"] for batch in every(data)]
    counts = torch.stack([torch.bincount(kind, minlength=4) for kind in kinds]).double()
    expected = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
    assert (counts - expected).abs().max() <= 1.0


def test_missing_targets_are_marked():
    frame = table()
    frame.loc[::3, "income"] = None
    data = zoo.datasets.read(frame, "income", sensitive="sex")
    assert sum(int(b["y_missing"].sum()) for b in every(data)) == 20
    for batch in every(data):
        assert (batch["y"][batch["y_missing"]] == 0).all()
    numbers = frame.assign(income=frame.income.map({"low": 0, "high": 1}))
    assert zoo.datasets.read(numbers, "income", sensitive="sex").coords["class"] == ("0", "1")


def test_new_rows_need_the_sensitive_column_and_may_lack_targets():
    frame = table()
    data = zoo.datasets.read(frame, "income", sensitive="sex")
    batch = zoo.datasets.encode(data, frame.drop(columns="income").head(4))
    assert batch["s"].tolist() == [0, 1, 0, 0]
    assert "y" not in batch
    some = zoo.datasets.encode(data, frame.assign(income=[*frame.income[:10], *[None] * 50]))
    assert int(some["y_missing"].sum()) == 50
    with pytest.raises(UnknownNameError, match="sensitive column 'sex' is missing"):
        zoo.datasets.encode(data, frame.drop(columns="sex"))
    with pytest.raises(DataError, match="column 'sex' has values that training did not have: 'x'; known: f, m"):
        zoo.datasets.encode(data, frame.assign(sex="x"))


@pytest.mark.parametrize(
    ("change", "options", "error"),
    [
        ({}, {"sensitive": "sx"}, "sensitive column 'sx' is unknown; did you mean 'sex'"),
        ({}, {"sensitive": "income"}, "column 'income' is the target"),
        ({}, {"sensitive": "age"}, "'age' has 60 different values; 2 to 20 groups are allowed"),
        ({"sex": "f"}, {"sensitive": "sex"}, "'sex' has the one value 'f'"),
        ({"sex": None}, {"sensitive": "sex"}, r"60 missing \(NaN\) in sex"),
        ({"income": None}, {"sensitive": "sex"}, "target 'income' has no value in any row"),
        ({"age": [np.nan] * 60}, {"sensitive": "sex"}, r"60 missing \(NaN\) in age"),
        ({"sex": ["f"] * 59 + ["m"]}, {"sensitive": "sex", "test": 0.6, "seed": 1}, "no training row has 'm'"),
        ({}, {"sensitive": "sex", "task": "regression"}, "leave out the task 'regression' or the column"),
        ({}, {"task": "fair_representation"}, "needs a sensitive column"),
    ],
)
def test_a_bad_sensitive_column_is_refused(change, options, error):
    with pytest.raises((DataError, UnknownNameError), match=error):
        zoo.datasets.read(table().assign(**change), "income", **options)


def test_adult_is_split_as_it_comes():
    data = zoo.datasets.load("adult")
    assert len(data.train["index"]) + len(data.validation["index"]) == 30_162
    assert len(data.test["index"]) == 15_060
    first = dict(zip(data.coords["feature"], data.train["x"][0].tolist(), strict=True))
    columns = {column.name: column for column in data.columns}
    told = {k: round(v * columns[k].scale + columns[k].mean) for k, v in first.items()}
    assert (told["age"], told["education_num"], told["capital_gain"], told["hours_per_week"]) == (39, 13, 2174, 40)
    assert not any(name.startswith(("sex", "income")) for name in columns)
    rich = torch.stack([(data.test["y"][data.test["s"] == s]).double().mean() for s in (0, 1)])
    assert rich.tolist() == pytest.approx([0.1136, 0.3105], abs=0.01)


def test_the_four_pictures_of_a_digit_stay_together():
    data = zoo.datasets.load("digits_lighting")
    for batch in every(data):
        kinds = [batch["y"][batch["s"] == s] for s in range(4)]
        assert all(torch.equal(kinds[0], other) for other in kinds[1:])
    images = data.train["x"].reshape(-1, 8, 8)
    means = {name: images[data.train["s"] == s].mean(0) for s, name in enumerate(data.coords["sensitive"])}
    assert means["left"][:, 0].mean() > 2 * means["left"][:, 7].mean()
    assert means["below"][7].mean() > 2 * means["below"][0].mean()
