"""Scales of quantizers that are trained: a step, or the power of two that its logarithm is rounded to."""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, QUANTIZER, Operator


@script(QUANTIZER, default_opset=op)
def LearnedScale(t: FLOAT, share: float = 1.0) -> FLOAT:
    """t, and no less than 2^-40. `share` is what the gradient is multiplied by."""
    return op.Max(t, 9.094947017729282e-13)


@script(GRADIENT, default_opset=op)
def LearnedScaleGrad(dy: FLOAT, share: float = 1.0) -> FLOAT:
    """dy times `share`, also where t is too small, so that it can grow. Source: Esser et al. 2020, section 2.2."""
    return dy * op.Constant(value_float=share)


@script(QUANTIZER, default_opset=op)
def PowerOfTwoScale(t: FLOAT, share: float = 1.0) -> FLOAT:
    """2 to the integer next to t, ties to even, between 2^-40 and 2^40."""
    return op.Pow(2.0, op.Clip(op.Round(t), -40.0, 40.0))


@script(GRADIENT, default_opset=op)
def PowerOfTwoScaleGrad(dy: FLOAT, s: FLOAT, share: float = 1.0) -> FLOAT:
    """ln 2 s dy times `share`: rounding passes the gradient straight through."""
    return dy * s * (op.Constant(value_float=share) * 0.6931471805599453)


LEARNED_SCALE = Operator(LearnedScale, LearnedScaleGrad, arguments=("GO(0)",))
POWER_OF_TWO_SCALE = Operator(PowerOfTwoScale, PowerOfTwoScaleGrad, arguments=("GO(0)", "O(0)"))
SCALES = {"scale": LEARNED_SCALE, "power_of_two_scale": POWER_OF_TWO_SCALE}
"""The operators by what a quantizer learns."""
