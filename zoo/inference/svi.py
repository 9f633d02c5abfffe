r"""Stochastic variational inference on a compiled whole-program graph.

One step -- guide and model, log densities, gradients, clipping, schedules and the optimiser -- is one function of the
:class:`~zoo.inference.state.State`'s tensors. It runs compiled where it can be traced, else eagerly; both give the same
losses, as they draw the same random numbers. Where ranks share the batches, gradient and update are two such functions,
with the sum over the ranks between them.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from zoo.errors import DataError, NonFiniteError, PairError, ZooError
from zoo.inference.averages import FirstValues, find_averages, put, take
from zoo.inference.distributed import Ranks, check_pair
from zoo.inference.objectives import (
    Estimate,
    estimates_of,
    evaluate,
    loss_and_grads,
    losses_of,
    subtracts_guide,
)
from zoo.inference.program import Layout, Program, compile_function, discover, pyro_world, seeded, stream
from zoo.inference.sites import check_guide, is_plate, traces
from zoo.inference.state import Order, State
from zoo.inference.steering import Callback, Optimiser
from zoo.inference.validation import check_rows, check_trace, pair_error
from zoo.types import Batch, Pair, Recipe

__all__ = ["Trainer", "schedule_table"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_MOMENTUM = 0.9
_MOST_SKIPPED = 100  # steps in a row


def schedule_table(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return the learning rate and the weight of the latent terms at every step.

    Args:
        recipe: Of the fit.

    Returns:
        Two float64 tensors ``(steps,)``.
    """
    t = torch.arange(recipe.steps, dtype=torch.float64)
    part = t / max(recipe.steps, 1)
    shape = {
        "constant": torch.ones_like(part),
        "cosine": 0.5 * (1 + torch.cos(math.pi * part)),
        "linear": 1 - part,
        "exponential": 0.01**part,
    }[recipe.schedule]
    rise = torch.ones_like(t)
    if recipe.warmup > 0:
        rise = ((t + 1) / max(recipe.warmup * recipe.steps, 1)).clamp(max=1)
    weight = torch.ones_like(t)
    if recipe.kl_warmup > 0:
        weight = ((t + 1) / max(recipe.kl_warmup * recipe.steps, 1)).clamp(max=1)
    return recipe.learning_rate * shape * rise, weight


@dataclass(frozen=True)
class _Loss:
    name: str
    function: Estimate
    mask: Tensor | None  # which entries of theta it trains; None: all
    steps: int


