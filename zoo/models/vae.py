r"""Variational autoencoder: every row has normal latents, a network decodes them, another one encodes the row.

.. math::

    z_n \sim \mathrm{N}(0, I), \qquad x_n \sim p_\theta(x_n \mid z_n), \qquad
    q_\phi(z_n \mid x_n) = \mathrm{N}\bigl(\mu_\phi(x_n), \mathrm{diag}\, \sigma_\phi^2(x_n)\bigr).

Pixels are Bernoulli, their logits the outputs of the decoder; columns of a table are normal around its outputs, with
one learned standard deviation each. The weights :math:`\theta` and :math:`\phi` are parameters, not latents. With
``prior="vamp"`` the prior is the VampPrior of Tomczak and Welling, the encoder's average over learned pseudo-inputs,

.. math:: z_n \sim \frac1K \sum_{k=1}^K q_\phi(z \mid u_k).

==============================  ==============================  ==========  ==========================================
symbol                          site or parameter               plate       meaning
==============================  ==============================  ==========  ==========================================
:math:`z_n`                     ``z``                           ``datum``   latents of a row, ``(num_latent,)``
:math:`x_n`                     ``x``                           ``datum``   the row, observed
:math:`\theta`                  ``decoder_l_weight``, ``_bias``             weights of the decoder; ``decoder_scale``
                                                                            is the noise of normal rows
:math:`\phi`                    ``encoder_l_weight``, ``_bias``             weights of the encoder
:math:`u_k`                     ``pseudo_inputs``                           pseudo-inputs of the VampPrior
==============================  ==============================  ==========  ==========================================

The guide draws ``z`` from the row itself (``infer={"amortised": True}``), so the log densities that a posterior states
are importance weights, and scores are bounds on the marginal likelihood; see :mod:`zoo.inference.marginal`.

Deviations.

- Units are rectified, not tanh, and the optimiser is Adam rather than Adagrad.
- A pixel is on where it is above one half. To draw it once by its grey value instead, as published numbers on
  statically binarised MNIST do, pass the data through :func:`binarised`.
- The standard deviation of normal rows has a lower bound, ``least_scale``; without one the density of a column with
  few distinct values has no maximum.
- Pseudo-inputs begin at training rows, which is one of the two variants of the VampPrior's authors.
- With the standard normal prior the divergence is analytic (estimator B of the paper), with the VampPrior it is
  sampled.

.. code-block:: bibtex

    @inproceedings{kingma2014auto,
      title     = {Auto-Encoding Variational {B}ayes},
      author    = {Kingma, Diederik P. and Welling, Max},
      booktitle = {International Conference on Learning Representations},
      year      = {2014}
    }
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

import zoo
from zoo.errors import DataError, PairError
from zoo.inference.marginal import marginal_log_likelihood
from zoo.inference.program import seeded, stream
from zoo.models._parts.autoencoders import (
    as_observed,
    binarised,
    decoded,
    encoded,
    likelihood_of,
    pseudo_inputs,
    vamp_prior,
)
from zoo.types import Acceptance, Batch, Claim, Dataset, Elbo, Figure, Method, Pair, Recipe

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior

__all__ = [
    "METHOD",
    "Hyper",
    "active_units",
    "binarised",
    "build",
    "codes",
    "figures",
    "marginal_log_likelihood",
    "sites",
    "summary",
]

_ACTIVE = 0.01  # variance of a latent's mean over rows
_SHOWN, _COLUMNS, _POINTS, _CLASSES = 12, 25, 2_000, 11  # images, columns, rows and classes in figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Hyper-parameters.

    Args:
        num_latent: Latents of a row.
        hidden: Units of each hidden layer of the encoder; the decoder has them in the opposite order.
        prior: ``normal``, or ``vamp`` for a mixture over learned pseudo-inputs.
        num_pseudo: Pseudo-inputs of the VampPrior.
        likelihood: ``bernoulli``, ``normal``, or ``auto``: Bernoulli for pixels in ``[0, 1]``.
        least_scale: Smallest standard deviation of normal rows.
    """

    num_latent: int = 20
    hidden: tuple[int, ...] = (300, 300)
    prior: Literal["normal", "vamp"] = "normal"
    num_pseudo: int = 200
    likelihood: Literal["auto", "bernoulli", "normal"] = "auto"
    least_scale: float = 0.05


