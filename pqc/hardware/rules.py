"""What the legality rules look for: each function says what it found at a node, or None."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.functions.fixed_quant import ROUNDINGS
from pqc.functions.table import LOOKUP
from pqc.hardware.precision import constant_through_quant, is_fused_bias, sole_user, takes_quant
from pqc.hardware.quantizer import OVERFLOWS, fixed_type, fixed_types, parameter, power_of_two, rounds_to_one
from pqc.hardware.ranges import groups, integers
from pqc.hardware.tables import REACH
from pqc.layers import grid, is_fixed_quant, is_qonnx_quant, is_quant, widths
from pqc.quantizer import AP_ROUNDING

POOLS = ("MaxPool", "AveragePool")
JOINS = ("Add", "Sub", "Mul")
KNOWN = frozenset({"MatMul", "Conv", "Relu", "PRelu", "Flatten", "Transpose", *REACH, *POOLS, *JOINS})


def unknown(node: ir.Node) -> str | None:
    known = is_quant(node) or (node.domain, node.op_type) == LOOKUP.key
    if known or (not node.domain and node.op_type in KNOWN):
        return None
    return f"operator {node.domain + '::' if node.domain else ''}{node.op_type}"


def computed_parameter(node: ir.Node) -> str | None:
    names = ["integer bits", "fractional bits"] if is_fixed_quant(node) else ["scale", "zero point", "bit width"]
    given = enumerate(names[: len(node.inputs) - 1], 1)
    missing = [name for index, name in given if parameter(node, index) is None]
    return f"its {missing[0]} is computed" if missing else None


def shape_of(index: int, name: str) -> Callable[[ir.Node], str | None]:
    def broken(node: ir.Node) -> str | None:
        array = parameter(node, index) if constant_through_quant(node.inputs[0]) else None
        return None if array is None or array.size == 1 else f"{array.size} {name}"

    return broken


def scale(node: ir.Node) -> str | None:
    scale = None if is_fixed_quant(node) else parameter(node, 1)
    wrong = [] if scale is None else [value for value in scale.reshape(-1) if power_of_two(float(value)) is None]
    return f"scale {float(wrong[0]):g}" if wrong else None


def zero_point(node: ir.Node) -> str | None:
    zero = parameter(node, 2) if is_qonnx_quant(node) else None
    return None if zero is None or not zero.any() else f"zero point {float(zero.reshape(-1)[0]):g}"


def fractional_bits(node: ir.Node) -> str | None:
    bits = parameter(node, 3) if is_qonnx_quant(node) else None
    wrong = [] if bits is None else [value for value in bits.reshape(-1) if not float(value).is_integer()]
    return f"{float(wrong[0]):g} bits" if wrong else None


def few_bits(node: ir.Node) -> str | None:
    if is_fixed_quant(node):
        return None
    bits, signed = widths(node), bool(graph.attribute(node, "signed", 1))
    few = bits is not None and float(bits.min()) < 1 + signed
    return (
        f"{'a signed' if signed else 'an unsigned'} type of {float(bits.min()):g} bits"
        if few and bits is not None
        else None
    )


def rounding(node: ir.Node) -> str | None:
    found = grid(node)
    mode = "" if found is None else found.rounding
    return None if AP_ROUNDING.get(mode, mode) in ROUNDINGS else f"rounding mode {mode}"


def overflow(node: ir.Node) -> str | None:
    found = grid(node)
    return None if found is None or found.overflow in OVERFLOWS else f"overflow {found.overflow}"


def not_lowered(node: ir.Node) -> str | None:
    """A parameter that is still rounded by pqc's own quantizer."""
    return "a weight or bias in FixedQuant" if constant_through_quant(node.inputs[0]) else None


def along_batch(node: ir.Node) -> str | None:
    if constant_through_quant(node.inputs[0]):
        return None
    shapes = [array.shape for value in node.inputs[1:] if (array := graph.constant(value)) is not None]
    wrong = [shape for shape in shapes if len(shape) > 1 and shape[0] != 1]
    return f"bits or scales of shape {list(wrong[0])}" if wrong else None


def many_types(node: ir.Node) -> str | None:
    """An activation whose elements have different types, or none."""
    if constant_through_quant(node.inputs[0]) or rounds_to_one(node):
        return None
    kinds = fixed_types(node).distinct()
    return f"{len(kinds)} types in one tensor" if len(kinds) > 1 else "no bits at all"


def many_types_behind_table(node: ir.Node) -> str | None:
    user = sole_user(node.outputs[0])
    return (
        "a result that is rounded to many types" if user is not None and is_quant(user) and many_types(user) else None
    )


def narrow(node: ir.Node) -> str | None:
    unsigned = graph.attribute(node, "narrow", 0) and not graph.attribute(node, "signed", 1)
    return "narrow and unsigned" if unsigned else None


def off_grid(node: ir.Node) -> str | None:
    array = graph.constant(node.inputs[0])
    if array is None:
        return None
    kind = fixed_type(node)
    scaled = np.ldexp(array.astype(np.float64), kind.fraction)
    off = int(np.count_nonzero((scaled != np.rint(scaled)) | (scaled < kind.low) | (scaled > kind.high)))
    return f"{off} of {array.size} constants off its grid" if off else None


