"""Masks that hold from the start on: files of zeros and ones by the weights' names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pqc import data, files, graph, layers
from pqc.errors import DataError
from pqc.options import nearest


def write(path: Path, masks: Mapping[str, np.ndarray]) -> None:
    """Write masks, bool in the shapes of their weights, as an .npz file."""
    files.write_compressed(path, {name: np.asarray(mask, bool) for name, mask in masks.items()})


def read(path: Path, main: ir.Graph) -> dict[ir.Value, np.ndarray]:
    """The masks in a file, float32, by the weights of a graph.

    Raises:
        DataError: no such file, or a mask that is no weight's: by name, by shape, or by what it holds.
    """
    known = {str(layer.weight.name): layer.weight for layer in layers.layers(main)}
    found = {}
    for name, mask in data.read(path).items():
        if name not in known:
            raise DataError(f"no layer has the weight '{name}'{nearest(name, known)}", at=str(path), hint=_HINT)
        wanted = graph.stored(known[name]).shape
        if mask.shape != wanted:
            shapes = f"[{', '.join(map(str, mask.shape))}], and the weight [{', '.join(map(str, wanted))}]"
            raise DataError(f"the mask of '{name}' has the shape {shapes}", at=str(path), hint=_HINT)
        if not np.isin(mask, (0, 1)).all():
            raise DataError(f"the mask of '{name}' holds more than zeros and ones", at=str(path), hint=_HINT)
        found[known[name]] = mask.astype(np.float32)
    return found


_HINT = "take the masks that were made for this model"
