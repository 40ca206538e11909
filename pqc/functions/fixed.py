"""Rounding to a power-of-two grid in three elementwise operations, for training."""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import FIXED, GRADIENT, Operator

MAX_BITS = 22
"""Beyond these many bits float32 has no spare ones for the shift below."""


@script(FIXED, default_opset=op)
def FixedPoint(x: FLOAT, low: FLOAT, high: FLOAT, shift: FLOAT) -> FLOAT:
    """Saturate x to [low, high] and round half to even on the grid of `shift`.

    shift = 1.5 * 2^23 * 2^-f: near it float32 has exactly the step 2^-f, so adding it rounds and subtracting it is
    exact.
    """
    if op.Size(low) == 1:
        clipped = op.Clip(x, low, high)
    else:
        clipped = op.Min(op.Max(x, low), high)
    return (clipped + shift) - shift


@script(GRADIENT, default_opset=op)
def FixedPointGrad(dy: FLOAT, x: FLOAT, low: FLOAT, high: FLOAT) -> FLOAT:
    """dy where x lies in [low, high], bounds included."""
    if op.Size(low) == 1:
        clipped = op.Clip(x, low, high)
    else:
        clipped = op.Min(op.Max(x, low), high)
    return dy * op.Cast(op.Equal(x, clipped), to=1)


FIXED_POINT = Operator(FixedPoint, FixedPointGrad, arguments=("GO(0)", "I(0)", "I(1)", "I(2)"))
