"""Operators that training needs written as others, by name: what legalize rewrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from pqc.lowering import norms, pools, recurrent, resize, transposed

REWRITES: Mapping[str, Callable[[ir.Graph, ir.Node], int]] = {
    "ConvTranspose": transposed.lower,
    "Resize": resize.lower,
    "BatchNormalization": norms.batch,
    "InstanceNormalization": norms.instance,
    "GroupNormalization": norms.group,
    "LayerNormalization": norms.layer,
    "AveragePool": pools.lower,
    "MaxPool": pools.lower,
    "LSTM": recurrent.lower,
    "GRU": recurrent.lower,
    "RNN": recurrent.lower,
}
"""Each changes the graph in place and returns how many nodes it rewrote, 0 or 1."""
TRAINED = REWRITES.keys() - {"Resize", "AveragePool", "MaxPool"}
"""Those with weights of their own."""
