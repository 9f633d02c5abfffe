r"""Empirical Bayes dropout: every weight has a prior precision of its own, and those without use are switched off.

Layer :math:`l` maps :math:`h` to :math:`\mathrm{relu}(h W_l + b_l)`, without the relu in the last one; in a
convolutional layer :math:`h W_l` is a convolution, and 2 x 2 max pooling follows the relu. With one precision for each
weight, which has a gamma hyperprior of shape :math:`c` and rate :math:`d`,

.. math::

    \tau_{l,ij} \sim \mathrm{Gamma}(c, d), \qquad W_{l,ij} \mid \tau_{l,ij} \sim \mathrm{N}(0, \tau_{l,ij}^{-1}),
    \qquad b_l \sim \mathrm{N}(0, 1), \qquad y \sim \mathrm{Cat}(\mathrm{softmax}(h)),

or, where the target is a number, :math:`y \sim \mathrm{N}(h, \sigma^2)` with
:math:`\log \sigma \sim \mathrm{N}(-1, 1)`.
The guide is :math:`q(W_{l,ij}) = \mathrm{N}(\mu, s^2)` with a dropout rate :math:`\alpha = s^2 / \mu^2`, and for the
precision a point, the best one, which is known:

.. math:: \tau^{*} = \frac{2 c - 1}{2 d + \mu^2 + s^2}.

A weight then costs :math:`(c - \frac12) \log(2 d + \mu^2 + s^2) - \frac12 \log s^2`, up to a constant. ``Hyper.prior``
chooses among

- ``gamma`` (default): the above;
- ``ard``, automatic relevance determination: :math:`c = 1, d = 0`, a flat hyperprior. The precision maximises the
  evidence, and a weight costs :math:`\frac12 \log(1 + \alpha^{-1})`;
- ``log_uniform``, sparse variational dropout, the contrast: :math:`p(W_{l,ij}) \propto 1 / |W_{l,ij}|`, which is what
  is left when :math:`\tau` is summed out under :math:`c = d = 0`. This prior is improper, and so is the posterior of a
  network under it: the objective is no bound on an evidence (Hron, Matthews, Ghahramani 2018). Read it as a penalty.

=================  ===========  ============  =============================================================
symbol             site         plate         meaning
=================  ===========  ============  =============================================================
:math:`\tau_l`     ``tau_l``    ``unit_l``    precisions of the weights, of their shape; not under
                                              ``log_uniform``
:math:`W_l`        ``W_l``      ``unit_l``    weights, ``(inputs, outputs)``; of a convolution
                                              ``(filters, channels, 5, 5)`` in the plate ``channel_l``
:math:`b_l`        ``b_l``      ``unit_l+1``  biases; in the last layer's plate ``output``, of a convolution in
                                              that of its filters
:math:`\sigma`     ``sigma``                  noise, only with a number as target
:math:`y`          ``y``        ``datum``     target, observed
=================  ===========  ============  =============================================================

Deviations. Biases have a normal prior and posterior here. Training starts from random weights, with a weight of the
divergence that rises in the first half of the steps, in place of a trained network. ``Hyper.temperature`` below 1 makes
every row count more than once, which on few rows strikes the balance of fit and sparsity that many rows would; it is
not the posterior of the data at hand then. The numbers :math:`c` and :math:`d` are chosen on validation rows of
MNIST-8k.

.. code-block:: bibtex

    @article{kharitonov2018variational,
      title   = {Variational Dropout via Empirical Bayes},
      author  = {Kharitonov, Valery and Molchanov, Dmitry and Vetrov, Dmitry},
      journal = {arXiv preprint arXiv:1811.00596},
      year    = {2018}
    }
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

import zoo
from zoo.errors import DataError
from zoo.models._parts.distributions import NormalJeffreys
from zoo.models._parts.handlers import local_reparametrisation
from zoo.models._parts.networks import Network, located, network_model, noise_guide, plates, scaled
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = [
    "METHOD",
    "Hyper",
    "Precision",
    "best_precision",
    "build",
    "compress",
    "log_dropout_rates",
    "sites",
    "summary",
]

_START_SCALE = 0.1  # of every posterior, over one over the root of the fan-in
_LOG_ALPHA = 3.0  # a weight with a larger dropout rate, 0.95 as that of a Bernoulli mask, is zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        hidden: Units of each hidden fully connected layer.
        channels: Filters of each convolutional layer (5 x 5, no padding), every one followed by 2 x 2 max pooling; they
            stand before the fully connected layers.
        prior: ``gamma``, ``ard`` or ``log_uniform``.
        concentration: Shape ``c`` of the hyperprior, above 1/2; the larger, the more a weight that is not zero costs.
            Only read by ``gamma``.
        rate: Rate ``d`` of the hyperprior: a weight well below the root of ``2 d`` counts as zero. Only read by
            ``gamma``.
        temperature: Every row counts ``1 / temperature`` times; 1 is the Bayesian posterior. ``None``: 0.2 for classes,
            1 for a number as target, chosen on validation rows (MNIST-8k, diabetes).
    """

    hidden: tuple[int, ...] = (300, 100)
    channels: tuple[int, ...] = ()
    prior: Literal["gamma", "ard", "log_uniform"] = "gamma"
    concentration: float = 1.2
    rate: float = 1e-5
    temperature: float | None = None


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
    if hyper.prior == "gamma" and not (hyper.concentration > 0.5 and hyper.rate >= 0):
        raise DataError(
            f"concentration is {hyper.concentration:g} and rate is {hyper.rate:g}; allowed: above 0.5, and 0 or more"
        )
    c, d = (hyper.concentration, hyper.rate) if hyper.prior == "gamma" else (1.0, 0.0)
    net = Network.of(data, hidden=hyper.hidden, channels=hyper.channels)

    def draw(x: Tensor) -> dict[str, Any]:
        weights = {}
        for site, plate in net.plated():
            shape = site.shape[1:]
            with plate:
                prior = dist.Normal(x.new_zeros(shape), 1.0)
                if site.fan_in and hyper.prior == "log_uniform":
                    prior = NormalJeffreys(shape, like=x)
                elif site.fan_in:
                    tau = pyro.sample(_precision(site.name), Precision(c, d, shape, like=x).to_event(len(shape)))
                    prior = dist.Normal(torch.zeros_like(tau), tau.rsqrt())
                weights[site.name] = pyro.sample(site.name, prior.to_event(len(shape)))
        return weights

    temperature = (0.2 if net.num_classes else 1.0) if hyper.temperature is None else hyper.temperature
    model = network_model(data, net, temperature=temperature, draw=draw)

    def guide(batch: Batch) -> None:
        for site, plate in net.plated():
            loc, scale = located(site), scaled(site, _START_SCALE)
            events = len(site.shape) - 1
            with plate:
                if site.fan_in and hyper.prior != "log_uniform":
                    # At the optimum the objective does not change with tau, so that no gradient need pass through it.
                    tau = best_precision(loc, scale, concentration=c, rate=d).detach()
                    pyro.sample(_precision(site.name), dist.Delta(tau, event_dim=events))
                pyro.sample(site.name, dist.Normal(loc, scale).to_event(events), infer={"local": True})
        noise_guide(net, point=False)

    return Pair(local_reparametrisation(model), local_reparametrisation(guide), Elbo(estimator="mean_field"))


