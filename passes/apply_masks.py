from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import fixed_masks, graph, layers
from pqc.errors import PassError, UnsupportedError
from pqc.rewriting import CHANGES, Meaning, Pass, explain


@dataclass(frozen=True)
class ApplyMasks(Pass):
    """Multiply weights by the masks in a file.

    W → W · M, before its quantizers and learned masks, which then see the zeros. `file` is an .npz of zeros and ones by
    the weights' names.
    Leaves weights that the file has no mask for, masks of ones, and weights that have such a mask already.
    """

    title: ClassVar[str] = "apply-masks"
    meaning: ClassVar[Meaning] = CHANGES

    file: str = ""

    def rewrite(self, model: ir.Model) -> int:
        if not self.file:
            raise PassError("there is no file of masks", hint="apply-masks{file=masks.npz}")
        names = graph.Names(model.graph)
        wanted = {
            weight: mask
            for weight, mask in fixed_masks.read(Path(self.file), model.graph).items()
            if not mask.all() and not any(_is_fixed(node, weight) for node in weight.consumers())
        }
        for weight, mask in wanted.items():
            _apply(model.graph, weight, mask, names)
        return len(wanted)

    def remembered(self) -> Pass:
        return replace(self, file=Path(self.file).name)


def _is_fixed(node: ir.Node, weight: ir.Value) -> bool:
    return layers.applies_mask(node) and node.inputs[0] is weight and graph.constant(node.inputs[1]) is not None


def _apply(main: ir.Graph, weight: ir.Value, mask: np.ndarray, names: graph.Names) -> None:
    if any(layers.is_quant(node) and layers.is_binary(node) for node in weight.consumers()):
        hint = "use ternary weights, or take its mask out of the file"
        raise UnsupportedError("binary weights are never zero", at=f"weight '{weight.name}'", hint=hint)
    readers = list(weight.uses())
    product = ir.node(
        "Mul",
        [weight, graph.add_initializer(main, names.new(f"{weight.name}.fixed.mask"), mask)],
        name=names.new(f"{weight.name}.fixed"),
        outputs=[ir.val(names.new(f"{weight.name}.left"), weight.dtype, weight.shape)],
    )
    for reader, index in readers:
        reader.replace_input_with(index, product.outputs[0])
    main.insert_before(main.node(0), product)
    explain(product, f"{int(mask.size - np.count_nonzero(mask))} of {mask.size} numbers are zero")
