from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, library
from pqc.errors import PassError
from pqc.rewriting import CHANGES, Meaning, Pass


@dataclass(frozen=True)
class FreezeMasks(Pass):
    """Replace each learned mask by its constant of zeros and ones.

    W · mask(state, controls) → W · M with M the method's hard mask.
    Leaves frozen masks alone; the states and controls that nothing reads any more go.
    """

    title: ClassVar[str] = "freeze-masks"
    meaning: ClassVar[Meaning] = CHANGES

    def rewrite(self, model: ir.Model) -> int:
        sites = list(layers.masks(model.graph))
        names = graph.Names(model.graph)
        for site in sites:
            name = names.new(f"{site.weight.name}.frozen.mask")
            site.product.replace_input_with(1, graph.add_initializer(model.graph, name, hard_mask(site)))
        if sites:
            graph.remove_unused(model.graph)
            library.unlink(model)
            library.link(model)
        return len(sites)


def hard_mask(site: layers.MaskSite) -> np.ndarray:
    """The mask of zeros and ones, in the weight's shape."""
    method = site.method
    values = {"weight": site.weight, **site.inputs}
    arrays = [graph.constant(values[name]) for name in method.hard_mask_inputs]
    if any(array is None for array in arrays):
        raise PassError("the mask's state is computed, not stored", at=f"node '{site.node.name}'")
    attributes = {name: attribute.value for name, attribute in site.node.attributes.items()}
    body = library.bodies()[method.hard_mask.key]
    mask = engine.call(body, [np.asarray(array) for array in arrays], attributes)[0]
    return np.broadcast_to(mask, np.asarray(graph.constant(site.weight)).shape).astype(np.float32)
