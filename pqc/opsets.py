"""What ONNX's converter between opsets leaves undone: operators that kept their name and changed their meaning."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError


def complete(main: ir.Graph, version: int) -> None:
    """Spell what operators meant in the opset `version` that a graph was converted from.

    Raises:
        UnsupportedError: the newest opset has no way to say it.
    """
    for node in main:
        if node.domain:
            continue
        if node.op_type == "Resize" and version < 11:
            _spell_resize(node)
        if node.op_type == "GroupNormalization" and version < 21:
            _repeat_groups(main, node)


def _spell_resize(node: ir.Node) -> None:
    """Upsample, and Resize of opset 10, whose coordinates are x / scale.

    Nearest is the floor, and where it shrinks the ceiling.
    """
    scales = graph.constant(graph.operand(node, 2))
    if scales is None or (np.any(scales < 1) and np.any(scales > 1)):
        raise UnsupportedError(
            "Resize of opset 10 that shrinks one axis and stretches another, or whose scales are computed",
            at=f"node '{node.name or node.outputs[0].name}'",
            hint="export the model with opset_version=17",
        )
    rounding = "ceil" if np.any(scales < 1) else "floor"
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", rounding)


def _repeat_groups(main: ir.Graph, node: ir.Node) -> None:
    """GroupNormalization had a gain and a shift for each group, and has them for each channel."""
    shape, groups = graph.operand(node, 0).shape, node.attributes.get_int("num_groups", 1)
    channels = None if shape is None else shape[1]
    for index, title in ((1, "gain"), (2, "shift")):
        value = graph.operand(node, index)
        array = graph.constant(value)
        if array is None or not isinstance(channels, int):
            raise UnsupportedError(
                "GroupNormalization with a computed gain or shift, or an unknown number of channels",
                at=f"node '{node.name or node.outputs[0].name}'",
                hint="export the model with opset_version=17",
            )
        name = graph.Names(main).new(f"{value.name}.{title}")
        node.replace_input_with(index, graph.add_initializer(main, name, np.repeat(array, channels // groups)))
