"""Numbers about a model: accuracy, remaining weights, bit operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, library, masking
from pqc.ebops import Counter


def metric(loss: str, output: np.ndarray, target: np.ndarray, threshold: float = 0.0) -> float:
    """Accuracy for classifiers, minus the mean squared error for regressions: larger is better.

    Args:
        loss: the loss that the model is trained with.
        output: [rows, ...] logits, probabilities or predictions.
        target: [rows, ...] class numbers, zeros and ones, or values.
        threshold: where a binary decision flips; see `threshold`.
    """
    if loss == "cross-entropy":
        return float((output.argmax(axis=-1) == target).mean())
    if loss == "binary-cross-entropy":
        return float(((output > threshold) == (target > 0.5)).mean())
    return -float(np.square(output.astype(np.float64) - target).mean())


def threshold(main: ir.Graph) -> float:
    """Where a binary decision on the first output flips: at one half behind a sigmoid, at zero for logits."""
    head = main.outputs[0].producer()
    return 0.5 if head is not None and head.op_type == "Sigmoid" and not head.domain else 0.0


def metric_name(loss: str) -> str:
    """What `metric` returns for a loss."""
    return "accuracy" if loss in ("cross-entropy", "binary-cross-entropy") else "negative_mse"


@dataclass(frozen=True)
class LayerCost:
    """One layer in numbers.

    Args:
        name: the layer's.
        weight: the name of its weight, which layers may share.
        operator: MatMul, Gemm or Conv.
        shape: of the weight.
        weights: how many there are.
        nonzero: how many are not zero once masked and rounded.
        bits_weight: mean bits of the weights that are left, 32 where they are not quantized; likewise `bits_bias`, 0
            without bias.
        bits_input: mean bits of the inputs.
        ebops: effective bit operations.
    """

    name: str
    weight: str
    operator: str
    shape: tuple[int, ...]
    weights: int
    nonzero: int
    bits_weight: float
    bits_bias: float
    bits_input: float
    ebops: int

    def record(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "shape": list(self.shape)}


class Probe:
    """Costs of a compressible or clean graph for any values of its parameters.

    Args:
        model: not changed; learned masks are read as their hard masks.
    """

    def __init__(self, model: ir.Model) -> None:
        hard = graph.copy(model)
        given = [*masking.parameters(hard.graph), *masking.buffers(hard.graph)]
        names = {str(one.value.name) for one in given}
        names |= {str(value.name) for value in masking.controls(hard.graph).values()}
        self._layers = layers.layers(hard.graph)
        counter = Counter(hard.graph, nonzero=True)
        self._terms = {layer.name: counter.layer(layer) for layer in self._layers}
        operands = {layer.name: graph.operand(layer.node, layers.WEIGHT_INPUT) for layer in self._layers}
        self._operands = {name: str(value.name) for name, value in operands.items()}
        terms = [value for one in self._terms.values() for value in vars(one).values() if value is not None]
        wanted = list(dict.fromkeys([*operands.values(), *terms]))
        self._stored = {str(value.name): graph.stored(value) for value in wanted if value.is_initializer()}
        hard.graph.outputs[:] = [value for value in wanted if not value.is_initializer()]
        masking.harden(hard.graph)
        library.link(hard)
        hard.graph.inputs[:] = [value for value in hard.graph.initializers.values() if value.name in names]
        self._session = engine.Session(hard) if hard.graph.outputs else None

    def effective(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Each layer's weight as it enters the arithmetic: masked and rounded."""
        found = self._found(values)
        return {name: found[operand] for name, operand in self._operands.items()}

    def costs(self, values: Mapping[str, np.ndarray]) -> list[LayerCost]:
        """Every layer's cost with the given parameter values."""
        found = self._found(values)
        return [self._cost(layer, found) for layer in self._layers]

    def _found(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights, widths and costs by their names in the graph."""
        found = {**self._stored, **{name: values[name] for name in self._stored if name in values}}
        if self._session is not None:
            names = self._session.input_names()
            found |= self._session.run({name: array for name, array in values.items() if name in names})
        return found

    def _cost(self, layer: layers.Layer, found: Mapping[str, np.ndarray]) -> LayerCost:
        terms = {name: found[str(value.name)] for name, value in vars(self._terms[layer.name]).items() if value}
        effective = found[self._operands[layer.name]]
        left = terms["weight"][effective != 0]
        return LayerCost(
            layer.name,
            str(layer.weight.name),
            layer.node.op_type,
            tuple(effective.shape),
            effective.size,
            int(np.count_nonzero(effective)),
            _mean(left if left.size else terms["weight"]),
            _mean(terms["bias"]) if "bias" in terms else 0,
            _mean(terms["data"]),
            round(float(terms["products"]) + float(terms.get("additions", 0.0))),
        )


def _mean(widths: np.ndarray) -> float:
    """A mean width, a whole number where it is one."""
    mean = float(widths.mean(dtype=np.float64)) if widths.size else 0.0
    return int(mean) if mean == int(mean) else mean


def keep_ratio(costs: list[LayerCost], before: list[LayerCost] | None = None) -> float:
    """The share of weights that are not zero, a weight that several layers share counted once.

    Args:
        costs: the layers.
        before: the layers as they were before channels were taken out, where that was done.
    """
    left = {cost.weight: cost.nonzero for cost in costs}
    return sum(left.values()) / max(weights(before or costs), 1)


def weights(costs: list[LayerCost]) -> int:
    """How many weights there are, a weight that several layers share counted once."""
    return sum({cost.weight: cost.weights for cost in costs}.values())


def ebops(costs: list[LayerCost]) -> int:
    """Effective bit operations of the network."""
    return sum(cost.ebops for cost in costs)
