"""Pairs of the kinds that Pyro's examples and tutorials have, in their idioms.

Arguments by position, modules in globals and classes, subsampling inside plates; none knows of the zoo.
"""

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
