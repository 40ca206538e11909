"""Quantizers whose scale is trained: where they are, and what their scales start from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.functions.scale import POWER_OF_TWO_SCALE, SCALES
from pqc.rewriting import explain

SCALE = "scale"
"""The role of trained scales among the parameters."""


@dataclass(frozen=True)
class ScaleSite:
    """A Quant whose scale a node computes from a trained tensor.

    Args:
        node: the Quant.
        scale: the node that computes its scale.
    """

    node: ir.Node
    scale: ir.Node

    @property
    def trained(self) -> ir.Value:
        """The tensor that is trained, of the rank of what is rounded: the scale, or its logarithm to the base 2."""
        return graph.operand(self.scale, 0)

    @property
    def power_of_two(self) -> bool:
        """Whether the scale stays a power of two."""
        return (self.scale.domain, self.scale.op_type) == POWER_OF_TWO_SCALE.key

    @property
    def magnitude(self) -> int:
        """Bits beside the sign."""
        bits = layers.widths(self.node)
        assert bits is not None
        return int(bits.max()) - self.node.attributes.get_int("signed", 1)

    def start(self, scale: np.ndarray) -> np.ndarray:
        """What the trained tensor holds where the scale is to be `scale`, in its own precision or the nearest."""
        return np.asarray(np.log2(scale) if self.power_of_two else scale, np.float32)


def sites(main: ir.Graph) -> Iterator[ScaleSite]:
    """The quantizers with trained scales in the order of the graph."""
    keys = {operator.key for operator in SCALES.values()}
    for node in main:
        scale = graph.operand(node, 1).producer() if layers.is_qonnx_quant(node) else None
        if scale is not None and (scale.domain, scale.op_type) in keys:
            yield ScaleSite(node, scale)


def share(elements: int, scales: int, magnitude: int) -> float:
    """What the gradient of a scale is multiplied by: 1 / sqrt(N Qp).

    N elements share a scale, rows of a batch not counted; Qp is the highest level. Source: Esser et al. 2020, sec. 2.2.
    """
    return 1 / math.sqrt(elements / scales * max(2**magnitude - 1, 1))


def first_scale(numbers: np.ndarray, shape: tuple[int, ...], magnitude: int) -> np.ndarray:
    """What scales start from: 2 mean|x| / sqrt(Qp), or mean|x|, the least squares, where there is only a sign.

    Args:
        numbers: what is rounded, [rows, ...].
        shape: of the scales, of the rank of `numbers`; one where they are shared.
        magnitude: bits beside the sign.

    Returns:
        float64 of that shape; zero where all numbers are. Source: Esser et al. 2020, sec. 2.1.
    """
    shared = tuple(axis for axis, length in enumerate(shape) if length == 1)
    mean = np.abs(numbers.astype(np.float64)).mean(axis=shared, keepdims=True)
    return np.asarray(2 * mean / math.sqrt(2**magnitude - 1) if magnitude else mean)


def nearest_power_of_two(scale: np.ndarray) -> np.ndarray:
    """The power of two at the least distance, the lower of two; of numbers above zero."""
    mantissa, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(1.0, exponent - (mantissa <= 0.75)))


def sign_only(node: ir.Node) -> bool:
    """Whether a Quant has one signed bit and a constant scale."""
    grid = layers.grid(node) if layers.is_qonnx_quant(node) else None
    return grid is not None and bool(grid.signed and np.all(grid.bits == 1) and not np.any(grid.zero_point))


def fit_signs(main: ir.Graph, node: ir.Node, numbers: np.ndarray) -> bool:
    """Give signs the power of two that is nearest to the mean magnitude of the numbers [rows, ...]."""
    old = np.asarray(graph.constant(node.inputs[1]))
    shape = (1,) * (numbers.ndim - old.ndim) + old.shape
    mean = first_scale(numbers, shape, 0).reshape(old.shape)
    found = np.where(mean > 0, nearest_power_of_two(mean), old).astype(np.float32)
    if np.array_equal(found, old):
        return False
    replace_constant(main, node, 1, found)
    explain(node, f"now scales of {found.min():g} to {found.max():g}")
    return True


def begin(main: ir.Graph, site: ScaleSite, numbers: np.ndarray) -> bool:
    """Let a learned scale start from the numbers [rows, ...], with a sign where negative ones occur."""
    old, was_signed, magnitude = graph.stored(site.trained), site.node.attributes.get_int("signed", 1), site.magnitude
    signed = int(numbers.min() < 0 or magnitude == 0 or (layers.source(site.node.inputs[0]) is not None and was_signed))
    scale = first_scale(numbers, old.shape, magnitude)
    start = np.where(scale > 0, site.start(np.where(scale > 0, scale, 1)), old)
    if np.array_equal(start, old) and signed == was_signed:
        return False
    graph.set_initializer(site.trained, start)
    replace_constant(main, site.node, 3, np.asarray(magnitude + signed, np.float32))
    site.node.attributes["signed"] = ir.AttrInt64("signed", signed)
    explain(site.node, f"now {'signed' if signed else 'unsigned'}, starting from scales of {scale.min():g} on")
    return True


def replace_constant(main: ir.Graph, node: ir.Node, place: int, array: np.ndarray) -> None:
    """Change what a quantizer alone reads, or give it a value of its own."""
    value = graph.operand(node, place)
    if value.is_initializer() and len(value.uses()) == 1:
        graph.set_initializer(value, array)
    else:
        names = graph.Names(main)
        node.replace_input_with(place, graph.add_initializer(main, names.new(f"{value.name}.own"), array))
