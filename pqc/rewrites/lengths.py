"""Arithmetic of lengths that exporters write around shapes, in a form that shape inference follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph

KEEPS = frozenset({"Cast", "Gather", "Squeeze", "Unsqueeze", "Slice"})
"""What takes numbers from its first input as they are."""


@dataclass(frozen=True)
class Marked:
    """A vector of lengths in which Where replaces marks.

    Args:
        parts: what it is put together from: lengths, and constants, which alone can be marks.
        marks, others: what is replaced and by what, one number for each place.
    """

    parts: list[ir.Value]
    marks: np.ndarray
    others: np.ndarray


def replace_marks(main: ir.Graph) -> int:
    """Where(Equal(lengths, marks), others, lengths) → Concat, if all marks are negative, as no length is.

    `lengths` is a Concat of lengths of tensors and of constants; in these, marks become what `others` has in their
    place. PyTorch's `expand` marks what stays with -1. Returns how many places it changed.
    """
    names, changed = graph.Names(main), 0
    for node in list(main):
        found = _marked(node)
        if found is None:
            continue
        inputs = list(_unmarked(main, node, found, names))
        output = ir.val(names.new(f"{node.name}.lengths"), node.outputs[0].dtype, node.outputs[0].shape)
        fresh = ir.node("Concat", inputs, {"axis": 0}, name=names.new(f"{node.name}.concat"), outputs=[output])
        main.insert_before(node, fresh)
        graph.replace(node.outputs[0], output)
        changed += 1
    return changed


def _marked(node: ir.Node) -> Marked | None:
    """What a Where replaces, or None if it may meet a mark elsewhere than in a constant."""
    if not _is(node, "Where"):
        return None
    equal, joined = graph.operand(node, 0).producer(), _concat(node.inputs[2])
    if equal is None or joined is None or not _is(equal, "Equal") or equal.inputs[0] is not node.inputs[2]:
        return None
    marks, others = graph.constant(equal.inputs[1]), graph.constant(node.inputs[1])
    parts = [value for value in joined.inputs if value is not None and value.shape is not None]
    if marks is None or others is None or np.any(marks >= 0) or len(parts) < len(joined.inputs):
        return None
    sizes = [value.shape.dims for value in parts if value.shape is not None]
    places = [size[0] for size in sizes if len(size) == 1 and isinstance(size[0], int)]
    known = all(graph.constant(value) is not None or _is_length(value) for value in parts)
    if not known or len(places) < len(parts):
        return None
    return Marked(parts, np.broadcast_to(marks, sum(places)), np.broadcast_to(others, sum(places)))


def _unmarked(main: ir.Graph, node: ir.Node, found: Marked, names: graph.Names) -> Iterator[ir.Value]:
    """The parts, constants without their marks."""
    start = 0
    for value in found.parts:
        array, here = graph.constant(value), slice(start, start + graph.dims(value)[0])
        start = here.stop
        if array is None:
            yield value
        else:
            unmarked = np.where(array == found.marks[here], found.others[here], array)
            yield graph.add_initializer(main, names.new(f"{node.name}.length"), unmarked)


def _concat(value: ir.Value | None) -> ir.Node | None:
    """The Concat that makes a vector, also where a Reshape follows that leaves it one."""
    node = value.producer() if value is not None else None
    if node is not None and _is(node, "Reshape") and len(graph.operand(node, 0).shape or ()) == 1:
        node = graph.operand(node, 0).producer()
    return node if _is(node, "Concat") else None


def _is_length(value: ir.Value) -> bool:
    """Whether all numbers are lengths of tensors."""
    node = value.producer()
    if node is None or node.domain:
        return False
    return node.op_type == "Shape" or (node.op_type in KEEPS and _is_length(graph.operand(node, 0)))


def _is(node: ir.Node | None, operator: str) -> bool:
    return node is not None and not node.domain and node.op_type == operator
