"""The page: whole, self-contained, true to the posterior; with fakes for its parts and with real fits."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr
from read_pages import ACTIVE, Page, accessible, self_contained

import zoo
from zoo import reports
from zoo.diagnostics import CHECKS, Check, Diagnosis, diagnose
from zoo.diagnostics._arviz import inference_data, tail_ess
from zoo.diagnostics.meaning import MEANING
from zoo.errors import DataError
from zoo.reports import illustrate, page
from zoo.reports.parts import Parts
from zoo.types import Dataset


def read(path: Path) -> Page:
    """Read a report and check what holds of every report."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    self_contained(text, found)
    accessible(text, found)
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= set(found.ids)
    assert "nan" not in re.findall(r"[\w.]+", found.text.lower())
    assert "None" not in re.findall(r"\w+", found.text)
    numbers = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert numbers["verdict"].lower() in found.text.lower()
    for check in numbers["checks"]:
        assert check["title"] in found.text
        if check["verdict"] != "not run":
            assert check["threshold"].rstrip(".") in found.text
            assert check["source"].rstrip(".") in found.text
    return found


def check(name: str, verdict: Any = "pass", **more: Any) -> Check:
    """Return a check that says something."""
    settings: dict[str, Any] = {
        "about": "parameters",
        "value": {"a": 0.5},
        "threshold": "below 1",
        "source": "Paper (2020)",
    }
    return Check(name=name, title=f"{name}?", verdict=verdict, explanation="In a sentence.", **{**settings, **more})


def diagnosis(
    *checks: Check, verdict: Any = "usable", reasons: tuple[str, ...] = ("Every check passed.",)
) -> Diagnosis:
    """Return a diagnosis that says so."""
    return Diagnosis(checks=checks, parameters=verdict, predictions="usable", verdict=verdict, reasons=reasons)


class FakePosterior:
    """A posterior of chains or of a guide, without a model."""

    def __init__(self, engine: str = "svi", *, name: str = "toy", large: int = 0) -> None:
        rng = np.random.default_rng(0)
        shape = (4, 200) if engine == "nuts" else (1, 400)
        self.values = {"mu": rng.normal(3, 1, shape), "theta": rng.normal(-2, 0.1, (*shape, 3))}
        self.values["tau"] = np.exp(rng.normal(0, 1, shape))
        if large:
            self.values["w"] = rng.normal(0, 1, (*shape, large))
        self.engine, self.name, self.method, self.hyper = engine, name, None, None
        self.pair = zoo.Pair(lambda batch: None)
        self.history = {"elbo": torch.linspace(9, 1, 50)} if engine == "svi" else {}
        self.losses = next(iter(self.history.values()), torch.empty(0))
        self.chains = {k: torch.tensor(v) for k, v in self.values.items()} if engine == "nuts" else None
        diverging = torch.zeros(4, 200, dtype=torch.bool)
        diverging[0, :7] = True
        self.sample_stats = {"diverging": diverging} if engine == "nuts" else None
        self.info: dict[str, Any] = {"seed": 3, "seconds": 1.5, "versions": {"torch": "9.9"}}
        self.seconds, self.num_parameters, self.num_latents, self.diagnosis = 1.5, 8, 5, None
        self.data = Dataset(
            name="mine<b>",
            task="",
            train={"y": torch.zeros(5), "index": torch.arange(5)},
            source="field trip",
            licence="CC0",
            description="Five & zeros.",
        )

    def to_arviz(self, **_: Any) -> Any:
        dims = {"theta": ("school",), "w": ("w_dim_0",)}
        values = {k: (("chain", "draw", *dims.get(k, ())), v) for k, v in self.values.items()}
        return inference_data({"posterior": xr.Dataset(values, {"school": ["a", "b", "<c>"]})}, {})

    def summary(self) -> dict[str, Any]:
        return {"units kept": 12, "bits": 4.25, "layer 1": {"kept": 3, "of": 10}, "layer 2": {"kept": 2, "of": 5}}


