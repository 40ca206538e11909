from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.functions.multiplier import MULTIPLIER
from pqc.rewriting import CHANGES, Meaning, Pass


@dataclass(frozen=True)
class InsertReluMultiplier(Pass):
    """Learn a power of two that what enters a ReLU is multiplied by.

    Relu(x) → Relu(x · 2^round(m)) with one trained m for each Relu, which begins at `start`.
    Leaves a Relu that has its multiplier, and one of a constant.
    """

    title: ClassVar[str] = "insert-relu-multiplier"
    meaning: ClassVar[Meaning] = CHANGES

    start: float = -1.0

    def rewrite(self, model: ir.Model) -> int:
        main, names = model.graph, graph.Names(model.graph)
        found = [node for node in main if node.op_type == "Relu" and not node.domain and _is_bare(node)]
        for node in found:
            x = graph.operand(node, 0)
            name = names.new(f"{node.name}.multiplier")
            m = graph.add_initializer(main, names.new(f"{name}.m"), np.array(self.start, np.float32))
            output = ir.val(names.new(f"{name}.out"), x.dtype, x.shape)
            domain, operator = MULTIPLIER.key
            main.insert_before(node, ir.node(operator, [x, m], domain=domain, name=name, outputs=[output]))
            node.replace_input_with(0, output)
        if found:
            library.link(model)
        return len(found)


def _is_bare(node: ir.Node) -> bool:
    x = graph.operand(node, 0)
    producer = x.producer()
    multiplied = producer is not None and (producer.domain, producer.op_type) == MULTIPLIER.key
    return not multiplied and layers.source(x) is None
