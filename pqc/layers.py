"""Where the weights are: the layers of a graph, seen through quantizers and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
import onnx_ir as ir

from pqc.errors import PassError
from pqc.functions.batch_norm import BATCH_STATISTICS, FOLDS
from pqc.functions.fixed_quant import FIXED_QUANT
from pqc.functions.operator import NORM
from pqc.graph import QONNX, constant, dims, operand

WEIGHT_INPUT = 1
OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": -1}
# What moves values without computing: a grid survives it, so a quantizer belongs before it.
MOVES = frozenset(
    {
        "Flatten",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "MaxPool",
        "ReduceMax",
        "Slice",
        "Split",
        "Concat",
    }
)
# What may end a model and is left out in hardware: its logits decide the same.
HEADS = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
MASK_DOMAIN = "pqc.mask"
LAYOUT_CHANGES = ("Transpose", "Reshape", "Expand")


@dataclass(frozen=True)
class Layer:
    """A node with trained weights.

    Args:
        name: the weight's name without a trailing `.weight`.
        node: MatMul, Gemm or Conv.
        weight: the initializer, behind quantizers and masks.
        bias: the initializer of the bias, or None.
        bias_add: the node that adds the bias: `node` itself, or the Add behind a MatMul.
    """

    name: str
    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    bias_add: ir.Node | None

    @property
    def data(self) -> ir.Value:
        """The activation that enters."""
        return operand(self.node, 0)

    @property
    def output(self) -> ir.Value:
        """The result with its bias."""
        return (self.bias_add or self.node).outputs[0]

    @property
    def bias_index(self) -> int | None:
        """Which input of `bias_add` the bias enters."""
        if self.bias_add is None:
            return None
        return 2 if self.bias_add is self.node else _bias_operand(self.bias_add)

    @property
    def output_axis(self) -> int:
        """The axis of the weight that counts outputs."""
        if self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) != 0:
            return 0
        return OUTPUT_AXIS[self.node.op_type]

    def channels(self, side: str) -> int:
        """How many channels the `input` or the `output` has."""
        shape, groups = dims(self.weight), self.node.attributes.get_int("group", 1)
        axis = self.output_axis % len(shape)
        if self.node.op_type in ("MatMul", "Gemm"):
            return shape[axis] if side == "output" else shape[2 * len(shape) - 3 - axis]
        grouped = (side == "input") != (self.node.op_type == "ConvTranspose")
        counted = shape[axis] if side == "output" else shape[1 - axis]
        return counted * groups if grouped else counted

    def excluded(self, patterns: tuple[str, ...]) -> bool:
        """Whether one of the shell patterns matches the layer's name."""
        return any(fnmatchcase(self.name, pattern) for pattern in patterns)


class Named(Protocol):
    """What patterns of names may mean: a layer, or what a pass has written out."""

    @property
    def name(self) -> str:
        """The name."""

    def excluded(self, patterns: tuple[str, ...]) -> bool:
        """Whether one of the shell patterns matches it."""


def check_patterns(found: Sequence[Named], patterns: tuple[str, ...]) -> None:
    """Refuse a pattern that meets no layer: it is a misspelling.

    Raises:
        PassError: names the pattern and the layers there are.
    """
    for pattern in patterns:
        if not any(layer.excluded((pattern,)) for layer in found):
            names = ", ".join(layer.name for layer in found)
            raise PassError(f"no layer is named like '{pattern}'", hint=f"layers: {names[:500] or 'none'}")


def is_quant(node: ir.Node | None) -> bool:
    """Whether `node` is a quantizer: QONNX's Quant or BipolarQuant, or pqc's FixedQuant."""
    return is_qonnx_quant(node) or is_fixed_quant(node) or is_bipolar_quant(node)


def is_qonnx_quant(node: ir.Node | None) -> bool:
    """Whether `node` is QONNX's Quant."""
    return node is not None and node.domain == QONNX and node.op_type == "Quant"


def is_bipolar_quant(node: ir.Node | None) -> bool:
    """Whether `node` is QONNX's quantizer to a sign times a scale."""
    return node is not None and node.domain == QONNX and node.op_type == "BipolarQuant"


def is_fixed_quant(node: ir.Node | None) -> bool:
    """Whether `node` is pqc's own quantizer, which has bits as tensors and every overflow."""
    return node is not None and (node.domain, node.op_type) == FIXED_QUANT.key


