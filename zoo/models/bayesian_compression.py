r"""Bayesian compression: prune the units of a network by group sparsity, and choose the bits by posterior variance.

Layer :math:`l` maps :math:`h \in \mathbb{R}^{A}` to :math:`\mathbb{R}^{B}`. All weights that leave input unit :math:`i`
share one scale, so that a unit whose scale vanishes can be taken out of the network; in a convolutional layer all
weights that lead to one filter do, its bias included. ``Hyper.prior`` chooses what is believed of the scale. Group
normal-Jeffreys (default):

.. math::

    p(z_i) \propto 1 / |z_i|, \qquad w_{ij} \mid z_i \sim \mathrm{N}(0, z_i^2).

Group horseshoe, with one scale :math:`s` per layer and half-Cauchy variables as roots of a product of a gamma and an
inverse gamma variable:

.. math::

    s &= \sqrt{s_a s_b}, \qquad & s_a &\sim \mathrm{Gamma}(\tfrac12, \tau_0^{-2}), \quad & s_b &\sim
    \mathrm{InvGamma}(\tfrac12, 1), \qquad & \text{i.e. } s &\sim \mathrm{C}^{+}(0, \tau_0), \\
    \tilde z_i &= \sqrt{\alpha_i \beta_i}, \qquad & \alpha_i &\sim \mathrm{Gamma}(\tfrac12, 1), \quad & \beta_i &\sim
    \mathrm{InvGamma}(\tfrac12, 1), \qquad & \text{i.e. } \tilde z_i &\sim \mathrm{C}^{+}(0, 1),

and :math:`z_i = s \tilde z_i` in place of the above. Then, with :math:`\mathrm{relu}` between the layers, and after
it 2 x 2 max pooling where :math:`h W` is a convolution and :math:`b_j \mid z_j \sim \mathrm{N}(0, z_j^2)`,

.. math::

    b_j \sim \mathrm{N}(0, 1), \qquad h' = \mathrm{relu}(h W + b), \qquad y \sim \mathrm{Cat}(\mathrm{softmax}(h')).

Guide: :math:`q(z_i) = \mathrm{N}(\mu_{z_i}, \sigma_{z_i}^2)` or log-normal in each horseshoe variable,
:math:`q(w_{ij} \mid z_i) = \mathrm{N}(z_i \mu_{ij}, z_i^2 \sigma_{ij}^2)`, :math:`q(b_j)` normal. The divergence of
:math:`w` given :math:`z` does not depend on :math:`z`; that of :math:`z` is analytic too.

======================================  ============  ============  =================================================
symbol                                  site          plate         meaning
======================================  ============  ============  =================================================
:math:`z_i`                             ``z_l``       ``unit_l``    scale of input unit i of layer l (normal-Jeffreys)
:math:`\alpha_i, \beta_i`               ``alpha_l``,  ``unit_l``    the two factors of its squared scale (horseshoe)
                                        ``beta_l``
:math:`s_a, s_b`                        ``s_a_l``,                  the two factors of the layer's squared scale
                                        ``s_b_l``                   (horseshoe)
:math:`W`                               ``W_l``       ``unit_l``    weights, ``(inputs, outputs)``
:math:`b`                               ``b_l``       ``unit_l+1``  biases; in the last layer's plate ``class``
:math:`y`                               ``y``         ``datum``     class, observed
======================================  ============  ============  =================================================

``unit_0`` are the features. In a convolutional layer all sites but the horseshoe's ``s_a_l``, ``s_b_l`` stand in the
plate ``channel_l`` of its filters, and weights are ``(filters, channels, 5, 5)``.

Deviations.

- ``Hyper.temperature``: the likelihood counts each row :math:`1 / T` times. The paper trains on 60,000 images, and the
  authors' example divides the divergence by 60,000 whatever the data. On few data the plain posterior (:math:`T = 1`)
  gives up accuracy for sparsity; :math:`T < 1` holds the balance that more data would strike. It is not a Bayesian
  posterior of the data at hand, so intervals are too narrow: use :math:`T = 1` where these matter.
- Inputs are in [0, 1], so that an empty pixel is zero; the authors' example uses [-1, 1].
- The scales are drawn once per mini-batch, not once per row (row-wise draws gave no better fit in as many steps and
  cost a third more); pre-activations are drawn per row by local reparametrisation, as in the paper.
- No upper bound on the variances of the first layer's weights.
- Thresholds per layer are not set by eye but chosen on the validation data, see :func:`choose_units`.
- Bits of the exponent: see :func:`bit_widths` where the paper's rule is undefined.
- The initial values of the horseshoe guide put the layer's scale at :math:`\tau_0` and units at :math:`1 / \tau_0`,
  so that weights start at their usual size. A unit is pruned once its scale has come down to 1, which takes the more
  steps the smaller :math:`\tau_0` is.
- In a convolutional layer a position's weights are shared, but its noise under local reparametrisation is not.
- :func:`prune` fits what is left further after units were taken out, in turns, and in the end on the validation rows
  too. The paper cuts once, which is what :func:`choose_units` and :func:`compress` do on their own.
- Convolutions are followed by relu and max pooling; a filter's bias belongs to the group of its weights.

.. code-block:: bibtex

    @inproceedings{louizos2017bayesian,
      title     = {Bayesian Compression for Deep Learning},
      author    = {Louizos, Christos and Ullrich, Karen and Welling, Max},
      booktitle = {Advances in Neural Information Processing Systems},
      volume    = {30},
      year      = {2017}
    }
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

import zoo
from zoo.errors import DataError
from zoo.models._parts.distributions import NormalJeffreys
from zoo.models._parts.handlers import local_reparametrisation
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Figure, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = [
    "METHOD",
    "Compression",
    "Hyper",
    "Layer",
    "bit_widths",
    "build",
    "choose_units",
    "compress",
    "compression",
    "figures",
    "layers",
    "prune",
    "sites",
    "summary",
]

_START_SCALE = 0.01  # of every normal and log-normal in the guide, as in the authors' example
_FLOAT_BITS = 32
_SIGNIFICAND_BITS = 23
_ORDER_ROWS = 2_000
_KERNEL, _POOL = 5, 2  # of every convolution, as in LeNet-5
# Standard errors above the limit, the error up to which the first turn of pruning and all later ones cut before they
# fit further.
_HARD_CUTS = (2.25, 0.75)
_LOTS = 25  # on the path, one part in so many of a layer's groups leaves at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        hidden: Units of each hidden fully connected layer.
        channels: Filters of each convolutional layer (5 x 5, no padding), every one followed by 2 x 2 max pooling; they
            stand before the fully connected layers. ``channels=(20, 50), hidden=(500,)`` is LeNet-5.
        prior: ``normal_jeffreys`` or ``horseshoe``.
        global_scale: Scale tau_0 of the half-Cauchy prior on a layer's scale; only read by ``horseshoe``.
        temperature: Every row counts ``1 / temperature`` times; 1 is the Bayesian posterior.
        inputs: Which of the flattened features enter the first fully connected layer; ``None``: all. :func:`prune`
            sets it.
    """

    hidden: tuple[int, ...] = (300, 100)
    channels: tuple[int, ...] = ()
    prior: Literal["normal_jeffreys", "horseshoe"] = "normal_jeffreys"
    global_scale: float = 1e-2
    temperature: float = 0.05
    inputs: tuple[int, ...] | None = None


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with features ``x``, ``(rows, ...)``, classes ``y`` and ``index``; ``extra["num_classes"]``, and
            with convolutional layers ``extra["image_shape"]``, (channels, height, width).
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch.

    Raises:
        DataError: If a hyper-parameter is out of range, or the data are no images large enough for the filters.
    """
    net, plates = _architecture(data, hyper), _plates(hyper)
    tau = hyper.global_scale
    sizes = [*(shape[0] for shape in net.shapes), int(data.extra["num_classes"])]

    def units() -> list[pyro.plate]:
        return [pyro.plate(name, size, dim=-1) for name, size in zip(plates, sizes, strict=True)]

    @local_reparametrisation
    def model(batch: Batch) -> None:
        h, unit = net.arrange(batch["x"]), units()
        one = h.new_ones(())
        for l, shape in enumerate(net.shapes):
            if hyper.prior == "normal_jeffreys":
                with unit[l]:
                    z = pyro.sample(f"z_{l}", NormalJeffreys(like=one)).abs()
            else:
                s_a = pyro.sample(f"s_a_{l}", dist.Gamma(one / 2, one / tau**2))
                s_b = pyro.sample(f"s_b_{l}", dist.InverseGamma(one / 2, one))
                with unit[l]:
                    alpha = pyro.sample(f"alpha_{l}", dist.Gamma(one / 2, one))
                    beta = pyro.sample(f"beta_{l}", dist.InverseGamma(one / 2, one))
                z = (s_a * s_b).sqrt() * (alpha * beta).sqrt()
            with unit[l]:
                W = pyro.sample(f"W_{l}", dist.Normal(h.new_zeros(shape[1:]), _like(z, shape)).to_event(len(shape) - 1))
            if l < net.num_filters:
                with unit[l]:
                    b = pyro.sample(f"b_{l}", dist.Normal(0 * one, z))
            else:
                with unit[l + 1]:
                    b = pyro.sample(f"b_{l}", dist.Normal(0 * one, one))
            h = net.apply(l, h, W, b)
        with pyro.plate("datum", data.num_data, subsample=batch["index"]), poutine.scale(scale=1 / hyper.temperature):
            pyro.sample("y", dist.Categorical(logits=h.log_softmax(-1)), obs=batch.get("y"))

    @local_reparametrisation
    def guide(batch: Batch) -> None:
        unit = units()
        for l, shape in enumerate(net.shapes):
            num, filters = shape[0], l < net.num_filters
            if hyper.prior == "normal_jeffreys":
                with unit[l]:
                    z = pyro.sample(f"z_{l}", _normal(f"z_{l}", 1.0, 0.01, num))
            else:
                s_a = pyro.sample(f"s_a_{l}", _log_normal(f"s_a_{l}", 2 * math.log(tau), 0.0))
                s_b = pyro.sample(f"s_b_{l}", _log_normal(f"s_b_{l}", 0.0, 0.0))
                with unit[l]:
                    alpha = pyro.sample(f"alpha_{l}", _log_normal(f"alpha_{l}", 0.0, 0.01, num))
                    beta = pyro.sample(f"beta_{l}", _log_normal(f"beta_{l}", -2 * math.log(tau), 0.01, num))
                z = (s_a * s_b).sqrt() * (alpha * beta).sqrt()
            with unit[l]:
                w = _normal(f"W_{l}", 0.0, (math.prod(shape[1:]) if filters else num) ** -0.5, *shape)
                scale = _like(z, shape)
                fn = dist.Normal(scale * w.loc, scale.abs() * w.scale).to_event(len(shape) - 1)
                pyro.sample(f"W_{l}", fn, infer={"local": True})
            if filters:
                with unit[l]:
                    b = _normal(f"b_{l}", 0.0, 0.0, num)
                    pyro.sample(f"b_{l}", dist.Normal(z * b.loc, z.abs() * b.scale), infer={"local": True})
            else:
                with unit[l + 1]:
                    pyro.sample(f"b_{l}", _normal(f"b_{l}", 0.0, 0.0, shape[1]), infer={"local": True})

    return Pair(model, guide, Elbo(estimator="mean_field"))


def _like(z: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the scale of each group in front of the weights of the group, ``(groups, 1, ...)``."""
    return z.reshape(*z.shape, *(1 for _ in shape[1:]))


