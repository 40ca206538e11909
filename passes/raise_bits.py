from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.hardware.quantizer import as_fixed, power_of_two
from pqc.quantizer import AP_ROUNDING
from pqc.rewriting import Pass, explain

HALVES = {"FLOOR": ("RND", 1), "CEIL": ("RND_MIN_INF", -1)}
"""What a rounding becomes after it was done on half the grid and half a step was added: lower-bits writes it so."""


@dataclass(frozen=True)
class RaiseBits(Pass):
    """Say in one FixedQuant what lower-bits wrote in several nodes.

    Quant(Quant(x, half the scale) + half the scale, FLOOR) → FixedQuant(x, RND); Quant(x) times zeros and ones → Fixed-
    Quant(x) with no bits where the zeros are. For the hand-over to hardware, where both cost nothing.
    Leaves other activations, and parameters, alone.
    """

    title: ClassVar[str] = "raise-bits"

    def rewrite(self, model: ir.Model) -> int:
        names = graph.Names(model.graph)
        raised = sum(_raise(model.graph, node, names) for node in list(model.graph) if layers.is_qonnx_quant(node))
        if raised:
            graph.remove_unused(model.graph)
            library.unlink(model)
            library.link(model)
        return raised


def _raise(main: ir.Graph, node: ir.Node, names: graph.Names) -> bool:
    grid = layers.grid(node)
    if grid is None or graph.constant(node.inputs[0]) is not None or np.any(grid.zero_point):
        return False
    if None in [power_of_two(float(scale)) for scale in grid.scale.flat] or np.any(grid.bits <= grid.signed):
        return False
    whole, gate = _unrounded(node, grid), _gate(node)
    if whole is None and gate is None:
        return False
    rounding = AP_ROUNDING.get(grid.rounding) if whole is None else HALVES[grid.rounding][0]
    if rounding is None:
        explain(node, f"left alone: ap_fixed has no {grid.rounding}")
        return False
    end = node if gate is None else gate
    alive = None if gate is None else graph.constant(gate.inputs[1])
    fixed = as_fixed(main, node, names, graph.operand(node, 0) if whole is None else whole, rounding, alive)
    main.insert_after(node, fixed)
    graph.replace(end.outputs[0], fixed.outputs[0])
    return True


def _unrounded(node: ir.Node, grid: layers.Grid) -> ir.Value | None:
    """What was rounded before half a step was added to it, if that is what `node` finishes."""
    if grid.rounding not in HALVES:
        return None
    half = HALVES[grid.rounding][1] * grid.scale / 2
    add = node.inputs[0].producer() if node.inputs[0] is not None else None
    first = add.inputs[0].producer() if add is not None and add.inputs and add.inputs[0] is not None else None
    if add is None or first is None or add.op_type != "Add" or not layers.is_qonnx_quant(first):
        return None
    added, finer = graph.constant(add.inputs[1]), layers.grid(first)
    if added is None or finer is None or _read_elsewhere(first.outputs[0]) or _read_elsewhere(add.outputs[0]):
        return None
    same = (
        _equal(added, half)
        and _equal(finer.scale, grid.scale / 2)
        and _equal(finer.bits, grid.bits + 1)
        and not np.any(finer.zero_point)
        and (finer.signed, finer.narrow, finer.rounding) == (grid.signed, False, grid.rounding)
    )
    return graph.operand(first, 0) if same else None


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two parameters say the same, one number standing for many."""
    return (one.size == 1 or other.size == 1 or one.shape == other.shape) and bool(np.all(one == other))


def _gate(node: ir.Node) -> ir.Node | None:
    """The multiplication by zeros and ones that alone takes the result."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != "Mul" or uses[0].idx != 0:
        return None
    factor = graph.constant(uses[0].node.inputs[1])
    return uses[0].node if factor is not None and is_gate(factor) else None


def is_gate(factor: np.ndarray) -> bool:
    """Whether a constant is zeros and ones, the same for every sample."""
    return bool(np.all((factor == 0) | (factor == 1))) and (factor.ndim < 2 or factor.shape[0] == 1)


def _read_elsewhere(value: ir.Value) -> bool:
    return len(value.uses()) != 1 or value.is_graph_output()
