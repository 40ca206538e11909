"""Numbers about a model: accuracy, remaining weights, bit operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, layers, masking

FLOAT_BITS = 32


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
        bits_weight: bits of a weight, 32 where it is not quantized; likewise `bits_bias`, 0 without bias.
        bits_input: bits of each input.
        ebops: effective bit operations.
    """

    name: str
    weight: str
    operator: str
    shape: tuple[int, ...]
    weights: int
    nonzero: int
    bits_weight: int
    bits_bias: int
    bits_input: int
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
        operands = {layer.name: layer.node.inputs[1] for layer in layers.layers(hard.graph)}
        given = [*masking.parameters(hard.graph), *masking.buffers(hard.graph)]
        names = {str(one.value.name) for one in given}
        names |= {str(value.name) for value in masking.controls(hard.graph).values()}
        masking.harden(hard.graph)
        self._layers = layers.layers(model.graph)
        self._operands = {name: str(value.name) for name, value in operands.items() if value is not None}
        self._weights = {layer.name: str(layer.weight.name) for layer in self._layers}
        self._stored = {layer.name: graph.stored(layer.weight) for layer in self._layers}
        hard.graph.outputs[:] = [
            value for value in dict.fromkeys(operands.values()) if value is not None and not value.is_initializer()
        ]
        graph.remove_unused(hard.graph)
        hard.graph.inputs[:] = [value for value in hard.graph.initializers.values() if value.name in names]
        self._session = engine.Session(hard) if hard.graph.outputs else None

    def effective(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Each layer's weight as it enters the arithmetic: masked and rounded."""
        found: dict[str, np.ndarray] = {}
        if self._session is not None:
            names = self._session.input_names()
            found = self._session.run({name: array for name, array in values.items() if name in names})
        return {
            name: found[operand] if operand in found else values.get(self._weights[name], self._stored[name])
            for name, operand in self._operands.items()
        }

    def costs(self, values: Mapping[str, np.ndarray]) -> list[LayerCost]:
        """Every layer's cost with the given parameter values."""
        effective = self.effective(values)
        return [layer_cost(layer, effective[layer.name]) for layer in self._layers]


def layer_cost(layer: layers.Layer, effective: np.ndarray) -> LayerCost:
    """The cost of one layer whose weight acts as `effective`.

    EBOPs count each weight that is not zero once, as one multiplier of (input bits) x (weight bits), and the bias
    bits once per output; a width is k + i + f, the sign bit included, as PQuant counts. A dense layer that is applied
    at several positions is counted once, like a convolution: one multiplier per weight.
    """
    bits_input = quantizer_bits(layer.data, activation=True)
    bits_weight = quantizer_bits(layer.node.inputs[1])
    bits_bias = 0 if layer.bias is None else quantizer_bits(_bias_operand(layer))
    nonzero = int(np.count_nonzero(effective))
    outputs = effective.shape[layer.output_axis] * _positions(layer)
    return LayerCost(
        layer.name,
        str(layer.weight.name),
        layer.node.op_type,
        tuple(effective.shape),
        effective.size,
        nonzero,
        bits_weight,
        bits_bias,
        bits_input,
        nonzero * bits_input * bits_weight + bits_bias * outputs,
    )


def _bias_operand(layer: layers.Layer) -> ir.Value | None:
    assert layer.bias_add is not None and layer.bias_index is not None
    return layer.bias_add.inputs[layer.bias_index]


def _positions(layer: layers.Layer) -> int:
    """How many places one filter is applied at: 1 for a dense layer."""
    shape = layer.output.shape
    if layer.node.op_type != "Conv" or shape is None:
        return 1
    return int(np.prod([dim if isinstance(dim, int) else 1 for dim in shape.dims[2:]]))


def quantizer_bits(value: ir.Value | None, *, activation: bool = False) -> int:
    """The width of the quantizer that `value` comes from, through masks and what only moves values."""
    while value is not None and value.producer() is not None:
        node = value.producer()
        assert node is not None
        if layers.is_quant(node):
            grid = layers.grid(node)
            return FLOAT_BITS if grid is None else int(grid.bits.max())
        passes_grid = layers.applies_mask(node) or (activation and node.op_type in layers.MOVES)
        if not passes_grid:
            return FLOAT_BITS
        value = node.inputs[0]
    return FLOAT_BITS


def keep_ratio(costs: list[LayerCost], before: list[LayerCost] | None = None) -> float:
    """The share of weights that are not zero, a weight that several layers share counted once.

    Args:
        costs: the layers.
        before: the layers as they were before channels were taken out, where that was done.
    """
    left = {cost.weight: cost.nonzero for cost in costs}
    there = {cost.weight: cost.weights for cost in before or costs}
    return sum(left.values()) / max(sum(there.values()), 1)


def ebops(costs: list[LayerCost]) -> int:
    """Effective bit operations of the network."""
    return sum(cost.ebops for cost in costs)
