"""Writing an operator out as others, in its place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError
from pqc.trained_constants import TRAINS


class Writer:
    """Writes nodes of one output before `origin`, and constants, named after it.

    Args:
        main: the graph.
        origin: the operator that goes.
    """

    def __init__(self, main: ir.Graph, origin: ir.Node) -> None:
        self.main = main
        self.origin = origin
        self.names = graph.Names(main)

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        title: str | None = None,
        *,
        trains: str | None = None,
        **attributes: object,
    ) -> ir.Value:
        """The result of a new node.

        Args:
            operator: a standard one.
            inputs: what it reads.
            title: what to call it; by default, as the operator.
            trains: the role of its second input, if that is a constant to train.
            attributes: of the node.
        """
        name = self.names.new(f"{self.origin.name}.{title or operator.lower()}")
        output = ir.val(self.names.new(f"{name}.out"))
        node = ir.node(operator, inputs, attributes, name=name, outputs=[output])
        if trains is not None:
            node.metadata_props[TRAINS] = trains
        self.main.insert_before(self.origin, node)
        return output

    def integers(self, numbers: Sequence[int] | np.ndarray, title: str) -> ir.Value:
        """An int64 initializer: axes, lengths, indices."""
        return self.constant(np.asarray(numbers, np.int64), title)

    def number(self, number: float, title: str) -> ir.Value:
        """A float32 scalar."""
        return self.constant(np.asarray(number, np.float32), title)

    def constant(self, array: object, title: str) -> ir.Value:
        """An initializer."""
        return graph.add_initializer(self.main, self.names.new(f"{self.origin.name}.{title}"), np.asarray(array))

    def reshape(self, value: ir.Value, shape: Sequence[int], title: str) -> ir.Value:
        """`value` in another shape; 0 keeps a length, -1 takes what is left."""
        return self.add("Reshape", [value, self.integers(shape, f"{title}.shape")], title)

    def replace(self, *results: ir.Value | None) -> None:
        """Let the readers of `origin` read `results`, and remove it."""
        for output, result in zip(self.origin.outputs, results, strict=False):
            if result is not None:
                graph.replace(output, result)
        self.main.remove(self.origin, safe=True)

    def finish(self, value: ir.Value) -> int:
        """Put `value` where the operator's only result was; always one place."""
        result = self.origin.outputs[0]
        if value in self.origin.inputs and result.is_graph_output():
            value = self.add("Identity", [value])
        if value.shape is None:
            value.shape = result.shape
        if value.dtype is None and result.dtype is not None:
            value.dtype = result.dtype
        self.replace(value)
        return 1

    def rank(self, index: int = 0) -> int:
        """The rank of an operand.

        Raises:
            UnsupportedError: it is not known.
        """
        shape = graph.operand(self.origin, index).shape
        if shape is None:
            raise self.refused("needs a known rank")
        return len(shape)

    def length(self, axis: int, index: int = 0) -> int:
        """How long an operand is along `axis`.

        Raises:
            UnsupportedError: it is not a number.
        """
        shape = graph.operand(self.origin, index).shape
        found = None if shape is None else shape[axis]
        if not isinstance(found, int):
            raise self.refused(f"needs a fixed length along axis {axis}")
        return found

    def refused(self, reason: str) -> UnsupportedError:
        """The error that names the operator."""
        return UnsupportedError(
            f"{self.origin.op_type} {reason}, to be trained through",
            at=f"node '{self.origin.name}'",
            hint="export the model with fixed sizes, or run fold-constants first",
        )
