"""What a user puts between the steps of a fit: an optimiser of one's own, and a callback."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor

from zoo.errors import DataError
from zoo.inference.optimisers import as_pyro
from zoo.inference.program import Layout
from zoo.types import Recipe

__all__ = ["Callback", "Optimiser", "Parameters", "optimiser_of"]


class Parameters(MutableMapping[str, Tensor]):
    """The parameters of a fit between two steps, as ``pyro.param`` returns them; what is written counts.

    A value may be set (``params["loc"] = value``) or changed in place (``params["loc"].clamp_(min=0.1)``).

    Args:
        layout: Names and constraints.
        leaves: Unconstrained values, one per name, which share their memory with the fit's state.
    """

    def __init__(self, layout: Layout, leaves: Sequence[Tensor]) -> None:
        self._layout, self._leaves = layout, dict(zip(layout.names, leaves, strict=True))
        self._seen: dict[str, tuple[Tensor, int]] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._seen:
            value = self._layout.constrained({name: self._leaves[name].detach()})[name].clone()
            self._seen[name] = value, value._version
        return self._seen[name][0]

    def __setitem__(self, name: str, value: Tensor) -> None:
        new = self._layout.unconstrained({name: torch.as_tensor(value)})[name]
        self._seen.pop(name, None)
        with torch.no_grad():
            self._leaves[name].detach().copy_(new)

    def __delitem__(self, name: str) -> None:
        raise DataError(f"parameter '{name}' cannot be taken out of a fit")

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def write_back(self) -> None:
        """Take over what was changed in place.

        Raises:
            DataError: If a value lies outside of its constraint.
        """
        for name, (value, version) in list(self._seen.items()):
            if value._version != version:
                self[name] = value


class Callback:
    """A function that is called between steps, and may stop the fit.

    Args:
        function: ``function(step, losses, params)``: the steps taken so far, the losses since the last call, ``(steps,
            num_losses)``, and the parameters, which may be changed. It stops the fit by returning ``True``. Within it
            ``pyro.param`` returns the fit's parameters, too.
        every: Steps between calls.
    """

    def __init__(self, function: Callable[[int, Tensor, Parameters], Any], every: int) -> None:
        self.function, self.every = function, every

    def __call__(self, step: int, losses: Tensor, layout: Layout, leaves: Sequence[Tensor]) -> bool:
        """Call the function.

        Args:
            step: Steps taken so far.
            losses: Since the last call.
            layout: Of the fit.
            leaves: Its unconstrained parameters, changed in place.

        Returns:
            Whether the fit shall stop.

        Raises:
            DataError: If the function sets a parameter to what it cannot be.
        """
        params = Parameters(layout, leaves)
        with layout.bind(leaves):
            found = self.function(step, losses, params)
        params.write_back()
        return found is True


class Optimiser:
    """One of Pyro's optimisers for the parameters of one fit, begun anew.

    Args:
        optim: The optimiser, whose own state is not touched.
        layout: Names and constraints.
        leaves: Unconstrained values, which share their memory with the fit's state.
        factors: By which the learning rate is multiplied at every step; ``None``: it stays.
        passes: After how many steps a scheduler takes a step: those of a pass over the data.

    Raises:
        DataError: If a schedule is asked of an optimiser that has no learning rate, or its own schedule.
    """

    def __init__(
        self, optim: PyroOptim, layout: Layout, leaves: Sequence[Tensor], factors: Tensor | None, passes: float
    ) -> None:
        self.optim = copy.copy(optim)
        self.optim.optim_objs, self.optim.grad_clip, self.optim._state_waiting_to_be_consumed = {}, {}, {}
        self.layout, self.leaves, self.factors, self.passes = layout, list(leaves), factors, passes
        self.rates: dict[int, float] = {}
        if factors is not None and isinstance(optim, PyroLRScheduler):
            raise DataError("schedule and warmup are those of the learning rate, which this optimizer schedules itself")

    def step(self, at: int, gradients: Sequence[Tensor], trained: Sequence[bool]) -> None:
        """Take a step.

        Args:
            at: Its number, from 0.
            gradients: One per parameter.
            trained: Which parameters move.

        Raises:
            DataError: If a schedule is asked of an optimiser that has no learning rate.
        """
        for leaf, gradient, moves in zip(self.leaves, gradients, trained, strict=True):
            leaf.grad = gradient.view_as(leaf) if moves else None
        params = dict(zip(self.layout.names, self.leaves, strict=True))
        store = pyro.get_param_store()
        with store.scope({"params": params, "constraints": dict(self.layout.constraints)}):
            moving = [leaf for leaf in self.leaves if leaf.grad is not None]
            if self.factors is not None:
                self._schedule(float(self.factors[at]), moving)
            self.optim(moving)
        if isinstance(self.optim, PyroLRScheduler) and int((at + 1) / self.passes) > int(at / self.passes):
            self.optim.step()

    def _schedule(self, factor: float, moving: Sequence[Tensor]) -> None:
        for leaf in moving:
            if leaf not in self.optim.optim_objs:  # as PyroOptim does at its first step
                self.optim.optim_objs[leaf] = self.optim._get_optim(leaf)
                self.optim.grad_clip[leaf] = self.optim._get_grad_clip(leaf)
            for group in self.optim.optim_objs[leaf].param_groups:
                if "lr" not in group:
                    raise DataError(
                        "schedule and warmup are those of a learning rate, which this optimizer does not have"
                    )
                group["lr"] = self.rates.setdefault(id(group), group["lr"]) * factor


def optimiser_of(optimizer: Any, recipe: Recipe, given: Mapping[str, Any]) -> tuple[PyroOptim, str]:
    """Return an optimiser for a fit, and its name.

    Args:
        optimizer: One of Pyro's optimisers or schedulers, or a class of :mod:`torch.optim`.
        recipe: Of the fit: its learning rate and weight decay are those of a class.
        given: What the user asked for.

    Returns:
        One of Pyro's optimisers, and the name of torch's class in it.

    Raises:
        DataError: If the user asks for what the optimiser itself has.
    """
    plain = isinstance(optimizer, type)
    options: dict[str, Any] = {"lr": recipe.learning_rate}
    if recipe.weight_decay:
        options["weight_decay"] = recipe.weight_decay
    optim = as_pyro(optimizer, options, name="optimizer")
    name = getattr(optim.pt_optim_constructor, "__name__", str(optim.pt_optim_constructor))
    for field in ("learning_rate", "weight_decay"):
        if not plain and given.get(field) is not None:
            raise DataError(f"{field} is {given[field]!r}, but optimizer has its own; set it there")
    return optim, name
