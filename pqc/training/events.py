"""What methods do between steps: budgets, masks and states at the edges of epochs, rounds and stages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.mask_nodes import Builder
from pqc.mask_sites import masks
from pqc.masking import Program, Recipe, hard_masks, hard_weights, scores, states_after
from pqc.method import PRUNE, RAMP, Budget
from pqc.training.budget import prune_counts, ranked

Arrays = dict[str, np.ndarray]


class Events:
    """Runs the methods' functions of a compressible graph on the values of training.

    Args:
        compressible: the graph with learned masks; not changed.
    """

    def __init__(self, compressible: ir.Model) -> None:
        self.model = compressible
        builder = Builder(compressible.graph)
        found = {site.weight: site for site in masks(compressible.graph)}
        # In the order of the layers, which decides among equal scores.
        self.sites = [found[weight] for weight in builder.layers if weight in found]
        self.weights = {str(site.weight.name): graph.stored(site.weight).size for site in self.sites}
        self.layouts = {str(site.weight.name): builder.layout(site.weight, site.method) for site in self.sites}
        self._programs: dict[str, Program] = {}

    def begin_training(self, values: Arrays, controls: Mapping[str, float]) -> None:
        """Share out the budgets that hold for the whole training, and let the methods start."""
        self._allocate("training", values, controls)
        self._apply("begin_of_training", values, controls)

    def begin_epoch(self, values: Arrays, controls: Mapping[str, float]) -> None:
        """Share out the epoch's budgets, and let the methods prepare their states."""
        self._allocate("epoch", values, controls)
        self._apply("begin_of_epoch", values, controls)

    def end_epoch(self, values: Arrays, controls: Mapping[str, float]) -> None:
        """Let the methods finish an epoch."""
        self._apply("end_of_epoch", values, controls)

    def end_round(self, values: Arrays, controls: Mapping[str, float]) -> None:
        """Let the methods prepare the next round."""
        self._apply("end_of_round", values, controls)

    def harden(self, values: Arrays, controls: Mapping[str, float], sparsity: float | None) -> tuple[Arrays, Arrays]:
        """The masks of zeros and ones in the weights' shapes, and the weights that go with them.

        Args:
            values: parameters and states by name.
            controls: the annealed scalars as they are at the end.
            sparsity: the share to prune: by score where thresholds are learned, the whole budget where there is one; or
                None.
        """
        if sparsity is not None and controls.get(RAMP, 1.0) < 1:
            controls = {**controls, RAMP: 1.0}  # the target holds, even where training ends before the ramp does
            self.begin_epoch(values, controls)
        self._allocate("end", values, controls)
        feeds = self.feeds(values, controls)
        found = self._program("hard_masks", hard_masks).run(feeds)
        if sparsity is not None:
            found |= self._cut(feeds, sparsity)
        full = {
            name: np.broadcast_to(found[name], self.layouts[name].stored).astype(np.float32) for name in self.weights
        }
        return full, self._program("hard_weights", hard_weights).run(feeds)

    def sparsity(self, values: Arrays, controls: Mapping[str, float]) -> float:
        """The share of the prunable weights that the hard masks take out as things stand."""
        found = self._program("hard_masks", hard_masks).run(self.feeds(values, controls))
        kept = sum(float(mask.mean()) * self.weights[name] for name, mask in found.items())
        return 1 - kept / max(sum(self.weights.values()), 1)

    def _cut(self, feeds: Mapping[str, np.ndarray], sparsity: float) -> Arrays:
        methods = {str(site.weight.name): site.method for site in self.sites}
        learned = [name for name, method in methods.items() if method.budget() is None and method.hard_mask() is None]
        if not learned:
            return {}
        found = self._program("scores", scores).run(feeds)
        kept = ranked([found[name] for name in learned], [self.weights[name] for name in learned], sparsity)
        return {name: self.layouts[name].back(mask) for name, mask in zip(learned, kept, strict=True)}

    def _allocate(self, when: str, values: Arrays, controls: Mapping[str, float]) -> None:
        groups: dict[Budget, list[str]] = {}
        for site in self.sites:
            budget = site.method.budget()
            if budget is not None and budget.when == when:
                groups.setdefault(budget, []).append(str(site.weight.name))
        if not groups:
            return
        found = self._program("scores", scores).run(self.feeds(values, controls))
        states = {str(site.weight.name): str(site.inputs[PRUNE].name) for site in self.sites if PRUNE in site.inputs}
        for budget, names in groups.items():
            share = budget.sparsity * (controls.get(RAMP, 1.0) if when == "epoch" else 1.0)
            sizes = [self.weights[name] for name in names]
            counts = prune_counts([found[name] for name in names], sizes, share, together=budget.scope == "global")
            for name, count in zip(names, counts, strict=True):
                values[states[name]] = np.asarray(count, np.float32)

    def _apply(self, pick: str, values: Arrays, controls: Mapping[str, float]) -> None:
        values.update(self._program(pick, states_after(pick)).run(self.feeds(values, controls)))

    def _program(self, name: str, recipe: Recipe) -> Program:
        if name not in self._programs:
            self._programs[name] = Program(self.model, recipe)
        return self._programs[name]

    def feeds(self, values: Arrays, controls: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Values and controls by their names in the graph."""
        known = {self._names[name]: value for name, value in controls.items() if name in self._names}
        return {**values, **{name: np.asarray(value, np.float32) for name, value in known.items()}}

    @cached_property
    def _names(self) -> dict[str, str]:
        """The controls' names in the graph."""
        found: dict[str, str] = {}
        for site in self.sites:
            found |= {name: str(value.name) for name, value in site.inputs.items() if name in site.method.controls()}
        return found
