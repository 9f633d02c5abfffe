"""Claims measured over seeds, with a tiny method of known values."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import zoo.registry
from zoo.claims import fingerprint, reproduce
from zoo.errors import DataError, UnknownMethodError
from zoo.types import Acceptance, Claim


class Fake:
    """A method with counted measurements."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, bool]] = []
        self.fail_at: int | None = None
        self.source = "X = 1\n"

        def measure_error(seed: int, fast: bool) -> dict[str, float]:
            self.calls.append(("error", seed, fast))
            if self.fail_at == seed:
                raise KeyboardInterrupt
            return {"error": 1.0 + 0.1 * seed, "baseline": 2.0 + 0.1 * seed}

        def measure_bits(seed: int, fast: bool) -> dict[str, float]:
            self.calls.append(("bits", seed, fast))
            return {"bits": math.nan if seed == 1 else 4.0}

        measure_error.__qualname__ = "measure_error"
        measure_bits.__qualname__ = "measure_bits"
        error = Claim(
            statement="Smaller error",
            published="1.0 | 2.0",
            source="table 1",
            measure=measure_error,
            acceptance=(Acceptance(key="error", below="baseline"), Acceptance(key="error", high=1.05)),
            budget=1,
            seeds=3,
        )
        again = replace(error, statement="Error at most 1.2", acceptance=(Acceptance(key="error", high=1.2),))
        bits = replace(
            error, statement="Few bits", measure=measure_bits, acceptance=(Acceptance(key="bits", high=5),), seeds=2
        )
        self.claims = (error, again, bits)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    made = Fake()
    path = tmp_path / "tiny.py"
    path.write_text(made.source)
    method = SimpleNamespace(title="Tiny", paper="tiny2020", claims=made.claims)
    monkeypatch.setattr(zoo.registry, "get", lambda name: method)
    monkeypatch.setattr(zoo.registry, "entries", lambda: (SimpleNamespace(name="tiny", path=path),))
    made.path = path  # type: ignore[attr-defined]
    made.method = method  # type: ignore[attr-defined]
    return made


def test_verdicts_and_means(fake: Fake) -> None:
    found = reproduce("tiny")
    first, second, third = found.claims
    assert first.met == (True, False)
    assert first.verdict == "partly"
    assert first.mean("error") == pytest.approx(1.1)
    assert first.sd("error") == pytest.approx(0.1)
    assert second.verdict == "reproduced"
    assert third.verdict == "not reproduced", "a value that is not a number meets nothing"
    assert found.verdict == "partly"


def test_claims_that_share_a_measurement_share_its_runs(fake: Fake) -> None:
    reproduce("tiny")
    assert [c for c in fake.calls if c[0] == "error"] == [("error", s, False) for s in range(3)]


def test_fast_takes_one_seed_and_says_so_to_the_measurement(fake: Fake) -> None:
    found = reproduce("tiny", fast=True)
    assert fake.calls == [("error", 0, True), ("bits", 0, True)]
    assert "Fast subset" in found.to_markdown()


