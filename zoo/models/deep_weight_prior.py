r"""The deep weight prior: a distribution of convolution kernels, learned from networks trained on other data.

Layer :math:`l` maps :math:`h` to :math:`\mathrm{relu}(h W_l + b_l)`, without the relu in the last one; in a
convolutional layer :math:`h W_l` is a convolution of 5 x 5, and 2 x 2 max pooling follows the relu. A convolutional
layer has a kernel :math:`w` for each filter and input channel. Kernels of a layer are independent and alike, each from
the decoder of a variational autoencoder; with :math:`A_l` weights that lead to one unit of a fully connected layer,

.. math::

    z \sim \mathrm{N}(0, I), \qquad w \mid z \sim s_l\, \mathrm{N}(m_l(z), v_l(z)\, I), \qquad
    W_l \sim \mathrm{N}(0, s^2 / A_l) \text{ (fully connected)}, \qquad b_l \sim \mathrm{N}(0, 1), \qquad
    y \sim \mathrm{Cat}(\mathrm{softmax}(h)),

or, where the target is a number, :math:`y \sim \mathrm{N}(h, \sigma^2)` with
:math:`\log \sigma \sim \mathrm{N}(-1, 1)`.
Summed over :math:`z`, the prior of a kernel has no density in closed form. The guide is
:math:`q(w) = \mathrm{N}(\mu, \rho^2)` for every weight on its own, and the encoder takes the place of the posterior of
:math:`z`, which gives a bound on the divergence:

.. math::

    \mathrm{KL}[q(w) \,\|\, p(w)] \le
    \mathbb{E}_q\bigl[\log q(w) + \mathrm{KL}[r_l(z \mid w) \,\|\, \mathrm{N}(0, I)]
    - \mathbb{E}_{r_l} \log p(w \mid z)\bigr].

It is the evidence lower bound of this pair: the code :math:`z` is a site of the model, the encoder one of the guide.

Encoder and decoder of each layer are learned beforehand (:func:`learn_prior`), as an autoencoder of the kernels of
source networks, which are trained on other data from several seeds. Kernels close to zero are left out, the others are
shown in all eight orientations. Then encoder and decoder are frozen. They are kept in the cache folder, under a hash of
what they were learned from, and stand among the parameters of a fit, which therefore needs the source data no more.
Their gradients are zero; only the weight decay of another loop would change them.

=================  ===========  =============  ============================================================
symbol             site         plate          meaning
=================  ===========  =============  ============================================================
:math:`z`          ``z_l``      ``channel_l``  codes of the kernels of a convolutional layer,
                                               ``(filters, channels, latent)``; no part of the network
:math:`W_l`        ``W_l``      ``channel_l``  kernels ``(filters, channels, 5, 5)``, or weights
                                               ``(inputs, outputs)`` in the plate ``unit_l``
:math:`b_l`        ``b_l``      ``unit_l+1``   biases; in the last layer's plate ``output``, of a convolution
                                               in that of its filters
:math:`\sigma`     ``sigma``                   noise, only with a number as target
:math:`y`          ``y``        ``datum``      target, observed
=================  ===========  =============  ============================================================

Deviations.

- Sources are ten small networks (the authors' code: 100, of 256 and 512 filters), trained for some hundred steps. As
  this makes few kernels, encoder and decoder are small too: one hidden layer (the paper: convolutions), one variance
  for all weights of a kernel given its code, and kernels in all orientations.
- Kernels are brought to one size (``rescale``). All are 5 x 5 (the authors' code: 7 x 7 in the first layer).
- The last layer and the biases have priors and posteriors too. In the authors' code they are point estimates.
- ``Hyper.temperature`` below 1, the default, makes every row count more than once: it is not the posterior of the data
  at hand then.

.. code-block:: bibtex

    @inproceedings{atanov2019deep,
      title     = {The Deep Weight Prior},
      author    = {Atanov, Andrei and Ashukha, Arsenii and Struminsky, Kirill and Vetrov, Dmitry and Welling, Max},
      booktitle = {International Conference on Learning Representations},
      year      = {2019}
    }
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor, nn

import zoo
from zoo import artifacts
from zoo.errors import ArtifactError, DataError
from zoo.inference.library import cache_folder
from zoo.models import map_network
from zoo.models._parts.handlers import local_reparametrisation
from zoo.models._parts.networks import Network, Site, located, network_model, noise_guide, plates, scaled
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Figure, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = [
    "METHOD",
    "Hyper",
    "KernelPrior",
    "build",
    "figures",
    "initial_kernels",
    "learn_kernel_prior",
    "learn_prior",
    "learned_prior",
    "select_classes",
    "sites",
    "smoothness",
    "source_kernels",
    "summary",
]

_SIDE = 5
_START_SCALE = 0.02  # of every weight's posterior, over one over the root of the fan-in
_SMALL = 0.1  # kernels are left out below this part of the norm that one kernel in ten exceeds
# Smallest standard deviations, in units of the kernels and of the prior of z. The first layers of ten networks have
# eighty kernels; a decoder that may be surer than this learns them by heart (chosen on kernels that were held out).
_DECODER_FLOOR, _ENCODER_FLOOR = 0.3, 1e-2
_TRAINED = r"(?!W_\d+_prior_)"
_FORMAT = "pyro-zoo kernel prior 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        hidden: Units of each hidden fully connected layer.
        channels: Filters of each convolutional layer (5 x 5, no padding), every one followed by 2 x 2 max pooling; they
            stand before the fully connected layers. Source networks have the same.
        prior_scale: Prior width ``s`` of the fully connected layers: the standard deviation of a weight times the root
            of the weights that lead to one unit. ``None``: 8 for classes, 1 for a number as target.
        temperature: Every row counts ``1 / temperature`` times; 1 is the Bayesian posterior. The default is chosen on
            validation rows (50 training rows of MNIST, digits 0 to 4).
        rescale: Bring the prior's kernels to the size that keeps that of activations (He et al. 2015). The size in the
            sources is a matter of their weight decay: a relu network stays the same with one layer scaled up and the
            next one down.
        start: Where the means of the kernels' posteriors start: ``prior`` at kernels that the decoder makes of codes
            drawn at random, ``he`` at independent normal numbers that keep the size of activations (He et al. 2015).
        source: Bundled images, with classes, on which the source networks are trained.
        source_classes: Only these of their classes; empty: all.
        num_sources: Source networks.
        source_steps: Optimiser steps of each.
        source_scale: Prior width of their weights, as for ``map_network``; the narrower, the smoother the kernels.
        source_seed: Seed of the first of them; the others have those that follow.
        latent: Dimensions of the code of a kernel.
        width: Hidden units of encoder and decoder.
        prior_steps: Optimiser steps of encoder and decoder.
    """

    hidden: tuple[int, ...] = ()
    channels: tuple[int, ...] = (8, 16)
    prior_scale: float | None = None
    temperature: float = 0.05
    rescale: bool = True
    start: Literal["prior", "he"] = "prior"
    source: str = "fashion_mnist"
    source_classes: tuple[int, ...] = ()
    num_sources: int = 10
    source_steps: int = 400
    source_scale: float = 1.0
    source_seed: int = 0
    latent: int = 8
    width: int = 32
    prior_steps: int = 1_500


