from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, library
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class FoldQuant(Pass):
    """Store weights and biases on their grid.

    Quant(W) → Quant(W') with W' = Quant(W): the node stays and tells the type, and changes nothing any more.
    Leaves activations alone, a weight that other readers take unquantized, and a grid on which rounding twice
    differs from rounding once.
    """

    title: ClassVar[str] = "fold-quant"

    def rewrite(self, model: ir.Model) -> int:
        return sum(_fold(node) for node in model.graph if layers.is_quant(node))


def _round(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """What the quantizer makes of a constant; -0.0 is no value of an integer grid."""
    parameters = [np.asarray(graph.constant(value)) for value in node.inputs[1:]]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    body = library.bodies()[node.domain, node.op_type]
    return np.asarray(engine.call(body, [array, *parameters], attributes)[0] + np.float32(0.0))


def _fold(node: ir.Node) -> bool:
    weight = node.inputs[0]
    array = graph.constant(weight)
    parameters = [graph.constant(value) for value in node.inputs[1:]]
    if weight is None or array is None or any(part is None for part in parameters) or len(weight.uses()) != 1:
        return False
    rounded = _round(node, array)
    if not np.array_equal(_round(node, rounded), rounded):
        explain(node, "kept: its scale is no power of two, and rounding twice is not rounding once")
        return False
    if np.array_equal(rounded, array) and not np.signbit(array[array == 0]).any():
        return False
    graph.set_initializer(weight, rounded)
    return True
