r"""Monte Carlo dropout: a network that keeps dropping units when it predicts, read as a variational posterior.

Layer :math:`l` maps :math:`h` to :math:`\mathrm{relu}(h W_l + b_l)`, without the relu in the last one; in a
convolutional layer :math:`h W_l` is a convolution, and 2 x 2 max pooling follows the relu. With :math:`A_l` weights
that lead to one unit,

.. math::

    W_l \sim \mathrm{N}(0, s^2 / A_l), \qquad b_l \sim \mathrm{N}(0, 1), \qquad
    y \sim \mathrm{Cat}(\mathrm{softmax}(h)),

or, where the target is a number, :math:`y \sim \mathrm{N}(h, \sigma^2)` with
:math:`\log \sigma \sim \mathrm{N}(-1, 1)`.
The guide drops the input units of a layer, in a convolutional layer its filters, with probability :math:`p`:

.. math:: W_{l,i} = z_{l,i} M_{l,i}, \qquad z_{l,i} \sim \mathrm{Bernoulli}(1 - p),

and biases are point masses. Up to the entropy of the masks, a constant, the negative bound is the expected loss of a
network trained with dropout plus weight decay of strength :math:`(1 - p) A_l / s^2`, which is analytic.
In training every row has its own mask; a draw of the posterior is one network, with one mask for all rows.

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

Deviations. The paper's posterior of a row of weights is a mixture of two narrow normals, here of their limits, two
points. It chooses dropout rate and noise on validation rows; here the noise is a latent with a point estimate, and so
learnt with the weights. Weights are not divided by :math:`1 - p`: predictions are means over masks, never a network
with the mean weights. Inputs are dropped at a rate of their own (``Hyper.input_rate``), 0 by default.

.. code-block:: bibtex

    @inproceedings{gal2016dropout,
      title     = {Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning},
      author    = {Gal, Yarin and Ghahramani, Zoubin},
      booktitle = {International Conference on Machine Learning},
      pages     = {1050--1059},
      year      = {2016}
    }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist

import zoo
from zoo.errors import DataError
from zoo.models._parts.distributions import UnitDropout
from zoo.models._parts.handlers import local_reparametrisation
from zoo.models._parts.networks import Network, located, network_model, noise_guide, plates
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Method, Pair, Recipe

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
        rate: Probability ``p`` of dropping a hidden unit, or a filter.
        input_rate: Probability of dropping a feature; only read without convolutional layers.
        prior_scale: Prior width ``s``: the standard deviation of a weight times the root of the weights that lead to
            one unit. ``None``: 8 for classes, 1 for a number as target, chosen on validation rows (digits, diabetes).
    """

    hidden: tuple[int, ...] = (100, 100)
    channels: tuple[int, ...] = ()
    rate: float = 0.2
    input_rate: float = 0.0
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
    for name in ("rate", "input_rate"):
        if not 0 <= getattr(hyper, name) < 1:
            raise DataError(f"{name} is {getattr(hyper, name):g}; it must be a probability below 1")
    net = Network.of(data, hidden=hyper.hidden, channels=hyper.channels)
    model = network_model(data, net, prior_scale=hyper.prior_scale)

    def guide(batch: Batch) -> None:
        for site, plate in net.plated():
            rate = hyper.rate if site.name != "W_0" or hyper.channels else hyper.input_rate
            with plate:
                if site.fan_in:
                    fn = UnitDropout(located(site), rate, len(site.shape) - 1)
                    pyro.sample(site.name, fn, infer={"local": True})
                else:
                    pyro.sample(site.name, dist.Delta(located(site)))
        noise_guide(net, point=True)

    return Pair(local_reparametrisation(model), local_reparametrisation(guide), Elbo(estimator="mean_field"))


# ---------------------------------------------------------------------------------------- quantities of interest
def summary(posterior: Posterior) -> dict[str, float]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        Number of weights, and by how much predictions of single masks differ: the mean total variation distance of
        their class probabilities from the averaged ones, or the standard deviation of their means in target units.
    """
    prediction = posterior.predict(n=50)
    found: dict[str, float] = {
        "weights": sum(v.numel() for k, v in posterior.params.items() if k.startswith(("W_", "b_")))
    }
    if "y" in prediction.probs:
        probs = prediction.probs["y"]
        found["distance of single masks from their mean"] = float(0.5 * (probs - probs.mean(0)).abs().sum(-1).mean())
    else:
        scale = posterior.data.target.scale if posterior.data.target else 1.0
        found["spread of predictions between masks"] = float(prediction.means["y"].std(0).mean()) * scale
        found["noise (sigma)"] = float(posterior.params["sigma_loc"]) * scale
    return found


# -------------------------------------------------------------------------------------------------------- claims
def _measure_concrete(seed: int, fast: bool) -> dict[str, float]:
    """Fit the strength of concrete with one hidden layer of 50 units, by dropout, mean field and MAP.

    Returns:
        Test root mean squared error in MPa and log likelihood per row, in nats, of each.
    """
    from zoo.models import map_network, mean_field_network

    data = zoo.datasets.load("concrete", seed=seed)
    found: dict[str, float] = {}
    methods: tuple[tuple[str, Method[Any], Any], ...] = (
        ("dropout", METHOD, Hyper(hidden=(50,), rate=0.05)),
        ("mean field", mean_field_network.METHOD, mean_field_network.Hyper(hidden=(50,))),
        ("MAP", map_network.METHOD, map_network.Hyper(hidden=(50,))),
    )
    for name, method, hyper in methods:
        options: dict[str, Any] = {"steps": 60} if fast else {"steps": 8_000}
        posterior = zoo.fit(method, data, hyper=hyper, seed=seed, compile=not fast, **options)
        scores = zoo.tasks.get("regression").score(
            posterior.predict(data.test, n=10 if fast else 500), data.split("test"), data
        )
        found |= {f"rmse {name}": scores["rmse"], f"log likelihood {name}": -scores["nlpd"]}
    return found


CLAIMS = (
    Claim(
        statement="On the strength of concrete, dropout predicts better than mean-field variational inference in the "
        "same network of 50 units: lower error, higher log likelihood.",
        published="rmse 5.23 +- 0.12 (dropout), 7.13 +- 0.12 (variational inference), 5.67 +- 0.09 (probabilistic "
        "backpropagation); log likelihood -3.04, -3.39, -3.16",
        source="Gal, Ghahramani (2016), table 1",
        measure=_measure_concrete,
        acceptance=(
            Acceptance(key="rmse dropout", below="rmse mean field"),
            Acceptance(key="log likelihood dropout", above="log likelihood mean field"),
            Acceptance(key="rmse dropout", high=5.23 + 2 * 0.12),
        ),
        budget=120,
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
    name="dropout_network",
    title="MC dropout: a network that keeps dropping units when it predicts",
    paper="gal2016dropout",
    task="classification",
    other_tasks=("regression",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(hidden=(20, 10)),
    default_data="digits",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=4_000, learning_rate=2e-3, batch_size=128, schedule="cosine"),
    summary=summary,
    use_when="You have a network that is trained with dropout anyway and want its uncertainty for the price of some "
    "more forward passes.",
    avoid_when="The width of intervals matters: the rate, which the data do not choose, sets the width, and more rows "
    "do not make it narrower. Networks without dropout in training: the masks then are noise, no posterior.",
    needs="A table or images with classes or a number as target, features on one scale (pixels in [0, 1], standardised "
    "columns), and validation rows to choose the rate on.",
)
