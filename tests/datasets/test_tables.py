"""The user's own data: every format, the encoding, the split, and one clear line for every bad input."""

import gzip
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo.datasets
import zoo.tasks
from zoo.datasets.splits import TEST, TRAIN, VALIDATION, partition
from zoo.datasets.tables import MAX_CATEGORIES
from zoo.errors import DataError, MissingExtraError, UnknownNameError

ROWS = 60


def table(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "age": rng.integers(20, 80, rows),
        "income": rng.normal(30_000, 8_000, rows),
        "city": rng.choice(["Bonn", "Aachen", "Ulm"], rows),
        "member": rng.random(rows) < 0.5,
        "y": rng.normal(size=rows),
    })


def refused(match, *args, kind=DataError, **kwargs):
    """Assert that reading fails with one clear line."""
    with pytest.raises(kind, match=match) as info:
        zoo.datasets.read(*args, **kwargs)
    assert "\n" not in str(info.value)
    assert info.type is kind


# -------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize("form", ["csv", "csv.gz", "tsv", "semicolon", "parquet", "frame", "dict", "tensors", "npz"])
def test_every_form_reads_the_same(form, tmp_path):
    frame = table()[["age", "income", "y"]]
    path = tmp_path / f"mine.{'csv' if form == 'semicolon' else form}"
    if form in ("csv", "csv.gz"):
        frame.to_csv(path, index=False)
    elif form == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif form == "semicolon":
        frame.to_csv(path, index=False, sep=";")
    elif form == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    elif form == "npz":
        np.savez(path, **{c: frame[c].to_numpy() for c in frame})
    source = {
        "frame": frame,
        "dict": {c: frame[c].to_numpy() for c in frame},
        "tensors": {c: torch.tensor(frame[c].to_list(), dtype=torch.float64) for c in frame},
    }.get(form, path)
    data, expected = zoo.datasets.read(source, "y"), zoo.datasets.read(frame, "y")
    assert data.columns == expected.columns
    for key in ("x", "y", "index"):
        assert torch.equal(data.train[key], expected.train[key])
    assert data.name == ("data" if form in ("frame", "dict", "tensors") else "mine")
    assert data.origin == "user"
    assert data.source == (source.name if source is path else "")


def test_arrays_x_and_y(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = zoo.datasets.read(tmp_path / "a.npz")
    assert data.task == "classification"
    assert data.coords == {"feature": ("x0", "x1", "x2"), "class": ("0", "1")}
    assert data.dims == {"x": ("datum", "feature"), "y": ("datum",)}
    assert torch.equal(data.train["index"], torch.arange(data.num_data))


def test_given_splits_are_kept():
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.normal(size=(30, 2)),
        "y_train": rng.normal(size=30),
        "x_test": rng.normal(size=(7, 2)),
        "y_test": rng.normal(size=7),
    }
    data = zoo.datasets.read(arrays, validation=5)
    assert [len(b["index"]) for b in (data.train, data.validation, data.test)] == [25, 5, 7]
    raw = data.test["y"].double() * data.target.scale + data.target.mean
    assert torch.allclose(raw, torch.as_tensor(arrays["y_test"]), atol=1e-6)
    own = {**arrays, "x_validation": arrays["x_test"], "y_validation": arrays["y_test"]}
    assert len(zoo.datasets.read(own).train["index"]) == 30


@pytest.mark.parametrize("shape", [(20, 4, 5), (20, 3, 4, 5)])
def test_images_are_flattened_and_scaled(shape):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    data = zoo.datasets.read({"x": images, "y": np.arange(20) % 2}, test=0, validation=0)
    channels = 1 if len(shape) == 3 else 3
    assert data.extra == {"image_shape": (channels, 4, 5), "num_classes": 2}
    assert torch.allclose(data.train["x"], torch.as_tensor(images.reshape(20, -1) / 255.0, dtype=torch.float32))
    assert torch.equal(zoo.datasets.encode(data, {"x": images})["x"], data.train["x"])
    assert data.validation is None
    assert data.test is None


