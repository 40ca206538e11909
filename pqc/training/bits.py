"""Learned bits between steps: kept bounded, and following the parameters where they shall."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, library, masking, pipeline, quantizer_sites
from pqc.quantizer_nodes import needed_bits

Arrays = dict[str, np.ndarray]
ROWS = 16_384
AT_ONCE = 1e6
"""A decay that forgets what was needed before."""


class LearnedBits:
    """The bits of a compressible graph that training moves.

    Args:
        compressible: the graph; not changed.
        inputs: rows by input name, [rows, ...]; ranges of activations are measured on as many as `ROWS` of them.
    """

    def __init__(self, compressible: ir.Model, inputs: Mapping[str, np.ndarray]) -> None:
        self.trained = [str(value.name) for value, _ in quantizer_sites.trained(compressible.graph)]
        model = graph.copy(compressible)
        main, names = model.graph, graph.Names(model.graph)
        given = [*masking.parameters(main), *masking.buffers(main)]
        known = {str(one.value.name) for one in given} | {str(one.name) for one in masking.controls(main).values()}
        found = [site for site in quantizer_sites.sites(main) if site.follows]
        needed = [needed_bits(main, names, site, AT_ONCE) for site in found]
        self._targets = {str(value.name): str(site.i.name) for value, site in zip(needed, found, strict=True)}
        pipeline.run(model, "relax-overflow")
        main.outputs[:] = needed
        graph.remove_unused(main)
        main.inputs.extend(value for value in main.initializers.values() if value.name in known)
        library.link(model)
        self._session = engine.Session(model) if needed else None
        self._inputs = {name: _sample(array) for name, array in inputs.items()}

    def settle(self, values: Arrays, feeds: Mapping[str, np.ndarray]) -> None:
        """Bound the trained bits, and give what follows its numbers the integer bits that they need.

        Args:
            values: parameters and bits by name; the bits change.
            feeds: `values` with the controls, by their names in the graph.
        """
        quantizer_sites.keep_bounded(values, self.trained)
        if self._session is None:
            return
        feeds = {**feeds, **{name: values[name] for name in self.trained}, **self._inputs}
        found = self._session.run({name: feeds[name] for name in self._session.input_names() if name in feeds})
        values.update({self._targets[name]: array for name, array in found.items()})


def _sample(array: np.ndarray) -> np.ndarray:
    rows = np.linspace(0, len(array) - 1, min(ROWS, len(array))).astype(int)
    return np.ascontiguousarray(array[rows])
