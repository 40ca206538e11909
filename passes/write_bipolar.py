from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph, scales
from pqc.rewriting import Pass


@dataclass(frozen=True)
class WriteBipolar(Pass):
    """Say one signed bit as hls4ml reads it, too.

    Quant(x, scale, 0, 1 bit) → BipolarQuant(x, scale), the same numbers: hls4ml takes a Quant of one signed bit for 0
    and -1.
    Leaves quantizers with other bits, also where only some channels have more, zero points, and computed scales.
    """

    title: ClassVar[str] = "write-bipolar"

    def rewrite(self, model: ir.Model) -> int:
        found = [node for node in model.graph if scales.sign_only(node)]
        for node in found:
            node.op_type = "BipolarQuant"
            node.resize_inputs(2)
            node.attributes.clear()
        if found:
            graph.remove_unused(model.graph)
        return len(found)
