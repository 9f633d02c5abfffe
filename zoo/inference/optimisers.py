"""The update of Pyro's Adam optimisers as a pure function of tensors, so that it can be part of a compiled step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.optim import _load_state_dict
from torch import Tensor

from zoo.errors import PairError

__all__ = ["Rule", "Slots", "as_pyro", "bind", "update"]

_EXACT = (torch.optim.Adam, torch.optim.AdamW, ClippedAdam)
_REFUSED = ("amsgrad", "maximize", "capturable", "differentiable")
_READ = (*_REFUSED, "betas", "eps", "weight_decay", "decoupled_weight_decay", "clip_norm", "centered_variance", "lrd")


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
        decay: Factor of the learning rate at every step (of ClippedAdam).
    """

    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    decoupled: bool
    clip: float | None
    centred: bool
    decay: float


class Slots:
    """The state of an optimiser for some parameters, in the tensors in which Pyro keeps it.

    Args:
        optim: One of Pyro's optimisers.
        params: The parameters.
        owns: torch's optimisers, one per parameter.

    Attributes:
        rules: One per parameter.
        first: First moments.
        second: Second moments.
        rates: Learning rates and numbers of steps before the next one, ``(2, parameters)``, float64.
    """

    def __init__(self, optim: PyroOptim, params: Sequence[Tensor], owns: Sequence[Any]) -> None:
        self.params, self.owns = list(params), list(owns)
        self.groups = [own.param_groups[0] for own in owns]
        self.rules = tuple(_rule(own) for own in owns)
        for own, p in zip(owns, params, strict=True):
            if not own.state[p]:
                step = 0 if isinstance(own, ClippedAdam) else torch.tensor(0.0)
                own.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        self.states = [own.state[p] for own, p in zip(owns, params, strict=True)]
        self.first = [state["exp_avg"] for state in self.states]
        self.second = [state["exp_avg_sq"] for state in self.states]
        # Counters that are tensors become entries of one, so that a step adds once.
        counted = [state for state in self.states if isinstance(state["step"], Tensor)]
        self.counter = torch.stack([state["step"] for state in counted]) if counted else None
        self.views = [] if self.counter is None else list(self.counter)
        for state, view in zip(counted, self.views, strict=True):
            state["step"] = view
        self.counted = counted
        self.plain = [state for state in self.states if not isinstance(state["step"], Tensor)]
        self.read = [tuple(map(group.get, _READ)) for group in self.groups]
        self._take()

    def _take(self) -> None:
        self.lr = [float(group["lr"]) for group in self.groups]
        steps = [float(state["step"]) for state in self.states]
        self.rates = torch.tensor([self.lr, steps], dtype=torch.float64)
        self.version = None if self.counter is None else self.counter._version
        self.steps = [state["step"] for state in self.plain]

    def current(self, optim: PyroOptim, params: Sequence[Tensor]) -> bool:
        """Return whether this is still the optimiser's state, taking over changed learning rates and step counts.

        Args:
            optim: The optimiser.
            params: The parameters.

        Returns:
            False if the optimiser holds other tensors now, or other rules.
        """
        objects = optim.optim_objs
        for p, mine, own, group, state, read in zip(
            params, self.params, self.owns, self.groups, self.states, self.read, strict=True
        ):
            if p is not mine or objects.get(p) is not own or own.param_groups[0] is not group:
                return False
            if own.state.get(p) is not state or tuple(map(group.get, _READ)) != read:
                return False
        # Another program may count the steps of the same optimiser elsewhere.
        if any(state["step"] is not view for state, view in zip(self.counted, self.views, strict=True)):
            return False
        version = None if self.counter is None else self.counter._version
        moved = self.version != version or self.steps != [state["step"] for state in self.plain]
        if moved or self.lr != [group["lr"] for group in self.groups]:
            self._take()
        return True

    def advance(self, steps: int, idle: Collection[int] = ()) -> None:
        """Count steps that a program has taken, where Pyro counts them.

        Args:
            steps: How many; :attr:`rates` is as after them.
            idle: Parameters that it has passed by.
        """
        if self.counter is not None:
            if idle:
                moved = [steps * (i not in idle) for i, s in enumerate(self.states) if isinstance(s["step"], Tensor)]
                self.counter += torch.tensor(moved)
            else:
                self.counter += steps
            self.version = self.counter._version
        if self.plain:
            self.lr = self.rates[0].tolist()
            for rate, group in zip(self.lr, self.groups, strict=True):
                group["lr"] = rate
            for i, state in enumerate(self.states):
                if i not in idle and not isinstance(state["step"], Tensor):
                    state["step"] += steps
            self.steps = [state["step"] for state in self.plain]


