"""The audit finds what leaks, and nothing where nothing leaks."""

import pytest
import torch

from zoo.diagnostics.fairness import audit, frontier
from zoo.errors import DataError
from zoo.types import Dataset


def data(rows=600):
    """Two features: one tells the class, the other the group; the last two tell the group by their length alone."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        y, s = (torch.randint(2, (rows,), generator=generator) for _ in range(2))
        s = torch.where(torch.rand(rows, generator=generator) < 0.5, s, 1)  # three of four rows are of group 1
        noise = torch.randn(rows, 3, generator=generator)
        ring = (1.0 + 2.0 * s[:, None]) * torch.nn.functional.normalize(noise[:, :2], dim=1)
        x = torch.stack([2 * y - 1 + 0.5 * noise[:, 2], 2.0 * s - 1, ring[:, 0], ring[:, 1]], 1)
        batches.append({"x": x, "y": y, "s": s, "index": torch.arange(rows)})
    extra = {"num_classes": 2, "num_groups": 2}
    return Dataset(
        name="d", task="fair_representation", train=batches[0], validation=batches[1], test=batches[2], extra=extra
    )


DATA = data()


def test_a_leak_is_found_and_a_fair_column_is_fair():
    leaky = audit(lambda batch: batch["x"][:, :2], DATA, num_trees=20)
    assert leaky["linear s auroc"] == leaky["forest s balanced accuracy"] == 1.0
    assert leaky["linear y accuracy"] > 0.95
    fair = audit(lambda batch: batch["x"][:, :1], DATA, num_trees=20)
    assert fair["linear y accuracy"] > 0.95
    assert fair["linear s auroc"] == pytest.approx(0.5, abs=0.07)
    assert fair["linear s balanced accuracy"] == pytest.approx(0.5, abs=0.07)
    assert fair["forest s balanced accuracy"] == pytest.approx(0.5, abs=0.07)
    assert 0.7 < fair["s base rate"] < 0.8  # which accuracy would be near, whatever leaks
    assert fair["parity gap"] < 0.12
    assert fair["odds gap"] < 0.12


def test_the_forest_sees_what_the_linear_probe_cannot():
    ring = audit(lambda batch: batch["x"][:, 2:], DATA, num_trees=20)
    assert ring["linear s balanced accuracy"] < 0.6
    assert ring["forest s balanced accuracy"] > 0.95


def test_a_predictor_of_the_group_has_gaps_of_one():
    same = {**DATA.test, "y": DATA.test["s"]}
    parts = {name: {**DATA.split(name), "y": DATA.split(name)["s"]} for name in ("train", "validation")}
    told = Dataset(name="d", task="fair_representation", test=same, extra=DATA.extra, **parts)
    found = audit(lambda batch: batch["x"][:, 1:2], told, forest=False)
    assert found["parity gap"] == 1.0
    assert "forest s auroc" not in found


def test_rows_without_target_are_left_out_for_the_target_alone():
    half = torch.arange(600) % 2 == 0
    parts = {n: DATA.split(n) | {"y_missing": half, "y": DATA.split(n)["y"] * ~half} for n in ("train", "validation")}
    some = Dataset(name="d", task="fair_representation", test=DATA.test, extra=DATA.extra, **parts)
    found = audit(lambda batch: batch["x"][:, :2], some, forest=False)
    assert found["linear y accuracy"] > 0.95
    assert found["linear s auroc"] == 1.0


def test_the_frontier_shows_each_representation_where_it_is() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    fair = {
        "linear y accuracy": 0.8,
        "linear s auroc": 0.52,
        "forest s auroc": 0.6,
        "parity gap": 0.01,
        "odds gap": 0.1,
    }
    raw = {"linear y accuracy": 0.85, "linear s auroc": 0.9, "parity gap": 0.2, "odds gap": 0.15}
    figure, axes = plt.subplots(1, 2, squeeze=False)
    frontier({"purged": fair, "features": raw}).paint(axes)
    left, right = ([tuple(map(float, c.get_offsets()[0])) for c in axis.collections] for axis in axes[0])
    assert left == [(0.52, 0.8), (0.6, 0.8), (0.9, 0.85)]
    assert right == [(0.01, 0.8), (0.1, 0.8), (0.2, 0.85), (0.15, 0.85)]
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()] == ["purged", "features"]
    plt.close(figure)
    with pytest.raises(DataError, match="no audit was given"):
        frontier({})


def test_a_broken_representation_is_refused():
    with pytest.raises(DataError, match="holds NaN or infinite"):
        audit(lambda batch: batch["x"] * float("nan"), DATA)
    with pytest.raises(DataError, match="has 3 rows; 600 were expected"):
        audit(lambda batch: batch["x"][:3], DATA)
