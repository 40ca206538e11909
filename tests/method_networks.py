"""Tiny networks with one layer of each kind under a mask, and how to train and harden them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from conftest import SEED, onnx_model

from pqc import engine, graph, masking, pipeline
from pqc.data import Dataset, Split
from pqc.functions.optimizers import make_optimizer
from pqc.names import layout
from pqc.options import quote
from pqc.schedule import Schedule
from pqc.training.stepper import Stepper
from pqc.training.trainer import Trainer
from pqc.workflows.compression import NORMALIZE, compress

Arrays = dict[str, np.ndarray]
Options = Mapping[str, object]


@dataclass(frozen=True)
class Network:
    """A layer with the weight `w`, and what follows it.

    Args:
        text: the graph from `(inputs) => (outputs)` on, without the layers behind.
        shape: of the weight as it is stored.
        seen: the weight with its outputs first.
        back: the inverse of `seen`.
        values: how many values a sample has behind the layer, which a last layer of 3 outputs reads; 0: none follows.
    """

    text: str
    shape: tuple[int, ...]
    seen: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]
    values: int = 0

    @property
    def outputs_first(self) -> tuple[int, ...]:
        """The shape that methods see."""
        return self.seen(np.empty(self.shape)).shape

    def model(self, weight: np.ndarray | None = None, bias: np.ndarray | None = None) -> ir.Model:
        """The graph; the weight is given outputs first, and drawn where it is not given."""
        rng = np.random.default_rng(SEED)
        drawn = rng.normal(0, 0.5, self.outputs_first) if weight is None else weight
        arrays = {"w": np.ascontiguousarray(self.back(np.asarray(drawn, np.float32)))}
        if " b)" in self.text:
            arrays["b"] = rng.normal(0, 0.1, self.outputs_first[0]) if bias is None else bias
        text = self.text + "}"
        if self.values:
            arrays |= {"fc__weight": rng.normal(0, 0.3, (3, self.values)), "fc__bias": rng.normal(0, 0.1, 3)}
            tail = "r = Relu (h) f = Flatten (r) y = Gemm <transB: int = 1> (f, fc__weight, fc__bias) }"
            text = f"{self.text} {tail}"
        return onnx_model(text, **arrays)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _turned(array: np.ndarray) -> np.ndarray:
    return array.T


def _swapped(array: np.ndarray) -> np.ndarray:
    return array.swapaxes(0, 1)


def _ungrouped(array: np.ndarray) -> np.ndarray:
    """[inputs, outputs of a group, kernel] of two groups → [outputs, inputs of a group, kernel]."""
    inputs, outputs, *kernel = array.shape
    halves = array.reshape(2, inputs // 2, outputs, *kernel).swapaxes(1, 2)
    return halves.reshape(2 * outputs, inputs // 2, *kernel)


def _grouped(array: np.ndarray) -> np.ndarray:
    """The inverse of `_ungrouped`."""
    outputs, inputs, *kernel = array.shape
    halves = array.reshape(2, outputs // 2, inputs, *kernel).swapaxes(1, 2)
    return halves.reshape(2 * inputs, outputs // 2, *kernel)


def _conv(inputs: str, kernel: str, more: str = "", bias: str = ", b", operator: str = "Conv") -> str:
    attributes = f"<kernel_shape: ints = [{kernel}]{more}>"
    return f"(float[n,{inputs}] x) => (float[n,3] y) {{ h = {operator} {attributes} (x, w{bias})"


NETWORKS = {
    "matmul": Network(
        "(float[n,6] x) => (float[n,3] y) { m = MatMul (x, w) h = Add (m, b)", (6, 8), _turned, _turned, 8
    ),
    "gemm": Network("(float[n,6] x) => (float[n,3] y) { h = Gemm <transB: int = 1> (x, w, b)", (8, 6), _same, _same, 8),
    "positions": Network(
        "(float[n,4,6] x) => (float[n,3] y) { m = MatMul (x, w) h = Add (m, b)", (6, 8), _turned, _turned, 32
    ),
    "conv1d": Network(_conv("4,6", "3"), (8, 4, 3), _same, _same, 32),
    "conv2d": Network(_conv("2,5,5", "3,2"), (4, 2, 3, 2), _same, _same, 48),
    "depthwise": Network(_conv("8,4,4", "2,2", ", group: int = 8"), (8, 1, 2, 2), _same, _same, 72),
    "grouped": Network(_conv("4,5", "2", ", group: int = 2"), (8, 2, 2), _same, _same, 32),
    "transpose": Network(_conv("3,4", "2", operator="ConvTranspose"), (3, 4, 2), _swapped, _swapped, 20),
    "grouped transpose": Network(
        _conv("4,3,3", "2,2", ", group: int = 2", operator="ConvTranspose"),
        (4, 3, 2, 2),
        _ungrouped,
        _grouped,
        96,
    ),
}
TRAINABLE = list(NETWORKS)


def written(options: Options) -> str:
    """Options as a pipeline's text has them."""
    return ",".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items()
    )


