from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import CHANGES, Meaning, Pass, explain


@dataclass(frozen=True)
class StripSoftmax(Pass):
    """Remove a Softmax or Sigmoid at an output; give out its logits.

    y = Softmax(z) → z, which takes the output's name. The largest logit is the largest probability, so the class
    does not change, nor does a threshold once it is moved; firmware need not compute exponentials.
    Leaves such a node alone where other nodes take its result, or where a Quant rounds it.
    """

    title: ClassVar[str] = "strip-softmax"
    meaning: ClassVar[Meaning] = CHANGES

    def rewrite(self, model: ir.Model) -> int:
        return sum(_strip(model.graph, node) for node in list(model.graph) if _is_head(node))


def heads(main: ir.Graph) -> list[ir.Node]:
    """The nodes that this pass would remove."""
    return [node for node in main if _is_head(node) and _removable(node)]


def _is_head(node: ir.Node) -> bool:
    return not node.domain and node.op_type in layers.HEADS and node.outputs[0].is_graph_output()


def _removable(node: ir.Node) -> bool:
    logits = node.inputs[0]
    if node.outputs[0].uses():
        explain(node, "left alone: other nodes take its result")
    elif logits is None or logits.producer() is None or logits.is_graph_output():
        explain(node, "left alone: its logits are an input or an output themselves")
    else:
        return True
    return False


def _strip(main: ir.Graph, node: ir.Node) -> int:
    if not _removable(node):
        return 0
    logits, head = graph.operand(node, 0), node.outputs[0]
    name = head.name
    main.outputs[next(index for index, value in enumerate(main.outputs) if value is head)] = logits
    main.remove(node, safe=True)
    head.name = f"{name}.stripped"
    logits.name, logits.shape = name, head.shape
    explain(node, f"removed: '{name}' now holds the logits")
    return 1
