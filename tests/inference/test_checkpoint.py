"""A fit that was interrupted anywhere ends as it would have; checkpoints say what they are of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import nn

import zoo
from zoo.errors import ArtifactError, DataError
from zoo.inference import nuts, runner
from zoo.inference.checkpoint import Chains, read
from zoo.outputs import BEST, STATE_MARK
from zoo.types import Alternating, Elbo, Loss, Pair

pytestmark = pytest.mark.xdist_group("checkpoint")
Y = torch.tensor([1.0, 2.0, 3.0, 2.5, 0.5, 4.0, 1.5])
BATCH = {"y": Y, "index": torch.arange(7)}
SCHEDULES = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup": 0.1,
    "kl_warmup": 0.3,
    "clip_norm": 3.0,
    "weight_decay": 1e-3,
}


class Stop(Exception):
    pass


def model(batch):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("datum", 7, subsample=batch["index"]):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=batch.get("y"))


def guide(batch):
    loc = pyro.param("mu_loc", lambda: torch.tensor(0.0))
    scale = pyro.param("mu_scale", lambda: torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def alternating() -> Pair:
    """A mean that an ELBO trains, and a scale that another loss trains, twice a step."""

    def second(model: Any, guide: Any, batch: Any) -> torch.Tensor:
        noise = torch.randn(())  # of the fit's stream
        return (pyro.param("mu_scale") - 0.3 - 0.1 * noise).square()

    losses = (
        Loss(name="elbo", function=Elbo(), trains="mu_loc"),
        Loss(name="second", function=second, trains="mu_scale", steps=2),
    )
    return Pair(model, guide, Alternating(losses))


def normalised() -> Pair:
    """A network with batch statistics, which are part of the state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def own(batch):
        pyro.module("net", net)
        mean = net(batch["y"][:, None])[:, 0]
        with pyro.plate("datum", 7, subsample=batch["index"]):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=batch.get("y"))

    return Pair(own, lambda batch: None)


def cut_at(step: int) -> Callable[[Any], None]:
    def stop(event: Any) -> None:
        if event.stage == "fitting" and event.done >= step:
            raise Stop

    return stop


def equal(a: zoo.Posterior, b: zoo.Posterior) -> bool:
    same = a.history.keys() == b.history.keys() and all(torch.equal(a.history[k], b.history[k]) for k in a.history)
    same &= a.params.keys() == b.params.keys() and all(torch.equal(a.params[k], b.params[k]) for k in a.params)
    same &= all(torch.equal(x, y) for x, y in zip(a._buffers, b._buffers, strict=True))
    return same and all(equal(x, y) for x, y in zip(a.restarts, b.restarts, strict=True))


