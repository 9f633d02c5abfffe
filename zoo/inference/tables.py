"""Predictions for the rows of a new table, in the user's units and labels."""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo import tasks
from zoo.datasets.files import Raw, open_table
from zoo.datasets.tables import Encoded, Refused, encode, encode_rows
from zoo.errors import DataError, MissingExtraError, UnknownNameError, suggest
from zoo.inference.marginal import marginal_log_likelihood
from zoo.inference.predictive import Prediction, block_seed
from zoo.tasks.classification import probabilities

if TYPE_CHECKING:
    from zoo.datasets.files import Table
    from zoo.inference.posterior import Posterior
    from zoo.types import Batch, Dataset

__all__ = ["SUFFIXES", "TablePrediction", "predict_table", "table_bytes", "transform_table"]

SUFFIXES = (".csv", ".npz", ".parquet")

_CHUNK_CELLS = 2**20  # draws x rows x classes that are predicted at a time
_SCORED_CELLS = 2**23  # that are kept for the scores
_SHOWN = 20  # refused rows that a warning names
_KINDS = ("samples", "means", "probs", "log_prob")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TablePrediction:
    """What is predicted for a table.

    Args:
        frame: One line per row of the table. Where rows are refused, their results are NaN (no class), and the column
            ``refused`` says why; of the others it is empty.
        scores: Scores of the task, where the table has the target; else empty.
        scored: Number of rows that were scored: all with a target, or evenly spaced ones of a large table.
        refused: Rows that cannot be predicted, with line, column and reason.
    """

    frame: pd.DataFrame
    scores: Mapping[str, float]
    scored: int
    refused: tuple[Refused, ...] = ()


