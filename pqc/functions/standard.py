"""Gradients of standard ONNX operators that the engine lacks, or has slow ones of."""

from __future__ import annotations

from dataclasses import dataclass

from onnxscript import FLOAT, OnnxFunction, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT


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


@dataclass(frozen=True)
class StandardGradient:
    """The gradient of a standard operator, in the notation of `Operator`."""

    name: str
    gradient: OnnxFunction
    arguments: tuple[str, ...]
    results: tuple[str, ...] = ("GI(0)",)


GRADIENTS = (
    StandardGradient("Relu", ReluGrad, ("GO(0)", "O(0)")),
    StandardGradient("Softplus", SoftplusGrad, ("GO(0)", "I(0)")),
)