# -------------------------------------------------------------------------------------------------- encoding
def test_features_by_hand():
    frame = table()
    data = zoo.datasets.read(frame, "y", validation=0, test=0)
    assert data.coords["feature"] == ("age", "income", "city=Aachen", "city=Bonn", "member")
    assert frame["city"].value_counts().index[0] == "Ulm"  # the reference
    raw = np.stack(
        [frame["age"], frame["income"], frame["city"] == "Aachen", frame["city"] == "Bonn", frame["member"]], axis=1
    ).astype(float)
    assert np.allclose(data.train["x"], (raw - raw.mean(0)) / raw.std(0), atol=1e-5)
    assert [c.mean for c in data.columns] == pytest.approx(raw.mean(0))
    assert [c.scale for c in data.columns] == pytest.approx(raw.std(0))
    assert [c.source for c in data.columns] == ["age", "income", "city", "city", "member"]
    assert data.columns[2].categories == ("Ulm", "Aachen", "Bonn")
    assert data.train["x"].dtype == data.train["y"].dtype == torch.float32
    assert np.allclose(data.train["y"].double() * data.target.scale + data.target.mean, frame["y"], atol=1e-6)


def test_statistics_come_from_the_training_rows_alone():
    frame = table()
    data = zoo.datasets.read(frame, "y")
    parts = partition(len(frame))
    assert data.columns[1].mean == pytest.approx(frame["income"][parts == TRAIN].mean())
    assert data.target.mean == pytest.approx(frame["y"][parts == TRAIN].mean())
    assert data.columns[1].mean != pytest.approx(frame["income"].mean(), rel=1e-9)


def test_encode_repeats_the_encoding_of_training():
    frame = table()
    data = zoo.datasets.read(frame, "y")
    rows = frame[partition(len(frame)) == TEST]
    shuffled = rows[["y", "city", "member", "income", "age"]].assign(extra=1)
    batch = zoo.datasets.encode(data, shuffled)
    for key in ("x", "y"):
        assert torch.equal(batch[key], data.test[key])
    assert batch["index"].tolist() == list(range(len(rows)))
    assert set(zoo.datasets.encode(data, rows.drop(columns="y"))) == {"x", "index"}
    assert set(zoo.datasets.encode(data, rows.assign(y=np.nan))) == {"x", "index"}


def test_encode_labels():
    frame = table().assign(y=lambda f: np.where(f["age"] > 50, "old", "young"))
    data = zoo.datasets.read(frame, "y")
    assert zoo.datasets.encode(data, frame[:5])["y"].tolist() == (frame["age"][:5] <= 50).astype(int).tolist()
    with pytest.raises(DataError, match="'y' has values that training did not have: 'middle'; known: old, young"):
        zoo.datasets.encode(data, frame[:5].assign(y="middle"))


def test_encode_names_what_is_missing_or_unseen():
    data = zoo.datasets.read(table(), "y")
    with pytest.raises(UnknownNameError, match="missing: age, city; the table has income, member, y"):
        zoo.datasets.encode(data, table().drop(columns=["age", "city"]))
    with pytest.raises(
        DataError, match="'city' has values that training did not have: 'Essen'; known: Aachen, Bonn, Ulm"
    ):
        zoo.datasets.encode(data, table().replace({"city": {"Ulm": "Essen"}}))
    with pytest.raises(DataError, match=r"2 missing \(NaN\) in age \(2\)"):
        zoo.datasets.encode(data, table().assign(age=lambda f: f["age"].where(f.index > 1)))
    with pytest.raises(DataError, match="column 'age' holds text such as 'x'"):
        zoo.datasets.encode(data, table().assign(age="x"))


def test_encode_refuses_what_is_no_table():
    with pytest.raises(DataError, match="'eight_schools' is not a table"):
        zoo.datasets.encode(zoo.datasets.load("eight_schools"), table())
    images = zoo.datasets.read({"x": np.zeros((20, 4, 4)), "y": np.arange(20) % 2})
    with pytest.raises(DataError, match=r"images of shape \(1, 5, 5\).* has images of shape \(1, 4, 4\)"):
        zoo.datasets.encode(images, {"x": np.zeros((2, 5, 5))})
    with pytest.raises(DataError, match="holds no images"):
        zoo.datasets.encode(images, {"x": np.zeros((2, 16))})


