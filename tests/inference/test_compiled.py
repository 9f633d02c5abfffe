"""``zoo.compile_svi`` equals ``SVI.step`` on the current store, for every estimator of Pyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal

import zoo
from zoo.errors import PairError

Y = torch.tensor([1.0, 2.0, 3.0, 2.5])


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("datum", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def guide(y):
    loc = pyro.param("mu_loc", torch.tensor(0.0))
    width = pyro.param("mu_scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, width))
    pyro.sample("scale", dist.LogNormal(pyro.param("s", torch.tensor(0.0)), 0.3))


def discrete(y):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("datum", len(y)):
        pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)


def discrete_guide(y):
    pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)))


def discrete_guide_enumerated(y):
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})


CASES: dict[str, tuple[Callable[..., Any], Callable[[], Any], Any]] = {
    "trace": (model, lambda: guide, lambda: Trace_ELBO(num_particles=2)),
    "mean field": (model, lambda: guide, TraceMeanField_ELBO),
    "renyi": (model, lambda: guide, lambda: RenyiELBO(alpha=0.5, num_particles=3)),
    "graph, score function": (discrete, lambda: discrete_guide, TraceGraph_ELBO),
    "enumerated guide": (discrete, lambda: discrete_guide_enumerated, lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "auto normal": (model, lambda: AutoNormal(model), Trace_ELBO),
    "auto low rank": (model, lambda: AutoLowRankMultivariateNormal(model, rank=1), Trace_ELBO),
}


def run(case: str, steps: int, *, compiled: bool) -> torch.Tensor:
    own, make, loss = CASES[case]
    pyro.clear_param_store()
    torch.manual_seed(0)
    own_guide = make()
    own_guide(Y)  # registers the parameters, so that both start from the same
    optim = pyro.optim.Adam({"lr": 0.05})
    torch.manual_seed(1)
    if not compiled:
        loop = SVI(own, own_guide, optim, loss())
        return torch.tensor([loop.step(Y) for _ in range(steps)])
    step = zoo.compile_svi(own, own_guide, loss=loss(), optim=optim)
    losses = torch.stack([step(Y) for _ in range(steps)])
    assert not step.reason
    return losses


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equals_pyros_step(case: str) -> None:
    expected = run(case, 15, compiled=False)
    params = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    found = run(case, 15, compiled=True)
    assert torch.allclose(found, expected, rtol=1e-4)
    for name, value in pyro.get_param_store().items():
        assert torch.allclose(value, params[name], rtol=1e-3, atol=1e-5), name


def test_a_new_shape_is_traced_anew_and_right() -> None:
    step = zoo.compile_svi(model, guide, optim=pyro.optim.Adam({"lr": 0.0}))
    torch.manual_seed(0)
    four = float(step(Y))
    torch.manual_seed(0)
    eight = float(step(torch.cat([Y, Y])))
    loop = SVI(model, guide, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO())
    torch.manual_seed(0)
    assert four == pytest.approx(loop.step(Y), rel=1e-5)
    torch.manual_seed(0)
    assert eight == pytest.approx(loop.step(torch.cat([Y, Y])), rel=1e-5)


def test_refuses_what_is_no_pyro_optimiser() -> None:
    with pytest.raises(PairError, match=r"optimiser of pyro\.optim"):
        zoo.compile_svi(model, guide, optim=torch.optim.Adam([torch.zeros(1, requires_grad=True)]))


OPTIMISERS: dict[str, tuple[Callable[[], Any], bool]] = {  # and whether its update is part of the graph
    "adam": (lambda: pyro.optim.Adam({"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6}), True),
    "adam, weight decay": (lambda: pyro.optim.Adam({"lr": 0.05, "weight_decay": 0.1}), True),
    "adamw": (lambda: pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.1}), True),
    "clipped": (lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.9, "clip_norm": 0.5, "weight_decay": 0.1}), True),
    "clipped, centred": (lambda: pyro.optim.ClippedAdam({"lr": 0.1, "centered_variance": True}), True),
    "by parameter": (lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "s" else 0.01}), True),
    "sgd": (lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}), False),
    "amsgrad": (lambda: pyro.optim.Adam({"lr": 0.05, "amsgrad": True}), False),
    "clip arguments": (lambda: pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 0.5}), False),
    "scheduler": (
        lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}),
        False,
    ),
}


@pytest.mark.parametrize("case", OPTIMISERS)
def test_every_optimiser_moves_the_parameters_as_under_pyro(case: str) -> None:
    make, fused = OPTIMISERS[case]
    found = []
    for compiled in (False, True):
        pyro.clear_param_store()
        optim = make()
        torch.manual_seed(0)
        if compiled:
            step: Any = zoo.compile_svi(model, guide, optim=optim)
        else:
            step = SVI(model, guide, optim, Trace_ELBO()).step
        for i in range(12):
            step(Y)
            if case == "scheduler" and i % 3 == 2:
                optim.step()
        found.append(({k: v.detach().clone() for k, v in pyro.get_param_store().items()}, optim.get_state()))
        if compiled:
            assert (next(iter(step._programs.values())).slots is not None) is fused
    (expected, before), (values, after) = found
    for name, value in values.items():
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-7), name
        if fused:  # the state is where Pyro keeps it, ready to be saved
            for key, entry in before[name]["state"][0].items():
                assert torch.allclose(torch.as_tensor(after[name]["state"][0][key]), torch.as_tensor(entry), rtol=1e-4)


def test_a_saved_optimiser_and_a_new_rate_are_honoured() -> None:
    def loop(first: Any, second: Any) -> torch.Tensor:
        pyro.clear_param_store()
        torch.manual_seed(0)
        one = pyro.optim.Adam({"lr": 0.05})
        step = first(one)
        for _ in range(4):
            step(Y)
        two = pyro.optim.Adam({"lr": 0.05})
        two.set_state(one.get_state())
        step = second(two)
        for i in range(6):
            step(Y)
            if i == 2:
                for own in two.optim_objs.values():
                    own.param_groups[0]["lr"] = 0.2
        return torch.stack([v.detach() for v in pyro.get_param_store().values()])

    def pyros(optim: Any) -> Any:
        return SVI(model, guide, optim, Trace_ELBO()).step

    def ours(optim: Any) -> Any:
        return zoo.compile_svi(model, guide, optim=optim)

    expected = loop(pyros, pyros)
    for first, second in ((pyros, ours), (ours, pyros), (ours, ours)):
        assert torch.allclose(loop(first, second), expected, rtol=1e-5)
