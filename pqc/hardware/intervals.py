"""Exact interval arithmetic on integers: what each element of a tensor can be, in units of a power of two.

Bounds are float64 while they are summed, which is exact below 2^53, and every operation refuses to go beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqc.hardware.quantizer import FixedType, FixedTypes

Integers = NDArray[np.int64]
LIMIT = 2**53


class TooWide(ArithmeticError):
    """A bound leaves the range in which the arithmetic is exact."""


@dataclass(frozen=True)
class Interval:
    """Bounds of every element, as integers in units of 2^-fraction.

    Args:
        low: lowest values, int64, of the tensor's shape without its batch dimension.
        high: highest values, of the same shape.
        fraction: the exponent of the unit; every value is a multiple of 2^-fraction.
    """

    low: Integers
    high: Integers
    fraction: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape without the batch dimension."""
        return tuple(self.low.shape)

    @property
    def magnitude(self) -> Integers:
        """The largest absolute value of each element."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def map(self, function: Callable[[Integers], Integers]) -> Interval:
        """The bounds after `function`, which must not decrease."""
        return Interval(function(self.low), function(self.high), self.fraction)

    def at(self, fraction: int) -> Interval:
        """The same bounds in a finer unit.

        Raises:
            TooWide: the integers leave the exact range.
        """
        shift = fraction - self.fraction
        if shift < 0:
            raise ValueError(f"2^-{self.fraction} is finer than 2^-{fraction}")
        check(int(self.magnitude.max()) << shift)
        return Interval(self.low << shift, self.high << shift, fraction)

    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest value of any element."""
        return int(self.low.min()), int(self.high.max())

    def type(self) -> FixedType:
        """The narrowest type that holds every element and loses no bit."""
        return FixedType.covering(*self.bounds(), self.fraction)


def check(magnitude: int) -> None:
    """Refuse integers that float64 sums would round."""
    if magnitude >= LIMIT:
        raise TooWide(f"{magnitude.bit_length()} bits")


def of_constant(array: NDArray[np.float32]) -> Interval:
    """The point interval of float32 numbers, in the coarsest unit that all are multiples of.

    Raises:
        TooWide: the numbers share no grid of fewer than 53 bits; they were not quantized.
    """
    mantissas, exponents = np.frexp(array.astype(np.float64))
    integers = np.ldexp(mantissas, 53).astype(np.int64)
    used = integers != 0
    trailing = np.log2((integers & -integers)[used].astype(np.float64)).astype(np.int64)
    fraction = int((53 - exponents[used] - trailing).max(initial=0 if not used.any() else -1075))
    check(int(np.ldexp(np.abs(array.astype(np.float64)), fraction).max(initial=0.0)))
    values = np.ldexp(array.astype(np.float64), fraction).astype(np.int64)
    return Interval(values, values, fraction)


def full(kinds: FixedTypes, shape: Sequence[int]) -> Interval:
    """Every value of each element's type."""

    def bounds(kind: FixedType, here: np.ndarray) -> Interval:
        count = int(here.sum())
        return Interval(np.full(count, kind.low), np.full(count, kind.high), kind.fraction)

    return each(kinds, shape, bounds)


def each(kinds: FixedTypes, shape: Sequence[int], bounds: Callable[[FixedType, np.ndarray], Interval]) -> Interval:
    """Bounds of elements with different types, in units of the finest grid; `bounds` gives those of one type."""
    found = Interval(np.zeros(shape, np.int64), np.zeros(shape, np.int64), kinds.fraction)
    for kind, here in kinds.distinct():
        if kind is not None:
            here = np.broadcast_to(here, shape)
            part = bounds(kind, here).at(kinds.fraction)
            found.low[here], found.high[here] = part.low, part.high
    return found


def quantize_each(x: Interval, kinds: FixedTypes) -> Interval:
    """Round every element to a type of its own."""
    return each(kinds, x.shape, lambda kind, here: quantize(Interval(x.low[here], x.high[here], x.fraction), kind))


def overflows(x: Interval, kinds: FixedTypes) -> bool:
    """Whether an element can leave the range of its type once it is rounded."""
    wide = [
        (FixedType(62, 62 - kind.fraction, True, kind.rounding, "SAT"), kind, here)
        for kind, here in kinds.distinct()
        if kind
    ]
    for free, kind, here in wide:
        here = np.broadcast_to(here, x.shape)
        low, high = quantize(Interval(x.low[here], x.high[here], x.fraction), free).bounds()
        if low < kind.low or high > kind.high:
            return True
    return False


def quantize(x: Interval, kind: FixedType) -> Interval:
    """Round to the grid of `kind` and saturate at its bounds, or wrap to anything between them."""
    shift = x.fraction - kind.fraction
    rounded = x.map(lambda values: shift_right(values, shift, kind.rounding)) if shift > 0 else x
    limit = (max(-kind.low, kind.high) >> max(-shift, 0)) + 1
    clipped = rounded.map(lambda values: np.clip(values, -limit, limit))
    same = Interval(clipped.low, clipped.high, min(x.fraction, kind.fraction)).at(kind.fraction)
    if kind.overflow == "WRAP":
        beyond = (same.low < kind.low) | (same.high > kind.high)
        return Interval(np.where(beyond, kind.low, same.low), np.where(beyond, kind.high, same.high), kind.fraction)
    return same.map(lambda values: np.clip(values, kind.low, kind.high))


