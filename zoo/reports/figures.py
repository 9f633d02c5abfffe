"""Figures of the report, drawn by matplotlib without pyplot: inline SVG that follows the page's theme."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from zoo.types import Figure as Description

__all__ = [
    "Drawing",
    "differences",
    "forest",
    "funnel",
    "holds_data",
    "intervals",
    "khat_repeats",
    "loss_curve",
    "own",
    "overlay",
    "pairs",
    "pareto_k",
    "rank_ecdf",
    "ranked",
    "ranks",
    "reliability",
    "risk_coverage",
    "sensitivity",
    "spreads",
    "traces",
    "two_histograms",
]

Array = NDArray[np.float64]

# Colours of the light theme; in the page each becomes a CSS variable, so that the dark theme recolours the figures.
INK, MUTED, GRID, FILL = "#20242a", "#616a75", "#dfe3e8", "#c9d6e8"
BLUE, ORANGE, RED, GREEN = "#2c64a8", "#c2611f", "#b3261d", "#2f7d4f"
PURPLE, TEAL, GOLD, GREY = "#75509f", "#1f7a8c", "#9a7b16", "#8a929c"
CHAINS = (BLUE, ORANGE, GREEN, PURPLE, TEAL, GOLD, RED, GREY)
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    FILL: "fill",
    BLUE: "blue",
    ORANGE: "orange",
    RED: "red",
    GREEN: "green",
    PURPLE: "purple",
    TEAL: "teal",
    GOLD: "gold",
    GREY: "grey",
}
_FROM = {"fit": "fitted model", "prior": "prior"}
_WHAT = {"fit": "Posterior", "prior": "Prior"}
_WIDTH = 4.7  # inches: one column of the page, and one phone
_LARGEST = 1e100  # beyond it a value counts as infinite: margins and squares of the axes would overflow
_NOTHING = "no finite value to show"
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "path.simplify_threshold": 0.4,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9,
    "xtick.major.width": 0.7,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9,
    "ytick.major.width": 0.7,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure of the page.

    Args:
        name: Identifier, unique on the page.
        svg: The ``<svg>`` element.
        caption: Sentences under the figure.
        wide: Whether it takes the whole width of the page.
    """

    name: str
    svg: str
    caption: str
    wide: bool = False


def _draw(
    name: str,
    paint: Callable[[Any], None],
    *,
    caption: str,
    alt: str,
    rows: int = 1,
    shape: tuple[int, int] | None = None,
    height: float = 2.9,
    sharex: bool = False,
    wide: bool = False,
    hidden: int = 0,
    what: str = "value",
    empty: bool = False,
) -> Drawing:
    """Paint a figure and take it into the page.

    Args:
        name: Identifier on the page.
        paint: Draws on the axes.
        caption: Sentences under the figure.
        alt: What it shows, for those who cannot see it.
        rows: Rows of axes, one below the other.
        shape: Rows and columns of axes, in place of ``rows``.
        height: In inches.
        sharex: Whether the axes share the horizontal one.
        wide: Whether it takes the whole width of the page.
        hidden: How many values are not shown, as they are not finite; the caption says so.
        what: What one of them is called.
        empty: Whether nothing finite is left, so that ``paint`` is not asked.

    Returns:
        The drawing. Axes in which nothing was drawn say so.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH * (2 if wide else 1), 1.2 if empty else height), layout="constrained")
        axes = figure.subplots(*((1, 1) if empty else shape or (rows, 1)), sharex=sharex, squeeze=False)
        if not empty:
            paint(axes if shape else axes[:, 0] if rows > 1 else axes[0, 0])
        blank = [ax for ax in axes.ravel() if not holds_data(ax)]
        for ax in blank:
            _say_nothing(ax)
        buffer = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "constrained_layout not applied")  # a long label; the figure still shows
            FigureCanvasSVG(figure).print_figure(
                buffer, format="svg", facecolor="none", edgecolor="none", metadata={"Date": None, "Creator": None}
            )
    if hidden:
        caption += f" Not shown: {hidden:,} {what}{'s' if hidden > 1 else ''} that {'are' if hidden > 1 else 'is'} not"
        caption += " finite."
    if blank:
        caption += f" {'Nothing could be shown' if len(blank) == axes.size else 'Part of it is blank'}: {_NOTHING}."
    return Drawing(name, _themed(buffer.getvalue(), name, alt), caption, wide)


def holds_data(ax: Axes) -> bool:
    """Say whether axes show any finite datum, picture or words; axes that were switched off need not.

    Args:
        ax: The axes, painted.

    Returns:
        Whether they do.
    """
    if ax.texts or not ax.axison:
        return True
    if ax.images:
        return any(
            np.isfinite(np.ma.filled(np.ma.asarray(i.get_array(), dtype=float), np.nan)).any() for i in ax.images
        )
    return bool(np.isfinite(ax.dataLim.get_points()).all())


def _say_nothing(ax: Axes, words: str = _NOTHING) -> None:
    """Put a sentence in the place of what cannot be drawn."""
    legend = ax.get_legend()
    if legend is not None:
        legend.remove()
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=MUTED)


def own(figure: Description) -> Drawing:
    """Draw a figure that a method describes.

    Args:
        figure: The description.

    Returns:
        The drawing.
    """
    return _draw(
        figure.name,
        figure.paint,
        caption=figure.caption,
        alt=figure.alt,
        shape=(figure.rows, figure.columns),
        height=figure.height,
        wide=figure.wide,
    )


def _themed(svg: str, name: str, alt: str) -> str:
    # Cut the element out of its file, scope its identifiers, and turn its colours into CSS variables.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', lambda m: f"{m[0]}{name}-", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var(--{_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    # A hundredth of a point is more than a screen shows; what stands between tags are words and numbers to be read.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"([1-9]\d*\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head[0])
    opening = (
        f'<svg role="img" aria-label="{_attribute(alt)}" {box[0] if box else ""} preserveAspectRatio="xMidYMid meet">'
    )
    return opening + svg[head.end() :].strip()


def _attribute(text: str) -> str:
    for raw, safe in (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(raw, safe)
    return text


def _array(values: ArrayLike) -> Array:
    """Return an array in which all that is too large to be drawn is infinite."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.abs(array) > _LARGEST, np.copysign(np.inf, array), array)


def _finite(values: ArrayLike) -> Array:
    array = _array(values)
    return array[np.isfinite(array)]


