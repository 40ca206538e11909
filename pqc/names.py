"""The names that the graphs of training agree on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

TARGET, LOSS = "target", "loss"
THETA, BUFFERS, NEXT, GRADIENT_SUFFIX = "theta", "buffers", ".next", "_grad"
BASE = ".base"
"""The suffix of what the optimizer starts from, where a method changes its trained states itself."""
RATE, LEARNING_RATE, DECAY, ACCUMULATED = "rate", "learning_rate", "decay", "accumulated"

STEP_NUMBER = "step_number"
"""The number of the step, from 1, where a graph asks for it."""
EBOPS_WEIGHT, BITS_WEIGHT = "ebops_weight", "bits_weight"
"""The annealed weights of bit operations and of bits in the loss."""

RESERVED = frozenset(
    {
        *(TARGET, LOSS, THETA, BUFFERS, RATE, LEARNING_RATE, DECAY, ACCUMULATED),
        *(EBOPS_WEIGHT, BITS_WEIGHT, STEP_NUMBER),
        *("first_moment", "second_moment", "correction1", "correction2"),
    }
)
"""Names of the training graph's own inputs and outputs."""

OUTPUTS, LAYOUT, PIPELINE = "pqc.outputs", "pqc.layout", "pqc.pipeline"
"""Keys of a model's metadata: its own outputs, the slices of theta and the buffers, the passes that made it."""
HEAD = "pqc.head"
"""The key for the last operator, where the loss reads its input instead."""
UPDATED = "pqc.updated"
"""The key for the values that become the states' next ones, by the states' names."""

TEACHER = "pqc.teacher"
"""The key for the file of the teacher that the loss listens to."""

Slice = tuple[str, tuple[int, ...], str]
"""The name, the shape and the role of a parameter or a state in a flat vector."""


def layout(model: ir.Model, vector: str = THETA) -> list[Slice]:
    """The name, shape and role of each slice of theta or of the buffers, in order."""
    slices = json.loads(model.metadata_props.get(LAYOUT, "{}")).get(vector, [])
    return [(name, tuple(shape), role) for name, shape, role in slices]


def unpacked(vector: np.ndarray, slices: Sequence[Slice]) -> dict[str, np.ndarray]:
    """The parts of a flat vector by name, in their shapes."""
    sizes = [math.prod(shape) for _, shape, _ in slices]
    places = zip(slices, sizes, np.cumsum(sizes), strict=True)
    return {name: vector[end - size : end].reshape(shape) for (name, shape, _), size, end in places}


def by_role(slices: Sequence[Slice], numbers: Mapping[str, float], default: float) -> np.ndarray:
    """A flat float32 vector that holds one number for each role."""
    parts = [np.full(math.prod(shape), numbers.get(role, default), np.float32) for _, shape, role in slices]
    return np.concatenate(parts)
