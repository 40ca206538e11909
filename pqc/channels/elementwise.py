"""Operators that compute position by position: channels that meet in one become one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pqc import constants
from pqc.channels.atoms import NAN, Axes, Axis, Channels


def elementwise(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Any operator with ONNX's broadcasting, Quant included."""
    inputs = [found.of(value) for value in node.inputs if value is not None]
    known = [axes for axes in inputs if axes is not None]
    if len(known) < len(inputs):
        return None
    rank = max(map(len, known), default=0)
    return [[_joined(found, node, known, place) for place in range(-rank, 0)]]


def _joined(found: Channels, node: ir.Node, inputs: Sequence[Axes], place: int) -> Axis | None:
    """The axis `place`, counted from the right, of what all inputs are broadcast to."""
    axes = [axes[place] for axes in inputs if len(axes) >= -place]
    wide = [axis for axis in axes if axis is not None and len(axis) > 1]
    if any(axis is None for axis in axes):
        found.pin(wide)
        return None
    if not wide:
        return found.stay(1)
    found.tie(*(axis.atoms for axis in wide))
    return Axis(wide[0].atoms, _level(found, node, place, len(wide[0])))


def _level(found: Channels, node: ir.Node, place: int, length: int) -> np.ndarray:
    """What the operator makes of the levels of its inputs."""
    varies = np.full(length, NAN)
    if all(found.array(value) is not None for value in node.inputs):
        return varies
    inputs = [None if value is None else _level_of(found, value, place, length) for value in node.inputs]
    parts = [part for part in inputs if part is not None]
    if any(part.dtype != np.float32 for part in parts):
        return varies
    result = constants.evaluate(node, inputs, exact=found.exact)
    if result is None:
        return varies
    unknown = np.any([np.broadcast_to(np.isnan(part), length) for part in parts], axis=0)
    level = np.where(unknown, NAN, np.broadcast_to(result, length))
    if node.op_type == "Mul":
        level[np.any([np.broadcast_to(part == 0, length) for part in parts], axis=0)] = 0
    return level


def _level_of(found: Channels, value: ir.Value, place: int, length: int) -> np.ndarray:
    """(length) or (1): what each slice of an input holds throughout."""
    array = found.array(value)
    if array is None:
        axes = found.of(value) or []
        axis = axes[place] if len(axes) >= -place else None
        return np.full(1, NAN) if axis is None else axis.level
    long = array.ndim >= -place and array.shape[place] == length
    slices = np.moveaxis(array, place, 0).reshape(length, -1) if long else array.reshape(1, -1)
    if not slices.size:
        return np.full(1, NAN)
    return np.where((slices == slices[:, :1]).all(axis=1), slices[:, 0], NAN).astype(slices.dtype)


def norm(found: Channels, node: ir.Node) -> list[Axes] | None:
    """BatchNormalization: four parameters a channel."""
    axes, own = found.of(node.inputs[0]), [found.of(value) for value in node.inputs[1:5]]
    arrays = [found.array(value) for value in node.inputs[1:5]]
    if axes is None or len(axes) < 2 or node.attributes.get_int("training_mode", 0) != 0:
        return None
    channels = axes[1]
    if channels is None or any(array is None for array in arrays):
        return None
    found.tie(channels.atoms, *(side[0].atoms for side in own if side is not None and side[0] is not None))
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    gain = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    moved = np.full(len(channels), NAN) if found.exact else (channels.level - mean) * gain + beta
    level = np.where(gamma == 0, beta, moved).astype(np.float32)
    varying = [None if axis is None else axis.where(False) for axis in axes]
    return [[varying[0], Axis(channels.atoms, level), *varying[2:]]]
