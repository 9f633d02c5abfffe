"""The check for funnels says which priors it can read: a vector's as its elements', others are not examined."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import zoo
from zoo.diagnostics.check import NotApplicable
from zoo.diagnostics.inference import _prior_scales, funnel
from zoo.types import Batch, Pair

BATCH = {"y": torch.tensor([28.0, 8.0, -3.0, 7.0])}


def fitted(prior: Any) -> zoo.Posterior:
    def model(batch: Batch) -> None:
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        theta = pyro.sample("theta", prior(tau))
        pyro.sample("y", dist.Normal(theta, 10.0).to_event(1), obs=batch["y"])

    return zoo.fit(Pair(model, AutoNormal(model)), BATCH, steps=2, compile=False)


def test_a_vector_is_read_as_its_elements_are() -> None:
    vector = fitted(lambda tau: dist.MultivariateNormal(torch.zeros(4), scale_tril=tau * torch.eye(4)))
    single = fitted(lambda tau: dist.Normal(torch.zeros(4), tau).to_event(1))
    draws = vector.draws(5)
    for name, value in _prior_scales(single, BATCH, draws).items():
        for mine, due in zip(_prior_scales(vector, BATCH, draws)[name], value, strict=True):
            torch.testing.assert_close(mine, due)
    assert funnel(vector, num_draws=200).verdict == funnel(single, num_draws=200).verdict


def test_what_cannot_be_read_is_not_examined_and_what_does_not_move_is_none() -> None:
    with pytest.raises(NotApplicable, match="not examined: the prior of theta depends on other latents"):
        funnel(fitted(lambda tau: dist.Gamma(torch.ones(4), 1 / tau).to_event(1)))
    with pytest.raises(NotApplicable, match="there can be no such funnel"):
        funnel(fitted(lambda tau: dist.Gamma(torch.ones(4), 1.0).to_event(1)))
