r"""A method's docstring as HTML, Markdown or plain text: the small part of reStructuredText that method files use.

Paragraphs, ``.. math::``, ``.. code-block::``, simple tables, bullet lists, ``literals``, *emphasis*, inline
``:math:`` and links. Whatever else stands there is shown as it is written.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Callable, Iterator

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["formula", "to_html", "to_markdown", "to_text", "without_bibtex"]

_LOWER = (
    "α alpha β beta γ gamma δ delta ε epsilon ζ zeta η eta θ theta ι iota κ kappa λ lambda μ mu ν nu ξ xi π pi ρ rho "
)
_LOWER += "σ sigma τ tau υ upsilon φ phi φ varphi χ chi ψ psi ω omega ε varepsilon ϑ vartheta ℓ ell "
_UPPER = "Γ Gamma Δ Delta Θ Theta Λ Lambda Ξ Xi Π Pi Σ Sigma Φ Phi Ψ Psi Ω Omega "
_SIGNS = (
    "∼ sim ≈ approx ∝ propto ≤ le ≤ leq ≥ ge ≥ geq ≠ ne ≠ neq → to ↦ mapsto ∈ in ∉ notin ∑ sum ∏ prod ∫ int ∞ infty "
)
_SIGNS += "· cdot ⋯ cdots … dots … ldots × times ⊙ odot ⊗ otimes ⊕ oplus ± pm | mid | vert ‖ Vert ⊤ top * ast ∘ circ "
_SIGNS += "∂ partial ∇ nabla √ surd ≡ equiv ⊂ subset ∪ cup ∩ cap ∀ forall ∥ parallel ≪ ll ≫ gg "
_SIGNS += "⌈ lceil ⌉ rceil ⌊ lfloor ⌋ rfloor ‖ lVert ‖ rVert"
_WORDS = (_LOWER + _UPPER + _SIGNS).split()
_COMMANDS = dict(zip(_WORDS[1::2], _WORDS[::2], strict=True)) | {
    **{name: name for name in ("log", "exp", "max", "min", "tanh", "sin", "cos", "tan", "det", "arg")},
    **dict.fromkeys(
        ("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "!", "displaystyle", "textstyle"), ""
    ),
    **dict.fromkeys((",", ";", ":", " ", ">"), " "),
    **{name: name for name in ("{", "}", "%", "_", "&", "#")},
    "quad": "  ",
    "qquad": "   ",
    "|": "‖",
}
_ACCENTS = {
    **dict.fromkeys(("tilde", "widetilde"), "\u0303"),
    **dict.fromkeys(("hat", "widehat"), "\u0302"),
    **dict.fromkeys(("bar", "overline"), "\u0304"),
    "dot": "\u0307",
    "vec": "\u20d7",
}
_FONTS = {
    "mathrm",
    "mathbf",
    "mathcal",
    "mathbb",
    "mathit",
    "mathsf",
    "boldsymbol",
    "bm",
    "text",
    "textrm",
    "operatorname",
}
_SUPER = dict(zip("0123456789+-=()nij", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱʲ", strict=True))
_SUB = dict(zip("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))


# -------------------------------------------------------------------------------------------------------- formulas
def formula(tex: str, *, markup: bool = True) -> str:
    r"""Return a short TeX formula as HTML (``<sub>``, ``<sup>``, italic letters) or plain Unicode.

    Args:
        tex: What stands between the backticks of ``:math:``.
        markup: HTML instead of plain text.

    Returns:
        The formula; commands that are not known keep their names.
    """
    tokens = re.findall(r"\\[A-Za-z]+|\\.|[{}^_]|\s+|.", tex)
    out, rest = _group(iter(tokens), markup)
    assert not rest
    return out.strip()


def _group(tokens: Iterator[str], markup: bool, *, upright: bool = False) -> tuple[str, bool]:
    parts: list[str] = []
    for token in tokens:
        if token == "}":
            return "".join(parts), True
        parts.append(_item(token, tokens, markup, upright))
    return "".join(parts), False


def _item(token: str, tokens: Iterator[str], markup: bool, upright: bool) -> str:
    if token == "{":
        return _group(tokens, markup, upright=upright)[0]
    if token in ("^", "_"):
        inner = _argument(tokens, markup, upright)
        if markup:
            tag = "sup" if token == "^" else "sub"
            return f"<{tag}>{inner}</{tag}>"
        table = _SUPER if token == "^" else _SUB
        if inner and all(c in table for c in inner):
            return "".join(table[c] for c in inner)
        return f"{token}{inner}" if len(inner) == 1 else f"{token}({inner})"
    if token.startswith("\\") and len(token) > 1:
        name = token[1:]
        if name in _ACCENTS:
            inner = _argument(tokens, markup, upright)
            return (
                re.sub(r"(\w)(?!.*\w)", lambda m: m[1] + _ACCENTS[name], re.sub(r"</?i>", "", inner), count=1)
                if inner
                else ""
            )
        if name in _FONTS:
            return _argument(tokens, markup, upright=True)
        if name == "sqrt":
            return f"√({_argument(tokens, markup, upright)})"
        if name in ("frac", "tfrac", "dfrac"):
            over, under = _argument(tokens, markup, upright), _argument(tokens, markup, upright)
            return f"{_wrapped(over)}/{_wrapped(under)}"
        return _escape(_COMMANDS.get(name, name), markup)
    if token.isspace():
        return " "
    if token == "-":
        return "\N{MINUS SIGN}"
    if markup and token.isalpha() and not upright:
        return f"<i>{token}</i>"
    return _escape(token, markup)


def _argument(tokens: Iterator[str], markup: bool, upright: bool = False) -> str:
    for token in tokens:
        if token.isspace():
            continue
        return _item(token, tokens, markup, upright) if token != "{" else _group(tokens, markup, upright=upright)[0]
    return ""


def _wrapped(text: str) -> str:
    return text if re.fullmatch(r"(<i>)?\w+(</i>)?", text) else f"({text})"


def _escape(text: str, markup: bool) -> str:
    return html.escape(text) if markup else text


def _display(tex: str) -> str:
    # One picture per line; a formula that mathtext does not know stays text.
    pictures = []
    for line in re.split(r"\\\\", re.sub(r"\\(begin|end)\{[a-z*]+\}", "", tex)):
        source = " ".join(line.replace("&", " ").split())
        if source:
            pictures.append(_picture(source))
    return '<div class="math" tabindex="0" role="group" aria-label="formula">' + "".join(pictures) + "</div>"


def _picture(tex: str) -> str:
    simple = re.sub(r"\\[td]frac(?![a-zA-Z])", r"\\frac", tex)
    simple = re.sub(r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}", simple)  # TeX takes single letters without braces
    simple = re.sub(r"\\(le|ge|ne)(?![a-zA-Z])", r"\\\1q", simple)
    simple = re.sub(r"\\[lr]Vert(?![a-zA-Z])", r"\\Vert", simple)
    simple = (
        re
        .sub(r"\\text(rm)?\{", r"\\mathrm{", simple)
        .replace(r"\operatorname{", r"\mathrm{")
        .replace(r"\bm{", r"\mathbf{")
    )
    simple = re.sub(r"\\(bigl?|bigr|Bigl?|Bigr|biggl?|biggr|textstyle|displaystyle)(?![a-zA-Z])", "", simple)
    try:
        with mpl.rc_context({"svg.fonttype": "path", "mathtext.fontset": "cm", "svg.hashsalt": tex}):
            figure = Figure(figsize=(0.1, 0.1))
            figure.text(0, 0, f"${simple}$", fontsize=12, color="#010203")
            buffer = io.StringIO()
            FigureCanvasSVG(figure).print_figure(
                buffer,
                format="svg",
                facecolor="none",
                bbox_inches="tight",
                pad_inches=0.02,
                metadata={"Date": None, "Creator": None},
            )
    except (ValueError, RuntimeError):
        return f"<p>{formula(tex)}</p>"
    svg = buffer.getvalue()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = svg.replace("#010203", "currentColor")
    scope = f"tex{zlib.crc32(tex.encode()):x}"
    svg = re.sub(r'(\bid="|url\(#|href="#)', lambda m: f"{m[0]}{scope}-", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    size = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', head[0])
    assert size is not None
    label = html.escape(formula(tex, markup=False), quote=True)
    width, height = float(size[1]) * 1.25, float(size[2]) * 1.25
    shape = f'width="{width:.1f}" height="{height:.1f}" viewBox="0 0 {size[1]} {size[2]}"'
    opening = f'<svg role="img" aria-label="{label}" {shape}>'
    return opening + svg[head.end() :].strip()


# ---------------------------------------------------------------------------------------------------------- blocks
def without_bibtex(text: str) -> str:
    """Return a docstring without its BibTeX entries and the directive around them.

    Args:
        text: A module docstring, dedented.

    Returns:
        The rest.
    """
    text = re.sub(r"^\.\. code-block:: bibtex\n(?:[ \t]*\n|[ \t]+.*(?:\n|$))*", "", text, flags=re.MULTILINE)
    lines, depth = [], 0
    for line in text.splitlines():
        if depth == 0 and re.match(r"\s*@\w+\{", line):
            depth = line.count("{") - line.count("}")
            continue
        if depth > 0:
            depth += line.count("{") - line.count("}")
            continue
        lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def to_html(text: str) -> str:
    """Return a docstring as HTML.

    Args:
        text: A module docstring, dedented.

    Returns:
        Safe HTML: everything that is not recognised is escaped.
    """
    parts = []
    for kind, lines in _blocks(text):
        if kind == "math":
            parts.append(_display(" ".join(lines)))
        elif kind == "code":
            parts.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
        elif kind == "table":
            parts.append(_html_table(lines))
        elif kind == "list":
            parts.append("<ul>" + "".join(f"<li>{_inline(item, markup=True)}</li>" for item in lines) + "</ul>")
        elif kind == "heading":
            parts.append(f"<h3>{_inline(lines[0], markup=True)}</h3>")
        else:
            parts.append(f"<p>{_inline(' '.join(lines), markup=True)}</p>")
    return "\n".join(parts)


def to_markdown(text: str, *, cell: bool = False) -> str:
    """Return a docstring as Markdown with formulas between dollar signs, as GitHub shows it.

    Args:
        text: A module docstring, dedented.
        cell: Write what may stand in a cell of a table: one line, with bars escaped.

    Returns:
        Blocks separated by empty lines.
    """
    if cell:
        return _markdown_inline(" ".join(text.split()), cell=True)
    parts = []
    for kind, lines in _blocks(text):
        if kind == "math":
            rows = [line.strip() for line in lines]
            aligned = any("&" in row or r"\\" in row for row in rows)
            rows = [r"\begin{aligned}", *rows, r"\end{aligned}"] if aligned else rows
            parts.append("\n".join(["$$", *rows, "$$"]))
        elif kind == "code":
            parts.append("\n".join(["```", *lines, "```"]))
        elif kind == "table":
            rows_ = [[_markdown_inline(c, cell=True) for c in row] for row in _cells(lines) if row]
            table = [f"| {' | '.join(row)} |" for row in rows_]
            parts.append("\n".join([table[0], f"|{'---|' * len(rows_[0])}", *table[1:]]))
        elif kind == "list":
            parts.append("\n".join(f"- {_markdown_inline(item)}" for item in lines))
        elif kind == "heading":
            parts.append(f"### {_markdown_inline(lines[0])}")
        else:
            parts.append(_markdown_inline(" ".join(lines)))
    return "\n\n".join(parts)


def to_text(text: str) -> str:
    """Return a docstring as plain text with Unicode formulas, for a terminal.

    Args:
        text: A module docstring, dedented.

    Returns:
        Paragraphs, unwrapped, separated by empty lines.
    """
    parts = []
    for kind, lines in _blocks(text):
        if kind == "math":
            rows = re.split(r"\\\\", re.sub(r"\\(begin|end)\{[a-z*]+\}", "", " ".join(lines)))
            shown = [" ".join(formula(row.replace("&", " "), markup=False).split()) for row in rows]
            parts.append("\n".join(f"    {row}" for row in shown if row))
        elif kind == "code":
            parts.append("\n".join(f"    {line}" for line in lines))
        elif kind == "table":
            rows_ = [[_inline(cell, markup=False) for cell in row] for row in _cells(lines) if row]
            widths = [max(len(row[i]) for row in rows_) for i in range(len(rows_[0]))]
            parts.append(
                "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows_)
            )
        elif kind == "list":
            parts.append("\n".join(f"- {_inline(item, markup=False)}" for item in lines))
        else:
            parts.append(_inline(" ".join(lines), markup=False))
    return "\n\n".join(parts)


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    lines = text.splitlines()
    i = 0
    while i < len(lines):
        line = lines[i]
        directive = re.match(r"\.\. (math|code-block|code)::\s*(.*)$", line)
        if not line.strip():
            i += 1
        elif directive:
            body, i = _indented(lines, i + 1)
            first = [directive[2]] if directive[1] == "math" and directive[2] else []
            yield ("math" if directive[1] == "math" else "code"), first + body
        elif re.match(r"=+( +=+)+\s*$", line):
            end = i + 1
            while end < len(lines) and lines[end].strip():
                end += 1
            yield "table", lines[i:end]
            i = end
        elif i + 1 < len(lines) and re.match(r"([=\-~^])\1{2,}\s*$", lines[i + 1]) and not line.startswith(" "):
            yield "heading", [line.strip()]
            i += 2
        elif re.match(r"[-*] ", line):
            items: list[str] = []
            while i < len(lines) and (re.match(r"[-*] ", lines[i]) or (lines[i].startswith("  ") and items)):
                if re.match(r"[-*] ", lines[i]):
                    items.append(lines[i][2:].strip())
                else:
                    items[-1] += " " + lines[i].strip()
                i += 1
            yield "list", items
        elif line.startswith("    ") or line.startswith("  "):
            body, i = _indented(lines, i)
            yield "code", body
        else:
            start = i
            while i < len(lines) and lines[i].strip() and not lines[i].startswith(".. "):
                i += 1
            if i == start:
                i += 1
            words = [w.strip() for w in lines[start:i]]
            literal = words[-1].endswith("::")
            if literal:
                words[-1] = words[-1][:-1]
            yield "paragraph", words
            if literal:
                body, i = _indented(lines, i)
                if body:
                    yield "code", body


def _indented(lines: list[str], i: int) -> tuple[list[str], int]:
    body: list[str] = []
    while i < len(lines) and (not lines[i].strip() or lines[i].startswith(" ")):
        body.append(lines[i])
        i += 1
    while body and not body[0].strip():
        body.pop(0)
    while body and not body[-1].strip():
        body.pop()
    margin = min((len(b) - len(b.lstrip()) for b in body if b.strip()), default=0)
    return [b[margin:] for b in body], i


def _cells(lines: list[str]) -> list[list[str]]:
    # A simple table; an empty list stands where a rule separates header and body.
    spans = [(m.start(), m.end()) for m in re.finditer(r"=+", lines[0])]
    starts = [a for a, _ in spans]
    ends: list[int | None] = [*starts[1:], None]
    rows: list[list[str]] = []
    for line in lines[1:]:
        if re.match(r"=+( +=+)*\s*$", line):
            rows.append([])
            continue
        cells = [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        if rows and rows[-1] and not cells[0]:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    return rows


def _html_table(lines: list[str]) -> str:
    rows = _cells(lines)
    rules = [i for i, row in enumerate(rows) if not row]
    header = rows[: rules[0]] if len(rules) > 1 else []
    body = [row for row in rows[len(header) :] if row]

    def shown(cells: list[str], tag: str, scope: str = "") -> str:
        return "<tr>" + "".join(f"<{tag}{scope}>{_inline(cell, markup=True)}</{tag}>" for cell in cells) + "</tr>"

    head = "".join(shown(row, "th", ' scope="col"') for row in header)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="symbols"><table>'
        f"<thead>{head}</thead><tbody>{''.join(shown(row, 'td') for row in body)}</tbody></table></div>"
    )


_INLINE = re.compile(
    r":math:`(?P<math>[^`]+)`|:\w+:`~?(?P<role>[^`<]+?)(?:\s*<[^`]*>)?`|``(?P<code>.+?)``"
    r"|`(?P<label>[^`<]+?)\s*<(?P<url>https?://[^`>]+)>`_{1,2}"
    r"|\*\*(?P<strong>[^*]+)\*\*|(?<![\w*])\*(?P<em>[^*\s](?:[^*]*[^*\s])?)\*(?!\w)"
    r"|(?P<link>https?://[^\s)>,;]+[^\s)>,;.])"
)


def _inline(text: str, *, markup: bool) -> str:
    def mark(match: re.Match[str]) -> str:
        kind = match.lastgroup if match["label"] is None else "label"
        value = match[kind] if kind else match[0]
        if kind == "math":
            return formula(value, markup=markup)
        if not markup:
            return f"{value} <{match['url']}>" if kind == "label" else value
        safe = html.escape(value)
        makers: dict[str, Callable[[], str]] = {
            "role": lambda: f"<code>{safe}</code>",
            "code": lambda: f"<code>{safe}</code>",
            "strong": lambda: f"<strong>{safe}</strong>",
            "em": lambda: f"<em>{safe}</em>",
            "label": lambda: f'<a href="{html.escape(match["url"], quote=True)}">{safe}</a>',
            "link": lambda: f'<a href="{html.escape(value, quote=True)}">{safe}</a>',
        }
        return makers[kind or "code"]()

    out, last = [], 0
    for match in _INLINE.finditer(text):
        out += [_escape(text[last : match.start()], markup), mark(match)]
        last = match.end()
    return "".join([*out, _escape(text[last:], markup)])


def _markdown_inline(text: str, *, cell: bool = False) -> str:
    def plain(words: str) -> str:
        words = re.sub(r"([\\`*<$])", r"\\\1", words)
        return words.replace("|", r"\|") if cell else words

    def mark(match: re.Match[str]) -> str:
        kind = match.lastgroup if match["label"] is None else "label"
        value = match[kind] if kind else match[0]
        if kind == "math":
            # Between dollar signs Markdown would take a backslash before a sign for its own; not between backticks.
            tex = value.replace("|", r"\vert ") if cell else value
            return f"$`{tex}`$" if re.search(r"\\[^A-Za-z\s]|\*|<\S", tex) else f"${tex}$"
        if kind in ("role", "code"):
            return f"`{value.replace('|', chr(92) + '|') if cell else value}`"
        makers = {
            "strong": f"**{plain(value)}**",
            "em": f"*{plain(value)}*",
            "label": f"[{plain(value)}]({match['url']})",
        }
        return makers.get(kind or "", value)

    out, last = [], 0
    for match in _INLINE.finditer(text):
        out += [plain(text[last : match.start()]), mark(match)]
        last = match.end()
    return "".join([*out, plain(text[last:])])
