"""Docstrings as HTML and as text."""

from __future__ import annotations

import ast
from html.parser import HTMLParser

import pytest

from zoo import registry
from zoo.reports import rst


@pytest.mark.parametrize(
    ("tex", "text", "markup"),
    [
        (r"\mu \sim \mathrm{N}(0, 5^2)", "μ ∼ N(0, 5²)", "μ ∼ N(0, 5<sup>2</sup>)"),
        (r"\tilde\theta_j", "θ̃ⱼ", "θ̃<sub><i>j</i></sub>"),
        (r"x_{ij}", "xᵢⱼ", "<i>x</i><sub><i>i</i><i>j</i></sub>"),
        (r"\frac{a}{b + 1}", "a/(b + 1)", "<i>a</i>/(<i>b</i> + 1)"),
        (r"\sqrt{\tau}", "√(τ)", "√(τ)"),
        (r"a < b", "a < b", "<i>a</i> &lt; <i>b</i>"),
        (r"\unknown", "unknown", "unknown"),
        (r"\bigl(x\bigr)", "(x)", "(<i>x</i>)"),
    ],
)
def test_formula(tex: str, text: str, markup: str) -> None:
    assert rst.formula(tex, markup=False) == text
    assert rst.formula(tex) == markup


def test_inline_markup_is_recognised_and_the_rest_escaped() -> None:
    html = rst.to_html(
        "A ``code<1>`` and *soft* **hard** :func:`zoo.fit`, `label <https://a.b/c>`_ & <b>2 * 3 * 4</b>."
    )
    assert html == (
        "<p>A <code>code&lt;1&gt;</code> and <em>soft</em> <strong>hard</strong> <code>zoo.fit</code>, "
        '<a href="https://a.b/c">label</a> &amp; &lt;b&gt;2 * 3 * 4&lt;/b&gt;.</p>'
    )


def test_display_math_becomes_one_labelled_picture_per_line() -> None:
    html = rst.to_html("See\n\n.. math::\n\n    a &= b \\\\\n    c &= \\sigma^2\n\nend")
    assert html.count('<svg role="img"') == 2
    assert 'aria-label="c = σ²"' in html, "read out as words, not as TeX"
    assert html.endswith("<p>end</p>")
    assert "scale(0.015625)" in html, "glyphs keep their scale"


def test_math_that_cannot_be_set_stays_text() -> None:
    assert "<p>begin <i>a</i></p>" in rst.to_html(".. math:: \\begin a")


def test_table_and_list() -> None:
    text = "====  =====\nname  of\n====  =====\na     ``b``\n      more\n====  =====\n\n- one\n  two\n- three\n"
    html = rst.to_html(text)
    assert '<th scope="col">name</th><th scope="col">of</th>' in html
    assert "<td>a</td><td><code>b</code> more</td>" in html
    assert "<ul><li>one two</li><li>three</li></ul>" in html
    assert rst.to_text(text) == "name  of\na     b more\n\n- one two\n- three"


def test_bibtex_is_cut_out_with_its_directive() -> None:
    text = "Before.\n\n.. code-block:: bibtex\n\n    @a{k,\n      t = {x {y}}\n    }\n\nAfter.\n\n"
    text += "@b{l,\n  t = {z},\n}\nEnd."
    assert rst.without_bibtex(text) == "Before.\n\nAfter.\n\nEnd."


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", registry.names())
def test_every_method_has_a_readable_process(name: str) -> None:
    path = next(e.path for e in registry.entries() if e.name == name)
    process = rst.without_bibtex(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    html, text = rst.to_html(process), rst.to_text(process)
    parser = _Balance()
    parser.feed(html)
    assert parser.open == []
    assert ":math:" not in html
    assert ":math:" not in text
    assert ".. math" not in text
    assert "\\" not in text, "every TeX command has a sign"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (":math:`x_i` of ``a<b``, :func:`zoo.fit`, *soft* **hard**", "$x_i$ of `a<b`, `zoo.fit`, *soft* **hard**"),
        (r":math:`\{a\}`, :math:`T < 1`, :math:`T<a`", r"$`\{a\}`$, $T < 1$, $`T<a`$"),
        ("2 * 3 < 4$ `", r"2 \* 3 \< 4\$ \`"),
        ("`label <https://a.b/c>`_ https://a.b", "[label](https://a.b/c) https://a.b"),
        (".. math:: a = b", "$$\na = b\n$$"),
        (".. math::\n\n    a &= b \\\\\n    c &= d", "$$\n\\begin{aligned}\na &= b \\\\\nc &= d\n\\end{aligned}\n$$"),
        ("- one\n  two\n- three", "- one two\n- three"),
        ("Do::\n\n    x = 1", "Do:\n\n```\nx = 1\n```"),
        ("====  =====\na     b\n====  =====\n``x|y``  :math:`|z|`\n====  =====".replace("``x|y``  ", "x|y   "),
         "| a | b |\n|---|---|\n| x\\|y | $\\vert z\\vert $ |"),
    ],
)  # fmt: skip
def test_markdown(text: str, shown: str) -> None:
    assert rst.to_markdown(text) == shown


@pytest.mark.parametrize("name", registry.names())
def test_markdown_of_every_method_has_paired_dollars_and_equal_rows(name: str) -> None:
    path = next(e.path for e in registry.entries() if e.name == name)
    text = rst.to_markdown(rst.without_bibtex(ast.get_docstring(ast.parse(path.read_text())) or ""))
    assert text.count("$$") % 2 == 0
    assert text.replace("$$", "").count("$") % 2 == 0
    assert not [w for w in (":math:", ".. math", "``") if w in text]
    bars = [line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(bars)) == 1
