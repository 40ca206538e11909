"""Learned masks in a graph, and nodes of their methods' functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, library
from pqc.errors import GraphError
from pqc.layout import Layout, layout_of
from pqc.method import Call, Method
from pqc.methods import make

METHOD = "pqc.method"
"""The key of a mask node's metadata that tells its method and options."""


@dataclass(frozen=True)
class MaskSite:
    """A learned mask in the graph.

    Args:
        node: the mask function's node.
        method: the pruning method with its options.
        product: the Mul that applies the mask.
        weight: the initializer that is masked.
        inputs: states and controls by the method's names for them.
    """

    node: ir.Node
    method: Method
    product: ir.Node
    weight: ir.Value
    inputs: dict[str, ir.Value]

    @property
    def masked(self) -> ir.Value:
        """What is multiplied by the mask: the weight, or its quantizer's result."""
        return graph.operand(self.product, 0)

    def states(self) -> dict[str, ir.Value]:
        """The states by the method's names."""
        return {state.name: self.inputs[state.name] for state in self.method.states()}


def remember(node: ir.Node, method: Method) -> None:
    """Note the method and its options on a node."""
    options = {field.name: getattr(method, field.name) for field in fields(method)}
    node.metadata_props[METHOD] = json.dumps({"method": method.title, "options": options})


def method_of(node: ir.Node) -> Method | None:
    """The method that a node belongs to, or None.

    Raises:
        GraphError: the note on the node is damaged.
    """
    text = node.metadata_props.get(METHOD)
    try:
        return None if text is None else _read(text)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(node) from error


def _damaged(node: ir.Node) -> GraphError:
    return GraphError("the mask's method cannot be read", at=f"node '{node.name}'", hint="compress again")


@cache
def _read(text: str) -> Method:
    note = json.loads(text)
    return make(note["method"], note["options"])


def masks(main: ir.Graph) -> Iterator[MaskSite]:
    """The learned masks in the order of the graph.

    Raises:
        GraphError: a mask's node does not fit its method.
    """
    for product in main:
        mask = graph.operand(product, 1) if layers.applies_mask(product) else None
        node = layers.mask_node(mask) if mask is not None else None
        method = method_of(node) if node is not None else None
        weight = layers.source(product.inputs[0])
        if node is None or method is None or weight is None:
            continue
        reads = method.mask().reads
        if len(reads) != len(node.inputs):
            raise _damaged(node)
        names = zip(reads, node.inputs, strict=True)
        inputs = {name: value for name, value in names if value is not None and name != "weight"}
        yield MaskSite(node, method, product, weight, inputs)


def controls(main: ir.Graph) -> dict[str, ir.Value]:
    """The annealed scalars of the masks, by name."""
    found: dict[str, ir.Value] = {}
    for site in masks(main):
        found |= {name: value for name, value in site.inputs.items() if name in site.method.controls()}
    return found


@dataclass(frozen=True)
class Parameter:
    """A tensor that training moves. `role` is `weight`, `bias` or the name of a method's state."""

    value: ir.Value
    role: str


def parameters(main: ir.Graph) -> list[Parameter]:
    """Everything that the optimizer moves, once each: weights, then biases, then states in the order of weights."""
    known = layers.layers(main)
    found = {layer.weight.name: Parameter(layer.weight, "weight") for layer in known}
    for layer in known:
        if layer.bias is not None:
            found.setdefault(layer.bias.name, Parameter(layer.bias, "bias"))
    return [*found.values(), *_states(main, trained=True)]


def buffers(main: ir.Graph) -> list[Parameter]:
    """The states that the optimizer does not move."""
    return _states(main, trained=False)


def _states(main: ir.Graph, *, trained: bool) -> list[Parameter]:
    sites = {site.weight: site for site in masks(main)}
    known = dict.fromkeys(layer.weight for layer in layers.layers(main))
    found: dict[str, list[Parameter]] = {}
    for site in (sites[weight] for weight in known if weight in sites):
        for state in site.method.states():
            if state.trained == trained:
                found.setdefault(state.name, []).append(Parameter(site.inputs[state.name], state.name))
    return [one for parameters in found.values() for one in parameters]


