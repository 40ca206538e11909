from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class LowerScales(Pass):
    """Give weights with many scales or widths one type that covers all.

    Quant(W, scales [N], bits) → Quant(W, one scale, bits) with the finest of the scales and as many bits as the
    values need. W must lie on its grid already (fold-quant), so the node stays the identity on it. Unused low and
    high bits of a constant cost no hardware.
    Leaves activations alone, and scales that are no powers of two or zero points other than 0.
    """

    title: ClassVar[str] = "lower-scales"

    def rewrite(self, model: ir.Model) -> int:
        names = graph.Names(model.graph)
        changed = sum(_lower(model.graph, node, names) for node in model.graph if layers.is_qonnx_quant(node))
        if changed:
            graph.remove_unused(model.graph)
        return changed


def _lower(main: ir.Graph, node: ir.Node, names: graph.Names) -> int:
    grid, array = layers.grid(node), graph.constant(node.inputs[0])
    if grid is None or all(part.ndim == 0 for part in (grid.scale, grid.zero_point, grid.bits)):
        return 0
    if array is None:
        return _scalars(main, node, grid, names)
    mantissas, exponents = np.frexp(grid.scale)
    finest = np.ldexp(np.float32(1), exponents.min() - 1)
    if np.any(mantissas != 0.5) or np.any(grid.zero_point != 0) or not _holds(grid, array):
        explain(node, "left alone: scales that are no powers of two, a zero point, or values off the grid")
        return 0
    integers = array.astype(np.float64) / finest
    magnitude = int(np.abs(integers).max())  # a symmetric range, so that a narrow Quant holds it too
    _set(main, node, names, finest, max(magnitude.bit_length() + grid.signed, 1 + grid.signed))
    return 1


def _holds(grid: layers.Grid, array: np.ndarray) -> bool:
    """Whether the Quant is the identity on `array`."""
    integers = array.astype(np.float64) / grid.scale
    high = np.exp2(grid.bits - grid.signed) - 1
    low = -high - (1 - grid.narrow) if grid.signed else 0 * high
    return bool(np.all((integers == np.rint(integers)) & (integers >= low) & (integers <= high)))


def _scalars(main: ir.Graph, node: ir.Node, grid: layers.Grid, names: graph.Names) -> int:
    if not all(part.size == 1 for part in (grid.scale, grid.zero_point, grid.bits)):
        explain(node, "left alone: an activation with many types")
        return 0
    _set(main, node, names, grid.scale.reshape(()), grid.bits.reshape(()), grid.zero_point.reshape(()))
    return 1


def _set(main: ir.Graph, node: ir.Node, names: graph.Names, *parts: object) -> None:
    scale, bits, zero_point = (*parts, np.float32(0))[:3]
    for index, (part, number) in enumerate((("scale", scale), ("zeropt", zero_point), ("bitwidth", bits)), start=1):
        constant = np.asarray(number, dtype=np.float32)
        value = graph.add_initializer(main, names.new(f"{node.name}.{part}"), constant)
        node.replace_input_with(index, value)
