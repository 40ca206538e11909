"""Shapes and types of what a graph computes."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from pqc import graph


def infer_shapes(model: ir.Model) -> None:
    """Fill in shapes and types, through the bodies of pqc's functions too."""
    _infer(model)
    while _keep_shapes(model.graph):
        _infer(model)


def _keep_shapes(main: ir.Graph) -> bool:
    """Whether there was an operator to say of what ONNX does not: that its result has the shape of what enters."""
    found = False
    for node in main:
        if node.op_type != "GroupNormalization" or node.domain or node.inputs[0] is None:
            continue
        x, y = node.inputs[0], node.outputs[0]
        if x.shape is not None and x.dtype is not None and None in (y.shape, y.dtype):
            y.shape, y.dtype, found = x.shape, x.dtype, True
    return found


def _infer(model: ir.Model) -> None:
    proto = onnx.shape_inference.infer_shapes(graph.to_proto(model), data_prop=True)
    known = {info.name: info for info in (*proto.graph.value_info, *proto.graph.output)}
    for node in model.graph:
        for output in node.outputs:
            info = known.get(output.name or "")
            if info is not None and info.type.tensor_type.elem_type:
                output.dtype = ir.DataType(info.type.tensor_type.elem_type)
                if info.type.tensor_type.HasField("shape"):
                    output.shape = ir.serde.deserialize_type_proto_for_shape(info.type)
