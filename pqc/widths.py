"""Bit widths of what a graph computes with, as nodes: exact, and differentiable where bits are trained."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.appending import Appender
from pqc.conventions import Convention
from pqc.functions.costs import WIDTH

FLOAT_BITS = 32
"""What a number counts that no quantizer rounds."""
SAME_GRID = layers.MOVES | {"Relu"}
"""What leaves numbers on the grid they are on."""


class Widths:
    """Adds the nodes that compute widths.

    Args:
        nodes: where to.
        convention: whether signs count, and parameters that are zero.
    """

    def __init__(self, nodes: Appender, convention: Convention) -> None:
        self.nodes = nodes
        self.convention = convention
        self._known: dict[tuple[ir.Value, bool], ir.Value] = {}

    def of(self, value: ir.Value, *, signs: bool = True) -> ir.Value:
        """The bits of each element of a parameter, in its shape, or of an activation [1, ...].

        Args:
            value: the numbers.
            signs: count sign bits, if the convention does.
        """
        key = value, signs and self.convention.signs
        if key not in self._known:
            self._known[key] = self._width(*key)
        return self._known[key]

    def present(self, parameter: ir.Value) -> ir.Value:
        """The bits of each element of a parameter, none for those that are zero unless they count."""
        width = self.of(parameter)
        if self.convention.zeros or layers.source(parameter) is None:
            return width
        return self._masked(width, self.nodes.add("Abs", [parameter], "weight.size"))

    def written(self, value: ir.Value) -> ir.Value:
        """The widths that the quantizer which reads `value` gives it."""
        quantizer = next((node for node in value.consumers() if layers.is_quant(node)), None)
        return self.of(value if quantizer is None else quantizer.outputs[0])

    def full(self, width: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """`width` for each element of a tensor of this shape."""
        if tuple(graph.dims(width)) == shape:
            return width
        wanted = self.nodes.constant(np.array(shape, np.int64))
        return self.nodes.add("Expand", [width, wanted], "width.full", {}, shape)

    def _width(self, value: ir.Value, signs: bool) -> ir.Value:
        node, shape = value.producer(), _shape(value)
        if node is not None and layers.is_quant(node):
            return self._of_masked(node, self._quantized(node, signs, shape))
        if node is not None and layers.applies_mask(node):
            width = self.of(graph.operand(node, 0), signs=signs)
            return self._masked(width, graph.operand(node, 1)) if self.convention.zeros else width
        if node is not None and is_gated(node):
            return self._masked(self.of(graph.operand(node, 0), signs=signs), graph.operand(node, 1))
        if node is not None and _stays_on_grid(node):
            return self._moved(node, value, signs)
        return self.nodes.constant(np.full(shape, FLOAT_BITS, np.float32))

    def _quantized(self, node: ir.Node, signs: bool, shape: tuple[int, ...]) -> ir.Value:
        if layers.is_fixed_quant(node):
            return self.full(self._fixed_width(node, signs), shape)
        bits, signed = layers.widths(node), node.attributes.get_int("signed", 1)
        bits = np.asarray(FLOAT_BITS) if bits is None else bits - (signed and not signs)
        return self.nodes.constant(np.broadcast_to(bits, shape).astype(np.float32))

    def _fixed_width(self, node: ir.Node, signs: bool) -> ir.Value:
        counted = node.attributes.get_int("signed", 1) if signs else 0
        alone = counted and self.convention.lone_signs
        bits = [graph.operand(node, 1), graph.operand(node, 2)]
        shape = np.broadcast_shapes(*(graph.dims(one) for one in bits))
        attributes = {"signed": 0 if alone else counted}
        width = self.nodes.add(WIDTH.key, bits, f"{node.name}.width", attributes, shape)
        if alone:
            width = self.nodes.add("Add", [width, self.nodes.constant(np.float32(1))], "width.sign", {}, shape)
        return width

    def _of_masked(self, node: ir.Node, width: ir.Value) -> ir.Value:
        """The widths that a quantizer gives, none where a mask before it lets nothing through."""
        before = graph.operand(node, 0).producer()
        if before is not None and layers.is_folded(before):
            before = graph.operand(before, 0).producer()
        if not self.convention.zeros or before is None or not layers.applies_mask(before):
            return width
        return self._masked(width, graph.operand(before, 1))

    def _masked(self, width: ir.Value, mask: ir.Value) -> ir.Value:
        """Width where the mask is not zero; no gradient goes to the mask."""
        zero = self.nodes.constant(np.float32(0))
        there = self.nodes.add("Greater", [mask, zero], "mask.there", {}, None, ir.DataType.BOOL)
        gate = self.nodes.add("Cast", [there], "mask.gate", {"to": int(ir.DataType.FLOAT)})
        return self.nodes.add("Mul", [width, gate], "width.masked", {}, graph.dims(width))

    def _moved(self, node: ir.Node, value: ir.Value, signs: bool) -> ir.Value:
        """What the operator makes of the widths of its inputs: it moves them, or leaves out signs."""
        if node.op_type == "Relu":
            return self.of(graph.operand(node, 0), signs=False)
        moved = [self.of(one, signs=signs) if one is not None and _is_data(one) else one for one in node.inputs]
        place = next(number for number, output in enumerate(node.outputs) if output is value)
        names, attributes = self.nodes.names, {name: one.value for name, one in node.attributes.items()}
        outputs = [ir.val(names.new(f"{node.name}.width"), ir.DataType.FLOAT) for _ in node.outputs]
        name = names.new(f"{node.name}.widths")
        self.nodes.main.append(ir.node(node.op_type, moved, attributes, name=name, outputs=outputs))
        outputs[place].shape = ir.Shape(_shape(value))
        return outputs[place]


def on_grid(value: ir.Value) -> bool:
    """Whether a quantizer says how wide an activation is."""
    node = value.producer()
    if node is None or layers.is_quant(node):
        return node is not None
    if layers.applies_mask(node) or is_gated(node):
        return on_grid(graph.operand(node, 0))
    return _stays_on_grid(node) and all(on_grid(one) for one in node.inputs if one is not None and _is_data(one))


def is_gated(node: ir.Node) -> bool:
    """Whether a multiplication only lets numbers through or not."""
    if node.domain or node.op_type != "Mul":
        return False
    factor = graph.constant(node.inputs[1])
    return factor is not None and bool(np.isin(factor, (0, 1)).all())


def _stays_on_grid(node: ir.Node) -> bool:
    return not node.domain and node.op_type in SAME_GRID and len(node.inputs) > 0


def _is_data(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a parameter, or of one row of an activation."""
    return graph.row_shape(value) if layers.source(value) is None or value.shape is None else graph.dims(value)
