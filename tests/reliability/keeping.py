"""Artifacts that are kept in the tests: what an earlier version wrote must stay readable and predict the same.

``python -m tests.reliability.keeping`` writes those of the present schema anew, with the numbers that they predict.
When the schema is raised, the earlier ones stay, and new ones are added.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zoo

__all__ = ["KEPT", "numbers", "write"]

FOLDER = Path(__file__).parent / "kept"
NUMBERS = "numbers.json"
SCHEMA_1 = FOLDER / "schema-1-eight_schools"


def _table() -> zoo.Posterior:
    x = torch.linspace(-1.0, 1.0, 30)
    colour = ["red", "green", "blue"] * 10
    table = {"size": x, "weight": (7 * x).sin(), "colour": colour, "price": 100 + 20 * x + (31 * x).cos()}
    data = zoo.datasets.read(table, target="price", name="prices")
    return zoo.fit("horseshoe_regression", data, engine="svi", hyper={"guide": "mean_field"}, steps=30, compile=False)


def _network() -> zoo.Posterior:
    x = torch.linspace(-2.0, 2.0, 80).reshape(40, 2)
    data = zoo.datasets.read({"x": x, "y": (x[:, 0] * x[:, 1] > 1).long()}, name="corners")
    return zoo.fit("mean_field_network", data, hyper={"hidden": (4,)}, steps=30, compile=False)


def _chains() -> zoo.Posterior:
    return zoo.fit("eight_schools", engine="nuts", chains=2, tune=60, draws=20, compile=False)


_FITS: dict[str, Callable[[], zoo.Posterior]] = {
    "schema-2-table": _table,
    "schema-2-network": _network,
    "schema-2-chains": _chains,
}
KEPT = (SCHEMA_1, *(FOLDER / name for name in _FITS))


def numbers(posterior: zoo.Posterior) -> dict[str, Any]:
    """Return what a posterior predicts: means and log densities of its training rows, and its parameters."""
    found = posterior.predict(posterior.data.train, 4, seed=3)
    values = {f"mean {site}": value.mean(0) for site, value in found.means.items()}
    values |= {f"probability {site}": value.mean(0) for site, value in found.probs.items()}
    values |= {f"log density {site}": value.mean(0) for site, value in found.log_prob.items()}
    values |= {f"parameter {name}": value for name, value in posterior.params.items()}
    values |= {f"draws {name}": value.mean((0, 1)) for name, value in (posterior.chains or {}).items()}
    values["losses"] = posterior.losses[-5:]
    return {name: value.double().flatten().tolist() for name, value in values.items()}


def write() -> None:
    """Write the artifacts of the present schema, and the numbers of all."""
    for name, fit in _FITS.items():
        fit().save(FOLDER / name)
    for folder in KEPT:
        text = json.dumps(numbers(zoo.load(folder)), indent=1)
        (folder / NUMBERS).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
