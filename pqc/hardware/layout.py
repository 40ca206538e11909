"""Spell a checked graph the way hls4ml reads it: static shapes, plain names, channels last.

hls4ml stores images as (height, width, channels). Only shapes and constants change here: an image keeps its nodes,
a Conv gets its kernel as (filters, *kernel, channels), a Transpose its axes, and the weights behind a Flatten get their
rows in the new order. No Transpose is ever made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError
from pqc.hardware.intervals import Integers
from pqc.hardware.precision import constant_through_quant, held
from pqc.hardware.quantizer import FixedTypes, fixed_types, told
from pqc.hardware.ranges import Ranges, each_slope, input_shape, moved_axes, where
from pqc.layers import is_qonnx_quant, is_quant

CHANNELS_LAST = "qonnx.custom_op.channels_last"
IMAGE_OPS = ("Conv", "MaxPool", "AveragePool")
INPUT = "network_in"


@dataclass(frozen=True)
class Layout:
    """Where hls4ml's flat arrays hold the network's elements.

    Args:
        input: for each flat element that hls4ml takes, its place in the network's flat input.
        outputs: for each output and each flat element of the network, its place in hls4ml's flat output.
    """

    input: Integers
    outputs: list[Integers]


def rename(model: ir.Model) -> None:
    """Give nodes, tensors and the input names that are identifiers, unique whatever the case of letters.

    hls4ml keys its configuration by lower-case names, and takes every constant for a layer.
    """
    taken: set[str] = {INPUT}

    def plain(wanted: str | None, fallback: str) -> str:
        base = re.sub(r"\W+", "_", wanted or "", flags=re.ASCII).strip("_") or fallback
        base = base if base[0].isalpha() else f"{fallback}_{base}"
        name, number = base, 1
        while name.lower() in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name.lower())
        return name

    for node in model.graph:
        node.name = plain(node.name, node.op_type)
    for name, value in list(model.graph.initializers.items()):
        del model.graph.initializers[name]
        value.name = plain(name, "constant")
        model.graph.initializers[value.name] = value
    for node in model.graph:
        for output in node.outputs:
            output.name = plain(f"{node.name}_out", "out")
    model.graph.inputs[0].name = INPUT


def unshare(model: ir.Model) -> None:
    """Give every node constants of its own, and Quant nodes scalar parameters: hls4ml consumes constants."""
    names = graph.Names(model.graph)
    for node in list(model.graph):
        for index, value in enumerate(node.inputs):
            producer = None if value is None else value.producer()
            if value is not None and producer is not None and len(value.uses()) > 1 and constant_through_quant(value):
                clone = ir.node(
                    "Quant", list(producer.inputs), dict(producer.attributes), domain=producer.domain, name=node.name
                )
                model.graph.insert_before(node, clone)
                node.replace_input_with(index, clone.outputs[0])
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            array = graph.constant(value)
            if value is None or array is None:
                continue
            array = array.reshape(()) if is_quant(node) and index > 0 and array.size == 1 else array
            if len(value.uses()) > 1 or array.shape != value.shape:
                own = graph.add_initializer(model.graph, names.new(value.name or "constant"), array)
                node.replace_input_with(index, own)
    graph.remove_unused(model.graph)


def to_channels_last(model: ir.Model, ranges: Ranges) -> Layout:
    """Turn images into channels-last ones and fix every shape at batch size 1.

    Raises:
        UnsupportedError: two tensors of different orders meet.
    """
    orders: Orders = {}
    source = model.graph.inputs[0]
    shape = input_shape(source)
    orders[source], source.shape = _order(shape), ir.Shape((1, *_moved(shape)))
    for node in model.graph:
        value = node.outputs[0]
        value.dtype = ir.DataType.FLOAT
        if not constant_through_quant(value):
            orders[value] = LAYOUTS.get(node.op_type, _same)(node, orders, ranges)
            if is_quant(node):
                _spell(model.graph, node, orders[value], ranges[value].shape)
            value.shape = ir.Shape((1, *_moved(ranges[value].shape)))
    graph.remove_unused(model.graph)
    for node in model.graph:
        if constant_through_quant(node.outputs[0]) and node.inputs[0] is not None:
            node.outputs[0].shape = node.inputs[0].shape
    if any(node.domain == CHANNELS_LAST for node in model.graph):
        model.graph.opset_imports[CHANNELS_LAST] = model.graph.opset_imports.get("", graph.OPSET)
    return Layout(orders[source], [np.argsort(orders[value]) for value in model.graph.outputs])


Orders = dict[ir.Value, Integers]
MASK, TABLE, SLOPES = "FixedQuant", "Lookup", "Slopes"
"""The operators that pqc teaches hls4ml: its own layers with a type for every element, a table, a slope for each."""


def _spell(main: ir.Graph, node: ir.Node, order: Integers, shape: tuple[int, ...]) -> None:
    """Write a quantizer as hls4ml reads it: with attributes for each element, or as the Quant next to it."""
    kinds = fixed_types(node)
    attributes: dict[str, object]
    if kinds.one is None:
        attributes = _mask(kinds, order, shape)
        node.resize_inputs(1)
        node.domain, node.op_type = "", MASK
    elif is_qonnx_quant(node) and told(kinds.one) == kinds.one:
        return
    else:
        told_type = told(kinds.one)
        parts = (2.0**-told_type.fraction, 0.0, told_type.width)
        attributes = {
            "signed": int(told_type.signed),
            "narrow": int(told_type.overflow == "SAT_SYM"),
            "rounding_mode": "FLOOR" if told_type.rounding == "TRN" else "ROUND",
        }
        node.resize_inputs(4)
        node.domain, node.op_type = graph.QONNX, "Quant"
        for index, part in enumerate(parts, 1):
            name = f"{node.name}_told_{('scale', 'zeropt', 'bitwidth')[index - 1]}"
            node.replace_input_with(index, graph.add_initializer(main, name, np.asarray(part, np.float32)))
    node.attributes.clear()
    for key, given in attributes.items():
        node.attributes[key] = ir.convenience.convert_attribute(key, given)


def _mask(kinds: FixedTypes, order: Integers, shape: tuple[int, ...]) -> dict[str, object]:
    """Sign, width and integer bits of every element in hls4ml's order."""
    flat = [np.broadcast_to(array, shape).reshape(-1)[order] for array in (kinds.width, kinds.integer)]
    signs = np.full(flat[0].shape, int(kinds.signed))
    bits = dict(zip("kbi", (array.tolist() for array in (signs, *flat)), strict=True))
    return {**bits, "rounding": kinds.rounding, "overflow": kinds.overflow}


