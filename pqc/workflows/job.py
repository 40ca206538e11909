"""One run: what was read, and what its parts hand to each other."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from pqc import data, engine, files, graph, metrics, pipeline
from pqc.conventions import DEFAULT
from pqc.data import Dataset
from pqc.errors import DataError, UnsupportedError
from pqc.functions.losses import target_of
from pqc.schedule import Schedule
from pqc.training import state as checkpoints
from pqc.training.front import FOLDER, Front
from pqc.training.trainer import CHECKPOINT, Progress, Trainer
from pqc.workflows import anomaly, front
from pqc.workflows.checks import check_inputs, check_masks, check_outputs, labelled_by, outputs
from pqc.workflows.compression import NORMALIZE, NORMALIZE_UNFOLDED, compress, finalize, is_cheap, teacher_of
from pqc.workflows.environment import require_compiler, versions
from pqc.workflows.firmware import Backend, IoType, record
from pqc.workflows.sources import Source

RESULTS = (
    *("teacher.onnx", "trained.onnx", "clean.onnx"),
    *("history.json", "front.json", "summary.json", "report.html", "tracking.json"),
)
"""What an earlier run in the same folder may have left; a new one must not be read with it."""


class Listener(Progress, Protocol):
    """Who is told how a run goes."""

    def stage(self, name: str) -> None:
        """A part of the run begins."""

    def expansion(self, words: str, done: int, share: float) -> None:
        """A search has expanded so many nodes, the last of which is that far on the way to its goal, 0 to 1."""


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
        report: write the page `report.html`.
    """

    resume: bool = False
    verify_each: bool | None = None
    hls: bool = True
    backend: Backend = "Vitis"
    io_type: IoType = "io_parallel"
    device: str = "cpu"
    threads: int = 1
    report: bool = True


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


