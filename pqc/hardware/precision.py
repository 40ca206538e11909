"""The hls4ml type of every tensor of every layer, derived and never guessed.

A result that a Quant rounds has that Quant's type. Anything else gets the narrowest type that holds its interval on
its own grid. An accumulator has to hold the final sum only: it wraps, and two's complement sums that pass through an
overflow come back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError
from pqc.hardware import ranges as walk
from pqc.hardware.intervals import Interval
from pqc.hardware.quantizer import FixedType, FixedTypes, fixed_type, fixed_types, rounds_to_one
from pqc.hardware.ranges import Ranges, of
from pqc.hardware.tables import REACH, check_table
from pqc.layers import is_quant

MOVES = ("Flatten", "Transpose")
NO_BIAS = FixedType(1, 1, signed=False)


@dataclass(frozen=True)
class TypeRecord:
    """The derived type of one tensor of one hls4ml layer.

    Args:
        layer: hls4ml's name of the layer.
        node: name of the ONNX node that it computes.
        op: operator of that node.
        tensor: `result`, `weight`, `bias`, `accum`, `table` or `param` (slopes).
        type: the type.
        low: the lowest value that the tensor can take.
        high: the highest value that the tensor can take.
    """

    layer: str
    node: str
    op: str
    tensor: str
    type: FixedType
    low: float
    high: float

    @classmethod
    def of(cls, layer: str, node: ir.Node, tensor: str, kind: FixedType, values: Interval) -> TypeRecord:
        """A record of `values` held in `kind`."""
        low, high = (math.ldexp(bound, -values.fraction) for bound in values.bounds())
        return cls(layer, node.name or "", node.op_type, tensor, kind, low, high)


def derive(model: ir.Model, ranges: Ranges) -> list[TypeRecord]:
    """The types of every layer that hls4ml makes of a graph that passed the legality rules.

    Raises:
        UnsupportedError: a lookup table that hls4ml cannot make exact.
    """
    records: list[TypeRecord] = []
    for node in model.graph:
        if is_quant(node):
            records += _quant(node, ranges)
        elif node.op_type in ("MatMul", "Conv"):
            records += _layer(node, ranges)
        elif node.op_type == "AveragePool":
            records += _average_pool(node, ranges)
        elif node.op_type not in MOVES and not is_fused_bias(node):
            records += _plain(node, ranges)
    return records


def sole_user(value: ir.Value) -> ir.Node | None:
    """The only node that takes `value`, or None if there are none, several, or it is an output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def is_fused_bias(node: ir.Node) -> bool:
    """Whether `node` adds a constant to a MatMul that nothing else takes: hls4ml makes one layer of the two."""
    return node.op_type == "Add" and any(
        value is not None and (producer := value.producer()) is not None and _bias_add(producer) is node
        for value in node.inputs
    )


def constant_through_quant(value: ir.Value | None) -> bool:
    """Whether `value` is a constant or the Quant of one."""
    producer = None if value is None else value.producer()
    return graph.constant(producer.inputs[0] if producer and is_quant(producer) else value) is not None


def layer_name(node: ir.Node, ranges: Ranges) -> str:
    """hls4ml's name for the layer it makes of a MatMul or a Conv."""
    if node.op_type == "MatMul":
        return f"Dense_{node.name}"
    rank = len(of(node.inputs[1], ranges).shape) - 2
    return f"{'Depthwise' if walk.groups(node) > 1 else ''}Conv{rank}D_{node.name}"


def result_type(value: ir.Value, ranges: Ranges) -> FixedType:
    """The type of a layer's result: that of the quantizer which alone takes it, else the narrowest lossless one."""
    user = sole_user(value)
    return fixed_type(user) if user is not None and rounds_to_one(user) else lossless(value, ranges[value])


def lossless(value: ir.Value, values: Interval) -> FixedType:
    """The narrowest type for `values`, which reaches up to the grids that `value` is going to be rounded to.

    ap_fixed reads the bit below the new grid when it rounds, and stops where a type ends below that bit.
    """
    kind = values.type()
    reach = max((1 - fraction for fraction in _next_grids(value)), default=kind.integer)
    integer = max(kind.integer, reach)
    return FixedType(integer + kind.fraction, integer, kind.signed)


def held(value: ir.Value, ranges: Ranges) -> FixedType:
    """The type in which hls4ml holds what a node takes that rounds nothing: its producer's."""
    producer = value.producer()
    if producer is not None and producer.op_type in MOVES:
        return held(graph.operand(producer, 0), ranges)
    if producer is not None and is_quant(producer) and rounds_to_one(producer):
        return fixed_type(producer)
    return lossless(value, ranges[value])


def _next_grids(value: ir.Value) -> Iterator[int]:
    """Fraction bits of the quantizers that take `value`, directly or behind nodes without weights."""
    for use in value.uses():
        if is_quant(use.node):
            yield from (kind.fraction for kind in fixed_types(use.node).kinds())
        elif use.node.op_type not in ("MatMul", "Conv", "Lookup"):
            yield from _next_grids(use.node.outputs[0])


