"""The task of fair representations: what is refused, gaps against hand counts, scores on rows with a target."""

import dataclasses

import pytest
import torch

import zoo.tasks
from zoo.errors import DataError, PairError
from zoo.inference.predictive import Prediction
from zoo.tasks.fair_representation import odds_gap, parity_gap
from zoo.types import Dataset

TASK = zoo.tasks.get("fair_representation")


def dataset(**entries):
    batch = {
        "x": torch.zeros(4, 2),
        "y": torch.tensor([0, 1, 0, 1]),
        "s": torch.tensor([0, 0, 1, 1]),
        "index": torch.arange(4),
    }
    extra = {"num_classes": 2, "num_groups": 2}
    return Dataset(name="d", task=TASK.name, train=batch | entries, extra=extra)


def test_gaps_are_those_counted_by_hand():
    predicted = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0])
    y = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0])
    s = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert parity_gap(predicted, s) == pytest.approx(2 / 4 - 1 / 4)
    assert odds_gap(predicted, y, s) == pytest.approx(1 - 1 / 2)  # of true positives; false positives do not differ
    assert parity_gap(predicted[:4], s[:4]) == 0.0  # one group
    three = torch.tensor([0, 1, 2, 0, 0, 2])
    assert parity_gap(three, torch.tensor([0, 0, 0, 1, 1, 1])) == pytest.approx(1 / 3)


def test_scores_read_rows_with_a_target_only():
    data = dataset()
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    batch = data.train | {"y_missing": torch.tensor([False, False, False, True])}
    found = TASK.score(Prediction(samples={}, probs={"y": probs[None]}), batch, data)
    assert found["accuracy"] == 1.0
    assert found["nll"] == pytest.approx(-float(torch.tensor([0.9, 0.8, 0.6]).log().mean()), rel=1e-6)
    assert found["parity_gap"] == pytest.approx(0.5)
    assert found["odds_gap"] == 0.0
    whole = TASK.score(Prediction(samples={}, probs={"y": probs[None]}), data.train, data)
    assert (whole["accuracy"], whole["odds_gap"]) == (0.75, 1.0)
    nothing = data.train | {"y_missing": torch.ones(4, dtype=torch.bool)}
    with pytest.raises(DataError, match="no row of the batch has a target"):
        TASK.score(Prediction(samples={}, probs={"y": probs[None]}), nothing, data)
    with pytest.raises(PairError, match="the prediction has 3 classes"):
        TASK.score(Prediction(samples={}, probs={"y": torch.ones(1, 4, 3) / 3}), data.train, data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (dataset(s=torch.tensor([0, 0, 1, 2])), "codes 's' from 0 to 2; with extra\\['num_groups'\\] = 2"),
        (dataset(y=torch.tensor([-1, 0, 1, 1])), "codes 'y' from -1 to 1"),
        (dataset(s=torch.zeros(4)), "int64 codes were expected"),
        (dataset(s=torch.zeros(3, dtype=torch.int64)), "'s' has 3 rows and 'index' has 4"),
        (dataset(y_missing=torch.zeros(4)), "booleans of shape \\(4,\\) were expected"),
        (dataset(y_missing=torch.ones(4, dtype=torch.bool)), "no training row has a target"),
        (dataclasses.replace(dataset(), extra={"num_classes": 2}), "extra\\['num_groups'\\] is None"),
    ],
)
def test_other_data_are_refused(data, error):
    with pytest.raises(DataError, match=error):
        TASK.check(data)


def test_good_data_pass():
    TASK.check(dataset())
    TASK.check(dataset(y_missing=torch.tensor([True, False, False, False])))
