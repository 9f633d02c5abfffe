"""Contenders that take steps of stochastic variational inference, all with Adam at the same rate."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from benchmarks.cases import SviCase

__all__ = ["BASE", "CONTENDERS", "Contender", "make"]

RATE = 1e-3
SCAN = 100


class Contender(Protocol):
    """What takes steps.

    Attributes:
        chunk: Steps that it takes at a time.
        note: What the reader of its figures should know.
    """

    chunk: int
    note: str

    def run(self, steps: int) -> None:
        """Take steps and wait for their end."""

    def first_loss(self) -> float:
        """Go back to the initial parameters, and return the loss of the step taken there, with fresh noise."""


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}


class _Pyro:
    """``SVI.step``, or ``zoo.compile_svi`` in its place."""

    chunk, note = 1, ""

    def __init__(self, case: SviCase, *, validate: bool, jit: bool = False, compiled: bool = False) -> None:
        import pyro
        import torch
        from pyro import infer

        pyro.enable_validation(validate)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        batch = _tensors(case.batch())
        model, guide = case.pyro(_tensors(case.initial()))[:2]
        guide(batch)
        model(batch)
        self.params = dict(pyro.get_param_store()._params)
        self.start = {n: p.detach().clone() for n, p in self.params.items()}
        name = {"trace": "Trace_ELBO", "enum": "TraceEnum_ELBO"}[case.estimator]
        nesting = {"max_plate_nesting": 1} if case.estimator == "enum" else {}
        optim = pyro.optim.Adam({"lr": RATE})
        step: Any
        arguments: tuple[Any, ...] = (batch,)
        if jit:
            # Only tensors are inputs of a jitted ELBO; a dictionary would be frozen into it.
            keys, arguments = tuple(batch), tuple(batch.values())
            elbo = getattr(infer, f"Jit{name}")(num_particles=case.particles, ignore_jit_warnings=True, **nesting)
            step = infer.SVI(
                lambda *v: model(dict(zip(keys, v, strict=True))),
                lambda *v: guide(dict(zip(keys, v, strict=True))),
                optim,
                elbo,
            ).step
        else:
            elbo = getattr(infer, name)(num_particles=case.particles, **nesting)
            if compiled:
                import zoo

                step = zoo.compile_svi(model, guide, loss=elbo, optim=optim)
            else:
                step = infer.SVI(model, guide, optim, elbo).step
        self.step: Callable[[], Any] = lambda: step(*arguments)
        self.no_grad = torch.no_grad
        self.step()
        if compiled and step.reason:
            self.note = f"runs eagerly: {step.reason}"

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def first_loss(self) -> float:
        with self.no_grad():
            for name, value in self.start.items():
                self.params[name].copy_(value)
        return float(self.step())


class _Trainer:
    """What ``zoo.fit`` runs: the whole step, optimiser included, in one graph."""

    chunk, note = 1, ""

    def __init__(self, case: SviCase) -> None:
        from zoo.inference.svi import Trainer
        from zoo.types import Alternating, Elbo, Pair, Recipe

        pair = Pair(*case.pyro(_tensors(case.initial())))
        if not isinstance(pair.objective, Alternating):
            pair = pair._replace(
                objective=Elbo(
                    estimator=case.estimator,  # type: ignore[arg-type]
                    num_particles=case.particles,
                    max_plate_nesting=1 if case.estimator == "enum" else None,
                )
            )
        recipe = Recipe(
            steps=1_000_000, learning_rate=RATE, batch_size=None, optimizer="adam", schedule="constant",
            warmup=0.0, kl_warmup=0.0, clip_norm=None, weight_decay=0.0,
        )  # fmt: skip
        self.trainer = Trainer(pair, _tensors(case.batch()), recipe=recipe)
        self.start = self.trainer.state.copy()
        self.trainer.run(1)
        if not self.trainer.program.compiled:
            self.note = f"runs eagerly: {self.trainer.program.reason}"

    def run(self, steps: int) -> None:
        while steps:
            count = min(steps, 1_000)
            self.trainer.run(count)
            steps -= count

    def first_loss(self) -> float:
        state = self.start.copy()
        state.rng = self.trainer.state.rng
        self.trainer.state = state
        return float(self.trainer.run(1)[0, 0])


class _Torch:
    """PyTorch as written by hand, with the fused Adam."""

    chunk, note = 1, ""

    def __init__(self, case: SviCase, *, compiled: bool) -> None:
        import torch
        from torch.nn import functional as F

        if case.torch is None:
            raise LookupError("no hand-written version")
        torch.manual_seed(0)
        write, positive, batch = case.torch, case.positive, _tensors(case.batch())
        self.start = {
            n: v + torch.log(-torch.expm1(-v)) if n in positive else v for n, v in _tensors(case.initial()).items()
        }
        self.params = {n: v.clone().requires_grad_(True) for n, v in self.start.items()}
        optim = torch.optim.Adam(list(self.params.values()), lr=RATE, fused=True)

        def loss_of(params: Any, batch: Any) -> Any:
            return write({n: F.softplus(v) if n in positive else v for n, v in params.items()}, batch)

        function = torch.compile(loss_of) if compiled else loss_of

        def step() -> Any:
            optim.zero_grad()
            loss = function(self.params, batch)
            loss.backward()
            optim.step()
            return loss

        self.step = step
        self.no_grad = torch.no_grad
        self.step()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def first_loss(self) -> float:
        with self.no_grad():
            for name, value in self.start.items():
                self.params[name].copy_(value)
        return float(self.step().detach())


class _NumPyro:
    """NumPyro's ``SVI.update`` under ``jit``: one step a call, or many under ``lax.scan``."""

    note = ""

    def __init__(self, case: SviCase, *, scan: bool) -> None:
        import jax
        import jax.numpy as jnp
        from numpyro import optim
        from numpyro.infer import SVI, Trace_ELBO

        if case.numpyro is None:
            raise LookupError("no version for NumPyro")
        self.jax, self.chunk = jax, SCAN if scan else 1
        self.batch = {k: jnp.asarray(v) for k, v in case.batch().items()}
        model, guide = case.numpyro({k: jnp.asarray(v) for k, v in case.initial().items()})
        svi = SVI(model, guide, optim.Adam(RATE), Trace_ELBO(num_particles=case.particles))
        self.start = self.state = svi.init(jax.random.PRNGKey(0), self.batch)
        self.draw = 0
        if scan:
            self.step = jax.jit(
                lambda state, batch: jax.lax.scan(lambda s, _: svi.update(s, batch), state, None, length=SCAN)
            )
        else:
            self.step = jax.jit(svi.update)
        self.run(self.chunk)

    def run(self, steps: int) -> None:
        state = self.state
        for _ in range(steps // self.chunk):
            state, loss = self.step(state, self.batch)
        self.jax.block_until_ready((state, loss))
        self.state = state

    def first_loss(self) -> float:
        self.draw += 1
        key = self.jax.random.PRNGKey(self.draw)
        self.state, loss = self.step(self.start._replace(rng_key=key), self.batch)
        return float(loss.reshape(-1)[0])


_TORCH, _JAX = ("torch", "pyro", "zoo"), ("jax", "numpyro", "numpyro.infer")

# Name -> (what a reader is told, what is imported before the clock starts, how it is made).
CONTENDERS: dict[str, tuple[str, tuple[str, ...], Callable[[SviCase], Contender]]] = {
    "zoo": ("zoo, step of `zoo.fit`", (*_TORCH, "zoo.inference.svi"), _Trainer),
    "zoo_compile_svi": ("zoo, `zoo.compile_svi`", _TORCH, lambda c: _Pyro(c, validate=False, compiled=True)),
    "pyro": ("Pyro `SVI.step`, as shipped", _TORCH[:2], lambda c: _Pyro(c, validate=True)),
    "pyro_fast": ("Pyro `SVI.step`, validation off", _TORCH[:2], lambda c: _Pyro(c, validate=False)),
    "pyro_jit": ("Pyro `JitTrace_ELBO`, validation off", _TORCH[:2], lambda c: _Pyro(c, validate=False, jit=True)),
    "torch": ("PyTorch by hand, eager", _TORCH[:1], lambda c: _Torch(c, compiled=False)),
    "torch_compile": ("PyTorch by hand, `torch.compile`", _TORCH[:1], lambda c: _Torch(c, compiled=True)),
    "numpyro": ("NumPyro, `jit`", _JAX, lambda c: _NumPyro(c, scan=False)),
    "numpyro_scan": (f"NumPyro, `lax.scan` over {SCAN}", _JAX, lambda c: _NumPyro(c, scan=True)),
}
BASE = "zoo"


def make(name: str) -> Callable[[SviCase], Contender]:
    """Import what a contender needs, and return what sets it up.

    Args:
        name: Of the contender.

    Returns:
        Its constructor.
    """
    _, imports, build = CONTENDERS[name]
    for module in imports:
        importlib.import_module(module)
    return build
