"""``zoo bench networks``: the networks of the zoo on the same data, scored alike, over seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

import zoo
from zoo import registry, tasks
from zoo.claims import fingerprint, machine, versions
from zoo.errors import DataError, MissingExtraError, UnknownNameError, suggest
from zoo.reports.files import dumps, write_texts
from zoo.reports.parts import Parts
from zoo.tasks.classification import auroc, probabilities
from zoo.types import Batch, Dataset, Method

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["DATA", "Cell", "Leaderboard", "methods", "networks"]

_FORMAT = "pyro-zoo leaderboard 1"
_ANGLES = tuple(range(0, 181, 30))
_BINS = 10
_HIDDEN = {"classification": (100, 100), "regression": (50,)}
_COLUMNS = {
    "classification": {
        "error": "error (%)",
        "nll": "log loss",
        "brier": "Brier",
        "ece": "calibration error (%)",
        "ood": "unlike rows (AUROC)",
    },
    "regression": {"rmse": "rmse", "nlpd": "log loss", "crps": "CRPS", "coverage_90": "90% coverage (%)"},
}
_SHARED = {
    "pruning": "pruned (x)",
    "precision": "with bits (x)",
    "milliseconds": "CPU ms per step",
    "parameters": "parameters",
}
_PERCENT = ("error", "ece", "coverage_90")
_COMPRESSION = {"pruning": "compression by pruning", "precision": "compression with bit precision"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Data of the leaderboard.

    Args:
        title: One line: what is predicted, and which rows are unlike the training rows.
        task: Task.
        load: Seed -> the data.
        unlike: Seed -> features of rows that are unlike the training rows; ``None`` where there are none.
        rotated: Whether test images are scored at several angles too.
    """

    title: str
    task: str
    load: Callable[[int], Dataset]
    unlike: Callable[[int], Tensor] | None = None
    rotated: bool = False


def _loaded(name: str) -> Callable[[int], Dataset]:
    return lambda seed: zoo.datasets.load(name, seed=seed)


def _half(seed: int, *, low: bool) -> Dataset:
    """Return the digits 0 to 4, or 5 to 9, as a data set of five classes."""
    whole = zoo.datasets.load("digits", seed=seed)
    parts: dict[str, Batch] = {}
    for split in ("train", "validation", "test"):
        batch = whole.split(split)
        rows = (batch["y"] < 5) == low
        kept = {k: v[rows] for k, v in batch.items()}
        parts[split] = kept | {"y": kept["y"] % 5, "index": torch.arange(int(rows.sum()))}
    name = "digits_0_4" if low else "digits_5_9"
    extra = {**whole.extra, "num_classes": 5}
    return dataclasses.replace(
        whole,
        name=name,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        target=None,
        coords={},
        origin="user",
        extra=extra,
    )


def _rotate(x: Tensor, degrees: float, image: Sequence[int]) -> Tensor:
    """Return images turned around their centre, empty where they end."""
    turned = ndimage.rotate(
        x.reshape(len(x), *image).numpy(), degrees, axes=(-2, -1), reshape=False, order=1, mode="constant"
    )
    return torch.from_numpy(np.ascontiguousarray(turned)).to(x.dtype).reshape(x.shape)


DATA: dict[str, Case] = {
    "mnist": Case(
        title="MNIST-8k, ten classes; unlike: the test images of Fashion-MNIST",
        task="classification",
        load=_loaded("mnist"),
        unlike=lambda seed: zoo.datasets.load("fashion_mnist", seed=seed).split("test")["x"],
        rotated=True,
    ),
    "fashion_mnist": Case(
        title="Fashion-4k, ten classes; unlike: the test images of MNIST",
        task="classification",
        load=_loaded("fashion_mnist"),
        unlike=lambda seed: zoo.datasets.load("mnist", seed=seed).split("test")["x"],
    ),
    "digits": Case(
        title="Digits of 8 x 8 pixels, ten classes; unlike: the same digits turned by 90 degrees",
        task="classification",
        load=_loaded("digits"),
        unlike=lambda seed: _rotate(zoo.datasets.load("digits", seed=seed).split("test")["x"], 90, (8, 8)),
    ),
    "digits_0_4": Case(
        title="Digits 0 to 4, five classes; unlike: digits 5 to 9",
        task="classification",
        load=lambda seed: _half(seed, low=True),
        unlike=lambda seed: _half(seed, low=False).split("test")["x"],
    ),
    "concrete": Case(title="Strength of concrete, in MPa", task="regression", load=_loaded("concrete")),
    "diabetes": Case(title="Progression of diabetes", task="regression", load=_loaded("diabetes")),
}


