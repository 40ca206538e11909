"""Where a training went wrong."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import engine, graph


def first_not_finite(model: ir.Model, feeds: dict[str, np.ndarray]) -> str | None:
    """The first node of the graph whose result holds NaN or infinity on `feeds`, by name and operator."""
    trial = graph.copy(model)
    nodes = list(trial.graph)
    trial.graph.outputs[:] = [
        output for node in nodes for output in node.outputs if output.name and output.dtype == ir.DataType.FLOAT
    ]
    found = engine.evaluate(trial, feeds)
    for node in nodes:
        if any(output.name in found and not np.isfinite(found[output.name]).all() for output in node.outputs):
            return f"{node.op_type} '{node.name}'"
    return None
