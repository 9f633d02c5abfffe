r"""Marginal likelihood of rows with latents of their own, by importance weights of an amortised guide.

A guide that draws a latent :math:`z_n` of row :math:`n` from that very row says so at the site:
``pyro.sample("z", ..., infer={"amortised": True})``. Such a draw has seen the row, so the average of
:math:`p(x_n \mid z_n)` over draws is no predictive density. Everything here and in the diagnostics takes the weight

.. math:: w_n = \log p(x_n, z_n \mid \theta) - \log q(z_n \mid x_n)

in its place, whose exponential has the mean :math:`p(x_n \mid \theta)` over draws of the guide.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.errors import DataError, PairError
from zoo.inference.predictive import MAX_BYTES, block_seed
from zoo.inference.program import seeded, stream
from zoo.inference.sites import guide_trace

if TYPE_CHECKING:
    from zoo.inference.posterior import Posterior
    from zoo.types import Batch

__all__ = ["amortised", "marginal_log_likelihood"]

_ROWS = 1_000  # evaluated together


def amortised(posterior: Posterior) -> tuple[str, ...]:
    """Return the latents that the guide draws from the rows themselves.

    Args:
        posterior: A fit.

    Returns:
        Names of the sites marked ``infer={"amortised": True}``; none where chains were sampled.
    """
    guide = posterior.pair.drawing
    if guide is None or posterior.chains is not None:
        return ()
    if posterior._amortised is None:
        with posterior.runs.bound(), stream(seeded(0, posterior.runs.device)):
            trace: Any = guide_trace(guide, posterior._prepare(None))
        names = (n for n in trace.stochastic_nodes if trace.nodes[n]["infer"].get("amortised"))
        posterior._amortised = tuple(names)
    return posterior._amortised


def marginal_log_likelihood(
    posterior: Posterior,
    batch: Batch | None = None,
    *,
    num_samples: int = 1_000,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    r"""Estimate the log marginal likelihood of every row by importance sampling.

    .. math:: \log \frac1S \sum_{s=1}^S \frac{p(x, z_s)}{q(z_s \mid x)}, \qquad z_s \sim q(z \mid x).

    Its expectation is the ELBO for :math:`S = 1`, rises with :math:`S` and never exceeds :math:`\log p(x)`.

    Args:
        posterior: A fit by SVI.
        batch: Rows with what the model observes; the training batch if ``None``.
        num_samples: Draws :math:`S` of the guide for each row.
        seed: Of the draws.
        max_bytes: Memory of one block of draws, about.

    Returns:
        Log densities in nats, ``(rows,)``, float64, of all observed sites of a row together. Latents that rows share
        are averaged over too.

    Raises:
        DataError: If ``num_samples`` is not positive.
        PairError: If there is no guide, or observed sites differ in their rows.

    References:
        Burda, Grosse, Salakhutdinov (2016), sec. 3. https://arxiv.org/abs/1509.00519
    """
    if num_samples < 1:
        raise DataError(f"num_samples is {num_samples}; allowed: 1 or more")
    if posterior.engine != "svi":
        raise PairError("importance weights need a guide; this posterior was sampled by NUTS")
    prepared = posterior._prepare(batch)
    rows = len(prepared["index"]) if "index" in prepared else 1
    parts = []
    for first in range(0, rows, _ROWS):
        size = min(_ROWS, rows - first)
        part = prepared
        if "index" in prepared:
            whole = posterior.data.whole
            part = {k: v if k in whole else v[first : first + size] for k, v in prepared.items()}
        one = posterior.runs.guide_draws(part, 1, seed)
        block = max(1, min(num_samples, max_bytes // (4 * sum(v.numel() * v.element_size() for v in one.values()) + 1)))
        sums = []
        for start in range(0, num_samples, block):
            own = block_seed(seed, first, start)
            draws = posterior.runs.guide_draws(part, min(block, num_samples - start), own, max_bytes=max_bytes)
            found = posterior.log_likelihood(part, draws=draws, max_bytes=max_bytes)
            sums.append(_of_rows(found, size).logsumexp(0))
        parts.append(torch.stack(sums).logsumexp(0) - math.log(num_samples))
    return torch.cat(parts)


def _of_rows(found: dict[str, Tensor], rows: int) -> Tensor:
    """Sum log densities over everything but draws and rows."""
    total = torch.zeros(())
    for name, value in found.items():
        axes = [i for i in range(1, value.ndim) if value.shape[i] == rows]
        if not axes and rows > 1:
            raise PairError(f"site '{name}' has log densities of shape {tuple(value.shape[1:])} for {rows} rows")
        moved = value.movedim(axes[-1], 1) if axes else value[:, None]
        total = total + moved.detach().cpu().double().reshape(len(value), rows, -1).sum(-1)
    if not total.ndim:
        raise PairError("the model observes nothing in this batch")
    return total
