"""One state: all that an SVI step reads and writes. A checkpoint is this object saved; resume is this object loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoo.errors import ArtifactError

__all__ = ["Order", "State"]


@dataclass
class Order:
    """Position in the data: a stream of permutations of the rows, cut into batches of one size.

    The last, short batch of an epoch is filled from the next permutation, so every step has the same shape.

    Args:
        num_rows: Rows of the training set.
        batch_size: Rows per step.
        generator_state: State of the stream that shuffles.
        permutation: Current permutation; empty before the first batch.
        cursor: Rows of it already used.
    """

    num_rows: int
    batch_size: int
    generator_state: Tensor
    permutation: Tensor
    cursor: int = 0

    @classmethod
    def fresh(cls, num_rows: int, batch_size: int, seed: int) -> Order:
        """Return the order of a new fit.

        Args:
            num_rows: Rows of the training set.
            batch_size: Rows per step.
            seed: Of the shuffling stream.

        Returns:
            An order before its first batch.
        """
        empty = torch.empty(0, dtype=torch.int64)
        return cls(num_rows, batch_size, torch.Generator().manual_seed(seed).get_state(), empty)

    def take(self, count: int) -> Tensor:
        """Return the rows of the next batches.

        Args:
            count: Number of batches.

        Returns:
            Row positions, ``(count, batch_size)``.
        """
        wanted = count * self.batch_size
        parts, have = [self.permutation[self.cursor :]], len(self.permutation) - self.cursor
        if have < wanted:
            generator = torch.Generator()
            generator.set_state(self.generator_state)
            while have < wanted:
                parts.append(torch.randperm(self.num_rows, generator=generator))
                have += self.num_rows
            self.generator_state = generator.get_state()
            rest = have - wanted
            self.permutation, self.cursor = parts[-1], self.num_rows - rest
        else:
            self.cursor += wanted
        return torch.cat(parts)[:wanted].view(count, self.batch_size)


@dataclass
class State:
    """All that a step reads and writes.

    Args:
        theta: Every unconstrained parameter, one after the other, ``(num_parameters,)``.
        moments: Per loss: first and second moment of the gradient, ``(2, num_parameters)``.
        counts: Per loss: optimiser steps taken, ``(num_losses,)``.
        step: Steps taken, scalar int64 tensor (an input of the graph: schedules are read at it).
        buffers: What the program's modules write (batch statistics), then what the loss keeps (averages of baselines).
        rng: Random state of this fit's stream.
        order: Position in the data; ``None`` when every step sees all of it.
        history: Losses so far, ``(step, num_losses)``.
    """

    theta: Tensor
    moments: list[Tensor]
    counts: Tensor
    step: Tensor
    buffers: list[Tensor]
    rng: dict[str, Tensor]
    order: Order | None
    history: list[Tensor] = field(default_factory=list)

    def copy(self) -> State:
        """Return a state that later steps do not change.

        Returns:
            A copy; the history's finished chunks are shared.
        """
        order = None if self.order is None else Order(**vars(self.order))
        return State(
            theta=self.theta.clone(),
            moments=[m.clone() for m in self.moments],
            counts=self.counts.clone(),
            step=self.step.clone(),
            buffers=[b.clone() for b in self.buffers],
            rng=dict(self.rng),
            order=order,
            history=list(self.history),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors, for a checkpoint.

        Returns:
            Name -> tensor, on the CPU.
        """
        found = {"theta": self.theta, "counts": self.counts, "step": self.step}
        found |= {f"moments.{i}": m for i, m in enumerate(self.moments)}
        found |= {f"buffers.{i}": b for i, b in enumerate(self.buffers)}
        found |= {f"rng.{k}": v for k, v in self.rng.items()}
        if self.history:
            found["history"] = torch.cat(self.history)
        if self.order is not None:
            found["order.generator_state"] = self.order.generator_state
            found["order.permutation"] = self.order.permutation
            found["order.numbers"] = torch.tensor([self.order.num_rows, self.order.batch_size, self.order.cursor])
        return {k: v.detach().cpu().contiguous() for k, v in found.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved state in place.

        Args:
            tensors: What :meth:`tensors` returned, for the same method, hyper-parameters and data.

        Raises:
            ArtifactError: If an entry is missing or of another shape or type.
        """
        mine = self.tensors()
        free = {"history", "order.permutation"}
        for name, value in mine.items():
            if name in free:
                continue
            found = tensors.get(name)
            if found is None or found.shape != value.shape or found.dtype != value.dtype:
                got = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise ArtifactError(f"checkpoint: '{name}' is {got}; this fit has {value.dtype} {tuple(value.shape)}")
        self._check(tensors)
        device = self.theta.device
        self.theta = tensors["theta"].to(device).clone()
        self.counts = tensors["counts"].to(device).clone()
        self.step = tensors["step"].to(device).clone()
        self.moments = [tensors[f"moments.{i}"].to(device).clone() for i in range(len(self.moments))]
        self.buffers = [tensors[f"buffers.{i}"].to(device).clone() for i in range(len(self.buffers))]
        self.rng = {k: tensors[f"rng.{k}"].clone() for k in self.rng}
        self.history = [tensors["history"].clone()] if "history" in tensors else []
        if self.order is not None:
            rows, size, cursor = tensors["order.numbers"].tolist()
            if (rows, size) != (self.order.num_rows, self.order.batch_size):
                raise ArtifactError(
                    f"checkpoint: {rows} rows in batches of {size}; this fit has {self.order.num_rows} in batches of "
                    f"{self.order.batch_size}"
                )
            self.order = Order(
                rows, size, tensors["order.generator_state"].clone(), tensors["order.permutation"].clone(), cursor
            )

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise unless the entries whose shapes and values change during a fit are ones that a fit could have."""
        rows = int(tensors["step"])
        history = tensors.get("history", torch.empty(0, len(self.counts), dtype=self.theta.dtype))
        if history.shape != (rows, len(self.counts)) or not history.is_floating_point():
            raise ArtifactError(
                f"checkpoint: 'history' is {history.dtype} {tuple(history.shape)} at step {rows} of "
                f"{len(self.counts)} losses"
            )
        if not bool(torch.isfinite(tensors["theta"]).all()):
            raise ArtifactError("checkpoint: its parameters hold NaN or infinite values")
        states = [tensors[f"rng.{k}"] for k in self.rng if k == "cpu"]
        if self.order is not None:
            states.append(tensors["order.generator_state"])
            order, cursor = tensors.get("order.permutation", torch.empty(1)), int(tensors["order.numbers"][2])
            whole = torch.arange(self.order.num_rows if len(order) else 0)
            if not torch.equal(order.sort().values, whole) or not 0 <= cursor <= len(order):
                raise ArtifactError("checkpoint: its order of the rows is none, or its position is outside of it")
        for state in states:
            try:
                torch.Generator().set_state(state)
            except (RuntimeError, TypeError) as error:
                raise ArtifactError("checkpoint: its random state is none") from error
