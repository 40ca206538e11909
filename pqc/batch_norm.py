"""Batch normalization that is trained: its statistics in a graph, and what they make of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import engine, graph
from pqc.functions.batch_norm import BATCH_STATISTICS, FOLDED_BIAS, FOLDED_GAIN, FOLDED_WEIGHT
from pqc.functions.operator import Key, Operator

MOMENTUM = "pqc.momentum"
"""The key of a factor's metadata that tells which share a running statistic keeps in a step."""
MEAN, VARIANCE = "running_mean", "running_variance"
"""The roles of statistics among the states."""


@dataclass(frozen=True)
class NormSite:
    """A batch normalization as the factor of a weight and the term of a bias.

    Args:
        factor: the FoldedWeight, or the FoldedGain where no layer takes it.
        term: the FoldedBias.
    """

    factor: ir.Node
    term: ir.Node

    @property
    def gain(self) -> ir.Value:
        """The trained factor, [channels]."""
        return graph.operand(self.term, 1)

    @property
    def mean(self) -> ir.Value:
        """The running mean of what is normalized, [channels]."""
        return graph.operand(self.term, 2)

    @property
    def variance(self) -> ir.Value:
        """The running variance, [channels]."""
        return graph.operand(self.term, 3)

    @property
    def weight(self) -> ir.Value | None:
        """The weight before its factor, behind its mask; None where no layer takes the factor."""
        return graph.operand(self.factor, 0) if is_a(self.factor, FOLDED_WEIGHT) else None

    @property
    def title(self) -> str:
        """The name of the normalization."""
        return str(self.factor.name).removesuffix(f".{self.factor.op_type}")

    @property
    def momentum(self) -> float:
        """The share that the running statistics keep in a step."""
        return float(self.factor.metadata_props[MOMENTUM])


def is_a(node: ir.Node, operator: Operator) -> bool:
    """Whether `node` is of `operator`."""
    return (node.domain, node.op_type) == operator.key


def sites(main: ir.Graph) -> Iterator[NormSite]:
    """The batch normalizations with running statistics, in the order of the graph."""
    for factor in main:
        if not is_a(factor, FOLDED_WEIGHT) and not is_a(factor, FOLDED_GAIN):
            continue
        terms = [node for node in _variance(factor).consumers() if is_a(node, FOLDED_BIAS)]
        yield from (NormSite(factor, term) for term in terms)


def _variance(factor: ir.Node) -> ir.Value:
    return graph.operand(factor, len(factor.inputs) - 1)


def statistics(main: ir.Graph) -> list[tuple[ir.Value, str]]:
    """The running statistics with their roles, in the order of the graph."""
    found = []
    for factor in main:
        if is_a(factor, FOLDED_WEIGHT) or is_a(factor, FOLDED_GAIN):
            variance = _variance(factor)
            found += [(mean, MEAN) for mean in _means(variance)] + [(variance, VARIANCE)]
    return found


def _means(variance: ir.Value) -> Iterator[ir.Value]:
    """The running mean that goes with a running variance."""
    for node in variance.consumers():
        if is_a(node, FOLDED_BIAS):
            yield graph.operand(node, 2)
        if is_a(node, BATCH_STATISTICS):
            yield graph.operand(node, 1)


def next_statistics(main: ir.Graph) -> dict[str, ir.Value]:
    """The running statistics after a batch, by their names, where the batch's own are measured."""
    measured = [node for node in main if is_a(node, BATCH_STATISTICS)]
    pairs = [(graph.operand(node, place), node.outputs[place + 1]) for node in measured for place in (1, 2)]
    return {str(old.name): new for old, new in pairs}


def stored(value: ir.Value) -> np.ndarray:
    """The array of a parameter, with its factor if it has one."""
    node = value.producer()
    return graph.stored(value) if node is None else fold(node, [graph.stored(graph.operand(node, 0))])


def fold(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """What `node`, one of `FOLDS`, makes of an array and of its other inputs as they are stored.

    Computed by the engine, so that it is what a graph computes with these numbers, bit for bit.
    """
    rest = [graph.stored(graph.operand(node, place)) for place in range(len(arrays), len(node.inputs))]
    operator = next(one for one in (FOLDED_WEIGHT, FOLDED_GAIN, FOLDED_BIAS) if is_a(node, one))
    attributes: dict[str, object] = {name: one.value for name, one in node.attributes.items()}
    attributes["form"] = tuple(node.attributes.get_ints("form"))
    return engine.call(operator.bodies()[0], [*arrays, *rest], attributes)[0]


class Maker:
    """Adds the nodes of a batch normalization.

    Args:
        main: the graph.
        title: what their names begin with.
    """

    def __init__(self, main: ir.Graph, title: str) -> None:
        self.main = main
        self.title = title
        self.names = graph.Names(main)

    def add(
        self,
        place: ir.Node,
        key: Key,
        inputs: Sequence[ir.Value],
        name: str,
        shapes: Sequence[ir.Shape | Sequence[int] | None],
        attributes: Mapping[str, object],
    ) -> ir.Node:
        """A new node before `place`, of an operator by domain and name, with one output for each of `shapes`."""
        name = self.names.new(f"{self.title}.{name}")
        outputs = [ir.val(self.names.new(f"{name}.out"), ir.DataType.FLOAT, shape) for shape in shapes]
        node = ir.node(key[1], inputs, attributes, domain=key[0], name=name, outputs=outputs)
        self.main.insert_before(place, node)
        return node
