"""Operators that look at many positions of one channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pqc.channels.atoms import Axes, Channels
from pqc.channels.moves import places
from pqc.channels.products import pads


def pool(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Pools over space, in windows or global."""
    axes, dims = found.of(node.inputs[0]), found.dims(node.outputs[0])
    if axes is None or dims is None or axes[1] is None:
        return None
    found.pin(axes[2:])
    image = [None if axis is None else len(axis) for axis in axes[2:]]
    kernel = node.attributes.get("kernel_shape")
    windows = image if kernel is None else kernel.as_ints()
    whole = not pads(node) and not node.attributes.get_int("ceil_mode", 0)
    same = "Max" in node.op_type or (whole and _divides(found, windows))
    batch = None if axes[0] is None else axes[0].where(False)
    space = [None if length is None else found.stay(length) for length in dims[2:]]
    return [[batch, axes[1].where(same | (axes[1].level == 0)), *space]]


def _divides(found: Channels, sizes: Sequence[int | None]) -> bool:
    """Whether the mean of so many equal numbers is that number."""
    known = [size for size in sizes if size is not None]
    volume = math.prod(known)
    return len(known) == len(sizes) and (not found.exact or volume & (volume - 1) == 0)


def reduce(found: Channels, node: ir.Node) -> list[Axes] | None:
    """ReduceMean and its like over named axes, whose positions stay."""
    axes, named = found.of(node.inputs[0]), places(found, node)
    if axes is None or not named:
        return None
    gone = {place % len(axes) for place in named}
    found.pin([axes[place] for place in gone])
    sizes = [None if axis is None else len(axis) for axis in (axes[place] for place in gone)]
    same = node.op_type in ("ReduceMax", "ReduceMin") or (node.op_type == "ReduceMean" and _divides(found, sizes))
    result: Axes = []
    for place, axis in enumerate(axes):
        if place not in gone:
            result.append(None if axis is None else axis.where(same | (axis.level == 0)))
        elif node.attributes.get_int("keepdims", 1):
            result.append(found.stay(1))
    return [result]


def pad(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Pad over space; a padded axis stays."""
    axes, dims, widths = found.of(node.inputs[0]), found.dims(node.outputs[0]), found.numbers(node.inputs[1])
    if axes is None or dims is None or widths is None or any(value is not None for value in node.inputs[3:]):
        return None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    fill = np.zeros(1, np.float32) if value is None else found.array(value)
    same = node.attributes.get_string("mode", "constant") != "constant"
    result: Axes = []
    for axis, length, widened in zip(axes, dims, np.any(np.reshape(widths, (2, -1)), axis=0), strict=True):
        if widened:
            found.pin([axis])
            result.append(None if length is None else found.stay(length))
        else:
            filled = fill is not None and axis is not None and axis.level == fill.reshape(-1)[0]
            result.append(None if axis is None else axis.where(same | np.asarray(filled)))
    return [result]
