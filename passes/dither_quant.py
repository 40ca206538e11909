from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.errors import PassError
from pqc.functions.dither import DITHER, NOISE, SPAN
from pqc.functions.operator import Key
from pqc.names import STEP_NUMBER
from pqc.quantizer_sites import STOCHASTIC
from pqc.rewriting import CHANGES, Meaning, Pass


@dataclass(frozen=True)
class DitherQuant(Pass):
    """Round stochastically where quantizers ask for it.

    Quant(x, s) that rounds as it likes → Quant(x + s · Noise(places, step_number), s) that rounds to the nearest:
    up as often as the fraction says, to one part in 1,024. FixedQuant(x, i, f) → FixedQuant(Dither(x, f, noise), i, f)
    likewise. `seed` chooses the places. For the training step only, whose number is a new input.
    Leaves quantizers that do not ask.
    """

    title: ClassVar[str] = "dither-quant"
    meaning: ClassVar[Meaning] = CHANGES

    seed: int = 0

    def rewrite(self, model: ir.Model) -> int:
        found = [node for node in model.graph if STOCHASTIC in node.metadata_props]
        if found:
            writer = _Writer(model.graph, np.random.default_rng(self.seed))
            for node in found:
                writer.dither(node)
            library.link(model)
        return len(found)


class _Writer:
    def __init__(self, main: ir.Graph, rng: np.random.Generator) -> None:
        self.main = main
        self.rng = rng
        self.names = graph.Names(main)
        known = next((value for value in main.inputs if value.name == STEP_NUMBER), None)
        self.number = known or graph.add_initializer(main, STEP_NUMBER, np.array(1, np.float32))
        if known is None:
            main.inputs.append(self.number)

    def dither(self, node: ir.Node) -> None:
        """Add noise to what `node` rounds, and let it round to the nearest."""
        x, name = graph.operand(node, 0), f"{node.name}.dithered"
        noise = self._noise(x, node)
        if layers.is_fixed_quant(node):
            moved = self._add(DITHER.key, [x, graph.operand(node, 2), noise], name, node)
            node.attributes["rounding"] = ir.AttrString("rounding", "RND_CONV")
        else:
            scaled = self._add(("", "Mul"), [noise, graph.operand(node, 1)], f"{node.name}.noise.scaled", node)
            moved = self._add(("", "Add"), [x, scaled], name, node)
            node.attributes["rounding_mode"] = ir.AttrString("rounding_mode", "ROUND")
        node.replace_input_with(0, moved)
        del node.metadata_props[STOCHASTIC]

    def _noise(self, x: ir.Value, node: ir.Node) -> ir.Value:
        if x.shape is None or not x.shape.is_static():
            raise PassError(
                "how many numbers are rounded is not known", at=f"'{node.name}'", hint="run fix-batch first"
            )
        array = self.rng.integers(0, SPAN, graph.dims(x)).astype(np.float64)
        places = graph.add_initializer(self.main, self.names.new(f"{node.name}.places"), array)
        return self._add(NOISE.key, [places, self.number], f"{node.name}.noise", node, x.shape)

    def _add(
        self, key: Key, inputs: list[ir.Value], name: str, before: ir.Node, shape: ir.Shape | None = None
    ) -> ir.Value:
        shape = before.inputs[0].shape if shape is None and before.inputs[0] is not None else shape
        output = ir.val(self.names.new(f"{name}.out"), ir.DataType.FLOAT, shape)
        self.main.insert_before(
            before, ir.node(key[1], inputs, domain=key[0], name=self.names.new(name), outputs=[output])
        )
        return output
