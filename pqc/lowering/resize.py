"""Resize as what it is, a linear map along each axis: a Gather, or a product with a constant matrix."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import engine, graph
from pqc.errors import UnsupportedError
from pqc.writer import Writer


def lower(main: ir.Graph, node: ir.Node) -> int:
    """Write a Resize of fixed sizes as one Gather (nearest) or MatMul (linear, cubic) for each axis that it changes.

    The matrix of an axis is what the operator itself makes of unit vectors, so every mode, coordinate transformation
    and coefficient has its meaning. It is the first factor: a second one would be the weight of a layer.

    Raises:
        UnsupportedError: a resized length is not a number, or it crops and fills in (tf_crop_and_resize).
    """
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise UnsupportedError("Resize that crops (tf_crop_and_resize)", at=f"node '{node.name}'", hint="slice first")
    before, after = graph.operand(node, 0).shape, node.outputs[0].shape
    if before is None or after is None or before.rank() != after.rank():
        raise _unknown(node)
    axes = [axis for axis in range(len(before)) if _resizes(node, axis)]
    if any(not isinstance(shape[axis], int) for axis in axes for shape in (before, after)):
        raise _unknown(node)
    write, result = Writer(main, node), graph.operand(node, 0)
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    for axis in axes:
        matrix = _matrix(node, axis, axes)
        if nearest:
            places = write.integers([int(place) for place in matrix.argmax(axis=1)], "places")
            result = write.add("Gather", [result, places], "picked", axis=axis)
        else:
            result = _product(write, write.constant(matrix, "matrix"), result, axis, len(before))
    write.replace(result)
    return 1


def _unknown(node: ir.Node) -> UnsupportedError:
    return UnsupportedError(
        "Resize of a length that is not a number", at=f"node '{node.name}'", hint="export the model with fixed sizes"
    )


def _scales(node: ir.Node) -> np.ndarray | None:
    """The scales of all axes, or None where the node has sizes."""
    given = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if given is None or not given.size:
        return None
    scales = np.ones(graph.operand(node, 0).shape.rank(), np.float32)  # type: ignore[union-attr]
    scales[list(node.attributes.get_ints("axes", range(len(scales))))] = given
    return scales


def _resizes(node: ir.Node, axis: int) -> bool:
    scales = _scales(node)
    if scales is not None:
        return bool(scales[axis] != 1)
    before, after = graph.operand(node, 0).shape, node.outputs[0].shape
    named = [one % len(before or ()) for one in node.attributes.get_ints("axes", range(len(before or ())))]
    return before is not None and after is not None and axis in named and before[axis] != after[axis]


def _matrix(node: ir.Node, axis: int, axes: list[int]) -> np.ndarray:
    """What the node makes of the unit vectors along `axis`, [outputs, inputs], the same along the other axes."""
    before, after = graph.operand(node, 0).shape, node.outputs[0].shape
    assert before is not None and after is not None
    kept, made = (
        [dim if one in axes and isinstance(dim, int) else 1 for one, dim in enumerate(shape)]
        for shape in (before, after)
    )
    x, y = ir.val("x", ir.DataType.FLOAT, kept), ir.val("y", ir.DataType.FLOAT, made)
    scales = _scales(node)
    given = ir.tensor(np.array(made, np.int64) if scales is None else scales, name="given")
    sizes = ir.Value(name="given", const_value=given, shape=ir.Shape([len(kept)]), type=ir.TensorType(given.dtype))
    inputs = [x, None, None, sizes] if scales is None else [x, None, sizes]
    attributes = [one for name, one in node.attributes.items() if name not in ("axes", "keep_aspect_ratio_policy")]
    trial = ir.Node("", "Resize", inputs, attributes, outputs=[y])
    model = ir.Model(
        ir.Graph([x], [y], nodes=[trial], initializers=[sizes], opset_imports={"": graph.OPSET}, name="resize"),
        ir_version=graph.IR_VERSION,
    )
    session = engine.Session(model)
    place = tuple(slice(None) if one == axis else 0 for one in range(len(kept)))
    columns = []
    for unit in np.eye(kept[axis], dtype=np.float32):
        image = np.broadcast_to(unit.reshape([-1 if one == axis else 1 for one in range(len(kept))]), kept)
        columns.append(session.run({"x": np.ascontiguousarray(image)})["y"][place])
    return np.stack(columns, axis=1)


def _product(write: Writer, matrix: ir.Value, x: ir.Value, axis: int, rank: int) -> ir.Value:
    """matrix · x along `axis`."""
    order = list(range(rank))
    order[axis], order[-2] = order[-2], order[axis]
    turned = x if axis == rank - 2 else write.add("Transpose", [x], "turned", perm=order)
    result = write.add("MatMul", [matrix, turned], "product")
    return result if axis == rank - 2 else write.add("Transpose", [result], "back", perm=order)
