from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc.rewriting import Meaning, Pass, close, explain

GLOBAL = {"GlobalAveragePool": "AveragePool", "GlobalMaxPool": "MaxPool"}


@dataclass(frozen=True)
class LowerPool(Pass):
    """Rewrite global pools as pools over the whole image, attributes explicit.

    GlobalAveragePool(x) → AveragePool(x, kernel_shape = the image), and the same for GlobalMaxPool. A mean may sum in
    another order. hls4ml takes global pools too, and mixes up their axes. strides and pads are written out.
    Leaves a pool over an image of unknown size alone.
    """

    title: ClassVar[str] = "lower-pool"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        changed = sum(_globally(model.graph, node) for node in list(model.graph) if node.op_type in GLOBAL)
        return changed + sum(_spell(node) for node in model.graph if node.op_type in GLOBAL.values())


def _globally(main: ir.Graph, node: ir.Node) -> int:
    source, output = node.inputs[0], node.outputs[0]
    kernel = None if source is None or source.shape is None else list(source.shape)[2:]
    if not kernel or not all(isinstance(dim, int) for dim in kernel):
        explain(node, "left alone: the size of its image is not known")
        return 0
    attributes = {"kernel_shape": kernel, "strides": kernel, "pads": [0] * 2 * len(kernel)}
    pool = ir.node(GLOBAL[node.op_type], [source], attributes, name=node.name)
    ir.convenience.replace_nodes_and_values(main, node, [node], [pool], [output], [pool.outputs[0]])
    return 1


def _spell(node: ir.Node) -> int:
    """Write out the defaults that ONNX lets a pool leave away."""
    rank = len(node.attributes["kernel_shape"].as_ints())
    padding = node.attributes.get_string("auto_pad", "NOTSET")
    missing = [name for name in ("strides", "pads") if name not in node.attributes]
    if padding not in ("NOTSET", "VALID") or not (missing or padding == "VALID"):
        return 0
    node.attributes.pop("auto_pad", None)
    for name, default in (("strides", [1] * rank), ("pads", [0] * 2 * rank)):
        if name not in node.attributes:
            node.attributes[name] = ir.AttrInt64s(name, default)
    return 1
