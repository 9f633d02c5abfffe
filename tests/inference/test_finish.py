"""What a pair computes after training: every posterior of it is finished, and saved and refitted as such."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import zoo
from zoo.diagnostics import refits
from zoo.errors import NonFiniteError, PairError
from zoo.inference.progress import ProgressEvent
from zoo.types import Batch, Finish, Pair

NUM = 20


def batch(num: int = NUM) -> dict[str, Tensor]:
    y = 1.5 + torch.randn(num, generator=torch.Generator().manual_seed(0))
    return {"y": y, "index": torch.arange(num)}


def model(batch: Batch) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("datum", NUM, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))


def guide(batch: Batch) -> None:
    pyro.sample("mu", dist.Delta(pyro.param("mu_loc", torch.tensor(0.0))))


def drawing(batch: Batch) -> None:
    scale = pyro.param("mu_scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.tensor(0.0)), scale))


def compute(params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The curvature at the mode: the exact standard deviation of a normal mean with known noise."""
    assert set(params) == {"mu_loc"}
    return {"mu_scale": torch.tensor((len(batch["y"]) + 0.25) ** -0.5)}


def pair(**changes: Any) -> Pair:
    finish: dict[str, Any] = {"guide": drawing, "names": ("mu_scale",), "compute": compute}
    return Pair(model, guide, finish=Finish(**finish | changes))


OPTIONS: dict[str, Any] = {"steps": 300, "learning_rate": 0.05, "compile": False, "schedule": "cosine"}
EXACT = ((NUM + 0.25) ** -0.5, float(batch()["y"].sum()) / (NUM + 0.25))


def test_a_fit_ends_with_it() -> None:
    told: list[ProgressEvent] = []
    posterior = zoo.fit(pair(), batch(), progress=told.append, **OPTIONS)
    assert told[-1].stage == "finishing"
    assert float(posterior.params["mu_scale"]) == pytest.approx(EXACT[0])
    assert float(posterior.params["mu_loc"]) == pytest.approx(EXACT[1], abs=1e-3)
    assert float(posterior.draws(2_000)["mu"].std()) == pytest.approx(EXACT[0], rel=0.05)
    assert float(posterior.log_weights(50).std()) < 1e-3  # the guide is the posterior, so that all weights are equal
    assert posterior.num_parameters == 2
    assert len(posterior.losses) == 300
    again = zoo.fit(pair(), batch(), init=posterior.params, **OPTIONS | {"steps": 1, "learning_rate": 1e-9})
    assert float(again.params["mu_loc"]) == pytest.approx(float(posterior.params["mu_loc"]))


def test_it_is_saved_loaded_and_resumed(tmp_path: Path) -> None:
    whole = zoo.fit(pair(), batch(), **OPTIONS)
    whole.save(tmp_path / "p")
    loaded = zoo.load(tmp_path / "p", pair=pair())
    assert torch.equal(loaded.draws(5)["mu"], whole.draws(5)["mu"])

    def interrupt(event: ProgressEvent) -> None:
        if event.stage == "finishing":
            raise KeyboardInterrupt

    keep = {"checkpoint": tmp_path / "c", "checkpoint_every": 100}
    with pytest.raises(KeyboardInterrupt):
        zoo.fit(pair(), batch(), progress=interrupt, **OPTIONS, **keep)
    resumed = zoo.fit(pair(), batch(), resume=True, **OPTIONS, **keep)
    assert all(torch.equal(resumed.params[name], value) for name, value in whole.params.items())


def test_a_plain_loop_trains_the_pair_and_its_posterior_is_finished_too() -> None:
    with pyro.get_param_store().scope():
        loop = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(300):
            loop.step(batch())
        posterior = zoo.Posterior.from_store(pair(), batch())
        assert set(pyro.get_param_store().keys()) == {"mu_loc"}
    assert float(posterior.params["mu_scale"]) == pytest.approx(EXACT[0])


def test_refits_are_finished_on_their_own_rows() -> None:
    posterior = zoo.fit(pair(), batch(), **OPTIONS)
    seen: list[int] = []

    def counting(params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        seen.append(len(batch["y"]))
        return compute(params, batch)

    posterior.pair = pair(compute=counting)
    density = refits.cross_validate(posterior, folds=4, num_draws=200)
    assert seen == [15] * 4
    assert density.shape == (NUM,)
    # Without one row the predictive density is normal, in closed form; without five it is a little wider.
    y, n = batch()["y"], NUM - 5
    expected = dist.Normal(EXACT[1], (1 + 1 / (n + 0.25)) ** 0.5).log_prob(y)
    assert float((torch.as_tensor(density) - expected).abs().max()) < 0.5


def test_a_check_comes_before_the_first_step() -> None:
    def missing() -> None:
        raise PairError("not here")

    with pytest.raises(PairError, match="not here"):
        zoo.fit(pair(check=missing), batch(), steps=10**8)


def test_what_does_not_fit_is_refused() -> None:
    options = OPTIONS | {"steps": 2}
    with pytest.raises(PairError, match="finish computed mu_scale; it says mu_scale, other"):
        zoo.fit(pair(names=("mu_scale", "other")), batch(), **options)
    with pytest.raises(NonFiniteError, match="'mu_scale', computed after the last step, is not finite"):
        zoo.fit(pair(compute=lambda params, batch: {"mu_scale": torch.tensor(float("nan"))}), batch(), **options)

    def more(batch: Batch) -> None:
        pyro.param("surplus", torch.tensor(1.0))
        drawing(batch)

    with pytest.raises(PairError, match="has the parameter 'surplus', which is neither trained nor computed"):
        zoo.fit(pair(guide=more), batch(), **options)
