"""The channels of a graph: an atom per channel, ties between atoms, and layers that read them.

Every axis of every value, constants included, holds an atom per position. Operators tie atoms: what adds two values
makes their channels one. A layer reads its input's channels for its output's, but where its weights are zero or the
channel is a constant that its bias can take over. What no output of the graph reaches may go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import constants, graph, layers
from pqc.shapes import infer_shapes

STAYS = 0
NAN = np.float32(np.nan)
# Where the last bit of a sum may decide about more: behind these, and behind every operator that is not ONNX's own.
ROUNDS = frozenset({"Ceil", "Floor", "QuantizeLinear", "DynamicQuantizeLinear", "Round", "Sign"})
Ints = np.ndarray


@dataclass(frozen=True)
class Axis:
    """One axis of a value.

    Args:
        atoms: the channel that each position belongs to; `STAYS` for one that cannot go.
        level: float32, the number that the whole slice at a position holds; NaN where it varies.
    """

    atoms: Ints
    level: np.ndarray

    def __len__(self) -> int:
        return len(self.atoms)

    def take(self, index: slice) -> Axis:
        """The axis of a part."""
        return Axis(self.atoms[index], self.level[index])

    def where(self, same: np.ndarray | bool) -> Axis:
        """The axis whose levels hold only where `same`."""
        return Axis(self.atoms, np.where(same, self.level, NAN))


# None for an axis of unknown length, which stays.
Axes = list[Axis | None]


@dataclass(frozen=True)
class Product:
    """A layer as a matrix from input channels to output channels.

    Args:
        node: MatMul, Gemm, Conv or ConvTranspose.
        rows: the axis of the input that it sums over.
        columns: the atoms of its outputs.
        touches: whether output `column` takes anything of input `row`: (rows, columns).
        constant: the rows with a level other than zero.
        shifts: float64, what these add to the outputs: (constant rows, columns).
        foldable: whether the bias can take the shifts over, as far as the node itself goes.
    """

    node: ir.Node
    rows: Axis
    columns: Ints
    touches: np.ndarray
    constant: np.ndarray
    shifts: np.ndarray
    foldable: bool


class Channels:
    """What is known about the channels of `model`; the rules fill it in.

    Args:
        model: not changed.
    """

    def __init__(self, model: ir.Model) -> None:
        self.exact = any(node.domain or node.op_type in ROUNDS for node in model.graph)
        self.axes: dict[ir.Value, Axes] = {}
        self.products: list[Product] = []
        self._arrays: dict[ir.Value, np.ndarray | None] = {}
        self._inferred = _shapes(model)
        self._count = STAYS + 1
        self._ties: list[tuple[Ints, Ints]] = []

    def stay(self, length: int) -> Axis:
        """An axis of which nothing goes."""
        return Axis(np.full(length, STAYS), np.full(length, NAN))

    def fresh(self, length: int) -> Axis:
        """An axis of new channels; of one channel nothing can go."""
        if length == 1:
            return self.stay(1)
        self._count += length
        return Axis(np.arange(self._count - length, self._count), np.full(length, NAN))

    def tie(self, atoms: Ints, *others: Ints) -> None:
        """Let channels stay or go together, position by position; a single one on the right goes with all."""
        for other in others:
            if other is not atoms:
                self._ties.append((atoms.reshape(-1), np.broadcast_to(other, atoms.shape).reshape(-1)))

    def pin(self, axes: Sequence[Axis | None]) -> None:
        """Let all channels of `axes` stay."""
        for axis in axes:
            if axis is not None and axis.atoms.any():
                self.tie(axis.atoms, np.array(STAYS))

    def dims(self, value: ir.Value) -> list[int | None] | None:
        """The shape of `value`, with None for what is not a number; None where even the rank is unknown."""
        shape = value.shape if value.shape is not None else self._inferred.get(str(value.name))
        return None if shape is None else [dim if isinstance(dim, int) else None for dim in shape]

    def of(self, value: ir.Value | None) -> Axes | None:
        """The axes of `value`: fresh channels for a constant, what its node gave it otherwise."""
        if value is None:
            return None
        if value in self.axes:
            return self.axes[value]
        array = self.array(value)
        dims = self.dims(value)
        if array is not None and value.is_initializer() and not value.is_graph_output():
            self.axes[value] = [self.fresh(length) for length in array.shape]
        elif dims is None:
            return None
        else:
            self.axes[value] = [None if length is None else self.stay(length) for length in dims]
        return self.axes[value]

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """What `value` holds if that is known before any input is."""
        if value is None:
            return None
        if value not in self._arrays:
            self._arrays[value] = graph.constant(value)
        return self._arrays[value]

    def numbers(self, value: ir.Value | None) -> list[int] | None:
        """The integers of a constant that says how to cut or to reshape; none of them goes."""
        array = self.array(value)
        if array is None or value is None:
            return None
        self.pin(self.of(value) or [])
        return [int(number) for number in array.reshape(-1)]

    def compute(self, node: ir.Node) -> None:
        """Note what `node` gives if its inputs are constants."""
        inputs = [self.array(value) for value in node.inputs]
        if len(node.outputs) != 1 or any(array is None for array in inputs):
            return
        result = constants.evaluate(node, inputs, exact=self.exact)
        if result is not None and not np.isnan(result).any():
            self._arrays[node.outputs[0]] = result

    def settle(self) -> tuple[np.ndarray, int]:
        """For every atom whether it stays, and how many channels go; those that must go together count once."""
        roots = _components(self._count, self._ties)
        needed = np.zeros(self._count, bool)
        needed[roots[STAYS]] = True
        reads = [
            (roots[one.columns], roots[one.rows.atoms], self._needs(one), np.zeros(len(one.columns), bool))
            for one in reversed(self.products)
        ]
        _spread(needed, reads)
        for axis in reversed([axis for axes in self.axes.values() for axis in axes if axis is not None]):
            found = roots[axis.atoms]
            if len(found) and not needed[found].any():
                # Something must stay; a constant reads nothing.
                needed[found[np.argmin(np.isnan(axis.level))]] = True
                _spread(needed, reads)
        kept = np.asarray(needed[roots])
        return kept, len(np.unique(roots[~kept]))

    def bias(self, node: ir.Node, columns: int) -> np.ndarray | None:
        """The bias of a layer as (columns), zeros where there is none; None where it is not known or not a vector."""
        layer = layers.layer_of(node)
        if layer.bias_add is None or layer.bias_index is None:
            computed = len(node.inputs) > 2 and node.inputs[2] is not None
            return None if computed else np.zeros(columns, np.float32)
        array = self.array(layer.bias_add.inputs[layer.bias_index])
        if array is None or array.size not in (1, columns):
            return None
        return np.resize(array, columns)

    def _needs(self, product: Product) -> np.ndarray:
        """(rows, columns): whether an output cannot do without an input."""
        needs = np.array(product.touches)
        needs[product.rows.level == 0] = False
        if self._folds(product):
            needs[product.constant] = False
        return needs

    def _folds(self, product: Product) -> bool:
        if not product.foldable:
            return False
        bias = self.bias(product.node, len(product.columns))
        if bias is None or not self.exact:
            return bias is not None
        # One grid for the whole bias, since its Quant may have one scale.
        terms = np.vstack([product.shifts, bias[None]])
        step = constants.lowest_bit(terms).min(initial=np.inf)
        return bool(np.all(np.abs(terms).sum(axis=0) < np.ldexp(step, constants.FLOAT_DIGITS - 1)))


Reads = Sequence[tuple[Ints, Ints, np.ndarray, np.ndarray]]


def _spread(needed: np.ndarray, reads: Reads) -> None:
    """Mark what is read for something needed. Every column of a layer is looked at once, whatever the order."""
    changed = True
    while changed:
        changed = False
        for columns, rows, needs, done in reads:
            ready = needed[columns] & ~done
            if ready.any():
                needed[rows[needs[:, ready].any(axis=1)]] = True
                done |= ready
                changed = True


def _components(count: int, ties: Sequence[tuple[Ints, Ints]]) -> Ints:
    """The smallest atom that each atom is tied to, by hooking and pointer jumping."""
    label = np.arange(count)
    if not ties:
        return label
    left, right = (np.concatenate(side) for side in zip(*ties, strict=True))
    while True:
        a, b = label[left], label[right]
        apart = a != b
        if not apart.any():
            return label
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(label, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(label, label[label]):
            label = label[label]


def _shapes(model: ir.Model) -> dict[str, ir.Shape]:
    """Shapes by name, inferred on a copy, where the model does not state them all."""
    if all(output.shape is not None for node in model.graph for output in node.outputs):
        return {}
    copy = graph.copy(model)
    infer_shapes(copy)
    return {str(value.name): value.shape for value in _values(copy) if value.shape is not None}


def _values(model: ir.Model) -> Iterator[ir.Value]:
    return (output for node in model.graph for output in node.outputs)
