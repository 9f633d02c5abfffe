r"""The variational fair autoencoder: a representation of rows from which a sensitive group cannot be told.

A row has features :math:`x`, a class :math:`y`, which may be unknown, and the code :math:`s` of its sensitive group.
The decoder of the features is told :math:`s`, so that :math:`z_1` need not carry it, and :math:`z_2` is what is left of
:math:`z_1` beside the class. With multilayer perceptrons :math:`f`,

.. math::

    z_2 &\sim \mathrm{N}(0, I), \qquad y \sim \mathrm{Cat}(1/C), \qquad
    z_1 \sim \mathrm{N}(\mu, \mathrm{diag}\, \sigma^2), \; (\mu, \sigma) = f_{z_1}(z_2, y), \\
    x_j &\sim \mathrm{N}(f_x(z_1, s)_j, \tau_j^2) \text{ for a number}, \qquad
    x_j \sim \mathrm{Bernoulli}(\mathrm{sigmoid} f_x(z_1, s)_j) \text{ for an indicator of a category}.

The guide is amortised, :math:`q(z_1 \mid x, s)\, q(y \mid z_1)\, q(z_2 \mid z_1, y)`, with normals of diagonal
covariance and a linear classifier :math:`q(y \mid z_1)`. What is maximised is the evidence lower bound and two more
terms, all per row:

.. math::

    \mathrm{ELBO} + \alpha \log q(y \mid z_1)
    - \beta \sum_k \Bigl\| \frac{1}{n_k} \sum_{s_i = k} \psi(z_{1i})
    - \frac{1}{n - n_k} \sum_{s_i \ne k} \psi(z_{1i}) \Bigr\|^2, \qquad
    \psi(z) = \sqrt{2/D} \, \cos\bigl(\sqrt{2/\gamma}\, W^\top z + b\bigr),

with :math:`W_{ij} \sim \mathrm{N}(0, 1)`, :math:`b_j` uniform on :math:`[0, 2\pi]`: the maximum mean discrepancy of
each group from the rest, by random features of the kernel :math:`\exp(-\|z - z'\|^2 / \gamma)`. Of two groups there is
one term. Of rows without a class it is taken through :math:`q(y \mid z_1)`, all classes summed exactly. The purged
representation of a row is a draw of :math:`q(z_1 \mid x, s)`.

==================  ===============  =========  ====================================================================
symbol              site             plate      meaning
==================  ===============  =========  ====================================================================
:math:`z_1`         ``z1``           ``datum``  the purged representation, ``(rows, num_z1)``
:math:`z_2`         ``z2``           ``datum``  what of it is not the class, ``(rows, num_z2)``
:math:`y`           ``y_missing``    ``datum``  class of a row that has none; only where some have none
:math:`y`           ``y``            ``datum``  the known class under :math:`q(y \mid z_1)`, observed, scaled by alpha
:math:`x`           ``x_number``     ``datum``  numbers, or pixels, observed
:math:`x`           ``x_indicator``  ``datum``  indicators of categories, 0 or 1, observed
:math:`\beta`       ``mmd``          ``datum``  weight of the penalty, a factor; none for ``beta = 0``
==================  ===============  =========  ====================================================================

Deviations. The class of a labelled row has no prior term: a constant for equally probable classes. The two extra terms
are scaled to the whole data, as the bound is, so ``beta`` is the paper's weight over the rows of a mini-batch. Random
features are drawn once, from a fixed seed, not for every step. In a mini-batch without rows of a group its
term is left out; the paper draws both groups for every batch. Numbers are normal with a learnt width for each column.
Probes read draws, as the penalty does, and far fewer dimensions than would fit: both keep the group from the fine
structure of means. The sensitive column of Adult is the sex here; the paper's text names the age.

.. code-block:: bibtex

    @inproceedings{louizos2016fair,
      title     = {The Variational Fair Autoencoder},
      author    = {Louizos, Christos and Swersky, Kevin and Li, Yujia and Welling, Max and Zemel, Richard},
      booktitle = {International Conference on Learning Representations},
      year      = {2016},
      url       = {https://arxiv.org/abs/1511.00830}
    }
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

import zoo
from zoo.errors import DataError
from zoo.models._parts.autoencoders import encoded, perceptron
from zoo.tasks.fair_representation import labelled
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Figure, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = [
    "METHOD",
    "Hyper",
    "RandomFeatures",
    "build",
    "discrepancy",
    "figures",
    "represent",
    "sites",
    "summary",
]

_MOST_SHOWN = 500  # rows in a map
_LEAST_SCALE = 0.1  # of z1 given z2: first guesses are far off, and under a narrow normal their density is extreme


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        num_z1: Dimensions of the purged representation. Spare ones are not harmless: their means hardly vary, but what
            little they do can tell the group, and no kernel of the width of the others sees it.
        num_z2: Dimensions of what is left of it beside the class.
        hidden: Units of each hidden layer of every perceptron.
        alpha: Weight of the classifier's log probability of the class.
        beta: Weight of the discrepancy between groups, per row; 0 leaves it out.
        gamma: Width of its kernel, the squared distance at which it has fallen to 1/e; ``None``: half of ``num_z1``.
        num_features: Random features of the kernel.
    """

    num_z1: int = 6
    num_z2: int = 6
    hidden: tuple[int, ...] = (64,)
    alpha: float = 30.0
    beta: float = 10_000.0
    gamma: float | None = None
    num_features: int = 500


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with features ``x``, ``(rows, features)``, classes ``y``, groups ``s`` and ``index``; where the
            class of some rows is unknown also ``y_missing``. ``extra["num_classes"]`` and ``extra["num_groups"]``.
            Columns with ``categories`` are indicators, all others numbers.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch; with unknown classes their sum is exact (``Elbo(estimator="enum")``).

    Raises:
        DataError: If a hyper-parameter is out of range, or the data have no groups or no classes.
    """
    _refuse(data, hyper)
    classes, groups = int(data.extra["num_classes"]), int(data.extra["num_groups"])
    table = _Columns.of(data)
    psi = RandomFeatures.drawn(hyper.num_z1, hyper.num_features, gamma=hyper.gamma or hyper.num_z1 / 2)

    def told_by(name: str, *inputs: Tensor, num: int, least_scale: float = 0.0) -> TorchDistribution:
        fn = encoded(name, torch.cat(inputs, -1), num, hidden=hyper.hidden)
        return dist.Normal(fn.base_dist.loc, fn.base_dist.scale + least_scale).to_event(1)

    def rows(batch: Batch) -> pyro.plate:
        return pyro.plate("datum", data.num_data, subsample=batch["index"], dim=-1)

    def told(batch: Batch, y_missing: Tensor | None, like: Tensor) -> Tensor:
        """Return the class of every row as an indicator: the known one, or the one that was drawn or enumerated."""
        y = batch["y"] if y_missing is None else y_missing
        if y_missing is not None and "y" in batch:
            y = torch.where(batch["y_missing"], y_missing, batch["y"])
        return _one_hot(y, classes, like)

    def guess(z1: Tensor) -> Tensor:
        """Return the logits of the classifier."""
        return perceptron("q_y", z1, classes)

    def model(batch: Batch) -> None:
        x, num = batch["x"], len(batch["index"])
        s = _one_hot(batch["s"], groups, x)
        with rows(batch):
            y_missing = None
            if not _all_known(batch):
                y_missing = pyro.sample("y_missing", dist.Categorical(logits=x.new_zeros(num, classes)))
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(num, hyper.num_z2), 1.0).to_event(1))
            y = told(batch, y_missing, x)
            z1 = pyro.sample("z1", told_by("p_z1", *_alike(z2, y), num=hyper.num_z1, least_scale=_LEAST_SCALE))
            with poutine.scale(scale=hyper.alpha), poutine.mask(mask=_known(batch)):
                code = batch.get("y", torch.zeros_like(batch["s"]))  # under the mask where unknown
                pyro.sample("y", dist.Categorical(logits=guess(z1)), obs=code)
            table.observe(x, perceptron("p_x", torch.cat([z1, s], -1), table.num, hidden=hyper.hidden))
            if hyper.beta:  # of the batch as a whole, its part for every row
                pyro.factor("mmd", -hyper.beta * discrepancy(psi(z1), batch["s"], groups).expand(num))

    def guide(batch: Batch) -> None:
        x = batch["x"]
        s = _one_hot(batch["s"], groups, x)
        with rows(batch):
            fn = told_by("q_z1", table.inputs(x), s, num=hyper.num_z1)
            z1 = pyro.sample("z1", fn, infer={"amortised": True})
            y_missing = None
            if not _all_known(batch):
                logits = guess(z1)
                if "y" in batch:  # of rows with a class all are equal, as in the model, where they have no say
                    logits = torch.where(batch["y_missing"][:, None], logits, 0.0)
                y_missing = pyro.sample(
                    "y_missing", dist.Categorical(logits=logits), infer={"amortised": True, "enumerate": "parallel"}
                )
            y = told(batch, y_missing, x)
            pyro.sample("z2", told_by("q_z2", *_alike(z1, y), num=hyper.num_z2), infer={"amortised": True})

    some_unknown = bool(data.train["y_missing"].any()) if "y_missing" in data.train else False
    return Pair(model, guide, Elbo(estimator="enum", max_plate_nesting=1) if some_unknown else Elbo())


def _refuse(data: Dataset, hyper: Hyper) -> None:
    sizes = (hyper.num_z1, hyper.num_z2, hyper.num_features, *hyper.hidden)
    if any(size < 1 for size in sizes):
        raise DataError(
            f"num_z1, num_z2, num_features and hidden are {sizes[0]}, {sizes[1]}, {sizes[2]} and {hyper.hidden}; every "
            "size must be at least 1"
        )
    for name, value in (("alpha", hyper.alpha), ("beta", hyper.beta)):
        if not 0 <= value < math.inf:
            raise DataError(f"{name} is {value}; allowed: a weight of 0 or more")
    if hyper.gamma is not None and not 0 < hyper.gamma < math.inf:
        raise DataError(f"gamma is {hyper.gamma}; allowed: a positive width, or None for half of num_z1")
    for what in ("num_classes", "num_groups"):
        if not isinstance(data.extra.get(what), int):
            raise DataError(
                f"data set '{data.name}' has no extra['{what}']; a fair representation needs a class as target and a "
                "sensitive column: zoo.datasets.read(..., target='income', sensitive='sex')"
            )
    if "x_missing" in data.train:
        raise DataError(f"data set '{data.name}' has missing entries, which this method does not impute; fill them")


def _one_hot(codes: Tensor, num: int, like: Tensor) -> Tensor:
    """Return indicators; torch's own look at the codes, which a traced program must not."""
    return (codes[..., None] == torch.arange(num, device=codes.device)).to(like)


