from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.curves import parse
from pqc.errors import PassError
from pqc.method import Method
from pqc.methods import TABLE
from pqc.options import check_options, nearest
from pqc.rewriting import CHANGES, Meaning, Pass, explain


@dataclass(frozen=True)
class InsertMasks(Pass):
    """Multiply every weight by a mask that a pruning method learns.

    Quant(W) → Quant(W · mask(state, controls)), or Quant(W) · mask with `pruning-first=false`. `options` are the
    method's, as name=value,name=value.
    Leaves biases, layers that match `exclude`, and weights that have a mask already.
    """

    title: ClassVar[str] = "insert-masks"
    meaning: ClassVar[Meaning] = CHANGES

    method: str = "cs"
    options: dict[str, str] = field(default_factory=dict)
    pruning_first: bool = True
    exclude: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model) -> int:
        method = make_method(self.method, self.options)
        layers.check_patterns(layers.layers(model.graph), self.exclude)
        wanted = {
            layer.weight: layer
            for layer in layers.layers(model.graph)
            if not layer.excluded(self.exclude) and not _masked(layer.weight)
        }
        writer = _Writer(model.graph, method)
        for weight, layer in wanted.items():
            writer.mask(weight, self.pruning_first)
            explain(layer.node, f"weight '{weight.name}' gets a mask")
        if wanted:
            library.link(model)
        return len(wanted)


def make_method(name: str, options: dict[str, str]) -> Method:
    """The pruning method `name` with its options, given as text.

    Raises:
        PassError: no such method or option, or a value that is not a number.
    """
    if name not in TABLE:
        raise PassError(f"no pruning method '{name}'{nearest(name, TABLE)}", hint="see `pqc list methods`")
    method = TABLE[name]
    check_options(f"method '{name}'", options, [one.name for one in fields(method)])
    try:
        return method(**{option: float(value) for option, value in options.items()})
    except ValueError as error:
        raise PassError(f"method '{name}': {error}", hint="its options are numbers") from error


def _masked(weight: ir.Value) -> bool:
    readers = list(weight.consumers())
    readers += [node for reader in readers if layers.is_quant(reader) for node in reader.outputs[0].consumers()]
    return any(layers.applies_mask(node) for node in readers)


class _Writer:
    """Adds mask nodes, their states beside the weights, and one initializer per control."""

    def __init__(self, main: ir.Graph, method: Method) -> None:
        self.main = main
        self.method = method
        self.names = graph.Names(main)
        self.controls: dict[str, ir.Value] = {}

    def mask(self, weight: ir.Value, pruning_first: bool) -> None:
        mask = self._mask_node(weight)
        quants = [node for node in weight.consumers() if layers.is_quant(node)]
        target = weight if pruning_first or not quants else quants[0].outputs[0]
        readers = list(target.uses())
        product = ir.node(
            "Mul",
            [target, mask.outputs[0]],
            name=self.names.new(f"{weight.name}.pruned"),
            outputs=[ir.val(self.names.new(f"{weight.name}.masked"), weight.dtype, weight.shape)],
        )
        for reader, index in readers:
            if reader is not mask:
                reader.replace_input_with(index, product.outputs[0])
        producer = target.producer()
        if producer is None:
            self.main.insert_before(self.main.node(0), (mask, product))
        else:
            self.main.insert_after(producer, (mask, product))

    def _mask_node(self, weight: ir.Value) -> ir.Node:
        method = self.method
        values = {"weight": weight}
        array = np.asarray(graph.constant(weight))
        for state in method.states():
            name = self.names.new(f"{weight.name}.{state.name}")
            values[state.name] = graph.add_initializer(self.main, name, state.initial(array))
        for control, curve in method.controls().items():
            if control not in self.controls:
                start = np.asarray(parse(curve)(0, 1), np.float32)
                self.controls[control] = graph.add_initializer(self.main, self.names.new(control), start)
            values[control] = self.controls[control]
        domain, operator = method.mask.key
        return ir.node(
            operator,
            [values[name] for name in method.mask_inputs],
            method.attributes(),
            domain=domain,
            name=self.names.new(f"{weight.name}.mask"),
            outputs=[ir.val(self.names.new(f"{weight.name}.mask.out"), weight.dtype, weight.shape)],
        )