MODES = {
    "full": (lambda: Pair(model, guide), {}),
    "mini-batch": (lambda: Pair(model, guide), {"batch_size": 3}),
    "schedules": (lambda: Pair(model, guide), {"batch_size": 3, **SCHEDULES}),
    "momentum": (lambda: Pair(model, guide), {"optimizer": "sgd", "schedule": "linear"}),
    "float64": (lambda: Pair(model, guide), {"dtype": "float64"}),
    "particles": (lambda: Pair(model, guide), {"num_particles": 3}),
    "alternating": (alternating, {"batch_size": 3}),
    "batch statistics": (normalised, {"batch_size": 3}),
    "restarts": (lambda: Pair(model, guide), {"restarts": 2, "batch_size": 3}),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_fit_ends_as_it_would_have(tmp_path: Path, mode: str, compiled: bool) -> None:
    build, more = MODES[mode]
    options: dict[str, Any] = {"steps": 60, "seed": 4, "compile": compiled, **more}
    whole = zoo.fit(build(), BATCH, **options)
    assert whole.info["compiled"] == compiled, whole.info["reason"]
    options |= {"checkpoint": tmp_path / "cut", "checkpoint_every": 20}
    with pytest.raises(Stop):
        zoo.fit(build(), BATCH, progress=cut_at(50), **options)
    restored = []
    resumed = zoo.fit(build(), BATCH, resume=True, progress=lambda e: restored.append(e.done), **options)
    assert next(n for n in restored if n) > 40, "it began anew"
    assert equal(whole, resumed)
    again = zoo.fit(build(), BATCH, resume=True, **options)  # with nothing left to do
    assert equal(whole, again)
    assert not equal(whole, zoo.fit(build(), BATCH, **(options | {"checkpoint": None, "seed": 8})))


def test_a_restart_that_has_not_begun_begins(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 60, "compile": False, "restarts": 3}
    whole = zoo.fit(Pair(model, guide), BATCH, **options)
    options |= {"checkpoint": tmp_path, "checkpoint_every": 20}
    with pytest.raises(Stop):
        zoo.fit(Pair(model, guide), BATCH, progress=cut_at(1), **options)

    def second(event: Any) -> None:
        if event.message.startswith("restart 2") and event.done >= 50:
            raise Stop

    with pytest.raises(DataError, match="there is no checkpoint"):
        zoo.fit(Pair(model, guide), BATCH, resume=True, **options)
    with pytest.raises(Stop):
        zoo.fit(Pair(model, guide), BATCH, progress=second, **options)
    assert equal(whole, zoo.fit(Pair(model, guide), BATCH, resume=True, **options))


def test_early_stopping_stops_a_resumed_fit_at_the_same_step(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 20_000, "learning_rate": 0.1, "early_stopping": True, "compile": False}
    whole = zoo.fit(Pair(model, guide), BATCH, **options)
    end = whole.info["steps"]
    assert end < 20_000
    options |= {"checkpoint": tmp_path / "cut", "checkpoint_every": 500}
    with pytest.raises(Stop):
        zoo.fit(Pair(model, guide), BATCH, progress=cut_at(end - 200), **options)
    assert equal(whole, zoo.fit(Pair(model, guide), BATCH, resume=True, **options))
    # The newest checkpoint is of the step at which it stopped: a fit that is killed right after it stops there too.
    assert end % 500 == 0
    assert equal(whole, zoo.fit(Pair(model, guide), BATCH, resume=True, **options))


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 100, "learning_rate": 0.3, "compile": False, "checkpoint": tmp_path}
    fitted = zoo.fit(Pair(model, guide), BATCH, checkpoint_every=10, checkpoint_keep=3, **options)
    newest = [f"checkpoint-{n:09d}.safetensors" for n in (80, 90, 100)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [BEST, *newest]
    about, tensors = read(tmp_path / BEST, STATE_MARK)
    means = fitted.losses.double().view(10, 10).mean(1)
    assert about["step"] == 10 * (1 + int(means.argmin()))
    assert about["loss"] == pytest.approx(float(means.min()))
    assert int(tensors["step"]) == about["step"]
    assert set(about["surroundings"]) == {"versions", "machine", "threads", "device", "mode", "ranks"}
    assert set(about["surroundings"]["versions"]) >= {"pyro-zoo", "torch", "pyro-ppl", "numpy", "python"}


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "renamed"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"steps": 60, "compile": False}
    whole = zoo.fit(Pair(model, guide), BATCH, **options)
    options |= {"checkpoint": tmp_path, "checkpoint_every": 20}
    with pytest.raises(Stop):
        zoo.fit(Pair(model, guide), BATCH, progress=cut_at(50), **options)
    newest = tmp_path / "checkpoint-000000040.safetensors"
    raw = newest.read_bytes()
    flipped = raw[:-9] + bytes([raw[-9] ^ 4]) + raw[-8:]
    damaged = {"truncated": raw[:-10], "flipped": flipped, "empty": b"", "renamed": raw.replace(b"theta", b"thets")}
    newest.write_bytes(damaged[kind])
    with pytest.warns(RuntimeWarning, match="checkpoint-000000020"):
        resumed = zoo.fit(Pair(model, guide), BATCH, resume=True, **options)
    assert equal(whole, resumed)
    for path in tmp_path.glob("checkpoint-*"):
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="truncated or not a safetensors file"):
        zoo.fit(Pair(model, guide), BATCH, resume=True, **options)