def build(data: Dataset, hyper: Hyper, *, prior: Sequence[KernelPrior] | None = None) -> Pair:
    """Return the pair; the first time, this trains the source networks.

    Args:
        data: Batches with images ``x``, ``(rows, ...)``, classes or standardised numbers ``y``, and ``index``;
            ``extra["image_shape"]``, and ``extra["num_classes"]`` for classes.
        hyper: Hyper-parameters.
        prior: Learned priors of the convolutional layers; ``None`` takes those of :func:`learn_prior`.

    Returns:
        Model and guide over one batch.

    Raises:
        DataError: If a hyper-parameter is out of range, or the data are no images large enough for the filters.
    """
    _check(hyper)
    net = Network.of(data, hidden=hyper.hidden, channels=hyper.channels)
    if prior is not None and len(prior) != len(hyper.channels):
        raise DataError(
            f"prior holds {len(prior)} layers and channels are {hyper.channels}; one prior per layer is due"
        )

    @functools.cache
    def learned() -> tuple[KernelPrior, ...]:
        return tuple(prior) if prior is not None else learn_prior(hyper)

    if not artifacts.rebuilding():  # the parameters come from a file then, and only their shapes matter
        learned()

    def frozen(site: Site, x: Tensor) -> KernelPrior:
        def value(field: str) -> Tensor:
            if prior is None and artifacts.rebuilding():
                return x.new_ones(_shapes(hyper)[field])
            own = learned()[int(site.name.removeprefix("W_"))]
            return getattr(own.resized(site.start) if hyper.rescale else own, field).to(x)  # type: ignore[no-any-return]

        return KernelPrior(
            *(
                pyro.param(f"{site.name}_prior_{field}", functools.partial(value, field)).detach()
                for field in KernelPrior._fields
            )
        )

    def draw(x: Tensor) -> dict[str, Any]:
        width, weights = net.prior_scale(hyper.prior_scale), {}
        for site, plate in net.plated():
            with plate:
                if _convolutional(site):
                    code = dist.Normal(x.new_zeros(site.shape[1], hyper.latent), 1.0).to_event(2)
                    z = pyro.sample(_code(site), code)
                    fn = frozen(site, x).decode(z).to_event(1)
                else:
                    scale = width * site.scale if site.fan_in else 1.0
                    fn = dist.Normal(x.new_zeros(site.shape[1:]), scale).to_event(len(site.shape) - 1)
                weights[site.name] = pyro.sample(site.name, fn)
        return weights

    model = network_model(data, net, prior_scale=hyper.prior_scale, temperature=hyper.temperature, draw=draw)

    def guide(batch: Batch) -> None:
        for site, plate in net.plated():
            kernels = frozen(site, batch["x"]) if _convolutional(site) else None
            if kernels is not None and hyper.start == "prior":
                start = functools.partial(kernels.draw, site.shape[:2], noise=False)
                loc = pyro.param(f"{site.name}_loc", start)
            else:
                loc = located(site)
            scale = scaled(site, _START_SCALE)
            with plate:
                fn = dist.Normal(loc, scale).to_event(len(site.shape) - 1)
                W = pyro.sample(site.name, fn, infer={"local": True})
                if kernels is not None:
                    pyro.sample(_code(site), kernels.encode(W).to_event(1))
        noise_guide(net, point=False)

    objective = Elbo(estimator="mean_field", trains=_TRAINED)
    return Pair(local_reparametrisation(model), local_reparametrisation(guide), objective)


