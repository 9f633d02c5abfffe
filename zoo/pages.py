"""The page of a method in ``docs``: written from the method's file, around the parts that are written by hand.

A block stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` and is replaced as a whole; the block ``claims``
belongs to ``zoo reproduce --docs``. All other lines of a page stay as they are.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.errors import DataError, EngineError, MissingExtraError
from zoo.reports import rst
from zoo.types import Diagnostic, Method

__all__ = ["cited", "draw_model", "index", "page", "photograph_report", "write"]

_BLOCKS = ("head", "when", "model", "hyper", "report", "citation")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_NEW = """<!-- head -->
<!-- end of head -->

<!-- when -->
<!-- end of when -->

<!-- model -->
<!-- end of model -->

<!-- hyper -->
<!-- end of hyper -->

## How to run it

```bash
zoo fit {name} --out runs/{name}
zoo report runs/{name}
```

<!-- report -->
<!-- end of report -->

## How it is checked

Scaffold: say what the tests in `tests/models/test_{name}.py` prove.

## Claims

<!-- claims -->
Not measured yet: `zoo reproduce {name} --docs` writes the table.
<!-- end of claims -->

<!-- citation -->
<!-- end of citation -->
"""


# ----------------------------------------------------------------------------------------------------------- text
def cited(bibtex: str) -> str:
    """Return authors and year of a BibTeX entry as in running text.

    Args:
        bibtex: The entry.

    Returns:
        For example ``Piironen, Vehtari (2017)``; of more than three authors, the first one.
    """
    authors = [a.split(",")[0].strip() for a in _field(bibtex, "author").split(" and ")]
    names = ", ".join(authors) if len(authors) <= 3 else f"{authors[0]} et al."
    return f"{names} ({_field(bibtex, 'year')})"


def page(method: Method[Any] | Diagnostic[Any], source: Path, old: str | None, figures: Path) -> str:
    """Return the page of a method.

    Args:
        method: What the method's file defines.
        source: The method's file.
        old: The page as it is, or ``None`` for a new one.
        figures: Folder of the pictures; those that exist are shown.

    Returns:
        The page, with every block made anew and all other lines as they were.

    Raises:
        DataError: If a block is missing from the page.
    """
    text = _NEW.format(name=method.name) if old is None else old
    for name, block in _made(method, source, figures).items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise DataError(f"docs/{method.name}.md has no block '{name}': add the lines {start} and {end}, once each")
        before, _, rest = text.partition(start)
        text = before + "\n".join([start, *([block] if block else []), end]) + rest.partition(end)[2]
    return text


def index(entries: Iterable[registry.Entry]) -> str:
    """Return ``docs/README.md``: every method with a link to its page.

    Args:
        entries: What the registry lists.

    Returns:
        The page.
    """
    lines = ["# Methods", "", "| page | task | what it is | paper |", "|---|---|---|---|"]
    for e in entries:
        paper = cited(registry.find_bibtex(e.path, e.paper))
        lines.append(f"| [{e.name}]({e.name}.md) | {e.task} | {_cell(e.title)} | {paper} |")
    lines += [
        "",
        "Each page holds the generative process, the table of symbols, the hyper-parameters and what was measured of "
        "the paper's claims. `zoo docs` writes these parts from the method's file; the rest is written by hand.",
        "",
        "[Tutorials](../tutorials/README.md) · [Add a method](../CONTRIBUTING.md) · "
        "[Reference posteriors](references.md) · [Overview](../README.md)",
    ]
    return "\n".join(lines) + "\n"


def write(names: Iterable[str], folder: Path, *, figures: bool = False) -> list[Path]:
    """Write pages of registered methods, and the index.

    Args:
        names: Methods.
        folder: The folder ``docs`` of a checkout.
        figures: Draw the model and photograph the report of a fit with seed 0, too.

    Returns:
        The files written.

    Raises:
        DataError: If the folder does not exist, or a page lacks a block.
    """
    from zoo.reports.files import write_texts

    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'; pages are written in a source checkout: pip install -e .")
    texts: dict[Path, str] = {}
    pictures: list[Path] = []
    by_name = {e.name: e for e in registry.entries()}
    for name in names:
        method, path = registry.get(name), folder / f"{name}.md"
        if figures and isinstance(method, Method):
            drawing, photo = (folder / "figures" / f"{name}_{kind}" for kind in ("model.svg", "report.png"))
            write_texts({drawing: draw_model(method)})
            photograph_report(method, photo)
            pictures += [drawing, photo]
        old = path.read_text(encoding="utf-8") if path.exists() else None
        texts[path] = page(method, by_name[name].path, old, folder / "figures")
    texts[folder / "README.md"] = index(registry.entries())
    write_texts(texts)
    return [*texts, *pictures]


def _made(method: Method[Any] | Diagnostic[Any], source: Path, figures: Path) -> dict[str, str]:
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    first, _, rest = rst.without_bibtex(docstring).partition("\n\n")
    bibtex = registry.find_bibtex(source, method.paper)
    blocks = dict.fromkeys(_BLOCKS, "")
    blocks["head"] = _head(method, first, bibtex)
    blocks["when"] = _when(method)
    drawing = f"{method.name}_model.svg"
    legend = "White: latent. Dashed: computed from latents. Grey: observed. Boxes: plates."
    shown = [f"![The model as a graph](figures/{drawing})", legend] if (figures / drawing).exists() else []
    blocks["model"] = "\n\n".join(["## The model", rst.to_markdown(rest), *shown])
    blocks["hyper"] = _hyper(method)
    photo = f"{method.name}_report.png"
    if (figures / photo).exists():
        blocks["report"] = (
            f"## The report\n\nThe top of the page that `zoo fit {method.name} --seed 0` writes:\n\n"
            f"![Top of the report](figures/{photo})"
        )
    blocks["citation"] = f"## Citation\n\n```bibtex\n{bibtex}\n```"
    return blocks


def _head(method: Method[Any] | Diagnostic[Any], first: str, bibtex: str) -> str:
    title = re.sub(r"[{}]", "", _field(bibtex, "title"))
    from zoo import tasks

    number = re.search(r"arXiv:(\d{4}\.\d{4,5})", bibtex)
    link = f", [{number[0]}](https://arxiv.org/abs/{number[1]})" if number else ""
    others = getattr(method, "other_tasks", ())
    same = [name for name in others if tasks.get(name).target == tasks.get(method.task).target]
    facts = [f"task: {', '.join([method.task, *same])}"]
    if len(same) < len(others):
        facts.append(f"takes data of: {', '.join(name for name in others if name not in same)}")
    if isinstance(method, Method):
        facts += [f"engines: {', '.join(method.engines)}", f"default data: `{method.default_data}`"]
    else:
        facts.append(f"reads fits of: {', '.join(method.reads)}")
    heading = method.name.replace("_", " ").capitalize() if len(method.name) > 3 else method.name.upper()
    first = first.removeprefix(f"{heading}: ")
    return "\n\n".join([
        f"# {heading}",
        rst.to_markdown(first[:1].upper() + first[1:]),
        f"`{method.name}` · {cited(bibtex)}, *{title}*{link} · {' · '.join(facts)}",
    ])


def _when(method: Method[Any] | Diagnostic[Any]) -> str:
    if isinstance(method, Diagnostic):
        return ""
    texts = {"A good choice:": method.use_when, "A poor choice:": method.avoid_when, "It needs:": method.needs}
    return "\n\n".join([
        "## When to use it",
        *(f"**{k}** {rst.to_markdown(text)}" for k, text in texts.items() if text),
    ])


def _hyper(method: Method[Any] | Diagnostic[Any]) -> str:
    default, meanings = method.hyper(), _arguments(method.hyper.__doc__ or "")
    lines = ["## Hyper-parameters", "", "| name | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(default):
        kind = str(field.type).replace("|", r"\|")
        value = getattr(default, field.name)
        lines.append(f"| `{field.name}` | `{kind}` | `{value!r}` | {_cell(meanings.get(field.name, ''))} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return rst.to_markdown(text, cell=True)


def _arguments(docstring: str) -> dict[str, str]:
    """Read the section ``Args:`` of a Google-style docstring."""
    section = re.search(r"^\s*Args:\n(.*?)(?=\n\s*\n|\Z)", docstring, flags=re.DOTALL | re.MULTILINE)
    found: dict[str, str] = {}
    if section is None:
        return found
    lines = section[1].splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    name = ""
    for line in lines:
        start = re.match(rf" {{{margin}}}(\w+):\s*(.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name:
            found[name] += f" {line.strip()}"
    return found


def _field(bibtex: str, name: str) -> str:
    start = re.search(rf"\b{name}\s*=\s*\{{", bibtex)
    if start is None:
        raise DataError(f"BibTeX entry {bibtex.splitlines()[0]} has no field {name} = {{...}}")
    depth, at = 1, start.end()
    while depth and at < len(bibtex):
        depth += {"{": 1, "}": -1}.get(bibtex[at], 0)
        at += 1
    return " ".join(bibtex[start.end() : at - 1].split())


# ------------------------------------------------------------------------------------------------------- pictures
def draw_model(method: Method[Any]) -> str:
    """Draw a method's model with its default hyper-parameters on its default data.

    Args:
        method: The method.

    Returns:
        The graph as SVG.

    Raises:
        MissingExtraError: If the package ``graphviz`` is absent.
        EngineError: If its program ``dot`` is absent.
    """
    try:
        import graphviz
    except ImportError as error:
        raise MissingExtraError("graphviz", "docs", "drawing a model") from error
    import pyro
    from pyro import poutine

    from zoo import datasets
    from zoo.inference.program import pyro_world, seeded, stream
    from zoo.reports.illustrate import first_rows

    data = datasets.load(method.default_data)
    batch = first_rows(data.train, data.whole, 4)
    with pyro_world(), stream(seeded(0)), pyro.get_param_store().scope():
        model = method.build(data, method.hyper()).model
        # Replayed on draws made before: not every distribution can be sampled while its parameters are tracked.
        model = poutine.replay(model, trace=poutine.trace(model).get_trace(batch))
        with _fresh_constants():
            graph = pyro.render_model(model, model_args=(batch,), render_distributions=True, render_deterministic=True)
    style = 'graph [bgcolor=white fontname="sans-serif" size="7,7"]; node [fontname="sans-serif"];'
    source = graph.source.replace("{", "{ " + style, 1).replace("fillcolor=gray", "fillcolor=lightgray")
    source = re.sub(r'fillcolor=lightgray( [^\]]*style="filled,dashed")', r"fillcolor=white\1", source)
    try:
        svg: str = graphviz.Source(source).pipe(format="svg", encoding="utf-8")
    except graphviz.ExecutableNotFound as error:
        raise EngineError(
            "drawing a model needs the program 'dot': install Graphviz, e.g. apt install graphviz"
        ) from error
    return re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)


def _fresh_constants() -> Any:
    """Return a mode in which ``x.new_zeros(...)`` and the like do not count as made from ``x``."""
    from pyro.ops.provenance import detach_provenance
    from torch.overrides import TorchFunctionMode

    class Fresh(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            if re.match(r"new_(zeros|ones|full|empty|tensor)$|(zeros|ones|full|empty)_like$", func.__name__):
                args = (detach_provenance(args[0]), *args[1:])
            return func(*args, **(kwargs or {}))

    return Fresh()


def photograph_report(method: Method[Any], path: Path, *, width: int = 900, colours: int = 64) -> None:
    """Fit a method to its default data with seed 0, and store the top of its report as a picture.

    Args:
        method: The method.
        path: Where the picture goes, ending in ``.png``.
        width: Of the picture, in pixels.
        colours: Of the picture's palette.

    Raises:
        MissingExtraError: If the package ``pillow`` is absent.
        EngineError: If no Chromium is installed, or it took no picture.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "docs", "a picture of the report") from error
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise EngineError(f"a picture of the report needs a browser: install one of {', '.join(_BROWSERS)}")
    from zoo.inference.runner import fit

    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        report = fit(method, seed=0).report(Path(scratch) / "report.html")
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        options += [f"--user-data-dir={scratch}/profile", "--window-size=1200,1600", f"--screenshot={shot}"]
        done = subprocess.run([browser, *options, report.page.as_uri()], capture_output=True, timeout=120)
        if not shot.exists():
            raise EngineError(f"{Path(browser).name} took no picture of the report (exit status {done.returncode})")
        image = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    path.parent.mkdir(exist_ok=True)
    image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
