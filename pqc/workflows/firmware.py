"""The hand-over to hls4ml as a verb."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pqc import data
from pqc.workflows.sources import Source

if TYPE_CHECKING:
    from pqc.hardware.handover import HlsResult

Backend = Literal["Vitis", "Vivado"]
IoType = Literal["io_parallel", "io_stream"]


def hls(
    source: Source,
    out: Path,
    data_path: Path | None = None,
    *,
    backend: Backend = "Vitis",
    io_type: IoType = "io_parallel",
) -> dict[str, Any]:
    """Write the hls4ml project of a clean model, compile its emulation and compare it bit for bit.

    Args:
        source: a clean QONNX model.
        out: the project's folder.
        data_path: samples by input name, or None for random ones over the input's grid.
        backend: hls4ml's backend.
        io_type: parallel or streamed inputs.

    Returns:
        samples, mismatches, precisions and more, ready for JSON.
    """
    from pqc.hardware import handover

    model = source.load()
    samples = None
    if data_path is not None:
        value = model.graph.inputs[0]
        samples = data.as_float(data.samples(data_path, [value])[str(value.name)])
    return record(handover.hls(model, out, samples=samples, backend=backend, io_type=io_type), backend, io_type)


def record(result: HlsResult, backend: str, io_type: str) -> dict[str, Any]:
    """A hand-over's result, ready for JSON."""
    return {
        "samples": result.samples,
        "mismatches": result.mismatches,
        "max_difference": result.comparison.max_difference,
        "backend": backend,
        "io_type": io_type,
        "head": result.stripped,
        "folder": str(result.folder.name),
        "precisions": [{**asdict(one), "operator": one.op, "type": str(one.type)} for one in result.precisions],
        "seconds": round(result.seconds, 3),
    }
