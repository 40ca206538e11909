"""Whether all that hardware computes with lies on a grid: a quantizer between every two operations, or a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph, grids, layer_quantizers, layers, trained_constants, unary
from pqc.layers import MOVES

SENSITIVE = frozenset(
    [
        *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Sum", "Mean", "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"),
        *("Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Reciprocal", "Softmax", "LogSoftmax", "Sin", "Cos", "Tan", "Erf"),
        *("Gelu", "Elu", "Selu", "Celu", "Softplus", "Softsign", "Mish", "HardSigmoid", "HardSwish", "LeakyRelu"),
        *("PRelu", "ThresholdedRelu", "AveragePool", "GlobalAveragePool", "LpPool", "GlobalLpPool", "ReduceSum"),
        *("ReduceMean", "ReduceProd", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "CumSum"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
        *("LSTM", "GRU", "RNN"),
    ]
)
"""Operators that compute new numbers: each of their inputs must lie on a grid, and their results do not."""
KEEPS = frozenset({"Relu", "Identity", "Dropout", "Neg", "Abs", "Min", "Where", "Pad", "Gather", "Expand", "Tile"})
"""Operators beside `MOVES` and `grids.PICKS` whose results lie on a grid where all their inputs do."""
STORED_WIDTH = 16
"""Constants that so many bits hold at one step are on a grid without a quantizer."""


@dataclass(frozen=True)
class Finding:
    """An input that is not on a grid.

    Args:
        node: the reading node's name.
        operator: its operator.
        input: the value's name.
        missing: what is missing, in words; or why nothing is.
        action: what to do; empty where nothing is to be done.
    """

    node: str
    operator: str
    input: str
    missing: str
    action: str

    @property
    def fails(self) -> bool:
        """Whether something is to be done."""
        return bool(self.action)


@dataclass(frozen=True)
class Gap:
    """A finding and its place in the graph: the value to round, and the layer whose parameter it is."""

    finding: Finding
    value: ir.Value
    layer: layers.Layer | None


def gaps(main: ir.Graph) -> list[Gap]:
    """What computes on numbers that are on no grid, in the order of the graph, and the reasons where that is meant."""
    parameters = {layer.weight: layer for layer in layers.layers(main)}
    parameters |= {layer.bias: layer for layer in layers.layers(main) if layer.bias is not None}
    adds = {layer.bias_add: layer.node.outputs[0] for layer in layers.layers(main) if layer.bias_add is not None}
    adds |= {node: graph.operand(node, 0) for node in main if trained_constants.role(node) == trained_constants.SHIFT}
    functions = {node: one for one in unary.functions(main) for node in one.nodes}
    on_grid: dict[ir.Value, bool] = {}
    found: list[Gap] = []
    for node in main:
        read = [functions[node].x] if node in functions else node.inputs
        off = [value for value in read if value is not None and _computes(value) and not _lies(value, on_grid)]
        sensitive = node.op_type in SENSITIVE and not node.domain and not layers.applies_mask(node)
        if sensitive and not _is_head(node):
            for value in dict.fromkeys(off):
                found.append(_gap(node, value, adds.get(node), parameters))
        on_grid |= dict.fromkeys(
            node.outputs, layers.is_quant(node) or (_keeps(node) and not off and node not in functions)
        )
    return [*found, *_outputs(main, on_grid)]


def _computes(value: ir.Value) -> bool:
    """Whether a value has numbers to round; shapes, axes and conditions have not."""
    return value.dtype is None or value.dtype.is_floating_point()


def _lies(value: ir.Value, on_grid: dict[ir.Value, bool]) -> bool:
    if value not in on_grid:
        array = graph.constant(value)
        on_grid[value] = array is not None and _is_stored(array)
    return on_grid[value]


def _is_stored(array: np.ndarray) -> bool:
    """Whether a constant is whole multiples, of few bits, of a power of two."""
    peak = float(np.abs(array).max(initial=0))
    if peak == 0 or not np.isfinite(peak):
        return peak == 0
    scaled = np.ldexp(array.astype(np.float64), STORED_WIDTH - int(np.frexp(peak)[1]))
    return bool(np.all(scaled == np.rint(scaled)))


def _keeps(node: ir.Node) -> bool:
    return layers.applies_mask(node) or (not node.domain and node.op_type in KEEPS | MOVES | grids.PICKS)


def _is_head(node: ir.Node) -> bool:
    return node.op_type in layers.HEADS and node.outputs[0].is_graph_output()


def _gap(node: ir.Node, value: ir.Value, product: ir.Value | None, parameters: dict[ir.Value, layers.Layer]) -> Gap:
    name, source = str(value.name), layers.source(value)
    if value is product:
        reason = "nothing: hardware adds the bias to the exact sum"
        return Gap(Finding(str(node.name), node.op_type, name, reason, ""), value, None)
    if source is not None or graph.constant(value) is not None:
        layer = parameters.get(value) or parameters.get(source) if source is not None else None
        kind = "weight" if layer is not None and source is layer.weight else "bias" if layer is not None else "constant"
        finding = Finding(str(node.name), node.op_type, name, f"a quantizer of the {kind}", f"round '{name}'")
        return Gap(finding, value, layer)
    place = layer_quantizers.origin(value)
    finding = Finding(str(node.name), node.op_type, name, "a quantizer of the activation", f"round '{place.name}'")
    return Gap(finding, place, None)


def _outputs(main: ir.Graph, on_grid: dict[ir.Value, bool]) -> Iterator[Gap]:
    for value in main.outputs:
        head = value.producer()
        value = graph.operand(head, 0) if head is not None and _is_head(head) else value
        producer = value.producer()
        if _computes(value) and producer is not None and not _lies(value, on_grid):
            reason = "nothing: what leaves the model has all the bits that the last operation gives"
            yield Gap(Finding("", "output", str(value.name), reason, ""), value, None)
