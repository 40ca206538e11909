"""Searches for the shortest way from a float network to one that meets a goal."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

from pqc.fit.goal import Goal
from pqc.fit.nodes import Key, Node
from pqc.fit.settings import BEAM, Fit

Expand = Callable[[Node], list[Node]]


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Args:
        node: the end of the shortest way to the goal that was found, or None where nothing meets it.
        nearest: the node whose value is the least.
        expansions: how many nodes were expanded.
        exhausted: whether nothing was left that could have been shorter, among all nodes that the search keeps.
    """

    node: Node | None
    nearest: Node
    expansions: int
    exhausted: bool


class _Seen:
    """The best so far, and how long the ways to all nodes are."""

    def __init__(self, start: Node, goal: Goal) -> None:
        self.goal = goal
        self.nearest = start
        self.best: Node | None = start if goal.met(start.value) else None
        self._lengths: dict[Key, float] = {start.key: start.length}

    def useful(self, nodes: Iterable[Node]) -> list[Node]:
        """Those that are reached on a shorter way than before, that may lead on to the goal, and do not meet it yet."""
        found = []
        for node in nodes:
            if node.length >= self._lengths.get(node.key, float("inf")):
                continue
            self._lengths[node.key] = node.length
            self.nearest = min(self.nearest, node, key=lambda one: one.value)
            if not self.goal.met(node.value):
                found.append(node)
            elif self.shorter(node):
                self.best = node
        return [node for node in found if self.current(node)]

    def shorter(self, node: Node) -> bool:
        """Whether a node is nearer to the start than the best that meets the goal: all beyond it is farther."""
        return self.best is None or node.length < self.best.length

    def current(self, node: Node) -> bool:
        """Whether a node is still worth expanding."""
        return self.shorter(node) and node.length <= self._lengths[node.key]

    def outcome(self, expansions: int, *, exhausted: bool) -> Outcome:
        """What was found."""
        return Outcome(self.best, self.nearest, expansions, exhausted)


def search(start: Node, expand: Expand, goal: Goal, settings: Fit) -> Outcome:
    """Search as the settings say; steps are never negative, so what is longer than the best need not be looked at.

    `astar` keeps every node. When it ends because nothing is left (`exhausted`), and steps depend on their two ends
    only (`estimate: once`, no pruning), no way to the goal is shorter, whatever the heuristic: that one decides the
    order only. A beam, and greedy, which is a beam of one, promise nothing.
    """
    seen = _Seen(start, goal)
    if seen.best is not None:
        return seen.outcome(0, exhausted=True)
    if settings.search == "astar":
        return _astar(start, expand, seen, settings.expansions)
    width = BEAM.fullmatch(settings.search)
    return _beam(start, expand, seen, settings.expansions, int(width[1]) if width else 1)


def _beam(start: Node, expand: Expand, seen: _Seen, most: int, width: int) -> Outcome:
    """All nodes of one number of steps at a time, of which the `width` first in rank are expanded."""
    level, done = [start], 0
    while level and done < most:
        reached: list[Node] = []
        for node in level[: most - done]:
            reached += seen.useful(expand(node))
            done += 1
        current = [node for node in reached if seen.current(node)]
        level = sorted(current, key=lambda node: node.rank)[:width]
    return seen.outcome(done, exhausted=not level)


def _astar(start: Node, expand: Expand, seen: _Seen, most: int) -> Outcome:
    """The node first in rank, of all that were reached."""
    numbers = count()
    waiting, done = [(start.rank, next(numbers), start)], 0
    while waiting and done < most:
        node = heapq.heappop(waiting)[2]
        if not seen.current(node):
            continue
        done += 1
        for one in seen.useful(expand(node)):
            heapq.heappush(waiting, (one.rank, next(numbers), one))
    return seen.outcome(done, exhausted=not any(seen.current(node) for _, _, node in waiting))
