r"""The nouns of the zoo, and nothing else.

A **method** builds, for a **data set** and its hyper-parameters, a **pair** of plain Pyro callables over one
**batch**, and says what the paper **claims**. A **diagnostic** is a published method that reads fitted posteriors
and has no latents of its own. The runner turns a pair into a :class:`~zoo.inference.posterior.Posterior`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from zoo.errors import DataError

if TYPE_CHECKING:
    from pyro.infer import ELBO
    from torch import Tensor, nn

    from zoo.inference.posterior import Posterior

__all__ = [
    "Acceptance",
    "Alternating",
    "Batch",
    "Claim",
    "Column",
    "Dataset",
    "Diagnostic",
    "Elbo",
    "Figure",
    "Finish",
    "Loss",
    "Method",
    "Objective",
    "Pair",
    "Recipe",
    "Verdict",
    "hyper_from_json",
    "hyper_to_json",
]

Batch: TypeAlias = "Mapping[str, Tensor]"
H = TypeVar("H")
Verdict: TypeAlias = Literal["reproduced", "partly", "not reproduced"]


# ------------------------------------------------------------------------------------------------ objectives
@dataclass(frozen=True, slots=True, kw_only=True)
class Elbo:
    """One of Pyro's evidence lower bounds, as data.

    Args:
        estimator: ``trace`` (:class:`pyro.infer.Trace_ELBO`), ``mean_field`` (analytic KL where registered), ``graph``
            (Rao-Blackwellised score function), ``enum`` (exact sums over discrete latents) or ``renyi``
            (Renyi bound; ``alpha = 0`` is the importance-weighted bound).
        num_particles: Samples of the guide per step.
        vectorize_particles: Draw the particles in one pass through an outermost plate; the pair must broadcast.
        alpha: Order of the Renyi divergence; only read by ``renyi``.
        max_plate_nesting: Deepest plate, for ``enum`` and vectorised particles; ``None`` lets Pyro find it.
        trains: Regular expression, as for :class:`Loss`, where the bound is a pair's whole objective: parameters whose
            names do not match stay as they start.
    """

    estimator: Literal["trace", "mean_field", "graph", "enum", "renyi"] = "trace"
    num_particles: int = 1
    vectorize_particles: bool = False
    alpha: float = 0.0
    max_plate_nesting: int | None = None
    trains: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One named loss of a method that has several, and the parameters that it trains.

    Args:
        name: Name in the history, e.g. ``discriminator``.
        function: ``function(model, guide, batch)`` -> scalar tensor to minimise, or an :class:`Elbo`.
        trains: Regular expression; the parameters of the store whose names match it (``re.match``) are trained.
        steps: Optimiser steps on this loss within one step of the runner.
    """

    name: str
    function: Callable[[Callable[..., Any], Callable[..., Any], Batch], Tensor] | Elbo
    trains: str = ""
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Alternating:
    """Losses minimised in turn, each over its own parameters (adversarial methods, wake-sleep).

    Args:
        losses: In the order in which one step of the runner takes them.
    """

    losses: tuple[Loss, ...]


