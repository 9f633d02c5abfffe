"""What the pages tell readers to type exists: names in Python snippets, commands and their options."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import nbformat
import pytest
import typer

from zoo import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("tutorials/*.md"),
    *ROOT.glob("tutorials/*.ipynb"),
])
COMMANDS = typer.main.get_command(cli.app)


def text(page: Path) -> str:
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n".join(c.source if c.cell_type == "markdown" else f"```python\n{c.source}\n```" for c in cells)


def snippets(page: Path, *languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Words of every line that runs ``zoo``, in snippets and between backticks."""
    lines = [line for s in snippets(page, "console", "bash") for line in s.splitlines()]
    lines += re.findall(r"`(zoo [a-z][^`]*)`", text(page))
    found = []
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["zoo"]:
            found.append(words[1:])
    return found


def problem(words: list[str]) -> str:
    """Say which command or option does not exist; empty if all do."""
    command, shown = COMMANDS, "zoo"
    while words and hasattr(command, "commands"):
        if words[0].startswith("--"):
            break
        shown += f" {words[0]}"
        if words[0] not in command.commands:
            return f"no command '{shown}'"
        command, words = command.commands[words[0]], words[1:]
    known = {o for parameter in command.params for o in [*parameter.opts, *parameter.secondary_opts]}
    known |= {"--help", "--quiet", "--json", "--debug", "--version"}
    unknown = [w for w in words if re.match(r"--[a-z]", w) and w.split("=")[0] not in known]
    return f"'{shown}' has no {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_its_names_exist(page: Path) -> None:
    for snippet in snippets(page, "python"):
        lines = [line for line in snippet.splitlines() if not line.startswith("!")]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "zoo":
                module = importlib.import_module(str(node.module))
                assert not [a.name for a in node.names if not hasattr(module, a.name)], snippet
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "zoo":
                assert hasattr(importlib.import_module("zoo"), node.attr), f"zoo.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    assert not [p for p in map(problem, commands(page)) if p]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("fit NAME --data x --out y", ""),
        ("data list --json", ""),
        ("--json list", ""),
        ("fti NAME", "no command 'zoo fti'"),
        ("data lst", "no command 'zoo data lst'"),
        ("fit NAME --date x", "'zoo fit' has no --date"),
    ],
)
def test_a_stale_command_is_found(line: str, found: str) -> None:
    assert problem(line.split()) == found
