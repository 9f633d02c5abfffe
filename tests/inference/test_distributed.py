"""Ranks that share every batch: the gradient of one process, equal parameters, one clear line when a rank is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

import zoo
from tests.inference import distributed_worker as worker
from zoo.cli import app
from zoo.errors import DataError, PairError
from zoo.inference.distributed import Ranks, join, together
from zoo.inference.svi import Trainer
from zoo.types import Pair, Recipe

pytestmark = [
    pytest.mark.xdist_group("distributed"),
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun kills ranks by POSIX signals"),
]
ROOT = Path(__file__).parents[2]
KINDS = ("all rows", "mini-batch", "annealed", "mean_field", "graph", "tempered", "scaled by hand")
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks found, one after the other; see distributed_worker."""
    folder = tmp_path_factory.mktemp("ranks")

    def stop(event: Any) -> None:
        if event.stage == "fitting" and event.done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zoo.fit(Pair(worker.model, worker.drawn), worker.data(), progress=stop, **worker.options(folder / "alone"))
    run = subprocess.run(
        [*LAUNCH, worker.__file__, str(folder / "found.json")], env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    ranks: list[dict[str, Any]] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert [r["rank"] for r in ranks] == [0, 1]
    return ranks


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_one_process(found: list[dict[str, Any]], kind: str) -> None:
    shared, alone = (torch.tensor(found[0]["gradients"][f"{kind}, {who}"]) for who in ("ranks", "one"))
    assert alone.abs().min() > 1e-2  # of every parameter, and the loss
    assert torch.allclose(shared, alone, rtol=1e-5, atol=1e-5)
    assert found[1]["gradients"][f"{kind}, ranks"] == found[0]["gradients"][f"{kind}, ranks"]


def test_ranks_end_with_equal_parameters(found: list[dict[str, Any]]) -> None:
    one, other = (r["fits"] for r in found)
    assert one["params"] == other["params"]
    assert one["ranks"] == 2
    assert one["steps"] == 40
    assert one["told"]
    assert not other["told"], "only rank 0 shows progress"


def test_as_many_ranks_resume_bit_for_bit(found: list[dict[str, Any]]) -> None:
    assert all(r["fits"]["equal"] for r in found)
    assert next(n for n in found[0]["fits"]["told"] if n) > 20, "it began anew"


def test_more_ranks_go_on_with_what_one_process_began(found: list[dict[str, Any]]) -> None:
    more = found[0]["fits"]["from one"]
    assert "ranks 1; this fit has 2; the fit goes on, but not bit for bit" in more["warning"]
    assert next(n for n in more["told"] if n) > 20
    assert more["steps"] == 40


def test_a_rank_that_is_not_finite_is_named_by_all(found: list[dict[str, Any]]) -> None:
    for rank in found:
        text = rank["fits"]["not finite"]
        assert text.startswith("NonFiniteError: step 5: loss [nan]: rank 1: the log density of model site 'y'")
        assert "'falling'" in text
    assert "the last good state, of step 5, is in" in found[0]["fits"]["not finite"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("alternating", "PairError: this pair cannot be fitted by several ranks: its losses need not be sums"),
        ("renyi", "PairError: this pair cannot be fitted by several ranks: a Renyi bound"),
        ("batch statistics", "PairError: this pair cannot be fitted by several ranks: a step writes buffers"),
        ("no scale", "PairError: the pair does not scale its rows"),
        ("too few rows", "DataError: a batch of 1 rows cannot be shared among 2 ranks"),
        ("nuts", "PairError: engine 'nuts' does not share its work"),
    ],
)
def test_what_ranks_cannot_share_is_refused(found: list[dict[str, Any]], kind: str, text: str) -> None:
    for rank in found:
        assert rank["refusals"][kind].startswith(text)


def test_what_fails_on_one_rank_fails_on_all(found: list[dict[str, Any]]) -> None:
    one, other = (r["refusals"] for r in found)
    assert other["other options"].startswith("DataError: rank 0 has recipe.learning_rate 0.1; rank 1 has 0.2")
    assert one["other options"] == "RankError: rank 1: " + other["other options"].removeprefix("DataError: ")
    assert one["one rank's folder"].startswith("DataError: cannot write a checkpoint")
    assert other["one rank's folder"] == "RankError: rank 0: " + one["one rank's folder"].removeprefix("DataError: ")
    assert one["together"] == "RankError: rank 1: only here"
    assert other["together"] == "ValueError: only here"


