"""Graphs of a run: normalized, compressible, clean. Each is a pipeline's text away from the one before."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pqc import files, graph, layers, masking, pipeline
from pqc.data import Split
from pqc.errors import UnsupportedError
from pqc.method import Method
from pqc.options import quote, write
from pqc.schedule import Schedule
from pqc.workflows.checks import check_inputs
from pqc.workflows.sources import resolve

NORMALIZE = "normalize,fold-constants,fold-batchnorm,lower-gemm"
NORMALIZE_UNFOLDED = "normalize,fold-constants,lower-gemm"
"""What comes before `compress` where batch normalization is trained."""
FINALIZE = (
    "freeze-masks,fold-statistics,freeze-bits,fold-masks,fold-relu-multiplier,lower-bits,fold-quant,drop-wraps,lower-bits,"
    "write-bipolar,strip-training,normalize"
)
# lower-bits a second time for what drop-wraps lets saturate, which takes weights on their grid.
CALIBRATION_ROWS, VERIFY_ROWS = 4096, 64
CALIBRATION_NUMBERS = 2**23
"""The most numbers of one activation that are calibrated on: all activations are in memory at once."""
CHEAP_ELEMENTS = 1_000_000
NOTES = logging.getLogger("pqc.notes")
"""What a user should know although nothing is wrong."""


def is_cheap(model: ir.Model) -> bool:
    """Whether running the model around each pass costs next to nothing."""
    return sum(graph.stored(value).size for value in model.graph.initializers.values()) <= CHEAP_ELEMENTS


def compress_pipeline(plan: Schedule, calibration: Path | None) -> str:
    """The pipeline text that makes the compressible graph of a normalized one."""
    quantization, pruning = plan.quantization, plan.pruning
    parts = ["train-batchnorm"] if plan.training.batch_norm == "train" else []
    parts += [floating_pipeline(plan)]
    if quantization is not None:
        parts += ["insert-relu-multiplier"] if quantization.relu_multiplier else []
        kinds = {name: getattr(quantization, name) for name in ("weights", "biases", "inputs", "outputs")}
        options = [f"{name}={write(kind)}" for name, kind in kinds.items()] + [f"rounding={quantization.rounding}"]
        own = {
            pattern: {name: None if kind is None else str(kind) for name, kind in kinds.items()}
            for pattern, kinds in quantization.overrides().items()
        }
        options += [f"layers={quote(json.dumps(own))}"] if own else []
        options += [f"exclude={quote(write(quantization.exclude))}"] if quantization.exclude else []
        parts.append(f"insert-quant{{{' '.join(options)}}}")
        how = quantization.calibration
        if quantization.calibrate and how is not None and calibration is not None:
            options = [f"data={quote(str(calibration))}"]
            options += [f"method={how.method}"] if how.method != "mse" else []
            options += [f"percent={write(how.percent)}"] if how.percent is not None else []
            keep = {} if quantization.calibrate_layers else {name: list(kinds) for name, kinds in own.items()}
            options += [f"keep={quote(json.dumps(keep))}"] if keep else []
            parts.append(f"calibrate-quant{{{' '.join(options)}}}")
    method = plan.method
    if method is not None:
        options = [f"method={method.title}", f"pruning-first={write(pruning.pruning_first)}"]
        changed = changed_options(method)
        options += [f"options={quote(write(changed))}"] if changed else []
        options += [f"layers={quote(json.dumps(pruning.layers))}"] if pruning.layers else []
        options += [f"exclude={quote(write(pruning.exclude))}"] if pruning.exclude else []
        parts.append(f"insert-masks{{{' '.join(options)}}}")
    parts += [f"apply-masks{{file={quote(pruning.masks)}}}"] if pruning.masks is not None else []
    return ",".join(parts)


def floating_pipeline(plan: Schedule) -> str:
    """The pipeline text that makes a graph which can be differentiated of a normalized one, all in float."""
    return ",".join(["expand-layernorm", *(["expand-softmax"] if plan.quantization is not None else []), "legalize"])


def changed_options(method: Method) -> dict[str, object]:
    """The options of a method that differ from their defaults."""
    default = type(method)()
    found = {field.name: getattr(method, field.name) for field in fields(method)}
    return {name: value for name, value in found.items() if value != getattr(default, name)}


def compress(
    model: ir.Model, plan: Schedule, split: Split, folder: Path, *, verify_each: bool | None = None
) -> tuple[ir.Model, list[pipeline.Step]]:
    """Make a normalized model compressible: quantizers and learned masks under `plan`.

    Args:
        model: not changed.
        plan: what to insert.
        split: training rows to calibrate on.
        folder: where the calibration sample goes.
        verify_each: see `RunOptions`.
    """
    compressible = graph.copy(model)
    plan = _without_unmatched(plan, compressible)
    rows = np.linspace(0, len(split) - 1, min(_calibration_rows(model), len(split))).astype(int)
    sample, _ = split.take(rows)
    path = folder / "calibration.npz"
    files.write_arrays(path, sample)
    steps = pipeline.run(
        compressible,
        compress_pipeline(plan, path),
        verify_each=is_cheap(model) if verify_each is None else verify_each,
        feeds={name: array[:VERIFY_ROWS] for name, array in sample.items()},
    )
    _check_masks(compressible, plan)
    return compressible, steps


def _calibration_rows(model: ir.Model) -> int:
    """As many as the largest activation allows."""
    largest = max((math.prod(graph.row_shape(value)) for node in model.graph for value in node.outputs), default=1)
    return max(VERIFY_ROWS, min(CALIBRATION_ROWS, CALIBRATION_NUMBERS // largest))


def _check_masks(model: ir.Model, plan: Schedule) -> None:
    """Say so where the method has nothing to prune, or refuse a target that cannot be met then."""
    if plan.method is None or any(masking.masks(model.graph)):
        return
    text = "no weight gets a mask: layers are excluded, have masks already, or give out the model's results"
    if plan.target.sparsity:
        raise UnsupportedError(text, at="target.sparsity", hint="leave it out, or let a layer be pruned")
    NOTES.info("pruning.method: %s", text)


def _without_unmatched(plan: Schedule, model: ir.Model) -> Schedule:
    """The schedule without the patterns that meet no layer, where it says to skip them."""
    if plan.pruning.unmatched == "error":
        return plan
    found = layers.layers(model.graph)
    kept: dict[str, list[str]] = {}
    for key in ("exclude", "layers"):
        patterns = list(getattr(plan.pruning, key))
        kept[key] = [one for one in patterns if any(layer.excluded((one,)) for layer in found)]
        for pattern in patterns:
            if pattern not in kept[key]:
                NOTES.info("pruning.%s: no layer is named like '%s'; skipped", key, pattern)
    changes = {"exclude": tuple(kept["exclude"]), "layers": {one: plan.pruning.layers[one] for one in kept["layers"]}}
    return plan.model_copy(update={"pruning": plan.pruning.model_copy(update=changes)})


def teacher_of(model: ir.Model, plan: Schedule) -> ir.Model | None:
    """The normalized network that `plan` distills from, or None.

    Args:
        model: the normalized float model of the run, which is the teacher unless the plan names another one.
        plan: see `pqc.schedule_sections.Distill`.
    """
    if plan.distill is None or plan.distill.teacher is None:
        return None if plan.distill is None else model
    teacher = resolve(plan.distill.teacher).load()
    pipeline.run(teacher, NORMALIZE)
    check_inputs(teacher)
    return teacher


def finalize(
    model: ir.Model, *, verify_each: bool = True, shrink: bool = False
) -> tuple[ir.Model, list[pipeline.Step]]:
    """The clean QONNX graph of a trained one: masks folded, weights on their grid, training parts gone.

    Args:
        model: a trained compressible graph; not changed.
        verify_each: check each pass.
        shrink: take out the channels that pruning has left without weights.
    """
    clean = graph.copy(model)
    steps = pipeline.run(clean, f"{FINALIZE},shrink" if shrink else FINALIZE, verify_each=verify_each)
    return clean, steps
