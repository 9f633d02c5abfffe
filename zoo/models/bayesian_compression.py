r"""Bayesian compression: prune the units of a network by group sparsity, and choose the bits by posterior variance.

Layer :math:`l` maps :math:`h \in \mathbb{R}^{A}` to :math:`\mathbb{R}^{B}`. All weights that leave input unit :math:`i`
share one scale, so that a unit whose scale vanishes can be taken out of the network. ``Hyper.prior`` chooses what is
believed of the scale. Group normal-Jeffreys (default):

.. math::

    p(z_i) \propto 1 / |z_i|, \qquad w_{ij} \mid z_i \sim \mathrm{N}(0, z_i^2).

Group horseshoe, with one scale :math:`s` per layer and half-Cauchy variables as roots of a product of a gamma and an
inverse gamma variable:

.. math::

    s &= \sqrt{s_a s_b}, \qquad & s_a &\sim \mathrm{Gamma}(\tfrac12, \tau_0^{-2}), \quad & s_b &\sim
    \mathrm{InvGamma}(\tfrac12, 1), \qquad & \text{i.e. } s &\sim \mathrm{C}^{+}(0, \tau_0), \\
    \tilde z_i &= \sqrt{\alpha_i \beta_i}, \qquad & \alpha_i &\sim \mathrm{Gamma}(\tfrac12, 1), \quad & \beta_i &\sim
    \mathrm{InvGamma}(\tfrac12, 1), \qquad & \text{i.e. } \tilde z_i &\sim \mathrm{C}^{+}(0, 1),

and :math:`z_i = s \tilde z_i` in place of the above. Then, with :math:`\mathrm{relu}` between the layers,

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

``unit_0`` are the features.

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
- Convolutional layers are not part of this file yet.

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
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn

import zoo
from zoo.errors import DataError
from zoo.models._parts.distributions import NormalJeffreys
from zoo.models._parts.handlers import local_reparametrisation
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Method, Pair, Recipe

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
    "layers",
    "sites",
    "summary",
]

_START_SCALE = 0.05  # of every normal and log-normal in the guide
_FLOAT_BITS = 32
_SIGNIFICAND_BITS = 23
_ORDER_ROWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        hidden: Units of each hidden layer.
        prior: ``normal_jeffreys`` or ``horseshoe``.
        global_scale: Scale tau_0 of the half-Cauchy prior on a layer's scale; only read by ``horseshoe``.
        temperature: Every row counts ``1 / temperature`` times; 1 is the Bayesian posterior.
    """

    hidden: tuple[int, ...] = (300, 100)
    prior: Literal["normal_jeffreys", "horseshoe"] = "normal_jeffreys"
    global_scale: float = 1e-2
    temperature: float = 0.2


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with features ``x``, ``(rows, ...)``, classes ``y`` and ``index``; ``extra["num_classes"]``.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch.

    Raises:
        DataError: If a hyper-parameter is out of range.
    """
    if any(size < 1 for size in hyper.hidden):
        raise DataError(f"hidden is {hyper.hidden}; every hidden layer needs at least one unit")
    for name in ("temperature", "global_scale"):
        if not getattr(hyper, name) > 0:
            raise DataError(f"{name} is {getattr(hyper, name)}; it must be positive")
    sizes = _sizes(data, hyper)
    num_layers = len(sizes) - 1
    tau = hyper.global_scale

    def plates() -> list[pyro.plate]:
        return [pyro.plate(name, size, dim=-1) for name, size in zip(_plates(hyper), sizes, strict=True)]

    @local_reparametrisation
    def model(batch: Batch) -> None:
        h = batch["x"].flatten(1)
        one, unit = h.new_ones(()), plates()
        for l in range(num_layers):
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
                W = pyro.sample(f"W_{l}", dist.Normal(h.new_zeros(sizes[l + 1]), z[..., None]).to_event(1))
            with unit[l + 1]:
                b = pyro.sample(f"b_{l}", dist.Normal(0 * one, one))
            h = h @ W + b
            h = h.relu() if l + 1 < num_layers else h.log_softmax(-1)
        with pyro.plate("datum", data.num_data, subsample=batch["index"]), poutine.scale(scale=1 / hyper.temperature):
            pyro.sample("y", dist.Categorical(logits=h), obs=batch.get("y"))

    @local_reparametrisation
    def guide(batch: Batch) -> None:
        unit = plates()
        for l in range(num_layers):
            inputs, outputs = sizes[l], sizes[l + 1]
            if hyper.prior == "normal_jeffreys":
                with unit[l]:
                    z = pyro.sample(f"z_{l}", _normal(f"z_{l}", 1.0, 0.01, inputs))
            else:
                s_a = pyro.sample(f"s_a_{l}", _log_normal(f"s_a_{l}", 2 * math.log(tau), 0.0))
                s_b = pyro.sample(f"s_b_{l}", _log_normal(f"s_b_{l}", 0.0, 0.0))
                with unit[l]:
                    alpha = pyro.sample(f"alpha_{l}", _log_normal(f"alpha_{l}", 0.0, 0.01, inputs))
                    beta = pyro.sample(f"beta_{l}", _log_normal(f"beta_{l}", -2 * math.log(tau), 0.01, inputs))
                z = (s_a * s_b).sqrt() * (alpha * beta).sqrt()
            with unit[l]:
                w = _normal(f"W_{l}", 0.0, inputs**-0.5, inputs, outputs)
                z = z[..., None]
                fn = dist.Normal(z * w.loc, z.abs() * w.scale).to_event(1)
                pyro.sample(f"W_{l}", fn, infer={"local": True})
            with unit[l + 1]:
                pyro.sample(f"b_{l}", _normal(f"b_{l}", 0.0, 0.0, outputs), infer={"local": True})

    return Pair(model, guide, Elbo(estimator="mean_field"))


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


def _sizes(data: Dataset, hyper: Hyper) -> tuple[int, ...]:
    """Return the number of units of every layer, features first and classes last."""
    return (data.train["x"][0].numel(), *hyper.hidden, int(data.extra["num_classes"]))


def _plates(hyper: Hyper) -> tuple[str, ...]:
    return (*(f"unit_{l}" for l in range(len(hyper.hidden) + 1)), "class")


# ---------------------------------------------------------------------------------------- quantities of interest
class Layer(NamedTuple):
    r"""The posterior of one layer's weights, from the guide's parameters.

    Args:
        score: How little each input unit matters, ``(inputs,)``: the log dropout rate :math:`\log
            \sigma_{z_i}^2 / \mu_{z_i}^2` (normal-Jeffreys) or the negative log mode of :math:`z_i` (horseshoe).
        mean: Posterior mean of the weights, ``(inputs, outputs)``.
        variance: Posterior variance of the weights, ``(inputs, outputs)``.
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
        mean = z_mean[:, None] * mu
        total = z_mean.square()[:, None] * variance + z_variance[:, None] * (mu.square() + variance)
        found.append(Layer(*(t.detach() for t in (score, mean, total, params[f"b_{l}_loc"]))))
    return found


