from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers
from pqc.functions.fixed import FIXED_POINT
from pqc.functions.learned import NEEDED_FROM, PARAMETER_BITS, STEP_WIDTH
from pqc.functions.operator import PENALTY
from pqc.mask_sites import method_of
from pqc.names import BUFFERS, THETA, layout
from pqc.rewriting import Meaning, Pass, close


BATCHED = {one.key for one in (FIXED_POINT, PARAMETER_BITS, STEP_WIDTH, NEEDED_FROM)}
"""What treats every element by itself, beside the methods' masks."""


@dataclass(frozen=True)
class BatchParameters(Pass):
    """Apply to all parameters at once what each layer does to its own.

    W_i · mask(s_i) → FixedPoint for each layer i → the same on the slices of theta that hold all W and all s, cut
    into layers afterwards: the number of nodes does not grow with the number of layers. Learned bits likewise, with
    those that are states.
    Leaves operators that are not elementwise alone, and parameters that are treated differently from the others.
    For the training step only.
    """

    title: ClassVar[str] = "batch-parameters"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        if THETA not in model.graph.initializers:
            return 0
        batcher = _Batcher(model.graph)
        batched = batcher.run({vector: [name for name, _, _ in layout(model, vector)] for vector in (THETA, BUFFERS)})
        if batched:
            graph.remove_unused(model.graph)
            model.graph.sort()
        return batched


@dataclass
class _Bundle:
    """Values of the layers, and the one flat value that holds them end to end."""

    lanes: list[ir.Value]
    flat: ir.Value

    @property
    def sizes(self) -> list[int]:
        return [math.prod(graph.dims(lane)) for lane in self.lanes]


class _Batcher:
    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.names = graph.Names(main)
        self.bundles: list[_Bundle] = []
        self.new_nodes: list[ir.Node] = []
        self.done: set[ir.Node] = set()
        self.anchor = next((node for node in main if _slices(node, main, THETA)), None)

    def run(self, vectors: Mapping[str, list[str]]) -> int:
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
        if not merged:
            return 0
        for bundle in self.bundles:
            self._cut(bundle)
        self.main.insert_after(self.anchor, self.new_nodes)
        return merged

    def _slice_by_recipe(self, vector: str, values: list[ir.Value]) -> None:
        """Bundles of neighbours in a vector that are treated alike."""
        runs: list[tuple[Hashable, list[ir.Value]]] = []
        for value in values:
            recipe = tuple(sorted(str(_key(node, index)) for node, index in value.uses()))
            if not runs or runs[-1][0] != recipe:
                runs.append((recipe, []))
            runs[-1][1].append(value)
        flats = [ir.val(self.names.new(f"{lanes[0].name}.all"), ir.DataType.FLOAT) for _, lanes in runs]
        bundles = [_Bundle(lanes, flat) for (_, lanes), flat in zip(runs, flats, strict=True)]
        for bundle in bundles:
            bundle.flat.shape = ir.Shape([sum(bundle.sizes)])
        self.bundles += bundles
        sizes = self._constant(f"{vector}.runs", np.array([sum(bundle.sizes) for bundle in bundles], np.int64))
        self._add("Split", [self.main.initializers[vector], sizes], flats, f"{vector}.slices", {"axis": 0})

    def _advance(self, bundle: _Bundle) -> int:
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

    def _merge(self, bundle: _Bundle, nodes: list[ir.Node]) -> int:
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
        outputs = [
            ir.val(self.names.new(f"{output.name}.all"), ir.DataType.FLOAT, shape) for output in first.outputs
        ]
        self._add(first.op_type, inputs, outputs, f"{first.name}.all", attributes, first.domain)
        if scalar:
            self._share(outputs[0], nodes)
            return len(nodes)
        for index, output in enumerate(outputs):
            self.bundles.append(_Bundle([node.outputs[index] for node in nodes], output))
        return len(nodes)

    def _operand(self, values: list[ir.Value | None], bundle: _Bundle) -> ir.Value | None:
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
        return self._constant(f"{known[0].name}.all", np.asarray(repeated, np.float32))

    def _gathered(self, values: list[ir.Value]) -> ir.Value:
        """The values end to end."""
        flat = self._constant(f"{values[0].name}.flat", np.array([-1], np.int64))
        pieces = []
        for value in values:
            piece = ir.val(self.names.new(f"{value.name}.piece"), ir.DataType.FLOAT, [math.prod(graph.dims(value))])
            self._add("Reshape", [value, flat], [piece], f"{value.name}.piece", {})
            pieces.append(piece)
        whole = ir.val(self.names.new(f"{values[0].name}.all"), ir.DataType.FLOAT)
        self._add("Concat", pieces, [whole], f"{values[0].name}.all", {"axis": 0})
        return whole

    def _share(self, total: ir.Value, nodes: list[ir.Node]) -> None:
        """Put the sum of all penalties where the first was, and zero where the others were."""
        zero = self._constant("penalty.zero", np.zeros((), np.float32))
        for number, node in enumerate(nodes):
            node.outputs[0].replace_all_uses_with(zero if number else total)

    def _cut(self, bundle: _Bundle) -> None:
        """Give the lanes that are still read their slices."""
        if not any(lane.uses() for lane in bundle.lanes):
            return
        pieces = [bundle.flat]
        if len(bundle.lanes) > 1:
            pieces = [
                ir.val(self.names.new(f"{lane.name}.piece"), ir.DataType.FLOAT, [size])
                for lane, size in zip(bundle.lanes, bundle.sizes, strict=True)
            ]
            sizes = self._constant(f"{bundle.flat.name}.sizes", np.array(bundle.sizes, np.int64))
            self._add("Split", [bundle.flat, sizes], pieces, f"{bundle.flat.name}.split", {"axis": 0})
        for lane, piece in zip(bundle.lanes, pieces, strict=True):
            form = graph.dims(lane)
            if len(form) == 1:
                lane.replace_all_uses_with(piece)
                continue
            shape = self._constant(f"{lane.name}.form", np.array(form, np.int64))
            output = ir.val(self.names.new(f"{lane.name}.cut"), ir.DataType.FLOAT, lane.shape)
            self._add("Reshape", [piece, shape], [output], f"{lane.name}.cut", {})
            lane.replace_all_uses_with(output)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return graph.add_initializer(self.main, self.names.new(name), array)

    def _add(
        self,
        operator: str,
        inputs: list[ir.Value],
        outputs: list[ir.Value],
        name: str,
        attributes: dict[str, object],
        domain: str = "",
    ) -> None:
        node = ir.node(operator, inputs, attributes, domain=domain, name=self.names.new(name), outputs=outputs)
        self.new_nodes.append(node)


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
