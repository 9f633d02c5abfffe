"""Bayesian compression: moments, bits, masks and the objective, most of it without training."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import zoo
from zoo.errors import DataError, PairError
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
    hyper = Hyper(hidden=sizes[1:-1], prior=prior)
    return SimpleNamespace(params=fake_params(prior, sizes), data=make_data(torch.float64), hyper=hyper, info={})


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
    _, guide, _ = build(data, Hyper(hidden=(4,), prior=prior))[:3]
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
    model, guide, _ = build(data, hyper)[:3]
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
    saved = compression(posterior, keep)
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
    saved = compression(posterior, keep)
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
    stricter = compression(posterior, choose_units(posterior, tolerance=0.0))
    assert stricter.pruning <= compression(posterior, chosen).pruning


# ------------------------------------------------------------------------------------------------- convolutions
LENET = Hyper(channels=(4, 6), hidden=(9,))


def make_images(num: int = 40, size: int = 20) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def batch(num: int) -> dict[str, Tensor]:
        y = torch.randint(CLASSES, (num,), generator=generator)
        x = torch.rand(num, 1, size, size, generator=generator) * 0.3
        for i, label in enumerate(y.tolist()):
            x[i, 0, 4 * label : 4 * label + 8] += 0.5
        return {"x": x.flatten(1), "y": y, "index": torch.arange(num)}

    return Dataset(
        name="images", task="classification", train=batch(num), validation=batch(num), test=batch(num),
        extra={"num_classes": CLASSES, "image_shape": (1, size, size)},
    )  # fmt: skip


def random_fit(data: Dataset, hyper: Hyper, seed: int = 0) -> Any:
    """A posterior with the guide's parameters moved at random, without training."""
    posterior = zoo.fit(METHOD, data, hyper=hyper, steps=1, batch_size=0, compile=False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in posterior._values.items():
        value += (0.5 if name.endswith("_loc") else 0.2) * torch.randn(value.shape, generator=generator)
    return posterior


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("compile", [True, False])
def test_a_convolutional_pair_keeps_to_its_sites(prior: str, compile: bool) -> None:
    data, hyper = make_images(), dataclasses.replace(LENET, prior=prior)
    model, guide, _ = build(data, hyper)[:3]
    guide_trace = poutine.trace(guide).get_trace(data.train)
    trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data.train)
    for found in (trace, guide_trace):
        plates = {
            n: tuple(f.name for f in found.nodes[n]["cond_indep_stack"]) for n in found.nodes if n in bc.sites(hyper)
        }
        assert plates == bc.sites(hyper)
    posterior = zoo.fit(METHOD, data, hyper=hyper, steps=3, batch_size=16, compile=compile)
    assert posterior.info["compiled"] is compile
    eager = zoo.fit(METHOD, data, hyper=hyper, steps=3, batch_size=16, compile=False)
    torch.testing.assert_close(posterior.losses, eager.losses, rtol=1e-4, atol=0)
    dims = posterior.to_arviz(num_draws=20).posterior
    assert dims["b_0"].dims[2:] == ("channel_0",)


@pytest.mark.parametrize("prior", PRIORS)
def test_moments_of_filters_are_those_of_draws(prior: str) -> None:
    posterior = random_fit(make_images(), dataclasses.replace(LENET, prior=prior, global_scale=0.5))
    for name in posterior._values:  # narrow scales: log-normal variables have heavy tails
        if name.endswith("_scale"):
            posterior._values[name] -= 0.5
    draws = posterior.draws(3_000)
    for l, layer in enumerate(layers(posterior.params)[:2]):
        for site, mean in ((f"W_{l}", layer.mean), (f"b_{l}", layer.bias)):
            values = draws[site]
            z = (values.mean(0) - mean) / (values.var(0) / len(values)).sqrt()
            assert float(z.abs().max()) < 5
        torch.testing.assert_close(draws[f"W_{l}"].var(0), layer.variance, rtol=0.7, atol=0)


def test_a_convolutional_model_computes_what_the_network_of_its_weights_does() -> None:
    data = make_images()
    model = build(data, LENET).model
    network = bc._dense(bc._architecture(data, LENET))
    values = {}
    for l, module in enumerate(m for m in network if isinstance(m, nn.Linear | nn.Conv2d)):
        values |= {f"W_{l}": module.weight if l < 2 else module.weight.T, f"b_{l}": module.bias}
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(data.train)
    torch.testing.assert_close(trace.nodes["y"]["fn"].logits, network(data.train["x"]).log_softmax(-1))


