from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, masking
from pqc.mask_sites import Parameter
from pqc.names import BASE, BUFFERS, LAYOUT, NEXT, THETA, UPDATED
from pqc.rewriting import Pass


@dataclass(frozen=True)
class ExposeParameters(Pass):
    """Gather parameters and states in flat vectors; make controls inputs.

    Initializers W, b, s → slices of the input theta, which keeps their values as its default; states that the
    optimizer does not move → slices of the input buffers; controls become inputs likewise. States that attach-updates
    computed are gathered into buffers.next, and into theta.base for the optimizer.
    Leaves constants that are not trained alone: quantizer parameters, frozen masks.
    """

    title: ClassVar[str] = "expose-parameters"
    drops_outputs: ClassVar[bool] = True

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        vectors = {THETA: masking.parameters(main), BUFFERS: masking.buffers(main)}
        if not vectors[THETA] or THETA in main.initializers:
            return 0
        controls = [value for value in masking.controls(main).values() if not value.is_graph_input()]
        main.inputs.extend(controls)
        slices = {name: [_slice(one) for one in found] for name, found in vectors.items()}
        model.metadata_props[LAYOUT] = json.dumps(slices)
        _gather_updates(model, vectors)
        for name, found in vectors.items():
            if found:
                _replace(main, name, [one.value for one in found])
        return len(vectors[THETA]) + len(vectors[BUFFERS]) + len(controls)


def _slice(parameter: Parameter) -> tuple[str, list[int], str]:
    return str(parameter.value.name), list(graph.stored(parameter.value).shape), parameter.role


def _gather_updates(model: ir.Model, vectors: dict[str, list[Parameter]]) -> None:
    """Put the states' next values end to end, beside those that stay."""
    main = model.graph
    updated = json.loads(model.metadata_props.get(UPDATED, "{}"))
    computed = {value.name: value for value in main.outputs}
    names = graph.Names(main)
    for vector, suffix in ((THETA, BASE), (BUFFERS, NEXT)):
        values = [one.value for one in vectors[vector]]
        if not any(value.name in updated for value in values):
            continue
        following = [computed[updated[value.name]] if value.name in updated else value for value in values]
        flat = graph.add_initializer(main, names.new(f"{vector}.flat"), np.array([-1], np.int64))
        pieces = []
        for value, after in zip(values, following, strict=True):
            name = names.new(f"{value.name}.after")
            output = ir.val(names.new(f"{name}.out"), ir.DataType.FLOAT, [graph.stored(value).size])
            main.append(ir.node("Reshape", [after, flat], name=name, outputs=[output]))
            pieces.append(output)
        size = sum(graph.stored(value).size for value in values)
        whole = ir.val(f"{vector}{suffix}", ir.DataType.FLOAT, [size])
        main.append(ir.node("Concat", pieces, {"axis": 0}, name=names.new(f"{vector}.gather"), outputs=[whole]))
        main.outputs.append(whole)
    main.outputs[:] = [value for value in main.outputs if value.name not in updated.values()]


def _replace(main: ir.Graph, vector: str, values: list[ir.Value]) -> None:
    """Put Split and Reshape where the initializers were; the results keep the initializers' names."""
    names = graph.Names(main)
    arrays = [np.asarray(graph.stored(value), np.float32) for value in values]
    flat = graph.add_initializer(main, vector, np.concatenate([array.ravel() for array in arrays]))
    main.inputs.append(flat)
    lengths = np.array([array.size for array in arrays], np.int64)
    sizes = graph.add_initializer(main, names.new(f"{vector}.sizes"), lengths)
    pieces = [
        ir.val(names.new(f"{value.name}.flat"), ir.DataType.FLOAT, [array.size])
        for value, array in zip(values, arrays, strict=True)
    ]
    nodes = [ir.node("Split", [flat, sizes], {"axis": 0}, name=names.new(f"{vector}.split"), outputs=pieces)]
    for value, array, piece in zip(values, arrays, pieces, strict=True):
        name = str(value.name)
        output = piece
        if array.ndim != 1:
            shape = graph.add_initializer(main, names.new(f"{name}.shape"), np.array(array.shape, np.int64))
            output = ir.val(None, ir.DataType.FLOAT, array.shape)
            nodes.append(ir.node("Reshape", [piece, shape], name=names.new(f"{name}.slice"), outputs=[output]))
        value.replace_all_uses_with(output)
        del main.initializers[name]
        output.name = name
    main.insert_before(main.node(0), nodes)
