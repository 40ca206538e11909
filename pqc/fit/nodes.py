"""Nodes of the search, and what it costs to go from one to the next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from pqc.fit.fisher import Fisher
from pqc.fit.goal import Goal
from pqc.fit.settings import Fit
from pqc.fit.space import FLOAT, Levels, Space

PRUNE = -1
"""The step that prunes, among those that count weights."""
Key = tuple[Levels, int]


@dataclass(frozen=True, eq=False)
class Node:
    """A network on the way.

    Args:
        levels: which type each weight has.
        share: which of the shares is pruned.
        mask: what is left, bool [numbers].
        value: the goal's measure.
        length: of the way from the start: sum of sqrt(FIT) of its steps.
        rank: length and what may be left to do; searches take the least first.
        parent: where it came from, and `step` what was done there: the weight whose type changed, or `PRUNE`.
    """

    levels: Levels
    share: int
    mask: np.ndarray
    value: float
    length: float = 0.0
    rank: float = 0.0
    parent: Node | None = None
    step: int | None = None

    @property
    def key(self) -> Key:
        """What tells networks apart."""
        return self.levels, self.share

    def path(self) -> list[Node]:
        """The nodes from the start to this one."""
        found: list[Node] = []
        node: Node | None = self
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


class Measures(Protocol):
    """Who measures Fisher diagonals."""

    def measure(self, weights: np.ndarray) -> Fisher:
        """The diagonal at `weights`, float32 [numbers]."""


class Neighbourhood:
    """The neighbours of nodes: one weight with its next type, or the next share pruned.

    With F the Fisher diagonal, FIT(a, b) = sum F (a - b)² and FIT(a) = sum F a². A step from u to v is
    sqrt(FIT(u, v)) long, and what may be left at v is |value - bound| / (value at the start) · sqrt(FIT(v)).

    Args:
        space: the weights.
        goal: what is to be reached.
        estimator: measures Fisher diagonals.
        settings: what may change, and where the diagonal is measured anew.
    """

    def __init__(self, space: Space, goal: Goal, estimator: Measures, settings: Fit) -> None:
        self.space, self.goal, self.settings = space, goal, settings
        self.shares = settings.sparsities.shares()
        self._estimator = estimator
        self._known: tuple[Key, Fisher] | None = None
        self._first = self.start()

    def start(self) -> Node:
        """The float network."""
        levels, mask = self.space.first(), np.ones(len(self.space.numbers), bool)
        value = self.goal.value(self.space.counts(levels, self.space.values(levels, mask)))
        return Node(levels, 0, mask, value)

    def steps(self, node: Node) -> Iterator[int]:
        """What can be done at a node."""
        if self.settings.quantize:
            for number, (weight, level) in enumerate(zip(self.space.weights, node.levels, strict=True)):
                if weight.first == FLOAT and level + 1 < len(weight.types):
                    yield number
        if self.settings.prune and node.share + 1 < len(self.shares) and self.space.prunable.any():
            yield PRUNE

    def expand(self, node: Node) -> list[Node]:
        """The neighbours with all their numbers."""
        fisher = self._fisher(node)
        here = self.space.values(node.levels, node.mask)
        return [
            self._priced(self.moved(node, step, fisher.weights * here**2), here, fisher) for step in self.steps(node)
        ]

    def moved(self, node: Node, step: int, importance: np.ndarray) -> Node:
        """The neighbour that a step leads to, its numbers not computed yet."""
        if step == PRUNE:
            mask = self.space.pruned(node.mask, self.shares[node.share + 1], importance)
            return replace(node, share=node.share + 1, mask=mask, parent=node, step=step)
        levels = tuple(level + (number == step) for number, level in enumerate(node.levels))
        return replace(node, levels=levels, parent=node, step=step)

    def _priced(self, node: Node, before: np.ndarray, fisher: Fisher) -> Node:
        if node.step is None or node.step == PRUNE:
            after = self.space.values(node.levels, node.mask)
        else:
            after = self.space.moved(before, node.step, node.levels[node.step], node.mask)
        value = self.goal.value(self.space.counts(node.levels, after))
        length = node.length + math.sqrt(float(fisher.weights @ np.square(before - after, dtype=np.float64)))
        if self.settings.estimate == "neighbours":
            fisher = self._estimator.measure(after)
        missing = abs(value - self.goal.bound) / self._first.value
        left = missing * math.sqrt(float(fisher.weights @ np.square(after, dtype=np.float64)))
        return replace(node, value=value, length=length, rank=length + self.settings.heuristic * left)

    def _fisher(self, node: Node) -> Fisher:
        """The diagonal at a node, or at the start where it is not measured anew."""
        node = self._first if self.settings.estimate == "once" else node
        if self._known is None or self._known[0] != node.key:
            self._known = (node.key, self._estimator.measure(self.space.values(node.levels, node.mask)))
        return self._known[1]
