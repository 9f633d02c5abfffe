"""Tasks: checks refuse what does not fit; scores equal scikit-learn's, closed forms and simulation."""

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

import zoo.datasets
import zoo.tasks
from zoo.errors import DataError, PairError, UnknownNameError, ZooError
from zoo.tasks._scores import crps
from zoo.tasks.classification import auroc, expected_calibration_error
from zoo.types import Column, Dataset


@dataclass(frozen=True)
class Predicted:
    """What scores read of a prediction."""

    samples: dict = field(default_factory=dict)
    means: dict = field(default_factory=dict)
    probs: dict = field(default_factory=dict)
    log_prob: dict = field(default_factory=dict)


def dataset(task="regression", rows=20, **changes):
    generator = torch.Generator().manual_seed(0)
    classes = task in ("classification", "fair_representation")
    y = torch.arange(rows) % 3 if classes else torch.randn(rows, generator=generator)
    batch = {"x": torch.randn(rows, 2, generator=generator), "y": y, "index": torch.arange(rows)}
    if task == "meta_analysis":
        batch["sigma"] = batch.pop("x")[:, 0].exp()
    extra = {"num_classes": 3} if classes else {}
    if task == "fair_representation":
        batch["s"], extra["num_groups"] = torch.arange(rows) % 2, 2
    return dataclasses.replace(Dataset(name="d", task=task, train=batch, test=dict(batch), extra=extra), **changes)


def with_entry(data, split="train", **entries):
    return dataclasses.replace(data, **{split: {**data.split(split), **entries}})


# ---------------------------------------------------------------------------------------------------- lookup
def test_names_and_lookup():
    names = ("classification", "density", "fair_representation", "meta_analysis", "regression")
    assert zoo.tasks.names() == names
    for name in zoo.tasks.names():
        task = zoo.tasks.get(name)
        assert task.name == name
        assert task.title
        assert task.direction in ("min", "max")


def test_unknown_task_suggests():
    with pytest.raises(UnknownNameError, match="task 'regresion' is unknown; did you mean 'regression'"):
        zoo.tasks.get("regresion")


# ---------------------------------------------------------------------------------------------------- checks
@pytest.mark.parametrize("task", zoo.tasks.names())
def test_check_accepts_what_fits(task):
    zoo.tasks.get(task).check(dataset(task))
    data = with_entry(dataset(task), index=torch.randperm(20))
    zoo.tasks.get(task).check(data)


BAD = [
    ("regression", {"y": torch.arange(20)}, "'y' is torch.int64; floating-point"),
    ("regression", {"y": torch.zeros(20, 2)}, r"'y' has shape \(20, 2\); 1 dimension were"),
    ("regression", {"y": torch.full((20,), math.nan)}, "'y' has 20 values that are missing"),
    ("regression", {"y": torch.zeros(19)}, "'y' has 19 rows and 'index' has 20"),
    ("regression", {"x": torch.zeros(20)}, r"'x' has shape \(20,\); two or more"),
    ("regression", {"x": torch.full((20, 2), math.inf)}, "'x' has 40 values"),
    ("regression", {"index": torch.zeros(20)}, "'index' is torch.float32; int64"),
    ("regression", {"index": torch.arange(1, 21)}, r"'index' must hold every position 0 \.\. 19 once"),
    ("classification", {"y": torch.zeros(20)}, "'y' is torch.float32; int64"),
    ("classification", {"y": torch.full((20,), 3)}, r"labels from 3 to 3; with 3 classes they must lie in 0 \.\. 2"),
    ("classification", {"y": torch.arange(20) - 1}, r"labels from -1 to 18"),
    ("density", {"x": torch.full((20, 2), math.nan)}, "'x' has 40 values that are missing"),
    ("density", {"x": torch.zeros(19, 2)}, "'x' has 19 rows and 'index' has 20"),
    ("meta_analysis", {"sigma": torch.zeros(20)}, "'sigma' has 20 standard errors that are not positive"),
    ("meta_analysis", {"sigma": torch.ones(2)}, "'sigma' has 2 rows and 'index' has 20"),
]


@pytest.mark.parametrize(("task", "entries", "match"), BAD)
@pytest.mark.parametrize("split", ["train", "test"])
def test_check_refuses(task, entries, match, split):
    data = with_entry(dataset(task), split, **entries)
    if split == "test" and "every position" in match:
        zoo.tasks.get(task).check(data)  # only the training index must be complete
        return
    with pytest.raises(DataError, match=f"data set 'd', {split} split.*{match}"):
        zoo.tasks.get(task).check(data)


