from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc.rewriting import Pass
from pqc.shapes import infer_shapes


@dataclass(frozen=True)
class FixBatch(Pass):
    """Give every input a batch of a fixed size.

    x [batch, 16] → x [1024, 16]: the engine's pooling gradients need it, and shape arithmetic folds away.
    Leaves inputs whose first dimension is a number already, and scalars.
    """

    title: ClassVar[str] = "fix-batch"

    size: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.size < 2**31:
            raise ValueError(f"the batch size is a positive number, not {self.size}")

    def rewrite(self, model: ir.Model) -> int:
        changed = 0
        symbols: set[str] = set()
        for value in model.graph.inputs:
            if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
                symbols.add(str(value.shape[0]))
                value.shape = ir.Shape([self.size, *value.shape.dims[1:]])
                changed += 1
        if changed:
            for value in (output for node in model.graph for output in node.outputs):
                value.shape = _fixed(value.shape, symbols, self.size)
            infer_shapes(model)
        return changed


def _fixed(shape: ir.Shape | None, symbols: set[str], size: int) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([size if not isinstance(dim, int) and str(dim) in symbols else dim for dim in shape.dims])