@pytest.mark.parametrize(
    ("values", "task", "labels"),
    [
        (["yes", "no"] * 30, "classification", ("no", "yes")),
        ([True, False] * 30, "classification", ("False", "True")),
        ([-1, 1] * 30, "classification", ("-1", "1")),
        ([2, 10, 1] * 20, "classification", ("1", "2", "10")),
        ([0.0, 1.0] * 30, "classification", ("0", "1")),
        ([0.0, 0.5] * 30, "regression", None),
        (list(range(60)), "regression", None),
        (list(range(10)) * 6, "regression", None),  # 10 > sqrt(60)
        (list(np.linspace(0, 1, 60)), "regression", None),
    ],
)
def test_task_is_inferred(values, task, labels):
    data = zoo.datasets.read(table().assign(y=values))
    assert data.task == task
    assert data.target.categories == labels
    if labels:
        everything = torch.cat([data.train["y"], data.validation["y"], data.test["y"]])
        assert everything.dtype == torch.int64
        assert sorted(everything.unique().tolist()) == list(range(len(labels)))
        assert data.extra["num_classes"] == len(labels)


def test_task_can_be_given():
    frame = table().assign(y=[0, 1] * 30)
    assert zoo.datasets.read(frame, task="regression").train["y"].dtype == torch.float32
    frame = table().assign(y=list(range(10)) * 6)
    assert zoo.datasets.read(frame, task="classification").extra["num_classes"] == 10


def test_constant_columns_are_dropped_with_a_warning():
    with pytest.warns(UserWarning, match="one value in all training rows: one, land"):
        data = zoo.datasets.read(table().assign(one=1.0, land="DE"), "y")
    assert "one" not in data.coords["feature"]
    assert not [name for name in data.coords["feature"] if name.startswith("land")]


def test_row_numbers_of_a_written_index_are_dropped(tmp_path):
    table().to_csv(tmp_path / "a.csv")
    with pytest.warns(UserWarning, match="counts the rows"):
        data = zoo.datasets.read(tmp_path / "a.csv", "y")
    assert data.coords["feature"][0] == "age"


def test_named_columns_are_dropped():
    assert "city=Ulm" not in zoo.datasets.read(table(), "y", drop=["city"]).coords["feature"]
    refused("column 'ctiy' to drop is unknown; did you mean 'city'", table(), "y", drop=["ctiy"], kind=UnknownNameError)


@pytest.mark.parametrize(
    "column",
    [
        lambda f: f["city"].astype("category"),
        lambda f: f["city"].astype(object),
        lambda f: f["city"].astype("string"),
    ],
)
def test_every_kind_of_text_is_a_category(column):
    frame = table()
    same = zoo.datasets.read(frame.assign(city=column), "y")
    assert same.columns == zoo.datasets.read(frame, "y").columns


@pytest.mark.parametrize("dtype", [object, "Int64", "int8", "float32", "Float64"])
def test_every_kind_of_number_is_a_number(dtype):
    frame = table()
    same = zoo.datasets.read(frame.assign(age=frame["age"].astype(dtype)), "y")
    assert torch.equal(same.train["x"], zoo.datasets.read(frame, "y").train["x"])
    frame["age"] = frame["age"].astype(dtype)
    frame.loc[3, "age"] = None
    refused(r"1 missing \(NaN\) in age \(1\)", frame, "y")


# ---------------------------------------------------------------------------------------------------- splits
@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(10, 200), classes=st.integers(1, 6), seed=st.integers(0, 5), validation=st.floats(0, 0.2),
    test=st.floats(0, 0.3),
)  # fmt: skip
def test_split_is_stratified_and_complete(rows, classes, seed, validation, test):
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    parts = partition(rows, validation=validation, test=test, seed=seed, labels=labels)
    assert abs((parts == VALIDATION).sum() - validation * rows) <= 1
    assert abs((parts == TEST).sum() - test * rows) <= 1
    assert set(labels[parts == TRAIN]) == set(labels)
    for part in (TRAIN, VALIDATION, TEST):
        for label in set(labels):
            share = (labels == label).mean() * (parts == part).sum()
            assert abs(((labels == label) & (parts == part)).sum() - share) <= 2


def test_split_depends_on_the_seed_alone():
    a, b, c = partition(100, seed=3), partition(100, seed=3), partition(100, seed=4)
    assert (a == b).all()
    assert (a != c).any()
    # Pinned: saved posteriors of bundled data find their split again under every NumPy version.
    assert np.flatnonzero(partition(20, seed=0, validation=0, test=5)).tolist() == [5, 9, 10, 12, 16]


# ------------------------------------------------------------------------------------------------ bad inputs
def test_no_such_file(tmp_path):
    refused("nothing.csv' does not exist", tmp_path / "nothing.csv", "y")


