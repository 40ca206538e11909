from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import batch_norm, graph, layers, library
from pqc.blocks import BlockWriter
from pqc.functions.batch_norm import FOLDED_BIAS, FOLDED_GAIN, FOLDED_WEIGHT
from pqc.functions.operator import Operator
from pqc.passes.fold_batchnorm import obstacle
from pqc.rewriting import Meaning, Pass, close, explain
from pqc.trained_constants import GAIN, SHIFT


@dataclass(frozen=True)
class TrainBatchNorm(Pass):
    """Make batch normalization factors and terms that follow statistics.

    BatchNormalization(layer(x, W, b)) → layer(x, FoldedWeight(W, gamma, var), FoldedBias(beta, gamma, mean - b, var)):
    what quantizers round is the weight that the clean model has. Where no layer takes it →
    x · FoldedGain(gamma, var) + FoldedBias(beta, gamma, mean, var).
    gamma and beta are trained; mean and var are states, which follow the batches where attach-statistics measures them.
    Leaves what is in training mode, has computed parameters or an unknown rank.
    """

    title: ClassVar[str] = "train-batchnorm"
    meaning: ClassVar[Meaning] = close(1e-5)

    def rewrite(self, model: ir.Model) -> int:
        norms = [node for node in model.graph if node.op_type == "BatchNormalization" and not node.domain]
        changed = sum(_train(model.graph, node) for node in norms)
        if changed:
            graph.remove_unused(model.graph)
            library.link(model)
        return changed


def _train(main: ir.Graph, norm: ir.Node) -> bool:
    constants = [graph.constant(value) for value in norm.inputs[1:5]]
    computed = any(array is None for array in constants)
    if norm.attributes.get_int("training_mode", 0) or computed or graph.operand(norm, 0).shape is None:
        explain(norm, "left alone: it is in training mode, its parameters are computed, or its rank is not known")
        return False
    layer = next((one for one in layers.layers(main) if one.output is norm.inputs[0]), None)
    reason = obstacle(norm, layer, constants)
    if layer is None or reason is not None:
        explain(norm, f"a factor and a term by themselves: {reason}")
        _Writer(main, norm, norm).alone()
    else:
        explain(layer.node, f"takes batch normalization '{norm.name}'")
        _Writer(main, norm, layer.node).into(layer)
    main.remove(norm, safe=True)
    return True


class _Writer:
    """Writes one batch normalization with its statistics.

    Args:
        main: the graph.
        norm: the node that goes.
        place: what the factor and the term come before.
    """

    def __init__(self, main: ir.Graph, norm: ir.Node, place: ir.Node) -> None:
        self.main, self.norm, self.place = main, norm, place
        self.make = batch_norm.Maker(main, str(norm.name))
        parts = ("gain", "bias", "mean", "variance")
        self.gain, self.bias, self.mean, self.variance = (self._own(1 + i, part) for i, part in enumerate(parts))

    def _own(self, index: int, part: str) -> ir.Value:
        """A parameter that nothing else reads: exporters store equal ones once."""
        value = graph.operand(self.norm, index)
        if len(value.uses()) == 1 and not value.is_graph_output():
            return value
        return graph.add_initializer(self.main, self.make.names.new(f"{self.norm.name}.{part}"), graph.stored(value))

    def into(self, layer: layers.Layer) -> None:
        """The factor on the layer's weight, the term as its bias; what is normalized has no bias then."""
        weight, bias, result = layer.weight, layer.bias, layer.output
        shape = graph.dims(weight)
        form = [1] * len(shape)
        form[layer.output_axis] = -1
        factor = self._fold(FOLDED_WEIGHT, [weight, self.gain, self.variance], form, shape)
        if bias is not None:
            graph.set_initializer(self.mean, graph.stored(self.mean) - graph.stored(bias))
        term = self._term([-1], graph.dims(self.bias))
        layer.node.replace_input_with(1, factor)
        if layer.bias_add is not None and layer.bias_index is not None:
            layer.bias_add.replace_input_with(layer.bias_index, term)
        elif layer.node.op_type == "MatMul":
            result = self._add(result, term)
        else:
            layer.node.resize_inputs(3)
            layer.node.replace_input_with(2, term)
        graph.replace(self.norm.outputs[0], result)

    def alone(self) -> None:
        """x · factor + term."""
        x, write = graph.operand(self.norm, 0), BlockWriter(self.main, self.norm)
        assert x.shape is not None
        ones = [1] * (len(x.shape) - 2)
        form, shape = [-1, *ones], [*graph.dims(self.gain), *ones]
        factor, term = self._fold(FOLDED_GAIN, [self.gain, self.variance], form, shape), self._term(form, shape)
        scaled = write.add("Mul", [x, factor], GAIN, trains=GAIN)
        result = write.add("Add", [scaled, term], SHIFT, trains=SHIFT)
        scaled.shape = result.shape = x.shape
        graph.replace(self.norm.outputs[0], result)

    def _term(self, form: Sequence[int], shape: Sequence[int]) -> ir.Value:
        return self._fold(FOLDED_BIAS, [self.bias, self.gain, self.mean, self.variance], form, shape)

    def _fold(
        self, operator: Operator, inputs: Sequence[ir.Value], form: Sequence[int], shape: Sequence[int]
    ) -> ir.Value:
        attributes = {"form": list(form), "epsilon": self.norm.attributes.get_float("epsilon", 1e-5)}
        node = self.make.add(self.place, operator.key, inputs, operator.function.name, [shape], attributes)
        node.outputs[0].name = self.make.names.new(f"{inputs[0].name}.folded")
        node.metadata_props[batch_norm.MOMENTUM] = repr(self.norm.attributes.get_float("momentum", 0.9))
        return node.outputs[0]

    def _add(self, product: ir.Value, term: ir.Value) -> ir.Value:
        """The bias behind a MatMul that had none."""
        name = self.make.names.new(f"{self.place.name}.bias")
        output = ir.val(self.make.names.new(f"{name}.out"), product.dtype, product.shape)
        self.main.insert_after(self.place, ir.node("Add", [product, term], name=name, outputs=[output]))
        return output
