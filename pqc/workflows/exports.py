"""A clean model in other forms: with the bodies of its operators, or with ONNX's own quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, library, pipeline
from pqc.errors import PassError
from pqc.qcdq import reason_to_keep
from pqc.samples import sample
from pqc.workflows.sources import resolve

ROWS = 256


def export(model: str | Path, *, portable: Path | None = None, qcdq: Path | None = None) -> Iterator[str]:
    """Write the forms that are asked for, and say what came out, a line each.

    Raises:
        PassError: a form does not compute what the model computes, which is a defect of pqc.
    """
    clean = resolve(model).load()
    if portable is not None:
        yield from _write(clean, graph.copy(clean), portable)
    if qcdq is not None:
        written = graph.copy(clean)
        # Weights with types of their own each go on one grid, but only where one axis is not enough.
        pipeline.run(written, "write-qcdq,lower-scales,write-qcdq")
        kept = [(node.name, reason_to_keep(node)) for node in written.graph if layers.is_quant(node)]
        yield from _write(clean, written, qcdq)
        yield from (f"  kept as it is: node '{name}': {reason}" for name, reason in kept)


def _write(clean: ir.Model, form: ir.Model, path: Path) -> Iterator[str]:
    library.unlink(form)
    bodies = library.link(form)
    feeds = sample(clean, ROWS)
    found, wanted = engine.evaluate(form, feeds), engine.evaluate(clean, feeds)
    for name, array in wanted.items():
        if not np.array_equal(found[name], array):
            raise PassError(f"output '{name}' differs from the clean model's", at=str(path), hint="report it")
    graph.save(form, path)
    yield f"{path}: equal on {ROWS} rows, {bodies} function bodies"
