"""Activation pruning: outputs that are seldom positive go."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import MASK, SCORE, UPDATE, Operator
from pqc.functions.ranking import KeepLargest
from pqc.method import Attribute, Budget, Call, Curve, Method, State, constant
from pqc.methods.structure import SCOPES, STORED_MASK, check_choice, check_share, resolve_scope

UNMEASURED = 2.0
"""An activity that no output can have."""


@script(MASK, default_opset=op)
def Activation(
    mask: FLOAT, activity: FLOAT, total: FLOAT, count: FLOAT, epochs: FLOAT, prune: FLOAT, threshold: FLOAT
) -> FLOAT:
    """The stored mask, one entry for each output."""
    return op.Identity(mask)


@script(SCORE, default_opset=op)
def ActivationScore(activity: FLOAT, mask: FLOAT) -> FLOAT:
    """The share of rows in which an output was positive."""
    return op.Reshape(activity, op.Shape(mask))


@script(UPDATE, default_opset=op)
def ActivationUpdate(
    output: FLOAT,
    mask: FLOAT,
    activity: FLOAT,
    total: FLOAT,
    count: FLOAT,
    epochs: FLOAT,
    batches: float = 50.0,
    start_epoch: float = 0.0,
    by_rank: int = 0,
):
    """Add up how often outputs are positive; after so many batches their mean is the activity, and all starts anew."""
    now = op.Cast(epochs >= op.Constant(value_float=start_epoch), to=1)
    positive = op.ReduceMean(op.Cast(output > 0.0, to=1), op.Constant(value_ints=[0]), keepdims=0)
    added = total + now * positive
    after = count + now
    ready = op.Cast(after >= op.Constant(value_float=batches), to=1)
    if op.Constant(value_int=by_rank) == 1:
        new = ready * op.Reshape(mask, op.Shape(activity))
    else:
        new = op.Expand(ready, op.Shape(activity))
    measured = new * (added / op.Max(after, 1.0)) + (1.0 - new) * activity
    going = 1.0 - ready
    return measured, added * going, after * going, epochs * going


@script(UPDATE, default_opset=op)
def ActivationEndOfEpoch(mask: FLOAT, activity: FLOAT, epochs: FLOAT, threshold: FLOAT):
    """Keep the outputs whose activity is above the threshold."""
    return op.Reshape(op.Cast(activity > threshold, to=1), op.Shape(mask)), epochs + 1.0


@script(UPDATE, default_opset=op)
def ActivationCount(epochs: FLOAT) -> FLOAT:
    """One more epoch."""
    return epochs + 1.0


@script(UPDATE, default_opset=op)
def ActivationChoice(mask: FLOAT, activity: FLOAT, prune: FLOAT) -> FLOAT:
    """Keep all but the `prune` least active outputs, once they are measured."""
    measured = op.Cast(op.ReduceMax(activity, keepdims=0) <= 1.0, to=1)
    return op.Reshape(KeepLargest(activity, prune * measured), op.Shape(mask))


MASK_OPERATOR, SCORE_OPERATOR = Operator(Activation), Operator(ActivationScore)
UPDATE_OPERATOR, COUNT_OPERATOR = Operator(ActivationUpdate), Operator(ActivationCount)
THRESHOLD_OPERATOR, CHOICE_OPERATOR = Operator(ActivationEndOfEpoch), Operator(ActivationChoice)


@dataclass(frozen=True)
class ActivationPruningMethod(Method):
    """Prune outputs that are positive in too small a share of the samples, before their activation function.

    Args:
        threshold: an output goes if it is positive in no larger share of the samples.
        sparsity: above 0, the share of the weights whose outputs go by rank, whatever `threshold` says.
        batches: how many steps a measurement takes.
        start_epoch: how many epochs pass before a measurement begins, the first one and each after it.
        scope: with `sparsity`: `global` ranks the outputs of all layers together; with `layer` each layer loses the
            same share.
    """

    title: ClassVar[str] = "activation_pruning"
    operators: ClassVar[tuple[Operator, ...]] = (
        *(MASK_OPERATOR, STORED_MASK, SCORE_OPERATOR, UPDATE_OPERATOR),
        *(THRESHOLD_OPERATOR, COUNT_OPERATOR, CHOICE_OPERATOR),
    )

    threshold: float = 0.3
    sparsity: float = 0.0
    batches: int = 50
    start_epoch: int = 0
    scope: str = "auto"

    def __post_init__(self) -> None:
        check_share("threshold", self.threshold)
        check_share("sparsity", self.sparsity)
        check_choice("scope", self.scope, SCOPES)
        if self.batches < 1 or self.start_epoch < 0:
            raise ValueError("batches is at least 1 and start_epoch not negative")

    @property
    def cuts_outputs(self) -> bool:
        return True

    def mask(self) -> Call:
        return Call(MASK_OPERATOR, ("mask", "activity", "total", "count", "epochs", "prune", "threshold"))

    def score(self) -> Call:
        return Call(SCORE_OPERATOR, ("activity", "mask"))

    def hard_mask(self) -> Call | None:
        return Call(STORED_MASK, ("mask",))

    def update(self) -> Call | None:
        states = ("activity", "total", "count", "epochs")
        return Call(UPDATE_OPERATOR, ("output", "mask", *states), sets=states)

    def begin_of_epoch(self) -> Call | None:
        return Call(CHOICE_OPERATOR, ("mask", "activity", "prune"), sets=("mask",)) if self.sparsity else None

    def end_of_epoch(self) -> Call | None:
        if self.sparsity:
            return Call(COUNT_OPERATOR, ("epochs",), sets=("epochs",))
        return Call(THRESHOLD_OPERATOR, ("mask", "activity", "epochs", "threshold"), sets=("mask", "epochs"))

    def budget(self) -> Budget | None:
        return Budget(self.sparsity, resolve_scope(self.scope, "output"), "epoch") if self.sparsity else None

    def aim(self, sparsity: float) -> Method:
        return replace(self, sparsity=sparsity)

    def needed_epochs(self, steps: int) -> int:
        return self.start_epoch + math.ceil(self.batches / steps) + bool(self.sparsity)

    def states(self) -> tuple[State, ...]:
        return (
            State("mask", lambda weight: np.ones((len(weight), *(1,) * (weight.ndim - 1)), np.float32), False),
            State("activity", lambda weight: np.full(len(weight), UNMEASURED, np.float32), False),
            State("total", lambda weight: np.zeros(len(weight), np.float32), False),
            *(State(name, lambda weight: np.zeros((), np.float32), False) for name in ("count", "epochs", "prune")),
        )

    def controls(self) -> dict[str, Curve]:
        return {"threshold": constant(self.threshold)}

    def attributes(self) -> dict[str, Attribute]:
        counts = {"batches": float(self.batches), "start_epoch": float(self.start_epoch)}
        return {**counts, "by_rank": int(self.sparsity > 0)}
