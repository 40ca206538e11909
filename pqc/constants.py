"""What operators make of constants, bit for bit as the engine computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir

from pqc import graph

FLOAT_DIGITS = 24
Arrays = Sequence[np.ndarray | None]

ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda v: np.sign(v) * np.ceil(np.abs(v)),
    "DOWN": lambda v: np.sign(v) * np.floor(np.abs(v)),
    "HALF_UP": lambda v: np.sign(v) * np.floor(np.abs(v) + np.float32(0.5)),
    "HALF_DOWN": lambda v: np.sign(v) * np.ceil(np.abs(v) - np.float32(0.5)),
}


def evaluate(node: ir.Node, inputs: Arrays, *, exact: bool = True) -> np.ndarray | None:
    """What `node` gives for `inputs`, or None where it is not in the table; NaN stays NaN.

    Args:
        node: an operator of one output.
        inputs: an array per input, None for one that is left out.
        exact: give NaN where the last bits could differ from the engine's.
    """
    arrays = [array for array in inputs if array is not None]
    with np.errstate(all="ignore"):
        if (node.domain, node.op_type) == (graph.QONNX, "Quant"):
            return _quant(node, *arrays)
        if node.domain:
            return None
        if node.op_type in EXACT:
            return EXACT[node.op_type](node, inputs)
        if node.op_type in ROUNDED:
            result = ROUNDED[node.op_type](arrays[0].astype(np.float64)).astype(np.float32)
            return np.where(result == 0, result, np.float32(np.nan)) if exact else result
    return None


def _quant(node: ir.Node, x: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: np.ndarray) -> np.ndarray | None:
    if np.any(bits != np.rint(bits)) or not np.isfinite(bits).all():
        return None
    signed, narrow = node.attributes.get_int("signed", 1), node.attributes.get_int("narrow", 0)
    span = np.ldexp(np.float32(1), bits.astype(np.int32) - signed)
    high, low = span - 1 - (1 - signed) * narrow, signed * (narrow - span)
    v = x / scale + zero
    mode = str(node.attributes.get_string("rounding_mode", "ROUND")).upper()
    q = ROUNDING[mode](np.clip(v, low, high))
    sign = np.where(v >= 0, np.float32(1), np.float32(-1))
    q = np.where((bits + (1 - signed) == 1) & ~np.isnan(v), sign, q)
    return np.asarray((q - zero) * scale, np.float32)


def _clip(_: ir.Node, inputs: Arrays) -> np.ndarray:
    x, low, high = (*inputs, None, None)[:3]
    assert x is not None
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _leaky(node: ir.Node, inputs: Arrays) -> np.ndarray:
    (x,) = inputs
    assert x is not None
    return np.where(x < 0, np.float32(node.attributes.get_float("alpha", 0.01)) * x, x)


def _of(function: Callable[..., np.ndarray]) -> Callable[[ir.Node, Arrays], np.ndarray]:
    return lambda _, inputs: function(*inputs)


def _transpose(node: ir.Node, inputs: Arrays) -> np.ndarray:
    assert inputs[0] is not None
    order = graph.attribute(node, "perm")
    return np.transpose(inputs[0], None if order is None else list(node.attributes["perm"].as_ints()))


EXACT: dict[str, Callable[[ir.Node, Arrays], np.ndarray]] = {
    "Identity": _of(lambda x: x),
    "Relu": _of(lambda x: np.maximum(x, np.float32(0))),
    "Neg": _of(np.negative),
    "Abs": _of(np.abs),
    "LeakyRelu": _leaky,
    "PRelu": _of(lambda x, slope: np.where(x < 0, slope * x, x)),
    "Clip": _clip,
    "Add": _of(np.add),
    "Sub": _of(np.subtract),
    "Mul": _of(np.multiply),
    "Max": _of(lambda *inputs: reduce(np.maximum, inputs)),
    "Min": _of(lambda *inputs: reduce(np.minimum, inputs)),
    "Transpose": _transpose,
}
ROUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Softplus": lambda x: np.logaddexp(0, x),
    "Softsign": lambda x: x / (1 + np.abs(x)),
}


def lowest_bit(values: np.ndarray) -> np.ndarray:
    """The power of two that the last set bit of each value stands for; infinity for zero."""
    mantissa, exponent = np.frexp(np.nan_to_num(np.asarray(values, np.float64)))
    integer = np.ldexp(mantissa, 53).astype(np.int64)
    last = np.ldexp((integer & -integer).astype(np.float64), exponent - 53)
    return np.where(integer == 0, np.inf, last)


def sums_exactly(terms: np.ndarray) -> np.ndarray:
    """Whether float32 adds the rows of `terms` without rounding in any order, for each column."""
    magnitude = np.abs(terms).sum(axis=0)
    return np.asarray(magnitude <= np.ldexp(lowest_bit(terms).min(axis=0, initial=np.inf), FLOAT_DIGITS))
