"""What MDMM constrains: functions of a weight, outputs first, each with its penalty and its score."""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import PENALTY, SCORE, Operator

# The penalties' bodies are differentiated as they stand, so constants are written out: a bare number becomes a
# CastLike, which has no gradient.


@script(PENALTY, default_opset=op)
def MDMMConstraint(
    metric: FLOAT,
    lambda_: FLOAT,
    previous: FLOAT,
    target: float = 0.0,
    above: float = 1.0,
    below: float = 1.0,
    rate: float = 0.01,
    scale: float = 10.0,
    damping: float = 1.0,
):
    """Penalty scale (lam I + damping I²/2), the next multiplier lam = lambda + rate P, and the infeasibility I.

    I = above max(g - target, 0) + below max(target - g, 0); P is the infeasibility of the step before.
    """
    excess = op.Expand(metric, op.Shape(lambda_)) - op.Constant(value_float=target)
    over = op.Constant(value_float=above) * op.Relu(excess)
    infeasibility = over + op.Constant(value_float=below) * op.Relu(op.Neg(excess))
    multiplier = lambda_ + op.Constant(value_float=rate) * previous
    damped = op.Constant(value_float=0.5) * op.Constant(value_float=damping) * infeasibility
    penalty = op.ReduceSum(op.Constant(value_float=scale) * infeasibility * (multiplier + damped), keepdims=0)
    return penalty, multiplier, infeasibility


@script(PENALTY, default_opset=op)
def MDMMZeroShare(squares: FLOAT, epsilon: float = 1e-3, smooth: float = 0.0):
    """The share of norms up to epsilon, without a gradient; the mean of exp(-100 norm²) where `smooth` is 1, not 0."""
    share = op.Constant(value_float=smooth)
    near = op.Exp(op.Constant(value_float=-100.0) * squares)
    zero = op.Cast(op.Sqrt(squares) <= op.Constant(value_float=epsilon), to=1)
    return op.ReduceMean(share * near + (op.Constant(value_float=1.0) - share) * zero, keepdims=0)


@script(PENALTY, default_opset=op)
def MDMMUnstructured(
    weight: FLOAT,
    lambda_: FLOAT,
    previous: FLOAT,
    epsilon: float = 1e-3,
    smooth: float = 0.0,
    target_sparsity: float = 0.9,
    summed: float = 0.0,
    target: float = 0.0,
    above: float = 1.0,
    below: float = 1.0,
    rate: float = 0.01,
    scale: float = 10.0,
    damping: float = 1.0,
):
    """g = (target_sparsity² - zero share²) mean |w|, or with sum |w| where `summed` is 1 instead of 0."""
    zero = MDMMZeroShare(weight * weight, epsilon=epsilon, smooth=smooth)
    sparsity = op.Constant(value_float=target_sparsity)
    count = op.Pow(op.Cast(op.Size(weight), to=1), op.Constant(value_float=summed))
    metric = (sparsity * sparsity - zero * zero) * op.ReduceMean(op.Abs(weight), keepdims=0) * count
    penalty, multiplier, infeasibility = MDMMConstraint(
        metric, lambda_, previous, target=target, above=above, below=below, rate=rate, scale=scale, damping=damping
    )
    return penalty, multiplier, infeasibility


@script(SCORE, default_opset=op)
def MDMMMagnitudeScore(weight: FLOAT, epsilon: float = 1e-3) -> FLOAT:
    """|w| - epsilon"""
    return op.Abs(weight) - op.Constant(value_float=epsilon)


@script(PENALTY, default_opset=op)
def MDMMBlockSquares(weight: FLOAT, block: int = 1):
    """Squared norms [outputs, blocks, 1] of `block` neighbouring inputs of an output; zeros fill the last."""
    rows = op.Flatten(weight, axis=1)
    width = op.Min(op.Constant(value_int=block), op.Shape(rows, start=1))
    missing = op.Mod(op.Neg(op.Shape(rows, start=1)), width)
    padded = op.Pad(rows, op.Concat(op.Constant(value_ints=[0, 0, 0]), missing, axis=0))
    form = op.Concat(op.Shape(rows, end=1), op.Constant(value_ints=[-1]), width, axis=0)
    blocks = op.Reshape(padded, form)
    return op.ReduceSum(blocks * blocks, op.Constant(value_ints=[-1]))


@script(PENALTY, default_opset=op)
def MDMMBlocks(
    weight: FLOAT,
    lambda_: FLOAT,
    previous: FLOAT,
    block: int = 1,
    epsilon: float = 1e-3,
    smooth: float = 0.0,
    target: float = 0.0,
    above: float = 1.0,
    below: float = 1.0,
    rate: float = 0.01,
    scale: float = 10.0,
    damping: float = 1.0,
):
    """g = the share of zero blocks."""
    metric = MDMMZeroShare(MDMMBlockSquares(weight, block=block), epsilon=epsilon, smooth=smooth)
    penalty, multiplier, infeasibility = MDMMConstraint(
        metric, lambda_, previous, target=target, above=above, below=below, rate=rate, scale=scale, damping=damping
    )
    return penalty, multiplier, infeasibility


