from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, grids, layers, library, unary
from pqc.functions.table import LOOKUP
from pqc.hardware.quantizer import fixed_types
from pqc.hardware.tables import MOST_ENTRIES, evaluate
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class LowerTables(Pass):
    """Write functions between two quantizers as tables of their results.

    Quant(f(Quant(x))) → Lookup(Quant(x), entries): the rounded result of f, as the engine computes it, for every number
    of the grid that enters. f is any function of one number, of one operator or many.
    Leaves a Relu, which needs no table, and a function whose input has more than 2^14 numbers, or whose result has
    many types or not at all. hls4ml has tables of its own for a tanh or sigmoid of more numbers.
    """

    title: ClassVar[str] = "lower-tables"

    def rewrite(self, model: ir.Model) -> int:
        entering = _grids(model.graph)
        lowered = 0
        for function in unary.elementwise(model.graph):
            if function.operators & (unary.ACTIVATIONS | unary.PARTS) or _scaled_relu(function):
                lowered += _lower(model, function, entering.get(function.x))
        if lowered:
            graph.remove_unused(model.graph)
            library.unlink(model)
            library.link(model)
        return lowered


def _grids(main: ir.Graph) -> dict[ir.Value, grids.Grid]:
    """What numbers values can be, as far as quantizers tell."""
    found: dict[ir.Value, grids.Grid] = {}
    for node in main:
        known = [found.get(value) if value is not None else None for value in node.inputs]
        grid = grids.of(node) if layers.is_quant(node) else grids.after(node, known)
        if grid is not None:
            found.update(dict.fromkeys(node.outputs, grid))
    return found


def _scaled_relu(function: unary.Function) -> bool:
    return "Relu" in function.operators and len(function.nodes) > 1


def _lower(model: ir.Model, function: unary.Function, grid: grids.Grid | None) -> bool:
    last, quant = function.nodes[-1], _sole_quant(function.y)
    if grid is None or quant is None:
        explain(last, "left alone: it is not between two quantizers with constant bits")
        return False
    hull = grid.hull()
    low, high = (int(bound / hull.step) for bound in (hull.low, hull.high))
    if high - low >= MOST_ENTRIES:
        explain(last, f"left alone: a table of {high - low + 1} entries, above {MOST_ENTRIES}")
        return False
    entries = evaluate(model, function, quant, np.arange(low, high + 1) * hull.step)
    main, names = model.graph, graph.Names(model.graph)
    constant = graph.add_initializer(main, names.new(f"{last.name}.entries"), entries)
    domain, operator = LOOKUP.key
    output = ir.val(names.new(f"{last.name}.rounded"), function.y.dtype, function.y.shape)
    attributes = {"step": float(hull.step), "low": float(low)}
    name = names.new(f"{last.name}.table")
    table = ir.node(operator, [function.x, constant], attributes, domain=domain, name=name, outputs=[output])
    main.insert_before(quant, table)
    graph.replace(quant.outputs[0], output)
    return True


def _sole_quant(value: ir.Value) -> ir.Node | None:
    """The quantizer with one constant type that alone takes `value`."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or not layers.is_quant(uses[0].node) or grids.of(uses[0].node) is None:
        return None
    return uses[0].node if fixed_types(uses[0].node).one is not None else None
