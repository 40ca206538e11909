from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import data, engine, graph, layers, quantizer_sites
from pqc.fixed_point import FixedPoint, fit, holding_bits
from pqc.rewriting import CHANGES, Meaning, Pass, explain
from pqc.samples import sample

MAX_WIDTH = 32


@dataclass(frozen=True)
class CalibrateQuant(Pass):
    """Choose sign and integer bits of quantizers from the numbers they meet.

    Quant with (k, i, f) → Quant with the same number of magnitude bits, k = 1 where negative numbers occur, and
    i with the least squared error. FixedQuant of an activation that learns its bits → the same f, k likewise, and i for
    each element so that it holds its numbers. `data` is an .npz of arrays by input name; without it inputs are random.
    Leaves quantizers that are not plain fixed point (other scales, zero points, per-channel, bipolar), the sign bit of
    parameters, learned bits of parameters, and parameters that are all zero.
    """

    title: ClassVar[str] = "calibrate-quant"
    meaning: ClassVar[Meaning] = CHANGES

    data: str = ""
    samples: int = 4096

    def rewrite(self, model: ir.Model) -> int:
        quants = [node for node in model.graph if layers.is_quant(node) and _kind(node) is not None]
        learned = [site for site in quantizer_sites.sites(model.graph) if site.learns and not site.of_parameter]
        activations = [node for node in quants if graph.constant(node.inputs[0]) is None]
        numbers = _activations(model, [*quants, *(site.node for site in learned)], self._feeds(model))
        changed = sum(_hold(site, numbers[str(site.x.name)]) for site in learned)
        for node in quants:
            value, kind = graph.operand(node, 0), _kind(node)
            assert kind is not None
            parameter = node not in activations
            array = np.asarray(graph.constant(value) if parameter else numbers[str(value.name)])
            # A parameter may change its sign while it is trained; what it starts from does not tell.
            if array.any() and kind.i + kind.f < MAX_WIDTH:
                changed += _set(node, fit(array, kind.i + kind.f, signed=parameter and bool(kind.k)))
        return changed

    def remembered(self) -> Pass:
        return replace(self, data=Path(self.data).name)

    def _feeds(self, model: ir.Model) -> dict[str, np.ndarray]:
        feeds = sample(model, self.samples)
        if self.data:
            arrays = data.read(Path(self.data))
            feeds |= {name: data.as_float(arrays[name][: self.samples]) for name in feeds if name in arrays}
        return feeds


def _kind(node: ir.Node) -> FixedPoint | None:
    """The fixed point type of a quantizer, or None if it is of another kind."""
    grid = layers.grid(node)
    if grid is None or grid.scale.size != 1 or grid.bits.size != 1 or np.any(grid.zero_point) or grid.narrow:
        return None
    mantissa, exponent = np.frexp(grid.scale.reshape(()))
    k, bits = int(grid.signed), float(grid.bits.reshape(()))
    if mantissa != 0.5 or bits != int(bits) or not k + 1 <= bits <= MAX_WIDTH:
        return None
    f = 1 - int(exponent)
    return FixedPoint(k, int(bits) - k - f, f)


def _activations(model: ir.Model, quants: list[ir.Node], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What enters each quantizer when none of them rounds."""
    floating = graph.copy(model)
    wanted = {node.name for node in quants}
    values = []
    for node in list(floating.graph):
        if node.name in wanted:
            values.append(graph.operand(node, 0))
            node.outputs[0].replace_all_uses_with(values[-1], True)
    fresh = [value for value in dict.fromkeys(values) if value.producer() is not None]
    floating.graph.outputs[:] = fresh
    found = dict(feeds)
    return found | engine.evaluate(floating, feeds) if fresh else found


def _hold(site: quantizer_sites.BitsSite, numbers: np.ndarray) -> bool:
    """Let a quantizer start with the sign and the integer bits that the numbers [rows, ...] need."""
    shared = tuple(axis for axis, length in enumerate(graph.dims(site.i)) if length == 1)
    low, high = (reduce(numbers, axis=shared, keepdims=True) for reduce in (np.min, np.max))
    signed = int(low.min() < 0)
    f = np.rint(np.asarray(graph.constant(site.f)))
    bits = holding_bits(low, high, f, signed=bool(signed)).astype(np.float32)
    old = np.asarray(graph.constant(site.i))
    if np.array_equal(bits, old) and site.node.attributes.get_int("signed", 1) == signed:
        return False
    graph.set_initializer(site.i, bits)
    site.node.attributes["signed"] = ir.AttrInt64("signed", signed)
    explain(site.node, f"now {'signed' if signed else 'unsigned'}, {bits.min():g} to {bits.max():g} integer bits")
    return True


def _set(node: ir.Node, kind: FixedPoint) -> bool:
    if kind == _kind(node):
        return False
    graph.set_initializer(graph.operand(node, 1), np.asarray(kind.scale))
    graph.set_initializer(graph.operand(node, 3), np.asarray(kind.bits, np.float32))
    node.attributes["signed"] = ir.AttrInt64("signed", kind.k)
    explain(node, f"now ({kind})")
    return True
