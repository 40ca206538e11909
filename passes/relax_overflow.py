from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc.functions.fixed_quant import NO_OVERFLOW
from pqc.quantizer_sites import sites
from pqc.rewriting import CHANGES, Meaning, Pass


@dataclass(frozen=True)
class RelaxOverflow(Pass):
    """Let quantizers hold numbers as large as they come.

    FixedQuant(x) that wraps, or whose integer bits follow x → FixedQuant(x) without overflow. For the training step
    only: the gradient of a number that wraps points the wrong way, and integer bits that follow are there next step.
    Leaves saturating quantizers with other bits, and with `keep-wraps` those that wrap and follow nothing.
    """

    title: ClassVar[str] = "relax-overflow"
    meaning: ClassVar[Meaning] = CHANGES

    keep_wraps: bool = False

    def rewrite(self, model: ir.Model) -> int:
        relaxed = 0
        for site in sites(model.graph):
            overflow = str(site.node.attributes.get_string("overflow", "SAT"))
            wraps = overflow.startswith("WRAP") and not self.keep_wraps
            if overflow != NO_OVERFLOW and (wraps or site.follows):
                site.node.attributes["overflow"] = ir.AttrString("overflow", NO_OVERFLOW)
                relaxed += 1
        return relaxed
