from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class FoldMasks(Pass):
    """Multiply frozen masks into the stored weights.

    W · M and Quant(W) · M → (W M) and Quant(W M), for a constant M.
    Leaves learned masks alone, and a mask behind a quantizer that does not keep zero (bipolar, or with a zero point).
    """

    title: ClassVar[str] = "fold-masks"

    def rewrite(self, model: ir.Model) -> int:
        products = [
            node for node in model.graph if layers.applies_mask(node) and graph.operand(node, 1).is_initializer()
        ]
        folded = sum(_fold(model.graph, node) for node in products)
        if folded:
            graph.remove_unused(model.graph)
        return folded


def _fold(main: ir.Graph, product: ir.Node) -> bool:
    weight = layers.source(product.inputs[0])
    mask = graph.constant(product.inputs[1])
    if weight is None or mask is None or not _keeps_zero(product.inputs[0]):
        explain(product, "kept: the quantizer before the mask does not keep zero")
        return False
    array = np.asarray(graph.constant(weight)) * mask
    if _readers(weight) == 1:
        graph.set_initializer(weight, array)
        product.outputs[0].replace_all_uses_with(graph.operand(product, 0))
        main.remove(product, safe=True)  # a second mask of the weight is then its only reader
        return True
    names = graph.Names(main)
    own = graph.add_initializer(main, names.new(f"{weight.name}.pruned"), array)
    _rebuild(main, product, weight, own, names)
    return True


def _readers(weight: ir.Value) -> int:
    """How many places read the weight, seen through its quantizers."""
    count = 0
    for node, _ in weight.uses():
        count += len(node.outputs[0].uses()) if layers.is_quant(node) else 1
    return count


def _keeps_zero(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    while node is not None:
        kind = layers.grid(node)
        if kind is None or np.any(kind.zero_point) or (kind.signed and np.any(kind.bits == 1)):
            return False
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return True


def _rebuild(main: ir.Graph, product: ir.Node, weight: ir.Value, own: ir.Value, names: graph.Names) -> None:
    """Give a shared weight's masked reader a copy of its own, with the same quantizers."""
    chain = []
    last = graph.operand(product, 0).producer()
    while last is not None:
        chain.append(last)
        last = graph.operand(last, 0).producer()
    for node in reversed(chain):
        quant = ir.node(
            node.op_type,
            [own, *node.inputs[1:]],
            {name: attribute.value for name, attribute in node.attributes.items()},
            domain=node.domain,
            name=names.new(f"{own.name}.quant"),
            outputs=[ir.val(names.new(f"{own.name}.quantized"), own.dtype, own.shape)],
        )
        main.insert_before(product, quant)
        own = quant.outputs[0]
    product.outputs[0].replace_all_uses_with(own)
