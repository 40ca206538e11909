from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.functions.fixed import FIXED_POINT, MAX_BITS
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class LowerQuant(Pass):
    """Write fixed-point quantizers in the form that trains fastest.

    Quant(x) with one power-of-two scale → FixedPoint(x), the same numbers in three operations. Quant(Relu(x)) without
    a sign bit → FixedPoint(x): its lower bound is what Relu does. The gradient at x = 0 is then 1 where Relu has 0.
    Leaves other grids (per-channel, zero points, other rounding, bipolar, over 22 bits) alone. For the training step
    only: the exported graph keeps Quant.
    """

    title: ClassVar[str] = "lower-quant"

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        quants = [node for node in main if layers.is_quant(node)]
        names = graph.Names(main)
        lowered = sum(_lower(main, node, names) for node in quants)
        if lowered:
            graph.remove_unused(main)
            library.unlink(model)
            library.link(model)
        return lowered


def _lower(main: ir.Graph, node: ir.Node, names: graph.Names) -> bool:
    grid = layers.grid(node)
    reason = "its parameters are computed" if grid is None else _obstacle(grid)
    if grid is None or reason is not None:
        explain(node, f"kept: {reason}")
        return False
    scale, bits = float(grid.scale.reshape(())), int(grid.bits.reshape(()))
    levels = 2 ** (bits - grid.signed)
    high = levels - 1 - (not grid.signed and grid.narrow)
    low = (grid.narrow - levels) if grid.signed else 0
    numbers = {"low": low * scale, "high": high * scale, "shift": 1.5 * 2**23 * scale}
    constants = [
        graph.add_initializer(main, names.new(f"{node.name}.{name}"), np.array(number, np.float32))
        for name, number in numbers.items()
    ]
    domain, operator = FIXED_POINT.key
    output = node.outputs[0]
    fixed = ir.node(
        operator,
        [_before_relu(node.inputs[0], grid.signed), *constants],
        domain=domain,
        name=names.new(f"{node.name}.fixed"),
        outputs=[ir.val(names.new(f"{output.name}.fixed"), output.dtype, output.shape)],
    )
    main.insert_after(node, fixed)
    graph.replace(output, fixed.outputs[0])
    return True


def _obstacle(grid: layers.Grid) -> str | None:
    if grid.scale.size != 1 or grid.bits.size != 1:
        return "it has scales or widths of its own per channel"
    if np.any(grid.zero_point) or grid.rounding not in ("ROUND", "HALF_EVEN"):
        return "it has a zero point or another rounding"
    bits = float(grid.bits.reshape(()))
    if bits != int(bits) or not 1 + grid.signed <= bits <= MAX_BITS:
        return f"{bits:g} bits"
    mantissa, _ = np.frexp(grid.scale.reshape(()))
    return None if mantissa == 0.5 else "its scale is no power of two"


def _before_relu(value: ir.Value | None, signed: bool) -> ir.Value | None:
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == "Relu" and not node.domain and not signed else value
