"""The bundled data: complete records, right numbers, seeded splits, a cheap catalogue."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo.datasets
import zoo.tasks
from zoo.errors import DataError, UnknownNameError

NAMES = zoo.datasets.names()
ENTRIES = {entry.name: entry for entry in zoo.datasets.catalogue()}


def every(data):
    return [batch for batch in (data.train, data.validation, data.test) if batch is not None]


def test_listing_imports_nothing_heavy():
    code = (
        "import sys, zoo.datasets, zoo.tasks; zoo.datasets.catalogue(); zoo.tasks.names();"
        "assert not {'torch', 'pandas', 'numpy', 'sklearn', 'pyro'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_sorted_and_unique():
    assert list(NAMES) == sorted(set(NAMES))
    assert set(NAMES) == set(ENTRIES)


@pytest.mark.parametrize("name", NAMES)
def test_record_is_complete_and_true(name):
    entry, data = ENTRIES[name], zoo.datasets.load(name)
    for field in ("source", "licence", "description"):
        assert getattr(entry, field)
        assert getattr(data, field) == getattr(entry, field)
    assert (data.name, data.task, data.origin) == (name, entry.task, "bundled")
    assert sum(len(batch["index"]) for batch in every(data)) == entry.rows
    if data.columns:
        assert len({column.source or column.name for column in data.columns}) == entry.columns
    zoo.tasks.get(data.task).check(data)


@pytest.mark.parametrize("name", NAMES)
def test_loading_warns_of_nothing_and_is_repeatable(name, recwarn):
    first, second = zoo.datasets.load(name), zoo.datasets.load(name)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    assert zoo.datasets.fingerprint(first) == zoo.datasets.fingerprint(second)


def test_every_bundled_file_has_a_notice():
    folder = Path(zoo.datasets.__file__).parent / "bundled"
    notice = (folder / "NOTICE").read_text()
    files = [path.name for path in folder.iterdir() if path.name != "NOTICE"]
    assert files
    assert [name for name in files if f"\n{name}\n" not in notice] == []


@pytest.mark.parametrize("name", [n for n in NAMES if ENTRIES[n].task == "classification"])
def test_splits_keep_the_classes_in_proportion(name):
    data = zoo.datasets.load(name)
    classes = data.extra["num_classes"]
    assert len(data.target.categories) == len(data.coords["class"]) == classes
    # The image sets bring a test set of their own; the seeded split is between training and validation.
    splits = [data.train, data.validation] if name in ("mnist", "fashion_mnist") else every(data)
    counts = torch.stack([torch.bincount(batch["y"], minlength=classes) for batch in splits]).double()
    expected = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
    assert (counts - expected).abs().max() <= 1.0


NO_TABLES = ("eight_schools", "mnist", "fashion_mnist", "digits", "digits_lighting")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_TABLES])
def test_tables_are_standardised_on_the_training_rows(name):
    data = zoo.datasets.load(name)
    x = data.train["x"].double()
    assert torch.allclose(x.mean(0), torch.zeros(x.shape[1], dtype=x.dtype), atol=1e-5)
    assert torch.allclose(x.std(0, correction=0), torch.ones(x.shape[1], dtype=x.dtype), atol=1e-5)
    assert len(data.columns) == x.shape[1] == len(data.coords["feature"])
    if data.task == "regression":
        assert abs(float(data.train["y"].mean())) < 1e-5
        assert abs(float(data.train["y"].std(correction=0)) - 1) < 1e-5


def test_amounts_of_loans_are_in_groups_of_purpose():
    data = zoo.datasets.load("german_credit_amount", validation=0, test=0)
    assert len(data.coords["group"]) == 8
    assert {column.name for column in data.columns}.isdisjoint({"risk", "credit_amount", "purpose"})
    first = data.train["y"][0] * data.target.scale + data.target.mean
    assert float(first.exp()) == pytest.approx(1169, rel=1e-4)
    assert data.coords["group"][int(data.train["group"][0])] == "radio/TV"


def test_adult_hours_are_in_groups_of_occupation_and_employer():
    data = zoo.datasets.load("adult_hours", validation=0, test=0)
    jobs = data.coords["group"]
    assert len(jobs) == 74
    assert data.extra["group"] == "job"
    hours = (data.train["y"].double() * data.target.scale + data.target.mean).round()
    first = [(jobs[group], int(hour)) for group, hour in zip(data.train["group"][:2], hours[:2], strict=True)]
    assert first == [("Prof-specialty, Private", 40), ("Other-service, Private", 16)]
    assert data.coords["feature"] == ("age", "education_num", "sex=Male")  # neither of the parts of the job


def test_the_units_of_concrete_come_back():
    data = zoo.datasets.load("concrete")
    column = data.columns[data.coords["feature"].index("age")]
    ages = torch.cat([batch["x"][:, data.coords["feature"].index("age")] for batch in every(data)]) * column.scale
    assert torch.unique((ages + column.mean).round()).tolist() == [
        1,
        3,
        7,
        14,
        28,
        56,
        90,
        91,
        100,
        120,
        180,
        270,
        360,
        365,
    ]
    strength = torch.cat([batch["y"] for batch in every(data)]).double() * data.target.scale + data.target.mean
    assert float(strength.mean()) == pytest.approx(35.817961, abs=1e-4)
    assert float(strength.max()) == pytest.approx(82.6, abs=1e-4)
    assert data.coords["feature"][0] == "cement"
    assert "rownames" not in data.coords["feature"]


def test_german_credit_uses_reference_coding():
    data = zoo.datasets.load("german_credit")
    features = data.coords["feature"]
    assert "housing=own" in features
    assert "housing=rent" in features
    assert "housing=free" not in features  # the reference
    assert data.target.categories == ("bad", "good")
    y = torch.cat([batch["y"] for batch in every(data)])
    assert int(y.sum()) == 700


def test_breast_cancer_codes_malignant_as_one():
    data = zoo.datasets.load("breast_cancer")
    assert data.target.categories == ("benign", "malignant")
    assert int(sum(batch["y"].sum() for batch in every(data))) == 212


@pytest.mark.parametrize(("name", "side"), [("mnist", 28), ("fashion_mnist", 28), ("digits", 8)])
def test_images_lie_in_the_unit_interval(name, side):
    data = zoo.datasets.load(name)
    assert data.extra["image_shape"] == (1, side, side)
    assert data.train["x"].shape[1] == side * side
    assert data.train["x"].dtype == torch.float32
    assert (float(data.train["x"].min()), float(data.train["x"].max())) == (0.0, 1.0)


def test_mnist_keeps_its_test_set_apart():
    data, other = zoo.datasets.load("mnist"), zoo.datasets.load("mnist", seed=1, validation=500)
    assert [len(batch["index"]) for batch in every(data)] == [5500, 1000, 1500]
    assert [len(batch["index"]) for batch in every(other)] == [6000, 500, 1500]
    assert torch.equal(data.test["x"], other.test["x"])
    assert not torch.equal(data.validation["x"][:500], other.validation["x"])
    assert other.extra["options"] == {"seed": 1, "validation": 500}
    again = zoo.datasets.load("mnist", **other.extra["options"])
    assert zoo.datasets.fingerprint(again) == zoo.datasets.fingerprint(other)


def test_eight_schools_are_rubins():
    data = zoo.datasets.load("eight_schools")
    assert data.train["y"].tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert data.train["sigma"].tolist() == [15, 10, 16, 11, 9, 11, 10, 18]
    assert data.coords["school"] == (
        "Choate",
        "Deerfield",
        "Phillips Andover",
        "Phillips Exeter",
        "Hotchkiss",
        "Lawrenceville",
        "St. Paul's",
        "Mt. Hermon",
    )
    assert data.validation is None
    assert data.test is None


def test_unknown_name_suggests():
    with pytest.raises(UnknownNameError, match="'minst' is unknown; did you mean 'mnist'"):
        zoo.datasets.load("minst")


def test_unknown_option_is_named():
    with pytest.raises(UnknownNameError, match="'mnist' has no option 'sed'; did you mean 'seed'"):
        zoo.datasets.load("mnist", sed=1)


@pytest.mark.parametrize(
    "options", [{"validation": 1.5}, {"validation": -1}, {"test": True}, {"seed": -1}, {"seed": 0.5}]
)
def test_option_out_of_range(options):
    with pytest.raises(DataError, match=next(iter(options))):
        zoo.datasets.load("iris", **options)


def test_standard_splits_are_pinned():
    # Saved posteriors name bundled data instead of storing them: their values must never change under a name.
    prints = {
        name: zoo.datasets.fingerprint(zoo.datasets.load(name))[:8] for name in ("concrete", "german_credit", "mnist")
    }
    assert prints == {"concrete": "d36963b0", "german_credit": "9390b0ac", "mnist": "95b69aec"}