def _check(hyper: Hyper) -> None:
    if not hyper.channels:
        raise DataError(
            "channels are (); the deep weight prior is one of convolution kernels: give a layer some filters"
        )
    counts = {name: getattr(hyper, name) for name in ("num_sources", "source_steps", "latent", "width", "prior_steps")}
    for name, value in counts.items():
        if value < 1:
            raise DataError(f"{name} is {value}; allowed: 1 or more")
    if not hyper.source_scale > 0:
        raise DataError(f"source_scale is {hyper.source_scale:g}; it must be positive")
    if hyper.source_seed < 0:
        raise DataError(f"source_seed is {hyper.source_seed}; allowed: 0 or more")


def _convolutional(site: Site) -> bool:
    return len(site.shape) == 4


def _code(site: Site) -> str:
    return f"z_{site.name.removeprefix('W_')}"


# --------------------------------------------------------------------------------------------------- the prior
class KernelPrior(NamedTuple):
    """A learned distribution of 5 x 5 kernels, with an encoder that goes with it.

    Encoder and decoder have one hidden layer (relu) and give means and, through a softplus, standard deviations; the
    decoder one for all weights of a kernel.

    Args:
        encoder_in: Weights from a kernel to the encoder's hidden layer, ``(25, width)``.
        encoder_bias: Its biases, ``(width,)``.
        encoder_out: Weights from there to means and standard deviations of the code, ``(width, 2 latent)``.
        encoder_out_bias: Their biases, ``(2 latent,)``.
        decoder_in: Weights from a code to the decoder's hidden layer, ``(latent, width)``.
        decoder_bias: Its biases, ``(width,)``.
        decoder_out: Weights from there to means and the standard deviation of a kernel, ``(width, 26)``.
        decoder_out_bias: Their biases, ``(26,)``.
        size: The unit of kernels, ``()``: the root mean square of those learned from.
    """

    encoder_in: Tensor
    encoder_bias: Tensor
    encoder_out: Tensor
    encoder_out_bias: Tensor
    decoder_in: Tensor
    decoder_bias: Tensor
    decoder_out: Tensor
    decoder_out_bias: Tensor
    size: Tensor

    def resized(self, size: float) -> KernelPrior:
        """Return the prior in another unit.

        Args:
            size: The unit of kernels.

        Returns:
            The prior of the same kernels, larger or smaller.
        """
        return self._replace(size=torch.full_like(self.size, size))

    def decode(self, z: Tensor) -> Any:
        """Return the distribution of a kernel given its code.

        Args:
            z: ``(*batch, latent)``.

        Returns:
            A distribution over ``(5, 5)`` with batch shape ``batch``.
        """
        out = (z @ self.decoder_in + self.decoder_bias).relu() @ self.decoder_out + self.decoder_out_bias
        loc, scale = out[..., :-1].unflatten(-1, (_SIDE, _SIDE)), out[..., -1:, None]
        unit = dist.Normal(loc, nn.functional.softplus(scale) + _DECODER_FLOOR).to_event(2)
        # Not a normal distribution of another scale: its divergence from one would be taken analytically, given the
        # code, and the guide's code depends on the kernel.
        return dist.TransformedDistribution(unit, [AffineTransform(0.0, self.size)])

    def encode(self, kernels: Tensor) -> Any:
        """Return the encoder's distribution of the codes of kernels.

        Args:
            kernels: ``(*batch, 5, 5)``.

        Returns:
            Independent normals over ``(latent,)`` with batch shape ``batch``.
        """
        h = (kernels.flatten(-2) / self.size @ self.encoder_in + self.encoder_bias).relu()
        loc, scale = (h @ self.encoder_out + self.encoder_out_bias).chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(scale) + _ENCODER_FLOOR).to_event(1)

    def draw(self, shape: Sequence[int], *, noise: bool = True) -> Tensor:
        """Draw kernels.

        Args:
            shape: How many, e.g. ``(filters, channels)``.
            noise: Draw them from the prior; else the decoder's means at codes drawn from theirs.

        Returns:
            ``(*shape, 5, 5)``.
        """
        z = torch.randn(*shape, len(self.decoder_in), dtype=self.size.dtype, device=self.size.device)
        decoded = self.decode(z)
        kernels: Tensor = decoded.sample() if noise else self.size * decoded.base_dist.mean
        return kernels.detach()

    def log_density(self, kernels: Tensor, *, num_samples: int) -> Tensor:
        r"""Estimate the log density of kernels from below.

        .. math:: \log \frac{1}{K} \sum_{k=1}^K \frac{p(w \mid z_k)\, p(z_k)}{r(z_k \mid w)}, \quad
            z_k \sim r(z \mid w).

        Its expectation is a lower bound for every :math:`K`, does not fall with it, and reaches the log density; at
        :math:`K = 1` it is what the evidence lower bound holds.

        Args:
            kernels: ``(*batch, 5, 5)``.
            num_samples: Codes :math:`K` of each.

        Returns:
            ``(*batch,)``.

        References:
            Burda, Grosse, Salakhutdinov (2016), eq. 8. https://arxiv.org/abs/1509.00519
        """
        encoded = self.encode(kernels)
        z = encoded.sample((num_samples,))
        prior = dist.Normal(torch.zeros_like(z), 1.0).to_event(1)
        found: Tensor = self.decode(z).log_prob(kernels) + prior.log_prob(z) - encoded.log_prob(z)
        return found.logsumexp(0) - math.log(num_samples)


