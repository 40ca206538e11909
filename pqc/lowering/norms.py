"""Normalizations of a sample by itself as their steps; gain and shift are trained."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.blocks import BlockWriter
from pqc.errors import UnsupportedError
from pqc.trained_constants import GAIN, SHIFT
from pqc.writer import Writer

BY_GROUPS = ("InstanceNormalization", "GroupNormalization")


def instance(main: ir.Graph, node: ir.Node) -> int:
    """InstanceNormalization: each channel of each sample."""
    return _by_groups(main, node, _channels(node))


def group(main: ir.Graph, node: ir.Node) -> int:
    """GroupNormalization: the channels of a group together; gain and shift are those of a channel (opset 21)."""
    return _by_groups(main, node, node.attributes.get_int("num_groups", 1))


def layer(main: ir.Graph, node: ir.Node) -> int:
    """LayerNormalization, with its mean and 1 / deviation where they are read."""
    x = graph.operand(node, 0)
    if x.shape is None:
        raise UnsupportedError("LayerNormalization of an unknown rank", at=f"node '{node.name}'")
    rank = len(x.shape)
    write = Writer(main, node)
    normalized, mean, inverse = _normalized(write, x, range(node.attributes.get_int("axis", -1) % rank - rank, 0))
    result = _affine(write, normalized, [*node.inputs[1:], None][:2], None)
    write.replace(result, mean, inverse)
    return 1


def batch(main: ir.Graph, node: ir.Node) -> int:
    """BatchNormalization in inference: x · c + d, c = gain / sqrt(variance + epsilon), d = shift - mean c."""
    x = graph.operand(node, 0)
    arrays = [array for value in node.inputs[1:5] if (array := graph.constant(value)) is not None]
    if node.attributes.get_int("training_mode", 0) or len(arrays) < 4 or x.shape is None:
        return 0
    gain, shift, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = gain / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    form = (-1, *[1] * (len(x.shape) - 2))
    write, result = BlockWriter(main, node), x
    for operator, array, role in (("Mul", factor, GAIN), ("Add", shift - mean * factor, SHIFT)):
        constant = write.constant(array.reshape(form).astype(np.float32), role)
        result = write.add(operator, [result, constant], role, trains=role)
        result.shape = x.shape
    write.replace(result)
    return 1


def _channels(node: ir.Node) -> int:
    shape = graph.operand(node, 0).shape
    channels = None if shape is None else shape[1]
    if not isinstance(channels, int):
        raise UnsupportedError(f"{node.op_type} of an unknown number of channels", at=f"node '{node.name}'")
    return channels


def _by_groups(main: ir.Graph, node: ir.Node, groups: int) -> int:
    """x [N, C, ...] → [N, groups, -1], normalized along the last axis, → [N, C, ...] · gain + shift"""
    x, channels = graph.operand(node, 0), _channels(node)
    assert x.shape is not None
    image = [dim for dim in x.shape.dims[2:] if isinstance(dim, int)]
    if len(image) < len(x.shape) - 2:
        raise UnsupportedError(
            f"{node.op_type} of an image whose size is not fixed: {x.shape}",
            at=f"node '{node.name}'",
            hint="export the model with fixed sizes",
        )
    write = Writer(main, node)
    size = channels // groups * math.prod(image)
    rows = write.reshape(x, (0, groups, size), "groups")
    normalized, _, _ = _normalized(write, rows, [-1])
    back = write.reshape(normalized, (0, channels, *image), "image")
    write.replace(_affine(write, back, list(node.inputs[1:3]), (channels, *[1] * len(image))))
    return 1


def _normalized(write: Writer, x: ir.Value, axes: range | list[int]) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(x - mean) r, the mean, and r = (variance + epsilon)^-1/2."""
    places = write.integers(list(axes), "axes")
    mean = write.add("ReduceMean", [x, places], "mean")
    centered = write.add("Sub", [x, mean], "centered")
    variance = write.add("ReduceMean", [write.add("Mul", [centered, centered], "square"), places], "variance")
    epsilon = write.constant(np.float32(write.origin.attributes.get_float("epsilon", 1e-5)), "epsilon")
    base = write.add("Add", [variance, epsilon], "widened")
    inverse = write.add("Pow", [base, write.constant(np.float32(-0.5), "power")], "inverse")
    return write.add("Mul", [centered, inverse], "normalized"), mean, inverse


def _affine(write: Writer, x: ir.Value, constants: list[ir.Value | None], shape: tuple[int, ...] | None) -> ir.Value:
    """x · gain + shift, both in `shape`, as trained constants where they are constants."""
    for operator, value, role in zip(("Mul", "Add"), constants, (GAIN, SHIFT), strict=True):
        if value is None:
            continue
        if shape is not None:
            value = _shaped(write, value, shape, role)
        x = write.add(operator, [x, value], role, trains=role if value.is_initializer() else None)
    return x


def _shaped(write: Writer, value: ir.Value, shape: tuple[int, ...], role: str) -> ir.Value:
    """A vector of channels in `shape`: stored so where such normalizations alone read it, which may share it."""
    array = graph.constant(value)
    if array is not None and array.shape == shape:
        return value
    alone = all(reader.op_type in BY_GROUPS and not reader.domain for reader in value.consumers())
    if array is None or not value.is_initializer() or not alone:
        return write.reshape(value, shape, f"{role}.shaped")
    graph.set_initializer(value, array.reshape(shape))
    return value
