"""Checks that fit again: on data simulated from the prior, by NUTS, and without a part of the rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from zoo.diagnostics.adapter import _trace, sites
from zoo.diagnostics.check import Check, NotApplicable, Verdict
from zoo.diagnostics.inference import _array, _judge, _needs_guide, axes, khat_threshold
from zoo.diagnostics.labels import names
from zoo.diagnostics.predictive import Loo, _per_row, leave_one_out, target_unit
from zoo.diagnostics.uniformity import ecdf_band, ecdf_p_value
from zoo.errors import ZooError
from zoo.inference.laplace import is_laplace, with_laplace
from zoo.inference.posterior import Posterior
from zoo.inference.program import pyro_world, seeded, stream
from zoo.inference.progress import Progress, ProgressEvent
from zoo.inference.sites import kind
from zoo.types import Pair, Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.types import Batch

__all__ = ["Ranks", "Refits", "interval_coverage", "k_fold", "simulation_calibration", "vi_against_nuts"]

DRAWS = 79
"""Draws per refit whose ranks are taken: 80 ranks, of which 40, 64 and 76 are central blocks of 50, 80 and 95%."""

_MOST_QUANTITIES = 20
_MOST_NUMBERS = 20_000_000
_MOST_DIMENSIONS = 200  # latent elements up to which NUTS is taken for feasible without being asked
_LEVELS = ((0.5, 20, 59), (0.8, 8, 71), (0.95, 2, 77))  # level, first and last rank inside


# -------------------------------------------------------------------------------------------------------- fitting
class _Refitter:
    """Fit a pair again and again as it was fitted, on other data of the same shapes, with one compiled graph."""

    def __init__(self, posterior: Posterior, pair: Pair | None = None) -> None:
        self.posterior, self.pair = posterior, with_laplace(pair or posterior.pair)
        self.recipe: Recipe | None = None
        self.trainer: Any = None
        if posterior.engine == "svi" and posterior._layout is not None and posterior._layout.names:
            recipe = posterior.info.get("recipe")
            if recipe is None:
                raise NotApplicable(
                    "how the pair was trained is not known; pass recipe= to Posterior.from_store, or fit by zoo.fit"
                )
            own = next((key for key in ("optimizer", "callback") if posterior.info.get(key)), "")
            if own:
                raise NotApplicable(f"the fit had its own {own}, which is not kept, so it cannot be repeated")
            self.recipe = Recipe(**recipe)

    def fit(self, batch: Batch, *, seed: int, chains: int = 2, draws: int = 400) -> Posterior:
        """Return the posterior of other data; a guide without parameters needs no fit."""
        old = self.posterior
        data = dataclasses.replace(old.data, train=dict(batch), validation=None, test=None)
        common = {"pair": self.pair, "data": data, "engine": old.engine, "name": old.name}
        if old.engine == "nuts":
            from zoo.inference import nuts

            found = nuts.sample(
                self.pair.model, batch, chains=chains, draws=draws, warmup=int(old.info.get("tune", 500)), seed=seed,
                dtype=old.info.get("dtype", "float64"), target_accept=old.info.get("target_accept", 0.8),
            )  # fmt: skip
            return Posterior(
                **common,  # type: ignore[arg-type]
                chains=found.chains,
                sample_stats=found.stats,
                info=old.info,
            )
        if self.recipe is None:
            return Posterior(**common, layout=old._layout, info=old.info)  # type: ignore[arg-type]
        from zoo.inference.runner import finished
        from zoo.inference.svi import Trainer

        if self.trainer is None:
            self.trainer = Trainer(
                self.pair,
                batch,
                whole=old.data.whole,
                recipe=self.recipe,
                seed=seed,
                dtype=old.runs.dtype,
                device=old.runs.device,
                compile=bool(old.info.get("compiled", True)),
            )
        else:
            self.trainer.restart(batch, seed=seed, pair=self._built(seed))
        trainer, left = self.trainer, int(old.info.get("steps", self.recipe.steps))
        while left > 0:
            left -= len(trainer.run(min(left, 1_000)))
        if self.pair.finish is not None and "kept" in batch and not is_laplace(self.pair):  # other rows are left out
            kept = {k: v if k in old.data.whole else v[batch["kept"]] for k, v in batch.items()}
            data = dataclasses.replace(data, train=kept)
        buffers = [b.clone() for b in trainer.buffers]
        layout, values = finished(
            self.pair, data, trainer.layout, trainer.values, buffers=buffers, batch_size=self.recipe.batch_size
        )
        return Posterior(
            **common,  # type: ignore[arg-type]
            layout=layout,
            values=values,
            buffers=buffers,
            info=old.info,
        )

    def _built(self, seed: int) -> Pair | None:
        """Build the method's pair anew, whose networks have other initial weights; ``None`` for a pair of one's own."""
        old = self.posterior
        if old.method is None:
            return None
        with pyro_world(dtype=old.runs.dtype, device=old.runs.device), stream(seeded(seed, old.runs.device)):
            return old.method.build(old.data, old.hyper)


def _entries(posterior: Posterior, batch: Batch, trace: Any, observed: list[str]) -> dict[str, str]:
    """Return for every observed site the entry of the batch that it observes."""
    found = {}
    for name in observed:
        value = trace.nodes[name]["value"]
        key = next((k for k, v in batch.items() if v is value and k not in posterior.data.whole | {"index"}), None)
        if key is None:
            raise NotApplicable(
                f"site '{name}' observes something computed from the batch, so simulated data cannot take its place; "
                "let it observe an entry of the batch"
            )
        found[name] = key
    return found


# ----------------------------------------------------------------------------------------- simulated from the prior
@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Where true values rank among draws of refits to data that were simulated from them.

    Args:
        ranks: Quantity -> its rank among ``largest`` draws in every refit, ``(refits,)``.
        largest: Number of draws ranked against.
        least_ess: Smallest effective sample size of any quantity in any refit (chains; else infinity).
    """

    ranks: Mapping[str, NDArray[np.int64]]
    largest: int
    least_ess: float = math.inf

    @property
    def refits(self) -> int:
        """How many refits."""
        return len(next(iter(self.ranks.values())))


