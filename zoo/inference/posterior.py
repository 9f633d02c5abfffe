"""What a fit returns, whichever engine made it; saved as safetensors and JSON, never as a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.errors import ArtifactError, DataError, PairError, ZooError
from zoo.inference.predictive import MAX_BYTES, Prediction, Runs, block_seed, joined
from zoo.inference.program import Layout, pyro_world, seeded, stream
from zoo.types import Batch, Dataset, Diagnostic, Method, Pair, Recipe, hyper_from_json, hyper_to_json

if TYPE_CHECKING:
    import arviz
    import pandas as pd
    import xarray

    from zoo.datasets.files import Table
    from zoo.diagnostics import Diagnosis
    from zoo.reports import Report

__all__ = ["Posterior", "load"]

_SCHEMA = 1
_TENSORS, _META = "posterior.safetensors", "posterior.json"
_MAX_META = 64 * 2**20


class Posterior:
    """A fitted posterior: draws, predictions, diagnostics, storage.

    Args:
        pair: Model and guide.
        data: What it was fitted on.
        engine: ``svi`` or ``nuts``.
        name: Name of the method, or of the pair.
        method: The method; ``None`` for a bare pair.
        hyper: Hyper-parameters; ``None`` for a bare pair.
        layout: Parameters and modules of the pair.
        values: Unconstrained parameters by name (``svi``).
        buffers: Module buffers.
        history: Losses by name, ``(steps,)`` each (``svi``).
        chains: Constrained latents, ``(chain, draw, ...)`` (``nuts``).
        sample_stats: Sampler statistics, ``(chain, draw)`` (``nuts``).
        restarts: Posteriors of the other restarts, worse in their loss.
        info: JSON-able facts of the fit: seed, steps, seconds, peak memory in bytes, versions, device, dtype, threads.

    Attributes:
        diagnosis: All checks together, once :func:`zoo.diagnostics.diagnose` made them; a notebook shows them.
    """

    def __init__(
        self,
        *,
        pair: Pair,
        data: Dataset,
        engine: str,
        name: str,
        method: Method[Any] | None = None,
        hyper: Any = None,
        layout: Layout | None = None,
        values: Mapping[str, Tensor] | None = None,
        buffers: Sequence[Tensor] = (),
        history: Mapping[str, Tensor] | None = None,
        chains: Mapping[str, Tensor] | None = None,
        sample_stats: Mapping[str, Tensor] | None = None,
        restarts: Sequence[Posterior] = (),
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.pair, self.data, self.engine, self.name = pair, data, engine, name
        self.method, self.hyper = method, hyper
        self.history = dict(history or {})
        self.chains = None if chains is None else dict(chains)
        self.sample_stats = None if sample_stats is None else dict(sample_stats)
        self.restarts = tuple(restarts)
        self.info = dict(info or {})
        self.diagnosis: Diagnosis | None = None
        self._values = dict(values or {})
        self._layout = layout
        self._buffers = list(buffers)
        self._runs = Runs(
            pair=pair,
            layout=layout,
            values=[] if layout is None else [self._values[n] for n in layout.names],
            buffers=self._buffers,
            dtype=getattr(torch, self.info.get("dtype", "float32")),
            device=torch.device(self.info.get("device", "cpu")),
        )

    def __repr__(self) -> str:
        what = f"{len(self.losses)} steps" if self.engine == "svi" else f"{self._chain_shape()} draws"
        return f"Posterior({self.name!r}, data={self.data.name!r}, engine={self.engine!r}, {what})"

    def _repr_html_(self) -> str:
        from zoo.reports.inline import posterior_html

        return posterior_html(self)

    @classmethod
    def from_store(
        cls,
        pair: Pair,
        data: Dataset | Batch,
        *,
        name: str = "pair",
        losses: Sequence[float] | Tensor = (),
        recipe: Recipe | None = None,
    ) -> Posterior:
        """Return the posterior of a pair whose parameters stand in Pyro's parameter store, trained in any loop.

        The store and the modules are copied; what trains on does not change the posterior.

        Args:
            pair: Model and guide, as they were trained.
            data: Data set, or the whole training batch.
            name: What to call it.
            losses: Loss of every step, for the check of the optimiser.
            recipe: How it was trained, for the checks that fit again; without one they do not run.

        Returns:
            The posterior.

        Raises:
            PairError: If there is no guide, or the store lacks a parameter of the pair.
        """
        import pyro

        from zoo.inference.runner import _dataset, trainer_layout, versions

        if pair.guide is None:
            raise PairError("this pair has no guide, so nothing of it was trained")
        dataset = _dataset(data, None)
        stored = {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}
        floating = next((p for p in stored.values() if p.is_floating_point()), torch.empty(0))
        layout = trainer_layout(pair, dataset, dtype=floating.dtype, device=floating.device)
        for key in layout.names:
            if key not in stored:
                raise PairError(f"the parameter store has no '{key}'; train the pair first, in this store")
            if stored[key].shape != layout.values[key].shape:
                raise PairError(
                    f"the parameter store holds '{key}' of shape {tuple(stored[key].shape)}; the pair has "
                    f"{tuple(layout.values[key].shape)}"
                )
        history = torch.as_tensor(losses, dtype=torch.float64).detach().flatten()
        info: dict[str, Any] = {
            "dtype": str(floating.dtype).removeprefix("torch."),
            "device": str(floating.device),
            "steps": len(history),
            "versions": versions(),
        }
        if recipe is not None:
            info |= {"recipe": dataclasses.asdict(recipe), "steps": recipe.steps}
        return cls(
            pair=pair,
            data=dataset,
            engine="svi",
            name=name,
            layout=layout,
            values={n: stored[n] for n in layout.names},
            buffers=list(layout.buffer_values.values()),
            history={"elbo": history},
            info=info,
        )

    # ------------------------------------------------------------------------------------------ what was found
    @property
    def params(self) -> dict[str, Tensor]:
        """Parameters by name, constrained as ``pyro.param`` returns them; empty for ``nuts``."""
        return {} if self._layout is None else self._layout.constrained(self._values)

    @property
    def losses(self) -> Tensor:
        """The first loss at every step, ``(steps,)``; empty for ``nuts``."""
        return next(iter(self.history.values()), torch.empty(0))

    @property
    def seconds(self) -> float | None:
        """How long the fit took, with compilation; ``None`` where that is not known."""
        seconds = self.info.get("seconds")
        if isinstance(seconds, Mapping):
            return float(sum(seconds.values()))
        return None if seconds is None else float(seconds) + float(self.info.get("compile_seconds") or 0.0)

    @property
    def num_parameters(self) -> int:
        """Trained numbers; 0 for ``nuts``."""
        return sum(v.numel() for v in self._values.values())

    @property
    def num_latents(self) -> int:
        """Numbers in one draw of all latents."""
        if self.chains is not None:
            return sum(v[0, 0].numel() for v in self.chains.values())
        return sum(v[0].numel() for v in self.draws(1).values())

    @property
    def runs(self) -> Runs:
        """The pair with these parameters bound, for diagnostics that need its traces."""
        return self._runs

    def draws(self, n: int = 1_000, *, batch: Batch | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Draw the latents.

        Args:
            n: Number of draws. With chains: at most all of them, evenly thinned.
            batch: Batch whose local latents are drawn; the training batch if ``None``. With chains, latents of rows
                other than the training set's are left to the model.
            seed: Of the draws.

        Returns:
            Latent site -> ``(n, ...)``.

        Raises:
            DataError: If ``n`` is not positive.
        """
        if n < 1:
            raise DataError(f"n is {n}; allowed: 1 or more draws")
        own = batch is None or batch is self.data.train
        if self.chains is not None:
            flat = {k: v.flatten(0, 1) for k, v in self.chains.items()}
            total = len(next(iter(flat.values())))
            pick = torch.linspace(0, total - 1, min(n, total)).round().long()
            local = set() if own else self._local_sites()
            return {k: v[pick] for k, v in flat.items() if k not in local}
        return self._runs.guide_draws(self._prepare(batch), n, seed)

    def deterministics(self, draws: Mapping[str, Tensor], batch: Batch | None = None) -> dict[str, Tensor]:
        """Evaluate the model's deterministic sites at draws.

        Args:
            draws: Latent site -> ``(n, ...)``.
            batch: The batch; the training batch if ``None``.

        Returns:
            Site -> ``(n, ...)``.
        """
        return self._runs.deterministics(draws, self._prepare(batch))

    def predict(
        self,
        batch: Batch | None = None,
        n: int = 100,
        *,
        seed: int = 0,
        max_bytes: int = 2**29,
        compile: bool = False,
    ) -> Prediction:
        """Predict the observed sites of a batch.

        Draws are made and used in blocks, so that not even those of a large network are in memory together.

        Args:
            batch: Features, with or without targets; the training batch if ``None``.
            n: Posterior draws.
            seed: Of draws and predictions.
            max_bytes: Memory to use beside the result, about; one draw at a time is used in any case.
            compile: Whether to compile the prediction of a block, which takes some seconds and is kept on disk; for
                many predictions with batches of one shape.

        Returns:
            Samples, means, class probabilities and, if the batch has targets, their log densities.

        Raises:
            DataError: If entries of the batch are missing, of another shape or not finite, or ``max_bytes`` is not
                positive.
        """
        if max_bytes < 1:
            raise DataError(f"max_bytes is {max_bytes}; allowed: a positive number of bytes")
        prepared = self._prepare(batch)
        given = batch and prepared

        def block(draws: Mapping[str, Tensor], stream: int) -> Prediction:
            found = self._runs.predict(draws, prepared, stream, max_bytes=max_bytes // 2, compile=compile)
            return dataclasses.replace(
                found, log_prob=self.log_likelihood(given, draws=draws, max_bytes=max_bytes // 2)
            )

        if self.chains is not None:
            draws = self.draws(n, batch=given, seed=seed)
            n, size = len(next(iter(draws.values()))), 0
        else:
            size = sum(v.numel() * v.element_size() for v in self.draws(1, batch=given, seed=seed).values())
        step = max(1, min(n, max_bytes // max(4 * size, 1)))
        parts = []
        for start in range(0, n, step):
            own = block_seed(seed, start)
            if self.chains is None:
                draws = self._runs.guide_draws(prepared, min(step, n - start), own, max_bytes=max_bytes // 4)
            parts.append(block(draws, own))
        return joined(parts)

    def predict_table(self, table: Table, **options: Any) -> pd.DataFrame:
        """Predict the target for every row of a new table; see :func:`zoo.inference.tables.predict_table`.

        Args:
            table: Path, data frame or mapping of arrays, encoded as the training rows were.
            **options: Passed on.

        Returns:
            One line per row, in the user's units and labels.
        """
        from zoo.inference.tables import predict_table

        return predict_table(self, table, **options).frame

    def log_likelihood(
        self,
        batch: Batch | None = None,
        *,
        draws: Mapping[str, Tensor] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> dict[str, Tensor]:
        """Evaluate the log density of every observed datum.

        Args:
            batch: With targets; the training batch if ``None``.
            draws: Latent site -> ``(n, ...)``; 1,000 draws if ``None``.
            max_bytes: Memory of one vectorised block of draws, about.

        Returns:
            Observed site -> ``(n, *batch shape)``, not scaled by any plate, enumerated latents summed out; empty for
            a batch without targets.
        """
        from zoo.diagnostics.adapter import log_likelihood

        draws = self.draws(batch=batch) if draws is None else draws
        return log_likelihood(self, self._prepare(batch), draws, max_bytes=max_bytes)

    def log_weights(self, n: int = 1_000, *, seed: int = 0, batch: Batch | None = None) -> Tensor:
        r"""Evaluate the importance weights :math:`\log p(x, z) - \log q(z)` of the guide.

        Args:
            n: Number of draws.
            seed: Of the draws.
            batch: The whole data; the training batch if ``None``.

        Returns:
            ``(n,)``.

        Raises:
            PairError: If the posterior was sampled, so that there is no guide.
        """
        if self.engine != "svi":
            raise PairError("log weights need a guide; this posterior was sampled by NUTS")
        return self._runs.log_weights(self._prepare(batch), n, seed)

    def summary(self) -> dict[str, Any]:
        """Return the method's quantities of interest.

        Returns:
            Name -> number or short text; empty for a bare pair.
        """
        if self.method is None or self.method.summary is None:
            return {}
        return dict(self.method.summary(self))

    def prune(self, **options: Any) -> Posterior:
        """Return the posterior of a smaller network, where the method finds one; see its ``prune``.

        Args:
            **options: Passed on.

        Returns:
            A posterior of the same method.

        Raises:
            PairError: If the method prunes nothing.
        """
        if self.method is None or self.method.prune is None:
            raise PairError(f"'{self.name}' has nothing to prune; `zoo show NAME` says which methods compress")
        return self.method.prune(self, **options)

    def compress(self, **options: Any) -> nn.Module:
        """Return the plain network that this posterior allows, where the method compresses; see its ``compress``.

        Args:
            **options: Passed on.

        Returns:
            A network from features to what the method's task predicts.

        Raises:
            PairError: If the method compresses nothing.
        """
        if self.method is None or self.method.compress is None:
            raise PairError(f"'{self.name}' has no compressed network; `zoo show NAME` says which methods compress")
        return self.method.compress(self, **options)

    def to_arviz(self, **options: Any) -> arviz.InferenceData:
        """Convert to ArviZ, every group; see :func:`zoo.diagnostics.to_arviz`.

        Args:
            **options: Passed on.

        Returns:
            The inference data.
        """
        from zoo.diagnostics import to_arviz

        return to_arviz(self, **options)

    def to_datatree(self, **options: Any) -> xarray.DataTree:
        """Convert to the tree of ArviZ 1, every group; see :func:`zoo.diagnostics.to_datatree`.

        Args:
            **options: Passed on.

        Returns:
            The tree.
        """
        from zoo.diagnostics import to_datatree

        return to_datatree(self, **options)

    def report(self, path: str | os.PathLike[str], **options: Any) -> Report:
        """Write a self-contained HTML report, its JSON and a model card; see :func:`zoo.reports.write`.

        Args:
            path: Where, ending in ``.html``.
            **options: Passed on.

        Returns:
            The report; where a path is asked for, it is that of its page.
        """
        from zoo.reports import write

        return write(self, path, **options)

    # ------------------------------------------------------------------------------------------------ batches
    def _prepare(self, batch: Batch | None) -> dict[str, Tensor]:
        """Check a batch against the training batch, add ``index`` if it lacks one, and move it."""
        train = self.data.train
        given = dict(train if batch is None else batch)
        rows = None
        targets = set() if self.data.target is None else {"y"}
        for key, like in train.items():
            if key == "index":
                continue
            if key not in given:
                if key in targets or key in self.data.whole:
                    if key in self.data.whole:
                        given[key] = like
                    continue
                if key == "y":
                    continue
                if key == "x_missing" and isinstance(given.get("x"), Tensor):
                    given[key] = torch.zeros(given["x"].shape, dtype=torch.bool)
                    continue
                raise DataError(f"the batch has no entry '{key}'; it has {', '.join(sorted(given))}")
            value = given[key]
            if not isinstance(value, Tensor):
                raise DataError(f"batch entry '{key}' is a {type(value).__name__}; expected a tensor")
            if key not in self.data.whole and "index" in train:
                if value.dim() != like.dim() or value.shape[1:] != like.shape[1:]:
                    raise DataError(
                        f"batch entry '{key}' has shape {tuple(value.shape)}; expected (rows, "
                        f"{', '.join(map(str, like.shape[1:]))})"
                    )
                if rows is not None and len(value) != rows:
                    raise DataError(f"batch entry '{key}' has {len(value)} rows; other entries have {rows}")
                rows = len(value)
            if value.is_floating_point() != like.is_floating_point():
                raise DataError(f"batch entry '{key}' is {value.dtype}; expected {like.dtype}")
            if value.is_floating_point() and batch is not None and not bool(torch.isfinite(value).all()):
                raise DataError(f"batch entry '{key}' holds NaN or infinite values")
        if "index" in train and "index" not in given:
            given["index"] = torch.arange(rows or 0)
        dtype, device = self._runs.dtype, self._runs.device
        return {k: v.to(device=device, dtype=dtype if v.is_floating_point() else v.dtype) for k, v in given.items()}

    def _local_sites(self) -> set[str]:
        """Latents of the training rows, which new rows do not share: in a plate over them, or their missing entries."""
        with self._runs.bound(), stream(seeded(0, self._runs.device)):
            from pyro import poutine

            trace = poutine.trace(self.pair.model).get_trace(self._prepare(None))
        rows = self.data.num_data
        if "index" not in self.data.train:
            return set()
        subsampled = {n for n, s in trace.nodes.items() if type(s.get("fn")).__name__ == "_Subsample"}
        return {
            n
            for n in trace.stochastic_nodes
            if trace.nodes[n]["infer"].get("imputes")
            or any(f.name in subsampled and f.full_size == rows for f in trace.nodes[n]["cond_indep_stack"])
        }

    def _chain_shape(self) -> str:
        first = next(iter((self.chains or {}).values()))
        return f"{first.shape[0]} x {first.shape[1]}"

    # ------------------------------------------------------------------------------------------------ storage
    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``posterior.safetensors`` and ``posterior.json`` into a folder, whole or not at all.

        Args:
            folder: Made if absent; a posterior in it is replaced.

        Returns:
            The folder.

        Raises:
            DataError: If the folder cannot be written.
        """
        from safetensors.torch import save

        from zoo.datasets import fingerprint, pack

        mark = fingerprint(self.data)
        tensors: dict[str, Tensor] = {f"params/{n}": v for n, v in self._values.items()}
        tensors |= {f"buffers/{i}": b for i, b in enumerate(self._buffers)}
        tensors |= {f"history/{n}": v for n, v in self.history.items()}
        tensors |= {f"chains/{n}": v for n, v in (self.chains or {}).items()}
        tensors |= {f"stats/{n}": v for n, v in (self.sample_stats or {}).items()}
        for i, other in enumerate(self.restarts):
            tensors |= {f"restarts/{i}/params/{n}": v for n, v in other._values.items()}
            tensors |= {f"restarts/{i}/buffers/{j}": b for j, b in enumerate(other._buffers)}
            tensors |= {f"restarts/{i}/history/{n}": v for n, v in other.history.items()}
        bundled = _bundled(self.data)
        if bundled is not None and fingerprint(bundled) == mark:
            data: dict[str, Any] = {"bundled": self.data.name, "options": dict(self.data.extra.get("options", {}))}
        else:
            packed, described = pack(self.data)
            tensors |= {f"data/{n}": v for n, v in packed.items()}
            data = {"stored": described}
        payload = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
        meta = {
            "format": "pyro-zoo posterior",
            "schema": _SCHEMA,
            "name": self.name,
            "method": None if self.method is None else self.method.name,
            "hyper": hyper_to_json(self.hyper),
            "engine": self.engine,
            "info": self.info,
            "restarts": [other.info for other in self.restarts],
            "data": {"name": self.data.name, "fingerprint": mark, **data},
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        text = json.dumps(_finite(meta), indent=1, allow_nan=False)
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_together(folder, {_TENSORS: payload, _META: text.encode()})
        except OSError as error:
            raise DataError(f"cannot write the posterior to '{folder}': {error.strerror or error}") from error
        return folder


def load(folder: str | os.PathLike[str], *, pair: Pair | None = None, data: Dataset | None = None) -> Posterior:
    """Read a saved posterior; nothing in it is executed.

    Args:
        folder: What :meth:`Posterior.save` wrote.
        pair: The pair, for a posterior of a pair that no method built.
        data: The data set, if it is neither bundled nor stored with the posterior.

    Returns:
        The posterior, which predicts as the saved one did.

    Raises:
        ArtifactError: If files are missing, truncated, changed, of another format or a newer schema, or do not fit
            the method and data.
        DataError: If ``folder`` does not exist.
        ZooError: If the method or data set is unknown to this version.
    """
    from zoo.datasets import fingerprint, unpack
    from zoo.datasets import load as load_data
    from zoo.registry import get

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"'{folder}' is not a folder of a saved posterior (with {_META} and {_TENSORS})")
    meta = _read_meta(folder / _META)
    tensors = _read_tensors(folder / _TENSORS, meta)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, rest = key.partition("/")
        groups.setdefault(group, {})[rest] = value
    try:
        about = meta["data"]
        if data is None:
            if "bundled" in about:
                data = load_data(about["bundled"], **about["options"])
            else:
                data = unpack(groups.get("data", {}), about["stored"])
        if fingerprint(data) != about["fingerprint"]:
            raise ArtifactError(
                f"the data set '{data.name}' is not the one that '{folder}' was fitted on (another fingerprint)"
            )
        method = hyper = None
        if meta["method"] is not None:
            found = get(meta["method"])
            if isinstance(found, Diagnostic):
                raise ArtifactError(f"'{meta['method']}' is a diagnostic, which has no posterior of its own")
            method = found
            hyper = hyper_from_json(method.hyper, meta["hyper"])
        elif pair is None:
            raise ArtifactError(f"'{folder}' holds the posterior of a bare pair '{meta['name']}': pass pair=")
        dtype, device = getattr(torch, meta["info"]["dtype"]), torch.device("cpu")
        info = dict(meta["info"]) | {"device": "cpu"}

        def rebuild(prefix: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> Posterior:
            with pyro_world(dtype=dtype), stream(seeded(int(facts.get("seed", 0)))):
                own = method.build(data, hyper) if method is not None else pair
            assert own is not None
            assert data is not None
            layout = None
            if meta["engine"] == "svi":
                from zoo.inference.runner import trainer_layout

                layout = trainer_layout(own, data, dtype=dtype, device=device)
                _check_params(layout, prefix.get("params", {}))
            buffers = prefix.get("buffers", {})
            return Posterior(
                pair=own,
                data=data,
                engine=meta["engine"],
                name=meta["name"],
                method=method,
                hyper=hyper,
                layout=layout,
                values=prefix.get("params", {}),
                buffers=[buffers[str(i)] for i in range(len(buffers))],
                history=prefix.get("history", {}),
                chains=groups.get("chains") if meta["engine"] == "nuts" else None,
                sample_stats=groups.get("stats") if meta["engine"] == "nuts" else None,
                info=facts,
            )

        posterior = rebuild(groups, info)
        others = []
        for i, facts in enumerate(meta["restarts"]):
            sub: dict[str, dict[str, Tensor]] = {}
            for key, value in groups.get("restarts", {}).items():
                number, _, rest = key.partition("/")
                if number == str(i):
                    group, _, name = rest.partition("/")
                    sub.setdefault(group, {})[name] = value
            others.append(rebuild(sub, facts))
        posterior.restarts = tuple(others)
        return posterior
    except ZooError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"'{folder}' is not a whole posterior: {type(error).__name__}: {error}") from error


def _bundled(data: Dataset) -> Dataset | None:
    """Load the bundled data set that this one says it is; ``None`` if it is the user's own."""
    from zoo.datasets import load as load_data

    if data.origin != "bundled":
        return None
    try:
        return load_data(data.name, **data.extra.get("options", {}))
    except ZooError:
        return None


def _check_params(layout: Layout, params: Mapping[str, Tensor]) -> None:
    missing = [n for n in layout.names if n not in params]
    if missing:
        raise ArtifactError(f"the artifact lacks the parameter '{missing[0]}'")
    surplus = sorted(set(params) - set(layout.names))
    if surplus:
        raise ArtifactError(f"the artifact holds the parameter '{surplus[0]}', which this method does not have")
    for name in layout.names:
        value, like = params[name], layout.values[name]
        if value.shape != like.shape or value.dtype != like.dtype:
            raise ArtifactError(
                f"parameter '{name}' is {value.dtype} {tuple(value.shape)}; this method has {like.dtype} "
                f"{tuple(like.shape)}"
            )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_META:
            raise ArtifactError(f"'{path}' is larger than {_MAX_META} bytes, so it is not a posterior's JSON")
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}': {error.strerror or error}") from error
    try:
        meta = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is not JSON ({_kind(raw)}); nothing was loaded") from error
    if not isinstance(meta, dict) or meta.get("format") != "pyro-zoo posterior":
        raise ArtifactError(f"'{path}' is JSON, but not of a pyro-zoo posterior")
    if not isinstance(meta.get("schema"), int) or not 1 <= meta["schema"] <= _SCHEMA:
        raise ArtifactError(f"'{path}' has schema {meta.get('schema')!r}; this version reads 1 to {_SCHEMA}")
    return meta


def _read_tensors(path: Path, meta: Mapping[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as load_bytes

    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}': {error.strerror or error}") from error
    if raw[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or raw[:4] == b"PK\x03\x04":
        raise ArtifactError(f"'{path}' is {_kind(raw)}, which is never loaded; a posterior is stored as safetensors")
    if len(raw) < 8 or struct.unpack("<Q", raw[:8])[0] > len(raw):
        raise ArtifactError(f"'{path}' is truncated or not a safetensors file ({len(raw)} bytes)")
    if hashlib.sha256(raw).hexdigest() != meta.get("sha256"):
        raise ArtifactError(f"'{path}' was changed or truncated: its checksum is not the one in {_META}")
    try:
        found: dict[str, Tensor] = load_bytes(raw)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"'{path}' is not a safetensors file: {error}") from error
    return found


def _kind(raw: bytes) -> str:
    if raw[:1] == b"\x80":
        return "a pickle"
    if raw[:2] == b"PK":
        return "a zip archive, perhaps one of torch.save"
    return "empty" if not raw else "other bytes"


def _write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write several files so that a reader finds all of them or none: temporary files first, then renames."""
    scratch = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        for name, content in files.items():
            with (scratch / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            os.replace(scratch / name, folder / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold (NaN, infinities) by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
