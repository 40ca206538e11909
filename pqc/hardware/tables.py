"""Tanh and sigmoid: hls4ml's lookup tables, sized so that no input is rounded, and checked input by input.

hls4ml cuts tanh off at ±4 and sigmoid at ±8, and computes entries in C++. With one entry per input value, and
34-bit entries, the Quant that follows sees what ONNX Runtime gave it unless the function comes within rounding of
a boundary. Which inputs can occur is known and finite, so all of them are tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from pqc import engine, graph
from pqc.errors import UnsupportedError
from pqc.hardware.intervals import Integers, Interval, shift_right
from pqc.hardware.quantizer import FixedType
from pqc.unary import Function

ENTRY = FixedType(34, 2)
MOST_ENTRIES = 2**14
FINE = 56
"""Fraction bits that hold a float32 between -1 and 1 exactly down to 2^-32."""
REACH = {"Tanh": 4, "Sigmoid": 8}


@dataclass(frozen=True)
class Table:
    """One lookup table: `size` entries spread evenly over ±reach of the function."""

    function: str
    size: int

    @property
    def fraction(self) -> int:
        """Fraction bits of the inputs that have an entry of their own."""
        return (self.size // (2 * REACH[self.function])).bit_length() - 1

    def entries(self) -> Integers:
        """The table as hls4ml's C++ fills it, in units of 2^-32."""
        points = np.ldexp(np.arange(self.size, dtype=np.float64) - self.size // 2, -self.fraction)
        values = np.tanh(points) if self.function == "Tanh" else self._sigmoid(points)
        return np.floor(np.ldexp(values, ENTRY.fraction)).astype(np.int64)

    @staticmethod
    def _sigmoid(points: np.ndarray) -> np.ndarray:
        exponentials = np.float32(1) + np.exp(-points.astype(np.float32))
        return np.asarray((1.0 / exponentials.astype(np.float64)).astype(np.float32), dtype=np.float64)

    def firmware(self, inputs: Integers, fraction: int, kind: FixedType) -> Integers:
        """What the firmware gives for `inputs` in units of 2^-fraction, in units of `kind`."""
        index = (inputs << (self.fraction - fraction)) + self.size // 2
        rounded = shift_right(
            self.entries()[np.clip(index, 0, self.size - 1)], ENTRY.fraction - kind.fraction, kind.rounding
        )
        return np.clip(rounded, kind.low, kind.high)


def table_for(node: ir.Node, x: Interval) -> Table:
    """The smallest table with an entry for every input.

    Raises:
        UnsupportedError: it would need more than 2^14 entries.
    """
    size = 2 * REACH[node.op_type] << max(x.fraction, 0)
    if size > MOST_ENTRIES:
        raise UnsupportedError(
            f"its input has {x.fraction} fraction bits, which takes a table of {size} entries, above {MOST_ENTRIES}",
            at=f"{node.op_type} '{node.name}'",
            hint="put a coarser Quant before it: 2^-8 is a fine scale",
        )
    return Table(node.op_type, size)


def check_table(node: ir.Node, x: Interval, kind: FixedType) -> None:
    """Compare the table with ONNX Runtime for every input that can occur.

    Raises:
        UnsupportedError: an input on which they differ.
    """
    if kind.overflow == "WRAP":
        raise UnsupportedError(
            "the Quant behind it wraps, and its table has not been checked for that",
            at=f"{node.op_type} '{node.name}'",
            hint="use overflow SAT",
        )
    low, high = x.bounds()
    inputs = np.arange(low, high + 1)
    wanted = reference(node.op_type, inputs, x.fraction, kind)
    found = table_for(node, x).firmware(inputs, x.fraction, kind)
    wrong = np.flatnonzero(wanted != found)
    if not wrong.size:
        return
    at = wrong[0]
    raise UnsupportedError(
        f"for {wrong.size} of {inputs.size} inputs hls4ml's table differs from the network, "
        f"first at {np.ldexp(float(inputs[at]), -x.fraction):g}: {found[at]} instead of {wanted[at]} "
        f"units of 2^-{kind.fraction}",
        at=f"{node.op_type} '{node.name}'",
        hint="give the Quant behind it fewer fraction bits (9 at most for Tanh), and round with ROUND",
    )


def reference(function: str, inputs: Integers, fraction: int, kind: FixedType) -> Integers:
    """What ONNX Runtime and a Quant give for `inputs`, in units of `kind`."""
    values = _run(function, np.ldexp(inputs.astype(np.float32), -fraction))
    fine = np.floor(np.ldexp(values.astype(np.float64), FINE)).astype(np.int64)
    return np.clip(shift_right(fine, FINE - kind.fraction, kind.rounding), kind.low, kind.high)


def _run(function: str, values: np.ndarray) -> np.ndarray:
    import onnxruntime

    kind = onnx.TensorProto.FLOAT
    sides = [onnx.helper.make_tensor_value_info(name, kind, [None]) for name in ("x", "y")]
    body = onnx.helper.make_graph([onnx.helper.make_node(function, ["x"], ["y"])], function, sides[:1], sides[1:])
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": values})[0])


def evaluate(model: ir.Model, function: Function, quant: ir.Node, values: np.ndarray) -> np.ndarray:
    """What the engine computes for `function` and the quantizer behind it, which has one type, operator by operator.

    Args:
        model: the graph of both; not changed.
        values: numbers that enter, float64 that float32 holds, of shape (n,).

    Returns:
        float32 of shape (n,).
    """
    nodes = [ir.serde.serialize_node(node) for node in (*function.nodes, quant)]
    made = {output.name for node in (*function.nodes, quant) for output in node.outputs}
    read = [value for node in (*function.nodes, quant) for value in node.inputs if value is not None]
    constants = {value.name: graph.constant(value) for value in read if value.name not in made}
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items() if array is not None]
    rank = max(1, *(array.ndim for array in constants.values() if array is not None))
    shape = (len(values), *[1] * (rank - 1))
    sides = [
        onnx.helper.make_tensor_value_info(str(value.name), onnx.TensorProto.FLOAT, dims)
        for value, dims in ((function.x, shape), (quant.outputs[0], None))
    ]
    main = onnx.helper.make_graph(nodes, "function", sides[:1], sides[1:], arrays)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    part = graph.from_proto(onnx.helper.make_model(main, opset_imports=imports, ir_version=graph.IR_VERSION))
    feeds = {str(function.x.name): values.astype(np.float32).reshape(shape)}
    (found,) = engine.Session(part, fuse=False).run(feeds).values()
    return np.asarray(found.reshape(len(values), -1)[:, 0] + np.float32(0))  # no -0.0
