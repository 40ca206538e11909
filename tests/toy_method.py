"""A pruning method in one file, as CONTRIBUTING.md describes it: weights that change their sign go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, MASK, SCORE, UPDATE, Operator
from pqc.method import Call, Curve, Method, State


@script(MASK, default_opset=op)
def SameSign(weight: FLOAT, first: FLOAT, hardness: FLOAT) -> FLOAT:
    """sigmoid(hardness w first), first being the sign that the weight began with"""
    return op.Sigmoid(hardness * weight * first)


@script(GRADIENT, default_opset=op)
def SameSignGrad(dmask: FLOAT, first: FLOAT, hardness: FLOAT, mask: FLOAT) -> FLOAT:
    """dm/dw = hardness first m (1 - m)"""
    return dmask * hardness * first * mask * (1.0 - mask)


@script(SCORE, default_opset=op)
def SameSignScore(weight: FLOAT, first: FLOAT) -> FLOAT:
    """w first: above zero where the sign is the same"""
    return weight * first


@script(UPDATE, default_opset=op)
def SameSignStart(weight: FLOAT) -> FLOAT:
    """The signs that training begins with."""
    return op.Sign(weight)


MASK_OPERATOR = Operator(SameSign, SameSignGrad, arguments=("GO(0)", "I(1)", "I(2)", "O(0)"))
SCORE_OPERATOR, START_OPERATOR = Operator(SameSignScore), Operator(SameSignStart)


@dataclass(frozen=True)
class SameSignMethod(Method):
    """Keep the weights that have the sign they began with."""

    title: ClassVar[str] = "same_sign"
    operators: ClassVar[tuple[Operator, ...]] = (MASK_OPERATOR, SCORE_OPERATOR, START_OPERATOR)

    final: float = 100.0

    @property
    def elementwise(self) -> bool:
        return True

    def mask(self) -> Call:
        return Call(MASK_OPERATOR, ("weight", "first", "hardness"))

    def score(self) -> Call:
        return Call(SCORE_OPERATOR, ("weight", "first"))

    def begin_of_training(self) -> Call | None:
        return Call(START_OPERATOR, ("weight",), sets=("first",))

    def states(self) -> tuple[State, ...]:
        return (State("first", lambda weight: np.sign(weight), trained=False),)

    def controls(self) -> dict[str, Curve]:
        return {"hardness": f"exp(1, {self.final:g})"}
