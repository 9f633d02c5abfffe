"""The audit of a representation: what probes tell from it of the target and of the sensitive group, on test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.errors import DataError
from zoo.tasks.fair_representation import labelled, odds_gap, parity_gap
from zoo.types import Figure

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.types import Dataset

__all__ = ["PENALTIES", "TREE_LEAVES", "audit", "frontier"]

PENALTIES = (1e-3, 1e-1, 10.0)  # inverse strengths of the linear probe's penalty
TREE_LEAVES = (2, 20)  # least rows in a leaf of the forest


def audit(
    represent: Callable[[Any], Tensor],
    data: Dataset,
    *,
    forest: bool = True,
    num_trees: int = 100,
    max_rows: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """Probe a representation for the target ``y`` and for the sensitive group ``s``.

    A linear probe (logistic regression on standardised columns) and a forest learn each of them from the
    representation of the training rows; penalty and size of the leaves are those of the smallest log loss on the
    validation rows; what is returned is measured on the test rows. Probes of ``s`` weigh the groups equally, so that
    0.5 is chance for their balanced accuracy and area; accuracy hides leakage where one group is much larger than the
    others, so ``s base rate`` stands beside it. Gaps are those of the linear probe of ``y``.

    Args:
        represent: Batch -> representation, ``(rows, dimensions)``.
        data: Data set of the task ``fair_representation`` with validation and test rows.
        forest: Whether to fit the forests, which take most of the time.
        num_trees: Trees of a forest.
        max_rows: Training rows from which probes learn, evenly spaced; all others of a larger set are left out.
        seed: Of the forests.

    Returns:
        ``PROBE TARGET MEASURE`` -> value, such as ``linear s auroc``; measures are ``accuracy``, ``balanced accuracy``
        and ``auroc`` (of several classes the mean over one against the rest). Also ``parity gap``, ``odds gap``,
        ``s base rate`` and ``y base rate``: the share of the most frequent group and class.

    Raises:
        DataError: If a split is missing, or the representation is not finite or of another shape.
    """
    parts = {name: dict(data.split(name)) for name in ("train", "validation", "test")}
    stride = -(-data.num_data // max_rows)
    parts["train"] = {k: v if k in data.whole else v[::stride] for k, v in parts["train"].items()}
    z = {name: _matrix(represent(batch), len(batch["index"]), name) for name, batch in parts.items()}
    centre, spread = z["train"].mean(0), z["train"].std(0)
    z = {name: (value - centre) / np.where(spread > 0, spread, 1.0) for name, value in z.items()}
    known = {name: labelled(batch).numpy() for name, batch in parts.items()}
    found: dict[str, float] = {}
    for target in ("y", "s"):
        rows = {name: known[name] if target == "y" else np.ones(len(known[name]), dtype=bool) for name in parts}
        codes = {name: batch[target].numpy()[rows[name]] for name, batch in parts.items()}
        inputs = {name: z[name][rows[name]] for name in parts}
        found[f"{target} base rate"] = float(np.bincount(codes["test"]).max() / len(codes["test"]))
        weight = "balanced" if target == "s" else None
        for probe in ("linear", "forest") if forest else ("linear",):
            fitted = _probe(probe, inputs, codes, weight, num_trees, seed)
            probs = fitted.predict_proba(inputs["test"])
            predicted = fitted.classes_[probs.argmax(1)]
            for measure, value in _measures(codes["test"], predicted, probs).items():
                found[f"{probe} {target} {measure}"] = value
            if (probe, target) == ("linear", "y"):
                guess = torch.as_tensor(predicted)
                truth = torch.as_tensor(codes["test"])
                groups = parts["test"]["s"][torch.as_tensor(rows["test"])]
                found["parity gap"] = parity_gap(guess, groups)
                found["odds gap"] = odds_gap(guess, truth, groups)
    return found


def frontier(audits: Mapping[str, Mapping[str, float]]) -> Figure:
    """Return the picture of the trade between telling the target and not telling the group.

    Args:
        audits: Name of a representation -> what :func:`audit` returned for it.

    Returns:
        Two axes: accuracy of the target by a linear probe against the area under the curve of the group, by the linear
        probe (filled) and by the forest (hollow, where it was fitted), and against the gaps. Best is up, left.

    Raises:
        DataError: If there is nothing to show.
    """
    from zoo.reports.figures import CHAINS, MUTED

    if not audits:
        raise DataError("no audit was given; pass a name and the result of `audit` for each representation")

    def paint(axes: Any) -> None:
        left, right = axes[0]
        for k, (name, found) in enumerate(audits.items()):
            color, height = CHAINS[k % len(CHAINS)], found["linear y accuracy"]
            left.scatter(found["linear s auroc"], height, s=28, color=color, label=name)
            if "forest s auroc" in found:
                left.plot([found["linear s auroc"], found["forest s auroc"]], [height] * 2, color=color, linewidth=0.8)
                left.scatter(found["forest s auroc"], height, s=28, facecolors="white", edgecolors=color, zorder=3)
            right.plot([found["parity gap"], found["odds gap"]], [height] * 2, color=color, linewidth=0.8)
            right.scatter(found["parity gap"], height, s=28, marker="s", color=color)
            right.scatter(found["odds gap"], height, s=28, marker="^", color=color)
        left.axvline(0.5, color=MUTED, linewidth=0.8)
        left.set(xlabel="area of the group: linear, forest (hollow)", ylabel="accuracy of the target")
        right.axvline(0.0, color=MUTED, linewidth=0.8)
        right.set(xlabel="gap of parity (square) and of odds (triangle)")
        left.legend(frameon=False, fontsize=8)

    return Figure(
        name="frontier",
        paint=paint,
        columns=2,
        wide=True,
        height=3.2,
        alt="Accuracy of the target against what is told of the group, one mark for each representation.",
        caption="What a linear probe tells of the target, against what probes tell of the group (left; the line is "
        "chance) and the gaps of that predictor between groups (right). Best is up and to the left.",
    )


def _matrix(value: Tensor, rows: int, split: str) -> NDArray[Any]:
    found = value.detach().cpu().double().reshape(len(value), -1).numpy()
    if len(found) != rows:
        raise DataError(f"the representation of the {split} rows has {len(found)} rows; {rows} were expected")
    if not np.isfinite(found).all():
        raise DataError(f"the representation of the {split} rows holds NaN or infinite values")
    return found


def _probe(
    kind: str,
    inputs: dict[str, NDArray[Any]],
    codes: dict[str, NDArray[Any]],
    weight: str | None,
    num_trees: int,
    seed: int,
) -> Any:
    """Fit the probe of each setting on training rows and return the best on validation rows."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.utils.class_weight import compute_sample_weight

    if kind == "linear":
        probes = [LogisticRegression(C=c, class_weight=weight, max_iter=500) for c in PENALTIES]
    else:
        probes = [
            RandomForestClassifier(num_trees, min_samples_leaf=leaf, class_weight=weight, random_state=seed)
            for leaf in TREE_LEAVES
        ]
    losses = []
    for probe in probes:
        probe.fit(inputs["train"], codes["train"])
        told = codes["validation"]
        weights = None if weight is None else compute_sample_weight(weight, told)
        probs = probe.predict_proba(inputs["validation"])
        losses.append(log_loss(told, probs, labels=probe.classes_, sample_weight=weights))
    return probes[int(np.argmin(losses))]


def _measures(truth: NDArray[Any], predicted: NDArray[Any], probs: NDArray[Any]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

    scores = probs[:, 1] if probs.shape[1] == 2 else probs
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "balanced accuracy": float(balanced_accuracy_score(truth, predicted)),
        "auroc": float(roc_auc_score(truth, scores, multi_class="ovr")),
    }
