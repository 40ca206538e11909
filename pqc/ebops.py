"""Effective bit operations of a graph, as nodes of a graph: exact, and differentiable in widths that are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.functions.costs import DENSE_COST, LARGEST, WIDTH

FLOAT_BITS = 32
"""What a number counts that no quantizer rounds."""
SAME_GRID = layers.MOVES | {"Relu"}
"""What leaves numbers on the grid they are on."""


@dataclass(frozen=True)
class Terms:
    """The cost of one layer as values of the graph, and the widths that it comes from.

    Args:
        products: sum of (bits of an input) x (bits of a weight), a scalar.
        additions: bits of the bias, once for each output, a scalar; None without bias.
        data: widths of what enters, [1, ...].
        weight: widths of the weights, in their shape.
        bias: widths of the biases, or None.
    """

    products: ir.Value
    additions: ir.Value | None
    data: ir.Value
    weight: ir.Value
    bias: ir.Value | None


class Counter:
    """Adds nodes that count bits and bit operations, at the end of a graph.

    A convolution counts one multiplier for each weight, whose input is as wide as its channel's widest; a dense layer
    counts one for each weight and position. Widths include the sign bit. A weight whose mask is zero counts nothing.

    Args:
        main: the graph; parameters and bits may be initializers or computed.
        nonzero: leave out parameters that are zero once masked and rounded, rather than those whose mask is zero.
        signs: count the sign bits, as QONNX's widths do; HGQ2 counts without them.
    """

    def __init__(self, main: ir.Graph, *, nonzero: bool = False, signs: bool = True) -> None:
        self.main = main
        self.nonzero = nonzero
        self.signs = signs
        self.names = graph.Names(main)
        self._widths: dict[ir.Value, ir.Value] = {}

    def layer(self, layer: layers.Layer) -> Terms:
        """The cost of a layer."""
        operand = graph.operand(layer.node, layers.WEIGHT_INPUT)
        data, weight = self.width(graph.operand(layer.node, 0)), self.width(operand)
        products = self._add(
            DENSE_COST.key, [self._by_channel(layer, data), self._by_input(layer, self._present(operand))], "products"
        )
        if layer.bias is None or layer.bias_add is None or layer.bias_index is None:
            return Terms(products, None, data, weight, None)
        added = graph.operand(layer.bias_add, layer.bias_index)
        bias = self.width(added)
        additions = self._add(("", "ReduceSum"), [self._present(added)], "additions", {"keepdims": 0})
        if _positions(layer) != 1:
            outputs = self._constant(np.float32(_positions(layer)))
            additions = self._add(("", "Mul"), [additions, outputs], "additions")
        return Terms(products, additions, data, weight, bias)

    def width(self, value: ir.Value) -> ir.Value:
        """The bits of each element of a parameter, or of an activation [1, ...]."""
        if value not in self._widths:
            self._widths[value] = self._width(value)
        return self._widths[value]

    def _width(self, value: ir.Value) -> ir.Value:
        node, shape = value.producer(), _shape(value)
        if node is None:
            return self._constant(np.full(shape, FLOAT_BITS, np.float32))
        if layers.is_fixed_quant(node):
            return self._of_masked(node, self._full(self._fixed_width(node), shape))
        if layers.is_quant(node):
            bits, signed = layers.widths(node), node.attributes.get_int("signed", 1)
            bits = np.array(FLOAT_BITS) if bits is None else bits - (signed and not self.signs)
            return self._of_masked(node, self._constant(np.broadcast_to(bits, shape).astype(np.float32)))
        if layers.applies_mask(node):
            width = self.width(graph.operand(node, 0))
            return width if self.nonzero else self._masked(width, graph.operand(node, 1))
        if not node.domain and node.op_type == "Mul" and _is_gate(graph.constant(node.inputs[1])):
            return self._masked(self.width(graph.operand(node, 0)), graph.operand(node, 1))
        if not node.domain and node.op_type in SAME_GRID and len(node.inputs) > 0:
            return self._moved(node, value)
        return self._constant(np.full(shape, FLOAT_BITS, np.float32))

    def _of_masked(self, node: ir.Node, width: ir.Value) -> ir.Value:
        """The widths that a quantizer gives, none where a mask before it lets nothing through."""
        before = graph.operand(node, 0).producer()
        if self.nonzero or before is None or not layers.applies_mask(before):
            return width
        return self._masked(width, graph.operand(before, 1))

    def _fixed_width(self, node: ir.Node) -> ir.Value:
        attributes = {"signed": node.attributes.get_int("signed", 1) if self.signs else 0}
        bits = [graph.operand(node, 1), graph.operand(node, 2)]
        width = self._add(WIDTH.key, bits, f"{node.name}.width", attributes)
        width.shape = ir.Shape(np.broadcast_shapes(*(graph.dims(one) for one in bits)))
        return width

    def _full(self, width: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        if tuple(graph.dims(width)) == shape:
            return width
        wanted = self._constant(np.array(shape, np.int64))
        return self._add(("", "Expand"), [width, wanted], "width.full", {}, shape)

    def _masked(self, width: ir.Value, mask: ir.Value) -> ir.Value:
        """Width where the mask is not zero; no gradient goes to the mask."""
        zero = self._constant(np.float32(0))
        there = self._add(("", "Greater"), [mask, zero], "mask.there", {}, None, ir.DataType.BOOL)
        gate = self._add(("", "Cast"), [there], "mask.gate", {"to": int(ir.DataType.FLOAT)})
        return self._add(("", "Mul"), [width, gate], "width.masked", {}, graph.dims(width))

    def _present(self, operand: ir.Value) -> ir.Value:
        """The widths of parameters, zero for those that are."""
        width = self.width(operand)
        return self._masked(width, self._add(("", "Abs"), [operand], "weight.size")) if self.nonzero else width

    def _moved(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """What the operator makes of the widths of its inputs: it only moves them, or takes the largest."""
        moved = [self.width(one) if one is not None and _is_data(one) else one for one in node.inputs]
        if node.op_type == "Relu":
            return self.width(graph.operand(node, 0))
        place = next(number for number, output in enumerate(node.outputs) if output is value)
        outputs = [ir.val(self.names.new(f"{node.name}.width"), ir.DataType.FLOAT) for _ in node.outputs]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        name = self.names.new(f"{node.name}.widths")
        self.main.append(ir.node(node.op_type, moved, attributes, name=name, outputs=outputs))
        outputs[place].shape = ir.Shape(_shape(value))
        return outputs[place]

    def _by_channel(self, layer: layers.Layer, width: ir.Value) -> ir.Value:
        """The widths that multipliers see: of a convolution's channels, [1, channels]; else as they are."""
        if layer.node.op_type not in ("Conv", "ConvTranspose"):
            return width
        return self._add(LARGEST.key, [width], "width.largest", {}, (1, layer.channels("input")))

    def _by_input(self, layer: layers.Layer, width: ir.Value) -> ir.Value:
        """The widths of weights as [inputs, ...]."""
        shape, operator = graph.dims(layer.weight), layer.node.op_type
        if operator in ("MatMul", "Gemm"):
            turned = layer.output_axis == 0
            return self._add(("", "Transpose"), [width], "width.turned", {"perm": [1, 0]}) if turned else width
        rows = self._constant(np.array([layer.channels("input"), -1], np.int64))
        if operator == "Conv":
            groups = layer.node.attributes.get_int("group", 1)
            parts = self._constant(np.array([groups, shape[0] // groups, shape[1], math.prod(shape[2:])], np.int64))
            width = self._add(("", "Reshape"), [width, parts], "width.groups")
            width = self._add(("", "Transpose"), [width], "width.inputs", {"perm": [0, 2, 1, 3]})
        return self._add(("", "Reshape"), [width, rows], "width.rows")

    def _constant(self, array: np.ndarray | np.float32) -> ir.Value:
        return graph.add_initializer(self.main, self.names.new("bits"), np.asarray(array))

    def _add(
        self,
        key: tuple[str, str],
        inputs: list[ir.Value],
        name: str,
        attributes: Mapping[str, object] | None = None,
        shape: tuple[int, ...] | None = None,
        kind: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        output = ir.val(self.names.new(f"{name}.out"), kind, shape)
        node = ir.node(
            key[1], inputs, dict(attributes or {}), domain=key[0], name=self.names.new(name), outputs=[output]
        )
        self.main.append(node)
        return output


def _is_gate(array: np.ndarray | None) -> bool:
    """Whether a factor only lets numbers through or not."""
    return array is not None and bool(np.isin(array, (0, 1)).all())


def _is_data(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a parameter, or of one row of an activation, [1, ...]; unknown lengths count as one."""
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in (value.shape.dims if value.shape is not None else ()))
    return shape if layers.source(value) is not None or not shape else (1, *shape[1:])


def _positions(layer: layers.Layer) -> int:
    """How many outputs one bias is added to."""
    shape = layer.output.shape
    if shape is None:
        return 1
    lengths = [dim if isinstance(dim, int) else 1 for dim in shape.dims]
    return math.prod(lengths[2:] if layer.node.op_type in ("Conv", "ConvTranspose") else lengths[1:-1])