def _shapes(hyper: Hyper) -> dict[str, tuple[int, ...]]:
    """Return the shape of every part of a layer's prior."""
    pixels, width, latent = _SIDE**2, hyper.width, hyper.latent
    shapes = (
        (pixels, width), (width,), (width, 2 * latent), (2 * latent,),
        (latent, width), (width,), (width, pixels + 1), (pixels + 1,), (),
    )  # fmt: skip
    return dict(zip(KernelPrior._fields, shapes, strict=True))


def learn_prior(hyper: Hyper, source: Dataset | None = None) -> tuple[KernelPrior, ...]:
    """Train source networks, and learn the prior of the kernels of each of their convolutional layers.

    The result is kept in the folder where compiled programs are kept, under a hash of the source data, the settings and
    the versions, and found there the next time. A damaged file is replaced.

    Args:
        hyper: Hyper-parameters; what the target is does not matter.
        source: Images with classes; ``None`` loads ``hyper.source``.

    Returns:
        One prior per convolutional layer.

    Raises:
        DataError: If a hyper-parameter is out of range, or the source data are no images with classes.
    """
    _check(hyper)
    source = zoo.datasets.load(hyper.source) if source is None else source
    if hyper.source_classes:
        source = select_classes(source, hyper.source_classes)
    if int(source.extra.get("num_classes", 0)) < 2:
        raise DataError(f"source data '{source.name}' have no classes; source networks are classifiers of images")
    path = _place(hyper, source)
    found = None if path is None else _read(path, hyper)
    if found is None:
        where = "" if path is None else f"; they are kept as {path}"
        warnings.warn(
            f"learning the prior of kernels from {hyper.num_sources} networks trained on {source.name}, "
            f"{hyper.source_steps} steps each{where}",
            UserWarning,
            stacklevel=2,
        )
        found = tuple(
            learn_kernel_prior(k, latent=hyper.latent, width=hyper.width, steps=hyper.prior_steps)
            for k in source_kernels(source, hyper)
        )
        if path is not None:
            _write(path, found)
    return found


def source_kernels(source: Dataset, hyper: Hyper) -> tuple[Tensor, ...]:
    """Train the source networks and return their kernels.

    Args:
        source: Images with classes.
        hyper: Hyper-parameters.

    Returns:
        For each convolutional layer the kernels of all networks, ``(kernels, 5, 5)``.
    """
    own = map_network.Hyper(hidden=hyper.hidden, channels=hyper.channels, prior_scale=hyper.source_scale)
    fits = [
        zoo.fit(
            map_network.METHOD, source, hyper=own, seed=seed, steps=hyper.source_steps, batch_size=64,
            learning_rate=5e-3, compile=False,  # convolutions gain less than compiling takes
        )
        for seed in range(hyper.source_seed, hyper.source_seed + hyper.num_sources)
    ]  # fmt: skip
    return tuple(
        torch.cat([fit.params[f"W_{l}_loc"].reshape(-1, _SIDE, _SIDE) for fit in fits])
        for l in range(len(hyper.channels))
    )


