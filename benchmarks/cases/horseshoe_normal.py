"""Regularised horseshoe regression, log-normal guides of its scales."""

from __future__ import annotations

from benchmarks.cases import _horseshoe

CASE = _horseshoe.case("normal", "Regularised horseshoe regression, log-normal guides, 442 rows, 30 features")