def test_filters_and_features_leave_the_convolutional_network_together() -> None:
    posterior = random_fit(make_images(), LENET)
    stack = layers(posterior.params)
    generator = torch.Generator().manual_seed(1)
    keep = [torch.rand(len(layer.score), generator=generator) < 0.6 for layer in stack]
    keep[1][0], keep[2][:4] = True, False  # the first filter of the second layer loses all of its 2 x 2 features
    network = compress(posterior, keep, rounded=False)
    x, h = posterior.data.train["x"], posterior.data.train["x"].reshape(-1, 1, 20, 20)
    assert len(keep[2]) == 6 * 2 * 2
    masks = [keep[0], keep[1] & (torch.arange(6) != 0)]
    for layer, mask in zip(stack[:2], masks, strict=True):
        h = nn.functional.conv2d(h, layer.mean, layer.bias).relu() * mask[:, None, None]
        h = nn.functional.max_pool2d(h, 2)
    h = ((h.flatten(1) * keep[2]) @ stack[2].mean + stack[2].bias).relu()
    torch.testing.assert_close(network(x), (h * keep[3]) @ stack[3].mean + stack[3].bias)
    units = compression(posterior, keep).units
    features = int((keep[2].reshape(6, 4) & masks[1][:, None]).sum())
    assert units == (int(keep[0].sum()), int(masks[1].sum()), features, int(keep[3].sum()), CLASSES)
    assert (network[2].in_channels, network[2].out_channels) == (1, units[0])


def test_no_convolution_without_images_large_enough() -> None:
    with pytest.raises(DataError, match="holds no images"):
        build(make_data(), LENET)
    with pytest.raises(DataError, match="12 x 12 are too small"):
        build(make_images(size=12), LENET)
    with pytest.raises(DataError, match="inputs are to be chosen from 0 to 7"):
        build(make_data(), Hyper(inputs=(3, 8)))


