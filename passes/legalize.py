from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, lowering, masking, trainable
from pqc.errors import UnsupportedError
from pqc.rewrites import broadcasts, moves, reductions
from pqc.rewrites.einsum import einsum
from pqc.rewriting import Meaning, Pass, close, explain
from pqc.shapes import infer_shapes

Rewrite = Callable[[ir.Graph, ir.Node], int]
"""Writes a node in another form; how many places that changed."""


@dataclass(frozen=True)
class Legalize(Pass):
    """Rewrite what the engine would differentiate wrongly; refuse the rest.

    Sum, Mean → Add, Mul · Split with an unread output → Slice · auto_pad → pads · a broadcast operand of Where
    or Pow → Expand · Resize → Gather or MatMul · normalizations of a sample → their steps · LSTM, GRU, RNN → their
    steps in time. Where a trained weight reaches: reductions that drop their axes → with keepdims, Squeeze · other
    reductions, norms, global pools, LRN → their parts · Einsum → Transpose, MatMul, ReduceSum · DepthToSpace,
    SpaceToDepth → Reshape, Transpose · a Pad that repeats elements, a Slice backwards → Gather · a Scatter that adds →
    Scatter, Add · CastLike → Cast · Clip with computed bounds → Max, Min.
    Leaves what else there is alone.
    Raises UnsupportedError, naming the node, for an operator without a checked gradient.
    """

    title: ClassVar[str] = "legalize"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        changed = _rewrite(model, lowering.REWRITES, _trained(main))
        trained = [parameter.value for parameter in masking.parameters(main)]
        changed += _rewrite(model, _WHERE_TRAINED, trainable.readers(main, trained))
        changed += _rewrite(model, _REWRITES, set(main))
        trainable.check(main, trained, main.outputs)
        return changed


def _rewrite(model: ir.Model, rewrites: Mapping[str, Rewrite], nodes: set[ir.Node]) -> int:
    """Write those of the nodes in another form that have one."""
    changed = 0
    for node in list(model.graph):
        rewrite = rewrites.get(node.op_type) if node in nodes and not node.domain else None
        changed += rewrite(model.graph, node) if rewrite is not None else 0
    if changed:
        graph.remove_unused(model.graph)
        infer_shapes(model)
    return changed


def _trained(main: ir.Graph) -> set[ir.Node]:
    """The nodes that a trained tensor reaches, those included whose own tensors become trained."""
    reached = {parameter.value for parameter in masking.parameters(main)}
    found = set()
    for node in main:
        if node.op_type in lowering.TRAINED or any(value in reached for value in node.inputs):
            reached.update(node.outputs)
            found.add(node)
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


def _named(operator: str, inputs: list[ir.Value | None], origin: ir.Node, names: graph.Names) -> ir.Node:
    name = names.new(f"{origin.name}.{operator.lower()}")
    return ir.node(operator, inputs, name=name, outputs=[ir.val(names.new(f"{name}.out"))])


def _replace(main: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    graph.replace(node.outputs[0], value)
    main.remove(node, safe=True)


_REWRITES: dict[str, Rewrite] = {
    "Sum": _chain,
    "Mean": _chain,
    "Split": slices,
    "Conv": _pads,
    "MaxPool": _pads,
    "AveragePool": _pads,
    "Where": broadcasts.expand,
    "Pow": broadcasts.power,
}
"""What is written in another form wherever it stands."""
_WHERE_TRAINED: dict[str, Rewrite] = {
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceLogSumExp"), reductions.keep_axes),
    **dict.fromkeys(("ReduceSum", "ReduceMean"), reductions.drop_idle),
    "ReduceL1": reductions.l1,
    "ReduceSumSquare": reductions.sum_square,
    "ReduceLogSum": reductions.log_sum,
    "GlobalMaxPool": reductions.global_max,
    "GlobalLpPool": reductions.global_lp,
    "LpNormalization": reductions.lp_normalization,
    "MeanVarianceNormalization": reductions.mean_variance,
    "LRN": reductions.lrn,
    "Einsum": einsum,
    "DepthToSpace": moves.depth_to_space,
    "SpaceToDepth": moves.space_to_depth,
    "Pad": moves.pad,
    "Slice": moves.backward_slice,
    "CastLike": moves.cast_like,
    "ScatterElements": moves.scatter_add,
    "ScatterND": moves.scatter_add,
    "Clip": moves.clip,
}
"""What is written in another form where a gradient has to pass."""
