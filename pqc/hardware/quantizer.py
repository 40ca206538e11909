"""A Quant node as numbers: the grid, the bounds and the rounding of one fixed-point type."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError


@dataclass(frozen=True)
class FixedType:
    """A fixed-point type in hls4ml's notation: `fixed<width,integer,rounding,overflow>`.

    Args:
        width: bits in all.
        integer: bits left of the binary point, the sign included; may be negative or exceed `width`.
        signed: two's complement if true.
        rounding: `TRN` (floor) or `RND_CONV` (half to even).
        overflow: `WRAP`, `SAT` or `SAT_SYM` (saturate without the lowest negative value).
    """

    width: int
    integer: int
    signed: bool = True
    rounding: str = "TRN"
    overflow: str = "WRAP"

    @property
    def fraction(self) -> int:
        """Bits right of the binary point: the grid is 2^-fraction."""
        return self.width - self.integer

    @property
    def low(self) -> int:
        """The lowest value, in units of the grid."""
        return -(1 << (self.width - 1)) + (self.overflow == "SAT_SYM") if self.signed else 0

    @property
    def high(self) -> int:
        """The highest value, in units of the grid."""
        return (1 << (self.width - self.signed)) - 1

    def __str__(self) -> str:
        name = "fixed" if self.signed else "ufixed"
        modes = "" if (self.rounding, self.overflow) == ("TRN", "WRAP") else f",{self.rounding},{self.overflow}"
        return f"{name}<{self.width},{self.integer}{modes}>"

    def covers(self, other: FixedType) -> bool:
        """Whether every value of `other` is a value of this type."""
        shift = self.fraction - other.fraction
        return shift >= 0 and self.low <= other.low << shift and other.high << shift <= self.high

    @classmethod
    def covering(cls, low: int, high: int, fraction: int) -> FixedType:
        """The narrowest type that holds every integer from `low` to `high` in units of 2^-fraction."""
        signed = low < 0
        width = max(1, max((-low - 1).bit_length() if signed else 0, max(high, 0).bit_length()) + signed)
        return cls(width, width - fraction, signed)


ROUNDING = {"ROUND": "RND_CONV", "FLOOR": "TRN"}


def parameter(node: ir.Node, index: int) -> np.ndarray | None:
    """The constant behind input `index` of a Quant (1 scale, 2 zero point, 3 bit width), or None."""
    return graph.constant(node.inputs[index]) if index < len(node.inputs) else None


def fixed_type(node: ir.Node) -> FixedType:
    """The type that the Quant `node` rounds to.

    Raises:
        UnsupportedError: a scale that is not one power of two, or a rounding that hls4ml does not have. The
            legality rules say it better; this is the last guard.
    """
    scale, bits = parameter(node, 1), parameter(node, 3)
    exponent = None if scale is None or scale.size != 1 else power_of_two(float(scale.reshape(())))
    rounding = ROUNDING.get(str(graph.attribute(node, "rounding_mode", "ROUND")))
    if exponent is None or bits is None or bits.size != 1 or rounding is None:
        raise UnsupportedError(f"Quant '{node.name}' is no fixed-point type", hint="run the legality rules first")
    signed = bool(graph.attribute(node, "signed", 1))
    width = int(bits.reshape(()))
    narrow = bool(graph.attribute(node, "narrow", 0))
    return FixedType(width, width + exponent, signed, rounding, "SAT_SYM" if narrow else "SAT")


def power_of_two(value: float) -> int | None:
    """The exponent of `value` if it is a positive power of two, else None."""
    if not (value > 0 and math.isfinite(value)):
        return None
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else None
