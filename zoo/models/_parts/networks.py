r"""Networks whose weights are sample sites: which sites there are, the forward pass, and the model that all share.

A layer maps :math:`h` to :math:`\mathrm{relu}(h W + b)`, without the relu in the last one. In a convolutional layer
:math:`h W` is a convolution of 5 x 5 without padding, and 2 x 2 max pooling follows the relu.

A class as target is :math:`y \sim \mathrm{Cat}(\mathrm{softmax}(h))`; a number is
:math:`y \sim \mathrm{N}(h, \sigma^2)` with noise :math:`\log \sigma \sim \mathrm{N}(-1, 1)`, in units of the
standardised target.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn

from zoo.errors import DataError
from zoo.types import Batch, Dataset

__all__ = ["Network", "Site", "located", "network_model", "noise_guide", "plates", "scaled"]

_KERNEL, _POOL = 5, 2
_NOISE = (-1.0, 1.0)  # mean and standard deviation of log sigma: half its mass lies between 0.19 and 0.72


class Site(NamedTuple):
    """A weight matrix or a vector of biases.

    Args:
        name: ``W_l`` or ``b_l``.
        plate: Plate of its first dimension.
        shape: Of a weight matrix ``(inputs, outputs)`` or ``(filters, channels, 5, 5)``; of biases ``(outputs,)``.
        fan_in: Weights that lead to one output; 0 for biases.
    """

    name: str
    plate: str
    shape: tuple[int, ...]
    fan_in: int

    @property
    def scale(self) -> float:
        """Standard deviation of a prior of unit width: one over the root of the fan-in, 1 for biases."""
        return self.fan_in**-0.5 if self.fan_in else 1.0

    @property
    def start(self) -> float:
        """Standard deviation of random initial values, which keeps the size of activations (He et al. 2015)."""
        return math.sqrt(2 / self.fan_in) if self.fan_in else 0.0


@dataclass(frozen=True, slots=True)
class Network:
    """The architecture for given data.

    Args:
        sites: Every site, ``W_0, b_0, W_1, ...``.
        num_filters: How many layers are convolutional; they come first.
        image: Channels, height and width, as the first convolutional layer takes them; empty without one.
        num_classes: Classes of the target; 0 for a number.
    """

    sites: tuple[Site, ...]
    num_filters: int
    image: tuple[int, ...]
    num_classes: int

    @classmethod
    def of(cls, data: Dataset, *, hidden: tuple[int, ...], channels: tuple[int, ...] = ()) -> Network:
        """Return the architecture for data.

        Args:
            data: Batches with ``x``, ``(rows, ...)``; classes if ``extra["num_classes"]`` says how many, else numbers.
                With convolutional layers, ``extra["image_shape"]``: channels, height, width.
            hidden: Units of each hidden fully connected layer.
            channels: Filters of each convolutional layer, which stand before the fully connected ones.

        Returns:
            The architecture.

        Raises:
            DataError: If a layer has no unit, or the data are no images large enough for the filters.
        """
        if any(size < 1 for size in (*hidden, *channels)):
            raise DataError(f"hidden is {hidden} and channels are {channels}; every layer needs at least one unit")
        shapes: list[tuple[int, ...]] = []
        image: tuple[int, ...] = ()
        features = data.train["x"][0].numel()
        if channels:
            image = tuple(int(n) for n in data.extra.get("image_shape", ()))
            if len(image) != 3:
                raise DataError(
                    f"channels are {channels}, but data set '{data.name}' holds no images (extra['image_shape'] of "
                    "channels, height, width); use fully connected layers alone: channels=()"
                )
            depth, *extent = image
            for filters in channels:
                shapes.append((filters, depth, _KERNEL, _KERNEL))
                depth, extent = filters, [(n - _KERNEL + 1) // _POOL for n in extent]
            if min(extent) < 1:
                raise DataError(
                    f"images of {image[1]} x {image[2]} are too small for {len(channels)} convolutional layers of "
                    f"{_KERNEL} x {_KERNEL} with pooling; use fewer channels"
                )
            features = depth * math.prod(extent)
        classes = int(data.extra.get("num_classes", 0))
        shapes += itertools.pairwise((features, *hidden, classes or 1))
        names = plates(hidden=hidden, channels=channels)
        sites = []
        for l, shape in enumerate(shapes):
            outputs, fan_in = (shape[0], math.prod(shape[1:])) if l < len(channels) else (shape[1], shape[0])
            sites += [
                Site(f"W_{l}", names[f"W_{l}"][0], shape, fan_in),
                Site(f"b_{l}", names[f"b_{l}"][0], (outputs,), 0),
            ]
        return cls(tuple(sites), len(channels), image, classes)

    def __call__(self, x: Tensor, weights: Mapping[str, Any]) -> Tensor:
        """Return the outputs of the last layer.

        Args:
            x: Features, ``(rows, ...)``.
            weights: A tensor, or what stands for it, for the name of each site.

        Returns:
            ``(rows, outputs)``.
        """
        h = x.reshape(len(x), *self.image) if self.image else x.flatten(1)
        last = len(self.sites) // 2 - 1
        for l in range(last + 1):
            W, b = weights[f"W_{l}"], weights[f"b_{l}"]
            if l < self.num_filters:
                h = nn.functional.max_pool2d(nn.functional.conv2d(h, W, b).relu(), _POOL)
                h = h.flatten(1) if l + 1 == self.num_filters else h
            else:
                h = h @ W + b
                h = h.relu() if l < last else h
        return h if isinstance(h, Tensor) else h.draw()

    def prior_scale(self, given: float | None) -> float:
        """Return the prior width of the weights.

        Args:
            given: As the user wants it; ``None`` takes 8 for classes and 1 for a number.

        Returns:
            The width.
        """
        return (8.0 if self.num_classes else 1.0) if given is None else given

    def plated(self) -> Iterator[tuple[Site, pyro.plate]]:
        """Walk over the sites, each with its plate.

        Yields:
            Site and plate.
        """
        made: dict[str, pyro.plate] = {}  # biases of a layer and weights of the next share one
        for site in self.sites:
            if site.plate not in made:
                made[site.plate] = pyro.plate(site.plate, site.shape[0], dim=-1)
            yield site, made[site.plate]


def plates(*, hidden: tuple[int, ...], channels: tuple[int, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Return every site and the plate around it: what ``sites`` of a method needs.

    Args:
        hidden: As for :meth:`Network.of`.
        channels: Likewise.

    Returns:
        Site -> plates.
    """
    filters, count = len(channels), len(channels) + len(hidden) + 1
    groups = [f"channel_{l}" if l < filters else f"unit_{l}" for l in range(count)] + ["output"]
    found: dict[str, tuple[str, ...]] = {}
    for l in range(count):
        found[f"W_{l}"] = (groups[l],)
        found[f"b_{l}"] = (groups[l] if l < filters else groups[l + 1],)
    return found