@pytest.mark.parametrize("engine", ["svi", "nuts"])
def test_page_of_a_bare_pair(tmp_path: Path, engine: str) -> None:
    posterior = FakePosterior(engine)
    found = diagnosis(
        check("r_hat", "warn"), check("pareto_k", "not run"), verdict="usable with care", reasons=("Mind x.",)
    )
    path = reports.write(posterior, tmp_path / "r.html", diagnosis=found).page  # type: ignore[arg-type]
    shown = read(path)
    assert "Usable with care" in shown.text
    assert "Mind x." in shown.text
    assert "mine<b>" in shown.text, "names are escaped, not interpreted"
    assert "b" not in set(shown.tags) - {"b"} or shown.tags.count("b") == shown.text.count("Figure ")
    for word in ("field trip", "CC0", "Five & zeros.", "units kept", "<c>", "torch", "9.9"):
        assert word in shown.text
    assert ("ESS bulk" in shown.text) == (engine == "nuts"), "columns of chains"
    assert ("figure-pairs" in shown.ids) == (engine == "nuts")
    assert ("figure-loss" in shown.ids) == (engine == "svi")
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert numbers["quantities"]["layer 1"] == {"kept": 3, "of": 10}
    assert numbers["fit"]["seed"] == 3
    assert [c["verdict"] for c in numbers["checks"]] == ["warn", "not run"]


def test_posterior_table_is_true() -> None:
    posterior = FakePosterior("nuts")
    small, large = page.posterior_rows(posterior.to_arviz().posterior, chains=True)
    assert large == []
    rows = {(r["site"], r["element"]): r for r in small}
    assert set(rows) == {("mu", ""), ("tau", ""), ("theta", "a"), ("theta", "b"), ("theta", "<c>")}
    row, values = rows["theta", "b"], posterior.values["theta"][:, :, 1]
    assert row["mean"] == pytest.approx(values.mean())
    assert row["sd"] == pytest.approx(values.std(ddof=1))
    assert row["5%"] == pytest.approx(np.quantile(values, 0.05))
    assert row["r_hat"] == pytest.approx(float(az.rhat(values)))
    assert row["ess_tail"] == pytest.approx(tail_ess(values))


def test_large_sites_are_summarised_and_counted(tmp_path: Path) -> None:
    posterior = FakePosterior("nuts", large=200)
    path = reports.write(posterior, tmp_path / "r.html", diagnosis=diagnosis(check("r_hat"))).page  # type: ignore[arg-type]
    assert "200 elements in large sites" in read(path).text
    large = json.loads(path.with_suffix(".json").read_text())["large_sites"]
    assert [(r["site"], r["elements"]) for r in large] == [("w", 200)]
    assert large[0]["median_sd"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (12345, "12,345"),
        (-3, "−3"),
        (0.0, "0"),
        (10.0, "10"),
        (0.012345, "0.01235"),
        (-123.456, "−123.5"),
        (1e-7, "1.000e−07"),
        (float("nan"), "–"),
        (float("-inf"), "−∞"),
        (torch.tensor(2.5), "2.500"),
        ([1, 2.5], "1, 2.500"),
        ({"a": 1}, "a 1"),
        ("text", "text"),
    ],
)
def test_numbers_as_text(value: Any, text: str) -> None:
    assert page.show(value) == text


def test_figures_of_checks(tmp_path: Path) -> None:
    checks = (
        check("pareto_k", figure="khat", data={"values": np.array([0.3, 0.9, np.inf]), "limit": np.array(0.67)}),
        check("restart_agreement", figure="bars", data={"values": np.array([1.2, 1.0])}),
        check("funnel", figure="funnel", value={"site": "theta"}, data={"log_scale": np.ones(9), "value": np.ones(9)}),
        check(
            "predictive_check",
            about="predictions",
            figure="ppc",
            data={"observed": np.arange(50.0), "replicated": np.ones((9, 50)), "discrete": np.array(False)},
        ),
        check(
            "calibration",
            about="predictions",
            figure="coverage",
            data={"predicted": np.array([0.5]), "observed": np.array([0.4]), "counts": np.array([10])},
        ),
        check("loo", about="comparison", figure="loo", data={"values": np.array([0.1, 0.9]), "limit": np.array(0.7)}),
    )
    path = reports.write(FakePosterior(), tmp_path / "r.html", diagnosis=diagnosis(*checks)).page  # type: ignore[arg-type]
    shown = read(path)
    figures = {i.removeprefix("figure-") for i in shown.ids if i.startswith("figure-")}
    assert figures == {"forest-0", "loss", "khat", "restart_agreement", "funnel", "ppc", "reliability", "loo"}
    numbered = [int(n) for n in re.findall(r"Figure (\d+)\.", shown.text)]
    assert numbered == list(range(1, len(numbered) + 1))


