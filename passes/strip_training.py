from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, library
from pqc.names import BUFFERS, LAYOUT, OUTPUTS, TARGET, TEACHER, THETA, UPDATED, layout
from pqc.rewriting import Pass


@dataclass(frozen=True)
class StripTraining(Pass):
    """Remove loss, teacher, gradients, optimizer, theta, function bodies.

    A graph with a loss or a whole training step → the network with its own inputs, outputs and initializers.
    Leaves Quant nodes and learned masks; freeze-masks and fold-masks take those.
    """

    title: ClassVar[str] = "strip-training"
    drops_outputs: ClassVar[bool] = True

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        changed = _restore_outputs(model) + _restore_parameters(model)
        changed += graph.remove_unused(main)
        spare = [value for value in main.inputs if value.const_value is not None]
        spare += [value for value in main.inputs if value.name == TARGET and not value.uses()]
        for value in spare:
            main.inputs.remove(value)
        changed += len(spare) + library.unlink(model)
        for key in (OUTPUTS, LAYOUT, UPDATED, TEACHER):
            changed += model.metadata_props.pop(key, None) is not None
        return changed


def _restore_outputs(model: ir.Model) -> int:
    names = model.metadata_props.get(OUTPUTS)
    if names is None:
        return 0
    by_name = {value.name: value for value in graph.values(model.graph)}
    model.graph.outputs[:] = [by_name[name] for name in json.loads(names)]
    return 1


def _restore_parameters(model: ir.Model) -> int:
    """Turn the slices of theta and of the buffers back into initializers of their own."""
    return sum(_restore(model, vector) for vector in (THETA, BUFFERS))


def _restore(model: ir.Model, vector: str) -> int:
    main = model.graph
    if vector not in main.initializers:
        return 0
    flat = graph.stored(main.initializers[vector])
    by_name = {value.name: value for value in graph.values(main)}
    start = 0
    for name, shape, _ in layout(model, vector):
        size = int(np.prod(shape))
        value = by_name[name]
        value.name = f"{name}.slice.out"
        own = graph.add_initializer(main, name, flat[start : start + size].reshape(shape))
        value.replace_all_uses_with(own)
        start += size
    return len(layout(model, vector))
