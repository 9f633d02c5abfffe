r"""Effect handlers that change how a program is run and leave the program as it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from zoo.errors import PairError

__all__ = ["Gaussian", "LocalReparametrisation", "local_reparametrisation"]

F = TypeVar("F", bound=Callable[..., Any])

_POSTERIOR = "local_posterior"


class LocalReparametrisation(Messenger):  # type: ignore[misc]
    r"""Sample pre-activations, one per row, in place of the weights, which all rows share.

    For :math:`W_{ij} \sim \mathrm{N}(m_{ij}, s_{ij}^2)` and one row :math:`h` of the batch, :math:`h W` is
    :math:`\mathrm{N}(h m, h^2 s^2)`. The expected log likelihood is a sum over rows of expectations, each of one row
    alone, so every row may use weights of its own: the estimate of the ELBO stays unbiased, and its gradient loses the
    noise that the rows had in common.

    It is put around guide and model alike. In the guide, mark a normal site with ``infer={"local": True}``; in the
    model, that site then returns a :class:`Gaussian`, which the forward pass uses like the weight tensor that it stands
    for. Everything else is as without the handler: the guide still draws the weight, the traces hold that draw, and
    densities and divergences are those of the weight. Nothing happens in a model that runs on its own or on given
    values, nor where no gradients are recorded, since only the gradient estimator is changed: draws, predictions and
    importance weights belong to weights that all rows share.

    References:
        Kingma, Salimans, Welling (2015), sec. 2. https://arxiv.org/abs/1506.02557
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        infer = msg["infer"]
        if not torch.is_grad_enabled() or msg["is_observed"]:
            return
        if _POSTERIOR in infer:  # the model, replayed on the guide: the site came with the guide's distribution
            fn = infer[_POSTERIOR]
            msg["value"] = Gaussian(fn.mean, fn.variance, draw=msg["value"], name=msg["name"])

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("local", False) or msg["is_observed"]:
            return
        base = msg["fn"]
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        if not isinstance(base, torch.distributions.Normal):
            raise PairError(
                f"site '{msg['name']}' is marked local but has a {type(base).__name__}; local reparametrisation needs "
                "independent normals: drop infer={'local': True} there"
            )
        msg["infer"][_POSTERIOR] = base


def local_reparametrisation(program: F) -> F:
    """Put :class:`LocalReparametrisation` around a model or a guide.

    Args:
        program: Model or guide; both of a pair must be wrapped.

    Returns:
        The wrapped program.
    """
    wrapped: F = LocalReparametrisation()(program)
    return wrapped


