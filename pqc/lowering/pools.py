"""Pools in the forms that have right gradients."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import engine, graph
from pqc.errors import UnsupportedError
from pqc.functions.pools import AVERAGE_POOL, MAX_POOL
from pqc.writer import Writer


def lower(main: ir.Graph, node: ir.Node) -> int:
    """Write the pads of ceil_mode out, and drop storage_order of a MaxPool where nobody reads the indices.

    Leaves ceil_mode where an AveragePool counts its pads, and where the engine does not take as many pads.

    Raises:
        UnsupportedError: the last window holds nothing of the image, on which the engine's shapes disagree; or indices
            that count column by column are read.
    """
    return int(_by_rows(node) + _without_ceiling(node) > 0)


def _by_rows(node: ir.Node) -> bool:
    if not node.attributes.get_int("storage_order", 0):
        return False
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise UnsupportedError(
            "indices of MaxPool that count by columns (storage_order) are read",
            at=f"node '{node.name}'",
            hint="export with storage_order=0",
        )
    node.attributes.pop("storage_order")
    return True


def _without_ceiling(node: ir.Node) -> bool:
    """Whether ceil_mode was replaced by pads behind the image, as many as the last window reaches beyond it."""
    image, results = _image(graph.operand(node, 0)), _image(node.outputs[0])
    kernel = node.attributes.get_ints("kernel_shape", ())
    counts = node.attributes.get_int("count_include_pad", 0)
    if not node.attributes.get_int("ceil_mode", 0) or counts or not len(image) == len(results) == len(kernel):
        return False
    ones = [1] * len(kernel)
    strides, dilations = (node.attributes.get_ints(name, ones) for name in ("strides", "dilations"))
    begin = list(node.attributes.get_ints("pads", [0] * 2 * len(kernel)))[: len(kernel)]
    starts = [stride * (count - 1) - first for stride, count, first in zip(strides, results, begin, strict=True)]
    if any(start >= size for start, size in zip(starts, image, strict=True)):
        raise UnsupportedError(
            f"the last window of {node.op_type} lies behind the image (ceil_mode)",
            at=f"node '{node.name}'",
            hint="export with smaller pads",
        )
    reach = [dilation * (width - 1) + 1 for dilation, width in zip(dilations, kernel, strict=True)]
    ends = [max(start + far - size, 0) for start, far, size in zip(starts, reach, image, strict=True)]
    if any(end >= width for end, width in zip(ends, kernel, strict=True)):
        return False
    node.attributes.pop("ceil_mode")
    node.attributes["pads"] = ir.AttrInt64s("pads", begin + ends)
    return True


def _image(value: ir.Value) -> list[int]:
    """The lengths behind batch and channels that are numbers."""
    return [] if value.shape is None else [dim for dim in value.shape.dims[2:] if isinstance(dim, int)]


def differentiable(main: ir.Graph) -> int:
    """Put pqc's own pools where the engine's gradient fails: a batch of any length, 3-D images, dilations.

    Raises:
        UnsupportedError: the size of an image is not fixed.
    """
    found = [node for node in main if not node.domain and node.op_type in ("AveragePool", "MaxPool")]
    wrong = [node for node in found if not _is_right(node)]
    for node in wrong:
        write, x = Writer(main, node), graph.operand(node, 0)
        average = node.op_type == "AveragePool"
        key = (AVERAGE_POOL if average else MAX_POOL).key
        inputs = [x, *(write.constant(one, title) for title, one in _constants(node).items())] if average else [x]
        fresh = ir.Node(*key, inputs, node.attributes.values(), num_outputs=1 if average else 2, name=node.name)
        kinds = {"pooled": ir.DataType.FLOAT, "places": ir.DataType.INT64}
        for output, (title, kind) in zip(fresh.outputs, kinds.items(), strict=False):
            output.name, output.dtype = write.names.new(f"{node.name}.{title}"), kind
            output.shape = node.outputs[0].shape
        main.insert_before(node, fresh)
        write.replace(*fresh.outputs)
    return len(wrong)


def _is_right(node: ir.Node) -> bool:
    """Whether the engine's own gradient is."""
    shape = graph.operand(node, 0).shape
    dilated = any(one != 1 for one in node.attributes.get_ints("dilations", ()))
    return shape is not None and shape.is_static() and len(shape) < 5 and not dilated


def _constants(node: ir.Node) -> dict[str, np.ndarray]:
    """The window, and what an element counts in each result: the pool of ones over how many ones its window holds."""
    shape = graph.operand(node, 0).shape
    image = _image(graph.operand(node, 0))
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    if shape is None or len(image) != len(kernel):
        raise UnsupportedError(
            f"AveragePool of an image whose size is not fixed: {shape}",
            at=f"node '{node.name}'",
            hint="run fold-constants before legalize, or export the model with fixed sizes",
        )
    x = ir.val("x", ir.DataType.FLOAT, [1, 1, *image])
    trial = ir.Node("", "AveragePool", [x], node.attributes.values(), name="trial")
    trial.outputs[0].name, trial.outputs[0].dtype = "y", ir.DataType.FLOAT
    main = ir.Graph([x], trial.outputs, nodes=[trial], opset_imports={"": graph.OPSET}, name="pool")
    model = ir.Model(main, ir_version=graph.IR_VERSION)
    mean = engine.evaluate(model, {"x": np.ones((1, 1, *image), np.float32)})["y"]
    held = np.ones((1, 1), np.float32)
    for axis, results in enumerate(mean.shape[2:]):
        held = np.multiply.outer(held, _held(node, axis, image[axis], results))
    begin = list(node.attributes.get_ints("pads", [0] * len(kernel)))[: len(kernel)]
    return {
        "window": np.ones((1, 1, *kernel), np.float32),
        "share": (mean / np.maximum(held, 1)).astype(np.float32),
        "begin": np.array([0, 0, *(-one for one in begin)], np.int64),
    }


def _held(node: ir.Node, axis: int, size: int, results: int) -> np.ndarray:
    """How many elements of the image each window holds along an axis."""
    width = node.attributes.get_ints("kernel_shape", ())[axis]
    ones, none = [1] * (axis + 1), [0] * (axis + 1)
    stride, dilation = (node.attributes.get_ints(name, ones)[axis] for name in ("strides", "dilations"))
    first = np.arange(results) * stride - node.attributes.get_ints("pads", none)[axis]
    places = first[:, None] + np.arange(width) * dilation
    return np.asarray(np.sum((places >= 0) & (places < size), axis=1))
