r"""Multiplicative normalizing flows: noise on the units of a layer makes its weights depend on each other.

Layer :math:`l` maps :math:`h` to :math:`\mathrm{relu}(h W_l + b_l)`, without the relu in the last one; in a
convolutional layer :math:`h W_l` is a convolution, and 2 x 2 max pooling follows the relu. With :math:`A_l` weights
that lead to one unit,

.. math::

    W_l \sim \mathrm{N}(0, s^2 / A_l), \qquad b_l \sim \mathrm{N}(0, 1), \qquad
    y \sim \mathrm{Cat}(\mathrm{softmax}(h)),

or, where the target is a number, :math:`y \sim \mathrm{N}(h, \sigma^2)` with
:math:`\log \sigma \sim \mathrm{N}(-1, 1)`.
The guide draws one number for each input unit :math:`i` of a layer, in a convolutional layer for each filter, and then
the weights around it:

.. math::

    z_l = f_l(\epsilon), \quad \epsilon \sim \mathrm{N}(\mu_{z_l}, \mathrm{diag}\, \sigma_{z_l}^2), \qquad
    W_{l,ij} \mid z_l \sim \mathrm{N}(z_{l,i} \mu_{l,ij}, \rho_{l,ij}^2).

Summed over :math:`z`, the posterior of the weights has heavy tails, several modes and dependencies between all weights
of a layer, and no density in closed form. An auxiliary distribution of :math:`z` given the weights, part of the model,
takes its place: the bound stays one, and is the tighter the closer :math:`r(z \mid W)` comes to the guide's own
:math:`q(z \mid W)`:

.. math::

    z_l \sim r(z_l \mid W_l): \quad
    z_l = g_l^{-1}(u), \quad u \sim \mathrm{N}(m + \bar a\, b_1, \; (v\, e^{\bar a\, b_2})^2), \quad
    \bar a = \operatorname{mean} \tanh(c^\top W_l).

Flows :math:`f` and :math:`g` are chains of masked steps. With a mask :math:`k`, entries where :math:`k_i = 1` stay as
they are, and move the others:

.. math::

    z' = k z + (1 - k) \bigl(\gamma z + (1 - \gamma)\, \nu\bigr), \quad
    \nu = \nu(t), \; \gamma = \mathrm{sigmoid}(\gamma(t)), \; t = \tanh(A (k z) + a), \quad
    \log \Bigl|\frac{\partial z'}{\partial z}\Bigr| = \sum_i (1 - k_i) \log \gamma_i .

=================  ===========  ============  =============================================================
symbol             site         plate         meaning
=================  ===========  ============  =============================================================
:math:`W_l`        ``W_l``      ``unit_l``    weights, ``(inputs, outputs)``; of a convolution
                                              ``(filters, channels, 5, 5)`` in the plate ``channel_l``
:math:`z_l`        ``z_l``                    multiplicative noise of a layer, ``(inputs,)`` or ``(filters,)``;
                                              auxiliary, no part of the network
:math:`b_l`        ``b_l``      ``unit_l+1``  biases; in the last layer's plate ``output``, of a convolution in
                                              that of its filters
:math:`\sigma`     ``sigma``                  noise, only with a number as target
:math:`y`          ``y``        ``datum``     target, observed
=================  ===========  ============  =============================================================

Guide and model name ``z_l`` and ``W_l`` in another order, which Pyro's own ``TraceMeanField_ELBO`` warns of. It would
be wrong only if the divergence of :math:`z` were taken analytically; it is sampled, that of the weights given :math:`z`
is analytic. The pair's objective (``to_pyro``) knows the difference.

Deviations.

- :math:`z` is drawn once per mini-batch, not once per row; pre-activations are drawn per row, as in the paper.
- Base location and scale of :math:`r` have a part that does not depend on the weights, :math:`m` and :math:`v`, so that
  :math:`r` begins as the guide's own distribution of :math:`z`.
- Masks are fixed: step :math:`k` of a chain goes by binary digit :math:`\lfloor k / 2 \rfloor` of a unit's number, and
  every second step has the complement. The authors' code draws them anew for every mini-batch.
- Standard deviations of weights are not clipped.
- The paper's prior is standard normal; here it is one normal whose width falls with that of the layer.
- ``Hyper.temperature`` below 1 makes every row count more than once: it is not the posterior of the data at hand then.

.. code-block:: bibtex

    @inproceedings{louizos2017multiplicative,
      title     = {Multiplicative Normalizing Flows for Variational {B}ayesian Neural Networks},
      author    = {Louizos, Christos and Welling, Max},
      booktitle = {International Conference on Machine Learning},
      pages     = {2218--2227},
      year      = {2017}
    }
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

import zoo
from zoo.errors import DataError
from zoo.models._parts.handlers import apart, local_reparametrisation
from zoo.models._parts.networks import Network, Site, located, network_model, noise_guide, plates, scaled
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = ["METHOD", "Flow", "Hyper", "MaskedStep", "build", "sites", "summary"]

_START_SCALE = 0.02  # of every weight's posterior given z, over one over the root of the fan-in
_GATE = 2.0  # a step begins by moving its entries an eighth of the way to one


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        hidden: Units of each hidden fully connected layer.
        channels: Filters of each convolutional layer (5 x 5, no padding), every one followed by 2 x 2 max pooling; they
            stand before the fully connected layers.
        prior_scale: Prior width ``s``: the standard deviation of a weight times the root of the weights that lead to
            one unit. ``None``: 8 for classes, 1 for a number as target.
        num_steps: Masked steps of the guide's flow; 0: independent normal noise.
        num_reverse_steps: Masked steps of the flow of the auxiliary distribution.
        flow_width: Hidden units of a step.
        start_noise: Initial standard deviation of the noise around one.
        temperature: Every row counts ``1 / temperature`` times; 1 is the Bayesian posterior. ``None``: 0.05 for
            classes, 1 for a number as target, chosen on validation rows (digits 0 to 4, diabetes); at 1, on hundreds of
            images, most weights stay at their prior.
    """

    hidden: tuple[int, ...] = (100, 100)
    channels: tuple[int, ...] = ()
    prior_scale: float | None = None
    num_steps: int = 2
    num_reverse_steps: int = 2
    flow_width: int = 50
    start_noise: float = 0.3
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
    if min(hyper.num_steps, hyper.num_reverse_steps) < 0 or hyper.flow_width < 1 or not hyper.start_noise > 0:
        raise DataError(
            f"num_steps is {hyper.num_steps}, num_reverse_steps {hyper.num_reverse_steps}, flow_width "
            f"{hyper.flow_width} and start_noise {hyper.start_noise:g}; allowed: 0 or more, 0 or more, 1 or more, "
            "and above 0"
        )
    net = Network.of(data, hidden=hyper.hidden, channels=hyper.channels)
    width = net.prior_scale(hyper.prior_scale)

    def draw(x: Tensor) -> dict[str, Any]:
        weights = {}
        for site, plate in net.plated():
            scale = width * site.scale if site.fan_in else 1.0
            with plate:
                prior = dist.Normal(x.new_zeros(site.shape[1:]), scale).to_event(len(site.shape) - 1)
                weights[site.name] = pyro.sample(site.name, prior)
            if site.fan_in:
                pyro.sample(_noise(site), _reverse(site, apart(weights[site.name]), hyper))
        return weights

    temperature = (0.05 if net.num_classes else 1.0) if hyper.temperature is None else hyper.temperature
    model = network_model(data, net, prior_scale=hyper.prior_scale, temperature=temperature, draw=draw)

    def guide(batch: Batch) -> None:
        for site, plate in net.plated():
            loc, scale = located(site), scaled(site, _START_SCALE)
            if site.fan_in:
                z = pyro.sample(_noise(site), _forward(site, hyper))
                loc = z.view(-1, *(1,) * (len(site.shape) - 1)) * loc
            with plate:
                fn = dist.Normal(loc, scale).to_event(len(site.shape) - 1)
                pyro.sample(site.name, fn, infer={"local": True})
        noise_guide(net, point=False)

    return Pair(local_reparametrisation(model), local_reparametrisation(guide), Elbo(estimator="mean_field"))


