from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from pqc import graph
from pqc.rewriting import Meaning, Pass, close, explain
from pqc.shapes import infer_shapes

RULES = (
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.materialize_reshape_shape_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.collapse_slice_rule,
    rules.successive_relu_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
)
INVERSE = {"Unsqueeze": "Squeeze", "Squeeze": "Unsqueeze"}
# Which inputs are initial states.
RECURRENT = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}


@dataclass(frozen=True)
class Simplify(Pass):
    """Undo what exporters write around a layer.

    Transpose after Transpose, Reshape after Reshape, Unsqueeze after Squeeze, BatchNormalization between the two, Pad
    before Conv, Add of a bias behind it, casts to the same type, × 1, + 0, initial states of zeros → the shortest form.
    Leaves a value that somebody else reads as well, and all else alone.
    """

    title: ClassVar[str] = "simplify"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        changed = 0
        # A rule may make room for another; each makes the graph shorter.
        while count := sum(rule(model) for rule in (_norms, _inverses, _states, _biases, _rows, _library_rules)):
            changed += count
        if changed:
            graph.remove_unused(model.graph)
            infer_shapes(model)
        return changed


def _library_rules(model: ir.Model) -> int:
    # On a copy: the rewriter also annotates graphs in which it changes nothing.
    rewritten = graph.copy(model)
    count: int = RewriteRuleSet(RULES).apply_to_model(rewritten)
    if count:
        IdentityEliminationPass()(rewritten)
        graph.remove_unused(rewritten.graph)
        _name(rewritten.graph)
        model.graph = rewritten.graph
    return count


def _name(main: ir.Graph) -> None:
    """Name what the rules made after its output."""
    names = graph.Names(main)
    for node in main:
        node.name = node.name or names.new(f"{node.op_type}_{node.outputs[0].name}")


def _norms(model: ir.Model) -> int:
    """Batch normalization of vectors that were given a length for it: [N, C] → [N, C, 1] → [N, C]."""
    main, changed = model.graph, 0
    for node in list(main):
        if node.domain or node.op_type != "BatchNormalization":
            continue
        widened, narrowed = graph.operand(node, 0).producer(), _only_reader(node)
        if widened is None or narrowed is None or not _undoes(widened, narrowed) or widened.op_type != "Unsqueeze":
            continue
        source = graph.operand(widened, 0)
        if source.shape is None or len(source.shape) != 2 or _axes(widened) != [2]:
            continue
        node.replace_input_with(0, source)
        node.outputs[0].shape = source.shape
        graph.replace(narrowed.outputs[0], node.outputs[0])
        explain(node, "normalizes the vectors themselves")
        changed += 1
    graph.remove_unused(main)
    return changed


def _inverses(model: ir.Model) -> int:
    """Unsqueeze and Squeeze of the same axes, one behind the other."""
    main, changed = model.graph, 0
    for node in list(main):
        reader = _only_reader(node)
        if reader is None or not _undoes(node, reader):
            continue
        source = graph.operand(node, 0)
        if source.producer() is None and reader.outputs[0].is_graph_output():
            continue
        graph.replace(reader.outputs[0], source)
        changed += 1
    graph.remove_unused(main)
    return changed


def _states(model: ir.Model) -> int:
    """Initial states of zeros, which are the default, and would fix the number of rows."""
    changed = 0
    for node in model.graph:
        for index in RECURRENT.get(node.op_type, ()) if not node.domain else ():
            state = graph.constant(node.inputs[index]) if len(node.inputs) > index else None
            if state is not None and not state.any():
                node.replace_input_with(index, None)
                changed += 1
    return changed


def _biases(model: ir.Model) -> int:
    """A constant added to each channel behind a convolution without a bias, as its bias."""
    main, changed = model.graph, 0
    names = graph.Names(main)
    for node in list(main):
        reader = _only_reader(node)
        plain = not node.domain and node.op_type == "Conv" and (len(node.inputs) < 3 or node.inputs[2] is None)
        if not plain or reader is None or reader.domain or reader.op_type != "Add":
            continue
        added = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
        array, kernel = graph.constant(added), graph.constant(node.inputs[1])
        if array is None or kernel is None or array.shape not in _channel_shapes(len(kernel), kernel.ndim):
            continue
        bias = graph.add_initializer(main, names.new(f"{node.name}.bias"), array.reshape(-1))
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
        graph.replace(reader.outputs[0], node.outputs[0])
        changed += 1
    graph.remove_unused(main)
    return changed


def _rows(model: ir.Model) -> int:
    """The bias [1, N] of a dense layer as [N]."""
    changed = 0
    for node in model.graph:
        reader = _only_reader(node)
        if node.domain or node.op_type not in ("MatMul", "Gemm") or reader is None or reader.op_type != "Add":
            continue
        for value in reader.inputs:
            array, rank = graph.constant(value), len(node.outputs[0].shape or ())
            if value is None or array is None or len(value.uses()) > 1:
                continue
            if 1 < array.ndim <= rank and array.size == array.shape[-1]:
                graph.set_initializer(value, array.reshape(-1))
                changed += 1
    return changed


def _channel_shapes(channels: int, rank: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of one number a channel: [C, 1, …], with a 1 for the rows or without."""
    inner = (channels, *[1] * (rank - 2))
    return (inner, (1, *inner))


def _undoes(first: ir.Node, second: ir.Node) -> bool:
    pair = not first.domain and not second.domain and INVERSE.get(first.op_type) == second.op_type
    return pair and _axes(first) is not None and _axes(first) == _axes(second)


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of Squeeze or Unsqueeze, counted from the front of the longer shape, in order."""
    array = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    wide = node.outputs[0] if node.op_type == "Unsqueeze" else graph.operand(node, 0)
    if array is None or wide.shape is None:
        return None
    return sorted(int(axis) % len(wide.shape) for axis in array.ravel())


def _only_reader(node: ir.Node) -> ir.Node | None:
    output = node.outputs[0]
    readers = list(output.consumers())
    return readers[0] if len(readers) == 1 and not output.is_graph_output() else None
