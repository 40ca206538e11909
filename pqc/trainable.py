"""Which operators the engine differentiates rightly: a table, and the check that nothing else is trained through."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from pqc.errors import UnsupportedError
from pqc.graph import QONNX

# Operators whose gradients, by the engine or by pqc, agree with finite differences.
# fmt: off
OPERATORS = frozenset(
    {
        "Abs", "Add", "AveragePool", "Cast", "Celu", "Clip", "Concat", "Conv", "ConvTranspose", "Cos", "Div", "Elu",
        "Erf", "Exp", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool",
        "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min",
        "Mish", "Mul", "Neg", "PRelu", "Pad", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
        "Reshape", "Selu", "Sigmoid", "Sin", "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze",
        "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)
# fmt: on
# Inputs that the engine broadcasts forward and forgets to reduce backward.
BROADCASTS = {"Where": (1, 2), "Pow": (0,)}


def check(main: ir.Graph, trained: Iterable[ir.Value], results: Iterable[ir.Value]) -> None:
    """Refuse operators between the trained values and the results that have no checked gradient.

    What gives whole numbers or truth values (a shape, a comparison) passes no gradient on, and needs none.

    Raises:
        UnsupportedError: names the node and its readers.
    """
    reached, matters = set(trained), _before(main, results)
    for node in main:
        if node not in matters or not any(value in reached for value in node.inputs):
            continue
        floats = [output for output in node.outputs if output.dtype in (None, ir.DataType.FLOAT)]
        reached.update(floats)
        if floats and not _trains(node, reached):
            raise _refused(node)


def _before(main: ir.Graph, results: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that the results depend on."""
    wanted, found = set(results), set()
    for node in reversed(main):
        if any(output in wanted for output in node.outputs):
            found.add(node)
            wanted.update(value for value in node.inputs if value is not None)
    return found


def _trains(node: ir.Node, reached: set[ir.Value]) -> bool:
    if node.domain:
        return node.domain == QONNX or node.domain.startswith("pqc.")
    if node.op_type not in OPERATORS:
        return False
    if node.op_type == "Pad":
        return bool(node.attributes.get_string("mode", "constant") == "constant")
    if node.op_type in ("Conv", "MaxPool", "AveragePool"):
        return node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if node.op_type == "ReduceMax":
        return bool(node.attributes.get_int("keepdims", 1))
    if node.op_type == "Split":
        return all(output.uses() or output.is_graph_output() for output in node.outputs)
    return not any(
        _broadcast(node, index) and node.inputs[index] in reached for index in BROADCASTS.get(node.op_type, ())
    )


def _broadcast(node: ir.Node, index: int) -> bool:
    """Whether an operand is stretched, as far as shapes tell; unknown ones are caught in the trial run."""
    value, output = node.inputs[index], node.outputs[0]
    return value is not None and None not in (value.shape, output.shape) and value.shape != output.shape


def _refused(node: ir.Node) -> UnsupportedError:
    readers = ", ".join(f"'{reader.name}'" for reader in node.outputs[0].consumers()) or "the output"
    if not node.domain and node.op_type in OPERATORS - {"Pad", "ReduceMax"}:
        return UnsupportedError(
            f"the engine computes the gradient of this form wrongly: {node.op_type} (it feeds {readers})",
            at=f"node '{node.name}'",
            hint="run legalize first, which rewrites it",
        )
    return UnsupportedError(
        f"{node.op_type} has no gradient that pqc has checked (it feeds {readers})",
        at=f"node '{node.name}'",
        hint="replace the operator in the source model, or fold it: fold-batchnorm takes batch normalization",
    )
