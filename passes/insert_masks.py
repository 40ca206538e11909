from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, library
from pqc import layers as networks
from pqc.curves import parse
from pqc.errors import PassError, UnsupportedError
from pqc.mask_nodes import Builder, make_node
from pqc.method import Method
from pqc.methods import make
from pqc.rewriting import CHANGES, Meaning, Pass, explain
from pqc.shapes import infer_shapes


@dataclass(frozen=True)
class InsertMasks(Pass):
    """Multiply every weight by a mask that a pruning method learns.

    Quant(W) → Quant(W · mask(state, controls)), or Quant(W) · mask with `pruning-first=false`. `options` are the
    method's, as name=value,name=value; `layers` changes them for some layers, as JSON: {"pattern": {"name": value}}.
    Leaves biases, layers that match `exclude`, weights that have a mask already, and, where whole outputs are pruned,
    the layers that give out the model's results.
    """

    title: ClassVar[str] = "insert-masks"
    meaning: ClassVar[Meaning] = CHANGES

    method: str = "cs"
    options: dict[str, str] = field(default_factory=dict)
    layers: str = ""
    pruning_first: bool = True
    exclude: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        found = networks.layers(main)
        networks.check_patterns(found, (*self.exclude, *self._overrides()))
        last = networks.last(main) if make(self.method, self.options).cuts_outputs else set()
        wanted: dict[ir.Value, Method] = {}
        for layer in found:
            if layer.excluded(self.exclude) or _masked(layer.weight):
                continue
            if layer.node in last:
                explain(layer.node, "left alone: its outputs are the model's")
                continue
            wanted.setdefault(layer.weight, self._method(layer))
        writer = _Writer(main)
        for weight, method in wanted.items():
            writer.mask(weight, method, self.pruning_first)
        if wanted:
            library.link(model)
            infer_shapes(model)
        return len(wanted)

    def _overrides(self) -> dict[str, dict[str, object]]:
        try:
            return {str(name): dict(options) for name, options in json.loads(self.layers or "{}").items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise PassError(f"layers: {error}", hint='write JSON: {"pattern": {"option": value}}') from error

    def _method(self, layer: networks.Layer) -> Method:
        """The method with the options that hold for a layer; controls are the same everywhere."""
        options: dict[str, object] = dict(self.options)
        for pattern, changes in self._overrides().items():
            options |= changes if fnmatchcase(layer.name, pattern) else {}
        method, common = make(self.method, options), make(self.method, self.options)
        if method.controls() != common.controls():
            raise PassError(
                f"the layer '{layer.name}' changes an option that sets a curve, and curves are common to all layers",
                hint=f"curves: {', '.join(common.controls())}",
            )
        return method


def _masked(weight: ir.Value) -> bool:
    readers = [*weight.consumers(), *networks.folded(weight).consumers()]
    readers += [node for reader in readers if networks.is_quant(reader) for node in reader.outputs[0].consumers()]
    return any(networks.applies_mask(node) for node in readers)


class _Writer:
    """Adds mask nodes, their states beside the weights, and one initializer per control."""

    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.builder = Builder(main)
        self.names = self.builder.names
        self.controls: dict[str, ir.Value] = {}

    def mask(self, weight: ir.Value, method: Method, pruning_first: bool) -> None:
        layer = self.builder.layers[weight][0]
        place = f"weight '{weight.name}'"
        explain(layer.node, f"{place} gets a mask")
        quants = [node for node in networks.folded(weight).consumers() if networks.is_quant(node)]
        if any(networks.is_binary(node) for node in quants):
            hint = "use ternary weights, or exclude the layer"
            raise UnsupportedError("binary weights are never zero, so none can be pruned", at=place, hint=hint)
        target = weight if pruning_first or not quants else quants[0].outputs[0]
        readers = list(target.uses())
        nodes, mask = self._mask(weight, target, method)
        product = ir.node(
            "Mul",
            [target, mask],
            name=self.names.new(f"{weight.name}.pruned"),
            outputs=[ir.val(self.names.new(f"{weight.name}.masked"), weight.dtype, weight.shape)],
        )
        for reader, index in readers:
            reader.replace_input_with(index, product.outputs[0])
        producer = target.producer()
        if producer is None:
            self.main.insert_before(self.main.node(0), (*nodes, product))
        else:
            self.main.insert_after(producer, (*nodes, product))

    def _mask(self, weight: ir.Value, target: ir.Value, method: Method) -> tuple[list[ir.Node], ir.Value]:
        """Nodes that compute the mask of `target` in the weight's layout."""
        layout = self.builder.layout(weight, method)
        try:
            method.check(layout.shape)
        except ValueError as error:
            hint = "exclude the layer, or give it options of its own"
            raise UnsupportedError(f"{method.title}: {error}", at=f"weight '{weight.name}'", hint=hint) from error
        channels = np.zeros(self.builder.layers[weight][0].channels("input"), np.float32)
        seen = {"weight": layout.seen(np.asarray(graph.constant(weight))), "input": channels}
        values = self._inputs(weight, seen, method)
        before: list[ir.Node] = []
        if "weight" in method.mask().reads:
            before, values["weight"] = layout.seen_nodes(target, self.main, self.names)
        node = make_node(method.mask(), values, method, self.names, f"{weight.name}.mask")
        after, mask = layout.back_nodes(node.outputs[0], self.main, self.names)
        return [*before, node, *after], mask

    def _inputs(self, weight: ir.Value, seen: dict[str, np.ndarray], method: Method) -> dict[str, ir.Value]:
        values = {}
        for state in method.states():
            name = self.names.new(f"{weight.name}.{state.name}")
            start = np.asarray(state.initial(seen[state.per]), np.float32)
            values[state.name] = graph.add_initializer(self.main, name, start)
        for control, curve in method.controls().items():
            if control not in self.controls:
                first = np.asarray(parse(curve)(0, 1), np.float32)
                self.controls[control] = graph.add_initializer(self.main, self.names.new(control), first)
            values[control] = self.controls[control]
        return values
