"""Losses of clouds of points, where some points do not count: targets are float and say which.

Each is a mean over what counts; an event batch in which nothing counts gives zero.
"""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, LOSS, Operator


@script(LOSS, default_opset=op)
def Focal(logits: FLOAT, target: FLOAT, gamma: float = 2.0):
    """Mean of -(1 - p)^gamma log p over the targets 0 and 1, p the probability of the truth; others are left out.

    Lin et al., arXiv:1708.02002, equation 4; gamma = 0 is binary cross entropy. What counts and how much is there for
    the gradient.
    """
    power = op.Constant(value_float=gamma)
    counted = op.Cast(target >= 0.0, to=1)
    share = counted / op.Max(op.ReduceSum(counted), 1.0)
    signed = logits * (2.0 * target - 1.0)
    log_p = op.Min(signed, 0.0) - op.Log(1.0 + op.Exp(op.Neg(op.Abs(signed))))
    loss = op.Neg(op.ReduceSum(share * op.Pow(op.Sigmoid(op.Neg(signed)), power) * log_p, keepdims=0))
    return loss, share


@script(GRADIENT, default_opset=op)
def FocalGrad(dloss: FLOAT, logits: FLOAT, target: FLOAT, share: FLOAT, gamma: float = 2.0) -> FLOAT:
    """dloss * share * s (1 - p)^gamma (gamma p log p - (1 - p)), s = 1 for a target of one and -1 for zero."""
    power = op.Constant(value_float=gamma)
    sign = 2.0 * target - 1.0
    signed = logits * sign
    log_p = op.Min(signed, 0.0) - op.Log(1.0 + op.Exp(op.Neg(op.Abs(signed))))
    wrong = op.Sigmoid(op.Neg(signed))
    slope = op.Pow(wrong, power) * (power * op.Sigmoid(signed) * log_p - wrong)
    return dloss * share * sign * slope


@script(LOSS, default_opset=op)
def InfoNce(embedding: FLOAT, target: FLOAT, temperature: float = 0.05, width: float = 0.75, radius: float = 1.0):
    """Contrastive loss of embeddings [events, points, n] with targets [events, points, 3]: cluster and position.

    Clusters count from 0; -1 is a point of none, and -2 is padding. With s = exp(-|a - b| / (2 width²)) / temperature,
    the mean over the pairs of a cluster, then over clusters, of -log(exp(s) / (exp(s) + sum over others of exp(s))):
    others are the points of other clusters or of none that lie within `radius` of a pair's first point. Oord et al.,
    arXiv:1807.03748, with the similarity of Miao et al., arXiv:2402.12535.

    The weights of the pairs, the others, the similarities and the distances are there for the gradient.
    """
    heat = op.Constant(value_float=temperature)
    spread = op.Constant(value_float=width)
    reach = op.Constant(value_float=radius)
    cluster = op.Gather(target, [0], axis=2)
    clusters = op.Transpose(cluster, perm=[0, 2, 1])
    anchor = op.Cast(cluster >= 0.0, to=1)
    present = op.Cast(clusters >= -1.0, to=1)
    equal = op.Cast(cluster == clusters, to=1)
    first, second = op.Split(op.Gather(target, [1, 2], axis=2), axis=2, num_outputs=2)
    step = first - op.Transpose(first, perm=[0, 2, 1])
    climb = op.Abs(second - op.Transpose(second, perm=[0, 2, 1]))
    near = op.Cast(step * step + climb * climb <= reach * reach, to=1)
    others = anchor * present * near * (1.0 - equal)
    size = op.ReduceSum(anchor * equal, [2])
    pairs = op.Max(size * (size - 1.0), 1.0)
    number = op.Unsqueeze(op.Range(0, op.Gather(op.Shape(target), 1), 1), [0])
    distinct = op.Cast(op.Not(op.Equal(number, op.Transpose(number, perm=[1, 0]))), to=1)
    weight = anchor * equal * distinct / pairs
    weight = weight / op.Max(op.ReduceSum(weight), 1.0)

    square = op.ReduceSum(embedding * embedding, [2])
    product = op.MatMul(embedding, op.Transpose(embedding, perm=[0, 2, 1]))
    distance = op.Sqrt(op.Max(square + op.Transpose(square, perm=[0, 2, 1]) - 2.0 * product, 0.0) + 1e-6)
    similarity = op.Exp(op.Neg(distance) / (2.0 * spread * spread)) / heat
    # The largest similarity is 1 / temperature: less that, nothing overflows.
    force = op.Exp(similarity - 1.0 / heat)
    rest = op.ReduceSum(others * force, [2])
    loss = op.ReduceSum(weight * (op.Log(force + rest) - (similarity - 1.0 / heat)), keepdims=0)
    return loss, weight, others, similarity, distance


@script(GRADIENT, default_opset=op)
def InfoNceGrad(
    dloss: FLOAT,
    embedding: FLOAT,
    weight: FLOAT,
    others: FLOAT,
    similarity: FLOAT,
    distance: FLOAT,
    temperature: float = 0.05,
    width: float = 0.75,
) -> FLOAT:
    """By the chain rule through similarities and distances: sums of c (a - b), c the pull or push of a pair."""
    heat = op.Constant(value_float=temperature)
    spread = op.Constant(value_float=width)
    force = op.Exp(similarity - 1.0 / heat)
    rest = op.ReduceSum(others * force, [2])
    share = weight / (force + rest)
    dsimilarity = others * force * op.ReduceSum(share, [2]) - share * rest
    ddistance = dloss * dsimilarity * op.Neg(similarity) / (2.0 * spread * spread * distance)
    both = ddistance + op.Transpose(ddistance, perm=[0, 2, 1])
    return op.ReduceSum(both, [2]) * embedding - op.MatMul(both, embedding)


FOCAL = Operator(Focal, FocalGrad, ("GO(0)", "I(0)", "I(1)", "O(1)"))
INFO_NCE = Operator(InfoNce, InfoNceGrad, ("GO(0)", "I(0)", "O(1)", "O(2)", "O(3)", "O(4)"))
