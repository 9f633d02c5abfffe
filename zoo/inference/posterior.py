"""What a fit returns, whichever engine made it; saved as safetensors and JSON, never as a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from zoo import artifacts
from zoo.errors import ArtifactError, DataError, NonFiniteError, PairError, UnknownMethodError, ZooError
from zoo.inference.arguments import Arguments, Signature, prepared, rebound, signature_of
from zoo.inference.laplace import with_laplace
from zoo.inference.objectives import losses_of
from zoo.inference.predictive import MAX_BYTES, Prediction, Runs, block_seed, joined
from zoo.inference.program import Layout, pyro_world, seeded, stream
from zoo.inference.rows import check_new_rows
from zoo.inference.sites import is_plate
from zoo.types import Batch, Dataset, Diagnostic, Method, Pair, Recipe, hyper_from_json, hyper_to_json

if TYPE_CHECKING:
    import arviz
    import pandas as pd
    import xarray

    from zoo.datasets.files import Table
    from zoo.diagnostics import Diagnosis
    from zoo.reports import Report

__all__ = ["Posterior", "load"]

_SCHEMA = 2
_TENSORS, _META = "posterior.safetensors", "posterior.json"
_FORMAT = "pyro-zoo posterior"
_KINDS = ("samples", "means", "probs", "log_prob")
# Schema 1 had no checksum of the JSON itself, and neither the size of the tensors nor the order of the losses.
_OLD = {"format", "schema", "name", "method", "hyper", "engine", "info", "restarts", "data", "sha256"}
_KEYS = _OLD - {"sha256"} | {"losses", "files", "checksum"}
_GROUPS = {"params", "buffers", "history", "chains", "stats", "restarts", "data"}


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
        info: JSON-able facts of the fit: seed, steps, seconds, those of the processor (all threads together), peak
            memory in bytes, versions, device, dtype, threads.

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
        self._amortised: tuple[str, ...] | None = None  # sites, once zoo.inference.marginal looked for them
        self._values = dict(values or {})
        self._layout = layout
        self._buffers = list(buffers)
        # NUTS sums every finite latent out, whether the model marks it or not.
        summed = pair if chains is None else pair._replace(model=config_enumerate(pair.model))
        self._runs = Runs(
            pair=summed,
            layout=layout,
            values=[] if layout is None else [self._values[n] for n in layout.names],
            buffers=self._buffers,
            dtype=getattr(torch, self.info.get("dtype", "float32")),
            device=torch.device(self.info.get("device", "cpu")),
            train=data.train,
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
        data: Dataset | Batch | Arguments | Sequence[Any],
        *,
        name: str = "pair",
        losses: Sequence[float] | Tensor = (),
        recipe: Recipe | None = None,
    ) -> Posterior:
        """Return the posterior of a pair whose parameters stand in Pyro's parameter store, trained in any loop.

        The store and the modules are copied; what trains on does not change the posterior. What a pair computes after
        training (:class:`~zoo.types.Finish`) is computed here.

        Args:
            pair: Model and guide, as they were trained.
            data: Data set, or what model and guide are called with on all rows, as for :func:`zoo.fit`.
            name: What to call it.
            losses: Loss of every step, for the check of the optimiser.
            recipe: How it was trained, for the checks that fit again; without one they do not run.

        Returns:
            The posterior.

        Raises:
            PairError: If there is no guide, or the store lacks a parameter of the pair.
        """
        import pyro

        from zoo.inference.runner import _dataset, finished, git_state, trainer_layout, versions

        if pair.guide is None:
            raise PairError("this pair has no guide, so nothing of it was trained")
        pair, data, _ = prepared(pair, data)
        pair = with_laplace(pair)
        dataset = _dataset(data, None)
        stored = {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}
        floating = next((p for p in stored.values() if p.is_floating_point()), torch.empty(0))
        size = 8 if recipe is None else recipe.batch_size

        def layout_of(rows: int | None) -> Layout:
            return trainer_layout(pair, dataset, batch_size=rows, dtype=floating.dtype, device=floating.device)

        try:
            layout = layout_of(size)
        except PairError:
            size = None  # a pair that runs on all of its rows only
            layout = layout_of(size)
        for key in layout.names:
            if key not in stored:
                raise PairError(f"the parameter store has no '{key}'; train the pair first, in this store")
            if stored[key].shape != layout.values[key].shape:
                raise PairError(
                    f"the parameter store holds '{key}' of shape {tuple(stored[key].shape)}; the pair has "
                    f"{tuple(layout.values[key].shape)}"
                )
        buffers = list(layout.buffer_values.values())
        values = {n: stored[n] for n in layout.names}
        layout, values = finished(pair, dataset, layout, values, buffers=buffers, batch_size=size)
        history = torch.as_tensor(losses, dtype=torch.float64).detach().flatten()
        info: dict[str, Any] = {
            "dtype": str(floating.dtype).removeprefix("torch."),
            "device": str(floating.device),
            "steps": len(history),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "git": git_state(),
        }
        own = signature_of(pair)
        if own is not None:
            info["arguments"] = own.to_json()
        if recipe is not None:
            info |= {"recipe": dataclasses.asdict(recipe), "steps": recipe.steps}
        return cls(
            pair=pair,
            data=dataset,
            engine="svi",
            name=name,
            layout=layout,
            values=values,
            buffers=buffers,
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
        """Numbers that were trained, or computed from them, and are saved; 0 for ``nuts``."""
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
            DataError: If ``n`` is not positive, or other rows would get the latents of those that were fitted.
            PairError: If the guide does not run on the batch.
        """
        if n < 1:
            raise DataError(f"n is {n}; allowed: 1 or more draws")
        own = batch is None or batch is self.data.train
        if batch is not None and not own and "index" not in self.data.train:
            check_new_rows(self, batch)
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
        kinds: Sequence[str] = _KINDS,
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
            kinds: What to keep, of ``samples``, ``means``, ``probs`` and ``log_prob``; the last alone needs little
                memory for rows with many values, such as images.

        Returns:
            Samples, means, class probabilities and, if the batch has targets, their log densities; see
            :meth:`log_likelihood`.

        Raises:
            DataError: If entries of the batch are missing, of another shape or not finite, ``max_bytes`` is not
                positive, or a kind is unknown.
        """
        unknown = sorted(set(kinds) - set(_KINDS))
        if unknown or not kinds:
            raise DataError(f"kinds is {tuple(kinds)}; allowed: some of {', '.join(_KINDS)}")
        if max_bytes < 1:
            raise DataError(f"max_bytes is {max_bytes}; allowed: a positive number of bytes")
        ready = self._prepare(batch)
        given = None if batch is None else ready

        def block(draws: Mapping[str, Tensor], num: int, stream: int) -> Prediction:
            found = Prediction(samples={})
            if set(kinds) != {"log_prob"}:
                found = self._runs.predict(draws, ready, stream, count=num, max_bytes=max_bytes // 2, compile=compile)
            kept = {k: getattr(found, k) if k in kinds else {} for k in _KINDS}
            if "log_prob" in kinds:
                kept["log_prob"] = self._log_likelihood(ready, draws, num, max_bytes // 2)
            return Prediction(**kept)

        if self.chains is not None:
            draws = self.draws(n, batch=given, seed=seed)
            n, size = len(next(iter(draws.values()))), 0
        else:
            size = sum(v.numel() * v.element_size() for v in self.draws(1, batch=given, seed=seed).values())
        step = max(1, min(n, max_bytes // max(4 * size, 1)))
        parts = []
        for start in range(0, n, step):
            own = block_seed(seed, start)
            num = min(step, n - start)
            if self.chains is None:
                draws = self._runs.guide_draws(ready, num, own, max_bytes=max_bytes // 4)
            parts.append(block(draws, num, own))
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
        r"""Evaluate the log density of every observed datum.

        Args:
            batch: With targets; the training batch if ``None``.
            draws: Latent site -> ``(n, ...)``; 1,000 draws if ``None``. Of a model without latents: one draw.
            max_bytes: Memory of one vectorised block of draws, about.

        Returns:
            Observed site -> ``(n, *batch shape)``, not scaled by any plate, enumerated latents summed out; empty for
            a batch without targets. Where the guide draws latents of a row from that row, it is the importance weight
            :math:`\log p(x, z) - \log q(z \mid x)` of each row, see :mod:`zoo.inference.marginal`.
        """
        count = 1 if draws is not None else 1_000
        draws = self.draws(count, batch=batch) if draws is None else draws
        return self._log_likelihood(self._prepare(batch), draws, count, max_bytes)

    def _log_likelihood(
        self, ready: Batch, draws: Mapping[str, Tensor], count: int, max_bytes: int
    ) -> dict[str, Tensor]:
        """Evaluate log densities on a batch that is ready; a model without latents is evaluated ``count`` times."""
        from zoo.diagnostics.adapter import log_likelihood

        return log_likelihood(self, ready, draws, count=count, max_bytes=max_bytes)

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

    def effects(self, **options: Any) -> pd.DataFrame:
        """Return the effect of each feature on the target in the user's units, where the model is linear in them.

        Args:
            **options: Those of :func:`zoo.diagnostics.effects.effects`: ``num_draws``, ``seed``, ``order``.

        Returns:
            One row per feature: mean, standard deviation and 90% interval of its effect, and how probable its sign is.

        Raises:
            PairError: If the model is not linear in its features.
        """
        from zoo.diagnostics.effects import effects

        return effects(self, **options)

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

    def transform(self, batch: Batch | None = None, **options: Any) -> Tensor:
        """Return the representation of each row, where the method represents rows; see its ``transform``.

        Args:
            batch: Rows without a need of targets; the training batch if ``None``.
            **options: Passed on.

        Returns:
            ``(rows, dimensions)``.

        Raises:
            PairError: If the method represents no rows.
        """
        if self.method is None or self.method.transform is None:
            raise PairError(f"'{self.name}' has no representation of rows; `zoo list` shows methods that do")
        return self.method.transform(self, self.data.train if batch is None else batch, **options)

    def to_arviz(self, **options: Any) -> arviz.InferenceData | xarray.DataTree:
        """Convert to ArviZ, every group; see :func:`zoo.diagnostics.to_arviz`.

        Args:
            **options: Passed on.

        Returns:
            ``InferenceData`` for ArviZ 0.x, xarray's ``DataTree`` from ArviZ 1 on.
        """
        from zoo.diagnostics import to_arviz

        return to_arviz(self, **options)

    def to_datatree(self, **options: Any) -> xarray.DataTree:
        """Convert to xarray's tree, whichever ArviZ is installed; see :func:`zoo.diagnostics.to_datatree`.

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
    def _entries(self, given: Any) -> Batch | None:
        """Return what was passed as a batch: arguments are taken apart as those of the fit were."""
        own = signature_of(self.pair)
        return given if given is None or own is None else own.batch(given)

    def _runs_without(self, given: Batch) -> bool:
        """Tell whether the model runs on a batch that lacks entries, as what is observed may be absent."""
        from pyro import poutine

        try:
            with self._runs.bound(), stream(seeded(0, self._runs.device)):
                poutine.trace(self.pair.model).get_trace(given)
        except Exception:
            return False
        return True

    def _prepare(self, batch: Batch | None) -> dict[str, Tensor]:
        """Check a batch against the training batch, add ``index`` if it lacks one, and move it."""
        train = self.data.train
        absent = None
        batch = self._entries(batch)
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
                if key in ("y", "y_missing"):
                    continue
                if key == "x_missing" and isinstance(given.get("x"), Tensor):
                    given[key] = torch.zeros(given["x"].shape, dtype=torch.bool)
                    continue
                absent = absent or key
                continue
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
        ready = {k: v.to(device=device, dtype=dtype if v.is_floating_point() else v.dtype) for k, v in given.items()}
        if self.method is None and not train.keys() <= ready.keys() and not self._runs_without(ready):
            # What is observed may be absent, also where the model asks for it without a default.
            absent = absent or next(key for key in train if key not in ready)
            ready = _Lacking(ready, frozenset(train))
            if self._runs_without(ready):
                return ready
        elif self.method is None:
            return ready
        if absent is not None:
            self._runs.check_columns(ready)  # plates of another size than the batch are what may be wrong
            raise DataError(f"the batch has no entry '{absent}'; it has {', '.join(sorted(given))}")
        return ready

    def _local_sites(self) -> set[str]:
        """Latents of the training rows, which new rows do not share: in a plate over them, or their missing entries."""
        with self._runs.bound(), stream(seeded(0, self._runs.device)):
            from pyro import poutine

            trace = poutine.trace(self.pair.model).get_trace(self._prepare(None))
        rows = self.data.num_data
        if "index" not in self.data.train:
            return set()
        subsampled = {n for n, s in trace.nodes.items() if s["type"] == "sample" and is_plate(s)}
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
            DataError: If the folder cannot be written, or the data cannot be described in JSON.
            NonFiniteError: If a parameter or a draw is NaN, or a parameter infinite, so that there is no posterior.
        """
        from safetensors.torch import save

        from zoo.datasets import fingerprint, pack

        reason = "; ".join(filter(None, (_no_numbers(p._values, p.chains) for p in (self, *self.restarts))))
        if reason:
            raise NonFiniteError(f"this posterior cannot be saved: {reason}")
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
        meta = _finite({
            "format": _FORMAT,
            "schema": _SCHEMA,
            "name": self.name,
            "method": None if self.method is None else self.method.name,
            "hyper": _spelt(hyper_to_json(self.hyper)),
            "engine": self.engine,
            "losses": list(self.history),
            "info": self.info,
            "restarts": [other.info for other in self.restarts],
            "data": {"name": self.data.name, "fingerprint": mark, **data},
            "files": {_TENSORS: {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}},
        })
        text = artifacts.to_text(meta | {"checksum": artifacts.digest(meta)})
        reason = artifacts.check_text(text)
        if reason:
            raise DataError(
                f"this posterior cannot be saved: the names of its columns, groups and classes are {reason}"
            )
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_together(folder, {_TENSORS: payload, _META: text})
        except OSError as error:
            raise DataError(f"cannot write the posterior to '{folder}': {error.strerror or error}") from error
        return folder


def load(
    folder: str | os.PathLike[str],
    *,
    pair: Pair | None = None,
    data: Any = None,
    method: Method[Any] | str | os.PathLike[str] | None = None,
) -> Posterior:
    """Read a saved posterior; nothing in it is executed.

    Args:
        folder: What :meth:`Posterior.save` wrote.
        pair: The pair, for a posterior of a pair that no method built.
        data: The data set, if it is neither bundled nor stored with the posterior; for a pair also the arguments that
            it was fitted to, which are needed where one of them is neither a tensor nor a number, a text or a switch.
        method: The method, or the path of its file, for a posterior of a method of one's own.

    Returns:
        The posterior, which predicts as the saved one did.

    Raises:
        ArtifactError: If files are missing, truncated, changed, of another format or a newer schema, or do not fit
            the method and data.
        DataError: If ``folder`` does not exist.
        ZooError: If the method or data set is unknown to this version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"'{folder}' is not a folder of a saved posterior (with {_META} and {_TENSORS})")
    meta = _read_meta(folder / _META)
    tensors = artifacts.read_tensors(folder / _TENSORS, **_checks(meta, folder))
    try:
        return _rebuild(meta, tensors, folder, pair, data, _own_method(method, meta))
    except ZooError:
        raise
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        line = " ".join(str(error).split())[:300]
        raise ArtifactError(f"'{folder}' is not a whole posterior: {type(error).__name__}: {line}") from error


