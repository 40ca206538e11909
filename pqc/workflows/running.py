"""The main job: float ONNX in, a pruned and quantized network, a firmware project and a report out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pqc import graph, schedule
from pqc.schedule import Schedule
from pqc.workflows import fitting
from pqc.workflows.compression import NOTES, finalize
from pqc.workflows.job import Job, Listener, RunOptions
from pqc.workflows.sources import Source


def train(
    source: Source,
    plan: Schedule,
    data_path: Path | None,
    folder: Path,
    options: RunOptions = RunOptions(),
    listener: Listener | None = None,
) -> tuple[ir.Model, list[dict[str, Any]]]:
    """Compress and train; write `compressible.onnx`, `trained.onnx`, `history.json` and the checkpoint to `folder`.

    Returns:
        the trained compressible graph, and the history.
    """
    job = Job.start(source, plan, data_path, folder, replace(options, hls=False), listener)
    fitting.prepare(job)
    return job.train(), job.history


def run(
    source: Source,
    plan: Schedule,
    data_path: Path | None,
    folder: Path,
    options: RunOptions = RunOptions(),
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Do the whole chain and write everything to `folder`; return the summary.

    Raises:
        PqcError: anything that stops the run, with a place and a hint.
    """
    started = time.perf_counter()
    job = Job.start(source, plan, data_path, folder, options, listener)
    fitted = fitting.prepare(job)
    trained = job.train()
    with job.clock.part("finalize", listener):
        clean, steps = finalize(trained, verify_each=job.verify, shrink=plan.pruning.shrink)
        graph.save(clean, folder / "clean.onnx")
    job.steps += steps
    summary = job.summary(trained, clean)
    summary["fit"] = fitted
    with job.clock.part("front", listener):
        summary["front"] = job.pareto(trained)
    firmware = job.firmware(clean) if options.hls else job.refusal(clean)
    summary["precisions"] = firmware.pop("precisions", []) if firmware else []
    summary["hls"] = firmware
    summary["timings"] = {name: round(seconds, 3) for name, seconds in job.clock.timings.items()}
    summary["seconds"] = round(time.perf_counter() - started, 3)
    job.report(summary, trained, clean)
    return summary


def load_plan(name: str | Path | None, source: Source, settings: dict[str, str]) -> Schedule:
    """The schedule that was asked for, or the one that the model brings; notes on it go to the log."""
    plan, notes = schedule.read((source.schedule or "cs") if name is None else name, settings)
    for note in notes:
        NOTES.info("%s", note)
    return plan
