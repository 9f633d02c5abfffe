"""Pairs are fitted with the arguments that their authors wrote them for."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.errors import ArtifactError, DataError, PairError
from zoo.inference.arguments import Signature, bound

NUM = 30
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(NUM, 2, generator=GENERATOR)
Y = X @ torch.tensor([1.0, -1.0]) + 0.5 * torch.randn(NUM, generator=GENERATOR)
QUICK = {"steps": 40, "learning_rate": 0.05, "compile": False}


def regression(x, y=None, noise=0.5, plate="data"):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate(plate, len(x)):
        return pyro.sample("obs", dist.Normal(x @ w, noise), obs=y)


def batched(batch):
    return regression(batch["x"], batch["y"])


def pair() -> zoo.Pair:
    return zoo.Pair(regression, AutoNormal(regression))


@pytest.mark.parametrize(
    "given",
    [
        (X, Y),
        [X, Y],
        {"x": X, "y": Y},
        zoo.Arguments(X, y=Y),
        zoo.Arguments(X, Y, noise=0.5, plate="data"),
        (X.numpy(), Y.numpy()),
    ],
    ids=["tuple", "list", "by name", "Arguments", "with numbers", "numpy"],
)
def test_every_way_to_pass_arguments_is_the_same_fit(given):
    wanted = zoo.fit(zoo.Pair(batched, AutoNormal(batched)), {"x": X, "y": Y}, **QUICK)
    found = zoo.fit(pair(), given, **QUICK)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-6, atol=0)


def test_sampling_takes_arguments_too():
    found = zoo.fit(zoo.Pair(regression), (X, Y), chains=2, draws=50, tune=100, compile=False)
    assert found.chains["w"].shape == (2, 50, 2)
    assert found.predict((X[:4],), n=5).samples["obs"].shape == (5, 4)


@pytest.mark.parametrize(
    "given",
    [(X[:7],), X[:7], {"x": X[:7]}, zoo.Arguments(x=X[:7]), zoo.Arguments(X[:7], None)],
    ids=lambda v: type(v).__name__,
)
def test_new_rows_are_predicted_without_what_is_observed(given):
    found = zoo.fit(pair(), (X, Y), **QUICK)
    wanted = found.predict((X[:7],), n=50).means["obs"]
    assert wanted.shape == (50, 7)
    torch.testing.assert_close(found.predict(given, n=50).means["obs"], wanted)


def test_what_is_observed_may_be_absent_under_any_name():
    def model(batch):  # asks without a default
        return regression(batch["x"], batch["target"])

    found = zoo.fit(zoo.Pair(model, AutoNormal(model)), {"x": X, "target": Y}, **QUICK)
    assert found.predict({"x": X[:3]}, n=5).samples["obs"].shape == (5, 3)
    with pytest.raises(DataError, match="no entry 'x'; it has target"):
        found.predict({"target": Y})


def test_a_loader_is_read_as_rows():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", NUM, subsample_size=len(x)):
            pyro.sample("obs", dist.Normal(x @ w, 0.5), obs=y)

    loader = DataLoader(TensorDataset(X, Y), batch_size=10)
    found = zoo.fit(zoo.Pair(model, AutoNormal(model)), loader, **QUICK)
    assert found.info["recipe"]["batch_size"] == 10
    torch.testing.assert_close(found.data.train["x"], X)
    assert found.predict((X[:4],), n=5).samples["obs"].shape == (5, 4)


def test_loaders_that_are_no_rows_are_refused():
    with pytest.raises(DataError, match="the list_iterator has no batch"):
        zoo.fit(pair(), iter([]), **QUICK)
    with pytest.raises(DataError, match="cannot be joined to rows at entry 0"):
        zoo.fit(pair(), iter([(X, Y), (X[:, :1], Y)]), **QUICK)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((X, Y, 0.5, "data", 1), "regression does not take these arguments: too many positional arguments"),
        (zoo.Arguments(X, z=Y), "got an unexpected keyword argument 'z'"),
    ],
    ids=["too many", "unknown"],
)
def test_arguments_that_a_model_does_not_take_are_refused(given, line):
    with pytest.raises(PairError, match=line):
        zoo.fit(pair(), given, **QUICK)


def test_predictions_refuse_other_arguments_than_the_fit_had():
    found = zoo.fit(pair(), zoo.Arguments(X, Y, plate="rows"), **QUICK)
    with pytest.raises(DataError, match="argument 'plate' is 'other'; the fit had 'rows'"):
        found.predict(zoo.Arguments(X[:3], plate="other"))
    with pytest.raises(DataError, match="4 arguments were passed; the fit had 2: x, y"):
        found.predict((X, Y, 1, 2))
    with pytest.raises(DataError, match="argument 'x', a str, is no tensor"):
        found.predict(("rows",))


def test_check_takes_arguments():
    steps = zoo.check(regression, AutoNormal(regression), (X, Y), compile=False)
    assert [s.name for s in steps if not s.ok] == []


def test_laplace_approximation_of_a_pair_with_arguments():
    found = zoo.fit(
        zoo.Pair(regression, AutoLaplaceApproximation(regression)), (X, Y), steps=400, learning_rate=0.05, compile=False
    )
    exact = torch.linalg.inv(torch.eye(2) + X.mT @ X / 0.25).diagonal().sqrt()
    torch.testing.assert_close(found.draws(20_000)["w"].std(0), exact, rtol=0.05, atol=0)


def test_saved_with_its_arguments(tmp_path):
    found = zoo.fit(pair(), zoo.Arguments(X, Y, plate="rows"), **QUICK)
    found.save(tmp_path / "run")
    again = zoo.load(tmp_path / "run", pair=pair())
    torch.testing.assert_close(again.predict(X[:3], n=5).samples["obs"], found.predict(X[:3], n=5).samples["obs"])


def test_arguments_that_json_cannot_hold_are_asked_for(tmp_path):
    class Sizes:
        plate = "rows"

    def model(x, y, sizes):
        return regression(x, y, plate=sizes.plate)

    found = zoo.fit(zoo.Pair(model, AutoNormal(model)), (X, Y, Sizes), **QUICK)
    found.save(tmp_path / "run")
    with pytest.raises(ArtifactError, match="pass data= as to the fit"):
        zoo.load(tmp_path / "run", pair=zoo.Pair(model, AutoNormal(model)))
    again = zoo.load(tmp_path / "run", pair=zoo.Pair(model, AutoNormal(model)), data=(X, Y, Sizes))
    torch.testing.assert_close(again.draws(5)["w"], found.draws(5)["w"])


def test_nested_arguments_are_taken_apart_and_put_together():
    def model(config, sizes):
        return config["x"], config["parts"][1], sizes

    given = zoo.Arguments({"x": X, "parts": (1, Y), "name": "a"}, [3, None])
    found = bound(zoo.Pair(model), given)
    assert found is not None
    own, batch, signature = found
    assert sorted(batch) == ["config.parts.1", "config.x"]
    x, y, sizes = own.model(batch)
    assert x is X
    assert y is Y
    assert sizes == [3, None]
    assert Signature.from_json(signature.to_json()) == signature
