"""From a clean QONNX graph to a compiled and compared hls4ml project, in one call."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pqc import graph, library, pipeline
from pqc.errors import DataError
from pqc.hardware.compare import Comparison, compare, random_samples
from pqc.hardware.emulate import Progress
from pqc.hardware.precision import TypeRecord
from pqc.hardware.project import Backend, IoType, write_project
from pqc.hardware.ranges import input_shape
from pqc.shapes import infer_shapes

PREPARE = "strip-softmax,lower-reshape"
LOWER = "lower-affine,lower-bipolar,fold-gates,raise-bits,lower-tables,lower-scales,lower-gemm,lower-pool,lower-conv"


@dataclass(frozen=True)
class HlsResult:
    """A hand-over that ran to its end.

    Args:
        samples: how many inputs the firmware and the network were compared on.
        mismatches: how many output values differ; zero is the promise.
        outputs: what the firmware gave for the first output, float32 of shape (samples, *output).
        precisions: the type of every tensor of every layer.
        stripped: the operator of the head that was removed, or None.
        seconds: how long all of it took.
        folder: the hls4ml project.
        comparison: the comparison in full.
    """

    samples: int
    mismatches: int
    outputs: np.ndarray
    precisions: list[TypeRecord]
    stripped: str | None
    seconds: float
    folder: Path
    comparison: Comparison


def hls(
    model: ir.Model | Path,
    out: Path,
    *,
    samples: np.ndarray | None = None,
    backend: Backend = "Vitis",
    io_type: IoType = "io_parallel",
    progress: Progress | None = None,
) -> HlsResult:
    """Write, compile and check the firmware of a clean QONNX graph.

    Args:
        model: a graph or a file, with Quant on its input and on every weight and bias.
        out: the folder of the hls4ml project.
        samples: float32 inputs of shape (samples, *input); None for random ones that cover the input's grid.

    Raises:
        UnsupportedError: a node that hls4ml would reject or compute wrongly.
        DataError: samples that do not fit the input.
        HardwareError: hls4ml, the compiler or the emulation failed.
        EnvironmentFault: there is no g++.
    """
    start = time.monotonic()
    network, stripped = prepare(graph.load(model) if isinstance(model, Path) else model)
    if samples is not None:
        _check_samples(network, samples)
    lowered = lower(network)
    project = write_project(lowered, out, backend=backend, io_type=io_type)
    inputs = random_samples(lowered) if samples is None else samples
    comparison = compare(network, inputs, project, progress)
    return HlsResult(
        comparison.samples,
        comparison.mismatches,
        comparison.outputs[0],
        project.records,
        stripped,
        time.monotonic() - start,
        out,
        comparison,
    )


def prepare(model: ir.Model) -> tuple[ir.Model, str | None]:
    """A copy without its head, and the operator of that head: the network that the firmware must equal."""
    network = graph.copy(model)
    library.link(network)
    infer_shapes(network)
    network.functions.clear()
    before = _last_operators(network)
    pipeline.run(network, PREPARE)
    stripped = [old for old, new in zip(before, _last_operators(network), strict=True) if old != new]
    return network, stripped[0] if stripped else None


def _last_operators(network: ir.Model) -> list[str]:
    """The operator that each output comes from."""
    producers = [value.producer() for value in network.graph.outputs]
    return [producer.op_type if producer is not None else "" for producer in producers]


def lower(network: ir.Model) -> ir.Model:
    """A copy in the operators that hls4ml computes exactly, as far as there are exact rewrites."""
    lowered = graph.copy(network)
    pipeline.run(lowered, LOWER)
    return lowered


def _check_samples(network: ir.Model, samples: np.ndarray) -> None:
    wanted = input_shape(network.graph.inputs[0])
    if samples.ndim != len(wanted) + 1 or samples.shape[1:] != wanted or not len(samples):
        raise DataError(
            f"samples of shape {list(samples.shape)} do not fit an input of shape {list(wanted)}",
            hint="give an array of shape (samples, *input)",
        )
    if not np.isfinite(samples).all():
        raise DataError("the samples hold NaN or infinite values", hint="clean the data first")
