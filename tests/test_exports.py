"""Exported networks: the same predictions from a file that needs no code of the zoo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo import exports
from zoo.errors import DataError, MissingExtraError


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
        )


@pytest.mark.parametrize("suffix", list(exports.FORMATS))
def test_the_file_predicts_as_the_network_for_any_number_of_rows(suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    net, x = network(), torch.rand(500, 64)
    path = exports.export(net, x, tmp_path / "deep" / f"net{suffix}")
    for rows in (1, 7, 500):
        measured = exports.measure(path, net, x[:rows], repeats=3)
        assert measured.difference < 1e-5
        assert measured.rows == rows
        assert measured.milliseconds > 0
    # 4 bytes a parameter and a description: the batch that it was exported with is not in it.
    assert measured.num_bytes == path.stat().st_size < 4 * sum(p.numel() for p in net.parameters()) + 45_000
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_file_is_read_without_the_zoo(tmp_path: Path) -> None:
    net, x = network(), torch.rand(3, 64)
    path = exports.export(net, x, tmp_path / "net.pt2")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; sys.modules['zoo'] = None; "
        f"print(torch.export.load({str(path)!r}).module()(torch.load({str(tmp_path / 'x.pt')!r})).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(float(net(x).sum()), rel=1e-5)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"suffix '.pkl'; allowed: .pt2, .onnx"):
        exports.export(network(), torch.rand(2, 64), tmp_path / "net.pkl")
    with pytest.raises(DataError, match="1 rows; give two or more"):
        exports.export(network(), torch.rand(1, 64), tmp_path / "net.pt2")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        exports.export(network(), torch.rand(2, 64), tmp_path / "file" / "net.pt2")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pyro-zoo\[export\]"):
        exports.export(network(), torch.rand(2, 64), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
