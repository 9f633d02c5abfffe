"""Contenders that sample with NUTS: four chains, a diagonal metric, the same numbers of draws, double precision."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import cases
from benchmarks.cases import NutsCase

__all__ = ["BASE", "CONTENDERS", "NutsWorker"]

CHAINS = 4
_DEPTH, _PYRO_DRAWS = 5, 3
_LEAPFROGS: int = 2**_DEPTH - 1


class _Zoo:
    """``zoo.fit(engine="nuts")``."""

    def __init__(self, case: NutsCase) -> None:
        import torch

        self.case = case
        self.batch = {k: torch.from_numpy(np.array(v)) for k, v in case.batch().items()}

    def sample(self, seed: int, draws: int) -> tuple[dict[str, np.ndarray], float, int, int]:
        """Return draws by site, the seconds of sampling, the leapfrog steps, and the divergences."""
        import zoo

        fit = zoo.fit(
            zoo.Pair(self.case.pyro), self.batch, engine="nuts", chains=CHAINS, draws=draws, tune=draws, seed=seed
        )
        info, chains = fit.info, fit.chains
        assert chains is not None
        found = {site: chains[site].double().numpy() for site in self.case.sites}
        return found, float(info["seconds"]["sample"]), int(info["evaluations"]), int(info["divergences"])


class _NumPyro:
    """NumPyro's NUTS kernel in one compiled loop per chain, which is compiled once for all repeats.

    ``MCMC.run`` traces the model anew at every call, and ``pmap`` compiles anew; the loop here is what it compiles.
    """

    def __init__(self, case: NutsCase, method: str) -> None:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        self.jax, self.case, self.method = jax, case, method
        self.batch = {k: jnp.asarray(v) for k, v in case.batch().items()}
        self.programs: dict[int, Callable[..., Any]] = {}

    def _program(self, draws: int) -> Callable[..., Any]:
        from numpyro.infer import NUTS
        from numpyro.infer.util import initialize_model

        jax, random = self.jax, self.jax.random
        start = initialize_model(random.split(random.PRNGKey(0), CHAINS), self.case.numpyro, model_args=(self.batch,))
        kernel = NUTS(potential_fn=start.potential_fn)

        def chain(key: Any, point: Any) -> Any:
            state = kernel.init(key, draws, point, (), {})

            def step(state: Any, _: Any) -> Any:
                state = kernel.sample(state, (), {})
                return state, (state.z, state.num_steps, state.diverging)

            state, (values, steps, diverging) = jax.lax.scan(step, state, None, length=2 * draws)
            kept = {k: v[draws:] for k, v in values.items()}
            return kept, steps.sum(), diverging[draws:].sum()

        point = start.param_info.z
        if self.method == "sequential":
            one = jax.jit(chain)

            def run(keys: Any) -> Any:
                found = [one(keys[k], jax.tree.map(lambda v, k=k: v[k], point)) for k in range(CHAINS)]
                return jax.tree.map(lambda *v: np.stack(v), *found)

        else:
            mapped = jax.pmap(chain) if self.method == "parallel" else jax.jit(jax.vmap(chain))

            def run(keys: Any) -> Any:
                return mapped(keys, point)

        self.constrain = jax.jit(jax.vmap(jax.vmap(start.postprocess_fn)))
        return run

    def sample(self, seed: int, draws: int) -> tuple[dict[str, np.ndarray], float, int, int]:
        """Return draws by site, the seconds of sampling, the leapfrog steps, and the divergences."""
        if draws not in self.programs:
            self.programs[draws] = self._program(draws)
        keys = self.jax.random.split(self.jax.random.PRNGKey(seed + 1), CHAINS)
        began = time.perf_counter()
        kept, steps, diverging = self.jax.block_until_ready(self.programs[draws](keys))
        passed = time.perf_counter() - began
        values = self.constrain(kept)
        found = {site: np.asarray(values[site]) for site in self.case.sites}
        return found, passed, int(np.sum(steps)), int(np.sum(diverging))


class _Pyro:
    """Pyro's NUTS; only what one leapfrog step costs is measured, in trees of known depth."""

    def __init__(self, case: NutsCase) -> None:
        import torch

        torch.set_default_dtype(torch.float64)
        self.case = case
        self.batch = {k: torch.from_numpy(np.array(v)) for k, v in case.batch().items()}

    def leapfrog(self, seed: int) -> float:
        """Return the seconds of one leapfrog step."""
        import pyro
        from pyro.infer import MCMC, NUTS

        pyro.set_rng_seed(seed)
        # With so small a step no tree turns back, so each takes 2 ** depth - 1 leapfrog steps.
        kernel = NUTS(
            self.case.pyro, step_size=1e-6, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=_DEPTH
        )
        run = MCMC(kernel, num_samples=_PYRO_DRAWS, warmup_steps=1, disable_progbar=True)
        began = time.perf_counter()
        run.run(self.batch)
        passed = time.perf_counter() - began
        return passed / ((_PYRO_DRAWS + 1) * _LEAPFROGS)


