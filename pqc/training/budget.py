"""Which units go: rankings over one layer or over all of them together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def prune_counts(scores: Sequence[np.ndarray], weights: Sequence[int], sparsity: float, *, together: bool) -> list[int]:
    """How many units of each layer to prune.

    The pruned units hold `sparsity` of all weights, to one weight where a unit is one weight, else to half a unit;
    a layer whose units hold more than one weight keeps one of them.

    Args:
        scores: of every layer's units; the smallest go, and of equal ones those that come later.
        weights: how many weights each layer has.
        sparsity: the share to prune, 0 to 1.
        together: rank the units of all layers together; otherwise every layer gives the same share.
    """
    if not together:
        return [_of_layer(score, size, sparsity) for score, size in zip(scores, weights, strict=True)]
    kept = ranked(scores, weights, sparsity)
    return [int((~mask).sum()) for mask in kept]


def _of_layer(score: np.ndarray, weights: int, sparsity: float) -> int:
    wanted = int(np.rint(sparsity * score.size))
    return wanted if weights == score.size else min(wanted, score.size - 1)


def ranked(scores: Sequence[np.ndarray], weights: Sequence[int], sparsity: float) -> list[np.ndarray]:
    """Which units to keep when all layers' units are ranked together; arguments as in `prune_counts`."""
    flat = np.concatenate([score.ravel().astype(np.float64) for score in scores])
    sizes = np.concatenate(
        [np.full(score.size, count / score.size) for score, count in zip(scores, weights, strict=True)]
    )
    starts = np.cumsum([0, *(score.size for score in scores)])
    order = np.argsort(-flat, kind="stable")
    last = [int(start) + int(np.argmax(score)) for start, score in zip(starts[:-1], scores, strict=True)]
    spared = [unit for unit, score, count in zip(last, scores, weights, strict=True) if count > score.size]
    order = np.concatenate([np.array(spared, int), order[~np.isin(order, spared)]])
    held = np.cumsum(sizes[order])
    wanted = sizes.sum() - np.rint(sparsity * sizes.sum())
    # As many of the best units as come nearest to the wanted number of weights.
    count = int(np.searchsorted(held, wanted))
    if count < held.size and held[count] - wanted <= wanted - (held[count - 1] if count else 0):
        count += 1
    kept = np.zeros(flat.size, bool)
    kept[order[: max(count, len(spared))]] = True
    return [
        kept[start:end].reshape(score.shape) for start, end, score in zip(starts[:-1], starts[1:], scores, strict=True)
    ]
