"""A lookup table: any function of one number on a grid, as hardware holds it."""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import QUANTIZER, Operator


@script(QUANTIZER, default_opset=op)
def Lookup(x: FLOAT, entries: FLOAT, step: float = 1.0, low: float = 0.0) -> FLOAT:
    """entries[x / step - low]: the first entry is that of low · step, and step is a power of two."""
    place = op.Round(x / op.Constant(value_float=step)) - op.Constant(value_float=low)
    return op.Gather(entries, op.Cast(place, to=7))


LOOKUP = Operator(Lookup)
