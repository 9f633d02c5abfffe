"""The page: whole, self-contained, true to the posterior; with fakes for its parts and with real fits."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch

import zoo
from zoo import reports
from zoo.diagnostics import Check, Diagnosis
from zoo.errors import DataError
from zoo.reports import illustrate, page
from zoo.types import Dataset

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Reads a page: its tags balance, its identifiers and links are collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.requests: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            elif key in ("href", "xlink:href") and (value or "").startswith("#"):
                self.links.append((value or "")[1:])
            elif key in ("src", "srcset", "data", "action") or (key == "href" and tag != "a"):
                self.requests.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] not in ("style", "script"):
            self.text += data


def read(path: Path) -> Page:
    """Read a report and check what holds of every report."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert len(text) < 3_000_000
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= set(found.ids)
    assert all(r.startswith("data:") for r in found.requests)
    assert "script" not in found.tags
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", text)
    assert 'name="viewport"' in text
    for svg in re.findall(r"<svg[^>]*>", text):
        assert 'role="img"' in svg
        assert re.search(r'aria-label="[^"]+"', svg)
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
        self.history = {"elbo": torch.linspace(9, 1, 50)} if engine == "svi" else {}
        self.losses = next(iter(self.history.values()), torch.empty(0))
        self.chains = {k: torch.tensor(v) for k, v in self.values.items()} if engine == "nuts" else None
        diverging = torch.zeros(4, 200, dtype=torch.bool)
        diverging[0, :7] = True
        self.sample_stats = {"diverging": diverging} if engine == "nuts" else None
        self.info: dict[str, Any] = {"seed": 3, "seconds": 1.5, "versions": {"torch": "9.9"}}
        self.data = Dataset(
            name="mine<b>",
            task="",
            train={"y": torch.zeros(5), "index": torch.arange(5)},
            source="field trip",
            licence="CC0",
            description="Five & zeros.",
        )

    def to_arviz(self, **_: Any) -> Any:
        coords = {"school": ["a", "b", "<c>"]}
        dims = {"theta": ["school"]}
        return az.from_dict(posterior=self.values, coords=coords, dims=dims)

    def summary(self) -> dict[str, Any]:
        return {"units kept": 12, "bits": 4.25, "layer 1": {"kept": 3, "of": 10}, "layer 2": {"kept": 2, "of": 5}}


@pytest.mark.parametrize("engine", ["svi", "nuts"])
def test_page_of_a_bare_pair(tmp_path: Path, engine: str) -> None:
    posterior = FakePosterior(engine)
    found = diagnosis(
        check("r_hat", "warn"), check("pareto_k", "not run"), verdict="usable with care", reasons=("Mind x.",)
    )
    path = reports.write(posterior, tmp_path / "r.html", diagnosis=found)  # type: ignore[arg-type]
    shown = read(path)
    assert "Usable with care" in shown.text
    assert "Mind x." in shown.text
    assert "mine<b>" in shown.text, "names are escaped, not interpreted"
    assert "b" not in set(shown.tags) - {"b"} or shown.tags.count("b") == shown.text.count("Figure ")
    for word in ("field trip", "CC0", "Five & zeros.", "units kept", "<c>", "torch", "9.9"):
        assert word in shown.text
    assert ("R-hat" in shown.text) == (engine == "nuts")
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
    assert row["ess_tail"] == pytest.approx(float(az.ess(values, method="tail")))


def test_large_sites_are_summarised_and_counted(tmp_path: Path) -> None:
    posterior = FakePosterior("nuts", large=200)
    path = reports.write(posterior, tmp_path / "r.html", diagnosis=diagnosis(check("r_hat")))  # type: ignore[arg-type]
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
    path = reports.write(FakePosterior(), tmp_path / "r.html", diagnosis=diagnosis(*checks))  # type: ignore[arg-type]
    shown = read(path)
    figures = {i.removeprefix("figure-") for i in shown.ids if i.startswith("figure-")}
    assert figures == {"forest-0", "loss", "khat", "restart_agreement", "funnel", "ppc", "reliability", "loo"}
    assert {"figure-khat", "figure-ppc", "figure-loo"} <= set(shown.links), "each check links to its figure"
    numbered = [int(n) for n in re.findall(r"Figure (\d+)\.", shown.text)]
    assert numbered == list(range(1, len(numbered) + 1))


def test_predictive_figure_is_in_the_units_of_the_user() -> None:
    data = zoo.datasets.load("diabetes")
    posterior = SimpleNamespace(data=data)
    y = data.train["y"].numpy()
    found = check(
        "predictive_check", figure="ppc", data={"observed": y, "replicated": y[None], "discrete": np.array(False)}
    )
    drawing = illustrate.checks(posterior, diagnosis(found))["predictive_check"]  # type: ignore[arg-type]
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
    path = posterior.report(tmp_path / "r.html")
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
