"""Every loss that Pyro's SVI takes is minimised as SVI minimises it, by compile_svi and by zoo.fit."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pyro.infer as infer
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI

import zoo
from zoo import Pair
from zoo.errors import PairError
from zoo.inference import program

X = 2.0 + torch.randn(12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def graphs(monkeypatch):
    """Run the recorded graph as it is: a C++ compiler would take ten seconds for each."""

    def interpreted(graph, example, eager, surplus):
        graph.recompile()
        return program.Program(lambda *v: graph(*v)[: -surplus or None])

    monkeypatch.setattr(program, "_ahead_of_time", interpreted)
    monkeypatch.setattr(program, "no_compiler", lambda: "")


def model(x, observations=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(z, pyro.param("noise", torch.tensor(1.5))), obs=x)


def guide(x, observations=None):
    loc = pyro.param("loc", lambda: 0.1 * torch.randn(()))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale))


def own_bound(model, guide, *args, **kwargs):
    drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    found = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    return drawn.log_prob_sum() - found.log_prob_sum()


class Doubled(infer.Trace_ELBO):
    """An estimator of the user's."""

    def _differentiable_loss_particle(self, model_trace, guide_trace):
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        return 2 * loss, 2 * surrogate


LOSSES = {
    "vectorised particles": lambda: infer.Trace_ELBO(num_particles=3, vectorize_particles=True),
    "JitTrace_ELBO": infer.JitTrace_ELBO,
    "JitTrace_ELBO, particles": lambda: infer.JitTrace_ELBO(num_particles=3, vectorize_particles=True),
    "JitTraceMeanField_ELBO": infer.JitTraceMeanField_ELBO,
    "JitTraceGraph_ELBO": lambda: infer.JitTraceGraph_ELBO(num_particles=2),
    "JitTraceEnum_ELBO": lambda: infer.JitTraceEnum_ELBO(max_plate_nesting=1),
    "TraceTMC_ELBO": lambda: infer.TraceTMC_ELBO(max_plate_nesting=1),
    "RenyiELBO": lambda: infer.RenyiELBO(alpha=0.5, num_particles=4, vectorize_particles=True),
    "ReweightedWakeSleep": lambda: infer.ReweightedWakeSleep(num_particles=3, insomnia=0.5, model_has_params=False),
    "ReweightedWakeSleep, sleep": lambda: infer.ReweightedWakeSleep(insomnia=0.0, vectorize_particles=False),
    "EnergyDistance": lambda: infer.EnergyDistance(num_particles=3, prior_scale=0.1, beta=1.5),
    "Trace_MMD": lambda: infer.Trace_MMD(kernel=gp.kernels.RBF(input_dim=1), num_particles=4),
    "TraceTailAdaptive_ELBO": lambda: infer.TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True),
    "differentiable_loss": lambda: infer.Trace_ELBO(num_particles=2).differentiable_loss,
    "differentiable_loss of a jit": lambda: infer.JitTrace_ELBO().differentiable_loss,
    "a function": lambda: own_bound,
    "an estimator of one's own": Doubled,
}


def number(loss) -> float:
    return float(sum(loss)) if isinstance(loss, tuple) else float(loss)


