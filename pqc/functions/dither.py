"""Stochastic rounding: noise that makes rounding to the nearest go up as often as the fraction says.

What is rounded gets noise of up to half a step, so that a quantizer that rounds to the nearest is all that is needed.
"""

from __future__ import annotations

import onnx
from onnxscript import DOUBLE, FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.fixed_quant import Shared
from pqc.functions.operator import GRADIENT, QUANTIZER, Operator

SPAN = 2**21
"""Places and draws are whole numbers from 0 to SPAN - 1."""
GOLDEN = onnx.helper.make_tensor("golden", onnx.TensorProto.DOUBLE, [], [0.6180339887498949])
RANGE = onnx.helper.make_tensor("range", onnx.TensorProto.DOUBLE, [], [float(SPAN)])
PRIME = onnx.helper.make_tensor("prime", onnx.TensorProto.DOUBLE, [], [16777213.0])
HALF = onnx.helper.make_tensor("half", onnx.TensorProto.DOUBLE, [], [0.5])


@script(QUANTIZER, default_opset=op)
def Noise(places: DOUBLE, number: FLOAT) -> FLOAT:
    """Evenly spread numbers in (-1/2, 1/2), others in each step `number` = 1, 2, … and at each of the places.

    The fraction of (place + draw)^2 / p, p prime, less one half. A draw is the fraction of `number` times the golden
    ratio, as a place, so that a place's noise is evenly spread over the steps, and that of two places moves apart by
    their distance times the draw. Squares stay below 2^44, so that float64 gives the fraction to 2^-28. One part in
    1,024 is left out at both ends together: what lies on a grid of up to 2^12 steps stays where it is.
    """
    turns = op.Cast(number, to=11) * op.Constant(value=GOLDEN)
    draw = op.Floor((turns - op.Floor(turns)) * op.Constant(value=RANGE))
    place = places + draw
    spread = place * place / op.Constant(value=PRIME)
    return op.Cast(spread - op.Floor(spread) - op.Constant(value=HALF), to=1) * 0.9990234375


@script(QUANTIZER, default_opset=op)
def Dither(x: FLOAT, f: FLOAT, noise: FLOAT) -> FLOAT:
    """x + noise 2^-round(f); f broadcasts to x, of the same rank."""
    return x + noise * op.Pow(2.0, -op.Round(f))


@script(GRADIENT, default_opset=op)
def DitherGrad(dy: FLOAT, f: FLOAT, noise: FLOAT):
    """dx = dy; df = -ln 2 noise 2^-round(f) dy, so that f gets no gradient of its noise: that of rounding x is left."""
    dx = op.Identity(dy)
    df = Shared(dy * noise * op.Pow(2.0, -op.Round(f)) * -0.6931471805599453, f)
    return dx, df


@script(GRADIENT, default_opset=op)
def DitherDataGrad(dy: FLOAT) -> FLOAT:
    """dx = dy"""
    return op.Identity(dy)


NOISE = Operator(Noise)
DITHER = Operator(
    Dither,
    DitherGrad,
    arguments=("GO(0)", "I(1)", "I(2)"),
    results=("GI(0)", "GI(1)"),
    of_data=DitherDataGrad,
    helpers=(Shared,),
)
