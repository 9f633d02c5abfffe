"""Deep ensemble: the loss is the sum of the members' MAP losses, and draws are members, all alike often."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import zoo
from zoo.errors import DataError
from zoo.models import map_network
from zoo.models.deep_ensemble import METHOD, Hyper, build, summary
from zoo.types import Alternating, Claim

NUM = 3


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_loss_and_gradient_are_those_of_the_members_alone(name: str) -> None:
    torch.manual_seed(0)
    data = zoo.datasets.load(name)
    pair = build(data, Hyper(num_members=NUM, hidden=(6,)))
    alone = map_network.build(data, map_network.Hyper(hidden=(6,)))
    assert isinstance(pair.objective, Alternating)
    function = pair.objective.losses[0].function
    with pyro.get_param_store().scope():
        total = function(pair.model, pair.guide, data.train)  # type: ignore[operator]
        total.backward()
        params = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
        gradients = {k: v.grad.clone() for k, v in pyro.get_param_store().named_parameters()}
    losses = []
    for m in range(NUM):
        with pyro.get_param_store().scope():
            for key, value in params.items():
                positive = torch.distributions.constraints.positive if key == "sigma_loc" else None
                pyro.param(key, value[m].clone(), **({"constraint": positive} if positive else {}))
            losses.append(Trace_ELBO().loss_and_grads(alone.model, alone.guide, data.train))
            for key, leaf in pyro.get_param_store().named_parameters():
                torch.testing.assert_close(gradients[key][m], leaf.grad, rtol=1e-4, atol=1e-3)
    assert float(total.detach()) == pytest.approx(sum(losses), rel=1e-5)


def test_draws_are_members_each_equally_often() -> None:
    posterior = zoo.fit(METHOD, "digits", hyper=Hyper(num_members=NUM, hidden=(6,)), steps=2, compile=False)
    draws, members = posterior.draws(600), posterior.params["W_0_loc"]
    which = (draws["W_0"][:, None] == members).flatten(2).all(-1)
    assert bool((which.sum(-1) == 1).all())
    assert bool(((which.double().mean(0) - 1 / NUM).abs() < 0.08).all())
    assert bool((draws["b_1"] == posterior.params["b_1_loc"][which.double().argmax(-1)]).all())  # sites of one member


def test_one_member_has_nothing_to_differ_from() -> None:
    posterior = zoo.fit(METHOD, "digits", hyper=Hyper(num_members=1, hidden=(6,)), steps=2, compile=False)
    found = summary(posterior)
    assert found["distance of members from their mean"] < 1e-6
    assert found["weights of a member"] == 64 * 6 + 6 + 6 * 10 + 10


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="num_members is 0; an ensemble needs at least one"):
        build(zoo.datasets.load("digits"), Hyper(num_members=0))


@pytest.mark.parametrize("claim", METHOD.claims, ids=lambda claim: claim.statement[:40])
def test_claims_are_measured(claim: Claim) -> None:
    values = claim.measure(0, True)
    assert all({a.key, a.below or a.key} <= set(values) for a in claim.acceptance)
    assert all(v == v for v in values.values())
