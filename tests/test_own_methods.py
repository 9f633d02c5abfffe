"""Methods that live outside of the zoo: loaded by their file, fitted by their file, offered by installed packages."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

import zoo
from zoo import registry
from zoo.cli import app
from zoo.errors import ArtifactError, PairError, UnknownMethodError

TEMPLATE = Path(registry.__file__).parent / "models" / "_template.py"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_ridge.py"
    path.write_text(TEMPLATE.read_text(encoding="utf-8").replace("_template", "my_ridge"), encoding="utf-8")
    return path


def test_a_method_of_ones_own_is_saved_and_loaded(file: Path, tmp_path: Path) -> None:
    method = registry.resolve(file)
    posterior = zoo.fit(method, "diabetes", steps=2, compile=False)  # type: ignore[arg-type]
    posterior.save(tmp_path / "run")
    with pytest.raises(UnknownMethodError, match=r"my_ridge.*zoo\.load\(FOLDER, method="):
        zoo.load(tmp_path / "run")
    for given in (method, file, str(file)):
        loaded = zoo.load(tmp_path / "run", method=given)  # type: ignore[arg-type]
        assert all((loaded.params[n] == v).all() for n, v in posterior.params.items())
    with pytest.raises(ArtifactError, match="of 'my_ridge'; the method that was given is 'map_network'"):
        zoo.load(tmp_path / "run", method="map_network")


def test_a_file_must_not_take_the_name_of_one_of_the_zoo(file: Path, tmp_path: Path) -> None:
    taken = tmp_path / "map_network.py"
    taken.write_text(file.read_text(encoding="utf-8").replace("my_ridge", "map_network"), encoding="utf-8")
    with pytest.raises(PairError, match="names its method 'map_network', as one of the zoo"):
        registry.resolve(taken)


def test_installed_methods_are_listed_and_a_broken_one_hides_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    points = [
        metadata.EntryPoint("my_ridge", "my_ridge:METHOD", registry.GROUP),
        metadata.EntryPoint("lost", "no_such_module:METHOD", registry.GROUP),
        metadata.EntryPoint("map_network", "my_ridge:METHOD", registry.GROUP),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)
    entries = {e.name: e for e in registry.installed()}
    assert entries["my_ridge"].kind == "method"
    assert "no module 'no_such_module'" in entries["lost"].title
    assert "name is that of a method of the zoo" in entries["map_network"].title
    assert registry.get("my_ridge").name == "my_ridge"
    assert registry.get("map_network").name == "map_network"
    with pytest.raises(PairError, match="cannot be imported: ModuleNotFoundError"):
        registry.get("lost")
    shown = CliRunner().invoke(app, ["list"])
    assert shown.exit_code == 0, shown.output
    assert "my_ridge" in shown.output
    assert "horseshoe_regression" in shown.output