def predict_table(
    posterior: Posterior,
    table: Table,
    *,
    interval: float = 0.9,
    keep: Sequence[str] = (),
    draws: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> TablePrediction:
    """Predict the target for every row of a table, in chunks of rows.

    A row that cannot be encoded (a category that training did not have, a missing value) is refused, with a warning;
    the others are predicted as if it were not there.

    Args:
        posterior: A fit to a table or images, for a regression, a classification or a density.
        table: New rows in any form that :func:`zoo.datasets.read` takes, encoded as the training rows were.
        interval: Probability of the central interval of a regression.
        keep: Columns of the table to copy, such as an identifier.
        draws: Posterior draws; ``None`` takes 1,000 for a number, 200 for classes and densities.
        seed: Of the draws.
        strict: Refuse the whole table where one row has to be refused.

    Returns:
        The prediction. Its frame has the column ``row``, counted from 0; the columns to keep; and for a number
        ``mean``, ``sd``, ``lower`` and ``upper`` of the posterior predictive in the target's unit, for classes the
        most probable ``class`` and the probability ``p_LABEL`` of each, for a density ``log_density`` in nats, of the
        features as the model takes them (standardised columns); rows unlike those of the training have low ones.

    Raises:
        DataError: If the posterior is of another task, no row of the table fits the training data (``strict``: some do
            not), or an option is out of range.
        UnknownNameError: If a column is missing.
    """
    data = posterior.data
    task = tasks.of(posterior.method, data)
    if task is None or task.name not in ("regression", "classification", "density", "fair_representation"):
        raise DataError(f"'{posterior.name}' on data set '{data.name}' is for {task.name if task else 'no task'}; a "
                        "table is predicted for regression, classification, density, fair representation")  # fmt: skip
    if not 0 < interval < 1:
        raise DataError(f"interval is {interval}; allowed: a probability between 0 and 1, such as 0.9")
    labels = _labels(posterior) if task.name in ("classification", "fair_representation") else ()
    density = task.name == "density"
    num = (200 if labels or density else 1_000) if draws is None else draws
    if num < 2:
        raise DataError(f"draws is {num}; allowed: 2 or more")
    raw = open_table(table)
    own = ("row", "class", *(f"p_{label}" for label in labels)) if labels else ("row", "mean", "sd", "lower", "upper")
    own = ("row", "log_density") if density else own
    own = (*own, "refused")
    for column in keep:
        if column not in raw.frame:
            raise UnknownNameError(f"column '{column}' to keep is unknown{suggest(column, list(raw.frame.columns))}")
        if column in own:
            raise DataError(f"column '{column}' to keep has the name of a result; rename it in the table")
    found = _encode(data, raw, strict=strict)
    batch, total = found.batch, len(found.rows) + len(found.refused)
    frame = pd.DataFrame({"row": np.arange(total), **{column: raw.frame[column].to_numpy() for column in keep}})
    if density:
        value = marginal_log_likelihood(posterior, batch, num_samples=num, seed=seed).numpy()
        frame = _placed(frame, {"log_density": value}, found)
        scores = {task.primary: -float(value.mean())}
        return TablePrediction(frame=frame, scores=scores, scored=len(value), refused=found.refused)
    rows, width = len(batch["index"]), num * max(len(labels), 1)
    scored = np.flatnonzero(found.scorable)
    scored = scored[:: max(1, -(-len(scored) * width // _SCORED_CELLS))]
    # Results have their place from the start: small pieces kept between large passing ones would fragment the memory.
    values = np.empty((rows, len(labels) or 4))
    kept = _Kept(len(scored)) if len(scored) else None
    for start, chunk in _chunks(batch, max(1, _CHUNK_CELLS // width), data.whole):
        drawn = posterior.predict(chunk, num, seed=block_seed(seed, start), kinds=task.reads)
        size = len(chunk["index"])
        if labels:
            values[start : start + size] = probabilities(drawn, size, site=task.site).numpy()
        else:
            values[start : start + size] = _numbers(drawn, posterior, interval, task.site)
        if kept is not None:
            kept.add(drawn, scored[(scored >= start) & (scored < start + size)] - start)
    if labels:
        columns = {"class": np.array(labels, dtype=object)[values.argmax(-1)]}
        columns |= {f"p_{label}": values[:, code] for code, label in enumerate(labels)}
    else:
        columns = dict(zip(("mean", "sd", "lower", "upper"), values.T, strict=True))
    frame = _placed(frame, columns, found)
    if kept is None:
        return TablePrediction(frame=frame, scores={}, scored=0, refused=found.refused)
    some = {k: v if k in data.whole else v[torch.as_tensor(scored)] for k, v in batch.items()}
    scores = task.score(kept.prediction(), some, data)
    return TablePrediction(frame=frame, scores=scores, scored=kept.rows, refused=found.refused)


def _encode(data: Dataset, raw: Raw, *, strict: bool) -> Encoded:
    """Encode what can be encoded, and warn of the other rows; ``strict`` allows none."""
    if strict:
        encode(data, raw)
    found = encode_rows(data, raw)
    if found.refused:
        total = len(found.rows) + len(found.refused)
        shown = "; ".join(
            f"{f'line {r.line}' if r.line is not None else f'row {r.row}'}, '{r.column}': {r.reason}"
            for r in found.refused[:_SHOWN]
        )
        more = "; ..." if len(found.refused) > _SHOWN else ""
        warnings.warn(f"{len(found.refused)} of {total} rows are refused: {shown}{more}", stacklevel=4)
    return found


def _placed(frame: pd.DataFrame, columns: Mapping[str, NDArray[Any]], found: Encoded) -> pd.DataFrame:
    """Put results beside the rows of the table, and reasons beside those that have none."""
    results: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        empty: Any = None if values.dtype.kind == "O" else np.nan
        results[name] = np.full(len(frame), empty, dtype=values.dtype)
        results[name][found.rows] = values
    if found.refused:
        reasons = np.full(len(frame), "", dtype=object)
        for one in found.refused:
            reasons[one.row] = f"{one.column}: {one.reason}"
        results["refused"] = reasons
    return frame.assign(**results)


def transform_table(
    posterior: Posterior, table: Table | None = None, *, keep: Sequence[str] = (), **options: Any
) -> pd.DataFrame:
    """Represent every row of a table.

    Args:
        posterior: A fit of a method that represents rows.
        table: Rows in any form that :func:`zoo.datasets.read` takes, encoded as the training rows were; a target is not
            needed. ``None`` takes the rows of the fit's own data: training, validation and test rows, in this order.
        keep: Columns to copy: any of the table; of the fit's own data the target and the sensitive column.
        **options: Passed on to the method's ``transform``.

    Returns:
        One line per row: ``split`` (only of the fit's own data), ``row``, counted from 0 (in its split), the columns to
        keep, and the representation ``z0``, ``z1``, ... Rows that cannot be encoded are refused with a warning: NaN,
        and the column ``refused`` says why.

    Raises:
        DataError: If the table does not fit the training data, or a column to keep has the name of a result.
        UnknownNameError: If a column is missing.
    """
    data = posterior.data
    for column in keep:
        if re.fullmatch(r"row|split|refused|z\d+", column):
            raise DataError(f"column '{column}' to keep has the name of a result; rename it in the table")
    if table is not None:
        raw = open_table(table)
        _refuse_unknown(keep, list(raw.frame.columns))
        found = _encode(data, raw, strict=False)
        z = posterior.transform(found.batch, **options)
        total = len(found.rows) + len(found.refused)
        frame = pd.DataFrame({"row": np.arange(total), **{c: raw.frame[c].to_numpy() for c in keep}})
        return _placed(frame, {name: values.to_numpy() for name, values in _named(z).items()}, found)
    own = _own_columns(data)
    _refuse_unknown(keep, list(own))
    parts = []
    for split in ("train", "validation", "test"):
        batch: Batch | None = getattr(data, split)
        if batch is not None:
            z = posterior.transform(batch, **options)
            copied = {column: own[column](batch) for column in keep}
            parts.append(pd.DataFrame({"split": split, "row": np.arange(len(z)), **copied}).join(_named(z)))
    return pd.concat(parts, ignore_index=True)


def _refuse_unknown(keep: Sequence[str], known: list[str]) -> None:
    for column in keep:
        if column not in known:
            raise UnknownNameError(f"column '{column}' to keep is unknown{suggest(column, known)}")


def _named(z: Tensor) -> pd.DataFrame:
    return pd.DataFrame({f"z{k}": value for k, value in enumerate(z.double().numpy().T)})


def _own_columns(data: Dataset) -> dict[str, Callable[[Batch], NDArray[Any]]]:
    """Return how the target and the sensitive column of a stored data set are told in the user's words."""
    found: dict[str, Callable[[Batch], NDArray[Any]]] = {}
    if data.target is not None and data.target.categories is not None:
        classes = np.array(data.target.categories, dtype=object)

        def target(batch: Batch) -> NDArray[Any]:
            told: NDArray[Any] = classes[batch["y"].cpu().numpy()]
            if "y_missing" in batch:
                told[batch["y_missing"].cpu().numpy()] = None
            return told

        found[data.target.name] = target
    if "sensitive" in data.extra:
        groups = np.array(data.coords["sensitive"], dtype=object)
        found[str(data.extra["sensitive"])] = lambda batch: groups[batch["s"].cpu().numpy()]
    return found


def table_bytes(frame: pd.DataFrame, suffix: str, *, keep: Sequence[str] = ()) -> bytes:
    """Return a prediction as the content of a file.

    Args:
        frame: What :func:`predict_table` returned.
        suffix: One of ``SUFFIXES``.
        keep: Columns that are written as they are; the numbers of all others get eight digits in CSV.

    Returns:
        CSV in UTF-8; an NPZ archive with one array per column, of which none is a pickle; or Parquet.

    Raises:
        DataError: If the suffix is unknown, or a kept column holds what the format cannot.
        MissingExtraError: If Parquet is asked for and ``pyarrow`` is absent.
    """
    buffer = io.BytesIO()
    if suffix == ".csv":
        results = [c for c in frame if c not in keep and frame[c].dtype.kind == "f"]
        shown = {c: frame[c].map("{:.8g}".format, na_action="ignore") for c in results}
        text: str = frame.assign(**shown).to_csv(index=False)
        return text.encode()
    if suffix == ".npz":
        columns = {name: frame[name].to_numpy() for name in frame}
        texts = {k: np.where(pd.isna(v), "", v).astype(str) for k, v in columns.items() if v.dtype.kind == "O"}
        np.savez_compressed(buffer, **columns | texts)
    elif suffix == ".parquet":
        try:
            import pyarrow
        except ImportError as error:
            raise MissingExtraError("pyarrow", "tables", "writing Parquet") from error
        try:
            frame.to_parquet(buffer, engine="pyarrow", index=False)
        except pyarrow.ArrowException as error:
            raise DataError(f"a kept column cannot be written to Parquet: {' '.join(str(error).split())}") from error
    else:
        raise DataError(f"predictions cannot be written as '{suffix}'; allowed: {', '.join(SUFFIXES)}")
    return buffer.getvalue()


def _chunks(batch: Batch, size: int, whole: frozenset[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    for start in range(0, len(batch["index"]), size):
        yield start, {k: v if k in whole else v[start : start + size] for k, v in batch.items()}


def _numbers(found: Prediction, posterior: Posterior, interval: float, site: str) -> NDArray[Any]:
    """Return mean, standard deviation and interval in the target's unit, ``(rows, 4)``."""
    target = posterior.data.target
    origin, scale = (0.0, 1.0) if target is None else (target.mean, target.scale)
    samples = found.samples[site].detach().cpu().double().numpy()
    centre = found.means[site].detach().cpu().double().numpy() if site in found.means else samples
    low, high = np.quantile(samples, [(1 - interval) / 2, (1 + interval) / 2], axis=0)
    mean = origin + scale * centre.mean(0)
    return np.stack([mean, scale * samples.std(0, ddof=1), origin + scale * low, origin + scale * high], axis=1)


def _labels(posterior: Posterior) -> tuple[str, ...]:
    data = posterior.data
    found = data.coords.get("class") or (data.target and data.target.categories) or ()
    size = int(data.extra.get("num_classes", len(found)))
    return tuple(map(str, found)) if len(found) == size else tuple(map(str, range(size)))


class _Kept:
    """Predictions of some rows, collected chunk by chunk for the scores."""

    def __init__(self, rows: int) -> None:
        self.rows, self._at = rows, 0
        self._kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}

    def add(self, prediction: Prediction, rows: NDArray[np.int64]) -> None:
        for kind, sites in self._kinds.items():
            for site, value in getattr(prediction, kind).items():
                if site not in sites:
                    dtype = torch.float32 if value.is_floating_point() else value.dtype
                    sites[site] = torch.empty((len(value), self.rows, *value.shape[2:]), dtype=dtype)
                sites[site][:, self._at : self._at + len(rows)] = value[:, torch.as_tensor(rows)].cpu()
        self._at += len(rows)

    def prediction(self) -> Prediction:
        return Prediction(*self._kinds.values())