def _precision(weights: str) -> str:
    return f"tau_{weights.removeprefix('W_')}"


def best_precision(loc: Tensor, scale: Tensor, *, concentration: float, rate: float) -> Tensor:
    r"""Return the prior precision that is best for normal posteriors of weights.

    .. math::

        \tau^{*} = \arg\max_\tau \log \mathrm{Gamma}(\tau; c, d) - \mathrm{KL}[\mathrm{N}(\mu, s^2) \,\|\,
        \mathrm{N}(0, \tau^{-1})] = \frac{2 c - 1}{2 d + \mu^2 + s^2}

    Args:
        loc: Posterior means :math:`\mu`, any shape.
        scale: Posterior standard deviations :math:`s`, of the same shape.
        concentration: Shape :math:`c > 1/2` of the hyperprior.
        rate: Rate :math:`d \ge 0` of the hyperprior.

    Returns:
        Of the same shape.

    References:
        Kharitonov, Molchanov, Vetrov (2018), sec. 3. https://arxiv.org/abs/1811.00596
    """
    return (2 * concentration - 1) / (2 * rate + loc.square() + scale.square())


class Precision(TorchDistribution):  # type: ignore[misc]
    r"""The gamma density of a precision, whose rate may be zero: :math:`p(\tau) \propto \tau^{c - 1} e^{-d \tau}`.

    With :math:`d = 0` it is improper, and its log density lacks the normaliser. :meth:`sample` then draws from
    :math:`\mathrm{Gamma}(c, 1)`, a stand-in that lets the model run without a guide; such runs are no prior predictive.

    Args:
        concentration: Shape :math:`c > 0`.
        rate: Rate :math:`d \ge 0`.
        batch_shape: Shape of independent copies.
        like: A tensor whose dtype and device draws take; the defaults if ``None``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.positive
    has_rsample = False

    def __init__(
        self,
        concentration: float,
        rate: float,
        batch_shape: torch.Size | tuple[int, ...] = (),
        *,
        like: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration, self.rate = concentration, rate
        self._like = torch.zeros(()) if like is None else like.new_zeros(())
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    @property
    def improper(self) -> bool:
        """Whether the density has no normaliser, so that draws are no prior predictive."""
        return self.rate == 0

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> Precision:
        """Return independent copies.

        Args:
            batch_shape: New batch shape.
            _instance: Unused; part of the interface.

        Returns:
            The expanded distribution.
        """
        return Precision(self.concentration, self.rate, batch_shape, like=self._like, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Return :math:`(c - 1) \log \tau - d \tau`, with the normaliser where there is one.

        Args:
            value: Positive numbers, ``(*sample, *batch)``.

        Returns:
            Of the same shape.
        """
        normaliser = 0.0
        if self.rate > 0:
            normaliser = self.concentration * math.log(self.rate) - math.lgamma(self.concentration)
        return (self.concentration - 1) * value.log() - self.rate * value + normaliser

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw from the gamma distribution, of rate one if the rate is zero.

        Args:
            sample_shape: Leading shape.

        Returns:
            ``(*sample_shape, *batch_shape)``.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            draws: Tensor = torch._standard_gamma(self._like.new_full(shape, self.concentration))
        return draws.clamp(min=torch.finfo(draws.dtype).tiny) / (self.rate or 1.0)


