"""The bit operations of all dense layers in one product of vectors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.batching import Batcher
from pqc.functions.costs import DENSE_COST


def batch_costs(batcher: Batcher) -> int:
    """Put DenseCost of single rows, and sums of biases' widths, together; return how many nodes went.

    sum over layers of x_l · (W_l 1) → (all x end to end) · (all W_l 1 end to end), x_l and W_l being widths.
    """
    main = batcher.main
    costs = [node for node in main if (node.domain, node.op_type) == DENSE_COST.key]
    costs = [node for node in costs if _is_row(node.inputs[0])]
    lanes = {lane for bundle in batcher.bundles for lane in bundle.lanes}
    sums = [node for node in main if node.op_type == "ReduceSum" and node.inputs[0] in lanes and _is_scalar(node)]
    merged = 0
    if len(costs) > 1:
        _replace(main, costs, _products(batcher, costs))
        merged += len(costs)
    if len(sums) > 1:
        _replace(main, sums, _total(batcher, [graph.operand(node, 0) for node in sums], "additions"))
        merged += len(sums)
    return merged


def _is_row(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 2 and value.shape[0] == 1


def _is_scalar(node: ir.Node) -> bool:
    """Whether all elements are summed, and the sum is only added to others."""
    readers = [use.node.op_type for use in node.outputs[0].uses()]
    return len(node.inputs) == 1 and node.attributes.get_int("keepdims", 1) == 0 and readers == ["Add"]


def _products(batcher: Batcher, costs: list[ir.Node]) -> ir.Value:
    axis = batcher.constant("products.axis", np.array([1], np.int64))
    rows = []
    for node in costs:
        weight = graph.operand(node, 1)
        row = ir.val(batcher.names.new(f"{weight.name}.rows"), ir.DataType.FLOAT, [graph.dims(weight)[0]])
        batcher.add("ReduceSum", [weight, axis], [row], f"{weight.name}.rows", {"keepdims": 0})
        rows.append(row)
    data = _joined(batcher, [graph.operand(node, 0) for node in costs], "products.data")
    weights = _concatenated(batcher, rows, "products.rows")
    product = ir.val(batcher.names.new("products.terms"), ir.DataType.FLOAT, weights.shape)
    batcher.add("Mul", [data, weights], [product], "products.terms", {})
    return _summed(batcher, product, "products")


def _total(batcher: Batcher, lanes: list[ir.Value], name: str) -> ir.Value:
    return _summed(batcher, _joined(batcher, lanes, name), name)


def _summed(batcher: Batcher, value: ir.Value, name: str) -> ir.Value:
    total = ir.val(batcher.names.new(f"{name}.total"), ir.DataType.FLOAT, [])
    batcher.add("ReduceSum", [value], [total], f"{name}.total", {"keepdims": 0})
    return total


def _joined(batcher: Batcher, values: list[ir.Value], name: str) -> ir.Value:
    """The values end to end: a bundle's own vector, neighbours cut out of it in one piece, or copied together."""
    for bundle in batcher.bundles:
        if values == bundle.lanes:
            return bundle.flat
        first = bundle.lanes.index(values[0]) if values[0] in bundle.lanes else -1
        last = first + len(values)
        if first >= 0 and bundle.lanes[first:last] == values and last == len(bundle.lanes):
            whole = ir.val(values[0].name, ir.DataType.FLOAT, [sum(bundle.sizes[first:])])
            bundle.lanes[first:] = [whole]
            return whole
    flat = [batcher.reshaped(value, (int(np.prod(graph.dims(value))),)) for value in values]
    return _concatenated(batcher, flat, name)


def _concatenated(batcher: Batcher, values: list[ir.Value], name: str) -> ir.Value:
    size = sum(graph.dims(value)[0] for value in values)
    whole = ir.val(batcher.names.new(f"{name}.whole"), ir.DataType.FLOAT, [size])
    batcher.add("Concat", values, [whole], f"{name}.whole", {"axis": 0})
    return whole


def _replace(main: ir.Graph, nodes: list[ir.Node], total: ir.Value) -> None:
    """Put the total where the first was, and leave the others out of the sums they are in."""
    graph.replace(nodes[0].outputs[0], total)
    for node in nodes[1:]:
        _leave_out(node.outputs[0])


def _leave_out(term: ir.Value) -> None:
    (add,) = term.consumers()
    other = next(value for value in add.inputs if value is not term and value is not None)
    graph.replace(add.outputs[0], other)
