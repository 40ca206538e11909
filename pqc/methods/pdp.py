"""PDP, parameter-free differentiable pruning (Cho, Adya & Naik, arXiv 2305.11203)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from onnxscript import FLOAT, INT64, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, MASK, SCORE, Operator
from pqc.functions.ranking import InputNorms, KeepLargest, KeepOfGroups, OutputNorms
from pqc.method import Attribute, Budget, Call, Curve, Method, State, constant
from pqc.methods.structure import (
    check_no_pattern,
    check_pattern_fits,
    check_share,
    check_structure,
    pattern_attributes,
    resolve_scope,
)


@script(MASK, default_opset=op)
def SoftRank(weight: FLOAT, prune: FLOAT, ramp: FLOAT, temperature: float = 1e-5):
    """sigmoid((w² - t²) / temperature), t midway between the smallest kept and the largest pruned |w|.

    ramp * prune weights go, rounded. The threshold and the two places that it comes from are there for the gradient.
    Of the two sides of the ranking the shorter is sorted.
    """
    size = op.Abs(op.Reshape(weight, op.Constant(value_ints=[-1])))
    total = op.Size(size)
    one = op.Constant(value_ints=[1])
    count = op.Cast(op.Round(prune * ramp), to=INT64.dtype)
    inner = op.Max(op.Min(count, total - 1), 1)
    if inner * 2 > total:
        values, places = op.TopK(size, op.Reshape(total - inner + 1, one), axis=0, largest=1)
    else:
        values, places = op.TopK(size, op.Reshape(op.Min(inner + 1, total), one), axis=0, largest=0)
    boundary = op.Slice(places, op.Constant(value_ints=[-2]), op.Constant(value_ints=[9223372036854775807]))
    pair = op.Slice(values, op.Constant(value_ints=[-2]), op.Constant(value_ints=[9223372036854775807]))
    threshold = op.ReduceMean(pair, keepdims=0)
    soft = op.Sigmoid((weight * weight - threshold * threshold) / op.Constant(value_float=temperature))
    some = op.Cast(count > 0, to=1)
    all_go = op.Cast(count >= total, to=1)
    return (soft * some + (1.0 - some)) * (1.0 - all_go), threshold, boundary


@script(GRADIENT, default_opset=op)
def SoftRankGrad(
    dmask: FLOAT, weight: FLOAT, mask: FLOAT, threshold: FLOAT, boundary: INT64, temperature: float = 1e-5
) -> FLOAT:
    """Through w, and through the threshold into the two weights that it lies between, half each."""
    g = dmask * mask * (1.0 - mask) * (2.0 / op.Constant(value_float=temperature))
    flat = op.Reshape(weight, op.Constant(value_ints=[-1]))
    through = op.Neg(op.ReduceSum(g, keepdims=0)) * threshold * 0.5
    shares = op.Sign(op.Gather(flat, boundary)) * through
    direct = op.Reshape(g * weight, op.Constant(value_ints=[-1]))
    return op.Reshape(op.ScatterElements(direct, boundary, shares, axis=0, reduction="add"), op.Shape(weight))


@script(MASK, default_opset=op)
def SoftRankOfOutputs(weight: FLOAT, prune: FLOAT, ramp: FLOAT, temperature: float = 1e-5):
    """The same for the norms of each output's weights."""
    mask, _, _ = SoftRank(OutputNorms(weight), prune, ramp, temperature=temperature)
    return mask


@script(MASK, default_opset=op)
def SoftRankOfInputs(weight: FLOAT, prune: FLOAT, ramp: FLOAT, temperature: float = 1e-5):
    """The same for the norms of each input channel's weights."""
    mask, _, _ = SoftRank(InputNorms(weight), prune, ramp, temperature=temperature)
    return mask


@script(MASK, default_opset=op)
def SoftPattern(weight: FLOAT, temperature: float = 1e-5, keep: int = 2, group: int = 4) -> FLOAT:
    """The same within every `group` neighbours, of which `keep` remain."""
    width = op.Reshape(op.Constant(value_int=group), op.Constant(value_ints=[1]))
    kept = op.Reshape(op.Constant(value_int=keep), op.Constant(value_ints=[1]))
    groups = op.Reshape(weight, op.Concat(op.Constant(value_ints=[-1]), width, axis=0))
    largest, _ = op.TopK(op.Abs(groups), kept + 1, axis=1)
    pair = op.Slice(largest, kept - 1, kept + 1, op.Constant(value_ints=[1]))
    threshold = op.ReduceMean(pair, op.Constant(value_ints=[1]), keepdims=1)
    soft = op.Sigmoid((groups * groups - threshold * threshold) * (1.0 / op.Constant(value_float=temperature)))
    return op.Reshape(soft, op.Shape(weight))


@script(SCORE, default_opset=op)
def RankScore(weight: FLOAT) -> FLOAT:
    """|w|"""
    return op.Abs(weight)


