"""Run a fitted pair many times: draws of the guide, predictions and log densities, vectorised over draws."""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import infer_discrete
from pyro.ops.einsum import torch_log
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import DataError, PairError
from zoo.inference.objectives import enumerated_bound, losses_of, to_pyro
from zoo.inference.program import (
    _PYRO,
    NUMBERS,
    Layout,
    Program,
    answer_pyro,
    compile_function,
    pyro_world,
    seeded,
    stream,
)
from zoo.inference.promotion import OneType
from zoo.inference.sites import guide_trace, innermost, is_plate, kind, observed, traces
from zoo.inference.subsampling import all_rows, drawn_plates, unsteady_site
from zoo.types import Batch, Elbo, Pair

__all__ = ["MAX_BYTES", "Prediction", "Runs", "block_seed", "given_draws", "joined"]

MAX_BYTES = 2**28
_FEW = 11  # rows on which a pair is read, where it takes mini-batches


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a posterior predicts for one batch, by observed site.

    Args:
        samples: Sampled observations, ``(draw, row, ...)``.
        means: Mean of the observation's distribution in each draw, ``(draw, row, ...)``, where it has one.
        probs: Class probabilities in each draw, ``(draw, row, class)``, for categorical observations.
        log_prob: Log density of the batch's own targets in each draw, ``(draw, row)``, if the batch has them.
    """

    samples: Mapping[str, Tensor]
    means: Mapping[str, Tensor] = field(default_factory=dict)
    probs: Mapping[str, Tensor] = field(default_factory=dict)
    log_prob: Mapping[str, Tensor] = field(default_factory=dict)


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Join predictions of the same rows from several blocks of draws.

    Args:
        parts: The predictions.

    Returns:
        One prediction of all draws.
    """
    if len(parts) == 1:
        return parts[0]
    kinds = [getattr(parts[0], f.name) for f in fields(Prediction)]
    return Prediction(
        *(
            {site: torch.cat([getattr(part, f.name)[site] for part in parts]) for site in kind}
            for f, kind in zip(fields(Prediction), kinds, strict=True)
        )
    )


