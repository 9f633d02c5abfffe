r"""Deep ensemble: several networks from different random starts, of which every posterior draw is one.

Layer :math:`l` maps :math:`h` to :math:`\mathrm{relu}(h W_l + b_l)`, without the relu in the last one; in a
convolutional layer :math:`h W_l` is a convolution, and 2 x 2 max pooling follows the relu. With :math:`A_l` weights
that lead to one unit,

.. math::

    W_l \sim \mathrm{N}(0, s^2 / A_l), \qquad b_l \sim \mathrm{N}(0, 1), \qquad
    y \sim \mathrm{Cat}(\mathrm{softmax}(h)),

or, where the target is a number, :math:`y \sim \mathrm{N}(h, \sigma^2)` with
:math:`\log \sigma \sim \mathrm{N}(-1, 1)`.
The guide is a uniform mixture of :math:`M` point masses, the members: :math:`m` is drawn, and every weight is that of
member :math:`m`. Training minimises the sum of the members' negative log joint densities, so that each is the maximum
of the posterior that it reaches from its own start; they do not see each other. A prediction is the mean over members.

=================  ===========  ============  =============================================================
symbol             site         plate         meaning
=================  ===========  ============  =============================================================
:math:`W_l`        ``W_l``      ``unit_l``    weights, ``(inputs, outputs)``; of a convolution
                                              ``(filters, channels, 5, 5)`` in the plate ``channel_l``
:math:`b_l`        ``b_l``      ``unit_l+1``  biases; in the last layer's plate ``output``, of a convolution in
                                              that of its filters
:math:`\sigma`     ``sigma``                  noise, only with a number as target
:math:`y`          ``y``        ``datum``     target, observed
=================  ===========  ============  =============================================================

Deviations. Members share the order of the rows. A number as target has one noise per member, not one that depends on
the features, and there is no adversarial training; decay is that of the prior. The mixture is no approximation of the
posterior in any sense that a bound would measure: the entropy of the point masses is left out.

.. code-block:: bibtex

    @inproceedings{lakshminarayanan2017simple,
      title     = {Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles},
      author    = {Lakshminarayanan, Balaji and Pritzel, Alexander and Blundell, Charles},
      booktitle = {Advances in Neural Information Processing Systems},
      volume    = {30},
      year      = {2017}
    }
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

import zoo
from zoo.errors import DataError
from zoo.models._parts.networks import Network, located, network_model, plates
from zoo.types import Acceptance, Alternating, Batch, Claim, Dataset, Loss, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["METHOD", "Hyper", "build", "sites", "summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        num_members: Networks in the ensemble.
        hidden: Units of each hidden fully connected layer.
        channels: Filters of each convolutional layer (5 x 5, no padding), every one followed by 2 x 2 max pooling; they
            stand before the fully connected layers.
        prior_scale: Prior width ``s``: the standard deviation of a weight times the root of the weights that lead to
            one unit. ``None``: 8 for classes, 1 for a number as target, as for ``map_network``.
    """

    num_members: int = 5
    hidden: tuple[int, ...] = (100, 100)
    channels: tuple[int, ...] = ()
    prior_scale: float | None = None


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with features ``x``, ``(rows, ...)``, classes or standardised numbers ``y``, and ``index``;
            ``extra["num_classes"]`` for classes; with convolutional layers ``extra["image_shape"]``.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch, and the loss that trains all members at every step.

    Raises:
        DataError: If a hyper-parameter is out of range, or the data are no images large enough for the filters.
    """
    num = hyper.num_members
    if num < 1:
        raise DataError(f"num_members is {num}; an ensemble needs at least one")
    net = Network.of(data, hidden=hyper.hidden, channels=hyper.channels)

    def member(index: Tensor) -> None:
        for site, plate in net.plated():
            loc = located(site, num).index_select(0, index).squeeze(0)
            with plate:
                pyro.sample(site.name, dist.Delta(loc, event_dim=len(site.shape) - 1))
        if not net.num_classes:
            sigma = pyro.param("sigma_loc", lambda: torch.full((num,), math.exp(-1.0)), constraint=constraints.positive)
            pyro.sample("sigma", dist.Delta(sigma.index_select(0, index).squeeze(0)))

    def guide(batch: Batch) -> None:
        member(torch.randint(num, (1,), device=batch["x"].device))

    def loss(model: Callable[[Batch], Any], _: Callable[[Batch], Any], batch: Batch) -> Tensor:
        total = batch["x"].new_zeros(())
        for m in range(num):
            trace = poutine.trace(member).get_trace(torch.full((1,), m, device=batch["x"].device))
            total = total - poutine.trace(poutine.replay(model, trace=trace)).get_trace(batch).log_prob_sum()
        return total

    model = network_model(data, net, prior_scale=hyper.prior_scale)
    return Pair(model, guide, Alternating((Loss(name="members", function=loss),)))


# ---------------------------------------------------------------------------------------- quantities of interest
def summary(posterior: Posterior) -> dict[str, float]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        Number of members and of weights of each, and how much members differ on the training rows: the mean total
        variation distance of their class probabilities from the averaged ones, or the standard deviation of their means
        in target units.
    """
    prediction = posterior.predict(n=50)
    weights = sum(v[0].numel() for k, v in posterior.params.items() if k.startswith(("W_", "b_")))
    found: dict[str, float] = {"members": posterior.hyper.num_members, "weights of a member": weights}
    if "y" in prediction.probs:
        probs = prediction.probs["y"]
        found["distance of members from their mean"] = float(0.5 * (probs - probs.mean(0)).abs().sum(-1).mean())
    else:
        scale = posterior.data.target.scale if posterior.data.target else 1.0
        found["spread of predictions between members"] = float(prediction.means["y"].std(0).mean()) * scale
    return found