# -------------------------------------------------------------------------------------------- pruning and export
@pytest.mark.parametrize("hyper", [Hyper(hidden=(10, 6)), Hyper(hidden=(10, 6), prior="horseshoe"), LENET])
def test_the_parameters_of_what_is_left_are_those_of_the_smaller_pair(hyper: Hyper) -> None:
    data = make_images() if hyper.channels else make_data()
    posterior = random_fit(data, hyper)
    generator = torch.Generator().manual_seed(2)
    stack = layers(posterior.params)
    net = bc._architecture(data, hyper)
    keep = bc._consistent(net, [torch.rand(len(s.score), generator=generator) < 0.7 for s in stack])
    small = bc._smaller(net, keep)
    c = net.num_filters
    left = dataclasses.replace(
        hyper, channels=tuple(s[0] for s in small.shapes[:c]), hidden=tuple(s[0] for s in small.shapes[c + 1 :]),
        inputs=small.inputs,
    )  # fmt: skip
    init = bc._shrunk_params(posterior, keep)
    fitted = zoo.fit(METHOD, data, hyper=left, init=init, steps=1, learning_rate=1e-12, batch_size=0, compile=False)
    x = data.train["x"]
    expected = compress(posterior, keep, rounded=False)(x)
    torch.testing.assert_close(compress(fitted, "all", rounded=False)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", PRIORS)
def test_pruning_in_turns_returns_a_smaller_posterior(prior: str, tmp_path: Path) -> None:
    data = make_data(num=400)
    hyper = Hyper(hidden=(12, 8), prior=prior, temperature=0.1)
    posterior = zoo.fit(METHOD, data, hyper=hyper, steps=300, learning_rate=0.03, batch_size=0, compile=False)
    before = dict(posterior.info)
    small = posterior.prune(turns=3, steps=60, learning_rate=0.01, tolerance=2.0)
    assert posterior.info == before
    turns = small.info["pruned"]
    assert len(turns) == 3
    assert all(b["pruning"] * 0.75 >= a["pruning"] * 0.99 for a, b in itertools.pairwise(turns))
    x, errors = np.log([turn["pruning"] for turn in turns]), np.array([turn["error"] for turn in turns])
    line, limit = np.polyval(np.polyfit(x, errors, 1), x), small.info["limit"]
    np.testing.assert_allclose([turn["smoothed error"] for turn in turns], line, atol=1e-9)
    half = np.sqrt(errors * (1 - errors) / len(data.validation["y"])) / 2
    allowed = [turns[i] for i in range(3) if line[i] <= limit and errors[i] <= limit + half[i]]
    saved = compression(small)
    assert saved.pruning == pytest.approx(allowed[-1]["pruning"])
    whole = 8 * 12 + 12 * 8 + 8 * 3
    network = small.compress()
    assert saved.pruning == pytest.approx(whole / sum(m.weight.numel() for m in network if isinstance(m, nn.Linear)))
    assert bc._error(network, data.validation) / 100 <= small.info["limit"] + 1e-9
    assert {f.name for f in bc.figures(small)} == {"weights", "trade-off"}
    small.save(tmp_path / "small")
    loaded = zoo.load(tmp_path / "small")  # with its data: the last fit took the validation rows too
    assert loaded.data.num_data == len(data.train["y"]) + len(data.validation["y"])
    torch.testing.assert_close(loaded.compress()(data.test["x"]), network(data.test["x"]))
    assert loaded.summary() == small.summary()


def test_errors_of_turns_are_smoothed_over_neighbours_only() -> None:
    x, y = [0.6, 2.9, 3.4, 3.8, 4.3], [0.045, 0.05, 0.054, 0.06, 0.066]
    found = bc._smoothed(x, y)
    for at, near in enumerate(([0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4])):
        line = np.polyfit([x[i] for i in near], [y[i] for i in near], 1)
        assert found[at] == pytest.approx(np.polyval(line, x[at]))
    straight = [0.01 + 0.02 * at for at in x]
    assert bc._smoothed(x, straight) == pytest.approx(straight)
    assert bc._smoothed(x[:2], y[:2]) == y[:2]


def test_packed_weights_are_small_integers_and_predict_the_same() -> None:
    for posterior in (fake_posterior(), random_fit(make_images(), LENET)):
        x = posterior.data.test["x"]
        packed = compress(posterior, packed=True)
        torch.testing.assert_close(packed(x), compress(posterior)(x))
        kinds = [b.dtype for n, b in packed.named_buffers() if n.endswith("codes")]
        assert kinds
        assert not any(kind.is_floating_point for kind in kinds)
        assert not list(packed.parameters())


def test_pruning_stops_at_the_limit_that_is_given() -> None:
    data = make_data(num=400)
    hyper = Hyper(hidden=(12, 8), temperature=0.1)
    posterior = zoo.fit(METHOD, data, hyper=hyper, steps=300, learning_rate=0.03, batch_size=0, compile=False)
    options = {"turns": 2, "steps": 20, "final": False}
    assert posterior.prune(limit=-1.0, **options) is posterior  # nothing is within: compress() cuts it once
    assert compression(posterior).pruning > 1
    everything = posterior.prune(limit=1.0, **options)
    assert compression(everything).pruning == pytest.approx(everything.info["pruned"][-1]["pruning"])
    assert everything.data is data
    with pytest.raises(DataError, match="turns is 0 and fraction"):
        posterior.prune(turns=0)
    joined = posterior.prune(turns=1, steps=2, limit=1.0)
    with pytest.raises(DataError, match="no validation split"):
        joined.prune()


def test_a_bare_pair_has_nothing_to_compress() -> None:
    pair = build(make_data(), Hyper(hidden=(4,)))
    posterior = zoo.fit(pair, make_data(), steps=1, compile=False)
    for name in ("compress", "prune"):
        with pytest.raises(PairError, match="which methods compress"):
            getattr(posterior, name)()


# ------------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("prior", PRIORS)
def test_a_plain_pyro_loop_learns_which_features_matter(prior: str) -> None:
    data = make_data(num=400)
    model, guide, objective = build(data, Hyper(hidden=(10,), prior=prior, temperature=0.1))[:3]
    assert objective.estimator == "mean_field"
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceMeanField_ELBO())
    losses = [svi.step(data.train) for _ in range(300)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    params = {k: v.detach() for k, v in pyro.get_param_store().items()}
    hyper = Hyper(hidden=(10,), prior=prior)
    posterior: Any = SimpleNamespace(params=params, data=data, hyper=hyper, info={})
    score = layers(params)[0].score
    assert float(score[:2].max()) < float(score[2:].min())
    keep = choose_units(posterior)
    assert bc._error(compress(posterior, keep), data.test) < 10  # percent; guessing the commonest class: 50
    assert compression(posterior, keep).pruning > 2


def test_the_analytic_estimate_is_that_of_sampled_terms() -> None:
    # The estimate of plain Trace_ELBO has the same mean where its prior is proper.
    data = make_data()
    model, guide, _ = build(data, Hyper(hidden=(3,), prior="horseshoe", global_scale=0.5, temperature=1.0))[:3]
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
    with pytest.raises(DataError, match="every layer needs"):
        build(data, Hyper(hidden=(10, 0)))


def test_method_names_its_parts() -> None:
    assert METHOD.name == "bayesian_compression"
    assert METHOD.build is build
    assert set(METHOD.sites(METHOD.smoke)) == {f"{s}_{l}" for s in "zWb" for l in range(3)}


@pytest.mark.parametrize("measure", [bc._measure_dense, bc._measure_convolutional])
def test_the_fast_subset_of_the_claims_measures_every_key(measure: Any) -> None:
    values = measure(0, True)
    asked = [a for claim in METHOD.claims if claim.measure is measure for a in claim.acceptance]
    assert asked
    assert {name for a in asked for name in (a.key, a.below, a.above) if name} <= set(values)
    assert all(math.isfinite(v) for v in values.values())
    assert values["error dense"] < 75  # of ten classes, after a few steps


def test_magnitude_pruning_keeps_its_zeros_while_tuned() -> None:
    data = make_data()
    with torch.random.fork_rng():
        dense = bc._train(bc._dense(bc._architecture(data, Hyper(hidden=(6,)))), data, 20)
        cut = bc._prune_by_magnitude(dense, 4.0)
        pattern = [m.weight == 0 for m in cut if isinstance(m, nn.Linear)]
        kept = sum(int((~p).sum()) for p in pattern)
        assert kept == round((FEATURES * 6 + 6 * CLASSES) / 4)
        bc._train(cut, data, 20)
    linear = [m for m in cut if isinstance(m, nn.Linear)]
    assert all(bool((m.weight[p] == 0).all()) for m, p in zip(linear, pattern, strict=True))
    assert not any(bool((m.weight == 0).any()) for m in dense if isinstance(m, nn.Linear))
