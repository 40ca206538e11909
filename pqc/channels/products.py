"""Layers: each output channel reads the input channels that its weights are not zero for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import constants, layers
from pqc.channels.atoms import NAN, Axes, Axis, Channels, Product


def matmul(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Activations of any rank times a constant matrix."""
    axes, sides, weight = found.of(node.inputs[0]), found.of(node.inputs[1]), found.array(node.inputs[1])
    if axes is None or len(axes) < 2 or sides is None or weight is None or weight.ndim != 2:
        return None
    rows, (left, right) = axes[-1], sides
    if rows is None or left is None or right is None:
        return None
    found.tie(rows.atoms, left.atoms)
    output = _product(found, node, rows, right, weight != 0, weight.astype(np.float64))
    return [[*(None if axis is None else axis.where(axis.level == 0) for axis in axes[:-1]), output]]


def gemm(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Activations times a constant matrix plus a row, with alpha and beta."""
    axes, sides, weight = found.of(node.inputs[0]), found.of(node.inputs[1]), found.array(node.inputs[1])
    if axes is None or sides is None or weight is None or node.attributes.get_int("transA", 0) != 0:
        return None
    if node.attributes.get_int("transB", 0):
        weight, sides = weight.T, sides[::-1]
    (batch, rows), (left, right) = axes, sides
    if rows is None or left is None or right is None or not _tie_bias(found, node, right):
        return None
    found.tie(rows.atoms, left.atoms)
    scaled = any(node.attributes.get_float(factor, 1.0) != 1.0 for factor in ("alpha", "beta"))
    output = _product(found, node, rows, right, weight != 0, weight.astype(np.float64), uniform=not scaled)
    output = output.where(output.level == 0) if scaled else output
    return [[None if batch is None else batch.where(False), output]]


def conv(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Conv and ConvTranspose of any rank, in groups or not."""
    axes, sides, weight = found.of(node.inputs[0]), found.of(node.inputs[1]), found.array(node.inputs[1])
    dims = found.dims(node.outputs[0])
    if axes is None or axes[1] is None or sides is None or weight is None or dims is None:
        return None
    groups, transposed = node.attributes.get_int("group", 1), node.op_type == "ConvTranspose"
    kernel = weight.reshape(*weight.shape[:2], -1)
    touches, sums = (_matrix(part, groups, transposed) for part in ((kernel != 0).any(-1), kernel.sum(-1, np.float64)))
    found.pin([*axes[2:], *sides[2:]])
    left, right = sides[:2] if transposed else sides[1::-1]
    assert left is not None and right is not None
    outputs = _tie_weight(found, axes[1], left, right, groups, transposed)
    if not _tie_bias(found, node, outputs):
        return None
    output = _product(found, node, axes[1], outputs, touches, sums, uniform=not transposed and not pads(node))
    batch = None if axes[0] is None else axes[0].where(False)
    return [[batch, output, *(None if length is None else found.stay(length) for length in dims[2:])]]


def _matrix(kernel: np.ndarray, groups: int, transposed: bool) -> np.ndarray:
    """(input channels, output channels) of a kernel without its positions: a block a group."""
    blocks = kernel.reshape(groups, -1, kernel.shape[1])
    blocks = blocks if transposed else blocks.transpose(0, 2, 1)
    wide = np.zeros((groups, blocks.shape[1], groups, blocks.shape[2]), kernel.dtype)
    each = np.arange(groups)
    wide[each, :, each] = blocks
    return wide.reshape(groups * blocks.shape[1], -1)


def _tie_weight(found: Channels, rows: Axis, left: Axis, right: Axis, groups: int, transposed: bool) -> Axis:
    """Tie the weight's axes to inputs and outputs and give the outputs; a group stays or goes as a whole."""
    if groups == 1:
        found.tie(rows.atoms, left.atoms)
        return right
    inner, outer = (right, left) if transposed else (left, right)
    found.pin([inner])
    first = rows.atoms.reshape(groups, -1)[:, :1]
    found.tie(rows.atoms.reshape(groups, -1), first)
    found.tie(outer.atoms.reshape(groups, -1), first)
    if not transposed:
        return right
    atoms = np.repeat(first.reshape(-1), len(right))
    return Axis(atoms, np.full(len(atoms), NAN))


def _tie_bias(found: Channels, node: ir.Node, outputs: Axis) -> bool:
    """Tie the bias to the outputs; False where it is no row of them."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    axes = found.of(node.inputs[2])
    known = [axis for axis in axes or [] if axis is not None]
    if axes is None or len(known) < len(axes) or any(len(axis) > 1 for axis in known[:-1]):
        return False
    found.tie(outputs.atoms, *(axis.atoms for axis in known[-1:] if len(axis) > 1))
    return True


def pads(node: ir.Node) -> bool:
    """Whether a window may reach beyond its input."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    return mode not in ("NOTSET", "VALID") or any(node.attributes.get_ints("pads", []))


def _product(
    found: Channels,
    node: ir.Node,
    rows: Axis,
    outputs: Axis,
    touches: np.ndarray,
    sums: np.ndarray,
    *,
    uniform: bool = True,
) -> Axis:
    """Note a layer and give its outputs' axis. `uniform`: a constant input adds the same at every position."""
    constant = np.flatnonzero(~np.isnan(rows.level) & (rows.level != 0))
    shifts = rows.level[constant, None].astype(np.float64) * sums[constant]
    foldable = uniform and layers.source(node.inputs[1]) is not None
    found.products.append(Product(node, rows, outputs.atoms, touches, constant, shifts, foldable))
    varies = touches[np.isnan(rows.level)].any(axis=0)
    if not uniform:
        varies |= touches[constant].any(axis=0)
        shifts = shifts[:0]
    terms = np.vstack([shifts, _added(found, node, len(varies))[None]])
    if found.exact:
        varies |= ~constants.sums_exactly(terms)
    return Axis(outputs.atoms, np.where(varies, NAN, terms.sum(axis=0).astype(np.float32)))


def _added(found: Channels, node: ir.Node, columns: int) -> np.ndarray:
    """What the node itself adds to each output, NaN where that is computed."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(columns)
    array = found.array(value)
    return np.full(columns, np.nan) if array is None else np.resize(array, columns).astype(np.float64)
