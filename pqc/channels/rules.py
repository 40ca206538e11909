"""The operators that channels pass, as a table, and the walk through a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from pqc import constants, graph
from pqc.channels import elementwise, moves, products, windows
from pqc.channels.atoms import Axes, Channels

Rule = Callable[[Channels, ir.Node], "list[Axes] | None"]
"""Ties the channels of a node's inputs and gives the axes of its outputs, or None: then all channels stay."""

ELEMENTWISE = (
    *constants.ROUNDED,
    *(name for name in constants.EXACT if name != "Transpose"),
    *("Cast", "Ceil", "Celu", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater"),
    *("HardSigmoid", "HardSwish", "Less", "Log", "Mean", "Mish", "Not", "Pow", "Reciprocal", "Round", "Selu"),
    *("Sign", "Sqrt", "Sum", "ThresholdedRelu", "Where"),
)
STANDARD: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise.elementwise),
    "BatchNormalization": elementwise.norm,
    "MatMul": products.matmul,
    "Gemm": products.gemm,
    "Conv": products.conv,
    "ConvTranspose": products.conv,
    "Transpose": moves.transpose,
    "Concat": moves.concat,
    "Split": moves.split,
    "Slice": moves.slice_,
    "Squeeze": moves.squeeze,
    "Unsqueeze": moves.unsqueeze,
    "Flatten": moves.flatten,
    "Reshape": moves.reshape,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"), windows.pool),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"), windows.reduce),
    "Pad": windows.pad,
}
RULES: dict[tuple[str, str], Rule] = {
    **{("", name): rule for name, rule in STANDARD.items()},
    (graph.QONNX, "Quant"): elementwise.elementwise,
}


def trace(model: ir.Model) -> tuple[Channels, list[ir.Node]]:
    """Follow the channels through the graph; also the nodes that none pass."""
    found, barriers = Channels(model), []
    for node in model.graph:
        found.compute(node)
        rule = RULES.get((node.domain, node.op_type))
        outputs = rule(found, node) if rule is not None else None
        if outputs is None or len(outputs) < len(node.outputs):
            barriers.append(node)
            _stop(found, node.inputs)
            continue
        for output, axes in zip(node.outputs, outputs, strict=True):
            # Of an axis of one position nothing can go.
            found.pin([axis for axis in axes if axis is not None and len(axis) == 1])
            found.axes[output] = axes
    inner = [node for node in model.graph.all_nodes() if node.graph is not model.graph]
    _stop(found, [*model.graph.outputs, *(value for node in inner for value in node.inputs)])
    return found, barriers


def _stop(found: Channels, values: Sequence[ir.Value | None]) -> None:
    for value in values:
        found.pin(found.of(value) or [])
