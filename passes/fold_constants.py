from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from pqc import graph
from pqc.rewriting import Meaning, Pass, close


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what depends on constants alone.

    Shape arithmetic and constant subexpressions of standard operators → initializers.
    Leaves Quant, masks and results of more than `limit` elements alone.
    """

    title: ClassVar[str] = "fold-constants"
    meaning: ClassVar[Meaning] = close(1e-6)

    limit: int = 1_000_000

    def rewrite(self, model: ir.Model) -> int:
        # On a copy: the folder also annotates graphs in which it folds nothing.
        folded = graph.copy(model)
        fold_constants(folded, onnx_shape_inference=False, input_size_limit=self.limit, output_size_limit=self.limit)
        graph.remove_unused(folded.graph)
        removed = len(model.graph) - len(folded.graph)
        if removed:
            model.graph = folded.graph
        return removed
