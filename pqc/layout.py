"""The layout in which pruning methods see a weight: outputs first, [outputs, inputs of a group, kernel…]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a stored weight becomes [outputs, inputs, kernel…]: a reshape, a transposition, a reshape.

    Args:
        stored: the weight's shape.
        split: the shape before the transposition.
        order: the transposition.
        shape: the shape that methods see.
    """

    stored: Shape
    split: Shape
    order: Shape
    shape: Shape

    @property
    def plain(self) -> bool:
        """Whether the weight is stored as methods see it."""
        return self.stored == self.shape and self.order == tuple(range(len(self.order)))

    def seen(self, array: np.ndarray) -> np.ndarray:
        """The stored `array` as methods see it."""
        return np.asarray(array.reshape(self.split).transpose(self.order).reshape(self.shape))

    def back(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `seen`, for an array that broadcasts to the seen shape."""
        turned = tuple(self.split[axis] for axis in self.order)
        full = np.broadcast_to(array, self.shape).reshape(turned)
        return np.asarray(full.transpose(self._inverse()).reshape(self.stored))

    def seen_nodes(self, value: ir.Value, main: ir.Graph, names: graph.Names) -> tuple[list[ir.Node], ir.Value]:
        """Nodes that turn the stored `value` into what methods see."""
        if self.plain:
            return [], value
        return self._nodes(value, (self.split, self.order, self.shape), main, names)

    def back_nodes(self, value: ir.Value, main: ir.Graph, names: graph.Names) -> tuple[list[ir.Node], ir.Value]:
        """Nodes that turn `value`, of the seen shape or one that broadcasts to it, into the stored layout."""
        if self.plain:
            return [], value
        wide, value = self._expanded(value, main, names)
        turned = tuple(self.split[axis] for axis in self.order)
        nodes, value = self._nodes(value, (turned, self._inverse(), self.stored), main, names)
        return [*wide, *nodes], value

    def _inverse(self) -> Shape:
        return tuple(int(axis) for axis in np.argsort(self.order))

    def _expanded(self, value: ir.Value, main: ir.Graph, names: graph.Names) -> tuple[list[ir.Node], ir.Value]:
        flat = value.shape is not None and len(value.shape) == 0
        if len(self.split) == len(self.shape) and not flat:
            return [], value  # a transposition alone keeps a shape that broadcasts
        shape = graph.add_initializer(main, names.new(f"{value.name}.wide.shape"), np.array(self.shape, np.int64))
        node = _node("Expand", [value, shape], {}, f"{value.name}.wide", names)
        return [node], node.outputs[0]

    def _nodes(
        self, value: ir.Value, steps: tuple[Shape, Shape, Shape], main: ir.Graph, names: graph.Names
    ) -> tuple[list[ir.Node], ir.Value]:
        before, order, after = steps
        nodes = []
        if len(before) != len(after):
            nodes.append(_reshape(value, before, main, names))
            value = nodes[-1].outputs[0]
        nodes.append(_node("Transpose", [value], {"perm": order}, f"{value.name}.turned", names))
        value = nodes[-1].outputs[0]
        if len(before) != len(after):
            nodes.append(_reshape(value, after, main, names))
        return nodes, nodes[-1].outputs[0]


def layout_of(operator: str, shape: Shape, output_axis: int, groups: int = 1) -> Layout:
    """The layout of a weight.

    Args:
        operator: Conv, ConvTranspose, MatMul or Gemm.
        shape: as it is stored.
        output_axis: the axis that counts outputs.
        groups: of a ConvTranspose, whose weight counts the outputs of one group only.
    """
    axis = output_axis % len(shape)
    if operator == "ConvTranspose" and groups > 1:
        inputs, outputs, *kernel = shape
        split = (groups, inputs // groups, outputs, *kernel)
        seen = (groups * outputs, inputs // groups, *kernel)
        return Layout(shape, split, (0, 2, 1, *range(3, len(split))), seen)
    order = (axis, *(other for other in range(len(shape)) if other != axis))
    return Layout(shape, shape, order, tuple(shape[other] for other in order))


def _reshape(value: ir.Value, shape: Shape, main: ir.Graph, names: graph.Names) -> ir.Node:
    form = graph.add_initializer(main, names.new(f"{value.name}.form"), np.array(shape, np.int64))
    return _node("Reshape", [value, form], {}, f"{value.name}.formed", names)


def _node(
    operator: str,
    inputs: list[ir.Value],
    attributes: dict[str, object],
    name: str,
    names: graph.Names,
) -> ir.Node:
    output = ir.val(names.new(f"{name}.out"), ir.DataType.FLOAT)
    return ir.node(operator, inputs, attributes, name=names.new(name), outputs=[output])
