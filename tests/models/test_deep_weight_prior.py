"""The deep weight prior: a linear decoder has a known density, and the bound is exact, or above, where it must be."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import zoo
from zoo.errors import DataError
from zoo.inference.objectives import to_pyro
from zoo.models import deep_weight_prior, map_network
from zoo.models.deep_weight_prior import (
    METHOD,
    Hyper,
    KernelPrior,
    build,
    figures,
    initial_kernels,
    learn_kernel_prior,
    learn_prior,
    learned_prior,
    select_classes,
    smoothness,
    source_kernels,
    summary,
)
from zoo.types import Claim, Dataset, Pair

DOUBLE = torch.float64
LATENT, SPREAD, SIZE = 2, 0.7, 0.4
NUM = 400


def loadings() -> Tensor:
    """Two orthogonal patterns of different strength, so that codes given a kernel are independent: ``(25, 2)``."""
    basis: Tensor = torch.linalg.qr(torch.randn(25, LATENT, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))[
        0
    ]
    return basis * torch.tensor([4.0, 2.5], dtype=DOUBLE)


def linear(*, shift: float = 0.0, stretch: float = 1.0) -> KernelPrior:
    """The prior w = size (D z + spread e), with its exact encoder, or one moved and stretched."""
    D = loadings()
    variance = 1 / (1 + D.square().sum(0) / SPREAD**2)
    mean = variance[:, None] * D.mT / SPREAD**2  # of the code: mean @ kernel

    def through(
        matrix: Tensor, scale: Tensor, floor: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # relu(x) - relu(-x) = x: a hidden layer of a map that is linear
        inputs, outputs = matrix.shape[1], matrix.shape[0]
        eye = torch.eye(inputs, dtype=DOUBLE)
        hidden = torch.cat([eye, -eye], 1)
        out = torch.cat([torch.cat([matrix.mT, -matrix.mT]), torch.zeros(2 * inputs, len(scale), dtype=DOUBLE)], 1)
        bias = torch.cat([torch.full((outputs,), offset, dtype=DOUBLE), (scale - floor).expm1().log()])
        return hidden, torch.zeros(2 * inputs, dtype=DOUBLE), out, bias

    encoder = through(mean, stretch * variance.sqrt(), deep_weight_prior._ENCODER_FLOOR, shift)
    decoder = through(D, torch.full((1,), SPREAD, dtype=DOUBLE), deep_weight_prior._DECODER_FLOOR)
    return KernelPrior(*encoder, *decoder, torch.tensor(SIZE, dtype=DOUBLE))


def exact() -> Any:
    """The density of a kernel under the linear prior, over 25 numbers."""
    D = loadings()
    return dist.MultivariateNormal(
        torch.zeros(25, dtype=DOUBLE), SIZE**2 * (D @ D.mT + SPREAD**2 * torch.eye(25, dtype=DOUBLE))
    )


# ----------------------------------------------------------------------------------------------------------- density
def test_the_density_is_exact_where_the_encoder_is() -> None:
    own = linear()
    kernels = torch.cat([own.draw((5,)), torch.randn(3, 5, 5, dtype=DOUBLE)])
    torch.testing.assert_close(own.log_density(kernels, num_samples=1), exact().log_prob(kernels.flatten(1)))


def test_draws_have_the_covariance_of_the_decoder() -> None:
    draws = linear().draw((4, 20_000)).reshape(-1, 25)
    found, due = draws.mT @ draws / len(draws), exact().covariance_matrix
    assert float((found - due).norm() / due.norm()) < 0.03


def test_means_of_the_decoder_lack_its_noise() -> None:
    draws = linear().draw((80_000,), noise=False).reshape(-1, 25)
    due = SIZE**2 * loadings() @ loadings().mT
    assert float((draws.mT @ draws / len(draws) - due).norm() / due.norm()) < 0.03


def test_more_codes_tighten_the_bound_on_the_density_and_none_exceeds_it() -> None:
    own = linear(shift=0.4, stretch=1.5)
    kernels = own.draw((4_000,))
    due = exact().log_prob(kernels.flatten(1)).mean()
    means = torch.stack([own.log_density(kernels, num_samples=k).mean() for k in (1, 10, 200)])
    assert bool((means.diff() > 0.05).all())
    assert float(means[0]) < float(due) - 1
    assert -0.1 < float(means[-1] - due) < 0.01


# ------------------------------------------------------------------------------------------------------------- bound
def images(rows: int = 6) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, 1, 6, 6, generator=generator, dtype=DOUBLE)
    train = {"x": x, "y": torch.arange(rows) % 2, "index": torch.arange(rows)}
    return Dataset(name="drawn", task="classification", train=train, extra={"num_classes": 2, "image_shape": (1, 6, 6)})


HYPER = Hyper(channels=(3,), latent=LATENT, rescale=False)


def divergences(pair: Pair, prior: KernelPrior, loc: Tensor, scale: Tensor) -> Tensor:
    """The divergence of the kernels in the objective, ``NUM`` times."""
    hidden = ["b_0", "W_1", "b_1", "y"]
    rest = {"W_1": torch.zeros(3, 2, dtype=DOUBLE), "b_0": torch.zeros(3, dtype=DOUBLE)}
    rest["b_1"] = torch.zeros(2, dtype=DOUBLE)
    model = poutine.block(poutine.condition(pair.model, data=rest), hide=hidden)
    guide = poutine.block(pair.guide, hide=hidden)
    elbo = to_pyro(pair.objective)  # type: ignore[arg-type]
    with pyro.get_param_store().scope(), torch.no_grad():
        pyro.param("W_0_loc", loc)
        pyro.param("W_0_scale", scale)
        found = [elbo.loss(model, guide, images().train) for _ in range(NUM)]
        for name, value in prior._asdict().items():
            torch.testing.assert_close(pyro.param(f"W_0_prior_{name}").to(DOUBLE), value)
    return torch.tensor(found, dtype=DOUBLE)


def bound(prior: KernelPrior) -> tuple[float, float, float]:
    """The mean of the objective's divergence, its standard error, and the divergence itself."""
    generator = torch.Generator().manual_seed(1)
    loc = 0.5 * torch.randn(3, 1, 5, 5, generator=generator, dtype=DOUBLE)
    scale = 0.1 + 0.2 * torch.rand(3, 1, 5, 5, generator=generator, dtype=DOUBLE)
    wide = torch.distributions.MultivariateNormal(loc.reshape(3, 25), torch.diag_embed(scale.reshape(3, 25).square()))
    due = torch.distributions.kl_divergence(wide, exact()).sum()
    found = divergences(build(images(), HYPER, prior=(prior,)), prior, loc, scale)
    return float(found.mean()), float(found.std()) / NUM**0.5, float(due)


