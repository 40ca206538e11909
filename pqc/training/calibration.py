"""Statistics without training: batches that only feed the methods' updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, pipeline
from pqc.data import Split
from pqc.names import BASE, BUFFERS, NEXT, THETA, UPDATED, layout, unpacked
from pqc.training.stages import set_values

Arrays = dict[str, np.ndarray]


def calibrate(
    compressible: ir.Model,
    values: Arrays,
    controls: Mapping[str, np.ndarray],
    split: Split,
    batches: Iterable[np.ndarray],
) -> None:
    """Run the network on batches and let the methods' states follow, the weights staying as they are.

    Args:
        compressible: the graph with learned masks; not changed.
        values: parameters and states by name; the states change.
        controls: the annealed scalars by their names in the graph.
        split: where the rows are.
        batches: row numbers of each batch.
    """
    model = graph.copy(compressible)
    set_values(model, values)
    pipeline.run(model, "attach-updates,expose-parameters")
    if UPDATED not in model.metadata_props:
        return
    carried = {BUFFERS + NEXT: BUFFERS, THETA + BASE: THETA}
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in carried]
    graph.remove_unused(model.graph)
    session = engine.Session(model)
    known = set(session.input_names())
    state = {name: graph.stored(model.graph.initializers[name]) for name in (THETA, BUFFERS) if name in known}
    fixed = {name: array for name, array in controls.items() if name in known}
    for rows in batches:
        inputs, _ = split.take(rows)
        found = session.run({**{name: inputs[name] for name in inputs if name in known}, **fixed, **state})
        state |= {carried[name]: array for name, array in found.items()}
    for vector, flat in state.items():
        states = {name for name, _, role in layout(model, vector) if role not in ("weight", "bias")}
        found = unpacked(flat, layout(model, vector))
        values.update({name: array for name, array in found.items() if name in states})
