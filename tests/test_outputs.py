"""The folder of a fit: ours is replaced together or not at all, and what is not ours is never touched."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from zoo.errors import DataError
from zoo.outputs import SETTINGS, foreign, ours, recover, whole

OURS = {
    "posterior.json": '{\n "format": "pyro-zoo posterior"}',
    "posterior.safetensors": "weights",
    "report.html": '<meta name="generator" content="pyro-zoo 1">',
    "report.json": '{\n  "format": "pyro-zoo report 1"}',
    "MODEL_CARD.md": "# A model card\n\n<!-- pyro-zoo model card -->\n",
}
THEIRS = {"thesis.txt": "years", "figures/report.html": "mine", "figures/deep/a.json": "{}", "restart-0/notes": "n"}


def write(folder: Path, files: dict[str, str], tag: str = "") -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + tag)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_ours_are_told_by_what_they_say_of_themselves(tmp_path: Path) -> None:
    write(tmp_path, OURS | THEIRS)
    assert {p.name for p in ours(tmp_path)} == set(OURS)
    assert foreign(tmp_path) == []
    (tmp_path / "report.html").write_text("<h1>My report</h1>")
    (tmp_path / "fit.json").mkdir()
    assert {p.name for p in foreign(tmp_path)} == {"report.html", "fit.json"}
    (tmp_path / "posterior.json").write_text("{}")
    assert {p.name for p in ours(tmp_path)} == {"report.json", "MODEL_CARD.md"}


@pytest.mark.parametrize("keep", [False, True])
def test_replacing_leaves_what_is_not_ours(tmp_path: Path, keep: bool) -> None:
    folder = tmp_path / "o"
    write(folder, OURS | THEIRS)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(tmp_path / "nowhere")
    with whole(folder, keep=keep, resume=False) as stage:
        if keep:
            write(folder, {SETTINGS: '{"checkpoint_every": 1}', "checkpoint-1.safetensors": "pyro-zoo state"})
            write(folder, {"restart-1/best-checkpoint.safetensors": "pyro-zoo state"})
        write(stage, {"posterior.json": OURS["posterior.json"], "posterior.safetensors": "new"})
    new = {"posterior.json": OURS["posterior.json"], "posterior.safetensors": "new"}
    assert contents(folder) == THEIRS | new | ({SETTINGS: '{"checkpoint_every": 1}'} if keep else {})
    assert (folder / "link").is_symlink()
    assert (folder / "empty").is_dir()
    assert not (folder / "restart-1").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_in_the_block_changes_nothing(tmp_path: Path, keep: bool, error: type[BaseException]) -> None:
    folder = tmp_path / "o"
    write(folder, OURS | THEIRS)
    before, names = contents(folder), everything(tmp_path)
    with pytest.raises(error), whole(folder, keep=keep, resume=False) as stage:  # noqa: PT012
        write(stage, {"posterior.json": "half"})
        if keep:
            write(folder, {SETTINGS: '{"checkpoint_every": 1}'})
        raise error
    assert (contents(folder), everything(tmp_path)) == (before, names)


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_while_files_come_into_place_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException
) -> None:
    folder = tmp_path / "o"
    write(folder, OURS | THEIRS)
    before, names = contents(folder), everything(tmp_path)
    rename, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == at + 1:
            raise error
        return rename(self, target)

    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DataError),
        whole(folder, keep=False, resume=False) as stage,
    ):
        write(stage, OURS, "new")
        monkeypatch.setattr(Path, "rename", failing)
    assert (contents(folder), everything(tmp_path)) == (before, names)
    assert len(calls) > at


@pytest.mark.parametrize("fails", [False, True])
def test_exported_networks_are_replaced_by_their_like_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    folder = tmp_path / "o"
    write(folder, OURS | THEIRS | {"network.pt2": "old", "network.onnx": "old"})
    before, rename = contents(folder), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name == "new" and self.name == "posterior.json":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with nullcontext() if not fails else pytest.raises(DataError), whole(folder, keep=False, resume=False) as stage:
        write(stage, OURS | {"network.pt2": "new"})
        if fails:
            monkeypatch.setattr(Path, "rename", failing)
    assert contents(folder) == (before if fails else before | {"network.pt2": "new"})


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "o", OURS | {"network.pt2/mine": "years"})
    before = contents(tmp_path / "o")
    with (
        pytest.raises(DataError, match="is a folder, in the place of a file"),
        whole(tmp_path / "o", keep=False, resume=False) as stage,
    ):
        write(stage, OURS | {"network.pt2": "new"}, "new")
    assert contents(tmp_path / "o") == before


def test_an_interruption_with_a_checkpoint_leaves_it_and_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    write(folder, OURS | THEIRS)
    left = {SETTINGS: '{"checkpoint_every": 1}', "checkpoint-1.safetensors": "pyro-zoo state"}
    with pytest.raises(KeyboardInterrupt, match="--resume"), whole(folder, keep=True, resume=False):  # noqa: PT012
        write(folder, left)
        raise KeyboardInterrupt
    assert contents(folder) == THEIRS | left
    with whole(folder, keep=True, resume=True) as stage:
        write(stage, OURS)
    assert contents(folder) == THEIRS | OURS | {SETTINGS: left[SETTINGS]}
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_symbolic_link_is_followed(tmp_path: Path, exists: bool) -> None:
    if exists:
        write(tmp_path / "real", OURS | THEIRS)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole(tmp_path / "link", keep=False, resume=False) as stage:
        write(stage, OURS, "new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == (THEIRS if exists else {}) | {k: v + "new" for k, v in OURS.items()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_a_linked_file_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", OURS)
    write(tmp_path / "o", {k: v for k, v in OURS.items() if k != "report.html"})
    (tmp_path / "o" / "report.html").symlink_to(tmp_path / "elsewhere" / "report.html")
    with whole(tmp_path / "o", keep=False, resume=False) as stage:
        write(stage, {"posterior.json": OURS["posterior.json"]})
    assert everything(tmp_path / "o") == ["posterior.json"]
    assert contents(tmp_path / "elsewhere") == OURS


def test_a_foreign_file_in_the_way_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    write(tmp_path / "o", OURS | {"report.html": "mine"})
    before = contents(tmp_path / "o")
    with (
        pytest.raises(DataError, match=r"holds report\.html, which the zoo did not write"),
        whole(tmp_path / "o", keep=True, resume=False),
    ):
        raise AssertionError("not reached")
    assert contents(tmp_path / "o") == before


def test_a_file_that_only_has_the_name_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "o", {"chain-1.safetensors": "mine"})
    with whole(tmp_path / "o", keep=False, resume=False) as stage:
        write(stage, OURS)
    with (
        pytest.raises(DataError, match=r"holds chain-1\.safetensors, which the zoo did not write"),
        whole(tmp_path / "o", keep=True, resume=False),
    ):
        raise AssertionError("not reached")
    assert contents(tmp_path / "o") == OURS | {"chain-1.safetensors": "mine"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to"), whole(tmp_path / "file/o", keep=False, resume=False):
        raise AssertionError("not reached")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_moved_back_is_kept_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "o"
    write(folder, OURS)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name == "new" or "spent" in self.parts:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with pytest.raises(DataError), whole(folder, keep=False, resume=False) as stage:  # noqa: PT012
        write(stage, OURS, "new")
        monkeypatch.setattr(Path, "rename", failing)
    assert {p.name: p.read_text() for p in folder.rglob("spent/*")} == OURS


@pytest.mark.parametrize("aside", ["old", "spent"])
def test_what_a_killed_process_had_set_aside_comes_back(tmp_path: Path, aside: str) -> None:
    folder = tmp_path / "o"
    write(folder, THEIRS | {"report.html": OURS["report.html"] + "half"})
    write(folder, {f".0123abcd.part/{aside}/{name}": text for name, text in OURS.items()})
    write(tmp_path, {".o.0123abcd.part/new/report.html": "half", ".o.mine.part": "mine"})
    recover(folder)
    assert contents(folder) == THEIRS | OURS
    assert sorted(p.name for p in tmp_path.iterdir()) == [".o.mine.part", "o"]


def test_what_a_killed_process_had_set_aside_goes_when_it_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "o", {SETTINGS: "{}", ".0123abcd.part/old/posterior.json": OURS["posterior.json"]})
    recover(tmp_path / "o")
    assert contents(tmp_path / "o") == {SETTINGS: "{}"}
