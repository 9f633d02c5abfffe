r"""The log density of a Pyro model over one flat unconstrained vector, with its gradient, as a pure function.

For latent sites :math:`z_k = T_k(u_k)` with :math:`T_k` from unconstrained space to the site's support,

.. math:: \log\pi(u) = \log p(z, \text{data}) + \sum_k \log\left|\det \partial T_k / \partial u_k\right| ,

with discrete latents summed out. The transforms are built anew in every evaluation, so a support may depend on other
latents. The function is traced once to a flat graph of ATen operations in which everything that does not depend on
:math:`u` is folded away; the data become inputs, so that one compiled library serves all data of one shape.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from torch import Tensor, fx
from torch.distributions import biject_to
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from zoo.errors import EngineError, NonFiniteError, PairError, ZooError
from zoo.inference.program import LastSite, Layout, discover, pyro_world, seeded, stream
from zoo.inference.sites import is_plate
from zoo.inference.subsampling import all_rows
from zoo.inference.validation import check_rows, one_line, pair_error
from zoo.types import Batch

__all__ = ["Potential", "fold_constants"]

_TRIES = 100  # as in Stan
_UNOBSERVED = "_unobserved"  # the latent that pyro.sample(..., obs_mask=) makes, beside "_observed"


class Potential:
    """Log density and gradient of a model's continuous latents over one flat unconstrained vector.

    Args:
        model: Pyro model of one batch.
        batch: The whole data; it is moved to the CPU, and floating-point entries are cast to ``dtype``.
        seed: Stream for whatever the model draws while its structure is read.
        dtype: Floating-point type of the evaluation.

    Attributes:
        names: Latent sites, in the model's order.
        shapes: Site -> shape of its constrained value.
        size: Length of the flat vector.
        graph: The traced function ``graph(flat, *constants) -> (log density, gradient)``, or ``None``.
        constants: The tensors that the graph takes after ``flat`` (data, mostly).
        reason: Why there is no graph; empty if there is one.
        nodes: Operations of the graph.
        epsilon: Rounding error of the narrowest floating-point type in it that depends on ``flat``.

    Raises:
        PairError: If the model does not run, observes what it cannot have produced, has no continuous latent, a
            discrete latent that cannot be enumerated, a mini-batch in place of the whole data, or draws random numbers
            outside its sample sites.

    References:
        Stan Development Team, Stan Reference Manual, section "Constraint Transforms" (change of variables).
    """

    def __init__(
        self,
        model: Callable[[Batch], Any],
        batch: Batch,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.dtype = dtype
        self._batch = {k: v.to("cpu", dtype if v.is_floating_point() else v.dtype) for k, v in batch.items()}
        self._random = seeded(seed)
        self._usual = torch.get_default_dtype()
        with self._world():
            try:
                self._read(model, batch)
            except ZooError:
                raise
            except Exception as error:  # of the user's code
                raise pair_error(error, self._batch) from error
            self._trace()

    # ------------------------------------------------------------------------------------------ the model
    def _discover(self, model: Callable[[Batch], Any], original: Batch) -> Layout:
        """List the model's parameters; a module of another dtype runs once on the original batch, then as bound."""
        try:
            return discover(lambda: model(self._batch), [model], dtype=self.dtype, device="cpu")
        except RuntimeError:
            try:
                with pyro_world(dtype=self._usual), all_rows():
                    return discover(lambda: model(original), [model], dtype=self.dtype, device="cpu")
            except RuntimeError:
                pass
            raise

    def _read(self, model: Callable[[Batch], Any], original: Batch) -> None:
        """Run the model, find its latents, and check that the density is one that NUTS can sample.

        Args:
            model: The model.
            original: The batch in its own dtypes.

        Raises:
            PairError: If it is not.
        """
        self._layout = self._discover(model, original)
        self._values = [self._layout.values[n] for n in self._layout.names]
        with pyro.validation_enabled(True), self._bound(), torch.no_grad():
            check_rows(lambda batch: poutine.trace(model).get_trace(batch), self._batch)
        with self._bound():
            plain = poutine.trace(model).get_trace(self._batch)
            latents = {n: s for n, s in plain.iter_stochastic_nodes() if not is_plate(s)}
            self._check(plain)
            depths = [f.dim for s in plain.nodes.values() if s["type"] == "sample" for f in _vectorized(s)]
            nesting = -min(depths, default=0)
            self._model = poutine.enum(config_enumerate(model), first_available_dim=-1 - nesting)
            enumerated = poutine.trace(self._model).get_trace(self._batch)
            discrete = [n for n, s in latents.items() if s["fn"].has_enumerate_support]
            self._evaluator = TraceEinsumEvaluator(enumerated, bool(discrete), nesting)
            sites = {n: enumerated.nodes[n] for n in latents if n not in discrete}
            self.shapes = {n: tuple(latents[n]["value"].shape) for n in sites}
            self._flat = {n: tuple(biject_to(s["fn"].support).inv(latents[n]["value"]).shape) for n, s in sites.items()}
        if not sites:
            raise PairError("the model has no continuous latent site; NUTS needs at least one")
        self.names = tuple(sites)
        self.size = sum(int(np.prod(s)) for s in self._flat.values())

    @staticmethod
    def _check(trace: Any) -> None:
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            fn = site["fn"]
            for frame in _vectorized(site):
                if frame.full_size is not None and int(frame.full_size) != int(frame.size):
                    raise PairError(
                        f"plate '{frame.name}' at site '{name}' holds {frame.size} of {frame.full_size} rows; NUTS "
                        "needs the whole data in one batch: pass the full training batch, or use engine='svi'"
                    )
            if is_plate(site):
                continue
            if site["is_observed"] or fn.has_enumerate_support:
                continue
            if getattr(fn.support, "is_discrete", False):
                raise PairError(
                    f"site '{name}' is a discrete latent ({type(fn).__name__}) whose values cannot be enumerated; NUTS "
                    "sums out only discrete sites of finite support: marginalise it by hand, or use engine='svi'"
                )

    def _joint(self, flat: Tensor) -> tuple[Tensor, dict[str, Tensor], Any]:
        values: dict[str, Tensor] = {}
        start = 0
        for name, shape in self._flat.items():
            end = start + int(np.prod(shape))
            values[name] = flat[start:end].reshape(shape)
            start = end
        handler = _Transformed(values)
        trace = poutine.trace(handler(self._model)).get_trace(self._batch)
        log_density = self._evaluator.log_prob(trace)
        for term in handler.log_dets.values():
            log_density = log_density + term
        return log_density, handler.values, trace

    @contextmanager
    def _world(self) -> Iterator[None]:
        with pyro_world(dtype=self.dtype), stream(self._random), torch.enable_grad(), all_rows():
            yield

    @contextmanager
    def _bound(self, *, tracing: bool = False) -> Iterator[None]:
        values = [v.detach().clone().requires_grad_(True) for v in self._values]
        buffers = [b.clone() for b in self._layout.buffer_values.values()]
        with self._layout.bind(values, buffers, tracing=tracing):
            yield

    # ------------------------------------------------------------------------------------------ the graph
    def _trace(self) -> None:
        def both(flat: Tensor) -> tuple[Tensor, Tensor]:
            leaf = flat.detach().requires_grad_(True)
            with self._bound(tracing=True):
                log_density = self._joint(leaf)[0]
            (gradient,) = torch.autograd.grad(log_density, leaf, allow_unused=True, materialize_grads=True)
            return log_density.detach(), gradient

        self.graph: fx.GraphModule | None = None
        self.constants: list[Tensor] = []
        self.reason, self.nodes = "", 0
        self.epsilon = torch.finfo(self.dtype).eps
        example = torch.zeros(self.size, dtype=self.dtype)
        last = LastSite()
        try:
            with last:
                graph = _recorded(both, example)
        except Exception as error:
            where = f" at site '{last.name}'" if last.name else ""
            text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            self.reason = f"cannot be traced{where}: {type(error).__name__}: {text[:300]}"
            return
        self.graph, self.constants = fold_constants(graph, example)
        self.nodes = len(self.graph.graph.nodes)
        self.epsilon = _epsilon(graph.graph, self.dtype)
        for node in self.graph.graph.nodes:
            if node.op == "call_function" and _is_random(node):
                raise PairError(
                    f"the model draws random numbers outside its sample sites ({node.target}); NUTS needs a fixed "
                    "density: put modules with dropout into eval() mode, and randomness into sample sites"
                )

    # ------------------------------------------------------------------------------------------- use
    def log_density(self, flat: Tensor) -> Tensor:
        """Evaluate the log density with Pyro, differentiably.

        Args:
            flat: Unconstrained values, ``(size,)``.

        Returns:
            Scalar.
        """
        with self._world(), self._bound():
            return self._joint(flat.to(self.dtype))[0]

    def value_and_gradient(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the log density and its gradient, by the graph where there is one, else with Pyro.

        Args:
            flat: Unconstrained values, ``(size,)``.

        Returns:
            Scalar and ``(size,)``, detached.
        """
        flat = flat.detach().to(self.dtype)
        if self.graph is not None:
            with torch.no_grad():
                value, gradient = self.graph(flat, *self.constants)
            return value, gradient
        leaf = flat.clone().requires_grad_(True)
        value = self.log_density(leaf)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
        return value.detach(), gradient

    def constrain(self, flat: Tensor, *, chunk: int = 500) -> dict[str, Tensor]:
        """Map unconstrained vectors to the sites' values, vectorised over leading dimensions where possible.

        Args:
            flat: ``(*sample, size)``.
            chunk: Vectors per vectorised call.

        Returns:
            Site -> ``(*sample, *shape)``.
        """

        def one(vector: Tensor) -> tuple[Tensor, ...]:
            with self._bound(tracing=True):
                values = self._joint(vector)[1]
            return tuple(values[n].expand(self.shapes[n]) for n in self.names)

        rows = flat.reshape(-1, self.size).to(self.dtype)
        parts = [rows[k : k + chunk] for k in range(0, len(rows), chunk)]
        with self._world(), torch.no_grad():
            function: Callable[..., tuple[Tensor, ...]] = one
            if self.graph is not None:
                graph, constants = fold_constants(_recorded(one, rows[0]), rows[0])
                function = lambda row: graph(row, *constants)  # noqa: E731
            try:
                stacked = [torch.vmap(function)(part) for part in parts]
                columns = [torch.cat(c) for c in zip(*stacked, strict=True)]
            except (RuntimeError, NotImplementedError, ValueError):
                columns = [torch.stack(c) for c in zip(*(function(r) for r in rows), strict=True)]
        lead = flat.shape[:-1]
        return {n: c.reshape((*lead, *self.shapes[n])) for n, c in zip(self.names, columns, strict=True)}

    def initial(self, seed: int, chain: int, restart: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return a starting point with finite density and gradient, each coordinate uniform on (-2, 2).

        Args:
            seed: Seed of the run.
            chain: Chain.
            restart: How often the chain was begun elsewhere; the point depends on nothing else.

        Returns:
            Unconstrained values, ``(size,)``.

        Raises:
            NonFiniteError: If 100 points all have a non-finite density or gradient; the text names the site.
            EngineError: If the model raised at every point.

        References:
            Stan Development Team, Stan Reference Manual, section "Initialization".
        """
        generator = np.random.default_rng(np.random.SeedSequence([seed, chain, 1, *([restart] if restart else [])]))
        problem: Exception | None = None
        for _ in range(_TRIES):
            point = generator.uniform(-2.0, 2.0, self.size)
            try:
                value, gradient = self.value_and_gradient(torch.from_numpy(point))
            except Exception as error:  # e.g. a matrix that is not positive definite
                problem = error
                continue
            problem = None
            if bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all()):
                return point
        if problem is not None:
            text = f"chain {chain}: the model raised at all of {_TRIES} starting points; last: {one_line(problem)}"
            raise EngineError(text) from problem
        raise NonFiniteError(
            f"chain {chain}: no starting point with a finite log density in {_TRIES} draws from uniform(-2, 2) on the "
            f"unconstrained space; {self.culprit(torch.from_numpy(point))}"
        )

    def culprit(self, flat: Tensor) -> str:
        """Say which site makes the density or its gradient non-finite.

        Args:
            flat: Unconstrained values, ``(size,)``.

        Returns:
            One clause, naming the first such site.
        """
        leaf = flat.detach().to(self.dtype).requires_grad_(True)
        with self._world(), self._bound():
            log_density, _, trace = self._joint(leaf)
            trace.compute_log_prob()
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and "log_prob" in site and not bool(torch.isfinite(site["log_prob"]).all()):
                    bad = site["log_prob"][~torch.isfinite(site["log_prob"])].flatten()[0].item()
                    return f"site '{name}' has log probability {bad}"
            if not bool(torch.isfinite(log_density)):
                return "the Jacobian of a transform is not finite"
            (gradient,) = torch.autograd.grad(log_density, leaf, allow_unused=True, materialize_grads=True)
        start = 0
        for name, shape in self._flat.items():
            end = start + int(np.prod(shape))
            if not bool(torch.isfinite(gradient[start:end]).all()):
                return f"the gradient of latent site '{name}' is not finite"
            start = end
        return "the gradient is finite here"


