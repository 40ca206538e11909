"""Gradients of functions of one number that the engine lacks."""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT


@script(GRADIENT, default_opset=op)
def TanGrad(dy: FLOAT, y: FLOAT) -> FLOAT:
    """dy (1 + y^2)"""
    return dy * (1.0 + y * y)


@script(GRADIENT, default_opset=op)
def AsinGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy / sqrt(1 - x^2), infinite at the ends of the domain"""
    return dy / op.Sqrt((1.0 - x) * (1.0 + x))


@script(GRADIENT, default_opset=op)
def AcosGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """-dy / sqrt(1 - x^2), infinite at the ends of the domain"""
    return -dy / op.Sqrt((1.0 - x) * (1.0 + x))


@script(GRADIENT, default_opset=op)
def AtanGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy / (1 + x^2)"""
    return dy / (1.0 + x * x)


@script(GRADIENT, default_opset=op)
def SinhGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy cosh(x)"""
    return dy * op.Cosh(x)


@script(GRADIENT, default_opset=op)
def CoshGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy sinh(x)"""
    return dy * op.Sinh(x)


@script(GRADIENT, default_opset=op)
def AsinhGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy / sqrt(x^2 + 1)"""
    return dy / op.Sqrt(x * x + 1.0)


@script(GRADIENT, default_opset=op)
def AcoshGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy / sqrt(x^2 - 1), infinite at 1"""
    return dy / op.Sqrt((x - 1.0) * (x + 1.0))


@script(GRADIENT, default_opset=op)
def AtanhGrad(dy: FLOAT, x: FLOAT) -> FLOAT:
    """dy / (1 - x^2), infinite at the ends of the domain"""
    return dy / ((1.0 - x) * (1.0 + x))


@script(GRADIENT, default_opset=op)
def ThresholdedReluGrad(dy: FLOAT, x: FLOAT, alpha: float = 1.0) -> FLOAT:
    """dy where x > alpha"""
    return dy * op.CastLike(x > op.CastLike(op.Constant(value_float=alpha), x), x)


@script(GRADIENT, default_opset=op)
def ShrinkGrad(dy: FLOAT, x: FLOAT, lambd: float = 0.5) -> FLOAT:
    """dy where |x| > lambd"""
    return dy * op.CastLike(op.Abs(x) > op.CastLike(op.Constant(value_float=lambd), x), x)


@script(GRADIENT, default_opset=op)
def StepGrad(dy: FLOAT) -> FLOAT:
    """Zero: the derivative of a function made of steps, wherever it has one.

    As a product: where a constant stands, the engine folds away what a quantizer's branch still reads.
    """
    return dy * 0.0
