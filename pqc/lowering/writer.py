"""Nodes in the place of one that goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.trained_constants import TRAINS


class Writer:
    """Adds nodes of one output before `origin`, and constants, under its name.

    Args:
        main: the graph.
        origin: the node that they replace.
    """

    def __init__(self, main: ir.Graph, origin: ir.Node) -> None:
        self.main = main
        self.origin = origin
        self.names = graph.Names(main)

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        title: str,
        *,
        trains: str | None = None,
        **attributes: object,
    ) -> ir.Value:
        """The result of a new node.

        Args:
            operator: a standard one.
            inputs: what it reads.
            title: what to call it.
            trains: the role of its second input, if that is a constant to train.
            attributes: of the node.
        """
        name = self.names.new(f"{self.origin.name}.{title}")
        output = ir.val(self.names.new(f"{name}.out"), ir.DataType.FLOAT)
        node = ir.node(operator, inputs, attributes, name=name, outputs=[output])
        if trains is not None:
            node.metadata_props[TRAINS] = trains
        self.main.insert_before(self.origin, node)
        return output

    def constant(self, array: object, title: str) -> ir.Value:
        """An initializer."""
        return graph.add_initializer(self.main, self.names.new(f"{self.origin.name}.{title}"), np.asarray(array))

    def numbers(self, values: Sequence[int], title: str) -> ir.Value:
        """An initializer of int64."""
        return self.constant(np.array(values, np.int64), title)

    def reshape(self, value: ir.Value, shape: Sequence[int], title: str) -> ir.Value:
        """`value` in another shape; 0 keeps a length, -1 takes what is left."""
        return self.add("Reshape", [value, self.numbers(shape, f"{title}.shape")], title)

    def replace(self, *results: ir.Value | None) -> None:
        """Let the readers of `origin` read `results`, and remove it."""
        for output, result in zip(self.origin.outputs, results, strict=False):
            if result is not None:
                graph.replace(output, result)
        self.main.remove(self.origin, safe=True)