def _shrunk(stack: Sequence[Layer], keep: Sequence[Tensor]) -> list[Layer]:
    """Return the layers without the units that are not kept, neither as inputs nor as outputs."""
    kept = [*keep, torch.ones(len(stack[-1].bias), dtype=torch.bool, device=stack[-1].bias.device)]
    return [
        Layer(layer.score[i], layer.mean[i][:, o], layer.variance[i][:, o], layer.bias[o])
        for layer, (i, o) in zip(stack, itertools.pairwise(kept), strict=True)
    ]


def _rounded(layer: Layer) -> Tensor:
    """Return the mean weights, rounded to the significand bits of their layer."""
    step = 2.0 ** -_significand_bits(layer.variance)
    return (layer.mean / step).round() * step


def choose_units(posterior: Posterior, *, tolerance: float = 1.0, split: str = "validation") -> list[Tensor]:
    r"""Choose a threshold per layer on validation data, by a rule and not by eye.

    Units leave one small group at a time, in each layer in the order of its ``score``. Among the layers, that group
    goes next which raises the log loss of up to 2,000 training rows least per weight that it frees. Of the networks on
    this path, the smallest is taken whose error on the split, with weights rounded to :func:`bit_widths`, exceeds that
    of the whole network by no more than ``tolerance`` of its standard errors. The thresholds are the scores at which
    each layer was cut.

    Args:
        posterior: A fit of this method.
        tolerance: Standard errors :math:`\sqrt{e (1 - e) / n}` of the whole network's error.
        split: Data on which to choose; the test data must not be used.

    Returns:
        For every layer, which of its input units to keep, ``(inputs,)``, boolean.
    """
    stack = layers(posterior.params)

    def rows(batch: Batch, num: int | None = None) -> tuple[Tensor, Tensor]:
        x = batch["x"][:num].flatten(1).to(stack[0].mean)
        return x, batch["y"][:num].to(x.device)

    order, held = rows(posterior.data.train, _ORDER_ROWS), rows(posterior.data.split(split))
    ranks = [layer.score.argsort() for layer in stack]
    counts, outputs = [len(rank) for rank in ranks], len(stack[-1].bias)

    def masks(counts: Sequence[int]) -> list[Tensor]:
        kept = [torch.zeros(len(rank), dtype=torch.bool, device=rank.device) for rank in ranks]
        for mask, rank, count in zip(kept, ranks, counts, strict=True):
            mask[rank[:count]] = True
        return kept

    def logits(x: Tensor, counts: Sequence[int], *, rounded: bool) -> Tensor:
        keep = masks(counts)
        h = x[:, keep[0]]
        for l, layer in enumerate(_shrunk(stack, keep)):
            h = h @ (_rounded(layer) if rounded else layer.mean) + layer.bias
            h = h.relu() if l + 1 < len(stack) else h
        return h

    def error(counts: Sequence[int], *, rounded: bool) -> float:
        return float((logits(held[0], counts, rounded=rounded).argmax(-1) != held[1]).double().mean())

    def loss(counts: Sequence[int]) -> float:
        return float(nn.functional.cross_entropy(logits(order[0], counts, rounded=False), order[1]))

    whole = error(counts, rounded=False)
    limit = whole + tolerance * math.sqrt(whole * (1 - whole) / len(held[1]))
    chosen, now = counts, loss(counts)
    while True:
        steps = []
        for l, count in enumerate(counts):
            fewer = count - max(1, count // 25)
            if fewer < 1:
                continue
            after = [*counts[:l], fewer, *counts[l + 1 :]]
            freed = _num_weights([*counts, outputs]) - _num_weights([*after, outputs])
            # A loss that falls is noise: such groups go by the weights that they free.
            steps.append((max(loss(after) - now, 0.0) / freed, -freed, after))
        if not steps:
            return masks(chosen)
        counts = min(steps)[-1]
        now = loss(counts)
        if error(counts, rounded=True) <= limit:
            chosen = counts


def _num_weights(sizes: Sequence[int]) -> int:
    return sum(a * b for a, b in itertools.pairwise(sizes))


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
        units: Input units kept per layer, and the outputs.
        bits: Bits per weight, per layer.
        pruning: Weights of the whole network over weights kept.
        precision: Bits of the whole network, 32 per weight, over bits of the weights kept.
    """

    units: tuple[int, ...]
    bits: tuple[int, ...]
    pruning: float
    precision: float


def compression(params: Mapping[str, Tensor], keep: Sequence[Tensor]) -> Compression:
    """Count weights and bits before and after; biases, a few hundred, are left out as in the paper.

    Args:
        params: Constrained parameters of the guide, as for :func:`layers`.
        keep: Units to keep, as :func:`choose_units` returns them.

    Returns:
        Counts and ratios.
    """
    stack = layers(params)
    small = _shrunk(stack, keep)
    bits = bit_widths([layer.mean for layer in small], [layer.variance for layer in small])
    whole = sum(layer.mean.numel() for layer in stack)
    kept = sum(layer.mean.numel() for layer in small)
    stored = sum(b * layer.mean.numel() for b, layer in zip(bits, small, strict=True))
    return Compression(
        units=(*(int(mask.sum()) for mask in keep), len(stack[-1].bias)),
        bits=tuple(bits),
        pruning=whole / kept,
        precision=_FLOAT_BITS * whole / stored,
    )


class _Select(nn.Module):
    """Keep some of the features."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.index)


def compress(posterior: Posterior, keep: Sequence[Tensor] | None = None, *, rounded: bool = True) -> nn.Sequential:
    """Return the compressed network: plain, dense, physically smaller.

    Args:
        posterior: A fit of this method.
        keep: Units to keep; ``None`` chooses them with :func:`choose_units`.
        rounded: Round weights to the significand bits of :func:`bit_widths`; ``False`` keeps the posterior means.

    Returns:
        A network from features, ``(rows, ...)``, to logits, ``(rows, classes)``.
    """
    keep = choose_units(posterior) if keep is None else keep
    modules: list[nn.Module] = [_Select(keep[0].nonzero().flatten())]
    for layer in _shrunk(layers(posterior.params), keep):
        weight = _rounded(layer) if rounded else layer.mean
        inputs, outputs = weight.shape
        linear = nn.Linear(inputs, outputs, dtype=weight.dtype, device=weight.device)
        linear.weight.data.copy_(weight.T)
        linear.bias.data.copy_(layer.bias)
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def summary(posterior: Posterior) -> dict[str, float | str]:
    """Return error, units, compression and bits of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        By name; errors in percent of the test data, of which nothing was chosen.
    """
    split = "test" if posterior.data.test is not None else "validation"
    keep = choose_units(posterior)
    saved = compression(posterior.params, keep)
    whole = [torch.ones_like(mask) for mask in keep]
    error = partial(_error, batch=posterior.data.split(split))
    return {
        f"{split} error of the whole network (%)": error(compress(posterior, whole, rounded=False)),
        f"{split} error, pruned and rounded (%)": error(compress(posterior, keep)),
        "units": "-".join(str(len(mask)) for mask in keep) + f"-{saved.units[-1]}",
        "units kept": "-".join(map(str, saved.units)),
        "compression by pruning": saved.pruning,
        "compression with bit precision": saved.precision,
        "bits per weight, by layer": ", ".join(map(str, saved.bits)),
    }


@torch.no_grad()
def _error(network: nn.Module, batch: Batch) -> float:
    """Return the percentage of wrong classes."""
    like = next(network.parameters())
    predicted = network(batch["x"].to(like)).argmax(-1).cpu()
    return 100 * float((predicted != batch["y"].cpu()).double().mean())


# -------------------------------------------------------------------------------------------------------- claims
def _measure(seed: int, fast: bool) -> dict[str, float]:
    """Fit both priors, plain mean field, a dense network, and the latter pruned by magnitude and tuned again.

    Returns:
        Test error in percent, compression by pruning and with bit precision, seconds; by method.
    """
    data = zoo.datasets.load("digits" if fast else "mnist")
    hidden = (30, 20) if fast else (300, 100)
    steps = 150 if fast else METHOD.recipe.steps
    test = data.split("test")
    measured: dict[str, float] = {}
    # The scales of the horseshoe have further to go: a larger rate, chosen on the validation data as everything else.
    horseshoe = Hyper(hidden=hidden, prior="horseshoe", temperature=0.15)
    for name, hyper, rate in (("GNJ", Hyper(hidden=hidden), None), ("GHS", horseshoe, 1e-2)):
        posterior = zoo.fit(METHOD, data, hyper=hyper, seed=seed, steps=steps, learning_rate=rate, compile=not fast)
        keep = choose_units(posterior)
        saved = compression(posterior.params, keep)
        measured[f"error {name}"] = _error(compress(posterior, keep), test)
        measured[f"pruning {name}"] = saved.pruning
        measured[f"with bits {name}"] = saved.precision
        measured[f"seconds {name}"] = posterior.info["seconds"]

    whole = [torch.ones(size, dtype=torch.bool) for size in _sizes(data, Hyper(hidden=hidden))[:-1]]
    pair = _mean_field(data, Hyper(hidden=hidden))
    plain = zoo.fit(pair, data, seed=seed, steps=steps, compile=not fast, **_recipe())
    measured["error mean field"] = _error(compress(plain, whole, rounded=False), test)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = _train(_dense(data, hidden), data, steps // 2)
        measured["error dense"] = _error(dense, test)
        cut = _train(_prune_by_magnitude(dense, measured["pruning GNJ"]), data, steps // 2)
        measured["error magnitude pruning"] = _error(cut, test)
    return measured


def _recipe() -> dict[str, Any]:
    recipe = METHOD.recipe
    return {name: getattr(recipe, name) for name in ("learning_rate", "batch_size", "schedule", "kl_warmup")}


def _mean_field(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair with every scale known to be one: standard normal priors and independent normal posteriors."""
    pair = build(data, hyper)
    sizes = _sizes(data, hyper)
    ones = {f"z_{l}": torch.ones(size) for l, size in enumerate(sizes[:-1])}
    known = partial(poutine.condition, data=ones)
    return pair._replace(model=known(pair.model), guide=poutine.block(known(pair.guide), hide=list(ones)))


def _dense(data: Dataset, hidden: tuple[int, ...]) -> nn.Sequential:
    sizes = _sizes(data, Hyper(hidden=hidden))
    modules = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *modules[:-1])


def _train(network: nn.Sequential, data: Dataset, steps: int) -> nn.Sequential:
    """Minimise the cross entropy by Adam; weights that are zero stay zero."""
    weights = [m.weight for m in network if isinstance(m, nn.Linear)]
    masks = [(weight != 0).to(weight.dtype) for weight in weights]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    x, y = data.train["x"], data.train["y"]
    size = min(128, len(y))
    for _ in range(steps):
        rows = torch.randint(len(y), (size,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight *= mask
    return network


@torch.no_grad()
def _prune_by_magnitude(network: nn.Sequential, ratio: float) -> nn.Sequential:
    """Zero the smallest weights of all layers together, until one in ``ratio`` is left."""
    cut = copy.deepcopy(network)
    weights = [m.weight for m in cut if isinstance(m, nn.Linear)]
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    threshold = sizes.topk(max(1, round(len(sizes) / ratio))).values[-1]
    for weight in weights:
        weight *= weight.abs() >= threshold
    return cut


CLAIMS = (
    Claim(
        statement="On MNIST-8k, LeNet-300-100 is pruned at least 26 times and compressed at least 92 times with bit "
        "precision, at an error within 0.7 points of the dense network's.",
        published="MNIST, LeNet-300-100: 9x by pruning, 36x to 58x with bit precision, error 1.8% (dense 1.6%)",
        source="Louizos, Ullrich, Welling (2017), table 2",
        measure=_measure,
        acceptance=(
            Acceptance(key="pruning GNJ", low=26.0),
            Acceptance(key="with bits GNJ", low=92.0),
            Acceptance(key="error GNJ", below="error dense", slack=0.7),
        ),
        budget=400,
    ),
    Claim(
        statement="The group horseshoe compresses as much at an error within 0.7 points of the dense network's.",
        published="LeNet-5-Caffe: GNJ 108x and 361x, GHS 156x and 419x, both with error 1.0%",
        source="Louizos, Ullrich, Welling (2017), table 2",
        measure=_measure,
        acceptance=(
            Acceptance(key="pruning GHS", low=26.0),
            Acceptance(key="with bits GHS", low=92.0),
            Acceptance(key="error GHS", below="error dense", slack=0.7),
        ),
        budget=400,
    ),
    Claim(
        statement="Pruned and rounded, the network errs less than plain mean field with all of its weights.",
        published="not in the paper's tables, which compare compressed networks (no number for this comparison)",
        source="measured here",
        measure=_measure,
        acceptance=(Acceptance(key="error GNJ", below="error mean field"),),
        budget=400,
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
    for l, (inputs, outputs) in enumerate(itertools.pairwise(_plates(hyper))):
        if hyper.prior == "normal_jeffreys":
            found[f"z_{l}"] = (inputs,)
        else:
            found |= {f"s_a_{l}": (), f"s_b_{l}": (), f"alpha_{l}": (inputs,), f"beta_{l}": (inputs,)}
        found |= {f"W_{l}": (inputs,), f"b_{l}": (outputs,)}
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
    recipe=Recipe(steps=10_000, learning_rate=6e-3, batch_size=128, schedule="linear", kl_warmup=0.5),
    summary=summary,
    use_when="You need a smaller dense classifier, or want to see which inputs a network uses, and can pay for one "
    "longer training run.",
    avoid_when="The uncertainty of the weights is the aim: intervals of a tempered mean-field posterior are too "
    "narrow. The target is a number: only classes are supported. Sparsity of single weights is enough: magnitude "
    "pruning keeps fewer.",
    needs="A table or images with classes as target, thousands of rows rather than hundreds, features whose zero "
    "means nothing (pixels in [0, 1], standardised columns), and validation rows, on which the pruned units are "
    "chosen.",
)