# Name -> (what a reader is told, what is imported before the clock starts, how it is made).
CONTENDERS: dict[str, tuple[str, tuple[str, ...], Callable[[NutsCase], Any]]] = {
    "nuts_zoo": ('zoo, `zoo.fit(engine="nuts")`', ("torch", "pyro", "zoo", "nutpie", "zoo.inference.nuts"), _Zoo),
    "nuts_numpyro_parallel": (
        "NumPyro, chains in parallel",
        ("jax", "numpyro", "numpyro.infer"),
        lambda c: _NumPyro(c, "parallel"),
    ),
    "nuts_numpyro_vectorized": (
        "NumPyro, chains vectorised",
        ("jax", "numpyro", "numpyro.infer"),
        lambda c: _NumPyro(c, "vectorized"),
    ),
    "nuts_numpyro_sequential": (
        "NumPyro, chains in sequence",
        ("jax", "numpyro", "numpyro.infer"),
        lambda c: _NumPyro(c, "sequential"),
    ),
    "nuts_pyro": ("Pyro's NUTS, extrapolated", ("torch", "pyro", "pyro.infer"), _Pyro),
}
BASE = "nuts_zoo"


class NutsWorker:
    """Answers for a contender of NUTS.

    Args:
        case: Its name.
        contender: Its name.
    """

    def __init__(self, case: str, contender: str) -> None:
        import importlib

        _, imports, build = CONTENDERS[contender]
        if contender == "nuts_numpyro_parallel":
            os.environ["XLA_FLAGS"] = (
                f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={CHAINS}"
            )
        for module in imports:
            importlib.import_module(module)
        found = cases.get(case)
        assert isinstance(found, NutsCase)
        self.case, self.build = found, build

    def ready(self) -> dict[str, Any]:
        """Answer, once everything is imported."""
        return {}

    def setup(self, draws: int) -> dict[str, Any]:
        """Sample once, from nothing compiled to all draws made."""
        began = time.perf_counter()
        self.contender = self.build(self.case)
        if not isinstance(self.contender, _Pyro):
            self.contender.sample(0, draws)
        return {"seconds": time.perf_counter() - began, "note": ""}

    def sample(self, seed: int, draws: int) -> dict[str, Any]:
        """Sample again, and return seconds, effective draws, and means with their Monte Carlo errors."""
        import arviz

        found, seconds, leapfrogs, divergences = self.contender.sample(seed, draws)
        columns = [
            (np.log(v) if site in self.case.positive else v).reshape(CHAINS, draws, -1)
            for site, v in sorted(found.items())
        ]
        table = arviz.convert_to_dataset({"all": np.concatenate(columns, -1)})
        effective = arviz.ess(table, method="bulk")["all"].values
        return {
            "seconds": seconds,
            "leapfrogs": leapfrogs,
            "divergences": divergences,
            "least": float(effective.min()),
            "median": float(np.median(effective)),
            "mean": table["all"].mean(("chain", "draw")).values.tolist(),
            "mcse": arviz.mcse(table, method="mean")["all"].values.tolist(),
        }

    def leapfrog(self, seed: int) -> dict[str, Any]:
        """Return the seconds of one of Pyro's leapfrog steps."""
        return {"seconds": float(self.contender.leapfrog(seed))}

    def memory(self) -> dict[str, Any]:
        """Return the peak of this process, in MiB."""
        from benchmarks.worker import _memory

        return {"mib": _memory()}
