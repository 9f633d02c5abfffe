"""Discovery: every public file in ``zoo/models`` is a method or a diagnostic, and nothing else lists them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import textwrap
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.errors import DataError, PairError, UnknownMethodError, suggest
from zoo.types import Diagnostic, Method

__all__ = ["Entry", "bibtex", "entries", "find_bibtex", "from_file", "get", "installed", "names", "resolve", "scan"]

GROUP = "zoo.methods"
"""Entry points by which installed packages offer methods."""

_FIELDS = ("name", "title", "paper", "task")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the list shows of a method without importing it.

    Args:
        name: Registry name, equal to the file stem.
        title: One line.
        paper: BibTeX key.
        task: Task name.
        kind: ``method`` or ``diagnostic``.
        path: The method's file.
    """

    name: str
    title: str
    paper: str
    task: str
    kind: str
    path: Path


@cache
def entries() -> tuple[Entry, ...]:
    """Return an entry for every method file, sorted by name, read from the source without importing it.

    Returns:
        The entries.

    Raises:
        PairError: If a method file does not end in a ``METHOD`` or ``DIAGNOSTIC`` with literal fields.
    """
    return scan(Path(__file__).parent / "models")


def scan(folder: Path) -> tuple[Entry, ...]:
    """Return an entry for every method file in a folder, like :func:`entries`.

    Args:
        folder: Where the method files lie.

    Returns:
        The entries.

    Raises:
        PairError: If a method file does not end in a ``METHOD`` or ``DIAGNOSTIC`` with literal fields.
    """
    return tuple(_read(path) for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_"))


def names() -> tuple[str, ...]:
    """Return the names of all methods and diagnostics.

    Returns:
        Sorted names.
    """
    return tuple(entry.name for entry in entries())


def installed() -> tuple[Entry, ...]:
    """Return an entry for every method that an installed package offers by an entry point of the group ``zoo.methods``.

    Nothing of it is imported but the packages around its module.

    Returns:
        The entries, sorted by name; the title of one that cannot be read says why.
    """
    found = []
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        path = Path()
        try:
            spec = importlib.util.find_spec(point.module)
            path = Path((spec and spec.origin) or f"no module '{point.module}'")
            taken = point.name in names()
            entry = _read(path, stem="" if taken else point.name)
            if taken:
                reason = "cannot be used: its name is that of a method of the zoo"
                entry = replace(entry, name=point.name, kind="broken", title=reason)
        except Exception as error:  # whatever a stranger's package does, it hides no other
            text = " ".join(str(error).split()) or type(error).__name__
            entry = Entry(point.name, f"cannot be used: {text}", "", "", "broken", path)
        found.append(entry)
    return tuple(found)


def get(name: str) -> Method[Any] | Diagnostic[Any]:
    """Import and return a method or diagnostic by name.

    Args:
        name: Registry name, or the name of an installed entry point of the group ``zoo.methods``.

    Returns:
        The ``METHOD`` or ``DIAGNOSTIC`` of its file.

    Raises:
        UnknownMethodError: If no such file exists; the text suggests the nearest name.
        PairError: If an installed package offers this name, and it cannot be imported or is no method.
    """
    if name in names():
        module = importlib.import_module(f"zoo.models.{name}")
        found: Method[Any] | Diagnostic[Any] = getattr(module, "METHOD", None) or module.DIAGNOSTIC
        return found
    points = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in points:
        raise UnknownMethodError(f"method '{name}' is unknown{suggest(name, [*names(), *points])}")
    point = points[name]
    try:
        loaded = point.load()
    except Exception as error:
        text = " ".join(str(error).split())
        raise PairError(
            f"method '{name}' of '{point.value}' cannot be imported: {type(error).__name__}: {text}"
        ) from error
    if not isinstance(loaded, Method | Diagnostic) or loaded.name != name:
        raise PairError(f"the entry point '{name}' of {GROUP} is '{point.value}', which is no Method of that name")
    return loaded


def resolve(name: str | Path) -> Method[Any] | Diagnostic[Any]:
    """Return a method by its name, or from its own file.

    Args:
        name: Registry name, or a path that ends in ``.py``.

    Returns:
        The method or diagnostic.

    Raises:
        UnknownMethodError: If no method has this name.
        DataError: If the file holds none.
        PairError: If the file's method has the name of one of the zoo, as which its fits would be loaded.
    """
    path = Path(name)
    if path.suffix != ".py":
        return get(str(name))
    found = from_file(path)
    if found.name in names() and path.resolve().parent != Path(__file__).resolve().parent / "models":
        raise PairError(f"'{path}' names its method '{found.name}', as one of the zoo is named; give it another name")
    return found


def bibtex(name: str) -> str:
    """Return the BibTeX entry in a method's docstring.

    Args:
        name: Registry name.

    Returns:
        The entry, dedented.

    Raises:
        UnknownMethodError: If no such method exists.
        PairError: If its docstring holds no entry with the method's key.
    """
    entry = next((e for e in entries() if e.name == name), None)
    if entry is None:
        raise UnknownMethodError(f"method '{name}' is unknown{suggest(name, names())}")
    return find_bibtex(entry.path, entry.paper)


def find_bibtex(path: Path, key: str) -> str:
    """Return a BibTeX entry in the docstring of a method file.

    Args:
        path: The method file.
        key: Key of the entry.

    Returns:
        The entry, dedented.

    Raises:
        PairError: If the docstring holds no entry with this key.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    start = re.search(r"@\w+\{" + re.escape(key) + r"\s*,", text)
    if start is None:
        raise PairError(f"{path.name}: no BibTeX entry '{key}' in the docstring")
    depth = 0
    for i in range(start.start(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if text[i] == "}" and depth == 0:
            line = text.rfind("\n", 0, start.start()) + 1
            return textwrap.dedent(text[line : i + 1])
    raise PairError(f"{path.name}: the BibTeX entry '{key}' is not closed")


def from_file(path: Path) -> Method[Any] | Diagnostic[Any]:
    """Import a method file that need not be registered.

    Args:
        path: The file.

    Returns:
        Its ``METHOD`` or ``DIAGNOSTIC``.

    Raises:
        DataError: If the file does not exist, is no Python, or defines neither.
    """
    if not path.is_file():
        raise DataError(f"file '{path}' does not exist; give the path of a method file, or a name from `zoo list`")
    spec = importlib.util.spec_from_file_location(f"_zoo_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise DataError(f"'{path}' line {error.lineno}: {error.msg}") from error
    found: Method[Any] | Diagnostic[Any] | None = getattr(module, "METHOD", None) or getattr(module, "DIAGNOSTIC", None)
    if found is None:
        raise DataError(f"'{path}' defines no METHOD")
    return found


def _read(path: Path, stem: str = "") -> Entry:
    # Only the end of the file is parsed, from METHOD on: a list of forty methods must not cost a second.
    text = path.read_text(encoding="utf-8")
    start = re.search(r"^(METHOD|DIAGNOSTIC)\b", text, re.MULTILINE)
    for node in ast.parse(text[start.start() :] if start else "").body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        kind = next((t.id for t in targets if isinstance(t, ast.Name) and t.id in ("METHOD", "DIAGNOSTIC")), None)
        value = getattr(node, "value", None)
        if kind is None or not isinstance(value, ast.Call):
            continue
        found = {k.arg: k.value.value for k in value.keywords if k.arg in _FIELDS and isinstance(k.value, ast.Constant)}
        missing = [f for f in _FIELDS if not isinstance(found.get(f), str)]
        if missing:
            raise PairError(f"{path.name}: {', '.join(missing)} of {kind} must be literal strings")
        due = stem or path.stem
        if found["name"] != due:
            raise PairError(f"{path.name}: {kind}.name is '{found['name']!s}'; it must equal '{due}'")
        return Entry(**{f: str(found[f]) for f in _FIELDS}, kind=kind.lower(), path=path)
    raise PairError(f"{path.name}: a public file in zoo/models must define METHOD or DIAGNOSTIC")