def inserted(method: str, options: Options | None = None, *, first: bool = True, more: Options | None = None) -> str:
    """The text of insert-masks."""
    parts = [f"method={method}", f"pruning-first={str(first).lower()}"]
    parts += [f"options={written(options)}"] if options else []
    parts += [f"{key}={value}" for key, value in (more or {}).items()]
    return f"insert-masks{{{' '.join(parts)}}}"


def differentiated(model: ir.Model, batch: int, loss: str = "mse") -> None:
    """Make the graph of a step, up to its gradient."""
    rest = f"attach-updates,expose-parameters,lower-quant,batch-parameters,fix-batch{{size={batch}}},differentiate"
    pipeline.run(model, f"attach-loss{{loss={loss}}},{rest}")


def split(vector: np.ndarray, model: ir.Model, name: str) -> Arrays:
    """The slices of theta or of the buffers by name."""
    slices = layout(model, name)
    ends = np.cumsum([0, *(int(np.prod(shape)) for _, shape, _ in slices)])
    return {
        title: vector[start:end].reshape(shape)
        for (title, shape, _), start, end in zip(slices, ends[:-1], ends[1:], strict=True)
    }


def joined(values: Arrays, model: ir.Model, name: str) -> np.ndarray:
    """The inverse of `split`."""
    return np.concatenate([np.ravel(values[title]) for title, _, _ in layout(model, name)]).astype(np.float32)


def feeds_of(model: ir.Model, rows: int, seed: int = SEED) -> Arrays:
    """Normal inputs and targets."""
    rng = np.random.default_rng(seed)
    data = [value for value in model.graph.inputs if value.const_value is None and value.name != "target"]
    found = {str(value.name): rng.normal(0, 1, (rows, *value.shape.dims[1:])).astype(np.float32) for value in data}
    return found | {"target": rng.normal(0, 1, (rows, *model.graph.outputs[0].shape.dims[1:])).astype(np.float32)}


class Training:
    """A few steps of a network with learned masks, state by state, without the machine of phases.

    Args:
        compressible: the graph with masks; not changed.
        batch: rows of a step.
        optimizer: its name.
    """

    def __init__(self, compressible: ir.Model, batch: int = 4, optimizer: str = "adam") -> None:
        self.step_model = compressible.clone()
        differentiated(self.step_model, batch)
        pipeline.run(self.step_model, f"attach-optimizer{{optimizer={optimizer}}}")
        self.stepper = Stepper(self.step_model, make_optimizer(optimizer, {}))
        self.batch = batch
        self.number = 0

    def values(self) -> Arrays:
        """Parameters and states by name."""
        state = self.stepper.state()
        found = split(state["theta"], self.step_model, "theta")
        return {**found, **(split(state["buffers"], self.step_model, "buffers") if "buffers" in state else {})}

    def load(self, values: Arrays) -> None:
        """Set parameters and states."""
        state = self.stepper.state()
        state["theta"] = joined(values, self.step_model, "theta")
        if "buffers" in state:
            state["buffers"] = joined(values, self.step_model, "buffers")
        self.stepper.load_state(state)

    def step(self, inputs: Arrays, target: np.ndarray, learning_rate: float = 0.01) -> float:
        """One step on the given rows."""
        self.number += 1
        rows = np.arange(self.batch)
        return self.stepper.step(inputs, target, rows, number=self.number, learning_rate=learning_rate)