def build(data: Dataset, hyper: Hyper) -> Pair:
    """Return the pair.

    Args:
        data: Batches with rows ``x``, ``(rows, ...)``, and ``index``; a target is not looked at.
        hyper: Hyper-parameters.

    Returns:
        Model and guide over one batch.

    Raises:
        DataError: If a hyper-parameter is out of range, or pixels lie outside ``[0, 1]``.
    """
    if min(hyper.num_latent, hyper.num_pseudo, *hyper.hidden) < 1 or not hyper.least_scale > 0:
        raise DataError(
            f"num_latent is {hyper.num_latent}, hidden {hyper.hidden}, num_pseudo {hyper.num_pseudo} and least_scale "
            f"{hyper.least_scale:g}; allowed: 1 or more each, and a positive number"
        )
    kind = likelihood_of(data, hyper.likelihood)
    num_data = data.num_data

    def encoder(x: Tensor) -> Any:
        return encoded("encoder", x, hyper.num_latent, hidden=hyper.hidden)

    def model(batch: Batch) -> None:
        x = as_observed(batch, kind)
        if hyper.prior == "vamp":
            prior = vamp_prior(encoder(pseudo_inputs(data, hyper.num_pseudo, kind)))
        else:
            prior = dist.Normal(x.new_zeros(hyper.num_latent), 1.0).to_event(1)
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            z = pyro.sample("z", prior)
            row = decoded("decoder", z, x, kind, hidden=hyper.hidden[::-1], least_scale=hyper.least_scale)
            pyro.sample("x", row, obs=x)

    def guide(batch: Batch) -> None:
        code = encoder(as_observed(batch, kind).flatten(1))
        with pyro.plate("datum", num_data, subsample=batch["index"]):
            pyro.sample("z", code, infer={"amortised": True})

    return Pair(model, guide, Elbo(estimator="trace" if hyper.prior == "vamp" else "mean_field"))


# ---------------------------------------------------------------------------------------- quantities of interest
def codes(posterior: Posterior, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
    """Return what the encoder makes of rows.

    Args:
        posterior: A fit of this method.
        batch: Rows; those of training if ``None``.

    Returns:
        Means and standard deviations of their latents, ``(rows, num_latent)`` each.

    Raises:
        PairError: If the posterior has no guide.
    """
    guide = posterior.pair.guide
    if guide is None:
        raise PairError("this posterior has no encoder")
    prepared = posterior._prepare(batch)
    with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)):
        code = poutine.trace(guide).get_trace(prepared).nodes["z"]["fn"].base_dist
    return code.loc.cpu(), code.scale.cpu()


def active_units(posterior: Posterior, batch: Batch | None = None) -> Tensor:
    r"""Return how much the mean of each latent differs between rows; a latent counts as active above 0.01.

    .. math:: A_j = \mathrm{Var}_n\, \mathrm{E}_{q(z_j \mid x_n)} [z_j]

    Args:
        posterior: A fit of this method.
        batch: Rows; those of training if ``None``.

    Returns:
        Variances, ``(num_latent,)``.

    References:
        Burda, Grosse, Salakhutdinov (2016). https://arxiv.org/abs/1509.00519
    """
    return codes(posterior, batch)[0].var(0)


def _means(posterior: Posterior, batch: Batch, z: Tensor | None, *, seed: int = 0) -> Tensor:
    """Return the means of as many rows as the batch has, at given latents or at draws of the prior."""
    model = posterior.pair.model if z is None else poutine.condition(posterior.pair.model, data={"z": z})
    prepared = posterior._prepare(batch)
    with posterior.runs.bound(), stream(seeded(seed, posterior.runs.device)):
        mean: Tensor = poutine.trace(model).get_trace(prepared).nodes["x"]["fn"].mean
    return mean.cpu()