# Beside these: one of Pyro's estimators, or a function ``loss(model, guide, *args, **kwargs)`` -> scalar tensor.
Objective: TypeAlias = "Elbo | Alternating | ELBO | Callable[..., Tensor]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What is computed once the optimiser has ended, where the trained guide is not yet the posterior.

    A Laplace approximation trains a point and gets its covariance from the curvature there, for example. A
    :class:`~zoo.inference.posterior.Posterior` of such a pair is always finished: it draws from ``guide``, and what was
    computed is among its parameters and saved with them. Training, checkpoints and ``resume`` know nothing of it.

    Args:
        guide: Draws the posterior. It reads the trained parameters, and the computed ones by ``pyro.param``.
        names: Parameters that are computed.
        compute: ``compute(params, batch)`` -> the computed parameters by name, from the trained ones as ``pyro.param``
            returns them and the rows that they were trained on, all of them. It draws no random numbers.
        check: Raises if ``compute`` cannot run, for lack of a library or on so large a pair; called before anything is
            compiled, and once the pair has run on a batch, before the optimiser starts.
    """

    guide: Callable[[Batch], Any]
    names: tuple[str, ...]
    compute: Callable[[Mapping[str, Tensor], Batch], Mapping[str, Tensor]]
    check: Callable[[], None] = lambda: None


class Pair(NamedTuple):
    """A Pyro model and guide over one batch; both are callables of the same ``batch``.

    ``guide`` is what the optimiser trains, ``None`` for a model that is sampled by MCMC only. ``objective`` is an
    :class:`Elbo`, several losses in turn, one of Pyro's estimators, or a function ``loss(model, guide, *args,
    **kwargs)`` that returns a scalar tensor, as Pyro's ``SVI`` takes it. ``finish`` says what follows where that guide
    is not yet the posterior.
    """

    model: Callable[[Batch], Any]
    guide: Callable[[Batch], Any] | None = None
    objective: Objective = Elbo()
    finish: Finish | None = None

    @property
    def drawing(self) -> Callable[[Batch], Any] | None:
        """The guide that draws after a fit: that of ``finish`` where there is one."""
        return self.guide if self.finish is None else self.finish.guide


# ------------------------------------------------------------------------------------------------------ data
@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one column of a table became a feature: ``feature = (value - mean) / scale``.

    Args:
        name: Column name as the user wrote it; an indicator feature is named ``column=category``.
        mean: Subtracted from the raw value, in the user's units.
        scale: Divided by, in the user's units.
        categories: For a categorical target or source column, the categories in code order; else ``None``. The first
            one of a source column is the reference: it has no indicator, and every other one is compared with it.
        source: Column of the user's table that this feature came from; empty: ``name`` itself. The indicators of one
            factor have one source.
        kind: ``number``, ``boolean``, ``date`` or ``text``: what the column holds, by which new rows are read; empty
            where it was never read from a table, or stored before kinds were.
        format: How its text spells numbers (the example ``1.234,5``) or dates (``%d/%m/%Y``); empty: the usual way.
        unit: ``days since 2007-11-09`` for a date; else empty.
        pooled: Rare categories that are one, the last of ``categories``.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] | None = None
    source: str = ""
    kind: str = ""
    format: str = ""
    unit: str = ""
    pooled: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """Category that an indicator is compared with; empty for a feature that is no indicator, and for a target."""
        return self.categories[0] if self.categories and self.source and self.name != self.source else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Data in the form that a pair takes, with names, units and provenance.

    A batch with rows has the entry ``index`` (int64, ``(rows,)``): the rows' positions in the training set. Entries
    named in ``whole`` (a graph's edges, a shared covariate) have no row dimension and enter every mini-batch as they
    are. A datum without rows at all (one graph) has no ``index`` and is never cut into mini-batches. Where entries of
    the features ``x`` are missing, they are 0 there and ``x_missing`` (bool, the shape of ``x``) says so.

    Args:
        name: Name under which it is listed and reported.
        task: Name of the task, see :mod:`zoo.tasks`.
        train: Training batch.
        validation: Validation batch, on which every choice is made.
        test: Test batch, read once.
        whole: Entries that carry no rows.
        columns: Features of ``x``, in order.
        target: The target column.
        dims: Entry or site -> names of its dimensions, e.g. ``{"x": ("datum", "feature")}``.
        coords: Dimension -> labels, e.g. ``{"feature": ("age", "income")}``.
        source: Where the data come from.
        licence: Under which terms.
        description: One sentence.
        origin: What :func:`zoo.load` needs to find the data again: ``bundled`` data are read by name, all other
            data are stored with the posterior.
        extra: Facts that single tasks need, JSON-able (e.g. ``{"num_classes": 10}``).
    """

    name: str
    task: str
    train: Batch
    validation: Batch | None = None
    test: Batch | None = None
    whole: frozenset[str] = frozenset()
    columns: tuple[Column, ...] = ()
    target: Column | None = None
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    description: str = ""
    origin: Literal["bundled", "user"] = "user"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_data(self) -> int:
        """Rows of the training set; 1 for a datum without rows."""
        index = self.train.get("index")
        return 1 if index is None else int(index.shape[0])

    def split(self, name: str) -> Batch:
        """Return the batch of one split.

        Args:
            name: ``train``, ``validation`` or ``test``.

        Returns:
            The batch.

        Raises:
            DataError: If there is no such split.
        """
        if name not in ("train", "validation", "test"):
            raise DataError(f"split '{name}' is unknown; allowed: train, validation, test")
        batch: Batch | None = getattr(self, name)
        if batch is None:
            raise DataError(f"data set '{self.name}' has no {name} split")
        return batch


