"""The fair autoencoder: discrepancy against the exact kernel, the objective against a hand sum, what it purges."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import zoo
from zoo.diagnostics.fairness import audit
from zoo.errors import DataError
from zoo.inference.objectives import to_pyro
from zoo.inference.program import pyro_world
from zoo.inference.svi import Trainer
from zoo.models.variational_fair_autoencoder import METHOD, Hyper, RandomFeatures, build, discrepancy, represent
from zoo.types import Column, Dataset, Elbo

SMALL = Hyper(num_z1=3, num_z2=2, hidden=(7,), alpha=2.0, beta=5.0, num_features=40)


def made(rows: int = 12, *, unknown: bool = False, dtype: torch.dtype = torch.float64) -> Dataset:
    """Two numbers and an indicator, three classes, two groups."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64).to(dtype)
    columns = (
        Column(name="a"),
        Column(name="job=b", mean=0.4, scale=0.5, categories=("a", "b"), source="job"),
        Column(name="c"),
    )
    x[:, 1] = (torch.arange(rows) % 2 - 0.4) / 0.5
    batch = {"x": x, "y": torch.arange(rows) % 3, "s": torch.arange(rows) // 2 % 2, "index": torch.arange(rows)}
    if unknown:
        batch["y_missing"] = torch.arange(rows) % 4 == 1
        batch["y"] = batch["y"] * ~batch["y_missing"]
    extra = {"num_classes": 3, "num_groups": 2}
    return Dataset(name="drawn", task="fair_representation", train=batch, columns=columns, extra=extra)


# ----------------------------------------------------------------------------------------------------- discrepancy
def kernel(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    return torch.exp(-torch.cdist(a, b).square() / gamma)


def test_random_features_are_those_of_the_kernel() -> None:
    z = torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    s = (torch.arange(60) < 20).long()
    z = z + 0.7 * s[:, None]
    psi = RandomFeatures.drawn(4, 40_000, gamma=3.0)(z)
    assert float((psi @ psi.mT - kernel(z, z, 3.0)).abs().max()) < 5 / 40_000**0.5
    a, b = z[s == 0], z[s == 1]
    exact = kernel(a, a, 3.0).mean() + kernel(b, b, 3.0).mean() - 2 * kernel(a, b, 3.0).mean()
    assert float(discrepancy(psi, s, 2)) == pytest.approx(float(exact), abs=4 / 40_000**0.5)
    wrong = kernel(a, a, 1.0).mean() + kernel(b, b, 1.0).mean() - 2 * kernel(a, b, 1.0).mean()
    assert abs(float(wrong - exact)) > 8 / 40_000**0.5  # another width would be seen


def test_groups_that_are_alike_are_not_apart() -> None:
    half = torch.randn(10, 6)
    assert float(discrepancy(torch.cat([half, half]), torch.arange(20) // 10, 2)) < 1e-12
    assert float(discrepancy(torch.cat([half, half + 1]), torch.arange(20) // 10, 2)) == pytest.approx(6.0, rel=1e-4)


def test_several_groups_are_taken_each_against_the_rest() -> None:
    psi, s = torch.randn(9, 5, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    by_hand = sum((psi[s == k].mean(0) - psi[s != k].mean(0)).square().sum() for k in range(3))
    assert torch.allclose(discrepancy(psi, s, 3), torch.as_tensor(by_hand))
    assert torch.allclose(discrepancy(psi, s, 4), torch.as_tensor(by_hand))  # a fourth one is not in this batch
    assert float(discrepancy(psi, torch.zeros(9, dtype=torch.int64), 2)) == 0.0


# ------------------------------------------------------------------------------------------------------- objective
def loss_and_params(data: Dataset, hyper: Hyper, rows: Tensor, seed: int = 3) -> tuple[float, dict[str, Tensor]]:
    batch = {k: v[rows] for k, v in data.train.items()}
    with pyro_world(dtype=torch.float64), pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        pair = build(data, hyper)
        to_pyro(pair.objective).loss(pair.model, pair.guide, batch)
        for name in pyro.get_param_store():  # parameters that begin at zero or one would hide mistakes
            with torch.no_grad():
                leaf = pyro.get_param_store()._params[name]
                leaf += 0.2 * torch.randn_like(leaf)
        torch.manual_seed(seed)
        loss = to_pyro(pair.objective).loss(pair.model, pair.guide, batch)
        return loss, {k: v.detach().clone() for k, v in pyro.get_param_store().items()}


def by_hand(data: Dataset, hyper: Hyper, rows: Tensor, p: dict[str, Tensor], seed: int = 3) -> float:
    """Return the negative objective, class by class, with the noise of the same seed."""
    batch = {k: v[rows] for k, v in data.train.items()}
    x, y, s = batch["x"], batch["y"], torch.nn.functional.one_hot(batch["s"], 2).double()
    unknown = batch.get("y_missing")

    def net(name: str, *inputs: Tensor) -> Tensor:
        h = torch.cat(inputs, -1) @ p[f"{name}_0_weight"] + p[f"{name}_0_bias"]
        return h.relu() @ p[f"{name}_1_weight"] + p[f"{name}_1_bias"]

    def normal(name: str, *inputs: Tensor, least: float = 1e-4) -> Any:
        loc, raw = net(name, *inputs).chunk(2, -1)
        return dist.Normal(loc, torch.nn.functional.softplus(raw) + least).to_event(1)

    raw = torch.stack([x[:, 0], 0.5 * x[:, 1] + 0.4, x[:, 2]], 1)
    num = len(x)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        q1 = normal("q_z1", raw, s)
        z1 = q1.base_dist.loc + q1.base_dist.scale * torch.randn(num, hyper.num_z1, dtype=torch.float64)
        shape = (num, hyper.num_z2) if unknown is None else (3, num, hyper.num_z2)
        noise = torch.randn(shape, dtype=torch.float64)
    logits = z1 @ p["q_y_0_weight"] + p["q_y_0_bias"]
    log_q = logits.log_softmax(-1)
    out = net("p_x", z1, s)
    total = -q1.log_prob(z1)
    total = total + dist.Normal(out[:, [0, 2]], p["x_scale"]).log_prob(raw[:, [0, 2]]).sum(-1)
    total = total + dist.Bernoulli(logits=out[:, 1]).log_prob(raw[:, 1].round())

    def rest(code: Tensor, eps: Tensor) -> Tensor:
        one = torch.nn.functional.one_hot(code, 3).double()
        q2 = normal("q_z2", z1, one)
        z2 = q2.base_dist.loc + q2.base_dist.scale * eps
        prior = dist.Normal(torch.zeros_like(z2), 1.0).to_event(1)
        # One more least scale: that of the part, and that of the method.
        return normal("p_z1", z2, one, least=0.1 + 1e-4).log_prob(z1) + prior.log_prob(z2) - q2.log_prob(z2)

    known = torch.ones(num, dtype=torch.bool) if unknown is None else ~unknown
    if unknown is None:
        total = total + rest(y, noise)
    else:
        of_class = torch.stack([rest(torch.full_like(y, c), noise[c]) for c in range(3)], -1)
        summed = (log_q.exp() * (of_class - torch.log(torch.tensor(3.0).double()) - log_q)).sum(-1)
        mean = torch.stack([rest(y, noise[c]) for c in range(3)]).mean(0)  # three draws of z2 in place of one
        total = total + torch.where(known, mean, summed)
    total = total + hyper.alpha * torch.where(known, log_q[torch.arange(num), y], 0.0)
    psi = RandomFeatures.drawn(hyper.num_z1, hyper.num_features, gamma=hyper.gamma or hyper.num_z1 / 2)
    psi = dataclasses.replace(psi, W=psi.W.double(), b=psi.b.double())
    penalty = hyper.beta * discrepancy(psi(z1), batch["s"], 2)
    return float(-data.num_data * (total.mean() - penalty))


@pytest.mark.parametrize("unknown", [False, True], ids=["known", "some unknown"])
def test_objective_is_the_sum_by_hand(unknown: bool) -> None:
    data, rows = made(unknown=unknown), torch.arange(2, 10)
    with pyro_world(dtype=torch.float64):
        loss, params = loss_and_params(data, SMALL, rows)
        assert loss == pytest.approx(by_hand(data, SMALL, rows, params), rel=1e-10)
        for wrong in (dataclasses.replace(SMALL, alpha=1.0), dataclasses.replace(SMALL, beta=0.0)):
            assert abs(loss / by_hand(data, wrong, rows, params) - 1) > 1e-4
    assert isinstance(build(data, SMALL).objective, Elbo)
    assert build(data, SMALL).objective.estimator == ("enum" if unknown else "trace")  # type: ignore[union-attr]


@pytest.mark.xdist_group("variational_fair_autoencoder")
def test_the_sum_over_unknown_classes_is_compiled() -> None:
    data = made(64, unknown=True, dtype=torch.float32)
    recipe = dataclasses.replace(METHOD.recipe, steps=20, batch_size=16)
    losses = []
    for compiled in (True, False):
        trainer = Trainer(build(data, SMALL), data.train, recipe=recipe, compile=compiled)
        assert trainer.program.compiled == compiled, trainer.program.reason
        losses.append(trainer.run(10))
    assert torch.allclose(losses[0], losses[1], rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ fits
@cache
def leaky(rows: int = 900) -> Dataset:
    """Data whose features tell class and group, of which four rows in five agree."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        s = torch.randint(2, (rows,), generator=generator)
        y = torch.where(torch.rand(rows, generator=generator) < 0.8, s, 1 - s)
        centre = torch.stack([2 * y - 1, 2 * s - 1, s - y, 1 - s], 1)
        x = centre + 0.6 * torch.randn(rows, 4, generator=generator)
        batches.append({"x": x, "y": y, "s": s, "index": torch.arange(rows)})
    extra = {"num_classes": 2, "num_groups": 2}
    train, validation, test = batches
    return Dataset(name="d", task="fair_representation", train=train, validation=validation, test=test, extra=extra)


@cache
def fitted(beta: float) -> zoo.Posterior:
    hyper = Hyper(num_z1=2, num_z2=2, hidden=(20,), beta=beta, alpha=10.0, num_features=100)
    options: dict[str, Any] = {"steps": 250, "batch_size": 128, "learning_rate": 1e-2}
    return zoo.fit(METHOD, leaky(), hyper=hyper, compile=False, **options)


def test_the_penalty_purges_and_its_absence_is_seen() -> None:
    fair = audit(lambda batch: represent(fitted(300.0), batch), leaky(), forest=False)
    free = audit(lambda batch: represent(fitted(0.0), batch), leaky(), forest=False)
    raw = audit(lambda batch: batch["x"], leaky(), forest=False)
    assert raw["linear s auroc"] > 0.95
    assert fair["linear s auroc"] < 0.6
    assert free["linear s auroc"] > 0.7  # the class itself tells the group
    assert fair["parity gap"] < free["parity gap"] - 0.2


def test_the_representation_is_of_the_row_and_ignores_the_target() -> None:
    posterior, batch = fitted(300.0), dict(leaky().split("test"))
    mean = represent(posterior, batch, mean=True)
    assert mean.shape == (900, 2)
    without = {k: v for k, v in batch.items() if k != "y"}
    assert torch.equal(mean, represent(posterior, without, mean=True))
    draws = posterior.draws(400, batch=batch)["z1"]
    own = torch.stack([represent(posterior, batch, seed=seed) for seed in range(400)])
    assert not torch.equal(own[0], own[1])
    assert torch.equal(own[1], represent(posterior, without, seed=1))
    spread = draws.std(0)
    assert float(((draws.mean(0) - mean) / spread).abs().max()) < 6 / 400**0.5
    assert float(((own.mean(0) - mean) / spread).abs().max()) < 6 / 400**0.5
    assert float((own.std(0) / spread).log().abs().max()) < 0.3
    other = represent(posterior, {**batch, "s": 1 - batch["s"]}, mean=True)
    assert not torch.allclose(mean, other, atol=0.1)  # the encoder is told the group
    assert zoo.tasks.get("fair_representation").score(posterior.predict(without, 20), batch, leaky())["accuracy"] > 0.6


def test_rows_without_a_class_are_learnt_from() -> None:
    data = leaky()
    gone = torch.rand(900, generator=torch.Generator().manual_seed(1)) < 0.95
    some = dataclasses.replace(data, train=data.train | {"y_missing": gone, "y": data.train["y"] * ~gone})
    hyper = Hyper(num_z1=2, num_z2=2, hidden=(20,), beta=0.0)
    posterior = zoo.fit(METHOD, some, hyper=hyper, steps=150, batch_size=128, learning_rate=1e-2, compile=False)
    assert set(posterior.draws(2)) == {"z1", "z2", "y_missing"}
    prediction = posterior.predict(data.test, 20)
    assert zoo.tasks.get("fair_representation").score(prediction, data.split("test"), data)["accuracy"] > 0.8


# ---------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("hyper", "error"),
    [
        (Hyper(num_z1=0), "every size must be at least 1"),
        (Hyper(hidden=(5, 0)), "every size must be at least 1"),
        (Hyper(alpha=-1.0), "alpha is -1.0; allowed: a weight of 0 or more"),
        (Hyper(beta=float("nan")), "beta is nan"),
        (Hyper(gamma=0.0), "gamma is 0.0; allowed: a positive width"),
    ],
)
def test_bad_hyper_parameters_are_refused(hyper: Hyper, error: str) -> None:
    with pytest.raises(DataError, match=error):
        build(made(), hyper)


def test_other_data_are_refused() -> None:
    with pytest.raises(DataError, match="no extra\\['num_groups'\\]; a fair representation needs"):
        build(zoo.datasets.load("iris"), Hyper())
    whole = made()
    gaps = dataclasses.replace(whole, train=whole.train | {"x_missing": torch.zeros(12, 3, dtype=torch.bool)})
    with pytest.raises(DataError, match="does not impute"):
        build(gaps, Hyper())
