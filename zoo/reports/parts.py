"""Parts of a page that are made one by one: what fails is left out and named, and the page is written all the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Parts"]

T = TypeVar("T")


class Parts:
    """What could not be made of a page.

    Attributes:
        missing: Name of the part -> why it is not there.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}

    def make(self, part: str, function: Callable[[], T], otherwise: Any) -> T | Any:
        """Make a part; where that fails, remember why and warn.

        Args:
            part: What it is, in words: ``figure 'loo'``.
            function: Makes it.
            otherwise: What stands in its place where it fails.

        Returns:
            The part.
        """
        try:
            return function()
        except Exception as error:
            # Any error at all: the rest of the page is worth more than the place where this one came from.
            text = " ".join(str(error).split()).rstrip(".")
            self.missing[part] = f"{type(error).__name__}: {text}" if text else type(error).__name__
            warnings.warn(f"{part} is left out: {self.missing[part]}", RuntimeWarning, stacklevel=2)
            return otherwise

    def to_json(self) -> list[dict[str, str]]:
        """Return what is missing.

        Returns:
            One entry per part, with ``part`` and ``reason``.
        """
        return [{"part": part, "reason": reason} for part, reason in self.missing.items()]
