"""Objectives as data, turned into Pyro's estimators and into losses with gradients."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from zoo.errors import PairError
from zoo.inference.arguments import Called, plain
from zoo.inference.sites import is_plate
from zoo.types import Alternating, Batch, Elbo, Loss, Objective

__all__ = [
    "Estimate",
    "KLWeight",
    "enumerated_bound",
    "estimates_of",
    "evaluate",
    "identity_of",
    "loss_and_grads",
    "losses_of",
    "subtracts_guide",
    "to_pyro",
]

# Pyro's estimators that torch.jit traces, and the same ones without it.
_TRACED = {
    JitTrace_ELBO: Trace_ELBO,
    JitTraceMeanField_ELBO: TraceMeanField_ELBO,
    JitTraceGraph_ELBO: TraceGraph_ELBO,
    JitTraceEnum_ELBO: TraceEnum_ELBO,
}


def to_pyro(elbo: Elbo) -> ELBO:
    """Return Pyro's estimator for an objective, for use in a plain ``SVI`` loop too.

    Args:
        elbo: The objective.

    Returns:
        An instance of the matching subclass of :class:`pyro.infer.ELBO`.
    """
    nesting = float("inf") if elbo.max_plate_nesting is None else elbo.max_plate_nesting
    shared: dict[str, Any] = {
        "num_particles": elbo.num_particles,
        "vectorize_particles": elbo.vectorize_particles,
        "max_plate_nesting": nesting,
    }
    if elbo.estimator == "renyi":
        return RenyiELBO(alpha=elbo.alpha, **shared)
    kinds = {
        "trace": Trace_ELBO,
        "mean_field": _AnalyticDivergences,
        "graph": TraceGraph_ELBO,
        "enum": TraceEnum_ELBO,
    }
    return kinds[elbo.estimator](**shared)


class _AnalyticDivergences(TraceMeanField_ELBO):  # type: ignore[misc]
    """Pyro's ELBO with analytic divergences, which warns only where one of them may be wrong.

    The divergence of a latent may be taken analytically if nothing that it depends on in the model depends on it in the
    guide. Pyro warns wherever guide and model differ in the order of their latents. Here the latents are asked whose
    divergence is analytic: whatever stands before one in the model must stand before it in the guide.
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        traces = Trace_ELBO._get_trace(self, model, guide, args, kwargs)
        if is_validation_enabled():
            _warn_of_wrong_divergences(*traces)
        return traces


def _warn_of_wrong_divergences(model: Any, guide: Any) -> None:
    names = [n for n, s in model.nodes.items() if s["type"] == "sample" and n in guide.nodes]
    order = [n for n in guide.nodes if n in names]
    for at, name in enumerate(names):
        late = set(order[order.index(name) + 1 :]) & set(names[:at])
        if late and _analytic(guide.nodes[name]["fn"], model.nodes[name]["fn"]):
            warnings.warn(
                f"the divergence of '{name}' is taken analytically, which is wrong if '{name}' depends on "
                f"'{min(late)}' in the model and '{min(late)}' on '{name}' in the guide; sample both in the same "
                "order, or take the estimator 'trace'",
                stacklevel=2,
            )


def _analytic(guide: Any, model: Any) -> bool:
    try:
        kl_divergence(guide, model)
    except NotImplementedError:
        return False
    return True


