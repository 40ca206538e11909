"""A folder in which schedules are searched: a schedule, a space, a model of one layer, and data for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import onnx_model

from pqc import graph


def write(folder: Path, schedule: str, space: str) -> None:
    """Write `base.yaml`, `space.yaml`, `m.onnx` and `d.npz`."""
    rng = np.random.default_rng(2)
    (folder / "base.yaml").write_text(schedule)
    (folder / "space.yaml").write_text(space)
    weight = rng.normal(0, 0.5, (4, 3))
    graph.save(onnx_model("(float[n,4] x) => (float[n,3] y) { y = MatMul (x, w) }", w=weight), folder / "m.onnx")
    x = rng.normal(size=(160, 4)).astype(np.float32)
    np.savez(folder / "d.npz", x=x, y=(x @ weight).argmax(axis=1))
