"""``zoo new``: a working method file with its test and its page, to be rewritten into a method of one's own."""

from __future__ import annotations

import importlib.util
import keyword
import re
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from zoo import registry
from zoo.errors import DataError

__all__ = ["checkout", "new"]

_TEMPLATE = Path(__file__).parent / "models" / "_template.py"
_TEST = _TEMPLATE.with_name("_template_test.py")


def checkout(folder: Path) -> Path | None:
    """Return the root of the source checkout of pyro-zoo around a folder.

    Args:
        folder: Where to look, then in its parents.

    Returns:
        The root, or ``None`` outside a checkout.
    """
    for root in (folder, *folder.parents):
        project = root / "pyproject.toml"
        if (root / "zoo" / "models").is_dir() and project.is_file():
            found = tomllib.loads(project.read_text(encoding="utf-8"))
            if found.get("project", {}).get("name") == "pyro-zoo":
                return root
    return None


def new(name: str, *, out: Path | None = None) -> list[Path]:
    """Write a method file and its test from the template; nothing is overwritten.

    Inside a source checkout they become part of the zoo, with a page in ``docs`` and a row in the README. Elsewhere, or
    with ``out``, the two files stand alone.

    Args:
        name: Name of the method: lower-case letters, digits and underscores.
        out: Folder for files that stand alone; ``None`` takes the checkout around the current folder, or else the
            current folder.

    Returns:
        The files written, the method's first.

    Raises:
        DataError: If the name is no good or taken, a file exists, or one cannot be written.
    """
    from zoo.reports.files import write_texts

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise DataError(f"'{name}' cannot name a method; use lower-case letters, digits and underscores: my_method")
    if name in registry.names():
        raise DataError(f"method '{name}' exists; choose another name, or edit {_TEMPLATE.with_name(name + '.py')}")
    root = checkout(Path.cwd()) if out is None else None
    if root is None:
        folder = Path() if out is None else out
        if importlib.util.find_spec(name) is not None and not (folder / f"{name}.py").exists():
            raise DataError(f"'{name}' is an installed module, which {name}.py would hide; choose another name")
        texts = {folder / f"{name}.py": _method(name), folder / f"test_{name}.py": _test(name)}
        _refuse_existing(texts)
        write_texts(texts)
        return list(texts)
    method, test = root / "zoo" / "models" / f"{name}.py", root / "tests" / "models" / f"test_{name}.py"
    page, index, readme = root / "docs" / f"{name}.md", root / "docs" / "README.md", root / "README.md"
    _refuse_existing([method, test, page])
    from zoo import pages

    text = readme.read_text(encoding="utf-8")
    table = re.search(r"^## Methods\n(?:[^|\n].*\n|\n)*(?:\|.*\n)+", text, flags=re.MULTILINE)
    if table is None:
        raise DataError(f"'{readme}' has no table under the heading '## Methods'; put it back")
    with tempfile.TemporaryDirectory() as aside:  # made whole before anything is written
        source = Path(aside) / f"{name}.py"
        source.write_text(_method(name), encoding="utf-8")
        entries = sorted([*registry.scan(method.parent), *registry.scan(source.parent)], key=lambda e: e.name)
        found = registry.from_file(source)
        row = f"| `{name}` | {found.title} | {pages.cited(registry.find_bibtex(source, found.paper))} |\n"
        texts = {
            method: _method(name),
            test: _test(f"zoo.models.{name}"),
            page: pages.page(found, source, None, root / "docs" / "figures"),
            index: pages.index(entries),
            readme: text[: table.end()] + row + text[table.end() :],
        }
    write_texts(texts)
    return list(texts)


def _method(name: str) -> str:
    return _TEMPLATE.read_text(encoding="utf-8").replace('name="_template"', f'name="{name}"')


def _test(module: str) -> str:
    return _TEST.read_text(encoding="utf-8").replace("zoo.models._template", module)


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise DataError(f"'{path}' exists and is not overwritten; choose another name, or move it")
