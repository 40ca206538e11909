"""The weights of a network, the types they may have, and what they become under a choice of types and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pqc.calibration import Calibration, Kind, integer_bits
from pqc.fit.goal import FLOAT_BITS, Counts
from pqc.fixed_point import FixedPoint, rounded

FLOAT = -1
"""The level of a weight that is not rounded."""
Levels = tuple[int, ...]


@dataclass(frozen=True)
class Rounding:
    """How the numbers of a weight are rounded: a rounding and an overflow in the words of `pqc.quantizer`."""

    rounding: str = "ROUND"
    overflow: str = "SAT"

    def type_of(self, numbers: np.ndarray, width: int, how: Calibration) -> FixedPoint:
        """The signed type of `width` magnitude bits whose integer bits suit the numbers; 0 of them if all are zero."""
        kind = Kind(np.array([width]), True, self.rounding, self.overflow)
        found = integer_bits(numbers.reshape(1, -1).astype(np.float64), kind, how)[0]
        i = 0 if np.isnan(found) else int(found)
        return FixedPoint(1, i, width - i)

    def apply(self, numbers: np.ndarray, kind: FixedPoint) -> np.ndarray:
        """The numbers on the grid of a type, float32, as a quantizer in the graph computes them."""
        low, high = Kind(np.array([kind.i + kind.f]), bool(kind.k), self.rounding, self.overflow).bounds()
        steps = np.clip(numbers.astype(np.float64) / kind.scale, low, high)
        return np.asarray(rounded(steps, self.rounding) * kind.scale, np.float32)


@dataclass(frozen=True)
class Weight:
    """One weight of the search.

    Args:
        name: the initializer's.
        layer: the name of the layer that reads it, the first of several.
        numbers: its float numbers, in their shape.
        types: what it may be rounded to, from many bits to few; empty where it stays in float.
        rounding: how it is rounded.
        first: its level at the start: `FLOAT`, or that of the only type that its layer asks for.
        prunable: whether numbers of it may be zero.
        price: bit operations of a bit of a number that is not zero.
    """

    name: str
    layer: str
    numbers: np.ndarray
    types: tuple[FixedPoint, ...] = ()
    rounding: Rounding = Rounding()
    first: int = FLOAT
    prunable: bool = True
    price: float = 0.0

    def bits(self, level: int) -> int:
        """The width at a level, with the sign."""
        return FLOAT_BITS if level == FLOAT else self.types[level].bits


class Space:
    """All weights as one flat vector.

    Args:
        weights: in the order of the vector.
        fixed: bit operations that neither widths nor masks change.
    """

    def __init__(self, weights: Sequence[Weight], fixed: float = 0.0) -> None:
        self.weights = list(weights)
        self.sizes = np.array([weight.numbers.size for weight in weights])
        ends = np.cumsum(self.sizes)
        self.slices = [slice(int(end - size), int(end)) for end, size in zip(ends, self.sizes, strict=True)]
        self.numbers = np.concatenate([weight.numbers.ravel() for weight in weights]).astype(np.float32)
        self.prunable = np.concatenate([np.full(weight.numbers.size, weight.prunable) for weight in weights])
        self._prices = np.array([weight.price for weight in weights])
        self._fixed = fixed

    def first(self) -> Levels:
        """The levels at the start."""
        return tuple(weight.first for weight in self.weights)

    def values(self, levels: Levels, mask: np.ndarray) -> np.ndarray:
        """The weights pruned and rounded, float32 [numbers]."""
        pruned: np.ndarray = np.where(mask, self.numbers, np.float32(0))
        for weight, level, part in zip(self.weights, levels, self.slices, strict=True):
            if level != FLOAT:
                pruned[part] = weight.rounding.apply(pruned[part], weight.types[level])
        return pruned

    def moved(self, values: np.ndarray, number: int, level: int, mask: np.ndarray) -> np.ndarray:
        """`values` with one weight, by its number, at another level: what `values` gives for it, in less time."""
        weight, part = self.weights[number], self.slices[number]
        moved: np.ndarray = values.copy()
        moved[part] = weight.rounding.apply(
            np.where(mask[part], self.numbers[part], np.float32(0)), weight.types[level]
        )
        return moved

    def counts(self, levels: Levels, values: np.ndarray) -> Counts:
        """What goals are measured by."""
        nonzero = np.array([np.count_nonzero(values[part]) for part in self.slices])
        bits = np.array([weight.bits(level) for weight, level in zip(self.weights, levels, strict=True)])
        return Counts(self.sizes, nonzero, bits, self._prices, self._fixed)

    def by_weight(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The parts of a flat vector by the weights' names, in their shapes."""
        pairs = zip(self.weights, self.slices, strict=True)
        return {weight.name: flat[part].reshape(weight.numbers.shape) for weight, part in pairs}

    def pruned(self, mask: np.ndarray, share: float, importance: np.ndarray) -> np.ndarray:
        """The mask without the so many least important of the prunable numbers; what it lacks already counts.

        Args:
            mask: what is left so far.
            share: of the prunable numbers, that are to be zero in all.
            importance: [numbers]; of equals the first goes.
        """
        places = np.flatnonzero(self.prunable)
        order = np.lexsort((importance[places], mask[places]))
        gone = places[order[: int(share * len(places))]]
        left: np.ndarray = mask.copy()
        left[gone] = False
        return left