def _normal(site: str, centre: float, spread: float, *shape: int) -> dist.Normal:
    """Return the guide's normal of a site, its locations starting at random around a centre."""
    return dist.Normal(*_loc_and_scale(site, centre, spread, shape))


def _log_normal(site: str, centre: float, spread: float, *shape: int) -> dist.LogNormal:
    """Return the guide's log-normal of a site, likewise."""
    return dist.LogNormal(*_loc_and_scale(site, centre, spread, shape))


def _loc_and_scale(site: str, centre: float, spread: float, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    loc = pyro.param(f"{site}_loc", lambda: centre + spread * torch.randn(shape))
    scale = pyro.param(f"{site}_scale", lambda: torch.full(shape, _START_SCALE), constraint=constraints.positive)
    return loc, scale


def _plates(hyper: Hyper) -> tuple[str, ...]:
    """Return the plate of each layer's groups, and that of the outputs."""
    num = len(hyper.channels) + len(hyper.hidden) + 1
    return (*(f"channel_{l}" if l < len(hyper.channels) else f"unit_{l}" for l in range(num)), "class")


@dataclass(frozen=True, slots=True)
class _Architecture:
    """Shapes of the weights, and the deterministic part of the network; groups of weights come first in every shape.

    Args:
        shapes: Of each layer's weights: ``(filters, channels, 5, 5)``, or ``(inputs, outputs)``.
        num_filters: How many layers are convolutional.
        image: Channels, height and width of the data; empty for plain features.
        positions: Features in each channel of the last convolutional layer; 1 without one.
        inputs: Flattened features that enter the first fully connected layer; ``None``: all.
    """

    shapes: tuple[tuple[int, ...], ...]
    num_filters: int
    image: tuple[int, ...]
    positions: int
    inputs: tuple[int, ...] | None

    def arrange(self, x: Tensor) -> Tensor:
        """Return the features as the first layer takes them.

        Args:
            x: Features, ``(rows, ...)``.

        Returns:
            Images, or the features that enter.
        """
        return x.reshape(len(x), *self.image) if self.num_filters else self.select(x)

    def select(self, h: Tensor) -> Tensor:
        """Return the flattened features that enter the first fully connected layer.

        Args:
            h: Features, ``(rows, ...)``.

        Returns:
            ``(rows, inputs)``.
        """
        h = h.flatten(1)
        return h if self.inputs is None else h.index_select(1, torch.tensor(self.inputs, device=h.device))

    def apply(self, l: int, h: Tensor, W: Any, b: Any) -> Tensor:
        """Return the output of a layer, its non-linearity included.

        Args:
            l: Layer.
            h: Its input.
            W: Weights.
            b: Biases.

        Returns:
            The input of the next layer, or the logits.
        """
        if l < self.num_filters:
            h = nn.functional.max_pool2d(nn.functional.conv2d(h, W, b).relu(), _POOL)
            return self.select(h) if l + 1 == self.num_filters else h
        h = h @ W + b
        return h.relu() if l + 1 < len(self.shapes) else h


def _architecture(data: Dataset, hyper: Hyper) -> _Architecture:
    """Return the architecture for data, checking the hyper-parameters.

    Args:
        data: Data.
        hyper: Hyper-parameters.

    Returns:
        The architecture.

    Raises:
        DataError: As :func:`build`.
    """
    if any(size < 1 for size in (*hyper.hidden, *hyper.channels)):
        raise DataError(
            f"hidden is {hyper.hidden} and channels are {hyper.channels}; every layer needs at least one unit"
        )
    for name in ("temperature", "global_scale"):
        if not getattr(hyper, name) > 0:
            raise DataError(f"{name} is {getattr(hyper, name)}; it must be positive")
    shapes: list[tuple[int, ...]] = []
    image: tuple[int, ...] = ()
    positions, features = 1, data.train["x"][0].numel()
    if hyper.channels:
        image = tuple(int(n) for n in data.extra.get("image_shape", ()))
        if len(image) != 3:
            raise DataError(
                f"channels are {hyper.channels}, but data set '{data.name}' holds no images (extra['image_shape'] of "
                "channels, height, width); use fully connected layers alone: channels=()"
            )
        depth, *extent = image
        for filters in hyper.channels:
            shapes.append((filters, depth, _KERNEL, _KERNEL))
            depth, extent = filters, [(n - _KERNEL + 1) // _POOL for n in extent]
        if min(extent) < 1:
            raise DataError(
                f"images of {image[1]} x {image[2]} are too small for {len(hyper.channels)} convolutional layers of "
                f"{_KERNEL} x {_KERNEL} with pooling; use fewer channels"
            )
        positions = math.prod(extent)
        features = depth * positions
    if hyper.inputs is not None:
        if not hyper.inputs or not 0 <= min(hyper.inputs) <= max(hyper.inputs) < features:
            raise DataError(f"inputs are to be chosen from 0 to {features - 1}, at least one; got {hyper.inputs[:5]}")
        features = len(hyper.inputs)
    shapes += itertools.pairwise((features, *hyper.hidden, int(data.extra["num_classes"])))
    return _Architecture(tuple(shapes), len(hyper.channels), image, positions, hyper.inputs)


# ---------------------------------------------------------------------------------------- quantities of interest
class Layer(NamedTuple):
    r"""The posterior of one layer's weights, from the guide's parameters.

    Args:
        score: How little each group matters, ``(groups,)``: the log dropout rate :math:`\log
            \sigma_{z_i}^2 / \mu_{z_i}^2` (normal-Jeffreys) or the negative log mode of :math:`z_i` (horseshoe).
        mean: Posterior mean of the weights, ``(inputs, outputs)`` or ``(filters, channels, 5, 5)``.
        variance: Posterior variance of the weights, of the same shape.
        bias: Posterior mean of the biases, ``(outputs,)``.
    """

    score: Tensor
    mean: Tensor
    variance: Tensor
    bias: Tensor


def layers(params: Mapping[str, Tensor]) -> list[Layer]:
    r"""Return the posterior of every layer's weights, the scales summed out.

    .. math:: \mathrm{V}[w] = \mu_z^2 \sigma^2 + \sigma_z^2 (\mu^2 + \sigma^2)

    Args:
        params: Constrained parameters of the guide: ``posterior.params``, or ``dict(pyro.get_param_store())``.

    Returns:
        One entry per layer.

    References:
        Louizos, Ullrich, Welling (2017), eq. 10 and sec. 4.2 (thresholds).
    """
    found = []
    for l in range(sum(name.startswith("W_") and name.endswith("_loc") for name in params)):
        if f"z_{l}_loc" in params:
            z_mean, z_variance = params[f"z_{l}_loc"], params[f"z_{l}_scale"].square()
            score = z_variance.log() - z_mean.square().log()
        else:
            names = [f"{site}_{l}" for site in ("s_a", "s_b", "alpha", "beta")]
            # The root of a product of log-normal variables is log-normal: half the means, a quarter of the variances.
            m = torch.stack(torch.broadcast_tensors(*(params[f"{name}_loc"] for name in names))).sum(0) / 2
            scales = torch.broadcast_tensors(*(params[f"{name}_scale"] for name in names))
            v = torch.stack(scales).square().sum(0) / 4
            z_mean, z_variance = (m + v / 2).exp(), v.expm1() * (2 * m + v).exp()
            score = v - m
        mu, variance = params[f"W_{l}_loc"], params[f"W_{l}_scale"].square()
        mean = _like(z_mean, mu.shape) * mu
        total = _like(z_mean.square(), mu.shape) * variance
        total = total + _like(z_variance, mu.shape) * (mu.square() + variance)
        bias = params[f"b_{l}_loc"] if mu.dim() == 2 else z_mean * params[f"b_{l}_loc"]
        found.append(Layer(*(t.detach() for t in (score, mean, total, bias))))
    return found


def _filters(stack: Sequence[Layer]) -> int:
    """Return how many layers are convolutional."""
    return sum(layer.mean.dim() == 4 for layer in stack)


def _consistent(net: _Architecture, keep: Sequence[Tensor]) -> list[Tensor]:
    """Drop the features of filters that are gone, and the filters of which no feature is left."""
    keep = [mask.clone() for mask in keep]
    c = net.num_filters
    if c:
        features = torch.arange(len(keep[c])) if net.inputs is None else torch.tensor(net.inputs)
        channel = (features // net.positions).to(keep[c].device)
        keep[c] &= keep[c - 1][channel]
        keep[c - 1] &= torch.zeros_like(keep[c - 1]).index_fill(0, channel[keep[c]], True)
    return keep


def _shrunk(stack: Sequence[Layer], keep: Sequence[Tensor]) -> list[Layer]:
    """Return the layers without the groups that are not kept, neither as inputs nor as outputs."""
    c, found = _filters(stack), []
    for l, (score, mean, variance, bias) in enumerate(stack):
        after = keep[l + 1] if l + 1 < len(stack) else torch.ones_like(bias, dtype=torch.bool)
        if l < c:
            before = keep[l - 1] if l else torch.ones(mean.shape[1], dtype=torch.bool, device=mean.device)
            found.append(Layer(score[keep[l]], mean[keep[l]][:, before], variance[keep[l]][:, before], bias[keep[l]]))
        else:
            found.append(Layer(score[keep[l]], mean[keep[l]][:, after], variance[keep[l]][:, after], bias[after]))
    return found


def _rounded(layer: Layer) -> Tensor:
    """Return the mean weights, rounded to the significand bits of their layer."""
    step = 2.0 ** -_significand_bits(layer.variance)
    return (layer.mean / step).round() * step


def _smaller(net: _Architecture, keep: Sequence[Tensor]) -> _Architecture:
    """Return the architecture of the groups that are kept."""
    counts = [int(mask.sum()) for mask in keep]
    c, classes = net.num_filters, net.shapes[-1][1]
    depths = [net.shapes[0][1], *counts[:c]] if c else []
    features = torch.arange(len(keep[c])) if net.inputs is None else torch.tensor(net.inputs)
    chosen = features[keep[c].cpu()]
    if c:
        moved = keep[c - 1].cpu().cumsum(0) - 1  # where a channel stands among those kept
        chosen = moved[chosen // net.positions] * net.positions + chosen % net.positions
    shapes: list[tuple[int, ...]] = [(n, d, _KERNEL, _KERNEL) for d, n in itertools.pairwise(depths)]
    shapes += itertools.pairwise([*counts[c:], classes])
    return _Architecture(tuple(shapes), c, net.image, net.positions, tuple(chosen.tolist()))


def _logits(net: _Architecture, stack: Sequence[Layer], x: Tensor, *, rounded: bool) -> Tensor:
    h = net.arrange(x)
    for l, layer in enumerate(stack):
        W = _rounded(layer) if rounded else layer.mean
        h = net.apply(l, h, W, layer.bias)
    return h


@torch.no_grad()
def _path(posterior: Posterior) -> Iterator[list[Tensor]]:
    """Yield what is kept on the way from the whole network to the smallest one; see :func:`choose_units`."""
    stack, net = layers(posterior.params), _architecture(posterior.data, posterior.hyper)
    x = posterior.data.train["x"][: _ORDER_ROWS // 4 if net.num_filters else _ORDER_ROWS].to(stack[0].mean)
    y = posterior.data.train["y"][: len(x)].to(x.device)
    ranks = [layer.score.argsort() for layer in stack]

    def masks(counts: Sequence[int]) -> list[Tensor]:
        kept = [torch.zeros_like(rank, dtype=torch.bool) for rank in ranks]
        for mask, rank, count in zip(kept, ranks, counts, strict=True):
            mask[rank[:count]] = True
        return _consistent(net, kept)

    def loss(keep: Sequence[Tensor]) -> float:
        logits = _logits(_smaller(net, keep), _shrunk(stack, keep), x, rounded=False)
        return float(nn.functional.cross_entropy(logits, y))

    def without(counts: Sequence[int], l: int) -> list[int]:
        lot = counts[l] // (_LOTS if not net.num_filters else _LOTS // 3)
        return [*counts[:l], counts[l] - max(1, lot), *counts[l + 1 :]]

    def weigh(counts: Sequence[int]) -> tuple[float, float]:
        """Return the rise of the loss per weight freed, and the loss; a loss that falls is noise: no rise."""
        keep = masks(counts)
        if not all(bool(mask.any()) for mask in keep):
            return math.inf, math.inf
        freed, after = size - _num_weights(_smaller(net, keep).shapes), loss(keep)
        return max(after - now, 0.0) / freed if freed else 0.0, after

    counts = [len(rank) for rank in ranks]
    size, now = _num_weights(net.shapes), loss(masks(counts))
    costs = [(0.0, now)] * len(counts)
    while True:
        yield masks(counts)
        # A rise that was computed for an earlier network is computed again only once it is the smallest.
        fresh = [False] * len(counts)
        while True:
            l = min(range(len(counts)), key=lambda l: (costs[l][0], not fresh[l]))
            if fresh[l] or costs[l][0] == math.inf:
                break
            costs[l], fresh[l] = weigh(without(counts, l)), True
        if costs[l][0] == math.inf:
            return
        counts, now = without(counts, l), costs[l][1]
        size = _num_weights(_smaller(net, masks(counts)).shapes)


@torch.no_grad()
def _wrong(posterior: Posterior, split: str, keep: Sequence[Tensor] | Literal["all"] | None = None) -> float:
    """Return the fraction of wrong classes: of the posterior means, or of what is kept with its weights rounded."""
    net, stack = _kept(posterior, keep or "all")
    batch = posterior.data.split(split)
    logits = _logits(net, stack, batch["x"].to(stack[0].mean), rounded=keep is not None)
    return float((logits.argmax(-1).cpu() != batch["y"].cpu()).double().mean())


def _limit(posterior: Posterior, tolerance: float, split: str) -> float:
    """Return the error that may be reached: that of the whole network and some of its standard errors."""
    error = _wrong(posterior, split)
    return error + tolerance * _standard_error(error, len(posterior.data.split(split)["y"]))


def _standard_error(error: float, rows: int) -> float:
    """Return the standard error of an error, a fraction, that was measured on so many rows."""
    error = min(max(error, 0.0), 1.0)  # a smoothed one may lie outside
    return math.sqrt(error * (1 - error) / rows)


def choose_units(posterior: Posterior, *, tolerance: float = 1.0, split: str = "validation") -> list[Tensor]:
    r"""Choose a threshold per layer on validation data, by a rule and not by eye.

    Groups leave a few at a time, in each layer in the order of its ``score``. Among the layers, those go next which
    raise the log loss of up to 2,000 training rows (500 with convolutions) least per weight that they free. Of the
    networks on this path, the smallest is taken whose error on the split, with weights rounded to :func:`bit_widths`,
    exceeds that of the whole network by no more than ``tolerance`` of its standard errors. The thresholds are the
    scores at which each layer was cut.

    Args:
        posterior: A fit of this method.
        tolerance: Standard errors :math:`\sqrt{e (1 - e) / n}` of the whole network's error.
        split: Data on which to choose; the test data must not be used.

    Returns:
        For every layer, which of its groups to keep -- input units, or filters of a convolution --, boolean.
    """
    limit = _limit(posterior, tolerance, split)
    chosen: list[Tensor] | None = None
    for keep in _path(posterior):
        error = _wrong(posterior, split, keep)
        if chosen is None or error <= limit:
            chosen = keep
        if error > 2 * limit + 0.1:
            break
    assert chosen is not None
    return chosen


def prune(
    posterior: Posterior,
    *,
    tolerance: float = 2.0,
    limit: float | None = None,
    turns: int = 6,
    fraction: float = 0.35,
    steps: int = 3_000,
    learning_rate: float = 2e-3,
    final: bool = True,
    seed: int = 0,
) -> Posterior:
    r"""Take units out for good and fit what is left further, in turns.

    A turn goes along the path of :func:`choose_units` to the smallest network whose validation error, rounded, is
    within the limit and three quarters (in the first turn two and a quarter) of a standard error, but from the second
    turn on at least until ``fraction`` of the weights are gone. Then the smaller pair is fitted further, from the
    parameters of the larger, which lowers the error again.

    The limit is the error of the whole network and ``tolerance`` of its standard errors, or the number given. An error
    on a thousand rows is noisy, so what is held against it is smoothed: the straight line of least squares through the
    errors of a turn and its two neighbours (of the first or last turn, the next two), over the logarithm of their
    compression. The turns end, after three at the earliest, where that is above the limit by more than half a standard
    error of the error. Of the networks after each turn, the smallest is taken whose smoothed error is within the limit,
    and whose own is above it by no more than half its standard error. Training rows fit and validation rows choose;
    once the choice is made, the network taken is fitted further on both.

    Args:
        posterior: A fit of this method.
        tolerance: Standard errors of the whole network's validation error that may be given up.
        limit: Largest validation error, a fraction of the rows, in place of ``tolerance``: for example that of the
            network which this one is to replace.
        turns: Most turns.
        fraction: Of the weights, taken out in every turn but the first at least.
        steps: Optimiser steps of each turn.
        learning_rate: Highest learning rate of each turn; it falls to zero.
        final: Whether to fit the network taken on training and validation rows together in the end.
        seed: Of every random number.

    Returns:
        A posterior of the smaller network, of the same method: its ``hyper`` says what is left, and its training data
        hold the validation rows too if ``final``. ``info["pruned"]`` lists the turns with their compression,
        validation error and seconds. If no turn ends within the limit, it is the posterior that came, of which
        :func:`compress` keeps what :func:`choose_units` says.

    Raises:
        DataError: If the posterior's data have no validation rows, or an argument is out of range.
    """
    if turns < 1 or not 0 < fraction < 1:
        raise DataError(
            f"turns is {turns} and fraction is {fraction}; allowed: 1 or more turns, a fraction within 0 to 1"
        )
    limit = _limit(posterior, tolerance, "validation") if limit is None else limit
    whole, rows = _whole_weights(posterior), len(posterior.data.split("validation")["y"])
    recipe, now, seconds = posterior.info["recipe"], posterior, posterior.info["seconds"]
    fits: list[Posterior] = []
    found: list[dict[str, Any]] = []

    def go_on(data: Dataset, hyper: Hyper, init: Mapping[str, Tensor], turn: int) -> Posterior:
        return zoo.fit(
            METHOD, data, hyper=hyper, seed=seed + turn, steps=steps, init=init, learning_rate=learning_rate,
            schedule="linear", kl_warmup=0.0, batch_size=recipe["batch_size"] or 0, dtype=posterior.info["dtype"],
            device=posterior.info["device"], compile=posterior.info["compiled"], name=posterior.name,
        )  # fmt: skip

    for turn in range(turns):
        bound = limit + _HARD_CUTS[min(turn, 1)] * _standard_error(limit, rows)
        keep = _without(now, fraction if turn else 0.0, bound)
        net = _smaller(_architecture(now.data, now.hyper), keep)
        c = net.num_filters
        hyper = dataclasses.replace(
            now.hyper,
            channels=tuple(shape[0] for shape in net.shapes[:c]),
            hidden=tuple(shape[0] for shape in net.shapes[c + 1 :]),
            inputs=net.inputs,
        )
        now = go_on(now.data, hyper, _shrunk_params(now, keep), turn)
        seconds += now.info["seconds"] + now.info["compile_seconds"]
        now.info["whole_weights"] = whole
        saved, error = compression(now, "all"), _wrong(now, "validation", "all")
        fits.append(now)
        found.append({"pruning": saved.pruning, "precision": saved.precision, "error": error, "seconds": seconds})
        smooth = _smoothed([math.log(f["pruning"]) for f in found], [f["error"] for f in found])
        if turn >= 2 and smooth[-1] > limit + 0.5 * _standard_error(smooth[-1], rows):
            break
    best: Posterior | None = None
    for fit, after, level in zip(fits, found, smooth, strict=True):
        after["smoothed error"] = level
        if level <= limit and after["error"] <= limit + 0.5 * _standard_error(after["error"], rows):
            best = fit
    if best is None:
        return posterior
    if final:
        best = go_on(_joined(posterior.data), best.hyper, best.params, turns)
        seconds += best.info["seconds"] + best.info["compile_seconds"]
        best.info["seconds"] = seconds
    best.info |= {"pruned": found, "whole_weights": whole, "limit": limit}
    return best


def _smoothed(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Return at every point the line of least squares through it and its neighbours; the points if they are few."""
    found = list(y)
    for i, at in enumerate(x):
        start = min(max(i - 1, 0), max(len(x) - 3, 0))
        near, values = x[start : start + 3], y[start : start + 3]
        if len(set(near)) == 3:
            slope, level = statistics.linear_regression(near, values)
            found[i] = level + slope * at
    return found


def _joined(data: Dataset) -> Dataset:
    """Return the data with the validation rows among the training rows."""
    both = data.train, data.split("validation")
    train = {k: torch.cat([batch[k] for batch in both]) for k in data.train}
    return dataclasses.replace(
        data, train=train | {"index": torch.arange(len(train["y"]))}, validation=None, origin="user"
    )


def _without(posterior: Posterior, fraction: float, limit: float) -> list[Tensor]:
    """Return the smallest network on the path up to an error, but at most that without a fraction of the weights."""
    net = _architecture(posterior.data, posterior.hyper)
    most = (1 - fraction) * _num_weights(net.shapes)
    chosen: list[Tensor] | None = None
    for keep in _path(posterior):
        if _num_weights(_smaller(net, keep).shapes) <= most:
            if chosen is not None and _wrong(posterior, "validation", keep) > limit:
                break
            chosen = keep
    return keep if chosen is None else chosen


def _shrunk_params(posterior: Posterior, keep: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the guide's parameters of the groups that are kept."""
    c, found = _architecture(posterior.data, posterior.hyper).num_filters, {}
    for name, value in posterior.params.items():
        site, l = name.rpartition("_")[0].rpartition("_")[::2]
        at = int(l)
        after = keep[at + 1] if at + 1 < len(keep) else None
        if value.dim() and not (site == "b" and at >= c):
            value = value[keep[at]]
        if site == "W":
            over = after if at >= c else keep[at - 1] if at else None
            value = value if over is None else value[:, over]
        elif site == "b" and at >= c and after is not None:
            value = value[after]
        found[name] = value.detach().clone()
    return found


def _num_weights(shapes: Sequence[Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def bit_widths(means: Sequence[Tensor], variances: Sequence[Tensor]) -> list[int]:
    r"""Return the bits that one weight of each layer needs: sign, exponent and significand.

    A weight with posterior variance :math:`V` keeps those significand bits :math:`t` whose unit round-off
    :math:`2^{-t}` exceeds :math:`2 V`; a layer takes the mean over its weights, rounded up. The exponent has
    :math:`\lceil \log_2(\log_2 \max |w| + 1) + 1 \rceil` bits, over all layers, and at least one: the rule is
    undefined for :math:`\max |w| \le 1/2` and gives none up to 0.71, so the largest weight counts as 1 if it is less.

    Args:
        means: Posterior means of the weights that are kept, per layer.
        variances: Their posterior variances (not standard deviations).

    Returns:
        Bits per weight, per layer.

    References:
        Louizos, Ullrich, Welling (2017), sec. 4.2 and appendix C.
    """
    exponent = _exponent_bits(max(float(mean.abs().max()) for mean in means))
    return [1 + exponent + _significand_bits(variance) for variance in variances]


def _exponent_bits(largest: float) -> int:
    return math.ceil(math.log2(math.log2(max(largest, 1.0)) + 1) + 1)


def _significand_bits(variance: Tensor) -> int:
    # The number of t = 1, 2, ..., 23 with 2 V < 2^-t, i.e. t < -log2(2 V).
    bits = ((-(2 * variance.double()).log2()).ceil() - 1).clamp(0, _SIGNIFICAND_BITS)
    return math.ceil(float(bits.mean()) - 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """What a choice of units saves.

    Args:
        units: Groups kept per layer -- filters, or input units --, and the outputs.
        bits: Bits per weight, per layer.
        pruning: Weights of the whole network over weights kept.
        precision: Bits of the whole network, 32 per weight, over bits of the weights kept.
    """

    units: tuple[int, ...]
    bits: tuple[int, ...]
    pruning: float
    precision: float


def compression(posterior: Posterior, keep: Sequence[Tensor] | Literal["all"] | None = None) -> Compression:
    """Count weights and bits before and after; biases, a few hundred, are left out as in the paper.

    Args:
        posterior: A fit of this method; for one of :func:`prune`, "before" is the network before any pruning.
        keep: Groups to keep, as for :func:`compress`.

    Returns:
        Counts and ratios.
    """
    net, stack = _kept(posterior, keep)
    bits = bit_widths([layer.mean for layer in stack], [layer.variance for layer in stack])
    whole = _whole_weights(posterior)
    stored = sum(b * math.prod(shape) for b, shape in zip(bits, net.shapes, strict=True))
    return Compression(
        units=(*(shape[0] for shape in net.shapes), net.shapes[-1][1]),
        bits=tuple(bits),
        pruning=whole / _num_weights(net.shapes),
        precision=_FLOAT_BITS * whole / stored,
    )


def _whole_weights(posterior: Posterior) -> int:
    """Return the number of weights before any pruning."""
    own = _num_weights(_architecture(posterior.data, posterior.hyper).shapes)
    return int(posterior.info.get("whole_weights", own))


def _kept(posterior: Posterior, keep: Sequence[Tensor] | Literal["all"] | None) -> tuple[_Architecture, list[Layer]]:
    """Return the network of the groups that are kept; those of a pruned posterior are chosen already."""
    net, stack = _architecture(posterior.data, posterior.hyper), layers(posterior.params)
    if keep == "all" or (keep is None and "pruned" in posterior.info):
        return net, stack
    if keep is None:
        keep = choose_units(posterior)
    keep = _consistent(net, keep)
    return _smaller(net, keep), _shrunk(stack, keep)


class _Select(nn.Module):
    """Keep some of the features."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.index)


class _Packed(nn.Module):
    """A linear or convolutional layer whose weights are whole multiples of a step, held as small integers."""

    codes: Tensor
    bias: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.step = 2.0 ** -_significand_bits(layer.variance)
        codes = (layer.mean / self.step).round()
        largest = float(codes.abs().max())
        kind = next(t for t in (torch.int8, torch.int16, torch.int32) if largest <= torch.iinfo(t).max)
        self.register_buffer("codes", codes.to(kind) if codes.dim() == 4 else codes.T.contiguous().to(kind))
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.codes.to(x.dtype) * self.step
        function = nn.functional.conv2d if weight.dim() == 4 else nn.functional.linear
        return function(x, weight, self.bias)


def compress(
    posterior: Posterior,
    keep: Sequence[Tensor] | Literal["all"] | None = None,
    *,
    rounded: bool = True,
    packed: bool = False,
) -> nn.Sequential:
    """Return the compressed network: plain, dense, physically smaller.

    Args:
        posterior: A fit of this method.
        keep: Groups to keep, or ``all``; ``None`` chooses them with :func:`choose_units`, unless :func:`prune` has
            done so.
        rounded: Round weights to the significand bits of :func:`bit_widths`; ``False`` keeps the posterior means.
        packed: Hold the rounded weights as the smallest integers that they fit in, which makes files smaller and
            changes no prediction; they are turned into floating-point numbers at every call.

    Returns:
        A network from features, ``(rows, ...)``, to logits, ``(rows, classes)``.
    """
    net, stack = _kept(posterior, keep)
    return _module(net, stack, lambda layer: _Packed(layer) if packed else _plain(layer, rounded=rounded))


def _module(
    net: _Architecture, stack: Sequence[Layer], make: Callable[[Layer], nn.Module] | None = None
) -> nn.Sequential:
    """Return the network of the layers, each as ``make`` makes it; without it the means are the weights."""
    modules: list[nn.Module] = [nn.Flatten(), nn.Unflatten(1, net.image)] if net.num_filters else []
    for l, layer in enumerate(stack):
        if l == net.num_filters:
            chosen = range(net.shapes[l][0]) if net.inputs is None else net.inputs
            modules.append(_Select(torch.tensor(chosen, device=layer.mean.device)))
        modules += [_plain(layer, rounded=False) if make is None else make(layer), nn.ReLU()]
        if l < net.num_filters:
            modules.append(nn.MaxPool2d(_POOL))
    return nn.Sequential(*modules[:-1]).eval()


def _plain(layer: Layer, *, rounded: bool) -> nn.Module:
    """Return a layer of torch with the posterior means as weights."""
    weight = _rounded(layer) if rounded else layer.mean
    kind = {"dtype": weight.dtype, "device": weight.device}
    module: nn.Conv2d | nn.Linear
    if weight.dim() == 4:
        module = nn.utils.skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], _KERNEL, **kind)
    else:
        weight = weight.T
        module = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], **kind)
    module.weight.data.copy_(weight)
    module.bias.data.copy_(layer.bias)  # type: ignore[union-attr]
    return module


def summary(posterior: Posterior) -> dict[str, float | str]:
    """Return error, units, compression and bits of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        By name; errors in percent of the test data, of which nothing was chosen.
    """
    split = "test" if posterior.data.test is not None else "validation"
    batch = posterior.data.split(split)
    net = _architecture(posterior.data, posterior.hyper)
    keep: Any = "all" if "pruned" in posterior.info else choose_units(posterior)
    saved = compression(posterior, keep)
    found: dict[str, float | str] = {}
    if "pruned" in posterior.info:
        found["pruned and fitted further, turns"] = float(len(posterior.info["pruned"]))
    else:
        found[f"{split} error of the whole network (%)"] = _error(compress(posterior, "all", rounded=False), batch)
        found["units"] = "-".join(str(n) for n in (*(shape[0] for shape in net.shapes), net.shapes[-1][1]))
    return found | {
        f"{split} error, pruned and rounded (%)": _error(compress(posterior, keep), batch),
        "units kept": "-".join(map(str, saved.units)),
        "compression by pruning": saved.pruning,
        "compression with bit precision": saved.precision,
        "bits per weight, by layer": ", ".join(map(str, saved.bits)),
    }


def figures(posterior: Posterior) -> list[Figure]:
    """Return the figures of a fit: what survives, the weights before and after, accuracy against compression.

    Args:
        posterior: A fit of this method.

    Returns:
        Descriptions, for the report.
    """
    net, stack = _architecture(posterior.data, posterior.hyper), layers(posterior.params)
    small, left = _kept(posterior, None)
    turns = posterior.info.get("pruned", ())
    found = []
    image = tuple(posterior.data.extra.get("image_shape", ()))
    if not net.num_filters and len(image) == 3 and image[0] == 1:
        pixels = torch.zeros(image[1] * image[2])
        pixels[list(small.inputs or range(len(pixels)))] = 1.0
        typical = posterior.data.train["x"].reshape(-1, *image[1:]).float().mean(0)

        def survivors(axes: Any) -> None:
            for axis, title, shown in (
                (axes[0, 0], "mean of the training images", typical),
                (axes[0, 1], f"{int(pixels.sum())} of {len(pixels)} pixels are read", pixels.reshape(image[1:])),
            ):
                axis.imshow(shown.numpy(), cmap="gray_r")
                axis.set(title=title, xticks=[], yticks=[])
                axis.grid(visible=False)

        found.append(
            Figure(
                name="pixels", paint=survivors, columns=2, height=2.6,
                alt=f"The mean image beside a map of the {int(pixels.sum())} pixels that the network reads.",
                caption="The pixels that are left as inputs: those at the border, empty in most images, go first.",
            )
        )  # fmt: skip

    last = len(stack) - 2 if not net.num_filters else net.num_filters  # a matrix small enough to look at
    name = f"W_{last}"

    def matrices(axes: Any) -> None:
        bound = float(stack[last].mean.abs().max())
        for axis, title, layer in ((axes[0, 0], "before", stack[last]), (axes[0, 1], "after", left[last])):
            weight = layer.mean.cpu().numpy()
            axis.imshow(weight, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
            axis.set(title=f"{title}: {weight.shape[0]} x {weight.shape[1]}", xlabel="output", ylabel="input")
            axis.grid(visible=False)

    def spread(axes: Any) -> None:
        axis, means = axes[0, 0], [layer.mean.abs().flatten().cpu() for layer in left]
        for l, values in enumerate(means):
            ordered = values.sort(descending=True).values[:: max(1, len(values) // 400)].numpy()
            axis.plot(torch.linspace(0, 1, len(ordered)).numpy(), ordered + 1e-9, label=f"W_{l}")
        axis.set(xlabel="part of the layer's weights, largest first", ylabel="|posterior mean|", yscale="log")
        axis.legend(frameon=False, fontsize=8)

    if "pruned" in posterior.info:
        found.append(
            Figure(
                name="weights", paint=spread, alt="Sorted absolute weights of every layer of the pruned network.",
                caption="Posterior means of the weights that are left: few are close to zero, as whole units went.",
            )
        )  # fmt: skip
    else:
        found.append(
            Figure(
                name="weights", paint=matrices, columns=2,
                alt=f"The matrix {name} before and after pruning.",
                caption=f"Posterior means of {name} with all of its units, and with those that the rule keeps.",
            )
        )  # fmt: skip

    if turns:
        curve = [(turn["pruning"], turn["error"]) for turn in turns]
        limit, way = posterior.info["limit"], "after each turn of pruning and fitting further"
    else:
        whole, limit = _whole_weights(posterior), _limit(posterior, 1.0, "validation")
        curve, way = [], "as units leave, in the order of the rule"
        for keep in _path(posterior):
            error = _wrong(posterior, "validation", keep)
            curve.append((whole / _num_weights(_smaller(net, keep).shapes), error))
            if error > 2 * limit + 0.1:
                break

    def trade(axes: Any) -> None:
        axis = axes[0, 0]
        axis.plot([c for c, _ in curve], [100 * e for _, e in curve], marker="o", ms=3, label="rounded network")
        axis.axhline(100 * limit, ls="--", lw=1, color="#b3261d", label="limit of the rule")
        axis.axvline(_whole_weights(posterior) / _num_weights(small.shapes), lw=1, color="#616a75", label="chosen")
        axis.set(xscale="log", xlabel="weights before over weights after", ylabel="validation error (%)")
        axis.set_ylim(0, min(100.0, 300 * limit))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}" if curve[-1][0] < 10 * curve[0][0] else "")
        axis.legend(frameon=False, fontsize=8)

    found.append(
        Figure(
            name="trade-off", paint=trade, alt=f"Validation error against compression by pruning, {way}.",
            caption=f"Validation error against compression {way}; the smallest network below the limit is chosen.",
        )
    )  # fmt: skip
    return found


@torch.no_grad()
def _error(network: nn.Module, batch: Batch) -> float:
    """Return the percentage of wrong classes."""
    like = next(itertools.chain(network.parameters(), (b for b in network.buffers() if b.is_floating_point())))
    predicted = network(batch["x"].to(like)).argmax(-1).cpu()
    return 100 * float((predicted != batch["y"].cpu()).double().mean())


# -------------------------------------------------------------------------------------------------------- claims
_LENET_300_100 = Hyper()
_LENET_5 = Hyper(channels=(20, 50), hidden=(500,))


def _measure_dense(seed: int, fast: bool) -> dict[str, float]:
    """Fit LeNet-300-100, see :func:`_measure`."""
    return _measure(Hyper(hidden=(30, 20)) if fast else _LENET_300_100, seed, fast)


def _measure_convolutional(seed: int, fast: bool) -> dict[str, float]:
    """Fit LeNet-5, see :func:`_measure`."""
    return _measure(Hyper(channels=(4, 8), hidden=(30,)) if fast else _LENET_5, seed, fast)


def _measure(hyper: Hyper, seed: int, fast: bool) -> dict[str, float]:
    """Fit both priors and what they are compared with: mean field, sparse dropout, a dense network, its cheaper forms.

    Pruning may go on until the validation error is that of a dense network trained on the same rows, less half of its
    standard error, since the smallest network within a limit is within it by luck too. As the pruned networks in the
    end, all others are then trained on the validation rows too.

    Args:
        hyper: The architecture.
        seed: Seed.
        fast: Few steps on a few rows.

    Returns:
        Test error in percent, compression by pruning and with bit precision, seconds; by method.
    """
    data = zoo.datasets.load("mnist")
    if fast:
        few = {s: {k: v[:300] for k, v in data.split(s).items()} for s in ("train", "validation", "test")}
        data = dataclasses.replace(data, **few)  # type: ignore[arg-type]
    net, rows, test, found = _architecture(data, hyper), _joined(data), data.split("test"), dict[str, float]()
    options: dict[str, Any] = {"seed": seed, "compile": not fast}
    turns: dict[str, Any] = {"seed": seed}
    steps = 5_000
    if hyper.channels:
        options |= {"steps": 1_500, "batch_size": 64}
        turns |= {"steps": 2_000, "fraction": 0.4}
        steps = 1_500
    if fast:
        options |= {"steps": 60, "batch_size": 64}
        turns |= {"turns": 2, "steps": 40}
        steps = 60

    def note(name: str, error: float, pruning: float = 1.0, precision: float = 1.0) -> None:
        found[f"error {name}"] = error
        if pruning != 1.0:
            found[f"pruning {name}"] = pruning
        if precision != 1.0:
            found[f"with bits {name}"] = precision

    started = time.perf_counter()
    error = _error(_dense_fit(net, data, steps, seed), data.split("validation")) / 100
    limit = error - 0.5 * _standard_error(error, len(data.split("validation")["y"]))
    seconds = time.perf_counter() - started
    # The scales of the horseshoe have further to go, so its rate is larger.
    for name, prior, rate in (("GNJ", "normal_jeffreys", 3e-3), ("GHS", "horseshoe", 4e-3 if hyper.channels else 6e-3)):
        started = time.perf_counter()
        own = dataclasses.replace(hyper, prior=prior)  # type: ignore[arg-type]
        posterior = zoo.fit(METHOD, data, hyper=own, learning_rate=rate, **options)
        small = prune(posterior, limit=limit, **turns)
        found[f"seconds {name}"] = seconds + time.perf_counter() - started
        note(f"{name}, whole", _error(compress(posterior, "all", rounded=False), test))
        once = choose_units(posterior)
        for label, fitted, keep in ((f"{name}, cut once", posterior, once), (name, small, None)):
            saved = compression(fitted, keep)
            note(label, _error(compress(fitted, keep), test), saved.pruning, saved.precision)

    recipe = {f.name: getattr(METHOD.recipe, f.name) for f in dataclasses.fields(METHOD.recipe)} | options
    plain = zoo.fit(_mean_field(rows, dataclasses.replace(hyper, temperature=0.2)), rows, **recipe)
    note("mean field", _error(_module(net, layers(_with_scales(plain.params, hyper))), test))
    sparse = zoo.fit(_sparse_dropout(rows, hyper), rows, **recipe)
    stack = layers(_with_scales(sparse.params, hyper))
    masks = [(layer.variance.log() - layer.mean.square().log()) < _LOG_ALPHA for layer in stack]
    means, variances = ([part[mask] for part, mask in zip(parts, masks, strict=True)] for parts in (
        [layer.mean for layer in stack], [layer.variance for layer in stack]
    ))  # fmt: skip
    counts = [int(mask.sum()) for mask in masks]
    stored = sum(b * count for b, count in zip(bit_widths(means, variances), counts, strict=True))
    total = _num_weights(net.shapes)
    cut = [layer._replace(mean=layer.mean * mask) for layer, mask in zip(stack, masks, strict=True)]
    note("sparse dropout", _error(_module(net, cut), test), total / sum(counts), _FLOAT_BITS * total / stored)

    dense = _dense_fit(net, rows, steps, seed)
    note("dense", _error(dense, test))
    note("int8", _error(_eight_bits(dense), test), 1.0, 4.0)
    pruned, ratio, rounds = dense, found["pruning GNJ"], 3
    with _seeded(seed):
        for turn in range(1, rounds + 1):
            pruned = _train(_prune_by_magnitude(pruned, ratio ** (turn / rounds)), rows, steps // 2)
    note("magnitude pruning", _error(pruned, test), ratio, ratio)
    note("magnitude pruning, int8", _error(_eight_bits(pruned), test), ratio, 4 * ratio)
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global stream within a block, and leave it as it was.

    Args:
        seed: Seed.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _dense_fit(net: _Architecture, data: Dataset, steps: int, seed: int) -> nn.Sequential:
    """Return a dense network trained on the training rows."""
    with _seeded(seed):
        return _train(_dense(net), data, steps)


_LOG_ALPHA = 3.0  # Molchanov et al. (2017): a weight with a larger dropout rate is zero


def _mean_field(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair with every scale known to be one: standard normal priors and independent normal posteriors."""
    pair, net = build(data, hyper), _architecture(data, hyper)
    ones = {f"z_{l}": torch.ones(shape[0]) for l, shape in enumerate(net.shapes)}
    known = partial(poutine.condition, data=ones)
    return pair._replace(model=known(pair.model), guide=poutine.block(known(pair.guide), hide=list(ones)))


def _sparse_dropout(data: Dataset, hyper: Hyper) -> Pair:
    """Return sparse variational dropout (Molchanov et al. 2017): mean field with a log-uniform prior of a weight."""
    pair = _mean_field(data, hyper)

    def prior(site: Any) -> Any:
        shape = site["fn"].batch_shape + site["fn"].event_shape
        return NormalJeffreys(shape, like=site["fn"].mean).to_event(len(site["fn"].event_shape))

    return pair._replace(model=_Replaced(prior)(pair.model))


class _Replaced(Messenger):  # type: ignore[misc]
    """Put another prior in the place of that of every weight."""

    def __init__(self, prior: Callable[[Any], Any]) -> None:
        super().__init__()
        self._prior = prior

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"].startswith("W_"):
            msg["fn"] = self._prior(msg)


def _with_scales(params: Mapping[str, Tensor], hyper: Hyper) -> dict[str, Tensor]:
    """Return the parameters of a mean-field guide as those of a guide whose scales are one."""
    found = dict(params)
    for l in range(len(hyper.channels) + len(hyper.hidden) + 1):
        one = torch.ones(len(found[f"W_{l}_loc"]))
        found |= {f"z_{l}_loc": one, f"z_{l}_scale": 0 * one}
    return found


def _dense(net: _Architecture) -> nn.Sequential:
    """Return the network with torch's own initial weights."""
    modules: list[nn.Module] = [nn.Flatten(), nn.Unflatten(1, net.image)] if net.num_filters else [nn.Flatten()]
    for l, shape in enumerate(net.shapes):
        if l < net.num_filters:
            modules += [nn.Conv2d(shape[1], shape[0], _KERNEL), nn.ReLU(), nn.MaxPool2d(_POOL)]
            modules += [nn.Flatten()] if l + 1 == net.num_filters else []
        else:
            modules += [nn.Linear(shape[0], shape[1]), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def _weights(network: nn.Sequential) -> list[Tensor]:
    return [m.weight for m in network if isinstance(m, nn.Linear | nn.Conv2d)]


def _train(network: nn.Sequential, data: Dataset, steps: int) -> nn.Sequential:
    """Minimise the cross entropy by Adam with a falling rate; weights that are zero stay zero."""
    weights = _weights(network)
    masks = [(weight != 0).to(weight.dtype) for weight in weights]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    x, y = data.train["x"], data.train["y"]
    size = min(128, len(y))
    for _ in range(steps):
        rows = torch.randint(len(y), (size,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)
    return network


@torch.no_grad()
def _prune_by_magnitude(network: nn.Sequential, ratio: float) -> nn.Sequential:
    """Zero the smallest weights of all layers together, until one in ``ratio`` is left."""
    cut = copy.deepcopy(network)
    sizes = torch.cat([weight.abs().flatten() for weight in _weights(cut)])
    threshold = sizes.topk(max(1, round(len(sizes) / ratio))).values[-1]
    for weight in _weights(cut):
        weight.mul_(weight.abs() >= threshold)
    return cut


@torch.no_grad()
def _eight_bits(network: nn.Sequential) -> nn.Sequential:
    """Round weights to 255 levels, symmetric around zero, with a scale per output."""
    rounded = copy.deepcopy(network)
    for weight in _weights(rounded):
        step = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12) / 127
        weight.copy_((weight / step).round() * step)
    return rounded


CLAIMS = (
    Claim(
        statement="On MNIST-8k, LeNet-300-100 is pruned at least 26 times and compressed at least 92 times with bit "
        "precision, at an error no higher than the dense network's and of at most 5.2%, what a public implementation "
        "reaches at 25.6 and 92 times.",
        published="MNIST, LeNet-300-100: 9x by pruning, 36x to 58x with bit precision, error 1.8% (dense 1.6%)",
        source="Louizos, Ullrich, Welling (2017), table 2",
        measure=_measure_dense,
        acceptance=(
            Acceptance(key="pruning GNJ", low=26.0, median=True),
            Acceptance(key="with bits GNJ", low=92.0, median=True),
            Acceptance(key="error GNJ", high=5.2, errors=1.0),
            Acceptance(key="error GNJ", below="error dense", errors=1.0),
            Acceptance(key="seconds GNJ", high=150.0),
        ),
        budget=600,
        seeds=5,
    ),
    Claim(
        statement="The group horseshoe compresses LeNet-300-100 as far, at an error no higher than the dense one's.",
        published="LeNet-5-Caffe: GNJ 108x and 361x, GHS 156x and 419x, both with error 1.0%",
        source="Louizos, Ullrich, Welling (2017), table 2",
        measure=_measure_dense,
        acceptance=(
            Acceptance(key="pruning GHS", low=26.0, median=True),
            Acceptance(key="with bits GHS", low=92.0, median=True),
            Acceptance(key="error GHS", below="error dense", errors=1.0),
        ),
        budget=400,
        seeds=5,
    ),
    Claim(
        statement="On MNIST-8k, LeNet-5 is pruned at least 40 times and compressed at least 150 times with bit "
        "precision, at an error no higher than the dense network's.",
        published="MNIST, LeNet-5-Caffe: GNJ 108x by pruning, 361x with bit precision, error 1.0%; GHS 156x, 419x, "
        "1.0%; sparse variational dropout 63x, 228x, 1.0%; soft weight sharing 100x in all; deep compression 6x, 0.7%",
        source="Louizos, Ullrich, Welling (2017), table 2",
        measure=_measure_convolutional,
        acceptance=(
            Acceptance(key="pruning GNJ", low=40.0, median=True),
            Acceptance(key="with bits GNJ", low=150.0, median=True),
            Acceptance(key="error GNJ", below="error dense", errors=1.0),
        ),
        budget=1200,
        seeds=5,
    ),
    Claim(
        statement="At equal error, groups with bit precision take less memory than magnitude pruning with 8-bit "
        "weights and than sparse variational dropout.",
        published="LeNet-5-Caffe: 361x (GNJ) and 419x (GHS) against 228x (sparse variational dropout)",
        source="Louizos, Ullrich, Welling (2017), table 2",
        measure=_measure_dense,
        acceptance=(
            Acceptance(key="with bits GNJ", above="with bits magnitude pruning, int8"),
            Acceptance(key="with bits GNJ", above="with bits sparse dropout"),
            Acceptance(key="error GNJ", below="error magnitude pruning, int8", errors=1.0),
            Acceptance(key="error GNJ", below="error sparse dropout", errors=1.0),
        ),
        budget=400,
        seeds=5,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    found: dict[str, tuple[str, ...]] = {}
    for l, (group, after) in enumerate(itertools.pairwise(_plates(hyper))):
        if hyper.prior == "normal_jeffreys":
            found[f"z_{l}"] = (group,)
        else:
            found |= {f"s_a_{l}": (), f"s_b_{l}": (), f"alpha_{l}": (group,), f"beta_{l}": (group,)}
        found |= {f"W_{l}": (group,), f"b_{l}": (group if l < len(hyper.channels) else after,)}
    return found


METHOD = Method(
    name="bayesian_compression",
    title="Bayesian compression: networks that prune units and count bits",
    paper="louizos2017bayesian",
    task="classification",
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(hidden=(20, 10)),
    default_data="mnist",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=6_000, learning_rate=3e-3, batch_size=128, schedule="linear", kl_warmup=0.5),
    summary=summary,
    figures=figures,
    prune=prune,
    compress=compress,
    use_when="You need a smaller dense classifier, or want to see which inputs a network uses, and can pay for one "
    "longer training run.",
    avoid_when="The uncertainty of the weights is the aim: intervals of a tempered mean-field posterior are too "
    "narrow. The target is a number: only classes are supported. Zeros among the weights are enough, and units need "
    "not go: sparse variational dropout then errs less (see the claims).",
    needs="A table or images with classes as target, thousands of rows rather than hundreds, features whose zero "
    "means nothing (pixels in [0, 1], standardised columns), and validation rows, on which the pruned units are "
    "chosen.",
)
