"""Walk a quantized graph with intervals, and prove on the way that float32 computes its integers exactly.

float32 holds every integer below 2^24. If the largest partial sum of a layer, in units of its grid, stays below
that, then no order of summation rounds, and ONNX Runtime, NumPy and the firmware must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError
from pqc.hardware import intervals
from pqc.hardware.intervals import Interval, TooWide
from pqc.hardware.quantizer import fixed_types
from pqc.layers import is_quant

EXACT_FLOAT = 2**24
FUNCTION_FRACTION = 30
Ranges = dict[ir.Value, Interval]


def propagate(model: ir.Model) -> Ranges:
    """Bounds of every value of a graph that passed the legality rules.

    Raises:
        UnsupportedError: a sum that float32 would round, or an operation that has no rule.
    """
    ranges: Ranges = {}
    for node in model.graph:
        rule = RULES.get(node.op_type)
        if rule is None:
            raise UnsupportedError("there is no interval rule for this operator", at=where(node))
        try:
            ranges[node.outputs[0]] = rule(node, ranges)
        except TooWide as error:
            raise UnsupportedError(
                f"its values span {error}, and no float32 network computes those exactly",
                at=where(node),
                hint="put a Quant before it, or give it fewer bits",
            ) from error
    return ranges


def where(node: ir.Node) -> str:
    """How messages name a node."""
    return f"{node.op_type} '{node.name}'"


def of(value: ir.Value | None, ranges: Ranges) -> Interval:
    """Bounds of `value`, which may be a constant."""
    if value is None:
        raise UnsupportedError("a node lacks an input that it needs")
    if value in ranges:
        return ranges[value]
    array = graph.constant(value)
    if array is None:
        raise UnsupportedError(f"'{value.name}' has no bounds", hint="put a Quant on the graph's input")
    ranges[value] = intervals.of_constant(array)
    return ranges[value]


def require_exact(node: ir.Node, worst: int, fraction: int) -> None:
    """Refuse sums of which float32 would lose bits; `worst` is the largest partial sum in units of its grid."""
    if worst < EXACT_FLOAT:
        return
    raise UnsupportedError(
        f"partial sums reach {worst} units of 2^-{fraction}, and float32 is exact below {EXACT_FLOAT}",
        at=where(node),
        hint=f"take {worst.bit_length() - 24} bits in all from its inputs, weights or bias",
    )


def _quant(node: ir.Node, ranges: Ranges) -> Interval:
    kinds, source = fixed_types(node), node.inputs[0]
    if source is not None and source.is_graph_input():
        return intervals.full(kinds, input_shape(source))
    return intervals.quantize_each(of(source, ranges), kinds)


def input_shape(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a graph input without its batch dimension."""
    dims = [] if value.shape is None else list(value.shape)[1:]
    if not dims or not all(isinstance(dim, int) and dim > 0 for dim in dims):
        raise UnsupportedError(f"input '{value.name}' has no static shape", hint="export it with fixed dimensions")
    return tuple(int(str(dim)) for dim in dims)


def _matmul(node: ir.Node, ranges: Ranges) -> Interval:
    x, weights = of(node.inputs[0], ranges), of(node.inputs[1], ranges)
    rows = Interval(weights.low.T, weights.high.T, weights.fraction)
    total = intervals.weighted(Interval(x.low[:, None], x.high[:, None], x.fraction), rows)
    require_exact(node, total.worst, total.value.fraction)
    return total.value.map(lambda values: values[:, 0])


def _conv(node: ir.Node, ranges: Ranges) -> Interval:
    x, weights = of(node.inputs[0], ranges), of(node.inputs[1], ranges)
    rank = len(weights.shape) - 2
    total = intervals.convolve(x, weights, steps(node, rank), padding(node, rank), groups(node))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        total = total.plus(of(node.inputs[2], ranges))
    require_exact(node, total.worst, total.value.fraction)
    return total.value


def steps(node: ir.Node, rank: int) -> list[int]:
    """The strides of a Conv or pool, all explicit."""
    return integers(node, "strides", [1] * rank)


def padding(node: ir.Node, rank: int) -> list[int]:
    """The pads of a Conv or pool, all begins and then all ends."""
    return integers(node, "pads", [0] * 2 * rank)


def groups(node: ir.Node) -> int:
    """The number of groups of a Conv."""
    return int(str(graph.attribute(node, "group", 1)))


