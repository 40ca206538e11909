"""Constants beside weights, biases and bits that the optimizer moves: slopes, gains, shifts, multipliers."""

from __future__ import annotations

import onnx_ir as ir

from pqc import layers
from pqc.functions.batch_norm import FOLDED_WEIGHT
from pqc.functions.multiplier import MULTIPLIER
from pqc.functions.operator import Key

TRAINS = "pqc.trains"
"""The key of a node's metadata that tells the role of its second input, which is trained."""
SLOPE, GAIN, SHIFT, RELU_MULTIPLIER = "slope", "gain", "shift", "relu_multiplier"
ROLES = (SLOPE, GAIN, SHIFT, RELU_MULTIPLIER)
ALWAYS: dict[Key, str] = {("", "PRelu"): SLOPE, MULTIPLIER.key: RELU_MULTIPLIER, FOLDED_WEIGHT.key: GAIN}
"""Operators whose second input is trained without a note."""


def role(node: ir.Node) -> str | None:
    """The role of the second input of `node`, or None where it is not trained."""
    return node.metadata_props.get(TRAINS) or ALWAYS.get((node.domain, node.op_type))


def trained(main: ir.Graph) -> list[tuple[ir.Value, str]]:
    """The constants, once each, with their roles, in the order of the graph."""
    found: dict[ir.Value, str] = {}
    for node in main:
        title = role(node)
        value = layers.source(node.inputs[1]) if title is not None else None
        if title is not None and value is not None:
            found.setdefault(value, title)
    return list(found.items())