OTHER = [
    ({"seed": 5}, "seed 0; this fit has 5"),
    ({"learning_rate": 0.5}, r"recipe\.learning_rate 0\.01; this fit has 0\.5"),
    ({"num_particles": 2}, "objective"),
    ({"dtype": "float64"}, 'dtype "float32"; this fit has "float64"'),
    ({"early_stopping": True}, "early_stopping false; this fit has true"),
    ({"hyper": {"centred": True}}, r"hyper\.centred false; this fit has true"),
]


def test_a_checkpoint_of_another_fit_is_refused_with_the_difference(tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": "svi", "steps": 20, "compile": False, "checkpoint": tmp_path}
    fitted = zoo.fit("eight_schools", **options)
    initial = {"init": dict(list(fitted.params.items())[:1])}
    for change, text in (*OTHER, (initial, "init")):
        with pytest.raises(ArtifactError, match=text):
            zoo.fit("eight_schools", resume=True, **(options | change))
    data = zoo.datasets.load("eight_schools")
    train = dict(data.train) | {"y": data.train["y"] + 1e-3}
    other = zoo.Dataset(name=data.name, task=data.task, train=train, dims=data.dims, coords=data.coords)
    with pytest.raises(ArtifactError, match="data "):
        zoo.fit("eight_schools", other, resume=True, **options)
    with pytest.raises(ArtifactError, match='name "eight_schools"; this fit has "pair"'):
        zoo.fit(Pair(model, guide), BATCH, resume=True, **(options | {"engine": None}))
    with pytest.raises(DataError, match="go on with resume=True"):
        zoo.fit("eight_schools", **options)


def test_other_surroundings_are_named_and_the_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"steps": 40, "compile": False, "checkpoint": tmp_path, "checkpoint_every": 20}
    with pytest.raises(Stop):
        zoo.fit(Pair(model, guide), BATCH, progress=cut_at(30), **options)
    monkeypatch.setattr(runner, "versions", lambda: {"torch": "1.0"})
    with pytest.warns(RuntimeWarning, match=r'versions\.torch .*; this fit has "1\.0"; the fit goes on, but not bit'):
        assert len(zoo.fit(Pair(model, guide), BATCH, resume=True, **options).losses) == 40


def schools(**options: Any) -> zoo.Posterior:
    return zoo.fit("eight_schools", engine="nuts", chains=3, draws=30, tune=30, seed=3, **options)


@pytest.mark.parametrize("more", [{}, {"compile": False}, {"sampler": "pyro"}], ids=["library", "processes", "pyro"])
def test_finished_chains_are_kept_and_a_cut_one_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    # One core runs eager chains in this process, two run them in processes; the draws are the same.
    monkeypatch.setattr(nuts, "_cores", lambda: 1)
    whole = schools(**more)
    save, saved = Chains.save, []

    def stop(self: Chains, chain: int, arrays: Any) -> None:
        if len(saved) == 1:
            raise Stop
        save(self, chain, arrays)
        saved.append(chain)

    with monkeypatch.context() as patch:
        patch.setattr(Chains, "save", stop)
        with pytest.raises(Stop):
            schools(checkpoint=tmp_path, **more)
    drawn = []

    def count(self: Chains, chain: int, arrays: Any) -> None:
        drawn.append(chain)
        save(self, chain, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Chains, "save", count)
        patch.setattr(nuts, "_cores", lambda: 2)
        resumed = schools(checkpoint=tmp_path, resume=True, **more)
    assert sorted(drawn) == [k for k in range(3) if k not in saved]
    for name in whole.chains:
        assert torch.equal(whole.chains[name], resumed.chains[name])
    for name in whole.sample_stats:
        assert whole.sample_stats[name].dtype == resumed.sample_stats[name].dtype
        assert torch.equal(whole.sample_stats[name], resumed.sample_stats[name])
    with pytest.raises(ArtifactError, match=r"target_accept none; this fit has 0\.95"):
        schools(checkpoint=tmp_path, resume=True, target_accept=0.95, **more)


def test_a_damaged_chain_is_drawn_again(tmp_path: Path) -> None:
    whole = schools(checkpoint=tmp_path)
    path = tmp_path / "chain-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.warns(RuntimeWarning, match="the chain is drawn again"):
        resumed = schools(checkpoint=tmp_path, resume=True)
    assert all(torch.equal(whole.chains[n], resumed.chains[n]) for n in whole.chains)
