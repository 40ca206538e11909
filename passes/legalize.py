from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.errors import UnsupportedError
from pqc.rewriting import Pass, close, explain
from pqc.shapes import infer_shapes

# Operators whose gradients by the engine (or by pqc) agree with finite differences.
TRAINABLE = frozenset(
    [
        "Abs",
        "Add",
        "AveragePool",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "Cos",
        "Div",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "Identity",
        "LeakyRelu",
        "Log",
        "LogSoftmax",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "Neg",
        "Pad",
        "Pow",
        "Reciprocal",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
        "Softplus",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
BROADCASTS = {"Where": (1, 2), "Pow": (0,)}


@dataclass(frozen=True)
class Legalize(Pass):
    """Rewrite what the engine would differentiate wrongly; refuse the rest.

    Sum, Mean → Add, Mul · Split with an unread output → Slice · auto_pad → pads · a broadcast operand of Where
    or Pow → Expand.
    Leaves operators that no trained weight reaches alone.
    Raises UnsupportedError, naming the node, for an operator without a checked gradient.
    """

    title: ClassVar[str] = "legalize"
    meaning: ClassVar = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        changed = 0
        for node in list(main):
            rewrite = _REWRITES.get(node.op_type) if not node.domain else None
            changed += rewrite(main, node) if rewrite is not None else 0
        if changed:
            graph.remove_unused(main)
            infer_shapes(model)
        check(main)
        return changed


def check(main: ir.Graph) -> None:
    """Refuse operators between the weights and the outputs that have no checked gradient.

    Raises:
        UnsupportedError: names the node and its neighbours.
    """
    reached = {parameter.value for parameter in layers.parameters(main)}
    for node in main:
        if not any(value in reached for value in node.inputs):
            continue
        reached.update(node.outputs)
        if node.domain and not (layers.is_quant(node) or node.domain.startswith("pqc.")):
            raise _refused(node)
        if not node.domain and (node.op_type not in TRAINABLE or not _variant_trains(node)):
            raise _refused(node)


def _variant_trains(node: ir.Node) -> bool:
    if node.op_type == "Pad":
        return node.attributes.get_string("mode", "constant") == "constant"
    if node.op_type in ("Conv", "MaxPool", "AveragePool"):
        return node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return True


def _refused(node: ir.Node) -> UnsupportedError:
    readers = ", ".join(f"'{reader.name}'" for reader in node.outputs[0].consumers()) or "the output"
    return UnsupportedError(
        f"{node.op_type} has no gradient that pqc has checked (it feeds {readers})",
        at=f"node '{node.name}'",
        hint="replace the operator in the source model, or fold it: fold-batchnorm takes batch normalization",
    )


def _chain(main: ir.Graph, node: ir.Node) -> int:
    """Sum and Mean of any number of inputs, as additions of two."""
    names = graph.Names(main)
    total = node.inputs[0]
    fresh: list[ir.Node] = []
    for value in node.inputs[1:]:
        fresh.append(_named("Add", [total, value], node, names))
        total = fresh[-1].outputs[0]
    if node.op_type == "Mean":
        share = graph.add_initializer(
            main, names.new(f"{node.name}.share"), np.array(1 / len(node.inputs), np.float32)
        )
        fresh.append(_named("Mul", [total, share], node, names))
        total = fresh[-1].outputs[0]
    main.insert_before(node, fresh)
    _replace(main, node, total)
    return 1


def _slices(main: ir.Graph, node: ir.Node) -> int:
    """Split whose gradient would miss an output that nobody reads."""
    read = [output for output in node.outputs if output.uses() or output.is_graph_output()]
    if len(read) == len(node.outputs):
        return 0
    axis = node.attributes.get_int("axis", 0)
    if any(output.shape is None or not isinstance(output.shape[axis], int) for output in node.outputs):
        raise UnsupportedError("Split with an unread output and unknown sizes", at=f"node '{node.name}'")
    names = graph.Names(main)
    ends = np.cumsum([output.shape[axis] for output in node.outputs])
    for output, end in zip(node.outputs, ends, strict=True):
        if output not in read:
            continue
        numbers = {"starts": end - output.shape[axis], "ends": end, "axes": axis}
        bounds = [
            graph.add_initializer(main, names.new(f"{output.name}.{part}"), np.array([number], np.int64))
            for part, number in numbers.items()
        ]
        fresh = _named("Slice", [node.inputs[0], *bounds], node, names)
        main.insert_before(node, fresh)
        output.replace_all_uses_with(fresh.outputs[0], True)
    explain(node, "an output is unread: written as slices")
    return 1


def _pads(main: ir.Graph, node: ir.Node) -> int:
    """auto_pad, which the engine's gradient of Conv does not read, as explicit pads."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return 0
    shape = node.inputs[0].shape
    kernel = node.attributes.get_ints("kernel_shape", None) or list(node.inputs[1].shape.dims[2:])
    ones = [1] * len(kernel)
    strides = node.attributes.get_ints("strides", ones)
    dilations = node.attributes.get_ints("dilations", ones)
    if shape is None or not all(isinstance(dim, int) for dim in shape.dims[2:]):
        raise UnsupportedError(
            "auto_pad needs a fixed image size", at=f"node '{node.name}'", hint="export explicit pads"
        )
    begin, end = [], []
    for size, width, stride, dilation in zip(shape.dims[2:], kernel, strides, dilations, strict=True):
        missing = (
            max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0) if mode != "VALID" else 0
        )
        first = missing // 2 if mode == "SAME_UPPER" else missing - missing // 2
        begin.append(first)
        end.append(missing - first)
    node.attributes.pop("auto_pad")
    node.attributes["pads"] = ir.AttrInt64s("pads", begin + end)
    return 1


def _expand(main: ir.Graph, node: ir.Node) -> int:
    """Operands that the engine broadcasts forward and forgets to reduce backward."""
    output = node.outputs[0].shape
    full = next((value for value in node.inputs if value.shape is not None and value.shape == output), None)
    changed = 0
    names = graph.Names(main)
    for index in BROADCASTS[node.op_type]:
        value = node.inputs[index]
        if value.shape == output and output is not None:
            continue
        if full is None:
            raise UnsupportedError(f"{node.op_type} broadcasts all its inputs", at=f"node '{node.name}'")
        shape = _named("Shape", [full], node, names)
        wide = _named("Expand", [value, shape.outputs[0]], node, names)
        main.insert_before(node, (shape, wide))
        node.replace_input_with(index, wide.outputs[0])
        changed += 1
    return int(changed > 0)


def _named(operator: str, inputs: list[ir.Value | None], origin: ir.Node, names: graph.Names) -> ir.Node:
    name = names.new(f"{origin.name}.{operator.lower()}")
    return ir.node(operator, inputs, name=name, outputs=[ir.val(names.new(f"{name}.out"))])


def _replace(main: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(value, True)
    main.remove(node, safe=True)


_REWRITES = {
    "Sum": _chain,
    "Mean": _chain,
    "Split": _slices,
    "Conv": _pads,
    "MaxPool": _pads,
    "AveragePool": _pads,
    "Where": _expand,
    "Pow": _expand,
}
