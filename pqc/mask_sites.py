"""Learned masks in a graph: where they are, and the parameters and states that come with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

import onnx_ir as ir

from pqc import batch_norm, graph, layers, quantizer_sites, scales, trained_constants
from pqc.errors import GraphError, PassError
from pqc.method import Method
from pqc.methods import make
from pqc.names import BITS_WEIGHT, EBOPS_WEIGHT

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
    except (ValueError, KeyError, TypeError, RecursionError, PassError) as error:
        raise _damaged(node, f": {error.message}" if isinstance(error, PassError) else "") from error


def _damaged(node: ir.Node, reason: str = "") -> GraphError:
    return GraphError(f"the mask's method cannot be read{reason}", at=f"node '{node.name}'", hint="compress again")


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
        call = method.mask()
        if call.operator.key != (node.domain, node.op_type) or len(call.reads) != len(node.inputs):
            raise _damaged(node)
        names = zip(call.reads, node.inputs, strict=True)
        inputs = {name: value for name, value in names if value is not None and name != "weight"}
        yield MaskSite(node, method, product, weight, inputs)


def controls(main: ir.Graph) -> dict[str, ir.Value]:
    """The annealed scalars of the masks and of the bits' price, by name."""
    found = {name: main.initializers[name] for name in (EBOPS_WEIGHT, BITS_WEIGHT) if name in main.initializers}
    for site in masks(main):
        found |= {name: value for name, value in site.inputs.items() if name in site.method.controls()}
    return found


@dataclass(frozen=True)
class Parameter:
    """A tensor that training moves. `role`: `weight`, `bias`, that of bits, scales or constants, or a state's name."""

    value: ir.Value
    role: str


def parameters(main: ir.Graph) -> list[Parameter]:
    """Everything that the optimizer moves, once each: weights, biases, learned bits and scales, constants, states."""
    known = layers.layers(main)
    found = {layer.weight.name: Parameter(layer.weight, "weight") for layer in known}
    for layer in known:
        if layer.bias is not None:
            found.setdefault(layer.bias.name, Parameter(layer.bias, "bias"))
    bits = [Parameter(value, role) for value, role in quantizer_sites.trained(main)]
    steps = [Parameter(site.trained, scales.SCALE) for site in scales.sites(main)]
    shared = {one.value for one in found.values()}
    constants = [Parameter(value, role) for value, role in trained_constants.trained(main) if value not in shared]
    return [*found.values(), *bits, *steps, *constants, *_states(main, trained=True)]


def buffers(main: ir.Graph) -> list[Parameter]:
    """The states that the optimizer does not move."""
    bits = [Parameter(value, role) for value, role in quantizer_sites.followed(main)]
    statistics = [Parameter(value, role) for value, role in batch_norm.statistics(main)]
    return [*bits, *statistics, *_states(main, trained=False)]


def _states(main: ir.Graph, *, trained: bool) -> list[Parameter]:
    sites = {site.weight: site for site in masks(main)}
    known = dict.fromkeys(layer.weight for layer in layers.layers(main))
    found: dict[str, list[Parameter]] = {}
    for site in (sites[weight] for weight in known if weight in sites):
        for state in site.method.states():
            if state.trained == trained:
                found.setdefault(state.name, []).append(Parameter(site.inputs[state.name], state.name))
    return [one for parameters in found.values() for one in parameters]