def test_the_bound_is_exact_at_the_exact_encoder_and_else_above() -> None:
    mean, error, due = bound(linear())
    assert abs(mean - due) < 4 * error
    for wrong in (linear(shift=0.5), linear(stretch=2.0)):
        mean, error, due = bound(wrong)
        assert mean > due + 4 * error


def test_an_analytic_divergence_of_kernels_given_codes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(self: KernelPrior, z: Tensor) -> Any:
        fn = decode(self, z)
        return dist.Normal(self.size * fn.base_dist.mean, self.size * fn.base_dist.stddev).to_event(2)

    decode = KernelPrior.decode
    monkeypatch.setattr(KernelPrior, "decode", plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean, error, due = bound(linear())
    assert abs(mean - due) > 10 * error


# --------------------------------------------------------------------------------------------------- what is learned
def test_a_prior_learns_the_density_of_kernels() -> None:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 5, dtype=DOUBLE)
    patterns = torch.stack([torch.ones(5, 5, dtype=DOUBLE), x.outer(x)]).flatten(1)  # the same in all orientations
    own = dist.MultivariateNormal(
        torch.zeros(25, dtype=DOUBLE), patterns.mT @ patterns + 0.5 * torch.eye(25, dtype=DOUBLE)
    )
    kernels, others = (own.sample((n,)).reshape(-1, 5, 5).float() for n in (300, 500))
    state, before = torch.get_rng_state(), dict(pyro.get_param_store().items())
    prior = learn_kernel_prior(kernels, latent=2, steps=800)
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store().items()) == before
    found = float(prior.log_density(others, num_samples=200).mean())
    due = float(own.log_prob(others.flatten(1).double()).mean())
    normal = float(dist.Normal(0.0, kernels.std(0)).log_prob(others).sum((1, 2)).mean())
    assert due - 0.5 * (due - normal) < found < due + 0.5


