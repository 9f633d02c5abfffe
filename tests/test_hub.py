"""Posteriors pushed and pulled: whole and checked, or not at all; no network but the loopback."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.testing import CliRunner

import zoo
from tests.hub_server import Hub, serve
from zoo.cli import app
from zoo.errors import ArtifactError, DataError, HubError, MissingExtraError
from zoo.hub import front_matter, place

pytestmark = pytest.mark.xdist_group("hub")
FILES = {"posterior.json", "posterior.safetensors", "report.html", "report.json", "README.md"}
REPO = "someone/schools"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def equal(a: zoo.Posterior, b: zoo.Posterior) -> bool:
    return a.params.keys() == b.params.keys() and all(torch.equal(a.params[k], b.params[k]) for k in a.params)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "fit"
    posterior = zoo.fit("eight_schools", engine="svi", steps=30, compile=False)
    posterior.save(folder)
    posterior.report(folder / "report.html")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with serve() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield found


# ---------------------------------------------------------------------------------------------------------- places
def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("someone/some-model.v2") == "someone/some-model.v2"
    (tmp_path / "someone" / "here").mkdir(parents=True)
    assert place("someone/here") == Path("someone/here")
    assert place("hf:someone/here") == "someone/here"
    assert place(f"{tmp_path}") == tmp_path
    assert place("file:new/folder") == Path("new/folder")
    assert place("file:///srv/zoo%20models") == Path("/srv/zoo models")
    assert place("file://localhost/srv") == Path("/srv")


@pytest.mark.parametrize(
    "text", ["", "name", "a/b/c", "/nowhere/at/all", "hf:", "hf:x", "file:", "a/b\0", "-a/b", "ü/b"]
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="neither a repository OWNER/NAME nor a folder that exists"):
        place(text)


# ---------------------------------------------------------------------------------------------------------- folder
def test_a_folder_takes_and_gives_a_posterior(fitted: Path, tmp_path: Path) -> None:
    before = contents(fitted)
    shared, back = tmp_path / "shared", tmp_path / "back"
    assert zoo.push(fitted, f"file:{shared}") == str(shared)
    found = contents(shared)
    assert set(found) == FILES
    assert {k: found[k] for k in FILES - {"README.md"}} == {k: before[k] for k in FILES - {"README.md"}}
    assert contents(fitted) == before
    pulled = zoo.pull(str(shared), back)
    assert contents(back) == {k: before[k] for k in ("posterior.json", "posterior.safetensors")}, "no page is taken"
    assert equal(pulled, zoo.load(fitted))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "shared"]


def test_the_card_says_what_the_report_says(fitted: Path, tmp_path: Path) -> None:
    zoo.push(fitted, f"file:{tmp_path / 'a'}")
    _, head, text = (tmp_path / "a" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["library_name"] == "pyro-zoo"
    assert {"pyro-zoo", "pyro", "svi", "eight_schools"} <= set(about["tags"])
    assert text.strip().startswith((fitted / "MODEL_CARD.md").read_text(encoding="utf-8").strip())
    assert f"zoo pull {tmp_path / 'a'} DIR" in text


def test_front_matter_is_what_the_hub_reads() -> None:
    data = SimpleNamespace(name="a: 'b' \"c\" # ü", task="classification", columns=(1,), licence="CC BY 4.0 (someone)")
    posterior = SimpleNamespace(data=data, engine="svi", name="map_network")
    scores = {"validation": {"nll": 2.0}, "test": {"accuracy": 0.5, "brier": 1e-05, "nll": float(3), "odd": None}}
    text = front_matter(posterior, {"scores": scores})
    about = yaml.safe_load(text.split("---\n")[1])
    assert about["license"] == "cc-by-4.0"
    assert about["metrics"] == ["accuracy", "brier_score", "nll"]
    (result,) = about["model-index"][0]["results"]
    assert result["task"] == {"type": "tabular-classification"}
    assert result["dataset"]["name"] == data.name
    assert [m["value"] for m in result["metrics"]] == [0.5, 1e-05, 3.0]
    card = pytest.importorskip("huggingface_hub").ModelCard(text + "# Title\n", ignore_metadata_errors=False)
    assert [r.metric_value for r in card.data.eval_results] == [0.5, 1e-05, 3.0]
    data.licence = "DbCL 1.0"
    other = yaml.safe_load(front_matter(posterior, {"scores": {}}).split("---\n")[1])
    assert (other["license"], other["license_name"]) == ("other", "DbCL 1.0")
    assert "metrics" not in other
    data.licence = ""
    assert "license" not in yaml.safe_load(front_matter(posterior, {}).split("---\n")[1])


def test_a_report_of_another_fit_is_written_anew(fitted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fit"
    shutil.copytree(fitted, folder)
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    document["fit"]["seed"] = 17
    (folder / "report.json").write_text(json.dumps(document), encoding="utf-8")
    zoo.push(folder, f"file:{tmp_path / 'a'}")
    assert json.loads((tmp_path / "a" / "report.json").read_text(encoding="utf-8"))["fit"]["seed"] == 0
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["fit"]["seed"] == 17


def test_what_a_folder_holds_is_not_replaced_unasked(fitted: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        zoo.push(fitted, str(shared))
    (shared / "README.md").write_text("# Mine")
    with pytest.raises(DataError, match="is no model card of the zoo"):
        zoo.push(fitted, str(shared), overwrite=True)
    (shared / "README.md").unlink()
    zoo.push(fitted, str(shared), overwrite=True)
    zoo.push(fitted, str(shared), overwrite=True)
    assert set(contents(shared)) == FILES | {"notes.txt"}
    assert (shared / "notes.txt").read_text() == "mine"
    with pytest.raises(DataError, match="is the folder of the posterior itself"):
        zoo.push(fitted, str(fitted), overwrite=True)
    with pytest.raises(DataError, match="is not empty"):
        zoo.pull(str(shared), shared.parent)
    with pytest.raises(DataError, match="is a file"):
        zoo.pull(str(shared), shared / "notes.txt")
    with pytest.raises(DataError, match="has no revisions"):
        zoo.pull(str(shared), tmp_path / "b", revision="main")


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGE = {
    "flipped tensors": lambda f: flip(f / "posterior.safetensors"),
    "flipped JSON": lambda f: flip(f / "posterior.json"),
    "truncated": lambda f: (f / "posterior.safetensors").write_bytes(b"1234"),
    "a pickle": lambda f: (f / "posterior.safetensors").write_bytes(b"\x80\x04K\x01."),
    "no tensors": lambda f: (f / "posterior.safetensors").unlink(),
    "no JSON": lambda f: (f / "posterior.json").unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_posterior_is_not_put_in_place(fitted: Path, tmp_path: Path, kind: str) -> None:
    bad, mine = tmp_path / "bad", tmp_path / "mine"
    shutil.copytree(fitted, bad)
    DAMAGE[kind](bad)
    with pytest.raises(ArtifactError, match="was not put in place") as error:
        zoo.pull(str(bad), mine)
    assert ".part" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad"]
    zoo.pull(str(fitted), mine)
    before = contents(mine)
    with pytest.raises(ArtifactError):
        zoo.pull(str(bad), mine, overwrite=True)
    assert contents(mine) == before
    with pytest.raises((ArtifactError, DataError)):
        zoo.push(bad, f"file:{tmp_path / 'shared'}")
    assert not (tmp_path / "shared").exists()


# ------------------------------------------------------------------------------------------------------------- hub
def test_the_hub_takes_and_gives_a_posterior(hub: Hub, fitted: Path, tmp_path: Path) -> None:
    address = zoo.push(fitted, REPO, private=True, message="first")
    ((first, files),) = hub.repos[REPO]
    assert address == f"{hub.address}/{REPO}/commit/{first}"
    assert set(files) == FILES, "all in one commit"
    assert hub.messages == ["first"]
    assert hub.private == {REPO}
    pulled = zoo.pull(REPO, tmp_path / "a")
    assert equal(pulled, zoo.load(fitted))
    assert set(contents(tmp_path / "a")) == {"posterior.json", "posterior.safetensors"}
    assert sorted(hub.fetched()) == ["posterior.json", "posterior.safetensors"]
    other = zoo.fit("eight_schools", engine="svi", steps=30, seed=1, compile=False)
    other.save(tmp_path / "other")
    for name in ("report.html", "report.json", "MODEL_CARD.md"):  # of another fit: written anew
        shutil.copyfile(fitted / name, tmp_path / "other" / name)
    zoo.push(tmp_path / "other", f"hf:{REPO}")
    assert len(hub.repos[REPO]) == 2
    assert equal(zoo.pull(REPO, tmp_path / "b"), other)
    assert equal(zoo.pull(REPO, tmp_path / "c", revision=first), zoo.load(fitted))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "other"]


def test_what_the_hub_does_not_have_is_named(hub: Hub, fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"'someone/nothing' on the Hub: .*404"):
        zoo.pull("someone/nothing", tmp_path / "a")
    zoo.push(fitted, REPO)
    with pytest.raises(HubError, match=r"(?i)revision"):
        zoo.pull(REPO, tmp_path / "a", revision="0" * 40)
    hub.repos["someone/else"] = [("1" * 40, {"README.md": b"# Not of the zoo"})]
    with pytest.raises(ArtifactError, match=r"holds no posterior of the zoo: it has no posterior\.json"):
        zoo.pull("someone/else", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_hub_that_is_not_there_is_one_line(
    hub: Hub, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(HubError, match="'someone/schools' on the Hub: "):
        zoo.pull(REPO, tmp_path / "a")
    with pytest.raises(HubError, match="'someone/schools' on the Hub: "):
        zoo.push(fitted, REPO)
    assert not hub.requests
    assert list(tmp_path.iterdir()) == []


def test_giant_files_are_refused_before_they_are_fetched(hub: Hub, fitted: Path, tmp_path: Path) -> None:
    zoo.push(fitted, REPO)
    hub.claimed = {"posterior.json": 10**9}
    with pytest.raises(ArtifactError, match="1,000,000,000 bytes"):
        zoo.pull(REPO, tmp_path / "a")
    assert hub.fetched() == []
    hub.claimed = {"posterior.safetensors": 10**12}
    with pytest.raises(ArtifactError, match=r"1,000,000,000,000 bytes, but posterior\.json says"):
        zoo.pull(REPO, tmp_path / "a")
    assert hub.fetched() == ["posterior.json"]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_posterior_of_the_hub_is_not_put_in_place(hub: Hub, fitted: Path, tmp_path: Path) -> None:
    zoo.push(fitted, REPO)
    _, files = hub.repos[REPO][-1]
    changed = bytearray(files["posterior.safetensors"])
    changed[-1] ^= 1
    hub.commit(REPO, {"posterior.safetensors": bytes(changed)}, "changed by someone")
    with pytest.raises(ArtifactError, match=r"checksum.*'someone/schools' was not put in place"):
        zoo.pull(REPO, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_own_rows_leave_only_when_that_is_said(hub: Hub, tmp_path: Path) -> None:
    rows = "\n".join(f"{i % 7},{i % 5},{(i % 7) + 0.1 * (i % 5)}" for i in range(40))
    (tmp_path / "own.csv").write_text(f"a,b,y\n{rows}\n")
    data = zoo.datasets.read(tmp_path / "own.csv", target="y")
    posterior = zoo.fit("horseshoe_regression", data, engine="svi", steps=20, compile=False)
    posterior.save(tmp_path / "own")
    with pytest.raises(
        DataError, match="stores the rows of 'own', which would go to the Hub too; say so by --with-data"
    ):
        zoo.push(tmp_path / "own", REPO)
    assert not hub.requests
    zoo.push(tmp_path / "own", REPO, with_data=True)
    assert set(hub.repos[REPO][-1][1]) == FILES


def test_without_the_library_the_extra_is_named(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: zoo.push(fitted, REPO), lambda: zoo.pull(REPO, tmp_path / "a")):
        with pytest.raises(MissingExtraError, match=r"huggingface_hub.*pip install 'pyro-zoo\[hub\]'"):
            call()
    zoo.push(fitted, f"file:{tmp_path / 'shared'}")  # a folder needs nothing
    assert equal(zoo.pull(str(tmp_path / "shared"), tmp_path / "a"), zoo.load(fitted))


def test_the_commands(hub: Hub, fitted: Path, tmp_path: Path) -> None:
    pushed = CliRunner().invoke(app, ["push", str(fitted), REPO, "--json"])
    assert pushed.exit_code == 0, pushed.output
    assert json.loads(pushed.stdout)["pushed"].startswith(f"{hub.address}/{REPO}/commit/")
    pulled = CliRunner().invoke(app, ["pull", REPO, str(tmp_path / "a")])
    assert pulled.exit_code == 0, pulled.output
    assert f"zooreport{tmp_path / 'a'}" in "".join(pulled.stdout.split())  # however the line was broken
    again = CliRunner().invoke(app, ["pull", REPO, str(tmp_path / "a")])
    assert again.exit_code == 2
    assert again.stderr.startswith("error: ")
    assert "--overwrite" in again.stderr
    wrong = CliRunner().invoke(app, ["pull", "someone/nothing", str(tmp_path / "b")])
    assert wrong.exit_code == 2
    assert len(wrong.stderr.strip().splitlines()) == 1
