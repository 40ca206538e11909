"""Bit operations as functions of bit widths, with gradients for widths that are trained."""

from __future__ import annotations

from onnxscript import FLOAT, INT64, script
from onnxscript import opset21 as op

from pqc.functions.fixed_quant import Shared
from pqc.functions.operator import COST, GRADIENT, Operator
from pqc.functions.reductions import ReduceMaxGrad


@script(COST, default_opset=op)
def Width(i: FLOAT, f: FLOAT, signed: int = 1) -> FLOAT:
    """Bits of a fixed-point number: k + i + f, or none where i + f is not above zero."""
    k = op.CastLike(op.Constant(value_int=signed), i)
    magnitude = op.Relu(op.Round(i) + op.Round(f))
    return magnitude + k * op.Sign(magnitude)


@script(GRADIENT, default_opset=op)
def WidthGrad(dy: FLOAT, i: FLOAT, f: FLOAT, y: FLOAT):
    """One bit more is one bit more, where there are any; i or f may be shared along axes of length one."""
    d = dy * op.CastLike(y > 0.0, dy)
    di = Shared(d, i)
    df = Shared(d, f)
    return di, df


@script(COST, default_opset=op)
def DenseCost(data: FLOAT, weight: FLOAT) -> FLOAT:
    """Sum over positions, inputs and outputs of (bits of the input) x (bits of the weight).

    data [1, ..., inputs], weight [inputs, outputs].
    """
    return op.ReduceSum(op.MatMul(data, op.ReduceSum(weight, op.Constant(value_ints=[1]))), keepdims=0)


@script(GRADIENT, default_opset=op)
def DenseCostGrad(dy: FLOAT, data: FLOAT, weight: FLOAT):
    """dy times the other factor, summed over what it is shared by."""
    rows = op.Transpose(op.ReduceSum(weight, op.Constant(value_ints=[1])))
    d_data = op.Expand(dy * rows, op.Shape(data))
    inputs = op.Shape(weight, start=0, end=1)
    flat = op.Reshape(data, op.Concat(op.Constant(value_ints=[-1]), inputs, axis=0))
    column = op.Transpose(op.ReduceSum(flat, op.Constant(value_ints=[0])))
    d_weight = op.Expand(dy * column, op.Shape(weight))
    return d_data, d_weight


@script(COST, default_opset=op)
def Largest(x: FLOAT) -> FLOAT:
    """The largest over all positions of [1, channels, positions...], as [1, channels]."""
    return op.ReduceMax(op.Reshape(x, op.Constant(value_ints=[0, 0, -1])), op.Constant(value_ints=[2]), keepdims=0)


@script(GRADIENT, default_opset=op)
def LargestGrad(dy: FLOAT, x: FLOAT, y: FLOAT) -> FLOAT:
    """dy, shared among the positions that are the largest."""
    flat = op.Reshape(x, op.Constant(value_ints=[0, 0, -1]))
    last = op.Constant(value_ints=[2])
    first = op.CastLike(op.Equal(flat, op.Unsqueeze(y, last)), x)
    return op.Reshape(first / op.ReduceSum(first, last) * op.Unsqueeze(dy, last), op.Shape(x))


@script(COST, default_opset=op)
def Narrowest(x: FLOAT, axes: INT64) -> FLOAT:
    """The smallest along the axes, which stay with length one."""
    return op.ReduceMin(x, axes)


@script(COST, default_opset=op)
def TableCost(data: FLOAT, result: FLOAT) -> FLOAT:
    """1e-4 times the sum of 2^(bits of the input) x (bits of the result), both of one shape."""
    return 1.0e-4 * op.ReduceSum(op.Pow(2.0, data) * result, keepdims=0)


@script(GRADIENT, default_opset=op)
def TableCostGrad(dy: FLOAT, data: FLOAT, result: FLOAT):
    """A bit more of the input doubles its part; a bit more of the result adds a column."""
    column = 1.0e-4 * dy * op.Pow(2.0, data)
    return 0.6931471805599453 * column * result, column


WIDTH = Operator(
    Width, WidthGrad, arguments=("GO(0)", "I(0)", "I(1)", "O(0)"), results=("GI(0)", "GI(1)"), helpers=(Shared,)
)
DENSE_COST = Operator(DenseCost, DenseCostGrad, arguments=("GO(0)", "I(0)", "I(1)"), results=("GI(0)", "GI(1)"))
LARGEST = Operator(Largest, LargestGrad, arguments=("GO(0)", "I(0)", "O(0)"))
NARROWEST = Operator(Narrowest, ReduceMaxGrad, arguments=("GO(0)", "I(0)", "O(0)"), helpers=(Shared,))
TABLE_COST = Operator(TableCost, TableCostGrad, arguments=("GO(0)", "I(0)", "I(1)"), results=("GI(0)", "GI(1)"))
COSTS = (WIDTH, DENSE_COST, LARGEST, NARROWEST, TABLE_COST)
