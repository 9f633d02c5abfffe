r"""A Bayesian network with independent normal posteriors: the variational baseline.

Layer :math:`l` maps :math:`h` to :math:`\mathrm{relu}(h W_l + b_l)`, without the relu in the last one; in a
convolutional layer :math:`h W_l` is a convolution, and 2 x 2 max pooling follows the relu. With :math:`A_l` weights
that lead to one unit,

.. math::

    W_l \sim \mathrm{N}(0, s^2 / A_l), \qquad b_l \sim \mathrm{N}(0, 1), \qquad
    y \sim \mathrm{Cat}(\mathrm{softmax}(h)),

or, where the target is a number, :math:`y \sim \mathrm{N}(h, \sigma^2)` with
:math:`\log \sigma \sim \mathrm{N}(-1, 1)`.
The guide is :math:`q(w) = \mathrm{N}(\mu, \rho^2)` for every weight and bias on its own, :math:`q(\sigma)` log-normal;
every divergence is analytic. ``Hyper.estimator`` chooses how the expected log likelihood and its gradient are
estimated, which changes their noise and not their expectation (in a convolution, ``local`` is an approximation).

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

Deviations. The paper's prior is a mixture of two normals, or one normal of a width chosen on validation rows; here it
is one normal whose width falls with that of the layer. The paper draws weights (``estimator="weights"``); local
reparametrisation (Kingma, Salimans, Welling 2015) is the default here, flipout (Wen et al. 2018) an option.
``Hyper.temperature`` below 1 makes every row count more than once: it is not the posterior of the data at hand then.

.. code-block:: bibtex

    @inproceedings{blundell2015weight,
      title     = {Weight Uncertainty in Neural Networks},
      author    = {Blundell, Charles and Cornebise, Julien and Kavukcuoglu, Koray and Wierstra, Daan},
      booktitle = {International Conference on Machine Learning},
      pages     = {1613--1622},
      year      = {2015}
    }
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

import zoo
from zoo.inference.objectives import to_pyro
from zoo.models._parts.handlers import flipout, local_reparametrisation
from zoo.models._parts.networks import Network, located, network_model, noise_guide, plates, scaled
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["METHOD", "Hyper", "build", "gradient_variance", "sites", "summary"]

_START_SCALE = 0.02  # of every posterior, over one over the root of the fan-in
Estimator = Literal["local", "flipout", "weights"]
_HANDLERS: dict[str, Callable[[Any], Any]] = {
    "local": local_reparametrisation,
    "flipout": flipout,
    "weights": lambda program: program,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        hidden: Units of each hidden fully connected layer.
        channels: Filters of each convolutional layer (5 x 5, no padding), every one followed by 2 x 2 max pooling; they
            stand before the fully connected layers.
        prior_scale: Prior width ``s``: the standard deviation of a weight times the root of the weights that lead to
            one unit. ``None``: 8 for classes, 1 for a number as target, chosen on validation rows (digits, diabetes).
        temperature: Every row counts ``1 / temperature`` times; 1 is the Bayesian posterior.
        estimator: ``local`` draws pre-activations for each row, ``flipout`` flips signs for each row, ``weights``
            draws weights once per batch.
    """

    hidden: tuple[int, ...] = (100, 100)
    channels: tuple[int, ...] = ()
    prior_scale: float | None = None
    temperature: float = 1.0
    estimator: Estimator = "local"


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
    model = network_model(data, net, prior_scale=hyper.prior_scale, temperature=hyper.temperature)

    def guide(batch: Batch) -> None:
        for site, plate in net.plated():
            loc = located(site)
            scale = scaled(site, _START_SCALE)
            with plate:
                fn = dist.Normal(loc, scale).to_event(len(site.shape) - 1)
                pyro.sample(site.name, fn, infer={"local": True})
        noise_guide(net, point=False)

    around = _HANDLERS[hyper.estimator]
    return Pair(around(model), around(guide), Elbo(estimator="mean_field"))


