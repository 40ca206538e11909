from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, library, quantizer_sites, scales
from pqc.rewriting import Pass


@dataclass(frozen=True)
class FreezeBits(Pass):
    """Learn no bits and no scales any more: they stay as they are.

    FixedQuant(x, i, f) with learned i or f → the same with constant i and f. Quant(x, LearnedScale(t), …) and
    Quant(x, PowerOfTwoScale(t), …) → Quant(x, s, …) with the scale that t gives.
    Leaves quantizers that learn nothing.
    """

    title: ClassVar[str] = "freeze-bits"

    def rewrite(self, model: ir.Model) -> int:
        learning = [site for site in quantizer_sites.sites(model.graph) if site.learns]
        for site in learning:
            del site.node.metadata_props[quantizer_sites.LEARNS]
        scaled, names = list(scales.sites(model.graph)), graph.Names(model.graph)
        for step in scaled:
            scale = np.asarray(_scale(step))
            value = scale.reshape(()) if scale.size == 1 else scale
            frozen = graph.add_initializer(model.graph, names.new(f"{step.node.name}.scale"), value)
            step.node.replace_input_with(1, frozen)
        if scaled:
            graph.remove_unused(model.graph)
            library.unlink(model)
            library.link(model)
        return len(learning) + len(scaled)


def _scale(site: scales.ScaleSite) -> np.ndarray:
    """The scale as the graph computes it."""
    body = library.bodies()[site.scale.domain, site.scale.op_type]
    found: np.ndarray = engine.call(body, [graph.stored(site.trained)], {})[0]
    return found
