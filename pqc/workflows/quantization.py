"""Check that a model computes on grids only, and add the quantizers that are missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pqc import graph, library, pipeline
from pqc.fixed_point import FixedPoint
from pqc.options import quote, write
from pqc.quantization_check import Finding, Gap, gaps
from pqc.quantizer import Quantizer
from pqc.quantizer_nodes import QuantizerWriter
from pqc.workflows.sources import resolve

PARAMETERS = Quantizer(FixedPoint(1, 0, 7))
ACTIVATIONS = Quantizer(FixedPoint(0, 0, 8))


def check_quant(model: str | Path) -> list[Finding]:
    """What computes on numbers off any grid, and the reasons where that is meant.

    Args:
        model: a file or the name of a reference model.
    """
    return [gap.finding for gap in gaps(resolve(model).load().graph)]


def fix_quant(
    model: str | Path,
    out: Path,
    *,
    parameters: Quantizer = PARAMETERS,
    activations: Quantizer = ACTIVATIONS,
    data: Path | None = None,
) -> list[str]:
    """Write the model, normalized and with the missing quantizers calibrated, and return their names.

    Args:
        model: a file or the name of a reference model.
        out: the file to write.
        parameters: what weights, biases and constants are rounded to.
        activations: what activations are rounded to.
        data: an .npz of arrays by input name; without it inputs are random.
    """
    loaded = resolve(model).load()
    pipeline.run(loaded, "normalize")
    added = _insert(loaded, parameters, activations)
    if added:
        options = f"only={quote(write(tuple(added)))}" + (f" data={quote(str(data))}" if data is not None else "")
        pipeline.run(loaded, f"calibrate-quant{{{options}}}")
    graph.save(loaded, out)
    return added


def _insert(model: ir.Model, parameters: Quantizer, activations: Quantizer) -> list[str]:
    writer = QuantizerWriter(model.graph, "ROUND")
    before = {node.name for node in model.graph}
    wanted: dict[ir.Value, Gap] = {gap.value: gap for gap in gaps(model.graph) if gap.finding.fails}
    for value, gap in wanted.items():
        constant = gap.layer is not None or graph.constant(value) is not None
        # A constant of no layer has no channels that are told apart.
        kind = parameters if gap.layer is not None else replace(parameters, granularity="per_tensor", size=0)
        writer.quantize(value, kind if constant else activations, gap.layer)
    if wanted:
        library.link(model)
    return [str(node.name) for node in model.graph if node.name not in before]


def record(findings: list[Finding]) -> dict[str, Any]:
    """The findings, ready for JSON."""
    return {
        "ok": not any(one.fails for one in findings),
        "missing": [vars(one) for one in findings if one.fails],
        "meant": [vars(one) for one in findings if not one.fails],
    }
