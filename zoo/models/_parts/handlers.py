r"""Effect handlers that change how a program is run and leave the program as it is written.

The weights of a network are shared by all rows of a batch, so noise in a weight is noise that the rows have in common.
The expected log likelihood is a sum over rows of expectations, each of one row alone; every row may therefore use
weights of its own without any change to the expectation. The handlers here do so, each in its own way:

====================================  ===============================================  ================================
handler                               a row's own weights                              in a convolution
====================================  ===============================================  ================================
:func:`local_reparametrisation`       drawn anew, as the pre-activation they lead to   noise of positions independent
:func:`flipout`                       one draw for all, its deviations with new signs  exact
====================================  ===============================================  ================================

Each is put around guide and model alike. In the guide, mark the site of a weight with ``infer={"local": True}``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from zoo.errors import PairError
from zoo.models._parts.distributions import UnitDropout

__all__ = ["Flipout", "Gaussian", "LocalReparametrisation", "apart", "flipout", "local_reparametrisation"]

F = TypeVar("F", bound=Callable[..., Any])

_POSTERIOR = "local_posterior"


class _RowWise(Messenger, ABC):  # type: ignore[misc]
    """Let marked sites stand for weights of which every row has its own.

    In the model, run on the guide's draws, a site that the guide marks returns a stand-in, which the forward pass uses
    like the weight tensor that it stands for. Everything else is as without the handler: the guide still draws the
    weight, the traces hold that draw, and densities and divergences are those of the weight. Nothing happens in a
    model that runs on its own or on given values, nor where no gradients are recorded, since only the gradient
    estimator is changed: draws, predictions and importance weights belong to weights that all rows share.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("local", False) or msg["is_observed"]:
            return
        base = msg["fn"]
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        if not isinstance(base, self.takes):
            raise PairError(
                f"site '{msg['name']}' is marked local but has a {type(base).__name__}; {self.title} needs "
                f"{self.needs}: drop infer={{'local': True}} there"
            )
        msg["infer"][_POSTERIOR] = base

    def _pyro_post_sample(self, msg: Any) -> None:
        infer = msg["infer"]
        if not torch.is_grad_enabled() or msg["is_observed"]:
            return
        if _POSTERIOR in infer:  # the model, replayed on the guide: the site came with the guide's distribution
            msg["value"] = self._stand_in(infer[_POSTERIOR], msg["value"], msg["name"])

    takes: tuple[type, ...]
    title: str
    needs: str

    @abstractmethod
    def _stand_in(self, fn: Any, draw: Tensor, name: str) -> _Weight:
        """Return what the model gets in place of the guide's draw."""


class LocalReparametrisation(_RowWise):
    r"""Sample pre-activations, one per row, in place of the weights, which all rows share.

    For :math:`W_{ij} \sim \mathrm{N}(m_{ij}, s_{ij}^2)` and one row :math:`h` of the batch, :math:`h W` is
    :math:`\mathrm{N}(h m, h^2 s^2)`: it is drawn from that, for each row on its own. Weights under
    :class:`~zoo.models._parts.distributions.UnitDropout` get a mask for each row, which is dropout as it is usually
    programmed. The estimate of the ELBO stays unbiased, and its gradient loses the noise that the rows had in common.

    References:
        Kingma, Salimans, Welling (2015), sec. 2 and 3. https://arxiv.org/abs/1506.02557
    """

    takes = (torch.distributions.Normal, UnitDropout)
    title = "local reparametrisation"
    needs = "independent normals or dropped units"

    def _stand_in(self, fn: Any, draw: Tensor, name: str) -> _Weight:
        if isinstance(fn, UnitDropout):
            return _Dropped(fn.loc, fn.rate, draw=draw, name=name)
        return Gaussian(fn.mean, fn.variance, draw=draw, name=name)


