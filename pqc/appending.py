"""Nodes at the end of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.functions.operator import Key


class Appender:
    """Adds nodes of one output, and constants.

    Args:
        main: the graph.
        constants: the name of its constants, before their numbers.
    """

    def __init__(self, main: ir.Graph, constants: str) -> None:
        self.main = main
        self.names = graph.Names(main)
        self._constants = constants

    def constant(self, array: object) -> ir.Value:
        """An initializer."""
        return graph.add_initializer(self.main, self.names.new(self._constants), np.asarray(array))

    def add(
        self,
        key: Key | str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, object] | None = None,
        shape: Sequence[int] | None = None,
        kind: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """The result of a new node: of a standard operator, or of one by domain and name."""
        domain, operator = ("", key) if isinstance(key, str) else key
        output = ir.val(self.names.new(f"{name}.out"), kind, shape)
        node = ir.node(
            operator, inputs, dict(attributes or {}), domain=domain, name=self.names.new(name), outputs=[output]
        )
        self.main.append(node)
        return output

    def total(self, value: ir.Value, name: str) -> ir.Value:
        """The sum over all elements, a scalar."""
        return self.add("ReduceSum", [value], name, {"keepdims": 0}, ())

    def times(self, value: ir.Value, factor: float, name: str) -> ir.Value:
        """A scalar times a number."""
        return value if factor == 1 else self.add("Mul", [value, self.constant(np.float32(factor))], name, {}, ())
