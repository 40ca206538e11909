"""Operators that ONNX's reference evaluation lacks, or has only for some attributes, in float64 NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx.reference.op_run import OpRun

# The reference evaluation goes by parameter names, which are ONNX's own.


class GlobalLpPool(OpRun):
    def _run(self, x: np.ndarray, p: int = 2) -> tuple[np.ndarray]:
        axes = tuple(range(2, x.ndim))
        return ((np.abs(x) ** (p or 2)).sum(axis=axes, keepdims=True) ** (1 / (p or 2)),)


class LpNormalization(OpRun):
    def _run(self, x: np.ndarray, axis: int = -1, p: int = 2) -> tuple[np.ndarray]:
        return (x / (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p),)


class MeanVarianceNormalization(OpRun):
    def _run(self, x: np.ndarray, axes: Sequence[int] | None = None) -> tuple[np.ndarray]:
        over = (0, 2, 3) if axes is None else tuple(axes)
        return ((x - x.mean(axis=over, keepdims=True)) / (x.std(axis=over, keepdims=True) + 1e-9),)


class LRN(OpRun):
    def _run(
        self, x: np.ndarray, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1
    ) -> tuple[np.ndarray]:
        squares = np.zeros_like(x)
        for channel in range(x.shape[1]):
            first, last = channel - (size - 1) // 2, channel + size // 2
            squares[:, channel] = (x[:, max(first, 0) : last + 1] ** 2).sum(axis=1)
        alpha, beta, bias = (0.0 if value is None else value for value in (alpha, beta, bias))
        return (x / (bias + alpha / size * squares) ** beta,)


class Pad(OpRun):
    """Negative pads cut first."""

    def _run(
        self,
        x: np.ndarray,
        pads: np.ndarray,
        value: np.ndarray | None = None,
        axes: np.ndarray | None = None,
        mode: str = "constant",
    ) -> tuple[np.ndarray]:
        chosen = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
        widths = [(0, 0)] * x.ndim
        for axis, (before, after) in zip(chosen, np.asarray(pads).reshape(2, -1).T.tolist(), strict=True):
            kept = range(max(-before, 0), x.shape[axis] - max(-after, 0))
            x = np.take(x, list(kept), axis=axis)
            widths[axis] = (max(before, 0), max(after, 0))
        if mode == "constant":
            return (np.pad(x, widths, constant_values=0.0 if value is None else float(value)),)
        return (np.pad(x, widths, mode=mode),)  # type: ignore[call-overload]


class Mean(OpRun):
    def _run(self, *values: np.ndarray) -> tuple[np.ndarray]:
        return (sum(values[1:], values[0]) / len(values),)


OPERATORS = (GlobalLpPool, LpNormalization, MeanVarianceNormalization, LRN, Pad, Mean)