class Flipout(_RowWise):
    r"""Give every row the one draw of a weight with the signs of its deviations flipped at random.

    With the draw :math:`m + \Delta` of a weight whose deviations :math:`\Delta` are independent and symmetric, row
    :math:`n` uses :math:`m + \Delta \circ r_n s_n^\top` for random signs :math:`s_n` of its inputs and :math:`r_n` of
    its outputs. That has the distribution of the draw, and deviations of different rows are uncorrelated:

    .. math:: h_n W_n = h_n m + ((h_n \circ s_n) \Delta) \circ r_n.

    The first dimension of what enters a layer counts rows; positions of one row (of an image, of a sequence) share
    their signs, hence their weights.

    References:
        Wen, Vicol, Ba, Tran, Grosse (2018), sec. 3.1. https://arxiv.org/abs/1803.04386
    """

    takes = (torch.distributions.Normal,)
    title = "flipout"
    needs = "independent normals"

    def _stand_in(self, fn: Any, draw: Tensor, name: str) -> _Weight:
        return _Flipped(fn.mean, draw=draw, name=name)


def local_reparametrisation(program: F) -> F:
    """Put :class:`LocalReparametrisation` around a model or a guide.

    Args:
        program: Model or guide; both of a pair must be wrapped.

    Returns:
        The wrapped program.
    """
    wrapped: F = LocalReparametrisation()(program)
    return wrapped


def flipout(program: F) -> F:
    """Put :class:`Flipout` around a model or a guide.

    Args:
        program: Model or guide; both of a pair must be wrapped.

    Returns:
        The wrapped program.
    """
    wrapped: F = Flipout()(program)
    return wrapped


def apart(weight: Any) -> Any:
    """Return a weight for a second use, in a term of the bound that is a sum of its own.

    A row-wise weight may enter one operation only, since two uses would need the same draw in both. Terms that are
    added, such as the log likelihood and the log density of an auxiliary variable given the weights, have expectations
    of their own: each may have its own draw.

    Args:
        weight: What a sample statement returned: a tensor, or what stands for it.

    Returns:
        The tensor itself, or another that stands for it and has not been used.
    """
    return weight._again() if isinstance(weight, _Weight) else weight


