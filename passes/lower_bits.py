from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, library
from pqc.quantizer import QONNX_ROUNDING
from pqc.quantizer_sites import BitsSite, sites
from pqc.rewriting import Pass, explain

HALVES = {"RND": ("FLOOR", 1), "RND_MIN_INF": ("CEIL", -1)}
"""Roundings that QONNX has no name for: another one, after half of the last bit was added so many times."""
FINER = {"RND": "FLOOR", "RND_MIN_INF": "CEIL", "RND_INF": "DOWN"}
"""How to round to half of the last bit first, where half a bit is added and the sum might round."""
ON_GRID = frozenset({*layers.OUTPUT_AXIS, "Add", "Sub", "Mul"})
"""What computes numbers on a grid from numbers on a grid, to which half of a bit is added without an error."""


@dataclass(frozen=True)
class LowerBits(Pass):
    """Say in QONNX what FixedQuant computes, where QONNX can.

    FixedQuant(W) → Quant(W') with W' on its grid already, whatever rounding and overflow put it there. FixedQuant(x) →
    Quant(x) with a scale and a width for each tensor, channel or element; RND → FLOOR after half of the last bit. What
    comes from no layer is first rounded to halves of the last bit, where adding a half might round. An element without
    bits is multiplied by zero.
    Leaves activations that wrap, bits that are learned (freeze-bits) and weights that masks multiply (fold-masks).
    """

    title: ClassVar[str] = "lower-bits"

    def rewrite(self, model: ir.Model) -> int:
        writer = _Writer(model.graph)
        lowered = sum(writer.lower(site) for site in list(sites(model.graph)))
        if lowered:
            graph.remove_unused(model.graph)
            library.unlink(model)
            library.link(model)
        return lowered


class _Writer:
    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.names = graph.Names(main)

    def lower(self, site: BitsSite) -> bool:
        node, grid = site.node, layers.grid(site.node)
        array = graph.constant(site.x)
        if site.learns or grid is None:
            explain(node, f"kept: its bits are {'learned' if site.learns else 'computed'}")
            return False
        if array is not None:
            self._parameter(site, grid, array)
            return True
        if site.of_parameter or grid.overflow not in ("SAT", "SAT_SYM"):
            explain(
                node, "kept: a mask comes before it" if site.of_parameter else f"kept: QONNX has no {grid.overflow}"
            )
            return False
        self._activation(site, grid)
        return True

    def _parameter(self, site: BitsSite, grid: layers.Grid, array: np.ndarray) -> None:
        node, weight = site.node, site.x
        bits = [np.asarray(graph.constant(value)) for value in node.inputs[1:]]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        body = library.bodies()[node.domain, node.op_type]
        rounded = engine.call(body, [array, *bits], attributes)[0] + np.float32(0)
        if len(weight.uses()) == 1:
            graph.set_initializer(weight, rounded)
        else:
            weight = graph.add_initializer(self.main, self.names.new(f"{weight.name}.rounded"), rounded)
        self._quant(node, weight, grid, "ROUND")

    def _activation(self, site: BitsSite, grid: layers.Grid) -> None:
        value, rounding = site.x, grid.rounding
        if rounding in FINER and not _on_grid(value):
            value = self._finer(site.node, value, grid, FINER[rounding])
        if rounding in HALVES:
            rounding, sign = HALVES[rounding]
            value = self._elementwise("Add", value, sign * grid.scale / 2, f"{site.node.name}.half", before=site.node)
        else:
            rounding = QONNX_ROUNDING[rounding]
        quant = self._quant(site.node, value, grid, rounding)
        alive = grid.bits > grid.signed
        if not alive.all():
            output = quant.outputs[0]
            name = output.name
            output.name = self.names.new(f"{name}.all")
            readers = list(output.uses())
            gate = self._elementwise("Mul", output, alive.astype(np.float32), f"{quant.name}.alive", after=quant)
            for reader, index in readers:
                reader.replace_input_with(index, gate)
            gate.name = name
            if output.is_graph_output():
                self.main.outputs[next(i for i, one in enumerate(self.main.outputs) if one is output)] = gate

    def _quant(self, old: ir.Node, value: ir.Value, grid: layers.Grid, rounding: str) -> ir.Node:
        """A Quant in the place of `old`; what has no bits gets the least that QONNX can say."""
        constants = self._parts(old, grid.scale, np.maximum(grid.bits, 1 + grid.signed))
        output = old.outputs[0]
        attributes = {"signed": int(grid.signed), "narrow": int(grid.narrow), "rounding_mode": rounding}
        new = ir.val(self.names.new(f"{output.name}.lowered"), output.dtype, output.shape)
        quant = ir.node("Quant", [value, *constants], attributes, domain=graph.QONNX, name=f"{old.name}", outputs=[new])
        self.main.insert_after(old, quant)
        old.name = self.names.new(f"{old.name}.old")
        name, output.name = output.name, self.names.new(f"{output.name}.old")
        output.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
        self.main.remove(old, safe=True)
        return quant

    def _finer(self, old: ir.Node, value: ir.Value, grid: layers.Grid, rounding: str) -> ir.Value:
        """`value` on the grid of half bits, before `old`: floor(v + 1/2) = floor((floor(2 v) + 1) / 2)."""
        constants = self._parts(old, grid.scale / 2, np.maximum(grid.bits, 1 + grid.signed) + 1)
        attributes = {"signed": int(grid.signed), "narrow": 0, "rounding_mode": rounding}
        output = ir.val(self.names.new(f"{old.name}.finer.out"), value.dtype, value.shape)
        name = self.names.new(f"{old.name}.finer")
        quant = ir.node("Quant", [value, *constants], attributes, domain=graph.QONNX, name=name, outputs=[output])
        self.main.insert_before(old, quant)
        return output

    def _parts(self, old: ir.Node, scale: np.ndarray, bits: np.ndarray) -> list[ir.Value]:
        parts = {"scale": scale, "zeropt": np.zeros(()), "bitwidth": bits}
        return [
            graph.add_initializer(self.main, self.names.new(f"{old.name}.{part}"), _shortened(np.asarray(array)))
            for part, array in parts.items()
        ]

    def _elementwise(
        self,
        operator: str,
        value: ir.Value,
        array: np.ndarray,
        name: str,
        *,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
    ) -> ir.Value:
        constant = graph.add_initializer(self.main, self.names.new(f"{name}.by"), _shortened(np.asarray(array)))
        output = ir.val(self.names.new(f"{name}.out"), value.dtype, value.shape)
        node = ir.node(operator, [value, constant], name=self.names.new(name), outputs=[output])
        if before is not None:
            self.main.insert_before(before, node)
        elif after is not None:
            self.main.insert_after(after, node)
        return output


def _on_grid(value: ir.Value) -> bool:
    """Whether a layer or a sum computes `value`, perhaps before a Relu or what only moves it."""
    node = value.producer()
    while node is not None and not node.domain and (node.op_type == "Relu" or node.op_type in layers.MOVES):
        node = graph.operand(node, 0).producer()
    return node is not None and not node.domain and node.op_type in ON_GRID


def _shortened(array: np.ndarray) -> np.ndarray:
    """float32, and one number where all are the same."""
    array = np.asarray(array, np.float32)
    return np.asarray(array.flat[0]) if array.size and np.all(array == array.flat[0]) else array
