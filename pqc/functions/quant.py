"""QONNX's Quant and BipolarQuant with their straight-through gradients."""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op
from onnxscript.values import Opset

from pqc.functions.fixed_quant import Shared
from pqc.functions.operator import GRADIENT, Operator

QONNX = Opset("qonnx.custom_op.general", 1)

ROUNDING_MODES = ("ROUND", "HALF_EVEN", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN")


@script(QONNX, default_opset=op)
def Quant(
    x: FLOAT,
    scale: FLOAT,
    zeropt: FLOAT,
    bitwidth: FLOAT,
    signed: int = 1,
    narrow: int = 0,
    rounding_mode: str = "ROUND",
) -> FLOAT:
    """Round x to scale * (q - zeropt) with q an integer of `bitwidth` bits; saturate, then round.

    One signed bit is bipolar (-1, +1), as in QONNX. The tests on attributes and bit widths are folded away when
    the session is made, which leaves five elementwise nodes.
    """
    is_signed = op.CastLike(op.Constant(value_int=signed), bitwidth)
    is_narrow = op.CastLike(op.Constant(value_int=narrow), bitwidth)
    span = op.Pow(2.0, bitwidth - is_signed)
    high = span - 1.0 - (1.0 - is_signed) * is_narrow
    low = is_signed * (is_narrow - span)
    v = x / scale + zeropt
    clipped = op.Min(op.Max(v, low), high)
    mode = op.Constant(value_string=rounding_mode)
    if mode == "FLOOR":
        rounded = op.Floor(clipped)
    else:
        if mode == "CEIL":
            rounded = op.Ceil(clipped)
        else:
            if mode == "UP":
                rounded = op.Sign(clipped) * op.Ceil(op.Abs(clipped))
            else:
                if mode == "DOWN":
                    rounded = op.Sign(clipped) * op.Floor(op.Abs(clipped))
                else:
                    if mode == "HALF_UP":
                        rounded = op.Sign(clipped) * op.Floor(op.Abs(clipped) + 0.5)
                    else:
                        if mode == "HALF_DOWN":
                            rounded = op.Sign(clipped) * op.Ceil(op.Abs(clipped) - 0.5)
                        else:
                            rounded = op.Round(clipped)
    if op.ReduceMin(bitwidth + (1.0 - is_signed), keepdims=0) == 1.0:
        sign = op.CastLike(v >= 0.0, v) * 2.0 - 1.0
        q = op.Where(op.Equal(bitwidth + (1.0 - is_signed), 1.0), sign, rounded)
    else:
        q = op.Identity(rounded)
    return (q - zeropt) * scale


@script(GRADIENT, default_opset=op)
def QuantGrad(
    dy: FLOAT,
    x: FLOAT,
    scale: FLOAT,
    zeropt: FLOAT,
    bitwidth: FLOAT,
    signed: int = 1,
    narrow: int = 0,
) -> FLOAT:
    """Pass dy where x lies within the representable range, bounds included; bipolar: where |x| <= scale."""
    is_signed = op.CastLike(op.Constant(value_int=signed), bitwidth)
    is_narrow = op.CastLike(op.Constant(value_int=narrow), bitwidth)
    is_bipolar = op.CastLike(op.Equal(bitwidth + (1.0 - is_signed), 1.0), bitwidth)
    span = op.Pow(2.0, bitwidth - is_signed)
    high = span - 1.0 - (1.0 - is_signed) * is_narrow + is_bipolar
    low = is_signed * (is_narrow * (1.0 - is_bipolar) - span)
    v = x / scale + zeropt
    clipped = op.Min(op.Max(v, low), high)
    return dy * op.Cast(op.Equal(v, clipped), to=1)


@script(GRADIENT, default_opset=op)
def QuantScaleGrad(
    dy: FLOAT,
    x: FLOAT,
    scale: FLOAT,
    zeropt: FLOAT,
    bitwidth: FLOAT,
    y: FLOAT,
    signed: int = 1,
    narrow: int = 0,
):
    """QuantGrad, and the gradient of a scale that has the rank of x: (y - x) / scale inside, y / scale beyond.

    It is summed over what shares the scale. One signed bit counts as beyond its range everywhere.
    Source: Esser et al. 2020, eq. 3; the bounds themselves are inside here, as they are for x.
    """
    inside = QuantGrad(op.CastLike(1.0, x), x, scale, zeropt, bitwidth, signed=signed, narrow=narrow)
    is_signed = op.CastLike(op.Constant(value_int=signed), bitwidth)
    has_range = op.CastLike(bitwidth > is_signed, x)
    dx = dy * inside
    dscale = Shared(dy * op.Where(inside * has_range > 0.0, y - x, y), scale) / scale
    return dx, dscale


@script(QONNX, default_opset=op)
def BipolarQuant(x: FLOAT, scale: FLOAT) -> FLOAT:
    """scale where x >= 0, else -scale."""
    return (op.CastLike(x >= 0.0, x) * 2.0 - 1.0) * scale


@script(GRADIENT, default_opset=op)
def BipolarQuantGrad(dy: FLOAT, x: FLOAT, scale: FLOAT) -> FLOAT:
    """dy where |x| <= scale."""
    return dy * op.CastLike(op.Abs(x) <= scale, x)


QUANT = Operator(
    Quant,
    QuantScaleGrad,
    arguments=("GO(0)", "I(0)", "I(1)", "I(2)", "I(3)", "O(0)"),
    results=("GI(0)", "GI(1)"),
    of_data=QuantGrad,
    helpers=(Shared,),
)
BIPOLAR_QUANT = Operator(BipolarQuant, BipolarQuantGrad, arguments=("GO(0)", "I(0)", "I(1)"))
