"""Gradients of reductions, of sums along an axis, and of what broadcasts. A reduction keeps its axes (legalize)."""

from __future__ import annotations

import onnx
from onnxscript import FLOAT, INT64, script
from onnxscript import opset21 as op

from pqc.functions.fixed_quant import Shared
from pqc.functions.operator import GRADIENT, STANDARD, Operator

ONE = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])


@script(GRADIENT, default_opset=op)
def Unbroadcast(gradient: FLOAT, operand: FLOAT) -> FLOAT:
    """The sum of `gradient` over the axes along which `operand` was stretched, in the operand's shape."""
    missing = op.Size(op.Shape(gradient)) - op.Size(op.Shape(operand))
    first = op.ConstantOfShape(op.Reshape(missing, op.Constant(value_ints=[1])), value=ONE)
    lengths = op.Concat(first, op.Shape(operand), axis=0)
    return op.Reshape(Shared(gradient, op.Reshape(operand, lengths)), op.Shape(operand))


@script(GRADIENT, default_opset=op)
def ReduceMaxGrad(dy: FLOAT, x: FLOAT, y: FLOAT) -> FLOAT:
    """dy, shared among the elements that equal y: the largest, or the smallest; y keeps the reduced axes."""
    first = op.CastLike(op.Equal(x, y), x)
    return first / Shared(first, y) * dy


@script(GRADIENT, default_opset=op)
def ReduceProdGrad(dy: FLOAT, x: FLOAT, y: FLOAT) -> FLOAT:
    """dy times the product of the other elements.

    With one zero among them that product is not zero at the zero alone; with two it is zero everywhere.
    """
    zero = op.CastLike(op.Equal(x, 0.0), x)
    zeros = Shared(zero, y)
    filled = x + zero
    axes = op.Squeeze(op.NonZero(op.Equal(op.Shape(y), 1)), op.Constant(value_ints=[0]))
    product = op.ReduceProd(filled, axes, keepdims=1, noop_with_empty_axes=1)
    return dy * product / filled * op.CastLike(op.Equal(zeros, zero), x)


@script(GRADIENT, default_opset=op)
def ReduceL2Grad(dy: FLOAT, x: FLOAT, y: FLOAT) -> FLOAT:
    """dy x / y, and zero where y is zero"""
    return dy * (x / (y + op.CastLike(op.Equal(y, 0.0), y)))


@script(GRADIENT, default_opset=op)
def ReduceLogSumExpGrad(dy: FLOAT, x: FLOAT, y: FLOAT) -> FLOAT:
    """dy e^(x - y)"""
    return dy * op.Exp(x - y)


@script(GRADIENT, default_opset=op)
def CumSumGrad(dy: FLOAT, axis: INT64, exclusive: int = 0, reverse: int = 0) -> FLOAT:
    """The cumulative sum of dy from the other end."""
    if op.Constant(value_int=reverse) == 1:
        dx = op.CumSum(dy, axis, exclusive=exclusive, reverse=0)
    else:
        dx = op.CumSum(dy, axis, exclusive=exclusive, reverse=1)
    return dx


@script(GRADIENT, default_opset=op)
def ReverseSequenceGrad(dy: FLOAT, lengths: INT64, batch_axis: int = 1, time_axis: int = 0) -> FLOAT:
    """dy, reversed likewise: twice reversed is the sequence itself."""
    return op.ReverseSequence(dy, lengths, batch_axis=batch_axis, time_axis=time_axis)


@script(GRADIENT, default_opset=op)
def ModGrad(dy: FLOAT, a: FLOAT, b: FLOAT, y: FLOAT):
    """da = dy; db = -dy n, n being how often b goes into a."""
    da = Unbroadcast(dy, a)
    db = Unbroadcast(-dy * op.Round((a - y) / b), b)
    return da, db


@script(STANDARD, default_opset=op)
def Power(x: FLOAT, exponent: FLOAT) -> FLOAT:
    """x ^ exponent, both of them computed."""
    return op.Pow(x, exponent)


@script(GRADIENT, default_opset=op)
def PowerGrad(dy: FLOAT, x: FLOAT, exponent: FLOAT, y: FLOAT):
    """dx = dy e x^(e-1); de = dy y ln x, zero where x is not positive."""
    dx = Unbroadcast(dy * exponent * op.Pow(x, exponent - 1.0), x)
    positive = op.CastLike(x > 0.0, x)
    logarithm = op.Log(op.Max(x, 1.0e-38)) * positive
    de = Unbroadcast(dy * y * logarithm, exponent)
    return dx, de


POWER = Operator(Power, PowerGrad, ("GO(0)", "I(0)", "I(1)", "O(0)"), ("GI(0)", "GI(1)"), helpers=(Unbroadcast,))
