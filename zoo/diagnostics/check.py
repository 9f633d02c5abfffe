"""What a check says: its verdict, the threshold behind it, and where the threshold comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from zoo.diagnostics.meaning import MEANING
from zoo.errors import ZooError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["About", "Check", "NotApplicable", "Verdict", "jsonable"]

Verdict: TypeAlias = Literal["pass", "warn", "fail", "not run"]
About: TypeAlias = Literal["parameters", "predictions", "comparison"]


class NotApplicable(ZooError):
    """This check does not apply to this fit; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The outcome of one check of one fit.

    Args:
        name: Name of the check's function.
        title: What is asked, in a few words.
        about: What the verdict concerns: the posterior of the ``parameters``, the ``predictions``, or the
            ``comparison`` with other models.
        verdict: ``pass``, ``warn``, ``fail`` or ``not run``.
        value: What was measured, JSON-able.
        threshold: From where on it warns and fails.
        p_value: How often a right fit would deviate as much, after the check's own corrections for several tests;
            ``None`` for a check that goes by a threshold.
        level: At most how often it does not pass a correct fit, as designed; measured in ``DIAGNOSTICS.md``.
        source: Where the threshold comes from.
        explanation: What was found, in a sentence; for ``not run``, the reason.
        figure: Kind of figure that shows ``data``; empty if there is none.
        data: Arrays for that figure.
        error: Text of the exception that ended the check; empty if none did.
    """

    name: str
    title: str
    about: About
    verdict: Verdict
    value: Any = None
    threshold: str = ""
    p_value: float | None = None
    level: float = 0.05
    source: str = ""
    explanation: str = ""
    figure: str = ""
    data: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    error: str = ""

    @property
    def meaning(self) -> str:
        """What the check does, in one sentence for a newcomer; empty for a check that is not of the zoo."""
        return MEANING.get(self.name, "")

    def to_json(self) -> dict[str, Any]:
        """Return everything but the figure's arrays.

        Returns:
            A dict that ``json.dumps`` takes; numbers that JSON cannot hold become null.
        """
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("figure", "data")}
        return {name: jsonable(value) for name, value in (found | {"meaning": self.meaning}).items()}


def jsonable(value: Any) -> Any:
    """Turn numbers, arrays and mappings into what JSON holds.

    Args:
        value: Anything made of these.

    Returns:
        The same out of dicts, lists, strings, numbers and ``None``; NaN and infinities are ``None``.
    """
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
