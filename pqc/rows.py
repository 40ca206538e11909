"""The number of rows in shapes, also where a Reshape has multiplied it with its neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Rows:
    """The number of rows: its symbol, the number it was, and a value that has it as its first length.

    A length that a Reshape made of the rows and its neighbours is the symbol `outer*batch*inner`.
    """

    name: str
    size: int
    source: ir.Value

    def holds(self, dim: object) -> bool:
        """Whether the rows are part of a length."""
        return self.name in _text(dim).split("*")

    def factors(self, dim: object) -> tuple[int, int]:
        """The lengths outside and inside the rows, in one that holds them."""
        parts = _text(dim).split("*")
        return (int(parts[0]), int(parts[2])) if len(parts) == 3 else (1, 1)

    def length(self, dim: object) -> int | None:
        """What a length was before."""
        if isinstance(dim, int):
            return dim
        return math.prod(self.factors(dim)) * self.size if self.holds(dim) else None

    def symbol(self, length: int, inner: int) -> ir.SymbolicDim:
        """The symbol of a length that was `length`."""
        outer = length // self.size // inner
        return ir.SymbolicDim(self.name if outer == inner == 1 else f"{outer}*{self.name}*{inner}")


def _text(dim: object) -> str:
    return str(dim.value) if isinstance(dim, ir.SymbolicDim) else str(dim)
