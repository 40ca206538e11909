from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph, grids, layers
from pqc.quantizer_sites import LEARNS
from pqc.rewriting import Pass, explain


@dataclass(frozen=True)
class MergeQuant(Pass):
    """Take out quantizers that change nothing.

    Quant(Relu(Quant(x))) → Relu(Quant(x)), where the second grid has every number of the first: steps as fine or finer,
    a range as wide or wider, whatever its rounding and overflow. Grids are followed through Relu, MaxPool and what
    moves numbers; two equal quantizers of one value become one.
    Leaves learned bits and what follows them, WRAP_SM, scales that are no powers of two, and a result that gives an
    output its name.
    """

    title: ClassVar[str] = "merge-quant"

    def rewrite(self, model: ir.Model) -> int:
        known: dict[ir.Value | None, grids.Grid | None] = {}
        twins: dict[tuple[object, ...], ir.Value] = {}
        changed = 0
        for node in list(model.graph):
            if not layers.is_quant(node):
                known |= dict.fromkeys(node.outputs, grids.after(node, [known.get(value) for value in node.inputs]))
                continue
            value, grid = graph.operand(node, 0), grids.of(node)
            before = known.get(value)
            twin = twins.get(_identity(node))
            if grid is not None and before is not None and grid.covers(before):
                merged, why = _merge(model.graph, node, value), f"'{value.name}' is on its grid already"
            elif twin is not None:
                merged, why = _merge(model.graph, node, twin), f"'{twin.name}' is the same"
            else:
                merged, why = False, ""
            if merged:
                explain(node, f"taken out: {why}")
                changed += 1
            else:
                known[node.outputs[0]] = grid
                twins.setdefault(_identity(node), node.outputs[0])
        if changed:
            graph.remove_unused(model.graph)
        return changed


def _identity(node: ir.Node) -> tuple[object, ...]:
    """What makes two quantizers compute the same; a learned one is like no other."""
    if LEARNS in node.metadata_props:
        return (node,)
    arrays = [graph.constant(value) for value in node.inputs[1:]]
    parts = [(one.shape, one.tobytes()) if one is not None else id(node) for one in arrays]
    attributes = sorted((name, attribute.value) for name, attribute in node.attributes.items())
    return (node.inputs[0], node.domain, node.op_type, *parts, *attributes)


def _merge(main: ir.Graph, node: ir.Node, value: ir.Value) -> bool:
    """Let all read `value` in place of the quantizer's result, unless an output would lose its name."""
    output = node.outputs[0]
    if output.is_graph_output() and (value.producer() is None or value.is_graph_output()):
        return False
    graph.replace(output, value)
    main.remove(node, safe=True)
    return True
