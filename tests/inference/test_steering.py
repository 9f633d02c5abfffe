"""Optimisers and callbacks of the user's in zoo.fit: steps equal to those of Pyro's SVI, clipping, stopping."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim as optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import zoo
from zoo import Pair
from zoo.errors import DataError, PairError, ZooError
from zoo.inference import program

X = 2.0 + torch.randn(12, generator=torch.Generator().manual_seed(0))
STEPS = 6


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mu, sigma), obs=x)


def point(x):
    """Draws nothing at random, so that a fit and a plain loop of Pyro's compute the same."""
    pyro.sample("mu", dist.Delta(pyro.param("mu_point", torch.tensor(0.5))))
    scale = pyro.param("sigma_point", torch.tensor(1.5), constraint=dist.constraints.positive)
    pyro.sample("sigma", dist.Delta(scale))


def rates(name):
    return {"lr": 0.1} if "mu" in name else {"lr": 0.01}


OPTIMISERS = {
    "a rate for each parameter": lambda: optim.Adam(rates),
    "ClippedAdam": lambda: optim.ClippedAdam({"lr": 0.05, "clip_norm": 2.0, "lrd": 0.9}),
    "AdagradRMSProp": lambda: optim.AdagradRMSProp({"eta": 0.3, "t": 0.1}),
    "DCTAdam": lambda: optim.DCTAdam({"lr": 0.05}),
    "RMSprop, clipped gradients": lambda: optim.RMSprop({"lr": 0.05}, {"clip_norm": 1.0}),
    "ExponentialLR": lambda: optim.ExponentialLR({
        "optimizer": torch.optim.SGD,
        "optim_args": {"lr": 0.01},
        "gamma": 0.5,
    }),
    "torch's Rprop": lambda: optim.PyroOptim(torch.optim.Rprop, {"lr": 0.01}),
}


def by_pyro(optimiser, steps=STEPS) -> list[float]:
    pyro.clear_param_store()
    svi = SVI(model, point, optimiser, Trace_ELBO())
    losses = []
    for _ in range(steps):
        losses.append(svi.step(X))
        if hasattr(optimiser, "pt_scheduler_constructor"):
            optimiser.step()
    return losses


def fit(**options):
    with pytest.warns(RuntimeWarning, match="point"):
        return zoo.fit(Pair(model, point), (X,), **({"steps": STEPS, "compile": False} | options))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_are_those_of_pyro(name):
    optimiser = OPTIMISERS[name]()
    wanted = by_pyro(OPTIMISERS[name]())
    for _ in range(2):  # the user's object is not touched, so that a second fit is the first
        found = fit(optimizer=optimiser)
        np.testing.assert_allclose(found.losses, wanted, rtol=1e-5)
    assert not optimiser.optim_objs
    assert found.info["optimizer"] == optimiser.pt_optim_constructor.__name__


@pytest.mark.parametrize("kind", [torch.optim.Adamax, torch.optim.NAdam, torch.optim.SGD])
def test_a_class_takes_the_rate_of_the_fit(kind):
    wanted = by_pyro(optim.PyroOptim(kind, {"lr": 0.02, "weight_decay": 0.1}))
    np.testing.assert_allclose(fit(optimizer=kind, learning_rate=0.02, weight_decay=0.1).losses, wanted, rtol=1e-5)


def test_a_schedule_applies_to_an_optimiser_too():
    named = fit(optimizer="adam", learning_rate=0.05, schedule="cosine", warmup=0.5)
    own = fit(optimizer=torch.optim.Adam, learning_rate=0.05, schedule="cosine", warmup=0.5)
    np.testing.assert_allclose(own.losses, named.losses, rtol=1e-5)


def test_gradients_are_recorded_as_one_graph(monkeypatch):
    def interpreted(graph, example, eager, surplus):
        graph.recompile()
        return program.Program(lambda *v: graph(*v)[: -surplus or None])

    monkeypatch.setattr(program, "_ahead_of_time", interpreted)
    compiled = fit(optimizer=optim.AdagradRMSProp({"eta": 0.3}), compile=True)
    assert compiled.info["compiled"], compiled.info["reason"]
    np.testing.assert_allclose(compiled.losses, by_pyro(optim.AdagradRMSProp({"eta": 0.3})), rtol=1e-5)


