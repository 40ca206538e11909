from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph, layers
from pqc.blocks import BlockWriter
from pqc.rewriting import Meaning, Pass, close, explain
from pqc.shapes import infer_shapes

LEAST_SUM = 1e-7
"""What a sum counts at least, so that none that a quantizer rounds to zero is divided by; without one it is above 1."""


@dataclass(frozen=True)
class ExpandSoftmax(Pass):
    """Write a softmax inside the network out as its steps.

    Softmax(x) → e · (1 / s) with e = Exp(-(max x - x)) and s = ReduceSum(e), s at least 1e-7. The difference, e, s and
    1 / s are places for quantizers (insert-quant): of none of them is any number negative, and Exp and 1 / s are tables
    in hardware.
    Leaves a softmax that ends the model, of which hardware needs the logits only, and LogSoftmax.
    """

    title: ClassVar[str] = "expand-softmax"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        found = [node for node in model.graph if not node.domain and node.op_type == "Softmax" and _is_inner(node)]
        for node in found:
            _expand(model.graph, node)
        if found:
            infer_shapes(model)
        return len(found)


def _is_inner(node: ir.Node) -> bool:
    """Whether nodes compute with the probabilities, and the model does not give them out."""
    waiting = [] if node.outputs[0].is_graph_output() else [node.outputs[0]]
    while waiting:
        value = waiting.pop()
        if any(reader.domain or reader.op_type not in layers.MOVES for reader in value.consumers()):
            return True
        waiting += [output for reader in value.consumers() for output in reader.outputs]
    explain(node, "left alone: it ends the model")
    return False


def _expand(main: ir.Graph, node: ir.Node) -> None:
    write = BlockWriter(main, node)
    x = graph.operand(node, 0)
    axes = write.integers([node.attributes.get_int("axis", -1)], "axes")
    largest = write.add("ReduceMax", [x, axes], "max")
    difference = write.add("Sub", [largest, x], "difference")
    e = write.add("Exp", [write.add("Neg", [difference], "exponent")], "exp")
    total = write.add("ReduceSum", [e, axes], "sum")
    divisor = write.add("Max", [total, write.number(LEAST_SUM, "least")], "divisor")
    inverse = write.add("Reciprocal", [divisor], "inverse")
    write.replace(write.add("Mul", [e, inverse], "result"))
