from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.passes.raise_bits import is_gate
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class FoldGates(Pass):
    """Put zeros into the weights that only read zeros.

    MatMul(x * gate, W), where gate is a constant of zeros and ones → MatMul(x, W') with zeros in the rows of W whose
    input is zero. Gemm and Conv alike, and through Flatten; a weight behind a Quant keeps its type.
    Leaves a gate that anything else reads, one that stretches what it multiplies or is not the same all over a Conv's
    image, and binary weights.
    """

    title: ClassVar[str] = "fold-gates"

    def rewrite(self, model: ir.Model) -> int:
        names = graph.Names(model.graph)
        gates = [node for node in model.graph if node.op_type == "Mul" and not node.domain]
        folded = sum(_fold(model.graph, node, names) for node in gates)
        if folded:
            graph.remove_unused(model.graph)
        return folded


def _fold(main: ir.Graph, node: ir.Node, names: graph.Names) -> bool:
    factor = graph.constant(node.inputs[1])
    x = node.inputs[0]
    if factor is None or x is None or x.shape is None or not is_gate(factor) or layers.source(x) is not None:
        return False
    lengths = [length for length in list(x.shape)[1:] if isinstance(length, int)]
    if len(lengths) != len(x.shape) - 1 or np.broadcast_shapes((1, *lengths), factor.shape) != (1, *lengths):
        return False
    gate = np.broadcast_to(factor, (1, *lengths))[0]
    readers = _readers(node.outputs[0])
    rows = [None if reader is None else _of_weight(reader, gate) for reader in readers]
    if not readers or any(row is None for row in rows):
        explain(node, "kept: something else than layers with constant weights reads it, or it differs along an image")
        return False
    for reader, row in zip(readers, rows, strict=True):
        assert reader is not None and row is not None
        _multiply(main, reader, row, names)
    graph.replace(node.outputs[0], x)
    return True


def _readers(value: ir.Value) -> list[ir.Node | None]:
    """The layers that take `value`, straight or flattened; None for whatever else takes it."""
    found: list[ir.Node | None] = [None] if value.is_graph_output() else []
    for use in value.uses():
        node = use.node
        if node.op_type == "Flatten" and not node.domain and node.attributes.get_int("axis", 1) == 1:
            found += _readers(node.outputs[0])
        else:
            layer = node.op_type in ("MatMul", "Gemm", "Conv") and not node.domain and use.idx == 0
            found.append(node if layer and _weight(node) is not None else None)
    return found


def _weight(node: ir.Node) -> ir.Value | None:
    """The initializer of a layer's weight, behind at most one quantizer."""
    value = graph.operand(node, 1)
    producer = value.producer()
    if producer is not None and layers.is_quant(producer):
        value = graph.operand(producer, 0) if not layers.is_binary(producer) else value
    return value if graph.constant(value) is not None else None


def _of_weight(node: ir.Node, gate: np.ndarray) -> np.ndarray | None:
    """The gate as a factor of the weight of `node`, or None if there is none."""
    weight = _weight(node)
    assert weight is not None
    shape = graph.stored(weight).shape
    if node.op_type != "Conv":
        flat = gate.reshape(-1)
        transposed = node.attributes.get_int("transB", 0) if node.op_type == "Gemm" else 0
        fits = len(shape) == 2 and shape[1 if transposed else 0] == flat.size and not _transposes(node)
        return None if not fits else flat[None, :] if transposed else flat[:, None]
    channels = gate.reshape(gate.shape[0], -1)
    groups = node.attributes.get_int("group", 1)
    if np.any(channels != channels[:, :1]) or shape[1] * groups != gate.shape[0]:
        return None
    rows = np.repeat(channels[:, 0].reshape(groups, shape[1]), shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *[1] * (len(shape) - 2))


def _transposes(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0


def _multiply(main: ir.Graph, node: ir.Node, factor: np.ndarray, names: graph.Names) -> None:
    """Multiply the weight of `node`, which gets its own where others read it too."""
    value = graph.operand(node, 1)
    quant = value.producer()
    weight = _weight(node)
    assert weight is not None
    array = graph.stored(weight) * factor + np.float32(0)  # no -0.0
    if quant is not None and len(value.uses()) > 1:
        output = ir.val(names.new(f"{value.name}.gated"), value.dtype, value.shape)
        name = names.new(quant.name or "quant")
        given = dict(quant.attributes)
        clone = ir.node(quant.op_type, list(quant.inputs), given, domain=quant.domain, name=name, outputs=[output])
        main.insert_after(quant, clone)
        node.replace_input_with(1, output)
        quant = clone
    if len(weight.uses()) == 1:
        graph.set_initializer(weight, array)
        return
    own = graph.add_initializer(main, names.new(f"{weight.name}.gated"), array)
    (node if quant is None else quant).replace_input_with(1 if quant is None else 0, own)
