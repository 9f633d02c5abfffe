"""Run a fitted pair many times: draws of the guide, predictions and log densities, vectorised over draws."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zoo.errors import PairError
from zoo.inference.objectives import losses_of, to_pyro
from zoo.inference.program import Layout, pyro_world, seeded, stream
from zoo.types import Batch, Elbo, Pair

__all__ = ["Prediction", "Runs"]


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
    """

    pair: Pair
    layout: Layout | None
    values: list[Tensor]
    buffers: list[Tensor]
    dtype: torch.dtype
    device: torch.device

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Run a block with the fitted values bound, modules in evaluation mode, without gradients.

        Yields:
            Nothing.
        """
        with pyro_world(dtype=self.dtype, device=self.device), torch.no_grad():
            if self.layout is None:
                yield
                return
            modes = [(m, m.training) for m in self.layout.modules]
            for module, _ in modes:
                module.training = False
            try:
                with self.layout.bind(self.values, [b.clone() for b in self.buffers]):
                    yield
            finally:
                for module, mode in modes:
                    module.training = mode

    def map(
        self,
        function: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        num: int,
        over: Mapping[str, Tensor] | None = None,
        *,
        seed: int,
        max_bytes: int = 2**28,
    ) -> dict[str, Tensor]:
        """Call a function once per draw and stack what it returns, vectorised with :func:`torch.vmap` where that works.

        Args:
            function: One draw's values -> named tensors.
            num: Number of draws.
            over: Values by name, ``(draw, ...)``.
            seed: Of the stream from which the function draws.
            max_bytes: Memory that the outputs of one vectorised block may take, about.

        Returns:
            Name -> ``(draw, ...)``.
        """
        over = dict(over or {})
        state = seeded(seed, self.device)
        ticks = torch.arange(num, device=self.device)
        with self.bound(), stream(state):
            first = function({k: v[0] for k, v in over.items()})
        size = sum(v.numel() * v.element_size() for v in first.values()) + sum(
            v[0].numel() * v.element_size() for v in over.values()
        )
        chunk = max(1, min(num, max_bytes // max(4 * size, 1)))

        def one(_: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            with _FreshNoise():
                return function(values)

        state = seeded(seed, self.device)
        with self.bound(), stream(state):
            try:
                parts = []
                for start in range(0, num, chunk):
                    block = {k: v[start : start + chunk] for k, v in over.items()}
                    out = torch.vmap(one, randomness="different")(ticks[start : start + chunk], block)
                    parts.append({k: v.detach() for k, v in out.items()})
                return {k: torch.cat([p[k] for p in parts]) for k in parts[0]} if parts else {}
            except (RuntimeError, ValueError, NotImplementedError, IndexError, TypeError, AssertionError):
                # A program that cannot be vectorised (data-dependent shapes, unusual operators) runs draw by draw.
                pass
        state = seeded(seed, self.device)
        with self.bound(), stream(state):
            runs = [function({k: v[i] for k, v in over.items()}) for i in range(num)]
        return {k: torch.stack([r[k] for r in runs]) for k in runs[0]} if runs else {}

    # ------------------------------------------------------------------------------------------ what is run
    def guide_draws(self, batch: Batch, num: int, seed: int) -> dict[str, Tensor]:
        """Draw every latent from the guide.

        Args:
            batch: Batch whose local latents are drawn.
            num: Number of draws.
            seed: Of the stream.

        Returns:
            Site -> ``(draw, ...)``.

        Raises:
            PairError: If there is no guide.
        """
        guide = self.pair.guide
        if guide is None:
            raise PairError("this pair has no guide to draw from")

        def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = poutine.trace(guide).get_trace(batch)
            return {
                n: trace.nodes[n]["value"]
                for n in trace.stochastic_nodes
                if not trace.nodes[n]["infer"].get("is_auxiliary") and not _subsample(trace.nodes[n])
            }

        return self.map(one, num, seed=seed)

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
        trace = poutine.trace(_discrete(conditioned, self._nesting)).get_trace(batch)
        for name in names & set(trace.nodes):
            trace.nodes[name]["is_observed"] = False
        return trace

    @property
    def _nesting(self) -> int | None:
        objective = self.pair.objective
        enumerated = isinstance(objective, Elbo) and objective.estimator == "enum"
        return (objective.max_plate_nesting or 1) if enumerated else None  # type: ignore[union-attr]

    def deterministics(self, latents: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Evaluate the model's deterministic sites.

        Args:
            latents: Site -> ``(draw, ...)``.
            batch: The batch.

        Returns:
            Site -> ``(draw, ...)``.
        """

        def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = self.model_trace(values, batch)
            return {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and _deterministic(s)}

        return self.map(one, _count(latents), latents, seed=0)

    def predict(self, latents: Mapping[str, Tensor], batch: Batch, seed: int) -> Prediction:
        """Predict the observed sites.

        Args:
            latents: Site -> ``(draw, ...)``.
            batch: The batch; targets are not looked at.
            seed: Of the stream.

        Returns:
            The prediction, without ``log_prob``.
        """
        with self.bound(), stream(seeded(seed, self.device)):
            first = {k: v[0] for k, v in latents.items()}
            observed = _observed(self.model_trace(first, batch))
        free = observed or _observed(self._free_trace(first, batch, seed))

        def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = self.model_trace(values, batch, observed=False)
            out = {}
            for name in free:
                fn = trace.nodes[name]["fn"]
                shape = trace.nodes[name]["value"].shape
                out[f"samples/{name}"] = trace.nodes[name]["value"]
                base = _base(fn)
                if isinstance(base, torch.distributions.Categorical | torch.distributions.OneHotCategorical):
                    out[f"probs/{name}"] = base.probs.expand(*base.batch_shape, base.probs.shape[-1])
                else:
                    mean = _mean(fn)
                    if mean is not None:
                        out[f"means/{name}"] = mean.expand(shape)
            return out

        found = self.map(one, _count(latents), latents, seed=seed)
        kinds: dict[str, dict[str, Tensor]] = {"samples": {}, "probs": {}, "means": {}}
        for key, value in found.items():
            kind, name = key.split("/", 1)
            kinds[kind][name] = value
        return Prediction(kinds["samples"], kinds["means"], kinds["probs"])

    def _free_trace(self, first: Mapping[str, Tensor], batch: Batch, seed: int) -> Any:
        """Trace the model on a batch without targets, marking the sites that a batch with targets would observe."""
        with self.bound(), stream(seeded(seed, self.device)):
            trace = self.model_trace(first, batch, observed=False)
        for name in trace.stochastic_nodes:
            site = trace.nodes[name]
            inner = site["infer"].get("enumerate") is not None or site["infer"].get("imputes")
            if name not in first and not _subsample(site) and not inner:
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
            estimator = to_pyro(Elbo(estimator="enum", max_plate_nesting=elbo.max_plate_nesting))
            values = []
            with self.bound(), stream(seeded(seed, self.device)):
                for _ in range(num):
                    values.append(-float(estimator.loss(self.pair.model, self.pair.guide, batch)))
            return torch.tensor(values, dtype=self.dtype)
        guide: Any = self.pair.guide

        def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
            guide_trace = poutine.trace(guide).get_trace(batch)
            model_trace = poutine.trace(poutine.replay(self.pair.model, trace=guide_trace)).get_trace(batch)
            return {"w": torch.as_tensor(model_trace.log_prob_sum() - guide_trace.log_prob_sum())}

        return self.map(one, num, seed=seed, max_bytes=2**20)["w"]


