"""The update of Pyro's Adam optimisers as a pure function of tensors, so that it can be part of a compiled step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.optim import _load_state_dict
from torch import Tensor

__all__ = ["Rule", "Slots", "advance", "rules", "update"]

_EXACT = (torch.optim.Adam, torch.optim.AdamW, ClippedAdam)


@dataclass(frozen=True, slots=True)
class Rule:
    """How one parameter is updated; all that is not a tensor, so that a change of it asks for another program.

    Args:
        betas: Decay rates of the two moments.
        epsilon: Added to the root of the second moment.
        weight_decay: Rate.
        decoupled: Whether weight decay bypasses the moments (AdamW).
        clip: Largest absolute entry of a gradient; ``None`` leaves it as it is.
        centred: Whether the second moment is of the gradient minus the first (an option of ClippedAdam).
    """

    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    decoupled: bool
    clip: float | None
    centred: bool


@dataclass(slots=True)
class Slots:
    """The state of the optimiser, in the tensors in which Pyro keeps it.

    Args:
        first: First moments, one per parameter.
        second: Second moments.
        rates: Learning rates and numbers of steps, this one included, ``(2, parameters)``, float64.
    """

    first: list[Tensor]
    second: list[Tensor]
    rates: Tensor


def rules(optim: PyroOptim, params: Sequence[Tensor]) -> tuple[Rule, ...] | None:
    """Return how each parameter is updated, registering those that the optimiser has not seen yet.

    Args:
        optim: One of Pyro's optimisers.
        params: Unconstrained parameters of the store.

    Returns:
        One rule per parameter; ``None`` if the optimiser is no plain Adam, AdamW or ClippedAdam.
    """
    if type(optim) is not PyroOptim or optim.pt_optim_constructor not in _EXACT or optim.pt_clip_args:
        return None
    found = []
    for p in params:
        own = optim.optim_objs.get(p)
        if own is None:  # as PyroOptim.__call__ does
            own = optim.optim_objs[p] = optim._get_optim(p)
            optim.grad_clip[p] = None
            waiting = optim._state_waiting_to_be_consumed.pop(pyro.get_param_store().param_name(p), None)
            if waiting is not None:
                _load_state_dict(own, waiting)
        group = own.param_groups[0]
        if group.get("amsgrad") or group.get("maximize") or group.get("capturable") or group.get("differentiable"):
            return None
        found.append(
            Rule(
                betas=tuple(group["betas"]),
                epsilon=group["eps"],
                weight_decay=group["weight_decay"],
                decoupled=isinstance(own, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay")),
                clip=group.get("clip_norm"),
                centred=bool(group.get("centered_variance")),
            )
        )
    return tuple(found)


def advance(optim: PyroOptim, params: Sequence[Tensor]) -> Slots:
    """Count one step, and return the state that the step reads and writes.

    Args:
        optim: An optimiser that :func:`rules` accepted.
        params: The parameters.

    Returns:
        The state; rates decay as ClippedAdam asks.
    """
    first, second, rates, steps = [], [], [], []
    for p in params:
        own = optim.optim_objs[p]
        group, state = own.param_groups[0], own.state[p]
        counts = isinstance(own, ClippedAdam)
        if counts:
            group["lr"] *= group["lrd"]
        if not state:
            state["step"] = 0 if counts else torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        first.append(state["exp_avg"])
        second.append(state["exp_avg_sq"])
        rates.append(float(group["lr"]))
        steps.append(float(state["step"]))
    return Slots(first, second, torch.tensor([rates, steps], dtype=torch.float64))


def update(
    rules: Sequence[Rule], params: Sequence[Tensor], grads: Sequence[Tensor], slots: Slots
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the parameters and moments after a step, as torch's and Pyro's own loops compute them.

    Args:
        rules: One per parameter.
        params: Their values.
        grads: Their gradients.
        slots: State of the optimiser.

    Returns:
        New parameters, first and second moments.
    """
    new: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for i, (rule, p, g) in enumerate(zip(rules, params, grads, strict=True)):
        rate, step = slots.rates[0, i], slots.rates[1, i]
        if rule.clip is not None:
            g = g.clamp(-rule.clip, rule.clip)
        if rule.weight_decay and rule.decoupled:
            p = p * (1 - rate * rule.weight_decay).to(p.dtype)
        elif rule.weight_decay:
            g = g + rule.weight_decay * p
        a, b = rule.betas
        first = slots.first[i] + (g - slots.first[i]) * (1 - a)
        spread = g - first if rule.centred else g
        second = slots.second[i] * b + spread * spread * (1 - b)
        if rule.clip is None:  # torch's Adam: epsilon is added to the corrected root; Pyro's adds it to the plain one
            scale = second.sqrt() / (1 - b**step).sqrt().to(p.dtype) + rule.epsilon
            size = (rate / (1 - a**step)).to(p.dtype)
        else:
            scale = second.sqrt() + rule.epsilon
            size = (rate * (1 - b**step).sqrt() / (1 - a**step)).to(p.dtype)
        for values, value in zip(new, (p - size * first / scale, first, second), strict=True):
            values.append(value)
    return new
