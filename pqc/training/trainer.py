"""The phase machine: pretraining, rounds of training with rewinding, fine-tuning; checkpoints after each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from pqc import curves, engine, graph, interrupts, layers, library, metrics
from pqc.data import Dataset
from pqc.errors import Interrupted, TrainingError
from pqc.method import Method
from pqc.schedule import Schedule
from pqc.training import state as checkpoints
from pqc.training.stages import Stage, set_values, values_of
from pqc.training.state import TrainingState

CHECKPOINT = "checkpoint.npz"
RUNAWAY = 1e6
"""A weight or bias beyond this is lost: saturating quantizers would hide it from the loss."""


@dataclass(frozen=True)
class Segment:
    """A stretch of epochs with one graph: a stage, and the round of training it belongs to."""

    stage: str
    round: int
    epochs: int
    learning_rate: curves.Curve


class Progress(Protocol):
    """Who is told how training goes."""

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """An epoch ended; `record` is its line of the history."""


def segments(schedule: Schedule) -> list[Segment]:
    """The stretches of a schedule, in order; those without epochs are left out."""
    phases = schedule.phases
    plan = [("pretraining", 0, phases.pretraining)]
    plan += [("training", number, phases.training) for number in range(phases.training.rounds)]
    plan += [("fine-tuning", 0, phases.fine_tuning)]
    rate = schedule.training.learning_rate
    return [
        Segment(stage, number, phase.epochs, curves.parse(rate if phase.learning_rate is None else phase.learning_rate))
        for stage, number, phase in plan
        if phase.epochs
    ]


class Trainer:
    """Trains a compressible graph under a schedule.

    Args:
        compressible: the graph with quantizers and learned masks; its parameters are where training starts.
        schedule: what happens when.
        data: training and validation rows.
        folder: where the checkpoint goes.
        progress: told after each epoch, or None.
        device: `cpu` or `cuda`.
        threads: threads inside an operator.
        fingerprint: of all that determines the result; a checkpoint of another run is refused.
    """

    def __init__(
        self,
        compressible: ir.Model,
        schedule: Schedule,
        data: Dataset,
        folder: Path,
        *,
        progress: Progress | None = None,
        device: str = "cpu",
        threads: int = 1,
        fingerprint: str = "",
    ) -> None:
        self.compressible = compressible
        self.schedule = schedule
        self.data = data
        self.path = folder / CHECKPOINT
        self.progress = progress
        self.device = device
        self.threads = threads
        self.segments = segments(schedule)
        self.batch = min(schedule.training.batch, len(data.train))
        self.method = _method(schedule)
        self.probe = metrics.Probe(compressible)
        self.inputs, self.target = data.train.all()
        self.state = TrainingState(values_of(compressible), {}, fingerprint=fingerprint)

    def resume(self) -> None:
        """Go back to where the checkpoint stands.

        Raises:
            TrainingError: there is none, or it belongs to another run.
        """
        found = checkpoints.load(self.path)
        found.belongs_to(self.state.fingerprint, self.path)
        shapes = {name: array.shape for name, array in self.state.values.items()}
        if {name: array.shape for name, array in found.values.items()} != shapes:
            raise TrainingError("the checkpoint is damaged", at=str(self.path), hint="run without --resume")
        self.state = found

    def train(self) -> ir.Model:
        """Train to the end and return the compressible graph with the trained parameters.

        Raises:
            TrainingError: the loss is no number any more; says when and in which node.
            Interrupted: Ctrl-C; the last finished epoch is in the checkpoint.
        """
        checkpoints.save(self.state, self.path)
        try:
            for number in range(self.state.position.segment, len(self.segments)):
                self._segment(number)
            if self.segments:
                self._end_of_round(self.segments[-1])
        except KeyboardInterrupt:
            done = len(checkpoints.load(self.path).history)
            raise Interrupted(
                f"stopped after {done} of {self.total_epochs()} epochs",
                at=str(self.path),
                hint="the same command with --resume goes on from there",
            ) from None
        trained = graph.copy(self.compressible)
        set_values(trained, self.state.values)
        return trained

    def total_epochs(self) -> int:
        """Epochs of all segments."""
        return sum(segment.epochs for segment in self.segments)

    def _segment(self, number: int) -> None:
        segment = self.segments[number]
        state = self.state
        if number != state.position.segment:
            self._end_of_round(self.segments[number - 1])
            state.advance(segment=number, epochs=0)
        self._restart_moments(segment.stage)
        stage = Stage(
            self.compressible,
            segment.stage,
            self.schedule,
            state,
            batch=self.batch,
            device=self.device,
            threads=self.threads,
        )
        while state.position.epochs < segment.epochs:
            interrupts.check()
            self._maybe_snapshot(segment)
            self._epoch(stage, segment)
            checkpoints.save(state, self.path)

    def _restart_moments(self, stage: str) -> None:
        """Forget the optimizer's moments where a stage brings new parameters: their bias correction starts at one."""
        known = next(iter(self.state.moments.values()), {})
        if stage == "training" and known and self.state.values.keys() - known.keys():
            self.state.moments = {}
            self.state.advance(step=0)

    def _maybe_snapshot(self, segment: Segment) -> None:
        first = segment.stage == "training" and segment.round == 0
        if first and self.state.position.epochs == self.schedule.phases.training.save_weights_epoch:
            weights = {
                parameter.value.name
                for parameter in layers.parameters(self.compressible.graph)
                if parameter.role == "weight"
            }
            self.state.snapshot = {name: array.copy() for name, array in self.state.values.items() if name in weights}

    def _epoch(self, stage: Stage, segment: Segment) -> None:
        start = time.perf_counter()
        state = self.state
        epoch = state.position.epochs
        controls = stage.set_controls(self._controls(epoch, segment.epochs))
        loss = self._steps(stage, segment)
        stage.unpack(state)
        self._check_parameters(stage)
        validation = stage.evaluate(self.data.validation)
        costs = self.probe.costs(state.values)
        state.advance(epochs=epoch + 1, step=state.position.step + self._steps_per_epoch())
        record = {
            "epoch": len(state.history) + 1,
            "stage": segment.stage,
            "round": segment.round,
            "loss": loss,
            "validation_loss": validation.loss,
            metrics.metric_name(stage.loss_name): validation.metric,
            "keep_ratio": metrics.keep_ratio(costs),
            "ebops": metrics.ebops(costs),
            "learning_rate": segment.learning_rate(epoch, segment.epochs),
            **controls,
            "seconds": time.perf_counter() - start,
        }
        state.history.append(record)
        if self.progress is not None:
            self.progress.epoch(record, len(state.history), self.total_epochs())

    def _check_parameters(self, stage: Stage) -> None:
        for name, _, role in stage.layout:
            largest = np.abs(self.state.values[name]).max()
            bound = RUNAWAY if role in ("weight", "bias") else np.finfo(np.float32).max
            if not largest <= bound:
                raise TrainingError(
                    f"'{name}' has run away: its largest magnitude is {largest:.3g}",
                    at=f"epoch {len(self.state.history) + 1} ({stage.name})",
                    hint="lower training.learning_rate",
                )

    def _steps_per_epoch(self) -> int:
        return len(self.target) // self.batch

    def _steps(self, stage: Stage, segment: Segment) -> float:
        """Take an epoch's steps and return the mean loss."""
        per_epoch = self._steps_per_epoch()
        before = self.state.position.epochs * per_epoch
        total = 0.0
        for index, rows in enumerate(self._batches()):
            loss = stage.stepper.step(
                self.inputs,
                self.target,
                rows,
                number=self.state.position.step + index + 1,
                learning_rate=segment.learning_rate(before + index, segment.epochs * per_epoch),
            )
            if not math.isfinite(loss):
                raise self._divergence(stage, index, loss)
            total += loss
        return total / per_epoch

    def _batches(self) -> Iterator[np.ndarray]:
        """The row numbers of each batch: a new order each epoch, fixed by seed and epoch."""
        epoch = len(self.state.history)
        order = np.random.default_rng([self.schedule.training.seed, epoch]).permutation(len(self.target))
        for index in range(self._steps_per_epoch()):
            yield order[index * self.batch : (index + 1) * self.batch]

    def _controls(self, epoch: int, epochs: int) -> dict[str, float]:
        if self.method is None:
            return {}
        texts = {**self.method.controls(), **self.schedule.controls}
        return {name: curves.parse(text)(epoch, epochs) for name, text in texts.items()}

    def _end_of_round(self, ended: Segment) -> None:
        """Rewind the weights, or let the method prepare its state for the next round."""
        phase = self.schedule.phases.training
        if ended.stage != "training":
            return
        last = ended.round == phase.rounds - 1
        if phase.rewind == "every-round" or (phase.rewind == "post-training-stage" and last):
            self.state.values.update({name: array.copy() for name, array in self.state.snapshot.items()})
        elif not last and self.method is not None:
            self._next_round(self.method, ended.epochs)

    def _next_round(self, method: Method, epochs: int) -> None:
        if method.end_of_round is None:
            return
        body = library.bodies()[method.end_of_round.key]
        controls = self._controls(epochs, epochs)
        for site in layers.masks(self.compressible.graph):
            names = {"weight": site.weight.name, **{name: value.name for name, value in site.inputs.items()}}
            arrays = [
                np.float32(controls[name]) if name in controls else self.state.values[str(names[name])]
                for name in method.end_of_round_inputs
            ]
            results = engine.call(body, arrays, method.attributes())
            for name, array in zip(method.end_of_round_states, results, strict=True):
                self.state.values[str(names[name])] = array

    def _divergence(self, stage: Stage, index: int, loss: float) -> TrainingError:
        node = first_not_finite(stage.step_model, stage.stepper.batch_arrays())
        epoch = len(self.state.history) + 1
        where = f"; the first value that is not finite comes from {node}" if node else ""
        return TrainingError(
            f"the loss became {loss}{where}",
            at=f"epoch {epoch} ({stage.name}), step {index + 1} of {self._steps_per_epoch()}",
            hint="lower training.learning_rate, or look for huge inputs",
        )


def first_not_finite(model: ir.Model, feeds: dict[str, np.ndarray]) -> str | None:
    """The first node of the graph whose result holds NaN or infinity on `feeds`, by name and operator."""
    trial = graph.copy(model)
    nodes = list(trial.graph)
    trial.graph.outputs[:] = [
        output for node in nodes for output in node.outputs if output.name and output.dtype == ir.DataType.FLOAT
    ]
    found = engine.evaluate(trial, feeds)
    for node in nodes:
        if any(output.name in found and not np.isfinite(found[output.name]).all() for output in node.outputs):
            return f"{node.op_type} '{node.name}'"
    return None


def _method(schedule: Schedule) -> Method | None:
    """The pruning method with its options, or None."""
    from pqc.methods import TABLE

    pruning = schedule.pruning
    return TABLE[pruning.method](**pruning.options) if pruning.method else None
