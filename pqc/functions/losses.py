"""Losses: logits or predictions and targets in, one scalar out, each with its gradient.

Every loss is a mean: over the positions for `CrossEntropy` and `Divergence`, over what counts for those of points, over
all elements for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxscript import FLOAT, INT64, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, LOSS, Operator
from pqc.functions.point_losses import FOCAL, INFO_NCE


@script(LOSS, default_opset=op)
def CrossEntropy(logits: FLOAT, target: INT64, smoothing: float = 0.0):
    """Cross entropy of logits [..., classes] with labels [...]; `smoothing` goes evenly to all classes.

    The logarithms of the probabilities and the one-hot labels are there for the gradient.
    """
    log_p = op.LogSoftmax(logits, axis=-1)
    classes = op.Shape(logits, start=-1)
    one_hot = op.Gather(op.EyeLike(op.Expand(0.0, op.Concat(classes, classes, axis=0))), target, axis=0)
    share = op.Constant(value_float=smoothing)
    count = op.Cast(op.ReduceProd(op.Shape(target), keepdims=0), to=1)
    picked = op.ReduceSum(log_p * one_hot, keepdims=0) / count
    if op.Constant(value_float=smoothing) == 0.0:
        loss = op.Neg(picked)
    else:
        loss = (share - 1.0) * picked - share * op.ReduceMean(log_p, keepdims=0)
    return loss, log_p, one_hot


@script(GRADIENT, default_opset=op)
def CrossEntropyGrad(dloss: FLOAT, target: INT64, log_p: FLOAT, one_hot: FLOAT, smoothing: float = 0.0) -> FLOAT:
    """dloss * (softmax - smoothed one-hot) / positions."""
    share = op.Constant(value_float=smoothing)
    if op.Constant(value_float=smoothing) == 0.0:
        wanted = op.Identity(one_hot)
    else:
        wanted = (1.0 - share) * one_hot + share / op.Cast(op.Shape(log_p, start=-1), to=1)
    return (op.Exp(log_p) - wanted) * (dloss / op.Cast(op.ReduceProd(op.Shape(target), keepdims=0), to=1))


@script(LOSS, default_opset=op)
def BinaryCrossEntropyWithLogits(logits: FLOAT, target: FLOAT) -> FLOAT:
    """max(x, 0) - x t + log(1 + exp(-|x|)), which cannot overflow."""
    tail = op.Log(1.0 + op.Exp(op.Neg(op.Abs(logits))))
    return op.ReduceMean(op.Relu(logits) - logits * target + tail, keepdims=0)


@script(GRADIENT, default_opset=op)
def BinaryCrossEntropyWithLogitsGrad(dloss: FLOAT, logits: FLOAT, target: FLOAT) -> FLOAT:
    """dloss * (sigmoid(x) - t) / elements."""
    return (op.Sigmoid(logits) - target) * (dloss / op.Cast(op.ReduceProd(op.Shape(target), keepdims=0), to=1))


@script(LOSS, default_opset=op)
def MeanSquaredError(prediction: FLOAT, target: FLOAT) -> FLOAT:
    """mean((y - t)²)"""
    error = prediction - target
    return op.ReduceMean(error * error, keepdims=0)


@script(GRADIENT, default_opset=op)
def MeanSquaredErrorGrad(dloss: FLOAT, prediction: FLOAT, target: FLOAT) -> FLOAT:
    """dloss * 2 (y - t) / elements."""
    return (prediction - target) * (2.0 * dloss / op.Cast(op.ReduceProd(op.Shape(target), keepdims=0), to=1))


@script(LOSS, default_opset=op)
def MeanAbsoluteError(prediction: FLOAT, target: FLOAT) -> FLOAT:
    """mean(|y - t|)"""
    return op.ReduceMean(op.Abs(prediction - target), keepdims=0)


@script(GRADIENT, default_opset=op)
def MeanAbsoluteErrorGrad(dloss: FLOAT, prediction: FLOAT, target: FLOAT) -> FLOAT:
    """dloss * sign(y - t) / elements, 0 where y = t."""
    return op.Sign(prediction - target) * (dloss / op.Cast(op.ReduceProd(op.Shape(target), keepdims=0), to=1))


@script(LOSS, default_opset=op)
def Huber(prediction: FLOAT, target: FLOAT, delta: float = 1.0) -> FLOAT:
    """mean(e²/2 where |e| <= delta, else delta (|e| - delta/2)), written with c = min(|e|, delta)."""
    bound = op.Constant(value_float=delta)
    error = op.Abs(prediction - target)
    c = op.Min(error, bound)
    return op.ReduceMean(c * (error - 0.5 * c), keepdims=0)


@script(GRADIENT, default_opset=op)
def HuberGrad(dloss: FLOAT, prediction: FLOAT, target: FLOAT, delta: float = 1.0) -> FLOAT:
    """dloss * clip(y - t, -delta, delta) / elements."""
    bound = op.Constant(value_float=delta)
    error = op.Max(op.Min(prediction - target, bound), op.Neg(bound))
    return error * (dloss / op.Cast(op.ReduceProd(op.Shape(target), keepdims=0), to=1))


@script(LOSS, default_opset=op)
def GaussianLikelihood(prediction: FLOAT, target: FLOAT):
    """Negative logarithm of a Gaussian's density, averaged over the positions, with all covariances estimated.

    The prediction [..., k + k (k + 1) / 2] is k means m and the lower triangle, row by row, of a matrix L whose
    diagonal is stored as its logarithm; L' L is the inverse of the covariance. With z = L (t - m), the value is
    |z|²/2 - sum log L_ii + k/2 log 2 pi. The rest is there for the gradient: z for each entry of the triangle, the
    entries of L, and the differences t - m that they multiply.
    """
    count = op.Shape(target, start=-1)
    last = op.Constant(value_ints=[-1])
    means = op.Slice(prediction, op.Constant(value_ints=[0]), count, last)
    stored = op.Slice(prediction, count, op.Shape(prediction, start=-1), last)
    identity = op.EyeLike(op.Expand(0.0, op.Concat(count, count, axis=0)))
    triangle = op.NonZero(op.Trilu(op.Expand(1.0, op.Concat(count, count, axis=0)), upper=0))
    of_row = op.Gather(identity, op.Gather(triangle, 0, axis=0), axis=0)
    of_column = op.Gather(identity, op.Gather(triangle, 1, axis=0), axis=0)
    diagonal = op.ReduceSum(of_row * of_column, last, keepdims=0)
    entries = op.Where(diagonal > 0.5, op.Exp(stored), stored)
    differences = op.Gather(target - means, op.Gather(triangle, 1, axis=0), axis=-1)
    z = op.MatMul(entries * differences, of_row)
    positions = op.Cast(op.ReduceProd(op.Shape(target, end=-1), keepdims=0), to=1)
    total = 0.5 * op.ReduceSum(z * z, keepdims=0) - op.ReduceSum(stored * diagonal, keepdims=0)
    constant = op.Cast(op.Squeeze(count), to=1) * 0.9189385332046727
    return total / positions + constant, op.MatMul(z, op.Transpose(of_row)), entries, differences


@script(GRADIENT, default_opset=op)
def GaussianLikelihoodGrad(dloss: FLOAT, target: FLOAT, z: FLOAT, entries: FLOAT, differences: FLOAT) -> FLOAT:
    """dloss / positions * (-L' z for the means; z (t - m)', times L_ii and less one on the diagonal, for L)."""
    count = op.Shape(target, start=-1)
    triangle = op.NonZero(op.Trilu(op.Expand(1.0, op.Concat(count, count, axis=0)), upper=0))
    rows, columns = op.Gather(triangle, 0, axis=0), op.Gather(triangle, 1, axis=0)
    identity = op.EyeLike(op.Expand(0.0, op.Concat(count, count, axis=0)))
    of_means = op.Neg(op.MatMul(z * entries, op.Gather(identity, columns, axis=0)))
    products = z * differences
    of_factor = op.Where(op.Equal(rows, columns), products * entries - 1.0, products)
    positions = op.Cast(op.ReduceProd(op.Shape(target, end=-1), keepdims=0), to=1)
    return op.Concat(of_means, of_factor, axis=-1) * (dloss / positions)


@script(LOSS, default_opset=op)
def Divergence(logits: FLOAT, teacher: FLOAT, temperature: float = 1.0):
    """T² KL(softmax(teacher / T) || softmax(logits / T)) of logits [..., classes].

    T² keeps the gradient's size whatever the temperature. The logarithms of the student's probabilities and the
    teacher's probabilities are there for the gradient.
    """
    heat = op.Constant(value_float=temperature)
    log_p = op.LogSoftmax(logits / heat, axis=-1)
    log_q = op.LogSoftmax(teacher / heat, axis=-1)
    q = op.Exp(log_q)
    count = op.Cast(op.ReduceProd(op.Shape(logits, end=-1), keepdims=0), to=1)
    loss = op.ReduceSum(q * (log_q - log_p), keepdims=0) * (heat * heat / count)
    return loss, log_p, q


@script(GRADIENT, default_opset=op)
def DivergenceGrad(dloss: FLOAT, log_p: FLOAT, q: FLOAT, temperature: float = 1.0) -> FLOAT:
    """dloss * T (softmax(logits / T) - softmax(teacher / T)) / positions; the teacher gets none."""
    heat = op.Constant(value_float=temperature)
    count = op.Cast(op.ReduceProd(op.Shape(q, end=-1), keepdims=0), to=1)
    return (op.Exp(log_p) - q) * (dloss * heat / count)


_ARGUMENTS = ("GO(0)", "I(0)", "I(1)")

LOSSES: dict[str, Operator] = {
    "cross-entropy": Operator(CrossEntropy, CrossEntropyGrad, ("GO(0)", "I(1)", "O(1)", "O(2)")),
    "binary-cross-entropy": Operator(BinaryCrossEntropyWithLogits, BinaryCrossEntropyWithLogitsGrad, _ARGUMENTS),
    "mse": Operator(MeanSquaredError, MeanSquaredErrorGrad, _ARGUMENTS),
    "l1": Operator(MeanAbsoluteError, MeanAbsoluteErrorGrad, _ARGUMENTS),
    "huber": Operator(Huber, HuberGrad, _ARGUMENTS),
    "gaussian": Operator(GaussianLikelihood, GaussianLikelihoodGrad, ("GO(0)", "I(1)", "O(1)", "O(2)", "O(3)")),
    "focal": FOCAL,
    "info-nce": INFO_NCE,
}

_POSITIVE = ("a positive number", lambda value: 0 < value < math.inf)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "smoothing": ("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "gamma": ("a number from 0 on", lambda value: 0 <= value < math.inf),
    **dict.fromkeys(("delta", "temperature", "width", "radius"), _POSITIVE),
}
"""What the options of losses may be, as float32: in words, and as a condition."""

RECONSTRUCTION = ("mse", "l1", "huber")
"""What may hold an output against the input."""

Dims = Sequence[Any]


def _without_classes(dims: Dims) -> Dims:
    return dims[:-1]


def _means(dims: Dims) -> Dims:
    """k of the k + k (k + 1) / 2 outputs."""
    if not dims or not isinstance(dims[-1], int):
        return dims
    return (*dims[:-1], (math.isqrt(9 + 8 * dims[-1]) - 3) // 2)


def _points(dims: Dims) -> Dims:
    """A number and two coordinates for each."""
    return (*dims[:-1], 3)


@dataclass(frozen=True)
class Target:
    """What a loss is told about each row.

    Args:
        shape: the target's dimensions for the output's, both without the rows or both with them.
        classes: class numbers, one for each position of the output, which has the classes on its last axis.
        needed: zeros cannot stand for a target that is missing.
    """

    shape: Callable[[Dims], Dims] = tuple
    classes: bool = False
    needed: bool = False


_TARGETS = {
    "cross-entropy": Target(_without_classes, classes=True),
    "gaussian": Target(_means),
    "info-nce": Target(_points, needed=True),
}


def target_of(loss: str) -> Target:
    """What the target of a loss is: numbers of the output's shape, where nothing else is said."""
    return _TARGETS.get(loss, Target())


DISTILLATION: dict[str, Operator] = {
    "kl": Operator(Divergence, DivergenceGrad, ("GO(0)", "O(1)", "O(2)")),
    "mse": LOSSES["mse"],
}
"""What holds a student's output against its teacher's, which is the second input and is not trained."""
