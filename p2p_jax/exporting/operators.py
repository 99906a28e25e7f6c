"""What each operation of JAX that a generator consists of is in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from p2p_jax.exporting.graph import Empty, Graph, Value

_SAME = ("name", "copy", "copy_p", "optimization_barrier", "stop_gradient", "sharding_constraint")
_PLAIN = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"},
    **{"pow": "Pow", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid"},
    **{"neg": "Neg", "abs": "Abs", "sign": "Sign", "sqrt": "Sqrt", "floor": "Floor"},
    **{"and": "And", "or": "Or", "not": "Not", "eq": "Equal", "gt": "Greater", "lt": "Less"},
    **{"ge": "GreaterOrEqual", "le": "LessOrEqual"},
}
_REDUCED = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
_END = np.iinfo(np.int64).max

# Of the graph, the equation and its arguments; they return what it gives.
Operator = Callable[..., Value]


def _plain(operator: str) -> Operator:
    # Between types of equal rank and scalars both broadcast alike.
    return lambda graph, eqn, *values: graph.add(operator, *map(graph.name, values))


def _shape(eqn: Any, place: int = 0) -> tuple[Any, ...]:
    return eqn.invars[place].aval.shape


def _made(eqn: Any) -> tuple[Any, ...]:
    return eqn.outvars[0].aval.shape


def _integers(graph: Graph, numbers: Sequence[int]) -> str:
    return graph.constant(np.array(numbers, np.int64))


def _scalar(graph: Graph, eqn: Any, number: float) -> str:
    return graph.constant(np.array(number, eqn.outvars[0].aval.dtype))


def _cast(graph: Graph, eqn: Any, x: Value) -> Value:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.outvars[0].aval.dtype))
    return graph.add("Cast", graph.name(x), to=kind)


def _dim_as_value(graph: Graph, eqn: Any) -> Value:
    return _cast(graph, eqn, graph.reshape(graph.size(eqn.params["dim"]), (1,), ()))


def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    if eqn.invars[0].aval.dtype != bool or len(cases) != 2:
        raise NotImplementedError("a choice among more than two, which ONNX has not")
    return graph.add("Where", *map(graph.name, (which, cases[1], cases[0])))


def _clamp(graph: Graph, eqn: Any, low: Value, x: Value, high: Value) -> Value:
    raised = graph.add("Max", graph.name(x), graph.name(low))
    return graph.add("Min", raised, graph.name(high))


def _power(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.add("Pow", graph.name(x), _scalar(graph, eqn, eqn.params["y"]))


def _square(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.add("Mul", graph.name(x), graph.name(x))


def _rsqrt(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.add("Reciprocal", graph.add("Sqrt", graph.name(x)))


def _cbrt(graph: Graph, eqn: Any, x: Value) -> Value:
    root = graph.add("Pow", graph.add("Abs", graph.name(x)), _scalar(graph, eqn, 1 / 3))
    return graph.add("Mul", graph.add("Sign", graph.name(x)), root)


def _round(graph: Graph, eqn: Any, x: Value) -> Value:
    if eqn.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise NotImplementedError("rounding of halves away from zero, which ONNX has not")
    return graph.add("Round", graph.name(x))


def _reduce(operator: str) -> Operator:
    def reduce(graph: Graph, eqn: Any, x: Value) -> Value:
        axes = _integers(graph, eqn.params["axes"])
        return graph.add(operator, graph.name(x), axes, keepdims=0)

    return reduce


def _argmax(graph: Graph, eqn: Any, x: Value) -> Value:
    (axis,) = eqn.params["axes"]
    return _cast(graph, eqn, graph.add("ArgMax", graph.name(x), axis=axis, keepdims=0))


def _reshape(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.reshape(graph.name(x), _shape(eqn), _made(eqn))


def _broadcast(graph: Graph, eqn: Any, x: Value) -> Value:
    old, new = _shape(eqn), _made(eqn)
    wide: list[Any] = [1] * len(new)
    for place, size in zip(eqn.params["broadcast_dimensions"], old, strict=True):
        wide[place] = size
    made = graph.reshape(graph.name(x), old, wide)
    same = list(map(str, wide)) == list(map(str, new))
    return made if same else graph.add("Expand", made, graph.shape(new))


def _transpose(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.add("Transpose", graph.name(x), perm=list(eqn.params["permutation"]))


def _concatenate(graph: Graph, eqn: Any, *values: Value) -> Value:
    parts = [graph.name(value) for value in values if not isinstance(value, Empty)]
    axis = eqn.params["dimension"]
    return graph.add("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _stack(graph: Graph, eqn: Any, *values: Value) -> Value:
    axis = eqn.params["axis"]
    where = _integers(graph, [axis])
    parts = (graph.add("Unsqueeze", graph.name(value), where) for value in values)
    return graph.add("Concat", *parts, axis=axis)


def _slice(graph: Graph, eqn: Any, x: Value) -> Value:
    size, p = _shape(eqn), eqn.params
    strides = p["strides"] or (1,) * len(size)
    cut = [
        axis
        for axis, (start, stop, stride) in enumerate(
            zip(p["start_indices"], p["limit_indices"], strides, strict=True)
        )
        if (str(start), str(stop), stride) != ("0", str(size[axis]), 1)
    ]
    if not cut:
        return x
    starts, stops = (
        graph.shape([p[key][axis] for axis in cut]) for key in ("start_indices", "limit_indices")
    )
    steps = _integers(graph, [strides[axis] for axis in cut])
    return graph.add("Slice", graph.name(x), starts, stops, _integers(graph, cut), steps)


def _reverse(graph: Graph, eqn: Any, x: Value) -> Value:
    axes = eqn.params["dimensions"]
    starts, stops, steps = ([number] * len(axes) for number in (-1, -_END, -1))
    numbers = (_integers(graph, part) for part in (starts, stops, list(axes), steps))
    return graph.add("Slice", graph.name(x), *numbers)


def _pad(graph: Graph, eqn: Any, x: Value, value: Value) -> Value:
    lows, highs, inner = zip(*eqn.params["padding_config"], strict=True)
    if any(inner) or any(n < 0 for n in lows + highs):
        raise NotImplementedError("padding within or of less than nothing, which ONNX has not")
    return graph.add("Pad", graph.name(x), _integers(graph, lows + highs), graph.name(value))


def _gather(graph: Graph, eqn: Any, x: Value, index: Value) -> Value:
    """Rows of a table by number, or a part of an array at a known place."""
    numbers, sizes, old = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], _shape(eqn)
    gone, (axis, *more) = numbers.collapsed_slice_dims, numbers.start_index_map
    whole = all(str(s) == str(old[i]) for i, s in enumerate(sizes) if i != axis)
    if more or not whole or numbers.operand_batching_dims or gone not in ((), (axis,)):
        raise NotImplementedError("a selection of several places at once")
    if isinstance(index, np.ndarray) and index.shape == (1,):
        start = int(index[0])
        where = (graph.shape([n]) for n in (start, start + sizes[axis], axis))
        made = graph.add("Slice", graph.name(x), *where)
        return graph.add("Squeeze", made, _integers(graph, [axis])) if gone else made
    rank = len(_shape(eqn, 1)) - 1
    if axis or not gone or numbers.offset_dims != tuple(range(rank, rank + len(old) - 1)):
        raise NotImplementedError("a selection other than of the rows of a table")
    places = graph.add("Squeeze", graph.name(index), _integers(graph, [rank]))
    return graph.add("Gather", graph.name(x), places, axis=0)


def _convolution(graph: Graph, eqn: Any, x: Value, kernel: Value) -> Value:
    """Of `[b, h, w, c]` by `[kh, kw, c, o]`; ONNX has channels first."""
    p = eqn.params
    layout, ones = p["dimension_numbers"], (1, 1)
    usual = layout.lhs_spec == layout.out_spec == (0, 3, 1, 2) and layout.rhs_spec == (3, 2, 0, 1)
    grouped = p["feature_group_count"] != 1 or p["batch_group_count"] != 1
    if not usual or grouped or p["rhs_dilation"] != ones or not isinstance(kernel, np.ndarray):
        raise NotImplementedError("a convolution of another kind than those of the generators")
    turned = graph.add("Transpose", graph.name(x), perm=[0, 3, 1, 2])
    pads = [side[k] for k in (0, 1) for side in p["padding"]]
    if p["lhs_dilation"] == ones:
        weights = graph.constant(kernel.transpose(3, 2, 0, 1))
        made = graph.add("Conv", turned, weights, strides=list(p["window_strides"]), pads=pads)
    else:
        # Of an image with zeros between its pixels: the transpose of a strided convolution, whose
        # padding is what is lacking to all that a kernel can reach.
        pads = [size - 1 - pad for size, pad in zip(kernel.shape[:2] * 2, pads, strict=True)]
        if p["window_strides"] != ones or min(pads) < 0:
            raise NotImplementedError("a transposed convolution of another kind")
        weights = graph.constant(kernel[::-1, ::-1].transpose(2, 3, 0, 1))
        strides = list(p["lhs_dilation"])
        made = graph.add("ConvTranspose", turned, weights, strides=strides, pads=pads)
    return graph.add("Transpose", made, perm=[0, 2, 3, 1])


OPERATORS: dict[str, Operator] = {
    **{name: _plain(operator) for name, operator in _PLAIN.items()},
    **{name: _reduce(operator) for name, operator in _REDUCED.items()},
    **{name: lambda graph, eqn, x: x for name in _SAME},
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast,
    "cbrt": _cbrt,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "dim_as_value": _dim_as_value,
    "gather": _gather,
    "integer_pow": _power,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "round": _round,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "slice": _slice,
    "square": _square,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}
