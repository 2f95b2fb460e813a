"""Traced JAX functions as ONNX graphs: one node, or a few, for each operation that the classifiers use.

(jax2onnx 0.17 translates more, but it needs an Orbax older than the one that training needs.) Operations on weights
alone, such as the look-up of Swin's relative biases, are computed here and stored as their result. The batch is the one
size that is left open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd.errors import ConfigError

OPSET, IR_VERSION = 17, 8  # of 2022
BATCH = "batch"
# Operations of one input, and of two that are broadcast to each other.
UNARY = {
    "exp": "Exp",
    "erf": "Erf",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "log": "Log",
    "abs": "Abs",
}
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"}
SAME = ("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision", "name")
CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat",
    "checkpoint",
    "remat2",
)
Dims = tuple[Any, ...]  # integers, and at most one multiple of the batch


class Tensor(NamedTuple):
    """The result of a node; its shape may have a 1 where JAX's has a size that nothing has needed yet."""

    name: str
    shape: Dims


class Graph:
    """Nodes and stored arrays of one ONNX graph; methods add nodes and return their results."""

    def __init__(self, image: str):
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self._image = image
        self._batch_size = ""
        self.nodes: list[Any] = []
        self.arrays: dict[str, Any] = {}
        self._stored: dict[int, tuple[np.ndarray, str]] = {}

    def node(self, operator: str, inputs: Sequence[str], shape: Dims, output: str = "", **attributes: Any) -> Tensor:
        """One operator, named after its result."""
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return Tensor(output, shape)

    def store(self, value: np.ndarray, name: str = "") -> Tensor:
        """An array of the file, stored once."""
        if id(value) not in self._stored:
            name = name if name and name not in self.arrays else f"array_{len(self.arrays)}"
            self.arrays[name] = self._numpy.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
            self._stored[id(value)] = (value, name)  # holds the array, so that nothing else gets its id
        return Tensor(self._stored[id(value)][1], value.shape)

    def integers(self, values: Sequence[int]) -> str:
        """Name of a stored int64 vector, which operators take as an argument."""
        name = "ints" + "".join(f"_{v}" for v in values).replace("-", "m")
        if name not in self.arrays:
            self.arrays[name] = self._numpy.from_array(np.array(values, np.int64), name)
        return name

    def reshape(self, x: Tensor, shape: Dims) -> Tensor:
        """`x` in another shape of as many elements; -1 stands for the size that depends on the batch."""
        if tuple(x.shape) == tuple(shape):
            return x
        sizes = [n if isinstance(n, int) else -1 for n in shape]
        if sizes.count(-1) > 1:
            raise ConfigError(f"A reshape to {shape} has more than one size that depends on the batch. Report it.")
        return self.node("Reshape", [x.name, self.integers(sizes)], shape)

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """`x` with its axes in `order`."""
        if list(order) == sorted(order):
            return x
        return self.node("Transpose", [x.name], tuple(x.shape[i] for i in order), perm=list(order))

    def expand(self, x: Tensor, shape: Dims) -> Tensor:
        """`x` repeated along axes of size 1."""
        if tuple(x.shape) == tuple(shape):
            return x
        if all(isinstance(n, int) for n in shape):
            sizes = self.integers(shape)
        else:
            parts = [self.integers([n]) if isinstance(n, int) else self._times_batch(n) for n in shape]
            sizes = self.node("Concat", parts, (len(shape),), axis=0).name
        return self.node("Expand", [x.name, sizes], shape)

    def _times_batch(self, size: Any) -> str:
        """Name of a vector of one number, a multiple of the batch."""
        if not self._batch_size:
            all_sizes = self.node("Shape", [self._image], (4,))
            self._batch_size = self.node("Gather", [all_sizes.name, self.integers([0])], (1,), BATCH, axis=0).name
        factor = _factor(size)
        return (
            self._batch_size
            if factor == 1
            else self.node("Mul", [self._batch_size, self.integers([factor])], (1,)).name
        )


