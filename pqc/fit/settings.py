"""The section `phases.fit` of a schedule."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pqc.fit.goal import Goal

BEAM = re.compile(r"beam:([1-9]\d{0,3})")


def _search(text: object) -> object:
    if text in ("greedy", "astar") or (isinstance(text, str) and BEAM.fullmatch(text)):
        return text
    raise ValueError("a search is greedy, astar, or beam and how many nodes it keeps: beam:8")


class Part(BaseModel):
    """A part of the section; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sparsities(Part):
    """The shares of the weights to prune, one after the other: 1 - 10^e for e evenly spaced from `start` to `end`."""

    start: Annotated[float, Field(ge=-9, le=0)] = 0.0
    end: Annotated[float, Field(ge=-9, le=0)] = -3.0
    steps: Annotated[int, Field(ge=2, le=10_000)] = 40

    @model_validator(mode="after")
    def _grows(self) -> Sparsities:
        if self.end >= self.start:
            raise ValueError(f"end is below start, for shares that grow; it is {self.end:g}, and start {self.start:g}")
        return self

    def shares(self) -> list[float]:
        """The shares, the first of which is where the search begins."""
        return [float(share) for share in 1 - np.logspace(self.start, self.end, self.steps)]


class FisherSettings(Part):
    """How the Fisher diagonal is measured.

    Args:
        batch: rows whose mean gradient is squared; 1 is the gradient of each sample.
        least: batches at least; likewise `most`.
        tolerance: measuring stops when the variance of the mean trace, relative to its square, falls below.
        activations: measure what enters the layers too, and stop only when its trace is known as well.
    """

    batch: Annotated[int, Field(ge=1)] = 32
    least: Annotated[int, Field(ge=2)] = 10
    most: Annotated[int, Field(ge=2)] = 100
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    activations: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FisherSettings:
        if self.least > self.most:
            raise ValueError(f"least is {self.least}, above most, {self.most}")
        return self


class Fit(Part):
    """A search over bit widths and pruned weights of a trained float network.

    Args:
        goal: what the network may have at most: one of `rate`, `ebops`, `bits` and `keep`.
        search: `greedy`, `beam:K` with K nodes, or `astar`.
        widths: magnitude bits to choose from, the sign beside them, from many to few.
        sparsities: shares to choose from.
        quantize: let widths change.
        prune: let weights go.
        keep_masks: take the masks that were found; false takes only how much is pruned, as `target.sparsity` for the
            schedule's pruning method.
        estimate: where the Fisher diagonal is measured anew: at the start only (`once`), at every node that is
            `expanded`, or at all of its `neighbours` too.
        heuristic: how much what is left to do weighs against what was done.
        expansions: so many nodes are expanded at most.
        min_frac_bits: what enters a layer keeps at least so many fractional bits.
        fisher: how the Fisher diagonal is measured.
    """

    goal: Annotated[Goal, BeforeValidator(Goal.read)]
    search: Annotated[str, BeforeValidator(_search)] = "greedy"
    widths: tuple[Annotated[int, Field(ge=1, le=31)], ...] = (7, 4, 3, 2)
    sparsities: Sparsities = Sparsities()
    quantize: bool = True
    prune: bool = False
    keep_masks: bool = True
    estimate: Literal["once", "expanded", "neighbours"] = "expanded"
    heuristic: Annotated[float, Field(ge=0)] = 1.0
    expansions: Annotated[int, Field(ge=1)] = 1000
    min_frac_bits: Annotated[int, Field(ge=0, le=31)] = 2
    fisher: FisherSettings = FisherSettings()

    @model_validator(mode="after")
    def _something_changes(self) -> Fit:
        if not self.quantize and not self.prune:
            raise ValueError("neither quantize nor prune: nothing would change")
        if not self.widths or any(after >= before for before, after in zip(self.widths, self.widths[1:], strict=False)):
            raise ValueError("widths go from many to few")
        return self
