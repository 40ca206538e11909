"""MaxPool whose indices count the flat tensor row by row, as its gradient does."""

from __future__ import annotations

import onnx_ir as ir

from pqc.errors import UnsupportedError


def lower(main: ir.Graph, node: ir.Node) -> int:
    """Drop storage_order where nobody reads the indices.

    Raises:
        UnsupportedError: indices that count column by column are read.
    """
    if not node.attributes.get_int("storage_order", 0):
        return 0
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise UnsupportedError(
            "indices of MaxPool that count by columns (storage_order) are read",
            at=f"node '{node.name}'",
            hint="export with storage_order=0",
        )
    node.attributes.pop("storage_order")
    return 1
