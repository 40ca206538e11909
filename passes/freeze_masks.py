from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph
from pqc.masking import Program, freeze, hard_masks, hard_weights
from pqc.rewriting import CHANGES, Meaning, Pass


@dataclass(frozen=True)
class FreezeMasks(Pass):
    """Replace each learned mask by its constant of zeros and ones.

    W · mask(state, controls) → W · M with M the method's hard mask; methods that say so change W too.
    Leaves frozen masks alone; the states and controls that nothing reads any more go.
    """

    title: ClassVar[str] = "freeze-masks"
    meaning: ClassVar[Meaning] = CHANGES

    def rewrite(self, model: ir.Model) -> int:
        found = Program(model, hard_masks).run({})
        weights = Program(model, hard_weights).run({})
        for name, array in weights.items():
            graph.set_initializer(model.graph.initializers[name], array)
        return freeze(model, found)
