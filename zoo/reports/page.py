"""What stands on the page: a posterior and its diagnosis turned into tables, figures and text."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import ZooError
from zoo.reports import illustrate, rst
from zoo.reports.figures import Drawing
from zoo.reports.parts import Parts
from zoo.reports.words import abbreviated, definitions

if TYPE_CHECKING:
    from zoo.diagnostics import Check, Diagnosis
    from zoo.inference.posterior import Posterior

__all__ = ["Table", "content", "render", "show"]

_OF_TRUSTED_FITS = ("elpd", "standard error", "effective parameters")  # hidden where the fit did not come to its end
_ROWS = 60  # most rows of a site shown one by one
_MOST_VALUES = 12  # of a sequence in one cell of a table
LEVELS = {"usable": "pass", "usable with care": "warn", "do not use": "fail"}
LEVELS |= {"not examined": "skipped", "not meant to be read": "skipped"}
# Check -> figures that show it, best first; the checks' own figures are named in `illustrate`.
_SHOWN = {
    "optimiser_stationarity": ("loss",),
    "r_hat": ("ranks",),
    "ess": ("traces",),
    "divergences": ("pairs",),
    "funnel": ("pairs",),
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page.

    Args:
        header: Column names; the first column names the row.
        rows: Cells as text; a row of one cell is a heading within the table.
        caption: Sentence above it.
        text: Whether its cells are text rather than numbers.
        note: Sentence below it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    text: bool = False
    note: str = ""


def show(value: Any, digits: int = 4) -> str:
    """Return a number or short value as text with few digits.

    Args:
        value: A number, string, sequence or mapping.
        digits: Significant digits.

    Returns:
        The text; en dash for what is absent or not a number.
    """
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, int):
        return f"{value:,}".replace("-", "\N{MINUS SIGN}")
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–" if math.isnan(value) else ("∞" if value > 0 else "\N{MINUS SIGN}∞")
        if value == int(value) and abs(value) < 1e6:
            return f"{int(value):,}".replace("-", "\N{MINUS SIGN}")
        if not 1e-4 <= abs(value) < 1e6:
            text = f"{value:.{digits - 1}e}"
        else:
            text = f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"
        return text.replace("-", "\N{MINUS SIGN}")
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {show(v, digits)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show(v, digits) for v in value)
    return str(value)


# --------------------------------------------------------------------------------------------------------- tables
def posterior_rows(dataset: Any, *, chains: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Summarise the posterior group of an ArviZ export.

    Args:
        dataset: ``xarray.Dataset`` with dimensions ``chain`` and ``draw`` and the plates; ``None`` if there is none.
        chains: Whether the draws are Markov chains, so that R-hat and effective sample sizes mean something.

    Returns:
        One entry per element of the small sites, and one per large site.
    """
    import arviz as az

    from zoo.diagnostics._arviz import tail_ess

    small: list[dict[str, Any]] = []
    large: list[dict[str, Any]] = []
    if dataset is None:
        return small, large
    for name, array in dataset.data_vars.items():
        values = np.asarray(array.transpose("chain", "draw", ...).values)
        if values.dtype.kind not in "fiub":
            continue
        values = values.astype(float)
        shape = values.shape[2:]
        flat = values.reshape(*values.shape[:2], -1)
        pooled = flat.reshape(-1, flat.shape[-1])
        if not flat.shape[-1]:
            continue
        mean, sd = pooled.mean(0), pooled.std(0, ddof=1) if pooled.shape[0] > 1 else np.full(flat.shape[-1], np.nan)
        low, high = np.quantile(pooled, (0.05, 0.95), axis=0)
        if flat.shape[-1] > _ROWS:
            entry = {
                "site": str(name),
                "shape": " × ".join(map(str, shape)),
                "elements": int(flat.shape[-1]),
                "mean": {
                    "5%": float(np.quantile(mean, 0.05)),
                    "50%": float(np.median(mean)),
                    "95%": float(np.quantile(mean, 0.95)),
                },
                "median_sd": float(np.median(sd)),
            }
            if chains:
                some = flat[:, :, np.linspace(0, flat.shape[-1] - 1, min(flat.shape[-1], 500)).astype(int)]
                rhat, ess = (np.array([f(some[:, :, i]) for i in range(some.shape[-1])]) for f in (az.rhat, az.ess))
                entry |= {"r_hat_max": float(np.nanmax(rhat)), "ess_min": float(np.nanmin(ess)), "of": some.shape[-1]}
            large.append(entry)
            continue
        for i, index in enumerate(np.ndindex(shape)):
            row: dict[str, Any] = {
                "site": str(name),
                "element": illustrate.coordinates(array, index),
                "index": index,
                "mean": float(mean[i]),
                "sd": float(sd[i]),
                "5%": float(low[i]),
                "95%": float(high[i]),
            }
            if chains:
                row |= {
                    "r_hat": float(az.rhat(flat[:, :, i])),
                    "ess_bulk": float(az.ess(flat[:, :, i], method="bulk")),
                    "ess_tail": tail_ess(flat[:, :, i]),
                }
            small.append(row)
    return small, large