def _noise(site: Site) -> str:
    return f"z_{site.name.removeprefix('W_')}"


def _forward(site: Site, hyper: Hyper) -> Flow:
    """Return the guide's distribution of a layer's noise."""
    name, num = _noise(site), site.shape[0]
    loc = pyro.param(f"{name}_loc", lambda: torch.ones(num))
    scale = pyro.param(f"{name}_scale", lambda: torch.full((num,), hyper.start_noise), constraint=constraints.positive)
    return Flow(loc, scale, _chain(f"{name}_flow", num, hyper.num_steps, hyper.flow_width))


def _reverse(site: Site, weight: Any, hyper: Hyper) -> Flow:
    """Return the auxiliary distribution of a layer's noise, given its weights."""
    name, num = f"{_noise(site)}_reverse", site.shape[0]
    c = pyro.param(f"{name}_weights", lambda: torch.randn(num))
    activity = (c @ weight.reshape(num, -1)).tanh().mean()
    loc = pyro.param(f"{name}_loc", lambda: torch.ones(num))
    scale = pyro.param(f"{name}_scale", lambda: torch.full((num,), hyper.start_noise), constraint=constraints.positive)
    moved = pyro.param(f"{name}_moved", lambda: 0.01 * torch.randn(num))
    stretched = pyro.param(f"{name}_stretched", lambda: 0.01 * torch.randn(num))
    steps = _chain(f"{name}_flow", num, hyper.num_reverse_steps, hyper.flow_width)
    return Flow(loc + activity * moved, scale * (activity * stretched).exp(), steps, inverse=True)


