"""Float64 NumPy reference for fixed-point quantizers, trained scales and widths, EBOPs and calibration.

Written from formulas, never from the implementation it judges: the design notes (`methods.md`, by
section), HGQ2's counting as measured ("HGQ2 0.2.0"), and papers by name. Plain and slow on purpose. Arrays are
float64 and carry no batch axis unless a docstring says so; weights lie output axis first. Where the
published tool is defective, the sane function has the plain name and the defective one says so.

Letters: k sign bits (0 or 1), i integer bits without the sign, f fractional bits, e = 2^-f the least
step, D = 2^(i+k) the period. Half decisions are exact: the float just below 0.5 rounds down to 0 in
every half mode, where floor(x + 0.5) computed in floats would give 1.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference import FloatArray, _float64, _sum_to_shape, sigmoid

LN2 = math.log(2.0)

# Rounding to integers (§4.1)


def _half(v: FloatArray, away: ArrayLike) -> FloatArray:
    """Round to the nearest integer, halves away from zero where `away`, else towards it.

    By magnitude, because |v| - floor|v| is exact in floats and v - floor(v) is not.
    """
    magnitude = np.abs(v)
    low = np.floor(magnitude)
    part = magnitude - low
    return _float64(np.copysign(low + ((part > 0.5) | ((part == 0.5) & np.asarray(away))), v))


_ROUNDING: dict[str, Callable[[FloatArray], FloatArray]] = {
    "TRN": np.floor,
    "RND": lambda v: _half(v, v > 0.0),
    "RND_CONV": np.rint,
    "TRN_ZERO": np.trunc,
    "RND_ZERO": lambda v: _half(v, False),
    "RND_MIN_INF": lambda v: _half(v, v < 0.0),
    "RND_INF": lambda v: _half(v, True),
}
# QONNX's names, in upper case. UP and DOWN go by magnitude there: away from zero and towards it.
_ROUNDING |= {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda v: np.where(v > 0.0, np.ceil(v), np.floor(v)),
    "DOWN": np.trunc,
    "HALF_UP": _ROUNDING["RND_INF"],
    "HALF_DOWN": _ROUNDING["RND_ZERO"],
}


def round_mode(v: ArrayLike, mode: str) -> FloatArray:
    """Round to integers under an ap_fixed name (§4.1) or a QONNX name; ValueError for any other."""
    if mode not in _ROUNDING:
        raise ValueError(f"rounding mode {mode!r} is none of {', '.join(_ROUNDING)}")
    return _float64(_ROUNDING[mode](_float64(v)))


def stochastic_bounds(v: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (floor, ceil, probability of ceil = v - floor(v)); an integer is its own floor and ceil."""
    v = _float64(v)
    return np.floor(v), np.ceil(v), v - np.floor(v)


# Fixed point (§4.1)


def _exp2(n: ArrayLike) -> FloatArray:
    """Exact 2^n of integers held as floats."""
    return _float64(np.ldexp(1.0, np.asarray(n).astype(np.int64)))


