from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, library, quantizer_sites
from pqc.conventions import DEFAULT
from pqc.ebops import Counter
from pqc.names import BITS_WEIGHT, EBOPS_WEIGHT, LOSS
from pqc.rewriting import Pass


@dataclass(frozen=True)
class AttachCosts(Pass):
    """Add the price of learned bits to the loss.

    loss → loss + ebops-weight · EBOPs + bits-weight · (sum of all learned bits), both weights being scalars that a
    schedule anneals. EBOPs count products of widths and additions of all operators, and leave out weights whose mask
    is zero. Without `bits` there is no last term; without `signs` widths are counted without their sign bits.
    Leaves a graph without a loss, without learned bits, or with their price.
    """

    title: ClassVar[str] = "attach-costs"

    bits: bool = True
    signs: bool = True

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        place = next((number for number, value in enumerate(main.outputs) if value.name == LOSS), None)
        learned = [value for value, _ in quantizer_sites.trained(main)]
        if place is None or not learned or EBOPS_WEIGHT in main.initializers:
            return 0
        writer = _Writer(main)
        outputs = [value for value in main.outputs if value.name != LOSS]
        counted = Counter(main, replace(DEFAULT, zeros=True, signs=self.signs)).count(outputs)
        costs = [value for terms in counted.values() for value in terms.costs]
        price = writer.product(writer.sum(costs, "ebops"), EBOPS_WEIGHT)
        task = main.outputs[place]
        task.name = f"{LOSS}.before_costs"
        parts = [task, price]
        if self.bits:
            parts.append(writer.product(writer.sum([writer.total(value) for value in learned], "bits"), BITS_WEIGHT))
        loss = writer.sum(parts, LOSS)
        loss.name = LOSS
        main.outputs[place] = loss
        library.link(model)
        return 1


class _Writer:
    """Adds nodes with scalar results at the end."""

    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.names = graph.Names(main)

    def sum(self, values: list[ir.Value], name: str) -> ir.Value:
        total = values[0]
        for value in values[1:]:
            total = self._add("Add", [total, value], name, {})
        return total

    def total(self, value: ir.Value) -> ir.Value:
        """The sum over all elements."""
        return self._add("ReduceSum", [value], f"{value.name}.sum", {"keepdims": 0})

    def product(self, value: ir.Value, weight: str) -> ir.Value:
        """`value` times the scalar `weight`, which is zero until it is set."""
        return self._add("Mul", [value, graph.add_initializer(self.main, weight, np.zeros((), np.float32))], weight, {})

    def _add(self, operator: str, inputs: list[ir.Value], name: str, attributes: dict[str, int]) -> ir.Value:
        output = ir.val(self.names.new(f"{name}.out"), ir.DataType.FLOAT, [])
        self.main.append(ir.node(operator, inputs, attributes, name=self.names.new(name), outputs=[output]))
        return output