def network_model(
    data: Dataset,
    net: Network,
    *,
    prior_scale: float | None = None,
    temperature: float = 1.0,
    draw: Callable[[Tensor], Mapping[str, Any]] | None = None,
) -> Callable[[Batch], None]:
    r"""Return the model that the networks of the zoo share.

    .. math:: W_l \sim \mathrm{N}(0, s^2 / \text{fan-in}), \qquad b_l \sim \mathrm{N}(0, 1),

    and the likelihood that the data ask for.

    Args:
        data: Whose rows are observed.
        net: The architecture.
        prior_scale: Prior width :math:`s` of the weights; ``None``: see :meth:`Network.prior_scale`.
        temperature: Every row counts ``1 / temperature`` times.
        draw: Samples the weights in the place of these priors: features, for their type and device, -> the weights of
            every site by its name.

    Returns:
        The model.

    Raises:
        DataError: If a scale or the temperature is not positive.
    """
    width = net.prior_scale(prior_scale)
    for name, value in (("prior_scale", width), ("temperature", temperature)):
        if not value > 0:
            raise DataError(f"{name} is {value:g}; it must be positive")

    def independent(x: Tensor) -> dict[str, Any]:
        weights = {}
        for site, plate in net.plated():
            scale = width * site.scale if site.fan_in else 1.0
            with plate:
                prior = dist.Normal(x.new_zeros(site.shape[1:]), scale).to_event(len(site.shape) - 1)
                weights[site.name] = pyro.sample(site.name, prior)
        return weights

    def model(batch: Batch) -> None:
        h = net(batch["x"], (draw or independent)(batch["x"]))
        if not net.num_classes:
            sigma = pyro.sample("sigma", dist.LogNormal(*_NOISE))
        with pyro.plate("datum", data.num_data, subsample=batch["index"]), poutine.scale(scale=1 / temperature):
            target = dist.Categorical(logits=h) if net.num_classes else dist.Normal(h[..., 0], sigma)
            pyro.sample("y", target, obs=batch.get("y"))

    return model


def located(site: Site, *copies: int) -> Tensor:
    """Return the parameter ``SITE_loc``, random at the start.

    Args:
        site: Of a weight matrix or of biases.
        *copies: Shape in front of that of the site.

    Returns:
        ``(*copies, *site.shape)``.
    """
    loc: Tensor = pyro.param(f"{site.name}_loc", lambda: site.start * torch.randn(*copies, *site.shape))
    return loc


def scaled(site: Site, start: float) -> Tensor:
    """Return the parameter ``SITE_scale``.

    Args:
        site: Of a weight matrix or of biases.
        start: Its initial value, over one over the root of the fan-in.

    Returns:
        Of the shape of the site.
    """
    scale: Tensor = pyro.param(
        f"{site.name}_scale", lambda: torch.full(site.shape, start * site.scale), constraint=constraints.positive
    )
    return scale


def noise_guide(net: Network, *, point: bool) -> None:
    """Sample the noise ``sigma`` in a guide, where the target is a number.

    Args:
        net: The architecture.
        point: Whether it is a point estimate.
    """
    if net.num_classes:
        return
    if point:
        sigma = pyro.param("sigma_loc", lambda: torch.tensor(math.exp(_NOISE[0])), constraint=constraints.positive)
        pyro.sample("sigma", dist.Delta(sigma))
        return
    loc = pyro.param("sigma_loc", lambda: torch.tensor(_NOISE[0]))
    scale = pyro.param("sigma_scale", lambda: torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("sigma", dist.LogNormal(loc, scale))