def block_seed(seed: int, *where: int) -> int:
    """Return the seed of one block of draws or rows, so that blocks do not repeat each other's noise.

    Args:
        seed: Of the whole.
        *where: Where the block starts.

    Returns:
        Another seed for every block; the first keeps the seed.
    """
    if not any(where):
        return seed
    text = "/".join(map(str, (seed, *where)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def given_draws(seed: int) -> int:
    """Return the seed of what is drawn given draws: on their own stream it would repeat their noise.

    Args:
        seed: Of the draws.

    Returns:
        Another seed.
    """
    return (seed + 0x9E3779B97F4A7C15) % 2**63


@dataclass
class Runs:
    """A pair with fixed parameters, to be run many times on its own random stream.

    Args:
        pair: Model and guide.
        layout: What the pair reads; ``None`` when nothing is bound (a model without parameters).
        values: Unconstrained parameters in the layout's order.
        buffers: Module buffers in the layout's order.
        dtype: Default type inside.
        device: Default device inside.
        train: The training batch, on which plates that draw mini-batches are found; ``None`` looks for none.
    """

    pair: Pair
    layout: Layout | None
    values: list[Tensor]
    buffers: list[Tensor]
    dtype: torch.dtype
    device: torch.device
    train: Batch | None = None
    _drawn: dict[str, int] | None = field(default=None, init=False, repr=False)
    _unsteady: str = field(default="", init=False, repr=False)
    _targets: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    _depths: dict[frozenset[str], int | None] = field(default_factory=dict, init=False, repr=False)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Run a block with the fitted values bound, modules in evaluation mode, without gradients.

        Plates that draw mini-batches of their own take all rows inside, in order.

        Yields:
            Nothing.
        """
        with self._with_values():
            if self._drawn is None:
                self._drawn = {}
                if self.train is not None:
                    self._read_plates(self.train)
            with all_rows(frozenset(self._drawn)):
                yield

    @property
    def _programs(self) -> tuple[Callable[..., Any], ...]:
        guide = self.pair.drawing
        return (self.pair.model,) if guide is None or self.layout is None else (guide, self.pair.model)

    def _read_plates(self, train: Batch) -> None:
        rows = len(train["index"]) if "index" in train else 0
        batch = {}
        for name, value in train.items():
            few = value[:_FEW] if rows and value.ndim and len(value) == rows else value
            batch[name] = few.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
        with stream(seeded(0, self.device)):
            self._drawn = drawn_plates(self._programs, batch)
            with all_rows(frozenset(self._drawn)), suppress(Exception):  # what it raises, whoever uses it will see
                self._unsteady = unsteady_site(self.pair.model, batch)
            with all_rows(frozenset(self._drawn)), suppress(Exception):
                self._targets = frozenset(observed(poutine.trace(self.pair.model).get_trace(batch).nodes))

    def check_columns(self, batch: Batch) -> None:
        """Raise unless the columns of what is observed are the rows of a batch, in order.

        Args:
            batch: The batch.

        Raises:
            PairError: If the model draws its own rows in a way that cannot be undone.
            DataError: If a plate that draws mini-batches has another size than the batch has rows.
        """
        with self.bound(), stream(seeded(0, self.device)):
            drawn = dict(self._drawn or {})
            sizes = drawn_plates(self._programs, batch, frozenset(drawn)) if drawn else {}
        if self._unsteady:
            raise PairError(
                f"site '{self._unsteady}' observes other data in every run, so that no column of its log density is "
                "one datum: draw mini-batches by pyro.plate(NAME, SIZE, subsample_size=...), or give the batch 'index' "
                "and zoo.fit a batch_size"
            )
        for name, size in drawn.items():
            for key, value in (self.train or {}).items():
                if value.ndim and len(value) == size and key in batch and len(batch[key]) != sizes.get(name, size):
                    raise DataError(
                        f"the plate '{name}' has {sizes.get(name, size)} rows and '{key}' {len(batch[key])}; write its "
                        f"size as len(batch['{key}']), so that other rows can be predicted"
                    )

    @contextmanager
    def _with_values(self) -> Iterator[None]:
        with pyro_world(dtype=self.dtype, device=self.device), torch.no_grad():
            if self.layout is None:
                with OneType(self.dtype):
                    yield
                return
            with self.layout.bind(self.values, [b.clone() for b in self.buffers], evaluate=True):
                yield

    def map(
        self,
        function: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        num: int,
        over: Mapping[str, Tensor] | None = None,
        *,
        seed: int,
        max_bytes: int = MAX_BYTES,
        compile: bool = False,
    ) -> dict[str, Tensor]:
        """Call a function once per draw and stack what it returns, vectorised with :func:`torch.vmap` where that works.

        Args:
            function: One draw's values -> named tensors.
            num: Number of draws.
            over: Values by name, ``(draw, ...)``.
            seed: Of the stream from which the function draws.
            max_bytes: Memory that one vectorised block of draws may take, about; one draw is taken in any case.
            compile: Whether to compile a block. That takes some seconds, and pays for many blocks of small operations.

        Returns:
            Name -> ``(draw, ...)``.
        """
        if not num:
            return {}
        over = dict(over or {})
        with self.bound(), stream(seeded(seed, self.device)), _Peak() as peak:
            first = function({k: v[0] for k, v in over.items()})
        chunk = max(1, min(num, max_bytes // max(peak.bytes, 1)))
        names = list(first)

        def one(_: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            with _FreshNoise():
                found = function(dict(zip(over, values, strict=True)))
            return tuple(found[name] for name in names)

        def block(*inputs: Tensor) -> tuple[Tensor, ...]:
            return torch.vmap(one, randomness="different")(*inputs)

        ticks = torch.arange(num, device=self.device)
        pieces = [(start, min(start + chunk, num)) for start in range(0, num, chunk)]
        try:
            with self.bound(), _plain_logarithm():
                program = Program(block)
                if compile:
                    program = compile_function(block, [ticks[:chunk], *(v[:chunk] for v in over.values())])
                # Results have their place from the start; pieces between passing values would fragment the memory.
                stacked = [torch.empty((num, *first[n].shape), dtype=first[n].dtype, device=self.device) for n in names]
                with stream(seeded(seed, self.device)):
                    for start, stop in pieces:
                        inputs = [v[start:stop] for v in (ticks, *over.values())]
                        places = [v[start:stop] for v in stacked]
                        whole = program if stop - start == chunk else Program(block)
                        whole.run(inputs, back=[-1] * len(names), out=places)
                return dict(zip(names, stacked, strict=True))
        except (RuntimeError, ValueError, NotImplementedError, IndexError, TypeError, AssertionError):
            # A program that cannot be vectorised (data-dependent shapes, unusual operators) runs draw by draw.
            pass
        with self.bound(), stream(seeded(seed, self.device)):
            runs = [function({k: v[i] for k, v in over.items()}) for i in range(num)]
        return {k: torch.stack([r[k] for r in runs]) for k in runs[0]}

    # ------------------------------------------------------------------------------------------ what is run
    def guide_draws(self, batch: Batch, num: int, seed: int, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
        """Draw every latent from the guide.

        Args:
            batch: Batch whose local latents are drawn.
            num: Number of draws.
            seed: Of the stream.
            max_bytes: Memory beside that of the draws, about.

        Returns:
            Site -> ``(draw, ...)``.

        Raises:
            PairError: If there is no guide.
        """
        guide = self.pair.drawing
        if guide is None:
            raise PairError("this pair has no guide to draw from")

        with self.bound():  # which finds the targets
            data = self._targets

        def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = guide_trace(guide, batch, data=data)
            return {
                n: trace.nodes[n]["value"]
                for n in trace.stochastic_nodes
                if not trace.nodes[n]["infer"].get("is_auxiliary") and not is_plate(trace.nodes[n])
            }

        return self.map(one, num, seed=seed, max_bytes=max_bytes)

    def model_trace(self, latents: Mapping[str, Tensor], batch: Batch, *, observed: bool = True) -> Any:
        """Trace the model given one draw of its latents; call it inside :meth:`bound` or from :meth:`map`.

        Args:
            latents: Site -> value.
            batch: The batch.
            observed: Whether observed sites keep their data; otherwise they are sampled.

        Returns:
            The trace.
        """
        model = self.pair.model if observed else Replicate()(self.pair.model)
        conditioned = poutine.condition(model, data=dict(latents))
        names = set(latents)
        nesting = self.summed_out(latents, batch)
        trace = poutine.trace(_discrete(conditioned, nesting)).get_trace(batch)
        for name in names & set(trace.nodes):
            trace.nodes[name]["is_observed"] = False
        return trace

    def summed_out(self, latents: Mapping[str, Tensor], batch: Batch) -> int | None:
        """Return the depth of the model's plates if latents are enumerated to the left of them, else ``None``.

        Args:
            latents: Site -> value.
            batch: The batch.

        Returns:
            The depth as it stands in the model, and at least that of the objective.
        """
        objective = self.pair.objective
        # NUTS sums out whatever is finite; SVI what its objective enumerates.
        if self.layout is not None and not (isinstance(objective, Elbo) and objective.estimator == "enum"):
            return None
        key = frozenset(latents)
        if key not in self._depths:
            nodes = poutine.trace(poutine.condition(self.pair.model, data=dict(latents))).get_trace(batch).nodes
            sampled = {n: s for n, s in nodes.items() if s["type"] == "sample"}
            given_sites = {*latents, *self._targets}  # a target that is absent is predicted, not summed out
            own = any(s["infer"].get("enumerate") and n not in given_sites for n, s in sampled.items())
            frames = (f for s in sampled.values() for f in s["cond_indep_stack"] if f.vectorized)
            given = objective.max_plate_nesting if isinstance(objective, Elbo) else None
            depth = max((-f.dim for f in frames), default=0)
            self._depths[key] = max(depth, given or 0) if own or self.layout is not None else None
        return self._depths[key]

    def deterministics(self, latents: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Evaluate the model's deterministic sites.

        Args:
            latents: Site -> ``(draw, ...)``.
            batch: The batch.

        Returns:
            Site -> ``(draw, ...)``.
        """
        with self.bound(), stream(seeded(0, self.device)):
            nodes = self.model_trace({k: v[0] for k, v in latents.items()}, batch).nodes
            fixed = [n for n, s in nodes.items() if s["type"] == "sample" and kind(s) == "deterministic"]

        def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = self.model_trace(values, batch)
            return {n: trace.nodes[n]["value"] for n in fixed}

        return self.map(one, _count(latents), latents, seed=0)

    def predict(
        self,
        latents: Mapping[str, Tensor],
        batch: Batch,
        seed: int,
        *,
        count: int = 1,
        max_bytes: int = MAX_BYTES,
        compile: bool = False,
    ) -> Prediction:
        """Predict the observed sites.

        Args:
            latents: Site -> ``(draw, ...)``.
            batch: The batch; targets are not looked at.
            seed: Of the stream.
            count: Draws of a model without latents.
            max_bytes: Memory of one vectorised block of draws, about.
            compile: Whether to compile such a block.

        Returns:
            The prediction; with ``log_prob`` if exactly one site is observed and no latent is summed out, so that the
            site's distribution in a replicate is that of the data.
        """
        self.check_columns(batch)
        with self.bound(), stream(seeded(seed, self.device)):
            first = {k: v[0] for k, v in latents.items()}
            nodes = self.model_trace(first, batch).nodes
            summed = self.summed_out(first, batch)
            seen = observed(nodes)
        free = seen or observed(self._free_trace(first, batch, seed).nodes)
        given = {n: nodes[n] for n in seen} if len(seen) == 1 and summed is None else {}

        def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = self.model_trace(values, batch, observed=False)
            out = {}
            for name in free:
                fn = trace.nodes[name]["fn"]
                shape = trace.nodes[name]["value"].shape
                out[f"samples/{name}"] = trace.nodes[name]["value"]
                inner = innermost(fn)
                if isinstance(inner, torch.distributions.Categorical | torch.distributions.OneHotCategorical):
                    out[f"probs/{name}"] = inner.probs.expand(*inner.batch_shape, inner.probs.shape[-1])
                else:
                    mean = _mean(fn)
                    if mean is not None:
                        out[f"means/{name}"] = mean.expand(shape)
                if name in given:
                    density = fn.log_prob(given[name]["value"])
                    out[f"log_prob/{name}"] = scale_and_mask(density, mask=given[name]["mask"])
            return out

        num = _count(latents, count)
        found = self.map(one, num, latents, seed=given_draws(seed), max_bytes=max_bytes, compile=compile)
        kinds: dict[str, dict[str, Tensor]] = {"samples": {}, "probs": {}, "means": {}, "log_prob": {}}
        for key, value in found.items():
            kind, name = key.split("/", 1)
            kinds[kind][name] = value
        return Prediction(**kinds)

    def _free_trace(self, first: Mapping[str, Tensor], batch: Batch, seed: int) -> Any:
        """Trace the model on a batch without targets, marking the sites that a batch with targets would observe."""
        with self.bound(), stream(seeded(seed, self.device)):
            trace = self.model_trace(first, batch, observed=False)
        for name in trace.stochastic_nodes:
            site = trace.nodes[name]
            summed = site["infer"].get("enumerate") is not None and name not in self._targets
            own = summed or site["infer"].get("imputes")
            if name not in first and not is_plate(site) and not own:
                site["is_observed"] = True
        return trace

    def log_weights(self, batch: Batch, num: int, seed: int) -> Tensor:
        r"""Evaluate :math:`\log p(x, z) - \log q(z)` at draws of the guide, enumerated latents summed out.

        Args:
            batch: The whole training batch.
            num: Number of draws.
            seed: Of the stream.

        Returns:
            ``(draw,)``.
        """
        losses = losses_of(self.pair.objective)
        elbo = next((s.function for s in losses if isinstance(s.function, Elbo)), Elbo())
        if elbo.estimator == "enum":
            with self.bound(), stream(seeded(seed, self.device)):
                drawn = poutine.trace(self.pair.drawing).get_trace(batch)
                nodes = ((n, drawn.nodes[n]) for n in drawn.stochastic_nodes if not is_plate(drawn.nodes[n]))
                nesting = self.summed_out({n: s["value"] for n, s in nodes}, batch)
            estimator = to_pyro(Elbo(estimator="enum", max_plate_nesting=nesting))

            def summed(_: dict[str, Tensor]) -> dict[str, Tensor]:
                return {"w": enumerated_bound(estimator, self.pair.model, self.pair.drawing, batch).to(self.dtype)}

            return self.map(summed, num, seed=seed)["w"]
        guide: Any = self.pair.drawing

        def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
            found, drawn = traces(self.pair.model, guide, batch)
            return {"w": torch.as_tensor(found.log_prob_sum() - drawn.log_prob_sum())}

        return self.map(one, num, seed=seed)["w"]


class _Peak(TorchDispatchMode):
    """Measure the most bytes of new tensors that are alive at a time within a block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(found):
            if isinstance(value, Tensor) and value._base is None:
                storage = value.untyped_storage()
                key = storage.data_ptr()
                if key and key not in self._alive:
                    self._alive[key] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.bytes = max(self.bytes, self._now)
                    weakref.finalize(storage, self._gone, key)
        return found

    def _gone(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


class Replicate(UnconditionMessenger):  # type: ignore[misc]
    """Sample observed sites anew, but leave deterministic sites, which are observed too, at what the model computes."""

    def _pyro_sample(self, msg: Any) -> None:
        if kind(msg) != "observed":
            return
        super()._pyro_sample(msg)
        # Where the data alone say how many there are, in a plate without a size or in none, so do they here.
        data, fn = msg["infer"]["obs"], msg["fn"]
        if isinstance(data, Tensor):
            shape = torch.broadcast_shapes(fn.batch_shape, data.shape[: data.ndim - len(fn.event_shape)])
            if shape != fn.batch_shape:
                msg["fn"] = fn.expand(shape)


class _FreshNoise(TorchFunctionMode):
    """Let Pyro run under :func:`torch.vmap`, which refuses filling tensors, and numbers or ``data`` out of them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        code = sys._getframe(1).f_code
        if func in _NOISE and "distributions" in code.co_filename:
            return _NOISE[func](*args, **(kwargs or {}))
        if func == _DATA:
            return args[0].detach()
        if func in NUMBERS and code.co_filename.startswith(_PYRO):
            answer = answer_pyro(func, code.co_name, args)
            if answer is not NotImplemented:
                return answer
        return func(*args, **(kwargs or {}))


@contextmanager
def _plain_logarithm() -> Iterator[None]:
    """Let Pyro sum factors under :func:`torch.vmap`, which refuses the logarithm with a gradient of its own there.

    The caller holds the lock of :func:`~zoo.inference.program.pyro_world`.

    Yields:
        Nothing.
    """
    own = torch_log.safe_log
    torch_log.safe_log = lambda value: own(value) if torch.is_grad_enabled() else value.log()
    try:
        yield
    finally:
        torch_log.safe_log = own


def _uniform(like: Tensor) -> Tensor:
    return torch.rand(like.shape, dtype=like.dtype, device=like.device)


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(like.shape, dtype=like.dtype, device=like.device)


_NOISE: dict[Any, Callable[..., Tensor]] = {
    torch.Tensor.normal_: _normal,
    torch.Tensor.uniform_: lambda t, low=0.0, high=1.0: low + (high - low) * _uniform(t),
    torch.Tensor.exponential_: lambda t, rate=1.0: -torch.log1p(-_uniform(t)) / rate,
    torch.Tensor.cauchy_: lambda t, median=0.0, scale=1.0: median + scale * torch.tan(math.pi * (_uniform(t) - 0.5)),
}


_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]


def _count(latents: Mapping[str, Tensor], otherwise: int = 1) -> int:
    return len(next(iter(latents.values()))) if latents else otherwise


def _discrete(model: Callable[..., Any], nesting: int | None) -> Callable[..., Any]:
    """Sample enumerated latents from their exact conditional posterior."""
    if nesting is None:
        return model
    inferred = infer_discrete(model, first_available_dim=-1 - nesting, temperature=1)

    def run(*args: Any) -> Any:
        with warnings.catch_warnings():  # a latent that the guide enumerates is given here
            warnings.filterwarnings("ignore", message="infer_discrete found no sample sites")
            return inferred(*args)

    return run


def _mean(fn: Any) -> Tensor | None:
    try:
        mean: Tensor = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if isinstance(mean, Tensor) else None