def _own_method(method: Method[Any] | str | os.PathLike[str] | None, meta: Mapping[str, Any]) -> Method[Any] | None:
    from zoo.registry import resolve

    if method is None:
        return None
    found = method if isinstance(method, Method) else resolve(os.fspath(method))
    if isinstance(found, Diagnostic) or found.name != meta["method"]:
        raise ArtifactError(f"this posterior is of '{meta['method']}'; the method that was given is '{found.name}'")
    return found


def _rebuild(
    meta: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
    pair: Pair | None,
    data: Dataset | None,
    own: Method[Any] | None,
) -> Posterior:
    """Put a posterior together from what its files hold, each part checked against what method and data expect."""
    from zoo.inference.runner import _check_task
    from zoo.registry import get

    groups, others = _grouped(tensors, len(meta["restarts"]))
    pair, data = _called(meta, folder, pair, data)
    if data is None:
        data = _stored_data(meta["data"], groups["data"])
    _check_data(data, meta["data"]["fingerprint"], folder)
    method: Method[Any] | None = None
    hyper = None
    if meta["method"] is not None:
        try:
            found = own or get(meta["method"])
        except UnknownMethodError as error:
            raise UnknownMethodError(
                f"{error}; pass the method that it was fitted by, or its file: zoo.load(FOLDER, method='my_method.py')"
            ) from error
        if isinstance(found, Diagnostic):
            raise ArtifactError(f"'{meta['method']}' is a diagnostic, which has no posterior of its own")
        method = found
        _check_task(method, data)
        hyper = hyper_from_json(method.hyper, meta["hyper"])
    elif pair is None:
        raise ArtifactError(f"'{folder}' holds the posterior of a bare pair '{meta['name']}': pass pair=")
    allowance = artifacts.Allowance(
        stored=sum(v.numel() for k, v in tensors.items() if not k.startswith("data/")),
        data=sum(v.numel() for v in data.train.values()),
        tensors=len(tensors),
    )

    def rebuild(parts: Mapping[str, Mapping[str, Tensor]], facts: dict[str, Any]) -> Posterior:
        dtype = _check_info(facts)
        with _within(allowance, bounded=method is not None):
            if method is not None:
                with pyro_world(dtype=dtype), stream(seeded(int(facts.get("seed") or 0))):
                    own = method.build(data, hyper)
            else:
                assert pair is not None
                own = pair
            own = with_laplace(own)
            layout, chains = None, None
            if meta["engine"] == "svi":
                from zoo.inference.runner import trainer_layout

                known = _Known(parts["params"], allowance)
                traced = own._replace(model=known(own.model), guide=None if own.drawing is None else known(own.drawing))
                # A guide of one's own may learn its shapes from its first batch, so it gets one as in training.
                rows = {} if method is not None else {"batch_size": (facts.get("recipe") or {}).get("batch_size")}
                layout = trainer_layout(traced, data, dtype=dtype, device=torch.device("cpu"), **rows)
            else:
                chains = _check_chains(_latents(own, data, dtype), parts["chains"], parts["stats"], dtype)
        if layout is not None:
            _check_params(layout, parts["params"], parts["buffers"])
        reason = _no_numbers(parts["params"], chains)
        if reason:
            raise ArtifactError(f"'{folder}' is damaged: {reason}")
        if facts["device"] != "cpu":
            facts = facts | {"device": "cpu", "fitted_on": facts["device"]}
        return Posterior(
            pair=own,
            data=data,
            engine=meta["engine"],
            name=meta["name"],
            method=method,
            hyper=hyper,
            layout=layout,
            values={n: parts["params"][n] for n in layout.names} if layout is not None else {},
            buffers=[parts["buffers"][str(i)] for i in range(len(parts["buffers"]))],
            history=_check_history(parts["history"], meta.get("losses"), own),
            chains=chains,
            sample_stats=None if chains is None else parts["stats"],
            info=facts,
        )

    posterior = rebuild(groups, meta["info"])
    posterior.restarts = tuple(rebuild(own, facts) for own, facts in zip(others, meta["restarts"], strict=True))
    return posterior


