"""Objectives as data, turned into Pyro's estimators and into losses with gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from zoo.inference.sites import is_plate
from zoo.types import Alternating, Batch, Elbo, Loss, Objective

__all__ = ["KLWeight", "enumerated_bound", "loss_and_grads", "losses_of", "subtracts_guide", "to_pyro"]


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


def losses_of(objective: Objective | ELBO) -> tuple[Loss, ...]:
    """Return the objective as a tuple of named losses.

    Args:
        objective: Of a pair, or one of Pyro's estimators.

    Returns:
        One loss named ``elbo``, or the losses of :class:`~zoo.types.Alternating`.
    """
    if isinstance(objective, Alternating):
        return objective.losses
    return (Loss(name="elbo", function=objective, trains=objective.trains if isinstance(objective, Elbo) else ""),)


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
    function: ELBO | Callable[..., Tensor],
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    leaves: Sequence[Tensor],
    batch: Batch,
    weight: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Evaluate one loss and its gradient with respect to the leaves, inside a bound layout.

    Args:
        function: Pyro's estimator, or ``function(model, guide, batch)`` -> scalar tensor.
        model: The model.
        guide: The guide.
        leaves: Tensors that require gradients.
        batch: The batch.
        weight: Weight of the latent terms; ``None`` is one.

    Returns:
        The loss, detached, and one gradient per leaf (zeros where the loss does not depend on it).
    """
    if weight is not None:
        model, guide = _weighted(model, weight), _weighted(guide, weight)
    for leaf in leaves:
        leaf.grad = None
    if isinstance(function, ELBO):
        loss = function.loss_and_grads(model, guide, batch)
    else:
        value = function(model, guide, batch)
        value.backward()
        loss = value
    loss = torch.as_tensor(loss, dtype=leaves[0].dtype if leaves else None).detach()
    grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return loss, grads


def _weighted(program: Callable[..., Any] | None, weight: Tensor) -> Any:
    # As a handler around a program, in which Pyro finds a guide that is a handler of the model.
    return None if program is None else KLWeight(weight)(program)
