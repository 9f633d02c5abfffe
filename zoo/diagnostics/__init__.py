"""From a fit to ArviZ data, and from there to checks with verdicts.

:func:`zoo.compare` is the function of :mod:`zoo.diagnostics.compare`; here that name stays the module.
"""

from __future__ import annotations

from zoo.diagnostics.adapter import to_arviz, to_datatree
from zoo.diagnostics.answers import Answer
from zoo.diagnostics.check import Check
from zoo.diagnostics.diagnosis import CHECKS, FULL, Diagnosis, diagnose

__all__ = ["CHECKS", "FULL", "Answer", "Check", "Diagnosis", "diagnose", "to_arviz", "to_datatree"]