class _Weight(ABC):
    """What stands for a tensor of which every row has its own draw.

    ``h @ weight``, :func:`torch.nn.functional.linear`, ``conv1d``, ``conv2d`` and ``conv3d`` of a tensor ``h``, and
    sums (a bias), are what subclasses define. Every other operation acts on the draw.

    One weight may enter one operation only: two uses would need the same draw in both.

    Args:
        loc: Means, or another tensor of the same shape, type and device.
        draw: What to use for an operation that is not linear.
        name: Of the site, for messages.
    """

    def __init__(self, loc: Tensor, *, draw: Tensor | None, name: str) -> None:
        self.loc = loc
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
                self._draw = self._fresh()
        assert self._draw is not None
        return self._draw

    def reshape(self, *shape: int) -> Any:
        """Return the weight in another shape, with the same entries in the same order.

        Args:
            *shape: The shape.

        Returns:
            A weight, or the draw of one whose entries do not stand on their own.
        """
        return self.draw().reshape(shape) if self._drawn else self._reshaped(shape)

    def _again(self) -> Any:
        """Return another weight of the same distribution, as yet unused."""
        other = copy.copy(self)
        other._used = other._drawn = False
        return other

    def _fresh(self) -> Tensor:
        raise NotImplementedError

    def _take(self) -> None:
        if self._used:
            raise PairError(
                f"'{self._name}' is used twice in one forward pass; where every row has its own weights, every use "
                "would have its own noise: drop infer={'local': True} at this site"
            )
        self._used = True

    @abstractmethod
    def _map(self, contract: Callable[[Tensor, Tensor], Tensor], tensor: Tensor, spatial: int | None) -> Any:
        """Apply a map that is linear in the weight, without bias.

        Args:
            contract: The map of a tensor and a weight.
            tensor: What the weight acts on.
            spatial: Spatial dimensions of a layer whose weights are ``(outputs, inputs, ...)``; ``None`` for a matrix
                product, whose weights are ``(inputs, outputs)``.

        Returns:
            The outputs.
        """

    @abstractmethod
    def _plus(self, other: Any) -> Any:
        """Return the sum with a tensor or another weight."""

    @abstractmethod
    def _reshaped(self, shape: Sequence[int]) -> _Weight:
        """Return the weight in another shape."""

    # ------------------------------------------------------------------------------- standing for the tensor
    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Dispatch an operation of torch that met a weight among its arguments.

        Args:
            func: The operation.
            types: Types of the arguments that dispatch.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            What the weight makes of a linear operation or a sum, else what the operation returns for the draw.
        """
        options = {k: _settled(v) for k, v in (kwargs or {}).items()}
        args = [_settled(a) for a in args]
        second = args[1] if len(args) > 1 else None
        if func in _MATMULS and not options and isinstance(second, _Weight):
            return second._map(torch.matmul, _tensors(args[0]), None)
        if func in _SUMS and not options and len(args) == 2:
            left, right = args if isinstance(args[0], _Weight) else reversed(args)
            return left._plus(right) if isinstance(left, _Weight) else func(*args)
        if func in _LAYERS and isinstance(second, _Weight):
            bias = args.pop(2) if len(args) > 2 else options.pop("bias", None)
            x, _, *rest = args
            out = second._map(lambda h, w: func(h, w, None, *rest, **options), _tensors(x), _LAYERS[func])
            if bias is None:
                return out
            shape = (-1, *(1,) * _LAYERS[func])
            return out + (bias._reshaped(shape) if isinstance(bias, _Weight) else bias.view(shape))
        return func(*_tensors(args), **_tensors(options))

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(self.draw(), other)

    def __add__(self, other: Any) -> Any:
        return type(self).__torch_function__(torch.add, (type(self),), (self, other))

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


class Gaussian(_Weight):
    r"""Independent normal entries of which every row of the batch has its own draw, taken as late as possible.

    A linear map of a Gaussian weight gives a Gaussian pre-activation with the exact mean and variance of each entry;
    adding a tensor or a Gaussian (a bias) gives a Gaussian again. Every other operation draws first and then acts on
    the tensor drawn.

    The entries of one pre-activation are independent: exact where each weight acts once per row, and the usual
    approximation (Molchanov et al. 2017) in a convolution, whose positions share it.

    Args:
        loc: Means.
        variance: Variances, of the same shape.
        draw: What to use for an operation that is not linear; ``None`` draws when asked.
        name: Of the site, for messages.
    """

    def __init__(
        self, loc: Tensor, variance: Tensor, *, draw: Tensor | None = None, name: str = "pre-activation"
    ) -> None:
        super().__init__(loc, draw=draw, name=name)
        self.variance = variance

    def _fresh(self) -> Tensor:
        # The smallest number keeps the gradient of the square root finite where the variance is zero.
        scale = (self.variance + torch.finfo(self.variance.dtype).tiny).sqrt()
        return self.loc + scale * torch.randn_like(scale)

    def _map(
        self, contract: Callable[[Tensor, Tensor], Tensor], tensor: Tensor, spatial: int | None = None
    ) -> Gaussian:
        self._take()
        return Gaussian(contract(tensor, self.loc), contract(tensor.square(), self.variance))

    def _plus(self, other: Any) -> Gaussian:
        self._take()
        if isinstance(other, Gaussian):
            other._take()
            return Gaussian(self.loc + other.loc, self.variance + other.variance)
        loc = self.loc + other
        return Gaussian(loc, self.variance.expand_as(loc))

    def _reshaped(self, shape: Sequence[int]) -> Gaussian:
        self._take()
        return Gaussian(self.loc.view(*shape), self.variance.view(*shape))


class _Flipped(_Weight):
    """A draw whose deviations from their means change signs from row to row; see :class:`Flipout`."""

    def _map(self, contract: Callable[[Tensor, Tensor], Tensor], tensor: Tensor, spatial: int | None) -> Tensor:
        self._take()
        assert self._draw is not None
        out = contract(tensor, self.loc)
        deviation = contract(tensor * _signs(tensor, tensor, spatial or 0), self._draw - self.loc)
        return out + deviation * _signs(out, out, spatial or 0)

    def _plus(self, other: Any) -> Tensor:
        self._take()
        assert self._draw is not None
        other, deviation = _tensors(other), self._draw - self.loc
        mean: Tensor = other + self.loc
        rows = mean.shape[:1] if mean.dim() > self.loc.dim() else ()
        shape = (*rows, *(1,) * (mean.dim() - self.loc.dim() - len(rows)), *self.loc.shape)
        return mean + deviation * _random_signs(mean, shape)

    def _reshaped(self, shape: Sequence[int]) -> _Flipped:
        self._take()
        assert self._draw is not None
        return _Flipped(self.loc.view(*shape), draw=self._draw.view(*shape), name=self._name)


class _Dropped(_Weight):
    """Weights whose first dimension counts units, of which every row drops its own; see :class:`UnitDropout`."""

    def __init__(self, loc: Tensor, rate: Tensor, *, draw: Tensor, name: str) -> None:
        super().__init__(loc, draw=draw, name=name)
        self._rate = rate

    def _map(self, contract: Callable[[Tensor, Tensor], Tensor], tensor: Tensor, spatial: int | None) -> Tensor:
        self._take()
        if spatial is None:  # units are inputs
            return contract(tensor * _kept(tensor, self._rate, 0), self.loc)
        out = contract(tensor, self.loc)
        return out * _kept(out, self._rate, spatial)

    def _plus(self, other: Any) -> Any:
        return self.draw() + _tensors(other)

    def _reshaped(self, shape: Sequence[int]) -> Any:
        return self.draw().view(*shape)


def _per_row(tensor: Tensor, spatial: int) -> tuple[int, ...]:
    """Return the shape of a number for each row and unit: features last, or channels before spatial dimensions."""
    at = tensor.dim() - 1 - spatial
    return tuple(n if i == at or (i == 0 and at > 0) else 1 for i, n in enumerate(tensor.shape))


def _random_signs(like: Tensor, shape: Sequence[int]) -> Tensor:
    uniform = torch.rand(tuple(shape), dtype=like.dtype, device=like.device)
    return torch.where(uniform < 0.5, -1.0, 1.0).to(like.dtype)


def _signs(like: Tensor, tensor: Tensor, spatial: int) -> Tensor:
    return _random_signs(like, _per_row(tensor, spatial))


def _kept(tensor: Tensor, rate: Tensor, spatial: int) -> Tensor:
    uniform = torch.rand(_per_row(tensor, spatial), dtype=tensor.dtype, device=tensor.device)
    units = rate.view(*rate.shape, *(1,) * spatial)  # a rate for each unit
    return (uniform >= units).to(tensor.dtype)


_MATMULS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
_SUMS = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}
_LAYERS = {  # layer -> spatial dimensions
    torch.nn.functional.linear: 0,
    torch.nn.functional.conv1d: 1,
    torch.nn.functional.conv2d: 2,
    torch.nn.functional.conv3d: 3,
}


def _settled(value: Any) -> Any:
    """Return the tensor of a weight that has been drawn: from then on it is that tensor."""
    return value.draw() if isinstance(value, _Weight) and value._drawn else value


def _tensors(value: Any) -> Any:
    """Replace every weight in arguments by its draw."""
    if isinstance(value, _Weight):
        return value.draw()
    if isinstance(value, list | tuple):
        return type(value)(_tensors(v) for v in value)
    if isinstance(value, dict):
        return {k: _tensors(v) for k, v in value.items()}
    return value
