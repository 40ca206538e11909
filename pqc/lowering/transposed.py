"""ConvTranspose with its pads written out, which is what its gradient reads."""

from __future__ import annotations

import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError


def lower(main: ir.Graph, node: ir.Node) -> int:
    """Replace auto_pad and output_shape by pads.

    Raises:
        UnsupportedError: the size of the image is not fixed, output_shape is larger than what there is, or
            output_padding is no less than a stride, where the engine reads memory that it never wrote.
    """
    attributes = node.attributes
    padding = attributes.get_ints("output_padding", ())
    steps = attributes.get_ints("strides", [1] * len(padding))
    if any(rows >= steps[axis] for axis, rows in enumerate(padding)):
        raise UnsupportedError(
            f"the engine computes ConvTranspose wrongly where output_padding is not less than the stride: {padding}",
            at=f"node '{node.name}'",
            hint="pad the result instead",
        )
    mode, wanted = attributes.get_string("auto_pad", "NOTSET"), attributes.get_ints("output_shape", None)
    if mode == "NOTSET" and not wanted:
        return 0
    kernel = graph.dims(graph.operand(node, 1))[2:]
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    strides, dilations = attributes.get_ints("strides", ones), attributes.get_ints("dilations", ones)
    extra = attributes.get_ints("output_padding", zeros)
    shape = graph.operand(node, 0).shape
    image = [] if shape is None else [dim for dim in shape.dims[2:] if isinstance(dim, int)]
    if len(image) != len(kernel):
        raise UnsupportedError(
            "auto_pad needs a fixed image size", at=f"node '{node.name}'", hint="export explicit pads"
        )
    begin, end = [], []
    for axis, size in enumerate(image):
        full = strides[axis] * (size - 1) + extra[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        target = wanted[-len(kernel) :][axis] if wanted else full if mode == "VALID" else size * strides[axis]
        if target > full:
            raise UnsupportedError(
                f"an output of {target} elements is asked for, and {full} are computed",
                at=f"node '{node.name}'",
                hint="export explicit pads and output_padding",
            )
        first = (full - target) // 2 if mode == "SAME_UPPER" else full - target - (full - target) // 2
        begin.append(first)
        end.append(full - target - first)
    for name in ("auto_pad", "output_shape"):
        attributes.pop(name, None)
    attributes["pads"] = ir.AttrInt64s("pads", begin + end)
    return 1
