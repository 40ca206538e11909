"""A second network in a student's graph: whether it fits, and how it gets there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from pqc import graph, library
from pqc.errors import UnsupportedError
from pqc.functions.operator import Operator
from pqc.names import TARGET
from pqc.shapes import infer_shapes

PREFIX = "teacher."


@dataclass(frozen=True)
class Pair:
    """What the student computes, what the teacher makes of the same inputs, and how they are compared.

    Args:
        what: for messages.
        weight: of the comparison in the loss.
        student: a value of the student's graph.
        teacher: a value of the teacher's.
        operator: takes both, in this order.
        attributes: of the operator.
    """

    what: str
    weight: float
    student: ir.Value
    teacher: ir.Value
    operator: Operator
    attributes: Mapping[str, object] = field(default_factory=dict)


def load(path: str, student: ir.Model) -> ir.Model:
    """Read a teacher, with the functions of its own inlined.

    Raises:
        GraphError: it cannot be read.
        UnsupportedError: its opset is not the student's.
    """
    teacher = graph.load(path)
    library.unlink(teacher)
    common.InlinePass()(teacher)
    infer_shapes(teacher)
    theirs, own = (model.graph.opset_imports.get("", graph.OPSET) for model in (teacher, student))
    if theirs != own:
        hint = "run normalize on the teacher first"
        raise UnsupportedError(f"the teacher has opset {theirs} and the student {own}", at=Path(path).name, hint=hint)
    return teacher


def check(student: ir.Graph, teacher: ir.Graph, pairs: Sequence[Pair], place: str) -> None:
    """Refuse a teacher that reads other inputs than the student, or computes something of another shape.

    Raises:
        UnsupportedError: at `place`; names the input, the output or the layer.
    """
    own = _data(student)
    for name, value in _data(teacher).items():
        if name not in own:
            raise UnsupportedError(
                f"the teacher's input '{name}' is none of the student's: {', '.join(own)}",
                at=place,
                hint="export the teacher with the names of the student's inputs",
            )
        if not _fits(value, own[name]) or (_fixed_batch(value) and not _fixed_batch(own[name])):
            raise _mismatch(f"input '{name}'", value, own[name], place)
    for pair in pairs:
        if not _fits(pair.teacher, pair.student):
            raise _mismatch(pair.what, pair.teacher, pair.student, place)


def graft(student: ir.Graph, teacher: ir.Graph, pairs: Sequence[Pair]) -> list[Pair]:
    """Move the nodes and weights that the pairs need to the end of the student's graph, on the student's inputs.

    Args:
        student: gets nodes and initializers named teacher.…; their shapes are left open.
        teacher: empty afterwards.
        pairs: what is compared.

    Returns:
        the pairs, with the teacher's values as the student's graph has them.
    """
    teacher.outputs[:] = [pair.teacher for pair in pairs]
    graph.remove_unused(teacher)
    names, own = graph.Names(student), _data(student)
    moved = {value: own[name] for name, value in _data(teacher).items()}
    for name, value in list(teacher.initializers.items()):
        moved[value] = graph.add_initializer(student, names.new(PREFIX + name), graph.stored(value))
    for old, new in moved.items():
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    teacher.outputs.clear()
    nodes = list(teacher)
    teacher.remove(nodes)
    for node in nodes:
        node.name = names.new(f"{PREFIX}{node.name}")
        for output in node.outputs:
            if output.name:
                output.name, output.shape = names.new(PREFIX + output.name), None
    student.extend(nodes)
    return [replace(pair, teacher=moved.get(pair.teacher, pair.teacher)) for pair in pairs]


def _data(main: ir.Graph) -> dict[str, ir.Value]:
    """The inputs that data fill, by name."""
    return {str(one.name): one for one in main.inputs if one.const_value is None and one.name != TARGET}


def _fixed_batch(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) > 0 and isinstance(value.shape[0], int)


def _fits(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values have one type and, as far as is known, one shape."""
    if one.dtype != other.dtype or one.shape is None or other.shape is None:
        return one.dtype == other.dtype
    sizes = zip(one.shape, other.shape, strict=False)
    known = [(a, b) for a, b in sizes if isinstance(a, int) and isinstance(b, int)]
    return len(one.shape) == len(other.shape) and all(a == b for a, b in known)


def _mismatch(what: str, teacher: ir.Value, student: ir.Value, place: str) -> UnsupportedError:
    theirs, own = (f"{value.dtype}{value.shape}" for value in (teacher, student))
    return UnsupportedError(
        f"the {what} of the teacher is {theirs}, and the student's is {own}",
        at=place,
        hint="a teacher computes from the same inputs what the student computes",
    )
