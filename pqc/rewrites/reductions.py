"""Reductions that keep their axes, and what is made of them: norms, poolings over whole images."""

from __future__ import annotations

import onnx_ir as ir

from pqc import graph
from pqc.writer import Writer


def keep_axes(main: ir.Graph, node: ir.Node) -> int:
    """Reduce with keepdims=1, which pqc's gradients need, and squeeze."""
    if _is_idle(node):
        return drop_idle(main, node)
    if node.attributes.get_int("keepdims", 1):
        return 0
    write = Writer(main, node)
    kept = write.add(node.op_type, node.inputs)
    return write.finish(write.add("Squeeze", [kept, *_axes(node)]))


def drop_idle(main: ir.Graph, node: ir.Node) -> int:
    """Drop what reduces over no axis (noop_with_empty_axes), which the engine gets wrong."""
    return Writer(main, node).finish(graph.operand(node, 0)) if _is_idle(node) else 0


def _is_idle(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("noop_with_empty_axes", 0)) and not _axes(node)


def l1(main: ir.Graph, node: ir.Node) -> int:
    """The sum of absolute values."""
    if _is_idle(node):
        return drop_idle(main, node)
    write = Writer(main, node)
    return write.finish(_sum(write, write.add("Abs", [node.inputs[0]])))


def sum_square(main: ir.Graph, node: ir.Node) -> int:
    """The sum of squares."""
    if _is_idle(node):
        return drop_idle(main, node)
    write = Writer(main, node)
    return write.finish(_sum(write, write.add("Mul", [node.inputs[0], node.inputs[0]])))


def log_sum(main: ir.Graph, node: ir.Node) -> int:
    """The logarithm of the sum."""
    if _is_idle(node):
        return drop_idle(main, node)
    write = Writer(main, node)
    return write.finish(write.add("Log", [_sum(write, graph.operand(node, 0))]))


def _axes(node: ir.Node) -> list[ir.Value]:
    """The input that names axes, unless it is left out or empty, which both mean every axis."""
    given = [value for value in node.inputs[1:] if value is not None]
    stored = graph.constant(given[0]) if given else None
    return [] if stored is not None and stored.size == 0 else given


def _sum(write: Writer, value: ir.Value) -> ir.Value:
    """The sum of `value` over the axes of the operator that goes."""
    node = write.origin
    return write.add("ReduceSum", [value, *_axes(node)], keepdims=node.attributes.get_int("keepdims", 1))


def global_max(main: ir.Graph, node: ir.Node) -> int:
    """GlobalMaxPool as ReduceMax over the image."""
    write = Writer(main, node)
    return write.finish(write.add("ReduceMax", [node.inputs[0], _image(write)], keepdims=1))


def global_lp(main: ir.Graph, node: ir.Node) -> int:
    """GlobalLpPool as a norm over the image."""
    write = Writer(main, node)
    return write.finish(_norm(write, _image(write)))


def lp_normalization(main: ir.Graph, node: ir.Node) -> int:
    """x / |x|, and zero where the norm is zero."""
    write = Writer(main, node)
    norm = _norm(write, write.integers([node.attributes.get_int("axis", -1)], "axes"))
    zero = write.add("Equal", [norm, write.number(0.0, "zero")])
    divisor = write.add("Add", [norm, write.add("Cast", [zero], to=int(ir.DataType.FLOAT))])
    return write.finish(write.add("Div", [node.inputs[0], divisor]))


def _image(write: Writer) -> ir.Value:
    return write.integers(range(2, write.rank()), "axes")


def _norm(write: Writer, axes: ir.Value) -> ir.Value:
    order = write.origin.attributes.get_int("p", 2)
    if order not in (1, 2):
        raise write.refused(f"of order {order} has no gradient at zero: only orders 1 and 2 are taken")
    x = graph.operand(write.origin, 0)
    if order == 1:
        return write.add("ReduceSum", [write.add("Abs", [x]), axes], keepdims=1)
    return write.add("ReduceL2", [x, axes], keepdims=1)


def mean_variance(main: ir.Graph, node: ir.Node) -> int:
    """(x - mean) / (deviation + 1e-9)."""
    write = Writer(main, node)
    x = graph.operand(node, 0)
    axes = write.integers(node.attributes.get_ints("axes", [0, 2, 3]), "axes")
    centered = write.add("Sub", [x, write.add("ReduceMean", [x, axes], keepdims=1)])
    variance = write.add("ReduceMean", [write.add("Mul", [centered, centered]), axes], keepdims=1)
    deviation = write.add("Add", [write.add("Sqrt", [variance]), write.number(1e-9, "epsilon")])
    return write.finish(write.add("Div", [centered, deviation]))


def lrn(main: ir.Graph, node: ir.Node) -> int:
    """x / (bias + alpha / size · the sum of squares over `size` channels) ^ beta."""
    write = Writer(main, node)
    size, channels, x = node.attributes.get_int("size"), write.length(1), graph.operand(node, 0)
    before = (size - 1) // 2
    rest = [0] * (write.rank() - 2)
    pads = write.integers([0, before, *rest, 0, size - 1 - before, *rest], "pads")
    padded = write.add("Pad", [write.add("Mul", [x, x]), pads])
    axis = write.integers([1], "axis")
    parts = [
        write.add("Slice", [padded, write.integers([first], "start"), write.integers([first + channels], "end"), axis])
        for first in range(size)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = write.add("Add", [total, part])
    share = write.number(node.attributes.get_float("alpha", 1e-4) / size, "share")
    base = write.add(
        "Add", [write.add("Mul", [total, share]), write.number(node.attributes.get_float("bias", 1.0), "bias")]
    )
    power = write.add("Pow", [base, write.number(node.attributes.get_float("beta", 0.75), "beta")])
    return write.finish(write.add("Div", [x, power]))