def _called(meta: Mapping[str, Any], folder: Path, pair: Pair | None, data: Any) -> tuple[Pair | None, Any]:
    """Return pair and data of one batch, where the pair was fitted with arguments of its own."""
    if pair is None or meta["method"] is not None:
        return pair, data
    if data is not None and not isinstance(data, Dataset):
        from zoo.inference.runner import _dataset

        pair, data, _ = prepared(pair, data)
        return pair, _dataset(data, None)
    if "arguments" not in meta["info"]:
        return pair, data
    spelt = meta["info"]["arguments"]
    if spelt is None:
        raise ArtifactError(f"'{folder}' does not hold all arguments of the pair: pass data= as to the fit")
    return rebound(pair, Signature.from_json(spelt)), data


class _Lacking(dict[str, Tensor]):
    """A batch whose absent entries are ``None``.

    Args:
        entries: Those that it has.
        names: Those that it may be asked for.
    """

    def __init__(self, entries: Mapping[str, Tensor], names: frozenset[str]) -> None:
        super().__init__(entries)
        self.names = names

    def __missing__(self, key: str) -> None:
        if key not in self.names:
            raise KeyError(key)


class _Known(Messenger):  # type: ignore[misc]
    """Refuse the first parameter that the artifact does not hold, before there are more.

    Args:
        names: Those that it holds.
        allowance: Where the refusal is kept.
    """

    def __init__(self, names: Mapping[str, Tensor], allowance: artifacts.Allowance) -> None:
        super().__init__()
        self.names, self.allowance = names, allowance

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] not in self.names:
            self.allowance.refuse(f"the parameter '{msg['name']}', which it lacks")


