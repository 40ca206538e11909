from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class LowerBipolar(Pass):
    """Give binary weights a type of two bits, which has their numbers.

    BipolarQuant(W, scale) and Quant(W, scale, 0, 1 signed bit), W being on its grid (fold-quant) → Quant(W, scale, 0,
    2 bits, narrow): -scale, 0 and scale. Firmware is built around constants, so that the second bit costs nothing.
    Leaves activations, weights off their grid, and quantizers of which some channels have more bits.
    """

    title: ClassVar[str] = "lower-bipolar"

    def rewrite(self, model: ir.Model) -> int:
        names = graph.Names(model.graph)
        lowered = sum(_lower(model.graph, node, names) for node in model.graph if layers.is_quant(node))
        if lowered:
            graph.remove_unused(model.graph)
        return lowered


def _lower(main: ir.Graph, node: ir.Node, names: graph.Names) -> bool:
    array, grid = graph.constant(node.inputs[0]), layers.grid(node)
    if grid is None or not layers.is_binary(node):
        return False
    if array is None or np.any(grid.bits != 1) or np.any(grid.zero_point) or np.any(np.abs(array) != grid.scale):
        explain(node, "kept: an activation, off its grid, or with other bits too")
        return False
    node.op_type = "Quant"
    node.resize_inputs(4)
    for place, (part, number) in enumerate((("zeropt", 0.0), ("bitwidth", 2.0)), 2):
        constant = np.asarray(number, np.float32)
        node.replace_input_with(place, graph.add_initializer(main, names.new(f"{node.name}.{part}"), constant))
    node.attributes.clear()
    for name, value in (("signed", 1), ("narrow", 1)):
        node.attributes[name] = ir.AttrInt64(name, value)
    node.attributes["rounding_mode"] = ir.AttrString("rounding_mode", "ROUND")
    return True
