from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import batch_norm, graph, layers, library
from pqc.functions.batch_norm import FOLDS
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class FoldStatistics(Pass):
    """Store the parameters that batch normalization makes of statistics.

    FoldedWeight(W, gamma, var), FoldedGain(gamma, var), FoldedBias(beta, gamma, mean, var) → constants, as the
    engine computes them; FoldedWeight(W · M, …) → W' · M for a mask M of zeros and ones.
    Leaves a weight behind a mask that is still learned.
    """

    title: ClassVar[str] = "fold-statistics"

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        found = [
            (node, array)
            for node in main
            if (node.domain, node.op_type) in FOLDS and (array := _stored(node)) is not None
        ]
        for node, array in [(node, batch_norm.fold(node, [array])) for node, array in found]:
            _store(main, node, array)
        if found:
            graph.remove_unused(main)
            library.unlink(model)
            library.link(model)
        return len(found)


def _stored(node: ir.Node) -> np.ndarray | None:
    """The parameter that `node` reads, or None where it is not known yet."""
    value = graph.operand(node, 0)
    product = value.producer()
    if product is not None and layers.applies_mask(product) and graph.constant(product.inputs[1]) is not None:
        value = graph.operand(product, 0)
    array = graph.constant(value)
    if array is None or any(graph.constant(one) is None for one in node.inputs[1:]):
        explain(node, "kept: its mask or its statistics are not constants")
        return None
    return array


def _store(main: ir.Graph, node: ir.Node, array: np.ndarray) -> None:
    """Put `array` where the parameter was, which nothing else reads, and let the mask stay before the readers."""
    entering, result = graph.operand(node, 0), node.outputs[0]
    parameter = layers.source(entering)
    assert parameter is not None
    if len(parameter.uses()) > 1:
        parameter = entering = graph.add_initializer(main, graph.Names(main).new(f"{parameter.name}.folded"), array)
    graph.set_initializer(parameter, array)
    graph.replace(result, entering)
    main.remove(node, safe=True)
