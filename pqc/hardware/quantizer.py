"""Quantizers as numbers: the grids, the bounds and the rounding of fixed-point types."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pqc import graph, layers
from pqc.errors import UnsupportedError
from pqc.functions.fixed_quant import FIXED_QUANT, ROUNDINGS
from pqc.quantizer import AP_ROUNDING


@dataclass(frozen=True)
class FixedType:
    """A fixed-point type in hls4ml's notation: `fixed<width,integer,rounding,overflow>`.

    Args:
        width: bits in all.
        integer: bits left of the binary point, the sign included; may be negative or exceed `width`.
        signed: two's complement if true.
        rounding: of ap_fixed: `TRN` (floor), `RND_CONV` (half to even), `RND` (half up) and so on.
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


OVERFLOWS = ("SAT", "SAT_SYM", "WRAP")
"""What ap_fixed does as pqc does it."""


@dataclass(frozen=True)
class FixedTypes:
    """The types that the elements of one tensor are rounded to.

    Args:
        width: bits in all, int64, of the tensor's shape without its batch dimension, broadcast; an element of width 0
            is zero.
        integer: bits left of the binary point, the sign included, of the same shape.
        signed: two's complement if true.
        rounding: as in `FixedType`, for all.
        overflow: as in `FixedType`, for all.
    """

    width: NDArray[np.int64]
    integer: NDArray[np.int64]
    signed: bool
    rounding: str
    overflow: str

    def distinct(self) -> list[tuple[FixedType | None, NDArray[np.bool_]]]:
        """Every type, None for no bits, and the elements that have it."""
        pairs = np.stack([self.width, np.where(self.width > 0, self.integer, 0)], axis=-1)
        found = np.unique(pairs.reshape(-1, 2), axis=0)
        return [(self._type(*pair), np.all(pairs == pair, axis=-1)) for pair in found.tolist()]

    def _type(self, width: int, integer: int) -> FixedType | None:
        return FixedType(width, integer, self.signed, self.rounding, self.overflow) if width > 0 else None

    def kinds(self) -> list[FixedType]:
        """The different types with bits."""
        return [kind for kind, _ in self.distinct() if kind is not None]

    @property
    def one(self) -> FixedType | None:
        """The type of all elements, or None if they differ or have no bits."""
        kinds = self.distinct()
        return kinds[0][0] if len(kinds) == 1 else None

    @property
    def fraction(self) -> int:
        """Fraction bits of the finest grid."""
        return max((kind.fraction for kind in self.kinds()), default=0)


def fixed_types(node: ir.Node) -> FixedTypes:
    """The types that a quantizer rounds to.

    Raises:
        UnsupportedError: no fixed-point types, or a rounding or an overflow that hls4ml does not have. The legality
            rules say it better; this is the last guard.
    """
    grid = layers.grid(node)
    exponents = None if grid is None else [power_of_two(float(value)) for value in grid.scale.reshape(-1)]
    rounding = None if grid is None else AP_ROUNDING.get(grid.rounding, grid.rounding)
    if grid is None or exponents is None or None in exponents or rounding not in ROUNDINGS:
        raise UnsupportedError(f"{node.op_type} '{node.name}' is no fixed-point type", hint="run the legality rules")
    exponent = np.array(exponents, np.int64).reshape(grid.scale.shape)
    bits = np.where(grid.bits > (grid.signed if layers.is_fixed_quant(node) else 0), grid.bits, 0).astype(np.int64)
    width, exponent = (_without_batch(array, node) for array in np.broadcast_arrays(bits, exponent))
    overflow = "SAT_SYM" if grid.narrow else grid.overflow.replace("SAT_SYM", "SAT")
    return FixedTypes(width, width + exponent, grid.signed, rounding, overflow)


def _without_batch(array: np.ndarray, node: ir.Node) -> np.ndarray:
    if array.size == 1:
        return array.reshape(())
    if array.ndim > 1 and array.shape[0] != 1 and graph.constant(node.inputs[0]) is None:
        raise UnsupportedError("its types differ along the batch", at=f"{node.op_type} '{node.name}'")
    return array[0] if array.ndim > 1 and array.shape[0] == 1 else array


def told(kind: FixedType) -> FixedType:
    """The type next to `kind` that a Quant can tell hls4ml; the right modes are set in hls4ml's own graph."""
    rounding = "TRN" if kind.rounding == "TRN" else "RND_CONV"
    return replace(kind, rounding=rounding, overflow="SAT_SYM" if kind.overflow == "SAT_SYM" else "SAT")


def parameter(node: ir.Node, index: int) -> np.ndarray | None:
    """The constant behind input `index` of a Quant (1 scale, 2 zero point, 3 bit width), or None."""
    return graph.constant(node.inputs[index]) if index < len(node.inputs) else None


def fixed_type(node: ir.Node) -> FixedType:
    """The one type that a quantizer rounds to.

    Raises:
        UnsupportedError: there are several, or what `fixed_types` refuses.
    """
    kind = fixed_types(node).one
    if kind is None:
        raise UnsupportedError(f"{node.op_type} '{node.name}' has no type or several", hint="run the legality rules")
    return kind


def rounds_to_one(node: ir.Node | None) -> bool:
    """Whether `node` is a quantizer with one type for all elements: hls4ml makes it a part of the layer before."""
    return node is not None and layers.is_quant(node) and fixed_types(node).one is not None


def as_fixed(
    main: ir.Graph, node: ir.Node, names: graph.Names, x: ir.Value, rounding: str, alive: np.ndarray | None = None
) -> ir.Node:
    """The FixedQuant of `x` that computes what QONNX's Quant `node` does, with another rounding, not yet in the graph.

    Args:
        main: gets the bits as initializers.
        node: a Quant with constant parameters, power of two scales and zero points of 0.
        names: for the new values.
        x: what is rounded.
        rounding: as ap_fixed calls it.
        alive: 0 where an element is zero; broadcasts with the scales.
    """
    grid = layers.grid(node)
    assert grid is not None
    fraction = 1 - np.frexp(grid.scale)[1]
    parts = [grid.bits - grid.signed - fraction, fraction, np.ones(()) if alive is None else alive]
    integer, fraction, alive = np.broadcast_arrays(*parts)
    bits = {"integer_bits": np.where(alive != 0, integer, -fraction), "fractional_bits": fraction}
    constants = [
        graph.add_initializer(main, names.new(f"{node.name}.{part}"), np.asarray(array, np.float32))
        for part, array in bits.items()
    ]
    overflow = "SAT_SYM" if grid.narrow and grid.signed else "SAT"
    attributes = {"signed": int(grid.signed), "rounding": rounding, "overflow": overflow}
    output = ir.val(names.new(f"{node.name}.raised"), node.outputs[0].dtype, node.outputs[0].shape)
    domain, operator = FIXED_QUANT.key
    name = names.new(f"{node.name}.fixed")
    return ir.node(operator, [x, *constants], attributes, domain=domain, name=name, outputs=[output])


def power_of_two(value: float) -> int | None:
    """The exponent of `value` if it is a positive power of two, else None."""
    if not (value > 0 and math.isfinite(value)):
        return None
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else None