def learn_kernel_prior(
    kernels: Tensor, *, latent: int = 8, width: int = 32, steps: int = 1_500, seed: int = 0
) -> KernelPrior:
    """Learn a distribution of kernels by a variational autoencoder.

    Args:
        kernels: ``(kernels, 5, 5)``; those close to zero are left out, the others shown in all eight orientations.
        latent: Dimensions of the code.
        width: Hidden units of encoder and decoder.
        steps: Optimiser steps.
        seed: Of initial values and noise.

    Returns:
        The prior.

    Raises:
        DataError: If these are no kernels, or not finite, or fewer than two are left.
    """
    if kernels.dim() != 3 or kernels.shape[1:] != (_SIDE, _SIDE) or not bool(torch.isfinite(kernels).all()):
        raise DataError(
            f"kernels are {tuple(kernels.shape)}, or not finite; finite ones of (kernels, {_SIDE}, {_SIDE}) are due"
        )
    kept = _away_from_zero(kernels).detach().float()
    if len(kept) < 2:
        raise DataError(f"{len(kept)} of {len(kernels)} kernels are not close to zero; at least two are needed")
    size = kept.square().mean().sqrt()
    shown = torch.cat([kept, kept.mT]) / size
    shown = torch.cat([shown, shown.flip(-1), shown.flip(-2), shown.flip(-1, -2)])
    shapes = _shapes(Hyper(latent=latent, width=width))

    def network(x: Tensor) -> KernelPrior:
        def value(field: str) -> Tensor:
            shape = shapes[field]
            gain = 0.0 if len(shape) < 2 else 2.0 if field.endswith("_in") else 1.0
            return math.sqrt(gain / shape[0]) * torch.randn(shape)

        fields = [pyro.param(f, functools.partial(value, f)) for f in KernelPrior._fields[:-1]]
        return KernelPrior._make([*fields, x.new_ones(())])

    def model(batch: Batch) -> None:
        decoder = network(batch["w"])
        with pyro.plate("kernel", len(shown), subsample=batch["index"]):
            z = pyro.sample("z", dist.Normal(batch["w"].new_zeros(latent), 1.0).to_event(1))
            pyro.sample("w", decoder.decode(z), obs=batch["w"])

    def guide(batch: Batch) -> None:
        encoder = network(batch["w"])
        with pyro.plate("kernel", len(shown), subsample=batch["index"]):
            pyro.sample("z", encoder.encode(batch["w"]))

    fit = zoo.fit(
        Pair(model, guide, Elbo(estimator="mean_field")), {"w": shown, "index": torch.arange(len(shown))},
        seed=seed, steps=steps, batch_size=min(128, len(shown)), learning_rate=5e-3, schedule="cosine", compile=False,
    )  # fmt: skip
    return KernelPrior(**{k: v.clone() for k, v in fit.params.items()}, size=size)


def _away_from_zero(kernels: Tensor) -> Tensor:
    """Return the kernels that are not close to zero."""
    norms = kernels.flatten(1).norm(dim=1)
    return kernels[norms > _SMALL * norms.quantile(0.9)] if len(norms) else kernels


