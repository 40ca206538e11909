"""Operators that only move elements, as moves with a right gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.writer import Writer


def depth_to_space(main: ir.Graph, node: ir.Node) -> int:
    """Reshape, Transpose, Reshape."""
    write = Writer(main, node)
    block = node.attributes.get_int("blocksize")
    channels, height, width = (write.length(axis) for axis in (1, 2, 3))
    depth = channels // (block * block)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        split, order = (0, block, block, depth, height, width), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (0, depth, block, block, height, width), (0, 1, 4, 2, 5, 3)
    return write.finish(_rearranged(write, split, order, (0, depth, height * block, width * block)))


def space_to_depth(main: ir.Graph, node: ir.Node) -> int:
    """Reshape, Transpose, Reshape."""
    write = Writer(main, node)
    block = node.attributes.get_int("blocksize")
    channels, height, width = (write.length(axis) for axis in (1, 2, 3))
    split = (0, channels, height // block, block, width // block, block)
    merged = (0, channels * block * block, height // block, width // block)
    return write.finish(_rearranged(write, split, (0, 3, 5, 1, 2, 4), merged))


def _rearranged(write: Writer, split: Sequence[int], order: Sequence[int], merged: Sequence[int]) -> ir.Value:
    """Lengths of 0 stay as they are."""
    parts = write.add("Reshape", [write.origin.inputs[0], write.integers(split, "split")])
    return write.add("Reshape", [write.add("Transpose", [parts], perm=order), write.integers(merged, "merged")])


def pad(main: ir.Graph, node: ir.Node) -> int:
    """Modes that repeat elements, as a Gather along each padded axis; constants, without a choice of axes."""
    mode = node.attributes.get_string("mode", "constant")
    chosen = node.inputs[3] if len(node.inputs) > 3 else None
    if mode == "constant" and chosen is None:
        return 0
    write = Writer(main, node)
    pads, axes = graph.constant(node.inputs[1]), graph.constant(chosen)
    if pads is None or (chosen is not None and axes is None):
        raise write.refused("needs constant pads")
    rank = write.rank()
    widths = dict.fromkeys(range(rank), (0, 0))
    for axis, (before, after) in zip(widths if axes is None else axes, pads.reshape(2, -1).T.tolist(), strict=True):
        widths[int(axis) % rank] = (before, after)
    if mode == "constant":
        every = write.integers(np.array(list(widths.values())).T.ravel(), "pads")
        return write.finish(write.add("Pad", [node.inputs[0], every, *node.inputs[2:3]]))
    value = graph.operand(node, 0)
    for axis, (before, after) in widths.items():
        if before or after:
            taken = _padded(np.arange(write.length(axis)), before, after, mode)
            value = write.add("Gather", [value, write.integers(taken, "places")], axis=axis)
    return write.finish(value)


def _padded(places: np.ndarray, before: int, after: int, mode: str) -> np.ndarray:
    """Negative pads cut first, as the engine does."""
    kept = places[max(-before, 0) : places.size - max(-after, 0)]
    widths = (max(before, 0), max(after, 0))
    return np.pad(kept, widths, mode=mode)  # type: ignore[call-overload, no-any-return]


def backward_slice(main: ir.Graph, node: ir.Node) -> int:
    """Slice with negative steps, as a Gather along each axis."""
    steps = graph.constant(node.inputs[4]) if len(node.inputs) > 4 else None
    if steps is None or (steps > 0).all():
        return 0
    write = Writer(main, node)
    starts, ends = graph.constant(node.inputs[1]), graph.constant(node.inputs[2])
    axes = np.arange(steps.size) if node.inputs[3] is None else graph.constant(node.inputs[3])
    if starts is None or ends is None or axes is None:
        raise write.refused("with negative steps needs constant bounds")
    value = graph.operand(node, 0)
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        length = write.length(axis)
        places = np.arange(length)[start : _end(end, step, length) : step]
        value = write.add("Gather", [value, write.integers(places, "places")], axis=axis)
    return write.finish(value)


def _end(end: int, step: int, length: int) -> int | None:
    """The end as Python reads it: what lies before the first element is no end at all where steps are negative."""
    return None if step < 0 and end < -length else end


def cast_like(main: ir.Graph, node: ir.Node) -> int:
    """Cast to the type of the second operand."""
    write = Writer(main, node)
    kind = graph.operand(node, 1).dtype
    if kind is None:
        raise write.refused("needs a known type")
    return write.finish(write.add("Cast", [node.inputs[0]], to=int(kind)))


def scatter_add(main: ir.Graph, node: ir.Node) -> int:
    """Scatter with reduction=add: the data, and what is added to zeros."""
    if node.attributes.get_string("reduction", "none") != "add":
        return 0
    write = Writer(main, node)
    data = graph.operand(node, 0)
    zeros = write.add("ConstantOfShape", [write.add("Shape", [data])])
    axis: dict[str, Any] = {"axis": node.attributes.get_int("axis", 0)} if node.op_type == "ScatterElements" else {}
    added = write.add(node.op_type, [zeros, *node.inputs[1:]], reduction="add", **axis)
    return write.finish(write.add("Add", [data, added]))


def clip(main: ir.Graph, node: ir.Node) -> int:
    """Computed bounds, to which Clip passes no gradient, as Max and Min."""
    bounds = [*node.inputs[1:3], None, None][:2]
    if all(bound is None or graph.constant(bound) is not None for bound in bounds):
        return 0
    write = Writer(main, node)
    value = graph.operand(node, 0)
    for operator, bound in zip(("Max", "Min"), bounds, strict=True):
        if bound is not None:
            value = write.add(operator, [value, bound])
    return write.finish(value)
