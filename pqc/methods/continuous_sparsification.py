"""Continuous sparsification (Savarese, Silva & Maire, arXiv 1912.04427)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, MASK, PENALTY, SCORE, UPDATE, Operator
from pqc.method import Attribute, Call, Curve, Method, State, constant


@script(MASK, default_opset=op)
def ContinuousSparsification(s: FLOAT, beta: FLOAT, threshold_decay: FLOAT, scale: float = 2.0) -> FLOAT:
    """sigmoid(beta s) * scale, with scale = 1 / sigmoid(s0), so that the mask starts at 1."""
    return op.Sigmoid(beta * s) * op.Constant(value_float=scale)


@script(GRADIENT, default_opset=op)
def ContinuousSparsificationGrad(dmask: FLOAT, beta: FLOAT, mask: FLOAT, scale: float = 2.0) -> FLOAT:
    """dm/ds = beta m (1 - m/scale)"""
    return dmask * beta * mask * (1.0 - mask / op.Constant(value_float=scale))


@script(SCORE, default_opset=op)
def ContinuousSparsificationScore(s: FLOAT) -> FLOAT:
    """s: an untrained s = 0 is pruned."""
    return op.Identity(s)


@script(PENALTY, default_opset=op)
def ContinuousSparsificationPenalty(mask: FLOAT, threshold_decay: FLOAT) -> FLOAT:
    """threshold_decay * sum |m|, and m is never negative"""
    return op.ReduceSum(mask, keepdims=0) * threshold_decay


@script(GRADIENT, default_opset=op)
def ContinuousSparsificationPenaltyGrad(dpenalty: FLOAT, mask: FLOAT, threshold_decay: FLOAT) -> FLOAT:
    """threshold_decay, for every element"""
    return op.Expand(dpenalty * threshold_decay, op.Shape(mask))


@script(UPDATE, default_opset=op)
def ContinuousSparsificationEndOfRound(s: FLOAT, beta: FLOAT, threshold_init: float = 0.0) -> FLOAT:
    """min(beta s, s0): what was kept starts the next round equal, what was pruned stays pruned."""
    return op.Min(beta * s, op.Constant(value_float=threshold_init))


MASK_OPERATOR = Operator(ContinuousSparsification, ContinuousSparsificationGrad, arguments=("GO(0)", "I(1)", "O(0)"))
SCORE_OPERATOR = Operator(ContinuousSparsificationScore)
PENALTY_OPERATOR = Operator(
    ContinuousSparsificationPenalty, ContinuousSparsificationPenaltyGrad, arguments=("GO(0)", "I(0)", "I(1)")
)
END_OF_ROUND_OPERATOR = Operator(ContinuousSparsificationEndOfRound)


@dataclass(frozen=True)
class ContinuousSparsificationMethod(Method):
    """Learn a gate per weight whose sigmoid hardens as beta grows.

    Args:
        final_temp: beta in the last epoch of a round; it starts at 1.
        threshold_init: s at the start; a positive one keeps what training does not push down.
        threshold_decay: the weight of the penalty, the sum of all masks; 0 leaves the penalty out.
    """

    title: ClassVar[str] = "cs"
    operators: ClassVar[tuple[Operator, ...]] = (
        MASK_OPERATOR,
        SCORE_OPERATOR,
        PENALTY_OPERATOR,
        END_OF_ROUND_OPERATOR,
    )
    strength: ClassVar[str | None] = "threshold_decay"

    final_temp: float = 200.0
    threshold_init: float = 0.0
    threshold_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.final_temp <= 0 or not np.isfinite(self.final_temp):
            raise ValueError(f"final_temp is a positive number, not {self.final_temp}")
        if not np.isfinite([self.threshold_init, self.threshold_decay]).all():
            raise ValueError("threshold_init and threshold_decay are finite numbers")

    @property
    def elementwise(self) -> bool:
        return True

    def mask(self) -> Call:
        return Call(MASK_OPERATOR, ("s", "beta", "threshold_decay"))

    def score(self) -> Call:
        return Call(SCORE_OPERATOR, ("s",))

    def penalty(self) -> Call | None:
        return Call(PENALTY_OPERATOR, ("mask", "threshold_decay")) if self.threshold_decay else None

    def end_of_round(self) -> Call | None:
        return Call(END_OF_ROUND_OPERATOR, ("s", "beta"), sets=("s",))

    def aim(self, sparsity: float) -> Method:
        return replace(self, threshold_decay=self.threshold_decay or 1e-6)

    def states(self) -> tuple[State, ...]:
        start = self.threshold_init
        return (State("s", lambda weight: np.full(weight.shape, start, np.float32)),)

    def controls(self) -> dict[str, Curve]:
        return {"beta": f"exp(1, {constant(self.final_temp)})", "threshold_decay": constant(self.threshold_decay)}

    def attributes(self) -> dict[str, Attribute]:
        return {"scale": float(1.0 + np.exp(-self.threshold_init)), "threshold_init": self.threshold_init}
