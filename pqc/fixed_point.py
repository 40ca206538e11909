"""Fixed point types (k, i, f): sign bit, integer bits without the sign, fractional bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FixedPoint:
    """Numbers q * 2^-f with -k 2^(i+f) <= q < 2^(i+f); `ap_fixed<k+i+f, k+i>` in hardware.

    A sign alone, i + f = 0, is binary: -2^-f or 2^-f, as QONNX reads it.

    Raises:
        ValueError: k is not 0 or 1, or no bit is left.
    """

    k: int
    i: int
    f: int

    def __post_init__(self) -> None:
        if self.k not in (0, 1):
            raise ValueError(f"the sign bit k is 0 or 1, not {self.k}")
        if not 1 <= self.k + self.i + self.f <= 32 or self.i + self.f < 0:
            raise ValueError(f"({self}) has {self.k + self.i + self.f} bits; 1 to 32 with one of magnitude are needed")
        if abs(self.f) > 64:
            raise ValueError(f"({self}) has its last bit beyond what float32 holds")

    @property
    def bits(self) -> int:
        """The total width."""
        return self.k + self.i + self.f

    @property
    def binary(self) -> bool:
        """Whether there is nothing but a sign."""
        return self.i + self.f == 0

    @property
    def scale(self) -> np.float32:
        """The value of the last bit, exactly."""
        last: np.float32 = np.float32(np.ldexp(1.0, -self.f))
        return last

    @classmethod
    def parse(cls, text: str) -> FixedPoint:
        """Read `k,i,f`.

        Raises:
            ValueError: not three integers, or not a type.
        """
        parts = text.split(",")
        if len(parts) != 3:
            raise ValueError(f"expected k,i,f and got '{text}'")
        return cls(*(int(part) for part in parts))

    def __str__(self) -> str:
        return f"{self.k},{self.i},{self.f}"


def rounded(v: np.ndarray, mode: str) -> np.ndarray:
    """The integers next to v under one of the roundings of ap_fixed or of QONNX.

    Raises:
        ValueError: no such rounding.
    """
    away = np.copysign(np.floor(np.abs(v)), v)
    fraction = np.abs(v) - np.abs(away)
    outward = np.copysign(1.0, v)
    q: np.ndarray
    match mode:
        case "ROUND" | "HALF_EVEN" | "RND_CONV":
            q = np.rint(v)
        case "TRN" | "FLOOR":
            q = np.floor(v)
        case "CEIL":
            q = np.ceil(v)
        case "TRN_ZERO" | "DOWN":
            q = away
        case "UP":
            q = away + outward * (fraction > 0)
        case "RND":
            q = np.floor(v) + (v - np.floor(v) >= 0.5)
        case "RND_MIN_INF":
            q = np.ceil(v) - (np.ceil(v) - v >= 0.5)
        case "RND_INF" | "HALF_UP":
            q = away + outward * (fraction >= 0.5)
        case "RND_ZERO" | "HALF_DOWN":
            q = away + outward * (fraction > 0.5)
        case _:
            raise ValueError(f"no rounding '{mode}'")
    return q


def holding_bits(low: np.ndarray, high: np.ndarray, f: np.ndarray, *, signed: bool) -> np.ndarray:
    """The fewest integer bits whose type [-k 2^i, 2^i - 2^-f] holds the numbers from low to high on the grid 2^-f."""
    step = np.ldexp(1.0, -f.astype(int))
    top = np.rint(np.maximum(high, 0) / step) * step + step
    bottom = -np.rint(np.minimum(low, 0) / step) * step if signed else 0.0
    mantissa, exponent = np.frexp(np.maximum(top, bottom))
    bits: np.ndarray = exponent - (mantissa == 0.5)
    return bits
