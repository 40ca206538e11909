"""Train the jet tagger in HGQ2 along a ramp of the resource strength, and keep accuracy against bit operations.

    .venv/bin/python tests/benchmarks/peers/jet_rows.py build/peers/jets.npz
    .venv-hgq/bin/python tests/benchmarks/peers/hgq2_front.py --rows build/peers/jets.npz --out build/peers/front.json

Runs under the peers' Python. One training: beta is constant for --hold epochs, then grows by a constant factor an epoch;
the learning rate falls along a cosine, once or in cycles. After each epoch the integer bits are traced on the training
and validation rows, as before synthesis, and the network that results is measured: accuracy on the validation and test
rows, effective bit operations (EBOPs) as HGQ2 counts them. The front holds the epochs that no other beats in both
validation accuracy and EBOPs. With --ramp-end, --cycle-from and --cycle the last epochs train at the last beta while
the rate falls, which gives one good network instead of a whole front. `--layers FILE.npz` keeps the arrays of the front's networks and of the last one, named
`epoch/layer/array`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hgq2_model import Bits, adam, as_numpy, build, pure_step, state_of, threads, versions  # isort: skip

import jax
import jax.numpy as jnp
import keras
import numpy as np
from hgq.utils import trace_minmax
from hgq.utils.minmax_trace import TrainingFlagWrapper

Point = dict[str, Any]
LAYERS = ("fc1", "fc2", "fc3", "fc4")


def load_rows(path: Path) -> dict[str, np.ndarray]:
    """The arrays x and y of each part."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def start_from(model: keras.Model, path: Path) -> None:
    """Take the weights and biases of the float network."""
    import onnx
    from onnx import numpy_helper

    found = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    for name in LAYERS:
        layer = model.get_layer(name)
        layer.kernel.assign(found[f"{name}.weight"].T)
        layer.bias.assign(found[f"{name}.bias"])


class Trainer:
    """An epoch of training and the measurement after it, each one jitted call."""

    def __init__(self, model: keras.Model, options: argparse.Namespace, rows: dict[str, np.ndarray]) -> None:
        self.model, self.batch = model, options.batch
        self.rows = {name: jnp.asarray(array) for name, array in rows.items()}
        self.optimizer = adam(model, options.learning_rate)
        self.state = state_of(model, self.optimizer)
        other = [variable.path for variable in model.non_trainable_variables]
        self.betas = [place for place, path in enumerate(other) if path.endswith("/beta")]
        self.counts = [place for place, path in enumerate(other) if path.endswith("/ebops")]
        self.traced = self._traced()
        slots = self.optimizer.variables
        self.rate = next(place for place, variable in enumerate(slots) if variable is self.optimizer._learning_rate)
        self.step = pure_step(model, self.optimizer)
        self._epoch = jax.jit(self._train, donate_argnums=0)
        self._measure = jax.jit(self._trace_and_measure)

    def _traced(self) -> dict[int, float]:
        """The first value before tracing of each variable that is traced, by its place."""
        places = {id(variable): place for place, variable in enumerate(self.model.non_trainable_variables)}
        found = {}
        for layer in self.model._flatten_layers():
            if hasattr(layer, "_i_decay_speed"):
                found |= {places[id(layer._i)]: -1e9, places[id(layer._k)]: 0}
        return found

    def _train(self, state: Any, order: jax.Array, x: jax.Array, y: jax.Array, beta: Any, rate: Any) -> Any:
        trainable, other, slots = state
        other = [jnp.asarray(beta, old.dtype) if place in self.betas else old for place, old in enumerate(other)]
        slots = [jnp.asarray(rate, old.dtype) if place == self.rate else old for place, old in enumerate(slots)]
        return jax.lax.scan(lambda state, rows: self.step(state, x[rows], y[rows]), (trainable, other, slots), order)

    def _trace_and_measure(self, trainable: Any, other: Any, rows: dict[str, jax.Array]) -> Any:
        cleared = [jnp.full_like(old, self.traced.get(place, 0)) for place, old in enumerate(other)]
        other = [cleared[place] if place in self.traced else old for place, old in enumerate(other)]
        known = jnp.concatenate([rows["x_train"], rows["x_validation"]])
        _, other = self.model.stateless_call(trainable, other, known, training=TrainingFlagWrapper("tracing"))
        accuracies = []
        for part in ("validation", "test"):
            logits, _ = self.model.stateless_call(trainable, other, rows[f"x_{part}"], training=False)
            accuracies.append(jnp.mean(jnp.argmax(logits, axis=1) == rows[f"y_{part}"]))
        return other, accuracies, sum(other[place] for place in self.counts)

    def epoch(self, order: np.ndarray, beta: float, rate: float) -> float:
        """Train once over the rows in the given order; return the mean loss with its EBOPs term."""
        whole = len(order) // self.batch
        order = order[: whole * self.batch].reshape(whole, self.batch).astype(np.int32)
        self.state, losses = self._epoch(self.state, order, self.rows["x_train"], self.rows["y_train"], beta, rate)
        return float(losses.mean())

    def measure(self) -> tuple[Point, list[jax.Array]]:
        """Accuracies and EBOPs after tracing, and the traced variables."""
        trainable, other, _ = self.state
        traced, (validation, test), ebops = self._measure(trainable, other, self.rows)
        running = sum(int(other[place]) for place in self.counts)
        point = {"validation_accuracy": float(validation), "test_accuracy": float(test)}
        return {**point, "ebops": int(ebops), "ebops_in_training": running}, traced


