"""Functions of one number in a graph: nodes between one value and another that treat every element alike.

Exporters write many activation functions as several operators, such as x · Sigmoid(x) or x · (1 + Erf(x / √2)) / 2. To
a quantizer and to hardware each is one function, whatever it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from pqc import graph, layers

ACTIVATIONS = frozenset(
    [
        *("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu", "Sigmoid"),
        *("Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"),
    ]
)
"""Functions in their own right: two in a row stay two."""
PARTS = frozenset({"Abs", "Cos", "Erf", "Exp", "Log", "Max", "Min", "Pow", "Reciprocal", "Sin", "Sqrt"})
"""What functions are made of."""
ARITHMETIC = frozenset({"Add", "Div", "Mul", "Neg", "Sub"})
"""Of scalars, or of values that come from the same one."""


@dataclass(frozen=True)
class Function:
    """Nodes that compute each element of `y` from the same element of `x`.

    Args:
        x: what enters.
        y: what leaves; no other value of the nodes is read elsewhere.
        nodes: in the order of the graph.
    """

    x: ir.Value
    y: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def operators(self) -> frozenset[str]:
        """The operators it is made of."""
        return frozenset(node.op_type for node in self.nodes)

    @property
    def is_activation(self) -> bool:
        """Whether it contains a whole activation function."""
        return bool(self.operators & (ACTIVATIONS | {"Relu"}))


def functions(main: ir.Graph) -> list[Function]:
    """The functions that are more than sums, products and Relu, as long as they can be, in the order of the graph."""
    return [one for one in elementwise(main) if one.operators & (ACTIVATIONS | PARTS) and not _is_head(one)]


def elementwise(main: ir.Graph) -> list[Function]:
    """All functions of one number, arithmetic and Relu included, as long as they can be, in the order of the graph."""
    biases = {layer.bias_add for layer in layers.layers(main)}
    made: dict[ir.Value, Function] = {}
    for node in main:
        known = not node.domain and node.op_type in ACTIVATIONS | PARTS | ARITHMETIC | {"Relu"}
        found = _extended(node, made) if known and node not in biases else None
        if found is not None:
            made[found.y] = found
    longest: list[Function] = []
    taken: set[ir.Node] = set()
    for one in reversed(made.values()):
        if not taken.intersection(one.nodes):
            taken.update(one.nodes)
            longest.append(one)
    return longest[::-1]


def _extended(node: ir.Node, made: dict[ir.Value, Function]) -> Function | None:
    """The function that ends with `node`, or None if it is none of one value."""
    values = [value for value in node.inputs if value is not None]
    constants = [array for value in values if (array := graph.constant(value)) is not None]
    moving = list(dict.fromkeys(value for value in values if graph.constant(value) is None))
    if any(array.size != 1 for array in constants) or any(layers.source(value) is not None for value in moving):
        return None
    y = node.outputs[0]
    if len(moving) == 1 and len(values) - len(constants) == 1:
        before = made.get(moving[0])
        twice = before is not None and before.is_activation and node.op_type in ACTIVATIONS | {"Relu"}
        if before is None or twice or _read_elsewhere(before, {node}):
            return Function(moving[0], y, (node,))
        return Function(before.x, y, (*before.nodes, node))
    found = _joined(node, moving, made) if moving else None
    if found is None or any(_read_elsewhere(made[inner.outputs[0]], set(found.nodes)) for inner in found.nodes[:-1]):
        return None
    return found


def _joined(node: ir.Node, moving: list[ir.Value], made: dict[ir.Value, Function]) -> Function | None:
    """The function of the nearest value that all of `moving` come from."""
    ways = [dict(_origins(value, made)) for value in moving]
    x = next((value for value in ways[0] if all(value in way for way in ways)), None)
    if x is None:
        return None
    used = {inner for way in ways for inner in way[x]}
    ordered = [inner for one in made.values() for inner in one.nodes if inner in used]
    return Function(x, node.outputs[0], (*dict.fromkeys(ordered), node))


def _origins(value: ir.Value, made: dict[ir.Value, Function]) -> Iterator[tuple[ir.Value, tuple[ir.Node, ...]]]:
    """The values that `value` is a function of, the nearest first, with the nodes between."""
    nodes: tuple[ir.Node, ...] = ()
    yield value, nodes
    while value in made:
        nodes = (*made[value].nodes, *nodes)
        value = made[value].x
        yield value, nodes


def _read_elsewhere(one: Function, readers: set[ir.Node]) -> bool:
    return one.y.is_graph_output() or any(node not in readers for node in one.y.consumers())


def _is_head(one: Function) -> bool:
    """Whether it is what ends a model and is left out in hardware."""
    return one.y.is_graph_output() and one.nodes[-1].op_type in layers.HEADS
