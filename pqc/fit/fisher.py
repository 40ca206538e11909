"""The empirical Fisher diagonal: squared gradients of the loss, mean over batches, measured until it is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, pipeline
from pqc.data import Split
from pqc.fit.settings import FisherSettings
from pqc.names import GRADIENT_SUFFIX, TARGET, THETA, layout
from pqc.schedule import Schedule
from pqc.training.stages import gradient_pipeline, loss_pipeline


@dataclass(frozen=True)
class Fisher:
    """A measured diagonal.

    Args:
        weights: float64 [numbers]: the mean of B g² over batches of B rows, g the gradient of their mean loss.
        batches: how many were measured.
        activations: the trace of the same of what enters each layer, by the layer's name; empty where not measured.
    """

    weights: np.ndarray
    batches: int
    activations: dict[str, float] = field(default_factory=dict)


def is_known(traces: Sequence[Sequence[float]], settings: FisherSettings) -> bool:
    """Whether the mean of the traces is known well enough: var(t / mean(t)) / n < tolerance for each kind of trace.

    Args:
        traces: of each batch so far, [batches, kinds].
        settings: the tolerance, and how many batches are needed at least and allowed at most.
    """
    count = len(traces)
    if count < settings.least or count >= settings.most:
        return count >= settings.most
    found = np.asarray(traces, np.float64)
    mean = found.mean(axis=0)
    relative = found / np.where(mean > 0, mean, 1)
    return bool(np.all(relative.var(axis=0, ddof=1) / count < settings.tolerance))


class Estimator:
    """Measures the Fisher diagonal of a network for any values of its weights.

    Args:
        model: a float network that can be differentiated; not changed.
        names: the weights, in the order in which their numbers stand in a flat vector.
        plan: gives the loss and the seed of the batches, which are the same for every measurement; without phases.
        split: training rows; their labels are those of the empirical Fisher.
        settings: batches and when to stop.
        threads: threads inside an operator.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        plan: Schedule,
        split: Split,
        settings: FisherSettings,
        *,
        threads: int = 1,
    ) -> None:
        self.settings, self.split, self.seed = settings, split, plan.training.seed
        self.batch = min(settings.batch, len(split))
        plain = plan.changed(distill=None, quantization=None)
        step = graph.copy(model)
        pipeline.run(step, loss_pipeline(plain))
        entering = {str(layer.data.name): layer.name for layer in layers.layers(step.graph)}
        pipeline.run(step, gradient_pipeline(plain, self.batch, follow=False))
        self._activations = self._also_give(step, entering) if settings.activations else {}
        self._theta = np.array(graph.stored(step.graph.initializers[THETA]))
        self._places = _places(step, names)
        self._session = engine.Session(step, threads=threads)

    @staticmethod
    def _also_give(step: ir.Model, entering: dict[str, str]) -> dict[str, str]:
        """Make the gradients of what enters layers outputs; the layers by those outputs' names."""
        values = {value.name: value for value in graph.values(step.graph)}
        wanted = {f"{name}{GRADIENT_SUFFIX}": layer for name, layer in entering.items()}
        found = {name: layer for name, layer in wanted.items() if name in values}
        step.graph.outputs.extend(values[name] for name in found)
        return found

    def measure(self, weights: np.ndarray) -> Fisher:
        """The diagonal at `weights`, float32 [numbers]; biases and the rest are as in the model."""
        theta = self._theta.copy()
        theta[self._places] = weights
        total = np.zeros(len(self._places))
        activations = dict.fromkeys(self._activations.values(), 0.0)
        traces: list[list[float]] = []
        for rows in self._batches():
            inputs, target = self.split.take(rows)
            found = self._session.run({**inputs, TARGET: target, THETA: theta})
            squares = self.batch * np.square(found[THETA + GRADIENT_SUFFIX][self._places].astype(np.float64))
            total += squares
            entered = {
                layer: self.batch * float(np.square(found[name].astype(np.float64)).sum())
                for name, layer in self._activations.items()
            }
            for layer, trace in entered.items():
                activations[layer] += trace
            traces.append([float(squares.sum()), *([sum(entered.values())] if entered else [])])
            if is_known(traces, self.settings):
                break
        count = len(traces)
        return Fisher(total / count, count, {layer: trace / count for layer, trace in activations.items()})

    def _batches(self) -> Iterator[np.ndarray]:
        """Rows of equal batches without end: a new order each time that all were taken."""
        number = 0
        while True:
            order = np.random.default_rng([self.seed, number]).permutation(len(self.split))
            for start in range(0, len(order) - self.batch + 1, self.batch):
                yield order[start : start + self.batch]
            number += 1


def _places(step: ir.Model, names: Sequence[str]) -> np.ndarray:
    """Where the numbers of the weights stand in theta."""
    starts, start = {}, 0
    for name, shape, _ in layout(step):
        starts[name] = np.arange(start, start + int(np.prod(shape)))
        start += int(np.prod(shape))
    return np.concatenate([starts[name] for name in names])
