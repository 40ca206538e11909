from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.names import LAYOUT, THETA
from pqc.rewriting import Pass


@dataclass(frozen=True)
class ExposeParameters(Pass):
    """Gather what is trained in one flat vector; make controls inputs.

    Initializers W, b, s → slices of the input theta, which keeps their values as its default; controls likewise.
    Leaves constants that are not trained alone: quantizer parameters, frozen masks.
    """

    title: ClassVar[str] = "expose-parameters"

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        found = layers.parameters(main)
        if not found or THETA in main.initializers:
            return 0
        controls = [value for value in layers.controls(main).values() if not value.is_graph_input()]
        main.inputs.extend(controls)
        model.metadata_props[LAYOUT] = json.dumps(
            [[parameter.value.name, list(_shape(parameter.value)), parameter.role] for parameter in found]
        )
        _replace(main, [parameter.value for parameter in found])
        return len(found) + len(controls)


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(np.asarray(graph.constant(value)).shape)


def _replace(main: ir.Graph, values: list[ir.Value]) -> None:
    """Put Split and Reshape where the initializers were; the results keep the initializers' names."""
    names = graph.Names(main)
    arrays = [np.asarray(graph.constant(value), np.float32) for value in values]
    theta = graph.add_initializer(main, THETA, np.concatenate([array.ravel() for array in arrays]))
    main.inputs.append(theta)
    sizes = graph.add_initializer(main, names.new("theta.sizes"), np.array([array.size for array in arrays], np.int64))
    pieces = [
        ir.val(names.new(f"{value.name}.flat"), ir.DataType.FLOAT, [array.size])
        for value, array in zip(values, arrays, strict=True)
    ]
    nodes = [ir.node("Split", [theta, sizes], {"axis": 0}, name=names.new("theta.split"), outputs=pieces)]
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
