"""Integer bits from numbers: what a quantizer of a given width should cover, for each of its lanes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pqc.fixed_point import rounded

METHODS = ("mse", "min-max", "percentile", "entropy")
STEPS = 24
"""How far below what holds everything a smaller range is looked for."""
SEARCHED = 1 << 22
"""How many numbers of a tensor, evenly spaced, a search weighs; extremes and percentiles take all."""
BINS = 2048
FEW = 256
"""A lane of fewer numbers has no histogram to speak of; the squared error decides then."""


@dataclass(frozen=True)
class Calibration:
    """How integer bits follow from numbers x, the width staying as it is.

    Args:
        method: `min-max` takes the fewest that hold all of x, the last step aside; `percentile` those that hold that
            percentile of |x|; `mse` those of the least squared error; `entropy` those whose quantized histogram
            diverges least from that of x (Migacz 2017, with the skew of Lee 1999).
        percent: the percentile.
    """

    method: str = "mse"
    percent: float = 99.99


@dataclass(frozen=True)
class Kind:
    """What calibration leaves of a quantizer as it is.

    Args:
        magnitude: bits without the sign [lanes].
        signed: whether there is a sign beside them.
        rounding: in the words of ap_fixed or of QONNX.
        overflow: SAT, SAT_SYM, WRAP or WRAP_SM.
    """

    magnitude: np.ndarray
    signed: bool
    rounding: str = "ROUND"
    overflow: str = "SAT"

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest value in steps, [lanes] each."""
        levels = np.ldexp(1.0, self.magnitude.astype(int))
        symmetric = self.overflow in ("SAT_SYM", "WRAP_SM")
        return -float(self.signed) * (levels - symmetric), levels - 1


def by_lane(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers that share bits, [lanes, numbers], where bits of `shape` broadcast to x."""
    full = (1,) * (x.ndim - len(shape)) + shape
    kept = [axis for axis, length in enumerate(full) if length > 1]
    return np.moveaxis(x, kept, range(len(kept))).reshape(math.prod(shape), -1).astype(np.float64)


def integer_bits(x: np.ndarray, kind: Kind, how: Calibration) -> np.ndarray:
    """The integer bits of each lane, without the sign; where a lane has no number to hold, NaN.

    What wraps must hold all of x once it is rounded, whatever the method: a number beyond the range would come back at
    its other end.

    Args:
        x: [lanes, numbers].
        kind: what is given.
        how: the method.
    """
    x = x if kind.signed else np.maximum(x, 0)
    wraps = kind.overflow.startswith("WRAP")
    limit = np.percentile(np.abs(x), how.percent, axis=1) if how.method == "percentile" and not wraps else np.inf
    top = least_holding(np.maximum(x.min(axis=1), -limit), np.minimum(x.max(axis=1), limit))
    empty = ~np.isfinite(top)
    top = np.where(empty, 0, top)
    if wraps:
        found = _holding_rounded(x, top, kind)
    elif how.method in ("mse", "entropy"):
        found = _searched(x, top, kind, how.method)
    else:
        found = top
    return np.where(empty, np.nan, found)


def least_holding(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The smallest integer i with -2^i <= low and high < 2^i; -inf where neither needs a bit."""
    above = np.where(high > 0, np.frexp(high)[1], -np.inf)
    mantissa, exponent = np.frexp(-low)
    return np.maximum(above, np.where(low < 0, exponent - (mantissa == 0.5), -np.inf))


def _holding_rounded(x: np.ndarray, top: np.ndarray, kind: Kind) -> np.ndarray:
    """One bit more than `top` where the extremes, rounded, leave the range."""
    low, high = kind.bounds()
    step = np.ldexp(1.0, (top - kind.magnitude).astype(int))
    ends = [rounded(end / step, kind.rounding) for end in (x.min(axis=1), x.max(axis=1))]
    return top + ((ends[0] < low) | (ends[1] > high))


def _searched(x: np.ndarray, top: np.ndarray, kind: Kind, method: str) -> np.ndarray:
    if method == "entropy" and x.shape[1] >= FEW:
        pairs = zip(x, top, kind.magnitude, strict=True)
        return np.array([_by_entropy(lane, int(i), int(width), kind) for lane, i, width in pairs])
    count = max(SEARCHED // len(x), FEW)
    places = np.linspace(0, x.shape[1] - 1, min(count, x.shape[1])).astype(int)
    return _by_error(x if len(places) == x.shape[1] else x[:, places], top, kind)


def _by_error(x: np.ndarray, top: np.ndarray, kind: Kind) -> np.ndarray:
    """The bits of the least mean squared error; of equals the most.

    One bit more than holds x is tried, too: the highest number 2^i - 2^-f falls short of what is just below 2^i.
    The error of clipping alone only grows with a smaller range, which ends the search.
    """
    low, high = (bound[:, None] for bound in kind.bounds())
    best, least = top + 1, np.full(len(x), np.inf)
    for bits in (top + 1 - down for down in range(STEPS + 2)):
        step = np.ldexp(1.0, (bits - kind.magnitude).astype(int))[:, None]
        v = x / step
        clipped = np.clip(v, low, high)
        if np.all(np.square((clipped - v) * step).mean(axis=1) > least):
            break
        error = np.square((rounded(clipped, kind.rounding) - v) * step).mean(axis=1)
        best, least = np.where(error < least, bits, best), np.minimum(error, least)
    return best


def _by_entropy(x: np.ndarray, top: int, magnitude: int, kind: Kind) -> int:
    """The bits of the least divergence KL(P || 0.99 P' + 0.01 P) of histograms; of equals the most.

    P' spreads what falls on a level evenly over the bins with P > 0 that round to it unclipped.
    """
    counts, edges = np.histogram(x, BINS)
    held = counts > 0
    p, centres = counts[held] / counts.sum(), (0.5 * (edges[:-1] + edges[1:]))[held]
    low, high = Kind(np.array([magnitude]), kind.signed, overflow=kind.overflow).bounds()

    def divergence(bits: int) -> float:
        v = np.ldexp(centres, magnitude - bits)
        levels = rounded(np.clip(v, low, high), kind.rounding)
        inside = levels == rounded(v, kind.rounding)
        _, level = np.unique(levels, return_inverse=True)
        share = np.bincount(level, weights=p) / np.maximum(np.bincount(level, weights=inside), 1)
        return float((p * np.log(p / (0.99 * inside * share[level] + 0.01 * p))).sum())

    return min(range(top, top - STEPS - 1, -1), key=divergence)
