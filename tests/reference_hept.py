"""HEPT's hashing, sorting and attention, and the losses and metrics of points, in plain float64 NumPy."""

from __future__ import annotations

import numpy as np


def regions(coordinates: np.ndarray, lengths: np.ndarray, stride: np.ndarray) -> np.ndarray:
    """Regions [points] of one head and table: ranks [points, 2] cut into lengths [2], the second counting `stride`."""
    place = np.argsort(np.argsort(coordinates, axis=0, kind="stable"), axis=0, kind="stable")
    return place[:, 0] // lengths[0] + place[:, 1] // lengths[1] * stride


def order(hashes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Points sorted by region, and within a region by hash."""
    return np.lexsort((hashes, region))


def block_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, orders: list[tuple[np.ndarray, np.ndarray]], block: int
) -> np.ndarray:
    """Sums of exp(-|q - k|²/2) · v of one head over each point's block of every table; all [points, n]."""
    total = np.zeros((len(query), value.shape[1]))
    for by_query, by_key in orders:
        for start in range(0, len(query), block):
            rows, columns = by_query[start : start + block], by_key[start : start + block]
            distance = np.square(query[rows][:, None] - key[columns][None]).sum(axis=2)
            total[rows] += np.exp(-distance / 2) @ value[columns]
    return total


def info_nce(
    embedding: np.ndarray, target: np.ndarray, temperature: float = 0.05, width: float = 0.75, radius: float = 1.0
) -> float:
    """Pair by pair, as the docstring of InfoNce says."""
    clusters = []
    for x, cluster, place in zip(embedding.astype(np.float64), target[..., 0], target[..., 1:], strict=True):
        distance = np.sqrt(np.square(x[:, None] - x[None]).sum(axis=2) + 1e-6)
        force = np.exp(np.exp(-distance / (2 * width**2)) / temperature)
        near = np.square(place[:, None] - place[None]).sum(axis=2) <= radius**2
        for number in np.unique(cluster[cluster >= 0]):
            own = np.flatnonzero(cluster == number)
            others = (cluster != number) & (cluster >= -1)
            pairs = [(a, b) for a in own for b in own if a != b]
            if pairs:
                losses = [-np.log(force[a, b] / (force[a, b] + force[a, others & near[a]].sum())) for a, b in pairs]
                clusters.append(np.mean(losses))
    return float(np.mean(clusters)) if clusters else 0.0


def focal(logits: np.ndarray, target: np.ndarray, gamma: float = 2.0) -> float:
    """The mean over the targets 0 and 1."""
    counted = target >= 0
    p = 1 / (1 + np.exp(-np.where(target == 1, 1, -1) * logits.astype(np.float64)))[counted]
    return float(np.mean(-((1 - p) ** gamma) * np.log(p))) if counted.any() else 0.0
