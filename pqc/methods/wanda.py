"""Wanda: pruning by weights and activations (Sun et al., arXiv 2306.11695)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from onnxscript import FLOAT, INT64, script
from onnxscript import opset21 as op

from pqc.functions.operator import MASK, RANKING, SCORE, UPDATE, Operator
from pqc.functions.ranking import KeepOfGroups
from pqc.method import Attribute, Budget, Call, Method, State
from pqc.methods.structure import (
    STORED_MASK,
    check_no_pattern,
    check_pattern_fits,
    check_share,
    check_structure,
    pattern_attributes,
    resolve_scope,
)


@script(MASK, default_opset=op)
def Wanda(mask: FLOAT, squares: FLOAT, count: FLOAT, epochs: FLOAT, prune: FLOAT) -> FLOAT:
    """The stored mask."""
    return op.Identity(mask)


@script(SCORE, default_opset=op)
def WandaScore(weight: FLOAT) -> FLOAT:
    """|w|, by which the layers share the budget."""
    return op.Abs(weight)


@script(RANKING, default_opset=op)
def WandaMetric(weight: FLOAT, squares: FLOAT) -> FLOAT:
    """|w| times the norm of the input that it multiplies, [outputs, inputs of a group, kernel…].

    `squares` has an entry for every input channel; groups lie one after the other, in outputs as in inputs.
    """
    outputs = op.Shape(weight, start=0, end=1)
    inputs = op.Shape(weight, start=1, end=2)
    groups = op.Size(squares) / inputs
    one = op.Constant(value_ints=[1])
    by_group = op.Reshape(op.Sqrt(squares), op.Concat(groups, one, inputs, axis=0))
    by_output = op.Expand(by_group, op.Concat(groups, outputs / groups, inputs, axis=0))
    norms = op.Reshape(by_output, op.Concat(outputs, inputs, one, axis=0))
    cube = op.Reshape(op.Abs(weight), op.Concat(outputs, inputs, op.Constant(value_ints=[-1]), axis=0))
    return op.Reshape(cube * norms, op.Shape(weight))


@script(RANKING, default_opset=op)
def WandaChoice(weight: FLOAT, squares: FLOAT, prune: FLOAT) -> FLOAT:
    """1 but for the `prune` smallest metrics: of the whole weight if it is dense, else evenly of every output."""
    outputs = op.Shape(weight, start=0, end=1)
    dense = op.Cast(op.Equal(op.Size(op.Shape(weight)), 2), to=INT64.dtype)
    rows = dense + (1 - dense) * outputs
    metric = op.Reshape(WandaMetric(weight, squares), op.Concat(rows, op.Constant(value_ints=[-1]), axis=0))
    width = op.Shape(metric, start=1, end=2)
    _, places = op.TopK(metric, width, axis=1)
    ranks = op.Expand(op.Range(0, op.Squeeze(width), 1), op.Shape(metric))
    rank = op.ScatterElements(op.Mul(places, 0), places, ranks, axis=1)
    count = op.Cast(prune, to=INT64.dtype)
    even = count / rows
    extra = op.Cast(op.Range(0, op.Squeeze(rows), 1) < count - even * rows, to=INT64.dtype)
    keep = op.Unsqueeze(width - even - extra, op.Constant(value_ints=[1]))
    return op.Reshape(op.Cast(rank < keep, to=1), op.Shape(weight)) * op.Cast(op.Abs(weight) > 0.0, to=1)


@script(UPDATE, default_opset=op)
def WandaUpdate(
    weight: FLOAT,
    input: FLOAT,
    mask: FLOAT,
    squares: FLOAT,
    count: FLOAT,
    epochs: FLOAT,
    prune: FLOAT,
    batches: float = 100.0,
    start_epoch: float = 0.0,
    keep: int = 0,
    group: int = 1,
):
    """Add up the inputs' squares for so many batches; the mask is chosen when they are complete."""
    begun = op.Cast(epochs >= op.Constant(value_float=start_epoch), to=1)
    now = begun * op.Cast(count < op.Constant(value_float=batches), to=1)
    total = squares + now * op.ReduceSum(input * input, op.Constant(value_ints=[0]), keepdims=0)
    after = count + now
    ready = now * op.Cast(after >= op.Constant(value_float=batches), to=1)
    if ready > 0.0:
        if op.Constant(value_int=keep) > 0:
            chosen = KeepOfGroups(WandaMetric(weight, total), keep=keep, group=group)
        else:
            chosen = WandaChoice(weight, total, prune)
    else:
        chosen = op.Identity(mask)
    return chosen, total, after


