"""A power of two that is learned: what comes before a ReLU is multiplied by it."""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, QUANTIZER, Operator


@script(QUANTIZER, default_opset=op)
def Multiplier(x: FLOAT, m: FLOAT) -> FLOAT:
    """x 2^round(m); m is a scalar, and halves are rounded to even."""
    return x * op.Pow(2.0, op.Round(m))


@script(GRADIENT, default_opset=op)
def MultiplierGrad(dy: FLOAT, m: FLOAT, y: FLOAT):
    """dx = dy 2^round(m); dm = ln 2 (sum of dy y): rounding passes it straight through."""
    dx = dy * op.Pow(2.0, op.Round(m))
    dm = op.ReduceSum(dy * y, keepdims=0) * 0.6931471805599453
    return dx, dm


MULTIPLIER = Operator(Multiplier, MultiplierGrad, arguments=("GO(0)", "I(1)", "O(0)"), results=("GI(0)", "GI(1)"))