def _rule(own: Any) -> Rule:
    group = own.param_groups[0]
    return Rule(
        betas=tuple(group["betas"]),
        epsilon=group["eps"],
        weight_decay=group["weight_decay"],
        decoupled=isinstance(own, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay")),
        clip=group.get("clip_norm"),
        centred=bool(group.get("centered_variance")),
        decay=group.get("lrd", 1.0),
    )


def as_pyro(optim: Any, options: dict[str, Any], *, name: str = "optim") -> PyroOptim:
    """Return an optimiser as one of Pyro's.

    Args:
        optim: One of Pyro's optimisers or schedulers, or a class of :mod:`torch.optim`.
        options: Arguments for such a class.
        name: What the caller calls it.

    Returns:
        The optimiser.

    Raises:
        PairError: If it is neither, or needs what a step of SVI does not have.
    """
    allowed = "an optimiser of pyro.optim, such as pyro.optim.Adam({'lr': 0.01}), or a class of torch.optim"
    if isinstance(optim, type) and issubclass(optim, torch.optim.Optimizer):
        if optim is torch.optim.LBFGS:
            raise PairError(f"LBFGS evaluates the loss several times per step, which SVI does not; allowed: {allowed}")
        return PyroOptim(optim, options)
    if isinstance(optim, torch.optim.Optimizer):
        raise PairError(
            f"{name} is an instance of {type(optim).__name__}, which holds parameters of its own; allowed: {allowed}"
        )
    if not isinstance(optim, PyroOptim):
        what = f"the function {getattr(optim, '__name__', '')}" if callable(optim) else f"a {type(optim).__name__}"
        raise PairError(f"{name} is {what}; allowed: {allowed}")
    return optim


def bind(optim: PyroOptim, params: Sequence[Tensor]) -> Slots | None:
    """Return the state of an optimiser for some parameters, registering those that it has not seen yet.

    Args:
        optim: One of Pyro's optimisers.
        params: Unconstrained parameters of the store.

    Returns:
        The state; ``None`` if the optimiser is no plain Adam, AdamW or ClippedAdam.
    """
    if type(optim) is not PyroOptim or optim.pt_optim_constructor not in _EXACT or optim.pt_clip_args:
        return None
    owns = []
    for p in params:
        own = optim.optim_objs.get(p)
        if own is None:  # as PyroOptim.__call__ does
            own = optim.optim_objs[p] = optim._get_optim(p)
            optim.grad_clip[p] = None
            waiting = optim._state_waiting_to_be_consumed.pop(pyro.get_param_store().param_name(p), None)
            if waiting is not None:
                _load_state_dict(own, waiting)
        if any(own.param_groups[0].get(name) for name in _REFUSED):
            return None
        owns.append(own)
    return Slots(optim, params, owns)


def update(
    rules: Sequence[Rule],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    rates: Tensor,
    *,
    idle: Collection[int] = (),
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Return the parameters and the state after a step, as torch's and Pyro's own loops compute them.

    Args:
        rules: One per parameter.
        params: Their values.
        grads: Their gradients.
        first: First moments.
        second: Second moments.
        rates: Learning rates and numbers of steps before this one, ``(2, parameters)``.
        idle: Parameters that have no gradient, and are passed by.

    Returns:
        New parameters, first and second moments, and rates.
    """
    new: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    decays = [rule.decay for rule in rules]
    lr = rates[0] if set(decays) == {1.0} else rates[0] * torch.tensor(decays, dtype=rates.dtype)
    after = torch.stack([lr, rates[1] + 1])
    if idle:
        moves = torch.tensor([i not in idle for i in range(len(params))])
        after = torch.where(moves, after, rates)
    for i, (rule, p, g) in enumerate(zip(rules, params, grads, strict=True)):
        if i in idle:
            for values, value in zip(new, (p, first[i], second[i]), strict=True):
                values.append(value.clone())
            continue
        rate, step = after[0, i], after[1, i]
        if rule.clip is not None:
            g = g.clamp(-rule.clip, rule.clip)
        if rule.weight_decay and rule.decoupled:
            p = p * (1 - rate * rule.weight_decay).to(p.dtype)
        elif rule.weight_decay:
            g = g + rule.weight_decay * p
        a, b = rule.betas
        new_first = first[i] + (g - first[i]) * (1 - a)
        spread = g - new_first if rule.centred else g
        new_second = second[i] * b + spread * spread * (1 - b)
        if rule.clip is None:  # torch's Adam: epsilon is added to the corrected root; Pyro's adds it to the plain one
            scale = new_second.sqrt() / (1 - b**step).sqrt().to(p.dtype) + rule.epsilon
            size = (rate / (1 - a**step)).to(p.dtype)
        else:
            scale = new_second.sqrt() + rule.epsilon
            size = (rate * (1 - b**step).sqrt() / (1 - a**step)).to(p.dtype)
        for values, value in zip(new, (p - size * new_first / scale, new_first, new_second), strict=True):
            values.append(value)
    return *new, after
