"""The models of a Pareto front: each epoch that was kept, cleaned and measured on the test rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pqc import files, graph, metrics
from pqc.training.front import FOLDER, Front, Point, thinned
from pqc.training.stages import set_values
from pqc.workflows.compression import finalize

NAME = "front.json"
MOST = 16
"""So many models of a front are cleaned and measured."""


def write(folder: Path, front: Front, trained: ir.Model, measure: Callable[[ir.Model], float]) -> list[dict[str, Any]]:
    """Write `front/epoch-N.onnx`, a clean model for each of at most `MOST` epochs, and `front.json`; return its points.

    Args:
        folder: of the run.
        front: the epochs that were kept.
        trained: the compressible graph at the end of training, masks frozen.
        measure: the metric of a clean model on the test rows.
    """
    chosen = {point.epoch for point in thinned(front.points, MOST)}
    found = []
    for point in front.points:
        record: dict[str, Any] = {"epoch": point.epoch, f"validation_{front.metric}": point.metric}
        record["ebops"] = point.ebops
        if point.epoch in chosen:
            record |= _model(folder, front, point, trained, measure)
        found.append(record)
    files.write_text(folder / NAME, json.dumps(found, indent=1))
    return found


def _model(
    folder: Path, front: Front, point: Point, trained: ir.Model, measure: Callable[[ir.Model], float]
) -> dict[str, Any]:
    model = graph.copy(trained)
    with np.load(front.path(point), allow_pickle=False) as arrays:
        set_values(model, {name: arrays[name] for name in arrays.files})
    clean, _ = finalize(model, verify_each=False)
    path = folder / FOLDER / f"epoch-{point.epoch:05}.onnx"
    graph.save(clean, path)
    costs = metrics.Probe(clean).costs({})
    return {
        front.metric: measure(clean),
        "clean_ebops": metrics.ebops(costs),
        "keep_ratio": metrics.keep_ratio(costs),
        "model": str(path.relative_to(folder)),
    }
