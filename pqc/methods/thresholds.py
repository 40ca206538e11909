"""Trained thresholds: one a layer, one an output, or one a weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from pqc.method import State
from pqc.methods.structure import check_choice

TYPES = ("layerwise", "channelwise", "weightwise")


@dataclass(frozen=True)
class Threshold:
    """The state `threshold` of a method.

    Args:
        kind: one of `TYPES`.
        start: the initial value.

    Raises:
        ValueError: another kind, or a start that is not finite.
    """

    kind: str
    start: float

    def __post_init__(self) -> None:
        check_choice("threshold_type", self.kind, TYPES)
        if not np.isfinite(self.start):
            raise ValueError(f"threshold_init is a finite number, not {self.start}")

    def state(self) -> State:
        """Shapes are [1, 1, …], [outputs, 1, …] or the weight's."""
        return State("threshold", partial(_filled, self.kind, self.start))


def _filled(kind: str, start: float, weight: np.ndarray) -> np.ndarray:
    ones = (1,) * (weight.ndim - 1)
    shapes = {"layerwise": (1, *ones), "channelwise": (weight.shape[0], *ones), "weightwise": weight.shape}
    return np.full(shapes[kind], start, np.float32)
