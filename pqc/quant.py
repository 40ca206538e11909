"""pqc's quantizer for qonnx: its executor imports the module named like a node's domain, and asks for `custom_op`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from qonnx.core.datatype import DataType
from qonnx.custom_op.base import CustomOp

from pqc import engine, library
from pqc.functions.fixed_quant import FIXED_QUANT


class FixedQuant(CustomOp):  # type: ignore[misc]
    """`pqc.quant::FixedQuant` by its function's body; x, i and f are float32 and broadcast."""

    def get_nodeattr_types(self) -> dict[str, tuple[str, bool, object]]:
        return {
            "signed": ("i", False, 1),
            "rounding": ("s", False, "RND_CONV"),
            "overflow": ("s", False, "SAT"),
        }

    def make_shape_compatible_op(self, model: Any) -> onnx.NodeProto:
        return onnx.helper.make_node("Identity", [self.onnx_node.input[0]], [self.onnx_node.output[0]])

    def infer_node_datatype(self, model: Any) -> None:
        model.set_tensor_datatype(self.onnx_node.output[0], DataType["FLOAT32"])

    def execute_node(self, context: dict[str, np.ndarray], graph: onnx.GraphProto) -> None:
        inputs = [np.asarray(context[name], np.float32) for name in self.onnx_node.input]
        attributes = {name: self.get_nodeattr(name) for name in self.get_nodeattr_types()}
        body = library.bodies()[FIXED_QUANT.key]
        context[self.onnx_node.output[0]] = np.asarray(engine.call(body, inputs, attributes)[0])

    def verify_node(self) -> list[str]:
        return []


custom_op = {"FixedQuant": FixedQuant}