# ---------------------------------------------------------------------------------------- quantities of interest
def gradient_variance(
    posterior: Posterior, *, num_draws: int = 100, batch_size: int = 128, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return the variance of the gradient of the loss that each estimator leaves, on one batch of a fit.

    Args:
        posterior: A fit of this method; any estimator may have fitted it.
        num_draws: Gradients to take the variance of.
        batch_size: Rows of the batch.
        seed: Of batch and noise.

    Returns:
        Estimator -> parameter -> variance of a gradient entry, the mean over the entries of the parameter.
    """
    data, hyper = posterior.data, posterior.hyper
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(data.num_data, generator=generator)[:batch_size]
    batch = {k: v[rows] for k, v in data.train.items()}
    found: dict[str, dict[str, float]] = {}
    for estimator in _HANDLERS:
        pair = build(data, dataclasses.replace(hyper, estimator=estimator))
        elbo = to_pyro(Elbo(estimator="mean_field"))
        gradients: dict[str, list[Tensor]] = {}
        with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
            torch.manual_seed(seed)
            for name, value in posterior.params.items():
                support = constraints.positive if name.endswith("_scale") else constraints.real
                pyro.param(name, value.clone(), constraint=support)
            leaves = dict(pyro.get_param_store().named_parameters())
            for _ in range(num_draws):
                for leaf in leaves.values():
                    leaf.grad = None
                elbo.loss_and_grads(pair.model, pair.guide, batch)
                for name, leaf in leaves.items():
                    gradients.setdefault(name, []).append(leaf.grad.clone())
        found[estimator] = {name: float(torch.stack(g).var(0).mean()) for name, g in gradients.items()}
    return found


def summary(posterior: Posterior) -> dict[str, float]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        For each layer the part of its weights that the data have told from zero, and the width of their posteriors in
        units of the prior's.
    """
    net = Network.of(posterior.data, hidden=posterior.hyper.hidden, channels=posterior.hyper.channels)
    found = {}
    for site in net.sites:
        if site.fan_in:
            loc, scale = (posterior.params[f"{site.name}_{part}"] for part in ("loc", "scale"))
            found[f"{site.name}: |mean| > 2 sd"] = float((loc.abs() > 2 * scale).float().mean())
            found[f"{site.name}: sd / prior sd"] = float(scale.mean()) / (
                net.prior_scale(posterior.hyper.prior_scale) * site.scale
            )
    return found


# -------------------------------------------------------------------------------------------------------- claims
def _measure_variance(seed: int, fast: bool) -> dict[str, float]:
    """Measure gradient variances of a dense and a convolutional network on MNIST, after some epochs.

    Returns:
        Architecture and estimator -> variance of the gradient with respect to the parameters of the first and of the
        last layer's weights, over that of ``local``.
    """
    data = zoo.datasets.load("mnist", seed=seed)
    found: dict[str, float] = {}
    for name, hyper in (("dense", Hyper()), ("convolutional", Hyper(channels=(8, 16), hidden=(50,)))):
        steps = 20 if fast else 500
        posterior = zoo.fit(METHOD, data, hyper=hyper, seed=seed, steps=steps, schedule="constant", compile=not fast)
        variance = gradient_variance(posterior, num_draws=10 if fast else 100, seed=seed)
        last = len(hyper.channels) + len(hyper.hidden)
        for part in ("loc", "scale"):
            for layer, l in (("first", 0), ("last", last)):
                key = f"W_{l}_{part}"
                for estimator in ("flipout", "weights"):
                    ratio = variance[estimator][key] / variance["local"][key]
                    found[f"{name}, {layer} layer, {part}: {estimator} / local"] = ratio
    return found


def _measure_classes(seed: int, fast: bool) -> dict[str, float]:
    """Fit MNIST-8k by mean field and by MAP, both with their recipes; ``fast`` takes few steps.

    Returns:
        Test error in percent, log loss in nats, and calibration error in percent, of both.
    """
    from zoo.models import map_network

    data = zoo.datasets.load("mnist", seed=seed)
    found: dict[str, float] = {}
    for name, method in (("mean field", METHOD), ("MAP", map_network.METHOD)):
        options: dict[str, Any] = {"steps": 60} if fast else {}
        posterior = zoo.fit(method, data, seed=seed, compile=not fast, **options)
        scores = zoo.tasks.get("classification").score(
            posterior.predict(data.test, n=5 if fast else 100), data.split("test"), data
        )
        found |= {
            f"error {name}": 100 * scores["error"],
            f"nll {name}": scores["nll"],
            f"calibration error {name}": 100 * scores["ece"],
        }
    return found


CLAIMS = (
    Claim(
        statement="Local reparametrisation leaves less gradient variance than weights drawn once per batch, and so "
        "does flipout, in dense and in convolutional layers.",
        published="variance of the top layer's gradient after 10 epochs: 7.8e3 (local), 4.9e4 (one draw per batch)",
        source="Kingma, Salimans, Welling (2015), table 1; Wen et al. (2018), fig. 2, for flipout",
        measure=_measure_variance,
        acceptance=tuple(
            Acceptance(key=f"{name}, {layer} layer, scale: weights / local", low=1.5)
            for name in ("dense", "convolutional")
            for layer in ("first", "last")
        )
        + tuple(
            Acceptance(
                key=f"{name}, {layer} layer, scale: flipout / local",
                below=f"{name}, {layer} layer, scale: weights / local",
            )
            for name in ("dense", "convolutional")
            for layer in ("first", "last")
        ),
        budget=240,
    ),
    Claim(
        statement="With a normal prior, mean field errs about as much as the point estimate (within 0.5 points on "
        "MNIST-8k), and its probabilities are better calibrated.",
        published="MNIST, 800 units, one normal as prior: error 1.99% (SGD 1.84%)",
        source="Blundell et al. (2015), table 1; better calibration: Ovadia et al. (2019), fig. 1",
        measure=_measure_classes,
        acceptance=(
            Acceptance(key="error mean field", below="error MAP", slack=0.5),
            Acceptance(key="calibration error mean field", below="calibration error MAP"),
            Acceptance(key="nll mean field", below="nll MAP"),
        ),
        budget=200,
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
    name="mean_field_network",
    title="Mean-field Bayesian network: an independent normal for every weight",
    paper="blundell2015weight",
    task="classification",
    other_tasks=("regression",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(hidden=(20, 10)),
    default_data="digits",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=6_000, learning_rate=3e-3, batch_size=128, schedule="cosine", kl_warmup=0.25),
    summary=summary,
    use_when="You want the standard variational network as a baseline, or its weights' uncertainty for pruning, "
    "continual learning or bandits.",
    avoid_when="The best probabilities for the money are the aim: point estimates of several networks, averaged, "
    "are easier to train. Rows are few and layers wide: the posterior then falls back to the prior.",
    needs="A table or images with classes or a number as target, features on one scale (pixels in [0, 1], standardised "
    "columns), and some thousand optimiser steps.",
)
