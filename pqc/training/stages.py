"""The graphs of a stage of training, made from the compressible graph by passes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pqc import curves, engine, graph, masking, metrics, pipeline
from pqc.data import Split
from pqc.functions.optimizers import make_optimizer
from pqc.names import BITS_WEIGHT, BUFFERS, LOSS, TARGET, THETA, Slice, by_role, layout, unpacked
from pqc.options import quote, write
from pqc.schedule import PRICES, Schedule
from pqc.schedule_sections import Phase
from pqc.training.state import TrainingState
from pqc.training.stepper import Stepper

# How each stage treats the learned masks; those of fine-tuning are frozen already.
STAGES = {"pretraining": "bypass-masks", "training": "", "fine-tuning": ""}
EVALUATION_ROWS = 4096


@dataclass(frozen=True)
class Evaluation:
    """The loss and the metric on some rows, and the outputs [rows, ...] they come from."""

    loss: float
    metric: float
    output: np.ndarray


class Stage:
    """One stage's graphs, ready to run.

    Args:
        compressible: the graph with quantizers and masks; not changed.
        name: a key of `STAGES`.
        schedule: gives loss, optimizer, seed.
        phase: what is on in this stage.
        state: parameters to start from.
        batch: rows per step.
        device: `cpu` or `cuda`.
        threads: threads inside an operator.
        teacher: the file of the network that the schedule distills from.
    """

    def __init__(
        self,
        compressible: ir.Model,
        name: str,
        schedule: Schedule,
        phase: Phase,
        state: TrainingState,
        *,
        batch: int,
        device: str = "cpu",
        threads: int = 1,
        teacher: Path | None = None,
    ) -> None:
        self.name = name
        self.loss_name = schedule.training.loss
        start = graph.copy(compressible)
        set_values(start, state.values)
        if off := stage_pipeline(name, phase):
            pipeline.run(start, off)
        pipeline.run(start, loss_pipeline(schedule))
        self._control_names = {name: str(value.name) for name, value in masking.controls(start.graph).items()}
        step = graph.copy(start)
        pipeline.run(start, "expose-parameters")
        self.layouts = {vector: layout(start, vector) for vector in (THETA, BUFFERS)}
        self._outputs = [value.name for value in start.graph.outputs]
        self._threshold = metrics.threshold(start.graph)
        self._evaluator = engine.Session(start, device=device, threads=threads)
        pipeline.run(step, step_pipeline(schedule, batch, teacher, follow=phase.statistics == "batch"))
        self.optimizer = make_optimizer(
            schedule.training.optimizer.name,
            {key: write(value) for key, value in schedule.training.optimizer.options.items()},
        )
        self.step_model = step
        self.stepper = Stepper(step, self.optimizer, device=device, threads=threads)
        self.load(state)
        if schedule.training.decays:
            self.stepper.set_decays(by_role(self.layout, schedule.training.decays, 0.0))
        self.controls: dict[str, float] = {}

    @property
    def layout(self) -> list[Slice]:
        """The slices of theta."""
        return self.layouts[THETA]

    def set_controls(self, controls: Mapping[str, float]) -> dict[str, float]:
        """Set the annealed scalars for training and evaluation; return those that the graph has."""
        self.controls = {self._control_names[name]: controls[name] for name in controls if name in self._control_names}
        self.stepper.set_controls(self.controls)
        return {name: value for name, value in controls.items() if name in self._control_names}

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Set the learning rates' multipliers by role; one for the rest."""
        self.stepper.set_rates(by_role(self.layout, rates, 1.0))

    def evaluate(self, split: Split) -> Evaluation:
        """Loss, metric and first output over all rows of `split`, with the parameters as they are now."""
        known = {THETA, *([BUFFERS] if self.layouts[BUFFERS] else [])}
        fixed = {name: array for name, array in self.stepper.state().items() if name in known}
        fixed |= {name: np.float32(value) for name, value in self.controls.items()}
        total, outputs, targets = 0.0, [], []
        for start in range(0, len(split), EVALUATION_ROWS):
            inputs, target = split.take(np.arange(start, min(start + EVALUATION_ROWS, len(split))))
            found = self._evaluator.run({**inputs, TARGET: target, **fixed})
            total += float(found[LOSS]) * len(target)
            outputs.append(found[str(self._outputs[0])])
            targets.append(target)
        output, target = np.concatenate(outputs), np.concatenate(targets)
        return Evaluation(total / len(split), metrics.metric(self.loss_name, output, target, self._threshold), output)

    def unpack(self, state: TrainingState) -> None:
        """Copy parameters, states and moments into `state`, by name."""
        flat = self.stepper.state()
        for vector in (BUFFERS, THETA):
            if self.layouts[vector]:
                state.values.update(unpacked(flat[vector], self.layouts[vector]))
        for slot in self.optimizer.slots:
            state.moments.setdefault(slot, {}).update(unpacked(flat[slot], self.layout))

    def load(self, state: TrainingState) -> None:
        """The inverse of `unpack`."""
        moments = {slot: self._flat(state.moments.get(slot, {}), THETA) for slot in self.optimizer.slots}
        vectors = {name: self._flat(state.values, name) for name in (THETA, BUFFERS) if self.layouts[name]}
        self.stepper.load_state({**vectors, **moments})

    def _flat(self, arrays: Mapping[str, np.ndarray], vector: str) -> np.ndarray:
        slices = self.layouts[vector]
        pieces = [np.ravel(arrays.get(name, np.zeros(shape, np.float32))) for name, shape, _ in slices]
        return np.concatenate(pieces).astype(np.float32)


