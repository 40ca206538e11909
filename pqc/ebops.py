"""Effective bit operations of a graph, as nodes of a graph: exact, and differentiable in widths that are trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, unary
from pqc.appending import Appender
from pqc.conventions import DEFAULT, KERNELS, Convention
from pqc.errors import UnsupportedError
from pqc.functions.costs import DENSE_COST, LARGEST, NARROWEST, TABLE_COST
from pqc.quantization_check import SENSITIVE
from pqc.widths import Widths, is_gated, on_grid


@dataclass(frozen=True)
class Terms:
    """The cost of one node as values of the graph, and the widths that it comes from.

    Args:
        products: sum of (bits of one factor) x (bits of the other), a scalar; None without products.
        additions: bits of what is added or looked up, a scalar; None where there is nothing, or it does not count.
        data: widths of what enters, [1, ...].
        weight: widths of the weights, in their shape, or None.
        bias: widths of the biases, or None.
    """

    products: ir.Value | None
    additions: ir.Value | None
    data: ir.Value
    weight: ir.Value | None = None
    bias: ir.Value | None = None

    @property
    def costs(self) -> list[ir.Value]:
        """The scalars whose sum is the cost."""
        return [value for value in (self.products, self.additions) if value is not None]


class Counter:
    """Adds nodes that count bits and bit operations, at the end of a graph.

    Args:
        main: the graph; parameters and bits may be initializers or computed.
        convention: what counts.
    """

    def __init__(self, main: ir.Graph, convention: Convention = DEFAULT) -> None:
        self.main = main
        self.convention = convention
        self.nodes = Appender(main, "bits")
        self.widths = Widths(self.nodes, convention)

    def count(self, results: Iterable[ir.Value]) -> dict[ir.Node, Terms]:
        """What each layer, and each other node between the graph's inputs and `results`, costs, in their order."""
        owners = {layer.node: layer for layer in layers.layers(self.main)}
        added = {layer.bias_add for layer in owners.values()}
        tables = looked_up(self.main)
        inside = {node for table in tables.values() for node in table.nodes} - tables.keys()
        others = set(computing(self.main, results)) - owners.keys() - added - inside
        found: dict[ir.Node, Terms] = {}
        for node in list(self.main):
            if node in owners:
                found[node] = self.layer(owners[node])
            elif node in tables and node in others:
                found[node] = self.table(tables[node])
            elif node in others and node.op_type in OPERATORS and not _is_free(node):
                found[node] = OPERATORS[node.op_type](self, node)
        return found

    def table(self, function: unary.Function) -> Terms:
        """One look-up for each element, in a table with a place for each number that can enter."""
        width, found = self.widths.of(function.x), self.widths.written(function.y)
        cost = self.nodes.add(TABLE_COST.key, [width, found], "table", {}, ())
        return Terms(None, self.adding(cost), width)

    def layer(self, layer: layers.Layer) -> Terms:
        """The cost of a layer.

        Raises:
            UnsupportedError: the convention has no count for its groups.
        """
        operand = graph.operand(layer.node, layers.WEIGHT_INPUT)
        data, weight = self.widths.of(graph.operand(layer.node, 0)), self.widths.of(operand)
        products = self._products(layer, data, self.widths.present(operand))
        if layer.bias is None or layer.bias_add is None or layer.bias_index is None:
            return Terms(products, None, data, weight)
        added = graph.operand(layer.bias_add, layer.bias_index)
        return Terms(products, self._biases(layer, added), data, weight, self.widths.of(added))

    def adding(self, *terms: ir.Value) -> ir.Value | None:
        """The sum of scalars that count additions, if the convention counts any."""
        if not self.convention.additions:
            return None
        total = terms[0]
        for term in terms[1:]:
            total = self.nodes.add("Add", [total, term], "additions", {}, ())
        return total

    def product(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The sum of the products of two widths that broadcast to each other."""
        shape = np.broadcast_shapes(graph.dims(a), graph.dims(b))
        return self.nodes.total(self.nodes.add("Mul", [a, b], "products.terms", {}, shape), "products")

    def negative(self, term: ir.Value) -> ir.Value:
        """A scalar that is taken off."""
        return self.nodes.add("Neg", [term], "free", {}, ())

    def _products(self, layer: layers.Layer, data: ir.Value, weight: ir.Value) -> ir.Value:
        if layer.node.op_type not in KERNELS:
            return self.nodes.add(DENSE_COST.key, [data, self._by_input(layer, weight)], "products", {}, ())
        if self.convention.every_position:
            attributes = {name: attribute.value for name, attribute in layer.node.attributes.items()}
            image = self.nodes.add(layer.node.op_type, [data, weight], "products.image", attributes)
            return self.nodes.total(image, "products")
        channels = self.nodes.add(LARGEST.key, [data], "width.largest", {}, (1, layer.channels("input")))
        if self.convention.crossed_groups and layer.node.attributes.get_int("group", 1) > 1:
            return self._crossed(layer, channels, weight)
        return self.nodes.add(DENSE_COST.key, [channels, self._by_input(layer, weight)], "products", {}, ())

    def _crossed(self, layer: layers.Layer, channels: ir.Value, weight: ir.Value) -> ir.Value:
        """The count of a depthwise convolution as if it had no groups."""
        if graph.dims(layer.weight)[1] != 1:
            raise UnsupportedError(
                f"the convention '{self.convention.name}' has no count for groups that are not depthwise",
                at=f"node '{layer.node.name}'",
                hint="count with another convention",
            )
        every = self.nodes.total(channels, "width.channels")
        return self.nodes.add("Mul", [every, self.nodes.total(weight, "width.filters")], "products", {}, ())

    def _biases(self, layer: layers.Layer, added: ir.Value) -> ir.Value | None:
        if not self.convention.additions:
            return None
        bits = self.nodes.total(self.widths.present(added), "additions")
        return self.nodes.times(bits, self.convention.bias_uses(layer), "additions")

    def _by_input(self, layer: layers.Layer, width: ir.Value) -> ir.Value:
        """The widths of weights as [inputs, ...]."""
        shape, operator = graph.dims(layer.weight), layer.node.op_type
        if operator in ("MatMul", "Gemm"):
            turned = layer.output_axis == 0
            return self.nodes.add("Transpose", [width], "width.turned", {"perm": [1, 0]}) if turned else width
        rows = self.nodes.constant(np.array([layer.channels("input"), -1], np.int64))
        if operator == "Conv":
            groups = layer.node.attributes.get_int("group", 1)
            parts = self.nodes.constant(
                np.array([groups, shape[0] // groups, shape[1], math.prod(shape[2:])], np.int64)
            )
            width = self.nodes.add("Reshape", [width, parts], "width.groups")
            width = self.nodes.add("Transpose", [width], "width.inputs", {"perm": [0, 2, 1, 3]})
        return self.nodes.add("Reshape", [width, rows], "width.rows")


def computing(main: ir.Graph, results: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes of standard operators between the graph's inputs and `results`, in their order."""
    reached = {value for value in main.inputs if not value.is_initializer()}
    below = []
    for node in main:
        if any(value in reached for value in node.inputs):
            reached.update(node.outputs)
            below.append(node)
    wanted, found = set(results), []
    for node in reversed(below):
        if any(output in wanted for output in node.outputs):
            wanted.update(value for value in node.inputs if value is not None)
            found.append(node)
    return [node for node in reversed(found) if not node.domain]


def uncounted(main: ir.Graph) -> list[str]:
    """Names of nodes that compute and for which there is no count: no rule, or a look-up of what is on no grid."""
    owned = {node for layer in layers.layers(main) for node in (layer.node, layer.bias_add)}
    owned |= {node for table in looked_up(main).values() for node in table.nodes}
    missing = [node for node in computing(main, main.outputs) if node not in owned and node.op_type in SENSITIVE]
    return [str(node.name) for node in missing if node.op_type not in OPERATORS and not _is_head(node)]


def looked_up(main: ir.Graph) -> dict[ir.Node, unary.Function]:
    """The functions of one number of a grid, which hardware looks up, by their last nodes.

    A table would have a place for each float where numbers are on no grid; such a function is not counted.
    """
    return {one.nodes[-1]: one for one in unary.functions(main) if on_grid(one.x)}


def _is_head(node: ir.Node) -> bool:
    """Whether a node ends the model, and is left out in hardware."""
    return node.op_type in layers.HEADS and node.outputs[0].is_graph_output()


def _is_free(node: ir.Node) -> bool:
    """Whether a node is left out in hardware, only lets through or moves the point, or computes places."""
    if _is_head(node) or node.outputs[0].dtype == ir.DataType.INT64:
        return True
    if node.op_type != "Mul":
        return False
    factors = [graph.constant(value) for value in node.inputs]
    return layers.applies_mask(node) or is_gated(node) or any(one is not None and _shifts(one) for one in factors)


def _shifts(factor: np.ndarray) -> bool:
    """Whether a constant is powers of two, which move the point."""
    return bool(np.all(np.frexp(factor)[0] == 0.5))


def _row(node: ir.Node) -> tuple[int, ...]:
    return graph.row_shape(node.outputs[0])


def _batch_norm(counter: Counter, node: ir.Node) -> Terms:
    """x gamma + beta, folded to one factor and one term for each channel."""
    data, gamma, beta = (graph.operand(node, index) for index in range(3))
    width, ones = counter.widths.of(data), [1] * (len(_row(node)) - 2)
    by_channel = [_by_channel(counter, counter.widths.present(value), ones) for value in (gamma, beta)]
    biases = counter.nodes.total(counter.widths.full(by_channel[1], _row(node)), "additions")
    products = counter.product(width, by_channel[0])
    return Terms(products, counter.adding(biases), width, counter.widths.of(gamma), counter.widths.of(beta))


def _by_channel(counter: Counter, width: ir.Value, ones: list[int]) -> ir.Value:
    shape = (*graph.dims(width), *ones)
    form = counter.nodes.constant(np.array(shape, np.int64))
    return counter.nodes.add("Reshape", [width, form], "width.channels", {}, shape) if ones else width


def _layer_norm(counter: Counter, node: ir.Node) -> Terms:
    """The affine part, x gamma + beta; mean, variance and root are not counted."""
    data, gamma = (graph.operand(node, index) for index in range(2))
    beta = node.inputs[2] if len(node.inputs) > 2 else None
    width = counter.widths.of(data)
    if not counter.convention.layer_norms:
        return Terms(None, None, width)
    products = counter.product(width, counter.widths.present(gamma))
    if beta is None:
        return Terms(products, None, width, counter.widths.of(gamma))
    biases = counter.nodes.total(counter.widths.full(counter.widths.present(beta), _row(node)), "additions")
    return Terms(products, counter.adding(biases), width, counter.widths.of(gamma), counter.widths.of(beta))


def _average_pool(counter: Counter, node: ir.Node) -> Terms:
    """All bits that enter."""
    width = counter.widths.of(graph.operand(node, 0))
    return Terms(None, counter.adding(counter.nodes.total(width, "additions")), width)


def _max_pool(counter: Counter, node: ir.Node) -> Terms:
    """As a pool of averages, where comparisons count."""
    width = counter.widths.of(graph.operand(node, 0))
    return _average_pool(counter, node) if counter.convention.comparisons else Terms(None, None, width)


def _softmax(counter: Counter, node: ir.Node) -> Terms:
    """max - x, the sum of exponentials, and their products with its reciprocal, both as wide as the result."""
    width, found = counter.widths.of(graph.operand(node, 0)), counter.widths.written(node.outputs[0])
    axes = counter.nodes.constant(np.array([node.attributes.get_int("axis", -1)], np.int64))
    free = counter.nodes.add(NARROWEST.key, [found, axes], "width.narrowest")
    parts = [counter.nodes.total(one, "additions") for one in (width, found, free)]
    additions = counter.adding(parts[0], parts[1], counter.negative(parts[2]))
    return Terms(counter.product(found, found), additions, width)


def _matmul(counter: Counter, node: ir.Node) -> Terms:
    """Every product of two activations, as in attention."""
    widths = [counter.widths.of(graph.operand(node, index)) for index in range(2)]
    products = counter.nodes.add("MatMul", widths, "products.terms")
    return Terms(counter.nodes.total(products, "products"), None, widths[0])


def _multiply(counter: Counter, node: ir.Node) -> Terms:
    """Elementwise products, of two activations or by constants."""
    widths = [counter.widths.present(graph.operand(node, index)) for index in range(2)]
    return Terms(counter.product(*widths), None, _entering(counter, node))


def _add(counter: Counter, node: ir.Node) -> Terms:
    """A sum of activations, or a term for each element as a bias has it."""
    return _sum_or_bias(counter, node, counter.convention.sums)


def _subtract(counter: Counter, node: ir.Node) -> Terms:
    """A difference of activations, or a term for each element as a bias has it."""
    return _sum_or_bias(counter, node, counter.convention.differences)


def _sum_or_bias(counter: Counter, node: ir.Node, price: float) -> Terms:
    values = [value for value in node.inputs if value is not None]
    constants = [value for value in values if layers.source(value) is not None]
    full = [counter.widths.full(counter.widths.present(value), _row(node)) for value in constants or values]
    if constants:
        bits = [counter.nodes.total(one, "additions") for one in full]
        return Terms(None, counter.adding(*bits), _entering(counter, node), None, counter.widths.of(constants[0]))
    return Terms(None, _merged(counter, full, price), _entering(counter, node))


def _largest(counter: Counter, node: ir.Node) -> Terms:
    """The larger or smaller of two numbers, where comparisons count."""
    if not counter.convention.comparisons:
        return Terms(None, None, _entering(counter, node))
    return _sum_or_bias(counter, node, 1.0)


def _merged(counter: Counter, operands: list[ir.Value], price: float) -> ir.Value | None:
    """All bits of the operands but those of the one that is free, element by element."""
    if not counter.convention.additions or price == 0:
        return None
    chosen = "Min" if counter.convention.narrowest_free else "Max"
    free = counter.nodes.add(chosen, operands, "width.free", {}, graph.dims(operands[0]))
    parts = [counter.nodes.total(one, "additions") for one in (*operands, free)]
    total = counter.adding(*parts[:-1], counter.negative(parts[-1]))
    return None if total is None else counter.nodes.times(total, price, "additions")


def _reduce(counter: Counter, node: ir.Node) -> Terms:
    """A sum along axes: all bits but those of the one that is free; a mean moves the point, or is taken to."""
    width, price = counter.widths.of(graph.operand(node, 0)), counter.convention.sums
    if not counter.convention.additions or price == 0:
        return Terms(None, None, width)
    chosen = NARROWEST.key if counter.convention.narrowest_free else "ReduceMax"
    axes = counter.nodes.constant(np.array(_axes(node, len(graph.dims(width))), np.int64))
    free = counter.nodes.total(counter.nodes.add(chosen, [width, axes], "width.free"), "additions")
    total = counter.adding(counter.nodes.total(width, "additions"), counter.negative(free))
    return Terms(None, None if total is None else counter.nodes.times(total, price, "additions"), width)


def _axes(node: ir.Node, rank: int) -> list[int]:
    """The axes that are reduced: all, unless the node names them."""
    given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else graph.attribute(node, "axes")
    return list(range(rank)) if given is None else [int(axis) for axis in np.asarray(given).flat]


def _entering(counter: Counter, node: ir.Node) -> ir.Value:
    """The widths of the first activation that enters."""
    values = [value for value in node.inputs if value is not None]
    return counter.widths.of(next((one for one in values if layers.source(one) is None), values[0]))


OPERATORS: Mapping[str, Callable[[Counter, ir.Node], Terms]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "GlobalAveragePool": _average_pool,
    "GlobalMaxPool": _max_pool,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "Max": _largest,
    "MaxPool": _max_pool,
    "Min": _largest,
    "Mul": _multiply,
    "PRelu": _multiply,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Softmax": _softmax,
    "Sub": _subtract,
    "Sum": _add,
}
"""What counts a node that is no layer."""