@pytest.mark.parametrize(("task", "name"), [("regression", "x"), ("classification", "y"), ("meta_analysis", "sigma")])
def test_check_names_a_missing_entry(task, name):
    data = dataset(task)
    batch = {key: value for key, value in data.train.items() if key != name}
    with pytest.raises(DataError, match=f"entry '{name}' is missing; the batch has"):
        zoo.tasks.get(task).check(dataclasses.replace(data, train=batch))


@pytest.mark.parametrize("classes", [None, 1, 2.0, True])
def test_check_wants_the_number_of_classes(classes):
    with pytest.raises(DataError, match="num_classes"):
        zoo.tasks.get("classification").check(dataset("classification", extra={"num_classes": classes}))


def test_check_refuses_an_empty_split():
    data = dataset("regression")
    with pytest.raises(DataError, match="no rows"):
        zoo.tasks.get("regression").check(dataclasses.replace(data, test={k: v[:0] for k, v in data.train.items()}))


# -------------------------------------------------------------------------------------------- classification
def classified(classes, rows=200, draws=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(draws, rows, classes, generator=generator, dtype=torch.float64).softmax(-1)
    y = torch.randint(classes, (rows,), generator=generator)
    data = dataset("classification", extra={"num_classes": classes})
    return probs, {"y": y}, data


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_equals_sklearn(classes):
    probs, batch, data = classified(classes)
    scores = zoo.tasks.get("classification").score(Predicted(probs={"y": probs}), batch, data)
    mean, y = probs.mean(0).numpy(), batch["y"].numpy()
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(y, mean.argmax(-1)))
    assert scores["error"] == pytest.approx(1 - scores["accuracy"])
    assert scores["nll"] == pytest.approx(metrics.log_loss(y, mean))
    if classes == 2:
        assert scores["brier"] == pytest.approx(metrics.brier_score_loss(y, mean[:, 1]))
        assert scores["auroc"] == pytest.approx(metrics.roc_auc_score(y, mean[:, 1]))
    else:
        assert scores["brier"] == pytest.approx(((mean - np.eye(classes)[y]) ** 2).sum(-1).mean())
        assert "auroc" not in scores
    assert zoo.tasks.get("classification").primary in scores


def test_bernoulli_and_categorical_agree():
    probs, batch, data = classified(2)
    score = zoo.tasks.get("classification").score
    log_prob = probs.gather(-1, batch["y"].expand(7, -1)[..., None])[..., 0].log()
    categorical = score(Predicted(probs={"y": probs}), batch, data)
    bernoulli = score(Predicted(means={"y": probs[..., 1]}), {"y": batch["y"].float()}, data)
    with_density = score(Predicted(means={"y": probs[..., 1]}, log_prob={"y": log_prob}), batch, data)
    assert bernoulli == pytest.approx(categorical)
    assert with_density == pytest.approx(categorical)


def test_nll_is_of_the_average_and_not_the_average():
    probs, batch, data = classified(3)
    chosen = probs.gather(-1, batch["y"].expand(7, -1)[..., None])[..., 0]
    nll = zoo.tasks.get("classification").score(Predicted(probs={"y": probs}), batch, data)["nll"]
    assert nll == pytest.approx(float(-chosen.mean(0).log().mean()))
    assert nll < float(-chosen.log().mean()) - 0.01


def test_nll_stays_finite_at_probability_zero():
    data = dataset("classification", extra={"num_classes": 2})
    scores = zoo.tasks.get("classification").score(
        Predicted(means={"y": torch.zeros(1, 2)}), {"y": torch.tensor([0, 1])}, data
    )
    assert scores["nll"] == pytest.approx(-math.log(torch.finfo(torch.float64).tiny) / 2)


def test_auroc_counts_ties_as_half_and_needs_both_classes():
    positive, y = torch.tensor([0.1, 0.4, 0.4, 0.4, 0.9, 0.2]).double(), torch.tensor([0, 0, 1, 1, 1, 1])
    assert auroc(positive, y) == pytest.approx(metrics.roc_auc_score(y, positive))
    data = dataset("classification", extra={"num_classes": 2})
    scores = zoo.tasks.get("classification").score(
        Predicted(means={"y": torch.rand(3, 4)}), {"y": torch.ones(4).long()}, data
    )
    assert "auroc" not in scores