def _places(rows: Sequence[Mapping[str, Any]]) -> int:
    spreads = [r["sd"] for r in rows if math.isfinite(r["sd"]) and r["sd"] > 0]
    return decimals(float(np.median(spreads)) if spreads else math.nan)


def decimals(sd: float) -> int:
    """Return how many decimals show three digits of a standard deviation.

    Args:
        sd: The standard deviation.

    Returns:
        Between 0 and 8; 3 where it is zero or not finite.
    """
    return min(max(2 - math.floor(math.log10(sd)), 0), 8) if math.isfinite(sd) and sd > 0 else 3


def fixed(value: float, places: int) -> str:
    """Return a number with a fixed count of decimals.

    Args:
        value: The number.
        places: Decimals.

    Returns:
        The text; as :func:`show` where it is not finite.
    """
    if not math.isfinite(value):
        return show(value)
    return f"{value:,.{places}f}".replace("-", "\N{MINUS SIGN}")


def _posterior_table(rows: list[dict[str, Any]], chains: bool) -> Table | None:
    if not rows:
        return None
    header = ("quantity", "mean", "sd", "5%", "95%", *(("R-hat", "ESS bulk", "ESS tail") if chains else ()))
    body: list[tuple[str, ...]] = []
    ordered = [r for r in rows if not r["element"]] + [r for r in rows if r["element"]]
    places = {site: _places([r for r in rows if r["site"] == site]) for site in {r["site"] for r in rows}}
    for i, row in enumerate(ordered):
        if row["element"] and (i == 0 or ordered[i - 1]["site"] != row["site"]):
            body.append((row["site"],))
        numbers = [fixed(row[k], places[row["site"]]) for k in ("mean", "sd", "5%", "95%")]
        if chains:
            numbers += [f"{row['r_hat']:.3f}", f"{row['ess_bulk']:,.0f}", f"{row['ess_tail']:,.0f}"]
        body.append((row["element"] or row["site"], *numbers))
    text = "Posterior mean, standard deviation and 90% interval of each latent or derived quantity"
    return Table(
        header, tuple(body), text + (", with rank-normalised R-hat and effective sample sizes." if chains else ".")
    )


def _large_table(rows: list[dict[str, Any]], chains: bool) -> Table | None:
    if not rows:
        return None
    convergence = ("largest R-hat", "smallest ESS") if chains else ()
    header = ("site", "shape", "5% of means", "median of means", "95% of means", "median sd", *convergence)
    body = []
    for row in rows:
        cells = [
            row["site"],
            row["shape"],
            *(show(row["mean"][k]) for k in ("5%", "50%", "95%")),
            show(row["median_sd"]),
        ]
        if chains:
            cells += [f"{row['r_hat_max']:.3f}", f"{row['ess_min']:,.0f}"]
        body.append(tuple(cells))
    return Table(header, tuple(body), "Sites with many elements, summarised over their elements.")


