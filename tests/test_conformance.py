"""Every method of the registry keeps the zoo's promises; nothing here lists a method by hand."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI

import zoo
from zoo import registry, tasks
from zoo.inference.objectives import to_pyro
from zoo.inference.program import pyro_world, seeded, stream
from zoo.inference.svi import Trainer
from zoo.types import Alternating, Dataset, Diagnostic, Method, Pair, hyper_from_json, hyper_to_json

ROOT = Path(__file__).parent.parent
NAMES = registry.names()
METHODS = [e.name for e in registry.entries() if e.kind == "method"]
DTYPES = {torch.float32: 1e-4, torch.float64: 1e-9}


def each(names: list[str] | tuple[str, ...]) -> Any:
    """Parametrise over names, one worker per name, so that a pair is compiled once."""
    return pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in names])


@cache
def method(name: str) -> Method[Any]:
    found = zoo.get(name)
    assert isinstance(found, Method)
    return found


@cache
def data(name: str) -> Dataset:
    """The method's default data, cut to few rows."""
    whole = zoo.datasets.load(method(name).default_data)
    if "index" not in whole.train or whole.num_data <= 256:
        return whole
    rows = torch.arange(256)
    few = {k: v if k in whole.whole else v[rows] for k, v in whole.train.items()}
    return replace(whole, train=few | {"index": rows}, origin="user")


def pair(name: str, dtype: torch.dtype = torch.float32) -> Pair:
    with pyro_world(dtype=dtype), stream(seeded(0)):
        return method(name).build(data(name), method(name).smoke)


def batch(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in data(name).train.items()}


def svi(name: str) -> bool:
    return "svi" in method(name).engines


@cache
def trainer(name: str, dtype: torch.dtype, compiled: bool) -> Trainer:
    recipe = replace(method(name).recipe, steps=300, batch_size=64 if data(name).num_data > 64 else None)
    return Trainer(
        pair(name, dtype), batch(name, dtype), whole=data(name).whole, recipe=recipe, dtype=dtype, compile=compiled
    )


@cache
def first_losses(name: str, dtype: torch.dtype, compiled: bool) -> torch.Tensor:
    return trainer(name, dtype, compiled).run(20)


@cache
def fitted(name: str) -> zoo.Posterior:
    if svi(name):
        return zoo.fit(
            name, data(name), hyper=method(name).smoke, engine="svi", steps=100, batch_size=64, seed=3, compile=False
        )
    return zoo.fit(name, data(name), hyper=method(name).smoke, engine="nuts", chains=1, tune=200, draws=100, seed=3)


# --------------------------------------------------------------------------------------------------- paperwork
@each(NAMES)
def test_entry_is_the_method(name: str) -> None:
    entry = next(e for e in registry.entries() if e.name == name)
    found = zoo.get(name)
    assert (found.name, found.title, found.paper, found.task) == (entry.name, entry.title, entry.paper, entry.task)
    assert found.task in tasks.names()
    assert isinstance(found, Diagnostic) or found.default_data in zoo.datasets.names()


@each(NAMES)
def test_hyper_is_frozen_has_defaults_and_survives_json(name: str) -> None:
    found = zoo.get(name)
    for hyper in (found.hyper(), found.smoke):
        assert hyper_from_json(found.hyper, json.loads(json.dumps(hyper_to_json(hyper)))) == hyper
    field = dataclasses.fields(found.hyper)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(found.smoke, field, None)


@each(NAMES)
def test_is_cited_documented_and_tested(name: str) -> None:
    assert registry.bibtex(name).startswith("@")
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8"), "no row in the README"
    assert (ROOT / "docs" / f"{name}.md").is_file()
    assert (ROOT / "tests" / "models" / f"test_{name}.py").is_file()
    assert zoo.get(name).claims, "a method says what its paper claims"


