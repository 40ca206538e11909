"""What interval arithmetic over the actual weights proves about a network, wherever it applies."""

from __future__ import annotations

import onnx_ir as ir

from pqc.errors import UnsupportedError
from pqc.hardware import intervals, legality
from pqc.hardware.intervals import TooWide
from pqc.hardware.quantizer import fixed_types
from pqc.hardware.ranges import RULES, Ranges
from pqc.layers import is_fixed_quant, is_quant


def bounds(main: ir.Graph) -> Ranges:
    """Bounds of the values that have them; behind a node that has no rule a quantizer bounds the values again."""
    found: Ranges = {}
    for node in main:
        if any(rule.applies(node) and rule.broken(node) for rule in legality.RULES):
            continue
        output = node.outputs[0]
        try:
            found[output] = RULES[node.op_type](node, found)
        except (UnsupportedError, TooWide):
            shape = [] if output.shape is None else list(output.shape)[1:]
            if is_quant(node) and shape and all(isinstance(length, int) for length in shape):
                found[output] = intervals.full(fixed_types(node), [int(str(length)) for length in shape])
    return found


def never_wrap(main: ir.Graph) -> list[ir.Node]:
    """The quantizers that wrap, but never meet a number beyond their range."""
    found = bounds(main)
    wraps = [node for node in main if is_fixed_quant(node) and node.attributes.get_string("overflow", "SAT") == "WRAP"]
    return [
        node
        for node in wraps
        if node.inputs[0] in found and not intervals.overflows(found[node.inputs[0]], fixed_types(node))
    ]
