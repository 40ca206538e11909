"""One training step as one run of one graph, with the parameters going back and forth between two sets of buffers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pqc import engine, graph
from pqc.functions.optimizers import Optimizer
from pqc.names import LEARNING_RATE, LOSS, NEXT, RATE, TARGET, THETA


class Stepper:
    """Runs the training-step graph.

    Args:
        model: the graph that attach-optimizer made, its batch size fixed.
        optimizer: gives the scalars of a step.
        device: `cpu` or `cuda`.
        threads: threads inside an operator.

    The state is what crosses from step to step: theta and the optimizer's moments, each float32 [parameters].
    """

    def __init__(self, model: ir.Model, optimizer: Optimizer, *, device: str = "cpu", threads: int = 1) -> None:
        self.optimizer = optimizer
        self.device = device
        self.state_names = (THETA, *optimizer.slots)
        self._session = engine.Session(model, device=device, threads=threads)
        self._arrays = {str(value.name): _zeros(value) for value in (*model.graph.inputs, *model.graph.outputs)}
        for value in model.graph.inputs:
            if value.const_value is not None:
                self._arrays[str(value.name)][...] = value.const_value.numpy()
        self._values = {name: engine.device_value(array, device) for name, array in self._arrays.items()}
        self.data_names = [
            str(value.name) for value in model.graph.inputs if value.const_value is None and value.name != TARGET
        ]
        self.batch = len(self._arrays[TARGET])
        self._bindings = [self._bind(flipped) for flipped in (False, True)]
        self._flipped = False

    def _bind(self, flipped: bool) -> object:
        """State goes from `theta` to `theta.next`, or, flipped, from `theta.next` to `theta`."""
        binding = self._session.session.io_binding()
        following = {name: name + NEXT for name in self.state_names}
        for value in self._session.input_names():
            source = following.get(value, value) if flipped else value
            binding.bind_ortvalue_input(value, self._values[source])
        for name in self._session.outputs:
            target = name.removesuffix(NEXT) if flipped else name
            binding.bind_ortvalue_output(name, self._values[target])
        return binding

    def step(
        self,
        inputs: Mapping[str, np.ndarray],
        target: np.ndarray,
        rows: np.ndarray,
        *,
        number: int,
        learning_rate: float,
    ) -> float:
        """Take one step on the given rows and return the loss before it.

        Args:
            inputs: float32 arrays [all rows, ...] by name.
            target: array [all rows, ...].
            rows: [batch] indices.
            number: the 1-based step, for the optimizer's corrections.
            learning_rate: of this step.
        """
        for name in self.data_names:
            np.take(inputs[name], rows, axis=0, out=self._arrays[name], mode="clip")
        np.take(target, rows, axis=0, out=self._arrays[TARGET], mode="clip")
        self._arrays[LEARNING_RATE][...] = learning_rate
        scalars = self.optimizer.scalars(number)
        for name, value in scalars.items():
            self._arrays[name][...] = value
        if self.device != "cpu":
            self._upload((*self.data_names, TARGET, LEARNING_RATE, *scalars))
        self._session.session.run_with_iobinding(self._bindings[self._flipped])
        self._flipped = not self._flipped
        return float(self._values[LOSS].numpy() if self.device != "cpu" else self._arrays[LOSS])

    def _upload(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._values[name].update_inplace(self._arrays[name])

    def set_controls(self, controls: Mapping[str, float]) -> None:
        """Set the annealed scalars that the graph has."""
        present = [name for name in controls if name in self._arrays]
        for name in present:
            self._arrays[name][...] = controls[name]
        if self.device != "cpu":
            self._upload(tuple(present))

    def set_rates(self, rate: np.ndarray) -> None:
        """Set the learning-rate multiplier of each parameter."""
        self._arrays[RATE][...] = rate
        if self.device != "cpu":
            self._upload((RATE,))

    def state(self) -> dict[str, np.ndarray]:
        """Copies of theta and the moments."""
        suffix = NEXT if self._flipped else ""
        return {name: np.array(self._values[name + suffix].numpy()) for name in self.state_names}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Set theta and the moments."""
        self._flipped = False
        for name in self.state_names:
            self._arrays[name][...] = state[name]
        if self.device != "cpu":
            self._upload(self.state_names)

    def batch_arrays(self) -> dict[str, np.ndarray]:
        """The inputs of the step that ran last, with the state it started from."""
        suffix = "" if self._flipped else NEXT
        arrays = {name: self._arrays[name] for name in self._session.input_names()}
        return arrays | {name: np.array(self._values[name + suffix].numpy()) for name in self.state_names}


def _zeros(value: ir.Value) -> np.ndarray:
    assert value.dtype is not None
    return np.zeros(graph.dims(value), value.dtype.numpy())