def _moved(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if len(shape) > 1 else shape


def _order(shape: tuple[int, ...]) -> Integers:
    """For each flat channels-last element, its flat place in the channels-first tensor."""
    places = np.arange(int(np.prod(shape))).reshape(shape)
    return np.ravel(np.moveaxis(places, 0, -1)) if len(shape) > 1 else places


def _image(node: ir.Node, orders: Orders, ranges: Ranges) -> Integers:
    node.domain = CHANNELS_LAST
    if node.op_type == "Conv":
        _change_constant(node.inputs[1], lambda weights: np.moveaxis(weights, 1, -1))
    return _order(ranges[node.outputs[0]].shape)


def _matmul(node: ir.Node, orders: Orders, ranges: Ranges) -> Integers:
    order = orders[graph.operand(node, 0)]
    _change_constant(node.inputs[1], lambda weights: weights[order])
    return np.arange(ranges[node.outputs[0]].shape[0])


def _lookup(node: ir.Node, orders: Orders, ranges: Ranges) -> Integers:
    """Write a table as hls4ml reads it: an attribute, with an entry for every pattern of bits in that order."""
    x = graph.operand(node, 0)
    kind = held(x, ranges)
    numbers = np.arange(1 << kind.width)
    numbers -= (numbers > kind.high) * (kind.signed << kind.width)
    step, low = (float(str(graph.attribute(node, name))) for name in ("step", "low"))
    places = np.ldexp(numbers.astype(np.float64), -kind.fraction) / step - low
    entries = graph.stored(graph.operand(node, 1))
    inside = (places >= 0) & (places < entries.size) & (places == np.rint(places))
    table = np.where(inside, entries[np.where(inside, places, 0).astype(int)], 0)
    node.resize_inputs(1)
    node.domain = ""
    node.attributes.clear()
    node.attributes["entries"] = ir.AttrFloat32s("entries", table.tolist())
    return orders[x]


def _slopes(node: ir.Node, orders: Orders, ranges: Ranges) -> Integers:
    """Write a PRelu as hls4ml reads it: an attribute with a slope for every element."""
    order, slopes = orders[graph.operand(node, 0)], each_slope(node, ranges)
    values = np.ldexp(slopes.low.reshape(-1)[order].astype(np.float64), -slopes.fraction)
    node.resize_inputs(1)
    node.op_type = SLOPES
    node.attributes["slopes"] = ir.AttrFloat32s("slopes", values.tolist())
    return order


def _same(node: ir.Node, orders: Orders, ranges: Ranges) -> Integers:
    """Elementwise nodes and Flatten: the order of the input; a constant beside it follows."""
    found = [orders[value] for value in node.inputs if value in orders]
    if any(not np.array_equal(order, found[0]) for order in found):
        raise UnsupportedError("it joins a flattened image and another vector", at=where(node), hint="flatten it later")
    for value in node.inputs:
        if not is_quant(node) and value not in orders:
            _change_constant(value, lambda array: array.reshape(-1)[found[0]] if array.size > 1 else array)
    return found[0]


def _change_constant(value: ir.Value | None, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the array of a constant, which may stand before a Quant."""
    producer = None if value is None else value.producer()
    source = producer.inputs[0] if producer is not None and is_quant(producer) else value
    array = graph.constant(source)
    if source is not None and array is not None:
        graph.set_initializer(source, change(array))


def _transpose(node: ir.Node, orders: Orders, ranges: Ranges) -> Integers:
    """Spell the order of axes for images with channels last."""
    axes = moved_axes(node)
    last = [*range(1, len(axes)), 0]  # where hls4ml's axes are in the network
    node.attributes["perm"] = ir.AttrInt64s("perm", [0, *(1 + last.index(axes[axis]) for axis in last)])
    return _order(ranges[node.outputs[0]].shape)


LAYOUTS: dict[str, Callable[[ir.Node, Orders, Ranges], Integers]] = {
    **dict.fromkeys(IMAGE_OPS, _image),
    "MatMul": _matmul,
    TABLE: _lookup,
    "Transpose": _transpose,
    "PRelu": _slopes,
}
