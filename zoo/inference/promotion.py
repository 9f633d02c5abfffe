"""Let a program run in one floating-point type although some of its tensors were made in another.

NUTS evaluates in double precision, while the constants that a model closes over, and the priors that were built when
its module was, are usually in single precision. Most operations of torch take both; products of matrices, layers and
writes by an index do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["OneType"]

_FLOATS = (torch.float32, torch.float64)
_WRITES = {"__setitem__", "index_put_", "index_copy_", "index_add_", "scatter_", "scatter_add_", "masked_scatter_"}


class OneType(TorchFunctionMode):
    """Repeat a call that fails on operands of single and of double precision with all of them in one type.

    What torch computes from mixed operands by itself is left as it is. What is written into a tensor gets its type.

    Args:
        dtype: The type.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _WRITES and args and isinstance(args[0], Tensor):
            # Before the call, since one that fails while a graph is recorded would stay in it.
            if args[0].dtype in _FLOATS:
                args = (args[0], *_cast(args[1:], args[0].dtype))
                kwargs = _cast(kwargs, args[0].dtype)
            return func(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            found = {v.dtype for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)}
            if not found.issuperset(_FLOATS) or (name.endswith("_") and not name.endswith("__")):
                raise
        return func(*_cast(args, self.dtype), **_cast(kwargs, self.dtype))


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Cast the tensors of single and double precision within nested containers."""
    return pytree.tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.dtype in _FLOATS else v, values)
