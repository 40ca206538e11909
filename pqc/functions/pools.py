"""Pools whose gradients hold for images of any rank and batches of any length."""

from __future__ import annotations

from collections.abc import Sequence

from onnxscript import FLOAT, INT64, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, POOL, Operator


@script(POOL, default_opset=op)
def AveragePool(
    x: FLOAT,
    window: FLOAT,
    share: FLOAT,
    begin: INT64,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> FLOAT:
    """ONNX's operator, with what its gradient reads.

    `window` is a kernel of ones, [1, 1, ...]; `share` is what an element counts in each result; `begin` holds the pads
    before each axis, negative, those of batch and channels included.
    """
    return op.AveragePool(
        x,
        kernel_shape=kernel_shape,
        strides=strides,
        pads=pads,
        dilations=dilations,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )


@script(GRADIENT, default_opset=op)
def AveragePoolGrad(
    dy: FLOAT,
    x: FLOAT,
    window: FLOAT,
    share: FLOAT,
    begin: INT64,
    strides: Sequence[int],
    dilations: Sequence[int],
) -> FLOAT:
    """dy, shared among the elements of its window: a transposed convolution with ones.

    What that reaches beyond the image is cut off, what it does not reach is zero.
    """
    images = op.Reshape(dy, op.Concat(op.Constant(value_ints=[-1, 1]), op.Shape(share, start=2), axis=0))
    spread = op.ConvTranspose(images * share, window, strides=strides, dilations=dilations)
    wanted = op.Concat(op.Shape(images, end=2), op.Shape(x, start=2), axis=0)
    end = wanted - op.Shape(spread) - begin
    return op.Reshape(op.Pad(spread, op.Concat(begin, end, axis=0)), op.Shape(x))


@script(POOL, default_opset=op)
def MaxPool(
    x: FLOAT,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int = 0,
):
    """ONNX's operator, with the places of the largest elements in the flat x."""
    y, places = op.MaxPool(
        x, kernel_shape=kernel_shape, strides=strides, pads=pads, dilations=dilations, ceil_mode=ceil_mode
    )
    return y, places


@script(GRADIENT, default_opset=op)
def MaxPoolGrad(dy: FLOAT, x: FLOAT, places: INT64) -> FLOAT:
    """dy at its places, added where windows share one."""
    rest = op.Constant(value_ints=[-1])
    nothing = op.Reshape(op.CastLike(op.ConstantOfShape(op.Shape(x)), x), rest)
    placed = op.ScatterElements(nothing, op.Reshape(places, rest), op.Reshape(dy, rest), axis=0, reduction="add")
    return op.Reshape(placed, op.Shape(x))


AVERAGE_POOL = Operator(AveragePool, AveragePoolGrad, ("GO(0)", "I(0)", "I(1)", "I(2)", "I(3)"))
MAX_POOL = Operator(MaxPool, MaxPoolGrad, ("GO(0)", "I(0)", "O(1)"))
