from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import quantizer_sites
from pqc.rewriting import Pass


@dataclass(frozen=True)
class FreezeBits(Pass):
    """Learn no bits any more: they stay as they are.

    FixedQuant(x, i, f) with learned i or f → the same with constant i and f.
    Leaves quantizers that learn nothing.
    """

    title: ClassVar[str] = "freeze-bits"

    def rewrite(self, model: ir.Model) -> int:
        learning = [site for site in quantizer_sites.sites(model.graph) if site.learns]
        for site in learning:
            del site.node.metadata_props[quantizer_sites.LEARNS]
        return len(learning)
