"""Magnitude pruning: one shot, gradual (Zhu & Gupta, arXiv 1710.01878), at the end, structured, N:M."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import MASK, SCORE, UPDATE, Operator
from pqc.functions.ranking import InputNorms, KeepLargest, KeepOfGroups, OutputNorms
from pqc.method import Attribute, Budget, Call, Curve, Method, State
from pqc.methods.structure import (
    STORED_MASK,
    check_choice,
    check_no_pattern,
    check_pattern_fits,
    check_share,
    check_structure,
    pattern_attributes,
)


@script(MASK, default_opset=op)
def Magnitude(mask: FLOAT, prune: FLOAT, ramp: FLOAT) -> FLOAT:
    """The stored mask."""
    return op.Identity(mask)


@script(SCORE, default_opset=op)
def MagnitudeScore(weight: FLOAT) -> FLOAT:
    """|w|"""
    return op.Abs(weight)


@script(SCORE, default_opset=op)
def MagnitudeOfOutputs(weight: FLOAT) -> FLOAT:
    """The Euclidean norm of each output's weights."""
    return OutputNorms(weight)


@script(SCORE, default_opset=op)
def MagnitudeOfInputs(weight: FLOAT) -> FLOAT:
    """The Euclidean norm of each input channel's weights."""
    return InputNorms(weight)


@script(UPDATE, default_opset=op)
def MagnitudeMask(weight: FLOAT, prune: FLOAT) -> FLOAT:
    """1 but for the `prune` smallest |w|."""
    return KeepLargest(op.Abs(weight), prune)


@script(UPDATE, default_opset=op)
def MagnitudeOutputsMask(weight: FLOAT, prune: FLOAT) -> FLOAT:
    """1 but for the `prune` outputs of smallest norm."""
    return op.Expand(KeepLargest(OutputNorms(weight), prune), op.Shape(weight))


@script(UPDATE, default_opset=op)
def MagnitudeInputsMask(weight: FLOAT, prune: FLOAT) -> FLOAT:
    """1 but for the `prune` input channels of smallest norm."""
    return op.Expand(KeepLargest(InputNorms(weight), prune), op.Shape(weight))


@script(UPDATE, default_opset=op)
def MagnitudePatternMask(weight: FLOAT, keep: int = 2, group: int = 4) -> FLOAT:
    """1 at the `keep` largest |w| of every `group` neighbours."""
    return KeepOfGroups(op.Abs(weight), keep=keep, group=group)


SCORES = {
    "none": Operator(MagnitudeScore),
    "output": Operator(MagnitudeOfOutputs),
    "input": Operator(MagnitudeOfInputs),
}
MASKS = {
    "none": Operator(MagnitudeMask),
    "output": Operator(MagnitudeOutputsMask),
    "input": Operator(MagnitudeInputsMask),
}
PATTERN = Operator(MagnitudePatternMask)
STORED = Operator(Magnitude)


@dataclass(frozen=True)
class MagnitudeMethod(Method):
    """Prune the smallest weights, outputs or input channels.

    `when` is `start` (one shot before training), `gradual` (the share grows along the control `ramp`, and the mask is
    chosen anew before each epoch) or `end` (one shot when training is over). A `pattern` such as 2:4 keeps two of
    every four neighbours instead of a share.
    """

    title: ClassVar[str] = "magnitude"
    operators: ClassVar[tuple[Operator, ...]] = (STORED, STORED_MASK, PATTERN, *SCORES.values(), *MASKS.values())

    sparsity: float = 0.8
    structure: str = "none"
    pattern: str = ""
    scope: str = "global"
    when: str = "gradual"

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_structure(self.structure, self.pattern, self.scope)
        check_choice("when", self.when, ("start", "gradual", "end"))

    @property
    def cuts_outputs(self) -> bool:
        return self.structure == "output"

    def mask(self) -> Call:
        return Call(STORED, ("mask", "prune", "ramp"))

    def score(self) -> Call:
        return Call(SCORES[self.structure], ("weight",))

    def _chosen(self, sets: tuple[str, ...] = ()) -> Call:
        if self.pattern:
            return Call(PATTERN, ("weight",), sets)
        return Call(MASKS[self.structure], ("weight", "prune"), sets)

    def hard_mask(self) -> Call | None:
        return self._chosen() if self.when == "end" else Call(STORED_MASK, ("mask",))

    def begin_of_training(self) -> Call | None:
        return self._chosen(("mask",)) if self.when == "start" else None

    def begin_of_epoch(self) -> Call | None:
        return self._chosen(("mask",)) if self.when == "gradual" else None

    def budget(self) -> Budget | None:
        when = {"start": "training", "gradual": "epoch", "end": "end"}[self.when]
        return None if self.pattern else Budget(self.sparsity, self.scope, when)  # type: ignore[arg-type]

    def aim(self, sparsity: float) -> Method:
        check_no_pattern(self.pattern)
        return replace(self, sparsity=sparsity)

    def states(self) -> tuple[State, ...]:
        return (
            State("mask", lambda weight: np.ones(weight.shape, np.float32), trained=False),
            State("prune", lambda weight: np.zeros((), np.float32), trained=False),
        )

    def controls(self) -> dict[str, Curve]:
        return {"ramp": "cubic(0, 1, 0, 0.75)" if self.when == "gradual" else "1"}

    def attributes(self) -> dict[str, Attribute]:
        return {**pattern_attributes(self.pattern)}

    def check(self, shape: tuple[int, ...]) -> None:
        check_pattern_fits(self.pattern, shape)