def initial_kernels(prior: Sequence[KernelPrior], hyper: Hyper, *, depth: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Draw the kernels of a network, as initial values of any network of the zoo.

    As in the authors' code these are means of the decoder, without its noise. They are for
    ``zoo.fit("map_network", ..., hyper={"channels": ...}, init=initial_kernels(...))`` and other methods whose
    parameters carry these names.

    Args:
        prior: One for each convolutional layer, from :func:`learn_prior`.
        hyper: Hyper-parameters with ``channels`` and ``rescale``.
        depth: Channels of the images.
        seed: Of the draws.

    Returns:
        ``W_l_loc`` -> kernels, ``(filters, channels, 5, 5)``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found, inputs = {}, depth
        for l, (own, filters) in enumerate(zip(prior, hyper.channels, strict=True)):
            unit = own.resized(_size(inputs)) if hyper.rescale else own
            found[f"W_{l}_loc"], inputs = unit.draw((filters, inputs), noise=False), filters
        return found


def _size(inputs: int) -> float:
    """Return the standard deviation of a kernel's weights that keeps the size of activations."""
    return math.sqrt(2 / (inputs * _SIDE**2))


def select_classes(data: Dataset, classes: Sequence[int]) -> Dataset:
    """Return the rows of some classes, numbered anew from 0 in the order given.

    Args:
        data: With classes as target.
        classes: Numbers of the classes to keep.

    Returns:
        The data set.

    Raises:
        DataError: If there are fewer than two classes, or one is no class of the data.
    """
    count = int(data.extra.get("num_classes", 0))
    if len(set(classes)) < 2 or len(set(classes)) != len(classes) or not all(0 <= c < count for c in classes):
        raise DataError(f"classes are {tuple(classes)}; two or more different ones of 0 to {count - 1} are due")
    parts: dict[str, Batch | None] = {}
    for split in ("train", "validation", "test"):
        batch = getattr(data, split)
        if batch is not None:
            hits = batch["y"][:, None] == torch.tensor(classes)
            rows = hits.any(1)
            kept = {k: v if k in data.whole else v[rows] for k, v in batch.items()}
            kept |= {"y": hits[rows].long().argmax(1), "index": torch.arange(int(rows.sum()))}
            parts[split] = kept
    return dataclasses.replace(
        data,
        **parts,  # type: ignore[arg-type]
        name=f"{data.name}_{'_'.join(map(str, classes))}",
        target=None,
        coords={k: v for k, v in data.coords.items() if k != "class"},
        origin="user",
        extra={k: v for k, v in data.extra.items() if k != "options"} | {"num_classes": len(classes)},
    )


# ------------------------------------------------------------------------------------------------- kept on disk
def _place(hyper: Hyper, source: Dataset) -> Path | None:
    """Return where the prior is kept; ``None`` if there is no folder for it."""
    names = (
        "hidden", "channels", "num_sources", "source_steps", "source_scale", "source_seed", "latent", "width",
        "prior_steps",
    )  # fmt: skip
    about = [_FORMAT, zoo.__version__, torch.__version__, zoo.datasets.fingerprint(source)]
    text = json.dumps([about, [getattr(hyper, n) for n in names]])
    try:
        return cache_folder() / f"kernels-{hashlib.sha256(text.encode()).hexdigest()[:40]}.safetensors"
    except OSError:
        return None


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, hyper: Hyper) -> tuple[KernelPrior, ...] | None:
    """Return the prior that is kept in a file; ``None`` if there is none, or the file is damaged."""
    if not path.exists():
        return None
    names = [f"{l}.{field}" for l in range(len(hyper.channels)) for field in KernelPrior._fields]
    shapes = list(_shapes(hyper).values()) * len(hyper.channels)
    try:
        tensors, about = artifacts.tensors_of(artifacts.read_bytes(path), path)
    except ArtifactError:
        return None
    if set(tensors) != set(names) or about.get("sha256") != _digest(tensors):
        return None
    if [tuple(tensors[n].shape) for n in names] != shapes:
        return None
    count = len(KernelPrior._fields)
    values = [tensors[n] for n in names]
    return tuple(KernelPrior(*values[at : at + count]) for at in range(0, len(values), count))


def _write(path: Path, prior: Sequence[KernelPrior]) -> None:
    """Keep a prior, so that a reader finds all of it or none; where that is not possible, it is learned again."""
    from safetensors.torch import save

    tensors = {
        f"{l}.{field}": value.contiguous() for l, own in enumerate(prior) for field, value in own._asdict().items()
    }
    content = save(tensors, metadata={"format": _FORMAT, "sha256": _digest(tensors)})
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            (Path(folder) / path.name).write_bytes(content)
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        warnings.warn(f"the prior of kernels cannot be kept as '{path}': {error.strerror}", UserWarning, stacklevel=3)


# ---------------------------------------------------------------------------------------- quantities of interest
def learned_prior(posterior: Posterior) -> tuple[KernelPrior, ...]:
    """Return the prior of a fit, one for each convolutional layer.

    Args:
        posterior: A fit of this method.

    Returns:
        The priors, as they stand among its parameters.
    """
    params = posterior.params
    return tuple(
        KernelPrior(*(params[f"W_{l}_prior_{field}"].cpu() for field in KernelPrior._fields))
        for l in range(len(posterior.hyper.channels))
    )


def smoothness(kernels: Tensor) -> float:
    """Return the correlation of weights beside each other in a kernel, about zero.

    Args:
        kernels: ``(*batch, 5, 5)``.

    Returns:
        A number from -1 to 1; 0 for independent weights.
    """
    pairs = ((kernels[..., 1:, :], kernels[..., :-1, :]), (kernels[..., 1:], kernels[..., :-1]))
    products = torch.cat([(a * b).flatten() for a, b in pairs])
    squares = torch.cat([(0.5 * (a.square() + b.square())).flatten() for a, b in pairs])
    return float(products.sum() / squares.sum())