def methods() -> tuple[str, ...]:
    """Return the methods that can stand in the leaderboard: classifiers with ``hidden`` among their settings.

    Its networks are fully connected ones of the same width, so methods that need convolutional layers are left out.

    Returns:
        Names, sorted.
    """
    found = []
    for name in registry.names():
        method = registry.get(name)
        fields = {f.name for f in dataclasses.fields(method.hyper)}
        dense = "hidden" in fields and not getattr(method.hyper(), "channels", ())
        if isinstance(method, Method) and method.task == "classification" and dense:
            found.append(name)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One fit of the leaderboard.

    Args:
        method: Its method.
        data: Its data.
        seed: Seed of split and fit.
        scores: Scores on the test rows, by name; absent where they do not apply.
        curves: ``rotation`` (error at each angle) and ``reliability`` (confidence, accuracy and share of rows by bin).
    """

    method: str
    data: str
    seed: int
    scores: Mapping[str, float]
    curves: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """All fits, and how they were made.

    Args:
        cells: One entry per method, data and seed.
        settings: Steps and draws.
        machine: Where it ran.
        versions: Versions of the packages.
    """

    cells: tuple[Cell, ...]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    def spread(self, method: str, data: str, key: str) -> tuple[float, float]:
        """Return mean and standard deviation of a score over the seeds.

        Args:
            method: Method.
            data: Data.
            key: Score.

        Returns:
            Both NaN where no seed has it; the deviation also for a single seed.
        """
        values = [c.scores[key] for c in self.cells if (c.method, c.data) == (method, data) and key in c.scores]
        if not values:
            return math.nan, math.nan
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-able dict.

        Returns:
            Cells, settings and provenance.
        """
        return {
            "format": _FORMAT,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "cells": [dataclasses.asdict(c) for c in self.cells],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Leaderboard:
        """Return the leaderboard that :meth:`to_json` wrote.

        Args:
            found: Its dict.

        Returns:
            The leaderboard.

        Raises:
            KeyError: If it is none, or of another format.
        """
        if found["format"] != _FORMAT:
            raise KeyError("format")
        return cls(
            cells=tuple(Cell(**c) for c in found["cells"]),
            settings=found["settings"],
            machine=found["machine"],
            versions=found["versions"],
        )

    def to_markdown(self) -> str:
        """Return a table for each data set, ordered by the mean log loss.

        Returns:
            The page.
        """
        lines = ["# Leaderboard: networks", ""]
        lines += [
            "Every method with its own recipe, hidden layers of the same width, default settings otherwise: "
            + ", ".join(f"{k} {v}" for k, v in self.settings.items())
            + ". Mean ± standard deviation over seeds, each with its own split where the data have no test set of "
            "their own. Lower is better but for the AUROC, which says how well the entropy of a prediction tells rows "
            "that are unlike the training rows from test rows. Times are the processor's, all threads together, over "
            "the optimiser's steps. Where a method finds a smaller network, that one is scored; it chose it on "
            "validation rows and was then fitted to them too.",
            "",
        ]
        for data in (name for name in DATA if any(c.data == name for c in self.cells)):
            case = DATA[data]
            first = "nll" if case.task == "classification" else "nlpd"
            rows = sorted(
                dict.fromkeys(c.method for c in self.cells if c.data == data),
                key=lambda m: self.spread(m, data, first)[0],
            )
            columns = {
                k: title
                for k, title in (_COLUMNS[case.task] | _SHARED).items()
                if any(k in c.scores for c in self.cells if c.data == data)
            }
            lines += [f"## {case.title}", "", f"| method | seeds | {' | '.join(columns.values())} |"]
            lines.append("|---|---:|" + "---:|" * len(columns))
            for method in rows:
                count = sum((c.method, c.data) == (method, data) for c in self.cells)
                cells = [_shown(*self.spread(method, data, k), 100 if k in _PERCENT else 1) for k in columns]
                lines.append(f"| `{method}` | {count} | {' | '.join(cells)} |")
            lines.append("")
        used = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        lines.append(f"Measured on {self.machine['processor']}, {self.machine['cores']} cores; {used}.")
        return "\n".join(lines) + "\n"


def _shown(mean: float, sd: float, factor: float) -> str:
    if not math.isfinite(mean):
        return "–"
    text = f"{factor * mean:,.0f}" if abs(mean) >= 1e4 else f"{factor * mean:.4g}"
    return text if not math.isfinite(sd) else f"{text} ± {factor * sd:.2g}"


def networks(
    *,
    names: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
    seeds: int = 3,
    steps: int | None = None,
    draws: int = 100,
    out: Path | None = None,
    compile: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Leaderboard:
    """Fit methods to data over seeds and score them on the test rows.

    With ``out``, ``networks.json`` is written after every fit, and fits found there, made by the same code with the
    same settings and versions, are not made again; in the end ``networks.md`` and the figures of all that it holds are
    written beside it.

    Args:
        names: Methods; ``None``: all of :func:`methods`, without those that need a package which is not installed.
        data: Keys of :data:`DATA`; ``None``: all.
        seeds: Number of seeds.
        steps: Optimiser steps; ``None``: those of each method's recipe.
        draws: Posterior draws of a prediction.
        out: Folder.
        compile: Whether to compile the fits.
        progress: Told a line about every fit.

    Returns:
        The leaderboard of the chosen methods and data.

    Raises:
        UnknownNameError: If a method or data set is not one of the leaderboard.
        MissingExtraError: If a method that is named needs a package which is not installed.
        DataError: If the folder's file is none of ours, or ``seeds`` or ``draws`` is not positive.
    """
    if seeds < 1 or draws < 1:
        raise DataError(f"seeds is {seeds} and draws is {draws}; both must be at least 1")
    named, names, data = bool(names), list(names or methods()), list(data or DATA)
    for kind, chosen, allowed in (("method", names, methods()), ("data", data, tuple(DATA))):
        for name in chosen:
            if name not in allowed:
                raise UnknownNameError(f"{kind} '{name}' is not in the leaderboard{suggest(name, allowed)}")
    say = progress or (lambda _: None)
    settings = {"steps": steps or "as in the recipe", "draws": draws}
    path = None if out is None else out / "networks.json"
    kept = _kept(path, settings)
    paths = {e.name: e.path for e in registry.entries()}
    wanted = [(n, d, s) for d in data for n in names for s in range(seeds) if _takes(n, DATA[d].task)]
    found: list[Cell] = []

    def board(cells: Iterable[Cell]) -> Leaderboard:
        return Leaderboard(cells=tuple(cells), settings=settings, machine=machine(), versions=versions())

    def write(cells: Sequence[Cell]) -> None:
        if path is not None:
            # What other calls measured, under the same settings, stays in the file.
            ours = {(c.method, c.data, c.seed): c for c in cells}
            rest = {k: c for k, c in kept.items() if k not in ours and k[0] in paths}
            codes = {n: fingerprint(paths[n]) for n in {k[0] for k in (*ours, *rest)}}
            write_texts({path: dumps({**board((*cells, *rest.values())).to_json(), "code": codes})})

    write(found)  # an unwritable folder shows before hours of work
    for name, key, seed in wanted:
        before = kept.get((name, key, seed))
        if before is not None:
            found.append(before)
            say(f"{name} on {key}, seed {seed}: measured before")
            continue
        try:
            found.append(_measure(name, key, seed, steps=steps, draws=draws, compile=compile))
        except MissingExtraError as error:
            if named:
                raise
            say(f"{name} on {key}, seed {seed}: left out: {error}")
            continue
        shown = ", ".join(f"{k} {v:.4g}" for k, v in found[-1].scores.items())
        say(f"{name} on {key}, seed {seed}: {shown}")
        write(found)
    result = board(found)
    if path is not None and out is not None:
        write(found)
        whole = Leaderboard.from_json(json.loads(path.read_text(encoding="utf-8")))
        write_texts({out / "networks.md": whole.to_markdown()})
        _draw(whole, out)
    return result


def _takes(name: str, task: str) -> bool:
    method: Any = registry.get(name)
    # What models another entry of such data, as a density of x, makes no prediction that could be ranked.
    return task in (method.task, *method.other_tasks) and tasks.get(method.task).target == tasks.get(task).target


def _kept(path: Path | None, settings: Mapping[str, Any]) -> dict[tuple[str, str, int], Cell]:
    """Return the fits of an earlier call that still hold."""
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        board = Leaderboard.from_json(found)
        if board.settings != dict(settings) or board.versions != dict(versions()):
            return {}
        code = {e.name: fingerprint(e.path) for e in registry.entries()}
        cells = [c for c in board.cells if found["code"][c.method] == code.get(c.method)]
        return {(c.method, c.data, c.seed): c for c in cells}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{path}' is no leaderboard written by zoo ({type(error).__name__}); move it or choose another folder"
        ) from error


def _measure(name: str, key: str, seed: int, *, steps: int | None, draws: int, compile: bool) -> Cell:
    """Fit one method to one data set and score it."""
    case, method = DATA[key], registry.get(name)
    data = case.load(seed)
    posterior = zoo.fit(
        method,  # type: ignore[arg-type]  # a Method, as methods() lists no diagnostics
        data,
        hyper={"hidden": _HIDDEN[case.task]},
        seed=seed,
        steps=steps,
        compile=compile,
    )
    if posterior.method is not None and posterior.method.prune is not None:
        posterior = posterior.prune()
    test = data.split("test")
    prediction = posterior.predict(test, n=draws, seed=seed)
    scores = tasks.get(case.task).score(prediction, test, data)
    scores = {k: scores[k] for k in _COLUMNS[case.task] if k in scores}
    curves: dict[str, Any] = {}
    if case.task == "classification":
        probs = probabilities(prediction, len(test["y"]))
        curves["reliability"] = _reliability(probs, test["y"])
        if case.unlike is not None:
            other = _probabilities(posterior, case.unlike(seed), draws, seed)
            entropy = torch.cat([_entropy(probs), _entropy(other)])
            labels = torch.cat([torch.zeros(len(probs)), torch.ones(len(other))]).long()
            scores["ood"] = auroc(entropy, labels)
        if case.rotated:
            image = data.extra["image_shape"][-2:]
            turned = [_probabilities(posterior, _rotate(test["x"], a, image), draws, seed) for a in _ANGLES]
            curves["rotation"] = {
                "angles": list(_ANGLES),
                "error": [float((p.argmax(-1) != test["y"]).double().mean()) for p in turned],
                "entropy": [float(_entropy(p).mean()) for p in turned],
            }
    if getattr(method, "compress", None) is not None:
        interest = posterior.summary()
        scores |= {k: float(interest[label]) for k, label in _COMPRESSION.items() if label in interest}
    scores["milliseconds"] = 1e3 * posterior.info["cpu_seconds"] / posterior.info["steps"]
    scores["parameters"] = float(sum(v.numel() for v in posterior.params.values()))
    return Cell(method=name, data=key, seed=seed, scores=scores, curves=curves)


def _probabilities(posterior: Posterior, x: Tensor, draws: int, seed: int) -> Tensor:
    return probabilities(posterior.predict({"x": x}, n=draws, seed=seed), len(x))


def _entropy(probs: Tensor) -> Tensor:
    entropy: Tensor = -torch.special.xlogy(probs, probs).sum(-1)
    return entropy


def _reliability(probs: Tensor, y: Tensor) -> dict[str, list[float | None]]:
    """Return mean confidence, accuracy and share of rows by bin of the confidence."""
    confidence, predicted = probs.max(-1)
    at = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
    right = (predicted == y).double()
    found: dict[str, list[float | None]] = {"confidence": [], "accuracy": [], "share": []}
    for i in range(_BINS):
        rows = at == i
        found["confidence"].append(float(confidence[rows].mean()) if rows.any() else None)
        found["accuracy"].append(float(right[rows].mean()) if rows.any() else None)
        found["share"].append(float(rows.double().mean()))
    return found


def _draw(board: Leaderboard, out: Path) -> None:
    """Write the front of accuracy and compression, the rotation curve and the reliability diagrams.

    A figure that cannot be drawn is left out with a warning: what was measured is in the tables.
    """
    from zoo.reports.figures import holds_data

    parts = Parts()

    def make(name: str, draw: Callable[[], Any]) -> None:
        def save() -> None:
            figure = draw()
            if not all(holds_data(axes) for axes in figure.axes):
                raise DataError("no finite value to show")
            figure.savefig(out / f"networks_{name}.png", dpi=120)

        parts.make(f"figure 'networks_{name}'", save, None)

    turned = [c for c in board.cells if "rotation" in c.curves]
    if turned:
        make("rotation", lambda: _rotation(turned))
    small = [d for d in DATA if any(c.data == d and {"pruning", "error"} <= set(c.scores) for c in board.cells)]
    if small:
        make("front", lambda: _fronts(board, small))
    for data in dict.fromkeys(c.data for c in board.cells if "reliability" in c.curves):
        make(f"reliability_{data}", partial(_diagram, board, data))


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawable(values: Any) -> Any:
    """Return an array of floats with NaN, which draws nothing, in the place of what is absent or infinite."""
    found = np.array(values, dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def _rotation(turned: Sequence[Cell]) -> Any:
    figure = _figure(11, 3.4)
    for axes, key, label in zip(
        figure.subplots(1, 2), ("error", "entropy"), ("error", "mean entropy (nats)"), strict=True
    ):
        for name in dict.fromkeys(c.method for c in turned):
            runs = _drawable([c.curves["rotation"][key] for c in turned if c.method == name])
            angles = turned[0].curves["rotation"]["angles"]
            axes.errorbar(angles, runs.mean(0), runs.std(0), marker="o", markersize=3, capsize=2, label=name)
        axes.set(xlabel="angle (degrees)", ylabel=label)
    _legend(figure)
    return figure


def _fronts(board: Leaderboard, small: Sequence[str]) -> Any:
    figure = _figure(3.4 * len(small) + 2, 3.4)
    names = list(dict.fromkeys(c.method for c in board.cells if c.data in small))
    for axes, data in zip(figure.subplots(1, len(small), squeeze=False)[0], small, strict=True):
        _front(axes, [c for c in board.cells if c.data == data], names)
        axes.set(xlabel="compression (times)", ylabel="error (%)", title=data)
    _legend(figure)
    return figure


def _diagram(board: Leaderboard, data: str) -> Any:
    from zoo.reports.figures import holds_data

    figure = _figure(4, 3.6)
    axes = figure.subplots()
    for name in dict.fromkeys(c.method for c in board.cells if c.data == data):
        bins = [
            c.curves["reliability"]
            for c in board.cells
            if (c.method, c.data) == (name, data) and "reliability" in c.curves
        ]
        if not bins:
            continue
        confidence, accuracy, share = (_drawable([r[key] for r in bins]) for key in ("confidence", "accuracy", "share"))
        weight = np.nansum(share, 0)
        used = weight > 0
        mean_confidence = np.nansum(confidence * share, 0)[used] / weight[used]
        axes.plot(mean_confidence, np.nansum(accuracy * share, 0)[used] / weight[used], marker="o", label=name)
    if holds_data(axes):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, zorder=1)
        axes.set(xlabel="confidence", ylabel="accuracy", title=data, xlim=(0, 1), ylim=(0, 1))
        axes.legend(fontsize=8)
    return figure


def _legend(figure: Any) -> None:
    """Draw one legend for all axes, beside them."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside right center", fontsize=8)


def _front(axes: Any, cells: Sequence[Cell], names: Sequence[str]) -> None:
    """Draw error against compression: a filled marker with its pruned weights left out, a hollow one with bits too.

    Seeds are averaged (compression geometrically); bars are the standard deviation of the error and the range of the
    compression. What compresses nothing stands at 1.
    """
    for i, name in enumerate(names):
        runs = [c for c in cells if c.method == name]
        if not runs:
            continue
        error = _drawable([100 * c.scores["error"] for c in runs])
        for key, fill in (("pruning", f"C{i}"), ("precision", "none")):
            if key == "precision" and key not in runs[0].scores:
                continue
            factor = np.log(_drawable([c.scores.get(key, 1.0) for c in runs]))
            middle = np.exp(factor.mean())
            sides = [[middle - np.exp(factor.min())], [np.exp(factor.max()) - middle]]
            axes.errorbar(
                middle, error.mean(), error.std(), sides, fmt="o", color=f"C{i}", markerfacecolor=fill, capsize=2,
                markersize=5, label=name if key == "pruning" else None,
            )  # fmt: skip
    axes.set_xscale("log")
