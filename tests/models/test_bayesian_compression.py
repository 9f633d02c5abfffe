"""Bayesian compression: moments, bits, masks and the objective, most of it without training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from zoo.errors import DataError
from zoo.models import bayesian_compression as bc
from zoo.models._parts.distributions import log_uniform_kl
from zoo.models.bayesian_compression import (
    METHOD,
    Hyper,
    bit_widths,
    build,
    choose_units,
    compress,
    compression,
    layers,
)
from zoo.types import Dataset

PRIORS = ("normal_jeffreys", "horseshoe")
NUM, FEATURES, CLASSES = 60, 8, 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Operations this small lose by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_data(dtype: torch.dtype = torch.float32, num: int = NUM) -> Dataset:
    """Classes by the first two of eight features; the other six are noise, and the last is always zero."""
    generator = torch.Generator().manual_seed(0)

    def batch(num: int) -> dict[str, Tensor]:
        x = torch.rand(num, FEATURES, generator=generator).to(dtype)
        x[:, -1] = 0
        y = (x[:, 0] > 0.5).long() + (x[:, 1] > 0.5).long()
        return {"x": x, "y": y, "index": torch.arange(num)}

    return Dataset(
        name="toy", task="classification", train=batch(num), validation=batch(200), test=batch(200),
        extra={"num_classes": CLASSES},
    )  # fmt: skip


def fake_params(prior: str, sizes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params = {}
    for l, (a, b) in enumerate(itertools.pairwise(sizes)):
        names = {f"W_{l}": (a, b), f"b_{l}": (b,)}
        if prior == "normal_jeffreys":
            names |= {f"z_{l}": (a,)}
        else:
            names |= {f"alpha_{l}": (a,), f"beta_{l}": (a,), f"s_a_{l}": (), f"s_b_{l}": ()}
        for name, shape in names.items():
            params[f"{name}_loc"] = randn(*shape)
            params[f"{name}_scale"] = 0.3 * randn(*shape).exp()
    return params


def fake_posterior(prior: str = "normal_jeffreys", sizes: tuple[int, ...] = (FEATURES, 12, 6, CLASSES)) -> Any:
    return SimpleNamespace(params=fake_params(prior, sizes), data=make_data(torch.float64))


# ------------------------------------------------------------------------------------------------------ moments
@pytest.mark.parametrize("prior", PRIORS)
def test_weight_moments_are_those_of_the_guide(prior: str) -> None:
    sizes = (3, 2, CLASSES)
    params = {k: (v if k.endswith("_loc") else v.clamp(max=0.4)) for k, v in fake_params(prior, sizes).items()}
    data = make_data(torch.float64)
    n = 200_000
    layer = layers(params)[0]

    def normal(name: str) -> Tensor:
        loc, scale = params[f"{name}_loc"], params[f"{name}_scale"]
        return loc + scale * torch.randn(n, *loc.shape, dtype=torch.float64)

    if prior == "normal_jeffreys":
        z = normal("z_0")
    else:
        z = ((normal("s_a_0") + normal("s_b_0"))[:, None] + normal("alpha_0") + normal("beta_0")).div(2).exp()
    weights = z[..., None] * normal("W_0")
    error = weights.std(0) / n**0.5
    assert ((weights.mean(0) - layer.mean).abs() < 5 * error).all()
    torch.testing.assert_close(weights.var(0), layer.variance, rtol=0.05, atol=0)
    assert data.train["x"].dtype == layer.mean.dtype


@pytest.mark.parametrize("prior", PRIORS)
def test_moments_are_those_of_draws_from_the_traced_guide(prior: str) -> None:
    data = make_data()
    _, guide, _ = build(data, Hyper(hidden=(4,), prior=prior))
    guide(data.train)
    for name, value in pyro.get_param_store().named_parameters():
        value.data += 0.3 * torch.randn_like(value) if "loc" in name else 1.0
    draws = torch.stack([
        poutine.trace(guide).get_trace(data.train).nodes["W_0"]["value"] for _ in range(1_500)
    ]).detach()
    layer = layers(dict(pyro.get_param_store().items()))[0]
    z = (draws.mean(0) - layer.mean) / (layer.variance / 1_500).sqrt()
    assert float(z.abs().max()) < 5
    torch.testing.assert_close(draws.var(0), layer.variance, rtol=0.6, atol=0)


def test_score_orders_units_by_their_dropout_rate_and_mode() -> None:
    params = fake_params("normal_jeffreys", (4, 2))
    alpha = params["z_0_scale"] ** 2 / params["z_0_loc"] ** 2
    torch.testing.assert_close(layers(params)[0].score, alpha.log())
    params = fake_params("horseshoe", (4, 2))
    m = (params["s_a_0_loc"] + params["s_b_0_loc"] + params["alpha_0_loc"] + params["beta_0_loc"]) / 2
    v = sum(params[f"{n}_0_scale"] ** 2 for n in ("s_a", "s_b", "alpha", "beta")) / 4
    grid = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    mode = grid[(-grid - (grid - m[:, None]) ** 2 / (2 * v[:, None])).argmax(-1)]  # log density of LogNormal at e^grid
    torch.testing.assert_close(layers(params)[0].score, -mode, atol=1e-3, rtol=0)


# ----------------------------------------------------------------------------------------------------- objective
def terms(pair: Any, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Minus the divergence of one step, and the parameters."""
    with poutine.block(hide_fn=lambda site: site["name"] == "y"):
        loss = TraceMeanField_ELBO().loss(pair.model, pair.guide, batch)
    return loss, {k: v.detach() for k, v in pyro.get_param_store().items()}


