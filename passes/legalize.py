from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, lowering, masking, trainable
from pqc.errors import UnsupportedError
from pqc.rewriting import Meaning, Pass, close, explain
from pqc.shapes import infer_shapes


@dataclass(frozen=True)
class Legalize(Pass):
    """Rewrite what the engine would differentiate wrongly; refuse the rest.

    Sum, Mean → Add, Mul · Split with an unread output → Slice · auto_pad → pads · a broadcast operand of Where
    or Pow → Expand · ReduceMax that drops its axes → ReduceMax, Squeeze · Resize → Gather or MatMul · normalizations
    of a sample → their steps · LSTM, GRU, RNN → their steps in time.
    Leaves operators that no trained weight reaches alone.
    Raises UnsupportedError, naming the node, for an operator without a checked gradient.
    """

    title: ClassVar[str] = "legalize"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        changed = 0
        for rewrites, nodes in ((lowering.REWRITES, _trained(main)), (_REWRITES, main)):
            found = 0
            for node in list(nodes):
                rewrite = rewrites.get(node.op_type) if not node.domain else None
                found += rewrite(main, node) if rewrite is not None else 0
            if found:
                graph.remove_unused(main)
                infer_shapes(model)
            changed += found
        trainable.check(main, [parameter.value for parameter in masking.parameters(main)], main.outputs)
        return changed


def _trained(main: ir.Graph) -> list[ir.Node]:
    """The nodes that a trained tensor reaches, those included whose own tensors become trained."""
    reached = {parameter.value for parameter in masking.parameters(main)}
    found = []
    for node in main:
        if node.op_type in lowering.TRAINED or any(value in reached for value in node.inputs):
            reached.update(node.outputs)
            found.append(node)
    return found


def _chain(main: ir.Graph, node: ir.Node) -> int:
    """Sum and Mean of any number of inputs, as additions of two."""
    names = graph.Names(main)
    total = graph.operand(node, 0)
    fresh: list[ir.Node] = []
    for value in node.inputs[1:]:
        fresh.append(_named("Add", [total, value], node, names))
        total = fresh[-1].outputs[0]
    if node.op_type == "Mean":
        share = graph.add_initializer(main, names.new(f"{node.name}.share"), np.array(1 / len(node.inputs), np.float32))
        fresh.append(_named("Mul", [total, share], node, names))
        total = fresh[-1].outputs[0]
    main.insert_before(node, fresh)
    _replace(main, node, total)
    return 1


def slices(main: ir.Graph, node: ir.Node) -> int:
    """Split whose gradient would miss an output that nobody reads."""
    read = [output for output in node.outputs if output.uses() or output.is_graph_output()]
    if len(read) == len(node.outputs):
        return 0
    axis = node.attributes.get_int("axis", 0)
    names = graph.Names(main)
    lengths = _lengths(node, axis)
    for output, length, end in zip(node.outputs, lengths, np.cumsum(lengths), strict=True):
        if output not in read:
            continue
        numbers = {"starts": end - length, "ends": end, "axes": axis}
        bounds = [
            graph.add_initializer(main, names.new(f"{output.name}.{part}"), np.array([number], np.int64))
            for part, number in numbers.items()
        ]
        fresh = _named("Slice", [node.inputs[0], *bounds], node, names)
        main.insert_before(node, fresh)
        graph.replace(output, fresh.outputs[0])
    explain(node, "an output is unread: written as slices")
    return 1


def _lengths(node: ir.Node, axis: int) -> list[int]:
    """How long each output is along `axis`."""
    given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is not None:
        return [int(length) for length in given]
    dims = [None if output.shape is None else output.shape[axis] for output in node.outputs]
    lengths = [dim for dim in dims if isinstance(dim, int)]
    if len(lengths) < len(dims):
        raise UnsupportedError("Split with an unread output and unknown sizes", at=f"node '{node.name}'")
    return lengths


def _pads(main: ir.Graph, node: ir.Node) -> int:
    """auto_pad, which the engine's gradient of Conv does not read, as explicit pads."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return 0
    shape = graph.operand(node, 0).shape
    kernel = node.attributes.get_ints("kernel_shape", None) or graph.dims(graph.operand(node, 1))[2:]
    ones = [1] * len(kernel)
    strides = node.attributes.get_ints("strides", ones)
    dilations = node.attributes.get_ints("dilations", ones)
    image = [] if shape is None else [dim for dim in shape.dims[2:] if isinstance(dim, int)]
    if len(image) != len(kernel):
        raise UnsupportedError(
            "auto_pad needs a fixed image size", at=f"node '{node.name}'", hint="export explicit pads"
        )
    begin, end = [], []
    for size, width, stride, dilation in zip(image, kernel, strides, dilations, strict=True):
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
    operands = [graph.operand(node, index) for index in range(len(node.inputs))]
    full = next((value for value in operands if value.shape is not None and value.shape == output), None)
    changed = 0
    names = graph.Names(main)
    for index in trainable.BROADCASTS[node.op_type]:
        value = operands[index]
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


def _keep_axes(main: ir.Graph, node: ir.Node) -> int:
    """ReduceMax, whose gradient needs the axes that it reduces."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if node.attributes.get_int("keepdims", 1) or axes is None:
        return 0
    names = graph.Names(main)
    kept = _named("ReduceMax", [node.inputs[0], axes], node, names)
    squeezed = _named("Squeeze", [kept.outputs[0], axes], node, names)
    main.insert_before(node, (kept, squeezed))
    _replace(main, node, squeezed.outputs[0])
    return 1


def _named(operator: str, inputs: list[ir.Value | None], origin: ir.Node, names: graph.Names) -> ir.Node:
    name = names.new(f"{origin.name}.{operator.lower()}")
    return ir.node(operator, inputs, name=name, outputs=[ir.val(names.new(f"{name}.out"))])


def _replace(main: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    graph.replace(node.outputs[0], value)
    main.remove(node, safe=True)


_REWRITES = {
    "Sum": _chain,
    "Mean": _chain,
    "Split": slices,
    "Conv": _pads,
    "MaxPool": _pads,
    "AveragePool": _pads,
    "Where": _expand,
    "Pow": _expand,
    "ReduceMax": _keep_axes,
}
