"""Networks that learn what is normal: they give out their input, and their error tells what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from pqc.data import Dataset, Split, as_float
from pqc.errors import DataError, UnsupportedError
from pqc.report import roc


def learn_normal(dataset: Dataset, normal: Sequence[int], main: ir.Graph) -> Dataset:
    """`dataset` with the input for its target; of all classes, only the normal ones are trained and validated with.

    Args:
        dataset: its target holds one class number a row.
        normal: the classes that are no anomalies.
        main: has one input, and one output of its shape.

    Returns:
        all test rows, with `anomalous` telling those of the other classes.

    Raises:
        UnsupportedError: the output has another shape than the input.
        DataError: a split has no normal rows, or there are no other rows to test with.
    """
    inputs, outputs = ([value.shape for value in values] for values in (main.inputs, main.outputs))
    if len(inputs) != 1 or inputs[0] is None or outputs[0] is None or inputs[0][1:] != outputs[0][1:]:
        raise UnsupportedError(
            f"the model gives out the shape {outputs[0]}, not that of its one input",
            at=f"output '{main.outputs[0].name}'",
            hint="normal_classes is for networks that reconstruct their input",
        )
    kept = {name: np.isin(split.target[split.rows], normal) for name, split in _splits(dataset).items()}
    for name, rows in kept.items():
        if not rows.any():
            known = ", ".join(map(str, normal))
            raise DataError(f"no row of {name} has a class of {known}", at=dataset.source, hint="see normal_classes")
    if kept["test"].all():
        raise DataError("all test rows are normal", at=dataset.source, hint="let other classes be there to be found")
    train, validation = (_reconstructing(getattr(dataset, part), kept[part]) for part in ("train", "validation"))
    test = _reconstructing(dataset.test, np.ones(len(dataset.test), bool))
    return replace(dataset, train=train, validation=validation, test=test, anomalous=~kept["test"])


def _splits(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def _reconstructing(split: Split, kept: np.ndarray) -> Split:
    return Split(split.inputs, as_float(next(iter(split.inputs.values()))), split.rows[kept])


def errors(output: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The mean squared error of each row [rows], the anomaly score."""
    squares = np.square(output.astype(np.float64) - target)
    return np.asarray(squares.reshape(len(squares), -1).mean(axis=1))


def area(output: np.ndarray, target: np.ndarray, anomalous: np.ndarray) -> float:
    """The area under the ROC curve of the errors: how often an anomaly has a larger error than a normal row."""
    found = roc.curve(errors(output, target), anomalous)
    if found is None:
        raise ValueError("there are only normal rows, or only anomalies")
    return found.area


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {"anomaly_auc": area}
"""What is told of a model beside its metric, where test rows are marked: of output, target and marks [rows]."""