@script(SCORE, default_opset=op)
def MDMMBlockScore(weight: FLOAT, block: int = 1, epsilon: float = 1e-3) -> FLOAT:
    """The block's norm - epsilon, for each of its weights."""
    score = op.Sqrt(MDMMBlockSquares(weight, block=block)) - op.Constant(value_float=epsilon)
    inputs = op.Shape(op.Flatten(weight, axis=1), start=1)
    width = op.Min(op.Constant(value_int=block), inputs)
    rows = op.Flatten(op.Expand(score, op.Concat(op.Constant(value_ints=[1, 1]), width, axis=0)), axis=1)
    kept = op.Slice(rows, op.Constant(value_ints=[0]), inputs, op.Constant(value_ints=[1]))
    return op.Reshape(kept, op.Shape(weight))


@script(PENALTY, default_opset=op)
def MDMMPatternDistances(
    weight: FLOAT,
    epsilon: float = 1e-3,
    num_patterns: int = 16,
    beta: float = 0.75,
    valued: float = 1.0,
    cosine: float = 0.0,
):
    """Distances [kernels, patterns] to the dominant patterns, and those [patterns, kernel size].

    A pattern is 1[|w| > epsilon]; dominant are the fewest most frequent ones that at least `beta` of the kernels have,
    the earlier of equally frequent ones first. A distance counts the differing places, each by its |w| where `valued`
    is 1; where `cosine` is 1, it is 1 - b·p / (|b| |p|). Only the valued one has a gradient.
    """
    one = op.Constant(value_float=1.0)
    size = op.Abs(op.Flatten(weight, axis=2))
    binary = op.Cast(size > op.Constant(value_float=epsilon), to=1)
    distinct, _first, _inverse, counts = op.Unique(binary, axis=0, sorted=0)
    frequencies, order = op.TopK(op.Cast(counts, to=1), op.Shape(counts))
    wanted = op.Constant(value_float=beta) * op.Cast(op.Shape(size, start=0, end=1), to=1)
    short = op.Cast(op.CumSum(frequencies, op.Constant(value_int=0)) < wanted, to=7)
    enough = op.ReduceSum(short) + op.Constant(value_ints=[1])
    number = op.Min(enough, op.Constant(value_int=num_patterns))
    patterns = op.Gather(distinct, op.Slice(order, op.Constant(value_ints=[0]), number), axis=0)
    kernels = op.Unsqueeze(binary, op.Constant(value_ints=[1]))
    differs = op.Abs(kernels - patterns)
    values = op.Constant(value_float=valued)
    worth = values * op.Unsqueeze(size, op.Constant(value_ints=[1])) + (one - values)
    places = op.ReduceSum(differs * worth, op.Constant(value_ints=[-1]), keepdims=0)
    turned = op.Transpose(patterns, perm=[1, 0])
    squares = op.ReduceSum(binary, op.Constant(value_ints=[1])) * op.ReduceSum(turned, op.Constant(value_ints=[0]))
    same = op.MatMul(binary, turned) / op.Sqrt(op.Max(squares, one))
    angle = op.ReduceMax(differs, op.Constant(value_ints=[-1]), keepdims=0) * (one - same)
    share = op.Constant(value_float=cosine)
    return (one - share) * places + share * angle, patterns


@script(PENALTY, default_opset=op)
def MDMMPatterns(
    weight: FLOAT,
    lambda_: FLOAT,
    previous: FLOAT,
    epsilon: float = 1e-3,
    num_patterns: int = 16,
    beta: float = 0.75,
    valued: float = 1.0,
    cosine: float = 0.0,
    target: float = 0.0,
    above: float = 1.0,
    below: float = 1.0,
    rate: float = 0.01,
    scale: float = 10.0,
    damping: float = 1.0,
):
    """g = the kernels' mean distance to their nearest dominant pattern, which is held."""
    distances, _patterns = MDMMPatternDistances(
        weight, epsilon=epsilon, num_patterns=num_patterns, beta=beta, valued=valued, cosine=cosine
    )
    metric = op.ReduceMean(op.GatherElements(distances, op.ArgMin(distances, axis=1), axis=1), keepdims=0)
    penalty, multiplier, infeasibility = MDMMConstraint(
        metric, lambda_, previous, target=target, above=above, below=below, rate=rate, scale=scale, damping=damping
    )
    return penalty, multiplier, infeasibility


@script(SCORE, default_opset=op)
def MDMMPatternScore(
    weight: FLOAT,
    epsilon: float = 1e-3,
    num_patterns: int = 16,
    beta: float = 0.75,
    valued: float = 1.0,
    cosine: float = 0.0,
) -> FLOAT:
    """1 where a kernel's nearest dominant pattern is, else 0."""
    distances, patterns = MDMMPatternDistances(
        weight, epsilon=epsilon, num_patterns=num_patterns, beta=beta, valued=valued, cosine=cosine
    )
    nearest = op.Gather(patterns, op.ArgMin(distances, axis=1, keepdims=0), axis=0)
    return op.Reshape(nearest, op.Shape(weight))


HELPERS = tuple(
    Operator(function, inline=True)
    for function in (MDMMConstraint, MDMMZeroShare, MDMMBlockSquares, MDMMPatternDistances)
)
"""What the others call."""
UNSTRUCTURED = (Operator(MDMMUnstructured, inline=True), Operator(MDMMMagnitudeScore))
BLOCKS = (Operator(MDMMBlocks, inline=True), Operator(MDMMBlockScore))
PATTERNS = (Operator(MDMMPatterns, inline=True), Operator(MDMMPatternScore))
