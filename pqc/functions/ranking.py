"""Masks by rank, exact to one unit; of equal scores the earlier is kept."""

from __future__ import annotations

from onnxscript import FLOAT, INT64, script
from onnxscript import opset21 as op

from pqc.functions.operator import RANKING, Operator


@script(RANKING, default_opset=op)
def KeepLargest(score: FLOAT, prune: FLOAT) -> FLOAT:
    """1 at all but the `prune` smallest scores, else 0, in the scores' shape."""
    flat = op.Reshape(score, [-1])
    keep = op.Size(flat) - op.Cast(prune, to=INT64.dtype)
    _, places = op.TopK(flat, op.Reshape(keep, [1]), axis=0)
    kept = op.ScatterElements(op.Expand(0.0, op.Shape(flat)), places, op.Expand(1.0, op.Shape(places)), axis=0)
    return op.Reshape(kept, op.Shape(score))


@script(RANKING, default_opset=op)
def KeepOfGroups(score: FLOAT, keep: int = 2, group: int = 4) -> FLOAT:
    """1 at the `keep` largest scores of every `group` neighbours, else 0; neighbours in row-major order."""
    width = op.Reshape(op.Constant(value_int=group), [1])
    groups = op.Reshape(score, op.Concat(op.Constant(value_ints=[-1]), width, axis=0))
    _, places = op.TopK(groups, op.Reshape(op.Constant(value_int=keep), [1]), axis=1)
    kept = op.ScatterElements(op.Expand(0.0, op.Shape(groups)), places, op.Expand(1.0, op.Shape(places)), axis=1)
    return op.Reshape(kept, op.Shape(score))


@script(RANKING, default_opset=op)
def OutputNorms(weight: FLOAT) -> FLOAT:
    """The Euclidean norm of each output's weights, [outputs, 1, …]; 1e-30 keeps its gradient finite at zero."""
    rows = op.Flatten(weight, axis=1)
    norms = op.Sqrt(op.ReduceSum(rows * rows, op.Constant(value_ints=[1]), keepdims=1) + op.Constant(value_float=1e-30))
    rank = op.Shape(op.Shape(weight))
    ones = op.Expand(op.Constant(value_ints=[1]), rank - 1)
    return op.Reshape(norms, op.Concat(op.Shape(weight, start=0, end=1), ones, axis=0))


@script(RANKING, default_opset=op)
def InputNorms(weight: FLOAT) -> FLOAT:
    """The Euclidean norm of each input channel's weights, [1, inputs, …]; 1e-30 keeps its gradient finite at zero."""
    shape = op.Shape(weight, start=0, end=2)
    cube = op.Reshape(weight, op.Concat(shape, op.Constant(value_ints=[-1]), axis=0))
    norms = op.Sqrt(
        op.ReduceSum(cube * cube, op.Constant(value_ints=[0, 2]), keepdims=1) + op.Constant(value_float=1e-30)
    )
    rank = op.Shape(op.Shape(weight))
    ones = op.Expand(op.Constant(value_ints=[1]), rank - 2)
    one = op.Constant(value_ints=[1])
    return op.Reshape(norms, op.Concat(one, op.Shape(weight, start=1, end=2), ones, axis=0))


RANKINGS = (
    Operator(KeepLargest),
    Operator(KeepOfGroups),
    Operator(OutputNorms, inline=True),
    Operator(InputNorms, inline=True),
)
