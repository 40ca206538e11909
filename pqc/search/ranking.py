"""Trials compared: which no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pqc.search.objectives import Objective
from pqc.search.space import Value


@dataclass(frozen=True)
class Point:
    """One trial.

    Args:
        number: in its study.
        state: `running`, `complete`, `pruned` or `failed`.
        params: its point in the space.
        values: of the objectives, where it is complete.
        metrics: all that objectives and constraints read.
        feasible: whether it is complete and keeps the constraints.
        seconds: that it took.
        error: why it failed.
    """

    number: int
    state: str
    params: dict[str, Value]
    values: tuple[float, ...]
    metrics: dict[str, float]
    feasible: bool
    seconds: float = 0.0
    error: str = ""

    def record(self) -> dict[str, Any]:
        """The trial, ready for JSON."""
        return asdict(self)


def beats(one: Sequence[float], other: Sequence[float], objectives: Sequence[Objective]) -> bool:
    """Whether `one` is at least as good in every objective, and better in one."""
    pairs = list(zip(objectives, one, other, strict=True))
    worse = any(objective.is_better(theirs, mine) for objective, mine, theirs in pairs)
    return not worse and any(objective.is_better(mine, theirs) for objective, mine, theirs in pairs)


def front(points: Sequence[Point], objectives: Sequence[Objective]) -> list[Point]:
    """The feasible trials that none beats, the best in the first objective first; of equals the earliest.

    With one objective that is the best trial alone.
    """
    left: dict[tuple[float, ...], Point] = {}
    for point in points:
        if point.feasible:
            left.setdefault(point.values, point)
    found = [one for one in left.values() if not any(beats(other, one.values, objectives) for other in left)]
    return sorted(found, key=lambda one: one.values[0], reverse=objectives[0].direction == "maximize")


def best(points: Sequence[Point], objectives: Sequence[Objective], most: int) -> list[Point]:
    """The best feasible trials in the first objective: of all with one objective, of the front with several."""
    if len(objectives) > 1:
        return front(points, objectives)[:most]
    feasible = [point for point in points if point.feasible]
    return sorted(feasible, key=lambda one: one.values[0], reverse=objectives[0].direction == "maximize")[:most]
