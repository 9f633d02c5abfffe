r"""A network at the maximum of its posterior: the point estimate that every Bayesian network is compared with.

Layer :math:`l` maps :math:`h` to :math:`\mathrm{relu}(h W_l + b_l)`, without the relu in the last one; in a
convolutional layer :math:`h W_l` is a convolution, and 2 x 2 max pooling follows the relu. With :math:`A_l` weights
that lead to one unit,

.. math::

    W_l \sim \mathrm{N}(0, s^2 / A_l), \qquad b_l \sim \mathrm{N}(0, 1), \qquad
    y \sim \mathrm{Cat}(\mathrm{softmax}(h)),

or, where the target is a number, :math:`y \sim \mathrm{N}(h, \sigma^2)` with
:math:`\log \sigma \sim \mathrm{N}(-1, 1)`.
The guide is a point mass, so that the bound is the log joint density, and its maximum is weight decay: the negative log
likelihood of :math:`N` rows plus :math:`\tfrac12 \sum_l A_l \lVert W_l \rVert^2 / s^2`.

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

Deviations. The paper studies decay of one strength for all weights in the squared error of a linear network and one
hidden layer; here its strength falls with a layer's width, as the prior's standard deviation is relative to that, and
the likelihood is that of the data. It is no Bayesian method: it draws the same weights every time, and what it says of
its own certainty is the softmax's.

.. code-block:: bibtex

    @inproceedings{krogh1992simple,
      title     = {A Simple Weight Decay Can Improve Generalization},
      author    = {Krogh, Anders and Hertz, John A.},
      booktitle = {Advances in Neural Information Processing Systems},
      volume    = {4},
      pages     = {950--957},
      year      = {1992}
    }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist

import zoo
from zoo.models._parts.networks import Network, located, network_model, noise_guide, plates
from zoo.types import Acceptance, Batch, Claim, Dataset, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["METHOD", "Hyper", "build", "sites", "summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        hidden: Units of each hidden fully connected layer.
        channels: Filters of each convolutional layer (5 x 5, no padding), every one followed by 2 x 2 max pooling; they
            stand before the fully connected layers.
        prior_scale: Prior width ``s``: the standard deviation of a weight times the root of the weights that lead to
            one unit. ``None``: 8 for classes, 1 for a number as target, chosen on validation rows (digits, diabetes).
    """

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
        Model and guide over one batch.

    Raises:
        DataError: If a hyper-parameter is out of range, or the data are no images large enough for the filters.
    """
    net = Network.of(data, hidden=hyper.hidden, channels=hyper.channels)

    def guide(batch: Batch) -> None:
        for site, plate in net.plated():
            with plate:
                pyro.sample(site.name, dist.Delta(located(site), event_dim=len(site.shape) - 1))
        noise_guide(net, point=True)

    return Pair(network_model(data, net, prior_scale=hyper.prior_scale), guide)


# ---------------------------------------------------------------------------------------- quantities of interest
def summary(posterior: Posterior) -> dict[str, float]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        The number of weights, and the size of the weights of each layer in units of the prior's standard deviation.
    """
    net = Network.of(posterior.data, hidden=posterior.hyper.hidden, channels=posterior.hyper.channels)
    found: dict[str, float] = {"weights": sum(posterior.params[f"{s.name}_loc"].numel() for s in net.sites)}
    for site in net.sites:
        if site.fan_in:
            size = posterior.params[f"{site.name}_loc"].square().mean().sqrt()
            found[f"root mean square of {site.name} / prior"] = float(size) / (
                net.prior_scale(posterior.hyper.prior_scale) * site.scale
            )
    return found


# -------------------------------------------------------------------------------------------------------- claims
def _measure_decay(seed: int, fast: bool) -> dict[str, float]:
    """Fit digits with the prior and with one so wide that it is none; ``fast`` takes few steps.

    Returns:
        Test error in percent and test log loss, in nats, of both.
    """
    data = zoo.datasets.load("digits", seed=seed)
    found: dict[str, float] = {}
    for name, scale in (("decay", None), ("none", 1e3)):
        hyper = Hyper(prior_scale=scale)
        posterior = zoo.fit(METHOD, data, hyper=hyper, seed=seed, compile=not fast, steps=100 if fast else None)
        scores = zoo.tasks.get("classification").score(posterior.predict(data.test, n=1), data.split("test"), data)
        found |= {f"error {name}": 100 * scores["error"], f"nll {name}": scores["nll"]}
    return found


CLAIMS = (
    Claim(
        statement="Weight decay generalises better than none: a lower test log loss at a test error that is no higher.",
        published="generalisation error of a NetTalk network falls with decay (figure, no number)",
        source="Krogh, Hertz (1992), sec. 5",
        measure=_measure_decay,
        acceptance=(
            Acceptance(key="nll decay", below="nll none"),
            Acceptance(key="error decay", below="error none", errors=1.0),
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
    name="map_network",
    title="MAP network: weight decay, the point estimate that others are compared with",
    paper="krogh1992simple",
    task="classification",
    other_tasks=("regression",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(hidden=(20, 10)),
    default_data="digits",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=3_000, learning_rate=2e-3, batch_size=128, schedule="cosine"),
    summary=summary,
    use_when="You want a baseline: what a plain network of the same shape does with the same rows, steps and prior.",
    avoid_when="Its probabilities matter: it is too sure of what it has not seen. Masks (dropout_network) or a "
    "posterior of the weights (mean_field_network) cost little more than this.",
    needs="A table or images with classes or a number as target, features on one scale (pixels in [0, 1], standardised "
    "columns).",
)
