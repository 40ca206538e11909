from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from pqc import graph
from pqc.rewrites.lengths import replace_marks
from pqc.rewriting import Meaning, Pass, close
from pqc.shapes import infer_shapes


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what depends on constants alone.

    Shape arithmetic and constant subexpressions of standard operators → initializers. A choice that asks whether a
    length is negative, as exporters write it before Expand → the lengths.
    Leaves Quant, masks and results of more than `limit` elements alone.
    """

    title: ClassVar[str] = "fold-constants"
    meaning: ClassVar[Meaning] = close(1e-6)

    limit: int = 1_000_000

    def rewrite(self, model: ir.Model) -> int:
        # On a copy: the folder also annotates graphs in which it folds nothing.
        folded = graph.copy(model)
        limits = {"input_size_limit": self.limit, "output_size_limit": self.limit}
        fold_constants(folded, onnx_shape_inference=False, should_fold=self._should_fold, **limits)
        replace_marks(folded.graph)
        graph.remove_unused(folded.graph)
        removed = len(model.graph) - len(folded.graph)
        if removed:
            model.graph = folded.graph
            infer_shapes(model)
        return removed

    def _should_fold(self, node: ir.Node) -> bool | None:
        """ConstantOfShape, which the folder leaves otherwise, where it is small; None for what else there is."""
        if node.domain or node.op_type != "ConstantOfShape":
            return None
        shape = graph.constant(node.inputs[0])
        return shape is not None and math.prod(max(int(length), 0) for length in shape) <= self.limit