class Builder:
    """Adds nodes of the methods' functions to a graph: before the node `place`, or at the end."""

    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.place: ir.Node | None = None
        self.names = graph.Names(main)
        self.layers: dict[ir.Value, list[layers.Layer]] = {}
        for layer in layers.layers(main):
            self.layers.setdefault(layer.weight, []).append(layer)

    def layout(self, weight: ir.Value, method: Method) -> Layout:
        """How the method sees the weight."""
        layer = self.layers[weight][0]
        shape = graph.stored(weight).shape
        if method.as_stored:
            return Layout(shape, shape, tuple(range(len(shape))), shape)
        groups = layer.node.attributes.get_int("group", 1)
        return layout_of(layer.node.op_type, shape, layer.output_axis, groups)

    def call(self, site: MaskSite, call: Call, title: str) -> list[ir.Value]:
        """The outputs of a new node that does `call` for the mask at `site`."""
        values = dict(site.inputs)
        for name in call.reads:
            if name not in values:
                values[name] = self._given(site, name)
        node = make_node(call, values, site.method, self.names, f"{site.weight.name}.{title}")
        self._insert([node])
        return list(node.outputs)

    def stored(self, site: MaskSite, value: ir.Value) -> ir.Value:
        """`value`, which has the shape that the method sees or broadcasts to it, in the weight's layout."""
        return self._append(self.layout(site.weight, site.method).back_nodes(value, self.main, self.names))

    def hard_mask(self, site: MaskSite) -> ir.Value:
        """The mask of zeros and ones: the method's own, or where its score is above zero."""
        call = site.method.hard_mask()
        mask = self.call(site, call, "hard")[0] if call is not None else self._positive(site)
        return self.stored(site, mask)

    def _positive(self, site: MaskSite) -> ir.Value:
        zero = graph.add_initializer(self.main, self.names.new(f"{site.weight.name}.zero"), np.zeros((), np.float32))
        score = self.call(site, site.method.score(), "score")[0]
        above = self._add("Greater", [score, zero], f"{site.weight.name}.above", {}, ir.DataType.BOOL)
        return self._add("Cast", [above], f"{site.weight.name}.hard", {"to": int(ir.DataType.FLOAT)})

    def _given(self, site: MaskSite, name: str) -> ir.Value:
        if name == "mask":
            return site.node.outputs[0]
        if name == "weight":
            return self._append(self.layout(site.weight, site.method).seen_nodes(site.masked, self.main, self.names))
        rows = [self._rows(layer, name) for layer in self.layers[site.weight]]
        if len(rows) == 1:
            return rows[0]
        return self._add("Concat", rows, f"{site.weight.name}.{name}.rows", {"axis": 0})

    def _rows(self, layer: layers.Layer, side: str) -> ir.Value:
        """What enters or leaves a layer as [rows, channels]."""
        value = layer.data if side == "input" else _rounded(layer.output)
        channels = layer.channels(side)
        name = f"{layer.name}.{side}"
        if layer.node.op_type in ("Conv", "ConvTranspose"):
            kernel = graph.stored(layer.weight).ndim - 2
            value = self._add("Transpose", [value], f"{name}.last", {"perm": [0, *range(2, kernel + 2), 1]})
        shape = graph.add_initializer(self.main, self.names.new(f"{name}.form"), np.array([-1, channels], np.int64))
        return self._add("Reshape", [value, shape], f"{name}.rows", {})

    def _add(
        self,
        operator: str,
        inputs: list[ir.Value],
        name: str,
        attributes: dict[str, object],
        kind: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        output = ir.val(self.names.new(f"{name}.out"), kind)
        self._insert([ir.node(operator, inputs, attributes, name=self.names.new(name), outputs=[output])])
        return output

    def _append(self, made: tuple[list[ir.Node], ir.Value]) -> ir.Value:
        self._insert(made[0])
        return made[1]

    def _insert(self, nodes: list[ir.Node]) -> None:
        if self.place is not None:
            self.main.insert_before(self.place, nodes)
        else:
            self.main.extend(nodes)


def _rounded(value: ir.Value) -> ir.Value:
    """What the only reader makes of `value`, where that is a quantizer."""
    readers = list(value.consumers())
    return readers[0].outputs[0] if len(readers) == 1 and layers.is_quant(readers[0]) else value


def make_node(call: Call, values: Mapping[str, ir.Value], method: Method, names: graph.Names, name: str) -> ir.Node:
    """A node of one of the method's functions, with its attributes and the note of its method."""
    domain, operator = call.operator.key
    body = library.bodies()[domain, operator]
    known = {attribute.name for attribute in body.attribute_proto} | set(body.attribute)
    attributes = {key: value for key, value in method.attributes().items() if key in known}
    node = ir.node(
        operator,
        [values[read] for read in call.reads],
        attributes,
        domain=domain,
        name=names.new(name),
        outputs=[ir.val(names.new(f"{name}.{part}")) for part in ("out", *body.output[1:])],
    )
    node.outputs[0].dtype = ir.DataType.FLOAT
    remember(node, method)
    return node


Recipe = Callable[[Builder, MaskSite], dict[str, ir.Value]]
"""What to compute for a mask: values by the name of the state or weight they are for."""


def states_after(pick: str) -> Recipe:
    """The states that the method's function `pick` sets."""

    def recipe(builder: Builder, site: MaskSite) -> dict[str, ir.Value]:
        call: Call | None = getattr(site.method, pick)()
        if call is None:
            return {}
        found = builder.call(site, call, pick)
        return {str(site.inputs[name].name): value for name, value in zip(call.sets, found, strict=True) if name}

    return recipe


def harden(main: ir.Graph) -> None:
    """Put each learned mask's hard form in its place."""
    builder = Builder(main)
    for site in list(masks(main)):
        builder.place = site.product
        site.product.replace_input_with(1, builder.hard_mask(site))
    graph.remove_unused(main)


def freeze(model: ir.Model, found: Mapping[str, np.ndarray]) -> int:
    """Put constants in the place of the learned masks.

    Args:
        model: changed in place.
        found: masks by the weight's name, broadcasting to its shape.
    """
    sites = list(masks(model.graph))
    names = graph.Names(model.graph)
    for site in sites:
        mask = np.broadcast_to(found[str(site.weight.name)], graph.stored(site.weight).shape).astype(np.float32)
        name = names.new(f"{site.weight.name}.frozen.mask")
        site.product.replace_input_with(1, graph.add_initializer(model.graph, name, mask))
    if sites:
        graph.remove_unused(model.graph)
        library.unlink(model)
        library.link(model)
    return len(sites)


def scores(builder: Builder, site: MaskSite) -> dict[str, ir.Value]:
    """The scores, in the layout that the method sees."""
    return {str(site.weight.name): builder.call(site, site.method.score(), "score")[0]}


def hard_masks(builder: Builder, site: MaskSite) -> dict[str, ir.Value]:
    """The masks of zeros and ones, in the weights' layout or broadcasting to it."""
    return {str(site.weight.name): builder.hard_mask(site)}


def hard_weights(builder: Builder, site: MaskSite) -> dict[str, ir.Value]:
    """The weights that go with the hard masks, where they change."""
    call = site.method.hard_weight()
    if call is None:
        return {}
    return {str(site.weight.name): builder.stored(site, builder.call(site, call, "hard_weight")[0])}


class Program:
    """Functions of the methods on all masks at once, as a graph of its own.

    Args:
        model: a compressible graph with learned masks; not changed.
        recipe: what to compute.
    """

    def __init__(self, model: ir.Model, recipe: Recipe) -> None:
        trial = graph.copy(model)
        main = trial.graph
        given = [*parameters(main), *buffers(main)]
        names = {str(one.value.name) for one in given} | {str(one.name) for one in controls(main).values()}
        builder = Builder(main)
        wanted = [pair for site in list(masks(main)) for pair in recipe(builder, site).items()]
        self._targets = {str(value.name): target for target, value in wanted}
        main.outputs[:] = [value for _, value in wanted]
        graph.remove_unused(main)
        main.inputs[:] = [value for value in main.initializers.values() if value.name in names]
        self._names = [str(value.name) for value in main.inputs]
        self._session = engine.Session(trial) if wanted else None

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the functions give, by the name of the state or the weight.

        Args:
            values: parameters, states and controls by their names in the graph; the stored ones hold for the rest.
        """
        if self._session is None:
            return {}
        found = self._session.run({name: values[name] for name in self._names if name in values})
        return {self._targets[name]: array for name, array in found.items()}
