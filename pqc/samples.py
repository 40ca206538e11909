"""Sample inputs for a graph: enough to run it and compare two forms of it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from pqc.errors import UnsupportedError

SEED = 20240229
MAX_ELEMENTS = 2**28


def sample(model: ir.Model, batch: int = 8, seed: int = SEED) -> dict[str, np.ndarray]:
    """Random arrays for the inputs without a default: normal floats, integers 0 and 1, `batch` rows.

    Symbolic dimensions of one name get one size; the first dimension gets `batch`.
    """
    rng = np.random.default_rng(seed)
    return {
        str(value.name): _array(value, batch, rng)
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    }


def _array(value: ir.Value, batch: int, rng: np.random.Generator) -> np.ndarray:
    dims = value.shape.dims if value.shape is not None else ()
    shape = [dim if isinstance(dim, int) else batch for dim in dims]
    if math.prod(shape) > MAX_ELEMENTS:
        raise UnsupportedError(
            f"the input '{value.name}' of shape {shape} is too large", hint="export smaller dimensions"
        )
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(0.0, 1.5, shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def batch_size(model: ir.Model) -> int | None:
    """The batch size that the inputs without a default fix, or None where it is free."""
    sizes = {
        value.shape[0]
        for value in model.graph.inputs
        if value.name not in model.graph.initializers and value.shape is not None and len(value.shape)
    }
    return next((size for size in sizes if isinstance(size, int)), None)