def _together(*values: ArrayLike) -> tuple[NDArray[np.bool_], list[Array]]:
    """Return at which positions of vectors of one length all are finite, and the vectors there."""
    arrays = [_array(v).ravel() for v in values]
    keep = np.logical_and.reduce([np.isfinite(a) for a in arrays])
    return keep, [a[keep] for a in arrays]


def _edges(low: float, high: float, bins: int, margin: float = 0.0) -> Array:
    """Return edges of bins of a width that is not lost beside the values themselves."""
    wide = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-9)
    return np.linspace(low - margin * wide, max(high, low + wide) + margin * wide, bins + 1)


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _plain(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda v, _: _number(v).replace("-", "\N{MINUS SIGN}")))


# ---------------------------------------------------------------------------------------------------- optimiser
def loss_curve(losses: ArrayLike, *, name: str = "loss", label: str = "negative ELBO") -> Drawing:
    """Draw a loss per step: binned range, smoothed line, on a scale that an early spike does not flatten.

    Args:
        losses: Loss per step, ``(steps,)``.
        name: Identifier on the page.
        label: What the loss is.

    Returns:
        The drawing.
    """
    values = _array(losses).ravel()
    steps = np.arange(1, values.size + 1)
    edges = np.unique(np.linspace(0, values.size, min(values.size, 300) + 1).astype(int))
    groups = [(steps[a:b].mean(), _finite(values[a:b])) for a, b in itertools.pairwise(edges)]
    kept = [(at, group) for at, group in groups if group.size]
    at = np.array([s for s, _ in kept])
    low, mid, high = (np.array([np.quantile(g, q) for _, g in kept]) for q in (0.05, 0.5, 0.95))
    tail = _finite(values[-max(values.size // 5, 1) :])
    window = max(len(mid) // 25, 1)
    padded = np.pad(mid, (window, window), mode="edge") if mid.size else mid
    smooth = np.array([np.median(padded[i : i + 2 * window + 1]) for i in range(mid.size)])
    bottom = float(np.quantile(tail, 0.5)) if tail.size else 0.0
    spread = max(float(np.subtract(*np.quantile(tail, (0.9, 0.1)))), 1e-3 * abs(bottom), 1e-9) if tail.size else 1.0
    ceiling = max(float(smooth.max()), float(np.quantile(high, 0.98))) if mid.size else 1.0
    outside = int((_finite(values) > ceiling).sum())
    stretched = mid.size >= 50 and ceiling - bottom > 30 * spread

    def paint(ax: Axes) -> None:
        if values.size > at.size:
            ax.fill_between(at, low, high, color=FILL, linewidth=0, label="5-95% of steps")
        else:
            ax.plot(at, mid, color=FILL, linewidth=1, label="each step")
        ax.plot(at, smooth, color=BLUE, label="running median")
        if stretched:
            ax.set_yscale(
                "function",
                functions=(lambda y: np.arcsinh((y - bottom) / spread), lambda u: bottom + spread * np.sinh(u)),
            )
            ticks = [bottom]
            step = 10.0 ** np.ceil(np.log10(3 * spread))
            while bottom + step < ceiling:
                ticks.append(float(f"{bottom + step:.{3 if step < abs(bottom) else 1}g}"))
                step *= 10 if ceiling - bottom < 1e5 * spread else 100
            ax.yaxis.set_major_locator(FixedLocator(ticks))
            ax.yaxis.set_minor_locator(NullLocator())
        floor = float(min(low.min(initial=bottom), bottom))
        ax.set_ylim(floor, ceiling + 0.04 * (ceiling - floor) + 1e-9 * max(abs(floor), 1.0))
        _plain(ax.yaxis)
        _plain(ax.xaxis)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlim(0, values.size)
        ax.set_xlabel("optimiser step")
        ax.set_ylabel(label)
        ax.legend(loc="best")

    scale = " The vertical scale is linear near the final loss and logarithmic above it." if stretched else ""
    if outside:
        scale += f" {outside:,} step{'s' if outside > 1 else ''} with a larger loss lie above the figure."
    end = _number(bottom) if tail.size else "not finite"
    return _draw(
        name,
        paint,
        caption=f"Loss per optimiser step ({label}); lower is better. Median of the last fifth: {end}.{scale}",
        alt=f"Loss curve over {values.size} steps; median of the last fifth {end}.",
        hidden=int((~np.isfinite(values)).sum()),
        what="loss",
        empty=not mid.size,
    )


def khat_repeats(values: ArrayLike, *, pooled: float | None = None, good: float = 0.5, limit: float = 0.7) -> Drawing:
    """Draw Pareto k-hat of the guide over independent repeats.

    Args:
        values: One k-hat per repeat, ``(repeats,)``; an infinite one is drawn at the right edge.
        pooled: The k-hat of the draws of all repeats together.
        good: Below it importance sampling from the guide is efficient; at most ``limit``.
        limit: Above it the guide is too far from the posterior.

    Returns:
        The drawing.
    """
    k = np.sort(_array(values).ravel())
    k = k[~np.isnan(k)]
    finite = _finite([*k, *([] if pooled is None else [pooled])])
    infinite = int(np.isposinf(k).sum())
    good = min(good, limit)  # few draws allow less than one half
    left = min(0.0, float(finite.min(initial=0.0))) - 0.1
    right = max(float(finite.max(initial=1.0)), 1.0) * 1.08
    median = float(np.median(k)) if k.size else math.nan

    def paint(ax: Axes) -> None:
        ax.axvspan(left, good, color=GREEN, alpha=0.08, linewidth=0)
        ax.axvspan(limit, right, color=RED, alpha=0.08, linewidth=0)
        for bound, colour in ((good, GREEN), (limit, RED)):
            ax.axvline(bound, color=colour, linewidth=1, linestyle=(0, (4, 3)))
        at = np.arange(1, k.size + 1)
        over = np.isposinf(k)
        ax.scatter(k[~over], at[~over], s=26, color=BLUE, zorder=3, label="repeat")
        ax.scatter(np.full(infinite, right), at[over], s=34, marker=">", color=RED, zorder=3, clip_on=False)
        if math.isfinite(median):
            ax.axvline(median, color=INK, linewidth=1, label="median")
        if pooled is not None and math.isfinite(pooled):
            ax.scatter([pooled], [k.size + 0.9], s=34, marker="D", color=ORANGE, zorder=3, label="all draws together")
        ax.set_xlim(left, right)
        ax.set_ylim(0.2, k.size + 1.6)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlabel("Pareto k-hat")
        ax.set_ylabel("repeat (sorted)")
        _legend_below(ax)

    lowest, highest = (f"{k[0]:.2f}", f"{k[-1]:.2f}") if k.size else ("–", "–")
    bounds = f"Up to {good:.2g}: close to the posterior; above" if good < limit else "Above"
    return _draw(
        "khat",
        paint,
        height=2.8,
        caption=f"Pareto k-hat over {k.size} repeats with fresh draws. {bounds} {limit:.2f}: too far from the "
        "posterior for standard deviations and tails of the guide to be trusted."
        + (f" {infinite} infinite, at the right edge." if infinite else ""),
        alt=f"Pareto k-hat over {k.size} repeats: {lowest} to {highest}; limit {limit:.2f}.",
        hidden=int(np.isnan(_array(values)).sum()),
        what="k-hat",
        empty=not k.size,
    )


def _legend_below(ax: Axes) -> None:
    """Put the legend below the axes, where it hides no point."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=3, handletextpad=0.3, borderaxespad=0)


# -------------------------------------------------------------------------------------------------------- chains
def traces(chains: Mapping[str, ArrayLike], *, thin: int = 300) -> Drawing:
    """Draw trace plots, one row per quantity and one line per chain.

    Args:
        chains: Label -> draws, ``(chains, draws)``.
        thin: At most so many points per line.

    Returns:
        The drawing.
    """
    items = [(label, _array(values)) for label, values in chains.items()]

    def paint(axes: Any) -> None:
        for ax, (label, values) in zip(np.atleast_1d(axes), items, strict=True):
            ax.set_title(label)
            if not np.isfinite(values).any():
                continue
            stride = max(values.shape[1] // thin, 1)
            for i, chain in enumerate(np.where(np.isfinite(values), values, np.nan)):
                at = np.arange(0, chain.size, stride)
                ax.plot(at, chain[::stride], color=CHAINS[i % len(CHAINS)], linewidth=0.6, alpha=0.85)
            ax.yaxis.set_major_locator(MaxNLocator(3))
            _plain(ax.yaxis)
            ax.set_xlim(0, values.shape[1])
        np.atleast_1d(axes)[-1].set_xlabel("draw")

    names = ", ".join(label for label, _ in items)
    return _draw(
        "traces",
        paint,
        rows=len(items),
        height=0.55 + 1.05 * len(items),
        sharex=True,
        caption="Draws in order, one colour per chain. Chains that mix well look alike and wander nowhere.",
        alt=f"Trace plots of {names}.",
        hidden=sum(int((~np.isfinite(values)).sum()) for _, values in items),
        what="draw",
        empty=not items,
    )


def ranks(chains: Mapping[str, ArrayLike], *, bins: int = 20) -> Drawing:
    """Draw rank histograms, one row per quantity and one line per chain.

    Args:
        chains: Label -> draws, ``(chains, draws)``.
        bins: Bins of the histogram.

    Returns:
        The drawing.

    References:
        Vehtari et al. (2021), Rank-normalization, folding, and localization, section 4.
    """
    items = [(label, _array(values)) for label, values in chains.items()]

    def paint(axes: Any) -> None:
        for ax, (label, values) in zip(np.atleast_1d(axes), items, strict=True):
            ax.set_title(label)
            if not np.isfinite(values).any():
                continue
            if np.isnan(values).any() or (values == values.flat[0]).all():
                _say_nothing(ax, "undefined draws have no rank" if np.isnan(values).any() else "all draws are equal")
                continue
            # Equal draws are ranked at random: in their order the first chain would always come first.
            ties = np.random.default_rng(0).random(values.size)
            order = np.lexsort((ties, values.ravel())).argsort(kind="stable").reshape(values.shape)
            expected = values.shape[1] / bins
            edges = np.linspace(0, values.size, bins + 1)
            for i, chain in enumerate(order):
                counts, _ = np.histogram(chain, bins=edges)
                ax.stairs(counts / expected, edges / values.size, color=CHAINS[i % len(CHAINS)], linewidth=1)
            band = 2 * np.sqrt((1 - 1 / bins) / expected)
            ax.axhspan(1 - band, 1 + band, color=GREY, alpha=0.15, linewidth=0)
            ax.axhline(1, color=MUTED, linewidth=0.8)
            ax.set_ylim(0, max(2.0, ax.get_ylim()[1]))
            ax.yaxis.set_major_locator(MaxNLocator(3))
            ax.set_xlim(0, 1)
        np.atleast_1d(axes)[-1].set_xlabel("rank among all chains (scaled to 0-1)")

    names = ", ".join(label for label, _ in items)
    return _draw(
        "ranks",
        paint,
        rows=len(items),
        height=0.55 + 1.05 * len(items),
        sharex=True,
        caption="Where each chain's draws rank among all draws, relative to a uniform spread. Chains that agree stay "
        "near 1; the grey band holds two standard errors of independent draws.",
        alt=f"Rank plots of {names}.",
        hidden=sum(int(np.isnan(values).sum()) for _, values in items),
        what="draw",
        empty=not items,
    )


def pairs(x: ArrayLike, y: ArrayLike, diverging: ArrayLike, *, xlabel: str, ylabel: str, most: int = 1200) -> Drawing:
    """Draw two quantities against each other with divergent draws on top.

    Args:
        x: Draws, ``(n,)``.
        y: Draws, ``(n,)``.
        diverging: Which draws ended in a divergence, ``(n,)``.
        xlabel: Name of ``x``.
        ylabel: Name of ``y``.
        most: Ordinary draws shown at most.

    Returns:
        The drawing.
    """
    keep, (xs, ys) = _together(x, y)
    bad = np.asarray(diverging, dtype=bool).ravel()
    count, bad = int(bad.sum()), bad[keep]
    fine = np.flatnonzero(~bad)
    fine = fine[:: max(fine.size // most, 1)]

    def paint(ax: Axes) -> None:
        ax.scatter(xs[fine], ys[fine], s=5, color=BLUE, alpha=0.35, linewidths=0, label="draw")
        if bad.any():
            ax.scatter(xs[bad][:600], ys[bad][:600], s=14, color=RED, linewidths=0, zorder=3, label="divergence")
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        _plain(ax.xaxis)
        _plain(ax.yaxis)
        ax.legend(loc="best", markerscale=1.4, handletextpad=0.1)

    return _draw(
        "pairs",
        paint,
        height=3.3,
        caption=f"{ylabel} against {xlabel}, with {count} divergent draws in red. Divergences that "
        "gather in a narrow neck mean that the sampler cannot enter it: the neck is under-represented, and whatever "
        "depends on it is biased.",
        alt=f"Scatter of {ylabel} against {xlabel} with {count} divergences.",
        hidden=int((~keep).sum()),
        what="draw",
        empty=not xs.size,
    )


# ----------------------------------------------------------------------------------------------------- posterior
def forest(
    labels: Sequence[str],
    mid: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    name: str,
    title: str,
    units: str = "",
    panel: int = 0,
) -> Drawing:
    """Draw intervals with their means, one row per quantity.

    Args:
        labels: Name per row.
        mid: Means, ``(n,)``.
        low: Lower ends of 90% intervals, ``(n,)``.
        high: Upper ends of 90% intervals, ``(n,)``.
        name: Identifier on the page.
        title: What is shown.
        units: Label of the horizontal axis.
        panel: Rows at most in one panel; where there are more, panels stand beside each other. 0: all in one.

    Returns:
        The drawing.
    """
    m, a, b = _array(mid), _array(low), _array(high)
    known, (_, lows, highs) = _together(m, a, b)
    clear = ((a > 0) | (b < 0)) & known
    count = max(math.ceil(m.size / panel), 1) if panel else 1
    size = max(math.ceil(m.size / count), 1)

    def paint(axes: Any) -> None:
        for i, ax in enumerate(axes[0]):
            some = np.arange(m.size) // size == i
            at = (size - 1 - np.arange(m.size) % size).astype(float)
            if (lows.min() < 0) and (highs.max() > 0):
                ax.axvline(0, color=MUTED, linewidth=0.8)
            for chosen, colour in ((clear & some, BLUE), (known & ~clear & some, GREY)):
                ax.hlines(at[chosen], a[chosen], b[chosen], color=colour, linewidth=2)
                ax.scatter(m[chosen], at[chosen], s=24, color=colour, zorder=3)
            ax.set_yticks(at[some], [label for label, mine in zip(labels, some, strict=True) if mine])
            ax.tick_params(axis="y", length=0)
            ax.grid(visible=False, axis="y")
            ax.set_ylim(-0.7, size - 0.3)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            _plain(ax.xaxis)
            ax.set_xlabel(units or title)

    return _draw(
        name,
        paint,
        shape=(1, count),
        height=max(0.75 + (0.22 if count == 1 else 0.19) * size, 1.6),
        wide=count > 1,
        caption=f"{title}: posterior means and 90% intervals"
        + ("." if clear[known].all() else "; grey where the interval holds zero."),
        alt=f"Forest plot of {title}, {m.size} rows.",
        hidden=int((~known).sum()),
        what="interval",
        empty=not known.any(),
    )


def differences(
    labels: Sequence[str], values: ArrayLike, errors: ArrayLike, *, name: str, what: str, first: str
) -> Drawing:
    """Draw the differences of a score to that of one fit, with two standard errors.

    Args:
        labels: Name per fit.
        values: Differences, ``(n,)``.
        errors: Their standard errors, ``(n,)``.
        name: Identifier on the page.
        what: The score.
        first: The fit that the others are compared with.

    Returns:
        The drawing.
    """
    v, e = _array(values), _array(errors)
    at = np.arange(v.size)[::-1]
    known, _ = _together(v, e)
    clear = np.zeros(v.size, dtype=bool)
    clear[known] = np.abs(v[known]) > 2 * e[known]

    def paint(ax: Axes) -> None:
        ax.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for chosen, colour in ((clear, BLUE), (known & ~clear, GREY)):
            ends = v[chosen] - 2 * e[chosen], v[chosen] + 2 * e[chosen]
            ax.hlines(at[chosen], *ends, color=colour, linewidth=2)
            ax.scatter(v[chosen], at[chosen], s=24, color=colour, zorder=3)
        ax.set_yticks(at, labels)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
        ax.set_ylim(-0.7, v.size - 0.3)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        _plain(ax.xaxis)
        ax.set_xlabel(f"difference of {what} to {first}")

    return _draw(
        name,
        paint,
        height=0.95 + 0.3 * v.size,
        caption=f"Difference of {what} to that of {first}, with two standard errors to both sides; grey where that "
        "interval holds zero.",
        alt=f"Differences of {what} to {first}: "
        + "; ".join(
            f"{label} {_number(a)}, standard error {_number(b)}"
            for label, a, b, known_ in zip(labels, v, e, known, strict=True)
            if known_
        )
        + ".",
        hidden=int((~known).sum()),
        what="difference",
        empty=not known.any(),
    )


# -------------------------------------------------------------------------------------------------- predictions
def overlay(
    observed: ArrayLike,
    replicated: ArrayLike,
    *,
    label: str,
    discrete: bool = False,
    classes: Sequence[str] = (),
    source: str = "fit",
) -> Drawing:
    """Draw the distribution of the observed values over those of replicated data sets.

    Args:
        observed: Observed values, ``(n,)``.
        replicated: Replicated data, ``(replicates, n)``.
        label: Name and unit of the values.
        discrete: Whether the values are counts: bars instead of densities.
        classes: Names of the values 0, 1, ... of a class.
        source: Whether the data sets come from the ``fit`` or from the ``prior``.

    Returns:
        The drawing.
    """
    y, reps = _finite(observed), _array(replicated)
    reps = reps.reshape(reps.shape[0] if reps.ndim else 1, -1) if reps.size else np.empty((0, 0))
    finite = reps[np.isfinite(reps)]
    if classes:
        y, finite = (v[np.isin(v, range(len(classes)))] for v in (y, finite))
    empty = not y.size or not finite.size
    hidden = np.size(observed) - y.size + reps.size - finite.size
    support = np.arange(len(classes), dtype=float) if classes else np.unique(np.concatenate([y, finite]))
    discrete = bool(classes) or (discrete and support.size <= 40)
    if empty:
        seen, edges, share = np.zeros(1), np.arange(2.0), np.zeros((1, 1))
    elif discrete:
        seen = np.array([(y == v).mean() for v in support])
        share = np.stack([(reps == v).mean(1) for v in support], -1)
    else:
        both = np.concatenate([y, finite])
        low, high = np.quantile(both, (0.002, 0.998))
        bins = int(np.clip(np.sqrt(y.size) * 1.6, 12, 40))
        edges = _edges(min(float(low), float(y.min())), max(float(high), float(y.max())), bins, margin=0.08)
        width = edges[1] - edges[0]
        seen = np.histogram(y, edges)[0] / (y.size * width)
        share = np.stack([np.histogram(r[np.isfinite(r)], edges)[0] / (max(r.size, 1) * width) for r in reps])

    bottom, centre, top = np.quantile(share, (0.05, 0.5, 0.95), axis=0)

    def paint(ax: Axes) -> None:
        if discrete:
            at = np.arange(support.size)
            ax.bar(at, seen, width=0.7, color=FILL, label="observed")
            ax.errorbar(
                at,
                centre,
                (centre - bottom, top - centre),
                fmt="o",
                color=BLUE,
                markersize=4,
                linewidth=1.2,
                label="replicated, 90%",
            )
            names = list(classes) or [f"{v:g}" for v in support]
            stride = max(support.size // 12, 1)
            tilt = sum(map(len, names)) > 60
            ax.set_xticks(at[::stride], names[::stride], rotation=40 if tilt else 0, ha="right" if tilt else "center")
            ax.grid(visible=False, axis="x")
            ax.set_ylabel("share")
            ax.set_ylim(0, 1.28 * max(float(seen.max()), float(top.max())))
        else:
            ax.stairs(top, edges, baseline=bottom, fill=True, color=FILL, label="replicated, 90%")
            ax.stairs(centre, edges, color=BLUE, linewidth=1, label="replicated, median")
            ax.stairs(seen, edges, color=INK, linewidth=1.5, label="observed")
            ax.set_yticks([])
            ax.set_ylabel("density")
            ax.set_xlim(edges[0], edges[-1])
            ax.set_ylim(0, 1.5 * max(float(seen.max()), float(top.max())))  # room for the legend
            ax.xaxis.set_major_locator(MaxNLocator(6))
            _plain(ax.xaxis)
        ax.set_xlabel(label)
        ax.legend(loc="upper right", ncols=2 if discrete else 1)

    words = (
        "A line that leaves the band shows a feature of the data that the model does not reproduce."
        if source == "fit"
        else "Values far outside of the band contradict the prior; a band far wider than the values means a vague "
        "prior."
    )
    return _draw(
        "ppc" if source == "fit" else "prior-ppc",
        paint,
        caption=f"Observed {label} against {reps.shape[0]} data sets replicated from the {_FROM[source]}. {words}",
        alt=f"{_WHAT[source]} predictive check of {label}: observed values against {reps.shape[0]} replicated data "
        "sets.",
        hidden=hidden,
        empty=empty,
    )


def intervals(
    labels: Sequence[str],
    observed: ArrayLike,
    low: ArrayLike,
    mid: ArrayLike,
    high: ArrayLike,
    *,
    label: str,
    source: str = "fit",
) -> Drawing:
    """Draw each observed value over the interval that the model predicts for it.

    Args:
        labels: Name per row.
        observed: Observed values, ``(n,)``.
        low: Lower ends of 90% predictive intervals, ``(n,)``.
        mid: Predictive medians, ``(n,)``.
        high: Upper ends of 90% predictive intervals, ``(n,)``.
        label: Name and unit of the values.
        source: Whether the intervals come from the ``fit`` or from the ``prior``.

    Returns:
        The drawing.
    """
    y, a, m, b = (_array(v) for v in (observed, low, mid, high))
    at = np.arange(y.size)[::-1]
    inside = int(((a <= y) & (y <= b)).sum())
    known, (ends, other) = _together(a, b)
    hidden = int((~known).sum() + (~np.isfinite(m)).sum() + (~np.isfinite(y)).sum())

    def paint(ax: Axes) -> None:
        ax.hlines(at[known], ends, other, color=FILL, linewidth=5, label="replicated, 90%")
        middle, seen = np.isfinite(m), np.isfinite(y)
        ax.scatter(
            m[middle], at[middle], marker="|", s=60, color=BLUE, linewidths=1.4, zorder=3, label="replicated, median"
        )
        ax.scatter(y[seen], at[seen], s=22, color=INK, zorder=4, label="observed")
        ax.set_yticks(at, labels)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
        ax.set_ylim(-0.7, y.size + 0.9)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        _plain(ax.xaxis)
        ax.set_xlabel(label)
        ax.legend(loc="upper center", ncols=3, columnspacing=1.0, handlelength=1.2, borderaxespad=0)

    return _draw(
        "ppc" if source == "fit" else "prior-ppc",
        paint,
        height=1.1 + 0.23 * y.size,
        caption=f"Each observed value of {label} over the 90% interval of values replicated from the {_FROM[source]}; "
        f"{inside} of {y.size} lie inside.",
        alt=f"Observed {label} against predictive intervals for {y.size} rows; {inside} inside.",
        hidden=hidden,
        empty=not (np.isfinite(y).any() and known.any()),
    )


def reliability(
    predicted: ArrayLike,
    observed: ArrayLike,
    *,
    counts: ArrayLike | None = None,
    kind: str = "probability",
    name: str = "reliability",
) -> Drawing:
    """Draw stated against observed frequencies: a reliability diagram, or the coverage of central intervals.

    Args:
        predicted: Stated probability per bin or nominal coverage, ``(bins,)``.
        observed: Observed frequency per bin, ``(bins,)``; NaN where a bin is empty.
        counts: Rows per bin, for error bars and the histogram, ``(bins,)``.
        kind: ``probability``, ``coverage`` (of predictions) or ``interval`` (of parameters, over refits).
        name: Identifier on the page.

    Returns:
        The drawing.
    """
    p, o = _array(predicted), _array(observed)
    n = None if counts is None else np.nan_to_num(_array(counts), posinf=0.0, neginf=0.0)
    keep = np.isfinite(p) & np.isfinite(o) & (np.ones_like(p, dtype=bool) if n is None else n > 0)

    def paint(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if n is not None and kind == "probability":
            share = n / max(n.sum(), 1)
            ax.bar(
                p[keep],
                0.25 * share[keep] / max(share.max(), 1e-12),
                width=0.8 / max(p.size, 1),
                color=FILL,
                label="share of rows",
            )
        if n is not None:
            error = np.sqrt(np.clip(o[keep] * (1 - o[keep]), 0, None) / np.maximum(n[keep], 1))
            ax.errorbar(p[keep], o[keep], 2 * error, fmt="none", ecolor=BLUE, elinewidth=1)
        ax.plot(p[keep], o[keep], marker="o", markersize=4, color=BLUE, label="observed")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.set_xlabel("stated probability" if kind == "probability" else "nominal coverage")
        ax.set_ylabel("observed frequency" if kind == "probability" else "observed coverage")
        ax.legend(loc="upper left")

    what = (
        "Stated class probability against observed frequency on held-out rows"
        if kind == "probability"
        else "Nominal coverage of central posterior intervals against the share of simulated true values inside them"
        if kind == "interval"
        else "Nominal coverage of central predictive intervals against the share of held-out rows inside them"
    )
    return _draw(
        name,
        paint,
        height=3.3,
        caption=f"{what}. On the dashed line the stated uncertainty is right; below it, overconfident.",
        alt=f"{what}, {int(keep.sum())} points.",
        empty=not keep.any(),
    )


def pareto_k(values: ArrayLike, *, limit: float = 0.7, most: int = 2000, of: str = "loo") -> Drawing:
    """Draw the Pareto k per datum: of leave-one-out cross-validation, or of the guide of the data's own latents.

    Args:
        values: One k per datum, ``(n,)``; an infinite one is drawn at the edge.
        limit: Above it the datum's estimate is unreliable.
        most: Ordinary points shown at most; those above ``limit`` are all shown.
        of: ``loo`` or ``rows``.

    Returns:
        The drawing.
    """
    k = _array(values).ravel()
    finite = _finite(k)
    bad = np.flatnonzero(k > limit)
    fine = np.flatnonzero((k <= limit) & np.isfinite(k))
    fine = fine[:: max(fine.size // most, 1)]
    infinite = int(np.isposinf(k).sum())
    undefined = int(k.size - finite.size - infinite)
    # Most k lie above -1; a few far below say no more than "fine", and would flatten the rest.
    bottom = min(-0.05, max(float(finite.min(initial=0.0)) - 0.05, -1.0))
    below = int((finite < bottom).sum())
    top = max(1.0, limit, float(finite.max(initial=1.0))) * 1.05

    def paint(ax: Axes) -> None:
        size = 22 if k.size <= 50 else 8
        ax.scatter(fine, np.maximum(k[fine], bottom), s=size, color=BLUE, linewidths=0, alpha=0.7)
        over = np.isposinf(k[bad])
        ax.scatter(bad[~over], k[bad][~over], s=1.5 * size, color=RED, linewidths=0, zorder=3)
        ax.scatter(bad[over], np.full(infinite, top), s=2 * size, marker="^", color=RED, zorder=3, clip_on=False)
        ax.axhline(limit, color=RED, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_ylim(bottom, top)
        ax.set_xlim(-0.02 * k.size - 0.5, k.size * 1.02 + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _plain(ax.xaxis)
        ax.set_xlabel("datum")
        ax.set_ylabel("Pareto k")

    words = (
        "Data above the line pull the posterior so strongly that their left-out prediction cannot be estimated from "
        "this fit."
        if of == "loo"
        else "Above the line the guide misses part of the posterior of the datum's own latents."
    )
    edges = f" {infinite} infinite, at the upper edge." if infinite else ""
    edges += f" {below} below {bottom:.2g}, at the lower edge." if below else ""
    what = "of leave-one-out cross-validation" if of == "loo" else "of the guide"
    return _draw(
        of,
        paint,
        height=2.6,
        caption=f"Pareto k {what} per datum; {bad.size} of {k.size} lie above {limit:.2g}. {words}{edges}",
        alt=f"Pareto k per datum: {bad.size} of {k.size} above {limit:.2g}.",
        hidden=undefined,
        what="k",
        empty=undefined == k.size,
    )


def funnel(log_scale: ArrayLike, value: ArrayLike, *, site: str) -> Drawing:
    """Draw a quantity against the log of the scale of its prior.

    Args:
        log_scale: Log of the prior's scale, ``(draws,)``.
        value: The quantity, ``(draws,)``.
        site: Its name.

    Returns:
        The drawing.
    """
    keep, (x, y) = _together(log_scale, value)

    def paint(ax: Axes) -> None:
        ax.scatter(x, y, s=6, color=BLUE, alpha=0.45, linewidths=0)
        ax.set_xlabel(f"log of the prior scale of {site}")
        ax.set_ylabel(site)
        _plain(ax.xaxis)
        _plain(ax.yaxis)

    return _draw(
        "funnel",
        paint,
        height=3.0,
        caption=f"Draws of {site} against the log of the scale of its own prior. A true funnel narrows to the left; a "
        "cloud that does not narrow, or does not reach to the left, has missed the neck.",
        alt=f"Scatter of {site} against the log of its prior scale, {x.size} draws.",
        hidden=int((~keep).sum()),
        what="draw",
        empty=not x.size,
    )


def ranked(values: ArrayLike, *, name: str, label: str, limit: float, most: int = 400) -> Drawing:
    """Draw values from the largest to the smallest, with a limit.

    Args:
        values: Values, ``(n,)``.
        name: Identifier on the page.
        label: What they are.
        limit: Largest value that passes.
        most: Points shown at most.

    Returns:
        The drawing.
    """
    v = np.sort(_array(values).ravel())[::-1]
    v = v[~np.isnan(v) & ~np.isneginf(v)]
    infinite = int(np.isposinf(v).sum())
    at = np.unique(np.linspace(0, v.size - 1, min(v.size, most)).astype(int)) if v.size else np.arange(0)
    highest = max(float(_finite(v).max(initial=limit)), limit)
    bottom = min(float(_finite(v).min(initial=limit)), 1.0) - 0.002
    top = highest + 0.12 * (highest - 1.0) + 0.002

    def paint(ax: Axes) -> None:
        shown = v[at]
        over = np.isposinf(shown)
        ax.scatter(at[~over] + 1, shown[~over], s=12, color=BLUE, linewidths=0)
        ax.scatter(at[over] + 1, np.full(over.sum(), top), s=30, marker="^", color=RED, zorder=3, clip_on=False)
        ax.axhline(limit, color=RED, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_ylim(bottom, top)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.set_xlabel("quantity (sorted)")
        ax.set_ylabel(label)

    above = int((v > limit).sum())
    return _draw(
        name,
        paint,
        height=2.4,
        caption=f"{label} of {v.size} quantities, sorted; {above} lie above {limit:g}."
        + (f" {infinite} infinite, at the upper edge." if infinite else ""),
        alt=f"{label} of {v.size} quantities, {above} above {limit:g}.",
        hidden=int(np.size(values)) - v.size,
        empty=not v.size,
    )


# --------------------------------------------------------------------------------------------------------- refits
def rank_ecdf(
    ranks: ArrayLike, *, largest: int, low: ArrayLike, high: ArrayLike, labels: Sequence[str], worst: int
) -> Drawing:
    """Draw how the ranks of simulated true values deviate from a uniform distribution, with a simultaneous band.

    Args:
        ranks: Rank of the true value in every refit, ``(quantities, refits)``.
        largest: The largest possible rank.
        low: Lower end of the band at every inner edge, as a share of the ranks, ``(largest,)``.
        high: Upper end, ``(largest,)``.
        labels: Names of the quantities.
        worst: The quantity that is drawn on top.

    Returns:
        The drawing: histogram of the worst quantity's ranks, and the difference of all empirical distribution functions
        from that of a uniform distribution.

    References:
        Säilynoja, Bürkner, Vehtari (2022), Statistics and Computing 32, fig. 2.
    """
    found = _array(ranks)
    found = found if found.ndim == 2 else np.empty((0, 0))
    keep = np.isfinite(found).all(0) if len(found) else np.zeros(found.shape[1], dtype=bool)
    values = found[:, keep].astype(np.int64)
    edges = np.arange(1, largest + 1)
    at = edges / (largest + 1)
    empty = not values.size or largest < 1 or not np.size(low) or not np.size(high)
    bottom, top = (_array(low) - at, _array(high) - at) if not empty else (at, at)

    name = labels[worst] if 0 <= worst < len(labels) else "no quantity"

    def paint(axes: Any) -> None:
        histogram, difference = axes
        bins = np.linspace(-0.5, largest + 0.5, 17)
        counts, _ = np.histogram(values[worst], bins=bins)
        histogram.stairs(counts, bins, fill=True, color=FILL)
        histogram.stairs(counts, bins, color=BLUE, linewidth=1)
        histogram.axhline(values.shape[1] / 16, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        histogram.set_xlim(-0.5, largest + 0.5)
        histogram.set_xlabel(f"rank of the true value of {name}")
        histogram.set_ylabel("refits")
        histogram.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        difference.fill_between(at, bottom, top, color=GREY, alpha=0.2, linewidth=0, label="95% band", step="mid")
        for i, mine in enumerate(values):
            curve = (mine[:, None] < edges).mean(0) - at
            colour, width = (RED, 1.4) if i == worst else (BLUE, 0.7)
            difference.plot(
                at, curve, color=colour, linewidth=width, alpha=1 if i == worst else 0.5, zorder=3 if i == worst else 2
            )
        difference.axhline(0, color=MUTED, linewidth=0.8)
        difference.set_xlim(0, 1)
        difference.set_xlabel("rank (scaled to 0-1)")
        difference.set_ylabel("ECDF - uniform")
        difference.legend(loc="best")

    return _draw(
        "sbc",
        paint,
        rows=2,
        height=4.4,
        caption=f"Ranks of true values among {largest} draws of {values.shape[1]} refits to data simulated from the "
        f"prior. Above: {name}; a hump means intervals that are too wide, a bowl too narrow ones, a slope biased "
        f"estimates. Below: all {len(values)} quantities, that one in red; a curve within the band is compatible with "
        "a uniform distribution.",
        alt=f"Rank histogram of {name} and rank distribution functions of {len(values)} quantities.",
        hidden=int((~keep).sum()),
        what="refit",
        empty=empty,
    )


def spreads(labels: Sequence[str], ratios: ArrayLike, *, limit: float = 1.25, most: int = 30) -> Drawing:
    """Draw the ratio of the guide's standard deviations to those of NUTS, parameter by parameter.

    Args:
        labels: Name per parameter.
        ratios: Ratio per parameter, ``(n,)``.
        limit: Largest ratio, or inverse ratio, that passes.
        most: Parameters shown at most, those that differ most.

    Returns:
        The drawing.
    """
    every = _array(ratios).ravel()
    keep = np.isfinite(every) & (every > 0)
    r, names = every[keep], [label for label, known in zip(labels, keep, strict=False) if known]
    order = np.argsort(-np.abs(np.log(r)))[:most]
    order = order[np.argsort(r[order])]
    at = np.arange(order.size)

    def paint(ax: Axes) -> None:
        ax.axvspan(1 / limit, limit, color=GREEN, alpha=0.08, linewidth=0)
        ax.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.scatter(r[order], at, s=24, color=BLUE, zorder=3)
        ax.set_xscale("log")
        span = max(float(np.abs(np.log(r)).max()), np.log(1.5)) * 1.1
        span = min(span, 200.0)  # exp of more is beyond what an axis can hold
        ax.set_xlim(np.exp(-span), np.exp(span))
        ticks = [t for t in (0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10) if np.exp(-span) <= t <= np.exp(span)]
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        _plain(ax.xaxis)
        ax.set_yticks(at, [names[i] for i in order])
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
        ax.set_ylim(-0.7, order.size - 0.3)
        ax.set_xlabel("standard deviation of the guide / of NUTS")

    outside = int((np.abs(np.log(r)) > np.log(limit)).sum())
    return _draw(
        "spreads",
        paint,
        height=max(0.85 + 0.22 * order.size, 1.6),
        caption=f"Standard deviation of the guide over that of NUTS; {outside} of {r.size} parameters lie outside of "
        f"the band from {1 / limit:g} to {limit:g}"
        + (f"; the {order.size} that differ most are shown." if order.size < r.size else "."),
        alt=f"Ratios of standard deviations of {r.size} parameters, {outside} outside of the band.",
        hidden=int((~keep).sum()),
        what="ratio",
        empty=not r.size,
    )


def sensitivity(labels: Sequence[str], prior: ArrayLike, likelihood: ArrayLike, *, limit: float) -> Drawing:
    """Draw every parameter's sensitivity to the likelihood against that to the prior.

    Args:
        labels: Name per parameter.
        prior: Sensitivity to power scaling of the prior, ``(n,)``.
        likelihood: Of the likelihood, ``(n,)``.
        limit: From where on a sensitivity matters.

    Returns:
        The drawing.

    References:
        Kallioinen, Paananen, Bürkner, Vehtari (2023), Statistics and Computing 34, table 1.
    """
    keep, (x, y) = _together(prior, likelihood)
    names = [label for label, known in zip(labels, keep, strict=False) if known]
    above = np.flatnonzero(x > limit)
    named = above[np.argsort(-x[above], kind="stable")][:4]
    right, top = 1.15 * max(float(x.max(initial=0.0)), 2 * limit), 1.15 * max(float(y.max(initial=0.0)), 2 * limit)

    def paint(ax: Axes) -> None:
        ax.axvspan(limit, right, color=RED, alpha=0.06, linewidth=0)
        ax.axvline(limit, color=RED, linewidth=1, linestyle=(0, (4, 3)))
        ax.axhline(limit, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.scatter(x, y, s=18, color=BLUE, alpha=0.8, linewidths=0, zorder=3)
        heights = _apart(y[named] / top, 0.075)
        for i, height in zip(named, heights, strict=True):
            beyond = x[i] > 0.6 * right  # the label stands where there is room
            ax.annotate(
                names[i], (x[i], y[i]), xytext=(x[i] + (-0.025 if beyond else 0.025) * right, height * top),
                ha="right" if beyond else "left", va="center", fontsize=8,
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
            )  # fmt: skip
        ax.set_xlim(0, right)
        ax.set_ylim(0, max(top, top * float(heights.max(initial=0.0)) + 0.06 * top))
        ax.set_xlabel("sensitivity to the prior")
        ax.set_ylabel("sensitivity to the likelihood")

    return _draw(
        "sensitivity",
        paint,
        caption=f"How much each of {x.size} parameters' posteriors changes when the prior or the likelihood is raised "
        f"to a power; {above.size} are sensitive to the prior (right of {limit:g}). Right and above: prior and data "
        "disagree; right and below: the data say little.",
        alt=f"Sensitivities of {x.size} parameters, {above.size} sensitive to the prior.",
        hidden=int((~keep).sum()),
        what="parameter",
        empty=not x.size,
    )


def _apart(values: Array, least: float) -> Array:
    """Return the values, none negative, raised as little as needed to lie apart by ``least``."""
    order = np.argsort(values, kind="stable")
    placed = np.maximum(values[order], least / 2)
    for i in range(1, placed.size):
        placed[i] = max(placed[i], placed[i - 1] + least)
    found = np.empty_like(placed)
    found[order] = placed
    return found


def risk_coverage(coverage: ArrayLike, risk: ArrayLike, low: ArrayLike, high: ArrayLike, *, random: float) -> Drawing:
    """Draw the risk among the rows that are predicted, from the surest only to all.

    Args:
        coverage: Share of rows predicted, ``(n,)``.
        risk: Mean loss among them, ``(n,)``.
        low: Lower end of the 90% interval of replicated data, ``(n,)``.
        high: Upper end, ``(n,)``.
        random: Mean loss of all rows.

    Returns:
        The drawing.

    References:
        Geifman, El-Yaniv (2017), arXiv:1705.08500, fig. 1.
    """
    keep, (c, r, a, b) = _together(coverage, risk, low, high)
    base = random if math.isfinite(random) else 0.0

    def paint(ax: Axes) -> None:
        ax.fill_between(c, a, b, color=FILL, linewidth=0, label="as the fit expects, 90%")
        ax.plot(c, r, color=BLUE, label="observed")
        if math.isfinite(random):
            ax.axhline(random, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="in random order")
        late = c > 0.05
        ax.set_ylim(0, 1.15 * max(float(np.max(r[late], initial=base)), float(np.max(b[late], initial=base)), 1e-9))
        ax.set_xlim(0, 1)
        ax.set_xlabel("share of rows predicted, the surest first")
        ax.set_ylabel("risk")
        _plain(ax.yaxis)
        ax.legend(loc="best")

    return _draw(
        "risk-coverage",
        paint,
        caption="Mean loss among the rows that are predicted when the least certain ones are left out. A curve that "
        "falls to the left means that the fit knows where it errs; above the band it errs more among sure rows than it "
        "claims.",
        alt=f"Risk-coverage curve; risk of all rows {_number(random) if math.isfinite(random) else 'not finite'}.",
        hidden=int((~keep).sum()),
        what="point",
        empty=not c.size,
    )


def two_histograms(inside: ArrayLike, outside: ArrayLike, *, label: str = "predictive uncertainty") -> Drawing:
    """Draw the uncertainty of held-out rows and of rows from elsewhere.

    Args:
        inside: Of held-out rows, ``(n,)``.
        outside: Of rows from elsewhere, ``(m,)``.
        label: What it is.

    Returns:
        The drawing.
    """
    a, b = _finite(inside), _finite(outside)
    both = np.concatenate([a, b])
    edges = _edges(float(both.min()), float(np.quantile(both, 0.995)), 30) if both.size else np.arange(2.0)

    def paint(ax: Axes) -> None:
        for values, colour, name in ((a, BLUE, "held-out rows"), (b, ORANGE, "rows from elsewhere")):
            if not values.size:
                continue
            share = np.histogram(values, edges)[0] / values.size
            ax.stairs(share, edges, fill=True, color=colour, alpha=0.3)
            ax.stairs(share, edges, color=colour, linewidth=1.2, label=name)
        ax.set_xlabel(label)
        ax.set_ylabel("share of rows")
        _plain(ax.xaxis)
        ax.legend(loc="best")

    return _draw(
        "ood",
        paint,
        height=2.6,
        caption="Predictive uncertainty of held-out rows and of rows from elsewhere: the further apart, the better the "
        "fit notices rows that are foreign to it.",
        alt=f"Histograms of predictive uncertainty of {a.size} held-out rows and {b.size} rows from elsewhere.",
        hidden=np.size(inside) - a.size + np.size(outside) - b.size,
        empty=not (a.size and b.size),
    )
