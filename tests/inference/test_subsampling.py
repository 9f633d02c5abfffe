"""Plates that draw their own mini-batches: column i of everything that follows training is datum i."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import zoo
from zoo.errors import DataError, PairError
from zoo.types import Pair

ROWS = 60
X = torch.linspace(-1, 1, ROWS)
Y = 3 * X + 0.1 * torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
BATCH = {"x": X, "y": Y}


def guide(batch: Any) -> None:
    scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))


def drawn(size: Any = ROWS) -> Any:
    def model(batch: Any) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 5.0))
        with pyro.plate("data", size or len(batch["x"]), subsample_size=8) as i:
            pyro.sample("y", dist.Normal(w * batch["x"][i], 0.1), obs=batch["y"][i] if "y" in batch else None)

    return model


def taken(batch: Any) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 5.0))
    with pyro.plate("data", ROWS, subsample_size=8):
        x, y = pyro.subsample(batch["x"], event_dim=0), pyro.subsample(batch["y"], event_dim=0)
        pyro.sample("y", dist.Normal(w * x, 0.1), obs=y)


def fit(model: Any, **options: Any) -> zoo.Posterior:
    return zoo.fit(Pair(model, guide), BATCH, **{"steps": 400, "learning_rate": 0.05, "compile": False, **options})


@pytest.mark.parametrize("model", [drawn(), taken], ids=["index", "pyro.subsample"])
@pytest.mark.parametrize("engine", ["svi", "nuts"])
def test_column_i_is_datum_i(model: Any, engine: str) -> None:
    options = {"engine": "nuts", "chains": 1, "draws": 20, "tune": 50} if engine == "nuts" else {}
    found = fit(model, **options)
    draws = found.draws(20)
    due = dist.Normal(draws["w"][:, None] * X, 0.1).log_prob(Y)
    torch.testing.assert_close(found.log_likelihood(draws=draws)["y"], due.to(draws["w"]), rtol=1e-4, atol=1e-4)
    predicted = found.predict(n=20)
    assert float((predicted.samples["y"].mean(0) - 3 * X).abs().max()) < 0.3
    assert predicted.log_prob["y"].shape == (20, ROWS)
    data = found.to_arviz(num_draws=20)
    assert data["log_likelihood"]["y"].shape == (1, 20, ROWS)
    assert (torch.as_tensor(data["observed_data"]["y"].values) == Y).all()
    assert abs(float(draws["w"].mean()) - 3) < 0.1


def test_training_still_draws_mini_batches() -> None:
    seen = []

    def model(batch: Any) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 5.0))
        with pyro.plate("data", ROWS, subsample_size=8) as i:
            seen.append(tuple(i.tolist()))
            pyro.sample("y", dist.Normal(w * batch["x"][i], 0.1), obs=batch["y"][i])

    found = fit(model, steps=5)
    assert len({rows for rows in seen if len(rows) == 8}) >= 5
    seen.clear()
    found.log_weights(3)
    assert tuple(range(ROWS)) in seen
    with pyro.plate("data", ROWS, subsample_size=8) as after:
        assert len(after) == 8


def test_latents_of_rows_are_drawn_for_all_of_them() -> None:
    def model(batch: Any) -> None:
        with pyro.plate("data", ROWS, subsample_size=8) as i:
            z = pyro.sample("z", dist.Normal(0.0, 5.0))
            pyro.sample("y", dist.Normal(z, 0.1), obs=batch["y"][i])

    def local(batch: Any) -> None:
        with pyro.plate("data", ROWS, subsample_size=8):
            loc = pyro.param("loc", lambda: torch.zeros(ROWS), event_dim=0)
            pyro.sample("z", dist.Normal(loc, 0.01))

    found = zoo.fit(Pair(model, local), BATCH, steps=1_000, learning_rate=0.05, compile=False)
    draws = found.draws(50)
    assert draws["z"].shape == (50, ROWS)
    assert float((draws["z"].mean(0) - Y).abs().max()) < 0.2


def test_other_rows_are_predicted_where_the_plate_has_their_number() -> None:
    new = {"x": torch.linspace(0, 1, 2 * ROWS)}
    assert fit(drawn(None)).predict(new, n=3).samples["y"].shape == (3, 2 * ROWS)
    for rows in (ROWS // 2, 2 * ROWS):
        with pytest.raises(DataError, match=r"the plate 'data' has 60 rows and 'x' \d+; write its size"):
            fit(drawn(), steps=2).predict({"x": torch.linspace(0, 1, rows)}, n=3)


def test_a_batch_that_is_the_mini_batch_is_taken_as_it_is() -> None:
    def model(batch: Any) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 5.0))
        with pyro.plate("data", ROWS, subsample_size=len(batch["x"])):
            pyro.sample("y", dist.Normal(w * batch["x"], 0.1), obs=batch["y"])

    pair = Pair(model, guide)
    found = zoo.fit(pair, BATCH | {"index": torch.arange(ROWS)}, steps=100, batch_size=10, compile=False)
    few = {"x": X[:7], "y": Y[:7]}
    draws = found.draws(5)
    due = dist.Normal(draws["w"][:, None] * X[:7], 0.1).log_prob(Y[:7])
    torch.testing.assert_close(found.log_likelihood(few, draws=draws)["y"], due, rtol=1e-4, atol=1e-4)


def test_rows_drawn_outside_of_a_plate_are_refused() -> None:
    def model(batch: Any) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 5.0))
        i = torch.randint(0, ROWS, (8,))
        with pyro.poutine.scale(scale=ROWS / 8), pyro.plate("data", 8):
            pyro.sample("y", dist.Normal(w * batch["x"][i], 0.1), obs=batch["y"][i])

    found = fit(model, steps=5)
    assert found.draws(3)["w"].shape == (3,)
    for use in (found.log_likelihood, found.predict, found.to_arviz):
        with pytest.raises(PairError, match="site 'y' observes other data in every run") as error:
            use()
        assert "\n" not in str(error.value)