@script(SCORE, default_opset=op)
def RankScoreOfOutputs(weight: FLOAT) -> FLOAT:
    """The norm of each output's weights."""
    return OutputNorms(weight)


@script(SCORE, default_opset=op)
def RankScoreOfInputs(weight: FLOAT) -> FLOAT:
    """The norm of each input channel's weights."""
    return InputNorms(weight)


@script(SCORE, default_opset=op)
def HardRank(weight: FLOAT, prune: FLOAT, ramp: FLOAT) -> FLOAT:
    """1 but for the ramp * prune smallest |w|."""
    return KeepLargest(op.Abs(weight), op.Round(prune * ramp))


@script(SCORE, default_opset=op)
def HardRankOfOutputs(weight: FLOAT, prune: FLOAT, ramp: FLOAT) -> FLOAT:
    """1 but for the ramp * prune outputs of smallest norm."""
    return KeepLargest(OutputNorms(weight), op.Round(prune * ramp))


@script(SCORE, default_opset=op)
def HardRankOfInputs(weight: FLOAT, prune: FLOAT, ramp: FLOAT) -> FLOAT:
    """1 but for the ramp * prune input channels of smallest norm."""
    return KeepLargest(InputNorms(weight), op.Round(prune * ramp))


@script(SCORE, default_opset=op)
def HardPattern(weight: FLOAT, keep: int = 2, group: int = 4) -> FLOAT:
    """1 at the `keep` largest |w| of every `group` neighbours."""
    return KeepOfGroups(op.Abs(weight), keep=keep, group=group)


_ARGUMENTS = ("GO(0)", "I(0)", "O(0)", "O(1)", "O(2)")
SOFT = {
    "none": Operator(SoftRank, SoftRankGrad, arguments=_ARGUMENTS),
    "output": Operator(SoftRankOfOutputs, inline=True),
    "input": Operator(SoftRankOfInputs, inline=True),
}
SCORES = {
    "none": Operator(RankScore),
    "output": Operator(RankScoreOfOutputs),
    "input": Operator(RankScoreOfInputs),
}
HARD = {"none": Operator(HardRank), "output": Operator(HardRankOfOutputs), "input": Operator(HardRankOfInputs)}
SOFT_PATTERN, HARD_PATTERN = Operator(SoftPattern, inline=True), Operator(HardPattern)


@dataclass(frozen=True)
class PDPMethod(Method):
    """Let a soft mask follow from each weight's rank, with no parameters of its own.

    Args:
        epsilon: what the control `ramp` gains in an epoch: 1/epsilon epochs until the whole share is pruned.
        sparsity: the share of the weights to prune.
        temperature: how soft the mask is: it changes within about temperature/(2t) around the threshold t.
        structure: what goes: `none` single weights, `output` whole outputs, `input` whole input channels.
        pattern: 2:4 keeps two of every four neighbours, whatever `sparsity` says.
        scope: `global` ranks the units of all layers together; with `layer` each layer loses the same share.
    """

    title: ClassVar[str] = "pdp"
    operators: ClassVar[tuple[Operator, ...]] = (
        *SOFT.values(),
        *SCORES.values(),
        *HARD.values(),
        *(SOFT_PATTERN, HARD_PATTERN),
    )

    epsilon: float = 0.015
    sparsity: float = 0.8
    temperature: float = 1e-5
    structure: str = "none"
    pattern: str = ""
    scope: str = "auto"

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_structure(self.structure, self.pattern, self.scope)
        if not (self.epsilon > 0 and self.temperature > 0):
            raise ValueError("epsilon and temperature are positive")

    @property
    def cuts_outputs(self) -> bool:
        return self.structure == "output"

    def mask(self) -> Call:
        if self.pattern:
            return Call(SOFT_PATTERN, ("weight",))
        return Call(SOFT[self.structure], ("weight", "prune", "ramp"))

    def score(self) -> Call:
        return Call(SCORES[self.structure], ("weight",))

    def hard_mask(self) -> Call | None:
        if self.pattern:
            return Call(HARD_PATTERN, ("weight",))
        return Call(HARD[self.structure], ("weight", "prune", "ramp"))

    def budget(self) -> Budget | None:
        return None if self.pattern else Budget(self.sparsity, resolve_scope(self.scope, self.structure))

    def aim(self, sparsity: float) -> Method:
        check_no_pattern(self.pattern)
        return replace(self, sparsity=sparsity)

    def states(self) -> tuple[State, ...]:
        return () if self.pattern else (State("prune", lambda weight: np.zeros((), np.float32), trained=False),)

    def controls(self) -> dict[str, Curve]:
        return {} if self.pattern else {"ramp": f"ramp({constant(self.epsilon)})"}

    def attributes(self) -> dict[str, Attribute]:
        return {"temperature": self.temperature, **pattern_attributes(self.pattern)}

    def check(self, shape: tuple[int, ...]) -> None:
        check_pattern_fits(self.pattern, shape)
