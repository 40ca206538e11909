"""What a legal graph is, as a table of checks run after every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir

from pqc import graph
from pqc.errors import GraphError
from pqc.functions.quant import ROUNDING_MODES

# Gradient operators that the engine puts in ONNX's own domain, where ONNX's checker does not know them.
ENGINE_OPERATORS = frozenset({"AveragePoolGrad", "MaxPoolGrad"})


def verify(model: ir.Model) -> None:
    """Check `model` against the table and against ONNX's own checker.

    Raises:
        GraphError: names the first node or value at fault.
    """
    for check in CHECKS:
        for problem in check(model.graph):
            raise GraphError(problem)
    if any(not node.domain and node.op_type in ENGINE_OPERATORS for node in model.graph):
        return
    try:
        onnx.checker.check_model(graph.to_proto(model))
    except onnx.checker.ValidationError as error:
        raise GraphError(f"not valid ONNX: {str(error).splitlines()[0]}") from error


def _node_names(main: ir.Graph) -> Iterator[str]:
    """node names are unique"""
    counts = Counter(node.name for node in main)
    yield from (f"{count} nodes are named '{name}'" for name, count in counts.items() if name and count > 1)


def _value_names(main: ir.Graph) -> Iterator[str]:
    """value names are unique"""
    owners = [*main.inputs, *(value for value in main.initializers.values() if not value.is_graph_input())]
    owners += [output for node in main for output in node.outputs]
    counts = Counter(value.name for value in owners)
    yield from (f"{count} values are named '{name}'" for name, count in counts.items() if name and count > 1)


def _quants(main: ir.Graph) -> Iterator[str]:
    """a Quant has four inputs and a rounding mode that QONNX knows"""
    for node in main:
        if node.domain != graph.QONNX or node.op_type != "Quant":
            continue
        if len(node.inputs) != 4 or any(value is None for value in node.inputs):
            yield f"Quant '{node.name}' has {len(node.inputs)} inputs"
        mode = node.attributes.get_string("rounding_mode", "ROUND")
        if str(mode).upper() not in ROUNDING_MODES:
            yield f"Quant '{node.name}' has the unknown rounding mode '{mode}'"


def _sorted(main: ir.Graph) -> Iterator[str]:
    """every value is computed before it is read"""
    ready = {*main.inputs, *main.initializers.values()}
    for node in main:
        yield from (
            f"'{node.name}' reads '{value.name}' too early"
            for value in node.inputs
            if value is not None and value not in ready
        )
        ready.update(node.outputs)


CHECKS: tuple[Callable[[ir.Graph], Iterator[str]], ...] = (_node_names, _value_names, _sorted, _quants)