def twice(node: ir.Node) -> str | None:
    values = [value for value in node.inputs if value is not None and graph.constant(value) is None]
    return "the same tensor twice" if len(set(values)) < len(values) else None


def weight_not_constant(node: ir.Node) -> str | None:
    return None if constant_through_quant(node.inputs[1]) else "a second input that is computed"


def data_constant(node: ir.Node) -> str | None:
    return "a first input that is constant" if constant_through_quant(node.inputs[0]) else None


def bare_constant(node: ir.Node) -> str | None:
    for index, value in enumerate(node.inputs):
        if value is not None and graph.constant(value) is not None:
            return f"a constant without a Quant, '{value.name}'" if index or node.op_type in JOINS else None
    return None


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions of an activation, batch included, following the data back to the input."""
    while value is not None:
        node = value.producer()
        if node is None:
            return None if value.shape is None else len(value.shape)
        if node.op_type == "Flatten":
            return 2
        if node.op_type == "Conv":
            weight = node.inputs[1]
            quant = None if weight is None else weight.producer()
            array = graph.constant(weight if quant is None else quant.inputs[0])
            return None if array is None else array.ndim
        value = next((given for given in node.inputs if not constant_through_quant(given)), None)
    return None


def matmul_rank(node: ir.Node) -> str | None:
    dims = rank(node.inputs[0])
    return None if dims == 2 else f"data of {dims} dimensions"


def conv_rank(node: ir.Node) -> str | None:
    dims = rank(node.outputs[0])
    return None if dims in (3, 4) else f"{(dims or 2) - 2} spatial dimensions"


def pool_rank(node: ir.Node) -> str | None:
    dims = rank(node.inputs[0])
    return None if dims == 4 else f"an image of {(dims or 2) - 2} dimensions"


def grouped(node: ir.Node) -> str | None:
    if groups(node) == 1:
        return None
    weight = node.inputs[1]
    quant = None if weight is None else weight.producer()
    array = graph.constant(weight if quant is None else quant.inputs[0])
    if array is None or (array.shape[1] == 1 and array.shape[0] == groups(node)):
        return None
    return f"{groups(node)} groups of {array.shape[1]} channels for {array.shape[0]} filters"


def dilation(node: ir.Node) -> str | None:
    steps = integers(node, "dilations", [1])
    return None if all(step == 1 for step in steps) else f"dilations {steps}"


def auto_pad(node: ir.Node) -> str | None:
    mode = str(graph.attribute(node, "auto_pad", "NOTSET"))
    return None if mode == "NOTSET" else f"auto_pad {mode}"


def missing(*names: str) -> Callable[[ir.Node], str | None]:
    def broken(node: ir.Node) -> str | None:
        missing = [name for name in names if name not in node.attributes]
        return f"no attribute {missing[0]}" if missing else None

    return broken


def pool_pads(node: ir.Node) -> str | None:
    pads = integers(node, "pads", [0])
    return f"pads {pads}" if any(pads) else None


def ceil(node: ir.Node) -> str | None:
    return "ceil_mode" if graph.attribute(node, "ceil_mode", 0) else None


def unrounded(node: ir.Node) -> str | None:
    area = math.prod(integers(node, "kernel_shape", [1]))
    if node.op_type == "AveragePool" and area & (area - 1) == 0:
        return None
    user = sole_user(node.outputs[0])
    return None if user is not None and is_quant(user) else "a result that no Quant of its own rounds"


def fork(node: ir.Node) -> str | None:
    output = node.outputs[0]
    users = [use.node for use in output.uses()]
    if not any(is_quant(user) for user in users) or len(users) + output.is_graph_output() == 1:
        return None
    return "a result that a Quant and something else take" if takes_quant(node) else None


def join(node: ir.Node) -> str | None:
    constants = [value for value in node.inputs if constant_through_quant(value)]
    if not constants or is_fused_bias(node):
        return None
    return "a constant operand that is not the bias right behind a MatMul"


def flatten_axis(node: ir.Node) -> str | None:
    axis = graph.attribute(node, "axis", 1)
    return None if axis == 1 else f"axis {axis}"


def transposed_batch(node: ir.Node) -> str | None:
    order = integers(node, "perm", [])
    return None if order[:1] == [0] else f"axes {order or 'in reverse order'}"


def behind_transpose(node: ir.Node) -> str | None:
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    while producer is not None and is_quant(producer):
        producer = None if producer.inputs[0] is None else producer.inputs[0].producer()
    return "the result of a Transpose" if producer is not None and producer.op_type == "Transpose" else None


def transposes(node: ir.Node) -> str | None:
    return "a Transpose"


def overlapping(node: ir.Node) -> str | None:
    """A pool whose windows are not its strides."""
    kernel, strides = integers(node, "kernel_shape", []), integers(node, "strides", [])
    return None if kernel == strides else f"kernel {kernel} with strides {strides}"
