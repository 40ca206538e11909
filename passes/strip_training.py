from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph, library
from pqc.errors import PassError
from pqc.functions.fixed_quant import FIXED_QUANT
from pqc.names import BUFFERS, HEAD, LAYOUT, OUTPUTS, TARGET, TEACHER, THETA, UPDATED, layout, unpacked
from pqc.rewriting import Pass


@dataclass(frozen=True)
class StripTraining(Pass):
    """Remove loss, teacher, gradients, optimizer, theta, function bodies.

    A graph with a loss or a whole training step → the network with its own inputs, outputs and initializers.
    Leaves Quant nodes and learned masks; freeze-masks and fold-masks take those. FixedQuant, which nobody else knows,
    keeps its body. It does not take back lower-quant and batch-parameters, nor what differentiate left out of a model
    with several outputs.
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
        changed += len(spare) + library.unlink(model, kept=(FIXED_QUANT.key,))
        for key in (OUTPUTS, HEAD, LAYOUT, UPDATED, TEACHER):
            changed += model.metadata_props.pop(key, None) is not None
        return changed


def _restore_outputs(model: ir.Model) -> int:
    names = json.loads(model.metadata_props.get(OUTPUTS, "[]"))
    if not names:
        return 0
    by_name = {value.name: value for value in graph.values(model.graph)}
    if names[0] not in by_name and HEAD in model.metadata_props:
        by_name[names[0]] = _head(model, names[0], by_name)
    model.graph.outputs[:] = [_found(by_name, name) for name in names]
    return 1


def _head(model: ir.Model, name: str, by_name: dict[str | None, ir.Value]) -> ir.Value:
    """The output `name` of the model's last operator, which the loss has inside, put back."""
    note = json.loads(model.metadata_props[HEAD])
    logits = _found(by_name, note["reads"])
    output = ir.val(name, logits.dtype, logits.shape)
    head = ir.node(note["operator"], [logits], note["attributes"], name=note["node"], outputs=[output])
    model.graph.append(head)
    return output


def _found(by_name: dict[str | None, ir.Value], name: str) -> ir.Value:
    """A value of the network.

    Raises:
        PassError: it was left out of the training step.
    """
    if name not in by_name:
        hint = "strip the graph as it was before batch-parameters and differentiate"
        raise PassError(f"the training step does not have '{name}' of the network any more", hint=hint)
    return by_name[name]


def _restore_parameters(model: ir.Model) -> int:
    """Turn the slices of theta and of the buffers back into initializers of their own."""
    return sum(_restore(model, vector) for vector in (THETA, BUFFERS))


def _restore(model: ir.Model, vector: str) -> int:
    main = model.graph
    if vector not in main.initializers:
        return 0
    flat = graph.stored(main.initializers[vector])
    by_name = {value.name: value for value in graph.values(main)}
    parts = unpacked(flat, layout(model, vector))
    for name, array in parts.items():
        value = _found(by_name, name)
        value.name = f"{name}.slice.out"
        value.replace_all_uses_with(graph.add_initializer(main, name, array))
    return len(parts)
