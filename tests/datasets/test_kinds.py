"""What columns hold is decided by the training rows, and new rows are read by it."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest
import torch

import zoo.datasets
from zoo.datasets.formats import AmbiguousDateError, NumberFormat, Spelling, date_format
from zoo.datasets.tables import encode_rows
from zoo.errors import DataError

ROWS = 60
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=ROWS).round(3), RNG.normal(size=ROWS).round(3)


def write(path, header, cells):
    """Write a column of cells beside two of numbers."""
    lines = [f"{cell},{a},{b}" for cell, a, b in zip(cells, A, B, strict=False)]
    path.write_text(f"{header},a,y\n" + "\n".join(lines) + "\n")
    return path


def cycle(*words):
    return [words[i % len(words)] for i in range(ROWS)]


# ----------------------------------------------------------------------------------------- names of categories
@pytest.mark.parametrize(
    ("words", "alone"),
    [
        (("007", "013", "A12"), ("007", "013")),
        (("007", "013", "021"), ("021",)),
        (("TRUE", "FALSE", "maybe"), ("TRUE", "FALSE")),
        (("1.50", "2.0", "XL"), ("1.50", "2.0")),
        (("1e5", "2E3", "x"), ("1e5",)),
        (("1", "2+", "+1"), ("1", "+1")),
        (("2020-01-01", "never"), ("2020-01-01",)),
        (("1,5;x", "2"), ("2",)),
    ],
)
def test_a_category_has_one_name_whatever_the_other_rows_hold(words, alone, tmp_path):
    words = [f'"{w}"' if "," in w else w for w in words]
    data = zoo.datasets.read(write(tmp_path / "a.csv", "c", cycle(*words)), "y", validation=0, test=0)
    everything = zoo.datasets.encode(data, write(tmp_path / "b.csv", "c", words))
    for word in alone:
        one = zoo.datasets.encode(data, write(tmp_path / "c.csv", "c", [word]))
        assert torch.equal(one["x"][0, :-1], everything["x"][words.index(word), :-1])
    assert len(everything["x"][:, :-1].unique(dim=0)) == len(words)


@pytest.mark.parametrize("words", [("007", "013", "A12"), ("007", "013"), ("TRUE", "x"), ("1.50", "b"), ("3", "4")])
def test_a_group_has_one_name_whatever_the_other_rows_hold(words, tmp_path):
    data = zoo.datasets.read(write(tmp_path / "a.csv", "g", cycle(*words)), "y", group="g", validation=0, test=0)
    assert set(data.coords["group"]) == set(words)
    for word in words:
        one = zoo.datasets.encode(data, write(tmp_path / "b.csv", "g", [word]))
        assert data.coords["group"][int(one["group"][0])] == word
        assert "new_group" not in one


def test_typed_values_find_the_category_of_a_text(tmp_path):
    data = zoo.datasets.read(write(tmp_path / "a.csv", "c", cycle("007", "1", "x")), "y", validation=0, test=0)
    names = [c.name for c in data.columns if c.source == "c"]
    for value, name in ((7, "c=007"), (7.0, "c=007"), (np.int8(1), "c=1"), (decimal.Decimal("7"), "c=007")):
        x = zoo.datasets.encode(data, pd.DataFrame({"c": pd.Series([value], dtype=object), "a": [0.0]}))["x"][0]
        on = [n for n, v in zip([c.name for c in data.columns], x, strict=True) if n.startswith("c=") and v > 0]
        assert on == ([name] if name in names else [])
    nullable = pd.DataFrame({"c": pd.array([1, None], dtype="Int64"), "a": [0.0, 0.0]})
    found = encode_rows(data, nullable)
    assert (found.rows.tolist(), found.refused[0].column) == ([0], "c")


def test_sensitive_columns_and_classes_keep_leading_zeros(tmp_path):
    path = tmp_path / "a.csv"
    rows = zip(cycle("01", "02"), A, cycle("007", "7", "8"), strict=True)
    path.write_text("s,a,t\n" + "\n".join(f"{s},{a},{t}" for s, a, t in rows))
    data = zoo.datasets.read(path, "t", sensitive="s")
    assert data.coords["sensitive"] == ("01", "02")
    assert set(data.target.categories) == {"007", "7", "8"}
    assert set(zoo.datasets.read(path, "t", drop=["s"]).target.categories) == {"007", "7", "8"}


def test_columns_can_be_said_to_be_names(tmp_path):
    path = write(tmp_path / "a.csv", "c", cycle("1", "2", "3"))
    assert [c.name for c in zoo.datasets.read(path, "y").columns] == ["c", "a"]
    names = [c.name for c in zoo.datasets.read(path, "y", categorical=["c"]).columns]
    assert len([n for n in names if n.startswith("c=")]) == 2


def test_long_identifiers_of_groups_stay_apart(tmp_path):
    words = [str(2**60 + k) for k in range(3)]
    data = zoo.datasets.read(write(tmp_path / "a.csv", "g", cycle(*words)), "y", group="g")
    assert data.coords["group"] == tuple(words)
    with pytest.warns(UserWarning, match=r"whole numbers beyond 2\^53 are rounded.*: g"):
        zoo.datasets.read(write(tmp_path / "b.csv", "g", [str(2**60 + 1000 * k) for k in range(ROWS)]), "y")


# ---------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("words", "separator", "mark", "expected"),
    [
        (["1", "2.5", "-3e4", "+7", ".5"], ",", "", [1, 2.5, -3e4, 7, 0.5]),
        (["1,5", "-0,25"], ";", "", [1.5, -0.25]),
        (["1,500", "500"], ",", "", [1500, 500]),
        (["1,500", "500"], ";", "", [1.5, 500]),
        (["1,500", "500"], "\t", ".", [1500, 500]),
        (["1.500", "2.500.000"], ";", "", [1500, 2500000]),
        (["1.500", "2.250"], ";", ",", [1500, 2250]),
        (["1.500", "2.250"], ";", "", [1.5, 2.25]),
        (["1.234,5", "7"], ";", "", [1234.5, 7]),
        (["1,234.5", "7"], ",", "", [1234.5, 7]),
        (["1 234,5", "7\u00a0000"], ";", ",", [1234.5, 7000]),
        (["1'234.5", "12"], ",", "", [1234.5, 12]),
        (["$1,200", "-$3"], ",", "", [1200, -3]),
        (["12.5%", "7%"], ",", "", [12.5, 7]),
        (["3,50 €", "4,00 €"], ";", "", [3.5, 4]),
        (["12 kg", "7.5 kg"], ",", "", [12, 7.5]),
        (["\u22123", "4"], ",", "", [-3, 4]),
    ],
)
def test_numbers_as_people_write_them(words, separator, mark, expected):
    found = Spelling.of(words).format(words, name="a", mark=mark, separator=separator)
    assert found.parse(words).tolist() == expected
    assert NumberFormat.from_text(found.to_text()) == found


@pytest.mark.parametrize(
    "words", [["1_000"], ["0x1F"], ["1,2,3"], ["1.2.3"], ["12", "12%"], ["1,50", "1.50"], ["--1"], ["x"]]
)
def test_what_is_no_number(words):
    assert Spelling.of(words) is None


def test_a_comma_that_may_be_either_is_refused():
    with pytest.raises(DataError, match="numbers such as '1,234', in which the comma may stand before decimals"):
        Spelling.of(["1,234", "500"]).format(["1,234", "500"], name="a", separator="\t")


def test_new_rows_are_read_by_the_format_of_training(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a;y\n" + "\n".join(f"{a};{b}".replace(".", ",") for a, b in zip(A, B, strict=True)))
    data = zoo.datasets.read(path, "y")
    (tmp_path / "b.csv").write_text("a\n2,000\n")
    one = zoo.datasets.encode(data, tmp_path / "b.csv")["x"]
    assert torch.equal(one, zoo.datasets.encode(data, pd.DataFrame({"a": [2.0]}))["x"])
    with pytest.raises(DataError, match=r"column 'a' holds text such as '2\.000'"):
        zoo.datasets.encode(data, pd.DataFrame({"a": ["2.000"]}))


@pytest.mark.parametrize("kind", ["feature", "target"])
def test_decimals_are_numbers(kind):
    values = [decimal.Decimal(str(a)) for a in A]
    frame = pd.DataFrame({"p": values, "a": B, "y": A})
    data = zoo.datasets.read(frame, "p" if kind == "target" else "y", task="regression")
    assert "p" in [data.target.name, *(c.name for c in data.columns)]
    again = zoo.datasets.read(frame.assign(p=A), data.target.name, task="regression")
    assert torch.equal(data.train["x"], again.train["x"])
    assert torch.equal(data.train["y"], again.train["y"])


@pytest.mark.parametrize("top", [10_000, 1_000_000, 100_000_000])
def test_counts_of_a_wide_range_are_counts(top):
    y = RNG.poisson(5, ROWS)
    y[::10] = top + RNG.integers(0, 1000, len(y[::10]))
    frame = pd.DataFrame({"x": A, "g": cycle("u", "v", "w"), "views": y})
    data = zoo.datasets.read(frame, "views", group="g", task="regression", validation=0, test=0)
    back = data.train["y"].double() * data.target.scale + data.target.mean
    assert (back - torch.as_tensor(y)).abs().max() < 1e-3
    assert torch.equal(zoo.datasets.encode(data, frame)["y"], data.train["y"])
    options = {"hyper": {"counts": True}, "engine": "svi", "steps": 3, "compile": False}
    fitted = zoo.fit("hierarchical_regression", data, **options)
    wide = data.train["y"].dtype == torch.float64
    assert fitted.info["dtype"] == ("float64" if wide else "float32")
    if wide:
        with pytest.raises(DataError, match="they need dtype='float64'"):
            zoo.fit("hierarchical_regression", data, dtype="float32", **options)
    halves = frame.assign(views=y + 0.5)
    data = zoo.datasets.read(halves, "views", group="g", task="regression")
    with pytest.raises(DataError, match="not whole"):
        zoo.fit("hierarchical_regression", data, **options)


# ------------------------------------------------------------------------------------------------------ dates
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["2020-01-31", "2020-02-01"], "ISO8601"),
        (["2020-01-31T10:00:00Z", "2020-02-01T10:00:00+02:00"], "ISO8601"),
        (["31/01/2020", "01/02/2020"], "%d/%m/%Y"),
        (["1/31/2020", "2/1/2020"], "%m/%d/%Y"),
        (["01.02.2020", "02.03.2020"], "%d.%m.%Y"),
        (["31-01-20", "01-02-20"], "%d-%m-%y"),
        (["31-Jan-2020", "01-Feb-2020"], "%d-%b-%Y"),
        (["January 31, 2020", "May 1, 2020"], "%B %d, %Y"),
        (["2020/1/31 10:30", "2020/02/01 09:00"], "%Y/%m/%d %H:%M"),
        (["1/31/2020 1:30 PM"], "%m/%d/%Y %I:%M %p"),
        (["2020-01", "2020-12"], "%Y-%m"),
        (["2020-01-31", "31.01.2020"], None),
        (["2020-13-31"], None),
        (["2020-01-01", "2020-01-01T10:00:00Z"], None),
        (["1.2.3"], None),
    ],
)
def test_dates_as_people_write_them(words, expected):
    assert date_format(words) == expected


def test_a_date_that_may_be_either_is_refused(tmp_path):
    words = [f"{i % 12 + 1:02d}/{i % 11 + 1:02d}/2020" for i in range(ROWS)]
    with pytest.raises(AmbiguousDateError):
        date_format(words)
    path = write(tmp_path / "a.csv", "day", words)
    with pytest.raises(DataError, match=r"cannot be told apart in any row; say day_first=True") as info:
        zoo.datasets.read(path, "y")
    assert "\n" not in str(info.value)
    march, april = (zoo.datasets.read(path, "y", day_first=first).columns[0] for first in (False, True))
    assert (march.format, april.format) == ("%m/%d/%Y", "%d/%m/%Y")


def test_another_column_tells_the_order_of_day_and_month(tmp_path):
    words = [f"{i % 12 + 1:02d}/{i % 11 + 1:02d}/2020,{i % 28 + 1:02d}/{i % 12 + 1:02d}/2020" for i in range(ROWS)]
    data = zoo.datasets.read(write(tmp_path / "a.csv", "first,second", words), "y")
    assert [c.format for c in data.columns[:2]] == ["%d/%m/%Y"] * 2


def test_a_date_is_a_number_of_days(tmp_path):
    days = pd.date_range("2019-12-30", periods=ROWS)
    data = zoo.datasets.read(
        write(tmp_path / "a.csv", "day", [f"{d:%d/%m/%Y}" for d in days]), "y", validation=0, test=0
    )
    column = data.columns[0]
    assert (column.name, column.kind, column.unit) == ("day", "date", "days since 2019-12-30")
    raw = data.train["x"][:, 0].double() * column.scale + column.mean
    assert raw.tolist() == pytest.approx(range(ROWS), abs=1e-4)
    for value in ("28/02/2021", "2021-02-28", pd.Timestamp("2021-02-28"), datetime.date(2021, 2, 28)):
        x = zoo.datasets.encode(data, pd.DataFrame({"day": [value], "a": [0.0]}))["x"][0, 0]
        assert float(x) * column.scale + column.mean == pytest.approx((pd.Timestamp("2021-02-28") - days[0]).days)
    typed = zoo.datasets.read(pd.DataFrame({"day": days, "a": A, "y": B}), "y", validation=0, test=0)
    assert torch.equal(typed.train["x"], data.train["x"])
    found = encode_rows(data, write(tmp_path / "b.csv", "day", ["31/12/2019", "12/31/2019"]))
    assert [(r.row, r.line, r.reason) for r in found.refused] == [(1, 3, "'12/31/2019' is no date")]


@pytest.mark.parametrize("role", ["group", "class", "sensitive"])
def test_dates_are_names_where_names_are_wanted(role):
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(ROWS) % 3, "D")
    frame = pd.DataFrame({"day": day, "a": A, "y": B, "t": np.arange(ROWS) % 2})
    options = {
        "group": {"target": "y", "group": "day", "drop": ["t"]},
        "class": {"target": "day", "task": "classification"},
        "sensitive": {"target": "t", "sensitive": "day"},
    }[role]
    data = zoo.datasets.read(frame, **options)
    assert data.coords[role] == ("2020-01-01", "2020-01-02", "2020-01-03")
    one = zoo.datasets.encode(data, frame.tail(4))
    entry = {"group": "group", "class": "y", "sensitive": "s"}[role]
    assert one[entry].tolist() == [2, 0, 1, 2]
    with pytest.raises(DataError, match="target 'day' holds dates"):
        zoo.datasets.read(frame, "day")


@pytest.mark.parametrize(
    ("column", "match"),
    [
        (A + 1j, "holds complex numbers"),
        ([[1]] * ROWS, "holds values of the type list"),
        ([b"a", b"b"] * (ROWS // 2), "holds values of the type bytes"),
        ([{"a": 1}] * ROWS, "holds values of the type dict"),
    ],
)
def test_values_that_no_column_can_hold(column, match):
    with pytest.raises(DataError, match=match) as info:
        zoo.datasets.read(pd.DataFrame({"c": pd.Series(list(column)), "y": B}), "y")
    assert "\n" not in str(info.value)


# ------------------------------------------------------------------------------------------- missing and names
def test_a_word_for_missing_that_is_a_category(tmp_path):
    path = write(tmp_path / "a.csv", "garage", cycle("NA", "None", "Attached"))
    with pytest.warns(
        UserWarning, match=r"'garage': 'NA' \(20 rows\) and 'None' \(20 rows\) is a category.*na=\['NA'\]"
    ):
        data = zoo.datasets.read(path, "y")
    assert set(data.columns[0].categories) == {"NA", "None", "Attached"}
    assert not encode_rows(data, write(tmp_path / "b.csv", "garage", ["NA"])).refused
    with pytest.raises(DataError, match=r"20 missing \(NaN\) in garage"):
        zoo.datasets.read(path, "y", na=["NA"])


def test_a_word_for_missing_that_numbers_have_too(tmp_path):
    path = tmp_path / "a.csv"
    rows = [
        f"{w},{'NA' if i % 7 == 0 else i},{b}" for i, (w, b) in enumerate(zip(cycle("NA", "x", "z"), B, strict=True))
    ]
    path.write_text("g,a,y\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"29 missing \(NaN\) in g \(20\), a \(9\)"):
        zoo.datasets.read(path, "y")
    data = zoo.datasets.read(path, "y", missing="drop", categorical=["g"])
    assert "NA" in data.columns[0].categories


def test_rows_with_missing_entries_can_be_dropped():
    frame = pd.DataFrame({"a": A, "c": cycle("u", "v", "w"), "y": B})
    frame.loc[:4, "a"] = np.nan
    frame.loc[3:8, "c"] = None
    frame.loc[50:, "y"] = np.nan
    with pytest.warns(UserWarning, match="are left out") as seen:
        data = zoo.datasets.read(frame, "y", missing="drop")
    texts = [str(w.message) for w in seen]
    assert texts == list(data.extra["notes"])
    assert texts[0] == "10 of 60 rows have no target 'y' and are left out"
    assert texts[1] == "9 of 50 rows have missing entries in a (5), c (6) and are left out"
    assert sum(len(b["index"]) for b in (data.train, data.validation, data.test)) == 41
    with pytest.raises(DataError, match="0 of 60 rows have no missing entry"):
        zoo.datasets.read(
            frame.assign(a=frame["a"].where(frame.index < 30), c=frame["c"].where(frame.index >= 30), y=B),
            "y",
            missing="drop",
        )


def test_a_missing_category_can_be_one_of_its_own():
    frame = pd.DataFrame({"a": A, "c": cycle("u", "v", None), "f": cycle(True, False, None, True), "y": B})
    data = zoo.datasets.read(frame, "y", missing="level", validation=0, test=0)
    assert {"c=(missing)", "f=(missing)"} <= {c.name for c in data.columns}
    assert "x_missing" not in data.train
    assert torch.equal(zoo.datasets.encode(data, frame)["x"], data.train["x"])
    numbers = zoo.datasets.read(frame.assign(a=frame["a"].where(frame.index > 5)), "y", missing="level")
    assert [c.name for c, n in zip(numbers.columns, numbers.train["x_missing"].sum(0), strict=True) if n] == ["a"]


def test_a_new_row_may_lack_a_truth_value_where_entries_may_be_missing():
    frame = pd.DataFrame({"f": cycle(True, False), "z": np.where(np.arange(ROWS) % 7 == 0, np.nan, A), "y": B})
    data = zoo.datasets.read(frame, "y", missing="keep")
    new = zoo.datasets.encode(data, pd.DataFrame({"f": [True, None], "z": [1.0, 2.0]}))
    assert new["x_missing"].tolist() == [[False, False], [True, False]]


# ------------------------------------------------------------------------------------------------------ factors
def factor(rows=200):
    cabin = np.array(["3rd", "2nd", "1st"])[np.arange(rows) % 3].astype(object)
    cabin[:100] = "3rd"
    cabin[150] = "*"
    cabin[160:162] = "crew"
    return pd.DataFrame({"cabin": cabin, "a": RNG.normal(size=rows), "y": RNG.normal(size=rows)})


def test_the_reference_is_frequent_and_rare_categories_are_pooled():
    note = r"'cabin': categories of few training rows are pooled as '\(other\)': '\*' \(1\), 'crew' \(2\)"
    with pytest.warns(UserWarning, match=note):
        data = zoo.datasets.read(factor(), "y", validation=0, test=0)
    columns = [c for c in data.columns if c.source == "cabin"]
    assert [c.name for c in columns] == ["cabin=1st", "cabin=2nd", "cabin=(other)"]
    assert {c.reference for c in columns} == {"3rd"}
    assert columns[0].pooled == ("*", "crew")
    rows = pd.DataFrame({"cabin": ["3rd", "crew", "*", "4th"], "a": 0.0})
    found = encode_rows(data, rows)
    on = (found.batch["x"][:, :3] > 0).tolist()
    assert on == [[False] * 3, [False, False, True], [False, False, True]]
    assert [(r.row, r.reason) for r in found.refused] == [(3, "training did not have '4th'")]


def test_pooling_and_reference_are_options():
    data = zoo.datasets.read(factor(), "y", rare=0, reference="first", validation=0, test=0)
    assert [c.name for c in data.columns][:4] == ["cabin=1st", "cabin=2nd", "cabin=3rd", "cabin=crew"]
    assert data.columns[0].reference == "*"
    everything_rare = pd.DataFrame({"c": [f"k{i // 2}" for i in range(100)], "a": A[0], "y": range(100)})
    everything_rare["a"] = np.arange(100) ** 2
    assert len(zoo.datasets.read(everything_rare, "y").columns) > 30


def test_stored_data_sets_encode_as_before(tmp_path):
    path = write(tmp_path / "a.csv", "day", [f"{d:%d/%m/%Y}" for d in pd.date_range("2019-12-30", periods=ROWS)])
    for data in (zoo.datasets.read(path, "y"), zoo.datasets.read(factor(), "y", group=None)):
        tensors, meta = zoo.datasets.pack(data)
        assert zoo.datasets.unpack(tensors, meta).columns == data.columns
        # As posteriors were stored before columns had kinds.
        old = {
            **meta,
            "columns": [{k: c[k] for k in ("name", "mean", "scale", "categories", "source")} for c in meta["columns"]],
        }
        assert {c.kind for c in zoo.datasets.unpack(tensors, old).columns} == {""}
    frame = factor()
    plain = zoo.datasets.read(frame, "y", rare=0, reference="first")
    tensors, meta = zoo.datasets.pack(plain)
    meta["columns"] = [{k: c[k] for k in ("name", "mean", "scale", "categories", "source")} for c in meta["columns"]]
    before = zoo.datasets.unpack(tensors, meta)
    assert torch.equal(zoo.datasets.encode(before, frame)["x"], zoo.datasets.encode(plain, frame)["x"])


# ------------------------------------------------------------------------------------------------ collinearity
def test_exactly_collinear_features_are_named():
    kind = np.arange(ROWS) % 3
    frame = pd.DataFrame({"type1": kind == 0, "a": A, "type2": kind == 1, "type3": kind == 2, "y": B}).astype(float)
    with pytest.warns(UserWarning, match=r"exactly collinear.*: type3 by type1 and type2; .*drop=\['type3'\]"):
        data = zoo.datasets.read(frame, "y")
    assert len(data.columns) == 4
    twins = frame.drop(columns="type3").assign(fahrenheit=32 - 1.8 * A)
    with pytest.warns(UserWarning, match="exactly collinear.*: fahrenheit by a;"):
        zoo.datasets.read(twins, "y")


def test_nearly_collinear_features_are_not(recwarn):
    zoo.datasets.read(pd.DataFrame({"a": A, "b": A + 1e-3 * RNG.normal(size=ROWS), "y": B}), "y")
    zoo.datasets.read(
        pd.DataFrame(RNG.normal(size=(30, 50)), columns=[f"x{j}" for j in range(50)]).assign(y=range(30)), "y"
    )
    assert not [w for w in recwarn if "collinear" in str(w.message)]
