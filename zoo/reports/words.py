"""Short names that stand in tables, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable

from markupsafe import Markup, escape

__all__ = ["MEANINGS", "abbreviated", "definitions"]

MEANINGS: dict[str, str] = {
    "accuracy": "share of rows whose most probable class is right",
    "auroc": "area under the ROC curve: how often a row of the second class gets the higher probability; 0.5 is chance",
    "brier": "Brier score, the mean squared error of the class probabilities",
    "crps": "continuous ranked probability score, a mean absolute error of the whole predictive distribution, in the "
    "target's unit",
    "ece": "expected calibration error, the mean gap between stated and observed frequencies",
    "error": "share of rows whose most probable class is wrong",
    "mae": "mean absolute error, in the target's unit",
    "nll": "negative log likelihood of the observed classes, in nats per row",
    "nlpd": "negative log predictive density, in nats per row, of the target in its own unit",
    "r2": "share of the target's variance that the predictive mean explains",
    "rmse": "root mean squared error, in the target's unit",
    "coverage 50": "share of rows inside the central 50% interval",
    "coverage 90": "share of rows inside the central 90% interval",
    "elpd": "expected log predictive density of rows that were left out, summed over the rows, in nats",
    "ESS": "effective sample size: how many independent draws the draws of the chains are worth",
    "R-hat": "ratio of the spread of all chains to that within each; 1 where they agree",
    "sd": "standard deviation",
    "k-hat": "tail index of the importance weights; above 0.7 they cannot be trusted",
    "E-BFMI": "energy Bayesian fraction of missing information; below 0.3 tails are explored too slowly",
}
"""Short name -> what it is."""

# Names of scores are words of their own in running text too (`error`); only unmistakable ones are marked there.
_MARKED = sorted((name for name in MEANINGS if name not in ("error", "accuracy")), key=len, reverse=True)
_PATTERN = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, _MARKED))})(?![\w-])", re.IGNORECASE)
_BY_LOWER = {name.lower(): meaning for name, meaning in MEANINGS.items()}


def definitions(names: Iterable[str]) -> str:
    """Return what scores mean, in a sentence.

    Args:
        names: Names as they stand in the table.

    Returns:
        ``nlpd: ...; crps: ....``; empty where none is known.
    """
    known = [f"{name}: {_BY_LOWER[name.lower()]}" for name in names if name.lower() in _BY_LOWER]
    return f"{'; '.join(known)}." if known else ""


def abbreviated(text: str) -> Markup:
    """Mark the short names in a text, so that a browser says what they mean.

    Args:
        text: Plain text.

    Returns:
        HTML with ``<abbr>`` around them.
    """

    def mark(match: re.Match[str]) -> str:
        return f'<abbr title="{escape(_BY_LOWER[match[1].lower()])}">{match[1]}</abbr>'

    return Markup(_PATTERN.sub(mark, str(escape(text))))
