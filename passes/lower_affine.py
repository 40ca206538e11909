from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class LowerAffine(Pass):
    """Write a factor and a term for each channel as a layer.

    x · Quant(c) + Quant(d) → MatMul(x, Quant(diag(c))) + Quant(d) for vectors, and a Conv of one point with a group for
    each channel for images: the same products, beside zeros. hls4ml takes no factor that is a constant.
    Leaves parameters alone that other nodes read, have types by channel, or are no vectors of channels.
    """

    title: ClassVar[str] = "lower-affine"

    def rewrite(self, model: ir.Model) -> int:
        return sum(_lower(model.graph, node) for node in list(model.graph) if _is(node, "Mul"))


def _is(node: ir.Node, operator: str) -> bool:
    return node.op_type == operator and not node.domain


def _lower(main: ir.Graph, product: ir.Node) -> bool:
    x, readers = product.inputs[0], list(product.outputs[0].consumers())
    if x is None or x.shape is None or layers.source(x) is not None or layers.source(product.inputs[1]) is None:
        return False
    rank, channels = len(x.shape), x.shape[1] if len(x.shape) > 1 else None
    added = readers[0] if len(readers) == 1 and _is(readers[0], "Add") else None
    wanted = (channels, *[1] * (rank - 2))
    factor = _parameter(product.inputs[1], wanted)
    term = _parameter(added.inputs[1], wanted) if added is not None and added.inputs[0] is product.outputs[0] else None
    if added is None or factor is None or term is None or product.outputs[0].is_graph_output():
        explain(product, "left alone: not a factor and a term of one type each, for each channel")
        return False
    array = graph.stored(factor)
    weight = np.diag(array) if rank == 2 else array.reshape(-1, *[1] * (rank - 1))
    _store(product.inputs[1], factor, weight)
    if rank == 2:
        made = ir.node("MatMul", list(product.inputs), name=product.name)
        made.outputs[0].name = product.outputs[0].name
        ir.convenience.replace_nodes_and_values(
            main, product, [product], [made], [product.outputs[0]], [made.outputs[0]]
        )
        return True
    _store(added.inputs[1], term, graph.stored(term).reshape(-1))
    attributes = {"group": len(array), "kernel_shape": [1] * (rank - 2)}
    made = ir.node("Conv", [*product.inputs, added.inputs[1]], attributes, name=product.name)
    ir.convenience.replace_nodes_and_values(
        main, added, [added, product], [made], [added.outputs[0]], [made.outputs[0]]
    )
    return True


def _parameter(value: ir.Value | None, shape: tuple[object, ...]) -> ir.Value | None:
    """The initializer of this shape that a product or a sum reads alone, in float or behind quantizers of one type."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        alone = len(value.uses()) == 1 and layers.is_quant(node)
        if node is None or not alone or any(_size(one) != 1 for one in node.inputs[1:]):
            return None
        value = node.inputs[0]
    if value is None or len(value.uses()) != 1 or graph.constant(value) is None:
        return None
    return value if graph.stored(value).shape == shape else None


def _size(value: ir.Value | None) -> int:
    array = graph.constant(value)
    return 0 if array is None else array.size


def _store(read: ir.Value | None, parameter: ir.Value, array: np.ndarray) -> None:
    """Give a parameter another shape, and what its quantizers make of it."""
    graph.set_initializer(parameter, np.ascontiguousarray(array))
    while read is not None and read is not parameter:
        read.shape = ir.Shape(array.shape)
        node = read.producer()
        read = None if node is None else node.inputs[0]
