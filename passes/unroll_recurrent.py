from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import graph
from pqc.lowering import recurrent
from pqc.rewriting import Meaning, Pass, close
from pqc.shapes import infer_shapes


@dataclass(frozen=True)
class UnrollRecurrent(Pass):
    """Write LSTM, GRU and RNN out as their steps in time.

    LSTM(x, W, R, B) → for each step MatMul(x, W) + b + MatMul(h, R), its gates as Sigmoid and Tanh, and the new state.
    The matrices are weights of layers, which quantizers and masks reach, and all steps share them. legalize does the
    same; by itself it shows what becomes of a layer.
    Leaves every other operator alone.
    Raises UnsupportedError for sequence lengths, peepholes, clipping, coupled gates, activations with parameters,
    weights that are computed or shared, and a number of steps that is not fixed.
    """

    title: ClassVar[str] = "unroll-recurrent"
    meaning: ClassVar[Meaning] = close(1e-5)

    def rewrite(self, model: ir.Model) -> int:
        found = [node for node in model.graph if not node.domain and node.op_type in recurrent.STEPS]
        changed = sum(recurrent.lower(model.graph, node) for node in found)
        if changed:
            graph.remove_unused(model.graph)
            infer_shapes(model)
        return changed
