from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.rewriting import Meaning, Pass, close, explain


@dataclass(frozen=True)
class LowerConv(Pass):
    """Rewrite dilated and grouped Conv as plain ones with zeros.

    dilations d → a kernel with d - 1 zeros between its elements · groups → a kernel over all channels that is zero
    outside its group · missing attributes → written out. Zeros cost no hardware. float32 may sum in another order.
    Leaves a depthwise Conv alone (one channel a group, as many outputs), and weights that are computed, shared or
    have scales of their own per element.
    """

    title: ClassVar[str] = "lower-conv"
    meaning: ClassVar[Meaning] = close(1e-5)

    def rewrite(self, model: ir.Model) -> int:
        return sum(_lower(node) for node in model.graph if node.op_type == "Conv" and not node.domain)


def _lower(node: ir.Node) -> int:
    weight = layers.source(node.inputs[1])
    array = graph.constant(weight)
    if weight is None or array is None:
        explain(node, "left alone: its weight is computed")
        return 0
    changed = _spell(node, array)
    wanted = _with_dilation(node, array)
    wanted = _with_groups(node, wanted)
    if wanted is array:
        return int(changed)
    if not _own(node, weight):
        explain(node, "left alone: its weight is shared, or has scales per element")
        return int(changed)
    _store(node, weight, wanted)
    return 1


def _spell(node: ir.Node, weight: np.ndarray) -> bool:
    """Write out the attributes that ONNX lets a Conv leave away."""
    rank = weight.ndim - 2
    before = len(node.attributes)
    if node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        node.attributes.pop("auto_pad", None)
        node.attributes.setdefault("pads", ir.AttrInt64s("pads", [0] * 2 * rank))
    defaults = {"kernel_shape": list(weight.shape[2:]), "strides": [1] * rank, "dilations": [1] * rank}
    for name, default in defaults.items():
        node.attributes.setdefault(name, ir.AttrInt64s(name, default))
    node.attributes.setdefault("group", ir.AttrInt64("group", 1))
    return len(node.attributes) != before


def _with_dilation(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    steps = node.attributes["dilations"].as_ints()
    if all(step == 1 for step in steps):
        return weight
    sizes = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], steps, strict=True)]
    wide = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    spread = tuple(slice(None, None, step) for step in (1, 1, *steps))
    wide[spread] = weight
    return wide


def _with_groups(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    groups = node.attributes["group"].as_int()
    filters, channels = weight.shape[:2]
    if groups == 1 or (channels == 1 and filters == groups):
        return weight
    wide = np.zeros((filters, channels * groups, *weight.shape[2:]), weight.dtype)
    for group, rows in enumerate(np.split(np.arange(filters), groups)):
        wide[rows, group * channels : (group + 1) * channels] = weight[rows]
    return wide


def _own(node: ir.Node, weight: ir.Value) -> bool:
    """Whether the weight can change its shape: only this Conv takes it, behind nothing or a Quant of scalars."""
    quant = node.inputs[1].producer() if node.inputs[1] is not None else None
    values = [weight] if quant is None else [weight, quant.outputs[0]]
    parts = [] if quant is None else [graph.constant(part) for part in quant.inputs[1:]]
    direct = quant is None or (layers.is_quant(quant) and quant.inputs[0] is weight)
    return (
        direct
        and all(len(value.uses()) == 1 for value in values)
        and all(part is not None and part.size == 1 for part in parts)
    )


def _store(node: ir.Node, weight: ir.Value, array: np.ndarray) -> None:
    graph.set_initializer(weight, array)
    quantized = node.inputs[1]
    if quantized is not None and quantized is not weight:
        quantized.shape = ir.Shape(array.shape)
    rank = array.ndim - 2
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(array.shape[2:]))
    node.attributes["dilations"] = ir.AttrInt64s("dilations", [1] * rank)
    if not (array.shape[1] == 1 and array.shape[0] == node.attributes["group"].as_int()):
        node.attributes["group"] = ir.AttrInt64("group", 1)