def test_every_check_is_explained_to_a_newcomer_and_stands_by_its_figure(tmp_path: Path) -> None:
    assert set(MEANING) == set(CHECKS)
    assert all(text.endswith(".") and text.count(". ") == 0 for text in MEANING.values()), "one sentence"
    data = {"values": np.array([0.3, 0.9]), "limit": np.array(0.67)}
    found = diagnosis(check("pareto_k", figure="khat", data=data), check("funnel", "not run"))
    text = reports.write(FakePosterior(), tmp_path / "r.html", diagnosis=found).page.read_text()  # type: ignore[arg-type]
    own = re.search(r'<li id="check-pareto_k".*?</li>', text, flags=re.DOTALL)
    assert own is not None
    assert html.escape(MEANING["pareto_k"], quote=False) in own[0].replace("&#39;", "'")
    assert 'id="figure-khat"' in own[0]
    assert 'href="#check-pareto_k"' in text, "the table of all checks leads there"


def test_the_verdict_and_its_reason_come_first(tmp_path: Path) -> None:
    reasons = tuple(f"Reason {i}." for i in range(9))
    found = diagnosis(check("r_hat", "fail"), verdict="do not use", reasons=reasons)
    text = reports.write(FakePosterior(), tmp_path / "r.html", diagnosis=found).page.read_text()  # type: ignore[arg-type]
    head = text[text.index("<h1>") : text.index("<nav")]
    assert head.index("Do not use") < head.index("Reason 0.") < head.index("<details") < head.index("Reason 8.")


def test_model_card(tmp_path: Path) -> None:
    rows = (check("r_hat", "warn", threshold="a | b"), check("pareto_k", "not run"))
    found = diagnosis(*rows, verdict="usable with care", reasons=("Mind *x*.",))
    written = reports.write(FakePosterior("nuts"), tmp_path / "report.html", diagnosis=found)  # type: ignore[arg-type]
    assert written.card == tmp_path / "MODEL_CARD.md"
    text = written.card.read_text(encoding="utf-8")
    assert "**Verdict: usable with care.** Mind \\*x\\*." in text
    assert "| warn | r\\_hat? | a: 0.500 | a \\| b | Paper (2020) |" in text
    assert "mine\\<b\\>" in text, "names are escaped, not interpreted"
    titles = re.findall(r"^## (.*)", text, flags=re.MULTILINE)
    assert titles == [
        "Model",
        "Data",
        "Recipe",
        "Checks",
        "Metrics",
        "Quantities of interest",
        "Limits",
        "Citation",
        "Versions",
    ]
    limits = text[text.index("## Limits") : text.index("## Citation")]
    assert "Mind" in limits
    assert "Not checked: pareto\\_k? In a sentence." in limits
    for word in ("field trip", "CC0", "| torch | 9.9 |", "| units kept | 12 |"):
        assert word in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, "every row has the columns of its header"
    assert reports.write(FakePosterior(), written, diagnosis=found).card == written.card  # type: ignore[arg-type]


def test_a_model_card_replaces_no_file_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "MODEL_CARD.md").write_text("mine")
    with pytest.raises(DataError, match="did not write"):
        reports.write(FakePosterior(), tmp_path / "report.html", diagnosis=diagnosis())  # type: ignore[arg-type]
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]
    other = reports.write(FakePosterior(), tmp_path / "page.html", diagnosis=diagnosis())  # type: ignore[arg-type]
    assert other.card.name == "page.md"


