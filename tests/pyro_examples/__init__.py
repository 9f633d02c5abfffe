"""Pairs of the kinds that Pyro's examples and tutorials have, in Pyro's idioms: arguments by position, modules in globals
and classes, subsampling inside plates. None knows of the zoo."""

from tests.pyro_examples import autoencoders, estimators, hierarchical, mixtures, regressions, sequences
from tests.pyro_examples.example import EXAMPLES, Example, load

__all__ = [
    "EXAMPLES",
    "Example",
    "autoencoders",
    "estimators",
    "hierarchical",
    "load",
    "mixtures",
    "regressions",
    "sequences",
]
