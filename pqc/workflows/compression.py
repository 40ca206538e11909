"""The main job: float ONNX in, a pruned and quantized network, a firmware project and a report out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from pqc import data, engine, files, graph, metrics, pipeline, schedule
from pqc.data import Dataset, Split
from pqc.errors import DataError, UnsupportedError
from pqc.options import quote, write
from pqc.schedule import Schedule
from pqc.training import state as checkpoints
from pqc.training.trainer import CHECKPOINT, Progress, Trainer
from pqc.workflows.environment import require_compiler, versions
from pqc.workflows.firmware import Backend, IoType, record
from pqc.workflows.sources import Source

NORMALIZE = "normalize,fold-constants,fold-batchnorm,lower-gemm"
FINALIZE = "freeze-masks,fold-masks,fold-quant,strip-training,normalize"
RESULTS = ("trained.onnx", "clean.onnx", "history.json", "summary.json", "report.html")
"""What an earlier run in the same folder may have left; a new one must not be read with it."""
CALIBRATION_ROWS, VERIFY_ROWS = 4096, 64
CHEAP_ELEMENTS = 1_000_000


class Listener(Progress, Protocol):
    """Who is told how a run goes."""

    def stage(self, name: str) -> None:
        """A part of the run begins."""


@dataclass(frozen=True)
class RunOptions:
    """How a run works, as against what it computes.

    Args:
        resume: go on from the checkpoint in the output folder, or from the start where there is none yet.
        verify_each: check each pass by running the model before and after; None means where it is cheap.
        hls: make, compile and compare the firmware project.
        backend: hls4ml's backend, `Vitis` or `Vivado`.
        io_type: `io_parallel` or `io_stream`.
        device: `cpu` or `cuda`.
        threads: threads inside an operator.
    """

    resume: bool = False
    verify_each: bool | None = None
    hls: bool = True
    backend: Backend = "Vitis"
    io_type: IoType = "io_parallel"
    device: str = "cpu"
    threads: int = 1


@dataclass
class _Clock:
    """Seconds by part of a run."""

    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str, listener: Listener | None) -> Iterator[None]:
        if listener is not None:
            listener.stage(name)
        start = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - start


def compress_pipeline(plan: Schedule, calibration: Path | None) -> str:
    """The pipeline text that makes the compressible graph of a normalized one."""
    parts = ["legalize"]
    quantization, pruning = plan.quantization, plan.pruning
    if quantization is not None:
        kinds = {name: getattr(quantization, name) for name in ("weights", "biases", "inputs", "outputs")}
        options = [f"{name}={write(kind)}" for name, kind in kinds.items()] + [f"rounding={quantization.rounding}"]
        options += [f"exclude={write(quantization.exclude)}"] if quantization.exclude else []
        parts.append(f"insert-quant{{{' '.join(options)}}}")
        if quantization.calibrate and calibration is not None:
            parts.append(f"calibrate-quant{{data={quote(str(calibration))}}}")
    if pruning.method is not None:
        options = [f"method={pruning.method}", f"pruning-first={write(pruning.pruning_first)}"]
        options += [f"options={write(dict(pruning.options))}"] if pruning.options else []
        options += [f"exclude={write(pruning.exclude)}"] if pruning.exclude else []
        parts.append(f"insert-masks{{{' '.join(options)}}}")
    return ",".join(parts)


def compress(
    model: ir.Model, plan: Schedule, split: Split, folder: Path, *, verify_each: bool | None = None
) -> tuple[ir.Model, list[pipeline.Step]]:
    """Make a normalized model compressible: quantizers and learned masks under `plan`.

    Args:
        model: not changed.
        plan: what to insert.
        split: training rows to calibrate on.
        folder: where the calibration sample goes.
        verify_each: see `RunOptions`.
    """
    compressible = graph.copy(model)
    rows = np.linspace(0, len(split) - 1, min(CALIBRATION_ROWS, len(split))).astype(int)
    sample, _ = split.take(rows)
    path = folder / "calibration.npz"
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **sample)  # type: ignore[arg-type]
    size = sum(graph.stored(value).size for value in model.graph.initializers.values())
    steps = pipeline.run(
        compressible,
        compress_pipeline(plan, path),
        verify_each=size <= CHEAP_ELEMENTS if verify_each is None else verify_each,
        feeds={name: array[:VERIFY_ROWS] for name, array in sample.items()},
    )
    return compressible, steps


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
    job = _Job.start(source, plan, data_path, folder, replace(options, hls=False), listener)
    return job.train(), job.history


def finalize(model: ir.Model, *, verify_each: bool = True) -> tuple[ir.Model, list[pipeline.Step]]:
    """The clean QONNX graph of a trained one: masks folded, weights on their grid, training parts gone.

    Args:
        model: a trained compressible graph, or a whole training step; not changed.
        verify_each: check each pass.
    """
    clean = graph.copy(model)
    steps = pipeline.run(clean, FINALIZE, verify_each=verify_each)
    return clean, steps


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
    job = _Job.start(source, plan, data_path, folder, options, listener)
    trained = job.train()
    with job.clock.part("finalize", listener):
        clean, steps = finalize(trained, verify_each=job.verify)
        graph.save(clean, folder / "clean.onnx")
    job.steps += steps
    summary = job.summary(trained, clean)
    firmware = job.firmware(clean) if options.hls else None
    summary["precisions"] = firmware.pop("precisions") if firmware else []
    summary["hls"] = firmware
    summary["timings"] = {name: round(seconds, 3) for name, seconds in job.clock.timings.items()}
    summary["seconds"] = round(time.perf_counter() - started, 3)
    job.report(summary, trained, clean)
    return summary


class _Job:
    """One run: what was read, and what the parts hand to each other."""

    def __init__(
        self,
        source: Source,
        plan: Schedule,
        dataset: Dataset,
        model: ir.Model,
        folder: Path,
        options: RunOptions,
        listener: Listener | None,
        steps: list[pipeline.Step],
    ) -> None:
        self.source, self.plan, self.data, self.model = source, plan, dataset, model
        self.folder, self.options, self.listener = folder, options, listener
        self.steps = steps
        self.clock = _Clock()
        self.history: list[dict[str, Any]] = []
        size = sum(graph.stored(value).size for value in model.graph.initializers.values())
        self.verify = size <= CHEAP_ELEMENTS if options.verify_each is None else options.verify_each

    @classmethod
    def start(
        cls,
        source: Source,
        plan: Schedule,
        data_path: Path | None,
        folder: Path,
        options: RunOptions,
        listener: Listener | None,
    ) -> _Job:
        """Read the model and the data, and normalize."""
        engine.bindings()
        engine.providers(options.device)
        if options.hls:
            require_compiler()
        model = source.load()
        steps = pipeline.run(model, NORMALIZE, verify_each=options.verify_each is not False)
        check_inputs(model)
        where = data_path or source.data
        if where is None:
            raise DataError("there are no data to train on", hint="give --data; see docs/data.md for the formats")
        labels = plan.training.loss == "cross-entropy"
        dataset = data.load(
            where, model.graph, labels=labels, validation=plan.training.validation, seed=plan.training.seed
        )
        check_outputs(model, labels)
        return cls(source, plan, dataset, model, folder, options, listener, steps)

    def train(self) -> ir.Model:
        """Compress, train, and write what came out."""
        fingerprint = self._fingerprint()
        resume = self.options.resume and (self.folder / CHECKPOINT).exists()
        if resume:
            checkpoints.load(self.folder / CHECKPOINT).belongs_to(fingerprint, self.folder / CHECKPOINT)
        else:
            for name in RESULTS:
                (self.folder / name).unlink(missing_ok=True)
        files.write_text(self.folder / "schedule.yaml", self.plan.text())
        with self.clock.part("compress", self.listener):
            compressible, steps = compress(self.model, self.plan, self.data.train, self.folder, verify_each=self.verify)
            graph.save(compressible, self.folder / "compressible.onnx")
        self.steps += steps
        with self.clock.part("train", self.listener):
            trainer = Trainer(
                compressible,
                self.plan,
                self.data,
                self.folder,
                progress=self.listener,
                device=self.options.device,
                threads=self.options.threads,
                fingerprint=fingerprint,
            )
            if resume:
                trainer.resume()
            trained = trainer.train()
        self.history = trainer.state.history
        files.write_text(self.folder / "history.json", json.dumps(self.history, indent=1))
        graph.save(trained, self.folder / "trained.onnx")
        return trained

    def _fingerprint(self) -> str:
        """A hash of the schedule, the normalized graph with its weights, and the training rows."""
        digest = hashlib.sha256(self.plan.fingerprint().encode())
        for value in self.model.graph.initializers.values():
            digest.update(f"{value.name}".encode() + graph.stored(value).tobytes())
        digest.update(pipeline.to_text(self.model).encode())
        inputs, target = self.data.train.take(np.arange(0, len(self.data.train), 97))
        for array in (*inputs.values(), target, self.data.train.rows):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def accuracy(self, model: ir.Model) -> tuple[float, np.ndarray]:
        """The metric on the test rows, and the first output it comes from."""
        output = outputs(model, self.data.test)
        return self._metric(output, metrics.threshold(model.graph)), output

    def _metric(self, output: np.ndarray, threshold: float = 0.0) -> float:
        return metrics.metric(self.plan.training.loss, output, self.data.test.target[self.data.test.rows], threshold)

    def summary(self, trained: ir.Model, clean: ir.Model) -> dict[str, Any]:
        """What the run found, but for the firmware."""
        name = metrics.metric_name(self.plan.training.loss)
        hard = graph.copy(trained)
        metrics.harden(hard.graph)
        scores = {"float": self.model, "trained": hard, "clean": clean}
        found = {key: self.accuracy(model) for key, model in scores.items()}
        costs = metrics.Probe(clean).costs({})
        return {
            "model": self.source.name,
            "schedule": self.plan.name,
            "data": self.data.source,
            "metric": name,
            **{key: {name: value} for key, (value, _) in found.items()},
            "clean_equals_trained": bool(np.array_equal(found["trained"][1], found["clean"][1])),
            "test_rows": len(self.data.test),
            "keep_ratio": metrics.keep_ratio(costs),
            "ebops": metrics.ebops(costs),
            "layers": [cost.record() for cost in costs],
            "passes": [vars(step) for step in self.steps],
            "epochs": len(self.history),
            "seed": self.plan.training.seed,
            "device": self.options.device,
            "threads": self.options.threads,
            "versions": versions(),
        }

    def firmware(self, clean: ir.Model) -> dict[str, Any]:
        """Make the project, compile it, and compare it on every test row."""
        from pqc.hardware.handover import hls

        with self.clock.part("hls", self.listener):
            inputs, _ = self.data.test.all()
            result = hls(
                clean,
                self.folder / "hls",
                samples=next(iter(inputs.values())),
                backend=self.options.backend,
                io_type=self.options.io_type,
            )
        return {
            metrics.metric_name(self.plan.training.loss): self._metric(result.outputs),
            **record(result, self.options.backend, self.options.io_type),
        }

    def report(self, summary: dict[str, Any], trained: ir.Model, clean: ir.Model) -> None:
        """Write `summary.json` and `report.html`."""
        from pqc.report import page

        files.write_text(self.folder / "summary.json", json.dumps(summary, indent=2))
        page.write(
            self.folder,
            summary,
            self.history,
            weights=metrics.Probe(clean).effective({}),
            float_weights=metrics.Probe(self.model).effective({}),
            target=self.data.test.target[self.data.test.rows],
            scores={"float": outputs(self.model, self.data.test), "clean": outputs(clean, self.data.test)},
            class_names=self.source.classes,
        )


def check_inputs(model: ir.Model) -> None:
    """Refuse inputs that training cannot feed.

    Raises:
        UnsupportedError: an input is not float32, or its batch size is fixed.
    """
    for value in model.graph.inputs:
        if value.dtype != ir.DataType.FLOAT:
            raise UnsupportedError(f"the input '{value.name}' is {value.dtype}; training feeds float32")
        if value.shape is None or not len(value.shape) or isinstance(value.shape[0], int):
            raise UnsupportedError(
                f"the batch size of the input '{value.name}' is fixed: its shape is {value.shape}",
                hint="export with a dynamic batch dimension (dynamic_axes in PyTorch's exporter)",
            )


def check_outputs(model: ir.Model, labels: bool) -> None:
    """Refuse a first output that does not have one row for each row of the inputs.

    Raises:
        UnsupportedError: names the output and its shape.
    """
    output = model.graph.outputs[0]
    rank = 2 if labels else 1
    if output.shape is None or len(output.shape) < rank or isinstance(output.shape[0], int):
        wanted = "[rows, classes]" if labels else "[rows, …]"
        raise UnsupportedError(
            f"the output '{output.name}' has the shape {output.shape}, and {wanted} is needed",
            hint="give out one row of scores for each input row",
        )


def outputs(model: ir.Model, split: Split, rows: int = 4096) -> np.ndarray:
    """The model's first output [rows, ...] on all of `split`."""
    session = engine.Session(model)
    pieces = []
    for start in range(0, len(split), rows):
        inputs, _ = split.take(np.arange(start, min(start + rows, len(split))))
        pieces.append(session.run(inputs)[session.outputs[0]])
    return np.concatenate(pieces)


def load_plan(name: str | Path | None, source: Source, settings: dict[str, str]) -> Schedule:
    """The schedule that was asked for, or the one that the model brings."""
    return schedule.load(name or source.schedule or "cs", settings)