class Refits:
    """Refits of one posterior, made when first asked for and shared by the checks that read them.

    Args:
        posterior: A fit.
        num: Refits to simulated data.
        seed: Of the simulation and of every refit.
        progress: Told of every refit.
    """

    def __init__(
        self, posterior: Posterior, *, num: int = 100, seed: int = 0, progress: Progress | None = None
    ) -> None:
        self.posterior, self.num, self.seed = posterior, num, seed
        self.tell: Progress = progress or (lambda _: None)

    @cached_property
    def ranks(self) -> Ranks:
        """Ranks of simulated values among draws of refits.

        Raises:
            NotApplicable: If data cannot be simulated from the model, or not be fitted again.

        References:
            Talts et al. (2018), arXiv:1804.06788, algorithm 1; Modrák et al. (2023), Bayesian Analysis, for the log
            likelihood as a further quantity, without which a fit that ignores the data would pass.
        """
        posterior = self.posterior
        batch = posterior._prepare(None)
        first = {k: v[0] for k, v in posterior.draws(1).items()}
        known = sites(posterior, batch, first)
        kinds = {kind: [s.name for s in known.values() if s.kind == kind] for kind in ("observed", "factor", "latent")}
        if not kinds["observed"]:
            raise NotApplicable("the model observes no data, so none can be simulated")
        if kinds["factor"]:
            raise NotApplicable(f"factor '{kinds['factor'][0]}' changes the density, but not what the model simulates")
        latents = [n for n in kinds["latent"] if n in first]
        if self.num * sum(known[n].size for n in [*latents, *kinds["observed"]]) > _MOST_NUMBERS:
            raise NotApplicable("one simulated data set with its latents is too large to be fitted many times")
        with posterior.runs.bound():
            trace = _trace(posterior.pair.model, batch, first)
        if trace.param_nodes:
            raise NotApplicable(
                f"the model itself has trained parameters ('{trace.param_nodes[0]}'), so there is no fixed prior to "
                "simulate from"
            )
        entries = _entries(posterior, batch, trace, kinds["observed"])
        model = posterior.pair.model

        def simulate(_: dict[str, Tensor]) -> dict[str, Tensor]:
            nodes = _trace(model, batch, {}, observed=False).nodes
            return {n: nodes[n]["value"] for n in [*latents, *entries]}

        try:
            truth = posterior.runs.map(simulate, self.num, seed=self.seed)
        except NotImplementedError as error:
            raise NotApplicable(f"the prior cannot be sampled ({error})") from error
        picked = _pick(self.posterior, {n: first[n] for n in latents})
        refitter = _Refitter(posterior)
        rng = np.random.default_rng(self.seed)
        ranks: dict[str, list[int]] = {}
        least = math.inf
        for i in range(self.num):
            self.tell(ProgressEvent("refitting", i, self.num, "simulated data"))
            values = {key: truth[name][i].to(batch[key].dtype) for name, key in entries.items()}
            made = {**batch, **values}
            fit = refitter.fit(made, seed=self.seed + 1 + i)
            drawn, ess = _drawn(fit, made, latents, self.seed + 1 + i)
            least = min(least, ess)
            own = {n: truth[n][i] for n in latents}
            drawn["log likelihood"] = _likelihood(fit, made, drawn)
            own["log likelihood"] = _likelihood(fit, made, {n: v[None] for n, v in own.items()})[0]
            for label, (name, at) in [*picked.items(), ("log likelihood", ("log likelihood", ()))]:
                mine, theirs = float(_array(own[name])[at]), np.moveaxis(_array(drawn[name]), 0, -1)[at]
                # Ties (discrete quantities) are broken at random, so that ranks stay uniform.
                below, equal = int((theirs < mine).sum()), int((theirs == mine).sum())
                ranks.setdefault(label, []).append(below + int(rng.integers(0, equal + 1)))
        self.tell(ProgressEvent("refitting", self.num, self.num, "simulated data"))
        return Ranks(ranks={k: np.array(v) for k, v in ranks.items()}, largest=DRAWS, least_ess=least)


