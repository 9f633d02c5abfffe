"""When chains of NUTS are drawn again: for places without mass, steps that are too large, ridges; not for modes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from zoo.diagnostics import inference
from zoo.inference import nuts
from zoo.inference.checkpoint import Chains
from zoo.inference.tries import ACCEPT, RESTARTS, History, away, ridge, sentences, stubborn


def normal(rng, loc, scale, level=0.0, size=3, draws=400):
    """A chain of independent draws from a mode: its mass is exp(level)."""
    z = rng.standard_normal((draws, size))
    log_density = level - 0.5 * (z**2).sum(1) - size * math.log(scale * math.sqrt(2 * math.pi))
    return {"flat": loc + scale * z, "lp": log_density}


@pytest.mark.parametrize("count", [2, 4])
def test_a_chain_without_mass_is_away(count):
    rng = np.random.default_rng(0)
    chains = [normal(rng, 0.0, 1.0) for _ in range(count)]
    assert away(chains) is None
    chains[1] = normal(rng, 9.0, 1.0, level=-40.0)
    chain, why = away(chains)
    assert chain == 1
    assert why["cause"] == "apart"
    assert why["less_mass_by_nats"] == pytest.approx(40, abs=1)


def test_modes_of_comparable_mass_stay_whatever_their_density():
    rng = np.random.default_rng(1)
    wide, narrow = normal(rng, 0.0, 3.0), normal(rng, 30.0, 0.001)  # 24 nats of density apart, masses equal
    assert away([wide, wide, narrow, wide]) is None
    assert away([narrow, narrow, wide, narrow]) is None
    assert away([wide, normal(rng, 30.0, 3.0, level=-4.0)]) is None
    # One of much less mass, but of higher density, is no place where a chain is lost.
    assert away([wide, normal(rng, 30.0, 0.5, level=-4.0)]) is None


def test_a_chain_that_does_not_move_is_away():
    rng = np.random.default_rng(3)
    chains = [normal(rng, 0.0, 1.0) for _ in range(4)]
    chains[2] = {"flat": np.ones((400, 3)), "lp": np.full(400, -3.0)}
    assert away(chains)[0] == 2
    assert away(chains)[1]["cause"] == "still"
    chains[2] = {"flat": 1 + 1e-7 * rng.standard_normal((400, 3)), "lp": np.full(400, -3.0)}
    assert away(chains)[1]["cause"] == "still"


def test_nothing_is_said_from_one_chain_or_few_draws():
    rng = np.random.default_rng(4)
    assert away([normal(rng, 0.0, 1.0)]) is None
    far = [normal(rng, 0.0, 1.0, draws=50), normal(rng, 9.0, 1.0, level=-40.0, draws=50)]
    assert away(far) is None
    assert ridge(far) is None


def slow(rng, root, memory, count=4, draws=1000):
    """Chains that move slowly in every coordinate of a transformed space."""
    found = []
    for _ in range(count):
        noise, z = rng.standard_normal((draws, len(root))), np.zeros((draws, len(root)))
        for t in range(1, draws):
            z[t] = memory * z[t - 1] + math.sqrt(1 - memory**2) * noise[t]
        found.append({"flat": z @ root.T, "lp": -0.5 * (z**2).sum(1)})
    return found


def test_a_ridge_is_slow_and_correlated():
    root = np.array([[1.0, 0.0], [1.0, 0.02]])
    why = ridge(slow(np.random.default_rng(5), root, 0.95))
    assert why["cause"] == "ridge"
    assert why["condition"] > 100
    assert 1.01 < why["r_hat"] < 1.1
    assert ridge(slow(np.random.default_rng(5), np.eye(2), 0.95)) is None  # slow for another reason
    assert ridge(slow(np.random.default_rng(5), root, 0.0)) is None  # not slow
    apart = slow(np.random.default_rng(5), root, 0.0)
    apart[0]["flat"] = apart[0]["flat"] + 5
    assert ridge(apart) is None  # modes


def test_records_are_counted_from_the_last_start():
    history = History()
    for cause in ("divergences", "divergences", "apart", "divergences"):
        history.add(2, {"cause": cause})
    history.add(0, {"cause": "divergences"})
    assert (history.rung(2), history.restarts(2), history.rung(0), history.rung(1)) == (1, 1, 1, 0)
    assert [w["chain"] for w in history.all()] == [0, 2, 2, 2, 2]
    assert stubborn(history.all()) == set()
    history.add(0, {"cause": "divergences"})
    assert stubborn(history.all()) == {0}
    assert sentences(history.all())[0] == (
        "drawn again with smaller steps, since it diverged: chain 0 (2 times), chain 2 (3 times)"
    )
    history.turn({"cause": "ridge", "r_hat": 1.02, "condition": 1e4})
    assert stubborn(history.all()) == set()
    assert "R-hat was 1.020" in sentences(history.all())[-1]


# --------------------------------------------------------------------------------------------------- in the sampler
def wells(level):
    """Two narrow modes, of masses 1 and exp(level); two chains in five start in the basin of the second."""

    def model(batch):
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 100.0))
        left, right = -200.0 * (x + 1.0) ** 2, level - 200.0 * (x - 1.8) ** 2
        pyro.factor("wells", torch.logaddexp(left, right))

    return model


FEW = {"chains": 4, "warmup": 150, "draws": 150, "compile": False, "workers": 1}


def test_a_lost_chain_is_begun_elsewhere():
    found = nuts.sample(wells(-40.0), {}, seed=0, **FEW)
    moved = {w["chain"] for w in found.info["tries"]}
    assert moved
    assert {w["cause"] for w in found.info["tries"]} == {"apart"}
    assert bool((found.chains["x"] < 0).all())
    kept = nuts.sample(wells(-40.0), {}, seed=0, retry=False, **FEW)
    assert kept.info["tries"] == []
    lost = {k for k in range(4) if kept.chains["x"][k].mean() > 0}
    assert lost == moved
    for k in set(range(4)) - lost:
        assert torch.equal(kept.chains["x"][k], found.chains["x"][k])


def test_two_modes_stay_two_modes():
    found = nuts.sample(wells(0.0), {}, seed=1, **FEW)
    assert found.info["tries"] == []
    assert 0 < sum(float(c.mean()) > 0 for c in found.chains["x"]) < 4


def test_starts_elsewhere_have_an_end(monkeypatch):
    monkeypatch.setattr(nuts, "away", lambda found: (1, {"cause": "apart"}))
    found = nuts.sample(wells(0.0), {}, seed=1, **FEW)
    assert len(found.info["tries"]) == RESTARTS


def test_all_are_drawn_again_once_with_the_other_metric(monkeypatch):
    monkeypatch.setattr(nuts, "ridge", lambda found: {"cause": "ridge", "r_hat": 1.02, "condition": 500.0})
    found = nuts.sample(wells(0.0), {}, seed=1, **FEW)
    assert found.info["metric"] == "low rank"
    assert [w["cause"] for w in found.info["tries"]] == ["ridge"]
    asked = nuts.sample(wells(0.0), {}, seed=1, low_rank_mass_matrix=True, **FEW)
    assert torch.equal(found.chains["x"], asked.chains["x"])
    assert nuts.sample(wells(0.0), {}, seed=1, low_rank_mass_matrix=False, **FEW).info["metric"] == "diagonal"


def cliff(batch):
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    pyro.factor("cliff", -1e4 * torch.relu(x - 0.5) ** 2)


def test_divergent_chains_get_smaller_steps():
    settings = FEW | {"chains": 2, "warmup": 100, "draws": 100, "max_treedepth": 5}
    found = nuts.sample(cliff, {}, seed=3, **settings)
    again = found.info["tries"]
    assert again
    assert {w["cause"] for w in again} == {"divergences"}
    assert found.info["target_accept"] == ACCEPT[max(sum(w["chain"] == k for w in again) for k in range(2))]
    other = nuts.sample(cliff, {}, seed=3, **settings | {"workers": 2})  # in processes
    assert torch.equal(other.chains["x"], found.chains["x"])  # whenever the divergence was noticed
    assert other.info["tries"] == again
    asked = nuts.sample(cliff, {}, seed=3, target_accept=0.8, **settings)
    assert asked.info["tries"] == []
    assert asked.info["target_accept"] == 0.8


def test_an_interrupted_run_comes_to_the_same_decisions(monkeypatch, tmp_path):
    whole = nuts.sample(wells(-40.0), {}, seed=0, **FEW)
    again = nuts._Board.again

    def stop(board):
        if again(board):
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(nuts._Board, "again", stop)
    with pytest.raises(KeyboardInterrupt):
        nuts.sample(wells(-40.0), {}, seed=0, store=Chains(tmp_path, {}, {}), **FEW)
    monkeypatch.undo()
    resumed = nuts.sample(wells(-40.0), {}, seed=0, store=Chains(tmp_path, {}, {}), resume=True, **FEW)
    assert torch.equal(resumed.chains["x"], whole.chains["x"])
    assert resumed.info["tries"] == whole.info["tries"]
    finished = nuts.sample(wells(-40.0), {}, seed=0, store=Chains(tmp_path, {}, {}), resume=True, **FEW)
    assert finished.info["tries"] == whole.info["tries"]
    assert finished.info["evaluations"] == whole.info["evaluations"]


# ----------------------------------------------------------------------------------------------------- in the report
def fit(diverging, tries):
    return SimpleNamespace(sample_stats={"diverging": torch.as_tensor(diverging)}, info={"tries": tries})


def test_a_few_divergences_at_the_smallest_steps_are_the_geometry():
    flags = np.zeros((4, 1000), bool)
    flags[0, 3] = True
    tries = [{"chain": 0, "cause": "divergences", "target_accept": a} for a in ACCEPT[1:]]
    assert inference.divergences(fit(flags, [])).verdict == "warn"
    check = inference.divergences(fit(flags, tries))
    assert check.verdict == "fail"
    assert "non-centred" in check.explanation
    assert check.value["drawn again"] == "drawn again with smaller steps, since it diverged: chain 0 (2 times)"
    flags[0, 3], flags[1, 3] = False, True
    assert inference.divergences(fit(flags, tries)).verdict == "warn"
    none = fit(flags & False, tries)
    assert inference.divergences(none).verdict == "pass"
    rng = np.random.default_rng(0)
    none.sample_stats["energy"] = torch.as_tensor(rng.standard_normal((4, 1000)))
    assert inference.divergences(none).verdict == "pass"
    none.sample_stats["energy"] = torch.as_tensor(rng.standard_normal((4, 1000)).cumsum(1))
    check = inference.divergences(none)
    assert check.verdict == "fail"
    assert "hardly changes its energy: the geometry is at fault" in check.explanation