class Replicate(UnconditionMessenger):  # type: ignore[misc]
    """Sample observed sites anew, but leave deterministic sites, which are observed too, at what the model computes."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic", False):
            super()._pyro_sample(msg)


class _FreshNoise(TorchFunctionMode):
    """Let distributions draw under :func:`torch.vmap`: they fill new tensors in place, which it refuses."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _NOISE and "distributions" in sys._getframe(1).f_code.co_filename:
            return _NOISE[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


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


def _count(latents: Mapping[str, Tensor]) -> int:
    return len(next(iter(latents.values()))) if latents else 1


def _discrete(model: Callable[..., Any], nesting: int | None) -> Callable[..., Any]:
    """Sample enumerated latents from their exact conditional posterior."""
    if nesting is None:
        return model
    return infer_discrete(model, first_available_dim=-1 - nesting, temperature=1)  # type: ignore[no-any-return]


def _subsample(site: Any) -> bool:
    return type(site["fn"]).__name__ == "_Subsample"


def _deterministic(site: Any) -> bool:
    return site["infer"].get("_deterministic", False) is True


def _observed(trace: Any) -> list[str]:
    return [
        n
        for n, s in trace.nodes.items()
        if s["type"] == "sample" and s["is_observed"] and not _deterministic(s) and not _subsample(s)
    ]


def _base(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return fn


def _mean(fn: Any) -> Tensor | None:
    try:
        mean: Tensor = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if isinstance(mean, Tensor) else None
