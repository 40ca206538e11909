from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.blocks import BLOCK, BlockWriter
from pqc.rewriting import Meaning, Pass, close, explain
from pqc.shapes import infer_shapes
from pqc.trained_constants import GAIN, SHIFT


@dataclass(frozen=True)
class Norm:
    """A layer normalization in the graph.

    Args:
        node: the last node, whose place and name the new ones take.
        x: what is normalized.
        axes: over which.
        epsilon: what is added to the variance.
        gain: what the result is multiplied by, a constant, or None.
        shift: what is added then, a constant, or None.
    """

    node: ir.Node
    x: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    gain: ir.Value | None = None
    shift: ir.Value | None = None


@dataclass(frozen=True)
class ExpandLayerNorm(Pass):
    """Write layer normalizations out as their steps.

    LayerNormalization(x, gain, shift), or the operators that exporters write for it → c · r · gain + shift with
    c = x - ReduceMean(x), v = ReduceMean(c · c) and r = Pow(v + epsilon, -1/2). The mean, c, its square, v, r and c · r
    are places for quantizers (insert-quant), and r is a table in hardware. Gain and shift are trained.
    Leaves a normalization whose mean or deviation is read elsewhere, and one with a computed gain or shift.
    """

    title: ClassVar[str] = "expand-layernorm"
    meaning: ClassVar[Meaning] = close(5e-5)

    def rewrite(self, model: ir.Model) -> int:
        found = 0
        for norm in _norms(model.graph):
            _expand(model.graph, norm)
            found += 1
        if found:
            graph.remove_unused(model.graph)
            infer_shapes(model)
        return found


def _norms(main: ir.Graph) -> Iterator[Norm]:
    """One after the other, since what one gives may be what the next reads."""
    for node in list(main):
        if node.domain or BLOCK in node.metadata_props:
            continue
        norm = _operator(node) if node.op_type == "LayerNormalization" else _decomposed(node)
        if norm is not None:
            yield norm


def _operator(node: ir.Node) -> Norm | None:
    x, gain = graph.operand(node, 0), graph.operand(node, 1)
    shift = node.inputs[2] if len(node.inputs) > 2 else None
    if x.shape is None or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        explain(node, "left alone: its mean or deviation is read, or its rank is not known")
        return None
    if not gain.is_initializer() or (shift is not None and not shift.is_initializer()):
        explain(node, "left alone: its gain or shift is computed")
        return None
    rank = len(x.shape)
    axes = tuple(range(node.attributes.get_int("axis", -1) % rank - rank, 0))
    return Norm(node, x, axes, node.attributes.get_float("epsilon", 1e-5), gain, shift)


def _decomposed(node: ir.Node) -> Norm | None:
    """The normalization whose quotient is `node`, as exporters write it, with the affine part behind."""
    if node.op_type != "Div":
        return None
    centered, spread = _centered(node.inputs[0]), _spread(node.inputs[1])
    if centered is None or spread is None or centered != spread[:2]:
        return None
    gain, scaled = _affine(node, "Mul", *centered)
    shift, last = _affine(scaled, "Add", *centered) if gain is not None else (None, node)
    return Norm(last, *spread, gain, shift)


def _inputs(value: ir.Value | None, operator: str) -> list[ir.Value | None]:
    """What the operator that makes `value` reads; nothing if it is another one."""
    node = value.producer() if value is not None else None
    return list(node.inputs) if node is not None and not node.domain and node.op_type == operator else []


def _mean(value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...]] | None:
    """What `value` is the mean of, and over which axes, counted from the last."""
    x, places = (*_inputs(value, "ReduceMean"), None, None)[:2]
    axes = graph.constant(places)
    if value is None or x is None or x.shape is None or axes is None or x.shape.rank() != len(value.shape or ()):
        return None
    rank = x.shape.rank()
    return x, tuple(sorted(int(axis) % rank - rank for axis in axes))


def _centered(value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...]] | None:
    """x and its axes, if `value` is x less its mean."""
    x, mean = (*_inputs(value, "Sub"), None, None)[:2]
    found = _mean(mean)
    return found if found is not None and found[0] is x else None


def _spread(value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...], float] | None:
    """x, its axes and epsilon, if `value` is the root of its variance and epsilon."""
    added = _inputs(next(iter(_inputs(value, "Sqrt")), None), "Add")
    epsilon = next((array for one in added if (array := graph.constant(one)) is not None and array.size == 1), None)
    variance = next((found for one in added if (found := _mean(one)) is not None), None)
    if epsilon is None or variance is None:
        return None
    square, axes = variance
    factors = _inputs(square, "Mul")
    base, power = (*_inputs(square, "Pow"), None, None)[:2]
    if factors and factors[0] is factors[1]:
        base, power = factors[0], None
    elif graph.constant(power) is None or not np.all(graph.constant(power) == 2):
        return None
    found = _centered(base)
    return (*found, float(epsilon)) if found is not None and found[1] == axes else None


def _affine(node: ir.Node, operator: str, x: ir.Value, axes: tuple[int, ...]) -> tuple[ir.Value | None, ir.Node]:
    """The parameter that the only reader of `node` multiplies by or adds, and that reader; else `node` itself."""
    y, readers = node.outputs[0], list(node.outputs[0].consumers())
    if len(readers) != 1 or y.is_graph_output() or readers[0].domain or readers[0].op_type != operator:
        return None, node
    constant = next((value for value in readers[0].inputs if value is not y), None)
    fits = constant is not None and constant.is_initializer() and _is_parameter(graph.dims(constant), x, axes)
    return (constant, readers[0]) if fits else (None, node)


def _is_parameter(shape: tuple[int, ...], x: ir.Value, axes: tuple[int, ...]) -> bool:
    """Whether there is one number for each that is normalized together, rather than a factor for all."""
    lengths = list(x.shape or ())
    full = (1,) * (len(lengths) - len(shape)) + shape
    expected = [length if place - len(lengths) in axes else 1 for place, length in enumerate(lengths)]
    return list(full) == expected


def _expand(main: ir.Graph, norm: Norm) -> None:
    write = BlockWriter(main, norm.node)
    axes = write.integers(norm.axes, "axes")
    mean = write.add("ReduceMean", [norm.x, axes], "mean")
    centered = write.add("Sub", [norm.x, mean], "centered")
    variance = write.add("ReduceMean", [write.add("Mul", [centered, centered], "square"), axes], "variance")
    epsilon = write.number(norm.epsilon, "epsilon")
    base, power = write.add("Add", [variance, epsilon], "widened"), write.number(-0.5, "power")
    # Not Sqrt: the last bit of the engine's depends on where a number lies in its tensor.
    result = write.add("Mul", [centered, write.add("Pow", [base, power], "inverse")], "normalized")
    for operator, constant, role in (("Mul", norm.gain, GAIN), ("Add", norm.shift, SHIFT)):
        if constant is not None:
            result = write.add(operator, [result, constant], role, trains=role)
    result.shape = norm.x.shape
    write.replace(result)