def test_calibration_error_by_hand_and_its_bias():
    # Two bins of 15: confidence .7 with accuracy 1/2, confidence .95 with accuracy 1.
    probs = torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.05, 0.95]], dtype=torch.float64)
    assert expected_calibration_error(probs, torch.tensor([0, 1, 1])) == pytest.approx((2 * 0.2 + 0.05) / 3)
    sure = torch.eye(3, dtype=torch.float64)
    assert expected_calibration_error(sure, torch.arange(3)) == 0.0
    assert expected_calibration_error(sure, (torch.arange(3) + 1) % 3) == 1.0
    # A calibrated prediction: positive for few rows, falling with their number.
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows in (100, 10_000, 1_000_000):
        positive = torch.rand(rows, generator=generator, dtype=torch.float64)
        y = (torch.rand(rows, generator=generator, dtype=torch.float64) < positive).long()
        errors.append(expected_calibration_error(torch.stack([1 - positive, positive], -1), y))
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[0] > 0.02
    assert errors[2] < 0.005


@pytest.mark.parametrize(
    ("prediction", "match"),
    [
        (Predicted(), "neither class probabilities nor means"),
        (Predicted(probs={"y": torch.rand(2, 19, 3)}), r"probs of shape \(2, 19, 3\)"),
        (Predicted(probs={"y": torch.rand(2, 20, 4)}), "has 4 classes and data set 'd' has 3"),
        (Predicted(means={"y": torch.rand(2, 20)}), "has 2 classes and data set 'd' has 3"),
        (Predicted(means={"y": torch.rand(2, 20) + 1}), "are no probabilities"),
        (Predicted(means={"y": torch.rand(20)}), r"means of shape \(20,\)"),
    ],
)
def test_classification_refuses_other_predictions(prediction, match):
    data = dataset("classification")
    with pytest.raises(PairError, match=match) as info:
        zoo.tasks.get("classification").score(prediction, data.train, data)
    assert isinstance(info.value, ZooError)


