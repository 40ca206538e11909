from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, library
from pqc.quantizer import QONNX_ROUNDING
from pqc.quantizer_sites import BitsSite, sites
from pqc.rewriting import Pass, explain

HALVES = {"RND": ("FLOOR", 1), "RND_MIN_INF": ("CEIL", -1)}
"""Roundings that QONNX has no name for: another one, after half of the last bit was added so many times.

That half is added to what was rounded the same way with one bit more: floor(x + 1/2) = floor((floor(2 x) + 1) / 2), and
float32 rounds none of it, whatever x is.
"""


@dataclass(frozen=True)
class LowerBits(Pass):
    """Say in QONNX what FixedQuant computes, where QONNX can.

    FixedQuant(W) → Quant(W') with W' on its grid already, whatever rounding and overflow put it there. FixedQuant(x) →
    Quant(x) with a scale and a width for each tensor, channel or element; RND → FLOOR to one bit more, half of the last
    bit added, and FLOOR. An element without bits is multiplied by zero, and gets a type that another one has.
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
        least = np.maximum(grid.bits, 1 + grid.signed)  # so that bit operations count no more for what has no bits
        self._quant(node, weight, replace(grid, scale=_alike(grid).scale, bits=least), "ROUND")

    def _activation(self, site: BitsSite, grid: layers.Grid) -> None:
        grid, alive = _alike(grid), grid.bits > grid.signed
        value, rounding = site.x, grid.rounding
        if rounding in HALVES:
            rounding, sign = HALVES[rounding]
            value = self._halves(site.node, value, grid, rounding)
            value = self._elementwise("Add", value, sign * grid.scale / 2, f"{site.node.name}.half", before=site.node)
        else:
            if rounding == "RND_INF":  # QONNX adds a half to |x| too
                value = self._halves(site.node, value, grid, "DOWN")
            rounding = QONNX_ROUNDING[rounding]
        quant = self._quant(site.node, value, grid, rounding)
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

    def _halves(self, node: ir.Node, value: ir.Value, grid: layers.Grid, rounding: str) -> ir.Value:
        """`value` on half the grid of `node`, and in its range."""
        finer = replace(grid, scale=grid.scale / 2, bits=grid.bits + 1)
        attributes = {"signed": int(grid.signed), "narrow": 0, "rounding_mode": rounding}
        output = ir.val(self.names.new(f"{node.name}.halves.out"), value.dtype, value.shape)
        inputs = [value, *self._parts(f"{node.name}.halves", finer)]
        name = self.names.new(f"{node.name}.halves")
        self.main.insert_before(
            node, ir.node("Quant", inputs, attributes, domain=graph.QONNX, name=name, outputs=[output])
        )
        return output

    def _parts(self, name: str, grid: layers.Grid) -> list[ir.Value]:
        """The parameters of a Quant."""
        parts = {"scale": grid.scale, "zeropt": np.float32(0), "bitwidth": grid.bits}
        return [
            graph.add_initializer(self.main, self.names.new(f"{name}.{part}"), _shortened(np.asarray(array)))
            for part, array in parts.items()
        ]

    def _quant(self, old: ir.Node, value: ir.Value, grid: layers.Grid, rounding: str) -> ir.Node:
        """A Quant in the place of `old`."""
        constants = self._parts(str(old.name), grid)
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


def _alike(grid: layers.Grid) -> layers.Grid:
    """The grid with bits for elements that have none: those of the first that has, or the least that QONNX can say."""
    bits, scale, alive = np.broadcast_arrays(grid.bits, grid.scale, grid.bits > grid.signed)
    if alive.all():
        return grid
    first = (bits[alive][0], scale[alive][0]) if alive.any() else (np.float32(1 + grid.signed), np.float32(1))
    return replace(grid, bits=np.where(alive, bits, first[0]), scale=np.where(alive, scale, first[1]))


def _shortened(array: np.ndarray) -> np.ndarray:
    """float32, and one number where all are the same."""
    array = np.asarray(array, np.float32)
    return np.asarray(array.flat[0]) if array.size and np.all(array == array.flat[0]) else array
