"""Regularised horseshoe regression, Gamma guides of its scales (implicit gradients)."""

from __future__ import annotations

from benchmarks.cases import _horseshoe

CASE = _horseshoe.case("gamma", "Regularised horseshoe regression, Gamma guides, 442 rows, 30 features")