def test_kernels_close_to_zero_are_left_out() -> None:
    kernels = torch.randn(40, 5, 5)
    one = learn_kernel_prior(kernels, steps=3, width=8)
    other = learn_kernel_prior(torch.cat([kernels, 1e-3 * torch.randn(40, 5, 5)]), steps=3, width=8)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_smoothness() -> None:
    board = (torch.arange(5)[:, None] + torch.arange(5)) % 2 * 2.0 - 1
    assert smoothness(torch.ones(3, 5, 5)) == pytest.approx(1)
    assert smoothness(board) == pytest.approx(-1)
    assert abs(smoothness(torch.randn(2_000, 5, 5))) < 0.02


# ------------------------------------------------------------------------------------------------------------- cache
@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and sources that cost nothing and are counted."""
    monkeypatch.setattr(deep_weight_prior, "cache_folder", lambda: tmp_path)

    def kernels(source: Dataset, hyper: Hyper) -> tuple[Tensor, ...]:
        (tmp_path / f"trained-{len(list(tmp_path.glob('trained-*')))}").touch()
        generator = torch.Generator().manual_seed(hyper.source_seed)
        return tuple(torch.randn(30, 5, 5, generator=generator) for _ in hyper.channels)

    monkeypatch.setattr(deep_weight_prior, "source_kernels", kernels)
    return tmp_path


SMALL = Hyper(channels=(2, 3), width=8, prior_steps=5, source="digits")


def trainings(folder: Path) -> int:
    return len(list(folder.glob("trained-*")))


def learn(hyper: Hyper) -> tuple[KernelPrior, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return learn_prior(hyper)


def test_a_prior_is_learned_once_and_kept(folder: Path) -> None:
    with pytest.warns(UserWarning, match="learning the prior of kernels from 10 networks trained on digits"):
        first = learn_prior(SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = learn_prior(SMALL)
    assert trainings(folder) == 1
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))
    learn(dataclasses.replace(SMALL, source_seed=1))
    learn(dataclasses.replace(SMALL, source_classes=(0, 1, 2)))
    assert trainings(folder) == 3
    learn(dataclasses.replace(SMALL, temperature=0.1, prior_scale=2.0, start="he"))  # the target's matters alone
    assert trainings(folder) == 3
    assert not [p for p in folder.iterdir() if p.is_dir()]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_learned_again(folder: Path, damage: str) -> None:
    first = learn(SMALL)
    (path,) = folder.glob("*.safetensors")
    content = path.read_bytes()
    broken = {
        "cut": content[: len(content) // 2], "flipped": content[:-9] + bytes([content[-9] ^ 64]) + content[-8:],
        "empty": b"", "other": b"\x80 a pickle",
    }  # fmt: skip
    path.write_bytes(broken[damage])
    again = learn(SMALL)
    assert trainings(folder) == 2
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    learn(SMALL)
    assert trainings(folder) == 2  # the file is whole again


# -------------------------------------------------------------------------------------------------------------- fits
def test_a_fit_leaves_its_prior_as_it_was_and_is_read_without_the_sources(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hyper = dataclasses.replace(SMALL, channels=(2,))
    prior = learn(hyper)
    posterior = zoo.fit(METHOD, "digits", hyper=hyper, steps=10, weight_decay=0.1, compile=False)
    (found,) = learned_prior(posterior)
    assert all(torch.equal(a, b) for a, b in zip(prior[0].resized((2 / 25) ** 0.5), found, strict=True))
    posterior.save(tmp_path / "p")

    def never(*_: Any) -> None:
        raise AssertionError("reading a posterior needs no sources")

    monkeypatch.setattr(deep_weight_prior, "learn_prior", never)
    loaded = zoo.load(tmp_path / "p")
    assert torch.equal(loaded.predict(n=2).samples["y"], posterior.predict(n=2).samples["y"])
    assert summary(loaded) == summary(posterior)
    assert set(summary(loaded)) == {"W_0: nats per kernel", "W_0: smoothness", "W_0: smoothness of the prior"}
    assert float(loaded.params["W_0_prior_size"]) == pytest.approx((2 / 25) ** 0.5)
    (figure,) = figures(loaded)
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().subplots(figure.rows, figure.columns, squeeze=False)
    figure.paint(axes)
    assert [a.get_title() for a in axes[0]] == ["W_0: posterior means, large to small", "W_0: drawn from the prior"]


def test_a_plain_network_starts_from_the_prior(folder: Path) -> None:
    prior = learn(SMALL)
    init = initial_kernels(prior, SMALL, depth=1, seed=3)
    assert {k: tuple(v.shape) for k, v in init.items()} == {"W_0_loc": (2, 1, 5, 5), "W_1_loc": (3, 2, 5, 5)}
    assert torch.equal(init["W_1_loc"], initial_kernels(prior, SMALL, seed=3)["W_1_loc"])
    assert not torch.equal(init["W_1_loc"], initial_kernels(prior, SMALL, seed=4)["W_1_loc"])
    plain = map_network.Hyper(hidden=(), channels=(2, 3))
    fit = zoo.fit(
        "map_network", "mnist", hyper=plain, init=init, steps=1, learning_rate=1e-9, batch_size=8, compile=False
    )
    torch.testing.assert_close(fit.params["W_1_loc"], init["W_1_loc"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("start", ["prior", "he"])
def test_posterior_means_start_where_asked(folder: Path, start: Any) -> None:
    hyper = dataclasses.replace(SMALL, channels=(400,), start=start, rescale=False)
    prior = learn(hyper)[0]._replace(size=torch.tensor(10.0))
    pair = build(zoo.datasets.load("digits"), hyper, prior=(prior,))
    with pyro.get_param_store().scope():
        pair.guide({"x": torch.zeros(1, 8, 8), "index": torch.zeros(1).long()})  # type: ignore[misc]
        spread = float(pyro.param("W_0_loc").detach().std())
    due = float(prior.draw((2_000,), noise=False).std()) if start == "prior" else (2 / 25) ** 0.5
    assert spread == pytest.approx(due, rel=0.1)


def test_sources_are_networks_of_the_same_shape() -> None:
    hyper = Hyper(channels=(2,), num_sources=2, source_steps=3)
    kernels = source_kernels(zoo.datasets.load("digits"), hyper)
    assert [tuple(k.shape) for k in kernels] == [(4, 5, 5)]
    again = source_kernels(zoo.datasets.load("digits"), dataclasses.replace(hyper, source_seed=1, num_sources=1))
    assert torch.equal(kernels[0][2:], again[0])


# -------------------------------------------------------------------------------------------------------------- rest
def test_classes_are_selected_and_numbered_anew() -> None:
    digits = zoo.datasets.load("digits")
    part = select_classes(digits, (7, 2))
    assert part.extra["num_classes"] == 2
    assert part.name == "digits_7_2"
    for split in ("train", "validation", "test"):
        whole, own = digits.split(split), part.split(split)
        rows = torch.isin(whole["y"], torch.tensor([7, 2]))
        assert torch.equal(own["x"], whole["x"][rows])
        assert torch.equal(own["y"], (whole["y"][rows] == 2).long())
        assert torch.equal(own["index"], torch.arange(len(own["y"])))
    for wrong in ((3,), (1, 1), (0, 10)):
        with pytest.raises(DataError, match="two or more different ones of 0 to 9 are due"):
            select_classes(digits, wrong)


@pytest.mark.filterwarnings("ignore:learning the prior")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ()}, "give a layer some filters"),
        ({"num_sources": 0}, "num_sources is 0; allowed: 1 or more"),
        ({"latent": 0}, "latent is 0"),
        ({"source_scale": 0.0}, "source_scale is 0; it must be positive"),
        ({"source_seed": -1}, "source_seed is -1"),
        ({"source": "diabetes"}, "source data 'diabetes' have no classes"),
        ({"source": "wine"}, "holds no images"),
        ({"channels": (4, 4)}, "too small for 2 convolutional layers"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    hyper = dataclasses.replace(Hyper(channels=(2,), num_sources=1, source_steps=1), **change)
    with pytest.raises(DataError, match=message):
        build(zoo.datasets.load("digits"), hyper)


def test_bad_kernels_are_refused() -> None:
    with pytest.raises(DataError, match=r"kernels are \(3, 4, 4\)"):
        learn_kernel_prior(torch.ones(3, 4, 4))
    with pytest.raises(DataError, match="or not finite"):
        learn_kernel_prior(torch.full((3, 5, 5), torch.nan))
    with pytest.raises(DataError, match="0 of 5 kernels are not close to zero"):
        learn_kernel_prior(torch.zeros(5, 5, 5))
    with pytest.raises(DataError, match="prior holds 2 layers"):
        build(images(), HYPER, prior=(linear(), linear()))


@pytest.mark.parametrize("claim", METHOD.claims, ids=lambda claim: claim.statement[:40])
def test_claims_are_measured(claim: Claim) -> None:
    values = claim.measure(0, True)
    assert all({a.key, a.below or a.above or a.key} <= set(values) for a in claim.acceptance)
    assert all(v == v for v in values.values())