# --------------------------------------------------------------------------------------------------- methods
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a method is fitted unless the user says otherwise; every field is an argument of :func:`zoo.fit`.

    Args:
        steps: Optimiser steps.
        learning_rate: Of the optimiser, at its highest.
        batch_size: Rows per step; ``None`` takes all rows.
        optimizer: ``adam``, ``adamw`` or ``sgd``.
        schedule: ``constant``, ``cosine`` (to zero), ``linear`` (to zero) or ``exponential`` (to a hundredth).
        warmup: Fraction of the steps over which the learning rate rises from zero.
        kl_warmup: Fraction of the steps over which the weight of the latent terms rises linearly to one.
        clip_norm: Largest norm of the whole gradient; ``None`` leaves it as it is.
        weight_decay: Of the optimiser; decoupled for ``adamw``.
    """

    steps: int = 2_000
    learning_rate: float = 1e-2
    batch_size: int | None = None
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "constant"
    warmup: float = 0.0
    kl_warmup: float = 0.0
    clip_norm: float | None = None
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """When a measured claim counts: the mean over seeds of ``key`` lies within ``[low, high]``, or beats a baseline.

    Args:
        key: Measured value.
        low: Smallest accepted mean.
        high: Largest accepted mean.
        below: Another measured value that ``key`` must lie below: the mean of the paired differences by more than one
            standard error of it, minus ``slack``.
        above: Another measured value that ``key`` must lie above, likewise.
        slack: Difference that still counts as equal, in the units of ``key``.
        errors: If positive, "no worse by more than so many standard errors" in place of "better by more than one": of
            the paired differences for ``below`` and ``above``, of the mean for ``low`` and ``high``.
        median: Hold the median against ``low`` and ``high`` too, which one seed cannot lift.
    """

    key: str
    low: float = float("-inf")
    high: float = float("inf")
    below: str | None = None
    above: str | None = None
    slack: float = 0.0
    errors: float = 0.0
    median: bool = False

    def met(self, runs: Sequence[Mapping[str, float]]) -> bool:
        """Decide over the runs of all seeds.

        Args:
            runs: One mapping of measured values per seed.

        Returns:
            Whether the acceptance is met; a missing or non-finite value does not meet it.
        """
        values = [run.get(self.key, float("nan")) for run in runs]
        if not values or any(v != v or v in (float("inf"), float("-inf")) for v in values):
            return False
        mean, error = _mean_and_error(values)
        room = self.errors * error
        if not self.low - room <= mean <= self.high + room:
            return False
        if self.median and not self.low - room <= statistics.median(values) <= self.high + room:
            return False
        for other, sign in ((self.below, 1.0), (self.above, -1.0)):
            if other is None:
                continue
            gaps = [sign * (run.get(other, float("nan")) - v) for run, v in zip(runs, values, strict=True)]
            gap, error = _mean_and_error(gaps)
            if gap < -self.errors * error - self.slack if self.errors else gap <= error - self.slack:
                return False
        return True


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    return mean, (variance / len(values)) ** 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the paper says, and how it is measured here.

    Args:
        statement: The claim in one line.
        published: The published value or values, as printed.
        source: Paper and table.
        measure: ``measure(seed, fast)`` -> measured values by name; ``fast`` is the subset that the tests run.
        acceptance: All must be met for ``reproduced``, some for ``partly``.
        budget: Seconds of one seed on two CPU cores.
        seeds: How many seeds.
    """

    statement: str
    published: str
    source: str
    measure: Callable[[int, bool], Mapping[str, float]]
    acceptance: tuple[Acceptance, ...]
    budget: float
    seeds: int = 3

    def verdict(self, runs: Sequence[Mapping[str, float]]) -> Verdict:
        """Return the verdict over the runs of all seeds.

        Args:
            runs: One mapping of measured values per seed.

        Returns:
            ``reproduced`` if every acceptance is met, ``partly`` if some, else ``not reproduced``.
        """
        met = [a.met(runs) for a in self.acceptance]
        return "reproduced" if met and all(met) else "partly" if any(met) else "not reproduced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of a method's quantities of interest, drawn in the report's style.

    Args:
        name: Identifier, unique in the report.
        paint: Draws on an array of matplotlib axes, ``(rows, columns)``.
        caption: Sentences under the figure.
        alt: What it shows, for those who cannot see it.
        rows: Rows of axes.
        columns: Columns of axes.
        height: In inches.
        wide: Whether it takes the whole width of the page.
    """

    name: str
    paint: Callable[[Any], None]
    caption: str
    alt: str
    rows: int = 1
    columns: int = 1
    height: float = 2.9
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[H]):
    """A published method: what it is called, how its pair is built, what its paper claims.

    All texts (``name``, ``title``, ``paper``, ``task``, ``use_when``, ``avoid_when``, ``needs``) are literals in the
    method's file, so that listing imports nothing.

    Args:
        name: File stem, registry name and command-line name.
        title: One line.
        paper: BibTeX key of the entry in the module docstring.
        task: Name of the task.
        hyper: Frozen dataclass, every field with a default, JSON round trip.
        other_tasks: Further tasks whose data it takes.
        imputes: Whether its pair draws missing entries of ``x``, marked by ``x_missing`` in the batch, as latents.
        groups: Whether its pair reads the ``group`` of a row.
        sites: For given hyper-parameters, each latent site and the plates around it, outermost first.
        smoke: Small hyper-parameters, for tests.
        default_data: Bundled data set on which the method is fitted when none is named.
        build: ``build(data, hyper)`` -> the pair.
        engines: Engines that can fit it; the first is the default.
        claims: What the paper says and what is measured here.
        recipe: How it is fitted unless told otherwise.
        summary: ``summary(posterior)`` -> quantities of interest by name (numbers or short strings), for the command
            line and the report.
        use_when: For which data and questions it is a good choice, in sentences.
        avoid_when: For which it is not, and what is better there.
        needs: What the data must hold, and what else is needed.
        figures: ``figures(posterior)`` -> figures of them, for the report.
        prune: ``prune(posterior, ...)`` -> the posterior of a smaller network; of methods that find one.
        compress: ``compress(posterior, ...)`` -> a plain :class:`torch.nn.Module` that predicts.
        transform: ``transform(posterior, batch, ...)`` -> the representation of each row, ``(rows, dimensions)``; of
            methods that represent rows. Takes ``mean`` and ``seed`` where the representation is a draw.
    """

    name: str
    title: str
    paper: str
    task: str
    hyper: type[H]
    sites: Callable[[H], Mapping[str, tuple[str, ...]]]
    smoke: H
    default_data: str
    build: Callable[[Dataset, H], Pair]
    engines: tuple[str, ...] = ("svi",)
    other_tasks: tuple[str, ...] = ()
    imputes: bool = False
    groups: bool = False
    claims: tuple[Claim, ...] = ()
    recipe: Recipe = Recipe()
    summary: Callable[[Posterior], Mapping[str, Any]] | None = None
    use_when: str = ""
    avoid_when: str = ""
    needs: str = ""
    figures: Callable[[Posterior], Sequence[Figure]] | None = None
    prune: Callable[..., Posterior] | None = None
    compress: Callable[..., nn.Module] | None = None
    transform: Callable[..., Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic(Generic[H]):
    """A published method that measures fitted posteriors and has no latents of its own.

    Args:
        name: File stem, registry name and command-line name.
        title: One line.
        paper: BibTeX key of the entry in the module docstring.
        task: Task of the posteriors that it reads.
        hyper: Frozen dataclass, every field with a default, JSON round trip.
        smoke: Small hyper-parameters, for tests.
        measure: ``measure(posteriors, hyper)`` -> measured values by name.
        reads: Methods whose posteriors it reads in tests and by default.
        claims: What the paper says and what is measured here.
    """

    name: str
    title: str
    paper: str
    task: str
    hyper: type[H]
    smoke: H
    measure: Callable[[Sequence[Posterior], H], Mapping[str, Any]]
    reads: tuple[str, ...]
    claims: tuple[Claim, ...] = ()


# ---------------------------------------------------------------------------------- hyper-parameters as JSON
def hyper_to_json(hyper: Any) -> dict[str, Any]:
    """Return a frozen dataclass as JSON-able dict (tuples become lists).

    Args:
        hyper: Instance of a ``Hyper`` dataclass, or ``None`` for a bare pair.

    Returns:
        Field -> value.
    """
    result: dict[str, Any] = {} if hyper is None else json.loads(json.dumps(dataclasses.asdict(hyper)))
    return result


def hyper_from_json(cls: type[H], values: Mapping[str, Any]) -> H:
    """Rebuild hyper-parameters from JSON, checking names and types.

    Args:
        cls: The ``Hyper`` dataclass.
        values: Field -> value; absent fields keep their defaults. Strings are read as the field's type, so that
            command-line options pass through here too.

    Returns:
        An instance of ``cls``.

    Raises:
        DataError: If a field is unknown or a value has another type.
    """
    from zoo.errors import suggest

    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise DataError(f"hyper-parameter '{name}' is unknown{suggest(name, known)}")
    return cls(**{name: _coerce(name, hints[name], value) for name, value in values.items()})


def _coerce(name: str, kind: Any, value: Any) -> Any:
    """Read one JSON or command-line value as a field's annotated type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    wrong = DataError(f"hyper-parameter '{name}' is {value!r}; expected {getattr(kind, '__name__', kind)}")
    if origin is typing.Literal:
        for option in args:
            if value == option or str(value) == str(option):
                return option
        raise wrong
    if origin is tuple:
        items = [v for v in value.strip("()[] ").split(",") if v.strip()] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise wrong
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(name, args[0], v) for v in items)
        if len(items) != len(args):
            raise wrong
        return tuple(_coerce(name, k, v) for k, v in zip(args, items, strict=True))
    if args:  # a union, e.g. float | None
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            if type(None) in args:
                return None
            raise wrong
        for option in args:
            if option is type(None):
                continue
            try:
                return _coerce(name, option, value)
            except DataError:
                continue
        raise wrong
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "yes", "1", "false", "no", "0"):
            return value.lower() in ("true", "yes", "1")
        raise wrong
    if kind in (int, float):
        if isinstance(value, bool):
            raise wrong
        try:
            number = float(value)
            if kind is int and number != int(number):
                raise wrong
            return kind(value) if not isinstance(value, str) else kind(number) if kind is float else int(number)
        except (TypeError, ValueError, OverflowError) as error:
            raise wrong from error
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    return value
