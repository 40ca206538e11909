from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import calibration, data, engine, graph, layer_quantizers, layers, quantizer_sites, scales
from pqc.calibration import Calibration, Kind
from pqc.errors import PassError
from pqc.fixed_point import holding_bits
from pqc.rewriting import CHANGES, Meaning, Pass, explain
from pqc.samples import sample

MAX_WIDTH = 32
MAX_FRACTION = 64


@dataclass(frozen=True)
class CalibrateQuant(Pass):
    """Choose sign and integer bits of quantizers from the numbers they meet.

    Quant with (k, i, f) → Quant with the same number of magnitude bits, k = 1 where negative numbers occur, and i by
    `method`, for each channel or element that has bits of its own: `mse` (the least squared error), `min-max`,
    `percentile` (of magnitudes, `percent`) or `entropy`. FixedQuant likewise; what wraps holds all it meets.
    Learned bits: f stays, and i holds all numbers; of a parameter it only grows, so that there is room to train.
    Learned scales start from 2 mean|x| / sqrt(highest level); one signed bit gets the power of two next to mean|x|.
    `data` is an .npz of arrays by input name; without it inputs are random. `only` names the quantizers that are meant.
    `keep` is JSON: names of tensors by pattern of layers, {"fc*": ["weight", "input"]}, whose types stay.
    Leaves quantizers that are not fixed point (other scales, zero points, BipolarQuant), groups, the sign bit of
    parameters, and lanes that are all zero.
    """

    title: ClassVar[str] = "calibrate-quant"
    meaning: ClassVar[Meaning] = CHANGES

    data: str = ""
    samples: int = 4096
    method: str = "mse"
    percent: float = 99.99
    only: tuple[str, ...] = ()
    keep: str = ""

    def __post_init__(self) -> None:
        if self.method not in calibration.METHODS:
            raise ValueError(f"no method '{self.method}'; there are {', '.join(calibration.METHODS)}")
        if not 0 < self.percent <= 100:
            raise ValueError(f"a percentile is above 0 and at most 100, not {self.percent:g}")
        if self.samples < 1:
            raise ValueError(f"at least one sample is needed, not {self.samples}")

    def rewrite(self, model: ir.Model) -> int:
        learned = {site.node: site for site in quantizer_sites.sites(model.graph) if site.learns}
        scaled = {site.node: site for site in scales.sites(model.graph)}
        known = {*learned, *scaled}
        quants = [node for node in model.graph if layers.is_quant(node) and (node in known or _is_calibrated(node))]
        kept = layer_quantizers.asked_for(model.graph, self._kept())
        quants = [node for node in quants if (not self.only or node.name in self.only) and node not in kept]
        numbers = _activations(model, quants, self._feeds(model))
        changed = 0
        for node in quants:
            constant = graph.constant(node.inputs[0])
            array = numbers[str(graph.operand(node, 0).name)] if constant is None else constant
            if node in learned:
                changed += _hold(learned[node], array)
            elif node in scaled:
                changed += scales.begin(model.graph, scaled[node], array)
            elif scales.sign_only(node):
                changed += scales.fit_signs(model.graph, node, array)
            else:
                changed += _set(model.graph, node, array, Calibration(self.method, self.percent))
        return changed

    def _kept(self) -> dict[str, list[str]]:
        try:
            return {
                str(pattern): [str(name) for name in names] for pattern, names in json.loads(self.keep or "{}").items()
            }
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PassError(f"keep: {error}", hint='write JSON: {"pattern": ["weight"]}') from error

    def remembered(self) -> Pass:
        return replace(self, data=Path(self.data).name)

    def _feeds(self, model: ir.Model) -> dict[str, np.ndarray]:
        feeds = sample(model, self.samples)
        if self.data:
            arrays = data.samples(Path(self.data), [value for value in model.graph.inputs if value.name in feeds])
            feeds = {name: data.as_float(array[: len(feeds[name])]) for name, array in arrays.items()}
        return feeds


def _is_calibrated(node: ir.Node) -> bool:
    return scales.sign_only(node) or _kind(node) is not None


def _kind(node: ir.Node) -> Kind | None:
    """What stays of a quantizer of fixed point types, or None if it is of another kind."""
    grid = layers.grid(node) if quantizer_sites.GROUPED not in node.metadata_props else None
    if grid is None or np.any(grid.zero_point) or np.any(np.frexp(grid.scale)[0] != 0.5):
        return None
    shape = np.broadcast_shapes(grid.scale.shape, grid.bits.shape)
    magnitude = np.broadcast_to(grid.bits - grid.signed, shape).reshape(-1)
    if np.any(magnitude != np.rint(magnitude)) or magnitude.max() + grid.signed > MAX_WIDTH:
        return None
    if not layers.is_fixed_quant(node) and (magnitude.min() < 1 or (grid.narrow and not grid.signed)):
        return None
    overflow = "SAT_SYM" if grid.narrow else grid.overflow
    return Kind(magnitude, grid.signed, grid.rounding, overflow)


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
    old, was_signed = np.asarray(graph.constant(site.i)), site.node.attributes.get_int("signed", 1)
    # A parameter may change its sign while it is trained; what it starts from does not tell.
    signed = int(low.min() < 0 or (site.of_parameter and was_signed))
    bits = holding_bits(low, high, np.rint(np.asarray(graph.constant(site.f))), signed=bool(signed)).astype(np.float32)
    bits = np.maximum(bits, old) if site.of_parameter else bits
    if np.array_equal(bits, old) and was_signed == signed:
        return False
    graph.set_initializer(site.i, bits)
    site.node.attributes["signed"] = ir.AttrInt64("signed", signed)
    explain(site.node, f"now {_words(signed, bits)}")
    return True


def _set(main: ir.Graph, node: ir.Node, array: np.ndarray, how: Calibration) -> bool:
    """Give a quantizer the bits that the numbers [rows, ...] ask for, each lane those of its own."""
    kind, grid = _kind(node), layers.grid(node)
    assert kind is not None and grid is not None
    parameter = layers.source(node.inputs[0]) is not None
    signed = bool(array.min(initial=0) < 0 or (parameter and kind.signed))
    if not array.any() or kind.magnitude.max() + signed > MAX_WIDTH:
        return False
    shape = np.broadcast_shapes(grid.scale.shape, grid.bits.shape)
    kind = replace(kind, signed=signed)
    found = calibration.integer_bits(calibration.by_lane(array, shape), kind, how).reshape(shape)
    magnitude = kind.magnitude.reshape(shape)
    old = magnitude - np.broadcast_to(1 - np.frexp(grid.scale)[1], shape)
    bits = np.where(np.isnan(found) | (magnitude < 1), old, np.maximum(found, magnitude - MAX_FRACTION))
    if np.array_equal(bits, old) and signed == grid.signed:
        return False
    f = magnitude - bits
    if layers.is_qonnx_quant(node):
        parts = {1: np.ldexp(1.0, -f.astype(int)), 3: magnitude + signed}
    else:
        parts = {1: bits, 2: f}
    for place, part in parts.items():
        scales.replace_constant(main, node, place, np.asarray(part, np.float32))
    node.attributes["signed"] = ir.AttrInt64("signed", int(signed))
    explain(node, f"now {_words(signed, bits)}")
    return True


def _words(signed: int, bits: np.ndarray) -> str:
    return f"{'signed' if signed else 'unsigned'}, {bits.min():g} to {bits.max():g} integer bits"
