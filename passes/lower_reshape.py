from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class LowerReshape(Pass):
    """Rewrite a Reshape that flattens each sample as Flatten.

    Reshape(x, [batch, N]) → Flatten(x, axis=1), where N is all that follows the batch dimension of x. The result no
    longer depends on the batch size that a model was exported with.
    Leaves any other Reshape alone.
    """

    title: ClassVar[str] = "lower-reshape"

    def rewrite(self, model: ir.Model) -> int:
        found = [node for node in model.graph if node.op_type == "Reshape" and not node.domain]
        done = sum(_lower(model.graph, node) for node in found)
        if done:
            graph.remove_unused(model.graph)
        return done


def _lower(main: ir.Graph, node: ir.Node) -> int:
    if not _flattens(node):
        explain(node, "left alone: it does not flatten each sample into a vector")
        return 0
    output = node.outputs[0]
    flatten = ir.node("Flatten", [node.inputs[0]], {"axis": 1}, name=node.name)
    ir.convenience.replace_nodes_and_values(main, node, [node], [flatten], [output], [flatten.outputs[0]])
    return 1


def _flattens(node: ir.Node) -> bool:
    """Whether the target keeps the batch and makes one vector of the rest."""
    source, target = node.inputs[0], graph.constant(node.inputs[1])
    if source is None or source.shape is None or target is None or target.size != 2:
        return False
    first, second = (int(size) for size in target)
    batch, rest = source.shape[0], list(source.shape)[1:]
    size = 1
    for dim in rest:
        size = size * dim if isinstance(dim, int) else 0
    if not size or len(rest) < 2:
        return False
    keeps = first == 0 or first == batch or (first == -1 and second == size) or (first == 1 and second == size)
    return keeps and second in (-1, size)
