"""What layers round in their own way, and what activations then are rounded to that several of them read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from pqc import graph, layers
from pqc.blocks import Block, blocks
from pqc.errors import PassError
from pqc.quantizer import Quantizer, read_overrides


def read(text: str) -> dict[str, dict[str, Quantizer | None]]:
    """The layers' own quantizers of an option; see `pqc.quantizer.read_overrides`.

    Raises:
        PassError: not such JSON.
    """
    try:
        return read_overrides(text)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        hint = 'write JSON: {"pattern": {"weight": "1,0,3/per_channel"}}'
        raise PassError(f"layers: {error}", hint=hint) from error


def own(layer: layers.Named, overrides: Mapping[str, dict[str, Quantizer | None]]) -> dict[str, Quantizer | None]:
    """What a layer rounds in its own way; of several patterns the last says what holds."""
    found: dict[str, Quantizer | None] = {}
    for pattern, kinds in overrides.items():
        found |= kinds if layer.excluded((pattern,)) else {}
    return found


def asked_for(main: ir.Graph, overrides: Mapping[str, Collection[str]]) -> set[ir.Node]:
    """The quantizers of the tensors that patterns of layers name, where there are any.

    Args:
        main: the graph with its quantizers.
        overrides: names of tensors (weight, bias, input, output, parts of blocks) by pattern.
    """
    wanted: set[ir.Node] = set()
    both: list[layers.Layer | Block] = [*layers.layers(main), *blocks(main)]
    for one in both:
        names = {name for pattern, found in overrides.items() if one.excluded((pattern,)) for name in found}
        wanted |= {node for name, node in quantizers(one).items() if name in names}
    return wanted


def quantizers(one: layers.Layer | Block) -> dict[str, ir.Node]:
    """The quantizers of a layer or a block by the names of their tensors."""
    readers = [node for node in one.output.consumers() if layers.is_quant(node)]
    found = {"input": origin(one.data).producer(), "output": readers[0] if readers else None}
    if isinstance(one, Block):
        found |= {
            name: next(iter(filter(layers.is_quant, value.consumers())), None) for name, value in one.parts.items()
        }
    else:
        found["weight"] = _behind(one.node, layers.WEIGHT_INPUT)
        if one.bias_add is not None and one.bias_index is not None:
            found["bias"] = _behind(one.bias_add, one.bias_index)
    return {name: node for name, node in found.items() if node is not None and layers.is_quant(node)}


def _behind(node: ir.Node, index: int) -> ir.Node | None:
    """The quantizer of a parameter, before a mask that is applied to what it gives."""
    producer = graph.operand(node, index).producer()
    while producer is not None and layers.applies_mask(producer):
        producer = graph.operand(producer, 0).producer()
    return producer


def entering(
    found: Sequence[layers.Layer | Block],
    excluded: set[ir.Node],
    kinds_of: Mapping[ir.Node, dict[str, Quantizer | None]],
    usual: Quantizer | None,
) -> dict[ir.Value, Quantizer | None]:
    """How activations are rounded that enter a layer with an input of its own way.

    Raises:
        PassError: another layer reads the same activation and would round it otherwise; one quantizer serves all.
    """
    kinds: dict[ir.Value, dict[str, Quantizer | None]] = {}
    for layer in found:
        if layer.node not in excluded:
            readers = kinds.setdefault(origin(layer.data), {})
            readers[layer.name] = kinds_of[layer.node].get("input", usual)
    for value, readers in kinds.items():
        (first, kind), *others = readers.items()
        for name, other in others:
            if other != kind:
                raise two(value, f"the layers '{first}' and '{name}' read it", kind, other)
    changed = {origin(layer.data) for layer in found if "input" in kinds_of[layer.node]}
    return {value: next(iter(readers.values())) for value, readers in kinds.items() if value in changed}


def two(value: ir.Value, who: str, *kinds: Quantizer | None) -> PassError:
    """The error about an activation that is to be rounded in two ways."""
    both = " and as ".join("float" if kind is None else str(kind) for kind in kinds)
    return PassError(
        f"{who}, and they would round it as {both}",
        at=f"tensor '{value.name}'",
        hint="say the same of both; one quantizer serves all that read an activation",
    )


def origin(value: ir.Value) -> ir.Value:
    """Where the numbers of `value` were computed: before everything that only moves them."""
    producer = value.producer()
    while (
        producer is not None
        and not producer.domain
        and producer.op_type in layers.MOVES
        and producer.op_type != "Concat"
    ):
        value = graph.operand(producer, 0)
        producer = value.producer()
    return value
