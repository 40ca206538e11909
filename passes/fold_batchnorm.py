from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import Meaning, Pass, close, explain


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold inference batch normalization into the layer before it.

    BatchNormalization(layer(x)) → layer(x) with weight W g and bias (b - mean) g + beta, g = gamma / sqrt(var + eps).
    Leaves it where the layer's result has another reader, its weight is shared, quantized or masked, or there is
    no layer before.
    """

    title: ClassVar[str] = "fold-batchnorm"
    meaning: ClassVar[Meaning] = close(1e-5)

    def rewrite(self, model: ir.Model) -> int:
        by_output = {layer.output: layer for layer in layers.layers(model.graph)}
        norms = [node for node in model.graph if node.op_type == "BatchNormalization" and not node.domain]
        folded = sum(_fold(model.graph, node, by_output) for node in norms)
        if folded:
            graph.remove_unused(model.graph)
        return folded


def _fold(main: ir.Graph, norm: ir.Node, by_output: dict[ir.Value, layers.Layer]) -> bool:
    layer = by_output.get(norm.inputs[0]) if norm.inputs[0] is not None else None
    constants = [graph.constant(value) for value in norm.inputs[1:5]]
    reason = obstacle(norm, layer, constants)
    if reason or layer is None:
        explain(norm, f"kept: {reason}")
        return False
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in constants)
    gain = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = np.asarray(graph.constant(layer.weight), np.float64)
    shape = [1] * weight.ndim
    shape[layer.output_axis] = gain.size
    bias = np.zeros_like(gain) if layer.bias is None else np.asarray(graph.constant(layer.bias), np.float64)
    graph.set_initializer(layer.weight, (weight * gain.reshape(shape)).astype(np.float32))
    _set_bias(main, layer, ((bias - mean) * gain + beta).astype(np.float32))
    graph.replace(norm.outputs[0], layer.output if layer.bias is not None else _end(layer))
    main.remove(norm, safe=True)
    del by_output[layer.output]
    fresh = layers.layer_of(layer.node)
    by_output[fresh.output] = fresh
    explain(layer.node, f"took batch normalization '{norm.name}'")
    return True


def obstacle(norm: ir.Node, layer: layers.Layer | None, constants: list[np.ndarray | None]) -> str | None:
    """Why a batch normalization is no part of the layer before it, or None."""
    if layer is None:
        return "no layer before it"
    if any(array is None for array in constants):
        return "its statistics are computed"
    if norm.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if layer.node.op_type != "Conv" and (layer.output.shape is None or len(layer.output.shape) != 2):
        return "its channels are not the layer's outputs"
    if any(layer.node.attributes.get_float(factor, 1.0) != 1.0 for factor in ("alpha", "beta")):
        return "the layer has factors of its own"
    if len(layer.output.uses()) != 1 or layer.output.is_graph_output():
        return "the layer's result has another reader"
    if layer.node.inputs[1] is not layer.weight or len(layer.weight.uses()) != 1:
        return "the weight is shared, quantized or masked"
    if layer.bias is not None and len(layer.bias.uses()) != 1:
        return "the bias is shared"
    return None


def _set_bias(main: ir.Graph, layer: layers.Layer, bias: np.ndarray) -> None:
    if layer.bias is not None:
        graph.set_initializer(layer.bias, bias)
        return
    names = graph.Names(main)
    value = graph.add_initializer(main, names.new(f"{layer.name}.bias"), bias)
    if layer.node.op_type != "MatMul":
        layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, value)
        return
    name = names.new(f"{layer.node.name}.bias")
    product = layer.node.outputs[0]
    add = ir.node(
        "Add",
        [product, value],
        name=name,
        outputs=[ir.val(names.new(f"{name}.out"), product.dtype, product.shape)],
    )
    main.insert_after(layer.node, add)


def _end(layer: layers.Layer) -> ir.Value:
    """Where the layer ends now that it has a bias."""
    output = layer.node.outputs[0]
    added = [node for node in output.consumers() if node.op_type == "Add"]
    return added[0].outputs[0] if layer.node.op_type == "MatMul" else output
