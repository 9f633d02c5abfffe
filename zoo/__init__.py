"""Probabilistic deep learning methods as Pyro model and guide pairs, one runner, and honest diagnostics."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.datasets import load as _load_data  # noqa: F401
    from zoo.errors import ZooError as ZooError
    from zoo.hub import pull as pull
    from zoo.hub import push as push
    from zoo.inference.arguments import Arguments as Arguments
    from zoo.inference.check import check as check
    from zoo.inference.compiled import compile_svi as compile_svi
    from zoo.inference.posterior import Posterior as Posterior
    from zoo.inference.posterior import load as load
    from zoo.inference.runner import fit as fit
    from zoo.registry import get as get
    from zoo.types import Claim as Claim
    from zoo.types import Dataset as Dataset
    from zoo.types import Diagnostic as Diagnostic
    from zoo.types import Elbo as Elbo
    from zoo.types import Method as Method
    from zoo.types import Pair as Pair

__version__ = "0.1.0"

# Public name -> module that defines it. Imported on first use, so that `zoo list` does not pay for torch.
_WHERE = {
    "Alternating": "zoo.types",
    "Arguments": "zoo.inference.arguments",
    "Claim": "zoo.types",
    "Dataset": "zoo.types",
    "Diagnostic": "zoo.types",
    "Elbo": "zoo.types",
    "Finish": "zoo.types",
    "Loss": "zoo.types",
    "Method": "zoo.types",
    "Pair": "zoo.types",
    "Posterior": "zoo.inference.posterior",
    "Recipe": "zoo.types",
    "ZooError": "zoo.errors",
    "check": "zoo.inference.check",
    "compare": "zoo.diagnostics.compare",
    "compile_svi": "zoo.inference.compiled",
    "fit": "zoo.inference.runner",
    "get": "zoo.registry",
    "load": "zoo.inference.posterior",
    "names": "zoo.registry",
    "pull": "zoo.hub",
    "push": "zoo.hub",
    "reproduce": "zoo.claims",
}
_PACKAGES = (
    "datasets",
    "diagnostics",
    "errors",
    "hub",
    "inference",
    "models",
    "references",
    "registry",
    "reports",
    "tasks",
    "types",
)

__all__ = sorted([*_WHERE, *_PACKAGES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