def test_unknown_kind(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1]))
    refused("is a pickle, which is never read", tmp_path / "a.pkl", "y")
    (tmp_path / "a.xls").write_bytes(b"x")
    refused("unknown kind; allowed: .csv", tmp_path / "a.xls", "y")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.npz", "a.parquet"])
def test_empty_file(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    refused("is empty", tmp_path / name, "y")


def test_blank_file(tmp_path):
    (tmp_path / "a.csv").write_text("\n  \n")
    refused("is empty", tmp_path / "a.csv", "y")


def test_header_only(tmp_path):
    (tmp_path / "a.csv").write_text("age,y\n")
    refused("column names but no rows", tmp_path / "a.csv", "y")


def test_no_header(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    refused("first line must name the columns", tmp_path / "a.csv", "y")


def test_ragged_rows(tmp_path):
    (tmp_path / "a.csv").write_text("a,y\n1,2\n1,2,3\n")
    refused("is not a table: .*line 3", tmp_path / "a.csv", "y")
    (tmp_path / "a.csv").write_text("a,y\n1,2,3\n1,2,3\n")
    refused("more fields than its 2 column names", tmp_path / "a.csv", "y")


def test_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    refused("not text in UTF-8", tmp_path / "a.csv", "y")


def test_damaged_gzip(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(b"age,y\n1,2\n")
    refused("not a whole gzip file", tmp_path / "a.csv.gz", "y")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table().to_csv().encode())[:-20])
    refused("not a whole gzip file", tmp_path / "a.csv.gz", "y")


def test_text_named_npz(tmp_path):
    (tmp_path / "a.npz").write_text("age,y\n1,2\n")
    refused("is not an NPZ archive", tmp_path / "a.npz", "y")


def test_truncated_npz(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((50, 3)), y=np.zeros(50))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    refused("is not an NPZ archive", tmp_path / "a.npz", "y")
    (tmp_path / "a.npz").write_bytes(whole[:200] + b"\xff" * 40 + whole[240:])
    refused("damaged NPZ archive", tmp_path / "a.npz", "y")


def test_pickle_is_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "a.npz", x=np.array([Trap(), Trap()], dtype=object), y=np.zeros(2))
    refused("entry 'x' is a pickled object", tmp_path / "a.npz", "y")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()))
    refused("is not an NPZ archive", tmp_path / "b.npz", "y")
    assert not (tmp_path / "sprung").exists()


def test_not_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("age,y\n1,2\n")
    refused("is not a Parquet file", tmp_path / "a.parquet", "y")


@pytest.mark.parametrize("note", [b"{broken", b"\xff", b"[]", b"{}", b'{"index_columns": 3, "columns": [{}]}'])
def test_parquet_whose_notes_for_pandas_are_broken(tmp_path, note):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"age": [1.0, 2.0], "y": [1, 2]}).replace_schema_metadata({b"pandas": note})
    parquet.write_table(table, tmp_path / "a.parquet")
    refused("is not a Parquet file that can be read", tmp_path / "a.parquet", "y")