class Gaussian:
    r"""Independent normal entries of which every row of the batch has its own draw, taken as late as possible.

    ``h @ weight``, :func:`torch.nn.functional.linear`, ``conv1d``, ``conv2d`` and ``conv3d`` of a tensor ``h`` and a
    Gaussian weight give a Gaussian pre-activation with the exact mean and variance of each entry; adding a tensor or a
    Gaussian (a bias) gives a Gaussian again. Every other operation draws first and then acts on the tensor drawn.

    One weight may enter one operation only: two uses would need the same draw in both, which is what local
    reparametrisation gives up. Likewise the entries of one pre-activation are independent: exact where each weight
    acts once per row, and the usual approximation (Molchanov et al. 2017) in a convolution, whose positions share it.

    Args:
        loc: Means.
        variance: Variances, of the same shape.
        draw: What to use for an operation that is not linear; ``None`` draws when asked.
        name: Of the site, for messages.
    """

    def __init__(
        self, loc: Tensor, variance: Tensor, *, draw: Tensor | None = None, name: str = "pre-activation"
    ) -> None:
        self.loc = loc
        self.variance = variance
        self._draw = draw
        self._name = name
        self._used = False
        self._drawn = False

    def draw(self) -> Tensor:
        """Return the draw: that of the guide for a weight, else a fresh one, the same at every call.

        Returns:
            A tensor of the shape of ``loc``.
        """
        if not self._drawn:
            self._take()
            self._drawn = True
            if self._draw is None:
                # The smallest number keeps the gradient of the square root finite where the variance is zero.
                scale = (self.variance + torch.finfo(self.variance.dtype).tiny).sqrt()
                self._draw = self.loc + scale * torch.randn_like(scale)
        assert self._draw is not None
        return self._draw

    def _take(self) -> None:
        if self._used:
            raise PairError(
                f"'{self._name}' is used twice in one forward pass; under local reparametrisation every use would have "
                "its own noise: drop infer={'local': True} at this site"
            )
        self._used = True

    def _map(self, contract: Callable[[Tensor, Tensor], Tensor], tensor: Tensor) -> Gaussian:
        """Apply a map that is linear in the weight, without bias, to mean and variance."""
        self._take()
        return Gaussian(contract(tensor, self.loc), contract(tensor.square(), self.variance))

    def _plus(self, other: Any) -> Gaussian:
        self._take()
        if isinstance(other, Gaussian):
            other._take()
            return Gaussian(self.loc + other.loc, self.variance + other.variance)
        loc = self.loc + other
        return Gaussian(loc, self.variance.expand_as(loc))

    # ------------------------------------------------------------------------------- standing for the tensor
    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Dispatch an operation of torch that met a Gaussian among its arguments.

        Args:
            func: The operation.
            types: Types of the arguments that dispatch.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            A :class:`Gaussian` for a linear operation, else what the operation returns for the draw.
        """
        options = {k: _settled(v) for k, v in (kwargs or {}).items()}
        args = [_settled(a) for a in args]
        second = args[1] if len(args) > 1 else None
        if func in _MATMULS and not options and isinstance(second, Gaussian):
            return second._map(torch.matmul, _tensors(args[0]))
        if func in _SUMS and not options and len(args) == 2:
            left, right = args if isinstance(args[0], Gaussian) else reversed(args)
            return left._plus(right) if isinstance(left, Gaussian) else func(*args)
        if func in _LAYERS and isinstance(second, Gaussian):
            bias = args.pop(2) if len(args) > 2 else options.pop("bias", None)
            x, _, *rest = args
            out = second._map(lambda h, w: func(h, w, None, *rest, **options), _tensors(x))
            if bias is None:
                return out
            shape = (-1,) if func is torch.nn.functional.linear else (-1, *(1,) * _LAYERS[func])
            return out._plus(bias._reshaped(shape) if isinstance(bias, Gaussian) else bias.view(shape))
        return func(*_tensors(args), **_tensors(options))

    def _reshaped(self, shape: Sequence[int]) -> Gaussian:
        self._take()
        return Gaussian(self.loc.view(*shape), self.variance.view(*shape))

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(self.draw(), other)

    def __add__(self, other: Any) -> Any:
        return Gaussian.__torch_function__(torch.add, (Gaussian,), (self, other))

    __radd__ = __add__

    def __mul__(self, other: Any) -> Any:
        return torch.mul(self.draw(), other)

    def __getitem__(self, index: Any) -> Tensor:
        return self.draw()[index]

    def __getattr__(self, name: str) -> Any:
        # Methods and properties of the tensor that this stands for: relu(), shape, dtype, ...
        if name.startswith("_"):
            raise AttributeError(name)
        if name in ("shape", "dtype", "device", "ndim", "dim", "size", "numel"):
            return getattr(self.loc, name)
        return getattr(self.draw(), name)


_MATMULS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
_SUMS = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}
_LAYERS = {  # layer -> spatial dimensions
    torch.nn.functional.linear: 0,
    torch.nn.functional.conv1d: 1,
    torch.nn.functional.conv2d: 2,
    torch.nn.functional.conv3d: 3,
}


def _settled(value: Any) -> Any:
    """Return the tensor of a Gaussian that has been drawn: from then on it is that tensor."""
    return value.draw() if isinstance(value, Gaussian) and value._drawn else value


def _tensors(value: Any) -> Any:
    """Replace every Gaussian in arguments by its draw."""
    if isinstance(value, Gaussian):
        return value.draw()
    if isinstance(value, list | tuple):
        return type(value)(_tensors(v) for v in value)
    if isinstance(value, dict):
        return {k: _tensors(v) for k, v in value.items()}
    return value
