"""The names that the graphs of training agree on."""

from __future__ import annotations

import json

import onnx_ir as ir

TARGET, LOSS = "target", "loss"
THETA, NEXT, GRADIENT_SUFFIX = "theta", ".next", "_grad"
RATE, LEARNING_RATE = "rate", "learning_rate"

RESERVED = frozenset(
    {TARGET, LOSS, THETA, RATE, LEARNING_RATE, "first_moment", "second_moment", "correction1", "correction2"}
)
"""Names of the training graph's own inputs and outputs."""

OUTPUTS, LAYOUT, PIPELINE = "pqc.outputs", "pqc.layout", "pqc.pipeline"
"""Keys of a model's metadata: its own outputs, the slices of theta, the passes that made it."""


def layout(model: ir.Model) -> list[tuple[str, tuple[int, ...], str]]:
    """The name, shape and role of each slice of theta, in order."""
    return [(name, tuple(shape), role) for name, shape, role in json.loads(model.metadata_props.get(LAYOUT, "[]"))]