def test_only_what_a_loss_trains_moves():
    found = zoo.fit(
        Pair(model, point, zoo.types.Elbo(trains="mu")), (X,), steps=3, compile=False, optimizer=torch.optim.SGD
    )
    assert float(found.params["sigma_point"]) == pytest.approx(1.5)
    assert float(found.params["mu_point"]) != 0.5


# ----------------------------------------------------------------------------------------------------- callbacks
def test_a_callback_sees_every_step():
    seen = []
    found = fit(callback=lambda step, losses, params: seen.append((step, losses.clone(), dict(params))))
    assert [step for step, *_ in seen] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(torch.cat([losses for _, losses, _ in seen]).flatten(), found.losses)
    assert set(seen[0][2]) == {"mu_point", "sigma_point"}
    assert float(seen[-1][2]["sigma_point"]) == pytest.approx(float(found.params["sigma_point"]))
    assert found.info["callback"]["every"] == 1


def test_a_callback_every_other_step_stops_the_fit():
    calls = []

    def stop(step, losses, params):
        calls.append((step, tuple(losses.shape)))
        return step >= 4

    found = fit(callback=stop, callback_every=2)
    assert calls == [(2, (2, 1)), (4, (2, 1))]
    assert found.info["steps"] == 4
    assert "callback" in found.info["stopped"]


def test_parameters_are_clipped_in_place_by_name_and_in_the_store():
    def in_place(step, losses, params):
        params["sigma_point"].clamp_(min=1.45)

    def by_name(step, losses, params):
        params["sigma_point"] = params["sigma_point"].clamp(min=1.45)

    def in_store(step, losses, params):  # as a loop of Pyro's would
        pyro.param("mu_point").data.clamp_(max=0.6)

    for clip in (in_place, by_name):
        assert float(fit(callback=clip, learning_rate=0.1).params["sigma_point"]) >= 1.45 - 1e-6
    assert float(fit(learning_rate=0.1).params["sigma_point"]) < 1.45
    assert float(fit(callback=in_store, learning_rate=0.1).params["mu_point"]) <= 0.6 + 1e-6


def test_a_callback_that_draws_changes_no_number():
    plain = fit()
    drawing = fit(callback=lambda *_: torch.randn(3))
    assert torch.equal(torch.as_tensor(plain.losses), torch.as_tensor(drawing.losses))


def test_an_error_of_a_callback_ends_the_fit():
    def fail(step, losses, params):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        zoo.fit(Pair(model, point), (X,), steps=3, compile=False, callback=fail)


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"optimizer": optim.Adam({"lr": 0.1}), "learning_rate": 0.1}, DataError, "learning_rate .* has its own"),
        ({"optimizer": optim.AdagradRMSProp({}), "schedule": "cosine"}, DataError, "does not have"),
        ({"optimizer": torch.optim.LBFGS}, PairError, "LBFGS"),
        ({"optimizer": 3}, PairError, "allowed: an optimiser of pyro.optim"),
        ({"optimizer": optim.Adam}, PairError, "the function Adam"),
        ({"optimizer": torch.optim.Adam, "skip_nonfinite": True}, DataError, "skip_nonfinite"),
        ({"callback": 3}, DataError, "callback is a int"),
        ({"callback": print, "callback_every": 0}, DataError, "callback_every"),
        ({"callback": print, "engine": "nuts"}, DataError, "engine 'svi'"),
        (
            {"callback": lambda s, v, p: p.update(sigma_point=torch.tensor(-1.0))},
            DataError,
            "outside of its constraint",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(options, kind, text):
    with pytest.raises(kind, match=text) as caught:
        zoo.fit(Pair(model, point), (X,), steps=2, compile=False, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"optimizer": torch.optim.Adam}, {"callback": print}])
def test_no_checkpoint_that_could_not_be_continued(option, tmp_path):
    with pytest.raises(ZooError, match="could not go on exactly"):
        zoo.fit(Pair(model, point), (X,), steps=2, compile=False, checkpoint=tmp_path, **option)
