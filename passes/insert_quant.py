from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.errors import UnsupportedError
from pqc.fixed_point import FixedPoint
from pqc.functions.quant import ROUNDING_MODES
from pqc.rewriting import CHANGES, Meaning, Pass, explain

# What needs its activations on a grid: hardware computes it exactly, or reads it from a table.
READERS = frozenset({*layers.OUTPUT_AXIS, "Tanh", "Sigmoid", "AveragePool", "GlobalAveragePool"})
JOINS = frozenset({"Add", "Sub", "Mul"})


@dataclass(frozen=True)
class InsertQuant(Pass):
    """Round weights, biases and layer inputs to fixed point.

    layer(x, W, b) → layer(Quant(x), Quant(W), Quant(b)), each type given as k,i,f. Tables (tanh, sigmoid), pools
    and sums of two activations count as layers. `outputs` also rounds the model's results, the logits where a
    softmax or sigmoid ends it.
    Leaves layers that match `exclude`, and what has a quantizer already. The quantizer of an activation goes
    before operators that only move values, and one serves all readers.
    """

    title: ClassVar[str] = "insert-quant"
    meaning: ClassVar[Meaning] = CHANGES

    weights: FixedPoint | None = FixedPoint(1, 0, 7)
    biases: FixedPoint | None = FixedPoint(1, 0, 7)
    inputs: FixedPoint | None = FixedPoint(0, 0, 7)
    outputs: FixedPoint | None = None
    rounding: str = "ROUND"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDING_MODES:
            raise ValueError(f"no rounding mode '{self.rounding}'; QONNX has {', '.join(ROUNDING_MODES)}")

    def rewrite(self, model: ir.Model) -> int:
        wanted = list(self._wanted(model.graph))
        writer = _Writer(model.graph, self.rounding)
        for value, kind in wanted:
            writer.quantize(value, kind)
        if wanted:
            library.link(model)
        return len(wanted)

    def _wanted(self, main: ir.Graph) -> Iterator[tuple[ir.Value, FixedPoint]]:
        found = layers.layers(main)
        layers.check_patterns(found, self.exclude)
        _refuse_branches(main)
        excluded = {layer.node for layer in found if layer.excluded(self.exclude)}
        seen: set[ir.Value] = set()
        for layer in found:
            if layer.node in excluded:
                explain(layer.node, "left alone: excluded")
                continue
            yield from _unquantized(layer.weight, self.weights, seen)
            if layer.bias is not None:
                yield from _unquantized(layer.bias, self.biases, seen)
        for node in main:
            if node not in excluded and self.inputs is not None:
                for value in _activations(node):
                    yield from _unquantized(_origin(value), self.inputs, seen)
        for value in main.outputs:
            if self.outputs is not None:
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
    value: ir.Value, kind: FixedPoint | None, seen: set[ir.Value]
) -> Iterator[tuple[ir.Value, FixedPoint]]:
    quantized = layers.is_quant(value.producer()) or any(layers.is_quant(node) for node in value.consumers())
    masked = any(layers.applies_mask(node) and _feeds_quant(node) for node in value.consumers())
    if kind is None or quantized or masked or value in seen:
        return
    seen.add(value)
    yield value, kind


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


def _origin(value: ir.Value) -> ir.Value:
    """Where the numbers of `value` were computed: before everything that only moves them."""
    producer = value.producer()
    while (
        producer is not None
        and not producer.domain
        and producer.op_type in layers.MOVES
        and producer.op_type != "Concat"
    ):
        value = graph.operand(producer, 0)
        producer = value.producer()
    return value


class _Writer:
    """Adds Quant nodes with names that follow from what they round."""

    def __init__(self, main: ir.Graph, rounding: str) -> None:
        self.main = main
        self.rounding = rounding
        self.names = graph.Names(main)

    def quantize(self, value: ir.Value, kind: FixedPoint) -> None:
        name = self.names.new(f"{value.name}.quant")
        parameters = {"scale": kind.scale, "zeropt": np.float32(0), "bitwidth": np.float32(kind.bits)}
        constants = [
            graph.add_initializer(self.main, self.names.new(f"{name}.{part}"), np.asarray(number))
            for part, number in parameters.items()
        ]
        readers = list(value.uses())
        node = ir.node(
            "Quant",
            [value, *constants],
            {"signed": kind.k, "narrow": 0, "rounding_mode": self.rounding},
            domain=graph.QONNX,
            name=name,
            outputs=[ir.val(self.names.new(f"{value.name}.quantized"), value.dtype, value.shape)],
        )
        for reader, index in readers:
            reader.replace_input_with(index, node.outputs[0])
        self._place(value, node)
        if value.is_graph_output() and not readers:
            self._become_output(value, node)

    def _place(self, value: ir.Value, node: ir.Node) -> None:
        producer = value.producer()
        if producer is not None:
            self.main.insert_after(producer, node)
        else:
            self.main.insert_before(self.main.node(0), node)

    def _become_output(self, value: ir.Value, node: ir.Node) -> None:
        """Let the rounded value leave the graph under the output's own name."""
        index = next(i for i, output in enumerate(self.main.outputs) if output is value)
        self.main.outputs[index] = node.outputs[0]
        value.name, node.outputs[0].name = node.outputs[0].name, value.name