def with_options(method: str, options: Options, layers: Options) -> str:
    """insert-masks with options for some layers."""
    return inserted(method, options, more={"layers": quote(json.dumps(layers))})


def hard(model: ir.Model) -> Arrays:
    """The hard masks that freeze-masks computes, by the weights' names, in the weights' layout."""
    frozen = model.clone()
    pipeline.run(frozen, "freeze-masks")
    return {
        str(name).removesuffix(".frozen.mask"): value.const_value.numpy()
        for name, value in frozen.graph.initializers.items()
        if str(name).endswith(".frozen.mask")
    }


def effective(model: ir.Model, weight: str = "w") -> np.ndarray:
    """The masked weight of a compressible graph, outputs as they are stored."""
    trial = model.clone()
    site = next(site for site in masking.masks(trial.graph) if site.weight.name == weight)
    trial.graph.outputs[:] = [site.product.outputs[0]]
    trial.graph.inputs[:] = []
    graph.remove_unused(trial.graph)
    return next(iter(engine.evaluate(trial, {}).values()))


def plan(method: str | None, options: Options | None = None, epochs: int = 2, **more: Any) -> Schedule:
    """A schedule as a dict: eight rows a step, quantizers of seven bits.

    Args:
        method: its name, or None.
        options: its options.
        epochs: of training.
        more: keys to add to sections, None in the place of one that shall be off.
    """
    sections: dict[str, Any] = {
        "pruning": {"method": method, "options": dict(options or {})},
        "quantization": {"weights": [1, 1, 5], "biases": [1, 1, 5], "inputs": [1, 2, 4]},
        "training": {"loss": "mse", "batch": 8, "learning_rate": 0.02},
        "phases": {"training": {"epochs": epochs}},
    }
    for key, value in more.items():
        sections[key] = None if value is None else {**sections.get(key, {}), **value}
    return Schedule.model_validate(sections)


def rows_for(model: ir.Model, rows: int = 32) -> Dataset:
    """Random rows, the same for training, validation and test."""
    feeds = feeds_of(model, rows)
    split = Split({name: feeds[name] for name in feeds if name != "target"}, feeds["target"], np.arange(rows))
    return Dataset(split, split, split, "drawn")


def trainer_of(model: ir.Model, schedule: Schedule, folder: Path) -> Trainer:
    """A trainer of the model on random rows."""
    pipeline.run(model, NORMALIZE)
    data = rows_for(model)
    folder.mkdir(exist_ok=True)
    compressible, _ = compress(model, schedule, data.train, folder, verify_each=False)
    return Trainer(compressible, schedule, data, folder, fingerprint=schedule.fingerprint())


class Impatient:
    """Interrupts when so many epochs are done."""

    def __init__(self, after: int) -> None:
        self.after = after

    def epoch(self, record: dict[str, object], done: int, total: int) -> None:
        if done == self.after:
            raise KeyboardInterrupt


def same_run(one: Trainer, other: Trainer) -> None:
    """Two finished runs have the same bits everywhere."""
    for section in ("values", "masks", "snapshot"):
        wanted, found = getattr(one.state, section), getattr(other.state, section)
        assert wanted.keys() == found.keys()
        assert [name for name in wanted if wanted[name].tobytes() != found[name].tobytes()] == [], section
    assert one.state.moments.keys() == other.state.moments.keys()
    for slot, moments in one.state.moments.items():
        assert all(array.tobytes() == other.state.moments[slot][name].tobytes() for name, array in moments.items())
    records = [[{**record, "seconds": 0} for record in run.state.history] for run in (one, other)]
    assert records[0] == records[1]
    assert one.state.position == other.state.position