def _all_known(batch: Batch) -> bool:
    return "y" in batch and "y_missing" not in batch


def _known(batch: Batch) -> Tensor:
    """Say which rows have a class, ``(rows,)``."""
    like = batch["s"]
    if "y" not in batch:
        return torch.zeros_like(like, dtype=torch.bool)
    return torch.ones_like(like, dtype=torch.bool) if "y_missing" not in batch else ~batch["y_missing"]


def _alike(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Expand both to common leading dimensions: an enumerated class has one more."""
    shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
    return z.expand(*shape, z.shape[-1]), y.expand(*shape, y.shape[-1])


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which features are numbers and which indicators, and how the latter become 0 and 1 again.

    Args:
        numbers: Positions of the numbers.
        flags: Positions of the indicators.
        mean: Added to a scaled feature, 0 for a number, ``(features,)``.
        scale: Factor of a feature, 1 for a number, ``(features,)``.
    """

    numbers: list[int]
    flags: list[int]
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, data: Dataset) -> _Columns:
        num = data.train["x"].shape[-1]
        columns = data.columns if len(data.columns) == num else ()
        flags = [k for k, column in enumerate(columns) if column.categories is not None]
        mean, scale = torch.zeros(num), torch.ones(num)
        for k in flags:
            mean[k], scale[k] = columns[k].mean, columns[k].scale
        return cls([k for k in range(num) if k not in flags], flags, mean, scale)

    @property
    def num(self) -> int:
        return len(self.mean)

    def inputs(self, x: Tensor) -> Tensor:
        """Return what the encoder sees: numbers as they are, indicators as 0 and 1."""
        return x * self.scale.to(x) + self.mean.to(x)

    def observe(self, x: Tensor, told: Tensor) -> None:
        """Write the observed sites of the features."""
        if self.numbers:
            width = pyro.param("x_scale", lambda: torch.ones(len(self.numbers)), constraint=constraints.positive)
            fn = dist.Normal(told[..., self.numbers], width).to_event(1)
            pyro.sample("x_number", fn, obs=x[..., self.numbers])
        if self.flags:
            fn = dist.Bernoulli(logits=told[..., self.flags]).to_event(1)
            pyro.sample("x_indicator", fn, obs=self.inputs(x)[..., self.flags].round())