def test_a_killed_rank_ends_the_job_which_one_process_finishes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        *LAUNCH, "-m", "zoo", "fit", "horseshoe_regression", "--data", "diabetes", "--engine", "svi", "--steps", "120",
        "--batch-size", "51", "--no-compile", "--no-report", "--checkpoint-every", "20", "--out", str(out),
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as job:
        try:
            while not [*out.glob("checkpoint-*")]:
                assert job.poll() is None, job.communicate()[1]
                time.sleep(0.02)
            ranks = {child.environ()["RANK"]: child for child in psutil.Process(job.pid).children()}
            assert sorted(ranks) == ["0", "1"]
            ranks["1"].send_signal(signal.SIGKILL)
            _, said = job.communicate(timeout=60)
        finally:
            job.kill()
    assert job.returncode != 0
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: rank 0: ")
    assert "another rank was lost" in lines[0] or "told to end" in lines[0]
    assert lines[0].endswith(f"torchrun --nproc-per-node N -m zoo fit --resume {out}")
    assert not (out / "posterior.json").exists()
    resumed = CliRunner().invoke(app, ["fit", "--resume", str(out)])
    assert resumed.exit_code == 0, resumed.output
    assert "ranks 2; this fit has 1" in resumed.output
    posterior = zoo.load(out)
    assert len(posterior.losses) == 120
    assert posterior.info["command"].startswith("torchrun --nproc-per-node 2 -m zoo fit horseshoe_regression")


@pytest.fixture
def alone() -> Iterator[Ranks]:
    """One rank, in a process group of the caller's own, which stays as it is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with join() as ranks, ranks.on("cpu"):
            yield ranks
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_compiled_ranks_draw_what_eager_ones_draw(alone: Ranks) -> None:
    losses = []
    for compile in (True, False):
        trainer = Trainer(
            Pair(worker.model, worker.drawn), worker.data().train, whole=worker.data().whole, seed=4,
            recipe=Recipe(steps=20, batch_size=5, clip_norm=9.0, kl_warmup=0.5), compile=compile, skip=True,
            ranks=alone,
        )  # fmt: skip
        assert trainer.program.compiled == compile, trainer.program.reason
        losses.append(torch.cat([trainer.run(15), trainer.run(5)]))
        assert losses[-1].unique().numel() == 20
    assert torch.allclose(*losses, rtol=1e-4)


def test_a_step_that_is_not_finite_is_left_out_jointly(alone: Ranks) -> None:
    recipe = Recipe(steps=90, learning_rate=0.01)
    trainer = Trainer(
        Pair(worker.failing, lambda batch: None), worker.data().train, recipe=recipe, compile=False, ranks=alone,
        skip=True, whole=worker.data().whole,
    )  # fmt: skip
    losses = trainer.run(12)[:, 0]
    assert torch.isfinite(losses[:4]).all()
    assert torch.isnan(losses[5:]).all()
    assert torch.isfinite(trainer.state.theta).all()
    assert int(trainer.state.step) == 12
    assert int(trainer.state.counts) < 7


@pytest.mark.parametrize(("rank", "size", "total"), [(r, s, t) for s, t in ((2, 11), (3, 7), (4, 4)) for r in range(s)])
def test_shares_are_a_partition(alone: Ranks, rank: int, size: int, total: int) -> None:
    def share(rank: int) -> list[int]:
        alone.rank, alone.size = rank, size
        return list(range(total))[alone.share(total)]

    parts = [share(r) for r in range(size)]
    assert [row for part in parts for row in part] == list(range(total))
    assert {len(part) for part in parts} <= {total // size, total // size + 1}
    alone.rank, alone.size = 0, 1


def test_every_rank_and_step_has_its_own_noise(alone: Ranks) -> None:
    seeds = set()
    for rank in range(3):
        alone.rank = rank
        seeds |= {alone.noise(seed, step) for seed in range(3) for step in range(50)}
    alone.rank = 0
    assert len(seeds) == 3 * 3 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_without_torchrun_a_distributed_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    pair = Pair(worker.model, worker.drawn)
    with pytest.raises(DataError, match="a distributed fit needs ranks, but RANK is not set; start it by `torchrun"):
        zoo.fit(pair, worker.data(), distributed=True, compile=False, steps=2)
    with pytest.raises(PairError, match="does not share its work among ranks"):
        zoo.fit("eight_schools", distributed=True, engine="nuts")


def test_together_is_nothing_for_one_process() -> None:
    with pytest.raises(ValueError, match="mine"), together(None):
        raise ValueError("mine")


def test_other_commands_do_not_run_on_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    refused = CliRunner().invoke(app, ["list"])
    assert refused.exit_code == 2
    assert "only `zoo fit` runs on several ranks; start `zoo list` without torchrun" in refused.output
    monkeypatch.setenv("RANK", "1")
    silent = CliRunner().invoke(app, ["list"])
    assert (silent.exit_code, silent.output) == (2, "")
