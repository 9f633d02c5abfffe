"""``zoo references``: what is asked of NUTS and of a guide, runs that are kept, the page, and the command's errors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pyro.infer.autoguide import AutoNormal
from typer.testing import CliRunner

import zoo
from zoo import cli, references
from zoo.diagnostics import diagnose
from zoo.errors import DataError, NonFiniteError, UnknownNameError
from zoo.references import measure as measuring
from zoo.references.measure import measure
from zoo.references.results import GUIDES, Chains, Measured, Result, Settings, Variational

SCHOOLS, PROCESS = "eight_schools-eight_schools_noncentered", "gp_pois_regr-gp_regr"
FEW = Settings(chains=1, tune=200, draws=200, guide_seeds=1, steps=150, guide_draws=400)


def chains(*z: float) -> Chains:
    means = {f"beta[{i + 1}]": v for i, v in enumerate(z)}
    return Chains(
        z_mean=means,
        z_sd={"sigma": 0.1},
        tune=5,
        draws=10,
        seconds=1.0,
        cpu_seconds=3.0,
        compile_seconds=2.0,
        min_ess=999.0,
        divergences=0,
    )


def guide(mean: float = 0.0, ratio: float = 1.0, verdict: str = "usable", **changes: Any) -> Variational:
    made = Variational(
        guide="AutoNormal",
        seed=0,
        mean_error={"mu": mean, "tau": 0.01},
        sd_ratio={"mu": ratio, "tau": 1.01},
        seconds=1.0,
        verdict=verdict,
        reasons=("?pareto_k",),
    )
    return dataclasses.replace(made, **changes)


def result(*parts: tuple[Chains, tuple[Variational, ...]]) -> Result:
    measured = tuple(Measured(name=f"data-{i}", chains=c, guides=g) for i, (c, g) in enumerate(parts))
    machine = {"processor": "p", "cores": 2, "system": "s"}
    return Result(measured=measured, settings=Settings(), machine=machine, versions={"torch": "2"})


# --------------------------------------------------------------------------------------------------------- judgement
@pytest.mark.parametrize(
    ("z", "right"),
    [
        ((0.5, -2.9), True),
        ((3.1, -4.4), True),
        ((3.1, -4.4, 3.2), False),
        ((-4.6,), False),
        ((math.nan,), False),
    ],
)
def test_nuts_may_differ_twice_but_never_by_much(z: tuple[float, ...], right: bool) -> None:
    assert result((chains(*z), ())).agrees is right


def test_chains_that_do_not_mix_are_not_right_however_large_their_errors() -> None:
    assert not result((chains(0.1), ()), (dataclasses.replace(chains(0.1), min_ess=399.0), ())).agrees
    assert result((dataclasses.replace(chains(0.1), min_ess=400.0), ())).agrees


@pytest.mark.parametrize(
    ("fit", "off"),
    [
        (guide(), False),
        (guide(mean=-0.29, ratio=0.81), False),
        (guide(mean=-0.31), True),
        (guide(ratio=0.79), True),
        (guide(ratio=1.26), True),
        (guide(mean=math.nan), True),
        (guide(ratio=0.0), True),
        (guide(mean_error={}, sd_ratio={}, verdict="failed"), True),
    ],
)
def test_a_guide_is_off_by_its_worst_parameter(fit: Variational, off: bool) -> None:
    assert fit.off is off


def test_the_furthest_ratio_is_taken_as_a_factor() -> None:
    assert guide(sd_ratio={"a": 0.5, "b": 1.9}).worst_ratio == 0.5
    assert guide(sd_ratio={"a": 0.6, "b": 1.9}).worst_ratio == 1.9


def test_the_page_counts_verdicts_against_errors() -> None:
    fits = (guide(), guide(mean=1), guide(mean=1, verdict="do not use"), guide(verdict="do not use"))
    page = result((chains(1.0), (*fits, guide(ratio=9.0, verdict="usable with care")))).to_markdown("zoo references")
    assert "| usable | 2 | 1 |\n| usable with care | 1 | 1 |\n| do not use | 2 | 1 |" in page
    assert "**False confidence: 1 of 5 (1% to 72%) of all fits are off and yet called 'usable'**, 1 of 3" in page
    assert "1 of 2 (1% to 99%) of the fits that are not off are called 'do not use'" in page
    assert "| data-0 | AutoNormal | 0.01 / 1 / 1 / 0.01 / 0.01 |" in page
    assert "Of 2 means and standard deviations, **0 differ by more than 3 errors**" in page
    alone = result((chains(5.0), ())).to_markdown("zoo references")
    assert "not as it should be" in alone
    assert "## Guides" not in alone
    assert "Guides were not run" in alone
    assert "Not run by this command: arK-arK, " in alone


# --------------------------------------------------------------------------------------------------------------- runs
@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("references")
    return measure(names=[SCHOOLS], settings=FEW, out=out, compile=False), out


def test_two_posteriors_from_end_to_end(first: tuple[Result, Path]) -> None:
    found, out = first
    process = measure(names=[PROCESS], settings=dataclasses.replace(FEW, guide_seeds=0), compile=False)
    for m in (*found.measured, *process.measured):
        assert set(m.chains.z_mean) == set(m.chains.z_sd) == set(references.read(m.name).moments)
        assert max(m.chains.z) < 4.5
        assert m.chains.min_ess > 20
    guides = found.measured[0].guides
    assert [g.guide for g in guides] == list(GUIDES)
    assert all(set(g.sd_ratio) == set(references.read(SCHOOLS).moments) for g in guides)
    assert {g.verdict for g in guides} <= {"usable", "usable with care", "do not use"}
    # 150 steps from the start that Pyro chooses arrive nowhere, which the measurement has to show.
    assert all(g.off for g in guides)
    assert json.loads((out / "references.json").read_text())["agrees"] is found.agrees


def test_a_call_goes_on_where_one_stopped(first: tuple[Result, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found, out = first
    asked: list[tuple[str, str, int]] = []

    def sampled(reference: references.Reference, *_: object) -> Chains:
        asked.append((reference.name, "nuts", 0))
        return found.measured[0].chains

    def fitted(reference: references.Reference, name: str, seed: int, *_: object) -> Variational:
        asked.append((reference.name, name, seed))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return guide(guide=name, seed=seed, mean=math.inf)

    monkeypatch.setattr(measuring, "_sampled", sampled)
    monkeypatch.setattr(measuring, "_fitted", fitted)
    again = measure(names=[SCHOOLS], settings=FEW, out=out)
    assert asked == []
    assert json.loads(json.dumps(again.to_json())) == json.loads(json.dumps(found.to_json()))
    two = dataclasses.replace(FEW, guide_seeds=2)
    with pytest.raises(KeyboardInterrupt):
        measure(names=[SCHOOLS], settings=two, out=out)
    # What was finished before the interruption is not made again.
    more = measure(names=[SCHOOLS], settings=two, out=out)
    assert asked == [(SCHOOLS, GUIDES[0], 1), (SCHOOLS, GUIDES[1], 1), (SCHOOLS, GUIDES[1], 1)]
    assert [g.seed for g in more.measured[0].guides] == [0, 1, 0, 1]
    assert measure(names=[SCHOOLS], settings=two, out=out).measured[0].guides[-1].off  # infinite is stored as nothing
    measure(names=[SCHOOLS], settings=dataclasses.replace(FEW, steps=151, guide_seeds=0), out=out)
    assert asked[-1] == (SCHOOLS, "nuts", 0)  # other settings are measured anew


def test_a_fit_that_stops_is_reported_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise NonFiniteError("the loss is nan\nat step 3")

    monkeypatch.setattr(zoo, "fit", stop, raising=False)
    found = measuring._fitted(references.load(SCHOOLS), "AutoNormal", 0, FEW, False)
    assert (found.verdict, found.reasons, found.off) == ("failed", ["the loss is nan at step 3"], True)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="posterior 'garch' is not bundled; did you mean 'garch-garch11'"):
        measure(names=["garch"])
    with pytest.raises(DataError, match="draws is 3; it must be at least 4"):
        measure(settings=Settings(draws=3))
    (tmp_path / f"{SCHOOLS}.json").write_text("{}")
    with pytest.raises(DataError, match="no measurement written by zoo"):
        measure(names=[SCHOOLS], settings=FEW, out=tmp_path)


def test_data_are_never_simulated_from_an_improper_prior() -> None:
    for name, proper in (("garch-garch11", False), (PROCESS, True)):
        reference = references.load(name)
        pair = zoo.Pair(reference.model, AutoNormal(reference.model))
        posterior = zoo.fit(pair, reference.data, steps=50, dtype="float64", compile=False)
        check = diagnose(posterior, checks=["prior_predictive_check"])["prior_predictive_check"]
        assert (check.verdict != "not run") is proper
        assert ("improper" in check.explanation) is not proper
        assert ("prior" in posterior.to_datatree(num_draws=20).children) is proper


# ------------------------------------------------------------------------------------------------------------ command
def run(*args: str) -> Any:
    return CliRunner().invoke(cli.app, ["references", *args])


def test_the_command_names_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for args, text in (
        (("arK",), "posterior 'arK' is not bundled; did you mean 'arK-arK'?"),
        ((SCHOOLS, "--out", str(tmp_path / "file" / "folder")), "cannot write"),
    ):
        found = run(*args)
        assert found.exit_code == 2
        assert text in found.stderr
        assert found.stderr.count("\n") == 1
    assert run(SCHOOLS, "--draws", "1").exit_code == 2


def test_the_command_writes_the_page_and_fails_where_nuts_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_fitted", lambda _, name, seed, *__: guide(guide=name, seed=seed, mean=2.0))
    for z, code, word in ((1.0, 0, "as it should be"), (4.6, 1, "not as it should be")):
        monkeypatch.setattr(measuring, "_sampled", lambda *_, z=z: chains(z))
        out = tmp_path / str(code)
        found = run(SCHOOLS, "--seeds", "1", "--out", str(out), "--quiet")
        assert (found.exit_code, found.stdout.strip()) == (code, word)
        page = (out / "references.md").read_text()
        assert f"Made by `zoo references {SCHOOLS} --out {out} --seeds 1`" in page
        assert "2 of 2 (16% to 100%) of all fits are off and yet called 'usable'" in page
    shown = run(SCHOOLS, "--seeds", "1", "--out", str(tmp_path / "0"))
    assert "measured before" in shown.stderr
    assert "2 of 2" in shown.stdout
