"""Compare the firmware's C++ with the quantized graph, integer by integer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from pqc import graph
from pqc.errors import DataError
from pqc.hardware import intervals
from pqc.hardware.emulate import Progress, emulate
from pqc.hardware.project import Project
from pqc.hardware.quantizer import fixed_types
from pqc.hardware.ranges import input_shape
from pqc.layers import grid, is_qonnx_quant, is_quant

CHUNK = 1000
SHOWN = 5
RANDOM_SAMPLES, SEED = 1000, 20


@dataclass(frozen=True)
class Mismatch:
    """One output value that differs, in units of the output's grid."""

    sample: int
    output: int
    element: int
    expected: float
    found: float


@dataclass(frozen=True)
class Comparison:
    """How the firmware agrees with the network.

    Args:
        samples: how many inputs were tried.
        values: how many output values were compared.
        mismatches: how many of those differ.
        max_difference: the largest difference, in units of the output's grid; NaN if a value is NaN.
        first: the first few mismatches.
        outputs: what the firmware gave, for each output float32 of shape (samples, *output).
    """

    samples: int
    values: int
    mismatches: int
    max_difference: float
    first: list[Mismatch]
    outputs: list[np.ndarray]


def compare(model: ir.Model, samples: np.ndarray, project: Project, progress: Progress | None = None) -> Comparison:
    """Run `samples` through the graph with qonnx and through the compiled project.

    Args:
        model: the graph that `project` was written from, before any change of layout.
        samples: float32, of shape (samples, *input).

    Raises:
        HardwareError: the project does not compile or run.
    """
    found = emulate(project, samples, progress)
    if progress is not None:
        progress("run the quantized graph")
    wanted = reference(model, samples)
    total, worst = 0, 0.0
    first: list[Mismatch] = []
    for index, (fraction, *sides) in enumerate(zip(project.fractions, wanted, found, strict=True)):
        expected, got = (np.ldexp(side.reshape(len(samples), -1).astype(np.float64), fraction) for side in sides)
        differs = ~(expected == got)  # NaN differs from everything
        total += int(differs.sum())
        worst = float(np.maximum(worst, np.abs(expected - got).max()))
        for sample, element in np.argwhere(differs)[: SHOWN - len(first)].tolist():
            pair = float(expected[sample, element]), float(got[sample, element])
            first.append(Mismatch(sample, index, element, *pair))
    outputs = [b.reshape(a.shape).astype(np.float32) for a, b in zip(wanted, found, strict=True)]
    return Comparison(len(samples), sum(a.size for a in wanted), total, worst, first, outputs)


def reference(model: ir.Model, samples: np.ndarray, chunk: int = CHUNK) -> list[np.ndarray]:
    """The outputs of a quantized graph by qonnx's executor, for each output (samples, *output), float32.

    Whole chunks are run at once; each sample's values do not depend on its neighbours.
    """
    import onnxruntime
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    chunk = min(chunk, len(samples))
    onnxruntime.set_default_logger_severity(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = ModelWrapper(_with_batch(model, chunk)).transform(InferShapes())
        name, outputs = model.graph.inputs[0].name, [value.name for value in model.graph.outputs]
        rows = []
        for start in range(0, len(samples), chunk):
            part = samples[start : start + chunk].astype(np.float32)
            padded = np.zeros((chunk, *samples.shape[1:]), np.float32)
            padded[: len(part)] = part
            found = execute_onnx(wrapped, {name: padded})
            rows.append([found[output][: len(part)] for output in outputs])
    return [np.concatenate(columns) for columns in zip(*rows, strict=True)]


def _with_batch(model: ir.Model, size: int) -> onnx.ModelProto:
    """A copy of `model` with a static batch dimension, and no other shape but those of its input and constants."""
    model = graph.copy(model)
    for node in [node for node in model.graph if is_qonnx_quant(node)]:
        _saturate_before(model.graph, node)
    graph.remove_unused(model.graph)
    proto = graph.to_proto(model)
    del proto.graph.value_info[:]
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = size
    return proto


def _saturate_before(main: ir.Graph, node: ir.Node) -> None:
    """Let standard operators saturate where widths differ: qonnx's Quant stops at more than one."""
    found, names = grid(node), graph.Names(main)
    if found is None or found.bits.size == 1:
        return
    levels = np.exp2(found.bits - found.signed)
    low = np.where(found.signed, found.narrow - levels, 0)
    value = graph.operand(node, 0)
    for operator, bound in (("Max", low), ("Min", levels - 1)):
        array = np.asarray((bound - found.zero_point) * found.scale, np.float32)
        constant = graph.add_initializer(main, names.new(f"{node.name}.bound"), array)
        output = ir.val(names.new(f"{node.name}.bounded"), value.dtype, value.shape)
        main.insert_before(node, ir.node(operator, [value, constant], name=names.new("bound"), outputs=[output]))
        value = output
    node.replace_input_with(0, value)
    widest = np.asarray(found.bits.max(), np.float32)
    node.replace_input_with(3, graph.add_initializer(main, names.new(f"{node.name}.widest"), widest))


def random_samples(model: ir.Model, count: int = RANDOM_SAMPLES, seed: int = SEED) -> np.ndarray:
    """Inputs that cover the input's grid: its extremes, values on it, between its points, and beyond its ends."""
    source = model.graph.inputs[0]
    quant = next((use.node for use in source.uses() if is_quant(use.node)), None)
    if quant is None:
        raise DataError("the graph's input has no Quant, so its range is not known")
    kinds, shape, random = fixed_types(quant), input_shape(source), np.random.default_rng(seed)
    grid = intervals.full(kinds, shape)
    scaled = random.uniform(1.25 * grid.low, 1.25 * grid.high, (count, *shape))
    scaled[: count // 2] = random.integers(grid.low, grid.high + 1, (count // 2, *shape))
    part = scaled[count // 4 : count // 3]
    part[:] = np.where(random.integers(0, 2, part.shape) == 0, grid.low, grid.high)
    scaled[:3] = np.stack([grid.low, grid.high, 0 * grid.low])[:count]
    return np.ldexp(scaled, -grid.fraction).astype(np.float32)
