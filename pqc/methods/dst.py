"""Dynamic sparse training (Liu et al., arXiv 2005.06870)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, MASK, PENALTY, SCORE, UPDATE, Operator
from pqc.method import Attribute, Call, Curve, Method, State, constant
from pqc.methods.structure import check_share
from pqc.methods.thresholds import Threshold


@script(MASK, default_opset=op)
def DynamicSparse(weight: FLOAT, threshold: FLOAT, alpha: FLOAT) -> FLOAT:
    """1 where |w| > t"""
    return op.Cast(op.Abs(weight) > threshold, to=1)


@script(GRADIENT, default_opset=op)
def DynamicSparseGrad(dmask: FLOAT, weight: FLOAT, threshold: FLOAT):
    """With x = |w| - t: dm/dx = 2 - 4|x| up to 0.4, 0.4 up to 1, else 0; summed over what shares a threshold."""
    distance = op.Abs(op.Abs(weight) - threshold)
    near = op.Max(2.0 - 4.0 * distance, 0.4) * op.Cast(distance <= 1.0, to=1)
    dx = dmask * near
    count = op.Reshape(op.Size(threshold), op.Constant(value_ints=[1]))
    shared = op.Reshape(dx, op.Concat(count, op.Constant(value_ints=[-1]), axis=0))
    total = op.ReduceSum(shared, op.Constant(value_ints=[1]), keepdims=0)
    return dx * op.Sign(weight), op.Neg(op.Reshape(total, op.Shape(threshold)))


@script(SCORE, default_opset=op)
def DynamicSparseScore(weight: FLOAT, threshold: FLOAT) -> FLOAT:
    """|w| - t"""
    return op.Abs(weight) - threshold


@script(PENALTY, default_opset=op)
def DynamicSparsePenalty(threshold: FLOAT, alpha: FLOAT) -> FLOAT:
    """alpha * sum exp(-t)"""
    return alpha * op.ReduceSum(op.Exp(op.Neg(threshold)), keepdims=0)


@script(GRADIENT, default_opset=op)
def DynamicSparsePenaltyGrad(dpenalty: FLOAT, threshold: FLOAT, alpha: FLOAT) -> FLOAT:
    """-alpha exp(-t)"""
    return op.Neg(dpenalty * alpha) * op.Exp(op.Neg(threshold))


@script(UPDATE, default_opset=op)
def DynamicSparseUpdate(weight: FLOAT, threshold: FLOAT, max_pruning_pct: float = 0.99) -> FLOAT:
    """0 where a layer has lost so large a share of its weights, else t."""
    kept = op.ReduceMean(op.Cast(op.Abs(weight) > threshold, to=1), keepdims=0)
    return threshold * op.Cast(1.0 - kept < op.Constant(value_float=max_pruning_pct), to=1)


MASK_OPERATOR = Operator(
    DynamicSparse, DynamicSparseGrad, arguments=("GO(0)", "I(0)", "I(1)"), results=("GI(0)", "GI(1)")
)
SCORE_OPERATOR = Operator(DynamicSparseScore)
PENALTY_OPERATOR = Operator(DynamicSparsePenalty, DynamicSparsePenaltyGrad, arguments=("GO(0)", "I(0)", "I(1)"))
UPDATE_OPERATOR = Operator(DynamicSparseUpdate)


@dataclass(frozen=True)
class DynamicSparseTrainingMethod(Method):
    """Train thresholds on |w|, with a long-tailed estimate for the step's gradient.

    Args:
        alpha: the weight of the penalty that raises the thresholds.
        max_pruning_pct: where a layer has lost this share of its weights, its thresholds go back to 0.
        threshold_init: the thresholds at the start.
        threshold_type: one threshold for each layer (`layerwise`), output (`channelwise`) or weight (`weightwise`).
    """

    title: ClassVar[str] = "dst"
    operators: ClassVar[tuple[Operator, ...]] = (MASK_OPERATOR, SCORE_OPERATOR, PENALTY_OPERATOR, UPDATE_OPERATOR)
    strength: ClassVar[str | None] = "alpha"

    alpha: float = 5e-6
    max_pruning_pct: float = 0.99
    threshold_init: float = 0.0
    threshold_type: str = "channelwise"

    def __post_init__(self) -> None:
        check_share("max_pruning_pct", self.max_pruning_pct)
        self._threshold()

    def _threshold(self) -> Threshold:
        return Threshold(self.threshold_type, self.threshold_init)

    @property
    def elementwise(self) -> bool:
        return self.threshold_type == "weightwise"

    def mask(self) -> Call:
        return Call(MASK_OPERATOR, ("weight", "threshold", "alpha"))

    def score(self) -> Call:
        return Call(SCORE_OPERATOR, ("weight", "threshold"))

    def penalty(self) -> Call | None:
        return Call(PENALTY_OPERATOR, ("threshold", "alpha"))

    def update(self) -> Call | None:
        return Call(UPDATE_OPERATOR, ("weight", "threshold"), sets=("threshold",))

    def aim(self, sparsity: float) -> Method:
        return replace(self, alpha=max(self.alpha, 2e-4))

    def states(self) -> tuple[State, ...]:
        return (self._threshold().state(),)

    def controls(self) -> dict[str, Curve]:
        return {"alpha": constant(self.alpha)}

    def attributes(self) -> dict[str, Attribute]:
        return {"max_pruning_pct": self.max_pruning_pct}
