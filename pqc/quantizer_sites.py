"""Quantizers with bits of their own in a graph: where they are, and which of their bits are learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph, layers

LEARNS = "pqc.learns"
"""The key of a quantizer's metadata that tells what it learns: `bits` or `fractional_bits`."""
GROUPED = "pqc.group"
"""The key of metadata that tells how many inputs share bits, which were fitted when the quantizer was made."""
INTEGER, FRACTION = "integer_bits", "fractional_bits"
"""The roles of bits among the parameters, and the ends of their names."""
STOCHASTIC = "pqc.stochastic"
"""The key of metadata of a quantizer that rounds up or down by chance in a training step."""
LIMIT = 23.0
"""Bits stay between -LIMIT and LIMIT."""


@dataclass(frozen=True)
class BitsSite:
    """A FixedQuant node.

    Args:
        node: the node.
        learns: `bits`, `fractional_bits` or None.
    """

    node: ir.Node
    learns: str | None

    @property
    def x(self) -> ir.Value:
        """What is rounded."""
        return graph.operand(self.node, 0)

    @property
    def i(self) -> ir.Value:
        """The integer bits."""
        return graph.operand(self.node, 1)

    @property
    def f(self) -> ir.Value:
        """The fractional bits."""
        return graph.operand(self.node, 2)

    @property
    def of_parameter(self) -> bool:
        """Whether a weight or a bias is rounded."""
        return layers.source(self.x) is not None

    @property
    def follows(self) -> bool:
        """Whether the integer bits follow the numbers that are met."""
        return self.learns == FRACTION


def sites(main: ir.Graph) -> Iterator[BitsSite]:
    """The FixedQuant nodes in the order of the graph."""
    for node in main:
        if layers.is_fixed_quant(node):
            yield BitsSite(node, node.metadata_props.get(LEARNS))


def ordered(main: ir.Graph) -> list[BitsSite]:
    """The quantizers that learn: of weights in the order of layers, of biases, then of activations."""
    known = layers.layers(main)
    places: dict[ir.Value | None, int] = {layer.weight: number for number, layer in enumerate(known)}
    places |= {layer.bias: len(known) + number for number, layer in enumerate(known) if layer.bias is not None}
    found = [site for site in sites(main) if site.learns]
    return sorted(found, key=lambda site: places.get(layers.source(site.x), 2 * len(known)))


def trained(main: ir.Graph) -> list[tuple[ir.Value, str]]:
    """The bits that the optimizer moves, with their roles."""
    found = {site.f: FRACTION for site in ordered(main)}
    return [*found.items(), *{site.i: INTEGER for site in ordered(main) if not site.follows}.items()]


def followed(main: ir.Graph) -> list[tuple[ir.Value, str]]:
    """The bits that are states, with their role."""
    return [(site.i, INTEGER) for site in ordered(main) if site.follows]


def keep_bounded(values: dict[str, np.ndarray], names: list[str]) -> None:
    """Keep trained bits within what float32 can hold."""
    for name in names:
        values[name] = np.clip(values[name], -LIMIT, LIMIT)