@contextmanager
def _within(allowance: artifacts.Allowance, *, bounded: bool) -> Iterator[None]:
    """Run a block within an allowance, and say so whatever became of a refusal on its way out."""
    try:
        with artifacts.rebuild(), allowance if bounded else nullcontext():
            yield
    except Exception as error:
        if allowance.refused:
            raise ArtifactError(f"the artifact does not hold what it says: {allowance.refused}") from error
        raise


def _grouped(
    tensors: Mapping[str, Tensor], restarts: int
) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, dict[str, Tensor]]]]:
    """Sort tensors by the first part of their names, and those of restarts by restart too."""
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in _GROUPS}
    others: list[dict[str, dict[str, Tensor]]] = [{name: {} for name in _GROUPS} for _ in range(restarts)]
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        target = groups
        if group == "restarts":
            number, _, rest = name.partition("/")
            group, _, name = rest.partition("/")
            if not number.isascii() or not number.isdigit() or len(number) > 9 or int(number) >= restarts:
                raise ArtifactError(f"the artifact holds '{key[:200]}', and has {restarts} restarts")
            target = others[int(number)]
            if group not in ("params", "buffers", "history"):
                group = ""
        if group not in target or not name:
            raise ArtifactError(f"the artifact holds a tensor '{key[:200]}', which is of no kind that is known")
        target[group][name] = value
    return groups, others