class Estimate:
    """A loss of model and guide as Pyro's ``SVI`` takes it, evaluated with its gradient.

    Args:
        loss: One of Pyro's estimators, an object of another class with a method ``loss_and_grads``, or a function
            ``loss(model, guide, *args, **kwargs)`` -> scalar tensor. An estimator that ``torch.jit`` would trace is
            evaluated by its plain twin.

    Attributes:
        rehearsals: How often Pyro runs the loss before its first value, to trace it; each draws random numbers.
        rehearses_always: Whether it does so before every value.

    Raises:
        PairError: If it is none of these.
    """

    def __init__(self, loss: Any) -> None:
        self.loss = _untraced(loss)
        jit = getattr(loss, "__self__", loss)
        self.rehearsals = 2 if isinstance(jit, tuple(_TRACED)) else 0
        self.rehearses_always = isinstance(jit, JitTraceMeanField_ELBO)  # which forgets what it traced
        method = getattr(self.loss, "loss_and_grads", None)
        self._method = method if callable(method) else None
        kind = type(self.loss)
        if isinstance(self.loss, ReweightedWakeSleep) and kind.loss_and_grads is ReweightedWakeSleep.loss_and_grads:
            self._method = self._wake_and_sleep

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the loss and add its gradient to that of the parameters.

        Args:
            model: The model.
            guide: The guide.
            *args: Arguments of both.
            **kwargs: Likewise.

        Returns:
            The loss, a number or a scalar tensor; the sum of the losses where the estimator has several, as
            :class:`pyro.infer.ReweightedWakeSleep` has.

        Raises:
            PairError: If a function returns no scalar tensor, or one without a gradient.
        """
        if self.rehearses_always:
            self.rehearse(model, guide, *args, **kwargs)
        if self._method is not None:
            found = self._method(model, guide, *args, **kwargs)
            return sum(found[1:], start=found[0]) if isinstance(found, tuple) else found
        value = self.loss(model, guide, *args, **kwargs)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            got = f"a {type(value).__name__}"
            if isinstance(value, Tensor):
                got = f"a tensor of shape {tuple(value.shape)}" + ("" if value.requires_grad else " without a gradient")
            raise PairError(
                f"the loss {_name(self.loss)} returned {got}; it must return a scalar tensor that depends on the "
                "parameters"
            )
        value = value.reshape(())
        value.backward()
        return value.detach()

    def evaluate(self, model: Callable[..., Any], guide: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> None:
        """Run the loss without its gradient.

        Args:
            model: The model.
            guide: The guide.
            *args: Arguments of both.
            **kwargs: Likewise.
        """
        run = self.loss if self._method is None else getattr(self.loss, "loss", self._method)
        run(model, guide, *args, **kwargs)

    def rehearse(self, model: Callable[..., Any], guide: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> None:
        """Draw the random numbers that the loss draws under Pyro while ``torch.jit`` traces it.

        Args:
            model: The model.
            guide: The guide.
            *args: Arguments of both.
            **kwargs: Likewise.
        """
        with torch.no_grad(), poutine.block():
            for _ in range(self.rehearsals):
                self.evaluate(model, guide, *args, **kwargs)

    def _wake_and_sleep(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As Pyro does, but for reading the two numbers out of their tensors."""
        wake, phi = self.loss._loss(model, guide, args, kwargs)
        total: Tensor = wake + phi
        total.backward()
        return total.detach()

    def finite(self) -> Estimate:
        """Return one whose loss is a number to be watched, with the same gradient.

        Returns:
            Itself, except for :class:`pyro.infer.TraceTailAdaptive_ELBO`, whose loss Pyro leaves at infinity: there
            the loss is the weighted sum that has the gradient.
        """
        if not isinstance(self.loss, TraceTailAdaptive_ELBO):
            return self
        kind = type(self.loss)

        def particle(own: Any, model_trace: Any, guide_trace: Any) -> Any:
            _, surrogate = kind._differentiable_loss_particle(own, model_trace, guide_trace)
            return surrogate.detach(), surrogate

        twin = copy.copy(self.loss)
        # Pyro has no method ``loss`` for it either.
        own = {"_differentiable_loss_particle": particle, "loss": Trace_ELBO.differentiable_loss}
        twin.__class__ = type(kind.__name__, (kind,), own)
        return Estimate(twin)

    def own(self) -> Estimate:
        """Return one that does not change the loss that it was made of: Pyro's estimators remember what they guess.

        Returns:
            An estimate of the same loss.
        """
        owner = getattr(self.loss, "__self__", None)
        if isinstance(owner, ELBO):
            return Estimate(getattr(copy.copy(owner), self.loss.__name__))
        return Estimate(copy.copy(self.loss)) if isinstance(self.loss, ELBO) else self


def _untraced(loss: Any) -> Any:
    """Return a loss without torch.jit, or raise if it is none."""
    owner = getattr(loss, "__self__", None)
    if isinstance(owner, ELBO):  # a method, such as ``differentiable_loss``
        return getattr(_untraced(owner), loss.__name__)
    if isinstance(loss, type):
        raise PairError(f"loss is the class {loss.__name__}; hand in an estimator: {loss.__name__}()")
    if type(loss) in _TRACED:
        twin: Any = object.__new__(_TRACED[type(loss)])
        twin.__dict__.update({k: v for k, v in vars(loss).items() if not k.startswith("_")})
        return twin
    if isinstance(loss, tuple(_TRACED)):
        base = next(kind for kind in _TRACED if isinstance(loss, kind))
        raise PairError(
            f"{type(loss).__name__} extends {base.__name__}, which torch.jit traces on its own; derive it from "
            f"{_TRACED[base].__name__}"
        )
    if not callable(loss) and not callable(getattr(loss, "loss_and_grads", None)):
        raise PairError(
            f"loss is a {type(loss).__name__}; allowed: one of Pyro's estimators, a zoo.types.Elbo, or a function "
            "loss(model, guide, *args, **kwargs)"
        )
    return loss


def _name(loss: Any) -> str:
    return repr(getattr(loss, "__qualname__", type(loss).__name__))