def interest_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Turn a method's summary into tables.

    Args:
        summary: Quantities by name; a mapping or a list of numbers as value gets columns of its own.

    Returns:
        One table of single values, and one per group of nested values with the same columns.
    """
    flat = {k: v for k, v in summary.items() if not isinstance(v, Mapping)}
    nested: dict[tuple[str, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            nested.setdefault(tuple(map(str, value)), []).append((key, value))
    tables = [Table(("quantity", "value"), tuple((k, show(v)) for k, v in flat.items()))] if flat else []
    for columns, rows in nested.items():
        tables.append(Table(("", *columns), tuple((k, *(show(v) for v in values.values())) for k, values in rows)))
    return tables


# -------------------------------------------------------------------------------------------------------- sections
def _fit_rows(posterior: Posterior, rows_of: Mapping[str, int]) -> list[tuple[str, str]]:
    info = posterior.info
    data = posterior.data
    rows = [("Method", posterior.method.title if posterior.method else posterior.name)]
    counts = ", ".join(f"{n:,} {split}" for split, n in rows_of.items())
    rows.append(("Data", f"{data.name} ({counts} rows)" if counts else data.name))
    if data.columns:
        rows.append(("Features", f"{len(data.columns):,}" + (f"; target {data.target.name}" if data.target else "")))
    if posterior.engine == "nuts":
        shape = next(iter((posterior.chains or {}).values())).shape if posterior.chains else (0, 0)
        sampler = info.get("sampler") or "NUTS"
        rows.append(("Engine", f"NUTS ({sampler}), {shape[0]} chains of {shape[1]:,} draws"))
    else:
        rows.append(("Engine", f"stochastic variational inference, {len(posterior.losses):,} steps"))
    if posterior.seconds is not None:
        rows.append(("Time", f"{show(posterior.seconds, 3)} s"))
    if posterior.engine == "svi":
        what = "Trained parameters" if posterior.pair.finish is None else "Parameters, trained and computed"
        rows.append((what, f"{posterior.num_parameters:,}"))
    latents = posterior.num_latents
    rows.append(("Numbers in a draw", f"{latents:,}" if latents else "none: nothing is latent"))
    if info.get("peak_memory"):
        rows.append(("Peak memory", f"{info['peak_memory'] / 1e6:,.0f} MB, of the process that fitted"))
    for key, label in (
        ("batch_size", "Batch size"),
        ("learning_rate", "Learning rate"),
        ("restarts", "Restarts"),
        ("skipped_steps", "Skipped steps, not finite"),
        ("seed", "Seed"),
        ("fitted_on" if "fitted_on" in info else "device", "Device"),
        ("dtype", "Precision"),
        ("ranks", "Ranks that shared every batch"),
        ("threads", "Threads"),
        ("machine", "Machine"),
        ("started", "Started"),
    ):
        if info.get(key) is not None:
            rows.append((label, show(info[key])))
    if info.get("git"):
        changed = ", with changes" if info["git"].get("changed") else ""
        rows.append(("Code", f"commit {str(info['git'].get('commit'))[:12]}{changed}"))
    if "compiled" in info:
        reason = info.get("reason")
        rows.append(("Compiled", "yes" if info["compiled"] else f"no{f' ({reason})' if reason else ''}"))
    return rows


def split_sizes(data: Any) -> dict[str, int]:
    """Return the rows of each split of a data set.

    Args:
        data: A :class:`~zoo.types.Dataset`.

    Returns:
        Split -> rows, for the splits that exist and have rows.
    """
    sizes = {}
    for name in ("train", "validation", "test"):
        batch = getattr(data, name)
        if batch is not None and "index" in batch:
            sizes[name] = int(batch["index"].shape[0])
    return sizes


def _docstring(posterior: Posterior) -> str:
    from zoo import registry

    entry = next((e for e in registry.entries() if e.name == posterior.name), None) if posterior.method else None
    if entry is None:
        return ""
    return rst.without_bibtex(ast.get_docstring(ast.parse(entry.path.read_text(encoding="utf-8"))) or "")


def _bibtex(posterior: Posterior) -> str:
    from zoo import registry

    if posterior.method is None:
        return ""
    try:
        return registry.bibtex(posterior.name)
    except ZooError:
        return ""


def default_command(posterior: Posterior) -> str:
    """Return the command line that repeats a fit.

    Args:
        posterior: A fit.

    Returns:
        ``info["command"]`` where the fit came from the command line, else the same in terms of ``zoo fit``; empty for a
        pair that is not registered and for a fit that started from given parameters.
    """
    info = posterior.info
    if info.get("command"):
        return str(info["command"])
    if posterior.method is None or info.get("init"):  # from given parameters: no command of this kind
        return ""
    parts = [f"zoo fit {posterior.name} --data {posterior.data.name} --engine {posterior.engine}"]
    if posterior.engine == "svi" and len(posterior.losses):
        parts.append(f"--steps {len(posterior.losses)}")
    if info.get("seed") is not None:
        parts.append(f"--seed {info['seed']}")
    default = posterior.method.hyper()
    for field in dataclasses.fields(default):
        value = getattr(posterior.hyper, field.name, None)
        if value != getattr(default, field.name):
            parts.append(f"--hyper {field.name}={_option(value)}")
    return " ".join(parts)


def _option(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


# --------------------------------------------------------------------------------------------------------- content
def content(
    posterior: Posterior, diagnosis: Diagnosis, *, seed: int = 0, num_draws: int = 1_000
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Collect everything that the page and its JSON hold.

    Args:
        posterior: A fit.
        diagnosis: What :func:`zoo.diagnostics.diagnose` returned for it.
        seed: Of every draw behind the page.
        num_draws: Posterior draws behind the tables.

    Returns:
        Values for the template, and the JSON document.
    """
    from zoo import __version__
    from zoo.reports.effects import show_effects

    parts = Parts()
    chains = posterior.engine == "nuts"
    data = posterior.data
    sizes = split_sizes(data)
    exported, omitted = parts.make("the posterior", lambda: _exported(posterior, seed, num_draws), (None, []))
    small, large = parts.make("the table of the posterior", lambda: posterior_rows(exported, chains=chains), ([], []))
    effects = parts.make("the effects of the features", lambda: show_effects(posterior, seed=seed), None)
    summary = parts.make("the method's quantities", lambda: dict(posterior.summary()), {})
    measured, why = parts.make("the scores", lambda: _measured(posterior, seed), ({}, ""))
    own = illustrate.checks(posterior, diagnosis, parts)
    drawn = {d.name: d for d in illustrate.inference(posterior, exported, small, parts)}
    checks = [_check(c, meaningless=_meaningless(diagnosis)) for c in diagnosis.checks]
    groups = _grouped(checks, diagnosis, drawn, own)
    placed = {c["drawing"].name for group in groups for c in group["checks"] if c["drawing"] is not None}
    figures = {
        "effects": [effects.drawing] if effects is not None else [],
        "interest": illustrate.interest(posterior, parts),
        "checks": [c["drawing"] for group in groups for c in group["checks"] if c["drawing"] is not None],
        "posterior": illustrate.posterior_figures(small, parts),
        "inference": [d for d in (*drawn.values(), *own.values()) if d.name not in placed],
    }
    numbers = {d.name: i for i, d in enumerate((d for group in figures.values() for d in group), 1)}
    method, info = posterior.method, dict(posterior.info)
    title = method.title if method else posterior.name
    command = default_command(posterior)
    bibtex = _bibtex(posterior)
    docstring = _docstring(posterior)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    scores = _score_table(measured)
    hyper = _hyper_table(posterior)
    interest = interest_tables(summary)
    count = {level: sum(c["level"] == level for c in checks) for level in ("pass", "warn", "fail", "skipped")}
    answered = [{**a.to_json(), "level": LEVELS[a.use]} for a in diagnosis.answers]
    words = {"pass": "passed", "warn": "warned", "fail": "failed", "skipped": "did not run"}
    tally = ", ".join(f"{n} {words[level]}" for level, n in count.items() if n)
    contents = [
        ("effects", "Effects"),
        ("fit", "What was fitted"),
        ("interest", "Quantities of interest"),
        ("checks", "Checks"),
        ("posterior", "Posterior"),
    ]
    contents += [
        ("inference", "Inference"),
        ("predictions", "Predictions"),
        ("model", "Model"),
        ("data", "Data"),
        ("cite", "Repeat and cite"),
    ]
    absent = {
        "effects": effects is None,
        "interest": not (interest or figures["interest"]),
        "inference": not figures["inference"],
        "predictions": not (scores or why),
        "model": not docstring,
    }
    versions = {"pyro-zoo": __version__, **{k: str(v) for k, v in dict(info.get("versions") or {}).items()}}
    page = {
        "title": title,
        "kind": "Posterior report",
        "skip": ("checks", "the checks"),
        "lede": _lede(posterior, sizes),
        "verdict": {
            "level": LEVELS[diagnosis.verdict],
            "word": diagnosis.verdict.capitalize(),
            "uses": [(a["question"], a["use"], a["level"]) for a in answered],
            "answers": answered,
            "reasons": list(diagnosis.reasons),
            "more": [r for r in diagnosis.reasons if not any(r in a["reason"] for a in answered)],
            "note": f"Of {len(checks)} checks {tally}." if checks else "No check was made.",
        },
        "contents": [(id_, name) for id_, name in contents if not absent.get(id_)],
        "effects": effects,
        "unread": any(a.name == "parameters" and a.use == "do not use" for a in diagnosis.answers),
        "fit": _fit_rows(posterior, sizes),
        "hyper": hyper,
        "interest": interest,
        "interest_figures": figures["interest"],
        "overview": [c for group in groups for c in group["checks"]],
        "groups": groups,
        "skipped": [c for c in checks if c["level"] == "skipped"],
        "posterior": {
            "table": _posterior_table(small, chains),
            "large": _large_table(large, chains),
            "notes": _left_out(large, omitted),
            "figures": figures["posterior"],
            "beside": not chains,
        },
        "inference_figures": figures["inference"],
        "prediction_note": f"No predictions: {why}." if why else "",
        "scores": scores,
        "model": rst.to_html(docstring) if docstring else "",
        "about": {k: getattr(method, k) if method else "" for k in ("use_when", "avoid_when")},
        "data": _data_rows(data),
        "command": command,
        "cite_text": f"Cite the paper of the method{', and the software with its version' if method else ''}.",
        "bibtex": bibtex,
        "versions": list(versions.items()),
        "version": __version__,
        "date": date,
        "numbers": numbers,
        "missing": list(parts.missing.items()),
    }
    document = {
        "format": "pyro-zoo report 1",
        "method": posterior.name,
        "title": title,
        **diagnosis.to_json(),
        "scores": measured,
        "effects": None if effects is None else effects.to_json(),
        "quantities": summary,
        "posterior": small,
        "large_sites": large,
        "missing": parts.to_json(),
        "fit": {"engine": posterior.engine, "seed": seed, **info},
        "hyper": {} if posterior.hyper is None else dataclasses.asdict(posterior.hyper),
        "data": {
            "name": data.name,
            "rows": sizes,
            "source": data.source,
            "licence": data.licence,
            "origin": data.origin,
        },
        "command": command,
        "bibtex": bibtex,
        "versions": versions,
        "date": date,
    }
    return page, document