def is_on_front(point: Point, points: list[Point]) -> bool:
    """No other point is at least as good in both and better in one."""

    def beats(other: Point) -> bool:
        accuracy, ebops = other["validation_accuracy"], other["ebops"]
        as_good = accuracy >= point["validation_accuracy"] and ebops <= point["ebops"]
        return as_good and (accuracy > point["validation_accuracy"] or ebops < point["ebops"])

    return not any(beats(other) for other in points)


def beta_at(epoch: int, options: argparse.Namespace) -> float:
    """Constant, growing by a constant factor an epoch, constant."""
    end = options.epochs - 1 if options.ramp_end is None else options.ramp_end
    done = min(1.0, max(0, epoch - options.hold) / max(1, end - options.hold))
    return options.beta_start * (options.beta_end / options.beta_start) ** done  # type: ignore[no-any-return]


def rate_at(epoch: int, options: argparse.Namespace) -> float:
    """Constant, then a cosine to the floor in cycles whose peaks fall; constant throughout with a cycle of 0."""
    if options.cycle == 0 or epoch < options.cycle_from:
        return options.learning_rate  # type: ignore[no-any-return]
    cycle, place = divmod(epoch - options.cycle_from, options.cycle)
    share = min(1.0, place / max(1, options.cycle - 1))
    peak = options.learning_rate * options.cycle_decay**cycle
    return options.floor + 0.5 * (peak - options.floor) * (1 + math.cos(math.pi * share))  # type: ignore[no-any-return]


def assign(model: keras.Model, trainable: list[Any], other: list[Any]) -> None:
    """Put values into the model."""
    for variable, value in zip(model.trainable_variables, trainable, strict=True):
        variable.assign(value)
    for variable, value in zip(model.non_trainable_variables, other, strict=True):
        variable.assign(value)


def layer_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """Weights, quantized weights and bits of each layer, bits without sign."""
    found = {}
    for name in LAYERS:
        layer = model.get_layer(name)
        kernel, bias, width = layer.kernel, layer.bias, (1, layer.kernel.shape[0])
        arrays = {
            "kernel": kernel,
            "quantized_kernel": layer.qkernel,
            "kernel_bits": layer.kq.bits_(kernel.shape),
            "bias": bias,
            "quantized_bias": layer.qbias,
            "bias_bits": layer.bq.bits_(bias.shape),
            "input_bits": layer.iq.bits_(width)[0],
            "ebops": layer.ebops,
        }
        for quantizer, prefix in ((layer.kq, "kernel"), (layer.bq, "bias"), (layer.iq, "input")):
            for part, value in zip("kif", quantizer.quantizer.kif, strict=True):
                arrays[f"{prefix}_{part}"] = value[0] if prefix == "input" else value
        found |= {f"{name}/{array}": as_numpy(value) for array, value in arrays.items()}
    return found


def by_formula(arrays: dict[str, np.ndarray]) -> int:
    """EBOPs again from the bits: every product's two widths, and the biases' bits."""
    total = 0
    for name in LAYERS:
        bits = {part: arrays[f"{name}/{part}_bits"].astype(np.float64) for part in ("kernel", "input", "bias")}
        total += int(bits["input"] @ bits["kernel"].sum(axis=1) + bits["bias"].sum())
    return total


