from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.qcdq import along_axis, reason_to_keep
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class WriteQcdq(Pass):
    """Write quantizers with ONNX's own operators: quantize, clip, dequantize.

    Quant(x) → DequantizeLinear(Clip(QuantizeLinear(x))) with eight bits, without Clip where all of them are used.
    Quant(W), W being on its grid → DequantizeLinear(integers): eight bits, or thirty-two where eight do not hold them,
    or where they meet an activation that stays as it is: runtimes round such a one to eight bits, too, for speed.
    Leaves what these operators do not compute exactly: other roundings than half to even, zero points, activations over
    eight bits or with widths of their own, scales that do not lie along one axis, FixedQuant.
    """

    title: ClassVar[str] = "write-qcdq"

    def rewrite(self, model: ir.Model) -> int:
        writer = _Writer(model.graph)
        quants = [node for node in model.graph if layers.is_quant(node)]
        activations_first = sorted(quants, key=lambda node: graph.constant(node.inputs[0]) is not None)
        written = sum(writer.write(node) for node in activations_first)
        if written:
            graph.remove_unused(model.graph)
        return written


class _Writer:
    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.names = graph.Names(main)

    def write(self, node: ir.Node) -> bool:
        grid, array = layers.grid(node), graph.constant(node.inputs[0])
        x, reason = graph.operand(node, 0), reason_to_keep(node)
        if grid is None or reason is not None:
            explain(node, f"kept: {reason}")
            return False
        assert x.shape is not None
        placed = along_axis(grid.scale, len(x.shape))
        assert placed is not None
        scale, axis = placed
        if array is not None:
            integers = np.rint(array.astype(np.float64) / grid.scale)
            small = integers.min(initial=0) >= -128 and integers.max(initial=0) <= 127
            kind: type[np.integer[Any]] = np.int8 if small and _meets_integers(node) else np.int32
            rounded = graph.add_initializer(self.main, self.names.new(f"{x.name}.integers"), integers.astype(kind))
        else:
            rounded = self._rounded(node, x, grid, scale, axis)
        step = graph.add_initializer(self.main, self.names.new(f"{node.name}.step"), scale)
        output = self._add("DequantizeLinear", [rounded, step], f"{node.name}.dequantize", {"axis": axis}, node)
        output.dtype, output.shape = ir.DataType.FLOAT, node.outputs[0].shape
        graph.replace(node.outputs[0], output)
        return True

    def _rounded(self, node: ir.Node, x: ir.Value, grid: layers.Grid, scale: np.ndarray, axis: int) -> ir.Value:
        """The integers of an activation, int8 or uint8."""
        kind = np.int8 if grid.signed else np.uint8
        step = graph.add_initializer(self.main, self.names.new(f"{node.name}.step"), scale)
        zero = graph.add_initializer(self.main, self.names.new(f"{node.name}.zero"), np.zeros(scale.shape, kind))
        value = self._add("QuantizeLinear", [x, step, zero], f"{node.name}.quantize", {"axis": axis}, node)
        bits = int(grid.bits.flat[0])
        levels = 2 ** (bits - grid.signed)
        low, high = (grid.narrow - levels if grid.signed else 0), levels - 1 - (grid.narrow and not grid.signed)
        if (low, high) != (np.iinfo(kind).min, np.iinfo(kind).max):
            bounds = [
                graph.add_initializer(self.main, self.names.new(f"{node.name}.{name}"), np.array(bound, kind))
                for name, bound in (("low", low), ("high", high))
            ]
            value = self._add("Clip", [value, *bounds], f"{node.name}.clip", {}, node)
        return value

    def _add(
        self, operator: str, inputs: list[ir.Value], name: str, attributes: dict[str, int], before: ir.Node
    ) -> ir.Value:
        output = ir.val(self.names.new(f"{name}.out"))
        node = ir.node(operator, inputs, attributes, name=self.names.new(name), outputs=[output])
        self.main.insert_before(before, node)
        return output


def _meets_integers(node: ir.Node) -> bool:
    """Whether every activation that a weight is multiplied by was written as integers."""
    products = [
        reader for reader, index in node.outputs[0].uses() if reader.op_type in layers.OUTPUT_AXIS and index == 1
    ]
    return all(_dequantized(graph.operand(reader, 0)) for reader in products)


def _dequantized(value: ir.Value) -> bool:
    """Whether a value comes from DequantizeLinear, perhaps through what only moves it."""
    node = value.producer()
    while node is not None and not node.domain and node.op_type in layers.MOVES | {"Relu"}:
        node = graph.operand(node, 0).producer()
    return node is not None and node.op_type == "DequantizeLinear"
