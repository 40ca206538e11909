"""Conventions of counting bit operations: each a few choices, under a name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pqc import graph
from pqc.errors import PqcError
from pqc.layers import Layer
from pqc.options import nearest

KERNELS = ("Conv", "ConvTranspose")


def outputs(layer: Layer) -> float:
    """How many outputs one bias is added to."""
    return _positions(layer, graph.row_shape(layer.output))


def input_positions(layer: Layer) -> float:
    """Of a convolution the positions of its input, which HGQ2 takes for those of its output."""
    return _positions(layer, graph.row_shape(layer.data))


def input_elements(layer: Layer) -> float:
    """Of a convolution the elements of its input for all biases together, as the published formula has it."""
    if layer.node.op_type not in KERNELS:
        return outputs(layer)
    return math.prod(graph.row_shape(layer.data)) / layer.channels("output")


def _positions(layer: Layer, shape: tuple[int, ...]) -> float:
    return math.prod(shape[2:] if layer.node.op_type in KERNELS else shape[1:-1])


@dataclass(frozen=True)
class Convention:
    """What counts.

    Args:
        name: what it is called.
        signs: sign bits are part of a width.
        lone_signs: so is the sign of a number that has no other bits, which is always zero.
        zeros: parameters that are zero count, unless their mask makes them so.
        additions: what only adds counts: biases, pools, look-ups, sums.
        sums: what a bit of a sum of activations counts.
        differences: what a bit of a difference of activations counts.
        narrowest_free: the operand of a sum that costs nothing is its narrowest one, and not its widest one.
        comparisons: taking the largest of several numbers counts as adding them does.
        every_position: a convolution has its multipliers once for each position, and not once.
        crossed_groups: each filter of a depthwise convolution meets every channel.
        layer_norms: layer normalizations count.
        bias_uses: how many times a layer's bias is added.
    """

    name: str
    signs: bool = True
    lone_signs: bool = False
    zeros: bool = False
    additions: bool = True
    sums: float = 1.0
    differences: float = 1.0
    narrowest_free: bool = False
    comparisons: bool = False
    every_position: bool = False
    crossed_groups: bool = False
    layer_norms: bool = True
    bias_uses: Callable[[Layer], float] = outputs


PRODUCTS = Convention("products", additions=False)
"""Products of two widths only."""
PRODUCTS_AND_ADDITIONS = Convention("products+additions")
"""Products, and of each addition the narrower operand; of a bias all bits, once for each output."""
HGQ2 = Convention(
    "hgq2",
    signs=False,
    sums=0.65,
    narrowest_free=True,
    comparisons=True,
    every_position=True,
    bias_uses=input_positions,
)
"""What HGQ2 0.2.0 counts where every position of a convolution has multipliers of its own, its default.

A sum leaves its narrowest operand out, a pool of maxima costs as much as one of averages, and the bias of a convolution
is added once for each position of its input. Two differences remain. HGQ2 counts the bits of a parameter that has some
and rounds to zero, which is left out here; and it adds the sign of what its own `SAT` rounds, but QONNX does not tell
`SAT` from `WRAP`, so no sign counts here.
"""
REFERENCE = Convention(
    "reference",
    lone_signs=True,
    sums=0.0,
    differences=0.0,
    crossed_groups=True,
    layer_norms=False,
    bias_uses=input_elements,
)
"""What the published formulas count, with their known defects.

A number without magnitude bits costs its sign; the bias of a convolution counts the elements of its input; each filter
of a depthwise convolution meets every channel, and other groups have no count; layer normalization costs nothing, nor
do sums of activations. Parameters that are zero are left out, as in the published count after training, not in its
loss.
"""
DEFAULT = PRODUCTS_AND_ADDITIONS
CONVENTIONS = {one.name: one for one in (PRODUCTS, PRODUCTS_AND_ADDITIONS, HGQ2, REFERENCE)}


def named(name: str) -> Convention:
    """The convention of that name.

    Raises:
        PqcError: there is none.
    """
    if name not in CONVENTIONS:
        raise PqcError(
            f"no convention '{name}'{nearest(name, CONVENTIONS)}", hint=f"conventions: {', '.join(CONVENTIONS)}"
        )
    return CONVENTIONS[name]
