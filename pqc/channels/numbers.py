"""What nodes say about their channels in numbers: groups, sizes, bounds. A rewrite of each for what stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.channels.atoms import Channels
from pqc.channels.moves import slices


@dataclass(frozen=True)
class Numbers:
    """Rewrites the numbers of nodes, before anything is cut.

    Args:
        main: the graph.
        found: its channels.
        kept: for every atom whether it stays.
        names: of the graph.
    """

    main: ir.Graph
    found: Channels
    kept: np.ndarray
    names: graph.Names

    def rewrite(self, node: ir.Node) -> None:
        """Let `node` say what fits the channels that stay."""
        if not node.domain and node.op_type in _REWRITES:
            _REWRITES[node.op_type](self, node)

    def stays(self, value: ir.Value | None, place: int) -> np.ndarray | None:
        """Which positions of an axis stay; None where its length is not known."""
        axes = self.found.of(value)
        axis = None if axes is None else axes[place]
        return None if axis is None else self.kept[axis.atoms]

    def write(self, node: ir.Node, index: int, numbers: list[int]) -> None:
        """Let `node` read new integers; the old ones may have other readers."""
        old = node.inputs[index] if index < len(node.inputs) else None
        name = f"{node.name}.sizes" if old is None else str(old.name)
        value = graph.add_initializer(self.main, self.names.new(name), np.array(numbers, np.int64))
        node.resize_inputs(max(len(node.inputs), index + 1))
        node.replace_input_with(index, value)


def _groups(numbers: Numbers, node: ir.Node) -> None:
    groups, stay = node.attributes.get_int("group", 1), numbers.stays(node.inputs[0], 1)
    if groups > 1 and stay is not None and not stay.all():
        node.attributes["group"] = ir.AttrInt64("group", int(stay.reshape(groups, -1)[:, 0].sum()))


def _reshape(numbers: Numbers, node: ir.Node) -> None:
    target = numbers.found.numbers(node.inputs[1])
    if target is None:
        return
    sizes = [_size(numbers, node, place, size) for place, size in enumerate(target)]
    if sizes != target:
        numbers.write(node, 1, sizes)


def _size(numbers: Numbers, node: ir.Node, place: int, size: int) -> int:
    """-1 says the new size too, and so does 0 where the input's axis of that place shrinks alike."""
    after = numbers.stays(node.outputs[0], place)
    if size == -1 or after is None:
        return size
    left = int(after.sum())
    if size == 0:
        before = numbers.stays(node.inputs[0], place)
        return 0 if before is not None and before.sum() == left else left
    return left


def _split(numbers: Numbers, node: ir.Node) -> None:
    stays = [numbers.stays(value, node.attributes.get_int("axis", 0)) for value in node.outputs]
    known = [stay for stay in stays if stay is not None]
    if len(known) == len(stays) and not all(stay.all() for stay in known):
        numbers.write(node, 1, [int(stay.sum()) for stay in known])
        node.attributes.pop("num_outputs", None)


def _slice(numbers: Numbers, node: ir.Node) -> None:
    parts = slices(numbers.found, node)
    if parts is None:
        return
    starts, ends = ((numbers.found.numbers(node.inputs[index]) or []) for index in (1, 2))
    before = [*starts, *ends]
    for number, (place, part) in enumerate(parts.items()):
        stay = numbers.stays(node.inputs[0], place)
        if stay is not None and not stay.all():
            starts[number] = int(stay[: part.start].sum())
            ends[number] = starts[number] + int(stay[part].sum())
    if [*starts, *ends] != before:
        numbers.write(node, 1, starts)
        numbers.write(node, 2, ends)


_REWRITES = {"Conv": _groups, "ConvTranspose": _groups, "Reshape": _reshape, "Split": _split, "Slice": _slice}