def test_parquet_names_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_text("PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(r"pyro-zoo\[tables\]", tmp_path / "a.parquet", "y", kind=MissingExtraError)


def test_unknown_target():
    refused("target column 'incom' is unknown; did you mean 'income'", table(), "incom", kind=UnknownNameError)
    refused(r"columns: age, income, city, member, y", table(), "incom", kind=UnknownNameError)
    refused("known: age, city, income, member, y", table(), "zzzzzzz", kind=UnknownNameError)


def test_missing_target():
    refused("no target was given.*age, income, city", table().drop(columns="y"), kind=UnknownNameError)


def test_unknown_task():
    refused("task 'regresion' .*did you mean 'regression'", table(), "y", task="regresion", kind=UnknownNameError)


def test_missing_and_infinite_values():
    frame = table()
    frame.loc[:2, "income"] = np.nan
    frame.loc[4, "city"] = None
    frame.loc[5, "y"] = np.inf
    refused(r"4 missing \(NaN\) in income \(3\), city \(1\); 1 infinite in y \(1\)", frame, "y")


def test_missing_values_in_images():
    images = np.zeros((10, 3, 3))
    images[0, 0, 0] = np.nan
    refused(r"'x' has 1 values that are missing", {"x": images, "y": np.arange(10) % 2})


def test_one_class():
    refused(r"target 'y' has one class only \('a'\)", table().assign(y="a"), "y")


def test_constant_regression_target():
    refused("target 'y' has the one value 2", table().assign(y=2.0), "y", task="regression")


def test_one_row():
    refused("1 row, .*at least 2", table()[:1], "y")


def test_too_little_left_for_training():
    refused("at least 2 must be left", table(), "y", test=59)


def test_text_target_of_a_regression():
    refused("target 'city' holds text such as 'Ulm|Bonn|Aachen'", table(), "city", task="regression")


def test_too_many_classes():
    refused("60 distinct values in 60 rows", table().assign(y=[f"name {i}" for i in range(60)]), "y")
    refused("60 distinct values in 60 rows", table(), "y", task="classification")


def test_lengths_differ():
    refused(r"'x' \(5 rows\) and 'y' \(4 rows\) differ in length", {"x": np.zeros((5, 2)), "y": np.zeros(4)})


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({}, "mapping is empty"),
        ({"x": 3.0, "y": [1, 2]}, "'x' is a single value"),
        ({"x": [[1], [1, 2]], "y": [1, 2]}, "'x' is not a regular array"),
        ({"x": np.zeros(2, dtype=complex), "y": [1, 2]}, "'x' holds complex numbers"),
        ({"x": np.zeros(2, dtype="V8"), "y": [1, 2]}, "'x' holds records or raw bytes"),
        ({"x": np.zeros(2, dtype=[("a", "f8"), ("b", "i4")]), "y": [1, 2]}, "'x' holds records or raw bytes"),
        ({"z": np.zeros((2, 2, 2)), "y": [1, 2]}, r"'z' has shape \(2, 2, 2\)"),
        ({"x": np.zeros((2, 2, 2, 2, 2)), "y": [1, 2]}, r"'x' has shape \(2, 2, 2, 2, 2\)"),
        ({"x": np.zeros((9, 2)), "y": np.zeros((9, 2))}, "target 'y' has several columns"),
        ({"x": np.zeros((9, 2, 2)), "w": np.zeros(9), "y": np.arange(9) % 2}, "remove the entries w"),
        ({"x_train": np.zeros((9, 2)), "y_train": np.zeros(9), "x_test": np.zeros((9, 2))}, "differ in their entries"),
        (
            {"x_train": np.zeros((9, 2)), "y_train": np.zeros(9), "x_test": np.zeros((9, 3)), "y_test": np.zeros(9)},
            "'x' has rows of shape",
        ),
        (
            {"x_train": np.zeros((9, 2)), "y_train": np.zeros(9), "x_test": np.zeros((9, 2)), "y_test": np.zeros(8)},
            r"'x' \(9 rows\) and 'y' \(8 rows\) of one split",
        ),
    ],
)
def test_arrays_of_wrong_shapes(entries, match):
    refused(match, entries, "y")


def test_data_of_an_unknown_type():
    refused("data of type int", 3, "y")


def test_no_features():
    with pytest.warns(UserWarning, match="dropped"):
        refused("no feature is left", table()[["y"]].assign(one=1), "y")
    refused("no feature is left", table()[["y"]], "y")


def test_duplicated_columns(tmp_path):
    (tmp_path / "a.csv").write_text("age,age,y\n1,2,3\n4,5,6\n")
    refused("'a.csv' names these columns more than once: age", tmp_path / "a.csv", "y")
    frame = table()
    frame.columns = ["age", "age", "city", "member", "y"]
    refused("more than once: age", frame, "y")
    refused("more than once: x0", {"x": np.zeros((9, 2)), "x0": np.zeros(9), "y": np.arange(9) % 2}, "y")
    twins = table().assign(**{"city=Aachen": 1.0 * (np.arange(ROWS) % 2)})
    refused("two features are named 'city=Aachen'", twins, "y")


def test_too_many_categories():
    rows = MAX_CATEGORIES + 2
    frame = table(rows).assign(city=[f"city {max(i, 1)}" for i in range(rows)])
    refused(f"'city' has {MAX_CATEGORIES + 1} distinct texts", frame, "y")


def test_an_identifier_is_no_feature():
    frame = table().assign(key=[f"key {i}" for i in range(ROWS)])
    refused(r"'key' has a different text in each of its 60 rows.*drop=\['key'\]", frame, "y")
    names = [c.name for c in zoo.datasets.read(frame, "y", drop=["key"]).columns]
    assert names == [c.name for c in zoo.datasets.read(table(), "y").columns]


