"""One training step as one run of one graph, with the parameters going back and forth between two sets of buffers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pqc import engine, graph
from pqc.functions.optimizers import Optimizer
from pqc.names import ACCUMULATED, BUFFERS, DECAY, LEARNING_RATE, LOSS, NEXT, RATE, STEP_NUMBER, TARGET, THETA


class Stepper:
    """Runs the training-step graph.

    Args:
        model: the graph that attach-optimizer made, its batch size fixed.
        optimizer: gives the scalars of a step.
        device: `cpu` or `cuda`.
        threads: threads inside an operator.

    The state is what crosses from step to step: theta and the optimizer's moments, each float32 [parameters], and the
    buffers of the methods, float32 [buffered]. Where gradients are accumulated, theta and the moments stay until the
    last batch of a step, and the buffers go on with every batch.
    """

    def __init__(self, model: ir.Model, optimizer: Optimizer, *, device: str = "cpu", threads: int = 1) -> None:
        self.optimizer = optimizer
        self.device = device
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
        self._slow = (THETA, *optimizer.slots)
        self._quick = tuple(name for name in (BUFFERS, ACCUMULATED) if name + NEXT in self._session.outputs)
        self.state_names = (*self._slow, *([BUFFERS] if BUFFERS in self._arrays else []))
        turns = [(slow, quick) for slow in (False, True) for quick in (False, True)]
        self._bindings = {turn: self._bind(*turn) for turn in turns}
        self._turn = (False, False)
        self._before = self._turn

    def _bind(self, slow: bool, quick: bool) -> object:
        """State goes from `theta` to `theta.next`, or, where turned, from `theta.next` to `theta`."""
        binding = self._session.session.io_binding()
        turned = {*(self._slow if slow else ()), *(self._quick if quick else ())}
        for value in self._session.input_names():
            binding.bind_ortvalue_input(value, self._values[value + NEXT if value in turned else value])
        for name in self._session.outputs:
            state = name.removesuffix(NEXT)
            binding.bind_ortvalue_output(name, self._values[state if state in turned else name])
        return binding

    def step(
        self,
        inputs: Mapping[str, np.ndarray],
        target: np.ndarray,
        rows: np.ndarray,
        *,
        number: int,
        learning_rate: float,
        last: bool = True,
    ) -> float:
        """Take one step on the given rows and return the loss before it.

        Args:
            inputs: float32 arrays [all rows, ...] by name.
            target: array [all rows, ...].
            rows: [batch] indices.
            number: the 1-based step, for the optimizer's corrections and stochastic rounding.
            learning_rate: of this step.
            last: whether the optimizer moves; otherwise the gradient is only added to those before.
        """
        for name in self.data_names:
            np.take(inputs[name], rows, axis=0, out=self._arrays[name], mode="clip")
        np.take(target, rows, axis=0, out=self._arrays[TARGET], mode="clip")
        self._arrays[LEARNING_RATE][...] = learning_rate
        scalars = {**self.optimizer.scalars(number), **({STEP_NUMBER: number} if STEP_NUMBER in self._arrays else {})}
        for name, value in scalars.items():
            self._arrays[name][...] = value
        if self.device != "cpu":
            self._upload((*self.data_names, TARGET, LEARNING_RATE, *scalars))
        self._session.session.run_with_iobinding(self._bindings[self._turn])
        self._before, self._turn = self._turn, (self._turn[0] ^ last, not self._turn[1])
        if last and ACCUMULATED in self._quick:
            self._write({self._place(ACCUMULATED): np.float32(0)})
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
        self._write({RATE: rate})

    def set_decays(self, decay: np.ndarray) -> None:
        """Set the weight decay of each parameter."""
        self._write({DECAY: decay})

    def state(self) -> dict[str, np.ndarray]:
        """Copies of theta, the moments and the buffers."""
        return {name: np.array(self._values[self._place(name)].numpy()) for name in self.state_names}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Set theta, the moments and the buffers."""
        self._write({self._place(name): state[name] for name in self.state_names})

    def batch_arrays(self) -> dict[str, np.ndarray]:
        """The inputs of the step that ran last, with the state it started from."""
        arrays = {name: self._arrays[name] for name in self._session.input_names()}
        states = (*self._slow, *self._quick)
        return arrays | {name: np.array(self._values[self._place(name, self._before)].numpy()) for name in states}

    def _place(self, name: str, turn: tuple[bool, bool] | None = None) -> str:
        """Which of a state's two buffers holds it."""
        slow, quick = self._turn if turn is None else turn
        turned = (name in self._slow and slow) or (name in self._quick and quick)
        return name + NEXT if turned else name

    def _write(self, arrays: Mapping[str, np.ndarray | np.float32]) -> None:
        for name, array in arrays.items():
            self._arrays[name][...] = array
        if self.device != "cpu":
            self._upload(tuple(arrays))


def _zeros(value: ir.Value) -> np.ndarray:
    assert value.dtype is not None
    return np.zeros(graph.dims(value), value.dtype.numpy())
