"""The gradient of transposed convolutions, for images of any rank and batches of any length."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT

ZERO = onnx.helper.make_tensor("zero", onnx.TensorProto.INT64, [1], [0])


@script(GRADIENT, default_opset=op)
def Cut(x: FLOAT, like: FLOAT) -> FLOAT:
    """The first elements of x along each axis, as many as `like` has."""
    return op.Slice(x, op.ConstantOfShape(op.Shape(op.Shape(like)), value=ZERO), op.Shape(like))


@script(GRADIENT, default_opset=op)
def Swapped(x: FLOAT) -> FLOAT:
    """x with its first two axes exchanged, [N, C, ...] to [C, N, ...]."""
    first, second, rest = op.Shape(x, start=0, end=1), op.Shape(x, start=1, end=2), op.Shape(x, start=2)
    flat = op.Reshape(x, op.Concat(first, second, op.Constant(value_ints=[-1]), axis=0))
    return op.Reshape(op.Transpose(flat, perm=[1, 0, 2]), op.Concat(second, first, rest, axis=0))


@script(GRADIENT, default_opset=op)
def ConvTransposeGrad(
    dy: FLOAT,
    x: FLOAT,
    w: FLOAT,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int = 1,
):
    """dx is the convolution of dy with w [C_in, C_out / group, ...].

    dw[c, o, k] is the sum over n and i of x[n, c, i] dy[n, o, stride i + dilation k - pad]: a convolution over the
    batch whose kernel is x, with strides and dilations exchanged. Rows behind its end come from an output padding as
    large as a dilation.
    """
    dx = op.Conv(dy, w, strides=strides, pads=pads, dilations=dilations, group=group)
    outputs = op.Shape(w, start=1, end=2)
    groups = op.Reshape(op.Constant(value_int=group), op.Constant(value_ints=[1]))
    rest = op.Constant(value_ints=[-1])
    batch = op.Shape(dy, start=0, end=1)
    split = op.Reshape(dy, op.Concat(batch, groups, outputs, rest, axis=0))
    image = op.Reshape(
        op.Transpose(split, perm=[2, 1, 0, 3]), op.Concat(outputs, groups * batch, op.Shape(dy, start=2), axis=0)
    )
    product = op.Conv(image, Swapped(x), strides=dilations, pads=pads, dilations=strides, group=group)
    dw = Cut(Swapped(product), w)
    others = op.Concat(op.Constant(value_ints=[0]), op.Range(2, op.Size(op.Shape(dy)), 1), axis=0)
    db = op.ReduceSum(dy, others, keepdims=0)
    return dx, dw, db
