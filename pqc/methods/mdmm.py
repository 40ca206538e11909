"""Modified differential method of multipliers (Platt & Barr, NIPS 1987), with constraints on sparsity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import MASK, Operator
from pqc.method import Attribute, Call, Method, State
from pqc.methods.mdmm_metrics import BLOCKS, HELPERS, PATTERNS, UNSTRUCTURED


@script(MASK, default_opset=op)
def MDMMMask(lambda_: FLOAT, previous: FLOAT) -> FLOAT:
    """1: nothing is masked while the penalty draws weights to zero."""
    return op.Expand(op.Constant(value_float=1.0), op.Shape(lambda_))


MASK_OPERATOR = Operator(MDMMMask)
# A metric's penalty, which also steps the multiplier, and its score.
METRICS = {
    "UnstructuredSparsity": UNSTRUCTURED,
    "StructuredSparsity": BLOCKS,
    "FPGAAwareSparsity": BLOCKS,
    "PACAPattern": PATTERNS,
}
# Whether a metric above the target, and one below it, breaks the constraint.
CONSTRAINTS = {"Equality": (1.0, 1.0), "LessThanOrEqual": (1.0, 0.0), "GreaterThanOrEqual": (0.0, 1.0)}
CHOICES = {
    "constraint": tuple(CONSTRAINTS),
    "metric": tuple(METRICS),
    "l0_mode": ("coarse", "smooth"),
    "scale_mode": ("mean", "sum"),
    "memory": ("DSP", "BRAM"),
    "distance": ("hamming", "valued_hamming", "cosine"),
}
INTERVALS = {
    "epsilon": (0.0, np.inf),
    "scale": (0.0, np.inf),
    "damping": (0.0, np.inf),
    "constraint_lr": (0.0, np.inf),
    "target_sparsity": (0.0, 1.0),
    "beta": (0.0, 1.0),
    "rf": (1, 2**31),
    "precision": (1, 2**31),
    "bram_width": (1, 2**31),
    "num_patterns": (1, 2**31),
}


@dataclass(frozen=True)
class MDMMMethod(Method):
    """Draw weights to zero by a constraint on each layer, whose multiplier grows while the constraint is broken.

    The penalty is scale (lambda I + damping I²/2); I says how far the metric is from `target_value` on the wrong side.

    Args:
        constraint: which side of `target_value` is wrong: both (`Equality`), above (`LessThanOrEqual`) or below
            (`GreaterThanOrEqual`).
        target_value: what the metric is compared with.
        metric: `UnstructuredSparsity`, `StructuredSparsity`, `FPGAAwareSparsity` or `PACAPattern`.
        target_sparsity: of UnstructuredSparsity, the share of zeros at which the metric is 0.
        rf: the reuse factor: how many neighbouring inputs of an output make a block of the structured metrics.
        epsilon: the largest norm that counts as zero, when masks freeze and in `coarse` metrics.
        scale: multiplies penalty and multiplier's rate.
        damping: the weight of the quadratic part.
        l0_mode: zeros are counted by `epsilon` (`coarse`), or as the mean of exp(-100 norm²) (`smooth`).
        scale_mode: of UnstructuredSparsity: the `mean` of |w|, or the `sum`.
        constraint_lr: how fast the multiplier grows.
        precision: of FPGAAwareSparsity, the bits of a weight.
        memory: of FPGAAwareSparsity, what a block fills: a `DSP` or a word of `BRAM`.
        bram_width: of FPGAAwareSparsity, the bits of a word of BRAM.
        num_patterns: of PACAPattern, the most patterns that count as dominant.
        beta: of PACAPattern, the share of kernels that the dominant patterns cover.
        distance: of PACAPattern: differing places weighted by |w| (`valued_hamming`) or not (`hamming`), or `cosine`.
    """

    title: ClassVar[str] = "mdmm"
    operators: ClassVar[tuple[Operator, ...]] = (MASK_OPERATOR, *UNSTRUCTURED, *BLOCKS, *PATTERNS, *HELPERS)

    constraint: str = "Equality"
    target_value: float = 0.0
    metric: str = "UnstructuredSparsity"
    target_sparsity: float = 0.9
    rf: int = 1
    epsilon: float = 1e-3
    scale: float = 10.0
    damping: float = 1.0
    l0_mode: str = "coarse"
    scale_mode: str = "mean"
    constraint_lr: float = 1e-3
    precision: int = 16
    memory: str = "DSP"
    bram_width: int = 36
    num_patterns: int = 16
    beta: float = 0.75
    distance: str = "valued_hamming"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'")
        for name, (low, high) in INTERVALS.items():
            value = getattr(self, name)
            if not (low <= value <= high and np.isfinite(value)):
                raise ValueError(f"{name} is {_interval(low, high)}, not {value}")
        if not np.isfinite(self.target_value):
            raise ValueError(f"target_value is a finite number, not {self.target_value}")
        if self._columns < 1:
            raise ValueError(f"a value of {self.precision} bits does not fit in two words of {self.bram_width} bits")
        if self.metric == "PACAPattern" and (self.constraint, self.target_value) != ("Equality", 0.0):
            raise ValueError("PACAPattern draws distances to zero: leave constraint at Equality and target_value at 0")

    @property
    def _columns(self) -> int:
        """How many columns of `rf` weights share a memory word, or two where one does not divide."""
        if self.metric != "FPGAAwareSparsity" or self.memory == "DSP":
            return 1
        return (self.bram_width * (1 if self.bram_width % self.precision == 0 else 2)) // self.precision

    def mask(self) -> Call:
        return Call(MASK_OPERATOR, ("lambda_", "previous"))

    def score(self) -> Call:
        return Call(METRICS[self.metric][1], ("weight",))

    def penalty(self) -> Call | None:
        return Call(METRICS[self.metric][0], ("weight", "lambda_", "previous"))

    def update(self) -> Call | None:
        return Call(METRICS[self.metric][0], ("weight", "lambda_", "previous"), sets=("", "lambda_", "previous"))

    def aim(self, sparsity: float) -> Method:
        if self.metric == "PACAPattern":
            raise ValueError(
                "the kernels' patterns decide how much PACAPattern prunes; leave out the target's sparsity"
            )
        if self.metric == "UnstructuredSparsity":
            return replace(self, target_sparsity=sparsity)
        return self if self.constraint == "LessThanOrEqual" else replace(self, target_value=sparsity)

    def states(self) -> tuple[State, ...]:
        # One number each, with the weight's rank, so that the mask broadcasts in every layout.
        return (
            State("lambda_", lambda weight: np.ones([1] * weight.ndim, np.float32), trained=False),
            State("previous", lambda weight: np.zeros([1] * weight.ndim, np.float32), trained=False),
        )

    def attributes(self) -> dict[str, Attribute]:
        above, below = CONSTRAINTS[self.constraint]
        return {
            "target": self.target_value,
            "above": above,
            "below": below,
            "rate": self.constraint_lr * self.scale,
            "scale": self.scale,
            "damping": self.damping,
            "epsilon": self.epsilon,
            "smooth": float(self.l0_mode == "smooth"),
            "summed": float(self.scale_mode == "sum"),
            "target_sparsity": self.target_sparsity,
            "block": self.rf * self._columns,
            "num_patterns": self.num_patterns,
            "beta": self.beta,
            "valued": float(self.distance == "valued_hamming"),
            "cosine": float(self.distance == "cosine"),
        }

    def check(self, shape: tuple[int, ...]) -> None:
        if self.metric == "PACAPattern" and np.prod(shape[2:]) < 2:
            raise ValueError(f"PACAPattern needs kernels of more than one weight; this weight has shape {list(shape)}")


def _interval(low: float, high: float) -> str:
    return f"at least {low:g}" if high > 1 else f"between {low:g} and {high:g}"
