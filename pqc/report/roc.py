"""Receiver operating characteristics, one class against the rest, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """One ROC curve, from (0, 0) to (1, 1), with a point for each distinct score.

    Args:
        false_positive: share of the other rows that pass each cut (mis-tag rate, background efficiency).
        true_positive: share of the class's rows that pass each cut (signal efficiency).
        area: under the whole curve; a tie counts one half.
    """

    false_positive: Floats
    true_positive: Floats
    area: float


@dataclass(frozen=True)
class Tag:
    """One class's curves, by model."""

    name: str
    curves: dict[str, Curve]


def curve(scores: np.ndarray, positive: Booleans) -> Curve | None:
    """The ROC curve of `scores` [rows], or None where all rows are of one kind.

    Rows with equal scores pass a cut together, so the area is the share of (positive, negative) pairs in the right
    order, a tie counting one half. It is summed in integers, hence exact up to one division.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], positive[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    passed_true = np.concatenate([[0], np.cumsum(hits, dtype=np.int64)[last]])
    passed_false = np.concatenate([[0], np.cumsum(~hits, dtype=np.int64)[last]])
    trues, falses = int(passed_true[-1]), int(passed_false[-1])
    if trues == 0 or falses == 0:
        return None
    twice = int(np.sum(np.diff(passed_false) * (passed_true[1:] + passed_true[:-1])))
    return Curve(passed_false / falses, passed_true / trues, twice / (2 * trues * falses))


def thinned(found: Curve, places: int = 100) -> tuple[Floats, Floats]:
    """Few enough points to draw: even in efficiency, in mis-tag rate and in its logarithm; the ends stay."""
    x, y = found.false_positive, found.true_positive
    if len(x) <= 3 * places:
        return x, y
    lowest = float(x[x > 0][0])
    chosen = np.concatenate(
        [
            [0, len(x) - 1],
            np.searchsorted(x, np.linspace(0, 1, places)),
            np.searchsorted(y, np.linspace(0, 1, places)),
            np.searchsorted(x, np.geomspace(lowest, 1, places)),
        ]
    )
    index = np.unique(np.clip(chosen, 0, len(x) - 1))
    return x[index], y[index]


def labels(target: np.ndarray, columns: int) -> Booleans | None:
    """Which classes each row is of, [rows, columns], or None where the target is not class labels."""
    if target.size == 0 or columns == 0 or target.dtype.kind not in "biuf":
        return None
    if target.ndim == 2 and target.shape[1] == columns:
        return target > 0.5 if np.isin(target, (0, 1)).all() else None
    flat = target.reshape(-1)
    if flat.size != target.shape[0] or not np.isin(flat, np.arange(max(columns, 2))).all():
        return None
    classes = flat.astype(np.int64)
    matches: Booleans = classes[:, None] == (np.arange(columns) if columns > 1 else np.array([1]))
    return matches


def odds(scores: np.ndarray) -> Floats:
    """Each class's log-odds against the others, from logits or probabilities [rows, classes].

    p_c / (1 - p_c) orders rows as the class's probability does, and does not saturate at 1. Rounded to float32, so
    that rows that tie stay tied.
    """
    wide = scores.astype(np.float64)
    sums = wide.sum(axis=1)
    if wide.size and wide.min() >= 0 and wide.max() <= 1 and np.allclose(sums, 1, atol=1e-3):
        wide = np.log(np.maximum(wide, np.finfo(np.float64).tiny))
    result = np.empty_like(wide)
    for index in range(wide.shape[1]):
        others = np.delete(wide, index, axis=1)
        top = others.max(axis=1)
        result[:, index] = wide[:, index] - top - np.log(np.exp(others - top[:, None]).sum(axis=1))
    return result.astype(np.float32).astype(np.float64)


def complete(scores: Mapping[str, np.ndarray]) -> Booleans:
    """The rows whose scores are all finite, in every model."""
    found = [np.isfinite(table.reshape(len(table), -1)).all(axis=1) for table in scores.values()]
    every: Booleans = np.logical_and.reduce(found)
    return every


def one_vs_rest(target: np.ndarray, scores: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Tag]:
    """The curves of each class and model; empty where the target is not class labels.

    Of two exclusive classes only the second is returned: the first has the same curve, mirrored. A class without
    rows, or with all rows, is left out, and so are the rows with a score that is not finite.
    """
    rows = len(target)
    tables = {model: array.reshape(rows, -1) for model, array in scores.items() if rows and len(array) == rows}
    widths = {table.shape[1] for table in tables.values()}
    positive = labels(target, widths.pop()) if len(widths) == 1 else None
    if positive is None:
        return []
    finite = complete(tables)
    columns = positive.shape[1]
    exclusive = columns > 1 and bool((positive.sum(axis=1) == 1).all())
    ranks = {model: odds(table[finite]) if exclusive else table[finite] for model, table in tables.items()}
    kept = positive[finite]
    tags = []
    for index in [1] if exclusive and columns == 2 else range(columns):
        found = {model: curve(rank[:, index], kept[:, index]) for model, rank in ranks.items() if len(kept)}
        curves = {model: line for model, line in found.items() if line is not None}
        if curves:
            tags.append(Tag(_name(names, index, columns), curves))
    return tags


def _name(names: Sequence[str], index: int, columns: int) -> str:
    """A class's name; one column stands for the class 1 of 0 and 1."""
    place = 1 if columns == 1 and len(names) == 2 else index
    if place < len(names):
        return str(names[place])
    return f"class {1 if columns == 1 else index}"