def stage_pipeline(name: str, phase: Phase) -> str:
    """The pipeline text that switches off what a stage does without."""
    parts = [STAGES[name], "" if phase.bits == "learned" else "freeze-bits", "" if phase.quantize else "bypass-quant"]
    return ",".join(part for part in parts if part)


def loss_pipeline(schedule: Schedule) -> str:
    """The pipeline text that adds the loss."""
    options = {key: write(value) for key, value in schedule.training.loss_options.items()}
    extra = f" options={write(options)}" if options else ""
    price = curves.parse(schedule.controls.get(BITS_WEIGHT, PRICES[BITS_WEIGHT]))
    parts = [] if any(price(n, 9) for n in range(9)) else ["bits=false"]
    if schedule.quantization is not None and not schedule.quantization.price_signs:
        parts.append("signs=false")
    costs = f"attach-costs{{{' '.join(parts)}}}" if parts else "attach-costs"
    return f"attach-loss{{loss={schedule.training.loss}{extra}}},{costs}"


def step_pipeline(schedule: Schedule, batch: int, teacher: Path | None = None, *, follow: bool = True) -> str:
    """The pipeline text that makes a training step of the graph with its loss.

    Args:
        schedule: the plan.
        batch: rows per step.
        teacher: the file of the network that the schedule distills from.
        follow: whether batch normalization that is trained follows the batches.
    """
    training = schedule.training
    options = {key: write(value) for key, value in training.optimizer.options.items()}
    parts = [f"optimizer={training.optimizer.name}"]
    parts += [f"options={write(options)}"] if options else []
    parts += ["decays=true"] if training.decays else []
    parts += [f"clip={training.clip}"] if training.clip is not None else []
    parts += [f"accumulate={training.accumulate}"] if training.accumulate > 1 else []
    return f"{gradient_pipeline(schedule, batch, teacher, follow=follow)},attach-optimizer{{{' '.join(parts)}}}"


def gradient_pipeline(schedule: Schedule, batch: int, teacher: Path | None = None, *, follow: bool = True) -> str:
    """The pipeline text that adds the gradient to the graph with its loss; arguments as of `step_pipeline`."""
    quantization = schedule.quantization
    updates = "attach-updates"
    if quantization is not None and quantization.learns_bits:
        updates = f"attach-updates{{decay={quantization.integer_bits_decay}}}"
    relax = "relax-overflow" + (
        "{keep-wraps=true}" if quantization is not None and quantization.wrap_in_training else ""
    )
    updates = f"attach-statistics,{updates}" if follow and schedule.training.batch_norm == "train" else updates
    expose = ",".join([f"{updates},expose-parameters", *distill_pipeline(schedule, teacher), relax])
    dither = f"dither-quant{{seed={schedule.training.seed}}}"
    lower = f"fix-batch{{size={batch}}},{dither},lower-quant,lower-learned,batch-parameters"
    return f"{expose},{lower},differentiate"


def distill_pipeline(schedule: Schedule, teacher: Path | None) -> list[str]:
    """The pipeline text that attaches the teacher, if the schedule asks for one."""
    distill = schedule.distill
    if distill is None:
        return []
    parts = [f"model={quote(str(teacher or ''))}", f"loss={distill.loss}"]
    parts += [f"temperature={distill.temperature}", f"alpha={distill.alpha}"]
    parts += [f"layers={quote(json.dumps(distill.layers))}"] if distill.layers else []
    return [f"attach-teacher{{{' '.join(parts)}}}"]


def values_of(model: ir.Model) -> dict[str, np.ndarray]:
    """The parameters and the methods' states of a compressible graph, by name."""
    found = [*masking.parameters(model.graph), *masking.buffers(model.graph)]
    return {str(one.value.name): np.array(graph.stored(one.value)) for one in found}


def set_values(model: ir.Model, values: Mapping[str, np.ndarray]) -> None:
    """Store trained arrays in a compressible graph."""
    for name, array in values.items():
        if name in model.graph.initializers:
            graph.set_initializer(model.graph.initializers[name], array)