def summary(posterior: Posterior) -> dict[str, float | str]:
    """Return the quantities of interest of a fit.

    Args:
        posterior: A fit of this method.

    Returns:
        Active latents; with the standard normal prior the divergence of a row's latents from it, in nats; the mean
        noise of normal rows.
    """
    loc, scale = codes(posterior)
    found: dict[str, float | str] = {"active latents": f"{int((loc.var(0) > _ACTIVE).sum())} of {loc.shape[1]}"}
    if posterior.hyper.prior == "normal":
        found["KL of a row, nats"] = float((0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum(1).mean())
    if "decoder_scale" in posterior.params:
        found["noise, mean over columns"] = float(posterior.params["decoder_scale"].mean())
    return found


def _tiled(rows: Tensor, image: Sequence[int], columns: int) -> Any:
    """Put images of one channel side by side."""
    height, width = image[1:]
    tiles = rows.reshape(-1, columns, height, width).permute(0, 2, 1, 3)
    return tiles.reshape(-1, columns * width).detach().float().numpy()


def figures(posterior: Posterior) -> list[Figure]:
    """Return the figures of a fit: rows and their reconstructions, prior draws, the latents in use, a map of two.

    Args:
        posterior: A fit of this method.

    Returns:
        Descriptions, for the report.
    """
    data = posterior.data
    held = data.test if data.test is not None else data.train
    where = "test" if data.test is not None else "training"
    kind = likelihood_of(data, posterior.hyper.likelihood)
    loc, _ = codes(posterior)
    spread = loc.var(0)
    order = spread.argsort(descending=True)
    num = int((spread > _ACTIVE).sum())
    found = []
    image = tuple(int(n) for n in data.extra.get("image_shape", ()))
    if len(image) == 3 and image[0] == 1:
        few = {k: v if k in data.whole else v[:_SHOWN] for k, v in held.items()}
        columns = len(few["x"])
        seen = as_observed(few, kind)
        made = _means(posterior, few, codes(posterior, few)[0].to(posterior.runs.device))
        drawn = torch.cat([_means(posterior, few, None, seed=i) for i in range(3)])

        def mosaic(value: Tensor) -> Callable[[Any], None]:
            def paint(axes: Any) -> None:
                axis = axes[0, 0]
                axis.imshow(_tiled(value, image, columns), cmap="gray_r", vmin=0, vmax=max(1.0, float(value.max())))
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)

            return paint

        found += [
            Figure(
                name="reconstructions",
                paint=mosaic(torch.cat([seen.cpu(), made])),
                alt=f"{columns} images of the {where} rows, and below each the decoder's mean at its encoded latents.",
                caption=f"Above: {where} rows as the model observes them. Below: what the decoder makes of the mean of "
                "their latents. What differs is what the latents do not hold.",
                wide=True,
            ),
            Figure(
                name="prior_draws",
                paint=mosaic(drawn),
                alt=f"{3 * columns} images decoded from draws of the prior.",
                caption="Means of the decoder at draws from the prior. Shapes that are no rows of the data lie where "
                "the prior has mass and the encoder puts no row.",
                wide=True,
            ),
        ]
        if "pseudo_inputs" in posterior.params:
            inputs = posterior.params["pseudo_inputs"].detach().cpu()[: 2 * columns]
            inputs = inputs[: len(inputs) // columns * columns]
            if len(inputs):
                found.append(
                    Figure(
                        name="pseudo_inputs",
                        paint=mosaic(inputs),
                        alt=f"{len(inputs)} learned pseudo-inputs of the VampPrior.",
                        caption="Pseudo-inputs of the VampPrior: the prior is the average of what the encoder makes of "
                        "these.",
                        wide=True,
                    )
                )
    else:
        made = _means(posterior, held, codes(posterior, held)[0].to(posterior.runs.device)).flatten(1)
        seen = as_observed(held, kind).flatten(1).cpu()
        explained = 1 - (seen - made).var(0) / seen.var(0).clamp_min(1e-12)
        names = [str(n) for n in data.coords.get("feature", range(seen.shape[1]))]
        best = explained.argsort(descending=True)[:_COLUMNS]

        def columns_kept(axes: Any) -> None:
            axis = axes[0, 0]
            axis.barh([names[i] for i in best.tolist()][::-1], explained[best].tolist()[::-1])
            axis.set(
                xlabel=f"share of variance reconstructed, {where} rows", xlim=(min(0.0, float(explained.min())), 1)
            )

        found.append(
            Figure(
                name="explained",
                paint=columns_kept,
                alt=f"Share of the variance of each column that the latents reconstruct on the {where} rows.",
                caption="What the latents hold of each column: the share of its variance that the decoder gives back "
                "from the mean of a row's latents. The rest is noise to the model.",
                height=max(2.4, 0.24 * len(best) + 0.9),
            )
        )

    def use(axes: Any) -> None:
        axis = axes[0, 0]
        axis.bar(range(1, len(order) + 1), spread[order].clamp_min(1e-6).tolist())
        axis.axhline(_ACTIVE, linestyle="--", linewidth=1)
        axis.set(xlabel="latent, most active first", ylabel="variance of its mean", yscale="log")

    found.append(
        Figure(
            name="active_latents",
            paint=use,
            alt=f"Variance over rows of the mean of every latent; {num} of {len(order)} lie above 0.01.",
            caption=f"{num} of {len(order)} latents are in use: the mean of the others is the same for every row, and "
            "their posterior is the prior.",
        )
    )
    if len(order) > 1:
        first, second = (int(i) for i in order[:2])
        rows = slice(None, None, max(1, len(loc) // _POINTS))
        classes = data.train.get("y") if "num_classes" in data.extra else None
        labels = data.coords.get("class", ())

        def latents(axes: Any) -> None:
            import matplotlib

            axis = axes[0, 0]
            x, y = loc[rows, first].numpy(), loc[rows, second].numpy()
            if classes is None or int(classes.max()) >= _CLASSES:
                axis.scatter(x, y, s=4, alpha=0.6)
            else:
                codes_of = classes[rows].cpu()
                colours = matplotlib.colormaps["tab10"]
                for code in codes_of.unique().tolist():
                    own = (codes_of == code).numpy()
                    label = str(labels[code]) if code < len(labels) else str(code)
                    axis.scatter(x[own], y[own], s=4, alpha=0.7, label=label, color=colours(code))
                axis.legend(frameon=False, fontsize=7, markerscale=2, ncols=2)
            axis.set(xlabel=f"z[{first}]", ylabel=f"z[{second}]", aspect="equal")

        found.append(
            Figure(
                name="latent_map",
                paint=latents,
                alt="Training rows at the means of their two most active latents"
                + (", coloured by class." if classes is not None else "."),
                caption="Training rows at the means of their two most active latents"
                + (", coloured by class, which the method was not told." if classes is not None else ".")
                + " Axes have no meaning of their own: a rotation of all latents is the same model.",
                height=3.6,
            )
        )
    return found


# -------------------------------------------------------------------------------------------------------- claims
def _elbo(posterior: Posterior, batch: Batch, repeats: int) -> float:
    runs = [marginal_log_likelihood(posterior, batch, num_samples=1, seed=i).mean() for i in range(repeats)]
    return float(torch.stack(runs).mean())


def _measure_latents(seed: int, fast: bool) -> dict[str, float]:
    """Fit binarised MNIST with 20 and with 100 latents and compare the bounds on test rows.

    Returns:
        ELBO of both on the test rows in nats per row, and how many of 100 latents are active.
    """
    data = binarised(zoo.datasets.load("mnist"))
    test = data.split("test")
    found: dict[str, float] = {}
    for num in (20, 100):
        posterior = zoo.fit(METHOD, data, hyper=Hyper(num_latent=num), seed=seed, compile=not fast, **_options(fast))
        found[f"ELBO, {num} latents"] = _elbo(posterior, test, 1 if fast else 10)
        found[f"active of {num}"] = float((active_units(posterior) > _ACTIVE).sum())
    return found


def _measure_prior(seed: int, fast: bool) -> dict[str, float]:
    """Fit binarised MNIST with both priors and compare marginal likelihoods of test rows.

    Returns:
        Importance-weighted log likelihood from 1,000 draws and ELBO, of both priors, in nats per test row.
    """
    data = binarised(zoo.datasets.load("mnist"))
    test = data.split("test")
    if fast:
        test = {k: v[:50] for k, v in test.items()}
    found: dict[str, float] = {}
    for prior in ("normal", "vamp"):
        posterior = zoo.fit(METHOD, data, hyper={"prior": prior}, seed=seed, compile=not fast, **_options(fast))
        likelihood = marginal_log_likelihood(posterior, test, num_samples=20 if fast else 1_000)
        found[f"log likelihood, {prior}"] = float(likelihood.mean())
        found[f"ELBO, {prior}"] = _elbo(posterior, test, 1 if fast else 10)
    return found


def _options(fast: bool) -> dict[str, Any]:
    return {"steps": 40} if fast else {}


CLAIMS = (
    Claim(
        statement="Superfluous latents do no harm: with 100 of them the bound on test rows is within one nat of that "
        "with 20, or above it.",
        published="the bound on test rows is as high with 200 latents as with 20 (curves, no number)",
        source="Kingma, Welling (2014), fig. 2",
        measure=_measure_latents,
        acceptance=(Acceptance(key="ELBO, 100 latents", above="ELBO, 20 latents", slack=1.0, errors=1.0),),
        budget=240,
    ),
    Claim(
        statement="The importance-weighted log likelihood of test rows lies above the ELBO, and is higher with the "
        "VampPrior than with the standard normal prior.",
        published="static MNIST, 50,000 training rows: -88.56 with the standard normal prior, -85.57 with the "
        "VampPrior",
        source="Burda et al. (2016), theorem 1; Tomczak, Welling (2018), table 1",
        measure=_measure_prior,
        acceptance=(
            Acceptance(key="log likelihood, normal", above="ELBO, normal"),
            Acceptance(key="log likelihood, vamp", above="log likelihood, normal"),
        ),
        budget=300,
    ),
)


def sites(hyper: Hyper) -> dict[str, tuple[str, ...]]:
    """Return the latent and its plate.

    Args:
        hyper: Hyper-parameters.

    Returns:
        Site -> plates.
    """
    return {"z": ("datum",)}


METHOD = Method(
    name="vae",
    title="Variational autoencoder, with a normal prior or a VampPrior",
    paper="kingma2014auto",
    task="density",
    other_tasks=("classification", "regression"),
    hyper=Hyper,
    sites=sites,
    smoke=Hyper(num_latent=2, hidden=(16,)),
    default_data="mnist",
    build=build,
    engines=("svi",),
    claims=CLAIMS,
    recipe=Recipe(steps=4_000, learning_rate=1e-3, batch_size=128, schedule="cosine"),
    summary=summary,
    use_when="You want a density of images or of table rows, a few numbers that stand for a row, new rows like the "
    "given ones, or to find rows that are unlike them. A target is not needed and not looked at.",
    avoid_when="A target is to be predicted (the networks do), entries are missing, or a linear map is enough: "
    "principal components are exact. Do not read single latents: they are determined up to a rotation at best.",
    needs="Some thousand rows of images with pixels in [0, 1], or of standardised columns without missing entries.",
    figures=figures,
)
