from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph
from pqc.batched_costs import batch_costs
from pqc.batching import Batcher
from pqc.names import BUFFERS, THETA, layout
from pqc.rewriting import Meaning, Pass, close


@dataclass(frozen=True)
class BatchParameters(Pass):
    """Apply to all parameters at once what each layer does to its own.

    W_i · mask(s_i) → FixedPoint for each layer i → the same on the slices of theta that hold all W and all s, cut
    into layers afterwards: the number of nodes does not grow with the number of layers. Learned bits likewise, with
    those that are states.
    Leaves operators that are not elementwise alone, and parameters that are treated differently from the others.
    For the training step only.
    """

    title: ClassVar[str] = "batch-parameters"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        if THETA not in model.graph.initializers:
            return 0
        batcher = Batcher(model.graph)
        batched = batcher.batch({vector: [name for name, _, _ in layout(model, vector)] for vector in (THETA, BUFFERS)})
        if batched:
            batched += batch_costs(batcher)
            batcher.finish()
            graph.remove_unused(model.graph)
            model.graph.sort()
        return batched