def integers(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """A list attribute, or its default."""
    found = graph.attribute(node, name)
    return [int(value) for value in found] if isinstance(found, Sequence) else list(default)


def _add(node: ir.Node, ranges: Ranges) -> Interval:
    total = intervals.add(of(node.inputs[0], ranges), of(node.inputs[1], ranges))
    require_exact(node, int(total.magnitude.max()), total.fraction)
    return total


def _subtract(node: ir.Node, ranges: Ranges) -> Interval:
    b = of(node.inputs[1], ranges)
    total = intervals.add(of(node.inputs[0], ranges), Interval(-b.high, -b.low, b.fraction))
    require_exact(node, int(total.magnitude.max()), total.fraction)
    return total


def _multiply(node: ir.Node, ranges: Ranges) -> Interval:
    product = intervals.multiply(of(node.inputs[0], ranges), of(node.inputs[1], ranges))
    require_exact(node, int(product.magnitude.max()), product.fraction)
    return product


def _relu(node: ir.Node, ranges: Ranges) -> Interval:
    return of(node.inputs[0], ranges).map(lambda values: np.maximum(values, 0))


def _max_pool(node: ir.Node, ranges: Ranges) -> Interval:
    return pooled(node, of(node.inputs[0], ranges)).map(lambda values: values.max(axis=1))


def pooled(node: ir.Node, x: Interval) -> Interval:
    """The elements under each position of a pool, shape (C, area, *spatial)."""
    kernel = integers(node, "kernel_shape", [])
    rank = len(kernel)
    return x.map(lambda values: intervals.windows(values, kernel, steps(node, rank), padding(node, rank)))


def pool_sum(node: ir.Node, x: Interval) -> Interval:
    """Bounds of the sums under each position of an AveragePool."""
    return pooled(node, x).map(lambda values: values.sum(axis=1))


def pool_fraction(node: ir.Node, x: Interval) -> int:
    """Fraction bits of a mean so that cutting it off cannot move the Quant that follows.

    A mean of k values on a grid of 2^-a, if it is not on a rounding boundary of an output grid 2^-b, is at
    least 1 / (k · 2^max(a, b+1)) away from it. A mean over a power of two of elements is simply exact.
    """
    area = math.prod(integers(node, "kernel_shape", []))
    extra = (area - 1).bit_length()
    if area == 1 << extra:
        return x.fraction + extra
    return max(x.fraction, output_fraction(node) + 1) + extra


def output_fraction(node: ir.Node) -> int:
    """Fraction bits of the finest Quant that takes the output of `node`."""
    return max((fixed_types(use.node).fraction for use in node.outputs[0].uses() if is_quant(use.node)), default=0)


def _average_pool(node: ir.Node, ranges: Ranges) -> Interval:
    x = of(node.inputs[0], ranges)
    total, area = pool_sum(node, x), math.prod(integers(node, "kernel_shape", []))
    fraction = pool_fraction(node, x)
    finest = max(x.fraction, fraction - (area - 1).bit_length())
    require_exact(node, int(total.magnitude.max()) << (finest - x.fraction), finest)
    wide = total.at(fraction)
    return Interval(wide.low // area, -(-wide.high // area), fraction)


def moved_axes(node: ir.Node) -> list[int]:
    """The order of axes that a Transpose gives, the batch not counted."""
    return [axis - 1 for axis in integers(node, "perm", [])[1:]]


def _function(node: ir.Node, ranges: Ranges) -> Interval:
    x, function = of(node.inputs[0], ranges), FUNCTIONS[node.op_type]
    scale = float(1 << FUNCTION_FRACTION)
    low, high = (function(np.ldexp(side.astype(np.float64), -x.fraction)) * scale for side in (x.low, x.high))
    margin = 1 << (FUNCTION_FRACTION - 20)
    return Interval(low.astype(np.int64) - margin, high.astype(np.int64) + margin, FUNCTION_FRACTION)


def _prelu(node: ir.Node, ranges: Ranges) -> Interval:
    x, slopes = of(node.inputs[0], ranges), each_slope(node, ranges)
    negative, positive = (x.map(side) for side in (lambda v: np.minimum(v, 0), lambda v: np.maximum(v, 0)))
    below = intervals.multiply(negative, slopes)
    fraction = max(below.fraction, x.fraction)
    below, above = below.at(fraction), positive.at(fraction)
    require_exact(node, int(below.magnitude.max()), fraction)
    return Interval(np.minimum(below.low, above.low), np.maximum(below.high, above.high), fraction)


def each_slope(node: ir.Node, ranges: Ranges) -> Interval:
    """The slopes of a PRelu, one for each element of its input."""
    shape = of(node.inputs[0], ranges).shape
    slopes = of(node.inputs[1], ranges)
    return slopes.map(lambda v: np.broadcast_to(v.reshape(v.shape[max(v.ndim - len(shape), 0) :]), shape))


def _lookup(node: ir.Node, ranges: Ranges) -> Interval:
    shape, entries = of(node.inputs[0], ranges).shape, of(node.inputs[1], ranges)
    low, high = entries.bounds()
    return Interval(np.full(shape, low), np.full(shape, high), entries.fraction)


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}

RULES: dict[str, Callable[[ir.Node, Ranges], Interval]] = {
    "Quant": _quant,
    "FixedQuant": _quant,
    "MatMul": _matmul,
    "Conv": _conv,
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Relu": _relu,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Flatten": lambda node, ranges: of(node.inputs[0], ranges).map(np.ravel),
    "Transpose": lambda node, ranges: of(node.inputs[0], ranges).map(partial(np.transpose, axes=moved_axes(node))),
    "PRelu": _prelu,
    "Lookup": _lookup,
    **dict.fromkeys(FUNCTIONS, _function),
}
