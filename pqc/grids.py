"""Which numbers a value can be: the grid that quantizers leave, followed through what only moves or picks numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import layers
from pqc.quantizer_sites import LEARNS

MAX_WIDTH = 24
"""A grid of more bits is not followed: float32 does not hold all its numbers."""
PICKS = frozenset({"MaxPool", "GlobalMaxPool", "Max"})
"""Operators beside `layers.MOVES` and Relu whose results are among their inputs."""


@dataclass(frozen=True)
class Grid:
    """Multiples of a step between two bounds.

    Args:
        step: powers of two, broadcast with the value, as are the bounds.
        low: the lowest number.
        high: the highest one.
    """

    step: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def covers(self, other: Grid) -> bool:
        """Whether each number of `other` is one of this grid."""
        return bool(
            np.all(self.step <= other.step) and np.all(self.low <= other.low) and np.all(self.high >= other.high)
        )

    def hull(self) -> Grid:
        """One grid for all lanes, which covers each."""
        return Grid(self.step.min(), self.low.min(), self.high.max())


def of(node: ir.Node) -> Grid | None:
    """The grid of a quantizer, or None where it is learned, computed, not of powers of two, or folds back."""
    found = layers.grid(node) if LEARNS not in node.metadata_props else None
    if found is None or np.any(found.zero_point) or np.any(np.frexp(found.scale)[0] != 0.5):
        return None
    magnitude = np.asarray(found.bits, np.float64) - found.signed
    if magnitude.max() + found.signed > MAX_WIDTH or np.any(magnitude != np.rint(magnitude)):
        return None
    # WRAP_SM folds back numbers of its own range, too.
    if found.overflow == "WRAP_SM":
        return None
    if not layers.is_fixed_quant(node) and (magnitude.min() < 1 or (found.narrow and not found.signed)):
        return None
    levels = np.where(magnitude > 0, np.ldexp(1.0, magnitude.astype(int)), 1)
    lowest = -float(found.signed) * np.where(magnitude > 0, levels - found.narrow, 0)
    step = found.scale.astype(np.float64)
    return Grid(step, lowest * step, (levels - 1) * step)


def after(node: ir.Node, entering: Sequence[Grid | None]) -> Grid | None:
    """The grid of what `node`, no quantizer, gives out, or None if it computes new numbers.

    Args:
        node: the node.
        entering: the grids of its inputs.
    """
    first = entering[0] if entering else None
    if node.domain or first is None:
        return None
    if node.op_type == "Relu":
        return Grid(first.step, np.maximum(first.low, 0), np.maximum(first.high, 0))
    if node.op_type in ("Identity", "Dropout"):
        return first
    joined = entering if node.op_type in ("Concat", "Max") else entering[:1]
    known = [one.hull() for one in joined if one is not None]
    if node.op_type not in PICKS | layers.MOVES or len(known) < len(joined):
        return None
    ends = [np.stack(parts) for parts in zip(*((one.step, one.low, one.high) for one in known), strict=True)]
    return Grid(*ends).hull()