def _chain(name: str, num: int, length: int, width: int) -> list[MaskedStep]:
    """Return the steps of a flow, from their parameters."""
    found = []
    for k in range(length):

        def param(part: str, *shape: int, spread: float = 0.0, centre: float = 0.0, k: int = k) -> Any:
            return pyro.param(f"{name}_{k}_{part}", lambda: centre + spread * torch.randn(shape))

        inner = param("inner", num, width, spread=num**-0.5)
        digit = (k // 2) % max(num - 1, 1).bit_length()
        found.append(
            MaskedStep(
                mask=(torch.arange(num, device=inner.device) >> digit) % 2 == k % 2,
                inner=inner,
                inner_bias=param("inner_bias", width),
                shift=param("shift", width, num, spread=0.01),
                shift_bias=param("shift_bias", num, centre=1.0),
                gate=param("gate", width, num, spread=0.01),
                gate_bias=param("gate_bias", num, centre=_GATE),
            )
        )
    return found


class MaskedStep(NamedTuple):
    """One invertible step of a flow: entries under the mask stay, and decide where the others go.

    Args:
        mask: Which entries stay, boolean, ``(units,)``.
        inner: Weights of the hidden layer, ``(units, width)``.
        inner_bias: Its biases, ``(width,)``.
        shift: Weights from the hidden layer to the targets, ``(width, units)``.
        shift_bias: Biases of the targets, ``(units,)``.
        gate: Weights from the hidden layer to the logits of the gates, ``(width, units)``.
        gate_bias: Biases of these logits, ``(units,)``.
    """

    mask: Tensor
    inner: Tensor
    inner_bias: Tensor
    shift: Tensor
    shift_bias: Tensor
    gate: Tensor
    gate_bias: Tensor

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step.

        Args:
            z: ``(*sample, units)``.

        Returns:
            Where it leads, of the same shape, and the log of the absolute determinant of its Jacobian, ``(*sample,)``.
        """
        target, logit = self._decide(z)
        gate = logit.sigmoid()
        return torch.where(self.mask, z, gate * z + (1 - gate) * target), self._log_det(logit)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step back.

        Args:
            z: ``(*sample, units)``.

        Returns:
            Where it came from, and the log of the absolute determinant of the Jacobian of the way *back*.
        """
        target, logit = self._decide(z)
        gate = logit.sigmoid()
        return torch.where(self.mask, z, (z - (1 - gate) * target) / gate), -self._log_det(logit)

    def _decide(self, z: Tensor) -> tuple[Tensor, Tensor]:
        hidden = (torch.where(self.mask, z, 0.0) @ self.inner + self.inner_bias).tanh()
        return hidden @ self.shift + self.shift_bias, hidden @ self.gate + self.gate_bias

    def _log_det(self, logit: Tensor) -> Tensor:
        return torch.where(self.mask, 0.0, nn.functional.logsigmoid(logit)).sum(-1)


class Flow(TorchDistribution):  # type: ignore[misc]
    r"""Normal noise that went through masked steps, or, with ``inverse``, through these steps backwards.

    The density of the last draw is known from the way that led to it; that of any other value takes the way back.

    Args:
        loc: Means of the noise, ``(units,)``.
        scale: Its standard deviations, ``(units,)``.
        steps: The steps, the first first.
        inverse: Whether the noise goes backwards, last step first, so that the *density* of a value takes the steps
            forwards.

    References:
        Louizos, Welling (2017), eq. 8-12. https://arxiv.org/abs/1703.01961
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        steps: Sequence[MaskedStep],
        *,
        inverse: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.steps, self.inverse = loc, scale, tuple(steps), inverse
        self._last: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(), loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> Flow:
        """Return the distribution itself: one noise vector serves all.

        Args:
            batch_shape: New batch shape; only the empty one is possible.
            _instance: Unused; part of the interface.

        Returns:
            The distribution.

        Raises:
            NotImplementedError: If the batch shape is not empty.
        """
        if len(batch_shape):
            raise NotImplementedError(f"a Flow has no batch; got batch shape {tuple(batch_shape)}")
        return self

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw, differentiable in every parameter.

        Args:
            sample_shape: Leading shape.

        Returns:
            ``(*sample_shape, units)``.
        """
        noise = torch.randn((*sample_shape, *self.loc.shape), dtype=self.loc.dtype, device=self.loc.device)
        z = self.loc + self.scale * noise
        density = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(z).sum(-1)
        for step in reversed(self.steps) if self.inverse else self.steps:
            z, log_det = step.inverse(z) if self.inverse else step.forward(z)
            density = density - log_det
        self._last = z, density
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density.

        Args:
            value: ``(*sample, units)``.

        Returns:
            ``(*sample,)``.
        """
        if self._last is not None and value is self._last[0]:
            return self._last[1]
        z, total = value, value.new_zeros(value.shape[:-1])
        for step in self.steps if self.inverse else reversed(self.steps):
            z, log_det = step.forward(z) if self.inverse else step.inverse(z)
            total = total + log_det
        density: Tensor = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(z).sum(-1) + total
        return density


# ---------------------------------------------------------------------------------------- quantities of interest
def summary(posterior: Posterior) -> dict[str, float]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        For each layer the mean coefficient of variation of its noise, the largest correlation between the noise of two
        units, and the width of its weights' posteriors given the noise in units of the prior's.
    """
    hyper, found = posterior.hyper, dict[str, float]()
    net = Network.of(posterior.data, hidden=hyper.hidden, channels=hyper.channels)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        for name, value in posterior.params.items():
            pyro.param(name, value.cpu())
        for site in net.sites:
            if site.fan_in:
                name = _noise(site)
                z = _forward(site, hyper).rsample((1_000,)).double()
                found[f"{name}: sd / |mean|"] = float((z.std(0) / z.mean(0).abs()).median())
                if z.shape[1] > 1:
                    found[f"{name}: largest correlation"] = float(torch.corrcoef(z.mT).fill_diagonal_(0.0).abs().max())
                ratio = float(posterior.params[f"{site.name}_scale"].mean()) / site.scale
                found[f"{site.name}: sd given noise / prior sd"] = ratio / net.prior_scale(hyper.prior_scale)
    return found


# -------------------------------------------------------------------------------------------------------- claims
def _measure_unlike(seed: int, fast: bool) -> dict[str, float]:
    """Fit the digits 0 to 4 by flows, mean field and MAP, and tell the digits 5 to 9 from them by predictive entropy.

    Settings are those of the largest area on validation rows, each of several: temperature and noise of the flows,
    temperature and prior width of mean field, prior width of the point estimate.

    Returns:
        Area under the ROC curve (test rows of 0 to 4 against those of 5 to 9), and test error in percent and log loss
        on 0 to 4, of each.
    """
    from zoo.leaderboard import DATA
    from zoo.models import map_network, mean_field_network
    from zoo.tasks.classification import auroc, probabilities

    case = DATA["digits_0_4"]
    data = case.load(seed)
    assert case.unlike is not None
    test, unlike = data.split("test"), case.unlike(seed)
    methods: tuple[tuple[str, Method[Any], Any], ...] = (
        ("flows", METHOD, Hyper()),
        ("mean field", mean_field_network.METHOD, mean_field_network.Hyper(temperature=0.05)),
        ("MAP", map_network.METHOD, map_network.Hyper(prior_scale=20.0)),
    )
    options: dict[str, Any] = {"steps": 60} if fast else {}
    found: dict[str, float] = {}
    for name, method, hyper in methods:
        posterior = zoo.fit(method, data, hyper=hyper, seed=seed, compile=not fast, **options)
        prediction = posterior.predict(test, n=10 if fast else 200)
        scores = zoo.tasks.get("classification").score(prediction, test, data)
        others = posterior.predict({"x": unlike}, n=10 if fast else 200)
        probs = torch.cat([probabilities(prediction, len(test["y"])), probabilities(others, len(unlike))])
        entropy = torch.special.entr(probs).sum(-1)
        found[f"AUROC {name}"] = auroc(entropy, (torch.arange(len(probs)) >= len(test["y"])).long())
        found |= {f"error {name}": 100 * scores["error"], f"nll {name}": scores["nll"]}
    return found


CLAIMS = (
    Claim(
        statement="Trained on the digits 0 to 4, the entropy of predictions tells the digits 5 to 9 from them with an "
        "area under the ROC curve of at least 0.97, larger than those of mean field and of the point estimate.",
        published="the entropy of predictions on unseen classes is the highest under flows (curves, no number)",
        source="Louizos, Welling (2017), fig. 3",
        measure=_measure_unlike,
        acceptance=(
            Acceptance(key="AUROC flows", low=0.97),
            Acceptance(key="AUROC flows", above="AUROC mean field"),
            Acceptance(key="AUROC flows", above="AUROC MAP"),
        ),
        budget=90,
        seeds=5,
    ),
    Claim(
        statement="On the digits 0 to 4 themselves, flows err no more than mean field, and their log loss is lower.",
        published="test error of LeNet on MNIST: flows 0.7%, mean field 0.9%, dropout 0.5%, point estimate 0.6%",
        source="Louizos, Welling (2017), table 2",
        measure=_measure_unlike,
        acceptance=(
            Acceptance(key="error flows", below="error mean field", errors=1.0),
            Acceptance(key="nll flows", below="nll mean field"),
        ),
        budget=90,
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
    return found | {f"z_{name.removeprefix('W_')}": () for name in found if name.startswith("W_")}


METHOD = Method(
    name="multiplicative_flows",
    title="Multiplicative normalizing flows: weights that depend on each other",
    paper="louizos2017multiplicative",
    task="classification",
    other_tasks=("regression",),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(hidden=(20, 10), flow_width=8),
    default_data="digits",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=6_000, learning_rate=3e-3, batch_size=128, schedule="cosine", kl_warmup=0.25),
    summary=summary,
    use_when="You want one network whose weights depend on each other in the posterior, for its probabilities, or to "
    "see what a richer guide changes.",
    avoid_when="Rows unlike the training rows are to be found: a tempered mean_field_network did that at least as well "
    "here, for less. Sparse or small networks are the aim (bayesian_compression, empirical_bayes_dropout), or the "
    "posterior of single weights is to be read: it has no density in closed form.",
    needs="A table or images with classes or a number as target, features on one scale (pixels in [0, 1], standardised "
    "columns), and some thousand optimiser steps.",
)
