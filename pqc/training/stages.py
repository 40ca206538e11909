"""The graphs of a stage of training, made from the compressible graph by passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, metrics, pipeline
from pqc.data import Split
from pqc.functions.optimizers import make_optimizer
from pqc.names import LOSS, TARGET, THETA, layout
from pqc.options import write
from pqc.schedule import Schedule
from pqc.training.state import TrainingState
from pqc.training.stepper import Stepper

# How each stage treats the learned masks.
STAGES = {"pretraining": "bypass-masks", "training": "", "fine-tuning": "freeze-masks"}
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
        compressible: the graph with quantizers and learned masks; not changed.
        name: a key of `STAGES`.
        schedule: gives loss, optimizer, seed.
        state: parameters to start from.
        batch: rows per step.
        device: `cpu` or `cuda`.
        threads: threads inside an operator.
    """

    def __init__(
        self,
        compressible: ir.Model,
        name: str,
        schedule: Schedule,
        state: TrainingState,
        *,
        batch: int,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self.name = name
        self.loss_name = schedule.training.loss
        start = graph.copy(compressible)
        set_values(start, state.values)
        if STAGES[name]:
            pipeline.run(start, STAGES[name])
        self._control_names = {name: str(value.name) for name, value in layers.controls(start.graph).items()}
        pipeline.run(start, forward_pipeline(schedule))
        self.layout = layout(start)
        self._outputs = [value.name for value in start.graph.outputs]
        self._threshold = metrics.threshold(start.graph)
        self._evaluator = engine.Session(start, device=device, threads=threads)
        step = graph.copy(start)
        pipeline.run(step, step_pipeline(schedule, batch))
        self.optimizer = make_optimizer(
            schedule.training.optimizer.name,
            {key: write(value) for key, value in schedule.training.optimizer.options.items()},
        )
        self.step_model = step
        self.stepper = Stepper(step, self.optimizer, device=device, threads=threads)
        self.stepper.load_state(self._pack(state))
        self.stepper.set_rates(self._rates(schedule.training.rates))
        self.controls: dict[str, float] = {}

    def set_controls(self, controls: Mapping[str, float]) -> dict[str, float]:
        """Set the annealed scalars for training and evaluation; return those that the graph has."""
        self.controls = {self._control_names[name]: controls[name] for name in controls if name in self._control_names}
        self.stepper.set_controls(self.controls)
        return {name: value for name, value in controls.items() if name in self._control_names}

    def evaluate(self, split: Split) -> Evaluation:
        """Loss, metric and first output over all rows of `split`, with the parameters as they are now."""
        theta = self.stepper.state()[THETA]
        fixed = {THETA: theta, **{name: np.float32(value) for name, value in self.controls.items()}}
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
        """Copy parameters and moments into `state`, by name."""
        flat = self.stepper.state()
        start = 0
        for name, shape, _ in self.layout:
            end = start + int(np.prod(shape))
            state.values[name] = flat[THETA][start:end].reshape(shape)
            for slot in self.optimizer.slots:
                state.moments.setdefault(slot, {})[name] = flat[slot][start:end].reshape(shape)
            start = end

    def _pack(self, state: TrainingState) -> dict[str, np.ndarray]:
        def flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
            pieces = [np.ravel(arrays.get(name, np.zeros(shape, np.float32))) for name, shape, _ in self.layout]
            return np.concatenate(pieces).astype(np.float32)

        return {
            THETA: flat(state.values),
            **{slot: flat(state.moments.get(slot, {})) for slot in self.optimizer.slots},
        }

    def _rates(self, rates: Mapping[str, float]) -> np.ndarray:
        pieces = [np.full(int(np.prod(shape)), rates.get(role, 1.0), np.float32) for _, shape, role in self.layout]
        return np.concatenate(pieces)


def forward_pipeline(schedule: Schedule) -> str:
    """The pipeline text that adds the loss and gathers the parameters."""
    options = {key: write(value) for key, value in schedule.training.loss_options.items()}
    extra = f" options={write(options)}" if options else ""
    return f"attach-loss{{loss={schedule.training.loss}{extra}}},expose-parameters"


def step_pipeline(schedule: Schedule, batch: int) -> str:
    """The pipeline text that makes a training step of the forward graph."""
    optimizer = schedule.training.optimizer
    options = {key: write(value) for key, value in optimizer.options.items()}
    extra = f" options={write(options)}" if options else ""
    attach = f"attach-optimizer{{optimizer={optimizer.name}{extra}}}"
    return f"lower-quant,batch-parameters,fix-batch{{size={batch}}},differentiate,{attach}"


def values_of(model: ir.Model) -> dict[str, np.ndarray]:
    """The parameters and the methods' states of a compressible graph, by name."""
    found = [parameter.value for parameter in layers.parameters(model.graph)]
    for site in layers.masks(model.graph):
        found += [site.inputs[state.name] for state in site.method().states() if state.name in site.inputs]
    return {str(value.name): np.array(graph.stored(value)) for value in found}


def set_values(model: ir.Model, values: Mapping[str, np.ndarray]) -> None:
    """Store trained arrays in a compressible graph."""
    for name, array in values.items():
        if name in model.graph.initializers:
            graph.set_initializer(model.graph.initializers[name], array)