def _quant(node: ir.Node, ranges: Ranges) -> list[TypeRecord]:
    source, values = node.inputs[0], ranges[node.outputs[0]]
    if source is None or constant_through_quant(source):
        return []
    if not rounds_to_one(node):
        kinds = fixed_types(node)
        own = TypeRecord.of(node.name or "", node, "result", lossless(node.outputs[0], values), values)
        port = [TypeRecord.of(source.name or "", node, "result", port_type(kinds), values)]
        return [*(port if source.is_graph_input() else []), own]
    if source.is_graph_input():
        return [TypeRecord.of(source.name or "", node, "result", fixed_type(node), values)]
    producer = source.producer()
    merged = producer is not None and sole_user(source) is node and takes_quant(producer)
    return [] if merged else [TypeRecord.of(f"{node.name}_act", node, "result", fixed_type(node), values)]


def port_type(kinds: FixedTypes) -> FixedType:
    """A type for float32 numbers from which rounding to `kinds` gives what rounding the numbers themselves gives.

    Cutting off moves no number past a tie if the ties are on the grid and float32 has nothing between a tie and
    the next point of it: the least tie, 2^-(f+1), has its neighbour 2^-(f+25) below. Rounding up needs the tie only.
    """
    guard = {"TRN": 0, "RND": 1}.get(kinds.rounding, 25)
    integer = max((kind.integer for kind in kinds.kinds()), default=1)
    fraction = kinds.fraction + guard
    overflow = "WRAP" if kinds.overflow == "WRAP" else "SAT"
    return FixedType(max(integer + fraction, 1), integer, kinds.signed, "TRN", overflow)


def takes_quant(node: ir.Node) -> bool:
    """Whether hls4ml lets the layer of `node` round its own result to the Quant that follows."""
    return node.op_type in ("MatMul", "Conv", "Relu", *REACH) or is_fused_bias(node)


def _bias_add(node: ir.Node) -> ir.Node | None:
    user = sole_user(node.outputs[0]) if node.op_type == "MatMul" else None
    if user is None or user.op_type != "Add":
        return None
    return user if any(constant_through_quant(value) for value in user.inputs) else None


def _layer(node: ir.Node, ranges: Ranges) -> list[TypeRecord]:
    name, add = layer_name(node, ranges), _bias_add(node)
    end = (add or node).outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if add is not None:
        bias = next(value for value in add.inputs if constant_through_quant(value))
    records = [
        TypeRecord.of(name, node, "accum", lossless(end, ranges[end]), ranges[end]),
        TypeRecord.of(name, node, "weight", _constant_type(node.inputs[1], ranges), of(node.inputs[1], ranges)),
        TypeRecord.of(name, node, "result", result_type(end, ranges), _after_quant(end, ranges)),
    ]
    if bias is None:
        return [*records, TypeRecord(name, node.name or "", node.op_type, "bias", NO_BIAS, 0.0, 0.0)]
    return [*records, TypeRecord.of(name, node, "bias", _constant_type(bias, ranges), of(bias, ranges))]


def _constant_type(value: ir.Value | None, ranges: Ranges) -> FixedType:
    producer = None if value is None else value.producer()
    return fixed_type(producer) if producer is not None and is_quant(producer) else of(value, ranges).type()


def _of_constant(name: str, node: ir.Node, tensor: str, value: ir.Value, ranges: Ranges) -> TypeRecord:
    return TypeRecord.of(name, node, tensor, _constant_type(value, ranges), of(value, ranges))


def _after_quant(value: ir.Value, ranges: Ranges) -> Interval:
    user = sole_user(value)
    return ranges[user.outputs[0]] if user is not None and rounds_to_one(user) else ranges[value]


def _average_pool(node: ir.Node, ranges: Ranges) -> list[TypeRecord]:
    x, mean = of(node.inputs[0], ranges), ranges[node.outputs[0]]
    total, output = walk.pool_sum(node, x).at(mean.fraction), node.outputs[0]
    return [
        TypeRecord.of(node.name or "", node, "accum", lossless(output, total), total),
        TypeRecord.of(node.name or "", node, "result", lossless(output, mean), mean),
    ]


def _plain(node: ir.Node, ranges: Ranges) -> list[TypeRecord]:
    value, name = node.outputs[0], node.name or ""
    if node.op_type in ("Add", "Sub", "Mul", "MaxPool", "Lookup", "PRelu"):
        # the accumulator of a MaxPool holds the elements that it compares, not only the largest
        x = of(node.inputs[0], ranges)
        result = TypeRecord.of(name, node, "result", lossless(value, ranges[value]), ranges[value])
        pool = [TypeRecord.of(name, node, "accum", lossless(value, x), x)] if node.op_type == "MaxPool" else []
        table = [replace(result, tensor="table")] if node.op_type == "Lookup" else []
        slopes = graph.operand(node, 1) if node.op_type == "PRelu" else None
        parameter = [] if slopes is None else [_of_constant(name, node, "param", slopes, ranges)]
        return [*pool, *table, *parameter, result]
    kind = result_type(value, ranges)
    if node.op_type in REACH:
        _check_function(node, kind, ranges)
    return [TypeRecord.of(name, node, "result", kind, _after_quant(value, ranges))]


def _check_function(node: ir.Node, kind: FixedType, ranges: Ranges) -> None:
    user = sole_user(node.outputs[0])
    if user is None or not rounds_to_one(user):
        raise UnsupportedError(
            "no quantizer with one type rounds its result", at=walk.where(node), hint="put one right behind it"
        )
    check_table(node, of(node.inputs[0], ranges), kind)
