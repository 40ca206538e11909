"""Gradients of standard ONNX operators that the engine lacks, or has slow ones of."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnxscript import FLOAT, OnnxFunction, script
from onnxscript import opset21 as op

from pqc.functions.convolutions import ConvTransposeGrad, Cut, Swapped
from pqc.functions.fixed_quant import Shared
from pqc.functions.operator import GRADIENT

ONE = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])


@script(GRADIENT, default_opset=op)
def ReluGrad(dy: FLOAT, y: FLOAT) -> FLOAT:
    """dy where y > 0, y being the result of Relu.

    The engine's own is a branch per element, some ten times slower; a comparison and a cast take twice as long as this
    product, which is below one only where y < 3.4e-39, a denormal number.
    """
    return dy * op.Min(y * 3.0e38, 1.0)


@script(GRADIENT, default_opset=op)
def SoftplusGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy * sigmoid(x)"""
    return dy * op.Sigmoid(x)


@script(GRADIENT, default_opset=op)
def SoftsignGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy / (1 + |x|)^2"""
    root = 1.0 + op.Abs(x)
    return dy / (root * root)


@script(GRADIENT, default_opset=op)
def LeakyReluGrad(dy: FLOAT, x: FLOAT, alpha: float = 0.01) -> FLOAT:
    """dy where x >= 0, else alpha dy. The engine's own is a branch per element."""
    slope = op.CastLike(op.Constant(value_float=alpha), x)
    return dy * (slope + (1.0 - slope) * op.CastLike(x >= 0.0, x))


@script(GRADIENT, default_opset=op)
def PReluGrad(dy: FLOAT, x: FLOAT, slope: FLOAT):
    """dx = dy where x >= 0, else slope dy; dslope = x dy where x < 0, summed over what shares the slope."""
    below = op.CastLike(x < 0.0, x)
    dx = dy * (1.0 - below) + dy * slope * below
    missing = op.Size(op.Shape(x)) - op.Size(op.Shape(slope))
    first = op.ConstantOfShape(op.Reshape(missing, op.Constant(value_ints=[1])), value=ONE)
    lengths = op.Concat(first, op.Shape(slope), axis=0)
    summed = Shared(dy * x * below, op.Reshape(slope, lengths))
    dslope = op.Reshape(summed, op.Shape(slope))
    return dx, dslope


@script(GRADIENT, default_opset=op)
def EluGrad(dy: FLOAT, x: FLOAT, alpha: float = 1.0) -> FLOAT:
    """dy where x > 0, else alpha e^x dy"""
    slope = op.CastLike(op.Constant(value_float=alpha), x) * op.Exp(op.Min(x, 0.0))
    return dy * op.Where(x > 0.0, 1.0, slope)


@script(GRADIENT, default_opset=op)
def SeluGrad(dy: FLOAT, x: FLOAT, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> FLOAT:
    """gamma dy where x > 0, else gamma alpha e^x dy"""
    slope = op.CastLike(op.Constant(value_float=alpha), x) * op.Exp(op.Min(x, 0.0))
    return dy * op.CastLike(op.Constant(value_float=gamma), x) * op.Where(x > 0.0, 1.0, slope)


@script(GRADIENT, default_opset=op)
def HardSigmoidGrad(dy: FLOAT, y: FLOAT, alpha: float = 0.2) -> FLOAT:
    """alpha dy where the result lies between 0 and 1"""
    inside = op.CastLike(op.And(y > 0.0, y < 1.0), y)
    return dy * inside * op.CastLike(op.Constant(value_float=alpha), y)


@script(GRADIENT, default_opset=op)
def HardSwishGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy (g + x / 6 where 0 < g < 1), g = clip(x / 6 + 1/2, 0, 1)"""
    g = op.Clip(x / 6.0 + 0.5, 0.0, 1.0)
    return dy * (g + x / 6.0 * op.CastLike(op.And(g > 0.0, g < 1.0), x))


@script(GRADIENT, default_opset=op)
def GeluGrad(dy: FLOAT, x: FLOAT, approximate: str = "none") -> FLOAT:
    """dy (P(x) + x P'(x)): P is the normal distribution, or (1 + tanh u) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3).

    The engine's own is that of the distribution in both cases.
    """
    mode = op.Constant(value_string=approximate)
    if mode == "tanh":
        t = op.Tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        slope = (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        d = 0.5 * (1.0 + t) + 0.5 * x * slope
    else:
        density = 0.3989422804014327 * op.Exp(-0.5 * x * x)
        d = 0.5 * (1.0 + op.Erf(x * 0.7071067811865476)) + x * density
    return dy * d


@script(GRADIENT, default_opset=op)
def CeluGrad(dy: FLOAT, x: FLOAT, alpha: float = 1.0) -> FLOAT:
    """dy where x > 0, else e^(x / alpha) dy"""
    return dy * op.Exp(op.Min(x, 0.0) / op.CastLike(op.Constant(value_float=alpha), x))


@script(GRADIENT, default_opset=op)
def MishGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy (t + x (1 - t^2) sigmoid(x)), t = tanh(softplus(x))"""
    t = op.Tanh(op.Softplus(x))
    return dy * (t + x * (1.0 - t * t) * op.Sigmoid(x))


@script(GRADIENT, default_opset=op)
def ReduceMaxGrad(dy: FLOAT, x: FLOAT, y: FLOAT) -> FLOAT:
    """dy, shared among the elements that equal y: the largest, or the smallest; y keeps the reduced axes."""
    first = op.CastLike(op.Equal(x, y), x)
    return first / Shared(first, y) * dy


@dataclass(frozen=True)
class StandardGradient:
    """The gradient of a standard operator, in the notation of `Operator`."""

    name: str
    gradient: OnnxFunction
    arguments: tuple[str, ...]
    results: tuple[str, ...] = ("GI(0)",)
    helpers: tuple[OnnxFunction, ...] = ()


GRADIENTS = (
    StandardGradient("Relu", ReluGrad, ("GO(0)", "O(0)")),
    StandardGradient("Softplus", SoftplusGrad, ("GO(0)", "I(0)")),
    StandardGradient("Softsign", SoftsignGrad, ("GO(0)", "I(0)")),
    StandardGradient("LeakyRelu", LeakyReluGrad, ("GO(0)", "I(0)")),
    StandardGradient("PRelu", PReluGrad, ("GO(0)", "I(0)", "I(1)"), ("GI(0)", "GI(1)")),
    StandardGradient("Elu", EluGrad, ("GO(0)", "I(0)")),
    StandardGradient("Selu", SeluGrad, ("GO(0)", "I(0)")),
    StandardGradient("HardSigmoid", HardSigmoidGrad, ("GO(0)", "O(0)")),
    StandardGradient("HardSwish", HardSwishGrad, ("GO(0)", "I(0)")),
    StandardGradient("Gelu", GeluGrad, ("GO(0)", "I(0)")),
    StandardGradient("Celu", CeluGrad, ("GO(0)", "I(0)")),
    StandardGradient("Mish", MishGrad, ("GO(0)", "I(0)")),
    StandardGradient("ReduceMax", ReduceMaxGrad, ("GO(0)", "I(0)", "O(0)")),
    StandardGradient(
        "ConvTranspose", ConvTransposeGrad, ("GO(0)", "I(0)", "I(1)"), ("GI(0)", "GI(1)", "GI(2)"), (Cut, Swapped)
    ),
)
