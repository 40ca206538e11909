"""Operands that the engine broadcasts forward and forgets to reduce backward, stretched by Expand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.trainable import BROADCASTS
from pqc.writer import Writer


def expand(main: ir.Graph, node: ir.Node) -> int:
    """Stretch to an operand that has the result's shape, or where none has, to each of the others in turn."""
    output = node.outputs[0].shape
    operands = [graph.operand(node, index) for index in range(len(node.inputs))]
    full = [value for value in operands if value.shape is not None and value.shape == output][:1]
    stretched = [i for i in BROADCASTS[node.op_type] if output is None or operands[i].shape != output]
    write = Writer(main, node)
    for index in stretched:
        value = operands[index]
        for other in full or [one for one in operands if one is not operands[index]]:
            value = write.add("Expand", [value, write.add("Shape", [other])])
        node.replace_input_with(index, value)
    return int(bool(stretched))


def power(main: ir.Graph, node: ir.Node) -> int:
    """Pow with a broadcast base, or with an exponent of whole numbers, whose gradient the engine cannot type."""
    exponent = graph.operand(node, 1)
    whole = exponent.dtype is not None and exponent.dtype.is_integer()
    if whole:
        node.replace_input_with(1, _as_float(Writer(main, node), exponent))
    return int(expand(main, node) or whole)


def _as_float(write: Writer, value: ir.Value) -> ir.Value:
    stored = graph.constant(value)
    if stored is not None:
        return write.constant(stored.astype(np.float32), "exponent")
    cast = write.add("Cast", [value], to=int(ir.DataType.FLOAT))
    cast.dtype, cast.shape = ir.DataType.FLOAT, value.shape
    return cast