@pytest.mark.parametrize("prior", PRIORS)
def test_divergence_is_the_papers_sum(prior: str) -> None:
    data = make_data(torch.float64)
    torch.set_default_dtype(torch.float64)
    hyper = Hyper(hidden=(5,), prior=prior, global_scale=0.01)
    pair = build(data, hyper)
    blocked = pair._replace(model=poutine.block(pair.model, hide=["y"]))
    loss, p = terms(blocked, dict(data.train))
    expected = 0.0
    for l in range(2):
        for name in (f"W_{l}", f"b_{l}"):
            mu, s2 = p[f"{name}_loc"], p[f"{name}_scale"] ** 2
            expected += 0.5 * float((s2 + mu**2 - s2.log() - 1).sum())
        if prior == "normal_jeffreys":
            alpha = p[f"z_{l}_scale"] ** 2 / p[f"z_{l}_loc"] ** 2
            expected += float(log_uniform_kl(alpha.log()).sum())
            continue
        for name, t in ((f"s_a_{l}", 0.01**2), (f"alpha_{l}", 1.0)):
            m, v = p[f"{name}_loc"], p[f"{name}_scale"] ** 2
            kl = (m + v / 2).exp() / t + 0.5 * math.log(t) - 0.5 * (m + v.log() + 1 + math.log(2))
            expected += float(kl.sum())
        for name in (f"s_b_{l}", f"beta_{l}"):
            m, v = p[f"{name}_loc"], p[f"{name}_scale"] ** 2
            expected += float(((v / 2 - m).exp() - 0.5 * (-m + v.log() + 1 + math.log(2))).sum())
    assert loss == pytest.approx(expected, rel=1e-6)
    # The divergence of w given z does not depend on z: another draw, the same number.
    assert terms(blocked, dict(data.train))[0] == pytest.approx(expected, rel=1e-6)