class Job:
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
        teacher: ir.Model | None = None,
        unfolded: ir.Model | None = None,
    ) -> None:
        self.source, self.plan, self.data, self.model = source, plan, dataset, model
        self.folder, self.options, self.listener = folder, options, listener
        self.steps = steps
        self.teacher = teacher
        self._unfolded = unfolded
        self.clock = _Clock()
        self.history: list[dict[str, Any]] = []
        self.front: Front | None = None
        self.verify = is_cheap(model) if options.verify_each is None else options.verify_each

    @property
    def trainable(self) -> ir.Model:
        """What is compressed: the model, or where batch normalization is trained, the model with it."""
        return self.model if self._unfolded is None else self._unfolded

    @classmethod
    def start(
        cls,
        source: Source,
        plan: Schedule,
        data_path: Path | None,
        folder: Path,
        options: RunOptions,
        listener: Listener | None,
    ) -> Job:
        """Read the model and the data, and normalize."""
        engine.bindings()
        engine.providers(options.device)
        if options.hls:
            require_compiler()
        model, verify = source.load(), options.verify_each is not False
        unfolded = graph.copy(model) if plan.training.batch_norm == "train" else None
        steps = pipeline.run(model, NORMALIZE, verify_each=verify)
        if unfolded is not None:
            steps = pipeline.run(unfolded, NORMALIZE_UNFOLDED, verify_each=verify)
        check_inputs(model)
        check_masks(model)
        teacher = teacher_of(model, plan)
        where = data_path or source.data
        if where is None:
            raise DataError("there are no data to train on", hint="give --data; see docs/data.md for the formats")
        target, normal = target_of(plan.training.loss), plan.training.normal_classes
        labels = target.classes
        dataset = data.load(
            where,
            model.graph,
            labels=labels,
            validation=plan.training.validation,
            seed=plan.training.seed,
            needs_target=plan.trains or bool(normal) or target.needed,
            marks=bool(normal),
            target_dims=target.shape,
        )
        check_outputs(model, labels)
        if normal:
            dataset = anomaly.learn_normal(dataset, normal, model.graph)
        if not dataset.labelled:
            dataset = labelled_by(model, dataset, labels)
        return cls(source, plan, dataset, model, folder, options, listener, steps, teacher, unfolded)

    def train(self) -> ir.Model:
        """Compress, train, and write what came out."""
        fingerprint = self.fingerprint()
        resume = self.options.resume and (self.folder / CHECKPOINT).exists()
        if resume:
            checkpoints.load(self.folder / CHECKPOINT).belongs_to(fingerprint, self.folder / CHECKPOINT)
        files.write_text(self.folder / "schedule.yaml", self.plan.text())
        for name in () if resume else RESULTS:
            (self.folder / name).unlink(missing_ok=True)
        for path in () if resume else sorted((self.folder / FOLDER).glob("epoch-*.*")):
            path.unlink()
        with self.clock.part("compress", self.listener):
            compressible, steps = compress(
                self.trainable, self.plan, self.data.train, self.folder, verify_each=self.verify
            )
            graph.save(compressible, self.folder / "compressible.onnx")
            teacher = None if self.teacher is None else self.folder / "teacher.onnx"
            if self.teacher is not None and teacher is not None:
                graph.save(self.teacher, teacher)
        self.steps += steps
        if self.options.hls:
            self._check_hardware(compressible)
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
                teacher=teacher,
            )
            if resume:
                trainer.resume()
            trained = trainer.train()
        self.history = trainer.state.history
        self.front = trainer.front
        files.write_text(self.folder / "history.json", json.dumps(self.history, indent=1))
        graph.save(trained, self.folder / "trained.onnx")
        return trained

    def _check_hardware(self, compressible: ir.Model) -> None:
        """Refuse what the hand-over would refuse, before an hour of training rather than after it."""
        from pqc.hardware import handover, legality

        legality.check_learned(compressible.graph, self.options.io_type)
        network, _ = handover.prepare(finalize(compressible, verify_each=False)[0])
        legality.check(handover.lower(network), self.options.io_type)

    def fingerprint(self) -> str:
        """A hash of the schedule, its masks, the normalized graphs with their weights, and the data to train on."""
        digest = hashlib.sha256(self.plan.fingerprint().encode())
        if self.plan.pruning.masks is not None:
            for name, mask in sorted(data.read(Path(self.plan.pruning.masks)).items()):
                digest.update(name.encode() + mask.tobytes())
        for model in (self.trainable, *([self.teacher] if self.teacher is not None else [])):
            for value in model.graph.initializers.values():
                digest.update(f"{value.name}".encode() + graph.stored(value).tobytes())
            digest.update(pipeline.to_text(model).encode())
        for split in (self.data.train, self.data.validation):
            for array in (*split.inputs.values(), split.target, split.rows):
                for start in range(0, len(array), data.CHECK_ROWS):
                    digest.update(np.ascontiguousarray(array[start : start + data.CHECK_ROWS]).tobytes())
        return digest.hexdigest()

    def accuracy(self, model: ir.Model) -> tuple[float, np.ndarray]:
        """The metric on the test rows, and the first output it comes from."""
        output = outputs(model, self.data.test)
        return self._metric(output, metrics.threshold(model.graph)), output

    def _metric(self, output: np.ndarray, threshold: float = 0.0) -> float:
        """The metric of `output` [test rows, ...], on the normal rows where some are anomalies."""
        target, anomalous = self._target(), self.data.anomalous
        rows = slice(None) if anomalous is None else ~anomalous
        return metrics.metric(self.plan.training.loss, output[rows], target[rows], threshold)

    def _validated(self, model: ir.Model) -> float:
        """The metric on the validation rows, which choices are made by."""
        rows = self.data.validation
        output, threshold = outputs(model, rows), metrics.threshold(model.graph)
        return metrics.metric(self.plan.training.loss, output, rows.target[rows.rows], threshold)

    def _scores(self, metric: float, output: np.ndarray) -> dict[str, float]:
        """All that is measured of a model, by name."""
        found, anomalous = {metrics.metric_name(self.plan.training.loss): metric}, self.data.anomalous
        if anomalous is not None:
            found |= {name: measure(output, self._target(), anomalous) for name, measure in anomaly.MEASURES.items()}
        return found

    def _target(self) -> np.ndarray:
        target: np.ndarray = self.data.test.target[self.data.test.rows]
        return target

    def summary(self, trained: ir.Model, clean: ir.Model) -> dict[str, Any]:
        """What the run found, but for the firmware."""
        name = metrics.metric_name(self.plan.training.loss)
        scores = {"float": self.model, "trained": trained, "clean": clean}
        found = {key: self.accuracy(model) for key, model in scores.items()}
        costs, before = metrics.Probe(clean).costs({}), metrics.Probe(trained).costs({})
        return {
            "model": self.source.name,
            "schedule": self.plan.name,
            "data": self.data.source,
            "metric": name,
            "labels": "data" if self.data.labelled else "the float model",
            **{key: self._scores(*results) for key, results in found.items()},
            "validation": {name: self._validated(clean)},
            "distilled": self._distilled(name),
            "clean_equals_trained": bool(np.array_equal(found["trained"][1], found["clean"][1])),
            "test_rows": len(self.data.test),
            "keep_ratio": metrics.keep_ratio(costs, before),
            "weights": metrics.weights(before),
            "ebops": metrics.ebops(costs),
            "ebops_convention": DEFAULT.name,
            "layers": [cost.record() for cost in costs],
            "passes": [vars(step) for step in self.steps],
            "epochs": len(self.history),
            "seed": self.plan.training.seed,
            "device": self.options.device,
            "threads": self.options.threads,
            "versions": versions(),
        }

    def _distilled(self, name: str) -> dict[str, Any] | None:
        """Which teacher there was, and how good it is itself."""
        distill = self.plan.distill
        if distill is None or self.teacher is None:
            return None
        teacher = "the float model" if distill.teacher is None else Path(distill.teacher).name
        return {"teacher": teacher, "loss": distill.loss, name: self.accuracy(self.teacher)[0]}

    def pareto(self, trained: ir.Model) -> list[dict[str, Any]]:
        """Write the models of the front, if bits were learned, and return its points."""
        if self.front is None or not self.front.points:
            return []
        return front.write(self.folder, self.front, trained, lambda model: self.accuracy(model)[0])

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
            **self._scores(self._metric(result.outputs), result.outputs),
            **record(result, self.options.backend, self.options.io_type),
        }

    def refusal(self, clean: ir.Model) -> dict[str, Any] | None:
        """Why hls4ml cannot take the clean model of a run without firmware, or None where it can."""
        from pqc.hardware import handover, legality

        try:
            lowered = handover.lower(handover.prepare(clean)[0])
            unknown = legality.unknown_operators(lowered.graph)
            if unknown:
                return {"skipped": f"hls4ml has no exact form of {', '.join(unknown)}"}
            legality.check(lowered, self.options.io_type)
        except UnsupportedError as error:
            return {"skipped": f"hls4ml cannot take {error.at or 'the model'}: {error.message}"}
        return None

    def report(self, summary: dict[str, Any], trained: ir.Model, clean: ir.Model) -> None:
        """Write `summary.json` and, where it is wanted, `report.html`."""
        from pqc.report import page

        files.write_text(self.folder / "summary.json", json.dumps(summary, indent=2))
        if not self.options.report:
            return
        target, names = self._target(), self.source.classes
        scores = {name: outputs(one, self.data.test) for name, one in (("float", self.model), ("clean", clean))}
        if self.data.anomalous is not None:
            scores = {name: anomaly.errors(output, target)[:, None] for name, output in scores.items()}
            target, names = self.data.anomalous, ("anomaly",)
        page.write(
            self.folder,
            summary,
            self.history,
            weights=metrics.Probe(clean).effective({}),
            float_weights=metrics.Probe(self.model).effective({}),
            target=target,
            scores=scores,
            class_names=names,
        )
