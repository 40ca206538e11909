"""AutoSparse (Kundu et al., arXiv 2304.06941)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, MASK, PENALTY, SCORE, UPDATE, Operator
from pqc.method import Attribute, Call, Curve, Method, State, constant
from pqc.methods.thresholds import Threshold


@script(MASK, default_opset=op)
def AutoSparse(weight: FLOAT, threshold: FLOAT, alpha: FLOAT, pressure: FLOAT, backward_sparsity: int = 0) -> FLOAT:
    """max(|w| - sigmoid(t), 0) / |w|, so that the pruned weight is sign(w) max(|w| - sigmoid(t), 0); 0 where w is.

    The node carries backward_sparsity for its gradient's sake.
    """
    size = op.Abs(weight)
    return op.Max(size - op.Sigmoid(threshold), 0.0) / op.Max(size, 1e-30)


@script(GRADIENT, default_opset=op)
def AutoSparseGrad(
    dmask: FLOAT, weight: FLOAT, threshold: FLOAT, alpha: FLOAT, mask: FLOAT, backward_sparsity: int = 0
):
    """The pruned weight's gradient is 1 where it is not zero and alpha where it is, not that of the formula.

    The product with the mask gives g m already, with g the pruned weight's gradient and dmask = g w; here comes the
    rest. With backward_sparsity only the larger half of |w| - sigmoid(t) in a layer passes any.
    """
    gate = op.Sigmoid(threshold)
    excess = op.Abs(weight) - gate
    alive = op.Cast(excess > 0.0, to=1)
    if op.Constant(value_int=backward_sparsity) == 1:
        flat = op.Reshape(excess, op.Constant(value_ints=[-1]))
        half = op.Max(op.Size(flat) / 2, 1)
        largest, _ = op.TopK(flat, op.Reshape(half, op.Constant(value_ints=[1])), axis=0)
        factor = (alive + (1.0 - alive) * alpha) * op.Cast(excess >= op.ReduceMin(largest, keepdims=0), to=1)
    else:
        factor = alive + (1.0 - alive) * alpha
    nonzero = op.Cast(op.Abs(weight) > 0.0, to=1)
    g = dmask / (weight + (1.0 - nonzero)) * nonzero
    count = op.Reshape(op.Size(threshold), op.Constant(value_ints=[1]))
    shared = op.Reshape(op.Sign(weight) * g * factor, op.Concat(count, op.Constant(value_ints=[-1]), axis=0))
    total = op.Reshape(op.ReduceSum(shared, op.Constant(value_ints=[1]), keepdims=0), op.Shape(threshold))
    return g * (factor - mask), op.Neg(total) * gate * (1.0 - gate)


@script(SCORE, default_opset=op)
def AutoSparseScore(weight: FLOAT, threshold: FLOAT) -> FLOAT:
    """|w| - sigmoid(t)"""
    return op.Abs(weight) - op.Sigmoid(threshold)


@script(UPDATE, default_opset=op)
def AutoSparseShrunk(weight: FLOAT, threshold: FLOAT) -> FLOAT:
    """sign(w) max(|w| - sigmoid(t), 0)"""
    return op.Sign(weight) * op.Max(op.Abs(weight) - op.Sigmoid(threshold), 0.0)


@script(PENALTY, default_opset=op)
def AutoSparsePenalty(threshold: FLOAT, pressure: FLOAT) -> FLOAT:
    """-pressure * sum t"""
    return op.Neg(pressure * op.ReduceSum(threshold, keepdims=0))


@script(GRADIENT, default_opset=op)
def AutoSparsePenaltyGrad(dpenalty: FLOAT, threshold: FLOAT, pressure: FLOAT) -> FLOAT:
    """-pressure, for every threshold"""
    return op.Expand(op.Neg(dpenalty * pressure), op.Shape(threshold))


MASK_OPERATOR = Operator(
    AutoSparse, AutoSparseGrad, arguments=("GO(0)", "I(0)", "I(1)", "I(2)", "O(0)"), results=("GI(0)", "GI(1)")
)
SCORE_OPERATOR = Operator(AutoSparseScore)
SHRUNK_OPERATOR = Operator(AutoSparseShrunk)
PENALTY_OPERATOR = Operator(AutoSparsePenalty, AutoSparsePenaltyGrad, arguments=("GO(0)", "I(0)", "I(1)"))


@dataclass(frozen=True)
class AutoSparseMethod(Method):
    """Shrink weights by a trained threshold, with a gradient for pruned weights that fades.

    Args:
        alpha: what part of its gradient a pruned weight gets at first; it fades by the control `alpha`.
        alpha_reset_epoch: after this epoch of a round pruned weights get none.
        backward_sparsity: let only the larger half of |w| - sigmoid(t) in a layer pass a gradient.
        threshold_init: the first t; the threshold on |w| is its sigmoid, 0.0067 for -5.
        threshold_type: one t for each layer (`layerwise`), output (`channelwise`) or weight (`weightwise`).
        pressure: the weight of the penalty that raises the thresholds; 0 leaves the penalty out.
        shrink: keep the weights shrunk by their threshold when masks freeze, instead of giving the kept ones their
            full size.
    """

    title: ClassVar[str] = "autosparse"
    operators: ClassVar[tuple[Operator, ...]] = (MASK_OPERATOR, SCORE_OPERATOR, SHRUNK_OPERATOR, PENALTY_OPERATOR)
    strength: ClassVar[str | None] = "pressure"

    alpha: float = 0.5
    alpha_reset_epoch: float = 90
    backward_sparsity: bool = False
    threshold_init: float = -5.0
    threshold_type: str = "channelwise"
    pressure: float = 0.0
    shrink: bool = False

    def __post_init__(self) -> None:
        self._threshold()
        if self.alpha < 0:
            raise ValueError(f"alpha is not negative, as {self.alpha} is")

    def _threshold(self) -> Threshold:
        return Threshold(self.threshold_type, self.threshold_init)

    @property
    def elementwise(self) -> bool:
        return self.threshold_type == "weightwise" and not self.backward_sparsity

    def mask(self) -> Call:
        return Call(MASK_OPERATOR, ("weight", "threshold", "alpha", "pressure"))

    def score(self) -> Call:
        return Call(SCORE_OPERATOR, ("weight", "threshold"))

    def hard_weight(self) -> Call | None:
        return Call(SHRUNK_OPERATOR, ("weight", "threshold")) if self.shrink else None

    def penalty(self) -> Call | None:
        return Call(PENALTY_OPERATOR, ("threshold", "pressure")) if self.pressure else None

    def aim(self, sparsity: float) -> Method:
        return replace(self, pressure=self.pressure or 1e-3)

    def states(self) -> tuple[State, ...]:
        return (self._threshold().state(),)

    def controls(self) -> dict[str, Curve]:
        alpha = f"autosparse({constant(self.alpha)}, {constant(self.alpha_reset_epoch)})"
        return {"alpha": alpha, "pressure": constant(self.pressure)}

    def attributes(self) -> dict[str, Attribute]:
        return {"backward_sparsity": int(self.backward_sparsity)}