def test_a_notebook_shows_verdict_and_checks_without_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosis(check("a<b", "fail"), check("r_hat", "not run"), verdict="do not use", reasons=("No & no.",))
    written = reports.write(FakePosterior(), tmp_path / "r.html", diagnosis=found)  # type: ignore[arg-type]
    posterior = zoo.fit("eight_schools", engine="svi", steps=2, seed=0, compile=False)
    monkeypatch.setattr(type(posterior.runs), "map", pytest.fail)
    monkeypatch.setattr(type(posterior), "draws", pytest.fail)
    assert "Not checked yet" in posterior._repr_html_()
    posterior.diagnosis = found
    for text in (found._repr_html_(), posterior._repr_html_(), written._repr_html_()):
        shown = Page(text)
        assert "do not use" in shown.text
        assert "No & no." in shown.text
        assert "a<b?" in shown.text
        assert "a: 0.500" in shown.text
        assert "1 check did not run." in shown.text
        assert not shown.requests
        assert not ACTIVE & set(shown.tags)
    assert "8 rows" in posterior._repr_html_()
    assert str(written.card) in Page(written._repr_html_()).text


def test_checks_of_a_fit_are_kept_for_the_notebook() -> None:
    posterior = zoo.fit("eight_schools", engine="svi", steps=2, seed=0, compile=False)
    diagnose(posterior, checks=["optimiser_stationarity"])
    assert posterior.diagnosis is None, "a part of the checks is no verdict"
    assert diagnose(posterior, num_draws=20) is posterior.diagnosis


def test_predictive_figure_is_in_the_units_of_the_user() -> None:
    data = zoo.datasets.load("diabetes")
    posterior = SimpleNamespace(data=data)
    y = data.train["y"].numpy()
    found = check(
        "predictive_check", figure="ppc", data={"observed": y, "replicated": y[None], "discrete": np.array(False)}
    )
    drawing = illustrate.checks(posterior, diagnosis(found), Parts())["predictive_check"]  # type: ignore[arg-type]
    assert "progression" in drawing.caption
    ticks = [float(t) for t in re.findall(r">(\d+)</text>", drawing.svg)]
    assert max(ticks) >= 200, "progression goes up to 346, not to two standard deviations"


def test_bad_paths_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "r.txt", tmp_path / "r", tmp_path / "file" / "r.html"):
        with pytest.raises(DataError):
            reports.write(FakePosterior(), path, diagnosis=diagnosis(check("r_hat")))  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------------------------------------------- real fits
def test_report_of_a_regression(tmp_path: Path) -> None:
    posterior = zoo.fit("horseshoe_regression", "diabetes", engine="svi", steps=150, seed=1, compile=False)
    path = posterior.report(tmp_path / "r.html").page
    shown = read(path)
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert numbers["scores"]["test"]["rmse"] > 0
    assert numbers["fit"]["steps"] == 150
    assert {c["name"] for c in numbers["checks"]} >= {"optimiser_stationarity", "pareto_k", "calibration", "loo"}
    assert "zoo fit horseshoe_regression --data diabetes --engine svi --steps 150 --seed 1" in shown.text
    assert "@article{" in shown.text
    assert {"figure-loss", "figure-ppc", "figure-reliability", "figure-khat"} <= set(shown.ids)
    assert ":math:" not in shown.text
    assert "bmi" in shown.text


def test_report_of_a_loaded_posterior_is_the_same(tmp_path: Path) -> None:
    posterior = zoo.fit("eight_schools", engine="svi", steps=60, seed=0, compile=False)
    posterior.report(tmp_path / "a.html")
    zoo.load(posterior.save(tmp_path / "p")).report(tmp_path / "b.html")
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "ab")
    first.pop("date")
    second.pop("date")
    assert first == second


def test_a_long_hyper_parameter_is_cut_and_a_fit_from_given_parameters_states_no_command() -> None:
    assert page._plain(tuple(range(3))) == "0, 1, 2"
    assert page._plain(tuple(range(200))) == "0, 1, 2, 3, 4, 5, … (200 values)"
    hyper = {"hidden": (4,)}
    first = zoo.fit("bayesian_compression", "digits", hyper=hyper, steps=2, compile=False)
    assert "zoo fit bayesian_compression" in page.default_command(first)
    again = zoo.fit("bayesian_compression", "digits", hyper=hyper, steps=2, compile=False, init=first.params)
    assert page.default_command(again) == ""