def shift_right(values: Integers, shift: int, rounding: str) -> Integers:
    """Divide by 2^shift and round as ap_fixed does."""
    shift = min(shift, 62)
    down = values >> shift
    rest, half = values - (down << shift), 1 << (shift - 1)
    up = {
        "TRN": np.zeros(values.shape, bool),
        "TRN_ZERO": (values < 0) & (rest > 0),
        "RND_CONV": (rest > half) | ((rest == half) & (down & 1 == 1)),
        "RND": rest >= half,
        "RND_MIN_INF": rest > half,
        "RND_INF": (rest > half) | ((rest == half) & (values > 0)),
        "RND_ZERO": (rest > half) | ((rest == half) & (values < 0)),
    }[rounding]
    return np.asarray(down + up, dtype=np.int64)


def add(a: Interval, b: Interval) -> Interval:
    """Sum of two tensors, broadcast as ONNX does."""
    fraction = max(a.fraction, b.fraction)
    a, b = a.at(fraction), b.at(fraction)
    check(int(a.magnitude.max()) + int(b.magnitude.max()))
    return Interval(a.low + b.low, a.high + b.high, fraction)


def multiply(a: Interval, b: Interval) -> Interval:
    """Elementwise product, broadcast as ONNX does."""
    check(int(a.magnitude.max()) * int(b.magnitude.max()))
    corners = np.stack(np.broadcast_arrays(*(p * q for p in (a.low, a.high) for q in (b.low, b.high))))
    return Interval(corners.min(axis=0), corners.max(axis=0), a.fraction + b.fraction)


@dataclass(frozen=True)
class Sum:
    """A weighted sum: its bounds, and how large any partial sum can get in any order.

    Args:
        value: bounds of the final sum.
        partial: per element, sum of |weight| · max |x| (and the bias), in units of the value.
        granule: per row, the power of two that every term is a multiple of, in the same units.
    """

    value: Interval
    partial: Integers
    granule: Integers

    @property
    def worst(self) -> int:
        """The largest partial sum, counted in granules: float32 is exact if this stays below 2^24."""
        return int((self.partial // self.granule).max())

    def plus(self, bias: Interval) -> Sum:
        """The sum with a constant per row added."""
        fraction = max(self.value.fraction, bias.fraction)
        shift = fraction - self.value.fraction
        check(int(self.partial.max()) << shift)
        offset = bias.at(fraction).low.reshape(-1, *[1] * (self.partial.ndim - 1))
        total = add(self.value, Interval(offset, offset, fraction))
        granule = np.where(offset == 0, LIMIT, offset & -offset)
        return Sum(total, (self.partial << shift) + np.abs(offset), np.minimum(self.granule << shift, granule))


def weighted(x: Interval, weights: Interval) -> Sum:
    """Bounds of `weights @ x` for x of shape (K, P) and constant weights of shape (N, K)."""
    check(int(x.magnitude.max()) * int(weights.magnitude.max()) * x.shape[0])
    positive, negative = np.maximum(weights.low, 0), np.minimum(weights.low, 0)
    low = dot(positive, x.low) + dot(negative, x.high)
    high = dot(positive, x.high) + dot(negative, x.low)
    partial = dot(positive - negative, x.magnitude)
    bits = np.bitwise_or.reduce(np.abs(weights.low), axis=1, keepdims=True)
    return Sum(Interval(low, high, x.fraction + weights.fraction), partial, np.where(bits == 0, 1, bits & -bits))


def convolve(x: Interval, weights: Interval, strides: Sequence[int], pads: Sequence[int], groups: int) -> Sum:
    """Bounds of a convolution of x (C, *spatial) with constant weights (N, C / groups, *kernel)."""
    kernel, parts = weights.shape[2:], []
    low, high = (windows(side, kernel, strides, pads) for side in (x.low, x.high))
    spatial, channels, rows = low.shape[2:], x.shape[0] // groups, weights.shape[0] // groups
    for group in range(groups):
        chosen = slice(group * channels, (group + 1) * channels)
        columns = [side[chosen].reshape(channels * side.shape[1], -1) for side in (low, high)]
        matrix = weights.low[group * rows : (group + 1) * rows].reshape(rows, -1)
        parts.append(weighted(Interval(columns[0], columns[1], x.fraction), Interval(matrix, matrix, weights.fraction)))
    ones = [1] * len(spatial)
    return Sum(
        Interval(
            np.concatenate([part.value.low for part in parts]).reshape(-1, *spatial),
            np.concatenate([part.value.high for part in parts]).reshape(-1, *spatial),
            x.fraction + weights.fraction,
        ),
        np.concatenate([part.partial for part in parts]).reshape(-1, *spatial),
        np.concatenate([part.granule for part in parts]).reshape(-1, *ones),
    )


def dot(a: Integers, b: Integers) -> Integers:
    """Integer matrix product through float64, exact below 2^53."""
    return np.asarray(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def windows(values: Integers, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> Integers:
    """The elements under each kernel position.

    Args:
        values: shape (C, *spatial).
        pads: ONNX order, all begins and then all ends; padded with zeros.

    Returns:
        shape (C, product of kernel, *output spatial).
    """
    rank = len(kernel)
    padded = np.pad(values, [(0, 0), *((pads[i], pads[i + rank]) for i in range(rank))])
    view = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), axis=tuple(range(1, rank + 1)))
    chosen = (slice(None), *(slice(None, None, step) for step in strides))
    moved = np.moveaxis(view[chosen], range(rank + 1, 2 * rank + 1), range(1, rank + 1))
    return moved.reshape(values.shape[0], -1, *moved.shape[rank + 1 :])
