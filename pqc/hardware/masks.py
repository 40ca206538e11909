"""Teach hls4ml to read its own FixedPointQuantizer layer, a type for every element, from ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from pqc.hardware.layout import MASK


def register() -> None:
    """Let hls4ml convert nodes `FixedQuant` with attributes k, b, i (one number an element), rounding and overflow."""
    from hls4ml.converters.onnx_to_hls import layer_handlers, register_onnx_layer_handler

    if MASK not in layer_handlers:
        register_onnx_layer_handler(MASK, _layer)


def _layer(node: Any, inputs: list[str], shapes: list[list[int]], graph: Any) -> dict[str, Any]:
    """hls4ml's description of the layer; the masks have the input's shape with a batch of 1."""
    from hls4ml.converters.onnx_to_hls import get_onnx_attribute

    masks = (np.asarray(get_onnx_attribute(node, name), np.int16).reshape(1, *shapes[0][1:]) for name in "kbi")
    return {
        "class_name": "FixedPointQuantizer",
        "name": node.name,
        "inputs": [inputs[0]],
        "outputs": list(node.output),
        "mask_kbi": tuple(masks),
        "RND": get_onnx_attribute(node, "rounding"),
        "SAT": get_onnx_attribute(node, "overflow"),
        "overrides": {},
        "fusible": False,
    }
