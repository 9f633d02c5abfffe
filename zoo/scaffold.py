"""``zoo new``: a working method file with its test and its page, to be rewritten into a method of one's own."""

from __future__ import annotations

import importlib.util
import keyword
import re
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
    texts = {method: _method(name), test: _test(f"zoo.models.{name}")}
    _refuse_existing([*texts, page])
    from zoo import pages

    text = readme.read_text(encoding="utf-8")
    rows = list(re.finditer(r"^\| `\w+` \|.*\n", text, flags=re.MULTILINE))
    if not rows:
        raise DataError(f"'{readme}' has no table of methods with rows | `name` | ...; put it back")
    write_texts(texts)
    entries, found = registry.scan(method.parent), registry.from_file(method)
    row = f"| `{name}` | {found.title} | {pages.cited(registry.find_bibtex(method, found.paper))} |\n"
    end = rows[-1].end()
    write_texts({
        page: pages.page(found, method, None, root / "docs" / "figures"),
        index: pages.index(entries),
        readme: text[:end] + row + text[end:],
    })
    return [method, test, page, index, readme]


def _method(name: str) -> str:
    return _TEMPLATE.read_text(encoding="utf-8").replace('name="_template"', f'name="{name}"')


def _test(module: str) -> str:
    return _TEST.read_text(encoding="utf-8").replace("zoo.models._template", module)


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise DataError(f"'{path}' exists and is not overwritten; choose another name, or move it")
