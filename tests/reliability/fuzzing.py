"""Mutated files of every kind that is read, and what must become of them.

An accident (a file cut short, bits turned, another file in its place) is found by the checksums: the file is refused,
or nothing that matters was changed and the posterior is the same. An adversary makes the checksums right again
(:func:`seal`): then the file is refused, or it is another whole artifact, which a change of, say, a prior's scale makes
of it; changes that no fit could have made must be refused.

``python -m tests.reliability.fuzzing COUNT SEED`` examines so many in this process (``bombs``: each that is made to
fill the memory, once), and prints as JSON what became of those of each kind, and the most memory that the process held.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import zoo
from tests.reliability.keeping import KEPT
from zoo import artifacts
from zoo.errors import ZooError

__all__ = ["Fuzzed", "Mutant", "artifact", "examine", "fuzz", "mutants", "seal", "sources"]

TENSORS, META = "posterior.safetensors", "posterior.json"
SECONDS = 30  # after which a file counts as one on which reading hangs
Draw = Callable[[Any], Any]
Files = dict[str, bytes]


@dataclass(frozen=True)
class Mutant:
    """A mutated file, or folder of an artifact.

    Args:
        kind: What was done to it.
        source: What it was before.
        files: Its files.
        allowed: What may become of it: ``refused``, ``same`` or ``other``.
    """

    kind: str
    source: str
    files: Files
    allowed: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Mutant({self.kind!r} of {self.source!r}, { ({n: len(b) for n, b in self.files.items()}) })"


# ------------------------------------------------------------------------------------------------------ sources
@cache
def artifact(folder: Path) -> Files:
    return {name: (folder / name).read_bytes() for name in (TENSORS, META)}


@cache
def sources() -> dict[str, Files]:
    """Return files of data and of checkpoints, by what they are."""
    x, y = np.linspace(0, 1, 90).reshape(30, 3), np.arange(30) % 3
    npz = io.BytesIO()
    np.savez_compressed(npz, x=x, y=y)
    rows = [f"{a:.4f},{b:.4f},{'é' if i % 2 else 'b'},{i % 7}" for i, (a, b, _) in enumerate(x)]
    csv = "\n".join(["α,b,kind,y", *rows]).encode()
    found = {"NPZ": {"mine.npz": npz.getvalue()}, "CSV": {"mine.csv": csv}, "gzip": {"mine.csv.gz": gzip.compress(csv)}}
    with tempfile.TemporaryDirectory() as place:
        zoo.fit(
            "horseshoe_regression", "diabetes", engine="svi", steps=4, batch_size=32, compile=False,
            checkpoint=place, checkpoint_every=2,
        )  # fmt: skip
        found["checkpoint"] = {"checkpoint-000000004.safetensors": (Path(place) / _CHECKPOINT).read_bytes()}
        try:
            import pandas as pd

            pd.DataFrame({"a": x[:, 0], "y": y}).to_parquet(Path(place) / "mine.parquet")
            found["Parquet"] = {"mine.parquet": (Path(place) / "mine.parquet").read_bytes()}
        except ImportError:  # the extra `tables`
            pass
    return found


_CHECKPOINT = "checkpoint-000000004.safetensors"


def seal(files: Files) -> Files:
    """Make the checksums of an artifact right again."""
    meta = json.loads(files[META])
    payload = files[TENSORS]
    mark = hashlib.sha256(payload).hexdigest()
    if meta["schema"] == 1:
        meta["sha256"] = mark
    else:
        meta["files"][TENSORS] |= {"bytes": len(payload), "sha256": mark}
        del meta["checksum"]
        meta["checksum"] = artifacts.digest(meta)
    return files | {META: json.dumps(meta).encode()}


# ---------------------------------------------------------------------------------------------------- accidents
def turned(draw: Draw, raw: bytes) -> bytes:
    bits = draw(st.lists(st.integers(0, 8 * len(raw) - 1), min_size=1, max_size=8, unique=True))
    content = bytearray(raw)
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def cut(draw: Draw, raw: bytes) -> bytes:
    return raw[: draw(st.integers(0, len(raw) - 1))]


def overwritten(draw: Draw, raw: bytes) -> bytes:
    start, noise = draw(st.integers(0, len(raw) - 1)), draw(st.binary(min_size=1, max_size=64))
    return raw[:start] + noise + raw[start + len(noise) :]


def lengthened(draw: Draw, raw: bytes) -> bytes:
    return raw + draw(st.binary(min_size=1, max_size=64))


def replaced(draw: Draw, raw: bytes) -> bytes:
    return draw(
        st.sampled_from([b"", b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(30), b"{}", b"[]", bytes(500), b"\x7fELF"])
    )


_ACCIDENTS = {
    "bits turned": turned,
    "truncated": cut,
    "bytes overwritten": overwritten,
    "bytes appended": lengthened,
    "another file": replaced,
}


def _accident(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    files, name = artifact(folder), draw(st.sampled_from([TENSORS, META]))
    allowed = ("refused", "same")
    if folder.name.startswith("schema-1") and name == META:
        allowed = ("refused", "same", "other")  # it had no checksum of its JSON
    return Mutant(kind, folder.name, files | {name: _ACCIDENTS[kind](draw, files[name])}, allowed)


def _exchanged(draw: Draw, kind: str) -> Mutant:
    one, two = draw(st.lists(st.sampled_from(KEPT), min_size=2, max_size=2, unique=True))
    return Mutant(kind, one.name, {TENSORS: artifact(two)[TENSORS], META: artifact(one)[META]}, ("refused",))


def _lost(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    gone = draw(st.sampled_from([TENSORS, META]))
    return Mutant(kind, folder.name, {k: v for k, v in artifact(folder).items() if k != gone}, ("refused",))


def _surplus(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    name = draw(st.sampled_from(["posterior.pkl", "extra.json", "notes.txt", "checkpoint-000000001.safetensors"]))
    return Mutant(kind, folder.name, artifact(folder) | {name: draw(st.binary(max_size=50))}, ("same",))


def _rewritten(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    meta = json.loads(artifact(folder)[META])
    keys = draw(st.permutations(sorted(meta)))
    text = json.dumps({key: meta[key] for key in keys}, indent=draw(st.integers(0, 5)))
    return Mutant(kind, folder.name, artifact(folder) | {META: text.encode()}, ("same",))


# --------------------------------------------------------------------------------------------------- adversaries
def _tensors(draw: Draw, folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    tensors = load_tensors(artifact(folder)[TENSORS])
    return tensors, draw(st.sampled_from(sorted(tensors)))


def _with_tensors(kind: str, folder: Path, tensors: dict[str, torch.Tensor], *, allowed: Any = ("refused",)) -> Mutant:
    payload = save_tensors({k: v.contiguous() for k, v in tensors.items()})
    return Mutant(kind, folder.name, seal(artifact(folder) | {TENSORS: payload}), allowed)


def _renamed_tensor(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    tensors, name = _tensors(draw, folder)
    other = draw(
        st.sampled_from([f"{name}x", name.upper(), name.partition("/")[2], f"../{name}", "x", f"{name}/x", ""])
    )
    if other in tensors or name.startswith("stats/"):  # statistics of the sampler have no fixed names
        other = "a/b"
    tensors[other] = tensors.pop(name)
    return _with_tensors(kind, folder, tensors)


def _dropped_tensor(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    tensors, name = _tensors(draw, folder)
    del tensors[name]
    free = name.startswith(("stats/", "history/", "restarts/0/history/"))
    return _with_tensors(kind, folder, tensors, allowed=("refused", "other", "same") if free else ("refused",))


def _wrong_shape(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    tensors, name = _tensors(draw, folder)
    value = tensors[name]
    ways: list[Callable[[], torch.Tensor]] = [
        lambda: value[None],
        lambda: value.flatten()[:0],
        lambda: value[..., None],
    ]
    if value.dim():
        ways += [lambda: value[:-1], lambda: torch.cat([value, value])]
    tensors[name] = draw(st.sampled_from(ways))()
    free = name.startswith(("stats/", "history/", "restarts/0/history/"))  # one number a step, of however many steps
    return _with_tensors(kind, folder, tensors, allowed=("refused", "other", "same") if free else ("refused",))


def _wrong_type(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    tensors, name = _tensors(draw, folder)
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    tensors[name] = tensors[name].to(draw(st.sampled_from([t for t in types if t != tensors[name].dtype])))
    free = "history/" in name or name.startswith("stats/")
    return _with_tensors(kind, folder, tensors, allowed=("refused", "other", "same") if free else ("refused",))


def _not_finite(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    tensors, name = _tensors(draw, folder)
    floating = sorted(
        n for n, v in tensors.items() if v.is_floating_point() and "history/" not in n and "stats/" not in n
    )
    name = draw(st.sampled_from(floating))
    value = tensors[name].clone()
    value.view(-1)[draw(st.integers(0, value.numel() - 1))] = float("nan")
    tensors[name] = value
    return _with_tensors(kind, folder, tensors)


def _giant_header(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    raw = artifact(folder)[TENSORS]
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    entry = header[draw(st.sampled_from(sorted(k for k in header if k != "__metadata__")))]
    giant = draw(st.sampled_from([2**31, 2**40, 2**62, 2**63, 2**64, 10**30, -1]))
    way = draw(st.integers(0, 4))
    if way == 0:
        entry["shape"] = [giant]
    elif way == 1:
        entry["data_offsets"][1] = giant
    elif way == 2:
        entry["shape"], entry["data_offsets"][1] = [giant], entry["data_offsets"][0] + 8 * giant
    elif way == 3:
        entry["data_offsets"] = entry["data_offsets"][::-1]
    text = json.dumps(header).encode()
    claimed = len(text) if way < 4 else draw(st.sampled_from([2**31, 2**40, 2**63, 2**64 - 1]))
    payload = struct.pack("<Q", claimed) + text + raw[8 + size :]
    return Mutant(kind, folder.name, seal(artifact(folder) | {TENSORS: payload}), ("refused",))


def _walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _walk(inner, (*path, key))


def _place(draw: Draw, folder: Path) -> tuple[Any, Any, Any]:
    """Return the JSON of an artifact, a list or object within it, and a key of that."""
    meta = json.loads(artifact(folder)[META])
    *outer, key = draw(st.sampled_from(list(_walk({k: v for k, v in meta.items() if k != "checksum"}))))
    at = meta
    for step in outer:
        at = at[step]
    return meta, at, key


def _with_meta(kind: str, folder: Path, meta: Any, *, allowed: Any = ("refused", "same", "other")) -> Mutant:
    files = artifact(folder) | {META: json.dumps(meta).encode()}
    with suppress(KeyError, TypeError, AttributeError):  # what holds the checksums is itself what was changed
        files = seal(files)
    return Mutant(kind, folder.name, files, allowed)


def _renamed_key(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    meta, at, key = _place(draw, folder)
    if isinstance(at, dict):
        at[draw(st.sampled_from([f"{key}x", key.upper(), "", "x", "../x"]))] = at.pop(key)
    else:
        del at[key]
    return _with_meta(kind, folder, meta, allowed=("refused",) if at is meta else ("refused", "same", "other"))


_OTHER_VALUES: list[Any] = [
    None, True, -1, 0, 3.5, 1e308, 10**30, -(10**30), "", "x", "nan", "é\u2028", "\ud800", [], [[]], {}, {"a": []},
    ["a"] * 50, 2**63, "../../../etc/passwd", "/etc/passwd", "a" * 5_000,
]  # fmt: skip


def _wrong_json(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    meta, at, key = _place(draw, folder)
    at[key] = draw(st.sampled_from(_OTHER_VALUES))
    return _with_meta(kind, folder, meta)


def _traversal(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    meta = json.loads(artifact(folder)[META])
    path = draw(
        st.sampled_from(["../../../etc/passwd", "/etc/passwd", "..", "eight_schools/../mnist", "mnist.npz", "os"])
    )
    way = draw(st.integers(0, 3))
    if way == 0:
        meta["method"] = path
    elif way == 1:
        meta["data"] = {"name": path, "fingerprint": meta["data"]["fingerprint"], "bundled": path, "options": {}}
    elif way == 2 and meta["schema"] > 1:
        meta["files"] = {path: meta["files"][TENSORS]}
    else:
        tensors = load_tensors(artifact(folder)[TENSORS])
        return _with_tensors(kind, folder, tensors | {f"params/{path}": torch.zeros(2), path: torch.zeros(2)})
    return _with_meta(kind, folder, meta, allowed=("refused",))


def _other_schema(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    meta = json.loads(artifact(folder)[META])
    own = meta["schema"]
    meta["schema"] = draw(
        st.sampled_from([s for s in (0, -1, 1, 2, 3, 99, 1.0, True, "1", None, [1], 10**40) if s != own])
    )
    files = artifact(folder) | {META: json.dumps(meta).encode()}
    return Mutant(kind, folder.name, files, ("refused",))


_GIANTS: list[tuple[str, str, Any]] = [
    ("schema-2-network", "hidden", [10**9]),
    ("schema-2-network", "hidden", [10**18]),
    ("schema-2-network", "hidden", [3_000] * 40),
    ("schema-2-network", "hidden", [1_000] * 1_000),
    ("schema-2-network", "hidden", [1] * 100_000),
    ("schema-2-network", "channels", [10**6]),
    ("schema-2-network", "hidden", [2**62, 2**62]),
    ("schema-2-table", "num_relevant", 1e308),
    ("schema-2-chains", "mu_scale", 1e308),
]


def _giant_hyper(draw: Draw, kind: str) -> Mutant:
    name, key, value = draw(st.sampled_from(_GIANTS))
    folder = next(f for f in KEPT if f.name == name)
    meta = json.loads(artifact(folder)[META])
    meta["hyper"][key] = value
    return _with_meta(kind, folder, meta, allowed=("refused", "other") if isinstance(value, float) else ("refused",))


_TEXTS: dict[str, Callable[[], bytes]] = {
    "deep lists": lambda: b"[" * 100_000 + b"]" * 100_000,
    "deep objects": lambda: b'{"format":' * 20_000 + b"0" + b"}" * 20_000,
    "lists, 20 MB": lambda: b'{"format": [' + b"[]," * 7_000_000 + b"0]}",
    "zeros, 20 MB": lambda: b'{"format": [' + b"0," * 10_000_000 + b"0]}",
    "a name, 23 MB": lambda: b'{"' + b"a" * 23_000_000 + b'": 0}',
    "wide characters, 20 MB": lambda: b'{"format": "' + "\U0001f600".encode() * 5_000_000 + b'"}',
    "zeros, 60 MB": lambda: b'{"format": [' + b"0," * 30_000_000 + b"0]}",
    "a long number": lambda: b'{"format": ' + b"9" * 1_000_000 + b"}",
    "NaN": lambda: b'{"format": NaN}',
}


def _json_bomb(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    text = _TEXTS[draw(st.sampled_from(sorted(_TEXTS)))]()
    return Mutant(kind, folder.name, artifact(folder) | {META: text}, ("refused",))


def _header_bomb(draw: Draw, kind: str) -> Mutant:
    folder = draw(st.sampled_from(KEPT))
    text = _TEXTS[draw(st.sampled_from(sorted(_TEXTS)))]()
    files = artifact(folder) | {TENSORS: struct.pack("<Q", len(text)) + text}
    return Mutant(kind, folder.name, seal(files), ("refused",))


# -------------------------------------------------------------------------------------------- data, checkpoints
def _data_accident(draw: Draw, kind: str) -> Mutant:
    source = draw(st.sampled_from(sorted(sources())))
    ((name, raw),) = sources()[source].items()
    way = draw(st.sampled_from(sorted(_ACCIDENTS)))
    allowed = ("refused", "same") if source == "checkpoint" else ("refused", "same", "other")
    return Mutant(f"{source}: {kind}", source, {name: _ACCIDENTS[way](draw, raw)}, allowed)


def _npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


_NPY = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}"


def _npz_trick(draw: Draw, kind: str) -> Mutant:
    name = draw(st.sampled_from(["x.npy", "../../../x.npy", "/etc/x.npy", "x", "x.txt", "\u2028.npy"]))
    kinds = ["'<f8'", "'|O'", "'|V8'", "[('a', '<f8'), ('b', '<f8')]", "'<U1000000000'", "'|S0'", "'<M8[s]'", "'<c16'"]
    shape = draw(
        st.sampled_from(["(30,)", "(10**12,)", "(1099511627776,)", "(2**62, 2**62)", "(-1,)", "()", "(0,)", "'a'"])
    )
    member = _npy(_NPY.format(draw(st.sampled_from(kinds)), shape), bytes(240))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        archive.writestr(name, member)
        archive.writestr("y.npy", _npy(_NPY.format("'<i8'", "(30,)"), (np.arange(30) % 3).astype("<i8").tobytes()))
    return Mutant(kind, "NPZ", {"mine.npz": content.getvalue()}, ("refused", "other"))


def _zip(method: int, megabytes: int) -> Files:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive, archive.open("x.npy", "w", force_zip64=True) as member:
        member.write(_npy(_NPY.format("'<f8'", f"({megabytes * 2**17},)")))
        for _ in range(megabytes):
            member.write(bytes(2**20))
    return {"mine.npz": content.getvalue()}


def _gzip(first: bytes, block: bytes, times: int) -> bytes:
    """Return a gzip file in parts, which is made without holding what it expands to."""
    return gzip.compress(first, 6) + gzip.compress(block * (2**24 // len(block)), 6) * times


_ARCHIVES: dict[str, Callable[[], Files]] = {
    "zip, deflate": lambda: _zip(zipfile.ZIP_DEFLATED, 800),
    "zip, bzip2": lambda: _zip(zipfile.ZIP_BZIP2, 40),
    "zip, lzma": lambda: _zip(zipfile.ZIP_LZMA, 40),
    "gzip": lambda: {"mine.csv.gz": _gzip(b"a,y\n", b"1,2\n", 100)},
    "gzip of lines": lambda: {"mine.tsv.gz": _gzip(b"a\ty\n", b"\n", 100)},
    "gzip of one line": lambda: {"mine.csv.gz": _gzip(b"a,y\n1,", b"2", 100)},
    "idx": lambda: {"train-images-idx3-ubyte.gz": _gzip(struct.pack(">4I", 0x803, 100 * 2**24, 1, 1), bytes(1), 100)},
    "idx header": lambda: {"train-images-idx3-ubyte": struct.pack(">4I", 0x803, 2**31, 2**31, 2**31) + bytes(100)},
}


@cache
def _archive(name: str) -> Files:
    return _ARCHIVES[name]()


def _archive_bomb(draw: Draw, kind: str) -> Mutant:
    name = draw(st.sampled_from(sorted(_ARCHIVES)))
    return Mutant(kind, name, _archive(name), ("refused",))


_KINDS: dict[str, Callable[[Draw, str], Mutant]] = {
    **dict.fromkeys(_ACCIDENTS, _accident),
    "files of two artifacts": _exchanged,
    "a file missing": _lost,
    "a file more": _surplus,
    "JSON in another order": _rewritten,
    "tensor renamed, sealed": _renamed_tensor,
    "tensor missing, sealed": _dropped_tensor,
    "wrong shape, sealed": _wrong_shape,
    "wrong type, sealed": _wrong_type,
    "NaN, sealed": _not_finite,
    "giant sizes in the header, sealed": _giant_header,
    "key renamed, sealed": _renamed_key,
    "JSON of a wrong type, sealed": _wrong_json,
    "path traversal, sealed": _traversal,
    "another schema": _other_schema,
    "giant hyper-parameters, sealed": _giant_hyper,
    "JSON bomb": _json_bomb,
    "header bomb, sealed": _header_bomb,
    "mutated": _data_accident,
    "NPZ: tricks": _npz_trick,
    "archive bomb": _archive_bomb,
}
BOMBS = ("giant hyper-parameters, sealed", "JSON bomb", "header bomb, sealed", "archive bomb")
_RARE = frozenset(BOMBS)  # a few of each are all that there are, and they take seconds


@st.composite
def mutants(draw: Draw, *, bombs: bool = True) -> Mutant:
    """Draw a mutant of a kind that is drawn first."""
    common = [kind for kind in _KINDS if kind not in _RARE]
    rare = bombs and draw(st.integers(0, 29)) == 0
    kind = draw(st.sampled_from(sorted(_RARE) if rare else common))
    return _KINDS[kind](draw, kind)


# ----------------------------------------------------------------------------------------------------- examined
class Hang(BaseException):
    """Reading took longer than :data:`SECONDS`."""


@contextmanager
def watched() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def examine(mutant: Mutant, folder: Path) -> str:
    """Read a mutant.

    Args:
        mutant: The mutant.
        folder: A place for its files, emptied before.

    Returns:
        ``refused``, ``same`` or ``other``; whatever is not allowed of this mutant raises.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in mutant.files.items():
        (folder / name).write_bytes(content)
    around = sorted(path.name for path in folder.parent.iterdir())
    try:
        with watched():
            same = _READERS.get(mutant.source, _read_data)(mutant, folder)
    except ZooError as error:
        text = str(error)
        assert text, mutant
        assert "\n" not in text, f"{mutant}: {text}"
        became = "refused"
    else:
        became = "same" if same else "other"
    assert became in mutant.allowed, f"{mutant} was {became}; allowed: {mutant.allowed}"
    assert sorted(path.name for path in folder.parent.iterdir()) == around
    assert {path.name for path in folder.iterdir()} == set(mutant.files)
    return became


