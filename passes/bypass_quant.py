from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import CHANGES, Meaning, Pass


@dataclass(frozen=True)
class BypassQuant(Pass):
    """Take the quantizers out: the network in float.

    Quant(x) → x, and FixedQuant(x) → x.
    Leaves masks alone.
    """

    title: ClassVar[str] = "bypass-quant"
    meaning: ClassVar[Meaning] = CHANGES

    def rewrite(self, model: ir.Model) -> int:
        quants = [node for node in model.graph if layers.is_quant(node)]
        for node in quants:
            graph.replace(node.outputs[0], graph.operand(node, 0))
        if quants:
            graph.remove_unused(model.graph)
        return len(quants)