@contextmanager
def _flushed() -> Iterator[None]:
    """Take numbers too small for the normal range as zero in this thread: processors are slow at them.

    Weights that only decay, such as those of pixels that are always empty, come to lie there. Steps of a point estimate
    of Fashion-MNIST then took eight times as long.

    Yields:
        Nothing.
    """
    small = sys.float_info.min
    before = small / 2 == 0.0  # torch cannot be asked
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class Trainer:
    """Take steps on a pair's objective; owns nothing but its :class:`~zoo.inference.state.State`.

    Args:
        pair: Model, guide and objective.
        batch: Training batch.
        whole: Entries of the batch that have no rows.
        recipe: Steps, rates, batch size.
        seed: Of the fit's random stream, initial values included.
        dtype: Floating-point type of parameters, data and defaults.
        device: Where everything lives.
        compile: Whether to compile; ``False`` runs eagerly.
        init: Constrained initial values of parameters by name; the others start as the pair says.
        skip: Whether an update whose loss or gradient is not finite is left out, in place of stopping the fit.
        ranks: The processes that share every batch; ``None`` is one alone.
        validate: Whether to check all rows, beside those of the first batch, before anything is compiled.
        renew: Whether layers that were built outside of the pair begin at new random values, not at their own.
        optim: Takes the steps in the place of the recipe's optimiser, after the compiled gradient.

    Raises:
        DataError: If an initial value has the name of no parameter, another shape, or lies outside of the constraint,
            or a batch has fewer rows than there are ranks.
        PairError: If there is no guide, nothing to train, model and guide do not fit each other, or the pair cannot be
            fitted by several ranks.
    """

    def __init__(
        self,
        pair: Pair,
        batch: Batch,
        *,
        whole: frozenset[str] = frozenset(),
        recipe: Recipe,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        compile: bool = True,
        init: Mapping[str, Tensor] | None = None,
        skip: bool = False,
        ranks: Ranks | None = None,
        validate: bool = False,
        renew: bool = False,
        optim: PyroOptim | None = None,
    ) -> None:
        self.skip, self.ranks, self.seed, self.optim = skip, ranks, seed, optim
        self._optimiser: tuple[Tensor, Optimiser] | None = None
        if pair.guide is None:
            raise PairError("this pair has no guide, so SVI cannot fit it; use engine='nuts'")
        self.pair, self.recipe, self.dtype, self.device = pair, recipe, dtype, torch.device(device)
        self.data = {k: _to(v, dtype, self.device) for k, v in batch.items()}
        self.rows = None
        if recipe.batch_size is not None and "index" in batch and recipe.batch_size < len(batch["index"]):
            self.rows = len(batch["index"])
        if self.rows is not None or ranks is not None:
            self.row_keys = self._row_keys(whole)
        self.part = slice(0, recipe.batch_size) if self.rows is not None else slice(0, 0)  # of every batch
        if ranks is not None:
            self._take_part(ranks)
        losses = losses_of(pair.objective)
        self.functions = estimates_of(pair.objective)
        rng = seeded(seed, self.device)
        with self._world(validate=True), stream(rng):
            self.layout = self._discover(pair, renew=renew)
        if ranks is not None:
            check_pair(pair, buffers=bool(self.layout.buffers))
            if self.averages:
                raise PairError(
                    f"this pair cannot be fitted by several ranks: its loss keeps '{next(iter(self.averages))}' from "
                    "step to step; fit it in one process"
                )
        self.layout.values |= self.layout.unconstrained(init or {})
        self.sizes = [self.layout.values[n].numel() for n in self.layout.names]
        self.shapes = [self.layout.values[n].shape for n in self.layout.names]
        if not self.sizes:
            raise PairError("neither guide nor model has a parameter (pyro.param), so there is nothing to train")
        theta = torch.cat([self.layout.values[n].reshape(-1) for n in self.layout.names])
        self.losses = [
            _Loss(s.name, f, self._mask(s.trains), s.steps) for s, f in zip(losses, self.functions, strict=True)
        ]
        if optim is not None and len(self.losses) > 1:
            raise PairError(
                f"this pair trains {len(self.losses)} losses in turn, for which optimizer is one of adam, adamw, sgd"
            )
        rate, weight = schedule_table(recipe)
        self.rate, self.weight = rate.to(self.device, dtype), weight.to(self.device, dtype)
        self.state = State(
            theta=theta,
            moments=[torch.zeros(2, len(theta), dtype=dtype, device=self.device) for _ in self.losses],
            counts=torch.zeros(len(self.losses), dtype=dtype, device=self.device),
            step=torch.zeros((), dtype=torch.int64, device=self.device),
            buffers=self._first_buffers(),
            rng=rng,
            order=None if self.rows is None else Order.fresh(self.rows, int(recipe.batch_size or 0), seed),
        )
        if validate:
            self.check_rows()
        self.compile_seconds = 0.0
        self._compile(wanted=compile)

    def _compile(self, *, wanted: bool) -> None:
        """Compile a step, or take it as it is."""
        if self.ranks is None:
            self.program = Program(self._step if self.optim is None else self._slope, "compile=False")
        else:
            self._go_eager("compile=False")
        if not wanted:
            return
        started = time.perf_counter()
        with self._world(), stream(dict(self.state.rng)):
            if self.optim is not None:
                inputs = self._slope_inputs(self._example_rows())
                self.program = compile_function(
                    lambda *v: self._slope(*v, tracing=True), inputs, eager=self._slope, fixed=self._fixed(len(inputs))
                )
            elif self.ranks is None:
                inputs = self._inputs(self._example_rows())
                self.program = compile_function(
                    self._traceable_step, inputs, eager=self._step, fixed=self._fixed(len(inputs))
                )
            else:
                self._compile_both()
        self.compile_seconds += time.perf_counter() - started

    def _fixed(self, count: int) -> set[int]:
        """Return which of a step's inputs, the data at their end, are the same at every step."""
        start = count - len(self.data)
        return {start + i for i, k in enumerate(self.data) if self.rows is None or k not in self.row_keys}

    def _row_keys(self, whole: frozenset[str]) -> tuple[str, ...]:
        """Return the entries of the batch that have rows."""
        if "index" not in self.data:
            raise PairError("the batch has no rows (no 'index') to share among ranks; fit it in one process")
        rows, keys = len(self.data["index"]), tuple(k for k in self.data if k not in whole)
        for key in keys:
            if self.data[key].dim() == 0 or len(self.data[key]) != rows:
                raise PairError(
                    f"batch entry '{key}' has shape {tuple(self.data[key].shape)}, but 'index' has {rows} rows; name "
                    f"it in Dataset.whole if it has no rows"
                )
        return keys

    def _take_part(self, ranks: Ranks) -> None:
        """Take this rank's part of every batch: of its rows where these change, else of the data."""
        num_data = len(self.data["index"])
        total = int(self.recipe.batch_size or 0) if self.rows is not None else num_data
        part = ranks.share(total)
        self.weight_of_part = (part.stop - part.start) / total
        self.rows_of_part = part.stop - part.start, num_data
        if self.rows is not None:
            self.part = part
        else:
            self.data = {k: v[part].clone() if k in self.row_keys else v for k, v in self.data.items()}

    def _compile_both(self) -> None:
        """Compile gradient and update, or neither."""
        example = self._gradient_inputs(self._example_rows())
        gradient = compile_function(
            lambda *v: self._gradient(*v, tracing=True), example, eager=self._gradient, fixed=self._fixed(len(example))
        )
        self._go_eager(gradient.reason)
        if gradient.compiled:
            bucket = torch.cat([self.state.theta, self.rate.new_zeros(1)])
            update = compile_function(self._joint_update, [*self._update_inputs(), bucket])
            if update.compiled:
                self.program, self.update = gradient, update
            else:
                self._go_eager(update.reason)

    def _go_eager(self, reason: str) -> None:
        self.program, self.update = Program(self._gradient, reason), Program(self._joint_update, reason)

    def agree(self) -> None:
        """Run compiled on all ranks or on none, since their updates have to agree to the last bit.

        Raises:
            RankError: If another rank is lost.
        """
        if self.ranks is not None:
            reason = next(filter(None, self.ranks.texts(self.program.reason)), "")
            if reason:
                self._go_eager(reason)

    @property
    def start(self) -> str:
        """A digest of the parameters now; before the first step, of the point where the fit starts."""
        return hashlib.sha256(self.state.theta.detach().cpu().numpy().tobytes()).hexdigest()[:16]

    def restart(self, batch: Batch, *, seed: int, pair: Pair | None = None) -> None:
        """Begin a new fit on other data of the same shapes; what was compiled serves it too.

        Args:
            batch: Training batch, with the entries, shapes and types of the first.
            seed: Of the new fit's random stream, initial values included.
            pair: The same pair built anew with this seed, from which initial values are taken. Without one, layers
                that were built outside of the pair begin at new random values.

        Raises:
            DataError: If an entry has another shape.
        """
        data = {k: _to(v, self.dtype, self.device) for k, v in batch.items()}
        for key, like in self.data.items():
            if key not in data or data[key].shape != like.shape or data[key].dtype != like.dtype:
                raise DataError(f"batch entry '{key}' must be {like.dtype} of shape {tuple(like.shape)}, as before")
        self.data = {k: data[k] for k in self.data}
        rng = seeded(seed, self.device)
        with self._world(), stream(rng):
            fresh = self._discover(pair or self.pair, renew=pair is None).values
        self.state = State(
            theta=torch.cat([fresh[n].reshape(-1) for n in self.layout.names]),
            moments=[torch.zeros_like(m) for m in self.state.moments],
            counts=torch.zeros_like(self.state.counts),
            step=torch.zeros_like(self.state.step),
            buffers=self._first_buffers(),
            rng=rng,
            order=None if self.rows is None else Order.fresh(self.rows, int(self.recipe.batch_size or 0), seed),
        )
        if self.program.kept:  # numbers that were read from the former data
            self._compile(wanted=True)

    # -------------------------------------------------------------------------------------------- one step
    @contextmanager
    def _world(self, *, validate: bool = False) -> Iterator[None]:
        # Gradients are taken, whatever mode the caller is in.
        with pyro_world(dtype=self.dtype, device=self.device, validate=validate), torch.enable_grad():
            yield

    def _discover(self, pair: Pair, *, renew: bool) -> Layout:
        """Run every loss once, with validation, in the fit's own store."""
        batch = self._batch(self._example_rows())
        guide: Any = pair.guide
        functions = self.functions if pair is self.pair else estimates_of(pair.objective)

        first = FirstValues()

        def gradient() -> None:
            for function in functions:
                loss_and_grads(function, pair.model, guide, [], batch)

        def run() -> None:
            model_trace, guide_trace = traces(pair.model, guide, batch)
            if any(subtracts_guide(function.loss) for function in functions):
                with stream(seeded(0, self.device)):  # or the fit would have other random numbers for it
                    check_guide(guide, batch)
            _check_sites(model_trace, guide_trace)
            check_trace(model_trace)
            if self.ranks is not None:
                self._check_scale(model_trace)
            for function in functions:
                evaluate(function, pair.model, guide, batch)

        def run_and_find_averages() -> None:
            with first:
                run()
            with stream(seeded(self.seed, self.device)):
                found = find_averages(gradient, first)
            for name in found:
                del pyro.get_param_store()[name]
            self.averages = {n: v.to(self.device, self.dtype) for n, v in found.items()}

        try:
            closures = (pair.model, guide, *(f.loss for f in functions))
            return discover(run_and_find_averages, closures, dtype=self.dtype, device=self.device, renew=renew)
        except ZooError:
            raise
        except Exception as error:  # of the user's code
            raise pair_error(error, batch) from error

    def _first_buffers(self) -> list[Tensor]:
        return [b.clone() for b in (*self.layout.buffer_values.values(), *self.averages.values())]

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers of the pair's modules, in the layout's order."""
        return self.state.buffers[: len(self.layout.buffers)]

    def check_rows(self) -> None:
        """Check the rows that the first mini-batch does not hold: shapes, arguments and supports.

        Raises:
            PairError: If the pair fails on some of them, or observes what it cannot have produced.
        """
        if self.rows is None:  # the first batch holds all of them
            return
        guide: Any = self.pair.guide
        whole = frozenset(self.data) - frozenset(self.row_keys)

        def trace(batch: Mapping[str, Tensor]) -> Any:
            return traces(self.pair.model, guide, batch)[0]

        bound = self.layout.bind(self._leaves(self.state.theta), [b.clone() for b in self.buffers])
        with self._world(validate=True), stream(seeded(self.seed, self.device)), torch.no_grad(), bound:
            check_rows(trace, self.data, whole=whole, batch_size=self.part.stop - self.part.start)

    def _check_scale(self, model_trace: Any) -> None:
        """Raise unless something observed is scaled from this rank's rows to all: the parts would not add up."""
        rows, num_data = self.rows_of_part

        def scaled(site: Any) -> bool:
            if any(f.size == rows and f.full_size == num_data for f in site["cond_indep_stack"]):
                return True
            scale = torch.as_tensor(site["scale"], dtype=torch.float64)  # of poutine.scale
            return torch.allclose(scale, torch.full_like(scale, num_data / rows))

        if not any(scaled(model_trace.nodes[name]) for name in model_trace.observation_nodes):
            raise PairError(
                "the pair does not scale its rows from a part of the data to all of them, so that ranks cannot share "
                "them; write pyro.plate(NAME, NUM_DATA, subsample=batch['index'])"
            )

    def _mask(self, pattern: str) -> Tensor | None:
        import re

        parts = [
            torch.full((s,), bool(re.match(pattern, n)) and n not in self.layout.hidden)
            for n, s in zip(self.layout.names, self.sizes, strict=True)
        ]
        mask = torch.cat(parts)
        if not bool(mask.any()):
            names = ", ".join(n for n in self.layout.names if n not in self.layout.hidden) or "none that is not hidden"
            raise PairError(f"no parameter matches '{pattern}'; parameters: {names}")
        return None if bool(mask.all()) else mask.to(self.device)

    def _example_rows(self) -> Tensor:
        return torch.arange(self.part.stop - self.part.start, device=self.device)

    def _batch(self, rows: Tensor, data: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        data = self.data if data is None else data
        if self.rows is None:
            return dict(data)
        return {k: v[rows] if k in self.row_keys else v for k, v in data.items()}

    def _inputs(self, rows: Tensor) -> list[Tensor]:
        s = self.state
        return [s.theta, *s.moments, s.counts, s.step, self.rate, self.weight, rows, *s.buffers, *self.data.values()]

    def _traceable_step(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._step(*inputs, tracing=True)

    def _step(
        self, *inputs: Tensor, tracing: bool = False, seen: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, ...]:
        """One step as a pure function: state tensors and rows -> losses and the next state's tensors."""
        # Every loss and its gradient are appended to `seen`, for the replay of a step that failed.
        k = len(self.losses)
        theta, moments, (counts, step, rate, weight, rows) = inputs[0], list(inputs[1 : k + 1]), inputs[k + 1 : k + 6]
        n = k + 6 + len(self.state.buffers)
        buffers = [b.clone() for b in inputs[k + 6 : n]]
        batch = self._batch(rows, dict(zip(self.data, inputs[n:], strict=True)))
        lr = rate.index_select(0, step.view(1)).view(())
        kl = weight.index_select(0, step.view(1)).view(()) if self.recipe.kl_warmup > 0 else None
        values, new_counts = [], []
        for i, loss in enumerate(self.losses):
            count = counts[i]
            for _ in range(loss.steps):
                leaves = self._leaves(theta)
                kept = [b.clone() for b in buffers] if self.skip else []
                own = len(self.layout.buffers)
                with self.layout.bind(leaves, buffers[:own], tracing=tracing):
                    put(self.averages, buffers[own:])
                    value, grads = loss_and_grads(
                        loss.function, self.pair.model, self.pair.guide, self._held(leaves), batch, kl
                    )
                    buffers = buffers[:own] + take(self.averages)
                gradient = torch.cat([g.reshape(-1) for g in grads])
                if seen is not None:
                    seen.append((value, gradient))
                before = (theta, moments[i], count)
                count = count + 1
                theta, moments[i] = self._update(theta, gradient, moments[i], count, lr, loss.mask)
                if self.skip:
                    fine = torch.isfinite(value) & torch.isfinite(theta).all()
                    theta, moments[i], count = (
                        torch.where(fine, new, old) for new, old in zip((theta, moments[i], count), before, strict=True)
                    )
                    buffers = [torch.where(fine, new, old) for new, old in zip(buffers, kept, strict=True)]
                    value = torch.where(fine, value, torch.full_like(value, torch.nan))
            values.append(value)
            new_counts.append(count)
        return (torch.stack(values), theta, *moments, torch.stack(new_counts), step + 1, *buffers)

    def _gradient_inputs(self, rows: Tensor) -> list[Tensor]:
        return [self.state.theta, self.state.step, self.weight, rows, *self.data.values()]

    def _slope_inputs(self, rows: Tensor) -> list[Tensor]:
        s = self.state
        return [s.theta, s.step, self.weight, rows, *s.buffers, *self.data.values()]

    def _slope(self, *inputs: Tensor, tracing: bool = False) -> tuple[Tensor, ...]:
        """The loss and its gradient, for an optimiser of the user's: state tensors -> loss, gradient, buffers."""
        theta, step, weight, rows = inputs[:4]
        end, own = 4 + len(self.state.buffers), len(self.layout.buffers)
        buffers = [b.clone() for b in inputs[4:end]]
        batch = self._batch(rows, dict(zip(self.data, inputs[end:], strict=True)))
        kl = weight.index_select(0, step.view(1)).view(()) if self.recipe.kl_warmup > 0 else None
        leaves = self._leaves(theta)
        with self.layout.bind(leaves, buffers[:own], tracing=tracing):
            put(self.averages, buffers[own:])
            value, grads = loss_and_grads(
                self.losses[0].function, self.pair.model, self.pair.guide, self._held(leaves), batch, kl
            )
            buffers = buffers[:own] + take(self.averages)
        gradient = torch.cat([g.reshape(-1) for g in grads])
        if self.recipe.clip_norm is not None:
            gradient = gradient * (self.recipe.clip_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
        return (value.view(1), gradient, *buffers)

    def _run_by_optimiser(self, count: int, before: State, optim: PyroOptim) -> Tensor:
        """Take steps by an optimiser of the user's, on gradients that are compiled."""
        s, found = self.state, []
        if self._optimiser is None or self._optimiser[0] is not s.theta:
            passes = 1.0 if self.rows is None else self.rows / int(self.recipe.batch_size or self.rows)
            factors = (self.rate / self.recipe.learning_rate).cpu()
            own = Optimiser(optim, self.layout, self.leaves, None if bool((factors == 1).all()) else factors, passes)
            self._optimiser = s.theta, own
        optimiser, mask = self._optimiser[1], self.losses[0].mask
        moves = [True] * len(self.sizes) if mask is None else [bool(m.any()) for m in mask.split(self.sizes)]
        gradient = torch.empty_like(s.theta)
        try:
            rows = None if s.order is None else s.order.take(count).to(self.device)
            with self._world(), _flushed(), stream(s.rng):
                for i in range(count):
                    inputs = self._slope_inputs(self._example_rows() if rows is None else rows[i])
                    back = [-1, -1, *[-1] * len(s.buffers)]
                    found.append(self.program.run(inputs, back=back, out=[None, gradient, *s.buffers])[0])
                    optimiser.step(int(s.step), gradient.split(self.sizes), moves)
                    s.step += 1
        except BaseException:
            self.state = before
            raise
        losses = torch.stack(found)
        if not bool(torch.isfinite(losses).all() & torch.isfinite(s.theta).all()):
            first = next((i for i, v in enumerate(losses.flatten().tolist()) if not math.isfinite(v)), count - 1)
            at, self.state = int(before.step) + first, before
            error = NonFiniteError(
                f"step {at}: loss {losses[first].tolist()} or the parameters after it are not finite; try a smaller "
                "learning rate in optimizer, clip_norm, or dtype='float64'"
            )
            error.params = self.layout.constrained(self.values)
            raise error
        s.history.append(losses.cpu())
        return losses

    def call(self, callback: Callback) -> bool:
        """Call a function of the user's between two steps.

        Args:
            callback: The function; it may change the parameters.

        Returns:
            Whether the fit shall stop.
        """
        recent = torch.cat(self.state.history[-callback.every :])[-callback.every :]
        with self._world(), stream(seeded(self.seed, self.device)):
            return callback(int(self.state.step), recent, self.layout, self.leaves)

    @property
    def leaves(self) -> list[Tensor]:
        """Unconstrained parameters, which share their memory with the state."""
        return self._leaves(self.state.theta)

    def _update_inputs(self) -> list[Tensor]:
        s = self.state
        return [s.theta, s.moments[0], s.counts, s.step, self.rate]

    def _gradient(self, *inputs: Tensor, tracing: bool = False) -> tuple[Tensor]:
        """Gradient and loss of this rank's rows in one tensor, weighted so that the ranks' sum is that of the batch."""
        theta, step, weight, rows = inputs[:4]
        batch = self._batch(rows, dict(zip(self.data, inputs[4:], strict=True)))
        kl = weight.index_select(0, step.view(1)).view(()) if self.recipe.kl_warmup > 0 else None
        leaves = self._leaves(theta)
        with self.layout.bind(leaves, tracing=tracing):
            value, grads = loss_and_grads(
                self.losses[0].function, self.pair.model, self.pair.guide, self._held(leaves), batch, kl
            )
        return (torch.cat([*(g.reshape(-1) for g in grads), value.view(1)]) * self.weight_of_part,)

    def _joint_update(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The update by the ranks' sum: state tensors -> losses and the next state's tensors."""
        theta, moments, counts, step, rate, bucket = inputs
        gradient, value = bucket[:-1], bucket[-1:]
        lr = rate.index_select(0, step.view(1)).view(())
        new, new_moments = self._update(theta, gradient, moments, counts[0] + 1, lr, None)
        new_counts, value = counts + 1, value.clone()
        if self.skip:
            fine = torch.isfinite(value[0]) & torch.isfinite(new).all()
            new, new_moments, new_counts = (
                torch.where(fine, a, b) for a, b in ((new, theta), (new_moments, moments), (new_counts, counts))
            )
            value = torch.where(fine, value, torch.full_like(value, torch.nan))
        return (value, new, new_moments, new_counts, step + 1)

    def _joint_step(self, gradient: Program, update: Program, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step on all ranks; return the losses, and gradient and loss of this rank's rows."""
        assert self.ranks is not None
        s = self.state
        _seed(self.ranks.noise(self.seed, int(s.step)), self.device)
        mine = gradient.run(self._gradient_inputs(rows), back=[-1], out=[None])[0]
        bucket = mine.clone()
        self.ranks.sum(bucket)
        inputs, written = [*self._update_inputs(), bucket], [s.theta, s.moments[0], s.counts, s.step]
        losses = update.run(inputs, back=[-1] * 5, out=[None, *written])[0]
        return losses, mine

    def _leaves(self, theta: Tensor) -> list[Tensor]:
        parts = theta.detach().split(self.sizes)
        return [p.view(s).detach().requires_grad_(True) for p, s in zip(parts, self.shapes, strict=True)]

    def _held(self, leaves: list[Tensor]) -> list[Tensor]:
        """Return what the store holds now: the leaves, unless a module put its own tensor in their place."""
        params = pyro.get_param_store()._params
        return [params.get(n, leaf) for n, leaf in zip(self.layout.names, leaves, strict=True)]

    def _update(
        self, theta: Tensor, gradient: Tensor, moments: Tensor, count: Tensor, lr: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r = self.recipe
        if mask is not None:
            gradient = torch.where(mask, gradient, torch.zeros_like(gradient))
        if r.clip_norm is not None:
            gradient = gradient * (r.clip_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
        if r.weight_decay and r.optimizer != "adamw":
            gradient = gradient + r.weight_decay * theta
        first, second = moments[0], moments[1]
        if r.optimizer == "sgd":
            first = _MOMENTUM * first + gradient
            change = lr * first
        else:
            first = first + (gradient - first) * (1 - _BETA1)
            second = second * _BETA2 + gradient * gradient * (1 - _BETA2)
            scale = (second / (1 - _BETA2**count)).sqrt() + _EPSILON
            change = lr * (first / (1 - _BETA1**count)) / scale
        if r.optimizer == "adamw":
            change = change + lr * r.weight_decay * theta
        new = theta - change
        if mask is not None:
            new = torch.where(mask, new, theta)
        return new, torch.stack([first, second])

    # ------------------------------------------------------------------------------------------ many steps
    def run(self, count: int) -> Tensor:
        """Take steps, as one uninterruptible block of this fit's random stream.

        Args:
            count: Number of steps, at most those left.

        Returns:
            Losses, ``(count, num_losses)``.

        Raises:
            NonFiniteError: If a loss or parameter is not finite; the state is the last one that was. With ``skip``: if
                that is so for a hundred steps in a row.
            BaseException: As it came, for example ctrl-C; the state is that before the block.
        """
        before = self.state.copy()
        s, k = self.state, len(self.losses)
        if self.ranks is not None:
            return self._run_joint(count, before)
        if self.optim is not None:
            return self._run_by_optimiser(count, before, self.optim)
        rows = self._example_rows() if s.order is None else s.order.take(count).to(self.device)
        inputs, written = self._inputs(rows), [s.theta, *s.moments, s.counts, s.step, *s.buffers]
        back = [-1, *range(k + 3), *range(k + 6, k + 6 + len(s.buffers))]
        each = -1 if s.order is None else k + 5
        try:
            with self._world(), _flushed(), stream(s.rng):
                found = self.program.run(inputs, steps=count, back=back, out=[None, *written], each=each)
        except BaseException:
            self.state = before
            raise
        return self._kept(found, before)

    def _run_joint(self, count: int, before: State) -> Tensor:
        s = self.state
        try:
            rows = None if s.order is None else s.order.take(count)[:, self.part].to(self.device)
            with self._world(), _flushed(), stream(s.rng):
                found = torch.stack([
                    self._joint_step(self.program, self.update, self._example_rows() if rows is None else rows[i])[0]
                    for i in range(count)
                ])
        except BaseException:
            self.state = before
            raise
        return self._kept(found, before)

    def _kept(self, found: Tensor, before: State) -> Tensor:
        """Add the losses of a block to the history, or go back to the state before it."""
        s, count = self.state, len(found)
        fine = bool(torch.isfinite(found).all() & torch.isfinite(s.theta).all())
        if not fine and not self.skip:
            self.state = before
            raise self._failed(count)
        s.history.append(found.cpu())
        if not fine and not bool(torch.isfinite(torch.cat(s.history)[-_MOST_SKIPPED:, 0]).any()):
            self.state = before
            raise self._failed(count)
        return found

    def _failed(self, count: int) -> NonFiniteError:
        """Advance to the last good state, and return what is said of the step after it."""
        good, error = self._blame(count) if self.ranks is None else self._blame_jointly(count, self.ranks)
        if good:
            start = self.state.copy()
            try:
                self.run(good)  # by the program that failed, not by the eager replay
            except NonFiniteError:
                self.state = start
        error.params = self.layout.constrained(self.values)
        return error

    def _blame(self, count: int) -> tuple[int, NonFiniteError]:
        """Replay eagerly: return the number of good steps, and what names the step, site and parameter that failed."""
        trial = self.state.copy()
        keep, self.state = self.state, trial
        try:
            rows = trial.order.take(count).to(self.device) if trial.order is not None else None
            with self._world(), stream(trial.rng):
                for i in range(count):
                    row = rows[i] if rows is not None else self._example_rows()
                    entry = {k: v.clone() for k, v in trial.rng.items()} | {"cpu": torch.get_rng_state()}
                    seen: list[tuple[Tensor, Tensor]] = []
                    out = self._step(*self._inputs(row), seen=seen)
                    k = len(self.losses)
                    if not bool(torch.isfinite(out[0]).all() & torch.isfinite(out[1]).all()):
                        where = self._first_bad_site(row, entry)
                        return i, NonFiniteError(
                            f"step {int(trial.step)}: loss {out[0].tolist()}: {where}{self._first_bad_gradient(seen)}; "
                            f"try a smaller learning_rate, clip_norm, or dtype='float64'"
                        )
                    trial.theta, trial.moments, trial.counts = out[1], list(out[2 : k + 2]), out[k + 2]
                    trial.step, trial.buffers = out[k + 3], list(out[k + 4 :])
        finally:
            self.state = keep
        return 0, self._not_blamed(count)

    def _blame_jointly(self, count: int, ranks: Ranks) -> tuple[int, NonFiniteError]:
        """Replay eagerly on all ranks: return the number of good steps, and what the first rank that failed says."""
        keep, self.state = self.state, self.state.copy()
        trial = self.state
        gradient, update = Program(self._gradient), Program(self._joint_update)
        try:
            rows = None if trial.order is None else trial.order.take(count)[:, self.part].to(self.device)
            with self._world(), stream(trial.rng):
                for i in range(count):
                    row = self._example_rows() if rows is None else rows[i]
                    start = trial.copy()
                    loss, mine = self._joint_step(gradient, update, row)
                    if bool(torch.isfinite(loss).all() & torch.isfinite(trial.theta).all()):
                        continue
                    self.state, text = start, ""
                    if not bool(torch.isfinite(mine).all()):
                        entry = seeded(ranks.noise(self.seed, int(start.step)), self.device)
                        site = self._first_bad_site(row, entry) + self._first_bad_gradient([(mine[-1], mine[:-1])])
                        text = f"rank {ranks.rank}: {site}"
                    told = next(filter(None, ranks.texts(text)), "the sum over the ranks overflowed")
                    return i, NonFiniteError(
                        f"step {int(start.step)}: loss {loss.tolist()}: {told}; try a smaller learning_rate, "
                        f"clip_norm, or dtype='float64'"
                    )
        finally:
            self.state = keep
        return 0, self._not_blamed(count)

    def _not_blamed(self, count: int) -> NonFiniteError:
        keep = self.state
        return NonFiniteError(
            f"a loss between steps {int(keep.step)} and {int(keep.step) + count} is not finite when compiled but "
            f"finite when run eagerly; use compile=False and report this pair"
        )

    def _first_bad_site(self, rows: Tensor, entry: dict[str, Tensor]) -> str:
        batch = self._batch(rows)
        guide: Any = self.pair.guide
        bad = [
            n
            for n, v in zip(self.layout.names, self.state.theta.split(self.sizes), strict=True)
            if not bool(torch.isfinite(v).all())
        ]
        if bad:
            return f"parameter '{bad[0]}' is not finite"
        with stream(entry), torch.no_grad(), self.layout.bind(self._leaves(self.state.theta), self.buffers):
            model_trace, guide_trace = traces(self.pair.model, guide, batch)
        for who, trace in (("guide", guide_trace), ("model", model_trace)):
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or (
                    who == "model" and name in guide_trace.nodes and not site["is_observed"]
                ):
                    continue
                if not bool(torch.isfinite(site["value"]).all()):
                    return f"the value of {who} site '{name}' is not finite"
                if not bool(torch.isfinite(site["fn"].log_prob(site["value"])).all()):
                    return f"the log density of {who} site '{name}' is not finite"
        return "no site's log density is infinite: the gradient overflowed"

    def _first_bad_gradient(self, seen: list[tuple[Tensor, Tensor]]) -> str:
        for value, gradient in seen:
            for name, part in zip(self.layout.names, gradient.split(self.sizes), strict=True):
                if not bool(torch.isfinite(part).all()):
                    return f", nor is the gradient of parameter '{name}'"
            if not bool(torch.isfinite(value)):
                break
        return ""

    # ---------------------------------------------------------------------------------------------- results
    @property
    def values(self) -> dict[str, Tensor]:
        """Unconstrained parameters by name."""
        parts = self.state.theta.split(self.sizes)
        return {n: p.view(s).clone() for n, p, s in zip(self.layout.names, parts, self.shapes, strict=True)}


def _to(value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    value = value.clone() if value.is_inference() else value  # which no gradient may meet
    return value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)


def _seed(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _check_sites(model_trace: Any, guide_trace: Any) -> None:
    """Raise unless the guide covers the model's latents: all of them, save those that are enumerated or subsampled."""
    latent = {n for n in model_trace.stochastic_nodes if model_trace.nodes[n]["infer"].get("enumerate") != "parallel"}
    latent -= {n for n in latent if is_plate(model_trace.nodes[n])}
    covered = {n for n in guide_trace.stochastic_nodes if not is_plate(guide_trace.nodes[n])}
    auxiliary = {n for n in covered if guide_trace.nodes[n]["infer"].get("is_auxiliary")}
    missing, surplus = sorted(latent - covered), sorted(covered - set(model_trace.nodes) - auxiliary)
    if missing:
        raise PairError(f"the guide has no site for the model's latent '{missing[0]}'; it has {sorted(covered)}")
    if surplus:
        raise PairError(f"the guide samples '{surplus[0]}', which is not in the model; it has {sorted(latent)}")