def train(trainer: Trainer, options: argparse.Namespace) -> tuple[list[Point], dict[int, Any]]:
    """All epochs: a point each, and the values of the networks on the front and of the last."""
    rng = np.random.default_rng([options.seed, 1])
    points: list[Point] = []
    kept: dict[int, Any] = {}
    rows = len(trainer.rows["x_train"])
    for epoch in range(options.epochs):
        beta, rate = beta_at(epoch, options), rate_at(epoch, options)
        loss = trainer.epoch(rng.permutation(rows), beta, rate)
        last = epoch == options.epochs - 1
        if epoch % options.every and not last:
            continue
        point, traced = trainer.measure()
        points.append({"epoch": epoch, "beta": beta, "learning_rate": rate, "loss": loss, **point})
        if is_on_front(points[-1], points) or last:
            kept[epoch] = ([np.array(value) for value in trainer.state[0]], traced)
            kept = {
                point["epoch"]: kept[point["epoch"]]
                for point in points
                if point["epoch"] in kept and (point["epoch"] == epoch or is_on_front(point, points))
            }
        if options.verbose and len(points) % options.verbose == 0:
            print(json.dumps(points[-1]), flush=True)
    return points, kept


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help=".npz of jet_rows.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--layers", type=Path, help=".npz to write")
    parser.add_argument("--float-start", type=Path, help="the .onnx file to take weights from")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--cycle", type=int, default=0, help="epochs of one fall of the rate; 0 keeps it constant")
    parser.add_argument("--cycle-from", type=int, default=0, help="epochs at a constant rate before the first fall")
    parser.add_argument("--cycle-decay", type=float, default=0.94, help="of the peak, from cycle to cycle")
    parser.add_argument("--floor", type=float, default=1e-6, help="least learning rate of a cycle")
    parser.add_argument("--beta-start", type=float, default=5e-7)
    parser.add_argument("--beta-end", type=float, default=1e-3)
    parser.add_argument("--hold", type=int, default=0, help="epochs at the first beta")
    parser.add_argument("--ramp-end", type=int, help="epoch from which beta stays at its end; the last by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="epochs from one measurement to the next")
    parser.add_argument("--verbose", type=int, default=0, help="print every so manieth point")
    bits = parser.add_argument_group("first bits, without sign", "left out: HGQ2's defaults")
    bits.add_argument("--weight", type=float)
    bits.add_argument("--weight-integer", type=float)
    bits.add_argument("--data", type=float, help="fractional bits of each element")
    bits.add_argument("--data-integer", type=float)
    bits.add_argument("--saturate-input", action="store_true")
    bits.add_argument("--regularizer", type=float)
    return parser.parse_args()


def main() -> None:
    """Train, and write points and front as JSON."""
    options = parse()
    rows = load_rows(options.rows)
    names = ("weight", "weight_integer", "data", "data_integer", "saturate_input", "regularizer")
    bits = Bits(**{name: getattr(options, name) for name in names})
    model = build(bits, beta=options.beta_start, seed=options.seed)
    if options.float_start:
        start_from(model, options.float_start)
    trainer = Trainer(model, options, rows)
    begin = time.perf_counter()
    points, kept = train(trainer, options)
    seconds = time.perf_counter() - begin
    front = sorted((point for point in points if is_on_front(point, points)), key=lambda point: point["ebops"])
    layers: dict[str, np.ndarray] = {}
    for epoch, (trainable, traced) in kept.items():
        assign(model, trainable, traced)
        arrays = layer_arrays(model)
        ebops = next(point["ebops"] for point in points if point["epoch"] == epoch)
        if abs(by_formula(arrays) - ebops) > len(LAYERS):  # HGQ2 keeps each layer's as an integer
            raise SystemExit(f"epoch {epoch}: {ebops} EBOPs, but {by_formula(arrays)} by the formula")
        layers |= {f"{epoch}/{name}": array for name, array in arrays.items()}
    known = np.concatenate([rows["x_train"], rows["x_validation"]])
    again = {"epoch": points[-1]["epoch"], "ebops": trace_minmax(model, known, batch_size=len(known))}
    record = {
        "peer": "hgq2",
        "versions": versions(),
        **threads(),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "bits": asdict(bits),
        "seconds": round(seconds, 1),
        "last_traced_by_hgq2": again,
        "front": front,
        "points": points,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    if options.layers:
        np.savez_compressed(options.layers, **layers)
    print(json.dumps({"seconds": record["seconds"], "last_traced_by_hgq2": again, "front": len(front)}))
    for point in front:
        print(
            f"{point['ebops']:>9} {point['validation_accuracy']:.4f} {point['test_accuracy']:.4f} {point['epoch']:>5}"
        )


if __name__ == "__main__":
    main()
