"""Reads pages, and checks what holds of every one of them."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

__all__ = ["ACTIVE", "Page", "accessible", "self_contained"]

VOID = {"meta", "link", "br", "hr", "img", "input"}
LOADING = {"src", "srcset", "data", "action", "poster", "background", "ping", "formaction", "manifest", "cite"}
ACTIVE = {"script", "iframe", "object", "embed", "form", "base", "foreignobject", "video", "audio", "animate", "set"}


class Page(HTMLParser):
    """Reads a page: its tags balance, its identifiers and links are collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.requests: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
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
            self.attributes.add(key)
            if key == "id":
                self.ids.append(value or "")
            elif key in ("href", "xlink:href") and (value or "").startswith("#"):
                self.links.append((value or "")[1:])
            elif key in LOADING or (key in ("href", "xlink:href") and tag not in ("a", "use")):
                self.requests.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] not in ("style", "script"):
            self.text += data


def self_contained(text: str, found: Page) -> None:
    """Check that nothing on a page asks for anything, and that the page forbids it besides."""
    assert len(text) < 3_000_000
    assert all(r.startswith("data:") for r in found.requests)
    assert not ACTIVE & set(found.tags)
    assert not [a for a in found.attributes if a.startswith("on")]
    assert all(u.startswith(("#", "data:")) for u in re.findall(r"url\(\s*['\"]?([^)'\"]*)", text))
    assert "@import" not in text
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert text.count("http-equiv") == 1, "no refresh"
    assert text.index("Content-Security-Policy") < text.index("<style")


def accessible(text: str, found: Page) -> None:
    """Check what a keyboard, a screen reader, a phone and a printer need."""
    assert '<html lang="en">' in text
    assert 'name="viewport"' in text
    for svg in re.findall(r"<svg[^>]*>", text):
        assert 'role="img"' in svg
        assert re.search(r'aria-label="[^"]+"', svg)
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", text)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), "no level is left out"
    assert re.search(r'<body>\s*<a class="skip" href="#(\w+)">', text)
    assert all("scope=" in th for th in re.findall(r"<th\b[^>]*>", text))
    for scroll in re.findall(r'<div class="scroll"[^>]*>', text):
        assert 'tabindex="0"' in scroll
        assert re.search(r'aria-label="[^"]+"', scroll)
    assert text.count("<details") == text.count("<summary")
    for rule in ("@media print", "prefers-color-scheme: dark", "details::details-content"):
        assert rule in text
