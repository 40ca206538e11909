from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import layers
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class DropWraps(Pass):
    """Let quantizers saturate that wrap and never overflow.

    FixedQuant(x, WRAP) → FixedQuant(x, SAT), the same numbers, where interval arithmetic over the actual weights shows
    that x stays in range. Only then has QONNX a word for it (lower-bits). Weights must lie on their grid (fold-quant).
    Leaves those that may overflow, WRAP_SM, and what learns its bits.
    """

    title: ClassVar[str] = "drop-wraps"

    def rewrite(self, model: ir.Model) -> int:
        wraps = {str(node.name): node for node in model.graph if _wraps(node)}
        if not wraps:
            return 0
        from pqc.hardware.handover import lower, prepare
        from pqc.hardware.proofs import never_wrap

        proved = {str(node.name) for node in never_wrap(lower(prepare(model)[0]).graph)}
        for name, node in wraps.items():
            if name in proved:
                node.attributes["overflow"] = ir.AttrString("overflow", "SAT")
            else:
                explain(node, "kept: nothing proves that it never overflows")
        return len(proved & wraps.keys())


def _wraps(node: ir.Node) -> bool:
    grid = layers.grid(node) if layers.is_fixed_quant(node) else None
    return grid is not None and grid.overflow == "WRAP" and layers.source(node.inputs[0]) is None
