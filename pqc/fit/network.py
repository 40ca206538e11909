"""From a compressible graph to the weights of a search, and back to what a schedule says of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import escape

import numpy as np
import onnx_ir as ir

from pqc import graph, layer_quantizers, layers, quantizer_sites
from pqc.blocks import Block, blocks
from pqc.calibration import Calibration
from pqc.errors import UnsupportedError
from pqc.fit.settings import Fit
from pqc.fit.space import FLOAT, Rounding, Space, Weight
from pqc.fixed_point import FixedPoint
from pqc.metrics import LayerCost
from pqc.quantizer import Quantizer
from pqc.schedule import Schedule
from pqc.schedule_sections import TENSORS, Quantization, written

Kinds = dict[str, dict[str, object]]
"""What a schedule says of layers: quantizers by pattern and tensor."""


def space(main: ir.Graph, plan: Schedule, fit: Fit, costs: Sequence[LayerCost]) -> Space:
    """The weights of a search.

    Args:
        main: the compressible graph of `plan` without masks; weights without a quantizer stay in float, and those
            with a type of their own in the plan keep it.
        plan: layers that `pruning.exclude` names are not pruned.
        fit: the widths to choose from.
        costs: of the graph, for the price of a bit.

    Raises:
        UnsupportedError: a weight's quantizer has no fixed point type.
    """
    by_weight: dict[ir.Value, list[layers.Layer]] = {}
    for layer in layers.layers(main):
        by_weight.setdefault(layer.weight, []).append(layer)
    prices = {str(weight.name): sum(map(_price, _of(costs, weight))) for weight in by_weight}
    varying = sum(cost.products for cost in costs if cost.weight)
    fixed = sum(cost.ebops for cost in costs) - varying
    return Space([_weight(found, plan, fit, prices) for found in by_weight.values()], fixed)


def _of(costs: Sequence[LayerCost], weight: ir.Value) -> list[LayerCost]:
    return [cost for cost in costs if cost.weight == weight.name]


def _price(cost: LayerCost) -> float:
    """Bit operations of a bit of a number that is not zero; a mean, where inputs differ in bits."""
    bits = cost.nonzero * cost.bits_weight
    return cost.products / bits if bits else 0.0


def _weight(found: list[layers.Layer], plan: Schedule, fit: Fit, prices: dict[str, float]) -> Weight:
    layer = found[0]
    numbers = np.asarray(graph.stored(layer.weight))
    node = layer_quantizers.quantizers(layer).get("weight")
    name = str(layer.weight.name)
    prunable = not any(one.excluded(plan.pruning.exclude) for one in found)
    bare = Weight(name, layer.name, numbers, prunable=prunable, price=prices[name])
    if node is None or plan.quantization is None:
        return bare
    grid = layers.grid(node)
    if grid is None or layers.is_binary(node) or np.any(np.frexp(grid.scale)[0] != 0.5):
        hint = "give the layer a type [k, i, f], or exclude it from quantization"
        raise UnsupportedError("a search needs fixed point weights", at=f"weight '{name}'", hint=hint)
    rounding = Rounding(grid.rounding, "SAT_SYM" if grid.narrow else grid.overflow)
    if "weight" in layer_quantizers.own(layer, plan.quantization.overrides()):
        return replace(bare, types=(_type(grid),), rounding=rounding, first=0)
    how = plan.quantization.calibration
    calibration = Calibration() if how is None else Calibration(how.method, how.percent or Calibration.percent)
    types = tuple(rounding.type_of(numbers, width, calibration) for width in fit.widths)
    return replace(bare, types=types, rounding=rounding)


def _type(grid: layers.Grid) -> FixedPoint:
    """The type of a quantizer, the widest where channels or numbers have several."""
    f = int((1 - np.frexp(grid.scale)[1]).max())
    k, width = int(grid.signed), int(grid.bits.max())
    return FixedPoint(k, width - k - f, f)


def calibrated(main: ir.Graph, plan: Quantization, least: int) -> Kinds:
    """What the compressible graph rounds to, layer by layer: biases, what enters, and what the plan says of them.

    Args:
        main: the graph after calibration.
        plan: what it was made by.
        least: fractional bits of what enters a layer, at least.

    Quantizers that are trained, and those with several types, are left out; they are calibrated when they are made.
    """
    trained = {site.node for site in quantizer_sites.sites(main) if site.learns}
    found: Kinds = {}
    both: list[layers.Layer | Block] = [*layers.layers(main), *blocks(main)]
    for one in both:
        own = layer_quantizers.own(one, plan.overrides())
        for name, node in layer_quantizers.quantizers(one).items():
            base = own.get(name, getattr(plan, TENSORS.get(name, "inputs")))
            if base is None or node in trained or not _is_said(one, name, own):
                continue
            kind = _single(node)
            if kind is not None:
                at_least = replace(kind, f=max(kind.f, least)) if name == "input" else kind
                found.setdefault(escape(one.name), {})[name] = written(replace(base, bits=at_least))
    return found


def _is_said(one: layers.Layer | Block, name: str, own: dict[str, Quantizer | None]) -> bool:
    """Whether the type of a tensor is written down: the weight's is found, and the rest of a block is as it was."""
    return name in own or name == "input" or (name == "bias" and isinstance(one, layers.Layer))


def _single(node: ir.Node) -> FixedPoint | None:
    """The only type of a quantizer, or None where it has several or none."""
    grid = layers.grid(node)
    if grid is None or grid.scale.size != 1 or grid.bits.size != 1 or np.any(grid.zero_point):
        return None
    return _type(grid) if np.all(np.frexp(grid.scale)[0] == 0.5) else None


def chosen(main: ir.Graph, plan: Quantization, weights: Space, levels: Sequence[int]) -> Iterator[tuple[str, object]]:
    """The types that a search has found, by pattern: every layer of the weights whose level moved.

    Args:
        main: the compressible graph.
        plan: what else its weights' quantizers say.
        weights: of the search.
        levels: what it ended with.
    """
    types = {
        weight.name: weight.types[level]
        for weight, level in zip(weights.weights, levels, strict=True)
        if weight.first == FLOAT and level != FLOAT
    }
    assert plan.weights is not None or not types
    for layer in layers.layers(main):
        if plan.weights is not None and layer.weight.name in types:
            yield escape(layer.name), written(replace(plan.weights, bits=types[str(layer.weight.name)]))
