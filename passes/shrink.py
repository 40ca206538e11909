from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import biases, graph
from pqc.channels.atoms import Axis, Channels, Product
from pqc.channels.numbers import Numbers
from pqc.channels.rules import trace
from pqc.rewriting import Meaning, Pass, close, explain


@dataclass(frozen=True)
class Shrink(Pass):
    """Take channels, filters and neurons out that nothing depends on.

    W [8, 4], b [8], V [3, 8] → W [5, 4], b [5], V [3, 5], where no reader has weights for three of the eight, or where
    these three are constants; a constant other than zero goes into the readers' biases. Through normalization,
    quantizers, elementwise operators, pools, reshapes, Concat and Split; channels that meet in an Add go together.
    float32 sums over fewer terms may round otherwise; sums on a fixed-point grid stay equal bit for bit.
    Leaves inputs, outputs and what operators outside this list read alone, and one channel of each axis; a group of a
    grouped Conv goes as a whole, and a constant that cannot be added exactly, or meets zero padding, stays.
    """

    title: ClassVar[str] = "shrink"
    meaning: ClassVar[Meaning] = close(1e-5)

    def rewrite(self, model: ir.Model) -> int:
        removed = 0
        # Once more after each sweep: a grouped Conv with one group left is a plain one.
        while count := _sweep(model):
            removed += count
        return removed


def _sweep(model: ir.Model) -> int:
    """One analysis and one rewrite of the whole graph; the number of channels removed."""
    found, barriers = trace(model)
    kept, removed = found.settle()
    if not removed:
        for node in barriers:
            explain(node, "keeps its channels: what it does to them is not known")
        return 0
    biased = [(product, array) for product in found.products if (array := _bias(found, product, kept)) is not None]
    names = graph.Names(model.graph)
    numbers = Numbers(model.graph, found, kept, names)
    for node in model.graph:
        numbers.rewrite(node)
    for value, axes in found.axes.items():
        _cut(value, axes, kept)
    for product, array in biased:
        biases.store(model.graph, product.node, array, names)
    for product in found.products:
        _tell(product, kept)
    graph.remove_unused(model.graph)
    return removed


def _bias(found: Channels, product: Product, kept: np.ndarray) -> np.ndarray | None:
    """The bias of the outputs that stay once the constant inputs that go are in it, or None if nothing changes."""
    gone = ~kept[product.rows.atoms[product.constant]]
    shift = product.shifts[gone].sum(axis=0)[kept[product.columns]]
    if not shift.any():
        return None
    bias = found.bias(product.node, len(product.columns))
    assert bias is not None
    return np.asarray(bias[kept[product.columns]] + shift, np.float32)


def _cut(value: ir.Value, axes: list[Axis | None], kept: np.ndarray) -> None:
    """Leave what stays of a value: of its array if it has one, and of its shape."""
    masks = [None if axis is None else kept[axis.atoms] for axis in axes]
    if all(mask is None or mask.all() for mask in masks):
        return
    if value.is_initializer():
        array = graph.stored(value)
        for place, mask in enumerate(masks):
            array = array if mask is None else np.compress(mask, array, axis=place)
        graph.set_initializer(value, array)
    elif value.shape is not None:
        sizes = [dim if mask is None else int(mask.sum()) for dim, mask in zip(value.shape, masks, strict=True)]
        value.shape = ir.Shape(sizes)


def _tell(product: Product, kept: np.ndarray) -> None:
    inputs, outputs = kept[product.rows.atoms], kept[product.columns]
    if not (inputs.all() and outputs.all()):
        text = f"reads {inputs.sum()} of {inputs.size} channels and gives {outputs.sum()} of {outputs.size}"
        explain(product.node, text)