def _pick(posterior: Posterior, latents: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return label -> (site, index) of at most ``_MOST_QUANTITIES`` elements, evenly spread over all."""
    dims = axes(posterior)
    picked: dict[str, tuple[str, tuple[int, ...]]] = {}
    count = 0
    total = sum(v.numel() for v in latents.values())
    step = max(1, math.ceil(total / (_MOST_QUANTITIES - 1)))
    for name, value in latents.items():
        labels = names(posterior, name, dims.get(name), value.shape)
        for label, index in zip(labels, np.ndindex(tuple(value.shape)), strict=True):
            if count % step == 0:
                picked[label] = (name, index)
            count += 1
    return picked


def _drawn(fit: Posterior, batch: Batch, latents: list[str], seed: int) -> tuple[dict[str, Tensor], float]:
    """Return ``DRAWS`` draws of a refit, and the smallest effective sample size behind them."""
    if fit.chains is None:
        return {n: v for n, v in fit.draws(DRAWS, batch=batch, seed=seed).items() if n in latents}, math.inf
    import arviz as az

    least = math.inf
    for name in latents:
        flat = _array(fit.chains[name]).reshape(*fit.chains[name].shape[:2], -1)
        least = min([least, *(float(az.ess(flat[:, :, j])) for j in range(min(flat.shape[-1], _MOST_QUANTITIES)))])
    drawn = fit.draws(DRAWS)
    return {n: drawn[n] for n in latents}, least


def _likelihood(fit: Posterior, batch: Batch, draws: Mapping[str, Tensor]) -> Tensor:
    """Return the log likelihood of all data at every draw; enumerated latents are summed out."""
    from zoo.diagnostics.adapter import evaluate

    found = evaluate(fit, batch, {n: v for n, v in draws.items() if n != "log likelihood"}, predictive=False)
    return torch.stack([v.reshape(len(v), -1).sum(-1) for v in found.log_likelihood.values()]).sum(0)


def simulation_calibration(
    posterior: Posterior, *, refits: Refits | None = None, seed: int = 0, progress: Progress | None = None
) -> Check:
    r"""Check inference on data simulated from the prior: true values must rank uniformly among the draws of refits.

    For :math:`\theta^* \sim p(\theta)` and :math:`y^* \sim p(y \mid \theta^*)` the rank of :math:`\theta^*` among draws
    from the exact posterior of :math:`y^*` is uniform. Every refit takes the fit's own recipe. Ranks are tested by
    their empirical distribution function, exactly, with Bonferroni's correction over the quantities: latent elements
    (at most 19) and the log likelihood of the data.

    Args:
        posterior: A fit by SVI (then this is VSBC) or NUTS (SBC).
        refits: Refits to share with other checks; made if ``None``.
        seed: Of the simulation.
        progress: Told of every refit.

    Returns:
        The check.

    Raises:
        NotApplicable: If data cannot be simulated from the model, or not be fitted again.

    References:
        Talts et al. (2018), arXiv:1804.06788; Yao, Vehtari, Simpson, Gelman (2018), arXiv:1802.02538, algorithm 2;
        Säilynoja, Bürkner, Vehtari (2022), Statistics and Computing 32, for the band.
    """
    _may_refit(posterior)
    found = (refits or Refits(posterior, seed=seed, progress=progress)).ranks
    raw = {k: ecdf_p_value(r, found.largest) for k, r in found.ranks.items()}
    p_values = {k: min(1.0, p * len(raw)) for k, p in raw.items()}
    worst = min(raw, key=lambda k: raw[k])
    least = p_values[worst]
    verdict: Verdict = "fail" if least < 0.01 else "warn" if least < 0.05 else "pass"
    wrong = [k for k, p in p_values.items() if p < 0.05]
    scaled = (found.ranks[worst] + 0.5) / (found.largest + 1)
    shape = _shape(scaled) if worst != "log likelihood" else "its true values rank too low or too high"
    who = "guide" if posterior.engine == "svi" else "sampler"
    words = (
        f"On data simulated from the prior, the {who} finds the true values as often as its intervals say."
        if verdict == "pass"
        else f"On data simulated from the prior, the {who}'s posterior is wrong for {_few(wrong)} ({worst}: {shape}): "
        "do "
        "not rely on its intervals; use a richer guide, more steps, or NUTS."
        if who == "guide"
        else f"On data simulated from the prior, the sampler's posterior is wrong for {_few(wrong)} ({worst}: "
        f"{shape}): "
        "the model's density is not what it simulates, or chains are too short."
    )
    if found.least_ess < found.largest:
        words += f" Chains were worth {found.least_ess:.0f} independent draws at least; {found.largest} are ranked."
    low, high = ecdf_band(found.refits, found.largest)
    return Check(
        name="simulation_calibration",
        title="Does the same fit recover simulated truths?",
        about="parameters",
        verdict=verdict,
        value={"smallest p-value": least, "of": worst, "quantities": len(raw), "refits": found.refits},
        p_value=least,
        threshold="p-value of uniform ranks, times the number of quantities: warn below 0.05, fail below 0.01",
        source="Talts et al. (2018), arXiv:1804.06788; Yao et al. (2018), arXiv:1802.02538; test: Säilynoja, Bürkner, "
        "Vehtari (2022), Statistics and Computing 32",
        explanation=words,
        figure="sbc",
        data={
            "ranks": np.stack(list(found.ranks.values())),
            "labels": np.array(list(found.ranks)),
            "largest": np.array(found.largest),
            "low": low,
            "high": high,
            "worst": np.array(list(found.ranks).index(worst)),
        },
    )


def _may_refit(posterior: Posterior) -> None:
    if posterior.engine == "svi":
        _needs_guide(posterior)


def _few(names: list[str]) -> str:
    return ", ".join(f"'{n}'" for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(scaled: NDArray[np.float64]) -> str:
    """Say what the ranks of one quantity, scaled to 0-1, mean."""
    count = len(scaled)
    shift = float((scaled.mean() - 0.5) * math.sqrt(12 * count))
    spread = float((((scaled - 0.5) ** 2).mean() - 1 / 12) * math.sqrt(180 * count))  # var of (u - 1/2)^2 is 1/180
    if abs(shift) > abs(spread):
        return "estimates are too low" if shift > 0 else "estimates are too high"
    return "intervals are too narrow" if spread > 0 else "intervals are too wide"


def interval_coverage(
    posterior: Posterior, *, refits: Refits | None = None, seed: int = 0, progress: Progress | None = None
) -> Check:
    """Check that central intervals of the parameters hold simulated true values as often as they say.

    Args:
        posterior: A fit.
        refits: Refits to share with other checks; made if ``None``.
        seed: Of the simulation.
        progress: Told of every refit.

    Returns:
        The check: intervals of 50, 80 and 95% between ranks of the draws, whose coverage is exact for any number of
        draws, against the binomial distribution; Bonferroni's correction over levels and quantities.

    Raises:
        NotApplicable: If data cannot be simulated from the model, or not be fitted again.

    References:
        Cook, Gelman, Rubin (2006), Journal of Computational and Graphical Statistics 15; Talts et al. (2018),
        arXiv:1804.06788.
    """
    from scipy.stats import binomtest

    _may_refit(posterior)
    found = (refits or Refits(posterior, seed=seed, progress=progress)).ranks
    ranks = {k: r for k, r in found.ranks.items() if k != "log likelihood"}
    raw, share = {}, {}
    for name, own in ranks.items():
        for level, first, last in _LEVELS:
            inside = int(((own >= first) & (own <= last)).sum())
            raw[name, level] = float(binomtest(inside, found.refits, level).pvalue)
            share[name, level] = inside / found.refits
    tests = len(raw)
    name, level = min(raw, key=lambda k: raw[k])
    least = min(1.0, tests * raw[name, level])
    verdict: Verdict = "fail" if least < 0.01 else "warn" if least < 0.05 else "pass"
    covered = share[name, level]
    grid = np.arange(1, 40) * 2
    edges = [((DRAWS + 1 - w) // 2, (DRAWS + 1 + w) // 2 - 1) for w in grid]
    mean = np.mean([[((r >= a) & (r <= b)).mean() for a, b in edges] for r in ranks.values()], axis=0)
    own = np.array([((ranks[name] >= a) & (ranks[name] <= b)).mean() for a, b in edges])
    return Check(
        name="interval_coverage",
        title="Do intervals of the parameters hold what they say?",
        about="parameters",
        verdict=verdict,
        value={
            "smallest p-value": least,
            "of": f"{name}, {100 * level:.0f}% interval",
            "held": covered,
            "refits": found.refits,
        },
        p_value=least,
        threshold="binomial p-value of the share of true values inside, times the number of quantities and levels: "
        "warn below 0.05, fail below 0.01",
        source="Cook, Gelman, Rubin (2006), JCGS 15; Talts et al. (2018), arXiv:1804.06788; binomial, Bonferroni",
        explanation="Intervals of the parameters hold simulated true values as often as they say."
        if verdict == "pass"
        else f"The {100 * level:.0f}% interval of '{name}' holds the true value in {100 * covered:.0f}% of the "
        "simulated "
        f"data sets: it is too {'narrow' if covered < level else 'wide'}, so quote no interval from this fit.",
        figure="interval_coverage",
        data={"predicted": grid / (DRAWS + 1), "observed": own, "mean": mean, "counts": np.full(39, found.refits)},
    )


# -------------------------------------------------------------------------------------------------------- by NUTS
def vi_against_nuts(
    posterior: Posterior,
    *,
    seed: int = 0,
    draws: int = 500,
    most: int = _MOST_DIMENSIONS,
    progress: Progress | None = None,
) -> Check:
    r"""Compare the guide with NUTS, parameter by parameter: ratio of standard deviations and Wasserstein distance.

    Both are judged beyond their Monte Carlo error (Bonferroni, 99%): the log ratio of standard deviations has standard
    error :math:`\sqrt{(1/n_q + 1/n_p)(\kappa - 1)/4}` with the kurtosis :math:`\kappa`; the distance of two samples
    from one distribution is estimated by splitting the chains.

    Args:
        posterior: A fit by SVI.
        seed: Of the chains and draws.
        draws: Draws of each of the four chains.
        most: Latent elements up to which NUTS is tried.
        progress: Told of the sampling.

    Returns:
        The check.

    Raises:
        NotApplicable: If NUTS is not feasible, or its chains did not converge.

    References:
        Villani (2009), Optimal Transport, for the distance; Yao et al. (2018), arXiv:1802.02538, for NUTS as reference;
        limits: ours.
    """
    import arviz as az
    from scipy.stats import kurtosis, norm, wasserstein_distance

    from zoo.inference.runner import fit

    _needs_guide(posterior)
    first = posterior.draws(1)
    size = sum(v[0].numel() for v in first.values())
    if size > most:
        raise NotApplicable(f"{size:,} latent elements are more than {most}, so NUTS would take too long")
    with posterior.runs.bound():
        trace = poutine.trace(posterior.pair.model).get_trace(posterior._prepare(None))
    if trace.param_nodes:
        raise NotApplicable(f"the model itself has trained parameters ('{trace.param_nodes[0]}')")
    try:
        reference = fit(
            Pair(posterior.pair.model), posterior.data.train, engine="nuts", chains=4, draws=draws, tune=draws,
            seed=seed, progress=progress,
        )  # fmt: skip
    except ZooError as error:
        raise NotApplicable(f"NUTS cannot sample this model: {error}") from error
    assert reference.chains is not None
    assert reference.sample_stats is not None
    from zoo.diagnostics.inference import _elements, _split_free

    chains = _elements(posterior, {k: _array(v) for k, v in reference.chains.items()})
    worst_r = max(_split_free(v) for v in chains.values())
    diverged = float(reference.sample_stats["diverging"].double().mean())
    if worst_r > 1.05 or diverged > 0.0025:
        raise NotApplicable(
            f"the chains of NUTS are no reference: R-hat {worst_r:.2f}, {100 * diverged:.1f}% divergences"
        )
    count = 4 * draws
    drawn = posterior.draws(count, seed=seed)
    own = _elements(posterior, {k: _array(v)[None] for k, v in drawn.items() if k in reference.chains})
    quantile = float(norm.ppf(1 - 0.005 / len(own)))
    ratios, distances, sure_ratio, sure_distance = {}, {}, {}, {}
    for name, values in own.items():
        mine, theirs = values.ravel(), chains[name]
        scale = float(theirs.std())
        ess = float(min(az.ess(theirs), az.ess(theirs, method="sd")))
        log_ratio = math.log(max(float(mine.std()), 1e-300) / scale)
        heavy = max(float(kurtosis(theirs.ravel(), fisher=False)), 3.0)
        noise = math.sqrt((1 / count + 1 / ess) * (heavy - 1) / 4)
        distance = float(wasserstein_distance(mine, theirs.ravel())) / scale
        halves = float(wasserstein_distance(theirs[:2].ravel(), theirs[2:].ravel())) / scale
        ratios[name], distances[name] = math.exp(log_ratio), distance
        sure_ratio[name] = math.exp(max(abs(log_ratio) - quantile * noise, 0.0))
        sure_distance[name] = max(distance - max(halves, 1.0 / math.sqrt(ess)), 0.0)
    at_ratio = max(sure_ratio, key=lambda k: (sure_ratio[k], abs(math.log(ratios[k]))))
    at_distance = max(sure_distance, key=lambda k: (sure_distance[k], distances[k]))
    verdicts = (_judge(sure_ratio[at_ratio], 1.25, 1.5), _judge(sure_distance[at_distance], 0.2, 0.5))
    verdict: Verdict = "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "pass"
    narrow = ratios[at_ratio] < 1
    if verdict == "pass":
        words = "The guide agrees with NUTS in every parameter."
    elif verdicts[0] != "pass":
        words = (
            f"The guide's standard deviation of '{at_ratio}' is {ratios[at_ratio]:.2f} times that of NUTS: its "
            "intervals "
            f"are too {'narrow' if narrow else 'wide'}, so report those of NUTS, or use a guide with correlations."
        )
    else:
        words = (
            f"The guide's distribution of '{at_distance}' lies {distances[at_distance]:.2f} posterior standard "
            "deviations "
            "from that of NUTS, so report that of NUTS."
        )
    return Check(
        name="vi_against_nuts",
        title="Does NUTS find the same posterior?",
        about="parameters",
        verdict=verdict,
        value={
            "ratio of standard deviations": ratios[at_ratio],
            "of": at_ratio,
            "largest Wasserstein distance in sd": distances[at_distance],
            "at": at_distance,
            "parameters": len(ratios),
        },
        threshold="beyond Monte Carlo error: ratio of standard deviations, or its inverse, warn above 1.25, fail above "
        "1.5; 1-Wasserstein distance, warn above 0.2, fail above 0.5 posterior standard deviations",
        source="Villani (2009), Optimal Transport; NUTS as reference: Yao et al. (2018), arXiv:1802.02538; limits: "
        "ours",
        explanation=words,
        figure="spreads",
        data={
            "labels": np.array(list(ratios)),
            "ratios": np.array(list(ratios.values())),
            "distances": np.array(list(distances.values())),
        },
    )


# --------------------------------------------------------------------------------------------------------- k-fold
class _Kept(Messenger):  # type: ignore[misc]
    """Leave rows out of the likelihood: observed sites in a plate of the rows are masked where ``kept`` is false."""

    def __init__(self, kept: Tensor, plates: frozenset[str]) -> None:
        super().__init__()
        self.kept, self.plates = kept, plates

    def _pyro_sample(self, msg: Any) -> None:
        if kind(msg) != "observed":
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.plates:
                mask = self.kept.reshape(-1, *[1] * (-frame.dim - 1))
                msg["mask"] = mask if msg["mask"] is None else mask & msg["mask"]


def _without(model: Callable[[Batch], Any], plates: frozenset[str]) -> Callable[[Batch], Any]:
    def kept(batch: Batch) -> Any:
        with _Kept(batch["kept"], plates):
            return model(batch)

    return kept


def cross_validate(
    posterior: Posterior, *, folds: int = 10, num_draws: int = 1_000, seed: int = 0, progress: Progress | None = None
) -> NDArray[np.float64]:
    """Return the log density of every row under a fit to the rows of the other folds.

    Rows are left out of the likelihood by a mask, which is data of the batch: one graph serves all folds, and plates
    count as many rows as before, of which those left out say nothing.

    Args:
        posterior: A fit.
        folds: Number of folds.
        num_draws: Draws of every refit.
        seed: Of folds and refits.
        progress: Told of every refit.

    Returns:
        ``(rows,)``, in nats.

    Raises:
        NotApplicable: If the data have no rows to leave out, or rows have latents of their own.

    References:
        Vehtari, Gelman, Gabry (2017), Statistics and Computing 27, sec. 2.3.
    """
    from scipy.special import logsumexp

    batch = posterior._prepare(None)
    first = {k: v[0] for k, v in posterior.draws(1).items()}
    known = sites(posterior, batch, first)
    plates = frozenset(s.dims[s.row_axis] for s in known.values() if s.kind == "observed" and s.row_axis is not None)
    if not plates or "index" not in batch:
        raise NotApplicable("the data have no rows that could be left out")
    if any(s.row_axis is not None and s.kind in ("latent", "enumerated") for s in known.values()):
        raise NotApplicable("every row has latents of its own, which the other rows say nothing about")
    rows = len(batch["index"])
    folds = min(folds, rows)
    fold = np.random.default_rng(seed).permutation(np.arange(rows) % folds)
    with posterior.runs.bound():
        trace = _trace(posterior.pair.model, batch, first)
    seen = [s.name for s in known.values() if s.kind == "observed"]
    refitter = _Refitter(posterior, posterior.pair._replace(model=_without(posterior.pair.model, plates)))
    result = np.empty(rows)
    for i in range(folds):
        if progress is not None:
            progress(ProgressEvent("refitting", i, folds, "without a fold"))
        kept = torch.as_tensor(fold != i, device=posterior.runs.device)
        fit = refitter.fit({**batch, "kept": kept}, seed=seed + 1 + i, chains=4)
        plain = Posterior(
            pair=posterior.pair,
            data=posterior.data,
            engine=posterior.engine,
            name=posterior.name,
            layout=fit._layout,
            values=fit._values,
            buffers=fit._buffers,
            chains=fit.chains,
            info=fit.info,
        )
        left = fold == i
        if i == 0 and fit.chains is None:
            _refuse_peeking(fit, set(_entries(posterior, batch, trace, seen).values()), left)
        density = _per_row(plain, plain.log_likelihood(draws=fit.draws(num_draws, seed=seed)))
        result[left] = logsumexp(density[:, left], axis=0) - math.log(len(density))
    return result


def _refuse_peeking(fit: Posterior, targets: set[str], left: NDArray[np.bool_]) -> None:
    """Refuse a guide that reads the targets of rows that were left out."""
    train = dict(fit.data.train)
    at = torch.as_tensor(np.flatnonzero(left))
    for key in targets:
        train[key] = train[key].clone()
        train[key][at] = train[key][at].flip(0) + 1
    one, other = fit.draws(1), fit.draws(1, batch=train)
    if any(not torch.equal(one[name], other[name]) for name in one):
        raise NotApplicable(
            "the guide reads the targets of every row, also of rows that are left out of the likelihood"
        )


def k_fold(
    posterior: Posterior,
    *,
    folds: int = 10,
    num_draws: int = 1_000,
    seed: int = 0,
    progress: Progress | None = None,
    always: bool = False,
) -> Check:
    """Estimate leave-one-out densities by K-fold cross-validation where importance sampling fails, and compare.

    Args:
        posterior: A fit.
        folds: Number of folds.
        num_draws: Draws of every refit.
        seed: Of folds and refits.
        progress: Told of every refit.
        always: Refit also where importance sampling is reliable for every row.

    Returns:
        The check; its value holds the estimate that is to be used.

    Raises:
        NotApplicable: If leave-one-out is reliable, or no refit can be made.

    References:
        Vehtari, Gelman, Gabry (2017), Statistics and Computing 27, sec. 2.3; Sivula, Magnusson, Matamoros, Vehtari
        (2020), arXiv:2008.10296, for a difference of four that does not matter.
    """
    loo: Loo = leave_one_out(posterior, num_draws=num_draws, seed=seed)
    bad = int((loo.pareto_k > khat_threshold(loo.draws)).sum())
    if not bad and not always:
        raise NotApplicable("leave-one-out by importance sampling is reliable for every row, so no refit is needed")
    found = cross_validate(posterior, folds=folds, num_draws=num_draws, seed=seed, progress=progress)
    gap = loo.elpd - found[loo.rows]
    share = loo.num_data / len(gap)
    difference = float(gap.sum() * share)
    error = math.sqrt(len(gap) * float(np.var(gap, ddof=1))) * share
    z = abs(difference) / max(error, 1e-12)
    verdict: Verdict = "warn" if abs(difference) > 4 and z > 3 else "pass"
    total = float(found.sum()) - len(found) * math.log(target_unit(posterior))
    return Check(
        name="k_fold",
        title="What does cross-validation by refitting say?",
        about="comparison",
        verdict=verdict,
        value={
            "elpd": total,
            "standard error": math.sqrt(len(found) * float(np.var(found, ddof=1))),
            "leave-one-out minus this": difference,
            "its standard error": error,
            "rows with large k": bad,
            "folds": min(folds, len(found)),
        },
        threshold="difference from leave-one-out: warn above 4 nats and 3 standard errors",
        source="Vehtari, Gelman, Gabry (2017), Statistics and Computing 27; 4 nats: Sivula et al. (2020), "
        "arXiv:2008.10296",
        explanation=f"Refits without a part of the rows give an expected log density of {total:.1f} nats, which "
        "leave-one-"
        "out confirms."
        if verdict == "pass"
        else f"Leave-one-out by importance sampling is off by {difference:.1f} nats: compare models by the {total:.1f} "
        "nats of this check.",
    )
