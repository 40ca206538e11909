from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph
from pqc.mask_sites import masks
from pqc.rewriting import CHANGES, Meaning, Pass


@dataclass(frozen=True)
class BypassMasks(Pass):
    """Take the learned masks out: the network before pruning starts.

    W · mask → W.
    Leaves frozen masks alone.
    """

    title: ClassVar[str] = "bypass-masks"
    meaning: ClassVar[Meaning] = CHANGES

    def rewrite(self, model: ir.Model) -> int:
        sites = list(masks(model.graph))
        for site in sites:
            site.product.outputs[0].replace_all_uses_with(graph.operand(site.product, 0))
        if sites:
            graph.remove_unused(model.graph)
        return len(sites)