# -------------------------------------------------------------------------------------------------------- claims
def _measure_digits(seed: int, fast: bool) -> dict[str, float]:
    """Fit digits by ensembles of one and of five; ``fast`` takes few steps.

    Returns:
        Test error in percent, log loss in nats and Brier score of both.
    """
    data = zoo.datasets.load("digits", seed=seed)
    found: dict[str, float] = {}
    for num in (1, 5):
        posterior = zoo.fit(
            METHOD, data, hyper=Hyper(num_members=num), seed=seed, compile=not fast, steps=60 if fast else None
        )
        prediction = posterior.predict(data.test, n=20 if fast else 400)
        scores = zoo.tasks.get("classification").score(prediction, data.split("test"), data)
        found |= {
            f"error of {num}": 100 * scores["error"],
            f"nll of {num}": scores["nll"],
            f"brier of {num}": scores["brier"],
        }
    return found


CLAIMS = (
    Claim(
        statement="Five networks together predict better than one: lower error, log loss and Brier score.",
        published="MNIST: error, log loss and Brier score all fall with the number of networks (figure, no number)",
        source="Lakshminarayanan, Pritzel, Blundell (2017), fig. 2a",
        measure=_measure_digits,
        acceptance=(
            Acceptance(key="error of 5", below="error of 1"),
            Acceptance(key="nll of 5", below="nll of 1"),
            Acceptance(key="brier of 5", below="brier of 1"),
        ),
        budget=60,
        seeds=5,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it; with a number as target there is ``sigma`` too.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    return plates(hidden=hyper.hidden, channels=hyper.channels)


METHOD = Method(
    name="deep_ensemble",
    title="Deep ensemble: several networks from different random starts",
    paper="lakshminarayanan2017simple",
    task="classification",
    other_tasks=("regression",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(num_members=3, hidden=(20, 10)),
    default_data="digits",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=3_000, learning_rate=2e-3, batch_size=128, schedule="cosine"),
    summary=summary,
    use_when="You want an average of networks that needs no tuning beyond that of one, and can pay for training and "
    "keeping several. On small, easy data the gain over one network is small (see the claims).",
    avoid_when="Memory or time for predictions is short: both grow with the number of members. Draws of weights are "
    "what you need: there are only as many different ones as members.",
    needs="A table or images with classes or a number as target, features on one scale (pixels in [0, 1], standardised "
    "columns).",
)
