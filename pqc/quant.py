"""pqc's operators for qonnx: its executor imports the module named like a node's domain, and asks for `custom_op`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx
from qonnx.core.datatype import DataType
from qonnx.custom_op.base import CustomOp

from pqc import engine, library
from pqc.functions.fixed_quant import FIXED_QUANT
from pqc.functions.operator import Key
from pqc.functions.table import LOOKUP

Attributes = dict[str, tuple[str, bool, object]]


class _Elementwise(CustomOp):  # type: ignore[misc]
    """A function of pqc's whose result has the shape of its first input, by its body."""

    key: ClassVar[Key]
    attributes: ClassVar[Attributes]

    def get_nodeattr_types(self) -> Attributes:
        return self.attributes

    def make_shape_compatible_op(self, model: Any) -> onnx.NodeProto:
        return onnx.helper.make_node("Identity", [self.onnx_node.input[0]], [self.onnx_node.output[0]])

    def infer_node_datatype(self, model: Any) -> None:
        model.set_tensor_datatype(self.onnx_node.output[0], DataType["FLOAT32"])

    def execute_node(self, context: dict[str, np.ndarray], graph: onnx.GraphProto) -> None:
        inputs = [np.asarray(context[name], np.float32) for name in self.onnx_node.input]
        attributes = {name: self.get_nodeattr(name) for name in self.attributes}
        body = library.bodies()[self.key]
        context[self.onnx_node.output[0]] = np.asarray(engine.call(body, inputs, attributes)[0])

    def verify_node(self) -> list[str]:
        return []


class FixedQuant(_Elementwise):
    """`pqc.quant::FixedQuant`; x, i and f are float32 and broadcast."""

    key = FIXED_QUANT.key
    attributes: ClassVar[Attributes] = {
        "signed": ("i", False, 1),
        "rounding": ("s", False, "RND_CONV"),
        "overflow": ("s", False, "SAT"),
    }


class Lookup(_Elementwise):
    """`pqc.quant::Lookup`; x lies on the table's grid."""

    key = LOOKUP.key
    attributes: ClassVar[Attributes] = {"step": ("f", False, 1.0), "low": ("f", False, 0.0)}


custom_op = {"FixedQuant": FixedQuant, "Lookup": Lookup}
