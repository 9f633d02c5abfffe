"""Priors and divergences, against closed forms, quadrature and simulation."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import kl_divergence

from zoo.models._parts.distributions import NormalJeffreys, UnitDropout, log_uniform_kl


def exact_log_uniform_kl(log_alpha: np.ndarray) -> np.ndarray:
    """Integrate the exact derivative from infinity, where the divergence is zero.

    d KL / d alpha = -Dawson(1 / sqrt(2 alpha)) / (sqrt(2) alpha^(3/2)); in u = 1 / sqrt(2 alpha) the integral from
    alpha to infinity is that of 2 Dawson(u) from 0.
    """
    upper = np.exp(-0.5 * log_alpha) / math.sqrt(2)
    return np.array([integrate.quad(lambda u: 2 * special.dawsn(u), 0, top, limit=500)[0] for top in upper])


def test_exact_divergence_is_that_of_its_series() -> None:
    # KL = -0.5 log a + E log|e| + const, e ~ N(1, a): the expectation as a Poisson mixture of digamma functions.
    a = np.exp(np.array([-2.0, 0.0, 1.0, 4.0]))
    j = np.arange(400)
    weight = stats.poisson.pmf(j[:, None], 1 / (2 * a))
    mean_log = 0.5 * (np.log(2 * a) + (weight * special.digamma(0.5 + j[:, None])).sum(0))
    series = -0.5 * np.log(a) + mean_log - 0.5 * (math.log(2) + special.digamma(0.5))
    np.testing.assert_allclose(exact_log_uniform_kl(np.log(a)), series, atol=1e-8)


def test_log_uniform_approximation_is_within_the_known_error() -> None:
    log_alpha = np.linspace(-8, 8, 161)
    error = np.abs(log_uniform_kl(torch.as_tensor(log_alpha)).numpy() - exact_log_uniform_kl(log_alpha))
    assert error.max() < 0.0095
    assert error.max() > 0.009  # it is an approximation: a smaller error would mean that both sides share a formula


def test_normal_to_normal_jeffreys_is_registered_and_free_of_the_scale() -> None:
    loc, scale = torch.tensor([0.5, -2.0, 1e-3]), torch.tensor([0.1, 3.0, 1.0])
    kl = kl_divergence(dist.Normal(loc, scale), NormalJeffreys((3,)))
    torch.testing.assert_close(kl, log_uniform_kl(2 * scale.log() - 2 * loc.abs().log()))
    torch.testing.assert_close(kl, kl_divergence(dist.Normal(7 * loc, 7 * scale), NormalJeffreys((3,))))
    log_alpha = (2 * scale.log() - 2 * loc.abs().log()).numpy()
    np.testing.assert_allclose(kl.numpy(), exact_log_uniform_kl(log_alpha), atol=0.0095)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_to_normal_jeffreys_has_a_finite_gradient_at_zero(dtype: torch.dtype) -> None:
    loc = torch.zeros(2, dtype=dtype, requires_grad=True)
    scale = torch.ones(2, dtype=dtype, requires_grad=True)
    kl = kl_divergence(dist.Normal(loc, scale), NormalJeffreys((2,)))
    assert kl.dtype == dtype
    kl.sum().backward()
    assert torch.isfinite(loc.grad).all()
    assert torch.isfinite(scale.grad).all()
    torch.testing.assert_close(kl, torch.zeros(2, dtype=dtype), atol=1e-6, rtol=0)


def test_normal_jeffreys_is_a_uniform_density_of_the_logarithm() -> None:
    prior = NormalJeffreys().expand((4, 2))
    assert prior.batch_shape == (4, 2)
    z = torch.tensor([-3.0, 0.25])
    torch.testing.assert_close(prior.log_prob(z.expand(4, 2)), -z.abs().log().expand(4, 2))
    assert torch.isfinite(prior.log_prob(torch.zeros(4, 2))).all()
    draws = NormalJeffreys(like=torch.zeros((), dtype=torch.float64)).sample((20_000,))
    assert draws.dtype == torch.float64
    assert stats.kstest(draws.abs().log().numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.001
    assert abs(float((draws > 0).double().mean()) - 0.5) < 0.02


@pytest.mark.parametrize(("m", "s", "t"), [(0.3, 0.5, 1.0), (-1.0, 1.2, 0.04), (-18.0, 0.4, 1e-10)])
def test_log_normal_divergences_are_those_of_the_paper_and_of_simulation(m: float, s: float, t: float) -> None:
    m_, v = torch.tensor(m, dtype=torch.float64), torch.tensor(s * s, dtype=torch.float64)
    half, one = torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    q = dist.LogNormal(m_, v.sqrt())
    draws = q.sample((200_000,))
    for prior, formula in (
        (
            dist.Gamma(half, 1 / (one * t)),
            (m_ + v / 2).exp() / t + 0.5 * math.log(t) - 0.5 * (m_ + v.log() + 1 + math.log(2)),
        ),
        (dist.InverseGamma(half, one), (v / 2 - m_).exp() - 0.5 * (-m_ + v.log() + 1 + math.log(2))),
    ):
        kl = kl_divergence(q, prior)
        torch.testing.assert_close(kl, formula)
        terms = q.log_prob(draws) - prior.log_prob(draws)
        assert abs(float(terms.mean() - kl)) < 5 * float(terms.std()) / 200_000**0.5


def test_root_of_gamma_times_inverse_gamma_is_half_cauchy() -> None:
    tau, half, one = 0.3, torch.tensor(0.5), torch.tensor(1.0)
    n = 100_000
    draws = (dist.Gamma(half, one / tau**2).sample((n,)) * dist.InverseGamma(half, one).sample((n,))).sqrt()
    assert stats.kstest(draws.numpy(), stats.halfcauchy(scale=tau).cdf).pvalue > 0.001
    # Gamma(1/2, scale tau^2) takes the *rate* 1 / tau^2; the mistake is visible.
    wrong = (dist.Gamma(half, one * tau**2).sample((n,)) * dist.InverseGamma(half, one).sample((n,))).sqrt()
    assert stats.kstest(wrong.numpy(), stats.halfcauchy(scale=tau).cdf).pvalue < 1e-6


def test_dropped_units_have_the_moments_and_the_divergence_of_simulation() -> None:
    torch.manual_seed(0)
    q = UnitDropout(torch.randn(3, 4, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.0]).double())
    prior = dist.Normal(torch.zeros(4, dtype=torch.float64), 0.7).to_event(1).expand([3])
    num = 50_000
    draws = q.rsample((num,))
    assert bool((draws[:, 2] == q.loc[2]).all())
    assert bool(((draws[:, 1] == 0).all(-1) | (draws[:, 1] == q.loc[1]).all(-1)).all())
    torch.testing.assert_close(draws.mean(0), q.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), q.variance, atol=0.03, rtol=0.03)
    terms = q.log_prob(draws) - prior.log_prob(draws)
    error = terms.std(0) / num**0.5
    assert bool(((terms.mean(0) - kl_divergence(q, prior)).abs() <= 5 * error + 1e-9).all())
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Cauchy(torch.zeros(4), 1.0).to_event(1))
