"""Quantizers with learned bits as a training step computes them: few operations, and widths for free.

Powers of two come from Exp, an order of magnitude faster than Pow. Its error is far below 2^-12, to which `PowerOfTwo`
rounds the mantissa again, so they are exact. Rounding adds 1.5 * 2^23 steps and takes them off again, which is exact up
to 22 bits of magnitude; wider numbers are rounded more coarsely than evaluation rounds them.
"""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.fixed_quant import Shared
from pqc.functions.operator import GRADIENT, LEARNED, Operator


@script(LEARNED, default_opset=op)
def PowerOfTwo(n: FLOAT) -> FLOAT:
    """2^n for whole n: Exp, with the mantissa rounded to the twelve bits that are zero in a power of two."""
    near = op.Exp(n * 0.6931471805599453)
    spread = near * 4097.0
    return spread - (spread - near)


@script(LEARNED, default_opset=op)
def ParameterBits(x: FLOAT, i: FLOAT, f: FLOAT, signs: int = 1):
    """FixedQuant (SAT_SYM, RND_CONV, signed) of parameters with bits of their own each, and widths with `signs` or not.

    Returns:
        The rounded parameters, their widths, and what the gradient needs: the saturated parameters and the steps.
    """
    fraction = op.Round(f)
    integer = op.Round(i)
    step = PowerOfTwo(-fraction)
    largest = op.Relu(PowerOfTwo(integer) - step)
    clipped = op.Min(op.Max(x, -largest), largest)
    shift = step * 12582912.0
    y = (clipped + shift) - shift
    magnitude = op.Relu(integer + fraction)
    width = magnitude + op.CastLike(op.Constant(value_int=signs), x) * op.Min(magnitude, 1.0)
    return y, width, clipped, step, largest


@script(GRADIENT, default_opset=op)
def ParameterBitsGrad(
    dy: FLOAT,
    dwidth: FLOAT,
    x: FLOAT,
    y: FLOAT,
    width: FLOAT,
    clipped: FLOAT,
    step: FLOAT,
    largest: FLOAT,
):
    """As FixedQuantGrad and WidthGrad: beyond the range the bits that set it get the gradient, inside x gets it."""
    beyond = x - clipped
    side = op.Clip(beyond * 3.0e38, -1.0, 1.0)
    outside = dy * side
    dx = dy - outside * side
    bit = dwidth * op.Min(width, 1.0)
    ln2 = op.Constant(value_float=0.6931471805599453)
    df = ln2 * (dy * (clipped - y) + outside * step) + bit
    di = ln2 * outside * (largest + step) + bit
    return dx, di, df


@script(LEARNED, default_opset=op)
def StepWidth(f: FLOAT, i: FLOAT, k: FLOAT):
    """What rounds to 2^-f, as ShiftRound takes it, and the width k + i + f, none where i + f is not above zero."""
    fraction = op.Round(f)
    shift = PowerOfTwo(-fraction) * 12582912.0
    magnitude = op.Relu(op.Round(i) + fraction)
    width = magnitude + k * op.Min(magnitude, 1.0)
    return shift, width


@script(GRADIENT, default_opset=op)
def StepWidthGrad(dshift: FLOAT, dwidth: FLOAT, width: FLOAT):
    """ShiftRound gives `shift` the gradient of f; a bit more is a bit wider, where there are any."""
    di = dwidth * op.Min(width, 1.0)
    df = dshift + di
    return df, di


@script(LEARNED, default_opset=op)
def ShiftRound(x: FLOAT, shift: FLOAT) -> FLOAT:
    """x rounded half to even to the grid 2^-f, shift = 1.5 * 2^23 * 2^-f; see the FixedPoint function."""
    return (x + shift) - shift


@script(GRADIENT, default_opset=op)
def ShiftRoundGrad(dy: FLOAT, x: FLOAT, shift: FLOAT, y: FLOAT):
    """dx = dy; in the place of the gradient of `shift`, that of f: ln 2 (x - y) dy, summed over what shares it."""
    dx = op.Identity(dy)
    df = Shared(dy * (x - y), shift) * 0.6931471805599453
    return dx, df


@script(LEARNED, default_opset=op)
def NeededFrom(f: FLOAT, i: FLOAT, top: FLOAT, bottom: FLOAT, k: FLOAT, symmetric: FLOAT, decay: float = 0.01) -> FLOAT:
    """NeededBits of numbers between `bottom` and `top`: rounding keeps the order, so only the ends are rounded."""
    step = PowerOfTwo(-op.Round(f))
    high = op.Round(top / step) * step + step
    low = k * (symmetric * step - op.Round(bottom / step) * step)
    largest = op.Max(high, low, step)
    near = op.Round(op.Log(largest) * 1.4426950408889634)
    needed = near + op.CastLike(largest > PowerOfTwo(near), f)
    return op.Clip(op.Max(i - op.Constant(value_float=decay), needed), -23.0, 23.0)


PARAMETER_BITS = Operator(
    ParameterBits,
    ParameterBitsGrad,
    arguments=("GO(0)", "GO(1)", "I(0)", "O(0)", "O(1)", "O(2)", "O(3)", "O(4)"),
    results=("GI(0)", "GI(1)", "GI(2)"),
    helpers=(PowerOfTwo,),
)
STEP_WIDTH = Operator(
    StepWidth,
    StepWidthGrad,
    arguments=("GO(0)", "GO(1)", "O(1)"),
    results=("GI(0)", "GI(1)"),
    helpers=(PowerOfTwo,),
)
SHIFT_ROUND = Operator(
    ShiftRound,
    ShiftRoundGrad,
    arguments=("GO(0)", "I(0)", "I(1)", "O(0)"),
    results=("GI(0)", "GI(1)"),
    helpers=(Shared,),
)
NEEDED_FROM = Operator(NeededFrom, helpers=(PowerOfTwo,))
LEARNED_QUANTIZERS = (PARAMETER_BITS, STEP_WIDTH, SHIFT_ROUND, NEEDED_FROM)
