"""What becomes of learned masks: hard ones, frozen ones, and the methods' functions as programs of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from pqc import engine, graph, library
from pqc.mask_nodes import Builder
from pqc.mask_sites import MaskSite, buffers, controls, masks, parameters
from pqc.method import Call

__all__ = [
    "Program",
    "Recipe",
    "buffers",
    "controls",
    "freeze",
    "hard_masks",
    "hard_weights",
    "harden",
    "masks",
    "parameters",
    "scores",
    "states_after",
]

Recipe = Callable[[Builder, MaskSite], dict[str, ir.Value]]
"""What to compute for a mask: values by the name of the state or weight they are for."""


def states_after(pick: str) -> Recipe:
    """The states that the method's function `pick` sets."""

    def recipe(builder: Builder, site: MaskSite) -> dict[str, ir.Value]:
        call: Call | None = getattr(site.method, pick)()
        if call is None:
            return {}
        found = builder.call(site, call, pick)
        return {str(site.inputs[name].name): value for name, value in zip(call.sets, found, strict=True) if name}

    return recipe


def harden(main: ir.Graph) -> None:
    """Put each learned mask's hard form in its place."""
    builder = Builder(main)
    for site in list(masks(main)):
        builder.place = site.product
        site.product.replace_input_with(1, builder.hard_mask(site))
    graph.remove_unused(main)


def freeze(model: ir.Model, found: Mapping[str, np.ndarray]) -> int:
    """Put constants in the place of the learned masks.

    Args:
        model: changed in place.
        found: masks by the weight's name, broadcasting to its shape.
    """
    sites = list(masks(model.graph))
    names = graph.Names(model.graph)
    for site in sites:
        mask = np.broadcast_to(found[str(site.weight.name)], graph.stored(site.weight).shape).astype(np.float32)
        name = names.new(f"{site.weight.name}.frozen.mask")
        site.product.replace_input_with(1, graph.add_initializer(model.graph, name, mask))
    if sites:
        graph.remove_unused(model.graph)
        library.unlink(model)
        library.link(model)
    return len(sites)


def scores(builder: Builder, site: MaskSite) -> dict[str, ir.Value]:
    """The scores, in the layout that the method sees."""
    return {str(site.weight.name): builder.call(site, site.method.score(), "score")[0]}


def hard_masks(builder: Builder, site: MaskSite) -> dict[str, ir.Value]:
    """The masks of zeros and ones, in the weights' layout or broadcasting to it."""
    return {str(site.weight.name): builder.hard_mask(site)}


def hard_weights(builder: Builder, site: MaskSite) -> dict[str, ir.Value]:
    """The weights that go with the hard masks, where they change."""
    call = site.method.hard_weight()
    if call is None:
        return {}
    return {str(site.weight.name): builder.stored(site, builder.call(site, call, "hard_weight")[0])}


class Program:
    """Functions of the methods on all masks at once, as a graph of its own.

    Args:
        model: a compressible graph with learned masks; not changed.
        recipe: what to compute.
    """

    def __init__(self, model: ir.Model, recipe: Recipe) -> None:
        trial = graph.copy(model)
        main = trial.graph
        given = [*parameters(main), *buffers(main)]
        names = {str(one.value.name) for one in given} | {str(one.name) for one in controls(main).values()}
        builder = Builder(main)
        wanted = [pair for site in list(masks(main)) for pair in recipe(builder, site).items()]
        self._targets = {str(value.name): target for target, value in wanted}
        main.outputs[:] = [value for _, value in wanted]
        graph.remove_unused(main)
        main.inputs[:] = [value for value in main.initializers.values() if value.name in names]
        self._names = [str(value.name) for value in main.inputs]
        self._session = engine.Session(trial) if wanted else None

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the functions give, by the name of the state or the weight.

        Args:
            values: parameters, states and controls by their names in the graph; the stored ones hold for the rest.
        """
        if self._session is None:
            return {}
        found = self._session.run({name: values[name] for name in self._names if name in values})
        return {self._targets[name]: array for name, array in found.items()}
