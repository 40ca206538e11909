"""Keras 3 to ONNX: the model runs on Keras's PyTorch backend, whichever trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import from_pytorch
import keras
import numpy as np
import torch
from main import Refused, Request, inputs


def read(path: Path) -> Any:
    """The model of a .keras file; layers with code of their own are refused."""
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (TypeError, ValueError) as error:
        hint = "name it as FILE.py:NAME, in a file that defines its layers"
        raise Refused(f"Keras cannot load {path.name}: {str(error).splitlines()[0]}", hint) from error


class Positional(torch.nn.Module):  # type: ignore[misc]
    """A Keras model as a module that takes its inputs one by one.

    Args:
        model: built, with its inputs known.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arrays: torch.Tensor) -> Any:
        """What the model gives in inference."""
        return self.model(arrays[0] if len(arrays) == 1 else list(arrays), training=False)


def export(model: Any, request: Request, out: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Write the model to `out`; return samples and a report."""
    known = {one.name: (["batch", *one.shape[1:]], str(one.dtype)) for one in model.inputs or ()}
    arrays = inputs(request, known)
    if request["weights"]:
        model(*arrays.values() if len(arrays) == 1 else [list(arrays.values())])
        model.load_weights(request["weights"])
    dims = {name: one["dims"] for name, one in request["inputs"].items()} or {
        name: one[0] for name, one in known.items()
    }
    free = [name for name, one in dims.items() if one and not isinstance(one[0], int)]
    samples, report = from_pytorch.write(Positional(model).eval(), arrays, free, request["exporter"], out)
    return samples, {**report, "version": keras.__version__}
