"""Faults injected on purpose: what a fit, an artifact and an input must survive."""