def test_temperature_scales_the_likelihood_alone() -> None:
    data = make_data()
    batch = dict(data.train)
    guide_trace = poutine.trace(build(data, Hyper(hidden=(4,))).guide).get_trace(batch)
    sums = []
    for temperature in (1.0, 0.25):
        model = build(data, Hyper(hidden=(4,), temperature=temperature)).model
        with torch.no_grad():
            trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
        trace.compute_log_prob()
        y = float(trace.nodes["y"]["log_prob_sum"])
        sums.append((y, float(trace.log_prob_sum()) - y))
    assert sums[1][0] == pytest.approx(4 * sums[0][0], rel=1e-5)
    assert sums[1][1] == pytest.approx(sums[0][1], rel=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites_plates_and_finite_densities(prior: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    data = make_data(dtype)
    hyper = Hyper(hidden=(5, 4), prior=prior)
    model, guide, _ = build(data, hyper)
    guide_trace = poutine.trace(guide).get_trace(data.train)
    trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data.train)
    trace.compute_log_prob()
    latents = {n: trace.nodes[n] for n in trace.stochastic_nodes if n in guide_trace.nodes and n in bc.sites(hyper)}
    assert {n: tuple(f.name for f in s["cond_indep_stack"]) for n, s in latents.items()} == bc.sites(hyper)
    for site in latents.values():
        assert site["value"].dtype == dtype
        assert torch.isfinite(site["log_prob"]).all()
    assert latents["W_1"]["value"].shape == (5, 4)
    assert trace.nodes["y"]["log_prob"].dtype == dtype


# ------------------------------------------------------------------------------------------------ bits and units
def test_bits_of_known_variances() -> None:
    mean = torch.tensor([[1.5, -3.0]])
    # 2 V < 2^-t: V = 2^-4 admits t = 1, 2 (2 V = 2^-3, the comparison is strict); 2^-4.5 admits t = 1, 2, 3.
    exponent = math.ceil(math.log2(math.log2(3.0) + 1) + 1)
    assert bit_widths([mean], [torch.full((1, 2), 2.0**-4)]) == [1 + exponent + 2]
    assert bit_widths([mean], [torch.full((1, 2), 2.0**-4.5)]) == [1 + exponent + 3]
    assert bit_widths([mean], [torch.tensor([[2.0**-4, 2.0**-4.5]])]) == [1 + exponent + 3]  # mean 2.5, rounded up
    assert bit_widths([mean], [torch.full((1, 2), 4.0)]) == [1 + exponent]
    assert bit_widths([mean], [torch.full((1, 2), 1e-30)]) == [1 + exponent + 23]
    # Negative control: standard deviations in their place give another width.
    assert bit_widths([mean], [torch.full((1, 2), 2.0**-4).sqrt()]) != bit_widths([mean], [torch.full((1, 2), 2.0**-4)])


@pytest.mark.parametrize(
    ("largest", "bits"),
    [(0.0, 1), (0.3, 1), (0.5, 1), (0.6, 1), (0.71, 1), (1.0, 1), (1.5, 2), (2.0, 2), (5.0, 3), (100.0, 4)],
)
def test_exponent_bits_are_defined_for_small_weights(largest: float, bits: int) -> None:
    variance = torch.full((1, 1), 4.0)
    assert bit_widths([torch.tensor([[-largest]])], [variance]) == [1 + bits]
    if largest >= 1:
        assert bits == math.ceil(math.log2(math.log2(largest) + 1) + 1)


@pytest.mark.parametrize("prior", PRIORS)
def test_masked_network_equals_the_smaller_one(prior: str) -> None:
    posterior = fake_posterior(prior)
    generator = torch.Generator().manual_seed(5)
    keep = [torch.rand(len(layer.score), generator=generator) < 0.6 for layer in layers(posterior.params)]
    network = compress(posterior, keep, rounded=False)
    x = posterior.data.train["x"]
    h = x
    for l, (layer, mask) in enumerate(zip(layers(posterior.params), keep, strict=True)):
        h = (h * mask) @ layer.mean + layer.bias
        h = h.relu() if l < 2 else h
    torch.testing.assert_close(network(x), h)
    sizes = [m.in_features for m in network if isinstance(m, nn.Linear)]
    assert sizes == [int(mask.sum()) for mask in keep]
    saved = compression(posterior.params, keep)
    kept = sum(m.weight.numel() for m in network if isinstance(m, nn.Linear))
    assert saved.pruning == pytest.approx((8 * 12 + 12 * 6 + 6 * 3) / kept)
    stored = sum(
        b * m.weight.numel() for b, m in zip(saved.bits, (m for m in network if isinstance(m, nn.Linear)), strict=True)
    )
    assert saved.precision == pytest.approx(32 * (8 * 12 + 12 * 6 + 6 * 3) / stored)
    assert saved.units == (*sizes, CLASSES)


def test_rounding_leaves_few_values() -> None:
    posterior = fake_posterior()
    keep = [torch.ones(len(layer.score), dtype=torch.bool) for layer in layers(posterior.params)]
    exact, rounded = compress(posterior, keep, rounded=False), compress(posterior, keep)
    saved = compression(posterior.params, keep)
    exponent = bit_widths([layer.mean for layer in layers(posterior.params)], [torch.full((1, 1), 4.0)])[0] - 1
    for l, bits in enumerate(saved.bits):
        step = 2.0 ** -(bits - 1 - exponent)
        weight = rounded[1 + 2 * l].weight
        torch.testing.assert_close((weight / step).round() * step, weight)
        assert float((weight - exact[1 + 2 * l].weight).abs().max()) <= step / 2 + 1e-12


def test_units_are_chosen_within_the_tolerance() -> None:
    posterior = fake_posterior()
    batch = posterior.data.validation
    whole = [torch.ones(len(layer.score), dtype=torch.bool) for layer in layers(posterior.params)]
    error = bc._error(compress(posterior, whole, rounded=False), batch) / 100
    chosen = choose_units(posterior, tolerance=2.0)
    assert sum(int(m.sum()) for m in chosen) < sum(map(len, chosen))
    limit = error + 2 * math.sqrt(error * (1 - error) / len(batch["y"]))
    assert bc._error(compress(posterior, chosen, rounded=False), batch) / 100 <= limit + 1e-9
    for mask, layer in zip(chosen, layers(posterior.params), strict=True):  # a threshold: no kept unit scores worse
        if not bool(mask.all()):
            assert float(layer.score[mask].max()) <= float(layer.score[~mask].min())
    stricter = compression(posterior.params, choose_units(posterior, tolerance=0.0))
    assert stricter.pruning <= compression(posterior.params, chosen).pruning


# ------------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("prior", PRIORS)
def test_a_plain_pyro_loop_learns_which_features_matter(prior: str) -> None:
    data = make_data(num=400)
    model, guide, objective = build(data, Hyper(hidden=(10,), prior=prior, temperature=0.1))
    assert objective.estimator == "mean_field"
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceMeanField_ELBO())
    losses = [svi.step(data.train) for _ in range(300)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    params = {k: v.detach() for k, v in pyro.get_param_store().items()}
    posterior: Any = SimpleNamespace(params=params, data=data)
    score = layers(params)[0].score
    assert float(score[:2].max()) < float(score[2:].min())
    keep = choose_units(posterior)
    assert bc._error(compress(posterior, keep), data.test) < 10  # percent; guessing the commonest class: 50
    assert compression(params, keep).pruning > 2


def test_the_analytic_estimate_is_that_of_sampled_terms() -> None:
    # The estimate of plain Trace_ELBO has the same mean where its prior is proper.
    data = make_data()
    model, guide, _ = build(data, Hyper(hidden=(3,), prior="horseshoe", global_scale=0.5, temperature=1.0))
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        elbo.loss(model, guide, data.train)
    for name, value in pyro.get_param_store().named_parameters():
        if "scale" in name:
            value.data += 1.5
    sampled = torch.tensor([Trace_ELBO().loss(model, guide, data.train) for _ in range(600)])
    analytic = torch.tensor([TraceMeanField_ELBO().loss(model, guide, data.train) for _ in range(600)])
    error = ((sampled.var() + analytic.var()) / 600).sqrt()
    assert abs(float(sampled.mean() - analytic.mean())) < 4 * float(error)
    assert float(analytic.var()) < float(sampled.var())


def test_bad_hyper_parameters_are_named() -> None:
    data = make_data()
    with pytest.raises(DataError, match="temperature is 0"):
        build(data, Hyper(temperature=0.0))
    with pytest.raises(DataError, match="every hidden layer"):
        build(data, Hyper(hidden=(10, 0)))


def test_method_names_its_parts() -> None:
    assert METHOD.name == "bayesian_compression"
    assert METHOD.build is build
    assert set(METHOD.sites(METHOD.smoke)) == {f"{s}_{l}" for s in "zWb" for l in range(3)}


def test_the_fast_subset_of_the_claims_measures_every_key() -> None:
    values = bc._measure(0, True)
    asked = {a.key for claim in METHOD.claims for a in claim.acceptance}
    asked |= {other for claim in METHOD.claims for a in claim.acceptance for other in (a.below, a.above) if other}
    assert asked <= set(values)
    assert all(math.isfinite(v) for v in values.values())
    assert values["error mean field"] < 50  # of ten classes


def test_magnitude_pruning_keeps_its_zeros_while_tuned() -> None:
    data = make_data()
    with torch.random.fork_rng():
        dense = bc._train(bc._dense(data, (6,)), data, 20)
        cut = bc._prune_by_magnitude(dense, 4.0)
        pattern = [m.weight == 0 for m in cut if isinstance(m, nn.Linear)]
        kept = sum(int((~p).sum()) for p in pattern)
        assert kept == round((FEATURES * 6 + 6 * CLASSES) / 4)
        bc._train(cut, data, 20)
    linear = [m for m in cut if isinstance(m, nn.Linear)]
    assert all(bool((m.weight[p] == 0).all()) for m, p in zip(linear, pattern, strict=True))
    assert not any(bool((m.weight == 0).any()) for m in dense if isinstance(m, nn.Linear))