@cache
def _original(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return _seen(zoo.load(folder))


def _seen(posterior: zoo.Posterior) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    found = posterior.predict(n=2, seed=5)
    tensors = {f"samples {k}": v for k, v in found.samples.items()} | {
        f"losses {k}": v for k, v in posterior.history.items()
    }
    tensors |= {f"draws {k}": v for k, v in posterior.draws(2, seed=5).items()}
    for i, other in enumerate(posterior.restarts):
        tensors |= {f"restart {i} {k}": v for k, v in other.params.items()}
    data = posterior.data
    about = {"hyper": posterior.hyper, "info": posterior.info, "name": posterior.name, "engine": posterior.engine}
    about |= {"columns": data.columns, "target": data.target, "data": data.name, "coords": dict(data.coords)}
    return about, tensors


def _read_artifact(mutant: Mutant, folder: Path) -> bool:
    about, tensors = _seen(zoo.load(folder))
    first, expected = _original(next(kept for kept in KEPT if kept.name == mutant.source))
    return (
        about == first
        and tensors.keys() == expected.keys()
        and all(torch.equal(value, expected[name]) for name, value in tensors.items())
    )


def _read_checkpoint(mutant: Mutant, folder: Path) -> bool:
    from zoo.inference.checkpoint import read
    from zoo.outputs import STATE_MARK

    original = folder.with_name("original")
    original.write_bytes(sources()["checkpoint"][_CHECKPOINT])
    try:
        (about, tensors), (first, expected) = (read(p, STATE_MARK) for p in (folder / _CHECKPOINT, original))
    finally:
        original.unlink()
    return about == first and all(torch.equal(tensors[name], value) for name, value in expected.items())


def _read_data(mutant: Mutant, folder: Path) -> bool:
    (name,) = mutant.files
    data = zoo.datasets.read(folder if name.startswith("train-") else folder / name, target="y")
    for value in data.train.values():
        assert not value.is_floating_point() or bool(torch.isfinite(value).all()), mutant
    return False


_READERS = {**{folder.name: _read_artifact for folder in KEPT}, "checkpoint": _read_checkpoint}


# ---------------------------------------------------------------------------------------------------- at length
@dataclass(frozen=True)
class Fuzzed:
    """What became of many mutants.

    Args:
        became: Kind -> what became of them -> how many.
        peak: Most memory that the process ever held, in bytes.
        before: The same before the first mutant was read.
    """

    became: dict[str, dict[str, int]]
    peak: int
    before: int


def _memory() -> int:
    # ru_maxrss would count what the parent held when it forked this process.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])  # type: ignore[index]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fuzz(count: int, seed: int) -> Fuzzed:
    """Examine mutants in this process; the first of which something forbidden becomes raises.

    Args:
        count: How many.
        seed: Of the mutants.

    Returns:
        What became of them.
    """
    became: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="zoo-fuzz-") as place:
        folder = Path(place) / "mutant"
        sources()
        for kept in KEPT:
            _original(kept)
        before = _memory()

        @seeded(seed)
        @settings(
            max_examples=count,
            phases=[Phase.generate, Phase.shrink],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(mutants())
        def run(mutant: Mutant) -> None:
            became.setdefault(mutant.kind, Counter())[examine(mutant, folder)] += 1

        run()
    return Fuzzed({kind: dict(found) for kind, found in sorted(became.items())}, _memory(), before)


def bombs() -> dict[str, Any]:
    """Examine every bomb once, in this process, and return what became of them and the most memory held."""
    became: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="zoo-fuzz-") as place:
        for kind in BOMBS:
            for choice in _CHOICES[kind]:
                mutant = _KINDS[kind](_chooses(choice), kind)
                became[examine(mutant, Path(place) / "mutant")] += 1
    return {"became": became, "peak": _memory()}


_CHOICES: dict[str, list[Any]] = {
    "giant hyper-parameters, sealed": list(_GIANTS),
    "JSON bomb": sorted(_TEXTS),
    "header bomb, sealed": sorted(_TEXTS),
    "archive bomb": sorted(_ARCHIVES),
}


def _chooses(choice: Any) -> Draw:
    """Return what draws this choice, where it is one of those that are drawn from, and else the newest artifact."""
    return lambda strategy: choice if choice in strategy.elements else KEPT[-1]


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:] == ["bombs"]:
        print(json.dumps(bombs()))
        return
    count, seed = map(int, sys.argv[1:])
    found = fuzz(count, seed)
    print(json.dumps({"became": found.became, "peak": found.peak, "before": found.before}))


if __name__ == "__main__":
    main()