def test_finished_seeds_are_not_run_again(fake: Fake, tmp_path: Path) -> None:
    fake.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        reproduce("tiny", out=tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert not stored["complete"]
    assert [s["seed"] for s in stored["stored"]] == [0, 1]
    fake.fail_at = None
    fake.calls.clear()
    lines: list[str] = []
    found = reproduce("tiny", out=tmp_path / "out", progress=lines.append)
    assert fake.calls == [("error", 2, False), ("bits", 0, False), ("bits", 1, False)]
    assert sum("measured before" in line for line in lines) == 2
    assert found.claims[0].mean("error") == pytest.approx(1.1)
    fake.calls.clear()
    reproduce("tiny", out=tmp_path / "out", seeds=2)
    assert fake.calls == []
    assert {s["seed"] for s in json.loads((tmp_path / "out" / "tiny.json").read_text())["stored"]} == {0, 1, 2}


def test_other_settings_run_again(fake: Fake, tmp_path: Path) -> None:
    reproduce("tiny", out=tmp_path / "out", seeds=1)
    fake.calls.clear()
    reproduce("tiny", out=tmp_path / "out", seeds=1, fast=True)
    assert len(fake.calls) == 2, "fast"
    fake.calls.clear()
    fake.path.write_text("X = 2\n")  # type: ignore[attr-defined]
    reproduce("tiny", out=tmp_path / "out", seeds=1, fast=True)
    assert len(fake.calls) == 2, "changed code"


def test_wording_does_not_invalidate_runs(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        '"""One."""\nC = Claim(statement="a", measure=f, acceptance=())\ndef f(x):\n    """Doc."""\n    return 1\n'
    )
    first = fingerprint(path)
    path.write_text(
        '"""Two."""\nC = Claim(statement="b", measure=f, acceptance=(1,))\n\ndef f(x):\n    return 1  # same\n'
    )
    assert fingerprint(path) == first
    path.write_text('"""Two."""\nC = Claim(statement="b", measure=f)\n\ndef f(x):\n    return 2\n')
    assert fingerprint(path) != first


def test_json_holds_no_nan_and_markdown_every_seed(fake: Fake, tmp_path: Path) -> None:
    reproduce("tiny", out=tmp_path)
    text = (tmp_path / "tiny.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["complete"]
    assert found["verdict"] == "partly"
    assert found["claims"][0]["summary"]["error"]["mean"] == pytest.approx(1.1)
    assert found["claims"][2]["runs"][1]["values"]["bits"] is None
    page = (tmp_path / "tiny.md").read_text()
    assert "| error | 1 | 1.1 | 1.2 | 1.1 ± 0.1 |" in page
    assert "- not met: mean of error at most 1.05" in page
    assert "- met: mean of error below baseline" in page
    assert "zoo reproduce tiny" in page


@pytest.mark.parametrize("rest", ["", "\n## See also\nmore\n"])
def test_docs_block_is_replaced_and_the_rest_stays(fake: Fake, tmp_path: Path, rest: str) -> None:
    page = tmp_path / "tiny.md"
    page.write_text(f"# Tiny\ntext\n<!-- claims -->\nold{rest}")
    for _ in range(2):
        reproduce("tiny", seeds=1, docs=page)
    text = page.read_text()
    assert text.startswith("# Tiny\ntext\n<!-- claims -->\n### Claim 1: Smaller error")
    assert "old" not in text
    assert text.count("### Claim 1") == 1
    assert text.endswith("## See also\nmore\n") == bool(rest)


@pytest.mark.parametrize("text", [None, "# no marker\n"])
def test_docs_without_place_for_the_table_fail_before_any_run(fake: Fake, tmp_path: Path, text: str | None) -> None:
    page = tmp_path / "tiny.md"
    if text is not None:
        page.write_text(text)
    with pytest.raises(DataError, match="claims"):
        reproduce("tiny", docs=page)
    assert fake.calls == []


@pytest.mark.parametrize("seeds", [0, [], [-1]])
def test_bad_seeds(fake: Fake, seeds: object) -> None:
    with pytest.raises(DataError, match="seeds"):
        reproduce("tiny", seeds=seeds)  # type: ignore[arg-type]


def test_no_claims_and_unknown_name(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.method.claims = ()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no claims"):
        reproduce("tiny")
    monkeypatch.undo()
    with pytest.raises(UnknownMethodError):
        reproduce("no_such_method")


def test_a_foreign_file_is_not_overwritten(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text('{"mine": 1}')
    with pytest.raises(DataError, match="no reproduction"):
        reproduce("tiny", out=tmp_path)
    assert (tmp_path / "tiny.json").read_text() == '{"mine": 1}'
    assert fake.calls == []


def test_unwritable_folder_fails_before_any_run(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        reproduce("tiny", out=tmp_path / "file")
    assert fake.calls == []


@pytest.mark.parametrize(
    ("acceptance", "runs", "met"),
    [
        (Acceptance(key="a", below="b"), [(1.0, 2.0), (1.0, 2.2)], True),
        (Acceptance(key="a", below="b"), [(1.0, 1.0), (1.0, 1.2)], False),  # 0.1, with a standard error of 0.1
        (Acceptance(key="a", below="b", errors=1.0), [(1.0, 1.0), (1.0, 1.2)], True),
        (Acceptance(key="a", below="b", errors=1.0), [(1.0, 0.9), (1.0, 0.9)], False),
        (Acceptance(key="a", below="b", errors=1.0), [(1.0, 1.0)], True),
        (Acceptance(key="a", below="b"), [(1.0, 1.0)], False),
        (Acceptance(key="a", above="b", errors=1.0), [(1.0, 1.3), (1.0, 0.9)], True),  # -0.1, with 0.2
        (Acceptance(key="a", above="b", errors=0.4), [(1.0, 1.3), (1.0, 0.9)], False),
        (Acceptance(key="a", high=1.0), [(1.0, 0.0), (1.2, 0.0)], False),
        (Acceptance(key="a", high=1.0, errors=1.0), [(1.0, 0.0), (1.2, 0.0)], True),
        (Acceptance(key="a", high=0.9, errors=1.0), [(1.0, 0.0), (1.2, 0.0)], False),
        (Acceptance(key="a", low=1.2, errors=1.0), [(1.0, 0.0), (1.2, 0.0)], True),
        (Acceptance(key="a", low=1.2), [(1.0, 0.0), (1.1, 0.0), (9.0, 0.0)], True),
        (Acceptance(key="a", low=1.2, median=True), [(1.0, 0.0), (1.1, 0.0), (9.0, 0.0)], False),  # one seed lifts it
        (Acceptance(key="a", low=1.2, median=True), [(1.0, 0.0), (1.3, 0.0), (9.0, 0.0)], True),
    ],
)
def test_acceptance_with_standard_errors(acceptance: Acceptance, runs: list[tuple[float, float]], met: bool) -> None:
    assert acceptance.met([{"a": a, "b": b} for a, b in runs]) is met
