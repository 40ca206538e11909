from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, library
from pqc.functions.costs import WIDTH
from pqc.functions.fixed_quant import NEEDED_BITS, NO_OVERFLOW
from pqc.functions.learned import NEEDED_FROM, PARAMETER_BITS, SHIFT_ROUND, STEP_WIDTH
from pqc.functions.operator import Key
from pqc.quantizer_sites import BitsSite, sites
from pqc.rewriting import Meaning, Pass, close, explain

LONG_BATCH, STRETCHES = 512, 8


@dataclass(frozen=True)
class LowerLearned(Pass):
    """Write quantizers that learn their bits in the form that trains fastest.

    FixedQuant(W, i, f), Width(i, f) with bits for each weight → ParameterBits(W, i, f), which gives both.
    FixedQuant(x, i, f) that never overflows, Width(i, f) → ShiftRound(x, StepWidth(f, i)), whose small vectors can be
    computed for all layers at once; NeededBits(x, …) → NeededFrom(…, max x, min x).
    Leaves other roundings, saturating activations, and bits whose width nobody asks for. For the training step only.
    """

    title: ClassVar[str] = "lower-learned"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        writer = _Writer(main)
        lowered = sum(writer.lower(site) for site in list(sites(main)) if site.learns)
        lowered += sum(
            writer.lower_needed(node) for node in list(main) if (node.domain, node.op_type) == NEEDED_BITS.key
        )
        if lowered:
            graph.remove_unused(main)
            library.unlink(model)
            library.link(model)
        return lowered


class _Writer:
    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.names = graph.Names(main)

    def lower(self, site: BitsSite) -> bool:
        """Replace a quantizer and the node that computes its width."""
        widths = [node for node in site.i.consumers() if (node.domain, node.op_type) == WIDTH.key]
        widths = [node for node in widths if node.inputs[1] is site.f]
        overflow = str(site.node.attributes.get_string("overflow", "SAT"))
        signed = site.node.attributes.get_int("signed", 1)
        if str(site.node.attributes.get_string("rounding", "RND_CONV")) != "RND_CONV" or len(widths) != 1:
            explain(site.node, "kept: another rounding, or its width is not asked for")
            return False
        shapes = [graph.dims(value) if value.shape is not None else None for value in (site.i, site.f)]
        if overflow == NO_OVERFLOW:
            self._without_overflow(site, widths[0])
        elif overflow == "SAT_SYM" and signed and shapes == [_static(site.x)] * 2:
            self._parameter(site, widths[0])
        else:
            explain(site.node, f"kept: {overflow}, or bits that elements share")
            return False
        return True

    def _parameter(self, site: BitsSite, width: ir.Node) -> None:
        name = f"{site.node.name}.learned"
        signs = {"signs": width.attributes.get_int("signed", 1)}
        found = self._add(PARAMETER_BITS.key, [site.x, site.i, site.f], name, 5, site.x.shape, signs, before=site.node)
        self._take_over(site, width, found[0], found[1])

    def _without_overflow(self, site: BitsSite, width: ir.Node) -> None:
        name = site.node.name
        k = self._constant(f"{name}.sign", np.float32(width.attributes.get_int("signed", 1)))
        shift, bits = self._add(STEP_WIDTH.key, [site.f, site.i, k], f"{name}.step", 2, site.f.shape, before=site.node)
        rounded = self._add(SHIFT_ROUND.key, [site.x, shift], f"{name}.learned", 1, site.x.shape, before=site.node)
        self._take_over(site, width, rounded[0], bits)

    def _take_over(self, site: BitsSite, width: ir.Node, rounded: ir.Value, bits: ir.Value) -> None:
        graph.replace(site.node.outputs[0], rounded)
        graph.replace(width.outputs[0], bits)

    def lower_needed(self, node: ir.Node) -> bool:
        """Reduce what is measured to its ends first."""
        x, i, f = (graph.operand(node, index) for index in range(3))
        shared = [axis for axis, length in enumerate(graph.dims(i)) if length == 1]
        axes = self._constant(f"{node.name}.axes", np.array(shared, np.int64))
        signed = node.attributes.get_int("signed", 1)
        top = self._end("Max", x, axes, node, i.shape)
        bottom = self._end("Min", x, axes, node, i.shape) if signed else top
        symmetric = str(node.attributes.get_string("overflow", "SAT")) == "SAT_SYM"
        flags = [
            self._constant(f"{node.name}.{name}", np.float32(flag))
            for name, flag in (("sign", signed), ("symmetric", symmetric))
        ]
        attributes = {"decay": node.attributes.get_float("decay", 0.01)}
        inputs = [f, i, top, bottom, *flags]
        found = self._add(NEEDED_FROM.key, inputs, f"{node.name}.from", 1, i.shape, attributes, before=node)
        graph.replace(node.outputs[0], found[0])
        return True

    def _end(self, which: str, x: ir.Value, axes: ir.Value, node: ir.Node, shape: ir.Shape | None) -> ir.Value:
        """The largest or smallest of x along the axes.

        Of a long batch that of some stretches is taken first: the engine is faster at the extreme of many values.
        """
        name = f"{node.name}.{which.lower()}"
        rows = x.shape[0] if x.shape is not None else None
        if isinstance(rows, int) and rows >= LONG_BATCH and rows % STRETCHES == 0:
            parts = self._add(
                ("", "Split"), [x], f"{name}.parts", STRETCHES, None, {"num_outputs": STRETCHES}, before=node
            )
            x = self._add(("", which), parts, f"{name}.stretches", 1, None, before=node)[0]
        return self._add(("", f"Reduce{which}"), [x, axes], name, 1, shape, before=node)[0]

    def _constant(self, name: str, array: np.ndarray | np.float32) -> ir.Value:
        return graph.add_initializer(self.main, self.names.new(name), np.asarray(array))

    def _add(
        self,
        key: Key,
        inputs: list[ir.Value],
        name: str,
        count: int,
        shape: ir.Shape | None,
        attributes: Mapping[str, object] | None = None,
        *,
        before: ir.Node,
    ) -> list[ir.Value]:
        outputs = [ir.val(self.names.new(f"{name}.out"), ir.DataType.FLOAT, shape) for _ in range(count)]
        name = self.names.new(name)
        node = ir.node(key[1], inputs, dict(attributes or {}), domain=key[0], name=name, outputs=outputs)
        self.main.insert_before(before, node)
        return outputs


def _static(value: ir.Value) -> tuple[int, ...] | None:
    shape = value.shape
    return graph.dims(value) if shape is not None and shape.is_static() else None
