"""Which quantizers ONNX's own operators compute exactly: quantize, clip, dequantize."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import graph, layers

BYTE = 8
EXACT = 2**24
"""Integers below are exact in float32."""


def reason_to_keep(node: ir.Node) -> str | None:
    """Why ONNX's operators would not compute the same as a quantizer, or None."""
    grid = layers.grid(node)
    if grid is None or layers.is_fixed_quant(node):
        return "its parameters are computed" if grid is None else f"QONNX has no {grid.overflow}"
    x, parameter = graph.operand(node, 0), graph.constant(node.inputs[0]) is not None
    if np.any(grid.zero_point) or grid.bits.size == 0 or (not parameter and np.any(grid.bits - grid.signed < 1)):
        return "it has a zero point or one signed bit"
    if x.shape is None or along_axis(grid.scale, len(x.shape)) is None:
        return "its scales do not lie along one axis"
    if parameter:
        integers = np.asarray(graph.constant(x)).astype(np.float64) / grid.scale
        exact = np.all(integers == np.rint(integers)) and np.all(np.abs(integers) < EXACT)
        return None if exact else "its values are not on the grid; run fold-quant"
    if grid.rounding not in ("ROUND", "HALF_EVEN"):
        return f"rounding {grid.rounding}"
    if np.any(grid.bits != grid.bits.flat[0]) or np.any(grid.bits > BYTE) or np.any(grid.bits != np.rint(grid.bits)):
        return "its widths differ, or are over eight bits"
    return None


def along_axis(scale: np.ndarray, rank: int) -> tuple[np.ndarray, int] | None:
    """The scale as a scalar or a vector, and the axis that it lies along; None where there are several."""
    if scale.size == 1:
        return np.asarray(scale, np.float32).reshape(()), 0
    shape = (1,) * (rank - scale.ndim) + scale.shape
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    return (np.asarray(scale, np.float32).reshape(-1), axes[0]) if len(axes) == 1 else None
