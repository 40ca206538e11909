"""Teach hls4ml to read layers of its own from ONNX: types for every element, any function as a table, slopes."""

from __future__ import annotations

from typing import Any

import numpy as np

from pqc.hardware.layout import MASK, SLOPES, TABLE


def register() -> None:
    """Let hls4ml convert three more operators.

    `FixedQuant` has attributes k, b, i (one number an element), rounding and overflow; `Lookup` has entries, one for
    each pattern of the input's bits; `Slopes` has slopes below zero, one for each element.
    """
    from hls4ml.converters.onnx_to_hls import layer_handlers, register_onnx_layer_handler

    if MASK not in layer_handlers:
        register_onnx_layer_handler(MASK, _layer)
        register_onnx_layer_handler(TABLE, _table)
        register_onnx_layer_handler(SLOPES, _slopes)


def _layer(node: Any, inputs: list[str], shapes: list[list[int]], graph: Any) -> dict[str, Any]:
    """hls4ml's description of the layer; the masks have the input's shape with a batch of 1."""
    from hls4ml.converters.onnx_to_hls import get_onnx_attribute

    masks = (_numbers(node, name, np.int16).reshape(1, *shapes[0][1:]) for name in "kbi")
    return {
        **_described("FixedPointQuantizer", node, inputs),
        "mask_kbi": tuple(masks),
        "RND": get_onnx_attribute(node, "rounding"),
        "SAT": get_onnx_attribute(node, "overflow"),
        "overrides": {},
        "fusible": False,
    }


def _table(node: Any, inputs: list[str], shapes: list[list[int]], graph: Any) -> dict[str, Any]:
    """hls4ml's description of a layer that looks each element up by its pattern of bits."""
    return {
        **_described("UnaryLUT", node, inputs),
        "activation": "unary_lut",
        "table_data": _numbers(node, "entries", np.float64),
    }


def _slopes(node: Any, inputs: list[str], shapes: list[list[int]], graph: Any) -> dict[str, Any]:
    """hls4ml's description of a PReLU; its own handler takes no slopes behind a Quant."""
    return {
        **_described("PReLU", node, inputs),
        "activation": "prelu",
        "param_data": _numbers(node, "slopes", np.float64),
    }


def _described(kind: str, node: Any, inputs: list[str]) -> dict[str, Any]:
    """What every description has."""
    return {"class_name": kind, "name": node.name, "inputs": [inputs[0]], "outputs": list(node.output)}


def _numbers(node: Any, name: str, kind: type[np.generic]) -> np.ndarray:
    """An attribute as an array."""
    from hls4ml.converters.onnx_to_hls import get_onnx_attribute

    return np.asarray(get_onnx_attribute(node, name), kind)
