"""Softmaxes and normalizations that passes have written out: which nodes belong together, and what each gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.trained_constants import GAIN, SHIFT, TRAINS

BLOCK, PART = "pqc.block", "pqc.part"
"""Keys of a node's metadata: the name of what was written out, and the part of it that the node gives."""
SOFTMAX_PARTS = ("difference", "exp", "sum", "inverse")
NORM_PARTS = ("mean", "centered", "square", "variance", "inverse", "normalized")
PARTS = tuple(dict.fromkeys((*SOFTMAX_PARTS, *NORM_PARTS)))
"""What quantizers of their own can round inside a block."""
CONSTANTS = {GAIN: "weight", SHIFT: "bias"}


@dataclass
class Block:
    """The nodes that one operator became.

    Args:
        name: the operator's name.
        nodes: in the order of the graph; the first reads what enters, the last gives the result.
        parts: values inside by the name of the part, with the constants `weight` and `bias` where it has them.
    """

    name: str
    nodes: list[ir.Node] = field(default_factory=list)
    parts: dict[str, ir.Value] = field(default_factory=dict)

    @property
    def node(self) -> ir.Node:
        """The first node."""
        return self.nodes[0]

    @property
    def data(self) -> ir.Value:
        """What enters."""
        return graph.operand(self.node, 0)

    @property
    def output(self) -> ir.Value:
        """The result."""
        return self.nodes[-1].outputs[0]

    def excluded(self, patterns: tuple[str, ...]) -> bool:
        """Whether one of the shell patterns matches the name."""
        return any(fnmatchcase(self.name, pattern) for pattern in patterns)


def blocks(main: ir.Graph) -> list[Block]:
    """What was written out, in the order of the graph."""
    found: dict[str, Block] = {}
    for node in main:
        name = node.metadata_props.get(BLOCK)
        if name is None:
            continue
        block = found.setdefault(name, Block(name))
        block.nodes.append(node)
        if PART in node.metadata_props:
            block.parts[node.metadata_props[PART]] = node.outputs[0]
        constant = layers.source(node.inputs[1]) if TRAINS in node.metadata_props else None
        if constant is not None:
            block.parts[CONSTANTS[node.metadata_props[TRAINS]]] = constant
    return list(found.values())


class BlockWriter:
    """Writes an operator out as nodes before it.

    Args:
        main: the graph.
        origin: the operator, whose name the block gets.
    """

    def __init__(self, main: ir.Graph, origin: ir.Node) -> None:
        self.main = main
        self.origin = origin
        self.names = graph.Names(main)

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        title: str,
        *,
        trains: str | None = None,
    ) -> ir.Value:
        """The result of a new node.

        Args:
            operator: a standard one.
            inputs: what it reads.
            title: one of `PARTS`, or what to call it.
            trains: the role of its second input, if that is a constant to train.
        """
        name = self.names.new(f"{self.origin.name}.{title}")
        output = ir.val(self.names.new(f"{name}.out"), ir.DataType.FLOAT)
        node = ir.node(operator, inputs, name=name, outputs=[output])
        node.metadata_props[BLOCK] = str(self.origin.name)
        if title in PARTS:
            node.metadata_props[PART] = title
        if trains is not None:
            node.metadata_props[TRAINS] = trains
        self.main.insert_before(self.origin, node)
        return output

    def constant(self, array: object, title: str) -> ir.Value:
        """An initializer."""
        return graph.add_initializer(self.main, self.names.new(f"{self.origin.name}.{title}"), np.asarray(array))