def _factor(size: Any) -> int:
    """k of a size k * batch."""
    (batch,) = jax.export.symbolic_shape(BATCH, scope=size.scope)
    return int(size // batch)


def add_function(
    graph: Graph, function: Callable[..., jax.Array], arrays: Any, images: Tensor, output: str, dtype: Any
) -> Tensor:
    """Adds `function(arrays, images)` to a graph.

    Args:
      graph: nodes are added to it.
      function: of JAX, with one result.
      arrays: tree of constants.
      images: input; its first size is the batch.
      output: name of the result.
      dtype: of the images.

    Raises:
      ConfigError: the function has an operation without a translation.
    """
    (batch,) = jax.export.symbolic_shape(BATCH)
    example = jax.ShapeDtypeStruct((batch, *images.shape[1:]), dtype)
    traced = jax.make_jaxpr(function)(arrays, example)
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    names = {}
    values: list[Any] = []
    for path, leaf in leaves:
        leaf = np.asarray(leaf)
        names[id(leaf)] = ".".join(str(getattr(key, "key", key)) for key in path[1:])
        values.append(leaf)
    run = _Translation(graph, names)
    (result,) = run.jaxpr(traced.jaxpr, traced.consts, [*values, Tensor(images.name, example.shape)])
    result = run.tensor(result)
    return graph.node("Identity", [result.name], result.shape, output)


class _Translation:
    """The equations of a jaxpr as nodes. A value is a NumPy array, known now, or a `Tensor`."""

    def __init__(self, graph: Graph, names: dict[int, str]):
        self.graph, self.names = graph, names

    def jaxpr(self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        """Values of the results of `jaxpr`."""
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        known |= zip(jaxpr.invars, values, strict=True)

        def read(atom: Any) -> Any:
            return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(v) for v in equation.invars])
            known |= zip(equation.outvars, results, strict=True)
        return [read(v) for v in jaxpr.outvars]

    def equation(self, equation: Any, values: list[Any]) -> list[Any]:
        """Values of the results of one equation."""
        kind, shape = equation.primitive.name, equation.outvars[0].aval.shape
        if kind in CALLS:
            inner = next(equation.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in equation.params)
            return self.jaxpr(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
        if kind in SAME:
            return values
        known = all(isinstance(v, np.ndarray) for v in values) and all(isinstance(n, int) for n in shape)
        # A float that is repeated stays small: most operators repeat it themselves.
        if known and not (
            kind == "broadcast_in_dim" and values[0].dtype.kind == "f" and values[0].size < math.prod(shape)
        ):
            with jax.ensure_compile_time_eval():
                result = equation.primitive.bind(*values, **equation.params)
            return [np.asarray(r) for r in (result if equation.primitive.multiple_results else [result])]
        if kind in UNARY:
            (x,) = map(self.tensor, values)
            return [self.graph.node(UNARY[kind], [x.name], x.shape)]
        if kind in BINARY:
            return [self.binary(BINARY[kind], *values)]
        method = getattr(self, f"_{kind}", None)
        if method is None:
            raise ConfigError(
                f'The network uses the operation "{kind}", which has no translation to ONNX. Write --to=stablehlo or '
                "safetensors."
            )
        arguments = [
            v if isinstance(v, np.ndarray) else self.graph.expand(v, a.aval.shape)
            for v, a in zip(values, equation.invars, strict=True)
        ]
        result = method(equation, *arguments)
        return result if isinstance(result, list) else [result]

    def tensor(self, value: Any) -> Tensor:
        """A value as a result of the graph."""
        return self.graph.store(value, self.names.get(id(value), "")) if isinstance(value, np.ndarray) else value

    def binary(self, operator: str, *values: Any) -> Tensor:
        """An operator of two inputs, of one rank or one a scalar, which ONNX broadcasts."""
        x, y = map(self.tensor, values)
        rank = max(len(x.shape), len(y.shape))
        sizes = [(*(1,) * (rank - len(t.shape)), *t.shape) for t in (x, y)]
        shape = tuple(b if isinstance(a, int) and a == 1 else a for a, b in zip(*sizes, strict=True))
        return self.graph.node(operator, [x.name, y.name], shape)

    def _broadcast_in_dim(self, equation: Any, x: Any, *_: Any) -> Tensor:
        shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
        x = self.tensor(x)
        ones = [1] * len(shape)
        for axis, size in zip(axes, x.shape, strict=True):
            ones[axis] = size
        return self.graph.reshape(x, tuple(ones))  # expanded by whoever needs it

    def _reshape(self, equation: Any, x: Any, *_: Any) -> Tensor:
        return self.graph.reshape(self.tensor(x), equation.outvars[0].aval.shape)

    _squeeze = _expand_dims = _reshape

    def _transpose(self, equation: Any, x: Any) -> Tensor:
        return self.graph.transpose(self.tensor(x), equation.params["permutation"])

    def _concatenate(self, equation: Any, *parts: Any) -> Tensor:
        names = [self.tensor(p).name for p in parts]
        return self.graph.node("Concat", names, equation.outvars[0].aval.shape, axis=equation.params["dimension"])

    def _unstack(self, equation: Any, x: Any) -> list[Tensor]:  # since jax 0.12, of `a, b = array`
        x, axis = self.tensor(x), equation.params["axis"]
        places = [self.graph.store(np.array(i, np.int64)).name for i in range(len(equation.outvars))]
        return [
            self.graph.node("Gather", [x.name, place], result.aval.shape, axis=axis)
            for place, result in zip(places, equation.outvars, strict=True)
        ]

    def _slice(self, equation: Any, x: Any, *_: Any) -> Tensor:
        p, x = equation.params, self.tensor(x)
        steps = p["strides"] or (1,) * len(x.shape)
        cut = [
            (axis, first, last, step)
            for axis, (first, last, step) in enumerate(zip(p["start_indices"], p["limit_indices"], steps, strict=True))
            if (first, step) != (0, 1) or (last is not x.shape[axis] and last != x.shape[axis])
        ]
        if not cut:
            return x
        axis, first, last, step = (self.graph.integers(numbers) for numbers in zip(*cut, strict=True))
        return self.graph.node("Slice", [x.name, first, last, axis, step], equation.outvars[0].aval.shape)

    def _reduce_sum(self, equation: Any, x: Any, *_: Any) -> Tensor:
        axes = self.graph.integers(equation.params["axes"])
        return self.graph.node("ReduceSum", [self.tensor(x).name, axes], equation.outvars[0].aval.shape, keepdims=0)

    def _reduce_max(self, equation: Any, x: Any, *_: Any) -> Tensor:
        axes = list(equation.params["axes"])
        return self.graph.node(
            "ReduceMax", [self.tensor(x).name], equation.outvars[0].aval.shape, axes=axes, keepdims=0
        )

    def _square(self, equation: Any, x: Any) -> Tensor:
        return self.binary("Mul", x, x)

    def _integer_pow(self, equation: Any, x: Any) -> Tensor:
        x = self.tensor(x)
        power = self.graph.store(np.array(equation.params["y"], np.float32))
        return self.graph.node("Pow", [x.name, power.name], x.shape)

    def _rsqrt(self, equation: Any, x: Any) -> Tensor:
        x = self.tensor(x)
        return self.graph.node("Reciprocal", [self.graph.node("Sqrt", [x.name], x.shape).name], x.shape)

    def _convert_element_type(self, equation: Any, x: Any) -> Tensor:
        from onnx import helper

        x = self.tensor(x)
        to = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
        return self.graph.node("Cast", [x.name], x.shape, to=to)

    def _gather(self, equation: Any, x: Any, indices: Any) -> Tensor:
        """A window at a known place, or rows of one axis at known places; the networks use no other form."""
        d, sizes, shape = (
            equation.params["dimension_numbers"],
            equation.params["slice_sizes"],
            equation.outvars[0].aval.shape,
        )
        x = self.tensor(x)
        axes = tuple(d.start_index_map)
        if isinstance(indices, np.ndarray) and indices.ndim == 1:  # one window
            numbers = [[int(i) for i in indices], [int(i) + sizes[a] for i, a in zip(indices, axes, strict=True)], axes]
            window = tuple(sizes)
            cut = self.graph.node("Slice", [x.name, *map(self.graph.integers, numbers)], window)
            return self.graph.reshape(cut, shape)
        rows_of_first = axes == tuple(d.collapsed_slice_dims) == (0,) and not d.operand_batching_dims
        if not rows_of_first or not isinstance(indices, np.ndarray) or tuple(sizes[1:]) != tuple(x.shape[1:]):
            raise ConfigError("The network gathers from several axes, which has no translation to ONNX. Report it.")
        places = self.graph.store(np.asarray(indices[..., 0], np.int64))
        return self.graph.node("Gather", [x.name, places.name], shape, axis=0)

    def _dot_general(self, equation: Any, x: Any, y: Any) -> Tensor:
        """A product of matrices, batched over the axes that both sides share."""
        (sum_x, sum_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
        x, y, shape = self.tensor(x), self.tensor(y), equation.outvars[0].aval.shape
        free_x = [i for i in range(len(x.shape)) if i not in (*sum_x, *batch_x)]
        free_y = [i for i in range(len(y.shape)) if i not in (*sum_y, *batch_y)]
        left = self.graph.transpose(x, (*batch_x, *free_x, *sum_x))
        right = self.graph.transpose(y, (*batch_y, *sum_y, *free_y))
        shared, rows, columns = (
            math.prod(t.shape[i] for i in axes) for t, axes in ((x, sum_x), (x, free_x), (y, free_y))
        )
        batch = left.shape[: len(batch_x)]
        # Without shared axes, MatMul itself takes any number of rows' axes.
        several = not batch_x and free_x
        left = self.graph.reshape(left, (*(left.shape[: len(free_x)] if several else (*batch, rows)), shared))
        right = self.graph.reshape(right, (*batch, shared, columns))
        product = self.graph.node("MatMul", [left.name, right.name], (*left.shape[:-1], columns))
        return self.graph.reshape(product, shape)