def enumerated_bound(
    estimator: ELBO, model: Callable[..., Any], guide: Callable[..., Any] | None, batch: Batch
) -> Tensor:
    """Evaluate the bound of one draw of the guide, discrete latents summed out, as a tensor and not as a number.

    Args:
        estimator: A :class:`pyro.infer.TraceEnum_ELBO`.
        model: The model.
        guide: The guide.
        batch: The batch.

    Returns:
        Scalar.
    """
    parts = estimator._get_traces(model, guide, (batch,), {})
    return torch.as_tensor(sum(_compute_dice_elbo(*traces) for traces in parts))


def subtracts_guide(function: Any) -> bool:
    """Tell whether a loss takes the whole log density of the guide off that of the model.

    Args:
        function: Of an objective.

    Returns:
        Whether it does; of a user's own function or subclass of Pyro's, nothing is known.
    """
    own = type(function).__module__.partition(".")[0] not in ("pyro", "zoo")
    return isinstance(function, Elbo | ELBO) and not own


def losses_of(objective: Objective) -> tuple[Loss, ...]:
    """Return the objective as a tuple of named losses.

    Args:
        objective: Of a pair.

    Returns:
        One loss named ``elbo`` (``loss`` for a function), or the losses of :class:`~zoo.types.Alternating`.
    """
    if isinstance(objective, Alternating):
        return objective.losses
    name = "elbo" if isinstance(objective, Elbo | ELBO) else "loss"
    return (Loss(name=name, function=objective, trains=objective.trains if isinstance(objective, Elbo) else ""),)


def estimates_of(objective: Objective) -> list[Estimate]:
    """Return what a fit minimises.

    Args:
        objective: Of a pair.

    Returns:
        One estimate per loss, whose loss is finite.

    Raises:
        PairError: If a loss is none.
    """
    found = [
        Estimate(to_pyro(s.function) if isinstance(s.function, Elbo) else s.function) for s in losses_of(objective)
    ]
    return [estimate.own().finite() for estimate in found]


def identity_of(objective: Objective) -> list[dict[str, Any]]:
    """Return what an objective is, for comparison with that of another fit.

    Args:
        objective: Of a pair.

    Returns:
        One mapping per loss, as far as JSON can hold it.
    """
    return [
        _described(s.function) | {"name": s.name, "trains": s.trains, "steps": s.steps} for s in losses_of(objective)
    ]


def _described(loss: Any) -> dict[str, Any]:
    if isinstance(loss, Elbo):
        return dataclasses.asdict(loss)
    owner = getattr(loss, "__self__", None)
    if isinstance(owner, ELBO):
        return _described(owner) | {"method": loss.__name__}
    if isinstance(loss, ELBO):
        options = {k: v for k, v in vars(loss).items() if isinstance(v, bool | int | float | str)}
        return {"estimator": type(loss).__name__} | options
    return {"estimator": type(loss).__name__}


class KLWeight(Messenger):  # type: ignore[misc]
    """Scale every latent term of model and guide: the weight of the KL divergence during warm-up.

    Args:
        weight: A scalar tensor, so that it may change between steps of one graph.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not is_plate(msg):
            msg["scale"] = msg["scale"] * self.weight


def loss_and_grads(
    function: Estimate,
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    leaves: Sequence[Tensor],
    batch: Batch,
    weight: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Evaluate one loss and its gradient with respect to the leaves, inside a bound layout.

    Args:
        function: The loss.
        model: The model.
        guide: The guide.
        leaves: Tensors that require gradients.
        batch: The batch.
        weight: Weight of the latent terms; ``None`` is one.

    Returns:
        The loss, detached, and one gradient per leaf (zeros where the loss does not depend on it).
    """
    model, guide, args, kwargs = _as_written(model, guide, batch)
    if weight is not None:
        model, guide = _weighted(model, weight), _weighted(guide, weight)
    for leaf in leaves:
        leaf.grad = None
    found = function(model, guide, *args, **kwargs)
    loss = torch.as_tensor(found, dtype=leaves[0].dtype if leaves else None).detach()
    grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return loss, grads


def evaluate(function: Estimate, model: Callable[..., Any], guide: Callable[..., Any] | None, batch: Batch) -> None:
    """Run a loss without its gradient, so that all that it reads is made.

    Args:
        function: The loss.
        model: The model.
        guide: The guide.
        batch: The batch.
    """
    model, guide, args, kwargs = _as_written(model, guide, batch)
    function.evaluate(model, guide, *args, **kwargs)


def _as_written(model: Any, guide: Any, batch: Batch) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    """Return model and guide as their author wrote them, and their arguments: the loss may pass others to them."""
    args, kwargs = model.signature.fill(batch) if isinstance(model, Called) else ((batch,), {})
    return plain(model), plain(guide), args, kwargs


def _weighted(program: Callable[..., Any] | None, weight: Tensor) -> Any:
    # As a handler around a program, in which Pyro finds a guide that is a handler of the model.
    return None if program is None else KLWeight(weight)(program)
