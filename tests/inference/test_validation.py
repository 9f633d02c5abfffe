"""What a model observes is checked over all rows before the first step, whichever engine follows."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

import zoo
from zoo.errors import DataError, PairError
from zoo.inference.potential import Potential
from zoo.inference.validation import check_trace
from zoo.types import Pair

ROWS = 30
QUICK = {"svi": {"steps": 2, "compile": False}, "nuts": {"chains": 1, "draws": 5, "tune": 5, "compile": False}}


def guide(batch: Any) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))


def rows(law: Any, *, plate: bool = True) -> Any:
    """Return a model whose rows are observed with ``law(mu, batch)``."""

    def model(batch: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if plate:
            with pyro.plate("datum", ROWS, subsample=batch["index"]):
                pyro.sample("y", law(mu, batch), obs=batch["y"])
        else:
            pyro.sample("y", law(mu, batch), obs=batch["y"])

    return model


def data(y: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"y": y, "index": torch.arange(ROWS)}


def said(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def normal(mu: torch.Tensor, batch: Any) -> Any:
    return dist.Normal(mu.expand(len(batch["index"])), 1.0)


def column(mu: torch.Tensor, batch: Any) -> Any:
    return dist.Normal(mu.expand(len(batch["index"]), 1), 1.0)


def event(mu: torch.Tensor, batch: Any) -> Any:
    return dist.Normal(mu.expand(ROWS), 1.0).to_event(1)


@pytest.mark.parametrize("engine", ["svi", "nuts"])
@pytest.mark.parametrize(
    ("law", "shape", "plate", "named"),
    [
        (normal, (ROWS, 1), True, ["(30, 1)", "(30,)", "(30, 30)", "'datum'"]),
        (column, (ROWS,), True, ["(30, 30)"]),
        (normal, (ROWS, 1), False, ["(30, 1)", "(30, 30)"]),
        (column, (ROWS,), False, ["(30, 30)"]),
        (event, (ROWS, 1), False, ["event shape (30,)"]),
        (normal, (ROWS - 1,), True, ["(29,)", "(30,)", "do not fit"]),
    ],
)
def test_an_observation_that_is_broadcast_is_refused(
    engine: str, law: Any, shape: tuple[int, ...], plate: bool, named: list[str]
) -> None:
    batch = data(torch.randn(shape))
    with pytest.raises(PairError, match="site 'y'") as error:
        zoo.fit(Pair(rows(law, plate=plate), guide), batch, engine=engine, **QUICK[engine])
    assert all(text in said(error) for text in named), said(error)
    steps = zoo.check(rows(law, plate=plate), None, batch)
    assert not steps[0].ok
    assert "site 'y'" in steps[0].detail


@pytest.mark.parametrize(
    ("law", "shape", "frames"),
    [
        (lambda: dist.Normal(0.0, 1.0), (4,), []),  # one distribution for all rows
        (lambda: dist.Normal(torch.zeros(4), 1.0), (4,), []),
        (lambda: dist.Normal(torch.zeros(3, 1), 1.0), (3, 4), [("a", 3, -2), ("b", 4, -1)]),
        (lambda: dist.Bernoulli(torch.full((4,), 0.5)), (), [("b", 4, -1)]),  # one event for each of a plate
        (lambda: dist.Normal(torch.zeros(5, 4), 1.0).to_event(1), (5, 4), [("a", 5, -1)]),
        (lambda: dist.Normal(0.0, 1.0), (4,), [("unsized", None, None)]),
        (lambda: dist.Normal(torch.zeros(4), 1.0).expand([3, 4]).to_event(1), (4,), [("a", 3, -1)]),
    ],
)
def test_an_observation_of_its_distributions_shape_is_taken(law: Any, shape: Any, frames: Any) -> None:
    def model() -> None:
        with _plates(frames):
            pyro.sample("y", law(), obs=torch.zeros(shape))

    check_trace(pyro.poutine.trace(model).get_trace())


def _plates(frames: Any) -> Any:
    stack = ExitStack()
    for name, size, dim in frames:
        stack.enter_context(pyro.plate(name) if size is None else pyro.plate(name, size, dim=dim))
    return stack


@pytest.mark.parametrize(
    ("engine", "options"),
    [("svi", {}), ("svi", {"batch_size": 4}), ("svi", {"batch_size": 7, "restarts": 2}), ("nuts", {})],
)
@pytest.mark.parametrize(
    ("law", "good", "bad", "support"),
    [
        (lambda mu, b: dist.Bernoulli(logits=mu.expand(len(b["y"]))), 1.0, 2.0, "Bernoulli"),
        (lambda mu, b: dist.Poisson(mu.exp().expand(len(b["y"]))), 3.0, -1.0, "Poisson"),
        (lambda mu, b: dist.Categorical(logits=mu * torch.ones(len(b["y"]), 3)), 2, 3, "Categorical"),
        (lambda mu, b: dist.Binomial(5, logits=mu.expand(len(b["y"]))), 5.0, 6.0, "Binomial"),
    ],
)
def test_a_value_outside_of_the_support_is_found_in_any_row(
    engine: str, options: dict[str, int], law: Any, good: Any, bad: Any, support: str
) -> None:
    y = torch.full((ROWS,), good)
    pair = Pair(rows(law), guide)
    zoo.fit(pair, data(y), engine=engine, **QUICK[engine], **options)
    y[26] = bad
    with pytest.raises(PairError, match=rf"site 'y' observes {bad:g} at \[26\].*{support}") as error:
        zoo.fit(pair, data(y), engine=engine, **QUICK[engine], **options)
    said(error)


def test_arguments_are_checked_in_any_row() -> None:
    model = rows(lambda mu, b: dist.Normal(mu.expand(len(b["y"])), b["sd"]))
    sd = torch.ones(ROWS)
    batch = data(torch.randn(ROWS)) | {"sd": sd}
    zoo.fit(Pair(model, guide), batch, steps=2, batch_size=4, compile=False)
    sd[29] = -1.0
    for options in ({"batch_size": 4, "steps": 2}, {"engine": "nuts", "chains": 1, "draws": 5, "tune": 5}):
        with pytest.raises(PairError, match=r"Expected parameter scale .*test_validation.py, line") as error:
            zoo.fit(Pair(model, guide), batch, compile=False, **options)
        said(error)


def test_a_masked_value_needs_no_support() -> None:
    def model(batch: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", ROWS), pyro.poutine.mask(mask=batch["y"] >= 0):
            pyro.sample("y", dist.Bernoulli(logits=mu.expand(ROWS)), obs=batch["y"])

    y = torch.ones(ROWS)
    y[3] = -1.0
    found = zoo.fit(Pair(model), {"y": y}, engine="nuts", **QUICK["nuts"])
    assert torch.isfinite(found.chains["mu"]).all()


def test_a_support_that_depends_on_a_latent_is_left_to_the_sampler() -> None:
    def model(batch: Any) -> None:
        top = pyro.sample("top", dist.Pareto(torch.tensor(1.0), 5.0))
        with pyro.plate("datum", 3):
            pyro.sample("y", dist.Uniform(0.0, top), obs=batch["y"])

    batch = {"y": torch.tensor([3.0, 6.0, 2.0])}  # a draw of the prior exceeds it once in 8,000 times
    found = zoo.fit(Pair(model), batch, engine="nuts", chains=1, draws=50, tune=200, compile=False)
    assert bool((found.chains["top"] >= 6).all())


@pytest.mark.parametrize("engine", ["svi", "nuts"])
def test_what_a_model_raises_is_one_line_with_its_place(engine: str) -> None:
    class Own(Exception):
        pass

    def raises(error: Exception) -> Any:
        def model(batch: Any) -> None:
            pyro.sample("mu", dist.Normal(0.0, 1.0))
            raise error

        return model

    def lacks(batch: Any) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=batch["Y"])

    def twice(batch: Any) -> None:
        for _ in range(2):
            pyro.sample("mu", dist.Normal(0.0, 1.0))

    def two(x: Any, y: Any) -> None: ...

    class Net(PyroModule):  # type: ignore[misc]
        def forward(self, batch: Any) -> None:
            pyro.sample("mu", dist.Normal(0.0, 1.0))
            torch.ones(2, 3) @ batch["y"][:, None].expand(ROWS, 3)

    cases = [
        (raises(Own("first\nsecond")), r"Own: first second \(test_validation.py, line \d+, in model\)"),
        (raises(ZeroDivisionError()), "ZeroDivisionError"),
        (lacks, r"may lack 'Y'; it has index, y \(test_validation.py"),
        (twice, r"Multiple sample sites named 'mu'.*in twice"),
        (two, "missing 1 required positional argument"),
        (Net(), r"shapes cannot be multiplied.*in forward"),
    ]
    for model, text in cases:
        with pytest.raises(PairError, match=text) as error:
            zoo.fit(Pair(model, guide), data(torch.randn(ROWS)), engine=engine, **QUICK[engine])
        said(error)


def test_compile_svi_refuses_at_the_first_step() -> None:
    pyro.clear_param_store()
    step = zoo.compile_svi(rows(normal, plate=False), guide)
    with pytest.raises(PairError, match=r"site 'y'.*\(30, 30\)"):
        step(data(torch.randn(ROWS, 1)))


def test_a_wide_prior_whose_first_draw_gives_no_density_is_sampled() -> None:
    def model(batch: Any) -> None:
        log = pyro.sample("log", dist.Normal(torch.tensor(0.0), 1_000.0))  # half of the scales are 0 or infinite
        with pyro.plate("datum", ROWS):
            pyro.sample("y", dist.Normal(0.0, log.exp()), obs=batch["y"])

    found = zoo.fit(Pair(model), data(torch.randn(ROWS)), engine="nuts", chains=1, draws=20, tune=100, compile=False)
    assert bool(found.chains["log"].abs().max() < 2)


def regression(batch: Any) -> None:
    w = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("datum", len(batch["x"])):
        pyro.sample("y", dist.Normal(w * batch["x"], 1.0), obs=batch.get("y"))


def schools(batch: Any) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(batch["x"])):
        theta = pyro.sample("theta", dist.Normal(mu, 5.0))
        pyro.sample("y", dist.Normal(theta, 0.1), obs=batch.get("y"))


def local_guide(batch: Any) -> None:
    guide(batch)
    with pyro.plate("school", len(batch["x"])):
        pyro.sample("theta", dist.Normal(pyro.param("theta_loc", lambda: torch.randn(ROWS)), 0.1))


def amortised_guide(batch: Any) -> None:
    guide(batch)
    with pyro.plate("school", len(batch["x"])):
        pyro.sample("theta", dist.Normal(batch["x"] * pyro.param("slope", torch.tensor(1.0)), 0.1))


def test_mini_batches_need_rows() -> None:
    batch = {"x": torch.randn(ROWS), "y": torch.randn(ROWS)}
    pair = Pair(regression, guide)
    with pytest.raises(DataError, match=r"batch_size is 10, .*'index': torch.arange\(30\)") as error:
        zoo.fit(pair, batch, steps=2, batch_size=10, compile=False)
    said(error)
    assert zoo.fit(pair, batch, steps=2, batch_size=0, compile=False).info["recipe"]["batch_size"] is None
    with_rows = zoo.fit(pair, batch | {"index": torch.arange(ROWS)}, steps=2, batch_size=10, compile=False)
    assert with_rows.info["recipe"]["batch_size"] == 10


def test_other_rows_do_not_get_the_latents_of_the_fit() -> None:
    batch = {"x": torch.randn(ROWS), "y": torch.randn(ROWS)}
    new = {"x": torch.randn(ROWS)}
    for pair, options in (
        (Pair(schools), {"engine": "nuts", "chains": 1, "draws": 5, "tune": 20}),
        (Pair(schools, local_guide), {"steps": 2}),
    ):
        found = zoo.fit(pair, batch, compile=False, **options)
        for use in (found.predict, found.log_likelihood):
            with pytest.raises(DataError, match="latent 'theta' has a value for each row of the fit") as error:
                use(new)
            said(error)
        assert found.predict(n=5).samples["y"].shape == (5, ROWS)
        assert found.predict({"x": batch["x"]}, n=5).samples["y"].shape == (5, ROWS)
    shared = zoo.fit(Pair(regression), batch, engine="nuts", chains=1, draws=5, tune=5, compile=False)
    assert shared.predict({"x": torch.randn(7)}, n=5).samples["y"].shape == (5, 7)
    amortised = zoo.fit(Pair(schools, amortised_guide), batch, steps=2, compile=False)
    assert amortised.predict({"x": torch.randn(7)}, n=5).samples["y"].shape == (5, 7)


def test_rows_that_a_mask_leaves_unobserved_are_sampled() -> None:
    kept = torch.arange(10) < 7
    y = torch.where(kept, torch.randn(10, generator=torch.Generator().manual_seed(0)), torch.zeros(10))

    def model(batch: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("datum", 10):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=batch["y"], obs_mask=batch["kept"])

    flat = Potential(model, {"y": y, "kept": kept})
    point = torch.linspace(-1, 1, flat.size, dtype=torch.float64)
    mu, free = flat.constrain(point)["mu"], flat.constrain(point)["y_unobserved"]
    own = dist.Normal(mu, 1.0)
    due = (
        dist.Normal(torch.zeros((), dtype=torch.float64), 2.0).log_prob(mu)
        + own.log_prob(y[kept].double()).sum()
        + own.log_prob(free).sum()
    )
    assert abs(float(flat.value_and_gradient(point)[0] - due)) < 1e-9
    found = zoo.fit(Pair(model), {"y": y, "kept": kept}, engine="nuts", chains=2, draws=400, tune=300)
    precision = 7 + 1 / 4
    assert abs(float(found.chains["mu"].mean()) - float(y.sum()) / precision) < 0.1
    assert abs(float(found.chains["mu"].std()) - precision**-0.5) < 0.06
