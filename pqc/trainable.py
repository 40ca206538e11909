"""The check that nothing is trained through but what has a right gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from pqc.errors import UnsupportedError
from pqc.graph import QONNX
from pqc.operator_table import ENGINE, LIMITS, OWN, REFUSED, REWRITTEN, STEPS

OPERATORS = ENGINE | OWN | STEPS
"""What may stand between a trained weight and the loss once legalize has run."""
# Inputs that the engine broadcasts forward and forgets to reduce backward.
BROADCASTS = {"Where": (1, 2), "Pow": (0,)}
# Inputs of numbers to which the engine passes no gradient, without a word.
STOPPED = {"Clip": (1, 2), "Pad": (2,)}
# Operators of which some forms are left after legalize.
LIMITED = frozenset({"BatchNormalization", "Pad", "ScatterElements", "ScatterND"})


def check(main: ir.Graph, trained: Iterable[ir.Value], results: Iterable[ir.Value]) -> None:
    """Refuse operators between the trained values and the results that have no checked gradient.

    What gives whole numbers or truth values (a shape, a comparison) passes no gradient on, and needs none.

    Raises:
        UnsupportedError: names the node and its readers.
    """
    reached, matters = set(trained), _before(main, results)
    for node in _reached(main, reached):
        if node in matters and any(_is_float(output) for output in node.outputs) and not _trains(node, reached):
            raise _refused(node)


def readers(main: ir.Graph, trained: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that compute with the trained values."""
    return set(_reached(main, set(trained)))


def _reached(main: ir.Graph, reached: set[ir.Value]) -> Iterator[ir.Node]:
    """The nodes that read one of the values, to which their results are added."""
    for node in main:
        if any(value in reached for value in node.inputs):
            reached.update(output for output in node.outputs if _is_float(output))
            yield node


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (None, ir.DataType.FLOAT)


def _before(main: ir.Graph, results: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that the results depend on through floats: what is only an index gets no gradient."""
    wanted, found = set(results), set()
    for node in reversed(main):
        if any(output in wanted for output in node.outputs):
            found.add(node)
            wanted.update(value for value in node.inputs if value is not None and _is_float(value))
    return found


def _trains(node: ir.Node, reached: set[ir.Value]) -> bool:
    if node.domain:
        return node.domain == QONNX or node.domain.startswith("pqc.")
    if node.op_type not in OPERATORS:
        return False
    return (
        _has_right_form(node, reached)
        and not _stopped(node, reached)
        and not any(
            _broadcast(node, index) and node.inputs[index] in reached for index in BROADCASTS.get(node.op_type, ())
        )
    )


def _has_right_form(node: ir.Node, reached: set[ir.Value]) -> bool:
    """Whether the attributes are among those with a right gradient."""
    if node.op_type == "Pad":
        return bool(node.attributes.get_string("mode", "constant") == "constant")
    if node.op_type in ("Conv", "MaxPool", "AveragePool"):
        return node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if node.op_type in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceLogSumExp"):
        return bool(node.attributes.get_int("keepdims", 1))
    if node.op_type in ("ScatterElements", "ScatterND"):
        reduction = node.attributes.get_string("reduction", "none")
        return reduction == "none" or (reduction == "add" and node.inputs[0] not in reached)
    if node.op_type == "Split":
        return all(output.uses() or output.is_graph_output() for output in node.outputs)
    return True


def _stopped(node: ir.Node, reached: set[ir.Value]) -> bool:
    """Whether an operand is trained to which no gradient would get."""
    operands = [node.inputs[index] for index in STOPPED.get(node.op_type, ()) if index < len(node.inputs)]
    return any(value in reached for value in operands)


def _broadcast(node: ir.Node, index: int) -> bool:
    """Whether an operand is stretched, as far as shapes tell; unknown ones are caught in the trial run."""
    value, output = node.inputs[index], node.outputs[0]
    if value is None or value.shape is None or output.shape is None:
        return False
    if len(value.shape) != len(output.shape):
        return True
    # Two symbols may be one length.
    return any(isinstance(one, int) and one != other for one, other in zip(value.shape, output.shape, strict=True))


def _refused(node: ir.Node) -> UnsupportedError:
    readers = ", ".join(f"'{reader.name}'" for reader in node.outputs[0].consumers()) or "the output"
    if not node.domain and node.op_type in (OPERATORS | REWRITTEN) - LIMITED:
        return UnsupportedError(
            f"the engine computes the gradient of this form wrongly: {node.op_type} (it feeds {readers})",
            at=f"node '{node.name}'",
            hint="run legalize first, which rewrites it",
        )
    known = "" if node.domain else REFUSED.get(node.op_type, LIMITS.get(node.op_type, ""))
    reason = f": {known}" if known else ""
    return UnsupportedError(
        f"{node.op_type} has no gradient that pqc has checked (it feeds {readers}){reason}",
        at=f"node '{node.name}'",
        hint="replace the operator in the source model, or fold it: fold-batchnorm takes batch normalization",
    )