def source(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind quantizers, masks and statistics, or None if `value` is an activation."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or not (is_quant(producer) or applies_mask(producer) or is_folded(producer)):
            return None
        value = producer.inputs[0]
    return value


def is_folded(node: ir.Node | None) -> bool:
    """Whether `node` makes a parameter of one that is trained and of a batch normalization's statistics."""
    return node is not None and node.domain == NORM.domain and node.op_type != BATCH_STATISTICS.function.name


def folded(value: ir.Value) -> ir.Value:
    """What the running statistics make of a parameter, behind its mask if it has one: what quantizers round."""
    readers = [node for node in value.consumers() if node.inputs[0] is value]
    readers += [reader for node in readers if applies_mask(node) for reader in node.outputs[0].consumers()]
    return next((node.outputs[0] for node in readers if (node.domain, node.op_type) in FOLDS), value)


def applies_mask(node: ir.Node) -> bool:
    """Whether `node` multiplies a weight by its mask, learned or frozen."""
    if node.op_type != "Mul" or len(node.inputs) != 2 or node.inputs[1] is None:
        return False
    mask = node.inputs[1]
    frozen = mask.is_initializer() and (mask.name or "").endswith(".mask")
    return frozen or mask_node(mask) is not None


def mask_node(value: ir.Value) -> ir.Node | None:
    """The node of a method's mask function that `value` comes from, also through a change of layout."""
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in LAYOUT_CHANGES:
        before = node.inputs[0]
        node = before.producer() if before is not None else None
    return node if node is not None and node.domain == MASK_DOMAIN else None


def layers(graph: ir.Graph) -> list[Layer]:
    """The layers in the order of the graph."""
    found = []
    for node in graph:
        if node.domain or node.op_type not in OUTPUT_AXIS or len(node.inputs) <= WEIGHT_INPUT:
            continue
        weight = source(node.inputs[WEIGHT_INPUT])
        if weight is not None and source(node.inputs[0]) is None:
            found.append(layer_of(node))
    return found


def last(graph: ir.Graph) -> set[ir.Node]:
    """The nodes of layers whose results reach an output without another layer between."""
    reached = set(graph.outputs)
    found = set()
    for node in reversed(list(graph)):
        if not any(output in reached for output in node.outputs):
            continue
        if node.op_type in OUTPUT_AXIS and not node.domain and source(node.inputs[WEIGHT_INPUT]) is not None:
            found.add(node)
        else:
            reached.update(value for value in node.inputs if value is not None)
    return found


def layer_of(node: ir.Node) -> Layer:
    """The layer whose arithmetic `node` does; its weight must be a constant behind quantizers and masks."""
    weight = source(node.inputs[WEIGHT_INPUT])
    assert weight is not None
    name = (weight.name or node.name or "").removesuffix(".weight")
    if len(node.inputs) > 2:
        bias = source(node.inputs[2])
        return Layer(name, node, weight, bias, node if bias is not None else None)
    add = _bias_add(node) if node.op_type == "MatMul" else None
    bias = source(add.inputs[_bias_operand(add)]) if add is not None else None
    return Layer(name, node, weight, bias, add)


def _bias_add(node: ir.Node) -> ir.Node | None:
    """The Add of a rank-1 constant that alone consumes the MatMul."""
    output = node.outputs[0]
    consumers = list(output.consumers())
    if len(consumers) != 1 or consumers[0].op_type != "Add" or output.is_graph_output():
        return None
    bias = source(consumers[0].inputs[_bias_operand(consumers[0])])
    return consumers[0] if bias is not None and bias.shape is not None and len(bias.shape) == 1 else None


def _bias_operand(add: ir.Node) -> int:
    return 1 if source(add.inputs[1]) is not None else 0


@dataclass(frozen=True)
class Grid:
    """What a Quant node rounds to: integers of `bits` bits times `scale`, shifted by `zero_point`."""

    scale: np.ndarray
    zero_point: np.ndarray
    bits: np.ndarray
    signed: bool
    narrow: bool
    rounding: str
    overflow: str = "SAT"


def grid(node: ir.Node) -> Grid | None:
    """The grid of a quantizer, or None where its parameters are computed."""
    if is_fixed_quant(node):
        return _fixed_grid(node)
    scale, bits = constant(node.inputs[1]), widths(node)
    zero_point = np.zeros((), np.float32) if is_bipolar_quant(node) else constant(node.inputs[2])
    if scale is None or zero_point is None or bits is None:
        return None
    return Grid(
        scale,
        zero_point,
        bits,
        bool(node.attributes.get_int("signed", 1)),
        bool(node.attributes.get_int("narrow", 0)),
        str(node.attributes.get_string("rounding_mode", "ROUND")),
    )


def widths(node: ir.Node) -> np.ndarray | None:
    """The bits that one of QONNX's quantizers rounds to, or None where they are computed."""
    return np.ones((), np.float32) if is_bipolar_quant(node) else constant(node.inputs[3])


def is_binary(node: ir.Node) -> bool:
    """Whether a quantizer leaves a sign only, times its scale, so that nothing becomes zero."""
    bits = None if is_fixed_quant(node) else widths(node)
    return bits is not None and bool(np.any(bits == 1)) and node.attributes.get_int("signed", 1) == 1


def _fixed_grid(node: ir.Node) -> Grid | None:
    """The grid of a FixedQuant; no width beside the sign means that all is zero."""
    i, f = (constant(value) for value in node.inputs[1:3])
    if i is None or f is None:
        return None
    signed = bool(node.attributes.get_int("signed", 1))
    overflow = str(node.attributes.get_string("overflow", "SAT"))
    rounding = str(node.attributes.get_string("rounding", "RND_CONV"))
    fraction = np.rint(f)
    bits = np.asarray(np.rint(i) + fraction + signed, np.float32)
    scale = np.asarray(np.ldexp(np.float32(1), -fraction.astype(int)), np.float32)
    zero = np.zeros((), np.float32)
    return Grid(scale, zero, bits, signed, overflow == "SAT_SYM" and signed, rounding, overflow)
