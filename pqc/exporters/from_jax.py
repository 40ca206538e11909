"""JAX to ONNX: a function of arrays, or a Flax or Equinox model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax2onnx
import numpy as np
from main import Request, inputs, named

OPSET = 21


def export(model: Any, request: Request, out: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Write the function to `out`; return samples and a report."""
    if hasattr(model, "eval"):
        model.eval()  # Flax: no dropout, running statistics
    arrays = inputs(request)
    wanted = {name: request["inputs"][name] for name in arrays}
    dims = [
        jax.ShapeDtypeStruct(one["dims"], one["type"])
        if not one["dims"] or isinstance(one["dims"][0], int)
        else ("B", *one["dims"][1:])
        for one in wanted.values()
    ]
    proto = jax2onnx.to_onnx(model, dims, opset=OPSET, input_names=list(arrays))
    out.write_bytes(proto.SerializeToString())
    results = jax.tree_util.tree_leaves(model(*arrays.values()))
    samples = {**named(list(arrays.values()), "in"), **named(results, "out")}
    return samples, {"version": jax.__version__, "exporter": "jax2onnx", "inputs": list(arrays)}
