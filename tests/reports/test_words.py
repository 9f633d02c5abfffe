"""Short names are explained, and no page shows TeX as it was typed."""

from __future__ import annotations

import ast
import html
import re

import pytest

from zoo import registry, tasks
from zoo.reports import page, rst
from zoo.reports.words import MEANINGS, abbreviated, definitions

TEX = re.compile(r"\\[a-zA-Z]+|\$|:math:|[_^]\{")


def test_every_score_of_every_task_is_explained() -> None:
    names = {"rmse", "mae", "r2", "nlpd", "crps", "coverage 50", "coverage 90"}
    names |= {"error", "accuracy", "nll", "brier", "ece", "auroc"}
    assert names <= set(MEANINGS)
    assert {tasks.get(name).primary for name in ("regression", "classification")} <= names


def test_definitions_stand_below_the_scores() -> None:
    table = page._score_table({"test": {"nlpd": 1.0, "coverage_90": 0.9}})
    assert table is not None
    assert table.note.startswith("nlpd: negative log predictive density")
    assert "coverage 90: share of rows inside the central 90% interval." in table.note
    assert definitions(["unknown"]) == ""


def test_short_names_are_marked_and_the_rest_is_escaped() -> None:
    found = abbreviated("ESS <b> of nlpd; fissd and the error")
    assert str(found).count("<abbr") == 2
    assert "&lt;b&gt;" in found
    assert 'title="negative log predictive density' in found


@pytest.mark.parametrize("entry", registry.entries(), ids=lambda e: e.name)
def test_no_method_s_text_shows_tex(entry: registry.Entry) -> None:
    doc = rst.without_bibtex(ast.get_docstring(ast.parse(entry.path.read_text(encoding="utf-8"))) or "")
    shown = rst.to_html(doc)
    read_out = re.findall(r'aria-label="([^"]*)"', shown)
    text = html.unescape(" ".join([re.sub(r"<[^>]+>", " ", shown), *read_out, rst.to_text(doc)]))
    assert not TEX.findall(text)
    method = registry.get(entry.name)
    for field in ("title", "use_when", "avoid_when", "needs"):
        assert not TEX.findall(getattr(method, field, ""))


def test_a_formula_that_cannot_be_drawn_is_unicode() -> None:
    shown = rst.to_html(".. math::\n\n    \\unknowncommand{x} \\sim \\tfrac12 \\alpha")
    assert "\\" not in shown
    assert "∼" in shown
    assert "α" in shown
