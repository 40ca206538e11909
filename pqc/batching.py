"""Equal operations on the parameters of all layers, put into one on the vector that holds them end to end."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.functions.fixed import FIXED_POINT
from pqc.functions.learned import NEEDED_FROM, PARAMETER_BITS, SHIFT_ROUND, STEP_WIDTH
from pqc.functions.operator import PENALTY
from pqc.mask_sites import method_of
from pqc.names import THETA

BATCHED = {one.key for one in (FIXED_POINT, PARAMETER_BITS, SHIFT_ROUND, STEP_WIDTH, NEEDED_FROM)}
"""What treats every element by itself, beside the methods' masks."""


@dataclass
class Bundle:
    """Values of the layers, and the one flat value that holds them end to end."""

    lanes: list[ir.Value]
    flat: ir.Value

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each lane."""
        return [math.prod(graph.dims(lane)) for lane in self.lanes]


class Batcher:
    """Finds what is done to all lanes alike, from the slices of a vector onward.

    Args:
        main: the graph; it changes when `finish` is called.
    """

    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.names = graph.Names(main)
        self.bundles: list[Bundle] = []
        self.new_nodes: list[ir.Node] = []
        self.done: set[ir.Node] = set()
        self.anchor = next((node for node in main if _slices(node, main, THETA)), None)

    def batch(self, vectors: Mapping[str, list[str]]) -> int:
        """Batch from the slices of the vectors onward; return how many nodes were merged into others."""
        by_name = {value.name: value for value in graph.values(self.main)}
        if self.anchor is None or any(name not in by_name for name in vectors[THETA]):
            return 0
        for vector, names in vectors.items():
            if vector in self.main.initializers and all(name in by_name for name in names):
                self._slice_by_recipe(vector, [by_name[name] for name in names])
        merged = 0
        # A product waits for its mask's bundle, so bundles are gone through until none gets further.
        while progress := sum(self._advance(bundle) for bundle in list(self.bundles)):
            merged += progress
        return merged

    def finish(self) -> None:
        """Put the new nodes into the graph, and give the lanes that are still read their slices."""
        self._join()
        for bundle in self.bundles:
            self._cut(bundle)
        assert self.anchor is not None
        self.main.insert_after(self.anchor, self.new_nodes)

    def _slice_by_recipe(self, vector: str, values: list[ir.Value]) -> None:
        """Bundles of neighbours in a vector that are treated alike."""
        runs: list[tuple[Hashable, list[ir.Value]]] = []
        for value in values:
            recipe = tuple(sorted(str(_key(node, index)) for node, index in value.uses()))
            if not runs or runs[-1][0] != recipe:
                runs.append((recipe, []))
            runs[-1][1].append(value)
        flats = [ir.val(self.names.new(f"{lanes[0].name}.all"), ir.DataType.FLOAT) for _, lanes in runs]
        bundles = [Bundle(lanes, flat) for (_, lanes), flat in zip(runs, flats, strict=True)]
        for bundle in bundles:
            bundle.flat.shape = ir.Shape([sum(bundle.sizes)])
        self.bundles += bundles
        sizes = self.constant(f"{vector}.runs", np.array([sum(bundle.sizes) for bundle in bundles], np.int64))
        self.add("Split", [self.main.initializers[vector], sizes], flats, f"{vector}.slices", {"axis": 0})

    def _advance(self, bundle: Bundle) -> int:
        """Batch what reads the bundle's lanes, if it is the same for all of them."""
        if len(bundle.lanes) < 2:
            return 0
        merged = 0
        for node, index in list(bundle.lanes[0].uses()):
            rows = [
                [n for n, i in lane.uses() if (i, _key(n, i)) == (index, _key(node, index))] for lane in bundle.lanes
            ]
            if index != 0 or node in self.done or _key(node, index) is None or any(len(row) != 1 for row in rows):
                continue
            merged += self._merge(bundle, [row[0] for row in rows])
        return merged

    def _merge(self, bundle: Bundle, nodes: list[ir.Node]) -> int:
        inputs = [bundle.flat]
        for index in range(1, len(nodes[0].inputs)):
            value = self._operand([node.inputs[index] for node in nodes], bundle)
            if value is None:
                return 0
            inputs.append(value)
        self.done.update(nodes)
        first = nodes[0]
        attributes = {name: attribute.value for name, attribute in first.attributes.items()}
        scalar = first.domain == PENALTY.domain
        shape = ir.Shape([]) if scalar else bundle.flat.shape
        outputs = [ir.val(self.names.new(f"{output.name}.all"), ir.DataType.FLOAT, shape) for output in first.outputs]
        self.add(first.op_type, inputs, outputs, f"{first.name}.all", attributes, first.domain)
        if scalar:
            self._share(outputs[0], nodes)
            return len(nodes)
        for index, output in enumerate(outputs):
            self.bundles.append(Bundle([node.outputs[index] for node in nodes], output))
        return len(nodes)

    def _operand(self, values: list[ir.Value | None], bundle: Bundle) -> ir.Value | None:
        """One value that stands for each lane's: shared, a bundle of the same lanes, or the lanes' own end to end."""
        if all(value is values[0] for value in values):
            return values[0]
        for other in self.bundles:
            if len(other.lanes) == len(values) and all(a is b for a, b in zip(other.lanes, values, strict=True)):
                return other.flat
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        arrays = [array for value in known if (array := graph.constant(value)) is not None and array.size == 1]
        if len(arrays) < len(values):
            return self._gathered(known) if all(_is_range(value) for value in known) else None
        numbers = np.array([float(array.reshape(())) for array in arrays], np.float32)
        repeated = numbers[0] if (numbers == numbers[0]).all() else np.repeat(numbers, bundle.sizes)
        return self.constant(f"{known[0].name}.all", np.asarray(repeated, np.float32))

    def _gathered(self, values: list[ir.Value]) -> ir.Value:
        """The values end to end."""
        flat = self.constant(f"{values[0].name}.flat", np.array([-1], np.int64))
        pieces = []
        for value in values:
            piece = ir.val(self.names.new(f"{value.name}.piece"), ir.DataType.FLOAT, [math.prod(graph.dims(value))])
            self.add("Reshape", [value, flat], [piece], f"{value.name}.piece", {})
            pieces.append(piece)
        whole = ir.val(self.names.new(f"{values[0].name}.all"), ir.DataType.FLOAT)
        self.add("Concat", pieces, [whole], f"{values[0].name}.all", {"axis": 0})
        return whole

    def _share(self, total: ir.Value, nodes: list[ir.Node]) -> None:
        """Put the sum of all penalties where the first was, and zero where the others were."""
        zero = self.constant("penalty.zero", np.zeros((), np.float32))
        for number, node in enumerate(nodes):
            node.outputs[0].replace_all_uses_with(zero if number else total)

    def _join(self) -> None:
        """Where lanes are put end to end again, give the whole."""
        whole = {tuple(bundle.lanes): bundle.flat for bundle in self.bundles}
        for node in list(self.main):
            if node.op_type != "Concat" or node.domain:
                continue
            lanes = tuple(_before_reshape(value) for value in node.inputs if value is not None)
            if lanes in whole:
                graph.replace(node.outputs[0], whole[lanes])

    def _cut(self, bundle: Bundle) -> None:
        """Give the lanes that are still read their slices; neighbouring rows [1, n] are cut as such."""
        pieces = [lane for lane in bundle.lanes if lane.uses()]
        if not pieces:
            return
        flat, rows = bundle.flat, all(graph.dims(lane)[:-1] == (1,) for lane in bundle.lanes)
        if rows:
            flat = self.reshaped(flat, (1, sum(bundle.sizes)))
        parts = [flat]
        if len(bundle.lanes) > 1:
            parts = [
                ir.val(self.names.new(f"{lane.name}.piece"), ir.DataType.FLOAT, [1, size] if rows else [size])
                for lane, size in zip(bundle.lanes, bundle.sizes, strict=True)
            ]
            sizes = self.constant(f"{bundle.flat.name}.sizes", np.array(bundle.sizes, np.int64))
            self.add("Split", [flat, sizes], parts, f"{bundle.flat.name}.split", {"axis": int(rows)})
        for lane, part in zip(bundle.lanes, parts, strict=True):
            if lane.uses():
                lane.replace_all_uses_with(part if part.shape == lane.shape else self.reshaped(part, graph.dims(lane)))

    def reshaped(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """`value` in another shape."""
        form = self.constant(f"{value.name}.form", np.array(shape, np.int64))
        output = ir.val(self.names.new(f"{value.name}.cut"), ir.DataType.FLOAT, shape)
        self.add("Reshape", [value, form], [output], f"{value.name}.cut", {})
        return output

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        return graph.add_initializer(self.main, self.names.new(name), array)

    def add(
        self,
        operator: str,
        inputs: list[ir.Value],
        outputs: list[ir.Value],
        name: str,
        attributes: dict[str, object],
        domain: str = "",
    ) -> None:
        """A new node, for the graph when `finish` is called."""
        node = ir.node(operator, inputs, attributes, domain=domain, name=self.names.new(name), outputs=outputs)
        self.new_nodes.append(node)


def _before_reshape(value: ir.Value) -> ir.Value:
    node = value.producer()
    return graph.operand(node, 0) if node is not None and node.op_type == "Reshape" and not node.domain else value


def _slices(node: ir.Node, main: ir.Graph, vector: str) -> bool:
    return node.op_type == "Split" and node.inputs[0] is main.initializers.get(vector)


def _is_range(value: ir.Value) -> bool:
    """Whether it is the largest or smallest of something, which is a small vector."""
    node = value.producer()
    return node is not None and not node.domain and node.op_type in ("ReduceMax", "ReduceMin")


def _key(node: ir.Node, index: int) -> Hashable:
    """What a node does to the input `index`, or None where that cannot be done to all layers at once."""
    attributes = tuple(sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()))
    key = (node.domain, node.op_type)
    method = method_of(node) if node.domain else None
    elementwise = method is not None and method.elementwise and node.domain in (layers.MASK_DOMAIN, PENALTY.domain)
    batchable = key in BATCHED or elementwise or (not node.domain and layers.applies_mask(node))
    return (*key, index, attributes) if batchable else None