@dataclass(frozen=True, slots=True)
class RandomFeatures:
    r"""Random features of a kernel: :math:`\psi(z)^\top \psi(z') \approx \exp(-\|z - z'\|^2 / \gamma)`.

    Args:
        W: Directions, ``(dimensions, features)``, standard normal.
        b: Phases, ``(features,)``, uniform on :math:`[0, 2\pi]`.
        gamma: Width of the kernel.

    References:
        Zhao, Meng (2015), FastMMD; Rahimi, Recht (2007), Random features for large-scale kernel machines.
    """

    W: Tensor
    b: Tensor
    gamma: float

    @classmethod
    def drawn(cls, dimensions: int, features: int, *, gamma: float, seed: int = 0) -> RandomFeatures:
        """Draw directions and phases.

        Args:
            dimensions: Of ``z``.
            features: How many; the error of the kernel falls with one over the root of it.
            gamma: Width of the kernel.
            seed: Of the draw.

        Returns:
            The features.
        """
        generator = torch.Generator().manual_seed(seed)
        W = torch.randn(dimensions, features, generator=generator, device="cpu")
        b = 2 * math.pi * torch.rand(features, generator=generator, device="cpu")
        return cls(W, b, gamma)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the features.

        Args:
            z: ``(*batch, dimensions)``.

        Returns:
            ``(*batch, features)``.
        """
        inner = math.sqrt(2 / self.gamma) * z @ self.W.to(z) + self.b.to(z)
        return math.sqrt(2 / len(self.b)) * inner.cos()


def discrepancy(psi: Tensor, s: Tensor, groups: int) -> Tensor:
    """Return how far the groups are apart in the means of their features.

    Args:
        psi: Features, ``(rows, features)``.
        s: Group of each row, ``(rows,)``.
        groups: How many groups there are.

    Returns:
        Sum over groups of the squared distance between the mean of the group and that of all other rows, a scalar; of
        two groups one term, as both are the same. A group that has no row here, or all, adds nothing.
    """
    member = _one_hot(s, groups, psi)
    inside = member.sum(0)
    outside = len(s) - inside
    sums = member.mT @ psi
    gap = sums / inside.clamp_min(1)[:, None] - (psi.sum(0) - sums) / outside.clamp_min(1)[:, None]
    terms = torch.where((inside > 0) & (outside > 0), gap.square().sum(-1), 0.0)
    return terms[0] if groups == 2 else terms.sum()


# ---------------------------------------------------------------------------------------- quantities of interest
def represent(posterior: Posterior, batch: Batch, *, mean: bool = False, seed: int = 0) -> Tensor:
    """Return the purged representation of rows: one draw of :math:`q(z_1 | x, s)` for each.

    The penalty makes draws alike in all groups. Means are sharper, and tell more than draws: of the class, and in their
    fine structure of the group, which a forest finds.

    Args:
        posterior: A fit of this method.
        batch: Rows with ``x`` and ``s``; a target is not looked at.
        mean: Whether to return the means instead.
        seed: Of the draw.

    Returns:
        ``(rows, num_z1)``, on the CPU.
    """
    given = posterior._prepare({k: v for k, v in batch.items() if k in ("x", "s")})
    with torch.random.fork_rng(devices=[]), posterior.runs.bound():
        trace: Any = poutine.trace(posterior.runs.pair.guide).get_trace(given)
    fn = trace.nodes["z1"]["fn"].base_dist
    loc, scale = (value.detach().cpu() for value in (fn.loc, fn.scale))
    noise = torch.randn(loc.shape, generator=torch.Generator().manual_seed(seed), dtype=loc.dtype, device="cpu")
    found: Tensor = loc if mean else loc + scale * noise
    return found


def summary(posterior: Posterior) -> dict[str, float]:
    """Return what linear probes tell of class and group on validation rows, from the features and from the draws.

    Args:
        posterior: A fit of this method.

    Returns:
        Accuracies of the class and areas under the curve of the group, and the gaps of a classifier of draws; nothing
        without validation rows, or if a group or class is missing there.
    """
    found = _audits(posterior)
    if not found:
        return {}
    named = {"raw": "features", "purged": "z1"}
    told = {
        f"{what}, linear probe of {named[where]}": found[where][key]
        for what, key in (("class: accuracy", "linear y accuracy"), ("group: area under the curve", "linear s auroc"))
        for where in named
    }
    return told | {f"{gap}, linear probe of z1": found["purged"][gap] for gap in ("parity gap", "odds gap")}


def _audits(posterior: Posterior) -> dict[str, dict[str, float]]:
    """Audit features and draws by linear probes, with the validation rows as test rows; at most 2,000 of each split."""
    from zoo.diagnostics.fairness import audit

    data = posterior.data
    if data.validation is None:
        return {}
    rows = {"train": data.train, "validation": data.validation}
    few = {n: {k: v[:: -(-len(batch["s"]) // 2_000)] for k, v in batch.items()} for n, batch in rows.items()}
    # Probes are not tuned on what they are judged by: every other training row chooses their penalty.
    halves = [{k: v[first::2] for k, v in few["train"].items()} for first in (0, 1)]
    told = replace(data, train=halves[0], validation=halves[1], test=few["validation"])
    if any(
        len(batch["s"].unique()) < data.extra["num_groups"]
        or len(batch["y"][labelled(batch)].unique()) < data.extra["num_classes"]
        for batch in (*halves, few["validation"])
    ):
        return {}
    return {
        "raw": audit(lambda batch: batch["x"], told, forest=False),
        "purged": audit(lambda batch: represent(posterior, batch), told, forest=False),
    }


def figures(posterior: Posterior) -> list[Figure]:
    """Return the figures of a fit: maps of rows by group, from the features and from the draws, and what probes tell.

    Args:
        posterior: A fit of this method.

    Returns:
        Descriptions, for the report.
    """
    from zoo.reports.figures import BLUE, CHAINS, MUTED, ORANGE

    data = posterior.data
    batch = data.validation or data.test or data.train
    some = {k: v[:: -(-len(batch["s"]) // _MOST_SHOWN)] for k, v in batch.items()}
    groups = data.coords.get("sensitive", tuple(range(int(data.extra["num_groups"]))))
    maps = {"features": _plane(some["x"]), "a draw of z1": _plane(represent(posterior, some))}

    def paint(axes: Any) -> None:
        for axis, (title, at) in zip(axes[0], maps.items(), strict=True):
            for code, label in enumerate(groups):
                mine = (some["s"] == code).cpu().numpy()
                axis.scatter(
                    *at[mine].T, s=6, alpha=0.5, linewidths=0, color=CHAINS[code % len(CHAINS)], label=str(label)
                )
            axis.set(title=title, xlabel="first principal component", ylabel="second")
        axes[0, 0].legend(frameon=False, fontsize=8, markerscale=2, title=str(data.extra.get("sensitive", "group")))

    told = [
        Figure(
            name="groups_apart",
            paint=paint,
            columns=2,
            wide=True,
            height=3.4,
            alt="Two maps of the same rows, coloured by group: of their features, and of draws of z1.",
            caption=f"{len(some['s']):,} held-out rows on the first two principal components of their features (left) "
            "and of one draw of z1 for each (right), coloured by group. Purged rows of all groups lie alike.",
        )
    ]
    found = _audits(posterior)
    if found:
        bars = {"class, features": found["raw"]["linear y auroc"], "class, z1": found["purged"]["linear y auroc"]}
        bars |= {"group, features": found["raw"]["linear s auroc"], "group, z1": found["purged"]["linear s auroc"]}

        def probes(axes: Any) -> None:
            axis = axes[0, 0]
            axis.barh(list(bars), list(bars.values()), color=[MUTED, BLUE, MUTED, ORANGE])
            axis.axvline(0.5, color="black", linewidth=0.8)
            axis.set(xlim=(0.4, 1.0), xlabel="area under the curve of a linear probe")
            axis.invert_yaxis()

        told.append(
            Figure(
                name="probes",
                paint=probes,
                height=2.2,
                alt="Bars: what linear probes tell of class and group, from the features and from z1.",
                caption="What linear probes tell on validation rows, from the features and from draws of z1; the line "
                "is chance. The class should stay, the group should go. A forest may find more: "
                "zoo.diagnostics.fairness.audit asks one.",
            )
        )
    return told


def _plane(x: Tensor) -> Any:
    """Return rows on their first two principal components, ``(rows, 2)``."""
    flat = x.detach().cpu().double().flatten(1)
    centred = flat - flat.mean(0)
    if centred.shape[1] == 1:
        return torch.cat([centred, torch.zeros_like(centred)], 1).numpy()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[:2].mT).numpy()


# -------------------------------------------------------------------------------------------------------- claims
_PROBED = {
    "linear y accuracy": "y accuracy, linear",
    "forest y accuracy": "y accuracy, forest",
    "linear s auroc": "s area, linear",
    "linear s balanced accuracy": "s balanced accuracy, linear",
    "forest s auroc": "s area, forest",
    "forest s balanced accuracy": "s balanced accuracy, forest",
    "parity gap": "parity gap",
    "odds gap": "odds gap",
}


def _measure(name: str, hyper: Hyper, seed: int, fast: bool) -> dict[str, float]:
    """Audit representations of one data set, each with as many dimensions as the purged one, on its test rows.

    Args:
        name: Bundled data set.
        hyper: Of the fair autoencoder.
        seed: Of split and fits.
        fast: Whether to take few steps and rows, for tests.

    Returns:
        Measures of the features themselves, of their principal components, of the autoencoder without groups, of the
        fair one without the penalty, and of the fair one: draws, and the means.
    """
    from sklearn.decomposition import PCA

    from zoo.diagnostics.fairness import audit
    from zoo.models import vae

    data = zoo.datasets.load(name, seed=seed)
    options: dict[str, Any] = {"seed": seed, "compile": not fast} | ({"steps": 20} if fast else {})
    recipe = METHOD.recipe
    plain_options = {"steps": recipe.steps, "learning_rate": recipe.learning_rate, "batch_size": recipe.batch_size}
    plain = zoo.fit(
        vae.METHOD,
        replace(data, task="density", train={k: data.train[k] for k in ("x", "index")}),
        hyper=vae.Hyper(num_latent=hyper.num_z1, hidden=hyper.hidden, likelihood="normal"),
        **(plain_options | options),
    )
    fair = zoo.fit(METHOD, data, hyper=hyper, **options)
    free = zoo.fit(METHOD, data, hyper=replace(hyper, beta=0.0), **options)
    components = PCA(hyper.num_z1).fit(data.train["x"].numpy())
    ways: dict[str, Callable[[Batch], Tensor]] = {
        "features": lambda batch: batch["x"],
        "PCA": lambda batch: torch.as_tensor(components.transform(batch["x"].numpy())),
        "VAE": lambda batch: vae.codes(plain, {"x": batch["x"]})[0],
        "no MMD": lambda batch: represent(free, batch),
        "VFAE": lambda batch: represent(fair, batch),
        "VFAE, means": lambda batch: represent(fair, batch, mean=True),
    }
    probes: dict[str, Any] = {"num_trees": 5, "max_rows": 500} if fast else {"num_trees": 50}
    found: dict[str, float] = {}
    for way, represented in ways.items():
        measured = audit(represented, data, seed=seed, **probes)
        found |= {f"{short}: {way}": measured[key] for key, short in _PROBED.items()}
    return found


def _measure_adult(seed: int, fast: bool) -> dict[str, float]:
    return _measure("adult", Hyper(), seed, fast)


def _measure_lighting(seed: int, fast: bool) -> dict[str, float]:
    return _measure("digits_lighting", LIGHTING, seed, fast)


def _measure_credit(seed: int, fast: bool) -> dict[str, float]:
    return _measure("german_credit_sex", CREDIT, seed, fast)


LIGHTING = Hyper(num_z1=16, num_z2=16, hidden=(100,), alpha=100.0, beta=1_000.0)
CREDIT = Hyper()

CLAIMS = (
    Claim(
        statement="Adult, sex removed: a linear probe of the purged draws hardly tells the sex (area at most 0.60, "
        "balanced accuracy at most 0.55), at a loss of at most 3 points of accuracy on income against the features.",
        published="probes tell s about as rarely as chance, and y almost as well as from the features (a plot)",
        source="Louizos et al. (2016), section 4, fair classification",
        measure=_measure_adult,
        acceptance=(
            Acceptance(key="s area, linear: VFAE", low=0.40, high=0.60),
            Acceptance(key="s balanced accuracy, linear: VFAE", high=0.55),
            Acceptance(key="y accuracy, linear: VFAE", above="y accuracy, linear: features", slack=0.03),
        ),
        budget=300,
    ),
    Claim(
        statement="Adult: the penalty purges more than the model alone, and both tell the sex less than principal "
        "components and an autoencoder without groups; a forest agrees.",
        published="with the penalty, probes tell less of s (a plot)",
        source="Louizos et al. (2016), section 4, fair classification",
        measure=_measure_adult,
        acceptance=(
            Acceptance(key="s area, linear: VFAE", below="s area, linear: no MMD"),
            Acceptance(key="s area, forest: VFAE", below="s area, forest: no MMD"),
            Acceptance(key="s area, linear: no MMD", below="s area, linear: PCA"),
            Acceptance(key="s area, linear: no MMD", below="s area, linear: VAE"),
        ),
        budget=300,
    ),
    Claim(
        statement="Digits under four lights: a linear probe of the purged draws is near chance on the light (balanced "
        "accuracy at most 0.35; chance 0.25), and tells the digit as well as from the pixels, within 3 points.",
        published="faces under five lights (Extended Yale B): less of the light, more of the person than from pixels",
        source="Louizos et al. (2016), section 4, invariant representations; other data here",
        measure=_measure_lighting,
        acceptance=(
            Acceptance(key="s balanced accuracy, linear: VFAE", high=0.35),
            Acceptance(key="s balanced accuracy, linear: VFAE", below="s balanced accuracy, linear: no MMD"),
            Acceptance(key="y accuracy, linear: VFAE", above="y accuracy, linear: features", slack=0.03),
        ),
        budget=200,
    ),
    Claim(
        statement="German credit, sex removed: a linear probe of the purged draws tells the sex less than one of the "
        "features, and the risk as well, within 3 points.",
        published="probes tell s about as rarely as chance, and y almost as well as from the features (a plot)",
        source="Louizos et al. (2016), section 4, fair classification",
        measure=_measure_credit,
        acceptance=(
            Acceptance(key="s area, linear: VFAE", below="s area, linear: features"),
            Acceptance(key="y accuracy, linear: VFAE", above="y accuracy, linear: features", slack=0.03),
        ),
        budget=100,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return each latent site and the plates around it; where classes are unknown there is ``y_missing`` too.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    return {"z1": ("datum",), "z2": ("datum",)}


METHOD = Method(
    name="variational_fair_autoencoder",
    title="Variational fair autoencoder: rows without a sensitive group",
    paper="louizos2016fair",
    task="fair_representation",
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(num_z1=5, num_z2=4, hidden=(16,), num_features=50),
    default_data="german_credit_sex",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=3_000, learning_rate=3e-3, batch_size=256, schedule="cosine"),
    summary=summary,
    figures=figures,
    transform=represent,
    use_when="Rows are to be handed on, or a class to be predicted, without telling a group: sex, a hospital, the "
    "light of a picture. Some rows may lack the class.",
    avoid_when="Only one prediction is to be fair and nothing is handed on: constrain the classifier instead. A "
    "promise against every future attacker is needed: the penalty compares distributions, the audit tries two probes.",
    needs="A table or images with a class as target and a column of the sensitive group, some hundred rows of each "
    "group, and the group of every row that is to be represented.",
)