def steps(make, loss, *, count: int = 4, optim=lambda: pyro.optim.Adam({"lr": 0.03})) -> list[float]:
    """Losses of some steps, and the parameters after them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = make(optim(), loss())
        found = [number(step(X)) for _ in range(count)]
    if isinstance(step, zoo.inference.compiled.CompiledSVI):
        assert not step.reason, step.reason
    return found + [float(pyro.param(n).detach()) for n in sorted(pyro.get_param_store())]


def by_pyro(optim, loss):
    return SVI(model, guide, optim, loss).step


def by_zoo(optim, loss):
    return zoo.compile_svi(model, guide, loss=loss, optim=optim)


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_step_is_pyros(name, graphs):
    np.testing.assert_allclose(steps(by_zoo, LOSSES[name]), steps(by_pyro, LOSSES[name]), rtol=1e-5)


def test_a_function_is_compiled_to_a_library():
    np.testing.assert_allclose(steps(by_zoo, lambda: own_bound), steps(by_pyro, lambda: own_bound), rtol=1e-5)


def test_two_losses_in_turn_on_one_store(graphs):
    """Wake and sleep with an optimiser that both share: a parameter that one of them leaves alone keeps its state."""

    def in_turn(make):
        def build(optim, loss):
            wake = make(optim, infer.Trace_ELBO())
            sleep = make(optim, lambda m, g, x: (pyro.param("loc", torch.tensor(0.3)) - x.mean()) ** 2)
            return lambda x: (sleep(x), wake(x), sleep(x))

        return build

    for optim in (
        lambda: pyro.optim.Adam({"lr": 0.03, "weight_decay": 0.1}),
        lambda: pyro.optim.ClippedAdam({"lr": 0.03, "weight_decay": 0.1}),
        lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    ):
        found, wanted = (steps(in_turn(m), lambda: None, optim=optim) for m in (by_zoo, by_pyro))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_what_no_loss_reaches_is_left_alone(graphs):
    """Weight decay does not move a parameter that never had a gradient, as under Pyro."""

    def wide(x, observations=None):
        pyro.param("unused", torch.tensor(7.0))
        guide(x)

    decay = lambda: pyro.optim.Adam({"lr": 0.03, "weight_decay": 0.5})  # noqa: E731
    step = lambda optim, loss: zoo.compile_svi(model, wide, loss=loss, optim=optim)  # noqa: E731
    found = steps(step, infer.Trace_ELBO, optim=decay)
    wanted = steps(lambda optim, loss: SVI(model, wide, optim, loss).step, infer.Trace_ELBO, optim=decay)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found[-1] == 7.0


class OwnJit(infer.JitTrace_ELBO):
    """What torch.jit traces in its own way."""


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (infer.Trace_ELBO, r"the class Trace_ELBO; hand in an estimator"),
        (OwnJit(), r"OwnJit extends JitTrace_ELBO.*derive it from Trace_ELBO"),
        (3.0, r"loss is a float; allowed"),
        ("trace", r"loss is a str; allowed"),
    ],
)
def test_what_is_no_loss_is_refused(loss, text):
    with pytest.raises(PairError, match=text) as caught:
        zoo.compile_svi(model, guide, loss=loss)
    assert "\n" not in str(caught.value)
    with pytest.raises(PairError, match=text):
        zoo.fit(Pair(lambda b: model(b["x"]), lambda b: guide(b["x"]), loss), {"x": X}, steps=2, compile=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda: 1.0, "a float"),
        (lambda: torch.ones(()), "without a gradient"),
        (lambda: pyro.param("loc") * X, "shape"),
    ],
)
def test_a_function_that_returns_no_loss_is_refused(value, text):
    def loss(model, guide, x):
        guide(x)
        return value()

    pyro.clear_param_store()
    with pytest.raises(PairError, match=text):
        zoo.compile_svi(model, guide, loss=loss)(X)


# ------------------------------------------------------------------------------------------------------ zoo.fit
@pytest.mark.parametrize("name", LOSSES)
def test_a_fit_takes_every_loss(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = [zoo.fit(Pair(model, guide, LOSSES[name]()), zoo.Arguments(X), steps=5, compile=False) for _ in range(2)]
    history = next(iter(fits[0].history.values()))
    assert len(history) == 5
    assert bool(torch.isfinite(history).all())
    assert torch.equal(history, next(iter(fits[1].history.values())))


def test_a_fit_minimises_pyros_loss():
    """The exact posterior of a conjugate model, by a function and by an estimator of Pyro's."""

    def exact(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(z, 1.0), obs=x)

    def normal(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), dist.constraints.positive)))

    wanted = float(X.sum()) / 13, 13**-0.5
    for loss in (
        infer.JitTraceMeanField_ELBO(),
        lambda m, g, *args: infer.TraceMeanField_ELBO().differentiable_loss(m, g, *args),
    ):
        fit = zoo.fit(Pair(exact, normal, loss), (X,), steps=800, learning_rate=0.03, schedule="cosine", compile=False)
        assert float(fit.params["loc"]) == pytest.approx(wanted[0], abs=0.05)
        assert float(fit.params["scale"]) == pytest.approx(wanted[1], abs=0.05)


def test_a_loss_of_two_arguments_is_called_as_written():
    def loss(model, guide, x, weight=1.0):
        return weight * own_bound(model, guide, x)

    fit = zoo.fit(
        Pair(lambda x, weight=None: model(x), lambda x, weight=None: guide(x), loss), (X, 2.0), steps=3, compile=False
    )
    assert list(fit.history) == ["loss"]


def test_a_checkpoint_knows_its_estimator(tmp_path):
    def fit(loss, **options):
        return zoo.fit(Pair(model, guide, loss), (X,), steps=4, compile=False, checkpoint=tmp_path, **options)

    fit(infer.Trace_ELBO(num_particles=2))
    with pytest.raises(zoo.errors.ArtifactError, match="objective"):
        fit(infer.Trace_ELBO(num_particles=3), resume=True)
    fit(infer.Trace_ELBO(num_particles=2), resume=True)
