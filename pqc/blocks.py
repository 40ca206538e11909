"""Softmaxes and normalizations that passes have written out: which nodes belong together, and what each gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx_ir as ir

from pqc import graph, layers
from pqc.trained_constants import GAIN, SHIFT, TRAINS
from pqc.writer import Writer

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


class BlockWriter(Writer):
    """Writes an operator out as the nodes of a block, which gets its name."""

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        title: str | None = None,
        *,
        trains: str | None = None,
        **attributes: object,
    ) -> ir.Value:
        """The result of a new node; `title` is one of `PARTS`, or what to call it."""
        output = super().add(operator, inputs, title, trains=trains, **attributes)
        output.dtype = ir.DataType.FLOAT
        node = output.producer()
        assert node is not None
        node.metadata_props[BLOCK] = str(self.origin.name)
        if title in PARTS:
            node.metadata_props[PART] = str(title)
        return output