@script(UPDATE, default_opset=op)
def WandaEndOfEpoch(epochs: FLOAT) -> FLOAT:
    """One more epoch."""
    return epochs + 1.0


MASK_OPERATOR, SCORE_OPERATOR = Operator(Wanda), Operator(WandaScore)
UPDATE_OPERATOR, END_OF_EPOCH = Operator(WandaUpdate), Operator(WandaEndOfEpoch)
STATES = ("mask", "squares", "count", "epochs", "prune")


@dataclass(frozen=True)
class WandaMethod(Method):
    """Prune once, where |weight| times the norm of its input is smallest.

    Args:
        sparsity: the share of the weights to prune.
        pattern: 2:4 keeps two of every four neighbours, whatever `sparsity` says.
        batches: how many steps the inputs are measured for.
        start_epoch: how many epochs of training pass before that.
        scope: `global` shares the budget out by ranking |w| of all layers together; with `layer` each layer loses the
            same share.
    """

    title: ClassVar[str] = "wanda"
    operators: ClassVar[tuple[Operator, ...]] = (
        MASK_OPERATOR,
        STORED_MASK,
        SCORE_OPERATOR,
        UPDATE_OPERATOR,
        END_OF_EPOCH,
        *(Operator(WandaMetric), Operator(WandaChoice)),
    )

    sparsity: float = 0.9
    pattern: str = ""
    batches: int = 100
    start_epoch: int = 0
    scope: str = "auto"

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_structure("none", self.pattern, self.scope)
        if self.batches < 1 or self.start_epoch < 0:
            raise ValueError("batches is at least 1 and start_epoch not negative")

    def mask(self) -> Call:
        return Call(MASK_OPERATOR, STATES)

    def score(self) -> Call:
        return Call(SCORE_OPERATOR, ("weight",))

    def hard_mask(self) -> Call | None:
        return Call(STORED_MASK, ("mask",))

    def update(self) -> Call | None:
        return Call(UPDATE_OPERATOR, ("weight", "input", *STATES), sets=("mask", "squares", "count"))

    def end_of_epoch(self) -> Call | None:
        return Call(END_OF_EPOCH, ("epochs",), sets=("epochs",))

    def budget(self) -> Budget | None:
        return None if self.pattern else Budget(self.sparsity, resolve_scope(self.scope, "none"))

    def aim(self, sparsity: float) -> Method:
        check_no_pattern(self.pattern)
        return replace(self, sparsity=sparsity)

    def needed_epochs(self, steps: int) -> int:
        return self.start_epoch + math.ceil(self.batches / steps)

    def states(self) -> tuple[State, ...]:
        return (
            State("mask", lambda weight: np.ones(weight.shape, np.float32), trained=False),
            State("squares", np.zeros_like, trained=False, per="input"),
            *(State(name, lambda weight: np.zeros((), np.float32), trained=False) for name in STATES[2:]),
        )

    def attributes(self) -> dict[str, Attribute]:
        counts = {"batches": float(self.batches), "start_epoch": float(self.start_epoch)}
        # Groups of one fit any weight where there is no pattern.
        return {**counts, **(pattern_attributes(self.pattern) or {"keep": 0, "group": 1})}

    def check(self, shape: tuple[int, ...]) -> None:
        check_pattern_fits(self.pattern, shape)
