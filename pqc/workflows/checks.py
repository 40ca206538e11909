"""What training and measuring need of a model's inputs and outputs, and its outputs on data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from pqc import engine, masking
from pqc.data import Dataset, Split
from pqc.errors import UnsupportedError


def check_inputs(model: ir.Model) -> None:
    """Refuse inputs that training cannot feed.

    Raises:
        UnsupportedError: an input is not float32, or its batch size is fixed.
    """
    for value in model.graph.inputs:
        if value.dtype != ir.DataType.FLOAT:
            raise UnsupportedError(f"the input '{value.name}' is {value.dtype}; training feeds float32")
        if value.shape is None or not len(value.shape) or isinstance(value.shape[0], int):
            raise UnsupportedError(
                f"the batch size of the input '{value.name}' is fixed: its shape is {value.shape}",
                hint="export with a dynamic batch dimension (dynamic_axes in PyTorch's exporter)",
            )


def check_masks(model: ir.Model) -> None:
    """Refuse a model that is on its way through training: its masks follow another schedule.

    Raises:
        UnsupportedError: names the first learned mask.
    """
    for site in masking.masks(model.graph):
        raise UnsupportedError(
            f"the weight '{site.weight.name}' has a mask of the method {site.method.title} already",
            at=f"node '{site.node.name}'",
            hint="give the model it was made from, or make a clean one of it with `pqc finalize`",
        )


def check_outputs(model: ir.Model, labels: bool) -> None:
    """Refuse a first output that does not have one row for each row of the inputs.

    Raises:
        UnsupportedError: names the output and its shape.
    """
    if len(model.graph.outputs) > 1:
        names = ", ".join(f"'{value.name}'" for value in model.graph.outputs)
        raise UnsupportedError(
            f"the model has the outputs {names}, and a loss is put on one only: the rest would be pruned away",
            hint="export one output, or join them in the model",
        )
    output = model.graph.outputs[0]
    rank = 2 if labels else 1
    if output.shape is None or len(output.shape) < rank or isinstance(output.shape[0], int):
        wanted = "[rows, classes]" if labels else "[rows, …]"
        raise UnsupportedError(
            f"the output '{output.name}' has the shape {output.shape}, and {wanted} is needed",
            hint="give out one row of scores for each input row",
        )


def labelled_by(model: ir.Model, dataset: Dataset, labels: bool) -> Dataset:
    """`dataset` with the model's own answers for targets, so that metrics measure agreement with it."""

    def answered(split: Split) -> Split:
        found = outputs(model, split)
        inputs, _ = split.all()
        target = found.argmax(axis=-1).astype(np.int64) if labels else found[..., : split.target.shape[-1]]
        return Split(inputs, target, np.arange(len(target)))

    train, validation, test = (answered(split) for split in (dataset.train, dataset.validation, dataset.test))
    return replace(dataset, train=train, validation=validation, test=test)


def outputs(model: ir.Model, split: Split, rows: int = 4096) -> np.ndarray:
    """The model's first output [rows, ...] on all of `split`."""
    session = engine.Session(model)
    pieces = []
    for start in range(0, len(split), rows):
        inputs, _ = split.take(np.arange(start, min(start + rows, len(split))))
        pieces.append(session.run(inputs)[session.outputs[0]])
    return np.concatenate(pieces)
