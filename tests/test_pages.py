"""Pages in docs: what is made from a method's file is up to date, and what is written by hand stays."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import zoo
from zoo import cli, pages, registry
from zoo.errors import DataError

DOCS = Path(__file__).parent.parent / "docs"
ENTRIES = {e.name: e for e in registry.entries()}


def made(name: str, old: str | None) -> str:
    return pages.page(zoo.get(name), ENTRIES[name].path, old, DOCS / "figures")


@pytest.mark.parametrize("name", ENTRIES)
def test_page_is_up_to_date(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert made(name, text) == text, f"docs/{name}.md is behind its method file: run `zoo docs {name}`"
    # Every picture of the method stands in its page, and no other.
    pictures = {f"figures/{p.name}" for p in (DOCS / "figures").glob(f"{name}_*")}
    assert set(re.findall(r"\]\((figures/[^)]+)\)", text)) == pictures


def test_pictures_are_small() -> None:
    sizes = {p.name: p.stat().st_size for p in (DOCS / "figures").iterdir()}
    assert all(size < (20_000 if name.endswith(".svg") else 200_000) for name, size in sizes.items()), sizes


def test_index_is_up_to_date() -> None:
    assert (DOCS / "README.md").read_text(encoding="utf-8") == pages.index(ENTRIES.values()), "run `zoo docs`"


def test_pages_are_of_methods_and_links_between_files_lead_somewhere() -> None:
    assert {p.stem for p in DOCS.glob("*.md")} == {*ENTRIES, "README", "references"}
    for page in [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_stale_block_is_made_anew_and_hand_written_lines_stay() -> None:
    text = made("eight_schools", None)
    stale = text.replace("Sample `theta` itself", "Old words").replace(
        "## How to run it", "By hand.\n\n## How to run it"
    )
    assert stale != text
    again = made("eight_schools", stale)
    assert again == text.replace("## How to run it", "By hand.\n\n## How to run it")
    assert "<!-- claims -->\nNot measured yet" in again


@pytest.mark.parametrize("broken", ["", "<!-- model -->\n", "<!-- end of model --> <!-- model -->"])
def test_a_missing_block_is_named(broken: str) -> None:
    text = made("eight_schools", None)
    start, rest = text.split("<!-- model -->\n")
    with pytest.raises(DataError, match="no block 'model': add the lines"):
        made("eight_schools", start + broken + rest.split("<!-- end of model -->")[1])


def test_page_holds_process_symbols_hyper_parameters_and_citation() -> None:
    text = made("horseshoe_regression", None)
    assert "$$\n\\begin{aligned}\nc^2 &\\sim \\mathrm{InvGamma}" in text
    assert "| $\\lambda_j$ | `lambda` | `feature` | local scale |" in text
    assert "| `num_relevant` | `float \\| None` | `None` | Guess `p0`" in text
    assert "Piironen, Vehtari (2017), *Sparsity Information" in text
    assert "[arXiv:1707.01694](https://arxiv.org/abs/1707.01694)" in text
    assert text.count("@article{piironen2017sparsity,") == 1
    assert zoo.get("horseshoe_regression").use_when in text


@pytest.mark.parametrize(
    ("authors", "shown"),
    [
        ("A, B", "A (1)"),
        ("A, B and C, D and E, F", "A, C, E (1)"),
        ("A, B and C, D and E, F and G, H", "A et al. (1)"),
        ("{\\'A}lvarez, B", "{\\'A}lvarez (1)"),
    ],
)
def test_citation(authors: str, shown: str) -> None:
    assert pages.cited(f"@article{{k,\n  author = {{{authors}}},\n  year = {{1}}\n}}") == shown


def test_citation_without_year_is_an_error() -> None:
    with pytest.raises(DataError, match="no field year"):
        pages.cited("@article{k,\n  author = {A, B}\n}")


def test_write_needs_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source checkout"):
        pages.write(["eight_schools"], tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_write_updates_pages_and_index(tmp_path: Path) -> None:
    found = pages.write(["eight_schools"], tmp_path)
    assert found == [tmp_path / "eight_schools.md", tmp_path / "README.md"]
    assert (tmp_path / "README.md").read_text() == (DOCS / "README.md").read_text()


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_the_graph_has_the_models_edges_and_no_others() -> None:
    pytest.importorskip("graphviz")
    svg = pages.draw_model(zoo.get("eight_schools"))
    edges = re.findall(r"<title>(\w+)&#45;&gt;(\w+)</title>", svg)
    assert sorted(edges) == [("mu", "theta"), ("tau", "theta"), ("theta", "y"), ("theta_trans", "theta")]


def test_the_command_for_maintainers_is_hidden_and_names_what_is_unknown() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"]).stdout
    assert " new " in shown
    assert " docs " not in shown
    result = CliRunner().invoke(cli.app, ["docs", "eight_school"])
    assert result.exit_code == 2
    assert "did you mean 'eight_schools'" in result.stderr
