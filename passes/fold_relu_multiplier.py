from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.functions.multiplier import MULTIPLIER
from pqc.quantizer_sites import LEARNS
from pqc.rewriting import Pass, explain

FACTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(layers.OUTPUT_AXIS, (1, 2)),
    **dict.fromkeys(("Add", "Sub"), (0, 1)),
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "AveragePool", "GlobalAveragePool", "Neg", "Abs", "Mul"), (0,)),
    **dict.fromkeys(layers.MOVES - {"Concat", "Split"}, (0,)),
}
"""Operators, and the inputs that must all grow by a positive factor for the result to do so."""
Places = list[tuple[ir.Node, int]]
"""Constants, as inputs of nodes."""


@dataclass(frozen=True)
class FoldReluMultiplier(Pass):
    """Put the learned multipliers of ReLUs into the weights before.

    Relu(2^round(m) · (Quant(W) x)) → Relu(Quant(W') x) with W' = 2^round(m) W, and the grid of W' moved as far; biases
    and quantizers on the way likewise. Powers of two cost float32 no bit. Where anything else reads what comes before →
    Relu(c · x) with a constant c.
    Leaves graphs without multipliers alone.
    """

    title: ClassVar[str] = "fold-relu-multiplier"

    def rewrite(self, model: ir.Model) -> int:
        found = [node for node in model.graph if (node.domain, node.op_type) == MULTIPLIER.key]
        for node in found:
            _fold(model.graph, node)
        if found:
            graph.remove_unused(model.graph)
            library.unlink(model)
            library.link(model)
        return len(found)


def _fold(main: ir.Graph, node: ir.Node) -> None:
    names, x = graph.Names(main), graph.operand(node, 0)
    exponent = int(np.rint(graph.stored(graph.operand(node, 1))))
    changes = _changes(x, exponent)
    if changes is None:
        factor = np.ldexp(np.float32(1), exponent)
        constant = graph.add_initializer(main, names.new(f"{node.name}.by"), np.asarray(factor))
        output = ir.val(names.new(f"{node.name}.product"), x.dtype, x.shape)
        main.insert_before(node, ir.node("Mul", [x, constant], name=names.new(f"{node.name}.mul"), outputs=[output]))
        explain(node, f"a product with {factor:g}: what comes before cannot take it")
        graph.replace(node.outputs[0], output)
        return
    for reader, index in changes:
        _change(main, names, reader, index, exponent)
    graph.replace(node.outputs[0], x)


def _changes(value: ir.Value, exponent: int) -> Places | None:
    """The constants, as inputs of nodes, that make `value` 2^exponent times as large, or None if there are none."""
    node = value.producer()
    if node is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    if layers.is_quant(node):
        own = [1, 2] if layers.is_fixed_quant(node) else [1]
        if LEARNS in node.metadata_props or any(graph.constant(node.inputs[index]) is None for index in own):
            return None
        return _joined([[(node, index) for index in own], _of_input(node, 0, exponent)])
    if node.domain or node.op_type not in FACTORS:
        return None
    wanted = [index for index in FACTORS[node.op_type] if index < len(node.inputs) and node.inputs[index] is not None]
    return _joined([_of_input(node, index, exponent) for index in wanted])


def _of_input(node: ir.Node, index: int, exponent: int) -> Places | None:
    value = graph.operand(node, index)
    array = graph.constant(value)
    if array is None:
        return _changes(value, exponent)
    exact = np.array_equal(np.ldexp(np.ldexp(array, exponent), -exponent), array)
    return [(node, index)] if exact else None


def _joined(parts: list[Places | None]) -> Places | None:
    found: Places = []
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def _change(main: ir.Graph, names: graph.Names, node: ir.Node, index: int, exponent: int) -> None:
    value = graph.operand(node, index)
    array = np.asarray(graph.constant(value))
    if layers.is_fixed_quant(node) and index > 0:
        # Bits are rounded where they are used, and a half that is moved by one would be rounded the other way.
        moved = np.rint(array) + (exponent if index == 1 else -exponent)
    else:
        moved = np.ldexp(array, exponent)
    if len(value.uses()) == 1:
        graph.set_initializer(value, moved)
    else:
        node.replace_input_with(index, graph.add_initializer(main, names.new(f"{value.name}.own"), moved))