# ---------------------------------------------------------------------------------------- quantities of interest
def log_dropout_rates(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Return the log dropout rate :math:`\log \alpha = \log s^2 - \log \mu^2` of every weight.

    Args:
        params: Constrained parameters of the guide: ``posterior.params``, or ``dict(pyro.get_param_store())``.

    Returns:
        Site of weights -> log rates, of the shape of the weights.
    """
    found, number = {}, 0
    while (name := f"W_{number}") + "_loc" in params:
        loc, scale = params[f"{name}_loc"].detach(), params[f"{name}_scale"].detach()
        found[name] = 2 * scale.log() - loc.square().clamp(min=torch.finfo(loc.dtype).tiny).log()
        number += 1
    return found


def compress(posterior: Posterior, *, threshold: float = _LOG_ALPHA) -> nn.Sequential:
    r"""Return the network of posterior means, with zeros in the place of weights without use.

    Args:
        posterior: A fit of this method.
        threshold: Weights with a log dropout rate above it are zero; infinity keeps all.

    Returns:
        From features to the logits of the classes, or to the standardised number, ``(rows, outputs)``.
    """
    net = Network.of(posterior.data, hidden=posterior.hyper.hidden, channels=posterior.hyper.channels)
    rates = log_dropout_rates(posterior.params)
    modules: list[nn.Module] = [nn.Flatten(), nn.Unflatten(1, net.image)] if net.num_filters else [nn.Flatten()]
    for l, (name, rate) in enumerate(rates.items()):
        mean = posterior.params[f"{name}_loc"].detach() * (rate <= threshold)
        bias = posterior.params[f"b_{l}_loc"].detach()
        module: nn.Conv2d | nn.Linear
        if l < net.num_filters:
            module = nn.utils.skip_init(nn.Conv2d, mean.shape[1], mean.shape[0], tuple(mean.shape[2:]))
            modules += [module, nn.ReLU(), nn.MaxPool2d(2)]
            modules += [nn.Flatten()] if l + 1 == net.num_filters else []
        else:
            mean = mean.mT.contiguous()
            module = nn.utils.skip_init(nn.Linear, mean.shape[1], mean.shape[0])
            modules += [module, nn.ReLU()]
        module.weight, module.bias = nn.Parameter(mean), nn.Parameter(bias.clone())
    return nn.Sequential(*modules[:-1]).requires_grad_(False)


def summary(posterior: Posterior) -> dict[str, float]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        Weights with use, of each layer and in all, how many times fewer these are, and the number of features and
        units of each layer that still have an outgoing weight.
    """
    kept = {name: rate <= _LOG_ALPHA for name, rate in log_dropout_rates(posterior.params).items()}
    total, count = sum(mask.numel() for mask in kept.values()), sum(int(mask.sum()) for mask in kept.values())
    found: dict[str, float] = {"weights": total, "weights with use": count}
    for name, mask in kept.items():
        found[f"{name}: weights with use"] = int(mask.sum())
        found[f"{name}: {'filters' if mask.dim() == 4 else 'inputs'} with use"] = int(mask.flatten(1).any(1).sum())
    found["compression by pruning"] = total / max(count, 1)
    return found


# -------------------------------------------------------------------------------------------------------- claims
_COMPARED: dict[str, dict[str, Any]] = {
    "gamma": {"prior": "gamma"},
    "ARD": {"prior": "ard"},
    "log-uniform": {"prior": "log_uniform"},
    "log-uniform, tempered": {"prior": "log_uniform", "temperature": 0.4},
}


def _measure_sparsity(seed: int, fast: bool) -> dict[str, float]:
    """Fit LeNet-300-100 to MNIST-8k under each prior; ``fast`` takes few steps.

    At one temperature the priors differ in strength too. The log-uniform prior therefore stands there twice: at the
    temperature of the others, and at the one that leaves the fewest weights while it costs less than 0.3 points of
    error on validation rows (0.8 costs more; lower ones leave more weights).

    Returns:
        Under each prior, the test error in percent of the network whose weights without use are zero, that of the
        averaged predictions of the whole posterior, and how many times fewer weights are left; and the test error of a
        point estimate of the same network.
    """
    from zoo.models import map_network

    data = zoo.datasets.load("mnist", seed=seed)
    test, found = data.split("test"), dict[str, float]()
    options: dict[str, Any] = {"steps": 60} if fast else {}
    for name, hyper in _COMPARED.items():
        posterior = zoo.fit(METHOD, data, hyper=hyper, seed=seed, compile=not fast, **options)
        whole = zoo.tasks.get("classification").score(posterior.predict(test, n=5 if fast else 50), test, data)
        network = compress(posterior)
        wrong = network(test["x"]).argmax(-1) != test["y"]
        found |= {
            f"error {name}": 100 * float(wrong.double().mean()),
            f"error {name}, averaged": 100 * whole["error"],
            f"compression {name}": posterior.summary()["compression by pruning"],
        }
    plain = zoo.fit(map_network.METHOD, data, hyper={"hidden": (300, 100)}, seed=seed, compile=not fast, **options)
    found["error MAP"] = 100 * zoo.tasks.get("classification").score(plain.predict(test, n=1), test, data)["error"]
    return found


CLAIMS = (
    Claim(
        statement="On MNIST-8k, the gamma hyperprior leaves fewer weights than the log-uniform prior, at an error that "
        "is no more than 0.3 points higher; also if the temperature under the log-uniform prior is tuned for sparsity.",
        published="'hierarchical priors in ARD ... higher sparsity for the same accuracy'; LeNet-300-100 on MNIST "
        "under the log-uniform prior: 68x, error 1.92% (Molchanov et al. 2017, table 1)",
        source="Kharitonov, Molchanov, Vetrov (2018), abstract and sec. 5",
        measure=_measure_sparsity,
        acceptance=(
            Acceptance(key="compression gamma", above="compression log-uniform"),
            Acceptance(key="error gamma", below="error log-uniform", slack=0.3),
            Acceptance(key="compression gamma", above="compression log-uniform, tempered"),
            Acceptance(key="error gamma", below="error log-uniform, tempered", slack=0.3),
        ),
        budget=240,
    ),
    Claim(
        statement="Automatic relevance determination and the log-uniform prior give comparable networks: errors within "
        "0.5 points of each other.",
        published="'the two approaches yield comparable results in practice'",
        source="Kharitonov, Molchanov, Vetrov (2018), abstract",
        measure=_measure_sparsity,
        acceptance=(
            Acceptance(key="error ARD", below="error log-uniform", slack=0.5),
            Acceptance(key="error ARD", above="error log-uniform", slack=0.5),
        ),
        budget=240,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it; with a number as target there is ``sigma`` too.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    found = plates(hidden=hyper.hidden, channels=hyper.channels)
    if hyper.prior != "log_uniform":
        found |= {_precision(name): around for name, around in found.items() if name.startswith("W_")}
    return found


METHOD = Method(
    name="empirical_bayes_dropout",
    title="Empirical Bayes dropout: weights without use are switched off",
    paper="kharitonov2018variational",
    task="classification",
    other_tasks=("regression",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(hidden=(20, 10)),
    default_data="mnist",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=5_000, learning_rate=3e-3, batch_size=128, schedule="linear", kl_warmup=0.5),
    summary=summary,
    compress=compress,
    use_when="You want the fewest weights that predict as well, or want to see which inputs and connections a network "
    "uses at all.",
    avoid_when="Whole units must go, since only these make a dense network faster: bayesian_compression takes out "
    "units. The uncertainty of the weights is the aim: intervals of a tempered mean-field posterior are too narrow.",
    needs="A table or images with classes or a number as target, thousands of rows rather than hundreds, and features "
    "whose zero means nothing (pixels in [0, 1], standardised columns).",
)
