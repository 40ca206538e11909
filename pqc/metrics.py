"""Numbers about a model: accuracy, remaining weights, bit operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, library, masking, pipeline
from pqc.conventions import DEFAULT, Convention
from pqc.ebops import Counter, Terms
from pqc.point_metrics import average_precision, neighbour_accuracy


def metric(loss: str, output: np.ndarray, target: np.ndarray, threshold: float = 0.0) -> float:
    """What `METRICS` has for the loss: larger is better.

    Args:
        loss: the loss that the model is trained with.
        output: [rows, ...] logits, probabilities or predictions; where there are more than targets, values come first.
        target: [rows, ...] class numbers, zeros and ones, or values.
        threshold: where a binary decision flips; see `threshold`.
    """
    return _of(loss).measure(output, target, threshold)


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is.

    Args:
        name: in histories and summaries.
        measure: of output, target and threshold.
        share: whether it lies between 0 and 1 and is told in per cent; otherwise it is a negative error.
    """

    name: str
    measure: Callable[[np.ndarray, np.ndarray, float], float]
    share: bool = True


def _right_class(output: np.ndarray, target: np.ndarray, _: float) -> float:
    return float((output.argmax(axis=-1) == target).mean())


def _right_side(output: np.ndarray, target: np.ndarray, threshold: float) -> float:
    return float(((output > threshold) == (target > 0.5)).mean())


def _negative_square(output: np.ndarray, target: np.ndarray, _: float) -> float:
    values = output[..., : target.shape[-1]].astype(np.float64)
    return -float(np.square(values - target).mean())


REGRESSION = Metric("negative_mse", _negative_square, share=False)
METRICS = {
    "cross-entropy": Metric("accuracy", _right_class),
    "binary-cross-entropy": Metric("accuracy", _right_side),
    "focal": Metric("average_precision", average_precision),
    "info-nce": Metric("neighbour_accuracy", neighbour_accuracy),
}
"""The metric of each loss; `REGRESSION` where there is none."""
SHARES = frozenset(one.name for one in METRICS.values() if one.share)
"""The names of metrics that are told in per cent."""


def _of(loss: str) -> Metric:
    return METRICS.get(loss, REGRESSION)


def threshold(main: ir.Graph) -> float:
    """Where a binary decision on the first output flips: at one half behind a sigmoid, at zero for logits."""
    head = main.outputs[0].producer()
    return 0.5 if head is not None and head.op_type == "Sigmoid" and not head.domain else 0.0


def metric_name(loss: str) -> str:
    """What `metric` returns for a loss."""
    return _of(loss).name


@dataclass(frozen=True)
class LayerCost:
    """One layer, or another node that costs, in numbers.

    Args:
        name: the layer's, or the node's.
        weight: the name of its weight, which layers may share; empty without.
        operator: MatMul, Gemm, Conv, or what else costs.
        shape: of the weight.
        weights: how many there are.
        nonzero: how many are not zero once masked and rounded.
        bits_weight: mean bits of the weights that are left, 32 where they are not quantized, 0 without; likewise
            `bits_bias`.
        bits_input: mean bits of the inputs.
        products: bit operations of multiplications.
        additions: bit operations of additions and look-ups.
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
    products: float
    additions: float

    @property
    def ebops(self) -> float:
        """Effective bit operations, a whole number where they are one."""
        return whole(self.products + self.additions)

    def record(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "shape": list(self.shape), "ebops": self.ebops}


class Probe:
    """Costs of a compressible or clean graph for any values of its parameters.

    Args:
        model: not changed; learned masks are read as their hard masks, and what lower-bits took apart as one.
        convention: what counts.
    """

    def __init__(self, model: ir.Model, convention: Convention = DEFAULT) -> None:
        hard = graph.copy(model)
        pipeline.run(hard, "raise-bits")
        given = [*masking.parameters(hard.graph), *masking.buffers(hard.graph)]
        names = {str(one.value.name) for one in given}
        names |= {str(value.name) for value in masking.controls(hard.graph).values()}
        layers_of = {layer.node: layer for layer in layers.layers(hard.graph)}
        terms = Counter(hard.graph, convention).count(hard.graph.outputs)
        self._counted = [_Counted.of(node, layers_of.get(node), one) for node, one in terms.items()]
        wanted = list(dict.fromkeys(value for one in self._counted for value in one.values.values()))
        self._stored = {str(value.name): graph.stored(value) for value in wanted if value.is_initializer()}
        hard.graph.outputs[:] = [value for value in wanted if not value.is_initializer()]
        masking.harden(hard.graph)
        library.link(hard)
        hard.graph.inputs[:] = [value for value in hard.graph.initializers.values() if value.name in names]
        self._session = engine.Session(hard) if hard.graph.outputs else None

    def effective(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Each layer's weight as it enters the arithmetic: masked and rounded."""
        found = self._found(values)
        return {one.name: found[str(one.values["operand"].name)] for one in self._counted if one.layer is not None}

    def costs(self, values: Mapping[str, np.ndarray]) -> list[LayerCost]:
        """The cost of every layer, and of every other node that has one, with the given parameter values."""
        found = self._found(values)
        return [one.cost(found) for one in self._counted]

    def _found(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights, widths and costs by their names in the graph."""
        found = {**self._stored, **{name: values[name] for name in self._stored if name in values}}
        if self._session is not None:
            names = self._session.input_names()
            found |= self._session.run({name: array for name, array in values.items() if name in names})
        return found


@dataclass(frozen=True)
class _Counted:
    """A node, the layer whose it is, and the values of its cost by what they are."""

    node: ir.Node
    layer: layers.Layer | None
    values: dict[str, ir.Value]

    @classmethod
    def of(cls, node: ir.Node, layer: layers.Layer | None, terms: Terms) -> _Counted:
        found = {name: value for name, value in vars(terms).items() if value is not None}
        operand = {} if layer is None else {"operand": graph.operand(node, layers.WEIGHT_INPUT)}
        return cls(node, layer, found | operand)

    @property
    def name(self) -> str:
        return self.layer.name if self.layer is not None else str(self.node.name)

    def cost(self, found: Mapping[str, np.ndarray]) -> LayerCost:
        """The cost, from all values by their names in the graph."""
        parts = {name: found[str(value.name)] for name, value in self.values.items()}
        effective = parts.get("operand", np.zeros(0))
        widths = parts.get("weight", np.zeros(0))
        left = widths[effective != 0] if self.layer is not None else widths
        return LayerCost(
            self.name,
            str(self.layer.weight.name) if self.layer is not None else "",
            self.node.op_type,
            tuple(effective.shape) if self.layer is not None else (),
            effective.size,
            int(np.count_nonzero(effective)),
            _mean(left if left.size else widths),
            _mean(parts.get("bias", np.zeros(0))),
            _mean(parts["data"]),
            whole(float(parts.get("products", 0.0))),
            whole(float(parts.get("additions", 0.0))),
        )


def _mean(widths: np.ndarray) -> float:
    """A mean width, a whole number where it is one."""
    return whole(float(widths.mean(dtype=np.float64)) if widths.size else 0.0)


def whole(number: float) -> float:
    """The number, as an integer where it is one."""
    return int(number) if number == int(number) else number


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


def ebops(costs: list[LayerCost]) -> float:
    """Effective bit operations of the network, a whole number where they are one."""
    return whole(sum(cost.ebops for cost in costs))
