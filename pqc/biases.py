"""Adding a constant to what a layer gives: into its bias, on a grid that holds the sum."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.constants import lowest_bit


def store(main: ir.Graph, node: ir.Node, array: np.ndarray, names: graph.Names) -> None:
    """Make `array` of shape (outputs) the bias of `node`, with one where it has none.

    A Quant before the bias stays, and gets a finer or wider grid where it does not hold `array`. A bias that others
    read too is left to them; a quantized layer without bias gets a quantized one.
    """
    layer = layers.layer_of(node)
    if layer.bias_add is not None and layer.bias_index is not None and layer.bias is not None:
        operand = graph.operand(layer.bias_add, layer.bias_index)
        if _own(operand):
            _overwrite(main, operand, array, names)
        else:
            layer.bias_add.replace_input_with(layer.bias_index, _fresh(main, layer, operand, array, names))
        return
    value = _fresh(main, layer, graph.operand(node, 1), array, names)
    if node.op_type != "MatMul":
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        return
    product, name = node.outputs[0], names.new(f"{node.name}.bias")
    output = ir.val(names.new(f"{product.name}.biased"), product.dtype, product.shape)
    add = ir.node("Add", [None, value], name=name, outputs=[output])
    graph.replace(product, output)
    add.replace_input_with(0, product)
    main.insert_after(node, add)


def _own(operand: ir.Value) -> bool:
    """Whether the bias is an initializer, perhaps behind one Quant, that nothing else reads."""
    quant = operand.producer()
    chain = [operand] if quant is None else [operand, graph.operand(quant, 0)]
    alone = all(len(value.uses()) == 1 and not value.is_graph_output() for value in chain)
    return alone and (quant is None or layers.is_quant(quant)) and chain[-1].is_initializer()


def _overwrite(main: ir.Graph, operand: ir.Value, array: np.ndarray, names: graph.Names) -> None:
    quant = operand.producer()
    if quant is None:
        graph.set_initializer(operand, array)
        return
    value, old = graph.operand(quant, 0), layers.grid(quant)
    graph.set_initializer(value, array)
    operand.shape = ir.Shape(array.shape)
    if old is None or not holds(old, array):
        _widen(main, quant, array, names)


def _fresh(main: ir.Graph, layer: layers.Layer, like: ir.Value, array: np.ndarray, names: graph.Names) -> ir.Value:
    """A new initializer, behind a Quant if `like` comes from one."""
    value = graph.add_initializer(main, names.new(f"{layer.name}.bias"), array)
    if not layers.is_quant(like.producer()):
        return value
    output = ir.val(names.new(f"{value.name}.quantized"), value.dtype, value.shape)
    attributes = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
    name = names.new(f"{value.name}.quant")
    quant = ir.node("Quant", [value, None, None, None], attributes, domain=graph.QONNX, name=name, outputs=[output])
    main.insert_before(layer.node, quant)
    _widen(main, quant, array, names)
    return output


def holds(grid: layers.Grid, array: np.ndarray) -> bool:
    """Whether a Quant on `grid` is the identity on `array`."""
    if np.any(grid.zero_point) or (grid.signed and np.any(grid.bits == 1)):
        return False
    integers = array.astype(np.float64) / grid.scale
    high = np.exp2(grid.bits - grid.signed) - 1
    low = -high - (1 - grid.narrow) if grid.signed else 0 * high
    return bool(np.all((integers == np.rint(integers)) & (integers >= low) & (integers <= high)))


def _widen(main: ir.Graph, quant: ir.Node, array: np.ndarray, names: graph.Names) -> None:
    """Give `quant` one scale and the fewest bits that hold `array`, with a sign."""
    step = float(lowest_bit(array).min())
    step = step if np.isfinite(step) else 1.0
    bits = max(int(np.abs(array.astype(np.float64) / step).max()).bit_length() + 1, 2)
    quant.attributes["signed"] = ir.AttrInt64("signed", 1)
    for index, (part, number) in enumerate((("scale", step), ("zeropt", 0), ("bitwidth", bits)), start=1):
        constant = np.asarray(number, np.float32)
        value = graph.add_initializer(main, names.new(f"{quant.name}.{part}"), constant)
        quant.replace_input_with(index, value)
