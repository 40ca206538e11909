"""Batch normalization as factors of a layer's weight and terms of its bias, and the statistics that they come from.

Statistics are float32 [channels]; `form` is the shape in which a vector of channels meets the weight or the image.
Source: Ioffe and Szegedy 2015, algorithm 1; Krishnamoorthi 2018 (arXiv:1806.08342), section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import NORM, Operator


@script(NORM, default_opset=op)
def FoldedWeight(weight: FLOAT, gain: FLOAT, variance: FLOAT, form: Sequence[int], epsilon: float = 1e-5) -> FLOAT:
    """weight · gain (variance + epsilon)^-1/2

    Not Sqrt: the last bit of the engine's depends on where a number lies in its tensor.
    """
    factor = gain * op.Pow(variance + op.Constant(value_float=epsilon), op.Constant(value_float=-0.5))
    return weight * op.Reshape(factor, op.Constant(value_ints=form))


@script(NORM, default_opset=op)
def FoldedGain(gain: FLOAT, variance: FLOAT, form: Sequence[int], epsilon: float = 1e-5) -> FLOAT:
    """gain (variance + epsilon)^-1/2"""
    factor = gain * op.Pow(variance + op.Constant(value_float=epsilon), op.Constant(value_float=-0.5))
    return op.Reshape(factor, op.Constant(value_ints=form))


@script(NORM, default_opset=op)
def FoldedBias(
    bias: FLOAT, gain: FLOAT, mean: FLOAT, variance: FLOAT, form: Sequence[int], epsilon: float = 1e-5
) -> FLOAT:
    """bias - mean · gain (variance + epsilon)^-1/2"""
    factor = gain * op.Pow(variance + op.Constant(value_float=epsilon), op.Constant(value_float=-0.5))
    return op.Reshape(bias - mean * factor, op.Constant(value_ints=form))


@script(NORM, default_opset=op)
def BatchStatistics(x: FLOAT, mean: FLOAT, variance: FLOAT, axes: Sequence[int], momentum: float = 0.9):
    """Mean and variance of the batch over all axes but the channels', and the running ones after it.

    The variance is that of the batch itself (divided by the number of elements) in both, and the running values keep
    the share `momentum`, as ONNX defines training_mode = 1.
    """
    places = op.Constant(value_ints=axes)
    old = op.Constant(value_float=momentum)
    new = op.Constant(value_float=1.0) - old
    kept = op.ReduceMean(x, places, keepdims=1)
    centered = x - kept
    batch_mean = op.Squeeze(kept, places)
    batch_variance = op.ReduceMean(centered * centered, places, keepdims=0)
    next_mean = mean * old + batch_mean * new
    next_variance = variance * old + batch_variance * new
    return batch_mean, batch_variance, next_mean, next_variance


@script(NORM, default_opset=op)
def Corrected(
    weight: FLOAT, variance: FLOAT, batch_variance: FLOAT, form: Sequence[int], epsilon: float = 1e-5
) -> FLOAT:
    """weight · ((variance + epsilon) / (batch_variance + epsilon))^1/2: folded with the batch's variance instead."""
    least = op.Constant(value_float=epsilon)
    ratio = (variance + least) / (batch_variance + least)
    factor = op.Pow(ratio, op.Constant(value_float=0.5))
    return weight * op.Reshape(factor, op.Constant(value_ints=form))


FOLDED_WEIGHT = Operator(FoldedWeight, inline=True)
FOLDED_GAIN = Operator(FoldedGain, inline=True)
FOLDED_BIAS = Operator(FoldedBias, inline=True)
BATCH_STATISTICS = Operator(BatchStatistics, inline=True)
CORRECTED = Operator(Corrected, inline=True)
BATCH_NORM = (FOLDED_WEIGHT, FOLDED_GAIN, FOLDED_BIAS, BATCH_STATISTICS, CORRECTED)
FOLDS = frozenset(one.key for one in (FOLDED_WEIGHT, FOLDED_GAIN, FOLDED_BIAS))
"""What makes the parameters of a layer of its own and the running statistics."""
