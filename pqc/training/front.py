"""The Pareto front of a training: epochs that no other beats in both metric and bit operations, kept as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pqc import files

FOLDER, CANDIDATE = "front", "on_front"
"""The folder of the files, and the key of a record that tells whether its epoch was on the front when it came."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """An epoch: its number in the history, its metric on the validation rows (larger is better) and its EBOPs."""

    epoch: int
    metric: float
    ebops: int

    def beats(self, other: Point) -> bool:
        """Whether it is at least as good in both, and better in one; of equals the later."""
        mine, theirs = (self.metric, -self.ebops), (other.metric, -other.ebops)
        return mine[0] >= theirs[0] and mine[1] >= theirs[1] and (mine != theirs or self.epoch > other.epoch)


def front(points: Iterable[Point]) -> list[Point]:
    """The points that none beats, by growing EBOPs."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.ebops, -one.metric, -one.epoch)):
        if not found or point.metric > found[-1].metric:
            found.append(point)
    return found


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many points of a front, evenly spread over the logarithm of their EBOPs: the best of each stretch."""
    if len(points) <= most:
        return list(points)
    places = np.log(np.maximum([point.ebops for point in points], 1))
    edges = np.linspace(places[0], places[-1], most + 1)[1:-1]
    best: dict[int, Point] = {}
    for point, bin_ in zip(points, np.searchsorted(edges, places, side="right"), strict=True):
        best[int(bin_)] = point  # metrics grow along a front, so the last of a stretch is its best
    return list(best.values())


class Front:
    """Keeps the parameters of the epochs on the front in files of a folder.

    Args:
        folder: where the run's files are.
        metric: the key of the metric in the records.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder = folder / FOLDER
        self.metric = metric
        self.points: list[Point] = []

    def restart(self, history: Sequence[Record]) -> None:
        """Go on from the epochs of a history; files of later ones go."""
        known = [self._point(record) for record in history if CANDIDATE in record]
        self.points = [point for point in front(known) if self.path(point).exists()]
        self._remove_others()

    def add(self, record: Record, arrays: Mapping[str, np.ndarray]) -> bool:
        """Keep an epoch if it is on the front, and forget those that it beats; whether it is.

        Args:
            record: its line of the history.
            arrays: its parameters, and frozen masks as `<weight>.mask`.
        """
        point = self._point(record)
        if any(other.beats(point) for other in self.points):
            return False
        files.write_arrays(self.path(point), dict(arrays))
        self.points = front([*self.points, point])
        self._remove_others()
        return True

    def path(self, point: Point) -> Path:
        """The file of an epoch."""
        return self.folder / f"epoch-{point.epoch:05}.npz"

    def _point(self, record: Record) -> Point:
        return Point(int(record["epoch"]), float(record[self.metric]), int(record["ebops"]))

    def _remove_others(self) -> None:
        kept = {self.path(point) for point in self.points}
        for path in self.folder.glob("epoch-*.npz"):
            if path not in kept:
                path.unlink()
