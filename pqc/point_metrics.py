"""Metrics of clouds of points, whose targets say which points count; the mean over the events that have any."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def neighbour_accuracy(output: np.ndarray, target: np.ndarray, _: float = 0.0) -> float:
    """How often the nearest points in embedding space are of the same cluster.

    For a point of a cluster of n points: the share of its own cluster among the n - 1 points nearest to it, itself not
    counted; the mean over an event's points, then over events. Points of no cluster can be neighbours, padding cannot.
    Miao et al., arXiv:2402.12535 (there accuracy@0.9, with clusters of more than 0.9 GeV only).

    Args:
        output: [events, points, n] embeddings.
        target: [events, points, 3] cluster numbers, -1 of none, -2 for padding, and positions; see `InfoNce`.
    """
    return _mean(_near, output, target[..., 0])


def _near(embedding: np.ndarray, cluster: np.ndarray) -> float | None:
    """The accuracy of one event."""
    present = cluster >= -1
    points, labels = embedding[present].astype(np.float64), cluster[present]
    equal = labels[:, None] == labels
    others = equal.sum(axis=1) - 1
    counted = (labels >= 0) & (others > 0)
    if not counted.any():
        return None
    squares = np.square(points).sum(axis=1)
    distance = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")
    hits = np.cumsum(np.take_along_axis(equal, order, axis=1), axis=1)
    found = hits[counted, others[counted] - 1]
    return float((found / others[counted]).mean())


def average_precision(output: np.ndarray, target: np.ndarray, _: float = 0.0) -> float:
    """The area under precision against recall, in steps, of the points whose target is 0 or 1.

    The mean over the events that have a one. Points with equal scores are counted together.

    Args:
        output: [events, points] scores, in any increasing measure.
        target: of that shape; other numbers than 0 and 1 are left out.
    """
    return _mean(_precision, output.reshape(len(output), -1), target.reshape(len(target), -1))


def _precision(score: np.ndarray, target: np.ndarray) -> float | None:
    """The average precision of one event."""
    counted = (target == 0) | (target == 1)
    score, truth = score[counted], target[counted] == 1
    if not truth.any():
        return None
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(score[1:] != score[:-1]), len(score) - 1)
    recall = np.diff(hits[last], prepend=0) / hits[-1]
    return float((recall * hits[last] / (last + 1)).sum())


def _mean(measure: Callable[[np.ndarray, np.ndarray], float | None], output: np.ndarray, target: np.ndarray) -> float:
    found = [measure(one, truth) for one, truth in zip(output, target, strict=True)]
    known = [one for one in found if one is not None]
    return float(np.mean(known)) if known else 0.0