def test_numbers_as_text():
    frame = table().assign(age=lambda f: f["age"].astype(str).where(f.index > 0, "?"))
    refused(r"'age' holds numbers as text, some of which cannot be read: '\?';", frame, "y")


def test_decimal_commas(tmp_path):
    table().to_csv(tmp_path / "a.csv", sep=";", decimal=",", index=False)
    with pytest.warns(UserWarning, match=r"the way they are written: 'income' \(1234,5\), 'y' \(1234,5\)"):
        data = zoo.datasets.read(tmp_path / "a.csv", "y")
    expected = zoo.datasets.read(table(), "y")
    assert torch.equal(data.train["x"], expected.train["x"])
    assert torch.equal(data.train["y"], expected.train["y"])


def test_new_images_in_other_units():
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4)).astype(np.uint8)
    data = zoo.datasets.read({"x": images, "y": np.arange(30) % 3}, "y")
    assert zoo.datasets.encode(data, {"x": images})["x"].max() <= 1
    with pytest.raises(DataError, match="pixels up to 255, and those of data set 'data' reach 1"):
        zoo.datasets.encode(data, {"x": images.astype(float)})


def test_images_with_channels_last():
    refused(r"channels last.*transpose it by \(0, 3, 1, 2\)", {"x": np.zeros((9, 8, 8, 3)), "y": np.arange(9) % 3}, "y")


def test_masked_entries_are_missing():
    ages = np.ma.masked_equal(np.arange(9), 3)
    refused(r"1 missing \(NaN\) in age \(1\)", {"age": ages, "y": np.arange(9) % 2}, "y")
    words = np.ma.masked_array(["a", "b", "c"] * 3, mask=[True, *[False] * 7, True])
    refused(r"2 missing \(NaN\) in word \(2\)", {"word": words, "y": np.arange(9) % 2}, "y")


@pytest.mark.parametrize("form", ["csv", "parquet", "npz", "frame", "arrays", "tensors", "nullable"])
def test_missing_values_are_refused_with_their_count_and_columns(form, tmp_path):
    frame = table()[["age", "income", "y"]].astype(float)
    frame.loc[[3, 5], "age"] = np.nan
    frame.loc[7, "income"] = np.nan
    path = tmp_path / f"a.{form}"
    if form == "csv":
        frame.to_csv(path, index=False)
    elif form == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    elif form == "npz":
        np.savez(path, **{c: frame[c].to_numpy() for c in frame})
    source = {
        "frame": frame,
        "arrays": {c: frame[c].to_numpy() for c in frame},
        "tensors": {c: torch.tensor(frame[c].to_numpy()) for c in frame},
        "nullable": frame.astype({"age": "Int64", "income": "Float64"}),
    }.get(form, path)
    refused(r"3 missing \(NaN\) in age \(2\), income \(1\); fill them or drop", source, "y")


# ---------------------------------------------------------------------------------------------- missing entries
def holes(frame):
    """Entries missing in two columns of numbers; the third row lacks both."""
    return frame.assign(
        age=frame["age"].astype(float).where(frame.index % 5 != 2), income=frame["income"].where(frame.index % 7 != 2)
    )


@pytest.mark.parametrize("nullable", [False, True])
def test_kept_entries_are_zero_and_marked(nullable):
    frame, whole = holes(table()), table()
    source = frame.astype({"age": "Int64", "income": "Float64"}) if nullable else frame
    data = zoo.datasets.read(source, "y", missing="keep")
    parts = partition(ROWS)
    names = [c.name for c in data.columns]
    for batch, part in ((data.train, TRAIN), (data.validation, VALIDATION), (data.test, TEST)):
        rows = frame[parts == part]
        gone = batch["x_missing"]
        assert gone.dtype == torch.bool
        assert (batch["x"][gone] == 0).all()
        for name in ("age", "income"):
            j = names.index(name)
            assert gone[:, j].tolist() == rows[name].isna().tolist()
            column = data.columns[j]
            there = ~gone[:, j].numpy()
            back = batch["x"][:, j].double().numpy() * column.scale + column.mean
            np.testing.assert_allclose(back[there], whole[parts == part][name].to_numpy()[there], rtol=1e-5)
        assert gone.any(0).sum() <= 2
    train = frame[parts == TRAIN]
    for name in ("age", "income"):
        column = data.columns[names.index(name)]
        assert column.mean == pytest.approx(train[name].mean())
        assert column.scale == pytest.approx(train[name].std(ddof=0))
    assert data.dims["x_missing"] == ("datum", "feature")


