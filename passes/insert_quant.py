from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import layer_quantizers, layers, library, unary
from pqc.errors import UnsupportedError
from pqc.fixed_point import FixedPoint
from pqc.quantizer import ALL_ROUNDINGS, PER_TENSOR, Quantizer
from pqc.quantizer_nodes import QuantizerWriter
from pqc.rewriting import CHANGES, Meaning, Pass, explain

# What needs its activations on a grid, beside functions of one number: hardware computes it exactly.
READERS = frozenset({*layers.OUTPUT_AXIS, "PRelu", "AveragePool", "GlobalAveragePool"})
JOINS = frozenset({"Add", "Sub", "Mul"})


Wanted = tuple[ir.Value, Quantizer, layers.Layer | None]
"""What is to be rounded, how, and the layer whose parameter it is."""


@dataclass(frozen=True)
class InsertQuant(Pass):
    """Round weights, biases and layer inputs to fixed point.

    layer(x, W, b) → layer(Quant(x), Quant(W), Quant(b)), each type given as k,i,f. Functions of one number
    (tanh, x · Sigmoid(x)), pools and sums of two activations count as layers. `outputs` also rounds the model's
    results, the logits where a softmax or sigmoid ends it. Words after the type say more, as in
    1,0,7/per_channel/SAT_SYM/RND; what QONNX cannot say becomes FixedQuant. `layers` is JSON: types by pattern and by
    weight, bias, input or output.
    Leaves layers that match `exclude`, and what has a quantizer already. The quantizer of an activation goes
    before operators that only move values, and one serves all readers.
    """

    title: ClassVar[str] = "insert-quant"
    meaning: ClassVar[Meaning] = CHANGES

    weights: Quantizer | None = Quantizer(FixedPoint(1, 0, 7))
    biases: Quantizer | None = Quantizer(FixedPoint(1, 0, 7))
    inputs: Quantizer | None = Quantizer(FixedPoint(0, 0, 7))
    outputs: Quantizer | None = None
    rounding: str = "ROUND"
    layers: str = ""
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rounding not in ALL_ROUNDINGS:
            raise ValueError(f"no rounding mode '{self.rounding}'; there are {', '.join(ALL_ROUNDINGS)}")

    def rewrite(self, model: ir.Model) -> int:
        wanted = list(self._wanted(model.graph))
        writer = QuantizerWriter(model.graph, self.rounding)
        for value, kind, layer in wanted:
            writer.quantize(value, kind, layer)
        if wanted:
            library.link(model)
        return len(wanted)

    def _wanted(self, main: ir.Graph) -> Iterator[Wanted]:
        found = layers.layers(main)
        overrides = layer_quantizers.read(self.layers)
        layers.check_patterns(found, (*self.exclude, *overrides))
        _refuse_branches(main)
        excluded = {layer.node for layer in found if layer.excluded(self.exclude)}
        own = {layer.node: layer_quantizers.own(layer, overrides) for layer in found}
        shared = layer_quantizers.entering(found, excluded, own, self.inputs)
        outputs = {layer.output: own[layer.node]["output"] for layer in found if "output" in own[layer.node]}
        seen: set[ir.Value] = set()
        for layer in found:
            if layer.node in excluded:
                explain(layer.node, "left alone: excluded")
                continue
            kinds = {"weight": self.weights, "bias": self.biases, **own[layer.node]}
            yield from _unquantized(layer.weight, kinds["weight"], seen, layer)
            if layer.bias is not None:
                yield from _unquantized(layer.bias, kinds["bias"], seen, layer)
        for value, kind in outputs.items():
            if kind is not None and shared.get(value, kind) != kind:
                raise layer_quantizers.two(value, "one layer gives it out and another reads it", kind, shared[value])
            yield from _unquantized(value, kind, seen)
        functions = {node: function for function in unary.functions(main) for node in function.nodes}
        for slopes in (node.inputs[1] for node in main if node.op_type == "PRelu" and node not in functions):
            if slopes is not None and self.weights is not None:
                yield from _unquantized(slopes, self.weights.changed({"granularity": PER_TENSOR}), seen)
        for node in main:
            if node not in excluded:
                entering = [functions[node].x] if node in functions else _activations(node)
                for value in map(layer_quantizers.origin, entering):
                    yield from _unquantized(value, shared.get(value, self.inputs), seen)
        for value in main.outputs:
            yield from _unquantized(_before_head(value), self.outputs, seen)


def _refuse_branches(main: ir.Graph) -> None:
    for node in main:
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise UnsupportedError(
                f"{node.op_type} holds graphs of its own, which are not quantized",
                at=f"node '{node.name}'",
                hint="export without control flow",
            )


def _unquantized(
    value: ir.Value, kind: Quantizer | None, seen: set[ir.Value], layer: layers.Layer | None = None
) -> Iterator[Wanted]:
    quantized = layers.is_quant(value.producer()) or any(layers.is_quant(node) for node in value.consumers())
    masked = any(layers.applies_mask(node) and _feeds_quant(node) for node in value.consumers())
    if kind is None or quantized or masked or value in seen:
        return
    seen.add(value)
    yield value, kind, layer


def _before_head(value: ir.Value) -> ir.Value:
    """The logits, where a softmax or sigmoid ends the model: those are what hardware gives out."""
    head = value.producer()
    return head.inputs[0] if head is not None and head.op_type in layers.HEADS and head.inputs[0] is not None else value


def _feeds_quant(node: ir.Node) -> bool:
    return any(layers.is_quant(reader) for reader in node.outputs[0].consumers())


def _activations(node: ir.Node) -> list[ir.Value]:
    """The inputs of `node` that must lie on a grid."""
    if node.domain:
        return []
    if node.op_type in layers.HEADS and node.outputs[0].is_graph_output():
        return []
    if node.op_type in READERS:
        value = node.inputs[0]
        return [value] if value is not None and layers.source(value) is None else []
    if node.op_type in JOINS:
        values = [value for value in node.inputs if value is not None and layers.source(value) is None]
        return values if len(values) == 2 else []
    return []
