from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import batch_norm, library, quantizer_sites
from pqc.mask_nodes import Builder
from pqc.mask_sites import masks
from pqc.masking import states_after
from pqc.names import UPDATED
from pqc.quantizer_nodes import needed_bits
from pqc.rewriting import Pass
from pqc.shapes import infer_shapes


@dataclass(frozen=True)
class AttachUpdates(Pass):
    """Compute the states that a step changes.

    mask(state, …) → also state' = update(state, weight, input, output, …), an output that expose-parameters carries
    from step to step. Integer bits of an activation that follow its range → what this step needs, or `decay` less than
    before if that is more. Running statistics → what they are after this batch, where attach-statistics measures it.
    Leaves methods without an update, integer bits of parameters, and a graph that has its updates.
    """

    title: ClassVar[str] = "attach-updates"
    drops_outputs: ClassVar[bool] = True

    decay: float = 0.01

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        if UPDATED in model.metadata_props:
            return 0
        builder = Builder(main)
        recipe = states_after("update")
        found = {name: value for site in list(masks(main)) for name, value in recipe(builder, site).items()}
        following = [site for site in quantizer_sites.sites(main) if site.follows and not site.of_parameter]
        found |= {str(site.i.name): needed_bits(main, builder.names, site, self.decay) for site in following}
        found |= batch_norm.next_statistics(main)
        if not found:
            return 0
        for name, value in found.items():
            value.shape = main.initializers[name].shape
        main.outputs.extend(found.values())
        model.metadata_props[UPDATED] = json.dumps({name: value.name for name, value in found.items()})
        library.link(model)
        infer_shapes(model)
        return len(found)