def _lanes(k: ArrayLike, i: ArrayLike, f: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return (k, max(I, -F), F, k + I + F), I and F rounded half to even. Source: §4.1, §4.4.

    The width uses I before the clamp: with k = 1 and I + F = -1 the lane is empty, although the
    clamp alone would leave one bit, {-e, 0}.
    """
    k, i, f = _float64(k), np.rint(_float64(i)), np.rint(_float64(f))
    return k, np.maximum(i, -f), f, k + i + f


def range_of(k: ArrayLike, i: ArrayLike, f: ArrayLike, overflow: str) -> tuple[FloatArray, FloatArray]:
    """Return (low, MAX): MAX = 2^i - e, low = -k MAX for SAT_SYM, else -k 2^i. Source: §4.1.

    At i = -f MAX is 0: an unsigned lane holds only 0, a signed one {-e, 0}, SAT_SYM only 0.
    """
    k, i, f, _ = _lanes(k, i, f)
    high = _exp2(i) - _exp2(-f)
    return -k * (high if overflow == "SAT_SYM" else _exp2(i)), high


def round_to_grid(x: ArrayLike, f: ArrayLike, rounding: str) -> FloatArray:
    """R(x 2^F) 2^-F. Source: §4.1."""
    f = np.rint(_float64(f)).astype(np.int64)
    return _float64(np.ldexp(round_mode(np.ldexp(_float64(x), f), rounding), -f))


def wrap(q: ArrayLike, k: ArrayLike, i: ArrayLike) -> FloatArray:
    """((q + k 2^(i+k-1)) mod 2^(i+k)) - k 2^(i+k-1). Source: §4.1.

    For k = 0 that is q mod 2^i, never negative: -e becomes MAX, as an unsigned register does.
    """
    q, k, i = _float64(q), _float64(k), _float64(i)
    offset = k * _exp2(i)
    return _float64(np.mod(q + offset, _exp2(i + k)) - offset)


def wrap_sm(q: ArrayLike, k: ArrayLike, i: ArrayLike, f: ArrayLike) -> FloatArray:
    """Reflect q at both ends of a signed range: a triangle wave of period 2D. ValueError where k = 0.

    r = ((q + 2^i) mod 2D) - 2^i is q itself below 2^i; above, D - e - r. Source: AP_WRAP_SM, which
    inverts all kept bits where the lowest bit cut off differs from the kept sign.
    """
    q, k, i = _float64(q), _float64(k), _float64(i)
    if np.any(k == 0.0):
        raise ValueError("WRAP_SM needs a sign")
    half = _exp2(i)
    r = np.mod(q + half, 4.0 * half) - half
    return _float64(np.where(r < half, r, 2.0 * half - _exp2(-_float64(f)) - r))


def _reflections(
    x: FloatArray, k: FloatArray, i: FloatArray, f: FloatArray
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where the published WRAP_SM applies its first and its second m = -m - e. Source: §4.1."""
    e, D = _exp2(-f), _exp2(i + k)
    first = np.mod((x + e / 2.0) / (D / 2.0), 2.0) >= 1.0
    second = (np.mod(x / D, 2.0) >= 1.0) & (np.abs(x) > e / 2.0)
    return first, second


def _wrap_sm_published(x: FloatArray, q: FloatArray, k: FloatArray, i: FloatArray, f: FloatArray) -> FloatArray:
    """WRAP_SM as published, deciding by x instead of q; see `fixed_point`. Source: §4.1."""
    e, D = _exp2(-f), _exp2(i + k)
    m = np.mod(q - _exp2(i), D) - k * _exp2(i)
    for reflected in _reflections(x, k, i, f):
        m = np.where(reflected, -m - e, m)
    return _float64(m)


def _check_overflow(overflow: str, rounding: str) -> None:
    if overflow not in ("SAT", "SAT_SYM", "WRAP", "WRAP_SM", "WRAP_SM_PUBLISHED"):
        raise ValueError(f"unknown overflow mode {overflow!r}")
    if overflow.startswith("WRAP_SM") and rounding not in ("RND", "RND_CONV"):
        raise ValueError(f"{overflow} takes RND or RND_CONV, not {rounding}")


def fixed_point(
    x: ArrayLike,
    k: ArrayLike,
    i: ArrayLike,
    f: ArrayLike,
    rounding: str,
    overflow: str,
    wraps: bool = True,
    zero_empty: bool = True,
) -> FloatArray:
    """Quantize to k sign, i integer and f fractional bits; k, i, f broadcast to x. Source: §4.1, §4.4.

    i and f may be real: rounded half to even, then i := max(i, -f). SAT and SAT_SYM clip, then
    round; the WRAP family rounds first. `wraps=False` leaves WRAP out, as in training (and as the
    published weight quantizer in evaluation); WRAP_SM always reflects. `zero_empty` gives 0 where
    k + I + F <= 0, as in evaluation; training has no such zeroing.
    WRAP_SM is `wrap_sm`; WRAP_SM_PUBLISHED (any k) decides its second reflection by x / D, so x in
    [nD - e/2, nD) for odd n lands one step off: (1,1,1), RND, x = 3.9 gives 0 where q = 4 wraps to -0.5.
    """
    _check_overflow(overflow, rounding)
    x = _float64(x)
    k, i, f, width = _lanes(k, i, f)
    if overflow in ("SAT", "SAT_SYM"):
        low, high = range_of(k, i, f, overflow)
        y = round_to_grid(np.clip(x, low, high), f, rounding)
    else:
        y = round_to_grid(x, f, rounding)
        if overflow == "WRAP" and wraps:
            y = wrap(y, k, i)
        elif overflow == "WRAP_SM":
            y = wrap_sm(y, k, i, f)
        elif overflow == "WRAP_SM_PUBLISHED":
            y = _wrap_sm_published(x, y, k, i, f)
    return np.where(width <= 0.0, 0.0, y) if zero_empty else y


def round_then_clip(x: ArrayLike, k: ArrayLike, i: ArrayLike, f: ArrayLike, rounding: str, overflow: str) -> FloatArray:
    """Round first, clip after, no zeroing: equal to SAT and SAT_SYM, bounds being on the grid. Source: §4.1."""
    low, high = range_of(k, i, f, overflow)
    return _float64(np.clip(round_to_grid(x, f, rounding), low, high))


# Gradients (§4.2): elementwise, in the broadcast shape, before any sum


def reduce_to(gradient: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """Sum a gradient over the axes along which `shape` was broadcast."""
    return _sum_to_shape(_float64(gradient), shape)


def fixed_point_gradients(
    dy: ArrayLike, x: ArrayLike, k: ArrayLike, i: ArrayLike, f: ArrayLike, rounding: str, overflow: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (dx, di, df) of training, in the broadcast shape of x, k, i and f. Source: §4.2.

    Bounds are inside: x = MAX and x = low pass. Rounding of i and f is straight through, and so is
    i := max(i, -f): a clamped lane still sends di to i and nothing more to f. WRAP gives the same
    whether or not the forward pass wraps: dx = dy, df = ln2 (x - q) dy with q before the wrap, no di.
    """
    _check_overflow(overflow, rounding)
    k, i, f, _ = _lanes(k, i, f)
    dy, x, k, i, f = np.broadcast_arrays(_float64(dy), _float64(x), k, i, f)
    if overflow in ("SAT", "SAT_SYM"):
        slopes = _saturating_slopes(x, k, i, f, rounding, overflow)
    else:
        q = round_to_grid(x, f, rounding)
        slopes = np.ones_like(x), np.zeros_like(x), LN2 * (x - q)
        if overflow == "WRAP_SM":
            slopes = _wrap_sm_slopes(q, slopes, i, f)
        elif overflow == "WRAP_SM_PUBLISHED":
            slopes = _wrap_sm_published_slopes(x, q, slopes, k, i, f)
    dx, di, df = (dy * slope for slope in slopes)
    return dx, di, df


_Slopes = tuple[FloatArray, FloatArray, FloatArray]


def _saturating_slopes(
    x: FloatArray, k: FloatArray, i: FloatArray, f: FloatArray, rounding: str, overflow: str
) -> _Slopes:
    """(dy/dx, dy/di, dy/df) of SAT and SAT_SYM: the table of §4.2."""
    low, high = range_of(k, i, f, overflow)
    above, below = x > high, x < low
    inside = ~(above | below)
    symmetric = k if overflow == "SAT_SYM" else 0.0
    di = LN2 * _exp2(i) * (above - k * below)
    df = np.where(inside, LN2 * (x - round_to_grid(x, f, rounding)), LN2 * _exp2(-f) * (above - symmetric * below))
    return _float64(inside), di, df


def _reflect_slopes(reflected: NDArray[np.bool_], slopes: _Slopes, e: FloatArray) -> _Slopes:
    """Slopes of m -> -m - e where reflected; de/df = -ln2 e."""
    dx, di, df = (np.where(reflected, -slope, slope) for slope in slopes)
    return dx, di, df + np.where(reflected, LN2 * e, 0.0)


def _wrap_sm_slopes(q: FloatArray, slopes: _Slopes, i: FloatArray, f: FloatArray) -> _Slopes:
    """Chain rule through `wrap_sm`, r = q - 2nD, dD/di = ln2 D; §4.2 has no row for it."""
    D = _exp2(i + 1.0)
    turns = np.floor((q + D / 2.0) / (2.0 * D))
    r = q - 2.0 * turns * D
    reflected = r >= D / 2.0
    dx, di, df = _reflect_slopes(reflected, (slopes[0], -2.0 * LN2 * turns * D, slopes[2]), _exp2(-f))
    return dx, di + np.where(reflected, LN2 * D, 0.0), df


def _wrap_sm_published_slopes(
    x: FloatArray, q: FloatArray, slopes: _Slopes, k: FloatArray, i: FloatArray, f: FloatArray
) -> _Slopes:
    """Chain rule through the published WRAP_SM: before reflections m - q is a multiple of 2^i."""
    m = np.mod(q - _exp2(i), _exp2(i + k)) - k * _exp2(i)
    slopes = (slopes[0], LN2 * (m - q), slopes[2])
    for reflected in _reflections(x, k, i, f):
        slopes = _reflect_slopes(reflected, slopes, _exp2(-f))
    return slopes


# Integer bits from data (§4.3, §4.4)


def ceil_log2(v: ArrayLike) -> FloatArray:
    """Exact ceil(log2 v); -inf where v <= 0."""
    v = _float64(v)
    mantissa, exponent = np.frexp(v)
    return np.where(v > 0.0, exponent - (mantissa == 0.5), -np.inf)


def holding_bits(low: ArrayLike, high: ArrayLike, k: ArrayLike) -> FloatArray:
    """Smallest integer i with high < 2^i and, where k = 1, -2^i <= low; -inf where nothing needs a bit.

    Exact at powers of two: a signed type holds -2^i but not +2^i. Values between MAX and 2^i still
    lose less than one step.
    """
    low, high = _float64(low), _float64(high)
    _, exponent = np.frexp(high)
    above = np.where(high > 0.0, exponent, -np.inf)
    return np.where(_float64(k) == 1.0, np.maximum(above, ceil_log2(-low)), above)


def integer_bits(absmax: ArrayLike, f: ArrayLike, dtype: type[np.floating] = np.float64) -> FloatArray:
    """ceil(log2(absmax + 2^-F + 1e-10)), the need tracked under WRAP. Source: §4.4.

    In float64 a power of two gets one bit too many; in float32 (`dtype`, as published) 1e-10 is
    lost from about 1e-3 on, so it does not.
    """
    step = dtype(1.0) * _exp2(-np.rint(_float64(f))).astype(dtype)
    return _float64(np.ceil(np.log2(np.asarray(absmax).astype(dtype) + step + dtype(1e-10))))


def integer_bits_exact(low: ArrayLike, high: ArrayLike, k: ArrayLike, f: ArrayLike, rounding: str) -> FloatArray:
    """Smallest i whose range holds R(low) and R(high) without overflow, at least -F. Source: §4.1."""
    f = np.rint(_float64(f))
    bottom, top = round_to_grid(low, f, rounding), round_to_grid(high, f, rounding)
    return np.maximum(holding_bits(bottom, top, k), -f)


def tracked(
    i: ArrayLike,
    x: ArrayLike,
    f: ArrayLike,
    decay: float,
    axes: tuple[int, ...],
    dtype: type[np.floating] = np.float64,
) -> FloatArray:
    """clip(max(i - decay, need of max |x| over `axes`), -23, 23), axes kept at size 1. Source: §4.4.

    decay = inf forgets every earlier batch, as published for torch.
    """
    absmax = np.abs(_float64(x)).max(axis=axes, keepdims=True)
    return np.clip(np.maximum(_float64(i) - decay, integer_bits(absmax, f, dtype)), -23.0, 23.0)


def split_bits(
    absmax: ArrayLike, bits: ArrayLike, k: ArrayLike, dtype: type[np.floating] = np.float64
) -> tuple[FloatArray, FloatArray]:
    """Published split of a constant width: i = clip(ceil(log2(A + 1e-6)), 0, b - k), f = max(b - i - k, 0).

    Source: §4.3. Gives powers of two one bit too many; in float32 (`dtype`, as published) only those
    below 16, from where the sum or its logarithm rounds 1e-6 away.
    """
    m = np.ceil(np.log2(np.asarray(absmax).astype(dtype) + dtype(1e-6)))
    return _split(_float64(m), _float64(bits), _float64(k))


def split_bits_exact(low: ArrayLike, high: ArrayLike, bits: ArrayLike, k: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Same split with i from `holding_bits`: -2^i fits, +2^i needs one bit more. Source: §4.3 without 1e-6."""
    return _split(holding_bits(low, high, k), _float64(bits), _float64(k))


def _split(m: FloatArray, bits: FloatArray, k: FloatArray) -> tuple[FloatArray, FloatArray]:
    i = np.clip(m, 0.0, bits - k)
    return i, np.maximum(bits - i - k, 0.0)


# Learned step size (Esser et al. 2020), bipolar and ternary


def lsq_levels(bits: int, signed: bool, narrow: bool = False) -> tuple[float, float]:
    """Return (Qn, Qp): signed (2^(b-1) - narrow, 2^(b-1) - 1), unsigned (0, 2^b - 1). Source: Esser et al., §2."""
    if not signed:
        return 0.0, 2.0**bits - 1.0
    return 2.0 ** (bits - 1) - narrow, 2.0 ** (bits - 1) - 1.0


def lsq(x: ArrayLike, s: ArrayLike, qn: float, qp: float, rounding: str = "RND_CONV") -> FloatArray:
    """R(clip(x / s, -Qn, Qp)) s, s > 0 broadcasting to x. Source: Esser et al., eq. 1 and 2."""
    s = _float64(s)
    return round_mode(np.clip(_float64(x) / s, -qn, qp), rounding) * s


def lsq_gradients(
    dy: ArrayLike,
    x: ArrayLike,
    s: ArrayLike,
    qn: float,
    qp: float,
    rounding: str = "RND_CONV",
    scaled: bool = True,
    inclusive: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """Return (dx in the broadcast shape, ds in the shape of s). Source: Esser et al., eq. 3 to 5.

    With v = x/s: dx = dy inside; ds = R(v) - v inside, -Qn below, Qp above, times dy, summed, times
    1/sqrt(N Qp) if `scaled`, N the number of elements that share one s. The paper's inside is
    -Qn < v < Qp; `inclusive` has -Qn <= v <= Qp, as automatic differentiation of a clip does,
    where ds at a bound is 0 instead of the bound.
    """
    s = _float64(s)
    v = _float64(x) / s
    inside = (-qn <= v) & (v <= qp) if inclusive else (-qn < v) & (v < qp)
    slope = np.where(inside, round_mode(v, rounding) - v, np.where(v > 0.0, qp, -qn))
    scale = 1.0 / math.sqrt(v.size / s.size * qp) if scaled else 1.0
    return _float64(dy) * inside, scale * reduce_to(_float64(dy) * slope, s.shape)


def lsq_initial_scale(x: ArrayLike, qp: float) -> float:
    """2 mean|x| / sqrt(Qp). Source: Esser et al., §2.1."""
    return float(2.0 * np.abs(_float64(x)).mean() / math.sqrt(qp))


def power_of_two_lsq(x: ArrayLike, t: ArrayLike, qn: float, qp: float, rounding: str = "RND_CONV") -> FloatArray:
    """`lsq` with s = 2^round(t), round half to even."""
    return lsq(x, _exp2(np.rint(_float64(t))), qn, qp, rounding)


def power_of_two_lsq_gradients(
    dy: ArrayLike,
    x: ArrayLike,
    t: ArrayLike,
    qn: float,
    qp: float,
    rounding: str = "RND_CONV",
    scaled: bool = True,
    inclusive: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """Return (dx, dt): dt = ln2 s ds, rounding of t straight through."""
    s = _exp2(np.rint(_float64(t)))
    dx, ds = lsq_gradients(dy, x, s, qn, qp, rounding, scaled, inclusive)
    return dx, LN2 * s * ds


def bipolar(x: ArrayLike, scale: ArrayLike) -> FloatArray:
    """scale where x >= 0, else -scale."""
    return np.where(_float64(x) >= 0.0, 1.0, -1.0) * _float64(scale)


def bipolar_gradients(dy: ArrayLike, x: ArrayLike, scale: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return (dx, dscale): dx = dy where |x| <= scale, else 0; dscale = sum dy sign, sign(0) = 1."""
    dy, x, scale = _float64(dy), _float64(x), _float64(scale)
    return dy * (np.abs(x) <= scale), reduce_to(dy * bipolar(x, np.ones_like(scale)), scale.shape)


def ternary(x: ArrayLike, scale: ArrayLike, rounding: str = "RND_CONV") -> FloatArray:
    """R(clip(x/scale, -1, 1)) scale: 2 bits, signed, narrow."""
    return lsq(x, scale, 1.0, 1.0, rounding)


def ternary_gradients(
    dy: ArrayLike, x: ArrayLike, scale: ArrayLike, rounding: str = "RND_CONV"
) -> tuple[FloatArray, FloatArray]:
    """Return (dx, dscale) of `ternary`, bounds inside, no gradient scale."""
    return lsq_gradients(dy, x, scale, 1.0, 1.0, rounding, scaled=False, inclusive=True)


# Widths, regularizer, loss (§4.4, §4.7)


def width(k: ArrayLike, i: ArrayLike, f: ArrayLike) -> FloatArray:
    """k + relu(I + F): a signed lane never costs less than one bit. Source: §4.4."""
    return _float64(_float64(k) + np.maximum(np.rint(_float64(i)) + np.rint(_float64(f)), 0.0))


def width_without_floor(k: ArrayLike, i: ArrayLike, f: ArrayLike) -> FloatArray:
    """relu(k + I + F): an empty lane, which evaluates to 0, costs nothing."""
    return np.maximum(_float64(k) + np.rint(_float64(i)) + np.rint(_float64(f)), 0.0)


def width_hgq2(k: ArrayLike, i: ArrayLike, f: ArrayLike, overflow: str) -> FloatArray:
    """relu(I + F), without the sign; plus k where the quantizer saturates. Source: HGQ2 0.2.0."""
    magnitude = width(0.0, i, f)
    return magnitude + _float64(k) if overflow in ("SAT", "SAT_SYM") else magnitude


def width_slope(i: ArrayLike, f: ArrayLike) -> FloatArray:
    """d width / d(i + f): 1 where I + F > 0, else 0; rounding straight through."""
    return _float64(width(0.0, i, f) > 0.0)


def regularizer(i: ArrayLike, f: ArrayLike, gamma: float, overflow: str) -> float:
    """gamma (sum F + sum I), without I under WRAP, where it is not trained. Source: §4.4.

    Shapes are those of the trained bit tensors. Negative bits lower it, down to the clamp.
    """
    total = np.rint(_float64(f)).sum()
    if overflow != "WRAP":
        total += np.rint(_float64(i)).sum()
    return float(gamma * total)


def regularizer_gradients(i: ArrayLike, f: ArrayLike, gamma: float, overflow: str) -> tuple[FloatArray, FloatArray]:
    """Return (di, df): gamma everywhere, di = 0 under WRAP. Source: derivative of §4.4."""
    di = np.full(_float64(i).shape, 0.0 if overflow == "WRAP" else gamma)
    return di, np.full(_float64(f).shape, gamma)


def hgq_loss(ebops: float, beta: float, regularizers: Sequence[float]) -> float:
    """beta EBOPs + regularizers of the layer's weight, bias, input and output. Source: §4.7."""
    return beta * ebops + sum(regularizers)


# Effective bit operations (§4.6). Bit tensors broadcast to what they describe, by NumPy's rules: a
# scalar per tensor, (O, 1) or (C, 1, 1) per channel, the full shape per element.

Convention = Literal["multiplications", "additions", "reference", "hgq2"]
CONVENTIONS: tuple[Convention, ...] = ("multiplications", "additions", "reference", "hgq2")

# multiplications: products of two widths only. additions: those, and each addition's narrower
# operand; so a bias adds its bits once for every output it is added to. reference: the published
# formulas with their defects. hgq2: HGQ2 0.2.0; give it widths from `width_hgq2`.


def _check(convention: Convention) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r} is none of {', '.join(CONVENTIONS)}")


def _bits(bits: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    return np.broadcast_to(_float64(bits), shape)


def _weight_bits(bits: ArrayLike, weight: FloatArray, masked: bool) -> FloatArray:
    """Bits of every weight, 0 for a zero weight unless `masked` is off."""
    return _float64(_bits(bits, weight.shape) * ((weight != 0.0) | (not masked)))


def published_mask(weight: ArrayLike, f: ArrayLike, hard_mask: ArrayLike = 1.0) -> FloatArray:
    """hard_mask 1[|W| > 2^(-F-1)], what the published masked count multiplies B_w with. Source: §4.6.

    Off at |W| = 2^(-F-1), which RND rounds to one step for positive W; the sane test is Q(W) != 0.
    """
    return _float64(_float64(hard_mask) * (np.abs(_float64(weight)) > _exp2(-np.rint(_float64(f)) - 1.0)))


def significant_bits(q: ArrayLike, f: ArrayLike) -> FloatArray:
    """Bits from the first to the last non-zero bit of |q| on the grid 2^-F; 0 for 0. Source: HGQ2 0.2.0."""
    n, f = np.broadcast_arrays(np.abs(_float64(q)), np.rint(_float64(f)))
    integers = np.ldexp(n, f.astype(np.int64)).astype(np.int64)
    spans = [int(v).bit_length() - (int(v & -v).bit_length() - 1 if v else 0) for v in integers.ravel()]
    return _float64(np.reshape(spans, integers.shape))


def dense_ebops(
    bits_in: ArrayLike,
    bits_w: ArrayLike,
    bits_b: ArrayLike,
    weight: ArrayLike,
    convention: Convention,
    positions: tuple[int, ...] = (),
    masked: bool = True,
) -> float:
    """sum_{p,o,j} B_in[p,j] B_w[o,j], and sum_{p,o} B_b[o] but for "multiplications". Source: §4.6.

    `weight` (O, I), quantized; `bits_in` to (*positions, I), `bits_w` to (O, I), `bits_b` to (O,),
    0 without a bias. mean(B_b) positions O of "reference" and "hgq2" is the same number. The
    published training loss counts with `masked` off.
    """
    _check(convention)
    weight = _float64(weight)
    lanes = _bits(bits_in, (*positions, weight.shape[1])).reshape(-1, weight.shape[1])
    products = (lanes @ _weight_bits(bits_w, weight, masked).T).sum()
    biases = lanes.shape[0] * _bits(bits_b, weight.shape[:1]).sum()
    return float(products + (biases if convention != "multiplications" else 0.0))


def conv_output_shape(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> tuple[int, ...]:
    """floor((S + pads - dilation (K - 1) - 1) / stride) + 1 per axis; pads begin..., end.... Source: ONNX Conv."""
    rank = len(kernel)
    return tuple(
        (spatial[a] + pads[a] + pads[a + rank] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(rank)
    )


def conv_ebops(
    bits_in: ArrayLike,
    bits_w: ArrayLike,
    bits_b: ArrayLike,
    weight: ArrayLike,
    spatial: Sequence[int],
    convention: Convention,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
    masked: bool = True,
    parallelization: float | None = None,
) -> float:
    """Convolution of any rank: one multiplier per weight, whatever the image. Source: §4.6.

    sum_{o,c,K} max over space of B_in[c] B_w[o,c,K], c over the inputs of o's group; "additions" adds
    output positions sum_o B_b[o], "hgq2" as much for each position of the input. `weight` (O, C/groups, *K), quantized; `bits_in` to (C, *spatial),
    `bits_w` to the weight, `bits_b` to (O,). `parallelization` (kernels at work at once) is HGQ2's;
    None means one for every output position.
    """
    _check(convention)
    weight = _float64(weight)
    rank = weight.ndim - 2
    lanes = _bits(bits_in, (weight.shape[1] * groups, *spatial))
    w = _weight_bits(bits_w, weight, masked)
    biases = _bits(bits_b, weight.shape[:1])
    if convention == "reference":
        return _conv_ebops_published(lanes, w, biases, groups)
    window = (tuple(strides or (1,) * rank), tuple(pads or (0,) * 2 * rank), tuple(dilations or (1,) * rank))
    positions = math.prod(conv_output_shape(spatial, weight.shape[2:], *window))
    if convention == "hgq2":
        share = 1.0 if parallelization is None else parallelization / positions
        total = share * (_grouped(_window_sums(lanes, weight.shape[2:], *window), w, groups) * w).sum()
        return float(total + biases.sum() * math.prod(spatial))
    largest = lanes.reshape(len(lanes), -1).max(axis=1).reshape(-1, *(1,) * rank)
    total = (_grouped(largest, w, groups) * w).sum()
    return float(total + (positions * biases.sum() if convention == "additions" else 0.0))


def _grouped(channels: FloatArray, w: FloatArray, groups: int) -> FloatArray:
    """Lay (C, ...) beside the weights: (O, C/groups, ...), each output's own group of inputs."""
    by_group = channels.reshape(groups, w.shape[1], *channels.shape[1:])
    return by_group.repeat(w.shape[0] // groups, axis=0)


def _window_sums(
    lanes: FloatArray, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> FloatArray:
    """(C, *K): bits that meet each kernel place, summed over output positions; padding has 0 bits."""
    rank = len(kernel)
    out = conv_output_shape(lanes.shape[1:], kernel, strides, pads, dilations)
    padded = np.pad(lanes, [(0, 0), *((pads[a], pads[a + rank]) for a in range(rank))])
    places = []
    for place in itertools.product(*map(range, kernel)):
        start = [place[a] * dilations[a] for a in range(rank)]
        seen = [slice(start[a], start[a] + out[a] * strides[a], strides[a]) for a in range(rank)]
        index = (slice(None), *seen)
        places.append(padded[index].reshape(len(lanes), -1).sum(axis=1))
    return _float64(np.stack(places, axis=1).reshape(len(lanes), *kernel))


def _conv_ebops_published(lanes: FloatArray, w: FloatArray, biases: FloatArray, groups: int) -> float:
    """sum_{o,c} max B_in[c] sum_K B_w[o,c,K] + mean(B_b) numel(input). Source: §4.6 and §11.1, 9.

    Defects kept: the bias counts input elements; every output of a depthwise kernel meets every
    input channel; other groups raise ValueError.
    """
    if groups > 1 and w.shape[1] != 1:
        raise ValueError("the published count fails for groups that are not depthwise")
    largest = lanes.reshape(1, len(lanes), -1).max(axis=2)
    per_kernel = w.reshape(*w.shape[:2], -1).sum(axis=2)
    return float((largest * per_kernel).sum() + biases.mean() * lanes.size)


def batch_norm_ebops(
    bits_in: ArrayLike,
    bits_gamma: ArrayLike,
    bits_beta: ArrayLike,
    gamma: ArrayLike,
    spatial: Sequence[int],
    convention: Convention,
    masked: bool = True,
) -> float:
    """sum over (C, *spatial) of B_in B_gamma[c], and of B_beta[c] but for "multiplications". Source: §4.6.

    `gamma`, `bits_gamma` and `bits_beta` are (C,) or broadcast to it.
    """
    _check(convention)
    gamma = _float64(gamma)
    elements = math.prod(spatial)
    per_channel = _bits(bits_in, (len(gamma), *spatial)).reshape(len(gamma), -1).sum(axis=1)
    products = (per_channel * _weight_bits(bits_gamma, gamma, masked)).sum()
    biases = elements * _bits(bits_beta, gamma.shape).sum()
    return float(products + (biases if convention != "multiplications" else 0.0))


def layer_norm_ebops(
    bits_in: ArrayLike,
    bits_gamma: ArrayLike,
    bits_beta: ArrayLike,
    gamma: ArrayLike,
    positions: tuple[int, ...],
    convention: Convention,
    masked: bool = True,
) -> float:
    """Affine part only, over (*positions, D); "reference" counts 0. Source: §4.6 and §11.1, 9.

    sum B_in B_gamma (+ sum B_beta but for "multiplications"), the normalized input taken to be as
    wide as the input; mean, variance and root are float and not counted.
    """
    _check(convention)
    if convention == "reference":
        return 0.0
    gamma = _float64(gamma)
    lanes = _bits(bits_in, (*positions, len(gamma)))
    products = (lanes * _weight_bits(bits_gamma, gamma, masked)).sum()
    biases = math.prod(positions) * _bits(bits_beta, gamma.shape).sum()
    return float(products + (biases if convention != "multiplications" else 0.0))


def average_pool_ebops(bits_in: ArrayLike, shape: Sequence[int], convention: Convention) -> float:
    """sum of B_in over the input; 0 for "multiplications", since it only adds. Source: §4.6."""
    _check(convention)
    return 0.0 if convention == "multiplications" else float(_bits(bits_in, tuple(shape)).sum())


def table_ebops(bits_in: ArrayLike, bits_out: ArrayLike, shape: Sequence[int], convention: Convention) -> float:
    """1e-4 sum 2^B_in B_out, a lookup table per lane; 0 for "multiplications". Source: §4.6."""
    _check(convention)
    if convention == "multiplications":
        return 0.0
    return float(1e-4 * (np.power(2.0, _bits(bits_in, tuple(shape))) * _bits(bits_out, tuple(shape))).sum())


def softmax_ebops(
    bits_in: ArrayLike,
    bits_exp: ArrayLike,
    bits_inv: ArrayLike,
    shape: Sequence[int],
    convention: Convention,
    stable: bool = True,
    parallelization: float | None = None,
) -> float:
    """Softmax over the last axis of (*rows, n), without its tables. Source: §4.6, HGQ2 0.2.0.

    sum B_exp B_inv, and but for "multiplications" sum B_in (stable: max - x) and sum B_exp minus each
    row's narrowest (the sum). `bits_inv` broadcasts to the shape, (*rows, 1) per row. "reference"
    adds the exponential's table if unstable; all other tables are `table_ebops`. `parallelization`
    (rows at work at once) is None for all.
    """
    _check(convention)
    shape = tuple(shape)
    inputs, exps, invs = _bits(bits_in, shape), _bits(bits_exp, shape), _bits(bits_inv, shape)
    total = (exps * invs).sum()
    if convention != "multiplications":
        total += exps.sum() - exps.min(axis=-1).sum() + (inputs.sum() if stable else 0.0)
    if convention == "reference" and not stable:
        total += table_ebops(inputs, exps, shape, convention)
    rows = math.prod(shape[:-1])
    return float(total if parallelization is None else total * parallelization / rows)


def attention_ebops(
    bits_q: ArrayLike,
    bits_k: ArrayLike,
    bits_attn: ArrayLike,
    bits_v: ArrayLike,
    heads: int,
    t: int,
    s: int,
    d: int,
    convention: Convention,
) -> float:
    """sum_{h,t,s,d} B_q[h,t,d] B_k[h,s,d] + B_attn[h,t,s] B_v[h,s,d]: products only, so in every convention.

    Projections and softmax are counted apart. Source: §4.6.
    """
    _check(convention)
    q, k = _bits(bits_q, (heads, t, d)), _bits(bits_k, (heads, s, d))
    attn, v = _bits(bits_attn, (heads, t, s)), _bits(bits_v, (heads, s, d))
    return float(np.einsum("htd,hsd->", q, k) + np.einsum("hts,hsd->", attn, v))


def add_ebops(operands: Sequence[ArrayLike], shape: Sequence[int], convention: Convention) -> float:
    """Sum of tensors: sum of bits minus the widest operand's, per element.

    Counted for "additions"; "hgq2" takes off the narrowest operand's, and counts 0.65 of the rest; "reference" has no such layer and counts 0.
    """
    _check(convention)
    factor = {"multiplications": 0.0, "additions": 1.0, "reference": 0.0, "hgq2": 0.65}[convention]
    stacked = np.stack([_bits(bits, tuple(shape)) for bits in operands])
    free = stacked.min(axis=0) if convention == "hgq2" else stacked.max(axis=0)
    return float(factor * (stacked.sum(axis=0) - free).sum())


def subtract_ebops_hgq2(a: ArrayLike, b: ArrayLike, shape: Sequence[int]) -> float:
    """sum of max(B_a, B_b). Source: HGQ2 0.2.0."""
    return float(np.maximum(_bits(a, tuple(shape)), _bits(b, tuple(shape))).sum())


def reduce_sum_ebops_hgq2(bits: ArrayLike, shape: Sequence[int], axis: int = -1) -> float:
    """0.65 (sum - min) along the summed axis. Source: HGQ2 0.2.0."""
    lanes = _bits(bits, tuple(shape))
    return float(0.65 * (lanes.sum() - lanes.min(axis=axis).sum()))


def multiply_ebops(a: ArrayLike, b: ArrayLike, shape: Sequence[int]) -> float:
    """sum B_a B_b of an elementwise product of two tensors, in every convention. Source: HGQ2 0.2.0."""
    return float((_bits(a, tuple(shape)) * _bits(b, tuple(shape))).sum())


# Activations (§4.5), then the same between quantizers

Quantizer = Callable[[FloatArray], FloatArray]


def identity(x: FloatArray) -> FloatArray:
    """Leave x as it is: no quantizer here."""
    return x


@dataclass(frozen=True)
class Fixed:
    """`fixed_point` as a function of x alone."""

    k: float
    i: float
    f: float
    rounding: str = "RND"
    overflow: str = "SAT"

    def __call__(self, x: FloatArray) -> FloatArray:
        return fixed_point(x, self.k, self.i, self.f, self.rounding, self.overflow)


def relu(x: ArrayLike) -> FloatArray:
    """max(x, 0)."""
    return np.maximum(_float64(x), 0.0)


def leaky_relu(x: ArrayLike, slope: float = 13.0 / 128.0) -> FloatArray:
    """x where x >= 0, else slope x; 13/128 = 0.1015625. Source: §4.5."""
    x = _float64(x)
    return np.where(x >= 0.0, x, slope * x)


def prelu(x: ArrayLike, slope: ArrayLike) -> FloatArray:
    """`leaky_relu` with slopes that broadcast to x."""
    x = _float64(x)
    return np.where(x >= 0.0, x, _float64(slope) * x)


def tanh(x: ArrayLike) -> FloatArray:
    """tanh x."""
    return np.tanh(_float64(x))


def hard_sigmoid(x: ArrayLike, alpha: float = 0.5, beta: float = 0.5) -> FloatArray:
    """clip(alpha x + beta, 0, 1). 0.5 belongs to `hard_tanh` (§4.5); ONNX defaults to 0.2, torch to 1/6."""
    return np.clip(alpha * _float64(x) + beta, 0.0, 1.0)


def hard_tanh(x: ArrayLike) -> FloatArray:
    """2 clip(x/2 + 1/2, 0, 1) - 1 = clip(x, -1, 1). Source: §4.5."""
    return np.clip(_float64(x), -1.0, 1.0)


def gelu(x: ArrayLike) -> FloatArray:
    """x (1 + erf(x / sqrt 2)) / 2, exact. Source: §4.5."""
    x = _float64(x)
    erf = np.array([math.erf(v / math.sqrt(2.0)) for v in x.ravel()]).reshape(x.shape)
    return 0.5 * x * (1.0 + erf)


def silu(x: ArrayLike) -> FloatArray:
    """x sigmoid(x)."""
    return _float64(x) * sigmoid(x)


def relu_multiplier(x: ArrayLike, m: float) -> FloatArray:
    """x 2^round(m), round half to even; comes before the input quantizer. Source: §4.5."""
    return _float64(x) * _exp2(np.rint(m))


def relu_multiplier_gradients(dy: ArrayLike, x: ArrayLike, m: float) -> tuple[FloatArray, float]:
    """Return (dx, dm): dx = dy 2^round(m); dm = ln2 sum dy x 2^round(m). Source: derivative of §4.5."""
    return _float64(dy) * _exp2(np.rint(m)), float(LN2 * (_float64(dy) * relu_multiplier(x, m)).sum())


def activation(
    x: ArrayLike,
    function: Callable[[FloatArray], FloatArray],
    quantize_input: Quantizer = identity,
    quantize_output: Quantizer = identity,
    m: float | None = None,
) -> FloatArray:
    """Q_out(g(Q_in(x 2^round(m)))), without the factor where m is None. Source: §4.5."""
    x = _float64(x) if m is None else relu_multiplier(x, m)
    return quantize_output(function(quantize_input(x)))


@dataclass(frozen=True)
class SoftmaxQuantizers:
    """Quantizers inside a softmax, in order of use; `difference` only if stable. Source: §8.2."""

    input: Quantizer = identity
    difference: Quantizer = identity
    exp: Quantizer = identity
    sum: Quantizer = identity
    inverse: Quantizer = identity
    output: Quantizer = identity


def softmax(
    x: ArrayLike,
    quantizers: SoftmaxQuantizers,
    stable: bool = True,
    scale: float = 1.0,
    keep: ArrayLike = 1.0,
    axis: int = -1,
) -> FloatArray:
    """e = Q(exp(-Q(max - x) scale)) or, unstable, Q(exp(x scale)); y = Q(e Q(1 / (Q(sum e) + 1e-7))).

    x is Q_in(x) throughout. `keep` (1 or 0) multiplies e before the sum, after e's quantizer, and
    does not alter the maximum. Source: §8.2.
    """
    x = quantizers.input(_float64(x))
    exponent = -quantizers.difference(x.max(axis=axis, keepdims=True) - x) if stable else x
    e = quantizers.exp(np.exp(exponent * scale)) * _float64(keep)
    inverse = quantizers.inverse(1.0 / (quantizers.sum(e.sum(axis=axis, keepdims=True)) + 1e-7))
    return quantizers.output(e * inverse)


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    quantizers: SoftmaxQuantizers,
    attn_mask: ArrayLike = 0.0,
    keep: ArrayLike = 1.0,
    stable: bool = True,
) -> tuple[FloatArray, FloatArray]:
    """Return (context (H, T, d), attention (H, T, S)) of projected q (H, T, d), k and v (H, S, d).

    softmax(q k^T float32(d^-1/2) + attn_mask) v; `keep` broadcasts to (H, T, S). Source: §8.2.
    """
    q, k, v = _float64(q), _float64(k), _float64(v)
    scores = np.einsum("htd,hsd->hts", q, k) * float(np.float32(q.shape[-1] ** -0.5)) + _float64(attn_mask)
    weights = softmax(scores, quantizers, stable, keep=keep)
    return np.einsum("hts,hsd->htd", weights, v), weights


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    quantize_input: Quantizer = identity,
    quantize_gamma: Quantizer = identity,
    quantize_beta: Quantizer = identity,
    quantize_output: Quantizer = identity,
    epsilon: float = 1e-5,
) -> FloatArray:
    """Q((x - mean) / sqrt(var + epsilon) Q(gamma) + Q(beta)) over the last axis, x quantized. Source: §8.2.

    var is the mean of squared deviations; normalization itself is float.
    """
    x = quantize_input(_float64(x))
    centred = x - x.mean(axis=-1, keepdims=True)
    normalized = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return quantize_output(normalized * quantize_gamma(_float64(gamma)) + quantize_beta(_float64(beta)))


# Calibration: integer bits i of a type with `magnitude` = i + f bits, from samples; any sign of i and f


def calibrate_minmax(x: ArrayLike, k: int) -> int:
    """Smallest i that holds every sample (`holding_bits`), 0 where none needs a bit.

    Whatever the width: samples between MAX and 2^i saturate, by less than one step.
    """
    x = _float64(x)
    need = float(holding_bits(x.min(), x.max(), k))
    return int(need) if math.isfinite(need) else 0


def calibrate_percentile(x: ArrayLike, k: int, percent: float) -> int:
    """`calibrate_minmax` of x clipped to [-A, A], A that percentile of |x| (of relu(x) where k = 0).

    Percentile by linear interpolation, as `numpy.percentile`.
    """
    x = _float64(x) if k else relu(x)
    limit = np.percentile(np.abs(x), percent)
    return calibrate_minmax(np.clip(x, -limit, limit), k)


def calibrate_mse(x: ArrayLike, magnitude: int, k: int, rounding: str = "RND") -> int:
    """i of least mean (Q(x) - x)^2, Q saturating; of equal errors the largest i.

    Searches from `calibrate_minmax` down 24 steps; a larger i only coarsens the grid.
    """
    x = _float64(x)
    return _search(lambda i: mean_squared_error(x, k, i, magnitude - i, rounding), x, k)


def calibrate_entropy(x: ArrayLike, magnitude: int, k: int, rounding: str = "RND", bins: int = 2048) -> int:
    """i of least `quantization_divergence`, searched as in `calibrate_mse`."""
    x = _float64(x)
    return _search(lambda i: quantization_divergence(x, k, i, magnitude - i, rounding, bins), x, k)


def _search(cost: Callable[[int], float], x: FloatArray, k: int) -> int:
    top = calibrate_minmax(x, k)
    return min(range(top, top - 25, -1), key=cost)


def mean_squared_error(x: ArrayLike, k: int, i: int, f: int, rounding: str) -> float:
    """Mean (Q(x) - x)^2 under SAT."""
    x = _float64(x)
    return float(((fixed_point(x, k, i, f, rounding, "SAT") - x) ** 2).mean())


def quantization_divergence(x: ArrayLike, k: int, i: int, f: int, rounding: str, bins: int = 2048) -> float:
    """Skew divergence KL(P || 0.99 P' + 0.01 P) of histograms, natural log, >= 0 and finite.

    P counts x (k = 0: relu(x)) in `bins` equal bins over [min, max]. For P' each bin's mass goes to
    the level that its centre quantizes to under SAT, and each level spreads its mass evenly over its
    bins with P > 0 whose centre rounds to it without saturating (if there are none, the mass is
    lost). So clipped mass costs ln 100 a unit, too wide a range the detail within levels.
    Source: calibration by entropy (Migacz 2017); the skew of Lee 1999 settles empty bins.
    """
    counts, edges = np.histogram(_float64(x) if k else relu(x), bins)
    held = counts > 0
    p, centres = counts[held] / counts.sum(), (0.5 * (edges[:-1] + edges[1:]))[held]
    levels = fixed_point(centres, k, i, f, rounding, "SAT", zero_empty=False)
    inside = levels == round_to_grid(centres, f, rounding)
    _, level = np.unique(levels, return_inverse=True)
    share = np.bincount(level, weights=p) / np.maximum(np.bincount(level, weights=inside), 1.0)
    spread = inside * share[level]
    return float((p * np.log(p / (0.99 * spread + 0.01 * p))).sum())