@each(METHODS)
def test_says_when_to_use_it_and_what_it_needs(name: str) -> None:
    entry = next(e for e in registry.entries() if e.name == name)
    call = next(
        node.value
        for node in ast.parse(entry.path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "METHOD"
    )
    assert isinstance(call, ast.Call)
    literals = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    for field in ("use_when", "avoid_when", "needs"):
        text = literals.get(field)
        assert isinstance(text, str), f"{field} of METHOD must be a literal string"
        assert len(text.split()) >= 8, f"{field} says too little"
        assert text.endswith(".")


@each(NAMES)
def test_public_names(name: str) -> None:
    module = importlib.import_module(f"zoo.models.{name}")
    assert {"METHOD", "Hyper", "build"} <= set(module.__all__) or {"DIAGNOSTIC", "Hyper"} <= set(module.__all__)
    assert all(hasattr(module, n) for n in module.__all__)


# ------------------------------------------------------------------------------------------------ model and guide
@each(METHODS)
@pytest.mark.parametrize("which", ["default", "smoke"])
def test_sites_and_plates_are_as_declared(name: str, which: str) -> None:
    found = method(name)
    hyper = found.smoke if which == "smoke" else found.hyper()
    rows = batch(name)
    with pyro_world(validate=True), stream(seeded(0)), pyro.get_param_store().scope():
        own = found.build(data(name), hyper)
        model = poutine.trace(own.model).get_trace(rows)
        guide = poutine.trace(own.guide).get_trace(rows) if own.guide is not None else None
        drawn = poutine.trace(own.drawing).get_trace(rows) if own.finish is not None else None
    subsamples = {n for n, s in model.nodes.items() if type(s.get("fn")).__name__ == "_Subsample"}
    latents = {n: s for n, s in model.nodes.items() if n in model.stochastic_nodes and n not in subsamples}
    plates = {n: tuple(f.name for f in s["cond_indep_stack"]) for n, s in latents.items()}
    declared = {n: tuple(p) for n, p in found.sites(hyper).items()}
    assert {n: set(p) for n, p in plates.items()} == {n: set(p) for n, p in declared.items()}
    for trace in filter(None, (guide, drawn)):
        covered = {
            n for n in trace.stochastic_nodes if n not in subsamples and not trace.nodes[n]["infer"].get("is_auxiliary")
        }
        enumerated = {n for n, s in latents.items() if s["infer"].get("enumerate") == "parallel"}
        assert covered == set(latents) - enumerated


@each(METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_density_is_finite_and_of_the_asked_type(name: str, dtype: torch.dtype) -> None:
    rows, own = batch(name, dtype), pair(name, dtype)
    with pyro_world(dtype=dtype, validate=True), stream(seeded(1)), pyro.get_param_store().scope():
        trace = poutine.trace(own.model).get_trace(rows)
        if own.guide is not None:
            guide = poutine.trace(own.guide).get_trace(rows)
            trace = poutine.trace(poutine.replay(own.model, trace=guide)).get_trace(rows)
        total = trace.log_prob_sum()
    assert total.dtype == dtype
    assert bool(torch.isfinite(total))


@each(METHODS)
def test_model_without_targets_samples_them(name: str) -> None:
    prediction = fitted(name).predict(n=3)
    assert prediction.samples
    for value in prediction.samples.values():
        assert value.shape[0] == 3
        assert bool(torch.isfinite(value.float()).all())
    if "y" in data(name).train:
        without = {k: v for k, v in data(name).train.items() if k != "y"}
        blind = fitted(name).predict(without, n=3)
        assert {k: v.shape for k, v in blind.samples.items()} == {k: v.shape for k, v in prediction.samples.items()}


# -------------------------------------------------------------------------------------------------------- fits
@each([n for n in METHODS if svi(n)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_equals_eager(name: str, dtype: torch.dtype) -> None:
    compiled = trainer(name, dtype, True)
    assert compiled.program.compiled, compiled.program.reason
    a, b = first_losses(name, dtype, True), first_losses(name, dtype, False)
    assert float(((a - b) / b).abs().max()) <= DTYPES[dtype]


@each([n for n in METHODS if svi(n)])
def test_loss_improves(name: str) -> None:
    # Without warm-up: while the weight of the latent terms rises, losses are of different objectives.
    recipe = replace(method(name).recipe, steps=200, kl_warmup=0.0, warmup=0.0)
    found = Trainer(pair(name), batch(name), whole=data(name).whole, recipe=recipe, compile=False)
    losses = found.run(200)
    if not isinstance(found.pair.objective, Alternating):
        assert float(losses[-20:].mean()) < float(losses[:10].mean())


@each([n for n in METHODS if svi(n)])
def test_plain_pyro_trains_the_lifted_pair(name: str) -> None:
    own, rows = pair(name), batch(name)
    if isinstance(own.objective, Alternating):
        pytest.skip("several losses: there is no single SVI loop for it")
    recipe = method(name).recipe
    loop = SVI(own.model, own.guide, pyro.optim.Adam({"lr": recipe.learning_rate}), to_pyro(own.objective))
    losses = [loop.step(rows) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])


@each(METHODS)
def test_a_seed_decides_and_nothing_global_changes(name: str) -> None:
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = fitted(name)
    assert torch.equal(torch.get_rng_state(), before)
    fitted.cache_clear()
    again = fitted(name)
    assert set(pyro.get_param_store().keys()) == {"mine"}
    assert torch.get_default_dtype() == torch.float32
    a, b = first.draws(5), again.draws(5)
    assert all(torch.equal(a[k], b[k]) for k in a)


@each(METHODS)
def test_saved_equals_loaded_in_a_new_process(name: str, tmp_path: Path) -> None:
    posterior = fitted(name)
    posterior.save(tmp_path / "p")
    script = (
        "import sys, zoo; from safetensors.torch import save_file\n"
        "p = zoo.load(sys.argv[1]); save_file(dict(p.predict(n=4, seed=5).samples), sys.argv[2])\n"
    )
    out = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "p"), str(out)], check=True, cwd=ROOT)
    from safetensors.torch import load_file

    mine, theirs = posterior.predict(n=4, seed=5).samples, load_file(out)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@each(METHODS)
def test_arviz_dims_come_from_plates(name: str) -> None:
    idata = fitted(name).to_arviz(num_draws=20)
    declared = method(name).sites(method(name).smoke)
    for site, plates in declared.items():
        if site in idata.posterior:
            dims = idata.posterior[site].dims
            assert dims[:2] == ("chain", "draw")
            assert set(plates) <= set(dims), f"{site} has {dims}"
    assert set(idata.observed_data.data_vars).isdisjoint(declared)
    entries = {n for name in idata.log_likelihood.data_vars for n in name.split("+")}  # a joint weight names all
    assert entries == set(idata.observed_data.data_vars)
