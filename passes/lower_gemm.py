from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import Meaning, Pass, close, explain


@dataclass(frozen=True)
class LowerGemm(Pass):
    """Rewrite Gemm as MatMul and Add.

    Gemm(x, W, b) → Add(MatMul(x, W), b). With transB the constant W is transposed in place and keeps its name, also
    behind a Quant. A bias with beta = 0 goes. MatMul and Add sum in another order than Gemm may, so float32 results
    can differ in the last bits.
    Leaves a Gemm alone that transposes x, has alpha or beta other than 1, or a W that is computed or shared.
    """

    title: ClassVar[str] = "lower-gemm"
    meaning: ClassVar[Meaning] = close(1e-5)

    def rewrite(self, model: ir.Model) -> int:
        names = graph.Names(model.graph)
        return sum(_lower(model.graph, node, names) for node in list(model.graph) if _is_gemm(node))


def _is_gemm(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and not node.domain


def _lower(main: ir.Graph, node: ir.Node, names: graph.Names) -> int:
    if node.attributes.get_float("beta", 1.0) == 0.0:
        # A bias that does not count, and whose gradient the engine refuses.
        node.resize_inputs(2)
        node.attributes.pop("beta")
        return 1 + _lower(main, node, names)
    reason = _obstacle(node)
    if reason is not None:
        explain(node, f"left alone: {reason}")
        return 0
    if node.attributes.get_int("transB", 0):
        _transpose(graph.operand(node, 1))
    output, bias = node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    _flatten(bias)
    made = [ir.node("MatMul", [node.inputs[0], node.inputs[1]], name=names.new(f"{node.name}.matmul"))]
    if bias is not None:
        product = made[0].outputs[0]
        product.name, product.shape, product.type = names.new(f"{output.name}.matmul"), output.shape, output.type
        made.append(ir.node("Add", [product, bias], name=names.new(f"{node.name}.add")))
    ir.convenience.replace_nodes_and_values(main, node, [node], made, [output], [made[-1].outputs[0]])
    return 1


def _flatten(bias: ir.Value | None) -> None:
    """A constant bias of shape (1, N) that only this node takes is one of shape (N): so layers know it as a bias."""
    array = graph.constant(bias)
    if bias is not None and array is not None and array.ndim == 2 and len(array) == 1 and len(bias.uses()) == 1:
        graph.set_initializer(bias, array[0])


def _obstacle(node: ir.Node) -> str | None:
    if node.attributes.get_int("transA", 0):
        return "it transposes its first input"
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
        return "its alpha or beta is not 1"
    if node.attributes.get_int("transB", 0) and not _transposable(node.inputs[1]):
        return "its weight is computed, shared, or has scales of its own per row"
    return None


def _transposable(value: ir.Value | None) -> bool:
    """Whether `value` is a constant that only this node takes, or the Quant of one with scalar parameters."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return False
    producer = value.producer()
    if producer is None or not layers.is_quant(producer):
        return value.is_initializer() and graph.constant(value) is not None
    return all(_is_scalar(part) for part in producer.inputs[1:]) and _transposable(producer.inputs[0])


def _is_scalar(value: ir.Value | None) -> bool:
    array = graph.constant(value)
    return array is not None and array.ndim < 2 and array.size == 1


def _transpose(value: ir.Value) -> None:
    producer = value.producer()
    if producer is not None:
        _transpose(graph.operand(producer, 0))
        value.shape = None if value.shape is None else ir.Shape(reversed(list(value.shape)))
        return
    array = graph.constant(value)
    assert array is not None
    graph.set_initializer(value, array.T)
