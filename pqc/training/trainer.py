"""The phase machine: pretraining, rounds of training with rewinding, fine-tuning; checkpoints after each epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from pqc import curves, graph, interrupts, masking, metrics
from pqc.data import Dataset
from pqc.errors import Interrupted, TrainingError
from pqc.names import EBOPS_WEIGHT
from pqc.schedule import Schedule
from pqc.training import state as checkpoints
from pqc.training.bits import LearnedBits
from pqc.training.calibration import calibrate
from pqc.training.diagnosis import first_not_finite
from pqc.training.events import Events
from pqc.training.front import CANDIDATE, Front
from pqc.training.segments import Segment, best_epoch, check_length, control_curves, finds_masks, segments
from pqc.training.stages import Stage, set_values, values_of
from pqc.training.state import Steering, TrainingState

NOTES = logging.getLogger("pqc.notes")
CHECKPOINT = "checkpoint.npz"
APPROACH = 0.4
"""The share of a round in which a sparsity target is approached."""
MEASUREMENTS = 4
"""How often in an epoch the controller of a sparsity target measures."""
EBOPS_GAIN = 0.1
"""A factor e too many of bit operations counts as so large a missing share."""
LONG = 1_000_000
"""A length at whose end every ramp has come to its own."""
RUNAWAY = 1e6
"""A weight or bias beyond this is lost: saturating quantizers would hide it from the loss."""


class Progress(Protocol):
    """Who is told how training goes."""

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """An epoch ended; `record` is its line of the history."""


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
        teacher: the file of the network that the schedule distills from.
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
        teacher: Path | None = None,
    ) -> None:
        self.compressible = compressible
        self.schedule = schedule
        self.data = data
        self.path = folder / CHECKPOINT
        self.progress = progress
        self.device = device
        self.threads = threads
        self.teacher = teacher
        self.segments = segments(schedule)
        self.batch = min(schedule.training.batch, len(data.train))
        self.method = schedule.method
        self.events = Events(compressible)
        self.front = Front(folder, metrics.metric_name(schedule.training.loss))
        self.frozen: ir.Model | None = None
        self.inputs, self.target = data.train.all()
        self.bits = LearnedBits(compressible, self.inputs)
        check_length(schedule, len(self.target) // self.batch)
        self.state = TrainingState(values_of(compressible), {}, fingerprint=fingerprint)
        self._controls = control_curves(schedule)
        self._approach = curves.cubic(0, 1, 0, APPROACH)

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
        if found.masks:
            self._freeze()
        self.front.restart(found.history)

    def train(self) -> ir.Model:
        """Train to the end and return the compressible graph with the trained parameters.

        Raises:
            TrainingError: the loss is no number any more; says when and in which node.
            Interrupted: Ctrl-C; the last finished epoch is in the checkpoint.
        """
        checkpoints.save(self.state, self.path)
        self.front.restart(self.state.history)
        try:
            for number in range(self.state.position.segment, len(self.segments)):
                self._segment(number)
            if self.segments and self.state.position.segment < len(self.segments):
                self._end_of_segment(self.segments[-1])
                self.state.advance(segment=len(self.segments), epochs=0)
                checkpoints.save(self.state, self.path)
        except KeyboardInterrupt:
            done = len(checkpoints.load(self.path).history)
            raise Interrupted(
                f"stopped after {done} of {self.total_epochs()} epochs",
                at=str(self.path),
                hint="the same command with --resume goes on from there",
            ) from None
        trained = graph.copy(self._model())
        set_values(trained, self.state.values)
        return trained

    def total_epochs(self) -> int:
        """Epochs of all segments."""
        return sum(segment.epochs for segment in self.segments if segment.stage != "calibration")

    def _model(self) -> ir.Model:
        """The graph as it stands: with learned masks, or with frozen ones."""
        return self.compressible if self.frozen is None else self.frozen

    def _segment(self, number: int) -> None:
        segment = self.segments[number]
        state = self.state
        if number != state.position.segment:
            self._end_of_segment(self.segments[number - 1])
            state.advance(segment=number, epochs=0)
        if segment.stage == "calibration":
            if not state.position.epochs:
                self._calibrate()
            return
        self._restart_moments(segment.stage)
        begun = state.position.epochs or segment.round or self.schedule.phases.calibration.batches
        if segment.stage == "training" and not begun:
            self.events.begin_training(state.values, self._controls_at(segment, 0))
        stage = Stage(
            self._model(),
            segment.stage,
            self.schedule,
            segment.phase,
            state,
            batch=self.batch,
            device=self.device,
            threads=self.threads,
            teacher=self.teacher,
        )
        probe = metrics.Probe(self._model())
        while not segment.is_over(self._records(), self._searching(segment)):
            interrupts.check()
            self._maybe_snapshot(segment)
            self._epoch(stage, segment, probe)
            checkpoints.save(state, self.path)

    def _calibrate(self) -> None:
        """Let the methods find their masks from data alone, with the ramps at their ends."""
        values = self.state.values
        controls = {name: curve(LONG - 1, LONG) for name, curve in self._controls.items()}
        self.events.begin_training(values, controls)
        self.events.begin_epoch(values, controls)
        batches = islice(self._batches(), self.schedule.phases.calibration.batches)
        calibrate(self.compressible, values, self.events.feeds({}, controls), self.data.train, batches)
        self.events.end_epoch(values, controls)
        self.events.begin_epoch(values, controls)
        self.state.advance(epochs=1)
        if not self.schedule.phases.training.epochs:
            self._harden(controls)
        checkpoints.save(self.state, self.path)

    def _restart_moments(self, stage: str) -> None:
        """Forget the optimizer's moments where a stage brings new parameters: their bias correction starts at one."""
        known = next(iter(self.state.moments.values()), {})
        moved = {str(one.value.name) for one in masking.parameters(self.compressible.graph)}
        if stage == "training" and known and moved - known.keys():
            self.state.moments = {}
            self.state.advance(step=0)

    def _maybe_snapshot(self, segment: Segment) -> None:
        first = segment.stage == "training" and segment.round == 0
        phase = self.schedule.phases.training
        if not first or self.state.position.epochs != phase.save_weights_epoch:
            return
        roles = {one.value.name: one.role for one in masking.parameters(self.compressible.graph)}
        kinds = {"weight": "weights", "bias": "biases"}
        wanted = {name for name in self.state.values if kinds.get(roles.get(name, ""), "states") in phase.rewind_what}
        self.state.snapshot = {name: array.copy() for name, array in self.state.values.items() if name in wanted}

    def _epoch(self, stage: Stage, segment: Segment, probe: metrics.Probe) -> None:
        start = time.perf_counter()
        state = self.state
        epoch = state.position.epochs
        controls = self._controls_at(segment, epoch)
        if segment.stage == "training" and self.method is not None:
            self.events.begin_epoch(state.values, controls)
            stage.load(state)
        known = stage.set_controls(controls)
        stage.set_rates({role: curve(epoch, segment.epochs) for role, curve in segment.rates.items()})
        loss = self._steps(stage, segment, probe)
        stage.unpack(state)
        self._check_parameters(stage)
        self.bits.settle(state.values, self.events.feeds(state.values, controls))
        stage.load(state)
        validation = stage.evaluate(self.data.validation)
        if segment.stage == "training" and self.method is not None:
            self.events.end_epoch(state.values, controls)
        costs = probe.costs(self.events.feeds(state.values, controls))
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
            **known,
            "seconds": time.perf_counter() - start,
        }
        if segment.stage == "training" and self.method is not None:
            record["sparsity"] = self.events.sparsity(state.values, controls)
        if self.bits.trained and segment.phase.quantize and (self.method is None or self.frozen is not None):
            masks = {f"{name}.mask": array for name, array in state.masks.items()}
            record[CANDIDATE] = self.front.add(record, {**state.values, **masks})
        state.history.append(record)
        self._keep_best(segment)
        if self.progress is not None:
            self.progress.epoch(record, len(state.history), self.total_epochs())

    def _steer(self, stage: Stage, segment: Segment, probe: metrics.Probe, share: float) -> None:
        """Let the controllers of targets see how far training is, and move the penalties' weights.

        Args:
            stage: whose parameters are measured.
            segment: a round of training.
            probe: counts bit operations.
            share: how much of the epoch is over.
        """
        steered = self._steered
        if not steered or segment.stage != "training":
            return
        stage.unpack(self.state)
        epoch = self.state.position.epochs
        controls = self._controls_at(segment, epoch)
        approach = self._approach(epoch + share, segment.epochs)
        target = self.schedule.target
        for name in steered:
            if name == EBOPS_WEIGHT:
                assert target.ebops is not None
                now = metrics.ebops(probe.costs(self.events.feeds(self.state.values, controls)))
                wanted = self._first_ebops * (target.ebops / self._first_ebops) ** approach
                missing = EBOPS_GAIN * math.log(max(now, 1) / wanted)
            else:
                assert target.sparsity is not None
                missing = target.sparsity * approach - self.events.sparsity(self.state.values, controls)
            steering = self.state.steering.get(name, Steering())
            self.state.steering[name] = steering.after(missing, 1 / MEASUREMENTS)
        stage.set_controls(self._controls_at(segment, epoch))

    @cached_property
    def _steered(self) -> list[str]:
        """The controls that targets steer."""
        target, strength = self.schedule.target, self.method.strength if self.method is not None else None
        found = [strength] if strength is not None and target.sparsity is not None else []
        return found + ([EBOPS_WEIGHT] if target.ebops is not None else [])

    @cached_property
    def _first_ebops(self) -> float:
        """Bit operations before training."""
        return max(metrics.ebops(metrics.Probe(self.compressible).costs({})), 1)

    def _records(self) -> list[dict[str, Any]]:
        """The history of the segment so far."""
        return self.state.history[len(self.state.history) - self.state.position.epochs :]

    def _best_epoch(self, segment: Segment) -> int | None:
        """The epoch that the segment ends with instead of its last, or None."""
        if segment.phase.select != "best":
            return None
        metric = metrics.metric_name(self.schedule.training.loss)
        return best_epoch(self._records(), metric, segment.phase.constraint, self._searching(segment))

    def _searching(self, segment: Segment) -> int:
        """How many epochs of a segment pass before the method has its mask; unpruned, they would validate best."""
        if segment.stage != "training" or self.method is None:
            return 0
        if finds_masks(self.method, self.schedule.phases.calibration.batches):
            return 0
        needed = self.method.needed_epochs(self._steps_per_epoch() * self.schedule.training.accumulate)
        return max(needed - 1 - segment.round * segment.epochs, 0)

    def _keep_best(self, segment: Segment) -> None:
        """Remember the parameters if this epoch is the best of its segment so far that keeps the constraint."""
        if self._best_epoch(segment) == self.state.position.epochs - 1:
            self.state.best = {name: array.copy() for name, array in self.state.values.items()}

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
        """Optimizer steps: an epoch leaves out the rows that do not fill one."""
        return len(self.target) // (self.batch * self.schedule.training.accumulate)

    def _steps(self, stage: Stage, segment: Segment, probe: metrics.Probe) -> float:
        """Take an epoch's steps and return the mean loss."""
        per_epoch = self._steps_per_epoch()
        share = self.schedule.training.accumulate
        before = self.state.position.epochs * per_epoch
        measured = max(per_epoch * share // MEASUREMENTS, 1)
        total = 0.0
        for index, rows in enumerate(self._batches()):
            step = index // share
            loss = stage.stepper.step(
                self.inputs,
                self.target,
                rows,
                number=self.state.position.step + step + 1,
                learning_rate=segment.learning_rate(before + step, segment.epochs * per_epoch),
                last=(index + 1) % share == 0,
            )
            if not math.isfinite(loss):
                raise self._divergence(stage, step, loss)
            total += loss
            if (index + 1) % measured == 0:
                self._steer(stage, segment, probe, (index + 1) / (per_epoch * share))
        return total / (per_epoch * share)

    def _batches(self) -> Iterator[np.ndarray]:
        """The row numbers of each batch: a new order each epoch, fixed by seed and epoch."""
        epoch = len(self.state.history)
        order = np.random.default_rng([self.schedule.training.seed, epoch]).permutation(len(self.target))
        for index in range(self._steps_per_epoch() * self.schedule.training.accumulate):
            yield order[index * self.batch : (index + 1) * self.batch]

    def _controls_at(self, segment: Segment, epoch: int) -> dict[str, float]:
        """The annealed scalars in an epoch of a segment, or at its end."""
        position, length = epoch, segment.epochs
        phase = self.schedule.phases.training
        if phase.ramps == "global" and segment.stage == "training":
            position, length = epoch + segment.round * phase.epochs, phase.epochs * phase.rounds
        found = {name: curve(position, length) for name, curve in self._controls.items()}
        for name in self._steered:
            found[name] *= self.state.steering.get(name, Steering()).factor()
        return found

    def _end_of_segment(self, ended: Segment) -> None:
        """Go back to the best epoch; after training, freeze masks, rewind, or let the method prepare the next round."""
        epoch = self._best_epoch(ended)
        if epoch is None:
            epoch = self.state.position.epochs - 1
            if ended.phase.select == "best":
                NOTES.info("%s: no epoch kept the constraint; it ends with the last", ended.stage)
        self.state.values.update(self.state.best)
        self.state.best = {}
        if ended.stage != "training":
            return
        phase = self.schedule.phases.training
        last = ended.round == phase.rounds - 1
        # A round that ends early is annealed as far as it came, and the mask is that of the epoch that it ends with.
        controls = self._controls_at(ended, epoch)
        if last and self.method is not None:
            self._harden(controls)
        if phase.rewind == "every-round" or (phase.rewind == "post-training-stage" and last):
            self.state.values.update({name: array.copy() for name, array in self.state.snapshot.items()})
            if "moments" in phase.rewind_what:
                self.state.moments = {}
                self.state.advance(step=0)
        elif not last and self.method is not None:
            self.events.end_round(self.state.values, self._controls_at(ended, self.state.position.epochs))

    def _harden(self, controls: dict[str, float]) -> None:
        """Freeze the masks as the trained weights and states have them."""
        masks, weights = self.events.harden(self.state.values, controls, self.schedule.target.sparsity)
        self.state.masks = masks
        self.state.values.update(weights)
        self._freeze()

    def _freeze(self) -> None:
        self.frozen = graph.copy(self.compressible)
        set_values(self.frozen, self.state.values)
        masking.freeze(self.frozen, self.state.masks)

    def _divergence(self, stage: Stage, index: int, loss: float) -> TrainingError:
        node = first_not_finite(stage.step_model, stage.stepper.batch_arrays())
        epoch = len(self.state.history) + 1
        where = f"; the first value that is not finite comes from {node}" if node else ""
        return TrainingError(
            f"the loss became {loss}{where}",
            at=f"epoch {epoch} ({stage.name}), step {index + 1} of {self._steps_per_epoch()}",
            hint="lower training.learning_rate, or look for huge inputs",
        )