def _stored_data(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Dataset:
    from zoo.datasets import load as load_data
    from zoo.datasets import unpack

    if "bundled" not in about:
        return unpack(tensors, about["stored"])
    options = about["options"]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in options.values()):
        raise ArtifactError("the options of the data set are not all numbers")
    return load_data(about["bundled"], **options)


def _check_data(data: Dataset, mark: str, folder: Path) -> None:
    from zoo.datasets import fingerprint

    if fingerprint(data) != mark:
        raise ArtifactError(
            f"the data set '{data.name}' is not the one that '{folder}' was fitted on (another fingerprint)"
        )


def _bundled(data: Dataset) -> Dataset | None:
    """Load the bundled data set that this one says it is; ``None`` if it is the user's own."""
    from zoo.datasets import load as load_data

    if data.origin != "bundled":
        return None
    try:
        return load_data(data.name, **data.extra.get("options", {}))
    except ZooError:
        return None


def _check_params(layout: Layout, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    _check_names("parameter", params, layout.names)
    _check_names("buffer", buffers, [str(i) for i in range(len(layout.buffers))])
    for name in layout.names:
        _check_like("parameter", name, params[name], layout.values[name].shape, layout.values[name].dtype)
    for i, (name, like) in enumerate(layout.buffer_values.items()):
        _check_like("buffer", name, buffers[str(i)], like.shape, like.dtype)


def _check_names(what: str, found: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise ArtifactError(f"the artifact lacks the {what} '{missing[0]}'")
    surplus = sorted(set(found) - set(expected))
    if surplus:
        raise ArtifactError(f"the artifact holds the {what} '{surplus[0][:200]}', which this method does not have")


def _check_like(what: str, name: str, value: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    if tuple(value.shape) != tuple(shape) or value.dtype != dtype:
        raise ArtifactError(
            f"{what} '{name}' is {value.dtype} {tuple(value.shape)}; this method has {dtype} {tuple(shape)}"
        )


def _latents(pair: Pair, data: Dataset, dtype: torch.dtype) -> dict[str, Sequence[int]]:
    """Return the shapes of the latents that NUTS draws, in the model's order."""
    from pyro import poutine

    from zoo.inference.program import discover
    from zoo.inference.subsampling import all_rows

    batch = {k: v.to(dtype=dtype if v.is_floating_point() else v.dtype) for k, v in data.train.items()}
    traces: list[Any] = []
    with pyro_world(dtype=dtype), stream(seeded(0)), all_rows():
        discover(
            lambda: traces.append(poutine.trace(pair.model).get_trace(batch)), [pair.model], dtype=dtype, device="cpu"
        )
    return {
        name: tuple(site["value"].shape)
        for name, site in traces[0].iter_stochastic_nodes()
        if not is_plate(site) and not site["fn"].has_enumerate_support
    }


def _check_chains(
    latents: Mapping[str, Sequence[int]],
    chains: Mapping[str, Tensor],
    stats: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    _check_names("latent", chains, list(latents))
    lead = next(iter(chains.values())).shape[:2]
    if len(lead) < 2 or 0 in lead:
        raise ArtifactError("the artifact holds no draws")
    for name, shape in latents.items():
        _check_like("latent", name, chains[name], (*lead, *shape), dtype)
    for name, value in stats.items():
        if value.shape[:2] != lead:
            raise ArtifactError(f"statistic '{name[:200]}' is {tuple(value.shape)}; the chains are {tuple(lead)}")
    return {name: chains[name] for name in latents}


def _check_history(history: Mapping[str, Tensor], order: Any, pair: Pair) -> dict[str, Tensor]:
    # NUTS has no losses; a pair trained in the user's own loop has one, whatever its objective.
    due = [loss.name for loss in losses_of(pair.objective)]
    names = next((known for known in (due, ["elbo"], []) if set(known) == set(history)), due)
    _check_names("loss", history, names)
    if order not in (None, names):
        raise ArtifactError("the losses that the JSON lists are not those beside it")
    for name, value in history.items():
        if value.dim() != 1 or not value.is_floating_point() or len(value) != len(history[names[0]]):
            raise ArtifactError(f"loss '{name[:200]}' is {value.dtype} {tuple(value.shape)}; one number a step is due")
    return {name: history[name] for name in names}


def _no_numbers(values: Mapping[str, Tensor], chains: Mapping[str, Tensor] | None) -> str:
    """Say which parameter is not finite, or which latent has a draw that is no number; empty if none."""
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            return f"parameter '{name}' holds NaN or infinite values"
    for name, value in (chains or {}).items():
        if bool(torch.isnan(value).any()):
            return f"the draws of '{name}' hold NaN"
    return ""


_NUMBER = (int, float)
_FACTS: dict[str, tuple[type, ...]] = {
    "dtype": (str,),
    "device": (str,),
    "seed": (int,),
    "steps": (int,),
    "chains": (int,),
    "draws": (int,),
    "tune": (int,),
    "threads": (int,),
    "divergences": (int, list),
    "peak_memory": (int,),
    "machine": (str,),
    "started": (str,),
    "command": (str,),
    "sampler": (str,),
    "stopped": (str,),
    "reason": (str,),
    "init": (str,),
    "compiled": (bool,),
    "compile_seconds": _NUMBER,
    "cpu_seconds": _NUMBER,
    "final_loss": _NUMBER,
    "seconds": (int, float, dict),
    "fitted_on": (str,),
    "git": (dict,),
    "versions": (dict,),
    "recipe": (dict,),
}


def _check_info(facts: Mapping[str, Any]) -> torch.dtype:
    """Check the facts that something relies on, and return the type of the parameters."""
    from zoo.inference.runner import _recipe

    for key, kinds in _FACTS.items():
        value = facts.get(key)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ArtifactError(f"the artifact's '{key}' is {str(value)[:100]!r}, a {type(value).__name__}")
    if facts.get("dtype") not in ("float32", "float64") or facts.get("device") is None:
        raise ArtifactError(
            "the artifact does not say of which type its parameters are, or on which device it was made"
        )
    if not 0 <= (facts.get("seed") or 0) < 2**63:
        raise ArtifactError(f"the artifact's seed is {facts['seed']}; allowed: 0 to 2**63 - 1")
    for value in (facts.get("versions") or {}).values():
        if not isinstance(value, str):
            raise ArtifactError(f"the artifact's versions hold {str(value)[:100]!r}, which is no text")
    if facts.get("recipe") is not None:
        _recipe(Recipe(**facts["recipe"]), {})
    dtype: torch.dtype = getattr(torch, facts["dtype"])
    return dtype


def _read_meta(path: Path) -> dict[str, Any]:
    meta = artifacts.read_json(path)
    if meta.get("format") != _FORMAT:
        raise ArtifactError(f"'{path}' is JSON, but not of a pyro-zoo posterior")
    schema = meta.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or not 1 <= schema <= _SCHEMA:
        raise ArtifactError(f"'{path}' has schema {str(schema)[:100]}; this version reads 1 to {_SCHEMA}")
    expected = _OLD if schema == 1 else _KEYS
    wrong = sorted(expected ^ set(meta))
    if wrong:
        lack = "lacks" if wrong[0] in expected else "holds, unexpectedly,"
        raise ArtifactError(f"'{path}' {lack} '{wrong[0][:200]}'")
    if schema > 1 and meta["checksum"] != artifacts.digest({k: v for k, v in meta.items() if k != "checksum"}):
        raise ArtifactError(f"'{path}' was changed: its checksum is not the one that it carries")
    kinds: dict[str, type | tuple[type, ...]] = {
        "name": str, "method": (str, type(None)), "hyper": dict, "engine": str, "losses": list, "info": dict,
        "restarts": list, "data": dict, "files": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if key in meta and not isinstance(meta[key], kind):
            raise ArtifactError(f"'{path}': '{key}' is a {type(meta[key]).__name__}")
    if meta["engine"] not in ("svi", "nuts"):
        raise ArtifactError(f"'{path}': the engine is '{meta['engine'][:100]}'; known: nuts, svi")
    if not all(isinstance(facts, dict) for facts in meta["restarts"]):
        raise ArtifactError(f"'{path}': not every restart is described")
    return meta


def _checks(meta: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return checksum and size of the tensors."""
    if meta["schema"] == 1:
        return {"sha256": meta["sha256"]}
    about = meta["files"].get(_TENSORS)
    if not isinstance(about, dict) or not isinstance(about.get("bytes"), int) or set(meta["files"]) != {_TENSORS}:
        raise ArtifactError(f"'{folder / _META}' does not describe {_TENSORS} alone, with its size")
    return {"sha256": about.get("sha256"), "size": about["bytes"]}


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


def _spelt(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Write what JSON cannot hold as text, which hyper-parameters are read from too."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in hyper.items()}


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold (NaN, infinities) by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