def test_keeping_nothing_changes_nothing():
    kept, refusing = (zoo.datasets.read(table(), "y", missing=m) for m in ("keep", "refuse"))
    assert zoo.datasets.fingerprint(kept) == zoo.datasets.fingerprint(refusing)
    assert kept.columns == refusing.columns
    assert "x_missing" not in kept.train


def test_a_missing_category_is_missing_in_all_its_indicators():
    frame = table().assign(city=lambda f: f["city"].where(f.index % 4 != 1))
    data = zoo.datasets.read(frame, "y", missing="keep")
    gone = data.train["x_missing"]
    cities = [j for j, c in enumerate(data.columns) if c.source == "city"]
    assert [data.columns[j].name for j in cities] == ["city=Aachen", "city=Ulm"]
    assert torch.equal(gone[:, cities[0]], gone[:, cities[1]])
    assert gone[:, cities].any(1).tolist() == frame[partition(ROWS) == TRAIN]["city"].isna().tolist()
    new = zoo.datasets.encode(data, table().assign(city=None))
    assert new["x_missing"][:, cities].all()


def test_new_rows_may_lack_what_training_rows_lacked():
    data = zoo.datasets.read(holes(table()), "y", missing="keep")
    new = zoo.datasets.encode(data, holes(table(12, seed=1)))
    assert new["x_missing"].sum() == holes(table(12)).isna().to_numpy().sum()
    assert (new["x"][new["x_missing"]] == 0).all()
    assert not zoo.datasets.encode(data, table(12))["x_missing"].any()
    with pytest.raises(DataError, match=r"12 missing \(NaN\) in city \(12\)"):
        zoo.datasets.encode(data, table(12).assign(city=None))
    with pytest.raises(DataError, match=r"missing \(NaN\) in age"):
        zoo.datasets.encode(zoo.datasets.read(table(), "y"), holes(table(12)))


def test_what_is_never_kept():
    refused("60 infinite in age", holes(table()).assign(age=np.inf), "y", missing="keep")
    refused("missing is 'fill'; known: drop, keep, level, refuse", table(), "y", missing="fill", kind=UnknownNameError)
    refused(r"or keep them \(missing='keep'\) for a method that imputes", holes(table()), "y")


@pytest.mark.parametrize("scale", [1e-320, 1e300])
def test_values_beyond_what_can_be_standardised(scale):
    refused("column 'income' spans too", table().assign(income=lambda f: f.index * scale), "y")
    refused("target 'y' spans too", table().assign(y=lambda f: f.index * scale), "y", task="regression")


def test_outlier_beyond_float32():
    frame = table()
    frame.loc[np.flatnonzero(partition(ROWS) == TEST)[0], "income"] = 1e45
    refused("column 'income' spans too", frame, "y")


# ---------------------------------------------------------------------------------------------- features alone
def test_a_density_takes_every_column_as_a_feature():
    data = zoo.datasets.read(table(), task="density")
    zoo.tasks.get("density").check(data)
    assert data.coords["feature"] == ("age", "income", "city=Aachen", "city=Bonn", "member", "y")
    assert set(data.train) == {"x", "index"}
    assert (len(data.train["x"]), len(data.validation["x"]), len(data.test["x"])) == (42, 6, 12)
    assert torch.allclose(data.train["x"].mean(0), torch.zeros(6), atol=1e-6)
    again = zoo.datasets.encode(data, table())
    assert set(again) == {"x", "index"}
    refused("density has features alone, but a target 'y' was given", table(), "y", task="density")


def test_a_density_of_images_leaves_their_labels_out():
    rng = np.random.default_rng(0)
    arrays = {"x": rng.integers(0, 256, (20, 4, 5), dtype=np.uint8), "y": rng.integers(0, 2, 20)}
    data = zoo.datasets.read(arrays, task="density")
    assert data.train["x"].shape == (14, 20)
    assert data.extra["image_shape"] == (1, 4, 5)
    assert set(data.train) == {"x", "index"}
