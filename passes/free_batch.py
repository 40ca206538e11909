from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError
from pqc.rewriting import Pass, explain
from pqc.rows import Rows
from pqc.shapes import infer_shapes

BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "PRelu"})


@dataclass(frozen=True)
class FreeBatch(Pass):
    """Make the number of rows a symbol where a file fixed it.

    x [1, 16] → x [batch, 16]; a Reshape or an Expand to a shape with the number of rows in it → one that follows the
    rows, wherever earlier nodes moved them.
    Leaves inputs that differ in their first length, or have a symbol there, alone. Whether rows are independent in the
    network is for the caller to try: a number of rows that lies in weights is not seen.
    """

    title: ClassVar[str] = "free-batch"

    name: str = "batch"

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        inputs = [value for value in main.inputs if value.name not in main.initializers]
        shapes = [value.shape for value in inputs if value.shape is not None and len(value.shape)]
        sizes = {shape[0] for shape in shapes}
        size = next(iter(sizes), None)
        if len(sizes) != 1 or len(shapes) < len(inputs) or not isinstance(size, int):
            return 0
        infer_shapes(model)
        for value, shape in zip(inputs, shapes, strict=True):
            value.shape = ir.Shape([self.name, *shape.dims[1:]])
        rows = Rows(self.name, size, inputs[0])
        names = graph.Names(main)
        for node in list(main):
            if not node.domain and node.op_type == "Reshape":
                _reshape(main, node, rows, names)
            elif not node.domain and node.op_type == "Expand":
                _expand(main, node, rows, names)
            else:
                _infer(main, node, rows, names)
        return len(inputs)


def _reshape(main: ir.Graph, node: ir.Node, rows: Rows, names: graph.Names) -> None:
    """Let the length that takes the rows in be -1: what is left."""
    value, target, output = graph.operand(node, 0), graph.constant(node.inputs[1]), node.outputs[0]
    dims = () if value.shape is None else value.shape.dims
    place = next((axis for axis, dim in enumerate(dims) if rows.holds(dim)), None)
    known = [length for length in map(rows.length, dims) if length is not None]
    if target is None or place is None or len(known) < len(dims):
        return
    wanted = _lengths(target.tolist(), known, bool(node.attributes.get_int("allowzero", 0)))
    stride = rows.factors(dims[place])[1] * math.prod(known[place + 1 :])
    places = _places(wanted, stride, rows.size)
    if not places:
        raise _fixed(node)
    # One row may lie anywhere: rather in a length of its own, where it was, or in front where lengths are joined.
    joined = len(wanted) < len(dims)
    axis, inner = min(places, key=lambda one: (wanted[one[0]] != rows.size, one[0] != place and not joined, one[0]))
    output.shape = ir.Shape([rows.symbol(n, inner) if at == axis else n for at, n in enumerate(wanted)])
    wanted[axis] = -1
    node.attributes.pop("allowzero", None)
    if wanted != target.tolist():
        constant = graph.add_initializer(main, names.new(f"{node.name}.shape"), np.array(wanted, np.int64))
        node.replace_input_with(1, constant)
        explain(node, f"follows the rows: {wanted}")


def _places(lengths: list[int], stride: int, size: int) -> list[tuple[int, int]]:
    """The axes that can take in `size` rows, `stride` numbers apart, and how many steps lie inside each."""
    found = []
    for axis, length in enumerate(lengths):
        inner, rest = divmod(stride, math.prod(lengths[axis + 1 :]))
        if inner and not rest and length % (size * inner) == 0:
            found.append((axis, inner))
    return found


def _fixed(node: ir.Node) -> UnsupportedError:
    return UnsupportedError(
        f"{node.op_type} fixes the number of rows", at=f"node '{node.name}'", hint="export with a dynamic batch"
    )