# ------------------------------------------------------------------------------------------------ regression
def gaussian(draws=400, rows=300, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(rows, generator=generator, dtype=torch.float64)
    means = loc + 0.1 * torch.randn(draws, 1, generator=generator, dtype=torch.float64)
    samples = means + torch.randn(draws, rows, generator=generator, dtype=torch.float64)
    y = loc + torch.randn(rows, generator=generator, dtype=torch.float64)
    log_prob = torch.distributions.Normal(means, 1.0).log_prob(y)
    data = dataset("regression", target=Column(name="t", mean=5.0, scale=scale))
    prediction = Predicted(samples={"y": samples}, means={"y": means}, log_prob={"y": log_prob})
    return prediction, {"y": y}, data


@pytest.mark.parametrize("scale", [1.0, 12.5])
def test_regression_equals_sklearn_in_the_units_of_the_user(scale):
    prediction, batch, data = gaussian(scale=scale)
    scores = zoo.tasks.get("regression").score(prediction, batch, data)
    y = batch["y"].numpy() * scale + 5.0
    point = prediction.means["y"].mean(0).numpy() * scale + 5.0
    assert scores["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, point))
    assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(y, point))
    assert scores["r2"] == pytest.approx(metrics.r2_score(y, point))
    means = prediction.means["y"].numpy() * scale + 5.0
    density = stats.norm(means, scale).pdf(y).mean(0)
    assert scores["nlpd"] == pytest.approx(-np.log(density).mean())
    assert zoo.tasks.get("regression").primary in scores


def test_regression_is_calibrated_where_the_model_is_true():
    prediction, batch, data = gaussian(draws=2_000, rows=5_000)
    scores = zoo.tasks.get("regression").score(prediction, batch, data)
    for level in (50, 90):
        error = (level / 100 * (1 - level / 100) / 5_000) ** 0.5
        assert scores[f"coverage_{level}"] == pytest.approx(level / 100, abs=4 * error)


def test_coverage_sees_too_narrow_a_predictive():
    prediction, batch, data = gaussian()
    narrow = dataclasses.replace(prediction, samples={"y": prediction.means["y"] + 0.0})
    assert zoo.tasks.get("regression").score(narrow, batch, data)["coverage_90"] < 0.3


def test_crps_equals_the_definition_and_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    samples, y = torch.randn(5, 3, generator=generator).double(), torch.randn(3, generator=generator).double()
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (2 * 5 * 4)
    assert crps(samples, y) == pytest.approx(float(((samples - y).abs().mean(0) - pairs).mean()))
    # Normal predictive: y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi); unbiased even for two draws.
    y = torch.tensor([0.7], dtype=torch.float64)
    exact = 0.7 * (2 * stats.norm.cdf(0.7) - 1) + 2 * stats.norm.pdf(0.7) - 1 / math.sqrt(math.pi)
    draws = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    assert crps(draws, y.expand(200_000)) == pytest.approx(exact, abs=0.01)
    assert crps(draws.reshape(-1, 1), y) == pytest.approx(exact, abs=0.005)


def test_crps_agrees_with_scoringrules():
    rules = pytest.importorskip("scoringrules")
    prediction, batch, data = gaussian(draws=20, scale=3.0)
    scores = zoo.tasks.get("regression").score(prediction, batch, data)
    reference = rules.crps_ensemble(
        3 * batch["y"].numpy(), 3 * prediction.samples["y"].numpy(), m_axis=0, estimator="fair"
    )
    assert scores["crps"] == pytest.approx(float(np.mean(reference)))


def test_regression_scores_what_it_can():
    prediction, batch, data = gaussian()
    score = zoo.tasks.get("regression").score
    assert set(score(Predicted(means=prediction.means), batch, data)) == {"rmse", "mae", "r2"}
    one = Predicted(samples={"y": prediction.samples["y"][:1]})
    assert set(score(one, batch, data)) == {"rmse", "mae", "r2"}
    samples = score(Predicted(samples=prediction.samples), batch, data)
    assert samples["rmse"] == pytest.approx(score(prediction, batch, data)["rmse"], rel=0.02)
    constant = {"y": torch.zeros(300)}
    assert "r2" not in score(prediction, constant, data)


def test_regression_refuses_other_predictions():
    _, batch, data = gaussian(rows=20)
    with pytest.raises(PairError, match="neither means nor samples"):
        zoo.tasks.get("regression").score(Predicted(), batch, data)
    with pytest.raises(PairError, match=r"samples of shape \(3, 19\) for 20 rows"):
        zoo.tasks.get("regression").score(Predicted(samples={"y": torch.zeros(3, 19)}), batch, data)


def test_meta_analysis_scores_effects():
    data = zoo.datasets.load("eight_schools")
    y, sigma = data.train["y"].double(), data.train["sigma"].double()
    pooled = (y / sigma**2).sum() / (1 / sigma**2).sum()
    means = pooled.expand(1, 8)
    log_prob = torch.distributions.Normal(means, sigma).log_prob(y)
    scores = zoo.tasks.get("meta_analysis").score(
        Predicted(means={"y": means}, log_prob={"y": log_prob}), data.train, data
    )
    assert scores["rmse"] == pytest.approx(float((y - pooled).square().mean().sqrt()))
    assert scores["nlpd"] == pytest.approx(float(-log_prob.mean()))


# ------------------------------------------------------------------------------------------------------ density
def test_the_density_score_is_the_log_of_the_mean_weight():
    data = dataset("density", rows=50)
    log_prob = torch.randn(4, 50, generator=torch.Generator().manual_seed(3)) - 100
    score = zoo.tasks.get("density").score
    found = score(Predicted(log_prob={"x": log_prob}), data.train, data)
    assert found == {"nll": pytest.approx(100 - float((log_prob + 100).double().exp().mean(0).log().mean()), rel=1e-6)}
    with pytest.raises(PairError, match="it has those of: none"):
        score(Predicted(), data.train, data)
    with pytest.raises(PairError, match=r"shape \(4, 50, 2\) for 50 rows"):
        score(Predicted(log_prob={"x": log_prob[..., None].expand(-1, -1, 2)}), data.train, data)


def test_a_method_that_predicts_another_entry_is_scored_by_its_own_task():
    @dataclass(frozen=True)
    class Made:
        task: str

    of, labelled = zoo.tasks.of, dataset("classification")
    assert of(Made("density"), labelled).name == "density"
    assert of(Made("regression"), labelled).name == "classification"
    assert of(None, labelled).name == "classification"
    assert of(Made("density"), dataset("none")) is None