class _Transformed(Messenger):  # type: ignore[misc]
    """Give latent sites the images of unconstrained values, and keep the log determinants."""

    def __init__(self, unconstrained: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.unconstrained = unconstrained
        self.values: dict[str, Tensor] = {}
        self.log_dets: dict[str, Tensor] = {}
        self.seen: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        self.seen.add(name)
        if name not in self.unconstrained:
            return
        transform = biject_to(msg["fn"].support)
        before = self.unconstrained[name]
        after = transform(before)
        self.values[name] = after
        self.log_dets[name] = transform.log_abs_det_jacobian(before, after).sum()
        msg["value"] = after
        msg["is_observed"] = True
        if name.endswith(_UNOBSERVED) and name.removesuffix(_UNOBSERVED) + "_observed" in self.seen:
            # Nothing depends on it where a row of obs_mask is observed. Masked there, its density would be flat, and
            # no posterior; unmasked it integrates to one, whatever the other latents are.
            msg["mask"] = None


def _vectorized(site: Any) -> list[Any]:
    return [f for f in site["cond_indep_stack"] if f.vectorized]


# ------------------------------------------------------------------------------------------------- the graph
def _recorded(function: Callable[[Tensor], Any], example: Tensor) -> fx.GraphModule:
    """Trace a function, without calls that failed on operands of two types, which are recorded too."""
    graph = make_fx(function)(example)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def fold_constants(graph: fx.GraphModule, example: Tensor) -> tuple[fx.GraphModule, list[Tensor]]:
    """Evaluate everything in a traced graph that does not depend on its input.

    Constant tensors of one value become ``full`` nodes, which compilers fuse; all others become further inputs.

    Args:
        graph: Traced function of one tensor.
        example: Its input.

    Returns:
        The graph as a function ``(input, *constants)``, and the constants.
    """
    if any(n.op == "call_function" and _mutates(n) for n in graph.graph.nodes):
        graph = make_fx(torch.func.functionalize(graph))(example)
    wanted = _reachable(graph.graph)
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in wanted:
            if node.op == "get_attr":
                known[node] = operator.attrgetter(str(node.target))(graph)
            elif (fill := _fill(node)) is not None:
                example_value = node.meta["val"]
                known[node] = torch.full(example_value.shape, fill, dtype=example_value.dtype, device=example.device)
            elif node.op == "call_function" and not _is_random(node) and all(a in known for a in node.all_input_nodes):
                args: Any = map_arg(node.args, known.__getitem__)
                kwargs: Any = map_arg(node.kwargs, known.__getitem__)
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    new, copies, constants = fx.Graph(), dict[fx.Node, fx.Node](), list[Tensor]()
    for node in wanted:
        if node.op == "placeholder":
            copies[node] = new.placeholder("flat")
    # An index by a constant mask is one by its positions, whose number is fixed.
    positions: dict[fx.Node, list[fx.Node]] = {}
    for mask in (i for n in wanted if n not in known for i in _indices(n)):
        if isinstance(mask, fx.Node) and mask not in positions and mask in known and known[mask].dtype == torch.bool:
            positions[mask] = []
            for axis in known[mask].nonzero().unbind(1):
                positions[mask].append(new.placeholder(f"constant_{len(constants)}"))
                constants.append(axis.contiguous().clone())

    def crosses(source: fx.Node, user: fx.Node) -> bool:
        return user in needed and user not in known and not (source in positions and source in _indices(user))

    needed = set(wanted)
    border = [n for n in wanted if n in known and any(crosses(n, u) for u in n.users)]
    uniform: list[fx.Node] = []
    turned: dict[fx.Node, fx.Node] = {}
    inputs: dict[tuple[Any, ...], fx.Node] = {}
    for node in border:
        value = known[node].detach()
        if value.numel() and bool((value == value.flatten()[:1]).all()):
            uniform.append(node)
            continue
        place = (value.data_ptr(), value.dtype)
        key, transpose = (*place, value.shape, value.stride()), (*place, value.shape[::-1], value.stride()[::-1])
        if key not in inputs and value.dim() == 2 and transpose in inputs:  # a matrix and its transpose are one input
            turned[node] = inputs[transpose]
            continue
        if key not in inputs:
            inputs[key] = new.placeholder(f"constant_{len(constants)}")
            constants.append(_laid_out(node, value))
        copies[node] = inputs[key]
    for node, source in turned.items():
        copies[node] = new.call_function(torch.ops.aten.permute.default, (source, [1, 0]))
    for node in uniform:
        value = known[node]
        copies[node] = new.call_function(
            torch.ops.aten.full.default,
            (list(value.shape), value.flatten()[0].item()),
            {"dtype": value.dtype, "device": value.device, "pin_memory": False},
        )
    for node in wanted:
        if node in known or node.op == "placeholder":
            continue
        if any(i in positions for i in _indices(node)):
            rest: Any = map_arg((node.args[0], *node.args[2:]), copies.__getitem__)
            where = [p for i in _indices(node) for p in positions.get(i, [copies.get(i, i)])]
            copies[node] = new.call_function(node.target, (rest[0], where, *rest[1:]))  # type: ignore[arg-type]
        else:
            copies[node] = new.node_copy(node, lambda n: copies[n])
        copies[node].meta, copies[node].type = {}, None
    new.lint()
    return fx.GraphModule(torch.nn.Module(), new), constants


def _epsilon(graph: fx.Graph, dtype: torch.dtype) -> float:
    """Return the rounding error of the narrowest type that the input of a graph passes through.

    Args:
        graph: As it was traced.
        dtype: Of the input.

    Returns:
        The largest epsilon.
    """
    depends: set[fx.Node] = set()
    found = {dtype}
    for node in _reachable(graph):
        if node.op == "placeholder" or any(source in depends for source in node.all_input_nodes):
            depends.add(node)
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.is_floating_point():
                found.add(value.dtype)
    return max(torch.finfo(kind).eps for kind in found)


def _laid_out(node: fx.Node, value: Tensor) -> Tensor:
    """Copy a constant, a matrix that is multiplied by vectors with its longer side contiguous.

    A compiled product then runs along the long side, in place of one short sum per row (more than twice as fast
    for the 569 by 30 features of a logistic regression).

    Args:
        node: The constant's node.
        value: Its value.

    Returns:
        The copy.
    """
    products = (torch.ops.aten.mv.default, torch.ops.aten.mul.Tensor)
    if value.dim() == 2 and value.shape[0] > value.shape[1] and all(u.target in products for u in node.users):
        return value.t().contiguous().clone().t()
    return value.contiguous().clone()


def _indices(node: fx.Node) -> Sequence[Any]:
    indexed = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default)
    indices: Any = node.args[1] if node.target in indexed else ()
    return indices  # type: ignore[no-any-return]


def _reachable(graph: fx.Graph) -> list[fx.Node]:
    """Return the inputs and all nodes that the output needs, in order."""
    needed: set[fx.Node] = set()
    todo: list[fx.Node] = [n for n in graph.nodes if n.op == "output"]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    return [n for n in graph.nodes if n in needed or n.op == "placeholder"]


def _tags(node: fx.Node) -> Sequence[Any]:
    tags: Sequence[Any] = getattr(node.target, "tags", ())
    return tags


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in _tags(node)


_FILLS: dict[Any, float | int] = {  # the value, or the position of the argument that holds it
    torch.ops.aten.zeros_like.default: 0.0,
    torch.ops.aten.new_zeros.default: 0.0,
    torch.ops.aten.ones_like.default: 1.0,
    torch.ops.aten.new_ones.default: 1.0,
    torch.ops.aten.full_like.default: 1,
    torch.ops.aten.new_full.default: 2,
}


def _fill(node: fx.Node) -> Any:
    """Return the value of a node that takes no more than the shape of its inputs, else ``None``."""
    where = _FILLS.get(node.target)
    if where is None or "val" not in node.meta:
        return None
    value = where if isinstance(where, float) else node.args[where]
    return None if isinstance(value, fx.Node) else value


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