def _lengths(target: list[int], lengths: list[int], zero_is_length: bool) -> list[int]:
    """A target shape as numbers, with 0 and -1 worked out."""
    filled = [lengths[at] if not length and not zero_is_length else length for at, length in enumerate(target)]
    rest = math.prod(length for length in filled if length != -1)
    return [math.prod(lengths) // max(rest, 1) if length == -1 else length for length in filled]


def _expand(main: ir.Graph, node: ir.Node, rows: Rows, names: graph.Names) -> None:
    """A constant shape [N, …] as the rows of an input, then the rest."""
    wanted = graph.constant(node.inputs[1])
    if wanted is None or not wanted.size or wanted[0] != rows.size:
        return
    tail = graph.add_initializer(main, names.new(f"{node.name}.tail"), wanted[1:])
    count = _node("Shape", [rows.source], {"start": 0, "end": 1}, names.new(f"{node.name}.rows"), names)
    shape = _node("Concat", [count.outputs[0], tail], {"axis": 0}, names.new(f"{node.name}.shape"), names)
    main.insert_before(node, (count, shape))
    node.replace_input_with(1, shape.outputs[0])
    node.outputs[0].shape = ir.Shape([rows.name, *(int(length) for length in wanted[1:])])
    explain(node, "takes its rows from the input")


def _node(operator: str, inputs: list[ir.Value], attributes: dict[str, int], name: str, names: graph.Names) -> ir.Node:
    output = ir.val(names.new(f"{name}.out"), ir.DataType.INT64)
    return ir.node(operator, inputs, attributes=attributes, name=name, outputs=[output])


def _infer(main: ir.Graph, node: ir.Node, rows: Rows, names: graph.Names) -> None:
    """The shapes of what a node computes; one without a definition keeps its input's rows."""
    if not any(_has_rows(value, rows) for value in node.inputs):
        return
    if not node.domain and node.op_type in BROADCAST:
        _share(main, node, rows, names)
    version = main.opset_imports.get(node.domain, 1)
    if not onnx.defs.has(node.op_type, version, node.domain):
        for output in node.outputs:
            _follow(node, output, rows)
        return
    types = {value.name: _type(value) for value in node.inputs if value is not None}
    constants = {
        value.name: ir.serde.serialize_tensor(value.const_value)
        for value in node.inputs
        if value is not None and value.const_value is not None and value.const_value.size <= 64
    }
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            types,
            constants,
            opset_imports=[onnx.helper.make_opsetid("", version)],
        )
    except onnx.shape_inference.InferenceError as error:
        raise _fixed(node) from error
    for output in node.outputs:
        info = found.get(output.name)
        if info is None:
            _follow(node, output, rows)
        else:
            output.shape = ir.serde.deserialize_type_proto_for_shape(info)


def _share(main: ir.Graph, node: ir.Node, rows: Rows, names: graph.Names) -> None:
    """A constant that repeats one row N times, as that row."""
    for index, value in enumerate(node.inputs):
        array = graph.constant(value)
        if array is None or not array.ndim or len(array) != rows.size or rows.size == 1:
            continue
        if array.ndim != len(graph.row_shape(node.outputs[0])):
            continue
        if (array != array[:1]).any():
            raise _fixed(node)
        node.replace_input_with(index, graph.add_initializer(main, names.new(f"{node.name}.row"), array[:1]))


def _has_rows(value: ir.Value | None, rows: Rows) -> bool:
    return value is not None and (value.shape is None or any(rows.holds(dim) for dim in value.shape.dims))


def _follow(node: ir.Node, output: ir.Value, rows: Rows) -> None:
    """The shape of what has no rule of its own: its input's, or its old one with the rows in front."""
    source, old = graph.operand(node, 0).shape, output.shape
    if source is None or old is None:
        return
    if [rows.length(dim) for dim in source.dims] == list(old.dims):
        output.shape = source
    elif len(old) and old[0] == rows.size:
        output.shape = ir.Shape([rows.name, *old.dims[1:]])


def _type(value: ir.Value) -> onnx.TypeProto:
    info: onnx.TypeProto = ir.serde.serialize_value(value).type
    return info