def summary(posterior: Posterior) -> dict[str, float]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        For each convolutional layer the divergence of its kernels' posteriors from their prior, in nats per kernel
        (from above, as the prior's density is estimated from below, with 100 codes), and how smooth posterior means and
        draws from the prior are.
    """
    found = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for l, own in enumerate(learned_prior(posterior)):
            loc, scale = (posterior.params[f"W_{l}_{part}"].cpu() for part in ("loc", "scale"))
            q = dist.Normal(loc, scale).to_event(2)
            W = q.sample((10,))
            nats = q.log_prob(W) - own.log_density(W, num_samples=100)
            found[f"W_{l}: nats per kernel"] = float(nats.mean())
            found[f"W_{l}: smoothness"] = smoothness(loc)
            found[f"W_{l}: smoothness of the prior"] = smoothness(own.draw((1_000,)))
    return found


def figures(posterior: Posterior) -> list[Figure]:
    """Return the figures of a fit: its kernels, and kernels drawn from the prior.

    Args:
        posterior: A fit of this method.

    Returns:
        Descriptions, for the report.
    """
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for l, own in enumerate(learned_prior(posterior)):
            learned = posterior.params[f"W_{l}_loc"].cpu().reshape(-1, _SIDE, _SIDE)
            order = learned.flatten(1).norm(dim=1).argsort(descending=True)
            shown = learned[order[:: max(1, len(order) // _SHOWN)]][:_SHOWN]
            found.append(_tiles(l, shown, own.draw((_SHOWN,))))
    return found


_SHOWN = 32  # kernels of a kind in a figure


def _tiles(layer: int, learned: Tensor, drawn: Tensor) -> Figure:
    def paint(axes: Any) -> None:
        bound = float(torch.cat([learned, drawn]).abs().quantile(0.995))
        titles = ("posterior means, large to small", "drawn from the prior")
        for axis, kernels, title in zip(axes[0], (learned, drawn), titles, strict=True):
            rows = -(-len(kernels) // 8)
            canvas = torch.full((rows * (_SIDE + 1) - 1, 8 * (_SIDE + 1) - 1), math.nan)
            for i, kernel in enumerate(kernels):
                y, x = (_SIDE + 1) * (i // 8), (_SIDE + 1) * (i % 8)
                canvas[y : y + _SIDE, x : x + _SIDE] = kernel
            axis.imshow(canvas.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
            axis.set(title=f"W_{layer}: {title}", xticks=[], yticks=[])
            axis.grid(visible=False)

    return Figure(
        name=f"kernels_{layer}", paint=paint, columns=2, wide=True,
        caption=f"Kernels of convolutional layer {layer}, on one colour scale. On the left those of this fit, on the "
        "right draws from the distribution that was learned from other networks.",
        alt=f"Tiles of 5 x 5 weights of layer {layer}: posterior means beside draws from the learned prior.",
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- claims
_SOURCES: dict[str, Any] = {"source": "mnist", "source_classes": (5, 6, 7, 8, 9)}
_SIZES = (10, 50, 200, 1_000)


def _few(data: Dataset, num: int, seed: int) -> Dataset:
    """Return the data with few training rows, as many of each class."""
    classes = int(data.extra["num_classes"])
    y, generator = data.train["y"], torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(y), generator=generator)
    rows = torch.cat([shuffled[y[shuffled] == c][: num // classes] for c in range(classes)])
    train = {k: v[rows] for k, v in data.train.items()} | {"index": torch.arange(len(rows))}
    return dataclasses.replace(data, train=train)


def _measure_sizes(seed: int, fast: bool) -> dict[str, float]:
    """Fit few rows of the digits 0 to 4 under a prior learned from the digits 5 to 9, under a normal one, and by MAP.

    Temperature and learning rate are those of the largest accuracy on validation rows of one seed, with ten training
    rows; of several temperatures and prior widths for the normal prior as for the learned one. ``fast`` takes few steps
    on ten rows.

    Returns:
        Test accuracy in percent and log loss in nats by prior and number of rows, and accuracies at temperature 1.
    """
    from zoo.models import mean_field_network

    target = select_classes(zoo.datasets.load("mnist", seed=seed), (0, 1, 2, 3, 4))
    test = target.split("test")
    own = dataclasses.replace(METHOD.smoke if fast else Hyper(), **_SOURCES, temperature=0.01)
    shape: dict[str, Any] = {"hidden": own.hidden, "channels": own.channels}
    normal = mean_field_network.Hyper(**shape, temperature=0.01)
    found: dict[str, float] = {}

    def score(name: str, method: Method[Any], hyper: Any, num: int) -> dict[str, float]:
        fit = zoo.fit(
            method, _few(target, num, seed), hyper=hyper, seed=seed, steps=20 if fast else 600, learning_rate=5e-3,
            batch_size=min(num, 50), compile=False,  # the size of the data is a constant of a compiled program
        )  # fmt: skip
        draws = 1 if method is map_network.METHOD else 3 if fast else 50
        scores: dict[str, float] = zoo.tasks.get("classification").score(fit.predict(test, n=draws), test, target)
        found[f"accuracy {name}, n = {num}"] = 100 * (1 - scores["error"])
        return scores

    for num in _SIZES[:1] if fast else _SIZES:
        for name, method, hyper in (
            ("learned prior", METHOD, own),
            ("normal prior", mean_field_network.METHOD, normal),
            ("MAP", map_network.METHOD, map_network.Hyper(**shape)),
        ):
            found[f"nll {name}, n = {num}"] = score(name, method, hyper, num)["nll"]
    for name, method, hyper in (("learned prior", METHOD, own), ("normal prior", mean_field_network.METHOD, normal)):
        score(f"{name} at temperature 1", method, dataclasses.replace(hyper, temperature=1.0), _SIZES[0])
    return found


def _measure_start(seed: int, fast: bool) -> dict[str, float]:
    """Train a plain network on the digits 0 to 4 from kernels of several origins; ``fast`` takes few steps.

    Returns:
        Test error in percent and log loss in nats after some steps, from random kernels (He), from the prior learned on
        the digits 5 to 9, and from kernels of networks trained on these, all of the same size.
    """
    target = select_classes(zoo.datasets.load("mnist", seed=seed), (0, 1, 2, 3, 4))
    test = target.split("test")
    hyper = dataclasses.replace(METHOD.smoke if fast else Hyper(), **_SOURCES)
    few = dataclasses.replace(hyper, num_sources=1 if fast else 3, source_seed=100 + 10 * seed)
    kernels = source_kernels(select_classes(zoo.datasets.load("mnist"), hyper.source_classes), few)
    generator, inputs, taken = torch.Generator().manual_seed(seed), 1, {}
    for l, (own, filters) in enumerate(zip(kernels, hyper.channels, strict=True)):
        kept = _away_from_zero(own)
        rows = torch.randint(len(kept), (filters, inputs), generator=generator)
        taken[f"W_{l}_loc"], inputs = kept[rows] / kept.square().mean().sqrt() * _size(inputs), filters
    starts = {
        "random kernels": None,
        "learned prior": initial_kernels(learn_prior(hyper), hyper, seed=seed),
        "source kernels": taken,
    }
    found: dict[str, float] = {}
    plain = map_network.Hyper(hidden=hyper.hidden, channels=hyper.channels)
    for at in (25,) if fast else (25, 100):
        for name, init in starts.items():
            fit = zoo.fit(
                map_network.METHOD, target, hyper=plain, seed=seed, init=init, steps=at, learning_rate=2e-3,
                schedule="constant", batch_size=64, compile=False,
            )  # fmt: skip
            scores = zoo.tasks.get("classification").score(fit.predict(test, n=1), test, target)
            found |= {f"error {name}, {at} steps": 100 * scores["error"], f"nll {name}, {at} steps": scores["nll"]}
    return found


CLAIMS = (
    Claim(
        statement="With two images of each class, a network with a prior learned on other classes of MNIST is more "
        "accurate than one with a normal prior.",
        published="MNIST after notMNIST: more accurate than under a standard normal prior when images are few (curves, "
        "no number)",
        source="Atanov et al. (2019), sec. 4, classification",
        measure=_measure_sizes,
        acceptance=(
            Acceptance(key="accuracy learned prior, n = 10", above="accuracy normal prior, n = 10"),
            Acceptance(
                key="accuracy learned prior at temperature 1, n = 10",
                above="accuracy normal prior at temperature 1, n = 10",
            ),
        ),
        budget=240,
    ),
    Claim(
        statement="A plain network that starts from the learned prior trains faster than one from random kernels.",
        published="faster convergence from draws of the prior than from Xavier initial values (curves, no number)",
        source="Atanov et al. (2019), sec. 4, convergence",
        measure=_measure_start,
        acceptance=(
            Acceptance(key="nll learned prior, 25 steps", below="nll random kernels, 25 steps"),
            Acceptance(key="nll source kernels, 25 steps", below="nll random kernels, 25 steps"),
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
    found = plates(hidden=hyper.hidden, channels=hyper.channels)
    return found | {f"z_{l}": found[f"W_{l}"] for l in range(len(hyper.channels))}


METHOD = Method(
    name="deep_weight_prior",
    title="Deep weight prior: convolution kernels like those of networks trained before",
    paper="atanov2019deep",
    task="classification",
    other_tasks=("regression",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(channels=(4,), num_sources=2, source_steps=20, prior_steps=50),
    default_data="mnist",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=3_000, learning_rate=3e-3, batch_size=128, schedule="cosine", kl_warmup=0.25),
    summary=summary,
    figures=figures,
    use_when="You study priors that are learned from other networks, or want a Bayesian network of convolutions whose "
    "kernels look like known ones.",
    avoid_when="Accuracy is all that counts: with as few as ten images, a mean_field_network with channels was at "
    "least as accurate here, and needs no sources. Layers are fully connected.",
    needs="Images with classes or a number as target, pixels in [0, 1], at least 6 x 6 of them for one convolutional "
    "layer and 16 x 16 for two; bundled source images, on which networks are trained once.",
)
