"""Nodes of the methods' functions in a graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.layout import Layout, layout_of
from pqc.mask_sites import MaskSite, remember
from pqc.method import Call, Method


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
        if method.elementwise:
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