def render(page: Mapping[str, Any], template: str = "report.html.j2") -> str:
    """Fill a template.

    Args:
        page: Values from :func:`content`.
        template: Its name.

    Returns:
        One HTML document that loads nothing.
    """
    import jinja2

    folder = resources.files("zoo.reports") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["abbr"] = abbreviated
    css = (folder / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(**page, css=css)


def _lede(posterior: Posterior, sizes: Mapping[str, int]) -> str:
    rows = f"{sizes['train']:,} training rows" if "train" in sizes else "one datum"
    engine = "NUTS" if posterior.engine == "nuts" else "stochastic variational inference"
    seconds = posterior.seconds
    time = f" in {show(seconds, 3)} s" if seconds is not None else ""
    return f"Fitted to {posterior.data.name} ({rows}) by {engine}{time}."


def _hyper_table(posterior: Posterior) -> Table | None:
    if posterior.method is None or posterior.hyper is None:
        return None
    rows = []
    default = posterior.method.hyper()
    for field in dataclasses.fields(posterior.hyper):
        value, usual = getattr(posterior.hyper, field.name), getattr(default, field.name)
        rows.append((field.name, _plain(value) + (f" (default {_plain(usual)})" if value != usual else "")))
    return Table(("hyper-parameter", "value"), tuple(rows)) if rows else None


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        shown = list(map(str, value))
        if len(shown) > _MOST_VALUES:
            shown = [*shown[: _MOST_VALUES // 2], f"… ({len(shown)} values)"]
        return ", ".join(shown) or "–"
    return "–" if value is None else str(value)


def _data_rows(data: Any) -> list[tuple[str, str]]:
    rows = [("Name", data.name)]
    for label, value in (("About", data.description), ("Source", data.source), ("Licence", data.licence)):
        rows.append((label, value or "not stated"))
    if data.target is not None and data.target.categories:
        rows.append(("Classes", f"{len(data.target.categories)}"))
    if data.origin == "user":
        rows.append(("Origin", "the user's own; stored with the posterior"))
    rows += [("Note", note) for note in data.extra.get("notes", ())]
    return rows


def _left_out(large: Sequence[Mapping[str, Any]], omitted: Sequence[str]) -> list[str]:
    notes = []
    if large:
        total = sum(row["elements"] for row in large)
        notes.append(f"{total:,} elements in large sites are summarised, not listed; the saved posterior holds them.")
    return [*notes, *(f"Left out: {text.rstrip('.')}." for text in omitted)]


def _exported(posterior: Posterior, seed: int, num_draws: int) -> tuple[Any, list[str]]:
    """Return the posterior group of the ArviZ export, and sentences on what it leaves out; no group without latents."""
    found = posterior.to_arviz(num_draws=num_draws, seed=seed)
    return getattr(found, "posterior", None), json.loads(found.attrs.get("left_out", "[]"))


def _measured(posterior: Posterior, seed: int) -> tuple[dict[str, dict[str, float]], str]:
    # A fit that cannot predict says why instead.
    try:
        return illustrate.scores(posterior, seed=seed), ""
    except ZooError as error:
        return {}, str(error).rstrip(".")


def _score_table(scores: Mapping[str, Mapping[str, Any]]) -> Table | None:
    if not scores:
        return None
    names = list(dict.fromkeys(k for v in scores.values() for k in v))
    rows = tuple((name.replace("_", " "), *(show(v.get(name)) for v in scores.values())) for name in names)
    return Table(
        ("score", *scores),
        rows,
        "Scores of the posterior predictive distribution on rows held out of the fit.",
        note=definitions(row[0] for row in rows),
    )


def _meaningless(diagnosis: Diagnosis) -> bool:
    """Say whether the fit did not come to its end, so that what is computed from its draws measures nothing."""
    return bool(diagnosis.answers) and diagnosis.answers[0].use == "do not use"


def _check(check: Check, *, meaningless: bool = False) -> dict[str, Any]:
    level = "skipped" if check.verdict == "not run" else check.verdict
    value = check.value
    if meaningless and check.about != "parameters" and isinstance(value, Mapping):
        value = {k: v for k, v in value.items() if "p-value" not in k and k not in _OF_TRUSTED_FITS}
    headline = value
    if isinstance(value, Mapping):
        headline = next((f"{k}: {show(v, 3)}" for k, v in value.items()), None)
        value = " · ".join(f"{k}: {show(v, 3)}" for k, v in value.items())
    return {
        "name": check.name,
        "title": check.title,
        "about": check.about,
        "verdict": check.verdict,
        "level": level,
        "headline": "" if headline is None else show(headline, 3),
        "value": "" if value is None else show(value, 3),
        "threshold": check.threshold.rstrip("."),
        "source": check.source.rstrip("."),
        "explanation": check.explanation,
        "meaning": check.meaning,
        "drawing": None,
        "figure": None,
    }


def _grouped(
    checks: Sequence[dict[str, Any]], diagnosis: Diagnosis, drawn: Mapping[str, Drawing], own: Mapping[str, Drawing]
) -> list[dict[str, Any]]:
    """Group the checks that ran by what they concern, and put each figure beside the first check that it shows."""
    placed: set[str] = set()
    groups = []
    for about, (title, use) in {
        "parameters": ("Posterior of the parameters", diagnosis.parameters),
        "predictions": ("Predictions", diagnosis.predictions),
        "comparison": ("Comparison with other models", None),
    }.items():
        mine = [c for c in checks if c["about"] == about and c["level"] != "skipped"]
        for c in mine:
            options = [drawn[name] for name in _SHOWN.get(c["name"], ()) if name in drawn]
            options += [own[c["name"]]] if c["name"] in own else []
            fresh = [d for d in options if d.name not in placed]
            if fresh:
                c["drawing"] = fresh[0]
                placed.add(fresh[0].name)
            elif options:
                c["figure"] = options[0].name
        if mine:
            groups.append({"title": title, "use": use, "level": LEVELS[use] if use else "", "checks": mine})
    return groups
