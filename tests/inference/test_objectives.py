"""Objectives: analytic divergences, and the warning where one of them may be wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from zoo.inference.objectives import to_pyro
from zoo.types import Elbo


class Sampled(dist.Normal):  # type: ignore[misc]
    """A normal distribution whose divergence from another Sampled one is not known."""


@torch.distributions.kl.register_kl(Sampled, Sampled)
def _unknown(q: Any, p: Any) -> Any:
    raise NotImplementedError


def pair(z: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """The model draws w first, the guide z: right for a sampled divergence of z, and wrong for an analytic one."""

    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("z", z(w, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(0.5))

    def guide() -> None:
        z_ = pyro.sample("z", z(0.3, 1.0))
        pyro.sample("w", dist.Normal(z_, 1.0))

    return model, guide


def mean_and_error(elbo: Any, programs: Any, num: int = 3_000) -> tuple[float, float]:
    torch.manual_seed(0)
    draws = torch.tensor([elbo.loss(*programs) for _ in range(num)])
    return float(draws.mean()), float(draws.std()) / num**0.5


def test_a_sampled_divergence_may_stand_in_any_order() -> None:
    programs, analytic = pair(Sampled), to_pyro(Elbo(estimator="mean_field"))
    with warnings.catch_warnings(), pyro.validation_enabled(True):
        warnings.simplefilter("error")
        analytic.loss(*programs)
    with pyro.validation_enabled(False):
        (a, room), (b, more) = mean_and_error(analytic, programs), mean_and_error(to_pyro(Elbo()), programs)
    assert abs(a - b) < 4 * (room**2 + more**2) ** 0.5


def test_an_analytic_divergence_in_the_wrong_order_is_wrong_and_warned_of() -> None:
    programs, analytic = pair(dist.Normal), to_pyro(Elbo(estimator="mean_field"))
    with (
        pyro.validation_enabled(True),
        pytest.warns(UserWarning, match="the divergence of 'z' is taken analytically, .* if 'z' depends on 'w'"),
    ):
        analytic.loss(*programs)
    with pyro.validation_enabled(False):
        (a, room), (b, more) = mean_and_error(analytic, programs), mean_and_error(to_pyro(Elbo()), programs)
    assert abs(a - b) > 8 * (room**2 + more**2) ** 0.5
