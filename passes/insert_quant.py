from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import onnx_ir as ir

from pqc import layer_quantizers, layers, library, trained_constants, unary
from pqc.blocks import Block, blocks
from pqc.errors import UnsupportedError
from pqc.fixed_point import FixedPoint
from pqc.quantizer import ALL_ROUNDINGS, PER_TENSOR, Quantizer
from pqc.quantizer_nodes import QuantizerWriter
from pqc.rewriting import CHANGES, Meaning, Pass, explain

# What needs its activations on a grid, beside functions of one number: hardware computes it exactly.
READERS = frozenset({*layers.OUTPUT_AXIS, "PRelu", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
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
    Leaves layers that match `exclude`, other nodes by their own names, and what has a quantizer already. The quantizer
    of an activation goes before operators that only move values, and one serves all readers.
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
        found, written = layers.layers(main), blocks(main)
        both: list[layers.Layer | Block] = [*found, *written]
        overrides = layer_quantizers.read(self.layers)
        others = {pattern: _named(main, pattern) for pattern in self.exclude}
        layers.check_patterns(both, (*(pattern for pattern in self.exclude if not others[pattern]), *overrides))
        _refuse_branches(main)
        excluded = {layer.node for layer in found if layer.excluded(self.exclude)}
        excluded |= {node for nodes in others.values() for node in nodes}
        excluded |= {node for block in written if block.excluded(self.exclude) for node in block.nodes}
        own = {one.node: layer_quantizers.own(one, overrides) for one in both}
        shared = layer_quantizers.entering(both, excluded, own, self.inputs)
        for block in written:
            shared |= {block.parts[name]: kind for name, kind in own[block.node].items() if name in block.parts}
        outputs = {one.output: own[one.node]["output"] for one in both if "output" in own[one.node]}
        seen: set[ir.Value] = set()
        for layer in found:
            if layer.node in excluded:
                explain(layer.node, "left alone: excluded")
                continue
            kinds = {"weight": self.weights, "bias": self.biases, **own[layer.node]}
            yield from _unquantized(layers.folded(layer.weight), kinds["weight"], seen, layer)
            if layer.bias is not None:
                yield from _unquantized(layers.folded(layer.bias), kinds["bias"], seen, layer)
        for block in written:
            if block.node not in excluded:
                yield from self._constants(block, own[block.node], seen)
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

    def _constants(self, block: Block, own: Mapping[str, Quantizer | None], seen: set[ir.Value]) -> Iterator[Wanted]:
        """The gain and the shift of a normalization, each with one type."""
        for name, kind in {"weight": self.weights, "bias": self.biases, **own}.items():
            if name in ("weight", "bias") and name in block.parts and kind is not None:
                constant = layers.folded(block.parts[name])
                yield from _unquantized(constant, kind.changed({"granularity": PER_TENSOR}), seen)


def _named(main: ir.Graph, pattern: str) -> list[ir.Node]:
    """The nodes whose own names match, layers or not."""
    return [node for node in main if fnmatchcase(node.name or "", pattern)]


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
    values = [value for value in node.inputs if value is not None and layers.source(value) is None]
    if node.op_type == "MatMul" and len(values) == 2:
        return [*values, *(output for output in node.outputs if not output.is_graph_output())]
    if node.op_type in READERS or trained_constants.role(node) == trained_constants.GAIN:
        return [value for value in values if value is node.inputs[0]]
    return values if node.op_type in JOINS and len(values) == 2 else []
