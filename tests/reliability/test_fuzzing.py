"""Mutated files are refused by a typed error in one line, or read as what they were; they never fill the memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file

import zoo
from tests.reliability.fuzzing import META, TENSORS, Mutant, artifact, examine, mutants, seal, sources
from tests.reliability.keeping import KEPT, NUMBERS, numbers
from zoo import artifacts
from zoo.errors import ArtifactError, DataError, NonFiniteError

NETWORK = next(folder for folder in KEPT if folder.name.endswith("network"))
CHAINS = next(folder for folder in KEPT if folder.name.endswith("chains"))


@pytest.fixture(scope="module")
def made() -> None:
    """Make what is mutated before mutants are drawn: a fit draws random numbers, which a strategy must not."""
    sources()


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_artifacts_of_earlier_versions_predict_the_same_numbers(folder: Path) -> None:
    expected = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    found = numbers(zoo.load(folder))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name


@pytest.mark.usefixtures("made")
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutant=mutants(bombs=False))
def test_mutants_are_refused_or_what_they_were(mutant: Mutant, tmp_path_factory: pytest.TempPathFactory) -> None:
    examine(mutant, tmp_path_factory.getbasetemp() / "fuzzing" / "mutant")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_bombs_are_refused_within_a_gigabyte() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-m", "tests.reliability.fuzzing", "bombs"]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert sum(found["became"].values()) > 30
    assert found["peak"] < 2**30


def changed(tmp_path: Path, folder: Path, **entries: object) -> Path:
    meta = json.loads(artifact(folder)[META]) | entries
    for name, content in seal(artifact(folder) | {META: json.dumps(meta).encode()}).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ask for the parameter 'W_2_loc', which it lacks"):
        zoo.load(changed(tmp_path, NETWORK, hyper={"hidden": [4, 2]}))
    with pytest.raises(ArtifactError, match=r"ask for 2,000,000,000 numbers at once"):
        zoo.load(changed(tmp_path, NETWORK, hyper={"hidden": [10**9]}))
    with pytest.raises(
        ArtifactError, match=r"parameter 'W_0_loc' is torch.float32 \(2, 4\); this method has .* \(2, 5\)"
    ):
        zoo.load(changed(tmp_path, NETWORK, hyper={"hidden": [5]}))
    with pytest.raises(ArtifactError, match=r"the engine is 'mcmc'; known: nuts, svi"):
        zoo.load(changed(tmp_path, NETWORK, engine="mcmc"))
    with pytest.raises(ArtifactError, match=r"the artifact lacks the latent 'theta'"):
        zoo.load(changed(tmp_path, CHAINS, hyper={"centred": True}))
    changed(tmp_path, CHAINS)
    (tmp_path / META).write_text((tmp_path / META).read_text().replace('"chains": 2', '"chains": 3'))
    with pytest.raises(ArtifactError, match="was changed: its checksum is not the one"):
        zoo.load(tmp_path)
    meta = json.loads(artifact(NETWORK)[META])
    meta["oops"] = meta.pop("info")
    (tmp_path / META).write_text(json.dumps(meta))
    with pytest.raises(ArtifactError, match="lacks 'info'"):
        zoo.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / META)
    with pytest.raises(ArtifactError, match="no regular file"):
        zoo.load(tmp_path)
    (tmp_path / META).unlink()
    (tmp_path / META).symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match="no regular file"):
        zoo.load(tmp_path)


def test_a_file_that_claims_terabytes_is_not_read(tmp_path: Path) -> None:
    changed(tmp_path, NETWORK)
    os.truncate(tmp_path / TENSORS, 2**40)
    with pytest.raises(ArtifactError, match=r"has 1,099,511,627,776 bytes; at most"):
        zoo.load(tmp_path)
    os.truncate(tmp_path / META, 2**40)
    with pytest.raises(ArtifactError, match=r"has 1,099,511,627,776 bytes; at most"):
        zoo.load(tmp_path)


def test_a_header_of_the_length_that_begins_a_pickle_is_read(tmp_path: Path) -> None:
    for size in range(400):  # header lengths are multiples of eight; 640 is b"\x80\x02"
        save_file({"a": torch.ones(1)}, tmp_path / "t", {"pad": "x" * (400 + size)})
        raw = (tmp_path / "t").read_bytes()
        if raw[:2] == b"\x80\x02":
            break
    assert raw[:2] == b"\x80\x02"
    assert artifacts.tensors_of(raw, tmp_path / "t")[0].keys() == load_file(tmp_path / "t").keys()


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    posterior = zoo.load(NETWORK)
    name = next(iter(posterior._values))
    kept = posterior._values[name]
    posterior._values[name] = kept * float("nan")
    with pytest.raises(NonFiniteError, match=f"cannot be saved: parameter '{name}' holds NaN"):
        posterior.save(tmp_path / "p")
    posterior._values[name] = kept
    posterior.info["note"] = ["x"] * 2**21
    with pytest.raises(DataError, match=r"some 2,0.* values in JSON; at most"):
        posterior.save(tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_losses_keep_their_order_and_infinite_hyper_parameters_their_value(tmp_path: Path) -> None:
    def model(batch: zoo.types.Batch) -> None:
        import pyro
        import pyro.distributions as dist

        pyro.sample("y", dist.Normal(pyro.param("a", torch.zeros(())), 1.0).expand([3]).to_event(1), obs=batch["y"])

    functions = [zoo.types.Loss(name=name, function=zoo.types.Elbo()) for name in ("zeta", "alpha")]
    pair = zoo.Pair(model, lambda batch: None, zoo.types.Alternating(tuple(functions)))
    fitted = zoo.fit(pair, {"y": torch.arange(3.0)}, steps=4, compile=False)
    loaded = zoo.load(fitted.save(tmp_path / "p"), pair=pair)
    assert list(loaded.history) == list(fitted.history) == ["zeta", "alpha"]
    assert torch.equal(loaded.losses, fitted.losses)
    wide = zoo.fit("map_network", "iris", hyper={"hidden": (2,), "prior_scale": 3.0}, steps=2, compile=False)
    object.__setattr__(wide.hyper, "prior_scale", float("inf"))
    assert json.loads((wide.save(tmp_path / "w") / META).read_text())["hyper"]["prior_scale"] == "inf"
    assert zoo.load(tmp_path / "w").hyper.prior_scale == float("inf")
